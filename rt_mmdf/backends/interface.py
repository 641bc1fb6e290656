"""What runs a network for the live chain: one small interface, whatever the library and the processor.

    network --> Task --> Runner of a backend --> moments of each hop
                (module, ONNX)   (buffers, streams, graphs: allocated once)

A `Task` is what is computed for every sample, or for every window that a network looks at: rows in, rows out. What changes
more slowly than these (the channels that are there, the matrices of a prior, operators of a head) enters as operands, so
that one compiled network serves every set of channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import SolverError

Float32 = NDArray[np.float32]

BackendName = Literal["torch", "torch-cuda", "onnxruntime", "tensorrt"]
Precision = Literal["fp32", "tf32", "fp16"]
Wanted = Literal["auto", "torch", "torch-cuda", "onnxruntime", "tensorrt"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

OPERANDS = "operand_{}"
SAMPLES, MOMENTS = "samples", "moments"
"""Names of what enters and leaves a graph of what is done for every sample."""
SIZES = (1, 16)
"""Samples at once of the graphs of a GPU: a hop takes the smallest that holds it, a longer one goes in pieces."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is computed for every sample, or for every window, in the forms that backends take.

    name : for messages
    n_in, n_out : columns of what is given and of what is said; of a sample its channels, and its moments
    shapes : of the operands
    precisions : that it can be computed in; inputs, operands and moments are float32 in each of them
    module : (precision) -> torch.nn.Module from rows (n, n_in) and the operands to rows (n, n_out); it may share its weights
        with others: copy it to move it. A copy of that of "fp32" computes in double precision too
    onnx : (n, precision) -> serialised ONNX of the same, for n rows at once, or for any number where n is None
    ends : names of what enters and leaves a graph, beside the operands
    names : of the operands; empty: they are numbered
    sizes : rows at once of the graphs of a GPU; (1,) where each row is done by itself
    example : a row and operands, for backends that run a graph before anything was given to them; None: noise will do
    """

    name: str
    n_in: int
    n_out: int
    shapes: tuple[tuple[int, ...], ...]
    precisions: tuple[Precision, ...]
    module: Callable[[Precision], Any]
    onnx: Callable[[int | None, Precision], bytes]
    ends: tuple[str, str] = (SAMPLES, MOMENTS)
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = SIZES
    example: tuple[Float32, tuple[Float32, ...]] | None = None

    @property
    def operand_names(self) -> tuple[str, ...]:
        """Of the inputs of a graph, beside the rows."""
        return self.names or tuple(OPERANDS.format(i) for i in range(len(self.shapes)))

    @property
    def rows(self) -> int | None:
        """Rows of the graph that takes as many as there are: None, any number, or what each is done by."""
        return None if len(self.sizes) > 1 else self.sizes[0]


@dataclass(eq=False)
class GpuWatch:
    """What is asked of a GPU beside moments, for profiles; processors know nothing of it.

    nvtx : each call is a range of NVTX, which Nsight shows under the name of the task
    ms : of the newest calls, from the copy in to the copy out, by CUDA events
    stages_ms : median of copy in, computing and copy out apart, by the number of samples of a graph; each run by itself, as
        a graph cannot be looked into
    """

    nvtx: bool = False
    ms: deque[float] = field(default_factory=lambda: deque(maxlen=4096))
    stages_ms: dict[int, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any] | None:
        """For reports; None where no GPU was called."""
        if not self.ms:
            return None
        p50, p99, largest = np.percentile(np.array(self.ms), (50, 99, 100)).tolist()
        return {"n": len(self.ms), "p50": p50, "p99": p99, "max": largest, "stages": self.stages_ms}


class Runner(ABC):
    """A task on one backend with buffers, and on a GPU a stream, of its own; warm once built. For one thread.

    Several may share a compiled network and a GPU.

    Attributes
    ----------
    backend, precision, device : what it is, for people
    """

    backend: BackendName
    precision: Precision
    device: str

    @abstractmethod
    def load(self, *operands: Float32) -> None:
        """Take operands for the samples from now on; they are not copied where they need not be: leave them as they are."""

    @abstractmethod
    def __call__(self, samples: Float32) -> Float32:
        """Moments (n, n_out) of samples (n, n_in), as the task has them; the caller's to keep.

        Raises
        ------
        SolverError
            The device has failed. Nothing that it said since is handed out.
        """

    def watch(self, watch: GpuWatch) -> None:  # noqa: B027  # there is nothing to see on a processor
        """Have what CUDA events say of each call from now on noted in `watch`."""

    def close(self) -> None:  # noqa: B027  # those on the processor hold nothing
        """Give back what it holds on a device; it cannot be called any more."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class BackendUnavailable(SolverError):
    """A backend cannot be used on this machine; the message says why and what would change that."""


def describe(backend: str, precision: str) -> str:
    """As people read it: "onnxruntime", "tensorrt (fp16)"."""
    return backend if precision == "fp32" else f"{backend} ({precision})"
