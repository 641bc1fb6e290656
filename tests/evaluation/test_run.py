from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rt_mmdf.core.errors import SinkError, SolverError, WorkerFailed
from rt_mmdf.evaluation import run as run_module
from rt_mmdf.evaluation.outcome import (
    COLUMNS,
    _edges,
    all_summaries,
    all_verdicts,
    check_path,
    comparisons,
    json_report,
    noise_rows,
    report_of,
    table_rows,
    write_csv,
    write_json,
)
from rt_mmdf.evaluation.results import CaseResults
from rt_mmdf.evaluation.rows import SETTINGS, Image, RowGroup
from rt_mmdf.evaluation.run import PEAK, SETTING, Evaluation, Plan, evaluate
from rt_mmdf.evaluation.suite import Cases, Suite

CELLS = ((0.0, 1, 10.0), (15.0, 2, 5.0))
PLAN = Plan(("MNE", "sLORETA"), CELLS, n_cases=12, n_transported=3, n_noise=20)


class Knowing(RowGroup):
    """Two rows that know the truth: one says it at one of two settings, the other says it upside down and too loud."""

    rows = ("mmdf", "fusion")
    with_amplitude = frozenset(rows)

    def images(self, cases: Cases) -> Iterator[Image]:
        for setting in (1.0, 2.0):
            shifted = np.roll(cases.truth, 40 if setting == 1.0 else 0, axis=1)
            yield Image("mmdf", setting, shifted.T)
        yield Image("fusion", float("nan"), -2 * cases.truth.T)


@pytest.fixture
def known(small_suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "held_out_suite", lambda *_: small_suite)
    monkeypatch.setattr(run_module, "make_groups", lambda *_: [Knowing()])
    monkeypatch.setattr(run_module, "check_solvers", lambda *_: None)


@pytest.fixture
def evaluation(known: None) -> Evaluation:
    return evaluate(replace(PLAN, solvers=("mmdf", "fusion"), show=True))


def test_the_truth_scores_as_it_should_at_the_setting_that_suits_it(evaluation: Evaluation) -> None:
    results = evaluation.results
    assert results.solvers == ("mmdf", "fusion")
    assert results.cells == CELLS
    assert (results.values[SETTING][0] == 2).all()
    assert np.isnan(results.values[SETTING][1]).all()
    assert (results.values["auc"] == 1).all()
    assert (results.values["area_ratio"] == 1).all()
    np.testing.assert_allclose(results.values["amplitude_ratio"], np.repeat([[1], [-2]], 24, axis=1), rtol=1e-4)
    np.testing.assert_allclose(results.values["nmse"], np.repeat([[0], [9]], 24, axis=1), atol=1e-6)
    assert np.nanmax(np.abs(results.values["emd_mm"])) < 1e-3
    assert results.of("le_mm", "mmdf", 0).max() < 1e-3  # true dipoles lie on sources here
    np.testing.assert_array_equal(results.values[PEAK][1], 2 * results.values[PEAK][0])


def test_the_earth_mover_is_asked_for_some_cases_of_each_cell(evaluation: Evaluation) -> None:
    asked = ~np.isnan(evaluation.results.values["emd_mm"])
    assert asked.sum() == 2 * 2 * 3
    for cell in range(2):
        assert (~np.isnan(evaluation.results.of("emd_mm", "mmdf", cell))).sum() == 3


def test_noise_alone_is_compared_with_the_peak_at_10_db(evaluation: Evaluation) -> None:
    """A row that says what little truth there is: a hundred thousand times less than at 10 dB and more."""
    rows = noise_rows(evaluation)
    assert [row["solver"] for row in rows] == ["mmdf", "fusion"]
    assert evaluation.signal_peaks("mmdf").shape == (12,)
    for row in rows:
        assert row["n"] == 20
        assert isinstance(row["ratio"], float)
        assert row["ratio"] < 1e-4
    assert any(verdict.topic == "noise only" and verdict.holds for verdict in all_verdicts(evaluation))


def test_one_case_of_some_cells_is_shown(evaluation: Evaluation) -> None:
    (shown,) = evaluation.shown  # of the two cells one has single sources
    assert shown.cell == CELLS[0]
    np.testing.assert_array_equal(shown.maps, [shown.truth, -2 * shown.truth])
    assert shown.le_mm.max() < 1e-3


