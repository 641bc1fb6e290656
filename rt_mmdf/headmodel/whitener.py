"""The joint whitener of EEG and MEG: noise covariance, projectors and average reference in one symmetric matrix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass

import mne
import numpy as np
from mne.proj import make_eeg_average_ref_proj
from numpy.typing import NDArray

from rt_mmdf.core.channels import Channels
from rt_mmdf.core.errors import NoiseCovarianceError
from rt_mmdf.headmodel.noise import check_noise_cov

EEG_AVERAGE_REFERENCE = 10  # kind of such a projector in FIF (FIFFV_PROJ_ITEM_EEG_AVREF)


@dataclass(frozen=True)
class Whitener:
    """Joint, rank-aware whitener of all imaged channels, projectors included.

    matrix : (n_channels, n_channels) float64
        Symmetric form (``pca=False``): a whitened channel lies where its sensor lies. Rows and columns of channels that
        are bad or missing are zero. ``matrix @ data`` has unit noise covariance on its `rank` dimensions.
    rank : int
        Dimensions that carry signal (channels less projectors, average reference included).
    """

    channels: Channels
    matrix: NDArray[np.float64]
    rank: int


def make_whitener(
    channels: Channels,
    used: Collection[str],
    info: mne.Info,
    noise_cov: mne.Covariance,
    projs: Sequence[mne.Projection] = (),
) -> Whitener:
    """Whitener of `channels`; those that are not in `used` get zero rows and columns.

    Parameters
    ----------
    channels : what the rows and columns of the matrix stand for
    used : names that enter, all of them in `channels` and `info`
    info : mne.Info, for the types of the channels
    noise_cov : of at least the used channels; regularise it before (`rt_mmdf.headmodel.noise.regularised`)
    projs : SSP projectors; the average reference of the used EEG channels is added

    Raises
    ------
    NoiseCovarianceError
        The covariance lacks used channels, is not finite, or has no rank.

    Notes
    -----
    Equal to ``mne.cov.compute_whitener(pca=False)`` on the used channels: tests/headmodel/test_whitener.py.
    """
    return whitener_and_colorer(channels, used, info, noise_cov, projs)[0]


def whitener_and_colorer(
    channels: Channels,
    used: Collection[str],
    info: mne.Info,
    noise_cov: mne.Covariance,
    projs: Sequence[mne.Projection] = (),
) -> tuple[Whitener, NDArray[np.float64]]:
    """As `make_whitener`, with the symmetric pseudo-inverse of the whitener's matrix, (n_channels, n_channels)."""
    names = [name for name in channels.names if name in set(used)]
    check_noise_cov(noise_cov, names)
    picked = imaging_info(info, names, projs)
    try:
        matrix, ordered, rank, colorer = mne.cov.compute_whitener(
            noise_cov, picked, pca=False, return_rank=True, return_colorer=True, verbose="ERROR"
        )
    except (ValueError, RuntimeError) as error:
        raise NoiseCovarianceError(
            f"noise covariance: {len(picked['projs'])} projectors leave nothing of the {len(names)} used channels, or it "
            f"does not fit them (mne: {error}). Use more channels or fewer projectors."
        ) from error
    if rank == 0 or not np.isfinite(matrix).all():
        raise NoiseCovarianceError(
            f"noise covariance: rank {rank} on {len(names)} channels after projection; at least 1 is expected. Measure it "
            "again (rt-mmdf calibrate) or use the ad hoc one."
        )
    at = np.ix_(channels.indices(ordered), channels.indices(ordered))
    whole, back = np.zeros((2, len(channels), len(channels)))
    whole[at], back[at] = matrix, colorer
    return Whitener(channels, whole, int(rank)), back


def imaging_info(info: mne.Info, names: Sequence[str], projs: Sequence[mne.Projection]) -> mne.Info:
    """A copy of `info` with these channels in this order, none bad, the projectors and the average reference.

    `info` and `projs` stay as they are.
    """
    place = {name: i for i, name in enumerate(info["ch_names"])}
    picked = mne.pick_info(info, [place[name] for name in names])
    picked["bads"] = []
    # one reference for the channels that are used: a stored one may count channels that are bad today
    kept = [deepcopy(proj) for proj in projs if proj["kind"] != EEG_AVERAGE_REFERENCE]
    kept = [proj for proj in kept if set(proj["data"]["col_names"]) & set(names)]
    if "eeg" in picked.get_channel_types(unique=True):
        kept.append(make_eeg_average_ref_proj(picked, activate=False, verbose="ERROR"))
    picked["projs"].clear()
    picked["projs"].extend(kept)
    return picked
