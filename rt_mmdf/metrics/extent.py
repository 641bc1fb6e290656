"""How well a source map tells how far the activity reaches and how strong it is. Positions in millimetres, areas in mm^2.

Truth `s` and estimate `s^` are one instant each, over the same source space; the active set is
``I = {|s| > 0.25 max|s|}``. Moments of both are in one unit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from rt_mmdf.metrics.localisation import active_set

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

CLOSE_SHARE = 0.2  # of the silent sources, nearest to the active ones
FAR_SHARE = 0.5
AMPLITUDE_RADIUS_MM = 20.0
OTSU_BINS = 256


def auc_close(estimate: ArrayLike, truth: ArrayLike, positions_mm: ArrayLike) -> float:
    """As `localisation.auc`, against the nearest 20 % of the silent sources only: is the border right?

    The distance of a silent source is that to the nearest active one.

    Raises
    ------
    ValueError
        Nothing or everything is active: there is no curve.
    """
    active, close, _ = close_and_far(truth, positions_mm)
    return separation(estimate, active, close)


def auc_far(estimate: ArrayLike, truth: ArrayLike, positions_mm: ArrayLike) -> float:
    """As `localisation.auc`, against the farthest 50 % of the silent sources only: are there ghosts far away?

    Raises
    ------
    ValueError
        Nothing or everything is active: there is no curve.
    """
    active, _, far = close_and_far(truth, positions_mm)
    return separation(estimate, active, far)


def close_and_far(truth: ArrayLike, positions_mm: ArrayLike) -> tuple[Bools, Bools, Bools]:
    """(n_sources,) each: the active sources, the nearest 20 % of the others (rounded up), their farthest 50 % (rounded up).

    Equal distances are taken in the order of the sources.
    """
    active = active_set(truth)
    silent = np.flatnonzero(~active)
    if not active.any() or len(silent) == 0:
        raise ValueError(f"{active.sum()} of {len(active)} sources are active: an ROC curve needs some of both")
    positions = np.asarray(positions_mm, dtype=float)
    distance = cKDTree(positions[active]).query(positions[silent])[0]
    return active, *split_by_distance(silent, distance, len(active))


def split_by_distance(silent: NDArray[np.intp], distance: NDArray[np.floating], n_sources: int) -> tuple[Bools, Bools]:
    """Masks of the nearest 20 % and the farthest 50 % of the silent sources, by their distance to the active ones."""
    order = silent[np.argsort(distance, kind="stable")]
    close, far = np.zeros((2, n_sources), dtype=bool)
    close[order[: int(np.ceil(CLOSE_SHARE * len(order)))]] = True
    far[order[len(order) - int(np.ceil(FAR_SHARE * len(order))) :]] = True
    return close, far


def separation(estimate: ArrayLike, positives: Bools, negatives: Bools) -> float:
    """Area under the ROC curve: how likely ``|s^|`` of a positive is above that of a negative; equal values count half."""
    strength = np.abs(np.asarray(estimate))
    rivals = np.sort(strength[negatives])
    own = strength[positives]
    below = np.searchsorted(rivals, own, side="left")
    up_to = np.searchsorted(rivals, own, side="right")
    return float((below.sum() + up_to.sum()) / (2 * len(own) * len(rivals)))


def source_areas(positions_mm: ArrayLike, triangles: ArrayLike) -> Array:
    """Cortex that each source stands for: a third of every triangle it belongs to.

    Parameters
    ----------
    positions_mm : (n_sources, 3)
    triangles : (n_triangles, 3)

    Returns
    -------
    (n_sources,)
        mm^2; 0 for a source without triangle.
    """
    positions, corners = np.asarray(positions_mm, dtype=float), np.asarray(triangles, dtype=np.int64)
    a, b, c = (positions[corners[:, i]] for i in range(3))
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return np.asarray(np.bincount(corners.ravel(), np.repeat(area / 3, 3), minlength=len(positions)), dtype=np.float64)


def area_ratio(estimate: ArrayLike, truth: ArrayLike, areas: ArrayLike) -> float:
    """Area of the sources above half of the map's maximum, over the same of the truth; 1 is right.

    Parameters
    ----------
    areas : (n_sources,)
        `source_areas`.

    Raises
    ------
    ValueError
        The truth is zero, or has no area.
    """
    area = np.asarray(areas, dtype=float)
    true = float(area[_above_half(truth)].sum())
    if true == 0:
        raise ValueError("the truth covers no area: its extent is not defined")
    return float(area[_above_half(estimate)].sum()) / true


def _above_half(values: ArrayLike) -> Bools:
    strength = np.abs(np.asarray(values))
    return np.asarray(strength > 0.5 * strength.max())


def amplitude_ratio(estimate: ArrayLike, truth: ArrayLike, positions_mm: ArrayLike, centres_mm: ArrayLike) -> float:
    """Moment summed within 20 mm of a patch's centre, over the true one, signs included; the mean over the patches.

    Returns
    -------
    float
        1 is right, negative is upside down; NaN where the truth within 20 mm of a centre sums to zero.
    """
    centres = np.atleast_2d(np.asarray(centres_mm, dtype=float))
    positions = np.asarray(positions_mm, dtype=float)
    around = np.linalg.norm(positions[None] - centres[:, None], axis=2) <= AMPLITUDE_RADIUS_MM
    seen, true = around @ np.asarray(estimate, dtype=float), around @ np.asarray(truth, dtype=float)
    return float(np.mean(seen / true)) if true.all() else float("nan")


def otsu_upper_class(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """First bin of the upper class, for the largest variance between the two classes; of equally good ones the lowest.

    Otsu (1979), doi 10.1109/TSMC.1979.4310076.

    Parameters
    ----------
    counts : (..., n_bins), values that fall into each of equal bins

    Returns
    -------
    (...,)
        0 where all values share one bin: there are no two classes.
    """
    below = np.cumsum(counts, axis=-1)[..., :-1]
    whole = np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    moment = np.cumsum(counts * np.arange(counts.shape[-1]), axis=-1)
    parted = (below > 0) & (below < whole)
    between = (moment[..., -1:] * (below / whole) - moment[..., :-1]) ** 2 / np.where(parted, below * (whole - below), 1)
    return np.where(parted.any(axis=-1), np.where(parted, between, -1.0).argmax(axis=-1) + 1, 0)


def dice(estimate: ArrayLike, truth: ArrayLike) -> float:
    """Overlap of the active set with what Otsu's threshold keeps of ``|s^|``: twice the common part over the sum of both.

    The threshold is found on 256 bins from 0 to the maximum.
    """
    strength = np.abs(np.asarray(estimate, dtype=float))
    active = active_set(truth)
    kept = np.zeros(len(active), dtype=bool)
    if strength.any():
        bins = np.minimum((strength * (OTSU_BINS / float(strength.max()))).astype(np.int64), OTSU_BINS - 1)
        kept = (bins >= otsu_upper_class(np.bincount(bins, minlength=OTSU_BINS))) & (strength > 0)
    return float(2 * (kept & active).sum() / max(kept.sum() + active.sum(), 1))


def nmse(estimate: ArrayLike, truth: ArrayLike) -> float:
    """``sum (s^ - s)^2 / sum s^2``: 0 is perfect, 1 is as good as a map of zeros.

    Raises
    ------
    ValueError
        The truth is zero.
    """
    true = np.asarray(truth, dtype=float)
    if not true.any():
        raise ValueError("the truth is zero everywhere: no error can be measured against it")
    return float(np.sum((np.asarray(estimate, dtype=float) - true) ** 2) / np.sum(true**2))


def time_course_correlation(estimate: ArrayLike, truth: ArrayLike) -> float:
    """Pearson's correlation of an estimated with a true time course, both (n_times,); NaN where one of them is constant."""
    a, b = (np.asarray(course, dtype=float) for course in (estimate, truth))
    a, b = a - a.mean(), b - b.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale > 0 else float("nan")
