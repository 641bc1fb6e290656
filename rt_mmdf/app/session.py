"""A live session: stages and workers wired together, from the streams on the network to the published estimates.

receive eeg --+                                      +--> estimate streams
              +--> rings --> engine (one thread) ----+
receive meg --+                 ^                    +--> file writer (own thread)
clock watch ----> offsets ------+ <---- operators (own thread, off the hot path)
                                |
                                +----> health stream (own thread, once a second)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from threadpoolctl import threadpool_limits

from rt_mmdf.acquisition.clockwatch import ClockWatch
from rt_mmdf.acquisition.receiver import Receiver
from rt_mmdf.app.engine import Engine
from rt_mmdf.app.imaging import Imaging, Progress
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import SourceEstimate
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.errors import RtMmdfError, StreamError
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.preprocessing.whitening import OperatorKey, OperatorSwitch
from rt_mmdf.runtime.mailbox import Mailbox, Signal
from rt_mmdf.runtime.telemetry import LatencyRecorder, ProcessLoad
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.estimates import EstimateOutlets
from rt_mmdf.sinks.health import HealthOutlet
from rt_mmdf.sinks.stc_files import StcFiles

logger = logging.getLogger(__name__)

PUMP_WAIT_S = 0.05  # the engine looks at the clock this often even when nothing arrives
HEALTH_INTERVAL_S = 1.0
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
        self.settings = settings
        self._transport = transport
        self._clock = transport.clock
        self._on_estimate = on_estimate
        report = progress or (lambda what, fraction: None)
        self._wake = Signal()
        self._resources = ExitStack()
        self._workers: list[Worker] = []
        self._wanted: Mailbox[OperatorKey] = Mailbox(64)
        try:
            # one thread for each product: two cores are shared with the receivers, and a second BLAS thread only waits
            self._resources.enter_context(threadpool_limits(1, "blas"))
            self.receivers: dict[Modality, Receiver] = {}
            for modality in (m for m in Modality if m in settings.acquisition):
                report(f"looking for the {modality.upper()} stream", 0.0)
                receiver = Receiver(transport, settings.acquisition[modality], modality.value, self._wake)
                self._resources.callback(receiver.close)
                self.receivers[modality] = receiver
            self._check_modalities()
            self.watch = ClockWatch(
                transport,
                {r.label: (lambda r=r: r.description) for r in self.receivers.values()},  # type: ignore[misc]
            )
            self._resources.callback(self.watch.close)
            report("preparing the head", 0.1)
            streaming = _joined([receiver.channels for receiver in self.receivers.values()])
            self.imaging = Imaging.prepare(settings, streaming, progress)
            report(f"building {settings.solver.method}", 0.6)
            self.switch = OperatorSwitch(self._wanted.put)
            first = self.imaging.full_key()
            self.switch.offer(first, self.imaging.build(first))
            self.engine = Engine(
                settings, self.receivers, self.watch, self.imaging, self.switch, self._clock, keep_map=keep_map
            )
            self.latency = LatencyRecorder(settings.budget_ms * 1e-3)
            self._load = ProcessLoad()
            report("opening the outlets", 0.9)
            self.outlets = self._resources.enter_context(self._open_outlets())
            self.health = self._resources.enter_context(HealthOutlet(transport, f"{settings.name}-health"))
            self.files = None
            if settings.output.files is not None:
                self.files = StcFiles(settings.output.files, self.imaging.head.vertices, self.engine.sfreq)
            report("ready", 1.0)
        except BaseException:
            self._resources.close()
            raise
        self._started = math.nan
        self._first_estimate = math.nan

    def _check_modalities(self) -> None:
        for modality, receiver in self.receivers.items():
            if modality not in receiver.channels.modalities:
                raise StreamError(
                    f"acquisition.{modality}: stream {receiver.description.name!r} has no {modality.upper()} channels (seen: "
                    f"{', '.join(sorted(set(receiver.channels.types)))}). Choose another stream, or give the channels' types "
                    f"under [acquisition.{modality}.types]."
                )
        if len(self.receivers) == 1:
            (only,) = self.receivers
            logger.warning("imaging from %s alone: the other modality is not configured", only.upper())
