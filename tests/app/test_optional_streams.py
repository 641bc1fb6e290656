"""What the engine publishes and hears on request: sensors, a second solver, averages, marks; over memory, no threads."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mne
import numpy as np
import pytest
from rich.console import Console

import rt_mmdf.sinks.health as health
from rt_mmdf.app.chain import CleanedHop
from rt_mmdf.app.session import Session
from rt_mmdf.cli.live import status_table
from rt_mmdf.core.blocks import Flag
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.whitener import imaging_info
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.sinks.averages import COMPANION_COLUMNS as AVERAGE_COLUMNS
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS
from rt_mmdf.sinks.marks import MarksOutlet

SFREQ = 250.0
UNIT = {"eeg": ("V", 5e-6), "mag": ("T", 2e-13)}
SECONDS = 6.0
EVENTS = [(2.9, "1"), (3.3, "2"), (3.7041, "1"), (4.2, "1"), (4.6, "2"), (5.0, "1"), (5.2, "other")]
AVERAGE = {"markers": {"name": "stimuli"}, "events": {"left": [1], "right": ["2"]}, "tmin_s": -0.1, "tmax_s": 0.3}
Lab = Any  # the fixture's class lives in conftest.py


@pytest.fixture
def content(small_content: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return {**small_content("a"), "hop_ms": 40.0}


@pytest.fixture
def streaming(lab: Lab, template_head_ico3: HeadModel) -> Lab:
    """60 electrodes and 102 magnetometers of sensor noise."""
    channels = template_head_ico3.channels
    for kind, (unit, level) in UNIT.items():
        names = [name for name, own in zip(channels.names, channels.types, strict=True) if own == kind]
        modality = "EEG" if kind == "eeg" else "MEG"
        described = tuple(ChannelDescription(name, kind, unit) for name in names)
        stream = StreamDescription(f"a-{modality}", modality, f"id-{modality}", SFREQ, "float32", described, {})
        noise = np.random.default_rng(len(kind)).normal(0, level, (round(SECONDS * SFREQ), len(names)))
        lab.publish(stream, noise.astype(np.float32))
    return lab


class Ear:
    """A stranger who subscribes by name, and hears everything from then on."""

    def __init__(self, lab: Lab, name: str) -> None:
        (found,) = lab.transport.resolve(name=name, timeout_s=0.0)
        self._inlet = lab.transport.inlet(found)
        self.stream = self._inlet.description

    def heard(self) -> tuple[np.ndarray, np.ndarray]:
        return self._inlet.pull(0.0)


def cleaned_of(session: Session) -> list[CleanedHop]:
    hops: list[CleanedHop] = []
    session.engine.chain.taps.append(hops.append)
    return hops


def joined(hops: list[CleanedHop]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    blocks = [hop.block for hop in hops]
    return tuple(np.concatenate([getattr(b, name) for b in blocks], axis=-1) for name in ("data", "times", "flags"))


def names_on_offer(lab: Lab) -> set[str]:
    return {stream.name for stream in lab.transport.resolve(timeout_s=0.0)}


def test_nothing_is_published_or_taken_from_the_engine_unless_it_is_asked_for(
    streaming: Lab, content: dict[str, Any]
) -> None:
    before = names_on_offer(streaming)
    content["output"] = {"marks": False}
    session = streaming.session(content)
    assert names_on_offer(streaming) - before == {
        "a-sources", "a-sources-companion", "a-sources-strongest", "a-health",
    }  # fmt: skip
    assert session.engine.chain.taps == []
    assert session.optional.workers(lambda: None) == []
    session.stop()
    assert names_on_offer(streaming) == before


@pytest.mark.parametrize("method", ["MNE", "dSPM", "sLORETA", "eLORETA"])
def test_averages_are_those_of_mne_on_the_same_cleaned_sensors(method: str, streaming: Lab, content: dict[str, Any]) -> None:
    """Epochs, average, inverse: mne's own, with the markers on a clock of their own."""
    stimuli = streaming.transport.machine("stimulus-pc", offset_s=-321.5, drift_ppm=40.0)
    streaming.publish_events("stimuli", EVENTS, stimuli)
    content |= {"solver": {"method": method}, "average": {**AVERAGE, "update_s": 0, "max_hz": 100.0}}
    session = streaming.session(content)
    hops, began = cleaned_of(session), streaming.clock.now()
    ears = {
        event: (Ear(streaming, f"a-average-{event}"), Ear(streaming, f"a-average-{event}-companion"))
        for event in ("left", "right")
    }
    streaming.run(session)
    data, times, flags = joined(hops)
    assert not (flags[times > began + 2.7] & int(Flag.SETTLING | Flag.GAP)).any()
    imaging = session.imaging
    info = imaging_info(imaging.head.info, imaging.channels.names, imaging.projectors)
    with info._unlock():
        info["sfreq"] = SFREQ
    forward = mne.pick_channels_forward(imaging.head.forward, info["ch_names"], ordered=True, verbose="ERROR")
    inverse = mne.minimum_norm.make_inverse_operator(
        info, forward, imaging.noise_cov, loose=0, fixed=True, depth=imaging.solver.depth, verbose="ERROR"
    )
    raw = mne.io.RawArray(data.astype(float), info, verbose="ERROR")
    for event, marker in (("left", "1"), ("right", "2")):
        samples = [int(np.argmin(np.abs(times - began - at))) for at, text in EVENTS if text == marker]
        epochs = mne.Epochs(
            raw, np.array([[s, 0, 1] for s in samples]), tmin=-0.1, tmax=0.3, baseline=(None, 0), proj=False,
            preload=True, verbose="ERROR",
        )  # fmt: skip
        estimates, companion = (ear.heard() for ear in ears[event])
        np.testing.assert_array_equal(estimates[1], companion[1])
        updates = np.split(np.arange(len(estimates[1])), np.flatnonzero(np.diff(estimates[1])) + 1)
        assert len(updates) == len(samples)
        columns = {name: companion[0][:, i] for i, name in enumerate(AVERAGE_COLUMNS)}
        for n, rows in enumerate(updates, start=1):
            evoked = epochs[:n].average()
            assert evoked.nave == n
            wanted = mne.minimum_norm.apply_inverse(
                evoked, inverse, imaging.solver.lambda2, method, pick_ori=None, verbose="ERROR"
            )
            kept = np.isin(np.rint(wanted.times * SFREQ), np.rint(columns["latency"][rows] * SFREQ))
            assert kept.sum() == len(rows) == int(ears[event][0].stream.extra["average/n_times"])
            difference = estimates[0][rows].T - wanted.data[:, kept]
            assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(wanted.data[:, kept])
            np.testing.assert_array_equal(columns["n_trials"][rows], n)
            np.testing.assert_array_equal(columns["update"][rows], n - 1)
            np.testing.assert_array_equal(columns["sample"][rows], np.arange(len(rows)))
            np.testing.assert_allclose(columns["latency"][rows], wanted.times[kept], atol=1e-9)
            np.testing.assert_allclose(columns["event"][rows], times[samples[n - 1]], atol=0.5 / SFREQ)


