"""The cortex in OpenGL."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from OpenGL import GL
from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QColor, QImage, QOffscreenSurface, QOpenGLContext, QPainter, QPaintEvent
from PySide6.QtOpenGL import QOpenGLFramebufferObject, QOpenGLFramebufferObjectFormat
from PySide6.QtWidgets import QWidget

from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.errors import ViewError
from rt_mmdf.view.camera import Shot
from rt_mmdf.view.colours import ColourScale
from rt_mmdf.view.cortex import Cortex
from rt_mmdf.view.mesh_item import CortexMesh, compiled
from rt_mmdf.view.pane import BrainPane
from rt_mmdf.view.themes import Theme

SAMPLES = 4  # per pixel against jagged edges: live on a graphics card, else for pictures that are kept
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "swiftshader", "gdi generic", "basic render")  # in the name of the renderer

MOST_PIXELS = 1_000_000  # of the live picture in software rendering; a larger canvas shows it enlarged

logger = logging.getLogger(__name__)


class BrainView(BrainPane):
    """The cortex in OpenGL with its colour bar: see `BrainPane` for all that it does.

    Parameters
    ----------
    cortex : Cortex
    theme : Theme
    """

    def __init__(self, cortex: Cortex, *, theme: Theme) -> None:
        self._gl = GLCanvas(cortex)
        super().__init__(cortex, self._gl, theme, turns=True)

    @contextmanager
    def at_best(self) -> Iterator[None]:
        """See `BrainPane.at_best`; where the processor draws, a picture then takes some times as long."""
        self._gl.set_quality(high=True)
        try:
            yield
        finally:
            self._gl.set_quality(high=False)


class GLCanvas(QWidget):
    """Draws with OpenGL into a framebuffer of its own and puts the pixels on the screen as any other widget does.

    Not a QOpenGLWidget: one of those makes Qt compose the whole window in OpenGL for every frame, which in software
    rendering takes longer than drawing the cortex (1280 x 720: 24 ms of processor time a frame instead of 15).
    """

    def __init__(self, cortex: Cortex) -> None:
        super().__init__()
        self.setAttribute(Qt.WidgetAttribute.WA_OpaquePaintEvent)
        self._mesh = CortexMesh(cortex)
        self._background = QColor("black")
        self._pixels = np.zeros((1, 1, 4), np.uint8)
        self._up_to_date = False
        self._context, self._surface = context_and_surface()
        self._frame: QOpenGLFramebufferObject | None = None
        self._resolved: QOpenGLFramebufferObject | None = None
        with_context(self._context, self._surface)
        self._mesh.upload(self._context)
        self._software = is_software()
        self._high = False
        self._context.doneCurrent()

    def set_surface(self, surface: str) -> None:
        self._mesh.set_surface(surface)
        self.renew()

    def set_vertex_values(self, values: Float32 | None) -> None:
        self._mesh.set_values(values)
        self.renew()

    def set_scale(self, scale: ColourScale) -> None:
        self._mesh.set_scale(scale)
        self.renew()

    def set_stale(self, stale: bool) -> None:
        self._mesh.set_stale(stale)
        self.renew()

    def set_shots(self, shots: tuple[Shot, ...]) -> None:
        self._mesh.set_shots(shots)
        self.renew()

    def set_background(self, colour: str) -> None:
        self._background = QColor(colour)
        self.renew()

    def set_quality(self, *, high: bool) -> None:
        """All pixels and smooth edges even where the processor draws, or only what it can do 25 times a second."""
        if self._software and high != self._high:
            self._high = high
            self._frame = None
            self.renew()

    def renew(self) -> None:
        """Draw again when the screen is painted next."""
        self._up_to_date = False
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        if not self._up_to_date:
            self.draw()
        height, width = self._pixels.shape[:2]
        image = QImage(self._pixels.data, width, height, 4 * width, QImage.Format.Format_RGBX8888)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, image.size() != self.size())
        painter.drawImage(self.rect(), image)

    def draw(self) -> None:
        """Draw one frame and read it back; ViewError when the graphics driver has gone away."""
        best = self._high or not self._software
        ratio = self.devicePixelRatioF()
        if not best:
            ratio = min(ratio, (MOST_PIXELS / max(self.width() * self.height(), 1)) ** 0.5)
        size = QSize(max(round(ratio * self.width()), 1), max(round(ratio * self.height()), 1))
        if not self._context.makeCurrent(self._surface):  # after a reset of the driver nothing of the context is left
            logger.warning("brain view: the OpenGL context was lost; a new one is made.")
            self._frame = None
            self._context, self._surface = context_and_surface()
            with_context(self._context, self._surface)
            self._mesh.upload(self._context)
        if self._frame is None or self._frame.size() != size:
            self._frame, self._resolved = _framebuffers(size, SAMPLES if best else 0)
            self._pixels = np.zeros((size.height(), size.width(), 4), np.uint8)
        self._frame.bind()
        red, green, blue = rgb = self._background.redF(), self._background.greenF(), self._background.blueF()
        GL.glClearColor(red, green, blue, 1.0)
        GL.glClear(GL.GL_COLOR_BUFFER_BIT | GL.GL_DEPTH_BUFFER_BIT)
        self._mesh.paint(ratio, rgb)
        if self._resolved is not None:
            QOpenGLFramebufferObject.blitFramebuffer(self._resolved, self._frame)
            self._resolved.bind()
        GL.glPixelStorei(GL.GL_PACK_ALIGNMENT, 4)
        GL.glReadPixels(0, 0, size.width(), size.height(), GL.GL_RGBA, GL.GL_UNSIGNED_BYTE, self._pixels)
        QOpenGLFramebufferObject.bindDefault()
        self._context.doneCurrent()
        self._up_to_date = True


def _framebuffers(size: QSize, samples: int) -> tuple[QOpenGLFramebufferObject, QOpenGLFramebufferObject | None]:
    """What is drawn into, and, where that has several samples per pixel, what they are averaged into."""
    form = QOpenGLFramebufferObjectFormat()
    form.setAttachment(QOpenGLFramebufferObject.Attachment.Depth)
    form.setSamples(samples)
    drawn = QOpenGLFramebufferObject(size, form)
    return drawn, QOpenGLFramebufferObject(size) if drawn.format().samples() else None


def context_and_surface() -> tuple[QOpenGLContext, QOffscreenSurface]:
    """A context of one's own and something to make it current with; ViewError where there is none."""
    context, surface = QOpenGLContext(), QOffscreenSurface()
    if context.create():
        surface.setFormat(context.format())
        surface.create()
    if not surface.isValid():
        raise ViewError("OpenGL: no context can be made on this display; OpenGL 2.1 or newer is expected.")
    return context, surface


def with_context(context: QOpenGLContext, surface: QOffscreenSurface) -> None:
    """Make it current; ViewError where the driver refuses."""
    if not context.makeCurrent(surface):
        raise ViewError("OpenGL: the context cannot be made current. Restart the view, or update the graphics driver.")


def is_software() -> bool:
    """Whether the current context is drawn by the processor."""
    return any(name in renderer().lower() for name in SOFTWARE)


def renderer() -> str:
    """What draws the current context: renderer and version."""
    name, version = GL.glGetString(GL.GL_RENDERER), GL.glGetString(GL.GL_VERSION)
    return f"{name.decode(errors='replace')}, OpenGL {version.decode(errors='replace')}"


def check_opengl() -> str:
    """Name of the OpenGL that is at hand, after it was made to compile what the view needs; ViewError where it cannot."""
    context, surface = context_and_surface()
    with_context(context, surface)
    try:
        GL.glDeleteProgram(compiled(context))
        return renderer()
    finally:
        context.doneCurrent()
