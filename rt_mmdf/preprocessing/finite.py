"""Keeps NaN and infinity out of the filters, whose memory they would never leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rt_mmdf.core.blocks import MISSING, Flag, SensorBlock
from rt_mmdf.core.channels import Channels
from rt_mmdf.preprocessing.availability import Rows, rows_by_modality


class ReplaceNonfinite:
    """Replaces each non-finite value by its channel's last finite one (0 before any) and flags the sample NONFINITE.

    Values of a modality that is flagged as missing stay NaN: they are absent, not wrong. `BadChannels` marks the channels
    that such values come from.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._channels: Channels | None = None
        self._rows: list[tuple[int, Rows]] = []
        self._last = np.zeros((0, 1), dtype=np.float32)

    def __call__(self, block: SensorBlock) -> SensorBlock:
        if block.n_times == 0:
            return block
        if block.channels is not self._channels:
            if self._channels is None or block.channels != self._channels:
                self._last = np.zeros((len(block.channels), 1), dtype=np.float32)
                self._rows = [(int(MISSING[m]), rows) for m, rows in rows_by_modality(block.channels).items()]
            self._channels = block.channels
        if np.isfinite(block.data).all() and not (block.flags & (Flag.EEG_MISSING | Flag.MEG_MISSING)).any():
            self._last = block.data[:, -1:].copy()
            return block
        data, flags = block.data.copy(), block.flags.copy()
        for missing, rows in self._rows:
            present = np.flatnonzero((flags & missing) == 0)
            if len(present) == 0:
                continue
            # one column before the block: what each channel falls back to when it starts with a bad value
            values = np.hstack([self._last[rows], data[rows][:, present]])
            finite = np.isfinite(values)
            if not finite.all():
                newest = np.maximum.accumulate(np.where(finite, np.arange(values.shape[1]), 0), axis=1)
                values = np.take_along_axis(values, newest, axis=1)
                flags[present[~finite[:, 1:].all(axis=0)]] |= np.uint32(Flag.NONFINITE)
                if isinstance(rows, slice):
                    data[rows, present] = values[:, 1:]
                else:
                    data[np.ix_(rows, present)] = values[:, 1:]
            self._last[rows] = values[:, -1:]
        return replace(block, data=data, flags=flags)
