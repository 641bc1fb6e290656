"""Runs a task by ONNX Runtime on the processor, one thread."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from typing import Any

import numpy as np

from rt_mmdf.backends.interface import BackendUnavailable, Float32, Precision, Runner, Task
from rt_mmdf.core.errors import SolverError

INSTALL = "pip install 'rt-mmdf[onnx]'"


def why_no_onnxruntime() -> str | None:
    """What is missing for it here and what would install it; None where nothing is."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed. Install: {INSTALL}" if missing else None


class OnnxRuntimeProgram:
    """A task as a session of ONNX Runtime, which any number of runners share."""

    def __init__(self, task: Task) -> None:
        if (reason := why_no_onnxruntime()) is not None:
            raise BackendUnavailable(f"backend onnxruntime: {reason}")
        self.task = task

    @cached_property
    def session(self) -> Any:
        """Made when it is first asked for."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # one thread, as with torch: the cores are shared with the receivers, and threads that spin take them away
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            onnx = self.task.onnx(self.task.rows, "fp32")
            return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base but this
            raise SolverError(
                f"{self.task.name}: onnxruntime {onnxruntime.__version__} does not take its ONNX graph ({error}). "
                f'Another version may: {INSTALL}; or set backend = "torch" under [solver].'
            ) from error


class OnnxRuntimeRunner(Runner):
    """A task by ONNX Runtime."""

    backend = "onnxruntime"
    precision: Precision = "fp32"
    device = "cpu"

    def __init__(self, program: OnnxRuntimeProgram) -> None:
        self._task, self._session = program.task, program.session
        self._inputs: dict[str, Float32] = {}

    def load(self, *operands: Float32) -> None:
        self._inputs = {
            name: np.ascontiguousarray(operand) for name, operand in zip(self._task.operand_names, operands, strict=True)
        }

    def __call__(self, samples: Float32) -> Float32:
        given, said = self._task.ends
        moments: Float32 = self._session.run((said,), {given: samples, **self._inputs})[0]
        return moments
