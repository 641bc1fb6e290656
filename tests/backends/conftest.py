"""Small networks of every kind as tasks, on a made-up head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from rt_mmdf.backends.accuracy import trial_samples
from rt_mmdf.backends.choice import Programs, Trial, why_not
from rt_mmdf.backends.interface import Task
from rt_mmdf.backends.torch_backend import TorchBackend
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.interface import EEG, GRAD, MAG, ForwardArrays, SourceNetwork
from rt_mmdf.networks.pictures import PictureNetwork
from rt_mmdf.solvers.tasks import factor_task, kernel_task, picture_operands, picture_task

N_EEG, N_MAG, N_SOURCES = 24, 30, 90
OPTIONS: dict[str, dict[str, Any]] = {
    "mmdf": {"hidden": 40},
    "mmdf-eeg": {"hidden": 40},
    "mmdf-meg": {"hidden": 40},
    "convdip": {"hidden": 40},
    "fusion": {"width": 8, "n_blocks": 1, "n_nodes": 32, "n_regions": 8, "n_likely": 24, "k": 20, "n_times": 20},
}


def arrays(seed: int = 5) -> ForwardArrays:
    """Sensors on a disc, sources on two rings; smooth fields, so that maps have a peak."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat([EEG, MAG, GRAD], [N_EEG, N_MAG, 0]).astype(np.int64)
    half = N_SOURCES // 2
    angle = 2 * np.pi * np.arange(half) / half
    ring = np.stack([45 * np.cos(angle), 45 * np.sin(angle), 0 * angle], axis=1)
    apart = np.array([50, 0, 0])
    positions = np.vstack([ring - apart, ring + apart]).astype(np.float32)
    places = rng.normal(size=(len(kinds), 3)) * 80
    distance = np.linalg.norm(places[:, None] - positions[None], axis=2)
    gain = rng.choice((-1, 1), (len(kinds), 1)) / (1 + np.square(distance / 60))
    loop = np.arange(half)
    edges = np.stack([loop, (loop + 1) % half, (loop + 2) % half], axis=1)
    radius = np.sqrt((np.arange(len(kinds)) + 0.5) / len(kinds))
    turn = 2.39996 * np.arange(len(kinds))
    return ForwardArrays(
        leadfield=gain.astype(np.float32),
        used=np.ones(len(kinds), dtype=bool),
        rank=len(kinds) - 1,
        kinds=kinds,
        layout=np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1).astype(np.float32),
        positions_mm=positions,
        triangles=np.vstack([edges, edges + half]).astype(np.int64),
        n_left=half,
    )


@dataclass(frozen=True, eq=False)
class Case:
    """A network of a kind, what it is prepared with, its task, and what to try that on."""

    network: SourceNetwork | None
    prepared: Any
    task: Task
    trial: Trial

    @property
    def programs(self) -> Programs:
        return Programs(self.task)


def make_case(kind: str) -> Case:
    head = arrays()
    samples = np.ascontiguousarray(trial_samples(head.leadfield, head.used).T)
    if kind == "kernel":
        task = kernel_task(head.leadfield.T, "kernel")
        return Case(None, None, task, Trial(samples, (), head.positions_mm))
    torch.manual_seed(3)
    network = build_network(kind, OPTIONS[kind], head).eval().requires_grad_(False)
    for values in network.parameters():
        values += 0.05 * torch.randn_like(values)
    prepared = network.prepare(head)
    if isinstance(network, PictureNetwork):
        return Case(
            network,
            prepared,
            picture_task(network, kind),
            Trial(samples, picture_operands(prepared), head.positions_mm),
        )
    window = trial_samples(head.leadfield, head.used, 20)
    _, factors = TorchBackend(network, prepared).context(window)
    first, second = (factor.numpy() for factor in factors)
    task = factor_task(*first.shape, second.shape[1], kind)
    return Case(network, prepared, task, Trial(samples, (first, second), head.positions_mm))


@pytest.fixture(scope="session")
def cases() -> Callable[[str], Case]:
    """Each made once."""
    made: dict[str, Case] = {}

    def case(kind: str) -> Case:
        if kind not in made:
            made[kind] = make_case(kind)
        return made[kind]

    return case


@pytest.fixture(scope="session")
def onnx_is_there() -> None:
    """Skips where ONNX Runtime is not installed."""
    if (reason := why_not("onnxruntime")) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def gpu_is_there() -> None:
    """Skips where torch finds no NVIDIA GPU."""
    if (reason := why_not("torch-cuda")) is not None:
        pytest.skip(reason)
