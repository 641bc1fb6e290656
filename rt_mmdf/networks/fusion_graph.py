"""What the network `fusion` makes of a window, for other libraries: one row in, one row out, as a module and as a graph.

window --> reduced (QR and small eigenvalues, torch on the processor) --> row --> both passes --> row --> prior

`FusionNetwork.reduce` is before it, since ONNX has no operators for its decompositions; `FusionNetwork.prior_of` and
`factors` are after it. Between them is all that the network's weights touch, and the inverse of a covariance between the
passes: by its Cholesky factor, or, in graphs, by products alone (`inverse_by_products`). The operators of a head, noise and
set of channels are operands, padded with zeros to the shapes of most channels: one graph serves every set of channels, and
every source space of the same size. Module and graph are held to `FusionNetwork` by tests/backends/test_windows.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rt_mmdf.networks.fusion import (
    K_SINGLE,
    N_COMPONENTS,
    N_FACTS,
    N_SCALES,
    N_WHOLE,
    REGULARISED,
    Block,
    FusionNetwork,
    Inverse,
    Pass,
    PreparedFusion,
    Prior,
    Reduced,
    SqueezeExcite,
    WindowOperators,
    by_cholesky,
)
from rt_mmdf.networks.graphs import Graph, linear, scalar
from rt_mmdf.networks.mesh import CoarseMesh

INT64 = 7  # ONNX's number
CONDITION = 1e5
"""Ratio of the eigenvalues' bound to the smallest eigenvalue up to which `inverse_by_products` is exact to rounding. A prior
cannot ask for much more: its noise is at least about e^-9 of the power of its peaks, whatever the window. Windows of the
model that ships, 0 to 60 dB: at most 9.6e3 (tests/solvers/test_windows.py)."""
OPERANDS = ("atoms", "nodes", "ground", "regularised", "eeg", "meg", "node_of", "members", "weight", "neighbours", "regions")
"""Of the module and the graph, in this order."""


def schedule(condition: float = CONDITION, tolerance: float = 1e-7) -> tuple[float, ...]:
    """Factors of the steps of `inverse_by_products` that bring any eigenvalue in [1 / condition, 1] to 1.

    A step takes an eigenvalue x of ``matrix @ estimate`` to f x (2 - f x); with f = 2 / (low + high) of the interval that
    they are known to lie in, the interval becomes four times narrower on a logarithmic scale, without f only two times.
    """
    low, factors = 1.0 / condition, []
    while 1 - low > tolerance:
        factors.append(2 / (low + 1))
        low = factors[-1] * low * (2 - factors[-1] * low)
    return tuple(factors)


def inverse_by_products(matrices: Tensor, factors: tuple[float, ...] = schedule()) -> Tensor:
    """Inverse of symmetric positive definite matrices (n, k, k) by matrix products alone, as many for any matrix.

    The iteration of Newton and Schulz (Schulz 1933, doi 10.1002/zamm.19330130111), each step scaled for the interval of the
    eigenvalues. Beyond the condition that the factors are for, the smallest directions come out too small; nothing diverges.
    """
    # no eigenvalue is larger than either norm
    frobenius = matrices.square().sum(dim=(1, 2)).sqrt()
    bound = torch.minimum(frobenius, matrices.abs().sum(dim=2).amax(dim=1))[:, None, None]
    identity = torch.eye(matrices.shape[1], device=matrices.device).to(matrices)
    scaled = matrices / bound
    estimate = identity.expand_as(matrices)
    for factor in factors:
        estimate = factor * estimate
        estimate = estimate @ (2 * identity - scaled @ estimate)
    return estimate / bound


def row_sizes(network: FusionNetwork) -> dict[str, tuple[int, int]]:
    """Rows and columns of each part of the row that is given."""
    single = min(network.k, K_SINGLE)
    return {
        "now": (1, network.k),
        "clean": (1, network.k),
        "components": (N_COMPONENTS, network.k),
        "trust": (1, N_COMPONENTS),
        "energy": (1, N_COMPONENTS),
        "eeg": (1, single),
        "meg": (1, single),
        "power": (1, 1),
        "facts": (1, N_FACTS),
    }


def row_of(reduced: Reduced, network: FusionNetwork) -> Tensor:
    """(1, width): one reduced window, padded with zeros."""
    single = reduced.now.new_zeros(1, 1)
    parts = {
        "now": reduced.now,
        "clean": reduced.clean,
        "components": reduced.components[0].T,
        "trust": reduced.trust,
        "energy": reduced.energy,
        "eeg": single if reduced.single[0] is None else reduced.single[0],
        "meg": single if reduced.single[1] is None else reduced.single[1],
        "power": reduced.power[None],
        "facts": reduced.facts,
    }
    return torch.cat([_padded(parts[name], *size).reshape(1, -1) for name, size in row_sizes(network).items()], dim=1)


def operands_of(prepared: PreparedFusion, network: FusionNetwork) -> tuple[NDArray[np.float32], ...]:
    """Those that `OPERANDS` names; indices as float32, which holds them exactly up to 16.7 million."""
    own, mesh, k = prepared.for_windows, prepared.mesh, network.k
    n_sources = mesh.n_sources
    single = [own.atoms.new_zeros(n_sources, 1) if atoms is None else atoms for atoms in own.single]
    tensors = (
        _padded(own.atoms, len(own.atoms), k),
        _padded(own.nodes, len(own.nodes), k),
        _padded(own.ground, k, k),
        _padded(own.regularised, len(own.regularised), k),
        *(_padded(atoms, n_sources, min(k, K_SINGLE)) for atoms in single),
        mesh.node_of[None],
        mesh.members,
        mesh.weight,
        mesh.coarse_neighbours,
        mesh.regions,
    )
    return tuple(tensor.float().contiguous().numpy() for tensor in tensors)


def split_row(said: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (1, n_sources, N_SCALES) and numbers about the whole (1, N_WHOLE) from the row that is said."""
    return said[:, :-N_WHOLE].reshape(1, -1, N_SCALES), said[:, -N_WHOLE:]


