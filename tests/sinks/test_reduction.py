from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag, SourceEstimate, StageStamps
from rt_mmdf.sinks.reduction import Reducer
from rt_mmdf.sinks.settings import Reduction

N_TIMES, FIRST = 60, 7
DATA = np.random.default_rng(0).standard_normal((4, N_TIMES)).astype(np.float32)


def estimate(a: int, b: int, flags: np.ndarray) -> SourceEstimate:
    stamps = StageStamps(*[0.0] * 6)
    return SourceEstimate(DATA[:, a:b], np.arange(a, b) / 100, flags[a:b].astype(np.uint32), FIRST + a, 0, "", stamps)


@pytest.mark.parametrize("reduction", Reduction)
@settings(max_examples=60, deadline=None)
@given(
    decimation=st.integers(1, 9),
    invalid=st.sets(st.integers(0, N_TIMES - 1), max_size=3),
    gaps=st.sets(st.integers(0, N_TIMES - 1), max_size=3),
    cuts=st.lists(st.integers(0, N_TIMES), max_size=8),
)
def test_each_row_stands_for_its_whole_interval_however_the_hops_are_cut(
    reduction: Reduction, decimation: int, invalid: set[int], gaps: set[int], cuts: list[int]
) -> None:
    flags = np.zeros(N_TIMES, dtype=np.uint32)
    flags[list(invalid)] |= np.uint32(Flag.INVALID)
    flags[list(gaps)] |= np.uint32(Flag.GAP)
    reducer = Reducer(4, decimation, reduction)
    rows = [reducer(estimate(a, b, flags)) for a, b in pairwise([0, *sorted(cuts), N_TIMES])]
    index = np.concatenate([r.index for r in rows])
    data = np.vstack([r.data for r in rows])
    got_flags = np.concatenate([r.flags for r in rows])
    absolute = np.arange(FIRST, FIRST + N_TIMES)
    np.testing.assert_array_equal(index, absolute[absolute % decimation == decimation - 1])
    np.testing.assert_array_equal(np.concatenate([r.times for r in rows]), (index - FIRST) / 100)
    for i, row, flag in zip(index, data, got_flags, strict=True):
        interval = slice(max(0, i - FIRST - decimation + 1), i - FIRST + 1)
        values = DATA[:, interval]
        expected_flags = np.bitwise_or.reduce(flags[interval])
        if values.shape[1] < decimation and reduction is not Reduction.LATEST:
            expected_flags |= np.uint32(Flag.INVALID)
        assert flag == expected_flags
        if flag & Flag.INVALID:
            assert np.isnan(row).all()
            continue
        expected = {
            Reduction.LATEST: values[:, -1],
            Reduction.RMS: np.sqrt((values.astype(float) ** 2).mean(axis=1)),
            Reduction.PEAK: values[np.arange(4), np.abs(values).argmax(axis=1)],
        }[reduction if decimation > 1 else Reduction.LATEST]
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_after_skipped_hops_an_interval_that_is_not_whole_is_invalid() -> None:
    flags = np.zeros(N_TIMES, dtype=np.uint32)
    reducer = Reducer(4, 10, Reduction.RMS)
    reducer(estimate(0, 17, flags))
    rows = reducer(estimate(25, 43, flags))  # absolute 32 to 49: the interval 30 to 39 lacks two, 40 to 49 is whole
    assert rows.index.tolist() == [39, 49]
    assert [bool(flag & Flag.INVALID) for flag in rows.flags] == [True, False]
