from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import wilcoxon

from rt_mmdf.evaluation.results import CaseResults
from rt_mmdf.evaluation.statistics import (
    Verdict,
    brown_forsythe,
    compare,
    compare_variance,
    holm,
    noise_verdict,
    signed_rank,
    summaries,
    summary,
    verdicts,
)

P_VALUES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1))
PAIRS = arrays(np.float64, st.tuples(st.just(2), st.integers(1, 40)), elements=st.integers(-8, 8).map(float))
ROWS = ("MNE", "sLORETA", "mmdf", "mmdf-eeg", "mmdf-meg", "fusion")


def results_of(
    means: dict[str, float], cells: tuple[tuple[float, int, float], ...], spread: float = 2.0, n: int = 60, **metrics: float
) -> CaseResults:
    """Cases whose difficulty all rows share; `metrics` are constant in all rows."""
    rng = np.random.default_rng(5)
    n_cases = n * len(cells)
    hard = rng.gamma(4.0, spread, n_cases)
    errors = np.stack([mean * (1 + 0.1 * hard) + rng.normal(0, 0.3, n_cases) for mean in means.values()])
    values = {"le_mm": errors, "auc": 1 / (1 + np.exp(errors / 20)) + 0.5}
    values |= {name: np.full_like(errors, value) for name, value in metrics.items()}
    return CaseResults(
        solvers=tuple(means),
        cells=cells,
        cell_of_case=np.repeat(np.arange(len(cells)), n),
        values={name: array.astype(np.float32) for name, array in values.items()},
    )


@given(p=P_VALUES)
def test_holm_never_lowers_keeps_the_order_and_lies_between_one_and_bonferroni(p: np.ndarray) -> None:
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, len(p) * p) + 1e-15).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


@given(p=P_VALUES, data=st.data())
def test_holm_rejects_what_stepping_down_rejects_and_knows_no_order(p: np.ndarray, data: st.DataObject) -> None:
    alpha = data.draw(st.floats(0.001, 0.5))
    rejected = np.zeros(len(p), bool)
    for k, index in enumerate(np.argsort(p, kind="stable")):  # Holm's own words: stop at the first that is not small enough
        if p[index] * (len(p) - k) > alpha:
            break
        rejected[index] = True
    np.testing.assert_array_equal(holm(p) <= alpha, rejected)
    shuffled = np.array(data.draw(st.permutations(range(len(p)))))
    np.testing.assert_array_equal(holm(p[shuffled]), holm(p)[shuffled])


def test_holm_on_cases_worked_out_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.6, 0.02]), [1.0, 1.0, 0.06])
    assert holm([]).shape == (0,)


@given(pair=PAIRS)
def test_signed_rank_mirrors_when_the_rows_change_places(pair: np.ndarray) -> None:
    forth, back = signed_rank(pair[0], pair[1]), signed_rank(pair[1], pair[0])
    assert forth.p == pytest.approx(back.p)
    assert 0 <= forth.p <= 1
    assert forth.median_difference == -back.median_difference
    assert forth.rank_biserial == pytest.approx(-back.rank_biserial)


def test_signed_rank_is_scipys_and_holds_its_level_when_labels_are_arbitrary() -> None:
    rng = np.random.default_rng(1)
    ours, other = rng.gamma(2, 5, 200), rng.gamma(2, 6, 200)
    assert signed_rank(ours, other).p == wilcoxon(ours, other).pvalue
    swapped = rng.random((1000, 200)) < 0.5
    p = [signed_rank(np.where(s, ours, other), np.where(s, other, ours)).p for s in swapped]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02)


def test_signed_rank_of_equal_rows_of_missing_pairs_and_of_every_pair_lower() -> None:
    same = signed_rank([1.0, 2.0, np.nan], [1.0, 2.0, 3.0])
    assert (same.n, same.p, same.median_difference, same.rank_biserial) == (2, 1.0, 0.0, 0.0)
    assert signed_rank([np.nan], [1.0]).n == 0
    lower = signed_rank(np.arange(20.0), np.arange(20.0) + np.linspace(1, 3, 20))
    assert lower.rank_biserial == -1
    assert lower.p < 1e-4
    assert lower.median_difference == pytest.approx(-2)


def test_brown_forsythe_sees_variance_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    normal = rng.normal(0, 1, (400, 2, 60))
    level = np.mean([brown_forsythe(a, b + 50) < 0.05 for a, b in normal])
    assert level == pytest.approx(0.05, abs=0.03)
    assert brown_forsythe(normal[0, 0], 3 * normal[0, 1]) < 1e-6
    assert brown_forsythe([1.0, 1.0, np.nan], [5.0, 5.0]) == 1
    assert brown_forsythe([1.0, 1.0], [4.0, 6.0]) == 0
    assert brown_forsythe([1.0], [4.0, 6.0]) == 1


