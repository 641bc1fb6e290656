"""The Lab Streaming Layer in memory: the same behaviour, no sockets, and a clock that moves when it is told to.

A `MemoryTransport` is one machine on a network in memory. `MemoryTransport.machine` adds another one, whose clock may be
offset and drift, as the computer of an amplifier would: it publishes there, the engine listens here, and `offset_probe`
measures between the two.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.errors import StreamDescriptionError, StreamError, StreamNotFound
from rt_mmdf.lsl.description import check_header
from rt_mmdf.lsl.interface import REJOIN_S, ChannelDescription, Clock, ClockOffset, StreamDescription


class ManualClock:
    """A clock that stands still until it is moved; never backwards."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Move on, and return the new time."""
        return self.move_to(self._now + seconds)

    def move_to(self, time: float) -> float:
        """Move on to `time`, and return it."""
        if time < self._now:
            raise ValueError(f"clock: {time} is before {self._now}; time only goes forward")
        self._now = time
        return time


@dataclass
class SenderClock:
    """The clock of another machine, as a function of this one's: ``offset_s + t + drift_ppm 1e-6 (t - since)``.

    Both may be set while streams run; setting `drift_ppm` bends the line at the present instant, so that time stays
    continuous.
    """

    base: Clock
    offset_s: float = 0.0
    _drift_ppm: float = 0.0
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.base.now()

    @property
    def drift_ppm(self) -> float:
        return self._drift_ppm

    @drift_ppm.setter
    def drift_ppm(self, value: float) -> None:
        now = self.base.now()
        self.offset_s, self._since, self._drift_ppm = self.at(now) - now, now, value

    def at(self, time: float) -> float:
        """This clock's reading when the base reads `time`, seconds."""
        return time + self.offset_s + self._drift_ppm * 1e-6 * (time - self._since)

    def now(self) -> float:
        return self.at(self.base.now())


class _Network:
    """The outlets and inlets that see each other."""

    def __init__(self, seed: int, clock: Clock) -> None:
        self.clock = clock  # of the first machine: true time
        self.outlets: list[MemoryOutlet] = []
        self.inlets: list[MemoryInlet] = []
        self.rng = np.random.default_rng(seed)
        self.numbers = count(1)

    def find(self, description: StreamDescription) -> MemoryOutlet:
        for outlet in self.outlets:
            if outlet.description.uid == description.uid:
                return outlet
        raise StreamNotFound(
            f"stream {description.name!r} on {description.hostname!r}: it was on offer and is gone. Start the sending "
            "program again."
        )

    def successor(self, of: MemoryOutlet) -> MemoryOutlet:
        """`of` itself while it lives; after `REJOIN_S` the outlet that came back with its source id, as liblsl's recovery
        does.
        """
        if not of.closed or not of.description.source_id or self.clock.now() - of.closed_at < REJOIN_S:
            return of
        key = _identity(of.description)
        return next((outlet for outlet in self.outlets if _identity(outlet.description) == key), of)


class MemoryTransport:
    """One machine on a network in memory.

    Parameters
    ----------
    clock : Clock | None
        This machine's; a new `ManualClock` by default.
    uncertainty_s : float
        Half the round trip of every clock probe; the measurement is off by up to that much, uniformly.
    seed : int
        Of the measurement noise.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        hostname: str = "here",
        uncertainty_s: float = 0.0,
        seed: int = 0,
        _network: _Network | None = None,
    ) -> None:
        self.clock: Clock = clock if clock is not None else ManualClock()
        self.hostname = hostname
        self.uncertainty_s = uncertainty_s
        self._network = _network if _network is not None else _Network(seed, self.clock)

    def machine(self, hostname: str, *, offset_s: float = 0.0, drift_ppm: float = 0.0) -> MemoryTransport:
        """Another machine on the same network; its `clock` is a `SenderClock` on top of this one's."""
        clock = SenderClock(self.clock, offset_s)
        clock.drift_ppm = drift_ppm
        return MemoryTransport(clock, hostname=hostname, uncertainty_s=self.uncertainty_s, _network=self._network)

    def resolve(
        self, *, name: str | None = None, type: str | None = None, source_id: str | None = None, timeout_s: float = 2.0
    ) -> list[StreamDescription]:
        """Streams that fit all that is given, at once."""
        wanted = {"name": name, "type": type, "source_id": source_id}
        return sorted(
            (
                replace(d, channels=(ChannelDescription(""),) * d.n_channels, extra={})
                for d in (outlet.description for outlet in self._network.outlets)
                if all(value is None or getattr(d, key) == value for key, value in wanted.items())
            ),
            key=lambda d: (d.name, d.hostname, d.source_id, d.uid),
        )

    def outlet(self, description: StreamDescription, *, chunk_size: int = 0, buffer_s: float = 360.0) -> MemoryOutlet:
        if not description.channels:
            raise StreamDescriptionError(f"stream {description.name!r}: a stream has at least one channel, none was given")
        check_header(description.name, description.n_channels, description.sfreq)
        uid = f"memory-{next(self._network.numbers)}"
        return MemoryOutlet(self._network, replace(description, hostname=self.hostname, uid=uid), self.clock)

    def describe(self, description: StreamDescription) -> StreamDescription:
        """All that a resolved stream says of itself, channels included."""
        return self._network.find(description).description

    def inlet(
        self, description: StreamDescription, *, buffer_s: float = 360.0, from_now: bool = True, recover: bool = True
    ) -> MemoryInlet:
        return MemoryInlet(self._network, self._network.find(description), buffer_s, recover)

    def offset_probe(self, description: StreamDescription) -> MemoryOffsetProbe:
        return MemoryOffsetProbe(self._network, self._network.find(description), self)


