"""How well a source map tells where the activity is. Positions are in millimetres, all in one frame.

Truth `s` and estimate `s^` are one instant each, over the same source space; the active set is
``I = {|s| > 0.25 max|s|}``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from scipy.stats import rankdata

Array = NDArray[np.float64]

ACTIVE_SHARE = 0.25  # of the largest moment: what counts as active
PEAK_SEPARATION_MM = 20.0
MISSING_PEAK_MM = 60.0


def snr_db(whitened_field: ArrayLike, rank: int) -> float:
    """Signal-to-noise ratio of a field without noise, in whitened units: ``10 log10(mean_t |W G s|^2 / rank)``.

    Parameters
    ----------
    whitened_field : (n_channels,) or (n_channels, n_times)
        ``W G s``; W whitens sensor and brain noise jointly over all channels.
    rank : int
        Dimensions that W leaves.

    Returns
    -------
    float
        ``-inf`` for a field of zeros.
    """
    field = np.asarray(whitened_field, dtype=float).reshape(len(np.asarray(whitened_field)), -1)
    if rank < 1:
        raise ValueError(f"rank {rank}: at least one dimension is needed")
    power = float(np.mean(np.sum(field**2, axis=0))) / rank
    return 10 * float(np.log10(power)) if power > 0 else float("-inf")


def to_nearest(moments: ArrayLike, from_mm: ArrayLike, to_mm: ArrayLike) -> Array:
    """Carry moments to another source space: each goes to the nearest source there, several in one place add up.

    Parameters
    ----------
    moments : (n_from,) or (n_from, n_times)
    from_mm, to_mm : (n_from, 3), (n_to, 3)

    Returns
    -------
    (n_to,) or (n_to, n_times)
    """
    moments = np.asarray(moments, dtype=float)
    target = np.asarray(to_mm, dtype=float)
    nearest = cKDTree(target).query(np.asarray(from_mm, dtype=float))[1]
    carried = np.zeros((len(target), *moments.shape[1:]))
    np.add.at(carried, nearest, moments)
    return carried


def active_set(truth: ArrayLike) -> NDArray[np.bool_]:
    """Which sources are active: ``|s| > 0.25 max|s|``; none where the truth is zero."""
    strength = np.abs(np.asarray(truth, dtype=float))
    return np.asarray(strength > ACTIVE_SHARE * strength.max())


def le_mm(estimate: ArrayLike, positions_mm: ArrayLike, centres_mm: ArrayLike, adjacency: csr_array | None = None) -> Array:
    """Localisation error of each true patch, in mm.

    One patch: the distance from the strongest source to the patch's centre. n patches: the n largest local maxima of
    ``|s^|`` that are at least 20 mm apart, matched one to one with the least total distance; a missing one costs 60 mm.

    Parameters
    ----------
    estimate : (n_sources,)
        One instant; its sign does not matter.
    positions_mm : (n_sources, 3)
    centres_mm : (n_patches, 3) or (3,)
    adjacency : (n_sources, n_sources) sparse
        Neighbours on the cortical mesh, symmetric, any value but zero; needed for two patches and more, since a slope is
        not a maximum.

    Returns
    -------
    (n_patches,)
        In the order of `centres_mm`.
    """
    strength = np.abs(np.asarray(estimate, dtype=float))
    positions = np.asarray(positions_mm, dtype=float)
    centres = np.atleast_2d(np.asarray(centres_mm, dtype=float))
    if strength.shape != (len(positions),) or not np.isfinite(strength).all():
        raise ValueError(
            f"estimate of shape {strength.shape} for {len(positions)} sources, "
            f"{np.count_nonzero(~np.isfinite(strength))} of them not finite: one finite value per source is expected"
        )
    if not strength.any():
        return np.full(len(centres), MISSING_PEAK_MM)
    if len(centres) == 1:
        return np.asarray(np.linalg.norm(positions[int(strength.argmax())] - centres, axis=1))
    if adjacency is None:
        raise ValueError(f"{len(centres)} patches: the neighbours of each source are needed to find that many maxima")
    peaks = _peaks(strength, positions, adjacency, len(centres))
    cost = np.full((len(centres), len(centres)), MISSING_PEAK_MM)
    cost[:, : len(peaks)] = np.linalg.norm(centres[:, None] - positions[peaks][None], axis=2)
    rows, columns = linear_sum_assignment(cost)
    errors = np.empty(len(centres))
    errors[rows] = cost[rows, columns]
    return errors


def _peaks(strength: Array, positions: Array, adjacency: csr_array, n_wanted: int) -> list[int]:
    neighbours = csr_array(adjacency).tocoo()
    best_neighbour = np.zeros_like(strength)
    np.maximum.at(best_neighbour, neighbours.row, strength[neighbours.col])
    candidates = np.flatnonzero((strength >= best_neighbour) & (strength > 0))
    peaks: list[int] = []
    for candidate in candidates[np.argsort(-strength[candidates], kind="stable")]:
        far = np.linalg.norm(positions[peaks] - positions[candidate], axis=1) >= PEAK_SEPARATION_MM
        if far.all():
            peaks.append(int(candidate))
        if len(peaks) == n_wanted:
            break
    return peaks


def auc(estimate: ArrayLike, truth: ArrayLike) -> float:
    """Area under the ROC curve of ``|s^|`` for membership in the active set of the truth; equal values count half.

    Raises
    ------
    ValueError
        Nothing or everything is active: there is no curve.
    """
    strength = np.abs(np.asarray(estimate, dtype=float))
    active = active_set(truth)
    n_active, n_silent = int(active.sum()), int((~active).sum())
    if n_active == 0 or n_silent == 0:
        raise ValueError(f"{n_active} of {len(active)} sources are active: an ROC curve needs some of both")
    ranks = rankdata(strength)
    return float((ranks[active].sum() - n_active * (n_active + 1) / 2) / (n_active * n_silent))


def sd_mm(estimate: ArrayLike, positions_mm: ArrayLike, centres_mm: ArrayLike) -> float:
    """Spatial dispersion: ``sqrt(sum |s^|^2 d^2 / sum |s^|^2)``, d the distance to the nearest true centre, in mm.

    Raises
    ------
    ValueError
        The estimate is zero everywhere: it has no place.
    """
    power = np.asarray(estimate, dtype=float) ** 2
    if power.sum() == 0:
        raise ValueError("the estimate is zero everywhere: its dispersion is not defined")
    centres = np.atleast_2d(np.asarray(centres_mm, dtype=float))
    distance = cKDTree(centres).query(np.asarray(positions_mm, dtype=float))[0]
    return float(np.sqrt(np.sum(power * distance**2) / power.sum()))
