"""Sources: patches of cortex and what they do in time. Positions in millimetres, MRI (surface RAS) coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from nilearn.datasets import fetch_surf_fsaverage
from nilearn.surface import load_surf_mesh
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra

Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Profile = Literal["flat", "smooth"]


@dataclass(frozen=True)
class Cortex:
    """Both hemispheres as one mesh: the left one's vertices first, no edge between the two.

    positions_mm : (n_vertices, 3)
    triangles : (n_triangles, 3)
    n_left : vertices of the left hemisphere
    """

    positions_mm: Float64
    triangles: Ints
    n_left: int

    @cached_property
    def edges_mm(self) -> csr_array:
        """(n_vertices, n_vertices), symmetric: length of each edge of the mesh."""
        pairs = np.vstack([self.triangles[:, [0, 1]], self.triangles[:, [1, 2]], self.triangles[:, [2, 0]]])
        pairs = np.unique(np.sort(pairs, axis=1), axis=0)
        lengths = np.linalg.norm(self.positions_mm[pairs[:, 0]] - self.positions_mm[pairs[:, 1]], axis=1)
        n = len(self.positions_mm)
        half = coo_array((lengths, (pairs[:, 0], pairs[:, 1])), shape=(n, n))
        return csr_array(half + half.T)

    def nearest(self, place_mm: ArrayLike, among: ArrayLike | None = None) -> int:
        """The vertex nearest to a place; of `among` only, where given."""
        candidates = np.arange(len(self.positions_mm)) if among is None else np.asarray(among)
        distances = np.linalg.norm(self.positions_mm[candidates] - np.asarray(place_mm, dtype=float), axis=1)
        return int(candidates[distances.argmin()])

    def by_hemisphere(self, vertices: ArrayLike) -> tuple[Ints, Ints]:
        """Vertices as numbers within the left and within the right hemisphere."""
        numbers = np.asarray(vertices, dtype=np.int64)
        return numbers[numbers < self.n_left], numbers[numbers >= self.n_left] - self.n_left


def fsaverage5_cortex() -> Cortex:
    """White surface of fsaverage5 (ico-5, 2 x 10242 vertices) from nilearn's wheel."""
    meshes = [load_surf_mesh(fetch_surf_fsaverage("fsaverage5")[f"white_{side}"]) for side in ("left", "right")]
    left, right = (np.asarray(mesh.coordinates, dtype=np.float64) for mesh in meshes)
    triangles = [np.asarray(mesh.faces, dtype=np.int64) for mesh in meshes]
    return Cortex(np.vstack([left, right]), np.vstack([triangles[0], triangles[1] + len(left)]), len(left))


@dataclass(frozen=True)
class Patch:
    """A piece of cortex that acts as one.

    vertices : (n,)
    profile : (n,) share of each vertex in the moment of the patch, positive, sums to 1
    centre : the vertex that it grew from
    """

    vertices: Ints
    profile: Float64
    centre: int


def grow_patch(cortex: Cortex, centre: int, radius_mm: float, profile: Profile = "flat") -> Patch:
    """All vertices within a geodesic radius (along the edges of the mesh); radius 0 is one dipole.

    A smooth profile falls like a raised cosine from the centre to zero one edge beyond the rim.
    """
    return _patch(cortex, centre, radius_mm, profile, unweighted=False)


def grow_patch_by_order(cortex: Cortex, centre: int, order: int, profile: Profile = "flat") -> Patch:
    """All vertices within `order` edges; order 0 is one dipole."""
    return _patch(cortex, centre, order, profile, unweighted=True)


def _patch(cortex: Cortex, centre: int, reach: float, profile: Profile, unweighted: bool) -> Patch:
    if reach < 0:
        raise ValueError(f"patch of extent {reach}: zero or more is expected")
    distance = dijkstra(cortex.edges_mm, indices=centre, limit=reach, unweighted=unweighted)
    vertices = np.flatnonzero(distance <= reach)
    share = np.ones(len(vertices))
    if profile == "smooth" and reach > 0:
        share = 1 + np.cos(np.pi * distance[vertices] / (reach * 1.05))
    return Patch(vertices.astype(np.int64), share / share.sum(), centre)


def burst(sfreq: float, duration_s: float, frequency_hz: float) -> Float64:
    """An oscillation that swells and fades (Hann window); largest magnitude 1."""
    times = np.arange(round(duration_s * sfreq)) / sfreq
    course = np.sin(2 * np.pi * frequency_hz * times) * np.sin(np.pi * times / duration_s) ** 2
    return np.asarray(course / np.abs(course).max())


def transient(sfreq: float, duration_s: float, peak_s: float = 0.1) -> Float64:
    """An evoked-like deflection: a small early peak, a large opposite one at `peak_s`, a broad return; largest magnitude 1.

    Three Gaussians at 0.5, 1 and 2 times `peak_s`, as wide as an auditory P50, N100 and P200 are (our choice of shape).
    """
    times = np.arange(round(duration_s * sfreq)) / sfreq
    parts = ((0.35, 0.5, 0.10), (-1.0, 1.0, 0.18), (0.6, 2.0, 0.35))
    course = sum(height * np.exp(-0.5 * ((times / peak_s - at) / width) ** 2) for height, at, width in parts)
    fade = np.clip((duration_s - times) / (0.2 * duration_s), 0, 1)  # ends at zero, however short
    course = np.asarray(course * fade)
    return np.asarray(course / np.abs(course).max())


LOWEST_PINK_HZ = 0.5


def pink_power(freqs: ArrayLike) -> Float64:
    """Power density that falls as 1/f above 0.5 Hz and is flat below (our choice: slower drifts help nobody)."""
    return np.asarray(1 / np.maximum(np.asarray(freqs, dtype=float), LOWEST_PINK_HZ))


def pink_noise(n_sources: int, n_times: int, sfreq: float, rng: np.random.Generator) -> Float64:
    """Independent noise of `pink_power`, mean 0 and variance 1 in expectation.

    Returns
    -------
    (n_sources, n_times)
    """
    power = pink_power(np.fft.rfftfreq(n_times, 1 / sfreq))
    power[0] = 0
    spectrum = rng.standard_normal((n_sources, len(power))) + 1j * rng.standard_normal((n_sources, len(power)))
    # each bin has two quadratures and stands for both signs of its frequency
    spectrum *= n_times * np.sqrt(power / (4 * power.sum()))
    return np.asarray(np.fft.irfft(spectrum, n_times, axis=1))
