"""The feed over memory: everything that an engine, or what claims to be one, can do to a view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag
from rt_mmdf.core.errors import HeadModelError, StreamAmbiguous, WorkerFailed
from rt_mmdf.lsl.interface import REJOIN_S, ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.averages import AverageDescription, AverageEstimate, AverageOutlets
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS
from rt_mmdf.sinks.marks import read_mark
from rt_mmdf.view.feed import Feed, FeedState, Status
from rt_mmdf.view.history import Measure
from rt_mmdf.view.links import EstimateLink, Latencies, Pairing, _Update
from rt_mmdf.view.streams import EngineDescription

from .publishing_engine import HOP_S, PublishingEngine, sources_of


@dataclass(frozen=True, eq=False)
class AnyHead:
    """Stands for a head model: the feed hands it on and asks nothing of it."""

    fingerprint: str


class Heads:
    """Finds any head but those that are `absent`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Path | None]] = []
        self.absent: set[str] = set()

    def __call__(self, engine: EngineDescription, folder: Path | None) -> Any:
        self.asked.append((engine.fingerprint, folder))
        if engine.fingerprint in self.absent:
            raise HeadModelError(f"the head {engine.fingerprint[:4]} is not on this machine")
        return AnyHead(engine.fingerprint)


class Lab:
    """A machine with a view, another one with an engine, and time that passes when it is told to."""

    def __init__(self, **given: Any) -> None:
        self.clock = ManualClock(5000.0)
        self.here = MemoryTransport(self.clock, uncertainty_s=1e-4)
        self.there = self.here.machine("lab", offset_s=70.0)
        self.heads = Heads()
        self.feed = Feed(self.here, find=self.heads, **given)

    def round(self) -> FeedState:
        self.feed.look()
        self.feed.receive()
        self.feed.receive_second()
        self.feed.attend()
        return self.feed.state()

    def run(self, engine: PublishingEngine | None, seconds: float, **how: Any) -> FeedState:
        """Let the engine publish, and the view work, for so long."""
        for _ in range(round(seconds / HOP_S)):
            self.clock.advance(HOP_S)
            if engine is not None:
                engine.publish(**how)
            self.round()
        return self.feed.state()


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_without_an_engine_the_view_waits_and_says_so(lab: Lab) -> None:
    state = lab.round()
    assert (state.status, state.problem) == (Status.WAITING, "")
    assert "waiting for an engine: `rt-mmdf monitor`" in state.note
    assert state.history is None
    assert np.isnan(state.age_s)
    named = Lab(name="mine")
    PublishingEngine(named.there, "other")
    assert "'mine'" in named.round().note
    assert "other on lab: 37 sources" in named.round().note


def test_what_is_published_is_shown_with_its_age_on_this_machines_clock(lab: Lab) -> None:
    engine = PublishingEngine(lab.there, more={"engine/budget_ms": "5"})
    lab.round()  # subscribed
    state = lab.run(engine, 1.0)
    assert (state.status, state.problem, state.note) == (Status.LIVE, "", "")
    assert state.engine is not None
    assert (state.engine.name, state.engine.host) == ("e", "lab")
    assert state.head is not None
    assert state.counts == replace(state.counts, received=1000, lost=0, holes=0, discarded=0, unflagged=0, invalid=0)
    assert state.newest_stamp == pytest.approx(lab.there.clock.now())
    assert state.age_s == pytest.approx(0.0, abs=3e-4)  # 70 s apart, measured to 0.1 ms
    lab.clock.advance(0.2)
    assert lab.feed.state().age_s == pytest.approx(0.2, abs=3e-4)
    assert state.history is not None
    frame = state.history.newest(Measure.LATEST)
    assert frame is not None
    assert frame.time == pytest.approx(state.newest_stamp)
    np.testing.assert_allclose(frame.values, 100.0, rtol=1e-3)
    assert state.budget_ms == 5.0
    assert state.latencies.missed(5.0) == (0, 100)
    engine.publish(late_s=0.1)
    assert lab.round().latencies.missed(5.0) == (1, 101)


