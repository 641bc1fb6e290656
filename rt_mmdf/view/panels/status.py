"""What must be known at a glance: the line of figures above the brain, and the banner that nobody overlooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetricsF, QPainter
from PySide6.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget

from rt_mmdf.core.blocks import Flag
from rt_mmdf.view.panels.chart import Chart
from rt_mmdf.view.themes import Theme


class Level(Enum):
    """How much a figure matters now."""

    PLAIN = "text"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Figure:
    """One figure of the status line: what it is, what it says, and the longest text that is to be expected (so that the
    others do not jump); the least important ones go first where there is no room."""

    title: str
    text: str
    widest: str
    level: Level = Level.PLAIN
    important: bool = False


@dataclass(frozen=True)
class Banner:
    """A sentence so large that it is read from across the room, what else there is to say, and whether it is bad."""

    text: str
    detail: str = ""
    bad: bool = True


def banner_of(
    *,
    connected: bool,
    silent: bool,
    problem: str,
    note: str,
    age_s: float,
    flags: Flag | None,
    valid: bool | None,
    not_written: str = "",
) -> Banner | None:
    """What has to be said loudly, or None.

    Parameters
    ----------
    connected : whether an engine has been taken up
    silent : whether it brings nothing (any more)
    problem : what is wrong and what to do, in plain words; empty where nothing is
    note : what is waited for, in plain words
    age_s : of the newest estimate; NaN where unknown
    flags : of the picture that is shown; None where they are not known
    valid : whether that picture is an estimate; None where there is no picture
    not_written : what should be on the disk and is not; an acquisition cannot be repeated
    """
    if not connected:
        return Banner("NO ENGINE", problem or note or "Looking for its streams on the network …", bad=bool(problem))
    if silent:
        since = f": last estimate {spoken(age_s)} ago" if age_s == age_s else ""
        return Banner(f"ENGINE SILENT{since}", problem or note)
    if valid is None:
        of_picture: Banner | None = Banner("WAITING FOR THE FIRST ESTIMATE", problem or note, bad=False)
    else:
        of_picture = _banner_of_picture(flags, valid, problem)
    if not not_written:
        return of_picture
    words = "NOT WRITTEN TO THE DISK" + (f"; {of_picture.text}" if of_picture is not None else "")
    return Banner(words, "; ".join(text for text in (not_written, problem) if text))


def _banner_of_picture(flags: Flag | None, valid: bool, problem: str) -> Banner | None:
    flags = flags or Flag(0)
    missing = [name for name, flag in (("EEG", Flag.EEG_MISSING), ("MEG", Flag.MEG_MISSING)) if flags & flag]
    if not valid:
        why = f"{' and '.join(missing)} missing" if missing else _why_invalid(flags)
        return Banner("NO ESTIMATE" + (f": {why}" if why else ""), problem)
    if len(missing) == 2:  # each in a part of the interval
        return Banner("EEG and MEG missing for moments", problem)
    if missing:
        left = "EEG" if missing == ["MEG"] else "MEG"
        return Banner(f"{left} ONLY: {missing[0]} missing", problem)
    return Banner("NOT EVERYTHING IS KNOWN", problem, bad=False) if problem else None


def _why_invalid(flags: Flag) -> str:
    if flags & Flag.OPERATOR_PENDING:
        return "the inverse for these channels is being built"
    return "the filters are settling" if flags & Flag.SETTLING else ""


def spoken(seconds: float) -> str:
    """A duration in three characters and a unit: ``84 ms``, ``3.2 s``, ``12 min``."""
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


class StatusPanel(Chart):
    """Figures beside each other: title above, value below."""

    GAP = 18.0

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, (300, 42), parent)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Status")
        self._figures: tuple[Figure, ...] = ()

    def sizeHint(self) -> QSize:
        return QSize(900, 42)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What is shown."""
        return self._figures

    def show_figures(self, figures: Sequence[Figure]) -> None:
        if self._figures != tuple(figures):
            self._figures = tuple(figures)
            self.setAccessibleDescription("; ".join(f"{figure.title} {figure.text}" for figure in figures))
            self.update()

    def fitting(self, width: float) -> list[tuple[Figure, float]]:
        """Figures, with their widths, that have room side by side: all important ones, then the others from the left."""
        bold = QFontMetricsF(self._bold())
        widths = {f: max(bold.horizontalAdvance(t) for t in (f.title, f.text, f.widest)) + self.GAP for f in self._figures}
        room = width - sum(widths[figure] for figure in self._figures if figure.important)
        kept = []
        for figure in self._figures:
            if not figure.important:
                if widths[figure] > room:
                    continue
                room -= widths[figure]
            kept.append((figure, widths[figure]))
        return kept

    def draw(self, painter: QPainter, area: QRectF) -> None:
        left = 10.0
        small, bold = self.small(), self._bold()
        line = QFontMetricsF(small).height()
        align = Qt.AlignmentFlag.AlignLeft
        for figure, width in self.fitting(area.width() - 2 * left):
            painter.setFont(small)
            self.write(painter, QRectF(left, 4, width, line), figure.title, self.theme.muted, align)
            painter.setFont(bold)
            colour = getattr(self.theme, figure.level.value)
            self.write(painter, QRectF(left, 4 + line, width, area.height() - 5 - line), figure.text, colour, align)
            left += width
        painter.setPen(QColor(self.theme.edge))
        painter.drawLine(area.bottomLeft(), area.bottomRight())

    def _bold(self) -> QFont:
        font = QFont(self.font())
        font.setBold(True)
        return font


class BannerPanel(QWidget):
    """Hidden while there is nothing to say."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setObjectName("banner")
        self._text, self._detail = QLabel(self), QLabel(self)
        column = QVBoxLayout(self)
        column.setContentsMargins(14, 8, 14, 8)
        column.setSpacing(2)
        for label, size, weight in ((self._text, 24, QFont.Weight.Bold), (self._detail, 11, QFont.Weight.Normal)):
            font = QFont(label.font())
            font.setPointSize(size)
            font.setWeight(weight)
            label.setFont(font)
            label.setWordWrap(True)
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            label.setTextFormat(Qt.TextFormat.PlainText)  # names come from the network
            column.addWidget(label)
        self.banner: Banner | None = None
        self.set_theme(theme)
        self.hide()

    def show_banner(self, banner: Banner | None) -> None:
        """Show it, or hide with None."""
        if banner == self.banner:
            return
        self.banner = banner
        if banner is not None:
            self._text.setText(banner.text)
            self._detail.setText(banner.detail)
            self._detail.setVisible(bool(banner.detail))
            self._colour()
        self.setVisible(banner is not None)

    def set_theme(self, theme: Theme) -> None:
        self._theme = theme
        self._colour()

    def _colour(self) -> None:
        bad = self.banner is not None and self.banner.bad
        ground, ink = (self._theme.bad, self._theme.on_bad) if bad else (self._theme.panel, self._theme.text)
        self.setStyleSheet(
            f"#banner {{ background: {ground}; border: 1px solid {self._theme.edge}; }}"
            f"#banner QLabel {{ background: {ground}; color: {ink}; }}"
        )
