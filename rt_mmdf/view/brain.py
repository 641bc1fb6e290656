"""The cortex in OpenGL."""

from __future__ import annotations

from OpenGL import GL
from pyqtgraph.opengl import GLViewWidget
from PySide6.QtGui import QColor, QOffscreenSurface, QOpenGLContext
from PySide6.QtWidgets import QWidget

from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.errors import ViewError
from rt_mmdf.view.camera import Shot
from rt_mmdf.view.colours import ColourScale
from rt_mmdf.view.cortex import Cortex
from rt_mmdf.view.mesh_item import CortexItem, compiled
from rt_mmdf.view.pane import BrainPane
from rt_mmdf.view.themes import Theme


class BrainView(BrainPane):
    """The cortex in OpenGL with its colour bar: see `BrainPane` for all that it does.

    Parameters
    ----------
    cortex : Cortex
    theme : Theme
    """

    def __init__(self, cortex: Cortex, *, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(cortex, GLCanvas(cortex), theme, turns=True)
        if parent is not None:
            self.setParent(parent)


class GLCanvas(GLViewWidget):
    """What OpenGL draws into: one scene, a viewport for each panel of the layout."""

    def __init__(self, cortex: Cortex) -> None:
        super().__init__()
        self._item = CortexItem(cortex)
        self.addItem(self._item)

    def set_surface(self, surface: str) -> None:
        self._item.set_surface(surface)
        self.update()

    def set_vertex_values(self, values: Float32 | None) -> None:
        self._item.set_values(values)
        self.update()

    def set_scale(self, scale: ColourScale) -> None:
        self._item.set_scale(scale)
        self.update()

    def set_stale(self, stale: bool) -> None:
        self._item.set_stale(stale)
        self.update()

    def set_shots(self, shots: tuple[Shot, ...]) -> None:
        self._item.set_shots(shots, self.height(), self.devicePixelRatioF())
        self.update()

    def set_background(self, colour: str) -> None:
        self.setBackgroundColor(QColor(colour))

    def initializeGL(self) -> None:
        again = self._item.isInitialized()
        super().initializeGL()
        if again:  # the widget has moved to another window, so to another context, which has none of the buffers
            self._item.initializeGL()

    def paintGL(self) -> None:
        if self.default_vao.isCreated():
            self.default_vao.bind()
        GL.glClearColor(*self.opts["bgcolor"])
        GL.glClear(GL.GL_COLOR_BUFFER_BIT | GL.GL_DEPTH_BUFFER_BIT)
        self._item.paint()


def check_opengl() -> str:
    """Name of the OpenGL that is at hand, after it was made to compile what the view needs.

    Raises
    ------
    ViewError
        There is none, or it is too old.
    """
    context = QOpenGLContext()
    surface = QOffscreenSurface()
    if context.create():
        surface.setFormat(context.format())
        surface.create()
    if not surface.isValid() or not context.makeCurrent(surface):
        raise ViewError("OpenGL: no context can be made on this display; OpenGL 2.1 or newer is expected.")
    try:
        GL.glDeleteProgram(compiled(context))
        version, renderer = (GL.glGetString(name).decode(errors="replace") for name in (GL.GL_VERSION, GL.GL_RENDERER))
    finally:
        context.doneCurrent()
    return f"{renderer}, OpenGL {version}"
