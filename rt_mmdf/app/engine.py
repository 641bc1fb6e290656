"""The engine: takes what has arrived, gives out estimates. Pumped by a session's thread, or by a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rt_mmdf.app.chain import Chain
from rt_mmdf.app.fallback import Fallback
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.intake import Intake
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.lsl.interface import Clock
from rt_mmdf.preprocessing.whitening import OperatorSwitch


@dataclass
class EngineCounts:
    """Hops since the first that was imaged: `hops` whose time came, of which `skipped` were not imaged, to catch up with the
    present. `before_start` were past when the clocks became known, and only passed the filters. `invalid` had nothing to
    be imaged from. `fallback`: imaged by the fallback solver."""

    hops: int = 0
    skipped: int = 0
    before_start: int = 0
    invalid: int = 0
    fallback: int = 0


class Engine:
    """Hops in, estimates out.

    When it falls behind by more than the budget, it images the newest hop and counts those it skipped; the filters still see
    every sample. With a fallback, it is asked after each hop which solver is to image the next one.
    """

    def __init__(
        self,
        settings: SessionSettings,
        intake: Intake,
        imaging: Imaging,
        switch: OperatorSwitch,
        clock: Clock,
        fallback: Fallback | None = None,
    ) -> None:
        self.intake = intake
        self._clock = clock
        self._budget_s = settings.budget_ms * 1e-3
        self._settings = settings
        self.sfreq = intake.sfreq / settings.preprocessing.decimate
        self.chain = Chain(
            intake.aligner.channels,
            settings.preprocessing,
            intake.sfreq,
            switch,
            n_sources=imaging.head.n_sources,
            unit=imaging.solver.unit,
            window=self.window_samples(imaging),
            clock=clock,
            observe=imaging.data_cov,
            fallback=None if fallback is None else fallback.operators.switch,
        )
        self._fallback = fallback
        self.counts = EngineCounts()

    def window_samples(self, imaging: Imaging) -> int:
        """Samples that a solver sees: as configured, but never less than its model was trained to see."""
        return imaging.window_samples(self._settings, self.intake.hop // self._settings.preprocessing.decimate, self.sfreq)

    def pump(self) -> Iterator[SourceEstimate]:
        """Take what has arrived; yield the estimates that have become possible, oldest first."""
        for hop, newest in self.intake.hops():
            behind = self._clock.now() - hop.intended > self._budget_s
            estimate = self.chain(hop, image=newest or not behind)
            if estimate is not None:
                self.counts.hops += 1
                self.counts.invalid += bool((estimate.flags & np.uint32(Flag.INVALID)).all())
                yield estimate  # published before the next line is reached
            elif self.counts.hops:
                self.counts.hops += 1
                self.counts.skipped += 1
            else:  # came while the clocks were being measured: the filters need it, nobody waited for it
                self.counts.before_start += 1
            ended = self._clock.now()
            self.chain.inspect(hop)
            if self._fallback is not None and self.counts.hops:
                self.counts.fallback += self.chain.falls_back and estimate is not None
                # what came late is not the solver's fault
                late = ended - max(hop.intended, float(hop.block.received.max())) > self._budget_s
                self.chain.falls_back = self._fallback.note(late, ended)
