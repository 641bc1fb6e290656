"""Colours of the window: a dark theme for the dim control room, a light one for daylight and paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rt_mmdf.core.errors import ConfigurationError

ThemeName = Literal["dark", "light"]


@dataclass(frozen=True)
class Theme:
    """All colours, as ``#rrggbb``.

    background : behind the brain
    panel, edge : of everything else, and the lines between
    text, muted : what is read, and what is read second; both at least 4.5 : 1 on `panel` and on `background` (WCAG 2, AA)
    accent : what can be done now, and the cursor of time
    good, warn, bad : states, never told by colour alone
    on_bad : text on a surface of `bad`
    eeg, mag, grad : butterflies
    series : lines beside each other, told apart with any common colour vision (after Okabe and Ito)
    """

    name: ThemeName
    background: str
    panel: str
    edge: str
    text: str
    muted: str
    accent: str
    good: str
    warn: str
    bad: str
    on_bad: str
    eeg: str
    mag: str
    grad: str
    series: tuple[str, ...]


DARK = Theme(
    name="dark",
    background="#101316",
    panel="#1a1e23",
    edge="#353c45",
    text="#e8eaed",
    muted="#a3adb8",
    accent="#56b4e9",
    good="#4fc38a",
    warn="#f0b429",
    bad="#ff6b5e",
    on_bad="#16090a",
    eeg="#e6b450",
    mag="#56b4e9",
    grad="#57c99a",
    series=("#f0b429", "#56b4e9", "#57c99a", "#e58fc1", "#f0e442"),
)
LIGHT = Theme(
    name="light",
    background="#ffffff",
    panel="#f3f5f7",
    edge="#c5ccd3",
    text="#16191d",
    muted="#525c67",
    accent="#0068a8",
    good="#0b7a4b",
    warn="#8a5a00",
    bad="#b3261e",
    on_bad="#ffffff",
    eeg="#9a6200",
    mag="#0072b2",
    grad="#00795a",
    series=("#b35a00", "#0072b2", "#00795a", "#a3457f", "#6b6100"),
)
THEMES: dict[str, Theme] = {theme.name: theme for theme in (DARK, LIGHT)}


def theme_named(name: str) -> Theme:
    """`DARK` or `LIGHT`; ConfigurationError for another name."""
    if name not in THEMES:
        raise ConfigurationError(f"theme {name!r}: there is none of that name. Choose one of: {', '.join(THEMES)}.")
    return THEMES[name]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21, as WCAG 2 defines it."""
    brighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    linear = []
    for at in (1, 3, 5):
        part = int(colour[at : at + 2], 16) / 255
        linear.append(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def stylesheet(theme: Theme) -> str:
    """Of the whole application, in Qt's language."""
    return f"""
    QMainWindow, QWidget {{ background: {theme.panel}; color: {theme.text}; }}
    QMainWindow::separator {{ background: {theme.edge}; width: 3px; height: 3px; }}
    QToolTip {{ background: {theme.background}; color: {theme.text}; border: 1px solid {theme.edge}; padding: 3px; }}
    QToolBar {{ background: {theme.panel}; border: 0; border-bottom: 1px solid {theme.edge}; spacing: 3px;
        padding: 2px 6px; }}
    QToolBar QLabel {{ color: {theme.muted}; padding-left: 6px; }}
    QToolButton, QPushButton {{ background: {theme.panel}; color: {theme.text}; border: 1px solid {theme.edge};
        border-radius: 4px; padding: 3px 7px; }}
    #qt_toolbar_ext_button {{ padding: 0; border: none; font-weight: bold; }}
    QToolButton:hover, QPushButton:hover, QComboBox:hover {{ border-color: {theme.accent}; }}
    QToolButton:focus, QPushButton:focus, QComboBox:focus {{ border-color: {theme.accent}; }}
    QToolButton:checked, QPushButton:checked {{ background: {theme.accent}; color: {theme.background};
        border-color: {theme.accent}; }}
    QToolButton:disabled, QPushButton:disabled, QComboBox:disabled {{ color: {theme.edge}; }}
    QComboBox {{ background: {theme.panel}; border: 1px solid {theme.edge}; border-radius: 4px; padding: 3px 6px; }}
    QComboBox QAbstractItemView {{ background: {theme.panel}; color: {theme.text}; border: 1px solid {theme.edge};
        selection-background-color: {theme.accent}; selection-color: {theme.background}; }}
    QDockWidget {{ color: {theme.muted}; }}
    QDockWidget::title {{ background: {theme.panel}; padding: 3px 8px; border-bottom: 1px solid {theme.edge}; }}
    QTabBar::tab {{ background: {theme.panel}; color: {theme.muted}; padding: 4px 12px; border: 1px solid {theme.edge};
        border-bottom: 0; }}
    QTabBar::tab:selected {{ color: {theme.text}; border-top: 2px solid {theme.accent}; }}
    QTableWidget {{ background: {theme.panel}; border: 0; gridline-color: {theme.edge}; }}
    QHeaderView::section {{ background: {theme.panel}; color: {theme.muted}; border: 0; padding: 2px 6px; }}
    QTableCornerButton::section {{ background: {theme.panel}; border: 0; }}
    QLineEdit, QDoubleSpinBox {{ background: {theme.background}; color: {theme.text}; border: 1px solid {theme.edge};
        border-radius: 4px; padding: 4px; selection-background-color: {theme.accent}; }}
    QScrollBar:vertical {{ background: {theme.panel}; width: 10px; }}
    QScrollBar::handle:vertical {{ background: {theme.edge}; border-radius: 4px; min-height: 24px; }}
    QScrollBar::add-line, QScrollBar::sub-line {{ height: 0; }}
    """
