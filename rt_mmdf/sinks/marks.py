"""Operator marks: what a person notes during an acquisition, and what is asked of the engine, as an LSL stream of JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args
from uuid import uuid4

import rt_mmdf
from rt_mmdf.lsl.description import clean_label
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription, Transport

MAX_TEXT = 200
"""Longest note, characters."""
MAX_JSON = 4096
"""Longest sample that is read, characters."""

Command = Literal["", "reset-average"]


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark.

    stamp : what is marked, seconds on the LSL clock of the machine that publishes the mark: not always the moment at which
        it was written, since the view can be paused
    text : the note, one line
    command : ``""``, or ``"reset-average"``: the engine begins all event-locked averages anew
    """

    stamp: float
    text: str
    command: Command = ""

    def to_json(self) -> str:
        """``{"stamp": 1234.5, "text": "...", "command": ""}`` in ASCII, as `read_mark` reads it."""
        content = {"stamp": self.stamp, "text": clean_label(self.text, MAX_TEXT), "command": self.command}
        return json.dumps(content, ensure_ascii=True, allow_nan=False)


def read_mark(text: str) -> Mark | None:
    """The mark that a sample of a marks stream holds; None where it is none. Anything on the network can publish."""
    if len(text) > MAX_JSON:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    stamp, note, command = content.get("stamp"), content.get("text", ""), content.get("command", "")
    if isinstance(stamp, bool) or not isinstance(stamp, (int, float)) or not isinstance(note, str):
        return None
    try:
        at = float(stamp)
    except OverflowError:
        return None
    if not math.isfinite(at) or command not in get_args(Command):
        return None
    return Mark(at, clean_label(note, MAX_TEXT), command)


class MarksOutlet:
    """The stream ``NAME-marks`` (NAME: that of the engine's session): type ``Markers``, one string channel, irregular; one
    `Mark` as JSON a sample. Published by a view; the engine lists the last ones under ``marks`` of its health stream.

    Parameters
    ----------
    transport : Transport
    name : str
        Of the stream: what ``streams/marks`` of the estimate stream's description says.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self._clock = transport.clock
        extra = {"engine/version": rt_mmdf.__version__, "format": "JSON (RFC 8259), ASCII: stamp, text, command"}
        channel = ChannelDescription("mark", "json", "")
        source_id = f"{name}-{uuid4().hex[:12]}"  # two views may mark for one engine
        self.stream = StreamDescription(name, "Markers", source_id, 0.0, "string", (channel,), extra)
        self._outlet = transport.outlet(self.stream)

    def publish(self, text: str, stamp: float | None = None, command: Command = "") -> Mark:
        """Publish a mark of `stamp` (now, where it is not given; seconds on this machine's LSL clock)."""
        mark = Mark(self._clock.now() if stamp is None else stamp, clean_label(text, MAX_TEXT), command)
        self._outlet.push([mark.to_json()], mark.stamp)
        return mark

    def close(self) -> None:
        self._outlet.close()

    def __enter__(self) -> MarksOutlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
