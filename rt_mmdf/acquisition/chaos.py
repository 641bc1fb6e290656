"""Chaos: faults of acquisition systems, drawn from a seed, and what each does to what a replay sends.

A `ChaosPlan` is a function of its settings alone: the same seed gives the same faults on every machine and for every
recording. `StreamChaos` carries out what a plan says of one stream: which samples are never sent, when blocks are delivered,
what becomes of values and stamps, and under which description the stream is on offer. It keeps book of the samples that each
fault has touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.settings import Settings
from rt_mmdf.lsl.interface import StreamDescription

HUM_HZ = 50.0
"""What an electrode that has come off picks up."""
RAIL_SI = {"eeg": 5e-3, "mag": 5e-10, "grad": 5e-8}
"""Where an amplifier ends: V, T, T/m."""
OPEN_SI = {"eeg": 2e-4, "mag": 1e-16, "grad": 1e-14}
"""What is read of a sensor that is not connected: hum of an electrode, next to nothing of a SQUID; V, T, T/m."""


class FaultKind(StrEnum):
    """What goes wrong with one stream.

    vanish : the outlet is withdrawn and comes back; meanwhile nothing is sent
    vanish_source : the same, and it comes back under another source id
    vanish_rate : it comes back at half or twice the sampling rate
    vanish_order : it comes back with its channels in another order
    stall : nothing is delivered for 0.2, 2 or 20 s, then everything at once
    silent : nothing is sent, and what was due is lost
    clock_step : stamps are 1 s ahead or behind, and right again at the end
    clock_drift : stamps drift by 500 ppm; what they are off at the end they stay off
    duplicate_stamps : every second sample carries the stamp of the one before
    resent : each block is sent twice, stamps included
    backward_stamps, nan_stamps, infinite_stamps : of a few samples
    nan_channels, flat_channels, saturated_channels, disconnected_channels : of some channels
    lost_channels : a fifth of all channels reads zero
    """

    VANISH = "vanish"
    VANISH_SOURCE = "vanish_source"
    VANISH_RATE = "vanish_rate"
    VANISH_ORDER = "vanish_order"
    STALL = "stall"
    SILENT = "silent"
    CLOCK_STEP = "clock_step"
    CLOCK_DRIFT = "clock_drift"
    DUPLICATE_STAMPS = "duplicate_stamps"
    RESENT = "resent"
    BACKWARD_STAMPS = "backward_stamps"
    NAN_STAMPS = "nan_stamps"
    INFINITE_STAMPS = "infinite_stamps"
    NAN_CHANNELS = "nan_channels"
    FLAT_CHANNELS = "flat_channels"
    SATURATED_CHANNELS = "saturated_channels"
    DISCONNECTED_CHANNELS = "disconnected_channels"
    LOST_CHANNELS = "lost_channels"


VANISHING = frozenset({FaultKind.VANISH, FaultKind.VANISH_SOURCE, FaultKind.VANISH_RATE, FaultKind.VANISH_ORDER})
NOT_SENT = VANISHING | {FaultKind.SILENT}
CLOCK_FAULTS = frozenset({FaultKind.CLOCK_STEP, FaultKind.CLOCK_DRIFT})
BAD_STAMPS = frozenset({
    FaultKind.DUPLICATE_STAMPS,
    FaultKind.BACKWARD_STAMPS,
    FaultKind.NAN_STAMPS,
    FaultKind.INFINITE_STAMPS,
})  # fmt: skip
BAD_CHANNELS = frozenset({
    FaultKind.NAN_CHANNELS,
    FaultKind.FLAT_CHANNELS,
    FaultKind.SATURATED_CHANNELS,
    FaultKind.DISCONNECTED_CHANNELS,
    FaultKind.LOST_CHANNELS,
})  # fmt: skip
DRAWN = tuple(FaultKind)

_DURATIONS_S: dict[FaultKind, tuple[float, float]] = {  # uniform between these
    **dict.fromkeys(VANISHING, (0.3, 3.0)),
    FaultKind.SILENT: (0.3, 4.0),
    FaultKind.CLOCK_STEP: (1.5, 4.0),
    FaultKind.CLOCK_DRIFT: (3.0, 6.0),
    FaultKind.DUPLICATE_STAMPS: (0.01, 0.5),
    FaultKind.RESENT: (0.05, 1.0),
    FaultKind.BACKWARD_STAMPS: (0.004, 0.1),
    FaultKind.NAN_STAMPS: (0.004, 0.5),
    FaultKind.INFINITE_STAMPS: (0.004, 0.5),
    **dict.fromkeys(BAD_CHANNELS, (2.0, 5.0)),
}
STALLS_S = (0.2, 2.0, 20.0)


class ChaosSettings(Settings):
    """Which faults are injected.

    Parameters
    ----------
    seed : int
        The faults follow from it and from the other settings, and from nothing else.
    seconds : float
        Faults begin and end within so many seconds of the replay, but for stalls of 20 s.
    quiet_s, recovery_s : float
        Without faults, at the begin and at the end of these seconds.
    every_s : float
        There are 1 to ``seconds / every_s`` faults.
    kinds : tuple of FaultKind
        Those that are drawn from. The first of a plan goes through them from seed to seed, the others are drawn at random.
    """

    seed: int = Field(ge=0)
    seconds: float = Field(20.0, gt=0, le=86400)
    quiet_s: float = Field(4.0, ge=0)
    recovery_s: float = Field(5.0, ge=0)
    every_s: float = Field(6.0, gt=0)
    kinds: tuple[FaultKind, ...] = DRAWN

    @field_validator("kinds")
    @classmethod
    def _some(cls, kinds: tuple[FaultKind, ...]) -> tuple[FaultKind, ...]:
        if not kinds:
            raise ValueError("at least one kind of fault is expected")
        return kinds


@dataclass(frozen=True, order=True)
class Fault:
    """One fault of one stream.

    start_s, duration_s : seconds after the first sample of the replay, in recording time
    size : seconds by which stamps step or go back, ppm of a drift, factor of a sampling rate; 0 for other kinds
    share : part of the modality's channels that it concerns, at least one; 0 for faults of the whole stream
    salt : which channels, and which sign each has
    """

    start_s: float
    kind: FaultKind
    modality: Modality
    duration_s: float
    size: float = 0.0
    share: float = 0.0
    salt: int = 0

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s

    def __str__(self) -> str:
        what = {
            FaultKind.CLOCK_STEP: f" of {self.size:+g} s",
            FaultKind.CLOCK_DRIFT: f" of {self.size:+g} ppm",
            FaultKind.BACKWARD_STAMPS: f" by {1e3 * self.size:.0f} ms",
            FaultKind.VANISH_RATE: f" times {self.size:g}",
        }.get(self.kind, f" ({self.share:.1%})" if self.share else "")
        return f"{self.start_s:6.2f} s to {self.end_s:6.2f} s  {self.modality.upper()}  {self.kind}{what}"


@dataclass(frozen=True)
class ChaosPlan:
    """The faults of one replay, in order of time."""

    seed: int
    faults: tuple[Fault, ...]

    def of(self, modality: Modality) -> tuple[Fault, ...]:
        """Those of one stream."""
        return tuple(fault for fault in self.faults if fault.modality is modality)

    @property
    def end_s(self) -> float:
        """When the last fault is over, seconds after the first sample."""
        return max(fault.end_s for fault in self.faults)


def draw_plan(settings: ChaosSettings) -> ChaosPlan:
    """Faults of a seed: a function of the settings alone."""
    rng = np.random.default_rng([0xC4A05, settings.seed])
    most = max(1, round(settings.seconds / settings.every_s))
    faults = []
    for number in range(int(rng.integers(1, most + 1))):
        drawn = settings.seed if number == 0 else int(rng.integers(len(settings.kinds)))
        kind = settings.kinds[drawn % len(settings.kinds)]
        if kind is FaultKind.STALL:
            duration = STALLS_S[int(rng.integers(len(STALLS_S)))]
        else:
            duration = float(rng.uniform(*_DURATIONS_S[kind]))
        within = duration if duration <= STALLS_S[1] or kind is not FaultKind.STALL else 0.0
        latest = max(settings.quiet_s, settings.seconds - settings.recovery_s - within)
        sign, third = rng.choice([-1.0, 1.0]), float(rng.uniform())
        size = {
            FaultKind.CLOCK_STEP: sign,
            FaultKind.CLOCK_DRIFT: 500.0 * sign,
            FaultKind.BACKWARD_STAMPS: 0.01 + 0.2 * third,
            FaultKind.VANISH_RATE: 2.0**sign,
        }.get(kind, 0.0)
        share = 0.2 if kind is FaultKind.LOST_CHANNELS else 0.005 + 0.045 * third if kind in BAD_CHANNELS else 0.0
        modality = list(Modality)[int(rng.integers(len(Modality)))]
        start = float(rng.uniform(settings.quiet_s, latest))
        faults.append(Fault(start, kind, modality, duration, float(size), share, int(rng.integers(2**31))))
    return ChaosPlan(settings.seed, tuple(sorted(faults)))


@dataclass
class Injected:
    """A fault that is being injected, and what it has touched so far.

    first, stop : from the first to one past the last sample that was not sent, late, or not as recorded; by running number,
        None where there was none so far
    channels : names of those that it concerns; empty for faults of the whole stream
    heard_from : number of the first sample that a consumer could get after the outlet came back
    """

    fault: Fault
    channels: tuple[str, ...] = ()
    first: int | None = None
    stop: int | None = None
    heard_from: int | None = None
    rows: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp), repr=False)

    def touch(self, first: int, stop: int) -> None:
        self.first = first if self.first is None else min(self.first, first)
        self.stop = stop if self.stop is None else max(self.stop, stop)

    def as_dict(self) -> dict[str, Any]:
        """For the log of a replay."""
        fault = self.fault
        told: dict[str, Any] = {
            "kind": str(fault.kind),
            "stream": str(fault.modality),
            "start_s": fault.start_s,
            "duration_s": fault.duration_s,
            "size": fault.size,
            "channels": list(self.channels),
            "first": self.first,
            "stop": self.stop,
        }
        return told | ({"heard_from": self.heard_from} if fault.kind in VANISHING else {})


@dataclass(frozen=True)
class WireChannel:
    """One channel as it is sent.

    kind : mne's channel type
    factor : from SI to the unit on the wire
    """

    name: str
    kind: str
    factor: float


@dataclass(frozen=True)
class Offer:
    """How a stream is on offer: its source id's suffix, its channels' order, its rate's factor; None, None, 1 as it was."""

    source: str = ""
    order: tuple[int, ...] | None = None
    rate_factor: float = 1.0

    def describe(self, description: StreamDescription) -> StreamDescription:
        channels = description.channels
        if self.order is not None:
            channels = tuple(channels[k] for k in self.order)
        return replace(
            description,
            source_id=description.source_id + self.source,
            channels=channels,
            sfreq=description.sfreq * self.rate_factor,
        )


