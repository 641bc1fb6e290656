"""The description of a stream as XML: written in the XDF conventions, read from whoever wrote it.

Channels: ``desc/channels/channel/{label,type,unit,location/{X,Y,Z}}``, positions in millimetres
(github.com/sccn/xdf/wiki/EEG-Meta-Data); mne-lsl's ``loc/{R0x,R0y,R0z}`` in metres is read as well. Everything else is
kept as leaves by path. What is read comes from an unauthenticated network: its size is bounded, control characters are
dropped, and a list of channels that does not fit the stream is refused.

The functions walk an :class:`XmlNode`, so that they can be tested without a network.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from rt_mmdf.core.errors import StreamDescriptionError
from rt_mmdf.core.text import printable
from rt_mmdf.lsl.interface import ChannelDescription

MAX_CHANNELS = 65536
MAX_SFREQ_HZ = 1e6
MAX_LABEL = 256
"""Longest name, type or unit, in characters; the rest is cut."""
MAX_VALUE = 1 << 20
MAX_TOTAL = 1 << 23
"""Longest value of a leaf, and of all leaves together, in characters (triangles of a cortex fit well)."""
MAX_LEAVES = 20000
MAX_DEPTH = 8
MAX_NODES = 1 << 21
"""Elements that are looked at; 65,536 channels with a position have 500,000."""

_XML_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class XmlNode(Protocol):
    """One element of the description; liblsl's tree behind it."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...

    def children(self) -> Iterator[XmlNode]:
        """Child elements, text left out."""
        ...

    def append(self, name: str, text: str | None = None) -> XmlNode: ...


def clean_label(raw: bytes | str, limit: int = MAX_LABEL) -> str:
    """One line of text from the network: no control, direction or invisible characters, no more than `limit`."""
    text = raw.decode("utf-8", errors="replace") if isinstance(raw, bytes) else raw
    return printable(text[: 4 * limit]).strip()[:limit]


def clean_text(raw: bytes | str, limit: int = MAX_VALUE) -> str:
    """Text from the network that may have lines and tabs."""
    text = raw.decode("utf-8", errors="replace") if isinstance(raw, bytes) else raw
    return printable(text[:limit], keep="\t\n")


def check_header(name: str, n_channels: int, sfreq: float) -> None:
    """Refuse a stream whose header alone would make us allocate without bounds.

    Raises
    ------
    StreamDescriptionError
    """
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise StreamDescriptionError(
            f"stream {name!r}: it declares {n_channels} channels; 1 to {MAX_CHANNELS} are expected. Choose another stream."
        )
    if not (math.isfinite(sfreq) and 0 <= sfreq <= MAX_SFREQ_HZ):
        raise StreamDescriptionError(
            f"stream {name!r}: it declares a sampling rate of {sfreq} Hz; 0 to {MAX_SFREQ_HZ:g} Hz are expected. "
            "Correct it in the sending program, or choose another stream."
        )


def write_description(root: XmlNode, channels: tuple[ChannelDescription, ...], extra: dict[str, str]) -> None:
    """Write channels and further leaves below `root`.

    Parameters
    ----------
    root : XmlNode
        The ``desc`` element.
    extra : dict of str to str
        By path; parts are XML names joined by ``/``. ``channels`` is taken.

    Raises
    ------
    ValueError
        A path is no sequence of XML names, or is both a leaf and a branch.
    """
    if any(channel != ChannelDescription("") for channel in channels):
        parent = root.append("channels")
        for channel in channels:
            node = parent.append("channel")
            for key, value in (("label", channel.name), ("type", channel.type), ("unit", channel.unit)):
                if value:
                    node.append(key, value)
            if channel.position is not None:
                location = node.append("location")
                for axis, metres in zip("XYZ", channel.position, strict=True):
                    location.append(axis, repr(float(metres) * 1e3))
    branches: dict[str, XmlNode] = {"": root}
    for path, value in extra.items():
        *parts, leaf = path.split("/")
        if not all(_XML_NAME.fullmatch(part) for part in (*parts, leaf)) or path.split("/")[0] == "channels":
            raise ValueError(
                f"description: {path!r} is no path for a leaf; XML names joined by '/' are expected, not 'channels'"
            )
        if path in branches or any("/".join(parts[: i + 1]) in extra for i in range(len(parts))):
            raise ValueError(f"description: {path!r} is a leaf and a branch at once")
        for i, part in enumerate(parts):
            here = "/".join(parts[: i + 1])
            if here not in branches:
                branches[here] = branches["/".join(parts[:i])].append(part)
        branches["/".join(parts)].append(leaf, value)


