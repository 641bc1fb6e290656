from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import sosfreqz

from rt_mmdf.core.errors import RecordingError, SinkError
from rt_mmdf.metrics.localisation import snr_db
from rt_mmdf.networks.interface import EEG
from rt_mmdf.preprocessing.filters import CausalFilter, FilterSettings
from rt_mmdf.simulation.batch_files import load_batch, write_batches
from rt_mmdf.simulation.batches import BatchGenerator, BatchSettings, Scene, band_pass_gain

SMALL = BatchSettings(size=16)


def same(one: object, other: object) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in vars(one)]
    return all(a is None and b is None if a is None else torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)) for a, b in pairs)


def silent(scene: Scene) -> Scene:
    return replace(scene, colour=np.zeros_like(scene.colour))


@pytest.mark.parametrize("n_times", [1, 30])
def test_a_batch_depends_on_the_seed_and_the_step_alone(plain_scene: Scene, n_times: int) -> None:
    chosen = replace(SMALL, n_times=n_times, silent_share=0.3, channel_dropout=0.2, modality_dropout=0.1)
    generator = BatchGenerator([plain_scene, plain_scene], chosen, seed=3)
    forwards = [generator.batch(step) for step in range(4)]
    torch.manual_seed(99)  # the generator of others must not matter
    afresh = BatchGenerator([plain_scene, plain_scene], chosen, seed=3)
    for step in (3, 0, 2):
        batch, scene = afresh.batch(step)
        assert scene == forwards[step][1]
        assert same(batch, forwards[step][0])
    assert not same(forwards[0][0], forwards[1][0])
    assert not same(BatchGenerator([plain_scene], chosen, seed=4).batch(0)[0], forwards[0][0])


@settings(max_examples=10)
@given(step=st.integers(0, 1000), most=st.integers(1, 3), n_times=st.sampled_from([1, 25]))
def test_without_noise_a_sample_is_the_field_of_its_truth_at_the_snr_it_claims(
    plain_scene: Scene, step: int, most: int, n_times: int
) -> None:
    chosen = replace(SMALL, n_sources=(1, most), n_times=n_times)
    batch, _ = BatchGenerator([silent(plain_scene)], chosen, seed=1).batch(step)
    # parity of the sparse product with the dense one
    expected = batch.dense(plain_scene.arrays.n_sources).double() @ torch.from_numpy(plain_scene.gain.T).double()
    torch.testing.assert_close(batch.sample.double(), expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    for field, claimed in zip(expected.numpy(), batch.snr_db.tolist(), strict=True):
        assert snr_db(field, plain_scene.arrays.rank) == pytest.approx(claimed, abs=0.02)
    assert batch.snr_db.min() >= -5
    assert batch.snr_db.max() <= 20
    assert (batch.centres >= 0).sum(dim=1).tolist() == torch.isfinite(batch.centres_mm).all(dim=2).sum(dim=1).tolist()
    assert (batch.centres >= 0).sum(dim=1).max() <= most


def test_patches_have_the_extent_the_distance_and_the_ratio_that_are_set(plain_scene: Scene) -> None:
    chosen = BatchSettings(size=300, n_sources=(2, 2), radii_mm=(15.0,), separation_mm=35.0, smooth_share=0.0)
    batch, _ = BatchGenerator([plain_scene], chosen, seed=2).batch(0)
    centres = batch.centres_mm.numpy()
    assert np.linalg.norm(centres[:, 0] - centres[:, 1], axis=1).min() >= 35
    positions = plain_scene.arrays.positions_mm
    for row in range(len(batch)):
        on = batch.moments[row] != 0
        apart = np.linalg.norm(positions[batch.vertices[row, on]][:, None] - centres[row], axis=2).min(axis=1)
        assert apart.max() <= 15
        total = [
            float(batch.moments[row, half].sum().abs()) for half in np.array_split(np.arange(batch.moments.shape[1]), 2)
        ]
        assert 0.5 <= min(total) / max(total) <= 1


def test_a_patch_holds_the_vertices_within_its_radius_and_its_profile_sums_to_its_moment(plain_scene: Scene) -> None:
    for smooth in (0.0, 1.0):
        chosen = BatchSettings(size=50, n_sources=(1, 1), radii_mm=(20.0,), smooth_share=smooth)
        batch, _ = BatchGenerator([plain_scene], chosen, seed=2).batch(0)
        for row in range(len(batch)):
            centre = int(batch.centres[row, 0])
            inside = plain_scene.neighbours[centre][plain_scene.distance_mm[centre] <= 20]
            held = batch.moments[row] != 0
            assert set(batch.vertices[row, held].tolist()) == set(inside.tolist())
            share = batch.moments[row, held].abs()
            assert float(share[0]) == float(share.max())  # the centre comes first
            assert (float(share.min() / share.max()) > 0.999) == (smooth == 0)


def test_noise_has_the_covariance_of_the_scene(plain_scene: Scene) -> None:
    n = 40_000
    quiet = BatchSettings(size=n, n_sources=(1, 1), snr_db=(-200.0, -200.0))
    sample = BatchGenerator([plain_scene], quiet, seed=4).batch(0)[0].sample.numpy()
    expected = plain_scene.colour @ plain_scene.colour.T
    spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / n)  # of a Gaussian's sample covariance
    assert np.abs((sample.T @ sample / n - expected) / spread.clip(1e-6)).max() < 6
    assert np.abs(sample.mean(axis=0)).max() < 6 / np.sqrt(n)


