"""What networks compute for every sample, once more for other libraries: as one module of tensors alone, and as a graph.

Both forms stand beside each other here and are held to `PictureNetwork.forward` by tests/backends/test_parity.py. A graph is
written node by node onto whatever is given (`rt_mmdf.backends.onnx_graph.GraphWriter`).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rt_mmdf.networks.convdip import ConvDipNetwork
from rt_mmdf.networks.mmdf import MmdfNetwork
from rt_mmdf.networks.pictures import PictureNetwork, SensorPicture

TINY = 1e-6  # as `ConvDipNetwork.scale`
FLOAT = 1  # ONNX's number of single precision


class Graph(Protocol):
    """What graphs are written onto; tensors go by their names."""

    def __call__(self, operator: str, *inputs: str | NDArray[Any], n_outputs: int = 1, **attributes: Any) -> str:
        """Add a node; returns the name of its output, further ones are NAME_1, ..."""
        ...

    def weight(self, values: NDArray[Any]) -> NDArray[Any]:
        """A constant in the type of the narrow part."""
        ...

    def narrow(self, tensor: str) -> str:
        """To half precision, where it is wanted."""
        ...

    def widen(self, tensor: str) -> str:
        """Back to single precision."""
        ...


class PictureModule(nn.Module):
    """What `PictureNetwork.forward` does, the network's own layers in half precision on request.

    A sample is divided by its own scale first, so what is narrowed is near one. Its weights are those of the network.
    """

    def __init__(self, network: PictureNetwork, *, half: bool = False) -> None:
        super().__init__()
        self.half_inside = half
        self.network = network  # as a whole: `scale` uses its pictures
        self.narrow = deepcopy(network).half() if half else network

    def forward(self, samples: Tensor, there: Tensor, unit: Tensor) -> Tensor:
        seen = samples * there
        scale = self.network.scale(seen)
        scaled = seen / scale
        answer: Tensor = self.narrow.answer(scaled.half() if self.half_inside else scaled)
        return answer.to(samples.dtype) * (scale * unit)


class ProductModule(nn.Module):
    """Samples times each operand in turn."""

    def forward(self, samples: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (samples @ first) @ second


class KernelModule(nn.Module):
    """Samples times a constant matrix."""

    matrix: Tensor

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.from_numpy(matrix))

    def forward(self, samples: Tensor) -> Tensor:
        return samples @ self.matrix


def write_pictures(network: PictureNetwork, graph: Graph, samples: str, there: str, unit: str) -> str:
    """The nodes of `PictureModule`; returns the name of the moments."""
    seen = graph("Mul", samples, there)
    if isinstance(network, MmdfNetwork):
        scale = _mmdf_scale(network, graph, seen)
        answer = _mmdf_answer(network, graph, graph.narrow(graph("Div", seen, scale)))
    elif isinstance(network, ConvDipNetwork):
        scale = graph("Max", graph("ReduceMax", graph("Abs", _referenced(network, graph, seen)), axes=[1]), scalar(TINY))
        # the reference is taken again by the network; it is one already, and as exact as single precision has it
        referenced = _referenced(network, graph, graph("Div", seen, scale))
        answer = _convdip_answer(network, graph, graph.narrow(referenced))
    else:
        raise NotImplementedError(f"network {network.kind}: no ONNX graph is written for it")
    return graph("Mul", graph.widen(answer), graph("Mul", scale, unit))


def _mmdf_scale(network: MmdfNetwork, graph: Graph, seen: str) -> str:
    channels = torch.cat([picture.channels for picture in network.pictures]).numpy()
    own = graph("Gather", seen, channels, axis=1)
    squared = graph("Mul", own, own)
    counted = graph("Sub", scalar(1.0), graph("Cast", graph("Equal", own, scalar(0.0)), to=FLOAT))
    axes = np.array([1], np.int64)
    n_there = graph("Max", graph("ReduceSum", counted, axes), scalar(1.0))
    size = graph("Sqrt", graph("Div", graph("ReduceSum", squared, axes), n_there))
    return graph("Max", size, scalar(1.0))


def _mmdf_answer(network: MmdfNetwork, graph: Graph, scaled: str) -> str:
    branches: Any = network.branches
    maps = []
    for branch in branches:
        convolved = _convolution(branch.convolution, graph, _picture(branch.picture, graph, scaled))
        pooled = graph("MaxPool", graph("Relu", convolved), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
        maps.append(pooled)
    fused = graph("Concat", *maps, axis=1) if len(maps) > 1 else maps[0]
    mean = graph("ReduceMean", fused, axes=[2, 3], keepdims=0)
    squeezed = graph("Relu", linear(network.attention.squeeze, graph, mean))
    weight = graph("Sigmoid", linear(network.attention.excite, graph, squeezed))
    weighted = graph("Mul", fused, graph("Unsqueeze", weight, np.array([2, 3], np.int64)))
    hidden = graph("Relu", linear(network.hidden, graph, graph("Flatten", weighted, axis=1)))
    return linear(network.output, graph, hidden)


def _referenced(network: ConvDipNetwork, graph: Graph, seen: str) -> str:
    """Electrodes that are there less their average; everything else becomes zero, as in the network."""
    on_grid = np.zeros((1, network.n_channels), np.float32)
    on_grid[0, network.picture.channels.numpy()] = 1
    there = graph("Sub", scalar(1.0), graph("Cast", graph("Equal", seen, scalar(0.0)), to=FLOAT))
    own = graph("Mul", there, on_grid)
    axes = np.array([1], np.int64)
    n_there = graph("Max", graph("ReduceSum", own, axes), scalar(1.0))
    average = graph("Div", graph("ReduceSum", graph("Mul", seen, own), axes), n_there)
    return graph("Mul", graph("Sub", seen, average), own)


def _convdip_answer(network: ConvDipNetwork, graph: Graph, referenced: str) -> str:
    convolved = _convolution(network.convolution, graph, _picture(network.picture, graph, referenced))
    hidden = graph("Relu", linear(network.hidden, graph, graph("Flatten", graph("Relu", convolved), axis=1)))
    return linear(network.output, graph, hidden)


def _picture(picture: SensorPicture, graph: Graph, sample: str) -> str:
    placed = graph(
        "Mul", graph("Gather", sample, picture.channel.numpy(), axis=1), graph.weight(picture.there.numpy()[None])
    )
    return graph("Reshape", placed, np.array([-1, 1, *picture.canvas], np.int64))


def _convolution(layer: nn.Conv2d, graph: Graph, maps: str) -> str:
    pads = [int(side) for side in layer.padding] * 2
    sides, dilations = list(layer.kernel_size), list(layer.dilation)
    return graph("Conv", maps, *_values(layer, graph), kernel_shape=sides, pads=pads, dilations=dilations)


def linear(layer: nn.Linear, graph: Graph, features: str) -> str:
    """The nodes of a layer on features (n, n_features)."""
    return graph("Gemm", features, *_values(layer, graph), transB=1)


def _values(layer: nn.Conv2d | nn.Linear, graph: Graph) -> tuple[NDArray[Any], NDArray[Any]]:
    assert layer.bias is not None
    return graph.weight(layer.weight.detach().numpy()), graph.weight(layer.bias.detach().numpy())


def scalar(value: float) -> NDArray[np.float32]:
    """A constant of single precision."""
    return np.array(value, np.float32)
