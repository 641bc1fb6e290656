"""Two real clocks on one machine: the sender runs under faketime, the probe measures it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from uuid import uuid4

import numpy as np
import pytest

from rt_mmdf.lsl.network import NetworkTransport

# Sends its own (false) LSL time as stamp and the machine's true monotonic time, which a raw system call reads past
# faketime, as value.
SENDER = """
import ctypes, select, sys
import numpy as np
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.network import NetworkTransport

class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]

libc, moment = ctypes.CDLL(None), Timespec()
def true_time():
    libc.syscall(228, 1, ctypes.byref(moment))  # clock_gettime(CLOCK_MONOTONIC) on x86-64
    return moment.seconds + moment.nanoseconds * 1e-9

transport = NetworkTransport()
name = sys.argv[1]
with transport.outlet(StreamDescription(name, "clock", name, 100.0, "float64", (ChannelDescription("true"),), {})) as outlet:
    while select.select([sys.stdin], [], [], 0.01)[0] == []:
        before, stamp, after = true_time(), transport.clock.now(), true_time()
        outlet.push(np.array([[(before + after) / 2]]), stamp)
"""


@pytest.mark.lsl
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed (Debian: apt install faketime)")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the true clock with a Linux system call")
def test_offset_and_drift_of_another_clock_are_measured() -> None:
    name = f"clock-{uuid4().hex}"
    command = ["faketime", "-f", "+100s x1.0002", sys.executable, "-c", SENDER, name]
    sender = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    try:
        transport = NetworkTransport()
        (found,) = transport.resolve(name=name, timeout_s=20.0)
        probe, inlet = transport.offset_probe(found), transport.inlet(found)
        true, stamps = [], []
        measured = {}
        start = time.monotonic()
        while time.monotonic() < start + 9.0:
            data, times = inlet.pull(0.1)
            true.append(data[:, 0])
            stamps.append(times)
            if (offset := probe.measure(0.05)) is not None:
                measured[offset.at] = offset
        probe.close()
        inlet.close()
    finally:
        sender.communicate("stop\n", timeout=10.0)
    # liblsl's clock here and the system's monotonic clock are the same one on Linux
    true_offset = np.concatenate(true) - np.concatenate(stamps)
    offsets = list(measured.values())
    assert len(offsets) >= 4  # a burst every two seconds
    for offset in offsets:
        expected = np.interp(offset.at, np.concatenate(stamps), true_offset)
        assert 0 < offset.uncertainty < 2e-3
        assert abs(offset.offset - expected) < offset.uncertainty + 5e-5
    at = np.array([offset.at for offset in offsets])
    slope = np.polyfit(at - at[0], [offset.offset for offset in offsets], 1)[0]
    assert slope == pytest.approx(-200e-6, abs=50e-6)
