"""Preallocated ring of samples between one writer and one reader."""

from __future__ import annotations

import numpy as np

from rt_mmdf.core.blocks import Float32, Float64, RawBlock


class SampleRing:
    """The last `capacity` samples of a stream, with stamps; one thread writes, one reads, neither waits.

    The writer claims its slots before it fills them and counts them as written afterwards: a reader never sees half a
    block, and finds out after its copy what the writer may have touched meanwhile; that is reported as `RawBlock.lost`.

    Parameters
    ----------
    n_channels, capacity : int
        Allocated once: ``4 * n_channels * capacity`` bytes and two doubles a sample.
    """

    def __init__(self, n_channels: int, capacity: int) -> None:
        if n_channels < 1 or capacity < 1:
            raise ValueError(f"ring of {n_channels} channels and {capacity} samples: both must be positive")
        self.capacity = capacity
        # (capacity, n_channels): a block arrives sample by sample from the wire, so writing is one straight copy
        self._data = np.zeros((capacity, n_channels), dtype=np.float32)
        self._stamps = np.zeros(capacity)
        self._received = np.zeros(capacity)
        self._claimed = 0
        self._written = 0
        self._read = 0

    @property
    def n_written(self) -> int:
        """Samples written since the start."""
        return self._written

    @property
    def n_waiting(self) -> int:
        """Samples written and not yet read."""
        return self._written - self._read

    def write(self, data: Float32, stamps: Float64, received: float) -> None:
        """Append samples.

        Parameters
        ----------
        data : (n_times, n_channels) float32
        stamps : (n_times,) float64
        received : float
            When they were pulled, on this machine's LSL clock.
        """
        self._claimed = self._written + len(data)
        skip = max(0, len(data) - self.capacity)  # more than fits: the oldest are overwritten at once
        start = self._written + skip
        at = start % self.capacity
        head = min(len(data) - skip, self.capacity - at)
        for ring, values in ((self._data, data), (self._stamps, stamps)):
            ring[at : at + head] = values[skip : skip + head]
            ring[: len(data) - skip - head] = values[skip + head :]
        self._received[at : at + head] = received
        self._received[: len(data) - skip - head] = received
        self._written = self._claimed

    def read(self) -> RawBlock | None:
        """All samples that were not read yet, or None."""
        stop = self._written
        if stop == self._read:
            return None
        start = max(self._read, stop - self.capacity)
        index = np.arange(start, stop) % self.capacity
        data, stamps, received = self._data[index], self._stamps[index], self._received[index]
        # the writer may have gone on while we copied: what it may have touched is lost, the rest is whole
        overtaken = max(0, min(stop, self._claimed - self.capacity) - start)
        lost = start + overtaken - self._read
        self._read = stop
        return RawBlock(data[overtaken:].T, stamps[overtaken:], received[overtaken:], start + overtaken, lost)
