"""Ceiling rows through the real script, run by this interpreter; a small module stands in for invertmeeg."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rt_mmdf.core.errors import ConfigurationError, SolverError
from rt_mmdf.evaluation import run as run_module
from rt_mmdf.evaluation.ceiling import Ceiling, CeilingGroup, check_ceiling
from rt_mmdf.evaluation.outcome import (
    all_summaries,
    all_verdicts,
    comparisons,
    json_report,
    noise_rows,
    report_of,
    table_rows,
)
from rt_mmdf.evaluation.run import PEAK, Plan, evaluate
from rt_mmdf.evaluation.suite import Suite

CELLS = ((15.0, 1, 10.0), (10.0, 2, 5.0))
CEILING = Ceiling(sys.executable, ("Least-Squares",), n_cases=3)

# The three calls of invertmeeg that the script makes. Its least-squares estimate depends on leadfield and data alone.
STAND_IN = """
import os
import time
from pathlib import Path

import mne
import numpy as np

__version__ = "9.8"

def list_solvers():
    return ["least-squares", "leastsquares", "broken", "diverging", "waiting"]

class Solver:
    def __init__(self, solver):
        self.solver = solver

    def make_inverse_operator(self, forward, evoked):
        if self.solver == "broken":
            raise ArithmeticError("no convergence")
        if self.solver == "waiting":  # the first to come waits for ever, all others fail
            here = Path(__file__).parent
            try:
                (here / "taken").mkdir()
            except FileExistsError:
                while not (here / "waiting").exists():
                    time.sleep(0.01)
                raise ArithmeticError("no convergence") from None
            (here / "pid").write_text(str(os.getpid()))
            (here / "pid").rename(here / "waiting")
            time.sleep(600)
        assert forward["source_ori"] == 1 and forward.ch_names == evoked.ch_names
        gain = forward["sol"]["data"]
        self.kernel = gain.T @ np.linalg.inv(gain @ gain.T + np.eye(len(gain)))
        self.vertices = [space["vertno"] for space in forward["src"]]

    def apply_inverse_operator(self, evoked):
        values = self.kernel @ evoked.data * (np.nan if self.solver == "diverging" else 1)
        return mne.SourceEstimate(values, self.vertices, 0.0, 1 / evoked.info["sfreq"])
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "invert.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))


