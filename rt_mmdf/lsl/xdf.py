"""XDF, the file format of the Lab Streaming Layer, as bytes: what LabRecorder writes and pyxdf reads.

After the magic ``XDF:`` a file is a sequence of chunks: one byte that says how long the length is (1, 4 or 8 bytes), the
length of what follows, a tag of 2 bytes, the content. All numbers are little-endian.
Specification: github.com/sccn/xdf/wiki/Specifications.

==  ============  ===================================================================================================
1   FileHeader    XML
2   StreamHeader  number of the stream (4 bytes), XML with name, type, rate, format and description
3   Samples       number of the stream, count, then for each sample 8, its stamp, its values (strings with lengths)
4   ClockOffset   number of the stream, when it was measured on the sender's clock, what to add to the sender's stamps
5   Boundary      a fixed signature, by which a reader finds the next chunk after damage
6   StreamFooter  number of the stream, XML with first and last stamp and count
==  ============  ===================================================================================================

A file may end anywhere, be damaged in the middle, and come from anybody: `open_whole` lets a reader see nothing but chunks
that are whole and hold what they say they hold. A reader that believes the lengths and counts in them allocates, for every
byte of the file, no more than some tens.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float64
from rt_mmdf.lsl.description import MAX_CHANNELS, MAX_SFREQ_HZ, clean_label, write_description
from rt_mmdf.lsl.interface import ClockOffset, StreamDescription

MAGIC = b"XDF:"
FILE_HEADER, STREAM_HEADER, SAMPLES, CLOCK_OFFSET, BOUNDARY, STREAM_FOOTER = range(1, 7)
SIGNATURE = bytes.fromhex("43a546dccbf5410fb30ed5467383cbe4")
FORMATS = {
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "float32": "float32",
    "float64": "double64",
    "string": "string",
}
"""Format on file by type of the samples."""

PACKED = ".xdfz"
"""Suffix of a file that gzip has packed."""
MAX_STREAMS = 256
MAX_XML = 1 << 25
"""Longest header or footer of a stream, bytes."""
MAX_ELEMENTS = 1 << 20
"""Elements in all headers, and in all footers."""
MAX_DEPTH = 32
MAX_RESETS = 100
"""Jumps of a sender's clock in a file: a reader fits each part between two of them, which takes its time."""
MAX_UNPACKED = 1 << 32
MAX_RATIO = 50
"""Longest content of a packed file, bytes, and how many times as long as packed it may be where it is above 64 MB."""

_ITEM_BYTES = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "float32": 4, "double64": 8, "string": 0}
_OFFSET = struct.Struct("<dd")
_FREE_BYTES = 1 << 26
_SEARCH_BYTES = 1 << 20
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 has no such characters
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]")
_NUMBER = re.compile(r"\[\d+\]$")  # how `read_description` tells elements of one path apart


def file_header(leaves: Mapping[str, str]) -> bytes:
    """The magic and the first chunk, with further leaves of its XML."""
    root = ElementTree.Element("info")
    _leaf(root, "version", "1.0")
    for name, text in leaves.items():
        _leaf(root, name, text)
    return MAGIC + _chunk(FILE_HEADER, _xml(root))


def stream_header(number: int, description: StreamDescription, created_at: float, leaves: Mapping[str, str]) -> bytes:
    """Begins a stream.

    Parameters
    ----------
    number : int
        Of the stream in the file.
    created_at : float
        Seconds on this machine's LSL clock.
    leaves : mapping of str to str
        Further leaves of the description, by path, beside those that the stream has itself.

    Raises
    ------
    ValueError
        Samples of a type that XDF does not have.
    """
    if description.dtype not in FORMATS:
        raise ValueError(f"stream {description.name!r}: samples of type {description.dtype}; XDF has {', '.join(FORMATS)}")
    root = ElementTree.Element("info")
    _leaf(root, "name", description.name)
    _leaf(root, "type", description.type)
    _leaf(root, "channel_count", str(description.n_channels))
    _leaf(root, "nominal_srate", repr(float(description.sfreq)))
    _leaf(root, "channel_format", FORMATS[description.dtype])
    _leaf(root, "source_id", description.source_id)
    _leaf(root, "version", "1.1")
    _leaf(root, "created_at", repr(float(created_at)))
    _leaf(root, "uid", description.uid)
    _leaf(root, "hostname", description.hostname)
    desc = ElementTree.SubElement(root, "desc")
    write_description(_Node(desc), description.channels, {})
    branches = {"": desc}
    for path, text in {**description.extra, **leaves}.items():
        *parts, last = path.split("/")
        for i, part in enumerate(parts):
            here = "/".join(parts[: i + 1])
            if here not in branches:
                branches[here] = ElementTree.SubElement(branches["/".join(parts[:i])], _name(part))
        _leaf(branches["/".join(parts)], last, text)
    return _chunk(STREAM_HEADER, struct.pack("<I", number) + _xml(root))


