"""What every network is given and what it gives: the arrays of a head under a noise, a batch, a source map.

Everything here is whitened: a channel of unit noise variance, the projectors applied, rows of channels that are not used
zero. Moments are in nA m, so that single precision and the optimisers see numbers near one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

EEG, MAG, GRAD = 0, 1, 2  # codes of `ForwardArrays.kinds`

Option = int | float | str | bool  # of a network: what a manifest can hold


@dataclass(frozen=True, eq=False)
class ForwardArrays:
    """What a network may know of a head, its sensors and their noise: the very arrays that the live chain uses.

    leadfield : (n_channels, n_sources) float32
        Whitened field of sources of 1 nA m normal to the cortex; rows of channels that are not used are zero.
    used : (n_channels,) bool
    rank : dimensions that the whitener leaves
    kinds : (n_channels,) int64, EEG 0, magnetometer 1, gradiometer 2
    layout : (n_channels, 2) float32, the sensors' 2-D layout seen from above, x to the right, y to the nose, unit circle
    positions_mm : (n_sources, 3) float32, MRI (surface RAS)
    triangles : (n_triangles, 3) int64, mesh between the sources of both hemispheres
    n_left : sources of the left hemisphere, which come first
    """

    leadfield: NDArray[np.float32]
    used: NDArray[np.bool_]
    rank: int
    kinds: NDArray[np.int64]
    layout: NDArray[np.float32]
    positions_mm: NDArray[np.float32]
    triangles: NDArray[np.int64]
    n_left: int

    @property
    def n_channels(self) -> int:
        return int(self.leadfield.shape[0])

    @property
    def n_sources(self) -> int:
        return int(self.leadfield.shape[1])


@dataclass(frozen=True, eq=False)
class Batch:
    """Labelled samples of one scene, on one device.

    sample : (n, n_channels) float32, whitened, at the instant that is imaged
    window : (n, n_channels, n_times) float32 | None, about 100 Hz; one of its columns is `sample`
    vertices : (n, n_entries) int64, sources that are active, 0 where `moments` is 0 (padding)
    moments : (n, n_entries) float32, nA m at the instant; a source may occur twice, its moments add up
    centres : (n, n_patches) int64, sources nearest to the centres of the patches, -1 where there are fewer patches
    centres_mm : (n, n_patches, 3) float32, where the centres truly are, NaN where there are fewer
    snr_db : (n,) float32, joint, of the instant
    """

    sample: Tensor
    window: Tensor | None
    vertices: Tensor
    moments: Tensor
    centres: Tensor
    centres_mm: Tensor
    snr_db: Tensor

    def __len__(self) -> int:
        return int(self.sample.shape[0])

    def dense(self, n_sources: int) -> Tensor:
        """(n, n_sources) float32, nA m: the truth with its zeros."""
        truth = self.moments.new_zeros(len(self), n_sources)
        return truth.scatter_add_(1, self.vertices, self.moments)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{key: value.to(device) for key, value in moved.items() if value is not None})


@dataclass(frozen=True, eq=False)
class SourceMap:
    """What a network says.

    moments : (n, n_sources), nA m, signed
    deviation : (n, n_sources) | None, posterior standard deviation, nA m, of networks that know one
    """

    moments: Tensor
    deviation: Tensor | None = None


class SourceNetwork(nn.Module, ABC):
    """A network from whitened sensors to source moments.

    `prepare` turns a head under a noise into what `forward` needs (operators, masks); it is called once for each head, noise
    or set of channels, off the hot path. Weights depend on none of these for networks that are `head_free`.

    options : plain values from which `from_arrays` makes the same network again, weights aside
    n_times : columns of the window (about 100 Hz) that it makes use of; 1 for networks that see one sample
    mixed_precision : whether it may be trained in bfloat16; not where matrices are factorised
    """

    kind: ClassVar[str]
    head_free: ClassVar[bool] = False
    mixed_precision: ClassVar[bool] = False
    options: dict[str, Option]
    n_times: int = 1

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: ForwardArrays, **options: Option) -> Self:
        """A network with fresh weights for these arrays; `rt_mmdf.networks.build` checks the options before.

        ValueError where arrays or values do not fit.
        """

    @abstractmethod
    def prepare(self, arrays: ForwardArrays, device: torch.device | str = "cpu") -> Any:
        """Operators of one head, noise and set of channels. ValueError where they do not fit the network."""

    @abstractmethod
    def forward(self, sample: Tensor, window: Tensor | None, prepared: Any) -> SourceMap:
        """Image samples.

        Parameters
        ----------
        sample : (n, n_channels)
        window : (n or 1, n_channels, n_times) | None; a window of 1 serves all samples
        prepared : of `prepare`
        """

    @abstractmethod
    def loss(self, batch: Batch, prepared: Any) -> Tensor:
        """Scalar to be minimised, mean over the batch."""
