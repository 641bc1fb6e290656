"""What the window says in words: figures of the status line, captions of pictures, names of places. No widgets here."""

from __future__ import annotations

import math
from datetime import datetime

from rt_mmdf.acquisition.device_lag import COMMON_UNKNOWN
from rt_mmdf.core.blocks import Flag
from rt_mmdf.sinks.colours import readable
from rt_mmdf.view.brain_slot import LimitsFrom
from rt_mmdf.view.colours import ColourScale
from rt_mmdf.view.cortex import Place
from rt_mmdf.view.feed import FeedState, Status
from rt_mmdf.view.history import Frame, Measure
from rt_mmdf.view.panels.chart import number
from rt_mmdf.view.panels.status import Banner, Figure, Level, banner_of, spoken
from rt_mmdf.view.playback import Mode, Playback
from rt_mmdf.view.shortcuts import keys_of
from rt_mmdf.view.streams import EngineDescription

OLD_S = 1.0
"""An estimate older than this is shown greyed, with its age."""
LATE_S = 0.25
FIRST_S = 4.0  # of moments, from which their first limits are taken
"""From this age on it is said as a warning."""


def measure_words(measure: Measure, frame_rate: float) -> str:
    """``RMS of 40 ms``: what a picture says about the estimates of its interval."""
    name = {Measure.RMS: "RMS", Measure.PEAK: "peak", Measure.LATEST: "latest"}[measure]
    return f"{name} of {1e3 / frame_rate:.0f} ms"


def unit_of(engine: EngineDescription) -> str:
    """What a colour scale calls the values: a unit, or for standardised maps the name of the solver."""
    return engine.unit or engine.solver


def limits_key(engine: EngineDescription, measure: Measure) -> str:
    """Under what limits are kept: they fit one solver, one unit and one measure."""
    return f"{engine.solver} / {engine.unit or 'dimensionless'} / {measure.value}"


def is_old(state: FeedState) -> bool:
    """Whether the newest estimate must not be taken for what happens now."""
    if state.engine is None:
        return False
    return state.status is not Status.LIVE or state.age_s > OLD_S


def banner(state: FeedState, frame: Frame | None) -> Banner | None:
    """What has to be said loudly of the picture that is shown and of the engine."""
    return banner_of(
        connected=state.engine is not None,
        silent=state.history is not None and len(state.history) > 0 and is_old(state),
        problem=state.problem,
        note=state.note,
        age_s=state.age_s,
        flags=None if frame is None else frame.flags,
        valid=None if frame is None else frame.valid,
        not_written="" if state.health is None else state.health.not_written,
    )


def clock_words(stamp: float, state: FeedState, local_now: float, wall_now: float) -> str:
    """Time of day of an estimate on this machine's clock; the raw stamp while the engine's clock has not been measured.

    Parameters
    ----------
    stamp : seconds on the engine's LSL clock
    local_now, wall_now : now, on this machine's LSL clock and as seconds since 1970
    """
    if not math.isfinite(stamp):
        return "–"
    if state.offset is None:
        return f"LSL {stamp:.3f} s"
    moment = datetime.fromtimestamp(wall_now - (local_now - (stamp + state.offset.offset)))
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


def scale_words(scale: ColourScale, limits_from: LimitsFrom) -> str:
    """``0.4 to 2.3 nA m, fixed``; says so where nobody has set the limits."""
    factor, label = readable(scale.high, scale.unit)
    return f"{number(scale.low * factor)} to {number(scale.high * factor)} {label}, {limits_words(scale, limits_from)}"


def limits_words(scale: ColourScale, limits_from: LimitsFrom) -> str:
    """``fixed``, ``auto, 10 s``, or where limits come from that nobody has set."""
    if limits_from is LimitsFrom.PERSON or scale.mode == "auto":
        return scale.says
    whose = "default" if limits_from is LimitsFrom.DEFAULT else f"of the first {FIRST_S:g} s"
    return f"{whose}, press {keys_of('calibrate')}"


