"""`rt-mmdf export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rt_mmdf.cli.console import OUT, progress_bar

if TYPE_CHECKING:
    from rt_mmdf.app.export import Compared
    from rt_mmdf.backends.choice import Tried

WORST = 1


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A trained model, by name or folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the graphs, engines and the report.")],
    recording: Annotated[
        Path | None, typer.Option(help="A recording with EEG and MEG, to compare on real samples too (whatever MNE reads).")
    ] = None,
) -> None:
    """Write a model as ONNX (and as TensorRT engines where that runs), and how true every backend is here.

    Each backend and precision is compared with double precision on the processor: parity.json, and a table. Exit code 1: one
    that runs here is beyond its limits. Engines belong to this GPU and driver; the live chain builds its own.

    Examples:

        rt-mmdf export fusion --out exported

        rt-mmdf export mmdf --out exported --recording sample_audvis_raw.fif
    """
    from rt_mmdf.app.export import export_model
    from rt_mmdf.solvers.artefact import find_model, load_artefact

    artefact = load_artefact(find_model(model))
    with progress_bar() as progress:
        done = export_model(artefact, out, recording, progress)
    for compared in done.compared:
        OUT.print(_table(compared.backends, f"Against double precision, {compared.source} samples", "ms for 10"))
        if compared.window_backends:
            title = f"Estimates from windows on, {compared.source}: three quarters of them"
            OUT.print(_table(compared.window_backends, title, "ms a window"))
        _say_more(compared)
    _say(f"Exported: {done.part}.")
    for file in done.files:
        _say(str(done.folder / file))
    tried = [entry for compared in done.compared for entry in (*compared.backends, *compared.window_backends)]
    if any(entry.accuracy is not None and entry.problem is not None for entry in tried):
        raise typer.Exit(WORST)


def _table(tried: Sequence[Tried], title: str, timed: str) -> Table:
    from rt_mmdf.backends.interface import describe

    table = Table(title=title, title_justify="left", box=None)
    for column in ("backend", "device", "relative L2", "correlation", "peak mm", timed, ""):
        table.add_column(column, justify="left" if column in ("backend", "device", "") else "right")
    for entry in tried:
        if (seen := entry.accuracy) is not None:
            verdict = Text("ok", style="green") if entry.problem is None else Text(entry.problem, style="bold red")
            ms = "" if entry.ms is None else f"{entry.ms:.3f}"
            values = (f"{seen.relative_l2:.1e}", f"{seen.correlation:.7f}", f"{seen.peak_mm:.1f}", ms)
            table.add_row(describe(entry.backend, entry.precision), entry.device, *values, verdict)
    return table


def _say_more(compared: Compared) -> None:
    """What of the windows torch leaves open, and what is not here."""
    if (seen := compared.windows) is not None:
        _say(
            f"What torch makes of {seen.n_windows} windows: relative L2 {seen.median_relative_l2:.1e} at the median, "
            f"{seen.largest_relative_l2:.1e} at most; peak {seen.largest_peak_mm:.1f} mm off at most."
        )
    absent: dict[str, list[str]] = {}
    for entry in compared.backends:
        if entry.accuracy is None and entry.backend not in (names := absent.setdefault(entry.problem or "", [])):
            names.append(entry.backend)
    for reason, names in absent.items():
        _say(f"Not here: {', '.join(names)}. {reason}")


def _say(text: str) -> None:
    OUT.print(text, highlight=False, soft_wrap=True, markup=False)
