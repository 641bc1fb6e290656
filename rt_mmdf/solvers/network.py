"""A trained network as a solver. Importing this module imports torch; the chain of a classical solver must not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import mne
import numpy as np
from numpy.typing import NDArray

from rt_mmdf.backends.accuracy import trial_samples, trial_windows
from rt_mmdf.backends.choice import Choice, Programs, Trial, choose, tried_runner
from rt_mmdf.backends.interface import GpuWatch, Precision, Runner, Wanted, describe
from rt_mmdf.backends.torch_backend import RunnerBackend, TorchBackend, load_weights
from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.errors import ArtefactError, ConfigurationError, SolverError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.whitener import Whitener, make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.fusion import FusionNetwork
from rt_mmdf.networks.fusion_graph import WindowLook, example_row, operands_of
from rt_mmdf.networks.interface import ForwardArrays
from rt_mmdf.networks.pictures import PictureNetwork
from rt_mmdf.runtime.background import Background, Pending
from rt_mmdf.solvers.artefact import UNIT, Artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.operators import channels_to_use
from rt_mmdf.solvers.tasks import factor_task, picture_operands, picture_task, window_task
from rt_mmdf.solvers.windows import N_TRIED, EstimateRunner, WindowPrograms

A_M_PER_NA_M = np.float32(1e-9)
WARM_UP = (1, 10)  # samples of the calls before a solver is handed out: first calls allocate and are slow

logger = logging.getLogger(__name__)


@dataclass
class RefreshCounts:
    """Windows that were taken: `taken`; of which `late` were not ready when they were to come into force."""

    taken: int = 0
    late: int = 0

    def clear(self) -> None:
        """Count from 0 again."""
        self.taken = self.late = 0


class NetworkSolver:
    """Images whitened sensors with a network.

    Networks that see one sample image each sample by itself. The others also see a window of about 100 Hz: every
    `step`-th column up to the newest, at most `n_times` of them, those left out that are unknown (NaN, or zero in all
    channels, as before the first sample). Their window, or what they make of it, is taken anew with every `refresh`-th
    sample that this solver images, at that sample, and serves the samples up to the next. So an estimate depends on the
    columns and on the sample with which the solver began, not on how the stream was cut into hops, if the window that is
    given is longer than the network's by one hop.

    What takes long need not keep a hop waiting: with a `lag`, what is made of a window comes into force so many samples
    after the window's last one, and is made meanwhile by `background`, another thread. The lag is a number of samples,
    whatever the machine: the estimates are those that one thread would make. Only the first window, without which nothing
    can be imaged, is waited for. What is not ready when it should come into force is counted as late; the one before serves
    on until it is, and no further window is taken before.

    Parameters
    ----------
    backend : with the network and its operators
    n_sources, n_channels : of the network
    rows : rows of the network that the rows of the stream are
    n_times, step, refresh, lag : see above, samples; `lag` is at most `refresh`
    background : None: what is made of a window is made at once (and comes into force with the lag all the same)
    counts : is counted up
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
        lag: int = 0,
        background: Background | None = None,
        counts: RefreshCounts | None = None,
    ) -> None:
        if min(n_times, step, refresh) < 1:
            raise SolverError(f"network: n_times {n_times}, step {step}, refresh {refresh} samples; 1 at least is expected")
        if not 0 <= lag <= refresh:
            raise SolverError(f"network: lag {lag} samples; 0 to {refresh}, those between two windows, are expected")
        self._backend = backend
        self._n_sources, self._n_channels = n_sources, n_channels
        self._rows = None if np.array_equal(rows, np.arange(n_channels)) else rows
        self._n_times, self._step, self._refresh, self._lag = n_times, step, refresh, lag
        self._background, self._counts = Background(), RefreshCounts()
        self.reset()
        for n in WARM_UP:
            self._image(np.ones((n_channels, n_times * step + n), np.float32), n)
        if background is not None:
            self._background = background
        if counts is not None:
            self._counts = counts
        self.reset()

    def reset(self) -> None:
        """Forget the window that was kept."""
        self._context: Any = None
        self._coming: Pending[Any] | None = None
        self._left = self._due = 0  # samples up to the next window, and until the one that is coming comes into force
        self._is_late = False

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
                self._take_in()
                self._look(window, old + done)
                self._left = self._refresh
            self._take_in()
            n = min(self._left, n_new - done)
            if self._coming is not None and self._due > 0:
                n = min(n, self._due)
            parts.append(self._backend.image(samples[done : done + n], self._context))
            done, self._left, self._due = done + n, self._left - n, self._due - n
        return self._estimate(parts)

    def _look(self, window: Float32, newest: int) -> None:
        """Have something made of the window up to the column `newest`, unless the one before is not ready yet."""
        if self._coming is not None:
            return
        columns = self._columns(window, newest)
        self._counts.taken += 1
        if self._context is None or self._lag == 0:
            self._context = self._backend.context(columns)
        else:
            self._coming = self._background.ask(lambda: self._backend.context(columns))
            self._due, self._is_late = self._lag, False

    def _take_in(self) -> None:
        """What has been made of a window comes into force, if it is its time."""
        if self._coming is None or self._due > 0:
            return
        if self._coming.ready:
            try:
                self._context, self._coming = self._coming.value(), None
            except Exception as error:
                raise SolverError(
                    f"network: nothing can be made of a window: {type(error).__name__}: {error}. Are its numbers finite?"
                ) from error
        elif not self._is_late:
            self._is_late = True
            self._counts.late += 1

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


