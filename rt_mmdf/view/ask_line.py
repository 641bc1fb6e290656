"""One line that asks for a word or tells a sentence, below the brain and above nothing."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QLineEdit, QSizePolicy, QWidget

from rt_mmdf.view.themes import Theme

TOLD_S = 8.0


class AskLine(QWidget):
    """One line below the brain: asks for a word, or tells something for some seconds. It covers nothing."""

    answered = Signal(str, str)
    """What was asked, and the answer."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._what = ""
        self._until = 0.0
        self._label, self._edit = QLabel(self), _Answer(self)
        self._label.setTextFormat(Qt.TextFormat.PlainText)
        self._label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._edit.setMaxLength(200)
        self._edit.returnPressed.connect(self._answer)
        self._edit.given_up.connect(self.give_up)
        row = QHBoxLayout(self)
        row.setContentsMargins(10, 3, 10, 3)
        row.addWidget(self._label, 1)
        row.addWidget(self._edit, 2)
        self.hide()

    @property
    def asking(self) -> bool:
        return bool(self._what)

    def ask(self, what: str, question: str, proposal: str = "") -> None:
        """Ask; Enter answers, Esc gives up."""
        self._what = what
        self._label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        self._label.setWordWrap(False)
        self._label.setStyleSheet("")
        self._label.setText(question)
        self._edit.setText(proposal)
        self._edit.selectAll()
        self._edit.show()
        self.show()
        self._edit.setFocus()

    def tell(self, text: str, now: float, *, bad: bool = False) -> None:
        """Show a sentence for some seconds; while something is asked, the question stays."""
        if self.asking:
            return
        self._until = now + TOLD_S
        self._label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)  # a long one widens no window
        self._label.setWordWrap(True)
        self._label.setStyleSheet(f"color: {self._theme.bad}; font-weight: bold" if bad else "")
        self._label.setText(text)
        self._edit.hide()
        self.show()

    def expire(self, now: float) -> None:
        if self.isVisible() and not self.asking and now > self._until:
            self.hide()

    def give_up(self) -> None:
        self._what = ""
        self.hide()

    def set_theme(self, theme: Theme) -> None:
        self._theme = theme

    def _answer(self) -> None:
        what, text = self._what, self._edit.text()
        self.give_up()
        self.answered.emit(what, text)


class _Answer(QLineEdit):
    given_up = Signal()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() == Qt.Key.Key_Escape:
            self.given_up.emit()
        else:
            super().keyPressEvent(event)
