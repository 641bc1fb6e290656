"""The feed over the real network: an engine in another process that is killed and comes back another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
def process(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program of this folder as a process, which is gone afterwards."""
    command = [sys.executable, str(Path(__file__).with_name(program)), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def engine(name: str, n_left: int = 20, fingerprint: str = "ab" * 32) -> AbstractContextManager[subprocess.Popen[str]]:
    return process("publishing_engine.py", name, str(n_left), fingerprint)


def hop_of(running: subprocess.Popen[str]) -> int:
    """The next hundred of hops that an engine tells of."""
    assert running.stdout is not None
    return int(running.stdout.readline())


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


def shown_hop(state: FeedState) -> int:
    """The hop of the newest picture: this engine's estimates are all of the number of their hop, from 1."""
    frame = None if state.history is None else state.history.newest(Measure.LATEST)
    return 0 if frame is None or not np.isfinite(frame.values[0]) else int(frame.values[0])


def test_a_flood_is_survived_and_every_estimate_of_it_accounted_for() -> None:
    name = f"view-{uuid4().hex[:10]}"
    with engine(name) as flooding, Feed(NetworkTransport(), name, find=lambda description, folder: "a head") as feed:
        state = wait(feed, "estimates with their flags", lambda s: s.counts.received > 1000 and s.flags is not None)
        before, begun, memory = state.counts, shown_hop(state), state.history.nbytes if state.history else 0
        assert flooding.stdin is not None
        flooding.stdin.write("5000\n")  # 50 s of estimates at once
        flooding.stdin.flush()
        state = wait(feed, "the hops after it", lambda s: shown_hop(s) > begun + 5200 and s.status is Status.LIVE)
        new = [getattr(state.counts, key) - getattr(before, key) for key in ("received", "lost", "holes")]
        assert sum(new) == pytest.approx(
            10 * (shown_hop(state) - begun), abs=200
        )  # what is on its way: some pictures' worth
        assert new[0] > 1500  # the engine's hops after the flood at least
        assert state.history is not None
        assert state.history.nbytes == memory
        assert len(state.history) <= state.history.capacity


def test_a_link_that_stands_still_costs_at_most_what_is_counted() -> None:
    """The view's process is stopped: nobody reads its sockets, as with a link that carries nothing for six seconds."""
    name = f"view-{uuid4().hex[:10]}"
    with engine(name) as running, process("watching_view.py", name) as view:
        assert view.stdout is not None

        def told(done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            for line in view.stdout or ():
                if done(state := json.loads(line)):
                    return dict(state)
            raise AssertionError("the view has ended")

        before = told(lambda s: s["received"] > 1000 and s["status"] == "live")
        view.send_signal(signal.SIGSTOP)
        stopped = hop_of(running)
        while hop_of(running) < stopped + 600:
            pass
        view.send_signal(signal.SIGCONT)
        after = told(lambda s: s["hop"] > before["hop"] + 600 and s["age_s"] is not None and s["age_s"] < 1.0)
        new = sum(after[key] - before[key] for key in ("received", "lost", "holes"))
        assert new == pytest.approx(10 * (after["hop"] - before["hop"]), abs=200)
        assert running.poll() is None  # a view that stands still stops no engine
