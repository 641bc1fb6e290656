"""The last minute: how strong, what was missing, what was marked, and the cursor of what is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyqtgraph.functions import arrayToQPath
from PySide6.QtCore import QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFontMetricsF, QHelpEvent, QMouseEvent, QPainter, QPen
from PySide6.QtWidgets import QHBoxLayout, QSizePolicy, QToolButton, QToolTip, QWidget

from rt_mmdf.core.blocks import Flag, Float32, Float64
from rt_mmdf.view.panels.chart import Chart, runs_of
from rt_mmdf.view.playback import Mode, Playback
from rt_mmdf.view.shortcuts import BY_ACTION, keys_of
from rt_mmdf.view.themes import Theme

TICK_S = 10.0
# from the most to the least serious; the first that fits names the stretch
STRETCHES = (
    (Flag.INVALID, "no estimate"),
    (Flag.MEG_MISSING, "MEG missing"),
    (Flag.EEG_MISSING, "EEG missing"),
    (Flag.GAP, "gap"),
    (Flag.NONFINITE, "not finite"),
    (Flag.SETTLING, "filters settling"),
    (Flag.OPERATOR_PENDING, "operator pending"),
    (Flag.CLOCK_UNCERTAIN, "clock uncertain"),
    (Flag.CHANNEL_SUSPECT, "channel suspect"),
    (Flag.FALLBACK, "fallback solver"),
)
SERIOUS = Flag.INVALID | Flag.MEG_MISSING | Flag.EEG_MISSING


@dataclass(frozen=True)
class Stretch:
    """Seconds in which something was wrong, and what."""

    start: float
    stop: float
    text: str
    serious: bool


@dataclass(frozen=True)
class TimeMark:
    """A moment that somebody marked."""

    time: float
    text: str


def stretches(times: Float64, flags: NDArray[np.uint32], frame_s: float) -> list[Stretch]:
    """Neighbouring frames with the same most serious fault, as one stretch each.

    Parameters
    ----------
    times, flags : (n_frames,) of the frames, ascending
    frame_s : seconds of a frame; frames farther apart than two of them are no neighbours
    """
    worst = np.full(len(times), -1)
    for place in reversed(range(len(STRETCHES))):
        worst[(flags & np.uint32(STRETCHES[place][0])) != 0] = place
    found = []
    for place, (flag, text) in enumerate(STRETCHES):
        for start, stop in runs_of(worst == place):
            breaks = np.flatnonzero(np.diff(times[start:stop]) > 2 * frame_s) + 1
            for part in np.split(np.arange(start, stop), breaks):
                own = Stretch(float(times[part[0]]) - frame_s, float(times[part[-1]]), text, bool(flag & SERIOUS))
                found.append(own)
    return sorted(found, key=lambda stretch: stretch.start)


class TimeStrip(Chart):
    """The strip itself; a press or a drag on it scrubs."""

    scrubbed = Signal(float)

    def __init__(self, theme: Theme, seconds: float = 60.0, parent: QWidget | None = None) -> None:
        super().__init__(theme, (300, 62), parent)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Last minute")
        self.setMouseTracking(True)
        self.seconds = seconds
        self._newest: float | None = None
        self._shown: float | None = None
        self._live = True
        self._times: Float64 = np.zeros(0)
        self._levels: Float32 = np.zeros(0, dtype=np.float32)
        self._stretches: list[Stretch] = []
        self._marks: tuple[TimeMark, ...] = ()

    def sizeHint(self) -> QSize:
        return QSize(900, 62)

    def show_past(
        self,
        times: Float64,
        levels: Float32,
        flags: NDArray[np.uint32],
        marks: tuple[TimeMark, ...],
        shown: float | None,
        live: bool,
        frame_s: float,
    ) -> None:
        """Show frames (times, largest magnitude, flags), marks, and the cursor."""
        self._newest = float(times[-1]) if len(times) else None
        self._times, self._levels, self._marks, self._shown, self._live = times, levels, marks, shown, live
        self._stretches = stretches(times, flags, frame_s)
        self.update()

    @property
    def plot(self) -> QRectF:
        """Where the minute lies."""
        line = QFontMetricsF(self.small()).height()
        return QRectF(self.rect()).adjusted(8, line + 2, -10, -line - 2)

    def x_of(self, time: float) -> float:
        """Pixel of a moment."""
        plot = self.plot
        return plot.right() - ((self._newest or 0.0) - time) / self.seconds * plot.width()

    def time_at(self, x: float) -> float | None:
        """Moment of a pixel; None while there is nothing."""
        plot = self.plot
        return None if self._newest is None else self._newest - (plot.right() - x) / plot.width() * self.seconds

    def draw(self, painter: QPainter, area: QRectF) -> None:
        plot = self.plot
        painter.fillRect(plot, QColor(self.theme.background))
        painter.setFont(self.small())
        if self._newest is None:
            self.empty(painter, plot, "nothing received yet")
            return
        self._draw_ticks(painter, plot)
        painter.setClipRect(plot.adjusted(-1, -20, 1, 20))
        self._draw_levels(painter, plot)
        self._draw_stretches(painter, plot)
        self._draw_marks(painter, plot)
        painter.setClipping(False)
        if self._shown is not None:
            x = self.x_of(self._shown)
            painter.setPen(QPen(QColor(self.theme.accent), 1.0 if self._live else 2.0))
            painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))
            painter.setBrush(QColor(self.theme.accent))
            low = plot.bottom()
            painter.drawPolygon([QPointF(x - 5, low), QPointF(x + 5, low), QPointF(x, low - 7)])

    def _draw_ticks(self, painter: QPainter, plot: QRectF) -> None:
        line = QFontMetricsF(painter.font()).height()
        for i in range(int(self.seconds / TICK_S) + 1):
            x = plot.right() - i * TICK_S / self.seconds * plot.width()
            painter.setPen(QColor(self.theme.edge))
            painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))
            box, align = QRectF(x - 30, plot.bottom() + 1, 60, line), Qt.AlignmentFlag.AlignHCenter
            if i == 0:
                box, align = QRectF(x - 70, plot.bottom() + 1, 70, line), Qt.AlignmentFlag.AlignRight
            elif x - 30 < 0:
                box, align = QRectF(plot.left(), plot.bottom() + 1, 60, line), Qt.AlignmentFlag.AlignLeft
            self.write(painter, box, "newest" if i == 0 else f"−{i * TICK_S:.0f} s", self.theme.muted, align)

    def _draw_levels(self, painter: QPainter, plot: QRectF) -> None:
        high = float(np.nanmax(self._levels)) if np.isfinite(self._levels).any() else 0.0
        if high <= 0:
            return
        x = plot.right() - (self._times[-1] - self._times) / self.seconds * plot.width()
        y = plot.bottom() - self._levels.astype(np.float64) / high * (plot.height() - 3)
        painter.setPen(QPen(QColor(self.theme.muted), 1))
        painter.drawPath(arrayToQPath(x, y, connect="finite"))

    def _draw_stretches(self, painter: QPainter, plot: QRectF) -> None:
        metrics = QFontMetricsF(painter.font())
        for stretch in self._stretches:
            left, right = max(plot.left(), self.x_of(stretch.start)), self.x_of(stretch.stop)
            if right < plot.left():
                continue
            colour = QColor(self.theme.bad if stretch.serious else self.theme.warn)
            painter.fillRect(QRectF(left, plot.bottom() - 4, max(1.5, right - left), 4), colour)
            colour.setAlpha(60 if stretch.serious else 30)
            painter.fillRect(QRectF(left, plot.top(), max(1.5, right - left), plot.height() - 4), colour)
            if metrics.horizontalAdvance(stretch.text) + 8 < right - left:
                painter.setPen(QColor(self.theme.text))
                box = QRectF(left, plot.top(), right - left, plot.height() - 4)
                painter.drawText(box, Qt.AlignmentFlag.AlignCenter, stretch.text)

    def _draw_marks(self, painter: QPainter, plot: QRectF) -> None:
        metrics = QFontMetricsF(painter.font())
        line = metrics.height()
        marks = [mark for mark in self._marks if self.x_of(mark.time) >= plot.left()]
        for number, mark in enumerate(marks):
            x = self.x_of(mark.time)
            right = (self.x_of(marks[number + 1].time) if number + 1 < len(marks) else plot.right()) - x - 6
            left = x - (self.x_of(marks[number - 1].time) if number else plot.left()) - 6
            painter.setPen(QPen(QColor(self.theme.warn), 1.5))
            painter.drawLine(QPointF(x, plot.top() - line), QPointF(x, plot.bottom()))
            text, top = mark.text or "mark", plot.top() - line - 2
            on_left = number + 1 == len(marks) and metrics.horizontalAdvance(text) > right and left > right
            if on_left:
                box, align = QRectF(x - 3 - left, top, left, line), Qt.AlignmentFlag.AlignRight
            else:
                box, align = QRectF(x + 3, top, right, line), Qt.AlignmentFlag.AlignLeft
            if box.width() > 14:
                self.write(painter, box, text, self.theme.warn, align)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.buttons() & Qt.MouseButton.LeftButton and (time := self.time_at(event.position().x())) is not None:
            self.scrubbed.emit(time)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        self.mousePressEvent(event)

    def event(self, event: object) -> bool:
        if isinstance(event, QHelpEvent) and (time := self.time_at(event.pos().x())) is not None:
            at = [stretch.text for stretch in self._stretches if stretch.start <= time <= stretch.stop]
            at += [mark.text or "mark" for mark in self._marks if abs(self.x_of(mark.time) - event.pos().x()) < 4]
            where = f"{time - (self._newest or 0.0):.1f} s"
            QToolTip.showText(event.globalPos(), ": ".join([where.replace("-", "−"), ", ".join(at)]) if at else where, self)
            return True
        return super().event(event)  # type: ignore[arg-type]


class TimelinePanel(QWidget):
    """Buttons and the strip.

    Signals say what is wanted; what is shown is told back with `show_playback` and `strip.show_past`.
    """

    wanted = Signal(str)
    """An action of `rt_mmdf.view.shortcuts`."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.strip = TimeStrip(theme)
        self.live = self._button("live", "LIVE")
        self.live.setCheckable(True)
        self.pause = self._button("pause", "❚❚")
        self.speed = self._button("slower", "×1")
        row = QHBoxLayout(self)
        row.setContentsMargins(8, 2, 4, 4)
        row.setSpacing(4)
        for button in (self.live, self._button("back", "◂"), self.pause, self._button("forward", "▸"), self.speed):
            row.addWidget(button)
        row.addWidget(self.strip, 1)

    def _button(self, action: str, text: str) -> QToolButton:
        button = QToolButton(self)
        button.setText(text)
        does = BY_ACTION[action].does
        button.setToolTip(f"{does[0].upper()}{does[1:]} ({keys_of(action)})")
        button.setAccessibleName(does)
        button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        button.setMinimumSize(38, 30)
        button.clicked.connect(lambda: self.wanted.emit(action))
        return button

    def show_playback(self, playback: Playback) -> None:
        """Let the buttons say what is happening."""
        self.live.setChecked(playback.mode is Mode.LIVE)
        self.pause.setText("▶" if playback.mode is Mode.PAUSED else "❚❚")
        self.speed.setText(f"×{playback.speed:g}")

    def set_theme(self, theme: Theme) -> None:
        self.strip.set_theme(theme)
