"""A lag of the device that is known is taken out of the times, once, and makes nobody late."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rt_mmdf.alignment.grid import AlignedHop, Aligner, AlignmentSettings, StreamSpec
from rt_mmdf.core.blocks import RawBlock
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.lsl.interface import ClockOffset

EEG, MEG = Modality.EEG, Modality.MEG
RATE = {EEG: 500.0, MEG: 1000.0}
SECONDS, CHUNK_S, HZ = 4.0, 0.02, 11.0
START = 50.0  # true time of the first samples


def run(lag_s: dict[Modality, float], grid: str = "clock", late_ms: float = 100.0, **known: float) -> list[AlignedHop]:
    """Both streams show the same sine of true time; a sample is stamped, and arrives at the earliest, a lag later."""
    rate = RATE if grid == "clock" else dict.fromkeys(RATE, 1000.0)
    told = {m: known.get(m.value, lag_s[m]) for m in Modality}
    specs = [
        StreamSpec(m, Channels((f"{m}0",), (ChannelType(k),)), rate[m], lag_s=told[m])
        for m, k in ((EEG, "eeg"), (MEG, "mag"))
    ]
    subject = Aligner(specs, AlignmentSettings(grid=grid, late_ms=late_ms), 10)
    true = {m: START + np.arange(round(SECONDS * rate[m])) / rate[m] for m in Modality}
    sent, hops = dict.fromkeys(Modality, 0), []
    for m in Modality:
        subject.add_offset(m, ClockOffset(START - 100.0, 100.0, 1e-5))  # the senders' clocks are 100 s behind
    for k in range(1, round((SECONDS + 1) / CHUNK_S)):
        now = START + k * CHUNK_S
        for m in Modality:
            stop = int(np.searchsorted(true[m] + max(0.0, lag_s[m]), now))
            if stop > sent[m]:
                part = true[m][sent[m] : stop]
                wave = np.sin(2 * np.pi * HZ * part)[None].astype(np.float32)
                subject.add(m, RawBlock(wave, part + lag_s[m] - 100.0, np.full(len(part), now), sent[m]))
                sent[m] = stop
        while (hop := subject.advance(now)) is not None:
            hops.append(hop)
    return hops


LAGS = st.floats(-0.2, 0.4)


@hypothesis_settings(max_examples=15)
@given(eeg=LAGS, meg=LAGS, grid=st.sampled_from(["clock", "samples"]))
def test_what_was_simultaneous_is_paired_whatever_the_lags(eeg: float, meg: float, grid: str) -> None:
    if grid == "samples":  # whole samples apart, or no pairing is exact
        eeg, meg = round(eeg, 3), round(meg, 3)
    hops = run({EEG: eeg, MEG: meg}, grid)
    times = np.concatenate([hop.block.times for hop in hops])
    data = np.concatenate([hop.block.data for hop in hops], axis=1)
    flags = np.concatenate([hop.block.flags for hop in hops])[10:]
    inside = times[10:] < START + SECONDS - 0.05
    assert inside.sum() > 2500
    assert not flags[inside].any()  # nobody is late for a lag that is known, four times `late_ms`
    expected = np.sin(2 * np.pi * HZ * times[10:][inside])
    for row in data[:, 10:]:
        np.testing.assert_allclose(row[inside], expected, atol=5e-3)


def test_a_lag_that_is_not_told_is_what_is_wrong() -> None:
    hops = run({EEG: 0.035, MEG: 0.0}, eeg=0.0)
    times = np.concatenate([hop.block.times for hop in hops])
    eeg = np.concatenate([hop.block.data[0] for hop in hops])
    inside = (times > START + 1) & (times < START + 3)
    np.testing.assert_allclose(eeg[inside], np.sin(2 * np.pi * HZ * (times[inside] - 0.035)), atol=5e-3)


@pytest.mark.parametrize("lag_s", [0.1, -0.1])
def test_a_lag_is_physics(lag_s: float) -> None:
    """The intended time counts it where samples cannot be had sooner; an early stamp does not make a sample exist."""
    hops = run({EEG: lag_s, MEG: 0.0})
    wait = np.array([hop.intended - hop.block.times[-1] for hop in hops[20:300]])
    received = np.array([hop.block.received[-1] - hop.intended for hop in hops[20:300]])
    assert (wait >= max(0.0, lag_s) + 0.010 - 2e-3).all()  # and the look-ahead, less a sample
    assert (wait <= max(0.0, lag_s) + 0.010 + CHUNK_S + 1e-3).all()  # and at most one chunk
    assert (received > -1e-3).all()
    assert received.max() < CHUNK_S + 1e-3
    assert abs(subject_lag_ms(lag_s)) < 1e3 * CHUNK_S + 1


def subject_lag_ms(lag_s: float) -> float:
    """`LaneReport.arrival_lag_ms` of a stream with this lag that arrives at once."""
    spec = StreamSpec(EEG, Channels(("a",), (ChannelType("eeg"),)), 500.0, lag_s=lag_s, lag_uncertainty_s=3e-3)
    subject = Aligner([spec], AlignmentSettings(), 10)
    true = START + np.arange(500) / 500
    subject.add_offset(EEG, ClockOffset(START, 0.0, 1e-5))
    subject.add(EEG, RawBlock(np.zeros((1, 500), np.float32), true + lag_s, np.full(500, true[-1] + max(0.0, lag_s)), 0))
    subject.advance(true[-1])
    report = subject.report()[EEG]
    assert report.uncertainty_ms > 3.0  # that of the lag is in that of the time
    return report.arrival_lag_ms


@pytest.mark.parametrize("late_ms", [100.0])
def test_with_both_streams_dead_time_goes_on_after_the_lag(late_ms: float) -> None:
    hops = run({EEG: 0.3, MEG: 0.0}, late_ms=late_ms)
    newest = hops[-1].block.times[-1]
    assert newest == pytest.approx(START + SECONDS + 1 - late_ms * 1e-3 - 0.3, abs=0.04)
