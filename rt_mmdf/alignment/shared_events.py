"""The same events seen by two devices: which are the same, and how much later the one shows them than the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.alignment.line_fit import fit_line
from rt_mmdf.core.blocks import Float64

MAX_DRIFT = 3e-4  # of one device against the other that pairs are looked for with
JITTER_S = 1e-3  # of the events themselves, beside what sampling makes of them
ALIKE = 0.6  # another lag that pairs more than this part of the pairs is as good an answer
LEAST_PART = 0.5  # of the triggers of the device with fewer of them that must have a partner
FEW = 5  # pairs tell nothing below this
LOOSE_SLOPE = 1e-2  # no prior on the drift
OUTLIER = 4.0  # spreads


@dataclass(frozen=True)
class Events:
    """Times at which one device shows events.

    times : (n,) float64, increasing, seconds on this machine's LSL clock
    sd : (n,) float64, standard deviation of the time of a sample there, seconds
    quantum : (n,) float64, seconds within which the event is anywhere, evenly likely: a sampling interval, or 0
    """

    times: Float64
    sd: Float64
    quantum: Float64

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Pairs:
    """Events of two devices that are the same.

    first, second : (n,) positions in either
    rival : pairs that the next best lag would make
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    rival: int

    @property
    def ambiguous(self) -> bool:
        """Whether another lag explains the events nearly as well: they come at regular intervals, or are few."""
        return self.rival > ALIKE * len(self.first)


@dataclass(frozen=True)
class Difference:
    """How much later the first device shows events than the second.

    lag_s : in the middle of the events
    lag_sd_s : standard deviation, of everything: sampling, spread, clocks
    drift, drift_sd : by how much that grows, s/s, over the span of the events
    spread_s : standard deviation of single pairs about the line
    n_pairs : used; those far off the line are not
    """

    lag_s: float
    lag_sd_s: float
    drift: float
    drift_sd: float
    spread_s: float
    n_pairs: int

    @property
    def drifts(self) -> bool:
        """Whether there is a drift beyond doubt."""
        return abs(self.drift) > 3 * self.drift_sd


def pair_events(first: Events, second: Events, max_lag_s: float) -> Pairs:
    """Find the lag within `max_lag_s`, and the drift within 300 ppm, with which most events have a partner.

    Missing and additional ones on either side do no harm. The lag may be longer than the intervals if these are irregular.
    """
    a, b = first.times, second.times
    nothing = np.empty(0, np.intp)
    if not len(a) or not len(b):
        return Pairs(nothing, nothing, 0)
    tolerance = JITTER_S + float(first.quantum.max()) + float(second.quantum.max())
    middle = float(b.mean())
    span = max(float(a[-1] - a[0]), float(b[-1] - b[0]), 1.0)
    n_steps = math.ceil(MAX_DRIFT * span / (4 * JITTER_S))  # half a step is a millisecond at the ends
    best, tried = (0, -math.inf, 0.0, b), []
    for step in range(-n_steps, n_steps + 1):
        drifted = b + step * MAX_DRIFT / n_steps * (b - middle)
        lags = (a[:, None] - drifted[None, :]).ravel()
        lags = lags[np.abs(lags) <= max_lag_s]
        if not len(lags):
            continue
        apart = _apart(a, drifted, lags)
        near = apart <= tolerance
        n_near = near.sum(axis=1)
        tried.append((lags, n_near))
        # of the lags that pair as many: the one that fits them best
        closeness = -np.where(near, apart, 0.0).sum(axis=1)
        top = int(np.lexsort((closeness, n_near))[-1])
        if (int(n_near[top]), float(closeness[top])) > best[:2]:
            best = int(n_near[top]), float(closeness[top]), float(lags[top]), drifted
    if not best[0]:
        return Pairs(nothing, nothing, 0)
    _, _, lag, drifted = best
    rival = max(int(n[np.abs(lags - lag) > 3 * tolerance].max(initial=0)) for lags, n in tried)
    where = _nearest(a - lag, drifted)
    one = np.flatnonzero(np.abs(a - lag - drifted[where]) <= tolerance)
    other, unique = np.unique(where[one], return_index=True)
    return Pairs(one[unique], other, rival)


def _nearest(wanted: Float64, among: Float64) -> NDArray[np.intp]:
    right = np.clip(np.searchsorted(among, wanted), 1, max(1, len(among) - 1))
    right = np.minimum(right, len(among) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(wanted - among[left]) <= np.abs(among[right] - wanted), left, right)


def _apart(a: Float64, b: Float64, lags: Float64) -> Float64:
    """(n_lags, n_a): how far each event of `a` is from the nearest of `b`, for each lag."""
    wanted = a[None, :] - lags[:, None]
    apart: Float64 = np.abs(wanted - b[_nearest(wanted, b)])
    return apart


def difference(first: Events, second: Events, pairs: Pairs) -> Difference:
    """Lag and drift from pairs (5 at least).

    What sampling does to the time of a single pair has the variance ``(q1^2 + q2^2) / 12`` for sampling intervals q (a
    uniform error on either side), and n pairs at any phase have an n-th of that. Where the pairs scatter by far less, the
    events are locked to the sampling: then the error is the same in all of them, and nothing is gained by their number. The
    clocks' uncertainty is in all of them alike, too.
    """
    i, j = pairs.first, pairs.second
    x, y = second.times[j], first.times[i] - second.times[j]
    quantum = np.sqrt((first.quantum[i] ** 2 + second.quantum[j] ** 2) / 12)
    clocks = np.hypot(first.sd[i], second.sd[j])
    noise = np.hypot(np.maximum(quantum, 1e-5), clocks)
    rough = fit_line(x, y, None, LOOSE_SLOPE, 1e-5)
    off = np.abs(y - rough.value - rough.slope * (x - rough.at))
    near = off <= OUTLIER * np.maximum(noise, 1.4826 * float(np.median(off)))
    x, y, quantum, clocks, noise = (values[near] for values in (x, y, quantum, clocks, noise))
    n = len(x)
    weight = noise**-2
    weight /= weight.sum()
    middle = float(weight @ x)
    centred = x - middle
    steep = float(weight @ centred**2)
    lag = float(weight @ y)
    drift = float(weight @ (centred * y)) / steep
    residual = y - lag - drift * centred
    spread = math.sqrt(float(weight @ residual**2) * n / max(1, n - 2))
    sampled, clock = math.sqrt(float(weight @ quantum**2)), math.sqrt(float(weight @ clocks**2))
    n_effective = 1 / float(weight @ weight)
    locked = spread < 0.5 * sampled
    single = max(spread, sampled)
    lag_sd = math.hypot(single if locked else single / math.sqrt(n_effective), clock)
    drift_sd = max(single, clock) / math.sqrt(n_effective * steep)
    return Difference(lag, lag_sd, drift, drift_sd, spread, n)
