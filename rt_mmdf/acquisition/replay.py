"""Replay: a recording becomes LSL streams that behave like acquisition systems.

Each modality is a stream with its own sampling rate, block size, clock drift, lateness of delivery, stamping habit and
holes, and its own time stamps. Sample ``n`` of a stream is taken at ``t0 + n / (sfreq (1 + drift_ppm 1e-6))``; `t0` is
the same for all streams. A block is delivered when its last sample exists, never earlier. What a live session has recorded
is played at the times at which its samples were taken (`Recording.times`) instead of by the sampling rate.

What is due is decided by `Replay.advance`, which neither waits nor sleeps; `Replay.worker` is the thread that calls it in
time.

With `ReplaySettings.chaos` faults are injected on the way, see `rt_mmdf.acquisition.chaos`; without, nothing of it is there.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy.signal import firwin, resample_poly

from rt_mmdf.acquisition.chaos import ChaosPlan, ChaosSettings, Injected, Offer, StreamChaos, WireChannel, draw_plan
from rt_mmdf.acquisition.recording import Recording, reading
from rt_mmdf.acquisition.settings import StampHabit
from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError, RecordingError, StreamNotFound
from rt_mmdf.core.settings import Settings
from rt_mmdf.lsl.interface import ChannelDescription, Outlet, StreamDescription, Transport
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.runtime.worker import Worker

LEAD_S = 0.3
"""From the decision to start to the first sample: every stream's first block is announced before it is due."""
MAX_BLOCKS_AT_ONCE = 64
LONGEST_WAIT_S = 0.05
LINGER_S = 1.0
COUNTER_WRAP = 1 << 24
"""The counter channel counts modulo this, so that float32 carries it exactly (4.6 hours at 1 kHz)."""

_WIRE = {  # what real devices send: unit and the factor from SI
    "device": {"eeg": ("uV", 1e6), "mag": ("fT", 1e15), "grad": ("fT/cm", 1e13), "ref_meg": ("fT", 1e15)},
    "si": {"eeg": ("V", 1.0), "mag": ("T", 1.0), "grad": ("T/m", 1.0), "ref_meg": ("T", 1.0)},
}
_LIKE_EEG = {"eog", "ecg", "emg"}


