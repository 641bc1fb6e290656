"""What the painted panels share: numbers a person can read, ranges that seldom change, text that is not cut."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetricsF, QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from rt_mmdf.sinks.colours import readable
from rt_mmdf.view.themes import Theme

TICK_PIXELS = 64.0  # least distance of two times on an axis
_OF_SENSORS = {"V": (1e6, "µV"), "T": (1e15, "fT"), "T/m": (1e13, "fT/cm")}


def readable_unit(high: float, unit: str) -> tuple[float, str]:
    """Factor and unit for numbers up to `high` (in `unit`): µV, fT and fT/cm for sensors, as the field writes them; for the
    rest see `rt_mmdf.sinks.colours.readable`."""
    return _OF_SENSORS[unit] if unit in _OF_SENSORS else readable(high, unit)


def nice_ceiling(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `value` (which is positive)."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in (1.0, 2.0, 5.0) if step * power >= value * (1 - 1e-9)), 10.0 * power)


def number(value: float) -> str:
    """Three digits, without an exponent where that is readable."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def runs_of(wanted: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, stop) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


class SteadyRange:
    """A range that holds what is to be seen and seldom changes: in steps of 1, 2, 5; at once to a wider one, to a narrower
    one only after `calm` looks in a row that fit into a third of it."""

    def __init__(self, calm: int = 50) -> None:
        self.high = 0.0
        self._calm = calm
        self._n_small = 0

    def hold(self, largest: float) -> float:
        """A range that holds `largest`; what is not a positive number changes nothing (0 while nothing has been seen)."""
        if math.isfinite(largest) and largest > 0:
            self._n_small = self._n_small + 1 if largest < self.high / 3 else 0
            if largest > self.high or self._n_small >= self._calm:
                self.high, self._n_small = nice_ceiling(largest), 0
        return self.high


class Chart(QWidget):
    """A widget that paints itself on an opaque ground; subclasses fill `draw`."""

    def __init__(self, theme: Theme, smallest: tuple[int, int], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.theme = theme
        self._smallest = QSize(*smallest)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAttribute(Qt.WidgetAttribute.WA_OpaquePaintEvent)

    def set_theme(self, theme: Theme) -> None:
        self.theme = theme
        self.update()

    def minimumSizeHint(self) -> QSize:
        return self._smallest

    def sizeHint(self) -> QSize:
        return self._smallest * 1.5

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.TextAntialiasing)
        painter.fillRect(self.rect(), QColor(self.theme.panel))
        self.draw(painter, QRectF(self.rect()))
        painter.end()

    def draw(self, painter: QPainter, area: QRectF) -> None:
        """Paint the content; the ground is there."""
        raise NotImplementedError

    def small(self) -> QFont:
        """The font of numbers on axes."""
        font = QFont(self.font())
        font.setPointSizeF(max(7.5, 0.87 * font.pointSizeF()))
        return font

    def write(self, painter: QPainter, box: QRectF, text: str, colour: str, align: Qt.AlignmentFlag) -> None:
        """One line of text in the box, shortened with an ellipsis where it does not fit."""
        painter.setPen(QColor(colour))
        metrics = QFontMetricsF(painter.font())
        painter.drawText(box, align, metrics.elidedText(text, Qt.TextElideMode.ElideRight, box.width()))

    def empty(self, painter: QPainter, area: QRectF, text: str) -> None:
        """Say in the middle why there is nothing."""
        painter.setPen(QColor(self.theme.muted))
        flags = int(Qt.AlignmentFlag.AlignCenter) | int(Qt.TextFlag.TextWordWrap)
        painter.drawText(area.adjusted(12, 4, -12, -4), flags, text)


def draw_time_axis(painter: QPainter, chart: Chart, plot: QRectF, seconds: float, end: str) -> None:
    """Ticks below `plot`, which shows so many seconds up to `end` (a word, such as "now")."""
    painter.setFont(chart.small())
    step = nice_ceiling(seconds * max(0.2, TICK_PIXELS / max(plot.width(), 1.0)))
    n_steps = int(seconds / step + 1e-9)
    y, height = plot.bottom(), QFontMetricsF(painter.font()).height()
    for i in range(n_steps + 1):
        x = plot.right() - i * step / seconds * plot.width()
        painter.setPen(QColor(chart.theme.edge))
        painter.drawLine(QPointF(x, plot.top()), QPointF(x, y))
        left, right = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight
        box = QRectF(x - 40, y + 1, 80, height)
        align = Qt.AlignmentFlag.AlignHCenter
        if i == 0:
            box, align = QRectF(x - 80, y + 1, 80, height), right
        elif x - 24 < 0:
            box, align = QRectF(plot.left(), y + 1, 80, height), left
        chart.write(painter, box, end if i == 0 else f"−{number(i * step)} s", chart.theme.muted, align)
