from __future__ import annotations

from pathlib import Path

import mne
import numpy as np
import pytest
from pydantic import ValidationError
from scipy.signal import butter, sosfilt

from rt_mmdf.core.errors import NoiseCovarianceError, SinkError
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.metrics.localisation import snr_db
from rt_mmdf.simulation.recordings import (
    LEAST_RATIO,
    N_ICO4,
    PLACES,
    SEPARATION_MM,
    SimulationSettings,
    simulate_recording,
    write_recording,
)
from rt_mmdf.simulation.sources import fsaverage5_cortex
from rt_mmdf.simulation.truth import Truth, load_truth, truth_path

pytestmark = pytest.mark.slow  # the first run computes the boundary elements of the true head: ten seconds

SETTINGS = SimulationSettings(duration_s=12.0, rest_s=3.0, seed=11)
Simulated = tuple[mne.io.RawArray, Truth]


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    return simulate_recording(SETTINGS)


def test_channels_are_those_of_a_recording(simulated: Simulated) -> None:
    raw, truth = simulated
    counts = {kind: len(raw.copy().pick(kind).ch_names) for kind in ("eeg", "mag", "grad", "stim")}
    assert counts == {"eeg": 60, "mag": 102, "grad": 204, "stim": 1}
    assert raw.n_times == 12_000
    assert raw.info["sfreq"] == 1000
    assert truth.ch_names == tuple(raw.ch_names[:-1])
    assert raw.info["dev_head_t"] is not None
    assert all(np.isfinite(ch["loc"][:3]).all() and ch["loc"][:3].any() for ch in raw.info["chs"][:-1])
    assert np.isfinite(raw.get_data()).all()


def test_equal_seeds_give_equal_recordings_and_others_do_not(simulated: Simulated) -> None:
    raw, truth = simulated
    again, truth_again = simulate_recording(SETTINGS)
    np.testing.assert_array_equal(again.get_data(), raw.get_data())
    np.testing.assert_array_equal(truth_again.moments, truth.moments)
    other, truth_other = simulate_recording(SETTINGS.model_copy(update={"seed": 12}))
    np.testing.assert_array_equal(truth_other.brain_cov, truth.brain_cov)  # another time, the same brain
    assert abs(np.corrcoef(other.get_data([0])[0], raw.get_data([0])[0])[0, 1]) < 0.5


def test_the_recording_is_noise_plus_the_field_of_the_truth(simulated: Simulated) -> None:
    raw, truth = simulated
    louder, truth_louder = simulate_recording(SETTINGS.model_copy(update={"snr_db": 20.0}))
    np.testing.assert_allclose(truth_louder.moments, truth.moments * 10**0.5, rtol=1e-9)  # 10 dB
    difference = (louder.get_data() - raw.get_data())[:-1]
    expected = truth.fields.T @ (truth_louder.moments - truth.moments)
    rms = raw.get_data()[:-1].std(axis=1, keepdims=True)
    assert np.abs((difference - expected) / rms).max() < 1e-5  # single precision


def test_levels_are_those_of_real_sensors(simulated: Simulated) -> None:
    raw, _ = simulated
    rest = raw.copy().crop(tmax=SETTINGS.rest_s, include_tmax=False)
    spread = {kind: float(np.median(rest.get_data(kind).std(axis=1))) for kind in ("eeg", "mag", "grad")}
    assert 1e-6 < spread["eeg"] < 20e-6
    assert 50e-15 < spread["mag"] < 2e-12
    assert 50e-15 / 0.01 / 10 < spread["grad"] < 2e-12 / 0.01
    psd = rest.compute_psd(fmin=300, fmax=450, n_fft=1024, verbose="ERROR")
    density = {kind: float(np.median(np.sqrt(psd.get_data(kind)))) for kind in ("eeg", "mag", "grad")}
    # 1/f noise is almost gone there: what is left is the sensors' own
    assert density["eeg"] == pytest.approx(SETTINGS.eeg_nv * 1e-9, rel=0.4)
    assert density["mag"] == pytest.approx(SETTINGS.mag_ft * 1e-15, rel=0.5)
    assert density["grad"] == pytest.approx(SETTINGS.grad_ft_cm * 1e-13, rel=0.5)


def test_brain_noise_is_shared_by_eeg_and_meg(simulated: Simulated) -> None:
    def largest_correlation(raw: mne.io.BaseRaw) -> float:
        raw.filter(1, 40, verbose="ERROR").crop(3, 27)  # reflected edges are alike in all channels
        eeg, meg = (raw.get_data(kind) for kind in ("eeg", "meg"))
        return float(np.abs(np.corrcoef(eeg, meg)[: len(eeg), len(eeg) :]).max())

    quiet = SETTINGS.model_copy(update={"snr_db": -100.0, "duration_s": 30.0})
    assert largest_correlation(simulate_recording(quiet)[0]) > 0.25
    # 1900 independent samples: 0.023 is one standard deviation, 4.5 of them the most that 18360 pairs reach by chance
    assert largest_correlation(simulate_recording(quiet.model_copy(update={"n_brain_sources": 0}))[0]) < 0.12


