"""Which backend computes a task: the one that was asked for, or the fastest that is true. None is run that was not tried."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.backends.accuracy import LIMITS, Accuracy, Limits, accuracy_of
from rt_mmdf.backends.engine_cache import EngineCache
from rt_mmdf.backends.graphed import CudaRunner, why_no_gpu
from rt_mmdf.backends.interface import (
    BACKENDS,
    BackendName,
    BackendUnavailable,
    Float32,
    Precision,
    Runner,
    Task,
    Wanted,
    describe,
)
from rt_mmdf.backends.onnxruntime_backend import OnnxRuntimeProgram, OnnxRuntimeRunner, why_no_onnxruntime
from rt_mmdf.backends.tensorrt_backend import TensorRtProgram, TensorRtRunner, why_no_tensorrt
from rt_mmdf.backends.torch_backend import TorchRunner
from rt_mmdf.core.errors import SolverError

N_SAMPLES, N_ROUNDS, N_CALLS = 10, 9, 3
"""Of the measurement: samples of a hop at 1 kHz, rounds in which all take turns, calls in a round."""
WORTH = 0.8
"""Another backend is taken only if it needs less than this part of torch's time: what is as fast is decided for torch."""

logger = logging.getLogger(__name__)


def why_not(backend: BackendName) -> str | None:
    """What is missing on this machine for a backend, and the command that would install it; None where nothing is."""
    reasons = {"torch-cuda": why_no_gpu, "onnxruntime": why_no_onnxruntime, "tensorrt": why_no_tensorrt}
    return reasons[backend]() if backend in reasons else None


def precisions_of(backend: BackendName, task: Task) -> tuple[Precision, ...]:
    """In which a backend can compute a task; processors have no half precision that would be faster."""
    return task.precisions if backend in ("torch-cuda", "tensorrt") else ("fp32",)


@dataclass(frozen=True, eq=False)
class Trial:
    """What backends are tried on.

    samples : (n, n_channels)
    operands : of the task
    positions_mm : (n_sources, 3)
    of_windows : samples are windows, (n, n_channels * n_times), and moments those of their last columns: others are the
        limits, and one is timed where of samples a hop is
    """

    samples: Float32
    operands: tuple[Float32, ...]
    positions_mm: NDArray[np.floating]
    of_windows: bool = False

    @property
    def timed(self) -> tuple[str, int, int]:
        """What is timed, in words, how many rows it is, and how often in a round."""
        return ("1 window", 1, 1) if self.of_windows else (f"{N_SAMPLES} samples", N_SAMPLES, N_CALLS)


class Programs:
    """The forms of one task, each compiled when it is first run, and shared by the runners of it.

    Parameters
    ----------
    task : Task
    engines : where engines are kept; None: in the user's cache folder
    """

    def __init__(self, task: Task, engines: EngineCache | None = None) -> None:
        self.task = task
        self._kept = engines
        self._onnxruntime: OnnxRuntimeProgram | None = None
        self._engines: dict[Precision, TensorRtProgram] = {}

    def runner(self, backend: BackendName, precision: Precision = "fp32") -> Runner:
        """A runner with buffers of its own; BackendUnavailable or SolverError where there can be none."""
        task = self.task
        if precision not in precisions_of(backend, task):
            known = ", ".join(precisions_of(backend, task))
            raise SolverError(f"{task.name}: precision {precision!r} on {backend} seen; expected one of {known}.")
        if (reason := why_not(backend)) is not None:
            raise BackendUnavailable(f"backend {backend}: {reason}")
        if backend == "torch":
            return TorchRunner(task)
        if backend == "torch-cuda":
            return CudaRunner(task, precision)
        if backend == "onnxruntime":
            if self._onnxruntime is None:
                self._onnxruntime = OnnxRuntimeProgram(task)
            return OnnxRuntimeRunner(self._onnxruntime)
        return TensorRtRunner(self.tensorrt(precision))

    def tensorrt(self, precision: Precision) -> TensorRtProgram:
        """The engines of a precision."""
        if precision not in self._engines:
            self._engines[precision] = TensorRtProgram(self.task, precision, self._kept)
        return self._engines[precision]

    def limits(self, trial: Trial, precision: Precision) -> Limits:
        """What a backend must keep to on a trial."""
        return LIMITS[precision]

    def truth(self, trial: Trial) -> NDArray[np.float64]:
        """Moments of a trial in double precision on the processor."""
        import torch

        module = deepcopy(self.task.module("fp32")).double()  # not kept: it is as large as two networks
        with torch.inference_mode():
            given = [torch.from_numpy(values.astype(np.float64)) for values in (trial.samples, *trial.operands)]
            moments: NDArray[np.float64] = module(*given).numpy()
        return moments


@dataclass(frozen=True)
class Tried:
    """One backend on this machine.

    accuracy : None where it does not run
    ms : median of what was timed, a hop of 10 samples or a window; None where it was not measured
    problem : why it is not used; None where it can be
    """

    backend: BackendName
    precision: Precision
    device: str
    accuracy: Accuracy | None
    ms: float | None
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        accuracy = None if self.accuracy is None else self.accuracy.as_dict()
        return {**self.__dict__, "accuracy": accuracy}


