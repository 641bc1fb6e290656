from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.preprocessing.decimate import Decimate

CHANNELS = Channels(("E", "M"), (ChannelType.EEG, ChannelType.MAG))


def block(first: int, flags: list[int]) -> SensorBlock:
    t = first + np.arange(len(flags), dtype=np.float64)
    return SensorBlock(CHANNELS, np.vstack([t, -t]).astype(np.float32), t, np.array(flags, dtype=np.uint32), t, first)


@settings(deadline=None)
@given(first=st.integers(0, 30), n=st.integers(0, 60), factor=st.integers(1, 7), where=st.integers(0, 59))
def test_keeps_multiples_of_the_factor_and_every_flag(first: int, n: int, factor: int, where: int) -> None:
    flags = [0] * n
    if where < n:
        flags[where] = int(Flag.NONFINITE)
    out = Decimate(factor, 1000.0, 10.0)(block(first, flags))
    index = [i for i in range(first, first + n) if i % factor == 0]
    np.testing.assert_array_equal(out.times, index)
    np.testing.assert_array_equal(out.data[0], index)
    assert not index or out.first * factor == index[0]
    flagged = [i for i, flag in zip(index, out.flags, strict=True) if flag]
    taker = [i for i in index if i >= first + where][:1] if where < n else []
    assert flagged == taker


def test_a_flag_waits_for_the_next_kept_sample_in_a_later_block() -> None:
    stage = Decimate(4, 1000.0, 10.0)
    assert stage(block(1, [0, int(Flag.GAP)])).n_times == 0
    assert stage(block(3, [0, 0])).flags.tolist() == [int(Flag.GAP)]


def test_a_modality_that_becomes_missing_by_a_dropped_sample_is_nan() -> None:
    out = Decimate(2, 1000.0, 10.0)(block(1, [int(Flag.MEG_MISSING), 0, 0, 0]))
    assert np.isnan(out.data[1, 0])
    assert np.isfinite(out.data[:, 1]).all()
    assert np.isfinite(out.data[0]).all()


@pytest.mark.parametrize(("factor", "high"), [(0, 40.0), (4, None), (4, 101.0)])
def test_what_would_fold_back_is_refused(factor: int, high: float | None) -> None:
    with pytest.raises(ConfigurationError, match="decimation"):
        Decimate(factor, 1000.0, high)


def test_one_keeps_all_without_a_low_pass() -> None:
    given_block = block(5, [0, 1, 0])
    assert Decimate(1, 1000.0, None)(given_block) is given_block
