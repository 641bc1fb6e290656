"""Whether a window slows the engine: the same engine with and without a view beside it, in turns, on one machine.

    xvfb-run -a -s "-screen 0 1280x720x24" python tools/bench/view_beside.py --report tools/bench/view_beside.json
    ... --watch 3600 --report tools/bench/view_memory.json

One process replays 366 channels at 1 kHz in blocks of 10, one images every sample of them (dSPM, 5124 sources), and, half of
the time, one shows them: the real window, 1280 x 720, cortex of 20,484 vertices, Mesa's rasteriser with one thread. Turns
last `--seconds`, counted from the first picture on; how long that took from the start of the process is reported apart.
A hop has missed when it was published more than 20 ms after the push of the last sample that it needs, or was skipped. The
interval of the difference of the rates is the 95 % one of resampled pairs of turns. With --watch the window stays open so
long, and its memory and that of the engine are written down every 10 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from engine import CHUNK, HOP_MS, MODALITIES, SFREQ, latencies_ms, write_recording
from machine import machine
from trend import slope_per_hour

BUDGET_MS = 20.0
START_LIMIT_S = 60.0
SETTLE_S = 3.0  # of the engine, and after a window has closed
SAMPLE_S = 10.0


def run_engine(prefix: str, out: Path) -> None:
    """The engine, until standard input is closed; tells once it runs, and its memory every `SAMPLE_S`."""
    from rt_mmdf.app.session import Session
    from rt_mmdf.app.settings import SessionSettings
    from rt_mmdf.core.channels import Modality
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.mailbox import Signal

    settings = SessionSettings.model_validate(
        {
            "name": f"{prefix}-engine",
            "budget_ms": BUDGET_MS,
            "hop_ms": HOP_MS,
            "acquisition": {m: {"name": f"{prefix}-{m.upper()}", "resolve_timeout_s": 30.0} for m in MODALITIES},
            "output": {"sensors": {}},
        }
    )
    last, published, hops = [], [], []

    def note(estimate: object) -> None:
        last.append(estimate.times[-1])  # type: ignore[attr-defined]
        published.append(estimate.stamps.published)  # type: ignore[attr-defined]
        hops.append(estimate.hop)  # type: ignore[attr-defined]

    session, pause = Session(settings, NetworkTransport(), on_estimate=note), Signal()
    with session:
        while not hops:
            session.check()
            pause.wait(0.05)
        print("running", flush=True)
        sys.stdin.read()
        session.check()
        ahead = [session.intake.aligner.look_ahead_samples(Modality(m)) for m in MODALITIES]
    card = session.scorecard().as_dict()
    np.savez(out, last=np.array(last), published=np.array(published), hops=np.array(hops), ahead=np.array(ahead))
    out.with_suffix(".json").write_text(json.dumps(card))


def run_view(prefix: str, out: Path) -> None:
    """The window, until standard input is closed; tells of its first picture."""
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.memory import give_large_blocks_back
    from rt_mmdf.view.feed import Feed

    give_large_blocks_back()
    transport = NetworkTransport()
    with Feed(transport, f"{prefix}-engine") as feed:
        from PySide6.QtCore import QSocketNotifier, QTimer

        from rt_mmdf.view.preferences import PreferencesStore
        from rt_mmdf.view.run import application
        from rt_mmdf.view.settings import ViewSettings
        from rt_mmdf.view.window import ViewWindow

        app = application()
        store = PreferencesStore(out.with_suffix(".ini"))
        window = ViewWindow(feed, transport, store, settings=ViewSettings(size=(1280, 720)), remember=False)
        window.show()
        begun: list[tuple[float, int, int]] = []

        def look() -> None:
            if window.has_estimate and not begun:
                begun.append((time.perf_counter(), window.n_drawn, window.n_dropped))
                print("picture", flush=True)

        timer = QTimer()
        timer.timeout.connect(look)
        timer.start(20)
        closed = QSocketNotifier(0, QSocketNotifier.Type.Read)
        closed.activated.connect(window.close)
        app.exec()
        window.end()
        (at, drawn, dropped), counts = begun[0], feed.state().counts
        facts = {
            "pictures_per_s": (window.n_drawn - drawn) / (time.perf_counter() - at),
            "dropped": window.n_dropped - dropped,
            "received": counts.received,
            "lost": counts.lost + counts.discarded,
        }
    out.write_text(json.dumps(facts))


def started(role: str, prefix: str, out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, "--role", role, "--prefix", prefix, "--out", str(out)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], word: str) -> float:
    """When the process said so."""
    assert process.stdout is not None
    if process.stdout.readline().strip() != word:
        raise SystemExit(f"the process ended before it said {word!r}, with code {process.wait()}")
    return time.perf_counter()


def ended(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(START_LIMIT_S)


class Turns:
    """An engine that runs, and windows that come and go beside it."""

    def __init__(self, folder: Path) -> None:
        self.prefix, self.folder = f"bench-{uuid.uuid4().hex[:8]}", folder
        recording, self.log = folder / "noise-raw.fif", folder / "replay.json"
        write_recording(recording)
        command = [sys.executable, "-m", "rt_mmdf.cli", "replay", str(recording), "--prefix", self.prefix, "--loop", "inf"]
        command += ["--chunk", str(CHUNK), "--no-markers", "--log", str(self.log), "--log-pushes"]
        self.replay = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.engine = started("engine", self.prefix, folder / "engine.npz")
        told(self.engine, "running")
        self.views: list[dict[str, float]] = []

    def view(self) -> tuple[subprocess.Popen[str], Path]:
        begun, out = time.perf_counter(), self.folder / f"view-{len(self.views)}.json"
        process = started("view", self.prefix, out)
        self.views.append({"first_picture_s": told(process, "picture") - begun})
        return process, out

    def close_view(self, process: subprocess.Popen[str], out: Path) -> None:
        begun = time.perf_counter()
        ended(process)
        self.views[-1] |= json.loads(out.read_text()) | {"closing_s": time.perf_counter() - begun}

    def end(self) -> None:
        ended(self.engine)
        self.replay.terminate()
        self.replay.wait(30)

    def kill(self) -> None:
        for process in (self.engine, self.replay):
            process.kill()
            process.wait()


def alternate(turns: Turns, pairs: int, seconds: float) -> dict[str, object]:
    from mne_lsl.lsl import local_clock  # the clock of the stamps

    spans: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for pair in range(pairs):
        for beside in (False, True) if pair % 2 == 0 else (True, False):
            view = turns.view() if beside else None
            time.sleep(SETTLE_S)
            begun = local_clock()
            time.sleep(seconds)
            spans[beside].append((begun, local_clock()))
            if view is not None:
                turns.close_view(*view)
    turns.end()
    log = json.loads(turns.log.read_text())
    with np.load(turns.log.with_suffix(".npz")) as arrays:
        pushes = dict(arrays)
    with np.load(turns.folder / "engine.npz") as arrays:
        run = dict(arrays)
    late = latencies_ms("engine", run, log, pushes, warm_up_s=0.0)
    rates: dict[bool, list[float]] = {False: [], True: []}
    seen: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for beside, own in spans.items():
        for begun, stopped in own:
            inside = (run["published"] >= begun) & (run["published"] < stopped)
            hops = run["hops"][inside]
            all_hops = int(hops[-1] - hops[0]) + 1
            missed = int((late[inside] > BUDGET_MS).sum()) + all_hops - len(hops)
            rates[beside].append(missed / all_hops)
            seen[beside].append(late[inside])
    without, with_view = np.array(rates[False]), np.array(rates[True])
    picks = np.random.default_rng(0).integers(0, pairs, (10_000, pairs))
    differences = (with_view - without)[picks].mean(axis=1)
    interval = np.quantile(differences, [0.025, 0.975])
    return {
        "pairs": pairs,
        "seconds": seconds,
        "miss_rate": {"without": float(without.mean()), "with": float(with_view.mean())},
        "miss_rates": {"without": without.round(5).tolist(), "with": with_view.round(5).tolist()},
        "difference": float((with_view - without).mean()),
        "difference_interval": interval.tolist(),
        "latency_ms": {
            name: {f"p{q:g}": round(float(np.percentile(np.concatenate(seen[beside]), q)), 2) for q in (50, 99, 99.9)}
            for name, beside in (("without", False), ("with", True))
        },
        "views": turns.views,
    }


def watch(turns: Turns, seconds: float) -> dict[str, object]:
    process, out = turns.view()
    watched = {"view": psutil.Process(process.pid), "engine": psutil.Process(turns.engine.pid)}
    begun, rows = time.perf_counter(), []
    while (passed := time.perf_counter() - begun) < seconds:
        rows.append([passed, *(own.memory_info().rss / 2**20 for own in watched.values())])
        time.sleep(SAMPLE_S)
    threads = {name: own.num_threads() for name, own in watched.items()}
    turns.close_view(process, out)
    turns.end()
    table = np.array(rows)
    half = table[table[:, 0] > min(120.0, seconds / 2)]  # the minute of history is full
    result: dict[str, object] = {"seconds": seconds, "threads": threads, "views": turns.views}
    for column, name in enumerate(watched, start=1):
        result[f"{name}_rss_mb"] = {
            "full": round(float(half[0, column]), 1),
            "end": round(float(half[-1, column]), 1),
            "largest": round(float(table[:, column].max()), 1),
            "slope_per_hour": slope_per_hour(half[:, 0], half[:, column]),
        }
    return result | {"every_s": SAMPLE_S, "rss_mb": table.round(1)[:: max(1, len(table) // 120)].tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="of turns, one with and one without the view")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="watch the memory beside an open window instead")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--role", choices=["engine", "view"], help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        {"engine": run_engine, "view": run_view}[given.role](given.prefix, given.out)
        return
    with tempfile.TemporaryDirectory() as name:
        turns = Turns(Path(name))
        try:
            found = alternate(turns, given.pairs, given.seconds) if given.watch is None else watch(turns, given.watch)
        finally:
            turns.kill()
    setting = {
        "channels": 366,
        "sfreq": SFREQ,
        "sources": 5124,
        "vertices": 20484,
        "size": "1280x720",
        "budget_ms": BUDGET_MS,
    }
    report = setting | found | {"machine": machine()}
    print(json.dumps({key: value for key, value in report.items() if key != "rss_mb"}, indent=1))
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
