"""The whole way over the real network: a replay in a process of its own, imaged live, and heard by a stranger's client."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import mne
import numpy as np
import psutil
import pytest
from scipy.signal import sosfilt

from rt_mmdf.app.session import Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.core.channels import Modality
from rt_mmdf.lsl.interface import ChannelDescription, Inlet, StreamDescription
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.preprocessing.filters import CausalFilter
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS
from rt_mmdf.sinks.marks import MarksOutlet

pytestmark = [pytest.mark.lsl, pytest.mark.slow]

LIMIT_S = 60.0
INVALID = np.uint32(Flag.INVALID)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "rt_mmdf.cli", *map(str, words)]


@contextmanager
def running(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A command of rt-mmdf as a process, which is gone afterwards."""
    process = subprocess.Popen(
        command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def wait_until(what: str, done: Callable[[], bool], look: Callable[[], object] = lambda: None) -> None:
    pause, deadline = Signal(), time.monotonic() + LIMIT_S
    while not done():
        look()
        assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what}"
        pause.wait(0.05)


@pytest.fixture
def prefix() -> str:
    return f"t{uuid4().hex[:10]}"


@pytest.mark.sample
@pytest.mark.parametrize("method", ["MNE", "dSPM", "sLORETA", "eLORETA"])
def test_live_equals_offline_on_the_real_recording(
    method: str,
    prefix: str,
    sample_data: Path,
    tmp_path: Path,
    sample_settings: Callable[..., SessionSettings],
    offline: Any,
) -> None:
    log_file, loops = tmp_path / "log.json", 2
    recording = sample_data / "sample_audvis_5s_raw.fif"
    estimates: list[SourceEstimate] = []
    words = ("--prefix", prefix, "--loop", loops, "--wait-for-consumers", 60, "--log", log_file)
    with running("replay", recording, *words) as replay:
        session = Session(sample_settings(prefix=prefix, method=method), NetworkTransport(), on_estimate=estimates.append)
        with session:
            wait_until("the replay ends", lambda: replay.poll() is not None, session.check)
    log = json.loads(log_file.read_text())["streams"]["meg"]
    n_total, sfreq = log["n_sent"], log["sfreq"]
    assert n_total == loops * log["n_per_loop"]
    times = np.concatenate([e.times for e in estimates])
    index = (times - log["stamp_0"]) * sfreq  # 0: the first sample of the replay
    numbers = np.rint(index).astype(int)
    assert np.abs(index - numbers)[numbers < n_total].max() < 0.1
    first = numbers[0]
    assert (
        first >= 0
    )  # when it begins depends on how soon liblsl has measured the clocks: from there on, every sample counts
    inside = numbers < n_total - session.engine.intake.hop  # the last hop never filled
    np.testing.assert_array_equal(numbers[inside], first + np.arange(inside.sum()))
    assert [e.first for e in estimates] == [session.engine.intake.hop * k for k in range(len(estimates))]
    assert session.engine.counts.skipped == session.intake.overwritten == 0
    flags = np.concatenate([e.flags for e in estimates])
    assert not (flags[inside] & INVALID).any()
    played = np.tile(offline.in_file_order(session)[:, : log["n_per_loop"]], loops)
    wanted = offline.image(session, played[:, first:n_total])
    got = np.hstack([e.data for e in estimates])[:, inside]
    assert got.shape[1] > n_total / 2
    assert offline.relative_difference(got, wanted[:, : got.shape[1]]) < 1e-4


@pytest.mark.sample
def test_through_fitted_clocks_live_equals_the_resampled_recording(
    prefix: str,
    sample_data: Path,
    tmp_path: Path,
    sample_settings: Callable[..., SessionSettings],
    offline: Any,
) -> None:
    log_file, estimates = tmp_path / "log.json", []
    words = ("--prefix", prefix, "--wait-for-consumers", 60, "--log", log_file)
    with running("replay", sample_data / "sample_audvis_5s_raw.fif", *words) as replay:
        settings = sample_settings(prefix=prefix, grid="clock")
        session = Session(settings, NetworkTransport(), on_estimate=estimates.append, keep_map=True)
        with session:
            wait_until("the replay ends", lambda: replay.poll() is not None, session.check)
    logs = json.loads(log_file.read_text())["streams"]
    aligner = session.intake.aligner
    ahead = {m: round((aligner.first_stamp(m) - logs[m]["stamp_0"]) * logs[m]["sfreq"]) for m in Modality}
    times, flags = (np.concatenate([getattr(e, name) for e in estimates]) for name in ("times", "flags"))
    whole = (flags & int(Flag.EEG_MISSING | Flag.MEG_MISSING)) == 0
    n = int(np.argmin(whole)) if not whole.all() else len(whole)  # the recording ends before the session does
    assert session.engine.counts.skipped == session.intake.overwritten == 0
    wanted = offline.image(session, offline.resampled(session, offline.in_file_order(session), times[:n], ahead))
    got = np.hstack([e.data for e in estimates])[:, :n]
    inside = (times[:n] > times[0] + 0.2) & (times[:n] < times[n - 1] - 0.3)  # the long sinc needs both sides
    assert inside.sum() > 300
    assert offline.relative_difference(got[:, inside], wanted[:, inside]) < 1e-3


