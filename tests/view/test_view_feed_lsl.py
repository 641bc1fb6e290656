"""The feed over the real network: an engine in another process that is killed and comes back another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.view.feed import Feed, FeedState, Status
from rt_mmdf.view.history import Measure

pytestmark = pytest.mark.lsl
LIMIT_S = 40.0


@contextmanager
def engine(name: str, n_left: int, fingerprint: str) -> Iterator[subprocess.Popen[bytes]]:
    """An engine as a process, which is gone afterwards."""
    program = Path(__file__).with_name("publishing_engine.py")
    command = [sys.executable, str(program), name, str(n_left), fingerprint]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            yield process
        finally:
            process.kill()


def wait(feed: Feed, what: str, done: Callable[[FeedState], bool]) -> FeedState:
    pause, deadline = Signal(), time.monotonic() + LIMIT_S
    while not done(state := feed.state()):
        feed.check()
        assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what}; {state}"
        pause.wait(0.02)
    return state


def test_an_engine_that_is_killed_and_comes_back_with_another_head() -> None:
    name = f"view-{uuid4().hex[:10]}"
    asked: list[int] = []

    def find(description: Any, folder: Path | None) -> Any:
        asked.append(description.n_sources)
        return f"head of {description.n_sources}"

    threads = threading.active_count()
    with Feed(NetworkTransport(), name, find=find) as feed:
        wait(feed, "it waits", lambda s: s.status is Status.WAITING and name in s.note)
        with engine(name, 20, "ab" * 32):
            state = wait(
                feed,
                "estimates, flags, clock and health",
                lambda s: s.counts.received > 1500 and s.health is not None and s.offset is not None,
            )
            assert state.status is Status.LIVE
            assert state.history is not None
            assert (state.history.n_sources, state.has_companion) == (37, True)
            # every stamp came through to the last bit, so every estimate found its companion
            assert (state.counts.unflagged, state.counts.lost, state.counts.discarded) == (0, 0, 0)
            assert abs(state.age_s) < 1.0
            frame = state.history.newest(Measure.LATEST)
            assert frame is not None
            assert np.ptp(frame.values) == 0
            assert state.budget_ms == 20.0
        gone = wait(feed, "it is missed", lambda s: s.status is Status.WAITING)
        assert gone.history is state.history
        with engine(name, 40, "cd" * 32) as again:
            back = wait(feed, "the new engine", lambda s: s.generation > state.generation and s.status is Status.LIVE)
            assert back.engine is not None
            assert back.history is not None
            assert (back.engine.n_sources, back.history.n_sources, back.head) == (57, 57, "head of 57")
            wait(feed, "pictures", lambda s: s.history is not None and len(s.history) > 10)
            feed.close()
            assert threading.active_count() == threads
            assert again.poll() is None  # the engine does not notice
    assert asked == [37, 57]
