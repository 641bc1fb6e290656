"""An EEG and a MEG stream over the real network, which misbehave as they are told to: one line of JSON each on stdin.

Started as a program with the prefix of the streams' names, the spacing of the template head, and the rate in Hz. Each line
is ``{"do": ..., "stream": "eeg" or "meg", ...}``; each answer on stdout is ``{"at": LSL time, "sent": {...}}``, samples so
far.
"""

from __future__ import annotations

import json
import select
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from rt_mmdf.core.channels import Channels
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.network import NetworkTransport

BLOCK_S = 0.01
LEVEL = {"eeg": ("V", 5e-6), "mag": ("T", 2e-13)}


class Stream:
    """Sensor noise; ``sin(2 pi 10 t)`` times the number of a channel in the head's order tells channels apart."""

    def __init__(self, transport: NetworkTransport, prefix: str, kind: str, channels: Channels, sfreq: float) -> None:
        self.transport, self.kind = transport, kind
        self.names = [name for name, own in zip(channels.names, channels.types, strict=True) if own == kind]
        modality = "EEG" if kind == "eeg" else "MEG"
        self.described = StreamDescription(f"{prefix}-{modality}", modality, f"{prefix}-{kind}", sfreq, "float32", (), {})
        self.order = list(range(len(self.names)))
        self.rng = np.random.default_rng(1)
        self.until, self.n_sent = transport.clock.now(), 0
        self.sends, self.keeps, self.shift_s = True, False, 0.0
        self.stamps, self.values, self.n_bad = "", "", 0
        self.open()

    def open(self) -> None:
        unit, self.level = LEVEL[self.kind]
        channels = tuple(ChannelDescription(self.names[i], self.kind, unit) for i in self.order)
        self.outlet: Any = self.transport.outlet(replace(self.described, channels=channels))

    def send(self) -> None:
        now, sfreq = self.transport.clock.now(), self.described.sfreq
        if not self.sends or self.outlet is None:
            if not self.keeps:
                self.until = now
            return
        k = np.arange(np.ceil(self.until * sfreq), np.ceil(now * sfreq))
        self.until = now
        if not len(k):
            return
        times = k / sfreq
        data = self.rng.normal(0, 0.3 * self.level, (len(k), len(self.names)))
        data += self.level * np.sin(2 * np.pi * 10 * times)[:, None] * (1 + np.arange(len(self.names)) / len(self.names))
        if self.values:
            noise = self.rng.normal(0, 20 * self.level, (len(k), self.n_bad))
            value = {"nan": np.nan, "flat": 0.0, "saturated": 1e4 * self.level, "disconnected": noise}
            data[:, : self.n_bad] = value[self.values]
        stamps = times + self.shift_s
        if self.stamps:
            value = {"nan": np.nan, "inf": np.inf, "repeat": stamps[0] - 1 / sfreq, "back": stamps[0] - 2.5 / sfreq}
            stamps[0] = value[self.stamps]
        self.outlet.push(data[:, self.order].astype(np.float32), stamps)
        self.n_sent += len(k)

    def obey(self, do: str, given: dict[str, Any]) -> None:
        if do == "stall":
            self.sends, self.keeps = False, bool(given.get("keeps"))
        elif do == "go":
            self.sends = True
        elif do == "vanish":
            self.outlet.close()
            self.outlet, self.keeps = None, False
        elif do == "return":
            self.described = replace(
                self.described,
                source_id=given.get("source_id", self.described.source_id),
                sfreq=given.get("sfreq", self.described.sfreq),
            )
            if given.get("reversed"):
                self.order = self.order[::-1]
            self.order = [i for i in self.order if i >= given.get("without", 0)]
            self.open()
        elif do == "shift":
            self.shift_s = given["seconds"]
        elif do == "stamps":
            self.stamps = given["what"]
        elif do == "values":
            self.values, self.n_bad = given["what"], given.get("n", 0)


def main(prefix: str, spacing: str, sfreq: str) -> None:
    transport, channels = NetworkTransport(), build_template(spacing=spacing).channels  # type: ignore[arg-type]
    streams = {m: Stream(transport, prefix, kind, channels, float(sfreq)) for m, kind in (("eeg", "eeg"), ("meg", "mag"))}

    def answer() -> None:
        sent = {modality: stream.n_sent for modality, stream in streams.items()}
        sys.stdout.write(json.dumps({"at": transport.clock.now(), "sent": sent}) + "\n")
        sys.stdout.flush()

    answer()
    while True:
        if select.select([sys.stdin], [], [], BLOCK_S)[0]:
            line = sys.stdin.readline()
            if not line:  # whoever started us is gone
                return
            given = json.loads(line)
            if given["do"] != "count":
                streams[given["stream"]].obey(given["do"], given)
            answer()
        for stream in streams.values():
            stream.send()


if __name__ == "__main__":
    main(*sys.argv[1:])
