"""Faults of streams, stamps, channels and solvers in memory: each is noticed in time, told, survived, recovered from."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rt_mmdf.alignment.grid import ASIDE_S
from rt_mmdf.app.engine import FAILED_HOPS, GIVE_UP_S
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.session import Session
from rt_mmdf.app.watch import LOOK_S, SLOW_DISK_QUIET_S, SLOW_DISK_S
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import SolverError, StreamError, WorkerFailed
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.runtime.suspension import Suspension
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.recording import Recorder, XdfFile
from rt_mmdf.sinks.stc_files import SegmentWriter
from rt_mmdf.solvers.network import NetworkSolver

Lab = Any  # the fixture's class lives in conftest.py
SFREQ = 250.0
STEP_S = 0.02
EEG = Modality.EEG
STALL_LIMIT_S, LIMIT_S = 0.5, 2.0
LEVEL = {"eeg": ("V", 5e-6), "mag": ("T", 2e-13)}


class Amplifier:
    """A stream of sensor noise on a machine of its own, which can be told to misbehave."""

    def __init__(self, machine: MemoryTransport, description: StreamDescription, clock: ManualClock) -> None:
        self.machine, self.description, self.clock = machine, description, clock
        self.rng = np.random.default_rng(len(description.name))
        self.outlet: Any = machine.outlet(description)
        self.kind = description.channels[0].type
        self.sends, self.keeps = True, False  # `keeps`: what was not sent is sent later
        self.lag_s = self.block_s = 0.0  # samples come so long after they were taken, in blocks of at least so long
        self.spoil: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = lambda data, stamps: (data, stamps)
        self.sent_until, self.n_sent = clock.now(), 0

    def send(self) -> None:
        """What has been sampled since the last call."""
        sfreq, now = self.description.sfreq, self.clock.now()
        if not self.sends or self.outlet is None:
            if not self.keeps:
                self.sent_until = now
            return
        until = now - self.lag_s
        k = np.arange(np.ceil(self.sent_until * sfreq - 1e-6), np.ceil(until * sfreq - 1e-6))
        if len(k) and until - self.sent_until >= self.block_s - 1e-6:
            self.sent_until = until
            noise = self.rng.normal(0, LEVEL[self.kind][1], (len(k), self.description.n_channels))
            at = getattr(self.machine.clock, "at", lambda time: time)
            data, stamps = self.spoil(noise, np.array([at(time) for time in k / sfreq]))
            self.outlet.push(data.astype(np.float32), stamps)
            self.n_sent += len(k)

    def vanish(self) -> None:
        self.outlet.close()
        self.outlet = None

    def come_back(self, machine: MemoryTransport | None = None, **changes: Any) -> None:
        self.machine = machine or self.machine
        self.description = replace(self.description, **changes)
        self.outlet = self.machine.outlet(self.description)


class Unhurried:
    """In the place of a worker."""

    def pause(self, seconds: float) -> bool:
        return False


NOBODY_WAITS: Any = Unhurried()


class Bench:
    """A session that images two amplifiers, step by step."""

    def __init__(self, lab: Lab, content: dict[str, Any], head: HeadModel) -> None:
        self.lab, self.estimates = lab, []
        self.amplifiers: dict[str, Amplifier] = {}
        for modality, kind in (("eeg", "eeg"), ("meg", "mag")):
            names = [name for name, own in zip(head.channels.names, head.channels.types, strict=True) if own == kind]
            name = f"a-{modality.upper()}"
            channels = tuple(ChannelDescription(own, kind, LEVEL[kind][0]) for own in names)
            described = StreamDescription(name, modality.upper(), f"id-{name}", SFREQ, "float32", channels, {})
            machine = lab.transport.machine(f"{modality}-pc", offset_s=100.0)
            self.amplifiers[modality] = Amplifier(machine, described, lab.clock)
        self.eeg, self.meg = self.amplifiers["eeg"], self.amplifiers["meg"]
        self.session: Session = lab.session(content, on_estimate=self.estimates.append)
        self.n_steps = 0

    def run(self, seconds: float) -> list[SourceEstimate]:
        """Go on for so long; the estimates that were made meanwhile."""
        before = len(self.estimates)
        for _ in range(round(seconds / STEP_S)):
            self.lab.clock.advance(STEP_S)
            for amplifier in self.amplifiers.values():
                amplifier.send()
            self.n_steps += 1
            self.lab.round(self.session, self.n_steps)
            self.session.operators.step(0.0)
            self.session._report_health(NOBODY_WAITS)
        return self.estimates[before:]

    def now(self) -> float:
        return float(self.lab.clock.now())

    def facts(self, kind: str, subject: str, since: float = 0.0) -> list[dict[str, Any]]:
        """As the newest report of the health stream tells them."""
        newest = self.session.newest_status.get()["incidents"]["newest"]
        return [one for one in newest if (one["kind"], one["subject"]) == (kind, subject) and one["began"] >= since]

    def until_told(self, kind: str, subject: str, limit_s: float, ended: bool = False, since: float = 0.0) -> dict[str, Any]:
        """Go on until the health tells such a fact, which must be within so long; and it is in the scorecard."""
        began = self.now()
        while not [one for one in self.facts(kind, subject, since) if not ended or one["ended"] is not None]:
            assert self.now() < began + limit_s, (kind, subject, self.session.incidents.status())
            self.run(STEP_S)
        assert self.session.scorecard().extra["incidents"][kind] >= 1
        return self.facts(kind, subject, since)[-1]


def flags_of(estimates: list[SourceEstimate]) -> np.ndarray:
    return np.concatenate([e.flags for e in estimates])


def has(flags: np.ndarray, flag: Flag) -> np.ndarray:
    return (flags & np.uint32(flag)) != 0


def check_whole(estimates: list[SourceEstimate]) -> None:
    """Both modalities, every sample imaged; no hop twice, none left out."""
    flags = flags_of(estimates)
    assert not has(flags, Flag.EEG_MISSING | Flag.MEG_MISSING | Flag.INVALID).any()
    assert np.isfinite(np.hstack([e.data for e in estimates])).all()
    assert np.diff([e.hop for e in estimates]).tolist() == [1] * (len(estimates) - 1)


def check_only_missing(estimates: list[SourceEstimate], missing: Flag) -> None:
    """The newest are imaged from the other modality alone; none is invalid."""
    flags = flags_of(estimates)
    assert has(flags[-25:], missing).all()
    assert not has(flags, Flag.INVALID).any()
    assert np.isfinite(np.hstack([e.data for e in estimates])).all()


@pytest.fixture
def content(small_content: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    plain = small_content("a")
    plain["alignment"] = {"grid": "clock"}
    plain["acquisition"]["eeg"]["source_id"] = "id-a-EEG"
    return plain


@pytest.fixture
def bench(lab: Lab, content: dict[str, Any], template_head_ico3: HeadModel) -> Any:
    made: list[Bench] = []

    def make(**sections: Any) -> Bench:
        made.append(Bench(lab, content | sections, template_head_ico3))
        made[0].run(3.0)
        assert made[0].session.incidents.counts == {}
        return made[0]

    yield make
    for one in made:
        one.session.stop()


# streams


STALLS = [(seconds, keeps) for seconds in (0.2, 2.0, 20.0) for keeps in (False, True)]


def test_a_stall_is_told_the_other_modality_goes_on_and_both_return(bench: Any) -> None:
    """What was not sent is lost, or comes all at once."""
    live = bench()
    for n, (seconds, keeps) in enumerate(STALLS, 1):
        live.run(0.5)
        injected = live.now()
        live.eeg.sends, live.eeg.keeps = False, keeps
        meanwhile = live.run(seconds)
        live.eeg.sends = True
        live.run(LIMIT_S)
        stall = live.until_told("stall", "eeg", 0.2, ended=True)
        assert injected - 0.1 <= stall["began"] <= stall["noticed"] <= injected + STALL_LIMIT_S
        assert stall["ended"] - stall["began"] == pytest.approx(seconds, abs=0.1)
        assert live.session.incidents.counts["stall"] == n
        if seconds > 1:
            flags = flags_of(meanwhile)
            assert has(flags, Flag.EEG_MISSING).mean() > 0.7
            assert not has(flags, Flag.INVALID).any()  # MEG alone
            late = live.session.settings.alignment.late_ms * 1e-3
            assert len(flags) / SFREQ > seconds - late - 0.1  # nobody waited for what did not come
        afterwards = live.run(1.0)
        check_whole(afterwards)
        assert afterwards[-1].times[-1] > live.now() - 0.2  # the present, not a backlog
        received = live.session.intake.receivers["eeg"].arrivals.n_received
        assert received == live.eeg.n_sent
        buffered = live.session.settings.acquisition[EEG].buffer_s
        overwritten = keeps and seconds > buffered
        assert (live.session.intake.overwritten > 0) == overwritten
        assert ("overwritten" in live.session.scorecard().extra["incidents"]) == overwritten
    times = np.concatenate([e.times for e in live.estimates])
    assert np.diff(times) == pytest.approx(1 / SFREQ, rel=1e-6)  # each instant once


def test_both_streams_stall_and_return(bench: Any) -> None:
    live = bench()
    for amplifier in live.amplifiers.values():
        amplifier.sends = False
    live.run(2.0)
    assert "Nothing is imaged" in live.facts("stall", "meg")[0]["detail"]
    for amplifier in live.amplifiers.values():
        amplifier.sends = True
    live.run(2.0)
    check_whole(live.run(1.0))
    assert live.session.incidents.status()["n_lasting"] == 0


def test_another_rate_is_brought_onto_the_same_grid(bench: Any) -> None:
    live = bench()
    before = SFREQ
    for n, sfreq in enumerate((125.0, 500.0, 1000.0), 1):
        live.meg.vanish()
        live.run(3.0)
        live.meg.come_back(sfreq=sfreq)
        live.run(LIMIT_S)
        news = live.facts("stream_changed", "meg")
        assert len(news) == n
        assert f"{sfreq:g} Hz after {before:g} Hz" in news[-1]["detail"]
        before = sfreq
        live.run(1.0)
        check_whole(live.run(1.0))
        assert live.session.engine.sfreq == SFREQ
    counts = live.session.intake.aligner.report()["meg"].counts
    assert counts["received"] > live.session.intake.receivers["meg"].ring.n_written - 1000  # counted on


def test_a_rate_too_low_for_the_filters_is_told_until_it_is_high_enough_again(bench: Any) -> None:
    live = bench()
    aligner, high_hz = live.session.intake.aligner, live.session.settings.preprocessing.filters.band_pass.high_hz
    assert aligner.pass_hz > high_hz
    for sfreq in (SFREQ / 2, 0.4 * SFREQ):  # no sample of a slower one is within the look-ahead
        live.eeg.vanish()
        live.run(1.0)
        returned = live.now()
        live.eeg.come_back(sfreq=sfreq)
        told = live.until_told("resampling", "engine", LIMIT_S, since=returned)
        assert aligner.pass_hz < high_hz
        assert f"exact up to {aligner.pass_hz:.0f} Hz" in told["detail"]
        live.run(3.0)
        assert live.session.incidents.lasts("resampling", "engine")
        check_whole(live.run(1.0))
        live.eeg.vanish()
        check_only_missing(live.run(1.0), Flag.EEG_MISSING)
        live.eeg.come_back(sfreq=SFREQ)
        live.until_told("resampling", "engine", LIMIT_S, ended=True, since=returned)
        live.run(3.0)
        check_whole(live.run(1.0))
        assert live.session.incidents.status()["n_lasting"] == 0


def test_samples_that_come_too_late_are_told_and_imaged_without(bench: Any) -> None:
    live = bench()
    live.eeg.lag_s = 1e-3 * live.session.settings.alignment.late_ms + 0.1
    told = live.until_told("late", "eeg", LIMIT_S)
    assert "beyond late_ms = 250" in told["detail"]
    meanwhile = live.run(1.0)
    assert has(flags_of(meanwhile), Flag.EEG_MISSING).all()
    check_only_missing(meanwhile, Flag.EEG_MISSING)
    live.eeg.lag_s = 0.0
    live.until_told("late", "eeg", LIMIT_S, ended=True)
    live.run(3.0)
    check_whole(live.run(1.0))
    assert live.session.intake.receivers["eeg"].arrivals.n_received == live.eeg.n_sent


def test_samples_from_the_future_are_told_and_flagged(bench: Any) -> None:
    live = bench()
    live.meg.spoil = lambda data, stamps: (data, stamps + 0.3)
    told = live.until_told("future_stamps", "meg", LIMIT_S)
    assert "before their own time stamps" in told["detail"]
    live.run(1.0)
    flags = flags_of(live.run(0.5))
    assert has(flags, Flag.CLOCK_UNCERTAIN | Flag.MEG_MISSING).all()
    assert not has(flags, Flag.INVALID).any()
    make_well(live.meg)
    live.until_told("future_stamps", "meg", 2 * LIMIT_S, ended=True)
    live.run(4.0)
    check_whole(live.run(1.0))


def test_a_stream_that_returns_as_one_that_cannot_be_used_is_told_and_imaged_without(bench: Any) -> None:
    live = bench()
    channels = live.meg.description.channels
    for spoilt, why in (
        (tuple(replace(own, name=f"X{i}") for i, own in enumerate(channels)), "none of the channels that are imaged"),
        (tuple(replace(own, name="twice") for own in channels), "names that occur more than once"),
        (tuple(replace(own, unit="furlong") for own in channels), "furlong"),
    ):
        live.meg.vanish()
        live.run(1.0)
        returned = live.now()
        live.meg.come_back(channels=spoilt)
        told = live.until_told("stream_unusable", "meg", LIMIT_S, since=returned)
        assert "came back, but cannot be used" in told["detail"]
        assert why in told["detail"]
        assert "Imaging goes on without it" in told["detail"]
        check_only_missing(live.run(1.0), Flag.MEG_MISSING)
        live.meg.vanish()
        live.run(1.0)
        live.meg.come_back(channels=channels)
        live.until_told("stream_unusable", "meg", LIMIT_S, ended=True, since=returned)
        live.run(3.0)
        check_whole(live.run(1.0))


def test_another_rate_on_the_grid_of_samples_leaves_the_modality_missing_and_says_why(bench: Any) -> None:
    live = bench(alignment={"grid": "samples"})
    live.meg.vanish()
    live.run(3.0)
    live.meg.come_back(sfreq=500.0)
    reason = live.until_told("unaligned", "meg", LIMIT_S)
    assert "500 Hz" in reason["detail"]
    assert "alignment.grid = 'samples' needs 250 Hz" in reason["detail"]
    live.run(1.0)
    flags = flags_of(live.run(1.0))
    assert has(flags, Flag.MEG_MISSING).all()
    assert not has(flags, Flag.INVALID).any()
    live.meg.vanish()
    live.run(2.0)
    live.meg.come_back(sfreq=250.0)
    live.until_told("unaligned", "meg", 2 * LIMIT_S, ended=True)
    live.run(1.0)
    afterwards = live.run(1.0)
    check_whole(afterwards)
    aligner = live.session.intake.aligner
    lanes, number = aligner._lanes, afterwards[-1].first  # of the grid
    times = [aligner.time_map(lane.spec.modality).time_at(lane.shift + number) for lane in lanes]
    assert abs(times[0] - times[1]) < 0.75 / SFREQ  # samples of one time are paired again


def test_another_machine_has_another_clock(bench: Any, lab: Lab, content: dict[str, Any]) -> None:
    content["acquisition"]["meg"] |= {"lag_ms": 20.0, "lag_device": "a-MEG / id-a-MEG"}
    live = bench()
    assert live.session.intake.aligner._lane(Modality.MEG).spec.lag_s == 0.02
    live.meg.vanish()
    live.run(3.0)
    live.meg.come_back(lab.transport.machine("spare-pc", offset_s=-7.0), source_id="spare")
    news = live.until_told("stream_changed", "meg", LIMIT_S)
    assert "source id 'spare' after 'id-a-MEG'" in news["detail"]
    assert "host 'spare-pc' after 'meg-pc'" in news["detail"]
    live.run(3.0)
    check_whole(live.run(1.0))
    assert live.session.intake.aligner.report()["meg"].offset == pytest.approx(7.0, abs=1e-3)
    assert live.session.intake.lags["meg"].lag_ms is None  # that of the device before is not its own
    assert live.session.intake.aligner._lane(Modality.MEG).spec.lag_s == 0.0
    # EEG is configured with its source id: nobody else takes its place
    live.eeg.vanish()
    live.run(1.0)
    live.eeg.come_back(source_id="stranger")
    live.run(3.0)
    assert live.facts("stream_gone", "eeg")[-1]["ended"] is None
    assert not live.facts("stream_changed", "eeg")
    live.eeg.vanish()
    live.eeg.come_back(source_id="id-a-EEG")
    live.until_told("stream_gone", "eeg", LIMIT_S, ended=True)


def test_channels_that_a_stream_returns_without_are_bad_until_they_return(bench: Any) -> None:
    live = bench()
    channels = live.meg.description.channels
    live.meg.vanish()
    live.run(2.0)
    live.meg.come_back(channels=(*channels[:0:-1], ChannelDescription("extra", "mag", "T")))
    detail = live.until_told("stream_changed", "meg", LIMIT_S)["detail"]
    for part in ("another order", f"without 1 imaged channels ({channels[0].name})", "1 channels more (extra)"):
        assert part in detail
    live.run(2.0)
    afterwards = live.run(1.0)
    check_whole(afterwards)
    assert not has(flags_of(afterwards), Flag.OPERATOR_PENDING).any()
    assert live.session.operators.switch.current.bads == {channels[0].name}
    live.meg.vanish()
    live.run(2.0)
    live.meg.come_back(channels=channels)
    live.run(4.0)
    check_whole(live.run(1.0))
    assert live.session.operators.switch.current.bads == frozenset()


# stamps and clocks


SPOILT: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("bad_stamps", lambda stamps: np.where(np.arange(len(stamps)) == 2, np.nan, stamps)),
    ("bad_stamps", lambda stamps: np.where(np.arange(len(stamps)) == 2, np.inf, stamps)),
    ("duplicate_stamps", lambda stamps: np.concatenate([stamps[:1] - 2 / SFREQ, stamps[:1] - 1 / SFREQ, stamps[2:]])),
    ("backward_stamps", lambda stamps: np.concatenate([stamps[:2] - 3.5 / SFREQ, stamps[2:]])),
    ("gap", lambda stamps: stamps + 0.3),  # the sender jumps, and stays there for a while
]


def test_stamps_that_make_no_sense_are_told_and_left_behind(bench: Any) -> None:
    """NaN, infinite, duplicate, backward, ahead."""
    live = bench()
    for kind, spoil in SPOILT:
        before = live.session.incidents.counts.get(kind, 0)
        live.meg.spoil = lambda data, stamps, spoil=spoil: (data, spoil(stamps))
        live.run(0.6 if kind == "gap" else 0.2)
        live.meg.spoil = lambda data, stamps: (data, stamps)
        live.run(LIMIT_S - 0.6)
        assert live.session.incidents.counts[kind] == before + 1
        live.run(4.0)
        check_whole(live.run(1.0))
        assert live.facts(kind, "meg")[-1]["ended"] is not None
    assert live.session.intake.receivers["meg"].arrivals.n_received == live.meg.n_sent


def test_a_clock_that_is_set_by_a_second_is_told_and_followed(bench: Any) -> None:
    live = bench()
    for n, step_s in enumerate((1.0, -1.0), 1):
        live.eeg.machine.clock.offset_s += step_s
        live.run(LIMIT_S)
        counts = live.session.incidents.counts
        assert counts["clock_step"] + counts.get("gap", 0) >= n  # ahead, it may be a hole as well
        live.run(5.0)
        check_whole(live.run(1.0))
        report = live.session.intake.aligner.report()["eeg"]
        assert report.offset == pytest.approx(-100.0 - (step_s if n == 1 else 0.0), abs=1e-3)
        assert abs(report.arrival_lag_ms) < 30
    assert live.session.incidents.counts["clock_step"] >= 2


def test_a_clock_that_drifts_by_500_ppm_is_told_and_followed(bench: Any) -> None:
    live = bench()
    live.eeg.machine.clock.drift_ppm = 500.0  # type: ignore[union-attr]
    began = live.now()
    fact = live.until_told("drift", "eeg", 60.0)
    assert " ppm fast;" in fact["detail"]
    assert fact["began"] - began < 30.0
    live.run(20.0)
    afterwards = live.run(1.0)
    check_whole(afterwards)
    report = live.session.intake.aligner.report()["eeg"]
    assert report.drift_ppm == pytest.approx(-500.0, abs=50.0)
    aligner = live.session.intake.aligner
    newest = aligner._lane(EEG).newest_time
    assert live.now() - 1.5 / SFREQ - 1e-3 < newest < live.now() + 1e-3  # of this machine's time


# channels


HUM = np.random.default_rng(1)
BAD_VALUES: dict[str, Callable[[np.ndarray, tuple[int, int], float], Any]] = {  # of stamps, shape and usual level
    "NaN": lambda stamps, shape, level: np.nan,
    "flat": lambda stamps, shape, level: 5 * level,
    "lost": lambda stamps, shape, level: 0.0,
    "saturated": lambda stamps, shape, level: 1500 * level * np.sign(np.sin(40 * stamps))[:, None],
    "disconnected": lambda stamps, shape, level: HUM.normal(0, 20 * level, shape),
}


def spoil_values(amplifier: Amplifier, fault: str, n_bad: int, since: float = -np.inf) -> None:
    """Its first channels fail, from the first sample on that is stamped so late."""

    def spoil(data: np.ndarray, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bad, data = stamps >= since, data.copy()
        values = BAD_VALUES[fault](stamps[bad], (int(bad.sum()), n_bad), LEVEL[amplifier.kind][1])
        data[bad, :n_bad] = values
        return data, stamps

    amplifier.spoil = spoil


def make_well(amplifier: Amplifier) -> None:
    amplifier.spoil = lambda data, stamps: (data, stamps)


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_channels_that_fail_are_told_imaged_without_and_taken_back(share: float, bench: Any) -> None:
    live = bench(preprocessing={"bad_channels": {"enabled": True}})
    n_bad = max(1, round(share * live.meg.description.n_channels))
    for fault in BAD_VALUES:
        live.run(1.0)
        spoil_values(live.meg, fault, n_bad)
        injected = live.now()
        while not live.facts("bad_channels", "meg", injected):
            assert live.now() - injected <= LIMIT_S
            live.run(STEP_S)
        live.run(1.0)
        fact = live.facts("bad_channels", "meg")[-1]
        assert fact["count"] == n_bad
        assert f"{n_bad} of 102 channels are bad" in fact["detail"]
        if fault == "NaN":
            assert live.facts("nonfinite", "meg")
        during = live.run(1.0)
        assert not has(flags_of(during), Flag.INVALID).any()
        assert np.isfinite(np.hstack([e.data for e in during])).all()
        assert len(live.session.operators.switch.current.bads) == n_bad
        make_well(live.meg)
        recovered = live.now()
        while live.session.incidents.lasts("bad_channels", "meg"):  # what was far off has to ring out
            assert live.now() < recovered + 15.0
            live.run(0.1)
        live.run(1.0)
        check_whole(live.run(1.0))
        assert live.session.operators.switch.current.bads == frozenset()


def test_a_channel_that_fails_is_told_in_time_wherever_in_a_bin_it_begins(bench: Any) -> None:
    """From the first bad sample on; the worst is one that comes just after the begin of a bin, in a long block."""
    soon_back = {"bad_channels": {"enabled": True, "n_unmark": 2}, "filters": {"band_pass": {"low_hz": None}}}
    live = bench(preprocessing=soon_back)
    length = round(live.session.settings.preprocessing.bad_channels.bin_s * SFREQ)

    @settings(max_examples=10)
    @given(
        fault=st.sampled_from(sorted(BAD_VALUES)),
        modality=st.sampled_from(["eeg", "meg"]),
        at=st.integers(0, length - 1),
        share=st.sampled_from([0.01, 0.2]),
        block_s=st.sampled_from([STEP_S, 0.1]),
    )
    @example(fault="flat", modality="eeg", at=1, share=0.2, block_s=0.1)
    @example(fault="lost", modality="meg", at=1, share=0.2, block_s=0.1)
    @example(fault="saturated", modality="meg", at=1, share=0.01, block_s=0.1)
    @example(fault="disconnected", modality="eeg", at=1, share=0.01, block_s=0.1)
    def told_in_time(fault: str, modality: str, at: int, share: float, block_s: float) -> None:
        for one in live.amplifiers.values():
            make_well(one)
            one.block_s = 0.0
            until_well = live.now() + 10.0
            while live.session.incidents.lasts("bad_channels", one.description.type.lower()):
                assert live.now() < until_well
                live.run(STEP_S)
        amplifier, newest = live.amplifiers[modality], live.estimates[-1]
        n_bad = max(1, round(share * amplifier.description.n_channels))
        ahead = at - (newest.first + newest.n_times) % length
        begin = newest.times[-1] + (1 + ahead + length * (2 if ahead < 0 else 1)) / SFREQ  # nothing of it is sent so far
        amplifier.block_s = block_s
        spoil_values(amplifier, fault, n_bad, since=amplifier.machine.clock.at(begin) - 0.5 / SFREQ)

        def told() -> list[dict[str, Any]]:
            return [one for one in live.facts("bad_channels", modality, begin) if one["count"] == n_bad]

        while not told():
            assert live.now() <= begin + LIMIT_S, (fault, modality, at, share, block_s)
            live.run(STEP_S)
        (fact,) = told()
        assert begin <= fact["began"] <= fact["noticed"] <= begin + LIMIT_S

    told_in_time()


# the solver, the engine, the process


class Moody:
    """A solver that raises, or is slow, while it is told to."""

    def __init__(self, solver: Any, clock: ManualClock) -> None:
        self.clock = clock
        self.solver, self.raises, self.takes_s = solver, False, 0.0

    def reset(self) -> None:
        self.solver.reset()

    def __call__(self, window: np.ndarray, n_new: int) -> np.ndarray:
        if self.raises:
            raise FloatingPointError("a bad day")
        self.clock.advance(self.takes_s)
        return self.solver(window, n_new)


@pytest.fixture
def moody(bench: Any) -> Callable[..., tuple[Bench, Moody]]:
    def make(**sections: Any) -> tuple[Bench, Moody]:
        live = bench(**sections)
        switch = live.session.operators.switch
        key = live.session.imaging.full_key()
        operator = switch._built[key].operator
        solver = Moody(operator.solver, live.lab.clock)
        switch.offer(key, replace(operator, solver=solver))
        live.run(0.1)
        return live, solver

    return make


def test_a_solver_that_raises_costs_its_hops_and_nothing_else(moody: Any, caplog: pytest.LogCaptureFixture) -> None:
    live, solver = moody()
    solver.raises = True
    failed = live.run(0.5)
    solver.raises = False
    assert has(flags_of(failed), Flag.INVALID).all()
    assert np.isnan(np.hstack([e.data for e in failed])).all()
    fact = live.until_told("solver", "engine", 0.2)
    assert "FloatingPointError: a bad day" in fact["detail"]
    assert live.session.engine.counts.failed == len(failed) == live.session.status()["failed_hops"]
    check_whole(live.run(1.0))
    live.until_told("solver", "engine", 3.0, ended=True)
    assert len([record for record in caplog.records if record.exc_info]) == 1  # where it was raised, once


def test_a_solver_that_always_raises_ends_the_session_with_its_error(moody: Any) -> None:
    live, solver = moody()
    solver.raises = True
    with pytest.raises(SolverError, match=r"no hop could be imaged for 10 s, .* FloatingPointError: a bad day"):
        live.run(GIVE_UP_S + 1)


def test_but_not_while_something_is_recorded(moody: Any, tmp_path: Any) -> None:
    live, solver = moody(output={"record": {"file": str(tmp_path / "whole.xdf")}})
    assert live.session.recorder is not None
    solver.raises = True
    failed = live.run(GIVE_UP_S + 2)
    assert has(flags_of(failed), Flag.INVALID).all()
    solver.raises = False
    check_whole(live.run(1.0))
    live.session.recorder.close()
    samples = live.session.recorder.status()["samples"]
    assert [samples["eeg"], samples["meg"]] == [live.eeg.n_sent, live.meg.n_sent]


def test_a_fallback_takes_over_from_a_solver_that_raises_and_gives_way_when_it_is_well(
    lab: Lab,
    small_content: Callable[..., dict[str, Any]],
    models: Path,
    small_recording: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It raises between 0.5 and 0.9 s."""
    lab.publish_recording(mne.io.read_raw_fif(small_recording, preload=True, verbose="ERROR"))
    content = {key: value for key, value in small_content("a").items() if key != "head"} | {
        "preprocessing": {"bad_channels": {"enabled": False}, "filters": {"band_pass": {"low_hz": 1.0, "high_hz": 40.0}}},
        "solver": {"model": str(models / "mmdf")},
        "budget": {"when_late": "fallback", "return_after_s": 0.5, "measure": False},
    }
    estimates: list[SourceEstimate] = []
    session = lab.session(content, on_estimate=estimates.append)
    began, solve = lab.clock.now(), NetworkSolver.__call__

    def moody(self: NetworkSolver, window: np.ndarray, n_new: int) -> np.ndarray:
        if 0.5 < lab.clock.now() - began < 0.9:
            raise FloatingPointError("a bad day")
        return solve(self, window, n_new)

    monkeypatch.setattr(NetworkSolver, "__call__", moody)
    lab.looks.append(lambda seconds: session.watch.look())
    lab.run(session)
    invalid = [bool(has(e.flags, Flag.INVALID).any()) for e in estimates]
    fallen = [bool(has(e.flags, Flag.FALLBACK).any()) for e in estimates]
    assert sum(invalid) == FAILED_HOPS == session.engine.counts.failed
    first = invalid.index(True)
    assert all(fallen[first + FAILED_HOPS : first + FAILED_HOPS + 20])
    assert not any(fallen[:first] + fallen[-20:])
    assert np.isfinite(np.hstack([e.data for e, bad in zip(estimates, invalid, strict=True) if not bad])).all()
    assert {"solver": 1, "fallback": 1}.items() <= session.incidents.counts.items()


