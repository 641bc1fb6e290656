from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.runtime.mailbox import Backlog, Mailbox, NewestValue, Signal


@given(capacity=st.integers(1, 6), steps=st.lists(st.sampled_from(["put", "take", "take_all"]), max_size=40))
def test_first_in_first_out_and_what_does_not_fit_pushes_out_the_oldest(capacity: int, steps: list[str]) -> None:
    mailbox: Mailbox[int] = Mailbox(capacity)
    model: list[int] = []
    dropped = 0
    for number, step in enumerate(steps):
        if step == "put":
            mailbox.put(number)
            model.append(number)
            dropped += len(model) > capacity
            model = model[-capacity:]
        elif step == "take":
            assert mailbox.take(0.0) == (model.pop(0) if model else None)
        else:
            assert mailbox.take_all() == model
            model = []
        assert len(mailbox) == len(model)
        assert mailbox.n_dropped == dropped


def test_nothing_is_lost_or_doubled_between_threads() -> None:
    mailbox: Mailbox[int] = Mailbox(10_000)
    with ThreadPoolExecutor(3) as pool:
        for start in (0, 1000):
            pool.submit(lambda start=start: [mailbox.put(start + i) for i in range(1000)])
        taker = pool.submit(lambda: [mailbox.take(10.0) for _ in range(2000)])
        taken = taker.result(30.0)
    assert sorted(taken) == list(range(2000))
    assert [v for v in taken if v < 1000] == list(range(1000))  # order of each sender is kept
    assert mailbox.n_dropped == 0


def test_a_waiting_reader_is_woken_by_a_put() -> None:
    mailbox: Mailbox[str] = Mailbox(1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mailbox.take, 20.0)
        mailbox.put("here")
        assert waiting.result(10.0) == "here"
    assert mailbox.take(0.001) is None


def test_a_put_rings_the_signal_once_for_each_wait() -> None:
    bell = Signal()
    mailbox: Mailbox[int] = Mailbox(3, bell)
    assert not bell.wait(0.0)
    mailbox.put(1)
    mailbox.put(2)
    assert bell.wait(0.0)
    assert not bell.wait(0.0)


@given(steps=st.lists(st.sampled_from(["ring", "wait"]), max_size=20))
def test_a_wait_hears_whether_it_was_rung_since_the_last(steps: list[str]) -> None:
    bell, rung = Signal(), False
    for step in steps:
        if step == "ring":
            bell.ring()
        else:
            assert bell.wait(0.0) == rung
        rung = step == "ring"


def test_an_exception_out_of_a_signal_handler_leaves_a_bell_that_rings() -> None:
    """It comes out as it is, wherever in a wait it cuts in, and a ring is heard once after it."""
    bell = Signal()

    class Terminated(Exception):
        pass

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGALRM, terminate)

    def wait_for_a_signal(after_s: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, after_s)
        for _ in range(1_000_000):
            assert not bell.wait(2e-5)

    try:
        for k in range(500):
            with pytest.raises(Terminated):
                wait_for_a_signal(1e-4 + 1e-6 * k)
            bell.ring()
            assert bell.wait(10.0)
            assert not bell.wait(0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_mailbox_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Mailbox(0)


def test_the_newest_value_is_the_last_one_put() -> None:
    cell: NewestValue[int] = NewestValue()
    assert cell.get() is None
    cell.put(1)
    cell.put(2)
    assert (cell.get(), cell.get()) == (2, 2)


@given(capacity=st.integers(1, 12), steps=st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 15), st.integers(1, 4)))))
def test_a_backlog_never_weighs_more_than_it_may_and_counts_what_it_pushes_out(
    capacity: int, steps: list[tuple[int, int] | None]
) -> None:
    backlog: Backlog[int] = Backlog(capacity)
    model: list[tuple[int, int, int]] = []
    dropped = 0
    for number, step in enumerate(steps):
        if step is None:
            assert backlog.take_all() == [value for value, _, _ in model]
            model = []
        else:
            backlog.put(number, *step)
            model.append((number, *step))
            while sum(weight for _, weight, _ in model) > capacity:
                dropped += model.pop(0)[2]
        assert backlog.n_waiting == sum(n for _, _, n in model)
        assert backlog.n_dropped == dropped


def test_a_backlog_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Backlog(0)
