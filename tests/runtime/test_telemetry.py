from __future__ import annotations

import time
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.core.blocks import StageStamps
from rt_mmdf.runtime.telemetry import LATENCIES, Histogram, LatencyRecorder, ProcessLoad

ms = 1e-3


def stamps(sensor: float, lateness: float) -> StageStamps:
    i = sensor + 12 * ms
    return StageStamps(sensor, i, i + 0.2 * ms, i + 0.3 * ms, i + 0.6 * ms, i + 0.9 * lateness, i + lateness)


@given(
    values=st.lists(
        st.floats(1e-6, 100.0) | st.floats(-100.0, -1e-6) | st.just(0.0) | st.sampled_from([float("nan")]), max_size=200
    ),
    q=st.floats(0.0, 1.0),
)
def test_histogram_is_within_half_a_percent_of_the_exact_quantile(values: list[float], q: float) -> None:
    histogram = Histogram()
    for part in (values[:50], values[50:]):
        histogram.add(np.array(part))
    finite = np.array([v for v in values if np.isfinite(v)])
    assert histogram.n == len(finite)
    if len(finite) == 0:
        assert np.isnan(histogram.quantile(q))
        return
    exact = np.quantile(finite, q, method="inverted_cdf")
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.0051, abs=1.01e-6)
    assert (histogram.min, histogram.max) == (finite.min(), finite.max())
    assert histogram.quantile(1.0) == pytest.approx(finite.max(), rel=0.0051, abs=1.01e-6)


@settings(deadline=None)
@given(
    late=st.lists(st.floats(0.5, 30.0), min_size=1, max_size=120),
    asked_after=st.sets(st.integers(0, 119)),
    start_up=st.integers(0, 20),
    capacity=st.integers(1, 40),
)
def test_counts_are_exact_whenever_somebody_asks(
    late: list[float], asked_after: set[int], start_up: int, capacity: int
) -> None:
    recorder = LatencyRecorder(10 * ms, start_up_hops=start_up, capacity=capacity)
    for hop, lateness in enumerate(late):
        recorder.record(hop, stamps(hop * 10 * ms, lateness * ms))
        if hop in asked_after:
            recorder.summary()
    got = recorder.summary()
    counted = late[start_up:]
    # the difference of two clock readings rounds: judge as the recorder must
    missed = [
        (s := stamps((start_up + i) * 10 * ms, v * ms)).published - s.intended > 10 * ms for i, v in enumerate(counted)
    ]
    assert got.hops == len(counted)
    assert got.start_up_hops == min(start_up, len(late))
    assert got.missed == sum(missed)
    assert got.longest_miss_run == max((len(list(run)) for miss, run in groupby(missed) if miss), default=0)
    assert got.skipped == 0
    if counted:
        assert got.latency_ms["lateness"]["max"] == pytest.approx(max(counted), rel=1e-6)
        assert got.latency_ms["lateness"]["p50"] == pytest.approx(
            np.quantile(counted, 0.5, method="inverted_cdf"), rel=0.0051
        )


@given(hops=st.sets(st.integers(0, 200), min_size=1), capacity=st.integers(1, 30))
def test_hops_that_never_came_are_counted_as_skipped(hops: set[int], capacity: int) -> None:
    recorder = LatencyRecorder(1.0, capacity=capacity)
    for hop in sorted(hops):
        recorder.record(hop, stamps(hop * ms, ms))
    assert recorder.summary().skipped == max(hops) - min(hops) + 1 - len(hops)


def test_latencies_are_the_differences_that_their_names_promise() -> None:
    recorder = LatencyRecorder(1.0)
    given_stamps = StageStamps(0.0, 0.010, 0.011, 0.013, 0.016, 0.020, 0.025)
    recorder.record(7, given_stamps)
    expected = {
        "receive": 1.0,
        "align": 2.0,
        "preprocess": 3.0,
        "solve": 4.0,
        "publish": 5.0,
        "software": 14.0,
        "lateness": 15.0,
        "age": 25.0,
    }
    assert expected.keys() == LATENCIES.keys()
    for measured in (recorder.summary().latency_ms, recorder.recent()):
        for name, value in expected.items():
            assert measured[name]["p50"] == pytest.approx(value, rel=1e-6)
            assert measured[name]["max"] == pytest.approx(value, rel=1e-6)


def test_recent_speaks_of_the_last_hops_only() -> None:
    recorder = LatencyRecorder(1.0, capacity=64)
    for hop in range(500):
        recorder.record(hop, stamps(hop * ms, (50 if hop < 480 else 2) * ms))
    assert recorder.recent(20)["lateness"]["max"] == pytest.approx(2.0)
    assert recorder.summary().latency_ms["lateness"]["p50"] == pytest.approx(50.0, rel=0.006)


@given(late_ms=st.lists(st.floats(-5, 2e4), min_size=1, max_size=60))
def test_the_histogram_to_draw_counts_every_hop_in_its_bin(late_ms: list[float]) -> None:
    recorder = LatencyRecorder(1.0)
    for hop, late in enumerate(late_ms):
        recorder.record(hop, stamps(hop * ms, late * ms))
    drawn = recorder.histogram("lateness")
    edges, counts = np.array(drawn["edges_ms"]), np.array(drawn["counts"])
    assert len(edges) == len(counts) + 1
    assert counts.sum() == len(late_ms)
    assert counts[0] > 0
    assert counts[-1] > 0
    values = np.clip(late_ms, edges[0] * 1.001, edges[-1] * 0.999)
    for tolerance in (0.98, 1.02):  # the bins that are added up are 1 % wide
        cumulated = np.searchsorted(np.sort(values), edges[1:-1] * tolerance)
        assert ((np.cumsum(counts)[:-1] - cumulated) * (1 - tolerance) >= 0).all()


def test_without_hops_there_is_no_latency() -> None:
    recorder = LatencyRecorder(1.0)
    assert recorder.histogram("lateness") == {"edges_ms": [], "counts": []}
    assert recorder.summary().hops == 0
    assert np.isnan(recorder.summary().latency_ms["age"]["p99"])
    assert np.isnan(recorder.recent()["age"]["max"])
    with pytest.raises(ValueError, match="at least 1"):
        LatencyRecorder(1.0, capacity=0)


def test_process_load_sees_work_and_memory() -> None:
    load = ProcessLoad()
    start, begin = time.perf_counter(), time.process_time()
    while time.process_time() < begin + 0.2:
        pass
    expected = (time.process_time() - begin) / (time.perf_counter() - start)
    recent, mean = load.recent(), load.mean()
    assert recent.cpu_cores == pytest.approx(expected, rel=0.3)  # the operating system counts in steps of 10 ms
    assert mean.cpu_cores == pytest.approx(expected, rel=0.3)
    assert recent.rss_mb > 10
