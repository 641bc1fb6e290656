"""`rt-mmdf view`, and the view that other commands start as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from rt_mmdf.cli.console import ERR
from rt_mmdf.runtime import processes

END_S = 10.0
MAX_WORDS = 2000
LESS_URGENT = 5  # niceness: where engine and window share a machine, the engine comes first


def view(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Engine to show; without it: the only one on the network.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Machine it runs on, where two engines have the same name.")] = None,
    head: Annotated[
        Path | None, typer.Option(help="Folder of the engine's head model, where this machine does not have it.")
    ] = None,
    headless: Annotated[
        Path | None, typer.Option(help="No window: write a picture (.png) or a film (.mp4, .gif) and end.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="With --headless: length of the film.")] = 5.0,
    wait_s: Annotated[
        float, typer.Option("--wait", min=1, max=3600, help="With --headless: seconds to wait for the first estimate.")
    ] = 30.0,
    theme: Annotated[str | None, typer.Option(help="dark or light.")] = None,
    surface: Annotated[str | None, typer.Option(help="inflated, pial or white.")] = None,
    layout: Annotated[str | None, typer.Option(help="both hemispheres together, or split into lateral and medial.")] = None,
    measure: Annotated[
        str | None, typer.Option(help="What a picture says of the estimates of its 40 ms: rms, peak or latest.")
    ] = None,
    compare: Annotated[bool | None, typer.Option("--compare/--no-compare", help="Second solver beside the first.")] = None,
    limits: Annotated[
        str | None,
        typer.Option(help="Of the colours, LOW,FULL,HIGH in the unit of the estimates, for example 5e-9,8e-9,20e-9 (A m)."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Pixels of the window or picture, for example 1280x720.")] = None,
    flat: Annotated[bool, typer.Option("--flat", help="Without OpenGL: presets instead of turning with the mouse.")] = False,
) -> None:
    """A live brain: attach a window to a running engine, on this machine or another.

    Shown are the estimates that `rt-mmdf monitor` or `rt-mmdf demo` publish. Several windows may watch one engine; none of
    them slows it. Where no engine is running yet, the window waits for one, and it takes up an engine that was started
    again. Press ? in the window for its keys. What is not said here is as it was in the last window.

    Examples:

        rt-mmdf view

        rt-mmdf view rt-mmdf --surface pial --layout split

        rt-mmdf view --headless brain.png --seconds 2
    """
    from rt_mmdf.core.errors import ConfigurationError
    from rt_mmdf.core.settings import validate_settings
    from rt_mmdf.view.settings import ViewSettings

    content = {
        "name": name,
        "host": host,
        "head": head,
        "headless": headless,
        "seconds": seconds,
        "wait_s": wait_s,
        "theme": theme,
        "surface": surface,
        "layout": layout,
        "measure": measure,
        "compare": compare,
        "limits": None if limits is None else limits.split(","),
        "size": None if size is None else size.lower().split("x"),
        "flat": flat,
    }
    settings = validate_settings(content, ViewSettings, where="view")
    if head is not None and not head.is_dir():
        raise ConfigurationError(f"view: --head {head}: no such folder. Expected is a head model made by `rt-mmdf head`.")
    if headless is not None and not headless.absolute().parent.is_dir():
        raise ConfigurationError(f"view: --headless {headless}: the folder {headless.absolute().parent} does not exist.")
    require_display()
    _step_back()

    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.view.feed import Feed

    transport = NetworkTransport()
    with Feed(transport, name, host=host, head=head) as feed:  # looks, opens and finds the head while Qt is loaded
        from rt_mmdf.view.run import run_view

        feed.require_one()
        code = run_view(settings, transport, feed)
    raise typer.Exit(code)


def _step_back() -> None:
    """Let the engine come first, where it runs on this machine."""
    import psutil

    with suppress(psutil.Error, OSError):
        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else LESS_URGENT)


def require_display() -> None:
    """ViewError, with what to do, where no window can be opened for lack of a display."""
    from rt_mmdf.core.errors import ViewError

    if not display_there():
        raise ViewError(
            "view: there is no display here (neither DISPLAY nor WAYLAND_DISPLAY is set). Run it on a machine with a "
            "screen: it finds the engine over the network. For pictures without a screen: xvfb-run -a rt-mmdf view "
            "--headless brain.png (Debian: apt-get install xvfb)"
        )


def display_there() -> bool:
    """Whether this session has a display that a window could be opened on."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def view_beside(name: str, head: Path | None = None, *, wanted: bool = True) -> Iterator[None]:
    """A view of the engine `name` as a process of its own while this lasts; imaging goes on whatever becomes of it.

    Without a display: a plain note, and nothing is started. A window that the person has closed stays closed.
    """
    if not wanted:
        yield
        return
    if not display_there():
        ERR.print(
            f"No display here, so no window. On a machine with a screen: rt-mmdf view {name}",
            highlight=False,
            soft_wrap=True,
        )
        yield
        return
    command = [sys.executable, "-m", "rt_mmdf.cli", "view", name]
    if head is not None:
        command += ["--head", str(head.absolute())]
    with tempfile.TemporaryFile() as said:
        # Ctrl-C in the terminal is for the engine, which ends its window itself
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        try:
            yield
        finally:
            ended_by_itself = process.poll() is not None
            processes.end(process, END_S)
            if ended_by_itself and process.returncode != 0:
                said.seek(0)
                words = said.read().decode(errors="replace").strip()[-MAX_WORDS:]
                ERR.print(
                    f"The window had ended, with code {process.returncode}; imaging went on without it. {words}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
