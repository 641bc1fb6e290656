"""Streams whose stamps say nothing are timed by their earliest arrivals."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rt_mmdf.alignment.arrival import ArrivalTimeline, lower_envelope
from rt_mmdf.alignment.grid import Aligner, AlignmentSettings, StreamSpec
from rt_mmdf.alignment.time_map import TimeMap
from rt_mmdf.core.blocks import RawBlock
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import StreamDescriptionError
from rt_mmdf.lsl.interface import ClockOffset

BEGIN = 100.0


def arrivals(
    sfreq: float, chunk: int, drift: float, seconds: float, *, uniform_s: float = 0.0, mean_s: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """When samples were taken, and when they were received: in chunks, each late by chance, in order."""
    rng = np.random.default_rng(seed)
    n = int(seconds * sfreq) // chunk * chunk
    true = BEGIN + np.arange(n) * (1 + drift) / sfreq
    late = rng.uniform(0, uniform_s, n // chunk) if uniform_s else rng.exponential(mean_s or 1e-9, n // chunk)
    return true, np.repeat(np.maximum.accumulate(true[chunk - 1 :: chunk] + late), chunk)


def placed(
    received: np.ndarray, sfreq: float, cuts: list[int] | None = None
) -> tuple[np.ndarray, ArrivalTimeline, np.ndarray]:
    """What the aligner makes of them: time of each sample, and its uncertainty (2 sd)."""
    timeline, times = ArrivalTimeline(sfreq), TimeMap(sfreq, None)
    found, claimed, waiting = [], [], np.empty(0)
    for a, b in pairwise(sorted({0, len(received), *(cuts or ())})):
        waiting = np.concatenate([waiting, received[a:b]])
        while (placement := timeline.place(waiting)).consumed:
            index = placement.index
            if not times.ready:
                times.bend(int(index[0]), timeline.sender_time(index[0]), (1 + timeline.rate_error) / sfreq)
            found.append(times.times_at(index.astype(float)))
            claimed.append(np.full(len(index), 2 * timeline.sender_time_sd(index[-1]) + abs(times.error)))
            waiting = waiting[placement.consumed :]
            if placement.knot:
                at = timeline.next_index
                times.bend(at, timeline.sender_time(at), (1 + timeline.rate_error) / sfreq)
    return np.concatenate(found), timeline, np.concatenate(claimed)


@hypothesis_settings(max_examples=30)
@given(
    sfreq=st.sampled_from([250.0, 500.0, 1000.0]),
    chunk=st.integers(10, 28),
    drift=st.floats(-2e-4, 2e-4),
    jitter=st.sampled_from([("mean_s", 5e-3), ("uniform_s", 5e-3), ("uniform_s", 20e-3)]),
    seed=st.integers(0, 1000),
)
def test_within_2_ms_through_jitter_of_20_ms(
    sfreq: float, chunk: int, drift: float, jitter: tuple[str, float], seed: int
) -> None:
    true, received = arrivals(sfreq, chunk, drift, 40, seed=seed, **{jitter[0]: jitter[1]})
    times, timeline, claimed = placed(received, sfreq)
    late = true[: len(times)] > BEGIN + 25  # blocks of 28 at 250 Hz are 9 arrivals a second: 20 ms take a while to fill
    error = np.abs(times - true[: len(times)])[late]
    assert error.max() < 2e-3
    assert (error <= claimed[late]).mean() > 0.5  # most runs: over all of them see below
    assert timeline.counts.lost == timeline.counts.restarts == 0


def test_its_uncertainty_is_what_it_says() -> None:
    inside = []
    for seed in range(20):
        for given_jitter in ({"mean_s": 5e-3}, {"uniform_s": 20e-3}):
            true, received = arrivals(500.0, 20, 1e-4, 30, seed=seed, **given_jitter)
            times, _, claimed = placed(received, 500.0)
            late = true[: len(times)] > BEGIN + 10
            inside.append((np.abs(times - true[: len(times)]) <= claimed)[late].mean())
    assert np.mean(inside) > 0.93


@hypothesis_settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 5999), max_size=30), lost=st.integers(0, 400))
def test_how_the_stream_is_cut_does_not_matter(cuts: list[int], lost: int) -> None:
    _, received = arrivals(500.0, 17, 5e-5, 16, mean_s=3e-3)
    received = np.delete(received, slice(2500, 2500 + lost))
    whole, one, _ = placed(received, 500.0)
    pieces, other, _ = placed(received, 500.0, [c for c in cuts if c < len(received)])
    np.testing.assert_array_equal(pieces, whole)
    assert other.counts == one.counts


@pytest.mark.parametrize("lost", [40, 250, 2000])
def test_a_hole_is_found_by_the_arrivals_that_stay_late(lost: int) -> None:
    true, received = arrivals(500.0, 20, 1e-4, 60, uniform_s=10e-3)
    kept = np.delete(np.arange(len(true)), slice(10000, 10000 + lost))
    times, timeline, _ = placed(received[kept], 500.0)
    error = times - true[kept][: len(times)]
    assert timeline.counts.gaps == 1
    assert abs(timeline.counts.lost - lost) <= 1
    assert np.abs(error[5000:10000]).max() < 2e-3
    misplaced = np.flatnonzero(np.abs(error[10000:]) > 2e-3)  # until it is found: what lies between is early by the hole
    assert misplaced[-1] < (6.2 if lost < 100 else 1.7) * 500


def test_after_a_hole_that_is_too_long_to_count_numbers_begin_anew() -> None:
    spec = StreamSpec(Modality.EEG, Channels(("e",), (ChannelType("eeg"),)), 250.0, "arrival")
    subject = Aligner([spec], AlignmentSettings(), 10)
    true, received = arrivals(250.0, 20, 1e-4, 100, uniform_s=10e-3)
    hops = []
    for start in range(0, len(true), 20):
        if not BEGIN + 15 < true[start] < BEGIN + 80:
            part = slice(start, start + 20)
            wave = np.sin(2 * np.pi * 7 * true[part])[None].astype(np.float32)
            subject.add(Modality.EEG, RawBlock(wave, np.zeros(20), received[part], start))
            while (hop := subject.advance(float(received[start]))) is not None:
                hops.append(hop)
    times = np.concatenate([hop.block.times for hop in hops])
    data = np.concatenate([hop.block.data[0] for hop in hops])
    late = times > BEGIN + 90
    assert late.sum() > 250 * 9
    assert np.abs(data - np.sin(2 * np.pi * 7 * times))[late].max() < 2 * np.pi * 7 * 4e-3
    assert subject.report()[Modality.EEG].clock_steps == 0
    assert np.isnan(data[(times > BEGIN + 17) & (times < BEGIN + 80)]).all()


def test_a_line_that_was_learnt_too_late_begins_anew() -> None:
    true, received = arrivals(500.0, 10, 0.0, 30, mean_s=1e-3)
    held_up = true < BEGIN + 4
    received[held_up] = np.maximum.accumulate(received[held_up] + 0.1)
    times, timeline, _ = placed(np.maximum.accumulate(received), 500.0)
    assert timeline.counts.restarts == 1
    error = np.abs(times - true[: len(times)])
    assert error[: 3 * 500].max() == pytest.approx(0.1, abs=5e-3)
    assert error[5 * 500 :].max() < 2e-3


def test_a_rate_that_is_not_the_announced_one_is_refused() -> None:
    _, received = arrivals(500.0, 10, 0.05, 30, mean_s=1e-3)
    with pytest.raises(StreamDescriptionError, match=r"announces 500 Hz, but its first arrivals tell 476"):
        placed(received, 500.0)


@given(
    slope=st.floats(-3e-4, 3e-4),
    late=st.lists(st.floats(0, 0.05), min_size=300, max_size=300),
)
def test_the_envelope_lies_below_all_points_and_touches_one(slope: float, late: list[float]) -> None:
    x = np.linspace(0, 60, 300)
    y = 0.02 + slope * x + np.array(late)
    line = lower_envelope(x, y, 1e-4)
    above = y - (line.value + line.slope * (x - line.at))
    assert above.min() == pytest.approx(0, abs=1e-9)


def test_two_streams_are_aligned_though_the_stamps_of_one_are_nonsense() -> None:
    """EEG with all stamps zero, up to 10 ms late in blocks of 20, on a crystal 100 ppm slow, beside a sound MEG."""
    rate, hz = {Modality.EEG: 500.0, Modality.MEG: 1000.0}, 7.0
    specs = [
        StreamSpec(Modality.EEG, Channels(("e",), (ChannelType("eeg"),)), 500.0, "arrival", lag_s=0.03),
        StreamSpec(Modality.MEG, Channels(("m",), (ChannelType("mag"),)), 1000.0),
    ]
    subject = Aligner(specs, AlignmentSettings(), 10)
    subject.add_offset(Modality.MEG, ClockOffset(BEGIN, 0.0, 1e-5))
    eeg_true, eeg_received = arrivals(500.0, 20, 1e-4, 25, uniform_s=10e-3)
    eeg_received = eeg_received + 0.03  # the device's own lag, measured and configured
    true = {Modality.EEG: eeg_true, Modality.MEG: BEGIN + np.arange(25 * 1000) / 1000}
    received = {Modality.EEG: eeg_received, Modality.MEG: true[Modality.MEG]}
    sent, hops = dict.fromkeys(Modality, 0), []
    for now in np.arange(BEGIN, BEGIN + 25, 0.02):
        for m in rate:
            stop = int(np.searchsorted(received[m], now, side="right"))
            if stop > sent[m]:
                part = slice(sent[m], stop)
                wave = np.sin(2 * np.pi * hz * true[m][part])[None].astype(np.float32)
                stamps = true[m][part] if m == "meg" else np.zeros(stop - sent[m])
                subject.add(m, RawBlock(wave, stamps, received[m][part], sent[m]))
                sent[m] = stop
        while (hop := subject.advance(float(now))) is not None:
            hops.append(hop)
    times = np.concatenate([hop.block.times for hop in hops])
    data = np.concatenate([hop.block.data for hop in hops], axis=1)
    inside = (times > BEGIN + 15) & (times < BEGIN + 24)
    assert inside.sum() > 8000
    for row, within_s in ((0, 2e-3), (1, 1e-4)):
        wave = np.sin(2 * np.pi * hz * times[inside])
        assert np.abs(data[row, inside] - wave).max() < 2 * np.pi * hz * within_s
    report = subject.report()[Modality.EEG]
    assert report.drift_ppm == 0.0
    assert report.rate_error_ppm == pytest.approx(100, abs=50)
    assert 0 < report.uncertainty_ms < 3
