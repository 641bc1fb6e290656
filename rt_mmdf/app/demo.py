"""The demonstration: a replay in a process of its own, imaged live, and scored against what is known of it."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import mne
import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from scipy.signal import sosfilt

from rt_mmdf.app.imaging import Progress
from rt_mmdf.app.replayed import ReplayProcess, replayed_session
from rt_mmdf.app.scorecard import Scorecard
from rt_mmdf.app.session import START_UP_S, Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Flag, Float64, SourceEstimate
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import SinkError, StreamError
from rt_mmdf.core.settings import Settings, validate_settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import NoiseCovarianceEstimator, save_noise_cov
from rt_mmdf.headmodel.surface import surface_of
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.preprocessing.filters import CausalFilter
from rt_mmdf.simulation.recordings import SimulationSettings, simulate_recording, write_recording
from rt_mmdf.simulation.truth import Score, Truth, score
from rt_mmdf.sinks.figure import save_figure, source_map
from rt_mmdf.solvers.artefact import default_model
from rt_mmdf.solvers.linear import LiveMethod

EEG_RATE, EEG_CHUNK, MEG_CHUNK = 500.0, 5, 10  # of the simulated systems; MEG comes at the 1000 Hz of the simulation
EEG_DRIFT_PPM = 80.0  # of the simulated EEG amplifier's crystal: two systems never sample by one clock
REST_S = 40.0  # of noise without activations, for the noise covariance: 100 samples a channel
KEPT_S = 2.0  # of full estimates, for the picture at the end
UNUSABLE = np.uint32(Flag.INVALID | Flag.EEG_MISSING | Flag.MEG_MISSING | Flag.OPERATOR_PENDING)
FALLBACK: LiveMethod = "sLORETA"  # where no model is at hand


class DemoSettings(Settings):
    """What is demonstrated.

    model : name or folder of a trained model; `method`: a classical inverse. None of both: the best model that ships
    recording : file to replay; None: a simulated one with known sources
    head : folder of a head model for `recording`; None: the template
    noise_cov : noise covariance for `recording`; None: ad hoc by channel type
    spacing : of the template head; None: that of the model, or ico4
    view : publish what a window shows beside the estimates: the cleaned sensors
    """

    seconds: float = 30.0
    model: str | None = None
    method: LiveMethod | None = None
    recording: Path | None = None
    head: Path | None = None
    noise_cov: Path | None = None
    out: Path = Path("rt-mmdf-demo")
    seed: int = SimulationSettings().seed
    spacing: Literal["ico3", "ico4"] | None = None
    view: bool = False

    @model_validator(mode="after")
    def _one_solver(self) -> Self:
        if self.model is not None and self.method is not None:
            raise ValueError(f"model = {self.model!r} and method = {self.method!r}: one of them is expected")
        return self

    def solver(self) -> dict[str, str]:
        """The section [solver] of the session."""
        model = self.model if self.model is not None or self.method is not None else default_model()
        return {"model": model} if model is not None else {"method": self.method or FALLBACK}


@dataclass(frozen=True)
class DemoResult:
    """What came out: the figures, and where the picture is."""

    scorecard: Scorecard
    picture: Path


class _Watcher:
    """Keeps, in the engine's thread, what the score and the picture need of each estimate."""

    def __init__(self, n_kept: int) -> None:
        self.times: list[Float64] = []
        self.peaks: list[NDArray[np.intp]] = []
        self.newest: deque[SourceEstimate] = deque(maxlen=n_kept)

    def __call__(self, estimate: SourceEstimate) -> None:
        usable = (estimate.flags & UNUSABLE) == 0
        peaks = np.full(estimate.n_times, -1, dtype=np.intp)
        if usable.any():
            peaks[usable] = np.abs(estimate.data[:, usable]).argmax(axis=0)
        self.times.append(estimate.times)
        self.peaks.append(peaks)
        self.newest.append(estimate)


