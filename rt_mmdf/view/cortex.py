"""The cortex of a head as one mesh: what is drawn, and what a click on it means."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mne import get_config
from mne.transforms import Transform, apply_trans, invert_transform
from numpy.typing import NDArray
from scipy import sparse

from rt_mmdf.core.blocks import Float32, Float64
from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.surface import surface_of, vertex_normals

GAP_MM = 6.0  # between inflated hemispheres
ANNOTATION = "aparc"  # Desikan & Killiany (2006), doi 10.1016/j.neuroimage.2006.01.021
UNNAMED = ("unknown", "???", "corpuscallosum", "medial_wall")


@dataclass(frozen=True)
class Place:
    """Where on the cortex a vertex is.

    hemisphere : 0 left, 1 right
    vertex : number within the hemisphere, FreeSurfer's
    mni_mm : (x, y, z) in MNI 305 coordinates (the space of fsaverage); None: the head is a subject's own
    head_mm : (x, y, z) in head coordinates (through the fiducials); None: the head does not know its transform
    source : row of the estimate whose source is nearest on the white surface, of the same hemisphere
    distance_mm : from the vertex to that source
    label : name of the region; None where no annotation is at hand
    """

    hemisphere: int
    vertex: int
    mni_mm: tuple[float, float, float] | None
    head_mm: tuple[float, float, float] | None
    source: int
    distance_mm: float
    label: str | None

    @property
    def name(self) -> str:
        """``lh-1234``, as the channels of the estimate stream are called."""
        return f"{('lh', 'rh')[self.hemisphere]}-{self.vertex}"


@dataclass(frozen=True, eq=False)
class Cortex:
    """Both hemispheres in one mesh, left first.

    Parameters
    ----------
    head : str
        Name of the head model.
    fingerprint : str
        Of the head model.
    triangles : (n_triangles, 3) int32
        Counter-clockwise seen from outside; those of the left hemisphere first.
    hemisphere : (n_vertices,) uint8
        0 left, 1 right.
    sulc : (n_vertices,) float32
        Positive in sulci; about -0.1 to 0.1 is the edge between the two greys.
    spread : sparse (n_vertices, n_sources) float32
        Weights of the sources for each vertex, which sum to 1; a row is empty where no source is connected to the vertex.
    source_vertices : (n_sources,) int64
        Which vertex of the mesh a source is.
    meshes : mapping of surface to (n_vertices, 3) float32
        Millimetres: x to the right, y to the front, z up. Use `vertices`.
    to_head : mne Transform from MRI to head coordinates, or None
    is_mni : whether white coordinates are MNI 305's
    labels : (n_vertices,) names of regions, empty where there is none; or None
    """

    head: str
    fingerprint: str
    triangles: NDArray[np.int32]
    hemisphere: NDArray[np.uint8]
    sulc: Float32
    spread: Any
    source_vertices: NDArray[np.int64]
    meshes: dict[str, Float32]
    to_head: Transform | None = None
    is_mni: bool = False
    labels: tuple[str, ...] | None = None
    _normals: dict[str, Float32] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, head: HeadModel) -> Cortex:
        """From a head model. Seconds where a large cortex has no inflated surface: the white one is then smoothed.

        Regions are named where FreeSurfer's annotation of the same surfaces is at hand: in the subjects folder that the
        environment variable or mne's setting ``SUBJECTS_DIR`` names (of ``fsaverage`` for the template).
        """
        drawn = [surface_of(hemisphere) for hemisphere in head.hemispheres]
        counts = [len(own.vertices) for own in drawn]
        first = np.array([0, counts[0]])
        meshes = {"inflated": _beside(drawn[0].vertices, drawn[1].vertices)}
        for name in ("pial", "white"):
            parts = [getattr(hemisphere, name) for hemisphere in head.hemispheres]
            if all(part is not None for part in parts):
                meshes[name] = np.ascontiguousarray(np.vstack(parts), dtype=np.float32)
        sulc = [np.zeros(n) if own.sulc is None else own.sulc for n, own in zip(counts, drawn, strict=True)]
        return cls(
            head=head.name,
            fingerprint=head.fingerprint,
            triangles=np.vstack([own.triangles + start for own, start in zip(drawn, first, strict=True)]).astype(np.int32),
            hemisphere=np.repeat(np.array([0, 1], dtype=np.uint8), counts),
            sulc=np.concatenate(sulc).astype(np.float32),
            spread=sparse.block_diag([own.spread for own in drawn], format="csr").astype(np.float32),
            source_vertices=np.concatenate(
                [own.source_vertices + start for own, start in zip(drawn, first, strict=True)]
            ).astype(np.int64),
            meshes=meshes,
            to_head=_to_head(head),
            is_mni=head.kind == "template",
            labels=_labels(head, counts),
        )

    @property
    def n_vertices(self) -> int:
        return len(self.hemisphere)

    @property
    def n_sources(self) -> int:
        return len(self.source_vertices)

    @property
    def surfaces(self) -> tuple[str, ...]:
        """What can be drawn: ``inflated`` always, ``pial`` and ``white`` where the head holds them."""
        return tuple(self.meshes)

    @property
    def n_left(self) -> int:
        """Vertices of the left hemisphere, which come first."""
        return int(np.count_nonzero(self.hemisphere == 0))

    @cached_property
    def n_left_triangles(self) -> int:
        """Triangles of the left hemisphere, which come first."""
        return int(np.count_nonzero(self.triangles[:, 0] < self.n_left))

    @cached_property
    def is_closed(self) -> bool:
        """Whether the mesh has no hole and its triangles face outwards, so that nobody can see its inside."""
        corner, follower = self.triangles.astype(np.int64), np.roll(self.triangles, -1, axis=1).astype(np.int64)
        there = np.sort((corner * self.n_vertices + follower).ravel())
        back = np.sort((follower * self.n_vertices + corner).ravel())
        if not np.array_equal(there, back) or (np.diff(there) == 0).any():
            return False
        for part in (self.triangles[: self.n_left_triangles], self.triangles[self.n_left_triangles :]):
            a, b, c = (self.meshes["white"][part[:, i]].astype(np.float64) for i in range(3))
            if np.einsum("ij,ij->", a, np.cross(b, c)) <= 0:
                return False
        return True

    def vertices(self, surface: str) -> Float32:
        """(n_vertices, 3) millimetres. Inflated hemispheres lie side by side, `GAP_MM` apart; others where they are."""
        if surface not in self.meshes:
            raise ValueError(f"cortex of {self.head!r}: no surface {surface!r}; it has {', '.join(self.surfaces)}")
        return self.meshes[surface]

    def normals(self, surface: str) -> Float32:
        """(n_vertices, 3) unit normals, outwards; computed once for each surface."""
        if surface not in self._normals:
            own = vertex_normals(self.vertices(surface).astype(np.float64), self.triangles)
            self._normals[surface] = np.ascontiguousarray(own, dtype=np.float32)
        return self._normals[surface]

    @cached_property
    def _reached(self) -> NDArray[np.bool_]:
        return np.asarray(np.diff(self.spread.indptr) > 0)

    def of_sources(self, values: NDArray[np.floating]) -> Float32:
        """Values of the sources, spread to all vertices.

        Parameters
        ----------
        values : (n_sources,)

        Returns
        -------
        (n_vertices,) float32
            NaN where one of the sources that a vertex takes its value from has no finite value, and where none is connected.
        """
        values = np.asarray(values, dtype=np.float32)
        if values.shape != (self.n_sources,):
            raise ValueError(f"cortex of {self.head!r}: values of shape {values.shape}; ({self.n_sources},) is expected")
        if not np.isfinite(values).all():
            values = np.where(np.isfinite(values), values, np.float32(np.nan))
        spread = np.asarray(self.spread @ values, dtype=np.float32)
        if not self._reached.all():
            spread[~self._reached] = np.nan
        return spread

    def describe(self, vertex: int) -> Place:
        """Where vertex `vertex` of the mesh is; IndexError where there is none of that number."""
        if not 0 <= vertex < self.n_vertices:
            raise IndexError(f"cortex of {self.head!r}: vertex {vertex} of {self.n_vertices}")
        white = self.meshes["white"].astype(np.float64)
        side = int(self.hemisphere[vertex])
        candidates = np.flatnonzero(self.hemisphere[self.source_vertices] == side)
        distances = np.linalg.norm(white[self.source_vertices[candidates]] - white[vertex], axis=1)
        nearest = int(np.argmin(distances))
        at = white[vertex]
        label = self.labels[vertex] if self.labels is not None else ""
        return Place(
            hemisphere=side,
            vertex=vertex - side * self.n_left,
            mni_mm=_triple(at) if self.is_mni else None,
            head_mm=None if self.to_head is None else _triple(1e3 * apply_trans(self.to_head, at / 1e3)),
            source=int(candidates[nearest]),
            distance_mm=float(distances[nearest]),
            label=label or None,
        )


def _beside(left: Float64, right: Float64) -> Float32:
    """Both hemispheres side by side, their middles at the same height and depth."""
    shifted = []
    for vertices, sign in ((left, -1.0), (right, 1.0)):
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        move = -0.5 * (low + high)
        move[0] += sign * (0.5 * (high[0] - low[0]) + 0.5 * GAP_MM)
        shifted.append(vertices + move)
    return np.ascontiguousarray(np.vstack(shifted), dtype=np.float32)


def _triple(values: Iterable[float]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _to_head(head: HeadModel) -> Transform | None:
    transform = head.forward.get("mri_head_t")
    if transform is None:
        return None
    return invert_transform(transform) if int(transform["to"]) == 5 else transform  # 5: MRI


def _labels(head: HeadModel, counts: list[int]) -> tuple[str, ...] | None:
    """Region of each vertex, from the annotation of the subject (fsaverage for the template), if its files are at hand."""
    folder = os.environ.get("SUBJECTS_DIR") or get_config("SUBJECTS_DIR")
    subject = "fsaverage" if head.kind == "template" else str(head.recipe.get("display", "none"))
    if not folder or subject == "none":
        return None
    from nibabel.freesurfer import read_annot  # a quarter of a second that most starts can do without

    names: list[str] = []
    for side, count in zip(("lh", "rh"), counts, strict=True):
        path = Path(folder) / subject / "label" / f"{side}.{ANNOTATION}.annot"
        if not path.is_file():
            return None
        try:
            numbers, _, known = read_annot(path)
        except Exception as error:  # a damaged file can make its reader fail in any way
            raise HeadModelError(
                f"annotation {path}: cannot be read ({error}). Copy it from FreeSurfer again, or take it away: "
                "the view then names no regions."
            ) from error
        # the vertices of fsaverage5 are the first of fsaverage's; a subject's annotation has one number for each vertex
        if len(numbers) < count or (head.kind != "template" and len(numbers) != count):
            return None
        named = ["" if name.decode() in UNNAMED else f"{name.decode()}-{side}" for name in known]
        names.extend(named[number] if number >= 0 else "" for number in numbers[:count])
    return tuple(names)
