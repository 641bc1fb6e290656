"""Figures of a profile, for its HTML report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rt_mmdf.app.profiling.hops import STAGES
from rt_mmdf.app.profiling.rows import Row, labels_of

DRAWN = 8
"""Rows in a figure; the tables have all."""
# most by Okabe and Ito (2008), told apart by all kinds of colour vision; none of them near the red of what is late
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#000000", "#8a8a00", "#6a3d9a")
STAGE_COLOURS = ("#a6cee3", "#7fc9a4", "#f3c65f", "#8fb3e0", "#e0a6c4")
FILLED = 3
"""With more histograms in one figure only their outlines are drawn."""
GREY, RED = "#777777", "#c0281e"
DPI = 110
POINTS = 20_000


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(11, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    return figure, axes


def _drawn(rows: Sequence[Row]) -> list[tuple[Row, str, str]]:
    """Rows that are drawn, with name and colour."""
    return list(zip(rows[:DRAWN], labels_of(rows)[0], COLOURS, strict=False))


def _say_what_is_left_out(axes: Axes, rows: Sequence[Row]) -> None:
    if len(rows) > DRAWN:
        axes.set_title(f"the first {DRAWN} of {len(rows)} rows", fontsize=9, color=GREY, loc="right")


def _budgets(rows: Sequence[Row]) -> list[float]:
    return sorted({row.budget_ms for row in rows[:DRAWN]})


def percentiles(rows: Sequence[Row]) -> Figure:
    """Latency over percentile, stretched towards 100 %."""
    figure, axes = _figure(4.6)
    most = 10.0
    for row, name, colour in _drawn(rows):
        values = np.sort(row.end_to_end_ms)
        n = len(values)
        if n == 0:
            continue
        rarity = n / (n - np.arange(n))  # 1 / (1 - q): one hop in so many is later
        axes.plot(rarity, values, color=colour, lw=1.8, label=name, drawstyle="steps-pre")
        most = max(most, float(n))
    axes.set_xscale("log")
    axes.set_xlim(1, most)
    shown = [
        (1, "0"),
        (2, "50 %"),
        (10, "90 %"),
        (100, "99 %"),
        (1000, "99.9 %"),
        (10_000, "99.99 %"),
        (100_000, "99.999 %"),
    ]
    ticks = [(at, name) for at, name in shown if at <= most]
    axes.set_xticks([at for at, _ in ticks], labels=[name for _, name in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("percentile")
    _latency_axis(axes, rows)
    if any(len(row.times) for row, _, _ in _drawn(rows)):
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    _say_what_is_left_out(axes, rows)
    return figure


def _latency_axis(axes: Axes, rows: Sequence[Row]) -> None:
    """Milliseconds; the budget is drawn where it is near, else only told."""
    axes.set_ylabel("end to end, ms")
    tallest = max((float(row.end_to_end_ms.max()) for row in rows[:DRAWN] if len(row.end_to_end_ms)), default=1.0)
    near = [budget for budget in _budgets(rows) if budget < 2 * tallest]
    for budget in near:
        axes.axhline(budget, color=RED, ls="--", lw=1.2)
    axes.set_ylim(0, 1.08 * max([tallest, 0.1, *near]))
    far = [f"{budget:g} ms" for budget in _budgets(rows) if budget not in near]
    if far:
        axes.text(0.995, 0.98, f"budget {', '.join(far)}: above", color=RED, ha="right", va="top", transform=axes.transAxes)


def histogram(rows: Sequence[Row]) -> Figure:
    """Share of hops by latency, on a logarithmic axis."""
    figure, axes = _figure(3.8)
    drawn = [(name, colour, row.end_to_end_ms) for row, name, colour in _drawn(rows) if len(row.end_to_end_ms)]
    if drawn:
        everything = np.concatenate([values for _, _, values in drawn])
        low, high = max(float(everything.min()), 0.05), max(float(everything.max()), 0.1)
        edges = np.geomspace(0.9 * low, 1.1 * max(high, 2 * low), 81)
        for name, colour, values in drawn:
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            if len(drawn) <= FILLED:
                axes.stairs(100 * counts / len(values), edges, color=colour, lw=1.4, fill=True, alpha=0.15)
            axes.stairs(100 * counts / len(values), edges, color=colour, lw=1.6, label=name)
        for budget in _budgets(rows):
            if edges[0] < budget < edges[-1]:
                axes.axvline(budget, color=RED, ls="--", lw=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("end to end, ms")
    axes.set_ylabel("% of hops")
    axes.set_ylim(0)
    if drawn:
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    _say_what_is_left_out(axes, rows)
    return figure


def timeline(rows: Sequence[Row]) -> Figure:
    """Every hop of every row over time; one strip a row, the same scale for all."""
    drawn = _drawn(rows)
    figure = Figure(figsize=(11, 0.9 + 1.7 * max(len(drawn), 1)), dpi=DPI, layout="constrained")
    strips = figure.subplots(max(len(drawn), 1), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for (row, name, colour), axes in zip(drawn, strips, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.set_title(name, fontsize=9, loc="left")
        values = row.end_to_end_ms
        if len(values) == 0:
            continue
        hop_s = row.case["hop_ms"] * 1e-3 if row.complete_hops else row.times.seconds / max(len(values) - 1, 1)
        at = hop_s * np.arange(len(values))
        late = values > row.budget_ms
        thin = max(1, len(values) // POINTS)
        keep = late | (np.arange(len(values)) % thin == 0)
        axes.plot(at[keep & ~late], values[keep & ~late], ".", ms=2.5, color=colour)
        skipped = ~np.isin(np.arange(len(values)), row.times.hops - row.times.hops[0]) if row.complete_hops else late & False
        axes.plot(at[late & ~skipped], values[late & ~skipped], ".", ms=4, color=RED)
        axes.plot(at[skipped], values[skipped], "x", ms=4, mew=0.9, color=GREY)
    if drawn:
        _latency_axis(strips[0], [row for row, _, _ in drawn])
        strips[0].set_ylabel("")
        for axes, (row, _, _) in zip(strips[1:], drawn[1:], strict=False):
            if row.budget_ms < strips[0].get_ylim()[1]:
                axes.axhline(row.budget_ms, color=RED, ls="--", lw=1.2)
    strips[-1].set_xlabel("seconds since the start-up")
    figure.supylabel("end to end, ms", fontsize=10)
    return figure


def stages(rows: Sequence[Row]) -> Figure:
    """Two bars a row, of the means of each stage: of the usual hops, those of the middle half, and of the slowest 1 %."""
    bars: list[tuple[str, list[float]]] = []
    for row, name, _ in _drawn(rows):
        if len(row.times) == 0:
            continue
        lateness = row.times.latency_ms("lateness")
        lower, slow = np.quantile(lateness, [0.25, 0.99], method="lower")
        upper = np.quantile(lateness, 0.75, method="higher")
        for which, chosen in (("usual", (lateness >= lower) & (lateness <= upper)), ("slowest 1 %", lateness >= slow)):
            bars.append((f"{name}, {which}", [float(row.times.latency_ms(stage)[chosen].mean()) for stage in STAGES]))
    figure, axes = _figure(1.3 + 0.36 * max(len(bars), 2))
    axes.grid(visible=False, axis="y")
    widest = max(0.1, *(sum(max(width, 0.0) for width in widths) for _, widths in bars), 0.0)
    for place, (_, widths) in enumerate(bars):
        left = 0.0
        for stage, colour, width in zip(STAGES, STAGE_COLOURS, widths, strict=True):
            axes.barh(place, width, left=left, color=colour, height=0.7, label=stage if place == 0 else None)
            if width > 0.04 * widest:
                axes.text(left + width / 2, place, f"{width:.1f}", ha="center", va="center", fontsize=8)
            left += width
        axes.text(left + 0.006 * widest, place, f"{left:.1f}", va="center", fontsize=8, fontweight="bold")
    axes.set_yticks(range(len(bars)), labels=[name for name, _ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.06 * widest)
    axes.set_xlabel("ms after the hop could exist")
    if bars:
        axes.legend(frameon=False, fontsize=9, ncols=6, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure
