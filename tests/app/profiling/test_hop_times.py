"""Percentiles and misses of a profile: what they count, whatever was skipped."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rt_mmdf.app.profiling.hops import END_TO_END, STAGES, HopLog, HopTimes, cost_of_noting, figures_of, longest_run
from rt_mmdf.app.profiling.report import misses
from rt_mmdf.app.profiling.rows import Row, labels_of
from rt_mmdf.core.blocks import Flag, StageStamps

FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
LATENESS = st.lists(st.floats(0.5, 80.0), min_size=1, max_size=60)


@FIXTURES
@given(late=LATENESS, gaps=st.lists(st.integers(1, 4), min_size=60, max_size=60))
def test_a_skipped_hop_is_as_late_as_the_next_that_came(
    make_times: Callable[..., HopTimes], late: list[float], gaps: list[int]
) -> None:
    hops = np.cumsum(gaps[: len(late)])
    times = make_times(late, hops.tolist())
    published = dict(zip(hops.tolist(), times.stamp("published").tolist(), strict=True))
    expected = []
    for hop in range(hops[0], hops[-1] + 1):
        following = min(other for other in published if other >= hop)
        expected.append(1e3 * (published[following] - (500.0 + 0.01 * hop)))
    np.testing.assert_allclose(times.end_to_end_ms(), expected, atol=1e-6)
    assert times.n_skipped == hops[-1] - hops[0] + 1 - len(late)
    assert len(times.end_to_end_ms()) == len(times) + times.n_skipped


def test_an_engine_that_skips_cannot_look_fast(make_row: Callable[..., Row]) -> None:
    """Every tenth hop is published, each in 1 ms: by the published hops alone it would be perfect."""
    row = make_row([1.0] * 200, list(range(0, 2000, 10)), budget_ms=20.0)
    found = row.summary()
    assert found["latency_ms"]["lateness"]["p99"] == pytest.approx(1.0)
    assert found["latency_ms"][END_TO_END]["p99"] == pytest.approx(91.0)
    assert (found["skipped"], found["late"], found["longest_late_run"]) == (199 * 9, 199 * 8, 8)
    assert [miss.p99_ms for miss in misses([row])] == [pytest.approx(91.0)]


@given(values=st.lists(st.floats(0.0, 1e3) | st.just(math.nan), max_size=300))
def test_percentiles_rise_and_are_among_the_values(values: list[float]) -> None:
    found = figures_of(np.array(values))
    finite = sorted(value for value in values if math.isfinite(value))
    assert found["n"] == len(finite)
    known = [found[key] for key in ("p50", "p90", "p99", "p99_9", "max") if found[key] is not None]
    assert known == sorted(known)
    assert set(known) <= set(finite)
    assert (found["p99"] is None) == (len(finite) < 100)
    assert (found["p99_9"] is None) == (len(finite) < 1000)
    if found["p50"] is not None:
        assert sum(value <= found["p50"] for value in finite) >= len(finite) / 2


@given(late=st.lists(st.booleans(), max_size=60))
def test_the_longest_run_is_counted(late: list[bool]) -> None:
    text = "".join("x" if miss else " " for miss in late)
    assert longest_run(np.array(late, dtype=bool)) == max((len(run) for run in text.split(" ")), default=0)


@FIXTURES
@given(late=LATENESS)
def test_stages_add_up_to_the_lateness(make_times: Callable[..., HopTimes], late: list[float]) -> None:
    times = make_times(late)
    np.testing.assert_allclose(sum(times.latency_ms(stage) for stage in STAGES), times.latency_ms("lateness"), atol=1e-6)
    np.testing.assert_allclose(times.latency_ms("lateness"), late, atol=1e-6)


def test_the_log_keeps_what_fits_and_counts_the_rest() -> None:
    log, waiting = HopLog(3), [5]
    log.watch({"eeg": lambda: waiting[0]})
    stamps = StageStamps(1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    for hop in range(5):
        log.add(hop, stamps.as_tuple(), int(Flag.INVALID if hop == 1 else Flag.FALLBACK))
        waiting[0] += 1
    times = log.times()
    assert times.hops.tolist() == [0, 1, 2]
    assert times.queues["eeg"].tolist() == [5, 6, 7]
    assert (log.n_beyond, times.n_invalid, times.n_fallback) == (2, 1, 2)
    log.hear_again(2.0)
    assert log.times().latency_ms("hear")[-1] == pytest.approx(500.0)
    assert times.latency_ms("software") == pytest.approx([400.0] * 3)


def test_its_own_cost_is_measured() -> None:
    assert 0 < cost_of_noting(2, repeats=50) < math.inf


def test_rows_are_called_by_what_tells_them_apart(make_row: Callable[..., Row]) -> None:
    names, shared = labels_of([make_row([1.0]), make_row([1.0], solver="MNE"), make_row([1.0], hop_ms=20.0)])
    assert names == ["dSPM, hop 10 ms", "MNE, hop 10 ms", "dSPM, hop 20 ms"]
    assert shared == "blocks of 10, 1000 Hz, eeg+meg, 5124 sources"
    assert labels_of([make_row([1.0])])[0] == ["dSPM"]
    assert "blocks" not in make_row([1.0], chunk=None).name


def test_nothing_measured_is_no_pass(make_row: Callable[..., Row]) -> None:
    assert misses([make_row([])])[0].p99_ms == math.inf
    assert misses([make_row([19.0] * 10)]) == []
    assert "5.0 ms over the budget of 20 ms" in str(misses([make_row([25.0] * 10)])[0])
