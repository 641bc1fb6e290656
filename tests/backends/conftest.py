"""Small networks of every kind as tasks, on a made-up head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from rt_mmdf.backends.accuracy import trial_samples, trial_windows
from rt_mmdf.backends.choice import Programs, Trial, why_not
from rt_mmdf.backends.interface import Task
from rt_mmdf.backends.torch_backend import TorchBackend
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.fusion import FusionNetwork, PreparedFusion
from rt_mmdf.networks.fusion_graph import operands_of, row_of
from rt_mmdf.networks.interface import EEG, GRAD, MAG, ForwardArrays, SourceNetwork
from rt_mmdf.networks.pictures import PictureNetwork
from rt_mmdf.solvers.tasks import factor_task, kernel_task, picture_operands, picture_task, window_task

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


@dataclass(frozen=True, eq=False)
class Looked:
    """A network, its operators for some channels, and windows (n, n_channels, n_times)."""

    network: FusionNetwork
    prepared: PreparedFusion
    windows: torch.Tensor

    @property
    def operands(self) -> tuple[np.ndarray, ...]:
        return operands_of(self.prepared, self.network)

    def row(self, i: int) -> np.ndarray:
        """Of one window."""
        window = self.windows[i : i + 1]
        with torch.inference_mode():
            return row_of(self.network.reduce(window[:, :, -1], window, self.prepared), self.network).numpy()

    def said(self, i: int) -> np.ndarray:
        """What the network says of it, as a row."""
        window = self.windows[i : i + 1]
        with torch.inference_mode():
            reduced = self.network.reduce(window[:, :, -1], window, self.prepared)
            logits, whole = self.network.look(reduced, self.prepared.for_windows)[-1]
            return torch.cat([logits.reshape(1, -1), whole], dim=1).numpy()


def make_looked(used: np.ndarray) -> Looked:
    head = arrays()
    torch.manual_seed(3)
    network = build_network("fusion", OPTIONS["fusion"] | {"k": 40}, head).eval().requires_grad_(False)
    for values in network.parameters():
        values += 0.05 * torch.randn_like(values)
    head = replace(head, leadfield=head.leadfield * used[:, None], used=used, rank=int(used.sum()))
    return Looked(network, network.prepare(head), torch.from_numpy(trial_windows(head.leadfield, used, 4, 20)))


CHANNELS = {
    "all": np.ones(54, dtype=bool),
    "EEG alone": np.arange(54) < N_EEG,
    "MEG, some bad": (np.arange(54) >= N_EEG) & (np.arange(54) % 5 > 0),
}


@pytest.fixture(scope="session")
def looked() -> dict[str, Looked]:
    """What is looked at with some sets of channels: "all", "EEG alone", "MEG, some bad"."""
    return {name: make_looked(used) for name, used in CHANNELS.items()}


@pytest.fixture(scope="session")
def windows(looked: dict[str, Looked]) -> Task:
    """The task of looking at them, made of all channels, for every set of them."""
    case = looked["all"]
    return window_task(case.network, case.row(0), case.operands, "window")


@pytest.fixture(scope="session")
def near() -> Callable[[np.ndarray, np.ndarray], None]:
    """Asserts that two rows that were said of a window are equal."""
    return assert_near


def assert_near(said: np.ndarray, expected: np.ndarray) -> None:
    """Equal, but for what a patch at the edge of the first prior does to its own surroundings when it changes places."""
    assert said.shape == expected.shape
    apart = np.abs(said - expected) / np.abs(expected).max()
    assert np.median(apart) < 1e-5
    assert apart.max() < 1e-2


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
