from __future__ import annotations

import numpy as np

from rt_mmdf.core.blocks import Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.preprocessing.finite import ReplaceNonfinite

CHANNELS = Channels(("M1", "E1", "M2"), (ChannelType.MAG, ChannelType.EEG, ChannelType.MAG))  # MEG rows are no neighbours


def block(data: list[list[float]], flags: list[int], first: int = 0) -> SensorBlock:
    t = first + np.arange(len(flags), dtype=np.float64)
    return SensorBlock(CHANNELS, np.array(data, dtype=np.float32), t, np.array(flags, dtype=np.uint32), t, first)


def test_a_bad_value_becomes_the_last_good_one_even_over_blocks() -> None:
    nan, inf = np.nan, np.inf
    stage = ReplaceNonfinite()
    out = stage(block([[nan, 1, nan], [1, 2, 3], [4, -inf, inf]], [0, 0, 0]))
    np.testing.assert_array_equal(out.data, [[0, 1, 1], [1, 2, 3], [4, 4, 4]])
    assert out.flags.tolist() == [int(Flag.NONFINITE)] * 3
    out = stage(block([[nan, 5], [nan, 7], [nan, 6]], [0, 0], first=3))
    np.testing.assert_array_equal(out.data, [[1, 5], [3, 7], [4, 6]])
    assert out.flags.tolist() == [int(Flag.NONFINITE), 0]


def test_what_is_missing_stays_missing_and_is_not_flagged_as_wrong() -> None:
    nan, missing = np.nan, int(Flag.EEG_MISSING)
    out = ReplaceNonfinite()(block([[1, 2], [nan, nan], [3, 4]], [missing, missing]))
    assert np.isnan(out.data[1]).all()
    assert out.flags.tolist() == [missing, missing]
    assert out.flags.dtype == np.uint32


def test_good_blocks_pass_untouched() -> None:
    good = block([[1, 2], [3, 4], [5, 6]], [0, 0])
    assert ReplaceNonfinite()(good) is good
