"""A minute of what tools/bench/soak.py does for hours: two senders, an engine, ten faults, over real LSL."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench" / "soak.py"


@pytest.mark.lsl
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed (Debian: apt-get install faketime)")
def test_a_minute_of_faults_loses_nothing_and_ends_as_it_began() -> None:
    command = [sys.executable, str(BENCH), "--seconds", "66", "--every", "6.5", "--solver", "dSPM"]
    command += ["--budget", "1e6"]  # nothing is skipped, however busy the machine is
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(n == 1 for n in found["faults"].values()), found["faults"]
    for modality, samples in found["samples"].items():
        assert samples["received"] > 40_000, modality
        assert abs(samples["difference"]) <= 10 * samples["connections"], modality  # blocks of ten
    assert found["process"]["threads"]["to"] == found["process"]["threads"]["from"]
    assert found["process"]["open_files"]["largest"] < 300
    card = found["scorecard"]
    assert card["skipped_hops"] == 0
    assert card["estimates"] + card["invalid_hops"] == card["hops"] > 5_500
    assert card["estimates"] > 0.85 * card["hops"]
    assert card["overwritten_samples"] == 0
    for flag in ("EEG_MISSING", "MEG_MISSING", "GAP", "NONFINITE", "SETTLING"):
        assert card["flags"][flag] > 0, flag
