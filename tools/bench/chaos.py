"""Chaos: a replay goes wrong in ways drawn from a seed, a session images it, and a judge says what the session made of it.

    python tools/bench/chaos.py --seeds 200 --report tools/bench/chaos.json
    python tools/bench/chaos.py --from 17 --seeds 1

Everything runs on the in-memory transport in virtual time, without threads: the same seed gives the same figures anywhere.
Each seed is a plan of `rt_mmdf.acquisition.chaos` in 20 s of stream (40 s where the plan holds a stall of 20 s). EEG (60
channels) and magnetometers (102) come at 250 Hz, in blocks of 10 and 6, from two computers with clocks of their own; the head
is the template with 1284 sources.

The judge compares each sample of each estimate with that of the same recording without faults, imaged with the channels that
the session itself says it images with (health: ``bad_channels``). An estimate is

right      if the norm of its difference, relative to the RMS norm of all fault-free estimates, is at most the tolerance;
flagged    if any flag is set.

Unaffected are the samples of which neither the filters' memory (their settling time) nor the resampler's reach, nor the
solver's window holds a sample that a fault has touched, by the replay's own log. Exit status 1 where a seed breaks a promise:
an exception, a hang, an estimate that is neither right nor flagged, less than 95 % of the unaffected unflagged, a flag later
than 1 s plus settling after the end of a fault, or memory that grows.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mne
import numpy as np
import psutil
from machine import machine

from rt_mmdf.acquisition.chaos import (
    BAD_CHANNELS,
    CLOCK_FAULTS,
    ChaosPlan,
    ChaosSettings,
    FaultKind,
    Injected,
    StreamChaos,
    draw_plan,
)
from rt_mmdf.acquisition.recording import Recording
from rt_mmdf.acquisition.replay import LEAD_S, Replay, ReplaySettings
from rt_mmdf.app.session import Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.core.channels import Modality
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.lsl.interface import StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryOutlet, MemoryTransport
from rt_mmdf.preprocessing.whitening import OperatorKey

SFREQ, LOOP_S = 250.0, 20.0
SECONDS = 20.0
STEP_S = 0.02
CLOCK_UNCERTAINTY_S = 1e-4
LEAST_UNFLAGGED = 0.95
CLEAR_S = 1.0
HANG_S = 120.0
"""Real seconds that one seed may take; it takes 2 to 10."""
BUILD_S = 0.1
"""Virtual seconds from the wish for an operator to its being there."""


def recording_of(head: HeadModel, kinds: tuple[str, ...] = ("eeg", "mag")) -> Recording:
    """20 s that close on themselves: 30 patches of 1/f activity from 1 to 20 Hz, and sensor noise."""
    rng = np.random.default_rng(8)
    names = [name for name, kind in zip(head.channels.names, head.channels.types, strict=True) if kind in kinds]
    n_times = round(LOOP_S * SFREQ)
    freqs = np.fft.rfftfreq(n_times, 1 / SFREQ)
    shape = np.where((freqs >= 1) & (freqs <= 20), 1 / np.maximum(freqs, 1), 0.0)
    phases = np.exp(2j * np.pi * rng.uniform(size=(30, len(freqs))))
    courses = np.fft.irfft(shape * phases, n_times, axis=1)
    courses *= 2e-8 / courses.std(axis=1, keepdims=True)
    data = head.leadfield(names)[:, rng.choice(head.n_sources, 30, replace=False)] @ courses
    info = mne.pick_info(head.info, [head.info["ch_names"].index(name) for name in names])
    with info._unlock():
        info["sfreq"] = SFREQ
    noise = np.array([{"eeg": 1e-6, "mag": 3e-14, "grad": 1e-12}[kind] for kind in info.get_channel_types()])
    data += noise[:, None] * rng.normal(size=data.shape)
    return Recording.from_raw(mne.io.RawArray(data, info, verbose="ERROR"), "chaos")


class StreamClock:
    """Clock of the computer that a stream comes from: this machine's, and what the plan's clock faults do to it.

    A step of odd seeds is one of the device's own clock, by which it stamps; the computer's, which LSL measures, is right.
    """

    def __init__(self, base: ManualClock, modality: Modality, measured: frozenset[FaultKind]) -> None:
        self._base, self.modality, self._measured = base, modality, measured
        self.replay: Replay | None = None

    def now(self) -> float:
        now, chaos = self._base.now(), self._chaos
        if chaos is None or self.replay is None or not self.replay.started:
            return now
        since = now - self.replay.log.streams[self.modality].stamp_0
        return now + float(chaos.clock_error_s(since, self._measured))

    @property
    def _chaos(self) -> StreamChaos | None:
        return None if self.replay is None else self.replay._sensors[self.modality].chaos


class Senders(MemoryTransport):
    """The computers that the streams come from."""

    def __init__(self, engine: MemoryTransport, clock: ManualClock, measured: frozenset[FaultKind]) -> None:
        super().__init__(clock, hostname="there", uncertainty_s=engine.uncertainty_s, _network=engine._network)
        self.clocks = {m.upper(): StreamClock(clock, m, measured) for m in Modality}

    def outlet(self, description: StreamDescription, *, chunk_size: int = 0, buffer_s: float = 360.0) -> MemoryOutlet:
        outlet = super().outlet(description, chunk_size=chunk_size, buffer_s=buffer_s)
        outlet.clock = self.clocks[description.type]
        return outlet


@dataclass
class Run:
    """What a session made of one replay, sample by sample of the grid."""

    first: int
    data: np.ndarray  # (n_sources, n_times)
    flags: np.ndarray
    times: np.ndarray
    cleaned: np.ndarray  # (n_channels, n_times)
    bads: list[frozenset[str]]  # by sample
    t0: float
    faults: tuple[Injected, ...]
    settling_s: float
    window_s: float
    ahead_s: float
    status: dict[str, Any]
    sizes: dict[str, int]  # of what could grow
    session: Session


class Arena:
    """One recording, one configuration, and what a session makes of it without faults."""

    def __init__(self, head: HeadModel, content: dict[str, Any] | None = None, seconds: float = SECONDS) -> None:
        self.recording = recording_of(head)
        self.content: dict[str, Any] = {
            "name": "chaos",
            "acquisition": {"eeg": {"name": "chaos-EEG"}, "meg": {"name": "chaos-MEG"}},
            "budget_ms": 1e6,
            "hop_ms": 20,
            "head": {"spacing": "ico3"},
        } | (content or {})
        self.seconds = seconds
        self._faultless: Run | None = None
        self._kernels: dict[frozenset[str], Any] = {}

    @property
    def faultless(self) -> Run:
        if self._faultless is None:
            self._faultless = self.run(None, 2 * self.seconds + 6.0)
        return self._faultless

    def chaos(self, seed: int) -> ChaosSettings:
        return ChaosSettings(seed=seed, seconds=self.seconds)

    def run(self, chaos: ChaosSettings | None, seconds: float) -> Run:
        """A replay of so many seconds, and a session that images it in virtual time."""
        clock = ManualClock(2000.0)
        engine = MemoryTransport(clock, uncertainty_s=CLOCK_UNCERTAINTY_S)
        drift = frozenset({FaultKind.CLOCK_DRIFT})
        measured = drift if chaos is not None and chaos.seed % 2 else CLOCK_FAULTS
        senders = Senders(engine, clock, measured)
        settings = ReplaySettings.model_validate({
            "prefix": "chaos",
            "markers": False,
            "loop": math.inf,
            "eeg": {"chunk": 10},
            "meg": {"chunk": 6},
            "chaos": chaos,
        })  # fmt: skip
        estimates: list[SourceEstimate] = []
        with Replay(senders, self.recording, settings) as replay:
            for stream_clock in senders.clocks.values():
                stream_clock.replay = replay
            session = Session(SessionSettings.model_validate(self.content), engine, on_estimate=estimates.append)
            hops: list[tuple[np.ndarray, frozenset[str]]] = []
            session.engine.chain.taps.append(lambda hop: hops.append((hop.block.data, hop.block.bads)))
            try:
                self._drive(session, replay, clock, seconds)
                status, sizes = session.status(), sizes_of(session)
            finally:
                session.stop()
            filters = session.engine.chain.cleaning.filter
            log = replay.log
        return Run(
            first=estimates[0].first,
            data=np.hstack([e.data for e in estimates]),
            flags=np.concatenate([e.flags for e in estimates]),
            times=np.concatenate([e.times for e in estimates]),
            cleaned=np.hstack([data for data, _ in hops[-len(estimates) :]]),
            bads=[bads for data, bads in hops[-len(estimates) :] for _ in range(data.shape[1])],
            t0=log.streams[Modality.EEG].stamp_0,
            faults=log.faults or (),
            settling_s=filters.settling_samples / filters.sfreq,
            window_s=session.engine.chain.imager.window_length / session.engine.sfreq,
            ahead_s=session.intake.aligner.look_ahead_s,
            status=status,
            sizes=sizes,
            session=session,
        )

    def _drive(self, session: Session, replay: Replay, clock: ManualClock, seconds: float) -> None:
        """The rounds of the session's workers, one after the other."""
        began, wished = clock.now(), math.inf
        pauses = type("Pauses", (), {"pause": lambda self, seconds: None})()
        for key in session.imaging.keys_in_advance():
            session.operators.offer(key)
        for step in range(1, 1 + round((seconds + LEAD_S) / STEP_S)):
            now = clock.move_to(max(began + step * STEP_S, clock.now()))
            while replay.advance() <= now:
                pass
            for receiver in session.intake.receivers.values():
                receiver.step()
            if step % 25 == 1:
                for _ in session.intake.receivers:
                    session.intake.watch.step()
            session._wake.ring()  # else it would wait in real time for what does not come
            session._pump()
            if session.operators.n_waiting and now < wished:
                wished = min(wished, now + BUILD_S)
            elif session.operators.n_waiting:
                session.operators.step(0.0)
                wished = math.inf
            if step % 50 == 0:
                session._report_health(pauses)

    def expected(self, run: Run) -> np.ndarray:
        """The fault-free estimates of a run's samples, imaged with the channels that the run says it was imaged with."""
        faultless = self.faultless
        assert faultless.first == run.first, "both begin at the same sample of the grid"
        n_times = run.data.shape[1]
        wanted = faultless.data[:, :n_times].copy()
        full = run.session.imaging.full_key().bads
        at = np.arange(n_times)
        for bads in {b for b in run.bads if b != full}:
            operator = self._kernels.get(bads)
            if operator is None:
                imaging = run.session.imaging
                operator = self._kernels[bads] = imaging.build(OperatorKey.of(imaging.channels, bads, ()))
            inside = at[[b == bads for b in run.bads]]
            data = operator.whitener.matrix.astype(np.float32) @ faultless.cleaned[:, inside]
            wanted[:, inside] = operator.solver(np.asfortranarray(data), len(inside))
        return wanted


