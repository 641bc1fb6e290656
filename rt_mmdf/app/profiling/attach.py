"""The same figures of an engine that runs already, from what it publishes: the stamps of its companion, and its health."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.app.imaging import Progress
from rt_mmdf.app.profiling.hops import HopLog
from rt_mmdf.app.profiling.load import Load, LoadSample
from rt_mmdf.app.profiling.rows import Row, physics_of
from rt_mmdf.core.blocks import StageStamps
from rt_mmdf.core.errors import StreamAmbiguous, StreamDescriptionError, StreamError, StreamNotFound
from rt_mmdf.lsl.description import clean_label
from rt_mmdf.lsl.interface import ClockOffset, OffsetProbe, StreamDescription, Transport
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS

RESOLVE_S = 5.0
PULL_S = 0.05
CLOCK_S = 0.5
CLOCK_LIMIT_S = 5.0
LOOK_S = 0.5  # between two looks at health and clock
BACKLOG_S = 0.5  # what liblsl hands over at first has waited, and is left out
SILENT_S = 5.0  # without an estimate, so long
SPARE_HOPS = 1000
HEALTH_BYTES = 1 << 20  # longer texts are not ours
MAX_HOPS = 5_000_000  # 14 hours at 10 ms; each takes about a hundred bytes
NUMBERS = ("engine/hop_ms", "engine/budget_ms", "estimate/sfreq_before_reduction", "estimate/decimation", "filter/delay_ms")


def attach(
    name: str,
    transport: Transport,
    seconds: float,
    *,
    budget_ms: float | None = None,
    progress: Progress = lambda what, fraction: None,
    keep_waiting: Callable[[float], None] = lambda seconds: None,
) -> Row:
    """Listen to the engine called `name`; a KeyboardInterrupt, or its silence, ends it early with what came until then.

    Stages are by the engine's own stamps. ``hear`` is from there to this program: the way over the network and liblsl, as
    far as the two clocks are known (see `clock_uncertainty_ms` in the row's facts).

    Parameters
    ----------
    budget_ms : what the lateness is held against; None: the engine's own
    keep_waiting : called in each round with no time to wait; for tests, which move a clock in it

    Raises
    ------
    StreamNotFound, StreamAmbiguous
        There is no such engine, or more than one.
    StreamDescriptionError
        The stream of that name is not the companion of an engine.
    StreamError
        It sends nothing.
    """
    progress(f"looking for {name}", 0.0)
    found = _companion(name, transport)
    described = _numbers(found)
    health_name = found.extra.get("streams/health", f"{name}-health")
    n_hops = seconds / (described["engine/hop_ms"] * 1e-3)
    if n_hops > MAX_HOPS:
        raise StreamDescriptionError(
            f"profile --attach {name}: {found.name!r} on {found.hostname!r} says engine/hop_ms = "
            f"{described['engine/hop_ms']:g}, which makes more than {MAX_HOPS:,} hops in {seconds:g} s. Listen for a "
            "shorter time."
        )
    log = HopLog(math.ceil(n_hops) + SPARE_HOPS)
    reports: list[dict[str, Any]] = []
    clock = _EngineClock()
    with ExitStack() as stack:
        probe = transport.offset_probe(found)
        stack.callback(probe.close)
        _measure_first(probe, clock, transport, keep_waiting)
        texts = transport.resolve(name=health_name, type="Health", timeout_s=1.0)
        texts = [stream for stream in texts if stream.hostname == found.hostname]
        health = transport.inlet(texts[0]) if len(texts) == 1 else None  # of several nobody knows which is the engine's
        if health is not None:
            stack.callback(health.close)
        companion = transport.inlet(found)
        stack.callback(companion.close)
        heard_last = looked = transport.clock.now()
        began = heard_last + BACKLOG_S
        used = time.process_time()
        hops = _Hops(log, clock)
        silent = False
        progress(f"listening to {name}", 0.0)
        with suppress(KeyboardInterrupt):
            while transport.clock.now() - began < seconds:
                keep_waiting(0.0)
                data, _ = companion.pull(PULL_S)
                now = transport.clock.now()
                if len(data) == 0:
                    if now - heard_last > SILENT_S and log.n:
                        silent = True
                        break
                    if now - heard_last > SILENT_S:
                        raise StreamError(
                            f"profile --attach {name}: {found.name!r} on {found.hostname!r} has sent nothing for "
                            f"{SILENT_S:g} s. Is its engine still imaging? `rt-mmdf view` shows what it says of itself."
                        )
                    continue
                heard_last = now
                if now < began:
                    continue
                hops.add(np.asarray(data, dtype=np.float64), now)
                if now - looked >= LOOK_S:  # what takes time comes right after a hop: the next one is farthest away
                    looked = now
                    clock.add(probe.measure(0.0))
                    if health is not None:
                        reports += _texts(health.pull(0.0)[0])
                    progress(f"listening to {name}", min((now - began) / seconds, 1.0))
        own_cores = (time.process_time() - used) / max(transport.clock.now() - began, 1e-9)
    if log.n == 0:
        raise StreamError(f"profile --attach {name}: no estimate in {seconds:g} s. Listen for longer.")
    return _row(found, described, log, reports, clock, own_cores, silent, budget_ms)


def _companion(name: str, transport: Transport) -> StreamDescription:
    wanted = f"{name}-sources-companion"
    found = transport.resolve(name=wanted, timeout_s=RESOLVE_S)
    if not found:
        others = {stream.name.removesuffix("-sources-companion") for stream in transport.resolve(type="Companion")}
        seen = ", ".join(sorted(repr(other) for other in others)) or "none"
        raise StreamNotFound(
            f"profile --attach {name}: no stream {wanted!r}. Engines seen on this network: {seen}. Start it (rt-mmdf "
            "monitor), or give the name that its configuration has."
        )
    if len(found) > 1:
        hosts = ", ".join(repr(stream.hostname) for stream in found)
        raise StreamAmbiguous(
            f"profile --attach {name}: {len(found)} streams are called {wanted!r}, on {hosts}. Give each engine a name of "
            "its own (name = ... in its configuration)."
        )
    described = transport.describe(found[0])
    columns = tuple(channel.name for channel in described.channels)
    if described.extra.get("engine/name") != "rt_mmdf" or columns != COMPANION_COLUMNS or described.dtype != "float64":
        raise StreamDescriptionError(
            f"profile --attach {name}: stream {wanted!r} on {described.hostname!r} is not the companion of an rt_mmdf "
            f"engine: its columns are {', '.join(columns[:12]) or 'none'} ({described.dtype}), expected are "
            f"{', '.join(COMPANION_COLUMNS)} (float64), with engine/name = rt_mmdf in the description. Another program uses "
            "that name, or the engine is of another version."
        )
    return described


def _numbers(found: StreamDescription) -> dict[str, float]:
    values = {}
    for key in NUMBERS:
        values[key] = _number_in(found.extra.get(key, ""))
        if not (math.isfinite(values[key]) and values[key] > 0) and key != "filter/delay_ms":
            raise StreamDescriptionError(
                f"profile --attach: stream {found.name!r} on {found.hostname!r} says {key} = {found.extra.get(key)!r}, "
                "where a positive number is expected. The engine is of another version, or this is none."
            )
    return values


def _measure_first(
    probe: OffsetProbe, clock: _EngineClock, transport: Transport, keep_waiting: Callable[[float], None]
) -> None:
    """liblsl's first answer takes 0.7 s, later ones come at once: this one must not hold up what is listened to."""
    deadline = transport.clock.now() + CLOCK_LIMIT_S
    while clock.best is None and transport.clock.now() < deadline:
        keep_waiting(0.0)
        clock.add(probe.measure(CLOCK_S))


class _EngineClock:
    """The engine's clock, by the probe of the smallest round trip; on one machine it is the same clock."""

    def __init__(self) -> None:
        self.best: ClockOffset | None = None

    def add(self, measured: ClockOffset | None) -> None:
        if measured is None:
            return
        if self.best is None or measured.uncertainty < self.best.uncertainty:
            self.best = measured

    def at(self, local: float) -> float:
        """What the engine's clock showed; NaN before it was measured."""
        return math.nan if self.best is None else local - self.best.offset


class _Hops:
    """Rows of the companion, one for each sample, to one for each hop."""

    def __init__(self, log: HopLog, clock: _EngineClock) -> None:
        self._log = log
        self._clock = clock
        self._newest = -1

    def add(self, rows: NDArray[np.float64], now: float) -> None:
        heard = self._clock.at(now)
        first = COMPANION_COLUMNS.index(StageStamps.NAMES[0])
        last_of_hop = np.append(np.flatnonzero(np.diff(rows[:, 0])), len(rows) - 1)
        for at in last_of_hop.tolist():
            hop = rows[at, 0]
            if hop == self._newest:  # the rest of it
                self._log.hear_again(heard)
            if not (np.isfinite(rows[at]).all() and hop > self._newest):
                continue
            self._newest = int(hop)
            self._log.add(int(hop), rows[at, first:].tolist(), int(rows[at, 2]), heard)


def _number_in(text: str) -> float:
    """NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _texts(texts: NDArray[np.generic]) -> list[dict[str, Any]]:
    reports = []
    for text in np.asarray(texts, dtype=object).ravel().tolist():
        if not isinstance(text, str) or len(text) > HEALTH_BYTES:
            continue
        with suppress(ValueError, RecursionError):
            if isinstance(report := json.loads(text), dict):
                reports.append(report)
    return reports


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):  # JSON has whole numbers of any length
        return float(value) if math.isfinite(value) else None
    return None


def _row(
    found: StreamDescription,
    described: Mapping[str, float],
    log: HopLog,
    reports: list[dict[str, Any]],
    clock: _EngineClock,
    own_cores: float,
    silent: bool,
    budget_ms: float | None,
) -> Row:
    times = log.times()
    newest = reports[-1] if reports else {}
    streams = {str(m): own for m, own in _mapping(newest.get("streams")).items() if isinstance(own, dict)}
    sfreq = described["estimate/sfreq_before_reduction"]
    decimation = described["estimate/decimation"]
    hop_samples = round(described["engine/hop_ms"] * 1e-3 * sfreq)
    chunks = {m: _number(own.get("chunk")) for m, own in streams.items()}
    rates = {m: _number(own.get("sfreq")) for m, own in streams.items()}
    chunk_ms = {
        m: 1e3 * (chunk - 1) / rate for m, chunk in chunks.items() if chunk is not None and (rate := rates[m]) is not None
    }
    known = {int(chunk) for chunk in chunks.values() if chunk is not None}
    load = Load(gpu="not measured: the engine runs elsewhere")
    for report in reports:
        at, cores, rss = (_number(report.get(key)) for key in ("time", "cpu_cores", "rss_mb"))
        if at is not None and cores is not None and rss is not None:
            load.samples.append(LoadSample(at, cores, rss))
    sides = [_number_in(found.extra.get(f"head/n_sources_{side}", "")) for side in ("lh", "rh")]
    offset = clock.best
    return Row(
        case={
            "solver": found.extra.get("estimate/solver", "unknown"),
            "backend": None,
            "hop_ms": described["engine/hop_ms"],
            "chunk": known.pop() if len(known) == 1 else None,
            "sfreq": sfreq,
            "modalities": "+".join(streams) or "unknown",
            "n_sources": int(sum(sides)) if math.isfinite(sum(sides)) else 0,
        },
        facts={
            "how": f"attached to {found.extra.get('engine/session', found.name)!r} on {found.hostname!r}"
            + (", which then fell silent" if silent else ""),
            "unit": found.extra.get("estimate/unit", ""),
            "n_channels": newest.get("n_channels"),
            "head": found.extra.get("head/name"),
            "engine_running_s": _number(newest.get("running_s")),
            "engine_counts": {key: newest.get(key) for key in ("hops", "skipped_hops", "missed_deadlines", "invalid_hops")},
            "health_reports": len(reports),
            "clock_uncertainty_ms": None if offset is None else 1e3 * offset.uncertainty,
            "hops_beyond_the_log": log.n_beyond,
        },
        budget_ms=described["engine/budget_ms"] if budget_ms is None else budget_ms,
        times=times,
        start_up=times.part(np.zeros(len(times), bool)),
        prepared_s=None,
        first_estimate_s=None,
        load=load,
        physics=physics_of(
            hop_ms=described["engine/hop_ms"] - 1e3 / sfreq,
            chunk_ms=chunk_ms,
            look_ahead_ms=_number(newest.get("look_ahead_ms")),
            filter_delay_ms=described["filter/delay_ms"] if math.isfinite(described["filter/delay_ms"]) else None,
            window_ms=None,
            times=times,
            device_lag=clean_label(str(newest.get("device_lag", "unknown")), 200),
        ),
        overhead={"note_us": None, "cores": own_cores, "cores_at_1000_hops": None},
        complete_hops=decimation <= hop_samples,
        queues={m: _queue(m, reports) for m in streams},
    )


def _queue(modality: str, reports: list[dict[str, Any]]) -> NDArray[np.int64]:
    """Samples that waited, once a report."""
    own = (_mapping(_mapping(report.get("streams")).get(modality)).get("queue") for report in reports)
    return np.array([value for depth in own if (value := _number(depth)) is not None], dtype=np.int64)


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}
