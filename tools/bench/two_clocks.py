"""Two clocks: two replays, one of them on a faked clock, aligned for real over LSL.

    python tools/bench/two_clocks.py --seconds 120 --report tools/bench/two_clocks.json

The error is measured on a test signal that both streams carry, as the cross-phase of EEG and MEG on the common grid.
The signal is a sine of the recording's own time. Where each replay's samples lie in true time follows from its log
(the stamp of sample 0) and, for the faked one, from one paired reading of both clocks: nothing of the clock fits enters.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np

from rt_mmdf.app.intake import Intake, survey_streams
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.channels import Modality
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.runtime.mailbox import Signal

sys.path.insert(0, str(Path(__file__).parent))
from faked_clock import faked_clock
from machine import machine

HERE = Path(__file__).parent
HZ = 11.0  # of the sine whose phase is measured
WINDOW_S = 0.5
AMPLITUDE = {Modality.EEG: 50e-6, Modality.MEG: 1e-12}


@dataclass(frozen=True)
class Alignment:
    """Measured once per window.

    seconds : (n,) since the first hop
    error_ms : (n,) time by which EEG and MEG are apart on the grid, against the truth
    gain : (n, 2) amplitude of the sine on the grid over its true one, EEG and MEG
    claimed_ms : (n,) two standard deviations that the fits gave themselves then
    """

    seconds: np.ndarray
    error_ms: np.ndarray
    gain: np.ndarray
    claimed_ms: np.ndarray


def write_recording(path: Path, sfreq: float, seconds: float) -> None:
    """Two channels of each modality with the sine of the recording's own time."""
    t = np.arange(round(seconds * sfreq)) / sfreq
    wave = np.sin(2 * np.pi * HZ * t)
    info = mne.create_info(["EEG 001", "EEG 002", "MEG 0111", "MEG 0121"], sfreq, ["eeg", "eeg", "mag", "mag"])
    scale = [AMPLITUDE[Modality.EEG]] * 2 + [AMPLITUDE[Modality.MEG]] * 2
    mne.io.RawArray(np.outer(scale, wave), info, verbose="ERROR").save(path, overwrite=True, verbose="ERROR")


def measure(
    folder: Path,
    *,
    seconds: float,
    eeg_rate: float,
    meg_rate: float = 1000.0,
    fake: str = "+100s x1.0002",
    jitter_ms: float = 5.0,
) -> Alignment:
    """Run it over real LSL; EEG comes from the faked clock."""
    prefix = f"clocks-{uuid.uuid4().hex[:8]}"
    logs, clocks, processes = {}, {}, {}
    settings = SessionSettings.model_validate(
        {
            "acquisition": {m: {"name": f"{prefix}-{m.upper()}", "resolve_timeout_s": 30.0} for m in ("eeg", "meg")},
            "alignment": {"sfreq": 1000.0, "late_ms": 500.0},
        }
    )
    rates = {Modality.EEG: eeg_rate, Modality.MEG: meg_rate}
    with ExitStack() as stack:
        for modality, rate in rates.items():
            recording = folder / f"{modality}-raw.fif"
            write_recording(recording, rate, seconds + 20.0)
            logs[modality], clocks[modality] = folder / f"{modality}.json", folder / f"{modality}-clocks.json"
            command = [sys.executable, str(HERE / "replay_with_true_clock.py"), str(clocks[modality]), str(recording)]
            command += ["--prefix", prefix, "--only", modality.value, "--no-markers", "--jitter-ms", f"{jitter_ms:g}"]
            command += ["--wait-for-consumers", "60", "--log", str(logs[modality])]
            own = faked_clock(FAKETIME=fake) if modality is Modality.EEG else None
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=own)
            processes[modality] = process
            stack.callback(_end, process)
        transport, wake = NetworkTransport(), Signal()
        intake = Intake.subscribe(settings, transport, survey_streams(settings, transport)[0], wake, stack)
        for worker in intake.workers(wake):
            stack.enter_context(worker)
        blocks, claimed = [], []
        began = transport.clock.now()
        while not blocks or blocks[-1].times[-1] - blocks[0].times[0] < seconds:
            wake.wait(0.1)
            for process in processes.values():
                assert process.poll() is None, process.communicate()[1]
            assert transport.clock.now() - began < seconds + 40, intake.what_is_missing()
            for hop, _ in intake.hops():
                blocks.append(hop.block)
                claimed.append(intake.aligner.uncertainty_ms())
        for process in processes.values():
            _end(process)
        truth = {m: _true_times(json.loads(logs[m].read_text()), json.loads(clocks[m].read_text()), m, fake) for m in rates}
    return _compare(blocks, np.array(claimed), truth)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        process.communicate(timeout=20)


