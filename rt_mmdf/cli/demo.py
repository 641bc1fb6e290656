"""`rt-mmdf demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rt_mmdf.cli.console import ERR, OUT, progress_bar
from rt_mmdf.cli.live import live_status, second_ctrl_c_ends_at_once
from rt_mmdf.cli.view import view_beside


def demo(
    recording: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Replay this recording instead of a simulated one.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=5, max=3600, help="How long to image.")] = 30.0,
    head: Annotated[Path | None, typer.Option(help="Head model for FILE, made by `rt-mmdf head`.")] = None,
    noise_cov: Annotated[Path | None, typer.Option(help="Noise covariance for FILE (-cov.fif).")] = None,
    model: Annotated[
        str | None, typer.Option(help="Trained model, by name or folder. Without it: the best one that ships.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "--solver", help="Instead: MNE, dSPM, sLORETA, eLORETA or LCMV.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Sources of the template head: ico3 (1284, for slow machines) or ico4 (5124).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the picture and the files of the demonstration.")] = Path(
        "rt-mmdf-demo"
    ),
    report: Annotated[Path | None, typer.Option(help="Write the scorecard as JSON.")] = None,
    no_view: Annotated[
        bool, typer.Option("--no-view", help="No window beside it; the picture is written in any case.")
    ] = False,
) -> None:
    """Everything on one machine without hardware: EEG and MEG over LSL, aligned, imaged, scored.

    A process of its own replays a simulated recording with known sources as an EEG stream (60 channels, 500 Hz) and a
    MEG stream (306 channels, 1000 Hz), sampled by two different crystals. They are imaged live on the template head, by the
    best trained model that is at hand, and shown in a window beside it. At the end: a scorecard with the error against the
    known sources, and a picture of the cortex.

    Examples:

        rt-mmdf demo

        rt-mmdf demo --seconds 60 --method dSPM --report scorecard.json

        rt-mmdf demo sample_raw.fif --head heads/sample --noise-cov sample-cov.fif
    """
    from rt_mmdf.app.demo import DemoSettings, run_demo
    from rt_mmdf.app.scorecard import check_report_path
    from rt_mmdf.core.errors import ConfigurationError
    from rt_mmdf.core.settings import validate_settings
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.mailbox import Signal

    if recording is None and (head is not None or noise_cov is not None):
        raise ConfigurationError(
            "demo: --head and --noise-cov belong to a FILE; the simulation brings its own. Name the FILE."
        )
    content = {
        "seconds": seconds,
        "model": model,
        "method": method,
        "recording": recording,
        "head": head,
        "noise_cov": noise_cov,
        "spacing": spacing,
        "out": out,
        "view": not no_view,
    }
    settings = validate_settings(content, DemoSettings, where="demo")
    if report is not None:
        check_report_path(report)
    pause = Signal()
    with second_ctrl_c_ends_at_once(), progress_bar() as progress, live_status() as on_status:
        result = run_demo(
            settings,
            NetworkTransport(),
            progress=progress,
            on_status=on_status,
            beside=lambda name, folder: view_beside(name, folder, wanted=not no_view),
            keep_waiting=lambda wait_s: (pause.wait(wait_s), None)[1],
        )
    OUT.print(result.scorecard.render())
    OUT.print(f"The last source map is in {result.picture}", highlight=False)
    if report is not None:
        result.scorecard.write(report)
        ERR.print(f"The report is in {report}", highlight=False)
