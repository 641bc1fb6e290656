"""Sees within some samples that a channel behaves as it never did, before anybody can say that it is bad."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rt_mmdf.core.blocks import MISSING, Flag, Float64, SensorBlock
from rt_mmdf.core.channels import Channels
from rt_mmdf.core.settings import Settings
from rt_mmdf.preprocessing.availability import Rows, rows_by_modality

LEAST_STILL = 8
"""Samples: of white noise 2.7 % of the steps are below 1/30 of their RMS, so 8 in a row are a matter of centuries, of days
for 366 channels."""
STILL_S = 0.02
BIN_S = 0.5
FORGET = 0.25
"""Of the logarithm of what is usual, for each bin that is."""
ACCEPT_BINS = 8
"""What has gone on for 4 s and has not made the channel bad is usual from then on."""

SUSPECT = np.uint32(Flag.CHANNEL_SUSPECT)


class SuspectSettings(Settings):
    """When a channel is suspected.

    ratio : a step from one sample to the next that is so many times the channel's usual one (RMS), or for 20 ms and at least
        8 samples steps that are as many times smaller. On the sample recording (5 s at 300 Hz) the largest step is 5.8 times
        the usual one, and at most 4 small ones follow each other.
    """

    enabled: bool = True
    ratio: float = Field(default=30.0, gt=1)


class SuspectChannels:
    """Flags samples CHANNEL_SUSPECT from the first on at which a channel that is imaged jumps, or has fallen silent.

    A verdict of `BadChannels` takes up to 1.5 s; until then the channel is imaged, and its rail or its silence with it. The
    flag stays until the channel is known as bad, or else for as long as the filters remember. What a sample is flagged with
    depends on the samples up to it alone, not on how the stream was cut.

    Parameters
    ----------
    settings : SuspectSettings
    sfreq : float
        Hz.
    hold : int
        Samples for which the filters remember.
    """

    def __init__(self, settings: SuspectSettings, sfreq: float, hold: int) -> None:
        self._settings = settings
        self._hold = hold
        self._n_still = max(LEAST_STILL, round(STILL_S * sfreq))
        self._length = max(2, round(BIN_S * sfreq))
        self.reset()

    def reset(self) -> None:
        self._channels: Channels | None = None
        self._next = self._bin = 0  # sample, and bin, that are expected
        self._bads: frozenset[str] = frozenset()
        self._imaged = np.zeros(0, bool)

    def __call__(self, block: SensorBlock) -> SensorBlock:
        if not self._settings.enabled or block.n_times == 0:
            return block
        if block.channels is not self._channels:
            if self._channels is None or block.channels != self._channels:
                self._prepare(block)
            self._channels = block.channels
        elif block.first != self._next:
            self._last[:] = np.nan
        if block.bads != self._bads:
            self._bads = block.bads
            self._imaged = np.array([name not in block.bads for name in block.channels.names])
        flags: NDArray[np.uint32] | None = None
        done = 0
        while done < block.n_times:
            index = block.first + done
            if index // self._length != self._bin:
                self._end_bin(index // self._length)
            n = min(block.n_times - done, (self._bin + 1) * self._length - index)
            suspect = self._look(block, done, done + n)
            if suspect is not None:
                flags = block.flags.copy() if flags is None else flags
                flags[done : done + n][suspect] |= SUSPECT
            done += n
        self._next = block.stop
        return block if flags is None else replace(block, flags=flags)

    def _prepare(self, block: SensorBlock) -> None:
        n_channels = len(block.channels)
        self._rows: dict[int, Rows] = {int(MISSING[m]): rows for m, rows in rows_by_modality(block.channels).items()}
        self._last: Float64 = np.full(n_channels, np.nan)  # newest sample
        self._usual: Float64 = np.full(n_channels, np.nan)  # RMS of the steps
        self._still = np.zeros(n_channels, np.int64)  # small steps in a row so far
        self._since = np.full(n_channels, self._hold + 1, np.int64)  # samples since the last reason to suspect
        self._bads, self._imaged = frozenset(), np.ones(n_channels, bool)
        self._bin = block.first // self._length
        self._next = block.first
        self._bins_suspect = np.zeros(n_channels, np.int64)
        self._clear()

    def _clear(self) -> None:
        n_channels = len(self._last)
        self._power, self._n, self._largest = np.zeros((3, n_channels))
        self._seen = np.zeros(n_channels, bool)

    def _look(self, block: SensorBlock, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Which of these samples are suspect; None for none."""
        data = block.data[:, start:stop]
        steps = np.empty(data.shape)
        with np.errstate(invalid="ignore"):
            np.subtract(data[:, 0], self._last, out=steps[:, 0])
            np.subtract(data[:, 1:], data[:, :-1], out=steps[:, 1:])
        np.abs(steps, out=steps)
        flags = block.flags[start:stop]
        if gaps := int(np.bitwise_or.reduce(flags)) & int(Flag.GAP | Flag.EEG_MISSING | Flag.MEG_MISSING):
            if gaps & Flag.GAP:  # nothing is joined over a hole
                steps[:, (flags & np.uint32(Flag.GAP)) != 0] = np.nan
            for missing, rows in self._rows.items():
                if gaps & missing:
                    absent = np.flatnonzero(flags & np.uint32(missing))
                    part = steps[rows]
                    part[:, absent] = np.nan
                    steps[rows] = part
        self._last = data[:, -1].astype(np.float64)
        n_times = stop - start
        low, high = self._usual / self._settings.ratio, self._usual * self._settings.ratio
        jumps, still = steps > high[:, None], steps < low[:, None]
        # small steps in a row, up to each sample
        if not still.any():
            quiet = None
            self._still[:] = 0
        else:
            sample = np.arange(n_times)
            moved = np.maximum.accumulate(np.where(still, -1 - self._still[:, None], sample), axis=1)
            in_a_row = sample - moved
            quiet = in_a_row >= self._n_still
            self._still = in_a_row[:, -1]
        known = np.isfinite(steps)
        seen = np.where(known, steps, 0.0)
        self._n += known.sum(axis=1)
        self._power += np.einsum("ij,ij->i", seen, seen)
        self._largest = np.maximum(self._largest, seen.max(axis=1))
        reasons = jumps if quiet is None else jumps | quiet
        if not reasons.any() and (self._since >= self._hold).all():
            self._since += n_times
            return None
        sample = np.arange(n_times)
        last = np.maximum.accumulate(np.where(reasons, sample, -1 - self._since[:, None]), axis=1)
        since = sample - last
        self._since = since[:, -1]
        self._seen |= reasons.any(axis=1)
        suspect = np.asarray(((since <= self._hold) & self._imaged[:, None]).any(axis=0))
        return suspect if suspect.any() else None

    def _end_bin(self, number: int) -> None:
        """Learn what is usual."""
        judged = 2 * self._n >= self._length
        rms = np.sqrt(self._power / np.maximum(self._n, 1.0))
        self._bins_suspect = np.where(self._seen & self._imaged, self._bins_suspect + 1, 0)
        accepted = self._bins_suspect >= ACCEPT_BINS
        learn = judged & self._imaged & (rms > 0) & np.isfinite(rms)
        one_jump = self._largest**2 > self._power / 2  # says nothing of the others
        anew = learn & ~one_jump & (np.isnan(self._usual) | accepted)
        more = learn & ~anew & ~self._seen
        self._usual[anew] = rms[anew]
        self._usual[more] *= (rms[more] / self._usual[more]) ** FORGET
        self._bin = number
        self._clear()