def test_averages_begin_anew_on_a_marker_and_on_a_command_and_say_so_at_once(
    streaming: Lab, content: dict[str, Any]
) -> None:
    view = streaming.transport.machine("view", offset_s=5.0)
    streaming.publish_events("stimuli", [(2.9, "1"), (3.4, "again"), (3.7, "1"), (4.2, "1"), (5.0, "1")])
    content |= {"average": {**AVERAGE, "update_s": 0, "reset": "again"}}
    session = streaming.session(content)
    ear = Ear(streaming, "a-average-left-companion")
    marks: list[MarksOutlet] = []

    def view_looks_and_resets(seconds: float) -> None:
        if not marks and seconds > 0.5:
            marks.append(MarksOutlet(view, "a-marks"))
        if seconds == 4.6:
            marks[0].publish("averages anew", command="reset-average")

    streaming.looks.append(view_looks_and_resets)
    streaming.run(session)
    rows, stamps = ear.heard()
    first = np.flatnonzero(np.diff(stamps, prepend=0.0))
    assert rows[first, AVERAGE_COLUMNS.index("n_trials")].tolist() == [1, 0, 1, 2, 0, 1]
    assert rows[first, AVERAGE_COLUMNS.index("update")].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.isnan(rows[first, AVERAGE_COLUMNS.index("event")]).tolist() == [False, True, False, False, True, False]
    status = session.optional.status()
    assert status["average"]["resets"] == 2
    assert status["average"]["events"]["left"]["n_trials"] == 1
    assert [mark["text"] for mark in status["marks"]["newest"]] == ["averages anew"]


