"""LCMV beamformer: spatial filters from a running covariance of the data themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rt_mmdf.core.blocks import MISSING, Flag, SensorBlock
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.settings import Settings

UNFIT = np.uint32(Flag.GAP | Flag.NONFINITE | Flag.SETTLING | Flag.INVALID)  # such samples are not what the brain did
ANY_MISSING = np.uint32(Flag.EEG_MISSING | Flag.MEG_MISSING)
WeightNorm = Literal["unit-noise-gain", "none"]


class LcmvSettings(Settings):
    """How the beamformer adapts, and how strongly it is regularised.

    data_s : the data covariance is that of the last so many seconds of usable samples
    least_s : nothing is estimated from fewer
    refresh_s : how often the filters are computed anew, off the hot path
    reg : so many times the mean eigenvalue of the whitened data covariance is added to its diagonal. mne's 0.05 suits a head
        that is known well: where the leadfield is off by a few millimetres, strong sources cancel themselves. On the
        demonstration's recording (`rt-mmdf demo --method LCMV`, another head than the solver's) the error fell from 42 mm
        with 0.05 to 5 mm with 1, at the median.
    weight_norm : "unit-noise-gain": noise has standard deviation 1 in every source; "none": unit gain, amplitudes in A m
    """

    data_s: float = Field(20.0, gt=0, le=600)
    least_s: float = Field(5.0, gt=0, le=600)
    refresh_s: float = Field(2.0, ge=0.2, le=60)
    reg: float = Field(1.0, ge=0, le=100)
    weight_norm: WeightNorm = "unit-noise-gain"

    @model_validator(mode="after")
    def _spans_fit(self) -> LcmvSettings:
        if not max(self.least_s, self.refresh_s) <= self.data_s:
            raise ValueError(
                f"least_s = {self.least_s:g} and refresh_s = {self.refresh_s:g} must not exceed data_s = {self.data_s:g}"
            )
        return self


@dataclass(frozen=True, eq=False)
class _Part:
    """Sums over neighbouring samples that lack the same modalities: number, sum of each channel, sum of each product."""

    missing: frozenset[Modality]
    n: int
    total: NDArray[np.float64]
    scatter: NDArray[np.float64]


class DataCovariance:
    """Covariance of the cleaned sensors over the last seconds, in parts of `refresh_s`, oldest forgotten first.

    One thread calls it with every block; any other may ask `covariance`, which is made of whole parts only. Samples near
    gaps and restarts of the filters do not enter. What comes out does not depend on how the stream was cut.

    Parameters
    ----------
    channels : of the blocks
    settings : LcmvSettings
    sfreq : of the blocks, Hz
    on_refresh : called, in the thread of the blocks, whenever a part is complete and there is enough for an estimate
    """

    def __init__(
        self, channels: Channels, settings: LcmvSettings, sfreq: float, on_refresh: Callable[[], None] | None = None
    ) -> None:
        self.channels = channels
        self.on_refresh = on_refresh
        self._part_length = max(1, round(settings.refresh_s * sfreq))
        self._n_parts = max(1, round(settings.data_s / settings.refresh_s))
        self.n_least = max(2, round(settings.least_s * sfreq))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._closed: tuple[tuple[_Part, ...], ...] = ()
        self._open: dict[frozenset[Modality], _Part] = {}
        self._n_open = 0

    @property
    def n_samples(self) -> int:
        """Samples in the whole parts."""
        return sum(part.n for parts in self._closed for part in parts)

    def __call__(self, block: SensorBlock) -> None:
        """Take in a block of cleaned sensors."""
        usable = (block.flags & UNFIT) == 0
        usable &= (block.flags & ANY_MISSING) != ANY_MISSING
        data = block.data if usable.all() else block.data[:, usable]
        lacking = (block.flags if usable.all() else block.flags[usable]) & ANY_MISSING
        start = 0
        while start < data.shape[1]:
            stop = min(data.shape[1], start + self._part_length - self._n_open)
            for value in np.unique(lacking[start:stop]):
                self._add(int(value), data[:, start:stop][:, lacking[start:stop] == value])
            self._n_open += stop - start
            start = stop
            if self._n_open == self._part_length:
                self._close()

    def _add(self, lacking: int, data: NDArray[np.float32]) -> None:
        missing = frozenset(m for m in Modality if lacking & MISSING[m])
        values = data.astype(np.float64)
        for modality in missing:
            values[self.channels.of_modality(modality)] = 0.0
        held = self._open.get(missing)
        if held is None:
            n = len(self.channels)
            held = _Part(missing, 0, np.zeros(n), np.zeros((n, n)))
        held.scatter.__iadd__(values @ values.T)
        held.total.__iadd__(values.sum(axis=1))
        self._open[missing] = _Part(missing, held.n + values.shape[1], held.total, held.scatter)

    def _close(self) -> None:
        closed = deque(self._closed, maxlen=self._n_parts)
        closed.append(tuple(self._open.values()))
        self._closed = tuple(closed)  # replaced as a whole: a reader has the old or the new one
        self._open, self._n_open = {}, 0
        if self.on_refresh is not None and self.n_samples >= self.n_least:
            self.on_refresh()

    def covariance(self, missing: frozenset[Modality] = frozenset()) -> tuple[NDArray[np.float64], int] | None:
        """Covariance about the mean and the number of samples, of those that lack none but the `missing` modalities.

        Returns
        -------
        ((n_channels, n_channels) float64 in squared SI units, zero for missing modalities; n_samples)
        or None while there are fewer than `least_s` of them
        """
        parts = [part for whole in self._closed for part in whole if part.missing <= missing]
        n = sum(part.n for part in parts)
        if n < self.n_least:
            return None
        mean = np.sum([part.total for part in parts], axis=0) / n
        scatter = np.sum([part.scatter for part in parts], axis=0)
        covariance: NDArray[np.float64] = (scatter - n * np.outer(mean, mean)) / (n - 1)
        for modality in missing:
            rows = self.channels.of_modality(modality)
            covariance[rows] = 0.0
            covariance[:, rows] = 0.0
        return covariance, n


def lcmv_kernel(
    leadfield: NDArray[np.float64],
    data_cov: NDArray[np.float64],
    rank: int,
    reg: float,
    weight_norm: WeightNorm = "unit-noise-gain",
) -> NDArray[np.float64]:
    """Spatial filters for sources of fixed orientation.

    Parameters
    ----------
    leadfield : (n_channels, n_sources), whitened
    data_cov : (n_channels, n_channels), of the whitened data
    rank : dimensions that the whitener leaves
    reg, weight_norm : see `LcmvSettings`

    Returns
    -------
    (n_sources, n_channels), to be multiplied with whitened sensors; 0 for a source that no channel sees

    Notes
    -----
    Van Veen et al. (1997), doi 10.1109/10.623056. Equal to ``mne.beamformer.make_lcmv`` and ``apply_lcmv`` to rounding:
    tests/solvers/test_lcmv.py.
    """
    symmetric = (data_cov + data_cov.T) / 2
    values, vectors = np.linalg.eigh(symmetric)
    loaded = values + reg * np.abs(values).mean()
    kept = loaded > 1e-15 * loaded.max()
    if reg == 0:
        # the other dimensions are those that projectors took. Loaded, they do no harm, the leadfield has nothing there; and
        # of fewer samples than channels the smallest eigenvalues are not theirs alone
        kept &= np.arange(len(values)) >= len(values) - rank
    inverse = (vectors[:, kept] / loaded[kept]) @ vectors[:, kept].T
    kernel: NDArray[np.float64] = leadfield.T @ inverse
    gain = np.einsum("sc,cs->s", kernel, leadfield)
    seen = gain > 0
    kernel[seen] /= gain[seen, None]
    if weight_norm == "unit-noise-gain":
        length = np.linalg.norm(kernel, axis=1, keepdims=True)
        np.divide(kernel, length, out=kernel, where=length > 0)
    return kernel
