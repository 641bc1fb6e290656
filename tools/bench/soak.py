"""Endurance: hours of 366 channels at 1 kHz, imaged, with drift, jitter and a fault every minute.

    python tools/bench/soak.py --seconds 7200 --report tools/bench/soak.json

Two processes send (EEG with a clock that is far off and 200 ppm fast, by faketime; both with sampling clocks of their own
and blocks that come up to 3 ms late), one images every sample. The faults of `FAULTS` take turns; ten of them make one
round, so that with one a minute the first and the last ten minutes had the same. Measured are

- memory, threads and open files of the engine every 10 s, with the slope of a straight line from a fifth of the time on;
- the error of the alignment: both streams carry a sine of true time, whose cross-phase is taken in the cleaned sensors that
  the engine hands out, once in 5 s; windows with samples that are flagged as missing, settling or after a hole are left out;
- latency: publication less the intended time of each hop, first against last ten minutes;
- samples: what the senders pushed while somebody listened against what the engine has received. Where a connection begins
  or a sender is killed they may differ by a block: it was pushed in just that moment.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from faked_clock import faked_clock
from machine import machine
from replay_with_true_clock import true_clock
from trend import slope_per_hour

SFREQ, CHUNK = 1000.0, 10
SINE_HZ = 11.0
WINDOW_S = 5.0
JITTER_S = 3e-3
SAMPLING_PPM = {"eeg": 150.0, "meg": -40.0}
CLOCK = "+100s x1.0002"  # of the EEG's sender, as for faketime -f
STEPPED = "+101s x1.0002"
LEVEL = {"eeg": 10.0, "mag": 500.0, "grad": 100.0}  # uV, fT, fT/cm: of the sine
NOISE = 0.1  # of that; as large as the sine it would put 0.05 ms of its own into a window of 5 s
UNIT = {"eeg": "uV", "mag": "fT", "grad": "fT/cm"}
START_LIMIT_S = 120.0
LOOK_S = 10.0
QUIET_AFTER_S = 25.0  # a window that begins so long after a fault is away from it: clocks are fitted again
FAULTS = (
    ("eeg", "stall 0.2"),
    ("meg", "stall 2"),
    ("eeg", "vanish 5"),
    ("meg", "lose 0.3"),
    ("eeg", "flat 5"),
    ("meg", "nan 3"),
    ("meg", "stamps 1"),
    ("eeg", "step"),
    ("eeg", "killed 3"),
    ("engine", "suspended 2"),
)
"""Of whom, what, and for how many seconds.

