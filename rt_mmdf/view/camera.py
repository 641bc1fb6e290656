"""From where the cortex is looked at: cameras, panels of the picture, and which vertex is under the pointer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float32, Float64

# azimuth, elevation of the viewer in degrees: azimuth 0 from the right, 90 from the front; above and below: front is up
PRESETS: dict[str, tuple[float, float]] = {
    "left": (180.0, 0.0),
    "right": (0.0, 0.0),
    "top": (-90.0, 90.0),
    "bottom": (90.0, -90.0),
    "front": (90.0, 0.0),
    "back": (-90.0, 0.0),
}
START = (-90.0, 50.0)  # both hemispheres from behind and above
FIELD_OF_VIEW = 22.0  # degrees that the cortex fills: little perspective, so that sizes can be compared
FILLED = 0.93  # of a panel
ZOOM = (0.3, 12.0)


@dataclass(frozen=True)
class Camera:
    """A direction to look from; distance and lens follow from what is drawn.

    azimuth, elevation : degrees, see `PRESETS`
    zoom : 1 fits the cortex into its panel, whatever the direction
    shift : (right, up), fractions of the panel's height that the picture is moved by
    """

    azimuth: float
    elevation: float
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def orbited(self, across: float, up: float) -> Camera:
        """Turned by degrees; never over the pole."""
        azimuth = (self.azimuth + across + 180.0) % 360.0 - 180.0
        return replace(self, azimuth=azimuth, elevation=float(np.clip(self.elevation + up, -90.0, 90.0)))

    def zoomed(self, factor: float) -> Camera:
        return replace(self, zoom=float(np.clip(self.zoom * factor, *ZOOM)))

    def shifted(self, right: float, up: float) -> Camera:
        x, y = self.shift
        return replace(self, shift=(float(np.clip(x + right, -1.5, 1.5)), float(np.clip(y + up, -1.5, 1.5))))

    @property
    def rotation(self) -> Float64:
        """(3, 3) rows: right, up, towards the viewer."""
        azimuth, elevation = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        towards = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        right = [-np.sin(azimuth), np.cos(azimuth), 0.0]
        return np.array([right, np.cross(towards, right), towards])


@dataclass(frozen=True)
class Panel:
    """A rectangle of the picture with its own camera.

    hemisphere : what is drawn in it: 0 left, 1 right, None both
    side, view : what stands in its corner; empty where both hemispheres are drawn
    box : (left, top, width, height), fractions of the picture
    """

    hemisphere: int | None
    side: str
    view: str
    box: tuple[float, float, float, float]
    home: Camera


BOTH = (Panel(None, "", "", (0.0, 0.0, 1.0, 1.0), Camera(*START)),)
SPLIT = (
    Panel(0, "left", "lateral", (0.0, 0.0, 0.5, 0.5), Camera(*PRESETS["left"])),
    Panel(1, "right", "lateral", (0.5, 0.0, 0.5, 0.5), Camera(*PRESETS["right"])),
    Panel(0, "left", "medial", (0.0, 0.5, 0.5, 0.5), Camera(*PRESETS["right"])),
    Panel(1, "right", "medial", (0.5, 0.5, 0.5, 0.5), Camera(*PRESETS["left"])),
)
LAYOUTS: dict[str, tuple[Panel, ...]] = {"both": BOTH, "split": SPLIT}


@dataclass(frozen=True, eq=False)
class Shot:
    """One panel of the picture: what is drawn in it, and from where."""

    panel: Panel
    projection: Projection

    @property
    def hemisphere(self) -> int | None:
        return self.panel.hemisphere


@dataclass(frozen=True, eq=False)
class Projection:
    """Millimetres to pixels of one panel.

    view : (4, 4) millimetres to camera coordinates (x right, y up, z towards the viewer, who is at the origin)
    clip : (4, 4) camera coordinates to OpenGL's clip coordinates
    box : (left, top, width, height) of the panel in pixels
    """

    view: Float64
    clip: Float64
    box: tuple[float, float, float, float]

    @classmethod
    def of(cls, camera: Camera, box: tuple[float, float, float, float], drawn: Float32) -> Projection:
        """Of a panel that shows the vertices `drawn` (n, 3)."""
        low, high = drawn.min(axis=0), drawn.max(axis=0)
        middle = 0.5 * (low + high).astype(np.float64)
        rotation = camera.rotation
        along = (drawn - middle.astype(np.float32)) @ rotation.T.astype(np.float32)
        radius = max(0.5 * float(np.linalg.norm(high - low)), 1e-3)
        distance = radius / np.sin(np.deg2rad(0.5 * FIELD_OF_VIEW))
        slopes = along[:, :2] / (distance - along[:, 2:])
        lowest, highest = slopes.min(axis=0).astype(np.float64), slopes.max(axis=0).astype(np.float64)
        centre, half = 0.5 * (lowest + highest), np.maximum(0.5 * (highest - lowest), 1e-6)
        aspect = box[2] / max(box[3], 1.0)
        tangent = max(half[1], half[0] / aspect) / (FILLED * camera.zoom)
        near, far = distance - 1.01 * radius, distance + 1.01 * radius
        view = np.eye(4)
        view[:3, :3] = rotation
        view[:3, 3] = -rotation @ middle - [0.0, 0.0, distance]
        clip = np.zeros((4, 4))
        clip[0, 0], clip[1, 1] = 1 / (tangent * aspect), 1 / tangent
        clip[0, 2] = centre[0] * clip[0, 0] - 2 * camera.shift[0] / aspect
        clip[1, 2] = centre[1] * clip[1, 1] - 2 * camera.shift[1]
        clip[2, 2], clip[2, 3], clip[3, 2] = -(far + near) / (far - near), -2 * far * near / (far - near), -1.0
        return cls(view, clip, box)

    @property
    def matrix(self) -> Float64:
        """(4, 4) millimetres to clip coordinates."""
        return np.asarray(self.clip @ self.view)

    def pixels(self, points: Float32 | Float64) -> tuple[Float64, Float64]:
        """Column and row in the picture (n, 2), and nearness (n,), which grows towards the viewer, of points (n, 3)."""
        corners = points @ self.matrix[:, :3].T + self.matrix[:, 3]
        across = corners[:, :3] / corners[:, 3:]
        left, top, width, height = self.box
        at = np.column_stack([left + 0.5 * (1 + across[:, 0]) * width, top + 0.5 * (1 - across[:, 1]) * height])
        return at, -across[:, 2]


def facing(at: Float64, triangles: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(n_triangles,) which of them turn their outer side to the viewer; `at` (n_vertices, 2): columns and rows."""
    a, b, c = (at[triangles[:, corner]] for corner in range(3))
    return np.asarray(_cross(b - a, c - a) < 0)


