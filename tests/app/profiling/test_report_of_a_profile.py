"""JSON, HTML and trace of a profile: strict, bounded, by the published format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rt_mmdf.app.profiling import rows as rows_module
from rt_mmdf.app.profiling import trace as trace_module
from rt_mmdf.app.profiling.report import render, write_html, write_report, write_trace
from rt_mmdf.app.profiling.rows import Row
from rt_mmdf.app.profiling.trace import COMPUTING, WAITING, trace_of
from rt_mmdf.core.errors import SinkError


@pytest.fixture
def rows(make_row: Callable[..., Row]) -> list[Row]:
    late = np.minimum(np.random.default_rng(0).gamma(4.0, 1.0, 300), 8.0)
    late[149] = 45.0
    hops = [*range(150), *range(155, 305)]
    return [make_row(late, hops), make_row(1.1 * late, hops, solver="<b>net&work</b>")]


def strict(path: Path) -> dict[str, Any]:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} in {path}")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert isinstance(content, dict)
    return content


def test_the_json_is_strict_and_its_raw_stamps_give_its_figures(rows: list[Row], tmp_path: Path) -> None:
    write_report(rows, "rt-mmdf profile", path := tmp_path / "p.json")
    found = strict(path)
    assert (found["format"], found["command"], len(found["rows"])) == ("rt_mmdf profile", "rt-mmdf profile", 2)
    for row in found["rows"]:
        raw, latency = row["raw"], row["latency_ms"]
        assert len(raw["hop"]) == row["published"] == 300
        assert row["skipped"] == 5
        assert np.quantile(raw["published_us"], 0.5, method="inverted_cdf") == pytest.approx(
            1e3 * latency["lateness"]["p50"], abs=1
        )
        assert len(raw["end_to_end_us"]) == row["hops"] == 305
        assert np.quantile(raw["end_to_end_us"], 0.99, method="inverted_cdf") == pytest.approx(
            1e3 * latency["end_to_end"]["p99"], abs=1
        )
        assert latency["end_to_end"]["p99_9"] is None  # 305 hops cannot show it
        assert row["physics"]["device_lag"] == "unknown"


def test_raw_stamps_are_bounded(make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "RAW_HOPS", 100)
    raw = make_row([3.0] * 950).raw()
    assert raw["stride"] == 10
    assert raw["hop"] == list(range(0, 950, 10))
    assert max(len(values) for values in raw.values() if isinstance(values, list)) <= 100


class Parser(HTMLParser):
    """Collects what a browser would load and show."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_is_one_file_that_shows_no_name_as_markup(rows: list[Row], tmp_path: Path) -> None:
    write_html(rows, "rt-mmdf profile --html <i>p.html</i>", path := tmp_path / "p.html")
    parser = Parser()
    parser.feed(path.read_text())
    assert parser.tags["img"] == 4
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    assert parser.tags["b"] == parser.tags["i"] == 0
    for part in ("<b>net&work</b>", "end to end", "physics", "device lag unknown", "in a row at most"):
        assert part in parser.text


def test_figures_are_drawn_of_anything(make_row: Callable[..., Row], tmp_path: Path) -> None:
    for number, late in enumerate(([], [1.0], [0.0] * 5, [-0.2, 3.0])):
        write_html([make_row(late)], "x", tmp_path / f"{number}.html")
    write_html([make_row([1.0, 2.0], solver=f"s{k}") for k in range(12)], "x", tmp_path / "many.html")


def test_the_table_says_what_a_person_asks(rows: list[Row]) -> None:
    out = StringIO()
    Console(width=200, file=out).print(render(rows))
    shown = out.getvalue()
    for part in ("p99.9", "jitter", "preprocess", "samples waiting", "physics", "start-up, left out", "the profiler itself"):
        assert part in shown
    assert "5 skipped" in shown


# the trace, by Google's "Trace Event Format"

REQUIRED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "b": {"name", "cat", "ph", "ts", "id", "pid", "tid", "args"},
    "e": {"name", "cat", "ph", "ts", "id", "pid", "tid", "args"},
    "i": {"name", "cat", "ph", "ts", "pid", "tid", "s", "args"},
    "C": {"name", "cat", "ph", "ts", "pid", "tid", "args"},
    "M": {"name", "ph", "ts", "pid", "tid", "args"},
}


def test_the_trace_follows_the_published_format(rows: list[Row], tmp_path: Path) -> None:
    write_trace(rows, "rt-mmdf profile", path := tmp_path / "t.json")
    found = strict(path)
    assert set(found) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert found["displayTimeUnit"] in ("ms", "ns")
    events = found["traceEvents"]
    for event in events:
        assert set(event) == REQUIRED[event["ph"]], event
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["ts"], int | float)
        assert event.get("dur", 0) >= 0
    named = {event["name"] for event in events if event["ph"] == "M"}
    assert named <= {"process_name", "thread_name", "process_labels", "process_sort_index", "thread_sort_index"}
    # every asynchronous begin has its end, not before it
    began = {(e["cat"], e["name"], e["id"]): e["ts"] for e in events if e["ph"] == "b"}
    ended = {(e["cat"], e["name"], e["id"]): e["ts"] for e in events if e["ph"] == "e"}
    assert len(began) == sum(e["ph"] == "b" for e in events), "an id is not unique"
    assert began.keys() == ended.keys()
    assert all(ended[key] >= began[key] for key in began)
    # slices of one track do not overlap
    for track in {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}:
        slices = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == track)
        assert all(after[0] >= before[1] - 2e-3 for before, after in pairwise(slices))


def test_the_trace_has_one_slice_a_stage_and_hop(make_row: Callable[..., Row]) -> None:
    row = make_row([3.0, 30.0, 4.0], [0, 1, 7])
    events = trace_of([row])["traceEvents"]
    for stage in COMPUTING:
        own = [event for event in events if event["ph"] == "X" and event["name"] == stage]
        assert [event["args"]["hop"] for event in own] == [0, 1, 7]
        np.testing.assert_allclose([event["dur"] for event in own], 1e3 * row.times.latency_ms(stage), atol=0.01)
    for stage in WAITING:
        assert [event["id"] for event in events if event["ph"] == "b" and event["name"] == stage] == ["1-0", "1-1", "1-7"]
    assert [event["name"] for event in events if event["ph"] == "i"] == ["hop 1 late", "5 skipped"]


def test_a_long_trace_is_cut_and_says_so(make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "TRACE_HOPS", 10)
    found = trace_of([row := make_row([1.0] * 25)])
    assert sum(event["ph"] == "X" and event["name"] == "solve" for event in found["traceEvents"]) == 10
    assert found["otherData"]["hops_left_out"] == {row.name: 15}


@pytest.mark.parametrize("write", [write_report, write_html, write_trace])
def test_what_cannot_be_written_is_told(write: Callable[..., None], rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "under.json"):
        with pytest.raises(SinkError, match=r"cannot be written|a folder is there"):
            write(rows, "x", path)
