"""A recording of what came in and what was made of it: one XDF file, written by a thread of its own."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import rt_mmdf
from rt_mmdf.core.blocks import Float64, SourceEstimate
from rt_mmdf.core.errors import SinkError, WorkerFailed
from rt_mmdf.lsl import xdf
from rt_mmdf.lsl.interface import Clock, ClockOffset, StreamDescription
from rt_mmdf.runtime.mailbox import Backlog, Mailbox
from rt_mmdf.runtime.worker import Restarts, Worker
from rt_mmdf.sinks.estimates import EstimateDescription, companion_rows, describe_streams
from rt_mmdf.sinks.reduction import Reducer
from rt_mmdf.sinks.settings import EstimateStreamSettings, RecordSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription

logger = logging.getLogger(__name__)

PERIOD_S = 0.1
"""The thread looks so often for what is waiting: all of it is one write."""
FLUSH_S = 1.0
RETRY_S = 1.0
STOP_LIMIT_S = 30.0
SENSOR_BYTES = 64 << 20
"""What may wait of one stream while the disk stands still: 45 s of 366 channels at 1 kHz."""
TEXT_BYTES = 4 << 20
ESTIMATE_BYTES = 96 << 20
"""Whole hops wait, which are reduced in the recording's thread: 4.9 s of 5124 sources at 1 kHz."""
MAX_OFFSETS = 4096
LITTLE_ROOM_S = 600.0


@dataclass(frozen=True)
class Piece:
    """Samples on their way into the file: of which stream, ``(n_times, n_channels)``, ``(n_times,)``."""

    label: str
    description: StreamDescription
    data: NDArray[np.generic]
    stamps: Float64


@dataclass(frozen=True)
class Measured:
    """A clock offset on its way into the file.

    description : of the stream whose sender was measured; None: the newest of its track
    """

    offset: ClockOffset
    description: StreamDescription | None = None


class Track(Protocol):
    """What waits to be written, of one source."""

    labels: tuple[str, ...]

    @property
    def n_dropped(self) -> int:
        """Samples that were pushed out because the disk did not keep up, or for which there was no memory; of estimates,
        before they are reduced.
        """
        ...

    @property
    def n_waiting(self) -> int: ...

    def drain(self) -> tuple[list[Piece], list[Measured]]:
        """What has come since the last call; in the recording's thread."""
        ...


class StreamTrack:
    """A stream as it is, with its clock offsets. `put` is a tap of a receiver (see `rt_mmdf.acquisition.receiver.Tap`).

    Parameters
    ----------
    label : str
        Names the stream in the status and in the file (``rt_mmdf/label`` of the description).
    capacity : int
        Bytes that may wait.
    """

    def __init__(self, label: str, capacity: int = SENSOR_BYTES) -> None:
        self.labels: tuple[str, ...] = (label,)
        self._blocks: Backlog[Piece] = Backlog(capacity)
        self._offsets: Mailbox[Measured] = Mailbox(MAX_OFFSETS)

    def put(self, description: StreamDescription, samples: NDArray[np.generic], stamps: Float64) -> None:
        """Take samples, from one thread; returns at once. Nobody may write to the arrays from now on."""
        text = samples.dtype == object
        n_bytes = sum(len(str(value)) for value in samples.ravel()) + 64 * samples.size if text else samples.nbytes
        piece = Piece(self.labels[0], description, samples, stamps)
        self._blocks.put(piece, n_bytes + stamps.nbytes, len(stamps))

    def put_offset(self, offset: ClockOffset, description: StreamDescription | None = None) -> None:
        """Take a measurement of the sender's clock, from any thread; where several send at a time, of whose."""
        self._offsets.put(Measured(offset, description))

    @property
    def n_dropped(self) -> int:
        return self._blocks.n_dropped

    @property
    def n_waiting(self) -> int:
        return self._blocks.n_waiting

    def drain(self) -> tuple[list[Piece], list[Measured]]:
        offsets, blocks = self._offsets.take_all(), self._blocks.take_all()
        try:
            return self._merged(blocks), offsets
        except MemoryError:  # more chunks than needed, and nothing lost
            return blocks, offsets

    def _merged(self, blocks: list[Piece]) -> list[Piece]:
        """What came from one sender in a row is one chunk."""
        merged, start = [], 0
        for stop in range(1, len(blocks) + 1):
            if stop == len(blocks) or blocks[stop].description is not blocks[start].description:
                data = np.concatenate([block.data for block in blocks[start:stop]])
                stamps = np.concatenate([block.stamps for block in blocks[start:stop]])
                merged.append(Piece(self.labels[0], blocks[start].description, data, stamps))
                start = stop
        return merged


