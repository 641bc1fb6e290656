"""The real chain on this machine: a replay in a process of its own, imaged live, once for every combination."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import mne
import numpy as np
from pydantic import Field

from rt_mmdf.acquisition.device_lag import tell_lags
from rt_mmdf.acquisition.recording import read_recording
from rt_mmdf.app.imaging import Progress
from rt_mmdf.app.profiling.hops import INVALID, HopLog, HopTimes, cost_of_noting
from rt_mmdf.app.profiling.load import LoadMeter
from rt_mmdf.app.profiling.rows import Row, physics_of
from rt_mmdf.app.replayed import ReplayProcess, replayed_session
from rt_mmdf.app.session import START_UP_S, Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.backends.interface import Wanted
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import Settings, validate_settings
from rt_mmdf.headmodel.noise import AD_HOC_STD
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.solvers.artefact import default_model, find_model
from rt_mmdf.solvers.linear import LiveMethod

NOISE_S = 4.0  # of the simulated recording, which is played end to end
NOISE_LEVEL = 10.0  # times the sensors' own noise: the size of a brain at rest
NOISE_RATE = 1000.0
LOOK_S = 0.25  # between two samples of the load
SPARE_S = 90.0  # of room in the log, beside what is asked for
MOST_ROWS = 64
METHODS: tuple[LiveMethod, ...] = ("MNE", "dSPM", "sLORETA", "eLORETA", "LCMV")

Modalities = Literal["eeg+meg", "eeg", "meg"]
Sources = Literal["ico3", "ico4", "ico5"]


class ProfileSettings(Settings):
    """What is measured: every combination of these.

    solvers : classical inverses, and names or folders of models
    backends : that the models run on; classical inverses have none and are measured once
    nvtx : each call of a GPU is a range of NVTX
    hop_ms, chunks : as in a configuration; samples in a block of both streams
    rates : of both streams, Hz; empty: as recorded, or 1000 Hz
    modalities : empty: all that the recording has
    sources : of the template; empty: ico4, or the head of a model that is bound to one
    seconds : that count, of each
    recording, head, noise_cov : a file to replay in place of noise, and what belongs to it
    """

    solvers: tuple[str, ...] = Field(min_length=1)
    backends: tuple[Wanted, ...] = Field(("auto",), min_length=1)
    nvtx: bool = False
    hop_ms: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field((10.0,), min_length=1)
    chunks: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field((10,), min_length=1)
    rates: tuple[Annotated[float, Field(gt=0, le=1e5)], ...] = ()
    modalities: tuple[Modalities, ...] = ()
    sources: tuple[Sources, ...] = ()
    seconds: float = Field(10.0, ge=1, le=3600)
    budget_ms: float = Field(50.0, gt=0)
    recording: Path | None = None
    head: Path | None = None
    noise_cov: Path | None = None


@dataclass(frozen=True)
class Case:
    """One combination."""

    solver: str
    backend: Wanted
    hop_ms: float
    chunk: int
    rate: float | None
    modalities: Modalities
    sources: Sources | None

    @property
    def described(self) -> str:
        solver = self.solver if self.backend == "auto" else f"{self.solver} on {self.backend}"
        return f"{solver}, hop {self.hop_ms:g} ms"


def default_solvers() -> tuple[str, ...]:
    """The best model that ships, where it is at hand, and dSPM."""
    model = default_model()
    return ("dSPM",) if model is None else (model, "dSPM")


def cases_of(settings: ProfileSettings) -> list[Case]:
    """Every combination, those that share a replay one after the other.

    Raises
    ------
    ConfigurationError
        There are too many, or the recording lacks a modality that is asked for.
    RecordingError
        It cannot be read.
    ArtefactError
        There is no such model.
    """
    for solver in settings.solvers:
        if solver not in METHODS:
            find_model(solver)
    modalities: Sequence[Modalities] = settings.modalities
    if settings.recording is not None:
        has = set(read_recording(settings.recording).sensors)
        if not modalities:
            modalities = ("eeg+meg",) if len(has) == len(Modality) else (next(iter(has)).value,)
        for wanted in modalities:
            if lacking := [m for m in Modality if m.value in wanted.split("+") and m not in has]:
                raise ConfigurationError(
                    f"profile {settings.recording}: it has no {' and '.join(m.upper() for m in lacking)} channels, and "
                    f"--modality {wanted} needs them. Ask for --modality {' or '.join(m.value for m in has)}, or take "
                    "another recording."
                )
    combinations = itertools.product(
        settings.rates or (None,),
        settings.chunks,
        modalities or ("eeg+meg",),
        settings.sources or (None,),
        settings.hop_ms,
        settings.solvers,
        settings.backends,
    )
    cases = [
        Case(solver, "auto" if solver in METHODS else backend, hop, chunk, rate, m, sources)
        for rate, chunk, m, sources, hop, solver, backend in combinations
    ]
    cases = list(dict.fromkeys(cases))
    if len(cases) > MOST_ROWS:
        raise ConfigurationError(
            f"profile: {len(cases)} combinations of solver, backend, hop, block, rate, channels and sources are asked for, "
            f"and at most {MOST_ROWS} are measured in one run. Name fewer."
        )
    return cases


def run_profile(
    settings: ProfileSettings,
    transport: Transport,
    *,
    progress: Progress = lambda what, fraction: None,
    beside: Callable[[str], AbstractContextManager[Any]] = lambda name: nullcontext(),
    replay_words: Sequence[str] = (),
    folder: Path | None = None,
    keep_waiting: Callable[[float], None],
) -> list[Row]:
    """Measure every combination, one after the other; a KeyboardInterrupt ends it with the rows that are complete.

    Parameters
    ----------
    progress : called with what is being done and the fraction that is done
    beside : entered while a row is measured, with the name of its engine
    replay_words, folder : further words for the replay, and where it leaves its log; None: nowhere
    keep_waiting : called with the seconds to wait between two looks at a session

    Raises
    ------
    RtMmdfError
        A combination cannot be measured; the message says why and what to do.
    """
    cases = cases_of(settings)
    rows: list[Row] = []
    replay: ReplayProcess | None = None
    playing: object = None
    prefix = f"profile-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        work = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rt-mmdf-profile-")))
        running = stack.enter_context(ExitStack())
        try:
            for number, case in enumerate(cases):
                if (wanted := (case.rate, case.chunk, case.modalities)) != playing:
                    running.close()
                    prefix = f"profile-{uuid.uuid4().hex[:8]}"
                    replay = running.enter_context(_replay(settings, case, prefix, work, replay_words))
                    playing = wanted
                assert replay is not None
                share = _part_of(progress, number, len(cases), case.described)
                rows.append(
                    _measure(settings, case, transport, prefix, f"{prefix}-{number}", replay, share, beside, keep_waiting)
                )
        except KeyboardInterrupt:
            if not rows:
                raise
    return rows


def _part_of(progress: Progress, number: int, total: int, name: str) -> Progress:
    return lambda what, fraction: progress(f"{number + 1} of {total}: {name}: {what}", (number + fraction) / total)


def _replay(
    settings: ProfileSettings, case: Case, prefix: str, work: Path, more_words: Sequence[str]
) -> AbstractContextManager[ReplayProcess]:
    recording = settings.recording
    if recording is None:
        recording = work / "noise-raw.fif"
        _write_noise(recording, case.rate or NOISE_RATE)
    words = ["--loop", "inf", "--chunk", str(case.chunk), "--no-markers", *more_words]
    if case.rate is not None and settings.recording is not None:
        words += ["--eeg-rate", f"{case.rate:g}", "--meg-rate", f"{case.rate:g}"]
    if "+" not in case.modalities:
        words += ["--only", case.modalities]
    return ReplayProcess(recording, prefix, work, words, "profile")


def _write_noise(path: Path, sfreq: float) -> None:
    """Noise of realistic size on the 366 channels of the template."""
    info = build_template().info
    kinds = info.get_channel_types()
    scale = np.array([NOISE_LEVEL * AD_HOC_STD[kind] for kind in kinds])
    data = np.random.default_rng(0).standard_normal((len(kinds), round(NOISE_S * sfreq))) * scale[:, None]
    recorded = mne.create_info(info["ch_names"], sfreq, kinds)
    mne.io.RawArray(data, recorded, verbose="ERROR").save(path, overwrite=True, verbose="ERROR")


def _configuration(settings: ProfileSettings, case: Case, prefix: str, name: str) -> SessionSettings:
    solver: dict[str, Any] = {"method": case.solver}
    if case.solver not in METHODS:
        solver = {"model": case.solver, "backend": case.backend, "gpu_times": True, "nvtx": settings.nvtx}
    content, _ = replayed_session(
        prefix,
        solver,
        recording=settings.recording,
        head=settings.head,
        noise_cov=settings.noise_cov,
        spacing=case.sources,
    )
    content |= {"name": name, "hop_ms": case.hop_ms, "budget_ms": settings.budget_ms, "budget": {"measure": False}}
    content["acquisition"] = {m: own for m, own in content["acquisition"].items() if m in case.modalities.split("+")}
    if "bads" in content["preprocessing"] and settings.recording is not None:
        sensors = read_recording(settings.recording).sensors
        here = {ch for m in content["acquisition"] for ch in sensors[Modality(m)].ch_names}
        content["preprocessing"]["bads"] = [bad for bad in content["preprocessing"]["bads"] if bad in here]
    return validate_settings(content, SessionSettings, where=f"profile of {case.described}")


def _measure(
    settings: ProfileSettings,
    case: Case,
    transport: Transport,
    prefix: str,
    name: str,
    replay: ReplayProcess,
    progress: Progress,
    beside: Callable[[str], AbstractContextManager[Any]],
    keep_waiting: Callable[[float], None],
) -> Row:
    config = _configuration(settings, case, prefix, name)
    log = HopLog(math.ceil((settings.seconds + START_UP_S + SPARE_S) * 1e3 / case.hop_ms))
    began = time.perf_counter()
    session = Session(config, transport, progress=lambda what, fraction: progress(what, 0.3 * fraction), on_estimate=log)
    prepared_s = time.perf_counter() - began
    rings = {m.value: receiver.ring for m, receiver in session.intake.receivers.items()}
    log.watch({m: (lambda ring=ring: ring.n_waiting) for m, ring in rings.items()})  # type: ignore[misc]
    total = START_UP_S + settings.seconds
    started = transport.clock.now()
    with beside(name), session, LoadMeter(transport.clock.now) as meter:
        counting = math.nan
        while not transport.clock.now() - counting >= total:
            keep_waiting(LOOK_S)
            session.check()
            replay.check()
            if math.isnan(counting):
                counting = first_valid(log.times())
            elif transport.clock.now() - counting < START_UP_S:
                meter.begin()
            else:
                meter.sample()
            done = 0.0 if math.isnan(counting) else (transport.clock.now() - counting) / total
            progress("measuring", 0.3 + 0.7 * min(done, 1.0))
        status = session.status()
    times = log.times()
    start_up = ~(times.stamp("published") - counting >= START_UP_S)
    counted = times.part(~start_up)
    sampled_s = counted.seconds or 1.0
    cost_s = cost_of_noting(len(rings))
    intake, engine = session.intake, session.engine
    sampling_cores = meter.load.own_s / sampled_s
    return Row(
        case={
            "solver": session.imaging.solver_name,
            "backend": None if case.backend == "auto" else case.backend,
            "hop_ms": 1e3 * intake.hop / intake.sfreq,
            "chunk": case.chunk,
            "sfreq": intake.sfreq,
            "modalities": case.modalities,
            "n_sources": session.imaging.head.n_sources,
        },
        facts={
            "how": "measured here",
            "unit": session.imaging.solver.unit,
            "n_channels": len(session.imaging.channels),
            "head": session.imaging.head.name,
            "model": session.imaging.model_facts,
            "lost_samples": {m: stream.get("counts", {}).get("lost") for m, stream in status["streams"].items()},
            "hops_beyond_the_log": log.n_beyond,
        },
        budget_ms=settings.budget_ms,
        times=counted,
        start_up=times.part(start_up),
        prepared_s=prepared_s,
        first_estimate_s=counting - started,
        load=meter.load,
        physics=physics_of(
            hop_ms=1e3 * (intake.hop - 1) / intake.sfreq,
            chunk_ms={m.value: 1e3 * (case.chunk - 1) / r.sfreq for m, r in intake.receivers.items()},
            look_ahead_ms=1e3 * intake.aligner.look_ahead_s,
            filter_delay_ms=session.filter_delay_ms,
            window_ms=1e3 * engine.chain.imager.window_length / engine.sfreq,
            times=counted,
            device_lag=tell_lags(intake.lags),
        ),
        overhead={
            "note_us": 1e6 * cost_s,
            "cores": cost_s * len(counted) / sampled_s + sampling_cores,
            "cores_at_1000_hops": 1e3 * cost_s + sampling_cores,
        },
    )


def first_valid(times: HopTimes) -> float:
    """When the first hop that could be imaged was published; NaN before."""
    valid = np.flatnonzero((times.flags & INVALID) == 0)
    return float(times.stamp("published")[valid[0]]) if len(valid) else math.nan
