"""Heads that are almost the one at hand: other conductivities, electrodes put on anew, another position in the helmet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mne
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.subject import build_subject
from rt_mmdf.headmodel.template import Progress, Spacing, build_template

# Brain, skull, scalp in S/m. Skull: the middles of six equal steps of log conductivity from 3.1 to 14 mS/m; brain and scalp
# some 20 % about 0.33 and 0.37 (our choice), in no order. Six only: a BEM solution takes nine seconds and is kept.
CONDUCTIVITIES: tuple[tuple[float, float, float], ...] = (
    (0.34, 0.00351, 0.36),
    (0.28, 0.00452, 0.43),
    (0.40, 0.00581, 0.32),
    (0.30, 0.00747, 0.29),
    (0.36, 0.00960, 0.45),
    (0.27, 0.01235, 0.38),
)
ELECTRODE_SHIFT_MM = (3.0, 10.0)
HELMET_SHIFT_MM = (2.0, 5.0)
HELMET_ROTATION_DEG = (2.0, 3.0)


@dataclass(frozen=True)
class HeadVariation:
    """How a head differs from the nominal one.

    conductivity : brain, skull, scalp in S/m; None: those of the nominal head
    electrode_shift_mm : RMS over the electrodes, before they are put back onto the scalp; half of the variance is common
        to all (the cap has slipped), the other half each electrode's own
    helmet_shift_mm, helmet_rotation_deg : error of the MEG coregistration; the rotation is about the helmet's centre
    seed : of the directions
    """

    conductivity: tuple[float, float, float] | None = None
    electrode_shift_mm: float = 0.0
    helmet_shift_mm: float = 0.0
    helmet_rotation_deg: float = 0.0
    seed: int = 0


def random_variation(rng: np.random.Generator) -> HeadVariation:
    """A variation from the ranges that real heads and sessions show."""
    return HeadVariation(
        conductivity=CONDUCTIVITIES[int(rng.integers(len(CONDUCTIVITIES)))],
        electrode_shift_mm=float(rng.uniform(*ELECTRODE_SHIFT_MM)),
        helmet_shift_mm=float(rng.uniform(*HELMET_SHIFT_MM)),
        helmet_rotation_deg=float(rng.uniform(*HELMET_ROTATION_DEG)),
        seed=int(rng.integers(2**31)),
    )


def varied_info(info: mne.Info, variation: HeadVariation) -> mne.Info:
    """A copy of `info` with its electrodes (head coordinates) and its helmet moved; names and types stay."""
    rng = np.random.default_rng(variation.seed)
    moved = info.copy()
    kinds = moved.get_channel_types()
    electrodes = [i for i, kind in enumerate(kinds) if kind == "eeg"]
    if electrodes and variation.electrode_shift_mm:
        shifts = rng.standard_normal(3) + rng.standard_normal((len(electrodes), 3))
        shifts *= 1e-3 * variation.electrode_shift_mm / np.sqrt(np.mean(np.sum(shifts**2, axis=1)))
        for i, shift in zip(electrodes, shifts, strict=True):
            moved["chs"][i]["loc"][:3] += shift
    helmet = [i for i, kind in enumerate(kinds) if kind in ("mag", "grad")]
    if helmet and (variation.helmet_shift_mm or variation.helmet_rotation_deg):
        device = moved["dev_head_t"]["trans"]
        centre = np.mean([moved["chs"][i]["loc"][:3] for i in helmet], axis=0) @ device[:3, :3].T + device[:3, 3]
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(np.deg2rad(variation.helmet_rotation_deg) * _direction(rng)).as_matrix()
        step[:3, 3] = centre - step[:3, :3] @ centre + 1e-3 * variation.helmet_shift_mm * _direction(rng)
        moved["dev_head_t"] = mne.Transform("meg", "head", step @ device)
    return moved


def varied_template(
    nominal: HeadModel,
    variation: HeadVariation,
    *,
    spacing: Spacing = "ico4",
    bem_ico: Literal[2, 3, 4] = 3,
    progress: Progress | None = None,
) -> HeadModel:
    """The template head under the varied sensors of `nominal`, from the cache where it was built before.

    Parameters
    ----------
    nominal : a template head; its channels, electrodes and helmet position are what is varied
    spacing, bem_ico : of the varied head; see `build_template`

    Raises
    ------
    HeadModelError
        `nominal` is no template head, or MEG sensors would be inside the scalp.
    """
    if nominal.kind != "template":
        raise HeadModelError(
            f"head model {nominal.name!r} is no template; the template cannot stand for it. Vary it from its own files "
            "(varied_subject: recording, coregistration, source space and BEM solution)."
        )
    conductivity = variation.conductivity or _nominal_conductivity(nominal)
    return build_template(
        spacing=spacing,
        info=varied_info(nominal.info, variation),
        eeg=None,
        conductivity=conductivity,
        bem_ico=bem_ico,
        name="varied template",
        progress=progress,
    )


def varied_subject(
    info: mne.Info,
    trans: Path,
    src: Path,
    bem: Path,
    variation: HeadVariation,
    *,
    progress: Progress | None = None,
) -> HeadModel:
    """A subject's head under varied sensors; its conductivities are those of the BEM solution, whatever the variation says.

    Parameters
    ----------
    info, trans, src, bem : as for `build_subject`

    Raises
    ------
    HeadModelError
        A file cannot be read or is of another kind; sensors have no position.
    """
    return build_subject(
        info=varied_info(info, variation), trans=trans, src=src, bem=bem, name="varied subject", progress=progress
    )


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector))


def _nominal_conductivity(nominal: HeadModel) -> tuple[float, float, float]:
    brain, skull, scalp = (float(value) for value in nominal.recipe["conductivity"])  # type: ignore[union-attr]
    return brain, skull, scalp
