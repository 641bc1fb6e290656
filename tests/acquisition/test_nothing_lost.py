"""The counter bench in its short form: two processes, real LSL, 366 channels at 1 kHz."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench" / "nothing_lost.py"


@pytest.mark.lsl
@pytest.mark.slow
def test_no_sample_is_lost_doubled_or_reordered() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "--seconds", "10"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["nothing_lost"]
    assert {label: stream["received"] for label, stream in report["streams"].items()} == {"eeg": 10000, "meg": 10000}
