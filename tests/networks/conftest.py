"""A small made-up head: sensors on a disc, sources on two rings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rt_mmdf.networks.interface import EEG, GRAD, MAG, ForwardArrays


def sunflower(n: int) -> np.ndarray:
    """(n, 2) places spread evenly over the unit disc."""
    k = np.arange(n) + 0.5
    return np.stack([np.sqrt(k / n) * np.cos(2.39996 * k), np.sqrt(k / n) * np.sin(2.39996 * k)], axis=1)


@pytest.fixture(scope="session")
def made_up_arrays() -> Callable[..., ForwardArrays]:
    """Arrays of a head with so many channels of each kind and so many sources."""

    def make(n_eeg: int = 59, n_mag: int = 102, n_grad: int = 0, n_sources: int = 40) -> ForwardArrays:
        rng = np.random.default_rng(5)
        kinds = np.repeat([EEG, MAG, GRAD], [n_eeg, n_mag, n_grad])
        angle = np.linspace(0, 2 * np.pi, n_sources, endpoint=False)
        return ForwardArrays(
            leadfield=rng.normal(size=(len(kinds), n_sources)).astype(np.float32),
            used=np.ones(len(kinds), dtype=bool),
            rank=len(kinds) - 1,
            kinds=kinds.astype(np.int64),
            layout=np.vstack([sunflower(n) for n in (n_eeg, n_mag, n_grad)]).astype(np.float32),
            positions_mm=np.stack([70 * np.cos(angle), 70 * np.sin(angle), 0 * angle], axis=1).astype(np.float32),
            triangles=np.zeros((0, 3), dtype=np.int64),
            n_left=n_sources // 2,
        )

    return make
