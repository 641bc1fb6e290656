"""Descriptions survive the wire, and hostile ones do no harm."""

from __future__ import annotations

from collections.abc import Iterator

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mne_lsl.lsl import StreamInfo
from mne_lsl.lsl.load_liblsl import lib

from rt_mmdf.core.errors import StreamDescriptionError
from rt_mmdf.lsl.description import MAX_LABEL, MAX_LEAVES, MAX_TOTAL, read_description, write_description
from rt_mmdf.lsl.interface import ChannelDescription
from rt_mmdf.lsl.network import _Node


class Tree:
    """An element in plain Python."""

    def __init__(self, name: str, text: str = "") -> None:
        self.name, self.text, self._children = name, text, list[Tree]()

    def children(self) -> Iterator[Tree]:
        return iter(self._children)

    def append(self, name: str, text: str | None = None) -> Tree:
        self._children.append(Tree(name, text or ""))
        return self._children[-1]


LABELS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), max_size=30)
AXIS = st.floats(-0.2, 0.2).filter(lambda value: abs(value) > 0.01)
CHANNELS = st.lists(
    st.builds(ChannelDescription, LABELS.filter(bool), LABELS, LABELS, st.none() | st.tuples(AXIS, AXIS, AXIS)),
    min_size=1,
    max_size=6,
)
PARTS = st.lists(st.sampled_from(["filter", "delay_ms", "a", "b.c", "_d"]), min_size=1, max_size=4).map("/".join)


@given(channels=CHANNELS, paths=st.dictionaries(PARTS, LABELS, max_size=6))
def test_what_is_written_is_read(channels: list[ChannelDescription], paths: dict[str, str]) -> None:
    extra = {p: v for p, v in paths.items() if not any(other != p and other.startswith(f"{p}/") for other in paths)}
    tree = Tree("desc")
    write_description(tree, tuple(channels), extra)
    seen, leaves = read_description(tree, "x", len(channels))
    assert leaves == extra
    for ours, theirs in zip(seen, channels, strict=True):
        assert (ours.name, ours.type, ours.unit) == (theirs.name, theirs.type, theirs.unit)
        assert ours.position == (None if theirs.position is None else pytest.approx(theirs.position, rel=1e-12))


@pytest.mark.parametrize("path", ["", "a//b", "1a", "a b", "channels/x", "a/<b>"])
def test_paths_that_are_no_xml_names_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="description"):
        write_description(Tree("desc"), (), {path: "x"})


@pytest.mark.parametrize("extra", [{"a": "1", "a/b": "2"}, {"a/b": "2", "a": "1"}])
def test_a_leaf_cannot_be_a_branch(extra: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="leaf and a branch"):
        write_description(Tree("desc"), (), extra)


def channels_of(names: list[str]) -> Tree:
    tree = Tree("desc")
    parent = tree.append("channels")
    for name in names:
        parent.append("channel").append("label", name)
    return tree


@pytest.mark.parametrize("listed", [1, 3, 1000])
def test_another_number_of_channels_is_refused(listed: int) -> None:
    with pytest.raises(StreamDescriptionError, match="its samples have 2"):
        read_description(channels_of(["a"] * listed), "x", 2)


def test_no_channels_at_all_is_no_error() -> None:
    assert read_description(Tree("desc"), "x", 2) == ((ChannelDescription(""),) * 2, {})


def test_labels_are_one_bounded_line() -> None:
    (channel, other), _ = read_description(channels_of(["EEG\x1b[2J\n\u202e01\x00", "x" * 10**6]), "x", 2)
    assert channel.name == "EEG[2J01"
    assert other.name == "x" * MAX_LABEL


@pytest.mark.parametrize("value", ["nan", "inf", "", "1e999", "0x10", "9" * 10**6])
def test_positions_that_are_no_numbers_are_unknown(value: str) -> None:
    tree = Tree("desc")
    location = tree.append("channels").append("channel").append("location")
    for axis in "XYZ":
        location.append(axis, value)
    (channel,), _ = read_description(tree, "x", 1)
    assert channel.position is None or np.isfinite(channel.position).all()


def test_metres_in_the_place_of_millimetres_are_recognised() -> None:
    tree = Tree("desc")
    location = tree.append("channels").append("channel").append("location")
    for axis, metres in zip("XYZ", (0.01, 0.02, 0.09), strict=True):
        location.append(axis, str(metres))
    (channel,), _ = read_description(tree, "x", 1)
    assert channel.position == pytest.approx((0.01, 0.02, 0.09))


def test_deep_wide_and_long_descriptions_are_cut() -> None:
    tree = Tree("desc")
    node = tree
    for _ in range(2000):
        node = node.append("deep")
    for _ in range(MAX_LEAVES + 1000):
        tree.append("wide", "x")
    for i in range(12):
        tree.append(f"long{i}", "y" * 10**6)
    _, extra = read_description(tree, "x", 1)
    assert len(extra) <= MAX_LEAVES
    assert sum(map(len, extra.values())) <= MAX_TOTAL


def test_repeated_leaves_are_numbered() -> None:
    tree = Tree("desc")
    for text in ("a", "b"):
        tree.append("reference").append("label", text)
    assert read_description(tree, "x", 1)[1] == {"reference/label": "a", "reference/label[2]": "b"}


def test_mne_lsl_descriptions_are_read() -> None:
    """Parity: what mne-lsl writes from an Info comes back with names, types, FIFF units and positions."""
    info = mne.create_info(["Cz", "MEG 0111", "MEG 0112"], 1000.0, ["eeg", "mag", "grad"])
    for i, ch in enumerate(info["chs"]):
        ch["loc"][:3] = (0.01 * i, 0.02, 0.1)
    written = StreamInfo("x", "", 3, 1000.0, "float32", "")
    written.set_channel_info(info)
    channels, extra = read_description(_Node(lib.lsl_get_desc(written._obj)), "x", 3)
    assert [c.name for c in channels] == info["ch_names"]
    assert [c.type for c in channels] == ["eeg", "mag", "grad"]
    assert {c.unit for c in channels} == {"0"}
    np.testing.assert_allclose([c.position for c in channels], [ch["loc"][:3] for ch in info["chs"]])
    assert extra["filters/lowpass"] == "500.0"


def test_mne_lsl_reads_ours() -> None:
    written = StreamInfo("x", "EEG", 2, 1000.0, "float32", "")
    channels = (ChannelDescription("Fz", "EEG", "uV", (0.0, 0.05, 0.08)), ChannelDescription("Cz", "EEG", "uV"))
    write_description(_Node(lib.lsl_get_desc(written._obj)), channels, {"a/b": "c"})
    assert written.get_channel_names() == ["Fz", "Cz"]
    assert written.get_channel_types() == ["EEG", "EEG"]
    assert written.get_channel_units() == ["uV", "uV"]
