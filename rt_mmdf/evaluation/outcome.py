"""What an evaluation hands out: rows for programs (JSON, CSV), and the report for people."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import rt_mmdf
from rt_mmdf.core.errors import SinkError
from rt_mmdf.evaluation.figure import ShownCase, comparison_figure, metric_figure
from rt_mmdf.evaluation.real import RealMap, concentration_verdict
from rt_mmdf.evaluation.report import RealSection, Report
from rt_mmdf.evaluation.results import CaseResults, Cell
from rt_mmdf.evaluation.rows import SETTINGS
from rt_mmdf.evaluation.run import SETTING, Evaluation
from rt_mmdf.evaluation.statistics import (
    FUSION,
    SEED,
    Comparison,
    Summary,
    Verdict,
    cell_name,
    compare,
    compare_variance,
    is_classical,
    noise_verdict,
    summaries,
    verdicts,
)
from rt_mmdf.metrics.scoring import METRICS

FORMAT = 1
# first those that every reader may rely on, in this order
COLUMNS = (
    "solver",
    "radius_mm",
    "n_sources_true",
    "snr_db",
    "n",
    "le_mm_mean",
    "le_mm_median",
    "le_mm_var",
    "auc_median",
    "emd_mm_mean",
    "sd_mm_median",
    "area_ratio_median",
    "amplitude_ratio_median",
    "le_mm_q25",
    "le_mm_q75",
    "le_mm_mean_low",
    "le_mm_mean_high",
    "le_mm_median_low",
    "le_mm_median_high",
    "auc_mean",
    "auc_close_median",
    "auc_far_median",
    "n_emd",
    "dice_median",
    "nmse_median",
    "setting",
)
VERSIONS = ("numpy", "scipy", "mne", "torch")

Summaries = Mapping[str, Mapping[tuple[str, Cell], Summary]]
TableRow = dict[str, str | int | float | None]


def all_summaries(evaluation: Evaluation) -> Summaries:
    """Metric to its summary for each solver and cell."""
    return {metric: summaries(evaluation.results, metric) for metric in METRICS}


def table_rows(evaluation: Evaluation, found: Summaries) -> list[TableRow]:
    """One row for each solver and cell, keys `COLUMNS`; None where there is no value.

    `setting` is the strength of regularisation that suited a classical row best in the cell: the assumed amplitude SNR
    (lambda^2 = 1 / setting^2), for LCMV the loading in parts of the mean eigenvalue.
    """
    results = evaluation.results
    rows = []
    for number, cell in enumerate(results.cells):
        radius_mm, n_sources, snr_db = cell
        for solver in results.solvers:
            of = {metric: found[metric][solver, cell] for metric in METRICS}
            error = of["le_mm"]
            values: dict[str, str | int | float] = {
                "solver": solver,
                "radius_mm": radius_mm,
                "n_sources_true": n_sources,
                "snr_db": snr_db,
                "n": error.n,
                "le_mm_mean": error.mean,
                "le_mm_var": error.variance,
                "le_mm_q25": error.lower_quartile,
                "le_mm_q75": error.upper_quartile,
                "le_mm_mean_low": error.mean_low,
                "le_mm_mean_high": error.mean_high,
                "le_mm_median_low": error.median_low,
                "le_mm_median_high": error.median_high,
                "auc_mean": of["auc"].mean,
                "emd_mm_mean": of["emd_mm"].mean,
                "n_emd": of["emd_mm"].n,
                "setting": float(results.of(SETTING, solver, number)[0]),
            }
            values |= {f"{metric}_median": of[metric].median for metric in METRICS if f"{metric}_median" in COLUMNS}
            rows.append({key: _plain(values[key]) for key in COLUMNS})
    return rows


def _plain(value: str | int | float) -> str | int | float | None:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def all_verdicts(evaluation: Evaluation, real: Sequence[RealMap] = ()) -> tuple[Verdict, ...]:
    """Claims about errors, extent and amplitude, each network's answer to noise alone, and to real averages."""
    quiet = [
        noise_verdict(row, evaluation.noise_peaks[row], evaluation.signal_peaks(row))
        for row in (SEED, FUSION)
        if row in evaluation.noise_peaks and len(evaluation.signal_peaks(row))
    ]
    networks = [row for row in dict.fromkeys(found.solver for found in real) if not is_classical(row)]
    concentrated = [concentration_verdict(real, row, _area_ratio(evaluation.results, row)) for row in networks]
    return (*verdicts(evaluation.results, ceilings=evaluation.ceilings), *quiet, *concentrated)