class Footprint:
    """A mesh as it lies on the pixels of a panel: tells what is under the pointer.

    Parameters
    ----------
    projection : Projection
    vertices : (n_vertices, 3) millimetres
    triangles : (n_triangles, 3)
    """

    def __init__(self, projection: Projection, vertices: Float32, triangles: NDArray[np.integer]) -> None:
        self._triangles = triangles
        self._at, self._nearness = projection.pixels(vertices)
        corners = self._at[triangles]
        self._low, self._high = corners.min(axis=1), corners.max(axis=1)

    def under(self, at: tuple[float, float]) -> tuple[int, float] | None:
        """The vertex that is seen at a pixel, and the nearness of the surface there; None: there is no surface.

        It is that corner of the nearest triangle on this pixel that has the largest part in it.
        """
        around = np.flatnonzero((self._low <= at).all(axis=1) & (self._high >= at).all(axis=1))
        triangles = self._triangles[around]
        a, b, c = (self._at[triangles[:, corner]] for corner in range(3))
        with np.errstate(divide="ignore", invalid="ignore"):
            area = _cross(b - a, c - a)
            of_a, of_b = _cross(c - b, at - b) / area, _cross(a - c, at - c) / area
        parts = np.stack([of_a, of_b, 1 - of_a - of_b], axis=1)
        hit = (parts >= -1e-9).all(axis=1)
        if not hit.any():
            return None
        nearness = np.where(hit, (np.nan_to_num(parts) * self._nearness[triangles]).sum(axis=1), -np.inf)
        first = int(np.argmax(nearness))
        return int(triangles[first, int(np.argmax(parts[first]))]), float(nearness[first])


def _cross(u: Float64, v: Float64) -> Float64:
    return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])
