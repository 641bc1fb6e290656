"""A robust straight line with a prior on its slope: the one estimator behind both clocks of a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rt_mmdf.core.blocks import Float64

HUBER = 1.5  # residuals beyond 1.5 standard deviations lose weight (95 % efficiency for Gaussian noise)


@dataclass(frozen=True, slots=True)
class Line:
    """``y = value + slope * (x - at)`` with the uncertainty of `value` and `slope` (one standard deviation)."""

    at: float
    value: float
    slope: float
    value_sd: float
    slope_sd: float

    def __call__(self, x: float) -> float:
        return self.value + self.slope * (x - self.at)

    def sd(self, x: float) -> float:
        """Standard deviation of the line at `x`."""
        return float(np.hypot(self.value_sd, self.slope_sd * (x - self.at)))


def fit_line(x: Float64, y: Float64, noise_sd: Float64 | None, slope_sd: float, floor_sd: float) -> Line:
    """Fit a line by iteratively reweighted least squares (Huber), with the slope drawn from N(0, slope_sd^2) a priori.

    Parameters
    ----------
    x, y : (n,) arrays, n >= 1
    noise_sd : (n,) array | None
        Known standard deviations of `y`; None: all alike and estimated from the residuals.
    slope_sd : float
        How steep a line may be before data say so: 1e-4 for clocks (100 ppm).
    floor_sd : float
        Least standard deviation of one `y`.

    Returns
    -------
    Line
        Centred on the newest `x`, where clocks are asked.

    Notes
    -----
    Huber (1964), doi 10.1214/aoms/1177703732. The prior keeps the slope near zero while the points span too little
    time to tell it: with 0.2 ms of noise, 1 s of points would otherwise give 300 ppm of error.
    """
    at = float(x[-1])
    centred = x - at
    known = noise_sd is not None
    sd = np.maximum(noise_sd, floor_sd) if noise_sd is not None else np.array(_spread(y - median(y), floor_sd))
    robust = np.ones(len(x))
    value = slope = value_var = slope_var = 0.0
    for _ in range(4):
        weight = robust / sd**2
        weighted = weight * centred
        # the normal equations of two unknowns, solved by hand: this runs beside every hop
        sw, sx, sxx = float(weight.sum()), float(weighted.sum()), float(weighted @ centred) + slope_sd**-2
        sy, sxy = float(weight @ y), float(weighted @ y)
        determinant = sw * sxx - sx * sx
        value, slope = (sxx * sy - sx * sxy) / determinant, (sw * sxy - sx * sy) / determinant
        value_var, slope_var = sxx / determinant, sw / determinant
        residual = y - value - slope * centred
        if not known:
            sd = np.array(_spread(residual, floor_sd))
        scaled = np.abs(residual) / sd
        if scaled.max() <= HUBER and (robust == 1.0).all() and known:
            break  # nothing to reweight
        robust = np.where(scaled > HUBER, HUBER / np.maximum(scaled, HUBER), 1.0)
    return Line(at, value, slope, math.sqrt(value_var), math.sqrt(slope_var))


@dataclass(frozen=True, slots=True)
class Misfit:
    """What the newest points of a fit are beyond its line, and the standard deviation that noise alone gives that.

    A line through a minute of points follows slowly where a clock changes its rate, and its own uncertainty, which takes the
    points for a line, does not tell.
    """

    value: float = 0.0
    sd: float = 0.0


def newest_misfit(line: Line, x: Sequence[float], y: Sequence[float], noise_sd: float) -> Misfit:
    """By the median of the newest three points, so that one wrong point says nothing."""
    residuals = sorted(y[k] - line(x[k]) for k in range(-min(3, len(x)), 0))
    return Misfit(residuals[len(residuals) // 2], noise_sd)


def successive_spread(y: Sequence[float], floor: float, n_least: int) -> float:
    """Robust standard deviation of points by the differences of successive ones, of which at least `n_least` must be beyond
    `floor`, else 0: a single step, or a slope that has changed, is no scatter.

    Differences below `floor` are left out: points of one and the same block are alike.
    """
    steps = np.diff(np.array(y))
    steps = np.abs(steps - median(steps))
    steps = steps[steps > floor]
    return 1.4826 * median(steps) / math.sqrt(2) if len(steps) >= n_least else 0.0


def _spread(residual: Float64, floor_sd: float) -> float:
    """Robust standard deviation, from the median of the magnitudes."""
    return max(floor_sd, 1.4826 * median(np.abs(residual)))


def median(values: Float64) -> float:
    """Upper median: a fifth of the time of numpy's, which matters more here than the mean of two middle values."""
    middle = len(values) // 2
    return float(np.partition(values, middle)[middle])
