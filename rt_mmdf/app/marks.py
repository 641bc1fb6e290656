"""Operator marks: heard from every view that publishes some, listed in the health stream."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rt_mmdf.acquisition.receiver import STOP_LIMIT_S, Tap
from rt_mmdf.core.errors import StreamError
from rt_mmdf.lsl.interface import ClockOffset, Inlet, OffsetProbe, StreamDescription, Transport
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.marks import Mark, read_mark

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 4.0
LOOK_LIMIT_S = 0.6
PULL_LIMIT_S = 0.05
PAUSE_S = 0.25
BUFFER_S = 10.0
MAX_STREAMS = 8
N_KEPT = 20
MEASURE_INTERVAL_S = 5.0
MEASURE_LIMIT_S = 0.05


@dataclass
class _Heard:
    """One view's stream, and the clock of its machine."""

    inlet: Inlet
    stream: StreamDescription  # as it was found
    probe: OffsetProbe | None = None
    newest: float | None = None  # time of the newest measurement, by that clock
    measured: float = float("-inf")  # when that was, by ours

    def close(self) -> None:
        if self.probe is not None:
            self.probe.close()
        self.inlet.close()


class OperatorMarks:
    """Listens to all streams called `name`: two views may mark for one engine.

    Parameters
    ----------
    transport : Transport
    name : str
        ``SESSION-marks``.
    on_command : callable | None
        Called with each mark that carries a command, in the thread of `step`; must be quick.

    Attributes
    ----------
    taps : list of Tap
        Get everything that was pulled; to be filled before the worker is started.
    clock_taps : list of callable
        Get each new measurement of a sender's clock, with its stream; to be filled before the worker is started.
    """

    def __init__(self, transport: Transport, name: str, on_command: Callable[[Mark], None] | None = None) -> None:
        self.name = name
        self.taps: list[Tap] = []
        self.clock_taps: list[Callable[[StreamDescription, ClockOffset], None]] = []
        self._transport = transport
        self._on_command = on_command
        self._heard: dict[str, _Heard] = {}
        self._absent: set[str] = set()
        self._looked = float("-inf")
        self._newest: deque[dict[str, Any]] = deque(maxlen=N_KEPT)
        self._n_marks = self._n_refused = 0

    def step(self) -> None:
        """Look for streams every few seconds, and take what has come."""
        if self._transport.clock.now() - self._looked > LOOK_INTERVAL_S:
            self._look()
            self._looked = self._transport.clock.now()
        for uid, heard in list(self._heard.items()):
            inlet = heard.inlet
            try:
                samples, stamps = inlet.pull(PULL_LIMIT_S)
            except StreamError:
                self._heard.pop(uid).close()
                continue
            received = self._transport.clock.now()
            if len(stamps):
                for tap in self.taps:
                    tap(inlet.description, samples, stamps)
            for row in samples[: len(stamps)]:
                self._take(str(row[0]), inlet, received)
            self._measure(heard)

    def _measure(self, heard: _Heard) -> None:
        """What a recording needs to know when a mark was made."""
        now = self._transport.clock.now()
        if not self.clock_taps or now - heard.measured < MEASURE_INTERVAL_S:
            return
        if heard.probe is None:
            try:
                heard.probe = self._transport.offset_probe(heard.stream)
            except StreamError:  # gone again
                return
        offset = heard.probe.measure(MEASURE_LIMIT_S)
        if offset is None or offset.at == heard.newest:
            return
        heard.newest, heard.measured = offset.at, now
        for tap in self.clock_taps:
            tap(heard.inlet.description, offset)

    def _take(self, text: str, inlet: Inlet, received: float) -> None:
        mark = read_mark(text)
        if mark is None:
            self._n_refused += 1
            return
        self._n_marks += 1
        host = inlet.description.hostname
        self._newest.append(
            {"stamp": mark.stamp, "received": received, "text": mark.text, "command": mark.command, "host": host}
        )
        if mark.command and self._on_command is not None:
            self._on_command(mark)

    def _look(self) -> None:
        try:
            found = self._transport.resolve(name=self.name, timeout_s=LOOK_LIMIT_S)
        except StreamError as error:
            logger.warning("marks: %s", error)
            return
        here = {stream.uid: stream for stream in found if stream.dtype == "string" and stream.n_channels == 1}
        for uid in self._heard.keys() & self._absent - here.keys():  # not found twice: no answer that was lost
            self._heard.pop(uid).close()
        self._absent = self._heard.keys() - here.keys()
        for uid, stream in list(here.items())[:MAX_STREAMS]:
            if uid not in self._heard:
                try:
                    self._heard[uid] = _Heard(self._transport.inlet(stream, buffer_s=BUFFER_S), stream)
                except StreamError:  # gone again, or it cannot be read
                    continue

    def workers(self, on_failure: Callable[[], None]) -> list[Worker]:
        """The thread that listens; not yet started."""

        def step() -> None:
            self.step()
            worker.pause(PAUSE_S)

        worker = Worker("marks", step, on_failure, STOP_LIMIT_S)
        return [worker]

    def status(self) -> dict[str, Any]:
        """For the health stream: ``marks`` of `rt_mmdf.sinks.health`."""
        return {
            "stream": self.name,
            "listening_to": len(self._heard),
            "received": self._n_marks,
            "refused": self._n_refused,
            "newest": list(self._newest),
        }

    def close(self) -> None:
        """Unsubscribe; after the worker was stopped."""
        for heard in self._heard.values():
            heard.close()
        self._heard.clear()
