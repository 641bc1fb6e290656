from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest

from rt_mmdf.core.channels import Modality
from rt_mmdf.evaluation import suite as suite_module
from rt_mmdf.evaluation.suite import CELLS, QUICK_CELLS, VARIATIONS, Suite
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.metrics.localisation import snr_db
from rt_mmdf.simulation.heads import CONDUCTIVITIES
from rt_mmdf.simulation.scenes import SceneNoise, make_scene, training_scenes, true_cortex

CELL = (15.0, 2, 5.0)
N = 10


def test_the_suite_is_what_was_agreed() -> None:
    assert len(CELLS) == len(set(CELLS)) == 6 * 3 * 5
    assert set(QUICK_CELLS) <= {*CELLS}
    assert len(VARIATIONS) == len(set(VARIATIONS)) >= 4
    assert not {variation.conductivity for variation in VARIATIONS} & set(CONDUCTIVITIES)


def test_cases_depend_on_cell_and_seed_alone(small_suite: Suite) -> None:
    first, again = (small_suite.cases(CELL, N) for _ in range(2))
    for name in ("scene", "sample", "window", "instant", "truth", "centres_mm"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    others = (small_suite.cases(CELL, N, seed=1), small_suite.cases((15.0, 2, 0.0), N), small_suite.cases((20.0, 2, 5.0), N))
    for other in others:
        assert not np.isclose(first.sample, other.sample).any(axis=1).all()
        assert not np.array_equal(first.centres_mm, other.centres_mm)


@pytest.mark.parametrize("n_cases", [1, 4, 7])
def test_cases_take_the_scenes_in_turn(small_suite: Suite, n_cases: int) -> None:
    cases = small_suite.cases(CELL, n_cases)
    assert len(cases) == len(cases.sample) == len(cases.truth) == len(cases.centres_mm) == n_cases
    np.testing.assert_array_equal(cases.scene, np.arange(n_cases) % 4)


def test_a_window_of_a_second_holds_the_sample_at_the_instant(small_suite: Suite) -> None:
    cases = small_suite.cases(CELL, N)
    assert cases.window.shape == (N, 366, 100)
    for sample, window, instant in zip(cases.sample, cases.window, cases.instant, strict=True):
        np.testing.assert_array_equal(window[:, instant], sample)


@pytest.mark.parametrize("cell", [(0.0, 1, 20.0), (10.0, 3, 0.0)])
def test_patches_are_as_wide_many_and_strong_as_the_cell_says(small_suite: Suite, cell: tuple[float, int, float]) -> None:
    """The SNR is that of the truth through the true leadfield; here the true vertices are the sources themselves."""
    radius, n_sources, wanted = cell
    cases = small_suite.cases(cell, 40)
    assert cases.centres_mm.shape == (40, n_sources, 3)
    assert np.isfinite(cases.centres_mm).all()
    for scene, truth, centres in zip(cases.scene, cases.truth, cases.centres_mm, strict=True):
        gaps = np.linalg.norm(small_suite.space.positions_mm[truth != 0][:, None] - centres, axis=2)
        assert gaps.min(axis=1).max() <= radius + 1e-3  # as the crow flies is nearer than along the cortex
        apart = np.linalg.norm(centres[:, None] - centres, axis=2)[np.triu_indices(n_sources, 1)]
        assert apart.min(initial=np.inf) >= 30
        true = small_suite.scenes[scene].scene
        assert snr_db(true.gain @ truth, true.arrays.rank) == pytest.approx(wanted, abs=0.01)


def test_a_view_of_one_modality_is_whitened_without_the_other(small_suite: Suite) -> None:
    """Joint samples carried over are what a system without the other channels would have seen: here of sources."""
    for held_out in small_suite.scenes:
        for modality, view in held_out.alone.items():
            arrays = view.arrays
            is_eeg = arrays.kinds == 0
            np.testing.assert_array_equal(arrays.used, is_eeg if modality is Modality.EEG else ~is_eeg)
            fields = view.of(held_out.scene.arrays.leadfield.T.copy())
            np.testing.assert_allclose(fields.T, arrays.leadfield, atol=1e-5 * np.abs(arrays.leadfield).max())
            window = np.repeat(held_out.scene.arrays.leadfield.T[:3, :, None], 2, axis=2)
            np.testing.assert_allclose(view.of(window)[:, :, 1], fields[:3], atol=1e-5 * np.abs(fields).max())


def test_a_view_of_all_channels_changes_nothing(small_suite: Suite) -> None:
    view = small_suite.scenes[0].view(None)
    sample = np.ones((2, 366), np.float32)
    assert view.of(sample) is sample
    assert view.arrays is small_suite.scenes[0].scene.arrays


def test_true_vertices_that_are_sources_are_left_out_and_the_rest_keeps_its_neighbours(
    template_head_ico3: HeadModel,
) -> None:
    truth = build_template(spacing="ico4")
    cortex = true_cortex(template_head_ico3, truth, reach_mm=15.0)
    whole = make_scene(template_head_ico3, truth, SceneNoise(n_brain_sources=5), seed=1, cortex=cortex)
    scene = suite_module._off_the_sources(whole)
    assert len(scene.truth_mm) == 5124 - 1284
    gaps = np.linalg.norm(scene.truth_mm[:, None] - template_head_ico3.source_positions_mm[None, :200], axis=2)
    assert gaps.min() > 0.1
    np.testing.assert_array_equal(scene.neighbours[:, 0], np.arange(len(scene.truth_mm)))
    number = {tuple(place): i for i, place in enumerate(whole.truth_mm.tolist())}
    for vertex in (0, 1234, 3839):
        before = number[tuple(scene.truth_mm[vertex].tolist())]
        np.testing.assert_array_equal(scene.gain[:, vertex], whole.gain[:, before])
        assert scene.nearest[vertex] == whole.nearest[before]
        near = {
            tuple(whole.truth_mm[n]): d for n, d in zip(whole.neighbours[before], whole.distance_mm[before], strict=True)
        }
        for other, distance in zip(scene.neighbours[vertex], scene.distance_mm[vertex], strict=True):
            if np.isfinite(distance):
                assert near[tuple(scene.truth_mm[other])] == distance
        expected = [
            d for n, d in zip(whole.neighbours[before], whole.distance_mm[before], strict=True) if n_is_kept(whole, n)
        ]
        kept = np.isfinite(scene.distance_mm[vertex])
        np.testing.assert_array_equal(scene.distance_mm[vertex][kept], [d for d in expected if np.isfinite(d)])
    same_mesh = replace(whole, truth_mm=whole.arrays.positions_mm[whole.nearest])
    assert suite_module._off_the_sources(same_mesh) is same_mesh


def n_is_kept(scene: suite_module.Scene, vertex: int) -> bool:
    return bool(np.linalg.norm(scene.truth_mm[vertex] - scene.arrays.positions_mm[scene.nearest[vertex]]) > 0.1)


def test_training_draws_truth_from_the_nominal_mesh_which_the_suite_leaves_out() -> None:
    """That it leaves them out: the test above, by their places."""
    assert inspect.signature(training_scenes).parameters["spacings"].default == ("ico4",)
    assert inspect.signature(build_template).parameters["spacing"].default == "ico4"
