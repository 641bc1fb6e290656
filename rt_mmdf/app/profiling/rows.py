"""One row of a profile: a combination of solver, hop, block, rate, channels and sources, and what was measured of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.app.profiling.hops import END_TO_END, HopTimes, figures_of, longest_run
from rt_mmdf.app.profiling.load import Load
from rt_mmdf.core.blocks import Float64
from rt_mmdf.runtime.telemetry import LATENCIES

RAW_HOPS = 10_000
"""Hops of a row whose raw stamps are kept in a report; of longer rows every second, third, ... hop."""
CASE_KEYS = ("solver", "backend", "hop_ms", "chunk", "sfreq", "modalities", "n_sources")
"""What tells one row from another; two reports are compared where all of these agree."""


@dataclass(frozen=True)
class Row:
    """What was measured.

    case : by `CASE_KEYS`; None for what is not known of a running engine
    facts : further keys of the report: unit, channels, ...
    budget_ms : what the lateness is held against
    times : of the hops that count
    start_up : of those before; reported apart
    prepared_s, first_estimate_s : what the session took to be built, and from its start to its first estimate; None where
        it ran already
    load : of the engine's process
    physics : delays that no computing can shorten, see `physics_of`
    overhead : of the profiler itself
    complete_hops : the engine's hops are all known, so what is missing was skipped
    queues : what was waiting, by name; None: as noted with each hop
    """

    case: Mapping[str, Any]
    facts: Mapping[str, Any]
    budget_ms: float
    times: HopTimes
    start_up: HopTimes
    prepared_s: float | None
    first_estimate_s: float | None
    load: Load
    physics: Mapping[str, Any]
    overhead: Mapping[str, Any]
    complete_hops: bool = True
    queues: Mapping[str, NDArray[np.int64]] | None = None

    @property
    def name(self) -> str:
        """All that is known of the case."""
        return words_of(self.case, CASE_KEYS)

    @cached_property
    def end_to_end_ms(self) -> Float64:
        """Of every hop in order, skipped ones included where they are known."""
        return self.times.end_to_end_ms() if self.complete_hops else self.times.latency_ms("lateness")

    @property
    def late(self) -> int:
        """Hops later than the budget, skipped ones included."""
        return int(np.count_nonzero(self.end_to_end_ms > self.budget_ms))

    def latencies_ms(self) -> dict[str, Float64]:
        """Every latency by its name; ``hear`` where somebody listened."""
        found = {name: self.times.latency_ms(name) for name in LATENCIES} | {END_TO_END: self.end_to_end_ms}
        if np.isfinite(self.times.heard).any():
            found["hear"] = self.times.latency_ms("hear")
        return found

    def summary(self) -> dict[str, Any]:
        """Plain values for the report, without the raw stamps."""
        times, start_up = self.times, self.start_up
        return {
            "name": self.name,
            "case": dict(self.case),
            **self.facts,
            "budget_ms": self.budget_ms,
            "seconds": times.seconds,
            "hops": len(self.end_to_end_ms),
            "published": len(times),
            "skipped": times.n_skipped if self.complete_hops else None,
            "invalid": times.n_invalid,
            "fallback": times.n_fallback,
            "late": self.late,
            "longest_late_run": longest_run(self.end_to_end_ms > self.budget_ms),
            "latency_ms": {name: figures_of(values) for name, values in self.latencies_ms().items()},
            "interval_ms": figures_of(1e3 * np.diff(times.stamp("published"))),
            "queue": {
                name: _depth(values) for name, values in (times.queues if self.queues is None else self.queues).items()
            },
            "load": self.load.summary(),
            "physics": dict(self.physics),
            "start_up": {
                "hops": len(start_up),
                "prepared_s": self.prepared_s,
                "first_estimate_s": self.first_estimate_s,
                "lateness_ms": figures_of(start_up.latency_ms("lateness")),
            },
            "overhead": dict(self.overhead),
        }

    def raw(self) -> dict[str, Any]:
        """Stamps in whole microseconds: ``intended_us`` since the first hop, the others since their hop's intended time."""
        times = self.times
        stride = max(1, -(-len(times) // RAW_HOPS))
        end_stride = max(1, -(-len(self.end_to_end_ms) // RAW_HOPS))
        kept = times.part(np.arange(len(times)) % stride == 0)
        intended = kept.stamp("intended")
        raw: dict[str, Any] = {
            "stride": stride,
            "hop": kept.hops.tolist(),
            "intended_us": _microseconds(intended - intended[0]) if len(kept) else [],
        }
        for name in ("sensor", "received", "aligned", "preprocessed", "solved", "published"):
            raw[f"{name}_us"] = _microseconds(kept.stamp(name) - intended)
        if np.isfinite(kept.heard).any():
            raw["heard_us"] = _microseconds(kept.heard - intended)
        raw["end_to_end_us"] = _microseconds(1e-3 * self.end_to_end_ms[::end_stride])
        return raw


def words_of(case: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Some keys of a case in words; those that are not known are left out."""
    return ", ".join(_WORDS[key].format(case[key]) for key in keys if case[key] is not None)


_WORDS = {
    "solver": "{}",
    "backend": "on {}",
    "hop_ms": "hop {:.4g} ms",
    "chunk": "blocks of {}",
    "sfreq": "{:g} Hz",
    "modalities": "{}",
    "n_sources": "{} sources",
}


def labels_of(rows: Sequence[Row]) -> tuple[list[str], str]:
    """Short names that tell the rows apart, and what all of them share."""
    shared = [key for key in CASE_KEYS[1:] if len({row.case[key] for row in rows}) == 1]
    own = [key for key in CASE_KEYS if key not in shared]
    return [words_of(row.case, own) for row in rows], words_of(rows[0].case, shared) if rows else ""


def _microseconds(seconds: Float64) -> list[int | None]:
    return [round(1e6 * value) if np.isfinite(value) else None for value in seconds.tolist()]


def _depth(values: NDArray[np.int64]) -> dict[str, float | None]:
    known = len(values) > 0
    return {
        "p50": float(np.quantile(values, 0.5, method="inverted_cdf")) if known else None,
        "p99": float(np.quantile(values, 0.99, method="inverted_cdf")) if known else None,
        "max": float(values.max()) if known else None,
    }


def physics_of(
    *,
    hop_ms: float,
    chunk_ms: Mapping[str, float],
    look_ahead_ms: float | None,
    filter_delay_ms: float | None,
    window_ms: float | None,
    times: HopTimes,
    device_lag: str = "unknown",
) -> dict[str, Any]:
    """Delays that are there whatever the computer does; None for what is not known.

    Parameters
    ----------
    chunk_ms : by stream, from the first sample of its block to the last
    look_ahead_ms : that the resampler waits for later samples
    filter_delay_ms : group delay of the filters in the middle of their band
    window_ms : how far back the solver looks; no delay, since the newest samples are imaged
    times : to measure from the last sample of a hop to when the hop could exist
    device_lag : of the amplifiers, in words; a lag that is known is in `sample_to_intended_ms`
    """
    exists = times.latency_ms("age") - times.latency_ms("lateness")
    return {
        "hop_fill_ms": hop_ms,
        "chunk_fill_ms": dict(chunk_ms),
        "look_ahead_ms": look_ahead_ms,
        "sample_to_intended_ms": figures_of(exists)["mean"],
        "filter_delay_ms": filter_delay_ms,
        "window_ms": window_ms,
        "device_lag": device_lag,
    }
