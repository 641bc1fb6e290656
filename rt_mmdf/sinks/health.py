"""The engine's health as an LSL stream: one JSON text at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import rt_mmdf
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription, Transport

MAX_BYTES = 65536


class HealthOutlet:
    """A stream of one string channel, without a fixed rate.

    Parameters
    ----------
    transport : Transport
    name : str
        Of the stream, and its source id.
    max_bytes : int
        Longest text; a report that is longer loses its longest entries, which are named under ``left_out``.
    """

    def __init__(self, transport: Transport, name: str, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._clock = transport.clock
        channel = ChannelDescription("health", "json", "")
        extra = {"engine/name": "rt_mmdf", "engine/version": rt_mmdf.__version__, "format": "JSON (RFC 8259), ASCII"}
        self._outlet = transport.outlet(StreamDescription(name, "Health", name, 0.0, "string", (channel,), extra))

    def publish(self, report: Mapping[str, Any]) -> str:
        """Publish a report with the stamp of now; returns the text."""
        text = to_json(report, self._max_bytes)
        self._outlet.push([text], self._clock.now())
        return text

    def close(self) -> None:
        self._outlet.close()

    def __enter__(self) -> HealthOutlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def to_json(report: Mapping[str, Any], max_bytes: int = MAX_BYTES) -> str:
    """Strict JSON in ASCII, at most `max_bytes` long: no NaN or infinity (null instead), numpy values as plain ones.

    What makes a report too long is left out, longest entry first, and named under ``left_out``.
    """
    plain: dict[str, Any] = _plain(report)
    text = _dump(plain)
    left_out: list[str] = []
    while len(text) > max_bytes and any(key != "left_out" for key in plain):
        longest = max((key for key in plain if key != "left_out"), key=lambda key: len(_dump(plain[key])))
        del plain[longest]
        left_out.append(longest[:64])
        plain["left_out"] = left_out[:32]
        text = _dump(plain)
    return text


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Set):
        return sorted((_plain(entry) for entry in value), key=str)
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"health report: a value of type {type(value).__name__} cannot be written as JSON")