def test_the_whitener_of_the_truth_whitens_what_the_filter_leaves_of_the_noise() -> None:
    quiet, truth = simulate_recording(SETTINGS.model_copy(update={"snr_db": -100.0, "duration_s": 60.0}))
    sos = butter(4, (1, 40), "bandpass", fs=1000, output="sos")
    names = truth.ch_names[::-1]
    matrix, rank = truth.whitener(names, lambda x: np.asarray(sosfilt(sos, x, axis=1)))
    assert rank == 365
    white = matrix @ sosfilt(sos, quiet.get_data(list(names)), axis=1)[:, 3000:]
    assert np.mean(np.sum(white**2, axis=0)) / rank == pytest.approx(1, rel=0.03)  # 0 dB by the definition of SNR
    # no direction stands out: the spectrum of eigenvalues is that of chance (Marchenko & Pastur), 2 x 39 Hz x 57 s samples
    largest = np.linalg.eigvalsh(np.cov(white))[-1]
    assert largest < 1.3 * (1 + np.sqrt(rank / (2 * 39 * 57))) ** 2


def test_activations_have_the_snr_that_was_asked_for(simulated: Simulated) -> None:
    _, truth = simulated
    sos = butter(4, SETTINGS.band_hz, "bandpass", fs=1000, output="sos")
    matrix, rank = truth.whitener(truth.ch_names, lambda x: np.asarray(sosfilt(sos, x, axis=1)))
    for source, field in enumerate(truth.fields):
        peak = float(np.abs(truth.moments[source]).max())
        assert snr_db(matrix @ field * peak, rank) == pytest.approx(SETTINGS.snr_db, abs=0.5)


def test_rest_is_rest_and_triggers_mark_the_activations(simulated: Simulated) -> None:
    raw, truth = simulated
    assert not truth.moments[:, : int(SETTINGS.rest_s * 1000)].any()
    events = mne.find_events(raw, initial_event=True, verbose="ERROR")
    assert [(sample / 1000, code - 1) for sample, _, code in events] == [(e.onset_s, e.source) for e in truth.events]
    for event in truth.events:
        span = slice(round(event.onset_s * 1000), round((event.onset_s + event.duration_s) * 1000))
        assert truth.moments[event.source, span].any()
        others = np.delete(truth.moments, event.source, axis=0)
        assert not others[:, span].any()


def test_the_truth_is_no_source_of_the_solver_and_near_its_place(simulated: Simulated) -> None:
    _, truth = simulated
    cortex = fsaverage5_cortex()
    for place, centre in zip(PLACES.values(), truth.centres_mm, strict=True):
        assert cortex.nearest(centre) % cortex.n_left >= N_ICO4
        assert np.linalg.norm(centre - place) < 8


def test_other_conductivities_change_the_field_of_the_truth(simulated: Simulated) -> None:
    _, truth = simulated
    cortex = fsaverage5_cortex()
    head = build_template(
        spacing="ico5",
        conductivity=(0.3, 0.006, 0.3),
        vertices=tuple(side.tolist() for side in cortex.by_hemisphere(np.unique(np.concatenate(truth.vertices)))),
    )
    assert SETTINGS.conductivity != (0.3, 0.006, 0.3)
    order = np.unique(np.concatenate(truth.vertices)).tolist()
    gain = head.leadfield(truth.ch_names)
    kinds = np.array([kind.value for kind in head.channels.types])
    for vertices, profile, field in zip(truth.vertices, truth.profiles, truth.fields, strict=True):
        nominal = gain[:, [order.index(v) for v in vertices]] @ profile
        for kind, at_least, at_most in (("eeg", 0.02, 1.0), ("grad", 0.0, 0.2)):
            rows = kinds == kind
            change = np.linalg.norm(field[rows] - nominal[rows]) / np.linalg.norm(nominal[rows])
            assert at_least < change < at_most


def test_sensor_noise_takes_the_colour_of_a_covariance(simulated: Simulated) -> None:
    raw, _ = simulated
    names = [raw.ch_names[0], raw.ch_names[3], raw.ch_names[-2]]
    scale = np.array([1e-11, 2e-11, 3e-6])
    wanted = np.array([[1, 0.8, 0.5], [0.8, 1, 0.3], [0.5, 0.3, 1]]) * np.outer(scale, scale)
    cov = mne.Covariance(wanted, names, [], [], nfree=1000)
    alone = SETTINGS.model_copy(update={"n_brain_sources": 0, "snr_db": -100.0})
    coloured, truth = simulate_recording(alone, noise_cov=cov)
    seen = np.cov(coloured.get_data(names))
    np.testing.assert_allclose(seen / np.outer(scale, scale), wanted / np.outer(scale, scale), atol=0.05)
    assert truth.recipe["sensor_noise"] == "coloured"
    stranger = mne.Covariance(np.eye(1), ["X1"], [], [], nfree=10)
    with pytest.raises(NoiseCovarianceError, match="none of them is simulated"):
        simulate_recording(alone, noise_cov=stranger)


