from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from rt_mmdf.metrics.localisation import active_set, auc, le_mm, sd_mm, snr_db, to_nearest

N = 30
RNG = np.random.default_rng(0)
POSITIONS = RNG.uniform(-70, 70, (N, 3))
MAPS = arrays(np.float64, N, elements=st.floats(-1e3, 1e3).map(lambda x: round(x, 3)))


def line(n: int) -> tuple[np.ndarray, csr_array]:
    """Sources 5 mm apart on a line, neighbours next to each other."""
    adjacency = np.eye(n, k=1) + np.eye(n, k=-1)
    return np.c_[5.0 * np.arange(n), np.zeros((n, 2))], csr_array(adjacency)


@given(field=arrays(np.float64, (8, 5), elements=st.floats(0.01, 10)), factor=st.floats(0.1, 10))
def test_snr_follows_its_definition_and_amplitude_counts_twice(field: np.ndarray, factor: float) -> None:
    expected = 10 * np.log10(np.mean(np.linalg.norm(field, axis=0) ** 2) / 6)
    assert snr_db(field, 6) == pytest.approx(expected)
    assert snr_db(factor * field, 6) == pytest.approx(expected + 20 * np.log10(factor))


def test_snr_of_whitened_noise_is_zero_db() -> None:
    assert snr_db(np.random.default_rng(1).standard_normal((50, 20_000)), 50) == pytest.approx(0, abs=0.05)


def test_snr_of_silence_and_of_no_dimensions() -> None:
    assert snr_db(np.zeros(4), 3) == -np.inf
    with pytest.raises(ValueError, match="rank 0"):
        snr_db(np.ones(4), 0)


@given(moments=arrays(np.float64, (N, 2), elements=st.floats(-1, 1)))
def test_carried_moments_keep_their_sum_and_stay_when_the_spaces_are_the_same(moments: np.ndarray) -> None:
    np.testing.assert_allclose(to_nearest(moments, POSITIONS, POSITIONS[:7]).sum(0), moments.sum(0), atol=1e-12)
    np.testing.assert_array_equal(to_nearest(moments, POSITIONS, POSITIONS), moments)


@given(estimate=MAPS.filter(np.any), centre=st.integers(0, N - 1))
def test_one_patch_is_the_distance_of_the_strongest_source(estimate: np.ndarray, centre: int) -> None:
    error = le_mm(estimate, POSITIONS, POSITIONS[centre])
    strongest = int(np.abs(estimate).argmax())
    assert error == pytest.approx([np.linalg.norm(POSITIONS[strongest] - POSITIONS[centre])])
    np.testing.assert_allclose(le_mm(-3 * estimate, POSITIONS, POSITIONS[centre]), error)


@given(n_patches=st.integers(2, 4), data=st.data())
def test_patches_are_matched_with_the_least_total_distance(n_patches: int, data: st.DataObject) -> None:
    positions, adjacency = line(61)
    at = data.draw(st.permutations([3, 18, 33, 48]))[:n_patches]
    shift = data.draw(st.lists(st.integers(-2, 2), min_size=n_patches, max_size=n_patches))
    estimate = np.zeros(61)
    for i, (where, by) in enumerate(zip(at, shift, strict=True)):
        estimate[where + by] = 1 + i
    errors = le_mm(estimate, positions, positions[at], adjacency)
    peaks = np.flatnonzero(estimate)
    best = min(
        sum(np.linalg.norm(positions[p] - positions[c]) for p, c in zip(order, at, strict=True))
        for order in permutations(peaks)
    )
    assert errors.sum() == pytest.approx(best)
    np.testing.assert_allclose(errors, 5.0 * np.abs(shift))


def test_a_slope_is_no_second_maximum_and_a_missing_one_costs_60_mm() -> None:
    positions, adjacency = line(41)
    hill = np.exp(-(((np.arange(41) - 10) / 8.0) ** 2))
    np.testing.assert_allclose(le_mm(hill, positions, positions[[10, 30]], adjacency), [0, 60])


def test_maxima_closer_than_20_mm_count_once() -> None:
    positions, adjacency = line(41)
    estimate = np.zeros(41)
    estimate[[10, 13, 30]] = [3, 2, 1]  # 15 mm between the first two
    np.testing.assert_allclose(le_mm(estimate, positions, positions[[10, 30]], adjacency), [0, 0])


def test_an_empty_map_misses_every_patch() -> None:
    np.testing.assert_array_equal(le_mm(np.zeros(N), POSITIONS, POSITIONS[:1]), [60])
    np.testing.assert_array_equal(le_mm(np.zeros(N), POSITIONS, POSITIONS[:3], csr_array(np.eye(N))), [60, 60, 60])


def test_wrong_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of them not finite"):
        le_mm(np.r_[np.nan, np.ones(N - 1)], POSITIONS, POSITIONS[0])
    with pytest.raises(ValueError, match=r"\(5,\) for 30 sources"):
        le_mm(np.ones(5), POSITIONS, POSITIONS[0])
    with pytest.raises(ValueError, match="2 patches"):
        le_mm(np.ones(N), POSITIONS, POSITIONS[:2])


def test_active_is_more_than_a_quarter_of_the_maximum() -> None:
    np.testing.assert_array_equal(active_set([-4, 1, 1.01, 0]), [True, False, True, False])
    assert not active_set(np.zeros(3)).any()


@given(estimate=MAPS, truth=MAPS)
def test_auc_equals_scikit_learn(estimate: np.ndarray, truth: np.ndarray) -> None:
    active = active_set(truth)
    if not active.any() or active.all():
        with pytest.raises(ValueError, match="are active"):
            auc(estimate, truth)
    else:
        assert auc(estimate, truth) == pytest.approx(roc_auc_score(active, np.abs(estimate)))


@given(source=st.integers(0, N - 1), centre=st.integers(0, N - 1))
def test_dispersion_of_one_source_is_its_distance(source: int, centre: int) -> None:
    distance = np.linalg.norm(POSITIONS[source] - POSITIONS[centre])
    assert sd_mm(np.eye(N)[source], POSITIONS, POSITIONS[centre]) == pytest.approx(distance)
    assert sd_mm(np.eye(N)[source], POSITIONS, POSITIONS[[centre, source]]) == 0


@given(estimate=MAPS.filter(lambda x: bool(np.abs(x).max() > 1)), factor=st.floats(0.1, 10))
def test_dispersion_weighs_by_power_and_ignores_scale(estimate: np.ndarray, factor: float) -> None:
    distance = np.linalg.norm(POSITIONS - POSITIONS[3], axis=1)
    expected = np.sqrt(np.average(distance**2, weights=estimate**2))
    assert sd_mm(factor * estimate, POSITIONS, POSITIONS[3]) == pytest.approx(expected)


def test_dispersion_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="zero everywhere"):
        sd_mm(np.zeros(N), POSITIONS, POSITIONS[0])
