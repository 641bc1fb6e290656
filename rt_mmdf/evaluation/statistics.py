"""What the scores say: summaries with bootstrap intervals, paired tests, and whether the claims hold.

Every solver sees the same cases, so differences are tested in pairs: Wilcoxon's signed-rank test for errors, the
Brown-Forsythe test for their variance, both with Holm's correction over all cells and rows of one metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import levene, rankdata, wilcoxon

from rt_mmdf.evaluation.results import CaseResults, Cell

Array = NDArray[np.float64]
Better = Literal["lower", "higher"]
Outcome = Literal["holds", "holds in part", "does not hold", "not tested"]

CONFIDENCE = 0.95
N_RESAMPLES = 2000  # the ends of a 95 % interval then rest on 50 resamples each
SIGNIFICANT = 0.01  # after Holm's correction
BLOCK = 2_000_000  # entries of resamples that are held at once

CLASSICAL = ("MNE", "dSPM", "sLORETA", "eLORETA", "LCMV")
SEED, SEED_ALONE, FUSION = "mmdf", ("mmdf-eeg", "mmdf-meg"), "fusion"
BEST_SETTING = "classical rows at the strength of regularisation with their lowest mean le_mm, cell by cell"
FUSION_INSTANT = "fusion-instant"  # the very same network without its window: no competitor of its own


@dataclass(frozen=True)
class Summary:
    """Where values lie. Intervals are 95 % percentile bootstrap intervals; all but `n` are NaN without values.

    variance : with n - 1; NaN for fewer than two values
    """

    n: int
    mean: float
    mean_low: float
    mean_high: float
    median: float
    median_low: float
    median_high: float
    lower_quartile: float
    upper_quartile: float
    variance: float

    @property
    def iqr(self) -> float:
        """Interquartile range."""
        return self.upper_quartile - self.lower_quartile


def summary(values: ArrayLike, rng: np.random.Generator, n_resamples: int = N_RESAMPLES) -> Summary:
    """Median, quartiles, mean, variance and bootstrap intervals of the values that are not NaN.

    Parameters
    ----------
    values : (n,)
    rng : of the resamples; the same state gives the same intervals

    Notes
    -----
    Efron & Tibshirani (1993), percentile intervals. The median of a resample is one of its middle order statistics, and
    those of uniform draws are beta distributed: it is drawn directly, exactly as if the resample had been drawn and sorted.
    """
    known = np.asarray(values, dtype=np.float64).ravel()
    known = known[~np.isnan(known)]
    return _summaries_of(known[np.newaxis], rng, n_resamples)[0]


def summaries(results: CaseResults, metric: str, seed: int = 0) -> dict[tuple[str, Cell], Summary]:
    """Summary of one metric for each solver and cell. Cells with the same number of values share the resamples."""
    known = {}
    for solver in results.solvers:
        for i, cell in enumerate(results.cells):
            values = results.of(metric, solver, i).astype(np.float64)
            known[solver, cell] = values[~np.isnan(values)]
    found: dict[tuple[str, Cell], Summary] = {}
    for n in sorted({len(values) for values in known.values()}):
        keys = [key for key, values in known.items() if len(values) == n]
        own = _summaries_of(np.stack([known[key] for key in keys]), np.random.default_rng((seed, n)), N_RESAMPLES)
        found.update(zip(keys, own, strict=True))
    return {key: found[key] for key in known}


def _summaries_of(values: Array, rng: np.random.Generator, n_resamples: int) -> list[Summary]:
    """Of each row of (n_samples, n) values without NaN."""
    n = values.shape[1]
    if n == 0:
        return [Summary(0, *[float("nan")] * 9)] * len(values)
    ordered = np.sort(values, axis=1)
    tails = 100 * np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    means = np.percentile(_resampled_means(ordered, rng, n_resamples), tails, axis=1)
    medians = np.percentile(_resampled_medians(ordered, rng, n_resamples), tails, axis=1)
    quartiles = np.percentile(ordered, [25, 50, 75], axis=1)
    variances = ordered.var(axis=1, ddof=1) if n > 1 else np.full(len(ordered), np.nan)
    return [
        Summary(
            n=n,
            mean=float(ordered[i].mean()),
            mean_low=float(means[0, i]),
            mean_high=float(means[1, i]),
            median=float(quartiles[1, i]),
            median_low=float(medians[0, i]),
            median_high=float(medians[1, i]),
            lower_quartile=float(quartiles[0, i]),
            upper_quartile=float(quartiles[2, i]),
            variance=float(variances[i]),
        )
        for i in range(len(ordered))
    ]


def _resampled_means(ordered: Array, rng: np.random.Generator, n_resamples: int) -> Array:
    """(n_samples, n_resamples)."""
    n = ordered.shape[1]
    step = max(1, BLOCK // n)
    means = []
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        times_drawn = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        means.append(ordered @ times_drawn.T / n)
    return np.concatenate(means, axis=1)


def _resampled_medians(ordered: Array, rng: np.random.Generator, n_resamples: int) -> Array:
    """(n_samples, n_resamples)."""
    n = ordered.shape[1]
    middle = (n + 1) // 2  # rank of the median, or of the lower of the two values that it lies between
    at = rng.beta(middle, n - middle + 1, n_resamples)
    median = ordered[:, np.minimum((n * at).astype(np.intp), n - 1)]
    if n % 2:
        return median
    above = at + (1 - at) * rng.beta(1, n - middle, n_resamples)
    return 0.5 * (median + ordered[:, np.minimum((n * above).astype(np.intp), n - 1)])


def holm(p: ArrayLike) -> Array:
    """P values corrected for their number by Holm's step-down procedure (Holm 1979), in the order of the input."""
    raw = np.asarray(p, dtype=np.float64).ravel()
    order = np.argsort(raw, kind="stable")
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)))
    return corrected


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of paired differences, ours less the other's, two-sided.

    median_difference : of the differences
    rank_biserial : -1 (ours lower in every pair) to 1 (ours higher in every pair), 0 without a direction
    """

    n: int
    p: float
    median_difference: float
    rank_biserial: float


def signed_rank(ours: ArrayLike, other: ArrayLike) -> PairedTest:
    """Wilcoxon's signed-rank test; pairs with a NaN are left out, equal pairs carry no rank, all equal gives p = 1."""
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    difference = difference[~np.isnan(difference)]
    unequal = difference[difference != 0]
    if len(unequal) == 0:
        return PairedTest(len(difference), 1.0, 0.0 if len(difference) else float("nan"), 0.0)
    ranks = rankdata(np.abs(unequal))
    rank_biserial = float(np.sum(ranks * np.sign(unequal)) / ranks.sum())
    p = float(wilcoxon(unequal).pvalue)
    return PairedTest(len(difference), p, float(np.median(difference)), rank_biserial)


