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

pytestmark = [
    pytest.mark.lsl,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the true clock with a Linux system call"),
]

SENDER = Path(__file__).with_name("sending_device.py")
LAG_S, DRIFT = 0.0423, 80e-6
UNITS = {"eeg": "uV", "mag": "fT", "grad": "fT/cm"}


@contextmanager
def device(prefix: str, modality: str, head: HeadModel, shared: dict[str, Any], clock: str | None) -> Iterator[None]:
    """One device; under faketime with the clock of another computer, where that is installed."""
    names = [(n, t) for n, t in zip(head.channels.names, head.channels.types, strict=True) if t.modality == modality]
    channels = [[name, kind, UNITS[kind]] for name, kind in names] + [["TRIGGER", "stim", ""]]
    told = {"name": f"{prefix}-{modality.upper()}", "type": modality.upper(), "channels": channels, "flash": False} | shared
    words = [sys.executable, str(SENDER), json.dumps(told)]
    if clock is not None and shutil.which("faketime") is not None:
        words = ["faketime", "-f", clock, *words]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        process.communicate("stop\n", timeout=10.0)
    assert process.returncode == 0


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rt_mmdf.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


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
    eeg = shared | {"sfreq": 500.0, "lag_s": LAG_S, "drift": DRIFT}
    meg = shared | {"sfreq": 1000.0, "lag_s": 0.0, "drift": 0.0}
    head = template_head_ico3
    with device(prefix, "eeg", head, eeg, "+100s x1.0001"), device(prefix, "meg", head, meg, None):
        started = time.monotonic()
        measured = run("calibrate", config, "--sync")
        assert measured.returncode == 0, measured.stderr
        ended = time.monotonic()
        report = tmp_path / "report.json"
        monitored = run("monitor", config, "--seconds", 6, "--report", report, "--no-view")
        assert monitored.returncode == 0, monitored.stderr
    stored = load_settings(config, SessionSettings).acquisition["eeg"]
    heard = triggers[(triggers > started) & (triggers < ended)]
    truth_ms = 1e3 * (LAG_S + DRIFT * (heard.mean() - begin))  # the start and the end are known to a second: 0.08 ms
    assert stored.lag_ms == pytest.approx(truth_ms, abs=1.0), measured.stdout
    assert stored.lag_uncertainty_ms is not None
    assert stored.lag_uncertainty_ms < 1.0
    assert abs(stored.lag_ms - truth_ms) < 2 * stored.lag_uncertainty_ms + 0.1
    assert (stored.lag_against, stored.lag_device) == ("meg", f"{prefix}-EEG / {prefix}-EEG-sn1")
    told = re.search(r"drift ([+-]\d+) ppm ±(\d+)", measured.stdout)
    assert told is not None, measured.stdout
    assert abs(float(told[1]) - 1e6 * DRIFT) < 2 * float(told[2])
    assert "common" in measured.stdout
    left = [line for line in config.read_text().splitlines() if not line.startswith("lag_")]
    assert left == commented.splitlines()
    seen = json.loads(report.read_text())
    assert seen["device_lag"].startswith(f"eeg +{stored.lag_ms:.1f} ms ±")
    assert seen["device_lag"].endswith("against meg; common lag unknown")
    assert f"device lag {seen['device_lag']}" in monitored.stderr  # the line of its status
    assert "device lag" in monitored.stdout
    assert seen["estimates"] > 20
    assert seen["streams"]["eeg"]["missing"] < 0.1 * seen["hops"] * 40  # late for once is possible, for its lag it is not
    assert seen["streams"]["eeg"]["lag_ms"] == stored.lag_ms
    # physics is no lateness: what lags by 42 ms is not late by 42 ms
    assert seen["latency_by_stage_ms"]["age"]["p50"] > seen["latency_by_stage_ms"]["lateness"]["p50"] + 40
