"""What the networks that see sensors as pictures share: the picture, the unit of their output, their loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from rt_mmdf.networks.grids import grid_shape, sensor_cells
from rt_mmdf.networks.interface import EEG, GRAD, MAG, Batch, ForwardArrays, Option, SourceMap, SourceNetwork

EEG_KINDS: tuple[int, ...] = (EEG,)
LOSSES = ("mse", "relative")


class SensorPicture(nn.Module):
    """Puts some channels on a grid, padded centrally to a canvas; cells without a sensor are 0.

    The places are part of the weights: a head measured on another day images with the very grid it was trained on.

    Parameters
    ----------
    channels : rows of the sample that are on the grid
    layout : (n_channels, 2), of all rows
    shape : rows, columns of the grid
    canvas : rows, columns of the picture, at least `shape`
    """

    channel: Tensor
    there: Tensor

    def __init__(
        self, channels: Sequence[int], layout: np.ndarray, shape: tuple[int, int], canvas: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.canvas = canvas or shape
        top, left = ((whole - part) // 2 for whole, part in zip(self.canvas, shape, strict=True))
        row, column = np.divmod(sensor_cells(layout[list(channels)], shape), shape[1])
        cells = (row + top) * self.canvas[1] + column + left
        channel = np.zeros(self.canvas[0] * self.canvas[1], dtype=np.int64)
        there = np.zeros(len(channel), dtype=np.float32)
        channel[cells], there[cells] = channels, 1
        self.register_buffer("channel", torch.from_numpy(channel))
        self.register_buffer("there", torch.from_numpy(there))

    @property
    def channels(self) -> Tensor:
        """Rows of the sample that are on the grid."""
        return self.channel[self.there > 0]

    def forward(self, sample: Tensor) -> Tensor:
        """(n, n_channels) -> (n, 1, rows, columns)."""
        picture = sample.index_select(1, self.channel) * self.there
        return picture.reshape(-1, 1, *self.canvas)


def meg_kinds(arrays: ForwardArrays) -> tuple[int, ...]:
    """Kinds of the MEG channels that make a picture: magnetometers where there are any, else gradiometers."""
    return (MAG,) if (arrays.kinds == MAG).any() else (GRAD,)


def channels_of(arrays: ForwardArrays, kinds: Sequence[int], what: str) -> list[int]:
    """Rows of some kinds; ValueError where there are none."""
    channels = np.flatnonzero(np.isin(arrays.kinds, kinds)).tolist()
    if not channels:
        raise ValueError(f"network: the head has {arrays.n_channels} channels, none of them {what}. Choose another network.")
    return channels


def fitted_shape(n_sensors: int, given: tuple[int, int], published: tuple[int, int]) -> tuple[int, int]:
    """The shape that was asked for, or with zeros in it one that the sensors fit in, the published one where it does."""
    return given if min(given) > 0 else grid_shape(n_sensors, published)


@dataclass(frozen=True, eq=False)
class PreparedPictures:
    """What a head and its noise mean to a network of pictures.

    there : (n_channels,) 1 for channels that are used
    unit : nA m, the median over the sources of the moment whose whitened field has a size of 1 (`PictureNetwork.measure`)
    """

    there: Tensor
    unit: float


class PictureNetwork(SourceNetwork):
    """From one whitened sample, as pictures, to the moments of a fixed number of sources.

    The sample is divided by its own scale, and the output multiplied by it and by a unit that the whitened leadfield gives:
    the network itself sees and says numbers near one, whatever the level of the noise. Missing channels are zeros.

    Parameters
    ----------
    arrays : of the head that it is for
    loss : "mse": squared error of a sample, in its unit, summed over the sources (the published mean times their number);
        "relative": that over the truth's own sum of squares, so that wide patches, whose moment is spread over many sources,
        weigh as much as dipoles do
    """

    mixed_precision = True

    def __init__(self, arrays: ForwardArrays, loss: str) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"network {self.kind}: loss {loss!r} seen; expected one of {', '.join(LOSSES)}.")
        self.n_sources = arrays.n_sources
        self.n_channels = arrays.n_channels
        self.is_relative = loss == "relative"

    @classmethod
    def from_arrays(cls, arrays: ForwardArrays, **options: Option) -> Self:
        """See `rt_mmdf.networks.interface.SourceNetwork.from_arrays`."""
        return cls(arrays, **options)  # type: ignore[arg-type]  # types are checked by `rt_mmdf.networks.build`

    @property
    @abstractmethod
    def pictures(self) -> Sequence[SensorPicture]:
        """What it sees."""

    @abstractmethod
    def measure(self, sample: Tensor) -> Tensor:
        """(n, n_channels) -> (n, 1): size of each sample, before any floor."""

    @abstractmethod
    def scale(self, sample: Tensor) -> Tensor:
        """(n, n_channels) -> (n, 1): what each sample is divided by."""

    @abstractmethod
    def answer(self, sample: Tensor) -> Tensor:
        """Scaled samples (n, n_channels) -> (n, n_sources), in their units."""

    @torch.no_grad()
    def prepare(self, arrays: ForwardArrays, device: torch.device | str = "cpu") -> PreparedPictures:
        """ValueError where head and network do not fit."""
        if arrays.n_sources != self.n_sources:
            raise ValueError(
                f"network {self.kind}: {self.n_sources} sources; the head has {arrays.n_sources}. It images with the head "
                "it was trained for: use that one, or train for this head."
            )
        if arrays.n_channels != self.n_channels:
            raise ValueError(
                f"network {self.kind}: {self.n_channels} channels; the head has {arrays.n_channels}. Train for this array."
            )
        there = torch.from_numpy(arrays.used.astype(np.float32))
        fields = torch.from_numpy(np.ascontiguousarray(arrays.leadfield.T)) * there
        sizes = self.measure(fields.to(next(self.buffers()).device))
        # where none of its channels is used, any unit will do: it sees zeros
        unit = float((1 / sizes).median()) if bool((sizes > 0).any()) else 1.0
        return PreparedPictures(there.to(device), unit)

    def forward(self, sample: Tensor, window: Tensor | None, prepared: PreparedPictures) -> SourceMap:
        """Image samples; the window is not looked at."""
        output, unit = self._answer_and_unit(sample, prepared)
        return SourceMap(output.to(sample.dtype) * unit)

    def loss(self, batch: Batch, prepared: PreparedPictures) -> Tensor:
        """Squared error in units of the network; see the class. Samples without any of its channels count nothing."""
        output, unit = self._answer_and_unit(batch.sample, prepared)
        seen = self.measure(batch.sample * prepared.there).squeeze(1) > 0
        # dense, though the truth is sparse: 500 x 5124 take 58 ms with their gradient, by gathering 88 and by sorting 207
        truth = batch.dense(self.n_sources) / unit
        error = (output.to(truth.dtype) - truth).square().sum(dim=1)
        if self.is_relative:
            error = error / truth.square().sum(dim=1).clamp_min(1e-6)
        return torch.where(seen, error, 0.0).mean()

    def _answer_and_unit(self, sample: Tensor, prepared: PreparedPictures) -> tuple[Tensor, Tensor]:
        there = sample * prepared.there
        scale = self.scale(there)
        return self.answer(there / scale), scale * prepared.unit


def quiet_output(n_inputs: int, n_sources: int) -> nn.Linear:
    """The last layer, which begins with silence: most sources are silent, and teaching it that first kills hidden units."""
    layer = nn.Linear(n_inputs, n_sources)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
