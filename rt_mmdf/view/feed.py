"""From the engine's streams to what a window can show, in threads of their own; the window asks and never waits.

look ------> what is on the network (asks only while something is missing)
estimates -> estimate + companion, paired by stamp -> history, latencies
second ----> the same of a second solver, where the engine publishes one
aside -----> health, sensors, averages, clock of the engine

An engine that stops is waited for; one that comes back is taken up again, with whatever head and sources it has then.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Flag, Float32, Float64, StageStamps
from rt_mmdf.core.errors import RtMmdfError, StreamError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.lsl.interface import ClockOffset, Inlet, OffsetProbe, StreamDescription, Transport
from rt_mmdf.runtime.mailbox import NewestValue
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS
from rt_mmdf.view.heads import find_head
from rt_mmdf.view.history import History, Rolling
from rt_mmdf.view.reports import HealthReport, read_report
from rt_mmdf.view.streams import (
    EngineDescription,
    choose_engine,
    engines_among,
    read_engine,
)

logger = logging.getLogger(__name__)

PULL_S = 0.1  # longest wait for a first sample
CHUNK_S = 0.02  # between two pulls: 20 estimates at once cost a tenth of 20 times one
PATIENCE_S = 0.25  # an estimate waits so long for its companion
BUFFER_S = 2.0  # of the transport: what a view is late by at most before samples are lost
SILENT_S = 1.0  # after so long without an estimate the engine counts as silent, and the network is asked for it
LOOK_S = 0.7  # one round of asking the network
LOOK_AGAIN_S = 5.0  # for streams that are not there, while the engine runs
RETRY_S = 5.0  # after an engine that could not be taken up
MEASURE_S = 0.02
CLOCK_S = 5.0  # between two measurements of the engine's clock
MAX_WAITING_BYTES = 32_000_000
LATENCY_HOPS = 8192
LATENCY_COLUMNS = ("hop", "lateness", "software", "age")

FindHead = Callable[[EngineDescription, Path | None], HeadModel]


class Status(StrEnum):
    """How it stands between this view and the engine."""

    WAITING = "waiting"  # no engine of that name on the network (yet, or any more)
    OPENING = "opening"  # found; its head is looked for
    LIVE = "live"
    SILENT = "silent"  # its streams are there, but bring nothing
    PROBLEM = "problem"  # it cannot be shown: see `FeedState.problem`


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
class Second:
    """A second stream of estimates of the same engine."""

    engine: EngineDescription
    history: History
    counts: Counts


@dataclass(frozen=True)
class FeedState:
    """What is known now; a snapshot that does not change, but `history`, `latencies` and `traces` go on filling.

    status, problem : how it stands, and in plain words what is wrong, empty where nothing is
    engine, head, history : None before an engine was taken up; kept after it has gone, so that the last minute can be seen
    generation : grows whenever head or history are others than before: what was made of them must be made again
    newest_stamp : of the newest estimate, seconds on the engine's clock; NaN before the first
    age_s : of the newest estimate now, by this machine's clock: grows while nothing comes; NaN while it cannot be known
    offset : of the engine's clock against this one; None while it has not been measured
    flags : of the newest estimate; None while it is not known what is wrong with it (no companion)
    budget_ms : deadline; NaN while nobody has told it
    """

    status: Status
    problem: str
    engine: EngineDescription | None
    head: HeadModel | None
    history: History | None
    generation: int
    newest_stamp: float
    age_s: float
    silent_s: float
    offset: ClockOffset | None
    flags: Flag | None
    has_companion: bool
    latencies: Latencies
    budget_ms: float
    health: HealthReport | None
    health_age_s: float
    second: Second | None
    counts: Counts


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
    expected : bool
        Whether there is a companion at all.
    """

    def __init__(self, sfreq: float, n_sources: int, expected: bool = True, patience_s: float = PATIENCE_S) -> None:
        self._tolerance = 0.25 / sfreq
        self._expected = expected
        self._patience_s = patience_s
        self._waiting: deque[tuple[Float32, Float64, float]] = deque()
        self._n_waiting = 0
        self._max_waiting = max(64, MAX_WAITING_BYTES // (4 * n_sources))
        self._max_rows = math.ceil(min(20 * sfreq, 65536))
        self._rows = np.zeros((0, len(COMPANION_COLUMNS)))
        self._times = np.zeros(0)
        self._begun = math.nan
        self.lost = 0
        self.unflagged = 0

    @property
    def n_waiting(self) -> int:
        """Estimates without companion yet."""
        return self._n_waiting

    def companions(self, rows: Float64, times: Float64) -> None:
        """Take rows of `COMPANION_COLUMNS` with their stamps."""
        self._rows = np.concatenate([self._rows, rows])[-self._max_rows :]
        self._times = np.concatenate([self._times, times])[-self._max_rows :]

    def estimates(self, data: Float32, times: Float64, now: float) -> None:
        """Take ``(n_times, n_sources)`` estimates with their stamps, received at `now`."""
        if len(times):
            if math.isnan(self._begun):
                self._begun = float(times[0])
            self._waiting.append((data, times, now))
            self._n_waiting += len(times)

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
            over = not self._expected or now - received > self._patience_s or self._n_waiting > self._max_waiting
            ready = known | over | (times < newest - self._tolerance)
            n = len(times) if ready.all() else int(np.argmin(ready))
            if n == 0:
                break
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


class _Restarted(Exception):
    """The numbering began anew: another engine speaks through the same streams."""


class EstimateLink:
    """One stream of estimates and its companion, received; subscribed once built.

    Parameters
    ----------
    transport : Transport
    stream : header of the stream of estimates, as `Transport.resolve` found it
    found : everything on the network, to find the companion in

    Raises
    ------
    StreamError
        It is gone, or its description cannot be used.
    """

    def __init__(self, transport: Transport, stream: StreamDescription, found: list[StreamDescription]) -> None:
        self._clock = transport.clock
        self._inlet: Inlet = transport.inlet(stream, buffer_s=BUFFER_S)
        self._companion: Inlet | None = None
        try:
            self.engine = read_engine(self._inlet.description)
            name = self.engine.names["companion"]
            header = next((s for s in found if s.name == name and s.hostname == stream.hostname), None)
            if header is not None and header.dtype == "float64" and header.n_channels == len(COMPANION_COLUMNS):
                self._companion = transport.inlet(header, buffer_s=10 * BUFFER_S)
        except BaseException:
            self.close()
            raise
        self.latencies = Latencies()
        self._pairing = Pairing(self.engine.sfreq, self.engine.n_sources, self._companion is not None)
        self._newest: tuple[float, Flag | None] = (math.nan, None)
        self._heard = self._pulled = self._clock.now()
        self._counts = Counts()
        self._last_index = self._last_hop = -math.inf

    @property
    def has_companion(self) -> bool:
        return self._companion is not None

    @property
    def counts(self) -> Counts:
        return replace(self._counts, lost=self._pairing.lost, unflagged=self._pairing.unflagged)

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
        """
        raw, times = self._inlet.pull(PULL_S)
        data = self._bounded(raw, times)
        now = self._clock.now()
        self._pairing.estimates(*data, now)
        self._hear_companion(0.0)
        taken = self._pairing.take(now)
        if self._companion is not None and self._pairing.n_waiting:
            self._hear_companion(0.01)
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
        discarded = len(times) - len(times_) + max(0, len(times_) - allowed)
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
        if (np.diff(rows[:, 0], prepend=self._last_hop) < 0).any():
            raise _Restarted
        index = rows[:, 1]
        steps = np.diff(index, prepend=self._last_index) / self.engine.decimation
        holes = np.clip(np.rint(steps[np.isfinite(steps)]) - 1, 0, 1e12).sum()
        self._counts = replace(self._counts, holes=self._counts.holes + int(holes))
        self._last_hop, self._last_index = float(rows[-1, 0]), float(index[-1])
        self.latencies.add(rows, times)
        self._pairing.companions(rows, times)

    def close(self) -> None:
        """Unsubscribe; a second call does nothing."""
        self._inlet.close()
        if self._companion is not None:
            self._companion.close()


@dataclass(frozen=True)
class _Shown:
    """What the window draws on; replaced as a whole."""

    link: EstimateLink
    head: HeadModel
    history: History
    generation: int


@dataclass(frozen=True)
class _Round:
    """What one look at the network found, and when it began."""

    at: float
    found: list[StreamDescription] = field(default_factory=list)


class Feed:
    """All that a window needs of an engine. Ready once built, running between `start` and `close`.

    Parameters
    ----------
    transport : Transport
    name : str | None
        Of the engine; None: the only one there is.
    host : str | None
        Machine it runs on; needed only where two engines have the same name.
    head : Path | None
        Folder of its head model, where it is not to be searched for.
    seconds, frame_rate : float
        Of the history.
    find : callable
        Finds the head; another one for tests.
    """

    def __init__(
        self,
        transport: Transport,
        name: str | None = None,
        *,
        host: str | None = None,
        head: Path | None = None,
        seconds: float = 60.0,
        frame_rate: float = 25.0,
        find: FindHead = find_head,
    ) -> None:
        self._transport = transport
        self._clock = transport.clock
        self._name, self._host = name, host
        self._folder, self._find = head, find
        self._seconds, self._frame_rate = seconds, frame_rate
        self._status: NewestValue[tuple[Status, str]] = NewestValue()
        self._status.put((Status.WAITING, ""))
        self._round: NewestValue[_Round] = NewestValue()
        self._shown: NewestValue[_Shown] = NewestValue()
        self._second: NewestValue[tuple[EstimateLink, History]] = NewestValue()
        self._link: EstimateLink | None = None
        self._second_link: EstimateLink | None = None
        self._past = Counts()
        self._refused: tuple[str, float] | None = None
        self._health: NewestValue[tuple[HealthReport, float]] = NewestValue()
        self._offset: NewestValue[ClockOffset] = NewestValue()
        self._health_inlet: Inlet | None = None
        self._probe: OffsetProbe | None = None
        self._probed = -math.inf
        self._aside_uid = ""
        self._workers: list[Worker] = []

    # running

    def start(self) -> Feed:
        """Start to look, to listen and to fill the history."""
        rounds = (("look", self.look, 0.1), ("estimates", self.receive, CHUNK_S), ("second", self.receive_second, CHUNK_S))
        for label, step, pause_s in (*rounds, ("aside", self.attend, 2 * CHUNK_S)):
            self._workers.append(_worker(f"view {label}", step, pause_s))
        for worker in self._workers:
            worker.start()
        return self

    def check(self) -> None:
        """Raise `WorkerFailed` from the error that ended a worker, if one did: a fault of this program."""
        for worker in self._workers:
            worker.check()

    def close(self) -> None:
        """Stop all threads and unsubscribe; the engine goes on. A second call does nothing."""
        failure: RtMmdfError | None = None
        for worker in self._workers:
            try:
                worker.stop()
            except RtMmdfError as error:
                failure = failure or error
        self._workers.clear()
        self._leave()
        self._leave_second()
        self._leave_aside()
        if failure is not None:
            raise failure

    def __enter__(self) -> Feed:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except RtMmdfError:
            if error is None:  # an error that is under way already is the more telling one
                raise

    def state(self) -> FeedState:
        """What is known now; takes microseconds, from any thread."""
        status, problem = self._status.get() or (Status.WAITING, "")
        shown, offset, health = self._shown.get(), self._offset.get(), self._health.get()
        second = self._second.get()
        now = self._clock.now()
        stamp, flags = shown.link.newest if shown else (math.nan, None)
        engine = shown.link.engine if shown else None
        report, heard = health or (None, math.nan)
        told = report.budget_ms if report is not None else math.nan
        budget_ms = told if engine is None or math.isnan(engine.budget_ms) else engine.budget_ms
        return FeedState(
            status=status,
            problem=problem,
            engine=engine,
            head=shown.head if shown else None,
            history=shown.history if shown else None,
            generation=shown.generation if shown else 0,
            newest_stamp=stamp,
            age_s=math.nan if offset is None else now - (stamp + offset.offset),
            silent_s=shown.link.silent_s if shown else math.nan,
            offset=offset,
            flags=flags,
            has_companion=shown is not None and shown.link.has_companion,
            latencies=shown.link.latencies if shown else Latencies(),
            budget_ms=budget_ms,
            health=report,
            health_age_s=now - heard,
            second=None if second is None else Second(second[0].engine, second[1], second[0].counts),
            counts=self._past if shown is None or self._link is None else _sum(self._past, shown.link.counts),
        )

    # the workers' rounds

    def look(self) -> None:
        """Ask the network what there is, where somebody wants to know."""
        now, before = self._clock.now(), self._round.get()
        link = self._link
        if before is not None and link is not None and link.silent_s < SILENT_S and now - before.at < LOOK_AGAIN_S:
            return
        self._round.put(_Round(now, self._transport.resolve(timeout_s=LOOK_S)))

    def receive(self) -> None:
        """Take up an engine, or pull its estimates once."""
        link, shown = self._link, self._shown.get()
        if link is None or shown is None:
            self._take_up()
            return
        try:
            came = link.step(shown.history)
        except (StreamError, _Restarted):
            self._leave()
            self._status.put((Status.WAITING, ""))
            return
        if came:
            self._status.put((Status.LIVE, ""))
        elif link.silent_s > SILENT_S:
            self._judge_silence(link)

    def _judge_silence(self, link: EstimateLink) -> None:
        looked = self._round.get()
        silent_since = self._clock.now() - link.silent_s
        if looked is None or looked.at <= silent_since:
            return
        if any(stream.uid == link.engine.uid for stream in looked.found):
            self._status.put((Status.SILENT, f"engine {link.engine.name!r} is there, but sends no estimates"))
        else:
            self._leave()
            self._status.put((Status.WAITING, ""))

    def _take_up(self) -> None:
        looked = self._round.get()
        if looked is None:
            return
        found = engines_among(looked.found, self._name, self._host)
        shown = self._shown.get()
        if self._name is None and shown is not None:  # the one that was shown before, if it is there
            own = [s for s in found if (s.name, s.hostname) == (shown.link.engine.stream.name, shown.link.engine.host)]
            found = own or found
        if not found:
            self._status.put((Status.WAITING, ""))
            return
        try:
            chosen = choose_engine(found, self._name, self._host)
            if self._refused is not None:
                uid, until = self._refused
                if uid == chosen.uid and self._clock.now() < until:
                    return
            self._open(chosen, looked.found)
        except StreamError as error:
            self._refuse(found[0].uid, error)
        except RtMmdfError as error:
            self._refuse(found[0].uid, error)

    def _refuse(self, uid: str, error: RtMmdfError) -> None:
        self._refused = uid, self._clock.now() + RETRY_S
        self._status.put((Status.PROBLEM, str(error)))

    def _open(self, stream: StreamDescription, found: list[StreamDescription]) -> None:
        if self._status.get() is None or (self._status.get() or (None,))[0] is not Status.PROBLEM:
            self._status.put((Status.OPENING, ""))
        link = EstimateLink(self._transport, stream, found)
        try:
            before = self._shown.get()
            if before is not None and before.link.engine.same_sources(link.engine):
                head = before.head
            else:
                head = self._find(link.engine, self._folder)
            history = self._history(before, link)
        except BaseException:
            link.close()
            raise
        generation = 1 if before is None else before.generation + (history is not before.history)
        self._past = replace(self._past, connected=self._past.connected + 1)
        self._shown.put(_Shown(link, head, history, generation))
        self._link = link
        self._refused = None

    def _history(self, before: _Shown | None, link: EstimateLink) -> History:
        engine = link.engine
        if before is not None and before.link.engine.same_sources(engine) and before.history.sfreq == engine.sfreq:
            return before.history
        return History(engine.n_sources, engine.sfreq, self._seconds, self._frame_rate)

    def _leave(self) -> None:
        if self._link is not None:
            self._past = _sum(self._past, self._link.counts)
            self._link.close()
            self._link = None

    def receive_second(self) -> None:
        """Take up the second solver's stream, or pull it once."""
        main, link, looked = self._link, self._second_link, self._round.get()
        if main is None or looked is None:
            self._leave_second()
            return
        if link is None:
            header = self._of_engine("second", main.engine, looked.found)
            if header is None:
                return
            try:
                link = EstimateLink(self._transport, header, looked.found)
            except StreamError as error:
                logger.warning("the second solver cannot be shown: %s", error)
                return
            if link.engine.fingerprint != main.engine.fingerprint:
                link.close()
                return
            self._second_link = link
            history = History(link.engine.n_sources, link.engine.sfreq, self._seconds, self._frame_rate)
            self._second.put((link, history))
        second = self._second.get()
        try:
            if second is not None:
                link.step(second[1])
        except (StreamError, _Restarted):
            self._leave_second()

    def _leave_second(self) -> None:
        if self._second_link is not None:
            self._second_link.close()
            self._second_link = None

    def attend(self) -> None:
        """Health, and the engine's clock: everything that comes slowly."""
        main, looked = self._link, self._round.get()
        if main is None or looked is None:
            self._leave_aside()
            return
        if self._aside_uid != main.engine.uid:
            self._leave_aside()
            self._aside_uid = main.engine.uid
        try:
            self._hear_health(main.engine, looked.found)
            self._measure_clock(main.engine)
        except StreamError:
            self._leave_aside()

    def _hear_health(self, engine: EngineDescription, found: list[StreamDescription]) -> None:
        if self._health_inlet is None:
            header = self._of_engine("health", engine, found)
            if header is None or header.dtype != "string" or header.n_channels != 1:
                return
            self._health_inlet = self._transport.inlet(header, buffer_s=1.0)
        texts, _ = self._health_inlet.pull(0.0)
        for row in texts[-1:]:
            if (report := read_report(str(row[0]))) is not None:
                self._health.put((report, self._clock.now()))

    def _measure_clock(self, engine: EngineDescription) -> None:
        if self._probe is None:
            self._probe = self._transport.offset_probe(engine.stream)
            self._probed = -math.inf
        now = self._clock.now()
        if now - self._probed < CLOCK_S:
            return
        if (measured := self._probe.measure(MEASURE_S)) is not None:
            self._offset.put(measured)
            self._probed = now

    def _leave_aside(self) -> None:
        if self._health_inlet is not None:
            self._health_inlet.close()
        if self._probe is not None:
            self._probe.close()
        self._health_inlet = self._probe = None
        self._aside_uid = ""

    def _of_engine(self, key: str, engine: EngineDescription, found: list[StreamDescription]) -> StreamDescription | None:
        name = engine.names[key]
        return next((s for s in found if s.name == name and s.hostname == engine.host), None)


def _sum(a: Counts, b: Counts) -> Counts:
    return Counts(**{name: getattr(a, name) + getattr(b, name) for name in Counts.__dataclass_fields__})


def _worker(name: str, step: Callable[[], None], pause_s: float) -> Worker:
    def once() -> None:
        step()
        worker.pause(pause_s)

    worker = Worker(name, once, stop_timeout_s=30.0)  # opening a stream may take 10 s, a head some seconds
    return worker
