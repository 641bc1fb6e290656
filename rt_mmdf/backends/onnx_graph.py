"""Writes ONNX graphs node by node, each tensor with its type: nothing is left to a converter or a builder.

A graph that is written takes milliseconds and the package onnx alone; torch's exporter takes seconds at each start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rt_mmdf.backends.interface import MOMENTS, SAMPLES

OPSET, IR_VERSION = 17, 9
"""Old enough for TensorRT 10 and onnxruntime 1.17."""
Size = int | None


class GraphWriter:
    """A graph that grows by one node a call; tensors go by their names.

    Parameters
    ----------
    n : rows at once; None: any number
    n_in, n_out : columns of what is given and of what is said
    operands : name and shape of each further input, float32
    ends : names of what is given and of what is said
    half : whether `narrow` goes to half precision; without it everything is float32
    """

    def __init__(
        self,
        n: Size,
        n_in: int,
        n_out: int,
        operands: Sequence[tuple[str, Sequence[int]]],
        *,
        ends: tuple[str, str] = (SAMPLES, MOMENTS),
        half: bool = False,
    ) -> None:
        self.half = half
        self._rows: int | str = "n" if n is None else n
        self._n_out, self._end = n_out, ends[1]
        self._inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
            for name, shape in ((ends[0], (self._rows, n_in)), *operands)
        ]
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def __call__(self, operator: str, *inputs: str | NDArray[Any], n_outputs: int = 1, **attributes: Any) -> str:
        """Add a node; arrays become constants, as they are. Returns the name of its output; further ones are NAME_1, ..."""
        name = f"{operator.lower()}_{len(self._nodes)}"
        given = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        self._nodes.append(
            helper.make_node(operator, given, [name, *(f"{name}_{i}" for i in range(1, n_outputs))], name=name, **attributes)
        )
        return name

    def _constant(self, values: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def weight(self, values: NDArray[Any]) -> NDArray[Any]:
        """A constant of the narrow part in its type."""
        return np.asarray(values, dtype=np.float16 if self.half else np.float32)

    def narrow(self, tensor: str) -> str:
        """To half precision, where it is wanted."""
        return self("Cast", tensor, to=TensorProto.FLOAT16) if self.half else tensor

    def widen(self, tensor: str) -> str:
        """Back to single precision."""
        return self("Cast", tensor, to=TensorProto.FLOAT) if self.half else tensor

    def finish(self, moments: str, name: str) -> bytes:
        """The whole model, checked, with `moments` as its output."""
        self._nodes.append(helper.make_node("Identity", [moments], [self._end], name=self._end))
        said = helper.make_tensor_value_info(self._end, TensorProto.FLOAT, [self._rows, self._n_out])
        graph = helper.make_graph(self._nodes, name, self._inputs, [said], self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = "rt_mmdf"
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))
