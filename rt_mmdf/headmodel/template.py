"""The template head: fsaverage's cortex and skull from what nilearn and mne ship, a real three-layer BEM, no download.

The cortex is fsaverage5 (nilearn's wheel); its vertices are nested, the first 642, 2562 and 10242 of a hemisphere being the
icosahedra of order 3, 4 and 5. Inner skull and scalp are mne's fsaverage. Both are resampled along rays from the centre of
the inner skull; the outer skull is put between them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import mne
import nilearn
import numpy as np
from nilearn.datasets import fetch_surf_fsaverage
from nilearn.surface import load_surf_data, load_surf_mesh
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.cache import array_digest, cached, cached_head
from rt_mmdf.headmodel.head import (
    HeadModel,
    Hemisphere,
    RecipeValue,
    channels_of_forward,
    hemispheres_of_source_space,
    sensor_digest,
)

# Changes when the recipe below changes: heads of older recipes in the cache are then left alone.
RECIPE_VERSION = 1

Spacing = Literal["ico3", "ico4", "ico5"]
Progress = Callable[[str, float], None]
Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]
Loaded = TypeVar("Loaded")

N_SOURCES = {"ico3": 642, "ico4": 2562, "ico5": 10242}
MEG_ARRAYS = {"neuromag306": "neuromag", "ctf151": "ctf151", "ctf275": "ctf275"}
# mne renamed its montages after 1.10; both names mean the same electrodes
MONTAGE_NAMES = {"standard_1005": "colin27_1005", "standard_1020": "colin27_1020"}

# mne's canonical arrays carry no head position. Metres to add to device coordinates so that the helmet sits on fsaverage's
# head: nearest sensor about 16 mm from the scalp, median 24 mm (our choice).
HELMET_SHIFT = {"neuromag306": (0.0, -0.010, 0.045), "ctf151": (0.0, 0.015, 0.060), "ctf275": (0.0, 0.015, 0.060)}
CTF_COIL = 5001

# Scalp to inner skull along a ray, metres: 8 to 19 mm over the vault. Rays through face and neck are clipped to that, a
# floor of 9 mm keeps outer skull and scalp two millimetres and more apart everywhere.
SCALP_GAP = (0.009, 0.020)
OUTER_SKULL_AT = 0.45  # of the way from the inner skull to the scalp

logger = logging.getLogger(__name__)


def build_template(
    *,
    spacing: Spacing = "ico4",
    info: mne.Info | None = None,
    meg: str | None = "neuromag306",
    eeg: str | None = "mgh60",
    eeg_names: Sequence[str] | None = None,
    conductivity: tuple[float, float, float] = (0.3, 0.006, 0.3),
    bem_ico: Literal[2, 3, 4] = 3,
    vertices: tuple[Sequence[int], Sequence[int]] | None = None,
    name: str = "template",
    progress: Progress | None = None,
) -> HeadModel:
    """Head model of fsaverage, from the cache where the same was built before.

    Parameters
    ----------
    spacing : sources per hemisphere: ico3 642, ico4 2562, ico5 10242
    info : mne.Info | None
        A recording's: its EEG and MEG channels, device-to-head transform and digitised electrodes are used ("today's head").
        Electrodes without a position take it from the montage `eeg`, by name; a MEG system without device-to-head
        transform is placed as if there were no recording.
    meg : neuromag306, ctf151, ctf275 or None; without `info` the array
    eeg : name of a montage that mne knows, or None; without `info` the electrodes
    eeg_names : electrodes to take from the montage; None for all
    conductivity : brain, skull, scalp, S/m (the order of mne)
    bem_ico : resolution of the three surfaces: 162, 642 or 2562 vertices each
    vertices : sources to compute, vertex numbers of fsaverage5, left and right; None for all of `spacing`
    progress : called with what is being done and the fraction that is done

    Raises
    ------
    HeadModelError
        Unknown array, montage, electrode or vertex; electrodes without a position; MEG sensors inside the head.
    """
    report = progress or (lambda what, fraction: None)
    if spacing not in N_SOURCES:
        raise HeadModelError(f"template head: spacing {spacing!r} seen; expected one of {', '.join(N_SOURCES)}.")
    if bem_ico not in (2, 3, 4):
        raise HeadModelError(f"template head: bem_ico {bem_ico!r} seen; expected 2, 3 or 4.")
    if len(conductivity) != 3 or not all(value > 0 for value in conductivity):
        raise HeadModelError(
            f"template head: conductivity {conductivity!r} seen; expected three positive values: brain, skull, scalp in S/m."
        )
    for side, numbers in zip(("left", "right"), vertices or (), strict=False):
        if len(numbers) == 0 or not all(0 <= number < N_SOURCES[spacing] for number in numbers):
            raise HeadModelError(
                f"template head: the {side} hemisphere has vertices 0 to {N_SOURCES[spacing] - 1} at {spacing}; "
                f"{len(numbers)} vertices were asked for, some outside. Each hemisphere needs at least one."
            )
    sensors = _sensors_of_recording(info, eeg) if info is not None else _sensors(meg, eeg, eeg_names)
    chosen = None if vertices is None else [sorted({int(number) for number in side}) for side in vertices]
    recipe: dict[str, RecipeValue] = {
        "kind": "template",
        "recipe_version": RECIPE_VERSION,
        "spacing": spacing,
        "sensors": "recording" if info is not None else f"{meg or 'no MEG'} + {eeg or 'no EEG'}",
        "sensor_digest": sensor_digest(sensors),
        "conductivity": list(conductivity),
        "bem_ico": bem_ico,
        "vertices": "all" if chosen is None else array_digest(*(np.array(side, float) for side in chosen)),
        "nilearn": nilearn.__version__,
    }

    def build() -> HeadModel:
        report("surfaces of skull and scalp", 0.0)
        bem = _bem_solution(bem_ico, conductivity)
        report("cortex", 0.4)
        src = _source_space(spacing, chosen)
        report("sensors", 0.5)
        trans = fsaverage_trans()
        placed = _place(sensors, trans, bem)
        report("leadfield", 0.55)
        # no source is closer than 5 mm to the inner skull: nothing to leave out, and the mesh must stay whole
        forward = mne.make_forward_solution(placed, trans, src, bem, meg=True, eeg=True, mindist=0.0, verbose="ERROR")
        hemispheres = hemispheres_of_source_space(forward["src"], forward["mri_head_t"], "template head")
        display = [_with_display_surfaces(h, side) for h, side in zip(hemispheres, ("left", "right"), strict=True)]
        return HeadModel(name, "template", forward, channels_of_forward(forward, placed), (display[0], display[1]), recipe)

    head = cached_head({**recipe, "name": name}, build)
    report("ready", 1.0)
    return head


def fsaverage_trans() -> mne.Transform:
    """Head (fiducials) to MRI coordinates of fsaverage."""
    return mne.read_trans(_mne_fsaverage() / "fsaverage-trans.fif")


def skull_and_scalp(bem_ico: int) -> tuple[Mesh, Mesh, Mesh]:
    """Inner skull, outer skull and scalp of fsaverage as nested meshes.

    Returns
    -------
    three of (vertices (n, 3) metres in MRI coordinates, triangles (n_triangles, 3))
        n is 162, 642 or 2562; vertex i of all three lies on the same ray.
    """
    inner = mne.read_bem_surfaces(_mne_fsaverage() / "fsaverage-inner_skull-bem.fif", verbose="ERROR")[0]
    scalp = mne.read_bem_surfaces(_mne_fsaverage() / "fsaverage-head.fif", verbose="ERROR")[0]
    n_rays = 10 * 4**bem_ico + 2
    directions = _fsaverage5("sphere", "left")[0][:n_rays]
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    centre = inner["rr"].mean(axis=0)
    to_inner = _ray_lengths(centre, directions, inner["rr"], inner["tris"])
    to_scalp = _ray_lengths(centre, directions, scalp["rr"], scalp["tris"])
    gap = np.clip(np.nan_to_num(to_scalp - to_inner, nan=SCALP_GAP[1]), *SCALP_GAP)  # NaN: out through the neck
    triangles = _triangulate(directions)

    def mesh(lengths: NDArray[np.float64]) -> Mesh:
        return centre + lengths[:, None] * directions, triangles

    return mesh(to_inner), mesh(to_inner + OUTER_SKULL_AT * gap), mesh(to_inner + gap)


def _mne_fsaverage() -> Path:
    return Path(mne.__file__).parent / "data" / "fsaverage"


def _fsaverage5(surface: str, side: str) -> Mesh:
    mesh = load_surf_mesh(fetch_surf_fsaverage("fsaverage5")[f"{surface}_{side}"])
    return np.asarray(mesh.coordinates, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)


def _triangulate(directions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Triangles of an icosahedron's vertices, counter-clockwise seen from outside."""
    triangles: NDArray[np.int64] = ConvexHull(directions).simplices.astype(np.int64)
    a, b, c = (directions[triangles[:, i]] for i in range(3))
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    return triangles