class ReplayStreamSettings(Settings):
    """How one modality is sent.

    Parameters
    ----------
    sfreq : float | None
        Hz; resampled with anti-aliasing where the recording has another rate. None: as recorded.
    chunk : int
        Samples per block.
    jitter_ms : float
        Blocks arrive late by up to this much, uniformly; order and stamps stay.
    stamps : str
        ``per_sample``, or one stamp for the whole block: that of its first or last sample.
    gaps : tuple of (start_s, duration_s)
        Samples of these times after the start are not sent.
    drift_ppm : float
        The device samples faster by this much than it says.
    unit : str
        ``device``: uV, fT, fT/cm as devices send; ``si``: V, T, T/m.
    dtype : str
        On the wire. Integers round; use them with ``device``.
    """

    sfreq: float | None = Field(None, gt=0, le=1e5)
    chunk: int = Field(10, ge=1, le=100000)
    jitter_ms: float = Field(0.0, ge=0, le=10000)
    stamps: StampHabit = "per_sample"
    gaps: tuple[tuple[float, float], ...] = ()
    drift_ppm: float = Field(0.0, ge=-1e5, le=1e5)
    unit: Literal["device", "si"] = "device"
    dtype: Literal["float32", "float64", "int16", "int32"] = "float32"

    @field_validator("gaps")
    @classmethod
    def _positive(cls, gaps: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(start < 0 or duration <= 0 for start, duration in gaps):
            raise ValueError("each gap is (start_s >= 0, duration_s > 0)")
        return gaps


class ReplaySettings(Settings):
    """How a recording is replayed.

    Parameters
    ----------
    eeg, meg : ReplayStreamSettings
    modalities : tuple of Modality
        Which of the recording's modalities are sent.
    markers : bool
        Send events as a stream of text.
    prefix : str
        Streams are called ``<prefix>-EEG``, ``<prefix>-MEG``, ``<prefix>-markers``; their source ids follow from these
        names and the recording's name, so that they are the same in each run.
    names : dict of str to str
        Other names, by ``eeg``, ``meg``, ``markers``.
    speed : float
        1 is real time, N is N times faster, inf is as fast as possible. Stamps always advance in recording time, at the
        sampling rate: unless `speed` is 1 they run away from the clock.
    loop : float
        How often the recording is played, end to end; inf for ever. Counting and stamps go on over the seam.
    start_s, duration_s : float
        Part of the recording; None: to its end.
    wait_for_consumers_s : float | None
        Start when each sensor stream has a consumer; give up after so long. None: start at once.
    counter : bool
        Add a channel COUNTER (type misc) that holds the running number of each sample, modulo 2^24.
    log_pushes : bool
        Keep when each block was pushed.
    seed : int
        Of the jitter.
    chaos : ChaosSettings | None
        Faults that are injected at random, reproducibly.
    """

    eeg: ReplayStreamSettings = ReplayStreamSettings()
    meg: ReplayStreamSettings = ReplayStreamSettings()
    modalities: tuple[Modality, ...] = tuple(Modality)
    markers: bool = True
    prefix: str = Field("replay", min_length=1, max_length=100)
    names: dict[Literal["eeg", "meg", "markers"], str] = Field(default_factory=dict)
    speed: float = Field(1.0, gt=0)
    loop: float = Field(1.0, ge=1)
    start_s: float = Field(0.0, ge=0)
    duration_s: float | None = Field(None, gt=0)
    wait_for_consumers_s: float | None = Field(None, ge=0)
    counter: bool = False
    log_pushes: bool = False
    seed: int = 0
    chaos: ChaosSettings | None = None

    @field_validator("loop")
    @classmethod
    def _whole(cls, loop: float) -> float:
        if not (math.isinf(loop) or loop == int(loop)):
            raise ValueError("a whole number of times, or inf")
        return loop

    def name_of(self, stream: Literal["eeg", "meg", "markers"]) -> str:
        """Name of one of the streams."""
        return self.names.get(stream, f"{self.prefix}-{stream.upper() if stream != 'markers' else stream}")


@dataclass
class StreamLog:
    """What one stream has sent.

    stamp_0 : stamp that sample 0 has (with stamps per sample), sender's LSL clock; NaN before the start
    n_sent : samples pushed
    n_skipped : samples that fell into gaps
    gaps : first sample number and length of each hole
    worst_late_ms : the latest push behind its due time (jitter included in the due time)
    first, n_times, pushed : number of the first sample of each push, samples in it, and when (sender's LSL clock, just
    before the call); only
        with `log_pushes`
    """

    name: str
    source_id: str
    sfreq: float
    drift_ppm: float
    stamps: str
    n_per_loop: int
    stamp_0: float = math.nan
    n_sent: int = 0
    n_skipped: int = 0
    worst_late_ms: float = 0.0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    n_times: list[int] = field(default_factory=list)
    pushed: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class ReplayLog:
    """What a replay has sent, by modality, and how many markers.

    faults : what was injected, in order of time; None without chaos
    """

    recording: str
    streams: dict[Modality, StreamLog]
    n_markers: int
    chaos_seed: int | None = None
    faults: tuple[Injected, ...] | None = None

    def write(self, path: Path) -> None:
        """Write JSON to `path`, and where pushes were logged the arrays beside it (``.npz``: ``eeg_first, eeg_n_times,
        eeg_pushed, ...``).
        """
        arrays = ("first", "n_times", "pushed")
        streams = {
            str(modality): {key: value for key, value in vars(log).items() if key not in arrays}
            for modality, log in self.streams.items()
        }
        content: dict[str, Any] = {"recording": self.recording, "n_markers": self.n_markers, "streams": streams}
        if self.faults is not None:
            content["chaos"] = {"seed": self.chaos_seed, "faults": [injected.as_dict() for injected in self.faults]}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if any(log.first for log in self.streams.values()):
            columns = {
                f"{modality}_{key}": np.array(getattr(log, key)) for modality, log in self.streams.items() for key in arrays
            }
            np.savez(path.with_suffix(".npz"), **columns)  # type: ignore[arg-type]  # numpy: a keyword may be allow_pickle


class _SensorStream:
    """Samples of one modality in wire units, and when each block is due."""

    def __init__(
        self,
        transport: Transport,
        modality: Modality,
        recording: Recording,
        settings: ReplaySettings,
        sfreq: float,
        data: NDArray[np.generic],
        n_loop: int,
        times: Float64 | None,
        period_s: float,
        plan: ChaosPlan | None,
    ) -> None:
        own: ReplayStreamSettings = getattr(settings, modality)
        raw = recording.sensors[modality]
        self.settings = own
        self._data = data
        self._n_loop = n_loop
        self._times = times
        # bad stamps are sent as they are, but neither wait nor hurry
        self._exists = None if times is None else np.maximum.accumulate(np.nan_to_num(times, nan=0.0, posinf=0.0))
        self._period_s = period_s
        self._factor = 1 + own.drift_ppm * 1e-6
        self._n_total = math.inf if math.isinf(settings.loop) else n_loop * int(settings.loop)
        self._speed = settings.speed
        self.rate = sfreq * (1 + own.drift_ppm * 1e-6)
        self._rng = np.random.default_rng([settings.seed, list(Modality).index(modality)])
        self._counter = settings.counter
        self._gaps = _sample_gaps(own.gaps, self.rate)
        self._next = 0
        self._due = math.nan
        self.ends = math.nan
        name = settings.name_of(modality.value)
        description = _describe(raw, modality, own, settings, name, recording.name, sfreq, n_loop)
        self.log = StreamLog(name, description.source_id, sfreq, own.drift_ppm, own.stamps, n_loop)
        self._log_pushes = settings.log_pushes
        self._transport = transport
        self._description = description
        self.outlet: Outlet | None = transport.outlet(description)
        self.chaos: StreamChaos | None = None
        if plan is not None:
            kinds = zip(raw.ch_names, raw.get_channel_types(), strict=True)
            wire = [WireChannel(name, kind, _wire(kind, own.unit)[1]) for name, kind in kinds]
            self.chaos = StreamChaos(plan, modality, self.rate, wire, description.n_channels)
            self._offer: Offer | None = Offer()
            self._at_rate = {factor: _at_rate(data, factor) for factor in self.chaos.rate_factors}

    @property
    def finished(self) -> bool:
        return self._next >= self._n_total

    @property
    def heard(self) -> bool:
        """Whether the stream is on offer and has a consumer."""
        return self.outlet is not None and self.outlet.has_consumers()

    def start(self, t0: float) -> None:
        self._t0 = t0
        self._shown = -math.inf
        self.log.stamp_0 = t0
        self._set_due()

    @property
    def due(self) -> float:
        """When the next block is to be pushed, sender's clock; inf at the end."""
        return self._due

    def _stop(self) -> int:
        return int(min(self._next + self.settings.chunk, self._n_total))

    def _seconds(self, numbers: NDArray[np.int64], times: Float64 | None) -> Float64:
        """When samples are taken, after the first of all streams."""
        if times is None:
            return np.asarray(numbers / self.rate)
        lap, number = np.divmod(numbers, self._n_loop)
        return np.asarray((lap * self._period_s + times[number]) / self._factor)

    def _set_due(self) -> None:
        if self.finished:
            self._due = math.inf
            return
        self.ends = float(self._seconds(np.array([self._stop() - 1]), self._exists)[0])
        complete = self.ends
        if self.chaos is not None:
            complete = self.chaos.delivered_s(self.ends, self._next, self._stop())
        exists = self._t0 + complete / self._speed
        # order kept: a block that is late makes the next one wait
        self._due = max(exists + self._rng.uniform(0.0, self.settings.jitter_ms * 1e-3), self._shown)
        self._shown = self._due

    def push(self, clock: Callable[[], float]) -> None:
        """Push the next block, without what lies in gaps."""
        start, stop = self._next, self._stop()
        numbers = np.arange(start, stop)
        for first, last in self._gaps:
            numbers = numbers[(numbers < first) | (numbers >= last)]
        if skipped := stop - start - len(numbers):
            self._note_gap(start, stop, skipped)
        if self.chaos is not None:
            self._push_with_faults(self.chaos, numbers, clock)
        elif len(numbers):
            assert self.outlet is not None, "without faults it is always there"
            samples, stamps = self._samples(numbers)
            now = clock()
            self.outlet.push(samples, stamps)
            self._note_push(numbers, now)
        self._next = stop
        self._set_due()

    def _samples(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.generic], Float64]:
        """What these samples are on the wire, and their stamps."""
        samples = self._data[numbers % self._n_loop]
        if self._counter:
            samples[:, -1] = numbers % COUNTER_WRAP
        return samples, self._stamped(self._t0 + self._seconds(numbers, self._times))

    def _stamped(self, stamps: Float64) -> Float64:
        if self.settings.stamps != "per_sample" and len(stamps):
            stamps[:] = stamps[0] if self.settings.stamps == "first_of_block" else stamps[-1]
        return stamps

    def _push_with_faults(self, chaos: StreamChaos, numbers: NDArray[np.int64], clock: Callable[[], float]) -> None:
        first, length = self._next, len(numbers)
        numbers = chaos.sent(numbers)
        offer = chaos.offer_at(int(numbers[0]) if len(numbers) else first)
        self.log.n_skipped += length - len(numbers)
        if offer != self._offer:
            if self.outlet is not None:
                self.outlet.close()
            self.outlet = None if offer is None else self._transport.outlet(offer.describe(self._description))
            self._offer = offer
        if self.outlet is None or offer is None or not len(numbers):
            return
        if offer.rate_factor == 1:
            at: Float64 | NDArray[np.int64] = numbers
            samples, stamps = self._samples(numbers)
        else:  # sample k at the other rate is number k / factor
            low, high = (math.ceil(edge * offer.rate_factor) for edge in (int(numbers[0]), int(numbers[-1]) + 1))
            at = np.arange(low, high) / offer.rate_factor
            at = at[np.isin(np.floor(at), numbers)]
            data = self._at_rate[offer.rate_factor]
            samples = data[np.minimum(np.rint(at % self._n_loop * offer.rate_factor).astype(np.intp), len(data) - 1)]
            if self._counter:
                samples[:, -1] = np.floor(at) % COUNTER_WRAP
            stamps = self._stamped(self._t0 + at / self.rate)
        if not len(at):
            return
        chaos.spoil(at, samples)
        stamps = chaos.stamps(at, stamps)
        if offer.order is not None:
            samples = samples[:, list(offer.order)]
        now = clock()
        if self.outlet.has_consumers():
            chaos.note_heard(int(numbers[0]))
        for _ in range(1 + chaos.is_resent(numbers)):
            self.outlet.push(samples, stamps)
        self._note_push(numbers, now)

    def _note_push(self, numbers: NDArray[np.int64], now: float) -> None:
        if len(numbers):
            self.log.n_sent += len(numbers)
            self.log.worst_late_ms = max(self.log.worst_late_ms, (now - self._due) * 1e3)
            if self._log_pushes:
                self.log.first.append(int(numbers[0]))
                self.log.n_times.append(len(numbers))
                self.log.pushed.append(now)

    def _note_gap(self, start: int, stop: int, skipped: int) -> None:
        self.log.n_skipped += skipped
        for first, last in self._gaps:
            a, b = max(first, start), min(last, stop)
            if a >= b:
                continue
            if self.log.gaps and sum(self.log.gaps[-1]) == a:
                self.log.gaps[-1] = (self.log.gaps[-1][0], self.log.gaps[-1][1] + b - a)
            else:
                self.log.gaps.append((a, b - a))


