from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rt_mmdf.core.errors import RecordingError, SinkError
from rt_mmdf.evaluation.results import CaseResults, joined, load_results

RNG = np.random.default_rng(0)
CELLS = ((0.0, 1, -5.0), (10.0, 2, 20.0))
VALUES = {name: RNG.uniform(0, 9, (2, 7)).astype(np.float32) for name in ("le_mm", "auc")}
VALUES["auc"][1, 3] = np.nan
RESULTS = CaseResults(("ours", "other"), CELLS, np.array([0, 0, 0, 1, 1, 1, 1]), VALUES)


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    RESULTS.save(tmp_path / "r.npz")
    back = load_results(tmp_path / "r.npz")
    assert (back.solvers, back.cells, back.n_cases) == (RESULTS.solvers, CELLS, 7)
    np.testing.assert_array_equal(back.cell_of_case, RESULTS.cell_of_case)
    assert list(back.values) == ["le_mm", "auc"]
    for name, values in VALUES.items():
        np.testing.assert_array_equal(back.values[name], values)


def test_values_of_one_solver_in_one_cell() -> None:
    np.testing.assert_array_equal(RESULTS.of("le_mm", "other", 1), VALUES["le_mm"][1, 3:])
    with pytest.raises(ValueError, match="no solver 'third'"):
        RESULTS.of("le_mm", "third", 0)


def test_heads_are_kept_and_joined_where_they_are_known(tmp_path: Path) -> None:
    heads = np.arange(len(RESULTS.cell_of_case)) % 2
    known = CaseResults(RESULTS.solvers, CELLS, RESULTS.cell_of_case, VALUES, heads)
    known.save(tmp_path / "heads.npz")
    back = load_results(tmp_path / "heads.npz").head_of_case
    assert back is not None
    np.testing.assert_array_equal(back, heads)
    both = joined([known, known]).head_of_case
    assert both is not None
    np.testing.assert_array_equal(both, np.tile(heads, 2))
    assert joined([known, RESULTS]).head_of_case is None
    with pytest.raises(ValueError, match="heads of 1 cases"):
        CaseResults(RESULTS.solvers, CELLS, RESULTS.cell_of_case, VALUES, heads[:1])


def test_runs_are_joined_case_by_case() -> None:
    both = joined([RESULTS, RESULTS])
    assert both.n_cases == 14
    np.testing.assert_array_equal(both.of("le_mm", "ours", 0), np.tile(VALUES["le_mm"][0, :3], 2))
    with pytest.raises(ValueError, match="same solvers"):
        joined([RESULTS, CaseResults(("ours", "third"), CELLS, RESULTS.cell_of_case, VALUES)])


@pytest.mark.parametrize(("cells", "shape"), [([0, 1], (2, 3)), ([0, 1, 2], (2, 3)), ([-1, 0, 1], (2, 3))])
def test_what_does_not_fit_is_refused(cells: list[int], shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="seen"):
        CaseResults(("ours", "other"), CELLS, np.array(cells), {"le_mm": np.zeros(shape, np.float32)})


def test_files_that_are_no_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no such file"):
        load_results(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(RecordingError, match="damaged"):
        load_results(tmp_path / "cut.npz")
    with pytest.raises(SinkError, match="cannot be written"):
        RESULTS.save(tmp_path / "no" / "r.npz")
