"""Runs a task by TensorRT on an NVIDIA GPU. One file for the modules `tensorrt` (10 and 11) and `tensorrt_rtx`.

ONNX graph -> strongly typed network, its types checked layer by layer -> engine (kept, see `rt_mmdf.backends.engine_cache`)
  -> execution context on torch's buffers -> CUDA graph, see `rt_mmdf.backends.graphed`

Types are those of the ONNX graph: version 11 has no flags for FP16. Only whether single-precision products may be rounded to
TF32 is a flag. `tensorrt_rtx` parses and builds without a GPU; to run, both need one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rt_mmdf.backends.engine_cache import EngineCache, EngineKey
from rt_mmdf.backends.graphed import GraphedRunner, Slot, gpu_name, why_no_gpu
from rt_mmdf.backends.interface import BackendUnavailable, Precision, Task
from rt_mmdf.core.errors import SolverError

MODULES = ("tensorrt", "tensorrt_rtx")
"""In the order in which they are taken."""
OLDEST = {"tensorrt": 10, "tensorrt_rtx": 1}
INSTALL = "pip install 'rt-mmdf[tensorrt]' (or 'rt-mmdf[tensorrt-rtx]' for GeForce and RTX cards)"
WORKSPACE_BYTES = 256 * 2**20
PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "FULLY_CONNECTED")
"""Layers whose type decides what precision an engine has."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Library:
    """The module that is installed.

    name, version : of it
    module : itself
    """

    name: str
    version: str
    module: Any


def find_library(names: Iterable[str] = MODULES) -> Library:
    """The first that can be imported; BackendUnavailable with what was seen and what would install one."""
    seen = []
    for name in names:
        if importlib.util.find_spec(name) is None:
            seen.append(f"{name} is not installed")
            continue
        try:
            module = importlib.import_module(name)
            version = str(module.__version__)
        except Exception as error:  # a wheel without its libraries fails in many ways
            seen.append(f"{name} cannot be imported ({type(error).__name__}: {error})")
            continue
        major = re.match(r"\d+", version)
        if major is None or int(major[0]) < OLDEST[name]:
            seen.append(f"{name} {version} is too old, {OLDEST[name]} or newer is expected")
            continue
        return Library(name, version, module)
    raise BackendUnavailable(f"backend tensorrt: {'; '.join(seen)}. Install: {INSTALL}")


def why_no_tensorrt() -> str | None:
    """Why it cannot be used here; None where it can."""
    missing = [name for name in ("onnx",) if importlib.util.find_spec(name) is None]
    if not any(importlib.util.find_spec(name) for name in MODULES):
        missing += [" or ".join(MODULES)]
    if missing:
        return f"{', '.join(missing)} not installed. Install: {INSTALL}"
    if (reason := why_no_gpu()) is not None:  # before the library, which takes a second to load
        return reason
    try:
        find_library()
    except BackendUnavailable as error:
        return str(error).removeprefix("backend tensorrt: ")
    return None