def read_description(root: XmlNode, name: str, n_channels: int) -> tuple[tuple[ChannelDescription, ...], dict[str, str]]:
    """Read channels and further leaves below `root`.

    Returns
    -------
    channels : tuple of ChannelDescription
        As many as the stream has; without any text where the description lists none. Positions in metres.
    extra : dict of str to str
        Further leaves by path; a second element of the same path is called ``path[2]``, and so on.
        Bounded by `MAX_LEAVES`, `MAX_VALUE`, `MAX_TOTAL` and `MAX_DEPTH`: what is beyond is left out.

    Raises
    ------
    StreamDescriptionError
        The description lists another number of channels than the stream has, or has more than `MAX_NODES` elements.
    """
    channels: list[ChannelDescription] = []
    bounded = _Bounded(name)
    leaves = _Leaves(bounded)
    for node in bounded.children(root):
        if node.name == "channels":
            for child in bounded.children(node):
                if child.name != "channel":
                    continue
                if len(channels) == n_channels:
                    raise _wrong_number(name, f"more than {n_channels}", n_channels)
                channels.append(_read_channel(child, bounded))
        else:
            leaves.read(node, clean_label(node.name))
    if channels and len(channels) != n_channels:
        raise _wrong_number(name, str(len(channels)), n_channels)
    return _in_metres(tuple(channels)) if channels else (ChannelDescription(""),) * n_channels, leaves.by_path


def _wrong_number(name: str, seen: str, n_channels: int) -> StreamDescriptionError:
    return StreamDescriptionError(
        f"stream {name!r}: its description lists {seen} channels, its samples have {n_channels}; one entry per channel is "
        "expected. Correct the description in the sending program."
    )


def _read_channel(node: XmlNode, bounded: _Bounded) -> ChannelDescription:
    fields: dict[str, str] = {}
    position: tuple[float, float, float] | None = None
    for index, child in enumerate(bounded.children(node)):
        if index == 64:  # mne-lsl writes eight
            break
        key = child.name
        if key in ("label", "name", "type", "unit"):
            fields.setdefault(key, clean_label(child.text))
        elif key in ("location", "loc") and position is None:
            position = _read_position(child, bounded)
    return ChannelDescription(
        fields.get("label") or fields.get("name", ""), fields.get("type", ""), fields.get("unit", ""), position
    )


def _read_position(node: XmlNode, bounded: _Bounded) -> tuple[float, float, float] | None:
    values: dict[str, float] = {}
    for index, child in enumerate(bounded.children(node)):
        if index == 32:
            break
        try:
            values[child.name] = float(child.text[:64])
        except ValueError:
            continue
    for axes, scale in ((("X", "Y", "Z"), 1e-3), (("R0x", "R0y", "R0z"), 1.0)):
        if all(math.isfinite(values.get(axis, math.nan)) for axis in axes):
            x, y, z = (values[axis] * scale for axis in axes)
            return (x, y, z)
    return None


def _in_metres(channels: tuple[ChannelDescription, ...]) -> tuple[ChannelDescription, ...]:
    """Undo the scale of senders that write metres where XDF wants millimetres: no helmet has a radius below 2 mm."""
    reach = max((abs(axis) for channel in channels for axis in channel.position or ()), default=0.0)
    if not 0 < reach < 2e-3:
        return channels
    return tuple(
        ChannelDescription(
            c.name,
            c.type,
            c.unit,
            None if c.position is None else (c.position[0] * 1e3, c.position[1] * 1e3, c.position[2] * 1e3),
        )
        for c in channels
    )


class _Bounded:
    """Children of nodes, so many in all that reading ends."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = MAX_NODES

    def children(self, node: XmlNode) -> Iterator[XmlNode]:
        for child in node.children():
            self._left -= 1
            if self._left < 0:
                raise StreamDescriptionError(
                    f"stream {self._name!r}: its description has more than {MAX_NODES} elements. Shorten it in the sending "
                    "program, or choose another stream."
                )
            yield child


class _Leaves:
    """Collects leaves by path until the bounds are reached; what is beyond them nobody asked for."""

    def __init__(self, bounded: _Bounded) -> None:
        self._bounded = bounded
        self.by_path: dict[str, str] = {}
        self._seen: Counter[str] = Counter()
        self._room = MAX_TOTAL

    def read(self, node: XmlNode, path: str, depth: int = 1) -> None:
        if len(self.by_path) >= MAX_LEAVES or self._room <= 0:
            return
        is_branch = False
        if depth < MAX_DEPTH:
            for child in self._bounded.children(node):
                is_branch = True
                self.read(child, f"{path}/{clean_label(child.name)}", depth + 1)
        if is_branch:
            return
        self._seen[path] += 1
        key = path if self._seen[path] == 1 else f"{path}[{self._seen[path]}]"
        self.by_path[key] = clean_text(node.text, min(MAX_VALUE, self._room))
        self._room -= len(self.by_path[key]) + len(key)