def test_an_average_without_trials_is_nan_never_what_it_was(streaming: Lab, content: dict[str, Any]) -> None:
    streaming.publish_events("stimuli", [(2.9, "1"), (4.0, "again")])
    content |= {"average": {**AVERAGE, "update_s": 0, "reset": "again"}}
    session = streaming.session(content)
    ear = Ear(streaming, "a-average-left")
    streaming.run(session)
    rows, stamps = ear.heard()
    assert len(set(stamps.tolist())) == 2
    assert np.isfinite(rows[stamps == stamps[0]]).all()
    assert np.isnan(rows[stamps == stamps[-1]]).all()


def test_markers_may_come_late_go_and_come_back_with_another_clock(streaming: Lab, content: dict[str, Any]) -> None:
    content |= {"average": {**AVERAGE, "update_s": 0}}
    session = streaming.session(content)  # no marker stream so far
    average = session.optional.average
    assert average is not None
    assert "no stream with name 'stimuli'" in average.receiver.problem
    hops, began = cleaned_of(session), streaming.clock.now()
    ear = Ear(streaming, "a-average-left-companion")
    stream = StreamDescription("stimuli", "Markers", "", 0.0, "int32", (ChannelDescription("m"),), {})
    computers = [streaming.transport.machine("one", offset_s=1e4), streaming.transport.machine("two", offset_s=-777.0)]
    outlets: list[Any] = []
    problems: list[str] = []

    def stimulate(seconds: float) -> None:
        if seconds in (0.5, 3.4):
            if outlets:
                outlets[-1].close()
            outlets.append(computers[len(outlets)].outlet(stream))
        if seconds in (3.0, 5.52):  # the receiver looks again after 10 s without markers, or when the stream has ended
            outlets[-1].push(np.array([[1]]), computers[len(outlets) - 1].clock.at(began + seconds - 0.013))
        if seconds == 3.6:
            average.receiver._looked = -np.inf
        problems.append(average.receiver.problem)

    streaming.looks.append(stimulate)
    streaming.run(session)
    assert problems[0]
    assert not problems[-1]
    rows, _ = ear.heard()
    events = rows[rows[:, 1] == 0, AVERAGE_COLUMNS.index("event")] - began
    np.testing.assert_allclose(events, [3.0 - 0.013, 5.52 - 0.013], atol=1e-4)
    assert average.status()["markers"]["hostname"] == "two"
    assert average.receiver.n_reconnected == 1
    assert hops


def test_updates_are_no_more_frequent_than_was_asked_for_and_the_last_one_is_not_lost(
    streaming: Lab, content: dict[str, Any]
) -> None:
    streaming.publish_events("stimuli", [(2.9 + 0.1 * k, "1") for k in range(12)])
    content |= {"average": {**AVERAGE, "update_s": 0.7}}
    session = streaming.session(content)
    ear = Ear(streaming, "a-average-left-companion")
    streaming.run(session)
    rows, stamps = ear.heard()
    starts = np.flatnonzero(rows[:, 1] == 0)
    assert np.diff(stamps[starts]).min() >= 0.7
    assert 2 <= len(starts) <= 4
    assert rows[starts[-1], AVERAGE_COLUMNS.index("n_trials")] == 12


