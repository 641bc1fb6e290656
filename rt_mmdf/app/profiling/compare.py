"""Two reports side by side: the ratio of each percentile, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rt_mmdf.app.profiling.report import FORMAT, FORMAT_VERSION
from rt_mmdf.app.profiling.rows import CASE_KEYS, RAW_HOPS
from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.runtime.telemetry import QUANTILES

RESAMPLES = 2000
CONFIDENCE = 0.95
BLOCK_HOPS = 25
"""Neighbouring hops share what disturbs them: whole blocks are drawn, a quarter of a second at hops of 10 ms."""
LEAST_BLOCKS = 4
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Ratio:
    """A percentile of the second report over that of the first, with its bootstrap interval; all NaN where unknown."""

    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.low > 1 or self.high < 1


@dataclass(frozen=True)
class Comparison:
    """Rows of one case in both reports, by percentile; and the names of those that only one has."""

    rows: Mapping[str, Mapping[str, Ratio]]
    only_first: Sequence[str]
    only_second: Sequence[str]

    def render(self, first: Path, second: Path) -> RenderableType:
        """For a terminal."""
        table = Table(box=None, pad_edge=False, header_style="bold", title=f"end to end: {second} over {first}")
        table.title_justify = "left"
        table.add_column("row")
        for name in ("first ms", "second ms", "ratio", f"{CONFIDENCE:.0%} interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for row, ratios in self.rows.items():
            table.add_row(Text(row, style="bold"))
            for key, r in ratios.items():
                said = "too few hops" if np.isnan(r.ratio) else f"{r.ratio:.3f}"
                style = ("red" if r.ratio > 1 else "green") if r.differs else "dim"
                interval = "" if np.isnan(r.low) else f"{r.low:.3f} to {r.high:.3f}"
                known = [f"{value:.2f}" if np.isfinite(value) else "" for value in (r.first_ms, r.second_ms)]
                table.add_row(f"  {key.replace('_', '.')}", *known, Text(said, style=style), interval)
        notes = [
            Text(f"Only in {path}: {name}", style="yellow")
            for path, names in ((first, self.only_first), (second, self.only_second))
            for name in names
        ]
        how = (
            f"Coloured where the interval leaves out 1. Percentile bootstrap, {RESAMPLES} resamples of blocks of "
            f"{BLOCK_HOPS} hops of each report; two runs differ by more than that when the machine had other work."
        )
        return Group(table, *notes, Text(how, style="dim"))


def compare(first: Path, second: Path, seed: int = 0) -> Comparison:
    """Compare the end-to-end latency of every case that both reports have.

    Raises
    ------
    ConfigurationError
        A file is not a report of `rt-mmdf profile`, or they have no case in common.
    """
    a, b = (_rows(path) for path in (first, second))
    if not (common := [case for case in a if case in b]):
        raise ConfigurationError(
            f"--compare {first} {second}: no row of one is in the other. Rows are the same where {', '.join(CASE_KEYS)} "
            f"agree; seen in the first: {'; '.join(name for name, _ in a.values())}; in the second: "
            f"{'; '.join(name for name, _ in b.values())}."
        )
    rng = np.random.default_rng(seed)
    rows = {a[case][0]: {key: ratio_of(a[case][1], b[case][1], q, rng) for key, q in QUANTILES.items()} for case in common}
    return Comparison(
        rows,
        [name for case, (name, _) in a.items() if case not in b],
        [name for case, (name, _) in b.items() if case not in a],
    )


def ratio_of(first: Float64, second: Float64, q: float, rng: np.random.Generator) -> Ratio:
    """One percentile of two series of latencies in ms, each in the order of its hops."""
    nan = float("nan")
    if min(len(first), len(second)) < round(1 / (1 - q)):
        return Ratio(nan, nan, nan, nan, nan)
    before, after = (float(np.quantile(values, q, method="inverted_cdf")) for values in (first, second))
    if min(before, after) <= 0:
        return Ratio(before, after, nan, nan, nan)
    if min(len(first), len(second)) < LEAST_BLOCKS * BLOCK_HOPS:
        return Ratio(before, after, after / before, nan, nan)
    resampled = [_resampled_quantiles(values, q, rng) for values in (first, second)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled[1] / np.maximum(resampled[0], 1e-9), [tail, 1 - tail])
    return Ratio(before, after, after / before, float(low), float(high))


def _resampled_quantiles(values: Float64, q: float, rng: np.random.Generator) -> Float64:
    """(RESAMPLES,) quantiles of circular-block bootstrap samples (Politis & Romano 1992)."""
    n = len(values)
    n_blocks = -(-n // BLOCK_HOPS)
    within: NDArray[np.intp] = np.arange(BLOCK_HOPS)
    out = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        starts = rng.integers(0, n, n_blocks)
        sample = values[((starts[:, None] + within) % n).ravel()[:n]]
        out[k] = np.partition(sample, at := max(0, int(np.ceil(q * n)) - 1))[at]
    return out


def _rows(path: Path) -> dict[tuple[object, ...], tuple[str, Float64]]:
    """Name and end-to-end latencies in ms, by case."""
    wanted = "a file that `rt-mmdf profile --report` wrote is expected"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError(f"--compare {path}: {path.stat().st_size / 2**20:.0f} MB; {wanted}.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--compare {path}: cannot be read ({error.strerror or error}); {wanted}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--compare {path}: not JSON ({error}); {wanted}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        seen = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ConfigurationError(f"--compare {path}: format {seen!r} seen; {wanted}.")
    if content.get("format_version") != FORMAT_VERSION:
        raise ConfigurationError(
            f"--compare {path}: format version {content.get('format_version')!r} seen, {FORMAT_VERSION} expected; measure "
            "it anew with this version of rt_mmdf."
        )
    try:
        return dict(_row(row) for row in content["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"--compare {path}: damaged ({type(error).__name__}: {error}); {wanted}.") from error


def _row(row: Mapping[str, Any]) -> tuple[tuple[object, ...], tuple[str, Float64]]:
    values = 1e-3 * np.asarray(row["raw"]["end_to_end_us"], dtype=np.float64)
    if values.ndim != 1 or len(values) > RAW_HOPS or not np.isfinite(values).all():
        raise ValueError("end_to_end_us is no list of numbers of the right length")
    return tuple(row["case"].get(key) for key in CASE_KEYS), (str(row["name"]), values)
