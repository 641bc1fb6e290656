"""Networks as tasks for the backends: what is computed for every sample, as a torch module and as an ONNX graph.

Nothing here needs more than torch, numpy and, for the graphs, onnx.

The prior of the network `fusion` is not among them: it factorises matrices (QR, symmetric eigenvalues, Cholesky), for which
ONNX has no operators, and it is computed beside the hops (`rt_mmdf.solvers.network`). What it leaves for every sample, two
matrix products, is `factor_task`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.backends.interface import SAMPLES, Float32, Precision, Task
from rt_mmdf.networks.graphs import KernelModule, PictureModule, ProductModule, write_pictures
from rt_mmdf.networks.pictures import PictureNetwork, PreparedPictures

if TYPE_CHECKING:
    from rt_mmdf.backends.onnx_graph import GraphWriter


def picture_task(network: PictureNetwork, name: str) -> Task:
    """A network that sees one sample as pictures; its operands are those of `picture_operands`."""

    def onnx(n: int | None, precision: Precision) -> bytes:
        graph = _writer(task, n, precision)
        return graph.finish(write_pictures(network, graph, SAMPLES, *task.operand_names), network.kind)

    shapes = ((1, network.n_channels), (1, 1))
    task = Task(
        name,
        network.n_channels,
        network.n_sources,
        shapes,
        ("fp32", "tf32", "fp16"),
        lambda precision: PictureModule(network, half=precision == "fp16"),
        onnx,
    )
    return task


def picture_operands(prepared: PreparedPictures) -> tuple[Float32, Float32]:
    """Which channels are there, (1, n_channels), and the unit of the output, (1, 1)."""
    return prepared.there[None].numpy(), np.array([[prepared.unit]], np.float32)


def factor_task(n_channels: int, k: int, n_sources: int, name: str) -> Task:
    """The estimate under a prior: ``samples @ first @ second``. Not in half precision: its factors have no common scale."""

    def onnx(n: int | None, precision: Precision) -> bytes:
        graph = _writer(task, n, precision)
        first, second = task.operand_names
        return graph.finish(graph("MatMul", graph("MatMul", SAMPLES, first), second), "factors")

    shapes = ((n_channels, k), (k, n_sources))
    task = Task(name, n_channels, n_sources, shapes, ("fp32", "tf32"), lambda precision: ProductModule(), onnx)
    return task


def kernel_task(kernel: NDArray[np.floating], name: str) -> Task:
    """A linear inverse (n_sources, n_channels), one matrix product: the baseline of every network."""
    matrix = np.ascontiguousarray(kernel.T, dtype=np.float32)
    n_channels, n_sources = matrix.shape

    def onnx(n: int | None, precision: Precision) -> bytes:
        graph = _writer(task, n, precision)
        return graph.finish(graph("MatMul", SAMPLES, matrix), "kernel")

    task = Task(name, n_channels, n_sources, (), ("fp32", "tf32"), lambda precision: KernelModule(matrix), onnx)
    return task


def _writer(task: Task, n: int | None, precision: Precision) -> GraphWriter:
    from rt_mmdf.backends.onnx_graph import GraphWriter  # imports onnx, which torch's backends have no need of

    operands = tuple(zip(task.operand_names, task.shapes, strict=True))
    return GraphWriter(n, task.n_channels, task.n_sources, operands, half=precision == "fp16")
