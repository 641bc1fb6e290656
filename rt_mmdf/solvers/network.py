"""A trained network as a solver. Importing this module imports torch; the chain of a classical solver must not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import mne
import numpy as np
from numpy.typing import NDArray

from rt_mmdf.backends.torch_backend import TorchBackend, load_weights
from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.errors import ArtefactError, ConfigurationError, SolverError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.whitener import Whitener, make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.solvers.artefact import UNIT, Artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.operators import channels_to_use

A_M_PER_NA_M = np.float32(1e-9)
WARM_UP = (1, 10)  # samples of the calls before a solver is handed out: first calls allocate and are slow


class NetworkSolver:
    """Images whitened sensors with a network.

    Networks that see one sample image each sample by itself. The others also see a window of about 100 Hz: every
    `step`-th column up to the newest, at most `n_times` of them, those left out that are unknown (NaN, or zero in all
    channels, as before the first sample). Their window, or what they make of it, is taken anew with every `refresh`-th
    sample that this solver images, at that sample, and serves the samples up to the next. So an estimate depends on the
    columns and on the sample with which the solver began, not on how the stream was cut into hops, if the window that is
    given is longer than the network's by one hop.

    Parameters
    ----------
    backend : with the network and its operators
    n_sources, n_channels : of the network
    rows : rows of the network that the rows of the stream are
    n_times, step, refresh : see above, samples
    """

    def __init__(
        self,
        backend: TorchBackend,
        *,
        n_sources: int,
        n_channels: int,
        rows: NDArray[np.intp],
        n_times: int = 1,
        step: int = 1,
        refresh: int = 1,
    ) -> None:
        if min(n_times, step, refresh) < 1:
            raise SolverError(f"network: n_times {n_times}, step {step}, refresh {refresh} samples; 1 at least is expected")
        self._backend = backend
        self._n_sources, self._n_channels = n_sources, n_channels
        self._rows = None if np.array_equal(rows, np.arange(n_channels)) else rows
        self._n_times, self._step, self._refresh = n_times, step, refresh
        self.reset()
        for n in WARM_UP:
            self._image(np.ones((n_channels, n_times * step + n), np.float32), n)
        self.reset()

    def reset(self) -> None:
        """Forget the window that was kept."""
        self._context: Any = None
        self._left = 0

    def deviation(self) -> Float32 | None:
        """Posterior standard deviation of what is imaged now, (n_sources,) A m: how uncertain it is, whatever the sample.

        None before the first estimate, and for networks that know none. It costs more than an estimate: not for every hop.
        """
        deviation = None if self._context is None else self._backend.deviation(self._context)
        return None if deviation is None else deviation * A_M_PER_NA_M

    @property
    def n_sources(self) -> int:
        return self._n_sources

    @property
    def unit(self) -> str:
        """ "A m"."""
        return UNIT

    def __call__(self, window: Float32, n_new: int) -> Float32:
        """Image the newest samples of a window; see `rt_mmdf.solvers.interface.Solver`."""
        if n_new == 0:
            return np.empty((self._n_sources, 0), np.float32)
        if self._rows is None:
            return self._image(window, n_new)
        whole = np.zeros((self._n_channels, window.shape[1]), np.float32)
        whole[self._rows] = window
        return self._image(whole, n_new)

    def _image(self, window: Float32, n_new: int) -> Float32:
        old = window.shape[1] - n_new
        samples = np.array(window[:, old:].T, order="C")  # a copy: the window is read-only and goes on
        if self._n_times == 1:
            return self._estimate([self._backend.image(samples)])
        parts, done = [], 0
        while done < n_new:
            if self._left == 0:
                self._context = self._backend.context(self._columns(window, old + done))
                self._left = self._refresh
            n = min(self._left, n_new - done)
            parts.append(self._backend.image(samples[done : done + n], self._context))
            done, self._left = done + n, self._left - n
        return self._estimate(parts)

    def _columns(self, window: Float32, newest: int) -> Float32:
        """What the network sees when the column `newest` is the newest."""
        columns = window[:, newest :: -self._step][:, : self._n_times]
        extreme = np.abs(columns).max(axis=0)  # NaN where there is one
        known = np.isfinite(extreme) & (extreme > 0)
        known[0] = True
        return np.array(columns[:, known][:, ::-1], order="C")  # not ascontiguousarray: one column keeps its negative stride

    def _estimate(self, parts: Sequence[Float32]) -> Float32:
        moments = parts[0] if len(parts) == 1 else np.vstack(parts)
        estimate: Float32 = (moments * A_M_PER_NA_M).T
        return estimate


class TrainedNetwork:
    """The network of an artefact with its weights, for one head and noise: makes the solver for any channels of it.

    Parameters
    ----------
    artefact : Artefact
    head : to image with; networks that are not `head_free` take only the one of the artefact (`Artefact.check_head`)
    channels : that stream, all of them in the head
    noise_cov, projs : that the stream is whitened with
    bads : names of channels that are never used
    sfreq : of what is imaged, Hz
    refresh_ms : how often the window is taken anew

    Raises
    ------
    ArtefactError
        Network, weights, head and channels do not fit each other.
    """

    def __init__(
        self,
        artefact: Artefact,
        head: HeadModel,
        channels: Channels,
        noise_cov: mne.Covariance,
        projs: Sequence[mne.Projection] = (),
        *,
        bads: Collection[str] = (),
        sfreq: float,
        refresh_ms: float,
    ) -> None:
        if not artefact.head_free and _plain(head.ch_names) != _plain(artefact.channels.names):
            raise ArtefactError(
                f"model {artefact.name!r}: the {len(head.ch_names)} channels of head model {head.name!r} are not the "
                f"{len(artefact.channels)} of the model in its order. Image with the model's own head: leave out [head]."
            )
        self.artefact = artefact
        self._head, self._channels = head, channels
        self._noise_cov, self._projs = noise_cov, tuple(projs)
        self._step = max(1, round(sfreq / artefact.window_sfreq))
        self._refresh = max(1, round(refresh_ms * 1e-3 * sfreq))
        # the rows that the network sees: those of its training, or, where it does not matter, those that stream
        self._seen = channels if artefact.head_free else head.channels
        used = channels_to_use(head, self._seen, bads if artefact.head_free else (), (), artefact.name)
        whitener = make_whitener(self._seen, used, head.info, noise_cov, self._projs)
        try:
            self._network = build_network(artefact.kind, artefact.options, forward_arrays(head, whitener, used))
            load_weights(self._network, artefact.weights)
        except (ValueError, ConfigurationError) as error:
            raise ArtefactError(
                f"model {artefact.name!r} ({artefact.folder}): the {artefact.kind} network for {len(self._seen)} channels "
                f"and {head.n_sources} sources of head model {head.name!r} cannot be made of it: {error}. Use the head and "
                "array that it was trained for (leave out [head]), or train it for these."
            ) from error

    def window_length(self, hop: int) -> int:
        """Samples that the solver wants to see when `hop` are imaged at once."""
        if self.artefact.n_times == 1:
            return hop
        return (self.artefact.n_times - 1) * self._step + hop

    def build_operator(self, bads: Collection[str] = (), missing_modalities: Collection[Modality] = ()) -> Operator:
        """Whitener and solver for the channels that can be used now; see `rt_mmdf.solvers.operators.build_operator`."""
        name = self.artefact.name
        used = channels_to_use(self._head, self._channels, bads, missing_modalities, name)
        whitener = make_whitener(self._channels, used, self._head.info, self._noise_cov, self._projs)
        rows = self._seen.indices(self._channels.names)
        matrix = np.zeros((len(self._seen), len(self._seen)))
        matrix[np.ix_(rows, rows)] = whitener.matrix
        arrays = forward_arrays(self._head, Whitener(self._seen, matrix, whitener.rank), used)
        try:
            prepared = self._network.prepare(arrays)
        except ValueError as error:
            raise SolverError(
                f"{name}: the network cannot be prepared for {len(used)} channels of head {self._head.name!r}: {error}."
            ) from error
        solver = NetworkSolver(
            TorchBackend(self._network, prepared),
            n_sources=self._head.n_sources,
            n_channels=len(self._seen),
            rows=rows,
            n_times=self.artefact.n_times,
            step=self._step,
            refresh=self._refresh,
        )
        return Operator(whitener, solver, used)


def _plain(names: Sequence[str]) -> list[str]:
    """Neuromag's names are with or without a space, see `HeadModel.named_like`."""
    return [name.replace(" ", "") for name in names]
