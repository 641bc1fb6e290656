"""What a session publishes and hears on request: cleaned sensors, a second solver, averages, operator marks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rt_mmdf.app.averages import EventAverages
from rt_mmdf.app.display import SensorDisplay, check_rate
from rt_mmdf.app.engine import Engine
from rt_mmdf.app.marks import OperatorMarks
from rt_mmdf.app.operators import OperatorBuilder
from rt_mmdf.app.second import SecondSolver
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.estimates import EstimateDescription, EstimateOutlets
from rt_mmdf.sinks.marks import Mark
from rt_mmdf.sinks.sensors import SensorOutlet
from rt_mmdf.sinks.sources import SourceSpaceDescription


def streams_of(settings: SessionSettings) -> dict[str, str]:
    """Names of the streams beside the estimates, as they are told in all descriptions."""
    name, output = settings.name, settings.output
    names = {"streams/sources": f"{name}-sources", "streams/health": f"{name}-health"}
    if output.sensors is not None:
        names["streams/sensors"] = f"{name}-sensors"
    if settings.second_solver is not None:
        names["streams/second"] = f"{name}-second"
    if settings.average is not None:
        names |= {f"streams/averages/{event}": f"{name}-average-{event}" for event in settings.average.events}
    if output.marks:
        names["streams/marks"] = f"{name}-marks"
    return names


class OptionalStreams:
    """Each has its own threads; all that it asks of the engine's thread is one `put` into a mailbox for each hop.

    Parameters
    ----------
    settings, transport : of the session
    engine : Engine
        Not running yet: its chain is tapped.
    operators : of the first solver
    second : OperatorBuilder | None
        Of the second solver, where there is one.
    sources, described : of the first solver's estimates

    Attributes
    ----------
    sensors, second, average, marks
        The parts; None for what was not asked for.
    published : list of str
        Names of the streams, without their companions.
    """

    def __init__(
        self,
        settings: SessionSettings,
        transport: Transport,
        engine: Engine,
        operators: OperatorBuilder,
        second: OperatorBuilder | None,
        sources: SourceSpaceDescription,
        described: EstimateDescription,
    ) -> None:
        self.sensors: SensorDisplay | None = None
        self.second: SecondSolver | None = None
        self.average: EventAverages | None = None
        self.marks: OperatorMarks | None = None
        self.published: list[str] = []
        output, name, taps, imaging = settings.output, settings.name, engine.chain.taps, operators.imaging
        self._resources = ExitStack()
        try:
            if second is not None:
                self.second = self._open_second(settings, transport, engine, second, sources, described)
                taps.append(self.second.put)
                self.published.append(f"{name}-second")
            if output.sensors is not None:
                check_rate(output.sensors, engine.sfreq, settings.preprocessing.filters.band_pass.high_hz)
                outlet = SensorOutlet(
                    transport,
                    f"{name}-sensors",
                    imaging.channels,
                    engine.sfreq,
                    described.filter_delay_ms,
                    output.sensors,
                    described.more,
                )
                self.sensors = SensorDisplay(self._resources.enter_context(outlet))
                taps.append(self.sensors.put)
                self.published.append(outlet.stream.name)
            if settings.average is not None:
                self.average = EventAverages(
                    settings.average, transport, name, imaging, sources, described, operators.complete
                )
                self._resources.callback(self.average.close)
                taps.append(self.average.put)
                self.published += [outlets.streams[0].name for outlets in self.average.outlets.values()]
            if output.marks:
                self.marks = OperatorMarks(transport, f"{name}-marks", self._obey)
                self._resources.callback(self.marks.close)
        except BaseException:
            self._resources.close()
            raise

    def _open_second(
        self,
        settings: SessionSettings,
        transport: Transport,
        engine: Engine,
        operators: OperatorBuilder,
        sources: SourceSpaceDescription,
        described: EstimateDescription,
    ) -> SecondSolver:
        imaging = operators.imaging
        own = replace(described, solver=imaging.solver_name, unit=imaging.solver.unit, orientation=imaging.orientation)
        outlets = EstimateOutlets(transport, f"{settings.name}-second", sources, own, settings.output.estimates)
        self._resources.enter_context(outlets)
        return SecondSolver(
            imaging,
            operators,
            outlets,
            budget_s=settings.budget_ms * 1e-3,
            window=engine.window_samples(imaging),
            clock=transport.clock,
        )

    def _obey(self, mark: Mark) -> None:
        if mark.command == "reset-average" and self.average is not None:
            self.average.restart()

    def workers(self, on_failure: Callable[[], None]) -> list[Worker]:
        """All threads; not yet started."""
        parts = (self.second, self.sensors, self.average, self.marks)
        return [worker for part in parts if part is not None for worker in part.workers(on_failure)]

    def status(self) -> dict[str, Any]:
        """For the health stream: ``sensors``, ``second``, ``average`` and ``marks``, null for what there is not."""
        parts = {"sensors": self.sensors, "second": self.second, "average": self.average, "marks": self.marks}
        return {name: None if part is None else part.status() for name, part in parts.items()}

    def close(self) -> None:
        """Close all streams; after the workers were stopped."""
        self._resources.close()
