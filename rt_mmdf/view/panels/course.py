"""Time courses of single sources: of the strongest ones, or of the place that was picked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pyqtgraph.functions import arrayToQPath
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter, QPen
from PySide6.QtWidgets import QWidget

from rt_mmdf.core.blocks import Float32, Float64
from rt_mmdf.view.panels.chart import Chart, SteadyRange, draw_time_axis, number, readable_unit
from rt_mmdf.view.themes import Theme

MAX_COURSES = 5
LEAST_PLOT = 74.0  # pixels with its axis: where there is no more room, fewer lines are shown


@dataclass(frozen=True)
class Course:
    """One line: what it is of, when, and how much; NaN breaks the line."""

    label: str
    times: Float64
    values: Float32


class CoursePanel(Chart):
    """At most five lines below their names; fewer where the panel is low.

    The range of values is stated and changes in steps (see `SteadyRange`); it begins at 0 where nothing is negative.
    """

    def __init__(self, theme: Theme, seconds: float = 10.0, parent: QWidget | None = None) -> None:
        super().__init__(theme, (260, 110), parent)
        self.seconds = seconds
        self._courses: tuple[Course, ...] = ()
        self._until = 0.0
        self._end = "now"
        self._unit = ""
        self._heading = ""
        self._range = SteadyRange()
        self.setAccessibleName("Time courses of sources")

    def show_courses(
        self,
        courses: tuple[Course, ...],
        until: float,
        unit: str,
        heading: str,
        end: str = "now",
        seconds: float | None = None,
    ) -> None:
        """Show the seconds before `until`.

        Parameters
        ----------
        courses : strongest first; what is beyond `MAX_COURSES` is left out
        unit : of the values, ``"A m"`` or ``""``
        heading : what the lines are, for example which reduction
        end : names the right edge
        """
        if unit != self._unit:
            self._range = SteadyRange()
        self._courses, self._until, self._unit, self._heading, self._end = courses[:MAX_COURSES], until, unit, heading, end
        self.seconds = seconds or self.seconds
        self.update()

    def draw(self, painter: QPainter, area: QRectF) -> None:
        line = QFontMetricsF(self.font()).height() + 1
        left = Qt.AlignmentFlag.AlignLeft
        box = area.adjusted(8, 2, -8, -2)
        painter.setFont(self.small())
        n_lines = max(1, min(len(self._courses), int((box.height() - LEAST_PLOT - line) / line)))
        self.write(painter, QRectF(box.left(), box.top(), box.width(), line), self._heading, self.theme.muted, left)
        rows = box.top() + line
        for place, course in enumerate(self._courses[:n_lines]):
            colour = self.theme.series[place]
            painter.fillRect(QRectF(box.left(), rows + line / 2 - 2, 12, 3), QColor(colour))
            self.write(painter, QRectF(box.left() + 18, rows, box.width() - 18, line), course.label, self.theme.text, left)
            rows += line
        recent = [
            c.values[(c.times > self._until - self.seconds) & (c.times <= self._until)] for c in self._courses[:n_lines]
        ]
        together = np.concatenate(recent) if recent else np.zeros(0, dtype=np.float32)
        finite = together[np.isfinite(together)]
        if not len(finite):
            self.empty(painter, QRectF(box.left(), rows, box.width(), box.bottom() - rows), "no estimate in this time")
            return
        high = self._range.hold(float(np.abs(finite).max()))
        low = -high if finite.min() < 0 else 0.0
        bottom = QFontMetricsF(self.small()).height() + 3
        plot = QRectF(box.left() + 46, rows + 6, box.width() - 50, box.bottom() - rows - bottom - 6)
        if plot.height() < 20 or high <= 0:
            return
        draw_time_axis(painter, self, plot, self.seconds, self._end)
        self._draw_values_axis(painter, plot, low, high)
        painter.setClipRect(plot)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for place, course in enumerate(self._courses[:n_lines]):
            near = np.flatnonzero((course.times > self._until - self.seconds) & (course.times <= self._until))
            x = plot.right() - (self._until - course.times[near]) / self.seconds * plot.width()
            y = plot.bottom() - (course.values[near].astype(np.float64) - low) / (high - low) * plot.height()
            painter.setPen(QPen(QColor(self.theme.series[place]), 1.4))
            painter.drawPath(arrayToQPath(x, y, connect="finite"))
        painter.setClipping(False)

    def _draw_values_axis(self, painter: QPainter, plot: QRectF, low: float, high: float) -> None:
        factor, unit = readable_unit(high, self._unit)
        line = QFontMetricsF(painter.font()).height()
        right = Qt.AlignmentFlag.AlignRight
        for value in (low, 0.0, high) if low < 0 else (0.0, high / 2, high):
            y = plot.bottom() - (value - low) / (high - low) * plot.height()
            painter.setPen(QColor(self.theme.edge))
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y))
            box = QRectF(plot.left() - 46, min(max(y - line / 2, plot.top() - 4), plot.bottom() - line + 4), 42, line)
            self.write(painter, box, number(value * factor).replace("-", "−"), self.theme.muted, right)
        if unit and plot.height() > 4 * line:
            self.write(
                painter,
                QRectF(plot.left() - 46, plot.top() - 4 + line, 42, line),
                unit.replace(" ", "\u2009"),
                self.theme.muted,
                right,
            )
