"""From values to colours, and numbers that are pleasant to read."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float64

GYRUS, SULCUS = 0.80, 0.55  # greys of the cortex


@dataclass(frozen=True)
class ColourRamp:
    """Magnitudes up to `low` are not shown, from `full` on they cover the cortex, at `high` the colours end.

    `signed`: negative values in blue, positive ones in red; otherwise magnitudes from violet to yellow. Both can be told
    apart with any common colour vision.
    """

    low: float
    full: float
    high: float
    signed: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.full < self.high and np.isfinite(self.high)):
            raise ValueError(f"colour ramp {self.low:g}, {self.full:g}, {self.high:g}: 0 <= low <= full < high is expected")

    @classmethod
    def of(cls, values: NDArray[np.floating], signed: bool = False) -> ColourRamp:
        """From the values themselves: shown from 35 % of the largest magnitude on, full from 55 %. Only for single pictures:
        with a scale of its own each, noise looks like activity."""
        finite = np.abs(values[np.isfinite(values)])
        high = float(finite.max(initial=0.0)) or 1.0
        return cls(0.35 * high, 0.55 * high, high, signed)

    def colours(self, values: Float64) -> tuple[Float64, Float64]:
        """RGB ``(..., 3)`` and opacity ``(...)``, both 0 to 1; NaN is transparent."""
        size = np.nan_to_num(np.abs(values))
        along = np.clip((size - self.low) / (self.high - self.low), 0, 1)
        if self.signed:
            rgb = matplotlib.colormaps["RdBu_r"](0.5 + np.sign(np.nan_to_num(values)) * (0.22 + 0.25 * along))
        else:
            rgb = matplotlib.colormaps["inferno"](0.32 + 0.63 * along)
        opacity = np.clip((size - self.low) / max(self.full - self.low, 1e-12 * self.high), 0, 1)
        return np.asarray(rgb[..., :3]), np.asarray(opacity)


def readable(high: float, unit: str) -> tuple[float, str]:
    """Factor and label that give numbers between 1 and 1000 for moments; standardised maps stay as they are."""
    if unit != "A m":
        return 1.0, unit
    prefixes = ((1e-6, "µ"), (1e-9, "n"), (1e-12, "p"), (1e-15, "f"))
    scale, prefix = next((pair for pair in prefixes if high >= pair[0]), prefixes[-1])
    return 1 / scale, f"{prefix}A m"
