"""Sensor traces as butterflies: all channels of a type over each other, with scale bars, bad channels told apart."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QImage, QPainter, QPen
from PySide6.QtWidgets import QWidget

from rt_mmdf.core.blocks import Float32, Float64
from rt_mmdf.core.channels import ChannelType
from rt_mmdf.view.panels.chart import Chart, SteadyRange, draw_time_axis, nice_ceiling, number, readable_unit
from rt_mmdf.view.themes import Theme

SHOWN_TYPES = (ChannelType.EEG, ChannelType.MAG, ChannelType.GRAD)
NAMES = {ChannelType.EEG: "EEG", ChannelType.MAG: "Magnetometers", ChannelType.GRAD: "Gradiometers"}
INK = 0.22  # opacity of one channel; where n lie over each other, 1 - (1 - INK)^n
RANGE_QUANTILE = 0.995  # of the magnitudes: a single jump does not squeeze all channels
RANGE_STEP = 4  # every so manyth sample is enough for it


@dataclass(frozen=True)
class SensorTraces:
    """Some seconds of sensors.

    times : (n_times,) seconds, ascending
    data : (n_channels, n_times) SI units (V, T, T/m); NaN where there are none
    names, types : of the channels
    bads : names of those that are not imaged
    """

    times: Float64
    data: Float32
    names: tuple[str, ...]
    types: tuple[ChannelType, ...]
    bads: Set[str] = field(default_factory=frozenset)


def on_columns(times: Float64, data: Float32, start: float, stop: float, n_columns: int) -> tuple[Float32, Float32]:
    """Least and greatest value of each channel within each of `n_columns` equal parts of the time from `start` to `stop`,
    on straight lines between the samples.

    Returns
    -------
    low, high : (n_channels, n_columns), NaN in columns where there is no line
    """
    edges = np.linspace(start, stop, n_columns + 1)
    low = np.full((len(data), n_columns), np.nan, dtype=np.float32)
    if len(times) < 2:
        return low, low.copy()
    after = np.clip(np.searchsorted(times, edges), 1, len(times) - 1)
    share = ((edges - times[after - 1]) / np.maximum(times[after] - times[after - 1], 1e-12)).astype(np.float32)
    at_edges = data[:, after - 1] * (1 - share) + data[:, after] * share
    at_edges[:, (edges < times[0]) | (edges > times[-1])] = np.nan
    low = np.minimum(at_edges[:, :-1], at_edges[:, 1:])  # of the line's ends in the column; NaN if one of them is
    high = np.maximum(at_edges[:, :-1], at_edges[:, 1:])
    column = np.searchsorted(edges, times, side="right") - 1
    inside = np.flatnonzero((column >= 0) & (column < n_columns))
    if len(inside):
        column = column[inside]
        first = np.flatnonzero(np.diff(column, prepend=-1))
        own = data[:, inside]
        low[:, column[first]] = np.fmin(low[:, column[first]], np.fmin.reduceat(own, first, axis=1))
        high[:, column[first]] = np.fmax(high[:, column[first]], np.fmax.reduceat(own, first, axis=1))
    return low, high


def density(low: Float32, high: Float32, n_rows: int) -> NDArray[np.int32]:
    """How many channels pass through each pixel: (n_rows, n_columns), row 0 at the top.

    `low` and `high` (n_channels, n_columns) go from -1 (lowest row) to 1 (highest row); beyond, they are clipped. A channel
    marks all pixels between its two values, at least one; NaN none.
    """
    n_columns = low.shape[1]
    counted = np.isfinite(low) & np.isfinite(high)
    column = np.broadcast_to(np.arange(n_columns), low.shape)[counted]
    top, bottom = (np.clip((0.5 * (1 - values[counted]) * n_rows).astype(np.int64), 0, n_rows - 1) for values in (high, low))
    size = (n_rows + 1) * n_columns
    steps = np.bincount(top * n_columns + column, minlength=size) - np.bincount(
        (bottom + 1) * n_columns + column, minlength=size
    )
    return np.asarray(np.cumsum(steps.reshape(n_rows + 1, n_columns), axis=0)[:n_rows], dtype=np.int32)


def inked(counts: NDArray[np.int32], colour: str) -> NDArray[np.uint8]:
    """(n_rows, n_columns, 4) premultiplied BGRA, as Qt's ARGB32_Premultiplied lies in memory on little-endian machines."""
    opacity = (1 - (1 - INK) ** np.arange(64)).astype(np.float32)
    ink = QColor(colour)
    table = (opacity[:, None] * np.array([ink.blue(), ink.green(), ink.red(), 255], dtype=np.float32)).astype(np.uint8)
    return np.asarray(np.ascontiguousarray(table[np.minimum(counts, len(table) - 1)]))


