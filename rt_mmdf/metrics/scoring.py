"""The metrics of many source maps at once, equal to their plain definitions: tests/metrics/test_scoring.py.

An evaluation scores hundreds of thousands of maps; what depends on the truth alone is prepared once for all solvers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from rt_mmdf.metrics.extent import (
    AMPLITUDE_RADIUS_MM,
    OTSU_BINS,
    otsu_upper_class,
    source_areas,
    split_by_distance,
)
from rt_mmdf.metrics.localisation import ACTIVE_SHARE, MISSING_PEAK_MM, PEAK_SEPARATION_MM
from rt_mmdf.metrics.transport import Parcels, emd_mm, make_parcels

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

# in the order of reports; the last two need an estimate in the unit of the truth
METRICS = ("le_mm", "auc", "auc_close", "auc_far", "emd_mm", "sd_mm", "area_ratio", "dice", "amplitude_ratio", "nmse")
NEED_AMPLITUDE = ("amplitude_ratio", "nmse")


@dataclass(frozen=True, eq=False)
class ScoredSpace:
    """A source space with what scoring needs to know of it.

    positions_mm : (n_sources, 3)
    neighbours : (n_sources, n) int64, neighbours on the mesh, padded with the source itself
    within_20_mm : (n_sources, n) int64, sources nearer than two peaks may be, padded with the source itself
    areas : (n_sources,) mm^2
    """

    positions_mm: Float64
    neighbours: Ints
    within_20_mm: Ints
    areas: Float64
    parcels: Parcels

    @property
    def n_sources(self) -> int:
        return len(self.positions_mm)


def scored_space(positions_mm: ArrayLike, triangles: ArrayLike, n_left: int) -> ScoredSpace:
    """Prepare a source space.

    Parameters
    ----------
    positions_mm : (n_sources, 3)
    triangles : (n_triangles, 3), mesh between the sources
    n_left : sources of the left hemisphere, which come first
    """
    positions, corners = np.asarray(positions_mm, dtype=float), np.asarray(triangles, dtype=np.int64)
    edges = np.unique(np.vstack([corners[:, [i, j]] for i in range(3) for j in range(3) if i != j]), axis=0)
    neighbours = np.split(edges[:, 1], np.searchsorted(edges[:, 0], np.arange(1, len(positions))))
    around = cKDTree(positions).query_ball_point(positions, PEAK_SEPARATION_MM * 1.001)
    near = [
        np.array(found)[np.linalg.norm(positions[found] - place, axis=1) < PEAK_SEPARATION_MM]
        for found, place in zip(around, positions, strict=True)
    ]
    areas = source_areas(positions, corners)
    return ScoredSpace(positions, _padded(neighbours), _padded(near), areas, make_parcels(positions, n_left))


def _padded(rows: Sequence[NDArray[np.int64]]) -> Ints:
    table = np.repeat(np.arange(len(rows))[:, None], max(1, *(len(row) for row in rows)), axis=1)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


class CaseScorer:
    """Scores maps of the same cases by any number of solvers.

    Parameters
    ----------
    truth : (n_cases, n_sources)
    centres_mm : (n_cases, n_patches, 3), of the true patches; all cases have as many
    transported : cases that the earth mover's distance is computed for; the others get NaN

    Raises
    ------
    ValueError
        A case in which nothing or everything is active.
    """

    def __init__(
        self, space: ScoredSpace, truth: NDArray[np.floating], centres_mm: ArrayLike, transported: Sequence[int] = ()
    ) -> None:
        self.space = space
        self.truth = np.asarray(truth, dtype=np.float64)
        self.centres_mm = np.asarray(centres_mm, dtype=float)
        self.transported = tuple(transported)
        strength = np.abs(self.truth)
        largest = strength.max(axis=1, keepdims=True)
        self._active = strength > ACTIVE_SHARE * largest
        n_active = self._active.sum(axis=1)
        if wrong := int(np.count_nonzero((n_active == 0) | (n_active == space.n_sources))):
            raise ValueError(f"{wrong} of {len(n_active)} cases have no or only active sources: they cannot be scored")
        self._true_area = (strength > 0.5 * largest) @ space.areas
        self._true_power = np.sum(self.truth**2, axis=1)
        self._squared_mm2 = self._to_nearest_centre_squared()
        self._sides = [self._close_and_far(row) for row in self._active]
        tree = cKDTree(space.positions_mm)
        self._around = [tree.query_ball_point(centres, AMPLITUDE_RADIUS_MM) for centres in self.centres_mm]

    def _to_nearest_centre_squared(self) -> Float32:
        """(n_cases, n_sources): squared distance to the nearest true centre."""
        squared = np.empty(self.truth.shape, dtype=np.float32)
        for case, centres in enumerate(self.centres_mm):
            offsets = self.space.positions_mm[None] - centres[:, None]
            squared[case] = np.einsum("psi,psi->ps", offsets, offsets).min(axis=0)
        return squared

    def _close_and_far(self, active: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        positions, silent = self.space.positions_mm, np.flatnonzero(~active)
        distance = cKDTree(positions[active]).query(positions[silent])[0]
        close, far = split_by_distance(silent, distance, len(active))
        return np.flatnonzero(close), np.flatnonzero(far)

    def le_mm(self, maps: NDArray[np.floating]) -> Float64:
        """(n_cases,): localisation error, the mean over the patches of a case.

        Parameters
        ----------
        maps : (n_sources, n_cases)
        """
        return localisation_errors(maps, self.space, self.centres_mm)

    def scores(self, maps: NDArray[np.floating], with_amplitude: bool) -> dict[str, Float64]:
        """Every metric of `METRICS`, (n_cases,) each; NaN where it is not defined.

        Parameters
        ----------
        maps : (n_sources, n_cases)
        with_amplitude : whether the maps are in the unit of the truth; metrics that need it are NaN otherwise
        """
        n_cases = len(self.truth)
        signed = np.ascontiguousarray(maps.T)
        strength = np.abs(signed)
        found: dict[str, Float64] = {"le_mm": self.le_mm(maps)}
        found["auc"], found["auc_close"], found["auc_far"] = self._separations(strength)
        found["emd_mm"] = np.full(n_cases, np.nan)
        for case in self.transported:
            if strength[case].any():
                found["emd_mm"][case] = emd_mm(strength[case], self.truth[case], self.space.parcels)
        power = np.square(strength, dtype=np.float64)
        largest = strength.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            found["sd_mm"] = np.sqrt(np.einsum("cs,cs->c", power, self._squared_mm2) / power.sum(axis=1))
            found["area_ratio"] = ((strength > 0.5 * largest) @ self.space.areas) / self._true_area
        found["dice"] = self._dice(strength, largest[:, 0])
        nothing = np.full(n_cases, np.nan)
        found["amplitude_ratio"] = self._amplitude_ratios(signed) if with_amplitude else nothing
        found["nmse"] = np.sum((signed - self.truth) ** 2, axis=1) / self._true_power if with_amplitude else nothing
        return {name: found[name] for name in METRICS}

    def _separations(self, strength: NDArray[np.floating]) -> Float64:
        """(3, n_cases): areas under the ROC curve against all silent sources, the close and the far ones."""
        areas = np.empty((3, len(strength)))
        for case, (values, active, (close, far)) in enumerate(zip(strength, self._active, self._sides, strict=True)):
            own = values[active]
            for i, rivals in enumerate((values[~active], values[close], values[far])):
                rivals.sort()
                below = np.searchsorted(rivals, own, side="left").sum() + np.searchsorted(rivals, own, side="right").sum()
                areas[i, case] = below / (2 * len(own) * len(rivals))
        return areas

    def _dice(self, strength: NDArray[np.floating], largest: NDArray[np.floating]) -> Float64:
        n_cases = len(strength)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = strength * (OTSU_BINS / largest.astype(np.float64))[:, None]
        bins = np.minimum(np.nan_to_num(scaled).astype(np.int64), OTSU_BINS - 1)
        count = np.bincount((bins + OTSU_BINS * np.arange(n_cases)[:, None]).ravel(), minlength=n_cases * OTSU_BINS)
        first = otsu_upper_class(count.reshape(n_cases, OTSU_BINS))
        kept = (bins >= first[:, None]) & (strength > 0)
        both = np.count_nonzero(kept & self._active, axis=1)
        return np.asarray(2 * both / np.maximum(kept.sum(axis=1) + self._active.sum(axis=1), 1))

    def _amplitude_ratios(self, signed: NDArray[np.floating]) -> Float64:
        ratios = np.full(len(signed), np.nan)
        for case, (values, truth, around) in enumerate(zip(signed, self.truth, self._around, strict=True)):
            true = [float(truth[near].sum()) for near in around]
            if all(true):
                seen = [float(values[near].sum(dtype=np.float64)) for near in around]
                ratios[case] = np.mean(np.array(seen) / true)
        return ratios


def localisation_errors(maps: NDArray[np.floating], space: ScoredSpace, centres_mm: Float64) -> Float64:
    """Mean over the patches of `localisation.le_mm`, for many maps.

    Parameters
    ----------
    maps : (n_sources, n_cases)
    centres_mm : (n_cases, n_patches, 3)

    Returns
    -------
    (n_cases,)

    Raises
    ------
    ValueError
        Values that are not finite.
    """
    strength = np.abs(maps)
    n_patches = centres_mm.shape[1]
    peaks = np.empty((n_patches, maps.shape[1]), dtype=np.intp)
    heights = np.empty(peaks.shape, dtype=strength.dtype)
    cases = np.arange(maps.shape[1])
    if n_patches > 1:
        largest_near = strength[space.neighbours[:, 0]]
        for column in space.neighbours.T[1:]:
            np.maximum(largest_near, strength[column], out=largest_near)
        strength[strength < largest_near] = 0
    for i in range(n_patches):
        peaks[i] = strength.argmax(axis=0)
        heights[i] = strength[peaks[i], cases]
        if i < n_patches - 1:
            strength[space.within_20_mm[peaks[i]].T, cases] = 0
    if not np.isfinite(heights).all() or np.isnan(maps.sum()):
        raise ValueError("maps with values that are not finite cannot be scored")
    offsets = centres_mm[:, :, None] - space.positions_mm[peaks.T][:, None]
    cost = np.where(heights.T[:, None] > 0, np.linalg.norm(offsets, axis=3), MISSING_PEAK_MM)
    centres = np.arange(n_patches)
    totals = [cost[:, centres, list(order)].mean(axis=1) for order in permutations(range(n_patches))]
    return np.asarray(np.min(totals, axis=0))
