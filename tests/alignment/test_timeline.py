"""Stamps become an unbroken count of samples; what is wrong with them is found and counted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.alignment.rate_check import RateCheck
from rt_mmdf.alignment.timeline import Timeline
from rt_mmdf.core.errors import StreamDescriptionError

SFREQ = 1000.0


def place_all(timeline: Timeline, stamps: np.ndarray, cuts: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Which samples were kept and their numbers; offers the stream in pieces, as a caller must."""
    edges = [0, *sorted(cuts or []), len(stamps)]
    offered, start, keep, numbers = 0, 0, [], []
    for offered in edges[1:]:
        while start < offered:
            placement = timeline.place(stamps[start:offered])
            keep += (placement.keep + start).tolist()
            numbers += placement.index.tolist()
            start += placement.consumed
            if placement.consumed == 0:
                break
    return np.array(keep), np.array(numbers)


def regular(n: int = 3000, t0: float = 50.0, ppm: float = 80.0) -> np.ndarray:
    return t0 + np.arange(n) / SFREQ * (1 + ppm * 1e-6)


def faulty(rng: np.random.Generator) -> np.ndarray:
    stamps = regular()
    stamps = np.delete(stamps, slice(1000, 1017))
    stamps = np.insert(stamps, 1500, stamps[1480:1485])
    stamps[2000] = np.nan
    stamps[2200] += 0.3
    stamps[2500:2600] += 0.11 - np.arange(100) // 10 * 0.01  # held up for 0.1 s, ten chunks
    return stamps + rng.normal(0, 2e-5, len(stamps))


def test_regular_stamps_are_numbered_one_by_one() -> None:
    timeline = Timeline(SFREQ)
    keep, numbers = place_all(timeline, regular())
    np.testing.assert_array_equal(keep, np.arange(3000))
    np.testing.assert_array_equal(numbers, np.arange(3000))
    assert timeline.counts.as_dict() | {"received": 0} == dict.fromkeys(timeline.counts.as_dict(), 0)


@given(cuts=st.lists(st.integers(0, 2988), max_size=30), seed=st.integers(0, 5))
def test_the_cutting_of_the_stream_does_not_matter(cuts: list[int], seed: int) -> None:
    stamps = faulty(np.random.default_rng(seed))
    whole, cut = Timeline(SFREQ), Timeline(SFREQ)
    keep, numbers = place_all(whole, stamps)
    cut_keep, cut_numbers = place_all(cut, stamps, cuts)
    np.testing.assert_array_equal(cut_keep, keep)
    np.testing.assert_array_equal(cut_numbers, numbers)
    assert cut.counts == whole.counts
    assert cut.sender_time(2900) == whole.sender_time(2900)


def test_each_fault_is_found_counted_and_does_not_spread() -> None:
    timeline = Timeline(SFREQ)
    keep, numbers = place_all(timeline, faulty(np.random.default_rng(1)))
    counts = timeline.counts
    assert (counts.gaps, counts.lost, counts.duplicates, counts.bad_stamps) == (1, 17, 5, 102)
    assert counts.backward == counts.restarts == 0
    assert len(keep) == 3000 - 17
    expected = np.delete(np.arange(3000), slice(1000, 1017))
    np.testing.assert_array_equal(numbers, expected)


@given(n_lost=st.integers(1, 5000), at=st.integers(400, 2500), jitter=st.sampled_from([0.0, 1e-5, 5e-5]))
def test_the_size_of_a_gap_is_exact(n_lost: int, at: int, jitter: float) -> None:
    stamps = regular(8000, ppm=100)
    stamps += np.random.default_rng(0).normal(0, jitter, len(stamps)) if jitter else 0
    timeline = Timeline(SFREQ)
    _, numbers = place_all(timeline, np.delete(stamps, slice(at, at + n_lost)))
    assert timeline.counts.gaps == 1
    assert timeline.counts.lost == n_lost
    assert numbers[at] == at + n_lost


