"""Labelled batches on disk, for those who train with programs of their own. Needs torch and safetensors alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from rt_mmdf.core.errors import RecordingError, SinkError
from rt_mmdf.networks.interface import Batch
from rt_mmdf.simulation.batches import BatchGenerator

INDEX = "batches.json"


def write_batches(
    generator: BatchGenerator, n_batches: int, folder: Path, progress: Callable[[str, float], None] | None = None
) -> None:
    """Write batches 0 to `n_batches` - 1, a file each: the tensors of `Batch`, and the scene's number as its metadata.

    Batches that were in the folder before go: the index, which comes last, tells of all that are there.

    Raises
    ------
    SinkError
        The folder cannot be written to.
    """
    report = progress or (lambda what, fraction: None)
    described = {"seed": generator.seed, "n_batches": n_batches, "settings": asdict(generator.settings)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        for old in folder.glob("batch[0-9]*.safetensors"):
            old.unlink()
        for step in range(n_batches):
            report(f"batch {step + 1} of {n_batches}", step / n_batches)
            batch, scene = generator.batch(step)
            tensors = {f.name: getattr(batch, f.name) for f in fields(Batch)}
            held = {key: tensor.contiguous().cpu() for key, tensor in tensors.items() if tensor is not None}
            (folder / f"batch{step:05d}.safetensors").write_bytes(save(held, metadata={"scene": str(scene)}))
        (folder / INDEX).write_text(json.dumps(described, indent=1), encoding="utf-8")
    except OSError as error:
        raise SinkError(
            f"batches {folder}: cannot be written ({error}). Choose a folder that you may write to, with space left."
        ) from error


def load_batch(path: Path) -> tuple[Batch, int]:
    """A batch and the number of its scene; RecordingError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            held: dict[str, torch.Tensor | None] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            scene = int(file.metadata()["scene"])
        return Batch(**({"window": None} | held)), scene  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise RecordingError(f"batch {path}: no such file. Make batches with `rt-mmdf simulate --batches`.") from error
    except Exception as error:  # a damaged file can make its reader fail in any way
        raise RecordingError(f"batch {path}: damaged ({type(error).__name__}: {error}). Make the batches again.") from error
