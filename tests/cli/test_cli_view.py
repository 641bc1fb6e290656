"""`rt-mmdf view`, and the window that `monitor` and `demo` start beside them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from rt_mmdf.cli.main import app
from rt_mmdf.cli.view import view_beside
from rt_mmdf.core.errors import ConfigurationError, StreamAmbiguous, ViewError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.runtime.mailbox import NewestValue, Signal
from rt_mmdf.view.settings import ViewSettings

RUNNER = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> MemoryTransport:
    """A network in memory where the command looks for the real one, and a display that nothing is drawn on."""
    transport = MemoryTransport(ManualClock())
    monkeypatch.setattr("rt_mmdf.lsl.network.NetworkTransport", lambda: transport)
    monkeypatch.setattr("rt_mmdf.cli.view._step_back", lambda: None)  # this process has others to run
    monkeypatch.setenv("DISPLAY", ":77")
    return transport


def engine(name: str) -> StreamDescription:
    channels = (ChannelDescription("lh-0"), ChannelDescription("rh-0"))
    return StreamDescription(f"{name}-sources", "SourceEstimate", name, 1000.0, "float32", channels, {})


def test_two_engines_are_listed_and_asked_about(network: MemoryTransport) -> None:
    network.outlet(engine("a"))
    network.machine("lab-2").outlet(engine("b"))
    with pytest.raises(
        StreamAmbiguous, match=r"2 engines are running:\n  a on here: 2 sources.*\n  b on lab-2.*\nSay which"
    ):
        RUNNER.invoke(app, ["view"], catch_exceptions=False)


def test_two_engines_of_one_name_are_told_apart_by_their_hosts(network: MemoryTransport) -> None:
    network.outlet(engine("a"))
    network.machine("lab-2").outlet(engine("a"))
    with pytest.raises(StreamAmbiguous, match=r"2 engines named 'a'[\s\S]*rt-mmdf view a --host here"):
        RUNNER.invoke(app, ["view", "a"], catch_exceptions=False)


def test_without_a_display_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rt_mmdf.cli.view.sys.platform", "linux")
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ViewError, match=r"no display here.*xvfb-run -a rt-mmdf view --headless"):
        RUNNER.invoke(app, ["view"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--theme", "pink"], "theme: .*'dark' or 'light'"),
        (["--headless", "brain.jpg"], r"headless: .*\.png, \.mp4, \.gif"),
        (["--headless", "nowhere/brain.png"], "folder .*nowhere does not exist"),
        (["--size", "10x10"], "320 x 240"),
        (["--size", "large"], "size"),
        (["--limits", "5,4,9"], "limits: .*three numbers in order"),
        (["--limits", "5,4"], "limits"),
        (["--limits", "a,b,c"], "limits"),
        (["--head", "nowhere"], "--head nowhere: no such folder"),
        (["--host", " "], "host: it is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_a_window_is_thought_of(words: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RUNNER.invoke(app, ["view", *words], catch_exceptions=False)


def test_settings_know_a_film_from_a_picture() -> None:
    read = [validate_settings({"headless": Path(name)}, ViewSettings, where="view") for name in ("a.PNG", "a.mp4", "a.gif")]
    assert [settings.is_film for settings in read] == [False, True, True]
    assert not ViewSettings().is_film


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A display, and an interpreter that does this instead of opening a window."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("DISPLAY", ":77")


def wait_for(path: Path) -> str:
    pause, deadline = Signal(), time.monotonic() + 20
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        pause.wait(0.02)
    return path.read_text().strip()


def test_the_window_is_a_process_that_ends_with_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, f'echo "$$ $@" > {tmp_path}/said; exec sleep 60')
    with view_beside("lab", Path("heads/x")):
        number, *words = wait_for(tmp_path / "said").split()
        assert words == ["-m", "rt_mmdf.cli", "view", "lab", "--head", str(Path("heads/x").absolute())]
        assert os.getsid(int(number)) != os.getsid(0)  # Ctrl-C in this terminal is not for it
    with pytest.raises(ProcessLookupError):
        os.kill(int(number), 0)


def test_a_window_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, f'trap "" TERM; echo "$$" > {tmp_path}/said; while :; do sleep 1; done')
    monkeypatch.setattr("rt_mmdf.cli.view.END_S", 0.3)
    with view_beside("lab"):
        number = int(wait_for(tmp_path / "said"))
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_imaging_goes_on_when_the_window_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path, monkeypatch, f'echo "no [OpenGL] here" >&2; echo "$$" > {tmp_path}/said; exit 2')
    with view_beside("lab"):
        window = psutil.Process(int(wait_for(tmp_path / "said")))
        pause = Signal()
        while window.status() != psutil.STATUS_ZOMBIE:  # ended, and not yet asked about
            pause.wait(0.02)
    seen = " ".join(capsys.readouterr().err.split())
    assert "The window had ended, with code 2; imaging went on without it. no [OpenGL] here" in seen


@pytest.mark.parametrize("wanted", [True, False])
def test_no_window_where_there_is_no_display_or_none_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: bool
) -> None:
    pretend(tmp_path, monkeypatch, f"echo > {tmp_path}/said")
    monkeypatch.setattr("rt_mmdf.cli.view.sys.platform", "linux")
    if wanted:
        for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(variable, raising=False)
    with view_beside("lab", wanted=wanted):
        pass
    assert not (tmp_path / "said").exists()
    assert ("rt-mmdf view lab" in capsys.readouterr().err) == wanted


def test_a_request_to_terminate_reaches_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        tmp_path,
        monkeypatch,
        f"trap 'echo heard > {tmp_path}/heard; kill $!; exit 0' TERM; echo > {tmp_path}/said; sleep 60 & wait",
    )
    with view_beside("lab"):
        wait_for(tmp_path / "said")
    assert wait_for(tmp_path / "heard") == "heard"


class Beside:
    """Takes the place of `view_beside` and remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Path | None, bool]] = []
        self.open = False

    @contextmanager
    def __call__(self, name: str, head: Path | None = None, *, wanted: bool = True) -> Iterator[None]:
        self.asked.append((name, head, wanted))
        self.open = True
        yield
        self.open = False


