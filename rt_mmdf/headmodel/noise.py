"""Noise covariance: from a file, ad hoc by channel type, or measured live."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rt_mmdf.core.channels import Channels
from rt_mmdf.core.errors import NoiseCovarianceError
from rt_mmdf.core.settings import Settings

ENOUGH_SAMPLES_PER_CHANNEL = 5  # Engemann & Gramfort (2015), doi 10.1016/j.neuroimage.2014.12.040: fewer need shrinkage

# Standard deviations of mne.make_ad_hoc_cov: 5 fT/cm, 20 fT, 0.2 uV
AD_HOC_STD = {"grad": 5e-13, "mag": 20e-15, "eeg": 0.2e-6}


class RegularisationSettings(Settings):
    """How much of each type's mean variance is added to the diagonal; mne's ``mne.cov.regularize``."""

    mag: float = Field(0.05, ge=0, le=1)
    grad: float = Field(0.05, ge=0, le=1)
    eeg: float = Field(0.1, ge=0, le=1)


def read_noise_cov(path: Path, ch_names: Sequence[str]) -> mne.Covariance:
    """Read a covariance (-cov.fif) and check that it serves these channels.

    Returns
    -------
    mne.Covariance
        Of all channels in the file, V^2, T^2, (T/m)^2.

    Raises
    ------
    NoiseCovarianceError
        The file cannot be read, lacks some of the channels, or holds values that no noise can have.
    """
    try:
        noise_cov = mne.read_cov(path, verbose="ERROR")
    except FileNotFoundError as error:
        raise NoiseCovarianceError(
            f"noise covariance {path}: no such file. Measure one with `rt-mmdf calibrate`, or choose the ad hoc one."
        ) from error
    except Exception as error:  # mne's reader fails in many ways on a file of another kind
        raise NoiseCovarianceError(
            f"noise covariance {path}: cannot be read ({type(error).__name__}: {error}); a -cov.fif is expected."
        ) from error
    noise_cov["data"] = noise_cov["data"].astype(np.float64)  # a diagonal one is big-endian in the file: mne fails on that
    check_noise_cov(noise_cov, ch_names, where=f"noise covariance {path}")
    return noise_cov


def check_noise_cov(noise_cov: mne.Covariance, ch_names: Sequence[str], where: str = "noise covariance") -> None:
    """Raise NoiseCovarianceError unless the covariance can whiten these channels."""
    own = {name: i for i, name in enumerate(noise_cov["names"])}
    if missing := [name for name in ch_names if name not in own]:
        listed = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise NoiseCovarianceError(
            f"{where}: {len(missing)} of {len(ch_names)} channels are not in it ({listed}); it has {len(own)} channels "
            f"({', '.join(list(own)[:3])}, ...). Measure one for these channels: rt-mmdf calibrate --help"
        )
    index = np.array([own[name] for name in ch_names], dtype=np.intp)
    data = noise_cov["data"][index] if noise_cov["diag"] else noise_cov["data"][np.ix_(index, index)]
    variances = data if noise_cov["diag"] else np.diag(data)
    wrong = ~np.isfinite(variances) | (variances <= 0)
    if not noise_cov["diag"]:
        wrong |= ~np.isfinite(data).all(axis=1)
    if wrong.any():
        names = [name for name, bad in zip(ch_names, wrong, strict=True) if bad]
        raise NoiseCovarianceError(
            f"{where}: {len(names)} channels have no positive, finite variance ({', '.join(names[:8])}). They were flat or "
            "invalid when it was measured: mark them as bad, or measure again."
        )
    n_samples = int(noise_cov["nfree"])
    if not noise_cov["diag"] and 0 < n_samples < len(ch_names):
        rank = np.linalg.matrix_rank(data / np.sqrt(np.outer(variances, variances)), hermitian=True)
        if rank < len(ch_names) - len(ch_names) // 10:  # regularisation fills the rank; projectors take a few dimensions
            raise NoiseCovarianceError(
                f"{where}: rank {rank} on {len(ch_names)} channels, measured from {n_samples} samples. Expected are "
                f"at least {ENOUGH_SAMPLES_PER_CHANNEL * len(ch_names)} samples, or a regularised one. Measure longer."
            )


def ad_hoc_noise_cov(channels: Channels) -> mne.Covariance:
    """Diagonal covariance by channel type, the standard deviations of ``mne.make_ad_hoc_cov``.

    For a first look without a measurement: colour and true level of the noise are not in it.
    """
    imaged = [i for i, kind in enumerate(channels.types) if kind.modality is not None]
    variances = np.array([AD_HOC_STD[channels.types[i].value] ** 2 for i in imaged])
    return mne.Covariance(variances, [channels.names[i] for i in imaged], bads=[], projs=[], nfree=0, verbose="ERROR")


def regularised(
    noise_cov: mne.Covariance,
    info: mne.Info,
    settings: RegularisationSettings | None = None,
) -> mne.Covariance:
    """The covariance with a part of each type's mean variance on its diagonal, projectors of `info` respected.

    Parameters
    ----------
    info : mne.Info
        Types of the channels, and the projectors that will be applied (`rt_mmdf.headmodel.whitener.imaging_info`).

    Raises
    ------
    NoiseCovarianceError
        mne refuses: signal-space separated MEG needs the same value for `mag` and `grad`.
    """
    settings = settings or RegularisationSettings()
    if noise_cov["diag"]:  # mne regularises full matrices only
        noise_cov = mne.Covariance(
            np.diag(noise_cov["data"]),
            noise_cov["names"],
            noise_cov["bads"],
            noise_cov["projs"],
            noise_cov["nfree"],
            verbose="ERROR",
        )
    # the rank that the data show (lower after signal-space separation), unless they are too short to show it
    short = 0 < int(noise_cov["nfree"]) < ENOUGH_SAMPLES_PER_CHANNEL * len(noise_cov["names"])
    rank = "full" if short else None
    try:
        return mne.cov.regularize(
            noise_cov, info, mag=settings.mag, grad=settings.grad, eeg=settings.eeg, rank=rank, verbose="ERROR"
        )
    except (ValueError, RuntimeError) as error:
        raise NoiseCovarianceError(f"noise covariance: mne cannot regularise it with {settings!r}: {error}") from error


class NoiseCovarianceEstimator:
    """Covariance of a stream, block by block, about its own mean; the cuts between the blocks do not matter.

    Samples with a NaN or an infinity in any channel are left out and counted.

    Parameters
    ----------
    channels : the rows of the blocks; only EEG, MAG and GRAD enter
    """

    def __init__(self, channels: Channels) -> None:
        self._rows = np.array([i for i, kind in enumerate(channels.types) if kind.modality is not None], dtype=np.intp)
        self.channels = channels.pick(self._rows)
        if len(self._rows) == 0:
            raise NoiseCovarianceError("noise covariance: none of the channels is EEG or MEG; there is nothing to measure.")
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        n = len(self._rows)
        self.n_samples = 0
        self.n_left_out = 0
        self._mean = np.zeros(n)
        self._scatter = np.zeros((n, n))

    def __call__(self, data: NDArray[np.floating]) -> None:
        """Add samples: (n_channels, n_times), SI units."""
        block = np.asarray(data[self._rows], dtype=np.float64)
        finite = np.isfinite(block).all(axis=0)
        self.n_left_out += int((~finite).sum())
        if not finite.all():
            block = block[:, finite]
        n_new = block.shape[1]
        if n_new == 0:
            return
        # Chan, Golub & LeVeque (1983), doi 10.1080/00031305.1983.10483115: parts are joined without loss of digits
        mean = block.mean(axis=1)
        centred = block - mean[:, None]
        apart = mean - self._mean
        total = self.n_samples + n_new
        self._scatter += centred @ centred.T + np.outer(apart, apart) * (self.n_samples * n_new / total)
        self._mean += apart * (n_new / total)
        self.n_samples = total

    @property
    def n_needed(self) -> int:
        """Samples that a trustworthy covariance of these channels needs."""
        return ENOUGH_SAMPLES_PER_CHANNEL * len(self.channels)

    def rank(self) -> int:
        """Numerical rank of what was measured so far, every channel scaled to unit variance."""
        variances = np.diag(self._scatter)
        alive = variances > 0
        if self.n_samples < 2 or not alive.any():
            return 0
        scale = 1 / np.sqrt(variances[alive])
        correlation = self._scatter[np.ix_(alive, alive)] * np.outer(scale, scale)
        return int(np.linalg.matrix_rank(correlation, hermitian=True))

    def advice(self) -> str | None:
        """What is wrong with the measurement so far, or None."""
        if self.n_samples < self.n_needed:
            return (
                f"{self.n_samples} samples of {len(self.channels)} channels; at least {self.n_needed} are expected "
                f"({ENOUGH_SAMPLES_PER_CHANNEL} a channel). Measure longer."
            )
        if flat := self._flat():
            return f"{len(flat)} channels are flat ({', '.join(flat[:8])}). Mark them as bad, or check their contacts."
        if self.n_left_out:
            return f"{self.n_left_out} samples held NaN or infinity and were left out. Check the streams."
        return None

    def covariance(self) -> mne.Covariance:
        """What was measured so far.

        Raises
        ------
        NoiseCovarianceError
            Fewer than two samples, or flat channels.
        """
        if self.n_samples < 2:
            raise NoiseCovarianceError(f"noise covariance: {self.n_samples} samples measured; at least 2 are needed.")
        if flat := self._flat():
            raise NoiseCovarianceError(
                f"noise covariance: {len(flat)} channels are flat ({', '.join(flat[:8])}). Mark them as bad, or check their "
                "contacts, and measure again."
            )
        return mne.Covariance(
            self._scatter / (self.n_samples - 1),
            list(self.channels.names),
            bads=[],
            projs=[],
            nfree=self.n_samples,
            verbose="ERROR",
        )

    def _flat(self) -> list[str]:
        return [name for name, variance in zip(self.channels.names, np.diag(self._scatter), strict=True) if variance <= 0]


def check_cov_path(path: Path) -> None:
    """Raise NoiseCovarianceError unless a covariance can be written there; worth knowing before a minute of measuring."""
    if not path.name.endswith(("-cov.fif", "_cov.fif", "-cov.fif.gz", "_cov.fif.gz")):
        raise NoiseCovarianceError(
            f"noise covariance {path}: the name must end in -cov.fif, as mne expects. Choose another name."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass
    except OSError as error:
        raise _not_written(path, error) from error


def save_noise_cov(noise_cov: mne.Covariance, path: Path) -> None:
    """Write a -cov.fif, replacing an earlier one; NoiseCovarianceError if that cannot be done."""
    check_cov_path(path)
    try:
        mne.write_cov(path, noise_cov, overwrite=True, verbose="ERROR")
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> NoiseCovarianceError:
    return NoiseCovarianceError(
        f"noise covariance {path}: cannot be written ({error.strerror or error}). Choose a folder that you may write to, "
        "with space left."
    )
