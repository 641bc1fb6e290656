"""From the engine's streams to what a window can show, in threads of their own; the window asks and never waits.

look ------> what is on the network (asks only while something is missing)
estimates -> estimate and companion, paired by stamp -> history, latencies
second ----> the same of a second solver, where the engine publishes one
aside -----> health, sensors, averages, the engine's clock; out: operator marks

An engine that stops is waited for; one that comes back is taken up again, with whatever head and sources it has then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from rt_mmdf.core.blocks import Flag
from rt_mmdf.core.errors import RtMmdfError, StreamError, StreamNotFound
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.lsl.description import clean_label
from rt_mmdf.lsl.interface import ClockOffset, Inlet, OffsetProbe, StreamDescription, Transport
from rt_mmdf.runtime.mailbox import Mailbox, NewestValue, Signal
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.marks import MAX_TEXT, Command, MarksOutlet
from rt_mmdf.view.heads import find_head
from rt_mmdf.view.history import History, Traces
from rt_mmdf.view.links import Average, AverageLink, Counts, EstimateLink, Latencies, Restarted, SensorLink, Sightings
from rt_mmdf.view.reports import HealthReport, read_report
from rt_mmdf.view.streams import EngineDescription, SensorStream, choose_engine, engines_among, listing

logger = logging.getLogger(__name__)

CHUNK_S = 0.02  # between two pulls: 20 estimates at once cost a fraction of 20 times one
ASIDE_S = 0.04
SILENT_S = 1.0  # after so long without an estimate the engine counts as silent, and the network is asked for it
LOOK_S = 0.7  # one round of asking the network: multicast at once, known peers after 0.5 s
FIRST_LOOK_S = 0.25  # where the name is known, and no second engine need be waited for
LOOK_AGAIN_S = 5.0  # for streams that are not there, while the engine runs
RETRY_S, MAX_RETRY_S = 5.0, 30.0  # after an engine that could not be taken up; twice as long each time
MEASURE_S = 0.02  # a probe works in a thread of its own inside liblsl and is asked again later
CLOCK_S = 5.0  # between two measurements of the engine's clock
MAX_MARKS = 256
STOP_S = 30.0  # opening a stream may take 10 s, a head some seconds

FindHead = Callable[[EngineDescription, Path | None], HeadModel]


class Status(StrEnum):
    """How it stands between this view and the engine."""

    WAITING = "waiting"  # no engine of that name on the network (yet, or any more)
    OPENING = "opening"  # found; its head is looked for
    LIVE = "live"
    SILENT = "silent"  # its streams are there, but bring nothing
    PROBLEM = "problem"  # it cannot be shown: see `FeedState.problem`


@dataclass(frozen=True)
class Second:
    """A second stream of estimates of the same engine; `newest_stamp` and `flags` as in `FeedState`."""

    engine: EngineDescription
    history: History
    newest_stamp: float
    flags: Flag | None
    latencies: Latencies
    counts: Counts


@dataclass(frozen=True)
class ShownMark:
    """An operator mark. time : what is marked, seconds on the engine's clock, on which the history is."""

    time: float
    text: str


@dataclass(frozen=True)
class FeedState:
    """What is known now; a snapshot that does not change, but `history`, `latencies` and `traces` go on filling.

    status : how it stands
    problem : what is wrong, in plain words and with what to do; empty where nothing is
    note : what is waited for or being done, in plain words; empty once the engine is shown
    engine, head, history : None before an engine was taken up; kept after it has gone, so that the last minute can be seen
    generation : grows whenever head or history are others than before: what was made of them must be made again
    newest_stamp : of the newest estimate, seconds on the engine's clock; NaN before the first
    age_s : of the newest estimate now, by this machine's clock: grows while nothing comes; NaN while it cannot be known
    silent_s : since estimates came last, or since the engine was taken up
    offset : of the engine's clock against this one; None while it has not been measured
    flags : of the newest estimate; None while it is not known what is wrong with it (its companion is not there)
    budget_ms : deadline; NaN while nobody has told it
    health, health_age_s : the engine's last report, and how long ago it came
    sensors, traces : cleaned sensors, where the engine publishes them
    averages : event-locked averages, by event
    marks : operator marks, of this view and of others, ascending
    can_mark : whether the engine listens to marks
    """

    status: Status
    problem: str
    note: str
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
    sensors: SensorStream | None
    traces: Traces | None
    averages: Mapping[str, Average]
    marks: tuple[ShownMark, ...]
    can_mark: bool
    counts: Counts


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
    found: Sequence[StreamDescription]


