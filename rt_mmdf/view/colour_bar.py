"""The colour bar beside the brain: numbers, unit, and whether its limits stand still."""

from __future__ import annotations

from html import escape

import numpy as np
from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetricsF, QImage, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from rt_mmdf.sinks.colours import GYRUS, SULCUS
from rt_mmdf.view.colours import ColourScale
from rt_mmdf.view.themes import Theme

WIDTH, LONGEST = 92, 420.0  # pixels; on a high canvas the bar takes a little less than half of its height
STRIP = 16
CORTEX = 0.5 * (GYRUS + SULCUS)


class ColourBar(QWidget):
    """Vertical, the largest value on top, over the grey of the cortex where colours are transparent."""

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self._theme = theme
        self._scale: ColourScale | None = None
        self._strip = QImage()
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Expanding)
        self.setFixedWidth(WIDTH)

    def sizeHint(self) -> QSize:
        return QSize(WIDTH, round(LONGEST))

    def set_theme(self, theme: Theme) -> None:
        self._theme = theme
        self.update()

    def set_scale(self, scale: ColourScale) -> None:
        """Show this scale as it is now; call it again when its limits have changed."""
        self._scale = scale
        table = scale.table().astype(np.float32)
        opacity = table[::-1, 3:] / 255
        rgb = table[::-1, :3] * opacity + 255 * CORTEX * (1 - opacity)
        strip = np.ascontiguousarray(np.rint(rgb), dtype=np.uint8)
        self._strip = QImage(strip.data, 1, len(strip), 3, QImage.Format.Format_RGB888).copy()
        words = ", ".join(number for _, number in scale.ticks)
        told = f"{scale.label}, {scale.says}: nothing is shown below the first colour ({words})"
        # the label comes from the network, and Qt takes for HTML what looks like it
        self.setToolTip(f"<p>{escape(told)}</p>")
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        painter.fillRect(self.rect(), QColor(self._theme.background))
        if self._scale is None:
            return
        font = QFont(self.font())
        bold = QFont(font)
        bold.setBold(True)
        line = QFontMetricsF(font).height()
        length = min(max(LONGEST, 0.45 * self.height()), self.height() - 5 * line)
        if length < 3 * line:
            return
        top = 0.5 * (self.height() - length) + 0.5 * line
        bar = QRectF(14, top, STRIP, length)
        painter.drawImage(bar, self._strip)
        painter.setPen(QPen(QColor(self._theme.edge), 1))
        painter.drawRect(bar)
        painter.setPen(QColor(self._theme.text))
        painter.setFont(bold)
        painter.drawText(QRectF(4, top - 1.9 * line, WIDTH - 4, line), Qt.AlignmentFlag.AlignLeft, self._scale.label)
        painter.setFont(font)
        written = -np.inf
        for place, number in self._scale.ticks:
            y = bar.bottom() - place * length
            painter.setPen(QPen(QColor(self._theme.text), 1))
            painter.drawLine(QPointF(bar.right() + 1, y), QPointF(bar.right() + 5, y))
            if bar.bottom() - y < written + 0.95 * line:
                continue  # the number would stand on the one below
            written = bar.bottom() - y
            box = QRectF(bar.right() + 8, y - 0.5 * line, WIDTH - bar.right() - 8, line)
            painter.drawText(box, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, number)
        moving = self._scale.mode == "auto"
        painter.setPen(QColor(self._theme.warn if moving else self._theme.muted))
        painter.drawText(QRectF(4, bar.bottom() + 0.9 * line, WIDTH - 4, line), Qt.AlignmentFlag.AlignLeft, self._scale.says)