def test_recording_and_truth_come_back_from_disk(simulated: Simulated, tmp_path: Path) -> None:
    raw, truth = simulated
    path = tmp_path / "made" / "demo-raw.fif"
    write_recording(raw, truth, path)
    back = mne.io.read_raw_fif(path, verbose="ERROR")
    rms = raw.get_data().std(axis=1, keepdims=True)
    np.testing.assert_allclose(back.get_data() / rms, raw.get_data() / rms, atol=1e-5)
    np.testing.assert_array_equal(load_truth(truth_path(path)).moments, truth.moments)
    with pytest.raises(SinkError, match=r"ends in -raw\.fif"):
        write_recording(raw, truth, tmp_path / "demo.fif")
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be written"):
        write_recording(raw, truth, tmp_path / "file" / "demo-raw.fif")


@pytest.mark.parametrize(
    "wrong",
    [
        {"active_s": 2.0},
        {"rest_s": 60.0},
        {"band_hz": (40.0, 1.0)},
        {"sfreq": 1.0},
        {"speed": 3},
        {"order": 5},
        {"order": 1, "radius_mm": 5.0},
        {"n_sources": 4},
        {"n_sources": 3, "n_places": 2},
        {"course": "spike"},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SimulationSettings.model_validate(wrong)


def test_several_sources_reach_the_snr_together_and_lie_apart() -> None:
    settings = SimulationSettings(duration_s=6.0, rest_s=1.0, n_sources=2, course="pink", seed=2)
    raw, truth = simulate_recording(settings)
    sos = butter(4, settings.band_hz, "bandpass", fs=1000, output="sos")
    matrix, rank = truth.whitener(truth.ch_names, lambda x: np.asarray(sosfilt(sos, x, axis=1)))
    for first, second in zip(truth.events[::2], truth.events[1::2], strict=True):
        assert first.onset_s == second.onset_s
        assert np.linalg.norm(truth.centres_mm[first.source] - truth.centres_mm[second.source]) > SEPARATION_MM
        span = slice(round(first.onset_s * 1000), round((first.onset_s + 0.7) * 1000))
        field = matrix @ (truth.fields.T @ truth.moments[:, span])
        power = np.sum(field**2, axis=0).max() / rank
        assert 10 * np.log10(power) == pytest.approx(settings.snr_db, abs=0.5)
        ratio = np.abs(truth.moments[second.source, span]).max() / np.abs(truth.moments[first.source, span]).max()
        assert LEAST_RATIO <= ratio <= 1
    codes = mne.find_events(raw, initial_event=True, verbose="ERROR")[:, 2] - 1
    assert codes.tolist() == [event.source for event in truth.events[::2]]
    assert {event.kind for event in truth.events} == {"pink"}


def test_random_places_lie_apart_and_orders_are_those_of_an_ico4_mesh() -> None:
    settings = SimulationSettings(duration_s=5.0, n_places=3, n_sources=3, order=1, n_brain_sources=10, seed=5)
    _, truth = simulate_recording(settings)
    assert truth.source_names == ("place 1", "place 2", "place 3")
    gaps = np.linalg.norm(truth.centres_mm[:, None] - truth.centres_mm, axis=2)[np.triu_indices(3, 1)]
    assert gaps.min() >= SEPARATION_MM
    assert [len(vertices) for vertices in truth.vertices] == [19, 19, 19]  # two rings of ico-5 are one of ico-4


def test_a_varied_head_is_not_the_one_that_the_recording_describes() -> None:
    plain = SimulationSettings(duration_s=5.0, order=0, n_brain_sources=10, conductivity=(0.33, 0.0042, 0.43))
    raw, truth = simulate_recording(plain)
    raw_varied, truth_varied = simulate_recording(plain.model_copy(update={"vary_head": True}))
    assert truth_varied.recipe["true_conductivity"] == [0.33, 0.0042, 0.43]
    for one, other in zip(raw.info["chs"], raw_varied.info["chs"], strict=True):
        np.testing.assert_array_equal(one["loc"], other["loc"])
    np.testing.assert_array_equal(raw.info["dev_head_t"]["trans"], raw_varied.info["dev_head_t"]["trans"])
    change = np.linalg.norm(truth_varied.fields - truth.fields) / np.linalg.norm(truth.fields)
    assert 0.05 < change < 0.8
