"""Event-locked average: how strong at each latency, of how many trials, and which latency the brain beside shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pyqtgraph.functions import arrayToQPath
from PySide6.QtCore import QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QColor, QFontMetricsF, QMouseEvent, QPainter, QPen
from PySide6.QtWidgets import QWidget

from rt_mmdf.core.blocks import Float32, Float64
from rt_mmdf.view.panels.chart import Chart, nice_ceiling, number, readable_unit
from rt_mmdf.view.themes import Theme


@dataclass(frozen=True)
class AverageCurve:
    """One average.

    latencies : (n_times,) seconds
    strengths : (n_times,) RMS over the sources, in `unit`; NaN without trials
    """

    event: str
    latencies: Float64
    strengths: Float32
    n_trials: int
    n_rejected: int
    unit: str
    baseline: str


def trials_words(n_trials: int) -> str:
    """``1 trial``, ``87 trials``."""
    return f"{n_trials} trial" if n_trials == 1 else f"{n_trials} trials"


class AveragePanel(Chart):
    """The curve of one average; a press or a drag on it chooses the latency, a press on its name the next average."""

    chosen = Signal(float)
    """Latency in seconds."""
    next_wanted = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, (260, 110), parent)
        self._curve: AverageCurve | None = None
        self._latency: float | None = None
        self._n_averages = 0
        self.setAccessibleName("Event-locked average")

    def show_average(self, curve: AverageCurve | None, latency: float | None, n_averages: int) -> None:
        """Show one of `n_averages` averages (None: there is none) with a cursor at `latency`."""
        self._curve, self._latency, self._n_averages = curve, latency, n_averages
        self.update()

    def _parts(self) -> tuple[QRectF, QRectF]:
        line = QFontMetricsF(self.font()).height()
        box = QRectF(self.rect()).adjusted(8, 3, -10, -3)
        heading = QRectF(box.left(), box.top(), box.width(), 2 * line + 2)
        bottom = QFontMetricsF(self.small()).height() + 2
        return heading, box.adjusted(46, heading.height() + 4, 0, -bottom)

    def draw(self, painter: QPainter, area: QRectF) -> None:
        curve = self._curve
        if curve is None:
            self.empty(painter, area, "The engine publishes no averages.\nSwitch them on: [average] in its configuration.")
            return
        heading, plot = self._parts()
        line = heading.height() / 2
        left, right, centre = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight, Qt.AlignmentFlag.AlignHCenter
        more = f"  (press: next of {self._n_averages})" if self._n_averages > 1 else ""
        trials = f"{curve.event}: {trials_words(curve.n_trials)}" + (
            f", {curve.n_rejected} rejected" if curve.n_rejected else ""
        )
        self.write(
            painter, QRectF(heading.left(), heading.top(), heading.width(), line), trials + more, self.theme.text, left
        )
        painter.setFont(self.small())
        baseline = (
            "no baseline"
            if curve.baseline == "none"
            else f"baseline {curve.baseline.replace(' ', ' to ').replace('-', '−')} s"
        )
        second = QRectF(heading.left(), heading.top() + line, heading.width(), line)
        self.write(painter, second, f"RMS over all sources, {baseline}", self.theme.muted, left)
        finite = curve.strengths[np.isfinite(curve.strengths)]
        if not len(finite) or plot.height() < 20:
            self.empty(painter, plot, "no trials yet")
            return
        high = nice_ceiling(max(float(finite.max()), 1e-30))
        factor, unit = readable_unit(high, curve.unit)
        first, last = float(curve.latencies[0]), float(curve.latencies[-1])
        scale = plot.width() / max(last - first, 1e-9)
        small = QFontMetricsF(painter.font()).height()
        for share in (0.0, 1.0):
            y = plot.bottom() - share * plot.height()
            painter.setPen(QColor(self.theme.edge))
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y))
            box = QRectF(plot.left() - 46, y - small / 2, 42, small)
            self.write(painter, box, number(share * high * factor), self.theme.muted, right)
        self.write(painter, QRectF(plot.left() - 46, plot.top() + small / 2, 42, small), unit, self.theme.muted, right)
        if first < 0 < last:
            x = plot.left() - first * scale
            painter.setPen(QPen(QColor(self.theme.muted), 1, Qt.PenStyle.DashLine))
            painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))
            self.write(painter, QRectF(x - 40, plot.bottom() + 1, 80, small), "event", self.theme.muted, centre)
        below = plot.bottom() + 1
        start, end = (f"{1e3 * t:.0f} ms".replace("-", "−") for t in (first, last))
        if -first * scale > 90 or first >= 0:
            self.write(painter, QRectF(plot.left(), below, 60, small), start, self.theme.muted, left)
        self.write(painter, QRectF(plot.right() - 60, below, 60, small), end, self.theme.muted, right)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor(self.theme.series[0]), 1.5))
        x_of = plot.left() + (curve.latencies - first) * scale
        painter.drawPath(arrayToQPath(x_of, plot.bottom() - curve.strengths.astype(float) / high * plot.height()))
        if self._latency is not None:
            x = plot.left() + (self._latency - first) * scale
            painter.setPen(QPen(QColor(self.theme.accent), 2))
            painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if not event.buttons() & Qt.MouseButton.LeftButton or self._curve is None:
            return
        heading, plot = self._parts()
        if heading.contains(event.position()) and event.type() == event.Type.MouseButtonPress:
            self.next_wanted.emit()
        elif event.position().y() >= plot.top():
            share = (event.position().x() - plot.left()) / max(plot.width(), 1.0)
            first, last = float(self._curve.latencies[0]), float(self._curve.latencies[-1])
            self.chosen.emit(first + min(max(share, 0.0), 1.0) * (last - first))

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        self.mousePressEvent(event)
