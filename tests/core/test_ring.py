from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.core.ring import SampleRing


def samples(start: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two channels and a stamp that all tell the index of their sample."""
    index = np.arange(start, start + n)
    return np.column_stack([index, -index]).astype(np.float32), index / 8.0


@given(capacity=st.integers(1, 20), steps=st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=30))
def test_the_reader_gets_the_last_samples_and_the_number_of_the_others(capacity: int, steps: list[tuple[int, bool]]) -> None:
    ring = SampleRing(2, capacity)
    written = read = 0
    for n, then_read in steps:
        data, stamps = samples(written, n)
        ring.write(data, stamps, received=float(written))
        written += n
        assert ring.n_written == written
        if not then_read:
            continue
        assert ring.n_waiting == written - read
        block = ring.read()
        if written == read:
            assert block is None
            continue
        assert block is not None
        first = max(read, written - capacity)
        assert (block.first, block.lost, block.n_times) == (first, first - read, written - first)
        np.testing.assert_array_equal(block.data, samples(first, written - first)[0].T)
        np.testing.assert_array_equal(block.stamps, samples(first, written - first)[1])
        assert (block.received <= np.arange(first, written)).all()
        read = written


def test_what_was_read_is_the_readers_own() -> None:
    ring = SampleRing(2, 4)
    ring.write(*samples(0, 4), received=0.0)
    block = ring.read()
    ring.write(*samples(4, 4), received=0.0)
    assert block is not None
    np.testing.assert_array_equal(block.data[0], [0, 1, 2, 3])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), capacity=st.sampled_from([3, 64, 100_000]))
def test_with_a_writer_in_another_thread_every_sample_is_whole_and_counted_once(seed: int, capacity: int) -> None:
    ring = SampleRing(2, capacity)
    sizes = np.random.default_rng(seed).integers(1, 7, 3000)
    total = int(sizes.sum())

    def write() -> None:
        at = 0
        for n in sizes:
            ring.write(*samples(at, int(n)), received=float(at))
            at += int(n)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        expected = got = lost = 0
        while expected < total:
            block = ring.read()
            if block is None:
                if writer.done():
                    writer.result()
                continue
            assert block.first == expected + block.lost
            index = np.arange(block.first, block.first + block.n_times)
            np.testing.assert_array_equal(block.data, [index, -index])
            np.testing.assert_array_equal(block.stamps, index / 8.0)
            got, lost = got + block.n_times, lost + block.lost
            expected = block.first + block.n_times
    assert got + lost == total
    assert ring.read() is None
    if capacity >= total:
        assert lost == 0


@pytest.mark.parametrize(("n_channels", "capacity"), [(0, 5), (5, 0)])
def test_a_ring_of_nothing_is_refused(n_channels: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        SampleRing(n_channels, capacity)