def samples(number: int, data: NDArray[np.generic], stamps: Float64) -> bytes:
    """Samples as they came, each with its stamp.

    Parameters
    ----------
    data : (n_times, n_channels)
        Numbers of the stream's type, or an object array of strings.
    stamps : (n_times,) float64
    """
    n_times, n_channels = data.shape
    head = struct.pack("<IBI", number, 4, n_times)
    times = np.ascontiguousarray(stamps, dtype="<f8")
    if data.dtype == object:
        parts = [head]
        for row, stamp in zip(data, times, strict=True):
            parts += [b"\x08", stamp.tobytes()]
            for text in row:
                content = str(text).encode("utf-8", errors="replace")
                parts += [_length(len(content)), content]
        return _chunk(SAMPLES, b"".join(parts))
    values = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
    n_bytes = n_channels * values.dtype.itemsize
    rows = np.empty((n_times, 9 + n_bytes), dtype=np.uint8)
    rows[:, 0] = 8
    rows[:, 1:9] = times.view(np.uint8).reshape(n_times, 8)
    rows[:, 9:] = values.view(np.uint8).reshape(n_times, n_bytes)
    return _chunk(SAMPLES, head, rows.tobytes())


def clock_offset(number: int, measured: ClockOffset) -> bytes:
    """One measurement of the sender's clock, as it was measured."""
    return _chunk(CLOCK_OFFSET, struct.pack("<Idd", number, measured.at, measured.offset))


def boundary() -> bytes:
    """What readers look for after damage."""
    return _chunk(BOUNDARY, SIGNATURE)


def stream_footer(number: int, first: float, last: float, n_samples: int, offsets: Iterable[ClockOffset]) -> bytes:
    """Ends a stream: first and last stamp, how many samples, and the clock offsets again, with their uncertainties."""
    root = ElementTree.Element("info")
    _leaf(root, "first_timestamp", repr(float(first)))
    _leaf(root, "last_timestamp", repr(float(last)))
    _leaf(root, "sample_count", str(n_samples))
    parent = ElementTree.SubElement(root, "clock_offsets")
    for measured in offsets:
        node = ElementTree.SubElement(parent, "offset")
        _leaf(node, "time", repr(float(measured.at)))
        _leaf(node, "value", repr(float(measured.offset)))
        _leaf(node, "uncertainty", repr(float(measured.uncertainty)))
    return _chunk(STREAM_FOOTER, struct.pack("<I", number) + _xml(root))


@dataclass(frozen=True)
class Stream:
    """One stream of a file, by its header.

    header : the element ``info``
    at : place of the header in the file
    n_channels : of a sample
    item_bytes : of one value; 0 for text
    """

    header: ElementTree.Element
    at: int
    n_channels: int
    item_bytes: int


@dataclass(frozen=True)
class Contents:
    """What is in a file.

    n_whole : place behind the last whole chunk
    n_bytes : length of the file, unpacked
    streams : by their numbers
    n_damaged : bytes before `n_whole` that are no chunk, or chunks of a wanted stream that contradict themselves
    """

    n_whole: int
    n_bytes: int
    streams: dict[int, Stream]
    n_damaged: int = 0

    @property
    def headers(self) -> dict[int, ElementTree.Element]:
        """Header of each stream by its number, the element ``info``."""
        return {number: stream.header for number, stream in self.streams.items()}


