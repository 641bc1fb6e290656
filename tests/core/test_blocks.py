from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from rt_mmdf.core import errors
from rt_mmdf.core.blocks import MISSING, Flag, RawBlock, SensorBlock, SourceEstimate, StageStamps
from rt_mmdf.core.channels import Channels, ChannelType, Modality


def test_flags_have_the_values_that_are_on_the_wire() -> None:
    assert {flag.name: flag.value for flag in Flag} == {
        "EEG_MISSING": 1,
        "MEG_MISSING": 2,
        "GAP": 4,
        "NONFINITE": 8,
        "SETTLING": 16,
        "OPERATOR_PENDING": 32,
        "CLOCK_UNCERTAIN": 64,
        "INVALID": 128,
        "FALLBACK": 256,
        "CHANNEL_SUSPECT": 512,
    }
    assert set(MISSING) == set(Modality)


def test_the_names_of_the_stamps_are_their_fields_in_order() -> None:
    assert tuple(field.name for field in fields(StageStamps)) == StageStamps.NAMES
    assert StageStamps(1, 2, 3, 4, 5, 6, 7).as_tuple() == (1, 2, 3, 4, 5, 6, 7)
    assert np.isnan(StageStamps(1, 2, 3, 4, 5, 6).published)


def test_blocks_count_their_samples() -> None:
    channels = Channels(("E",), (ChannelType.EEG,))
    data, times, flags = np.zeros((1, 3), dtype=np.float32), np.zeros(3), np.zeros(3, dtype=np.uint32)
    block = SensorBlock(channels, data, times, flags, times, 7)
    assert (block.n_times, block.stop) == (3, 10)
    assert RawBlock(data, times, times, 0).n_times == 3
    assert SourceEstimate(data, times, flags, 0, 0, "", StageStamps(*[0.0] * 6)).n_times == 3
    with pytest.raises(AttributeError):
        block.first = 8  # type: ignore[misc]


def test_the_tree_in_the_docstring_is_the_tree_of_errors() -> None:
    drawn: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.strip(" |+-").split(" ")[0]
        if not hasattr(errors, name) or not name:
            continue
        column = line.index(name)
        path = [(at, above) for at, above in path if at < column]
        drawn[name] = path[-1][1] if path else "Exception"
        path.append((column, name))
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert drawn == real
