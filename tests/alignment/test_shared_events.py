"""Lag and drift between two devices come out of triggers that both have seen, or it is said why not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.alignment.shared_events import Difference, Events, difference, pair_events
from rt_mmdf.alignment.triggers import find_onsets

MAX_LAG_S = 0.5


def irregular(n: int, rng: np.random.Generator, least_s: float = 0.6, most_s: float = 1.4) -> np.ndarray:
    return 20.0 + np.cumsum(rng.uniform(least_s, most_s, n))


def seen(events: np.ndarray, sfreq: float, rng: np.random.Generator, lag_s: float = 0.0, drift: float = 0.0) -> Events:
    """What a device with this lag makes of events: a step in a digital channel, sampled at any phase."""
    shown = events + lag_s + drift * (events - events.mean())
    phase = rng.uniform(0, 1) / sfreq
    index = np.arange(round((events[-1] + 5) * sfreq))
    times = phase + index / sfreq
    values = np.zeros(len(times))
    for at in shown:
        values[(times >= at) & (times < at + 0.1)] = 5
    onsets = find_onsets(index, values, sfreq)
    return Events(phase + onsets.at / sfreq, np.full(len(onsets), 1e-5), np.full(len(onsets), 1 / sfreq))


RATES = st.sampled_from([250.0, 500.0, 512.0, 1000.0])


@given(
    lag_s=st.floats(-0.15, 0.15),
    drift=st.floats(-2e-4, 2e-4),
    rates=st.tuples(RATES, RATES),
    missing=st.tuples(st.sets(st.integers(0, 24), max_size=4), st.sets(st.integers(0, 24), max_size=4)),
    extra=st.lists(st.floats(20.5, 40), max_size=5),
    seed=st.integers(0, 100),
)
def test_the_lag_that_is_there_is_the_lag_that_is_found(
    lag_s: float,
    drift: float,
    rates: tuple[float, float],
    missing: tuple[set[int], set[int]],
    extra: list[float],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    events = irregular(25, rng)
    left_out = [np.delete(events, sorted(gone)) for gone in missing]
    only_here = np.sort(np.concatenate([left_out[0], [t for t in extra if np.abs(events - t).min() > 0.2]]))
    only_here = only_here[np.diff(only_here, prepend=-1) > 0.15]
    shown = lag_s + drift * (events - events.mean())
    first = seen_at(only_here + np.interp(only_here, events, shown), rates[0], rng)
    second = seen(left_out[1], rates[1], rng)
    pairs = pair_events(first, second, MAX_LAG_S)
    assert len(pairs.first) >= 25 - len(missing[0] | missing[1]) - 2
    assert not pairs.ambiguous
    found = difference(first, second, pairs)
    truth = np.interp(second.times[pairs.second].mean(), events, shown)
    # with 17 pairs one sample in each device is worth 0.4 ms (standard deviation) at 250 Hz
    assert abs(found.lag_s - truth) < (1e-3 if max(rates) >= 500 else 1.6e-3)
    assert abs(found.lag_s - truth) < 4 * found.lag_sd_s + 1e-4
    assert abs(found.drift - drift) < 4 * found.drift_sd
    assert found.drift_sd < 1e-4


def seen_at(shown: np.ndarray, sfreq: float, rng: np.random.Generator) -> Events:
    return seen(shown, sfreq, rng)


def test_the_uncertainty_is_what_it_says() -> None:
    rng = np.random.default_rng(4)
    errors, claims = [], []
    for _ in range(150):
        events = irregular(20, rng)
        first, second = seen(events, 500.0, rng, 0.04), seen(events, 1000.0, rng)
        found = difference(first, second, pair_events(first, second, MAX_LAG_S))
        errors.append(abs(found.lag_s - 0.04))
        claims.append(2 * found.lag_sd_s)
    assert 0.9 < np.mean(np.array(errors) <= claims) <= 1.0
    assert np.median(claims) < 0.5e-3
    assert max(errors) < 1e-3


def test_events_locked_to_the_sampling_are_known_to_half_a_sample_however_many() -> None:
    rng = np.random.default_rng(5)
    events = 20.0 + np.cumsum(rng.integers(6, 14, 100)) / 10  # whole samples of both
    first, second = seen(events, 250.0, rng, 0.04), seen(events, 1000.0, rng)
    found = difference(first, second, pair_events(first, second, MAX_LAG_S))
    assert found.spread_s < 1e-4
    assert 1e-3 < found.lag_sd_s < 2e-3
    assert abs(found.lag_s - 0.04) < 2 * found.lag_sd_s


def test_regular_triggers_do_not_tell_a_lag_longer_than_their_interval() -> None:
    rng = np.random.default_rng(6)
    regular = 20.0 + np.arange(20) * 0.4 + rng.normal(0, 1e-4, 20)
    first, second = seen(regular, 500.0, rng, 0.03), seen(regular, 500.0, rng)
    assert pair_events(first, second, 0.5).ambiguous
    within = pair_events(first, second, 0.15)  # no other lag is possible there
    assert not within.ambiguous
    assert difference(first, second, within).lag_s == pytest.approx(0.03, abs=1e-3)


@given(lag_s=st.floats(-1.0, 1.0), seed=st.integers(0, 30))
def test_irregular_ones_tell_a_lag_longer_than_their_intervals(lag_s: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    events = irregular(20, rng, 0.25, 0.55)
    first, second = seen(events, 500.0, rng, lag_s), seen(events, 1000.0, rng)
    pairs = pair_events(first, second, 1.2)
    assert not pairs.ambiguous
    assert difference(first, second, pairs).lag_s == pytest.approx(lag_s, abs=1e-3)


def test_triggers_of_something_else_are_not_paired() -> None:
    rng = np.random.default_rng(7)
    first, second = seen(irregular(20, rng), 500.0, rng), seen(irregular(20, rng), 500.0, rng)
    pairs = pair_events(first, second, MAX_LAG_S)
    assert pairs.ambiguous or len(pairs.first) < 10


def test_nothing_pairs_with_nothing() -> None:
    nothing = Events(np.empty(0), np.empty(0), np.empty(0))
    one = Events(np.array([1.0]), np.zeros(1), np.zeros(1))
    for pair in ((nothing, one), (one, nothing), (nothing, nothing)):
        assert len(pair_events(*pair, MAX_LAG_S).first) == 0
    assert len(pair_events(one, one, MAX_LAG_S).first) == 1


def test_a_drift_is_told_where_it_is_beyond_doubt() -> None:
    assert Difference(0.03, 1e-4, 1e-4, 2e-5, 1e-3, 20).drifts
    assert not Difference(0.03, 1e-4, 4e-5, 2e-5, 1e-3, 20).drifts
