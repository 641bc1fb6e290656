"""Everything between the grid and the whitener, in order: the same object live, in calibration, and in training."""

from __future__ import annotations

from dataclasses import replace

from rt_mmdf.core.blocks import SensorBlock
from rt_mmdf.preprocessing.bad_channels import BadChannels
from rt_mmdf.preprocessing.decimate import Decimate
from rt_mmdf.preprocessing.filters import CausalFilter
from rt_mmdf.preprocessing.finite import ReplaceNonfinite
from rt_mmdf.preprocessing.settings import PreprocessingSettings
from rt_mmdf.preprocessing.suspect_channels import SuspectChannels


class Cleaning:
    """Finite values -> suspicion -> causal filters -> decimation, and beside them the search for bad channels.

    A call does both. Where time counts, `clean` comes first and `inspect` when the estimate is out: what it finds bad is bad
    from the next block on, either way.

    Parameters
    ----------
    settings : PreprocessingSettings
    sfreq : float
        Of the grid, Hz.

    Attributes
    ----------
    bad_channels : BadChannels
    filter : CausalFilter
    sfreq : float
        Of what comes out, Hz.
    """

    def __init__(self, settings: PreprocessingSettings, sfreq: float) -> None:
        self.filter = CausalFilter.from_settings(settings.filters, sfreq)
        settling_s = self.filter.settling_samples / sfreq
        self.bad_channels = BadChannels(settings.bad_channels, sfreq, settings.bads, settling_s)
        self._finite = ReplaceNonfinite()
        self._suspect = SuspectChannels(settings.suspect, sfreq, self.filter.settling_samples)
        self._decimate = Decimate(settings.decimate, sfreq, settings.filters.band_pass.high_hz)
        self.sfreq = self._decimate.sfreq
        self._bads = frozenset(self.bad_channels.reasons)

    def reset(self) -> None:
        for stage in (self.bad_channels, self._finite, self._suspect, self.filter, self._decimate):
            stage.reset()
        self._bads = frozenset(self.bad_channels.reasons)

    def __call__(self, block: SensorBlock) -> SensorBlock:
        cleaned = self.clean(block)
        self.inspect(block)
        return cleaned

    def clean(self, block: SensorBlock) -> SensorBlock:
        """What the whitener gets of a block."""
        known = replace(block, bads=block.bads | self._bads)
        return self._decimate(self.filter(self._suspect(self._finite(known))))

    def inspect(self, block: SensorBlock) -> None:
        """Look for bad channels in the block as it came."""
        self._bads = self.bad_channels(block).bads
