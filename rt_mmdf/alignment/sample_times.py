"""Times of all samples of one stream, kept from the beginning, by all that is known of its clocks now."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.alignment.arrival import Timing, timeline_of
from rt_mmdf.alignment.time_map import TimeMap
from rt_mmdf.core.blocks import Float64, RawBlock
from rt_mmdf.lsl.interface import ClockOffset


class SampleTimes:
    """Numbers and times one channel of a stream, as the `Aligner` does, without a grid, and without the device's lag.

    Other than there, times are not fixed when a sample comes: the sender's clock is taken as it is known by now, so that the
    first samples profit from the later measurements. Samples before that clock was set are forgotten: their times cannot be
    compared.

    Parameters
    ----------
    sfreq : float
        Nominal sampling rate, Hz.
    stamping : str
        See `timeline_of`.
    name : str
        Of the stream, for messages.
    """

    def __init__(self, sfreq: float, stamping: Timing, name: str) -> None:
        self.sfreq = sfreq
        self._by_arrival = stamping == "arrival"
        self._timeline, self._clock = timeline_of(stamping, sfreq, name)
        self._map = TimeMap(sfreq, history=None)  # to the sender's time
        self._epoch = (0, 0)
        self._waiting: list[tuple[Float64, Float64]] = []
        self._index: list[NDArray[np.int64]] = []
        self._values: list[Float64] = []
        self._sd: list[tuple[int, float]] = []  # from this sample on, seconds

    @property
    def clock_known(self) -> bool:
        """Whether the sender's clock has been measured."""
        return self._clock.ready

    def add_offset(self, measured: ClockOffset) -> None:
        """Take a measurement of the sender's clock."""
        self._clock.add(measured)

    def add(self, block: RawBlock, row: int = 0) -> None:
        """Take samples, of which one channel is kept."""
        stamps = block.received if self._by_arrival else block.stamps
        self._waiting.append((stamps, block.data[row].astype(np.float64)))
        if not self._clock.ready:
            return
        stamps, values = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        while len(stamps):
            placement = self._timeline.place(stamps)
            if len(placement.keep):
                if (self._timeline.epoch, self._clock.steps) != self._epoch:
                    self._epoch = self._timeline.epoch, self._clock.steps
                    self._map.restart()
                    self._forget()
                if not self._map.ready:
                    self._bend(int(placement.index[0]))
                self._index.append(placement.index)
                self._values.append(values[placement.keep])
            if placement.knot:
                self._bend(self._timeline.next_index)
            stamps, values = stamps[placement.consumed :], values[placement.consumed :]
            if not placement.consumed:
                break
        self._waiting = [(stamps, values)]

    def _bend(self, index: int) -> None:
        interval = (1 + self._timeline.rate_error) / self.sfreq
        if self._map.bend(index, self._timeline.sender_time(index), interval):
            self._forget()
        self._sd.append((index, math.hypot(self._timeline.sender_time_sd(index), self._map.error / 2)))

    def _forget(self) -> None:
        self._index.clear()
        self._values.clear()
        self._sd.clear()

    def samples(self) -> tuple[NDArray[np.int64], Float64]:
        """Numbers and values of all samples that are placed."""
        if not self._index:
            return np.empty(0, np.int64), np.empty(0)
        return np.concatenate(self._index), np.concatenate(self._values)

    def times_at(self, position: Float64) -> Float64:
        """This machine's LSL time at these sample numbers (increasing, fractions allowed), seconds."""
        if not len(position):
            return np.empty(0)
        return np.array([self._clock.to_local(sender) for sender in self._map.times_at(position).tolist()])

    def sd_at(self, position: Float64) -> Float64:
        """Standard deviations of these times, seconds."""
        if not self._sd or not len(position):
            return np.full(len(position), np.inf)
        index, sd = (np.array(column) for column in zip(*self._sd, strict=True))
        counted = sd[np.maximum(np.searchsorted(index, position, side="right") - 1, 0)]
        clock = np.array([self._clock.sd(sender) for sender in self._map.times_at(position).tolist()])
        known: Float64 = np.hypot(counted, clock)
        return known
