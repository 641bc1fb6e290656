"""ConvDip: one convolution over the electrodes as a picture, one hidden layer.

Hecker, Rupprecht, Tebartz van Elst & Kornmeier (2021), doi 10.3389/fnins.2021.569918.

    EEG 7 x 11 -> Conv 1->8, 3 x 3 -> ReLU -> Linear 512 -> ReLU -> Linear n_sources
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rt_mmdf.networks.interface import ForwardArrays
from rt_mmdf.networks.pictures import EEG_KINDS, PictureNetwork, SensorPicture, channels_of, fitted_shape, quiet_output

EEG_SHAPE = (7, 11)
FILTERS, HIDDEN = 8, 512


class ConvDipNetwork(PictureNetwork):
    """EEG alone. A sample is referenced to the average of its electrodes and divided by its largest magnitude.

    The amplitude, which that division takes away, is given back as with the other networks: the output is multiplied by the
    same largest magnitude. So the network is homogeneous (twice the sample, twice the moments), and noise alone gives a map
    as strong as a source of that field would. Ours: the sample is whitened, and the output is signed (linear), since sources
    normal to the cortex have a sign.

    Parameters
    ----------
    arrays : of the head that it is for
    rows, columns : of the grid; 0: 7 x 11, more where there are more than 77 electrodes
    hidden : units of the fully connected layer
    loss : see `PictureNetwork`
    """

    kind = "convdip"

    def __init__(
        self,
        arrays: ForwardArrays,
        *,
        rows: int = 0,
        columns: int = 0,
        hidden: int = HIDDEN,
        loss: str = "mse",
    ) -> None:
        super().__init__(arrays, loss)
        channels = channels_of(arrays, EEG_KINDS, "EEG")
        fits = len(channels) <= EEG_SHAPE[0] * EEG_SHAPE[1]
        shape = fitted_shape(len(channels), EEG_SHAPE if fits and min(rows, columns) < 1 else (rows, columns), EEG_SHAPE)
        if min(shape) < 3:
            raise ValueError(f"network convdip: a grid of {shape[0]} x {shape[1]}; at least 3 x 3 cells are expected.")
        self.picture = SensorPicture(channels, arrays.layout, shape)
        self.convolution = nn.Conv2d(1, FILTERS, kernel_size=3)
        self.hidden = nn.Linear(FILTERS * (shape[0] - 2) * (shape[1] - 2), hidden)
        self.output = quiet_output(hidden, arrays.n_sources)
        self.options = {
            "rows": shape[0],
            "columns": shape[1],
            "hidden": hidden,
            "loss": loss,
        }

    @property
    def pictures(self) -> Sequence[SensorPicture]:
        return [self.picture]

    def measure(self, sample: Tensor) -> Tensor:
        """Largest magnitude against the average reference."""
        return self._referenced(sample).abs().amax(dim=1, keepdim=True)

    def scale(self, sample: Tensor) -> Tensor:
        """Largest magnitude, 1e-6 for samples without EEG."""
        return self.measure(sample).clamp_min(1e-6)

    def answer(self, sample: Tensor) -> Tensor:
        maps = torch.relu(self.convolution(self.picture(self._referenced(sample))))
        answer: Tensor = self.output(torch.relu(self.hidden(maps.flatten(1))))
        return answer

    def _referenced(self, sample: Tensor) -> Tensor:
        """Electrodes less their average, everything else and missing electrodes (zeros) as they are."""
        on_grid = torch.zeros_like(sample[:1]).index_fill(1, self.picture.channels, 1.0)
        there = on_grid * (sample != 0)
        average = (sample * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True).clamp_min(1)
        return (sample - average) * there
