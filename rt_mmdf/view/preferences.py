"""What the window remembers from one start to the next."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from PySide6.QtCore import QByteArray, QSettings

from rt_mmdf.view.themes import ThemeName

Surface = Literal["inflated", "pial", "white"]
Layout = Literal["both", "split"]
MeasureName = Literal["rms", "peak", "latest"]
ScaleMode = Literal["fixed", "auto"]

MAX_LIMITS = 50  # solvers and units whose limits are kept


@dataclass(frozen=True)
class Preferences:
    """Everything has a default; what a file holds that does not fit counts as not there.

    limits : for ``solver / unit / measure``: threshold, full opacity and end of the colours. A scale belongs to the solver,
        unit and measure for which it was calibrated, and is never used for another.
    """

    theme: ThemeName = "dark"
    surface: Surface = "inflated"
    layout: Layout = "both"
    measure: MeasureName = "rms"
    scale_mode: ScaleMode = "fixed"
    compare: bool = False
    limits: dict[str, tuple[float, float, float]] = field(default_factory=dict)


CHOICES: dict[str, tuple[str, ...]] = {
    "theme": get_args(ThemeName),
    "surface": get_args(Surface),
    "layout": get_args(Layout),
    "measure": get_args(MeasureName),
    "scale_mode": get_args(ScaleMode),
}


class PreferencesStore:
    """An INI file of Qt's.

    Parameters
    ----------
    path : Path | None
        Of the file; None: where Qt keeps settings of this program for this user.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            scope = QSettings.Scope.UserScope
            self._settings = QSettings(QSettings.Format.IniFormat, scope, "rt-mmdf", "view")
        else:
            self._settings = QSettings(str(path), QSettings.Format.IniFormat)

    def load(self) -> Preferences:
        """What was kept; defaults for what was not, or does not fit."""
        kept: dict[str, Any] = {}
        for own in fields(Preferences):
            value = self._settings.value(f"view/{own.name}")
            if own.name in CHOICES:
                if value in CHOICES[own.name]:
                    kept[own.name] = value
            elif own.name == "limits":
                kept["limits"] = _limits_in(value)
            elif value in ("true", "false"):  # how an INI file holds a bool
                kept[own.name] = value == "true"
        return Preferences(**kept)

    def save(self, preferences: Preferences) -> None:
        for name, value in asdict(preferences).items():
            if name == "limits":
                newest = dict(list(value.items())[-MAX_LIMITS:])
                self._settings.setValue("view/limits", json.dumps(newest))
            else:
                self._settings.setValue(f"view/{name}", str(value).lower() if isinstance(value, bool) else value)
        self._settings.sync()

    def arrangement(self) -> tuple[QByteArray, QByteArray] | None:
        """Geometry and arrangement of docks as Qt saves them; None where there are none."""
        geometry, state = (self._settings.value(f"window/{key}") for key in ("geometry", "state"))
        return (geometry, state) if isinstance(geometry, QByteArray) and isinstance(state, QByteArray) else None

    def save_arrangement(self, geometry: QByteArray, state: QByteArray) -> None:
        self._settings.setValue("window/geometry", geometry)
        self._settings.setValue("window/state", state)
        self._settings.sync()


def _limits_in(text: object) -> dict[str, tuple[float, float, float]]:
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    limits = {}
    for key, values in (found if isinstance(found, dict) else {}).items():
        if isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values):
            low, full, high = (float(value) for value in values)
            if 0 <= low <= full < high and math.isfinite(high):
                limits[key] = (low, full, high)
    return dict(list(limits.items())[-MAX_LIMITS:])