def test_each_case_is_imaged_with_its_own_head_at_its_own_instant(small_suite: Suite, stand_in: None) -> None:
    cases = small_suite.cases(CELLS[0], 4)
    assert len(set(cases.scene)) == len(set(cases.instant)) == 4
    (image,) = CeilingGroup(small_suite, CEILING).images(cases)
    assert image.row == "Least-Squares (ceiling)"
    for case, scene in enumerate(cases.scene):
        gain = small_suite.scenes[scene].scene.arrays.leadfield.astype(float)
        expected = gain.T @ np.linalg.solve(gain @ gain.T + np.eye(len(gain)), cases.sample[case])
        np.testing.assert_allclose(image.maps[:, case], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_channels_that_are_not_used_are_left_out(small_suite: Suite, stand_in: None) -> None:
    """Values in them change nothing."""
    first = small_suite.scenes[0]
    used = first.scene.arrays.used.copy()
    used[[3, 200]] = False
    leadfield = first.scene.arrays.leadfield * used[:, None]
    scene = replace(first.scene, arrays=replace(first.scene.arrays, leadfield=leadfield, used=used))
    suite = replace(small_suite, scenes=(replace(first, scene=scene),))
    clean = replace(small_suite.cases(CELLS[0], 1), scene=np.zeros(1, np.int64))
    window = clean.window.copy()
    window[:, ~used] = 1e6
    (image,) = CeilingGroup(suite, CEILING).images(clean)
    (same,) = CeilingGroup(suite, CEILING).images(replace(clean, window=window))
    assert np.abs(image.maps).max() > 0
    np.testing.assert_array_equal(same.maps, image.maps)


def test_a_ceiling_is_in_the_tables_and_in_no_test(
    small_suite: Suite, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "held_out_suite", lambda *_: small_suite)
    plan = Plan(("MNE", "sLORETA"), CELLS, n_cases=10, n_transported=2, n_noise=5, show=True)
    without = evaluate(plan)
    evaluation = evaluate(replace(plan, ceiling=CEILING))
    results, (row,) = evaluation.results, evaluation.ceilings
    assert results.solvers == ("MNE", "sLORETA", row)
    for metric, values in results.values.items():  # what the others get does not depend on it
        np.testing.assert_array_equal(values[:2], without.results.values[metric])
    for cell in range(2):
        np.testing.assert_array_equal(np.isnan(results.of("le_mm", row, cell)), [False] * 3 + [True] * 7)
        assert np.isfinite(results.of(PEAK, row, cell)).sum() == 3
        assert np.isfinite(results.of("emd_mm", row, cell)).sum() == 2
    assert np.isnan(results.values["nmse"][2]).all()  # no amplitude
    found = all_summaries(evaluation)
    rows = table_rows(evaluation, found)
    assert {(of["solver"], of["n"]) for of in rows} == {("MNE", 10), ("sLORETA", 10), (row, 3)}
    assert {of["solver"] for of in noise_rows(evaluation)} == {"MNE"}
    (shown,) = evaluation.shown
    assert np.isfinite(shown.maps).all()
    assert shown.maps.shape[0] == 3
    tests = comparisons(evaluation)
    said = json_report(evaluation, rows, all_verdicts(evaluation), tests, "a command")["facts"]
    assert "first 3 cases" in said["ceiling"]
    assert "invertmeeg 9.8" in said["ceiling"]
    assert "ceiling" not in json_report(without, [], [], {}, "a command")["facts"]
    html = report_of(evaluation, found, all_verdicts(evaluation), tests, "a command").html()
    assert "Ceilings, beyond real time" in html
    of_row = [line.split("</tr>")[0] for line in html.split("<tr>") if line.startswith(f"<th>{row}</th><td")]
    assert of_row
    assert not any('class="best"' in line for line in of_row)


def test_networks_are_not_judged_against_a_ceiling(
    small_suite: Suite, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "held_out_suite", lambda *_: small_suite)
    evaluation = evaluate(Plan(("MNE", "sLORETA"), CELLS, n_cases=6, n_transported=0, n_noise=0, ceiling=CEILING))
    as_ours = replace(evaluation, results=replace(evaluation.results, solvers=("fusion", "sLORETA", *evaluation.ceilings)))
    (row,) = evaluation.ceilings
    tested = [one for of in comparisons(as_ours).values() for one in of]
    assert {one.other for one in tested} == {"sLORETA"}
    assert not any(row in line for verdict in all_verdicts(as_ours) for line in verdict.failing)
    seen = replace(as_ours, plan=replace(as_ours.plan, ceiling=None))  # the very same row as a competitor
    assert {one.other for of in comparisons(seen).values() for one in of} == {"sLORETA", row}
    assert sum(v.n_tested for v in all_verdicts(as_ours)) < sum(v.n_tested for v in all_verdicts(seen))


def test_what_a_ceiling_is_made_of_is_told(stand_in: None) -> None:
    told = check_ceiling(replace(CEILING, solvers=("LeastSquares", "broken")))
    assert told == "LeastSquares, broken of invertmeeg 9.8, from the whole window, on the first 3 cases of each cell at most"


@pytest.mark.parametrize(
    ("solvers", "said"),
    [
        (("champion",), r"has no solver champion\. It has: broken, diverging, least-squares, waiting\. Choose"),
        (("least-squares", "LeastSquares"), "each once"),
        ((), "none of invertmeeg seen"),
    ],
)
def test_solvers_that_the_package_does_not_have(stand_in: None, solvers: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_ceiling(replace(CEILING, solvers=solvers))


def test_an_interpreter_without_the_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no interpreter .*nowhere\. A Python is expected"):
        check_ceiling(replace(CEILING, python=str(tmp_path / "nowhere")))
    empty = tmp_path / "no-program"
    empty.write_bytes(b"\0\0\0\0")
    empty.chmod(0o755)
    with pytest.raises(ConfigurationError, match="cannot be started"):
        check_ceiling(replace(CEILING, python=str(empty)))


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing may also be something that the package needs."""
    (tmp_path / "invert.py").write_text("import a_module_that_nobody_has")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"cannot import invertmeeg \(No module named 'a_module.*-m pip install"):
        check_ceiling(CEILING)


def test_a_solver_that_fails_says_why(small_suite: Suite, stand_in: None) -> None:
    cases = small_suite.cases(CELLS[0], 1)
    with pytest.raises(SolverError, match=r"failed on broken(?s:.*)ArithmeticError: no convergence"):
        list(CeilingGroup(small_suite, replace(CEILING, solvers=("broken",))).images(cases))
    with pytest.raises(SolverError, match=r"diverging \(ceiling\): NaN or infinity in 1 of 1 maps"):
        list(CeilingGroup(small_suite, replace(CEILING, solvers=("diverging",))).images(cases))


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not asked to end there, they are ended")
def test_nothing_is_left_of_a_run_that_ends_early(
    subject_folder: Path, stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process fails, and so the other is stopped while its interpreter is at work."""
    places = tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setenv("TMPDIR", str(places))
    monkeypatch.setattr("tempfile.tempdir", None)
    ceiling = replace(CEILING, solvers=("waiting",), n_cases=1)
    plan = Plan(("MNE",), CELLS, n_cases=2, n_transported=0, n_noise=0, head=subject_folder, ceiling=ceiling, n_processes=2)
    with pytest.raises(SolverError, match="no convergence"):
        evaluate(plan)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "waiting").read_text()), 0)
    assert not list(places.glob("rt-mmdf-ceiling-*"))
