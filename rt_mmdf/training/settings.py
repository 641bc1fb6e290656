"""A whole training in one TOML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

import rt_mmdf
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import Settings
from rt_mmdf.headmodel.settings import HeadSettings, NoiseSettings
from rt_mmdf.networks.build import NETWORK_KINDS, check_options
from rt_mmdf.networks.interface import Option
from rt_mmdf.simulation.batches import BatchSettings
from rt_mmdf.training.loop import LoopSettings

VERSION = 1


class NetworkSettings(Settings):
    """The section ``[network]``."""

    kind: str = "mmdf"
    """mmdf, mmdf-eeg, mmdf-meg, convdip or fusion."""
    options: dict[str, Option] = Field(default_factory=dict)
    """Of that network: the parameters of its class."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in NETWORK_KINDS:
            raise ValueError(f"one of {', '.join(NETWORK_KINDS)} is expected")
        return kind

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        try:
            check_options(self.kind, self.options)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self


class ScenesSettings(Settings):
    """The section ``[scenes]``: randomised heads and noises, seen by a system that knows the nominal head."""

    n: int = Field(default=24, ge=1, le=1000)
    """How many; half a minute each for the template."""
    seed: int = Field(default=1, ge=0)
    """Scenes of other seeds are other heads and noises."""
    folder: Path | None = None
    """Where they are kept; by default in the output folder. Made where there are none; several trainings can share them."""
    dropout: bool = True
    """Whether some scenes lack channels or a modality."""
    leadfield_noise: float = Field(default=0.02, ge=0, le=1)
    """Error of each gain, as a part of the RMS of its channel."""


class ValidationSettings(ScenesSettings):
    """The section ``[validation]``: heads and noises that training does not see."""

    n: int = Field(default=6, ge=1, le=1000)
    seed: int = Field(default=1001, ge=0)


class VariationSettings(Settings):
    """The section ``[variation]``, for a subject's head: from what its randomised heads are computed anew."""

    trans: Path
    """Coregistration, -trans.fif."""
    src: Path
    """Source space, -src.fif; may be denser than that of the head."""
    bem: Path
    """BEM solution, -bem-sol.fif."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class BatchSection(BatchSettings):
    """The section ``[batches]``: see `rt_mmdf.simulation.batches.BatchSettings`."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LoopSection(LoopSettings):
    """The section ``[loop]``: see `rt_mmdf.training.loop.LoopSettings`."""


class TrainSettings(Settings):
    """Everything that `rt-mmdf train` needs. Paths are relative to the folder in which it is started."""

    version: int
    """Of this format: 1."""
    name: str = "model"
    """Of the model that comes out."""
    out: Path | None = None
    """Checkpoint, weights, scenes; by default training/NAME."""
    model: Path | None = None
    """Where the finished model (artefact) goes; by default OUT/model."""
    network: NetworkSettings = NetworkSettings()
    head: HeadSettings = HeadSettings()
    noise: NoiseSettings = NoiseSettings()
    """Colour of the sensors' noise, and what the model whitens with. Without a file: typical sensors and a resting brain."""
    projections: Path | None = None
    """SSP projectors that the sensors are behind: a -proj.fif, or a recording that holds them."""
    variation: VariationSettings | None = None
    """Not for the template, which knows how to vary. Without it the heads of all scenes are the nominal one."""
    scenes: ScenesSettings = ScenesSettings()
    validation: ValidationSettings = ValidationSettings()
    batches: BatchSection = BatchSection()
    loop: LoopSection = LoopSection()

    @field_validator("version", mode="before")
    @classmethod
    def _of_today(cls, version: Any) -> Any:
        if version != VERSION or isinstance(version, bool):  # True == 1
            raise ValueError(
                f"rt_mmdf {rt_mmdf.__version__} reads configurations of version {VERSION}. Write this one anew after one of "
                "configs/train_*.toml, or use the rt_mmdf that it was made for"
            )
        return version

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError("letters, digits, '.', '_' and '-' are expected, 64 at most")
        return name

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if self.scenes.seed == self.validation.seed:
            raise ValueError(f"scenes.seed and validation.seed are both {self.scenes.seed}: validation needs other heads")
        if self.scenes.folder is not None and self.scenes.folder == self.validation.folder:
            raise ValueError(f"scenes.folder and validation.folder are both {self.scenes.folder}")
        return self

    @property
    def out_folder(self) -> Path:
        """Checkpoint, weights, scenes."""
        return self.out or Path("training") / self.name

    @property
    def model_folder(self) -> Path:
        """The finished model."""
        return self.model or self.out_folder / "model"
