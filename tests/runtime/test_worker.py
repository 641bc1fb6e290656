from __future__ import annotations

import threading

import pytest

from rt_mmdf.core.errors import WorkerFailed
from rt_mmdf.runtime.worker import Worker


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
