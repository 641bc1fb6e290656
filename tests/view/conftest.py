"""A display for tests that draw: Xvfb with Mesa's software rendering where there is no display of one's own."""

from __future__ import annotations

import os
import select
import shutil
from collections.abc import Iterator

import pytest

START_LIMIT_S = 20.0
SCREEN = "2560x1440x24"
# Qt ends the process when its display vanishes, and its application lives until the interpreter ends. So the server outlives
# the tests: it ends when this process does, however that happens, which closes the pipe that the shell reads.
SERVER = '"$@" & server=$!; read line; kill $server; wait $server'


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """Name of an X display that OpenGL draws on; skips, with the reason, where there is none and none can be started."""
    own = os.environ.get("DISPLAY")
    if own:
        yield own
        return
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("no display, and Xvfb is not installed (Debian: xvfb)")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LIBGL_ALWAYS_SOFTWARE", "1")
        environment.setenv("LP_NUM_THREADS", "1")
        environment.setenv("QT_QPA_PLATFORM", "xcb")
        environment.delenv("WAYLAND_DISPLAY", raising=False)
        name = f":{_start(program)}"
        environment.setenv("DISPLAY", name)
        yield name


@pytest.fixture(scope="session")
def qapp_args(display: str, pytestconfig: pytest.Config) -> list[str]:
    """pytest-qt makes its application with these: so the display is there before the application is."""
    return [str(pytestconfig.getini("qt_qapp_name"))]


def _start(program: str) -> int:
    """Start the server; its number, which it chooses and tells once it accepts clients."""
    reading, writing = os.pipe()
    lifeline, held = os.pipe()  # `held` stays open as long as this process lives
    os.set_inheritable(writing, True)
    screen = ("-displayfd", str(writing), "-screen", "0", SCREEN, "-nolisten", "tcp", "-noreset", "+extension", "GLX")
    os.posix_spawn(
        "/bin/sh",
        ("sh", "-c", SERVER, "sh", program, *screen),
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, lifeline, 0),
            *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)),
        ],
        setsid=True,
    )
    os.close(lifeline)
    os.close(writing)
    written = b""
    while not written.endswith(b"\n"):
        ready, _, _ = select.select([reading], [], [], START_LIMIT_S)
        piece = os.read(reading, 16) if ready else b""
        if not piece:
            os.close(held)
            os.close(reading)
            pytest.skip(f"no display, and Xvfb did not start within {START_LIMIT_S:g} s")
        written += piece
    os.close(reading)
    return int(written)
