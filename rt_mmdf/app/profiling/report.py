"""What a profile says: a table for a terminal, JSON for programs, one HTML file for people."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rt_mmdf.app.profiling.figures import histogram, percentiles, stages, timeline
from rt_mmdf.app.profiling.hops import END_TO_END, STAGES
from rt_mmdf.app.profiling.rows import Row, labels_of
from rt_mmdf.app.profiling.trace import trace_of
from rt_mmdf.app.scorecard import plain, versions, write_json
from rt_mmdf.app.session import START_UP_S
from rt_mmdf.core.errors import SinkError
from rt_mmdf.lsl.library import liblsl_version
from rt_mmdf.sinks.page import facts_table, figure_part, page, write_page

FORMAT, FORMAT_VERSION = "rt_mmdf profile", 1
PERCENTILES = ("p50", "p90", "p99", "p99_9", "max")
STYLE = """
td.bad { color: var(--bad); font-weight: 600 }
tr.row td, tr.row th { border-top: 1px solid #999; font-weight: 700 }
"""

HOW_TO_READ = (
    "Every latency is measured against the intended time of its hop: when the hop could have been complete if nothing but "
    "physics took time. A hop that was skipped counts as late until the next one was published. A dash: too few hops for "
    "that percentile. Cores and memory are those of the whole process of the engine; rows that are measured here run one "
    "after the other in one process, so a later row's memory holds what earlier rows left behind."
)
MEANING = {
    END_TO_END: "intended time of a hop to the first publication as new; skipped hops included",
    "receive": "intended time to the pull of the last sample that the hop needs: sender, network, receiving thread",
    "align": "both streams on one grid, and waiting for the engine's thread",
    "preprocess": "bad channels, filters, decimation",
    "solve": "whitening, window and solver",
    "publish": "to the outlet",
    "software": "received to published",
    "lateness": "intended time to publication, of the hops that were published",
    "age": "sensor time of a hop's last sample to publication: look-ahead and block included",
    "hear": "publication to this listener, over LSL",
}


@dataclass(frozen=True)
class Miss:
    """A row whose p99 misses the budget."""

    row: str
    p99_ms: float
    budget_ms: float

    def __str__(self) -> str:
        over = self.p99_ms - self.budget_ms
        return f"{self.row}: p99 {self.p99_ms:.1f} ms, {over:.1f} ms over the budget of {self.budget_ms:g} ms"


def misses(rows: Sequence[Row]) -> list[Miss]:
    """Rows whose p99 end to end exceeds their budget; with too few hops for a p99 the latest hop decides."""
    found = []
    for row in rows:
        figures = row.summary()["latency_ms"][END_TO_END]
        p99 = figures["p99"] if figures["p99"] is not None else figures["max"]
        if p99 is None or p99 > row.budget_ms:
            found.append(Miss(row.name, float("inf") if p99 is None else p99, row.budget_ms))
    return found


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "load_1_min": round(psutil.getloadavg()[0], 2),
    }


def json_report(rows: Sequence[Row], command: str) -> dict[str, Any]:
    """Figures and raw stamps of every row; strict JSON, at most about half a megabyte a row."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": versions(liblsl_version()),
        "machine": machine(),
        "meaning": MEANING,
        "rows": [row.summary() | {"raw": row.raw()} for row in rows],
    }
    values: dict[str, Any] = plain(content)
    return values


def write_report(rows: Sequence[Row], command: str, path: Path) -> None:
    """Write the JSON report; SinkError where that is not possible."""
    write_json(path, json_report(rows, command), compact=True)


def write_trace(rows: Sequence[Row], command: str, path: Path) -> None:
    """Write the Chrome trace; SinkError where that is not possible."""
    write_json(path, plain(trace_of(rows, command)), compact=True)


def write_html(rows: Sequence[Row], command: str, path: Path) -> None:
    """Write the HTML report; SinkError where that is not possible."""
    if path.is_dir():
        raise SinkError(f"report {path}: a folder is there. Choose another name.")
    write_page(_html(rows, command), path)


# for the terminal


def render(rows: Sequence[Row]) -> RenderableType:
    """A table of all rows end to end, then the stages of each, then what else there is to say."""
    parts: list[RenderableType] = [_overview(rows)]
    for row in rows:
        parts += [Text(""), _stages(row)]
    return Group(*parts)


