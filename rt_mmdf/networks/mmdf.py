"""MMDF-ESI, the seed: EEG and MEG as two pictures, fused early by squeeze-and-excitation.

Jiao, Yang, Xian, Fotedar & Liu (2024), doi 10.1109/TNSRE.2024.3424669; built from the description, not from their code.

    EEG 9 x 11, padded to 12 x 14     magnetometers 12 x 14
            |                                |
      Conv 1->8, 3 x 3, dilation 2     Conv 1->8, 3 x 3, dilation 2
      ReLU, MaxPool 3 x 3              ReLU, MaxPool 3 x 3
            |                                |
            +------ 16 maps of 10 x 12 ------+
                          |
             squeeze and excitation 16-8-16
                          |
               Linear 500, ReLU, Linear n_sources
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from rt_mmdf.networks.interface import ForwardArrays, Option
from rt_mmdf.networks.pictures import (
    EEG_KINDS,
    PictureNetwork,
    SensorPicture,
    channels_of,
    fitted_shape,
    meg_kinds,
    quiet_output,
)

EEG_SHAPE, MEG_SHAPE = (9, 11), (12, 14)  # for 59 electrodes and 102 magnetometers
MAPS = 8  # of each modality


class Branch(nn.Module):
    """One modality: its picture, convolution and pooling. (n, n_channels) -> (n, 8, rows - 2, columns - 2)."""

    def __init__(self, picture: SensorPicture) -> None:
        super().__init__()
        self.picture = picture
        self.convolution = nn.Conv2d(1, MAPS, kernel_size=3, stride=1, dilation=2, padding=1)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)

    def forward(self, sample: Tensor) -> Tensor:
        maps: Tensor = self.pool(torch.relu(self.convolution(self.picture(sample))))
        return maps


class SqueezeExcitation(nn.Module):
    """Scales each map by a weight that all maps decide on (Hu et al. 2018, doi 10.1109/CVPR.2018.00745)."""

    def __init__(self, n_maps: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(n_maps, n_maps // 2)
        self.excite = nn.Linear(n_maps // 2, n_maps)

    def forward(self, maps: Tensor) -> Tensor:
        weight = torch.sigmoid(self.excite(torch.relu(self.squeeze(maps.mean(dim=(2, 3))))))
        return maps * weight[:, :, None, None]


class MmdfNetwork(PictureNetwork):
    """The published network; 1,954,924 parameters for 1984 sources.

    Ours is what it is fed with: any montage (`rt_mmdf.networks.grids`); a whitened sample divided by
    max(1, RMS over its channels), which the output is multiplied by again. Of MEG, magnetometers where there are any.

    Parameters
    ----------
    arrays : of the head that it is for
    eeg_rows, eeg_columns, meg_rows, meg_columns : of the grids; 0: 9 x 11 and 12 x 14, more where the sensors need it
    hidden : units of the fully connected layer
    loss : see `PictureNetwork`
    """

    kind = "mmdf"
    sees_eeg: ClassVar[bool] = True
    sees_meg: ClassVar[bool] = True

    def __init__(
        self,
        arrays: ForwardArrays,
        *,
        eeg_rows: int = 0,
        eeg_columns: int = 0,
        meg_rows: int = 0,
        meg_columns: int = 0,
        hidden: int = 500,
        loss: str = "mse",
    ) -> None:
        super().__init__(arrays, loss)
        shapes: list[tuple[int, int]] = []
        channels: list[list[int]] = []
        sides: dict[str, Option] = {}
        if self.sees_eeg:
            channels.append(channels_of(arrays, EEG_KINDS, "EEG"))
            shapes.append(fitted_shape(len(channels[-1]), (eeg_rows, eeg_columns), EEG_SHAPE))
            sides |= {"eeg_rows": shapes[-1][0], "eeg_columns": shapes[-1][1]}
        if self.sees_meg:
            channels.append(channels_of(arrays, meg_kinds(arrays), "MEG"))
            shapes.append(fitted_shape(len(channels[-1]), (meg_rows, meg_columns), MEG_SHAPE))
            sides |= {"meg_rows": shapes[-1][0], "meg_columns": shapes[-1][1]}
        rows, columns = (max(lengths) for lengths in zip(MEG_SHAPE, *shapes, strict=True))
        self.branches = nn.ModuleList(
            Branch(SensorPicture(picked, arrays.layout, shape, (rows, columns)))
            for picked, shape in zip(channels, shapes, strict=True)
        )
        n_maps = MAPS * len(channels)
        self.attention = SqueezeExcitation(n_maps)
        self.hidden = nn.Linear(n_maps * (rows - 2) * (columns - 2), hidden)
        self.output = quiet_output(hidden, arrays.n_sources)
        self.options = {**sides, "hidden": hidden, "loss": loss}

    @property
    def pictures(self) -> Sequence[SensorPicture]:
        return [branch.picture for branch in self.branches if isinstance(branch, Branch)]

    def measure(self, sample: Tensor) -> Tensor:
        """RMS over the channels that it sees and that are there: zeros are missing channels."""
        seen = torch.cat([sample.index_select(1, picture.channels) for picture in self.pictures], dim=1)
        return torch.sqrt(seen.square().sum(dim=1, keepdim=True) / (seen != 0).sum(dim=1, keepdim=True).clamp_min(1))

    def scale(self, sample: Tensor) -> Tensor:
        """The gain: noise alone is not blown up to the size of a signal."""
        return self.measure(sample).clamp_min(1.0)

    def answer(self, sample: Tensor) -> Tensor:
        maps = self.attention(torch.cat([branch(sample) for branch in self.branches], dim=1))
        answer: Tensor = self.output(torch.relu(self.hidden(maps.flatten(1))))
        return answer


class MmdfEegNetwork(MmdfNetwork):
    """The same recipe, the MEG branch removed."""

    kind = "mmdf-eeg"
    sees_meg = False


class MmdfMegNetwork(MmdfNetwork):
    """The same recipe, the EEG branch removed."""

    kind = "mmdf-meg"
    sees_eeg = False
