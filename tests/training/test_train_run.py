"""From a configuration to a model: the same by way of a bare machine, and what is wrong is said before it costs time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rt_mmdf.cli.main import app
from rt_mmdf.core.errors import ConfigurationError, HeadModelError, TrainingError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.whitener import make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.simulation.batches import Scene
from rt_mmdf.simulation.scene_files import load_scenes, save_scenes
from rt_mmdf.simulation.scenes import SceneNoise, make_scene, nominal_noise_cov, true_cortex
from rt_mmdf.solvers.artefact import load_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.training.checkpoint import CHECKPOINT
from rt_mmdf.training.pack import modules_needed, pack
from rt_mmdf.training.run import MADE_OF, Ground, lay_ground, made_of, make_all_scenes, model_of_pack, train
from rt_mmdf.training.settings import TrainSettings

# What a bare machine lacks: importing any of it raises there.
BARE = """
import runpy, sys
missing = ("mne", "mne_lsl", "scipy", "pydantic", "rich", "typer", "nilearn", "matplotlib", "sklearn", "nibabel")
sys.modules.update({name: None for name in missing})  # importing them fails
folder = sys.argv[1]
sys.path[:] = [folder] + [entry for entry in sys.path if "site-packages" in entry or "lib" in entry]
sys.argv = [f"{folder}/train.py", "--device", "cpu"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def shared_scenes(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes on the nominal head itself: to train on in scenes/, to validate on in validation/."""
    folder = tmp_path_factory.mktemp("scenes")
    cortex = true_cortex(template_head_ico3, template_head_ico3)
    for name, seed in (("scenes", 1), ("validation", 2)):
        head = template_head_ico3
        save_scenes([make_scene(head, head, SceneNoise(), seed=seed, cortex=cortex, name=name)], folder / name)
    settings = settings_of(
        {"version": 1, "head": {"spacing": "ico3"}, "scenes": {"n": 1}, "validation": {"n": 1, "seed": 2}}
    )
    ground = lay_ground(settings)
    for name, section in (("scenes", settings.scenes), ("validation", settings.validation)):
        (folder / name / MADE_OF).write_text(json.dumps(made_of(settings, section, ground)))
    return folder


@pytest.fixture
def content(shared_scenes: Path, tmp_path: Path) -> dict[str, Any]:
    """Plain values of a configuration that trains in a second."""
    return {
        "version": 1,
        "name": "tiny",
        "out": str(tmp_path / "run"),
        "network": {"kind": "mmdf", "options": {"hidden": 8}},
        "head": {"spacing": "ico3"},
        "scenes": {"n": 1, "seed": 1, "folder": str(shared_scenes / "scenes")},
        "validation": {"n": 1, "seed": 2, "folder": str(shared_scenes / "validation")},
        "batches": {"size": 8, "radii_mm": [0.0, 10.0]},
        "loop": {"steps": 6, "validate_every": 3, "validation_batches": 1, "checkpoint_every": 3},
    }


def settings_of(content: dict[str, Any]) -> TrainSettings:
    return validate_settings(content, TrainSettings, where="test")


def as_toml(content: dict[str, Any], path: Path) -> Path:
    """JSON's strings, numbers and arrays are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict)]
    for section, table in content.items():
        if isinstance(table, dict):
            lines.append(f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
            lines += [f"{key} = {{hidden = {value['hidden']}}}" for key, value in table.items() if isinstance(value, dict)]
    path.write_text("\n".join(lines) + "\n")
    return path


def estimate(artefact_folder: Path, scenes: Path) -> torch.Tensor:
    """What a model makes of some sample."""
    artefact = load_artefact(artefact_folder)
    arrays = load_scenes(scenes)[0].arrays
    network = build_network(artefact.kind, artefact.options, arrays)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in artefact.weights.items()})
    sample = torch.randn(3, arrays.n_channels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(sample, None, network.prepare(arrays)).moments


@pytest.mark.slow
def test_a_bare_machine_trains_the_same_model(content: dict[str, Any], shared_scenes: Path, tmp_path: Path) -> None:
    settings = settings_of(content)
    here = train(settings)
    assert here.artefact is not None
    assert here.artefact.channels.names == lay_ground(settings).head.ch_names
    packed = tmp_path / "packed"
    pack(settings, packed)
    assert {path.name for path in packed.iterdir()} == {"rt_mmdf", "scenes", "validation", "settings.json", "train.py"}
    done = subprocess.run([sys.executable, "-c", BARE, str(packed)], capture_output=True, timeout=200, check=False, cwd="/")
    assert done.returncode == 0, done.stderr.decode()
    assert b"samples/s" in done.stdout
    home = model_of_pack(settings_of(content | {"model": str(tmp_path / "home")}), packed)
    for key, value in here.artefact.weights.items():
        np.testing.assert_allclose(home.weights[key], value, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        estimate(home.folder, shared_scenes / "scenes"), estimate(here.artefact.folder, shared_scenes / "scenes")
    )
    with pytest.raises(ConfigurationError, match="holds a training that has begun"):
        pack(settings, packed)


def test_a_bare_machine_needs_no_module_of_the_others(content: dict[str, Any]) -> None:
    needed = modules_needed("rt_mmdf.training.bare")
    assert "rt_mmdf.networks.fusion" in needed
    assert not [name for name in needed if name.split(".")[1:2] in (["headmodel"], ["solvers"], ["app"], ["cli"], ["lsl"])]


def test_the_model_whitens_as_its_scenes_did(template_head_ico3: HeadModel, content: dict[str, Any]) -> None:
    """The covariance that a model brings along makes, on its head, the very arrays of a scene in the typical noise."""
    ground = lay_ground(settings_of(content))
    head = ground.head
    scene = make_scene(head, head, SceneNoise(), seed=0, cortex=true_cortex(head, head))
    whitener = make_whitener(head.channels, head.ch_names, head.info, ground.noise_cov, ground.projs)
    arrays = forward_arrays(head, whitener, head.ch_names)
    np.testing.assert_allclose(arrays.leadfield, scene.arrays.leadfield, rtol=1e-4, atol=1e-6)
    assert arrays.rank == scene.arrays.rank


def test_noise_from_a_file_colours_scenes_and_whitens(
    template_head_ico3: HeadModel, content: dict[str, Any], tmp_path: Path
) -> None:
    measured = nominal_noise_cov(template_head_ico3, SceneNoise(factors=(2.0, 1.0, 1.0)), seed=3)
    path = tmp_path / "rest-cov.fif"
    mne.write_cov(path, measured, verbose="ERROR")
    ground = lay_ground(settings_of(content | {"noise": {"file": str(path)}}))
    assert ground.colour is not None
    np.testing.assert_allclose(ground.colour.data, measured.data, rtol=1e-6)
    assert np.trace(ground.noise_cov.data) > np.trace(measured.data)  # regularised


def test_scenes_of_other_settings_or_of_another_head_are_not_taken(
    content: dict[str, Any], shared_scenes: Path, tmp_path: Path
) -> None:
    settings = settings_of(content)
    ground = lay_ground(settings)
    folder = tmp_path / "kept"
    save_scenes(load_scenes(shared_scenes / "scenes"), folder)
    kept = content | {"scenes": {"n": 1, "seed": 1, "folder": str(folder)}}
    with pytest.raises(ConfigurationError, match=r"made_of.json, which says what they were made of, cannot be read"):
        make_all_scenes(settings_of(kept), ground)
    (folder / MADE_OF).write_text("[]")
    with pytest.raises(ConfigurationError, match=r"nobody knows whether they fit this configuration. Delete that folder"):
        make_all_scenes(settings_of(kept), ground)
    wide = content | {"batches": {"radii_mm": [10.0, 45.0]}}
    with pytest.raises(ConfigurationError, match=r"radii_mm goes up to 45 mm; the neighbours that scenes hold reach 32 mm"):
        make_all_scenes(settings_of(wide), ground)
    right = made_of(settings, settings.scenes, ground)
    (folder / MADE_OF).write_text(json.dumps(right))
    assert len(make_all_scenes(settings_of(kept), ground)[0]) == 1
    loaded = kept | {"noise": {"regularisation": {"eeg": 0.2}}}
    with pytest.raises(ConfigurationError, match=r"\(regularisation was .*'eeg': 0.1.*, is .*'eeg': 0.2"):
        make_all_scenes(settings_of(loaded), ground)
    (folder / MADE_OF).write_text(json.dumps(right | {"recipe": 0}))
    with pytest.raises(ConfigurationError, match=r"\(recipe was 0, is \d+\). Delete that folder"):
        make_all_scenes(settings_of(kept), ground)
    (folder / MADE_OF).write_text(json.dumps({"n": 5, "seed": 1}))
    with pytest.raises(ConfigurationError, match=r"made of something else \(n was 5, is 1"):
        make_all_scenes(settings_of(kept), ground)
    other = HeadModel("other", "template", ground.head.forward, ground.head.info, ground.head.hemispheres, {})
    small = other.pick(ground.head.ch_names[:40])
    ground_of_other = Ground(small, ground.noise_cov, None, ())
    with pytest.raises(ConfigurationError, match=r"made of something else \(head was '\w+', is '\w+'\)"):
        make_all_scenes(settings, ground_of_other)
    (folder / MADE_OF).write_text(json.dumps(made_of(settings, settings.scenes, ground_of_other)))  # it lies
    with pytest.raises(HeadModelError, match=r"of a head of 366 channels and 1284 sources; head model 'other' has 40"):
        make_all_scenes(settings_of(kept), ground_of_other)


def test_scenes_know_the_files_of_a_varied_head_by_their_content(content: dict[str, Any], tmp_path: Path) -> None:
    files = {key: tmp_path / f"{key}.fif" for key in ("trans", "src", "bem")}
    for path in files.values():
        path.write_text("one")
    settings = settings_of(content | {"variation": {key: str(path) for key, path in files.items()}})
    ground = lay_ground(settings)
    before = made_of(settings, settings.scenes, ground)
    assert made_of(settings, settings.scenes, ground) == before
    files["bem"].write_text("another of the same name")
    changed = made_of(settings, settings.scenes, ground)
    assert [key for key in before["variation"] if before["variation"][key] != changed["variation"][key]] == ["bem"]
    files["src"].unlink()
    with pytest.raises(ConfigurationError, match=r"variation.src .*src.fif: cannot be read"):
        made_of(settings, settings.scenes, ground)


def test_what_scenes_are_made_of_is_written_before_them(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def interrupted(*_: object, **wanted: Any) -> list[Scene]:
        asked.update(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr("rt_mmdf.training.run.training_scenes", interrupted)
    folder = tmp_path / "new"
    new = content | {"scenes": {"n": 1, "folder": str(folder)}, "noise": {"regularisation": {"mag": 0.3}}}
    settings = settings_of(new)
    ground = lay_ground(settings)
    with pytest.raises(KeyboardInterrupt):
        make_all_scenes(settings, ground)
    assert asked["regularisation"] == settings.noise.regularisation
    assert json.loads((folder / MADE_OF).read_text()) == made_of(settings, settings.scenes, ground)
    assert [path.name for path in folder.iterdir()] == [MADE_OF]  # no index: they will be made anew


def test_the_command_trains_goes_on_and_refuses_to_overwrite(content: dict[str, Any], tmp_path: Path) -> None:
    config = as_toml(content, tmp_path / "tiny.toml")
    call = CliRunner().invoke
    first = call(app, ["train", str(config), "--steps", "3", "--device", "cpu"])
    assert first.exit_code == 0, first.output
    assert "Model tiny:" in first.output
    again = call(app, ["train", str(config), "--device", "cpu"])
    assert isinstance(again.exception, TrainingError)
    assert "Go on with --resume, begin anew with --force" in str(again.exception)
    more = call(app, ["train", str(config), "--resume", "--device", "cpu"])
    assert more.exit_code == 0, more.output
    assert (tmp_path / "run" / CHECKPOINT).exists()
    renamed = ["train", str(config), "--network", "mmdf-meg", "--out", str(tmp_path / "meg"), "--model", str(tmp_path / "m")]
    assert call(app, [*renamed, "--device", "cpu"]).exit_code == 0
    assert load_artefact(tmp_path / "m").kind == "mmdf-meg"
    assert load_artefact(tmp_path / "m").options["hidden"] == 8
    wrong = call(app, ["train", str(config), "--network", "mmmdf"])
    assert "network.kind: one of mmdf, mmdf-eeg" in str(wrong.exception)


def test_a_device_that_is_not_there_is_said_at_once(content: dict[str, Any], tmp_path: Path) -> None:
    config = as_toml(content, tmp_path / "tiny.toml")
    result = CliRunner().invoke(app, ["train", str(config), "--device", "cuda:77"])
    assert isinstance(result.exception, ConfigurationError)
    assert "device 'cuda:77': torch cannot use it here" in str(result.exception)


def test_weights_that_are_not_there_cannot_be_unpacked(content: dict[str, Any], tmp_path: Path) -> None:
    settings = settings_of(content)
    pack(settings, tmp_path / "packed")
    with pytest.raises(TrainingError, match=r"weights.safetensors cannot be used .*Run it to its end, or pack again"):
        model_of_pack(settings, tmp_path / "packed")
