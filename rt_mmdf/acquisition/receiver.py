"""From the wire to the ring: one receiver per stream, each in a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.acquisition.interpretation import Interpretation, Selected, as_far_as_it_goes, interpret
from rt_mmdf.acquisition.selection import select_stream
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.channels import Channels
from rt_mmdf.core.errors import ConfigurationError, RtMmdfError, StreamDescriptionError, StreamError, StreamNotFound
from rt_mmdf.core.ring import SampleRing
from rt_mmdf.lsl.interface import REJOIN_S, Inlet, StreamDescription, Transport
from rt_mmdf.runtime.mailbox import Mailbox, Signal
from rt_mmdf.runtime.worker import Worker

PULL_LIMIT_S = 0.2
LOOK_LIMIT_S = 0.6
LEAST_BUFFER_S = 60.0
"""In liblsl, for what comes all at once after a stall: a recording needs all of it, imaging only the newest."""
STALL_S = 0.18
"""Least time without a sample that counts as a stall, ..."""
STALL_BLOCKS = 3
"""... and so many times the usual time from pull to pull, for a device that sends long blocks."""
LOOK_AFTER_S = 0.5
"""After so long without a sample the network is asked whether the outlet is still the same, ..."""
LOOK_AGAIN_S = 0.1
"""... and again so long after each answer."""
SURE_LOOKS = 2
"""An outlet that so many looks one after the other did not find has vanished; one answer may have been lost."""
MARKERS_LOOK_S = 2.0
"""A stream of markers that is not there is looked for so often, ..."""
MARKERS_SILENT_S = 10.0
"""... and one that is there, but of which there may be none for long, so often."""
MAX_MARKER = 4096
"""Longest text of a marker, characters; the rest is cut."""
STOP_LIMIT_S = 15.0
"""Opening a stream that vanishes in that moment takes 10 s."""
RECENT = 100
USUAL = 0.9
"""Of the last times from pull to pull, this quantile is the usual one: pauses between blocks count, rare stalls do not."""

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
    usual_interval_s : from pull to pull, nine of ten times at most
    n_stalls : how often samples came after a gap that counts as a stall
    newest_stall_s : how long the newest of these gaps was
    """

    n_received: int = 0
    n_nonfinite: int = 0
    last_received: float = float("nan")
    newest_chunk: int = 0
    largest_chunk: int = 0
    n_reconnected: int = 0
    usual_interval_s: float = 0.0
    n_stalls: int = 0
    newest_stall_s: float = 0.0

    @property
    def stall_after_s(self) -> float:
        """So long without a sample is a stall of this stream."""
        return max(STALL_S, STALL_BLOCKS * self.usual_interval_s)