@dataclass
class Choice:
    """What was chosen, and why; `fallen_back` says why it was given up for torch while it ran."""

    backend: BackendName
    precision: Precision
    device: str
    why: str
    automatic: bool
    tried: tuple[Tried, ...] = ()
    fallen_back: str | None = field(default=None)

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        return {
            "name": self.backend if self.fallen_back is None else "torch",
            "precision": self.precision if self.fallen_back is None else "fp32",
            "device": self.device if self.fallen_back is None else "cpu",
            "why": self.why,
            "fallen_back": self.fallen_back,
            "tried": [tried.as_dict() for tried in self.tried],
        }


def tried(runner: Runner, programs: Programs, trial: Trial, truth: NDArray[np.float64] | None = None) -> Tried:
    """Load a runner with the operands of a trial and see how true it is."""
    runner.load(*trial.operands)
    truth = programs.truth(trial) if truth is None else truth
    accuracy = accuracy_of(runner(trial.samples), truth, trial.positions_mm, of_windows=trial.of_windows)
    beyond = accuracy.beyond(programs.limits(trial, runner.precision))
    problem = None if beyond is None else f"not true enough against double precision: {beyond}"
    return Tried(runner.backend, runner.precision, runner.device, accuracy, None, problem)


def tried_runner(programs: Programs, trial: Trial, backend: BackendName, precision: Precision) -> tuple[Runner, Tried]:
    """A runner that was found to be true; SolverError (BackendUnavailable) where it is not, or cannot be had."""
    runner = programs.runner(backend, precision)
    outcome = tried(runner, programs, trial)
    if outcome.problem is not None:
        runner.close()
        raise SolverError(
            f"{programs.task.name} on {describe(backend, precision)} ({runner.device}): {outcome.problem}. It is not used. "
            'Set another precision, or backend = "torch", under [solver].'
        )
    return runner, outcome


def choose(programs: Programs, trial: Trial, wanted: Wanted = "auto", precision: Precision = "fp32") -> Choice:
    """The backend that was asked for, or with "auto" the fastest that is true on this machine.

    With "auto" the precision is that of GPUs; processors compute in single precision.

    Raises
    ------
    BackendUnavailable
        What was asked for is not there; the message has the command that would install it.
    SolverError
        It is not true enough, or its device fails.
    """
    if wanted != "auto":
        runner, outcome = tried_runner(programs, trial, wanted, precision)
        runner.close()
        return Choice(wanted, precision, outcome.device, "it was asked for", False, (outcome,))
    outcomes = survey(programs, trial, [(name, _offered(name, programs.task, precision)) for name in BACKENDS])
    own = next(outcome for outcome in outcomes if outcome.backend == "torch")
    if own.problem is not None or own.ms is None:
        raise SolverError(f"{programs.task.name} on torch: {own.problem}. Its weights are not fit for single precision.")
    able = [outcome for outcome in outcomes if outcome.problem is None and outcome.ms is not None]
    fastest = min(able, key=lambda outcome: (outcome.ms, BACKENDS.index(outcome.backend)))
    best = fastest if fastest.ms is not None and fastest.ms < WORTH * own.ms else own
    parts = [f"{describe(outcome.backend, outcome.precision)} {outcome.ms:.2f} ms" for outcome in able]
    absent = [f"no {outcome.backend} ({outcome.problem})" for outcome in outcomes if outcome.problem is not None]
    why = f"{trial.timed[0]}: {', '.join(parts)}; {'; '.join(absent) or 'all backends are there'}"
    return Choice(best.backend, best.precision, best.device, why, True, outcomes)


def _offered(backend: BackendName, task: Task, precision: Precision) -> Precision:
    return precision if precision in precisions_of(backend, task) else "fp32"


def survey(programs: Programs, trial: Trial, kinds: Sequence[tuple[BackendName, Precision]]) -> tuple[Tried, ...]:
    """Try and time backends; those that are true take turns, so that what else the machine does is shared by all."""
    outcomes: list[Tried] = []
    runners: dict[int, Runner] = {}
    truth = programs.truth(trial)
    for backend, precision in kinds:
        try:
            runner = programs.runner(backend, precision)
            outcomes.append(tried(runner, programs, trial, truth))
        except BackendUnavailable as error:
            problem = str(error).removeprefix(f"backend {backend}: ")
            outcomes.append(Tried(backend, precision, "", None, None, problem))
        except SolverError as error:
            outcomes.append(Tried(backend, precision, "", None, None, str(error)))
        else:
            runners[len(outcomes) - 1] = runner
    _, n_rows, n_calls = trial.timed
    hop = np.ascontiguousarray(trial.samples[-n_rows:])
    taken: dict[int, list[float]] = {i: [] for i in runners if outcomes[i].problem is None}
    for _ in range(N_ROUNDS):
        for i, times in taken.items():
            for _ in range(n_calls):
                began = time.perf_counter()
                runners[i](hop)
                times.append(time.perf_counter() - began)
    for runner in runners.values():
        runner.close()
    return tuple(
        Tried(**{**outcome.__dict__, "ms": 1e3 * float(np.median(taken[i]))}) if i in taken else outcome
        for i, outcome in enumerate(outcomes)
    )
