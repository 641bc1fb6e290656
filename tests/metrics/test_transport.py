from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog

from rt_mmdf.metrics import transport
from rt_mmdf.metrics.transport import emd_mm, make_parcels

N = 30
POSITIONS = np.random.default_rng(1).uniform(-60, 60, (N, 3))
PARCELS = make_parcels(POSITIONS, 14)
MAPS = arrays(np.float64, N, elements=st.sampled_from([0.0, 0.0, 1.0, -2.0, 0.5, 3.0])).filter(np.any)


@given(a=MAPS, b=MAPS, factor=st.floats(0.1, 10))
def test_a_distance_that_knows_neither_scale_nor_sign(a: np.ndarray, b: np.ndarray, factor: float) -> None:
    there = emd_mm(a, b, PARCELS)
    assert there == pytest.approx(emd_mm(b, a, PARCELS), abs=1e-6)
    assert there == pytest.approx(emd_mm(-factor * a, b, PARCELS), abs=1e-6)
    assert there >= 0
    assert emd_mm(a, a, PARCELS) == pytest.approx(0, abs=1e-6)


@given(a=MAPS, b=MAPS, c=MAPS)
def test_no_detour_is_shorter(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    assert emd_mm(a, c, PARCELS) <= emd_mm(a, b, PARCELS) + emd_mm(b, c, PARCELS) + 1e-6


def test_one_source_travels_its_own_distance() -> None:
    here, there = np.eye(N)[[3, 20]]
    assert emd_mm(here, there, PARCELS) == pytest.approx(np.linalg.norm(POSITIONS[3] - POSITIONS[20]))


def test_the_plan_is_the_cheapest_one() -> None:
    """Against scipy's linear programme."""
    rng = np.random.default_rng(2)
    a, b = rng.uniform(0, 1, (2, N))
    cost = np.linalg.norm(POSITIONS[:, None] - POSITIONS, axis=2)
    sums = np.vstack([np.kron(np.eye(N), np.ones(N)), np.kron(np.ones(N), np.eye(N))])
    best = linprog(cost.ravel(), A_eq=sums, b_eq=np.r_[a / a.sum(), b / b.sum()])
    assert emd_mm(b, a, PARCELS) == pytest.approx(best.fun, rel=1e-6)


@given(n_parcels=st.integers(2, 40))
def test_parcels_cover_all_sources_and_stay_in_their_hemisphere(n_parcels: int) -> None:
    parcels = make_parcels(POSITIONS, 14, n_parcels)
    assert parcels.n_parcels == min(n_parcels, N) == len(np.unique(parcels.of_source))
    assert not set(parcels.of_source[:14]) & set(parcels.of_source[14:])
    weights = np.arange(N)
    assert parcels.gathered(weights).sum() == weights.sum()


def test_few_sources_are_parcels_themselves() -> None:
    assert len(np.unique(PARCELS.of_source)) == N
    order = np.argsort(PARCELS.of_source)
    np.testing.assert_allclose(PARCELS.distance_mm, np.linalg.norm(POSITIONS[order, None] - POSITIONS[order], axis=2))


def test_a_map_of_zeros_cannot_be_moved() -> None:
    with pytest.raises(ValueError, match="cannot be moved"):
        emd_mm(np.zeros(N), np.ones(N), PARCELS)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    transport._ot.cache_clear()
    with pytest.raises(ImportError, match=r"rt-mmdf\[evaluation\]"):
        emd_mm(np.ones(N), np.ones(N), PARCELS)
    transport._ot.cache_clear()


def test_too_few_parcels_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 2 hemispheres"):
        make_parcels(POSITIONS, 14, 1)
