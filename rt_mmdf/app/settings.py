"""A whole session in one TOML file."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.alignment.grid import AlignmentSettings
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.settings import Settings
from rt_mmdf.headmodel.settings import HeadSettings, NoiseSettings
from rt_mmdf.preprocessing.averaging import AveragingSettings
from rt_mmdf.preprocessing.settings import PreprocessingSettings
from rt_mmdf.sinks.settings import OutputSettings
from rt_mmdf.solvers.linear import SolverSettings


class AverageSettings(AveragingSettings):
    """The section ``[average]``: event-locked averages of the cleaned sensors, imaged with the first solver."""

    markers: StreamSettings
    """The stream of the events, [average.markers]: text, or one number per event. It may come and go."""

    @field_validator("markers")
    @classmethod
    def _of_its_own_clock(cls, markers: StreamSettings) -> StreamSettings:
        if markers.lag_ms is not None or markers.stamps == "arrival":
            raise ValueError("events count from their own stamps: lag_ms and stamps = 'arrival' are for sensors only")
        return markers


class BudgetSettings(Settings):
    """The section ``[budget]``: what is done where ``budget_ms`` cannot be met."""

    measure: bool = True
    """Measure the chain on this machine before the streams are opened, and refuse the start where it can never keep up."""
    may_lower: tuple[Literal["hop", "solver"], ...] = ()
    """What may be changed at the start where the budget cannot be met, tried in this order: ``hop``, doubled up to
    `largest_hop_ms`; ``solver``, `fallback` in place of the model."""
    largest_hop_ms: float = Field(default=100.0, gt=0, le=1000)
    fallback: Literal["MNE", "eLORETA"] = "MNE"
    """A linear kernel of the same unit as the models, A m: who listens needs no other scale."""
    when_late: Literal["skip", "join", "fallback"] = "skip"
    """While it runs. ``skip``: image the newest hop, count those that were left out. ``join``: image what waits in one call,
    up to `largest_hop_ms` of it, and leave out only what is beyond; each hop is published by itself, as late as it is.
    ``fallback``: skip, and after `misses` image with `fallback` (flag FALLBACK) until there was no miss for
    `return_after_s`."""
    misses: int = Field(default=20, ge=1)
    """So many hops that were skipped or later than the budget, for which the engine itself is to blame ..."""
    within_s: float = Field(default=5.0, gt=0)
    """... within so long."""
    return_after_s: float = Field(default=60.0, gt=0)
    """The model is tried again after so long without a miss, and after twice as long each time that it fails again; inf:
    never."""


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
    """What the solver sees: this much time up to now, if that is more than a model asks for, or than one hop."""
    budget_ms: float = Field(default=50.0, gt=0)
    """An estimate that is published later than this after its hop could exist has missed its deadline."""
    budget: BudgetSettings = BudgetSettings()
    start_timeout_s: float = Field(default=15.0, gt=0)
    """How long to wait for the first samples and clock measurements of all streams."""
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    head: HeadSettings = HeadSettings()
    noise: NoiseSettings = NoiseSettings()
    solver: SolverSettings = SolverSettings()
    second_solver: SolverSettings | None = None
    """Images the same cleaned sensors in a thread of its own, beside the first; [second_solver] has the keys of [solver]."""
    average: AverageSettings | None = None
    output: OutputSettings = OutputSettings()

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", name):
            raise ValueError("letters, digits, space, '.', '_' and '-' are expected, 64 at most")
        return name

    @model_validator(mode="after")
    def _something_to_fall_back_from(self) -> Self:
        wanted = [
            text
            for text, asked in (
                ('budget.may_lower has "solver"', "solver" in self.budget.may_lower),
                ('budget.when_late is "fallback"', self.budget.when_late == "fallback"),
            )
            if asked
        ]
        if wanted and self.solver.model is None:
            raise ValueError(
                f"{' and '.join(wanted)}, but solver.method = {self.solver.method!r} is one matrix product already: nothing "
                "is faster. Leave it out, or image with a model"
            )
        return self

    @model_validator(mode="after")
    def _window_holds_hop(self) -> Self:
        if self.window_ms is not None and self.window_ms < self.hop_ms:
            raise ValueError(f"window_ms = {self.window_ms:g} is shorter than hop_ms = {self.hop_ms:g}")
        return self
