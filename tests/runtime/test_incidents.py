"""The book of incidents: bounded, counted, one line a fact, rate-limited; and what finds suspensions."""

from __future__ import annotations

import json
import logging
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.runtime.incidents import BURST, N_NEWEST, PER_S, Growing, Incidents
from rt_mmdf.runtime.limits import file_handles_left, memory_left
from rt_mmdf.runtime.suspension import Suspension

LINE = re.compile(
    r"incident=(?P<incident>\S+) subject=(?P<subject>\"[^\"]*\"|\S+) state=(?P<state>noted|began|changed|ended) "
    r"lsl_time=(?P<time>[\d.]+) count=(?P<count>\d+)(?: seconds=(?P<seconds>[\d.]+))? suppressed=(?P<suppressed>\d+) "
    r"detail=(?P<detail>\".*\")"
)


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """Every line that was logged, taken apart; none that cannot be."""
    parsed = [LINE.fullmatch(record.getMessage()) for record in caplog.records if record.exc_info is None]
    assert all(parsed)
    return [match.groupdict() for match in parsed if match is not None]


def test_what_lasts_is_told_at_its_begin_and_its_end(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    changes = []
    book = Incidents(time, lambda: changes.append(time.now))
    assert book.begin("stall", "eeg", 'stream "x"\n has sent nothing')
    assert not book.begin("stall", "eeg", "still nothing")
    assert book.lasts("stall", "eeg")
    time.now += 2.5
    assert book.status()["n_lasting"] == 1
    assert book.end("stall", "eeg", "back")
    assert not book.end("stall", "eeg")
    began, ended = lines(caplog)
    assert (began["incident"], began["subject"], began["state"], began["seconds"]) == ("stall", "eeg", "began", None)
    assert json.loads(began["detail"]) == 'stream "x"\n has sent nothing'  # one line, whatever a name holds
    assert (ended["state"], ended["seconds"], ended["time"]) == ("ended", "2.50", "102.500")
    (told,) = book.status()["newest"]
    assert (told["began"], told["ended"], told["detail"]) == (100.0, 102.5, "back")
    assert book.counts == {"stall": 1}
    assert changes == [100.0, 102.5]
    assert book.n_changes == 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 3)), max_size=200))
def test_the_book_is_bounded_and_counts_each_fact(facts: list[tuple[str, str, int]]) -> None:
    time, expected, lasting = Time(), dict.fromkeys("abc", 0), set()
    book = Incidents(time)
    for kind, subject, what in facts:
        time.now += 0.3
        if what == 0:
            book.note(kind, subject, "d")
            expected[kind] += 1
        elif what == 1:
            assert book.begin(kind, subject, "d") == ((kind, subject) not in lasting)
            expected[kind] += (kind, subject) not in lasting
            lasting.add((kind, subject))
        elif what == 2:
            assert book.end(kind, subject) == ((kind, subject) in lasting)
            lasting.discard((kind, subject))
        book.settle()
    status = book.status()
    assert status["counts"] == {kind: n for kind, n in expected.items() if n}
    assert len(status["newest"]) == min(N_NEWEST, sum(expected.values()))
    assert {(one["kind"], one["subject"]) for one in status["lasting"]} == lasting
    assert all(one["ended"] is None for one in status["lasting"])


@given(gaps=st.lists(st.floats(0.01, 6.0), min_size=1, max_size=120))
def test_the_log_is_rate_limited_and_nothing_is_left_untold(gaps: list[float]) -> None:
    time = Time()
    book, told = Incidents(time), []
    handler = logging.Handler()
    handler.emit = lambda record: told.append((time.now, record.getMessage()))  # type: ignore[method-assign]
    logger = logging.getLogger("rt_mmdf.runtime.incidents")
    logger.addHandler(handler)
    try:
        for gap in gaps:
            time.now += gap
            book.note("gap", "meg", "hole")
            book.settle()
        time.now += PER_S + 1
        book.settle()
    finally:
        logger.removeHandler(handler)
    at = [when for when, _ in told]
    assert all(at[i + BURST] - at[i] > PER_S for i in range(len(at) - BURST))
    suppressed = sum(int(LINE.fullmatch(text)["suppressed"]) for _, text in told)  # type: ignore[index]
    assert len(told) + suppressed == len(gaps)


def test_another_kind_and_another_subject_are_not_silenced(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    book = Incidents(time)
    for _ in range(50):
        book.note("gap", "meg", "hole")
    book.note("gap", "eeg", "hole")
    book.note("stall", "meg", "nothing")
    assert len(lines(caplog)) == BURST + 2


def test_an_error_is_logged_in_full_once_for_each_place(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    book = Incidents(time)

    def one() -> None:
        raise ZeroDivisionError("one")

    def two() -> None:
        raise ZeroDivisionError("two")

    for raising in (one, one, two, one, two):
        try:
            raising()
        except ZeroDivisionError as error:
            book.failed("worker", "receive eeg", error, "it goes on")
    full = [record for record in caplog.records if record.exc_info is not None]
    assert len(full) == 2
    assert book.counts == {"worker": 5}
    assert lines(caplog)[0]["subject"] == '"receive eeg"'
    assert json.loads(lines(caplog)[0]["detail"]) == "it goes on: ZeroDivisionError: one"


def test_a_counter_that_grows_lasts_until_it_stands_still(time: Time) -> None:
    book = Incidents(time)
    growing = Growing(book, time, quiet_s=2.0)
    for total in (0, 0, 3, 5, 5, 6):
        time.now += 1.0
        growing.look("nonfinite", "eeg", total, "{n} samples")
    assert book.counts == {"nonfinite": 1}
    assert book.status()["lasting"][0]["detail"] == "6 samples"
    for _ in range(2):
        time.now += 1.0
        growing.look("nonfinite", "eeg", 6, "{n} samples")
    assert not book.lasts("nonfinite", "eeg")
    growing.look("nonfinite", "eeg", 7, "{n} samples")
    assert book.counts == {"nonfinite": 2}
    assert book.status()["lasting"][0]["detail"] == "1 samples"


def test_many_threads_lose_no_fact(time: Time) -> None:
    book = Incidents(time)
    threads = [threading.Thread(target=lambda: [book.note("k", "s", "d") for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert book.counts == {"k": 2000}
    assert book.n_changes == 2000


@pytest.mark.parametrize("which", [0, 1])
def test_a_jump_of_either_clock_is_a_suspension(which: int) -> None:
    now = [50.0, 900.0]
    suspension = Suspension(0.1, (lambda: now[0], lambda: now[1]))

    def later(*seconds: float) -> float:
        now[0], now[1] = now[0] + seconds[0], now[1] + seconds[-1]
        return suspension.look()

    assert later(0.1) == later(0.9) == 0.0
    jump = (3.1, 0.1) if which == 0 else (0.1, 3.1)
    assert later(*jump) == pytest.approx(3.0)
    assert later(0.1) == 0.0


def test_what_the_system_leaves_is_known_here() -> None:
    handles, memory = file_handles_left(), memory_left()
    assert handles is None or handles > 0
    assert memory is not None
    assert memory > 0
