"""Networks as tasks for the backends: what is computed for every sample, as a torch module and as an ONNX graph.

Nothing here needs more than torch, numpy and, for the graphs, onnx.

Of the network `fusion` they are two. What is done for every sample, under the prior of a window, is two matrix products,
`factor_task`. What the network says of a window, from which the prior follows, is `window_task`; it is computed beside the
hops (`rt_mmdf.solvers.network`).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.backends.interface import SAMPLES, Float32, Precision, Task
from rt_mmdf.networks.fusion import N_SCALES, N_WHOLE, FusionNetwork
from rt_mmdf.networks.fusion_graph import OPERANDS, WindowModule, row_sizes, write_window
from rt_mmdf.networks.graphs import KernelModule, PictureModule, ProductModule, write_pictures
from rt_mmdf.networks.pictures import PictureNetwork, PreparedPictures

WINDOW_ENDS = ("window", "prior")
"""What enters and leaves the graph of `window_task`: a row of what is reduced, a row of logits and numbers."""

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


def window_task(network: FusionNetwork, row: Float32, operands: tuple[Float32, ...], name: str) -> Task:
    """What the network says of a window; see `rt_mmdf.networks.fusion_graph`.

    In single precision alone: the inverse inside of it would not survive factors of 11 bits.

    Parameters
    ----------
    row, operands : of one window, of `row_of` and `operands_of`, for their shapes and as an example
    """
    n_sources = operands[OPERANDS.index("node_of")].size

    def onnx(n: int | None, precision: Precision) -> bytes:
        if n != 1:
            raise ValueError(f"{name}: {n} windows at once seen; each is looked at by itself, 1 is expected")
        graph = _writer(task, n, precision)
        return graph.finish(write_window(network, n_sources, graph, task.ends[0], *task.operand_names), "window")

    task = Task(
        name,
        sum(prod(size) for size in row_sizes(network).values()),
        N_SCALES * n_sources + N_WHOLE,
        tuple(operand.shape for operand in operands),
        ("fp32",),
        lambda precision: WindowModule(network),
        onnx,
        ends=WINDOW_ENDS,
        names=OPERANDS,
        sizes=(1,),
        example=(row, operands),
    )
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
    return GraphWriter(n, task.n_in, task.n_out, operands, ends=task.ends, half=precision == "fp16")
