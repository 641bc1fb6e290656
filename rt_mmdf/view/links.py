"""One stream of the engine each, received and put in order; no threads in here: a feed calls `step`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Flag, Float32, Float64, StageStamps
from rt_mmdf.core.errors import StreamDescriptionError
from rt_mmdf.lsl.interface import Inlet, StreamDescription, Transport
from rt_mmdf.sinks import averages
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS
from rt_mmdf.view.history import History, Rolling, Traces
from rt_mmdf.view.streams import (
    AverageStream,
    EngineDescription,
    read_average,
    read_engine,
    read_sensors,
)

PULL_S = 0.1  # longest wait for a first sample
PATIENCE_S = 0.25  # an estimate waits so long for its companion
BUFFER_S = 2.0  # of the transport: what a view is late by at most before samples are lost
COMPANION_BUFFER_S = 10 * BUFFER_S  # small, and tells what was lost
SILENCE_S = 1.0  # no engine is started again in less
ANOTHER_ORIGIN_S = 0.25  # between the beginnings of two grids; far less: one whose clock is fitted better and better
COMPANION_LIMIT_S = 3.0  # so long is waited for it to be subscribed to
COMPANION_WAIT_S = 0.01  # it is pushed right after its estimate
MAX_WAITING_BYTES = 32_000_000
LATENCY_HOPS = 8192
LATENCY_COLUMNS = ("hop", "lateness", "software", "age")
IRREGULAR_HZ = 100.0  # liblsl reckons so where a stream has no rate
UPDATES_BUFFERED = 4  # of an average


class Restarted(Exception):
    """The numbering began anew, or does not go with the time any more: another engine speaks through the same streams."""


@dataclass(frozen=True)
class Counts:
    """What became of the estimates, since this view was started. Samples.

    received : taken from the network
    lost : published by the engine, as their companion says, and never received: the link or this machine is too slow
    holes : that the engine's numbering jumps over: hops that it skipped, or lost with their companion
    discarded : received, but more at once than this view can work through (a flood), or with a stamp that is no time
    unflagged : shown without flags, because their companion did not come
    invalid : that were no estimates: INVALID, NaN or infinite
    connected : how often an engine was taken up
    """

    received: int = 0
    lost: int = 0
    holes: int = 0
    discarded: int = 0
    unflagged: int = 0
    invalid: int = 0
    connected: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(own + its for own, its in zip(astuple(self), astuple(other), strict=True)))


class Sightings:
    """Whether a stream that is silent has gone: one look at the network can miss an answer, two in a row hardly do."""

    def __init__(self) -> None:
        self._judged = -math.inf
        self._missed = 0

    def is_gone(self, at: float, seen: bool) -> bool:
        """Take the result of the look that began at `at`; the same look counts once."""
        if at > self._judged:
            self._judged = at
            self._missed = 0 if seen else self._missed + 1
        return self._missed >= 2

    def heard(self) -> None:
        """It is not silent."""
        self._missed = 0


class Latencies:
    """Of the newest hops, seconds: how late after its intended time, in the software alone, and since the sensor."""

    def __init__(self) -> None:
        self._rolling = Rolling(len(LATENCY_COLUMNS), LATENCY_HOPS, np.float64)
        self._last_hop = -1.0

    def add(self, rows: Float64, times: Float64) -> None:
        """Companion rows (`COMPANION_COLUMNS`); the first of each hop counts."""
        if len(rows) == 0:
            return
        hops = rows[:, 0]
        new = np.diff(hops, prepend=self._last_hop) != 0
        self._last_hop = float(hops[-1])
        column = {name: rows[new, COMPANION_COLUMNS.index(name)] for name in StageStamps.NAMES}
        published = column["published"]
        kept = [published - column[name] for name in ("intended", "received", "sensor")]
        self._rolling.add(np.column_stack([hops[new], *kept]), times[new])

    def recent(self, seconds: float = 60.0) -> dict[str, Float64]:
        """``lateness``, ``software`` and ``age`` of the hops of the last seconds, each ``(n_hops,)`` in seconds, finite."""
        times, rows = self._rolling.newest()
        if len(times) == 0:
            return {name: np.zeros(0) for name in LATENCY_COLUMNS[1:]}
        with np.errstate(invalid="ignore"):
            rows = rows[(times > times[-1] - seconds) & np.isfinite(rows).all(axis=1)]
        return {name: rows[:, i].astype(np.float64, copy=False) for i, name in enumerate(LATENCY_COLUMNS) if i}

    def missed(self, budget_ms: float, seconds: float = 60.0) -> tuple[int, int]:
        """Hops of the last seconds that were published later than the budget after their intended time, and all of them."""
        lateness = self.recent(seconds)["lateness"]
        return int(np.count_nonzero(lateness > budget_ms * 1e-3)), len(lateness)


@dataclass(frozen=True)
class Paired:
    """Estimates with what is known of them. data : (n_times, n_sources); `known`: whether the flags came."""

    data: Float32
    times: Float64
    flags: NDArray[np.uint32]
    known: NDArray[np.bool_]


class Pairing:
    """Joins estimates and companions by their stamps; both come in order, neither comes first.

    An estimate waits for its companion until a later companion has come (then its own is lost) or `patience_s` has passed.
    A companion whose estimate did not come, though a later one did, tells of a lost estimate.

    Parameters
    ----------
    sfreq : float
        Hz; stamps within a quarter of a sample are the same.
    n_sources : int
    patience_s : float

    Attributes
    ----------
    expected : whether there is a companion at all; without one nothing waits
    lost : estimates that never came
    unflagged : estimates whose companion did not come
    """

    def __init__(self, sfreq: float, n_sources: int, patience_s: float = PATIENCE_S) -> None:
        self._tolerance = 0.25 / sfreq
        self.expected = True
        self._patience_s = patience_s
        self._waiting: deque[tuple[Float32, Float64, float]] = deque()
        self._n_waiting = 0
        self._max_waiting = max(64, MAX_WAITING_BYTES // (4 * n_sources))
        self._max_rows = math.ceil(min(20 * sfreq, 65536))
        self._rows = np.zeros((0, len(COMPANION_COLUMNS)))
        self._times = np.zeros(0)
        self._begun = math.nan
        self._told_from = -math.inf  # stamp of the first companion
        self._insisting = False
        self.lost = 0
        self.unflagged = 0

    @property
    def n_waiting(self) -> int:
        """Estimates without companion yet."""
        return self._n_waiting

    def insist(self) -> None:
        """Let nothing pass without its companion until the next companion comes."""
        self._insisting = True

    def companions(self, rows: Float64, times: Float64) -> None:
        """Take rows of `COMPANION_COLUMNS` with their stamps."""
        self._insisting = self._insisting and len(times) == 0
        if len(times) and not math.isfinite(self._told_from):
            self._told_from = float(times[0]) - self._tolerance
            waiting, self._n_waiting = list(self._waiting), 0
            self._waiting.clear()
            for chunk in waiting:
                self._keep(*chunk)
        self._rows = np.concatenate([self._rows, rows])[-self._max_rows :]
        self._times = np.concatenate([self._times, times])[-self._max_rows :]

    def estimates(self, data: Float32, times: Float64, now: float) -> None:
        """Take ``(n_times, n_sources)`` estimates with their stamps, received at `now`."""
        if math.isnan(self._begun):
            self._keep(data, times, now)
        elif len(times):
            self._waiting.append((data, times, now))
            self._n_waiting += len(times)

    def _keep(self, data: Float32, times: Float64, now: float) -> None:
        """All but what came before the first companion: one stream was subscribed to a moment earlier than the other."""
        known = times >= self._told_from
        if known.any():
            self._waiting.append((data[known], times[known], now))
            self._n_waiting += int(np.count_nonzero(known))

    def take(self, now: float) -> list[Paired]:
        """What need not wait any longer, oldest first."""
        taken = []
        newest = float(self._times[-1]) if len(self._times) else -math.inf
        while self._waiting:
            data, times, received = self._waiting[0]
            at = np.searchsorted(self._times, times - self._tolerance)
            near = self._times[np.minimum(at, len(self._times) - 1)] if len(self._times) else np.full(len(times), np.nan)
            with np.errstate(invalid="ignore"):
                known = np.abs(near - times) <= self._tolerance
            late = now - received > self._patience_s and not self._insisting
            over = not self.expected or late or self._n_waiting > self._max_waiting
            ready = known | over | (times < newest - self._tolerance)
            n = len(times) if ready.all() else int(np.argmin(ready))
            if n == 0:
                break
            if math.isnan(self._begun):
                self._begun = float(times[0])
            flags = np.zeros(n, dtype=np.uint32)
            told = at[:n][known[:n]]
            flags[known[:n]] = _as_flags(self._rows[told, 2])
            taken.append(Paired(data[:n], times[:n], flags, known[:n]))
            self.unflagged += n - int(known[:n].sum())
            self._n_waiting -= n
            self._forget(float(times[n - 1]), len(told))
            if n < len(times):
                self._waiting[0] = data[n:], times[n:], received
                break
            self._waiting.popleft()
        return taken

    def _forget(self, time: float, n_matched: int) -> None:
        """Companions up to a stamp have served."""
        past = self._times <= time + self._tolerance
        begun = past & (self._times >= self._begun - self._tolerance)
        self.lost += max(0, int(begun.sum()) - n_matched)
        self._begun = max(self._begun, time)
        self._rows, self._times = self._rows[~past], self._times[~past]


def _as_flags(column: Float64) -> NDArray[np.uint32]:
    sane = np.isfinite(column) & (column >= 0) & (column < 2**32)
    return np.where(sane, column, float(Flag.INVALID)).astype(np.uint32)


class EstimateLink:
    """One stream of estimates and its companion, received; subscribed to the estimates once built.

    Subscribing to the companion takes half a second on a network and can be done meanwhile in another thread
    (`look_for_companion`); until then nothing is pulled, so that no estimate is shown of which nobody knows what is wrong.

    Parameters
    ----------
    transport : Transport
    stream : header of the stream of estimates, as `Transport.resolve` found it

    Raises
    ------
    StreamError
        It is gone, or its description cannot be used.
    """

    def __init__(self, transport: Transport, stream: StreamDescription) -> None:
        self._clock = transport.clock
        self._transport = transport
        self._inlet: Inlet = transport.inlet(stream, buffer_s=BUFFER_S, from_now=False)
        self._companion: Inlet | None = None
        try:
            self.engine = read_engine(self._inlet.description)
        except BaseException:
            self.close()
            raise
        self.latencies = Latencies()
        self._pairing = Pairing(self.engine.sfreq, self.engine.n_sources)
        self._newest: tuple[float, Flag | None] = (math.nan, None)
        self._heard = self._pulled = self._clock.now()
        self._counts = Counts()
        self._flooded = 0  # received with a good stamp, and discarded
        self._last_index = self._last_hop = -math.inf
        self._origin = math.nan
        self._ready = self._closed = False

    def look_for_companion(self, found: Sequence[StreamDescription]) -> None:
        """Subscribe to the companion, where that was not done yet and exactly one is there now; from any thread.

        Parameters
        ----------
        found : everything on the network

        Raises
        ------
        StreamError
            It is there, and cannot be subscribed to.
        """
        if self._companion is not None:
            return
        name, host = self.engine.names["companion"], self.engine.host
        named = [header for header in found if (header.name, header.hostname) == (name, host)]
        if len(named) == 1 and named[0].dtype == "float64" and named[0].n_channels == len(COMPANION_COLUMNS):
            companion = self._transport.inlet(named[0], buffer_s=COMPANION_BUFFER_S, from_now=False)
            if self._closed:
                companion.close()
            else:
                self._companion = companion
        self._pairing.expected = self._companion is not None
        self._ready = True

    @property
    def has_companion(self) -> bool:
        return self._companion is not None

    @property
    def counts(self) -> Counts:
        # the companions of what was discarded find no estimate either; they may not have come yet
        lost = max(0, self._pairing.lost - self._flooded)
        return replace(self._counts, lost=lost, unflagged=self._pairing.unflagged)

    @property
    def newest(self) -> tuple[float, Flag | None]:
        """Stamp and flags of the newest estimate; NaN before the first, None where no companion told flags."""
        return self._newest

    @property
    def silent_s(self) -> float:
        """Seconds since estimates came, or since this object was made."""
        return self._clock.now() - self._heard

    def step(self, history: History) -> bool:
        """Pull once and add what is complete to the history; whether anything came.

        Raises
        ------
        StreamError
            The outlet is gone for good.
        Restarted
            Another engine speaks; nothing of it has gone into the history.
        """
        if not self._ready and self.silent_s < COMPANION_LIMIT_S:
            return False
        raw, times = self._inlet.pull(PULL_S)
        data = self._bounded(raw, times)
        now = self._clock.now()
        if len(times) and now - self._heard > SILENCE_S and self._companion is not None:
            self._pairing.insist()  # another engine may speak through these streams now: the companion tells
        self._pairing.estimates(*data, now)
        self._hear_companion(0.0)
        taken = self._pairing.take(now)
        if self._companion is not None and self._pairing.n_waiting:
            self._hear_companion(COMPANION_WAIT_S)
            taken += self._pairing.take(now)
        invalid_before = history.n_invalid
        for paired in taken:
            history.add(paired.data.T, paired.times, paired.flags)
            flags = Flag(int(paired.flags[-1])) if paired.known[-1] else None
            self._newest = float(paired.times[-1]), flags
        self._counts = replace(
            self._counts,
            received=self._counts.received + len(times),
            invalid=self._counts.invalid + history.n_invalid - invalid_before,
        )
        if len(times):
            self._heard = now
        return bool(len(times))

    def _bounded(self, raw: NDArray[np.generic], times: Float64) -> tuple[Float32, Float64]:
        """Samples with a time, and no more of them than twice the declared rate: of a flood the newest."""
        now = self._clock.now()
        allowed = math.ceil(self.engine.sfreq * (2 * (now - self._pulled) + 0.5))
        self._pulled = now
        data: Float32 = raw.astype(np.float32, copy=False)
        with np.errstate(invalid="ignore"):
            sane = np.isfinite(times) & (np.abs(times) < 1e12)
        if not sane.all():
            data, times_ = data[sane], times[sane]
        else:
            times_ = times
        flooded = max(0, len(times_) - allowed)
        if self._companion is not None:
            self._flooded += flooded
        discarded = len(times) - len(times_) + flooded
        self._counts = replace(self._counts, discarded=self._counts.discarded + discarded)
        return data[-allowed:], times_[-allowed:]

    def _hear_companion(self, timeout_s: float) -> None:
        if self._companion is None:
            return
        raw, times = self._companion.pull(timeout_s)
        rows = raw.astype(np.float64, copy=False)
        with np.errstate(invalid="ignore"):
            sane = np.isfinite(times) & np.isfinite(rows[:, 0]) & np.isfinite(rows[:, 1])
        rows, times = rows[sane], times[sane]
        if len(rows) == 0:
            return
        index = rows[:, 1]
        # an engine counts by its grid: where index and time do not go together, another one speaks that has counted on
        origin = times - index / (self.engine.sfreq * self.engine.decimation)
        apart = np.abs(np.diff(origin, prepend=self._origin))
        if (np.diff(rows[:, 0], prepend=self._last_hop) < 0).any() or (apart > ANOTHER_ORIGIN_S).any():
            raise Restarted
        steps = np.diff(index, prepend=self._last_index) / self.engine.decimation
        holes = np.clip(np.rint(steps[np.isfinite(steps)]) - 1, 0, 1e12).sum()
        self._counts = replace(self._counts, holes=self._counts.holes + int(holes))
        self._last_hop, self._last_index, self._origin = float(rows[-1, 0]), float(index[-1]), float(origin[-1])
        self.latencies.add(rows, times)
        self._pairing.companions(rows, times)

    def close(self) -> None:
        """Unsubscribe; a second call does nothing."""
        self._closed = True
        self._inlet.close()
        if self._companion is not None:
            self._companion.close()


class SensorLink:
    """The cleaned sensors of an engine, received into `traces`; subscribed once built.

    Raises
    ------
    StreamError
        It is gone, or its description cannot be used.
    """

    def __init__(self, transport: Transport, stream: StreamDescription) -> None:
        self._inlet = transport.inlet(stream, buffer_s=COMPANION_BUFFER_S, from_now=False)
        try:
            self.sensors = read_sensors(self._inlet.description)
        except BaseException:
            self._inlet.close()
            raise
        self.traces = Traces(self.sensors.names, self.sensors.kinds, self.sensors.sfreq)

    def step(self) -> None:
        """Take what has come; does not wait."""
        raw, times = self._inlet.pull(0.0)
        with np.errstate(invalid="ignore"):
            sane = np.isfinite(times) & (np.abs(times) < 1e12)
        data = raw[sane].astype(np.float32, copy=False)
        if not np.isfinite(data).all():
            data = np.where(np.isfinite(data), data, np.float32(np.nan))
        self.traces.add(data.T, times[sane])

    def close(self) -> None:
        """Unsubscribe; a second call does nothing."""
        self._inlet.close()


@dataclass(frozen=True, eq=False)
class Average:
    """The running average around one kind of event, imaged.

    stream : what it is of
    values : (n_sources, n_times) float32 at `stream.latencies`; NaN while there are no trials
    n_trials, n_rejected : that are in it, and events that could not be used
    stamp : when it was published; `event`: of the newest event in it; seconds on the engine's clock
    update : running number
    """

    stream: AverageStream
    values: Float32
    n_trials: int
    n_rejected: int
    stamp: float
    event: float
    update: int


class AverageLink:
    """One average of an engine, received; `newest` is the last complete update; subscribed once built.

    Raises
    ------
    StreamError
        It is gone, its description cannot be used, or it has no companion, without which nobody knows the number of trials.
    """

    def __init__(
        self,
        transport: Transport,
        stream: StreamDescription,
        companion: StreamDescription,
        engine: EngineDescription,
    ) -> None:
        described = read_average(transport.describe(stream), engine)
        if companion.dtype != "float64" or companion.n_channels != len(averages.COMPANION_COLUMNS):
            raise StreamDescriptionError(
                f"stream {companion.name!r} on {companion.hostname!r}: {companion.n_channels} channels, {companion.dtype}; "
                f"{len(averages.COMPANION_COLUMNS)} of float64 are expected. The average is not shown without it."
            )
        buffer_s = max(10.0, UPDATES_BUFFERED * described.n_times / IRREGULAR_HZ)
        self._stream = described
        self._inlet = transport.inlet(stream, buffer_s=buffer_s, from_now=False)
        try:
            self._companion = transport.inlet(companion, buffer_s=buffer_s, from_now=False)
        except BaseException:
            self._inlet.close()
            raise
        self._data = _Update(described.n_times)
        self._facts = _Update(described.n_times)
        self.newest: Average | None = None

    @property
    def event(self) -> str:
        """Name of the average."""
        return self._stream.event

    def step(self) -> None:
        """Take what has come; does not wait."""
        self._data.add(*self._inlet.pull(0.0))
        self._facts.add(*self._companion.pull(0.0))
        data, facts = self._data.complete, self._facts.complete
        if data is None or facts is None or data[0] != facts[0]:
            return
        if self.newest is not None and self.newest.stamp == data[0]:
            return
        row = facts[1][0].astype(np.float64)
        column = {name: row[i] for i, name in enumerate(averages.COMPANION_COLUMNS)}
        n_trials, n_rejected, update = (_whole(column[name]) for name in ("n_trials", "n_rejected", "update"))
        values = np.ascontiguousarray(data[1].T, dtype=np.float32)
        if n_trials == 0 or not np.isfinite(values).all():  # one of NaN is none, whatever the companion says
            values = np.full_like(values, np.nan)
        self.newest = Average(self._stream, values, n_trials, n_rejected, data[0], float(column["event"]), update)

    def close(self) -> None:
        """Unsubscribe; a second call does nothing."""
        self._inlet.close()
        self._companion.close()


class _Update:
    """Gathers the samples of one stamp until they are all there; `complete` is the last that was."""

    def __init__(self, n_times: int) -> None:
        self._n_times = n_times
        self._stamp = math.nan
        self._rows: list[NDArray[np.generic]] = []
        self.complete: tuple[float, NDArray[np.generic]] | None = None

    def add(self, data: NDArray[np.generic], stamps: Float64) -> None:
        edges = np.flatnonzero(np.diff(stamps, prepend=math.nan) != 0)
        for start, stop in pairwise([*edges.tolist(), len(stamps)]):
            if stamps[start] != self._stamp:
                self._stamp, self._rows = float(stamps[start]), []
            self._rows.extend(data[start:stop][: self._n_times - len(self._rows)])
            if len(self._rows) == self._n_times:
                self.complete = self._stamp, np.stack(self._rows)


def _whole(value: float) -> int:
    return int(value) if math.isfinite(value) and 0 <= value < 1e15 else 0
