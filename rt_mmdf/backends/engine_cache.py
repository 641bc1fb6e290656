"""Engines of TensorRT, kept in the user's own cache folder.

An engine is code that runs on the GPU with the rights of this process. So only what this user wrote is ever loaded: folder
and file must be the user's own and closed to others, the file must be the very bytes that were written, and it must have
been built for exactly this graph, library, GPU and driver. Anything else is refused with a message and built anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rt_mmdf.core.files import check_own, is_own

logger = logging.getLogger(__name__)


class EngineRefused(Exception):
    """An entry of the cache is not to be loaded; the message says why."""


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    onnx_sha256 : of the serialised graph, its shapes and types among it
    module, version : of the TensorRT library
    gpu, driver : names; "none" where there is none
    precision : of the products
    shape : samples at once, channels, sources
    """

    onnx_sha256: str
    module: str
    version: str
    gpu: str
    driver: str
    precision: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its entry."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """Folder of engines, made when it is first written to.

    Parameters
    ----------
    folder : Path | None
        None: ``engines`` in the user's cache folder (RT_MMDF_CACHE).
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            from rt_mmdf.headmodel.cache import cache_folder  # imports mne, which a bare machine lacks

            folder = cache_folder() / "engines"
        self.folder = folder

    def load(self, key: EngineKey) -> bytes | None:
        """The engine of this key; None where there is none, or, with a warning, where it must not be loaded."""
        try:
            return self._checked(key)
        except FileNotFoundError:
            return None
        except (EngineRefused, OSError, ValueError, RecursionError) as error:
            logger.warning("engine cache %s: entry %s is refused (%s); it is built again.", self.folder, key.name, error)
            return None

    def _checked(self, key: EngineKey) -> bytes:
        check_own(os.lstat(self.folder), "the folder", directory=True, hidden=True)
        told = json.loads(_read_private(self.folder / f"{key.name}.json"))
        engine = _read_private(self.folder / f"{key.name}.engine")
        if not isinstance(told, dict) or told.get("key") != json.loads(json.dumps(asdict(key))):
            raise EngineRefused("it was built for another graph, library, GPU or driver")
        seen = hashlib.sha256(engine).hexdigest()
        if told.get("sha256") != seen:
            raise EngineRefused(f"its SHA-256 is {seen[:16]}..., {str(told.get('sha256'))[:16]}... was written")
        return engine

    def keep(self, key: EngineKey, engine: bytes) -> None:
        """Write an entry that nobody else can read or write; a warning where that cannot be done."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = os.lstat(self.folder)
            if is_own(own) and stat.S_ISDIR(own.st_mode):
                self.folder.chmod(0o700)
            check_own(os.lstat(self.folder), "the folder", directory=True, hidden=True)
            told = {"key": asdict(key), "sha256": hashlib.sha256(engine).hexdigest()}
            _write_private(self.folder / f"{key.name}.engine", engine)
            _write_private(self.folder / f"{key.name}.json", json.dumps(told, indent=1).encode())
        except OSError as error:
            logger.warning("engine cache %s: cannot be written (%s); nothing is kept.", self.folder, error)


def _read_private(path: Path) -> bytes:
    """All bytes of a file, checked on the very file that is read."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(descriptor, "rb") as file:
        check_own(os.fstat(file.fileno()), f"its file {path.suffix}", directory=False, hidden=True)
        return file.read()


def _write_private(path: Path, content: bytes) -> None:
    """In one step, with mode 600 (what tempfile makes)."""
    descriptor, scratch = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