def test_the_health_is_heard_and_its_silence_shows(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    engine.health.publish({"hops": 1, "budget_ms": 1.0})  # before anybody listened
    lab.run(engine, 0.1)
    engine.health.publish({"hops": 5, "budget_ms": 20.0, "bad_channels": {"E3": "flat"}})
    state = lab.run(engine, 0.1)
    assert state.health is not None
    assert (state.health.hops, state.health.bad_channels, state.budget_ms) == (5, {"E3": "flat"}, 20.0)
    engine.health._outlet.push(["{not json"], lab.there.clock.now())
    lab.clock.advance(9.0)
    assert lab.round().health == state.health
    assert lab.feed.state().health_age_s == pytest.approx(9.1, abs=0.02)


def test_nothing_that_is_no_estimate_is_shown_as_one(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    lab.run(engine, 0.2)
    state = lab.run(engine, 0.2, value=np.nan, flags=Flag.INVALID | Flag.EEG_MISSING)
    assert state.history is not None
    frame = state.history.newest()
    assert frame is not None
    assert not frame.valid
    assert np.isnan(frame.values).all()
    assert state.flags == Flag.INVALID | Flag.EEG_MISSING
    assert state.counts.invalid == 200
    poisoned = np.ones((37, 10))
    poisoned[5, :] = np.inf
    state = lab.run(engine, 0.2, value=poisoned)  # its flags say that all is well
    assert state.counts.invalid == 400
    frame = state.history.newest()
    assert frame is not None
    assert np.isnan(frame.values).all()
    state = lab.run(engine, 0.2)
    frame = state.history.newest()
    assert frame is not None
    assert frame.valid


def test_a_missing_modality_is_known_of_each_frame(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    lab.run(engine, 0.2)
    state = lab.run(engine, 0.2, flags=Flag.MEG_MISSING)
    assert state.flags == Flag.MEG_MISSING
    assert state.history is not None
    newest = state.history.newest()
    assert newest is not None
    assert newest.flags == Flag.MEG_MISSING
    assert state.history.frame(0).flags == Flag(0)


def test_an_engine_that_goes_silent_is_told_from_one_that_is_gone(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    lab.run(engine, 0.3)
    state = lab.run(None, 0.9)
    assert state.status is Status.LIVE  # a second may pass
    state = lab.run(None, 3.0)
    assert state.status is Status.SILENT
    assert "sends nothing" in state.problem
    assert state.age_s == pytest.approx(3.9, abs=0.05)
    assert lab.run(engine, 0.1).status is Status.LIVE
    engine.close()
    state = lab.run(None, 5.0)
    assert state.status is Status.WAITING
    assert state.history is not None  # the last minute can still be looked at
    assert len(state.history) >= 9
    assert state.age_s == pytest.approx(5.0, abs=0.05)


def test_one_look_that_misses_an_answer_does_not_end_a_silent_engine(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    lab.run(engine, 0.3)
    lab.run(None, 1.5)
    with monkeypatch.context() as patched:
        patched.setattr(lab.here, "resolve", lambda **asked: [])
        lab.clock.advance(1.0)
        assert lab.round().status is Status.SILENT
    assert lab.run(None, 3.0).status is Status.SILENT


def test_a_restarted_engine_is_taken_up_with_the_same_minute(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    before = lab.run(engine, 0.5)
    engine.close()
    lab.run(None, 4.0)
    state = lab.run(PublishingEngine(lab.there), 0.5)
    assert state.status is Status.LIVE
    assert (state.counts.connected, state.generation) == (2, before.generation)
    assert state.history is before.history
    assert len(lab.heads.asked) == 1
    assert state.history is not None
    gap = [state.history.frame(number).n_missing for number in state.history.numbers()]
    assert max(gap) > 3900  # the hole is there to be seen


@pytest.mark.parametrize(
    "changed",
    [
        {"sources": sources_of(30, 31, "cd" * 32)},
        {"sources": sources_of(fingerprint="cd" * 32)},
        {"solver": "MNE", "unit": "A m"},
        {"sfreq": 500.0},
    ],
)
def test_an_engine_that_comes_back_another_is_never_mixed_with_the_first(lab: Lab, changed: dict[str, Any]) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    before = lab.run(engine, 0.5)
    engine.close()
    lab.run(None, 4.0)
    state = lab.run(PublishingEngine(lab.there, **changed), 0.5)
    assert state.status is Status.LIVE
    assert state.generation > before.generation
    assert state.history is not before.history
    assert state.engine is not None
    assert state.history is not None
    assert state.history.n_sources == state.engine.n_sources
    assert len(state.history) >= 10


def test_another_engine_behind_the_same_streams_is_found_out_as_soon_as_it_is_heard(lab: Lab) -> None:
    """As liblsl's recovery makes it: same name and source id, same number of channels, another head."""
    engine = PublishingEngine(lab.there)
    lab.round()
    before = lab.run(engine, 0.5)
    engine.close()
    again = PublishingEngine(lab.there, sources=sources_of(fingerprint="cd" * 32))
    state = lab.run(again, REJOIN_S + 0.5)
    assert state.engine is not None
    assert state.engine.fingerprint == "cd" * 32
    assert state.generation > before.generation
    assert before.history is not None
    assert before.history.n_invalid == 0
    assert before.history.stop <= 13  # nothing of the other head went into it


def test_another_engine_that_has_counted_on_is_found_out_too(lab: Lab) -> None:
    """liblsl joins a successor after a second or more: by then its numbers are beyond those of the engine before."""
    engine = PublishingEngine(lab.there)
    lab.round()
    before = lab.run(engine, 0.5)
    again = PublishingEngine(lab.there, sources=sources_of(fingerprint="cd" * 32))
    for _ in range(round(2.0 / HOP_S)):
        lab.clock.advance(HOP_S)
        again.publish()
    assert again.index > engine.index
    engine.close()
    state = lab.run(again, REJOIN_S + 0.5)
    assert state.engine is not None
    assert state.engine.fingerprint == "cd" * 32
    assert state.generation > before.generation
    assert before.history is not None
    assert before.history.stop <= 13  # nothing of the other head went into it


def test_after_a_silence_nothing_is_shown_before_its_companion_tells_whose_it_is(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    lab.run(engine, 0.3)
    lab.run(None, 1.5)
    history = lab.feed.state().history
    assert history is not None
    shown = history.stop
    now = lab.there.clock.now()
    engine.outlets._estimate.push(np.ones((300, 37), np.float32), now + np.arange(300) / 1000)  # whoever that is
    lab.run(None, 0.5)  # more than the patience with a single late companion
    assert history.stop == shown
    assert lab.run(engine, 0.3).history is history
    assert history.stop > shown


def test_a_head_that_is_not_here_is_asked_for_and_found_when_it_comes(lab: Lab) -> None:
    lab.heads.absent.add("ab" * 32)
    engine = PublishingEngine(lab.there)
    lab.round()
    state = lab.run(engine, 1.0)
    assert (state.status, state.problem) == (Status.PROBLEM, "the head abab is not on this machine")
    assert state.history is None
    assert len(lab.heads.asked) == 1  # not every hop
    lab.run(None, 50.0)
    assert len(lab.heads.asked) == 4  # after 5, 10, 20 s more
    lab.heads.absent.clear()
    assert lab.run(engine, 31.0).status is Status.LIVE


def test_the_folder_given_by_hand_reaches_the_search() -> None:
    lab = Lab(head=Path("heads/sample"))
    PublishingEngine(lab.there)
    lab.round()
    lab.round()
    assert lab.heads.asked == [("ab" * 32, Path("heads/sample"))]


def wrong_head(stream: StreamDescription) -> StreamDescription:
    return replace(stream, extra=stream.extra | {"head/n_sources_lh": "3"})


def not_ours(stream: StreamDescription) -> StreamDescription:
    return replace(stream, extra=stream.extra | {"engine/name": "somebody"})


def bare(stream: StreamDescription) -> StreamDescription:
    return replace(stream, extra={}, channels=(ChannelDescription(""),) * stream.n_channels)


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [(wrong_head, "37 channels, its head has 3"), (not_ours, "'somebody' made it"), (bare, "no description")],
)
def test_a_stream_that_is_no_engines_is_a_problem_and_not_the_end(
    lab: Lab, spoilt: Callable[[StreamDescription], StreamDescription], said: str
) -> None:
    good = PublishingEngine(lab.there)
    described = good.outlets.streams[0]
    good.close()
    bad = lab.there.outlet(spoilt(described))
    lab.round()
    state = lab.run(None, 0.1)
    assert state.status is Status.PROBLEM
    assert said in state.problem
    bad.close()
    lab.run(None, 1.0)
    assert lab.run(PublishingEngine(lab.there), 1.0).status is Status.LIVE


def test_without_companion_it_is_shown_and_said(lab: Lab) -> None:
    engine = PublishingEngine(lab.there, more={"streams/companion": "nowhere"})
    lab.round()
    state = lab.run(engine, 0.5)
    assert state.status is Status.LIVE
    assert "nobody knows whether a modality is missing" in state.problem
    assert (state.has_companion, state.flags) == (False, None)
    assert state.counts.unflagged == state.counts.received == 500


def test_a_flood_costs_samples_not_memory_and_is_counted(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    lab.run(engine, 0.2)
    before = lab.feed.state()
    for _ in range(20):  # a second of estimates, twenty times, in no time at all
        for hop in range(100):
            engine.publish(at=lab.there.clock.now() + hop * 1e-4)
        lab.clock.advance(0.01)
        lab.round()
    state = lab.feed.state()
    assert before.history is not None
    assert state.history is not None
    assert state.history.nbytes == before.history.nbytes
    assert state.counts.discarded > 5000
    assert state.counts.received == 200 + 20 * 1000
    assert lab.feed._link is not None
    assert lab.feed._link._pairing.n_waiting < 5000
    assert lab.run(engine, 1.0).status is Status.LIVE


def test_samples_that_the_link_was_too_slow_for_are_counted_as_lost(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    lab.run(engine, 0.5)
    for _ in range(500):  # nobody pulls for 5 s; the transport keeps 2
        lab.clock.advance(HOP_S)
        engine.publish()
    state = lab.run(engine, 0.5)
    assert (state.counts.lost, state.counts.received) == (3010, 2990)  # of 600 hops; the first was published before the pull
    assert state.counts.holes == 0
    engine.skip()
    engine.skip()
    assert lab.run(engine, 0.1).counts.holes == 20  # these the engine did not image


def test_a_stamp_that_is_no_time_is_discarded(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    lab.round()
    lab.run(engine, 0.2)
    engine.outlets._estimate.push(np.ones((3, 37), np.float32), np.array([np.nan, np.inf, 1e300]))
    engine.outlets._companion.push(np.full((2, len(COMPANION_COLUMNS)), np.nan), np.array([np.nan, 5.0]))
    state = lab.run(engine, 0.2)
    assert state.counts.discarded == 3
    assert state.status is Status.LIVE
    assert np.isfinite(state.newest_stamp)


def test_two_engines_are_a_question_and_the_one_shown_stays(lab: Lab) -> None:
    first = PublishingEngine(lab.there, "a")
    other = PublishingEngine(lab.here.machine("lab-2"), "b")
    state = lab.round()
    assert state.status is Status.PROBLEM
    assert "a on lab: 37 sources" in state.problem
    with pytest.raises(StreamAmbiguous, match="2 engines are running"):
        lab.feed.require_one(0.0)
    other.close()
    lab.run(first, 1.5)
    lab.feed.require_one(0.0)
    PublishingEngine(lab.here.machine("lab-2"), "b")
    assert lab.run(first, 0.5).status is Status.LIVE
    first.close()
    state = lab.run(None, 4.0)
    assert state.status is Status.WAITING  # for the one that was shown, and no other
    assert "'a'" in state.note
    assert "b on lab-2" in state.note
    PublishingEngine(lab.there, "a")
    state = lab.run(None, 2.0)
    assert state.engine is not None
    assert state.engine.name == "a"


def test_a_second_solver_is_received_beside_the_first(lab: Lab) -> None:
    engine = PublishingEngine(lab.there, more={"streams/second": "e-second"})
    second = PublishingEngine(lab.there, "other", solver="dSPM", unit="", stream="e-second")
    lab.round()
    for _ in range(50):
        lab.clock.advance(HOP_S)
        engine.publish(1.0)
        second.publish(2.0)
        lab.round()
    state = lab.feed.state()
    assert state.history is not None
    assert state.second is not None
    assert len(state.second.history) >= 10
    ours, theirs = state.history.newest(), state.second.history.newest()
    assert ours is not None
    assert theirs is not None
    assert ours.time == theirs.time
    assert (ours.values[0], theirs.values[0]) == (1.0, 2.0)
    engine.close()
    second.close()
    lab.run(None, 4.0)
    state = lab.run(PublishingEngine(lab.there), 0.2)
    assert state.second is None


def test_sensors_averages_and_marks(lab: Lab) -> None:
    more = {"streams/sensors": "e-sensors", "streams/averages/tone": "e-average-tone", "streams/marks": "e-marks"}
    engine = PublishingEngine(lab.there, more=more)
    channels = (ChannelDescription("E1", "eeg", "V"), ChannelDescription("M1", "mag", "T"))
    sensors = lab.there.outlet(
        StreamDescription("e-sensors", "Sensors", "e-sensors", 100.0, "float32", channels, {"engine/name": "rt_mmdf"})
    )
    of_tone = AverageDescription("tone", ("tone",), np.linspace(-0.1, 0.3, 41), None)
    tone = AverageOutlets(lab.there, "e-average-tone", engine.sources, engine.described, of_tone)
    lab.round()
    lab.run(engine, 0.1)
    now = lab.there.clock.now()
    sensors.push(np.array([[1e-6, np.nan], [2e-6, np.inf]]), np.array([now - 0.01, now]))
    tone.publish(AverageEstimate(np.full((37, 41), 3.0, np.float32), 12, 2, now - 1.0))
    state = lab.run(engine, 0.1)
    assert state.traces is not None
    times, data = state.traces.between(now - 1, now + 1)
    np.testing.assert_allclose(times, [now - 0.01, now])
    np.testing.assert_allclose(data, [[1e-6, 2e-6], [np.nan, np.nan]], rtol=1e-6)
    average = state.averages["tone"]
    assert (average.n_trials, average.n_rejected, average.stream.event) == (12, 2, "tone")
    assert average.values.shape == (37, 41)
    tone.publish(AverageEstimate(np.zeros((37, 41), np.float32), 0, 0, float("nan")))  # it was reset
    assert np.isnan(lab.run(engine, 0.1).averages["tone"].values).all()

    heard = lab.there.inlet(lab.there.resolve(name="e-marks")[0])
    assert state.can_mark
    assert lab.feed.mark("a sneeze", time=now)
    state = lab.run(engine, 0.1)
    assert [(mark.text, mark.time) for mark in state.marks] == [("a sneeze", pytest.approx(now, abs=5e-4))]
    sample = read_mark(heard.pull(0.0)[0][0, 0])
    assert sample is not None
    assert (sample.text, sample.stamp) == ("a sneeze", pytest.approx(now - 70.0, abs=5e-4))  # on this machine's clock
    own = {"stamp": sample.stamp, "received": now, "text": "a sneeze", "host": "here"}
    others = {"stamp": 3.0, "received": now - 2, "text": "door", "host": "third"}
    engine.health.publish({"hops": 1, "marks": {"newest": [own, others]}})
    assert [mark.text for mark in lab.run(engine, 0.1).marks] == ["door", "a sneeze"]


@pytest.mark.parametrize("spoilt", ["e-average-tone-companion", "e-average-tone", "e-sensors", "e-second", "e-health"])
def test_what_is_beside_the_estimates_and_not_ours_is_not_shown_and_hurts_nothing(lab: Lab, spoilt: str) -> None:
    more = {
        "streams/sensors": "e-sensors",
        "streams/averages/tone": "e-average-tone",
        "streams/second": "e-second",
    }
    engine = PublishingEngine(lab.there, more=more)
    engine.health.close()
    for name in ("e-average-tone-companion", "e-average-tone", "e-sensors", "e-second", "e-health"):
        n, dtype = (2, "float32") if name == spoilt else (1, "string")
        channels = tuple(ChannelDescription(f"c{i}") for i in range(n))
        lab.there.outlet(StreamDescription(name, "any", name, 100.0, dtype, channels, {"average/n_times": "2"}))
    lab.round()
    state = lab.run(engine, 1.0)
    assert state.status is Status.LIVE
    assert state.counts.received == 1000
    assert (state.second, state.sensors, dict(state.averages), state.health) == (None, None, {}, None)


@given(
    stamps=st.lists(st.sampled_from([1.0, 2.0, 3.0, float("nan")]), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_an_update_is_complete_or_not_there(stamps: list[float], cuts: list[int]) -> None:
    update, times = _Update(3), np.array(stamps)
    rows_ = np.arange(len(stamps), dtype=np.float32)[:, None]
    for start, stop in pairwise([0, *sorted(min(cut, len(stamps)) for cut in cuts), len(stamps)]):
        update.add(rows_[start:stop], times[start:stop])
        if update.complete is not None:
            stamp, data = update.complete
            assert data.shape == (3, 1)
            assert [stamps[int(i)] for i in data[:, 0]] == [stamp] * 3
            assert (np.diff(data[:, 0]) == 1).all()


def test_marks_need_an_engine_that_listens(lab: Lab) -> None:
    assert not lab.feed.mark("nobody hears")
    engine = PublishingEngine(lab.there)
    lab.round()
    state = lab.run(engine, 0.1)
    assert not state.can_mark
    assert not lab.feed.mark("nobody hears")
    assert lab.here.resolve(name="e-marks") == []


def rows(hops: np.ndarray, flags: np.ndarray) -> np.ndarray:
    table = np.zeros((len(hops), len(COMPANION_COLUMNS)))
    table[:, 0], table[:, 2] = hops, flags
    return table


@given(
    cuts=st.lists(st.integers(0, 50), max_size=6),
    companion_cuts=st.lists(st.integers(0, 50), max_size=6),
    lost=st.sets(st.integers(1, 48), max_size=10),
    untold=st.sets(st.integers(1, 48), max_size=10),
)
def test_every_estimate_gets_its_own_flags_however_the_two_streams_come(
    cuts: list[int], companion_cuts: list[int], lost: set[int], untold: set[int]
) -> None:
    times, flags = 100.0 + np.arange(50) / 100, np.arange(50) % 64
    data = np.arange(50, dtype=np.float32)[:, None]
    sent, told = np.setdiff1d(np.arange(50), list(lost)), np.setdiff1d(np.arange(50), list(untold))
    pairing = Pairing(100.0, 1)
    taken = []
    parts = list(pairwise([0, *sorted(cuts), 50]))
    companion_parts = list(pairwise([0, *sorted(companion_cuts), 50]))
    for i in range(max(len(parts), len(companion_parts))):
        if i < len(parts):
            part = sent[(sent >= parts[i][0]) & (sent < parts[i][1])]
            pairing.estimates(data[part], times[part], now=0.0)
        if i < len(companion_parts):
            part = told[(told >= companion_parts[i][0]) & (told < companion_parts[i][1])]
            pairing.companions(rows(part, flags[part]), times[part])
        taken += pairing.take(now=0.0)
    taken += pairing.take(now=1.0)  # patience is at an end
    np.testing.assert_array_equal(np.concatenate([p.data[:, 0] for p in taken]), sent)
    np.testing.assert_array_equal(np.concatenate([p.times for p in taken]), times[sent])
    known = np.concatenate([p.known for p in taken])
    np.testing.assert_array_equal(known, np.isin(sent, told))
    np.testing.assert_array_equal(np.concatenate([p.flags for p in taken])[known], flags[sent][known])
    assert pairing.n_waiting == 0
    assert pairing.unflagged == len(untold - lost)
    assert pairing.lost == len(lost - untold)


def test_latencies_count_each_hop_once() -> None:
    latencies = Latencies()
    table = np.zeros((6, len(COMPANION_COLUMNS)))
    table[:, 0] = [1, 1, 2, 2, 2, 3]
    table[:, COMPANION_COLUMNS.index("published")] = [0.5, 0.5, 0.9, 0.9, 0.9, np.nan]
    latencies.add(table[:1], np.array([10.0]))
    latencies.add(table[1:], 10.0 + np.arange(1, 6))
    np.testing.assert_allclose(latencies.recent()["lateness"], [0.5, 0.9])
    assert latencies.missed(600.0) == (1, 2)
    assert latencies.missed(600.0, seconds=1.0) == (0, 0)


def test_the_threads_run_and_end_and_the_engine_does_not_notice(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    workers_before = _threads()
    with lab.feed as feed:
        assert _threads() - workers_before == {"view look", "view estimates", "view second", "view aside"}
        _wait(lambda: engine.outlets._estimate.has_consumers() and feed.state().engine is not None)
        for _ in range(20):
            lab.clock.advance(HOP_S)
            engine.publish()
        _wait(lambda: feed.state().counts.received == 200)
        feed.check()
    assert _threads() == workers_before
    assert not engine.outlets._estimate.has_consumers()
    engine.publish()
    feed.close()  # a second time


@pytest.mark.parametrize("last", ["view estimates", "view aside"])
def test_a_feed_whose_start_is_interrupted_leaves_neither_threads_nor_streams(
    last: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PublishingEngine(lab.there, more={"streams/marks": "e-marks"})
    feed, begin = lab.feed, Worker.start

    def interrupted(worker: Worker) -> Worker:
        begin(worker)
        if worker.name == last:
            _wait(engine.outlets._estimate.has_consumers)
            _wait(lambda: last != "view aside" or bool(lab.here.resolve(name="e-marks")))
            raise KeyboardInterrupt
        return worker

    monkeypatch.setattr(Worker, "start", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), feed:
            raise AssertionError("it has started")
        assert not _threads()
        assert not engine.outlets._estimate.has_consumers()
        assert lab.here.resolve(name="e-marks") == []
    finally:
        feed.close()


def test_a_fault_of_the_program_is_not_swallowed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> bool:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(EstimateLink, "step", broken)
    PublishingEngine(lab.there)
    feed = lab.feed.start()
    _wait(lambda: not all(worker.alive for worker in feed._workers))
    with pytest.raises(WorkerFailed, match="a fault"):
        feed.check()
    with pytest.raises(WorkerFailed, match="a fault"):
        feed.close()
    assert not _threads()


def _threads() -> set[str]:
    import threading

    return {thread.name for thread in threading.enumerate() if thread.name.startswith("view ")}


def _wait(done: Callable[[], bool]) -> None:
    from rt_mmdf.runtime.mailbox import Signal

    pause = Signal()
    for _ in range(1000):
        if done():
            return
        pause.wait(0.01)
    raise AssertionError("not within 10 s")


def test_a_second_stream_of_the_engines_machine_is_not_taken_for_its_own(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    engine = PublishingEngine(lab.there)
    false_health = lab.there.outlet(replace(engine.health.stream, source_id="another"))
    lab.run(engine, 0.1)
    engine.health.publish({"hops": 5})
    state = lab.run(engine, 0.2)
    assert state.status is Status.LIVE
    assert state.health is None
    assert caplog.text.count("2 streams are called 'e-health' on 'lab'") == 1
    false_health.close()
    lab.run(engine, 6.0)  # it looks again
    engine.health.publish({"hops": 6})
    health = lab.run(engine, 0.2).health
    assert health is not None
    assert health.hops == 6


def test_with_two_companions_nobody_knows_what_is_wrong_and_that_is_said(lab: Lab) -> None:
    engine = PublishingEngine(lab.there)
    companion = lab.here.describe(lab.here.resolve(name="e-sources-companion")[0])
    lab.there.outlet(replace(companion, source_id="another"))
    state = lab.run(engine, 2.0)
    assert not state.has_companion
    assert "its companion stream is not there (or there are several)" in state.problem
