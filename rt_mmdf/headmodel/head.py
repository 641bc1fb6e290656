"""A head model: leadfield, cortex and the sensors they were computed for; on disk a folder that proves itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mne
import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.core.files import MAX_TOML, parse_toml, read_arrays

FORMAT = 1
HEAD_FILE, FORWARD_FILE, INFO_FILE, SURFACES_FILE = "head.toml", "head-fwd.fif", "head-info.fif", "surfaces.npz"
MAX_SURFACES = 1 << 29  # bytes unpacked; two hemispheres of 164,000 vertices have 20 MB

Kind = Literal["template", "subject"]
RecipeValue = str | int | float | bool | list[Any]


@dataclass(frozen=True, eq=False)
class Hemisphere:
    """The cortex of one hemisphere, millimetres in MRI (surface RAS) coordinates.

    white : (n_vertices, 3) float64
        Boundary of white and grey matter: the sources lie on it.
    triangles : (n_triangles, 3) int
        Shared by all surfaces of the hemisphere.
    source_vertices : (n_sources,) int
        Which vertices are sources, in the order of the leadfield's columns.
    inflated, pial : (n_vertices, 3) float64 | None
        None where the head was built from files that do not hold them.
    sulc : (n_vertices,) float64 | None
        Sulcal depth, positive in sulci, in the units of FreeSurfer (fsaverage) or nilearn.
    """

    white: NDArray[np.float64]
    triangles: NDArray[np.int64]
    source_vertices: NDArray[np.int64]
    inflated: NDArray[np.float64] | None = None
    pial: NDArray[np.float64] | None = None
    sulc: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class HeadModel:
    """Everything that is known about the head, ready to be imaged with.

    forward : mne.Forward, free orientation, head coordinates, in the precision of the file (single)
    info : mne.Info of the channels of the leadfield: types, coils, positions, device-to-head transform, digitised points
    hemispheres : left, right
    recipe : how it was made (plain values), enough to make it again

    `forward` and `info` are shared: who wants to change them copies them first.
    """

    name: str
    kind: Kind
    forward: mne.Forward
    info: mne.Info
    hemispheres: tuple[Hemisphere, Hemisphere]
    recipe: Mapping[str, RecipeValue]

    def __repr__(self) -> str:
        return f"<HeadModel {self.name!r}: {self.kind}, {self.n_sources} sources, {len(self.ch_names)} channels>"

    @property
    def ch_names(self) -> tuple[str, ...]:
        """Channels of the leadfield, in the order of its rows."""
        return tuple(self.forward["sol"]["row_names"])

    @cached_property
    def channels(self) -> Channels:
        """Channels of the leadfield with types and positions (metres; EEG: head, MEG: device coordinates)."""
        kinds = tuple(ChannelType(kind) for kind in self.info.get_channel_types())
        return Channels(tuple(self.info["ch_names"]), kinds, np.array([ch["loc"][:3] for ch in self.info["chs"]], float))

    @property
    def n_sources(self) -> int:
        """Sources of both hemispheres, left first."""
        return int(sum(len(h.source_vertices) for h in self.hemispheres))

    @property
    def vertices(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Vertex numbers of the sources of the left and of the right hemisphere."""
        left, right = self.hemispheres
        return left.source_vertices, right.source_vertices

    @cached_property
    def source_positions_mm(self) -> NDArray[np.float64]:
        """(n_sources, 3), MRI (surface RAS) coordinates. The template's are MNI (305) coordinates."""
        return np.vstack([h.white[h.source_vertices] for h in self.hemispheres])

    @cached_property
    def source_triangles(self) -> tuple[NDArray[np.int64], ...]:
        """Per hemisphere (n, 3) triangles between the sources, numbered within the hemisphere; empty where unknown."""
        meshes = []
        for hemisphere, space in zip(self.hemispheres, self.forward["src"], strict=True):
            triangles = space["use_tris"]
            if triangles is None or not len(triangles):
                whole = len(hemisphere.source_vertices) == len(hemisphere.white)
                triangles = hemisphere.triangles if whole else np.zeros((0, 3), int)
            rank = np.full(len(hemisphere.white), -1)
            rank[hemisphere.source_vertices] = np.arange(len(hemisphere.source_vertices))
            numbered = rank[np.asarray(triangles, dtype=np.int64)]
            meshes.append(numbered[(numbered >= 0).all(axis=1)])
        return tuple(meshes)

    @cached_property
    def fixed_forward(self) -> mne.Forward:
        """The forward solution with sources normal to the cortex (mean normal of each source's patch, where known)."""
        return mne.convert_forward_solution(self.forward, surf_ori=True, force_fixed=True, use_cps=True, verbose="ERROR")

    def leadfield(self, ch_names: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Field of unit dipoles normal to the cortex.

        Parameters
        ----------
        ch_names : names of channels of this head, any order; None for all

        Returns
        -------
        (n_channels, n_sources) float64
            V/(A m) for EEG (no reference applied), T/(A m) for magnetometers, T/(m A m) for gradiometers.

        Raises
        ------
        HeadModelError
            The head lacks some of the channels.
        """
        gain: NDArray[np.float64] = np.array(self.fixed_forward["sol"]["data"], dtype=np.float64)
        return gain if ch_names is None else gain[self.rows(ch_names)]

    def rows(self, ch_names: Iterable[str]) -> NDArray[np.intp]:
        """Rows of the leadfield of these channels; HeadModelError where the head lacks some."""
        ch_names = list(ch_names)
        self.require(ch_names)
        place = {name: i for i, name in enumerate(self.ch_names)}
        return np.array([place[name] for name in ch_names], dtype=np.intp)

    def missing(self, ch_names: Iterable[str]) -> tuple[str, ...]:
        """Those of the channels that this head does not have."""
        own = set(self.ch_names)
        return tuple(name for name in ch_names if name not in own)

    def require(self, ch_names: Iterable[str]) -> None:
        """Raise HeadModelError with the missing names if this head lacks any of the channels."""
        ch_names = list(ch_names)
        if missing := self.missing(ch_names):
            listed = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            own = ", ".join(self.ch_names[:3])
            raise HeadModelError(
                f"head model {self.name!r}: {len(missing)} of {len(ch_names)} channels are not in it ({listed}); it has "
                f"{len(self.ch_names)} channels ({own}, ...). Map the names in the rename table of the stream, or build a "
                "head model for this montage: rt-mmdf head --help"
            )

    def pick(self, ch_names: Sequence[str]) -> HeadModel:
        """The same head with these channels only, in this order; HeadModelError where some are missing."""
        self.require(ch_names)
        forward = mne.pick_channels_forward(self.forward, list(ch_names), ordered=True, verbose="ERROR")
        order = [self.info["ch_names"].index(name) for name in ch_names]
        info = mne.pick_info(self.info, order)
        return HeadModel(self.name, self.kind, forward, info, self.hemispheres, dict(self.recipe))

    def named_like(self, ch_names: Iterable[str]) -> HeadModel:
        """The same head, its channels called as in `ch_names` where the two differ in spaces only.

        Neuromag's ``MEG 0111`` and ``EEG 001`` lost their space in newer files; both are on the wire. The head itself where
        nothing is to be changed, or where a name would be taken twice.
        """
        wanted = {name.replace(" ", ""): name for name in ch_names}
        names = [wanted.get(own.replace(" ", ""), own) for own in self.ch_names]
        if names == list(self.ch_names) or len(set(names)) != len(names):
            return self
        mapping = dict(zip(self.ch_names, names, strict=True))
        forward, info = self.forward.copy(), self.info.copy()
        mne.rename_channels(info, mapping, verbose="ERROR")
        forward["info"] = forward["info"].copy()
        mne.rename_channels(forward["info"], mapping, verbose="ERROR")
        for part in ("sol", "sol_grad"):
            if forward.get(part) is not None:
                forward[part] = {**forward[part], "row_names": [mapping[own] for own in forward[part]["row_names"]]}
        return HeadModel(self.name, self.kind, forward, info, self.hemispheres, dict(self.recipe))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, leadfield (as float32, which is what a FIF file holds), source vertices and cortex."""
        digest = hashlib.sha256("\n".join(self.ch_names).encode())
        digest.update(np.ascontiguousarray(self.forward["sol"]["data"], dtype="<f4").tobytes())
        for hemisphere in self.hemispheres:
            digest.update(np.ascontiguousarray(hemisphere.source_vertices, dtype="<i8").tobytes())
            digest.update(np.ascontiguousarray(hemisphere.white, dtype="<f4").tobytes())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """Facts to print: plain values, in a good order."""
        types = self.channels.types
        left, right = self.vertices
        facts: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "sources": f"{self.n_sources} (left {len(left)}, right {len(right)})",
            "channels": {kind.value: types.count(kind) for kind in dict.fromkeys(types)},
            "cortex vertices": [len(h.white) for h in self.hemispheres],
            "inflated surface": all(h.inflated is not None for h in self.hemispheres),
            "fingerprint": self.fingerprint[:16],
        }
        for kind in dict.fromkeys(types):
            gain = np.abs(self.leadfield(self.channels.pick(self.channels.of_type(kind)).names))
            unit = kind.si_unit + "/(A m)"
            facts[f"gain {kind.value}"] = f"median {np.median(gain):.3g}, max {gain.max():.3g} {unit}"
        return facts | {f"recipe: {key}": value for key, value in self.recipe.items()}

    def save(self, folder: Path) -> None:
        """Write the head into `folder` (made if needed; files of an earlier head in it are replaced).

        Raises
        ------
        HeadModelError
            The folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mne.write_forward_solution(folder / FORWARD_FILE, self.forward, overwrite=True, verbose="ERROR")
            self.info.save(folder / INFO_FILE, overwrite=True, verbose="ERROR")
            np.savez_compressed(folder / SURFACES_FILE, allow_pickle=False, **_surface_arrays(self.hemispheres))
            # last: a folder without head.toml is not a head
            (folder / HEAD_FILE).write_text(_head_toml(self), encoding="utf-8")
        except OSError as error:
            raise HeadModelError(
                f"head model {self.name!r}: cannot be written to {folder} ({error}). Choose a folder that you may write "
                "to, on a disk with at least 200 MB free."
            ) from error


def load_head(folder: Path) -> HeadModel:
    """Read a head model and check it against its fingerprint.

    Raises
    ------
    HeadModelError
        The folder is no head model, one of its files is missing or damaged, or they do not belong together.
    """
    folder = Path(folder)
    try:
        with (folder / HEAD_FILE).open("rb") as file:
            content = parse_toml(file.read(MAX_TOML + 1))
    except FileNotFoundError as error:
        raise HeadModelError(
            f"head model {folder}: no {HEAD_FILE} in it. Expected is a folder made by `rt-mmdf head`; an existing "
            "-fwd.fif is turned into one by `rt-mmdf head subject --forward FILE`."
        ) from error
    except (OSError, ValueError) as error:
        raise HeadModelError(f"head model {folder}: {HEAD_FILE} cannot be read ({error}). Build the head again.") from error
    if content.get("format") != FORMAT:
        raise HeadModelError(
            f"head model {folder}: format {content.get('format')!r} seen, {FORMAT} expected. Build it again."
        )
    try:
        forward = mne.read_forward_solution(folder / FORWARD_FILE, verbose="ERROR")
        info = mne.io.read_info(folder / INFO_FILE, verbose="ERROR")
        if list(forward["sol"]["row_names"]) != list(info["ch_names"]):  # FIF keeps MEG before EEG, whatever the order was
            forward = mne.pick_channels_forward(forward, list(info["ch_names"]), ordered=True, verbose="ERROR")
        hemispheres = _hemispheres(read_arrays(folder / SURFACES_FILE, MAX_SURFACES))
        head = HeadModel(content["name"], content["kind"], forward, info, hemispheres, content.get("recipe", {}))
        seen = head.fingerprint
    except Exception as error:  # a damaged FIF or zip file can make its reader fail in any way
        raise HeadModelError(f"head model {folder}: damaged ({type(error).__name__}: {error}). Build it again.") from error
    if seen != content.get("fingerprint"):
        raise HeadModelError(
            f"head model {folder}: fingerprint {seen[:16]} seen, {str(content.get('fingerprint'))[:16]} expected: its files "
            "were changed or do not belong together. Build the head again."
        )
    return head


def channels_of_forward(forward: mne.Forward, info: mne.Info) -> mne.Info:
    """The part of `info` that the forward solution covers, in the order of its rows.

    Raises
    ------
    HeadModelError
        The forward solution has channels that `info` lacks.
    """
    names = list(forward["sol"]["row_names"])
    place = {name: i for i, name in enumerate(info["ch_names"])}
    if missing := [name for name in names if name not in place]:
        raise HeadModelError(
            f"forward solution: {len(missing)} of its {len(names)} channels are not in the recording "
            f"({', '.join(missing[:8])}). Use the recording that it was computed for, or compute it for this one."
        )
    picked = mne.pick_info(info, [place[name] for name in names])
    picked["bads"] = []
    picked["projs"].clear()
    return picked


def hemispheres_of_source_space(src: mne.SourceSpaces, mri_head_t: mne.Transform, where: str) -> list[Hemisphere]:
    """White surfaces and sources of a cortical source space in head or MRI coordinates.

    Raises
    ------
    HeadModelError
        It is not two cortical surfaces.
    """
    if len(src) != 2 or any(space["type"] != "surf" for space in src):
        kinds = ", ".join(space["type"] for space in src)
        raise HeadModelError(
            f"{where}: source space of {len(src)} part(s) ({kinds}); expected are the cortical surfaces of the left and of "
            "the right hemisphere. Make one with mne.setup_source_space."
        )
    head_to_mri = mne.transforms.invert_transform(mri_head_t) if mri_head_t["to"] == 4 else mri_head_t  # 4: head
    hemispheres = []
    for space in src:
        rr = (
            space["rr"] if int(space["coord_frame"]) == 5 else mne.transforms.apply_trans(head_to_mri, space["rr"])
        )  # 5: MRI
        white = np.asarray(rr, dtype=np.float32).astype(np.float64) * 1e3
        hemispheres.append(Hemisphere(white, space["tris"].astype(np.int64), space["vertno"].astype(np.int64)))
    return hemispheres


def sensor_digest(info: mne.Info) -> str:
    """Short hash of all of `info` that a leadfield depends on: names, places, coils, device-to-head transform."""
    digest = hashlib.sha256("\n".join(info["ch_names"]).encode())
    device = np.eye(4) if info["dev_head_t"] is None else info["dev_head_t"]["trans"]
    places = np.nan_to_num(np.array([ch["loc"] for ch in info["chs"]], dtype=float))
    for values in (places, [ch["coil_type"] for ch in info["chs"]], device):
        digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()[:16]


def _surface_arrays(hemispheres: tuple[Hemisphere, Hemisphere]) -> dict[str, Any]:
    arrays = {}
    for side, hemisphere in zip(("lh", "rh"), hemispheres, strict=True):
        for key in ("white", "inflated", "pial", "sulc"):
            values = getattr(hemisphere, key)
            if values is not None:
                arrays[f"{side}_{key}"] = values.astype(np.float32)
        arrays[f"{side}_triangles"] = hemisphere.triangles.astype(np.int32)
        arrays[f"{side}_source_vertices"] = hemisphere.source_vertices.astype(np.int32)
    return arrays


def _hemispheres(arrays: Mapping[str, NDArray[Any]]) -> tuple[Hemisphere, Hemisphere]:
    def one(side: str) -> Hemisphere:
        def get(key: str) -> NDArray[np.float64] | None:
            values = arrays.get(f"{side}_{key}")
            return None if values is None else values.astype(np.float64)

        return Hemisphere(
            arrays[f"{side}_white"].astype(np.float64),
            arrays[f"{side}_triangles"].astype(np.int64),
            arrays[f"{side}_source_vertices"].astype(np.int64),
            get("inflated"),
            get("pial"),
            get("sulc"),
        )

    return one("lh"), one("rh")


def _head_toml(head: HeadModel) -> str:
    # JSON's strings, numbers and arrays are TOML's
    lines = [
        f"format = {FORMAT}",
        f"name = {json.dumps(head.name)}",
        f"kind = {json.dumps(head.kind)}",
        f'fingerprint = "{head.fingerprint}"',
        f"n_sources = {head.n_sources}",
        f"n_channels = {len(head.ch_names)}",
        "",
        "[recipe]",
        *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in head.recipe.items()),
    ]
    return "\n".join(lines) + "\n"
