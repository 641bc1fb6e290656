"""A display for tests that draw: Xvfb with Mesa's software rendering where there is no display of one's own."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Iterator

import pytest

START_LIMIT_S = 20.0
SCREEN = "2560x1440x24"


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
        reading, writing = os.pipe()
        server = subprocess.Popen(
            [
                program,
                "-displayfd",
                str(writing),
                "-screen",
                "0",
                SCREEN,
                "-nolisten",
                "tcp",
                "-noreset",
                "+extension",
                "GLX",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
        )
        os.close(writing)
        try:
            name = f":{_number(reading)}"
            environment.setenv("DISPLAY", name)
            yield name
        finally:
            os.close(reading)
            server.terminate()
            try:
                server.wait(5.0)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@pytest.fixture(scope="session")
def qapp_args(display: str, pytestconfig: pytest.Config) -> list[str]:
    """pytest-qt makes its application with these: so the display is there before the application is."""
    return [str(pytestconfig.getini("qt_qapp_name"))]


def _number(reading: int) -> int:
    """The number that the server writes, with a line end, once it accepts clients."""
    written = b""
    while not written.endswith(b"\n"):
        ready, _, _ = select.select([reading], [], [], START_LIMIT_S)
        piece = os.read(reading, 16) if ready else b""
        if not piece:
            pytest.skip(f"no display, and Xvfb did not start within {START_LIMIT_S:g} s")
        written += piece
    return int(written)
