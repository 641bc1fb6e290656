"""Files from outside, read with bounds; folders that are this user's own."""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_TOML = 1 << 18
"""Longest TOML file, bytes; the manifest of a model for 366 channels has 11 kB."""
MAX_DOTS = 64
"""In one line, those of numbers left out: tomllib's memory grows with the square of the parts of a dotted key, and a file of
200 kB takes all there is."""

_NUMBER = re.compile(rb"(?<![\w.\"'-])[+-]?\d+\.\d+(?:[eE][+-]?\d+)?(?![\w.])")


def read_plain(path: Path, limit: int) -> bytes:
    """Content of a plain file, which is neither a link, a pipe nor a device, and has at most `limit` bytes.

    Raises
    ------
    OSError
        It cannot be read, or is something else.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return content


def parse_toml(content: bytes) -> dict[str, Any]:
    """Plain values of TOML.

    Raises
    ------
    ValueError
        It is not TOML, or more than can be one of ours.
    """
    if len(content) > MAX_TOML:
        raise ValueError(f"more than {MAX_TOML} bytes")
    for number, line in enumerate(content.splitlines(), 1):
        if line.count(b".") > MAX_DOTS and _NUMBER.sub(b"", line).count(b".") > MAX_DOTS:
            raise ValueError(f"more than {MAX_DOTS} dots (at line {number})")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("arrays or tables too deep in each other") from error


def read_arrays(path: Path, limit: int, endings: Sequence[str] = ("",)) -> dict[str, NDArray[Any]]:
    """Arrays of an ``.npz`` file whose names end like one of `endings`; nothing in it is unpickled.

    Raises
    ------
    OSError, ValueError and whatever a damaged file makes its reader raise
        It cannot be read, or unpacks to more than `limit` bytes.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        n_bytes = sum(entry.file_size for entry in arrays.zip.infolist())
        if n_bytes > limit:
            raise ValueError(f"{path.name} unpacks to {n_bytes} bytes, at most {limit} are expected")
        return {key: arrays[key] for key in arrays.files if key.endswith(tuple(endings))}


class NotPrivate(OSError):
    """A file or folder that others may have made or changed."""


def require_own(path: Path, *, directory: bool, hidden: bool) -> None:
    """Check that what is there is this user's own, no link, and that nobody else may write to it.

    Parameters
    ----------
    directory : a folder is expected; else a plain file
    hidden : nobody else may read it either

    Raises
    ------
    NotPrivate
        It is something else.
    OSError
        It is not there.
    """
    check_own(os.lstat(path), str(path), directory=directory, hidden=hidden)


def check_own(seen: os.stat_result, what: str, *, directory: bool, hidden: bool) -> None:
    """The same for what `os.stat` has seen."""
    if not (stat.S_ISDIR(seen.st_mode) if directory else stat.S_ISREG(seen.st_mode)):
        raise NotPrivate(f"{what} is no {'folder' if directory else 'plain file'} of its own")
    if not is_own(seen):
        raise NotPrivate(f"{what} belongs to user {seen.st_uid}, not to {os.geteuid()}")
    if hasattr(os, "geteuid") and seen.st_mode & (0o077 if hidden else 0o022):
        raise NotPrivate(f"{what} has mode {stat.S_IMODE(seen.st_mode):03o}: others than its user may use it")


def is_own(seen: os.stat_result) -> bool:
    """Whether it belongs to this user, where there are such."""
    return not hasattr(os, "geteuid") or seen.st_uid == os.geteuid()


def private_folder(path: Path) -> None:
    """Make a folder that is closed to others; one of this user's that is there is closed to their writing.

    Raises
    ------
    NotPrivate
        What is there is a link, no folder, or another user's.
    OSError
        It cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    seen = os.lstat(path)
    if stat.S_ISDIR(seen.st_mode) and is_own(seen) and seen.st_mode & 0o022:
        path.chmod(stat.S_IMODE(seen.st_mode) & ~0o022)
    require_own(path, directory=True, hidden=False)
