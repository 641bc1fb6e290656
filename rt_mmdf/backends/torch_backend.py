"""Runs a network on this machine's processor by torch: numpy in, numpy out, one thread, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rt_mmdf.backends.interface import Float32, Precision, Runner, Task
from rt_mmdf.core.errors import SolverError


class TorchBackend:
    """A network with the operators of one head, noise and set of channels.

    Networks that have a method ``prior(sample, window, prepared)`` split their work: the prior of a window is kept as its
    context, and ``estimate(samples, prior, prepared)`` images any samples under it; ``deviation(prior, prepared)`` is how
    uncertain that is. Where they also have ``factors(prior, prepared)``, the estimate as two matrices (n_channels, k) and
    (k, n_sources), these are made with each prior, and a sample costs two products. The context of the others is the window.

    Parameters
    ----------
    network : torch.nn.Module, see `rt_mmdf.networks.interface.SourceNetwork`
    prepared : what its `prepare` made
    look : makes the prior of a window (n_channels, n_times) in place of the network's own `prior`; None: that does
    look_lost : given the error of a `look` that has failed; the network's own `prior` takes its place. None: it is raised
    """

    def __init__(
        self,
        network: torch.nn.Module,
        prepared: Any,
        look: Callable[[Float32], Any] | None = None,
        look_lost: Callable[[SolverError], None] | None = None,
    ) -> None:
        self._network: Any = network.eval()
        self._prepared = prepared
        self._look, self._look_lost = look, look_lost
        self._splits = callable(getattr(network, "prior", None))
        self._factors = self._splits and callable(getattr(network, "factors", None))

    @torch.inference_mode()
    def context(self, window: Float32) -> Any:
        """What is kept of a window (n_channels, n_times), whose last column is imaged first."""
        whole = torch.from_numpy(window)[None]
        if not self._splits:
            return whole
        prior = self._prior(window, whole)
        return prior, self._network.factors(prior, self._prepared) if self._factors else None

    def _prior(self, window: Float32, whole: torch.Tensor) -> Any:
        if (look := self._look) is not None:
            try:
                return look(window)
            except SolverError as error:
                if self._look_lost is None:
                    raise
                self._look = None
                self._look_lost(error)
        return self._network.prior(whole[:, :, -1], whole, self._prepared)

    @torch.inference_mode()
    def image(self, samples: Float32, context: Any = None) -> Float32:
        """Moments of samples (n, n_channels): (n, n_sources) nA m."""
        given = torch.from_numpy(samples)
        if not self._splits or context is None:
            moments = self._network(given, context, self._prepared).moments
        else:
            prior, factors = context
            if factors is None:
                moments = self._network.estimate(given, prior, self._prepared).moments
            else:
                moments = (given @ factors[0]) @ factors[1]
        seen: Float32 = moments.numpy()
        return seen

    @torch.inference_mode()
    def deviation(self, context: Any) -> Float32 | None:
        """Posterior standard deviation under a context, (n_sources,) nA m; None for networks that know none."""
        if not self._splits or not callable(getattr(self._network, "deviation", None)):
            return None
        deviation: Float32 = self._network.deviation(context[0], self._prepared)[0].numpy()
        return deviation

    @torch.inference_mode()
    def image_cases(self, samples: Float32, windows: Float32 | None) -> Float32:
        """Moments (n, n_sources), nA m, of samples (n, n_channels), each in a window (n, n_channels, n_times) of its own."""
        given = None if windows is None else torch.from_numpy(windows)
        moments: Float32 = self._network(torch.from_numpy(samples), given, self._prepared).moments.numpy()
        return moments


class TorchRunner(Runner):
    """A task by torch on the processor."""

    backend = "torch"
    precision: Precision = "fp32"
    device = "cpu"

    def __init__(self, task: Task) -> None:
        self._module: Any = task.module("fp32")
        self._operands: tuple[torch.Tensor, ...] = ()

    def load(self, *operands: Float32) -> None:
        self._operands = tuple(torch.from_numpy(operand) for operand in operands)

    @torch.inference_mode()
    def __call__(self, samples: Float32) -> Float32:
        moments: Float32 = self._module(torch.from_numpy(samples), *self._operands).numpy()
        return moments


class RunnerBackend(TorchBackend):
    """As `TorchBackend`, but what is done for every sample is done by a runner of any backend.

    Parameters
    ----------
    runner : of the network's task
    operands : that it is loaded with; None: the factors of each prior
    spare : given the error of a runner that has failed, another one, which takes its place; None: the error is raised
    look, look_lost : see `TorchBackend`
    """

    def __init__(
        self,
        network: torch.nn.Module,
        prepared: Any,
        runner: Runner,
        operands: tuple[Float32, ...] | None = None,
        spare: Callable[[SolverError], Runner] | None = None,
        look: Callable[[Float32], Any] | None = None,
        look_lost: Callable[[SolverError], None] | None = None,
    ) -> None:
        super().__init__(network, prepared, look, look_lost)
        self._runner, self._operands, self._spare = runner, operands, spare
        self._loaded: Any = self  # nothing yet

    def image(self, samples: Float32, context: Any = None) -> Float32:
        """Moments of samples (n, n_channels): (n, n_sources) nA m; SolverError where the device has failed."""
        try:
            return self._image(samples, context)
        except SolverError as error:
            if self._spare is None:
                raise
            self._runner, self._spare, self._loaded = self._spare(error), None, self
        return self._image(samples, context)

    def _image(self, samples: Float32, context: Any) -> Float32:
        if context is not self._loaded:
            operands = tuple(factor.numpy() for factor in context[1]) if self._operands is None else self._operands
            self._runner.load(*operands)
            self._loaded = context
        return self._runner(samples)


def in_double(backend: TorchBackend) -> Any:
    """The same network with the same operators in double precision, what others are compared with: of no hop's concern."""
    return TorchBackend(deepcopy(backend._network).double(), _doubled(backend._prepared))


def _doubled(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_doubled(entry) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{entry.name: _doubled(getattr(value, entry.name)) for entry in fields(value)})
    return value


def load_weights(network: torch.nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Put weights into a network; ValueError that names those that are missing, left over, or of another shape."""
    own = network.state_dict()
    wrong = [f"{key} is missing" for key in own.keys() - weights.keys()]
    wrong += [f"{key} is not known to the network" for key in weights.keys() - own.keys()]
    wrong += [
        f"{key} has shape {weights[key].shape}, {tuple(own[key].shape)} is expected"
        for key in own.keys() & weights.keys()
        if tuple(own[key].shape) != weights[key].shape
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} weights do not fit: {'; '.join(sorted(wrong)[:3])}")
    network.load_state_dict({key: torch.from_numpy(np.array(values)) for key, values in weights.items()})
    network.requires_grad_(False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Each product by one thread: the cores are shared with the receivers, and a pool of threads only waits for itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
