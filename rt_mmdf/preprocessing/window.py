"""The last samples before now, always in one piece of memory."""

from __future__ import annotations

import numpy as np

from rt_mmdf.core.blocks import Float32


class SlidingWindow:
    """Keeps the last `length` samples; each is written twice, so that nothing is ever moved.

    Parameters
    ----------
    length : int
        Samples.
    n_channels : int
    """

    def __init__(self, length: int, n_channels: int) -> None:
        if length < 1 or n_channels < 1:
            raise ValueError(f"window of {length} samples and {n_channels} channels: both must be positive")
        self.length = length
        self._samples = np.zeros((2 * length, n_channels), dtype=np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the window is zero again."""
        self._samples[:] = 0
        self._at = 0
        self.n_filled = 0

    def push(self, data: Float32) -> Float32:
        """Append ``(n_channels, n_times)`` and return the window.

        Returns
        -------
        window : (n_channels, length) float32
            Read-only view, newest sample last, zero where nothing was pushed yet (`n_filled`); valid until the next push.
            Samples lie one behind the other in memory (Fortran order).
        """
        new = data.T[-self.length :]
        head = min(len(new), self.length - self._at)
        for offset in (0, self.length):
            self._samples[offset + self._at : offset + self._at + head] = new[:head]
            self._samples[offset : offset + len(new) - head] = new[head:]
        self._at = (self._at + len(new)) % self.length
        self.n_filled = min(self.length, self.n_filled + len(new))
        window = self._samples[self._at : self._at + self.length].T
        window.flags.writeable = False
        return window