def sizes_of(session: Session) -> dict[str, int]:
    """Numbers of things that wait or are kept; all of them are bounded."""
    lanes = session.intake.aligner._lanes
    return {
        **{f"{m}_ring": receiver.ring.n_waiting for m, receiver in session.intake.receivers.items()},
        **{f"{lane.spec.modality}_undecided": lane.n_undecided for lane in lanes},
        **{f"{lane.spec.modality}_columns": len(lane._valid) for lane in lanes},
        **{f"{lane.spec.modality}_offsets": len(lane.clock._measurements) for lane in lanes},
        "operators": session.operators.switch.n_kept,
        "operators_waiting": session.operators.n_waiting,
    }


@dataclass
class Verdict:
    """What the judge has to say of one seed. Samples are those of the grid."""

    seed: int
    faults: list[str]
    samples: int = 0
    flagged: int = 0
    unaffected: int = 0
    unaffected_unflagged: float = math.nan
    worst_unaffected: float = math.nan  # relative error of the unflagged among the unaffected
    worst_unflagged: float = math.nan  # of all that are unflagged
    wrong_unaffected: int = 0  # neither right nor flagged, unaffected
    wrong_unflagged: int = 0  # neither right nor flagged, all
    wrong_by_fault: dict[str, int] = field(default_factory=dict)
    late_flags: int = 0  # later than 1 s and the settling after a fault's end
    longest_clear_s: float = 0.0  # from the end of a fault to the last flag of it
    seconds: float = 0.0
    rss_mb: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def passed(self) -> bool:
        return (
            not self.error
            and self.wrong_unflagged == 0
            and self.unaffected_unflagged >= LEAST_UNFLAGGED
            and self.late_flags == 0
        )


