"""Looks at a session twenty times a second, and puts what is wrong with it into the book of incidents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rt_mmdf.acquisition.receiver import Receiver
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import WorkerFailed
from rt_mmdf.runtime.incidents import Growing, Incidents
from rt_mmdf.runtime.limits import file_handles_left, memory_left
from rt_mmdf.runtime.suspension import Suspension

if TYPE_CHECKING:
    from rt_mmdf.app.session import Session

LOOK_S = 0.05
SLOW_LOOK_S = 1.0
"""What takes longer to find out, or cannot do harm so soon, is looked at so often."""
DRIFT_PPM = 200.0
"""Clocks of computers are within 100 ppm of each other."""
FUTURE_MS = 50.0
"""Samples that arrive so long before the time of their stamps have wrong stamps."""
SLOW_DISK_S = 1.7
"""Recordings are flushed once a second; when that has not begun for so long, the disk holds it up."""
SLOW_DISK_QUIET_S = 5.0
"""One that is slow at every flush is one slow disk."""
FEW_HANDLES = 16
LITTLE_MEMORY = 256 << 20

AWAKE_S = 1.0
"""After a suspension the receivers first make sure whom they hear: meanwhile nobody stalls."""

COUNTED = {
    "gaps": ("gap", "{n} holes in its time stamps"),
    "duplicates": ("duplicate_stamps", "{n} samples left out, whose time stamps had come before"),
    "backward": ("backward_stamps", "{n} samples left out, whose time stamps lie before ones that had come"),
    "bad_stamps": ("bad_stamps", "{n} time stamps that cannot be used (NaN, infinite, or far off); their samples are kept"),
}
"""By the name of a count in `TimelineCounts`: kind and detail."""


class Watch:
    """What has begun and what is over, of everything that a session knows of itself.

    The kinds, of a stream: ``stall``, ``late``, ``stream_gone``, ``stream_unusable``, ``stream_changed``, ``gap``,
    ``clock_step``, ``double``, ``drift``, ``future_stamps``, ``unaligned``, ``duplicate_stamps``, ``backward_stamps``,
    ``bad_stamps``, ``nonfinite``, ``bad_channels``; of the engine: ``skipped_hops``, ``missed_deadlines``, ``solver``,
    ``fallback``, ``backend``, ``operators``, ``overwritten``, ``publish``, ``resampling``; of what is written: ``disk``,
    ``not_recorded``; of the process: ``worker`` (a thread raised, and goes on or not), ``suspended``, ``file_handles``,
    ``memory``.

    Parameters
    ----------
    session : Session
        Ready, running or not.
    incidents : Incidents
    now : callable
        This machine's LSL time, seconds.
    suspension : Suspension | None
        None: nothing is said of suspensions (a clock that is moved by hand).
    """

    def __init__(
        self, session: Session, incidents: Incidents, now: Callable[[], float], suspension: Suspension | None = None
    ) -> None:
        self._session = session
        self._incidents = incidents
        self._now = now
        self._suspension = suspension
        self._growing = Growing(incidents, now)
        self._awake_since = -math.inf
        self._slow_looked = -math.inf
        self._stalls: dict[Modality, int] = {}
        self._bads: dict[str, str] = {}
        self._doubles: dict[Modality, int] = {}
        self._reasons: dict[tuple[str, str], str] = {}
        self._slow_until = -math.inf  # until when a disk that was slow is taken for slow
        self._raised = 0  # errors that the recording's thread has survived

    def begin_anew(self) -> None:
        """Nobody has looked for a while; that is no suspension."""
        if self._suspension is not None:
            self._suspension.begin()

    def look(self) -> None:
        """Once; cheap, and may be called from one thread only."""
        now = self._now()
        if self._suspension is not None and (held := self._suspension.look()) > 0:
            self._awake_since = now + AWAKE_S
            self._incidents.note(
                "suspended",
                "process",
                f"nothing ran for {held:.1f} s: this process or the machine was suspended, or far too busy. What came "
                "meanwhile and is too old is left out and counted.",
                began=now - held,
            )
        for modality, receiver in self._session.intake.receivers.items():
            self._look_at_stream(modality, receiver, now)
            self._look_at_doubles(modality, receiver)
        self._look_at_stamps()
        self._look_at_channels()
        self._look_at_engine()
        self._look_at_sinks()
        if now - self._slow_looked >= SLOW_LOOK_S:
            self._slow_looked = now
            self._look_slowly()
        self._incidents.settle()

    def _lasting(self, kind: str, subject: str, wrong: object, detail: str, over: str = "") -> None:
        if wrong:
            self._incidents.begin(kind, subject, detail)
        else:
            self._incidents.end(kind, subject, over)

    def _lasting_for(self, kind: str, subject: str, reason: str, detail: str, over: str = "") -> None:
        """What lasts for one reason or another; told anew when the reason changes."""
        before, self._reasons[kind, subject] = self._reasons.get((kind, subject), ""), reason
        if reason and before and reason != before:
            self._incidents.update(kind, subject, detail, 1)
        else:
            self._lasting(kind, subject, reason, detail, over)

    def _look_at_stream(self, modality: Modality, receiver: Receiver, now: float) -> None:
        arrivals, trouble = receiver.arrivals, receiver.trouble
        stream = f"stream {receiver.description.name!r} ({modality.upper()})"
        others = [r for m, r in self._session.intake.receivers.items() if m is not modality]
        alone = all(now - r.arrivals.last_received > r.arrivals.stall_after_s for r in others)
        goes_on = "Nothing is imaged until it is back." if alone else "Imaging goes on without it until it is back."
        before = self._stalls.get(modality, 0)
        self._stalls[modality] = arrivals.n_stalls
        age = now - max(arrivals.last_received, self._awake_since)  # never NaN: without a sample it is not greater
        if self._incidents.lasts("stall", modality):
            if arrivals.n_stalls > before:
                self._incidents.end("stall", modality, f"{stream} is back after {arrivals.newest_stall_s:.2f} s")
        elif arrivals.n_stalls > before and now - arrivals.last_received < arrivals.stall_after_s:
            began = arrivals.last_received - arrivals.newest_stall_s
            if began > self._awake_since:  # else it was not the stream that stood still
                self._incidents.note(
                    "stall", modality, f"{stream} sent nothing for {arrivals.newest_stall_s:.2f} s", began=began
                )
        elif age > arrivals.stall_after_s:
            detail = f"{stream} has sent nothing for {age:.2f} s. Is its program still running? {goes_on}"
            self._incidents.begin("stall", modality, detail, began=arrivals.last_received)
        for kind in ("stream_gone", "stream_unusable"):
            there = trouble is not None and trouble.kind == kind
            self._lasting(
                kind,
                modality,
                there,
                "" if trouble is None else f"{trouble.text.rstrip('.')}. {goes_on}",
                f"{stream} is heard",
            )
        self._growing.look(
            "nonfinite", modality, arrivals.n_nonfinite, "{n} samples with NaN or infinity; these are replaced"
        )

    def _look_at_doubles(self, modality: Modality, receiver: Receiver) -> None:
        doubles = self._session.intake.doubles
        if doubles is not None and (others := doubles.found[receiver.label]).n != self._doubles.get(modality, 0):
            self._doubles[modality] = others.n
            if others.n:
                self._incidents.update("double", modality, others.text, others.n)
            else:
                self._incidents.end("double", modality, f"stream {receiver.description.name!r} is the only one of its name")

    def _look_at_stamps(self) -> None:
        aligner, late_ms = self._session.intake.aligner, self._session.settings.alignment.late_ms
        for modality, clock in aligner.newest_report.items():
            for name, (kind, detail) in COUNTED.items():
                lost = f", {clock.counts['lost']} samples lost since the start" if name == "gaps" else ""
                self._growing.look(kind, modality, clock.counts[name], detail + lost)
            self._growing.look("clock_step", modality, clock.clock_steps, "the clock of its sender was set {n} times")
            drift = abs(clock.drift_ppm) - clock.drift_uncertainty_ppm
            pace = "fast" if clock.drift_ppm < 0 else "slow"  # the drift is that of the offset, which is added to its times
            detail = f"its sender's clock runs {abs(clock.drift_ppm):.0f} ppm {pace}; computers' clocks are within 100 ppm"
            if math.isfinite(drift) and (drift > DRIFT_PPM or drift < DRIFT_PPM / 2):
                self._lasting("drift", modality, drift > DRIFT_PPM, detail)
            lag, stalled = clock.arrival_lag_ms, self._incidents.lasts("stall", modality)
            if stalled or math.isnan(lag):
                continue
            future = f"its samples arrive {-lag:.0f} ms before their own time stamps: these, or the clock, are wrong"
            self._lasting("future_stamps", modality, lag < -FUTURE_MS, future)
            late = (
                f"arrives {lag:.0f} ms after its own time stamps; beyond late_ms = {late_ms:g} it counts as missing. Raise "
                "late_ms under [alignment], or let it send smaller blocks."
            )
            self._lasting("late", modality, lag > late_ms, late, f"arrives {lag:.0f} ms after its own time stamps")
        high = self._session.settings.preprocessing.filters.band_pass.high_hz
        blunt = (
            f"at the rate that a stream has now the resampler is exact up to {aligner.pass_hz:.0f} Hz, the filters pass more"
        )
        self._lasting("resampling", "engine", high is not None and high > aligner.pass_hz, blunt)
        faults = aligner.faults
        for modality in aligner.newest_report:
            self._lasting("unaligned", modality, modality in faults, faults.get(modality, ""))

    def _look_at_channels(self) -> None:
        cleaning, channels = self._session.engine.chain.cleaning, self._session.imaging.channels
        bads = cleaning.bad_channels.reasons
        if bads == self._bads:
            return
        self._bads = dict(bads)
        for modality in channels.modalities:
            own = [channels.names[i] for i in channels.of_modality(modality)]
            wrong = {name: bads[name] for name in own if bads.get(name, "configured") != "configured"}
            if not wrong:
                self._incidents.end("bad_channels", modality, "all its channels are good again")
                continue
            listed = ", ".join(f"{name} {reason}" for name, reason in list(wrong.items())[:8])
            detail = f"{len(wrong)} of {len(own)} channels are bad and not imaged: {listed}{', ...' * (len(wrong) > 8)}"
            self._incidents.update("bad_channels", modality, detail, len(wrong))

    def _look_at_engine(self) -> None:
        session, look = self._session, self._growing.look
        counts = session.engine.counts
        look("skipped_hops", "engine", counts.skipped, "{n} hops left out to catch up with the present")
        raised = "{n} hops are not imaged, since the solver raised: "
        look("solver", "engine", counts.failed, raised + session.engine.newest_failure)
        look("overwritten", "engine", session.intake.overwritten, "{n} samples came faster than they were taken")
        look("publish", "engine", session.unpublished, "{n} estimates were not published: " + session.newest_unpublished)
        lacking = session.operators.lacking
        self._lasting_for("operators", "engine", lacking, f"cannot image {lacking}")
        fallback = session.fallback
        if fallback is not None:
            detail = f"{fallback.solver_name} images in place of {session.imaging.solver_name} (flag FALLBACK)"
            self._lasting("fallback", "engine", fallback.active, detail)
        model = session.imaging.model_status
        if model is not None:
            for subject, backend in (("engine", model["backend"]), ("windows", model["window_backend"] or {})):
                fallen = backend.get("fallen_back")
                self._lasting("backend", subject, fallen, f"the backend was given up for {backend.get('name')}: {fallen}")

    def _look_at_sinks(self) -> None:
        session, look = self._session, self._growing.look
        died = set()
        for what, sink in (("recording", session.recorder), ("files", session.files)):
            if sink is not None:
                try:
                    sink.check()
                except WorkerFailed as error:
                    died.add(what)
                    self._incidents.begin("worker", what, f"{error}. Nothing more is written; imaging goes on.")
        if session.recorder is not None:
            n_raised, status = session.recorder.n_raised, session.recorder.status()
            behind_s = session.recorder.unflushed_s if self._now() > self._awake_since else 0.0
            reason = detail = "" if status["writing"] else status["error"] or "it cannot be written"
            if not reason and "recording" not in died:
                if behind_s > SLOW_DISK_S:
                    self._slow_until = self._now() + SLOW_DISK_QUIET_S
                if self._now() < self._slow_until:
                    reason = "slow"
                    detail = f"the disk has not been done for {behind_s:.1f} s; {status['waiting']} samples wait in memory"
            self._lasting_for("disk", "recording", reason, detail, "the recording is written again")
            look("not_recorded", "recording", sum(status["dropped"].values()), "{n} samples could not be written")
            if n_raised > self._raised:
                self._incidents.note("worker", "recording", f"its thread raised: {status['error']}", n_raised - self._raised)
                self._raised = n_raised
        if session.files is not None:
            files = session.files.status
            self._lasting_for("disk", "files", files.error or "", files.error or "", "estimates are written again")
            look("not_recorded", "files", files.lost, "{n} estimates could not be written")

    def _look_slowly(self) -> None:
        session = self._session
        missed = session.latency.summary().missed
        self._growing.look("missed_deadlines", "engine", missed, "{n} estimates later than the budget")
        left = file_handles_left()
        detail = f"only {left} more files or sockets can be opened. What runs goes on; raise the limit (ulimit -n)."
        self._lasting("file_handles", "process", left is not None and left < FEW_HANDLES, detail)
        memory = memory_left()
        room = 0 if memory is None else memory >> 20
        detail = f"only {room} MB of memory are left. End other programs, or stop recording to a slow disk."
        self._lasting("memory", "process", memory is not None and memory < LITTLE_MEMORY, detail)
