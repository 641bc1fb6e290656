"""Made-up scenes that train in no time: 10 electrodes and 12 magnetometers, 24 sources on two rings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rt_mmdf.networks.interface import EEG, MAG, ForwardArrays
from rt_mmdf.simulation.batches import BatchSettings, Scene
from rt_mmdf.simulation.scene_files import save_scenes
from rt_mmdf.training.bare import SCENES, SETTINGS, VALIDATION, settings_text
from rt_mmdf.training.loop import LoopSettings

N_EEG, N_MAG, N_SOURCES = 10, 12, 24
TINY = {"hidden": 16}
BATCHES = BatchSettings(size=16, radii_mm=(0.0, 12.0), n_sources=(1, 2), separation_mm=20.0)


def tiny_scene(number: int) -> Scene:
    rng = np.random.default_rng(1)
    kinds = np.repeat([EEG, MAG], [N_EEG, N_MAG]).astype(np.int64)
    n_channels, half = len(kinds), N_SOURCES // 2
    angle = 2 * np.pi * np.arange(half) / half
    ring = np.stack([20 * np.cos(angle), 20 * np.sin(angle), 0 * angle], axis=1)
    apart = np.array([40, 0, 0])
    positions = np.vstack([ring - apart, ring + apart]).astype(np.float32)
    places = rng.normal(size=(n_channels, 3)) * 60
    gain = 1e4 / np.square(places[:, None] - positions[None]).sum(axis=2)
    varied = gain * (1 + 0.1 * np.random.default_rng(number).normal(size=gain.shape))
    along = np.minimum(np.arange(half), half - np.arange(half)) * 10.35
    order = np.argsort(along, kind="stable")
    vertex = np.arange(N_SOURCES)[:, None]
    return Scene(
        name=f"tiny {number}",
        arrays=ForwardArrays(
            leadfield=gain.astype(np.float32),
            used=np.ones(n_channels, dtype=bool),
            rank=n_channels,
            kinds=kinds,
            layout=(places[:, :2] / 60).astype(np.float32),
            positions_mm=positions,
            triangles=np.zeros((0, 3), dtype=np.int64),
            n_left=half,
        ),
        gain=varied.astype(np.float32),
        nearest=np.arange(N_SOURCES),
        truth_mm=positions,
        colour=np.eye(n_channels, dtype=np.float32),
        n_brain=0,
        neighbours=vertex // half * half + (vertex + order) % half,
        distance_mm=np.tile(along[order], (N_SOURCES, 1)).astype(np.float32),
    )


@pytest.fixture(scope="session")
def tiny_scenes() -> tuple[list[Scene], list[Scene]]:
    """To train on, and to validate on."""
    return [tiny_scene(0), tiny_scene(1)], [tiny_scene(2)]


@pytest.fixture
def folder_of(tiny_scenes: tuple[list[Scene], list[Scene]], tmp_path: Path) -> Callable[[LoopSettings], Path]:
    """A packed folder with the tiny scenes."""

    def make(loop: LoopSettings) -> Path:
        folder = tmp_path / "packed"
        save_scenes(tiny_scenes[0], folder / SCENES)
        save_scenes(tiny_scenes[1], folder / VALIDATION)
        (folder / SETTINGS).write_text(settings_text("mmdf", TINY, BATCHES, loop))
        return folder

    return make