class TracesPanel(Chart):
    """Butterflies of EEG, magnetometers and gradiometers, newest samples at the right edge.

    Parameters
    ----------
    seconds : float
        What is shown at once.
    """

    def __init__(self, theme: Theme, seconds: float = 4.0, parent: QWidget | None = None) -> None:
        super().__init__(theme, (260, 120), parent)
        self.seconds = seconds
        self.reason = "no sensors yet"
        self._traces: SensorTraces | None = None
        self._until = 0.0
        self._end = "now"
        self._ranges = {kind: SteadyRange() for kind in SHOWN_TYPES}
        self.setAccessibleName("Sensor traces")

    def show_traces(self, traces: SensorTraces | None, until: float, end: str = "now", reason: str = "") -> None:
        """Show the seconds before `until`; None: none, and why. `end` names the right edge."""
        self._traces, self._until, self._end = traces, until, end
        self.reason = reason or self.reason
        self.update()

    def draw(self, painter: QPainter, area: QRectF) -> None:
        traces = self._traces
        if traces is None or len(traces.times) == 0:
            self.empty(painter, area, self.reason)
            return
        present = [kind for kind in SHOWN_TYPES if kind in traces.types]
        line = QFontMetricsF(self.small()).height()
        plot = area.adjusted(8, 2, -62, -line - 3)
        height = plot.height() / max(1, len(present))
        draw_time_axis(painter, self, plot, self.seconds, self._end)
        for row, kind in enumerate(present):
            self._draw_type(
                painter, QRectF(plot.left(), plot.top() + row * height, plot.width(), height), kind, traces, line
            )

    def _draw_type(self, painter: QPainter, box: QRectF, kind: ChannelType, traces: SensorTraces, line: float) -> None:
        own = np.array([i for i, of in enumerate(traces.types) if of is kind])
        is_bad = np.array([traces.names[i] in traces.bads for i in own])
        recent = (traces.times > self._until - self.seconds) & (traces.times <= self._until)
        good = traces.data[np.ix_(own[~is_bad], np.flatnonzero(recent)[::-RANGE_STEP])]
        finite = np.abs(good[np.isfinite(good)])
        high = self._ranges[kind].hold(float(np.quantile(finite, RANGE_QUANTILE)) * 1.15 if len(finite) else 0.0)
        colour = getattr(self.theme, kind.value)
        picture = box.adjusted(0, line + 2, 0, -2)
        if high > 0 and picture.height() >= 8:
            for channels, ink in ((own[is_bad], self.theme.muted), (own[~is_bad], colour)):
                if len(channels):
                    self._ink(painter, picture, traces.times, traces.data[channels] / np.float32(high), ink)
            self._draw_scale_bar(painter, picture, high, kind)
        bad_names = [traces.names[i] for i in own[is_bad]]
        label = f"{NAMES[kind]}  {len(own) - len(bad_names)}"
        painter.setFont(self.font())
        label_width = min(QFontMetricsF(painter.font()).horizontalAdvance(label) + 10, box.width())
        at_left = Qt.AlignmentFlag.AlignLeft
        self.write(painter, QRectF(box.left(), box.top(), label_width, line + 4), label, colour, at_left)
        if bad_names:
            listed = f"✕ {len(bad_names)} bad: " + ", ".join(bad_names[:4]) + (", …" if len(bad_names) > 4 else "")
            place = QRectF(box.left() + label_width, box.top(), self.width() - box.left() - label_width - 6, line + 4)
            self.write(painter, place, listed, self.theme.bad, at_left)
        if good.size and not len(finite):
            painter.setPen(QColor(self.theme.bad))
            painter.drawText(picture, Qt.AlignmentFlag.AlignCenter, "no data")

    def _ink(self, painter: QPainter, box: QRectF, times: Float64, data: Float32, colour: str) -> None:
        ratio = self.devicePixelRatioF()
        n_columns, n_rows = max(1, round(box.width() * ratio)), max(1, round(box.height() * ratio))
        low, high = on_columns(times, data, self._until - self.seconds, self._until, n_columns)
        pixels = inked(density(low, high, n_rows), colour)
        image = QImage(pixels.data, n_columns, n_rows, 4 * n_columns, QImage.Format.Format_ARGB32_Premultiplied)
        painter.drawImage(box, image)

    def _draw_scale_bar(self, painter: QPainter, box: QRectF, high: float, kind: ChannelType) -> None:
        factor, unit = readable_unit(high, kind.si_unit)
        size = nice_ceiling(high * factor / 2)  # of the range from -high to high, a quarter to a half
        pixels = size / (2 * high * factor) * box.height()
        x, middle = box.right() + 6, box.center().y()
        painter.setPen(QPen(QColor(self.theme.text), 2))
        painter.drawLine(QPointF(x, middle - pixels / 2), QPointF(x, middle + pixels / 2))
        painter.setFont(self.small())
        line = QFontMetricsF(painter.font()).height()
        left = Qt.AlignmentFlag.AlignLeft
        room = self.width() - x - 5
        self.write(painter, QRectF(x + 5, middle - line, room, line), number(size), self.theme.text, left)
        self.write(painter, QRectF(x + 5, middle, room, line), unit, self.theme.text, left)