def test_a_stage_that_raises_costs_its_hop(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live = bench()
    clean = live.session.engine.chain.cleaning.clean

    def broken(block: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(live.session.engine.chain.cleaning, "clean", broken)
    failed = live.run(0.2)
    monkeypatch.setattr(live.session.engine.chain.cleaning, "clean", clean)
    assert failed
    assert has(flags_of(failed), Flag.INVALID).all()
    assert "MemoryError: no room" in live.until_told("solver", "engine", 0.2)["detail"]
    live.run(1.0)
    check_whole(live.run(1.0))
    times = np.concatenate([e.times for e in live.estimates])
    assert np.diff(times) == pytest.approx(1 / SFREQ, rel=1e-6)


def until_true(live: Bench, done: Callable[[], bool]) -> None:
    """Whoever writes lives in true time."""
    pause = Signal()
    for _ in range(400):
        if done():
            return
        live.run(STEP_S)
        pause.wait(0.05)
    raise AssertionError(live.session.newest_status.get())


def check_all_recorded(live: Bench) -> None:
    """The recording, which is closed, has all that was sent."""
    live.session.recorder.close()
    samples = live.session.recorder.status()["samples"]
    assert [samples["eeg"], samples["meg"]] == [live.eeg.n_sent, live.meg.n_sent]
    assert "not_recorded" not in live.session.incidents.counts


def test_a_disk_that_is_full_for_a_while_is_told_and_costs_nothing(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    live, full = bench(output={"record": {"file": str(tmp_path / "whole.xdf")}}), [False]
    recorder, append = live.session.recorder, XdfFile.append
    assert recorder is not None

    def append_or_raise(self: XdfFile, chunks: bytes) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, chunks)

    monkeypatch.setattr(XdfFile, "append", append_or_raise)
    full[0] = True
    until_true(live, lambda: not recorder.status()["writing"])
    assert "No space left" in live.until_told("disk", "recording", 0.2)["detail"]
    check_whole(live.run(1.0))
    full[0] = False
    until_true(live, lambda: recorder.status()["writing"])
    assert live.until_told("disk", "recording", 0.2, ended=True)["detail"] == "the recording is written again"
    check_all_recorded(live)


def test_a_disk_that_stands_still_is_told_in_time_and_costs_nothing(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    live = bench(output={"record": {"file": str(tmp_path / "whole.xdf")}})
    recorder, append, free = live.session.recorder, XdfFile.append, threading.Event()

    def append_when_free(self: XdfFile, chunks: bytes) -> None:
        assert free.wait(60.0)
        append(self, chunks)

    monkeypatch.setattr(XdfFile, "append", append_when_free)
    assert SLOW_DISK_S + LOOK_S < LIMIT_S  # since the last flush, after which it stood still
    until_true(live, lambda: recorder.unflushed_s > SLOW_DISK_S)
    assert "samples wait in memory" in live.until_told("disk", "recording", 0.2)["detail"]
    check_whole(live.run(1.0))
    free.set()
    until_true(live, lambda: not live.session.incidents.lasts("disk", "recording"))
    check_all_recorded(live)


def test_a_disk_that_is_slow_at_every_flush_is_one_slow_disk_until_it_fails(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    live, behind = bench(output={"record": {"file": str(tmp_path / "slow.xdf")}}), [0.0]
    recorder, status = live.session.recorder, live.session.recorder.status
    monkeypatch.setattr(type(recorder), "unflushed_s", property(lambda self: behind[0]))
    for seconds in (2.0, 0.1, 2.5, 0.3, 1.9, 0.2):
        behind[0] = seconds
        live.run(1.0)
    assert live.session.incidents.counts["disk"] == 1
    assert "wait in memory" in live.facts("disk", "recording")[-1]["detail"]
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "status", lambda: {**status(), "writing": False, "error": "No space left on device"})
        live.run(0.2)
        assert live.facts("disk", "recording")[-1]["detail"] == "No space left on device"
    live.until_told("disk", "recording", SLOW_DISK_QUIET_S + LIMIT_S, ended=True)
    assert live.session.incidents.counts["disk"] == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), MemoryError()], ids=["disk", "memory"])