def brown_forsythe(ours: ArrayLike, other: ArrayLike) -> float:
    """P value of equal variances: Levene's test about the medians; 1 where neither sample varies.

    Brown & Forsythe (1974), doi 10.1080/01621459.1974.10482955. NaN are left out.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in (ours, other)]
    samples = [values[~np.isnan(values)] for values in samples]
    if min(len(values) for values in samples) < 2:
        return 1.0
    spreads = [np.abs(values - np.median(values)) for values in samples]
    if all(np.ptp(spread) == 0 for spread in spreads):  # no variance of the spreads: the statistic is 0/0 or infinite
        return 1.0 if np.isclose(spreads[0][0], spreads[1][0]) else 0.0
    return float(levene(*samples, center="median").pvalue)


@dataclass(frozen=True)
class Comparison:
    """Our row against another one in one cell.

    p : of one test; p_holm : corrected over all cells and rows of the metric
    effect : median difference (errors), ratio of the variances (variances); ours to the other's
    direction : below 0 where ours is the lower one
    """

    metric: str
    cell: Cell
    ours: str
    other: str
    n: int
    ours_value: float
    other_value: float
    effect: float
    direction: float
    p: float
    p_holm: float
    better: Better = "lower"

    @property
    def in_favour(self) -> bool:
        """Ours has the better value."""
        if self.better == "lower":
            return self.ours_value < self.other_value
        return self.ours_value > self.other_value

    @property
    def proven(self) -> bool:
        """Ours is better, and the test says so in the same direction at the level of `SIGNIFICANT`."""
        agrees = self.direction < 0 if self.better == "lower" else self.direction > 0
        return self.in_favour and agrees and self.p_holm < SIGNIFICANT

    @property
    def against(self) -> bool:
        """Ours is worse, and the test says so."""
        agrees = self.direction > 0 if self.better == "lower" else self.direction < 0
        return not self.in_favour and agrees and self.p_holm < SIGNIFICANT


def compare(
    results: CaseResults, metric: str, ours: str, better: Better = "lower", others: Sequence[str] | None = None
) -> tuple[Comparison, ...]:
    """Our row against every other one in every cell: means, and paired signed-rank tests.

    Parameters
    ----------
    others : rows to compare with; None for all
    better : whether lower or higher values of the metric are better

    Returns
    -------
    Cells by rows, those without a common case left out. Holm's family is all that is returned.
    """
    return _compared(results, metric, ours, better, _rows(results, ours, others))


def compare_variance(
    results: CaseResults, metric: str, ours: str, others: Sequence[str] | None = None
) -> tuple[Comparison, ...]:
    """As `compare`, of variances and with Brown-Forsythe tests; a smaller variance is better."""
    return _compared_variances(results, metric, ours, _rows(results, ours, others))


def _rows(results: CaseResults, ours: str, others: Sequence[str] | None) -> tuple[str, ...]:
    results.row(ours)
    return tuple(row for row in (results.solvers if others is None else others) if row != ours)


# Thousands of tests take some seconds, and tables and verdicts rest on the same ones.
@lru_cache(maxsize=16)
def _compared(
    results: CaseResults, metric: str, ours: str, better: Better, others: tuple[str, ...]
) -> tuple[Comparison, ...]:
    found = []
    for (i, cell), other in product(enumerate(results.cells), others):
        mine, theirs = _common(results, metric, i, ours, other)
        if len(mine) == 0:
            continue
        test = signed_rank(mine, theirs)
        values = float(mine.mean()), float(theirs.mean())
        found.append((cell, other, test.n, *values, test.median_difference, test.rank_biserial, test.p))
    return _corrected(metric, ours, better, found)


@lru_cache(maxsize=16)
def _compared_variances(results: CaseResults, metric: str, ours: str, others: tuple[str, ...]) -> tuple[Comparison, ...]:
    found = []
    for (i, cell), other in product(enumerate(results.cells), others):
        mine, theirs = _common(results, metric, i, ours, other)
        if len(mine) < 2:
            continue
        values = float(mine.var(ddof=1)), float(theirs.var(ddof=1))
        ratio = values[0] / values[1] if values[1] > 0 else float("inf") if values[0] > 0 else 1.0
        p = brown_forsythe(mine, theirs)
        found.append((cell, other, len(mine), *values, ratio, values[0] - values[1], p))
    return _corrected(metric, ours, "lower", found)


def _common(results: CaseResults, metric: str, cell: int, ours: str, other: str) -> tuple[Array, Array]:
    mine, theirs = (results.of(metric, row, cell).astype(np.float64) for row in (ours, other))
    both = ~(np.isnan(mine) | np.isnan(theirs))
    return mine[both], theirs[both]


def _corrected(
    metric: str,
    ours: str,
    better: Better,
    found: list[tuple[Cell, str, int, float, float, float, float, float]],
) -> tuple[Comparison, ...]:
    corrected = holm([row[-1] for row in found])
    return tuple(
        Comparison(metric, cell, ours, other, n, mine, theirs, effect, direction, p, float(p_holm), better)
        for (cell, other, n, mine, theirs, effect, direction, p), p_holm in zip(found, corrected, strict=True)
    )


@dataclass(frozen=True)
class Verdict:
    """One claim and what became of it.

    n_passed, n_tested : of the single statements that the claim consists of (mostly one for each cell and row)
    failing : those that did not pass, with their numbers
    note : numbers that belong to the claim
    """

    topic: str
    claim: str
    n_passed: int
    n_tested: int
    failing: tuple[str, ...] = ()
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        if self.n_tested == 0:
            return "not tested"
        if self.n_passed == self.n_tested:
            return "holds"
        return "holds in part" if self.n_passed else "does not hold"

    @property
    def holds(self) -> bool:
        """Every single statement passed, and there was at least one."""
        return self.outcome == "holds"


def cell_name(cell: Cell) -> str:
    """``15 mm, 2 sources, 5 dB``."""
    radius, n_sources, snr = cell
    return f"{radius:g} mm, {n_sources} source{'s' if n_sources > 1 else ''}, {snr:g} dB"


def noise_verdict(solver: str, noise_peaks: NDArray[np.floating], signal_peaks: NDArray[np.floating]) -> Verdict:
    """Whether a network stays quiet on noise alone.

    Parameters
    ----------
    noise_peaks : (n,) largest magnitudes of maps of pure noise
    signal_peaks : (n,) largest magnitudes of maps at 10 dB, in the same unit
    """
    loud, usual = float(np.percentile(noise_peaks, 95)), float(np.median(signal_peaks))
    share = loud / usual if usual > 0 else float("inf")  # a network that says nothing is not one that is quiet
    said = f"{share:.1%} ({loud:.3g} against {usual:.3g})"
    claim = f"{solver} on noise alone: 95th percentile of the peak below 20 % of the median peak at 10 dB"
    return Verdict("noise only", claim, int(share < 0.2), 1, () if share < 0.2 else (said,), said)


def verdicts(results: CaseResults, *, ceilings: Sequence[str] = ()) -> tuple[Verdict, ...]:
    """What must be shown, claim by claim, with what does not hold listed.

    Parameters
    ----------
    results : of any suite; claims about rows or cells that are not in it come out as not tested
    ceilings : rows that are no competitors: bounds that are reported beside the others

    Returns
    -------
    Claims of the seed (`mmdf` against each modality alone, and its variance against all rows of its table), then those of
    `fusion` against every other row. `fusion-instant`, the same network given the sample alone, is a competitor of neither.
    Tests are corrected over all cells and rows of a metric, not only those of the claim.
    """
    rows = [row for row in results.solvers if row not in (*ceilings, FUSION_INSTANT)]
    return (*_seed_verdicts(results, rows), *_fusion_verdicts(results, rows))


def _seed_verdicts(results: CaseResults, rows: list[str]) -> tuple[Verdict, ...]:
    lower = "the seed, claim 1"
    said = f"{SEED} has a lower mean le_mm than {{}} in every cell (Holm-corrected p < {SIGNIFICANT:g})"
    smaller = (
        f"the seed, claim 2: {SEED} has a smaller variance of le_mm than {{}} for patches of 15 mm and more at 5 dB and "
        f"below (Holm-corrected Brown-Forsythe p < {SIGNIFICANT:g})"
    )
    if SEED not in rows:
        return (Verdict(lower, said.format("each modality alone"), 0, 0, note=f"{SEED} was not evaluated"),)
    table = [row for row in rows if row not in (FUSION, SEED)]
    errors = compare(results, "le_mm", SEED, others=[row for row in rows if row != SEED])
    variances = compare_variance(results, "le_mm", SEED, [row for row in rows if row != SEED])
    found = [_judged(lower, said.format(alone), [c for c in errors if c.other == alone], 1) for alone in SEED_ALONE]
    topic, claim = smaller.split(": ")
    for other in table:
        of_cells = [c for c in variances if c.other == other and _extended_and_noisy(c.cell)]
        found.append(_judged(topic, claim.format(other), of_cells, 0))
    return tuple(found)


def _fusion_verdicts(results: CaseResults, rows: list[str]) -> tuple[Verdict, ...]:
    if FUSION not in rows:
        return (Verdict(FUSION, "better than every other row", 0, 0, note=f"{FUSION} was not evaluated"),)
    others = [row for row in rows if row != FUSION]
    where = "for patches of 10 mm and more, 1 to 2 sources, 0 dB and more"
    proven = f"(Holm-corrected p < {SIGNIFICANT:g})"
    found: list[Verdict] = []
    errors = compare(results, "le_mm", FUSION, others=others)
    chosen = [c for c in errors if _patches(c.cell)]
    lower = _judged(FUSION, f"lower mean le_mm than every other row {where} {proven}", chosen, 1)
    heads = _head_by_head(results, chosen)
    found.append(replace(lower, note="; ".join(note for note in (lower.note, heads) if note)))
    if "auc" in results.values:
        areas = compare(results, "auc", FUSION, "higher", others)
        chosen = [c for c in areas if _patches(c.cell)]
        found.append(_judged(FUSION, f"higher mean auc than every other row {where} {proven}, {BEST_SETTING}", chosen, 3))
    if "emd_mm" in results.values:
        moved = compare(results, "emd_mm", FUSION, others=[row for row in others if is_classical(row)])
        chosen = [c for c in moved if _patches(c.cell)]
        claim = f"lower mean emd_mm than every classical row {where}, {BEST_SETTING}"
        found.append(_judged(FUSION, claim, chosen, 1, passes=lambda c: c.in_favour))
    found += _within(results, "area_ratio", 0.5, 2.0, _patches, where)
    found.append(_near_the_best(results, others))
    claim = "smaller variance of le_mm than every other row for patches of 15 mm and more at 5 dB and below"
    spreads = compare_variance(results, "le_mm", FUSION, others)
    chosen = [c for c in spreads if _extended_and_noisy(c.cell)]
    found.append(_judged(FUSION, claim, chosen, 0, passes=lambda c: c.in_favour))
    found += _within(results, "amplitude_ratio", 0.7, 1.3, lambda cell: cell[2] == 10, "at 10 dB")
    return tuple(found)


def _head_by_head(results: CaseResults, comparisons: Sequence[Comparison]) -> str:
    """In how many comparisons the mean is lower in every head, in some, in none; empty where heads are not known."""
    if results.head_of_case is None or not comparisons:
        return ""
    heads = np.unique(results.head_of_case)
    lower = []
    for c in comparisons:
        cell = results.cells.index(c.cell)
        apart = results.of(c.metric, c.ours, cell).astype(np.float64) - results.of(c.metric, c.other, cell)
        known = ~np.isnan(apart)
        own, apart = results.head_of_case[results.cell_of_case == cell][known], apart[known]
        lower.append([bool(apart[own == head].mean() < 0) for head in np.unique(own)])
    every, none = sum(map(all, lower)), sum(not any(of_heads) for of_heads in lower)
    return (
        f"taken head by head ({len(heads)}), lower in every one in {every} of {len(lower)}, in some in "
        f"{len(lower) - every - none}, in none in {none}"
    )


def is_classical(row: str) -> bool:
    """Whether a row is a classical inverse, of all channels or of one modality (``sLORETA-eeg``)."""
    return row.split("-")[0] in CLASSICAL


def _patches(cell: Cell) -> bool:
    radius, n_sources, snr = cell
    return radius >= 10 and n_sources <= 2 and snr >= 0


def _extended_and_noisy(cell: Cell) -> bool:
    return cell[0] >= 15 and cell[2] <= 5


def _judged(
    topic: str,
    claim: str,
    comparisons: Sequence[Comparison],
    digits: int,
    passes: Callable[[Comparison], bool] = lambda c: c.proven,
) -> Verdict:
    """A claim that consists of comparisons; the note counts them in favour and against."""
    failing = tuple(_told(c, digits) for c in comparisons if not passes(c))
    favour, proven = sum(c.in_favour for c in comparisons), sum(c.proven for c in comparisons)
    against = sum(c.against for c in comparisons)
    note = f"better in {favour} of {len(comparisons)}, proven in {proven}, proven worse in {against}" if comparisons else ""
    return Verdict(topic, claim, len(comparisons) - len(failing), len(comparisons), failing, note)


def _told(c: Comparison, digits: int) -> str:
    values = f"{c.ours_value:.{digits}f} against {c.other_value:.{digits}f}"
    return f"{cell_name(c.cell)}: {values} of {c.other} (p = {c.p_holm:.2g})"


def _within(
    results: CaseResults, metric: str, low: float, high: float, chosen: Callable[[Cell], bool], where: str
) -> list[Verdict]:
    """Medians of a ratio between two bounds; nothing where the metric was not evaluated."""
    if metric not in results.values:
        return []
    medians = {}
    for i, cell in enumerate(results.cells):
        values = results.of(metric, FUSION, i)
        values = values[~np.isnan(values)]
        if chosen(cell) and len(values):
            medians[cell] = float(np.median(values))
    failing = tuple(f"{cell_name(cell)}: {value:.2f}" for cell, value in medians.items() if not low <= value <= high)
    claim = f"median {metric} between {low:g} and {high:g} {where}"
    note = f"from {min(medians.values()):.2f} to {max(medians.values()):.2f}" if medians else ""
    return [Verdict(FUSION, claim, len(medians) - len(failing), len(medians), failing, note)]


def _near_the_best(results: CaseResults, others: list[str], margin_mm: float = 1.0) -> Verdict:
    """In the cells that are no patches: the mean error at most a margin above that of the best row."""
    failing, margins = [], []
    for i, cell in enumerate(results.cells):
        values = {row: results.of("le_mm", row, i) for row in (FUSION, *others)}
        means = {row: float(np.nanmean(of_row)) for row, of_row in values.items() if not np.isnan(of_row).all()}
        if _patches(cell) or FUSION not in means or len(means) < 2:
            continue
        best = min((row for row in means if row != FUSION), key=means.__getitem__)
        margins.append(means[FUSION] - means[best])
        if margins[-1] > margin_mm:
            failing.append(f"{cell_name(cell)}: {means[FUSION]:.1f} against {means[best]:.1f} mm of {best}")
    claim = f"mean le_mm at most {margin_mm:g} mm above the best other row's in all other cells, point sources included"
    note = f"from {min(margins):+.1f} to {max(margins):+.1f} mm" if margins else ""
    return Verdict(FUSION, claim, len(margins) - len(failing), len(margins), tuple(failing), note)
