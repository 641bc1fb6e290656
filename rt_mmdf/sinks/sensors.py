"""Cleaned sensors as an LSL stream, at a rate that displays need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType

import numpy as np

import rt_mmdf
from rt_mmdf.core.blocks import MISSING, SensorBlock
from rt_mmdf.core.channels import Channels
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription, Transport
from rt_mmdf.sinks.reduction import Reducer
from rt_mmdf.sinks.settings import Reduction, SensorStreamSettings
from rt_mmdf.sinks.subscribers import buffer_seconds


class SensorOutlet:
    """The stream ``NAME-sensors``: what the solver gets, before the whitener.

    float32, type ``Sensors``, one channel a sensor: names as in the head model, types ``eeg``, ``mag`` and ``grad``, units
    ``V``, ``T`` and ``T/m``, positions where they are known (metres). Stamps are sensor times on the engine's LSL clock, as
    those of the estimates. A modality that is missing, or was at any of the samples that a published one stands for, is
    NaN there. Bad channels are published as they are; which they are is told by ``bad_channels`` of the health stream.

    Leaves of the description: ``sensors/sfreq_before_reduction``, ``sensors/decimation``, ``sensors/reduction``
    (``none``, ``latest`` or ``peak``), ``sensors/missing`` (``NaN``), ``filter/delay_ms``, ``filter/delay_is_in_stamps``
    (``no``), ``engine/name``, ``engine/version``, and those that are given as `more`.

    Parameters
    ----------
    transport : Transport
    name : str
        Of the stream, and its source id.
    channels : Channels
        Of the blocks that will come.
    sfreq : float
        Of the blocks, Hz.
    filter_delay_ms : float
        By how much the filters delay what the sensors show.
    settings : SensorStreamSettings
    more : mapping of str to str
        Further leaves of the description, by path.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        channels: Channels,
        sfreq: float,
        filter_delay_ms: float,
        settings: SensorStreamSettings,
        more: Mapping[str, str] | None = None,
    ) -> None:
        n = decimation_of(settings, sfreq)
        self._rows = {np.uint32(MISSING[m]): channels.of_modality(m) for m in channels.modalities}
        self._reducer = Reducer(len(channels), n, Reduction(settings.reduction))
        positions = channels.positions if channels.positions is not None else np.full((len(channels), 3), np.nan)
        described = tuple(
            ChannelDescription(own, kind.value, kind.si_unit, (x, y, z) if math.isfinite(x + y + z) else None)
            for own, kind, (x, y, z) in zip(channels.names, channels.types, positions.tolist(), strict=True)
        )
        extra = {
            "engine/name": "rt_mmdf",
            "engine/version": rt_mmdf.__version__,
            "sensors/sfreq_before_reduction": f"{sfreq:.10g}",
            "sensors/decimation": str(n),
            "sensors/reduction": settings.reduction if n > 1 else "none",
            "sensors/missing": "NaN",
            "filter/delay_ms": f"{filter_delay_ms:.6g}",
            "filter/delay_is_in_stamps": "no",
            **(more or {}),
        }
        self.stream = StreamDescription(name, "Sensors", name, sfreq / n, "float32", described, extra)
        self._outlet = transport.outlet(self.stream, buffer_s=buffer_seconds(self.stream))

    def publish(self, block: SensorBlock) -> None:
        """Publish what a block completes; blocks in order, what is left out shows as NaN at the most."""
        rows = self._reducer(block)
        if not len(rows.times):
            return
        data = rows.data
        lacking = {bit: (rows.flags & bit) != 0 for bit in self._rows}
        if any(here.any() for here in lacking.values()):
            data = data.copy()
            for bit, here in lacking.items():
                data[np.ix_(here, self._rows[bit])] = np.nan
        self._outlet.push(data, rows.times)

    def close(self) -> None:
        self._outlet.close()

    def __enter__(self) -> SensorOutlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def decimation_of(settings: SensorStreamSettings, sfreq: float) -> int:
    """One published sample for so many of `sfreq` Hz."""
    return max(1, math.ceil(sfreq / settings.max_hz - 1e-6))
