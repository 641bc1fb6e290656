"""Looks at windows by the backends: as true as torch or not used, and given up for torch where they fail."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from rt_mmdf.backends.accuracy import WINDOW_LIMITS, Accuracy, trial_windows, window_limits
from rt_mmdf.backends.choice import Programs, tried_runner
from rt_mmdf.backends.interface import Runner
from rt_mmdf.backends.onnxruntime_backend import OnnxRuntimeRunner
from rt_mmdf.backends.torch_backend import TorchRunner
from rt_mmdf.core.errors import SolverError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
from rt_mmdf.headmodel.whitener import make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.fusion import by_cholesky
from rt_mmdf.networks.fusion_graph import CONDITION, WindowModule, inverse_by_products
from rt_mmdf.solvers.artefact import Artefact, find_model, load_artefact, save_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.solvers.network import TrainedNetwork
from rt_mmdf.solvers.windows import EstimateRunner

SMALL = {"width": 8, "n_blocks": 1, "n_nodes": 64, "n_likely": 32, "k": 40, "n_times": 20}


@pytest.fixture(scope="module")
def artefact(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A small fusion with random weights."""
    head = template_head_ico3
    whitener = make_whitener(head.channels, head.ch_names, head.info, ad_hoc_noise_cov(head.channels))
    torch.manual_seed(1)
    network = build_network("fusion", SMALL, forward_arrays(head, whitener, head.ch_names))
    with torch.no_grad():
        for values in network.parameters():
            values += 0.05 * torch.randn_like(values)
    folder = tmp_path_factory.mktemp("fusion") / "fusion"
    return save_artefact(folder, network, head, ad_hoc_noise_cov(head.channels), name="small", card="")


def trained(artefact: Artefact, head: HeadModel, **changed: Any) -> TrainedNetwork:
    given = {"sfreq": 200.0, "refresh_ms": 5.0, **changed}
    return TrainedNetwork(artefact, head, head.channels, artefact.noise_cov, **given)


@pytest.fixture
def windows(artefact: Artefact, template_head_ico3: HeadModel) -> np.ndarray:
    """(3, 366, 40) whitened, every other column of them for the network."""
    arrays = trained(artefact, template_head_ico3).fit().arrays
    return np.repeat(trial_windows(arrays.leadfield, arrays.used, 3, 20), 2, axis=2)


def test_a_graph_of_all_channels_serves_those_that_are_left(artefact: Artefact, template_head_ico3: HeadModel) -> None:
    pytest.importorskip("onnxruntime")
    model = trained(artefact, template_head_ico3, backend="onnxruntime")
    names = template_head_ico3.ch_names
    for bads in ((), names[:30], names[306:]):
        found = model.window_trial(model.fit(bads))
        assert found is not None
        programs, trial = found
        runner, outcome = tried_runner(programs, trial, "onnxruntime", "fp32")
        assert isinstance(runner, EstimateRunner)
        assert (runner.backend, runner.device, outcome.problem) == ("onnxruntime", "cpu", None)
    assert len(model._window_programs) == 1


def test_few_columns_are_looked_at_too(artefact: Artefact, template_head_ico3: HeadModel) -> None:
    pytest.importorskip("onnxruntime")
    model = trained(artefact, template_head_ico3)
    fitted = model.fit()
    for n_columns in (1, 3, 11):
        windows = trial_windows(fitted.arrays.leadfield, fitted.arrays.used, 4, n_columns)
        found = model.window_trial(fitted, windows)
        assert found is not None
        assert tried_runner(*found, "onnxruntime", "fp32")[1].problem is None


def test_windows_are_looked_at_with_what_was_asked_for(
    artefact: Artefact, template_head_ico3: HeadModel, windows: np.ndarray
) -> None:
    pytest.importorskip("onnxruntime")
    said = {}
    for backend in ("torch", "onnxruntime"):
        model = trained(artefact, template_head_ico3, backend=backend)
        solver = model.build_operator().solver
        said[backend] = np.hstack([solver(window, 1) for window in windows])
    assert model.window_choice is not None
    assert (model.window_choice.backend, model.window_choice.fallen_back) == ("onnxruntime", None)
    off = np.linalg.norm(said["onnxruntime"] - said["torch"], axis=0) / np.linalg.norm(said["torch"], axis=0)
    assert np.median(off) < 1e-2


