"""Rows of a profile as if they had been measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rt_mmdf.app.profiling.hops import HopTimes
from rt_mmdf.app.profiling.load import Load, LoadSample
from rt_mmdf.app.profiling.rows import Row, physics_of

HOP_S = 0.01
PARTS = (0.3, 0.1, 0.2, 0.3, 0.1)  # of the lateness: receive, align, preprocess, solve, publish


def times_of(lateness_ms: Sequence[float], hops: Sequence[int] | None = None) -> HopTimes:
    """Hops 10 ms apart that were published so late, with stages in fixed parts of that."""
    late = 1e-3 * np.asarray(lateness_ms, dtype=float)
    numbers = np.arange(len(late)) if hops is None else np.asarray(hops)
    intended = 500.0 + HOP_S * numbers
    stages = intended[:, None] + late[:, None] * np.cumsum(PARTS)
    stamps = np.column_stack([intended - 0.02, intended, stages])
    queues = {"eeg": numbers % 3, "meg": numbers % 5}
    return HopTimes(numbers.astype(np.int64), stamps, np.zeros(len(late), np.uint32), queues, np.full(len(late), np.nan))


@pytest.fixture
def make_times() -> Callable[..., HopTimes]:
    return times_of


@pytest.fixture
def make_row() -> Callable[..., Row]:
    def row(lateness_ms: Sequence[float], hops: Sequence[int] | None = None, *, budget_ms: float = 20.0, **case: Any) -> Row:
        times = times_of(lateness_ms, hops)
        known = {
            "solver": "dSPM",
            "backend": None,
            "hop_ms": 10.0,
            "chunk": 10,
            "sfreq": 1000.0,
            "modalities": "eeg+meg",
            "n_sources": 5124,
        }
        return Row(
            case=known | case,
            facts={"how": "measured here", "unit": ""},
            budget_ms=budget_ms,
            times=times,
            start_up=times.part(np.zeros(len(times), bool)),
            prepared_s=1.0,
            first_estimate_s=0.5,
            load=Load([LoadSample(500.0 + 0.25 * k, 0.4, 500.0 + k) for k in range(4)], "not measured: no GPU"),
            physics=physics_of(
                hop_ms=9.0,
                chunk_ms={"eeg": 9.0, "meg": 9.0},
                look_ahead_ms=10.0,
                filter_delay_ms=21.0,
                window_ms=10.0,
                times=times,
            ),
            overhead={"note_us": 4.0, "cores": 0.001, "cores_at_1000_hops": 0.004},
        )

    return row
