"""Source estimates on disk, as MNE reads them, written by a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import mne
import numpy as np

from rt_mmdf.core.blocks import SourceEstimate
from rt_mmdf.core.errors import SinkError
from rt_mmdf.runtime.mailbox import Mailbox
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.settings import FileSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription

WAITING_HOPS = 256  # at hops of 10 ms the disk may stand still for 2.5 s before a hop is dropped, at a cost of 52 MB
TAKE_S = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileStatus:
    """What the files hold, for the health report.

    written, lost : estimates (samples) that are on disk; that are not, because the disk, the memory or the thread did not do
    segments : files of each kind so far
    error : why the last segment could not be written; None when it could
    """

    written: int
    lost: int
    segments: int
    error: str | None


class SegmentWriter:
    """Collects estimates and writes a segment whenever it is full or its samples stop following each other.

    ``PREFIX-000-lh.stc``, ``PREFIX-000-rh.stc``
        MNE source estimate; its time 0 is the first estimate of the session, its step is exact because no hole is inside.
    ``PREFIX-000-info.npz``
        ``times`` (LSL clock of the engine, seconds), ``flags``, ``first`` (absolute index), ``unit``, ``solver``, ``head``,
        ``fingerprint``.

    The three files of a segment appear under their names when all are complete. Thread: that of the caller.

    Parameters
    ----------
    settings : FileSettings
    sources : SourceSpaceDescription
    sfreq : float
        Of the estimates, Hz.
    solver : str
        Name of the solver or model.

    Raises
    ------
    SinkError
        The folder cannot be made, or files of that prefix exist already.
    """

    def __init__(self, settings: FileSettings, sources: SourceSpaceDescription, sfreq: float, solver: str = "") -> None:
        self._prefix = settings.prefix
        self._sources = sources
        self._sfreq = sfreq
        self._solver = solver
        length = max(1, round(settings.segment_s * sfreq))
        self._data = np.empty((sources.n_sources, length), dtype=np.float32)
        self._times = np.empty(length)
        self._flags = np.empty(length, dtype=np.uint32)
        self._n = 0
        self._first = 0
        self._origin: int | None = None
        self._unit = ""
        self.segments = self.written = self.lost = 0
        self.error: SinkError | None = None
        try:
            self._prefix.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(
                f"output.files.prefix {self._prefix}: its folder cannot be made ({error}). Choose a folder that "
                "can be written."
            ) from error
        if there := sorted(self._prefix.parent.glob(f"{self._prefix.name}-[0-9]*.stc")):
            raise SinkError(
                f"output.files.prefix {self._prefix}: {len(there)} files of that name are there already ({there[0].name}), "
                "none are expected. Choose another prefix or move them away; nothing is overwritten."
            )

    def add(self, estimate: SourceEstimate) -> None:
        """Take one hop; writes when a segment is complete. Never raises for the disk or for want of memory: see `error`."""
        if self._n and estimate.first != self._first + self._n:
            self.flush()
        if self._origin is None:
            self._origin = estimate.first
        self._unit = estimate.unit
        start = 0
        while start < estimate.n_times:
            if self._n == 0:
                self._first = estimate.first + start
            n = min(estimate.n_times - start, len(self._times) - self._n)
            into, out_of = slice(self._n, self._n + n), slice(start, start + n)
            self._data[:, into] = estimate.data[:, out_of]
            self._times[into] = estimate.times[out_of]
            self._flags[into] = estimate.flags[out_of]
            self._n += n
            start += n
            if self._n == len(self._times):
                self.flush()

    def flush(self) -> None:
        """Write what is there."""
        n, self._n = self._n, 0
        if n == 0:
            return
        name = f"{self._prefix.name}-{self.segments:03d}"
        folder = self._prefix.parent
        partial = [folder / f".{name}.partial{end}" for end in ("-lh.stc", "-rh.stc", "-info.npz")]
        final = [folder / f"{name}{end}" for end in ("-lh.stc", "-rh.stc", "-info.npz")]
        try:
            self._write(folder / f".{name}.partial", partial[2], n)
            for source, target in zip(partial, final, strict=True):
                source.replace(target)
        except (OSError, MemoryError) as error:
            for path in (*partial, *final):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            self.lost += n
            if isinstance(error, MemoryError):
                why, remedy = "no memory", "End other programs, or make segments shorter: segment_s under [output.files]."
            else:
                why, remedy = error.strerror or str(error), "Free some space, or stop and choose another disk."
            self.error = SinkError(
                f"output.files: {final[0]} cannot be written ({why}); {n} estimates are lost "
                f"({self.lost} so far), imaging goes on, the next segment will be tried. {remedy}"
            )
            logger.error("%s", self.error)
        else:
            self.segments += 1
            self.written += n
            self.error = None

    def _write(self, partial: Path, info: Path, n: int) -> None:
        origin = self._first if self._origin is None else self._origin
        estimate = mne.SourceEstimate(
            self._data[:, :n],
            [np.asarray(own) for own in self._sources.vertices],
            tmin=(self._first - origin) / self._sfreq,
            tstep=1 / self._sfreq,
            subject=self._sources.head,
        )
        estimate.save(partial, ftype="stc", overwrite=True, verbose="ERROR")
        with info.open("wb") as file:
            np.savez(
                file,
                times=self._times[:n],
                flags=self._flags[:n],
                first=np.int64(self._first),
                unit=np.str_(self._unit),
                solver=np.str_(self._solver),
                head=np.str_(self._sources.head),
                fingerprint=np.str_(self._sources.fingerprint),
            )


class StcFiles:
    """Writes estimates behind a mailbox: `put` never waits for the disk; what the mailbox drops is counted as lost.

    Parameters
    ----------
    settings, sources, sfreq, solver
        As for `SegmentWriter`.
    on_failure : callable | None
        Called when the writing thread dies (a full disk, or no memory, does not kill it).

    Raises
    ------
    SinkError
        See `SegmentWriter`.
    """

    def __init__(
        self,
        settings: FileSettings,
        sources: SourceSpaceDescription,
        sfreq: float,
        on_failure: Callable[[], None] | None = None,
        *,
        solver: str = "",
    ) -> None:
        self._writer = SegmentWriter(settings, sources, sfreq, solver)
        self._waiting: Mailbox[SourceEstimate] = Mailbox(WAITING_HOPS)
        self._hop_length = 0
        self._worker = Worker("source estimate files", self._step, on_failure).start()

    def put(self, estimate: SourceEstimate) -> None:
        """Hand over one hop; from one thread."""
        self._hop_length = max(self._hop_length, estimate.n_times)
        self._waiting.put(estimate)

    @property
    def status(self) -> FileStatus:
        """Now; from any thread."""
        writer = self._writer
        lost = writer.lost + self._waiting.n_dropped * self._hop_length
        return FileStatus(writer.written, lost, writer.segments, str(writer.error) if writer.error else None)

    def check(self) -> None:
        """Raise WorkerFailed when the writing thread has died."""
        self._worker.check()

    def close(self, timeout_s: float = 30.0) -> FileStatus:
        """Write what is waiting, end the thread, and say what the files hold.

        Raises
        ------
        WorkerFailed
            The thread died of something else than the disk, or the disk stands still.
        """
        self._worker.stop(timeout_s)
        for estimate in self._waiting.take_all():
            self._writer.add(estimate)
        self._writer.flush()
        return self.status

    def __enter__(self) -> StcFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _step(self) -> None:
        estimate = self._waiting.take(TAKE_S)
        if estimate is not None:
            self._writer.add(estimate)
