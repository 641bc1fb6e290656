from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mne
import numpy as np
import pytest

from rt_mmdf.core.blocks import Flag, SourceEstimate, StageStamps
from rt_mmdf.core.errors import SinkError
from rt_mmdf.sinks import stc_files
from rt_mmdf.sinks.settings import FileSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.sinks.stc_files import SegmentWriter, StcFiles

SFREQ = 100.0
SOURCES = SourceSpaceDescription("template", "abc", (np.arange(0, 60, 2), np.arange(5, 25)), np.zeros((50, 3)))
STAMPS = StageStamps(*[0.0] * 6)


def estimate(first: int, n_times: int = 10) -> SourceEstimate:
    data = (np.arange(first, first + n_times) + np.arange(50)[:, None] / 64).astype(np.float32)
    flags = np.zeros(n_times, dtype=np.uint32)
    flags[0] = int(Flag.GAP) if first == 0 else 0
    times = 5000.0 + np.arange(first, first + n_times) / SFREQ
    return SourceEstimate(data, times, flags, first, first // 10, "A m", STAMPS)


def files(prefix: Path) -> list[str]:
    return sorted(path.name for path in prefix.parent.iterdir())


def read(prefix: Path, number: int) -> tuple[mne.SourceEstimate, dict[str, np.ndarray]]:
    stc = mne.read_source_estimate(f"{prefix}-{number:03d}-lh.stc")
    with np.load(f"{prefix}-{number:03d}-info.npz") as info:
        return stc, dict(info)


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """The operating system refuses longer files (EFBIG), as a full disk refuses them (ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_was_put_in_is_what_mne_reads(tmp_path: Path) -> None:
    prefix = tmp_path / "made" / "on the way" / "session"
    with StcFiles(FileSettings(prefix=prefix, segment_s=0.25), SOURCES, SFREQ) as sink:
        for first in range(0, 60, 10):
            sink.put(estimate(first))
    assert sink.status == stc_files.FileStatus(written=60, lost=0, segments=3, error=None)
    whole = estimate(0, 60)
    pieces = [read(prefix, number) for number in range(3)]
    np.testing.assert_array_equal(np.hstack([stc.data for stc, _ in pieces]), whole.data)
    np.testing.assert_array_equal(np.concatenate([info["times"] for _, info in pieces]), whole.times)
    np.testing.assert_array_equal(np.concatenate([info["flags"] for _, info in pieces]), whole.flags)
    assert [int(info["first"]) for _, info in pieces] == [0, 25, 50]
    assert [stc.tmin for stc, _ in pieces] == pytest.approx([0.0, 0.25, 0.5])
    stc, info = pieces[0]
    assert stc.tstep == pytest.approx(1 / SFREQ)
    np.testing.assert_array_equal(stc.vertices[0], SOURCES.vertices[0])
    np.testing.assert_array_equal(stc.vertices[1], SOURCES.vertices[1])
    assert str(info["unit"]) == "A m"
    assert str(info["fingerprint"]) == "abc"
    assert len(files(prefix)) == 9


def test_skipped_hops_begin_a_new_segment(tmp_path: Path) -> None:
    writer = SegmentWriter(FileSettings(prefix=tmp_path / "s", segment_s=1.0), SOURCES, SFREQ)
    for first in (100, 110, 140):
        writer.add(estimate(first))
    writer.flush()
    (early, _), (late, info) = read(tmp_path / "s", 0), read(tmp_path / "s", 1)
    assert early.data.shape[1] == 20
    assert late.tmin == pytest.approx(0.4)
    assert int(info["first"]) == 140


def test_a_full_disk_costs_the_segments_that_do_not_fit_and_nothing_else(tmp_path: Path) -> None:
    prefix = tmp_path / "s"
    with StcFiles(FileSettings(prefix=prefix, segment_s=0.1), SOURCES, SFREQ) as sink:
        sink.put(estimate(0))
        _wait(lambda: sink.status.written == 10)
        with largest_file(500):
            sink.put(estimate(10))
            _wait(lambda: sink.status.lost == 10)
            status = sink.status
            assert status.error is not None
            assert "s-001-lh.stc cannot be written" in status.error
            assert "imaging goes on" in status.error
            assert len(files(prefix)) == 3  # no half file is left behind
        sink.put(estimate(20))
        sink.check()
    assert sink.status == stc_files.FileStatus(written=20, lost=10, segments=2, error=None)
    np.testing.assert_array_equal(read(prefix, 0)[0].data, estimate(0).data)
    late, info = read(prefix, 1)
    np.testing.assert_array_equal(late.data, estimate(20).data)
    assert int(info["first"]) == 20


def test_no_memory_costs_the_segment_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: object) -> None:
        raise MemoryError

    with StcFiles(FileSettings(prefix=tmp_path / "s", segment_s=0.1), SOURCES, SFREQ) as sink:
        with monkeypatch.context() as patch:
            patch.setattr(SegmentWriter, "_write", no_room)
            sink.put(estimate(0))
            _wait(lambda: sink.status.lost == 10)
        assert "s-000-lh.stc cannot be written (no memory); 10 estimates are lost" in str(sink.status.error)
        sink.put(estimate(10))
    assert sink.status == stc_files.FileStatus(written=10, lost=10, segments=1, error=None)
    np.testing.assert_array_equal(read(tmp_path / "s", 0)[0].data, estimate(10).data)


def test_a_disk_that_stands_still_never_makes_the_engine_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stc_files, "WAITING_HOPS", 4)
    release = threading.Event()
    write = SegmentWriter._write
    monkeypatch.setattr(SegmentWriter, "_write", lambda *args: (release.wait(20), write(*args))[1])
    with StcFiles(FileSettings(prefix=tmp_path / "s", segment_s=0.1), SOURCES, SFREQ) as sink:
        sink.put(estimate(0))
        _wait(lambda: len(sink._waiting) == 0)  # the thread has taken it, and waits for the disk
        for first in range(10, 110, 10):
            sink.put(estimate(first))
        assert sink.status.lost == 60
        release.set()
    assert sink.status.written == 50
    assert int(read(tmp_path / "s", 4)[1]["first"]) == 100


def test_files_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    settings = FileSettings(prefix=tmp_path / "s", segment_s=0.1)
    with StcFiles(settings, SOURCES, SFREQ) as sink:
        sink.put(estimate(0))
    with pytest.raises(SinkError, match="nothing is overwritten"):
        SegmentWriter(settings, SOURCES, SFREQ)


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="cannot be made"):
        SegmentWriter(FileSettings(prefix=tmp_path / "file" / "s"), SOURCES, SFREQ)


def _wait(condition: object, limit_s: float = 10.0) -> None:
    """Until the writing thread has come so far."""
    pause = threading.Event()
    for _ in range(int(limit_s / 0.005)):
        if condition():  # type: ignore[operator]
            return
        pause.wait(0.005)
    raise AssertionError(f"the condition did not come true within {limit_s:g} s")
