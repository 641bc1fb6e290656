"""The panels at the side, filled from what the feed knows: time courses, sensors, averages, health."""

from __future__ import annotations

import time

import numpy as np
from PySide6.QtWidgets import QWidget

from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.channels import ChannelType
from rt_mmdf.sinks.estimates import strongest
from rt_mmdf.view.cortex import Cortex, Place
from rt_mmdf.view.feed import FeedState
from rt_mmdf.view.history import Frame, History, Measure
from rt_mmdf.view.links import Average
from rt_mmdf.view.panels.average import AverageCurve, AveragePanel
from rt_mmdf.view.panels.course import MAX_COURSES, Course, CoursePanel
from rt_mmdf.view.panels.health import HealthPanel, ViewFacts
from rt_mmdf.view.panels.traces import SensorTraces, TracesPanel
from rt_mmdf.view.playback import Mode, Playback
from rt_mmdf.view.streams import EngineDescription
from rt_mmdf.view.telling import measure_words, place_lines, place_words
from rt_mmdf.view.themes import Theme

COURSE_S, FULL_RATE_S = 10.0, 2.0
STRONGEST_S = 2.0  # the strongest sources are those of so long
CHOOSE_AGAIN_S = 1.0
APART_MM = 25.0
NO_ENGINE = "no engine yet"
NO_SENSORS = "The engine does not publish its sensors.\nSwitch it on: [output.sensors] in its configuration."


def kept_frame(history: History, number: int, measure: Measure) -> Frame | None:
    """A frame, or None where it has become too old in this very moment."""
    try:
        return history.frame(number, measure)
    except IndexError:
        return None


def strengths(values: Float32) -> Float32:
    """(n_times,) RMS over the sources of (n_sources, n_times); NaN where there is none."""
    return np.asarray(np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=0)), dtype=np.float32)


def strongest_of(history: History, engine: EngineDescription, moment: float) -> tuple[int, ...]:
    """Sources of the largest RMS over `STRONGEST_S` up to a moment, apart from each other, strongest first."""
    stop = history.number_at(moment)
    if stop is None:
        return ()
    numbers = range(max(history.first, stop + 1 - round(STRONGEST_S * history.frame_rate)), stop + 1, 2)
    frames = [kept_frame(history, number, Measure.RMS) for number in numbers]
    valid = [frame.values for frame in frames if frame is not None and frame.valid]
    if not valid:
        return ()
    power = np.sqrt(np.mean(np.square(valid), axis=0)).astype(np.float32)
    return tuple(int(source) for source in strongest(power, engine.positions_mm, MAX_COURSES, APART_MM))


class SidePanels:
    """The four panels; whoever makes them puts them into a window."""

    def __init__(self, theme: Theme) -> None:
        self.courses = CoursePanel(theme)
        self.average = AveragePanel(theme)
        self.traces = TracesPanel(theme)
        self.health = HealthPanel(theme)
        self._strong: tuple[int, ...] = ()
        self._chosen_at = 0.0

    @property
    def titled(self) -> tuple[tuple[str, str, QWidget], ...]:
        """Action that shows or hides it, title, and panel."""
        return (
            ("sources", "Sources", self.courses),
            ("average", "Average", self.average),
            ("sensors", "Sensors", self.traces),
            ("health", "Health", self.health),
        )

    def set_theme(self, theme: Theme) -> None:
        for panel in (self.courses, self.average, self.traces, self.health):
            panel.set_theme(theme)

    def forget(self) -> None:
        """The sources are others from now on."""
        self._strong = ()

    def draw_courses(
        self, state: FeedState, playback: Playback, measure: Measure, cortex: Cortex | None, place: Place | None
    ) -> None:
        """Of the picked place (at full rate while it is live), or of the strongest sources."""
        engine, history, shown = state.engine, state.history, playback.shown
        if engine is None or history is None or shown is None:
            return
        live = playback.mode is Mode.LIVE
        end, words = "now" if live else "shown", measure_words(measure, history.frame_rate)
        if place is None:
            self._choose(history, engine, shown)
            courses = tuple(Course(_name(engine, cortex, s), *history.course(s, measure)) for s in self._strong)
            heading = f"{words}, strongest of {STRONGEST_S:g} s"
            self.courses.show_courses(courses, shown, engine.unit, heading, end, COURSE_S)
        elif live:
            times, values = history.full_course(place.source)
            course = Course(place_words(place), times, values)
            until = max(shown, float(times[-1])) if len(times) else shown
            seconds = min(FULL_RATE_S, history.full_seconds)
            self.courses.show_courses((course,), until, engine.unit, f"every estimate; {place_lines(place)}", end, seconds)
        else:
            course = Course(place_words(place), *history.course(place.source, measure))
            self.courses.show_courses((course,), shown, engine.unit, f"{words}; {place_lines(place)}", end, COURSE_S)

    def _choose(self, history: History, engine: EngineDescription, shown: float) -> None:
        now = time.monotonic()
        if not self._strong or now - self._chosen_at > CHOOSE_AGAIN_S:
            self._strong, self._chosen_at = strongest_of(history, engine, shown), now

    def draw_traces(self, state: FeedState, playback: Playback) -> None:
        """Of the seconds before what is shown."""
        traces, shown = state.traces, playback.shown
        live = playback.mode is Mode.LIVE
        if traces is None or shown is None:
            self.traces.show_traces(None, 0.0, reason=NO_ENGINE if state.engine is None else NO_SENSORS)
            return
        # sensors are published before they are imaged: live, their newest samples are shown
        times, data = traces.between(shown - self.traces.seconds - 0.1, shown + (1.0 if live else 0.0))
        until = max(shown, float(times[-1])) if live and len(times) else shown
        bads = frozenset(state.health.bad_channels) if state.health is not None else frozenset()
        kinds = tuple(ChannelType(kind) for kind in traces.kinds)
        self.traces.show_traces(SensorTraces(times, data, traces.names, kinds, bads), until, "now" if live else "shown")

    def draw_average(self, average: Average | None, place: int, n_averages: int) -> None:
        """One of `n_averages`, with a cursor at the latency of that place."""
        if average is None:
            self.average.show_average(None, None, 0)
            return
        of = average.stream
        curve = AverageCurve(
            event=of.event,
            latencies=of.latencies,
            strengths=strengths(average.values),
            n_trials=average.n_trials,
            n_rejected=average.n_rejected,
            unit=of.unit,
            baseline=of.baseline,
        )
        self.average.show_average(curve, float(of.latencies[place]), n_averages)

    def draw_health(self, state: FeedState, own: ViewFacts) -> None:
        """The engine's newest report, and what the view knows of itself."""
        self.health.show_health(state.health, state.health_age_s, own)
        self.health.histogram.show_lateness(state.latencies.recent()["lateness"], state.budget_ms)


def _name(engine: EngineDescription, cortex: Cortex | None, source: int) -> str:
    if cortex is not None and cortex.n_sources == engine.n_sources:
        return place_words(cortex.describe(int(cortex.source_vertices[source])))
    return engine.stream.channels[source].name