def run_demo(
    settings: DemoSettings,
    transport: Transport,
    *,
    progress: Progress | None = None,
    on_status: Callable[[dict[str, Any]], None] | None = None,
    beside: Callable[[str, Path | None], AbstractContextManager[None]] = lambda name, head: nullcontext(),
    keep_waiting: Callable[[float], None],
) -> DemoResult:
    """Replay and image; ends after `seconds` of estimates, when the replay ends, or with a KeyboardInterrupt.

    Parameters
    ----------
    progress : called while things are prepared
    on_status : called about twice a second while it runs, with `Session.status`
    beside : entered while it runs, with the name of the engine and the folder of its head (None: the template or the
        model's own); what shows the estimates, for example
    keep_waiting : called with the seconds to wait between two looks at the session; a KeyboardInterrupt in it ends the
        demonstration early, with the scorecard

    Raises
    ------
    RtMmdfError
        It could not be run; the message says why and what to do.
    """
    report = progress or (lambda what, fraction: None)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"--out {settings.out}: the folder cannot be made ({error.strerror}). Choose another one."
        ) from error
    prefix = f"demo-{uuid.uuid4().hex[:8]}"  # another demonstration may run on this network
    truth, recording, config = _material(settings, prefix, report)
    with ExitStack() as stack:
        replay = stack.enter_context(
            ReplayProcess(recording, prefix, settings.out, _replay_words(truth is not None), "demo")
        )
        session = Session(
            config,
            transport,
            progress=report,
            on_estimate=(watcher := _Watcher(round(KEPT_S * 1e3 / config.hop_ms))),
            keep_map=True,
        )
        began = transport.clock.now()
        with beside(prefix, settings.head), session, suppress(KeyboardInterrupt):
            while not (replay.ended or _lasted(watcher) >= settings.seconds):
                keep_waiting(0.5)
                session.check()
                replay.check()
                if on_status is not None and (status := session.newest_status.get()) is not None:
                    on_status(status)
        log = replay.stop()
    if not watcher.times:
        raise StreamError(
            f"demo: no estimate in {transport.clock.now() - began:.0f} s. Let it run longer, or look at `rt-mmdf doctor`."
        )
    return _result(settings, session, watcher, truth, log)


def _lasted(watcher: _Watcher) -> float:
    return float(watcher.times[-1][-1] - watcher.times[0][0]) if watcher.times else 0.0


def _material(settings: DemoSettings, prefix: str, report: Progress) -> tuple[Truth | None, Path, SessionSettings]:
    """Recording and configuration: of a file, or simulated with its truth and noise covariance beside it."""
    content, bound = replayed_session(
        prefix,
        settings.solver(),
        recording=settings.recording,
        head=settings.head,
        noise_cov=settings.noise_cov,
        spacing=settings.spacing,
        progress=report,
    )
    content["budget"] = {"may_lower": ["hop"]}  # rather a larger hop than none
    if settings.view:
        content["output"] = {"sensors": {}}
    if settings.recording is not None:
        return None, settings.recording, validate_settings(content, SessionSettings, where="demo")
    report("simulating a recording", 0.0)
    simulation = SimulationSettings(seed=settings.seed, duration_s=settings.seconds + 5.0)
    raw, truth = simulate_recording(simulation, progress=report)
    recording = settings.out / "demo-raw.fif"
    write_recording(raw, truth, recording)
    noise_file = settings.out / "demo-cov.fif"
    report("measuring the noise", 0.6)
    if not bound:
        content["noise"] = {"file": noise_file}
    config = validate_settings(content, SessionSettings, where="demo")
    save_noise_cov(_measured_noise(simulation, config), noise_file)
    return truth, recording, config


def _replay_words(simulated: bool) -> list[str]:
    words = ["--wait-for-consumers", "600"]
    if not simulated:
        return [*words, "--loop", "inf"]
    words += ["--eeg-rate", f"{EEG_RATE:g}", "--eeg-chunk", str(EEG_CHUNK), "--meg-chunk", str(MEG_CHUNK)]
    return [*words, "--eeg-drift-ppm", f"{EEG_DRIFT_PPM:g}"]


def _measured_noise(simulation: SimulationSettings, config: SessionSettings) -> mne.Covariance:
    """Noise covariance of another recording without activations, behind the same filters: what `calibrate` does live."""
    rest = simulation.model_copy(
        update={"seed": simulation.seed + 1, "duration_s": REST_S + simulation.period_s, "rest_s": REST_S}
    )
    raw, _ = simulate_recording(rest)
    kinds = tuple(ChannelType(kind) for kind in raw.get_channel_types())
    estimator = NoiseCovarianceEstimator(Channels(tuple(raw.ch_names), kinds))
    sos = CausalFilter.from_settings(config.preprocessing.filters, simulation.sfreq).sos
    settled = round(2.0 * simulation.sfreq)
    filtered = sosfilt(sos, raw.get_data(stop=round(REST_S * simulation.sfreq)), axis=1)
    estimator(filtered[:, settled:])
    return estimator.covariance()


