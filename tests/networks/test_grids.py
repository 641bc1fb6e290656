"""Sensors on a grid: one a cell, each near its place, and the assignment the best there is."""

from __future__ import annotations

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.networks.grids import FULLEST, cells_wanted, cheapest_assignment, grid_shape, sensor_cells


@given(n_rows=st.integers(1, 9), extra=st.integers(0, 5), seed=st.integers(0, 2**31), ties=st.booleans())
def test_assignment_is_as_cheap_as_scipys(n_rows: int, extra: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (n_rows, n_rows + extra)
    cost = rng.integers(0, 4, shape).astype(float) if ties else rng.random(shape)
    columns = cheapest_assignment(cost)
    assert len(set(columns.tolist())) == n_rows
    assert cost[np.arange(n_rows), columns].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())


@given(n=st.integers(1, 120), seed=st.integers(0, 2**31))
def test_each_sensor_has_its_own_cell_whatever_the_layout(n: int, seed: int) -> None:
    layout = np.random.default_rng(seed).normal(size=(n, 2))
    shape = grid_shape(n, (9, 11))
    cells = sensor_cells(layout, shape)
    assert len(set(cells.tolist())) == n
    assert cells.min() >= 0
    assert cells.max() < shape[0] * shape[1]
    np.testing.assert_array_equal(cells, sensor_cells(layout * 3.0 + 7.0, shape))  # units and origin do not matter


@given(n=st.integers(1, 600))
def test_grid_grows_only_where_it_must(n: int) -> None:
    rows, columns = grid_shape(n, (12, 14))
    assert n <= FULLEST * rows * columns
    assert (rows, columns) == (12, 14) or n > FULLEST * 12 * 14


@pytest.mark.parametrize(("kind", "shape"), [("eeg", (9, 11)), ("eeg", (7, 11)), ("mag", (12, 14))])
def test_real_sensors_lie_within_a_cell_of_their_place(
    template_head_ico3: HeadModel, kind: str, shape: tuple[int, int]
) -> None:
    info = template_head_ico3.info
    picks = [i for i, own in enumerate(info.get_channel_types()) if own == kind]
    layout = mne.channels.layout._find_topomap_coords(info, picks)
    cells = sensor_cells(layout, shape)
    wanted = cells_wanted(layout, shape)
    moved = np.linalg.norm(np.stack(np.divmod(cells, shape[1]), axis=1) - wanted, axis=1)
    assert len(set(cells.tolist())) == len(picks)
    assert moved.mean() < 0.7
    assert moved.max() < 1.8


def test_nose_is_up_and_right_is_right() -> None:
    cells = sensor_cells([[0, 1], [1, 0], [-1, 0], [0, -1]], (3, 3))
    assert cells.tolist() == [1, 5, 3, 7]


def test_too_small_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 x 2 = 4 cells for 5 sensors"):
        sensor_cells(np.random.default_rng(0).random((5, 2)), (2, 2))


def test_sensor_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="1 sensors have no place"):
        sensor_cells([[0, 0], [np.nan, 0]], (2, 2))
