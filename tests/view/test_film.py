from __future__ import annotations

import subprocess
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PySide6.QtGui import QColor, QImage
from pytestqt.qtbot import QtBot

from rt_mmdf.view.film import PictureFiles, captioned, pixels
from rt_mmdf.view.themes import DARK

RNG = np.random.default_rng(3)


def flat_picture(level: int, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*shape, 3), level, np.uint8)


def test_a_picture_comes_back_as_it_was(tmp_path: Path) -> None:
    picture = RNG.integers(0, 256, (33, 47, 3), dtype=np.uint8)
    files = PictureFiles()
    files.save(tmp_path / "new folder" / "a.png", picture)
    files.close()
    np.testing.assert_array_equal(imageio.imread(tmp_path / "new folder" / "a.png"), picture)
    assert files.news() == [(f"Picture: {tmp_path / 'new folder' / 'a.png'}", True)]
    assert files.news() == []


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_a_film_has_every_picture_in_order(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"film.{ending}"
    levels = [20, 60, 100, 140, 180, 220]
    files = PictureFiles()
    files.begin_film(path, 25.0)
    assert files.filming
    for number, level in enumerate(levels):
        shape = (49, 65) if number == 0 else (60, 40)  # odd at first, and the window is resized meanwhile
        files.add(flat_picture(level, shape))
    files.end_film()
    files.close()
    decode = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(decode, check=True, capture_output=True).stdout
    read = np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 3)[:, :40, :32].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(read, levels, atol=4)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_unfinished_film_leaves_nothing(tmp_path: Path) -> None:
    files = PictureFiles()
    files.begin_film(tmp_path / "film.mp4", 25.0)
    files.add(flat_picture(100))
    files.close()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_told_once_and_the_next_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    files = PictureFiles()
    files.begin_film(tmp_path / "file" / "film.mp4", 25.0)
    for _ in range(3):
        files.add(flat_picture(1))
    files.end_film()
    files.save(tmp_path / "good.png", flat_picture(2))
    files.close()
    (bad, bad_went), (good, good_went) = files.news()
    assert not bad_went
    assert "cannot be written" in bad
    assert "choose another folder" in bad
    assert good_went
    assert good == f"Picture: {tmp_path / 'good.png'}"


@pytest.mark.gui
def test_a_caption_is_added_below_and_the_picture_is_untouched(qtbot: QtBot) -> None:
    picture = RNG.integers(0, 256, (240, 321, 3), dtype=np.uint8)
    whole = captioned(picture, ("12:00:00.000  dSPM", "RMS of 40 ms"), DARK)
    np.testing.assert_array_equal(whole[:240], picture)
    assert whole.shape[1] == 321
    strip = whole[240:].astype(int)
    assert strip.shape[0] >= 2 * 13
    assert (np.abs(strip - QColor(DARK.background).red()).max(axis=2) > 100).sum() > 50  # something is written there
    shorter = captioned(picture, ("x" * 500,), DARK)
    assert shorter.shape[1] == 321


def test_pixels_are_those_of_the_image() -> None:
    image = QImage(3, 2, QImage.Format.Format_ARGB32)  # three columns: rows are padded to four bytes
    image.fill(QColor("#102030"))
    image.setPixelColor(2, 1, QColor("#ff8000"))
    read = pixels(image)
    assert read.shape == (2, 3, 3)
    assert read[0, 0].tolist() == [16, 32, 48]
    assert read[1, 2].tolist() == [255, 128, 0]
