"""From the wire to the ring: one receiver per stream, each in a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.acquisition.interpretation import interpret
from rt_mmdf.acquisition.selection import select_stream
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.channels import Channels
from rt_mmdf.core.errors import StreamDescriptionError, StreamError, StreamNotFound
from rt_mmdf.core.ring import SampleRing
from rt_mmdf.lsl.interface import Inlet, StreamDescription, Transport
from rt_mmdf.runtime.mailbox import Mailbox, Signal
from rt_mmdf.runtime.worker import Worker

PULL_LIMIT_S = 0.2
LOOK_LIMIT_S = 0.6
SILENT_S = 2.0
"""After so long without a sample the network is asked whether the outlet is still the same, and so on."""
MARKERS_SILENT_S = 10.0
"""The same for markers, of which there may be none for long."""
MAX_MARKER = 4096
"""Longest text of a marker, characters; the rest is cut."""
STOP_LIMIT_S = 15.0
"""Opening a stream that vanishes in that moment takes 10 s."""
RECENT = 100

Tap = Callable[[StreamDescription, NDArray[np.generic], Float64], None]
"""Called with the stream, ``(n_times, n_channels)`` samples as they came, and ``(n_times,)`` raw stamps of the sender, in
the thread that receives and before anything else is done with them. It must be quick and must not write to the arrays.
"""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What has arrived on a stream so far.

    n_received : samples, all of them
    n_nonfinite : samples with NaN or infinity in at least one imaged channel
    last_received : this machine's LSL time of the newest pull that had samples; NaN before the first
    newest_chunk, largest_chunk : samples in the newest pull, and in the largest of the last 100
    n_reconnected : how often the stream was opened again after it had vanished
    """

    n_received: int = 0
    n_nonfinite: int = 0
    last_received: float = float("nan")
    newest_chunk: int = 0
    largest_chunk: int = 0
    n_reconnected: int = 0


def survey(transport: Transport, settings: StreamSettings, label: str) -> tuple[StreamDescription, Channels]:
    """What a stream is and which of its channels are imaged, without subscribing to it.

    Raises
    ------
    StreamNotFound, StreamAmbiguous, StreamDescriptionError, ConfigurationError
        See `select_stream` and `interpret`.
    """
    description = transport.describe(select_stream(transport, settings, label))
    return description, interpret(description, settings, label).imaged.channels


