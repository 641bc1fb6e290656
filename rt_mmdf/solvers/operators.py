"""From a head, a noise covariance and the channels that can be used today to a whitener and its solver."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import mne
import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.errors import SolverError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.whitener import imaging_info, make_whitener, whitener_and_colorer
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.lcmv import lcmv_kernel
from rt_mmdf.solvers.linear import LinearSolver, SolverSettings, sensor_kernel


def usable_channels(
    head: HeadModel,
    channels: Channels,
    bads: Collection[str] = (),
    missing_modalities: Collection[Modality] = (),
) -> frozenset[str]:
    """Names of the channels that can be imaged: EEG or MEG, in the head, not bad, of a modality that is there.

    A single EEG channel is left out: its average reference is itself.
    """
    own = set(head.ch_names)
    used = {
        name: kind.modality
        for name, kind in zip(channels.names, channels.types, strict=True)
        if kind.modality is not None and kind.modality not in missing_modalities and name in own and name not in bads
    }
    if list(used.values()).count(Modality.EEG) == 1:
        used = {name: modality for name, modality in used.items() if modality is not Modality.EEG}
    return frozenset(used)


def channels_to_use(
    head: HeadModel,
    channels: Channels,
    bads: Collection[str],
    missing_modalities: Collection[Modality],
    solver: str,
) -> frozenset[str]:
    """As `usable_channels`; SolverError, with the name of the solver, where none is left."""
    used = usable_channels(head, channels, bads, missing_modalities)
    if not used:
        lacking = head.missing(channels.names)
        gone = ", ".join(sorted(missing_modalities)) or "none"
        raise SolverError(
            f"{solver}: none of the {len(channels)} channels can be imaged: {len(lacking)} are not in the head "
            f"model {head.name!r} ({', '.join(lacking[:5]) or 'none'}), {len(set(bads) & set(channels.names))} are bad, "
            f"missing modalities: {gone}. Expected: at least one MEG or two EEG channels."
        )
    return used


def build_operator(
    head: HeadModel,
    channels: Channels,
    noise_cov: mne.Covariance,
    projs: Sequence[mne.Projection] = (),
    settings: SolverSettings | None = None,
    bads: Collection[str] = (),
    missing_modalities: Collection[Modality] = (),
) -> Operator:
    """Whitener and classical solver for the channels that can be used now; for LCMV see `build_beamformer`.

    Nothing that is given is changed, so this may run beside the chain that uses the current operator.

    Parameters
    ----------
    channels : rows of the data that will come, in their order; those that cannot be imaged get weight zero
    noise_cov : of at least the used channels, regularised if it needs to be
    projs : SSP projectors; the average reference of the used EEG channels is added
    bads, missing_modalities : what must not be used; channels that the head lacks are left out as well

    Raises
    ------
    SolverError
        No channel is left, or mne cannot make the inverse.
    NoiseCovarianceError
        The covariance lacks used channels or has no rank on them.
    """
    settings = settings or SolverSettings()
    used = channels_to_use(head, channels, bads, missing_modalities, settings.method)
    names = [name for name in channels.names if name in used]
    whitener, colorer = whitener_and_colorer(channels, used, head.info, noise_cov, projs)
    info = imaging_info(head.info, names, projs)
    forward = mne.pick_channels_forward(head.forward, names, ordered=True, verbose="ERROR")
    kernel = sensor_kernel(forward, info, noise_cov, settings)
    # kernel = (kernel C) W with C the pseudo-inverse of the whitener W: exact, since the rows of the kernel lie in W's range
    whitened = np.zeros((*kernel.shape[:2], len(channels)))
    rows = channels.indices(names)
    whitened[:, :, rows] = kernel @ colorer[np.ix_(rows, rows)]
    return Operator(whitener, LinearSolver(whitened, settings.unit), used)


def build_beamformer(
    head: HeadModel,
    channels: Channels,
    noise_cov: mne.Covariance,
    data_cov: NDArray[np.float64],
    projs: Sequence[mne.Projection] = (),
    settings: SolverSettings | None = None,
    bads: Collection[str] = (),
    missing_modalities: Collection[Modality] = (),
) -> Operator:
    """Whitener and LCMV beamformer for the channels that can be used now, sources normal to the cortex.

    Parameters
    ----------
    data_cov : (n_channels, n_channels), squared SI units, of `channels`; rows of channels that are not used do not matter
    others : as `build_operator`

    Raises
    ------
    SolverError, NoiseCovarianceError
        As `build_operator`.
    """
    settings = settings or SolverSettings(method="LCMV")
    used = channels_to_use(head, channels, bads, missing_modalities, "LCMV")
    names = [name for name in channels.names if name in used]
    whitener = make_whitener(channels, used, head.info, noise_cov, projs)
    rows = channels.indices(names)
    matrix = whitener.matrix[np.ix_(rows, rows)]
    kernel = lcmv_kernel(
        matrix @ head.leadfield(names),
        matrix @ data_cov[np.ix_(rows, rows)] @ matrix.T,
        whitener.rank,
        settings.lcmv.reg,
        settings.lcmv.weight_norm,
    )
    whitened = np.zeros((1, len(kernel), len(channels)))
    whitened[0][:, rows] = kernel
    return Operator(whitener, LinearSolver(whitened, settings.unit), used)