class WindowLook:
    """Priors of windows, the network part of it left to something else.

    say : takes the row that is given and returns the row that is said, of these operators
    """

    def __init__(
        self,
        network: FusionNetwork,
        prepared: PreparedFusion,
        say: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    ) -> None:
        self._network, self._prepared, self._say = network, prepared, say

    @torch.inference_mode()
    def __call__(self, window: NDArray[np.float32]) -> Prior:
        """That of a window (n_channels, n_times) for its last column."""
        given = torch.from_numpy(window)[None]
        reduced = self._network.reduce(given[:, :, -1], given, self._prepared)
        said = self._say(row_of(reduced, self._network).numpy())
        return self._network.prior_of(*split_row(torch.from_numpy(said)), reduced)


@torch.inference_mode()
def example_row(network: FusionNetwork, prepared: PreparedFusion, window: NDArray[np.float32]) -> NDArray[np.float32]:
    """The row of a window (n_channels, n_times)."""
    given = torch.from_numpy(window)[None]
    row: NDArray[np.float32] = row_of(network.reduce(given[:, :, -1], given, prepared), network).numpy()
    return row


class WindowModule(nn.Module):
    """Row and operands to the row of logits and numbers about the whole; its weights are those of the network.

    inverse : of the covariance between the passes
    """

    def __init__(self, network: FusionNetwork, inverse: Inverse = by_cholesky) -> None:
        super().__init__()
        self.network = network
        self.inverse = inverse

    def forward(self, row: Tensor, *operands: Tensor) -> Tensor:
        sizes = row_sizes(self.network)
        parts = torch.split(row, [prod(size) for size in sizes.values()], dim=1)
        given = {name: part.reshape(size) for (name, size), part in zip(sizes.items(), parts, strict=True)}
        reduced = Reduced(
            given["now"],
            given["clean"],
            given["components"].T[None],
            given["trust"],
            given["energy"],
            (given["eeg"], given["meg"]),
            given["power"][0],
            given["facts"],
        )
        own = dict(zip(OPERANDS, operands, strict=True))
        mesh = CoarseMesh(own["node_of"][0].long(), own["members"].long(), own["weight"], own["neighbours"], own["regions"])
        operators = WindowOperators(
            own["atoms"], own["nodes"], own["ground"], own["regularised"], (own["eeg"], own["meg"]), mesh
        )
        logits, whole = self.network.look(reduced, operators, self.inverse)[-1]
        return torch.cat([logits.reshape(1, -1), whole], dim=1)


def write_window(network: FusionNetwork, n_sources: int, graph: Graph, row: str, *operands: str) -> str:
    """The nodes of `WindowModule` with `inverse_by_products`; returns the name of the row that is said."""
    return _Writer(network, n_sources, graph, row, operands).said()


