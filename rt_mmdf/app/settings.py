"""A whole session in one TOML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.alignment.grid import AlignmentSettings
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.settings import Settings
from rt_mmdf.headmodel.noise import RegularisationSettings
from rt_mmdf.preprocessing.settings import PreprocessingSettings
from rt_mmdf.sinks.settings import OutputSettings
from rt_mmdf.solvers.linear import SolverSettings


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


class SessionSettings(Settings):
    """Everything that `rt-mmdf monitor` needs. Paths are relative to the folder in which it is started."""

    name: str = "rt-mmdf"
    """Prefix of the published streams."""
    acquisition: dict[Modality, StreamSettings] = Field(min_length=1)
    """One stream for each modality: [acquisition.eeg], [acquisition.meg]."""
    alignment: AlignmentSettings = AlignmentSettings()
    hop_ms: float = Field(default=10.0, gt=0, le=1000)
    """Estimates are made for this much time at once; the least delay is that of one hop."""
    window_ms: float | None = Field(default=None, gt=0)
    """What the solver sees: this much time up to now. By default what the model asks for, or one hop (classical solvers)."""
    budget_ms: float = Field(default=50.0, gt=0)
    """An estimate that is published later than this after its hop could exist has missed its deadline."""
    start_timeout_s: float = Field(default=15.0, gt=0)
    """How long to wait for the first samples and clock measurements of all streams."""
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    head: HeadSettings = HeadSettings()
    noise: NoiseSettings = NoiseSettings()
    solver: SolverSettings = SolverSettings()
    output: OutputSettings = OutputSettings()

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", name):
            raise ValueError("letters, digits, space, '.', '_' and '-' are expected, 64 at most")
        return name

    @model_validator(mode="after")
    def _window_holds_hop(self) -> Self:
        if self.window_ms is not None and self.window_ms < self.hop_ms:
            raise ValueError(f"window_ms = {self.window_ms:g} is shorter than hop_ms = {self.hop_ms:g}")
        return self