def test_a_stranger_hears_what_was_imaged(
    prefix: str, small_recording: Path, small_content: Callable[..., dict[str, Any]]
) -> None:
    estimates: list[SourceEstimate] = []
    transport = NetworkTransport()
    heard: dict[str, tuple[list[Any], list[np.ndarray]]] = {}

    def listen(inlets: dict[str, Inlet]) -> None:
        for name, inlet in inlets.items():
            data, stamps = inlet.pull(0.0)
            if len(stamps):
                heard.setdefault(name, ([], []))[0].append(data)
                heard[name][1].append(stamps)

    with running("replay", small_recording, "--prefix", prefix, "--loop", "inf"):
        session = Session(SessionSettings.model_validate(small_content(prefix)), transport, on_estimate=estimates.append)
        inlets: dict[str, Inlet] = {}
        names = {end: f"{prefix}-{end}" for end in ("sources", "sources-companion", "sources-strongest", "health")}
        for end, name in names.items():
            (found,) = transport.resolve(name=name, timeout_s=10.0)
            inlets[end] = transport.inlet(found)
        with session:
            wait_until("3 s of estimates", lambda: len(estimates) > 3 * 250 / 2, lambda: (session.check(), listen(inlets)))
            wait_until("health, twice", lambda: len(heard.get("health", ((), ()))[1]) > 1, lambda: listen(inlets))
            status = session.status()
        described = {end: inlet.description for end, inlet in inlets.items()}
        for inlet in inlets.values():
            inlet.close()
    head = session.imaging.head
    # the estimate: what on_estimate saw, bit by bit
    data, stamps = (np.concatenate(parts) for parts in heard["sources"])
    own_data = np.hstack([e.data for e in estimates]).T
    own_times = np.concatenate([e.times for e in estimates])
    start = int(np.flatnonzero(own_times == stamps[0])[0])
    np.testing.assert_array_equal(stamps, own_times[start : start + len(stamps)])
    np.testing.assert_array_equal(data, own_data[start : start + len(stamps)])
    assert len(stamps) > 500
    # its companion: same stamps; flags and hop of the same sample
    rows, row_stamps = (np.concatenate(parts) for parts in heard["sources-companion"])
    common = np.intersect1d(stamps, row_stamps)
    assert len(common) > 500
    flags = np.concatenate([e.flags for e in estimates])
    hops = np.concatenate([np.full(e.n_times, e.hop) for e in estimates])
    at = np.searchsorted(own_times, row_stamps)
    np.testing.assert_array_equal(own_times[at], row_stamps)
    column = COMPANION_COLUMNS.index
    np.testing.assert_array_equal(rows[:, column("flags")], flags[at])
    np.testing.assert_array_equal(rows[:, column("hop")], hops[at])
    stages = rows[:, [column(s) for s in ("received", "aligned", "preprocessed", "solved", "published")]]
    assert (np.diff(stages, axis=1) >= 0).all()
    # the strongest source is the strongest source
    tops, top_stamps = (np.concatenate(parts) for parts in heard["sources-strongest"])
    at = np.searchsorted(own_times, top_stamps)
    np.testing.assert_array_equal(tops[:, 0], np.abs(own_data[at]).argmax(axis=1))
    np.testing.assert_array_equal(tops[:, 1], own_data[at, tops[:, 0].astype(int)])
    # what the descriptions say is enough to draw it
    channels = described["sources"].channels
    assert [c.name for c in channels[:1] + channels[-1:]] == [f"lh-{head.vertices[0][0]}", f"rh-{head.vertices[1][-1]}"]
    np.testing.assert_allclose([c.position for c in channels], head.source_positions_mm * 1e-3, atol=1e-6)
    assert described["sources"].sfreq == 250.0
    extra = described["sources"].extra
    assert extra["estimate/unit"] == "dimensionless"
    assert extra["head/fingerprint"] == head.fingerprint
    assert [c.name for c in described["sources-companion"].channels] == list(COMPANION_COLUMNS)
    # health is JSON, and complete
    texts = [json.loads(row[0]) for part in heard["health"][0] for row in part]
    assert set(texts[-1]) == set(status)
    assert texts[-1]["streams"]["eeg"]["counts"]["lost"] == 0
    assert texts[-1]["estimates"] <= len(estimates)


