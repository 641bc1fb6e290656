"""A head as a few small arrays, sources fixed normal to the cortex: what a model artefact carries.

A -fwd.fif keeps all three orientations, whatever it was converted to, and is three times as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mne
import numpy as np
from mne.forward import Forward
from numpy.typing import NDArray

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.head import HeadModel, Hemisphere, Kind, RecipeValue

FIXED_ORIENTATION, MRI_FRAME, HEAD_FRAME = 1, 5, 4  # FIFF constants
SURFACES = ("white", "inflated", "pial", "sulc")
N_PROJECTIONS = 8


def compact_arrays(head: HeadModel) -> dict[str, NDArray[Any]]:
    """Leadfield of fixed sources (float32, SI units), surfaces and mesh; of the sensors nothing else."""
    arrays: dict[str, NDArray[Any]] = {"leadfield": head.leadfield().astype(np.float32)}
    for side, hemisphere, mesh in zip(("lh", "rh"), head.hemispheres, head.source_triangles, strict=True):
        for key in SURFACES:
            if (values := getattr(hemisphere, key)) is not None:
                arrays[f"{side}_{key}"] = values.astype(np.float32)
        arrays[f"{side}_triangles"] = hemisphere.triangles.astype(np.int32)
        arrays[f"{side}_source_vertices"] = hemisphere.source_vertices.astype(np.int32)
        arrays[f"{side}_source_triangles"] = mesh.astype(np.int32)
    return arrays


def head_of_arrays(
    arrays: Mapping[str, NDArray[Any]], info: mne.Info, name: str, kind: Kind, recipe: Mapping[str, RecipeValue]
) -> HeadModel:
    """The head that `compact_arrays` was made of, for networks: its sources are fixed, so it has no loose orientation.

    Parameters
    ----------
    info : of the channels of the leadfield, in the order of its rows

    Raises
    ------
    HeadModelError
        The arrays do not belong together.
    """
    try:
        hemispheres, spaces = zip(*(_hemisphere(arrays, side) for side in ("lh", "rh")), strict=True)
        gain = np.asarray(arrays["leadfield"], dtype=np.float64)
    except (KeyError, IndexError) as error:
        raise HeadModelError(
            f"head model {name!r}: its arrays are incomplete ({error!r}). Make the artefact again."
        ) from error
    n_sources = sum(space["nuse"] for space in spaces)
    if gain.shape != (len(info["ch_names"]), n_sources):
        raise HeadModelError(
            f"head model {name!r}: leadfield of shape {gain.shape}; ({len(info['ch_names'])}, {n_sources}) is expected for "
            "its channels and sources. Make the artefact again."
        )
    solution = {
        "data": gain,
        "row_names": list(info["ch_names"]),
        "col_names": [],
        "nrow": gain.shape[0],
        "ncol": gain.shape[1],
    }
    forward = Forward(
        sol=solution,
        sol_grad=None,
        source_ori=FIXED_ORIENTATION,
        coord_frame=HEAD_FRAME,
        surf_ori=True,
        nsource=n_sources,
        nchan=gain.shape[0],
        src=mne.SourceSpaces(list(spaces)),
        source_rr=np.vstack([space["rr"][space["vertno"]] for space in spaces]),
        source_nn=np.vstack([space["nn"][space["vertno"]] for space in spaces]),
        info=info,
        _orig_sol=gain.copy(),
        _orig_source_ori=FIXED_ORIENTATION,
        _orig_sol_grad=None,
    )
    return HeadModel(name, kind, forward, info, (hemispheres[0], hemispheres[1]), dict(recipe))


def _hemisphere(arrays: Mapping[str, NDArray[Any]], side: str) -> tuple[Hemisphere, dict[str, Any]]:
    surfaces = {key: None if (a := arrays.get(f"{side}_{key}")) is None else a.astype(np.float64) for key in SURFACES}
    white = arrays[f"{side}_white"].astype(np.float64)
    triangles = arrays[f"{side}_triangles"].astype(np.int64)
    vertices = arrays[f"{side}_source_vertices"].astype(np.int64)
    mesh = vertices[arrays[f"{side}_source_triangles"].astype(np.int64)]
    hemisphere = Hemisphere(white, triangles, vertices, surfaces["inflated"], surfaces["pial"], surfaces["sulc"])
    inuse = np.zeros(len(white), dtype=int)
    inuse[vertices] = 1
    space = {
        "id": 101 if side == "lh" else 102,
        "type": "surf",
        "coord_frame": MRI_FRAME,
        "rr": white * 1e-3,
        "nn": _normals(white, triangles),
        "tris": triangles,
        "np": len(white),
        "ntri": len(triangles),
        "vertno": vertices,
        "nuse": len(vertices),
        "inuse": inuse,
        "use_tris": mesh,
        "nuse_tri": len(mesh),
        "patch_inds": None,
        "nearest": None,
        "dist": None,
    }
    return hemisphere, space


def _normals(vertices: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.float64]:
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    facing, normals = np.cross(b - a, c - a), np.zeros_like(vertices)
    for i in range(3):
        np.add.at(normals, triangles[:, i], facing)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.asarray(np.divide(normals, length, out=np.zeros_like(normals), where=length > 0))


def sketch(leadfield: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n_channels, 8): each channel's field of all sources seen through a few fixed cosines.

    Two leadfields with the same sketch to a part in a thousand are the same head, solved on two machines; a hash would tell
    their last digits apart.
    """
    n_sources = leadfield.shape[1]
    frequencies = np.array([0, *(n_sources * k / (N_PROJECTIONS - 1) for k in range(1, N_PROJECTIONS))]) * 0.97
    waves = np.cos(np.pi * (np.arange(n_sources)[:, None] + 0.5) * np.floor(frequencies)[None, :] / n_sources)
    seen: NDArray[np.float64] = leadfield.astype(np.float64) @ waves
    return seen


def sketch_difference(seen: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Largest relative difference of any channel's sketch."""
    scale = np.linalg.norm(expected, axis=1)
    scale = np.where(scale > 0, scale, 1.0)
    return float((np.linalg.norm(seen - expected, axis=1) / scale).max())
