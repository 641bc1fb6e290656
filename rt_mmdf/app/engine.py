"""The engine: takes what has arrived, gives out estimates. Pumped by a session's thread, or by a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rt_mmdf.alignment.grid import AlignedHop
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
    be imaged from. `fallback`: imaged by the fallback solver. `joined`: imaged in one call with others that had waited."""

    hops: int = 0
    skipped: int = 0
    before_start: int = 0
    invalid: int = 0
    fallback: int = 0
    joined: int = 0


class Engine:
    """Hops in, estimates out.

    When it falls behind by more than the budget, it images the newest hop and counts those it skipped; the filters still see
    every sample. Where it is told to join, it images what waits in one call, as much as fits into the largest hop, and skips
    only what does not. With a fallback, it is asked after each hop which solver is to image the next one.
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
        hop_ms = 1e3 * intake.hop / intake.sfreq
        joins = settings.budget.when_late == "join"
        self._most_joined = max(1, int(settings.budget.largest_hop_ms / hop_ms)) if joins else 1
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
        longest = self._most_joined * self.intake.hop // self._settings.preprocessing.decimate
        return imaging.window_samples(self._settings, longest, self.sfreq)

    def pump(self) -> Iterator[SourceEstimate]:
        """Take what has arrived; yield the estimates that have become possible, oldest first."""
        waiting: list[AlignedHop] = []
        for hop, newest in self.intake.hops():
            waiting.append(hop)
            late = not newest and self._clock.now() - hop.intended > self._budget_s
            room = 0 if late and (self._most_joined == 1 or not self.counts.hops) else self._most_joined
            while len(waiting) > room:
                yield from self._image([waiting.pop(0)], image=False)
            if waiting and not late:
                yield from self._image(waiting, image=True)
                waiting = []

    def _image(self, hops: list[AlignedHop], *, image: bool) -> Iterator[SourceEstimate]:
        """One call of the chain, and what is to be done when its estimates are out."""
        estimates = self.chain.together(hops, image=image)
        if estimates:
            self.counts.hops += len(hops)
            self.counts.joined += len(hops) if len(hops) > 1 else 0
            for estimate in estimates:
                self.counts.invalid += bool((estimate.flags & np.uint32(Flag.INVALID)).all())
                yield estimate  # published before the next line is reached
        elif self.counts.hops:
            self.counts.hops += len(hops)
            self.counts.skipped += len(hops)
        else:  # came while the clocks were being measured: the filters need it, nobody waited for it
            self.counts.before_start += len(hops)
        ended = self._clock.now()
        self.chain.inspect(hops)
        if self._fallback is not None and self.counts.hops:
            for hop in hops:
                self.counts.fallback += self.chain.falls_back and bool(estimates)
                # what came late is not the solver's fault
                late = ended - max(hop.intended, float(hop.block.received.max())) > self._budget_s
                self.chain.falls_back = self._fallback.note(late, ended)
