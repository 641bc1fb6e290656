"""Attached to a running engine: its own figures, from what it publishes; and what is no engine is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest

from rt_mmdf.app.profiling.attach import NUMBERS, _number, attach
from rt_mmdf.app.profiling.hops import HopLog
from rt_mmdf.app.profiling.report import json_report, render
from rt_mmdf.app.profiling.rows import Row
from rt_mmdf.core.errors import StreamAmbiguous, StreamDescriptionError, StreamError, StreamNotFound
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS

Lab = Any  # the fixture's class lives in conftest.py


def publish(lab: Lab, recording: Path) -> None:
    lab.publish_recording(mne.io.read_raw_fif(recording, preload=True, verbose="ERROR"))


def listen(lab: Lab, content: dict[str, Any], seconds: float = 1.8, transport: Any = None) -> tuple[Row, HopLog]:
    """What is seen from outside and what the engine noted; each hop costs the engine 4 ms."""
    noted = HopLog(1000)
    session = lab.session(content, on_estimate=noted)
    image = session.engine.chain.imager._whitening

    def slow(block: Any) -> Any:
        lab.clock.advance(0.004)
        return image(block)

    session.engine.chain.imager._whitening = slow
    lab.looks.append(lambda at: session.health.publish(session.status()) if round(50 * at) % 10 == 0 else None)
    steps = catching_up(lab, lab.steps(session))
    try:
        return attach("a", transport or lab.transport, seconds, keep_waiting=lambda wait: next(steps)), noted
    finally:
        for _ in zip(range(200), steps, strict=False):
            pass


def catching_up(lab: Lab, steps: Iterator[float]) -> Iterator[float]:
    yield from steps
    while True:
        yield lab.clock.advance(0.02)


@pytest.fixture
def content(small_content: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return small_content("a") | {"budget_ms": 50.0, "hop_ms": 40.0}


def test_attached_figures_are_those_that_the_engine_noted(lab: Lab, content: dict[str, Any], small_recording: Path) -> None:
    publish(lab, small_recording)
    row, noted = listen(lab, content)
    seen, times = row.times, noted.times()
    inside = np.isin(times.hops, seen.hops)
    assert len(seen) > 20
    np.testing.assert_array_equal(seen.hops, times.hops[inside])
    np.testing.assert_array_equal(seen.stamps, times.stamps[inside])
    np.testing.assert_array_equal(seen.flags, times.flags[inside])
    assert (seen.latency_ms("hear") >= -0.05).all()  # the clocks are known to 0.01 ms
    assert seen.latency_ms("solve").min() == pytest.approx(4.0)
    assert row.case == {
        **{
            "solver": "dSPM",
            "backend": None,
            "hop_ms": 40.0,
            "chunk": 5,
            "sfreq": 250.0,
            "modalities": "eeg+meg",
            "n_sources": 1284,
        }
    }
    assert row.budget_ms == 50.0
    assert row.facts["health_reports"] >= 5
    assert row.physics["look_ahead_ms"] is not None
    assert row.load.samples
    assert set(row.summary()["queue"]) == {"eeg", "meg"}
    assert json_report([row], "x")["rows"][0]["raw"]["heard_us"]
    assert render([row]) is not None


def test_another_machines_clock_is_taken_into_account(lab: Lab, content: dict[str, Any], small_recording: Path) -> None:
    publish(lab, small_recording)
    row, _ = listen(lab, content, transport=lab.transport.machine("far", offset_s=1000.0))
    assert np.abs(row.times.latency_ms("hear")).max() < 100.0
    assert row.facts["clock_uncertainty_ms"] == pytest.approx(0.01)


def test_fewer_estimates_than_hops_are_no_skips(lab: Lab, content: dict[str, Any], small_recording: Path) -> None:
    publish(lab, small_recording)
    row, _ = listen(lab, content | {"output": {"estimates": {"decimation": 30}}})  # three hops
    assert not row.complete_hops
    assert row.summary()["skipped"] is None
    assert len(row.end_to_end_ms) == len(row.times)


def test_no_engine_of_that_name(lab: Lab) -> None:
    with pytest.raises(StreamNotFound, match=r"no stream 'x-sources-companion'.*rt-mmdf monitor"):
        attach("x", lab.transport, 1.0)


def companion(name: str = "a", **changed: Any) -> StreamDescription:
    channels = tuple(ChannelDescription(column) for column in COMPANION_COLUMNS)
    extra = {
        "engine/name": "rt_mmdf",
        "engine/hop_ms": "10",
        "engine/budget_ms": "50",
        "estimate/sfreq_before_reduction": "1000",
        "estimate/decimation": "1",
        "filter/delay_ms": "20",
    }
    described = StreamDescription(f"{name}-sources-companion", "Companion", name, 1000.0, "float64", channels, extra)
    return replace(described, **changed)


def test_two_engines_of_that_name(lab: Lab) -> None:
    for source in ("one", "two"):
        lab.transport.outlet(companion(source_id=source))
    with pytest.raises(StreamAmbiguous, match="2 streams"):
        attach("a", lab.transport, 1.0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"extra": {}}, "not the companion of an rt_mmdf engine"),
        ({"channels": (ChannelDescription("hop"),)}, "its columns are hop"),
        ({"dtype": "float32"}, "float32"),
        ({"extra": companion().extra | {"engine/hop_ms": "soon"}}, "engine/hop_ms = 'soon'"),
        ({"extra": companion().extra | {"engine/hop_ms": "-1"}}, "positive number"),
        ({"extra": companion().extra | {"estimate/decimation": "nan"}}, "estimate/decimation"),
    ],
)
def test_a_stream_without_our_description(lab: Lab, changed: dict[str, Any], told: str) -> None:
    lab.transport.outlet(companion(**changed))
    with pytest.raises(StreamDescriptionError, match=told):
        attach("a", lab.transport, 1.0)


def test_an_engine_that_says_nothing_is_told() -> None:
    clock = ManualClock()
    transport = MemoryTransport(clock)
    transport.outlet(companion())
    with pytest.raises(StreamError, match="has sent nothing for 5 s"):
        attach("a", transport, 60.0, keep_waiting=lambda wait: (clock.advance(0.5), None)[1])


def test_nonsense_in_the_streams_is_passed_over() -> None:
    """NaN, hops that run backwards, texts that are no JSON: what is left counts."""
    clock = ManualClock()
    transport = MemoryTransport(clock, uncertainty_s=1e-5)
    rows, texts = (
        transport.outlet(companion()),
        transport.outlet(StreamDescription("a-health", "Health", "a", 0.0, "string", (ChannelDescription("h"),), {})),
    )
    sent = iter(range(1000))

    def send(wait: float) -> None:
        now, hop = clock.advance(0.01), next(sent)
        row = np.array([[hop, 10 * hop, 0, now - 0.02, now - 0.01, *(now - 0.01 + 0.001 * np.arange(1, 6))]])
        rows.push(row, now)
        rows.push(row * np.nan, now)
        rows.push(row - [[5, *[0] * 9]], now)
        texts.push(["{", "[" * 5000, "7", '{"streams": 3, "cpu_cores": "many", "time": null}'][hop % 4 : hop % 4 + 1], now)

    row = attach("a", transport, 1.0, keep_waiting=send)
    assert row.times.n_skipped == 0
    np.testing.assert_allclose(row.times.latency_ms("lateness"), 5.0, atol=1e-6)
    assert row.load.samples == []
    assert render([row]) is not None


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), True, "1", None, [], {}])
def test_what_is_no_number_in_a_report_is_unknown(value: object) -> None:
    assert _number(value) is None


def test_hops_that_would_take_all_memory_are_refused() -> None:
    transport = MemoryTransport(ManualClock(5.0))
    channels = tuple(ChannelDescription(name) for name in COMPANION_COLUMNS)
    extra = dict.fromkeys(NUMBERS, "1") | {"engine/name": "rt_mmdf", "engine/hop_ms": "1e-9"}
    transport.outlet(StreamDescription("a-sources-companion", "Companion", "", 0.0, "float64", channels, extra))
    with pytest.raises(StreamDescriptionError, match=r"engine/hop_ms = 1e-09, which makes more than 5,000,000 hops"):
        attach("a", transport, 10.0)
