"""What a network is given of a head: the same arrays in training and in the live chain, from this one place.

Importing this module imports torch; the chain of a classical solver must not.
"""

from __future__ import annotations

from collections.abc import Collection

import mne
import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.channels import ChannelType, Modality
from rt_mmdf.core.errors import SolverError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.whitener import Whitener
from rt_mmdf.networks.interface import EEG, GRAD, MAG, ForwardArrays

KIND_CODES = {ChannelType.EEG: EEG, ChannelType.MAG: MAG, ChannelType.GRAD: GRAD}
LAYOUT_CENTRE_M = (0.0, 0.0, 0.04)  # head coordinates; directions to the sensors are taken from here (middle of the head)


def forward_arrays(head: HeadModel, whitener: Whitener, used: Collection[str]) -> ForwardArrays:
    """Whitened leadfield, layout and cortex of a head, for the channels of a whitener in their order.

    Parameters
    ----------
    head : knows all channels of the whitener
    whitener : of the noise, projectors and average reference included
    used : names of the channels that enter; the whitener's rows of the others are zero

    Raises
    ------
    HeadModelError
        The head lacks channels.
    SolverError
        A channel is neither EEG nor MEG, or none is used.
    """
    channels = whitener.channels
    if strangers := [name for name, kind in zip(channels.names, channels.types, strict=True) if kind not in KIND_CODES]:
        raise SolverError(
            f"network: {len(strangers)} channels are neither EEG nor MEG ({', '.join(strangers[:5])}); leave them out, only "
            "EEG and MEG are imaged."
        )
    entering = np.isin(channels.names, list(used))
    if not entering.any():
        raise SolverError(f"network: none of the {len(channels)} channels is used; check the list of bad channels.")
    gain = head.leadfield(channels.names)
    left, right = head.source_triangles
    n_left = len(head.hemispheres[0].source_vertices)
    return ForwardArrays(
        leadfield=whitened_field(whitener.matrix, gain),
        used=entering,
        rank=whitener.rank,
        kinds=np.array([KIND_CODES[kind] for kind in channels.types], dtype=np.int64),
        layout=sensor_layout(head)[head.rows(channels.names)],
        positions_mm=head.source_positions_mm.astype(np.float32),
        triangles=np.vstack([left, right + n_left]).astype(np.int64),
        n_left=n_left,
    )


def whitened_field(matrix: NDArray[np.float64], gain: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n_channels, n_sources) float32: whitened field of 1 nA m, from a whitener and a leadfield in SI units."""
    return np.asarray(matrix @ gain * 1e-9, dtype=np.float32)


def sensor_layout(head: HeadModel) -> NDArray[np.float32]:
    """(n_channels, 2): the sensors from above, x to the right, y to the nose, each modality within its unit circle.

    Azimuthal equidistant about the middle of the head: distance from the vertex is the angle from the vertical.
    """
    places = np.array([channel["loc"][:3] for channel in head.info["chs"]], dtype=float)
    meg = head.channels.of_modality(Modality.MEG)
    if len(meg) and head.info["dev_head_t"] is not None:
        places[meg] = mne.transforms.apply_trans(head.info["dev_head_t"], places[meg])
    x, y, z = (places - LAYOUT_CENTRE_M).T
    angle = np.arctan2(np.hypot(x, y), z)
    azimuth = np.arctan2(y, x)
    layout = angle[:, None] * np.column_stack([np.cos(azimuth), np.sin(azimuth)])
    for modality in head.channels.modalities:
        rows = head.channels.of_modality(modality)
        layout[rows] /= angle[rows].max()
    return np.asarray(layout, dtype=np.float32)
