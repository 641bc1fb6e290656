"""`rt-mmdf profile`."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from rt_mmdf.cli.console import ERR, OUT, progress_bar
from rt_mmdf.core.errors import ConfigurationError

if TYPE_CHECKING:
    from rt_mmdf.app.profiling.rows import Row

WHAT, FILES, INSTEAD = "What is measured; each may be given again for more rows", "Results", "Instead of measuring here"
ATTACH_S, MEASURE_S = 20.0, 10.0


class Modality(StrEnum):
    """What is imaged from."""

    BOTH = "eeg+meg"
    EEG = "eeg"
    MEG = "meg"


class Backend(StrEnum):
    """What models run on."""

    TORCH = "torch"
    TORCH_CUDA = "torch-cuda"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class Spacing(StrEnum):
    """Sources of the template head."""

    ICO3 = "ico3"
    ICO4 = "ico4"
    ICO5 = "ico5"


def profile(
    recording: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Replay this recording instead of simulated noise.")
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(
            "--solver",
            "--model",
            "-s",
            help="MNE, dSPM, sLORETA, eLORETA, LCMV, or a model's name or folder. \\[default: the best model, dSPM]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    backend: Annotated[
        list[Backend] | None,
        typer.Option(help="That models run on. \\[default: the fastest that is true]", rich_help_panel=WHAT),
    ] = None,
    hop_ms: Annotated[
        list[float] | None, typer.Option("--hop", help="Milliseconds imaged at once. \\[default: 10]", rich_help_panel=WHAT)
    ] = None,
    chunk: Annotated[
        list[int] | None, typer.Option(help="Samples per block of both streams. \\[default: 10]", rich_help_panel=WHAT)
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Hz of both streams. \\[default: 1000, or as recorded]", rich_help_panel=WHAT),
    ] = None,
    modality: Annotated[
        list[Modality] | None, typer.Option(help="Channels. \\[default: all there are]", rich_help_panel=WHAT)
    ] = None,
    sources: Annotated[
        list[Spacing] | None,
        typer.Option(
            help="1284, 5124 or 20484 of the template. \\[default: ico4, or the model's own]", rich_help_panel=WHAT
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=3600, help="Of each row. \\[default: 10; with --attach 20]")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds; the engine skips hops that are later. End with exit code 1 when p99 of any row is; say by "
            "how much. \\[default: 50, or the engine's own, and exit code 0]"
        ),
    ] = None,
    head: Annotated[Path | None, typer.Option(help="Head model for FILE, made by `rt-mmdf head`.")] = None,
    noise_cov: Annotated[Path | None, typer.Option(help="Noise covariance for FILE (-cov.fif).")] = None,
    nvtx: Annotated[
        bool, typer.Option("--nvtx", help="Name each call of a GPU for Nsight (nsys profile rt-mmdf profile ... --nvtx).")
    ] = False,
    attach: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Listen to the running engine of that name.", rich_help_panel=INSTEAD),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="Ratio of two reports, B over A.", rich_help_panel=INSTEAD),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Figures and raw stamps as JSON.", rich_help_panel=FILES)] = None,
    html: Annotated[Path | None, typer.Option(help="Tables and figures as one HTML file.", rich_help_panel=FILES)] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Every stage of every hop, for Perfetto (ui.perfetto.dev).", rich_help_panel=FILES),
    ] = None,
) -> None:
    """Latency of every stage: percentiles, jitter, missed deadlines, queues, load, start-up.

    The real chain images a replay that runs in a process of its own, over LSL, once for each combination of the options.
    Latency counts from when a hop could have been complete if nothing but physics took time; a hop that was skipped counts
    as late. What physics adds (block fill, look-ahead, filters) is listed apart. Nothing else should run on the machine.

    Examples:

        rt-mmdf profile

        rt-mmdf profile --solver fusion --hop 10 --hop 20 --budget 20 --html latency.html

        rt-mmdf profile sample_raw.fif --head heads/sample --chunk 1 --chunk 28 --report before.json

        rt-mmdf profile --attach rt-mmdf --seconds 60 --trace trace.json

        rt-mmdf profile --compare before.json after.json
    """
    from rt_mmdf.app.profiling.report import misses, render, write_html, write_report, write_trace
    from rt_mmdf.app.scorecard import check_report_path

    if budget is not None and not budget > 0:
        raise ConfigurationError(f"--budget {budget:g}: milliseconds above 0 are expected.")
    chosen: dict[str, object] = {
        "FILE": recording,
        "--solver": solver,
        "--backend": backend,
        "--hop": hop_ms,
        "--chunk": chunk,
        "--rate": rate,
    }
    chosen |= {"--nvtx": nvtx, "--modality": modality, "--sources": sources, "--head": head, "--noise-cov": noise_cov}
    given = [name for name, value in chosen.items() if value]
    if compare is not None:
        others: dict[str, object] = {
            "--attach": attach,
            "--seconds": seconds,
            "--budget": budget,
            "--report": report,
            "--html": html,
        }
        given += [name for name, value in (others | {"--trace": trace}).items() if value is not None]
        if given:
            raise ConfigurationError(f"--compare reads two reports and measures nothing: leave out {', '.join(given)}.")
        _compare(*compare)
        return
    if attach is not None and given:
        raise ConfigurationError(
            f"--attach listens to an engine that runs with its own configuration: leave out {', '.join(given)}."
        )
    if recording is None and (head is not None or noise_cov is not None):
        raise ConfigurationError("profile: --head and --noise-cov belong to a FILE. Name the FILE.")
    for path, what in ((report, "report"), (html, "report"), (trace, "trace")):
        if path is not None:
            check_report_path(path, what)
    if attach is not None:
        rows = _attach(attach, ATTACH_S if seconds is None else seconds, budget)
    else:
        content = {
            "solvers": solver,
            "backends": [b.value for b in backend or ()],
            "nvtx": nvtx,
            "hop_ms": hop_ms,
            "chunks": chunk,
            "rates": rate,
            "modalities": [m.value for m in modality or ()],
            "sources": [s.value for s in sources or ()],
            "seconds": seconds,
            "budget_ms": budget,
            "recording": recording,
            "head": head,
            "noise_cov": noise_cov,
        }
        rows = _measure({key: value for key, value in content.items() if value})
    OUT.print(render(rows))
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    for path, write in ((report, write_report), (html, write_html), (trace, write_trace)):
        if path is not None:
            write(rows, command, path)
            ERR.print(f"Written: {path}", highlight=False)
    if budget is not None and (missed := misses(rows)):
        for miss in missed:
            ERR.print(Text(f"Over the budget: {miss}", style="bold red"))
        raise typer.Exit(1)


def _measure(content: dict[str, object]) -> list[Row]:
    from rt_mmdf.app.profiling.run import ProfileSettings, default_solvers, run_profile
    from rt_mmdf.core.settings import validate_settings
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.mailbox import Signal

    settings = validate_settings({"solvers": default_solvers()} | content, ProfileSettings, where="profile")
    pause = Signal()
    with progress_bar() as progress:
        return run_profile(
            settings,
            NetworkTransport(),
            progress=progress,
            keep_waiting=lambda wait_s: (pause.wait(wait_s), None)[1],
        )


def _attach(name: str, seconds: float, budget: float | None) -> list[Row]:
    from rt_mmdf.app.profiling.attach import attach
    from rt_mmdf.lsl.network import NetworkTransport

    with progress_bar() as progress:
        return [attach(name, NetworkTransport(), seconds, budget_ms=budget, progress=progress)]


def _compare(first: Path, second: Path) -> None:
    from rt_mmdf.app.profiling.compare import compare

    OUT.print(compare(first, second).render(first, second))
