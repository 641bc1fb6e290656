"""What fusion makes of a window, by every backend: the network's own answer, whatever channels are there."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.backends.choice import Programs, why_not
from rt_mmdf.backends.interface import Task
from rt_mmdf.networks.fusion import by_cholesky
from rt_mmdf.networks.fusion_graph import (
    CONDITION,
    WindowModule,
    inverse_by_products,
    schedule,
    split_row,
)

Arrays = tuple[np.ndarray, ...]


Near = Callable[[np.ndarray, np.ndarray], None]

SETS = ("all", "EEG alone", "MEG, some bad")


@given(
    size=st.integers(2, 100),
    seed=st.integers(0, 10**6),
    condition=st.floats(0, 5),
    scale=st.floats(-6, 6),
    flat=st.floats(0, 1),
)
@settings(max_examples=60)
def test_products_invert_any_positive_definite_matrix_as_well_as_its_cholesky_factor(
    size: int, seed: int, condition: float, scale: float, flat: float
) -> None:
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((size, size)))
    values = 10.0 ** (scale - condition * np.linspace(0, 1, size) ** flat)
    exact = (turn * values) @ turn.T
    matrix = torch.from_numpy((exact + exact.T) / 2).float()[None]
    truth = np.linalg.inv(matrix[0].double().numpy())
    off = {
        solve: np.linalg.norm(solve(matrix)[0].numpy() - truth) / np.linalg.norm(truth)
        for solve in (by_cholesky, inverse_by_products)
    }
    # either is wrong by rounding times the condition; the bound of the norms may be ten times the largest eigenvalue
    assert off[inverse_by_products] < 3e-7 * 10**condition + 1e-5
    double = inverse_by_products(matrix.double(), schedule(10 * CONDITION, 1e-15))[0].numpy()
    np.testing.assert_allclose(double, truth, rtol=0, atol=1e-9 * np.abs(truth).max())


def test_beyond_its_condition_the_inverse_is_too_small_and_nothing_diverges() -> None:
    values = torch.tensor([1.0, 1e-3, 1e-9])
    inverse = inverse_by_products(torch.diag(values)[None])[0].diagonal()
    torch.testing.assert_close(inverse[:2], 1 / values[:2], rtol=1e-4, atol=0)
    assert 0 < inverse[2] < 1e9
    assert len(schedule()) == 12
    assert len(schedule(10 * CONDITION)) <= 14


@pytest.mark.parametrize("channels", SETS)
def test_the_module_is_the_network_for_any_channels(channels: str, looked: Any, windows: Task, near: Near) -> None:
    case = looked[channels]
    assert windows.shapes == tuple(operand.shape for operand in case.operands)  # one graph serves all
    runner = Programs(windows).runner("torch")
    runner.load(*case.operands)
    for i in range(len(case.windows)):
        near(runner(case.row(i)), case.said(i))


@pytest.mark.parametrize("solve", [by_cholesky, inverse_by_products])
def test_either_inverse_is_true_against_double_precision(solve: Any, looked: Any, near: Near) -> None:
    case = looked["all"]
    double = WindowModule(deepcopy(case.network)).double()
    module = WindowModule(case.network, solve)
    operands = [torch.from_numpy(operand) for operand in case.operands]
    for i in range(len(case.windows)):
        row = torch.from_numpy(case.row(i))
        with torch.inference_mode():
            truth = double(row.double(), *(operand.double() for operand in operands)).numpy()
            near(module(row, *operands).numpy(), truth)


@pytest.mark.usefixtures("onnx_is_there")
@pytest.mark.parametrize("channels", SETS)
def test_onnxruntime_is_the_network_for_any_channels(channels: str, looked: Any, windows: Task, near: Near) -> None:
    case = looked[channels]
    runner = Programs(windows).runner("onnxruntime")
    runner.load(*case.operands)
    for i in range(len(case.windows)):
        near(runner(case.row(i)), case.said(i))


def test_what_is_said_is_the_prior(looked: Any, windows: Task, near: Near) -> None:
    case = looked["all"]
    runner = Programs(windows).runner("torch")
    runner.load(*case.operands)
    window = case.windows[:1]
    with torch.inference_mode():
        reduced = case.network.reduce(window[:, :, -1], window, case.prepared)
        prior = case.network.prior_of(*split_row(torch.from_numpy(runner(case.row(0)))), reduced)
        wanted = case.network.prior(window[:, :, -1], window, case.prepared)
    torch.testing.assert_close(prior.power.sum(), wanted.power.sum(), rtol=1e-3, atol=0)
    torch.testing.assert_close(prior.noise, wanted.noise, rtol=1e-3, atol=0)
    assert prior.atoms[0, 0] == wanted.atoms[0, 0]


def test_a_window_is_looked_at_by_itself_and_in_single_precision(windows: Task) -> None:
    assert (windows.sizes, windows.precisions) == ((1,), ("fp32",))
    with pytest.raises(ValueError, match="2 windows at once seen"):
        windows.onnx(2, "fp32")


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_is_there")
@pytest.mark.parametrize("backend", ["torch-cuda", "tensorrt"])
def test_on_a_gpu_it_is_the_network(backend: Any, looked: Any, windows: Task, near: Near) -> None:
    if (reason := why_not(backend)) is not None:
        pytest.skip(reason)
    case = looked["all"]
    with Programs(windows).runner(backend) as runner:
        runner.load(*case.operands)
        for i in range(len(case.windows)):
            near(runner(case.row(i)), case.said(i))
