from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag
from rt_mmdf.core.channels import Modality
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.sinks.health import HealthOutlet, to_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@given(report=st.dictionaries(st.text(max_size=80), values, max_size=8), limit=st.integers(4000, 8000))
def test_any_report_is_strict_ascii_json_of_bounded_length(report: dict[str, object], limit: int) -> None:
    text = to_json(report, limit)
    assert len(text.encode("ascii")) <= limit
    json.loads(text, parse_constant=refuse)


def test_values_of_the_engine_become_plain_ones() -> None:
    report = {
        "rate": np.float32(2.5),
        "nan": float("nan"),
        "inf": np.inf,
        "n": np.int64(3),
        "ok": np.bool_(True),
        "array": np.array([1.0, np.nan]),
        "bads": frozenset({"B", "A"}),
        "flag": Flag.GAP,
        Modality.EEG: (1, 2),
        "path": Path("a"),
    }
    assert json.loads(to_json(report)) == {
        "rate": 2.5,
        "nan": None,
        "inf": None,
        "n": 3,
        "ok": True,
        "array": [1.0, None],
        "bads": ["A", "B"],
        "flag": 4,
        "eeg": [1, 2],
        "path": "a",
    }
    with pytest.raises(TypeError, match="object"):
        to_json({"x": object()})


def test_what_makes_a_report_too_long_is_named() -> None:
    got = json.loads(to_json({"small": 1, "big": "x" * 900, "bigger": "y" * 1000}, 200))
    assert got == {"small": 1, "left_out": ["bigger", "big"]}


def test_the_stream_carries_the_text_with_the_stamp_of_now() -> None:
    transport = MemoryTransport(ManualClock(50.0))
    with HealthOutlet(transport, "img-health") as outlet:
        (found,) = transport.resolve(type="Health", timeout_s=0.0)
        inlet = transport.inlet(found)
        outlet.publish({"hops": 7})
        data, stamps = inlet.pull(0.0)
        assert json.loads(data[0, 0]) == {"hops": 7}
        assert stamps.tolist() == [50.0]
    assert transport.resolve(timeout_s=0.0) == []