class _Writer:
    """Tensors are those of `FusionNetwork.look` without the first axis: of one window."""

    def __init__(self, network: FusionNetwork, n_sources: int, graph: Graph, row: str, operands: tuple[str, ...]) -> None:
        self.network, self.graph, self.n_sources = network, graph, n_sources
        self.row = dict(self._parts(row))
        self.own = dict(zip(OPERANDS, operands, strict=True))
        self.node_of = graph("Cast", graph("Reshape", self.own["node_of"], _ints(n_sources)), to=INT64)
        self.members = graph("Cast", self.own["members"], to=INT64)
        self.weight = graph("Unsqueeze", self.own["weight"], _ints(1))

    def _parts(self, row: str) -> Iterator[tuple[str, str]]:
        begin = 0
        for name, size in row_sizes(self.network).items():
            end = begin + prod(size)
            part = self.graph("Slice", row, _ints(begin), _ints(end), _ints(1))
            yield name, self.graph("Reshape", part, _ints(*size)) if size[0] > 1 else part
            begin = end

    def said(self) -> str:
        graph, network = self.graph, self.network
        maps = self._maps()
        mean, peaks = self._pooled(maps, network.first.n_peaks)
        state, out, whole = self._pass(network.first, (mean, peaks), None)
        ratio = graph("Slice", maps, _ints(0), _ints(N_SCALES), _ints(1))
        sharp = graph("Mul", ratio, scalar(10 * float(network.sharpness.detach())))
        logits = graph("Add", graph("Add", self._at_sources(out), sharp), self._of_scales(whole))
        kept = graph("Mul", graph("Slice", logits, _ints(0), _ints(1), _ints(1)), scalar(0.1))
        gain_and_held = graph("Concat", *self._unexplained(logits, whole), axis=1)
        added = graph("Concat", gain_and_held, kept, axis=1)
        # of the maps that the first pass saw the means are there
        others, peaks = self._pooled(added, network.second.n_peaks)
        first, last = (graph("Slice", others, _ints(a), _ints(b), _ints(1)) for a, b in ((0, -1), (-1, 2**31 - 1)))
        state, out, change = self._pass(network.second, (first, mean, last, peaks), state)
        maps = graph("Concat", gain_and_held, maps, kept, axis=1)
        both = graph("Add", self._at_sources(out), self._fine(maps, state))
        logits = graph("Add", graph("Add", logits, both), self._of_scales(change))
        flat = graph("Reshape", logits, _ints(1, N_SCALES * self.n_sources))
        return graph("Concat", flat, graph("Add", whole, change), axis=1)

    def _maps(self) -> str:
        """(n_sources, N_MAPS)"""
        graph, row = self.graph, self.row
        rows = graph("Concat", row["now"], row["clean"], row["components"], axis=0)
        matches = self._matches(rows, "atoms")
        direct = graph("Slice", matches, _ints(0), _ints(2), _ints(0))
        shown = graph("Slice", matches, _ints(2), _ints(2 + N_COMPONENTS), _ints(0))
        weights = graph("Concat", graph("Mul", row["trust"], row["energy"]), row["trust"], axis=0)
        shared = graph("MatMul", weights, shown)
        denoised = graph("Slice", direct, _ints(1), _ints(2), _ints(0))
        below = graph("Sub", denoised, graph("ReduceMax", denoised, axes=[1]))
        ratio = graph("Max", graph("Mul", below, scalar(0.05)), scalar(-2.0))
        in_window, subspace = (graph("Slice", shared, _ints(i), _ints(i + 1), _ints(0)) for i in range(2))
        levels = [graph("Reshape", own, _ints(-1, self.n_sources)) for own in (direct, in_window)]
        others = graph("Reshape", self._matches(row["clean"], "regularised"), _ints(len(REGULARISED), self.n_sources))
        single = [self._matches(row[name], name) for name in ("eeg", "meg")]
        logs = self._log1p_third(graph("Concat", *levels, others, *single, axis=0))
        by_scale = [graph("Reshape", own, _ints(N_SCALES, self.n_sources)) for own in (ratio, subspace)]
        first, rest = (
            graph("Slice", logs, _ints(a), _ints(b), _ints(0)) for a, b in ((0, 3 * N_SCALES), (3 * N_SCALES, 99))
        )
        return graph("Transpose", graph("Concat", by_scale[0], first, by_scale[1], rest, axis=0), perm=[1, 0])

    def _matches(self, rows: str, operand: str) -> str:
        product = self.graph("Gemm", rows, self.own[operand], transB=1)
        return self.graph("Mul", product, product)

    def _log1p_third(self, values: str) -> str:
        return self.graph("Mul", self.graph("Log", self.graph("Add", values, scalar(1.0))), scalar(1 / 3))

    def _at_sources(self, nodes: str) -> str:
        return self.graph("Gather", nodes, self.node_of, axis=0)

    def _of_scales(self, whole: str) -> str:
        return self.graph("Slice", whole, _ints(N_WHOLE - N_SCALES), _ints(N_WHOLE), _ints(1))

    def _unexplained(self, logits: str, whole: str) -> tuple[str, str]:
        """See `FusionNetwork._unexplained`."""
        graph, row, own, n_sources = self.graph, self.row, self.own, self.n_sources
        exps = [
            self._exp(whole, i, factor, shift) for i, factor, shift in ((0, 1, 0.7), (1, 1, -2), (2, 0.3, 0), (3, 1, -9))
        ]
        on_peaks, on_ground = (graph("Mul", row["power"], own) for own in exps[:2])
        noise = graph("Add", exps[2], graph("Mul", row["power"], exps[3]))
        blend = graph("Sigmoid", graph("Add", self._number(whole, 4), scalar(1.0)))
        # the patches that are likely, and their power
        flat = graph("Reshape", graph("Transpose", logits, perm=[1, 0]), _ints(1, N_SCALES * n_sources))
        n_likely = min(self.network.n_likely, N_SCALES * n_sources)
        order = graph("TopK", flat, _ints(n_likely), n_outputs=2, axis=1)
        likely, atoms = order, f"{order}_1"
        top = graph("Slice", likely, _ints(0), _ints(1), _ints(1))
        total = graph("ReduceSum", graph("Exp", graph("Sub", flat, top)), _ints(1))
        share = graph("Div", graph("Exp", graph("Sub", likely, top)), total)
        power = graph("Mul", share, on_peaks)
        chosen = graph("Gather", own["atoms"], graph("Reshape", atoms, _ints(n_likely)), axis=0)
        weighted = graph("Mul", graph("Transpose", chosen, perm=[1, 0]), power)
        identity = np.eye(self.network.k, dtype=np.float32)
        covariance = graph("Add", graph("Mul", on_ground, own["ground"]), graph("Mul", noise, identity))
        inverse = self._inverse(graph("Add", covariance, graph("MatMul", weighted, chosen)), identity)
        other = graph("Mul", graph("Sub", scalar(1.0), blend), row["clean"])
        now = graph("Add", graph("Mul", blend, row["now"]), other)
        match = self._matches(graph("MatMul", now, inverse), "atoms")
        through = graph("Mul", graph("MatMul", own["nodes"], inverse), own["nodes"])
        expected = graph("Reshape", graph("ReduceSum", through, _ints(1)), _ints(N_SCALES, -1))
        expected = graph("Max", graph("Gather", expected, self.node_of, axis=1), scalar(1e-6))
        gain = graph("Div", graph("Reshape", match, _ints(N_SCALES, n_sources)), expected)
        held = graph("Mul", power, graph("Sqrt", graph("GatherElements", match, atoms, axis=1)))
        nothing = np.zeros((1, N_SCALES * n_sources), np.float32)
        held = graph("Reshape", graph("ScatterElements", nothing, atoms, held, axis=1), _ints(N_SCALES, n_sources))
        gain, held = (graph("Transpose", self._log1p_third(maps), perm=[1, 0]) for maps in (gain, held))
        return gain, held

    def _number(self, whole: str, i: int) -> str:
        return self.graph("Slice", whole, _ints(i), _ints(i + 1), _ints(1))

    def _exp(self, whole: str, i: int, factor: float, shift: float) -> str:
        scaled = self.graph("Mul", self._number(whole, i), scalar(factor))
        return self.graph("Exp", self.graph("Add", scaled, scalar(shift)))

    def _inverse(self, matrix: str, identity: NDArray[np.float32]) -> str:
        """See `inverse_by_products`."""
        graph = self.graph
        frobenius = graph("Sqrt", graph("ReduceSum", graph("Mul", matrix, matrix), _ints(0, 1)))
        largest = graph("ReduceMax", graph("ReduceSum", graph("Abs", matrix), _ints(1)), axes=[0])
        bound = graph("Min", frobenius, largest)
        scaled = graph("Div", matrix, bound)
        first, *factors = schedule()
        # the first step by hand: the estimate is the identity still
        estimate = graph("Sub", (2 * first * identity).astype(np.float32), graph("Mul", scaled, scalar(first**2)))
        for factor in factors:
            estimate = graph("Mul", estimate, scalar(factor))
            rest = graph("Sub", 2 * identity, graph("MatMul", scaled, estimate))
            estimate = graph("MatMul", estimate, rest)
        return graph("Div", estimate, bound)

    def _pooled(self, maps: str, n_peaks: int) -> tuple[str, str]:
        """Means at the nodes, and maxima of the first maps."""
        graph = self.graph
        inside = graph("Gather", maps, self.members, axis=0)  # (n_nodes, n_members, n_maps)
        mean = graph("Squeeze", graph("MatMul", self.weight, inside), _ints(1))
        peaks = graph("Slice", inside, _ints(0), _ints(n_peaks), _ints(2))
        return mean, graph("ReduceMax", peaks, axes=[1], keepdims=0)

    def _pass(self, layers: Pass, pooled: tuple[str, ...], state: str | None) -> tuple[str, str, str]:
        """See `Pass.forward`, from what it pools on."""
        graph = self.graph
        n_pooled = layers.enter.in_features - N_FACTS
        weight, bias = layers.enter.weight.detach().numpy(), layers.enter.bias.detach().numpy()
        of_facts = graph("Gemm", self.row["facts"], weight[:, n_pooled:], bias, transB=1)
        x = graph("Gemm", graph("Concat", *pooled, axis=1), weight[:, :n_pooled], of_facts, transB=1)
        x = x if state is None else graph("Add", x, state)
        for block in layers.blocks:
            assert isinstance(block, Block)
            x = self._block(block, x)
        seen = self._norm(layers.leave, x)
        told = graph("Concat", graph("ReduceMean", seen, axes=[0]), self.row["facts"], axis=1)
        first, _, last = layers.whole
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        whole = linear(last, graph, self._gelu(linear(first, graph, told)))
        return seen, linear(layers.logits, graph, seen), whole

    def _block(self, block: Block, x: str) -> str:
        """See `Block.forward`."""
        graph, heads = self.graph, block.heads
        width = block.query.in_features
        size = width // heads
        normed = self._norm(block.near_norm, x)
        near = graph("Concat", normed, graph("MatMul", self.own["neighbours"], normed), axis=1)
        first, _, last = block.near
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        x = graph("Add", x, linear(last, graph, self._gelu(linear(first, graph, near))))
        normed = self._norm(block.far_norm, x)
        regions = linear(block.key_value, graph, graph("MatMul", self.own["regions"], normed))
        key, value = (graph("Slice", regions, _ints(a), _ints(a + width), _ints(1)) for a in (0, width))
        query = graph("Mul", linear(block.query, graph, normed), scalar(size**-0.5))
        query, value = (
            graph("Transpose", graph("Reshape", own, _ints(-1, heads, size)), perm=[1, 0, 2]) for own in (query, value)
        )
        key = graph("Transpose", graph("Reshape", key, _ints(-1, heads, size)), perm=[1, 2, 0])
        far = graph("MatMul", graph("Softmax", graph("MatMul", query, key), axis=2), value)
        far = graph("Reshape", graph("Transpose", far, perm=[1, 0, 2]), _ints(-1, width))
        return self._squeeze(block.excite, graph("Add", x, linear(block.far, graph, far)))

    def _squeeze(self, layer: SqueezeExcite, x: str) -> str:
        graph = self.graph
        told = graph("Concat", graph("ReduceMean", x, axes=[0]), self.row["facts"], axis=1)
        scale = linear(layer.excite, graph, graph("Relu", linear(layer.squeeze, graph, told)))
        return graph("Mul", x, graph("Mul", graph("Sigmoid", scale), scalar(2.0)))

    def _fine(self, maps: str, seen: str) -> str:
        """See `Fine.forward`."""
        graph, fine = self.graph, self.network.fine
        hidden = graph("Add", self._at_sources(linear(fine.coarse, graph, seen)), linear(fine.maps, graph, maps))
        hidden = graph("Relu", linear(fine.hidden, graph, graph("Relu", hidden)))
        return linear(fine.logits, graph, hidden)

    def _norm(self, layer: nn.LayerNorm, x: str) -> str:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        return self.graph("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps)

    def _gelu(self, x: str) -> str:
        graph = self.graph
        bell = graph("Add", graph("Erf", graph("Mul", x, scalar(0.5**0.5))), scalar(1.0))
        return graph("Mul", graph("Mul", x, scalar(0.5)), bell)


def _padded(values: Tensor, n_rows: int, n_columns: int) -> Tensor:
    if values.shape == (n_rows, n_columns):
        return values  # as it is: the operators of all channels need not be in memory, and in the cache, twice
    return F.pad(values, (0, n_columns - values.shape[1], 0, n_rows - values.shape[0]))


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)
