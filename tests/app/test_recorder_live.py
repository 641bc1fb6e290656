"""`rt-mmdf monitor --record` over the real network, ended or killed, and played again by `rt-mmdf replay`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import mne
import numpy as np
import pytest

from rt_mmdf.acquisition.recording import read_recording
from rt_mmdf.core.channels import Modality
from rt_mmdf.lsl.xdf import open_whole
from rt_mmdf.runtime.mailbox import Signal

pyxdf = pytest.importorskip("pyxdf")
pytestmark = [pytest.mark.lsl, pytest.mark.slow]

LIMIT_S = 90.0
FACTOR = {"eeg": 1e6, "mag": 1e15, "grad": 1e13}  # from SI to what replay sends: uV, fT, fT/cm


@contextmanager
def running(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A command of rt-mmdf as a process, which is gone afterwards."""
    command = [sys.executable, "-m", "rt_mmdf.cli", *map(str, words)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(what: str, done: Callable[[], bool]) -> None:
    pause, deadline = Signal(), time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what}"
        pause.wait(0.3)


def load(path: Path) -> dict[str, Any]:
    """Streams of a file by their labels, as they are in it."""
    file, _ = open_whole(path)
    with file:
        streams, _ = pyxdf.load_xdf(file, synchronize_clocks=False, dejitter_timestamps=False, verbose=False)
    return {s["info"]["desc"][0]["rt_mmdf"][0]["label"][0]: s for s in streams}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_recording_holds_what_was_sent_however_it_ends(
    end: signal.Signals,
    small_recording: Path,
    small_content: Callable[..., dict[str, Any]],
    as_toml: Callable[[dict[str, Any], Path], Path],
    tmp_path: Path,
) -> None:
    prefix = f"r{uuid4().hex[:10]}"
    config, out, log_file = as_toml(small_content(prefix), tmp_path / "c.toml"), tmp_path / "out.xdf", tmp_path / "log.json"
    sending = ("--prefix", prefix, "--loop", 3, "--wait-for-consumers", 60, "--log", log_file)

    def n_recorded() -> int:
        return min(len(load(out)[m]["time_stamps"]) for m in ("eeg", "meg"))

    with (
        running("replay", small_recording, *sending) as replay,
        running("monitor", config, "--record", out, "--no-view") as monitor,
    ):
        wait_until("the replay ends", lambda: replay.poll() is not None or monitor.poll() is not None)
        assert monitor.poll() is None, monitor.stderr.read()
        logs = json.loads(log_file.read_text())["streams"]
        wait_until("all of it is in the file", lambda: n_recorded() == logs["eeg"]["n_sent"])
        monitor.send_signal(end)
        said = monitor.communicate(timeout=LIMIT_S)[1]
    assert "GB an hour" in said
    beside = json.loads((tmp_path / "out.json").read_text())
    assert (beside["RecordingEnded"] is None) == (end == signal.SIGKILL)
    read, raw = load(out), mne.io.read_raw_fif(small_recording, verbose="error")
    for modality in ("eeg", "meg"):
        own, log = read[modality], logs[modality]
        numbers = np.arange(log["n_sent"])
        np.testing.assert_allclose(own["time_stamps"], log["stamp_0"] + numbers / log["sfreq"], rtol=0, atol=1e-9)
        names = [c["label"][0] for c in own["info"]["desc"][0]["channels"][0]["channel"]]
        picked = raw.copy().pick(names, verbose="error")
        factors = np.array([FACTOR[kind] for kind in picked.get_channel_types()])
        wanted = (picked.get_data().T * factors).astype(np.float32)
        order = [picked.ch_names.index(name) for name in names]
        np.testing.assert_array_equal(own["time_series"], wanted[:, order][numbers % log["n_per_loop"]])
        assert len(own["clock_values"])
    assert len(read["sources"]["time_stamps"]) > 20
    assert len(read["health"]["time_stamps"]) > 1
    again = read_recording(out)
    assert {m: r.n_times for m, r in again.sensors.items()} == {m: logs[m]["n_sent"] for m in Modality}
    played = subprocess.run(
        [sys.executable, "-m", "rt_mmdf.cli", "replay", out, "--prefix", f"{prefix}b", "--speed", "inf"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert played.returncode == 0, played.stderr