class Receiver:
    """Listens to one stream of sensors; subscribed and ready once built.

    `step` pulls once and writes to `ring` (imaged channels) and `others` (EOG, triggers, miscellaneous; None where there
    are none), float32 in SI units, with raw stamps. Both count the same samples.

    A stream that vanishes is waited for: liblsl finds it again by its source id; without one it is looked for by the
    settings. It must come back with the same channels, units and rate. liblsl would take it from any host: where the
    settings name one, it is looked for here.

    Parameters
    ----------
    label : str
        Name of the stream in the configuration: ``"eeg"``, ``"meg"``.
    signal : Signal | None
        Rung after each write.

    Attributes
    ----------
    taps : list of Tap
        Get everything that was pulled; to be filled before the worker is started.

    Raises
    ------
    StreamNotFound, StreamAmbiguous, StreamDescriptionError, ConfigurationError
        See `select_stream` and `interpret`.
    """

    def __init__(self, transport: Transport, settings: StreamSettings, label: str, signal: Signal | None = None) -> None:
        self.label = label
        self.settings = settings
        self.taps: list[Tap] = []
        self._transport = transport
        self._signal = signal
        self._inlet: Inlet | None = transport.inlet(
            select_stream(transport, settings, label), buffer_s=settings.buffer_s, recover=settings.hostname is None
        )
        self._description = self._inlet.description
        try:
            self._selection = interpret(self._description, settings, label)
        except Exception:
            self._inlet.close()
            raise
        capacity = max(64, int(np.ceil(settings.buffer_s * self._description.sfreq)))
        self.ring = SampleRing(len(self.channels), capacity)
        self.others = SampleRing(len(self.other_channels), capacity) if len(self.other_channels) else None
        self._arrivals = Arrivals()
        self._heard = transport.clock.now()
        self._recent: deque[int] = deque(maxlen=RECENT)

    @property
    def description(self) -> StreamDescription:
        """The stream as it describes itself; another one (another `uid`) after it came back from elsewhere."""
        return self._description

    @property
    def sfreq(self) -> float:
        """Nominal sampling rate, Hz."""
        return self._description.sfreq

    @property
    def channels(self) -> Channels:
        """Imaged channels, in the order of `ring`."""
        return self._selection.imaged.channels

    @property
    def other_channels(self) -> Channels:
        """Channels that are kept but not imaged, in the order of `others`."""
        return self._selection.others.channels

    @property
    def arrivals(self) -> Arrivals:
        """Counters; may be read from any thread."""
        return self._arrivals

    def step(self) -> None:
        """Pull once (waits at most 0.2 s)."""
        if self._inlet is None:
            self._reopen()
            return
        try:
            samples, stamps = self._inlet.pull(PULL_LIMIT_S)
        except StreamError:  # it vanished and liblsl cannot find it again
            self._inlet.close()
            self._inlet = None
            return
        received = self._transport.clock.now()
        if not len(stamps):
            if received > self._heard + SILENT_S:
                self._heard = received
                self._look_again()
            return
        self._heard = received
        for tap in self.taps:
            tap(self._description, samples, stamps)
        imaged = self._selection.imaged.to_si(samples)
        if self.others is not None:
            self.others.write(self._selection.others.to_si(samples), stamps, received)
        self.ring.write(imaged, stamps, received)
        finite = np.isfinite(imaged.sum(axis=1, dtype=np.float64))
        self._recent.append(len(stamps))
        self._arrivals = Arrivals(
            n_received=self._arrivals.n_received + len(stamps),
            n_nonfinite=self._arrivals.n_nonfinite + int(len(stamps) - np.count_nonzero(finite)),
            last_received=received,
            newest_chunk=len(stamps),
            largest_chunk=max(self._recent),
            n_reconnected=self._arrivals.n_reconnected,
        )
        if self._signal is not None:
            self._signal.ring()

    def _present(self) -> list[StreamDescription]:
        wanted = self.settings
        found = self._transport.resolve(
            name=wanted.name, type=wanted.type, source_id=wanted.source_id, timeout_s=LOOK_LIMIT_S
        )
        own = self._description  # another source of the same name is another device
        return [
            stream
            for stream in found
            if wanted.hostname in (None, stream.hostname) and (stream.name, stream.source_id) == (own.name, own.source_id)
        ]

    def _look_again(self) -> None:
        """Silence: leave an outlet that has been replaced (liblsl may wait for it for ever where it has no source id)."""
        found = self._present()
        if self._inlet is not None and len(found) == 1 and found[0].uid != self._description.uid:
            self._inlet.close()
            self._inlet = None

    def _reopen(self) -> None:
        found = self._present()
        if len(found) != 1:  # not back yet, or not to be told from another one
            return
        try:
            inlet = self._transport.inlet(found[0], buffer_s=self.settings.buffer_s, recover=self.settings.hostname is None)
        except StreamNotFound:
            return
        seen, expected = inlet.description, self._description
        if (seen.channels, seen.sfreq, seen.dtype) != (expected.channels, expected.sfreq, expected.dtype):
            inlet.close()
            raise StreamDescriptionError(
                f"acquisition.{self.label}: stream {seen.name!r} came back with {seen.n_channels} channels at "
                f"{seen.sfreq:g} Hz and another description; it had {expected.n_channels} at {expected.sfreq:g} Hz. "
                "Start the session again."
            )
        self._inlet, self._description = inlet, seen
        self._arrivals = replace(self._arrivals, n_reconnected=self._arrivals.n_reconnected + 1)

    def worker(self, on_failure: Callable[[], None] | None = None) -> Worker:
        """The thread that receives; not yet started."""
        return Worker(f"receive {self.label}", self.step, on_failure)

    def close(self) -> None:
        """Unsubscribe; after the worker was stopped."""
        if self._inlet is not None:
            self._inlet.close()
            self._inlet = None

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Marker:
    """One event.

    stamp : raw, seconds on the sender's LSL clock
    text : as sent, the first 4096 characters of it
    received : seconds on this machine's LSL clock
    """

    stamp: float
    text: str
    received: float