@dataclass(frozen=True)
class _Refusal:
    """An engine that could not be taken up: not again before `until`, and then not before `again_s` more."""

    uid: str
    until: float
    again_s: float


@dataclass(frozen=True)
class _OwnMark:
    """A mark to be published. stamp : seconds on this machine's clock."""

    stamp: float
    text: str
    command: Command


class Feed:
    """All that a window needs of an engine. Ready once built, running between `start` and `close`.

    Memory: that of the history (`History.nbytes`: 89 MB for 5124 sources at 1 kHz), as much again for a second solver, of
    the traces (`Traces.nbytes`: 22 MB for 366 sensors at 250 Hz), and what the transport holds (2 s of estimates).

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
    found : sequence of StreamDescription | None
        What is on the network, where somebody has just looked.
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
        found: Sequence[StreamDescription] | None = None,
        find: FindHead = find_head,
    ) -> None:
        self._transport = transport
        self._clock = transport.clock
        self._name, self._host = name, host
        self._folder, self._find = head, find
        self._seconds, self._frame_rate = seconds, frame_rate
        self._workers: list[Worker] = []
        # values that cross threads
        self._no_latencies = Latencies()
        self._status: NewestValue[tuple[Status, str, str]] = NewestValue()
        self._round: NewestValue[_Round] = NewestValue()
        self._looked = Signal()
        self._shown: NewestValue[_Shown] = NewestValue()
        self._past: NewestValue[Counts] = NewestValue()
        self._second: NewestValue[tuple[EstimateLink, History] | None] = NewestValue()
        self._health: NewestValue[tuple[HealthReport, float]] = NewestValue()
        self._offset: NewestValue[ClockOffset | None] = NewestValue()
        self._sensors: NewestValue[SensorLink | None] = NewestValue()
        self._averages: NewestValue[dict[str, Average]] = NewestValue()
        self._marks: NewestValue[tuple[ShownMark, ...]] = NewestValue()
        self._to_mark: Mailbox[_OwnMark] = Mailbox(MAX_MARKS)
        # set by the thread of the estimates alone: what is subscribed to, and, once its head was found, what is shown
        self._subscribed: EstimateLink | None = None
        self._link: EstimateLink | None = None
        self._wanting = True  # something that the engine says it publishes is not there yet; set by the thread aside alone
        # of the thread of the estimates
        self._sightings = Sightings()
        self._refused: _Refusal | None = None
        # of the thread of the second solver
        self._second_link: EstimateLink | None = None
        # of the thread aside
        self._uid = ""
        self._health_inlet: Inlet | None = None
        self._sensor_link: SensorLink | None = None
        self._average_links: dict[str, AverageLink] = {}
        self._unusable: set[str] = set()
        self._doubled: set[str] = set()  # names that several streams of the engine's machine have
        self._probe: OffsetProbe | None = None
        self._probed = -math.inf
        self._marks_outlet: MarksOutlet | None = None
        self._own_marks: list[tuple[_OwnMark, ShownMark]] = []
        self._tell(Status.WAITING, note=self._waited_for(()))
        self._past.put(Counts())
        if found is not None:
            self._round.put(_Round(self._clock.now(), found))
            self._looked.ring()

    # running

    def start(self) -> Feed:
        """Start to look, to listen and to fill the history."""
        rounds = (
            ("look", self.look, 0.1),
            ("estimates", self.receive, CHUNK_S),
            ("second", self.receive_second, CHUNK_S),
            ("aside", self.attend, ASIDE_S),
        )
        self._workers = [_worker(f"view {label}", step, pause_s) for label, step, pause_s in rounds]
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
        self._workers = []
        self._leave()
        self._leave_second()
        self._leave_aside()
        if self._marks_outlet is not None:
            self._marks_outlet.close()
            self._marks_outlet = None
        if failure is not None:
            raise failure

    def __enter__(self) -> Feed:
        try:
            return self.start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except RtMmdfError:
            if error is None:  # an error that is under way already is the more telling one
                raise

    # what the window asks

    def state(self) -> FeedState:
        """What is known now; never waits, from any thread."""
        status, problem, note = self._status.get() or (Status.WAITING, "", "")
        shown, offset, health, link = self._shown.get(), self._offset.get(), self._health.get(), self._link
        second, sensors = self._second.get(), self._sensors.get()
        now = self._clock.now()
        stamp, flags = shown.link.newest if shown else (math.nan, None)
        engine = shown.link.engine if shown else None
        report, heard = health or (None, math.nan)
        told = report.budget_ms if report is not None else math.nan
        past = self._past.get() or Counts()
        if status in (Status.LIVE, Status.SILENT) and shown is not None and not shown.link.has_companion:
            without = (
                "its companion stream is not there (or there are several): nobody knows whether a modality is missing, nor "
                "how late it is"
            )
            problem = f"{problem}; {without}" if problem else without
        return FeedState(
            status=status,
            problem=problem,
            note=note,
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
            latencies=shown.link.latencies if shown else self._no_latencies,
            budget_ms=told if engine is None or math.isnan(engine.budget_ms) else engine.budget_ms,
            health=report,
            health_age_s=now - heard,
            second=None if second is None else _second(*second),
            sensors=None if sensors is None else sensors.sensors,
            traces=None if sensors is None else sensors.traces,
            averages=self._averages.get() or {},
            marks=self._marks.get() or (),
            can_mark=engine is not None and "marks" in engine.names and link is not None,
            counts=past if link is None else past + link.counts,
        )

    def require_one(self, timeout_s: float = 5.0) -> None:
        """Wait for the first look at the network; raise StreamAmbiguous, with a list, where several engines fit."""
        self._looked.wait(timeout_s)
        looked = self._round.get()
        if looked is not None and len(found := engines_among(looked.found, self._name, self._host)) > 1:
            choose_engine(found, self._name, self._host)

    def mark(self, text: str, time: float | None = None, command: Command = "") -> bool:
        """Publish an operator mark; whether there is an engine that listens.

        Parameters
        ----------
        text : note, one line; 200 characters are kept
        time : what is marked, seconds on the engine's clock, as the history has it; None: now
        command : ``"reset-average"`` begins all event-locked averages anew
        """
        state, offset = self.state(), self._offset.get()
        if not state.can_mark or (time is not None and offset is None):
            return False
        stamp = self._clock.now() if time is None or offset is None else time + offset.offset
        self._to_mark.put(_OwnMark(stamp, clean_label(text, MAX_TEXT), command))
        return True

    # the rounds of the workers; a test calls them itself

    def look(self) -> None:
        """Ask the network what there is, where somebody wants to know."""
        now, before, link = self._clock.now(), self._round.get(), self._link
        if before is not None and link is not None:
            silent = link.silent_s >= SILENT_S
            if not (silent or self._wanting) or now - before.at < (SILENT_S if silent else LOOK_AGAIN_S):
                return
        seconds = FIRST_LOOK_S if before is None and self._name is not None else LOOK_S
        try:
            found = self._transport.resolve(timeout_s=seconds)
        except StreamError as error:
            logger.warning("view: %s", error)
            return
        self._round.put(_Round(now, found))
        self._looked.ring()

    def receive(self) -> None:
        """Take up an engine, or pull its estimates once."""
        link, shown, looked = self._link, self._shown.get(), self._round.get()
        if looked is None:
            return
        if link is None or shown is None:
            self._take_up(looked)
            return
        try:
            came = link.step(shown.history)
        except (StreamError, Restarted):
            self._leave()
            return
        if came:
            self._sightings.heard()
            self._tell(Status.LIVE)
        elif link.silent_s > SILENT_S:
            self._judge_silence(link, looked)

    def _judge_silence(self, link: EstimateLink, looked: _Round) -> None:
        """Silent or gone? One look can miss an answer, two in a row hardly."""
        if looked.at <= self._clock.now() - link.silent_s:
            return  # it was heard since
        if self._sightings.is_gone(looked.at, any(stream.uid == link.engine.uid for stream in looked.found)):
            self._leave()
        else:
            self._tell(Status.SILENT, f"engine {link.engine.name!r} sends nothing")

    def _take_up(self, looked: _Round) -> None:
        shown = self._shown.get()
        # once one was shown, no other takes its place unasked: another laboratory may be on this network
        name = self._name if self._name is not None or shown is None else shown.link.engine.name
        found = engines_among(looked.found, name, self._host)
        if shown is not None:  # the one that was shown before, if it is there
            before = shown.link.engine
            found = [s for s in found if (s.name, s.hostname) == (before.stream.name, before.host)] or found
        if not found:
            self._tell(Status.WAITING, note=self._waited_for(looked.found))
            return
        try:
            chosen = choose_engine(found, name, self._host)
        except StreamError as error:
            self._tell(Status.PROBLEM, str(error))
            return
        now, refused = self._clock.now(), self._refused
        if refused is not None and refused.uid == chosen.uid and now < refused.until:
            return
        try:
            self._open(chosen)
        except StreamNotFound as error:  # it was there when the network was asked
            logger.info("view: %s", error)
            self._refused = _Refusal(chosen.uid, now + SILENT_S, RETRY_S)
            self._tell(Status.WAITING, note=self._waited_for(()))
        except RtMmdfError as error:
            again_s = RETRY_S if refused is None or refused.uid != chosen.uid else min(2 * refused.again_s, MAX_RETRY_S)
            self._refused = _Refusal(chosen.uid, self._clock.now() + again_s, again_s)
            self._tell(Status.PROBLEM, str(error))

    def _waited_for(self, found: Sequence[StreamDescription]) -> str:
        shown = self._shown.get()
        name = self._name or (shown.link.engine.name if shown is not None else "")
        asked = (f" {name!r}" if name else "") + (f" on {self._host!r}" if self._host else "")
        others = engines_among(found)
        on_offer = f" On this network there is:\n{listing(others)}" if others else ""
        what = f"{'engine' if name else 'an engine'}{asked}"
        return f"waiting for {what}: `rt-mmdf monitor` or `rt-mmdf demo`, on this machine or another.{on_offer}"

    def _open(self, stream: StreamDescription) -> None:
        if (self._status.get() or (None,))[0] is not Status.PROBLEM:  # else its text would flicker at every new trial
            self._tell(Status.OPENING, note=f"opening {stream.name}")
        before = self._shown.get()
        link = EstimateLink(self._transport, stream)
        self._subscribed = link  # the thread aside subscribes to the others meanwhile
        try:
            alike = before is not None and before.link.engine.same_sources(link.engine)
            head = before.head if before is not None and alike else self._find(link.engine, self._folder)
            history = before.history if before is not None and alike else None
            if history is None or history.sfreq != link.engine.sfreq:
                history = self._new_history(link.engine)
        except BaseException:
            self._subscribed = None
            link.close()
            raise
        same = before is not None and before.head is head and before.history is history
        generation = (before.generation if before is not None else 0) + (not same)
        self._past.put((self._past.get() or Counts()) + Counts(connected=1))
        self._shown.put(_Shown(link, head, history, generation))
        self._refused = None
        self._sightings = Sightings()
        self._tell(Status.OPENING, note=f"engine {link.engine.name!r} is there; no estimate yet")
        self._link = link

    def _new_history(self, engine: EngineDescription) -> History:
        return History(engine.n_sources, engine.sfreq, self._seconds, self._frame_rate)

    def _leave(self) -> None:
        """Unsubscribe; what was received can still be looked at."""
        if (link := self._link) is not None:
            self._link = self._subscribed = None
            self._past.put((self._past.get() or Counts()) + link.counts)
            link.close()
            self._tell(Status.WAITING, note=self._waited_for(()))

    def _tell(self, status: Status, problem: str = "", note: str = "") -> None:
        self._status.put((status, problem, note))

    def receive_second(self) -> None:
        """Take up the second solver's stream, or pull it once."""
        main, looked = self._link, self._round.get()
        if main is None or looked is None:
            self._leave_second()
            return
        link, kept = self._second_link, self._second.get()
        if link is None or kept is None:
            self._take_up_second(main.engine, looked.found)
            return
        try:
            link.look_for_companion(looked.found)
            link.step(kept[1])
        except (StreamError, Restarted):
            self._leave_second()

    def _take_up_second(self, main: EngineDescription, found: Sequence[StreamDescription]) -> None:
        if "second" not in main.names:
            self._second.put(None)
            return
        header = self._of_engine(main.names["second"], main, found)
        if header is None or header.uid in self._unusable:
            return
        kept = self._second.get()
        try:
            link = EstimateLink(self._transport, header)
        except StreamError as error:
            logger.warning("the second solver cannot be shown: %s", error)
            self._unusable.add(header.uid)
            return
        if link.engine.fingerprint != main.fingerprint:
            logger.warning("the second solver cannot be shown: its head is not that of the first")
            self._unusable.add(header.uid)
            link.close()
            return
        alike = kept is not None and kept[0].engine.same_sources(link.engine) and kept[1].sfreq == link.engine.sfreq
        self._second.put((link, kept[1] if kept is not None and alike else self._new_history(link.engine)))
        self._second_link = link

    def _leave_second(self) -> None:
        if self._second_link is not None:
            self._second_link.close()
            self._second_link = None

    def attend(self) -> None:
        """Everything that comes slowly: health, sensors, averages, the engine's clock, marks."""
        main, looked = self._subscribed, self._round.get()
        if main is None or looked is None or self._uid not in ("", main.engine.uid):
            self._leave_aside()
            return
        if not self._uid:
            self._uid = main.engine.uid
            self._offset.put(None)  # it may be on another machine now
            if "sensors" not in main.engine.names:
                self._sensors.put(None)
            shown = self._averages.get() or {}
            self._averages.put({event: newest for event, newest in shown.items() if event in main.engine.averages})
        try:
            main.look_for_companion(looked.found)
            self._subscribe_aside(main, looked.found)
            self._measure_clock(main.engine)
            if self._sensor_link is not None:
                self._sensor_link.step()
            self._hear_averages()
            self._publish_marks(main.engine)
            self._hear_health(main.engine)
        except StreamError as error:  # the engine goes; the thread of the estimates finds out for all
            logger.info("view: %s", error)
            self._leave_aside()

    def _subscribe_aside(self, main: EstimateLink, found: Sequence[StreamDescription]) -> None:
        """Open what the engine says it publishes, and is there, and is not open yet."""
        engine, wanted = main.engine, int(not main.has_companion)
        if self._health_inlet is None:
            header = self._of_engine(engine.names["health"], engine, found)
            wanted += header is None
            if header is not None and header.dtype == "string" and header.n_channels == 1:
                self._health_inlet = self._transport.inlet(header, buffer_s=1.0, from_now=False)
        if self._sensor_link is None and "sensors" in engine.names:
            header = self._of_engine(engine.names["sensors"], engine, found)
            wanted += header is None
            if header is not None and header.uid not in self._unusable:
                try:
                    self._sensor_link = SensorLink(self._transport, header)
                    self._sensors.put(self._sensor_link)
                except StreamError as error:
                    self._unusable.add(header.uid)
                    logger.warning("the sensors cannot be shown: %s", error)
        for event, name in engine.averages.items():
            if event not in self._average_links:
                header = self._of_engine(name, engine, found)
                companion = self._of_engine(f"{name}-companion", engine, found)
                wanted += header is None or companion is None
                if header is not None and companion is not None and header.uid not in self._unusable:
                    try:
                        self._average_links[event] = AverageLink(self._transport, header, companion, engine)
                    except StreamError as error:
                        self._unusable.add(header.uid)
                        logger.warning("the average of %r cannot be shown: %s", event, error)
        no_second = "second" in engine.names and self._of_engine(engine.names["second"], engine, found) is None
        self._wanting = bool(wanted) or no_second

    def _of_engine(
        self, name: str, engine: EngineDescription, found: Sequence[StreamDescription]
    ) -> StreamDescription | None:
        """The one stream of that name on the engine's machine; None, which is said once, where there are several."""
        fitting = [stream for stream in found if stream.name == name and stream.hostname == engine.host]
        if len(fitting) > 1 and name not in self._doubled:
            self._doubled.add(name)
            logger.warning(
                "%d streams are called %r on %r; none of them is shown until one is left. End the other program.",
                len(fitting),
                name,
                engine.host,
            )
        elif len(fitting) == 1:
            self._doubled.discard(name)
        return fitting[0] if len(fitting) == 1 else None

    def _measure_clock(self, engine: EngineDescription) -> None:
        if self._probe is None:
            self._probe = self._transport.offset_probe(engine.stream)
        now = self._clock.now()
        if now - self._probed >= CLOCK_S and (measured := self._probe.measure(MEASURE_S)) is not None:
            self._offset.put(measured)
            self._probed = now

    def _hear_averages(self) -> None:
        if not self._average_links:
            return
        for link in self._average_links.values():
            link.step()
        newest = {event: link.newest for event, link in self._average_links.items() if link.newest is not None}
        self._averages.put((self._averages.get() or {}) | newest)

    def _hear_health(self, engine: EngineDescription) -> None:
        if self._health_inlet is None:
            return
        texts, _ = self._health_inlet.pull(0.0)
        for row in texts[-1:]:
            if (report := read_report(str(row[0]))) is not None:
                self._health.put((report, self._clock.now()))
                self._show_marks(engine, report)

    def _publish_marks(self, engine: EngineDescription) -> None:
        name = engine.names.get("marks")
        if name is None:
            return
        if self._marks_outlet is not None and self._marks_outlet.stream.name != name:
            self._marks_outlet.close()
            self._marks_outlet = None
        if self._marks_outlet is None:  # long before the first mark, so that the engine has found it by then
            self._marks_outlet = MarksOutlet(self._transport, name)
        offset, marks = self._offset.get(), self._to_mark.take_all()
        for own in marks:
            self._marks_outlet.publish(own.text, own.stamp, own.command)
            text = own.text or own.command
            self._own_marks.append((own, ShownMark(own.stamp - (offset.offset if offset is not None else 0.0), text)))
        if marks:
            self._own_marks = self._own_marks[-MAX_MARKS:]
            health = self._health.get()
            self._show_marks(engine, None if health is None else health[0])

    def _show_marks(self, engine: EngineDescription, report: HealthReport | None) -> None:
        """This view's own marks, and those of others that the engine has heard."""
        own = {(round(own.stamp, 6), own.text) for own, _ in self._own_marks}
        others = [
            # of a third machine's clock nothing is known here: the moment of hearing is near enough
            ShownMark(heard.stamp if heard.host == engine.host else heard.received, heard.text)
            for heard in (report.marks if report is not None else ())
            if (round(heard.stamp, 6), heard.text) not in own
        ]
        shown = [mark for _, mark in self._own_marks] + others
        self._marks.put(tuple(sorted(shown, key=lambda mark: mark.time)[-MAX_MARKS:]))

    def _leave_aside(self) -> None:
        """Unsubscribe; the outlet of the marks stays for the engine's return."""
        for resource in (self._health_inlet, self._sensor_link, self._probe, *self._average_links.values()):
            if resource is not None:
                resource.close()
        self._health_inlet = self._sensor_link = self._probe = None
        self._average_links = {}
        self._probed = -math.inf
        self._uid = ""
        self._wanting = True


def _second(link: EstimateLink, history: History) -> Second:
    stamp, flags = link.newest
    return Second(link.engine, history, stamp, flags, link.latencies, link.counts)


def _worker(name: str, step: Callable[[], None], pause_s: float) -> Worker:
    def once() -> None:
        step()
        worker.pause(pause_s)

    worker = Worker(name, once, stop_timeout_s=STOP_S)
    return worker