def test_estimates_that_cannot_be_written_are_told_and_counted_until_they_can(
    error: Exception, bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    live = bench(output={"files": {"prefix": str(tmp_path / "s"), "segment_s": 0.1}})
    files = live.session.files

    def refuse(*given: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "_write", refuse)
        until_true(live, lambda: files.status.lost > 0)
        assert live.until_told("disk", "files", LIMIT_S)["ended"] is None
    until_true(live, lambda: files.status.error is None)
    assert live.until_told("disk", "files", LIMIT_S, ended=True)["detail"] == "estimates are written again"
    lost = live.until_told("not_recorded", "files", 2 * LIMIT_S, ended=True)
    assert lost["count"] == files.status.lost == live.session.scorecard().extra["files"]["lost"] > 0
    assert lost["detail"] == f"{lost['count']} estimates could not be written"
    check_whole(live.estimates)


def test_a_recording_whose_thread_raises_is_told_and_goes_on(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    live, raises = bench(output={"record": {"file": str(tmp_path / "whole.xdf")}}), [True]
    recorder, write = live.session.recorder, Recorder.write

    def raise_once(self: Recorder, **more: Any) -> None:
        if raises and raises.pop():
            raise MemoryError("no room")
        write(self, **more)

    monkeypatch.setattr(Recorder, "write", raise_once)
    until_true(live, lambda: recorder.n_raised == 1)
    told = live.until_told("worker", "recording", 0.2)
    assert "MemoryError: no room; recording goes on" in told["detail"]
    live.run(3.0)
    recorder.close()
    samples = recorder.status()["samples"]
    assert [samples["eeg"], samples["meg"]] == [live.eeg.n_sent, live.meg.n_sent]
    assert live.session.incidents.counts == {"worker": 1}


def test_a_recording_whose_thread_dies_is_told_once_and_imaging_goes_on(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    live = bench(output={"record": {"file": str(tmp_path / "whole.xdf")}})

    def die(self: Recorder, **more: Any) -> None:
        raise SystemExit("enough")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write", die)
        until_true(live, lambda: bool(live.facts("worker", "recording")))
    assert "Nothing more is written; imaging goes on." in live.until_told("worker", "recording", 0.2)["detail"]
    check_whole(live.run(4.0))
    assert live.session.incidents.lasts("worker", "recording")
    assert live.session.incidents.counts == {"worker": 1}
    with pytest.raises(WorkerFailed, match="enough"):
        live.session.stop()


def test_a_suspension_is_told_and_is_no_stall_of_the_streams(bench: Any) -> None:
    live = bench()
    held = [0.0]
    live.session.watch._suspension = Suspension(0.05, (lambda: live.now() + held[0], lambda: 0.0))
    live.run(0.5)
    held[0] = 3.0
    live.run(STEP_S)
    fact = live.until_told("suspended", "process", 0.2)
    assert fact["ended"] - fact["began"] == pytest.approx(3.0, abs=0.1)
    live.run(1.0)
    assert "stall" not in live.session.incidents.counts


def test_hops_that_take_too_long_are_told_as_late_and_as_skipped(moody: Any) -> None:
    live, solver = moody(budget_ms=60.0)
    solver.takes_s = 0.1
    live.run(2.0)
    assert live.until_told("skipped_hops", "engine", 0.2)["count"] > 10
    assert live.until_told("missed_deadlines", "engine", 0.2)["count"] > 10
    solver.takes_s = 0.0
    live.until_told("skipped_hops", "engine", 2 * LIMIT_S, ended=True)
    live.until_told("missed_deadlines", "engine", 2 * LIMIT_S, ended=True)
    check_whole(live.run(1.0))


def test_estimates_that_no_outlet_takes_are_told_and_counted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live = bench()

    def refuse(estimate: SourceEstimate) -> Any:
        raise StreamError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(live.session.outlets, "publish", refuse)
        lost = live.run(0.5)
    assert "estimates were not published: the network is gone" in live.until_told("publish", "engine", 0.2)["detail"]
    check_whole(lost)  # files, recording and who else takes them have them
    over = live.until_told("publish", "engine", 2 * LIMIT_S, ended=True)
    assert over["count"] == len(lost)
    assert over["detail"] == f"{len(lost)} estimates were not published: the network is gone"
    assert live.session.incidents.counts["publish"] == 1


def test_an_operator_that_cannot_be_had_is_told_while_it_is_wanted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live = bench(preprocessing={"bad_channels": {"enabled": True}})
    build = Imaging.build

    def refuse(self: Imaging, key: Any, **more: Any) -> Any:
        if key.bads:
            raise SolverError("too few of them")
        return build(self, key, **more)

    monkeypatch.setattr(Imaging, "build", refuse)
    spoil_values(live.meg, "NaN", 3)
    told = live.until_told("operators", "engine", LIMIT_S)
    assert told["detail"].endswith("too few of them")
    flags = flags_of(live.run(0.5))
    assert has(flags, Flag.OPERATOR_PENDING).all()
    assert not has(flags, Flag.INVALID).any()
    make_well(live.meg)
    live.until_told("operators", "engine", 15.0, ended=True)
    live.run(1.0)
    check_whole(live.run(1.0))


def test_an_operator_whose_building_fails_once_is_built_the_next_time(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live = bench(preprocessing={"bad_channels": {"enabled": True}})
    step, build, failed = live.session.operators.step, Imaging.build, []

    def fail_once(self: Imaging, key: Any, **more: Any) -> Any:
        if key.bads and not failed:
            raise MemoryError("no room")
        return build(self, key, **more)

    def worker_step(wait_s: float) -> None:
        try:
            step(wait_s)
        except MemoryError as error:  # its worker waits, and goes on
            failed.append(error)

    monkeypatch.setattr(Imaging, "build", fail_once)
    monkeypatch.setattr(live.session.operators, "step", worker_step)
    spoil_values(live.meg, "NaN", 3)
    live.until_told("bad_channels", "meg", LIMIT_S)
    live.run(1.0)
    assert len(failed) == 1
    assert not has(flags_of(live.run(0.5)), Flag.OPERATOR_PENDING).any()
    assert len(live.session.operators.switch.current.bads) == 3


def test_a_stream_that_cannot_be_aligned_is_told_and_tried_again(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    live = bench()

    def broken(stamps: np.ndarray) -> Any:
        raise ZeroDivisionError("of stamps")

    with monkeypatch.context() as patch:
        patch.setattr(live.session.intake.aligner._lane(Modality.MEG).timeline, "place", broken)
        told = live.until_told("unaligned", "meg", LIMIT_S)
        assert "ZeroDivisionError: of stamps" in told["detail"]
        live.run(1.0)
        check_only_missing(live.run(0.5), Flag.MEG_MISSING)
    live.run(ASIDE_S)
    live.until_told("unaligned", "meg", LIMIT_S, ended=True)
    live.run(1.0)
    check_whole(live.run(1.0))


@pytest.mark.parametrize(("kind", "asked"), [("file_handles", "file_handles_left"), ("memory", "memory_left")])
def test_that_the_system_has_little_left_is_told_while_it_is_so(
    kind: str, asked: str, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = bench()
    with monkeypatch.context() as patch:
        patch.setattr(f"rt_mmdf.app.watch.{asked}", lambda: 5)
        told = live.until_told(kind, "process", LIMIT_S)
        assert told["ended"] is None
        check_whole(live.run(1.0))
    live.until_told(kind, "process", LIMIT_S, ended=True)


# workers (threads)


def test_workers_that_die_are_told_and_go_on(
    lab: Lab, content: dict[str, Any], template_head_ico3: HeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Bench(lab, content, template_head_ico3)
    session, died = live.session, {"receive eeg": 0, "clock watch": 0, "operators": 0, "engine": 0, "health": 0}

    def once(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*given: Any, **more: Any) -> Any:
            died[name] += 1
            if died[name] == 2:
                raise ZeroDivisionError(name)
            return step(*given, **more)

        return stepped

    for name, owner, method in (
        ("receive eeg", session.intake.receivers["eeg"], "step"),
        ("clock watch", session.intake.watch, "step"),
        ("operators", session.operators, "step"),
        ("engine", session.engine, "pump"),
        ("health", session.watch, "look"),
    ):
        if name != "health":
            monkeypatch.setattr(owner, method, once(name, getattr(owner, method)))
    monkeypatch.setattr("rt_mmdf.app.session.Watch.look", once("health", lambda self: None))
    pause = Signal()
    session.start()
    try:
        for _ in range(600):
            if min(died.values()) >= 4 and session.incidents.counts.get("worker", 0) >= len(died):
                break
            pause.wait(0.05)
            session.check()
        told = {one["subject"] for one in session.incidents.status()["newest"] if one["kind"] == "worker"}
        assert told == set(died)
        assert min(died.values()) >= 4
    finally:
        session.stop()  # raises nothing: they went on


def test_the_engine_ends_after_one_error_too_many(
    lab: Lab, content: dict[str, Any], template_head_ico3: HeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, ended = Bench(lab, content, template_head_ico3), Signal()

    def broken() -> Any:
        raise ZeroDivisionError("always")

    monkeypatch.setattr(live.session.engine, "pump", broken)
    monkeypatch.setattr("rt_mmdf.app.session.Restarts", _quick)
    live.session.start()
    engine = next(worker for worker in live.session._workers if worker.name == "engine")
    for _ in range(600):
        if not engine.alive:
            break
        ended.wait(0.05)
    with pytest.raises(WorkerFailed, match="'engine' stopped: always"):
        live.session.check()
    with pytest.raises(WorkerFailed):
        live.session.stop()
    assert live.session.incidents.counts["worker"] == 5


@pytest.mark.parametrize("last", ["clock watch", "operators", "health"])
def test_a_session_whose_start_is_interrupted_leaves_neither_threads_nor_streams(
    last: str, lab: Lab, content: dict[str, Any], template_head_ico3: HeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, begun, begin = Bench(lab, content, template_head_ico3).session, [], Worker.start

    def interrupted(worker: Worker) -> Worker:
        begun.append(begin(worker))
        if worker.name == last:
            raise KeyboardInterrupt
        return worker

    assert len(lab.transport.resolve(timeout_s=0.0)) > 2
    monkeypatch.setattr(Worker, "start", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), session:
            raise AssertionError("it has started")
        assert begun[-1].name == last
        assert [worker.name for worker in begun if worker.alive] == []
        assert {stream.name for stream in lab.transport.resolve(timeout_s=0.0)} == {"a-EEG", "a-MEG"}
    finally:
        session.stop()


def _quick(tell: Any, *given: Any, **more: Any) -> Any:
    from rt_mmdf.runtime.worker import Restarts

    return Restarts(tell, *given, **more | {"first_wait_s": 0.0})


def test_a_second_stream_of_a_name_is_told_and_not_imaged(bench: Any, lab: Lab) -> None:
    live = bench()
    received = live.session.intake.receivers["eeg"].description.uid
    false_one = Amplifier(lab.transport.machine("elsewhere"), replace(live.eeg.description, source_id="false"), lab.clock)
    live.amplifiers["false"] = false_one
    live.run(0.2)
    live.session.intake.doubles.look()  # its worker does, every 5 s
    told = live.until_told("double", "eeg", 0.2)
    assert told["ended"] is None
    for part in ("1 more on this network called 'a-EEG'", "'id-a-EEG'", "'false'", "'elsewhere'"):
        assert part in told["detail"]
    assert live.session.status()["streams"]["eeg"]["doubles"] == 1
    check_whole(live.run(1.0))
    assert live.session.intake.receivers["eeg"].arrivals.n_received == live.eeg.n_sent
    assert live.session.intake.receivers["eeg"].description.uid == received
    live.amplifiers.pop("false").vanish()
    live.session.intake.doubles.look()
    live.until_told("double", "eeg", 0.2, ended=True)
    assert live.session.status()["streams"]["eeg"]["doubles"] == 0
