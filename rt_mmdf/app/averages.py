"""Event-locked averages of a session: markers in, imaged averages out, all in a thread of their own."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from rt_mmdf.acquisition.clockwatch import ClockWatch
from rt_mmdf.acquisition.receiver import STOP_LIMIT_S, Marker, MarkerReceiver
from rt_mmdf.alignment.time_map import SenderClock
from rt_mmdf.app.chain import CleanedHop
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.settings import AverageSettings
from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.errors import RtMmdfError
from rt_mmdf.lsl.interface import ClockOffset, StreamDescription, Transport
from rt_mmdf.preprocessing.averaging import Average, RunningAverages, published_latencies
from rt_mmdf.preprocessing.whitening import OperatorKey
from rt_mmdf.runtime.mailbox import Mailbox
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.averages import AverageDescription, AverageEstimate, AverageOutlets
from rt_mmdf.sinks.estimates import EstimateDescription
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.linear import LinearSolver

logger = logging.getLogger(__name__)

WAITING_HOPS = 1024
PERIOD_S = 0.1  # nothing here is in a hurry, and every round takes the interpreter for a while
CLOCK_INTERVAL_S = 0.5
STATUS_INTERVAL_S = 0.25
IMAGE_LIMIT_S = 120.0  # eLORETA with loose orientation takes 7 s, on a busy machine more
MAX_EARLY = 10000  # markers that may wait for the first measurement of their sender's clock
N_OPERATORS = 4
MARKERS = "markers"


class EventAverages:
    """Averages of cleaned sensors around the events of a marker stream, imaged whenever they have changed.

    An average of `n` trials has an `n`-th of the noise covariance, so its whitener is ``sqrt(n)`` times that of single
    samples (mne does the same by ``nave``). Estimates in A m are scaled back; standardised ones are in units of the
    noise that is left. Bad are the channels that were bad in any of the trials.

    Parameters
    ----------
    settings : AverageSettings
    transport : Transport
    name : str
        Of the session: the streams are called ``NAME-average-EVENT``, see `rt_mmdf.sinks.averages`.
    imaging : Imaging
        Of the first solver.
    sources : SourceSpaceDescription
    described : EstimateDescription
        Of the first solver's estimates.
    operator : Operator | None
        For all channels, where it is built already.

    Attributes
    ----------
    clock_taps : list of callable
        Called with each new measurement of the clock of the markers' sender, see `ClockWatch`.
    """

    def __init__(
        self,
        settings: AverageSettings,
        transport: Transport,
        name: str,
        imaging: Imaging,
        sources: SourceSpaceDescription,
        described: EstimateDescription,
        operator: Operator | None = None,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._clock = transport.clock
        self._imaging = imaging
        self._averages = RunningAverages(settings, imaging.channels, described.sfreq)
        self._published = published_latencies(self._averages.latencies, described.sfreq, settings.max_hz)
        self._hops: Mailbox[CleanedHop] = Mailbox(WAITING_HOPS)
        self._resets: Mailbox[str] = Mailbox(16)
        self._early: deque[Marker] = deque(maxlen=MAX_EARLY)
        self._marker_clock = SenderClock()
        self._watch: ClockWatch | None = None
        self.clock_taps: list[Callable[[str, ClockOffset], None]] = []
        self._heard_uid = ""
        self._changed: set[str] = set()
        self._updated = dict.fromkeys(settings.events, -math.inf)
        self._operators: OrderedDict[OperatorKey, tuple[Operator, float]] = OrderedDict()  # least recently used first
        if operator is not None and isinstance(operator.solver, LinearSolver):  # keeps nothing: any thread may call it
            self._operators[imaging.full_key()] = (operator, self._clock.now())
        self._problem: str | None = None
        self._n_markers = self._n_resets = 0
        self._resources = ExitStack()
        try:
            self.receiver = MarkerReceiver(transport, settings.markers, "average markers", patient=True)
            self._resources.callback(self.receiver.close)
            self._resources.callback(self._close_watch)
            latencies = self._averages.latencies[self._published]
            self.outlets = {
                event: self._resources.enter_context(
                    AverageOutlets(
                        transport,
                        f"{name}-average-{event}",
                        sources,
                        described,
                        AverageDescription(event, markers, latencies, settings.baseline),
                    )
                )
                for event, markers in settings.events.items()
            }
        except BaseException:
            self._resources.close()
            raise
        self._status = self._snapshot()

    def put(self, hop: CleanedHop) -> None:
        """Take a hop, from the engine's thread; returns at once."""
        self._hops.put(hop)

    def restart(self) -> None:
        """Begin all averages anew; from any thread."""
        self._resets.put("asked for")

    def step(self) -> None:
        """Take what is waiting, and publish what has changed."""
        hops = self._hops.take_all()
        self._take_markers()
        if self._resets.take_all():
            self._restart()
        for hop in hops:
            self._changed.update(self._averages(hop.block))
        self._changed.update(self._averages.settle())
        now = self._clock.now()
        for event in sorted(self._changed):
            if now - self._updated[event] >= self._settings.update_s:
                self._updated[event] = now
                if self._publish(self._averages.average(event)):
                    self._changed.discard(event)
        if now - self._status["time"] >= STATUS_INTERVAL_S:
            self._status = self._snapshot()

    def measure_clock(self) -> None:
        """Ask once for the clock of the markers' sender."""
        if self._watch is None:
            if self.receiver.description is None:
                return
            self._watch = ClockWatch(self._transport, {MARKERS: self._described})
            self._watch.taps.extend(self.clock_taps)
        self._watch.step()

    def _described(self) -> StreamDescription:
        description = self.receiver.description
        assert description is not None, "there was a stream"
        return description

    def _take_markers(self) -> None:
        description, watch = self.receiver.description, self._watch
        if description is not None and description.uid != self._heard_uid:  # another sender, perhaps another clock
            self._heard_uid = description.uid
            self._marker_clock = SenderClock()
            if watch is not None:
                watch.offsets[MARKERS].take_all()
        if watch is not None:
            for measured in watch.offsets[MARKERS].take_all():
                self._marker_clock.add(measured)
        self._early.extend(self.receiver.events.take_all())
        while self._early and self._marker_clock.ready:
            marker = self._early.popleft()
            self._n_markers += 1
            text = marker.text.strip()
            if text == self._settings.reset:
                self._restart()
            elif math.isfinite(marker.stamp):
                self._averages.mark(text, self._marker_clock.to_local(marker.stamp))

    def _restart(self) -> None:
        self._averages.restart()
        self._changed.clear()
        self._n_resets += 1
        for event, outlets in self.outlets.items():
            if outlets.n_updates:  # what is shown anywhere must not stay
                outlets.publish(AverageEstimate(np.empty((0, 0), np.float32), 0, 0, math.nan))
            self._updated[event] = -math.inf

    def _publish(self, average: Average) -> bool:
        """Image and publish; False where it cannot be imaged now."""
        try:
            data = self._image(average) if average.n_trials else np.empty((0, 0), np.float32)
        except RtMmdfError as error:
            if self._problem is None:
                logger.warning("average %s: %s", average.event, error)
            self._problem = str(error)
            return False
        if data is None:
            return False
        self._problem = None
        self.outlets[average.event].publish(AverageEstimate(data, average.n_trials, average.n_rejected, average.newest))
        return True

    def _image(self, average: Average) -> Float32 | None:
        operator = self._operator(OperatorKey.of(self._imaging.channels, average.bads, ()))
        if operator is None:
            return None
        gain = math.sqrt(average.n_trials)
        data = average.data
        if self._imaging.model is None:  # classical inverses see one sample at a time: no need for the others
            data = data[:, self._published]
        window = np.asfortranarray(gain * (operator.whitener.matrix @ data), dtype=np.float32)
        operator.solver.reset()
        estimate = operator.solver(window, window.shape[1])
        if self._imaging.model is not None:
            estimate = estimate[:, self._published]
        return estimate / np.float32(gain) if operator.solver.unit else estimate

    def _operator(self, key: OperatorKey) -> Operator | None:
        """An operator of this thread's own; None while there are too few data for a beamformer."""
        now = self._clock.now()
        if (found := self._operators.get(key)) is not None:
            self._operators.move_to_end(key)
            adaptive = self._imaging.data_cov is not None
            if not adaptive or now - found[1] < self._imaging.solver.lcmv.refresh_s:
                return found[0]
        operator = self._imaging.build(key, at_once=True)
        if operator is not None:
            self._operators[key] = (operator, now)
            self._operators.move_to_end(key)
            while len(self._operators) > N_OPERATORS:
                self._operators.popitem(last=False)
        return operator

    def workers(self, on_failure: Callable[[], None]) -> list[Worker]:
        """The threads that receive markers, measure their clock, and average and image; not yet started."""

        def measure() -> None:
            self.measure_clock()
            clock.pause(CLOCK_INTERVAL_S)

        def average() -> None:
            averages.pause(PERIOD_S)
            self.step()

        clock = Worker("marker clock", measure, on_failure, STOP_LIMIT_S)
        averages = Worker("averages", average, on_failure, IMAGE_LIMIT_S)
        return [self.receiver.worker(on_failure), clock, averages]

    def status(self) -> dict[str, Any]:
        """For the health stream: ``average`` of `rt_mmdf.sinks.health`, at most 0.25 s old; from any thread."""
        return self._status

    def _snapshot(self) -> dict[str, Any]:
        stream, ready = self.receiver.description, self._marker_clock.ready
        at = sender = self._clock.now()
        if ready:
            sender -= self._marker_clock.offset(sender)
        events: dict[str, Any] = {}
        for event, outlets in self.outlets.items():
            average = self._averages.average(event)
            events[event] = {
                "stream": outlets.streams[0].name,
                "n_trials": average.n_trials,
                "n_rejected": average.n_rejected,
                "rejected": self._averages.rejected(event),
                "bads": sorted(average.bads),
                "newest_event": average.newest,
                "updates": outlets.n_updates,
            }
        return {
            "time": at,
            "events": events,
            "markers": {
                "name": None if stream is None else stream.name,
                "hostname": None if stream is None else stream.hostname,
                "problem": self.receiver.problem or None,
                "received": self._n_markers,
                "not_averaged": self._averages.n_unknown,
                "waiting_for_clock": len(self._early),
                "offset": self._marker_clock.offset(sender) if ready else None,
                "uncertainty_ms": 2e3 * self._marker_clock.sd(sender) if ready else None,
                "reconnected": self.receiver.n_reconnected,
            },
            "resets": self._n_resets,
            "dropped_hops": self._hops.n_dropped,
            "problem": self._problem,
        }

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def close(self) -> None:
        """Close all streams; after the workers were stopped."""
        self._resources.close()
