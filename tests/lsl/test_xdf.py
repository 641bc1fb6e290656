"""XDF files: what is written reads back bit by bit, however it was cut, and up to wherever the file ends."""

from __future__ import annotations

import io
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.lsl import xdf
from rt_mmdf.lsl.interface import ChannelDescription, ClockOffset, StreamDescription

pyxdf = pytest.importorskip("pyxdf")

N = 40
DTYPES = ("int16", "int32", "int64", "float32", "float64", "string")


def described(dtype: str, n_channels: int, name: str = "amp") -> StreamDescription:
    channels = tuple(ChannelDescription(f"Ch <{i}> & ü", "EEG", "µV", (0.01 * i, 0.0, 0.1)) for i in range(n_channels))
    return StreamDescription(
        name,
        "EEG",
        "serial 1",
        250.0,
        dtype,
        channels,
        {"acquisition/manufacturer": "A\x01B", "setup[2]": "x"},
        "there",
        "u1",
    )


def values(dtype: str, n_channels: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if dtype == "string":
        texts = np.empty((N, n_channels), dtype=object)
        texts[:] = [["ü" * int(n) for n in row] for row in rng.integers(0, 300, (N, n_channels))]
        return texts
    if dtype.startswith("int"):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, (N, n_channels), dtype=dtype)
    return rng.standard_normal((N, n_channels)).astype(dtype)


def load(content: bytes) -> list[Any]:
    """Streams as they are in the file, without anything that pyxdf makes of the stamps."""
    streams, _ = pyxdf.load_xdf(io.BytesIO(content), synchronize_clocks=False, dejitter_timestamps=False, verbose=False)
    return streams


def whole_file(dtype: str, n_channels: int, cuts: list[int], seed: int) -> tuple[list[bytes], Any, Any, list[ClockOffset]]:
    """Chunks of a file with one stream, cut as told; its samples, stamps and clock offsets."""
    data, stamps = values(dtype, n_channels, seed), np.random.default_rng(seed).random(N) * 1e5
    offsets = [ClockOffset(at=1e5 / 3 + i, offset=-17.0 / 7 - i, uncertainty=1e-4) for i in range(3)]
    chunks = [xdf.file_header({"writer": "test"}), xdf.stream_header(7, described(dtype, n_channels), 1.5, {"a/b": "c"})]
    edges = [0, *sorted(cuts), N]
    for i, (start, stop) in enumerate(pairwise(edges)):
        chunks.append(xdf.samples(7, data[start:stop], stamps[start:stop]))
        if i < len(offsets):
            chunks += [xdf.clock_offset(7, offsets[i]), xdf.boundary()]
    offsets = offsets[: len(edges) - 1]
    chunks.append(xdf.stream_footer(7, stamps[0], stamps[-1], N, offsets))
    return chunks, data, stamps, offsets


cuts = st.lists(st.integers(0, N), max_size=6)


