"""The feed of a view in a process of its own, which tells ten times a second how it stands; NAME of the engine."""

from __future__ import annotations

import json
import sys

import numpy as np

from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.view.feed import Feed
from rt_mmdf.view.history import Measure


def main() -> None:
    pause = Signal()
    with Feed(NetworkTransport(), sys.argv[1], find=lambda description, folder: "a head") as feed:  # type: ignore[arg-type,return-value]
        while True:
            pause.wait(0.1)
            feed.check()
            state = feed.state()
            frame = None if state.history is None else state.history.newest(Measure.LATEST)
            hop = int(frame.values[0]) if frame is not None and np.isfinite(frame.values[0]) else 0
            counts = {key: getattr(state.counts, key) for key in ("received", "lost", "holes")}
            age_s = state.age_s if np.isfinite(state.age_s) else None
            told = {"hop": hop, "status": str(state.status), "age_s": age_s, **counts}
            sys.stdout.write(f"{json.dumps(told)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
