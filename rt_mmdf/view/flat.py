"""The cortex without OpenGL: pixels are computed here. Also the choice between this and OpenGL."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from PySide6.QtCore import QRectF
from PySide6.QtGui import QColor, QGuiApplication, QImage, QPainter, QPaintEvent
from PySide6.QtWidgets import QWidget

from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.errors import ViewError
from rt_mmdf.headmodel.surface import cover
from rt_mmdf.sinks.colours import GYRUS, SULCUS
from rt_mmdf.view.camera import Shot, facing
from rt_mmdf.view.colours import N_COLOURS, ColourScale, greyed
from rt_mmdf.view.cortex import Cortex
from rt_mmdf.view.pane import AMBIENT, STALE_PART, BrainPane
from rt_mmdf.view.themes import Theme

if TYPE_CHECKING:
    from rt_mmdf.view.brain import BrainView

MOST_PIXELS = 640 * 360  # of the computed picture; a larger canvas shows it enlarged
NO_OPENGL_PLATFORMS = ("offscreen", "minimal", "vnc", "linuxfb")

logger = logging.getLogger(__name__)


class FlatBrainView(BrainPane):
    """The same brain, colours and clicks as in OpenGL, computed with numpy: presets instead of turning with the pointer.

    Parameters
    ----------
    cortex : Cortex
    theme : Theme
    """

    def __init__(self, cortex: Cortex, *, theme: Theme) -> None:
        super().__init__(cortex, RasterCanvas(cortex), theme, turns=False)


def make_brain_view(cortex: Cortex, theme: Theme, *, flat: bool = False) -> tuple[BrainView | FlatBrainView, str]:
    """A brain in OpenGL, or a flat one where there is no OpenGL or `flat` is asked for.

    Returns
    -------
    view : BrainView or FlatBrainView
    reason : why it is a flat one, for the screen; empty where it is not
    """
    if flat:
        return FlatBrainView(cortex, theme=theme), "drawn without OpenGL, as asked for"
    try:
        platform = QGuiApplication.platformName()
        if platform in NO_OPENGL_PLATFORMS:
            raise ViewError(f"OpenGL: Qt's platform {platform!r} draws black pictures with it.")
        from rt_mmdf.view.brain import BrainView, check_opengl

        logger.info("brain view: %s", check_opengl())
        return BrainView(cortex, theme=theme), ""
    except (ViewError, ImportError, AttributeError, OSError) as error:  # PyOpenGL without libGL: any of the last three
        logger.warning("brain view: no OpenGL (%s); the flat picture is used.", error)
        return FlatBrainView(cortex, theme=theme), f"drawn without OpenGL: {error}"


class RasterCanvas(QWidget):
    """Knows for each pixel its triangle and where on it; a frame is then a gather and a look-up of colours."""

    def __init__(self, cortex: Cortex) -> None:
        super().__init__()
        self._cortex = cortex
        self._surface = cortex.surfaces[0]
        self._values = np.zeros(cortex.n_vertices, dtype=np.float32)
        self._scale: ColourScale | None = None
        self._stale = False
        self._background = QColor()
        self._shots: tuple[Shot, ...] = ()
        self._covered: _Covered | None = None
        self._image: QImage | None = None

    def set_surface(self, surface: str) -> None:
        self._surface = surface
        self._covered = None
        self.renew()

    def set_vertex_values(self, values: Float32 | None) -> None:
        self._values = np.zeros(self._cortex.n_vertices, np.float32) if values is None else np.nan_to_num(values)
        self.renew()

    def set_scale(self, scale: ColourScale) -> None:
        self._scale = scale
        self.renew()

    def set_stale(self, stale: bool) -> None:
        if stale != self._stale:
            self._stale = stale
            self.renew()

    def set_shots(self, shots: tuple[Shot, ...]) -> None:
        self._shots = shots
        self._covered = None
        self.renew()

    def set_background(self, colour: str) -> None:
        self._background = QColor(colour)
        self.renew()

    def renew(self) -> None:
        """Compute again when the screen is painted next."""
        self._image = None
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._image is None and self._scale is not None:
            if self._covered is None:
                self._covered = _Covered(self._cortex, self._surface, self._shots, (self.width(), self.height()))
            self._image = self._covered.image(self._values, self._scale, self._background, self._stale)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        if self._image is not None:
            painter.drawImage(QRectF(self.rect()), self._image)


class _Covered:
    """Pixels of the cortex for one size, surface and set of cameras."""

    def __init__(self, cortex: Cortex, surface: str, shots: tuple[Shot, ...], size: tuple[int, int]) -> None:
        scale = min(1.0, (MOST_PIXELS / max(size[0] * size[1], 1)) ** 0.5)
        self._shape = (max(1, round(scale * size[1])), max(1, round(scale * size[0])))
        vertices, normals = cortex.vertices(surface), cortex.normals(surface)
        n_left = cortex.n_left_triangles
        places, corners, parts, lights = [], [], [], []
        for shot in shots:
            part = {None: slice(None), 0: slice(0, n_left), 1: slice(n_left, None)}[shot.hemisphere]
            triangles = cortex.triangles[part]
            at, nearness = shot.projection.pixels(vertices)
            if cortex.is_closed:  # what faces away is never seen, and two thirds of the work
                triangles = triangles[facing(at, triangles)]
            triangle, weights, _ = cover(at * scale, nearness, triangles, self._shape)
            left, top, width, height = (scale * side for side in shot.projection.box)
            rows, columns = np.mgrid[: self._shape[0], : self._shape[1]] + 0.5
            inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
            seen = inside & (triangle >= 0)
            view = shot.projection.view
            from_camera = vertices @ view[:3, :3].T + view[:3, 3]
            cosine = np.abs(np.einsum("ij,ij->i", normals @ view[:3, :3].T, from_camera))
            light = AMBIENT + (1 - AMBIENT) * cosine / np.linalg.norm(from_camera, axis=1)
            places.append(np.flatnonzero(seen))
            corners.append(triangles[triangle[seen]])
            parts.append(weights[seen].astype(np.float32))
            lights.append((light[corners[-1]] * parts[-1]).sum(axis=1).astype(np.float32))
        self._place = np.concatenate(places)
        self._corner = np.concatenate(corners)
        self._part = np.concatenate(parts)
        self._light = np.concatenate(lights)[:, None]
        deep = np.clip(0.5 + 5 * self._painted(cortex.sulc), 0, 1)
        self._grey = 255 * (GYRUS + (SULCUS - GYRUS) * deep)[:, None].astype(np.float32)

    def _painted(self, of_vertices: Float32) -> Float32:
        painted = self._part[:, 0] * of_vertices[self._corner[:, 0]]
        for corner in (1, 2):
            painted += self._part[:, corner] * of_vertices[self._corner[:, corner]]
        return np.asarray(painted)

    def image(self, values: Float32, scale: ColourScale, background: QColor, stale: bool) -> QImage:
        colour = (greyed(scale.table()) if stale else scale.table()).astype(np.float32)
        index = np.rint((N_COLOURS - 1) * scale.positions(self._painted(values))).astype(np.intp)
        opacity = (colour[:, 3:] / 255)[index]
        rgb = self._light * (self._grey + (colour[:, :3][index] - self._grey) * opacity)
        behind = np.array([background.red(), background.green(), background.blue()], dtype=np.float32)
        if stale:
            rgb = behind + (rgb - behind) * STALE_PART
        picture = np.empty((self._shape[0] * self._shape[1], 3), dtype=np.uint8)
        picture[:] = behind
        picture[self._place] = np.rint(rgb)
        height, width = self._shape
        return QImage(picture.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
