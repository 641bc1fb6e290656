from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import welch

from rt_mmdf.simulation.sources import (
    Cortex,
    burst,
    fsaverage5_cortex,
    grow_patch,
    grow_patch_by_order,
    pink_noise,
    transient,
)

CORTEX = fsaverage5_cortex()
N = len(CORTEX.positions_mm)
VERTICES = st.integers(0, N - 1)


def square_mesh(n: int) -> Cortex:
    """n x n vertices 2 mm apart, each square cut along one diagonal."""
    x, y = np.meshgrid(np.arange(n), np.arange(n))
    number = np.arange(n * n).reshape(n, n)
    a, b, c, d = number[:-1, :-1].ravel(), number[:-1, 1:].ravel(), number[1:, :-1].ravel(), number[1:, 1:].ravel()
    triangles = np.vstack([np.c_[a, b, d], np.c_[a, d, c]])
    return Cortex(2.0 * np.c_[x.ravel(), y.ravel(), np.zeros(n * n)], triangles, n * n)


def test_the_cortex_is_two_closed_surfaces() -> None:
    assert N == 2 * 10242
    assert CORTEX.edges_mm.nnz / 2 == N + len(CORTEX.triangles) - 4  # Euler: V - E + F = 2 for each
    assert CORTEX.positions_mm[: CORTEX.n_left, 0].mean() < -20 < 20 < CORTEX.positions_mm[CORTEX.n_left :, 0].mean()
    assert abs(CORTEX.edges_mm - CORTEX.edges_mm.T).max() == 0


@settings(max_examples=25, deadline=None)
@given(centre=VERTICES, radius=st.floats(0, 25), smaller=st.floats(0, 1))
def test_a_patch_is_within_its_radius_in_one_hemisphere_and_contains_smaller_ones(
    centre: int, radius: float, smaller: float
) -> None:
    patch = grow_patch(CORTEX, centre, radius)
    distance = np.linalg.norm(CORTEX.positions_mm[patch.vertices] - CORTEX.positions_mm[centre], axis=1)
    assert distance.max() <= radius + 1e-9  # a way along the surface is never shorter than the straight one
    assert len({int(v) < CORTEX.n_left for v in patch.vertices}) == 1
    assert set(grow_patch(CORTEX, centre, smaller * radius).vertices) <= set(patch.vertices)
    assert centre in patch.vertices


@settings(max_examples=25, deadline=None)
@given(centre=VERTICES, radius=st.floats(1, 25))
def test_profiles_share_one_moment_and_a_smooth_one_peaks_at_the_centre(centre: int, radius: float) -> None:
    flat, smooth = (grow_patch(CORTEX, centre, radius, profile) for profile in ("flat", "smooth"))
    for patch in (flat, smooth):
        assert patch.profile.sum() == pytest.approx(1)
        assert patch.profile.min() > 0
    assert np.ptp(flat.profile) == 0
    assert smooth.vertices[smooth.profile.argmax()] == centre


def test_radius_zero_and_order_zero_are_one_dipole() -> None:
    for patch in (grow_patch(CORTEX, 77, 0.0, "smooth"), grow_patch_by_order(CORTEX, 77, 0)):
        assert patch.vertices.tolist() == [77]
        assert patch.profile.tolist() == [1.0]
    with pytest.raises(ValueError, match="zero or more"):
        grow_patch(CORTEX, 77, -1.0)


@pytest.mark.parametrize(("order", "expected"), [(1, 7), (2, 19), (3, 37)])
def test_orders_count_neighbours(order: int, expected: int) -> None:
    mesh = square_mesh(15)  # inside it every vertex has six neighbours
    assert len(grow_patch_by_order(mesh, 112, order).vertices) == expected


def test_geodesic_distance_goes_along_edges() -> None:
    mesh = square_mesh(15)
    patch = grow_patch(mesh, 112, 4.0)  # two edges straight on, one along the diagonal (2.83 mm)
    offsets = (mesh.positions_mm[patch.vertices] - mesh.positions_mm[112])[:, :2]
    # the other diagonal is no edge: two edges, 4 mm
    assert {tuple(o) for o in offsets.astype(int).tolist()} == {
        *((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2), (4, 0), (-4, 0), (0, 4), (0, -4)),
        *((2, 2), (-2, -2), (2, -2), (-2, 2)),
    }


def test_nearest_vertex_and_hemispheres() -> None:
    assert CORTEX.nearest(CORTEX.positions_mm[4321] + 0.1) == 4321
    assert CORTEX.nearest(CORTEX.positions_mm[4321], among=[5, 15000]) in (5, 15000)
    left, right = CORTEX.by_hemisphere([3, CORTEX.n_left + 9])
    assert left.tolist() == [3]
    assert right.tolist() == [9]


@given(frequency=st.floats(8, 40), duration=st.floats(0.5, 2))
def test_a_burst_oscillates_at_its_frequency_and_starts_and_ends_at_rest(frequency: float, duration: float) -> None:
    course = burst(1000.0, duration, frequency)
    assert np.abs(course).max() == pytest.approx(1)
    assert np.abs(course[[0, -1]]).max() < 0.01
    spectrum = np.abs(np.fft.rfft(course, 8192))
    assert np.fft.rfftfreq(8192, 1e-3)[spectrum.argmax()] == pytest.approx(frequency, abs=1.0)


@given(duration=st.floats(0.2, 2), peak=st.floats(0.06, 0.15))
def test_a_transient_peaks_when_asked_and_ends_at_rest(duration: float, peak: float) -> None:
    course = transient(1000.0, duration, peak)
    assert np.abs(course).argmax() / 1000 == pytest.approx(peak, abs=0.015)
    assert np.abs(course[[0, -1]]).max() < 0.02


def test_pink_noise_has_unit_variance_and_falls_as_one_over_f() -> None:
    noise = pink_noise(40, 32_768, 1000.0, np.random.default_rng(3))
    assert noise.shape == (40, 32_768)
    assert noise.var(axis=1).mean() == pytest.approx(1, rel=0.05)
    assert np.abs(noise.mean(axis=1)).max() < 1e-12
    freqs, power = welch(noise, 1000.0, nperseg=8192)
    band = (freqs > 2) & (freqs < 300)
    slope = np.polyfit(np.log(freqs[band]), np.log(power.mean(axis=0)[band]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)
    correlation = np.corrcoef(noise)
    assert np.abs(correlation[np.triu_indices(40, 1)]).max() < 0.3
