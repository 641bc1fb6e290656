"""XDF files: what is written reads back bit by bit, however it was cut, and up to wherever the file ends."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
from collections.abc import Callable
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


def test_damage_in_the_middle_is_stepped_over_to_the_next_boundary(tmp_path: Path) -> None:
    chunks = whole_file("float32", 3, [10, 20, 30], 0)[0]
    damaged = bytearray(b"".join(chunks))
    at = damaged.index(chunks[2])
    damaged[at] = 4
    damaged[at + 1 : at + 5] = struct.pack("<I", 1 << 30)
    path = tmp_path / "a.xdf"
    path.write_bytes(bytes(damaged))
    file, contents = xdf.open_whole(path)
    with file:
        whole = file.read()
    assert contents.n_whole == contents.n_bytes == len(damaged)
    assert contents.n_damaged == len(damaged) - len(whole) > 0
    (stream,) = load(whole)
    np.testing.assert_array_equal(stream["time_stamps"], whole_file("float32", 3, [10, 20, 30], 0)[2][10:])


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


# files that want harm


def chunk(tag: int, number: int, content: bytes) -> bytes:
    return struct.pack("<BIHI", 4, 6 + len(content), tag, number) + content


def header(n_channels: object = 1, sfreq: object = 100, form: str = "float32", more: str = "") -> bytes:
    return (
        f"<info><name>a</name><type>EEG</type><channel_count>{n_channels}</channel_count><nominal_srate>{sfreq}"
        f"</nominal_srate><channel_format>{form}</channel_format><desc/>{more}</info>"
    ).encode()


def opened(path: Path, *chunks: bytes, packed: bool = False) -> tuple[bytes, xdf.Contents]:
    """What a reader sees of a file of these chunks."""
    content = xdf.file_header({}) + b"".join(chunks)
    path.write_bytes(gzip.compress(content) if packed else content)
    file, contents = xdf.open_whole(path)
    with file:
        return file.read(), contents


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f'<!DOCTYPE info [<!ENTITY l0 "ha">{LAUGHS}]><info>&l9;</info>'.encode(), "declares a document type"),
        (b'<!DOCTYPE info SYSTEM "file:///etc/passwd"><info/>', "declares a document type"),
        (b'<!DOCTYPE info [<!ENTITY x SYSTEM "file:///etc/passwd">]><info>&x;</info>', "declares a document type"),
        (header(more="<a>" * 40 + "</a>" * 40), "more than 32 elements deep"),
        (header(more="<a/>" * (xdf.MAX_ELEMENTS + 1)), f"more than {xdf.MAX_ELEMENTS} of them"),
        (header()[:-3], "its XML is damaged"),
        (header(n_channels=0), "1 to 65536 channels"),
        (header(n_channels=2**31), "1 to 65536 channels"),
        (header(n_channels="9" * 5000), "1 to 65536 channels"),
        (header(sfreq="nan"), "0 to 1e[+]06 Hz"),
        (header(sfreq=-1), "0 to 1e[+]06 Hz"),
        (header(form="object"), "one of int8"),
        (header(form="\u202eobject"), r"channel_format 'object'"),
    ],
)
def test_headers_that_no_reader_should_be_given_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        opened(tmp_path / "a.xdf", chunk(2, 1, content))


def test_footers_and_file_headers_with_entities_are_not_seen(tmp_path: Path) -> None:
    laughs = f'<!DOCTYPE info [<!ENTITY l0 "ha">{LAUGHS}]><info>&l9;</info>'.encode()
    seen, contents = opened(tmp_path / "a.xdf", chunk(2, 1, header()), chunk(6, 1, laughs), xdf._chunk(1, laughs))
    assert b"DOCTYPE" not in seen
    assert contents.n_damaged > 0


def count(n: int) -> bytes:
    return b"\x08" + struct.pack("<Q", n)


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("float32", count(2**62)),
        ("float32", count(2**40) + bytes(1000)),
        ("int8", count(10**9) + bytes(10_000)),
        ("string", count(10**8) + bytes(10_000)),
        ("string", count(1) + b"\x00\x08" + struct.pack("<Q", 2**62)),
        ("string", count(2) + b"\x00\x01\x05abc\x00\x01"),
        ("float32", count(1) + b"\x00" + bytes(5)),
        ("float32", count(1) + b"\x07" + bytes(12)),
        ("float32", b"\x03\x00\x00\x00"),
        ("float32", b""),
    ],
)
def test_counts_and_lengths_are_not_believed(tmp_path: Path, form: str, content: bytes) -> None:
    """pyxdf makes room for as many samples as a chunk says it has: such chunks are not seen."""
    sound = xdf.samples(1, np.ones((3, 1), np.float32) if form == "float32" else np.ones((3, 1), np.int8), np.arange(3.0))
    sound = xdf.samples(1, np.full((3, 1), "x", object), np.arange(3.0)) if form == "string" else sound
    chunks = (chunk(2, 1, header(form=form)), chunk(3, 1, content), sound)
    tracemalloc.start()
    try:
        seen, contents = opened(tmp_path / "a.xdf", *chunks)
        (stream,) = load(seen)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6 + 64 * (tmp_path / "a.xdf").stat().st_size
    assert list(stream["time_stamps"]) == [0.0, 1.0, 2.0]
    assert contents.n_damaged == len(chunks[1])


def test_samples_without_stamps_and_with_some_are_seen(tmp_path: Path) -> None:
    body = count(3) + b"\x08" + struct.pack("<df", 5.0, 1.0) + (b"\x00" + struct.pack("<f", 2.0)) * 2
    seen, _ = opened(tmp_path / "a.xdf", chunk(2, 1, header()), chunk(3, 1, body), chunk(3, 1, count(0)))
    assert load(seen)[0]["time_stamps"].tolist() == pytest.approx([5.0, 5.01, 5.02])


def test_chunks_of_no_stream_and_second_headers(tmp_path: Path) -> None:
    orphan = xdf.samples(9, np.ones((3, 1), np.float32), np.arange(3.0))
    early = xdf.samples(1, np.ones((3, 1), np.float32), np.arange(3.0))
    seen, _ = opened(tmp_path / "a.xdf", orphan, early, chunk(2, 1, header()))
    assert len(load(seen)[0]["time_stamps"]) == 0
    with pytest.raises(ValueError, match="has another header before"):
        opened(tmp_path / "a.xdf", chunk(2, 1, header()), chunk(2, 1, header(n_channels=2)))
    with pytest.raises(ValueError, match="beyond the first 256"):
        opened(tmp_path / "a.xdf", *(chunk(2, i, header()) for i in range(257)))


def test_clocks_that_jump_all_the_time_are_refused(tmp_path: Path) -> None:
    """pyxdf fits each part between two jumps anew, for 30 to 40 ms: 9 s for a file of 20 kB with 800 measurements."""
    jumps = [xdf.clock_offset(1, ClockOffset(float(i % 2), 0.0, 0.0)) for i in range(300)]
    with pytest.raises(ValueError, match="its clock jumps more than 100 times"):
        opened(tmp_path / "a.xdf", chunk(2, 1, header()), *jumps)
    odd = xdf.clock_offset(1, ClockOffset(float("nan"), 0.0, 0.0))
    seen, contents = opened(tmp_path / "a.xdf", chunk(2, 1, header()), odd, *jumps[:50])
    assert (load(seen)[0]["clock_times"], contents.n_damaged) == ([float(i % 2) for i in range(50)], len(odd))


def test_only_streams_that_are_wanted_are_seen(tmp_path: Path) -> None:
    chunks = [chunk(2, i, header()) + xdf.samples(i, np.ones((2, 1), np.float32), np.arange(2.0)) for i in (1, 2)]
    opened(tmp_path / "a.xdf", *chunks)
    file, _ = xdf.open_whole(tmp_path / "a.xdf", lambda headers: [2])
    with file:
        assert file.read() == xdf.MAGIC + chunks[1]


def test_packed_files_unpack_to_what_they_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [chunk(2, 1, header()), xdf.samples(1, np.ones((2, 1), np.float32), np.arange(2.0))]
    plain, _ = opened(tmp_path / "a.xdf", *chunks)
    assert opened(tmp_path / "a.xdfz", *chunks, packed=True)[0] == plain
    monkeypatch.setattr(xdf, "_FREE_BYTES", 1 << 16)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="unpacks to more than"):
            opened(tmp_path / "b.xdfz", *chunks, bytes(1 << 24), packed=True)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "make", [lambda: xdf.read_xml("<a>x<b/>y</a>", "here"), lambda: xdf.read_xml(b"<a>x<b/>y</a>", "here")]
)
def test_xml_reads_as_the_standard_library_reads_it(make: Callable[[], Any]) -> None:
    element = make()
    assert (element.tag, element.text, element[0].tag, element[0].tail) == ("a", "x", "b", "y")
