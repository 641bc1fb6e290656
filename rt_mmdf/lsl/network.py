"""The Lab Streaming Layer itself: liblsl as ``mne_lsl.lsl`` loads it.

Inlets and outlets are mne-lsl's objects. Where its calls lose something we need, the same liblsl function is called
directly:

- ``resolve_streams`` takes streams of the same name and source id on two machines for one, and stops at the first answer,
  so that ambiguity cannot be seen; here every outlet that answers is one stream, told apart by its uid.
- ``push_sample`` unpacks an array value by value (0.8 ms for 5124 channels, here 0.02 ms), ``push_chunk`` warns about single
  samples and needs a writable array.
- strings that are not UTF-8 raise inside its pull and leave the sample half read.
- ``time_correction`` hides the round trip that liblsl's ``lsl_time_correction_ex`` tells.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal

import numpy as np
from mne_lsl.lsl import StreamInfo, StreamInlet, StreamOutlet, local_clock
from mne_lsl.lsl._utils import handle_error
from mne_lsl.lsl.constants import fmt2pull_chunk, fmt2pull_sample, fmt2push_chunk_n, fmt2push_sample, idx2fmt
from mne_lsl.lsl.load_liblsl import lib
from mne_lsl.lsl.stream_info import _BaseStreamInfo
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.errors import StreamDescriptionError, StreamError, StreamNotFound
from rt_mmdf.lsl.description import MAX_CHANNELS, check_header, clean_label, clean_text, read_description, write_description
from rt_mmdf.lsl.interface import ChannelDescription, ClockOffset, StreamDescription
from rt_mmdf.lsl.library import quieten

RESOLVE_ROUND_S = 0.6
"""One round of asking: multicast at once, known peers after 0.5 s (liblsl's ``UnicastMinRTT``)."""
OPEN_TIMEOUT_S = 10.0
MAX_PULL_BYTES = 1 << 20
MAX_PULL_ROUNDS = 64
CONSTANT_BLOCKS = 16
MAX_TEXT = 1 << 20
FALLBACK_UNCERTAINTY_S = 1e-3
"""Assumed where this liblsl cannot tell the round trip: five times the +-0.2 ms that liblsl's manual gives."""

_MAX_FOUND = 1024
_TIMEOUT, _LOST = -1, -2
_TEXT = ctypes.c_char_p


class NetworkClock:
    """liblsl's clock in this process: monotonic, seconds."""

    def now(self) -> float:
        return float(local_clock())


class NetworkTransport:
    """The real network."""

    def __init__(self) -> None:
        quieten()
        self.clock = NetworkClock()

    def resolve(
        self, *, name: str | None = None, type: str | None = None, source_id: str | None = None, timeout_s: float = 2.0
    ) -> list[StreamDescription]:
        """Streams that fit all that is given.

        Waits for one round (0.6 s) even when an answer is there at once, because a second stream of that name must not be
        missed; without conditions, waits for the whole time limit. Channels are counted, not described.
        """
        wanted = {"name": name, "type": type, "source_id": source_id}
        anything = all(value is None for value in wanted.values())
        deadline = local_clock() + timeout_s
        while True:
            left = max(deadline - local_clock(), 0.05)
            found = _resolve(
                lambda buffer, wait_s: lib.lsl_resolve_all(buffer, _MAX_FOUND, wait_s),
                left if anything else min(left, RESOLVE_ROUND_S),
            )
            fitting = [d for d in map(_header, found) if all(v is None or getattr(d, k) == v for k, v in wanted.items())]
            if fitting or local_clock() >= deadline:
                return sorted({d.uid: d for d in fitting}.values(), key=lambda d: (d.name, d.hostname, d.source_id, d.uid))

    def describe(self, description: StreamDescription) -> StreamDescription:
        """All that a resolved stream says of itself, channels included, without subscribing to it.

        Raises
        ------
        StreamNotFound
            It is gone.
        StreamDescriptionError
            Its description cannot be used.
        """
        info = _bound_info(description)
        header = _header(info)
        check_header(header.name, header.n_channels, header.sfreq)
        inlet = _open(info, 360)
        try:
            return _full_description(inlet, header)
        finally:
            inlet._del()

    def outlet(self, description: StreamDescription, *, chunk_size: int = 0, buffer_s: float = 360.0) -> NetworkOutlet:
        """Publish a stream. `hostname` and `uid` of the description are ignored: liblsl fills in its own."""
        return NetworkOutlet(description, chunk_size, buffer_s)

    def inlet(
        self, description: StreamDescription, *, buffer_s: float = 360.0, from_now: bool = True, recover: bool = True
    ) -> NetworkInlet:
        """Subscribe to exactly this outlet (by its uid); for `from_now` and `recover` see
        `rt_mmdf.lsl.interface.Transport`.

        Raises
        ------
        StreamNotFound
            It is gone.
        StreamDescriptionError
            Its description cannot be used.
        """
        return NetworkInlet(_bound_info(description), buffer_s, from_now=from_now, recover=recover)

    def offset_probe(self, description: StreamDescription) -> NetworkOffsetProbe:
        """A second inlet of the same outlet, for its clock alone: the clock and the data of one inlet share a lock."""
        return NetworkOffsetProbe(_bound_info(description))


class NetworkOutlet:
    """A published stream.

    `push` copies the samples into liblsl before it returns; the caller's array is neither kept nor changed, and is cast
    to the stream's type where it has another. A stamp of exactly 0 means "now" to liblsl.
    """

    def __init__(self, description: StreamDescription, chunk_size: int, buffer_s: float) -> None:
        if not description.channels:
            raise StreamDescriptionError(f"stream {description.name!r}: a stream has at least one channel, none was given")
        check_header(description.name, description.n_channels, description.sfreq)
        info = StreamInfo(
            description.name,
            description.type,
            description.n_channels,
            description.sfreq,
            description.dtype,
            description.source_id,
        )
        write_description(_Node(lib.lsl_get_desc(info._obj)), description.channels, description.extra)
        # one chunk per push unless asked otherwise: mne-lsl's own default of 1 would send sample by sample
        self._outlet = StreamOutlet(info, chunk_size or 1 << 20, max(1, math.ceil(buffer_s)))
        self._push_one = fmt2push_sample[info._dtype]
        self._push_many = fmt2push_chunk_n[info._dtype]
        self._n_channels = description.n_channels
        self._dtype = None if description.dtype == "string" else np.dtype(description.dtype)
        bound = self._outlet.get_sinfo()
        self.uid = clean_label(lib.lsl_get_uid(bound._obj))

    def push(self, data: NDArray[np.generic] | list[str], stamps: Float64 | float) -> None:
        """Publish samples: ``(n_times, n_channels)`` with one stamp each; for string streams a list of ``n_times *
        n_channels`` strings.
        """
        times = np.ascontiguousarray(np.atleast_1d(stamps), dtype=np.float64)
        values: Any
        if self._dtype is None:
            encoded = [text.encode("utf-8") for text in data]
            n_times, rest = divmod(len(encoded), self._n_channels)
            values = (_TEXT * len(encoded))(*encoded)
        else:
            samples = np.ascontiguousarray(data, dtype=self._dtype)
            if samples.ndim != 2:
                raise ValueError(f"push: data of shape {samples.shape}; (n_times, {self._n_channels}) is expected")
            n_times, rest = len(samples), samples.shape[1] - self._n_channels
            values = ctypes.c_void_p(samples.ctypes.data)
        if rest or times.shape != (n_times,):
            raise ValueError(
                f"push: {len(data)} values and {times.size} stamps; (n_times, {self._n_channels}) and one stamp per "
                "sample are expected"
            )
        if n_times == 1:
            status = self._push_one(self._outlet._obj, values, ctypes.c_double(times[0]), ctypes.c_int(1))
        elif n_times:
            n_values = ctypes.c_ulong(n_times * self._n_channels)
            status = self._push_many(
                self._outlet._obj, values, n_values, ctypes.c_void_p(times.ctypes.data), ctypes.c_int(1)
            )
        else:
            return
        if status:
            raise StreamError(f"push: liblsl refused {n_times} samples ({_last_error()})")

    def has_consumers(self) -> bool:
        return bool(lib.lsl_have_consumers(self._outlet._obj))

    def wait_for_consumers(self, timeout_s: float) -> bool:
        return bool(lib.lsl_wait_for_consumers(self._outlet._obj, ctypes.c_double(timeout_s)))

    def close(self) -> None:
        """Withdraw the stream; a second call does nothing."""
        self._outlet._del()

    def __enter__(self) -> NetworkOutlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class NetworkInlet:
    """A subscribed stream: no post-processing, raw stamps; with `from_now` samples from the moment this object exists.

    A vanished outlet is meant to be found again by liblsl when it comes back with the same source id; until then `pull` just
    times out. Do not rely on it: with liblsl 1.17.7 an outlet that was replaced at once on the same machine was not heard
    again within 25 s in 5 of 8 trials. Whoever reads should ask the network again after some silent seconds, as the
    receiver does.
    """

    def __init__(self, info: _BaseStreamInfo, buffer_s: float, *, from_now: bool = True, recover: bool = True) -> None:
        header = _header(info)
        check_header(header.name, header.n_channels, header.sfreq)
        # liblsl counts hundreds of samples instead of seconds where the rate is irregular
        self._inlet = _open(info, max(1, math.ceil(buffer_s)), recover)
        try:
            self._description = _full_description(self._inlet, header, subscribe="from now" if from_now else "soon")
        except Exception:
            self.close()
            raise
        self._pull_one = fmt2pull_sample[info._dtype]
        self._pull_many = fmt2pull_chunk[info._dtype]
        n_channels = header.n_channels
        if header.dtype == "string":
            self._dtype = None
            self._rows = max(1, min(256, MAX_PULL_BYTES // (8 * n_channels)))
            self._values: Any = (_TEXT * (self._rows * n_channels))()
        else:
            self._dtype = np.dtype(header.dtype)
            self._rows = max(1, min(1024, MAX_PULL_BYTES // (self._dtype.itemsize * n_channels)))
            self._values = np.empty((self._rows, n_channels), self._dtype)
        self._stamps = np.empty(self._rows)
        self._blocks: deque[int] = deque(maxlen=CONSTANT_BLOCKS)
        self._constant_block = 0

    @property
    def description(self) -> StreamDescription:
        return self._description

    def pull(self, timeout_s: float) -> tuple[NDArray[np.generic], Float64]:
        """Wait for a first sample, then take all there are.

        Raises
        ------
        StreamError
            The outlet vanished and has no source id by which it could be found again.
        """
        handle, n_channels = self._inlet._obj, self._description.n_channels
        data: list[NDArray[np.generic]] = []
        stamps: list[Float64] = []
        if self._constant_block > 1:
            self._pull_chunk(self._constant_block, timeout_s, data, stamps)
        else:  # pull_chunk would wait for a full buffer, so: wait for one sample, then for what came with it
            error = ctypes.c_int()
            stamp = self._pull_one(handle, self._address(), n_channels, ctypes.c_double(timeout_s), ctypes.byref(error))
            self._check(error.value)
            if stamp:
                data.append(self._take(1))
                stamps.append(np.array([stamp]))
        if not stamps:
            return np.empty((0, n_channels), self._dtype or object), np.empty(0)
        for _ in range(MAX_PULL_ROUNDS):  # a sender that is faster than we are must not keep us here
            if self._pull_chunk(self._rows, 0.0, data, stamps) < self._rows:
                break
        self._note_block(sum(map(len, stamps)))
        return np.concatenate(data), np.concatenate(stamps)

    def _pull_chunk(self, n_wanted: int, timeout_s: float, data: list[NDArray[np.generic]], stamps: list[Float64]) -> int:
        error = ctypes.c_int()
        n_values = self._pull_many(
            self._inlet._obj,
            self._address(),
            ctypes.c_void_p(self._stamps.ctypes.data),
            ctypes.c_size_t(n_wanted * self._description.n_channels),
            ctypes.c_size_t(n_wanted),
            ctypes.c_double(timeout_s),
            ctypes.byref(error),
        )
        self._check(error.value)
        n_times = int(n_values) // self._description.n_channels
        if n_times:
            data.append(self._take(n_times))
            stamps.append(self._stamps[:n_times].copy())
        return n_times

    def _note_block(self, n_times: int) -> None:
        """Learn how the stream is cut: after some blocks of one length, that much is waited for at once.

        liblsl wakes at the first sample of a block, and to come back to Python before the rest has come costs half a
        millisecond. A block of another length ends this, after at most one wait for the next block.
        """
        self._blocks.append(n_times)
        same = len(self._blocks) == CONSTANT_BLOCKS and len(set(self._blocks)) == 1
        self._constant_block = min(n_times, self._rows) if same else 0

    def _address(self) -> Any:
        return ctypes.byref(self._values) if self._dtype is None else ctypes.c_void_p(self._values.ctypes.data)

    def _take(self, n_times: int) -> NDArray[np.generic]:
        if self._dtype is not None:
            taken: NDArray[np.generic] = self._values[:n_times].copy()
            return taken
        n_values = n_times * self._description.n_channels
        texts = [clean_text(self._values[i] or b"", MAX_TEXT) for i in range(n_values)]
        for i, address in enumerate(ctypes.cast(self._values, ctypes.POINTER(ctypes.c_void_p))[:n_values]):
            lib.lsl_destroy_string(address)
            self._values[i] = None
        strings = np.empty(n_values, object)
        strings[:] = texts
        return strings.reshape(n_times, -1)

    def _check(self, code: int) -> None:
        if code == _LOST:
            raise StreamError(
                f"stream {self._description.name!r} on {self._description.hostname!r}: it is gone, and without a source "
                "id liblsl cannot find it again. Set one in the sending program, or start again when the stream is back."
            )
        if code not in (0, _TIMEOUT):
            raise StreamError(f"stream {self._description.name!r}: liblsl could not read it ({_last_error()})")

    def close(self) -> None:
        """Unsubscribe; a second call does nothing."""
        self._inlet._del()

    def __enter__(self) -> NetworkInlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class NetworkOffsetProbe:
    """Measures a sender's clock.

    liblsl asks the outlet in bursts of 8 probes every few seconds in a thread of its own, keeps the one with the shortest
    round trip, and tells (time_receiver.cpp) its offset, when it was taken on the remote clock, and the whole round trip:
    half of that is the uncertainty here. Calls between two bursts return the same measurement (same `at`).
    """

    def __init__(self, info: _BaseStreamInfo) -> None:
        self._inlet = _open(info, 1)
        self._extended = getattr(lib, "lsl_time_correction_ex", None)
        if self._extended is not None:
            self._extended.restype = ctypes.c_double

    def measure(self, timeout_s: float) -> ClockOffset | None:
        """The newest measurement, or None when there is none within the time limit (the first takes about 0.65 s)."""
        if self._extended is None:
            try:
                offset = float(self._inlet.time_correction(timeout_s))
            except (TimeoutError, RuntimeError):
                return None
            return ClockOffset(at=local_clock() - offset, offset=offset, uncertainty=FALLBACK_UNCERTAINTY_S)
        at, round_trip, error = ctypes.c_double(), ctypes.c_double(), ctypes.c_int()
        offset = self._extended(
            self._inlet._obj, ctypes.byref(at), ctypes.byref(round_trip), ctypes.c_double(timeout_s), ctypes.byref(error)
        )
        if error.value or not all(map(math.isfinite, (offset, at.value, round_trip.value))):
            return None
        return ClockOffset(at=at.value, offset=offset, uncertainty=max(round_trip.value, 0.0) / 2)

    def close(self) -> None:
        """Stop probing; a second call does nothing."""
        self._inlet._del()


class _Node:
    """One element of liblsl's description tree."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @property
    def name(self) -> str:
        return clean_label(lib.lsl_name(self._handle))

    @property
    def text(self) -> str:
        return clean_text(lib.lsl_child_value(self._handle))

    def children(self) -> Iterator[_Node]:
        handle = lib.lsl_first_child(self._handle)
        while handle and not lib.lsl_empty(ctypes.c_void_p(handle)):
            if not lib.lsl_is_text(ctypes.c_void_p(handle)):
                yield _Node(handle)
            handle = lib.lsl_next_sibling(handle)

    def append(self, name: str, text: str | None = None) -> _Node:
        if text is None:
            return _Node(lib.lsl_append_child(self._handle, name.encode()))
        lib.lsl_append_child_value(self._handle, name.encode(), text.encode())
        return _Node(lib.lsl_last_child(self._handle))


def _resolve(ask: Any, wait_s: float) -> list[_BaseStreamInfo]:
    buffer = (ctypes.c_void_p * _MAX_FOUND)()
    n_found = ask(buffer, ctypes.c_double(wait_s))
    infos = []
    for handle in map(ctypes.c_void_p, buffer[: max(0, n_found)]):
        # anybody can answer; liblsl hands on what is no header, without a format, and mne-lsl raises KeyError for it
        if lib.lsl_get_channel_format(handle) in idx2fmt:
            infos.append(_BaseStreamInfo(handle.value))
        else:
            lib.lsl_destroy_streaminfo(handle)
    return infos


def _bound_info(description: StreamDescription) -> _BaseStreamInfo:
    uid = description.uid.encode()
    if not uid or not set(description.uid) <= set("0123456789abcdefABCDEF-"):
        raise StreamNotFound(
            f"stream {description.name!r}: its description has no uid ({description.uid!r}); only a description that "
            "`resolve` "
            "returned can be opened"
        )
    found = _resolve(lambda buffer, wait_s: lib.lsl_resolve_byprop(buffer, _MAX_FOUND, b"uid", uid, 1, wait_s), 2.0)
    found = [info for info in found if _who(_header(info)) == _who(description)]  # anybody can answer for a uid
    if not found:
        raise StreamNotFound(
            f"stream {description.name!r} on {description.hostname!r}: it was on offer and is gone. Start the sending "
            "program again."
        )
    return found[0]


def _who(stream: StreamDescription) -> tuple[str, ...]:
    return stream.name, stream.type, stream.source_id, stream.hostname


def _open(info: _BaseStreamInfo, buffer_s: int, recover: bool = True) -> StreamInlet:
    try:
        return StreamInlet(info, max_buffered=buffer_s, recover=recover)
    except UnicodeDecodeError as error:  # mne-lsl reads name and type strictly
        raise StreamDescriptionError(
            f"stream {_header(info).name!r}: its name or type is not UTF-8 ({error}). Correct it in the sending program."
        ) from error
    except RuntimeError as error:  # of another version of the protocol, for example
        raise StreamDescriptionError(
            f"stream {_header(info).name!r}: liblsl cannot subscribe to it ({error}; {_last_error()}). Use one version of "
            "liblsl on all machines."
        ) from error


def _full_description(
    inlet: StreamInlet, header: StreamDescription, *, subscribe: Literal["from now", "soon"] | None = None
) -> StreamDescription:
    error = ctypes.c_int()
    try:
        if subscribe == "from now":
            inlet.open_stream(OPEN_TIMEOUT_S)  # sleeps half a second: liblsl returns before the sender knows of us
        elif subscribe == "soon":
            lib.lsl_open_stream(inlet._obj, ctypes.c_double(OPEN_TIMEOUT_S), ctypes.byref(error))
            handle_error(error)
        # mne-lsl's get_sinfo insists on an open stream; liblsl does not
        handle = lib.lsl_get_fullinfo(inlet._obj, ctypes.c_double(OPEN_TIMEOUT_S), ctypes.byref(error))
        handle_error(error)
        full = _BaseStreamInfo(handle)
    except (TimeoutError, RuntimeError) as failure:
        raise StreamNotFound(
            f"stream {header.name!r} on {header.hostname!r}: it answered, but could not be opened within "
            f"{OPEN_TIMEOUT_S:g} s ({failure}). Is the sending program still running, and does a firewall let TCP ports "
            "16572 to 16604 through?"
        ) from failure
    channels, extra = read_description(_Node(lib.lsl_get_desc(full._obj)), header.name, header.n_channels)
    return _header(full, channels, extra)


def _header(
    info: _BaseStreamInfo, channels: tuple[ChannelDescription, ...] | None = None, extra: dict[str, str] | None = None
) -> StreamDescription:
    handle = info._obj
    dtype = info.dtype
    n_channels = max(0, int(lib.lsl_get_channel_count(handle)))
    return StreamDescription(
        name=clean_label(lib.lsl_get_name(handle)),
        type=clean_label(lib.lsl_get_type(handle)),
        source_id=clean_label(lib.lsl_get_source_id(handle)),
        sfreq=float(lib.lsl_get_nominal_srate(handle)),
        dtype="string" if dtype == "string" else np.dtype(dtype).name,
        # a header may claim billions of channels; one more than the limit is enough to be refused
        channels=(ChannelDescription(""),) * min(n_channels, MAX_CHANNELS + 1) if channels is None else channels,
        extra=extra or {},
        hostname=clean_label(lib.lsl_get_hostname(handle)),
        uid=clean_label(lib.lsl_get_uid(handle)),
    )


def _last_error() -> str:
    lib.lsl_last_error.restype = ctypes.c_char_p
    return clean_label(lib.lsl_last_error() or b"no reason given")