@pytest.mark.parametrize("n", [100, 101])
def test_intervals_cover_what_they_are_of(n: int) -> None:
    rng = np.random.default_rng(0)
    found = [summary(rng.normal(3, 2, n), rng, 400) for _ in range(1500)]
    assert np.mean([s.mean_low <= 3 <= s.mean_high for s in found]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([s.median_low <= 3 <= s.median_high for s in found]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_medians_are_drawn_as_if_samples_had_been(n: int) -> None:
    values = np.random.default_rng(3).gamma(2, 5, n)
    ours = summary(values, np.random.default_rng(0), 40_000)
    drawn = np.median(np.random.default_rng(1).choice(values, (40_000, n)), axis=1)
    assert [ours.median_low, ours.median_high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), rel=0.06)


@given(values=arrays(np.float64, st.integers(1, 50), elements=st.floats(-100, 100)), shift=st.floats(-10, 10))
def test_a_summary_moves_with_its_values_and_comes_out_the_same_twice(values: np.ndarray, shift: float) -> None:
    one = summary(values, np.random.default_rng(0), 100)
    assert one == summary(values[::-1], np.random.default_rng(0), 100) or len(values) == 1
    two = summary(values + shift, np.random.default_rng(0), 100)
    for name in ("mean", "mean_low", "mean_high", "median", "median_low", "median_high"):
        assert getattr(two, name) == pytest.approx(getattr(one, name) + shift, abs=1e-9)
    assert two.iqr == pytest.approx(one.iqr, abs=1e-9)
    tolerance = 1e-9  # of the sum's rounding
    assert one.mean_low - tolerance <= one.mean <= one.mean_high + tolerance or len(values) > 1


def test_a_summary_leaves_out_nan_and_says_how_many_are_left() -> None:
    some = summary([1.0, np.nan, 3.0], np.random.default_rng(0))
    assert (some.n, some.mean, some.median, some.variance) == (2, 2, 2, 2)
    none = summary([np.nan], np.random.default_rng(0))
    assert none.n == 0
    assert np.isnan(none.mean)
    assert np.isnan(none.mean_low)
    assert np.isnan(summary([4.0], np.random.default_rng(0)).variance)


def test_rows_are_compared_cell_by_cell_on_the_same_cases() -> None:
    results = results_of({"sLORETA": 10.0, "MNE": 14.0, "fusion": 6.0}, ((10.0, 1, 5.0), (0.0, 1, 5.0)))
    found = compare(results, "le_mm", "fusion")
    assert [(c.cell, c.other) for c in found] == [(cell, row) for cell in results.cells for row in ("sLORETA", "MNE")]
    assert all(c.in_favour and c.proven and c.effect < 0 for c in found)
    assert found[0].ours_value == pytest.approx(results.of("le_mm", "fusion", 0).mean(), rel=1e-6)
    np.testing.assert_allclose([c.p_holm for c in found], holm([c.p for c in found]))
    assert all(c.proven and c.direction == 1 for c in compare(results, "auc", "fusion", "higher"))
    against = compare(results, "le_mm", "MNE", others=["fusion"])
    assert not any(c.in_favour or c.proven for c in against)
    assert (summaries(results, "le_mm")["MNE", (0.0, 1, 5.0)].n, len(summaries(results, "le_mm"))) == (60, 6)


def test_a_mean_that_is_lower_against_the_ranks_proves_nothing() -> None:
    """Slightly worse in nearly every case, saved by a few wide misses of the other row."""
    other = np.r_[np.full(95, 5.0), np.full(5, 60.0)] + np.linspace(0, 0.1, 100)
    ours = np.r_[np.full(95, 6.0), np.full(5, 5.0)] + np.linspace(0, 0.2, 100)
    results = CaseResults(
        ("a", "b"), ((0.0, 1, 0.0),), np.zeros(100, np.int64), {"le_mm": np.stack([ours, other]).astype(np.float32)}
    )
    (found,) = compare(results, "le_mm", "a")
    assert found.in_favour
    assert found.p_holm < 0.01
    assert not found.proven


def test_variances_are_compared() -> None:
    results = results_of({"sLORETA": 10.0, "fusion": 4.0}, ((15.0, 1, 0.0),))
    (found,) = compare_variance(results, "le_mm", "fusion")
    assert found.proven
    assert found.effect == pytest.approx(found.ours_value / found.other_value)
    assert found.p == brown_forsythe(results.of("le_mm", "fusion", 0), results.of("le_mm", "sLORETA", 0))


CELLS = ((0.0, 1, 10.0), (10.0, 1, 0.0), (20.0, 2, 5.0), (20.0, 3, -5.0))


def of_topic(found: tuple[Verdict, ...], words: str) -> Verdict:
    (verdict,) = (v for v in found if words in v.claim)
    return verdict


def test_verdicts_on_results_in_which_everything_holds() -> None:
    means = {"MNE": 14.0, "sLORETA": 10.0, "mmdf": 8.0, "mmdf-eeg": 11.0, "mmdf-meg": 12.0, "fusion": 5.0}
    found = verdicts(results_of(means, CELLS, n=400, emd_mm=8.0, area_ratio=1.2, amplitude_ratio=0.9))
    held = {v.claim: (v.outcome, v.n_tested, v.failing) for v in found}
    assert of_topic(found, "emd_mm").outcome == "does not hold"  # equal is not lower
    assert all(outcome == "holds" for claim, (outcome, _, _) in held.items() if "emd_mm" not in claim)
    assert of_topic(found, "lower mean le_mm than every other row").n_tested == 2 * 5
    assert of_topic(found, "than mmdf-eeg in every cell").n_tested == 4
    assert of_topic(found, "at most 1 mm above").n_tested == 2
    assert of_topic(found, "amplitude_ratio").n_tested == 1
    assert of_topic(found, "smaller variance of le_mm than every other row").n_tested == 2 * 5


def test_verdicts_say_what_does_not_hold_and_where() -> None:
    means = {"MNE": 14.0, "sLORETA": 4.0, "mmdf": 8.0, "mmdf-eeg": 7.0, "mmdf-meg": 12.0, "fusion": 6.0}
    found = verdicts(results_of(means, CELLS, area_ratio=3.0))
    eeg = of_topic(found, "than mmdf-eeg in every cell")
    assert (eeg.outcome, eeg.n_passed) == ("does not hold", 0)
    assert "proven worse in 4" in eeg.note
    assert of_topic(found, "than mmdf-meg in every cell").holds
    best = of_topic(found, "lower mean le_mm than every other row")
    assert (best.outcome, best.n_passed, best.n_tested) == ("holds in part", 8, 10)
    assert all("of sLORETA" in line for line in best.failing)
    assert best.failing[0].startswith("10 mm, 1 source, 0 dB: ")
    point = of_topic(found, "at most 1 mm above")
    assert (point.n_passed, point.n_tested) == (0, 2)
    assert "of sLORETA" in point.failing[0]
    assert of_topic(found, "area_ratio").failing == ("10 mm, 1 source, 0 dB: 3.00", "20 mm, 2 sources, 5 dB: 3.00")
    without = verdicts(results_of(means, CELLS), ceilings=["sLORETA"])
    assert of_topic(without, "lower mean le_mm than every other row").holds


def test_fusion_without_its_window_is_no_competitor() -> None:
    means = {"MNE": 14.0, "mmdf": 8.0, "fusion": 6.0}
    found = verdicts(results_of(means | {"fusion-instant": 3.0}, CELLS))
    assert of_topic(found, "lower mean le_mm than every other row").holds
    assert of_topic(found, "at most 1 mm above").holds
    assert not any("fusion-instant" in verdict.claim for verdict in found)


def test_heads_are_looked_at_one_by_one() -> None:
    """Three rows: one worse in both heads, one in the first head alone, one in neither."""
    heads = np.tile([0, 1], 20)
    errors = [np.full(40, 5.0), np.full(40, 9.0), np.where(heads == 0, 9.0, 4.0), np.full(40, 4.0)]
    values = {"le_mm": np.array(errors, dtype=np.float32)}
    results = CaseResults(("fusion", "MNE", "dSPM", "sLORETA"), ((10.0, 1, 5.0),), np.zeros(40, np.int64), values, heads)
    note = of_topic(verdicts(results), "lower mean le_mm than every other row").note
    assert "head by head (2), lower in every one in 1 of 3, in some in 1, in none in 1" in note
    unknown = CaseResults(results.solvers, results.cells, results.cell_of_case, values)
    assert "head" not in of_topic(verdicts(unknown), "lower mean le_mm than every other row").note


def test_what_was_not_evaluated_is_not_judged() -> None:
    found = verdicts(results_of({"MNE": 14.0, "sLORETA": 4.0}, CELLS))
    assert {v.outcome for v in found} == {"not tested"}
    elsewhere = verdicts(results_of({"MNE": 14.0, "fusion": 4.0}, ((0.0, 1, 0.0),)))
    assert of_topic(elsewhere, "lower mean le_mm than every").outcome == "not tested"
    assert of_topic(elsewhere, "at most 1 mm above").holds


def test_noise_alone() -> None:
    rng = np.random.default_rng(0)
    quiet = noise_verdict("fusion", rng.uniform(0, 1, 500), np.full(100, 10.0))
    assert quiet.holds
    assert quiet.note.startswith("9.")
    loud = noise_verdict("fusion", rng.uniform(0, 5, 500), np.full(100, 10.0))
    assert (loud.outcome, len(loud.failing)) == ("does not hold", 1)
