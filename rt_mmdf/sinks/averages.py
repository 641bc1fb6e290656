"""Event-locked averages, imaged, as LSL streams: one for each kind of event."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from rt_mmdf.core.blocks import Float32, Float64
from rt_mmdf.lsl.interface import ChannelDescription, Outlet, StreamDescription, Transport
from rt_mmdf.sinks.estimates import EstimateDescription, describe_engine, describe_sources
from rt_mmdf.sinks.sources import SourceSpaceDescription

COMPANION_COLUMNS = ("update", "sample", "latency", "n_trials", "n_rejected", "event", "published")


@dataclass(frozen=True)
class AverageDescription:
    """What an average is of.

    event : name of the average
    markers : texts of the markers that it is locked to
    latencies : (n_times,) seconds from the event, ascending, evenly spaced
    baseline : first and last latency of the baseline that was subtracted, seconds; None: none was
    """

    event: str
    markers: tuple[str, ...]
    latencies: Float64
    baseline: tuple[float, float] | None


@dataclass(frozen=True)
class AverageEstimate:
    """One state of a running average.

    data : (n_sources, n_times) float32; anything without trials
    n_trials : that were averaged since the last reset
    n_rejected : events since the last reset that were not averaged
    event : LSL time of the newest event in it, seconds on the engine's clock; NaN without trials
    """

    data: Float32
    n_trials: int
    n_rejected: int
    event: float


class AverageOutlets:
    """Two streams for one kind of event, both irregular; every update is one chunk with the whole epoch.

    ``NAME`` (``SESSION-average-EVENT``, type ``SourceAverage``)
        float32, one channel a source, as the estimate stream. One sample for each latency of ``average/tmin_s`` to
        ``average/tmax_s`` at ``average/sfreq``, ``average/n_times`` in all. All of them carry ONE time stamp, that of the
        publication on the engine's LSL clock: samples of one stamp are one update, and updates have ascending stamps. After
        a reset an update without trials is published: NaN.
    ``NAME-companion``
        float64, one sample for each of the average, with the same stamp: `COMPANION_COLUMNS`. `update` counts from 0 and
        goes on after a reset, `sample` counts within the update, `latency` is in seconds from the event, `event` the LSL
        time of the newest event that is in the average.

    Leaves of the description: those of all estimate streams (``head/...``, ``estimate/...``, ``filter/...``), and
    ``average/event``, ``average/markers`` (texts, separated by commas), ``average/tmin_s``, ``average/tmax_s``,
    ``average/n_times``, ``average/sfreq``, ``average/baseline_s`` (``-0.1 0``, or ``none``), ``average/whitening``,
    ``streams/companion``.

    An update of 5124 sources and 150 latencies is 3 MB. Readers: LSL reckons with 100 samples a second of an irregular
    stream, so an inlet with room for 10 s holds 1000 samples, six such updates.

    Parameters
    ----------
    transport : Transport
    name : str
        Of the streams, and their source ids.
    sources : SourceSpaceDescription
    description : EstimateDescription
    average : AverageDescription
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        sources: SourceSpaceDescription,
        description: EstimateDescription,
        average: AverageDescription,
    ) -> None:
        self._clock = transport.clock
        self._latencies = average.latencies
        self._n_sources = sources.n_sources
        self._update = 0
        self._last = -np.inf
        interval = float(np.diff(average.latencies).mean()) if len(average.latencies) > 1 else 1 / description.sfreq
        common = {
            **describe_engine(sources, description),
            "average/event": average.event,
            "average/markers": ", ".join(average.markers),
            "average/tmin_s": f"{average.latencies[0]:.9g}",
            "average/tmax_s": f"{average.latencies[-1]:.9g}",
            "average/n_times": str(len(average.latencies)),
            "average/sfreq": f"{1 / interval:.10g}",
            "average/baseline_s": "none" if average.baseline is None else "{:.9g} {:.9g}".format(*average.baseline),
            "average/whitening": "noise covariance divided by n_trials",
            "streams/companion": f"{name}-companion",
            **description.more,
        }
        units = {"latency": "s", "event": "s", "published": "s"}
        columns = tuple(ChannelDescription(column, "companion", units.get(column, "")) for column in COMPANION_COLUMNS)
        self.streams = (
            StreamDescription(
                name, "SourceAverage", name, 0.0, "float32", describe_sources(sources, description.unit), common
            ),
            StreamDescription(f"{name}-companion", "Companion", f"{name}-companion", 0.0, "float64", columns, common),
        )
        self._open = ExitStack()
        try:
            self._average, self._companion = (self._publish(transport, stream) for stream in self.streams)
        except BaseException:
            self._open.close()
            raise

    def _publish(self, transport: Transport, stream: StreamDescription) -> Outlet:
        outlet = transport.outlet(stream)
        self._open.callback(outlet.close)
        return outlet

    def publish(self, estimate: AverageEstimate) -> None:
        """Publish one update: the whole epoch."""
        n_times = len(self._latencies)
        now = max(self._clock.now(), np.nextafter(self._last, np.inf))
        self._last = now
        stamps = np.full(n_times, now)
        data = estimate.data.T if estimate.n_trials else np.full((n_times, self._n_sources), np.nan, np.float32)
        companion = np.empty((n_times, len(COMPANION_COLUMNS)))
        companion[:, 0] = self._update
        companion[:, 1] = np.arange(n_times)
        companion[:, 2] = self._latencies
        companion[:, 3:] = estimate.n_trials, estimate.n_rejected, estimate.event, now
        self._average.push(data, stamps)
        self._companion.push(companion, stamps)
        self._update += 1

    @property
    def n_updates(self) -> int:
        """Published so far."""
        return self._update

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> AverageOutlets:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