def _overview(rows: Sequence[Row]) -> Table:
    names, shared = labels_of(rows)
    table = Table(
        title=f"End to end, ms after a hop could exist; skipped hops count as late ({shared})",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("row", style="bold")
    for name in (*PERCENTILES, "jitter", "late", "run", "skipped", "hops"):
        table.add_column(name.replace("_", "."), justify="right", no_wrap=True)
    for row, name in zip(rows, names, strict=True):
        summary = row.summary()
        figures = summary["latency_ms"][END_TO_END]
        table.add_row(
            name,
            *(_ms(figures[key], row.budget_ms) for key in PERCENTILES),
            _ms(figures["jitter"]),
            _bad(summary["late"]),
            _bad(summary["longest_late_run"]),
            Text("?") if summary["skipped"] is None else _bad(summary["skipped"]),
            str(summary["hops"]),
        )
    return table


def _stages(row: Row) -> RenderableType:
    summary = row.summary()
    table = Table(title=row.name, title_justify="left", box=None, pad_edge=False)
    table.add_column("stage, ms", style="bold")
    for name in (*PERCENTILES, "jitter"):
        table.add_column(name.replace("_", "."), justify="right", no_wrap=True)
    for name in _shown(summary):
        figures = summary["latency_ms"][name]
        table.add_row(name.replace("_", " "), *(_ms(figures[key]) for key in (*PERCENTILES, "jitter")))
    return Group(table, *(Text(line, style="dim") for line in lines_of(summary)))


def _shown(summary: Mapping[str, Any]) -> list[str]:
    return [name for name in (*STAGES, "software", END_TO_END, "hear") if name in summary["latency_ms"]]


def lines_of(summary: Mapping[str, Any]) -> list[str]:
    """What a table of latencies leaves out: deadlines, queues, load, physics, start-up, the profiler itself."""
    load, physics, start, overhead = (summary[key] for key in ("load", "physics", "start_up", "overhead"))
    lines = [
        f"{summary['late']} of {summary['hops']} hops later than {summary['budget_ms']:g} ms, "
        f"{summary['longest_late_run']} in a row at most; "
        f"{'an unknown number' if summary['skipped'] is None else summary['skipped']} skipped, {summary['invalid']} without "
        f"anything to image; {summary['seconds']:.1f} s, {summary['how']}"
    ]
    if summary["fallback"]:
        lines.append(
            f"{summary['fallback']} of them imaged by the engine's fallback solver, in place of the one that is named"
        )
    if summary["skipped"] is None:
        lines.append("fewer estimates than hops are published: which hops were skipped cannot be seen from here")
    queues = (f"{name} p50 {_say(q['p50'])}, max {_say(q['max'])}" for name, q in summary["queue"].items())
    lines.append(f"samples waiting at publication: {'; '.join(queues) or 'not known'}")
    gpu = load["gpu"]
    if load["gpu_percent"] is not None:
        gpu = f"{load['gpu_percent']:.0f} %, {load['gpu_mb']:.0f} MB ({gpu})"
    cores, most, memory = (
        _say(load[key], digits) for key, digits in (("cpu_cores", 2), ("cpu_cores_max", 2), ("rss_mb", 0))
    )
    lines.append(f"load of the engine's process: {cores} cores (at most {most}), {memory} MB; GPU {gpu}")
    if (device := (summary.get("model") or {}).get("gpu_ms")) is not None:
        stages = "; ".join(
            f"{n} sample{'s' if n != 1 else ''}: " + ", ".join(f"{name} {ms:.3f}" for name, ms in own.items())
            for n, own in device["stages"].items()
        )
        lines.append(
            f"on the GPU, ms, by CUDA events: a call p50 {device['p50']:.3f}, p99 {device['p99']:.3f}, max "
            f"{device['max']:.3f} ({device['n']} calls); run one by one, {stages}"
        )
    chunks = ", ".join(f"{name} {ms:.1f}" for name, ms in physics["chunk_fill_ms"].items()) or "not known"
    lines.append(
        f"physics, ms, not in the above: hop fill {physics['hop_fill_ms']:.1f}; block fill {chunks}; look-ahead "
        f"{_say(physics['look_ahead_ms'])}; in all, a hop's last sample to its intended time "
        f"{_say(physics['sample_to_intended_ms'])}; filter {_say(physics['filter_delay_ms'])}; device lag "
        f"{physics['device_lag']}; the solver looks back {_say(physics['window_ms'])}"
    )
    if start["first_estimate_s"] is not None:
        late = start["lateness_ms"]
        lines.append(
            f"start-up, left out: {start['prepared_s']:.1f} s to prepare, first estimate after "
            f"{start['first_estimate_s']:.1f} s; the {start['hops']} hops up to {START_UP_S:g} s after it: p50 "
            f"{_say(late['p50'])}, max {_say(late['max'])} ms"
        )
    if overhead["note_us"] is not None:
        lines.append(
            f"the profiler itself: {overhead['note_us']:.1f} us a hop, {1e2 * overhead['cores']:.2f} % of a core "
            f"({1e2 * overhead['cores_at_1000_hops']:.2f} % at 1000 hops a second), in the above"
        )
    else:
        lines.append(f"the profiler itself: {1e2 * overhead['cores']:.1f} % of a core in its own process")
        uncertainty = summary["clock_uncertainty_ms"]
        known = "unknown, so is what is heard" if uncertainty is None else f"known to {_say(uncertainty, 3)} ms"
        lines.append(f"the engine's clock is {known}")
    return lines


def _say(value: float | None, digits: int = 1) -> str:
    return "not known" if value is None else f"{value:.{digits}f}"


def _ms(value: float | None, limit: float | None = None) -> Text:
    if value is None:
        return Text("–", style="dim")
    return Text(f"{value:.2f}", style="bold red" if limit is not None and value > limit else "")


def _bad(count: int) -> Text:
    return Text(str(count), style="bold red" if count else "green")


# for a browser


def _html(rows: Sequence[Row], command: str) -> str:
    summaries = [row.summary() for row in rows]
    made_on = machine()
    facts = {
        "command": command,
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{made_on['cores']} cores of {made_on['cpu']}, {made_on['memory_gb']} GB, load {made_on['load_1_min']}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions(liblsl_version()).items()),
    }
    parts = [
        facts_table(facts),
        f'<p class="note">{escape(HOW_TO_READ)}</p>',
        "<h2>End to end</h2>",
        f'<p class="note">All rows: {escape(labels_of(rows)[1])}.</p>',
        _overview_table(summaries, labels_of(rows)[0]),
        "<h2>Figures</h2>",
        figure_part(percentiles(rows), "Percentiles of the end-to-end latency. Dashed: budget."),
        figure_part(histogram(rows), "How often each end-to-end latency occurred."),
        figure_part(
            timeline(rows),
            "Every hop. Red: later than the budget; grey crosses: skipped, as late as what came in their place.",
        ),
        figure_part(
            stages(rows),
            "Where the time goes, for the usual hops (the middle half) and the slowest 1 % of those that were published.",
        ),
        "<h2>Stages</h2>",
    ]
    for summary in summaries:
        parts += [f"<h3>{escape(summary['name'])}</h3>", _stage_table(summary)]
        parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in lines_of(summary)), "</ul>"]
    meaning = facts_table({name.replace("_", " "): said for name, said in MEANING.items()})
    return page("Latency of rt_mmdf", [*parts, "<h2>What the words mean</h2>", meaning], STYLE)


