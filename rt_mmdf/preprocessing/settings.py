"""All settings between alignment and solver."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rt_mmdf.core.settings import Settings
from rt_mmdf.preprocessing.bad_channels import BadChannelSettings
from rt_mmdf.preprocessing.filters import FilterSettings
from rt_mmdf.preprocessing.suspect_channels import SuspectSettings


class PreprocessingSettings(Settings):
    """The section ``[preprocessing]`` of a configuration."""

    filters: FilterSettings = FilterSettings()
    decimate: int = Field(default=1, ge=1)
    """Image every n-th sample of the grid."""
    bad_channels: BadChannelSettings = BadChannelSettings()
    suspect: SuspectSettings = SuspectSettings()
    bads: tuple[str, ...] = ()
    """Channels that are known to be bad: never imaged."""
    average_reference: bool = True
    """Project the EEG onto the average reference (within the whitener)."""
    projections: Path | None = None
    """A FIF file with SSP projections (-proj.fif, or a recording): applied within the whitener."""