@pytest.mark.parametrize("reduction", ["latest", "peak"])
def test_sensors_are_the_cleaned_ones(reduction: str, streaming: Lab, content: dict[str, Any]) -> None:
    content["output"] = {"sensors": {"max_hz": 125.0, "reduction": reduction}}
    session = streaming.session(content)
    hops, ear = cleaned_of(session), Ear(streaming, "a-sensors")
    streaming.run(session)
    data, times, _ = joined(hops)
    n = data.shape[1] // 2
    pairs = data[:, : 2 * n].reshape(len(data), n, 2)
    at = np.abs(pairs).argmax(axis=2) if reduction == "peak" else np.ones(pairs.shape[:2], int)
    wanted = np.take_along_axis(pairs, at[:, :, None], axis=2)[:, :, 0]
    published, stamps = ear.heard()
    np.testing.assert_array_equal(published.T, wanted)
    np.testing.assert_array_equal(stamps, times[1 : 2 * n : 2])
    stream, channels = ear.stream, session.imaging.channels
    assert (stream.type, stream.dtype, stream.sfreq) == ("Sensors", "float32", 125.0)
    assert [c.name for c in stream.channels] == list(channels.names)
    assert {(c.type, c.unit) for c in stream.channels} == {("eeg", "V"), ("mag", "T")}
    assert stream.extra["sensors/reduction"] == reduction
    assert stream.extra["streams/health"] == "a-health"
    assert session.optional.status()["sensors"] == {"stream": "a-sensors", "sfreq": 125.0, "dropped_hops": 0}


def test_a_missing_modality_is_nan_among_the_sensors(streaming: Lab, content: dict[str, Any]) -> None:
    outlet, data, times, stamps = streaming._sending[1]
    streaming._sending[1] = (outlet, data[: round(3 * SFREQ)], times[: round(3 * SFREQ)], stamps)  # MEG ends at 3 s
    content["output"] = {"sensors": {"max_hz": 50.0, "reduction": "peak"}}
    session = streaming.session(content)
    ear = Ear(streaming, "a-sensors")
    streaming.run(session)
    published, at = ear.heard()
    kinds = np.array([c.type for c in ear.stream.channels])
    nothing = np.isnan(published)
    assert not nothing[:, kinds == "eeg"].any()
    gone = nothing[:, kinds == "mag"]
    np.testing.assert_array_equal(gone.any(axis=1), gone.all(axis=1))
    ends = 2000.3 + 3.0
    assert not gone[at < ends - 0.02].any()
    assert gone[at > ends + 0.02].all()
    assert (at > ends + 1.0).any()


def test_sensors_that_would_fold_back_are_refused(streaming: Lab, content: dict[str, Any]) -> None:
    content["output"] = {"sensors": {"max_hz": 90.0}}
    with pytest.raises(ConfigurationError, match=r"output.sensors: 83.3333 Hz .* low-pass at 40 Hz .* at most 33.3333"):
        streaming.session(content)
    assert not {name for name in names_on_offer(streaming) if name.startswith("a-s")}


