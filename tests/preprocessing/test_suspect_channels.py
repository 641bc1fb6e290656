"""A channel that jumps or falls silent is suspected at once, and forgotten when the filters have forgotten it."""

from __future__ import annotations

from pathlib import Path

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.preprocessing.cleaning import Cleaning
from rt_mmdf.preprocessing.settings import PreprocessingSettings
from rt_mmdf.preprocessing.suspect_channels import BIN_S, LEAST_STILL, SuspectChannels, SuspectSettings

SFREQ, HOLD, N = 250.0, 100, 6
CHANNELS = Channels(tuple(f"E{k}" for k in range(N)), (ChannelType.EEG,) * N)
AT = 700  # of the faults below, after five bins of learning
SUSPECT = np.uint32(Flag.CHANNEL_SUSPECT)


def noise(n_times: int = 2000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3e-3, 1e-5, (N, n_times)).astype(np.float32)  # on an electrode's offset


def suspected(data: np.ndarray, bads: frozenset[str] = frozenset(), flags: np.ndarray | None = None) -> np.ndarray:
    times = np.arange(data.shape[1]) / SFREQ
    flags = np.zeros(data.shape[1], np.uint32) if flags is None else flags
    block = SensorBlock(CHANNELS, data, times, flags, times, 0, bads)
    out = SuspectChannels(SuspectSettings(), SFREQ, HOLD)(block)
    assert out.data is block.data
    return (out.flags & SUSPECT) != 0


def test_noise_is_not_suspected() -> None:
    assert not suspected(noise(20000)).any()


@given(size=st.floats(1e-3, 1.0), sign=st.sampled_from([-1, 1]), channel=st.integers(0, N - 1))
def test_a_jump_is_seen_at_its_first_sample(size: float, sign: int, channel: int) -> None:
    data = noise()
    data[channel, AT:] += sign * size
    (seen,) = np.nonzero(suspected(data))
    np.testing.assert_array_equal(seen, np.arange(AT, AT + HOLD + 1))


@pytest.mark.parametrize("stays_for", [LEAST_STILL, 200])
def test_silence_is_seen_after_eight_samples(stays_for: int) -> None:
    data = noise()
    data[2, AT : AT + stays_for + 1] = data[2, AT]
    (seen,) = np.nonzero(suspected(data))
    np.testing.assert_array_equal(seen, np.arange(AT + LEAST_STILL, AT + stays_for + HOLD + 1))


def test_seven_samples_of_silence_are_chance() -> None:
    data = noise()
    data[2, AT : AT + LEAST_STILL] = data[2, AT]
    assert not suspected(data).any()


def test_what_is_not_imaged_is_nobody_s_business() -> None:
    data = noise()
    data[1, AT:] += 1.0
    assert not suspected(data, frozenset({"E1"})).any()


def test_nothing_is_joined_over_a_hole() -> None:
    data, flags = noise(), np.zeros(2000, np.uint32)
    data[:, AT:] += 1.0
    flags[AT] = Flag.GAP
    assert not suspected(data, flags=flags).any()
    data[:, AT - 50 : AT] = np.nan
    flags[AT - 50 : AT] = Flag.GAP | Flag.EEG_MISSING
    assert not suspected(data, flags=flags).any()


def test_what_goes_on_is_usual_after_some_seconds() -> None:
    data = noise(4000)
    data[0, AT:] = 3e-3 + (data[0, AT:] - 3e-3) * 100  # an electrode that is not bad by its neighbours, say
    seen = suspected(data)
    assert seen[AT + 5 : AT + 500].all()
    assert not seen[AT + round((4 + 2 * BIN_S) * SFREQ) + HOLD :].any()


def test_a_channel_that_never_moved_is_not_suspected_for_moving() -> None:
    data = noise()
    data[3, :AT] = 0.0
    assert not suspected(data).any()


def test_through_cleaning_the_flag_lasts_until_the_channel_is_known_as_bad() -> None:
    cleaning = Cleaning(PreprocessingSettings(), SFREQ)
    data, flags, bads = noise(3000), [], []
    data[4, AT:2000] = 5e-3
    for first in range(0, 3000, 5):
        part = data[:, first : first + 5]
        times = (first + np.arange(5)) / SFREQ
        out = cleaning(SensorBlock(CHANNELS, part, times, np.zeros(5, np.uint32), times, first))
        flags.append(out.flags)
        bads += [out.bads] * 5
    seen = (np.concatenate(flags) & SUSPECT) != 0
    found = bads.index(frozenset({"E4"}))
    assert AT + 250 < found < AT + 600
    assert seen[AT:found].all()
    assert not seen[:AT].any()
    assert not seen[found:].any()  # its return is nobody's business: it is let back when the filters have settled


@pytest.mark.sample
def test_nobody_is_suspected_on_the_real_recording(sample_data: Path) -> None:
    raw = mne.io.read_raw_fif(sample_data / "sample_audvis_5s_raw.fif", verbose="ERROR")
    raw.load_data().pick(["meg", "eeg"], exclude=raw.info["bads"], verbose="ERROR")
    channels = Channels(tuple(raw.ch_names), tuple(ChannelType(kind) for kind in raw.get_channel_types()))
    data = raw.get_data().astype(np.float32)
    times = raw.times
    block = SensorBlock(channels, data, times, np.zeros(len(times), np.uint32), times, 0)
    out = SuspectChannels(SuspectSettings(), raw.info["sfreq"], HOLD)(block)
    assert not (out.flags & SUSPECT).any()


@pytest.mark.parametrize("off", [1e-3, 0.1, 10.0])
def test_a_channel_comes_back_when_the_filters_have_forgotten_how_far_it_was_off(off: float) -> None:
    data = noise(6000)
    spoilt = data.copy()
    spoilt[4, AT:2000] = off

    def cleaned(samples: np.ndarray) -> tuple[np.ndarray, list[frozenset[str]]]:
        cleaning, out, bads = Cleaning(PreprocessingSettings(), SFREQ), [], []
        for first in range(0, samples.shape[1], 5):
            times = (first + np.arange(5)) / SFREQ
            block = SensorBlock(CHANNELS, samples[:, first : first + 5], times, np.zeros(5, np.uint32), times, first)
            done = cleaning(block)
            out.append(done.data)
            bads += [done.bads] * 5
        return np.hstack(out), bads

    right, _ = cleaned(data)
    got, bads = cleaned(spoilt)
    back = 2000 + bads[2000:].index(frozenset())
    assert "E4" in bads[1999]
    assert 2000 + 3 * SFREQ <= back < 6000
    assert np.abs(got[4, back:] - right[4, back:]).max() < 0.1 * right[4].std()
