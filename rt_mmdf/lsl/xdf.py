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

A file may end anywhere: `open_whole` reads it up to its last whole chunk.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float64
from rt_mmdf.lsl.description import write_description
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
class Contents:
    """What `scan` found.

    n_whole : bytes up to the end of the last whole chunk; all of them where damage lies in the middle
    n_bytes : length of the file
    headers : header of each stream by its number, the element ``info``
    """

    n_whole: int
    n_bytes: int
    headers: dict[int, ElementTree.Element]


def scan(file: BinaryIO) -> Contents:
    """Walk over the chunks of a file without reading the samples.

    Raises
    ------
    ValueError
        It does not begin as an XDF file does.
    """
    n_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if (seen := file.read(4)) != MAGIC:
        raise ValueError(f"it begins with {seen!r}, {MAGIC!r} is expected")
    headers: dict[int, ElementTree.Element] = {}
    whole = len(MAGIC)
    while (found := _next_chunk(file, n_bytes)) is not None:
        tag, length = found
        stop = file.tell() + length
        if tag == STREAM_HEADER and length >= 4:
            (number,) = struct.unpack("<I", file.read(4))
            headers[number] = ElementTree.fromstring(file.read(length - 4).decode("utf-8", errors="replace"))
        whole = file.seek(stop)
    if whole < n_bytes and _holds_signature(file, whole):  # no end that is missing: damage that a reader can step over
        whole = n_bytes
    return Contents(whole, n_bytes, headers)


def open_whole(path: Path) -> tuple[io.BufferedReader, Contents]:
    """Open a file for reading up to its last whole chunk; the file itself is not changed.

    Raises
    ------
    OSError, ValueError
        It cannot be read, or is no XDF file.
    """
    file = path.open("rb")
    try:
        contents = scan(file)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return io.BufferedReader(_Beginning(file, contents.n_whole), 1 << 20), contents


class _Beginning(io.RawIOBase):
    """The first `n_bytes` of a file."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self._file = file
        self._n_bytes = n_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        room = min(len(buffer), max(0, self._n_bytes - self._file.tell()))
        content = self._file.read(room)
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._n_bytes}[whence]
        return self._file.seek(begin + offset)

    def tell(self) -> int:
        return self._file.tell()

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


def _holds_signature(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    before = b""
    while block := file.read(_SEARCH_BYTES):
        if SIGNATURE in before + block:
            return True
        before = block[-len(SIGNATURE) :]
    return False


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