def test_looks_that_are_not_as_true_as_those_of_torch_are_not_used(
    artefact: Artefact,
    template_head_ico3: HeadModel,
    windows: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("onnxruntime")
    expected = trained(artefact, template_head_ico3).build_operator().solver(windows[0], 1)
    says = OnnxRuntimeRunner.__call__

    def wrong(self: OnnxRuntimeRunner, samples: np.ndarray) -> np.ndarray:
        said = says(self, samples)
        return said[:, ::-1].copy() if self._task.ends[0] == "window" else said

    monkeypatch.setattr(OnnxRuntimeRunner, "__call__", wrong)
    for backend in ("onnxruntime", "auto"):
        caplog.clear()
        model = trained(artefact, template_head_ico3, backend=backend)
        with caplog.at_level(logging.WARNING):
            operator = model.build_operator()
        choice = model.window_choice
        assert choice is not None
        if backend == "auto":
            assert choice.backend == "torch"
            assert "no onnxruntime (not true enough against double precision" in choice.why
        else:  # what every sample is imaged with is there, and windows stop no start
            assert choice.as_dict()["name"] == "torch"
            assert "not true enough" in (choice.fallen_back or "")
            assert "small: windows are looked at with torch on the processor" in caplog.text
        np.testing.assert_allclose(operator.solver(windows[0], 1), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("automatic", [True, False])
def test_a_device_that_fails_at_a_window_gives_way_unless_it_was_asked_for(
    automatic: bool,
    artefact: Artefact,
    template_head_ico3: HeadModel,
    windows: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = trained(artefact, template_head_ico3).build_operator().solver
    expected = np.hstack([plain(window, 1) for window in windows])
    broken: list[bool] = []

    class Device(TorchRunner):
        def __call__(self, samples: np.ndarray) -> np.ndarray:
            if broken and isinstance(self._module, WindowModule):
                raise SolverError("small, windows: the GPU has failed")
            return super().__call__(samples)

    def runner(self: Programs, backend: str, precision: str = "fp32") -> Runner:
        made = Device(self.task)
        made.backend = backend
        return made

    monkeypatch.setattr(Programs, "runner", runner)
    model = trained(artefact, template_head_ico3, backend="onnxruntime")
    solver = model.build_operator().solver
    assert model.choice is not None
    assert model.window_choice is not None
    if automatic:
        model.choice.automatic = True
        solver = model.build_operator().solver
    said = [solver(windows[0], 1)]
    broken.append(True)
    if not automatic:
        with pytest.raises(SolverError, match="the GPU has failed"):
            solver(windows[1], 1)
        return
    said += [solver(window, 1) for window in windows[1:]]
    off = np.linalg.norm(np.hstack(said) - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert off[0] < 0.1
    np.testing.assert_allclose(off[1:], 0, atol=1e-6)  # the very window that failed is looked at by torch
    assert model.window_choice.as_dict()["name"] == "torch"
    assert "the GPU has failed" in (model.window_choice.fallen_back or "")
    assert model.choice.fallen_back is None


def test_nobody_is_held_to_more_than_torch_keeps_to() -> None:
    true, loose = Accuracy(1e-4, 0.9999, 0.0), Accuracy(0.05, 0.9, 12.0)
    assert Accuracy(9e-3, 0.995, 4.0).beyond(window_limits(true)) is None
    assert Accuracy(2e-2, 0.995, 0.0).beyond(window_limits(true)) is not None
    assert Accuracy(9e-2, 0.85, 12.0).beyond(window_limits(loose)) is None
    assert Accuracy(0.2, 0.85, 12.0).beyond(window_limits(loose)) is not None
    assert loose.beyond(window_limits(loose)) is None
    nothing = Accuracy(float("inf"), float("-inf"), float("inf"))  # NaN was said
    assert nothing.beyond(window_limits(nothing)) is not None


@pytest.mark.slow
def test_the_shipped_model_asks_for_conditions_that_products_invert() -> None:
    pytest.importorskip("onnxruntime")
    artefact = load_artefact(find_model("fusion"))
    head = artefact.load_head()
    model = TrainedNetwork(artefact, head, head.channels, artefact.noise_cov, artefact.projs, sfreq=1000.0, refresh_ms=100.0)
    fitted = model.fit()
    windows = trial_windows(fitted.arrays.leadfield, fitted.arrays.used, 12, artefact.n_times)
    bounds = []

    def watched(matrices: torch.Tensor) -> torch.Tensor:
        values = torch.linalg.eigvalsh(matrices[0].double())
        norms = matrices[0].norm(), matrices[0].abs().sum(dim=1).max()
        bounds.append(float(min(norms) / values[0]))
        exact = torch.linalg.inv(matrices.double())
        off = (inverse_by_products(matrices).double() - exact).norm() / exact.norm()
        assert off < 1e-3
        return by_cholesky(matrices)

    with torch.inference_mode():
        for gain in (1.0, 10.0, 100.0):  # up to 60 dB
            for window in torch.from_numpy(gain * windows)[:, None]:
                reduced = model.network.reduce(window[:, :, -1], window, fitted.prepared)
                model.network.look(reduced, fitted.prepared.for_windows, watched)
    assert max(bounds) < CONDITION / 2
    found = model.window_trial(fitted, windows)
    assert found is not None
    accuracy = tried_runner(*found, "onnxruntime", "fp32")[1].accuracy
    assert accuracy is not None
    assert accuracy.beyond(WINDOW_LIMITS) is None
