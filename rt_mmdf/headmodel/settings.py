"""The sections ``[head]`` and ``[noise]``, which sessions and trainings share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from rt_mmdf.core.settings import Settings
from rt_mmdf.headmodel.noise import RegularisationSettings


class HeadSettings(Settings):
    """The section ``[head]``: whose head, and where the sensors are on it."""

    folder: Path | None = None
    """A head model made by `rt-mmdf head`. Without it the template head is used (and built once); where the whole section is
    left out, a trained model brings its own head."""
    spacing: Literal["ico3", "ico4", "ico5"] = "ico4"
    """Template only: 1284, 5124 or 20484 sources."""
    eeg: str = "mgh60"
    """Template only: montage that the electrodes' names belong to, any that MNE knows (standard_1005, biosemi64, ...)."""
    meg: Literal["neuromag306", "ctf151", "ctf275"] = "neuromag306"
    """Template only: MEG array."""
    recording: Path | None = None
    """Template only: a recording of today, for the position of the head in the helmet and the digitised electrodes."""

    @model_validator(mode="after")
    def _one_head(self) -> Self:
        if self.folder is not None and self.recording is not None:
            raise ValueError("folder and recording: a head from a folder has its sensors' positions; leave one out")
        return self


class NoiseSettings(Settings):
    """The section ``[noise]``: what the sensors measure when nothing happens."""

    file: Path | None = None
    """A noise covariance (-cov.fif), for example from `rt-mmdf calibrate`. Without it: the model's, or ad hoc, by type."""
    regularisation: RegularisationSettings = RegularisationSettings()