def _ray_lengths(
    origin: NDArray[np.float64],
    directions: NDArray[np.float64],
    vertices: NDArray[np.float64],
    triangles: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Distance from `origin` to the farthest crossing of each ray with a mesh; NaN where it leaves through a hole.

    Möller & Trumbore (1997), doi 10.1080/10867651.1997.10487468.
    """
    corner = vertices[triangles[:, 0]] - origin
    edge1, edge2 = (vertices[triangles[:, i]] - vertices[triangles[:, 0]] for i in (1, 2))
    q = np.cross(-corner, edge1)
    reach = np.einsum("ij,ij->i", edge2, q)
    lengths = np.full(len(directions), np.nan)
    for i, direction in enumerate(directions):
        p = np.cross(direction, edge2)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = 1.0 / np.einsum("ij,ij->i", edge1, p)
            u = np.einsum("ij,ij->i", -corner, p) * scale
            v = (q @ direction) * scale
            t = reach * scale
            hit = (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9) & (t > 0)
        if hit.any():
            lengths[i] = t[hit].max()
    return lengths


@contextmanager
def _subjects_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rt_mmdf-") as folder:
        subject = Path(folder) / "template"
        (subject / "surf").mkdir(parents=True)
        (subject / "bem").mkdir()
        yield subject


def _bem_solution(bem_ico: int, conductivity: tuple[float, float, float]) -> mne.bem.ConductorModel:
    file_name = "template-bem-sol.fif"

    def make(folder: Path) -> None:
        with _subjects_folder() as subject:
            for part, (vertices, triangles) in zip(
                ("inner_skull", "outer_skull", "outer_skin"), skull_and_scalp(bem_ico), strict=True
            ):
                mne.write_surface(subject / "bem" / f"{part}.surf", vertices * 1e3, triangles, overwrite=True)
            # reads, checks that the surfaces are closed and nest, and orders them
            model = mne.make_bem_model(
                "template", ico=None, conductivity=conductivity, subjects_dir=subject.parent, verbose="ERROR"
            )
        solution = mne.make_bem_solution(model, verbose="ERROR")
        mne.write_bem_solution(folder / file_name, solution, overwrite=True, verbose="ERROR")

    recipe: dict[str, RecipeValue] = {
        "recipe_version": RECIPE_VERSION,
        "bem_ico": bem_ico,
        "conductivity": list(conductivity),
        "nilearn": nilearn.__version__,
    }
    return cached("bem", recipe, make, lambda folder: mne.read_bem_solution(folder / file_name, verbose="ERROR"))


def _source_space(spacing: Spacing, chosen: list[list[int]] | None) -> mne.SourceSpaces:
    with _subjects_folder() as subject:
        for side, prefix in (("left", "lh"), ("right", "rh")):
            for surface in ("white", "sphere"):
                mne.write_surface(subject / "surf" / f"{prefix}.{surface}", *_fsaverage5(surface, side))
        # patch statistics give the mean normal of each source's patch; at ico5 every vertex is a patch of its own
        patches = "patch" if spacing != "ico5" and chosen is None else False
        src = mne.setup_source_space(
            "template", spacing=spacing, surface="white", subjects_dir=subject.parent, add_dist=patches, verbose="ERROR"
        )
    for i, space in enumerate(src):
        if not np.array_equal(space["vertno"], np.arange(N_SOURCES[spacing])):
            raise HeadModelError(
                f"template head: the vertices of nilearn's fsaverage5 are not nested as {spacing} expects; nilearn "
                f"{nilearn.__version__} ships other surfaces than rt_mmdf knows. Install the locked versions."
            )
        if chosen is not None:
            numbers = np.array(chosen[i], dtype=np.int64)
            inuse = np.zeros(space["np"], dtype=int)
            inuse[numbers] = 1
            space.update(inuse=inuse, vertno=numbers, nuse=len(numbers), nuse_tri=0, use_tris=np.zeros((0, 3), int))
    return src


def _with_display_surfaces(hemisphere: Hemisphere, side: str) -> Hemisphere:
    sulc = np.asarray(load_surf_data(fetch_surf_fsaverage("fsaverage5")[f"sulc_{side}"]), dtype=np.float64)
    return Hemisphere(
        hemisphere.white,
        hemisphere.triangles,
        hemisphere.source_vertices,
        inflated=_fsaverage5("infl", side)[0],
        pial=_fsaverage5("pial", side)[0],
        sulc=sulc,
    )


def _montage(name: str) -> mne.channels.DigMontage:
    known = mne.channels.get_builtin_montages()
    aliases = MONTAGE_NAMES | {new: old for old, new in MONTAGE_NAMES.items()}
    # of two names of the same montage the newer one: the older warns
    candidates = [MONTAGE_NAMES.get(name, name), name, aliases.get(name, name)]
    found = next((candidate for candidate in candidates if candidate in known), None)
    if found is None:
        raise HeadModelError(
            f"template head: montage {name!r} is not known; mne {mne.__version__} knows {', '.join(known)}."
        )
    return mne.channels.make_standard_montage(found)


def _sensors(meg: str | None, eeg: str | None, eeg_names: Sequence[str] | None) -> mne.Info:
    """An Info of the array and the electrodes asked for, helmet on the head."""
    if meg is None and eeg is None:
        raise HeadModelError("template head: neither a MEG array nor an EEG montage was given; at least one is needed.")
    if meg is not None and meg not in MEG_ARRAYS:
        raise HeadModelError(
            f"template head: MEG array {meg!r} is not known; expected one of {', '.join(MEG_ARRAYS)} or none."
        )
    array = None if meg is None else mne.channels.read_meg_canonical_info(MEG_ARRAYS[meg])
    montage = None if eeg is None else _montage(eeg)
    electrodes: list[str] = []
    if montage is not None:
        electrodes = list(montage.ch_names) if eeg_names is None else list(eeg_names)
        if unknown := [name for name in electrodes if name not in montage.ch_names]:
            raise HeadModelError(
                f"template head: montage {eeg!r} has no electrode {', '.join(unknown[:8])}; it has "
                f"{', '.join(montage.ch_names[:8])}, ... Take names from it, or give a recording with digitised electrodes."
            )
    meg_names = [] if array is None else list(array["ch_names"])
    meg_types = [] if array is None else array.get_channel_types()
    info = mne.create_info(meg_names + electrodes, 1000.0, meg_types + ["eeg"] * len(electrodes))
    if montage is not None:
        info.set_montage(montage, on_missing="ignore")
    if array is not None:
        for channel, canonical in zip(info["chs"], array["chs"], strict=False):
            channel.update(canonical)
        info["dev_head_t"] = _template_helmet_position(meg or "")
    return info


def _template_helmet_position(meg: str) -> mne.Transform:
    shift = np.eye(4)
    shift[:3, 3] = HELMET_SHIFT[meg]
    return mne.Transform("meg", "head", shift)


def _sensors_of_recording(info: mne.Info, eeg: str | None) -> mne.Info:
    """The recording's EEG and MEG channels with positions, its bads and projectors left behind."""
    picks = mne.pick_types(info, meg=True, eeg=True, ref_meg=len(info["comps"]) > 0, exclude=[])
    if len(picks) == 0:
        raise HeadModelError("template head: the recording has neither EEG nor MEG channels; at least one kind is needed.")
    sensors = mne.pick_info(info, picks)
    sensors["bads"] = []
    sensors["projs"].clear()
    kinds = sensors.get_channel_types()
    if "eeg" in kinds:
        _fill_electrode_positions(sensors, [i for i, kind in enumerate(kinds) if kind == "eeg"], eeg)
    if {"mag", "grad"} & set(kinds):
        placeless = [
            ch["ch_name"]
            for ch, kind in zip(sensors["chs"], kinds, strict=True)
            if kind != "eeg" and not ch["loc"][:3].any()
        ]
        if placeless:
            raise HeadModelError(
                f"template head: {len(placeless)} MEG channels of the recording have no position "
                f"({', '.join(placeless[:5])}). Use a recording of the scanner's own format."
            )
        if sensors["dev_head_t"] is None or np.allclose(sensors["dev_head_t"]["trans"], np.eye(4)):
            logger.warning(
                "template head: the recording has no device-to-head transform; the helmet is placed on the template."
            )
            ctf = any(ch["coil_type"] == CTF_COIL for ch in sensors["chs"])
            sensors["dev_head_t"] = _template_helmet_position("ctf275" if ctf else "neuromag306")
    return sensors


def _fill_electrode_positions(info: mne.Info, picks: list[int], eeg: str | None) -> None:
    placeless = [i for i in picks if not np.isfinite(info["chs"][i]["loc"][:3]).all() or not info["chs"][i]["loc"][:3].any()]
    if not placeless:
        return
    names = [info["ch_names"][i] for i in placeless]
    known: dict[str, NDArray[np.float64]] = {}
    if eeg is not None:
        montage = mne.channels.montage.transform_to_head(_montage(eeg))
        known = montage.get_positions()["ch_pos"]
    if unknown := [name for name in names if name not in known]:
        raise HeadModelError(
            f"template head: {len(unknown)} electrodes of the recording have no position and are not in the montage {eeg!r} "
            f"({', '.join(unknown[:8])}). Choose the montage of the cap, or rename the channels as it does."
        )
    for i, name in zip(placeless, names, strict=True):
        info["chs"][i]["loc"][:3] = known[name]
        info["chs"][i]["coord_frame"] = 4  # head


def _place(sensors: mne.Info, trans: mne.Transform, bem: mne.bem.ConductorModel) -> mne.Info:
    """Electrodes onto the scalp; MEG sensors checked to be outside of it."""
    info = sensors.copy()
    scalp = next(surface for surface in bem["surfs"] if surface["id"] == 4)
    to_head = mne.transforms.invert_transform(trans)
    for channel, kind in zip(info["chs"], info.get_channel_types(), strict=True):
        if kind == "eeg":
            place = mne.transforms.apply_trans(trans, channel["loc"][:3])
            nearest = _nearest_point(place, scalp["rr"], scalp["tris"])
            channel["loc"][:3] = mne.transforms.apply_trans(to_head, nearest)
    meg = [i for i, kind in enumerate(info.get_channel_types()) if kind in ("mag", "grad")]
    if meg:
        device = mne.transforms.apply_trans(info["dev_head_t"], np.array([info["chs"][i]["loc"][:3] for i in meg]))
        places = mne.transforms.apply_trans(trans, device)
        centre = scalp["rr"].mean(axis=0)
        offsets = places - centre
        radii = np.linalg.norm(offsets, axis=1)
        to_scalp = _ray_lengths(centre, offsets / radii[:, None], scalp["rr"], scalp["tris"])
        if (inside := radii < to_scalp).any():
            names = [info["ch_names"][meg[i]] for i in np.flatnonzero(inside)]
            raise HeadModelError(
                f"template head: {inside.sum()} of {len(meg)} MEG sensors are inside the template's scalp, up to "
                f"{1e3 * (to_scalp - radii).max():.0f} mm deep ({', '.join(names[:5])}). The device-to-head transform of "
                "the recording does not fit an adult head: check it, or use the subject's own head (rt-mmdf head subject)."
            )
    return info


def _nearest_point(
    point: NDArray[np.float64], vertices: NDArray[np.float64], triangles: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The point of a mesh that is nearest to `point`: within the triangles around the nearest vertices."""
    near = np.argsort(np.linalg.norm(vertices - point, axis=1))[:8]
    around = triangles[np.isin(triangles, near).any(axis=1)]
    a, b, c = (vertices[around[:, i]] for i in range(3))
    # barycentric coordinates of the foot of the perpendicular; clipped to the triangle where it falls outside
    e1, e2, w = b - a, c - a, point - a
    d11, d12, d22 = (np.einsum("ij,ij->i", x, y) for x, y in ((e1, e1), (e1, e2), (e2, e2)))
    w1, w2 = np.einsum("ij,ij->i", w, e1), np.einsum("ij,ij->i", w, e2)
    area = d11 * d22 - d12**2
    weights = np.stack([(d22 * w1 - d12 * w2) / area, (d11 * w2 - d12 * w1) / area], axis=1)
    weights = np.clip(weights, 0.0, 1.0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    feet = a + weights[:, :1] * e1 + weights[:, 1:] * e2
    nearest: NDArray[np.float64] = feet[np.argmin(np.linalg.norm(feet - point, axis=1))]
    return nearest