@dataclass(frozen=True, eq=False)
class Fitted:
    """A network for the channels of the moment.

    used : names of those that enter
    rows : of the network, that the rows of the stream are
    arrays, prepared : of all channels of the network, and what it makes of them
    """

    whitener: Whitener
    used: frozenset[str]
    rows: NDArray[np.intp]
    arrays: ForwardArrays
    prepared: Any


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
    lag_ms : how long after its last sample a window comes into force, at most `refresh_ms`; see `NetworkSolver`
    backend, precision : that every sample is imaged with, see `rt_mmdf.backends.choice.choose`; windows are looked at with
        the same one, or with "auto" the fastest for them, in single precision
    gpu_watch : what its calls on a GPU take is noted there

    Attributes
    ----------
    network : with its weights
    background : does, for solvers that lag, what takes long
    refreshed : counts of all solvers that lag
    choice : the backend; None before the first operator, and for networks that torch alone can run
    window_choice : likewise, of what is made of windows; None for networks that see none

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
        lag_ms: float = 0.0,
        backend: Wanted = "torch",
        precision: Precision = "fp32",
        gpu_watch: GpuWatch | None = None,
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
        self._sfreq = sfreq
        self._lag = min(self._refresh, round(lag_ms * 1e-3 * sfreq))
        self._wanted: Wanted = backend
        self._precision: Precision = precision
        self.gpu_watch = gpu_watch
        self._programs: dict[tuple[tuple[int, ...], ...], Programs] = {}
        self._window_programs: dict[tuple[tuple[int, ...], ...], Programs] = {}
        self.choice: Choice | None = None
        self.window_choice: Choice | None = None
        self.background, self.refreshed = Background(), RefreshCounts()
        # the rows that the network sees: those of its training, or, where it does not matter, those that stream
        self._seen = channels if artefact.head_free else head.channels
        used = channels_to_use(head, self._seen, bads if artefact.head_free else (), (), artefact.name)
        whitener = make_whitener(self._seen, used, head.info, noise_cov, self._projs)
        try:
            self.network = build_network(artefact.kind, artefact.options, forward_arrays(head, whitener, used))
            load_weights(self.network, artefact.weights)
        except (ValueError, ConfigurationError) as error:
            raise ArtefactError(
                f"model {artefact.name!r} ({artefact.folder}): the {artefact.kind} network for {len(self._seen)} channels "
                f"and {head.n_sources} sources of head model {head.name!r} cannot be made of it: {error}. Use the head and "
                "array that it was trained for (leave out [head]), or train it for these."
            ) from error

    @property
    def lag_ms(self) -> float:
        """How long after its last sample a window comes into force; 0 for networks that see none."""
        return 0.0 if self.artefact.n_times == 1 else 1e3 * self._lag / self._sfreq

    def window_length(self, hop: int) -> int:
        """Samples that the solver wants to see when `hop` are imaged at once."""
        if self.artefact.n_times == 1:
            return hop
        return (self.artefact.n_times - 1) * self._step + hop

    def build_operator(
        self, bads: Collection[str] = (), missing_modalities: Collection[Modality] = (), *, at_once: bool = False
    ) -> Operator:
        """Whitener and solver for the channels that can be used now; see `rt_mmdf.solvers.operators.build_operator`.

        Parameters
        ----------
        at_once : the solver does not lag: for whoever images much at once, averages for example

        Raises
        ------
        SolverError
            No channel is left, or the backend that was asked for cannot be had or is not true enough.
        """
        fitted = self.fit(bads, missing_modalities)
        solver = NetworkSolver(
            self._backend(fitted),
            n_sources=self._head.n_sources,
            n_channels=len(self._seen),
            rows=fitted.rows,
            n_times=self.artefact.n_times,
            step=self._step,
            refresh=self._refresh,
            lag=0 if at_once else self._lag,
            background=self.background,
            counts=None if at_once else self.refreshed,
        )
        return Operator(fitted.whitener, solver, fitted.used)

    def fit(self, bads: Collection[str] = (), missing_modalities: Collection[Modality] = ()) -> Fitted:
        """The network for the channels that can be used now; SolverError where there can be none."""
        name = self.artefact.name
        used = channels_to_use(self._head, self._channels, bads, missing_modalities, name)
        whitener = make_whitener(self._channels, used, self._head.info, self._noise_cov, self._projs)
        rows = self._seen.indices(self._channels.names)
        matrix = np.zeros((len(self._seen), len(self._seen)))
        matrix[np.ix_(rows, rows)] = whitener.matrix
        arrays = forward_arrays(self._head, Whitener(self._seen, matrix, whitener.rank), used)
        try:
            prepared = self.network.prepare(arrays)
        except ValueError as error:
            raise SolverError(
                f"{name}: the network cannot be prepared for {len(used)} channels of head {self._head.name!r}: {error}."
            ) from error
        return Fitted(whitener, used, rows, arrays, prepared)

    def trial(
        self, fitted: Fitted, samples: Float32 | None = None, window: Float32 | None = None
    ) -> tuple[Programs, Trial] | None:
        """The task of what is done for every sample, and what to try backends on; None for networks that have none.

        Parameters
        ----------
        samples : (n_channels, n), whitened, in the order of the network; None: simulated
        window : (n_channels, n_times), likewise, for networks that see one
        """
        network, arrays = self.network, fitted.arrays
        if samples is None:
            samples = trial_samples(arrays.leadfield, arrays.used)
        if isinstance(network, PictureNetwork):
            operands = picture_operands(fitted.prepared)
        elif callable(getattr(network, "factors", None)):
            if window is None:
                window = trial_windows(arrays.leadfield, arrays.used, 1, self.artefact.n_times)[0]
            _, factors = TorchBackend(network, fitted.prepared).context(window)
            operands = (factors[0].numpy(), factors[1].numpy())
        else:
            return None
        shapes = tuple(operand.shape for operand in operands)
        if shapes not in self._programs:
            if isinstance(network, PictureNetwork):
                task = picture_task(network, self.artefact.name)
            else:
                (n_channels, k), (_, n_sources) = shapes
                task = factor_task(n_channels, k, n_sources, self.artefact.name)
            self._programs[shapes] = Programs(task)
        trial = Trial(np.ascontiguousarray(samples.T), operands, arrays.positions_mm)
        return self._programs[shapes], trial

    def window_trial(self, fitted: Fitted, windows: Float32 | None = None) -> tuple[WindowPrograms, Trial] | None:
        """What is made of windows, and what to try backends for it on; None for networks that split no work.

        Parameters
        ----------
        windows : (n, n_channels, n_times), whitened, in the order of the network; None: simulated
        """
        network, arrays, prepared = self.network, fitted.arrays, fitted.prepared
        if not isinstance(network, FusionNetwork):
            return None
        if windows is None:
            windows = trial_windows(arrays.leadfield, arrays.used, N_TRIED, self.artefact.n_times)
        operands = operands_of(prepared, network)
        shapes = tuple(operand.shape for operand in operands)
        if shapes not in self._window_programs:
            row = example_row(network, prepared, windows[0])
            self._window_programs[shapes] = Programs(window_task(network, row, operands, f"{self.artefact.name}, windows"))
        programs = WindowPrograms(self._window_programs[shapes], network, prepared, arrays.n_channels)
        return programs, Trial(windows.reshape(len(windows), -1), (), arrays.positions_mm, of_windows=True)

    def _backend(self, fitted: Fitted) -> TorchBackend:
        """With the backend that was chosen when the first was made; each is tried before it images."""
        prepared = fitted.prepared
        plain = self._wanted == "torch" and self._precision == "fp32"  # nothing to choose, nothing to try
        if plain or (found := self.trial(fitted)) is None:
            return TorchBackend(self.network, prepared)
        programs, trial = found
        if self.choice is None:
            self.choice = choose(programs, trial, self._wanted, self._precision)
            name = describe(self.choice.backend, self.choice.precision)
            logger.info("model %r images with %s (%s)", self.artefact.name, name, self.choice.why)
        operands = trial.operands if isinstance(self.network, PictureNetwork) else None
        automatic = self.choice.automatic
        return RunnerBackend(
            self.network,
            prepared,
            self._runner(programs, trial),
            operands,
            (lambda error: self._spare(programs, error)) if automatic else None,
            self._look(fitted),
            self._look_lost if automatic else None,
        )

    def _look(self, fitted: Fitted) -> WindowLook | None:
        """What makes priors of windows; None: the network itself does, by torch on the processor.

        Windows stop no start: torch does for them what their backend does not, and the status tells why.
        """
        if (found := self.window_trial(fitted)) is None:
            return None
        programs, trial = found
        try:
            if self.window_choice is None:
                self.window_choice = choose(programs, trial, self._wanted, "fp32")
                name, why = self.window_choice.backend, self.window_choice.why
                logger.info("model %r looks at windows with %s (%s)", self.artefact.name, name, why)
            choice = self.window_choice
            if choice.backend == "torch" or choice.fallen_back is not None:
                return None
            runner = tried_runner(programs, trial, choice.backend, choice.precision)[0]
        except SolverError as error:
            if self.window_choice is None:
                self.window_choice = Choice("torch", "fp32", "cpu", "what was asked for cannot be had", False)
            self._look_lost(error)
            return None
        assert isinstance(runner, EstimateRunner)
        return runner.look

    def _look_lost(self, error: SolverError) -> None:
        """Windows are looked at by torch on the processor from now on."""
        assert self.window_choice is not None
        if self.window_choice.fallen_back is None:
            self.window_choice.fallen_back = str(error)
            logger.warning("%s: windows are looked at with torch on the processor: %s", self.artefact.name, error)

    def _runner(self, programs: Programs, trial: Trial) -> Runner:
        choice = self.choice
        assert choice is not None
        if choice.fallen_back is not None:
            return programs.runner("torch")
        try:
            runner = tried_runner(programs, trial, choice.backend, choice.precision)[0]
            if self.gpu_watch is not None:
                runner.watch(self.gpu_watch)
            return runner
        except SolverError as error:
            if not choice.automatic:
                raise
            return self._spare(programs, error)

    def _spare(self, programs: Programs, error: SolverError) -> Runner:
        """torch on the processor, in place of a backend that has failed."""
        assert self.choice is not None
        if self.choice.fallen_back is None:
            self.choice.fallen_back = str(error)
            logger.error("%s: imaging goes on with torch on the processor: %s", self.artefact.name, error)
        return programs.runner("torch")


def _plain(names: Sequence[str]) -> list[str]:
    """Neuromag's names are with or without a space, see `HeadModel.named_like`."""
    return [name.replace(" ", "") for name in names]
