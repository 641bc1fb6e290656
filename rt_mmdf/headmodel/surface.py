"""A hemisphere to draw on: its inflated surface, what sources give to all of its vertices, and which pixels it covers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rt_mmdf.core.blocks import Float64
from rt_mmdf.headmodel.head import Hemisphere

SMOOTHING_STEPS = 2
# Steps of smoothing, for each vertex, that open the sulci of a cortex without an inflated surface (12 for the 1026 vertices
# of oct-5); more than MAX_OPENING take seconds and change little.
OPENING_PER_VERTEX, MAX_OPENING = 12 / 1026, 600


@dataclass(frozen=True)
class CorticalSurface:
    """One hemisphere to draw on.

    vertices : (n_vertices, 3), millimetres: x to the right, y to the front, z up; inflated for preference
    triangles : (n_triangles, 3), counter-clockwise seen from outside
    source_vertices : (n_sources,) vertices that are sources, in the order of the values
    sulc : (n_vertices,) sulcal depth, positive in sulci; None: one grey for all
    """

    vertices: Float64
    triangles: NDArray[np.int64]
    source_vertices: NDArray[np.int64]
    sulc: Float64 | None = None

    @cached_property
    def spread(self) -> Any:
        """(n_vertices, n_sources): see `spread_matrix`."""
        return spread_matrix(self.triangles, len(self.vertices), self.source_vertices)

    @cached_property
    def normals(self) -> Float64:
        """(n_vertices, 3) unit normals, outwards."""
        return vertex_normals(self.vertices, self.triangles)


def surface_of(hemisphere: Hemisphere) -> CorticalSurface:
    """What to draw a hemisphere on: its inflated surface; where it has none, its white surface smoothed until sulci open."""
    if hemisphere.inflated is not None:
        return CorticalSurface(hemisphere.inflated, hemisphere.triangles, hemisphere.source_vertices, hemisphere.sulc)
    white = hemisphere.white
    near = _neighbours(hemisphere.triangles, len(white))
    alone = np.diff(near.indptr) == 0
    near = _rows_to_one((near + sparse.diags(alone.astype(float))).tocsr())
    smooth = white
    for _ in range(min(MAX_OPENING, round(OPENING_PER_VERTEX * len(white)))):
        smooth = 0.5 * (smooth + near @ smooth)
    sulc = hemisphere.sulc
    if sulc is None:  # how far a vertex lies below its surroundings, in the units that `draw_hemisphere` shades
        normals = CorticalSurface(smooth, hemisphere.triangles, hemisphere.source_vertices).normals
        below = np.einsum("ij,ij->i", smooth - white, normals)
        sulc = 0.1 * below / max(float(below.std()), 1e-12)
    middle = smooth.mean(axis=0)
    grown = middle + (smooth - middle) * np.ptp(white, axis=0) / np.maximum(np.ptp(smooth, axis=0), 1e-12)
    return CorticalSurface(grown, hemisphere.triangles, hemisphere.source_vertices, sulc)


def vertex_normals(vertices: Float64, triangles: NDArray[np.integer]) -> Float64:
    """(n_vertices, 3) unit normals, outwards where triangles are counter-clockwise seen from outside: means over the
    triangles around, weighted with their areas."""
    corners = vertices[triangles]
    of_triangle = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros((len(vertices), 3))
    for axis in range(3):
        weights = np.repeat(of_triangle[:, axis], 3)
        total[:, axis] = np.bincount(triangles.ravel(), weights, minlength=len(vertices))
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


def spread_matrix(triangles: NDArray[np.int64], n_vertices: int, source_vertices: NDArray[np.int64]) -> Any:
    """Matrix from sources to all vertices of a surface: means over neighbours, as far as needed to reach every vertex.

    Rows are weights that sum to 1; a vertex that no chain of triangles connects with a source has an empty row.
    """
    near = (_neighbours(triangles, n_vertices) + sparse.identity(n_vertices)).tocsr()
    n_sources = len(source_vertices)
    spread = sparse.csr_matrix((np.ones(n_sources), (source_vertices, np.arange(n_sources))), shape=(n_vertices, n_sources))
    reached = 0
    while (filled := int((np.diff(spread.indptr) > 0).sum())) > reached:
        reached = filled
        empty = sparse.diags((np.diff(spread.indptr) == 0).astype(float))
        spread = (spread + _rows_to_one(empty @ near @ spread)).tocsr()
    for _ in range(SMOOTHING_STEPS if n_sources < n_vertices else 0):
        spread = _rows_to_one(near @ spread)
    return _rows_to_one(spread)


def rasterise(
    at: Float64, depth: Float64, triangles: NDArray[np.integer], attributes: Float64, shape: tuple[int, int]
) -> tuple[Float64, Float64]:
    """Interpolate vertex attributes on the pixels of the triangles that are nearest to the viewer.

    Parameters
    ----------
    at, depth, triangles, shape : see `cover`
    attributes : (n_vertices, n_attributes)

    Returns
    -------
    painted : shape + (n_attributes,), NaN where there is no triangle
    nearest : shape, depth of what is seen, NaN where nothing is
    """
    triangle, weights, nearest = cover(at, depth, triangles, shape)
    covered = triangle >= 0
    painted = np.full((*shape, attributes.shape[1]), np.nan)
    painted[covered] = np.einsum("nka,nk->na", attributes[triangles[triangle[covered]]], weights[covered])
    return painted, nearest


def cover(
    at: Float64, depth: Float64, triangles: NDArray[np.integer], shape: tuple[int, int]
) -> tuple[NDArray[np.int64], Float64, Float64]:
    """Which triangle is seen on each pixel, and where on it.

    Parameters
    ----------
    at : (n_vertices, 2)
        Column and row in pixels; pixel (i, j) has its centre at (i + 0.5, j + 0.5).
    depth : (n_vertices,)
        Larger is nearer.
    triangles : (n_triangles, 3)
    shape : (n_rows, n_columns)

    Returns
    -------
    triangle : shape, its number; -1 where there is none
    weights : shape + (3,), of its corners: barycentric coordinates of the pixel's centre
    nearest : shape, depth of what is seen, NaN where nothing is
    """
    triangle = np.full(shape[0] * shape[1], -1)
    weights_of = np.zeros((shape[0] * shape[1], 3))
    nearest = np.full(shape[0] * shape[1], -np.inf)
    low = np.floor(at[triangles].min(axis=1)).astype(int)
    size = np.ceil(at[triangles].max(axis=1)).astype(int) - low
    classes = 4 * np.maximum(1, -(-size.max(axis=1) // 4))  # triangles of similar size are computed together
    for edge in np.unique(classes):
        members = np.flatnonzero(classes == edge)
        step = max(1, 2_000_000 // int(edge) ** 2)
        box = np.stack(np.meshgrid(np.arange(edge), np.arange(edge)), axis=-1).reshape(1, -1, 2)
        for chunk in (members[i : i + step] for i in range(0, len(members), step)):
            pixels = low[chunk][:, None] + box
            a, b, c = (at[triangles[chunk, k]][:, None] for k in range(3))
            area = _cross(b - a, c - a)
            with np.errstate(divide="ignore", invalid="ignore"):
                of_a, of_b = _cross(c - b, pixels + 0.5 - b) / area, _cross(a - c, pixels + 0.5 - c) / area
            weights = np.stack([of_a, of_b, 1 - of_a - of_b], axis=-1)
            inside = (weights >= -1e-9).all(axis=-1) & (pixels >= 0).all(axis=-1)
            inside &= (pixels[..., 0] < shape[1]) & (pixels[..., 1] < shape[0])
            which, _ = np.nonzero(inside)
            weight, pixel = weights[inside], pixels[inside]
            corners = triangles[chunk[which]]
            own_depth = (depth[corners] * weight).sum(axis=1)
            index = pixel[:, 1] * shape[1] + pixel[:, 0]
            order = np.argsort(own_depth, kind="stable")  # where several fall on a pixel, the nearest is assigned last
            order = order[own_depth[order] > nearest[index[order]]]
            nearest[index[order]] = own_depth[order]
            triangle[index[order]] = chunk[which[order]]
            weights_of[index[order]] = weight[order]
    nearest[np.isinf(nearest)] = np.nan
    return triangle.reshape(shape), weights_of.reshape(*shape, 3), nearest.reshape(shape)


def _cross(u: Float64, v: Float64) -> Float64:
    return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])


def _neighbours(triangles: NDArray[np.int64], n_vertices: int) -> Any:
    a, b, c = triangles.T
    row, column = np.concatenate([a, b, c, b, c, a]), np.concatenate([b, c, a, a, b, c])
    near = sparse.coo_matrix((np.ones(len(row)), (row, column)), shape=(n_vertices, n_vertices)).tocsr()
    near.data[:] = 1.0
    return near


def _rows_to_one(matrix: Any) -> Any:
    total = np.asarray(matrix.sum(axis=1)).ravel()
    return (sparse.diags(np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)) @ matrix).tocsr()
