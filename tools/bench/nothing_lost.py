"""Nothing lost: a replay process sends 366 channels with a counter, this process receives them, every number must be
there once and in order.

    python tools/bench/nothing_lost.py --seconds 600 --report tools/bench/nothing_lost.json

EEG (60 channels) and MEG (306 channels) at 1 kHz in blocks of 10 samples over real LSL, two processes. Exit status 1
where a sample is lost, doubled or out of order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import mne
import numpy as np
import psutil

from rt_mmdf.acquisition.receiver import Receiver
from rt_mmdf.acquisition.recording import Recording
from rt_mmdf.acquisition.replay import Replay, ReplaySettings, ReplayStreamSettings
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.runtime.mailbox import Signal

SFREQ, CHUNK, SECONDS_OF_NOISE = 1000.0, 10, 10
N_EEG, N_MEG = 60, 306


class Count:
    """Checks that numbers go up by one, and remembers how they did not."""

    def __init__(self) -> None:
        self.n = self.n_lost = self.n_doubled_or_back = 0
        self.first: float | None = None
        self._newest = -1.0

    def take(self, numbers: np.ndarray, lost_in_ring: int) -> None:
        if not len(numbers):
            return
        if self.first is None:
            self.first = float(numbers[0])
            self._newest = self.first - 1
        steps = np.diff(numbers.astype(np.float64), prepend=self._newest)
        self.n += len(numbers)
        self.n_lost += int(steps[steps > 1].sum() - np.count_nonzero(steps > 1)) + lost_in_ring
        self.n_doubled_or_back += int(np.count_nonzero(steps < 1))
        self._newest = float(numbers[-1])


def send(prefix: str, seconds: float) -> None:
    """The replay process: real amounts of noise, ended when standard input is closed."""
    rng = np.random.default_rng(0)
    names = [f"EEG {i + 1:03d}" for i in range(N_EEG)] + [f"MEG {i + 1:04d}" for i in range(N_MEG)]
    types = ["eeg"] * N_EEG + (["grad", "grad", "mag"] * (N_MEG // 3))
    info = mne.create_info(names, SFREQ, types)
    scale = np.array([{"eeg": 1e-5, "mag": 1e-12, "grad": 1e-11}[kind] for kind in types])
    data = rng.standard_normal((len(names), int(SECONDS_OF_NOISE * SFREQ))) * scale[:, None]
    recording = Recording.from_raw(mne.io.RawArray(data, info, verbose="error"), "noise")
    own = ReplayStreamSettings(chunk=CHUNK)
    settings = ReplaySettings(
        eeg=own,
        meg=own,
        prefix=prefix,
        counter=True,
        markers=False,
        loop=max(1, round(seconds / SECONDS_OF_NOISE)),
        wait_for_consumers_s=60.0,
    )
    with Replay(NetworkTransport(), recording, settings) as replay, replay.worker(replay.ended.ring) as worker:
        while worker.alive and not replay.finished:
            replay.ended.wait(1.0)
        sys.stdin.read()  # the outlets stay until the consumer has taken the rest
        logs = {str(m): log for m, log in replay.log.streams.items()}
    cpu = psutil.Process().cpu_times()
    print(json.dumps({
        "sent": {m: log.n_sent for m, log in logs.items()},
        "worst_late_ms": {m: log.worst_late_ms for m, log in logs.items()},
        "cpu_s": cpu.user + cpu.system,
    }))  # fmt: skip


def receive(seconds: float) -> dict[str, object]:
    """Start the replay process, receive until it has sent all, and count."""
    seconds = max(1, round(seconds / SECONDS_OF_NOISE)) * SECONDS_OF_NOISE
    prefix = f"nothing-lost-{uuid4().hex[:12]}"
    command = [sys.executable, __file__, "--send", prefix, "--seconds", str(seconds)]
    sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    transport, signal = NetworkTransport(), Signal()
    try:
        with contextlib.ExitStack() as stack:
            receivers = []
            for label in ("EEG", "MEG"):
                settings = StreamSettings(name=f"{prefix}-{label}", resolve_timeout_s=60.0)
                receivers.append(stack.enter_context(Receiver(transport, settings, label.lower(), signal)))
            workers = [stack.enter_context(receiver.worker(signal.ring)) for receiver in receivers]
            counts = [Count() for _ in receivers]
            expected = int(seconds * SFREQ)
            latest, began = time.monotonic() + 60.0, time.monotonic()
            cpu_before, rss_before = psutil.Process().cpu_times(), psutil.Process().memory_info().rss
            while time.monotonic() < latest and any(count.n < expected for count in counts):
                signal.wait(0.5)
                for worker, receiver, count in zip(workers, receivers, counts, strict=True):
                    worker.check()
                    block, beside = receiver.ring.read(), receiver.others.read() if receiver.others else None
                    if beside is not None:
                        count.take(beside.data[receiver.other_channels.names.index("COUNTER")], beside.lost)
                        latest = time.monotonic() + 5.0
                    if block is not None and block.lost:
                        count.n_lost += block.lost
            took = time.monotonic() - began
            cpu, rss = psutil.Process().cpu_times(), psutil.Process().memory_info().rss
            told, _ = sender.communicate(timeout=30.0)
            sent = json.loads(told)
            streams = {
                receiver.label: {
                    "n_channels": len(receiver.channels),
                    "sent": sent["sent"][receiver.label],
                    "received": count.n,
                    "first_number": count.first,
                    "lost": count.n_lost,
                    "doubled_or_out_of_order": count.n_doubled_or_back,
                    "largest_chunk_of_last_100": receiver.arrivals.largest_chunk,
                    "worst_push_late_ms": round(sent["worst_late_ms"][receiver.label], 3),
                }
                for receiver, count in zip(receivers, counts, strict=True)
            }
    finally:
        if sender.poll() is None:
            sender.kill()
            sender.communicate()
    nothing_lost = all(
        s["sent"] == s["received"] == int(seconds * SFREQ)
        and s["first_number"] == 0
        and not s["lost"]
        and not s["doubled_or_out_of_order"]
        for s in streams.values()
    )
    return {
        "bench": "nothing_lost",
        "nothing_lost": nothing_lost,
        "seconds": seconds,
        "sfreq": SFREQ,
        "chunk": CHUNK,
        "streams": streams,
        "receiver_cpu_cores": round((cpu.user + cpu.system - cpu_before.user - cpu_before.system) / took, 4),
        "sender_cpu_cores": round(sent["cpu_s"] / took, 4),
        "receiver_rss_growth_mb": round((rss - rss_before) / 2**20, 1),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": psutil.cpu_count(),
            "python": platform.python_version(),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="rounded to whole tens")
    parser.add_argument("--report", type=Path, help="write the JSON line there as well")
    parser.add_argument("--send", metavar="PREFIX", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        send(arguments.send, arguments.seconds)
        return 0
    result = receive(arguments.seconds)
    line = json.dumps(result)
    print(line)
    if arguments.report:
        arguments.report.write_text(line + "\n", encoding="utf-8")
    return 0 if result["nothing_lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
