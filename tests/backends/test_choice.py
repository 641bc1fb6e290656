"""The backend that was asked for or the fastest that is true; what is not true or not there is told and not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rt_mmdf.backends import choice as choice_module
from rt_mmdf.backends.accuracy import LIMITS, Accuracy, accuracy_of
from rt_mmdf.backends.choice import Programs, choose, survey, tried_runner
from rt_mmdf.backends.interface import BackendName, BackendUnavailable, Precision, Runner
from rt_mmdf.backends.torch_backend import RunnerBackend, TorchBackend, TorchRunner
from rt_mmdf.core.errors import SolverError

Cases = Callable[[str], Any]


class Other(TorchRunner):
    """torch under another name, wrong by a part."""

    def __init__(self, task: Any, backend: BackendName, wrong: float = 0.0) -> None:
        super().__init__(task)
        self.backend = backend
        self.wrong = wrong
        self.closed = False

    def __call__(self, samples: Any) -> Any:
        moments = super().__call__(samples)
        return moments + self.wrong * np.abs(moments).max() * np.random.default_rng(1).standard_normal(moments.shape)

    def close(self) -> None:
        self.closed = True


class Lab(Programs):
    """Some backends that are there, each so wrong; the others are not."""

    def __init__(self, task: Any, **there: float | Exception) -> None:
        super().__init__(task)
        self.there = {name.replace("_", "-"): wrong for name, wrong in there.items()}
        self.made: list[Other] = []

    def runner(self, backend: BackendName, precision: Precision = "fp32") -> Runner:
        if backend == "torch":
            return TorchRunner(self.task)
        wrong = self.there.get(backend, BackendUnavailable(f"backend {backend}: pip install {backend}"))
        if isinstance(wrong, Exception):
            raise wrong
        self.made.append(Other(self.task, backend, wrong))
        return self.made[-1]


def clock(monkeypatch: pytest.MonkeyPatch, **taken: float) -> None:
    """So much time goes by with each call, by the backend's name."""
    now, says = [0.0], TorchRunner.__call__

    def call(self: TorchRunner, samples: Any) -> Any:
        now[0] += taken.get(self.backend.replace("-", "_"), 1.0)
        return says(self, samples)

    monkeypatch.setattr(TorchRunner, "__call__", call)
    monkeypatch.setattr(choice_module.time, "perf_counter", lambda: now[0])


