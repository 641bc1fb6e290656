"""What the rest of the package asks of the Lab Streaming Layer, so that memory can stand in for the network.

Two forms exist: :mod:`rt_mmdf.lsl.network` (liblsl through ``mne_lsl.lsl``) and :mod:`rt_mmdf.lsl.memory` (same process,
manual clock). Both are a `Transport`; nothing else in the package imports ``mne_lsl``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float64

REJOIN_S = 1.0
"""After an outlet has vanished an inlet goes on with its successor (same name and source id) no sooner than this: so long
liblsl asks the network. With 1.17.7 it took 1.75 s where it came at all."""


@dataclass(frozen=True)
class ChannelDescription:
    """One channel as its stream describes it: raw strings from the wire, bounded in length, otherwise untouched."""

    name: str
    type: str = ""
    unit: str = ""
    position: tuple[float, float, float] | None = None  # metres


@dataclass(frozen=True)
class StreamDescription:
    """One stream.

    Parameters
    ----------
    name, type, source_id, hostname : str
        As on the wire.
    sfreq : float
        Nominal sampling rate in Hz; 0 for irregular streams (markers, health).
    dtype : str
        ``"float32"``, ``"float64"``, ``"int16"``, ``"int32"``, ``"int64"`` or ``"string"``.
    channels : tuple of ChannelDescription
        Empty names are numbered by whoever reads them.
    extra : dict of str to str
        Further leaves of the description, by path (``"filter/delay_ms"``), values as text.
    uid : str
        Unique for each outlet that ever lived; empty before an outlet exists.
    """

    name: str
    type: str
    source_id: str
    sfreq: float
    dtype: str
    channels: tuple[ChannelDescription, ...]
    extra: dict[str, str]
    hostname: str = ""
    uid: str = ""

    @property
    def n_channels(self) -> int:
        return len(self.channels)


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """One measurement of a sender's clock: add `offset` to its stamps to get this machine's LSL time.

    at : when it was measured, on the SENDER's clock, seconds
    offset : seconds
    uncertainty : half the round trip of the probe, seconds
    """

    at: float
    offset: float
    uncertainty: float


class Clock(Protocol):
    """This machine's LSL clock."""

    def now(self) -> float:
        """Seconds."""
        ...


class Outlet(Protocol):
    """A published stream."""

    def push(self, data: NDArray[np.generic] | list[str], stamps: Float64 | float) -> None:
        """Publish samples: ``(n_times, n_channels)`` with one stamp each (a list of strings for string streams)."""
        ...

    def has_consumers(self) -> bool: ...

    def wait_for_consumers(self, timeout_s: float) -> bool: ...

    def close(self) -> None: ...


class Inlet(Protocol):
    """A subscribed stream."""

    @property
    def description(self) -> StreamDescription:
        """The full description, channels included."""
        ...

    def pull(self, timeout_s: float) -> tuple[NDArray[np.generic], Float64]:
        """Wait up to `timeout_s` for a first sample, then take all there are.

        Returns ``(n_times, n_channels)`` data and ``(n_times,)`` raw stamps of the sender; both empty after the time limit.
        The arrays are the caller's own. String streams give an object array.
        """
        ...

    def close(self) -> None: ...


class OffsetProbe(Protocol):
    """Measures a sender's clock, beside its data inlet."""

    def measure(self, timeout_s: float) -> ClockOffset | None:
        """The newest measurement, or None when there is none within the time limit."""
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    """The Lab Streaming Layer, or what stands in for it."""

    @property
    def clock(self) -> Clock: ...

    def resolve(
        self, *, name: str | None = None, type: str | None = None, source_id: str | None = None, timeout_s: float = 2.0
    ) -> list[StreamDescription]:
        """Streams that fit all that is given, without their channels' details (those come with the inlet)."""
        ...

    def describe(self, description: StreamDescription) -> StreamDescription:
        """All that a resolved stream says of itself, channels included, without subscribing to it."""
        ...

    def outlet(self, description: StreamDescription, *, chunk_size: int = 0, buffer_s: float = 360.0) -> Outlet: ...

    def inlet(
        self, description: StreamDescription, *, buffer_s: float = 360.0, from_now: bool = True, recover: bool = True
    ) -> Inlet:
        """Subscribe to a resolved stream.

        from_now : samples that are pushed after this has returned will come; without, the first of them may be missed, and
            on a network it returns half a second earlier
        recover : go on with an outlet that takes its place (same name, type, source id, number of channels and format),
            wherever that is, without a word; without, `pull` raises StreamError when the outlet is gone
        """
        ...

    def offset_probe(self, description: StreamDescription) -> OffsetProbe: ...
