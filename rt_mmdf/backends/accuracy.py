"""How true a backend is: its moments against the same network in double precision on the processor."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.backends.interface import Float32, Precision

Array = NDArray[np.floating]

TIE = 0.01
"""A peak where the true map is at most this part below its maximum is as good as the maximum: its distance counts as 0."""
N_TRIALS, N_NOISE = 48, 8


@dataclass(frozen=True)
class Limits:
    """What a backend must keep to: see `Accuracy`."""

    relative_l2: float
    correlation: float
    peak_mm: float


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(1e-4, 0.99999, 0.0),
    "tf32": Limits(1e-2, 0.999, 5.0),
    "fp16": Limits(1e-2, 0.999, 5.0),
}
"""Rounding of single precision alone stays a hundred times below the first; TF32 and FP16 keep 11 bits of each factor, which
is far less than what the noise of the sensors does to a map."""


WINDOW_LIMITS = Limits(1e-2, 0.99, 5.0)
"""Of estimates under priors that were made of windows, three quarters of them; see `window_limits`."""
WINDOW_PART = 75  # percent of the windows that are held


@dataclass(frozen=True)
class Accuracy:
    """Of some samples.

    relative_l2 : largest over the samples of the norm of the difference, over that of the true map
    correlation : over the samples, for each source; the first percentile of the sources that say anything
    peak_mm : largest distance between the peaks of a map and of the true one; see `TIE`

    Of windows, not the largest of the first and the last but what `WINDOW_PART` of them keep to.
    """

    relative_l2: float
    correlation: float
    peak_mm: float

    def beyond(self, limits: Limits) -> str | None:
        """What is beyond the limits, in words; None where nothing is."""
        wrong = []
        if not self.relative_l2 <= limits.relative_l2:
            wrong.append(f"relative L2 error {self.relative_l2:.2g}, at most {limits.relative_l2:g} is allowed")
        if not self.correlation >= limits.correlation:
            wrong.append(f"correlation {self.correlation:.6f}, at least {limits.correlation:g} is expected")
        if not self.peak_mm <= limits.peak_mm:
            wrong.append(f"peak {self.peak_mm:.1f} mm off, at most {limits.peak_mm:g} is allowed")
        return "; ".join(wrong) or None

    def as_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


def window_limits(torch: Accuracy) -> Limits:
    """`WINDOW_LIMITS`, or twice the error of torch on the same windows, where that is more.

    A prior keeps the most powerful patches, and which of two that are as powerful is kept may depend on the last digit, in
    torch as anywhere, and with it the map of a window now and then: so a quarter of them are free, and nobody is held to
    more than what single precision itself leaves open.
    """
    return Limits(
        min(max(WINDOW_LIMITS.relative_l2, 2 * torch.relative_l2), 1.0),  # an error as large as the map is one anyway
        min(WINDOW_LIMITS.correlation, 1 - 2 * (1 - torch.correlation)),
        max(WINDOW_LIMITS.peak_mm, torch.peak_mm),
    )


def accuracy_of(said: Array, truth: Array, positions_mm: Array, *, of_windows: bool = False) -> Accuracy:
    """Compare moments (n, n_sources) with the true ones; positions (n_sources, 3). NaN and infinity: as wrong as can be.

    of_windows : each row under the prior of a window of its own, see `window_limits`
    """
    if said.shape != truth.shape or not np.isfinite(said).all():
        return Accuracy(float("inf"), float("-inf"), float("inf"))
    said, truth = said.astype(np.float64), truth.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(truth, axis=1), 1e-30)
    own, true = np.abs(said).argmax(axis=1), np.abs(truth).argmax(axis=1)
    rows = np.arange(len(truth))
    best = np.abs(truth[rows, true])
    apart = np.linalg.norm(positions_mm[own] - positions_mm[true], axis=1)
    tie = np.abs(truth[rows, own]) >= (1 - TIE) * best
    off = np.linalg.norm(said - truth, axis=1) / lengths

    def worst(values: Array) -> float:
        return float(np.percentile(values, WINDOW_PART, method="lower") if of_windows else values.max())

    return Accuracy(
        worst(off),
        _correlation(said, truth),
        worst(np.where(tie, 0.0, apart)),
    )


def _correlation(said: Array, truth: Array) -> float:
    centred, true = said - said.mean(axis=0), truth - truth.mean(axis=0)
    sizes = np.linalg.norm(true, axis=0)
    speaks = sizes > 1e-3 * sizes.max(initial=0.0)
    if not speaks.any():
        return 1.0 if np.array_equal(said, truth) else 0.0
    product = (centred * true).sum(axis=0)[speaks]
    both = sizes[speaks] * np.maximum(np.linalg.norm(centred, axis=0)[speaks], 1e-30)
    return float(np.percentile(product / both, 1))


def trial_samples(leadfield: Array, used: NDArray[np.bool_], n_times: int = N_TRIALS) -> Float32:
    """Whitened samples (n_channels, n_times) to try backends on: noise alone, then sources in it, -3 to 20 dB.

    Parameters
    ----------
    leadfield : (n_channels, n_sources), whitened, of 1 nA m
    used : (n_channels,)
    """
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((len(leadfield), n_times)) * used[:, None]
    for t in range(min(N_NOISE, n_times // 4), n_times):
        sources = rng.integers(leadfield.shape[1], size=1 + t % 3)
        field = leadfield[:, sources] @ rng.choice((-1.0, 1.0), len(sources))
        power = rng.uniform(0.5, 100) * used.sum()
        samples[:, t] += field * np.sqrt(power / max(float(field @ field), 1e-30))
    return samples.astype(np.float32)


def trial_windows(leadfield: Array, used: NDArray[np.bool_], n: int, n_times: int) -> Float32:
    """Whitened windows (n, n_channels, n_times) at about 100 Hz: one to three sources that swing, 0 to 20 dB, in noise."""
    rng = np.random.default_rng(1)
    windows = rng.standard_normal((n, len(leadfield), n_times)) * used[:, None]
    for number, window in enumerate(windows):
        sources = rng.integers(leadfield.shape[1], size=1 + number % 3)
        hz, phase = rng.uniform(2, 15, (len(sources), 1)), rng.uniform(0, 2 * np.pi, (len(sources), 1))
        course = np.sin(2 * np.pi * hz * np.arange(n_times) / 100 + phase)
        signal = leadfield[:, sources] @ course
        power = 10 ** rng.uniform(0, 2) * used.sum()
        window += signal * np.sqrt(power / max(float(np.square(signal).sum(axis=0).mean()), 1e-30))
    return windows.astype(np.float32)