class _MarkerStream:
    """Events on the time line of one sensor stream."""

    def __init__(
        self,
        transport: Transport,
        recording: Recording,
        settings: ReplaySettings,
        events: tuple[tuple[float, str], ...],
        period_s: float,
        rate_factor: float,
    ) -> None:
        name = settings.name_of("markers")
        self.outlet: Outlet = transport.outlet(
            StreamDescription(
                name,
                "Markers",
                _source_id(name, recording.name),
                0.0,
                "string",
                (ChannelDescription("marker", "Markers"),),
                {},
            )
        )
        self._events = events
        self._period_s = period_s
        self._factor = rate_factor
        self._speed = settings.speed
        self._loops = settings.loop
        self.n_sent = 0
        self.due = self.ends = math.inf

    @property
    def finished(self) -> bool:
        return not self._events or self.n_sent >= self._loops * len(self._events)

    def start(self, t0: float) -> None:
        self._t0 = t0
        self._set_due()

    def _time(self) -> float:
        lap, number = divmod(self.n_sent, len(self._events))
        return (lap * self._period_s + self._events[number][0]) / self._factor

    def _set_due(self) -> None:
        self.ends = math.inf if self.finished else self._time()
        self.due = self._t0 + self.ends / self._speed if math.isfinite(self.ends) else math.inf

    def push(self, clock: Callable[[], float]) -> None:
        self.outlet.push([self._events[self.n_sent % len(self._events)][1]], self._t0 + self._time())
        self.n_sent += 1
        self._set_due()


