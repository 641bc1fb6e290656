"""Heads are slow to compute and always the same for the same inputs: keep them in the user's cache folder.

Whoever can write there decides where sources are found, and what is there comes from somebody's MRI. So the folder and its
entries are closed to others, and an entry that is another user's, a link, or writable by others is not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import mne
import numpy as np
import platformdirs
from numpy.typing import NDArray

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.core.files import NotPrivate, private_folder, require_own
from rt_mmdf.headmodel.head import HeadModel, RecipeValue, load_head

CACHE_VARIABLE = "RT_MMDF_CACHE"

logger = logging.getLogger(__name__)
Made = TypeVar("Made")


def cache_folder() -> Path:
    """Where computed heads are kept: the environment's RT_MMDF_CACHE, or the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("rt_mmdf"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; HeadModelError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HeadModelError(f"head model: {path} cannot be read ({error.strerror}). Check the path.") from error


def array_digest(*arrays: NDArray[np.float64]) -> str:
    """Short hash of the values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.hexdigest()[:16]


def cached_head(recipe: Mapping[str, RecipeValue], build: Callable[[], HeadModel]) -> HeadModel:
    """The head of this recipe: from the cache, else built and kept there.

    The head that is handed out has always been written and read once, so that a first and a later run image with the
    very same numbers. An entry that cannot be read is built anew.

    Parameters
    ----------
    recipe : plain values
        Everything that the head depends on; contents of files by their digest.
    """

    def load(folder: Path) -> HeadModel:
        return load_head(folder)

    def make(folder: Path) -> None:
        build().save(folder)

    return cached(f"head-{recipe.get('kind', 'any')}", recipe, make, load)


def cached(kind: str, recipe: Mapping[str, RecipeValue], make: Callable[[Path], None], load: Callable[[Path], Made]) -> Made:
    """Load what `make` once wrote into a folder for this recipe; make it where it is missing or damaged.

    Parameters
    ----------
    make : writes everything into the (empty) folder it is given
    load : reads it; any error it raises means that the entry is damaged

    An entry that may be somebody else's is left alone, and nothing is kept then.
    """
    key = hashlib.sha256(json.dumps([recipe, mne.__version__], sort_keys=True).encode()).hexdigest()[:20]
    entry = cache_folder() / f"{kind}-{key}"
    ours = True
    if os.path.lexists(entry):
        try:
            check_entry(entry)
            return load(entry)
        except NotPrivate as error:
            ours = False
            logger.warning("cache %s: not used (%s); what is in it is built again, and not kept.", entry, error)
        except Exception as error:  # whatever is wrong with it: it can be made again
            logger.warning("cache %s: damaged (%s); it is built again.", entry, error)
            shutil.rmtree(entry, ignore_errors=True)
    try:
        private_folder(entry.parent)
        scratch = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=entry.parent if ours else None))
    except OSError as error:
        logger.warning("cache %s: cannot be written (%s); nothing is kept.", entry.parent, error)
        scratch = Path(tempfile.mkdtemp(prefix="rt_mmdf-"))
    try:
        make(scratch)
        for path in scratch.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        made = load(scratch)
        if scratch.parent == entry.parent:
            _move(scratch, entry)
        return made
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_entry(entry: Path) -> None:
    """Raise NotPrivate where an entry, or a file in it, may be somebody else's."""
    require_own(entry.parent, directory=True, hidden=False)
    require_own(entry, directory=True, hidden=True)
    for path in entry.rglob("*"):
        require_own(path, directory=path.is_dir() and not path.is_symlink(), hidden=False)


def _move(scratch: Path, entry: Path) -> None:
    """Rename in one step: another process sees the whole entry or none."""
    try:
        scratch.rename(entry)
    except OSError as error:
        if not entry.is_dir():  # else another process was first: its entry is as good
            logger.warning("cache %s: cannot be written (%s); nothing is kept.", entry, error)
