"""A brain with its colour bar, whatever draws it: what OpenGL and the flat picture have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PySide6.QtCore import QEvent, QObject, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontMetricsF, QImage, QMouseEvent, QPainter, QPaintEvent, QPen, QWheelEvent
from PySide6.QtWidgets import QHBoxLayout, QWidget

from rt_mmdf.core.blocks import Float32
from rt_mmdf.view.camera import LAYOUTS, PRESETS, Camera, Footprint, Projection, Shot
from rt_mmdf.view.colour_bar import ColourBar
from rt_mmdf.view.colours import ColourScale
from rt_mmdf.view.cortex import Cortex
from rt_mmdf.view.themes import Theme

CLICK_PIXELS = 4  # a press that moves further is a drag
DEGREES_PER_PIXEL = 0.4
AMBIENT = 0.42  # of the light, which comes from the camera
STALE_PART = 0.5  # a stale picture is grey; this part of it is left, the rest is background
MARK_COLOUR = "#00d27f"


class Canvas(Protocol):
    """What draws the cortex. A widget too: see `BrainPane`."""

    def set_surface(self, surface: str) -> None: ...
    def set_vertex_values(self, values: Float32 | None) -> None: ...
    def set_scale(self, scale: ColourScale) -> None: ...
    def set_stale(self, stale: bool) -> None: ...
    def set_shots(self, shots: tuple[Shot, ...]) -> None: ...
    def set_background(self, colour: str) -> None: ...
    def renew(self) -> None: ...


class BrainPane(QWidget):
    """The cortex with its colour bar.

    Drag to turn, drag with the middle button (or Shift) to move, wheel to zoom, double click to go home; a click on the
    cortex emits `picked` with the vertex of the mesh.

    Parameters
    ----------
    cortex : Cortex
    canvas : QWidget that is a `Canvas`
    theme : Theme
    turns : whether `canvas` is quick enough to be turned with the pointer
    """

    picked = Signal(int)
    turned = Signal()
    """A person has moved a camera of this pane."""

    def __init__(self, cortex: Cortex, canvas: QWidget, theme: Theme, *, turns: bool) -> None:
        super().__init__()
        self.cortex = cortex
        self._canvas: Canvas = canvas  # type: ignore[assignment]
        self._widget = canvas
        self._turns = turns
        self._theme = theme
        self._bar = ColourBar(theme)
        self._words = _Words(self)
        self._surface = cortex.surfaces[0]
        self._layout_name = "both"
        self._cameras = {name: [panel.home for panel in panels] for name, panels in LAYOUTS.items()}
        self._shots: tuple[Shot, ...] = ()
        self._scale = ColourScale("dSPM")
        self._values: Float32 | None = None
        self._stale: str | None = None
        self._mark: int | None = None
        self._footprints: dict[Shot, Footprint] = {}
        self._letters: list[tuple[str, float, float]] = []
        self._rings: list[QPointF] = []
        self._pressed: QPointF | None = None
        self._last = QPointF()
        self._dragged = False
        box = QHBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.setSpacing(0)
        box.addWidget(canvas, 1)
        box.addWidget(self._bar)
        self._words.setParent(canvas)
        canvas.installEventFilter(self)
        canvas.setMinimumSize(160, 120)
        self._canvas.set_surface(self._surface)
        self.set_theme(theme)
        self.set_scale(self._scale)
        self.set_values(None)

    # what is shown

    @property
    def canvas(self) -> QWidget:
        """The picture without the colour bar: pixels of `project` and `vertex_at` are its."""
        return self._widget

    @property
    def surface(self) -> str:
        return self._surface

    @property
    def layout_name(self) -> str:
        return self._layout_name

    @property
    def scale(self) -> ColourScale:
        return self._scale

    @property
    def notice(self) -> str:
        """What stands over the picture instead of an estimate; empty where there is one."""
        if self._stale is not None:
            return self._stale
        if self._values is None:
            return "no estimate yet"
        return "" if np.isfinite(self._values).any() else "no valid estimate"

    def set_surface(self, surface: str) -> None:
        """``inflated``, ``pial`` or ``white``; ValueError for one that the cortex does not have."""
        self.cortex.vertices(surface)
        self._surface = surface
        self._canvas.set_surface(surface)
        self._look()

    def set_layout(self, name: str) -> None:
        """``both`` hemispheres together, or ``split``: each from outside and from between."""
        if name not in LAYOUTS:
            raise ValueError(f"layout {name!r}: expected one of {', '.join(LAYOUTS)}")
        self._layout_name = name
        self._look()

    def set_values(self, values: NDArray[np.floating] | None) -> None:
        """Show values of the sources.

        Parameters
        ----------
        values : (n_sources,) in the unit of the scale, or None
            NaN is no estimate: the cortex is seen there. None, or nothing finite, greys the picture and says so.
        """
        self._values = None if values is None else np.asarray(values, dtype=np.float32)
        self._canvas.set_vertex_values(None if self._values is None else self.cortex.of_sources(self._values))
        self._say()

    def set_scale(self, scale: ColourScale) -> None:
        """Colours and their bar; call it again when `ColourScale.observe` has changed the limits."""
        self._scale = scale
        self._canvas.set_scale(scale)
        self._bar.set_scale(scale)

    def set_stale(self, stale: bool, text: str = "no new estimate") -> None:
        """Grey, with `text` over it: what is shown is not what happens now."""
        self._stale = text if stale else None
        self._say()

    def set_theme(self, theme: Theme) -> None:
        self._theme = theme
        self._canvas.set_background(theme.background)
        self._bar.set_theme(theme)
        self._words.update()

    def mark(self, vertex: int | None) -> None:
        """A ring around a vertex of the mesh, wherever it can be seen; None takes it away."""
        self._mark = vertex
        self._find_rings()

    # from where

    def set_camera(self, preset: str) -> None:
        """``left``, ``right``, ``top``, ``bottom``, ``front`` or ``back``, for all panels of the layout."""
        if preset not in PRESETS:
            raise ValueError(f"camera {preset!r}: expected one of {', '.join(PRESETS)}")
        self._cameras[self._layout_name] = [Camera(*PRESETS[preset]) for _ in LAYOUTS[self._layout_name]]
        self._look()

    def reset_camera(self) -> None:
        """The first direction, size and place of the layout."""
        self._cameras[self._layout_name] = [panel.home for panel in LAYOUTS[self._layout_name]]
        self._look()

    def follow(self, other: BrainPane) -> None:
        """Look from where another pane looks."""
        self._cameras = {name: list(cameras) for name, cameras in other._cameras.items()}
        self._look()

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """Of the panels of the layout."""
        return tuple(self._cameras[self._layout_name])

    def project(self, vertex: int) -> tuple[tuple[float, float, bool], ...]:
        """Where a vertex is on the canvas: (column, row, whether it is seen) for each panel that draws its hemisphere."""
        side = int(self.cortex.hemisphere[vertex])
        point = self.cortex.vertices(self._surface)[vertex]
        places = []
        for shot in self._shots:
            if shot.hemisphere in (None, side):
                at, nearness = shot.projection.pixels(point[None])
                seen = self._in_front(shot, (float(at[0, 0]), float(at[0, 1])), float(nearness[0]))
                places.append((float(at[0, 0]), float(at[0, 1]), seen))
        return tuple(places)

    def vertex_at(self, x: float, y: float) -> int | None:
        """The vertex that is seen at a pixel of the canvas; None beside the cortex."""
        shot = self._shot_at(x, y)
        found = None if shot is None else self._under(shot, (x, y))
        return None if found is None else found[0]

    def redraw(self) -> None:
        """Draw the cortex again and paint it at once, whether or not something has changed."""
        self._canvas.renew()
        self._widget.repaint()

    @contextmanager
    def at_best(self) -> Iterator[None]:
        """Pictures that are taken within have all pixels and smooth edges, even where that is too slow for live ones."""
        yield

    def grab_image(self, *, smooth: bool = True) -> NDArray[np.uint8]:
        """(height, width, 3) of the brain and its colour bar as they are on the screen, in the device's pixels.

        `smooth`: `at_best`, for snapshots; without it as on the screen, for films.
        """
        with self.at_best() if smooth else nullcontext():
            image = self.grab().toImage().convertToFormat(QImage.Format.Format_RGB888)
        rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
        return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()

    # inside

    def _look(self) -> None:
        """Projections again, after a change of size, surface, layout or camera."""
        width, height = max(self._widget.width(), 1), max(self._widget.height(), 1)
        vertices = self.cortex.vertices(self._surface)
        shots = []
        for panel, camera in zip(LAYOUTS[self._layout_name], self.cameras, strict=True):
            left, top, wide, high = panel.box
            box = (left * width, top * height, wide * width, high * height)
            drawn = vertices if panel.hemisphere is None else vertices[self.cortex.hemisphere == panel.hemisphere]
            shots.append(Shot(panel, Projection.of(camera, box, drawn)))
        self._shots = tuple(shots)
        self._footprints.clear()
        self._canvas.set_shots(self._shots)
        self._words.setGeometry(0, 0, width, height)
        self._letters = [letter for shot in self._shots for letter in self._letters_of(shot)]
        self._find_rings()

    def _find_rings(self) -> None:
        places = () if self._mark is None else self.project(self._mark)
        self._rings = [QPointF(x, y) for x, y, seen in places if seen]
        self._words.update()

    def _say(self) -> None:
        notice = self.notice
        self._canvas.set_stale(bool(notice))
        self._words.say(notice)

    def _shot_at(self, x: float, y: float) -> Shot | None:
        for shot in self._shots:
            left, top, width, height = shot.projection.box
            if left <= x < left + width and top <= y < top + height:
                return shot
        return None

    def _under(self, shot: Shot, at: tuple[float, float]) -> tuple[int, float] | None:
        if shot not in self._footprints:
            n_left = self.cortex.n_left_triangles
            part = {None: slice(None), 0: slice(0, n_left), 1: slice(n_left, None)}[shot.hemisphere]
            vertices = self.cortex.vertices(self._surface)
            self._footprints[shot] = Footprint(shot.projection, vertices, self.cortex.triangles[part])
        return self._footprints[shot].under(at)

    def _in_front(self, shot: Shot, at: tuple[float, float], nearness: float) -> bool:
        left, top, width, height = shot.projection.box
        if not (left <= at[0] < left + width and top <= at[1] < top + height):
            return False
        found = self._under(shot, at)
        return found is None or found[1] < nearness + 0.01  # of 2 from the front to the back of the cortex

    def _write(self, painter: QPainter, notice: str) -> None:
        """All words over the picture."""
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        line = QFontMetricsF(painter.font()).height()
        muted = QColor(self._theme.muted)
        painter.setPen(muted)
        for shot, camera in zip(self._shots, self.cameras, strict=True):
            left, top, width, _ = shot.projection.box
            if shot.panel.side:
                home = shot.panel.home
                turned = (camera.azimuth, camera.elevation) != (home.azimuth, home.elevation)
                name = shot.panel.side if turned else f"{shot.panel.side}, {shot.panel.view}"
                painter.drawText(QRectF(left + 12, top + 8, width - 24, line), Qt.AlignmentFlag.AlignLeft, name)
        painter.setFont(_larger(self.font(), float(np.clip(self._widget.height() / 600, 1.1, 1.8))))
        for letter, x, y in self._letters:
            painter.drawText(QRectF(x - line, y - line, 2 * line, 2 * line), Qt.AlignmentFlag.AlignCenter, letter)
        for at in self._rings:
            for colour, wide in (("#000000", 4.5), (MARK_COLOUR, 2.5)):
                painter.setPen(QPen(QColor(colour), wide))
                painter.drawEllipse(at, 8, 8)
        if notice:
            self._announce(painter, notice)

    def _letters_of(self, shot: Shot) -> list[tuple[str, float, float]]:
        """L and R beside the cortex, where left and right can be told apart from this direction."""
        if shot.hemisphere is not None:
            return []
        across = shot.projection.view[0, 0]
        if abs(across) < 0.35:
            return []
        line = QFontMetricsF(self.font()).height()
        at, _ = shot.projection.pixels(self.cortex.vertices(self._surface))
        (left, top), (right, bottom) = at.min(axis=0), at.max(axis=0)
        ends = [left - line, right + line] if across > 0 else [right + line, left - line]
        inside = np.clip(ends, line, self._widget.width() - line).tolist()
        return [(name, x, 0.5 * float(top + bottom)) for name, x in zip("LR", inside, strict=True)]

    def _announce(self, painter: QPainter, notice: str) -> None:
        painter.setFont(_larger(self.font(), float(np.clip(self._widget.height() / 330, 1.3, 3.0))))
        room = QRectF(0, 0, self._widget.width(), self._widget.height())
        flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
        words = painter.boundingRect(room.adjusted(40, 20, -40, -20), flags, notice)
        painter.setPen(QPen(QColor(self._theme.bad), 2))
        back = QColor(self._theme.panel)
        back.setAlpha(235)
        painter.setBrush(back)
        painter.drawRoundedRect(words.adjusted(-22, -12, 22, 12), 8, 8)
        painter.setPen(QColor(self._theme.text))
        painter.drawText(words, flags, notice)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        kind = event.type()
        if kind == QEvent.Type.Resize:
            self._look()
        elif isinstance(event, QWheelEvent):
            self._change(event.position(), lambda camera: camera.zoomed(1.0015 ** event.angleDelta().y()))
            return True
        elif isinstance(event, QMouseEvent):
            return self._mouse(kind, event)
        return False

    def _mouse(self, kind: QEvent.Type, event: QMouseEvent) -> bool:
        at = event.position()
        if kind == QEvent.Type.MouseButtonPress:
            self._pressed, self._last, self._dragged = at, at, False
        elif kind == QEvent.Type.MouseButtonDblClick:
            self._pressed = None
            self.reset_camera()
            self.turned.emit()
        elif kind == QEvent.Type.MouseMove and self._pressed is not None:
            far = (at - self._pressed).manhattanLength() > CLICK_PIXELS
            if self._turns and (far or self._dragged):
                self._drag(event, at - self._last)
                self._last = at
            self._dragged = self._dragged or far
        elif kind == QEvent.Type.MouseButtonRelease and self._pressed is not None:
            pressed, self._pressed = self._pressed, None
            if not self._dragged and event.button() == Qt.MouseButton.LeftButton:
                vertex = self.vertex_at(pressed.x(), pressed.y())
                if vertex is not None:
                    self.picked.emit(vertex)
        else:
            return False
        return True

    def _drag(self, event: QMouseEvent, by: QPointF) -> None:
        start = self._pressed or event.position()
        moves = event.buttons() != Qt.MouseButton.LeftButton or event.modifiers() & Qt.KeyboardModifier.ShiftModifier
        if moves:
            shot = self._shot_at(start.x(), start.y())
            height = shot.projection.box[3] if shot is not None else self._widget.height()
            self._change(start, lambda camera: camera.shifted(by.x() / height, -by.y() / height))
        else:
            across, up = -DEGREES_PER_PIXEL * by.x(), DEGREES_PER_PIXEL * by.y()
            self._change(start, lambda camera: camera.orbited(across, up))

    def _change(self, at: QPointF, new: Callable[[Camera], Camera]) -> None:
        shot = self._shot_at(at.x(), at.y())
        if shot is None:
            return
        cameras = self._cameras[self._layout_name]
        number = self._shots.index(shot)
        cameras[number] = new(cameras[number])
        self._look()
        self.turned.emit()


def _larger(font: QFont, factor: float) -> QFont:
    own = QFont(font)
    own.setPointSizeF(factor * own.pointSizeF())
    own.setBold(True)
    return own


class _Words(QWidget):
    """Over the canvas: the notice, names of panels, L and R, the ring around the marked vertex."""

    def __init__(self, pane: BrainPane) -> None:
        super().__init__()
        self._pane = pane
        self._notice = ""
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setAttribute(Qt.WidgetAttribute.WA_NoSystemBackground)

    def say(self, notice: str) -> None:
        if notice != self._notice:
            self._notice = notice
            self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        self._pane._write(QPainter(self), self._notice)
