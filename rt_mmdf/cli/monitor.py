"""`rt-mmdf monitor`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from rt_mmdf.cli.console import ERR, OUT, progress_bar
from rt_mmdf.cli.live import live_status, second_ctrl_c_ends_at_once
from rt_mmdf.cli.view import view_beside


def monitor(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file; examples are in configs/.")],
    seconds: Annotated[float | None, typer.Option(min=1, help="End after so long; without it: Ctrl-C.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the scorecard as JSON at the end.")] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE.xdf", help="Record streams, markers and estimates; see [output.record].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recording that is there.")] = False,
    no_view: Annotated[bool, typer.Option("--no-view", help="No window beside it.")] = False,
) -> None:
    """Image live: streams in, source estimates out as LSL streams.

    The configuration names an EEG and a MEG stream (or one of them), the head model, the noise covariance, filters and
    solver or trained model; every key has a default but the streams. Published are NAME-sources (the estimate),
    NAME-sources-companion (flags and time stamps of each estimate), NAME-sources-strongest and NAME-health (JSON, once a
    second); on request also NAME-sensors (the cleaned sensors), NAME-second (a second solver) and NAME-average-EVENT
    (event-locked averages), see configs/monitor.toml. A window that shows them is started as a process of its own;
    closing it does not stop imaging.

    Examples:

        rt-mmdf monitor configs/monitor.toml

        rt-mmdf monitor configs/sample.toml --seconds 60 --report scorecard.json

        rt-mmdf monitor configs/monitor.toml --record subject01.xdf

    Ctrl-C ends it with the scorecard; a second one ends it at once. `rt-mmdf streams` lists what there is to listen to.
    """
    from rt_mmdf.app.recorder import recorded
    from rt_mmdf.app.scorecard import check_report_path
    from rt_mmdf.app.session import Session
    from rt_mmdf.app.settings import SessionSettings
    from rt_mmdf.core.errors import RtMmdfError
    from rt_mmdf.core.settings import load_settings
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.mailbox import Signal

    settings = recorded(load_settings(config, SessionSettings), record, overwrite=overwrite)
    if report is not None:
        check_report_path(report)
    pause, asked_to_end, failure = Signal(), None, None
    with progress_bar() as progress:
        session = Session(settings, NetworkTransport(), progress=progress)
    try:
        # the window first on the way in, last on the way out: it shows how the engine ends
        with second_ctrl_c_ends_at_once(), ExitStack() as opened:
            opened.callback(session.stop)  # however opening the window ends
            opened.enter_context(view_beside(settings.name, settings.head.folder, wanted=not no_view))
            opened.enter_context(session)
            on_status = opened.enter_context(live_status())
            name = settings.name
            more = "".join(f", {stream.removeprefix(name)}" for stream in session.optional.published)
            ERR.print(
                f"Publishing {name}-sources, -sources-companion, -sources-strongest{more} and {name}-health. "
                "Ctrl-C ends it.",
                highlight=False,
                soft_wrap=True,
            )
            if session.recorder is not None:
                ERR.print(session.recorder.announcement, highlight=False, soft_wrap=True)
            while seconds is None or session.seconds_running < seconds:
                pause.wait(0.5)
                session.check()
                if (status := session.newest_status.get()) is not None:
                    on_status(status)
    except KeyboardInterrupt:
        ERR.print("Ended by Ctrl-C.")
    except SystemExit as request:  # asked to terminate: the scorecard comes all the same
        asked_to_end = request
    except RtMmdfError as error:
        if not session.n_estimates:
            raise
        failure = error  # what was done until then is told first
    card = session.scorecard()
    OUT.print(card.render())
    if report is not None:
        card.write(report)
        ERR.print(f"The report is in {report}", highlight=False)
    if failure is not None:
        raise failure
    if asked_to_end is not None:
        raise asked_to_end
