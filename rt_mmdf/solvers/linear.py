"""Classical inverses as one matrix: MNE, dSPM, sLORETA and eLORETA, folded from mne's inverse operator."""

from __future__ import annotations

from typing import Literal, Self

import mne
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rt_mmdf.backends.interface import Precision, Wanted
from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.errors import SolverError
from rt_mmdf.core.settings import Settings
from rt_mmdf.solvers.lcmv import LcmvSettings

BLOCK = 128  # sources; 64 and 256 do as well, 512 and more fall back to packing

Method = Literal["MNE", "dSPM", "sLORETA", "eLORETA"]
LiveMethod = Literal["MNE", "dSPM", "sLORETA", "eLORETA", "LCMV"]
Orientation = Literal["fixed", "loose"]


class SolverSettings(Settings):
    """Which model, or which classical inverse and how strongly it is regularised.

    model : name or folder of a trained model; the keys of the classical inverses then do not apply, and must not be given
    refresh_ms : models that see a window look at it anew so often
    lag_ms : what such a model makes of a window comes into force so long after the window's end, and is made meanwhile
        beside the hops; no longer than `refresh_ms`, whatever is set. 0: a hop waits for it. What has just begun is not in
        an older window: refresh as often, and lag as little, as the machine can keep to (``late_windows`` of the health
        stream); tools/bench/lag.py measures what it costs.
    backend : that a model runs on. "auto": the fastest here that agrees with double precision; "torch" is the processor.
    precision : of a model on a GPU; processors compute in single precision
    gpu_times : of a model on a GPU: have CUDA events say how long each call takes there (``gpu_ms`` of the health stream);
        costs some microseconds a hop. `rt-mmdf profile` asks for it
    nvtx : of a model on a GPU: each call is a range of NVTX, for Nsight; with `gpu_times`
    snr : amplitude SNR that is assumed of the whitened data; lambda^2 = 1 / snr^2. 3 suits averages, 1 single samples.
    orientation : "fixed": sources normal to the cortex, signed. "loose": free, tangential variance times `loose`; the
        length of the three components is given out (pooled), always positive.
    depth : exponent of the depth weighting (mne's 0.8), 0 for none. eLORETA finds its own weights, whatever is set here.
        With dSPM, 0 gave the more plausible maps on real evoked responses: tools/figures/real_evoked.py.
    lcmv : of the beamformer, which knows neither snr nor depth
    """

    model: str | None = Field(None, min_length=1)
    refresh_ms: float = Field(50.0, gt=0, le=10_000)
    lag_ms: float = Field(30.0, ge=0, le=10_000)
    backend: Wanted = "auto"
    precision: Precision = "fp32"
    gpu_times: bool = False
    nvtx: bool = False
    method: LiveMethod = "dSPM"
    snr: float = Field(3.0, gt=0, le=100)
    orientation: Orientation = "fixed"
    loose: float = Field(0.2, gt=0, le=1)
    depth: float = Field(0.8, ge=0, le=5)
    lcmv: LcmvSettings = LcmvSettings()

    @model_validator(mode="after")
    def _one_solver(self) -> Self:
        of_models = {"model", "refresh_ms", "lag_ms", "backend", "precision", "gpu_times", "nvtx"}
        given = self.model_fields_set - of_models
        if self.model is not None and given:
            raise ValueError(
                f"model = {self.model!r} and {', '.join(sorted(given))}: one or the other; a model has none of these"
            )
        if self.nvtx and not self.gpu_times:
            raise ValueError("nvtx = true, but gpu_times = false: set both")
        if self.model is None and self.gpu_times:
            raise ValueError("gpu_times = true: it is of trained models; a classical inverse runs on the processor")
        if self.model is None and (self.backend != "auto" or self.precision != "fp32"):
            raise ValueError(
                f"backend = {self.backend!r}, precision = {self.precision!r}: they are of trained models; a classical "
                "inverse runs on the processor. Leave them out, or give a model"
            )
        if self.method == "LCMV" and self.orientation == "loose":
            raise ValueError('method = "LCMV" images sources normal to the cortex; leave out orientation = "loose"')
        return self

    @property
    def lambda2(self) -> float:
        """Regularisation, 1 / snr^2."""
        return 1.0 / self.snr**2

    @property
    def unit(self) -> str:
        """Unit of the estimate: "A m" for models, MNE, eLORETA and LCMV of unit gain, "" for standardised maps."""
        moments = self.model is not None or self.method in ("MNE", "eLORETA")
        return "A m" if moments or (self.method == "LCMV" and self.lcmv.weight_norm == "none") else ""


