"""A recording holds what it was given, whatever the disk does, and counts what it could not keep."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag, SourceEstimate, StageStamps
from rt_mmdf.core.errors import SinkError
from rt_mmdf.lsl.interface import ChannelDescription, ClockOffset, StreamDescription
from rt_mmdf.lsl.memory import ManualClock
from rt_mmdf.lsl.xdf import open_whole
from rt_mmdf.sinks import recording
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS, EstimateDescription
from rt_mmdf.sinks.recording import EstimateTrack, Recorder, StreamTrack, check_recording
from rt_mmdf.sinks.settings import RecordSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription

pyxdf = pytest.importorskip("pyxdf")
read_raw_xdf = pytest.importorskip("mnelab.io.xdf").read_raw_xdf

N_CHANNELS = 4


def stream(name: str, sfreq: float = 1000.0, dtype: str = "float32", n_channels: int = N_CHANNELS) -> StreamDescription:
    channels = tuple(ChannelDescription(f"{name} {i}", "EEG", "uV") for i in range(n_channels))
    return StreamDescription(name, "EEG", f"id {name}", sfreq, dtype, channels, {}, "there", f"uid {name}")


AMP, MARKERS = stream("amp"), stream("markers", 0.0, "string", 1)


def block(first: int, n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Samples that tell which they are, and their stamps."""
    numbers = np.arange(first, first + n)
    return (numbers[:, None] + np.arange(N_CHANNELS) / 8).astype(np.float32), numbers / 997.0 + 0.1


def load(path: Path) -> dict[str, Any]:
    """Streams of a file by their labels, as they are in it."""
    file, _ = open_whole(path)
    with file:
        streams, _ = pyxdf.load_xdf(file, synchronize_clocks=False, dejitter_timestamps=False, verbose=False)
    return {s["info"]["desc"][0]["rt_mmdf"][0]["label"][0]: s for s in streams}


def check_samples(read: Any, first: int, n: int) -> None:
    data, stamps = block(first, n)
    assert read["time_series"].tobytes() == data.tobytes()
    assert read["time_stamps"].tobytes() == stamps.tobytes()


@pytest.fixture
def track() -> StreamTrack:
    return StreamTrack("eeg")


@pytest.fixture
def recorder(tmp_path: Path, track: StreamTrack) -> Iterator[Recorder]:
    """Of one stream; its thread is not started, tests call `write`."""
    made = Recorder(RecordSettings(file=tmp_path / "folder" / "a.xdf"), ManualClock(), [track], {"eeg": AMP})
    yield made
    made.close()


def file_of(recorder: Recorder) -> Path:
    return Path(recorder.status()["file"])