def _area_ratio(results: CaseResults, row: str) -> float | None:
    """Median over all patches of 10 mm and more; None for a row that was not evaluated on any."""
    cells = [i for i, cell in enumerate(results.cells) if cell[0] >= 10]
    if row not in results.solvers or not cells:
        return None
    values = results.values["area_ratio"][results.row(row), np.isin(results.cell_of_case, cells)]
    return None if np.isnan(values).all() else float(np.nanmedian(values))


def noise_rows(evaluation: Evaluation) -> list[TableRow]:
    """Of each row with an amplitude, nA m: 95th percentile of the peak on noise alone, median peak at 10 dB, their ratio."""
    rows: list[TableRow] = []
    for row, peaks in evaluation.noise_peaks.items():
        signal = evaluation.signal_peaks(row)
        loud, usual = float(np.percentile(peaks, 95)), float(np.median(signal)) if len(signal) else float("nan")
        values = {
            "noise_peak_p95_nam": loud,
            "peak_median_10_db_nam": usual,
            "ratio": loud / usual if usual else float("nan"),
        }
        said: TableRow = {"solver": row, "n": len(peaks)}
        rows.append(said | {key: _plain(value) for key, value in values.items()})
    return rows


def comparisons(evaluation: Evaluation) -> dict[str, tuple[Comparison, ...]]:
    """Heading to tests of the seed's network and of ours against every other row, where they were evaluated."""
    results, found = evaluation.results, {}
    rows = [row for row in results.solvers if row not in evaluation.ceilings]
    for ours in (FUSION, SEED):
        if ours in rows and len(rows) > 1:
            found[f"{ours}: localisation error"] = compare(results, "le_mm", ours, others=rows)
            found[f"{ours}: variance of the localisation error"] = compare_variance(results, "le_mm", ours, rows)
            found[f"{ours}: area under the ROC curve"] = compare(results, "auc", ours, "higher", rows)
            found[f"{ours}: earth mover's distance"] = compare(results, "emd_mm", ours, others=rows)
    return found


def facts(evaluation: Evaluation, command: str) -> dict[str, str]:
    """What must be known to repeat it: plain text by name."""
    plan = evaluation.plan
    return {
        "command": command,
        "heads": evaluation.suite_description,
        "SNR": "at the scored instant",
        "cells": str(len(plan.cells)),
        "cases in each cell": f"{plan.n_cases} ({min(plan.n_transported, plan.n_cases)} with earth mover's distance)",
        **({"ceiling": evaluation.ceiling_description} if evaluation.ceilings else {}),
        "seed": str(plan.seed),
        "duration": f"{evaluation.duration_s:.0f} s on {plan.n_processes} processes",
        "versions": ", ".join([f"rt-mmdf {rt_mmdf.__version__}", *(f"{name} {version(name)}" for name in VERSIONS)]),
    }


def json_report(
    evaluation: Evaluation,
    rows: Sequence[TableRow],
    found: Sequence[Verdict],
    tests: Mapping[str, Sequence[Comparison]],
    command: str,
    real: Sequence[RealMap] = (),
) -> dict[str, Any]:
    """Everything but the single cases, as plain values."""
    return {
        "format": FORMAT,
        "suite": "held-out",
        "facts": facts(evaluation, command),
        "rows": list(rows),
        "noise": noise_rows(evaluation),
        "real": [found.as_row() for found in real],
        "tests": {
            "verdicts": [asdict(verdict) | {"outcome": verdict.outcome} for verdict in found],
            "comparisons": {heading: [_test(one) for one in of] for heading, of in tests.items()},
        },
    }


def _test(one: Comparison) -> dict[str, Any]:
    radius_mm, n_sources, snr_db = one.cell
    values = {
        key: _plain(getattr(one, key))
        for key in ("ours", "other", "n", "ours_value", "other_value", "effect", "direction", "p", "p_holm")
    }
    return {"radius_mm": radius_mm, "n_sources_true": n_sources, "snr_db": snr_db} | values


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file; SinkError if that is not possible."""
    _write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_csv(rows: Sequence[TableRow], path: Path) -> None:
    """Write rows as CSV, `COLUMNS` in the first line, empty where there is no value; SinkError if that is not possible."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise _not_written(path, error) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> SinkError:
    return SinkError(
        f"evaluation {path}: cannot be written ({error.strerror or error}). Choose a folder that you may write to."
    )


