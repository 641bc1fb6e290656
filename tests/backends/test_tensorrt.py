"""TensorRT without a GPU: graphs are parsed, typed, built and kept for real; what must not be loaded is not."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rt_mmdf.backends import tensorrt_backend
from rt_mmdf.backends.choice import Programs, why_not
from rt_mmdf.backends.engine_cache import EngineCache, EngineKey
from rt_mmdf.backends.interface import BackendUnavailable, Precision, Task
from rt_mmdf.backends.tensorrt_backend import Library, TensorRtProgram, find_library, types_of
from rt_mmdf.core.errors import SolverError
from rt_mmdf.networks.fusion_graph import OPERANDS

Cases = Callable[[str], Any]
KINDS = ("mmdf", "mmdf-eeg", "mmdf-meg", "convdip", "fusion", "kernel")


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        importlib.import_module("onnx")
        return find_library()
    except (ImportError, BackendUnavailable) as error:
        pytest.skip(str(error))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "user" / "engines")


def network_of(program: TensorRtProgram, n: int) -> tuple[Any, ...]:
    """Parsed and checked; what must outlive the network comes with it."""
    trt = program.library.module
    log = tensorrt_backend._Messages(trt)
    builder = trt.Builder(log.sink)
    return (*program.parse(program.task.onnx(n, program.precision), builder, log), builder, log)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_network_is_strongly_typed_and_built(
    kind: str, precision: Precision, cases: Cases, library: Library, cache: EngineCache
) -> None:
    task = cases(kind).task
    if precision not in task.precisions:
        with pytest.raises(SolverError, match=f"precision '{precision}' seen; it can be computed in fp32, tf32"):
            TensorRtProgram(task, precision, cache, library)
        return
    program = TensorRtProgram(task, precision, cache, library)
    trt = library.module
    network, *_ = network_of(program, 3)
    ends = [network.get_input(i) for i in range(network.num_inputs)] + [network.get_output(0)]
    assert [tensor.name for tensor in ends] == ["samples", *task.operand_names, "moments"]
    assert {tensor.dtype for tensor in ends} == {trt.DataType.FLOAT}
    assert tuple(ends[0].shape) == (3, task.n_in)
    assert tuple(ends[-1].shape) == (3, task.n_out)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    products = [layer for layer in layers if str(layer.type).rpartition(".")[2] in tensorrt_backend.PRODUCTS]
    n_products = {"mmdf": 6, "mmdf-eeg": 5, "mmdf-meg": 5, "convdip": 3, "fusion": 2, "kernel": 1}[kind]
    assert len(products) == n_products
    assert {layer.get_output(0).dtype for layer in products} == {
        trt.DataType.HALF if precision == "fp16" else trt.DataType.FLOAT
    }
    assert len(program.engine(3)) > 1000
    assert program.n_built == 1


def test_what_is_done_with_windows_is_strongly_typed_and_built(windows: Task, library: Library, cache: EngineCache) -> None:
    program = TensorRtProgram(windows, "fp32", cache, library)
    trt = library.module
    network, *_ = network_of(program, 1)
    ends = [network.get_input(i) for i in range(network.num_inputs)] + [network.get_output(0)]
    assert [tensor.name for tensor in ends] == ["window", *OPERANDS, "prior"]
    assert {tensor.dtype for tensor in ends} == {trt.DataType.FLOAT}
    assert tuple(ends[-1].shape) == (1, windows.n_out)
    assert len(program.engine(1)) > 1000


def test_what_was_built_is_kept_for_its_own_user_alone_and_found_again(
    cases: Cases, library: Library, cache: EngineCache
) -> None:
    task = cases("mmdf").task
    engine = TensorRtProgram(task, "fp32", cache, library).engine(2)
    again = TensorRtProgram(task, "fp32", EngineCache(cache.folder), library)
    assert again.engine(2) == engine
    assert again.n_built == 0
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in cache.folder.iterdir()} == {0o600}
    assert len(list(cache.folder.iterdir())) == 2
    # another number of samples, precision or network is another engine
    assert again.engine(1) != engine
    assert TensorRtProgram(task, "fp16", cache, library).engine(2) != engine
    TensorRtProgram(cases("kernel").task, "fp32", cache, library).engine(2)
    assert len(list(cache.folder.iterdir())) == 8


KEY = EngineKey("0" * 64, "tensorrt", "10.9.0", "NVIDIA H100", "570.1", "fp32", (1, 366, 5124))


def entry(cache: EngineCache) -> tuple[Path, Path]:
    cache.keep(KEY, b"an engine")
    assert cache.load(KEY) == b"an engine"
    return cache.folder / f"{KEY.name}.engine", cache.folder / f"{KEY.name}.json"


def refused(cache: EngineCache, caplog: pytest.LogCaptureFixture, why: str) -> None:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert cache.load(KEY) is None
    assert why in caplog.text
    assert "is refused" in caplog.text
    assert "built again" in caplog.text


def test_a_tampered_engine_is_refused(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    engine, facts = entry(cache)
    engine.write_bytes(b"an Engine")
    refused(cache, caplog, "its SHA-256 is")
    entry(cache)
    facts.write_text("{")
    refused(cache, caplog, "Expecting property name")
    entry(cache)
    facts.write_text("[]")
    refused(cache, caplog, "another graph, library, GPU or driver")
    entry(cache)
    engine.unlink()
    assert cache.load(KEY) is None  # half an entry is none


def test_what_others_could_have_written_is_refused(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    engine, facts = entry(cache)
    engine.chmod(0o622)
    refused(cache, caplog, "its file .engine has mode 622")
    entry(cache)
    facts.chmod(0o640)
    refused(cache, caplog, "its file .json has mode 640")
    entry(cache)
    cache.folder.chmod(0o770)
    refused(cache, caplog, "the folder has mode 770")
    cache.folder.chmod(0o700)
    elsewhere = cache.folder.parent / "elsewhere"
    engine.rename(elsewhere)
    engine.symlink_to(elsewhere)
    refused(cache, caplog, "symbolic link")
    linked = EngineCache(cache.folder.parent / "linked")
    linked.folder.symlink_to(cache.folder)
    refused(linked, caplog, "the folder is no folder of its own")


def test_what_another_user_wrote_is_refused(
    cache: EngineCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(cache)
    own = cache.folder.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: own + 1)
    refused(cache, caplog, f"the folder belongs to user {own}, not to {own + 1}")
    with caplog.at_level(logging.WARNING):
        cache.keep(KEY, b"another engine")
    assert "cannot be written" in caplog.text
    monkeypatch.undo()
    assert cache.load(KEY) == b"an engine"


@pytest.mark.parametrize(
    "changed",
    [
        {"onnx_sha256": "1" * 64},
        {"module": "tensorrt_rtx"},
        {"version": "11.0.0"},
        {"gpu": "NVIDIA H200"},
        {"driver": "580.2"},
        {"precision": "tf32"},
        {"shape": (16, 366, 5124)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_an_engine_of_another_machine_or_graph_is_not_found_nor_taken(
    changed: dict[str, Any], cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(KEY, **changed)
    engine, facts = entry(cache)
    assert cache.load(other) is None
    # copied over the name of the other one, it is still what it says it is
    for path in (engine, facts):
        copy = cache.folder / f"{other.name}{path.suffix}"
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        assert cache.load(other) is None
    assert "another graph, library, GPU or driver" in caplog.text


def test_another_graph_has_another_key(cases: Cases, library: Library, cache: EngineCache) -> None:
    program = TensorRtProgram(cases("mmdf").task, "fp32", cache, library)
    onnx = program.task.onnx(1, "fp32")
    assert program.task.onnx(1, "fp32") == onnx  # the same bytes each time, or nothing would be found again
    key = program.key(1, onnx)
    assert key.onnx_sha256 == hashlib.sha256(onnx).hexdigest()
    assert program.key(1, onnx[:-1] + b"x").name != key.name
    assert (key.module, key.version) == (library.name, library.version)


def test_a_cache_that_cannot_be_written_is_told_and_does_not_matter(
    tmp_path: Path, cases: Cases, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert TensorRtProgram(cases("kernel").task, "fp32", EngineCache(tmp_path / "file" / "engines"), library).engine(1)
    assert "nothing is kept" in caplog.text


def test_a_graph_that_it_does_not_take_is_told(cases: Cases, library: Library, cache: EngineCache) -> None:
    task = replace(cases("kernel").task, onnx=lambda n, precision: b"no graph")
    with pytest.raises(SolverError, match="does not take its ONNX graph"):
        TensorRtProgram(task, "fp32", cache, library).engine(1)
    # single precision where half is claimed
    claimed = replace(cases("mmdf").task, onnx=lambda n, precision: cases("mmdf").task.onnx(n, "fp32"))
    with pytest.raises(SolverError, match=r"of DataType.HALF in fp16 are not: .* is DataType.FLOAT"):
        TensorRtProgram(claimed, "fp16", cache, library).engine(1)


def test_what_is_missing_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, cases: Cases) -> None:
    monkeypatch.setattr(tensorrt_backend, "MODULES", ("no_tensorrt", "no_tensorrt_rtx"))
    assert "no_tensorrt or no_tensorrt_rtx not installed" in (why_not("tensorrt") or "")
    with pytest.raises(BackendUnavailable, match=r"pip install 'rt-mmdf\[tensorrt\]'"):
        Programs(cases("mmdf").task).runner("tensorrt")
    with pytest.raises(BackendUnavailable, match="no_tensorrt is not installed"):
        find_library(("no_tensorrt",))


def test_a_version_that_is_too_old_or_broken_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(tensorrt_backend.OLDEST, "old_trt", 10)
    monkeypatch.setitem(tensorrt_backend.OLDEST, "broken_trt", 10)
    (tmp_path / "old_trt.py").write_text('__version__ = "8.6.1"\n')
    (tmp_path / "broken_trt.py").write_text('raise OSError("libnvinfer.so.10: cannot open shared object file")\n')
    with pytest.raises(BackendUnavailable) as caught:
        find_library(("old_trt", "broken_trt"))
    assert "old_trt 8.6.1 is too old, 10 or newer is expected" in str(caught.value)
    assert "libnvinfer.so.10" in str(caught.value)
    new = types.ModuleType("new_trt")
    new.__version__ = "11.0.0.1"
    new.__spec__ = importlib.machinery.ModuleSpec("new_trt", None)
    monkeypatch.setitem(sys.modules, "new_trt", new)
    monkeypatch.setitem(tensorrt_backend.OLDEST, "new_trt", 10)
    assert find_library(("old_trt", "new_trt")).version == "11.0.0.1"


def test_without_a_gpu_it_is_said_what_is_missing(cases: Cases) -> None:
    if why_not("torch-cuda") is None:
        pytest.skip("there is a GPU")
    for backend in ("torch-cuda", "tensorrt"):
        with pytest.raises(BackendUnavailable, match=f"backend {backend}: .*"):
            Programs(cases("mmdf").task).runner(backend)


def test_types_are_read_from_the_account_of_an_engine() -> None:
    ten = {
        "Layers": [
            {
                "Name": "gemm",
                "Outputs": [{"Name": "y", "Dimensions": [1, 4], "Format/Datatype": "Row major linear FP16 format"}],
                "TacticName": "sm80_xmma_gemm_f32f32_FP32",  # a name is no type
            },
            {"Name": "cast", "Inputs": [{"Format/Datatype": "Row major linear FP32 format"}]},
        ]
    }
    assert types_of(json.dumps(ten)) == {"FP16", "FP32"}
    later = {"Layers": [{"Outputs": [{"Format": "kLINEAR", "Datatype": "Half"}, {"Datatype": "Float"}]}]}
    assert types_of(json.dumps(later)) == {"FP16", "FP32"}
    assert types_of('{"Layers": ["gemm"]}') == set()


@pytest.mark.parametrize(
    ("precision", "said", "problem"),
    [
        ("fp32", "FP32", None),
        ("fp16", "FP16", None),
        ("fp16", "FP32", "computes in FP32"),
        ("fp32", "FP16", "computes in FP16"),
        ("fp32", "BF16", "computes in BF16"),
        ("fp32", "", "types that it does not tell"),
    ],
)
def test_an_engine_of_another_precision_is_not_used(
    precision: Precision, said: str, problem: str | None, cases: Cases, cache: EngineCache
) -> None:
    account = json.dumps({"Layers": [{"Outputs": [{"Format/Datatype": f"{said} format"}]}]})
    inspector = types.SimpleNamespace(get_engine_information=lambda form: account)
    engine = types.SimpleNamespace(create_engine_inspector=lambda: inspector)
    trt = types.SimpleNamespace(LayerInformationFormat=types.SimpleNamespace(JSON=0))
    program = TensorRtProgram(cases("mmdf").task, precision, cache, Library("tensorrt", "10.0", trt))
    if problem is None:
        tensorrt_backend.check_engine(trt, engine, program)
    else:
        with pytest.raises(SolverError, match=problem):
            tensorrt_backend.check_engine(trt, engine, program)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_is_there")
def test_on_a_gpu_the_inspector_tells_the_precision(cases: Cases) -> None:
    if (reason := why_not("tensorrt")) is not None:
        pytest.skip(reason)
    for precision in ("fp32", "tf32", "fp16"):
        with Programs(cases("mmdf").task).runner("tensorrt", precision) as runner:  # built only if it has what it claims
            assert runner.precision == precision
            runner.load(*cases("mmdf").trial.operands)
            assert np.isfinite(runner(cases("mmdf").trial.samples)).all()