def test_auto_takes_the_fastest_that_is_true(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases("mmdf")
    clock(monkeypatch, torch=3e-3, onnxruntime=1e-3, torch_cuda=2e-4, tensorrt=1e-4)
    lab = Lab(case.task, onnxruntime=0.0, tensorrt=1e-2)
    chosen = choose(lab, case.trial)
    assert (chosen.backend, chosen.automatic, chosen.fallen_back) == ("onnxruntime", True, None)
    assert "torch 3.00 ms, onnxruntime 1.00 ms" in chosen.why
    assert "no torch-cuda (pip install torch-cuda)" in chosen.why
    assert "no tensorrt (not true enough against double precision: relative L2 error" in chosen.why
    assert all(runner.closed for runner in lab.made)
    told = chosen.as_dict()
    assert (told["name"], told["device"], len(told["tried"])) == ("onnxruntime", "cpu", 4)
    assert told["tried"][0]["accuracy"]["relative_l2"] < LIMITS["fp32"].relative_l2


def test_what_is_as_fast_is_decided_for_torch(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases("mmdf")
    clock(monkeypatch, torch=1e-3, onnxruntime=0.85e-3)
    assert choose(Lab(case.task, onnxruntime=0.0), case.trial).backend == "torch"


def test_a_device_that_fails_at_the_trial_is_left_out(cases: Cases) -> None:
    case = cases("mmdf")
    gone = SolverError("mmdf on NVIDIA H100: GPU memory is exhausted")
    chosen = choose(Lab(case.task, torch_cuda=gone), case.trial)
    assert chosen.backend == "torch"
    assert "GPU memory is exhausted" in chosen.why
    with pytest.raises(SolverError, match="GPU memory is exhausted"):
        choose(Lab(case.task, torch_cuda=gone), case.trial, "torch-cuda")


def test_what_was_asked_for_is_taken_or_the_start_stops(cases: Cases) -> None:
    case = cases("mmdf")
    chosen = choose(Lab(case.task, onnxruntime=0.0), case.trial, "onnxruntime")
    assert (chosen.backend, chosen.why, chosen.automatic) == ("onnxruntime", "it was asked for", False)
    with pytest.raises(BackendUnavailable, match="pip install tensorrt"):
        choose(Lab(case.task), case.trial, "tensorrt")
    with pytest.raises(SolverError, match=r"mmdf on tensorrt .*not true enough .*relative L2 error .* at most 0.0001"):
        choose(Lab(case.task, tensorrt=1e-2), case.trial, "tensorrt")
    with pytest.raises(SolverError, match="precision 'fp16' on torch seen; expected one of fp32"):
        Programs(case.task).runner("torch", "fp16")


def test_missing_packages_are_told_with_the_command(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    find = choice_module.why_no_onnxruntime.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "onnxruntime" else find(name, *more))
    with pytest.raises(BackendUnavailable, match=r"onnxruntime not installed. Install: pip install 'rt-mmdf\[onnx\]'"):
        Programs(cases("mmdf").task).runner("onnxruntime")
    assert choose(Programs(cases("mmdf").task), cases("mmdf").trial).backend == "torch"


def test_backends_that_are_there_take_turns(cases: Cases) -> None:
    case = cases("kernel")
    outcomes = survey(Lab(case.task, tensorrt=0.0), case.trial, [("torch", "fp32"), ("tensorrt", "fp32")])
    assert [outcome.problem for outcome in outcomes] == [None, None]
    assert all(outcome.ms is not None and outcome.ms > 0 for outcome in outcomes)


def test_a_device_that_fails_while_it_images_gives_way_without_a_wrong_estimate(cases: Cases) -> None:
    case = cases("fusion")
    plain = TorchBackend(case.network, case.prepared)
    window = np.ascontiguousarray(case.trial.samples[:20].T)
    context, later = plain.context(window), plain.context(2 * window)
    runner, told = Other(case.task, "torch-cuda"), []

    def spare(error: SolverError) -> Runner:
        told.append(str(error))
        return TorchRunner(case.task)

    backend = RunnerBackend(case.network, case.prepared, runner, None, spare)
    strict = RunnerBackend(case.network, case.prepared, runner)
    np.testing.assert_array_equal(backend.image(case.trial.samples, context), plain.image(case.trial.samples, context))
    strict.image(case.trial.samples, context)

    def fail(self: Any, samples: Any) -> Any:
        raise SolverError("the GPU has failed (CUDA error: an illegal memory access)")

    runner.__class__ = type("Failing", (Other,), {"__call__": fail})
    for seen in (context, later):  # the very hop that failed is imaged
        np.testing.assert_array_equal(backend.image(case.trial.samples, seen), plain.image(case.trial.samples, seen))
    assert len(told) == 1
    with pytest.raises(SolverError, match="illegal memory access"):
        strict.image(case.trial.samples, context)


def test_runners_of_one_program_keep_their_own_operands(cases: Cases) -> None:
    case = cases("mmdf")
    lab = Programs(case.task)
    first, second = (tried_runner(lab, case.trial, "torch", "fp32")[0] for _ in range(2))
    there, unit = case.trial.operands
    second.load(there, 3 * unit)
    np.testing.assert_allclose(second(case.trial.samples), 3 * first(case.trial.samples), rtol=1e-5)


def accuracy(said: Any, truth: Any, positions: Any = ((0.0, 0, 0), (10.0, 0, 0), (30.0, 0, 0))) -> Accuracy:
    return accuracy_of(np.array(said, float), np.array(truth, float), np.array(positions))


def test_accuracy_is_what_it_says() -> None:
    truth = [[1.0, 0, 0], [0, 2.0, 0], [0, 0, 4.0]]
    assert accuracy(truth, truth) == Accuracy(0.0, pytest.approx(1.0), 0.0)
    wrong = accuracy([[1.0, 0, 0], [0, 2.0, 0], [5.0, 0, 4.0]], truth)
    assert (wrong.relative_l2, wrong.peak_mm) == (pytest.approx(5 / 4), 30.0)
    assert wrong.correlation < 0.9
    tie = accuracy([[1.0, 1.001, 0]], [[1.0, 0.995, 0]])  # either of the two is the peak
    assert tie.peak_mm == 0.0
    for bad in ([[np.nan, 0, 0]], [[np.inf, 0, 0]]):
        assert accuracy(bad, [[1.0, 0, 0]]).beyond(LIMITS["fp16"]) is not None
    silent = accuracy([[0.0, 0, 0]], [[1.0, 0, 0]])
    assert "relative L2 error 1" in (silent.beyond(LIMITS["fp16"]) or "")
    stale = accuracy([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]], truth)  # a stream that stands still
    assert stale.beyond(LIMITS["fp16"]) is not None


def test_of_windows_three_quarters_are_held() -> None:
    positions, true = np.array(((0.0, 0, 0), (10.0, 0, 0), (30.0, 0, 0))), [1.0, 0, 0]

    def seen(n_off: int) -> Accuracy:
        said = np.array(n_off * [[0.0, 3.0, 0]] + (4 - n_off) * [true])
        return accuracy_of(said, np.array(4 * [true]), positions, of_windows=True)

    assert (seen(1).relative_l2, seen(1).peak_mm) == (0.0, 0.0)
    assert (seen(2).relative_l2, seen(2).peak_mm) == (pytest.approx(10**0.5), 10.0)
