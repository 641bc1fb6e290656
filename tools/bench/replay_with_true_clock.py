"""Runs `rt-mmdf replay` in a process whose clock may be faked, and writes down what that clock shows against the true one.

Usage: replay_with_true_clock.py CLOCKS.json REPLAY_ARGUMENTS...

faketime replaces the clock functions of the C library; the kernel's own clock, asked by a bare system call, stays true.
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from pathlib import Path

CLOCK_MONOTONIC = 1
CLOCK_GETTIME = {"x86_64": 228, "aarch64": 113}


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def true_clock() -> float:
    """The kernel's monotonic clock: the LSL clock of a process that is not faked."""
    now = Timespec()
    ctypes.CDLL(None).syscall(CLOCK_GETTIME[platform.machine()], CLOCK_MONOTONIC, ctypes.byref(now))
    return now.seconds + now.nanoseconds * 1e-9


def main() -> None:
    from mne_lsl.lsl import local_clock

    from rt_mmdf.cli.main import run

    true_clock(), local_clock()
    pairs = []
    for _ in range(50):  # the pair that took least time is the one least disturbed
        before, sender, after = true_clock(), local_clock(), true_clock()
        pairs.append((after - before, (before + after) / 2, sender))
    width, true, sender = min(pairs)
    Path(sys.argv[1]).write_text(json.dumps({"true": true, "sender": sender, "width": width}))
    sys.argv = ["rt-mmdf", "replay", *sys.argv[2:]]
    run()


if __name__ == "__main__":
    main()