def scan(file: BinaryIO, n_bytes: int) -> Contents:
    """Walk over the chunks of a file without reading the samples.

    Raises
    ------
    ValueError
        It does not begin as an XDF file does, or the header of a stream cannot be used.
    """
    file.seek(0)
    if (seen := file.read(4)) != MAGIC:
        raise ValueError(f"it begins with {seen!r}, {MAGIC!r} is expected")
    streams: dict[int, Stream] = {}
    whole, found, room = len(MAGIC), 0, _Room()
    for chunk in _chunks(file, n_bytes):
        whole = chunk.stop
        found += chunk.stop - chunk.at
        if chunk.tag == STREAM_HEADER and chunk.length >= 4:
            number = chunk.number(file)
            where = f"stream {number}, whose header is at byte {chunk.at}"
            if number in streams or len(streams) == MAX_STREAMS:
                reason = "has another header before" if number in streams else f"is beyond the first {MAX_STREAMS}"
                raise ValueError(f"{where}, {reason}; one header for each of at most {MAX_STREAMS} streams is expected")
            if chunk.length - 4 > MAX_XML:
                raise ValueError(f"{where}: {chunk.length - 4} bytes of XML; at most {MAX_XML} are expected")
            text = file.read(chunk.length - 4).decode("utf-8", errors="replace")
            streams[number] = _stream(read_xml(text, where, room), chunk.at, where)
    return Contents(whole, n_bytes, streams, whole - len(MAGIC) - found)


Choose = Callable[[Mapping[int, ElementTree.Element]], Collection[int]]
"""Which streams are wanted, by number, from their headers."""


def open_whole(path: Path, choose: Choose | None = None) -> tuple[io.BufferedReader, Contents]:
    """Open a file for reading what is whole and sound of it; the file itself is not changed.

    What is beyond the last whole chunk, damage in the middle, and chunks that contradict themselves or belong to no stream
    are not seen by who reads. Packed files (``.xdfz``) are unpacked as they are read.

    Parameters
    ----------
    choose : callable | None
        Names the streams whose chunks are wanted; None: all.

    Raises
    ------
    OSError, EOFError, ValueError
        It cannot be read, is no XDF file, or is one that no reader should be given.
    """
    file: Any = gzip.GzipFile(path) if path.suffix.lower() == PACKED else path.open("rb")
    try:
        contents = scan(file, _length_of(file, path))
        wanted = contents.streams.keys() if choose is None else choose(contents.headers)
        parts, n_unsound = _sound_parts(
            file, contents, {number: contents.streams[number] for number in wanted}, choose is None
        )
    except BaseException:
        file.close()
        raise
    contents = replace(contents, n_damaged=contents.n_damaged + n_unsound)
    return io.BufferedReader(_Parts(file, parts), 1 << 20), contents