@given(data=st.data(), lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_put_is_in_the_file_however_it_came(
    data: st.DataObject, lengths: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    eeg, markers = StreamTrack("eeg"), StreamTrack("markers")
    path = tmp_path_factory.mktemp("law") / "a.xdf"
    recorder = Recorder(RecordSettings(file=path), ManualClock(), [eeg, markers], {"eeg": AMP})
    first, offsets, texts = 0, [], []
    for i, n in enumerate(lengths):
        eeg.put(AMP, *block(first, n))
        first += n
        if data.draw(st.booleans()):
            offsets.append(ClockOffset(at=1000.0 / 3 + i, offset=-5.0 / 7 + i, uncertainty=1e-4))
            eeg.put_offset(offsets[-1])
        if data.draw(st.booleans()):
            texts.append(f"ü{i}")
            markers.put(MARKERS, np.array([[texts[-1]]], dtype=object), np.array([i / 3]))
        if data.draw(st.booleans()):
            recorder.write(flush=data.draw(st.booleans()))
    recorder.close()
    read = load(path)
    check_samples(read["eeg"], 0, first)
    assert read["eeg"]["clock_times"] == [measured.at for measured in offsets]
    assert read["eeg"]["clock_values"] == [measured.offset for measured in offsets]
    assert int(read["eeg"]["footer"]["info"]["sample_count"][0]) == first
    assert ("markers" in read) == bool(texts)
    if texts:
        assert [row[0] for row in read["markers"]["time_series"]] == texts
    status = recorder.status()
    assert status["samples"] == {"eeg": first, "markers": len(texts)}
    assert (status["dropped"], status["error"]) == ({"eeg": 0, "markers": 0}, None)
    assert status["bytes"] == path.stat().st_size


def test_no_memory_to_merge_blocks_loses_none_of_them(
    recorder: Recorder, track: StreamTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*given: object) -> None:
        raise MemoryError

    for k in range(10):
        track.put(AMP, *block(7 * k, 7))
    with monkeypatch.context() as patch:
        patch.setattr(np, "concatenate", none_left)
        recorder.write(flush=True)
    recorder.close()
    check_samples(load(file_of(recorder))["eeg"], 0, 70)
    assert recorder.status()["dropped"] == {"eeg": 0}


def test_what_there_is_no_memory_for_is_counted_and_the_footers_tell_what_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*given: object) -> None:
        raise MemoryError

    chosen = RecordSettings(file=tmp_path / "a.xdf", estimates="full")
    amp, estimates = StreamTrack("eeg"), EstimateTrack("s-sources", SOURCES, DESCRIPTION, chosen)
    known = {"eeg": AMP, **dict(zip(estimates.labels, estimates.streams, strict=True))}
    recorder = Recorder(chosen, ManualClock(), [amp, estimates], known)
    amp.put(AMP, *block(0, 3))
    recorder.write()
    amp.put(AMP, *block(3, 5))
    amp.put_offset(ClockOffset(1.0, 2.0, 1e-4))
    estimates.put(hop(0))
    with monkeypatch.context() as patch:
        patch.setattr("rt_mmdf.sinks.recording.Reducer.__call__", none_left)
        with pytest.raises(MemoryError):
            recorder.write()
    amp.put(AMP, *block(8, 2))
    recorder.close()
    read = load(tmp_path / "a.xdf")["eeg"]
    stamps = np.concatenate([block(0, 3)[1], block(8, 2)[1]])
    np.testing.assert_array_equal(read["time_stamps"], stamps)
    footer = read["footer"]["info"]
    assert int(footer["sample_count"][0]) == 5
    assert [float(footer[key][0]) for key in ("first_timestamp", "last_timestamp")] == [stamps[0], stamps[-1]]
    assert recorder.streams[0].offsets == []
    dropped = recorder.status()["dropped"]
    assert (dropped["eeg"], dropped["sources"]) == (5, hop(0).n_times)


def test_others_read_the_same_as_an_mne_raw(recorder: Recorder, track: StreamTrack) -> None:
    """MNE-Python has no reader of XDF, MNELAB has. It reads the time of the recording as LabRecorder writes it."""
    track.put(AMP, *block(0, 2000))
    track.put(stream("stimulus", 0.0, "string", 1), np.array([["a"], ["ü"]], dtype=object), np.array([0.1, 1.1]))
    recorder.close()
    amp, stimulus = (s.number for s in recorder.streams)
    raw = read_raw_xdf(file_of(recorder), [amp], [stimulus])
    assert raw.info["sfreq"] == pytest.approx(997.0, rel=1e-3)
    assert raw.info["meas_date"] == recorder.started.replace(microsecond=0)
    assert raw.ch_names == [channel.name for channel in AMP.channels]
    assert raw.get_channel_types() == ["eeg"] * N_CHANNELS
    np.testing.assert_allclose(raw.get_data(), 1e-6 * block(0, 2000)[0].T, rtol=1e-6)
    assert [(str(a["description"]), round(a["onset"], 3)) for a in raw.annotations] == [("a", 0.0), ("ü", 1.0)]


def test_a_sender_that_is_replaced_by_another_one_is_another_stream(recorder: Recorder, track: StreamTrack) -> None:
    track.put(AMP, *block(0, 5))
    track.put(stream("other"), *block(5, 5))
    track.put(AMP, *block(10, 5))
    recorder.close()
    assert [(s.description.name, s.n_samples) for s in recorder.streams] == [("amp", 10), ("other", 5)]


def test_where_several_send_at_a_time_each_clock_is_that_of_its_own_sender(recorder: Recorder, track: StreamTrack) -> None:
    other = stream("other")
    track.put(AMP, *block(0, 5))
    track.put_offset(ClockOffset(10.0, 3.0, 1e-4), other)  # nothing has come of that one yet
    track.put(other, *block(5, 5))
    track.put_offset(ClockOffset(20.0, 7.0, 1e-4), AMP)
    recorder.close()
    assert [(s.description.name, [o.offset for o in s.offsets]) for s in recorder.streams] == [
        ("amp", [7.0]),
        ("other", [3.0]),
    ]


def test_the_thread_writes_by_itself(tmp_path: Path, track: StreamTrack) -> None:
    recorder = Recorder(RecordSettings(file=tmp_path / "a.xdf"), ManualClock(), [track], {}).start()
    for k in range(100):
        track.put(AMP, *block(10 * k, 10))
    recorder.close()
    check_samples(load(tmp_path / "a.xdf")["eeg"], 0, 1000)


# what is in the way


def test_a_file_that_is_there_is_not_overwritten_unless_that_is_asked_for(tmp_path: Path, track: StreamTrack) -> None:
    path = tmp_path / "a.xdf"
    path.write_bytes(b"precious" * 1000)
    for attempt in (check_recording, lambda s: Recorder(s, ManualClock(), [track], {})):
        with pytest.raises(SinkError, match=r"a.xdf is there already"):
            attempt(RecordSettings(file=path))
    assert path.read_bytes() == b"precious" * 1000
    again = RecordSettings(file=path, overwrite=True)
    check_recording(again)
    recorder = Recorder(again, ManualClock(), [track], {"eeg": AMP})
    track.put(AMP, *block(0, 3))
    recorder.close()
    check_samples(load(path)["eeg"], 0, 3)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, track: StreamTrack) -> None:
    (tmp_path / "file").write_text("no folder")
    chosen = RecordSettings(file=tmp_path / "file" / "a.xdf")
    for attempt in (check_recording, lambda s: Recorder(s, ManualClock(), [track], {})):
        with pytest.raises(SinkError, match=r"cannot be written"):
            attempt(chosen)


