"""Pictures and films on disk, written in a thread of their own."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray
from PySide6.QtCore import QRect, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QImage, QPainter

from rt_mmdf.core.errors import SinkError
from rt_mmdf.runtime.mailbox import Mailbox, Signal
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.view.themes import Theme

Picture = NDArray[np.uint8]

MAX_WAITING = 8  # pictures of a film that wait to be written: 22 MB at 1280 x 720
GIF_COLOURS_FPS = 25.0  # no viewer shows a GIF faster than 50 pictures a second; delays are whole hundredths of a second
WRITE_LIMIT_S = 20.0  # closing a film may take so long


def captioned(picture: Picture, lines: tuple[str, ...], theme: Theme) -> Picture:
    """A picture with lines of text on a strip below it: what it shows, of when, and by what.

    Parameters
    ----------
    picture : (height, width, 3)
    lines : shortened with an ellipsis where they do not fit

    Returns
    -------
    (height + strip, width, 3)
    """
    height, width = picture.shape[:2]
    font = QFont()
    font.setPixelSize(max(13, min(width, height) // 42))
    metrics = QFontMetrics(font)
    line, margin = metrics.height() + 2, metrics.height() // 2
    strip = len(lines) * line + 2 * margin
    image = QImage(width, height + strip, QImage.Format.Format_RGB888)
    image.fill(QColor(theme.background))
    painter = QPainter(image)
    painter.setFont(font)
    for row, text in enumerate(lines):
        painter.setPen(QColor(theme.text if row == 0 else theme.muted))
        box = QRect(2 * margin, height + margin + row * line, width - 4 * margin, line)
        shown = metrics.elidedText(text, Qt.TextElideMode.ElideRight, box.width())
        painter.drawText(box, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, shown)
    painter.end()
    whole = pixels(image)
    whole[:height] = picture
    return whole


def pixels(image: QImage) -> Picture:
    """(height, width, 3) red, green, blue: a copy of the image's pixels."""
    image = image.convertToFormat(QImage.Format.Format_RGB888)
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()


@dataclass(frozen=True)
class _Job:
    kind: Literal["picture", "begin", "frame", "end", "abandon", "close"]
    path: Path
    picture: Picture | None = None
    fps: float = 0.0


class PictureFiles:
    """Writes pictures (PNG) and one film at a time (MP4 or GIF, by its ending); ready once built.

    A file appears under its name when it is complete. What became of each is told by `news`, errors included: a full disk
    must not end the view.
    """

    def __init__(self) -> None:
        self._jobs: Mailbox[_Job] = Mailbox(4 * MAX_WAITING)
        self._news: deque[tuple[str, bool]] = deque(maxlen=16)
        self._all_written = Signal()
        self._film: Any = None
        self._size: tuple[int, int] | None = None
        self._failed: Path | None = None
        self._filming: Path | None = None
        self._worker = Worker("view pictures", self._step, stop_timeout_s=WRITE_LIMIT_S)
        self._worker.start()

    @property
    def filming(self) -> bool:
        """Whether a film has begun and not ended."""
        return self._filming is not None

    @property
    def ready(self) -> bool:
        """Whether there is room for another picture now."""
        return len(self._jobs) < MAX_WAITING

    def save(self, path: Path, picture: Picture) -> None:
        """Write a picture."""
        self._jobs.put(_Job("picture", path, picture))

    def begin_film(self, path: Path, fps: float) -> None:
        """Begin a film of so many pictures a second."""
        self._filming = path
        self._jobs.put(_Job("begin", path, fps=fps))

    def add(self, picture: Picture) -> None:
        """The next picture of the film. Whoever adds asks `ready` before: what does not fit would be lost."""
        if self._filming is not None:
            self._jobs.put(_Job("frame", self._filming, picture))

    def end_film(self, *, keep: bool = True) -> None:
        """The film is complete; or it is given up, and nothing of it stays."""
        if self._filming is not None:
            self._jobs.put(_Job("end" if keep else "abandon", self._filming))
            self._filming = None

    def news(self) -> list[tuple[str, bool]]:
        """What has happened since the last call: a sentence each, and whether it went well."""
        told = []
        with suppress(IndexError):
            while True:
                told.append(self._news.popleft())
        return told

    def close(self) -> None:
        """Write what waits, give up an unfinished film, end the thread."""
        self.end_film(keep=False)
        if self._worker.alive:
            self._jobs.put(_Job("close", Path()))
            self._all_written.wait(WRITE_LIMIT_S)
        self._worker.stop()

    # the thread

    def _step(self) -> None:
        job = self._jobs.take(0.2)
        if job is None:
            return
        if job.kind == "close":
            self._all_written.ring()
            return
        if job.path == self._failed and job.kind != "begin":
            return  # told already
        try:
            self._do(job)
        except (OSError, ValueError, RuntimeError) as error:
            self._failed = job.path
            self._give_up(job.path)
            self._news.append((str(_cannot(job.path, error)), False))

    def _do(self, job: _Job) -> None:
        unfinished = _unfinished(job.path)
        if job.kind == "picture" and job.picture is not None:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            imageio.imwrite(unfinished, job.picture, format="png")
            os.replace(unfinished, job.path)
            self._news.append((f"Picture: {job.path}", True))
        elif job.kind == "begin":
            self._failed = self._size = None
            job.path.parent.mkdir(parents=True, exist_ok=True)
            self._film = _open_film(unfinished, job.fps)
        elif job.kind == "frame" and job.picture is not None and self._film is not None:
            self._film.append_data(self._fitting(job.picture))
        elif job.kind == "end" and self._film is not None:
            self._film.close()
            self._film = None
            os.replace(unfinished, job.path)
            self._news.append((f"Film: {job.path}", True))
        elif job.kind == "abandon":
            self._give_up(job.path)

    def _fitting(self, picture: Picture) -> Picture:
        """Even numbers of pixels, as the codec wants them; all pictures as large as the first, whatever the window does."""
        height, width = picture.shape[:2]
        if self._size is None:
            self._size = height - height % 2, width - width % 2
        rows, columns = self._size
        if (height, width) == (rows, columns):
            return picture
        fitted = np.zeros((rows, columns, 3), dtype=np.uint8)
        part = picture[:rows, :columns]
        fitted[: part.shape[0], : part.shape[1]] = part
        return fitted

    def _give_up(self, path: Path) -> None:
        if self._film is not None:
            with suppress(OSError, RuntimeError, ValueError):
                self._film.close()
            self._film = None
        with suppress(OSError):
            _unfinished(path).unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".unfinished-{path.name}")


def _open_film(path: Path, fps: float) -> Any:
    if path.suffix.lower() == ".gif":
        return imageio.get_writer(path, format="GIF", mode="I", duration=1000 / min(fps, GIF_COLOURS_FPS), loop=0)
    return imageio.get_writer(
        path, format="FFMPEG", mode="I", fps=fps, codec="libx264", quality=8, macro_block_size=1, pixelformat="yuv420p"
    )


def _cannot(path: Path, error: Exception) -> SinkError:
    return SinkError(f"{path}: cannot be written ({error}). Free some space or choose another folder.")
