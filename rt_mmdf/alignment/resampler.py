"""Samples at fractional positions: anti-aliasing and fractional delay in one bank of short filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from rt_mmdf.core.blocks import Float32, Float64
from rt_mmdf.core.errors import ConfigurationError

N_PHASES = 512  # filters in the bank; between neighbours the taps are interpolated linearly
PASS_TOLERANCE = 5e-4  # worst error of the passed band that a band edge may have
STOP_WEIGHT = 1.0
FREE_WEIGHT = 1e-8  # between pass and stop band: costs 4e-4 of error at most, keeps the gain there below 2.2
MAX_AT_ONCE = 256  # positions in one product: its matrix grows with their square
RIDGE = 1e-12  # makes the normal equations solvable to rounding


class FractionalResampler:
    """Value of a band-limited signal between its samples, with a bounded look-ahead.

    For a position ``p = k + d``, ``0 <= d < 1``, the output is a weighted sum of the samples ``k - n_past + 1`` to
    ``k + n_ahead``, with weights that minimise the squared error over the passed band, plus the squared gain over the band
    that would alias on the grid (weighted least squares: Laakso et al. 1996, doi 10.1109/79.482137). Because the look-ahead
    is short the filters reach further back than ahead. Each sums to one, so that the constant offsets of electrodes and
    SQUIDs stay constants.

    Parameters
    ----------
    sfreq_in, sfreq_grid : float
        Rates of the stream and of the grid, Hz.
    look_ahead_s : float
        Most that the output may wait for samples after its own time.

    Attributes
    ----------
    n_past, n_ahead : int
        Samples at and before, and after the position, that enter.
    pass_hz : float
        Up to here the complex gain is within 5e-4 of an ideal delay, at every phase.
    """

    def __init__(self, sfreq_in: float, sfreq_grid: float, look_ahead_s: float = 0.010) -> None:
        self.sfreq_in = sfreq_in
        ratio = max(1.0, sfreq_in / sfreq_grid)
        self.n_ahead = min(int(look_ahead_s * sfreq_in + 1e-9), round(16 * ratio))
        if self.n_ahead < 1:
            raise ConfigurationError(
                f"alignment: a stream at {sfreq_in:g} Hz has no sample within a look-ahead of {look_ahead_s * 1e3:g} ms; at "
                f"least {1 / look_ahead_s:g} Hz are expected. Use a faster stream"
                + (", or raise look_ahead_ms (10 at most)." if look_ahead_s < 0.01 else ".")
            )
        self.n_past = max(2 * self.n_ahead, round(16 * ratio))
        nyquist = 0.5 * min(sfreq_in, sfreq_grid)
        for fraction in np.arange(0.9, 0.1, -0.05):
            self.pass_hz = float(fraction * nyquist)
            self._bank = self._design(sfreq_grid)
            if self.worst_error(self.pass_hz) < PASS_TOLERANCE:
                break

    @property
    def n_taps(self) -> int:
        return self.n_past + self.n_ahead

    def _design(self, sfreq_grid: float) -> Float64:
        passed = 2 * np.pi * self.pass_hz / self.sfreq_in
        stop = 2 * np.pi * min(sfreq_grid - self.pass_hz, 0.5 * self.sfreq_in) / self.sfreq_in
        offset = np.arange(-self.n_past + 1, self.n_ahead + 1, dtype=float)
        lag = offset[:, None] - offset[None, :]

        def band(upper: float, lags: Float64) -> Float64:  # integral of cos(w lag) over 0..upper
            integral: Float64 = upper * np.sinc(upper * lags / np.pi)
            return integral

        gram = band(passed, lag) + FREE_WEIGHT * (band(np.pi, lag) - band(passed, lag))
        gram += STOP_WEIGHT * (band(np.pi, lag) - band(stop, lag))
        gram += RIDGE * np.eye(len(offset))
        phase = np.arange(N_PHASES + 1) / N_PHASES
        target = band(passed, offset[:, None] - phase[None, :])
        factor = cho_factor(gram)
        taps, ones = cho_solve(factor, target), cho_solve(factor, np.ones(len(offset)))
        taps += ones[:, None] * ((1 - taps.sum(axis=0)) / ones.sum())[None, :]  # sums to one, at the least cost in error
        bank: Float64 = np.ascontiguousarray(taps.T)
        return bank

    def taps(self, fraction: Float64) -> Float64:
        """Weights for positions ``k + fraction``: ``(n, n_taps)``."""
        place = fraction * N_PHASES
        lower = np.minimum(place.astype(np.intp), N_PHASES - 1)
        share = (place - lower)[:, None]
        between: Float64 = (1 - share) * self._bank[lower] + share * self._bank[lower + 1]
        return between

    def worst_error(self, up_to_hz: float) -> float:
        """Largest ``|gain - ideal|`` up to a frequency, over all phases."""
        omega = 2 * np.pi * np.linspace(0, up_to_hz, 64) / self.sfreq_in
        offset = np.arange(-self.n_past + 1, self.n_ahead + 1)
        fraction = (np.arange(0, N_PHASES, 8) + 0.5) / N_PHASES
        gain = self.taps(fraction) @ np.exp(1j * np.outer(offset, omega))
        return float(np.abs(gain - np.exp(1j * np.outer(fraction, omega))).max())

    def __call__(self, samples: Float32, position: Float64) -> Float32:
        """Values at fractional positions.

        Parameters
        ----------
        samples : (n_channels, n_times) float32
            Quickest as the transpose of an array of samples by channels.
        position : (n,) float64
            Column numbers, increasing, each with `n_past` - 1 columns before and `n_ahead` after its integer part.

        Returns
        -------
        (n_channels, n) float32
        """
        if len(position) > MAX_AT_ONCE:
            parts = np.split(position, range(MAX_AT_ONCE, len(position), MAX_AT_ONCE))
            return np.hstack([self(samples, part) for part in parts])
        whole = np.floor(position).astype(np.intp)
        start, stop = int(whole[0]) - self.n_past + 1, int(whole[-1]) + self.n_ahead + 1
        weights: NDArray[np.float64] = np.zeros((len(position), stop - start))
        columns = (whole - whole[0])[:, None] + np.arange(self.n_taps)[None, :]
        weights[np.arange(len(position))[:, None], columns] = self.taps(position - whole)
        # float64: an offset 1e5 times the signal must not leave its rounding in the signal
        result: Float32 = (weights @ samples.T[start:stop].astype(np.float64)).astype(np.float32).T
        return result