def test_what_is_published_on_request_is_heard_and_ends_with_the_session(
    prefix: str, small_recording: Path, small_content: Callable[..., dict[str, Any]]
) -> None:
    transport = NetworkTransport()
    content = small_content(prefix) | {
        "second_solver": {"method": "MNE"},
        "average": {"markers": {"name": f"{prefix}-stimuli"}, "events": {"e": [1]}, "tmax_s": 0.2, "update_s": 0},
        "output": {"sensors": {"max_hz": 125.0}},
    }
    threads = set(threading.enumerate())
    heard: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    markers = StreamDescription(f"{prefix}-stimuli", "Markers", prefix, 0.0, "int32", (ChannelDescription("m"),), {})
    sent: list[float] = []

    def listen() -> None:
        session.check()
        for end, inlet in inlets.items():
            data, stamps = inlet.pull(0.0)
            if len(stamps):
                heard.setdefault(end, ([], []))[0].append(data)
                heard[end][1].append(stamps)
        now = transport.clock.now()
        if stimuli is not None and (not sent or now > sent[-1] + 0.4):
            sent.append(now)
            stimuli.push(np.array([[1]]), now)

    def n_trials() -> int:
        return int(session.optional.status()["average"]["events"]["e"]["n_trials"])

    stimuli = None
    with running("replay", small_recording, "--prefix", prefix, "--loop", "inf", "--no-markers"):
        session = Session(SessionSettings.model_validate(content), transport)
        inlets: dict[str, Inlet] = {}
        for end in ("sources", "second", "second-companion", "sensors", "average-e", "average-e-companion"):
            (found,) = transport.resolve(name=f"{prefix}-{end}", timeout_s=10.0)
            inlets[end] = transport.inlet(found)
        with session, MarksOutlet(transport, f"{prefix}-marks") as marks:
            stimuli = transport.outlet(markers)  # begins after the session has
            wait_until("three trials", lambda: n_trials() >= 3, listen)
            wait_until("marks are heard", lambda: session.optional.status()["marks"]["listening_to"] == 1, listen)
            marks.publish("averages anew", command="reset-average")
            wait_until("the averages begin anew", lambda: session.optional.status()["average"]["resets"] == 1, listen)
            wait_until("two trials more", lambda: n_trials() >= 2, listen)
            status = session.status()
        for inlet in inlets.values():
            inlet.close()
        stimuli.close()
    wait_until("the session's threads end", lambda: set(threading.enumerate()) <= threads)
    joined = {end: tuple(np.concatenate(parts) for parts in both) for end, both in heard.items()}
    both, at, of_second = np.intersect1d(joined["sources"][1], joined["second"][1], return_indices=True)
    assert len(both) > 500
    one, two = joined["sources"][0][at], joined["second"][0][of_second]
    finite = np.isfinite(one).all(axis=1) & np.isfinite(two).all(axis=1)
    assert finite.sum() > 400
    # MNE and dSPM differ by one factor per source
    factor = (one[finite] * two[finite]).sum(axis=0) / (two[finite] ** 2).sum(axis=0)
    np.testing.assert_allclose(one[finite], two[finite] * factor, atol=1e-4 * np.abs(one[finite]).max())
    assert joined["sensors"][0].shape[1] == 366
    assert np.diff(joined["sensors"][1]) == pytest.approx(1 / 125, rel=0.01)
    rows, stamps = joined["average-e-companion"]
    trials = rows[rows[:, 1] == 0, 3]
    assert (np.diff(trials) <= 1).all()
    assert 0 in trials
    data, data_stamps = joined["average-e"]
    for stamp in np.unique(stamps):
        update, own = rows[stamps == stamp], data[data_stamps == stamp]
        assert len(update) == 76
        assert len(own) in (0, 76)  # the last one may have been on its way when we closed
        assert np.isfinite(own).all() == bool(update[0, 3]) or not len(own)
    assert status["second"]["skipped_hops"] <= status["second"]["hops"] / 2
    assert status["average"]["markers"]["uncertainty_ms"] < 5.0
    # the newest event is one that was sent, and on this machine all clocks are one
    assert np.abs(np.array(sent) - status["average"]["events"]["e"]["newest_event"]).min() < 5e-3


REPORT = {
    "solver": str,
    "n_sources": int,
    "n_channels": int,
    "hops": int,
    "estimates": int,
    "missed_deadlines": int,
    "skipped_hops": int,
    "lost_samples": {"eeg": int, "meg": int},
    "alignment_ms": {"p50": float, "p99": float},
    "latency_ms": {"p50": float, "p90": float, "p99": float, "max": float},
    "le_mm": type(None),
    "cpu_cores": float,
    "rss_mb": float,
    "versions": dict,
}


def check_report(path: Path, **changes: Any) -> dict[str, Any]:
    """Every promised key, of the promised type."""
    report: dict[str, Any] = json.loads(path.read_text())
    for key, kind in (REPORT | changes).items():
        if isinstance(kind, dict):
            assert {inner: type(value) for inner, value in report[key].items()} == kind, key
        else:
            assert isinstance(report[key], kind), key
    return report


