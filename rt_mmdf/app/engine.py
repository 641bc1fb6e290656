"""The engine: takes what has arrived, gives out estimates. Pumped by a session's thread, or by a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rt_mmdf.alignment.grid import AlignedHop
from rt_mmdf.app.chain import Chain
from rt_mmdf.app.fallback import Fallback
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.intake import Intake
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.core.errors import SolverError
from rt_mmdf.lsl.interface import Clock
from rt_mmdf.preprocessing.whitening import OperatorSwitch

FAILED_HOPS = 5
"""So many in a row, and the fallback images."""
GIVE_UP_S = 10.0


@dataclass
class EngineCounts:
    """Hops since the first that was imaged: `hops` whose time came, of which `skipped` were not imaged, to catch up with the
    present. `before_start` were past when the clocks became known, and only passed the filters. `invalid` had nothing to
    be imaged from, or their solver raised, which `failed` counts. `fallback`: imaged by the fallback solver. `joined`:
    imaged in one call with others that had waited."""

    hops: int = 0
    skipped: int = 0
    before_start: int = 0
    invalid: int = 0
    fallback: int = 0
    joined: int = 0
    failed: int = 0


class Engine:
    """Hops in, estimates out.

    When it falls behind by more than the budget, it images the newest hop and counts those it skipped; the filters still see
    every sample. Where it is told to join, it images what waits in one call, as much as fits into the largest hop, and skips
    only what does not. With a fallback, it is asked after each hop which solver is to image the next one.

    A solver that raises costs the hop: its estimate is NaN and INVALID, never an old one, and the next hop is tried as
    always. After `FAILED_HOPS` failures in a row the fallback images, where there is one, and the first solver is tried
    again as after misses. Where no hop could be imaged for `GIVE_UP_S` because of that, `pump` raises, unless something
    else depends on the session (`must_go_on`: a recording is being made).

    Attributes
    ----------
    on_failure : callable | None
        Called with what a solver raised; without it the error is raised at once.
    must_go_on : bool
    newest_failure : str
        The last of these errors, in words.
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
        self.on_failure: Callable[[Exception], None] | None = None
        self.must_go_on = False
        self.newest_failure = ""
        self._failure: Exception | None = None  # of the present hop
        self._failed_in_a_row = 0
        self._failing_since = math.nan

    def outlive_failures(self, told: Callable[[Exception], None]) -> None:
        """From now on a solver that raises costs a hop and not the session; `told` is called with what it raised."""
        self.on_failure, self.chain.on_failure = told, self._note_failure

    def _note_failure(self, error: Exception) -> None:
        self._failure = error
        self.newest_failure = f"{type(error).__name__}: {error}"
        if self.on_failure is not None:
            self.on_failure(error)

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
        self._judge_failure(ended, len(hops), imaged=bool(estimates))

    def _judge_failure(self, now: float, n_hops: int, *, imaged: bool) -> None:
        error, self._failure = self._failure, None
        if error is None:
            if imaged:
                self._failed_in_a_row, self._failing_since = 0, math.nan
            return
        if not self._failed_in_a_row:
            self._failing_since = now
        self.counts.failed += n_hops
        self._failed_in_a_row += n_hops
        if self._fallback is not None and not self._fallback.active and self._failed_in_a_row >= FAILED_HOPS:
            self.chain.falls_back = self._fallback.take_over(now, f"the solver has failed at {FAILED_HOPS} hops in a row")
        elif now - self._failing_since >= GIVE_UP_S and not self.must_go_on:
            raise SolverError(
                f"no hop could be imaged for {GIVE_UP_S:g} s, since the solver raises at each of them: "
                f"{type(error).__name__}: {error}. Take another solver or backend, or set budget.when_late to fall back."
            ) from error
