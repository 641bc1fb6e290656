"""Checkpoints on disk: whole at any moment, and nothing in them is ever unpickled."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rt_mmdf.core.errors import TrainingError

CHECKPOINT_FORMAT = 1
CHECKPOINT, WEIGHTS, HISTORY = "checkpoint.safetensors", "weights.safetensors", "history.json"


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and tensors of a checkpoint; TrainingError where it is damaged or of another version. Nothing is unpickled."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        state: dict[str, Any] = json.loads(metadata["state"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise damaged(path, error) from error
    if state.get("format") != CHECKPOINT_FORMAT:
        raise TrainingError(
            f"training: {path} is of format {state.get('format')!r}, {CHECKPOINT_FORMAT} is expected: another version wrote "
            "it. Leave out --resume to begin anew."
        )
    return state, tensors


def check_new(out: Path, resume: bool, force: bool) -> None:
    """TrainingError where a training has begun in `out` and nobody has said what to do with it."""
    path = out / CHECKPOINT
    if path.exists() and not resume and not force:
        raise TrainingError(
            f"training: {path} is there: a training has begun in this folder. Go on with --resume, begin anew with --force, "
            "or choose another folder with --out."
        )


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one step: whoever reads it, after a kill at whatever moment, finds the old content or the new.

    TrainingError where it cannot be written; the old content is then still there.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        todo = "Free some space" if full else "Choose a folder that you may write to"
        kept = "; the one from before is still whole" if path.exists() else ""
        raise TrainingError(
            f"training: {path} ({len(data) / 1e6:.1f} MB) cannot be written ({error.strerror}){kept}. {todo}, and go on "
            "with --resume."
        ) from error


def damaged(path: Path, error: Exception) -> TrainingError:
    """What to say of a checkpoint that cannot be used."""
    return TrainingError(
        f"training: checkpoint {path} cannot be used ({type(error).__name__}: {error}). Leave out --resume to begin anew; "
        f"{WEIGHTS} beside it holds the best weights so far."
    )