def _true_times(log: dict, clocks: dict, modality: Modality, fake: str) -> tuple[float, float]:
    """True time of sample 0, and how much faster than true time the sender's clock runs."""
    rate = float(fake.split("x")[1]) if modality is Modality.EEG else 1.0
    stamp = log["streams"][modality.value]["stamp_0"]
    return clocks["true"] + (stamp - clocks["sender"]) / rate, rate


def _compare(blocks: list, claimed: np.ndarray, truth: dict[Modality, tuple[float, float]]) -> Alignment:
    times = np.concatenate([block.times for block in blocks])
    data = np.concatenate([block.data for block in blocks], axis=1).astype(float)
    per_window = round(WINDOW_S * 1000)
    window = np.hanning(per_window)
    found, gains, at, said = [], [], [], []
    for start in range(0, len(times) - per_window, per_window // 2):
        part = slice(start, start + per_window)
        if np.isnan(data[:, part]).any():
            continue
        late, gain = [], []
        for row, modality in ((0, Modality.EEG), (2, Modality.MEG)):
            begin, rate = truth[modality]
            recording_time = (times[part] - begin) * rate  # what the recording shows at this true time
            reference = np.exp(-2j * np.pi * HZ * recording_time)
            z = 2j * np.sum(window * data[row, part] * reference) / window.sum() / AMPLITUDE[modality]
            late.append(-np.angle(z) / (2 * np.pi * HZ))
            gain.append(abs(z))
        found.append((late[0] - late[1]) * 1e3)
        gains.append(gain)
        at.append(times[part].mean() - times[0])
        said.append(claimed[min(start // len(blocks[0].times), len(claimed) - 1)])
    return Alignment(np.array(at), np.array(found), np.array(gains), np.array(said))


def figures(found: Alignment, after_s: float = 30.0) -> dict[str, object]:
    """What the report says of one run."""
    late = found.seconds >= after_s
    error = np.abs(found.error_ms)
    return {
        "windows_after_30_s": int(late.sum()),
        "alignment_error_ms_after_30_s": dict(
            zip(("p50", "p99", "max"), np.percentile(error[late], (50, 99, 100)), strict=True)
        )
        if late.any()
        else None,
        "pass_band_error": float(np.abs(found.gain - 1).max()),
        "before": [
            {
                "second": round(float(found.seconds[k]), 2),
                "error_ms": float(found.error_ms[k]),
                "claimed_ms": float(found.claimed_ms[k]) if np.isfinite(found.claimed_ms[k]) else None,
            }
            for k in np.flatnonzero(~late)[::4]
        ],
        "error_within_claim": float(np.mean(error <= found.claimed_ms)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--eeg-rate", type=float, nargs="+", default=[500.0])
    parser.add_argument("--fake", default="+100s x1.0002", help="as for faketime -f")
    parser.add_argument("--jitter-ms", type=float, default=5.0, help="of delivery")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    rows = []
    for rate in args.eeg_rate:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), seconds=args.seconds, eeg_rate=rate, fake=args.fake, jitter_ms=args.jitter_ms)
        conditions = {"eeg_rate": rate, "meg_rate": 1000.0, "fake_clock": args.fake, "jitter_ms": args.jitter_ms}
        rows.append({"bench": "two_clocks", "seconds": args.seconds, **conditions, **figures(found), "machine": machine()})
        print(json.dumps(rows[-1]))
    if args.report is not None:
        args.report.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
