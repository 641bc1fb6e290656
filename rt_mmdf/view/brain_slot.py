"""The place of one brain in the window: with a title, or with words where there is no brain."""

from __future__ import annotations

from enum import Enum, auto

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

from rt_mmdf.view.colours import ColourScale
from rt_mmdf.view.pane import BrainPane


class LimitsFrom(Enum):
    """Who has set the limits of the colours."""

    DEFAULT = auto()
    FIRST_SECONDS = auto()
    PERSON = auto()


class BrainSlot(QWidget):
    """A brain with a line above it, or words in place of a brain."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.pane: BrainPane | None = None
        self.scale: ColourScale | None = None
        self.limits_from = LimitsFrom.DEFAULT
        self.key = ""
        self.shown: object = None
        self._title, self._words = QLabel(self), QLabel(self)
        for label in (self._title, self._words):
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            label.setTextFormat(Qt.TextFormat.PlainText)
            label.setWordWrap(True)
        self._title.setContentsMargins(8, 4, 8, 2)
        self._title.hide()
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(0)
        self._column.addWidget(self._title)
        self._column.addWidget(self._words, 1)

    def set_title(self, text: str) -> None:
        """Empty: none."""
        self._title.setText(text)
        self._title.setVisible(bool(text))

    def set_words(self, text: str) -> None:
        self._words.setText(text)

    def set_brain(self, pane: BrainPane | None) -> None:
        if self.pane is not None:
            self._column.removeWidget(self.pane)
            self.pane.hide()
            self.pane.deleteLater()
        self.pane, self.shown, self.key = pane, None, ""
        self._words.setVisible(pane is None)
        if pane is not None:
            self._column.addWidget(pane, 1)

    def set_scale(self, scale: ColourScale, limits_from: LimitsFrom) -> None:
        self.scale, self.limits_from = scale, limits_from
        if self.pane is not None:
            self.pane.set_scale(scale)