stall: nothing is sent, then all of it at once; vanish: the stream is withdrawn, and comes again; lose: samples are not
sent; flat: a fifth of the channels stand still; nan: three channels hold NaN; stamps: blocks with stamps that are repeated,
go back, are NaN or infinite; step: the sender's clock is set by 1 s (forth, and back in the next round); killed: the
process, and begun anew; suspended: the engine's process is stopped, as by a laptop's lid.
"""


# the senders


class Sender:
    """Sends noise with a sine of true time, and does on demand what devices do to one another."""

    def __init__(self, modality: str, prefix: str, folder: Path, life: int) -> None:
        from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
        from rt_mmdf.lsl.network import NetworkTransport

        with np.load(folder / f"{modality}.npz") as content:
            names, kinds, self._noise = content["names"], content["kinds"], content["noise"]
        self._level = np.array([LEVEL[kind] for kind in kinds], np.float32)
        channels = tuple(
            ChannelDescription(str(name), kind, UNIT[kind]) for name, kind in zip(names, kinds.tolist(), strict=True)
        )
        name = f"{prefix}-{modality.upper()}"
        self._description = StreamDescription(name, modality.upper(), f"id-{name}", SFREQ, "float32", channels, {})
        self._transport = NetworkTransport()
        self._outlet = self._open()
        self._interval = 1 / (SFREQ * (1 + SAMPLING_PPM[modality] * 1e-6))
        self._rng = np.random.default_rng([life, modality == "meg"])
        # what was pushed while somebody listened, and else; on disk at once, since the process may be killed
        self._sent = np.memmap(folder / f"{modality}-{life}.sent", np.int64, "w+", shape=2)
        self._until: dict[str, float] = {}

    def _open(self) -> object:
        return self._transport.outlet(self._description)

    def run(self) -> None:
        """Until standard input is closed."""
        begun, number, waiting = true_clock() + 0.1, 0, b""
        shown = -np.inf
        while True:
            last = begun + (number + CHUNK - 1) * self._interval
            shown = max(shown, last + self._rng.uniform(0, JITTER_S))
            while (wait := shown - true_clock()) > 0:
                if select.select([0], [], [], min(wait, 0.05))[0]:
                    read = os.read(0, 4096)
                    if not read:
                        return
                    *lines, waiting = (waiting + read).split(b"\n")
                    for line in lines:
                        what, seconds = line.decode().split()
                        self._until[what] = true_clock() + float(seconds)
            if self._on("stall"):
                time_left = self._until["stall"] - true_clock()
                select.select([], [], [], max(time_left, 0))
            self._push(begun + np.arange(number, number + CHUNK) * self._interval, number)
            number += CHUNK

    def _on(self, what: str) -> bool:
        return true_clock() < self._until.get(what, -np.inf)

    def _push(self, taken: np.ndarray, number: int) -> None:
        if self._on("vanish"):
            if self._outlet is not None:
                select.select([], [], [], 0.1)  # what was pushed is on its way
                self._outlet.close()
                self._outlet = None
            return
        if self._outlet is None:
            self._outlet = self._open()
        if self._on("lose"):
            return
        rows = np.arange(number, number + CHUNK) % len(self._noise)
        data = self._noise[rows] + np.outer(np.sin(2 * np.pi * SINE_HZ * taken), self._level).astype(np.float32)
        if self._on("flat"):
            data[:, ::5] = 0
        if self._on("nan"):
            data[:, 5:8] = np.nan
        stamps = self._stamps(taken)
        if self._on("stamps"):
            kind = number // CHUNK % 5
            if kind == 1:
                stamps[:] = stamps[0] - CHUNK / SFREQ  # of the block before
            elif kind == 2:
                stamps[3:6] -= 0.5
            elif kind == 3:
                stamps[2:5] = (np.nan, np.inf, -np.inf)
        heard = self._outlet.has_consumers()
        self._outlet.push(data, stamps)
        self._sent[0 if heard else 1] += CHUNK

    def _stamps(self, taken: np.ndarray) -> np.ndarray:
        """What this process's LSL clock showed when the samples were taken."""
        pairs = []
        for _ in range(3):  # the pair that took least time is the one least disturbed
            before, own, after = true_clock(), self._transport.clock.now(), true_clock()
            pairs.append((after - before, own - (before + after) / 2))
        return taken + min(pairs)[1]


def write_noise(folder: Path) -> None:
    """Ten seconds of noise on the channels of the template head."""
    from rt_mmdf.headmodel.template import build_template

    info = build_template().info
    kinds = np.array(info.get_channel_types())
    names = np.array(info["ch_names"])
    rng = np.random.default_rng(0)
    for modality, own in (("eeg", kinds == "eeg"), ("meg", kinds != "eeg")):
        levels = np.array([NOISE * LEVEL[kind] for kind in kinds[own]])
        noise = rng.standard_normal((round(10 * SFREQ), own.sum())) * levels
        np.savez(folder / f"{modality}.npz", names=names[own], kinds=kinds[own], noise=noise.astype(np.float32))


# the engine