def _overview_table(summaries: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    names = (*PERCENTILES, "jitter", "late", "longest run", "skipped", "hops", "cores", "MB")
    head = "".join(f"<th>{name.replace('_', '.')}</th>" for name in names)
    body = ""
    for summary, label in zip(summaries, labels, strict=True):
        figures, load = summary["latency_ms"][END_TO_END], summary["load"]
        cells = "".join(_cell(figures[key], summary["budget_ms"]) for key in PERCENTILES) + _cell(figures["jitter"])
        for key in ("late", "longest_late_run", "skipped"):
            value = summary[key]
            cells += f'<td class="bad">{value}</td>' if value else f"<td>{'?' if value is None else value}</td>"
        cells += f"<td>{summary['hops']}</td>" + _cell(load["cpu_cores"]) + _cell(load["rss_mb"], digits=0)
        body += f"<tr><th>{escape(label)}</th>{cells}</tr>"
    return f'<div class="wide"><table><thead><tr><th>ms</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _stage_table(summary: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{name.replace('_', '.')}</th>" for name in (*PERCENTILES, "jitter"))
    body = ""
    for name in _shown(summary):
        figures = summary["latency_ms"][name]
        cells = "".join(_cell(figures[key]) for key in (*PERCENTILES, "jitter"))
        kind = ' class="row"' if name == END_TO_END else ""
        body += f"<tr{kind}><th>{name.replace('_', ' ')}</th>{cells}</tr>"
    return f"<table><thead><tr><th>ms</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: float | None, limit: float | None = None, digits: int = 2) -> str:
    if value is None:
        return "<td>–</td>"
    kind = ' class="bad"' if limit is not None and value > limit else ""
    return f"<td{kind}>{value:.{digits}f}</td>"