def test_noise_of_a_window_has_that_covariance_too_and_brain_noise_is_slow(plain_scene: Scene) -> None:
    quiet = BatchSettings(size=600, n_sources=(1, 1), snr_db=(-200.0, -200.0), n_times=64, band_hz=None)
    window = BatchGenerator([plain_scene], quiet, seed=4).batch(0)[0].window
    assert window is not None
    flat = window.permute(1, 0, 2).reshape(window.shape[1], -1).numpy()
    expected = plain_scene.colour @ plain_scene.colour.T
    np.testing.assert_allclose(flat @ flat.T / flat.shape[1], expected, atol=0.06)
    brain = plain_scene.colour[:, -plain_scene.n_brain :]
    direction = np.linalg.svd(brain, full_matrices=False)[0][:, 0]  # where the brain is loudest
    power = (torch.fft.rfft(torch.einsum("c,nct->nt", torch.from_numpy(direction), window)).abs() ** 2).mean(dim=0)
    loudest = float(np.sum((direction @ brain) ** 2) / np.sum((direction @ plain_scene.colour) ** 2))
    ratio = float(power[1:4].mean() / power[20:].mean())
    assert ratio > 1 + 2 * loudest
    # without brain noise there is nothing slow
    bare = replace(plain_scene, colour=plain_scene.colour[:, : -plain_scene.n_brain], n_brain=0)
    window = BatchGenerator([bare], quiet, seed=4).batch(0)[0].window
    assert window is not None
    power = (torch.fft.rfft(torch.einsum("c,nct->nt", torch.from_numpy(direction), window)).abs() ** 2).mean(dim=0)
    assert float(power[1:4].mean() / power[20:].mean()) == pytest.approx(1, abs=0.1)


def test_noise_of_windows_is_held_to_the_live_filters() -> None:
    """The gain that shapes it is that of the sections which run live, with the default settings of both."""
    live = FilterSettings()
    freqs = np.arange(1, 51)
    response = np.abs(sosfreqz(CausalFilter.from_settings(live, 1000.0).sos, worN=freqs, fs=1000.0)[1])
    assert SMALL.band_hz == (live.band_pass.low_hz, live.band_pass.high_hz)
    np.testing.assert_allclose(band_pass_gain(freqs, SMALL.band_hz, SMALL.band_order), response, rtol=0.02)
    np.testing.assert_array_equal(band_pass_gain(freqs, None, 4), 1)


def test_noise_within_the_band_has_the_variance_of_the_scene_and_the_spectrum_of_the_filter(plain_scene: Scene) -> None:
    white = replace(plain_scene, colour=np.eye(len(plain_scene.colour), dtype=np.float32), n_brain=0)
    quiet = BatchSettings(size=200, n_sources=(1, 1), snr_db=(-200.0, -200.0), n_times=100)
    window = BatchGenerator([white], quiet, seed=4).batch(0)[0].window
    assert window is not None
    flat = window.permute(1, 0, 2).reshape(window.shape[1], -1).numpy()
    # some 8000 independent values: a standard error of 0.016 of each variance at most
    np.testing.assert_allclose(flat @ flat.T / flat.shape[1], np.eye(len(flat)), atol=0.08)
    power = window.numpy().astype(float)
    power = np.mean(np.abs(np.fft.rfft(power, axis=2)) ** 2, axis=(0, 1))[1:50]  # 1 to 49 Hz
    gain = band_pass_gain(np.arange(1, 50), quiet.band_hz, quiet.band_order)
    np.testing.assert_allclose(power / power[9], (gain / gain[9]) ** 2, rtol=0.06)


