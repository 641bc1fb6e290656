"""A device in a process of its own for the tests: a stream with a trigger channel, whose stamps are late by a known lag.

    python sending_device.py '{"name": ..., "type": ..., "sfreq": ..., "channels": [[name, type, unit], ...], "begin": ...,
    "lag_s": ..., "drift": ..., "triggers": [...], "flash": false}'

Sample k is taken at ``begin + k / sfreq`` of the machine's monotonic clock, which is read past faketime; it is stamped and
sent ``lag_s + drift * (t - begin)`` later, by the clock of this process. The last channel shows the triggers: as a digital
step, or as the flank of a photodiode. Ends with its standard input.
"""

from __future__ import annotations

import ctypes
import json
import select
import sys

import numpy as np

from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.network import NetworkTransport

CHUNK_S = 0.02
HOLD_S = 0.05
RISE_S = 0.008


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


libc, moment = ctypes.CDLL(None), Timespec()


def true_time() -> float:
    libc.syscall(228, 1, ctypes.byref(moment))  # clock_gettime(CLOCK_MONOTONIC) on x86-64
    return moment.seconds + moment.nanoseconds * 1e-9


def main() -> None:
    device = json.loads(sys.argv[1])
    transport, rng = NetworkTransport(), np.random.default_rng(1)
    channels = tuple(ChannelDescription(*channel) for channel in device["channels"])
    name, sfreq, begin = device["name"], device["sfreq"], device["begin"]
    description = StreamDescription(name, device["type"], f"{name}-sn1", sfreq, "float32", channels, {})
    triggers = np.array(device["triggers"])
    scale = {"eeg": 5.0, "mag": 200.0, "grad": 50.0}
    level = np.array([scale.get(channel.type.lower(), 0.0) for channel in channels])
    chunk = round(CHUNK_S * sfreq)
    with transport.outlet(description, chunk_size=chunk) as outlet:
        sent = 0
        while select.select([sys.stdin], [], [], 0.005)[0] == []:
            now, true_now = transport.clock.now(), true_time()
            t = begin + np.arange(sent, sent + chunk) / sfreq
            lag = device["lag_s"] + device["drift"] * (t - begin)
            if true_now < t[-1] + max(0.0, lag[-1]):
                continue
            data = rng.normal(size=(chunk, len(channels))) * level
            since = t[:, None] - triggers[None, :]
            if device["flash"]:
                shown = np.clip(since / RISE_S + 0.5, 0, 1) * (since < HOLD_S)
                data[:, -1] = 100 * shown.max(axis=1) + rng.normal(size=chunk)
            else:
                data[:, -1] = 5 * ((since >= 0) & (since < HOLD_S)).any(axis=1)
            outlet.push(data.astype(np.float32), now + (t - true_now) + lag)
            sent += chunk


if __name__ == "__main__":
    main()
