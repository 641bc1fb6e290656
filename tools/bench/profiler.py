"""Does `rt-mmdf profile` see what a stranger sees? Its end-to-end latency beside that of an outside LSL client, hop by hop.

    python tools/bench/profiler.py --seconds 30

A replay logs when each block was due and pushed; the engine runs with the profiler in it; and two clients listen to its
companion stream, which carries the numbers of the hops: the profiler again, attached (`rt-mmdf profile --attach`), and a
stranger, of mne-lsl alone. The stranger's measure of a hop is its receipt less the time at which the last block that the hop
needs was due by the replay's own log: none of the engine's stamps, clock fits or intended times are in it.

What is comparable: the stranger hears an estimate after the way over LSL and its own waking, which the profiler inside the
engine cannot see (its end is the publication). So the profiler's measure up to the receipt, attached, is held against the
stranger's (`agree`: within 10 % or 0.3 ms, whichever is larger); the measure inside the engine is printed beside it, with
what lies between. Every figure is of the same hops. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine

if TYPE_CHECKING:
    from rt_mmdf.app.profiling.hops import HopTimes
    from rt_mmdf.app.profiling.rows import Row

ROLES = ("listen", "attach")
RELATIVE, ABSOLUTE_MS = 0.10, 0.3
READY, SPARE_S = "ready", 60.0
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def listen(name: str, out: Path) -> None:
    """Note hop and time of every sample of the companion, until the stream is gone or nothing comes for 5 s."""
    from mne_lsl.lsl import StreamInlet, local_clock, resolve_streams

    (info,) = resolve_streams(timeout=60, name=f"{name}-sources-companion")
    inlet = StreamInlet(info, recover=False)
    inlet.open_stream()
    print(READY, flush=True)
    hops, heard = [], []
    silent_since = None
    while silent_since is None or local_clock() - silent_since < 5.0:
        try:
            sample, stamp = inlet.pull_sample(timeout=0.5)
        except Exception:  # the outlet is gone: however liblsl says so
            break
        now = local_clock()
        if stamp is None or len(sample) == 0:
            silent_since = silent_since or (now if hops else None)
            continue
        silent_since = None
        hops.append(int(sample[0]))
        heard.append(now)
    np.savez(out, hops=np.array(hops), heard=np.array(heard))


def attach(name: str, out: Path, seconds: float) -> None:
    """The profiler as a listener."""
    from rt_mmdf.app.profiling.attach import attach
    from rt_mmdf.lsl.network import NetworkTransport

    said: list[str] = []

    def progress(what: str, fraction: float) -> None:
        if what.startswith("listening") and not said:
            said.append(what)
            print(READY, flush=True)

    row = attach(name, NetworkTransport(), seconds, progress=progress)
    uncertainty_s = 1e-3 * (row.facts["clock_uncertainty_ms"] or float("nan"))
    np.savez(out, hops=row.times.hops, heard=row.times.heard, uncertainty_s=uncertainty_s)


@contextmanager
def listening(name: str, folder: Path, seconds: float) -> Iterator[None]:
    """Both clients, as processes, while the engine runs."""
    common = ["--name", name, "--seconds", str(seconds + SPARE_S)]  # they end when the engine does
    clients = [
        subprocess.Popen(
            [sys.executable, __file__, "--role", role, *common, "--out", str(folder / f"{role}.npz")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in ROLES
    ]
    try:
        for client in clients:  # the outlets are open: both subscribe before the first estimate
            assert client.stdout is not None
            while client.stdout.readline().strip() not in (READY, ""):
                pass
        yield
    finally:
        for client in clients:
            try:
                client.wait(30)
            except subprocess.TimeoutExpired:
                client.kill()
                client.wait()
            if client.stdout is not None:
                client.stdout.close()


def of_last_samples(path: Path) -> dict[int, float]:
    """When the last sample of each hop was heard."""
    with np.load(path) as arrays:  # later samples replace earlier ones
        return dict(zip(arrays["hops"].tolist(), arrays["heard"].tolist(), strict=True))


@dataclass(frozen=True)
class Matched:
    """What everybody knows of the same hops; seconds on the clock that all processes of this machine share.

    row, times : of the profiler inside the engine, all hops and those that everybody has
    due, pushed : by the replay's log, of the last block that each hop needs, of the modality that was later
    received, heard : by the stranger, and by the attached profiler
    """

    row: Row
    times: HopTimes
    due: np.ndarray
    pushed: np.ndarray
    received: np.ndarray
    heard: np.ndarray
    clock_uncertainty_s: float


def due_and_pushed(
    log: dict, pushes: dict[str, np.ndarray], sensor: np.ndarray, ahead: int
) -> tuple[np.ndarray, np.ndarray]:
    """A sample is taken at ``stamp_0 + n / sfreq``; its block is due when the last sample of it exists."""
    due, pushed = np.full(len(sensor), -np.inf), np.full(len(sensor), -np.inf)
    for modality, stream in log["streams"].items():
        first, n_times = pushes[f"{modality}_first"], pushes[f"{modality}_n_times"]
        needed = np.floor((sensor - stream["stamp_0"]) * stream["sfreq"] + 1e-3).astype(int) + ahead
        block = np.clip(np.searchsorted(first, needed, side="right") - 1, 0, len(first) - 1)
        due = np.maximum(due, stream["stamp_0"] + (first[block] + n_times[block] - 1) / stream["sfreq"])
        pushed = np.maximum(pushed, pushes[f"{modality}_pushed"][block])
    return due, pushed


def hop_by_hop(solver: str, seconds: float, sources: str, hop_ms: float) -> Matched:
    """Measure, and match by the number of the hop."""
    from rt_mmdf.app.profiling.run import ProfileSettings, run_profile
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.mailbox import Signal

    pause = Signal()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = ProfileSettings(solvers=(solver,), sources=(sources,), hop_ms=(hop_ms,), seconds=seconds)
        (row,) = run_profile(
            settings,
            NetworkTransport(),
            beside=lambda engine: listening(engine, folder, seconds),
            replay_words=["--log-pushes"],
            folder=folder,
            keep_waiting=lambda wait_s: (pause.wait(wait_s), None)[1],
        )
        log = json.loads((folder / "replay.json").read_text())
        with np.load(folder / "replay.npz") as arrays:
            pushes = dict(arrays)
        strange, attached = (of_last_samples(folder / f"{role}.npz") for role in ROLES)
        with np.load(folder / "attach.npz") as arrays:
            uncertainty_s = float(arrays["uncertainty_s"])
    times = row.times.part(np.array([hop in strange and hop in attached for hop in row.times.hops.tolist()]))
    received, heard = (np.array([client[hop] for hop in times.hops.tolist()]) for client in (strange, attached))
    ahead = round(row.physics["look_ahead_ms"] * 1e-3 * row.case["sfreq"])
    due, pushed = due_and_pushed(log, pushes, times.stamp("sensor"), ahead)
    return Matched(row, times, due, pushed, received, heard, uncertainty_s)


def measure(solver: str, seconds: float, sources: str, hop_ms: float) -> dict[str, object]:
    """Percentiles of all measures."""
    matched = hop_by_hop(solver, seconds, sources, hop_ms)
    row, times = matched.row, matched.times
    measures = {
        "inside": times.latency_ms("lateness"),
        "attached": 1e3 * (matched.heard - times.stamp("intended")),
        "stranger": 1e3 * (matched.received - matched.due),
    }
    way = 1e3 * (matched.received - times.stamp("published"))
    unmatched = len(row.times) - len(times)
    found: dict[str, object] = {"hops": len(times), "unmatched": unmatched, "skipped": row.times.n_skipped}
    agree = True
    for key, q in QUANTILES.items():
        if len(times) < round(1 / (1 - q)):
            continue
        a, b, c = (float(np.quantile(values, q, method="inverted_cdf")) for values in measures.values())
        within = abs(b - c) <= max(RELATIVE * c, ABSOLUTE_MS)
        agree &= within
        found[key] = {"inside_ms": a, "attached_ms": b, "stranger_ms": c, "apart_ms": c - b, "agree": within}
        found[key] |= {"way_ms": float(np.quantile(way, q, method="inverted_cdf"))}
    intended = 1e3 * np.abs(times.stamp("intended") - matched.due)
    found |= {"agree": agree, "order_kept": bool((way > 0).all()), "overhead": dict(row.overhead)}
    return found | {
        "intended_error_p50_ms": float(np.median(intended)),
        "intended_off_by_a_block": float((intended > 0.3).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--solver", default="dSPM")
    parser.add_argument("--sources", default="ico4")
    parser.add_argument("--hop", type=float, default=10.0)
    parser.add_argument("--report", type=Path, help="write the line to this file")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role == "listen":
        listen(args.name, args.out)
        return
    if args.role == "attach":
        attach(args.name, args.out, args.seconds)
        return
    found = measure(args.solver, args.seconds, args.sources, args.hop)
    for key in QUANTILES:
        if isinstance(figures := found.get(key), dict):
            print(key.replace("_", "."), ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    line = {"bench": "profiler", "solver": args.solver, "sources": args.sources, "hop_ms": args.hop}
    line |= {"seconds": args.seconds, **found, "machine": machine()}
    if args.report is not None:
        args.report.write_text(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