class Watched:
    """What is noted of each hop; all of its memory is taken at the beginning."""

    def __init__(self, seconds: float) -> None:
        self.n_hops = 0
        self.hops = np.ones((round((seconds + 300) * SFREQ / CHUNK), 3))  # published, lateness, flags
        self.windows: list[tuple[float, float, float, bool]] = []  # begin, error, two deviations claimed, all in ms; whole
        self._n_window = round(WINDOW_S * SFREQ)
        self._times = np.ones(self._n_window)
        self._means = np.ones((2, self._n_window))
        self._n = 0
        self._whole = True

    def note_estimate(self, estimate: object) -> None:
        if self.n_hops < len(self.hops):
            stamps = estimate.stamps  # type: ignore[attr-defined]
            flags = np.bitwise_or.reduce(estimate.flags)  # type: ignore[attr-defined]
            self.hops[self.n_hops] = stamps.published, stamps.published - stamps.intended, flags
            self.n_hops += 1

    def note_cleaned(self, block: object, n_eeg: int, claimed_ms: float) -> None:
        from rt_mmdf.core.blocks import Flag

        n = len(block.times)  # type: ignore[attr-defined]
        if self._n + n > self._n_window:
            self._end_window(claimed_ms)
        part = slice(self._n, self._n + n)
        self._times[part] = block.times  # type: ignore[attr-defined]
        self._means[0, part] = block.data[:n_eeg].mean(axis=0)  # type: ignore[attr-defined]
        self._means[1, part] = block.data[n_eeg:].mean(axis=0)  # type: ignore[attr-defined]
        harmless = np.uint32(Flag.CLOCK_UNCERTAIN | Flag.OPERATOR_PENDING)
        self._whole &= not (block.flags & ~harmless).any()  # type: ignore[attr-defined]
        self._n += n

    def _end_window(self, claimed_ms: float) -> None:
        times = self._times[: self._n]
        wave = np.hanning(self._n) * np.exp(-2j * np.pi * SINE_HZ * times)
        eeg, meg = self._means[:, : self._n] @ wave
        error_ms = -1e3 * float(np.angle(eeg * np.conj(meg))) / (2 * np.pi * SINE_HZ)
        self.windows.append((float(times[0]), error_ms, claimed_ms, self._whole and bool(np.isfinite(error_ms))))
        self._n, self._whole = 0, True


def run_engine(prefix: str, solver: str, budget_ms: float, seconds: float, out: Path) -> None:
    """The product, until standard input is closed."""
    from rt_mmdf.app.session import Session
    from rt_mmdf.app.settings import SessionSettings
    from rt_mmdf.core.channels import Modality
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.mailbox import Signal

    settings = SessionSettings.model_validate(
        {
            "name": f"{prefix}-engine",
            "acquisition": {m: {"name": f"{prefix}-{m.upper()}", "resolve_timeout_s": 30.0} for m in ("eeg", "meg")},
            "hop_ms": 10.0,
            "budget_ms": budget_ms,
            "solver": {"model": solver} if solver.islower() else {"method": solver},
        }
    )
    watched, pause, process = Watched(seconds), Signal(), psutil.Process()
    session = Session(settings, NetworkTransport(), on_estimate=watched.note_estimate)
    n_eeg = len(session.imaging.channels.of_modality(Modality.EEG))
    session.engine.chain.taps.append(
        lambda hop: watched.note_cleaned(hop.block, n_eeg, session.intake.aligner.uncertainty_ms() or np.nan)
    )
    rows, told, looked = [], False, -np.inf
    try:
        with session:
            while not select.select([0], [], [], 0)[0]:
                pause.wait(0.2)
                session.check()
                if not told and watched.n_hops:
                    print("running", flush=True)
                    told = True
                if told and time.perf_counter() - looked >= LOOK_S:
                    looked = time.perf_counter()
                    usage = [process.memory_info().rss / 2**20, process.num_threads(), process.num_fds()]
                    rows.append([true_clock(), *usage, process.cpu_times().user + process.cpu_times().system])
    finally:  # what was seen until it failed is worth having
        received = {m.value: r.arrivals.n_received for m, r in session.intake.receivers.items()}
        np.savez(out, hops=watched.hops[: watched.n_hops], windows=np.array(watched.windows), rows=np.array(rows))
        out.with_suffix(".json").write_text(json.dumps({"card": session.scorecard().as_dict(), "received": received}))


# the whole


@dataclass
class Fault:
    whom: str
    what: str
    at: float


