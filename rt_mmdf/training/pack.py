"""A training as a folder of arrays, settings and a few modules: it runs with torch, numpy and safetensors alone."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import rt_mmdf
from rt_mmdf.core.errors import ConfigurationError, SinkError
from rt_mmdf.simulation.scene_files import save_scenes
from rt_mmdf.training.bare import OUT, SCENES, SETTINGS, VALIDATION, settings_text
from rt_mmdf.training.checkpoint import CHECKPOINT, write_whole
from rt_mmdf.training.run import Preparing, lay_ground, make_all_scenes
from rt_mmdf.training.settings import TrainSettings

ENTRY = "rt_mmdf.training.bare"
SCRIPT = '''"""Train from this folder; needs torch, numpy and safetensors. See python train.py --help.

    python train.py
    torchrun --nproc-per-node 4 train.py
"""

import sys
from pathlib import Path

from rt_mmdf.training.bare import main

sys.exit(main(Path(__file__).resolve().parent))
'''


def pack(settings: TrainSettings, folder: Path, preparing: Preparing | None = None) -> None:
    """Write everything that training needs into `folder`; `rt_mmdf.training.run.model_of_pack` takes home what comes out.

    Raises
    ------
    ConfigurationError, HeadModelError, NoiseCovarianceError
        As `rt_mmdf.training.run.train`; or the folder holds a training that has begun.
    SinkError
        The folder cannot be written.
    """
    if (folder / OUT / CHECKPOINT).exists():
        raise ConfigurationError(
            f"{folder} holds a training that has begun ({OUT}/{CHECKPOINT}). Choose another one, or delete {folder / OUT}."
        )
    ground = lay_ground(settings, preparing)
    scenes, validation = make_all_scenes(settings, ground, preparing)
    save_scenes(scenes, folder / SCENES)
    save_scenes(validation, folder / VALIDATION)
    text = settings_text(settings.network.kind, settings.network.options, settings.batches, settings.loop)
    package = Path(rt_mmdf.__file__).parent
    try:
        for module in modules_needed(ENTRY):
            path = module_path(module).relative_to(package.parent)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.parent / path, folder / path)
        write_whole(folder / "train.py", SCRIPT.encode())
        write_whole(folder / SETTINGS, text.encode())
    except OSError as error:
        raise SinkError(
            f"{folder}: cannot be written ({error}). Choose a folder that you may write to, with space left."
        ) from error


def modules_needed(entry: str) -> list[str]:
    """The module, every module of this package that it imports, and so on, the packages around them included."""
    needed: dict[str, None] = {}
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module in needed:
            continue
        needed[module] = None
        waiting += [module.rpartition(".")[0]] if "." in module else []
        waiting += _imported(module)
    return sorted(needed)


def module_path(module: str) -> Path:
    """File of a module of this package."""
    base = Path(rt_mmdf.__file__).parent.parent / Path(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _imported(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(module_path(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rt_mmdf":
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "rt_mmdf")
