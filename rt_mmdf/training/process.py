"""The process that trains: its device, its place among others, and what it does when it is asked to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from rt_mmdf.core.errors import ConfigurationError


def best_device() -> str:
    """cuda where there is one, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise ConfigurationError unless torch has this device here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"device {device!r}: torch cannot use it here ({first}). Use cpu, or cuda on a GPU node."
        ) from error


@contextmanager
def distributed(device: str) -> Iterator[torch.device]:
    """The device of this process, in the process group that ``torchrun`` asks for; alone where it does not."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield torch.device(device)
        return
    on_gpu = torch.device(device).type == "cuda"
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device(device)
    if on_gpu:
        torch.cuda.set_device(own)
    # others wait while the first makes the scenes
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=6))
    try:
        yield own
    finally:
        dist.destroy_process_group()


class StopOnSignal:
    """Within ``with``: Ctrl-C and SIGTERM make it say stop, so that a checkpoint is written; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True


def place() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
