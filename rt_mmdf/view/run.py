"""The process of the view: an application, a feed, a window; or, without a window, a picture or a film."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from rt_mmdf.core.errors import SinkError, StreamNotFound, ViewError
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.runtime.memory import give_large_blocks_back
from rt_mmdf.view.feed import Feed
from rt_mmdf.view.preferences import PreferencesStore
from rt_mmdf.view.settings import ViewSettings
from rt_mmdf.view.window import ViewWindow

HEADLESS_SIZE = (1280, 720)
WRITING_LIMIT_S = 60.0
LOOK_MS = 20


def run_view(
    settings: ViewSettings,
    transport: Transport,
    feed: Feed,
    *,
    store: PreferencesStore | None = None,
    folder: Path | None = None,
) -> int:
    """Show the window until it is closed, or write what `settings.headless` asks for; returns the exit code.

    Parameters
    ----------
    feed : started; it is the caller's, and goes on
    store : of the preferences; None: those of this user
    folder : for pictures and films; None: the user's folder of pictures

    Raises
    ------
    StreamNotFound, SinkError
        Headless: no engine, no estimate of it within `settings.wait_s`, or what was asked for could not be written.
    """
    give_large_blocks_back()
    app = application()
    store = store or PreferencesStore()
    if settings.headless is not None:
        _render(feed, transport, store, settings, settings.headless)
        return 0
    window = ViewWindow(feed, transport, store, settings=settings, folder=folder)
    try:
        window.show()
        _close_on_signals(app, window)
        return int(app.exec())
    finally:
        window.end()


def application() -> QApplication:
    """The application of this process; made once."""
    existing = QApplication.instance()
    if isinstance(existing, QApplication):
        return existing
    if existing is not None:
        raise ViewError(
            "view: this process has an application of Qt without windows already. Start it in a process of its own."
        )
    app = QApplication(["rt-mmdf view"])
    app.setApplicationDisplayName("rt-mmdf")
    app.setDesktopFileName("rt-mmdf")
    app.setStyle("Fusion")  # the same everywhere: the stylesheets build on it
    return app


def _close_on_signals(app: QApplication, window: ViewWindow) -> None:
    """Ctrl-C and a request to terminate close the window; the interpreter must run now and then to hear of them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: window.close())
    wake = QTimer(app)
    wake.timeout.connect(lambda: None)
    wake.start(200)


def _render(feed: Feed, transport: Transport, store: PreferencesStore, settings: ViewSettings, path: Path) -> None:
    """A picture after `settings.seconds` of estimates, or a film of them. The window is never shown to anybody: it lies on a
    display in memory."""
    size = settings.size or HEADLESS_SIZE
    window = ViewWindow(feed, transport, store, settings=settings, remember=False)
    try:
        for dock in window.docks.values():
            dock.hide()
        window.resize(*size)
        window.show()
        if not _until(lambda: window.has_estimate, settings.wait_s):
            state = feed.state()
            raise StreamNotFound(
                f"view: no estimate to show within {settings.wait_s:g} s. {state.problem or state.note}\n"
                "Is the engine running? `rt-mmdf streams` lists what there is; --wait gives it more time."
            )
        begun = time.monotonic()
        _until(lambda: time.monotonic() - begun >= settings.seconds, math.inf)
        if settings.is_film:
            window.film_to(path, settings.seconds)
            _until(lambda: not window.files.filming, WRITING_LIMIT_S + 10 * settings.seconds)
        else:
            window.files.save(path, window.picture())
        window.files.close()
        if failed := [text for text, went_well in [*window.news, *window.files.news()] if not went_well]:
            raise SinkError(failed[0])
    finally:
        window.end()


def _until(happened: Callable[[], bool], seconds: float) -> bool:
    """Let the application run until something has happened; False after the time limit."""
    loop, limit = QEventLoop(), time.monotonic() + seconds
    timer = QTimer()
    timer.timeout.connect(lambda: loop.quit() if happened() or time.monotonic() > limit else None)
    timer.start(LOOK_MS)
    loop.exec()
    return bool(happened())
