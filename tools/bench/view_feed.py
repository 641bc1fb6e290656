"""What it costs a view to receive: 5124 sources at 1 kHz over real LSL from another process, no window.

    python tools/bench/view_feed.py --seconds 30 --report tools/bench/view_feed.json

The sending process pushes hops of 10 estimates through the outlets of the engine. Measured in the receiving one: processor
time of all its threads together (1.0: one core all the time), of which receiving and reducing; resident memory at the
begin, after the history is full once, and at the end; what was lost; and how old the newest picture is when a window would
ask for it, 25 times a second. With `--pace off` nothing is sent: the cost of the threads alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil
from machine import machine

from rt_mmdf.core.blocks import SourceEstimate, StageStamps
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.runtime.memory import settled_memory
from rt_mmdf.sinks.estimates import EstimateDescription, EstimateOutlets
from rt_mmdf.sinks.settings import EstimateStreamSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.view.feed import Feed, Status
from rt_mmdf.view.history import Measure

SFREQ, PER_HOP = 1000.0, 10


def send(name: str, spacing: str, seconds: float, pace: bool) -> None:
    """The engine's part: hops on time, until standard input is closed."""
    head = build_template(spacing=spacing)  # type: ignore[arg-type]
    sources = SourceSpaceDescription(head.name, head.fingerprint, head.vertices, head.source_positions_mm, "MNI305")
    described = EstimateDescription("dSPM", "", "fixed, normal to cortex", SFREQ, 31.0, {"engine/session": name})
    transport, pause = NetworkTransport(), Signal()
    data = np.random.default_rng(0).standard_normal((head.n_sources, 100 * PER_HOP)).astype(np.float32)
    with EstimateOutlets(transport, f"{name}-sources", sources, described, EstimateStreamSettings()) as outlets:
        print("ready", flush=True)
        sys.stdin.readline()  # the view listens
        begun = transport.clock.now()
        for hop in range(round(seconds * SFREQ / PER_HOP) if pace else 0):
            last = begun + (hop + 1) * PER_HOP / SFREQ
            if (left := last - transport.clock.now()) > 0:
                pause.wait(left)
            times = last - np.arange(PER_HOP)[::-1] / SFREQ
            at = PER_HOP * (hop % 100)
            part = data[:, at : at + PER_HOP]
            stamps = StageStamps(last, last, last, last, last, last)
            flags = np.zeros(PER_HOP, np.uint32)
            outlets.publish(SourceEstimate(part, times, flags, hop * PER_HOP, hop, "", stamps))
        sys.stdin.read()


def measure(seconds: float, spacing: str, pace: bool) -> dict[str, object]:
    name, process = f"bench-{uuid4().hex[:8]}", psutil.Process()
    words = [sys.executable, __file__, "--send", name, "--spacing", spacing, "--seconds", str(seconds)]
    sender = subprocess.Popen(
        [*words, "--pace", "on" if pace else "off"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert sender.stdin is not None
    assert sender.stdout is not None
    pause, ages, painted = Signal(), [], []
    try:
        sender.stdout.readline()
        transport = NetworkTransport()
        started = time.perf_counter()
        with Feed(transport, name) as feed:
            while (state := feed.state()).history is None:
                feed.check()
                pause.wait(0.02)
            taken_up = time.perf_counter() - started
            history, memory_at_begin = state.history, process.memory_info().rss
            with settled_memory():
                sender.stdin.write("go\n")
                sender.stdin.flush()
                while pace and feed.state().status is not Status.LIVE:
                    pause.wait(0.01)
                wall, spent = time.perf_counter(), sum(process.cpu_times()[:2])
                memory_full = memory_at_begin
                while (passed := time.perf_counter() - wall) < seconds - 1:
                    pause.wait(0.04)
                    state = feed.state()
                    ages.append(state.age_s)
                    begun = time.perf_counter()
                    if (frame := history.newest(Measure.RMS)) is not None:
                        offset = 0.0 if state.offset is None else state.offset.offset
                        painted.append((transport.clock.now() - frame.time - offset, time.perf_counter() - begun))
                    if passed < min(65.0, seconds / 2):
                        memory_full = process.memory_info().rss
                spent = sum(process.cpu_times()[:2]) - spent
                wall = time.perf_counter() - wall
            counts = feed.state().counts
            memory_at_end = process.memory_info().rss
    finally:
        sender.stdin.close()
        try:
            sender.wait(10)
        except subprocess.TimeoutExpired:
            sender.kill()
            sender.wait()
    quantiles = [50, 99]
    result: dict[str, object] = {
        "sources": history.n_sources,
        "seconds": round(wall, 1),
        "sent": "1000 a second" if pace else "nothing",
        "cores": round(spent / wall, 3),
        "taken_up_after_s": round(taken_up, 2),
        "history_mb": round(history.nbytes / 2**20, 1),
        "rss_mb": {
            key: round(value / 2**20)
            for key, value in (("begin", memory_at_begin), ("half", memory_full), ("end", memory_at_end))
        },
        "counts": {key: getattr(counts, key) for key in ("received", "lost", "holes", "discarded", "unflagged", "invalid")},
    }
    if pace:
        frame_age, read_s = np.array(painted).T
        result["age_of_newest_estimate_ms"] = dict(
            zip(("p50", "p99"), np.round(1e3 * np.nanpercentile(ages, quantiles), 1), strict=True)
        )
        result["age_of_newest_picture_ms"] = dict(
            zip(("p50", "p99"), np.round(1e3 * np.percentile(frame_age, quantiles), 1), strict=True)
        )
        result["reading_a_picture_us"] = round(1e6 * float(np.median(read_s)), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--spacing", default="ico4", help="sources of the template: ico3, ico4 or ico5")
    parser.add_argument("--pace", choices=["on", "off"], default="on")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--send", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
        send(given.send, given.spacing, given.seconds, given.pace == "on")
        return
    report = {**measure(given.seconds, given.spacing, given.pace == "on"), "machine": machine()}
    print(json.dumps(report, indent=1))
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