def interrupt(*given: Any, **more: Any) -> Iterator[None]:
    raise KeyboardInterrupt
    yield


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize(("words", "wanted"), [([], True), (["--no-view"], False)])
def test_monitor_opens_a_window_on_its_own_engine_and_head(
    words: list[str],
    wanted: bool,
    interrupted: bool,
    tmp_path: Path,
    network: MemoryTransport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside, entered, stopped = Beside(), [], []

    class Session:
        """Ends at once."""

        seconds_running, newest_status, optional = 9.0, NewestValue[Any](), SimpleNamespace(published=())
        recorder = None

        def __init__(self, *given: Any, **more: Any) -> None:
            assert not beside.open  # what cannot begin opens no window

        def __enter__(self) -> Session:
            assert beside.open
            entered.append(self)
            return self

        def stop(self) -> None:
            stopped.append(self)

        def __exit__(self, *unused: object) -> None:
            assert beside.open  # the window shows how the engine ends

        def scorecard(self) -> Any:
            return SimpleNamespace(render=lambda: "card")

    monkeypatch.setattr("rt_mmdf.app.session.Session", Session)
    monkeypatch.setattr("rt_mmdf.cli.monitor.view_beside", beside)
    if interrupted:  # by Ctrl-C while the window opens
        monkeypatch.setattr(Beside, "__call__", contextmanager(interrupt))
    config = tmp_path / "lab.toml"
    config.write_text('name = "lab"\n[acquisition.eeg]\nname = "amp"\n[head]\nfolder = "heads/x"\n')
    result = RUNNER.invoke(app, ["monitor", str(config), "--seconds", "5", *words], catch_exceptions=False)
    assert result.exit_code == 0
    assert len(stopped) == 1
    assert len(entered) == (not interrupted)
    assert beside.asked == ([] if interrupted else [("lab", Path("heads/x"), wanted)])
    assert not beside.open


@pytest.mark.parametrize(("words", "wanted"), [([], True), (["--no-view"], False)])
def test_demo_opens_a_window_on_its_own_engine(
    words: list[str], wanted: bool, network: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside()

    def run_demo(settings: Any, transport: Any, **given: Any) -> Any:
        with given["beside"]("demo-1234", None):
            assert beside.open
        return SimpleNamespace(scorecard=SimpleNamespace(render=lambda: "card"), picture="map.png")

    monkeypatch.setattr("rt_mmdf.app.demo.run_demo", run_demo)
    monkeypatch.setattr("rt_mmdf.cli.demo.view_beside", beside)
    assert RUNNER.invoke(app, ["demo", *words], catch_exceptions=False).exit_code == 0
    assert beside.asked == [("demo-1234", None, wanted)]
