"""A Chrome trace of a profile: opens in Perfetto (ui.perfetto.dev) and in chrome://tracing.

Format: "Trace Event Format" (Google, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU), the object
form. Each row is a process. What the engine's thread computes (preprocess, solve, publish) follow each other and are
complete events (``X``) on one track; what waits (receive, align) overlaps from hop to hop and is a pair of nestable
asynchronous events (``b``, ``e``) whose id is row and hop, since ids hold for the whole file. Hops that were late or skipped
are instants (``i``); queues and load are counters (``C``). Times are microseconds since the first intended time of each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rt_mmdf.app.profiling.rows import Row
from rt_mmdf.core.blocks import Float64
from rt_mmdf.runtime.telemetry import LATENCIES

TRACE_HOPS = 20_000
"""Hops of a row that are drawn, from its first on: 100,000 slices are what a browser shows without effort."""
WAITING, COMPUTING = ("receive", "align"), ("preprocess", "solve", "publish")
ENGINE, EVENTS = 1, 2

Event = dict[str, Any]


def trace_of(rows: Sequence[Row], command: str = "rt-mmdf profile") -> dict[str, Any]:
    """The whole file as plain values."""
    events: list[Event] = []
    cut: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if len(row.times) > TRACE_HOPS:
            cut[row.name] = len(row.times) - TRACE_HOPS
        events += _events_of(row, number)
    other = {"command": command, "clock": "LSL clock of the engine's machine", "hops_left_out": cut}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _events_of(row: Row, pid: int) -> Iterator[Event]:
    yield _named("process_name", pid, 0, row.name)
    yield _named("thread_name", pid, ENGINE, "engine: preprocess, solve, publish")
    yield _named("thread_name", pid, EVENTS, "late and skipped hops")
    times = row.times.part(np.arange(len(row.times)) < TRACE_HOPS)
    if len(times) == 0:
        return
    start = float(times.stamp("intended")[0])
    us = {name: _us(times.stamp(name), start) for name in ("intended", "received", *_ENDS)}
    hops = times.hops.tolist()
    late = times.latency_ms("lateness") > row.budget_ms
    for i, hop in enumerate(hops):
        for stage in WAITING:
            begin, end = (us[name][i] for name in LATENCIES[stage])
            # a hop that came before it was due has not waited
            common = {"name": stage, "cat": "waiting", "id": f"{pid}-{hop}", "pid": pid, "tid": ENGINE}
            yield common | {"ph": "b", "ts": min(begin, end), "args": {"hop": hop}}
            yield common | {"ph": "e", "ts": end, "args": {}}
        for stage in COMPUTING:
            begin, end = (us[name][i] for name in LATENCIES[stage])
            common = {"name": stage, "cat": "computing", "pid": pid, "tid": ENGINE}
            yield common | {"ph": "X", "ts": begin, "dur": round(max(0.0, end - begin), 3), "args": {"hop": hop}}
        if late[i]:
            yield _instant(f"hop {hop} late", pid, us["published"][i])
        if i and (skipped := hop - hops[i - 1] - 1) > 0 and row.complete_hops:
            yield _instant(f"{skipped} skipped", pid, us["published"][i])
        for name, depths in times.queues.items():
            yield _counter(f"queue {name}", pid, us["published"][i], {"samples": int(depths[i])})
    stop = us["published"][-1]
    yield from _load_events(row, pid, start, stop)


_ENDS = ("aligned", "preprocessed", "solved", "published")


def _load_events(row: Row, pid: int, start: float, stop: float) -> Iterable[Event]:
    for sample in row.load.samples:
        at = _us(np.array([sample.at]), start)[0]
        if not 0 <= at <= stop:
            continue
        yield _counter("cores", pid, at, {"cores": round(sample.cpu_cores, 3)})
        yield _counter("memory", pid, at, {"MB": round(sample.rss_mb, 1)})
        if sample.gpu_percent is not None:
            yield _counter("GPU", pid, at, {"percent": round(sample.gpu_percent, 1)})


def _us(seconds: Float64, start: float) -> list[float]:
    return [round(1e6 * value, 3) for value in (seconds - start).tolist()]


def _named(what: str, pid: int, tid: int, name: str) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _instant(name: str, pid: int, at: float) -> Event:
    return {"name": name, "cat": "deadline", "ph": "i", "s": "t", "pid": pid, "tid": EVENTS, "ts": at, "args": {}}


def _counter(name: str, pid: int, at: float, values: dict[str, float]) -> Event:
    return {"name": name, "cat": "counter", "ph": "C", "pid": pid, "tid": 0, "ts": at, "args": values}
