"""What a session measures about itself: the latency of every stage, missed deadlines, processor and memory."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float64, StageStamps

_AT = {name: i for i, name in enumerate(StageStamps.NAMES)}

# name of a latency: (from, to). The stages follow each other; the last three are sums over them.
LATENCIES = {
    "receive": ("intended", "received"),
    "align": ("received", "aligned"),
    "preprocess": ("aligned", "preprocessed"),
    "solve": ("preprocessed", "solved"),
    "publish": ("solved", "published"),
    "software": ("received", "published"),
    "lateness": ("intended", "published"),
    "age": ("sensor", "published"),
}

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}

_SMALLEST_S, _LARGEST_S, _STEP = 1e-6, 1e3, 1.01
_UPPER = _SMALLEST_S * _STEP ** np.arange(int(np.ceil(np.log(_LARGEST_S / _SMALLEST_S) / np.log(_STEP))) + 1)
_EDGES = np.concatenate([-_UPPER[::-1], _UPPER])
COARSE_EDGES = 1e-4 * 10.0 ** (np.arange(51) / 10)  # for drawing, seconds


class Histogram:
    """Counts of times in bins 1 % wide, from 1 us to 1000 s, of either sign; as many values as you like in 33 kB.

    Percentiles are within 0.5 % of the exact ones (within 1 us near zero); least and greatest value are exact.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(len(_EDGES) + 1, dtype=np.int64)
        self.n = 0
        self.min = np.inf
        self.max = -np.inf

    def add(self, values: Float64) -> None:
        """Count values in seconds; those that are not finite are left out."""
        values = values[np.isfinite(values)]
        if len(values) == 0:
            return
        bins, counts = np.unique(np.searchsorted(_EDGES, values), return_counts=True)
        self._counts[bins] += counts
        self.n += len(values)
        self.min, self.max = min(self.min, float(values.min())), max(self.max, float(values.max()))

    def quantile(self, q: float) -> float:
        """The value that a part `q` of all values does not exceed; NaN without values."""
        if self.n == 0:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self._counts), max(1, int(np.ceil(q * self.n)))))
        low = _EDGES[at - 1] if at > 0 else self.min
        high = _EDGES[at] if at < len(_EDGES) else self.max
        middle = np.sign(low) * np.sqrt(low * high) if low * high > 0 else 0.5 * (low + high)
        return float(np.clip(middle, self.min, self.max))

    def coarse(self) -> tuple[Float64, NDArray[np.int64]]:
        """Edges in seconds and the counts between them, ten to the decade, from 0.1 ms to 10 s or what part of it is used;
        the first and the last bin also hold what lies beyond."""
        edges = COARSE_EDGES
        upper = np.concatenate([_EDGES, [np.inf]])  # of each fine bin
        into = np.clip(np.searchsorted(edges, upper) - 1, 0, len(edges) - 2)
        counts = np.bincount(into, weights=self._counts, minlength=len(edges) - 1).astype(np.int64)
        used = np.flatnonzero(counts)
        if len(used) == 0:
            return np.empty(0), np.empty(0, np.int64)
        return edges[used[0] : used[-1] + 2], counts[used[0] : used[-1] + 1]


@dataclass(frozen=True)
class LatencySummary:
    """A session so far.

    hops : hops that were published and counted
    start_up_hops : hops before those, left out of everything
    missed : published later than `budget_s` after the intended time
    longest_miss_run : most misses one after the other
    skipped : hops that were never imaged because the engine had fallen behind
    latency_ms : for each name of `LATENCIES`: p50, p90, p99, p99_9, max, in milliseconds (NaN without hops)
    """

    hops: int
    start_up_hops: int
    missed: int
    longest_miss_run: int
    skipped: int
    budget_ms: float
    latency_ms: dict[str, dict[str, float]]


