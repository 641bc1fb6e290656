"""A small head and a scene on it, shared by the tests of scenes and batches."""

from __future__ import annotations

import pytest

from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import RegularisationSettings
from rt_mmdf.simulation.batches import Scene
from rt_mmdf.simulation.scenes import SceneNoise, make_scene

EXACT = RegularisationSettings(mag=0, grad=0, eeg=0)  # the whitener of the very noise


@pytest.fixture(scope="session")
def small_head(template_head_ico3: HeadModel) -> HeadModel:
    """1284 sources, 60 EEG channels less every other, 17 magnetometers, 34 gradiometers."""
    types = template_head_ico3.channels.types
    names = template_head_ico3.ch_names
    eeg = [name for name, kind in zip(names, types, strict=True) if kind == "eeg"][::2]
    meg = [name for name, kind in zip(names, types, strict=True) if kind != "eeg"]
    triplets = [name for i, name in enumerate(meg) if (i // 3) % 6 == 0]
    return template_head_ico3.pick(triplets + eeg)


@pytest.fixture(scope="session")
def plain_scene(small_head: HeadModel) -> Scene:
    """The head is what the system believes, and so is the noise."""
    noise = SceneNoise(n_brain_sources=20, regularisation=EXACT)
    return make_scene(small_head, small_head, noise, seed=5)
