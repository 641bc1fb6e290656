"""Scenes on disk: arrays that several scenes share are written, and read, once. Needs torch, numpy and safetensors alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from rt_mmdf.core.errors import RecordingError, SinkError
from rt_mmdf.networks.interface import ForwardArrays
from rt_mmdf.simulation.batches import Scene

FORMAT = 1
INDEX, SHARED = "scenes.json", "shared.safetensors"


def save_scenes(scenes: Sequence[Scene], folder: Path) -> None:
    """Write scenes into a folder (made if needed); SinkError where that is not possible."""
    shared: dict[int, str] = {}  # id of an array that occurs more than once -> its name
    seen: set[int] = set()
    for scene in scenes:
        for array in _arrays(scene).values():
            if id(array) in seen:
                shared.setdefault(id(array), f"array{len(shared)}")
            seen.add(id(array))
    common: dict[str, NDArray[Any]] = {}
    index = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(scenes):
            own, borrowed = {}, {}
            for key, array in _arrays(scene).items():
                if id(array) in shared:
                    borrowed[key] = shared[id(array)]
                    common[borrowed[key]] = np.ascontiguousarray(array)
                else:
                    own[key] = np.ascontiguousarray(array)
            file = f"scene{number:03d}.safetensors"
            (folder / file).write_bytes(save(own))  # not save_file: nobody else may read what that writes
            index.append({"name": scene.name, "file": file, "shared": borrowed} | _numbers(scene))
        (folder / SHARED).write_bytes(save(common))
        # last, and in one step: a folder without it holds no scenes
        part = folder / f"{INDEX}.part"
        part.write_text(json.dumps({"format": FORMAT, "scenes": index}, indent=1), encoding="utf-8")
        part.replace(folder / INDEX)
    except OSError as error:
        raise SinkError(
            f"scenes {folder}: cannot be written ({error}). Choose a folder that you may write to, with space left."
        ) from error


def load_scenes(folder: Path) -> list[Scene]:
    """Read scenes; what they share is in memory once.

    Raises
    ------
    RecordingError
        The folder holds no scenes, or a file of it is missing or damaged.
    """
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} seen, {FORMAT} expected")
        common = load_file(folder / SHARED)
        return [_scene(entry, folder, common) for entry in content["scenes"]]
    except FileNotFoundError as error:
        raise RecordingError(f"scenes {folder}: {error.filename or error} is missing. Make the scenes again.") from error
    except Exception as error:  # a damaged file can make its reader fail in any way
        raise RecordingError(f"scenes {folder}: damaged ({type(error).__name__}: {error}). Make them again.") from error


def _arrays(scene: Scene) -> dict[str, NDArray[Any]]:
    """All arrays of a scene by name; those of the nominal head begin with ``arrays.``."""
    own = {f.name: getattr(scene, f.name) for f in fields(Scene)}
    own |= {f"arrays.{f.name}": getattr(scene.arrays, f.name) for f in fields(ForwardArrays)}
    return {key: value for key, value in own.items() if isinstance(value, np.ndarray)}


def _numbers(scene: Scene) -> dict[str, int]:
    return {"n_brain": scene.n_brain, "rank": scene.arrays.rank, "n_left": scene.arrays.n_left}


def _scene(entry: dict[str, Any], folder: Path, common: dict[str, NDArray[Any]]) -> Scene:
    arrays = load_file(folder / entry["file"]) | {key: common[name] for key, name in entry["shared"].items()}
    nominal = {key.removeprefix("arrays."): value for key, value in arrays.items() if key.startswith("arrays.")}
    truth = {key: value for key, value in arrays.items() if not key.startswith("arrays.")}
    known = ForwardArrays(**nominal, rank=int(entry["rank"]), n_left=int(entry["n_left"]))
    return Scene(name=entry["name"], arrays=known, n_brain=int(entry["n_brain"]), **truth)
