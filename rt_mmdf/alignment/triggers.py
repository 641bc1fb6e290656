"""From a channel that shows triggers to the instants of their onsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.alignment.line_fit import median
from rt_mmdf.core.blocks import Float64

MAX_LEVELS = 256  # a channel of so few different values, which change rarely, is digital
RARELY = 0.2  # of its samples
APART_S = (
    0.03  # onsets closer than this after another are the same one: bits that do not change at once, a screen that flickers
)
CLEAR = 5.0  # the two levels of an analogue channel are so many times their own spread apart, or there is no trigger on it
UPSIDE_DOWN = 0.75  # of the time at the upper level: that is the level of rest


@dataclass(frozen=True)
class Onsets:
    """Triggers in one stream.

    at : (n,) float64, increasing, in samples; between the last sample before and the first one after
    resolved : (n,) bool; the flank itself was sampled, so that `at` is no matter of half a sample
    """

    at: Float64
    resolved: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.at)


NONE = Onsets(np.empty(0), np.empty(0, bool))


def find_onsets(index: NDArray[np.int64], values: Float64, sfreq: float) -> Onsets:
    """Where a trigger channel leaves its level of rest.

    A digital channel (few values, rarely changing) rests at its most frequent value, and each change to another one is an
    onset; what shows the step is its first sample, so the step was half an interval before that on average, and anywhere in
    the whole of it. An analogue one (a photodiode) has two levels; an onset crosses the middle between them, and where lies
    between the samples on both sides of it: exactly so much if the flank has samples in it.

    Parameters
    ----------
    index : (n,) int64
        Numbers of the samples; over a hole there is no onset.
    values : (n,) float64
    sfreq : float
    """
    known = np.isfinite(values)
    index, values = index[known], values[known]
    if len(values) < 2 or values.min() == values.max():
        return NONE
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    # few values where they change, few anywhere
    levels, n_of = np.unique(values, return_counts=True) if len(changes) <= RARELY * len(values) else (values, changes)
    if len(levels) <= MAX_LEVELS and len(changes) <= RARELY * len(values):
        rest = levels[int(n_of.argmax())]
        if len(levels) == 2 and n_of.max() <= UPSIDE_DOWN * len(values):
            rest = levels[0]
        after = changes[values[changes] != rest]
        at, resolved = index[after] - 0.5, np.zeros(len(after), bool)
    else:
        middle = (values.min() + values.max()) / 2
        upper, lower = values[values > middle], values[values <= middle]
        low, high = median(lower), median(upper)
        spread = 1.4826 * max(median(np.abs(lower - low)), median(np.abs(upper - high)))
        if high - low < CLEAR * spread:
            return NONE
        middle = (low + high) / 2
        beyond = (values - middle) / (high - low)
        if np.count_nonzero(beyond > 0) > UPSIDE_DOWN * len(values):
            beyond = -beyond
        after = np.flatnonzero((beyond[1:] > 0) & (beyond[:-1] <= 0)) + 1
        before, behind = beyond[after - 1], beyond[after]
        at = index[after] - behind / (behind - before)
        resolved = (before > -0.4) | (behind < 0.4)
    whole = index[after] - index[after - 1] == 1
    at, resolved = at[whole], resolved[whole]
    first = np.diff(at, prepend=-np.inf) >= APART_S * sfreq
    return Onsets(at[first], resolved[first])
