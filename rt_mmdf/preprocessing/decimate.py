"""Keeps every n-th sample of the grid, by absolute index."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rt_mmdf.core.blocks import MISSING, SensorBlock
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.preprocessing.availability import rows_by_modality

PASS_BAND = 0.4  # highest low-pass edge, in units of the new rate: a fourth-order Butterworth is at -3 dB there


class Decimate:
    """Keeps the samples whose absolute index is a multiple of `factor`; ``first`` becomes the index among those.

    No flag is lost: those of the dropped samples go to the next kept one, and where this makes a modality missing its rows
    are NaN, as everywhere. The low-pass before it must have removed what would fold back.

    Parameters
    ----------
    factor : int
    sfreq : float
        Rate before decimation, Hz.
    high_hz : float | None
        Upper edge of the band-pass that precedes this stage.

    Raises
    ------
    ConfigurationError
        `factor` is not positive, or there is no low-pass at or below 0.4 of the new rate.
    """

    def __init__(self, factor: int, sfreq: float, high_hz: float | None) -> None:
        if factor < 1:
            raise ConfigurationError(
                f"decimation = {factor}: a whole number of at least 1 is expected; 1 keeps every sample"
            )
        limit = PASS_BAND * sfreq / factor
        if factor > 1 and (high_hz is None or high_hz > limit):
            seen = "no low-pass" if high_hz is None else f"a low-pass at {high_hz:g} Hz"
            raise ConfigurationError(
                f"decimation = {factor} of {sfreq:g} Hz: {seen} before it, at most {limit:g} Hz (0.4 of the new rate of "
                f"{sfreq / factor:g} Hz) is expected, or frequencies fold back. Lower band_pass.high_hz or the decimation."
            )
        self.factor = factor
        self.sfreq = sfreq / factor
        self.reset()

    def reset(self) -> None:
        self._pending = 0  # flags of dropped samples that wait for the next kept one

    def __call__(self, block: SensorBlock) -> SensorBlock:
        if self.factor == 1 or block.n_times == 0:
            return block
        first = -(-block.first // self.factor)
        kept = np.arange(first * self.factor - block.first, block.n_times, self.factor)
        # sample i belongs to group i of the kept ones, the tail behind the last kept one to the next block
        groups = np.concatenate([[0], kept + 1])
        flags = np.bitwise_or.reduceat(np.append(block.flags, np.uint32(0)), groups)
        flags[0] |= np.uint32(self._pending)
        self._pending = int(flags[-1])
        flags = flags[:-1]
        data = np.ascontiguousarray(block.data[:, kept])
        if (flags != block.flags[kept]).any():
            for modality, rows in rows_by_modality(block.channels).items():
                lacking = np.flatnonzero(flags & MISSING[modality])
                if isinstance(rows, slice):
                    data[rows, lacking] = np.nan
                else:
                    data[np.ix_(rows, lacking)] = np.nan
        return replace(block, data=data, times=block.times[kept], flags=flags, received=block.received[kept], first=first)