@pytest.mark.filterwarnings("ignore:Data has no positive values")  # a variance of zero: both rows know the truth
def test_rows_for_programs(evaluation: Evaluation, tmp_path: Path) -> None:
    found = all_summaries(evaluation)
    rows = table_rows(evaluation, found)
    assert [(row["solver"], row["radius_mm"], row["n_sources_true"], row["snr_db"], row["n"]) for row in rows] == [
        (solver, *cell, 12) for cell in CELLS for solver in ("mmdf", "fusion")
    ]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert rows[0]["amplitude_ratio_median"] == pytest.approx(1, rel=1e-4)
    assert rows[0]["le_mm_var"] == pytest.approx(np.var(evaluation.results.of("le_mm", "mmdf", 0), ddof=1), abs=1e-9)
    assert (rows[0]["setting"], rows[1]["setting"]) == (2.0, None)
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        back = list(csv.DictReader(file))
    assert len(back) == 4
    assert float(back[2]["auc_median"]) == 1
    assert back[1]["setting"] == ""
    judged, tests = all_verdicts(evaluation), comparisons(evaluation)
    write_json(json_report(evaluation, rows, judged, tests, "a command"), tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["rows"] == rows
    assert content["facts"]["command"] == "a command"
    assert len(content["tests"]["verdicts"]) == len(judged)
    assert set(content["tests"]["comparisons"]) == set(tests)
    report = report_of(evaluation, found, judged, tests, "a command").html()
    assert "held-out" in report
    assert "One case of some cells" in report
    assert "None of them lies at an end" in report
    assert "SNR is that of the scored instant" in report


def test_settings_at_an_end_of_their_grid_are_told() -> None:
    def told(setting: float, row: str) -> str:
        values = np.full((1, 4), setting, np.float32)
        return _edges(CaseResults((row,), CELLS, np.array([0, 0, 1, 1]), {SETTING: values}))

    for row, grid in SETTINGS.items():
        assert f"{row} in 2 of 2 (0 mm, 1 source, 10 dB; 15 mm" in told(grid[0], row)
        assert f"{row} in 2 of 2 (" in told(grid[-1], row)
        assert all(told(setting, row).startswith("None") for setting in grid[1:-1])
    assert told(float("nan"), "fusion").startswith("None")


def test_values_that_are_not_finite_end_the_run(known: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(RowGroup):
        rows = ("broken",)

        def images(self, cases: Cases) -> Iterator[Image]:
            maps = cases.truth.T.copy()
            maps[3, 5] = np.nan
            yield Image("broken", float("nan"), maps)

    monkeypatch.setattr(run_module, "make_groups", lambda *_: [Broken()])
    with pytest.raises(SolverError, match=r"broken: NaN or infinity in 1 of 12 maps"):
        evaluate(PLAN)


def test_solvers_localise_and_those_without_amplitude_have_none(
    small_suite: Suite, subject_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in processes of their own: the very same scores."""
    plan = replace(PLAN, head=subject_folder)
    alone = evaluate(plan)
    results = alone.results
    assert alone.with_amplitude == ("MNE",)
    assert set(alone.noise_peaks) == {"MNE"}
    assert results.of("le_mm", "sLORETA", 0).mean() < 5
    assert np.isnan(results.values["nmse"][1]).all()
    assert np.isfinite(results.values["nmse"][0]).all()
    team = evaluate(replace(plan, n_processes=2))
    assert team.results.solvers == results.solvers
    for name, values in results.values.items():
        np.testing.assert_allclose(team.results.values[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(team.noise_peaks["MNE"], alone.noise_peaks["MNE"], rtol=1e-4)
    assert not multiprocessing.active_children()


def test_a_process_that_was_killed_ends_the_run(known: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_serve", os.abort)  # a function that any process can find
    with pytest.raises(WorkerFailed, match=r"died \(exit code"):
        evaluate(replace(PLAN, n_processes=2))
    assert not multiprocessing.active_children()


def test_a_file_that_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    check_path(tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    (tmp_path / "old.json").write_text("kept")
    check_path(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "kept"
    with pytest.raises(SinkError, match="cannot be written"):
        check_path(tmp_path / "no" / "new.json")


def test_what_is_no_plain_file_stays_where_it_is(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "not yet.json")
    check_path(link)
    assert link.is_symlink()
    null = tmp_path / "null"
    null.symlink_to(os.devnull)
    check_path(null)
    assert null.is_symlink()
    unlinked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", unlinked.append)
        check_path(Path(os.devnull))
    assert not unlinked
