"""Lines are found among outliers, the sender's clock is followed, the map stays continuous, monotone and slow to bend."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.alignment.line_fit import fit_line
from rt_mmdf.alignment.time_map import SLEW_PPM, SenderClock, TimeMap
from rt_mmdf.lsl.interface import ClockOffset

SFREQ = 1000.0


def test_a_line_is_found_among_outliers_with_an_honest_uncertainty() -> None:
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = np.sort(rng.uniform(0, 60, 120))
        y = 3.0 + 5e-5 * x + rng.normal(0, 1e-4, 120)
        y[rng.choice(120, 12, replace=False)] += rng.uniform(0.01, 0.5, 12)
        line = fit_line(x, y, None, 1e-4, 1e-6)
        inside += abs(line(60.0) - 3.0 - 5e-5 * 60) < 2 * line.sd(60.0)
    assert inside > 0.85 * 200  # 95 % if the noise were Gaussian throughout


def test_the_prior_keeps_the_slope_still_until_data_tell_it() -> None:
    x = np.array([0.0, 1.0])
    noisy = fit_line(x, np.array([0.0, 2e-3]), np.full(2, 1e-3), 1e-4, 1e-6)  # the points alone say 2000 ppm
    assert abs(noisy.slope) < 5e-5


def measured(clock: SenderClock, seconds: float, offset: float, drift: float, start: float = 0.0) -> None:
    rng = np.random.default_rng(0)
    for t in np.arange(start, start + seconds, 2.0):
        clock.add(ClockOffset(t, offset + drift * t + rng.normal(0, 3e-5), 1e-4))


def test_the_senders_clock_is_followed_to_tens_of_microseconds() -> None:
    clock = SenderClock()
    measured(clock, 30, -100.0, -200e-6)
    assert clock.to_local(31.0) == pytest.approx(31.0 - 100.0 - 200e-6 * 31, abs=1e-4)
    measured(clock, 60, -100.0, -200e-6, start=30.0)
    assert clock.to_local(90.0) == pytest.approx(90.0 - 100.0 - 200e-6 * 90, abs=4e-5)
    assert clock.drift == pytest.approx(-200e-6, abs=3e-6)


def test_one_wild_measurement_changes_nothing_two_that_agree_are_a_step() -> None:
    clock = SenderClock()
    measured(clock, 20, 5.0, 0.0)
    before = clock.to_local(20.0)
    clock.add(ClockOffset(20.0, 6.0, 1e-4))
    assert clock.to_local(20.0) == before
    assert clock.steps == 0
    clock.add(ClockOffset(22.0, 6.0, 1e-4))
    assert clock.to_local(22.0) == pytest.approx(28.0, abs=1e-3)
    assert clock.steps == 1


def test_the_first_measurement_of_a_sender_that_was_started_anew_counts_and_it_alone() -> None:
    clock = SenderClock()
    measured(clock, 20, 5.0, 0.0)
    clock.sender_restarted()
    clock.add(ClockOffset(20.0, 6.0, 1e-4))
    assert clock.to_local(20.0) == pytest.approx(26.0, abs=1e-3)
    assert clock.steps == 1
    clock.add(ClockOffset(22.0, 9.0, 1e-4))
    assert clock.to_local(22.0) == pytest.approx(28.0, abs=1e-3)
    assert clock.steps == 1


@given(errors=st.lists(st.floats(-0.04, 0.04), min_size=2, max_size=40))
def test_the_map_is_continuous_monotone_and_slew_limited(errors: list[float]) -> None:
    time_map = TimeMap(SFREQ)
    for k, error in enumerate(errors):
        time_map.bend(100 * k, 10.0 + 0.1 * k + error / 2, 1 / SFREQ)
    index = np.arange(0, 100.0 * len(errors), 0.5)
    times = time_map.times_at(index)
    steps = np.diff(times) / (0.5 / SFREQ)
    assert (steps > 0).all()
    assert np.abs(steps - 1).max() < SLEW_PPM * 1e-6 + 1e-6
    np.testing.assert_allclose(time_map.indices_at(times), index, atol=1e-6)


def test_what_was_mapped_stays_as_it_was_mapped() -> None:
    time_map = TimeMap(SFREQ)
    time_map.bend(0, 10.0, 1e-3)
    earlier = time_map.times_at(np.arange(100.0))
    time_map.bend(100, 10.105, 1.1e-3)
    np.testing.assert_allclose(time_map.times_at(np.arange(100.0)), earlier, rtol=1e-15)


def test_an_error_that_would_take_a_minute_is_a_flagged_jump() -> None:
    time_map = TimeMap(SFREQ)
    assert not time_map.bend(0, 10.0, 1e-3)
    assert time_map.bend(100, 11.1, 1e-3)
    assert time_map.time_at(100) == pytest.approx(11.1)
    assert time_map.steps == 1


def test_looking_at_the_newest_knots_takes_no_longer_for_a_long_session() -> None:
    class Counted(deque[float]):
        looked_at = 0

        def __getitem__(self, k: int) -> float:  # type: ignore[override]
            assert -16 <= k < 0, "from the right end, where a deque is quick"
            Counted.looked_at += 1
            return super().__getitem__(k)

        def __iter__(self) -> Iterator[float]:
            raise AssertionError("walks through the whole session")

    time_map = TimeMap(SFREQ, history=None)
    for k in range(10_000):
        time_map.bend(100 * k, 0.1 * k, 1e-3)
    newest = np.arange(999_000.0, 999_950.0, 10.0)
    expected = time_map.times_at(newest)
    time_map._index, time_map._time = Counted(time_map._index), Counted(time_map._time)
    np.testing.assert_array_equal(time_map.times_at(newest), expected)
    np.testing.assert_allclose(time_map.indices_at(expected), newest, atol=1e-6)
    assert Counted.looked_at < 100
