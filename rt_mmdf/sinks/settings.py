"""What leaves the engine, and how often."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from rt_mmdf.core.settings import Settings


class Reduction(StrEnum):
    """What one published sample says about the estimates since the one before."""

    LATEST = "latest"
    RMS = "rms"
    PEAK = "peak"


class EstimateStreamSettings(Settings):
    """The section ``[output.estimates]``: how often the source estimate is published."""

    decimation: int = Field(default=1, ge=1)
    """One published sample for so many estimates. 5124 sources at 1 kHz are 20 MB/s and 74 GB/h; 25 makes 40 Hz of it."""
    reduction: Reduction = Reduction.LATEST
    """`latest` estimate, `rms` over the interval, or `peak`: the value of largest magnitude, with its sign."""
    n_strongest: int = Field(default=5, ge=1, le=100)
    """How many sources the summary stream names."""
    apart_mm: float = Field(default=20.0, ge=0)
    """Least distance between two of them."""


class SensorStreamSettings(Settings):
    """The section ``[output.sensors]``: the cleaned sensors as a stream, for displays. Not published without it."""

    max_hz: float = Field(default=250.0, gt=0)
    """Highest rate: one sample is published for as many as that takes. 366 channels at 250 Hz are 0.4 MB/s."""
    reduction: Literal["latest", "peak"] = "latest"
    """Of those: the `latest`, which the low-pass must allow, or the `peak`: of largest magnitude, with its sign."""


class FileSettings(Settings):
    """The section ``[output.files]``: MNE source estimates on disk."""

    prefix: Path
    """Files are called PREFIX-000-lh.stc, PREFIX-000-rh.stc, PREFIX-000-info.npz, and so on."""
    segment_s: float = Field(default=2.0, gt=0, le=60)
    """Length of each; so much is held in memory: 5124 sources at 1 kHz take 20 MB a second."""


class RecordSettings(Settings):
    """The section ``[output.record]``: what came in and what was made of it, in one XDF file."""

    file: Path
    """With the ending ``.xdf``; beside it a description is written, ending in ``.json``."""
    overwrite: bool = False
    """Replace a file that is there; otherwise that is an error."""
    estimates: Literal["reduced", "full", "none"] = "reduced"
    """Source estimates: at `estimates_hz`, all of them (5124 sources at 1 kHz are 74 GB/h), or none."""
    estimates_hz: float = Field(default=20.0, gt=0)
    """Highest rate of the reduced ones: 5124 sources at 20 Hz are 1.5 GB/h."""
    reduction: Reduction = Reduction.LATEST
    """What one of them says about those before it, as in ``[output.estimates]``."""

    @field_validator("file")
    @classmethod
    def _xdf(cls, file: Path) -> Path:
        if file.suffix.lower() != ".xdf":
            raise ValueError("a name that ends in .xdf is expected")
        return file

    @property
    def description_file(self) -> Path:
        """What the recording is of, as JSON."""
        return self.file.with_suffix(".json")


class OutputSettings(Settings):
    """The section ``[output]``."""

    estimates: EstimateStreamSettings = EstimateStreamSettings()
    """Of both solvers, where there are two."""
    sensors: SensorStreamSettings | None = None
    marks: bool = True
    """Listen to operator marks (see `rt_mmdf.sinks.marks`)."""
    files: FileSettings | None = None
    record: RecordSettings | None = None
