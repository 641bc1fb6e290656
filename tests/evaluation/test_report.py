from __future__ import annotations

import base64
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from rt_mmdf.core.errors import SinkError
from rt_mmdf.evaluation.real import RealMap
from rt_mmdf.evaluation.report import RealSection, Report, describe, write_report
from rt_mmdf.evaluation.results import CaseResults
from rt_mmdf.evaluation.statistics import compare, noise_verdict, summaries, verdicts

CELLS = tuple((radius, n, snr) for radius in (0.0, 15.0) for n in (1, 2) for snr in (0.0, 10.0))
ROWS = ("sLORETA", "mmdf-eeg", "mmdf-meg", "mmdf", "fusion <&>", "fusion")
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Holds every tag closed in its order, and gathers the tables and what is loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "small"):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def results() -> CaseResults:
    rng = np.random.default_rng(0)
    n_cases = 40 * len(CELLS)
    errors = rng.gamma(4, 1, n_cases) * np.array([6.0, 8.0, 9.0, 5.0, 7.0, 2.0])[:, None]
    values = {"le_mm": errors, "auc": np.exp(-errors / 100), "emd_mm": errors + 3, "area_ratio": np.full_like(errors, 1.5)}
    values["emd_mm"][:, ::2] = np.nan
    values["amplitude_ratio"] = np.where(np.array(ROWS)[:, None] == "sLORETA", np.nan, 0.9 + 0 * errors)
    return CaseResults(
        ROWS, CELLS, np.repeat(np.arange(len(CELLS)), 40), {name: array.astype(np.float32) for name, array in values.items()}
    )


@pytest.fixture(scope="module")
def report(results: CaseResults) -> Report:
    figure = Figure(figsize=(1, 1))
    found = RealMap(
        "Left <Auditory>",
        "fusion",
        3,
        364,
        np.array([0.0, -5e-9]),
        "A m",
        1,
        (47.3, -18.9, 38.6),
        0.093,
        "right",
        True,
        12.4,
        2e-9,
    )
    quiet = noise_verdict("fusion", np.array([1.0, 1.2]), np.array([10.0]))
    return Report(
        title="Evaluation",
        facts={"command": "rt-mmdf evaluate --suite held-out", "seed": "7 & 8"},
        results=results,
        summaries={metric: summaries(results, metric) for metric in results.values},
        verdicts=(*verdicts(results), quiet),
        comparisons={f"{ours}, localisation error, mm": compare(results, "le_mm", ours) for ours in ("fusion", "mmdf")},
        figures={"Maps": figure, "More": figure},
        real=RealSection([found], figure, "Trained for it."),
        notes=["A note."],
    )


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.html())


def test_the_file_is_whole_and_needs_nothing_else(report: Report, page: Page) -> None:
    assert len(page.sources) == 3
    for source in page.sources:
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.split(",")[1], validate=True).startswith(b"\x89PNG")
    text = report.html()
    assert not re.search(r"https?://|url\(|<script|<link", text)
    assert "fusion &lt;&amp;&gt;" in text
    assert "Left &lt;Auditory&gt;" in text
    assert page.tables[0] == [["command", "rt-mmdf evaluate --suite held-out"], ["seed", "7 & 8"]]


def test_tables_hold_what_the_results_hold(results: CaseResults, page: Page) -> None:
    at = page.headings.index("Localisation error, mean, mm")
    assert page.headings[at - 1] == "Tables"
    assert "Earth mover's distance, mean, mm (20 cases a cell)" in page.headings
    table = next(t for t in page.tables if t[0][0] == "1 source")
    assert table[0] == ["1 source", "0 mm", "15 mm"]
    assert table[1] == ["dB", "0", "10", "0", "10"]
    cells = [i for i, cell in enumerate(CELLS) if cell[1] == 1]
    for row in table[2:]:
        means = [f"{results.of('le_mm', row[0], i).mean():.1f}" for i in cells]
        assert row[1:] == means
    assert [row[0] for row in table[2:]] == list(ROWS)
    moments = next(t for t in page.tables if [row[0] for row in t[2:]] == list(ROWS[1:]))  # a row without values is left out
    assert {entry for row in moments[2:] for entry in row[1:]} == {"0.90"}


def test_the_best_of_each_column_is_marked(report: Report) -> None:
    first = report.html().split("Localisation error, mean, mm")[1].split("</table>")[0]
    of_fusion = first.split("<tr><th>fusion</th>")[1].split("</tr>")[0]
    assert of_fusion.count('class="best"') == 4
    assert first.count('class="best"') == 4


def test_tests_are_told_with_their_direction(results: CaseResults, report: Report) -> None:
    text = report.html().split("fusion, localisation error, mm")[1].split("<h3>")[0]
    found = compare(results, "le_mm", "fusion")
    assert all(c.proven for c in found)
    assert text.count('class="good"') == len(found)
    assert text.count('class="bad"') == 0
    against = report.html().split("mmdf, localisation error, mm")[1].split("<h3>")[0]
    assert against.count('class="bad"') == len(CELLS)  # fusion is better everywhere


def test_verdicts_are_told_in_html_and_in_words(report: Report, page: Page) -> None:
    text = report.html()
    table = next(t for t in page.tables if t[0][0] == "about")
    said = describe(report.verdicts)
    for verdict in report.verdicts:
        count = f"{verdict.n_passed} of {verdict.n_tested}"
        assert f"{verdict.claim}: {verdict.outcome} ({count})" in said
        row = [verdict.topic, verdict.claim, verdict.outcome, count]
        assert row in [[*of[:1], of[1].removesuffix(verdict.note), *of[2:]] for of in table[1:]]
        assert all(f"\n  {line}" in said and f"<li>{escape(line)}</li>" in text for line in verdict.failing)
    assert len(table) == 1 + len(report.verdicts)
    assert "noise only" in said


def test_real_responses_have_their_amplitude_with_its_uncertainty(page: Page) -> None:
    table = next(t for t in page.tables if t[0][0] == "condition")
    assert table[1] == ["Left <Auditory>", "3", "fusion", "47, -19, 39", "93", "right", "yes", "12.4", "5.0 ± 2.0 nA m"]


def test_a_report_is_written_or_it_is_said_why_not(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(report, path)
    assert Page(path.read_text(encoding="utf-8")).headings
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="cannot be written"):
        write_report(report, tmp_path / "file" / "report.html")
