"""Chaos: a replay goes wrong in ways drawn from a seed, a session images it, and a judge says what the session made of it.

    OMP_NUM_THREADS=1 python tools/bench/chaos.py --seeds 200 --report tools/bench/chaos.json
    OMP_NUM_THREADS=1 python tools/bench/chaos.py --first 17 --seeds 1

Everything runs on the in-memory transport in virtual time, without threads: a seed gives the same figures anywhere. Each
seed is a plan of `rt_mmdf.acquisition.chaos` in 20 s of stream, more where the plan holds a stall of 20 s. EEG (60
channels) and magnetometers (102) come at 250 Hz, in blocks of 10 and 6, from two computers with clocks of their own; the
head is the template with 1284 sources, the solver dSPM. LSL measures what a fault does to a computer's clock; in odd seeds
a clock that steps is the device's own, by which it stamps, and nothing measures that.

The judge compares each sample of each estimate with that of the same recording without faults, imaged with the channels that
the session itself says it images with (`bad_channels` of its health). An estimate is

- right, if the norm of its difference, relative to the RMS norm of all fault-free estimates, is at most the tolerance: what
  1 ms makes of these estimates (samples are unflagged while their time is known to `uncertain_ms` = 1 ms) and 2 % (a filter
  counts as settled when a restart's transient has decayed to 1 %, and EEG and MEG may restart).
  A stream that has come back at another rate is resampled with another filter: three times the RMS of what lies above the
  band that this one passes is allowed for;
- flagged, if any flag is set;
- not yet seen, if it is neither, and a channel has gone bad no longer than 100 ms ago: that a channel has fallen silent can
  only be told by the samples that follow.

Unaffected are the samples of which neither the filters' memory (their settling time), nor the resampler's reach, nor the
solver's window, nor the hop holds a sample that a fault has touched, by the replay's own log. A seed fails by an exception,
a hang, an estimate that is neither right nor flagged nor not yet seen, a stream that is back and not listened to within 6 s,
or a flag later than 1 s plus settling after the end of a fault. Channels that are good again come back some seconds later;
what is flagged only because their operator is being built then is counted apart.
All seeds together fail where less than 95 % of the unaffected samples are unflagged, or where the process has
grown by more than 20 MB since an eighth of the seeds was done.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
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
    VANISHING,
    ChaosPlan,
    ChaosSettings,
    Fault,
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
NOT_YET_SEEN_S = 0.1
"""At 250 Hz: the resampler smears the begin of a silence over 16 samples, and 8 quiet ones tell it."""
UNHEARD_S = 6.0
"""Within which a session must listen again to a stream that has come back as another one."""
MOST_GROWTH_MB = 20.0
HANG_S = 120.0
"""Real seconds that one seed may take; it takes 2 to 10."""
BUILD_S = 0.1
"""Virtual seconds from the wish for an operator to its being there."""


def recording_of(head: HeadModel, kinds: tuple[str, ...]) -> Recording:
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
    hop_s: float
    pass_hz: float  # up to which the resamplers are exact in the end
    status: dict[str, Any]
    sizes: dict[str, int]  # of what could grow
    session: Session


class Arena:
    """One recording, one configuration, and what a session makes of it without faults."""

    def __init__(
        self,
        head: HeadModel,
        content: dict[str, Any] | None = None,
        seconds: float = SECONDS,
        kinds: tuple[str, ...] = ("eeg", "mag"),
    ) -> None:
        self.recording = recording_of(head, kinds)
        self.content: dict[str, Any] = {
            "name": "chaos",
            "acquisition": {"eeg": {"name": "chaos-EEG"}, "meg": {"name": "chaos-MEG"}},
            "budget_ms": 1e6,
            "hop_ms": 20,
            "head": {"spacing": "ico3"},
        } | (content or {})
        self.seconds = seconds
        self._faultless: Run | None = None

    @property
    def faultless(self) -> Run:
        if self._faultless is None:
            self._faultless = self.run(None, 2 * self.seconds + 6.0)
        return self._faultless

    def part_above(self, hz: float) -> float:
        """RMS of what the fault-free estimates hold above a frequency, relative to all of them."""
        spectrum = np.abs(np.fft.rfft(self.faultless.data[:, round(4 * SFREQ) :], axis=1)) ** 2
        freqs = np.fft.rfftfreq(self.faultless.data.shape[1] - round(4 * SFREQ), 1 / SFREQ)
        return float(np.sqrt(spectrum[:, freqs > hz].sum() / spectrum.sum()))

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
            pass_hz=session.intake.aligner.pass_hz,
            hop_s=session.intake.hop / session.engine.sfreq,
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
        if run.session.imaging.model is not None:  # has a memory: not judged while channels are left out, which health tells
            wanted[:, [b != run.bads[0] for b in run.bads]] = np.nan
            return wanted
        full = run.session.imaging.full_key().bads
        at = np.arange(n_times)
        for bads in {b for b in run.bads if b != full}:
            imaging = run.session.imaging
            operator = imaging.build(OperatorKey.of(imaging.channels, bads, ()))
            assert operator is not None, "a linear solver needs no data"
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
    kinds: list[str]
    samples: int = 0
    flagged: int = 0
    unaffected: int = 0
    unaffected_unflagged: float = math.nan
    worst_unaffected: float = math.nan  # relative error of the unflagged among the unaffected
    worst_unflagged: float = math.nan  # of all that are unflagged, but for those not yet seen
    wrong: int = 0  # neither right nor flagged nor not yet seen
    not_yet_seen: int = 0  # neither right nor flagged, in the first 100 ms of a channel that goes bad
    worst_not_yet_seen: float = 0.0
    wrong_by_fault: dict[str, int] = field(default_factory=dict)
    pending_at_return: int = 0  # later than that, while the operator for channels that are good again is built
    late_flags: int = 0  # later than 1 s and the settling after a fault's end
    unheard_s: float = 0.0  # longest time that an outlet that was back was not listened to
    longest_clear_s: float = 0.0  # from the end of a fault to the last flag of it
    seconds: float = 0.0
    rss_mb: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and self.wrong == 0 and self.late_flags == 0 and self.unheard_s <= UNHEARD_S


def told_of(faults: Sequence[Fault]) -> tuple[list[str], list[str]]:
    """Faults, and their kinds and streams, in words."""
    return [str(fault) for fault in faults], [f"{fault.kind} {fault.modality}" for fault in faults]


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
        # a sample more on both sides, grid and samples do not coincide; a modality is missing for whole hops
        begin = run.t0 + (injected.first - 1) / SFREQ - run.ahead_s - run.hop_s
        found.append((begin, run.t0 + end + 1 / SFREQ, fault.kind))
    return found


def judge(arena: Arena, run: Run, seed: int, tolerance: float) -> Verdict:
    """Hold a run against its promises."""
    verdict = Verdict(seed, *told_of([injected.fault for injected in run.faults]), sizes=run.sizes)
    for injected in run.faults:
        if injected.fault.kind in VANISHING and injected.stop is not None:
            heard_s = math.inf if injected.heard_from is None else injected.heard_from / SFREQ
            own = [other.fault for other in run.faults if other.fault.modality is injected.fault.modality]
            back_s = injected.stop / SFREQ  # or when there is something to hear
            back_s = max([back_s, *(f.end_s for f in own if f.kind is FaultKind.STALL and f.start_s <= back_s)])
            verdict.unheard_s = max(verdict.unheard_s, heard_s - back_s)
    wanted = arena.expected(run)
    scale = np.sqrt((arena.faultless.data.astype(float) ** 2).sum(axis=0).mean())
    invalid = (run.flags & np.uint32(Flag.INVALID)) != 0
    error = np.linalg.norm(np.where(invalid, 0.0, run.data) - wanted, axis=0) / scale
    error[invalid | np.isnan(error)] = 0.0
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
    most = np.full(len(times), tolerance)
    for injected in run.faults:
        if injected.fault.kind is FaultKind.VANISH_RATE and injected.stop is not None:
            most[times >= run.t0 + injected.stop / SFREQ] = tolerance + 3 * arena.part_above(run.pass_hz)
    wrong = (error > most) & ~flagged & started
    early = np.zeros(len(times), bool)
    for begin, _, kind in spans:
        if kind in BAD_CHANNELS:
            early |= (times >= begin) & (times <= begin + run.ahead_s + run.hop_s + NOT_YET_SEEN_S)
    verdict.not_yet_seen = int((wrong & early).sum())
    verdict.worst_not_yet_seen = float(error[wrong & early].max(initial=0.0))
    wrong &= ~early
    told = started & ~flagged
    verdict.samples, verdict.flagged = int(started.sum()), int((flagged & started).sum())
    verdict.unaffected = int(unaffected.sum())
    verdict.unaffected_unflagged = float((~flagged[unaffected]).mean()) if unaffected.any() else math.nan
    verdict.worst_unaffected = float(error[unaffected & told].max(initial=0.0))
    verdict.worst_unflagged = float(error[told & ~early].max(initial=0.0))
    verdict.wrong = int(wrong.sum())
    pending = (run.flags == np.uint32(Flag.OPERATOR_PENDING)) & started & ~may_be_flagged
    verdict.pending_at_return = int(pending.sum())
    verdict.late_flags = int((flagged & started & ~may_be_flagged & ~pending).sum())
    for begin, end, kind in spans:
        during = (times >= begin) & (times <= end + memory_s + CLEAR_S)
        if n := int((wrong & during).sum()):
            verdict.wrong_by_fault[str(kind)] = verdict.wrong_by_fault.get(str(kind), 0) + n
        until = min((other for other, _, _ in spans if other > begin), default=math.inf)
        after = flagged & (times > end) & (times < until)
        if after.any():
            verdict.longest_clear_s = max(verdict.longest_clear_s, float(times[after][-1] - end))
    return verdict


def seconds_of(plan: ChaosPlan, seconds: float) -> float:
    """How long a replay shows what becomes of its faults."""
    found_again = UNHEARD_S if any(fault.kind in VANISHING for fault in plan.faults) else 0.0
    return max(seconds, plan.end_s + 5.0 + found_again)


class Hang(Exception):
    """A seed took far longer than it should."""


def _hang(number: int, frame: Any) -> None:
    raise Hang(f"more than {HANG_S:g} s of real time")


def try_seed(arena: Arena, seed: int, tolerance: float, hang_s: float = 0.0) -> Verdict:
    """One seed from its plan to its verdict; whatever it raises is part of the verdict, and so is that it takes longer than
    `hang_s` of real time (0: wait for ever).
    """
    chaos = arena.chaos(seed)
    plan = draw_plan(chaos)
    arena.faultless  # noqa: B018  # its time is not the seed's
    began = time.monotonic()
    if hang_s:
        signal.signal(signal.SIGALRM, _hang)
        signal.setitimer(signal.ITIMER_REAL, hang_s)
    try:
        verdict = judge(arena, arena.run(chaos, seconds_of(plan, arena.seconds)), seed, tolerance)
    except Exception as error:
        lines = traceback.format_exception(error)
        verdict = Verdict(seed, *told_of(plan.faults), error=f"{type(error).__name__}: {error}\n{lines[-2]}")
    finally:
        if hang_s:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    gc.collect()  # a session is a knot of objects: its arrays go when the knot is found
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


def shared_unflagged(verdicts: list[Verdict]) -> float:
    """Part of the unaffected samples of all seeds that is unflagged."""
    n = sum(v.unaffected for v in verdicts)
    return sum(v.unaffected * v.unaffected_unflagged for v in verdicts if v.unaffected) / n if n else math.nan


def growth_mb(verdicts: list[Verdict]) -> float:
    """What the process has grown by since an eighth of the seeds was done: before, caches fill."""
    rss = [v.rss_mb for v in verdicts]
    return max(rss[-1] - max(rss[: max(1, len(rss) // 8)]), 0.0)


def summary(verdicts: list[Verdict], tolerance: float, settling_s: float) -> dict[str, Any]:
    """What all seeds come to."""
    kinds = Counter(kind.split()[0] for v in verdicts for kind in v.kinds)
    return {
        "seeds": len(verdicts),
        "passed": sum(v.passed for v in verdicts),
        "failed_seeds": [v.seed for v in verdicts if not v.passed],
        "exceptions": [f"seed {v.seed}: {v.error}" for v in verdicts if v.error],
        "faults": sum(len(v.faults) for v in verdicts),
        "kinds": dict(sorted(kinds.items())),
        "tolerance": tolerance,
        "settling_s": settling_s,
        "samples": sum(v.samples for v in verdicts),
        "flagged": sum(v.flagged for v in verdicts),
        "wrong": sum(v.wrong for v in verdicts),
        "not_yet_seen": sum(v.not_yet_seen for v in verdicts),
        "not_yet_seen_most_ms": max(v.not_yet_seen for v in verdicts) / SFREQ * 1e3,
        "worst_not_yet_seen": max(v.worst_not_yet_seen for v in verdicts),
        "unaffected": sum(v.unaffected for v in verdicts),
        "unaffected_unflagged": shared_unflagged(verdicts),
        "worst_unaffected": float(np.nanmax([v.worst_unaffected for v in verdicts])),
        "worst_unflagged": float(np.nanmax([v.worst_unflagged for v in verdicts])),
        "longest_unheard_s": max(v.unheard_s for v in verdicts),
        "longest_clear_s": max(v.longest_clear_s for v in verdicts),
        "pending_at_return": sum(v.pending_at_return for v in verdicts),
        "late_flags": sum(v.late_flags for v in verdicts),
        "growth_mb": round(growth_mb(verdicts), 1),
        "longest_seed_s": max(v.seconds for v in verdicts),
        "largest": {key: max(v.sizes.get(key, 0) for v in verdicts) for key in verdicts[0].sizes},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of stream, for each seed")
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    parser.add_argument("--resume", action="store_true", help="leave out the seeds that the report holds")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # thousands of the session's own, all meant
    arena = Arena(build_template(spacing="ico3"), seconds=given.seconds)
    tolerance = tolerance_of(arena)
    print(f"tolerance {tolerance:.3f}, settling {arena.faultless.settling_s:.2f} s")
    print(" seed    right or flagged   not yet seen   unflagged of unaffected   worst unflagged   clear after  faults")
    verdicts: list[Verdict] = []
    if given.resume and given.report and given.report.exists():
        verdicts = [Verdict(**v) for v in json.loads(given.report.read_text(encoding="utf-8"))["seeds"]]
    done = {v.seed for v in verdicts}
    for seed in range(given.first, given.first + given.seeds):
        if seed in done:
            continue
        v = try_seed(arena, seed, tolerance, HANG_S)
        verdicts.append(v)
        print(
            f"{seed:5d}  {'ok' if v.passed else 'FAILED':>6} {v.samples - v.wrong:6d}/{v.samples:<6d} {v.not_yet_seen:9d}"
            f" {v.unaffected_unflagged:20.4f} {v.worst_unflagged:20.4f} {v.longest_clear_s:14.2f} s"
            f"  {', '.join(v.kinds)}" + (f"\n       {v.error}" if v.error else ""),
            flush=True,
        )
        if given.report:
            told = summary(verdicts, tolerance, arena.faultless.settling_s)
            content = {"bench": "chaos", "machine": machine(), "summary": told, "seeds": [asdict(v) for v in verdicts]}
            given.report.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    told = summary(verdicts, tolerance, arena.faultless.settling_s)
    for key, value in told.items():
        print(f"{key:>24}: {value}")
    whole = (
        not told["failed_seeds"] and told["unaffected_unflagged"] >= LEAST_UNFLAGGED and told["growth_mb"] <= MOST_GROWTH_MB
    )
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
