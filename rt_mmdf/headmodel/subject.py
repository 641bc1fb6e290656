"""Head models of a subject: from BEM, coregistration and source space, or from an existing forward solution."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mne
import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.cache import cached_head, file_digest
from rt_mmdf.headmodel.head import (
    HeadModel,
    Hemisphere,
    RecipeValue,
    channels_of_forward,
    hemispheres_of_source_space,
    sensor_digest,
)

Progress = Callable[[str, float], None]
Read = TypeVar("Read")

MOVED_MM = 5.0  # a head that moved by more since the forward solution was made is worth a word (our choice)

logger = logging.getLogger(__name__)


def build_subject(
    info: mne.Info,
    trans: Path,
    src: Path,
    bem: Path,
    *,
    name: str = "subject",
    mindist_mm: float = 0.0,
    subjects_dir: Path | None = None,
    subject: str | None = None,
    progress: Progress | None = None,
) -> HeadModel:
    """Head model of a FreeSurfer subject, from the cache where the same was built before.

    Parameters
    ----------
    info : mne.Info
        Of today's recording: channels, digitised electrodes, device-to-head transform.
    trans, src, bem : paths
        Coregistration (-trans.fif), cortical source space (-src.fif), BEM solution (-bem-sol.fif).
    mindist_mm : sources nearer than this to the inner skull are left out; those outside of it always are
    subjects_dir, subject : FreeSurfer's folder and the subject's in it
        Inflated and pial surfaces for display are read from there. Without them there are none.
    progress : called with what is being done and the fraction that is done

    Raises
    ------
    HeadModelError
        A file cannot be read or is of another kind; the source space is no cortex; sensors have no position.
    """
    report = progress or (lambda what, fraction: None)
    sensors = _sensors_of(info)
    recipe: dict[str, RecipeValue] = {
        "kind": "subject",
        "trans": f"{trans.name} {file_digest(trans)[:16]}",
        "src": f"{src.name} {file_digest(src)[:16]}",
        "bem": f"{bem.name} {file_digest(bem)[:16]}",
        "sensor_digest": sensor_digest(sensors),
        "mindist_mm": mindist_mm,
        "display": str(subject) if subjects_dir is not None else "none",
    }

    def build() -> HeadModel:
        report("reading", 0.0)
        coregistration = _read(lambda: mne.read_trans(trans), trans, "a coregistration (-trans.fif)")
        space = _read(lambda: mne.read_source_spaces(src, verbose="ERROR"), src, "a source space (-src.fif)")
        conductor = _read(lambda: mne.read_bem_solution(bem, verbose="ERROR"), bem, "a BEM solution (-bem-sol.fif)")
        report("leadfield", 0.1)
        try:
            forward = mne.make_forward_solution(
                sensors, coregistration, space, conductor, meg=True, eeg=True, mindist=mindist_mm, verbose="ERROR"
            )
        except (ValueError, RuntimeError) as error:
            raise HeadModelError(
                f"head model {name!r}: no leadfield from {trans.name}, {src.name} and {bem.name}: mne says: {error}"
            ) from error
        return _head(name, forward, sensors, recipe, subjects_dir, subject)

    head = cached_head({**recipe, "name": name, "subjects_dir": str(subjects_dir)}, build)
    report("ready", 1.0)
    return head


def from_forward(
    path: Path,
    info: mne.Info | None = None,
    *,
    name: str | None = None,
    subjects_dir: Path | None = None,
    subject: str | None = None,
) -> HeadModel:
    """Head model of an existing forward solution (-fwd.fif).

    Parameters
    ----------
    path : free orientation, two cortical hemispheres
    info : mne.Info | None
        Of today's recording, to tell whether the head has moved since the forward solution was made (a warning in the log).
        Sensors come from the file either way: they are those that its leadfield belongs to.
    subjects_dir, subject : as in `build_subject`

    Raises
    ------
    HeadModelError
        The file cannot be read, has fixed orientation, or its source space is no cortex.
    """
    recipe: dict[str, RecipeValue] = {"kind": "subject", "forward": f"{path.name} {file_digest(path)[:16]}"}
    own_name = name or path.name.removesuffix(".gz").removesuffix(".fif").removesuffix("-fwd")

    def build() -> HeadModel:
        forward = _read(lambda: mne.read_forward_solution(path, verbose="ERROR"), path, "a forward solution (-fwd.fif)")
        if mne.forward.is_fixed_orient(forward):
            raise HeadModelError(
                f"forward solution {path}: fixed orientation seen, free orientation expected (depth weighting and loose "
                "orientation need it). Save it as mne.make_forward_solution returns it."
            )
        return _head(own_name, forward, _info_of_forward(forward), recipe, subjects_dir, subject)

    head = cached_head({**recipe, "name": own_name, "subjects_dir": str(subjects_dir), "subject": str(subject)}, build)
    if info is not None and info["dev_head_t"] is not None and head.info["dev_head_t"] is not None:
        moved = info["dev_head_t"]["trans"][:3, 3] - head.info["dev_head_t"]["trans"][:3, 3]
        if (moved_mm := 1e3 * float(np.linalg.norm(moved))) > MOVED_MM:
            logger.warning(
                "head model %s: the head is %.0f mm from where it was when %s was made; compute the leadfield for "
                "today's recording (rt-mmdf head subject with --trans, --src and --bem).",
                own_name,
                moved_mm,
                path.name,
            )
    return head


def _read(read: Callable[[], Read], path: Path, what: str) -> Read:
    try:
        return read()
    except Exception as error:  # mne's readers fail in many ways on a file of another kind
        raise HeadModelError(f"head model: {path} cannot be read as {what} ({type(error).__name__}: {error}).") from error


def _sensors_of(info: mne.Info) -> mne.Info:
    picks = mne.pick_types(info, meg=True, eeg=True, ref_meg=len(info["comps"]) > 0, exclude=[])
    if len(picks) == 0:
        raise HeadModelError("subject head: the recording has neither EEG nor MEG channels; at least one kind is needed.")
    sensors = mne.pick_info(info, picks)
    sensors["bads"] = []
    sensors["projs"].clear()
    places = np.array([ch["loc"][:3] for ch in sensors["chs"]], dtype=float)
    placeless = ~np.isfinite(places).all(axis=1) | ~places.any(axis=1)
    if placeless.any():
        names = [name for name, lost in zip(sensors["ch_names"], placeless, strict=True) if lost]
        raise HeadModelError(
            f"subject head: {len(names)} channels of the recording have no position ({', '.join(names[:8])}). Give a "
            "recording with digitised electrodes, or set a montage before."
        )
    return sensors


def _info_of_forward(forward: mne.Forward) -> mne.Info:
    """A whole Info of what a forward solution keeps of it: channels and the device-to-head transform."""
    kept = forward["info"]
    names = list(kept["ch_names"])
    info = mne.create_info(names, 1000.0, kept.get_channel_types())
    for channel, known in zip(info["chs"], kept["chs"], strict=True):
        channel.update(known)
    if kept.get("dev_head_t") is not None:
        info["dev_head_t"] = kept["dev_head_t"]
    return info


def _head(
    name: str,
    forward: mne.Forward,
    info: mne.Info,
    recipe: dict[str, RecipeValue],
    subjects_dir: Path | None,
    subject: str | None,
) -> HeadModel:
    if forward["surf_ori"]:
        forward = mne.convert_forward_solution(forward, surf_ori=False, verbose="ERROR")
    hemispheres = hemispheres_of_source_space(forward["src"], forward["mri_head_t"], f"head model {name!r}")
    if subjects_dir is not None:
        folder = subjects_dir / (subject or str(forward["src"][0].get("subject_his_id") or "")) / "surf"
        hemispheres = [_with_display_surfaces(h, folder, side) for h, side in zip(hemispheres, ("lh", "rh"), strict=True)]
    return HeadModel(
        name, "subject", forward, channels_of_forward(forward, info), (hemispheres[0], hemispheres[1]), dict(recipe)
    )


def _with_display_surfaces(hemisphere: Hemisphere, folder: Path, side: str) -> Hemisphere:
    def surface(part: str) -> NDArray[np.float64] | None:
        path = folder / f"{side}.{part}"
        if not path.is_file():
            return None
        values: Any
        if part == "sulc":
            values = _read(lambda: mne.surface.read_curvature(path, binary=False), path, "a map of sulcal depth")
        else:
            values = _read(lambda: mne.read_surface(path)[0], path, "a FreeSurfer surface")
        if len(values) != len(hemisphere.white):
            raise HeadModelError(
                f"head model: {path} has {len(values)} vertices, the source space's cortex {len(hemisphere.white)}. Give "
                "the folder of the subject that the source space was made from, or none."
            )
        return np.asarray(values, dtype=np.float64)

    return Hemisphere(
        hemisphere.white,
        hemisphere.triangles,
        hemisphere.source_vertices,
        inflated=surface("inflated"),
        pial=surface("pial"),
        sulc=surface("sulc"),
    )
