"""Whether something grows."""

from __future__ import annotations

import numpy as np


def slope_per_hour(seconds: np.ndarray, values: np.ndarray) -> list[float]:
    """Slope of a straight line through the values, and its 95 % interval: (low, slope, high)."""
    hours = seconds / 3600
    (slope, _), residual = np.polyfit(hours, values, 1, full=True)[:2]
    spread = float(residual[0]) if len(residual) else 0.0
    error = np.sqrt(spread / max(len(hours) - 2, 1) / np.square(hours - hours.mean()).sum())
    return [round(float(slope + k * error), 3) for k in (-1.96, 0.0, 1.96)]