class MemoryOutlet:
    """A published stream."""

    def __init__(self, network: _Network, description: StreamDescription, clock: Clock) -> None:
        self._network = network
        self.description = description
        self.clock = clock
        self.closed, self.closed_at = False, math.inf
        self._dtype = None if description.dtype == "string" else np.dtype(description.dtype)
        network.outlets.append(self)

    def push(self, data: NDArray[np.generic] | list[str], stamps: Float64 | float) -> None:
        """Publish samples: ``(n_times, n_channels)`` with one stamp each; for string streams a list of ``n_times *
        n_channels`` strings.
        """
        times = np.array(np.atleast_1d(stamps), dtype=np.float64)
        n_channels = self.description.n_channels
        samples: NDArray[np.generic]
        if self._dtype is None:
            texts = np.empty(len(data), object)
            texts[:] = list(data)
            fits = len(texts) == n_channels * len(times)
            samples = texts.reshape(-1, n_channels) if fits else texts
        else:
            samples = np.array(data, dtype=self._dtype)
            fits = samples.ndim == 2 and samples.shape[1] == n_channels and times.shape == (len(samples),)
        if not fits:
            raise ValueError(
                f"push: data of shape {samples.shape} and {times.size} stamps; (n_times, {n_channels}) and one stamp per "
                "sample are expected"
            )
        for inlet in self._network.inlets:
            if inlet.source is self:
                inlet.deliver(samples, times)

    def has_consumers(self) -> bool:
        return any(inlet.source is self for inlet in self._network.inlets)

    def wait_for_consumers(self, timeout_s: float) -> bool:
        """Whether there are consumers now: a manual clock never waits."""
        return self.has_consumers()

    def close(self) -> None:
        """Withdraw the stream; a second call does nothing."""
        if not self.closed:
            self.closed, self.closed_at = True, self._network.clock.now()
            self._network.outlets.remove(self)


class MemoryInlet:
    """A subscribed stream; the oldest samples are dropped in silence where the buffer is full, as liblsl does."""

    def __init__(self, network: _Network, outlet: MemoryOutlet, buffer_s: float, recover: bool = True) -> None:
        self._network = network
        self._outlet = outlet
        self._recover = recover
        self._description = outlet.description
        self._dtype = None if self._description.dtype == "string" else np.dtype(self._description.dtype)
        rate = self._description.sfreq or 100.0  # liblsl: hundreds of samples where the rate is irregular
        self._queue: deque[tuple[NDArray[np.generic], float]] = deque(maxlen=max(1, math.ceil(buffer_s * rate)))
        network.inlets.append(self)

    @property
    def source(self) -> MemoryOutlet:
        """The outlet that is heard now."""
        if self._recover:
            self._outlet = self._network.successor(self._outlet)
        return self._outlet

    @property
    def description(self) -> StreamDescription:
        return self._description

    def deliver(self, data: NDArray[np.generic], stamps: Float64) -> None:
        """Called by the outlet."""
        self._queue.extend(zip(data, stamps.tolist(), strict=True))

    def pull(self, timeout_s: float) -> tuple[NDArray[np.generic], Float64]:
        """All samples that are there now: a manual clock never waits."""
        taken = [self._queue.popleft() for _ in range(len(self._queue))]
        if not taken:
            if self._outlet.closed and not self._recover:
                raise StreamError(f"stream {self._description.name!r} on {self._description.hostname!r}: it is gone.")
            return np.empty((0, self._description.n_channels), self._dtype or object), np.empty(0)
        return np.stack([row for row, _ in taken]), np.array([stamp for _, stamp in taken])

    def close(self) -> None:
        """Unsubscribe; a second call does nothing."""
        if self in self._network.inlets:
            self._network.inlets.remove(self)


class MemoryOffsetProbe:
    """Measures the clock of an outlet's machine against the own one, off by up to the uncertainty; every call is a new
    measurement.
    """

    def __init__(self, network: _Network, outlet: MemoryOutlet, machine: MemoryTransport) -> None:
        self._network = network
        self._outlet = outlet
        self._machine = machine

    def measure(self, timeout_s: float) -> ClockOffset | None:
        """The offset now; None while the outlet is gone."""
        self._outlet = self._network.successor(self._outlet)
        if self._outlet.closed:
            return None
        at, uncertainty = self._outlet.clock.now(), self._machine.uncertainty_s
        noise = float(self._network.rng.uniform(-uncertainty, uncertainty))
        return ClockOffset(at=at, offset=self._machine.clock.now() - at + noise, uncertainty=uncertainty)

    def close(self) -> None:
        """Nothing to stop."""


def _identity(description: StreamDescription) -> tuple[object, ...]:
    d = description
    return (d.name, d.type, d.source_id, d.sfreq, d.dtype, d.n_channels)
