"""Health: what the engine says of its streams and of itself, how late estimates are, what this view itself drops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter, QPen
from PySide6.QtWidgets import QFrame, QLabel, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from rt_mmdf.core.blocks import Float64
from rt_mmdf.view.panels.chart import Chart, nice_ceiling, number
from rt_mmdf.view.panels.status import Level, spoken
from rt_mmdf.view.reports import HealthReport, StreamHealth
from rt_mmdf.view.themes import Theme

LATE_STREAM_S = 0.25
STALE_REPORT_S = 3.0
N_BINS = 48
MAX_LISTED = 6


@dataclass(frozen=True)
class ViewFacts:
    """What the view knows of itself. Text for each figure, and how it stands."""

    figures: tuple[tuple[str, str, Level], ...]


Cell = tuple[str, Level]


def stream_rows(streams: Sequence[StreamHealth]) -> list[tuple[str, list[Cell]]]:
    """Title and a cell for each stream. What is not known is a dash."""
    plain, bad = Level.PLAIN, Level.BAD

    def figure(value: float, form: str) -> str:
        return form.format(value).replace("-", "−") if math.isfinite(value) else "–"

    def lag(stream: StreamHealth) -> Cell:
        return stream.lag or "unknown", plain if math.isfinite(stream.lag_ms) else Level.WARN

    def count(value: int) -> Cell:
        return f"{value:,}".replace(",", "\u2009"), bad if value else plain

    return [
        ("stream", [(stream.name or "–", plain) for stream in streams]),
        ("rate", [(figure(stream.sfreq, "{:g} Hz"), plain) for stream in streams]),
        ("channels", [(str(stream.n_channels), plain) for stream in streams]),
        (
            "age",
            [
                (spoken(s.age_s) if math.isfinite(s.age_s) else "–", bad if s.age_s > LATE_STREAM_S else plain)
                for s in streams
            ],
        ),
        ("clock offset", [(figure(stream.offset_s * 1e3, "{:.3f} ms"), plain) for stream in streams]),
        ("clock drift", [(figure(stream.drift_ppm, "{:+.1f} ppm"), plain) for stream in streams]),
        ("time known to", [(figure(stream.uncertainty_ms, "±{:.3f} ms"), plain) for stream in streams]),
        ("device lag", [lag(stream) for stream in streams]),
        ("jitter", [(figure(stream.jitter_ms, "{:.2f} ms"), plain) for stream in streams]),
        ("gaps", [count(stream.gaps) for stream in streams]),
        ("lost samples", [count(stream.lost) for stream in streams]),
        ("late samples", [count(stream.missing) for stream in streams]),
        ("not finite", [count(stream.nonfinite) for stream in streams]),
        ("reconnected", [count(stream.reconnected) for stream in streams]),
    ]


def engine_rows(report: HealthReport) -> list[tuple[str, Cell]]:
    """What the engine says of itself as a whole."""
    plain, warn, bad = Level.PLAIN, Level.WARN, Level.BAD
    lateness = report.latency_ms.get("lateness", {})
    p50, p99 = lateness.get("p50", math.nan), lateness.get("p99", math.nan)
    bads = [f"{name} ({why})" if why else name for name, why in report.bad_channels.items()]
    listed = ", ".join(bads[:MAX_LISTED]) + (f" and {len(bads) - MAX_LISTED} more" if len(bads) > MAX_LISTED else "")
    rows = [
        ("hops", (f"{report.hops} imaged, {report.skipped_hops} skipped", warn if report.skipped_hops else plain)),
        (
            "missed",
            (
                f"{report.missed_deadlines} later than {report.budget_ms:g} ms, at most {report.longest_miss_run} in a row",
                warn if report.missed_deadlines else plain,
            ),
        ),
        ("lateness", (f"p50 {p50:.1f}, p99 {p99:.1f} ms" if math.isfinite(p50) else "–", plain)),
        ("no estimate", (f"{report.invalid_hops} hops", warn if report.invalid_hops else plain)),
        ("bad channels", (listed or "none", bad if bads else plain)),
        ("filter delay", (f"{report.filter_delay_ms:.0f} ms" if math.isfinite(report.filter_delay_ms) else "–", plain)),
        ("load", (f"{report.cpu_cores:.2f} cores, {report.rss_mb:.0f} MB" if report.rss_mb > 0 else "–", plain)),
    ]
    if report.n_incidents:
        told = f"{report.n_incidents} so far" + (f"; now {', '.join(report.lasting[:MAX_LISTED])}" if report.lasting else "")
        rows.append(("incidents", (told, warn if report.lasting else plain)))
    if report.operators_failed:
        failed = ", ".join(f"without {key}: {why}" for key, why in list(report.operators_failed.items())[:MAX_LISTED])
        rows.append(("not imaged", (failed, bad)))
    if report.problems:
        rows.append(("not had", ("; ".join(report.problems), warn)))
    return rows


class HealthPanel(QWidget):
    """Tables, and a histogram of lateness below."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.theme = theme
        self._text = QLabel(self)
        self._text.setWordWrap(True)
        self._text.setTextFormat(Qt.TextFormat.RichText)
        self._text.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._text.setContentsMargins(8, 4, 8, 4)
        scroll = QScrollArea(self)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(self._text)
        self.histogram = LatencyHistogram(theme)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(scroll, 1)
        column.addWidget(self.histogram)
        self.setMinimumSize(260, 120)
        self._html = ""

    @property
    def html(self) -> str:
        """The tables, as they are shown."""
        return self._html

    def show_health(self, report: HealthReport | None, report_age_s: float, own: ViewFacts) -> None:
        """Show the engine's newest report (None: there is none) and what the view knows of itself."""
        parts = []
        if report is None:
            parts.append(self._warning("The engine reports no health (yet)."))
        else:
            if report_age_s > STALE_REPORT_S:
                parts.append(self._warning(f"The newest report is {spoken(report_age_s)} old."))
            names = sorted(report.streams)
            head = [(name.upper(), Level.PLAIN) for name in names]
            table = self._row("", head, bold=True)
            for title, cells in stream_rows([report.streams[name] for name in names]):
                table += self._row(title, cells)
            parts.append(f"<table width='100%' cellspacing='0' cellpadding='1'>{table}</table>")
            rows = "".join(self._row(title, [cell]) for title, cell in engine_rows(report))
            parts.append(f"<b>Engine</b><table width='100%' cellspacing='0' cellpadding='1'>{rows}</table>")
        rows = "".join(self._row(title, [(text, level)]) for title, text, level in own.figures)
        parts.append(f"<b>This view</b><table width='100%' cellspacing='0' cellpadding='1'>{rows}</table>")
        html = "<p style='font-size: 4px'>&nbsp;</p>".join(parts)
        if html != self._html:
            self._html = html
            self._text.setText(html)

    def set_theme(self, theme: Theme) -> None:
        self.theme = theme
        self.histogram.set_theme(theme)

    def _warning(self, text: str) -> str:
        return f"<p style='color: {self.theme.bad}'><b>{escape(text)}</b></p>"

    def _row(self, title: str, cells: Sequence[Cell], bold: bool = False) -> str:
        inner = ""
        for text, level in cells:
            shown = f"<b>{escape(text)}</b>" if bold or level in (Level.WARN, Level.BAD) else escape(text)
            inner += f"<td style='color: {getattr(self.theme, level.value)}'>{shown}</td>"
        return f"<tr><td width='96' style='color: {self.theme.muted}'>{escape(title)}</td>{inner}</tr>"