class Soak:
    """The three processes, and what is done to them."""

    def __init__(self, folder: Path, solver: str, budget_ms: float, seconds: float) -> None:
        self.folder, self.prefix = folder, f"soak-{uuid.uuid4().hex[:8]}"
        write_noise(folder)
        self._clock = folder / "clock"
        self._clock.write_text(CLOCK + "\n")
        self._lives = {"eeg": 0, "meg": 0}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.faults: list[Fault] = []
        for modality in self._lives:
            self._send(modality)
        words = ["--role", "engine", "--solver", solver, "--budget", str(budget_ms), "--seconds", str(seconds)]
        words += ["--out", str(folder / "engine.npz")]
        self._start("engine", words, None)
        line = self._processes["engine"].stdout.readline()  # type: ignore[union-attr]
        if line.strip() != "running":
            raise SystemExit("the engine ended before it imaged")

    def _send(self, modality: str) -> None:
        self._lives[modality] += 1
        words = ["--role", modality, "--life", str(self._lives[modality]), "--out", str(self.folder)]
        own = None  # clock
        if modality == "eeg":  # from a file, so that it can be set while it runs
            own = faked_clock(FAKETIME_TIMESTAMP_FILE=str(self._clock), FAKETIME_CACHE_DURATION="1")
        self._start(modality, words, own)

    def _start(self, who: str, words: list[str], environment: dict[str, str] | None) -> None:
        command = [sys.executable, __file__, "--prefix", self.prefix, *words]
        self._processes[who] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def inflict(self, whom: str, what: str) -> None:
        """Begin a fault; returns at once, or when the process that was ended lives again."""
        self.check()
        self.faults.append(Fault(whom, what, true_clock()))
        kind, _, seconds = what.partition(" ")
        process = self._processes[whom]
        if kind == "step":
            stepped = self._clock.read_text().strip() == STEPPED
            self._clock.write_text((CLOCK if stepped else STEPPED) + "\n")
        elif kind == "killed":
            process.kill()
            process.wait()
            time.sleep(float(seconds))
            self._send(whom)
        elif kind == "suspended":
            process.send_signal(signal.SIGSTOP)
            time.sleep(float(seconds))
            process.send_signal(signal.SIGCONT)
        else:
            assert process.stdin is not None
            process.stdin.write(what + "\n")
            process.stdin.flush()

    def check(self) -> None:
        for who, process in self._processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{who} ended with code {process.returncode}")

    def end(self) -> None:
        """The senders first, then, when it has taken all of it, the engine."""
        for who in ("eeg", "meg", "engine"):
            process = self._processes[who]
            assert process.stdin is not None
            time.sleep(1.0)
            process.stdin.close()
            process.wait(START_LIMIT_S)
            if process.returncode:
                raise SystemExit(f"{who} ended with code {process.returncode}")

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def sent(self, modality: str) -> int:
        """Samples that were pushed while somebody listened."""
        lives = range(1, self._lives[modality] + 1)
        return sum(int(np.memmap(self.folder / f"{modality}-{life}.sent", np.int64, "r")[0]) for life in lives)

    def n_connections(self, modality: str) -> int:
        """How often the engine had to connect."""
        vanished = sum(fault.whom == modality and fault.what.startswith("vanish") for fault in self.faults)
        return self._lives[modality] + vanished


def soak(folder: Path, solver: str, budget_ms: float, seconds: float, every_s: float) -> dict[str, object]:
    """Run it, and say what was found."""
    run, failure, until = Soak(folder, solver, budget_ms, seconds), None, np.inf
    try:
        begun, turn = true_clock(), 0
        time.sleep(every_s / 2)
        while (left := begun + seconds - true_clock()) > every_s / 2:
            run.inflict(*FAULTS[turn % len(FAULTS)])
            turn += 1
            time.sleep(max(0.0, min(begun + (turn + 0.5) * every_s - true_clock(), left)))
        until = true_clock()
        run.end()
    except SystemExit as error:
        failure = str(error)
    finally:
        run.kill()
    with np.load(folder / "engine.npz") as arrays:
        hops, windows, rows = arrays["hops"], arrays["windows"], arrays["rows"]
    told = json.loads((folder / "engine.json").read_text())
    return {
        "seconds": round(float(rows[-1, 0] - begun)),
        "ended_by": failure,
        "fault_every_s": every_s,
        "faults": {f"{whom} {what}": sum((f.whom, f.what) == (whom, what) for f in run.faults) for whom, what in FAULTS},
        "process": _process(rows - [begun, 0, 0, 0, 0]),
        "alignment": _alignment(windows, np.array([fault.at for fault in run.faults])),
        "latency_ms": _latency(hops[hops[:, 0] <= until], seconds),  # what follows the senders' end is none of a session
        "samples": {
            m: {
                "pushed_to_a_listener": run.sent(m),
                "received": told["received"][m],
                "difference": run.sent(m) - told["received"][m],
                "connections": run.n_connections(m),
            }
            for m in ("eeg", "meg")
        },
        "scorecard": {
            k: told["card"][k]
            for k in (
                "hops",
                "estimates",
                "missed_deadlines",
                "skipped_hops",
                "invalid_hops",
                "flags",
                "overwritten_samples",
                "incidents",
            )
        },
    }