class StreamChaos:
    """What a plan does to one stream. Samples are numbered from 0 by the stream's own sampling clock, loops counted on.

    Parameters
    ----------
    plan : ChaosPlan
    modality : Modality
    rate : float
        Hz, by which numbers and seconds belong together.
    channels : sequence of WireChannel
        Of the stream, in order.
    n_wire : int
        Channels on the wire: a counter may follow those.
    """

    def __init__(
        self, plan: ChaosPlan, modality: Modality, rate: float, channels: Sequence[WireChannel], n_wire: int
    ) -> None:
        self._rate = rate
        self._channels = tuple(channels)
        self._held: dict[int, NDArray[np.generic]] = {}  # what flat channels are stuck at, by the fault's place
        own = ("eeg",) if modality is Modality.EEG else ("mag", "grad")
        sensors = [k for k, channel in enumerate(channels) if channel.kind in own]
        self.injected: list[Injected] = []
        for fault in plan.of(modality):
            rows = np.empty(0, np.intp)
            if fault.kind in BAD_CHANNELS:
                n = max(1, round(fault.share * len(sensors)))
                order = np.random.default_rng([fault.salt, 0]).permutation(len(sensors))
                rows = np.array(sorted(sensors[k] for k in order[:n]), np.intp)
            self.injected.append(Injected(fault, tuple(channels[int(k)].name for k in rows), rows=rows))
        self._orders = {
            fault.salt: tuple(np.random.default_rng([fault.salt, 1]).permutation(len(channels)).tolist())
            + tuple(range(len(channels), n_wire))
            for fault in plan.of(modality)
            if fault.kind is FaultKind.VANISH_ORDER
        }

    def _range(self, fault: Fault) -> tuple[int, int]:
        first = math.ceil(fault.start_s * self._rate)
        return first, max(first + 1, math.ceil(fault.end_s * self._rate))

    @property
    def rate_factors(self) -> set[float]:
        """By which the stream's rate is ever multiplied."""
        return {placed.fault.size for placed in self.injected if placed.fault.kind is FaultKind.VANISH_RATE}

    def offer_at(self, number: int) -> Offer | None:
        """How the stream is on offer when this sample is due; None while it is withdrawn."""
        offer = Offer()
        for placed in self.injected:
            fault = placed.fault
            if fault.kind not in VANISHING:
                continue
            first, stop = self._range(fault)
            if first <= number < stop:
                return None
            if number >= stop:
                if fault.kind is FaultKind.VANISH_SOURCE:
                    offer = replace(offer, source=f"-{fault.salt:08x}")
                elif fault.kind is FaultKind.VANISH_ORDER:
                    offer = replace(offer, order=self._orders[fault.salt])
                elif fault.kind is FaultKind.VANISH_RATE:
                    offer = replace(offer, rate_factor=fault.size)
        return offer

    def note_heard(self, number: int) -> None:
        """A consumer listens when this sample is sent."""
        for placed in self.injected:
            if placed.fault.kind in VANISHING and placed.heard_from is None and number >= self._range(placed.fault)[1]:
                placed.heard_from = number

    def sent(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these samples, those that are sent at all."""
        for placed in self.injected:
            if placed.fault.kind in NOT_SENT:
                first, stop = self._range(placed.fault)
                lost = (numbers >= first) & (numbers < stop)
                if lost.any():
                    placed.touch(int(numbers[lost][0]), int(numbers[lost][-1]) + 1)
                    numbers = numbers[~lost]
        return numbers

    def delivered_s(self, exists_s: float, first: int, stop: int) -> float:
        """When a block of samples ``first`` to ``stop - 1``, complete at `exists_s`, is delivered; seconds."""
        delivered = exists_s
        for placed in self.injected:  # in order: one stall may end in the next
            fault = placed.fault
            if fault.kind is FaultKind.STALL and fault.start_s <= delivered < fault.end_s:
                placed.touch(first, stop)
                delivered = fault.end_s
        return delivered

    def is_resent(self, numbers: NDArray[np.int64]) -> bool:
        """Whether the block is sent a second time."""
        twice = False
        for placed in self.injected:
            first, stop = self._range(placed.fault)
            if placed.fault.kind is FaultKind.RESENT and len(numbers) and first <= numbers[0] < stop:
                placed.touch(int(numbers[0]), int(numbers[-1]) + 1)
                twice = True
        return twice

    def clock_error_s(self, seconds: Float64 | float, kinds: frozenset[FaultKind] = CLOCK_FAULTS) -> Float64:
        """What the sender's clock is ahead of what it should be because of faults of these kinds, at these seconds."""
        error = np.zeros(np.shape(seconds))
        for placed in self.injected:
            fault = placed.fault
            if fault.kind not in kinds:
                continue
            if fault.kind is FaultKind.CLOCK_STEP:
                error += fault.size * ((seconds >= fault.start_s) & (seconds < fault.end_s))
            elif fault.kind is FaultKind.CLOCK_DRIFT:
                error += fault.size * 1e-6 * np.clip(seconds - fault.start_s, 0.0, fault.duration_s)
        return error

    def stamps(self, numbers: Float64 | NDArray[np.int64], stamps: Float64) -> Float64:
        """What becomes of the stamps of these samples."""
        seconds = numbers / self._rate
        stamps = stamps + self.clock_error_s(seconds)
        for placed in self.injected:
            fault = placed.fault
            if fault.kind not in BAD_STAMPS | CLOCK_FAULTS:
                continue
            first, stop = self._range(fault)
            inside = (numbers >= first) & (numbers < stop)
            if not inside.any():
                continue
            placed.touch(int(numbers[inside][0]), math.floor(numbers[inside][-1]) + 1)
            if fault.kind is FaultKind.DUPLICATE_STAMPS:
                second = np.flatnonzero(inside & ((np.arange(len(numbers)) % 2) == 1))
                stamps[second] = stamps[second - 1]
            elif fault.kind is FaultKind.BACKWARD_STAMPS:
                stamps[inside] -= fault.size
            elif fault.kind is FaultKind.NAN_STAMPS:
                stamps[inside] = np.nan
            elif fault.kind is FaultKind.INFINITE_STAMPS:
                stamps[inside] = np.inf * (-1) ** (fault.salt % 2)
        return stamps

    def spoil(self, numbers: Float64 | NDArray[np.int64], samples: NDArray[np.generic]) -> None:
        """Do to ``(n_times, n_channels)`` samples of the wire, in place, what happens to their channels."""
        for place, placed in enumerate(self.injected):
            fault = placed.fault
            if fault.kind not in BAD_CHANNELS:
                continue
            first, stop = self._range(fault)
            times = np.flatnonzero((numbers >= first) & (numbers < stop))
            if not len(times):
                continue
            placed.touch(int(numbers[times[0]]), math.floor(numbers[times[-1]]) + 1)
            at = np.ix_(times, placed.rows)
            if place not in self._held:
                self._held[place] = samples[times[0], placed.rows].copy()
            samples[at] = self._values(placed, np.asarray(numbers[times], np.float64), place, samples.dtype)

    def _values(self, placed: Injected, numbers: Float64, place: int, dtype: np.dtype[Any]) -> NDArray[np.generic]:
        """What the channels of a fault read, ``(n_times, n_rows)``, on the wire."""
        fault, shape = placed.fault, (len(numbers), len(placed.rows))
        whole = dtype.kind == "i"
        if fault.kind is FaultKind.FLAT_CHANNELS:
            return np.broadcast_to(self._held[place], shape)
        if fault.kind is FaultKind.LOST_CHANNELS:
            return np.zeros(shape, dtype)
        if fault.kind is FaultKind.NAN_CHANNELS:  # whole numbers have none: devices send the lowest one
            return np.full(shape, np.iinfo(dtype).min if whole else np.nan, dtype)
        own = [self._channels[k] for k in placed.rows]
        table = RAIL_SI if fault.kind is FaultKind.SATURATED_CHANNELS else OPEN_SI
        level = np.array([table[channel.kind] * channel.factor for channel in own])
        signs = np.random.default_rng([fault.salt, 2]).choice([-1.0, 1.0], len(own))
        wave = np.ones((len(numbers), 1))
        if fault.kind is FaultKind.DISCONNECTED_CHANNELS:
            wave = np.sin(2 * np.pi * HUM_HZ / self._rate * numbers[:, None] + signs)
        values = wave * level * signs
        if whole:
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return np.asarray(values.astype(dtype))
