"""Two devices in processes of their own, over real LSL, and the lag between them: measured, stored, subtracted, told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.settings import load_settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.runtime.mailbox import Signal

pytestmark = [
    pytest.mark.lsl,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the true clock with a Linux system call"),
]

SENDER = Path(__file__).with_name("sending_device.py")
LAG_S, DRIFT, MEG_LAG_S = 0.0423, 80e-6, 0.0071
UNITS = {"eeg": "uV", "mag": "fT", "grad": "fT/cm"}


@contextmanager
def device(prefix: str, modality: str, head: HeadModel, shared: dict[str, Any], clock: str | None) -> Iterator[None]:
    """One device; under faketime with the clock of another computer, where that is installed."""
    names = [(n, t) for n, t in zip(head.channels.names, head.channels.types, strict=True) if t.modality == modality]
    shown = ["PHOTO", "misc", ""] if shared["flash"] else ["TRIGGER", "stim", ""]
    channels = [*([name, kind, UNITS[kind]] for name, kind in names), shown]
    told = {"name": f"{prefix}-{modality.upper()}", "type": modality.upper(), "channels": channels} | shared
    words = [sys.executable, str(SENDER), json.dumps(told)]
    if clock is not None and shutil.which("faketime") is not None:
        words = ["faketime", "-f", clock, *words]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        process.communicate("stop\n", timeout=10.0)
    assert process.returncode == 0


def begin_command(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rt_mmdf.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Standard output and error of a command that must succeed; it is gone afterwards."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out, err


@contextmanager
def markers(name: str, times: np.ndarray) -> Iterator[Callable[[], None]]:
    """A stimulus program: a stream of markers stamped in true time, and what sends those that are due."""
    waiting = list(times)
    description = StreamDescription(name, "Markers", name, 0.0, "string", (ChannelDescription("marker"),), {})
    with NetworkTransport().outlet(description) as outlet:

        def send() -> None:
            while waiting and waiting[0] <= time.monotonic():
                outlet.push(["flash"], waiting.pop(0))

        yield send


def test_20_triggers_tell_the_lag_to_a_millisecond_and_the_monitor_knows_it(
    template_head_ico3: HeadModel, small_content: Callable[..., dict[str, Any]], as_toml: Any, tmp_path: Path
) -> None:
    prefix = f"t{uuid4().hex[:10]}"
    content = small_content(prefix) | {"alignment": {"grid": "clock"}, "hop_ms": 40}
    config = as_toml(content, tmp_path / "mine.toml")
    commented = config.read_text().replace("[acquisition.meg]", "# the scanner\n[acquisition.meg]")
    config.write_text(commented)
    begin = time.monotonic() + 0.5
    triggers = begin + np.cumsum(np.random.default_rng(2).uniform(0.25, 0.55, 400))
    shared = {"begin": begin, "triggers": triggers.tolist()}
    eeg = shared | {"sfreq": 500.0, "lag_s": LAG_S, "drift": DRIFT, "flash": False}
    meg = shared | {"sfreq": 1000.0, "lag_s": MEG_LAG_S, "drift": 0.0, "flash": True}
    head, report = template_head_ico3, tmp_path / "report.json"
    with (
        device(prefix, "eeg", head, eeg, "+100s x1.0001"),
        device(prefix, "meg", head, meg, None),
        markers(f"{prefix}-stim", triggers) as send,
    ):
        started = time.monotonic()
        both = [
            begin_command("calibrate", config, "--sync"),
            begin_command("calibrate", config, "--sync", "--against-markers", f"{prefix}-stim", "--dry-run"),
        ]
        pause = Signal()
        while any(process.poll() is None for process in both) and time.monotonic() < started + 100:
            send()
            pause.wait(0.02)
        stopped = time.monotonic()
        measured, in_true_time = (ended(process)[0] for process in both)
        _, monitored = ended(begin_command("monitor", config, "--seconds", 6, "--report", report, "--no-view"))
    stored = load_settings(config, SessionSettings).acquisition["eeg"]
    heard = triggers[(triggers > started) & (triggers < stopped)]
    eeg_ms = 1e3 * (LAG_S + DRIFT * (heard.mean() - begin))  # their middle is known to 2 s: 0.2 ms
    truth_ms = eeg_ms - 1e3 * MEG_LAG_S
    assert stored.lag_ms == pytest.approx(truth_ms, abs=1.0), measured
    assert stored.lag_uncertainty_ms is not None
    assert stored.lag_uncertainty_ms < 2.0  # a busy machine answers late when it is asked for its clock
    assert abs(stored.lag_ms - truth_ms) < 2 * stored.lag_uncertainty_ms + 0.2
    assert (stored.lag_against, stored.lag_device) == ("meg", f"{prefix}-EEG / {prefix}-EEG-sn1")
    told = re.search(r"drift ([+-]\d+) ppm ±(\d+)", measured)
    assert told is not None, measured
    assert abs(float(told[1]) - 1e6 * DRIFT) < 2 * float(told[2])
    assert "in common" in measured
    absolute = dict(re.findall(rf"(EEG|MEG) .*lag ([+-][\d.]+) ms .* against markers {prefix}-stim", in_true_time))
    assert float(absolute["EEG"]) == pytest.approx(eeg_ms, abs=1.0), in_true_time
    assert float(absolute["MEG"]) == pytest.approx(1e3 * MEG_LAG_S, abs=1.0)
    assert "in common" not in in_true_time
    left = [line for line in config.read_text().splitlines() if not line.startswith("lag_")]
    assert left == commented.splitlines()
    seen = json.loads(report.read_text())
    assert seen["device_lag"].startswith(f"eeg +{stored.lag_ms:.1f} ms ±")
    assert seen["device_lag"].endswith("against meg; common lag unknown")
    assert f"device lag {seen['device_lag']}" in monitored  # the line of its status
    assert seen["estimates"] > 20
    assert seen["streams"]["eeg"]["missing"] < 0.1 * seen["hops"] * 40  # late for once is possible, for its lag it is not
    assert seen["streams"]["eeg"]["lag_ms"] == stored.lag_ms
    # physics is no lateness: what lags by 35 ms is not late by 35 ms
    assert seen["latency_by_stage_ms"]["age"]["p50"] > seen["latency_by_stage_ms"]["lateness"]["p50"] + 34