@given(dtype=st.sampled_from(DTYPES), n_channels=st.integers(1, 5), cuts=cuts, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_blocks_cut_anyhow_read_back_bit_by_bit(dtype: str, n_channels: int, cuts: list[int], seed: int) -> None:
    chunks, data, stamps, offsets = whole_file(dtype, n_channels, cuts, seed)
    (stream,) = load(b"".join(chunks))
    assert stream["time_stamps"].tobytes() == stamps.tobytes()
    if dtype == "string":
        assert stream["time_series"] == data.tolist()
    else:
        assert stream["time_series"].dtype == dtype
        assert stream["time_series"].tobytes() == data.tobytes()
    assert stream["clock_times"] == [measured.at for measured in offsets]
    assert stream["clock_values"] == [measured.offset for measured in offsets]
    assert int(stream["footer"]["info"]["sample_count"][0]) == N


@given(dtype=st.sampled_from(DTYPES), n_channels=st.integers(1, 5), cuts=cuts, seed=st.integers(0, 9), where=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_a_file_that_ends_anywhere_reads_up_to_its_last_whole_chunk(
    dtype: str, n_channels: int, cuts: list[int], seed: int, where: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chunks, data, stamps, _ = whole_file(dtype, n_channels, cuts, seed)
    content = b"".join(chunks)
    n_bytes = 4 + round(where * (len(content) - 4))
    edges = np.cumsum([4, len(chunks[0]) - 4, *map(len, chunks[1:])])
    path = tmp_path_factory.mktemp("cut") / "a.xdf"
    path.write_bytes(content[:n_bytes])
    file, contents = xdf.open_whole(path)
    with file:
        whole = file.read()
    assert (contents.n_whole, contents.n_bytes) == (edges[edges <= n_bytes].max(), n_bytes)
    assert whole == content[: contents.n_whole]
    assert list(contents.headers) == ([7] if n_bytes >= edges[2] else [])
    streams = load(whole)
    if contents.headers:
        n = len(streams[0]["time_stamps"])
        ends = [0, *sorted(cuts), N]
        n_chunks = sum(1 for a, b in pairwise(edges) if b <= n_bytes and content[a + 1 + content[a] :][:2] == b"\x03\x00")
        assert n == ends[n_chunks]
        np.testing.assert_array_equal(streams[0]["time_stamps"], stamps[:n])
        np.testing.assert_array_equal(
            np.array(streams[0]["time_series"], dtype=data.dtype).reshape(data[:n].shape), data[:n]
        )


def test_damage_in_the_middle_is_left_to_the_reader_who_finds_the_next_boundary(tmp_path: Path) -> None:
    chunks = whole_file("float32", 3, [10, 20, 30], 0)[0]
    damaged = bytearray(b"".join(chunks))
    at = damaged.index(chunks[2])
    damaged[at] = 4
    damaged[at + 1 : at + 5] = struct.pack("<I", 1 << 30)
    path = tmp_path / "a.xdf"
    path.write_bytes(bytes(damaged))
    file, contents = xdf.open_whole(path)
    file.close()
    assert contents.n_whole == contents.n_bytes == len(damaged)


def test_zeros_after_the_last_chunk_are_left_out(tmp_path: Path) -> None:
    content = b"".join(whole_file("float32", 3, [10], 0)[0])
    (tmp_path / "a.xdf").write_bytes(content + bytes(4096))
    file, contents = xdf.open_whole(tmp_path / "a.xdf")
    file.close()
    assert contents.n_whole == len(content)


def test_the_description_reads_back(tmp_path: Path) -> None:
    (stream,) = load(b"".join(whole_file("float32", 2, [], 0)[0]))
    info = stream["info"]
    assert [info[key][0] for key in ("name", "type", "source_id", "hostname", "uid")] == [
        "amp",
        "EEG",
        "serial 1",
        "there",
        "u1",
    ]
    assert (float(info["nominal_srate"][0]), info["channel_format"][0]) == (250.0, "float32")
    desc = info["desc"][0]
    assert [c["label"][0] for c in desc["channels"][0]["channel"]] == ["Ch <0> & ü", "Ch <1> & ü"]
    assert [c["unit"][0] for c in desc["channels"][0]["channel"]] == ["µV", "µV"]
    assert desc["acquisition"][0]["manufacturer"] == ["AB"]  # XML has no control characters
    assert desc["setup"] == ["x"]
    assert desc["a"][0]["b"] == ["c"]


def test_what_is_no_xdf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xdf").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="begins with"):
        xdf.open_whole(tmp_path / "a.xdf")


@pytest.mark.parametrize("n", [255, 256, 253, 254])
def test_lengths_at_the_edge_of_a_byte(n: int) -> None:
    header = xdf.file_header({})
    text = np.array([["x" * n]], dtype=object)
    content = header + xdf.stream_header(1, described("string", 1), 0.0, {}) + xdf.samples(1, text, np.array([1.0]))
    assert load(content)[0]["time_series"] == [["x" * n]]