class LinearSolver:
    """One matrix product from whitened sensors to sources; with loose orientation the length of three components.

    Parameters
    ----------
    kernel : (n_orientations, n_sources, n_channels)
        From whitened sensors to amplitudes; `n_orientations` is 1 (signed output) or 3 (pooled output).
    unit : of the output
    """

    def __init__(self, kernel: NDArray[np.floating], unit: str) -> None:
        if kernel.ndim != 3 or kernel.shape[0] not in (1, 3):
            raise SolverError(
                f"linear solver: kernel of shape {kernel.shape} seen; expected (1 or 3, n_sources, n_channels)."
            )
        if not np.isfinite(kernel).all():
            raise SolverError(
                "linear solver: the kernel holds NaN or infinity; the leadfield or the noise covariance is wrong."
            )
        self._n_orientations, self._n_sources, self.n_channels = kernel.shape
        # transposed, since an outlet wants samples by sources; in blocks, since OpenBLAS multiplies small matrices without
        # packing them first: 10 samples of 366 channels and 5124 sources take 0.44 ms, in one piece 0.76 ms
        self._matrix = np.ascontiguousarray(kernel.reshape(-1, self.n_channels).T, dtype=np.float32)
        starts = range(0, self._matrix.shape[1], BLOCK)
        self._blocks = [np.ascontiguousarray(self._matrix[:, start : start + BLOCK]) for start in starts]
        self._unit = unit

    @property
    def n_sources(self) -> int:
        return int(self._n_sources)

    @property
    def unit(self) -> str:
        """Unit of the output: "A m", or "" for standardised maps."""
        return self._unit

    @property
    def kernel(self) -> Float32:
        """(n_orientations, n_sources, n_channels), what is multiplied with whitened sensors."""
        return self._matrix.T.reshape(self._n_orientations, self._n_sources, self.n_channels)

    def reset(self) -> None:
        """Nothing carries over: any number of threads may call one solver."""

    def __call__(self, window: Float32, n_new: int) -> Float32:
        """Image the newest samples of a window; see `rt_mmdf.solvers.interface.Solver`."""
        samples = window[:, window.shape[1] - n_new :].T
        product: Float32 = np.empty((n_new, self._matrix.shape[1]), dtype=np.float32)
        if n_new == 1:  # one vector needs no packing anyway
            np.matmul(samples, self._matrix, out=product)
        else:
            for start, block in zip(range(0, product.shape[1], BLOCK), self._blocks, strict=True):
                np.matmul(samples, block, out=product[:, start : start + BLOCK])
        if self._n_orientations == 1:
            return product.T
        components = product.reshape(n_new, self._n_orientations, self._n_sources)
        np.square(components, out=components)
        pooled: Float32 = components[:, 0] + components[:, 1]
        pooled += components[:, 2]
        return np.sqrt(pooled, out=pooled).T


def sensor_kernel(
    forward: mne.Forward, info: mne.Info, noise_cov: mne.Covariance, settings: SolverSettings
) -> NDArray[np.float64]:
    """Linear map from sensors in SI units to sources, with projectors and whitening inside.

    Parameters
    ----------
    forward : free orientation, of exactly the channels of `info`
    info : channels that are used, none bad, with all projectors (average EEG reference included)
    noise_cov : of at least these channels

    Returns
    -------
    (n_orientations, n_sources, n_channels) float64
        ``kernel @ data`` is mne's own estimate; with loose orientation its components along x, y and z.

    Raises
    ------
    SolverError
        mne cannot make an inverse operator of this.

    Notes
    -----
    Read off ``mne.minimum_norm.apply_inverse`` by applying it to the unit matrix: tests/solvers/test_parity.py.
    """
    fixed = settings.orientation == "fixed"
    try:
        inverse = mne.minimum_norm.make_inverse_operator(
            info,
            forward,
            noise_cov,
            loose=0.0 if fixed else settings.loose,
            fixed=fixed,
            depth=settings.depth or None,
            verbose="ERROR",
        )
        unit_data = mne.EvokedArray(np.eye(len(info["ch_names"])), info, nave=1, verbose="ERROR")
        estimate = mne.minimum_norm.apply_inverse(
            unit_data,
            inverse,
            lambda2=settings.lambda2,
            method=settings.method,
            pick_ori=None if fixed else "vector",
            verbose="ERROR",
        )
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        raise SolverError(
            f"{settings.method} on {len(info['ch_names'])} channels: mne cannot make an inverse operator ({error}). Check "
            "the noise covariance and the channels that are used."
        ) from error
    values: NDArray[np.float64] = estimate.data
    return values[np.newaxis] if fixed else np.ascontiguousarray(values.transpose(1, 0, 2))
