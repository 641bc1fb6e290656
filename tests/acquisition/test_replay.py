"""Replay: every sample once, in time, with the stamps a device of that kind would give."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rt_mmdf.acquisition.receiver import MarkerReceiver, Receiver
from rt_mmdf.acquisition.recording import Recording
from rt_mmdf.acquisition.replay import LEAD_S, Replay, ReplaySettings, ReplayStreamSettings
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError, RecordingError, StreamNotFound
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport

SFREQ, N_TIMES = 200.0, 300
NAMES = ["Fz", "Cz", "EOG", "MEG 0111", "MEG 0112", "STI 014"]
TYPES = ["eeg", "eeg", "eog", "mag", "grad", "stim"]
SCALE = np.array([1e-5, 1e-5, 1e-4, 1e-12, 1e-11, 0.0])
EEG, MEG = Modality.EEG, Modality.MEG


def recording() -> tuple[Recording, np.ndarray]:
    info = mne.create_info(NAMES, SFREQ, TYPES)
    info["bads"] = ["Cz"]
    info["chs"][0]["loc"][:3] = (0.0, 0.08, 0.04)
    data = np.random.default_rng(0).standard_normal((6, N_TIMES)) * SCALE[:, None]
    data[5, 100:110], data[5, 200:210] = 2, 5
    return Recording.from_raw(mne.io.RawArray(data, info, verbose="error"), "made-up"), data


RECORDING, DATA = recording()


def settings(**given: Any) -> ReplaySettings:
    return validate_settings({"prefix": "x", **given}, ReplaySettings, where="test")


class Played:
    """A replay over memory, driven by a manual clock exactly from due time to due time, and what arrived."""

    def __init__(self, replay_settings: ReplaySettings, source: Recording = RECORDING, limit_s: float = math.inf) -> None:
        clock = ManualClock()
        transport = MemoryTransport(clock)
        self.replay = Replay(transport, source, replay_settings)
        modalities = list(self.replay.log.streams)
        receivers = {
            m: Receiver(transport, StreamSettings(name=replay_settings.name_of(m.value), buffer_s=600.0), m.value)
            for m in modalities
        }
        markers = (
            MarkerReceiver(transport, StreamSettings(name=replay_settings.name_of("markers")), "markers")
            if replay_settings.markers
            else None
        )
        self.arrived: dict[Modality, list[tuple[float, int]]] = {m: [] for m in modalities}
        self.descriptions = {m: receiver.description for m, receiver in receivers.items()}
        start = clock.now()
        while not self.replay.finished and clock.now() < start + limit_s:
            due = self.replay.advance()
            for modality, receiver in receivers.items():
                before = receiver.arrivals.n_received
                receiver.step()
                if count := receiver.arrivals.n_received - before:
                    self.arrived[modality].append((clock.now(), count))
            if markers:
                markers.step()
            if math.isfinite(due):
                clock.move_to(max(due, clock.now()))
        self.t0 = next(iter(self.replay.log.streams.values())).stamp_0
        self.data, self.stamps, self.counter = {}, {}, {}
        for modality, receiver in receivers.items():
            block = receiver.ring.read()
            if block is None:
                continue
            self.data[modality], self.stamps[modality] = block.data, block.stamps
            if "COUNTER" in receiver.other_channels:
                assert receiver.others is not None
                others = receiver.others.read()
                assert others is not None
                self.counter[modality] = others.data[receiver.other_channels.names.index("COUNTER")].astype(int)
        self.markers = markers.events.take_all() if markers else []


STREAMS = st.fixed_dictionaries(
    {
        "chunk": st.integers(1, 60),
        "jitter_ms": st.sampled_from([0.0, 3.0, 200.0]),
        "drift_ppm": st.sampled_from([0.0, 200.0, -5000.0]),
        "gaps": st.lists(st.tuples(st.floats(0, 2), st.floats(0.001, 1)), max_size=2),
        "unit": st.sampled_from(["device", "si"]),
    }
)


@hypothesis_settings(deadline=None, max_examples=25)
@given(eeg=STREAMS, meg=STREAMS, loop=st.integers(1, 2), seed=st.integers(0, 3))
def test_every_sample_arrives_once_in_time_and_holds_what_the_recording_holds(
    eeg: dict[str, Any], meg: dict[str, Any], loop: int, seed: int
) -> None:
    played = Played(settings(eeg=eeg, meg=meg, loop=loop, seed=seed, counter=True))
    for modality, own, rows in ((EEG, eeg, [0, 1]), (MEG, meg, [3, 4])):
        rate = SFREQ * (1 + own["drift_ppm"] * 1e-6)
        numbers = np.arange(loop * N_TIMES)
        for gap_start, length in own["gaps"]:
            numbers = numbers[(numbers < math.ceil(gap_start * rate)) | (numbers >= math.ceil((gap_start + length) * rate))]
        log = played.replay.log.streams[modality]
        assert log.n_sent == len(numbers)
        assert log.n_sent + log.n_skipped == loop * N_TIMES
        assert sum(n for _, n in log.gaps) == log.n_skipped
        if not len(numbers):
            continue
        np.testing.assert_array_equal(played.counter[modality], numbers)
        np.testing.assert_allclose(played.data[modality], DATA[rows][:, numbers % N_TIMES], rtol=3e-7)
        np.testing.assert_allclose(played.stamps[modality], played.t0 + numbers / rate, rtol=0, atol=1e-9)
        arrival = np.concatenate([np.full(n, when) for when, n in played.arrived[modality]])
        late = arrival - played.stamps[modality]
        assert late.min() >= -1e-9
        assert late.max() <= own["chunk"] / rate + own["jitter_ms"] * 1e-3 + 1e-9


def test_both_streams_start_together_and_stay_together_over_the_seam() -> None:
    played = Played(settings(eeg={"sfreq": 150.0}, meg={"sfreq": 1000.0}, loop=4, duration_s=1.1))
    assert played.stamps[EEG][0] == played.stamps[MEG][0] == 1000.0 + LEAD_S
    logs = played.replay.log.streams
    assert logs[EEG].n_per_loop / 150.0 == logs[MEG].n_per_loop / 1000.0
    assert logs[EEG].n_per_loop == pytest.approx(1.1 * 150, abs=3)


@pytest.mark.parametrize("habit", ["first_of_block", "last_of_block"])
def test_devices_that_stamp_a_block_once(habit: str) -> None:
    played = Played(settings(eeg={"chunk": 7, "stamps": habit}))
    starts = np.arange(0, N_TIMES, 7)
    stamped = starts if habit == "first_of_block" else np.minimum(starts + 6, N_TIMES - 1)
    expected = np.repeat(stamped, 7)[:N_TIMES] / SFREQ + played.t0
    np.testing.assert_allclose(played.stamps[EEG], expected, atol=1e-9)


def test_markers_carry_the_time_of_their_sample_in_each_loop() -> None:
    played = Played(settings(meg={"drift_ppm": 1000.0}, loop=2))
    expected = [(100, "2"), (200, "5"), (100 + N_TIMES, "2"), (200 + N_TIMES, "5")]
    assert [marker.text for marker in played.markers] == [text for _, text in expected]
    np.testing.assert_allclose(
        [marker.stamp for marker in played.markers], [played.stamps[MEG][number] for number, _ in expected], atol=1e-9
    )
    assert played.replay.log.n_markers == 4


@pytest.mark.parametrize("speed", [1.0, 20.0, math.inf])
def test_speed_changes_delivery_and_not_stamps(speed: float) -> None:
    played = Played(settings(speed=speed, eeg={"chunk": 10}))
    np.testing.assert_allclose(played.stamps[EEG], played.t0 + np.arange(N_TIMES) / SFREQ, atol=1e-9)
    assert played.arrived[EEG][-1][0] - played.t0 == pytest.approx((N_TIMES - 1) / SFREQ / speed, abs=1e-6)


def test_as_fast_as_possible_sends_the_modalities_side_by_side() -> None:
    played = Played(settings(speed=math.inf, loop=20, eeg={"chunk": 10}, meg={"chunk": 10}))
    eeg, meg = (np.cumsum([n for _, n in played.arrived[m]]) for m in (EEG, MEG))
    shared = min(len(eeg), len(meg))
    assert shared > 3
    assert np.abs(eeg[:shared] - meg[:shared]).max() <= 10


def test_looping_for_ever_goes_on() -> None:
    played = Played(settings(loop=math.inf, counter=True), limit_s=10.0)
    assert not played.replay.finished
    assert len(played.counter[EEG]) > 9 * SFREQ
    np.testing.assert_array_equal(np.diff(played.counter[EEG]), 1)


@pytest.mark.parametrize("target", [1000.0, 150.0, 256.0])
def test_resampling_keeps_what_fits_and_removes_what_does_not(target: float) -> None:
    """20 Hz passes with its amplitude and phase; what lies above the new Nyquist frequency does not fold back."""
    seconds, low, high = 5.0, 20.0, 78.0
    times = np.arange(int(seconds * SFREQ)) / SFREQ
    wave = 1e-5 * (np.sin(2 * np.pi * low * times) + np.sin(2 * np.pi * high * times))
    raw = mne.io.RawArray(wave[None], mne.create_info(["Cz"], SFREQ, ["eeg"]), verbose="error")
    played = Played(settings(eeg={"sfreq": target}, markers=False), Recording.from_raw(raw, "wave"))
    got = played.data[EEG][0]
    new_times = np.arange(len(got)) / target
    expected = 1e-5 * np.sin(2 * np.pi * low * new_times)
    if target / 2 > high:
        expected += 1e-5 * np.sin(2 * np.pi * high * new_times)
    middle = slice(len(got) // 5, -len(got) // 5)
    assert np.abs(got - expected)[middle].max() < 1e-3 * 1e-5
    assert len(got) == pytest.approx(seconds * target, abs=2)


@pytest.mark.parametrize(("dtype", "resolution"), [("int16", 1e-6), ("int32", 1e-6), ("float64", 0.0)])
def test_other_types_on_the_wire(dtype: str, resolution: float) -> None:
    played = Played(settings(eeg={"dtype": dtype}))
    assert played.descriptions[EEG].dtype == dtype
    np.testing.assert_allclose(played.data[EEG], DATA[:2], atol=resolution / 2 * 1.001, rtol=1e-6)


def test_integers_clip_instead_of_wrapping() -> None:
    raw = mne.io.RawArray(np.array([[1.0, -1.0]]), mne.create_info(["Cz"], SFREQ, ["eeg"]), verbose="error")
    played = Played(settings(eeg={"dtype": "int16"}, markers=False), Recording.from_raw(raw, "large"))
    np.testing.assert_allclose(played.data[EEG][0], [32767e-6, -32768e-6], rtol=1e-6)


def test_the_description_tells_all_a_device_would() -> None:
    played = Played(settings())
    eeg, meg = played.descriptions[EEG], played.descriptions[MEG]
    assert (eeg.name, eeg.type, meg.name, meg.type) == ("x-EEG", "EEG", "x-MEG", "MEG")
    assert [(c.name, c.type, c.unit) for c in eeg.channels] == [
        ("Fz", "EEG", "uV"),
        ("Cz", "EEG", "uV"),
        ("EOG", "EOG", "uV"),
    ]
    assert [(c.type, c.unit) for c in meg.channels] == [("MEGMAG", "fT"), ("MEGGRAD", "fT/cm")]
    assert eeg.channels[0].position == pytest.approx((0.0, 0.08, 0.04), rel=1e-6)
    assert eeg.channels[1].position is None
    assert json.loads(eeg.extra["recording/bads"]) == ["Cz"]
    assert eeg.source_id != meg.source_id
    assert Played(settings()).descriptions[EEG].source_id == eeg.source_id


def test_it_waits_for_consumers_and_gives_up_with_their_names() -> None:
    clock = ManualClock()
    transport = MemoryTransport(clock)
    replay = Replay(transport, RECORDING, settings(wait_for_consumers_s=5.0))
    receiver = Receiver(transport, StreamSettings(name="x-EEG"), "eeg")
    clock.move_to(replay.advance())
    assert not replay.started
    late = Receiver(transport, StreamSettings(name="x-MEG"), "meg")
    replay.advance()
    assert replay.started
    receiver.close(), late.close(), replay.close()
    lonely = Replay(transport, RECORDING, settings(wait_for_consumers_s=5.0))
    clock.advance(5.1)
    with pytest.raises(StreamNotFound, match=r"nobody listens to x-EEG, x-MEG after 5 s"):
        lonely.advance()


def test_a_modality_that_is_not_there_is_said() -> None:
    raw = mne.io.RawArray(np.zeros((1, 10)), mne.create_info(["Cz"], SFREQ, ["eeg"]), verbose="error")
    with pytest.raises(ConfigurationError, match="it has eeg; asked for meg"):
        Replay(MemoryTransport(), Recording.from_raw(raw, "r"), settings(modalities=["meg"]))
    with pytest.raises(RecordingError, match="nothing lies between start_s 9"):
        Replay(MemoryTransport(), RECORDING, settings(start_s=9.0))


def test_a_part_is_played_and_its_events_with_it() -> None:
    played = Played(settings(start_s=0.75, duration_s=0.5))
    np.testing.assert_allclose(played.data[EEG], DATA[:2, 150:250], rtol=3e-7)
    assert [(round(m.stamp - played.t0, 9), m.text) for m in played.markers] == [(0.25, "5")]


@pytest.mark.parametrize(
    "given",
    [
        {"loop": 1.5},
        {"loop": 0},
        {"speed": 0},
        {"eeg": {"chunk": 0}},
        {"eeg": {"gaps": [(1.0, 0.0)]}},
        {"names": {"x": "y"}},
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        settings(**given)


def test_the_log_is_written_with_its_pushes(tmp_path: Path) -> None:
    played = Played(settings(log_pushes=True, eeg={"chunk": 10, "gaps": [(0.5, 0.25)]}))
    path = tmp_path / "replay.json"
    played.replay.log.write(path)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["streams"]["eeg"]["gaps"] == [[100, 50]]
    assert written["streams"]["eeg"]["n_sent"] == N_TIMES - 50
    with np.load(path.with_suffix(".npz")) as pushes:
        assert pushes["eeg_n_times"].sum() == N_TIMES - 50
        last = pushes["eeg_first"] + pushes["eeg_n_times"] - 1
        assert (pushes["eeg_pushed"] - (played.t0 + last / SFREQ)).min() >= -1e-9


def test_the_defaults_of_one_stream_are_real_time_blocks_of_ten() -> None:
    assert ReplayStreamSettings().chunk == 10
    assert settings().speed == 1.0


@given(seed=st.integers(0, 1000), chunk=st.integers(1, 40), loop=st.integers(1, 3))
@hypothesis_settings(max_examples=20, deadline=None)
def test_what_was_recorded_at_its_own_times_is_played_at_them(seed: int, chunk: int, loop: int) -> None:
    """Drift, jitter and holes as they were; the other stream stays in step."""
    steps = np.random.default_rng(seed).exponential(1 / SFREQ, N_TIMES)
    own = np.cumsum(steps) - steps[0]
    times = {EEG: own, MEG: own[-1] * np.arange(N_TIMES) / (N_TIMES - 1)}
    played = Played(settings(eeg={"chunk": chunk}, meg={"chunk": 7}, loop=loop), replace(RECORDING, times=times))
    period = own[-1] + 1 / SFREQ
    for modality in (EEG, MEG):
        wanted = played.t0 + np.concatenate([times[modality] + lap * period for lap in range(loop)])
        np.testing.assert_allclose(played.stamps[modality], wanted, rtol=0, atol=1e-9)
        n = 0
        for at, count in played.arrived[modality]:
            n += count
            assert at >= wanted[n - 1] - 1e-9  # never before it exists


def test_resampling_what_has_its_own_times_is_refused() -> None:
    times = dict.fromkeys((EEG, MEG), np.arange(N_TIMES) / SFREQ)
    with pytest.raises(ConfigurationError, match=r"eeg\.sfreq is given, but this recording is played at the times"):
        Played(settings(eeg={"sfreq": 100.0}), replace(RECORDING, times=times))
