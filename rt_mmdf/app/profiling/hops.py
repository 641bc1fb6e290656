"""Raw stamps of every hop, kept while it runs and summarised afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Flag, Float64, SourceEstimate, StageStamps
from rt_mmdf.runtime.telemetry import LATENCIES, QUANTILES

AT = {name: i for i, name in enumerate(StageStamps.NAMES)}
END_TO_END = "end_to_end"
"""From the intended time of a hop to the first publication that is as new: hops that were skipped are in it."""
STAGES = ("receive", "align", "preprocess", "solve", "publish")
INVALID, FALLBACK = np.uint32(Flag.INVALID), np.uint32(Flag.FALLBACK)


@dataclass(frozen=True)
class HopTimes:
    """Hops that were published, in order.

    hops : (n,) int64, running numbers; those between that are not there were skipped
    stamps : (n, 7) float64, seconds, as in `StageStamps.NAMES`
    flags : (n,) uint32, of the last sample of each
    queues : name to (n,), what was waiting when the hop was published
    heard : (n,) seconds on the engine's clock at which a listener had the hop, NaN where none listened
    """

    hops: NDArray[np.int64]
    stamps: Float64
    flags: NDArray[np.uint32]
    queues: Mapping[str, NDArray[np.int64]]
    heard: Float64

    def __len__(self) -> int:
        return len(self.hops)

    def part(self, chosen: NDArray[np.bool_]) -> HopTimes:
        """Some of the hops."""
        queues = {name: values[chosen] for name, values in self.queues.items()}
        return HopTimes(self.hops[chosen], self.stamps[chosen], self.flags[chosen], queues, self.heard[chosen])

    def stamp(self, name: str) -> Float64:
        """(n,) of one of `StageStamps.NAMES`, seconds."""
        return self.stamps[:, AT[name]]

    def latency_ms(self, name: str) -> Float64:
        """(n,) of one of `LATENCIES`, or ``hear``: from the publication to a listener; milliseconds."""
        if name == "hear":
            return 1e3 * (self.heard - self.stamp("published"))
        start, stop = LATENCIES[name]
        return 1e3 * (self.stamp(stop) - self.stamp(start))

    def end_to_end_ms(self) -> Float64:
        """Lateness of every hop from the first to the last, those that were skipped as well; milliseconds.

        A skipped hop is as late as the next one that was published, which is newer: whoever waited for it waited until then
        (coordinated omission). Its intended time lies evenly between those of its neighbours.
        """
        if len(self) == 0:
            return np.empty(0)
        every = np.arange(self.hops[0], self.hops[-1] + 1)
        following = np.searchsorted(self.hops, every)
        intended = np.interp(every, self.hops, self.stamp("intended"))
        return 1e3 * (self.stamp("published")[following] - intended)

    @property
    def n_skipped(self) -> int:
        return int(self.hops[-1] - self.hops[0] + 1 - len(self)) if len(self) else 0

    @property
    def n_invalid(self) -> int:
        """Hops that had nothing to be imaged from."""
        return int(np.count_nonzero(self.flags & INVALID))

    @property
    def n_fallback(self) -> int:
        """Hops that the fallback solver has imaged."""
        return int(np.count_nonzero(self.flags & FALLBACK))

    @property
    def seconds(self) -> float:
        """From the first publication to the last."""
        published = self.stamp("published")
        return float(published[-1] - published[0]) if len(self) > 1 else 0.0


class HopLog:
    """Preallocated room for the stamps of every hop; what is beyond is counted, not kept.

    Parameters
    ----------
    capacity : int
        Hops.
    queues : mapping of name to callable
        Each gives the samples that are waiting now; asked for each hop, so it must be quick.
    """

    def __init__(self, capacity: int, queues: Mapping[str, Callable[[], int]] | None = None) -> None:
        self._stamps = np.full((capacity, len(StageStamps.NAMES)), np.nan)
        self._hops = np.zeros(capacity, np.int64)
        self._flags = np.zeros(capacity, np.uint32)
        self._heard = np.full(capacity, np.nan)
        self.watch(queues or {})
        self.n = 0
        self.n_beyond = 0

    def watch(self, queues: Mapping[str, Callable[[], int]]) -> None:
        """Note these queues from now on."""
        self._names, self._asked = tuple(queues), tuple(queues.values())
        self._depths = np.zeros((len(self._hops), len(queues)), np.int64)

    def __call__(self, estimate: SourceEstimate) -> None:
        """Note a published estimate, in the engine's thread."""
        self.add(estimate.hop, estimate.stamps.as_tuple(), int(estimate.flags[-1]))

    def add(self, hop: int, stamps: Sequence[float], flags: int, heard: float = float("nan")) -> None:
        """Note a published hop."""
        at = self.n
        if at == len(self._hops):
            self.n_beyond += 1
            return
        self._stamps[at] = stamps
        self._hops[at] = hop
        self._flags[at] = flags
        self._heard[at] = heard
        for i, ask in enumerate(self._asked):
            self._depths[at, i] = ask()
        self.n = at + 1  # last: a reader in another thread sees whole rows only

    def hear_again(self, heard: float) -> None:
        """More of the newest hop has come to the listener."""
        if self.n:
            self._heard[self.n - 1] = heard

    def times(self) -> HopTimes:
        """Everything so far."""
        n = self.n
        queues = {name: self._depths[:n, i].copy() for i, name in enumerate(self._names)}
        return HopTimes(
            self._hops[:n].copy(), self._stamps[:n].copy(), self._flags[:n].copy(), queues, self._heard[:n].copy()
        )


def figures_of(values: Float64) -> dict[str, float | None]:
    """Exact percentiles, greatest value, mean and jitter (standard deviation) of finite values, and their number.

    A percentile that so few values cannot show is None: p99.9 takes 1000 of them.
    """
    values = values[np.isfinite(values)]
    n = len(values)
    found: dict[str, float | None] = {"n": n}
    for name, q in QUANTILES.items():
        known = n >= round(1 / (1 - q))
        found[name] = float(np.quantile(values, q, method="inverted_cdf")) if known else None
    found["max"] = float(values.max()) if n else None
    found["mean"] = float(values.mean()) if n else None
    found["jitter"] = float(values.std()) if n else None
    return found


def longest_run(late: NDArray[np.bool_]) -> int:
    """Most of them one after the other."""
    edges = np.flatnonzero(np.diff(late.astype(np.int8), prepend=0, append=0))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def cost_of_noting(n_queues: int, repeats: int = 2000) -> float:
    """What a `HopLog` costs the engine for each hop, seconds; with the copy of the estimate that is made for it."""
    nothing = np.zeros((1, 1), np.float32)
    stamps = StageStamps(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    estimate = SourceEstimate(nothing, np.zeros(1), np.zeros(1, np.uint32), 0, 0, "", stamps)
    log = HopLog(repeats, {str(i): int for i in range(n_queues)})
    began = time.perf_counter()
    for _ in range(repeats):
        log(replace(estimate, stamps=stamps))
    return (time.perf_counter() - began) / repeats
