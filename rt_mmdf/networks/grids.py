"""Sensors as a picture: each gets the cell of a grid that lies nearest to its place in the 2-D layout.

One sensor a cell, all displacements together as small as can be: an assignment problem, solved exactly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Sensors per cell that a grid may hold: the published grids have 59 on 9 x 11 and 102 on 12 x 14, both 0.6. A disc of
# sensors fills at most pi / 4 = 0.79 of its box before it must be bent.
FULLEST = 0.65

Ints = NDArray[np.int64]


def grid_shape(n_sensors: int, smallest: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns for so many sensors: `smallest` where it does, else larger in the same proportion.

    At most `FULLEST` of the cells are taken on a grid that had to grow.
    """
    rows, columns = smallest
    if n_sensors <= FULLEST * rows * columns:
        return rows, columns
    growth = math.sqrt(n_sensors / (FULLEST * rows * columns))
    return math.ceil(rows * growth), math.ceil(columns * growth)


def sensor_cells(layout: ArrayLike, shape: tuple[int, int]) -> Ints:
    """Cell of each sensor, counted row by row from the front left; no two sensors share one.

    Parameters
    ----------
    layout : (n_sensors, 2)
        Seen from above, x to the right, y to the nose, any unit: the box around the sensors is stretched over the grid.
    shape : rows, columns

    Returns
    -------
    (n_sensors,) int64, the sum of the squared displacements (in cells) being the smallest possible.

    Raises
    ------
    ValueError
        More sensors than cells, or places that are not finite.
    """
    wanted = cells_wanted(layout, shape)
    rows, columns = shape
    if len(wanted) > rows * columns:
        raise ValueError(
            f"sensor grid of {rows} x {columns} = {rows * columns} cells for {len(wanted)} sensors: each needs a cell "
            "of its own. Choose a larger grid."
        )
    cells = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    cost = np.square(wanted[:, None, :] - cells[None, :, :]).sum(axis=2)
    return cheapest_assignment(cost)


def cells_wanted(layout: ArrayLike, shape: tuple[int, int]) -> NDArray[np.float64]:
    """(n_sensors, 2) row and column, with fractions, where each sensor would lie if it were alone; row 0 is at the nose."""
    places = np.asarray(layout, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(places).all():
        raise ValueError(f"sensor layout: {int((~np.isfinite(places)).any(axis=1).sum())} sensors have no place in it.")
    if len(places) == 0:
        return places
    low, high = places.min(axis=0), places.max(axis=0)
    part = (places - low) / np.where(high > low, high - low, 1.0)
    part[:, high <= low] = 0.5  # sensors on one line lie in the middle
    return np.stack([(1 - part[:, 1]) * (shape[0] - 1), part[:, 0] * (shape[1] - 1)], axis=1)


def cheapest_assignment(cost: NDArray[np.float64]) -> Ints:
    """For each row of `cost` (n_rows, n_columns >= n_rows) its own column, the sum of the costs the smallest possible.

    Notes
    -----
    Shortest augmenting paths with potentials (Jonker & Volgenant 1987, doi 10.1007/BF02278710), without the heuristics of
    their first phase: 102 sensors on 168 cells take 2 ms. scipy has it too, but a bare training node has no scipy.
    """
    n_rows, n_columns = cost.shape
    row_potential, column_potential = np.zeros(n_rows), np.zeros(n_columns)
    row_of = np.full(n_columns, -1, dtype=np.int64)
    for start in range(n_rows):
        shortest = np.full(n_columns, np.inf)
        came_from = np.full(n_columns, -1, dtype=np.int64)
        done = np.zeros(n_columns, dtype=bool)
        row, column, length = start, -1, 0.0
        while row >= 0:  # until a free column is reached
            reduced = length + cost[row] - row_potential[row] - column_potential
            better = ~done & (reduced < shortest)
            shortest[better] = reduced[better]
            came_from[better] = column
            column = int(np.where(done, np.inf, shortest).argmin())
            length = float(shortest[column])
            done[column] = True
            row = int(row_of[column])
        passed = done.copy()
        passed[column] = False
        row_potential[row_of[passed]] += length - shortest[passed]
        row_potential[start] += length
        column_potential[passed] -= length - shortest[passed]
        while column >= 0:  # back along the path, each column takes the row of the one before
            before = int(came_from[column])
            row_of[column] = row_of[before] if before >= 0 else start
            column = before
    assigned = np.empty(n_rows, dtype=np.int64)
    taken = np.flatnonzero(row_of >= 0)
    assigned[row_of[taken]] = taken
    return assigned
