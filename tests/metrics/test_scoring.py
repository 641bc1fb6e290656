"""The fast forms are equal to the plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.spatial import ConvexHull

from rt_mmdf.metrics import extent, localisation
from rt_mmdf.metrics.scoring import METRICS, NEED_AMPLITUDE, CaseScorer, localisation_errors, scored_space
from rt_mmdf.metrics.transport import emd_mm

N_LEFT, N = 60, 130


def sphere(n: int, centre_x: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    points = rng.standard_normal((n, 3))
    points *= 40 / np.linalg.norm(points, axis=1, keepdims=True)
    return points + np.array([centre_x, 0, 0]), ConvexHull(points).simplices


def two_spheres() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    (left, left_mesh), (right, right_mesh) = sphere(N_LEFT, -45, rng), sphere(N - N_LEFT, 45, rng)
    return np.round(np.vstack([left, right])), np.vstack([left_mesh, right_mesh + N_LEFT])


POSITIONS, TRIANGLES = two_spheres()
SPACE = scored_space(POSITIONS, TRIANGLES, N_LEFT)
EDGES = np.vstack([TRIANGLES[:, [i, j]] for i in range(3) for j in range(3) if i != j])
ADJACENCY = csr_array((np.ones(len(EDGES)), EDGES.T), shape=(N, N))


def cases(seed: int, n_patches: int, n_cases: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps (n_sources, n_cases) with equal values and zeros among them, truths and centres."""
    rng = np.random.default_rng(seed)
    maps = np.round(rng.standard_normal((N, n_cases)) * rng.choice([1, 3], n_cases), 1).astype(np.float32)
    maps[:, 0] = 0
    maps[:, 1] = np.where(rng.uniform(size=N) < 0.03, maps[:, 1], 0)
    truth = np.zeros((n_cases, N))
    centres = np.empty((n_cases, n_patches, 3))
    for case in range(n_cases):
        for patch, source in enumerate(rng.choice(N, n_patches, replace=False)):
            members = np.flatnonzero(np.linalg.norm(POSITIONS - POSITIONS[source], axis=1) <= rng.choice([0, 12, 25]))
            truth[case, members] += rng.uniform(0.5, 1) * rng.choice([-1, 1])
            centres[case, patch] = POSITIONS[source] + rng.uniform(-3, 3, 3)
    return maps, truth, centres


@given(seed=st.integers(0, 10_000), n_patches=st.integers(1, 3))
def test_all_metrics_of_many_maps_are_those_of_the_definitions(seed: int, n_patches: int) -> None:
    maps, truth, centres = cases(seed, n_patches)
    scores = CaseScorer(SPACE, truth, centres, transported=range(len(truth))).scores(maps, with_amplitude=True)
    assert tuple(scores) == METRICS
    for case, (s, at) in enumerate(zip(truth, centres, strict=True)):
        estimate = maps[:, case]
        silent = not estimate.any()
        expected = {
            "le_mm": np.mean(localisation.le_mm(estimate, POSITIONS, at, ADJACENCY)),
            "auc": localisation.auc(estimate, s),
            "auc_close": extent.auc_close(estimate, s, POSITIONS),
            "auc_far": extent.auc_far(estimate, s, POSITIONS),
            "emd_mm": np.nan if silent else emd_mm(estimate, s, SPACE.parcels),
            "sd_mm": np.nan if silent else localisation.sd_mm(estimate, POSITIONS, at),
            "area_ratio": extent.area_ratio(estimate, s, SPACE.areas),
            "dice": extent.dice(estimate, s),
            "amplitude_ratio": extent.amplitude_ratio(estimate, s, POSITIONS, at),
            "nmse": extent.nmse(estimate, s),
        }
        for name, value in expected.items():
            assert scores[name][case] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


def test_maps_without_unit_have_no_amplitude_and_only_chosen_cases_are_transported() -> None:
    maps, truth, centres = cases(1, 2)
    scores = CaseScorer(SPACE, truth, centres, transported=[2, 4]).scores(maps, with_amplitude=False)
    assert all(np.isnan(scores[name]).all() for name in NEED_AMPLITUDE)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(scores["emd_mm"])), [2, 4])
    assert np.isfinite(scores["le_mm"]).all()


@pytest.mark.parametrize("n_patches", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float, n_patches: int) -> None:
    maps, _, centres = cases(2, n_patches)
    maps[7, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        localisation_errors(maps, SPACE, centres)


def test_maps_are_left_as_they_are() -> None:
    maps, truth, centres = cases(3, 3)
    before = maps.copy()
    CaseScorer(SPACE, truth, centres).scores(maps, with_amplitude=True)
    np.testing.assert_array_equal(maps, before)


def test_a_case_without_activity_cannot_be_scored() -> None:
    _, truth, centres = cases(4, 1)
    truth[2] = 0
    with pytest.raises(ValueError, match="1 of 6 cases"):
        CaseScorer(SPACE, truth, centres)