def intervals(run: Run) -> list[tuple[float, float, FaultKind]]:
    """Begin and end of what each fault has touched, seconds on the grid's clock."""
    found = []
    for injected in run.faults:
        if injected.first is None or injected.stop is None:
            continue
        fault = injected.fault
        end = max(injected.stop / SFREQ, fault.end_s if fault.kind is FaultKind.STALL else 0.0)
        if injected.heard_from is not None:
            end = max(end, injected.heard_from / SFREQ)
        found.append((run.t0 + injected.first / SFREQ - run.ahead_s, run.t0 + end, fault.kind))
    return found


def judge(arena: Arena, run: Run, seed: int, tolerance: float) -> Verdict:
    """Hold a run against its promises."""
    verdict = Verdict(seed, [str(injected.fault) for injected in run.faults], sizes=run.sizes)
    wanted = arena.expected(run)
    scale = np.sqrt((arena.faultless.data.astype(float) ** 2).sum(axis=0).mean())
    invalid = (run.flags & np.uint32(Flag.INVALID)) != 0
    error = np.where(invalid, 0.0, np.linalg.norm(np.where(invalid, 0.0, run.data) - wanted, axis=0) / scale)
    started = run.times >= run.t0 + run.settling_s + run.window_s + CLEAR_S
    flagged, times = run.flags != 0, run.times
    touched = np.zeros(len(times), bool)
    may_be_flagged = np.zeros(len(times), bool)
    spans = intervals(run)
    memory_s = run.settling_s + run.window_s
    for begin, end, _ in spans:
        touched |= (times >= begin) & (times <= end + memory_s)
        may_be_flagged |= (times >= begin) & (times <= end + memory_s + CLEAR_S)
    unaffected = ~touched & started
    wrong = (error > tolerance) & ~flagged & started
    verdict.samples, verdict.flagged = int(started.sum()), int((flagged & started).sum())
    verdict.unaffected = int(unaffected.sum())
    verdict.unaffected_unflagged = float((~flagged[unaffected]).mean()) if unaffected.any() else math.nan
    verdict.worst_unaffected = float(error[unaffected & ~flagged].max(initial=0.0))
    verdict.worst_unflagged = float(error[started & ~flagged].max(initial=0.0))
    verdict.wrong_unaffected, verdict.wrong_unflagged = int((wrong & unaffected).sum()), int(wrong.sum())
    verdict.late_flags = int((flagged & started & ~may_be_flagged).sum())
    for begin, end, kind in spans:
        during = (times >= begin) & (times <= end + memory_s + CLEAR_S)
        if n := int((wrong & during).sum()):
            verdict.wrong_by_fault[str(kind)] = verdict.wrong_by_fault.get(str(kind), 0) + n
        later = [other for other, _, _ in spans if other > begin]
        until = min(later, default=math.inf)
        after = flagged & (times > end) & (times < until)
        if after.any():
            verdict.longest_clear_s = max(verdict.longest_clear_s, float(times[after][-1] - end))
    return verdict


