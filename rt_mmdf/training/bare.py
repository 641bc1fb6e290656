"""Training from a folder of arrays and settings, with torch, numpy and safetensors alone.

    DIR/settings.json   network, batches, loop; where the scenes are (relative to the folder)
    DIR/scenes/         scenes to train on
    DIR/validation/     held-out scenes
    DIR/out/            what training writes

``rt-mmdf train CONFIG --pack DIR`` makes such a folder with a ``train.py`` in it, which calls `main`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from rt_mmdf.core.errors import RtMmdfError, TrainingError
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.interface import ForwardArrays, Option, SourceNetwork
from rt_mmdf.simulation.batches import BatchSettings
from rt_mmdf.simulation.scene_files import load_scenes
from rt_mmdf.training.checkpoint import check_new
from rt_mmdf.training.loop import LoopSettings, Progress, train_network
from rt_mmdf.training.process import StopOnSignal, best_device, check_device, distributed

FORMAT = 1
SETTINGS, SCENES, VALIDATION, OUT = "settings.json", "scenes", "validation", "out"
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def new_network(kind: str, options: Mapping[str, Option], arrays: ForwardArrays, seed: int) -> SourceNetwork:
    """A network whose initial weights depend on the seed; ConfigurationError as `build_network`."""
    torch.manual_seed(seed)
    return build_network(kind, options, arrays)


def settings_text(kind: str, options: Mapping[str, Option], batches: BatchSettings, loop: LoopSettings) -> str:
    """Content of settings.json for scenes that lie beside it."""
    content = {
        "format": FORMAT,
        "network": {"kind": kind, "options": dict(options)},
        "batches": _plain(batches, BatchSettings),
        "loop": _plain(loop, LoopSettings),
        "scenes": SCENES,
        "validation": VALIDATION,
    }
    return json.dumps(content, indent=1)


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Train from `folder` as the command line says; exit status 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Train from a packed folder; torchrun starts it on several GPUs.")
    parser.add_argument("--folder", type=Path, default=folder, help="with settings.json and the scenes")
    parser.add_argument("--out", type=Path, help="checkpoint and weights; by default DIR/out")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--steps", type=int, help="in place of those of settings.json")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--force", action="store_true", help="begin anew where a training has begun")
    given = parser.parse_args(arguments)
    try:
        return _train(given)
    except RtMmdfError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _train(given: argparse.Namespace) -> int:
    check_device(given.device)
    content = read_settings(given.folder / SETTINGS)
    out = given.out or given.folder / OUT
    check_new(out, given.resume, given.force)
    loop, batches = content["loop"], content["batches"]
    loop = loop if given.steps is None else replace(loop, steps=given.steps)
    scenes = load_scenes(given.folder / content["scenes"])
    validation = load_scenes(given.folder / content["validation"])
    network = new_network(content["network"]["kind"], content["network"]["options"], scenes[0].arrays, loop.seed)
    with distributed(given.device) as device, StopOnSignal() as stop:
        result = train_network(
            network, scenes, validation, batches, loop, out, device=device, resume=given.resume, progress=_tell, stop=stop
        )
    sys.stdout.write(f"\n{describe_end(result.best, out)}\n")
    if not result.finished:
        sys.stdout.write(f"Stopped at step {result.steps}. Go on with --resume.\n")
    return 0 if result.finished else INTERRUPTED


def describe_end(best: Any, out: Path) -> str:
    """One line on the best weights."""
    if best is None:
        return f"No validation yet; the checkpoint is in {out}."
    return (
        f"Best at step {best.step}: validation loss {best.loss:.4g}, peak {best.error_mm:.1f} mm off. Weights are in {out}."
    )


def _tell(progress: Progress) -> None:
    seen = "" if progress.latest is None else f", validation {progress.latest.loss:.4g} ({progress.latest.error_mm:.1f} mm)"
    sys.stdout.write(
        f"\rstep {progress.step}/{progress.steps}, loss {progress.loss:.4g}{seen}, {progress.samples_per_s:,.0f} samples/s, "
        f"{progress.seconds_left / 60:.1f} min left   "
    )
    sys.stdout.flush()


def read_settings(path: Path) -> dict[str, Any]:
    """settings.json with its batches and loop as settings; TrainingError where it cannot be used."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise TrainingError(f"training: {path} is of format {content['format']!r}, {FORMAT} is expected. Pack it again.")
        return content | {
            "batches": BatchSettings(**{key: _tuple(value) for key, value in content["batches"].items()}),
            "loop": LoopSettings(**content["loop"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"training: {path} cannot be used ({type(error).__name__}: {error}). Expected is a folder that `rt-mmdf train "
            "CONFIG --pack DIR` made."
        ) from error


def _plain(settings: Any, kind: type[BatchSettings] | type[LoopSettings]) -> dict[str, Any]:
    values = asdict(settings)
    return {f.name: values[f.name] for f in fields(kind)}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