class LatencyHistogram(Chart):
    """How late the estimates of the last minute were after their intended time, with the budget."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, (260, 90), parent)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Histogram of lateness")
        self._values_ms: Float64 = np.zeros(0)
        self._budget_ms = math.nan

    def sizeHint(self) -> QSize:
        return QSize(330, 96)

    def show_lateness(self, lateness_s: Float64, budget_ms: float) -> None:
        """Show the hops' lateness, (n_hops,) seconds; NaN: no budget is known."""
        self._values_ms, self._budget_ms = 1e3 * lateness_s, budget_ms
        self.update()

    def draw(self, painter: QPainter, area: QRectF) -> None:
        painter.setFont(self.small())
        line = QFontMetricsF(painter.font()).height()
        left, right = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight
        box = area.adjusted(8, 2, -8, -2)
        values = self._values_ms
        if not len(values):
            self.empty(painter, box, "no latencies: the engine's companion stream is missing")
            return
        p50, p99 = np.quantile(values, [0.5, 0.99])
        text = f"lateness, last minute: p50 {p50:.1f}, p99 {p99:.1f}, max {values.max():.1f} ms"
        self.write(painter, QRectF(box.left(), box.top(), box.width(), line), text, self.theme.text, left)
        budget = self._budget_ms if math.isfinite(self._budget_ms) else 0.0
        high = nice_ceiling(max(1.2 * float(p99), 1.2 * budget, 1.0))
        counts, edges = np.histogram(np.clip(values, 0, high), N_BINS, (0.0, high))
        plot = box.adjusted(0, line + 3, 0, -line - 1)
        step = plot.width() / N_BINS
        for place, count in enumerate(counts.tolist()):
            if count:
                height = max(1.5, plot.height() * count / counts.max())
                late = budget and edges[place] >= budget
                colour = QColor(self.theme.bad if late else self.theme.accent)
                painter.fillRect(QRectF(plot.left() + place * step, plot.bottom() - height, step - 1, height), colour)
        painter.setPen(QColor(self.theme.edge))
        painter.drawLine(plot.bottomLeft(), plot.bottomRight())
        below = plot.bottom() + 1
        self.write(painter, QRectF(plot.left(), below, 60, line), "0", self.theme.muted, left)
        beyond = "≥ " if values.max() > high else ""
        end = QRectF(plot.right() - 90, below, 90, line)
        self.write(painter, end, f"{beyond}{number(high)} ms", self.theme.muted, right)
        if budget:
            x = plot.left() + budget / high * plot.width()
            painter.setPen(QPen(QColor(self.theme.warn), 1.5, Qt.PenStyle.DashLine))
            painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))
            label = f"budget {number(budget)} ms"
            width = QFontMetricsF(painter.font()).horizontalAdvance(label) + 2
            at = min(max(x - width / 2, plot.left() + 12), plot.right() - 90 - width)
            if at > plot.left() + 10:
                self.write(painter, QRectF(at, below, width, line), label, self.theme.warn, left)
