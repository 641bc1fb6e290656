"""What recording costs: processor time of the recording's thread while streams and estimates come in real time.

    python tools/bench/recording.py --seconds 20 --rounds 3 --report tools/bench/recording.json

60 channels of EEG and 306 of MEG at 1 kHz in blocks of 10 samples, estimates of 5124 sources in hops of 10 ms, clock
offsets twice a second; no estimates, reduced ones (20 Hz) and all of them in turns. `thread_cores` is the time of the
recording's thread alone (its own processor clock), `process_cores` that of everything, what makes the samples included. On a
machine that does other work both are dearer than on a quiet one, so the load is told beside them. What is in the file is
counted and walked over.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import machine

from rt_mmdf.core.blocks import SourceEstimate, StageStamps
from rt_mmdf.lsl.interface import ChannelDescription, ClockOffset, StreamDescription
from rt_mmdf.lsl.xdf import open_whole
from rt_mmdf.runtime.worker import quick_handover
from rt_mmdf.sinks.estimates import EstimateDescription
from rt_mmdf.sinks.recording import EstimateTrack, Recorder, StreamTrack
from rt_mmdf.sinks.settings import RecordSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription

SFREQ, BLOCK, N_SOURCES = 1000.0, 10, 5124
N_CHANNELS = {"eeg": 60, "meg": 306}


class Clock:
    """Seconds of this process."""

    def now(self) -> float:
        return time.monotonic()


class Timed(Recorder):
    """Keeps the processor time of the thread that writes, and how long the longest round took."""

    cpu_s = longest_s = 0.0

    def write(self, *, flush: bool = False) -> None:
        began = time.monotonic()
        super().write(flush=flush)
        self.cpu_s, self.longest_s = time.thread_time(), max(self.longest_s, time.monotonic() - began)


def described(label: str) -> StreamDescription:
    channels = tuple(ChannelDescription(f"{label} {i}", label, "uV") for i in range(N_CHANNELS[label]))
    return StreamDescription(label, label.upper(), label, SFREQ, "float32", channels, {})


def record(folder: Path, estimates: str, seconds: float) -> dict[str, Any]:
    rng, clock = np.random.default_rng(0), Clock()
    settings = RecordSettings(file=folder / f"{estimates}.xdf", overwrite=True, estimates=estimates)  # type: ignore[arg-type]
    sensors = {label: StreamTrack(label) for label in N_CHANNELS}
    known = {label: described(label) for label in N_CHANNELS}
    tracks: list[Any] = list(sensors.values())
    half = N_SOURCES // 2
    sources = SourceSpaceDescription("bench", "0", (np.arange(half), np.arange(half)), rng.normal(0, 50, (N_SOURCES, 3)))
    imaged = EstimateTrack("bench-sources", sources, EstimateDescription("MNE", "A m", "fixed", SFREQ, 0.0), settings)
    if estimates != "none":
        tracks.append(imaged)
        known |= dict(zip(imaged.labels, imaged.streams, strict=True))
    data = {label: rng.standard_normal((BLOCK, n)).astype(np.float32) for label, n in N_CHANNELS.items()}
    hop = rng.standard_normal((N_SOURCES, BLOCK)).astype(np.float32)
    recorder = Timed(settings, clock, tracks, known)
    began, number = clock.now(), 0
    recorder.start()
    before, worst_put_s = time.process_time(), 0.0
    while (now := clock.now()) < began + seconds:
        while (number + 1) * BLOCK / SFREQ <= now - began:
            stamps = began + (number * BLOCK + np.arange(BLOCK)) / SFREQ
            put = time.perf_counter()
            for label, track in sensors.items():
                track.put(known[label], data[label], stamps)
                if number % 50 == 0:
                    track.put_offset(ClockOffset(now, 0.0, 1e-4))
            if estimates != "none":
                times = StageStamps(*[stamps[-1]] * 7)
                flags = np.zeros(BLOCK, dtype=np.uint32)
                imaged.put(SourceEstimate(hop, stamps, flags, number * BLOCK, number, "A m", times))
            worst_put_s = max(worst_put_s, time.perf_counter() - put)
            number += 1
        time.sleep(0.002)
    cpu_s, process_s, lasted = recorder.cpu_s, time.process_time() - before, clock.now() - began
    recorder.close()
    status = recorder.status()
    n_sent = number * BLOCK
    file, contents = open_whole(settings.file)
    file.close()
    assert contents.n_whole == contents.n_bytes == status["bytes"]
    assert status["samples"]["eeg"] == status["samples"]["meg"] == n_sent
    assert not any(status["dropped"].values())
    return {
        "thread_cores": cpu_s / lasted,
        "process_cores": process_s / lasted,
        "longest_round_ms": 1e3 * recorder.longest_s,
        "worst_put_ms": 1e3 * worst_put_s,
        "mb_per_s": status["bytes"] / lasted / 1e6,
        "gb_per_hour": status["bytes"] / lasted * 3.6e-6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {"none": [], "reduced": [], "full": []}
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made, quick_handover():
        for _ in range(arguments.rounds):
            for estimates, results in rounds.items():
                results.append(record(Path(made), estimates, arguments.seconds))
                loads.append(os.getloadavg()[0])
        kinds = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
        disk = kinds.get(max((at for at in kinds if str(made).startswith(at)), key=len, default=""), "unknown")
    result = {
        "channels": N_CHANNELS,
        "sfreq": SFREQ,
        "sources": N_SOURCES,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "median": {
            estimates: {key: round(float(np.median([r[key] for r in results])), 4) for key in results[0]}
            for estimates, results in rounds.items()
        },
        "worst": {
            estimates: {key: round(max(r[key] for r in results), 4) for key in results[0]}
            for estimates, results in rounds.items()
        },
        "file_system": disk,
        "load_1_min": {"least": round(min(loads), 2), "most": round(max(loads), 2)},
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