def children_of_this_process() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture
def replayed(
    prefix: str, small_recording: Path, small_content: Callable[..., dict[str, Any]], as_toml: Any, tmp_path: Path
) -> Iterator[Path]:
    """Configuration of streams that are being replayed."""
    with running("replay", small_recording, "--prefix", prefix, "--loop", "inf"):
        yield as_toml(small_content(prefix), tmp_path / "session.toml")


def test_monitor_ends_by_itself_and_by_ctrl_c_with_the_scorecard(replayed: Path, tmp_path: Path) -> None:
    report = tmp_path / "by itself.json"
    done = subprocess.run(
        command("monitor", replayed, "--seconds", 4, "--report", report),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Scorecard" in done.stdout
    seen = check_report(report)
    assert (seen["solver"], seen["n_sources"], seen["n_channels"]) == ("dSPM", 1284, 366)
    assert seen["estimates"] > 250
    assert seen["lost_samples"] == {"eeg": 0, "meg": 0}

    report = tmp_path / "by Ctrl-C.json"
    with running("monitor", replayed, "--report", report) as monitor:
        assert monitor.stderr is not None
        for line in monitor.stderr:
            if "Publishing" in line:  # it runs now
                break
        monitor.send_signal(signal.SIGINT)
        out, err = monitor.communicate(timeout=LIMIT_S)
        assert monitor.returncode == 0, err
    assert "Ended by Ctrl-C" in err
    assert "Scorecard" in out
    assert "Traceback" not in err
    check_report(report, latency_ms=dict, alignment_ms=dict)  # too short for figures: null, not made up


def test_calibrate_measures_what_numpy_does(replayed: Path, small_recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "rest-cov.fif"
    done = subprocess.run(
        command("calibrate", replayed, "--seconds", 4, "--out", out),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = mne.read_cov(out, verbose="ERROR")
    raw = mne.io.read_raw_fif(small_recording, verbose="ERROR")
    settings = SessionSettings.model_validate({"acquisition": {"eeg": {"name": "any"}}}).preprocessing
    causal = CausalFilter.from_settings(settings.filters, raw.info["sfreq"])
    data = raw.get_data(measured["names"])
    # the replay goes round and round, and the measurement began anywhere in it
    settled = sosfilt(causal.sos, np.tile(data, 8), axis=1)[:, 3 * data.shape[1] :]
    n_samples, eeg = int(measured["nfree"]), slice(0, 60)
    assert 1000 <= n_samples < 1100

    def difference(start: int, rows: slice) -> float:
        expected = np.cov(settled[rows, start : start + n_samples])
        scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        return float(np.linalg.norm((measured.data[rows, rows] - expected) / scale) / np.linalg.norm(expected / scale))

    begun = min(range(data.shape[1]), key=lambda start: difference(start, eeg))
    assert difference(begun, slice(None)) < 5e-3, f"{done.stdout}\n{done.stderr}"  # what was left out stands there


def test_eeg_alone_is_imaged_and_said(
    prefix: str, small_recording: Path, small_content: Callable[..., dict[str, Any]], as_toml: Any, tmp_path: Path
) -> None:
    config, report = as_toml(small_content(prefix, ("eeg",)), tmp_path / "session.toml"), tmp_path / "report.json"
    with running("replay", small_recording, "--prefix", prefix, "--only", "eeg", "--loop", "inf"):
        done = subprocess.run(
            command("monitor", config, "--seconds", 3, "--report", report),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "imaging from EEG alone" in " ".join(done.stderr.split())
    nothing = type(None)  # there is nothing to lose of MEG, and nothing to align with
    seen = check_report(report, lost_samples={"eeg": int, "meg": nothing}, alignment_ms={"p50": nothing, "p99": nothing})
    assert (seen["n_channels"], seen["modalities"]) == (60, ["eeg"])
    assert seen["estimates"] > 100


def test_the_demo_finds_its_sources(tmp_path: Path) -> None:
    report, out = tmp_path / "report.json", tmp_path / "out"
    before = children_of_this_process()
    done = subprocess.run(
        command("demo", "--seconds", 6, "--report", report, "--out", out, "--no-view"),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = check_report(report, le_mm={"median": float, "p90": float})
    assert seen["le_mm"]["median"] < 30
    assert seen["alignment_source"] == "truth"
    assert seen["alignment_ms"]["p99"] < 0.5
    assert seen["lost_samples"] == {"eeg": 0, "meg": 0}
    assert (seen["n_channels"], seen["n_sources"]) == (366, 5124)
    picture = (out / "source_map.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert 20_000 < len(picture) < 5_000_000
    assert children_of_this_process() == before