@dataclass(frozen=True, slots=True)
class Epoch:
    """From sample `first` on (counted as in `SampleRing`) a stream is what this says.

    sfreq : Hz
    absent : imaged channels that it does not have now; their values are NaN
    new_clock : its stamps are those of another machine
    """

    first: int
    sfreq: float
    absent: frozenset[str]
    new_clock: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why nothing comes: `kind` is ``stream_gone`` or ``stream_unusable``, `text` for people."""

    kind: str
    text: str


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
    are none), float32 in SI units, with raw stamps. Both count the same samples, and keep the channels and the order that
    the stream had at first.

    A stream that vanishes is waited for, and may come back as another one: with its channels in another order, with fewer
    (those give NaN) or more (not imaged), in other units, at another rate. With a `source_id` in the settings it is the
    same source that is waited for; without one, another of the same name and type is taken when it is the only one and the
    first has not answered twice. What changed is told (`on_news`), and `epochs` says from which sample on. One that cannot
    be used is left alone, see `trouble`.

    liblsl goes on by itself with an outlet that comes back under the same name, type, source id, number of channels and
    format, and says nothing of it, though the channels may be others: after a gap that is long enough for that the network
    is asked, before any sample is taken for what the last description says. It would take one from any host: where the
    settings name a host, it may not, and the stream is looked for here.

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
    on_news : callable | None
        Called with a kind and a text when the stream is no longer what it was, in the thread that receives.
    epochs : deque of Epoch
        Changes that whoever reads `ring` has not taken yet, oldest first.
    trouble : Trouble | None
        Why nothing comes, where that is known; may be read from any thread.

    Raises
    ------
    StreamNotFound, StreamAmbiguous, StreamDescriptionError, ConfigurationError
        See `select_stream` and `interpret`.
    """

    def __init__(self, transport: Transport, settings: StreamSettings, label: str, signal: Signal | None = None) -> None:
        self.label = label
        self.settings = settings
        self.taps: list[Tap] = []
        self.on_news: Callable[[str, str], None] | None = None
        self.epochs: deque[Epoch] = deque(maxlen=RECENT)
        self.trouble: Trouble | None = None
        self._transport = transport
        self._signal = signal
        self._buffer_s = max(settings.buffer_s, LEAST_BUFFER_S)
        self._inlet: Inlet | None = transport.inlet(
            select_stream(transport, settings, label), buffer_s=self._buffer_s, recover=settings.hostname is None
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
        self._here: NDArray[np.bool_] | None = None  # of the imaged channels; None: all
        self._arrivals = Arrivals()
        self._heard = self._looked = self._alive = transport.clock.now()
        self._unseen = 0  # looks in a row that did not find the outlet
        self._refused = ""  # uid of one that came back and cannot be used
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._intervals: deque[float] = deque(maxlen=RECENT)

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
        """Pull once (waits at most 0.2 s, or about 1 s where the network has to be asked)."""
        if self._inlet is None:
            self._reopen()
            return
        try:
            self._listen(self._inlet)
        except StreamError as error:  # it vanished and liblsl cannot find it again
            self._leave()
            self.trouble = Trouble("stream_gone", str(error))

    def _listen(self, inlet: Inlet) -> None:
        samples, stamps = inlet.pull(PULL_LIMIT_S)
        received = self._transport.clock.now()
        if len(stamps):
            if not self._may_be_another(received) or self._is_known():
                self._take(samples, stamps, received)
        elif received >= max(self._heard + LOOK_AFTER_S, self._looked + LOOK_AGAIN_S):
            self._look_again(inlet)

    def _take(self, samples: NDArray[np.generic], stamps: Float64, received: float) -> None:
        for tap in self.taps:
            tap(self._description, samples, stamps)
        imaged = self._selection.imaged.to_si(samples)
        if self.others is not None:
            self.others.write(self._selection.others.to_si(samples), stamps, received)
        self.ring.write(imaged, stamps, received)
        here = imaged if self._here is None else imaged[:, self._here]
        finite = np.isfinite(here.sum(axis=1, dtype=np.float64))
        before = self._arrivals
        self._recent.append(len(stamps))
        gap = received - self._heard if before.n_received else 0.0
        stalled = gap >= before.stall_after_s
        if before.n_received:
            self._intervals.append(gap)
        self._arrivals = Arrivals(
            n_received=before.n_received + len(stamps),
            n_nonfinite=before.n_nonfinite + int(len(stamps) - np.count_nonzero(finite)),
            last_received=received,
            newest_chunk=len(stamps),
            largest_chunk=max(self._recent),
            n_reconnected=before.n_reconnected,
            usual_interval_s=_usual(self._intervals),
            n_stalls=before.n_stalls + stalled,
            newest_stall_s=gap if stalled else before.newest_stall_s,
        )
        self._heard, self._unseen, self.trouble = received, 0, None
        if self._signal is not None:
            self._signal.ring()

    def _present(self) -> list[StreamDescription]:
        """Outlets that are this stream, or may take its place."""
        wanted, own, began = self.settings, self._description, self._transport.clock.now()
        found = [
            stream
            for stream in self._transport.resolve(
                name=wanted.name, type=wanted.type, source_id=wanted.source_id, timeout_s=LOOK_LIMIT_S
            )
            if wanted.hostname in (None, stream.hostname) and (stream.name, stream.type) == (own.name, own.type)
        ]
        if any(stream.uid == own.uid for stream in found):
            self._alive, self._unseen = began, 0
        else:
            self._unseen += 1
        self._looked = self._transport.clock.now()
        same = [stream for stream in found if stream.source_id == own.source_id]
        if same or wanted.source_id is not None or self._unseen < SURE_LOOKS:
            return same
        return found

    def _may_be_another(self, received: float) -> bool:
        """Whether there was time enough since the last sample, and since the outlet was last seen, for a successor."""
        return self._arrivals.n_received > 0 and received - max(self._heard, self._alive) >= REJOIN_S

    def _is_known(self) -> bool:
        """Samples came after a long gap: find out whose, and whether these can be used."""
        own = self._description
        for _ in range(SURE_LOOKS):  # one answer may be lost
            found = [stream for stream in self._present() if stream.source_id == own.source_id]
            if any(stream.uid == own.uid for stream in found):
                return True
            if len(found) == 1:
                if self._adopt(self._transport.describe(found[0])):
                    return True
                self._leave()
                return False
        return True

    def _look_again(self, inlet: Inlet) -> None:
        """Silence: leave an outlet that has been replaced (liblsl may wait for it for ever where it has no source id)."""
        found = self._present()
        own = self._description
        if any(stream.uid == own.uid for stream in found):
            return
        if len(found) == 1 and found[0].uid != self._refused:
            samples, stamps = inlet.pull(0.0)
            received = self._transport.clock.now()
            if not len(stamps):
                self._leave()
                self._open(found[0])
            elif not self._may_be_another(received) or self._adopt(self._transport.describe(found[0])):
                self._take(samples, stamps, received)  # liblsl has found it, too
            else:
                self._leave()
        elif self._unseen >= SURE_LOOKS and self.trouble is None:
            self.trouble = Trouble("stream_gone", f"stream {own.name!r} is no longer on the network; it is looked for")

    def _leave(self) -> None:
        if self._inlet is not None:
            self._inlet.close()
            self._inlet = None

    def _reopen(self) -> None:
        found = self._present()
        # none: not back yet; more: not to be told from each other
        if len(found) == 1 and found[0].uid != self._refused:
            self._open(found[0])

    def _open(self, stream: StreamDescription) -> None:
        recover = self.settings.hostname is None
        try:  # what it sends while it is being opened is lost either way: do not wait until that is over
            inlet = self._transport.inlet(stream, buffer_s=self._buffer_s, from_now=False, recover=recover)
        except StreamNotFound:
            return
        except StreamDescriptionError as error:
            self._refuse(stream.uid, error)
            return
        if self._adopt(inlet.description):
            self._inlet, self.trouble = inlet, None
        else:
            inlet.close()

    def _refuse(self, uid: str, error: RtMmdfError) -> None:
        self._refused = uid
        text = f"stream {self._description.name!r} came back, but cannot be used: {error}"
        self.trouble = Trouble("stream_unusable", text)

    def _adopt(self, seen: StreamDescription) -> bool:
        """Take the stream for what it describes itself as from now on; False where that cannot be used."""
        own, wanted = self._description, self._selection
        try:
            read = interpret(seen, as_far_as_it_goes(self.settings, seen), self.label)
        except (StreamDescriptionError, ConfigurationError) as error:
            self._refuse(seen.uid, error)
            return False
        imaged, others = read.imaged.arranged_as(self.channels), read.others.arranged_as(self.other_channels)
        here = np.isfinite(imaged.factors)
        if not here.any():
            self._refuse(seen.uid, StreamDescriptionError("it has none of the channels that are imaged"))
            return False
        absent = tuple(name for name, there in zip(self.channels.names, here, strict=True) if not there)
        more = tuple(name for name in read.imaged.channels.names if name not in self.channels)
        self.epochs.append(Epoch(self.ring.n_written, seen.sfreq, frozenset(absent), seen.hostname != own.hostname))
        self._selection = Interpretation(imaged, others)
        self._here = None if here.all() else here
        self._description = seen
        self._arrivals = replace(self._arrivals, n_reconnected=self._arrivals.n_reconnected + 1)
        self._intervals.clear()
        if self.on_news is not None:
            self.on_news("stream_changed", _changes(own, seen, wanted.imaged, imaged, absent, more))
        return True

    def worker(self, on_failure: Callable[[], None] | None = None) -> Worker:
        """The thread that receives; not yet started."""
        return Worker(f"receive {self.label}", self.step, on_failure, STOP_LIMIT_S)

    def close(self) -> None:
        """Unsubscribe; after the worker was stopped."""
        self._leave()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _usual(intervals: deque[float]) -> float:
    ranked = sorted(intervals)
    return ranked[int(USUAL * (len(ranked) - 1))] if ranked else 0.0


def _changes(
    own: StreamDescription,
    seen: StreamDescription,
    before: Selected,
    now: Selected,
    absent: tuple[str, ...],
    more: tuple[str, ...],
) -> str:
    """What is other about a stream that has come back, in words."""
    told = []
    for what, old, new in (
        ("source id", own.source_id, seen.source_id),
        ("host", own.hostname, seen.hostname),
        ("format", own.dtype, seen.dtype),
    ):
        if old != new:
            told.append(f"{what} {new!r} after {old!r}")
    if own.sfreq != seen.sfreq:
        told.append(f"{seen.sfreq:g} Hz after {own.sfreq:g} Hz")
    both = np.isfinite(before.factors) & np.isfinite(now.factors)
    if (before.columns[both] != now.columns[both]).any():
        told.append("channels in another order (sorted by name)")
    if (rescaled := int(np.count_nonzero(before.factors[both] != now.factors[both]))) > 0:
        told.append(f"{rescaled} channels in another unit")
    if absent:
        told.append(f"without {len(absent)} imaged channels ({', '.join(absent[:5])}), which are bad until they return")
    if more:
        told.append(f"{len(more)} channels more ({', '.join(more[:5])}), which are not imaged")
    return f"stream {seen.name!r} is back: {'; '.join(told) or 'the same as before'}"


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
        if now > self._looked + (MARKERS_LOOK_S if self._inlet is None else MARKERS_SILENT_S):
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