def test_a_window_holds_its_sample_and_a_silent_patch_is_not_in_it(plain_scene: Scene) -> None:
    chosen = replace(SMALL, n_times=40, silent_share=1.0, size=64)
    noisy, _ = BatchGenerator([plain_scene], chosen, seed=5).batch(0)
    assert noisy.window is not None
    apart = (noisy.window - noisy.sample[:, :, None]).abs().amax(dim=1)
    assert (apart.amin(dim=1) == 0).all()
    at = apart.argmin(dim=1)
    assert at.min() >= 20  # `instant`: the later half
    clean, _ = BatchGenerator([silent(plain_scene)], chosen, seed=5).batch(0)
    assert clean.window is not None
    expected = clean.dense(plain_scene.arrays.n_sources) @ torch.from_numpy(plain_scene.gain.T)
    torch.testing.assert_close(clean.sample, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    power = clean.window.square().sum(dim=1)
    assert (power.amax(dim=1) > 1.5 * power.gather(1, at[:, None])[:, 0]).any()  # something else is louder at another time


def test_dropped_channels_are_zero_and_as_many_as_set(plain_scene: Scene) -> None:
    chosen = BatchSettings(size=2000, n_sources=(1, 1), channel_dropout=0.2, modality_dropout=0.1)
    batch, _ = BatchGenerator([plain_scene], chosen, seed=6).batch(0)
    gone = (batch.sample == 0).numpy()
    is_eeg = plain_scene.arrays.kinds == EEG
    lost = gone[:, is_eeg].all(axis=1) | gone[:, ~is_eeg].all(axis=1)
    assert lost.mean() == pytest.approx(0.1, abs=0.03)
    assert not gone.all(axis=1).any()
    assert gone[~lost].mean() == pytest.approx(0.1, abs=0.01)  # uniform from 0 to 0.2
    assert gone[~lost].mean(axis=1).max() < 0.45


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, r"size = 0: at least 1 is expected"),
        ({"n_sources": (2, 1)}, r"n_sources = \(2, 1\): two rising numbers from 1"),
        ({"n_sources": (0, 1)}, r"n_sources = \(0, 1\)"),
        ({"radii_mm": ()}, r"radii_mm = \(\): at least one radius"),
        ({"radii_mm": (5.0, -1.0)}, r"radii_mm = \(5.0, -1.0\)"),
        ({"radii_mm": (np.inf,)}, r"radii_mm = \(inf,\)"),
        ({"snr_db": (5.0, 0.0)}, r"snr_db = \(5.0, 0.0\): two rising numbers"),
        ({"snr_db": (0.0, np.nan)}, r"snr_db = \(0.0, nan\)"),
        ({"snr_db": (-np.inf, 0.0)}, r"snr_db = \(-inf, 0.0\)"),
        ({"n_times": ()}, r"n_times = \(\): one length or several"),
        ({"n_times": (25, 0)}, r"n_times = \(25, 0\)"),
        ({"sfreq": 0.0}, r"sfreq = 0.0: a rate above 0 Hz"),
        ({"instant": (0.9, 0.5)}, r"instant = \(0.9, 0.5\): two rising shares"),
        ({"instant": (0.5, 1.5)}, r"instant = \(0.5, 1.5\)"),
        ({"least_ratio": 1.5}, r"least_ratio = 1.5: a share from 0 to 1"),
        ({"silent_share": np.nan}, r"silent_share = nan"),
        ({"modality_dropout": -0.1}, r"modality_dropout = -0.1"),
        ({"channel_dropout": 2}, r"channel_dropout = 2"),
        ({"smooth_share": 7}, r"smooth_share = 7"),
        ({"separation_mm": np.inf}, r"separation_mm = inf: 0 mm or more"),
        ({"band_hz": (40.0, 1.0)}, r"band_hz = \(40.0, 1.0\): two rising edges"),
        ({"band_hz": (0.0, 40.0)}, r"band_hz = \(0.0, 40.0\)"),
        ({"band_order": 0}, r"band_order = 0: at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSettings(**wrong)  # type: ignore[arg-type]


def test_what_the_scenes_cannot_give_is_refused(plain_scene: Scene) -> None:
    with pytest.raises(ValueError, match="at least one scene"):
        BatchGenerator([], SMALL, seed=1)
    short = replace(plain_scene, neighbours=plain_scene.neighbours[:, :1], distance_mm=plain_scene.distance_mm[:, :1])
    with pytest.raises(ValueError, match="neighbours reach 0 mm"):
        BatchGenerator([short], SMALL, seed=1)
    # looked up to 32 mm: a patch of 40 mm would be cut at its edge
    BatchGenerator([plain_scene], replace(SMALL, radii_mm=(32.0,)), seed=1)
    with pytest.raises(ValueError, match=r"neighbours reach 32 mm; radii_mm goes up to 40 mm"):
        BatchGenerator([plain_scene], replace(SMALL, radii_mm=(40.0,)), seed=1)


def test_batches_come_back_from_disk(plain_scene: Scene, tmp_path: Path) -> None:
    generator = BatchGenerator([plain_scene, plain_scene], replace(SMALL, n_times=10), seed=7)
    write_batches(generator, 2, tmp_path / "made")
    for step in (0, 1):
        expected, scene = generator.batch(step)
        back, scene_back = load_batch(tmp_path / "made" / f"batch{step:05d}.safetensors")
        assert scene_back == scene
        assert same(back, expected)
    write_batches(BatchGenerator([plain_scene], SMALL, seed=7), 1, tmp_path / "made")
    assert load_batch(tmp_path / "made" / "batch00000.safetensors")[0].window is None
    with pytest.raises(RecordingError, match="no such file"):
        load_batch(tmp_path / "batch00000.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x01" * 30)
    with pytest.raises(RecordingError, match="damaged"):
        load_batch(tmp_path / "broken.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be written"):
        write_batches(generator, 1, tmp_path / "file")
