"""Work for another thread: done there, or at once where there is none; errors come out where the result is taken."""

from __future__ import annotations

import threading

import pytest

from rt_mmdf.runtime.background import Background
from rt_mmdf.runtime.mailbox import Signal


def test_without_a_worker_it_is_done_at_once() -> None:
    pending = Background().ask(lambda: threading.current_thread().name)
    assert pending.ready
    assert pending.value() == threading.current_thread().name


def test_a_worker_does_it_in_its_own_thread() -> None:
    background, done = Background(), Signal()
    worker = background.worker("elsewhere")
    first = background.ask(lambda: threading.current_thread().name)
    background.ask(done.ring)
    assert not first.ready
    with worker:
        assert done.wait(30.0)
    assert (first.ready, first.value()) == (True, "elsewhere")


def test_an_error_waits_for_who_wants_the_result() -> None:
    background = Background()
    background.worker("pumped by hand")
    pending = background.ask(lambda: 1 // 0)
    background.step(0.0)
    background.step(0.0)  # nothing waits
    assert pending.ready
    with pytest.raises(ZeroDivisionError):
        pending.value()


def test_the_oldest_work_is_given_up_for_newer() -> None:
    background = Background(capacity=2)
    background.worker("pumped by hand")
    asked = [background.ask(lambda i=i: i) for i in range(3)]
    background.step(0.0)
    background.step(0.0)
    assert [pending.ready for pending in asked] == [False, True, True]