@lru_cache(maxsize=1)
def driver_version() -> str:
    """Of the NVIDIA driver, as it says itself; "none" without one."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "none"
    return lines[0] if lines else "none"


class TensorRtProgram:
    """A task as engines for so many samples at once, built or taken from the cache; any number of runners share them.

    Parameters
    ----------
    task : Task
    precision : Precision
    cache : EngineCache
    library : Library | None
        None: what is found.
    """

    def __init__(
        self, task: Task, precision: Precision = "fp32", cache: EngineCache | None = None, library: Library | None = None
    ) -> None:
        self.library = library or find_library()
        if precision not in task.precisions:
            raise SolverError(
                f"{task.name}: precision {precision!r} seen; it can be computed in {', '.join(task.precisions)}."
            )
        self.task, self.precision = task, precision
        self._cache = cache or EngineCache()
        self.n_built = 0

    def key(self, n: int, onnx: bytes) -> EngineKey:
        """What the engine for n samples is kept under."""
        return EngineKey(
            hashlib.sha256(onnx).hexdigest(),
            self.library.name,
            self.library.version,
            gpu_name(),
            driver_version(),
            self.precision,
            (n, self.task.n_in, self.task.n_out),
        )

    def engine(self, n: int) -> bytes:
        """The serialised engine for n samples at once; SolverError where TensorRT refuses the graph."""
        onnx = self.task.onnx(n, self.precision)
        key = self.key(n, onnx)
        if (kept := self._cache.load(key)) is not None:
            return kept
        logger.info("building the engine of %s for %d samples (%s)", self.task.name, n, self.precision)
        built = self._build(onnx)
        self.n_built += 1
        self._cache.keep(key, built)
        return built

    def _build(self, onnx: bytes) -> bytes:
        trt = self.library.module
        log = _Messages(trt)
        builder = trt.Builder(log.sink)
        network, parser = self.parse(onnx, builder, log)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector tells the types
        if self.precision == "tf32":
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)  # it is set at first
        built = builder.build_serialized_network(network, config)
        del parser  # it owns what the network was made of
        if built is None:
            raise SolverError(
                f"{self.task.name}: {self.library.name} {self.library.version} cannot build an engine "
                f'({log.last or "it does not say why"}). Is the GPU among those it supports? Set backend = "torch" under '
                "[solver]."
            )
        return bytes(built)

    def parse(self, onnx: bytes, builder: Any, log: _Messages) -> tuple[Any, Any]:
        """The strongly typed network of a graph, and the parser, which must outlive it."""
        trt = self.library.module
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # a later version may know no other kind
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, log.sink)
        if not parser.parse(onnx):
            said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)) or log.last
            raise SolverError(
                f"{self.task.name}: {self.library.name} {self.library.version} does not take its ONNX graph ({said}). "
                'Set backend = "torch" under [solver].'
            )
        self.check_types(network)
        return network, parser

    def check_types(self, network: Any) -> None:
        """SolverError unless every product of a network has the type of the precision; what goes in and out is float32."""
        trt = self.library.module
        expected = trt.DataType.HALF if self.precision == "fp16" else trt.DataType.FLOAT
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        products = [layer for layer in layers if str(layer.type).rpartition(".")[2] in PRODUCTS]
        wrong = [
            f"{layer.name} is {layer.get_output(0).dtype}" for layer in products if layer.get_output(0).dtype != expected
        ]
        ends = [network.get_input(i) for i in range(network.num_inputs)]
        ends += [network.get_output(i) for i in range(network.num_outputs)]
        wrong += [f"{tensor.name} is {tensor.dtype}" for tensor in ends if tensor.dtype != trt.DataType.FLOAT]
        if wrong or not products:
            raise SolverError(
                f"{self.task.name}: a network of {len(layers)} layers, {len(products)} of them products; of {expected} in "
                f"{self.precision} are not: {', '.join(wrong[:5]) or 'any'}. {self.library.name} {self.library.version} "
                'reads the types of the graph in another way. Set backend = "torch" under [solver].'
            )


class TensorRtRunner(GraphedRunner):
    """A task by TensorRT, in contexts of its own; SolverError unless the engines have the precision that they claim."""

    backend = "tensorrt"

    def __init__(self, program: TensorRtProgram, device: int = 0) -> None:
        super().__init__(program.task, program.precision, device)
        trt, self._log = program.library.module, _Messages(program.library.module)
        self._runtime = trt.Runtime(self._log.sink)
        self._engines: list[Any] = []
        self._contexts: dict[int, Any] = {}
        for slot in self._slots:
            engine = self._runtime.deserialize_cuda_engine(program.engine(slot.n))
            if engine is None:
                raise BackendUnavailable(
                    f"backend tensorrt: {program.library.name} {program.library.version} does not run its own engine on "
                    f"{self.device} ({self._log.last or 'it does not say why'}). Install: {INSTALL}"
                )
            check_engine(trt, engine, program)
            context = engine.create_execution_context()
            if context is None:
                raise SolverError(f"{program.task.name} on {self.device}: no execution context ({self._log.last}).")
            bound = dict(zip(program.task.ends, (slot.given, slot.said), strict=True))
            bound |= dict(zip(program.task.operand_names, self._operands, strict=True))
            for name, tensor in bound.items():
                context.set_tensor_address(name, tensor.data_ptr())
            self._engines.append(engine)
            self._contexts[slot.n] = context
        self._capture()

    def _enqueue(self, slot: Slot) -> None:
        if not self._contexts[slot.n].execute_async_v3(self._stream.cuda_stream):
            raise SolverError(
                f"{self._task.name} on {self.device}: TensorRT does not run ({self._log.last}); nothing of it is used."
            )

    def close(self) -> None:
        super().close()
        self._contexts, self._engines = {}, []


def check_engine(trt: Any, engine: Any, program: TensorRtProgram) -> None:
    """SolverError unless the engine's own account of itself has the precision of the program."""
    inspector = engine.create_engine_inspector()
    types = types_of(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    claimed = "FP16" if program.precision == "fp16" else "FP32"
    others = types & ({"BF16", "INT8", "FP8"} | ({"FP16"} if claimed == "FP32" else set()))
    if claimed not in types or others:
        raise SolverError(
            f"{program.task.name}: {program.precision} was asked for; the engine of {program.library.name} "
            f"{program.library.version} computes in {', '.join(sorted(types)) or 'types that it does not tell'}. It is not "
            'used. Set another precision, or backend = "torch", under [solver].'
        )


def types_of(information: str) -> set[str]:
    """Types of the layers' tensors in the inspector's JSON: "FP32", "FP16", ..."""
    names = {"FLOAT": "FP32", "HALF": "FP16"}
    found: set[str] = set()

    def look(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for inner, content in value.items():
                look(content, str(inner))
        elif isinstance(value, list):
            for content in value:
                look(content, key)
        elif isinstance(value, str) and ("datatype" in key.lower() or "format" in key.lower()):
            words = re.findall(r"\b(FP32|FP16|BF16|INT8|FP8|FLOAT|HALF)\b", value.upper())
            found.update(names.get(word, word) for word in words)

    look(json.loads(information), "")
    return found


class _Messages:
    """What TensorRT says goes to the log; its last error is kept."""

    def __init__(self, trt: Any) -> None:
        self.last = ""
        outer = self

        class Sink(trt.ILogger):  # type: ignore[misc]  # the module is known when it runs
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    outer.last = message
                    logger.debug("TensorRT: %s", message)

        self.sink = Sink()
