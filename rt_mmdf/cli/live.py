"""The live status of a session in a terminal."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rt_mmdf.cli.console import ERR


@contextmanager
def second_ctrl_c_ends_at_once() -> Iterator[None]:
    """While this lasts the first Ctrl-C is a KeyboardInterrupt as always, and the second one ends the process and those
    that it has started where they stand. What was recorded is whole up to the last second.
    """
    pressed = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
            os._exit(130)
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupts_between_looks() -> Iterator[Callable[[], None]]:
    """While this lasts Ctrl-C and a request to terminate are only noted, and raised where the yielded function is called.

    An exception out of a signal handler cuts in anywhere. In the bookkeeping of `threading.Condition`, on which a thread's
    start waits, it comes out as "release unlocked lock", or leaves a lock that is held for ever. A second signal is raised
    where it comes, for whoever does not want to wait.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            before[number](number, frame)

    def look() -> None:
        if asked:
            before[asked[0]](asked[0], None)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before: dict[int, Any] = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in before:
        signal.signal(number, note)
    try:
        yield look
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def live_status() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A table on standard error that is drawn anew with each status; without a terminal, a line every 5 s."""
    if not ERR.is_terminal:
        printed = [float("-inf")]

        def line(status: dict[str, Any]) -> None:
            if status["running_s"] - printed[0] >= 5.0:
                printed[0] = status["running_s"]
                ERR.print(one_line(status), highlight=False, soft_wrap=True)

        yield line
        return
    with Live(console=ERR, refresh_per_second=4, transient=True) as live:
        yield lambda status: live.update(status_table(status))


def one_line(status: dict[str, Any]) -> str:
    """The most important figures of a status."""
    latency = status["latency_ms"]["lateness"]
    parts = [f"{status['running_s']:.0f} s", f"{status['estimates']} hops imaged", f"{status['skipped_hops']} skipped"]
    if latency["p50"] == latency["p50"]:
        parts.append(f"latency p50 {latency['p50']:.1f} p99 {latency['p99']:.1f} ms, {status['missed_deadlines']} late")
    if math.isfinite(status["alignment_uncertainty_ms"] or math.inf):
        parts.append(f"alignment ±{status['alignment_uncertainty_ms']:.2f} ms")
    parts.append(f"device lag {status['device_lag']}")
    if (fallback := status["budget"]["fallback"]) is not None and fallback["active"]:
        parts.append(f"fallback {fallback['solver']}")
    if n_lasting := status["incidents"]["n_lasting"]:
        parts.append(f"{n_lasting} incidents last: {_lasting(status)}")
    lost = ", ".join(
        f"{name} {stream['counts']['lost']}" for name, stream in status["streams"].items() if "counts" in stream
    )
    parts.append(f"lost: {lost}")
    return "; ".join(parts)


def status_table(status: dict[str, Any]) -> Group:
    """Everything a person at the acquisition wants to know now."""
    streams = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stream", "name", "rate", "age", "offset", "drift", "time known to", "lost", "gaps", "missing"):
        streams.add_column(title, justify="left" if title in ("stream", "name") else "right", no_wrap=True)
    for modality, stream in status["streams"].items():
        counts = stream.get("counts", {})
        streams.add_row(
            Text(modality.upper(), style="bold"),
            Text(str(stream["name"])),
            f"{stream['sfreq']:g} Hz",
            _warn(stream["age_s"] * 1e3, 250, "{:.0f} ms"),
            f"{stream.get('offset', float('nan')) * 1e3:.3f} ms",
            f"{stream.get('drift_ppm', float('nan')) + stream.get('rate_error_ppm', float('nan')):+.1f} ppm",
            f"±{stream.get('uncertainty_ms', float('nan')):.3f} ms",
            _warn(counts.get("lost", 0), 0.5, "{:.0f}"),
            _warn(counts.get("gaps", 0), 0.5, "{:.0f}"),
            _warn(stream.get("missing", 0), 0.5, "{:.0f}"),
        )
    figures = Table(box=None, pad_edge=False, show_header=False)
    figures.add_column(style="bold", no_wrap=True)
    figures.add_column()
    latency = status["latency_ms"]["lateness"]
    figures.add_row("imaged", f"{status['solver']}, {status['n_channels']} channels to {status['n_sources']} sources")
    figures.add_row("time", f"{status['running_s']:.0f} s, {status['estimates']} of {status['hops']} hops")
    late = Text.assemble(_warn(status["missed_deadlines"], 0.5, "{:.0f}"), f" later than {status['budget_ms']:g} ms")
    figures.add_row(
        "latency", Text.assemble(f"p50 {latency['p50']:.1f}, p99 {latency['p99']:.1f}, max {latency['max']:.1f} ms; ", late)
    )
    physics = f"{status['look_ahead_ms']:.0f} ms look-ahead, {status['filter_delay_ms']:.0f} ms filter"
    figures.add_row("physics adds", physics)
    figures.add_row("device lag", Text(status["device_lag"], style="" if known_lag(status) else "yellow"))
    if (fallback := status["budget"]["fallback"]) is not None and fallback["changes"]:
        now = "images now" if fallback["active"] else "has imaged"
        figures.add_row("fallback", Text(f"{fallback['solver']} {now}, {fallback['changes']} changes", style="bold yellow"))
    if (second := status["second"]) is not None:
        lateness = f"lateness p50 {second['latency_ms']['lateness']['p50']:.1f} ms"
        skipped = Text.assemble(_warn(second["skipped_hops"], 0.5, "{:.0f}"), f" skipped, {lateness}")
        figures.add_row(
            "second", Text.assemble(f"{second['solver']}, {second['estimates']} of {second['hops']} hops, ", skipped)
        )
    if (average := status["average"]) is not None:
        counts = (f"{name} {own['n_trials']} ({own['n_rejected']} rejected)" for name, own in average["events"].items())
        figures.add_row("averages", Text(", ".join(counts)))
        if problem := average["problem"] or average["markers"]["problem"]:
            figures.add_row("", Text(problem, style="bold red"))
    bads = ", ".join(f"{name} ({reason})" for name, reason in list(status["bad_channels"].items())[:6]) or "none"
    figures.add_row("bad channels", Text(bads))
    figures.add_row("flags", Text(", ".join(f"{name} {n}" for name, n in status["flags"].items()) or "none"))
    if status["incidents"]["n_lasting"]:
        figures.add_row("incidents", Text(_lasting(status), style="bold yellow"))
    figures.add_row("load", f"{status['cpu_cores']:.2f} cores, {status['rss_mb']:.0f} MB")
    return Group(streams, Text(""), figures)


def known_lag(status: dict[str, Any]) -> bool:
    """Whether the lag of each device, or its difference to that of a reference, is known."""
    streams = status["streams"].values()
    references = {stream["lag_against"] for stream in streams if stream["lag_ms"] is not None}
    return all(stream["lag_ms"] is not None or m in references for m, stream in status["streams"].items())


def _lasting(status: dict[str, Any]) -> str:
    """What goes on now, by kind and subject."""
    return ", ".join(f"{one['kind']} {one['subject']}" for one in status["incidents"]["lasting"])


def _warn(value: float, limit: float, form: str) -> Text:
    return Text(form.format(value), style="bold red" if value > limit else "green")
