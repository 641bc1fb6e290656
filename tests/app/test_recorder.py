"""A session is recorded as it came in, and imaging the replay of the recording gives what was recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import make_interp_spline

from rt_mmdf.acquisition.recording import read_recording
from rt_mmdf.acquisition.replay import Replay, ReplaySettings
from rt_mmdf.app.recorder import recorded
from rt_mmdf.app.session import Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError, SinkError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import MemoryTransport
from rt_mmdf.lsl.xdf import open_whole
from rt_mmdf.sinks.marks import MarksOutlet

pyxdf = pytest.importorskip("pyxdf")

Lab = Any  # the fixture's class lives in conftest.py
EEG, MEG = Modality.EEG, Modality.MEG
SECONDS = 5.0
KIND = {EEG: ("eeg", "uV", 5.0, "int16"), MEG: ("mag", "fT", 200.0, "float32")}
MISSING = np.uint32(Flag.INVALID | Flag.EEG_MISSING | Flag.MEG_MISSING)
OFFSET_S = {EEG: 512.25, MEG: -77.5}


class Sent:
    """What the two systems send, each from a machine of its own: electrodes as whole microvolts, magnetometers in fT."""

    def __init__(self, lab: Lab, head: HeadModel, rates: dict[Modality, float], drift_ppm: dict[Modality, float]) -> None:
        self.data: dict[Modality, np.ndarray] = {}
        self.streams: dict[Modality, StreamDescription] = {}
        self.machines: dict[Modality, MemoryTransport] = {}
        for modality, (kind, unit, level, dtype) in KIND.items():
            machine = lab.transport.machine(f"{modality}-pc", offset_s=OFFSET_S[modality], drift_ppm=drift_ppm[modality])
            names = [n for n, own in zip(head.channels.names, head.channels.types, strict=True) if own == kind]
            described = tuple(ChannelDescription(name, kind, unit) for name in names)
            name = f"a-{modality.upper()}"
            rate = rates[modality]
            stream = StreamDescription(name, modality.upper(), f"id {modality}", rate, dtype, described, {"setup/room": "3"})
            times = np.arange(round(SECONDS * rate)) / rate
            rng = np.random.default_rng(len(names))
            waves = rng.normal(0, 10 * level, (8, len(names)))
            hz = rng.uniform(3, 25, 8)[:, None]
            data = np.sin(2 * np.pi * hz * times + rng.uniform(0, 6, (8, 1))).T @ waves + rng.normal(
                0, level, (len(times), len(names))
            )
            self.data[modality], self.streams[modality], self.machines[modality] = data.astype(dtype), stream, machine
            at = np.vectorize(machine.clock.at)
            lab._sending.append((machine.outlet(stream), self.data[modality], 0.3 + times, at))


def load(path: Path) -> dict[str, Any]:
    """Streams of a file by their labels, as they are in it."""
    file, _ = open_whole(path)
    with file:
        streams, _ = pyxdf.load_xdf(file, synchronize_clocks=False, dejitter_timestamps=False, verbose=False)
    return {s["info"]["desc"][0]["rt_mmdf"][0]["label"][0]: s for s in streams}


@pytest.fixture
def content(small_content: Callable[..., dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    own = {**small_content("a"), "hop_ms": 40.0}
    own["output"] = {"record": {"file": str(tmp_path / "out.xdf"), "estimates": "full"}}
    return own


def one_clock(lab: Lab, head: HeadModel) -> Sent:
    return Sent(lab, head, {EEG: 250.0, MEG: 250.0}, {EEG: 0.0, MEG: 0.0})


def test_the_file_holds_what_was_sent_and_what_was_made_of_it(
    lab: Lab, template_head_ico3: HeadModel, content: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = one_clock(lab, template_head_ico3)
    stimuli = lab.transport.machine("stimulus-pc", offset_s=-321.5)
    lab.publish_events("stimuli", [(1.0, "1"), (2.25, "go")], stimuli)
    content["average"] = {"markers": {"name": "stimuli"}, "events": {"left": [1]}}
    marks = MarksOutlet(lab.transport.machine("view-pc", offset_s=50.0), "a-marks")
    lab.looks.append(lambda second: marks.publish("moved", 2053.0) if second == 3.0 else None)
    session, estimates = lab.image(content)
    read, beside = load(tmp_path / "out.xdf"), json.loads((tmp_path / "out.json").read_text())
    for modality in Modality:
        own, stream = read[str(modality)], sent.streams[modality]
        assert own["time_series"].dtype == stream.dtype
        np.testing.assert_array_equal(own["time_series"], sent.data[modality])
        clock = sent.machines[modality].clock
        wanted = [clock.at(2000.0 + 0.3 + n / stream.sfreq) for n in range(len(sent.data[modality]))]
        np.testing.assert_allclose(own["time_stamps"], wanted, rtol=0, atol=1e-9)
        info, desc = own["info"], own["info"]["desc"][0]
        assert [info[k][0] for k in ("name", "type", "source_id")] == [stream.name, stream.type, stream.source_id]
        assert float(info["nominal_srate"][0]) == stream.sfreq
        channels = [(c["label"][0], c["type"][0], c["unit"][0]) for c in desc["channels"][0]["channel"]]
        assert channels == [(c.name, c.type, c.unit) for c in stream.channels]
        assert desc["setup"][0]["room"] == ["3"]
        assert len(own["clock_values"]) > 3
        np.testing.assert_allclose(own["clock_values"], -OFFSET_S[modality], atol=2e-5)
    assert [row[0] for row in read["markers"]["time_series"]] == ["1", "go"]
    np.testing.assert_allclose(read["markers"]["time_stamps"], [2001.0 - 321.5, 2002.25 - 321.5])
    np.testing.assert_allclose(read["markers"]["clock_values"], 321.5, atol=2e-5)
    assert [json.loads(row[0])["text"] for row in read["marks"]["time_series"]] == ["moved"]
    np.testing.assert_allclose(read["marks"]["clock_values"], -50.0, atol=2e-5)
    data, times = np.hstack([e.data for e in estimates]), np.concatenate([e.times for e in estimates])
    np.testing.assert_array_equal(read["sources"]["time_series"], data.T)
    np.testing.assert_array_equal(read["sources"]["time_stamps"], times)
    n = {"eeg": 1250, "meg": 1250, "markers": 2, "marks": 1, "health": 0, "sources": len(times)}
    status = session.scorecard().as_dict()["recording"]
    assert {label: status["samples"][label] for label in n} == n
    assert (set(status["dropped"].values()), status["error"]) == ({0}, None)
    assert {s["label"]: s["samples"] for s in beside["Streams"]} == n | {"sources_companion": len(times)}
    assert beside["Head"]["fingerprint"] == session.imaging.head.fingerprint
    assert beside["Configuration"]["hop_ms"] == 40.0
    assert beside["SoftwareVersions"]["rt_mmdf"]
    assert beside["RecordingEnded"] is not None
    assert beside["Dropped"] == status["dropped"]
    assert beside["Error"] is None
    caplog.clear()
    streams, _ = pyxdf.load_xdf(tmp_path / "out.xdf")  # as anybody would
    assert not caplog.messages
    (mark,) = (s["time_stamps"] for s in streams if s["info"]["name"] == ["a-marks"])
    np.testing.assert_allclose(mark, 2003.0, atol=3e-4)
    begins = [s["time_stamps"][0] for s in streams if s["info"]["type"][0] in ("EEG", "MEG")]
    np.testing.assert_allclose(begins, 2000.3, atol=1e-4)


def replayed(lab: Lab, content: dict[str, Any], path: Path) -> tuple[Session, list[SourceEstimate], float]:
    """The recording, played and imaged without threads; the session, its estimates, and when the replay began."""
    names = {"eeg": "a-EEG", "meg": "a-MEG", "markers": "stimuli"}
    replay = Replay(lab.transport, read_recording(path), ReplaySettings(names=names))
    estimates: list[SourceEstimate] = []
    session = lab.session({**content, "output": {}}, on_estimate=estimates.append)
    try:
        for key in session.imaging.keys_in_advance():
            session.operators.offer(key)
        for step in range(1, 50 * round(SECONDS + 1)):
            lab.clock.advance(1 / 50)
            while replay.advance() <= lab.clock.now():
                pass
            lab.round(session, step)
    finally:
        session.stop()
        replay.close()
    assert replay.finished
    return session, estimates, replay.log.streams[EEG].stamp_0


def joined(estimates: list[SourceEstimate]) -> tuple[np.ndarray, np.ndarray]:
    """Times and (n_sources, n_times) up to where a recording ends: from there on something is missing."""
    whole = (np.concatenate([e.flags for e in estimates]) & MISSING) == 0
    n = len(whole) if whole.all() else int(np.argmin(whole))
    return np.concatenate([e.times for e in estimates])[:n], np.hstack([e.data for e in estimates])[:, :n]


def test_imaging_the_replay_gives_what_was_recorded(
    lab: Lab, template_head_ico3: HeadModel, content: dict[str, Any], tmp_path: Path
) -> None:
    one_clock(lab, template_head_ico3)
    _, estimates = lab.image(content)
    read = load(tmp_path / "out.xdf")["sources"]
    n_recorded = len(joined(estimates)[0])
    _, estimates, _ = replayed(type(lab)(), content, tmp_path / "out.xdf")
    _, data = joined(estimates)
    n = min(data.shape[1], n_recorded)
    assert n > 1100
    wanted = read["time_series"][:n].T
    assert np.linalg.norm(data[:, :n] - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_imaging_the_replay_of_two_drifting_systems_gives_what_was_recorded(
    lab: Lab, template_head_ico3: HeadModel, content: dict[str, Any], tmp_path: Path
) -> None:
    """Each stream keeps its own time: by the nominal rates, 5 s at 400 ppm would be 2 ms off."""
    content["alignment"] = {"grid": "clock"}
    lab.transport.uncertainty_s = 0.0
    Sent(lab, template_head_ico3, {EEG: 200.0, MEG: 250.0}, {EEG: 60.0, MEG: -40.0})  # of the computers' clocks
    outlet, data, times, at = lab._sending[0]
    lab._sending[0] = (outlet, data, 0.3 + (times - 0.3) / (1 + 4e-4), at)  # its crystal is fast
    lab.image(content)
    read = load(tmp_path / "out.xdf")["sources"]
    recording = read_recording(tmp_path / "out.xdf")
    np.testing.assert_allclose(np.diff(recording.times[EEG]), 1 / 200.0 / (1 + 4e-4), atol=1e-7)
    np.testing.assert_allclose(np.diff(recording.times[MEG]), 1 / 250.0, atol=1e-7)
    _, estimates, began = replayed(type(lab)(), content, tmp_path / "out.xdf")
    again_times, again = joined(estimates)
    again_times = again_times - began + 2000.3
    inside = (read["time_stamps"] > 2000.3 + 2.5) & (read["time_stamps"] < again_times[-20])
    assert inside.sum() > 400
    wanted = read["time_series"][inside].T
    got = make_interp_spline(again_times, again.T, k=5)(read["time_stamps"][inside]).T
    assert np.linalg.norm(got - wanted) < 0.02 * np.linalg.norm(wanted)


def test_what_is_in_the_way_is_told_before_anything_is_prepared(lab: Lab, content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out.xdf").write_bytes(b"precious")
    with pytest.raises(SinkError, match=r"out.xdf is there already"):
        lab.session(content)
    (tmp_path / "out.xdf").unlink()
    (tmp_path / "out.json").write_text("precious")
    with pytest.raises(SinkError, match=r"out.json is there already"):
        lab.session(content)
    assert (tmp_path / "out.json").read_text() == "precious"


def test_the_command_line_says_what_is_recorded() -> None:
    plain = SessionSettings.model_validate({"acquisition": {"eeg": {"name": "amp"}}})
    assert recorded(plain, None) is plain
    record = recorded(plain, Path("a.xdf"), overwrite=True).output.record
    assert record is not None
    assert (record.file, record.overwrite, record.estimates) == (Path("a.xdf"), True, "reduced")
    with pytest.raises(ConfigurationError, match=r"ends in \.xdf"):
        recorded(plain, Path("a.dat"))
    with pytest.raises(ConfigurationError, match="nothing is recorded"):
        recorded(plain, None, overwrite=True)


def test_a_recording_that_was_cut_off_is_played_up_to_its_last_whole_chunk(
    lab: Lab, template_head_ico3: HeadModel, content: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one_clock(lab, template_head_ico3)
    lab.image(content)
    whole = read_recording(tmp_path / "out.xdf")
    assert not [record for record in caplog.records if "middle of a chunk" in record.message]
    (tmp_path / "cut.xdf").write_bytes((tmp_path / "out.xdf").read_bytes()[:-100])  # in the last footer
    cut = read_recording(tmp_path / "cut.xdf")
    assert "it ends in the middle of a chunk" in caplog.text
    for modality in Modality:
        np.testing.assert_array_equal(cut.times[modality], whole.times[modality])
        np.testing.assert_array_equal(cut.sensors[modality].get_data(), whole.sensors[modality].get_data())


def test_imaging_goes_on_without_its_recording(
    lab: Lab, template_head_ico3: HeadModel, content: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder is pulled away in the middle: every hop is imaged, and log, health and scorecard say what was lost."""
    sent = one_clock(lab, template_head_ico3)
    content["output"]["record"]["file"] = str(tmp_path / "folder" / "out.xdf")
    lab.looks.append(lambda second: shutil.rmtree(tmp_path / "folder") if second == 2.0 else None)
    session, estimates = lab.image(content)
    assert session.engine.counts.skipped == 0
    assert len(joined(estimates)[0]) > 1200
    status = session.scorecard().as_dict()["recording"]
    assert "was deleted" in status["error"]
    assert {label: status["dropped"][label] for label in ("eeg", "meg")} == {str(m): len(sent.data[m]) for m in Modality}
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2
    assert "was deleted" in said[0]
    assert "out.json" in said[1]
