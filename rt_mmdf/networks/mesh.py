"""The cortical mesh as a network needs it: patches of several sizes, a coarse cortex above the fine one."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag, one_hot, pad

_KEPT = 4  # meshes; one is a few megabytes
_meshes: OrderedDict[str, Mesh] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of one size, one around each source.

    vertices : (n_sources, n_near) int64, shares : (n_sources, n_near) float32; shares of a patch sum to 1, padded with 0
    """

    vertices: Tensor
    shares: Tensor

    def gather_rows(self, rows: Tensor) -> Tensor:
        """(n_sources, ...) -> (n_sources, ...): the mean over each patch."""
        mean: Tensor = embedding_bag(self.vertices, rows.contiguous(), mode="sum", per_sample_weights=self.shares)
        return mean


@dataclass(frozen=True, eq=False)
class CoarseMesh:
    """The coarse cortex, and which of its nodes each source belongs to.

    node_of : (n_sources,) int64, which coarse node a source belongs to
    members : (n_nodes, n_members) int64, sources of each node, padded with its first
    weight : (n_nodes, n_members), 1 / number of members, 0 for padding
    coarse_neighbours : (n_nodes, n_nodes), rows sum to 1
    regions : (n_regions, n_nodes), rows sum to 1: the mean over each region
    """

    node_of: Tensor
    members: Tensor
    weight: Tensor
    coarse_neighbours: Tensor
    regions: Tensor

    @property
    def n_sources(self) -> int:
        return int(self.node_of.shape[0])

    def pool_mean(self, values: Tensor) -> Tensor:
        """(n, n_sources, m) -> (n, n_nodes, m)"""
        n, _, m = values.shape
        total = values.new_zeros(n, len(self.members), m).index_add_(1, self.node_of, values)
        return total * self.weight[:, :1]

    def pool_max(self, values: Tensor) -> Tensor:
        """(n, n_sources, m) -> (n, n_nodes, m)"""
        return values[:, self.members].amax(dim=2)

    def pool_sum(self, values: Tensor) -> Tensor:
        """(n, n_sources) -> (n, n_nodes)"""
        return values.new_zeros(len(values), len(self.members)).index_add_(1, self.node_of, values)

    def around(self, values: Tensor) -> Tensor:
        """(n, n_nodes, m): the mean of the neighbours of each node, as one matrix product for the whole batch."""
        n, n_nodes, m = values.shape
        product = self.coarse_neighbours @ values.transpose(0, 1).reshape(n_nodes, n * m)
        return product.reshape(n_nodes, n, m).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Mesh(CoarseMesh):
    """Fine and coarse cortex.

    patches : for each radius
    table_vertices, table_shares : (n_scales * n_sources, n_near), all patches in one table
    """

    positions_mm: Tensor
    patches: tuple[Patches, ...]
    table_vertices: Tensor
    table_shares: Tensor

    def largest_within(self, values: Tensor, scale: int) -> Tensor:
        """(n, n_sources) -> (n, n_sources), values of 0 and more: the largest one in the patch of each source."""
        patch = self.patches[scale]
        return (values[:, patch.vertices] * (patch.shares > 0)).amax(dim=2)

    def scatter_patches(self, moments: Tensor, atoms: Tensor, weight: Tensor) -> Tensor:
        """Add patches `atoms` (n, m) with moments `weight` (n, m) to (n, n_sources)."""
        vertices = self.table_vertices[atoms].reshape(len(atoms), -1)
        shares = (self.table_shares[atoms] * weight[:, :, None]).reshape(len(atoms), -1)
        return moments.scatter_add(1, vertices, shares)

    def spread(self, atoms: Tensor) -> Tensor:
        """(n_sources, m), sparse: the shares of the patches `atoms` (m,), a patch a column."""
        shares = self.table_shares[atoms]
        patch, place = torch.nonzero(shares, as_tuple=True)  # most of the table is padding
        where = torch.stack([self.table_vertices[atoms[patch], place], patch])
        return torch.sparse_coo_tensor(where, shares[patch, place], (self.n_sources, len(atoms)), check_invariants=False)

    def to(self, device: torch.device | str) -> Mesh:
        """The same mesh on another device."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = value.to(device)
        patches = tuple(Patches(p.vertices.to(device), p.shares.to(device)) for p in self.patches)
        return replace(self, patches=patches, **moved)


def mesh_of(
    positions_mm: NDArray[np.float32],
    triangles: NDArray[np.int64],
    n_left: int,
    radii_mm: Sequence[float],
    n_nodes: int,
    n_regions: int,
) -> Mesh:
    """The mesh of a source space, made once for each.

    Parameters
    ----------
    positions_mm : (n_sources, 3)
    triangles : (n_triangles, 3)
    radii_mm : sizes of the patches, geodesic
    n_nodes, n_regions : of the coarse cortex and of the coarsest one, both hemispheres
    """
    digest = hashlib.sha256(np.ascontiguousarray(positions_mm, dtype="<f4").tobytes())
    digest.update(np.ascontiguousarray(triangles, dtype="<i8").tobytes())
    digest.update(repr((n_left, tuple(radii_mm), n_nodes, n_regions)).encode())
    key = digest.hexdigest()
    if key not in _meshes:
        _meshes[key] = _make(np.asarray(positions_mm, dtype=np.float32), triangles, n_left, radii_mm, n_nodes, n_regions)
        while len(_meshes) > _KEPT:
            _meshes.popitem(last=False)
    _meshes.move_to_end(key)
    return _meshes[key]


def _make(
    positions: NDArray[np.float32],
    triangles: NDArray[np.int64],
    n_left: int,
    radii_mm: Sequence[float],
    n_nodes: int,
    n_regions: int,
) -> Mesh:
    n = len(positions)
    places = torch.from_numpy(positions)
    is_left = torch.arange(n) < n_left
    edges = torch.from_numpy(np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [0, 2]]].reshape(-1, 2), axis=1), axis=0))
    start, end = torch.cat([edges, edges.flip(1)]).unbind(1)
    near_vertices, near_mm = _geodesics(places, start, end, is_left, max(radii_mm))
    patches = []
    for radius in radii_mm:
        inside = near_mm <= radius
        widest = int(inside.sum(dim=1).max())
        distance = near_mm[:, :widest].clamp_max(1e3)
        share = torch.cos(0.5 * torch.pi * distance / max(1.05 * radius, 1e-3)) * inside[:, :widest]
        patches.append(Patches(near_vertices[:, :widest].contiguous(), share / share.sum(dim=1, keepdim=True)))
    widest = max(p.vertices.shape[1] for p in patches)
    table_vertices = torch.cat([pad(p.vertices, (0, widest - p.vertices.shape[1])) for p in patches])
    table_shares = torch.cat([pad(p.shares, (0, widest - p.shares.shape[1])) for p in patches])
    nodes, node_of = _clusters(places, is_left, n_nodes)
    _, region_of = _clusters(places[nodes], is_left[nodes], n_regions)
    regions = one_hot(region_of).T.float()
    order = torch.argsort(node_of, stable=True)
    counts = torch.bincount(node_of, minlength=len(nodes))
    rank_in_node = torch.arange(n) - (torch.cumsum(counts, 0) - counts)[node_of[order]]
    members = nodes[:, None].repeat(1, int(counts.max()))
    weight = torch.zeros(members.shape)
    members[node_of[order], rank_in_node] = order
    weight[node_of[order], rank_in_node] = 1.0 / counts[node_of[order]].float()
    touching = torch.zeros(len(nodes), len(nodes))
    touching[node_of[start], node_of[end]] = 1.0
    touching.fill_diagonal_(0.0)
    neighbours = touching / touching.sum(dim=1, keepdim=True).clamp_min(1)
    return Mesh(
        node_of,
        members,
        weight,
        neighbours,
        regions / regions.sum(dim=1, keepdim=True),
        places,
        tuple(patches),
        table_vertices,
        table_shares,
    )


def _geodesics(places: Tensor, start: Tensor, end: Tensor, is_left: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Vertices around each vertex by rising distance along the edges, and the distances: (n, n_near), infinite: padding."""
    n = len(places)
    degree = torch.bincount(start, minlength=n)
    order = torch.argsort(start, stable=True)
    slot = torch.arange(len(start)) - (torch.cumsum(degree, 0) - degree)[start[order]]
    neighbour = torch.arange(n)[:, None].repeat(1, max(int(degree.max()), 1))
    step = torch.full(neighbour.shape, torch.inf)
    neighbour[start[order], slot] = end[order]
    step[start[order], slot] = (places[start] - places[end]).norm(dim=1)[order]
    _, group_of = _clusters(places, is_left, max(1, n // 100))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for group in range(int(group_of.max()) + 1):
        own = torch.nonzero(group_of == group)[:, 0]
        # a path within the limit stays within a ball of that radius: a small piece of the mesh is enough
        centre = places[own].mean(dim=0)
        far = (places[own] - centre).norm(dim=1).max() + limit
        piece = torch.nonzero((places - centre).norm(dim=1) <= far)[:, 0]
        rank = torch.full((n,), -1)
        rank[piece] = torch.arange(len(piece))
        near, length = rank[neighbour[piece]], step[piece].masked_fill(rank[neighbour[piece]] < 0, torch.inf)
        reach = torch.full((len(piece), len(own)), torch.inf)
        reach[rank[own], torch.arange(len(own))] = 0.0
        while True:  # Bellman and Ford: one edge further each time, none beyond the limit
            longer = reach
            for column in range(near.shape[1]):
                longer = torch.minimum(longer, reach[near[:, column]] + length[:, column, None])
            longer = longer.masked_fill(longer > limit, torch.inf)
            if torch.equal(longer, reach):
                break
            reach = longer
        mm, rows = reach.T.topk(int(torch.isfinite(reach).sum(dim=0).max()), dim=1, largest=False)
        found.append((own, piece[rows], mm))
    widest = max(mm.shape[1] for _, _, mm in found)
    vertices, distances = torch.zeros((n, widest), dtype=torch.int64), torch.full((n, widest), torch.inf)
    for own, near, mm in found:
        vertices[own] = pad(near, (0, widest - near.shape[1]))
        distances[own] = pad(mm, (0, widest - mm.shape[1]), value=torch.inf)
    return torch.where(torch.isfinite(distances), vertices, 0), distances


def _clusters(places: Tensor, is_left: Tensor, n_wanted: int) -> tuple[Tensor, Tensor]:
    """Some of the places, spread evenly over both hemispheres, and the nearest of them in its hemisphere for each place."""
    sides = [torch.nonzero(side)[:, 0] for side in (is_left, ~is_left) if side.any()]
    chosen = torch.cat([side[_spread(places[side], max(1, round(n_wanted * len(side) / len(places))))] for side in sides])
    distance = torch.cdist(places, places[chosen])
    return chosen, distance.masked_fill(is_left[:, None] != is_left[chosen][None], torch.inf).argmin(dim=1)


def _spread(places: Tensor, n_nodes: int) -> Tensor:
    """Indices of places that are far from each other: each next one is the farthest from those before (Gonzalez 1985)."""
    chosen = [0]
    distance = (places - places[0]).norm(dim=1)
    for _ in range(min(n_nodes, len(places)) - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (places - places[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)
