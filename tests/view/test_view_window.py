"""The whole window, painted on a display, over streams in memory and a clock that a test moves."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from time import monotonic

import imageio.v2 as imageio
import numpy as np
import pytest
from PySide6.QtCore import QPoint, QRect, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLabel, QToolBar, QWidget
from pytestqt.qtbot import QtBot

from rt_mmdf.core.blocks import Flag
from rt_mmdf.core.errors import StreamNotFound
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.lsl.interface import Clock
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.view.brain_slot import LimitsFrom
from rt_mmdf.view.camera import LAYOUTS
from rt_mmdf.view.feed import Feed, FeedState
from rt_mmdf.view.film import pixels
from rt_mmdf.view.flat import FlatBrainView
from rt_mmdf.view.playback import Mode
from rt_mmdf.view.preferences import Preferences, PreferencesStore
from rt_mmdf.view.run import run_view
from rt_mmdf.view.settings import ViewSettings
from rt_mmdf.view.themes import LIGHT
from rt_mmdf.view.window import ViewWindow

from .publishing_engine import HOP_S, PublishingEngine

pytestmark = pytest.mark.gui
LISTENS = {"streams/marks": "e-marks"}
PATIENCE_MS = 20_000


def sources_of(head: HeadModel) -> SourceSpaceDescription:
    return SourceSpaceDescription(head.name, head.fingerprint, head.vertices, head.source_positions_mm, "MNI305")


class Lab:
    """A window on one machine, an engine on another; nothing moves but by `run`."""

    def __init__(self, head: HeadModel, folder: Path, clock: Clock | None = None) -> None:
        self.clock = ManualClock(5000.0)
        self.head = head
        self.here = MemoryTransport(clock or self.clock, uncertainty_s=1e-4)
        self.there = self.here.machine("lab", offset_s=70.0)
        self.feed = Feed(self.here, find=lambda engine, folder: self.head)
        self.store = PreferencesStore(folder / "view.ini")
        self.folder = folder
        self.window: ViewWindow | None = None

    def open(self, qtbot: QtBot, size: tuple[int, int] = (1280, 720)) -> ViewWindow:
        self.window = ViewWindow(
            self.feed, self.here, self.store, settings=ViewSettings(size=size), folder=self.folder / "pictures"
        )
        self.window._timer.stop()  # the test looks when it wants
        qtbot.addWidget(self.window)
        with qtbot.waitActive(self.window):  # only then do its keys work
            self.window.show()
            self.window.activateWindow()
        return self.window

    def engine(self, **more: str) -> PublishingEngine:
        return PublishingEngine(self.there, "e", sources_of(self.head), sfreq=200.0, more=LISTENS | more)

    def round(self) -> FeedState:
        self.feed.look()
        self.feed.receive()
        self.feed.receive_second()
        self.feed.attend()
        return self.feed.state()

    def look(self) -> None:
        """What the window's timer does."""
        if self.window is not None:
            self.window.refresh(everything=True)

    def run(self, engine: PublishingEngine | None, seconds: float, value: float | np.ndarray = 0.0, flags: int = 0) -> None:
        for hop in range(round(seconds / HOP_S)):
            self.clock.advance(HOP_S)
            if engine is not None:
                engine.publish(value, flags=flags)
            self.round()
            if hop % 4 == 3:  # each 40 ms
                self.look()
        self.look()

    def until_brain(self, qtbot: QtBot) -> None:
        """The cortex is prepared in a thread."""

        def there() -> bool:
            self.round()
            self.look()
            return self.window is not None and self.window.main.pane is not None

        qtbot.waitUntil(there, timeout=PATIENCE_MS)


