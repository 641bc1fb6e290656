"""Operator marks: what is written is read, and nothing else is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.sinks.marks import MAX_JSON, Mark, MarksOutlet, read_mark

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["stamp", "text", "command", "x"]), inner),
    max_leaves=8,
)


@given(stamp=st.floats(allow_nan=False, allow_infinity=False), text=st.text(max_size=400))
def test_what_is_written_is_read(stamp: float, text: str) -> None:
    transport = MemoryTransport(ManualClock(5.0))
    with MarksOutlet(transport, "m") as outlet:
        inlet = transport.inlet(transport.resolve(name="m")[0])
        mark = outlet.publish(text, stamp)
        data, stamps = inlet.pull(0.0)
    assert stamps.tolist() == [stamp]
    assert data[0, 0].isascii()
    assert len(data[0, 0]) <= MAX_JSON
    assert read_mark(data[0, 0]) == mark
    assert len(mark.text) <= 200
    assert "\n" not in mark.text


@given(value=anything)
def test_whatever_comes_is_a_mark_or_nothing(value: object) -> None:
    mark = read_mark(json.dumps(value))
    assert mark is None or (isinstance(mark, Mark) and isinstance(value, dict) and read_mark(mark.to_json()) == mark)


@given(text=st.text(max_size=60))
def test_text_that_is_no_json_is_nothing(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        assert read_mark(text) is None


@pytest.mark.parametrize(
    "text",
    ['{"stamp": 1e999}', '{"stamp": ' + "9" * 400 + "}", "[" * 4000, "{}" + " " * MAX_JSON, '{"stamp": 1, "command": []}'],
)
def test_hostile_texts_are_nothing(text: str) -> None:
    assert read_mark(text) is None


def test_a_mark_is_of_now_unless_told_otherwise_and_each_view_has_its_own_stream() -> None:
    transport = MemoryTransport(ManualClock(5.0))
    with MarksOutlet(transport, "m") as one, MarksOutlet(transport, "m") as other:
        assert one.publish("a", command="reset-average") == Mark(5.0, "a", "reset-average")
        assert one.stream.source_id != other.stream.source_id
        assert {d.type for d in transport.resolve(name="m")} == {"Markers"}
