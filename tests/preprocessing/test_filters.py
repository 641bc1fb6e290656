from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import group_delay, lfilter, sosfilt, sosfilt_zi

from rt_mmdf.core.blocks import Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.preprocessing.filters import (
    BandPassSettings,
    CausalFilter,
    FilterSettings,
    NotchSettings,
    band_pass,
    decay_samples,
    notch,
)

SFREQ = 200.0
CHANNELS = Channels(("E1", "E2", "M1", "G1"), (ChannelType.EEG, ChannelType.EEG, ChannelType.MAG, ChannelType.GRAD))
SETTINGS = FilterSettings(
    band_pass=BandPassSettings(low_hz=1.0, high_hz=40.0, order=4), notch=NotchSettings(freqs_hz=(50.0,), width_hz=2.0)
)
SIGNAL = np.cumsum(np.random.default_rng(0).standard_normal((4, 900)), axis=1).astype(np.float32) + 50


def block(data: np.ndarray, flags: np.ndarray | None = None, first: int = 0) -> SensorBlock:
    times = (first + np.arange(data.shape[1])) / SFREQ
    flags = np.zeros(data.shape[1], dtype=np.uint32) if flags is None else flags
    return SensorBlock(CHANNELS, data, times, flags, times, first)


def reference(sos: np.ndarray, data: np.ndarray) -> np.ndarray:
    data = data.astype(np.float64)
    return np.asarray(sosfilt(sos, data, axis=1, zi=sosfilt_zi(sos)[:, None, :] * data[:, :1])[0])


def test_equals_scipy_over_the_whole_stream() -> None:
    causal = CausalFilter.from_settings(SETTINGS, SFREQ)
    out = np.hstack([causal(block(SIGNAL[:, a : a + 10], first=a)).data for a in range(0, 900, 10)])
    expected = reference(causal.sos, SIGNAL)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.sample
