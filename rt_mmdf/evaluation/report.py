"""The report of an evaluation: one HTML file that needs nothing else, to be read on a screen or printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rt_mmdf.evaluation.real import RealMap
from rt_mmdf.evaluation.results import CaseResults, Cell
from rt_mmdf.evaluation.statistics import (
    CONFIDENCE,
    SIGNIFICANT,
    Better,
    Comparison,
    Summary,
    Verdict,
)
from rt_mmdf.sinks.page import facts_table, figure_part, page, write_page

Statistic = Literal["mean", "median", "variance", "iqr"]


@dataclass(frozen=True)
class Table:
    """One statistic of one metric, as a table of solvers by cells.

    better : which values are better; a number: those nearest to it (by their ratio); None: none is
    """

    metric: str
    statistic: Statistic
    heading: str
    digits: int
    better: Better | float | None = "lower"


TABLES = (
    Table("le_mm", "mean", "Localisation error, mean, mm", 1),
    Table("le_mm", "median", "Localisation error, median, mm", 1),
    Table("le_mm", "iqr", "Localisation error, interquartile range, mm", 1),
    Table("le_mm", "variance", "Localisation error, variance, mm²", 0),
    Table("auc", "mean", "Area under the ROC curve, mean", 3, "higher"),
    Table("auc_close", "mean", "Area under the ROC curve, near sources only, mean", 3, "higher"),
    Table("auc_far", "mean", "Area under the ROC curve, far sources only, mean", 3, "higher"),
    Table("emd_mm", "mean", "Earth mover's distance, mean, mm", 1),
    Table("sd_mm", "median", "Spatial dispersion, median, mm", 1, None),
    Table("area_ratio", "median", "Area above half maximum over the true one, median", 2, 1.0),
    Table("amplitude_ratio", "median", "Moment within 20 mm over the true one, median", 2, 1.0),
    Table("dice", "mean", "Overlap at Otsu's threshold (Dice), mean", 2, "higher"),
    Table("nmse", "median", "Normalised mean square error, median", 2),
    Table("correlation", "median", "Correlation of time courses, median", 2, "higher"),
)

STYLE = """
th.first, td.first { border-left: 1px solid #999 }
th.group { text-align: center }
td.best { background: var(--best); font-weight: 700 }
td.good { color: var(--good); font-weight: 600 } td.good::after { content: "\\2009\\2713" }
td.bad { color: var(--bad); font-weight: 600 } td.bad::after { content: "\\2009\\2717" }
td.open { color: var(--soft) }
.verdicts td, .verdicts th { vertical-align: top; white-space: normal; font-size: 14px }
.verdicts thead th { text-align: left }
.verdicts th, .verdicts td.outcome { white-space: nowrap; text-align: left } .verdicts td.outcome { font-weight: 700 }
.verdicts td:last-child { white-space: nowrap } .verdicts small { color: var(--soft); display: block }
.holds .outcome { color: var(--good) } .not .outcome { color: var(--bad) } .part .outcome { color: #8a5a00 }
ul { columns: 27em; column-gap: 2em; font-size: 13px; margin: .3em 0; padding-left: 1.3em }
"""


@dataclass(frozen=True)
class RealSection:
    """What came of a real recording."""

    maps: Sequence[RealMap]
    figure: Figure
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What is reported.

    facts : name to value: command, versions, heads, seed, number of cases, duration
    comparisons : heading to comparisons of one row with the others
    figures : caption to figure
    notes : paragraphs below the facts
    ceilings : rows that are no competitors; none of them is marked as best
    """

    title: str
    facts: Mapping[str, str]
    results: CaseResults
    summaries: Mapping[str, Mapping[tuple[str, Cell], Summary]]
    verdicts: Sequence[Verdict] = ()
    comparisons: Mapping[str, Sequence[Comparison]] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    real: RealSection | None = None
    notes: Sequence[str] = ()
    ceilings: Sequence[str] = ()

    def html(self) -> str:
        """The whole file; images are in it."""
        parts = [
            facts_table(self.facts),
            *(f'<p class="note">{escape(note)}</p>' for note in self.notes),
        ]
        if self.verdicts:
            parts += ["<h2>What was to be shown</h2>", _verdict_table(self.verdicts)]
        if self.figures:
            parts += ["<h2>Figures</h2>", *(figure_part(figure, caption) for caption, figure in self.figures.items())]
        if self.real is not None:
            parts += _real(self.real)
        per_cell = np.bincount(self.results.cell_of_case, minlength=len(self.results.cells))
        parts += ["<h2>Tables</h2>", f'<p class="note">{escape(_how_to_read(per_cell))}</p>']
        for table in TABLES:
            if table.metric in self.summaries:
                found = self.summaries[table.metric]
                most = max(summary.n for summary in found.values())
                fewer = f" ({most} cases a cell)" if most < per_cell.min() else ""
                parts += [f"<h3>{escape(table.heading + fewer)}</h3>", *_tables(table, self.results, found, self.ceilings)]
        if self.comparisons:
            parts += ["<h2>Tests</h2>", f'<p class="note">{escape(TESTS)}</p>']
            for heading, comparisons in self.comparisons.items():
                parts += [f"<h3>{escape(heading)}</h3>", *_comparison_tables(comparisons)]
        if failed := [verdict for verdict in self.verdicts if verdict.failing]:
            parts += ["<h2>Where it does not hold</h2>", *map(_failing, failed)]
        return page(self.title, parts, STYLE)


TESTS = (
    "Errors: paired signed-rank tests (Wilcoxon) and the median difference, ours less the other's. Variances: "
    "Brown-Forsythe tests and the ratio, ours over the other's. All p values are two-sided and corrected over the whole "
    f"table (Holm). Green, \u2713: ours is better, p < {SIGNIFICANT:g}; red, \u2717: ours is worse, p < {SIGNIFICANT:g}; "
    "grey: not told apart. Point at a number for the means and the p value."
)


def write_report(report: Report, path: Path) -> None:
    """Write the HTML file, replacing an earlier one; SinkError if that is not possible."""
    write_page(report.html(), path)


OUTCOMES = {"holds": "holds", "holds in part": "part", "does not hold": "not", "not tested": "untested"}


def _verdict_table(found: Sequence[Verdict]) -> str:
    rows = ""
    for verdict in found:
        count = f"{verdict.n_passed} of {verdict.n_tested}" if verdict.n_tested else ""
        note = f"<small>{escape(verdict.note)}</small>" if verdict.note else ""
        rows += (
            f'<tr class="{OUTCOMES[verdict.outcome]}"><th>{escape(verdict.topic)}</th><td class="text">'
            f'{escape(verdict.claim)}{note}</td><td class="outcome">{verdict.outcome}</td><td>{count}</td></tr>'
        )
    head = "<tr><th>about</th><th>claim</th><th>outcome</th><th>passed</th></tr>"
    return f'<table class="verdicts"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def _failing(verdict: Verdict) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in verdict.failing)
    return f"<h3>{escape(verdict.topic)}: {escape(verdict.claim)}</h3><ul>{lines}</ul>"


def _how_to_read(per_cell: NDArray[np.int64]) -> str:
    n = f"{per_cell.min()}" if per_cell.min() == per_cell.max() else f"{per_cell.min()} to {per_cell.max()}"
    return (
        f"Rows are solvers, columns are cells: radius of the patch and, below it, SNR in dB; {n} cases each. The best value "
        f"of a column is marked. Point at a number for its {CONFIDENCE:.0%} bootstrap interval, quartiles and number of "
        "cases."
    )


def _tables(
    table: Table, results: CaseResults, found: Mapping[tuple[str, Cell], Summary], ceilings: Sequence[str]
) -> Iterable[str]:
    """One for each number of sources."""
    for n_sources in sorted({cell[1] for cell in results.cells}):
        cells = sorted(cell for cell in results.cells if cell[1] == n_sources)
        cells = [cell for cell in cells if any(found[row, cell].n for row in results.solvers)]
        values = {
            (row, cell): float(getattr(found[row, cell], table.statistic)) for row in results.solvers for cell in cells
        }
        rows = [row for row in results.solvers if any(not np.isnan(values[row, cell]) for cell in cells)]
        if not rows:
            continue
        ranked = [row for row in rows if row not in ceilings]
        best = {cell: _best([values[row, cell] for row in ranked], table.better) for cell in cells}
        entries = {
            (row, cell): _entry(value, best[cell] if row in ranked else float("nan"), table.digits, found[row, cell])
            for (row, cell), value in values.items()
        }
        yield _grid(f"{n_sources} source{'s' if n_sources > 1 else ''}", rows, cells, entries)


def _entry(value: float, best: float, digits: int, summary: Summary) -> str:
    if np.isnan(value):
        return "<td></td>"
    kind = ' class="best"' if f"{value:.{digits}f}" == f"{best:.{digits}f}" else ""
    return f'<td{kind} title="{escape(_details(summary))}">{value:.{digits}f}</td>'


def _best(values: Sequence[float], better: Better | float | None) -> float:
    known = np.array([value for value in values if not np.isnan(value)])
    if better is None or len(known) == 0:
        return float("nan")
    if better == "lower":
        return float(known.min())
    if better == "higher":
        return float(known.max())
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.where(known > 0, np.abs(np.log(known / float(better))), np.inf)
    return float(known[apart.argmin()])


def _details(s: Summary) -> str:
    return (
        f"n {s.n}; mean {s.mean:.4g} ({s.mean_low:.4g} to {s.mean_high:.4g}); median {s.median:.4g} ({s.median_low:.4g} to "
        f"{s.median_high:.4g}); quartiles {s.lower_quartile:.4g} and {s.upper_quartile:.4g}; variance {s.variance:.4g}"
    )


def _comparison_tables(comparisons: Sequence[Comparison]) -> Iterable[str]:
    rows = list(dict.fromkeys(c.other for c in comparisons))
    entries = {(c.other, c.cell): _compared(c) for c in comparisons}
    for n_sources in sorted({c.cell[1] for c in comparisons}):
        cells = sorted({c.cell for c in comparisons if c.cell[1] == n_sources})
        yield _grid(f"{n_sources} source{'s' if n_sources > 1 else ''}", rows, cells, entries)


def _compared(c: Comparison) -> str:
    kind = "good" if c.proven else "bad" if c.against else "open"
    title = f"{c.ours} {c.ours_value:.4g}, {c.other} {c.other_value:.4g}; corrected p = {c.p_holm:.2g}; n {c.n}"
    return f'<td class="{kind}" title="{escape(title)}">{c.effect:.{3 if c.metric.startswith("auc") else 2}f}</td>'


def _grid(corner: str, rows: Sequence[str], cells: Sequence[Cell], entries: Mapping[tuple[str, Cell], str]) -> str:
    """Rows by cells, the cells grouped by their radius; entries that are not there stay empty."""
    radii = list(dict.fromkeys(cell[0] for cell in cells))
    widths = {radius: sum(cell[0] == radius for cell in cells) for radius in radii}
    groups = "".join(f'<th class="group first" colspan="{widths[radius]}">{radius:g} mm</th>' for radius in radii)
    firsts = {next(cell for cell in cells if cell[0] == radius) for radius in radii}
    ratios = "".join(f"<th{' class=first' if cell in firsts else ''}>{cell[2]:g}</th>" for cell in cells)
    body = ""
    for row in rows:
        of_row = "".join(entries.get((row, cell), "<td></td>") for cell in cells)
        body += f"<tr><th>{escape(row)}</th>{of_row}</tr>"
    return (
        f'<div class="wide"><table><thead><tr><th>{escape(corner)}</th>{groups}</tr><tr><th>dB</th>{ratios}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _real(section: RealSection) -> list[str]:
    names = ("condition", "trials", "solver", "peak, MRI mm", "at, ms", "side", "where expected", "sd, mm", "peak value")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for found in section.maps:
        x, y, z = (round(value) for value in found.position_mm)
        where = {None: "not known", True: "yes", False: "no"}[found.in_region]
        kind = {None: "open", True: "good", False: "bad"}[found.in_region]
        rows.append(
            f'<tr><th>{escape(found.condition)}</th><td>{found.n_trials}</td><td class="text">{escape(found.solver)}</td>'
            f"<td>{x}, {y}, {z}</td><td>{1e3 * found.time_s:.0f}</td><td>{found.hemisphere}</td>"
            f'<td class="{kind}">{where}</td><td>{found.sd_mm:.1f}</td><td>{_amplitude(found)}</td></tr>'
        )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    return ["<h2>Real evoked responses</h2>", note, table, figure_part(section.figure, "Maps at the instant of each peak")]


def _amplitude(found: RealMap) -> str:
    value = float(np.abs(found.values[found.peak]))
    if found.unit != "A m":
        return f"{value:.1f}"
    spread = "" if found.deviation is None else f" ± {1e9 * found.deviation:.1f}"
    return f"{1e9 * value:.1f}{spread} nA m"


def describe(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as plain text, what failed below each."""
    lines = []
    for verdict in verdicts:
        count = f" ({verdict.n_passed} of {verdict.n_tested})" if verdict.n_tested else ""
        note = f"; {verdict.note}" if verdict.note else ""
        lines.append(f"{verdict.topic}: {verdict.claim}: {verdict.outcome}{count}{note}")
        lines += [f"  {line}" for line in verdict.failing]
    return "\n".join(lines)