def seconds_of(plan: ChaosPlan, seconds: float) -> float:
    """How long a replay shows what becomes of its faults."""
    return max(seconds, plan.end_s + 5.0)


class Hang(Exception):
    """A seed took far longer than it should."""


def _hang(number: int, frame: Any) -> None:
    raise Hang(f"more than {HANG_S:g} s of real time")


def try_seed(arena: Arena, seed: int, tolerance: float) -> Verdict:
    """One seed from its plan to its verdict; whatever it raises is part of the verdict."""
    chaos = arena.chaos(seed)
    plan = draw_plan(chaos)
    arena.faultless  # noqa: B018  # its time is not the seed's
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        verdict = judge(arena, arena.run(chaos, seconds_of(plan, arena.seconds)), seed, tolerance)
    except Exception as error:
        lines = traceback.format_exception(error)
        verdict = Verdict(seed, [str(fault) for fault in plan.faults], error=f"{type(error).__name__}: {error}\n{lines[-2]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    verdict.seconds = round(time.monotonic() - began, 2)
    verdict.rss_mb = round(psutil.Process().memory_info().rss / 2**20, 1)
    return verdict


def tolerance_of(arena: Arena) -> float:
    """What an estimate may be off and still be right: samples are unflagged while the uncertainty of their time is below
    1 ms (`uncertain_ms`), and the filters count as settled at 1 % of a restart's transient.
    """
    data = arena.faultless.data.astype(float)
    rate = np.gradient(data, 1 / SFREQ, axis=1)
    return float(1e-3 * np.sqrt((rate**2).sum() / (data**2).sum())) + 0.02
