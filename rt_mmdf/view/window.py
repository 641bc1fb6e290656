"""The window: a large brain, and around it what a person needs to trust it.

A timer asks the feed what is known now and paints it; nothing in here waits. What takes longer has its own thread: the feed
listens, `CortexWorker` prepares the cortex of a head, `PictureFiles` writes pictures and films.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from PySide6.QtCore import QStandardPaths, Qt, QTimer
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QApplication,
    QDialog,
    QDockWidget,
    QLabel,
    QMainWindow,
    QSplitter,
    QToolBar,
    QVBoxLayout,
    QWidget,
)

from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.errors import RtMmdfError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.view.ask_line import AskLine
from rt_mmdf.view.brain_slot import BrainSlot, LimitsFrom
from rt_mmdf.view.cortex import Cortex, Place
from rt_mmdf.view.feed import Feed, FeedState
from rt_mmdf.view.film import Picture, PictureFiles, captioned, pixels
from rt_mmdf.view.flat import make_brain_view
from rt_mmdf.view.history import Frame, History, Measure
from rt_mmdf.view.limits import LIMITS_STEP, KeptLimits, question
from rt_mmdf.view.links import Average
from rt_mmdf.view.pane import BrainPane
from rt_mmdf.view.panels.average import trials_words
from rt_mmdf.view.panels.health import ViewFacts
from rt_mmdf.view.panels.status import Banner, BannerPanel, Level, StatusPanel, spoken
from rt_mmdf.view.panels.timeline import TimelinePanel, TimeMark
from rt_mmdf.view.picture_bar import PictureBar
from rt_mmdf.view.playback import Mode, Playback
from rt_mmdf.view.preferences import CHOICES, Preferences, PreferencesStore
from rt_mmdf.view.preparation import CortexWorker
from rt_mmdf.view.settings import ViewSettings
from rt_mmdf.view.shortcuts import BY_ACTION, SHORTCUTS, help_page, keys_of
from rt_mmdf.view.side_panels import SidePanels, kept_frame, strengths
from rt_mmdf.view.streams import EngineDescription
from rt_mmdf.view.telling import (
    FIRST_S,
    banner,
    caption,
    clock_words,
    is_old,
    limits_key,
    limits_words,
    scale_words,
    status_figures,
    unit_of,
)
from rt_mmdf.view.themes import Theme, stylesheet, theme_named

TICK_MS = 20  # looks for a new picture twice as often as there is one, so that none is missed by a hair
FAST_S, SLOW_S = 0.15, 1.0  # panels; health
CATCH_UP = 3  # pictures; two of them sometimes come within one tick, the next within three
BASELINE_S = 10.0
FILM_S = 10.0
STRONGEST_S = 2.0  # the strongest sources are those of so long
APART_MM = 25.0

Beside = Literal["none", "second", "average"]


class ViewWindow(QMainWindow):
    """The live brain view.

    Closing it ends its threads and saves the preferences; the feed is the caller's, and the engine goes on.

    Parameters
    ----------
    feed : Feed
        Started.
    transport : Transport
        For operator marks, and this machine's clock.
    store : PreferencesStore
    settings : ViewSettings
        What it was asked for; what is None there is as it was the last time.
    folder : Path | None
        For pictures and films; None: the user's folder of pictures.
    remember : bool
        Whether to save preferences at the end.
    """

    def __init__(
        self,
        feed: Feed,
        transport: Transport,
        store: PreferencesStore,
        *,
        settings: ViewSettings | None = None,
        folder: Path | None = None,
        remember: bool = True,
    ) -> None:
        super().__init__()
        self._feed, self._transport, self._store = feed, transport, store
        self._remember = remember
        self._folder = folder or Path(
            QStandardPaths.writableLocation(QStandardPaths.StandardLocation.PicturesLocation) or Path.home()
        )
        asked = settings or ViewSettings()
        self._flat = asked.flat
        kept = store.load()
        chosen = {
            key: value for key in ("theme", "surface", "layout", "measure", "compare") if (value := getattr(asked, key))
        }
        self.preferences: Preferences = replace(kept, **chosen)
        self.limits = KeptLimits(self.preferences.limits, asked.limits)
        self.theme = theme_named(self.preferences.theme)
        self.files = PictureFiles()
        self._cortices = CortexWorker()
        self._moment = math.nan  # that a note is being typed for
        self.playback = Playback(1 / 25)
        self._beside: Beside = "second" if self.preferences.compare else "none"
        self._state: FeedState = feed.state()
        self._generation = -1
        self._head: HeadModel | None = None
        self._cortex: Cortex | None = None
        self._frame: Frame | None = None
        self._signed: set[str] = set()
        self._place: Place | None = None
        self._picked: int | None = None
        self._average_at: dict[str, float] = {}
        self._average = 0
        self._film: deque[int] = deque()
        self._film_length = 0
        self._last_tick = time.perf_counter()
        self._done_at: dict[str, float] = {}
        self._drawn_at: deque[float] = deque(maxlen=64)
        self._cost_ms: deque[float] = deque(maxlen=256)
        self.n_drawn = self.n_dropped = 0
        self._last_live: int | None = None  # number of the last frame that was drawn live
        self.news: deque[tuple[str, bool]] = deque(maxlen=16)
        self._fault = ""
        self._closed = False
        self._build()
        self._bind_keys()
        self.apply_theme(self.theme)
        self._arrange(asked)
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(lambda: self.refresh())
        self._timer.start(TICK_MS)

    # building

    def _build(self) -> None:
        self.setWindowTitle("rt-mmdf")
        self.status = StatusPanel(self.theme)
        self.setMenuWidget(self.status)
        self.banner = BannerPanel(self.theme)
        self.main, self.beside = BrainSlot(), BrainSlot()
        self.brains = QSplitter(Qt.Orientation.Horizontal)
        self.brains.setChildrenCollapsible(False)
        for slot in (self.main, self.beside):
            self.brains.addWidget(slot)
        self.beside.hide()
        self.ask = AskLine(self.theme)
        self.ask.answered.connect(self._answered)
        middle = QWidget()
        column = QVBoxLayout(middle)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.banner)
        column.addWidget(self.brains, 1)
        column.addWidget(self.ask)
        self.setCentralWidget(middle)
        self.timeline = TimelinePanel(self.theme)
        self.timeline.wanted.connect(self.act)
        self.timeline.strip.scrubbed.connect(self._scrub)
        bottom = QToolBar("Time")
        bottom.setObjectName("time")
        bottom.setMovable(False)
        bottom.setContextMenuPolicy(Qt.ContextMenuPolicy.PreventContextMenu)
        bottom.addWidget(self.timeline)
        self.addToolBar(Qt.ToolBarArea.BottomToolBarArea, bottom)
        self.tools = PictureBar(self.preferences)
        self.tools.wanted.connect(self.act)
        self.tools.chosen.connect(self.choose)
        self.addToolBar(self.tools)
        self.side = SidePanels(self.theme)
        self.side.average.chosen.connect(self._choose_latency)
        self.side.average.next_wanted.connect(self._next_average)
        self.docks: dict[str, QDockWidget] = {}
        for name, title, panel in self.side.titled:
            dock = QDockWidget(title)
            dock.setObjectName(name)
            dock.setWidget(panel)
            dock.setToolTip(f"{BY_ACTION[name].does} ({keys_of(name)})")
            self.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, dock)
            self.docks[name] = dock
        self.tabifyDockWidget(self.docks["sensors"], self.docks["health"])
        self.docks["sensors"].raise_()
        self.docks["average"].hide()
        self.help = _HelpDialog(self)

    def _bind_keys(self) -> None:
        for shortcut in SHORTCUTS:
            for keys in shortcut.keys:
                bound = QShortcut(QKeySequence(keys), self)
                bound.setAutoRepeat(shortcut.group == "Time")
                bound.activated.connect(lambda action=shortcut.action: self.act(action))

    def _arrange(self, asked: ViewSettings) -> None:
        """Size and docks of the last time; else as large as the screen allows, up to 1600 x 900."""
        arrangement = self._store.arrangement()
        if arrangement is not None:
            self.restoreGeometry(arrangement[0])
            self.restoreState(arrangement[1])
        if asked.size is not None:
            self.resize(*asked.size)
        elif arrangement is None:
            screen = QApplication.primaryScreen().availableGeometry()
            self.resize(min(1600, screen.width()), min(900, screen.height()))
        if arrangement is None:
            side = max(300, round(0.26 * self.width()))
            self.resizeDocks(list(self.docks.values()), [side] * len(self.docks), Qt.Orientation.Horizontal)
            two = [self.docks["sources"], self.docks["sensors"]]
            self.resizeDocks(two, [2 * self.height() // 5, 3 * self.height() // 5], Qt.Orientation.Vertical)

    def apply_theme(self, theme: Theme) -> None:
        """Colours of everything."""
        self.theme = theme
        app = QApplication.instance()
        if isinstance(app, QApplication):
            app.setStyleSheet(stylesheet(theme))
        for part in (self.status, self.banner, self.timeline, self.ask, self.side):
            part.set_theme(theme)
        for slot in (self.main, self.beside):
            if slot.pane is not None:
                slot.pane.set_theme(theme)
        self._done_at.clear()

    # what a person does

    def act(self, action: str) -> None:
        """Do one of the actions of `rt_mmdf.view.shortcuts`."""
        play = self.playback
        if action.startswith("camera_"):
            self._point_camera(action.removeprefix("camera_"))
        elif action in ("back", "forward", "second_back", "second_forward"):
            size = {"back": -1, "forward": 1}.get(action) or round(1 / play.frame_s) * (-1 if action == "second_back" else 1)
            play.step(size)
            self._done_at.clear()
        elif action in ("pause", "live", "slower"):
            {"pause": play.toggle, "live": play.live, "slower": play.slower}[action]()
            self._done_at.clear()
        elif action in self.docks:
            self._toggle_panel(action)
        elif action in ("surface", "layout", "measure", "auto", "theme"):
            self._choose_next("scale_mode" if action == "auto" else action)
        else:
            {
                "compare": self._toggle_compare,
                "unpick": self._unpick,
                "calibrate": self._calibrate,
                "lower": lambda: self._scale_limits(LIMITS_STEP),
                "higher": lambda: self._scale_limits(1 / LIMITS_STEP),
                "limits": self._ask_limits,
                "mark": self._ask_mark,
                "reset_average": self._reset_average,
                "full_screen": lambda: self.showNormal() if self.isFullScreen() else self.showFullScreen(),
                "snapshot": self._snapshot,
                "film": self._toggle_film,
                "help": self.help.toggle,
                "close": self.close,
            }[action]()

    def choose(self, name: str, value: str) -> None:
        """Set one of the preferences that `rt_mmdf.view.preferences.CHOICES` names."""
        self.preferences = replace(self.preferences, **{name: value})  # type: ignore[arg-type]
        self.tools.show_choice(name, value)
        if name == "theme":
            self.apply_theme(theme_named(value))
        for slot in (self.main, self.beside):
            if slot.pane is None:
                continue
            if name == "layout":
                slot.pane.set_layout(value)
            elif name == "surface":
                self._set_surface(slot.pane, value)
            elif name == "scale_mode" and slot.scale is not None:
                slot.set_scale(slot.scale.in_mode(value), slot.limits_from)  # type: ignore[arg-type]
            slot.shown = None
        self._done_at.clear()

    def _choose_next(self, name: str) -> None:
        options = CHOICES[name]
        if name == "surface" and self._cortex is not None:
            options = tuple(own for own in options if own in self._cortex.surfaces)
        now = getattr(self.preferences, name)
        self.choose(name, options[(options.index(now) + 1) % len(options)] if now in options else options[0])

    def _set_surface(self, pane: BrainPane, wanted: str) -> None:
        if wanted in pane.cortex.surfaces:
            pane.set_surface(wanted)
        else:
            self.tell(f"This head has no {wanted} surface; it has {', '.join(pane.cortex.surfaces)}.", bad=True)

    def _point_camera(self, preset: str) -> None:
        for slot in (self.main, self.beside):
            if slot.pane is not None:
                if preset == "reset":
                    slot.pane.reset_camera()
                else:
                    slot.pane.set_camera(preset)

    def _toggle_panel(self, name: str) -> None:
        dock = self.docks[name]
        behind = dock.isVisible() and dock.visibleRegion().isEmpty()  # a tab that another one covers
        shown = behind or not dock.isVisible()
        dock.setVisible(shown)
        if shown:
            dock.raise_()
        if name == "average":
            self._set_beside("average" if shown else "none")
        self._done_at.clear()

    def _toggle_compare(self) -> None:
        self._set_beside("none" if self._beside == "second" else "second")

    def _set_beside(self, beside: Beside) -> None:
        self._beside = beside
        self.preferences = replace(self.preferences, compare=beside == "second")
        self.beside.shown, self.beside.key = None, ""

    def _scrub(self, moment: float) -> None:
        self.playback.scrub(moment)
        self._done_at.pop("timeline", None)

    def _pick(self, vertex: int) -> None:
        if self._cortex is None:
            return
        self._picked, self._place = vertex, self._cortex.describe(vertex)
        for slot in (self.main, self.beside):
            if slot.pane is not None:
                slot.pane.mark(vertex)
        self._done_at.pop("courses", None)

    def _unpick(self) -> None:
        if self.ask.asking:
            self.ask.give_up()
            return
        self._picked = self._place = None
        for slot in (self.main, self.beside):
            if slot.pane is not None:
                slot.pane.mark(None)
        self._done_at.pop("courses", None)

    def tell(self, text: str, *, bad: bool = False) -> None:
        """A sentence below the brain for some seconds."""
        self.ask.tell(text, time.monotonic(), bad=bad)

    # limits of the colours

    def _calibrate(self) -> None:
        """Fix the limits so that the last seconds would have shown nothing."""
        frames = ((self.main, self._baseline(self._state.history)), (self.beside, self._baseline_beside()))
        try:
            fixed = [slot for slot, baseline in frames if self.limits.calibrate(slot, baseline)]
        except RtMmdfError as error:
            self.tell(str(error), bad=True)
            return
        if fixed:
            self._limits_changed()
            told = "; ".join(scale_words(slot.scale, slot.limits_from) for slot in fixed if slot.scale is not None)
            self.tell(f"95 % of the last {BASELINE_S:g} s would now show nothing: {told}.")

    def _baseline(self, history: History | None) -> Float32 | None:
        if history is None or len(history) == 0:
            return None
        numbers = history.numbers()[-round(BASELINE_S * history.frame_rate) :]
        frames = [self._frame_of(history, number) for number in numbers]
        return np.stack([frame.values for frame in frames if frame is not None], axis=1)

    def _baseline_beside(self) -> Float32 | None:
        if self._beside == "second":
            return self._baseline(self._state.second.history if self._state.second is not None else None)
        average = self._shown_average()
        if average is None:
            return None
        before = average.stream.latencies < 0
        return average.values[:, before] if before.any() else average.values

    def _scale_limits(self, factor: float) -> None:
        for slot in (self.main, self.beside):
            self.limits.multiply(slot, factor)
        self._limits_changed()

    def _ask_limits(self, *, beside: bool = False) -> None:
        slot = self.beside if beside else self.main
        if slot.scale is not None and slot.pane is not None:
            two = self.beside.pane is not None
            whose = "" if not two else "the right brain" if beside else "the left brain"
            self.ask.ask("limits beside" if beside else "limits", *question(slot.scale, whose))

    def _set_limits(self, text: str, *, beside: bool) -> None:
        try:
            self.limits.set_by_hand(self.beside if beside else self.main, text)
        except RtMmdfError as error:
            self.tell(str(error), bad=True)
            return
        self._limits_changed()
        if not beside:
            self._ask_limits(beside=True)

    def _begin_limits(self) -> None:
        """Once the first seconds are there: see `KeptLimits.begin`."""
        second = self._state.second.history if self._beside == "second" and self._state.second is not None else None
        for slot, history in ((self.main, self._state.history), (self.beside, second)):
            if history is None or len(history) < FIRST_S * history.frame_rate or not self.limits.can_begin(slot):
                continue
            frames = self._baseline(history)
            if frames is not None and np.isfinite(frames[0]).sum() >= FIRST_S * history.frame_rate:
                self.limits.begin(slot, frames)

    def _limits_changed(self) -> None:
        self._done_at.pop("status", None)
        self.choose("scale_mode", "fixed")

    # marks

    def _ask_mark(self) -> None:
        if not self._state.can_mark or self.playback.shown is None:
            self.tell("There is nothing to mark: no engine is there that listens to marks.", bad=True)
            return
        self._moment = self._moment_shown()
        self.ask.ask("mark", f"Note for {self._clock(self._moment)}, Enter to mark")

    def _moment_shown(self) -> float:
        """What is marked: now while it is live, else the moment that is shown; seconds on the engine's clock."""
        offset = self._state.offset
        if self.playback.mode is Mode.LIVE and offset is not None:
            return self._transport.clock.now() - offset.offset
        return self.playback.shown or math.nan

    def _mark(self, text: str) -> None:
        if self._feed.mark(text, self._moment):
            self._done_at.pop("timeline", None)
        else:
            self.tell("Nobody hears marks now: the engine has gone, or its clock is not known yet.", bad=True)

    def _answered(self, what: str, text: str) -> None:
        if what == "mark":
            self._mark(text)
        else:
            self._set_limits(text, beside=what == "limits beside")
        if not self.ask.asking:
            self.setFocus()

    # averages

    def _shown_average(self) -> Average | None:
        averages = list(self._state.averages.values())
        return averages[self._average % len(averages)] if averages else None

    def _next_average(self) -> None:
        self._average += 1
        self._done_at.pop("average", None)

    def _choose_latency(self, latency: float) -> None:
        if (average := self._shown_average()) is not None:
            self._average_at[average.stream.event] = latency
            self._done_at.pop("average", None)

    def _reset_average(self) -> None:
        if self._state.averages and self._feed.mark("average begun anew", command="reset-average"):
            self.tell("The engine was asked to begin its averages anew.")
        else:
            self.tell("There is no average to begin anew.", bad=True)

    def _place_in(self, average: Average) -> int:
        """Which latency of an average is shown: the chosen one; else where it is strongest after the event."""
        latencies = average.stream.latencies
        if (chosen := self._average_at.get(average.stream.event)) is not None:
            return int(np.abs(latencies - chosen).argmin())
        strength = np.where(latencies > 0, strengths(average.values), 0.0)
        return int(np.nan_to_num(strength).argmax())

    # pictures and films

    def picture(self) -> Picture:
        """What is shown now, with colour bar, time, and how to read it: (height, width, 3)."""
        engine = self._state.engine
        stamp = math.nan if self._frame is None else self._frame.time
        scale = "" if self.main.scale is None else scale_words(self.main.scale, self.main.limits_from)
        words = self.playback.words()
        if engine is not None and self.playback.mode is Mode.LIVE and is_old(self._state):
            words = f"engine silent for {spoken(self._state.silent_s)}"
        lines = caption(self._state, self._clock(stamp), self._frame, self._measure, scale, words)
        with ExitStack() as at_best:
            for slot in (self.main, self.beside):
                if slot.pane is not None and not self.files.filming:  # a film is as smooth as the screen is
                    at_best.enter_context(slot.pane.at_best())
            image = self.brains.grab().toImage()
        return captioned(pixels(image), lines, self.theme)

    def _file(self, ending: str) -> Path:
        return self._folder / f"rt-mmdf-{datetime.now():%Y%m%d-%H%M%S}{ending}"

    def _snapshot(self) -> None:
        if self.files.ready:
            self.files.save(self._file(".png"), self.picture())

    def _toggle_film(self) -> None:
        if self.files.filming:
            self.files.end_film(keep=False)
            self._film.clear()
            self.tell("The film was given up.")
        else:
            self.film_to(self._file(".mp4"), FILM_S)

    def film_to(self, path: Path, seconds: float) -> bool:
        """Begin a film of the seconds before what is shown; False where there is nothing to film."""
        history, frame = self._state.history, self._frame
        if history is None or frame is None:
            self.tell("There is nothing to film yet.", bad=True)
            return False
        stop = frame.number + 1
        numbers = range(max(history.numbers().start, stop - round(seconds * history.frame_rate)), stop)
        self._film.extend(numbers)
        self._film_length = len(numbers)
        self.files.begin_film(path, history.frame_rate)
        return True

    def _film_on(self, history: History) -> None:
        """The next picture of the film, where the last ones have been written."""
        if not self.files.ready:
            return
        if not self._film:
            self.files.end_film()
            self.main.shown = None
            return
        frame = self._frame_of(history, self._film.popleft())
        if frame is not None:
            self._frame = frame
            self._show_frame(self.main, self._state.engine, frame)
            self._draw_beside()
            self.files.add(self.picture())

    # painting

    @property
    def has_estimate(self) -> bool:
        """Whether a picture of a valid estimate has been drawn."""
        return self._frame is not None and self._frame.valid

    @property
    def _measure(self) -> Measure:
        return Measure(self.preferences.measure)

    def _clock(self, stamp: float) -> str:
        return clock_words(stamp, self._state, self._transport.clock.now(), time.time())

    def _due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now - self._done_at.get(what, -math.inf) < every_s:
            return False
        self._done_at[what] = now
        return True

    def refresh(self, *, everything: bool = False) -> None:
        """Ask what is known now, and paint what has changed; `everything`: also what is not due yet."""
        if everything:
            self._done_at.clear()
        now = time.perf_counter()
        elapsed, self._last_tick = now - self._last_tick, now
        self._state = self._feed.state()
        if self._due("check", SLOW_S):
            self._check_feed()
            self._begin_limits()
        self._follow_head()
        if self._draw_brain(elapsed):
            self._cost_ms.append(1e3 * (time.perf_counter() - now))
        self._draw_panels(all_at_once=everything)
        for text, went_well in self.files.news():
            self.news.append((text, went_well))
            self.tell(text, bad=not went_well)
        self.ask.expire(time.monotonic())

    def _check_feed(self) -> None:
        try:
            self._feed.check()
        except RtMmdfError as error:
            self._fault = f"This view has a fault and receives nothing more: {error}. Close it and start it again."

    def _follow_head(self) -> None:
        """Another engine, another head, another history: what was made of the one before must go."""
        state = self._state
        if state.generation != self._generation:
            self._generation = state.generation
            self._frame = self._last_live = None
            self.side.forget()
            self._signed.clear()
            self._film.clear()
            self.files.end_film(keep=False)
            self.playback.live()
            if state.history is not None:
                self.playback = Playback(1 / state.history.frame_rate)
            if state.engine is not None:
                self.setWindowTitle(f"{state.engine.name}: {state.engine.solver} (rt-mmdf)")
            self.main.shown = self.beside.shown = None
        if state.head is not None and state.head is not self._head:
            self._head, self._cortex = state.head, None
            self._unpick()
            self.main.set_brain(None)
            self.beside.set_brain(None)
            self.main.set_words(f"Preparing the cortex of {state.head.name} …")
            self._cortices.want(state.head)
        if self._cortex is None and self._head is not None and (made := self._cortices.made_of(self._head)) is not None:
            cortex, why = made
            if cortex is None:
                self.main.set_words(why)
            elif cortex is not self._cortex:
                self._cortex = cortex
                self.main.set_brain(self._new_brain(cortex))

    def _new_brain(self, cortex: Cortex) -> BrainPane:
        pane, reason = make_brain_view(cortex, self.theme, flat=self._flat)
        if reason:
            self.tell(f"{reason[0].upper()}{reason[1:]}", bad=True)
        pane.set_layout(self.preferences.layout)
        self._set_surface(pane, self.preferences.surface)
        pane.picked.connect(self._pick)
        pane.turned.connect(lambda: self._turn_others(pane))
        if self.main.pane is not None:
            pane.follow(self.main.pane)
        pane.mark(self._picked)
        return pane

    def _turn_others(self, turned: BrainPane) -> None:
        """Two brains are compared from the same side."""
        for slot in (self.main, self.beside):
            if slot.pane is not None and slot.pane is not turned:
                slot.pane.follow(turned)

    def _frame_of(self, history: History, number: int) -> Frame | None:
        return kept_frame(history, number, self._measure)

    def _draw_brain(self, elapsed: float) -> bool:
        """Whether a new picture was drawn."""
        history = self._state.history
        if history is None or self.main.pane is None or history.n_sources != self.main.pane.cortex.n_sources:
            return False
        numbers, times, _, _ = history.facts()
        span = (float(times[0]), float(times[-1])) if len(numbers) else None
        shown = self.playback.advance(span, elapsed)
        if self.files.filming:
            self._last_live = None
            self._film_on(history)
            return False
        self._grey_if_old()
        if shown is None:
            return False
        live = self.playback.mode is Mode.LIVE
        number = self._next_live(numbers[-1]) if live else numbers[int(np.abs(times - shown).argmin())]
        wanted = (number, self._measure, self._generation)
        if wanted == self.main.shown:
            self._draw_beside()
            return False
        frame = self._frame_of(history, number)
        if frame is None:
            return False
        if live and self._last_live is not None:
            self.n_dropped += max(0, number - self._last_live - 1)
        self._last_live = number if live else None
        self._frame = frame
        self._show_frame(self.main, self._state.engine, frame)
        self.main.shown = wanted
        self._draw_beside()
        self.n_drawn += 1
        self._drawn_at.append(time.monotonic())
        return True

    def _next_live(self, newest: int) -> int:
        """The picture after the last one, as long as the newest is near enough to be caught up with."""
        last = self._last_live
        return newest if last is None or not last < newest <= last + CATCH_UP else last + 1

    def _grey_if_old(self) -> None:
        pane = self.main.pane
        if pane is None or not self._due("grey", FAST_S):
            return
        old = self.playback.mode is Mode.LIVE and (is_old(self._state) or bool(self._fault))
        age = self._state.age_s if math.isfinite(self._state.age_s) else self._state.silent_s
        for slot in (self.main, self.beside):
            if slot.pane is not None and (slot is self.main or self._beside == "second"):
                slot.pane.set_stale(old, f"{spoken(age)} old")

    def _show_frame(self, slot: BrainSlot, engine: EngineDescription | None, frame: Frame) -> None:
        if slot.pane is None or engine is None:
            return
        key = limits_key(engine, frame.measure)
        if frame.measure is not Measure.RMS and key not in self._signed and frame.valid and float(frame.values.min()) < 0:
            self._signed.add(key)
        self._fit_limits(slot, unit_of(engine), key, key in self._signed)
        scale, live = slot.scale, self.playback.mode is Mode.LIVE and frame.valid
        changed = live and scale is not None and scale.observe(frame.values, self.playback.frame_s)
        if changed and scale is not None and self._due(f"auto {slot is self.main}", FAST_S):
            slot.pane.set_scale(scale)
        slot.pane.set_values(frame.values)

    def _fit_limits(self, slot: BrainSlot, unit: str, key: str, signed: bool) -> None:
        self.limits.fit(slot, unit, key, signed=signed, mode=self.preferences.scale_mode)

    def _draw_beside(self) -> None:
        second, average = self._state.second, self._shown_average()
        what = self._beside
        there = (what == "second" and second is not None) or (what == "average" and average is not None)
        if what == "none" or self._cortex is None:
            self._hide_beside()
            return
        if not self.beside.isVisible():
            self.beside.show()
            half = max(1, self.brains.width() // 2)
            self.brains.setSizes([half, half])
        engine = self._state.engine
        self.main.set_title("" if engine is None else engine.solver)
        if not there:
            if self.beside.pane is not None:
                self.beside.set_brain(None)
            missing = "second solver ([second_solver]" if what == "second" else "averages ([average]"
            self.beside.set_title("")
            self.beside.set_words(f"The engine publishes no {missing} in its configuration).")
            return
        if self.beside.pane is None:
            self.beside.set_brain(self._new_brain(self._cortex))
        if what == "second" and second is not None and self._frame is not None:
            self._draw_second(second.engine, second.history)
        elif average is not None:
            self._draw_average(average)

    def _hide_beside(self) -> None:
        if self.beside.isVisible():
            self.beside.hide()
            self.beside.set_brain(None)
            self.main.set_title("")

    def _draw_second(self, engine: EngineDescription, history: History) -> None:
        """The same instant by the second solver."""
        self.beside.set_title(engine.solver + self._whose_limits())
        number = history.number_at(self._frame.time) if self._frame is not None else None
        if number is None or (number, self._measure) == self.beside.shown:
            return
        frame = self._frame_of(history, number)
        if frame is None or self._frame is None:
            return
        self.beside.shown = (number, self._measure)
        if abs(frame.time - self._frame.time) > 1.5 * self.playback.frame_s:
            if self.beside.pane is not None:
                self.beside.pane.set_values(None)  # it has no estimate of this instant
            return
        self._show_frame(self.beside, engine, frame)

    def _draw_average(self, average: Average) -> None:
        place = self._place_in(average)
        wanted = (average.stream.event, average.update, place)
        if wanted == self.beside.shown or self.beside.pane is None:
            return
        self.beside.shown = wanted
        stream, values = average.stream, average.values[:, place]
        latency = f"{1e3 * stream.latencies[place]:.0f} ms".replace("-", "−")
        key = f"average {stream.event} / {stream.solver} / {stream.unit or 'dimensionless'}"
        finite = average.values[np.isfinite(average.values)]
        signed = bool(len(finite)) and float(finite.min()) < 0
        self._fit_limits(self.beside, stream.unit or stream.solver, key, signed)
        self.beside.pane.set_values(values)
        self.beside.set_title(f"average {stream.event}, {trials_words(average.n_trials)}, {latency}{self._whose_limits()}")

    def _whose_limits(self) -> str:
        """Of the brain beside, for its title; the status line tells of the main one."""
        scale, limits_from = self.beside.scale, self.beside.limits_from
        return "" if scale is None or limits_from is LimitsFrom.PERSON else f"; limits: {limits_words(scale, limits_from)}"

    def _draw_panels(self, *, all_at_once: bool) -> None:
        """The panel whose turn has come longest ago, if there is one: all of them at once would hold up the next picture."""
        panels: dict[str, tuple[float, Callable[[], None]]] = {
            "status": (FAST_S, self._draw_status),
            "health": (SLOW_S, self._draw_health),
        }
        if self._state.history is not None:
            panels["timeline"] = (FAST_S, self._draw_timeline)
            if self.playback.shown is not None:
                panels |= {"courses": (FAST_S, self._draw_courses), "sensors": (FAST_S, self._draw_traces)}
                panels["average"] = (FAST_S, self._draw_average_course)
        now = time.monotonic()
        waiting = {name: now - self._done_at.get(name, -math.inf) - every_s for name, (every_s, _) in panels.items()}
        for name in sorted(waiting, key=lambda name: -waiting[name]):
            if waiting[name] < 0:
                break
            self._done_at[name] = now
            panels[name][1]()
            if not all_at_once:
                break

    def _draw_timeline(self) -> None:
        history = self._state.history
        if history is None:
            return
        _, times, flags, _ = history.facts()
        level_times, levels = history.levels(self._measure)
        if len(level_times) == len(times):
            live = self.playback.mode is Mode.LIVE
            marks = tuple(TimeMark(mark.time, mark.text) for mark in self._state.marks)
            self.timeline.strip.show_past(times, levels, flags, marks, self.playback.shown, live, self.playback.frame_s)
        self.timeline.show_playback(self.playback)

    def _draw_courses(self) -> None:
        if self.docks["sources"].isVisible():
            self.side.draw_courses(self._state, self.playback, self._measure, self._cortex, self._place)

    def _draw_traces(self) -> None:
        if self.docks["sensors"].isVisible():
            self.side.draw_traces(self._state, self.playback)

    def _draw_average_course(self) -> None:
        if self.docks["average"].isVisible():
            average = self._shown_average()
            self.side.draw_average(average, 0 if average is None else self._place_in(average), len(self._state.averages))

    def _draw_status(self) -> None:
        state = self._state
        said = Banner("VIEW STOPPED", self._fault) if self._fault else banner(state, self._frame)
        self.banner.show_banner(said)
        now = time.monotonic()
        recent = sum(now - at < 1.0 for at in self._drawn_at)
        filming = ""
        if self.files.filming:
            filming = f"FILM {100 * (self._film_length - len(self._film)) / max(1, self._film_length):.0f} %"
        figures = status_figures(
            state,
            self.playback,
            self._frame,
            self._measure,
            clock=self._clock(math.nan if self._frame is None else self._frame.time),
            scale="" if self.main.scale is None else scale_words(self.main.scale, self.main.limits_from),
            pictures_per_s=recent,
            n_dropped=self.n_dropped,
            filming=filming,
        )
        self.status.show_figures(figures)
        self.tools.show_comparing(self._beside == "second")

    def _draw_health(self) -> None:
        if self.docks["health"].isVisible():
            self.side.draw_health(self._state, self._own_facts())

    def _own_facts(self) -> ViewFacts:
        plain, warn, counts, state = Level.PLAIN, Level.WARN, self._state.counts, self._state
        cost = f", {np.median(self._cost_ms):.1f} ms each" if self._cost_ms else ""
        figures = [
            ("pictures", f"{self.n_drawn} drawn{cost}", plain),
            ("dropped", f"{self.n_dropped} pictures", warn if self.n_dropped else plain),
            ("received", f"{counts.received} estimates", plain),
            (
                "lost",
                f"{counts.lost} on the way, {counts.discarded} discarded",
                warn if counts.lost + counts.discarded else plain,
            ),
            ("holes", f"{counts.holes} never published", warn if counts.holes else plain),
            ("connected", f"{counts.connected} times", plain),
        ]
        if state.offset is not None:
            offset = f"{1e3 * state.offset.offset:.3f} ± {1e3 * state.offset.uncertainty:.3f} ms".replace("-", "−")
            figures.append(("engine clock", offset, plain))
        if state.engine is not None:
            figures.append(("engine on", state.engine.host, plain))
        return ViewFacts(tuple(figures))

    # the end

    def closeEvent(self, event: QCloseEvent) -> None:
        self.end()
        event.accept()

    def end(self) -> None:
        """Stop the timer and all own threads, save the preferences. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._timer.stop()
        if self._remember:
            self._store.save(replace(self.preferences, limits=self.limits.by_key))
            self._store.save_arrangement(self.saveGeometry(), self.saveState())
        self.help.close()
        for part in (self.files, self._cortices):
            part.close()


class _HelpDialog(QDialog):
    """All keys on one page; it does not stop anything."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Keys")
        text = QLabel(help_page())
        text.setTextFormat(Qt.TextFormat.RichText)
        column = QVBoxLayout(self)
        column.addWidget(text)
        for keys in BY_ACTION["help"].keys:
            QShortcut(QKeySequence(keys), self).activated.connect(self.close)

    def toggle(self) -> None:
        if self.isVisible():
            self.close()
        else:
            self.show()
