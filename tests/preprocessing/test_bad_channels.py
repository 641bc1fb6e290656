from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.blocks import MISSING, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.preprocessing.bad_channels import BadChannels, BadChannelSettings

SFREQ = 100.0
SETTINGS = BadChannelSettings()
BIN = round(SETTINGS.bin_s * SFREQ)
N_EEG, N_MAG = 12, 10
SCALE = np.array([1e-5] * N_EEG + [1e-12] * N_MAG)[:, None]


def array(positions: bool = False) -> Channels:
    names = tuple(f"E{i}" for i in range(N_EEG)) + tuple(f"M{i}" for i in range(N_MAG))
    types = (ChannelType.EEG,) * N_EEG + (ChannelType.MAG,) * N_MAG
    angle = np.arange(N_EEG + N_MAG) / (N_EEG + N_MAG) * 2 * np.pi
    at = np.column_stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)]) * 0.1 if positions else None
    return Channels(names, types, at)


def noise(n_bins: int, seed: int = 0) -> np.ndarray:
    offsets = np.linspace(-0.03, 0.03, N_EEG).tolist() + [2e-9] * N_MAG  # electrodes and SQUIDs are never at zero
    x = np.random.default_rng(seed).standard_normal((N_EEG + N_MAG, n_bins * BIN)) * SCALE
    return (x + np.array(offsets)[:, None]).astype(np.float32)


def feed(detector: BadChannels, data: np.ndarray, first: int = 0, flags: np.ndarray | None = None) -> list[set[str]]:
    """The bads after each bin."""
    channels = array()
    flags = np.zeros(data.shape[1], dtype=np.uint32) if flags is None else flags
    found = []
    for a in range(0, data.shape[1], BIN):
        t = (first + np.arange(a, a + BIN)) / SFREQ
        block = SensorBlock(channels, data[:, a : a + BIN], t, flags[a : a + BIN], t, first + a)
        found.append(set(detector(block).bads))
    return found


def test_clean_data_have_no_bad_channels() -> None:
    detector = BadChannels(SETTINGS, SFREQ)
    assert all(not bads for bads in feed(detector, noise(20)))


SPOILT = [
    ("flat", lambda x: np.full_like(x, x[0])),
    ("noisy", lambda x: x[0] + 8 * (x - x[0])),
    ("quiet", lambda x: x[0] + (x - x[0]) / 10),
    ("saturated", lambda x: x[0] + 1000 * (x - x[0])),
    ("saturated", lambda x: np.clip(x, np.quantile(x, 0.35), np.quantile(x, 0.65))),
]


@pytest.mark.parametrize(("reason", "spoil"), SPOILT)
@pytest.mark.parametrize("channel", [3, N_EEG + 4])
def test_a_spoilt_channel_is_marked_and_later_unmarked(reason: str, spoil: object, channel: int) -> None:
    data = noise(24)
    bad = slice(4 * BIN, 10 * BIN)
    data[channel, bad] = spoil(data[channel, bad])  # type: ignore[operator]
    detector = BadChannels(SETTINGS, SFREQ)
    name = array().names[channel]
    marked = [name in bads for bads in feed(detector, data[:, : 10 * BIN])]
    assert detector.reasons == {name: reason}
    later = feed(detector, data[:, 10 * BIN :], first=10 * BIN)
    marked += [name in bads for bads in later]
    expected = [False] * (4 + SETTINGS.n_mark - 1)
    expected += [True] * (10 + SETTINGS.n_unmark - 1 - len(expected))
    assert marked == expected + [False] * (24 - len(expected))
    assert detector.reasons == {}


@given(spoilt=st.sampled_from(SPOILT), at=st.integers(0, BIN - 1), channel=st.sampled_from([3, N_EEG + 4]))
def test_what_is_wrong_for_good_is_marked_in_time_wherever_in_a_bin_it_begins(
    spoilt: tuple[str, Callable[[np.ndarray], np.ndarray]], at: int, channel: int
) -> None:
    data, begin = noise(12), 4 * BIN + at
    data[channel, begin:] = spoilt[1](data[channel, begin:])
    marked = [array().names[channel] in bads for bads in feed(BadChannels(SETTINGS, SFREQ), data)]
    assert not any(marked[:4])
    assert (marked.index(True) + 1) * BIN - begin <= (SETTINGS.n_mark + 1) * BIN