def status_figures(
    state: FeedState,
    playback: Playback,
    frame: Frame | None,
    measure: Measure,
    *,
    clock: str,
    scale: str,
    pictures_per_s: float,
    n_dropped: int,
    filming: str,
) -> tuple[Figure, ...]:
    """The status line, most important first."""
    engine, history = state.engine, state.history
    old = is_old(state)
    if filming:
        mode = Figure("view", filming, "FILM 100 %", Level.WARN, important=True)
    elif playback.mode is Mode.LIVE:
        words = "NO ENGINE" if engine is None else "SILENT" if old else "LIVE"
        mode = Figure("view", words, "NO ENGINE", Level.GOOD if words == "LIVE" else Level.BAD, important=True)
    else:
        words, _, distance = playback.words().partition(", ")
        mode = Figure(f"view, {distance}", words, "PLAYING ×0.25", Level.WARN, important=True)
    figures = [mode, Figure("estimate of", clock, "00:00:00.000", important=True)]
    age = spoken(state.age_s) if math.isfinite(state.age_s) else "unknown"
    level = Level.BAD if old else Level.WARN if state.age_s > LATE_S else Level.PLAIN
    figures.append(Figure("age", age, "unknown", level, important=True))
    if engine is None or history is None:
        return tuple(figures)
    sources = f"{engine.solver}, {engine.n_sources} sources"
    figures.append(Figure(f"solver of {engine.name}", sources, sources, important=True))
    figures.append(Figure("picture", measure_words(measure, history.frame_rate), "latest of 40 ms", important=True))
    budget = f"{state.budget_ms:g} ms" if math.isfinite(state.budget_ms) else "unknown"
    if math.isfinite(state.budget_ms) and state.has_companion:
        late, hops = state.latencies.missed(state.budget_ms)
        share = f" ({100 * late / hops:.1f} %)" if late and hops else ""
        text, level = f"{late} of {hops}{share}", Level.WARN if late else Level.GOOD
    else:
        text, level = "unknown", Level.WARN
    figures.append(Figure(f"misses in 60 s, budget {budget}", text, "10 of 6000 (0.2 %)", level))
    figures.append(Figure("colours", scale, scale))
    if frame is not None:
        figures.append(_flags_figure(state, frame))
    if state.health is not None and state.health.modalities:
        figures.append(modalities_figure(state.health.modalities, frame))
    if state.health is not None:
        figures.append(incidents_figure(state.health.lasting))
        lag = state.health.device_lag
        level = Level.WARN if "unknown" in lag.removesuffix(COMMON_UNKNOWN) else Level.PLAIN
        figures.append(Figure("device time", f"lag {lag}", "lag unknown", level))
    dropped = f"{pictures_per_s:.0f} /s, {n_dropped} dropped"
    figures.append(Figure("pictures", dropped, "25 /s, 1000 dropped", Level.WARN if pictures_per_s < 20 else Level.PLAIN))
    return tuple(figures)


def modalities_figure(modalities: tuple[str, ...], frame: Frame | None) -> Figure:
    """What the estimate that is shown was made of."""
    gone = {"eeg": Flag.EEG_MISSING, "meg": Flag.MEG_MISSING}
    left = [m for m in modalities if frame is None or not frame.flags & gone.get(m.lower(), Flag(0))]
    text = " + ".join(name.upper() for name in left) or "none"
    return Figure("modalities", text, "EEG + MEG", Level.PLAIN if len(left) == len(modalities) else Level.BAD)


def _flags_figure(state: FeedState, frame: Frame) -> Figure:
    if not state.has_companion:
        return Figure("known faults", "unknown: no companion", "unknown: no companion", Level.WARN)
    names = [str(flag.name).lower().replace("_", " ") for flag in Flag if flag & frame.flags]
    level = Level.WARN if names else Level.GOOD
    return Figure("known faults", ", ".join(names) or "none", "filters settling", level)


def incidents_figure(lasting: tuple[str, ...]) -> Figure:
    """What goes on now, whatever picture is shown; in words as the log has them."""
    words = [one.replace("_", " ") for one in lasting]
    text = f"{words[-1]} and {len(words) - 1} more" if len(words) > 1 else "".join(words) or "none"
    level = Level.WARN if words else Level.GOOD
    return Figure("goes wrong now", text, "bad channels eeg", level, important=bool(words))


def place_words(place: Place) -> str:
    """``precentral-lh, lh-1234, MNI −42 −20 55 mm``: a place on the cortex in one line."""
    parts = [place.label or "", place.name]
    if place.mni_mm is not None:
        parts.append(f"MNI {_triple(place.mni_mm)} mm")
    elif place.head_mm is not None:
        parts.append(f"head {_triple(place.head_mm)} mm")
    return ", ".join(part for part in parts if part)


def place_lines(place: Place) -> str:
    """All that is known of a picked place: also both coordinates and how far the source is."""
    head = f"head {_triple(place.head_mm)} mm, " if place.head_mm is not None and place.mni_mm is not None else ""
    return f"{head}source {place.source} at {place.distance_mm:.1f} mm"


def _triple(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.0f}" for value in values).replace("-", "−")


def caption(state: FeedState, clock: str, frame: Frame | None, measure: Measure, scale: str, mode: str) -> tuple[str, str]:
    """Two lines below a picture that leaves the window: when and by what, and how to read it."""
    engine, history = state.engine, state.history
    if engine is None or history is None or frame is None:
        return "no estimate", ""
    wrong = [str(flag.name).lower().replace("_", " ") for flag in Flag if flag & frame.flags]
    faults = f"; {', '.join(wrong)}" if wrong else ""
    first = f"{clock}  {engine.solver}, {engine.n_sources} sources, {engine.head}{faults}"
    return first, f"{measure_words(measure, history.frame_rate)}; colours {scale}; {mode}; LSL {frame.time:.3f} s"