def check_path(path: Path) -> None:
    """Raise SinkError unless a file can be written there; worth knowing before a quarter of an hour of computing."""
    there = path.exists() or path.is_symlink()  # also a device, which is not ours to remove
    try:
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise _not_written(path, error) from error


def _edges(results: CaseResults) -> str:
    """Where a chosen setting lies at an end of its grid, so that a better one may lie beyond: one sentence."""
    at: dict[str, list[Cell]] = {}
    for row, (number, cell) in product(results.solvers, enumerate(results.cells)):
        grid = SETTINGS.get(row)
        # scores are kept in single precision
        if grid is not None and np.isclose(results.of(SETTING, row, number)[:1], [grid[0], grid[-1]]).any():
            at.setdefault(row, []).append(cell)
    if not at:
        return "None of them lies at an end of the settings that were tried."
    some = {row: [cell_name(cell) for cell in cells[:3]] + ["..."] * (len(cells) > 3) for row, cells in at.items()}
    n_cells = len(results.cells)
    said = ", ".join(f"{row} in {len(cells)} of {n_cells} ({'; '.join(some[row])})" for row, cells in at.items())
    return f"At an end of the settings that were tried, so that a better one may lie beyond, in cells: {said}."


def report_of(
    evaluation: Evaluation,
    found: Summaries,
    judged: Sequence[Verdict],
    tests: Mapping[str, Sequence[Comparison]],
    command: str,
    real: RealSection | None = None,
) -> Report:
    """The report: verdicts, figures, tables, tests."""
    figures = {}
    if evaluation.shown:
        shown = [
            ShownCase(
                label=cell_name(case.cell).replace(", ", "\n"),
                truth=case.truth,
                centres_mm=case.centres_mm.astype(np.float64),
                estimates=dict(zip(evaluation.results.solvers, case.maps, strict=True)),
                le_mm={row: float(le) for row, le in zip(evaluation.results.solvers, case.le_mm, strict=True)},
            )
            for case in evaluation.shown
        ]
        figures["One case of some cells, on the same cortex"] = comparison_figure(evaluation.head, shown)
    figures["Localisation error, mean"] = metric_figure(found["le_mm"], "le_mm")
    figures["Localisation error, variance"] = metric_figure(found["le_mm"], "le_mm", "variance")
    figures["Area under the ROC curve, mean"] = metric_figure(found["auc"], "auc")
    noise = "; ".join(
        f"{row['solver']} {row['ratio']:.1%}" for row in noise_rows(evaluation) if isinstance(row["ratio"], float)
    )
    notes = [
        "Classical rows are shown at the strength of regularisation that gives the lowest mean localisation error in each "
        "cell, found on the cell's own cases, and at that one in all metrics: another one may suit another metric better. "
        f"{_edges(evaluation.results)} dSPM, sLORETA and LCMV (unit noise gain) have no amplitude.",
        "SNR is that of the scored instant: 10 log10 of the whitened power of the true field over the rank of the data. "
        "Sources swell and fade, so the mean over the window of 1 s is mostly several dB lower.",
        "Networks that see windows see the columns up to the scored instant; LCMV has the covariance of the whole window. "
        "A row that ends in -instant is the same network given the sample alone, and no competitor.",
        "Tests take the cases as independent. They come from few heads (see heads above), so p values speak of these heads, "
        "not of all that there are; what was to be shown tells in how many of them the mean error is lower.",
    ]
    if evaluation.ceilings:
        notes.append(
            f"Ceilings, beyond real time, in no test and not marked as best: {evaluation.ceiling_description}; figures of "
            "other rows are of all cases."
        )
    if noise:
        notes.append(f"Noise alone, 95th percentile of the peak over the median peak at 10 dB: {noise}.")
    return Report(
        title="Evaluation on the held-out suite",
        facts=facts(evaluation, command),
        results=evaluation.results,
        summaries=found,
        verdicts=judged,
        comparisons=tests,
        figures=figures,
        real=real,
        notes=notes,
        ceilings=evaluation.ceilings,
    )
