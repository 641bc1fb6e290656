"""Memory that is given back, in a process of its own: what is set there holds for all of it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

BACKLOG = """
import sys
import numpy as np
import psutil
from rt_mmdf.runtime.memory import give_large_blocks_back

if sys.argv[1] == "back":
    give_large_blocks_back()
np.ones(2_500_000)  # 20 MB, freed: glibc now keeps everything up to that size
before = psutil.Process().memory_info().rss
backlog, kept = [], []
for _ in range(100):
    backlog.append(np.ones(125_000))  # 1 MB
    kept.append(bytes(2000))
del backlog
sys.stdout.write(str((psutil.Process().memory_info().rss - before) / 2**20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's")
def test_a_backlog_does_not_stay_with_the_process() -> None:
    grown = {
        way: float(subprocess.run([sys.executable, "-c", BACKLOG, way], capture_output=True, text=True, check=True).stdout)
        for way in ("back", "as it is")
    }
    assert grown["back"] < 10
    assert grown["as it is"] > 50  # what it is there for
