"""The tool bar above the brain: what is shown of it, from where, and what is kept of it."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QLabel, QSizePolicy, QToolBar, QToolButton, QWidget

from rt_mmdf.view.camera import PRESETS
from rt_mmdf.view.preferences import CHOICES, Preferences
from rt_mmdf.view.shortcuts import BY_ACTION, keys_of

# of each preference: title, action that changes it by key, words for its values
BOXES = {
    "surface": ("Surface", "surface", ("inflated", "pial", "white")),
    "layout": ("View", "layout", ("together", "lateral + medial")),
    "measure": ("Show", "measure", ("RMS", "peak", "latest")),
    "scale_mode": ("Limits", "auto", ("fixed", "auto")),
}


class PictureBar(QToolBar):
    """Boxes for preferences, buttons for actions, each with its key in the tooltip."""

    wanted = Signal(str)
    """An action of `rt_mmdf.view.shortcuts`."""
    chosen = Signal(str, str)
    """A preference and its new value."""

    def __init__(self, preferences: Preferences) -> None:
        super().__init__("Picture")
        self.setObjectName("picture")
        self.setMovable(False)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.PreventContextMenu)
        self.boxes: dict[str, QComboBox] = {}
        for name, (title, action, words) in BOXES.items():
            self._box(name, title, action, words, getattr(preferences, name))
            if name == "layout":
                for preset in PRESETS:
                    self._button(f"camera_{preset}", preset[:2].capitalize() if preset == "back" else preset[0].upper())
                self._button("camera_reset", "⟲")
        self._button("calibrate", "Calibrate")
        gap = QWidget()
        gap.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.addWidget(gap)
        self._compare = self._button("compare", "Compare", checkable=True)
        for action, text in (("mark", "Mark"), ("snapshot", "Picture"), ("film", "Film"), ("help", "?")):
            self._button(action, text)
        more = self.findChild(QToolButton, "qt_toolbar_ext_button")  # Qt's own, where the window is too narrow for all
        if more is not None:
            more.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextOnly)
            more.setText("»")
            more.setToolTip("More")

    def show_choice(self, name: str, value: str) -> None:
        """The value of a preference, where it has a box."""
        if name in self.boxes:
            self.boxes[name].setCurrentIndex(CHOICES[name].index(value))

    def show_comparing(self, comparing: bool) -> None:
        self._compare.setChecked(comparing)

    def _box(self, name: str, title: str, action: str, words: tuple[str, ...], value: str) -> None:
        box = QComboBox()
        for text, choice in zip(words, CHOICES[name], strict=True):
            box.addItem(text, choice)
        box.setCurrentIndex(CHOICES[name].index(value))
        box.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        box.setToolTip(f"{BY_ACTION[action].does} ({keys_of(action)})")
        box.setAccessibleName(title)
        box.activated.connect(lambda place: self.chosen.emit(name, CHOICES[name][place]))
        self.addWidget(QLabel(title))
        self.addWidget(box)
        self.boxes[name] = box

    def _button(self, action: str, text: str, *, checkable: bool = False) -> QToolButton:
        button = QToolButton()
        button.setText(text)
        button.setCheckable(checkable)
        button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        does = BY_ACTION[action].does
        button.setToolTip(f"{does[0].upper()}{does[1:]} ({keys_of(action)})")
        button.setAccessibleName(does)
        button.clicked.connect(lambda: self.wanted.emit(action))
        self.addWidget(button)
        return button