@pytest.fixture
def lab(template_head_ico3: HeadModel, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(template_head_ico3, tmp_path)
    yield made
    if made.window is not None:
        made.window.end()
    made.feed.close()


@pytest.fixture
def running(lab: Lab, qtbot: QtBot) -> tuple[Lab, ViewWindow, PublishingEngine]:
    """A window on a running engine with a brain."""
    window, engine = lab.open(qtbot), lab.engine()
    lab.run(engine, 0.3)
    lab.until_brain(qtbot)
    lab.run(engine, 0.2)
    return lab, window, engine


Running = tuple[Lab, ViewWindow, PublishingEngine]


@pytest.fixture
def compared(lab: Lab, qtbot: QtBot) -> Running:
    """A window with two brains, of an engine with a second solver."""
    window, engine = lab.open(qtbot), lab.engine(**{"streams/second": "e-second"})
    second = PublishingEngine(lab.there, "e", sources_of(lab.head), sfreq=200.0, solver="sLORETA", stream="e-second")
    lab.run(engine, 0.1)
    lab.until_brain(qtbot)
    QTest.keyClick(window, Qt.Key.Key_X)

    def two() -> bool:
        second.publish(2.0)
        lab.run(engine, HOP_S, 1.0)
        return window.beside.pane is not None and window.beside.scale is not None

    qtbot.waitUntil(two, timeout=PATIENCE_MS)
    return lab, window, engine


def test_it_opens_without_an_engine_and_says_what_to_do(lab: Lab, qtbot: QtBot) -> None:
    window = lab.open(qtbot)
    lab.round()
    lab.look()
    assert window.banner.isVisible()
    assert window.banner.banner is not None
    assert window.banner.banner.text == "NO ENGINE"
    assert "rt-mmdf monitor" in window.banner.banner.detail
    assert not window.has_estimate


def brain_picture(window: ViewWindow) -> np.ndarray:
    pane = window.main.pane
    assert pane is not None
    return pane.grab_image().astype(int)[:, : pane.canvas.width()]


def test_a_source_is_painted_where_it_is_in_its_colour(running: Running) -> None:
    lab, window, engine = running
    window.choose("layout", "split")
    quiet = brain_picture(window)
    assert np.ptp(quiet, axis=2).max() < 30  # greys alone, and words
    source = lab.head.n_sources // 4
    values = np.zeros((lab.head.n_sources, 1), np.float32)
    values[source] = 1e3
    lab.run(engine, 0.2, values)
    pane, cortex = window.main.pane, window._cortex
    assert pane is not None
    assert cortex is not None
    hot = brain_picture(window)
    seen = [place for place in pane.project(int(cortex.source_vertices[source])) if place[2]]
    assert seen
    x, y, _ = seen[0]
    colour = hot[round(y), round(x)]
    expected = pane.scale.table()[-1, :3].astype(int)
    assert np.corrcoef(colour, expected)[0, 1] > 0.95
    assert np.ptp(colour) > 60
    changed = np.abs(hot - quiet).max(axis=2) > 30
    assert 0 < changed.mean() < 0.05  # there, and nowhere else


def test_a_missing_modality_is_told_in_letters_that_nobody_overlooks(running: Running) -> None:
    lab, window, engine = running
    assert not window.banner.isVisible()
    lab.run(engine, 0.1, flags=int(Flag.MEG_MISSING))
    assert window.banner.isVisible()
    assert window.banner._text.text() == "EEG ONLY: MEG missing"
    assert window.banner._text.font().pointSize() >= 24
    picture = pixels(window.banner.grab().toImage()).astype(int)
    bad = [int(window.theme.bad[i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(picture - bad).max(axis=2) < 8).mean() > 0.5  # most of it is red
    assert window.banner.width() > 0.6 * window.width()
    lab.run(engine, 0.1)
    assert not window.banner.isVisible()


def test_what_is_no_estimate_is_never_coloured(running: Running) -> None:
    lab, window, engine = running
    lab.run(engine, 0.1, 1e3)
    assert np.ptp(brain_picture(window), axis=2).max() > 100
    lab.run(engine, 0.1, np.nan, flags=int(Flag.INVALID | Flag.SETTLING))
    assert window.main.pane is not None
    assert "no valid estimate" in window.main.pane.notice
    assert window.banner._text.text() == "NO ESTIMATE: the filters are settling"
    assert np.ptp(brain_picture(window)[: window.main.pane.height() // 4], axis=2).max() < 12


def test_a_silent_engine_is_greyed_and_one_that_returns_is_live_again(running: Running, qtbot: QtBot) -> None:
    lab, window, engine = running
    lab.run(engine, 0.1, 1e3)
    engine.close()
    lab.run(None, 3.0)
    assert window.banner.banner is not None
    assert window.banner.banner.text.startswith("ENGINE SILENT: last estimate 3")
    assert window.main.pane is not None
    assert "old" in window.main.pane.notice
    assert np.ptp(brain_picture(window)[: window.main.pane.height() // 4], axis=2).max() < 12
    assert window.status.figures[0].text == "SILENT"
    again = lab.engine()
    lab.run(again, 0.5, 1e3)
    assert not window.banner.isVisible()
    assert window.main.pane.notice == ""
    assert window.status.figures[0].text == "LIVE"
    assert np.ptp(brain_picture(window), axis=2).max() > 100


def test_another_head_with_fewer_sources_is_taken_up(running: Running, qtbot: QtBot) -> None:
    lab, window, engine = running
    first = window.main.pane
    engine.close()
    halves = tuple(replace(h, source_vertices=h.source_vertices[::2]) for h in lab.head.hemispheres)
    described = sources_of(lab.head)
    half = replace(
        described,
        fingerprint="cd" * 32,
        vertices=(described.vertices[0][::2], described.vertices[1][::2]),
        positions_mm=np.vstack([h.white[h.source_vertices] for h in halves]),
    )
    lab.head = replace(lab.head, hemispheres=halves)  # type: ignore[arg-type]
    other = PublishingEngine(lab.there, "e", half, sfreq=200.0)
    lab.run(other, 3.0)

    def changed() -> bool:
        lab.run(other, HOP_S)
        return window.main.pane is not None and window.main.pane is not first

    qtbot.waitUntil(changed, timeout=PATIENCE_MS)
    lab.run(other, 0.2)
    assert window._cortex is not None
    assert window._cortex.n_sources == half.n_sources
    assert window.has_estimate


def test_a_flood_between_two_looks_costs_pictures_that_are_counted(running: Running) -> None:
    lab, window, engine = running
    drawn, dropped, numbers = window.n_drawn, window.n_dropped, lab.feed.state().history
    assert numbers is not None
    before = numbers.stop
    for _ in range(400):  # 4 s at once
        lab.clock.advance(HOP_S)
        engine.publish(1.0)
    lab.round()
    lab.look()
    assert window.n_drawn == drawn + 1
    assert window.n_dropped - dropped == numbers.stop - before - 1
    assert window.n_dropped - dropped > 20


def test_keys_pause_step_and_return_to_live(running: Running) -> None:
    lab, window, engine = running
    lab.run(engine, 2.0)
    QTest.keyClick(window, Qt.Key.Key_Space)
    held = window.playback.shown
    assert held is not None
    lab.run(engine, 0.5)
    assert window.playback.shown == held
    assert window.status.figures[0].text == "PAUSED"
    QTest.keyClick(window, Qt.Key.Key_Left)
    lab.look()
    assert window.playback.shown == pytest.approx(held - 0.04)
    assert window._frame is not None
    assert window._frame.time == pytest.approx(held - 0.04, abs=0.021)
    QTest.keyClick(window, Qt.Key.Key_L)
    lab.look()
    assert window.playback.mode is Mode.LIVE
    strip = window.timeline.strip
    QTest.mousePress(strip, Qt.MouseButton.LeftButton, pos=QPoint(round(strip.x_of(held - 1.0)), strip.height() // 2))
    assert window.playback.mode is Mode.PAUSED
    assert window.playback.shown == pytest.approx(held - 1.0, abs=0.1)


def test_a_note_becomes_a_mark_of_the_moment_of_the_key(running: Running) -> None:
    lab, window, engine = running
    marked = lab.there.clock.now()
    QTest.keyClick(window, Qt.Key.Key_M)
    assert window.ask.asking
    lab.run(engine, 1.0)  # typing takes time, and the view goes on
    QTest.keyClicks(window.ask._edit, "space s")
    QTest.keyClick(window.ask._edit, Qt.Key.Key_Return)
    lab.run(engine, 0.1)
    assert window.playback.mode is Mode.LIVE  # the letters were no shortcuts
    assert window.preferences.surface == "inflated"
    marks = lab.feed.state().marks
    assert [mark.text for mark in marks] == ["space s"]
    assert marks[0].time == pytest.approx(marked, abs=0.02)
    assert any(shown.text == "space s" for shown in window.timeline.strip._marks)


def test_a_click_on_the_cortex_names_the_place(running: Running) -> None:
    lab, window, engine = running
    pane = window.main.pane
    assert pane is not None
    QTest.keyClick(window, Qt.Key.Key_1)
    lab.run(engine, 0.1)
    middle = QPoint(pane.canvas.width() // 2, pane.canvas.height() // 2)
    QTest.mouseClick(pane.canvas, Qt.MouseButton.LeftButton, pos=middle)
    assert window._place is not None
    assert window._place.hemisphere == 0
    assert window._place.mni_mm is not None
    lab.run(engine, 0.1)
    (course,) = window.side.courses._courses
    assert "MNI" in course.label
    QTest.keyClick(window, Qt.Key.Key_Escape)
    assert window._place is None


def test_limits_are_calibrated_kept_and_never_change_by_themselves(running: Running, tmp_path: Path) -> None:
    lab, window, engine = running
    scale = window.main.scale
    assert scale is not None
    lab.run(engine, 0.5, 500.0)
    assert window.main.scale is scale  # forty times its end: still fixed
    assert any("default" in figure.text for figure in window.status.figures)
    QTest.keyClick(window, Qt.Key.Key_C)
    assert window.main.scale is not scale
    assert window.main.scale is not None
    assert window.main.scale.low == pytest.approx(500.0, rel=0.01)
    (limits,) = window.limits.by_key.values()
    window.close()
    assert PreferencesStore(tmp_path / "view.ini").load().limits == {"dSPM / dimensionless / rms": limits}


def test_two_brains_are_seen_from_the_same_side_and_limited_one_by_one(compared: Running) -> None:
    _, window, _ = compared
    left, right = window.main.pane, window.beside.pane
    assert left is not None
    assert right is not None
    middle = QPoint(right.canvas.width() // 2, right.canvas.height() // 2)
    QTest.mousePress(right.canvas, Qt.MouseButton.LeftButton, pos=middle)
    QTest.mouseMove(right.canvas, middle + QPoint(60, 20))
    QTest.mouseRelease(right.canvas, Qt.MouseButton.LeftButton, pos=middle + QPoint(60, 20))
    assert left.cameras == right.cameras
    assert left.cameras[0].azimuth != LAYOUTS["both"][0].home.azimuth
    window.act("limits")
    assert "left brain" in window.ask._label.text()
    window.ask._edit.setText("1 2 3")
    QTest.keyClick(window.ask._edit, Qt.Key.Key_Return)
    assert "right brain" in window.ask._label.text()
    window.ask._edit.setText("4 5 6")
    QTest.keyClick(window.ask._edit, Qt.Key.Key_Return)
    assert not window.ask.asking
    assert window.main.scale is not None
    assert window.beside.scale is not None
    assert (window.main.scale.low, window.main.scale.high) == (1.0, 3.0)
    assert (window.beside.scale.low, window.beside.scale.high) == (4.0, 6.0)


def test_limits_of_the_command_line_are_those_of_the_first_brain(lab: Lab, qtbot: QtBot) -> None:
    settings = ViewSettings(limits=(1.0, 2.0, 3.0), flat=True)
    window = ViewWindow(lab.feed, lab.here, lab.store, settings=settings, remember=False)
    window._timer.stop()
    qtbot.addWidget(window)
    window.show()
    lab.window = window
    engine = lab.engine()
    lab.until_brain(qtbot)
    lab.run(engine, 0.2, 1.0)
    assert isinstance(window.main.pane, FlatBrainView)
    assert window.main.scale is not None
    assert (window.main.scale.low, window.main.scale.full, window.main.scale.high) == (1.0, 2.0, 3.0)
    assert window.main.limits_from is LimitsFrom.PERSON


def test_moments_are_limited_once_by_their_first_seconds_and_it_is_said(lab: Lab, qtbot: QtBot) -> None:
    window = lab.open(qtbot)
    engine = PublishingEngine(lab.there, "e", sources_of(lab.head), sfreq=200.0, solver="fusion", unit="A m", more=LISTENS)
    lab.run(engine, 0.1, 2e-9)
    lab.until_brain(qtbot)
    lab.run(engine, 1.0, 2e-9)
    scale = window.main.scale
    assert scale is not None
    assert (scale.high, window.main.limits_from) == (20e-9, LimitsFrom.DEFAULT)
    lab.run(engine, 4.0, 2e-9)
    first = window.main.scale
    assert first is not None
    assert first.high == pytest.approx(2e-9, rel=1e-3)
    assert any("of the first 4 s, press C" in figure.text for figure in window.status.figures)
    lab.run(engine, 5.0, 50e-9)
    assert window.main.scale is first  # once
    assert not window.limits.by_key  # and for this window alone


def test_pictures_and_films_come_out(running: Running, qtbot: QtBot) -> None:
    lab, window, engine = running
    lab.run(engine, 1.0, 1e3)
    QTest.keyClick(window, Qt.Key.Key_P)
    assert window.film_to(lab.folder / "film.gif", 0.4)

    def written() -> bool:
        lab.run(engine, HOP_S)
        return len(window.news) == 2

    qtbot.waitUntil(written, timeout=PATIENCE_MS)
    assert all(went_well for _, went_well in window.news)
    (png,) = (lab.folder / "pictures").iterdir()
    picture = imageio.imread(png)
    assert picture.shape[0] > window.brains.height()  # with its caption
    assert np.ptp(picture[: window.brains.height(), :, :3].astype(int), axis=2).max() > 100
    assert (lab.folder / "film.gif").stat().st_size > 1000


@pytest.mark.parametrize("size", [(1280, 720), (2560, 1440)])
def test_nothing_overlaps_and_nothing_is_cut(lab: Lab, qtbot: QtBot, size: tuple[int, int]) -> None:
    window, engine = lab.open(qtbot, size), lab.engine()
    lab.run(engine, 0.3)
    lab.until_brain(qtbot)
    window.act("average")
    window.act("compare")
    lab.run(engine, 0.2, flags=int(Flag.EEG_MISSING))
    window.tell("a long sentence below the brain " * 12)
    qtbot.waitUntil(lambda: (window.width(), window.height()) == size, timeout=PATIENCE_MS)
    parts: list[QWidget] = [window.status, window.banner, window.main, window.beside, window.ask, window.timeline]
    parts += [part for part in window.findChildren(QToolBar) if part.objectName() == "picture"]
    parts += [dock for dock in window.docks.values() if dock.isVisible() and not dock.visibleRegion().isEmpty()]
    places = [QRect(part.mapTo(window, QPoint(0, 0)), part.size()) for part in parts]
    for place, part in zip(places, parts, strict=True):
        assert window.rect().contains(place), part
        assert place.width() >= part.minimumSizeHint().width(), part
        assert place.height() >= part.minimumSizeHint().height(), part
    for (one, own), (other, foreign) in combinations(zip(places, parts, strict=True), 2):
        assert not one.intersects(other), (own, foreign)
    fitting = [figure for figure, _ in window.status.fitting(window.status.width() - 20)]
    assert all(figure in fitting for figure in window.status.figures if figure.important)
    assert window.main.height() > 0.5 * size[1]


def test_help_theme_and_panels_by_key(running: Running) -> None:
    lab, window, engine = running
    QTest.keyClick(window, Qt.Key.Key_F1)
    assert window.help.isVisible()
    window.help.close()
    QTest.keyClick(window, Qt.Key.Key_D)
    assert window.theme is LIGHT
    lab.run(engine, 0.1)
    corner = pixels(window.grab().toImage())[60, -400]
    assert corner.min() > 200
    QTest.keyClick(window, Qt.Key.Key_H)
    lab.look()
    assert not window.docks["health"].visibleRegion().isEmpty()
    assert "This view" in window.side.health.html
    window.close()
    assert lab.store.load() == replace(Preferences(), theme="light")


def test_painting_takes_no_reference_of_none(running: Running) -> None:
    lab, window, engine = running
    lab.run(engine, 0.2)
    before = sys.getrefcount(None)
    for _ in range(20):
        lab.run(engine, 0.04)
        window.grab()
    assert sys.getrefcount(None) - before > -200  # PySide6 6.12.0 takes some fifty of them with each picture


def test_closing_ends_every_thread_and_not_the_engine(lab: Lab, qtbot: QtBot) -> None:
    before = set(threading.enumerate())
    window, engine = lab.open(qtbot), lab.engine()
    lab.feed.start()
    window._timer.start(20)

    def shown() -> bool:
        lab.clock.advance(HOP_S)
        engine.publish(1.0)
        return window.has_estimate

    qtbot.waitUntil(shown, timeout=PATIENCE_MS)
    assert len(set(threading.enumerate()) - before) >= 5
    assert window.close()
    lab.feed.close()
    assert set(threading.enumerate()) - before == set()
    engine.publish(1.0)
    engine.health.publish({"hops": 1})


class _WallClock:
    def now(self) -> float:
        return monotonic()


@pytest.fixture
def busy(template_head_ico3: HeadModel, tmp_path: Path) -> Iterator[Callable[[], Lab]]:
    """A started feed, and an engine in a thread of its own, in real time."""
    lab = Lab(template_head_ico3, tmp_path, _WallClock())
    engine = lab.engine()

    def step() -> None:
        engine.publish(1e3)
        worker.pause(HOP_S)

    worker = Worker("publishing", step)
    with worker, lab.feed:
        yield lambda: lab


def test_headless_writes_a_picture_and_a_film(busy: Callable[[], Lab], qtbot: QtBot) -> None:
    lab = busy()
    for name, seconds in (("brain.png", 0.2), ("brain.mp4", 0.6)):
        settings = ViewSettings(headless=lab.folder / name, seconds=seconds, size=(640, 480), layout="split")
        assert run_view(settings, lab.here, lab.feed, store=lab.store) == 0
    picture = imageio.imread(lab.folder / "brain.png").astype(int)
    assert np.ptp(picture[..., :3], axis=2).max() > 100
    assert (lab.folder / "brain.mp4").stat().st_size > 1000
    assert not (lab.folder / "view.ini").exists()  # what is rendered for a report changes no preferences


def test_headless_without_an_engine_is_a_plain_error(lab: Lab, qtbot: QtBot) -> None:
    with lab.feed, pytest.raises(StreamNotFound, match="no estimate to show within 1 s"):
        run_view(ViewSettings(headless=lab.folder / "a.png", wait_s=1.0), lab.here, lab.feed, store=lab.store)
    assert list(lab.folder.glob("*.png")) == []


EVIL = "<img src='x'><b>x</b> &amp; \x1b[2J\u202e"


def test_texts_of_the_network_are_never_read_as_html(lab: Lab, qtbot: QtBot) -> None:
    """Names, solver, unit, problems and notes: plain in each label, escaped where a label or a tool tip reads HTML."""
    window = lab.open(qtbot)
    engine = PublishingEngine(
        lab.there, "e", sources_of(lab.head), sfreq=200.0, solver=EVIL, unit="<i>u</i>", more=LISTENS | {"head/name": EVIL}
    )
    lab.run(engine, 0.3)
    lab.until_brain(qtbot)
    stream = {"name": EVIL, "hostname": EVIL, "sfreq": 1.0}
    marks = {"newest": [{"stamp": lab.there.clock.now(), "received": lab.there.clock.now(), "text": EVIL, "host": EVIL}]}
    told = {"hops": 1, "solver": EVIL, "streams": {"eeg": stream}, "bad_channels": {EVIL: EVIL}, "marks": marks}
    engine.health.publish(told | {"operators_failed": {EVIL: EVIL}, "average": {"problem": EVIL}})
    lab.run(engine, 0.3)
    assert lab.feed.state().health is not None
    QTest.keyClick(window, Qt.Key.Key_H)
    lab.look()
    for label in window.findChildren(QLabel):
        if label.textFormat() is not Qt.TextFormat.PlainText:
            assert "<img" not in label.text()
            assert "<b>x</b>" not in label.text()
    assert "&lt;img" in window.side.health.html
    tips = [widget.toolTip() for widget in window.findChildren(QWidget) if widget.toolTip()]
    assert any("&lt;i&gt;u" in tip or "&lt;img" in tip for tip in tips), tips
    assert not any("<img" in tip or "<i>" in tip for tip in tips)
