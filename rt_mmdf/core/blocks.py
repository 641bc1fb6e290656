"""What flows: blocks of raw samples, blocks of sensors on the common grid, source estimates. All immutable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.channels import Channels, Modality

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Flag(IntFlag):
    """What is known to be wrong with one sample on the grid. 0 means nothing is.

    The values are on the wire (companion stream): never renumber.
    """

    EEG_MISSING = 1  # no EEG for this sample: late beyond the budget, lost, or not connected
    MEG_MISSING = 2
    GAP = 4  # first sample after a hole in a stream, or a sample inside one
    NONFINITE = 8  # NaN or infinity arrived in at least one channel; it was replaced before the filters
    SETTLING = 16  # a filter restarted less than its settling time ago
    OPERATOR_PENDING = 32  # the operator for these bad channels is being built, or cannot be (see health)
    CLOCK_UNCERTAIN = 64  # alignment uncertainty above the configured limit, or a sample without a usable time stamp
    INVALID = 128  # not an estimate: must not be shown or used (data are NaN)
    FALLBACK = 256  # imaged by the fallback solver (engine/fallback of the description), since the first one was too slow
    CHANNEL_SUSPECT = 512  # a channel that is imaged has jumped or fallen silent; it is found bad soon, or forgotten


MISSING = {Modality.EEG: Flag.EEG_MISSING, Modality.MEG: Flag.MEG_MISSING}


@dataclass(frozen=True, slots=True)
class RawBlock:
    """Samples of one stream as they were received: SI units, raw stamps of the sender's clock.

    data : (n_channels, n_times) float32, SI units
    stamps : (n_times,) float64, seconds on the SENDER's LSL clock, exactly as they came
    received : (n_times,) float64, seconds on this machine's LSL clock when each sample was pulled
    first : index of the first sample, counting every sample that was received since the stream was opened
    lost : samples that were overwritten in the ring before this block was read (0 in a healthy engine)
    """

    data: Float32
    stamps: Float64
    received: Float64
    first: int
    lost: int = 0

    @property
    def n_times(self) -> int:
        return int(self.data.shape[1])


@dataclass(frozen=True, slots=True)
class SensorBlock:
    """All imaged channels on the common grid.

    data : (n_channels, n_times) float32, SI units (V, T, T/m); NaN where a modality is missing
    times : (n_times,) float64, seconds on this machine's LSL clock
    flags : (n_times,) uint32 of `Flag`
    received : (n_times,) float64, when the last sample that this grid sample needed was received
    first : absolute index of the first sample on the grid
    bads : names of the channels that are known to be bad and must not be imaged
    """

    channels: Channels
    data: Float32
    times: Float64
    flags: NDArray[np.uint32]
    received: Float64
    first: int
    bads: frozenset[str] = frozenset()

    @property
    def n_times(self) -> int:
        return int(self.data.shape[1])

    @property
    def stop(self) -> int:
        """Absolute index one past the last sample."""
        return self.first + self.n_times


@dataclass(frozen=True, slots=True)
class StageStamps:
    """When a hop passed each stage, seconds on this machine's LSL clock. Every estimate carries one.

    sensor : sensor time of the last sample of the hop
    intended : when the hop could have been complete if nothing but physics took time (sensor time of its last sample,
        look-ahead of the resampler, fill of the slowest stream's chunk)
    received : the last sample that the hop needed was pulled from the network
    aligned, preprocessed, solved : the hop left that stage
    published : the hop was handed to the outlet
    """

    sensor: float
    intended: float
    received: float
    aligned: float
    preprocessed: float
    solved: float
    published: float = float("nan")

    NAMES = ("sensor", "intended", "received", "aligned", "preprocessed", "solved", "published")

    def as_tuple(self) -> tuple[float, ...]:
        """The stamps in the order of `NAMES`."""
        return tuple(getattr(self, name) for name in self.NAMES)


@dataclass(frozen=True, slots=True)
class SourceEstimate:
    """Cortical activity of one hop.

    data : (n_sources, n_times) float32 in `unit`; NaN where ``flags & Flag.INVALID``
    times : (n_times,) float64, sensor time that is imaged, seconds on this machine's LSL clock
    flags : (n_times,) uint32 of `Flag`
    first : absolute index of the first sample on the (decimated) grid
    hop : running number of the hop, skipped hops included
    unit : "A m" for moments (MNE, eLORETA), "" for standardised maps (dSPM, sLORETA)
    """

    data: Float32
    times: Float64
    flags: NDArray[np.uint32]
    first: int
    hop: int
    unit: str
    stamps: StageStamps

    @property
    def n_times(self) -> int:
        return int(self.data.shape[1])
