"""`rt-mmdf profile` as a person types it: what it refuses, and with which words; and its exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rt_mmdf.app.profiling import attach as attach_module
from rt_mmdf.app.profiling import run as run_module
from rt_mmdf.cli.main import app
from rt_mmdf.core.errors import ArtefactError, ConfigurationError, RecordingError, SinkError, StreamNotFound
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport

RUNNER = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> MemoryTransport:
    """A network in memory where the commands look for the real one."""
    transport = MemoryTransport(ManualClock())
    monkeypatch.setattr("rt_mmdf.lsl.network.NetworkTransport", lambda: transport)
    return transport


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        ("--budget 0", ConfigurationError, "--budget 0: milliseconds above 0 are expected"),
        ("--budget -5", ConfigurationError, "above 0"),
        ("--budget nan", ConfigurationError, "above 0"),
        ("--attach nobody", StreamNotFound, "no stream 'nobody-sources-companion'"),
        ("--attach x --solver dSPM --hop 10", ConfigurationError, "leave out --solver, --hop"),
        ("--compare a.json b.json --seconds 3", ConfigurationError, "leave out --seconds"),
        ("--compare a.json b.json", ConfigurationError, "--compare a.json: cannot be read"),
        ("--report /no/such/folder/p.json", SinkError, "cannot be written"),
        ("--html /no/such/folder/p.html", SinkError, "cannot be written"),
        ("--trace /", SinkError, "cannot be written"),
        ("--solver no-such-model", ArtefactError, "no-such-model"),
        ("--hop 0", ConfigurationError, "hop_ms.0"),
        ("--chunk 0", ConfigurationError, "chunks.0"),
        ("--rate -1", ConfigurationError, "rates.0"),
        ("no-such-file.fif", RecordingError, "no such file"),
        ("--head somewhere", ConfigurationError, "belong to a FILE"),
    ],
)
def test_what_is_wrong_is_told(words: str, kind: type[Exception], told: str) -> None:
    result = RUNNER.invoke(app, ["profile", *words.split()])
    assert isinstance(result.exception, kind), result.output
    assert told in str(result.exception)


def test_it_explains_itself() -> None:
    result = RUNNER.invoke(app, ["profile", "--help"])
    assert result.exit_code == 0
    for option in ("--solver", "--hop", "--chunk", "--rate", "--attach", "--compare", "--budget", "--trace", "--html"):
        assert option in result.output
    assert "[default: 10]" in result.output


def test_a_missed_budget_ends_with_1_and_says_by_how_much(
    monkeypatch: pytest.MonkeyPatch, make_row: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [make_row([3.0] * 200, budget_ms=20.0), make_row([25.0] * 200, budget_ms=20.0, solver="slow")]
    asked = []

    def run_profile(settings: Any, *rest: Any, **given: Any) -> Any:
        asked.append(settings)
        return rows

    monkeypatch.setattr(run_module, "run_profile", run_profile)
    files = {name: tmp_path / f"p.{name}" for name in ("report", "html", "trace")}
    words = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    missed = RUNNER.invoke(app, ["profile", "--budget", "20", "-s", "dSPM", "-s", "slow", "--modality", "eeg", *words])
    assert missed.exit_code == 1
    assert "Over the budget: slow" in missed.stderr
    assert "5.0 ms over the budget of 20 ms" in missed.stderr
    assert (asked[0].solvers, asked[0].budget_ms, asked[0].modalities) == (("dSPM", "slow"), 20.0, ("eeg",))
    assert all(path.stat().st_size > 1000 for path in files.values())
    del rows[1]
    assert RUNNER.invoke(app, ["profile", "--budget", "20"]).exit_code == 0
    assert RUNNER.invoke(app, ["profile"]).exit_code == 0
    assert (asked[-1].budget_ms, asked[-1].hop_ms) == (50.0, (10.0,))
    compared = RUNNER.invoke(app, ["profile", "--compare", str(files["report"]), str(files["report"])])
    assert compared.exit_code == 0
    assert "1.000 to 1.000" in compared.output


def test_attached_it_hands_on_what_was_asked(monkeypatch: pytest.MonkeyPatch, make_row: Callable[..., Any]) -> None:
    asked = []

    def attach(name: str, transport: Any, seconds: float, **given: Any) -> Any:
        asked.append((name, seconds, given["budget_ms"]))
        return make_row([30.0] * 200, budget_ms=20.0)

    monkeypatch.setattr(attach_module, "attach", attach)
    assert RUNNER.invoke(app, ["profile", "--attach", "lab"]).exit_code == 0
    assert RUNNER.invoke(app, ["profile", "--attach", "lab", "--seconds", "60", "--budget", "20"]).exit_code == 1
    assert asked == [("lab", 20.0, None), ("lab", 60.0, 20.0)]
