"""The recording of a session: taps on all that comes in and goes out, and a description of it beside the file."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import rt_mmdf
from rt_mmdf.app.scorecard import plain, versions, write_json
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import SourceEstimate
from rt_mmdf.core.errors import ConfigurationError, SinkError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.lsl.interface import Clock, StreamDescription
from rt_mmdf.lsl.library import liblsl_version
from rt_mmdf.sinks.recording import TEXT_BYTES, EstimateTrack, Recorder, StreamTrack, Track
from rt_mmdf.sinks.settings import RecordSettings

if TYPE_CHECKING:
    from rt_mmdf.app.session import Session

logger = logging.getLogger(__name__)


def recorded(settings: SessionSettings, file: Path | None, *, overwrite: bool = False) -> SessionSettings:
    """The settings with what the command line says of the recording.

    Raises
    ------
    ConfigurationError
        `overwrite` without a recording, or a file that is no ``.xdf``.
    """
    given = settings.output.record
    content: dict[str, Any] = {} if given is None else given.model_dump()
    if file is not None:
        content["file"] = file
    if overwrite:
        content["overwrite"] = True
    if not content:
        return settings
    if "file" not in content:
        raise ConfigurationError("--overwrite: nothing is recorded. Give --record FILE.xdf, or [output.record].")
    record = validate_settings(content, RecordSettings, where="--record")
    return settings.model_copy(update={"output": settings.output.model_copy(update={"record": record})})


class SessionRecorder:
    """Records a session that is ready, from its construction until `close`.

    In the file, by the label of each stream: ``eeg``, ``meg`` (samples, stamps and clock offsets as they came), ``markers``
    of the averages and ``marks`` of operators with the clocks of their senders, ``health``, ``sources`` and
    ``sources_companion`` (the first solver's estimates, reduced unless all are asked for). Not in it: the second solver,
    averages, cleaned sensors, all of which follow from it.

    Raises
    ------
    SinkError
        The file or its description cannot be written, or is there already.
    """

    def __init__(self, settings: SessionSettings, record: RecordSettings, session: Session, clock: Clock) -> None:
        intake, average, marks = session.intake, session.optional.average, session.optional.marks
        tracks: list[Track] = []
        known: dict[str, StreamDescription] = {}
        leaves: dict[str, dict[str, str]] = {}
        sensors: dict[str, StreamTrack] = {}
        for modality, receiver in intake.receivers.items():
            track = sensors[receiver.label] = StreamTrack(receiver.label)
            receiver.taps.append(track.put)
            known[receiver.label] = receiver.description
            leaves[receiver.label] = {"rt_mmdf/acquisition": settings.acquisition[modality].model_dump_json()}
            tracks.append(track)
        intake.watch.taps.append(lambda label, measured: sensors[label].put_offset(measured))
        if average is not None:
            markers = StreamTrack("markers", TEXT_BYTES)
            average.receiver.taps.append(markers.put)
            average.clock_taps.append(lambda label, measured: markers.put_offset(measured))
            if average.receiver.description is not None:
                known["markers"] = average.receiver.description
            tracks.append(markers)
        if marks is not None:
            heard = StreamTrack("marks", TEXT_BYTES)
            marks.taps.append(heard.put)
            marks.clock_taps.append(lambda description, measured: heard.put_offset(measured, description))
            tracks.append(heard)
        self._health = StreamTrack("health", TEXT_BYTES)
        self._health_stream = session.health.stream
        known["health"] = session.health.stream
        tracks.append(self._health)
        self._estimates: EstimateTrack | None = None
        if record.estimates != "none":
            name = f"{settings.name}-sources"
            self._estimates = EstimateTrack(name, session.sources, session.described, record)
            known |= dict(zip(self._estimates.labels, self._estimates.streams, strict=True))
            tracks.append(self._estimates)
        self._clock = clock
        self._beside = record.description_file
        self.announcement = _announcement(record, known)
        here = ("health", *EstimateTrack.labels)
        self._recorder = Recorder(record, self._clock, tracks, known, leaves, here)
        self._description = {
            "TaskName": settings.name,
            "RecordingFile": record.file.name,
            "RecordingFormat": "XDF 1.0",
            "RecordingStarted": self._recorder.started.isoformat(timespec="milliseconds"),
            "RecordingStartedLSL": self._clock.now(),
            "SoftwareName": "rt_mmdf",
            "SoftwareVersion": rt_mmdf.__version__,
            "SoftwareVersions": versions(liblsl_version()),
            "Configuration": settings.model_dump(mode="json"),
            "Head": {"name": session.imaging.head.name, "fingerprint": session.imaging.head.fingerprint},
            "Solver": session.imaging.solver_name,
            "Unit": session.imaging.solver.unit,
            "Model": session.imaging.model_facts,
        }
        try:
            write_json(self._beside, self._so_far(ended=None))
        except BaseException:
            self._recorder.close()
            raise
        self._recorder.start()
        self._closed = False

    @classmethod
    def of(cls, settings: SessionSettings, session: Session, clock: Clock) -> SessionRecorder | None:
        """The recorder that the settings ask for; None where they ask for none."""
        record = settings.output.record
        return None if record is None else cls(settings, record, session, clock)

    def put_estimate(self, estimate: SourceEstimate) -> None:
        """Take a hop with complete stamps, from the engine's thread; returns at once."""
        if self._estimates is not None:
            self._estimates.put(estimate)

    def put_health(self, text: str) -> None:
        """Take a report, from the thread that makes them; returns at once."""
        content = np.array([[text]], dtype=object)
        self._health.put(self._health_stream, content, np.array([self._clock.now()]))

    @property
    def n_raised(self) -> int:
        """How often the writing thread has raised, and has gone on."""
        return self._recorder.n_raised

    @property
    def unflushed_s(self) -> float:
        """Seconds since the last flush began; about one, unless the disk takes longer."""
        return self._recorder.unflushed_s

    def check(self) -> None:
        """Raise WorkerFailed when the writing thread has died."""
        self._recorder.check()

    def status(self) -> dict[str, Any]:
        """For the health stream: ``recording`` of `rt_mmdf.sinks.health`."""
        return self._recorder.status()

    def close(self) -> None:
        """Complete the file and its description; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._recorder.close()
        finally:
            ended = datetime.now(UTC).isoformat(timespec="milliseconds")
            try:
                write_json(self._beside, self._so_far(ended))
            except SinkError as error:
                logger.error("%s", error)

    def _so_far(self, ended: str | None) -> dict[str, Any]:
        status = self._recorder.status()
        content = {
            **self._description,
            "RecordingEnded": ended,
            "RecordingDuration": status["seconds"],
            "Bytes": status["bytes"],
            "Streams": [stream.as_dict() for stream in self._recorder.streams],
            "Dropped": status["dropped"],
            "Error": status["error"],
        }
        described: dict[str, Any] = plain(content)
        return described


def _announcement(record: RecordSettings, known: dict[str, StreamDescription]) -> str:
    """Where to, how much an hour, and for how long the disk has room."""
    rate = sum(
        stream.sfreq * (9 + stream.n_channels * np.dtype(stream.dtype).itemsize)
        for stream in known.values()
        if stream.dtype != "string"
    )
    what = {"reduced": "reduced estimates", "full": "ALL estimates", "none": "no estimates"}[record.estimates]
    text = f"Recording sensors, markers, health and {what} to {record.file}: {rate * 3.6e-6:.1f} GB an hour"
    folder = record.file.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        text += f"; {free / 1e9:.0f} GB are free, room for {free / rate / 3600:.1f} hours"
    return f"{text}."