class MarkerReceiver:
    """Listens to a stream of markers (text, or one whole number per event); events go to a bounded mailbox.

    A stream that vanishes is looked for again, by the settings.

    Parameters
    ----------
    label : str
        Name of the stream in the configuration, for messages.
    signal : Signal | None
        Rung for each event.
    patient : bool
        Wait for a stream that is not there yet, too, instead of raising.

    Attributes
    ----------
    events : Mailbox of Marker
    n_reconnected : int
        How often the stream was opened again.
    problem : str
        Why nothing is listened to now; empty when something is. Any thread may read it.
    taps : list of Tap
        As for `Receiver`.

    Raises
    ------
    StreamNotFound, StreamAmbiguous
        Unless `patient`.
    """

    def __init__(
        self,
        transport: Transport,
        settings: StreamSettings,
        label: str,
        signal: Signal | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self.label = label
        self._settings = settings
        self._transport = transport
        self._inlet: Inlet | None = None
        self._description: StreamDescription | None = None
        self.events: Mailbox[Marker] = Mailbox(10000, signal)
        self.taps: list[Tap] = []
        self.n_reconnected = 0
        self.problem = "not looked for so far"
        self._looked = transport.clock.now()
        if patient:
            self._look_again()
        else:
            self._open(select_stream(transport, settings, label))

    @property
    def description(self) -> StreamDescription | None:
        """The stream that is listened to, or was until it vanished; None before there was one."""
        return self._description

    def step(self) -> None:
        """Pull once (waits at most 0.2 s, or 0.6 s for the network)."""
        now = self._transport.clock.now()
        if now > self._looked + (SILENT_S if self._inlet is None else MARKERS_SILENT_S):
            self._looked = now
            self._look_again()
        if self._inlet is None:
            return
        try:
            samples, stamps = self._inlet.pull(PULL_LIMIT_S)
        except StreamError:  # it vanished and liblsl cannot find it again
            self._lose("the stream has vanished")
            return
        received = self._transport.clock.now()
        if len(stamps):
            self._looked = received
            for tap in self.taps:
                tap(self._inlet.description, samples, stamps)
        for row, stamp in zip(samples, stamps.tolist(), strict=True):
            text = row[0][:MAX_MARKER] if isinstance(row[0], str) else f"{row[0]:g}"
            self.events.put(Marker(stamp, text, received))

    def _look_again(self) -> None:
        wanted = self._settings
        found = self._transport.resolve(
            name=wanted.name, type=wanted.type, source_id=wanted.source_id, timeout_s=LOOK_LIMIT_S
        )
        found = [stream for stream in found if wanted.hostname in (None, stream.hostname)]
        if self._inlet is not None and (not found or any(stream.uid == self._uid for stream in found)):
            return  # liblsl waits for one that is away for a moment
        if len(found) == 1:
            self._lose("")
            try:
                self._open(found[0])
            except StreamError as error:  # gone again, or it cannot be read
                self.problem = str(error)
        elif self._inlet is None:
            many = f"{len(found)} streams with {wanted.wanted()}; exactly one is expected"
            self.problem = many if found else f"no stream with {wanted.wanted()}"

    @property
    def _uid(self) -> str:
        return "" if self._description is None else self._description.uid

    def _open(self, stream: StreamDescription) -> None:
        pinned = self._settings.hostname is not None  # liblsl would take it from any host
        self._inlet = self._transport.inlet(stream, buffer_s=self._settings.buffer_s, recover=not pinned)
        self.n_reconnected += self._description is not None
        self._description, self.problem = self._inlet.description, ""

    def _lose(self, problem: str) -> None:
        if self._inlet is not None:
            self._inlet.close()
            self._inlet = None
        self.problem = problem

    def worker(self, on_failure: Callable[[], None] | None = None) -> Worker:
        """The thread that receives; not yet started."""

        def step() -> None:
            self.step()
            if self._inlet is None:
                worker.pause(PULL_LIMIT_S)

        worker = Worker(f"receive {self.label}", step, on_failure, STOP_LIMIT_S)
        return worker

    def close(self) -> None:
        """Unsubscribe; after the worker was stopped."""
        self._lose("")
