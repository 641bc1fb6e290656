"""Runners on an NVIDIA GPU: buffers and a stream of their own, each hop one replay of a captured CUDA graph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rt_mmdf.backends.interface import BackendUnavailable, Float32, GpuWatch, Precision, Runner, Task, describe
from rt_mmdf.core.errors import SolverError

REPLAY_TOLERANCE = 1e-3
"""Largest difference between a replay and the eager run, as a part of the largest moment: a capture that went wrong (another
device, an empty graph) is off by all of it; kernels chosen anew for the same product differ by rounding only."""
REMEDY = "It needs an NVIDIA GPU, its driver, and a torch that is built with CUDA: pip install torch"

STAGES, N_TIMED = ("copy in", "compute", "copy out"), 50


@dataclass(eq=False)
class Slot:
    """Buffers and graph of one size: pinned and device memory, in and out."""

    n: int
    host_in: Tensor
    given: Tensor
    said: Tensor
    host_out: Tensor
    graph: Any = None


def why_no_gpu() -> str | None:
    """Why torch sees no NVIDIA GPU here; None where it sees one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA. {REMEDY}"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no NVIDIA GPU or no driver for it. {REMEDY}"


def gpu_name(device: int = 0) -> str:
    """Of torch's GPU; "none" without one."""
    return str(torch.cuda.get_device_name(device)) if torch.cuda.is_available() else "none"


class GraphedRunner(Runner):
    """Copy in, compute, copy out as one graph.

    A derived class says by `_enqueue` what is computed and calls `_capture` when it is ready to.

    Parameters
    ----------
    task : Task
    precision : Precision
    device : number of the GPU
    """

    def __init__(self, task: Task, precision: Precision, device: int = 0) -> None:
        if (reason := why_no_gpu()) is not None:
            raise BackendUnavailable(f"backend {self.backend}: {reason}")
        self._task, self.precision = task, precision
        self.device = gpu_name(device)
        self._where = torch.device("cuda", device)
        with _told(task.name, self.device, "cannot be begun with"):
            self._stream = torch.cuda.Stream(self._where)  # type: ignore[no-untyped-call]
        with self._on_gpu("memory cannot be had"):
            self._operands = tuple(torch.zeros(shape, device=self._where) for shape in task.shapes)
            self._slots = [self._slot(n) for n in task.sizes]
        self._watch: GpuWatch | None = None

    def _slot(self, n: int) -> Slot:
        wide, long = (n, self._task.n_in), (n, self._task.n_out)
        return Slot(
            n,
            torch.zeros(wide, pin_memory=True),
            torch.zeros(wide, device=self._where),
            torch.zeros(long, device=self._where),
            torch.zeros(long, pin_memory=True),
        )

    @abstractmethod
    def _enqueue(self, slot: Slot) -> None:
        """Put the computation from `slot.given` and the operands to `slot.said` on the current stream."""

    def _run(self, slot: Slot) -> None:
        slot.given.copy_(slot.host_in, non_blocking=True)
        self._enqueue(slot)
        slot.host_out.copy_(slot.said, non_blocking=True)

    def _capture(self) -> None:
        """One eager run, the capture, and a replay that must say the same: SolverError if it does not."""
        noise = np.random.default_rng(0)
        with self._on_gpu("cannot be captured as a CUDA graph"), torch.inference_mode():
            row, operands = self._task.example or (None, (None,) * len(self._operands))
            for own, values in [*zip(self._operands, operands, strict=True), *((slot.host_in, row) for slot in self._slots)]:
                values = noise.standard_normal(tuple(own.shape)).astype(np.float32) if values is None else values
                own.copy_(torch.from_numpy(values))
            for slot in self._slots:
                for _ in range(3):  # libraries choose and allocate in their first calls
                    self._run(slot)
                self._stream.synchronize()
                eager = slot.host_out.clone()
                slot.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(slot.graph, stream=self._stream, capture_error_mode="thread_local"):
                    self._run(slot)
                slot.host_out.zero_()
                slot.said.zero_()
                slot.graph.replay()
                self._stream.synchronize()
                self._compare(slot, eager)

    def _compare(self, slot: Slot, eager: Tensor) -> None:
        largest = float(eager.abs().max())
        difference = float((slot.host_out - eager).abs().max())
        if not (largest > 0 and difference <= REPLAY_TOLERANCE * largest):
            raise SolverError(
                f"{self._task.name} on {describe(self.backend, self.precision)}: the CUDA graph for {slot.n} samples "
                f"differs from the eager run by {difference:.3g}, the largest moment being {largest:.3g} nA m; equal to "
                f"{REPLAY_TOLERANCE:g} of it is expected. It is not used. Another driver or torch may do it right."
            )

    def load(self, *operands: Float32) -> None:
        with self._on_gpu("has failed"):
            for own, operand in zip(self._operands, operands, strict=True):
                own.copy_(torch.from_numpy(operand), non_blocking=True)
            self._stream.synchronize()  # from ordinary memory: it must not change before it is copied

    def watch(self, watch: GpuWatch) -> None:
        with self._on_gpu("cannot be timed"), torch.inference_mode():
            for slot in self._slots:
                parts = np.array([self._parts_ms(slot) for _ in range(N_TIMED)])
                watch.stages_ms[slot.n] = dict(zip(STAGES, np.median(parts, axis=0).tolist(), strict=True))
        self._watch = watch

    def _parts_ms(self, slot: Slot) -> list[float]:
        """Copy in, computing and copy out of one eager run."""
        marks = [self._mark()]
        for part in (
            lambda: slot.given.copy_(slot.host_in, non_blocking=True),
            lambda: self._enqueue(slot),
            lambda: slot.host_out.copy_(slot.said, non_blocking=True),
        ):
            part()
            marks.append(self._mark())
        self._stream.synchronize()
        return [begin.elapsed_time(end) for begin, end in pairwise(marks)]

    def _mark(self) -> Any:
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record(self._stream)
        return mark

    def _replay_watched(self, slot: Slot, watch: GpuWatch) -> None:
        with torch.cuda.nvtx.range(f"{self._task.name}, {slot.n} samples") if watch.nvtx else nullcontext():
            begin = self._mark()
            slot.graph.replay()
            end = self._mark()
            end.synchronize()
        watch.ms.append(begin.elapsed_time(end))

    def __call__(self, samples: Float32) -> Float32:
        moments = np.empty((len(samples), self._task.n_out), np.float32)
        done = 0
        with self._on_gpu("has failed"):
            while done < len(samples):
                slot = next((slot for slot in self._slots if slot.n >= len(samples) - done), self._slots[-1])
                n = min(slot.n, len(samples) - done)
                slot.host_in.numpy()[:n] = samples[done : done + n]
                if self._watch is None:
                    slot.graph.replay()
                else:
                    self._replay_watched(slot, self._watch)
                self._stream.synchronize()
                moments[done : done + n] = slot.host_out.numpy()[:n]
                done += n
        return moments

    @contextmanager
    def _on_gpu(self, what: str) -> Iterator[None]:
        """On its GPU and stream; what CUDA raises comes out as a SolverError."""
        with _told(self._task.name, self.device, what), torch.cuda.device(self._where), torch.cuda.stream(self._stream):
            yield

    def close(self) -> None:
        """Give back graphs and buffers."""
        self._slots, self._operands = [], ()