@pytest.mark.parametrize("second", [{"method": "sLORETA"}, {"method": "MNE", "snr": 1.0, "orientation": "loose"}])
def test_the_second_solver_publishes_what_it_would_as_the_first(
    second: dict[str, Any], streaming: Lab, content: dict[str, Any]
) -> None:
    alone = {**content, "name": "alone", "solver": second}
    beside = {**content, "second_solver": second}
    heard = []
    for given, name in ((alone, "alone-sources"), (beside, "a-second")):
        session = streaming.session(given)
        ears = [Ear(streaming, name + end) for end in ("", "-companion", "-strongest")]
        streaming.run(session)
        heard.append([ear.heard() for ear in ears])
        unit, solver = ears[0].stream.extra["estimate/unit"], ears[0].stream.extra["estimate/solver"]
        assert (unit, solver) == ("A m" if second["method"] == "MNE" else "dimensionless", second["method"])
    (one, companion_one, strongest_one), (two, companion_two, strongest_two) = heard
    assert len(one[0]) > 1000
    np.testing.assert_array_equal(two[0], one[0])
    np.testing.assert_array_equal(strongest_two[0], strongest_one[0])
    np.testing.assert_array_equal(companion_two[0][:, :3], companion_one[0][:, :3])  # hop, index, flags
    shift = two[1][0] - one[1][0]
    np.testing.assert_allclose(two[1], one[1] + shift, atol=1e-6)
    np.testing.assert_array_equal(companion_two[1], two[1])
    status = session.optional.status()["second"]
    assert status["skipped_hops"] == 0
    assert status["hops"] == session.engine.counts.hops
    assert status["solver"] == second["method"]


def test_a_beamformer_may_be_second_and_may_image_averages(streaming: Lab, content: dict[str, Any]) -> None:
    lcmv = {"method": "LCMV", "lcmv": {"data_s": 2.0, "least_s": 1.0, "refresh_s": 0.5}}
    streaming.publish_events("stimuli", [(2.3, "1"), (5.0, "1")])
    content["preprocessing"]["filters"] = {"max_settling_s": 0.5}
    content |= {"average": {**AVERAGE, "update_s": 0}}
    session = streaming.session({**content, "second_solver": lcmv})
    ear, other = Ear(streaming, "a-second"), streaming.session({**content, "name": "b", "solver": lcmv})
    averages = Ear(streaming, "b-average-left")
    want = other.imaging.data_cov.on_refresh
    other.imaging.data_cov.on_refresh = lambda: (want(), other.operators.step(0.0))
    streaming.looks.append(lambda seconds: (other._pump(), streaming.pump_optional(other)))
    for part in (other.intake.watch, *other.intake.receivers.values()):
        streaming.looks.append(lambda seconds, part=part: part.step())
    streaming.run(session)
    other.stop()
    published, _ = ear.heard()
    there = np.isfinite(published).all(axis=1)
    assert not there[: round(SFREQ)].any()
    assert there[round(2.5 * SFREQ) :].all()
    rows, stamps = averages.heard()
    assert len(set(stamps.tolist())) == 2
    assert np.isfinite(rows).all()


