"""A live session: stages and workers wired together, from the streams on the network to the published estimates.

receive eeg --+                                      +--> estimate streams
              +--> rings --> engine (one thread) ----+
receive meg --+                 ^     |              +--> file writer, recorder (own threads)
clock watch ----> offsets ------+     |  <---- operators (own thread, off the hot path)
                                      |
                                      +-- cleaned hops, where asked for: sensors for displays, a second solver,
                                      |   event-locked averages (each in threads of its own)
                                      +--> health stream (own thread, once a second) <-- operator marks

What goes wrong is put into one book (`Session.incidents`): by a look at everything twenty times a second, in the thread of
the health stream, and by whoever notices it. A worker that raises is told of and goes on after a while, at once at first,
every half a minute in the end; the engine's five times in half a minute, and not after an error that says what is to be
done. What ends it ends the session.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rt_mmdf.acquisition.device_lag import tell_lags
from rt_mmdf.acquisition.receiver import Arrivals
from rt_mmdf.app.budget import affordable, with_fallback
from rt_mmdf.app.engine import Engine
from rt_mmdf.app.fallback import Fallback
from rt_mmdf.app.imaging import Imaging, Progress
from rt_mmdf.app.intake import Intake, survey_streams
from rt_mmdf.app.operators import LIMIT_S, OperatorBuilder
from rt_mmdf.app.optional import OptionalStreams, streams_of
from rt_mmdf.app.recorder import SessionRecorder
from rt_mmdf.app.scorecard import Scorecard, versions
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.app.watch import LOOK_S, Watch
from rt_mmdf.core.blocks import MISSING, Flag, SourceEstimate
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError, RtMmdfError, StreamError
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.lsl.library import liblsl_version
from rt_mmdf.runtime.incidents import Incidents
from rt_mmdf.runtime.mailbox import NewestValue, Signal
from rt_mmdf.runtime.memory import settled_memory
from rt_mmdf.runtime.suspension import Suspension
from rt_mmdf.runtime.telemetry import LatencyRecorder, ProcessLoad, ProcessUsage
from rt_mmdf.runtime.worker import Restarts, Worker, quick_handover
from rt_mmdf.sinks.estimates import EstimateDescription, EstimateOutlets
from rt_mmdf.sinks.health import HealthOutlet
from rt_mmdf.sinks.recording import check_recording
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.sinks.stc_files import StcFiles

logger = logging.getLogger(__name__)

PUMP_WAIT_S = 0.05  # the engine looks at the clock this often even when nothing arrives
HEALTH_INTERVAL_S = 1.0
SOON_S = 0.1  # reports of incidents are so far apart at least
NAME_LOOK_S = 0.6  # one round of asking the network
SILENT_S = 2.0  # a stream without samples for so long is silent
RESTARTS_S, MOST_RESTARTS, LONGEST_WAIT_S = 300.0, 1_000_000, 30.0  # of the workers that imaging can do without for a while
START_UP_S = 2.0  # latencies of the first seconds (page faults, caches) are reported apart


class Session:
    """Live imaging as a configuration says; ready once built, running between `start` and `stop`.

    Parameters
    ----------
    settings : SessionSettings
    transport : Transport
    progress : callable | None
        Called with what is being prepared and the fraction that is done.
    on_estimate : callable | None
        Called in the engine's thread with each estimate after it was published; must be quick.
    keep_map : bool
        Keep the whole time maps of the streams, for a report.

    Raises
    ------
    StreamError, HeadModelError, NoiseCovarianceError, ConfigurationError, SolverError
        The session cannot begin; the message says why and what to do.
    """

    def __init__(
        self,
        settings: SessionSettings,
        transport: Transport,
        *,
        progress: Progress | None = None,
        on_estimate: Callable[[SourceEstimate], None] | None = None,
        keep_map: bool = False,
    ) -> None:
        self._transport = transport
        self._clock = transport.clock
        self._on_estimate = on_estimate
        report = progress or (lambda what, fraction: None)
        if settings.output.record is not None:
            check_recording(settings.output.record)
        self._wake = Signal()
        self.incidents = Incidents(self._clock.now)
        self._resources = ExitStack()
        self._workers: list[Worker] = []
        self.newest_status: NewestValue[dict[str, Any]] = NewestValue()
        self.unpublished, self.newest_unpublished = 0, ""  # estimates that no outlet took, and why
        try:
            # one thread for each product: two cores are shared with the receivers, and a second BLAS thread only waits
            self._resources.enter_context(threadpool_limits(1, "blas"))
            self._resources.enter_context(quick_handover())
            report("looking for the streams", 0.0)
            _refuse_a_taken_name(settings.name, transport)
            streaming, rates = survey_streams(settings, transport)
            if len(streaming.modalities) == 1:
                logger.warning(
                    "imaging from %s alone: the other modality is not configured", streaming.modalities[0].upper()
                )
            report("preparing the head", 0.1)
            second = settings.second_solver
            if settings.solver.model is not None or (second is not None and second.model is not None):
                from rt_mmdf.backends.torch_backend import one_thread  # imports torch

                self._resources.enter_context(one_thread())
            imaging = Imaging.prepare(settings, streaming, progress, rates)
            report(f"building {imaging.solver_name}", 0.6)
            self._budget = affordable(settings, OperatorBuilder(imaging), rates, self._clock, report)
            settings = self._budget.settings
            self.settings, self.operators, self.fallback = settings, self._budget.operators, None
            self.imaging = self.operators.imaging
            if settings.budget.when_late == "fallback" and settings.solver.model is not None:
                builder = with_fallback(settings, self.operators)[1]
                self.operators.follower = builder
                self.fallback = Fallback(settings.budget, builder, self.imaging.solver_name)
            self.operators.offer_in_advance()
            second_operators: OperatorBuilder | None = None
            if second is not None:
                beside = self.imaging.beside(settings.model_copy(update={"solver": second}), rates)
                report(f"building {beside.solver_name}", 0.7)
                second_operators = OperatorBuilder(beside)
                second_operators.offer_in_advance()
            report("subscribing", 0.8)  # last, so that nothing waits in buffers meanwhile
            self.intake = Intake.subscribe(
                settings, transport, self.imaging.channels, self._wake, self._resources, keep_map=keep_map
            )
            self.engine = Engine(settings, self.intake, self.imaging, self.operators.switch, self._clock, self.fallback)
            self.engine.outlive_failures(lambda error: self.incidents.trace("solver", "engine", error))
            self.intake.aligner.on_error = lambda modality, error: self.incidents.failed(
                "unaligned", modality, error, "its samples are left out for a while"
            )
            for modality, receiver in self.intake.receivers.items():
                receiver.on_news = self._told_of(modality)
            self.latency = LatencyRecorder(settings.budget_ms * 1e-3)
            self._load = ProcessLoad()
            report("opening the outlets", 0.9)
            self.outlets = self._resources.enter_context(self._open_outlets())
            self.health = self._resources.enter_context(HealthOutlet(transport, f"{settings.name}-health"))
            self.optional = OptionalStreams(
                settings,
                transport,
                self.engine,
                self.operators,
                second_operators,
                self.sources,
                self.described,
            )
            self._resources.callback(self.optional.close)
            self.files = None
            if settings.output.files is not None:
                name = self.imaging.solver_name
                self.files = StcFiles(settings.output.files, self.sources, self.engine.sfreq, self._wake.ring, solver=name)
                self._resources.callback(self.files.close)
            self.recorder = SessionRecorder.of(settings, self, self._clock)
            if self.recorder is not None:
                self._resources.callback(self.recorder.close)
                self.engine.must_go_on = True  # whatever the solver does, this cannot be repeated
            self.watch = Watch(self, self.incidents, self._clock.now)
            report("ready", 1.0)
        except BaseException:
            self._resources.close()
            raise
        self._started = math.nan
        self._stopped = math.inf
        self._first_estimate = math.nan
        self._reported_at, self._reported_changes = -math.inf, 0
        self._arrived: dict[Modality, tuple[float, int]] = {}
        self._mean_load: ProcessUsage | None = None

    def _open_outlets(self) -> EstimateOutlets:
        head, imaging, settings = self.imaging.head, self.imaging, self.settings
        band = settings.preprocessing.filters.band_pass
        centre = math.sqrt((band.low_hz or 1.0) * (band.high_hz or 40.0))
        self.sources = SourceSpaceDescription(
            head.name,
            head.fingerprint,
            head.vertices,
            head.source_positions_mm,
            "MNI305" if head.kind == "template" else "MRI (surface RAS)",
        )
        self.filter_delay_ms = 1e3 * float(self.engine.chain.cleaning.filter.group_delay(centre)[0])
        self.described = EstimateDescription(
            imaging.solver_name,
            imaging.solver.unit,
            imaging.orientation,
            self.engine.sfreq,
            self.filter_delay_ms,
            {
                "engine/session": settings.name,
                "engine/hop_ms": f"{1e3 * self.intake.hop / self.intake.sfreq:.6g}",
                "engine/budget_ms": f"{settings.budget_ms:g}",
                "engine/device_lag": tell_lags(self.intake.lags),
                **({} if self.fallback is None else {"engine/fallback": self.fallback.solver_name}),
                **streams_of(settings),
            },
        )
        return EstimateOutlets(
            self._transport, f"{settings.name}-sources", self.sources, self.described, settings.output.estimates
        )

    # running

    def start(self) -> Session:
        """Start all workers; estimates come as soon as the clocks of all streams have been measured."""
        self._resources.enter_context(settled_memory())
        self._started, self._stopped = self._clock.now(), math.inf
        self._first_estimate = math.nan
        self._workers += self.intake.workers(self._wake)
        self._workers.append(Worker("engine", self._pump, self._wake.ring))
        self._workers.append(Worker("operators", self.operators.step, self._wake.ring, LIMIT_S))
        self._workers += self.imaging.workers(self._wake.ring)
        self._workers += self.optional.workers(self._wake.ring)
        health = Worker("health", lambda: self._report_health(health), self._wake.ring)
        self._workers.append(health)
        self.watch = Watch(self, self.incidents, self._clock.now, Suspension(LOOK_S))
        for worker in self._workers:
            worker.restarts = self._restarts_of(worker)
            worker.start()
        return self

    def _restarts_of(self, worker: Worker) -> Restarts:
        def tell(name: str, error: Exception) -> None:
            self.incidents.failed("worker", name, error, "it goes on in a moment")

        if worker.name == "engine":
            return Restarts(tell, fatal=(RtMmdfError,))
        before = self.watch.begin_anew if worker.name == "health" else None
        return Restarts(tell, MOST_RESTARTS, RESTARTS_S, longest_wait_s=LONGEST_WAIT_S, before=before)

    def _told_of(self, modality: Modality) -> Callable[[str, str], None]:
        return lambda kind, text: self.incidents.note(kind, modality, text)

    def check(self) -> None:
        """Raise what ended a worker, or a StreamError if no estimate has come within `start_timeout_s`."""
        for worker in self._workers:
            worker.check()
        waited = self._clock.now() - self._started
        patience = self.settings.start_timeout_s
        if self.imaging.data_cov is not None:  # the beamformer waits for data, and these for the filters
            lcmv = self.settings.solver.lcmv
            patience += lcmv.least_s + lcmv.refresh_s + self.settings.preprocessing.filters.max_settling_s
        if math.isnan(self._first_estimate) and waited > patience:
            raise StreamError(f"no estimate after {waited:.0f} s: {self.intake.what_is_missing()}")

    def stop(self) -> None:
        """Stop all workers and close all streams; raises the error that ended a worker, if one did."""
        self._stopped = min(self._stopped, self._clock.now())
        self._mean_load = self._mean_load or self._load.mean()
        failure: RtMmdfError | None = None
        for worker in self._workers:
            try:
                worker.stop()
            except RtMmdfError as error:
                failure = failure or error
        self._workers.clear()
        self._resources.close()
        if failure is not None:
            raise failure

    def __enter__(self) -> Session:
        try:
            return self.start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        except RtMmdfError:
            if error is None:  # an error that is under way already is the more telling one
                raise

    # the workers' rounds

    def _pump(self) -> None:
        self._wake.wait(PUMP_WAIT_S)
        for estimate in self.engine.pump():
            try:
                stamps = self.outlets.publish(estimate)
            except StreamError as error:
                self.unpublished, self.newest_unpublished = self.unpublished + 1, str(error)
                self.incidents.trace("publish", "engine", error)
                stamps = estimate.stamps
            if math.isnan(self._first_estimate) and not (estimate.flags & np.uint32(Flag.INVALID)).all():
                self._first_estimate = stamps.published
            if stamps.published - self._first_estimate >= START_UP_S:
                self.latency.record(estimate.hop, stamps)
            if self.files is not None:
                self.files.put(estimate)
            if self.recorder is not None:
                self.recorder.put_estimate(replace(estimate, stamps=stamps))
            if self._on_estimate is not None:
                self._on_estimate(replace(estimate, stamps=stamps))

    def _report_health(self, worker: Worker) -> None:
        """Look at everything, and report once a second, and soon when an incident has begun or ended."""
        worker.pause(LOOK_S)
        self.watch.look()
        now, changes = self._clock.now(), self.incidents.n_changes
        since = now - self._reported_at
        if since < SOON_S or (since < HEALTH_INTERVAL_S and changes == self._reported_changes):
            return
        self._reported_at, self._reported_changes = now, changes
        status = self.status()
        text = self.health.publish(status)
        if self.recorder is not None:
            self.recorder.put_health(text)
        self.newest_status.put(status)

    def status(self) -> dict[str, Any]:
        """Everything that is known about the session now: what the health stream carries, see `newest_status`."""
        now = min(self._clock.now(), self._stopped)
        usage = self._load.recent()
        counts = self.engine.counts
        summary, newest = self.latency.summary(), self.engine.chain.newest_flags
        clocks = self.intake.aligner.newest_report
        streams: dict[str, Any] = {}
        for modality, receiver in self.intake.receivers.items():
            arrivals, clock = receiver.arrivals, clocks.get(modality)
            streams[modality.value] = {
                "name": receiver.description.name,
                "hostname": receiver.description.hostname,
                "sfreq": receiver.sfreq,
                "n_channels": len(receiver.channels),
                "received": arrivals.n_received,
                "rate_hz": self._arrival_rate(modality, arrivals),
                "age_s": now - arrivals.last_received,
                "silent": now - arrivals.last_received > SILENT_S,
                "stalled": self.incidents.lasts("stall", modality),
                "missing_now": bool(newest & MISSING[modality]),
                "chunk": arrivals.newest_chunk,
                "nonfinite": arrivals.n_nonfinite,
                "reconnected": arrivals.n_reconnected,
                "doubles": 0 if self.intake.doubles is None else self.intake.doubles.found[modality.value].n,
                "queue": receiver.ring.n_waiting,
                **{key: getattr(self.intake.lags[modality], key) for key in ("lag_ms", "lag_uncertainty_ms", "lag_against")},
                "lag_told": str(self.intake.lags[modality]),
                **(asdict(clock) if clock is not None else {}),
            }
        return {
            "time": now,
            "running_s": now - self._started,
            "session": self.settings.name,
            "head": self.imaging.head.name,
            "head_fingerprint": self.imaging.head.fingerprint,
            "hop_ms": 1e3 * self.intake.hop / self.intake.sfreq,
            "solver": self.imaging.solver_name,
            "unit": self.imaging.solver.unit,
            "n_sources": self.imaging.head.n_sources,
            "n_channels": len(self.imaging.channels),
            "modalities": list(self.imaging.channels.modalities),
            "streams": streams,
            "alignment_uncertainty_ms": self.intake.aligner.uncertainty_ms(),
            "bad_channels": self.engine.chain.cleaning.bad_channels.reasons,
            "not_imaged": self.imaging.not_imaged,
            "hops": counts.hops,
            "skipped_hops": counts.skipped,
            "invalid_hops": counts.invalid,
            "failed_hops": counts.failed,
            "incidents": self.incidents.status(),
            "estimates": self.n_estimates,
            "overwritten_samples": self.intake.overwritten,
            "missed_deadlines": summary.missed,
            "longest_miss_run": summary.longest_miss_run,
            "budget_ms": self.settings.budget_ms,
            "budget": self._budget.status()
            | {
                "when_late": self.settings.budget.when_late,
                "joined_hops": counts.joined,
                "fallback_hops": counts.fallback,
                "fallback": None if self.fallback is None else self.fallback.status(),
            },
            "latency_ms": self.latency.recent(),
            "latency_histogram": self.latency.histogram("lateness"),
            "filter_delay_ms": self.filter_delay_ms,
            "look_ahead_ms": self.intake.aligner.look_ahead_s * 1e3,
            "device_lag": tell_lags(self.intake.lags),
            "flags": {flag.name: n for flag, n in self.engine.chain.flag_counts.items() if n},
            "operators_waiting": self.operators.n_waiting,
            "operators_failed": self.operators.failed,
            "model": self.imaging.model_status,
            "files": asdict(self.files.status) if self.files is not None else None,
            "recording": self.recorder.status() if self.recorder is not None else None,
            **self.optional.status(),
            "cpu_cores": usage.cpu_cores,
            "rss_mb": usage.rss_mb,
        }

    def _arrival_rate(self, modality: Modality, arrivals: Arrivals) -> float:
        """Samples a second since the status before, by the times of the pulls; NaN where there was none."""
        received, n = arrivals.last_received, arrivals.n_received
        before, n_before = self._arrived.get(modality, (math.nan, 0))
        self._arrived[modality] = (received, n)
        return (n - n_before) / (received - before) if received > before else 0.0 if n == n_before else math.nan

    @property
    def seconds_running(self) -> float:
        """Since `start`, until `stop`."""
        return min(self._clock.now(), self._stopped) - self._started

    @property
    def n_estimates(self) -> int:
        """Hops that were imaged and published; not those that had nothing to be imaged from."""
        counts = self.engine.counts
        return counts.hops - counts.skipped - counts.invalid

    def scorecard(
        self,
        alignment_ms: Mapping[str, float | None] | None = None,
        le_mm: Mapping[str, float | None] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Scorecard:
        """What the session did so far.

        Parameters
        ----------
        alignment_ms : p50 and p99 against a known truth; None: the uncertainty that the clock fits give themselves
        le_mm : median and p90 against known sources, where there are some
        extra : further keys of the report
        """
        status, summary = self.status(), self.latency.summary()
        clocks = self.intake.aligner.report()
        lost = {m.value: int(clocks[m].counts["lost"]) if m in clocks else None for m in Modality}
        uncertainty = self.intake.aligner.uncertainty_ms()
        sd = None if uncertainty is None else uncertainty / 2
        mean = self._mean_load or self._load.mean()
        lateness = summary.latency_ms["lateness"]
        more = {
            "alignment_source": "fit" if alignment_ms is None else "truth",
            "budget_ms": self.settings.budget_ms,
            "start_up_s": START_UP_S,
            "seconds": status["running_s"],
            "latency_by_stage_ms": summary.latency_ms,
            "longest_miss_run": summary.longest_miss_run,
            **{
                k: status[k]
                for k in (
                    "modalities",
                    "streams",
                    "bad_channels",
                    "flags",
                    "not_imaged",
                    "overwritten_samples",
                    "invalid_hops",
                    "failed_hops",
                )
            },
            "incidents": self.incidents.counts,
            **{k: status[k] for k in ("unit", "filter_delay_ms", "look_ahead_ms", "device_lag", "files")},
            "budget": status["budget"],
            "model": self.imaging.model_facts,
            **{k: status[k] for k in ("sensors", "second", "average", "recording") if status[k] is not None},
        }
        return Scorecard(
            solver=self.imaging.solver_name,
            n_sources=self.imaging.head.n_sources,
            n_channels=len(self.imaging.channels),
            hops=self.engine.counts.hops,
            estimates=self.n_estimates,
            missed_deadlines=summary.missed,
            skipped_hops=self.engine.counts.skipped,
            lost_samples=lost,
            alignment_ms=alignment_ms
            or {"p50": None if sd is None else 0.674 * sd, "p99": None if sd is None else 2.576 * sd},  # of a Gaussian
            latency_ms={key: lateness[key] for key in ("p50", "p90", "p99", "max")},
            le_mm=le_mm,
            cpu_cores=mean.cpu_cores,
            rss_mb=mean.rss_mb,
            versions=versions(liblsl_version()),
            extra=more | dict(extra or {}),
        )


def _refuse_a_taken_name(name: str, transport: Transport) -> None:
    """Two engines of one name would leave every listener to chance."""
    taken = transport.resolve(name=f"{name}-sources", timeout_s=NAME_LOOK_S)
    if taken:
        raise ConfigurationError(
            f"name = {name!r}: {taken[0].name!r} is being published already, on host {taken[0].hostname!r}; another engine "
            "runs under that name, which must be its own. End that one, or set another name in the configuration."
        )
