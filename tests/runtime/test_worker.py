from __future__ import annotations

import threading

import pytest

from rt_mmdf.core.errors import WorkerFailed
from rt_mmdf.runtime.worker import Restarts, Worker


def test_works_in_a_thread_of_its_own_until_stopped() -> None:
    names, enough = [], threading.Event()

    def step() -> None:
        names.append(threading.current_thread().name)
        if len(names) >= 3:
            enough.set()

    worker = Worker("busy", step)
    assert not worker.alive
    with worker:
        assert enough.wait(10.0)
        assert worker.alive
    assert not worker.alive
    assert set(names) == {"busy"}
    done = len(names)
    worker.stop()  # a second time is no harm
    assert len(names) == done


def test_an_error_ends_the_worker_and_comes_out_where_it_is_asked_for() -> None:
    failed = threading.Event()

    def step() -> None:
        raise ZeroDivisionError("by nothing")

    worker = Worker("divider", step, on_failure=failed.set).start()
    assert failed.wait(10.0)
    with pytest.raises(WorkerFailed, match=r"'divider' stopped: by nothing") as caught:
        worker.check()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(WorkerFailed):
        worker.stop()


def test_with_raises_the_workers_error_unless_another_is_under_way() -> None:
    failed = threading.Event()

    def step() -> None:
        raise ZeroDivisionError

    with pytest.raises(WorkerFailed), Worker("divider", step, on_failure=failed.set):
        assert failed.wait(10.0)
    failed.clear()

    def body_with_an_error_of_its_own() -> None:
        with Worker("divider", step, on_failure=failed.set):
            assert failed.wait(10.0)
            raise KeyError

    with pytest.raises(KeyError):
        body_with_an_error_of_its_own()


def test_a_worker_that_does_not_return_is_named() -> None:
    release, inside = threading.Event(), threading.Event()

    def step() -> None:
        inside.set()
        release.wait(20.0)

    worker = Worker("stuck", step).start()
    assert inside.wait(10.0)
    with pytest.raises(WorkerFailed, match=r"'stuck' did not stop within 0\.01 s"):
        worker.stop(0.01)
    release.set()
    worker.stop()


def test_a_pause_ends_as_soon_as_the_worker_is_asked_to_stop() -> None:
    inside, answers = threading.Event(), []

    def step() -> None:
        inside.set()
        answers.append(worker.pause(60.0))

    worker = Worker("sleeper", step)
    worker.start()
    assert inside.wait(10.0)
    worker.stop(10.0)
    assert answers == [True]


def test_a_worker_that_was_never_started_can_be_stopped() -> None:
    worker = Worker("idle", lambda: None)
    worker.stop()
    worker.check()


def test_a_worker_with_restarts_goes_on_and_ends_at_one_error_too_many() -> None:
    told, ended, tries, ordered = [], threading.Event(), [], []

    def step() -> None:
        tries.append(1)
        if len(tries) != 2:
            raise ZeroDivisionError(f"try {len(tries)}")

    worker = Worker("divider", step, on_failure=ended.set)
    worker.restarts = Restarts(
        lambda name, error: told.append(f"{name}: {error}"), limit=3, first_wait_s=0.0, before=lambda: ordered.append(1)
    )
    worker.start()
    assert ended.wait(10.0)
    assert told == ["divider: try 1", "divider: try 3", "divider: try 4"]
    assert (len(tries), len(ordered)) == (5, 3)
    with pytest.raises(WorkerFailed, match="try 5"):
        worker.stop()


def test_a_fatal_error_ends_a_worker_at_once_and_a_stop_ends_the_wait() -> None:
    ended, waiting = threading.Event(), threading.Event()

    def step() -> None:
        raise KeyError("no")

    fatal = Worker("one", step, on_failure=ended.set)
    fatal.restarts = Restarts(lambda name, error: None, fatal=(LookupError,))
    fatal.start()
    assert ended.wait(10.0)
    patient = Worker("two", step)
    patient.restarts = Restarts(lambda name, error: waiting.set(), first_wait_s=60.0, longest_wait_s=60.0)
    patient.start()
    assert waiting.wait(10.0)
    patient.stop(10.0)  # and nothing is raised: it was going on
    with pytest.raises(WorkerFailed):
        fatal.stop()


def test_a_start_that_is_interrupted_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, inside = threading.Thread.start, threading.Event()

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        assert inside.wait(10.0)
        raise KeyboardInterrupt

    def step() -> None:
        inside.set()
        worker.pause(0.01)

    worker = Worker("begun", step)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.start()
        worker._thread.join(10.0)
        assert not worker.alive
    finally:
        worker.stop()


def test_a_worker_whose_thread_had_hardly_begun_can_be_stopped_and_does_nothing() -> None:
    known, go, passed, steps = threading.Event(), threading.Event(), threading.Event(), []

    class Interrupted(threading.Event):
        """That a thread has begun: in the thread it takes its time, and who waits for it hears Ctrl-C instead."""

        def set(self) -> None:
            known.set()
            go.wait(10.0)
            super().set()
            passed.set()

        def wait(self, timeout: float | None = None) -> bool:
            assert known.wait(10.0)
            raise KeyboardInterrupt

    worker = Worker("hardly", lambda: steps.append(1))
    worker._thread._started = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        worker.start()
    worker.stop()
    go.set()
    assert passed.wait(10.0)
    worker._thread.join(10.0)
    assert not worker.alive
    assert steps == []