def test_a_second_solver_that_is_behind_skips_counts_and_images_the_newest(
    streaming: Lab, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content |= {"second_solver": {"method": "dSPM"}, "budget_ms": 100.0}
    session = streaming.session(content)
    first, second, companion = (Ear(streaming, f"a-{name}") for name in ("sources", "second", "second-companion"))
    rounds = iter(range(10**6))

    def every_twentieth_time(optional: Any) -> None:
        if next(rounds) % 20 == 0:
            optional.second.step(0.0)

    monkeypatch.setattr(streaming, "pump_optional", lambda session: every_twentieth_time(session.optional))
    streaming.run(session)
    (data, times), (own, own_times), (rows, _) = first.heard(), second.heard(), companion.heard()
    status = session.optional.status()["second"]
    n_hop = 10
    assert 0 < len(own_times) < len(times) / 2
    assert status["skipped_hops"] > status["estimates"] > 0
    assert status["hops"] == status["skipped_hops"] + status["estimates"]
    at = np.searchsorted(times, own_times)
    np.testing.assert_array_equal(own, data[at])  # the same solver: what is imaged is what the first had for that instant
    hops = rows[::n_hop, COMPANION_COLUMNS.index("hop")]
    assert (np.diff(hops) > 1).any()
    assert status["missed_deadlines"] == 0  # 200 hops of start-up are not counted, and there are fewer


def test_a_mailbox_of_the_second_solver_that_overflows_is_counted(streaming: Lab, content: dict[str, Any]) -> None:
    content |= {"second_solver": {"method": "dSPM"}, "hop_ms": 12.0}
    session = streaming.session(content)
    hops = cleaned_of(session)
    streaming.pump_optional = lambda session: None
    streaming.run(session)
    second = session.optional.second
    assert second is not None
    assert len(hops) > 300
    second.step(0.0)  # after the session has ended, its outlets are closed: only the counts are looked at
    status = second.status()
    assert status["hops"] == 256
    second.put(hops[0])


def test_marks_are_listed_and_what_is_none_is_refused(streaming: Lab, content: dict[str, Any]) -> None:
    session = streaming.session(content)
    views = [MarksOutlet(streaming.transport.machine(host, offset_s=at), "a-marks") for host, at in (("x", 3.0), ("y", 9.0))]

    def marks(seconds: float) -> None:
        if seconds == 1.0:
            views[0].publish("eyes\nopen")
            views[1].publish("sneezed", stamp=1234.5)
            for text in ("", "[]", "{}", '{"stamp": NaN}', '{"stamp": 1, "command": "rm"}', "[" * 5000, '{"stamp": true}'):
                views[1]._outlet.push([text], 1.0)
        if seconds == 2.0:
            views[0].close()
        if seconds == 12.0:
            views[1].publish("late")

    streaming.looks.append(marks)
    streaming.run(session)
    status = session.optional.status()["marks"]
    assert (status["received"], status["refused"]) == (2, 7)
    assert [(mark["text"], mark["host"]) for mark in status["newest"]] == [("eyesopen", "x"), ("sneezed", "y")]
    assert status["newest"][1]["stamp"] == 1234.5
    assert abs(status["newest"][0]["received"] - 2001.0) < 0.1
    for view in views:
        view.close()


def test_every_stream_is_told_in_the_description_of_the_estimates(streaming: Lab, content: dict[str, Any]) -> None:
    content |= {"second_solver": {"method": "MNE"}, "average": AVERAGE, "output": {"sensors": {}}, "budget_ms": 40.0}
    session = streaming.session(content)
    told = Ear(streaming, "a-sources").stream.extra
    streams = {key.removeprefix("streams/"): name for key, name in told.items() if key.startswith("streams/")}
    assert streams == {
        "sources": "a-sources",
        "companion": "a-sources-companion",
        "strongest": "a-sources-strongest",
        "health": "a-health",
        "sensors": "a-sensors",
        "second": "a-second",
        "averages/left": "a-average-left",
        "averages/right": "a-average-right",
        "marks": "a-marks",
    }
    assert set(streams.values()) - {"a-marks"} <= names_on_offer(streaming)
    assert session.optional.published == ["a-second", "a-sensors", "a-average-left", "a-average-right"]
    assert (told["engine/session"], told["engine/hop_ms"], told["engine/budget_ms"]) == ("a", "40", "40")
    session.stop()
    assert not {name for name in names_on_offer(streaming) if name.startswith("a-") and name.islower()}


def test_the_health_stream_is_what_its_documentation_says(streaming: Lab, content: dict[str, Any]) -> None:
    streaming.publish_events("stimuli", EVENTS)
    content |= {"second_solver": {"method": "MNE"}, "average": AVERAGE, "output": {"sensors": {}}}
    session = streaming.session(content)
    reports: list[dict[str, Any]] = []

    def report(seconds: float) -> None:
        if seconds in (4.0, 5.0):
            reports.append(json.loads(health.to_json(session.status())))

    streaming.looks.append(report)
    streaming.run(session)
    told = health.__doc__ or ""
    entries = re.split(r"\n(?=``)", told.split("The keys:")[1])
    documented = {key for entry in entries for key in re.findall(r"``(\w+)``", entry.split("\n")[0])}
    documented |= {"not_imaged"}  # told beside the bad channels
    last = reports[-1]
    assert set(last) == documented - {"left_out"}

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for inner in value.values() for key in keys(inner)}
        return {key for inner in value for key in keys(inner)} if isinstance(value, list) else set()

    own = {"eeg", "meg", "left", "right"} | set(last["flags"]) | set(last["average"]["events"]["left"]["rejected"])
    assert keys(last) - own <= set(re.findall(r"``(\w+)``", told)), "every key is documented"
    eeg = last["streams"]["eeg"]
    assert eeg["rate_hz"] == pytest.approx(SFREQ, rel=0.02)
    assert not eeg["silent"]
    assert not eeg["missing_now"]
    assert 0 < eeg["drift_uncertainty_ppm"] < 300
    assert abs(eeg["offset"]) <= eeg["offset_uncertainty_ms"] * 1e-3 < 1e-3
    assert abs(eeg["drift_ppm"]) <= 2 * eeg["drift_uncertainty_ppm"]
    assert sum(last["latency_histogram"]["counts"]) > 0
    assert len(last["latency_histogram"]["edges_ms"]) == len(last["latency_histogram"]["counts"]) + 1
    assert last["average"]["events"]["left"]["n_trials"] == 3
    assert last["average"]["markers"]["not_averaged"] == 0


