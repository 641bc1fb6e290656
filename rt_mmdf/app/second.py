"""A second solver beside the first: the same cleaned hops, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rt_mmdf.app.chain import CleanedHop, Imager
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.operators import LIMIT_S, OperatorBuilder
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.lsl.interface import Clock
from rt_mmdf.runtime.mailbox import Mailbox
from rt_mmdf.runtime.telemetry import LatencyRecorder
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.estimates import EstimateOutlets

WAITING_HOPS = 256
TAKE_S = 0.1
START_UP_HOPS = 200  # latencies of the first hops (page faults, caches) are left out


class SecondSolver:
    """Takes hops from a mailbox, which never keeps the first solver waiting.

    By the engine's rule: a hop that is later than the budget is imaged only if it is the newest; others are counted as
    skipped, but seen by the window, so that what is imaged is imaged whole.

    Parameters
    ----------
    imaging : Imaging
    operators : OperatorBuilder
        Of that imaging, its first operators built.
    outlets : EstimateOutlets
        Closed by whoever opened them.
    budget_s : float
    window : int
        Samples that the solver sees.
    clock : Clock
    """

    def __init__(
        self,
        imaging: Imaging,
        operators: OperatorBuilder,
        outlets: EstimateOutlets,
        *,
        budget_s: float,
        window: int,
        clock: Clock,
    ) -> None:
        self.imaging = imaging
        self.operators = operators
        self._outlets = outlets
        self._budget_s = budget_s
        self._clock = clock
        self._imager = Imager(
            operators.switch, n_channels=len(imaging.channels), n_sources=imaging.head.n_sources, window=window
        )
        self._hops: Mailbox[CleanedHop] = Mailbox(WAITING_HOPS)
        self._next: int | None = None
        self._n_hops = self._n_skipped = self._n_invalid = 0
        self.latency = LatencyRecorder(budget_s, START_UP_HOPS)

    def put(self, hop: CleanedHop) -> None:
        """Take a hop, from the engine's thread; returns at once."""
        self._hops.put(hop)

    def step(self, wait_s: float = TAKE_S) -> None:
        """Image what is waiting."""
        first = self._hops.take(wait_s)
        if first is None:
            return
        hops = [first, *self._hops.take_all()]
        for hop in hops:
            behind = self._clock.now() - hop.stamps.intended > self._budget_s
            self._image(hop, image=hop is hops[-1] or not behind)
            if self.imaging.data_cov is not None:
                self.imaging.data_cov(hop.block)

    def _image(self, hop: CleanedHop, *, image: bool) -> None:
        if self._next is not None and hop.number != self._next:  # the mailbox has overflowed
            self._n_hops += hop.number - self._next
            self._n_skipped += hop.number - self._next
            self._imager.reset()
        self._next = hop.number + 1
        self._n_hops += 1
        block = hop.block
        data, flags = self._imager(block, image=image)
        if not image:
            self._n_skipped += 1
            return
        invalid = bool((flags & np.uint32(Flag.INVALID)).all())
        self._n_invalid += invalid
        stamps = replace(hop.stamps, solved=self._clock.now())
        unit = self.imaging.solver.unit
        estimate = SourceEstimate(data, block.times, flags, block.first, hop.number, unit, stamps)
        published = self._outlets.publish(estimate)
        if not invalid:
            self.latency.record(hop.number, published)

    def workers(self, on_failure: Callable[[], None]) -> list[Worker]:
        """The threads that image, build operators and look at windows; not yet started."""
        return [
            Worker("second solver", self.step, on_failure),
            Worker("second operators", self.operators.step, on_failure, LIMIT_S),
            *self.imaging.workers(on_failure),
        ]

    def status(self) -> dict[str, Any]:
        """For the health stream: ``second`` of `rt_mmdf.sinks.health`."""
        summary = self.latency.summary()
        return {
            "solver": self.imaging.solver_name,
            "unit": self.imaging.solver.unit,
            "hops": self._n_hops,
            "estimates": self._n_hops - self._n_skipped - self._n_invalid,
            "skipped_hops": self._n_skipped,
            "invalid_hops": self._n_invalid,
            "missed_deadlines": summary.missed,
            "longest_miss_run": summary.longest_miss_run,
            "latency_ms": self.latency.recent(),
            "operators_waiting": self.operators.n_waiting,
            "operators_failed": self.operators.failed,
            "model": self.imaging.model_status,
        }