def read_xml(content: str | bytes, where: str, room: _Room | None = None) -> ElementTree.Element:
    """XML as XDF has it: elements and text, no document type and so no entities of its own, bounded size and depth.

    Raises
    ------
    ValueError
        It is something else.
    """
    room = room or _Room()
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("utf-8" if isinstance(content, str) else None)
    parser.buffer_text = True
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        room.left -= 1
        if depth > MAX_DEPTH or room.left < 0:
            raise ValueError(
                f"{where}: its XML is more than {MAX_DEPTH} elements deep, or a file with more than {MAX_ELEMENTS} of them"
            )
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*declared: object) -> None:
        raise ValueError(
            f"{where}: its XML declares a document type, with which texts grow without bounds; none is expected"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except expat.ExpatError as error:
        raise ValueError(f"{where}: its XML is damaged ({error})") from error


@dataclass
class _Room:
    """Elements that may still come."""

    left: int = MAX_ELEMENTS


@dataclass(frozen=True, slots=True)
class _Chunk:
    """at : its first byte; content : what follows the tag; stop : the byte behind it"""

    at: int
    tag: int
    content: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.content

    def number(self, file: BinaryIO) -> int:
        """Of the stream that it belongs to; `file` is behind it then."""
        file.seek(self.content)
        return int(struct.unpack("<I", file.read(4))[0])


def _length_of(file: Any, path: Path) -> int:
    """Bytes of the content; of a packed file at most `MAX_UNPACKED`, ValueError otherwise."""
    if not isinstance(file, gzip.GzipFile):
        return int(file.seek(0, io.SEEK_END))
    limit = min(MAX_UNPACKED, max(_FREE_BYTES, MAX_RATIO * path.stat().st_size))
    n_bytes = 0
    while block := file.read(_SEARCH_BYTES):
        n_bytes += len(block)
        if n_bytes > limit:
            raise ValueError(f"it unpacks to more than {limit} bytes; unpack it (gunzip) and look at what it holds")
    return n_bytes


def _stream(header: ElementTree.Element, at: int, where: str) -> Stream:
    texts = {key: header.findtext(key) or "" for key in ("channel_count", "nominal_srate", "channel_format")}
    try:
        n_channels, sfreq = int(texts["channel_count"]), float(texts["nominal_srate"])
        item_bytes = _ITEM_BYTES[texts["channel_format"]]
    except (ValueError, KeyError):
        n_channels, sfreq, item_bytes = 0, math.nan, 0
    if not (header.tag == "info" and 1 <= n_channels <= MAX_CHANNELS and 0 <= sfreq <= MAX_SFREQ_HZ):
        seen = ", ".join(f"{key} {clean_label(text, 32)!r}" for key, text in texts.items())
        raise ValueError(
            f"{where}: {seen}; 1 to {MAX_CHANNELS} channels, 0 to {MAX_SFREQ_HZ:g} Hz, and one of {', '.join(_ITEM_BYTES)} "
            "are expected"
        )
    return Stream(header, at, n_channels, item_bytes)


def _chunks(file: BinaryIO, n_bytes: int) -> Iterator[_Chunk]:
    """Whole chunks; after damage from the next boundary on."""
    at: int | None = len(MAGIC)
    while at is not None and at < n_bytes:
        file.seek(at)
        found = _next_chunk(file, n_bytes)
        if found is None:
            at = _behind_boundary(file, at)
            continue
        tag, length = found
        content = file.tell()
        yield _Chunk(at, tag, content, content + length)
        at = content + length


def _sound_parts(
    file: BinaryIO, contents: Contents, streams: Mapping[int, Stream], others: bool
) -> tuple[list[tuple[int, int]], int]:
    """Parts of a file that may be read: first byte, and the one behind it. And how many bytes of these streams may not.

    others : chunks that belong to no stream may be read, too
    """
    clocks: dict[int, _Clock] = {}
    room = _Room()
    parts: list[tuple[int, int]] = []
    n_unsound = 0
    for chunk in _chunks(file, contents.n_bytes):
        if chunk.tag not in (STREAM_HEADER, SAMPLES, CLOCK_OFFSET, STREAM_FOOTER):
            sound = others
            if chunk.tag == FILE_HEADER:
                file.seek(chunk.content)
                sound = others and chunk.length <= MAX_XML and _is_xml(file.read(chunk.length), room)
        elif chunk.length < 4 or (number := chunk.number(file)) not in streams:
            continue
        else:
            sound = _is_sound(file, chunk, streams[number], clocks.setdefault(number, _Clock(number)), room)
            n_unsound += 0 if sound else chunk.stop - chunk.at
        if sound and parts and parts[-1][1] == chunk.at:
            parts[-1] = parts[-1][0], chunk.stop
        elif sound:
            parts.append((chunk.at, chunk.stop))
    return parts, n_unsound


def _is_sound(file: BinaryIO, chunk: _Chunk, stream: Stream, clock: _Clock, room: _Room) -> bool:
    """Whether a chunk of a stream holds what it says; `file` is behind the stream's number."""
    if chunk.at < stream.at:
        return False
    length = chunk.length - 4
    if chunk.tag == SAMPLES:
        return _samples_fit(file.read(length), stream)
    if chunk.tag == STREAM_FOOTER:
        return length <= MAX_XML and _is_xml(file.read(length), room)
    return (
        chunk.at == stream.at if chunk.tag == STREAM_HEADER else length == 16 and clock.take(*_OFFSET.unpack(file.read(16)))
    )


def _is_xml(content: bytes, room: _Room) -> bool:
    try:
        return read_xml(content, "", room).tag == "info"
    except ValueError:
        return False


@dataclass
class _Clock:
    """Measurements of a sender's clock, as they follow each other."""

    number: int
    last: tuple[float, float] | None = None
    n_jumps: int = 0

    def take(self, at: float, offset: float) -> bool:
        """Whether it is one; ValueError where there are more jumps than any clock has."""
        if not (math.isfinite(at) and math.isfinite(offset)):
            return False
        if self.last is not None and (at < self.last[0] or abs(offset - self.last[1]) >= 1.0):
            self.n_jumps += 1
            if self.n_jumps > MAX_RESETS:
                raise ValueError(f"stream {self.number}: its clock jumps more than {MAX_RESETS} times")
        self.last = at, offset
        return True


def _samples_fit(content: bytes, stream: Stream) -> bool:
    """Whether the content of a chunk, behind the number of the stream, is the samples that it says it is, to the byte."""
    size = content[0] if content else 0
    if size not in (1, 4, 8) or len(content) < 1 + size:
        return False
    n_times, body = int.from_bytes(content[1 : 1 + size], "little"), memoryview(content)[1 + size :]
    least = stream.n_channels * (stream.item_bytes or 2)
    if n_times * (1 + least) > len(body):
        return False
    if n_times == 0:
        return not body
    if stream.item_bytes:
        stamp_bytes, rest = divmod(len(body) - n_times * (1 + least), n_times)
        if not rest and stamp_bytes in (0, 8):  # all samples with, or all without stamps
            rows = np.frombuffer(body, dtype=np.uint8).reshape(n_times, 1 + stamp_bytes + least)
            if (rows[:, 0] == stamp_bytes).all():
                return True
    at = 0
    for _ in range(n_times):
        if at >= len(body) or body[at] not in (0, 8):
            return False
        at += 1 + body[at]
        if stream.item_bytes:
            at += least
            continue
        for _ in range(stream.n_channels):
            size = body[at] if at < len(body) else 0
            if size not in (1, 4, 8):
                return False
            at += 1 + size + int.from_bytes(body[at + 1 : at + 1 + size], "little")
    return at == len(body)


class _Parts(io.RawIOBase):
    """The magic and some parts of a file, one behind the other."""

    def __init__(self, file: BinaryIO, parts: Collection[tuple[int, int]]) -> None:
        self._file = file
        self._parts = [(0, len(MAGIC)), *parts]
        self._ends = list(accumulate(stop - start for start, stop in self._parts))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        index = bisect_right(self._ends, self._at)
        if index == len(self._parts):
            return 0
        room = min(len(buffer), self._ends[index] - self._at)
        self._file.seek(self._parts[index][1] - self._ends[index] + self._at)
        content = self._file.read(room)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        self._at = max(0, begin + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _next_chunk(file: BinaryIO, n_bytes: int) -> tuple[int, int] | None:
    """Tag and length of the content that follows; None where no whole chunk does."""
    size = file.read(1)
    if size not in (b"\x01", b"\x04", b"\x08"):
        return None
    coded = file.read(size[0])
    length = int.from_bytes(coded, "little")
    if len(coded) < size[0] or length < 2 or file.tell() + length > n_bytes:
        return None
    return int.from_bytes(file.read(2), "little"), length - 2


def _behind_boundary(file: BinaryIO, start: int) -> int | None:
    """Place behind the next signature; None where there is none."""
    file.seek(start)
    before, at = b"", start
    while block := file.read(_SEARCH_BYTES):
        content = before + block
        if (found := content.find(SIGNATURE)) >= 0:
            return at - len(before) + found + len(SIGNATURE)
        at += len(block)
        before = content[-len(SIGNATURE) + 1 :]
    return None


class _Node:
    """One element, as `write_description` wants it."""

    def __init__(self, element: ElementTree.Element) -> None:
        self._element = element

    @property
    def name(self) -> str:
        return self._element.tag

    @property
    def text(self) -> str:
        return self._element.text or ""

    def children(self) -> Iterator[_Node]:
        return map(_Node, self._element)

    def append(self, name: str, text: str | None = None) -> _Node:
        return _Node(_leaf(self._element, name, text or ""))


def _leaf(parent: ElementTree.Element, name: str, text: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, _name(name))
    if text:
        element.text = _NO_XML.sub("", text)
    return element


def _name(path: str) -> str:
    """A name that XML allows, whatever a stream called it."""
    name = _NO_NAME.sub("_", _NUMBER.sub("", path))
    return name if name[:1].isalpha() or name[:1] == "_" else f"_{name}"


def _xml(root: ElementTree.Element) -> bytes:
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=False)
    return b'<?xml version="1.0"?>' + content


def _length(n: int) -> bytes:
    if n < 1 << 8:
        return struct.pack("<BB", 1, n)
    return struct.pack("<BI", 4, n) if n < 1 << 32 else struct.pack("<BQ", 8, n)


def _chunk(tag: int, *content: bytes) -> bytes:
    return b"".join((_length(2 + sum(map(len, content))), struct.pack("<H", tag), *content))
