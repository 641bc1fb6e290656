from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.preprocessing.window import SlidingWindow


@given(length=st.integers(1, 20), hops=st.lists(st.integers(0, 30), max_size=15))
def test_holds_the_last_samples_in_order(length: int, hops: list[int]) -> None:
    window = SlidingWindow(length, 3)
    stream = np.random.default_rng(0).standard_normal((3, sum(hops))).astype(np.float32)
    expected = np.zeros((3, length), dtype=np.float32)
    at = 0
    for hop in hops:
        view = window.push(stream[:, at : at + hop])
        at += hop
        expected = np.hstack([expected, stream[:, at - hop : at]])[:, -length:]
        np.testing.assert_array_equal(view, expected)
        assert window.n_filled == min(length, at)
        assert view.flags.f_contiguous


def test_the_view_cannot_be_written_and_shares_memory() -> None:
    window = SlidingWindow(8, 2)
    view = window.push(np.ones((2, 3), dtype=np.float32))
    assert view.base is not None
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1.0


def test_reset_forgets() -> None:
    window = SlidingWindow(4, 1)
    window.push(np.ones((1, 9), dtype=np.float32))
    window.reset()
    assert window.n_filled == 0
    assert not window.push(np.zeros((1, 0), dtype=np.float32)).any()
    with pytest.raises(ValueError, match="positive"):
        SlidingWindow(0, 1)
