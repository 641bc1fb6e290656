"""`rt-mmdf evaluate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rt_mmdf.cli.console import OUT, progress_bar
from rt_mmdf.core.errors import ConfigurationError

if TYPE_CHECKING:
    from rt_mmdf.evaluation.ceiling import Ceiling
    from rt_mmdf.evaluation.outcome import TableRow
    from rt_mmdf.evaluation.real import Averages, RealMap
    from rt_mmdf.evaluation.report import RealSection
    from rt_mmdf.evaluation.run import Plan
    from rt_mmdf.evaluation.statistics import Verdict

QUICK_CASES, QUICK_TRANSPORTED, QUICK_NOISE, QUICK_CEILING = 40, 10, 60, 4
RESULTS, HEADS, WORK, CEILING = "Results", "Heads and noise", "How much", "Ceiling: windowed solvers of invertmeeg"


class SuiteName(StrEnum):
    """What is evaluated on."""

    HELD_OUT = "held-out"


def evaluate(
    solver: Annotated[
        list[str] | None,
        typer.Option(
            "--solver",
            "-s",
            help="A row: MNE, dSPM, sLORETA, eLORETA, LCMV, sLORETA-eeg, sLORETA-meg, a model's name or its folder; "
            "NAME-instant for a model without its window; repeat for more. \\[default: all of these and every model at "
            "hand that fits the head]",
        ),
    ] = None,
    suite: Annotated[SuiteName, typer.Option(help="What to evaluate on.")] = SuiteName.HELD_OUT,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few cells and cases: under a minute with heads at hand.", rich_help_panel=WORK)
    ] = False,
    cases: Annotated[
        int | None, typer.Option(min=2, max=4000, help="Cases of each cell. \\[default: 500]", rich_help_panel=WORK)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the cases; the suite's own by default.", rich_help_panel=WORK)
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Each takes about 1.7 GB of memory.", rich_help_panel=WORK)
    ] = 2,
    head: Annotated[
        Path | None,
        typer.Option(help="Folder of the head model to image with; the template by default.", rich_help_panel=HEADS),
    ] = None,
    noise_cov: Annotated[
        Path | None,
        typer.Option(
            help="Colour of the sensors' noise, -cov.fif, in place of white noise; brain noise comes on top.",
            rich_help_panel=HEADS,
        ),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(
            help="Folder with one subject's -ave.fif, -cov.fif, -trans.fif, -src.fif and -bem-sol.fif: the evoked responses "
            "are imaged as well.",
            rich_help_panel=HEADS,
        ),
    ] = None,
    invertmeeg: Annotated[
        str | None,
        typer.Option(
            metavar="PYTHON",
            help="Interpreter of an environment that the package invertmeeg was installed in (pip install invertmeeg). Its "
            "solvers see the whole window and take seconds for each case; they are in the tables, and in no test.",
            rich_help_panel=CEILING,
        ),
    ] = None,
    invertmeeg_solver: Annotated[
        list[str] | None,
        typer.Option(help="Its name for it; repeat for more. \\[default: flex-champagne]", rich_help_panel=CEILING),
    ] = None,
    invertmeeg_cases: Annotated[
        int | None,
        typer.Option(min=1, max=4000, help="Of each cell, at most. \\[default: 20; --quick 4]", rich_help_panel=CEILING),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Rows and tests as JSON.", rich_help_panel=RESULTS)] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Rows as CSV.", rich_help_panel=RESULTS)] = None,
    html: Annotated[
        Path | None, typer.Option(help="Tables, tests and figures as one HTML file.", rich_help_panel=RESULTS)
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Every case's scores, .npz.", rich_help_panel=RESULTS)] = None,
) -> None:
    """How well solvers localise, on heads and noise that no training has seen.

    Every row images the same cases: patches of 0 to 30 mm, one to three at a time, -5 to 20 dB at the scored instant (the
    mean over the window of a second is mostly several dB lower). The first run computes the held-out heads and keeps them
    (some minutes).

    Examples:

        rt-mmdf evaluate --quick

        rt-mmdf evaluate --report evaluation.json --html evaluation.html

        rt-mmdf evaluate --solver sLORETA --solver models/mine --cases 100 --csv rows.csv

        rt-mmdf evaluate --quick --invertmeeg ~/bayes/bin/python --invertmeeg-solver flex-champagne
    """
    from rt_mmdf.evaluation.outcome import (
        all_summaries,
        all_verdicts,
        check_path,
        comparisons,
        json_report,
        noise_rows,
        report_of,
        table_rows,
        write_csv,
        write_json,
    )
    from rt_mmdf.evaluation.report import describe, write_report
    from rt_mmdf.evaluation.run import evaluate as run

    if keep is not None and keep.suffix != ".npz":
        raise ConfigurationError(f"--keep {keep}: a name that ends in .npz is expected.")
    for path in (report, csv, html, keep):
        if path is not None:
            check_path(path)
    plan = _plan(solver, quick, cases, seed, processes, head, noise_cov, show=html is not None)
    plan = replace(plan, ceiling=_ceiling(invertmeeg, invertmeeg_solver, invertmeeg_cases, quick))
    averages = None if real is None else _averages(real)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    with progress_bar() as progress:
        evaluation = run(plan, progress)
        section = None if averages is None else _real(averages, plan.solvers, progress)
        maps = () if section is None else section.maps
        progress("statistics", 0.99)
        found = all_summaries(evaluation)
        rows = table_rows(evaluation, found)
        judged, tests = all_verdicts(evaluation, real=maps), comparisons(evaluation)
    if keep is not None:
        evaluation.results.save(keep)
    if csv is not None:
        write_csv(rows, csv)
    if report is not None:
        write_json(json_report(evaluation, rows, judged, tests, command, maps), report)
    if html is not None:
        write_report(report_of(evaluation, found, judged, tests, command, section), html)
    _print_rows(rows, evaluation.ceilings)
    _print_noise(noise_rows(evaluation))
    _print_real(maps)
    if tested := [verdict for verdict in judged if verdict.n_tested]:
        _print_verdicts(tested)
    else:
        OUT.print(Text(describe(judged)))
    OUT.print(
        Text(
            f"{len(rows)} rows, {plan.n_cases} cases a cell, {evaluation.duration_s:.0f} s. {evaluation.suite_description}."
        )
    )
    if evaluation.ceilings:
        OUT.print(Text(f"Ceiling, in no test: {evaluation.ceiling_description}."))


def _plan(
    solvers: Sequence[str] | None,
    quick: bool,
    cases: int | None,
    seed: int | None,
    processes: int,
    head: Path | None,
    noise_cov: Path | None,
    show: bool,
) -> Plan:
    from rt_mmdf.evaluation.rows import default_solvers
    from rt_mmdf.evaluation.run import Plan
    from rt_mmdf.evaluation.suite import CELLS, QUICK_CELLS, SEED
    from rt_mmdf.headmodel.head import load_head
    from rt_mmdf.headmodel.template import build_template

    if solvers:
        chosen = tuple(solvers)
    else:
        nominal = build_template() if head is None else load_head(head)
        chosen, others = default_solvers(nominal)
        if others:
            OUT.print(Text(f"Trained for another head than {nominal.name}, so left out: {', '.join(others)}."))
    n_cases = cases or (QUICK_CASES if quick else 500)
    return Plan(
        solvers=chosen,
        cells=QUICK_CELLS if quick else CELLS,
        n_cases=n_cases,
        n_transported=QUICK_TRANSPORTED if quick else 50,
        n_noise=QUICK_NOISE if quick else 500,
        seed=SEED if seed is None else seed,
        head=head,
        noise_cov=noise_cov,
        show=show,
        n_processes=processes,
    )


def _ceiling(python: str | None, solvers: Sequence[str] | None, cases: int | None, quick: bool) -> Ceiling | None:
    from rt_mmdf.evaluation.ceiling import DEFAULT_SOLVER, MOST_CASES, Ceiling

    if python is None:
        if solvers or cases:
            raise ConfigurationError(
                "--invertmeeg-solver and --invertmeeg-cases: they need --invertmeeg PYTHON as well, the interpreter of an "
                "environment that invertmeeg was installed in."
            )
        return None
    return Ceiling(python, tuple(solvers or (DEFAULT_SOLVER,)), cases or (QUICK_CEILING if quick else MOST_CASES))


def _averages(folder: Path) -> Averages:
    """Read before anything is computed: what is missing shows at once."""
    from rt_mmdf.evaluation.real import read_averages

    with progress_bar() as progress:
        return read_averages(folder, progress)


def _real(averages: Averages, solvers: Sequence[str], progress: Callable[[str, float], None]) -> RealSection:
    from rt_mmdf.evaluation.real import classical_solvers, image_averages, network_solver, real_figure
    from rt_mmdf.evaluation.report import RealSection
    from rt_mmdf.evaluation.rows import ALONE_ROWS, CLASSICAL_ROWS, find_network

    networks = [find_network(name) for name in solvers if name not in (*CLASSICAL_ROWS, *ALONE_ROWS)]
    artefacts = [artefact for _, artefact, instant in networks if not instant]
    usable = [artefact for artefact in artefacts if artefact.head_free or artefact.n_sources == averages.head.n_sources]
    left_out = ", ".join(artefact.name for artefact in artefacts if artefact not in usable)
    rows = [*classical_solvers(), *(network_solver(artefact) for artefact in usable)]
    maps = image_averages(averages, rows, lambda what, fraction: progress(what, 0.97 + 0.02 * fraction))
    note = f"Trained for another head, so not shown: {left_out}." if left_out else ""
    return RealSection(maps, real_figure(averages, maps), note)


def _print_rows(rows: Sequence[TableRow], ceilings: Sequence[str]) -> None:
    """Mean localisation error: rows are solvers, columns cells; the best of each cell in bold, ceilings aside."""
    cells = list(dict.fromkeys((row["radius_mm"], row["n_sources_true"], row["snr_db"]) for row in rows))
    solvers = list(dict.fromkeys(str(row["solver"]) for row in rows))
    error = {(str(row["solver"]), row["radius_mm"], row["n_sources_true"], row["snr_db"]): row["le_mm_mean"] for row in rows}
    for n_sources in sorted({int(cell[1] or 0) for cell in cells}):
        OUT.print(Text(f"\nmean localisation error, mm; {n_sources} source{'s' if n_sources > 1 else ''}", style="italic"))
        table = Table(box=None)
        own = [cell for cell in cells if cell[1] == n_sources]
        table.add_column("solver", style="bold", no_wrap=True)
        for radius, _, snr in own:
            table.add_column(f"{radius:g} mm\n{snr:g} dB", justify="right")
        ranked = [solver for solver in solvers if solver not in ceilings]
        best = {cell: min(float(error[(solver, *cell)] or 0) for solver in ranked) for cell in own}
        for solver in solvers:
            values = [float(error[(solver, *cell)] or 0) for cell in own]
            said = [
                Text(f"{value:.1f}", style="bold green" if value == best[cell] and solver in ranked else "")
                for value, cell in zip(values, own, strict=True)
            ]
            table.add_row(solver, *said)
        OUT.print(table)


def _print_noise(rows: Sequence[TableRow]) -> None:
    if not rows:
        return
    table = Table(title="noise alone", box=None)
    table.add_column("solver", style="bold")
    for heading in ("peak p95, nA m", "median peak at 10 dB, nA m", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = row["ratio"]
        table.add_row(
            str(row["solver"]),
            f"{row['noise_peak_p95_nam']:.3g}",
            "" if row["peak_median_10_db_nam"] is None else f"{row['peak_median_10_db_nam']:.3g}",
            f"{ratio:.1%}" if isinstance(ratio, float) else "",
        )
    OUT.print(table)


def _print_real(maps: Sequence[RealMap]) -> None:
    if not maps:
        return
    table = Table(title="real averages", box=None)
    for heading in ("condition", "solver"):
        table.add_column(heading, style="bold", no_wrap=True)
    for heading in ("peak, MRI mm", "ms", "where expected", "sd, mm"):
        table.add_column(heading, justify="right")
    said = {None: "not known", True: "yes", False: "no"}
    for found in maps:
        at = ", ".join(str(round(value)) for value in found.position_mm)
        style = {None: "dim", True: "green", False: "red"}[found.in_region]
        where = Text(said[found.in_region], style=style)
        table.add_row(found.condition, found.solver, at, f"{1e3 * found.time_s:.0f}", where, f"{found.sd_mm:.0f}")
    OUT.print(table)


def _print_verdicts(verdicts: Sequence[Verdict]) -> None:
    colours = {"holds": "green", "holds in part": "yellow", "does not hold": "red"}
    for verdict in verdicts:
        counted = f" ({verdict.n_passed} of {verdict.n_tested})"
        OUT.print(
            Text.assemble(
                (f"{verdict.outcome}{counted}: ", colours.get(verdict.outcome, "")),
                f"{verdict.topic}: {verdict.claim}",
                (f"; {verdict.note}" if verdict.note else "", "dim"),
            )
        )