class EstimateTrack:
    """Source estimates, reduced, with their companion, as `rt_mmdf.sinks.estimates` describes them.

    Parameters
    ----------
    name : str
        Of the estimate stream.
    sources : SourceSpaceDescription
    description : EstimateDescription
    settings : RecordSettings
    """

    labels: tuple[str, ...] = ("sources", "sources_companion")

    def __init__(
        self, name: str, sources: SourceSpaceDescription, description: EstimateDescription, settings: RecordSettings
    ) -> None:
        n = 1
        if settings.estimates == "reduced":
            n = max(1, math.ceil(description.sfreq / settings.estimates_hz - 1e-6))
        reduced = EstimateStreamSettings(decimation=n, reduction=settings.reduction)
        self.streams = describe_streams(name, sources, description, reduced)[:2]
        self._reducer = Reducer(sources.n_sources, n, settings.reduction)
        self._hops: Backlog[SourceEstimate] = Backlog(ESTIMATE_BYTES)
        self._lost = 0

    def put(self, estimate: SourceEstimate) -> None:
        """Take a hop with complete stamps, from the engine's thread; returns at once."""
        self._hops.put(estimate, estimate.data.nbytes, estimate.n_times)

    @property
    def n_dropped(self) -> int:
        return self._hops.n_dropped + self._lost

    @property
    def n_waiting(self) -> int:
        return self._hops.n_waiting

    def drain(self) -> tuple[list[Piece], list[Measured]]:
        hops = self._hops.take_all()
        try:
            return self._reduced(hops), []
        except BaseException:  # no memory, say
            self._lost += sum(hop.n_times for hop in hops)
            raise

    def _reduced(self, hops: list[SourceEstimate]) -> list[Piece]:
        taken = [(hop, self._reducer(hop)) for hop in hops]
        taken = [(hop, rows) for hop, rows in taken if len(rows.times)]
        if not taken:
            return []
        stamps = np.concatenate([rows.times for _, rows in taken])
        data = np.concatenate([rows.data for _, rows in taken])
        companion = np.concatenate([companion_rows(hop, rows, hop.stamps) for hop, rows in taken])
        estimate, beside = self.streams
        return [Piece(self.labels[0], estimate, data, stamps), Piece(self.labels[1], beside, companion, stamps)]


