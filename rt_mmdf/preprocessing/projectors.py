"""Projectors that the whitener contains: signal-space projection and the average EEG reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np
from mne.io.constants import FIFF

from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ConfigurationError

MIN_POWER = 0.5  # part of a projection vector that the channels at hand must hold


def read_projections(path: Path, key: str) -> list[mne.Projection]:
    """Projections of a -proj.fif, or of a recording in any format that mne reads.

    Parameters
    ----------
    key : of the setting that names the file, for the message

    Raises
    ------
    ConfigurationError
        None can be read from the file.
    """
    try:
        if path.name.endswith(("proj.fif", "proj.fif.gz")):
            return list(mne.read_proj(path, verbose="ERROR"))
        fif = path.name.endswith((".fif", ".fif.gz"))  # evoked fields and the like hold them, too
        read = mne.io.read_info(path, verbose="ERROR") if fif else mne.io.read_raw(path, verbose="ERROR").info
        return list(read["projs"])
    except Exception as error:  # mne's readers fail in many ways
        raise ConfigurationError(
            f"{key} {path}: no projections can be read from it ({type(error).__name__}: {error}). Expected is a -proj.fif, "
            "or a recording that holds them."
        ) from error


def make_projectors(
    channels: Channels, ssp: Sequence[mne.Projection] = (), average_reference: bool = True
) -> list[mne.Projection]:
    """The projections to build whitener and inverse operator with, restricted to `channels`, none of them active.

    They cost nothing in the stream: ``mne.cov.compute_whitener`` and ``mne.minimum_norm`` fold them into their matrices.
    Vectors for channels that are not there are cut and normalised again, as mne does; vectors for none of them are left out.

    Parameters
    ----------
    channels : Channels
        All imaged channels.
    ssp : sequence of mne.Projection
        For example ``info["projs"]``. An average reference among them is replaced by one for the channels at hand.
    average_reference : bool
        Add the average EEG reference, once, where there are at least two EEG channels.

    Raises
    ------
    ConfigurationError
        A projection was made for other channels: it leaves out channels of the type it is for, or most of it lies on
        channels that are not there.
    """
    projectors = []
    for projection in ssp:
        if projection["kind"] == FIFF.FIFFV_PROJ_ITEM_EEG_AVREF:
            continue
        if (restricted := _restrict(projection, channels)) is not None:
            projectors.append(restricted)
    eeg = [channels.names[i] for i in channels.of_modality(Modality.EEG)]
    if average_reference and len(eeg) > 1:
        vector = np.full((1, len(eeg)), len(eeg) ** -0.5)
        projectors.append(_projection(vector, eeg, "Average EEG reference", FIFF.FIFFV_PROJ_ITEM_EEG_AVREF))
    return projectors


def _restrict(projection: mne.Projection, channels: Channels) -> mne.Projection | None:
    names, vectors = list(projection["data"]["col_names"]), np.asarray(projection["data"]["data"], dtype=np.float64)
    at_hand = [i for i, name in enumerate(names) if name in channels]
    if not at_hand:
        return None
    touched = [i for i in at_hand if np.any(vectors[:, i])]
    types = {channels.types[channels.indices([names[i]])[0]] for i in touched}
    left_out = [
        name for name, kind in zip(channels.names, channels.types, strict=True) if kind in types and name not in set(names)
    ]
    where = f"projection {projection['desc']!r}"
    if left_out:
        kinds = ", ".join(sorted(str(kind) for kind in types if isinstance(kind, ChannelType)))
        raise ConfigurationError(
            f"{where}: says nothing about {len(left_out)} of the {kinds} channels ({', '.join(left_out[:5])}); a "
            "vector over all of them is expected. It was made for another array: compute it from a recording with these "
            "channels, or leave it out."
        )
    cut = vectors[:, at_hand]
    size = np.linalg.norm(cut, axis=1)
    power = float((size**2 / np.maximum((vectors**2).sum(axis=1), np.finfo(float).tiny)).min())
    if power < MIN_POWER:
        raise ConfigurationError(
            f"{where}: only {power:.0%} of its power lies on the {len(at_hand)} of its {len(names)} channels at hand, "
            f"at least {MIN_POWER:.0%} is expected. Compute it again from a recording with these channels, or leave it out."
        )
    return _projection(cut / size[:, None], [names[i] for i in at_hand], projection["desc"], projection["kind"])


def _projection(vectors: np.ndarray, names: list[str], desc: str, kind: int) -> mne.Projection:
    data = {"nrow": len(vectors), "ncol": len(names), "row_names": None, "col_names": names, "data": vectors}
    return mne.Projection(active=False, data=data, desc=desc, kind=kind)