@given(at=st.integers(0, BIN - 1), n=st.integers(1, (SETTINGS.n_mark - 2) * BIN), times=st.floats(8, 1e4))
def test_what_is_over_soon_marks_nothing(at: int, n: int, times: float) -> None:
    data, bad = noise(12), slice(4 * BIN + at, 4 * BIN + at + n)
    data[3, bad] = times * data[3, bad]
    assert all(not bads for bads in feed(BadChannels(SETTINGS, SFREQ), data))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_nonfinite_value_marks_at_once(value: float) -> None:
    data = noise(4)
    data[1, BIN + 7] = value
    assert feed(BadChannels(SETTINGS, SFREQ), data) == [set(), {"E1"}, {"E1"}, {"E1"}]


def test_a_single_bad_bin_marks_nothing() -> None:
    data = noise(8)
    data[1, BIN : 2 * BIN] = 0
    assert all(not bads for bads in feed(BadChannels(SETTINGS, SFREQ), data))


def test_channels_of_a_missing_modality_are_not_judged_and_keep_their_mark() -> None:
    data = noise(14)
    data[2, : 5 * BIN] = 0
    flags = np.zeros(14 * BIN, dtype=np.uint32)
    away = slice(5 * BIN, 12 * BIN)
    data[:N_EEG, away] = np.nan
    flags[away] = MISSING[Modality.EEG]
    found = feed(BadChannels(SETTINGS, SFREQ), data, flags=flags)
    assert found[4] == {"E2"}
    assert found[4:] == [{"E2"}] * 10  # neither forgiven while away, nor the others blamed


def test_fixed_bads_and_those_of_the_block_stay() -> None:
    detector = BadChannels(SETTINGS, SFREQ, fixed={"M1": "marked in the recording", "XX": "configured"})
    found = feed(detector, noise(10))
    assert found == [{"M1", "XX"}] * 10
    assert detector.reasons["M1"] == "marked in the recording"


def test_disabled_it_still_hands_on_what_is_fixed() -> None:
    data = noise(10)
    data[2] = 0
    assert feed(BadChannels(BadChannelSettings(enabled=False), SFREQ, fixed=["E5"]), data) == [{"E5"}] * 10


def test_neighbours_are_the_nearest_where_positions_are_known() -> None:
    """A smooth rise over the array is no fault; the same amplitude among quiet neighbours is."""
    data = noise(10)
    rise = np.ones(N_EEG + N_MAG)
    rise[:N_EEG] = np.geomspace(0.1, 4, N_EEG)
    data = ((data - data.mean(axis=1, keepdims=True)) * rise[:, None]).astype(np.float32)
    channels = array(positions=True)
    detector = BadChannels(BadChannelSettings(n_neighbours=4, bin_s=0.5), SFREQ)
    t = np.arange(data.shape[1]) / SFREQ
    zero = np.zeros(len(t), dtype=np.uint32)
    assert detector(SensorBlock(channels, data, t, zero, t, 0)).bads == frozenset()
    data[1] *= 30
    detector.reset()
    assert detector(SensorBlock(channels, data, t, zero, t, 0)).bads == {"E1"}


def test_more_marks_than_bins_to_look_at_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="n_window"):
        BadChannels(BadChannelSettings(n_mark=5, n_window=4), SFREQ)


@pytest.mark.sample
def test_finds_the_known_bad_channels_of_the_real_recording_and_no_others(sample_data: Path) -> None:
    import mne

    raw = mne.io.read_raw_fif(sample_data / "sample_audvis_5s_raw.fif", verbose="error").pick(
        ["eeg", "mag", "grad"], exclude=()
    )
    positions = np.array([ch["loc"][:3] for ch in raw.info["chs"]])
    channels = Channels(tuple(raw.ch_names), tuple(ChannelType(kind) for kind in raw.get_channel_types()), positions)
    data = raw.get_data().astype(np.float32)
    t = np.arange(data.shape[1]) / raw.info["sfreq"]
    for known in (channels, Channels(channels.names, channels.types)):  # with and without positions
        detector = BadChannels(SETTINGS, raw.info["sfreq"])
        out = detector(SensorBlock(known, data, t, np.zeros(len(t), dtype=np.uint32), t, 0))
        assert out.bads == set(raw.info["bads"])
        assert detector.reasons == {"MEG 2443": "noisy", "EEG 053": "quiet"}
