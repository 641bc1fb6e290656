"""Measures the senders' clocks, all of them in one slow thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle

from rt_mmdf.core.errors import StreamNotFound
from rt_mmdf.lsl.interface import ClockOffset, OffsetProbe, StreamDescription, Transport
from rt_mmdf.runtime.mailbox import Mailbox
from rt_mmdf.runtime.worker import Worker

INTERVAL_S = 0.5
MEASURE_LIMIT_S = 0.02
"""A probe works in a thread of its own inside liblsl and is asked again later: no stream waits for another one's first
answer.
"""
CAPACITY = 1024


@dataclass
class _Watched:
    uid: str
    probe: OffsetProbe
    newest: float | None = None


class ClockWatch:
    """Asks the probe of each stream every half second and hands on what is new.

    A sender that does not answer is asked again, silently: alignment judges the age of what it has.

    Parameters
    ----------
    streams : mapping of str to callable
        For each stream its present description (``lambda: receiver.description``); a new `uid` gets a new probe.

    Attributes
    ----------
    offsets : dict of str to Mailbox of ClockOffset
        New measurements of each stream, oldest first.
    taps : list of callable
        Called with the name of the stream and each new measurement, in the thread that measures; must be quick.
    """

    def __init__(self, transport: Transport, streams: Mapping[str, Callable[[], StreamDescription]]) -> None:
        self._transport = transport
        self._streams = dict(streams)
        self.offsets: dict[str, Mailbox[ClockOffset]] = {label: Mailbox(CAPACITY) for label in streams}
        self.taps: list[Callable[[str, ClockOffset], None]] = []
        self._watched: dict[str, _Watched] = {}
        self._turn = cycle(streams)

    def step(self) -> None:
        """Ask the next stream's probe once."""
        label = next(self._turn)
        description = self._streams[label]()
        watched = self._watched.get(label)
        if watched is None or watched.uid != description.uid:
            try:
                probe = self._transport.offset_probe(description)
            except StreamNotFound:  # gone for now; its receiver finds it again
                return
            if watched is not None:
                watched.probe.close()
            watched = self._watched[label] = _Watched(description.uid, probe)
        offset = watched.probe.measure(MEASURE_LIMIT_S)
        if offset is not None and offset.at != watched.newest:
            watched.newest = offset.at
            self.offsets[label].put(offset)
            for tap in self.taps:
                tap(label, offset)

    def worker(self, on_failure: Callable[[], None] | None = None) -> Worker:
        """The thread that measures; not yet started."""

        def step() -> None:
            self.step()
            known = all(label in self._watched and self._watched[label].newest is not None for label in self._streams)
            # the start of the session waits for the first measurements
            worker.pause((INTERVAL_S if known else 0.1) / len(self._streams))

        worker = Worker("clock watch", step, on_failure)
        return worker

    def close(self) -> None:
        """Stop the probes; after the worker was stopped."""
        for watched in self._watched.values():
            watched.probe.close()
        self._watched.clear()
