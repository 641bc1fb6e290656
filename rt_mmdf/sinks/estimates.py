"""Source estimates as LSL streams that a stranger's program can use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

import rt_mmdf
from rt_mmdf.core.blocks import Flag, Float32, Float64, SourceEstimate, StageStamps
from rt_mmdf.lsl.interface import ChannelDescription, Outlet, StreamDescription, Transport
from rt_mmdf.sinks.reduction import Reducer, Rows
from rt_mmdf.sinks.settings import EstimateStreamSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.sinks.subscribers import buffer_seconds

COMPANION_COLUMNS = ("hop", "index", "flags", *StageStamps.NAMES)
SUMMARY_COLUMNS = ("source", "value", "x", "y", "z")


@dataclass(frozen=True)
class EstimateDescription:
    """What the numbers of an estimate are.

    solver : name, for example ``dSPM``
    unit : ``"A m"``, or ``""`` for standardised maps
    orientation : of the sources, for example ``fixed, normal to cortex``
    sfreq : rate of the estimates before any reduction, Hz
    filter_delay_ms : by how much the filters delay what an estimate images; its stamp is the sensor time without this delay
    more : further leaves of the description, by path: what the engine says of itself (``engine/session``, ``engine/hop_ms``,
        ``engine/budget_ms``, ``engine/device_lag``: the devices' own lags, in words) and which other streams it publishes or
        hears (``streams/health``, ``streams/sensors``,
        ``streams/second``, ``streams/averages/EVENT``, ``streams/marks``; those that it does not publish are left out)
    """

    solver: str
    unit: str
    orientation: str
    sfreq: float
    filter_delay_ms: float
    more: Mapping[str, str] = field(default_factory=dict)


class EstimateOutlets:
    """Three streams: the estimate, its companion, and a summary of the strongest sources.

    ``NAME``
        float32, one channel a source, called ``lh-1234`` (hemisphere and vertex number), with its unit and position.
        An INVALID estimate is NaN, never zero and never the one before.
    ``NAME-companion``
        float64, one sample for each of the estimate, with the same time stamp: `COMPANION_COLUMNS` (index on the grid of
        the estimates; flags as in `rt_mmdf.core.blocks.Flag`; stamps in seconds on the engine's LSL clock).
    ``NAME-strongest``
        float32, at most one sample a hop, for the last published sample of it: `SUMMARY_COLUMNS` for each of the K
        strongest sources at least so far apart, strongest first; positions in millimetres; NaN where there is none.

    Parameters
    ----------
    transport : Transport
    name : str
        Of the streams; also the beginning of their source ids.
    sources : SourceSpaceDescription
    description : EstimateDescription
    settings : EstimateStreamSettings
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        sources: SourceSpaceDescription,
        description: EstimateDescription,
        settings: EstimateStreamSettings,
    ) -> None:
        self._clock = transport.clock
        self._reducer = Reducer(sources.n_sources, settings.decimation, settings.reduction)
        self._settings = settings
        self._positions = np.ascontiguousarray(sources.positions_mm, dtype=np.float64)
        self.streams = describe_streams(name, sources, description, settings)
        self._open = ExitStack()
        try:
            self._estimate, self._companion, self._strongest = (self._publish(transport, stream) for stream in self.streams)
        except BaseException:
            self._open.close()
            raise

    def _publish(self, transport: Transport, stream: StreamDescription) -> Outlet:
        outlet = transport.outlet(stream, buffer_s=buffer_seconds(stream))
        self._open.callback(outlet.close)
        return outlet

    def publish(self, estimate: SourceEstimate) -> StageStamps:
        """Publish one hop; returns its stamps, complete.

        `published` is the moment at which the estimate had been handed to its outlet.
        """
        rows = self._reducer(estimate)
        if len(rows.times):
            self._estimate.push(rows.data, rows.times)
        stamps = replace(estimate.stamps, published=self._clock.now())
        if len(rows.times):
            self._companion.push(companion_rows(estimate, rows, stamps), rows.times)
            self._strongest.push(self._summary(rows.data[-1], int(rows.flags[-1])), rows.times[-1:])
        return stamps

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> EstimateOutlets:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _summary(self, values: Float32, flags: int) -> Float32:
        n = self._settings.n_strongest
        summary = np.full((n, len(SUMMARY_COLUMNS)), np.nan, dtype=np.float32)
        if not flags & Flag.INVALID:
            found = strongest(values, self._positions, n, self._settings.apart_mm)
            summary[: len(found), 0] = found
            summary[: len(found), 1] = values[found]
            summary[: len(found), 2:] = self._positions[found]
        return summary.reshape(1, -1)


def companion_rows(estimate: SourceEstimate, rows: Rows, stamps: StageStamps) -> Float64:
    """``(n_rows, n_columns)``: the `COMPANION_COLUMNS` of what a hop gave."""
    companion = np.empty((len(rows.times), len(COMPANION_COLUMNS)))
    companion[:, 0] = estimate.hop
    companion[:, 1] = rows.index
    companion[:, 2] = rows.flags
    companion[:, 3:] = stamps.as_tuple()
    return companion


def strongest(values: Float32, positions_mm: Float64, n: int, apart_mm: float) -> NDArray[np.intp]:
    """At most `n` sources of largest magnitude, strongest first, no two of them nearer to each other than `apart_mm`."""
    magnitude = np.abs(values)
    squared = np.einsum("ij,ij->i", positions_mm, positions_mm)
    found: list[int] = []
    while len(found) < n:
        best = int(np.argmax(magnitude))
        if magnitude[best] < 0:
            break
        found.append(best)
        apart = squared + squared[best] - 2 * (positions_mm @ positions_mm[best])
        magnitude[apart < apart_mm**2] = -1
        magnitude[best] = -1
    return np.array(found, dtype=np.intp)


def describe_streams(
    name: str, sources: SourceSpaceDescription, description: EstimateDescription, settings: EstimateStreamSettings
) -> tuple[StreamDescription, StreamDescription, StreamDescription]:
    """Descriptions of the estimate stream, its companion and the summary."""
    common = {
        **describe_engine(sources, description),
        "estimate/sfreq_before_reduction": f"{description.sfreq:.10g}",
        "estimate/decimation": str(settings.decimation),
        "estimate/reduction": settings.reduction.value if settings.decimation > 1 else "none",
        "streams/companion": f"{name}-companion",
        "streams/strongest": f"{name}-strongest",
        **description.more,
    }
    channels = describe_sources(sources, description.unit)
    rate = description.sfreq / settings.decimation
    stamp_units = {"hop": "", "index": "", "flags": ""}
    companion = tuple(ChannelDescription(c, "companion", stamp_units.get(c, "s")) for c in COMPANION_COLUMNS)
    units = {"source": "", "value": description.unit}
    summary = tuple(
        ChannelDescription(f"{column}-{rank}", "summary", units.get(column, "mm"))
        for rank in range(1, settings.n_strongest + 1)
        for column in SUMMARY_COLUMNS
    )
    apart = {"summary/apart_mm": f"{settings.apart_mm:g}", "summary/source": "row of the estimate, from 0"}
    return (
        StreamDescription(name, "SourceEstimate", name, rate, "float32", channels, common),
        StreamDescription(f"{name}-companion", "Companion", f"{name}-companion", rate, "float64", companion, common),
        StreamDescription(
            f"{name}-strongest", "SourceSummary", f"{name}-strongest", 0.0, "float32", summary, common | apart
        ),
    )


def describe_engine(sources: SourceSpaceDescription, description: EstimateDescription) -> dict[str, str]:
    """Leaves that all streams of estimates have: engine, head, what the numbers are, filters, flags."""
    return {
        "engine/name": "rt_mmdf",
        "engine/version": rt_mmdf.__version__,
        "head/name": sources.head,
        "head/fingerprint": sources.fingerprint,
        "head/frame": sources.frame,
        "head/n_sources_lh": str(len(sources.vertices[0])),
        "head/n_sources_rh": str(len(sources.vertices[1])),
        "estimate/solver": description.solver,
        "estimate/unit": description.unit or "dimensionless",
        "estimate/orientation": description.orientation,
        "estimate/channel_names": "hemisphere-vertex",
        "estimate/invalid": "NaN",
        "filter/delay_ms": f"{description.filter_delay_ms:.6g}",
        "filter/delay_is_in_stamps": "no",
        "flags": ", ".join(f"{flag.name}={flag.value}" for flag in Flag),
    }


def describe_sources(sources: SourceSpaceDescription, unit: str) -> tuple[ChannelDescription, ...]:
    """One channel a source."""
    metres = (sources.positions_mm * 1e-3).tolist()
    return tuple(
        ChannelDescription(own, "source", unit, (x, y, z)) for own, (x, y, z) in zip(sources.names, metres, strict=True)
    )
