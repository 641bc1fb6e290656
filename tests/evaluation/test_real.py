from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import RecordingError, SolverError
from rt_mmdf.evaluation.figure import INSIDE, OUTSIDE
from rt_mmdf.evaluation.real import (
    Averages,
    EvokedSolver,
    RealMap,
    classical_solver,
    concentration_verdict,
    expected_region,
    image_averages,
    network_solver,
    read_averages,
    real_figure,
)
from rt_mmdf.headmodel.whitener import Whitener, imaging_info, make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.solvers.artefact import save_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.linear import SolverSettings

PLACES = arrays(np.float64, (6, 3), elements={"min_value": -100, "max_value": 100})
DSPM = SolverSettings(method="dSPM", snr=3.0, depth=0.0)
# measured with mne, shared/science.md
DSPM_PEAKS = {
    "Left Auditory": (47, -19, 39),
    "Right Auditory": (-49, -23, 31),
    "Left visual": (23, -70, 16),
    "Right visual": (-22, -67, 3),
}


@pytest.fixture(scope="module")
def averages(sample_data: Path) -> Averages:
    return read_averages(sample_data)


@pytest.fixture(scope="module")
def maps(averages: Averages) -> tuple[RealMap, ...]:
    meg = classical_solver(DSPM, "dSPM of MEG", [Modality.EEG])
    return image_averages(averages, [classical_solver(DSPM), meg])


@given(places=PLACES)
@pytest.mark.parametrize("what", ["Auditory", "visual"])
def test_regions_are_mirror_images_and_lie_opposite_to_the_stimulus(what: str, places: np.ndarray) -> None:
    left, right = expected_region(f"Left {what}", places), expected_region(f"Right {what}", places * [-1, 1, 1])
    assert left is not None
    np.testing.assert_array_equal(left, right)
    assert (places[left, 0] > 0).all()


def test_nothing_is_expected_of_conditions_that_are_not_known() -> None:
    assert expected_region("faces", np.zeros((2, 3))) is None
    assert expected_region("Left button", np.zeros((2, 3))) is None


@pytest.mark.sample
def test_all_channels_peak_where_they_should_and_meg_alone_does_not(maps: tuple[RealMap, ...]) -> None:
    both = [found for found in maps if found.solver == "dSPM"]
    for found in both:
        np.testing.assert_allclose(found.position_mm, DSPM_PEAKS[found.condition], atol=0.6)
        assert found.in_region
        assert 0.075 <= found.time_s <= 0.120
        assert found.hemisphere == ("right" if found.condition.startswith("Left") else "left")
        assert (found.n_channels, found.deviation, found.as_row()["solver"]) == (364, None, "dSPM")
    (alone,) = (found for found in maps if found.solver == "dSPM of MEG" and found.condition == "Left Auditory")
    assert (alone.hemisphere, alone.in_region, alone.n_channels) == ("left", False, 305)


@pytest.mark.sample
def test_maps_are_what_mne_makes_of_the_average(averages: Averages, maps: tuple[RealMap, ...]) -> None:
    (found,) = (found for found in maps if found.solver == "dSPM" and found.condition == "Left Auditory")
    names = [name for name in averages.head.ch_names if name not in averages.bads]
    info = imaging_info(averages.head.info, names, averages.projs)
    forward = mne.pick_channels_forward(averages.head.forward, names, ordered=True)
    inverse = mne.minimum_norm.make_inverse_operator(
        info, forward, averages.noise_cov, loose=0.0, fixed=True, depth=None, verbose="ERROR"
    )
    average = averages.evokeds[0].copy().pick(names)
    own = mne.EvokedArray(average.data, info, average.times[0], nave=average.nave, verbose="ERROR")
    theirs = mne.minimum_norm.apply_inverse(own, inverse, 1 / 9, "dSPM", verbose="ERROR")
    instant = np.argmin(np.abs(average.times - found.time_s))
    np.testing.assert_allclose(found.values, theirs.data[:, instant], atol=1e-3 * np.abs(found.values).max())


