"""Every backend says what the network says, on every network, for any samples; and what is not true is not run."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.backends.accuracy import LIMITS, accuracy_of
from rt_mmdf.backends.choice import why_not
from rt_mmdf.backends.interface import SIZES, BackendName, Precision
from rt_mmdf.networks.pictures import PictureNetwork, PreparedPictures
from rt_mmdf.solvers.tasks import picture_operands

Cases = Callable[[str], Any]
PICTURES = ("mmdf", "mmdf-eeg", "mmdf-meg", "convdip")
KINDS = (*PICTURES, "fusion", "kernel")


@pytest.mark.parametrize("kind", PICTURES)
def test_the_module_of_a_task_is_the_network(kind: str, cases: Cases) -> None:
    case = cases(kind)
    given = torch.from_numpy(case.trial.samples)
    operands = [torch.from_numpy(operand) for operand in case.trial.operands]
    expected = case.network(given, None, case.prepared).moments
    torch.testing.assert_close(case.task.module("fp32")(given, *operands), expected, rtol=1e-6, atol=0)


def test_the_factors_of_a_prior_are_its_estimate(cases: Cases) -> None:
    case = cases("fusion")
    runner = case.programs.runner("torch")
    runner.load(*case.trial.operands)
    window = torch.from_numpy(np.ascontiguousarray(case.trial.samples[-20:].T))[None]
    prior = case.network.prior(window[:, :, -1], window, case.prepared)
    first, second = (factor.numpy() for factor in case.network.factors(prior, case.prepared))
    runner.load(first, second)
    expected = case.network.estimate(torch.from_numpy(case.trial.samples), prior, case.prepared).moments.numpy()
    assert np.abs(runner(case.trial.samples) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.usefixtures("onnx_is_there")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(n=st.integers(1, 40), seed=st.integers(0, 1000), gain=st.floats(1e-3, 1e3), gone=st.sampled_from([0, 1, 24, 30]))
def test_onnxruntime_is_torch(kind: str, cases: Cases, n: int, seed: int, gain: float, gone: int) -> None:
    case = cases(kind)
    rng = np.random.default_rng(seed)
    samples = (gain * rng.standard_normal((n, case.task.n_in))).astype(np.float32)
    samples[:, -gone or len(samples[0]) :] = 0
    operands = case.trial.operands
    if isinstance(case.network, PictureNetwork):
        there = torch.ones(case.task.n_in)
        there[-gone or len(there) :] = 0
        operands = picture_operands(PreparedPictures(there, 2.0 + seed))
    said = []
    for backend in ("torch", "onnxruntime"):
        runner = case.programs.runner(backend)
        runner.load(*operands)
        said.append(runner(samples))
    assert said[1].dtype == np.float32
    assert np.isfinite(said[0]).all()
    np.testing.assert_allclose(said[1], said[0], rtol=1e-4, atol=1e-5 * np.abs(said[0]).max() + 1e-30)


@pytest.mark.usefixtures("onnx_is_there")
@pytest.mark.parametrize("kind", KINDS)
def test_those_of_the_processor_are_true_against_double_precision(kind: str, cases: Cases) -> None:
    case = cases(kind)
    truth = case.programs.truth(case.trial)
    assert truth.dtype == np.float64
    for backend in ("torch", "onnxruntime"):
        runner = case.programs.runner(backend)
        runner.load(*case.trial.operands)
        accuracy = accuracy_of(runner(case.trial.samples), truth, case.trial.positions_mm)
        assert accuracy.beyond(LIMITS["fp32"]) is None


@pytest.mark.parametrize("kind", PICTURES)
def test_half_precision_keeps_to_its_limits_whatever_comes(kind: str, cases: Cases) -> None:
    case = cases(kind)
    module = case.task.module("fp16")
    operands = [torch.from_numpy(operand) for operand in case.trial.operands]
    for gain in (1.0, 1e4):  # an artefact of ten thousand standard deviations does not overflow
        samples = np.float32(gain) * case.trial.samples
        said = module(torch.from_numpy(samples), *operands).numpy()
        whole = deepcopy(case.task.module("fp32")).double()
        truth = whole(*(torch.from_numpy(values.astype(np.float64)) for values in (samples, *case.trial.operands))).numpy()
        assert accuracy_of(said, truth, case.trial.positions_mm).beyond(LIMITS["fp16"]) is None


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_is_there")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
@pytest.mark.parametrize("backend", ["torch-cuda", "tensorrt"])
def test_those_of_the_gpu_are_true_for_any_number_of_samples(
    backend: BackendName, precision: Precision, kind: str, cases: Cases
) -> None:
    if (reason := why_not(backend)) is not None:
        pytest.skip(reason)
    case = cases(kind)
    if precision not in case.task.precisions:
        pytest.skip(f"{kind} is not computed in {precision}")
    truth = case.programs.truth(case.trial)
    with case.programs.runner(backend, precision) as runner, case.programs.runner(backend, precision) as other:
        other.load(*(2 * operand for operand in case.trial.operands))
        other(case.trial.samples)  # shares the GPU, but no buffers
        runner.load(*case.trial.operands)
        for n in (1, SIZES[-1], SIZES[-1] + 1, len(truth)):
            said = runner(case.trial.samples[-n:])
            assert accuracy_of(said, truth[-n:], case.trial.positions_mm).beyond(LIMITS[precision]) is None
