"""Chaos: the same seed is the same faults, and what is sent plus what is said to be lost is the recording."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rt_mmdf.acquisition.chaos import (
    BAD_CHANNELS,
    BAD_STAMPS,
    DRAWN,
    NOT_SENT,
    STALLS_S,
    ChaosPlan,
    ChaosSettings,
    Fault,
    FaultKind,
    StreamChaos,
    WireChannel,
    draw_plan,
)
from rt_mmdf.acquisition.recording import Recording
from rt_mmdf.acquisition.replay import Replay, ReplaySettings
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.lsl.interface import StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport

SFREQ, SECONDS = 100.0, 12.0
NAMES = [f"E{i}" for i in range(10)] + ["EOG"] + [f"M{i}" for i in range(6)] + [f"G{i}" for i in range(4)]
TYPES = ["eeg"] * 10 + ["eog"] + ["mag"] * 6 + ["grad"] * 4
SCALE = np.array([{"eeg": 1e-5, "eog": 1e-4, "mag": 1e-12, "grad": 1e-11}[kind] for kind in TYPES])
EEG, MEG = Modality.EEG, Modality.MEG
ALL_KINDS = st.lists(st.sampled_from(list(FaultKind)), min_size=1, max_size=6, unique=True).map(tuple)
CHAOS = st.builds(
    ChaosSettings,
    seed=st.integers(0, 2**32),
    seconds=st.just(SECONDS),
    quiet_s=st.sampled_from([0.0, 1.0, 4.0]),
    recovery_s=st.sampled_from([0.0, 2.0]),
    every_s=st.sampled_from([1.0, 6.0]),
    kinds=ALL_KINDS,
)


def made_up() -> Recording:
    data = np.random.default_rng(0).standard_normal((len(NAMES), round(SECONDS * SFREQ))) * SCALE[:, None]
    return Recording.from_raw(mne.io.RawArray(data, mne.create_info(NAMES, SFREQ, TYPES), verbose="error"), "made-up")


RECORDING = made_up()


@dataclass
class Pushed:
    """Everything that one outlet was given, and when it lived."""

    description: StreamDescription
    opened: float
    closed: float = math.inf
    blocks: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)


class Wire(MemoryTransport):
    """Remembers each outlet that was ever opened, and what was pushed into it."""

    def __init__(self) -> None:
        super().__init__(ManualClock())
        self.pushed: list[Pushed] = []

    def outlet(self, description: StreamDescription, **given: Any) -> Any:
        outlet, clock = super().outlet(description, **given), self.clock
        seen = Pushed(description, clock.now())
        push, close = outlet.push, outlet.close

        def note(data: Any, stamps: Any) -> None:
            assert not outlet.closed
            seen.blocks.append((clock.now(), np.array(data), np.array(stamps)))
            push(data, stamps)

        def end() -> None:
            seen.closed = min(seen.closed, clock.now())
            close()

        outlet.push, outlet.close = note, end  # type: ignore[method-assign]
        self.pushed.append(seen)
        return outlet


def play(given: dict[str, Any], plan: ChaosPlan | None = None) -> tuple[Replay, dict[Modality, list[Pushed]]]:
    """A replay to its end, from due time to due time."""
    wire = Wire()
    settings = validate_settings({"markers": False, **given}, ReplaySettings, where="test")
    with pytest.MonkeyPatch.context() as patch:
        if plan is not None:
            patch.setattr("rt_mmdf.acquisition.replay.draw_plan", lambda settings: plan)
        replay = Replay(wire, RECORDING, settings)
    while math.isfinite(due := replay.advance()):
        assert isinstance(wire.clock, ManualClock)
        wire.clock.move_to(max(due, wire.clock.now()))
    replay.close()
    return replay, {m: [p for p in wire.pushed if p.description.type == m.upper()] for m in Modality}


def one(kind: FaultKind, modality: Modality = EEG, start_s: float = 3.0, duration_s: float = 2.0, **given: Any) -> ChaosPlan:
    return ChaosPlan(0, (Fault(start_s, kind, modality, duration_s, **given),))


CHAOTIC = {"chaos": {"seed": 0}, "counter": True}


@given(settings=CHAOS)
def test_a_plan_is_a_function_of_its_settings(settings: ChaosSettings) -> None:
    plan = draw_plan(settings)
    assert plan == draw_plan(ChaosSettings.model_validate(settings.model_dump()))
    assert 1 <= len(plan.faults) <= max(1, round(settings.seconds / settings.every_s))
    assert list(plan.faults) == sorted(plan.faults)
    for fault in plan.faults:
        assert fault.kind in settings.kinds
        assert fault.start_s >= settings.quiet_s
        long = fault.duration_s == STALLS_S[-1] or settings.quiet_s + fault.duration_s + settings.recovery_s > SECONDS
        assert long or fault.end_s <= settings.seconds - settings.recovery_s + 1e-9
        assert (fault.share > 0) == (fault.kind in BAD_CHANNELS)
    with pytest.raises(FrozenInstanceError):
        plan.seed = 3  # type: ignore[misc]


def test_neighbouring_seeds_are_other_plans_and_together_they_have_every_kind() -> None:
    plans = [draw_plan(ChaosSettings(seed=seed)) for seed in range(len(DRAWN))]
    assert len({plan.faults for plan in plans}) == len(plans)
    assert {fault.kind for plan in plans for fault in plan.faults} == set(DRAWN)
    stalls = [f for s in range(200) for f in draw_plan(ChaosSettings(seed=s)).faults if f.kind is FaultKind.STALL]
    assert {fault.duration_s for fault in stalls} == set(STALLS_S)


@given(
    chaos=CHAOS,
    chunk=st.integers(1, 40),
    loop=st.integers(1, 2),
    gaps=st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 1)), max_size=2),
)
@hypothesis_settings(max_examples=40)
def test_what_is_sent_and_what_is_said_to_be_lost_is_the_recording(
    chaos: ChaosSettings, chunk: int, loop: int, gaps: list[tuple[float, float]]
) -> None:
    stream = {"chunk": chunk, "gaps": gaps}
    given_ = {"loop": loop, "counter": True, "eeg": stream, "meg": stream}
    replay, pushed = play(given_ | {"chaos": chaos.model_dump()})
    _, faultless = play(given_)
    log = replay.log
    assert log.faults is not None
    for modality in Modality:
        total = loop * log.streams[modality].n_per_loop
        own = [f for f in log.faults if f.fault.modality is modality]
        resent = [f for f in own if f.fault.kind is FaultKind.RESENT]
        numbers, at_rate = [], False
        for outlet in pushed[modality]:
            at_rate |= outlet.description.sfreq != SFREQ
            for _, data, _ in outlet.blocks:
                numbers.append(data[:, -1].astype(int))
        sent = np.concatenate(numbers) if numbers else np.empty(0, int)
        lost = np.zeros(total, bool)
        for fault in own:
            if fault.fault.kind in NOT_SENT and fault.first is not None:
                lost[fault.first : fault.stop] = True
        for first, n in log.streams[modality].gaps:
            lost[first : first + n] = True
        times = np.bincount(sent, minlength=total)
        assert len(times) == total
        if not at_rate:  # each exactly once, or twice where that is said
            np.testing.assert_array_equal(np.flatnonzero(times == 0), np.flatnonzero(lost))
            twice = np.zeros(total, bool)
            for fault in resent:
                if fault.first is not None:
                    twice[fault.first : fault.stop] = True
            assert not (times[~twice] > 1).any()
            assert (np.diff(sent) >= 1).all() or resent
            assert log.streams[modality].n_sent + log.streams[modality].n_skipped == total
        # what no fault claims is as it is without chaos: values, stamps
        touched = np.zeros(total, bool)
        for fault in own:
            if fault.first is not None:
                touched[fault.first : fault.stop] = True
            if fault.fault.kind is FaultKind.CLOCK_DRIFT:  # what stamps are off at the end they stay off
                touched[fault.first or 0 :] = True
        if any(f.fault.kind in (FaultKind.VANISH_RATE, FaultKind.VANISH_ORDER) for f in own):
            continue
        (whole,) = faultless[modality]
        true_numbers = np.concatenate([d[:, -1].astype(int) for _, d, _ in whole.blocks])
        true = np.concatenate([d for _, d, _ in whole.blocks])
        true_stamps = np.concatenate([s for _, _, s in whole.blocks])
        got = np.concatenate([d for p in pushed[modality] for _, d, _ in p.blocks])
        got_stamps = np.concatenate([s for p in pushed[modality] for _, _, s in p.blocks])
        clean = ~touched[sent]
        where = np.searchsorted(true_numbers, sent[clean])
        np.testing.assert_array_equal(got[clean], true[where])
        np.testing.assert_array_equal(got_stamps[clean], true_stamps[where])


@given(chunk=st.integers(1, 40), seed=st.integers(0, 100))
@hypothesis_settings(max_examples=10)
def test_before_its_first_fault_chaos_is_no_different_from_none(chunk: int, seed: int) -> None:
    given_ = {"eeg": {"chunk": chunk, "jitter_ms": 30.0}, "meg": {"chunk": chunk}, "duration_s": 3.0}
    one_log, one_way = play(given_ | {"chaos": {"seed": seed}})
    other_log, other = play(given_)
    for modality in Modality:
        (a,), (b,) = one_way[modality], other[modality]
        assert a.description == b.description
        assert len(a.blocks) == len(b.blocks)
        for (when, data, stamps), (when_b, data_b, stamps_b) in zip(a.blocks, b.blocks, strict=True):
            assert when == when_b
            assert data.tobytes() == data_b.tobytes()
            assert stamps.tobytes() == stamps_b.tobytes()
    assert one_log.log.streams == other_log.log.streams
    assert other_log.log.faults is None


# each kind


@pytest.mark.parametrize("duration", STALLS_S)
def test_a_stall_delivers_late_and_loses_nothing(duration: float) -> None:
    replay, pushed = play(CHAOTIC | {"loop": 3}, one(FaultKind.STALL, duration_s=duration))
    (eeg,) = pushed[EEG]
    t0 = replay.log.streams[EEG].stamp_0
    when = np.array([at for at, _, _ in eeg.blocks]) - t0
    exists = np.array([stamps[-1] for _, _, stamps in eeg.blocks]) - t0
    inside = (exists >= 3.0) & (exists < 3.0 + duration)
    np.testing.assert_allclose(when[inside], 3.0 + duration, atol=1e-9)
    np.testing.assert_allclose(when[~inside], exists[~inside], atol=1e-9)
    assert sum(len(stamps) for _, _, stamps in eeg.blocks) == 3 * round(SECONDS * SFREQ)
    (fault,) = replay.log.faults or ()
    late = np.flatnonzero(inside)
    assert (fault.first, fault.stop) == (10 * late[0], 10 * late[-1] + 10)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (FaultKind.VANISH, 0.0),
        (FaultKind.VANISH_SOURCE, 0.0),
        (FaultKind.VANISH_ORDER, 0.0),
        (FaultKind.VANISH_RATE, 2.0),
        (FaultKind.VANISH_RATE, 0.5),
    ],
)
def test_outlets_vanish_and_return(kind: FaultKind, size: float) -> None:
    replay, pushed = play(CHAOTIC, one(kind, size=size, salt=5))
    before, after = pushed[EEG]
    t0 = replay.log.streams[EEG].stamp_0
    assert len(pushed[MEG]) == 1
    assert before.closed - t0 == pytest.approx(3.09, abs=1e-6)  # when the first block is due that lies in the hole
    assert after.opened - t0 == pytest.approx(5.09, abs=1e-6)
    stamps = np.concatenate([s for p in (before, after) for _, _, s in p.blocks]) - t0
    assert not ((stamps >= 3.0) & (stamps < 5.0)).any()
    (fault,) = replay.log.faults or ()
    assert (fault.first, fault.stop) == (300, 500)
    assert (before.description == after.description) == (kind is FaultKind.VANISH)
    assert (before.description.source_id != after.description.source_id) == (kind is FaultKind.VANISH_SOURCE)
    rate = SFREQ * (size or 1.0)
    assert after.description.sfreq == rate
    own = np.concatenate([s for _, _, s in after.blocks]) - t0
    np.testing.assert_allclose(np.diff(own), 1 / rate, atol=1e-9)
    # the same channel holds the same signal, wherever it is now
    names = [c.name for c in after.description.channels]
    assert sorted(names) == sorted(c.name for c in before.description.channels)
    assert (names != [c.name for c in before.description.channels]) == (kind is FaultKind.VANISH_ORDER)
    _, faultless = play({"counter": True})
    (whole,) = faultless[EEG]
    reference = np.concatenate([d for _, d, _ in whole.blocks])[500:]
    data = np.concatenate([d for _, d, _ in after.blocks])
    for name in ("E0", "E7", "EOG"):
        got = data[:, names.index(name)]
        wanted = reference[:, [c.name for c in before.description.channels].index(name)]
        if size == 0:
            np.testing.assert_array_equal(got, wanted)
        elif size == 2:
            assert np.corrcoef(got[::2], wanted)[0, 1] > 0.9  # all but the edge of the band
        else:
            assert np.corrcoef(got, wanted[::2])[0, 1] > 0.5  # half of white noise's power lies above the new band


def test_stamps_go_wrong_as_planned() -> None:
    def error(kind: FaultKind, duration_s: float = 2.0, size: float = 0.0) -> np.ndarray:
        replay, pushed = play(CHAOTIC, one(kind, duration_s=duration_s, size=size))
        stamps = np.concatenate([s for _, _, s in pushed[EEG][0].blocks]) - replay.log.streams[EEG].stamp_0
        return np.asarray(stamps - np.arange(len(stamps)) / SFREQ)

    def check(got: np.ndarray, *pieces: tuple[int, int, float]) -> None:
        wanted = np.zeros(len(got))
        for first, stop, value in pieces:
            wanted[first:stop] = value
        np.testing.assert_allclose(got, wanted, atol=1e-9)

    check(error(FaultKind.CLOCK_STEP, size=-1.0), (300, 500, -1.0))
    check(error(FaultKind.BACKWARD_STAMPS, 0.05, size=0.03), (300, 305, -0.03))
    check(error(FaultKind.NAN_STAMPS, 0.05), (300, 305, np.nan))
    check(np.abs(error(FaultKind.INFINITE_STAMPS, 0.05)), (300, 305, np.inf))
    drifting = error(FaultKind.CLOCK_DRIFT, size=500.0)
    np.testing.assert_allclose(drifting[300:500], 5e-4 * np.arange(200) / SFREQ, atol=1e-9)
    np.testing.assert_allclose(drifting[500:], 1e-3, atol=1e-9)
    twice = error(FaultKind.DUPLICATE_STAMPS, 0.1)
    np.testing.assert_allclose(twice[300:310], [0, -0.01] * 5, atol=1e-9)
    assert not np.abs(np.delete(twice, range(300, 310))).max() > 1e-9


def test_blocks_are_resent_whole() -> None:
    _, pushed = play(CHAOTIC, one(FaultKind.RESENT, duration_s=0.2))
    blocks = pushed[EEG][0].blocks
    doubled = [k for k in range(len(blocks) - 1) if np.array_equal(blocks[k][2], blocks[k + 1][2])]
    assert [int(blocks[k][1][0, -1]) for k in doubled] == [300, 310]


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("kind", sorted(BAD_CHANNELS))
def test_channels_go_bad_and_recover(kind: FaultKind, dtype: str) -> None:
    plan = one(kind, share=0.2, salt=11)
    given_ = CHAOTIC | {"eeg": {"dtype": dtype}, "loop": 1}
    replay, pushed = play(given_, plan)
    _, faultless = play({"counter": True, "eeg": {"dtype": dtype}})
    got, wanted = (np.concatenate([d for _, d, _ in p[EEG][0].blocks]) for p in (pushed, faultless))
    (fault,) = replay.log.faults or ()
    assert len(fault.channels) == 2
    assert "EOG" not in fault.channels
    names = [c.name for c in pushed[EEG][0].description.channels]
    bad = [names.index(name) for name in fault.channels]
    good = [k for k in range(len(names)) if k not in bad]
    np.testing.assert_array_equal(got[:, good], wanted[:, good])
    np.testing.assert_array_equal(got[:300], wanted[:300])
    np.testing.assert_array_equal(got[500:], wanted[500:])
    inside = got[300:500, bad]
    if kind is FaultKind.NAN_CHANNELS:
        assert np.isnan(inside).all() if dtype == "float32" else (inside == -32768).all()
    elif kind is FaultKind.DISCONNECTED_CHANNELS:
        assert np.abs(inside).max() <= 200.0
    else:
        assert (inside == inside[0]).all()
    if kind is FaultKind.SATURATED_CHANNELS:
        assert np.abs(inside[0]) == pytest.approx([5000.0, 5000.0])
    if kind is FaultKind.FLAT_CHANNELS:
        np.testing.assert_array_equal(inside[0], wanted[300, bad])
    if kind is FaultKind.LOST_CHANNELS:
        assert not inside.any()


@given(cuts=st.lists(st.integers(0, 400), max_size=6), seed=st.integers(0, 40))
def test_what_happens_to_samples_does_not_depend_on_how_they_are_cut(cuts: list[int], seed: int) -> None:
    kinds = tuple(BAD_CHANNELS | BAD_STAMPS - {FaultKind.DUPLICATE_STAMPS} | {FaultKind.CLOCK_STEP, FaultKind.CLOCK_DRIFT})
    plan = draw_plan(ChaosSettings(seed=seed, seconds=4.0, quiet_s=0.5, recovery_s=0.0, every_s=1.0, kinds=kinds))
    channels = [WireChannel(f"E{k}", "eeg", 1e6) for k in range(8)]
    raw = np.random.default_rng(1).normal(0, 10, (400, 8)).astype(np.float32)

    def through(edges: list[int]) -> tuple[np.ndarray, np.ndarray]:
        chaos = StreamChaos(plan, EEG, 100.0, channels, 8)
        data, stamps = [], []
        for a, b in pairwise(edges):
            samples, numbers = raw[a:b].copy(), np.arange(a, b)
            chaos.spoil(numbers, samples)
            data.append(samples)
            stamps.append(chaos.stamps(numbers, numbers / 100.0))
        return np.concatenate(data), np.concatenate(stamps)

    for whole, cut in zip(through([0, 400]), through(sorted([0, *cuts, 400])), strict=True):
        np.testing.assert_array_equal(whole, cut)


def test_the_log_tells_what_was_touched(tmp_path: Path) -> None:
    replay, _ = play({"chaos": {"seed": 4, "seconds": 12.0, "quiet_s": 1.0}})
    replay.log.write(tmp_path / "log.json")
    told = json.loads((tmp_path / "log.json").read_text())["chaos"]
    assert told["seed"] == 4
    assert replay.plan is not None
    assert [f["kind"] for f in told["faults"]] == [str(f.kind) for f in replay.plan.faults]
    for fault in told["faults"]:
        assert abs(fault["first"] - SFREQ * fault["start_s"]) <= 10  # a block
    replay, _ = play({})
    replay.log.write(tmp_path / "none.json")
    assert "chaos" not in json.loads((tmp_path / "none.json").read_text())


@pytest.mark.parametrize("chaos", [{}, {"seed": -1}, {"seed": 1, "kinds": []}, {"seed": 1, "kinds": ["gremlins"]}])
def test_wrong_settings_are_refused(chaos: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="chaos"):
        validate_settings({"chaos": chaos}, ReplaySettings, where="mine.toml")
