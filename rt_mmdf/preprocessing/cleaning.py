"""Everything between the grid and the whitener, in order: the same object live, in calibration, and in training."""

from __future__ import annotations

from rt_mmdf.core.blocks import SensorBlock
from rt_mmdf.preprocessing.bad_channels import BadChannels
from rt_mmdf.preprocessing.decimate import Decimate
from rt_mmdf.preprocessing.filters import CausalFilter
from rt_mmdf.preprocessing.finite import ReplaceNonfinite
from rt_mmdf.preprocessing.settings import PreprocessingSettings


class Cleaning:
    """Bad channels -> finite values -> causal filters -> decimation.

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
        self.bad_channels = BadChannels(settings.bad_channels, sfreq, settings.bads)
        self.filter = CausalFilter.from_settings(settings.filters, sfreq)
        self._finite = ReplaceNonfinite()
        self._decimate = Decimate(settings.decimate, sfreq, settings.filters.band_pass.high_hz)
        self.sfreq = self._decimate.sfreq

    def reset(self) -> None:
        for stage in (self.bad_channels, self._finite, self.filter, self._decimate):
            stage.reset()

    def __call__(self, block: SensorBlock) -> SensorBlock:
        return self._decimate(self.filter(self._finite(self.bad_channels(block))))
