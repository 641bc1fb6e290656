"""`rt-mmdf evaluate` as a person and as a program see it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rt_mmdf.cli.main import app
from rt_mmdf.core.errors import ArtefactError, ConfigurationError, HeadModelError, NoiseCovarianceError, SinkError
from rt_mmdf.evaluation.ceiling import Ceiling
from rt_mmdf.evaluation.results import load_results
from rt_mmdf.evaluation.run import Plan
from rt_mmdf.headmodel.head import HeadModel

RUNNER = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def head_folder(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that cannot be built anew: its suite takes seconds, and is kept."""
    folder = tmp_path_factory.mktemp("heads") / "subject"
    replace(template_head_ico3, kind="subject", name="somebody").save(folder)
    return folder


def test_a_quick_evaluation_writes_what_it_was_asked_for(head_folder: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "html", "npz")}
    options = ["--report", files["json"], "--csv", files["csv"], "--html", files["html"], "--keep", files["npz"]]
    words = ["evaluate", "--quick", "--head", head_folder, "--cases", "8", "--processes", "1", "-s", "MNE", "-s", "dSPM"]
    result = RUNNER.invoke(app, [str(word) for word in [*words, *options]], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "mean localisation error, mm; 1 source" in result.output
    assert "easier than other heads" in " ".join(result.output.split())
    content = json.loads(files["json"].read_text())
    assert len(content["rows"]) == 2 * 6
    assert {row["solver"] for row in content["rows"]} == {"MNE", "dSPM"}
    assert all(row["n"] == 8 for row in content["rows"])
    assert all((row["le_mm_mean"] > 0) == (row["radius_mm"] > 0 or row["solver"] == "MNE") for row in content["rows"])
    assert all((row["amplitude_ratio_median"] is None) == (row["solver"] == "dSPM") for row in content["rows"])
    assert [row["solver"] for row in content["noise"]] == ["MNE"]
    assert files["csv"].read_text().count("\n") == 1 + 2 * 6
    assert "<img" in files["html"].read_text()
    assert load_results(files["npz"]).n_cases == 6 * 8


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["-s", "nothing"], ArtefactError, "nothing"),
        (["-s", "MNE", "-s", "MNE"], ConfigurationError, "each once"),
        (["--head", "{tmp}/no"], HeadModelError, "no head.toml"),
        (["--noise-cov", "{tmp}/no-cov.fif"], NoiseCovarianceError, "no such file"),
        (["--report", "{tmp}/no/r.json"], SinkError, "cannot be written"),
        (["--keep", "{tmp}/r.txt"], ConfigurationError, ".npz"),
        (["--invertmeeg-cases", "3"], ConfigurationError, "they need --invertmeeg PYTHON"),
        (["--invertmeeg-solver", "flex-champagne"], ConfigurationError, "they need --invertmeeg PYTHON"),
        (["--invertmeeg", "{tmp}/python"], ConfigurationError, "{tmp}/python"),
    ],
)
def test_bad_input_is_refused_before_the_work(
    words: list[str], error: type[Exception], said: str, head_folder: Path, tmp_path: Path
) -> None:
    given = [word.format(tmp=tmp_path) for word in words]
    head = [] if "--head" in given else ["--head", str(head_folder)]
    result = RUNNER.invoke(app, ["evaluate", "--quick", "--processes", "1", *head, *given])
    assert isinstance(result.exception, error), result.output
    assert said.format(tmp=tmp_path) in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--invertmeeg", "py"], Ceiling("py", ("flex-champagne",), 20)),
        (["--quick", "--invertmeeg", "py"], Ceiling("py", ("flex-champagne",), 4)),
        (
            ["--invertmeeg", "py", "--invertmeeg-solver", "a", "--invertmeeg-solver", "b", "--invertmeeg-cases", "7"],
            Ceiling("py", ("a", "b"), 7),
        ),
    ],
)
def test_a_ceiling_is_asked_for(words: list[str], expected: Ceiling | None, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def note(plan: Plan, progress: object) -> None:
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("rt_mmdf.evaluation.run.evaluate", note)
    RUNNER.invoke(app, ["evaluate", "-s", "MNE", *words])
    assert [plan.ceiling for plan in plans] == [expected]


@pytest.mark.parametrize("words", [["--cases", "1"], ["--processes", "0"], ["--seed", "-1"], ["--suite", "other"]])
def test_values_out_of_range_are_refused(words: list[str]) -> None:
    assert RUNNER.invoke(app, ["evaluate", *words]).exit_code == 2
