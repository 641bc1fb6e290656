"""Earth mover's distance between source maps, on parcels that are few enough for the exact solution."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

MAX_PARCELS = 1284  # of two icosahedra of order 3


@dataclass(frozen=True, eq=False)
class Parcels:
    """Sources gathered around some of them.

    of_source : (n_sources,) int64, the parcel of each source
    distance_mm : (n_parcels, n_parcels), between the sources that the parcels are gathered around
    """

    of_source: NDArray[np.int64]
    distance_mm: NDArray[np.float64]

    @property
    def n_parcels(self) -> int:
        return len(self.distance_mm)

    def gathered(self, values: ArrayLike) -> NDArray[np.float64]:
        """(n_parcels,): the sum of (n_sources,) `values` over each parcel."""
        sums = np.bincount(self.of_source, np.asarray(values, dtype=float), minlength=self.n_parcels)
        return np.asarray(sums, dtype=np.float64)


def make_parcels(positions_mm: ArrayLike, n_left: int, n_parcels: int = MAX_PARCELS) -> Parcels:
    """Gather sources around `n_parcels` of them that lie as far from each other as they can; no parcel spans hemispheres.

    Farthest-point sampling (Gonzalez 1985, doi 10.1016/0304-3975(85)90224-5), from the first source of each hemisphere;
    the hemispheres get parcels in proportion to their sources.

    Parameters
    ----------
    positions_mm : (n_sources, 3)
    n_left : sources of the left hemisphere, which come first
    n_parcels : as many at most; every source is its own parcel where there are no more
    """
    positions = np.asarray(positions_mm, dtype=float)
    n_sources = len(positions)
    n_parcels = min(n_parcels, n_sources)
    sides = [side for side in (np.arange(n_left), np.arange(n_left, n_sources)) if len(side)]
    if n_parcels < len(sides):
        raise ValueError(f"{n_parcels} parcels: each of {len(sides)} hemispheres needs one at least")
    of_source = np.empty(n_sources, dtype=np.int64)
    seeds: list[int] = []
    for i, side in enumerate(sides):
        here = n_parcels - len(seeds) if i == len(sides) - 1 else max(1, round(n_parcels * len(side) / n_sources))
        chosen = side[_far_apart(positions[side], here)]
        of_source[side] = len(seeds) + cKDTree(positions[chosen]).query(positions[side])[1]
        seeds.extend(chosen.tolist())
    return Parcels(of_source, cdist(positions[seeds], positions[seeds]))


def _far_apart(positions: NDArray[np.float64], n_wanted: int) -> NDArray[np.int64]:
    chosen = np.zeros(n_wanted, dtype=np.int64)
    nearest = np.linalg.norm(positions - positions[0], axis=1)
    for i in range(1, n_wanted):
        chosen[i] = nearest.argmax()
        np.minimum(nearest, np.linalg.norm(positions - positions[chosen[i]], axis=1), out=nearest)
    return chosen


def has_transport() -> bool:
    """Whether the package POT, which solves the transport, is installed."""
    return importlib.util.find_spec("ot") is not None


@cache
def _ot() -> Any:
    try:
        return importlib.import_module("ot")
    except ImportError as error:
        raise ImportError(
            "the earth mover's distance needs the package POT, which is not installed: pip install 'rt-mmdf[evaluation]'"
        ) from error


def emd_mm(estimate: ArrayLike, truth: ArrayLike, parcels: Parcels) -> float:
    """Earth mover's distance between ``|s|`` and ``|s^|``, each normalised to sum 1: mm that the mean part must travel.

    Parameters
    ----------
    estimate, truth : (n_sources,)

    Raises
    ------
    ValueError
        One of the maps is zero everywhere.
    ImportError
        POT is not installed.

    Notes
    -----
    Exact, by POT's network simplex (Flamary et al. 2021, JMLR 22(78)).
    """
    a, b = (parcels.gathered(np.abs(np.asarray(values, dtype=float))) for values in (truth, estimate))
    if a.sum() == 0 or b.sum() == 0:
        raise ValueError("a map that is zero everywhere cannot be moved: its earth mover's distance is not defined")
    rows, columns = np.flatnonzero(a), np.flatnonzero(b)
    a, b = a[rows] / a.sum(), b[columns] / b.sum()
    cost = parcels.distance_mm[np.ix_(rows, columns)]
    if len(rows) == 1 or len(columns) == 1:  # there is one plan only
        return float(a @ cost @ b)
    if len(rows) < len(columns):  # the longer side first: half the time for a patch against a whole brain
        a, b, cost = b, a, cost.T
    return float(_ot().emd2(a, b, np.ascontiguousarray(cost), numItermax=1_000_000))