class CudaRunner(GraphedRunner):
    """torch on a GPU."""

    backend = "torch-cuda"

    def __init__(self, task: Task, precision: Precision = "fp32", device: int = 0) -> None:
        super().__init__(task, precision, device)
        with self._on_gpu("cannot take the network"):
            self._module = deepcopy(task.module(precision)).requires_grad_(False).to(self._where)
        with _tensor_cores(precision == "tf32"):
            self._capture()

    def _enqueue(self, slot: Slot) -> None:
        slot.said.copy_(self._module(slot.given, *self._operands))

    def close(self) -> None:
        super().close()
        self._module = None


@contextmanager
def _tensor_cores(allowed: bool) -> Iterator[None]:
    """Whether single-precision products may be rounded to TF32; what was captured stays as it was chosen."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


@contextmanager
def _told(task: str, device: str, what: str) -> Iterator[None]:
    """What CUDA raises as a SolverError that says what to do."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise SolverError(
            f"{task} on {device}: GPU memory is exhausted ({_first_line(error)}). Free some (nvidia-smi lists who holds "
            'it), or set backend = "torch" under [solver].'
        ) from error
    except RuntimeError as error:
        raise SolverError(
            f"{task} on {device}: the GPU {what} ({_first_line(error)}). Nothing that it says is used. Look at nvidia-smi "
            'and the kernel log, or set backend = "torch" under [solver].'
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
