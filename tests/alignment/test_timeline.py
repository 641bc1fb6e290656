"""Stamps become an unbroken count of samples; what is wrong with them is found and counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert (counts.gaps, counts.lost, counts.duplicates, counts.bad_stamps) == (1, 17, 5, 2)
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


def test_a_stream_without_any_usable_stamp_is_refused() -> None:
    with pytest.raises(StreamDescriptionError, match="no finite time stamp"):
        Timeline(SFREQ).place(np.full(500, np.nan))