@dataclass
class RecordedStream:
    """One stream of the file: its number, and what it holds."""

    number: int
    label: str
    description: StreamDescription
    n_samples: int = 0
    first: float = math.nan
    last: float = math.nan
    offsets: list[ClockOffset] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a description of the recording."""
        own = self.description
        return {
            "number": self.number,
            "label": self.label,
            "name": own.name,
            "type": own.type,
            "source_id": own.source_id,
            "hostname": own.hostname,
            "SamplingFrequency": own.sfreq,
            "n_channels": own.n_channels,
            "format": xdf.FORMATS[own.dtype],
            "samples": self.n_samples,
            "first_stamp": self.first,
            "last_stamp": self.last,
            "clock_offsets": len(self.offsets),
        }


class XdfFile:
    """A file that only grows, chunk by chunk; whatever fails, what is in it are whole chunks.

    Raises
    ------
    SinkError
        It exists and is not to be overwritten, or its folder cannot be made or written to.
    """

    def __init__(self, path: Path, header: bytes, *, overwrite: bool = False) -> None:
        self.path = path
        self.n_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | (os.O_TRUNC if overwrite else os.O_EXCL)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(path, error) from error
        try:
            self._handle = os.open(path, flags, 0o644)
        except FileExistsError as error:
            raise _taken(path) from error
        except OSError as error:
            raise _not_writable(path, error) from error
        try:
            self.append(header)
        except OSError as error:
            os.close(self._handle)
            raise _not_writable(path, error) from error

    def append(self, chunks: bytes) -> None:
        """Write whole chunks; OSError where they do not fit, of which nothing stays then."""
        left = memoryview(chunks)
        try:
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, self.n_bytes)
            with suppress(OSError):
                os.lseek(self._handle, self.n_bytes, os.SEEK_SET)
            raise
        self.n_bytes += len(chunks)

    def sync(self) -> None:
        """Wait until all of it is on the disk."""
        os.fsync(self._handle)

    @property
    def deleted(self) -> bool:
        """Whether nobody can ever read it: it has no name any more."""
        return os.fstat(self._handle).st_nlink == 0

    @property
    def moved(self) -> bool:
        """Whether another file, or none, is where it was."""
        try:
            there = os.stat(self.path)
        except OSError:
            return True
        return not os.path.samestat(there, os.fstat(self._handle))

    def free_bytes(self) -> int | None:
        """Room on its disk; None where it is no longer where it was."""
        try:
            return shutil.disk_usage(self.path.parent).free
        except OSError:
            return None

    def close(self) -> None:
        os.close(self._handle)


class Recorder:
    """Writes what its tracks bring; from the start until `close`.

    A write that fails is tried again every second, while the tracks hold what they can; what they push out is counted, by
    label. An error is told once in the log, once more when writing goes on, and stays in the status. What is on disk ends
    with a whole chunk, unless the process dies in the middle of a write (see `rt_mmdf.lsl.xdf.open_whole`).

    Parameters
    ----------
    settings : RecordSettings
    clock : Clock
    tracks : sequence of Track
    known : mapping of str to StreamDescription
        By label: streams that are in the file even if they never bring a sample.
    leaves : mapping of str to mapping
        By label: further leaves for the description of the stream in the file.
    here : collection of str
        Labels of what is stamped by this machine's clock: its offset is known to be 0, and is in the file, too.

    Attributes
    ----------
    error : str | None
        The newest, which stays.
    n_raised : int
        How often its thread has raised something else than the disk's errors, and has gone on.

    Raises
    ------
    SinkError
        See `XdfFile`.
    """

    def __init__(
        self,
        settings: RecordSettings,
        clock: Clock,
        tracks: Sequence[Track],
        known: Mapping[str, StreamDescription],
        leaves: Mapping[str, Mapping[str, str]] | None = None,
        here: Collection[str] = (),
    ) -> None:
        self._clock = clock
        self._tracks = tuple(tracks)
        self._leaves = leaves or {}
        self._here = frozenset(here)
        self._streams: dict[tuple[object, ...], RecordedStream] = {}
        self._newest: dict[str, RecordedStream] = {}
        self._labels = tuple(label for track in tracks for label in track.labels)
        self._written, self._lost = dict.fromkeys(self._labels, 0), dict.fromkeys(self._labels, 0)
        self._unwritten: tuple[bytes, dict[str, int]] | None = None
        self._new_headers: list[bytes] = []
        self.error: str | None = None
        self.n_raised = 0
        self._writing, self._gone, self._told_room, self._told_moved, self._closed = True, False, False, False, False
        self._retry_at = -math.inf
        self._began = self._flushed_at = clock.now()
        self._flushed = time.monotonic()
        self._flushed_bytes = 0
        self._free: int | None = None
        self.started = datetime.now(UTC)
        header = xdf.file_header(
            {"datetime": f"{self.started:%Y-%m-%dT%H:%M:%S%z}", "writer": f"rt_mmdf {rt_mmdf.__version__}"}
        )
        self._file = XdfFile(settings.file, header, overwrite=settings.overwrite)
        for label, description in known.items():
            self._stream(label, description)
        self.write(flush=True)
        self._worker = Worker("recording", self._step, stop_timeout_s=STOP_LIMIT_S)
        self._worker.restarts = Restarts(self._tell_raised, limit=1_000_000, within_s=300.0, longest_wait_s=0.5)

    def start(self) -> Recorder:
        """Start the thread."""
        self._worker.start()
        return self

    def check(self) -> None:
        """Raise WorkerFailed when the writing thread has died (a full disk does not kill it)."""
        self._worker.check()

    def _tell_raised(self, name: str, error: Exception) -> None:
        """Not the disk: a fault of this program, or no memory. What it had in hand may be lost; the rest is recorded."""
        self.error = f"recording {self._file.path}: {type(error).__name__}: {error}; recording goes on"
        self.n_raised += 1
        logger.error("%s", self.error, exc_info=error)

    @property
    def unflushed_s(self) -> float:
        """Seconds since the last flush began; they are `FLUSH_S` apart, unless the disk takes longer."""
        return time.monotonic() - self._flushed

    @property
    def streams(self) -> list[RecordedStream]:
        """All streams of the file, in the order of their numbers."""
        return list(self._streams.values())

    def _step(self) -> None:
        self._worker.pause(PERIOD_S)
        self.write()

    def write(self, *, flush: bool = False) -> None:
        """Write what is waiting, and flush if a second has passed, or if asked to. Never raises for the disk."""
        now = time.monotonic()
        if self._gone:
            self._give_up()
            return
        if not self._writing and now < self._retry_at and not flush:
            return
        try:
            if self._unwritten is not None:
                self._append(*self._unwritten)
                self._unwritten = None
            self._unwritten = self._encoded()
            self._append(*self._unwritten)
            self._unwritten = None
            if flush or now - self._flushed >= FLUSH_S:
                self._flush()
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY_S
            self._fail(
                f"recording {self._file.path}: cannot be written ({error.strerror or error}); imaging goes on, writing is "
                "tried again every second. Free some space, or stop and choose another disk."
            )
        else:
            if not self._writing and not self._gone:
                self._writing = True
                logger.warning("recording %s: is written again", self._file.path)

    def _append(self, chunks: bytes, counts: Mapping[str, int]) -> None:
        if chunks:
            self._file.append(chunks)
        for label, n in counts.items():
            self._written[label] += n

    def _encoded(self) -> tuple[bytes, dict[str, int]]:
        """Chunks of all that is waiting, and how many samples of each label are in them.

        What cannot be encoded (no memory) is counted as lost; what was raised goes on.
        """
        parts: list[bytes] = []
        held: list[tuple[RecordedStream, Float64]] = []
        measurements: list[tuple[RecordedStream, ClockOffset]] = []
        counts = dict.fromkeys(self._labels, 0)
        try:
            for track in self._tracks:
                pieces, offsets = track.drain()
                for piece in pieces:
                    counts[piece.label] += len(piece.stamps)
                for piece in pieces:
                    stream = self._stream(piece.label, piece.description)
                    parts.append(xdf.samples(stream.number, piece.data, piece.stamps))
                    held.append((stream, piece.stamps))
                for measured in offsets:
                    label, own = track.labels[0], measured.description
                    heard = self._newest.get(label) if own is None else self._stream(label, own)
                    if heard is not None:
                        measurements.append((heard, measured.offset))
                        parts.append(xdf.clock_offset(heard.number, measured.offset))
            chunks = b"".join(self._new_headers + parts)
        except BaseException:
            self._lose(counts)
            raise
        self._new_headers = []
        for stream, stamps in held:
            stream.first = float(stamps[0]) if not stream.n_samples else stream.first
            stream.last = float(stamps[-1])
            stream.n_samples += len(stamps)
        for stream, offset in measurements:
            stream.offsets.append(offset)
        return chunks, counts

    def _stream(self, label: str, description: StreamDescription) -> RecordedStream:
        """The stream of the file for that description; a new one where the sender is another one."""
        own = description
        key = (label, own.name, own.source_id, own.sfreq, own.dtype, own.channels)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = RecordedStream(len(self._streams) + 1, label, description)
            now, leaves = self._clock.now(), {"rt_mmdf/label": label, **self._leaves.get(label, {})}
            self._new_headers.append(xdf.stream_header(stream.number, description, now, leaves))
            if label in self._here:
                stream.offsets.append(ClockOffset(now, 0.0, 0.0))
                self._new_headers.append(xdf.clock_offset(stream.number, stream.offsets[0]))
        self._newest[label] = stream
        return stream

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self._file.deleted:
            self._gone = True
            self._fail(f"recording {self._file.path}: the file was deleted; nothing of it is left. Imaging goes on.")
            self._give_up()
            return
        at = self._clock.now()
        if self._file.n_bytes > self._flushed_bytes:
            self._file.append(xdf.boundary())
            self._file.sync()
        self._flushed_bytes, self._flushed_at = self._file.n_bytes, at
        self._free = self._file.free_bytes()
        room_s = self._room_s()
        if room_s is not None and room_s < LITTLE_ROOM_S and at - self._began > LITTLE_ROOM_S / 60 and not self._told_room:
            self._told_room = True
            logger.warning("recording %s: the disk has room for %.0f more seconds", self._file.path, room_s)
        # asked in this order: one that has just been deleted is no longer where it was, either
        if self._file.moved and not self._file.deleted and not self._told_moved:
            self._told_moved = True
            self.error = (
                f"recording {self._file.path}: it is no longer there (moved, or its folder was renamed). It is written on "
                "at the place to which it was moved."
            )
            logger.error("%s", self.error)

    def _fail(self, message: str) -> None:
        if self._writing:
            logger.error("%s", message)
        self._writing, self.error = False, message

    def _give_up(self) -> None:
        """Count as lost what waits and what is not written; where the file is gone, all that was in it, too."""
        self._lose(self._unwritten[1] if self._unwritten is not None else {})
        self._unwritten = None
        self._lose(self._encoded()[1])
        if self._gone:
            self._lose(self._written)
            self._written = dict.fromkeys(self._labels, 0)

    def _lose(self, counts: Mapping[str, int]) -> None:
        for label, n in counts.items():
            self._lost[label] += n

    def _room_s(self) -> float | None:
        seconds = self._flushed_at - self._began
        if self._free is None or seconds <= 0 or not self._flushed_bytes:
            return None
        return self._free / (self._flushed_bytes / seconds)

    def status(self) -> dict[str, Any]:
        """For the health stream: ``recording`` of `rt_mmdf.sinks.health`; from any thread."""
        dropped = {label: self._lost[label] + track.n_dropped for track in self._tracks for label in track.labels[:1]}
        return {
            "file": str(self._file.path),
            "bytes": 0 if self._gone else self._file.n_bytes,
            "seconds": self._flushed_at - self._began,
            "flushed_at": self._flushed_at,
            "samples": dict(self._written),
            "dropped": dropped,
            "waiting": sum(track.n_waiting for track in self._tracks),
            "free_bytes": self._free,
            "room_s": self._room_s(),
            "error": self.error,
            "writing": self._writing,
        }

    def close(self) -> None:
        """Write what is waiting and the footers, and end the thread; a second call does nothing.

        A disk that stands still is told of and left alone.

        Raises
        ------
        WorkerFailed
            The thread died of something else than the disk.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._worker.stop()
        except WorkerFailed as error:
            if not self._worker.alive:
                self._file.close()
                raise
            self._fail(f"recording {self._file.path}: the disk stands still ({error}); what was flushed is in the file.")
            self._give_up()  # should it wake, what it has in hand is in the file all the same
            return
        try:
            self.write(flush=True)
            if self._writing and not self._gone:
                self._file.append(b"".join(self._footers()))
                self._file.sync()
            elif not self._gone:
                self._give_up()
        except OSError as error:
            self._fail(f"recording {self._file.path}: its end cannot be written ({error.strerror or error}).")
        finally:
            self._file.close()

    def _footers(self) -> list[bytes]:
        return [xdf.stream_footer(s.number, s.first, s.last, s.n_samples, s.offsets) for s in self._streams.values()]


def check_recording(settings: RecordSettings) -> None:
    """Raise SinkError where nothing could be recorded: better told before a session is prepared than after it.

    Raises
    ------
    SinkError
        The file exists and is not to be overwritten, or its folder cannot be written to.
    """
    for path in (settings.file, settings.description_file):
        if path.exists() and (not settings.overwrite or not path.is_file()):
            raise _taken(path)
    folder = settings.file.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise SinkError(f"recording {settings.file}: {folder} cannot be written to. Choose a folder that you may write to.")


def _taken(path: Path) -> SinkError:
    return SinkError(
        f"recording: {path} is there already, and is not overwritten. Choose another name, move it away, or set "
        "overwrite = true under [output.record]."
    )


def _not_writable(path: Path, error: OSError) -> SinkError:
    return SinkError(
        f"recording {path}: cannot be written ({error.strerror or error}). Choose a file in a folder that you may write to, "
        "on a disk with space left."
    )