def _result(
    settings: DemoSettings, session: Session, watcher: _Watcher, truth: Truth | None, log: dict[str, Any]
) -> DemoResult:
    head = session.imaging.head
    times, peaks = np.concatenate(watcher.times), np.concatenate(watcher.peaks)
    alignment = _alignment_against_the_log(session, times, log)
    picture = settings.out / "source_map.png"
    if truth is None:
        values = _rms(watcher.newest)
        _draw(
            picture,
            head,
            values,
            session,
            f"RMS of the last {watcher.newest[-1].times[-1] - watcher.newest[0].times[0]:.0f} s",
        )
        return DemoResult(session.scorecard(alignment), picture)
    positions = np.where(peaks[:, None] >= 0, head.source_positions_mm[peaks], np.nan)
    names, sos = session.imaging.channels.names, session.engine.chain.cleaning.filter.sos

    def causal_filter(moments: Float64) -> Float64:
        return np.asarray(sosfilt(sos, moments, axis=1))

    # SNR against the noise that was simulated, not against what the engine believes of it
    whitener, rank = truth.whitener(names, causal_filter)
    scored = score(
        times - log["streams"]["meg"]["stamp_0"],
        positions,
        truth,
        whitener=whitener,
        rank=rank,
        ch_names=names,
        causal_filter=causal_filter,
    )
    summary = scored.summary()
    _draw_scored(picture, head, session, watcher, scored, truth, log["streams"]["meg"]["stamp_0"])
    return DemoResult(session.scorecard(alignment, summary.pop("le_mm"), summary), picture)


def _alignment_against_the_log(session: Session, times: Float64, log: dict[str, Any]) -> dict[str, float | None] | None:
    """Error of the time between the modalities, against what the replay says it stamped; milliseconds."""
    late = times[times >= times[0] + START_UP_S] if times[-1] > times[0] + 2 * START_UP_S else times
    errors = []
    aligner = session.intake.aligner
    for modality in aligner.report():
        stream, time_map = log["streams"][modality.value], aligner.time_map(modality)
        interval = 1 / (stream["sfreq"] * (1 + stream["drift_ppm"] * 1e-6))
        index = time_map.indices_at(late)
        # the stream was joined at some sample of the replay; its stamp, as it came, tells at which
        ahead = round((aligner.first_stamp(modality) - stream["stamp_0"]) / interval)
        errors.append(late - (stream["stamp_0"] + (index + ahead) * interval))
    if len(errors) < 2:
        return None
    apart = np.abs(errors[0] - errors[1]) * 1e3
    return {"p50": float(np.percentile(apart, 50)), "p99": float(np.percentile(apart, 99))}


def _rms(estimates: deque[SourceEstimate]) -> Float64:
    usable = [estimate.data[:, (estimate.flags & UNUSABLE) == 0].astype(np.float64) for estimate in estimates]
    data = np.hstack(usable)
    if data.shape[1] == 0:
        return np.full(len(data), np.nan)
    return np.asarray(np.sqrt(np.mean(data**2, axis=1)))


def _draw_scored(
    picture: Path, head: HeadModel, session: Session, watcher: _Watcher, scored: Score, truth: Truth, stamp_0: float
) -> None:
    """The instant of highest SNR among the full estimates that were kept, with the true source marked."""
    kept = np.concatenate([estimate.times for estimate in watcher.newest]) - stamp_0
    data = np.hstack([estimate.data for estimate in watcher.newest])
    candidates = np.flatnonzero(scored.file_times >= kept[0] - 1e-6)
    if len(candidates) == 0:
        _draw(picture, head, _rms(watcher.newest), session, f"RMS of the last {KEPT_S:g} s; no source was active")
        return
    best = candidates[np.argmax(scored.snr_db[candidates])]
    values = np.abs(data[:, np.argmin(np.abs(kept - scored.file_times[best]))])
    source = int(scored.sources[best])
    title = f"{truth.source_names[source]} active at {scored.snr_db[best]:.0f} dB: error {scored.le_mm[best]:.0f} mm"
    centre = truth.centres_mm[source]
    distances = [np.linalg.norm(hemisphere.white - centre, axis=1) for hemisphere in head.hemispheres]
    side = int(np.argmin([distance.min() for distance in distances]))
    _draw(picture, head, values, session, title, marks=[(side, int(distances[side].argmin()))])


def _draw(
    picture: Path, head: HeadModel, values: Float64, session: Session, title: str, marks: list[tuple[int, int]] | None = None
) -> None:
    left, right = (surface_of(hemisphere) for hemisphere in head.hemispheres)
    name, unit = session.imaging.solver_name, session.imaging.solver.unit
    save_figure(
        source_map((left, right), values, unit=unit or name, title=f"{name}: {title}", marks=marks or ()),
        picture,
    )