class Replay:
    """Streams of one recording; published once built, playing once advanced.

    Parameters
    ----------
    transport : Transport
        Its clock is the sender's clock.
    recording : Recording
    settings : ReplaySettings

    Raises
    ------
    RecordingError
        The part asked for is empty, cannot be read, or does not fit into memory.
    ConfigurationError
        The recording has none of the modalities asked for.

    Attributes
    ----------
    plan : ChaosPlan | None
        The faults that are injected.
    """

    def __init__(self, transport: Transport, recording: Recording, settings: ReplaySettings) -> None:
        self.settings = settings
        self.ended = Signal()
        """Rung by the worker when all was sent and consumers had `LINGER_S` to take it."""
        self._transport = transport
        self._recording = recording
        modalities = [m for m in Modality if m in settings.modalities and m in recording.sensors]
        if not modalities:
            raise ConfigurationError(
                f"replay of {recording.name}: it has {', '.join(recording.sensors)}; asked for "
                f"{', '.join(settings.modalities)}. Ask for a modality that it has."
            )
        length_s = recording.duration_s - settings.start_s
        if settings.duration_s is not None:
            length_s = min(length_s, settings.duration_s)
        rates = {m: getattr(settings, m).sfreq or float(recording.sensors[m].info["sfreq"]) for m in modalities}
        lengths = _loop_lengths(length_s, rates)
        if length_s <= 0 or min(lengths.values()) < 1:
            raise RecordingError(
                f"replay of {recording.name}: nothing lies between start_s {settings.start_s:g} and its end at "
                f"{recording.duration_s:g} s"
            )
        last = modalities[-1]  # the trigger line is recorded by the MEG system where there is one
        period_s = lengths[last] / rates[last]
        first = {m: round(settings.start_s * float(recording.sensors[m].info["sfreq"])) for m in modalities}
        times: dict[Modality, Float64] = {}
        if recording.times:
            period_s = length_s
            for m in modalities:
                first[m], times[m] = _times_of(recording, m, settings, length_s)
            lengths = {m: len(times[m]) for m in modalities}
        _check_memory(recording, settings, lengths)
        data = {m: _prepare(recording, m, settings, rates[m], lengths[m], first[m]) for m in modalities}
        self.plan = None if settings.chaos is None else draw_plan(settings.chaos)
        self._sensors = {
            m: _SensorStream(
                transport, m, recording, settings, rates[m], data[m], lengths[m], times.get(m), period_s, self.plan
            )
            for m in modalities
        }
        events = tuple(
            (time - settings.start_s, text) for time, text in recording.events if 0 <= time - settings.start_s < period_s
        )
        self._markers = (
            _MarkerStream(transport, recording, settings, events, period_s, 1 + getattr(settings, last).drift_ppm * 1e-6)
            if settings.markers
            else None
        )
        self._asked_at = transport.clock.now()
        self._started = False
        # when it is due, when its last sample was taken (which orders what is due at once), number of the stream
        self._queue: list[tuple[float, float, int]] = []

    @property
    def _streams(self) -> list[_SensorStream | _MarkerStream]:
        return [*self._sensors.values(), *([self._markers] if self._markers else [])]

    @property
    def started(self) -> bool:
        """Whether the first sample has its time."""
        return self._started

    @property
    def finished(self) -> bool:
        """Whether everything was sent."""
        return self._started and not self._queue

    @property
    def log(self) -> ReplayLog:
        """What was sent so far."""
        return ReplayLog(
            self._recording.name,
            {modality: stream.log for modality, stream in self._sensors.items()},
            self._markers.n_sent if self._markers else 0,
            None if self.plan is None else self.plan.seed,
            None if self.plan is None else self._injected(),
        )

    def _injected(self) -> tuple[Injected, ...]:
        placed = [injected for stream in self._sensors.values() if stream.chaos for injected in stream.chaos.injected]
        return tuple(sorted(placed, key=lambda injected: injected.fault))

    def advance(self) -> float:
        """Push what is due, at most 64 blocks; the time at which there is more to do (inf at the end), sender's clock.

        Raises
        ------
        StreamNotFound
            A stream has no consumer after `wait_for_consumers_s`.
        """
        now = self._transport.clock.now()
        if not self._started and not self._start(now):
            return now + 0.05
        for _ in range(MAX_BLOCKS_AT_ONCE):
            if not self._queue:
                return math.inf
            due, _, number = self._queue[0]
            if due > self._transport.clock.now():
                return due
            stream = self._streams[number]
            stream.push(self._transport.clock.now)
            if stream.finished:
                heapq.heappop(self._queue)
            else:
                heapq.heapreplace(self._queue, (stream.due, stream.ends, number))
        if not self._queue:
            return math.inf
        return self._queue[0][0]

    def _start(self, now: float) -> bool:
        limit = self.settings.wait_for_consumers_s
        if limit is not None:
            lonely = [stream.log.name for stream in self._sensors.values() if not stream.heard]
            if lonely and now - self._asked_at > limit:
                raise StreamNotFound(
                    f"replay of {self._recording.name}: nobody listens to {', '.join(lonely)} after {limit:g} s. "
                    "Start the consumer, or replay without waiting."
                )
            if lonely:
                return False
        t0 = now + LEAD_S
        for stream in self._streams:
            stream.start(t0)
        self._queue = [
            (stream.due, stream.ends, number) for number, stream in enumerate(self._streams) if not stream.finished
        ]
        heapq.heapify(self._queue)
        self._started = True
        return True

    def worker(self, on_failure: Callable[[], None] | None = None) -> Worker:
        """The thread that plays; not yet started. After the end it idles until it is stopped, so that consumers can take
        the rest.
        """
        over: float | None = None

        def step() -> None:
            nonlocal over
            due, now = self.advance(), self._transport.clock.now()
            if math.isinf(due):
                over = now if over is None else over
                if now >= over + LINGER_S:
                    self.ended.ring()
                due = now + LONGEST_WAIT_S
            if (wait := due - self._transport.clock.now()) > 0:
                # not Worker.pause: under faketime, which is how a second clock is made on one machine, a lock with a time
                # limit (sem_clockwait) never times out, and select does
                select.select([], [], [], min(wait, LONGEST_WAIT_S))

        return Worker("replay", step, on_failure)

    def close(self) -> None:
        """Withdraw the streams; after the worker was stopped."""
        for stream in self._streams:
            if stream.outlet is not None:
                stream.outlet.close()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _loop_lengths(length_s: float, rates: dict[Modality, float]) -> dict[Modality, int]:
    """Samples per loop of each stream: the longest that take the same time, so that modalities stay together over the
    seams.
    """
    whole = {m: math.floor(length_s * rate + 1e-6) for m, rate in rates.items()}
    if len(rates) == 1:
        return whole
    (a, rate_a), (b, rate_b) = rates.items()
    ratio = Fraction(rate_b / rate_a).limit_denominator(1000)
    periods = min(whole[a] // ratio.denominator, whole[b] // ratio.numerator)
    if periods < 1:  # shorter than one common period of the two rates: they meet nowhere but at the start
        return whole
    return {a: periods * ratio.denominator, b: periods * ratio.numerator}


def _times_of(recording: Recording, modality: Modality, settings: ReplaySettings, length_s: float) -> tuple[int, Float64]:
    """First sample that is played, and when each is taken, seconds after the start of what is played."""
    if getattr(settings, modality).sfreq is not None:
        raise ConfigurationError(
            f"replay of {recording.name}: {modality}.sfreq is given, but this recording is played at the times at which its "
            "samples were taken. Leave it out."
        )
    times = recording.times[modality]
    known = np.maximum.accumulate(np.nan_to_num(times, nan=-np.inf, posinf=-np.inf))
    half = 0.5 / float(recording.sensors[modality].info["sfreq"])  # to the nearest sample, as streams were cut
    first, stop = np.searchsorted(known, (settings.start_s - half, settings.start_s + length_s - half))
    if stop <= first:
        raise RecordingError(
            f"replay of {recording.name}: no {modality.upper()} sample lies between {settings.start_s:g} s and "
            f"{settings.start_s + length_s:g} s"
        )
    return int(first), times[first:stop] - settings.start_s


def _sample_gaps(gaps: tuple[tuple[float, float], ...], rate: float) -> list[tuple[int, int]]:
    """First and one-past-last sample numbers of each hole, in order, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, length in sorted(gaps):
        first, stop = math.ceil(start * rate), math.ceil((start + length) * rate)
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((first, stop))
    return merged


def _check_memory(recording: Recording, settings: ReplaySettings, lengths: dict[Modality, int]) -> None:
    need = sum(
        n * len(recording.sensors[m].ch_names) * np.dtype(getattr(settings, m).dtype).itemsize for m, n in lengths.items()
    )
    free = psutil.virtual_memory().available
    if need > 0.7 * free:
        raise RecordingError(
            f"replay of {recording.name}: {need / 2**30:.1f} GiB of samples, {free / 2**30:.1f} GiB of memory are free. "
            "Replay a part of it: set start_s and duration_s."
        )


def _prepare(
    recording: Recording, modality: Modality, settings: ReplaySettings, sfreq: float, n_loop: int, first: int
) -> NDArray[np.generic]:
    """Samples in wire units and type, ``(n_loop, n_channels)``, resampled where asked, with room for the counter."""
    raw = recording.sensors[modality]
    own: ReplayStreamSettings = getattr(settings, modality)
    dtype = np.dtype(own.dtype)
    n_channels = len(raw.ch_names)
    out = np.zeros((n_loop, n_channels + settings.counter), dtype)
    factors = np.array([_wire(kind, own.unit)[1] for kind in raw.get_channel_types()])
    source = float(raw.info["sfreq"])
    if source == sfreq:
        step = max(1, (1 << 24) // n_channels)
        for start in range(0, n_loop, step):
            stop = min(start + step, n_loop)
            block = reading(recording.name, partial(raw.get_data, start=first + start, stop=first + stop, verbose="error"))
            out[start:stop, :n_channels] = _cast(block.T * factors, dtype)
        return out
    ratio = Fraction(sfreq / source).limit_denominator(10000)  # off by less than 1e-8: 6 us in 10 minutes
    taps = _anti_alias(ratio)
    stop = min(raw.n_times, first + math.ceil(n_loop / sfreq * source) + 1)
    for start in range(0, n_channels, 32):
        picks = list(range(start, min(start + 32, n_channels)))
        block = reading(recording.name, partial(raw.get_data, picks=picks, start=first, stop=stop, verbose="error"))
        resampled = resample_poly(block, ratio.numerator, ratio.denominator, axis=1, window=taps, padtype="line")
        out[:, picks] = _cast(resampled[:, :n_loop].T * factors[picks], dtype)
    return out


def _at_rate(data: NDArray[np.generic], factor: float) -> NDArray[np.generic]:
    """A loop of samples on the wire at `factor` times its rate."""
    ratio = Fraction(factor).limit_denominator(10000)
    out = np.empty((max(1, math.floor(len(data) * factor)), data.shape[1]), data.dtype)
    for start in range(0, data.shape[1], 32):
        part = np.asarray(data[:, start : start + 32], np.float64)
        resampled = resample_poly(part, ratio.numerator, ratio.denominator, window=_anti_alias(ratio), padtype="line")
        out[:, start : start + 32] = _cast(resampled[: len(out)], data.dtype)
    return out


def _anti_alias(ratio: Fraction) -> Float64:
    """Low-pass for `resample_poly`: flat to 0.8 of the lower Nyquist frequency, -80 dB from it on (Kaiser)."""
    largest = max(ratio.numerator, ratio.denominator)
    half_length = 26 * largest
    return np.asarray(firwin(2 * half_length + 1, 0.9 / largest, window=("kaiser", 8.0)), dtype=np.float64)


def _cast(values: Float64, dtype: np.dtype[Any]) -> NDArray[np.generic]:
    if dtype.kind == "i":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def _wire(kind: str, unit: str) -> tuple[str, float]:
    """Unit string and factor from SI of one MNE channel type."""
    table = _WIRE[unit]
    return table.get("eeg" if kind in _LIKE_EEG else kind, ("none", 1.0))


def _describe(
    raw: Any,
    modality: Modality,
    own: ReplayStreamSettings,
    settings: ReplaySettings,
    name: str,
    recording: str,
    sfreq: float,
    n_loop: int,
) -> StreamDescription:
    channels = []
    for kind, ch in zip(raw.get_channel_types(), raw.info["chs"], strict=True):
        where = tuple(float(axis) for axis in ch["loc"][:3])
        known = all(map(math.isfinite, where)) and any(where)
        position = (where[0], where[1], where[2]) if known else None
        channels.append(
            ChannelDescription(ch["ch_name"], _WIRE_TYPE.get(kind, kind.upper()), _wire(kind, own.unit)[0], position)
        )
    if settings.counter:
        channels.append(ChannelDescription("COUNTER", "MISC", "none"))
    extra = {
        "acquisition/manufacturer": "rt-mmdf replay",
        "recording/name": recording,
        "recording/bads": json.dumps(list(raw.info["bads"]), ensure_ascii=False),
        "recording/samples_per_loop": str(n_loop),
        "replay/stamps": own.stamps,
    }
    return StreamDescription(name, modality.upper(), _source_id(name, recording), sfreq, own.dtype, tuple(channels), extra)


_WIRE_TYPE = {"mag": "MEGMAG", "grad": "MEGGRAD", "ref_meg": "MEGREF"}


def _source_id(name: str, recording: str) -> str:
    return f"rt-mmdf-replay-{hashlib.sha256(f'{name}/{recording}'.encode()).hexdigest()[:16]}"
