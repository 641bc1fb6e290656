"""The GPU's runners on a pretended GPU: buffers, pieces, the check of a capture, failures. The rest of CUDA needs a GPU.

The pretence: device memory is ordinary memory, and a captured graph runs again what was enqueued while it was captured.
TensorRT's engines are pretended by ONNX Runtime, which reads and writes the very addresses that were bound.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rt_mmdf.backends import graphed
from rt_mmdf.backends.engine_cache import EngineCache
from rt_mmdf.backends.graphed import CudaRunner, GraphedRunner
from rt_mmdf.backends.interface import MOMENTS, SAMPLES, SIZES, BackendUnavailable, GpuWatch, Task
from rt_mmdf.backends.tensorrt_backend import Library, TensorRtProgram, TensorRtRunner
from rt_mmdf.backends.torch_backend import TorchRunner
from rt_mmdf.core.errors import SolverError
from rt_mmdf.networks.fusion_graph import OPERANDS

Cases = Callable[[str], Any]
Near = Callable[[np.ndarray, np.ndarray], None]


class Graph:
    """Runs what was enqueued last while it was captured."""

    fail: Exception | None = None

    def __init__(self) -> None:
        self.run: Callable[[], None] = lambda: None

    def replay(self) -> None:
        if Graph.fail is not None:
            raise Graph.fail
        self.run()


class Event:
    """Tells the time of a clock that goes on by 1 ms with each record."""

    now = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self, stream: Any) -> None:
        Event.now += 1.0
        self.at = Event.now

    def synchronize(self) -> None:
        assert self.at is not None

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None
        assert end.at is not None
        return end.at - self.at


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A torch whose GPU is the processor; `empty` makes captures that hold nothing."""
    monkeypatch.setattr(Graph, "fail", None)
    how = SimpleNamespace(empty=False, capturing=None, no_memory=False, ranges=[])
    enqueue = GraphedRunner._run

    def run(self: GraphedRunner, slot: Any) -> None:
        enqueue(self, slot)
        if how.capturing is not None and not how.empty:
            how.capturing.run = lambda: enqueue(self, slot)

    @contextmanager
    def graph(captured: Graph, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"  # other threads may use the GPU meanwhile
        how.capturing = captured
        yield
        how.capturing = None

    def zeros(shape: Any, **given: Any) -> torch.Tensor:
        if how.no_memory:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 0 bytes free")
        return torch.zeros(shape)

    cuda = SimpleNamespace(
        is_available=lambda: True,
        get_device_name=lambda number: "Pretended GPU",
        Stream=lambda device: SimpleNamespace(synchronize=lambda: None, cuda_stream=7),
        device=lambda device: nullcontext(),
        stream=lambda stream: nullcontext(),
        graph=graph,
        CUDAGraph=Graph,
        Event=Event,
        nvtx=SimpleNamespace(range=lambda name: how.ranges.append(name) or nullcontext()),
        OutOfMemoryError=torch.cuda.OutOfMemoryError,
    )
    names = {"cuda": cuda, "zeros": zeros, "device": lambda kind, number: torch.device("cpu")}
    real = {name: getattr(torch, name) for name in ("from_numpy", "inference_mode", "backends", "version", "__version__")}
    monkeypatch.setattr(graphed, "torch", SimpleNamespace(**real, **names))
    monkeypatch.setattr(GraphedRunner, "_run", run)
    return how


@pytest.mark.parametrize("kind", ["mmdf", "fusion", "kernel"])
def test_any_number_of_samples_goes_through_in_pieces(kind: str, cases: Cases, pretended: SimpleNamespace) -> None:
    case = cases(kind)
    runner, other, plain = CudaRunner(case.task), CudaRunner(case.task), TorchRunner(case.task)
    other.load(*(2 * operand for operand in case.trial.operands))
    other(case.trial.samples[::-1].copy())  # has buffers of its own
    for made in (runner, plain):
        made.load(*case.trial.operands)
    assert (runner.device, runner.backend) == ("Pretended GPU", "torch-cuda")
    for n in (1, 2, SIZES[-1], SIZES[-1] + 1, 40, 3):
        samples = case.trial.samples[:n]
        said = runner(samples)
        np.testing.assert_allclose(said, plain(samples), rtol=1e-5, atol=1e-6 * np.abs(said).max())
    kept = said.copy()
    runner(-case.trial.samples)
    np.testing.assert_array_equal(said, kept)  # what was handed out is the caller's
    runner.close()


@pytest.mark.parametrize("nvtx", [False, True])
def test_a_watched_gpu_says_the_same_and_how_long_it_took(nvtx: bool, cases: Cases, pretended: SimpleNamespace) -> None:
    case = cases("mmdf")
    runner, watch = CudaRunner(case.task), GpuWatch(nvtx)
    runner.load(*case.trial.operands)
    before = runner(case.trial.samples[:20])
    assert watch.as_dict() is None
    assert not pretended.ranges
    runner.watch(watch)
    np.testing.assert_array_equal(runner(case.trial.samples[:20]), before)  # in two pieces
    found = watch.as_dict()
    assert found is not None
    assert (found["n"], found["p50"], found["max"]) == (2, 1.0, 1.0)
    assert found["stages"] == {n: {"copy in": 1.0, "compute": 1.0, "copy out": 1.0} for n in SIZES}
    assert pretended.ranges == ([f"mmdf, {n} samples" for n in (SIZES[-1], SIZES[-1])] if nvtx else [])


def test_a_capture_that_holds_nothing_is_refused(cases: Cases, pretended: SimpleNamespace) -> None:
    pretended.empty = True
    with pytest.raises(SolverError, match="the CUDA graph for 1 samples differs from the eager run by"):
        CudaRunner(cases("mmdf").task)


def test_what_the_gpu_raises_is_told_and_nothing_is_handed_out(
    cases: Cases, pretended: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases("mmdf")
    runner = CudaRunner(case.task)
    runner.load(*case.trial.operands)
    monkeypatch.setattr(Graph, "fail", RuntimeError("CUDA error: unspecified launch failure\nmore"))
    with pytest.raises(
        SolverError, match=r"mmdf on Pretended GPU: the GPU has failed \(CUDA error: unspecified launch"
    ) as told:
        runner(case.trial.samples)
    assert "more" not in str(told.value)
    monkeypatch.setattr(Graph, "fail", None)
    pretended.no_memory = True
    with pytest.raises(SolverError, match=r"GPU memory is exhausted \(CUDA out of memory.*nvidia-smi"):
        CudaRunner(case.task)


class Engine:
    """What TensorRT does with an engine, by ONNX Runtime; an engine is its graph."""

    def __init__(self, onnx: bytes, types: str = "FP32") -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.types = types
        self.addresses: dict[str, int] = {}
        self.fine = True

    def create_engine_inspector(self) -> Any:
        account = f'{{"Layers": [{{"Outputs": [{{"Format/Datatype": "Row major linear {self.types} format"}}]}}]}}'
        return SimpleNamespace(get_engine_information=lambda form: account)

    def create_execution_context(self) -> Engine:
        return self

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        tensors = {given.name: given.shape for given in self.session.get_inputs()}
        given = {name: self._at(name, shape) for name, shape in tensors.items()}
        (end,) = [said.name for said in self.session.get_outputs()]
        said = self.session.run([end], given)[0]
        self._at(end, said.shape)[...] = said
        return self.fine

    def _at(self, name: str, shape: Any) -> np.ndarray:
        where = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(where, tuple(shape))


class Graphs(TensorRtProgram):
    """Engines that are graphs."""

    def engine(self, n: int) -> bytes:
        return self.task.onnx(n, "fp32")


def pretended_library(engine: Callable[[bytes], Any]) -> Library:
    class Logger:
        INTERNAL_ERROR, ERROR = 0, 1

    module = SimpleNamespace(
        ILogger=Logger,
        LayerInformationFormat=SimpleNamespace(JSON=0),
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=engine),
    )
    return Library("tensorrt", "10.9", module)


@pytest.mark.usefixtures("onnx_is_there")
@pytest.mark.parametrize("kind", ["mmdf", "fusion", "kernel"])
def test_tensorrt_is_bound_to_the_buffers_by_name(
    kind: str, cases: Cases, pretended: SimpleNamespace, tmp_path: Path
) -> None:
    case = cases(kind)
    runner = TensorRtRunner(Graphs(case.task, "fp32", EngineCache(tmp_path), pretended_library(Engine)))
    plain = TorchRunner(case.task)
    for made in (runner, plain):
        made.load(*case.trial.operands)
    for n in (1, 5, 40):
        said = runner(case.trial.samples[:n])
        np.testing.assert_allclose(said, plain(case.trial.samples[:n]), rtol=1e-4, atol=1e-5 * np.abs(said).max())
    bound = runner._contexts[1].addresses
    assert set(bound) == {SAMPLES, MOMENTS, *case.task.operand_names}
    runner.close()


@pytest.mark.usefixtures("onnx_is_there")
def test_tensorrt_that_does_not_run_what_it_should_is_refused(
    cases: Cases, pretended: SimpleNamespace, tmp_path: Path
) -> None:
    task, cache = cases("mmdf").task, EngineCache(tmp_path)

    def runner(engine: Callable[[bytes], Any]) -> TensorRtRunner:
        return TensorRtRunner(Graphs(task, "fp32", cache, pretended_library(engine)))

    with pytest.raises(BackendUnavailable, match=r"tensorrt 10\.9 does not run its own engine on Pretended GPU"):
        runner(lambda onnx: None)
    with pytest.raises(SolverError, match=r"fp32 was asked for; the engine of tensorrt 10\.9 computes in FP16"):
        runner(lambda onnx: Engine(onnx, "FP16"))

    def failing(onnx: bytes) -> Engine:
        made = Engine(onnx)
        made.fine = False
        return made

    with pytest.raises(SolverError, match="TensorRT does not run"):
        runner(failing)


def test_a_captured_graph_says_the_same(looked: Any, windows: Task, near: Near, pretended: SimpleNamespace) -> None:
    case = looked["EEG alone"]
    runner = CudaRunner(windows)  # captured with its example: noise is no mesh
    runner.load(*case.operands)
    for i in range(2):
        near(runner(case.row(i)), case.said(i))


@pytest.mark.usefixtures("onnx_is_there")
def test_tensorrt_is_bound_by_the_names_of_the_operands(
    looked: Any, windows: Task, near: Near, pretended: SimpleNamespace, tmp_path: Path
) -> None:
    case = looked["MEG, some bad"]
    runner = TensorRtRunner(Graphs(windows, "fp32", EngineCache(tmp_path), pretended_library(Engine)))
    runner.load(*case.operands)
    near(runner(case.row(1)), case.said(1))
    assert set(runner._contexts[1].addresses) == {"window", "prior", *OPERANDS}