@pytest.mark.sample
@pytest.mark.parametrize("kind", ["fusion", "mmdf"])
def test_networks_image_averages_in_the_noise_they_expect(averages: Averages, tmp_path: Path, kind: str) -> None:
    """With weights by chance, so where they peak is not asked."""
    head = averages.head
    whitener = make_whitener(head.channels, set(head.ch_names), head.info, averages.noise_cov, averages.projs)
    network = build_network(kind, {}, forward_arrays(head, whitener, head.ch_names))
    for values in network.parameters():
        if not values.any():  # networks begin with silence
            torch.nn.init.normal_(values, std=0.01)
    artefact = save_artefact(tmp_path / kind, network, head, averages.noise_cov, name=kind, card="", projs=averages.projs)
    (left,) = (evoked for evoked in averages.evokeds if evoked.comment == "Left Auditory")
    solver = network_solver(artefact)
    (found,) = image_averages(replace(averages, evokeds=(left,)), [solver])
    operator = solver.prepare(averages, 3)
    spread = operator.whitener.matrix @ left.data[:, left.times < 0]
    assert np.sqrt((spread**2).sum(axis=0).mean() / operator.whitener.rank) == pytest.approx(1.0, abs=0.35)
    sample = (operator.whitener.matrix @ left.data[:, left.times <= found.time_s + 1e-9]).astype(np.float32)
    scale = 1.0 if kind == "fusion" else 3**-0.5
    expected = scale * operator.solver(sample, 1)[:, 0]
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert (found.unit, found.n_channels) == ("A m", 364)
    assert (found.deviation is not None and found.deviation > 0) == (kind == "fusion")


@pytest.mark.sample
@pytest.mark.parametrize(("value", "seen"), [(0.0, "zero everywhere"), (np.nan, "not finite")])
def test_a_solver_that_says_nothing_is_named(averages: Averages, value: float, seen: str) -> None:
    class Silent:
        n_sources, unit = averages.head.n_sources, "A m"

        def __call__(self, window: np.ndarray, n_new: int) -> np.ndarray:
            return np.full((self.n_sources, n_new), value, np.float32)

    def prepare(averages: Averages, n_trials: int) -> Operator:
        n_channels = len(averages.head.channels)
        return Operator(Whitener(averages.head.channels, np.eye(n_channels), n_channels), Silent(), frozenset())

    with pytest.raises(SolverError, match=f"silent: its map of 'Left Auditory'.* is {seen}"):
        image_averages(averages, [EvokedSolver("silent", prepare)])


@pytest.mark.sample
def test_the_figure_says_what_the_maps_say(averages: Averages, maps: tuple[RealMap, ...]) -> None:
    shown = [found for found in maps if found.condition == "Left Auditory"]
    figure = real_figure(averages, shown, "Real")
    captions = {text.get_text(): text.get_color() for text in figure.texts if " mm, " in text.get_text()}
    for found in shown:
        x, y, z = (round(value) for value in found.position_mm)
        (caption,) = (said for said in captions if said.startswith(f"({x}, {y}, {z}) mm, {1e3 * found.time_s:.0f} ms"))
        assert captions[caption] == (INSIDE if found.in_region else OUTSIDE)
        assert caption.endswith(f"sd {found.sd_mm:.0f} mm")
    peaks = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert len(peaks) == 2


def a_map(solver: str, condition: str, sd_mm: float, in_region: bool | None) -> RealMap:
    return RealMap(condition, solver, 6, 364, np.ones(2), "", 0, (0.0, 0.0, 0.0), 0.1, "right", in_region, sd_mm, None)


def test_concentration_counts_in_the_right_area_and_for_honest_maps_only() -> None:
    wide = [a_map(row, c, 60.0, False) for row in ("MNE", "dSPM", "sLORETA") for c in ("Left visual", "Right visual", "x")]
    narrow = [a_map("n", "Left visual", 20.0, True), a_map("n", "Right visual", 20.0, False), a_map("n", "x", 20.0, None)]
    found = concentration_verdict([*wide, *narrow], "n", 1.1)
    assert (found.n_passed, found.n_tested, found.outcome) == (1, 2, "holds in part")
    assert found.failing[0] == "Right visual: outside, sd 20 mm against 60 of MNE, 60 of dSPM, 60 of sLORETA"
    blurred = [a_map("n", "Left visual", 70.0, True)]
    assert concentration_verdict([*wide, *blurred], "n", 1.1).outcome == "does not hold"
    for ratio in (0.1, 3.0, None):
        assert concentration_verdict([*wide, *narrow], "n", ratio).outcome == "not tested"


def test_a_folder_without_the_files_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"evoked responses is expected as one file \*-ave.fif.*seen: none"):
        read_averages(tmp_path)
    for name in ("a-ave.fif", "b-ave.fif"):
        (tmp_path / name).touch()
    with pytest.raises(RecordingError, match=r"seen: a-ave.fif, b-ave.fif"):
        read_averages(tmp_path)


@pytest.mark.sample
def test_averages_that_cannot_be_read_are_refused(tmp_path: Path, sample_data: Path) -> None:
    for path in sample_data.glob("*.fif*"):
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "sample_audvis_few-ave.fif.gz").write_bytes(b"no averages")
    with pytest.raises(RecordingError, match="cannot be read"):
        read_averages(tmp_path)