def test_a_duplicated_block_in_block_stamping_is_dropped_whole() -> None:
    blocks = np.repeat(regular(3000)[::20], 20)
    stamps = np.insert(blocks, 1000, blocks[980:1000])
    # the repeated block has the stamp of the block before it: it is that block grown longer, which no stamp can tell apart;
    # one block later it is a repetition
    stamps_later = np.insert(blocks, 1020, blocks[980:1000])
    assert len(stamps) == len(stamps_later)
    timeline = Timeline(SFREQ, "first_of_block")
    keep, numbers = place_all(timeline, stamps_later)
    assert timeline.counts.duplicates == 20
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    assert not set(range(1020, 1040)) & set(keep.tolist())


@pytest.mark.parametrize("stamping", ["first_of_block", "last_of_block"])
def test_block_stamps_give_the_time_of_every_sample(stamping: str) -> None:
    true = regular(6000, ppm=50)
    stamps = np.repeat(true[::20] if stamping == "first_of_block" else true[19::20], 20)
    stamps = stamps[7:]  # joined in the middle of a block
    timeline = Timeline(SFREQ, stamping)
    _, numbers = place_all(timeline, stamps)
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    newest = len(numbers) - 1
    assert timeline.sender_time(newest) == pytest.approx(true[7 + newest], abs=2e-5)
    assert timeline.counts.gaps == timeline.counts.bad_stamps == 0


def test_a_clock_set_back_begins_a_new_epoch_and_nothing_is_dropped() -> None:
    stamps = regular(4000)
    stamps[2000:] -= 30.0
    timeline = Timeline(SFREQ)
    keep, numbers = place_all(timeline, stamps)
    assert timeline.epoch == timeline.counts.restarts == 1
    assert len(keep) == 4000
    assert numbers[2000] == 2001  # one number is left out: nothing may be joined over it
    assert timeline.sender_time(4000) == pytest.approx(stamps[3999], abs=1e-5)


def test_stamps_with_5_ms_of_jitter_lose_nothing_and_find_the_rate() -> None:
    rng = np.random.default_rng(3)
    true = regular(60_000, ppm=80)
    stamps = true + np.repeat(rng.normal(0, 5e-3, 6000), 10)
    timeline = Timeline(SFREQ)
    keep, _ = place_all(timeline, stamps)
    assert len(keep) == 60_000
    assert timeline.counts.gaps == timeline.counts.duplicates == timeline.counts.backward == 0
    assert timeline.sender_time(59_999) == pytest.approx(true[-1], abs=5e-4)
    assert timeline.rate_error == pytest.approx(80e-6, abs=2e-5)
    assert abs(timeline.sender_time(59_999) - true[-1]) < 4 * timeline.sender_time_sd(59_999)