def test_a_missing_folder_is_made(recorder: Recorder) -> None:
    check_recording(RecordSettings(file=file_of(recorder).parent / "more" / "b.xdf"))
    assert file_of(recorder).exists()


@contextmanager
def disk_of(n_bytes: int) -> Iterator[None]:
    """No file grows beyond so much: writes are cut short and then refused, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_once_and_what_is_there_reads_back(
    recorder: Recorder, track: StreamTrack, caplog: pytest.LogCaptureFixture
) -> None:
    track.put(AMP, *block(0, 100))
    recorder.write(flush=True)
    whole = file_of(recorder).stat().st_size
    with disk_of(whole + 777):
        for k in range(1, 6):
            track.put(AMP, *block(100 * k, 100))
            recorder.write(flush=True)
        assert file_of(recorder).stat().st_size == whole
        recorder.close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "cannot be written" in caplog.text
    check_samples(load(file_of(recorder))["eeg"], 0, 100)
    status = recorder.status()
    assert status["samples"] == {"eeg": 100}
    assert status["dropped"] == {"eeg": 500}
    assert not status["writing"]
    assert "imaging goes on" in status["error"]


def test_nothing_is_lost_when_there_is_room_again_in_time(
    recorder: Recorder, track: StreamTrack, caplog: pytest.LogCaptureFixture
) -> None:
    track.put(AMP, *block(0, 100))
    recorder.write(flush=True)
    with disk_of(file_of(recorder).stat().st_size + 777):
        for k in range(1, 4):
            track.put(AMP, *block(100 * k, 100))
            recorder.write(flush=True)
    recorder.write(flush=True)
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    recorder.close()
    check_samples(load(file_of(recorder))["eeg"], 0, 400)
    status = recorder.status()
    assert (status["dropped"], status["writing"]) == ({"eeg": 0}, True)
    assert status["error"] is not None  # it happened


def test_what_there_is_no_memory_to_encode_is_counted_and_the_rest_reads_back(
    recorder: Recorder, track: StreamTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*given: object) -> bytes:
        raise MemoryError

    track.put(AMP, *block(0, 100))
    with monkeypatch.context() as patch:
        patch.setattr(recording.xdf, "samples", no_room)
        with pytest.raises(MemoryError):
            recorder.write(flush=True)
    assert recorder.status()["dropped"] == {"eeg": 100}
    later = replace(AMP, source_id="later")  # whose header must not be lost with its first samples
    track.put(later, *block(100, 50))
    with monkeypatch.context() as patch:
        patch.setattr(recording.xdf, "samples", no_room)
        with pytest.raises(MemoryError):
            recorder.write(flush=True)
    track.put(later, *block(150, 100))
    with disk_of(file_of(recorder).stat().st_size + 7):
        recorder.write(flush=True)
    track.put(later, *block(250, 50))
    with monkeypatch.context() as patch:  # what the disk did not take is written once, whatever happens then
        patch.setattr(recording.xdf, "samples", no_room)
        with pytest.raises(MemoryError):
            recorder.write(flush=True)
    recorder.close()
    check_samples(load(file_of(recorder))["eeg"], 150, 100)
    status = recorder.status()
    assert (status["samples"], status["dropped"]) == ({"eeg": 100}, {"eeg": 200})


def test_a_disk_that_stands_still_costs_memory_up_to_a_limit_and_what_is_pushed_out_is_counted(tmp_path: Path) -> None:
    n_bytes = 20 * (10 * N_CHANNELS * 4 + 10 * 8)  # twenty blocks of ten samples
    track = StreamTrack("eeg", n_bytes)
    recorder = Recorder(RecordSettings(file=tmp_path / "a.xdf"), ManualClock(), [track], {"eeg": AMP})
    for k in range(100):
        track.put(AMP, *block(10 * k, 10))
    assert (track.n_waiting, track.n_dropped) == (200, 800)
    assert recorder.status()["waiting"] == 200
    recorder.close()
    check_samples(load(tmp_path / "a.xdf")["eeg"], 800, 200)
    assert recorder.status()["dropped"] == {"eeg": 800}


def test_a_write_that_never_returns_keeps_nobody_waiting(
    tmp_path: Path, track: StreamTrack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "STOP_LIMIT_S", 0.3)
    stuck, free = threading.Event(), threading.Event()
    recorder = Recorder(RecordSettings(file=tmp_path / "a.xdf"), ManualClock(), [track], {"eeg": AMP})
    whole = (tmp_path / "a.xdf").stat().st_size

    def never(self: recording.XdfFile, chunks: bytes) -> None:
        stuck.set()
        free.wait(60.0)

    monkeypatch.setattr(recording.XdfFile, "append", never)
    recorder.start()
    track.put(AMP, *block(0, 10))
    assert stuck.wait(60.0)
    for k in range(1, 10):
        track.put(AMP, *block(10 * k, 10))
    assert recorder.status()["waiting"] == 90
    recorder.close()
    assert "the disk stands still" in caplog.text
    assert "the disk stands still" in recorder.status()["error"]
    assert recorder.status()["samples"] == {"eeg": 0}
    assert recorder.status()["dropped"] == {"eeg": 100}
    assert (tmp_path / "a.xdf").stat().st_size == whole
    free.set()
    recorder._worker.stop(60.0)


def test_a_deleted_folder_is_told_once_and_everything_counts_as_lost(
    recorder: Recorder, track: StreamTrack, caplog: pytest.LogCaptureFixture
) -> None:
    track.put(AMP, *block(0, 10))
    recorder.write(flush=True)
    shutil.rmtree(file_of(recorder).parent)
    for k in range(1, 5):
        track.put(AMP, *block(10 * k, 10))
        recorder.write(flush=True)
    recorder.close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    status = recorder.status()
    assert (status["samples"], status["dropped"], status["bytes"]) == ({"eeg": 0}, {"eeg": 50}, 0)
    assert "was deleted" in status["error"]
    assert not status["writing"]


def test_a_folder_that_is_moved_away_is_written_on_and_told_once(
    recorder: Recorder, track: StreamTrack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file_of(recorder).parent.rename(tmp_path / "moved")
    for k in range(3):
        track.put(AMP, *block(10 * k, 10))
        recorder.write(flush=True)
    recorder.close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    check_samples(load(tmp_path / "moved" / "a.xdf")["eeg"], 0, 30)
    assert "no longer there" in recorder.status()["error"]


WRITES_UNTIL_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_recording import AMP, ManualClock, Recorder, RecordSettings, StreamTrack, block
track = StreamTrack("eeg")
recorder = Recorder(RecordSettings(file=Path({path!r})), ManualClock(), [track], {{"eeg": AMP}})
n = 0
while True:
    for _ in range(50):
        track.put(AMP, *block(n, 20))
        n += 20
    recorder.write(flush=True)
    print(n, flush=True)
    for _ in range(5):
        track.put(AMP, *block(n, 20))
        n += 20
        recorder.write()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("n_flushes", [1, 2, 7, 30])
def test_what_was_flushed_survives_a_kill_at_any_moment(tmp_path: Path, n_flushes: int) -> None:
    path = tmp_path / "a.xdf"
    script = WRITES_UNTIL_KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        flushed = [int(process.stdout.readline()) for _ in range(n_flushes)][-1]
        process.send_signal(signal.SIGKILL)
    read = load(path)["eeg"]
    n = len(read["time_stamps"])
    assert n >= flushed
    check_samples(read, 0, n)


# estimates

SOURCES = SourceSpaceDescription(
    "template ico3", "abc123", (np.arange(0, 60, 2), np.arange(5, 25)), np.random.default_rng(0).uniform(-70, 70, (50, 3))
)
DESCRIPTION = EstimateDescription("MNE", "A m", "fixed, normal to cortex", 200.0, 12.5)


def hop(number: int) -> SourceEstimate:
    data = np.random.default_rng(number).standard_normal((50, 4)).astype(np.float32)
    times = 100.0 + (number * 4 + np.arange(4)) / 200
    flags = np.full(4, Flag.INVALID if number == 3 else 0, dtype=np.uint32)
    stamps = StageStamps(times[-1], 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    return SourceEstimate(data, times, flags, number * 4, number, "A m", stamps)


@pytest.mark.parametrize(("kind", "step"), [("reduced", 10), ("full", 1)])
def test_estimates_are_recorded_with_their_companion(kind: str, step: int, tmp_path: Path) -> None:
    chosen = RecordSettings(file=tmp_path / "a.xdf", estimates=kind, estimates_hz=20.0)
    track = EstimateTrack("s-sources", SOURCES, DESCRIPTION, chosen)
    known = dict(zip(track.labels, track.streams, strict=True))
    recorder = Recorder(chosen, ManualClock(), [track], known)
    hops = [hop(k) for k in range(10)]
    for k, estimate in enumerate(hops):
        track.put(estimate)
        if k % 3 == 0:
            recorder.write()
    recorder.close()
    read = load(tmp_path / "a.xdf")
    data, times = np.hstack([h.data for h in hops]), np.concatenate([h.times for h in hops])
    flags = np.concatenate([h.flags for h in hops])
    at = np.arange(step - 1, 40, step)
    invalid = flags.reshape(-1, step).any(axis=1)  # an interval with an invalid estimate is
    wanted = np.where(invalid[:, None], np.float32(np.nan), data.T[at])
    np.testing.assert_array_equal(read["sources"]["time_series"], wanted)
    np.testing.assert_array_equal(read["sources"]["time_stamps"], times[at])
    columns = dict(zip(COMPANION_COLUMNS, read["sources_companion"]["time_series"].T, strict=True))
    np.testing.assert_array_equal(columns["index"], at)
    np.testing.assert_array_equal(columns["hop"], at // 4)
    np.testing.assert_array_equal(columns["published"], 6.0)
    info = read["sources"]["info"]
    assert float(info["nominal_srate"][0]) == 200.0 / step
    assert info["desc"][0]["head"][0]["fingerprint"] == ["abc123"]
    assert [c["label"][0] for c in info["desc"][0]["channels"][0]["channel"]] == list(SOURCES.names)