def test_the_terminal_shows_the_second_solver_and_the_averages(streaming: Lab, content: dict[str, Any]) -> None:
    streaming.publish_events("stimuli", EVENTS)
    session = streaming.session({**content, "second_solver": {"method": "MNE"}, "average": AVERAGE})
    streaming.run(session)
    console = Console(file=io.StringIO(), width=160)
    console.print(status_table(session.status()))
    shown = console.file.getvalue()
    hops = session.engine.counts.hops
    assert re.search(rf"second +MNE, {hops} of {hops} hops, 0 skipped", shown)
    assert re.search(r"averages +left 4 \(0 rejected\), right 2 \(0 rejected\)", shown)


class Recorder:
    """A solver that keeps what it is given."""

    n_sources, unit = 1284, ""

    def __init__(self) -> None:
        self.windows: list[np.ndarray] = []

    def reset(self) -> None: ...

    def __call__(self, window: np.ndarray, n_new: int) -> np.ndarray:
        self.windows.append(window.copy())
        return np.zeros((self.n_sources, n_new), np.float32)


def test_the_window_of_a_second_solver_has_no_holes_where_hops_were_skipped(
    streaming: Lab, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content |= {"second_solver": {"method": "dSPM"}, "budget_ms": 100.0, "window_ms": 200.0}
    session = streaming.session(content)
    hops, companion = cleaned_of(session), Ear(streaming, "a-second-companion")
    second, recorder = session.optional.second, Recorder()
    operator = second.operators.complete
    second.operators.switch.offer(second.imaging.full_key(), replace(operator, solver=recorder))
    rounds = iter(range(10**6))
    monkeypatch.setattr(streaming, "pump_optional", lambda session: next(rounds) % 20 == 0 and second.step(0.0))
    streaming.run(session)
    assert second.status()["skipped_hops"] > len(recorder.windows) > 10
    rows, _ = companion.heard()
    imaged = rows[::10, COMPANION_COLUMNS.index("hop")].astype(int)
    assert len(imaged) == len(recorder.windows)
    whitened = operator.whitener.matrix.astype(np.float32) @ joined(hops)[0]
    n_checked = 0
    for number, window in zip(imaged, recorder.windows, strict=True):
        stop = 10 * (number - hops[0].number + 1)
        if stop >= 50:
            np.testing.assert_allclose(window, whitened[:, stop - 50 : stop], atol=1e-4)
            n_checked += 1
    assert n_checked > 10