def test_the_real_recording_in_hops_equals_scipy_on_the_file(sample_data: Path) -> None:
    import mne

    raw = mne.io.read_raw_fif(sample_data / "sample_audvis_5s_raw.fif", verbose="error").pick(
        ["eeg", "mag", "grad"], exclude=()
    )
    sfreq = raw.info["sfreq"]
    data = raw.get_data().astype(np.float32)
    channels = Channels(tuple(raw.ch_names), tuple(ChannelType(kind) for kind in raw.get_channel_types()))
    settings = FilterSettings(
        band_pass=BandPassSettings(low_hz=0.5, high_hz=40.0), notch=NotchSettings(freqs_hz=(60.0, 120.0))
    )
    causal = CausalFilter.from_settings(settings, sfreq)
    pieces = []
    for a, b in pairwise([*range(0, data.shape[1], 7), data.shape[1]]):
        times = np.arange(a, b) / sfreq
        pieces.append(causal(SensorBlock(channels, data[:, a:b], times, np.zeros(b - a, dtype=np.uint32), times, a)).data)
    expected = reference(causal.sos, data)
    error = np.abs(np.hstack(pieces) - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() < 1e-6


def test_a_constant_gives_no_transient() -> None:
    data = np.repeat(np.array([[0.03], [-0.02], [2e-10], [1e-9]], dtype=np.float32), 300, axis=1)
    out = CausalFilter.from_settings(SETTINGS, SFREQ)(block(data)).data
    assert np.abs(out / data[:, :1]).max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(a=st.integers(0, 400), n=st.integers(1, 200), gap_flag=st.booleans())
def test_a_hole_in_one_modality_restarts_it_and_leaves_the_other_alone(a: int, n: int, gap_flag: bool) -> None:
    data, flags = SIGNAL.copy(), np.zeros(900, dtype=np.uint32)
    data[:2, a : a + n] = np.nan
    flags[a : a + n] |= np.uint32(Flag.EEG_MISSING)
    if gap_flag:
        flags[a + n] |= np.uint32(Flag.GAP)
    causal = CausalFilter.from_settings(SETTINGS, SFREQ)
    out = causal(block(data, flags))
    whole = reference(causal.sos, SIGNAL)
    np.testing.assert_allclose(out.data[2:], whole[2:], atol=1e-5)
    assert np.isnan(out.data[:2, a : a + n]).all()
    np.testing.assert_allclose(out.data[:2, a + n :], reference(causal.sos, SIGNAL[:2, a + n :]), atol=1e-5)
    settling = np.zeros(900, dtype=bool)
    settling[: causal.settling_samples] = True
    settling[a + n : a + n + causal.settling_samples] = True
    np.testing.assert_array_equal((out.flags & Flag.SETTLING) != 0, settling)
    assert not ((out.flags ^ flags) & ~np.uint32(Flag.SETTLING)).any()


def test_a_gap_that_no_modality_explains_restarts_both() -> None:
    flags = np.zeros(900, dtype=np.uint32)
    flags[500] = Flag.GAP
    causal = CausalFilter.from_settings(SETTINGS, SFREQ)
    out = causal(block(SIGNAL, flags)).data
    np.testing.assert_allclose(out[:, 500:], reference(causal.sos, SIGNAL[:, 500:]), atol=1e-5)


def test_a_gap_of_meg_restarts_it_while_eeg_is_absent_throughout() -> None:
    data, flags = SIGNAL.copy(), np.full(900, Flag.EEG_MISSING, dtype=np.uint32)
    data[:2] = np.nan
    flags[500] |= np.uint32(Flag.GAP)
    causal = CausalFilter.from_settings(SETTINGS, SFREQ)
    out = causal(block(data, flags)).data
    np.testing.assert_allclose(out[2:, 500:], reference(causal.sos, SIGNAL[2:, 500:]), atol=1e-5)


def test_blocks_that_do_not_follow_each_other_restart_everything() -> None:
    causal = CausalFilter.from_settings(SETTINGS, SFREQ)
    causal(block(SIGNAL[:, :300]))
    out = causal(block(SIGNAL[:, 310:600], first=310))
    np.testing.assert_allclose(out.data, reference(causal.sos, SIGNAL[:, 310:600]), atol=1e-5)
    assert out.flags[0] & Flag.SETTLING


def test_settling_time_is_when_the_slowest_mode_is_down_to_one_percent() -> None:
    sos = band_pass(BandPassSettings(low_hz=1.0, high_hz=None, order=1), SFREQ)
    n = decay_samples(sos)
    impulse = np.zeros(n + 2)
    impulse[0] = 1
    tail = np.abs(lfilter(sos[0, :3], sos[0, 3:], impulse)[1:])  # the input's own sample is not part of the mode
    assert tail[n] <= 0.01 * tail[0] < tail[n - 1]
    slow = FilterSettings(band_pass=BandPassSettings(low_hz=0.01, high_hz=40.0), max_settling_s=3.0)
    assert CausalFilter.from_settings(slow, SFREQ).settling_samples == 600


def test_group_delay_equals_scipy_and_the_delay_of_a_real_envelope() -> None:
    causal = CausalFilter.from_settings(SETTINGS, SFREQ)
    freqs = np.array([3.0, 10.0, 20.0, 33.0])
    expected = sum(group_delay((s[:3], s[3:]), w=freqs, fs=SFREQ)[1] for s in causal.sos) / SFREQ
    np.testing.assert_allclose(causal.group_delay(freqs), expected, rtol=1e-9)
    t = np.arange(900) / SFREQ
    burst = np.exp(-(((t - 2.0) / 0.3) ** 2)) * np.cos(2 * np.pi * 10 * (t - 2.0))
    out = causal(block(np.repeat(burst[None], 4, axis=0).astype(np.float32))).data[0]
    centre = (t * out**2).sum() / (out**2).sum()
    assert centre - 2.0 == pytest.approx(causal.group_delay(10.0)[0], rel=0.05)
    assert np.isnan(causal.group_delay([0.0])).all()


def test_notch_removes_its_line_and_little_else() -> None:
    causal = CausalFilter(notch(NotchSettings(freqs_hz=(50.0,), width_hz=2.0), SFREQ), SFREQ)
    t = np.arange(2000) / SFREQ
    for freq, low, high in ((50.0, 0.0, 1e-3), (45.0, 0.97, 1.0), (49.0, 0.65, 0.75)):
        out = causal(block(np.repeat(np.sin(2 * np.pi * freq * t)[None], 4, axis=0).astype(np.float32), first=0)).data
        causal.reset()
        assert low <= np.sqrt(2) * out[0, -400:].std() <= high


def test_without_any_frequency_everything_passes() -> None:
    settings = FilterSettings(band_pass=BandPassSettings(low_hz=None, high_hz=None))
    causal = CausalFilter.from_settings(settings, SFREQ)
    given = block(SIGNAL)
    assert causal(given) is given
    assert causal.settling_samples == 0
    assert causal.group_delay([10.0]) == 0.0


def test_filters_one_sample_at_a_time_and_blocks_of_none() -> None:
    causal = CausalFilter.from_settings(SETTINGS, SFREQ)
    assert causal(block(SIGNAL[:, :0])).n_times == 0
    out = np.hstack([causal(block(SIGNAL[:, i : i + 1], first=i)).data for i in range(100)])
    np.testing.assert_allclose(out, reference(causal.sos, SIGNAL[:, :100]), atol=1e-5)


def test_another_set_of_channels_starts_anew() -> None:
    causal = CausalFilter.from_settings(SETTINGS, SFREQ)
    causal(block(SIGNAL[:, :300]))
    fewer = replace(block(SIGNAL[:3, 300:600], first=300), channels=CHANNELS.pick([0, 1, 2]))
    np.testing.assert_allclose(causal(fewer).data, reference(causal.sos, SIGNAL[:3, 300:600]), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: band_pass(BandPassSettings(high_hz=100.0), SFREQ), "below 100 Hz"),
        (lambda: notch(NotchSettings(freqs_hz=(50.0, 150.0)), SFREQ), "150 Hz"),
        (lambda: validate_settings({"low_hz": 40.0, "high_hz": 1.0}, BandPassSettings, "band_pass"), "not below high_hz"),
        (lambda: validate_settings({"freqs_hz": [-50.0]}, NotchSettings, "notch"), "must be positive"),
        (lambda: validate_settings({"low": 1.0}, BandPassSettings, "band_pass"), "unknown key"),
    ],
)
def test_frequencies_that_make_no_sense_are_refused(build: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build()  # type: ignore[operator]
