"""What ships in models/ is whole, small enough for the repository, and images with the head that it names."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from rt_mmdf.headmodel.whitener import make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.solvers.artefact import DEFAULT_MODEL, MANIFEST, default_model, find_model, load_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays

MODELS = Path(__file__).parents[2] / "models"
FOLDERS = sorted(path for path in MODELS.iterdir() if path.is_dir() and not path.name.startswith("."))
MAX_FILE_BYTES, MAX_BYTES = 16e6, 40e6  # a clone and a wheel carry them


def test_the_default_model_ships() -> None:
    assert DEFAULT_MODEL == "fusion"
    assert (MODELS / DEFAULT_MODEL / MANIFEST).is_file(), f"no models/{DEFAULT_MODEL}: tools/train_default makes it"
    assert default_model() == DEFAULT_MODEL
    assert load_artefact(find_model(DEFAULT_MODEL)).kind == "fusion"


def test_models_are_small_and_nothing_lies_beside_them() -> None:
    sizes = {path: path.stat().st_size for path in MODELS.rglob("*") if path.is_file()}
    assert all(size < MAX_FILE_BYTES for size in sizes.values()), sizes
    assert sum(sizes.values()) < MAX_BYTES
    assert {path.name for path in MODELS.iterdir() if path.is_file()} == {"README.md"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_loads_with_its_head_and_its_weights_fit(folder: Path) -> None:
    artefact = load_artefact(folder)  # every file against its hash
    assert artefact.name == folder.name
    assert artefact.card.strip()
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *artefact_files(folder)}
    head = artefact.load_head()  # compared with the sketch
    assert head.n_sources == artefact.n_sources
    whitener = make_whitener(head.channels, head.ch_names, head.info, artefact.noise_cov, artefact.projs)
    network = build_network(artefact.kind, artefact.options, forward_arrays(head, whitener, head.ch_names))
    network.load_state_dict({key: torch.from_numpy(values) for key, values in artefact.weights.items()})
    assert all(np.isfinite(values).all() for values in artefact.weights.values())


def artefact_files(folder: Path) -> set[str]:
    """Names that the manifest lists."""
    return set(tomllib.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