def _process(rows: np.ndarray) -> dict[str, object]:
    late = rows[rows[:, 0] > rows[-1, 0] / 5]
    found: dict[str, object] = {"cpu_cores": round(float((rows[-1, 4] - rows[0, 4]) / (rows[-1, 0] - rows[0, 0])), 3)}
    for column, name in ((1, "rss_mb"), (2, "threads"), (3, "open_files")):
        found[name] = {
            "from": round(float(late[0, column]), 1),
            "to": round(float(late[-1, column]), 1),
            "largest": round(float(rows[:, column].max()), 1),
            "slope_per_hour": slope_per_hour(late[:, 0], late[:, column]),
        }
    return found | {"every_minute_mb": rows[:: max(1, len(rows) // 120), 1].round(1).tolist()}


def _alignment(windows: np.ndarray, faults: np.ndarray) -> dict[str, object]:
    begin, error, claimed, whole = windows.T
    since = begin - np.array([faults[faults <= at + WINDOW_S].max(initial=-np.inf) for at in begin])
    usable = whole.astype(bool)
    found: dict[str, object] = {"windows": len(windows), "left_out": int((~usable).sum())}
    for name, picked in (("away_from_faults", usable & (since > QUIET_AFTER_S)), ("all", usable)):
        if picked.any():
            found[name] = {
                "n": int(picked.sum()),
                "error_ms": _percentiles(np.abs(error[picked]), (50, 99, 100)),
                "claimed_ms": _percentiles(claimed[picked], (50, 100)),
                "within_claim": round(float(np.mean(np.abs(error[picked]) <= claimed[picked])), 4),
            }
    return found


def _percentiles(values: np.ndarray, ranks: tuple[float, ...]) -> dict[str, float]:
    names = ["max" if rank == 100 else f"p{rank:g}" for rank in ranks]
    return dict(zip(names, np.percentile(values, ranks).round(4).tolist(), strict=True))


def _latency(hops: np.ndarray, seconds: float) -> dict[str, object]:
    published, late, flags = hops.T
    length = min(600.0, seconds / 3)
    first = (published >= published[0] + 2) & (published < published[0] + length)
    last = published >= published[-1] - length
    found: dict[str, object] = {"seconds_compared": length}
    for name, whole in (("all", True), ("unflagged", False)):
        rows = {part: 1e3 * late[picked & (whole | (flags == 0))] for part, picked in (("first", first), ("last", last))}
        if any(len(values) == 0 for values in rows.values()):
            continue  # a minute may have no hop without a flag
        own = {part: _percentiles(values, (50, 99, 99.9)) for part, values in rows.items()}
        found[name] = {**own, "ratio_p99": round(own["last"]["p99"] / own["first"]["p99"], 3)}
    parts = np.floor((published - published[0]) / length).astype(int)
    found["p99_of_each_part"] = [_percentiles(1e3 * late[parts == part], (99,))["p99"] for part in np.unique(parts)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults")
    parser.add_argument("--solver", default="mmdf", help="a model, or dSPM, MNE, sLORETA, eLORETA")
    parser.add_argument("--budget", type=float, default=50.0, help="ms, beyond which hops are skipped")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for what was noted: engine.npz (hops, windows, usage)")
    parser.add_argument("--role", choices=["engine", "eeg", "meg"], help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--life", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role == "engine":
        run_engine(given.prefix, given.solver, given.budget, given.seconds, given.out)
        return
    if given.role:
        Sender(given.role, given.prefix, given.out, given.life).run()
        return
    with tempfile.TemporaryDirectory() as name:
        found = soak(Path(name), given.solver, given.budget, given.seconds, given.every)
        if given.keep is not None:
            shutil.copy(Path(name) / "engine.npz", given.keep)
    setting = {"bench": "soak", "channels": 366, "sfreq": SFREQ, "chunk": CHUNK, "sources": 5124, "solver": given.solver}
    drift = {"clock": CLOCK, "sampling_ppm": SAMPLING_PPM, "jitter_ms": 1e3 * JITTER_S}
    report = setting | drift | found | {"machine": machine()}
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    if found["ended_by"] is not None:
        sys.exit(1)


if __name__ == "__main__":
    main()