class LatencyRecorder:
    """Keeps the stamps of every hop.

    `record` belongs to one thread and only stores a row. Rows are counted into histograms of the whole session when somebody
    asks, in the asker's thread, or else when the ring is full; memory stays flat.

    Latencies are measured against the intended time, so that a hop that waited for its predecessor counts its waiting
    (coordinated omission).

    Parameters
    ----------
    budget_s : float
        An estimate published later than this after its intended time is a miss.
    start_up_hops : int
        First hops that are not counted.
    capacity : int
        Rows of the ring.
    """

    def __init__(self, budget_s: float, start_up_hops: int = 0, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"latency recorder with room for {capacity} hops: at least 1 is expected")
        self._budget = budget_s
        self._start_up_hops = start_up_hops
        self._capacity = capacity
        self._rows = np.full((capacity, len(StageStamps.NAMES)), np.nan)
        self._hops = np.zeros(capacity, dtype=np.int64)
        self._written = 0
        self._counted = 0
        self._lock = threading.Lock()
        self._histograms = {name: Histogram() for name in LATENCIES}
        self._missed = self._miss_run = self._longest_run = self._skipped = 0
        self._last_hop: int | None = None

    def record(self, hop: int, stamps: StageStamps) -> None:
        """Store one published hop; `hop` numbers that were left out are counted as skipped."""
        if self._written - self._counted >= self._capacity:
            self._count()
        at = self._written % self._capacity
        self._rows[at] = stamps.as_tuple()
        self._hops[at] = hop
        self._written += 1

    def summary(self) -> LatencySummary:
        """Everything since the start-up."""
        self._count()
        with self._lock:
            latency = {
                name: {key: 1e3 * histogram.quantile(q) for key, q in QUANTILES.items()}
                | {"max": 1e3 * histogram.max if histogram.n else float("nan")}
                for name, histogram in self._histograms.items()
            }
            return LatencySummary(
                hops=max(0, self._counted - self._start_up_hops),
                start_up_hops=min(self._counted, self._start_up_hops),
                missed=self._missed,
                longest_miss_run=self._longest_run,
                skipped=self._skipped,
                budget_ms=1e3 * self._budget,
                latency_ms=latency,
            )

    def recent(self, n_hops: int = 1000) -> dict[str, dict[str, float]]:
        """Exact percentiles of the last hops, in milliseconds, as in `LatencySummary.latency_ms`."""
        rows = self._between(max(0, self._written - min(n_hops, self._capacity // 2)), self._written)[1]
        out: dict[str, dict[str, float]] = {}
        for name, (start, stop) in LATENCIES.items():
            values = 1e3 * (rows[:, _AT[stop]] - rows[:, _AT[start]])
            values = values[np.isfinite(values)]
            quantiles = np.quantile(values, [*QUANTILES.values(), 1.0]) if len(values) else np.full(5, np.nan)
            out[name] = dict(zip([*QUANTILES, "max"], quantiles.tolist(), strict=True))
        return out

    def histogram(self, name: str) -> dict[str, list[float]]:
        """One latency of `LATENCIES` since the start-up, coarse enough to draw: `edges_ms` and the `counts` between them.

        Empty lists without hops. The first and the last bin also hold what lies beyond.
        """
        self._count()
        with self._lock:
            edges, counts = self._histograms[name].coarse()
        return {"edges_ms": [round(1e3 * float(edge), 4) for edge in edges], "counts": counts.tolist()}

    def _between(self, start: int, stop: int) -> tuple[NDArray[np.int64], Float64]:
        index = np.arange(start, stop) % self._capacity
        return self._hops[index], self._rows[index]

    def _count(self) -> None:
        with self._lock:
            start, stop = self._counted, self._written
            hops, rows = self._between(start, stop)
            left_out = min(stop, max(start, self._start_up_hops)) - start
            hops, rows = hops[left_out:], rows[left_out:]
            if len(hops):
                for name, (begin, end) in LATENCIES.items():
                    self._histograms[name].add(rows[:, _AT[end]] - rows[:, _AT[begin]])
                before = hops[0] - 1 if self._last_hop is None else self._last_hop
                self._skipped += int(np.maximum(np.diff(hops, prepend=before) - 1, 0).sum())
                self._last_hop = int(hops[-1])
                self._count_misses(rows[:, _AT["published"]] - rows[:, _AT["intended"]] > self._budget)
            self._counted = stop

    def _count_misses(self, missed: NDArray[np.bool_]) -> None:
        self._missed += int(missed.sum())
        on_time = np.flatnonzero(~missed)
        runs = np.diff(np.concatenate([[-1 - self._miss_run], on_time, [len(missed)]])) - 1
        self._longest_run = max(self._longest_run, int(runs.max()))
        self._miss_run = int(runs[-1])


@dataclass(frozen=True)
class ProcessUsage:
    """Processor cores in use (1.0: one core all the time), and resident memory."""

    cpu_cores: float
    rss_mb: float


class ProcessLoad:
    """Asks the operating system about this process; where that cannot answer (no file handles left), as it was before."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._known, self._rss = (time.perf_counter(), 0.0), 0
        self._begin = self._last = self._spent()

    def recent(self) -> ProcessUsage:
        """Since the last asking (at first: since this object was made)."""
        before, self._last = self._last, self._spent()
        return self._usage(before, self._last)

    def mean(self) -> ProcessUsage:
        """Since this object was made."""
        return self._usage(self._begin, self._spent())

    def _spent(self) -> tuple[float, float]:
        with suppress(OSError, psutil.Error):
            times = self._process.cpu_times()
            self._known = time.perf_counter(), times.user + times.system
            self._rss = int(self._process.memory_info().rss)
        return self._known

    def _usage(self, start: tuple[float, float], stop: tuple[float, float]) -> ProcessUsage:
        wall = max(stop[0] - start[0], 1e-9)
        return ProcessUsage(cpu_cores=(stop[1] - start[1]) / wall, rss_mb=self._rss / 2**20)
