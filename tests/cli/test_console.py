"""What is printed comes from streams, models and files that anybody may have named."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest
from rich.live import Live
from rich.logging import RichHandler
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from rt_mmdf.cli.console import PlainConsole, progress_bar
from rt_mmdf.cli.live import status_table
from rt_mmdf.cli.main import run
from rt_mmdf.core.errors import StreamError

EVIL = "amp\x1b]0;x\x07\x1b[2J\x9b31m\u202e\u2066\u200b\x00\r\ud800[red]x[/bold][link=file:///etc]:smile:"


@pytest.fixture
def console() -> PlainConsole:
    console = PlainConsole()
    console.file, console.width = io.StringIO(), 400
    return console


def written(console: PlainConsole) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def is_harmless(text: str) -> bool:
    """Nothing that a terminal obeys, nothing that was read as markup, nothing that cannot be encoded."""
    text.encode("utf-8")
    return text.replace("\n", "").isprintable() and all(part in text for part in ("[red]x", "[/bold]"))


def test_nothing_that_is_printed_is_obeyed(console: PlainConsole) -> None:
    table = Table("a", EVIL)
    table.add_row(EVIL, Text(EVIL))
    for renderable in (EVIL, Text(EVIL, style="bold red"), table):
        console.file = io.StringIO()
        console.print(renderable)
        assert is_harmless(written(console))


def test_the_log_is_not_obeyed(console: PlainConsole) -> None:
    logger = logging.Logger("outside")
    logger.addHandler(RichHandler(console=console, show_time=False, show_path=False, markup=False))
    logger.warning("stream %s is there", EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.exception("it failed")
    assert is_harmless(written(console))


def test_live_tables_and_bars_write_no_sequences_but_their_own() -> None:
    console = PlainConsole()
    file = console.file = io.StringIO()
    console._force_terminal = True
    with Live(Text(EVIL), console=console, auto_refresh=False):
        pass
    with Progress(TextColumn("{task.description}", markup=False), console=console, auto_refresh=False) as bars:
        bars.add_task(EVIL)
    shown = file.getvalue()
    for sequence in ("\x1b]0;", "\x1b[2J", "\x9b", "\u202e", "\u2066", "\x00", "\ud800", "\x07"):
        assert sequence not in shown
    assert "[red]x" in shown


def test_a_model_may_have_any_name_in_the_status(console: PlainConsole) -> None:
    latency = {"p50": 1.0, "p99": 1.0, "max": 1.0}
    status: dict[str, Any] = {
        "streams": {"eeg": {"name": EVIL, "sfreq": 1.0, "age_s": 0.0, "lag_ms": None, "lag_against": None}},
        "latency_ms": {"lateness": latency},
        "solver": EVIL,
        "bad_channels": {EVIL: EVIL},
        "average": {"events": {EVIL: {"n_trials": 1, "n_rejected": 0}}, "problem": EVIL, "markers": {"problem": ""}},
        "second": {"solver": EVIL, "latency_ms": {"lateness": latency}, "skipped_hops": 0, "estimates": 1, "hops": 1},
        "budget": {"fallback": {"solver": EVIL, "active": True, "changes": 1}},
        "flags": {EVIL: 1},
    } | dict.fromkeys(
        ("n_channels", "n_sources", "running_s", "estimates", "hops", "missed_deadlines", "budget_ms", "look_ahead_ms"), 1
    )
    lasting = [{"kind": "stall", "subject": EVIL}]
    status |= {"filter_delay_ms": 1.0, "cpu_cores": 1.0, "rss_mb": 1.0, "device_lag": EVIL}
    status |= {"incidents": {"n_lasting": 1, "lasting": lasting, "newest": [], "counts": {}}}
    console.print(status_table(status))
    assert is_harmless(written(console))


def test_an_error_is_not_obeyed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise StreamError(f"stream {EVIL}: it is gone")

    monkeypatch.setattr("rt_mmdf.cli.main.app", fail)
    monkeypatch.setattr("rt_mmdf.cli.main.signal.signal", lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["rt-mmdf"])
    with pytest.raises(SystemExit):
        run()
    assert is_harmless(capsys.readouterr().err)


def test_what_is_being_done_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress(EVIL, 0.5)
    assert "\x1b[2J" not in capsys.readouterr().err
