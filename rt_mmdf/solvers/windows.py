"""Backends for what a network makes of windows: tried on the estimates that follow from it, and the looks that they do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.backends.accuracy import Accuracy, Limits, accuracy_of, window_limits
from rt_mmdf.backends.choice import Programs, Trial
from rt_mmdf.backends.interface import BackendName, Float32, Precision, Runner
from rt_mmdf.backends.torch_backend import TorchBackend, in_double
from rt_mmdf.networks.fusion import FusionNetwork, PreparedFusion
from rt_mmdf.networks.fusion_graph import WindowLook, operands_of
from rt_mmdf.runtime.turns import Turns

N_TRIED = 6
"""Windows that backends are tried on."""


class EstimateRunner(Runner):
    """Moments (n, n_sources) of the last columns of windows (n, n_channels * n_times), each under the prior of its own.

    look : makes these priors by the backend; None: the network itself does, by torch on the processor
    """

    def __init__(
        self, network: FusionNetwork, prepared: PreparedFusion, n_channels: int, inner: Runner | None = None
    ) -> None:
        self.backend: BackendName = "torch" if inner is None else inner.backend
        self.precision: Precision = "fp32"
        self.device = "cpu" if inner is None else inner.device
        self._n_channels, self._inner = n_channels, inner
        self._turns = Turns()
        self.look: WindowLook | None = None
        if inner is not None:
            inner.load(*operands_of(prepared, network))
            self.look = WindowLook(network, prepared, self._say)
        self._backend = TorchBackend(network, prepared, self.look)

    def _say(self, row: Float32) -> Float32:
        assert self._inner is not None
        with self._turns:  # a window that was given up may still be looked at by the other thread
            return self._inner(row)

    def load(self, *operands: Float32) -> None:
        """There are none: those of the network were taken when it was made."""

    def __call__(self, samples: Float32) -> Float32:
        return _estimates(self._backend, samples, self._n_channels)

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()


class WindowPrograms(Programs):
    """The backends of a window task for the operators of one head, noise and set of channels.

    Parameters
    ----------
    programs : of the task, shared by all operators of the same shapes
    """

    def __init__(self, programs: Programs, network: FusionNetwork, prepared: PreparedFusion, n_channels: int) -> None:
        super().__init__(programs.task)
        self.shared = programs
        self._network, self._prepared, self._n_channels = network, prepared, n_channels
        self._truths: dict[Trial, NDArray[np.float64]] = {}
        self._by_torch: dict[Trial, Accuracy] = {}

    def runner(self, backend: BackendName, precision: Precision = "fp32") -> EstimateRunner:
        """One that makes final estimates; see `Programs.runner`."""
        inner = None if backend == "torch" else self.shared.runner(backend, precision)
        return EstimateRunner(self._network, self._prepared, self._n_channels, inner)

    def limits(self, trial: Trial, precision: Precision) -> Limits:
        """About as true as torch; see `window_limits`."""
        if trial not in self._by_torch:
            said = self.runner("torch")(trial.samples)
            self._by_torch[trial] = accuracy_of(said, self.truth(trial), trial.positions_mm, of_windows=True)
        return window_limits(self._by_torch[trial])

    def truth(self, trial: Trial) -> NDArray[np.float64]:
        """Estimates in double precision from the windows on."""
        if trial not in self._truths:
            exact: TorchBackend = in_double(TorchBackend(self._network, self._prepared))
            self._truths[trial] = _estimates(exact, trial.samples.astype(np.float64), self._n_channels)
        return self._truths[trial]


def _estimates(backend: TorchBackend, samples: NDArray[Any], n_channels: int) -> NDArray[Any]:
    estimates = []
    for sample in samples:
        window = sample.reshape(n_channels, -1)
        estimates.append(backend.image(np.ascontiguousarray(window[:, -1:].T), backend.context(window)))
    return np.vstack(estimates)
