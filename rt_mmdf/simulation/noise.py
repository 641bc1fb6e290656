"""Levels and colour of simulated noise, for recordings and for training scenes alike."""

from __future__ import annotations

from collections.abc import Sequence

import mne
import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import NoiseCovarianceError
from rt_mmdf.headmodel.noise import check_noise_cov
from rt_mmdf.simulation.sources import pink_power

Float64 = NDArray[np.float64]

# Median standard deviations, T and T/m, of magnetometers and planar gradiometers where the same brain noise gives the median
# electrode 1 V: 400 sources of equal moment on the template head (tests/simulation/test_scenes.py holds them). They set the
# level where there is no EEG.
BRAIN_PER_EEG_VOLT = {"eeg": 1.0, "mag": 4.6e-8, "grad": 9e-7}


def sensor_colour(deviations: Float64, ch_names: Sequence[str], noise_cov: mne.Covariance | None) -> Float64:
    """Matrix that turns white noise of unit variance into the sensors' own.

    Parameters
    ----------
    deviations : (n_channels,) standard deviations of independent noise, SI units
    noise_cov : colour in place of those, SI units squared; channels that it lacks keep theirs

    Returns
    -------
    (n_channels, n_channels)

    Raises
    ------
    NoiseCovarianceError
        `noise_cov` knows none of the channels, or is no covariance that noise can have.
    """
    colour = np.diag(deviations)
    if noise_cov is None:
        return colour
    # "MEG 0111" of older files is "MEG0111" today
    known = {name.replace(" ", ""): i for i, name in enumerate(noise_cov["names"])}
    wanted = [name.replace(" ", "") for name in ch_names]
    rows = [i for i, name in enumerate(wanted) if name in known]
    if not rows:
        raise NoiseCovarianceError(
            f"noise covariance of {len(known)} channels ({', '.join(list(known)[:3])}, ...): none of them is simulated; "
            f"expected are names like {', '.join(ch_names[:2])}, {ch_names[-1]}. Measure one of these channels."
        )
    columns = [known[wanted[i]] for i in rows]
    check_noise_cov(noise_cov, [noise_cov["names"][i] for i in columns])
    full = noise_cov.data if not noise_cov["diag"] else np.diag(noise_cov.data)
    part = full[np.ix_(columns, columns)]
    # scaled to correlations first: volts and teslas are nine orders of magnitude apart
    scale = np.sqrt(np.maximum(np.diag(part), 1e-40))
    values, vectors = np.linalg.eigh(part / np.outer(scale, scale))
    colour[rows, :] = 0
    colour[np.ix_(rows, rows)] = scale[:, None] * ((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
    return colour


def brain_moment(gain: Float64, kinds: NDArray[np.str_], wanted_uv: float) -> float:
    """Standard deviation of the moment of each brain source (A m) that gives the median electrode `wanted_uv`.

    Parameters
    ----------
    gain : (n_channels, n_brain_sources) SI units
    kinds : (n_channels,) "eeg", "mag" or "grad"; without EEG the magnetometers (or else the gradiometers) set the level
    """
    per_moment = {kind: _median_deviation(gain[kinds == kind]) for kind in BRAIN_PER_EEG_VOLT}
    kind = next((kind for kind, value in per_moment.items() if value), None)
    return 0.0 if kind is None else wanted_uv * 1e-6 * BRAIN_PER_EEG_VOLT[kind] / per_moment[kind]


def _median_deviation(gain: Float64) -> float:
    return float(np.median(np.sqrt(np.sum(gain**2, axis=1)))) if gain.size else 0.0


def share_in_band(band_hz: tuple[float, float], freqs: Float64) -> tuple[float, float]:
    """How much of the variance of brain noise (1/f) and of white noise over `freqs` (Hz, without 0) lies within the band."""
    inside = (freqs >= band_hz[0]) & (freqs <= band_hz[1])
    power = pink_power(freqs)
    return float(power[inside].sum() / power.sum()), float(inside.mean())
