"""Fewer samples of an estimate, or of sensors, without hiding what they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Flag, Float32, Float64, SensorBlock, SourceEstimate
from rt_mmdf.sinks.settings import Reduction

INVALID = np.uint32(Flag.INVALID)


@dataclass(frozen=True)
class Rows:
    """Samples to publish.

    data : (n_rows, n_sources or n_channels) float32, NaN where ``flags & Flag.INVALID``
    times : (n_rows,) float64, of the last estimate of each interval
    flags : (n_rows,) uint32, of all estimates of the interval together
    index : (n_rows,) int64, absolute index of the last estimate of the interval
    """

    data: Float32
    times: Float64
    flags: NDArray[np.uint32]
    index: NDArray[np.int64]


class Reducer:
    """One row for each `decimation` estimates (or samples of sensors), at absolute indices ``decimation - 1``,
    ``2 * decimation - 1``, and so on.

    An interval with an INVALID estimate is INVALID, and so is one of which samples are missing (start, skipped hops), except
    that `latest` needs only the last. What comes out does not depend on how the estimates were cut into hops.
    """

    def __init__(self, n_sources: int, decimation: int, reduction: Reduction) -> None:
        self._n_sources = n_sources
        self._decimation = decimation
        self._reduction = reduction
        self.reset()

    def reset(self) -> None:
        self._next = -1
        self._begin()

    def _begin(self) -> None:
        self._n = 0
        self._flags = np.uint32(0)
        self._sum = np.zeros(self._n_sources)
        self._peak = np.zeros(self._n_sources, dtype=np.float32)

    def __call__(self, estimate: SourceEstimate | SensorBlock) -> Rows:
        index = np.arange(estimate.first, estimate.first + estimate.n_times)
        if self._decimation == 1:
            return _rows(np.ascontiguousarray(estimate.data.T), estimate.times, estimate.flags, index)
        if estimate.first != self._next:
            self._begin()
        self._next = estimate.first + estimate.n_times
        emitted: list[tuple[Float32, np.uint32, int]] = []
        start = 0
        while start < estimate.n_times:
            left = self._decimation - (estimate.first + start) % self._decimation
            stop = min(estimate.n_times, start + left)
            self._take(estimate.data[:, start:stop], estimate.flags[start:stop])
            if stop == start + left:
                emitted.append((*self._result(estimate.data[:, stop - 1]), stop - 1))
                self._begin()
            start = stop
        at = [last for _, _, last in emitted]
        data = np.array([row for row, _, _ in emitted], dtype=np.float32).reshape(len(emitted), self._n_sources)
        return _rows(data, estimate.times[at], np.array([flags for _, flags, _ in emitted], dtype=np.uint32), index[at])

    def _take(self, data: Float32, flags: NDArray[np.uint32]) -> None:
        self._n += data.shape[1]
        self._flags |= np.bitwise_or.reduce(flags)
        if self._reduction is Reduction.RMS:
            self._sum += np.einsum("ij,ij->i", data, data, dtype=np.float64)
        elif self._reduction is Reduction.PEAK:
            for column in data.T:  # the first of equals wins, so that cuts make no difference
                self._peak = np.where(np.abs(column) > np.abs(self._peak), column, self._peak)

    def _result(self, latest: Float32) -> tuple[Float32, np.uint32]:
        if self._reduction is Reduction.LATEST:
            return latest, self._flags
        flags = self._flags if self._n == self._decimation else self._flags | INVALID
        if self._reduction is Reduction.PEAK:
            return self._peak, flags
        return np.sqrt(self._sum / max(self._n, 1)).astype(np.float32), flags


def _rows(data: Float32, times: Float64, flags: NDArray[np.uint32], index: NDArray[np.int64]) -> Rows:
    invalid = (flags & INVALID) != 0
    if invalid.any():
        data = np.where(invalid[:, None], np.float32(np.nan), data)
    return Rows(data, times, flags, index)
