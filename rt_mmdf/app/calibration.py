"""Measure the noise covariance from the live streams, behind the very filters that the estimates will pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import mne
import numpy as np

from rt_mmdf.app.intake import Intake, survey_streams
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Flag
from rt_mmdf.core.errors import StreamError
from rt_mmdf.headmodel.noise import NoiseCovarianceEstimator
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.preprocessing.cleaning import Cleaning
from rt_mmdf.runtime.mailbox import Signal

LOOK_S = 0.05
PATIENT_MS = 2000.0
"""Nobody waits for what is measured here, so a stream may come late by this much before its samples count as missing."""


@dataclass(frozen=True)
class Measurement:
    """State of a measurement.

    seconds : of samples that entered
    left_out : samples that did not: a modality missing, gaps, filters settling, values that are not finite
    rank, n_channels : numerical rank so far, and the most that it can be
    bads : channels that look bad, and why; they are in the covariance unless they are flat
    advice : what is wrong with it so far, or None
    """

    seconds: float
    left_out: int
    rank: int
    n_channels: int
    bads: dict[str, str]
    advice: str | None


def calibrate(
    settings: SessionSettings,
    transport: Transport,
    seconds: float,
    on_progress: Callable[[Measurement], None],
) -> tuple[mne.Covariance, Measurement]:
    """Measure for so many seconds of usable samples; a KeyboardInterrupt ends it early with what there is.

    Raises
    ------
    StreamError
        Streams are missing, or nothing comes.
    NoiseCovarianceError
        Too little was measured, or channels are flat.
    """
    clock, wake = transport.clock, Signal()
    late_ms = max(PATIENT_MS, settings.alignment.late_ms)
    settings = settings.model_copy(update={"alignment": settings.alignment.model_copy(update={"late_ms": late_ms})})
    with ExitStack() as resources:
        channels, _ = survey_streams(settings, transport)
        intake = Intake.subscribe(settings, transport, channels, wake, resources)
        cleaning = Cleaning(settings.preprocessing, intake.sfreq)
        estimator = NoiseCovarianceEstimator(intake.aligner.channels)
        workers = intake.workers(wake)
        for worker in workers:
            resources.enter_context(worker)
        left_out, told = 0, clock.now()
        grew, patience = clock.now(), settings.start_timeout_s + settings.preprocessing.filters.max_settling_s

        def measured() -> Measurement:
            return Measurement(
                estimator.n_samples / cleaning.sfreq,
                left_out + estimator.n_left_out,
                estimator.rank(),
                len(estimator.channels),
                cleaning.bad_channels.reasons,
                estimator.advice(),
            )

        with suppress(KeyboardInterrupt):
            while estimator.n_samples < seconds * cleaning.sfreq:
                wake.wait(LOOK_S)
                for worker in workers:
                    worker.check()
                for hop, _ in intake.hops():
                    block = cleaning(hop.block)
                    usable = (block.flags & ~np.uint32(Flag.CLOCK_UNCERTAIN)) == 0
                    left_out += int(np.count_nonzero(~usable))
                    estimator(block.data[:, usable])
                    if usable.any():
                        grew = clock.now()
                now = clock.now()
                if now - grew > patience:
                    raise StreamError(
                        f"calibrate: no usable sample for {now - grew:.0f} s, after {measured().seconds:.0f} s of them: "
                        f"{intake.what_is_missing()}"
                    )
                if now - told >= 1.0:
                    told = now
                    on_progress(measured())
        return estimator.covariance(), measured()
