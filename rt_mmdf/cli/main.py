"""`rt-mmdf`: the table of contents. Each command is a module of its own, registered by one line below.

Commands import what they need when they are called, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.text import Text

import rt_mmdf
from rt_mmdf.cli import (
    calibrate,
    demo,
    doctor,
    evaluate,
    export,
    head,
    monitor,
    profile,
    replay,
    simulate,
    streams,
    train,
    view,
)
from rt_mmdf.cli.console import ERR, OUT
from rt_mmdf.core.errors import RtMmdfError

IMAGE, PREPARE, LOOK = "Image", "Prepare", "Look around"

app = typer.Typer(
    name="rt-mmdf",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", rich_help_panel=IMAGE)(demo.demo)
app.command("monitor", rich_help_panel=IMAGE)(monitor.monitor)
app.command("view", rich_help_panel=IMAGE)(view.view)
app.command("replay", rich_help_panel=PREPARE)(replay.replay)
app.command("calibrate", rich_help_panel=PREPARE)(calibrate.calibrate)
app.add_typer(head.app, name="head", rich_help_panel=PREPARE)
app.command("simulate", rich_help_panel=PREPARE)(simulate.simulate)
app.command("train", rich_help_panel=PREPARE)(train.train)
app.command("evaluate", rich_help_panel=PREPARE)(evaluate.evaluate)
app.command("export", rich_help_panel=PREPARE)(export.export)
app.command("profile", rich_help_panel=LOOK)(profile.profile)
app.command("streams", rich_help_panel=LOOK)(streams.streams)
app.command("doctor", rich_help_panel=LOOK)(doctor.doctor)


def _print_version(asked: bool) -> None:
    if asked:
        OUT.print(f"rt-mmdf {rt_mmdf.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def rt_mmdf_command(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is being done.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Real-time EEG+MEG source imaging from the Lab Streaming Layer.

    Every command explains itself: [bold]rt-mmdf COMMAND --help[/bold]. Research software, not a medical device.
    """
    handler = RichHandler(console=ERR, show_time=False, show_path=False, markup=False)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler])


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def run() -> None:
    """Entry point: errors that a person can do something about are printed without a traceback (exit code 2), Ctrl-C ends
    with 130 and a request to terminate with 143; whatever is open is closed on the way out."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except RtMmdfError as error:
        ERR.print(Text.assemble(("Error: ", "bold red"), (str(error), "red")), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:  # a second Ctrl-C, while the first one was being obeyed
        sys.exit(130)