@given(
    block=st.sampled_from([20, 40, 80, 100, 130, 200]),
    jitter=st.sampled_from([3e-4, 1e-3, 3e-3]),
    stamping=st.sampled_from(["per_sample", "last_of_block"]),
    seed=st.integers(0, 50),
)
def test_blocks_as_long_as_a_knot_that_come_early_or_late_lose_hardly_anything(
    block: int, jitter: float, stamping: Any, seed: int
) -> None:
    """All stamps of a block are off alike: their jitter is to be seen from block to block only."""
    true = regular(30_000 // block * block, ppm=0)
    late = np.repeat(np.random.default_rng(seed).normal(0, jitter, len(true) // block), block)
    stamps = late + (true if stamping == "per_sample" else np.repeat(true[block - 1 :: block], block))
    timeline = Timeline(SFREQ, stamping)
    begin = 5000 // block * block
    place_all(timeline, stamps[:begin])
    before = timeline.counts
    assert before.lost + before.duplicates + before.backward < 300  # before the jitter is known
    before = replace(before)
    keep, _ = place_all(timeline, stamps[begin:])
    after = timeline.counts
    assert after.lost - before.lost <= 20
    assert len(keep) > len(stamps) - begin - 3 * block - 50  # the newest wait for their followers
    assert 0.4 * jitter < timeline.jitter_sd < 2.5 * jitter


def test_a_stream_without_any_usable_stamp_is_refused() -> None:
    with pytest.raises(StreamDescriptionError, match="no finite time stamp"):
        Timeline(SFREQ).place(np.full(2000, np.nan))


@given(n_bad=st.integers(1, 1700), cut=st.integers(1, 3000))
def test_a_stream_whose_first_stamps_are_unusable_waits_for_better_ones(n_bad: int, cut: int) -> None:
    stamps = regular(3000)
    stamps[:n_bad] = np.nan
    timeline = Timeline(SFREQ)
    keep, numbers = place_all(timeline, stamps, [cut])
    np.testing.assert_array_equal(keep, np.arange(3000))
    np.testing.assert_array_equal(numbers, np.arange(3000))
    assert timeline.counts.bad_stamps == n_bad
    assert timeline.sender_time(2999) == pytest.approx(stamps[-1], abs=2e-5)


@pytest.mark.parametrize("block", [2, 10, 64, 500])
def test_blocks_that_share_a_stamp_are_not_taken_for_samples_with_their_own(block: int) -> None:
    stamps = np.repeat(regular(3000)[::block], block)
    with pytest.raises(StreamDescriptionError, match=r"per_sample.*last_of_block"):
        Timeline(SFREQ).place(stamps)


def held_up(seconds: float, at: int, chunk: int, by_chunk: bool) -> np.ndarray:
    """Stamps of a sender that stood still and lost nothing, then sent all that had waited."""
    n = 6000
    pushed = (np.arange(n) // chunk + 1) * chunk / SFREQ
    stood = (at // chunk + 1) * chunk / SFREQ
    late = (pushed >= stood) & (pushed < stood + seconds)
    if by_chunk:  # liblsl: the last sample is stamped when it is pushed, the others by the nominal rate
        pushed[late] = stood + seconds + 1e-2 * (pushed[late] - stood)
        return pushed + (np.arange(n) % chunk - chunk + 1) / SFREQ
    stamps = np.arange(n) / SFREQ
    stamps[late] = stood + seconds + 1e-2 * (stamps[late] - stood)
    return stamps


@given(
    seconds=st.floats(0.005, 1.8),
    at=st.integers(400, 3000),
    chunk=st.sampled_from([1, 8, 10, 32, 100]),
    by_chunk=st.booleans(),
    cuts=st.lists(st.integers(0, 6000), max_size=6),
)
def test_a_sender_that_was_held_up_has_lost_nothing(
    seconds: float, at: int, chunk: int, by_chunk: bool, cuts: list[int]
) -> None:
    stamps = held_up(seconds, at, chunk, by_chunk)
    timeline = Timeline(SFREQ)
    keep, numbers = place_all(timeline, stamps, cuts)
    np.testing.assert_array_equal(keep, np.arange(6000))
    np.testing.assert_array_equal(numbers, np.arange(6000))
    counts = timeline.counts
    assert counts.gaps == counts.lost == counts.duplicates == counts.backward == counts.restarts == 0
    assert counts.bad_stamps > 0
    assert timeline.sender_time(5999) == pytest.approx(stamps[-1], abs=1e-4)


@given(
    seed=st.integers(0, 10**6),
    n_lost=st.integers(1, 300),
    jitter=st.sampled_from([2e-4, 5e-4, 1e-3]),
    cut=st.integers(3000, 3400),
)
def test_through_jitter_the_size_of_a_hole_is_told_by_its_followers(seed: int, n_lost: int, jitter: float, cut: int) -> None:
    n_lost = max(n_lost, math.ceil(5 * jitter * SFREQ))  # below this it may well pass for jitter
    true = regular(8000, ppm=60)
    stamps = np.delete(true + np.random.default_rng(seed).normal(0, jitter, len(true)), slice(3000, 3000 + n_lost))
    timeline, other = Timeline(SFREQ), Timeline(SFREQ)
    keep, numbers = place_all(timeline, stamps)
    _, other_numbers = place_all(other, stamps, [cut])
    np.testing.assert_array_equal(other_numbers, numbers)
    assert len(keep) == len(stamps)
    assert (timeline.counts.gaps, timeline.counts.lost) == (1, n_lost)
    error = timeline.sender_time(int(numbers[-1])) - true[-1]
    assert abs(error) < min(0.5 * jitter, 5 * timeline.sender_time_sd(int(numbers[-1])))


def test_where_the_size_of_a_hole_stays_doubtful_the_time_after_it_does_not() -> None:
    true = regular(12_000, ppm=60)
    jittered = true + np.random.default_rng(2).normal(0, 5e-3, len(true))
    stamps = np.delete(jittered, slice(5000, 5060))
    timeline = Timeline(SFREQ)
    _, numbers = place_all(timeline, stamps)
    assert timeline.counts.gaps == 1
    assert timeline.counts.lost == pytest.approx(60, abs=3)
    assert timeline.sender_time(int(numbers[-1])) == pytest.approx(true[-1], abs=5e-4)


@pytest.mark.parametrize("step", [-30.0, 61.0, 3600.0])
def test_a_clock_that_was_set_is_no_hole_of_an_hour(step: float) -> None:
    stamps = regular(4000)
    stamps[2000:] += step
    timeline = Timeline(SFREQ)
    keep, numbers = place_all(timeline, stamps, [2100])
    assert (timeline.counts.restarts, timeline.counts.gaps, timeline.counts.lost) == (1, 0, 0)
    assert len(keep) == 4000
    assert numbers[-1] == 4000


def test_a_clock_that_is_set_twice_at_once_ends_in_one_new_epoch_or_two() -> None:
    stamps = regular(4000)
    stamps[2000:2050] -= 30.0  # a minority of what the new epoch begins with
    stamps[2050:] -= 20.0
    timeline = Timeline(SFREQ)
    keep, _ = place_all(timeline, stamps)
    assert timeline.counts.restarts in (1, 2)
    assert len(keep) == 4000
    assert timeline.sender_time(timeline.next_index - 1) == pytest.approx(stamps[-1], abs=2e-5)


def test_after_the_clock_was_set_each_stamp_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[np.ndarray] = []
    add = RateCheck.add

    def spy(self: RateCheck, stamps: np.ndarray) -> float | None:
        checked.append(stamps)
        return add(self, stamps)

    monkeypatch.setattr(RateCheck, "add", spy)
    stamps = regular(4000)
    stamps[2000:] -= 30.0
    place_all(Timeline(SFREQ), stamps)
    np.testing.assert_array_equal(np.concatenate(checked), stamps)


@given(
    seed=st.integers(0, 10**6),
    jitter=st.sampled_from([0.0, 2e-5, 1e-3]),
    faults=st.lists(st.tuples(st.integers(300, 2500), st.floats(-0.4, 3.0), st.integers(1, 200)), max_size=4),
)
def test_the_quick_way_places_as_the_careful_one(seed: int, jitter: float, faults: list[tuple[int, float, int]]) -> None:
    stamps = regular() + np.random.default_rng(seed).normal(0, jitter, 3000)
    for at, late, n in faults:
        stamps[at : at + n] += late
    quick, careful = Timeline(SFREQ), Timeline(SFREQ)
    keep, numbers = place_all(quick, stamps)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Timeline, "_place_regular", lambda self, stamps: None)
        careful_keep, careful_numbers = place_all(careful, stamps)
    np.testing.assert_array_equal(keep, careful_keep)
    np.testing.assert_array_equal(numbers, careful_numbers)
    assert quick.counts == careful.counts
    assert quick.sender_time(3500) == careful.sender_time(3500)
