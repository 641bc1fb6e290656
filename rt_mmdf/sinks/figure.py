"""A source map on the inflated cortex as a picture, without OpenGL: pixels are computed here, words are matplotlib's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy import sparse

from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.errors import SinkError
from rt_mmdf.headmodel.head import Hemisphere

PIXELS_PER_MM = 5.0  # of the computed picture; it is averaged over 2 x 2 pixels against jagged edges
GYRUS, SULCUS = 0.80, 0.55  # greys of the cortex
BAR_GREY = 0.7
MARK = "#00d27f"
STAR: Mapping[str, Any] = {"marker": "*", "ms": 15, "mfc": MARK, "mec": "black", "mew": 1.2}
SMOOTHING_STEPS = 2
# Steps of smoothing, for each vertex, that open the sulci of a cortex without an inflated surface (12 for the 1026 vertices
# of oct-5); more than MAX_OPENING take seconds and change little.
OPENING_PER_VERTEX, MAX_OPENING = 12 / 1026, 600
VIEWS = (("left", "lateral", 0, -1), ("right", "lateral", 1, 1), ("left", "medial", 0, 1), ("right", "medial", 1, -1))


@dataclass(frozen=True)
class CorticalSurface:
    """One hemisphere to draw on.

    vertices : (n_vertices, 3), millimetres: x to the right, y to the front, z up; inflated for preference
    triangles : (n_triangles, 3), counter-clockwise seen from outside
    source_vertices : (n_sources,) vertices that are sources, in the order of the values
    sulc : (n_vertices,) sulcal depth, positive in sulci; None: one grey for all
    """

    vertices: Float64
    triangles: NDArray[np.int64]
    source_vertices: NDArray[np.int64]
    sulc: Float64 | None = None

    @cached_property
    def spread(self) -> Any:
        """(n_vertices, n_sources): see `spread_matrix`."""
        return spread_matrix(self.triangles, len(self.vertices), self.source_vertices)

    @cached_property
    def normals(self) -> Float64:
        """(n_vertices, 3) unit normals, outwards."""
        corners = self.vertices[self.triangles]
        of_triangle = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        total = np.zeros_like(self.vertices)
        for corner in range(3):
            np.add.at(total, self.triangles[:, corner], of_triangle)
        return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


def surface_of(hemisphere: Hemisphere) -> CorticalSurface:
    """What to draw a hemisphere on: its inflated surface; where it has none, its white surface smoothed until sulci open."""
    if hemisphere.inflated is not None:
        return CorticalSurface(hemisphere.inflated, hemisphere.triangles, hemisphere.source_vertices, hemisphere.sulc)
    white = hemisphere.white
    near = _neighbours(hemisphere.triangles, len(white))
    alone = np.diff(near.indptr) == 0
    near = _rows_to_one((near + sparse.diags(alone.astype(float))).tocsr())
    smooth = white
    for _ in range(min(MAX_OPENING, round(OPENING_PER_VERTEX * len(white)))):
        smooth = 0.5 * (smooth + near @ smooth)
    sulc = hemisphere.sulc
    if sulc is None:  # how far a vertex lies below its surroundings, in the units that `draw_hemisphere` shades
        normals = CorticalSurface(smooth, hemisphere.triangles, hemisphere.source_vertices).normals
        below = np.einsum("ij,ij->i", smooth - white, normals)
        sulc = 0.1 * below / max(float(below.std()), 1e-12)
    middle = smooth.mean(axis=0)
    grown = middle + (smooth - middle) * np.ptp(white, axis=0) / np.maximum(np.ptp(smooth, axis=0), 1e-12)
    return CorticalSurface(grown, hemisphere.triangles, hemisphere.source_vertices, sulc)


@dataclass(frozen=True)
class ColourRamp:
    """Magnitudes up to `low` are not shown, from `full` on they cover the cortex, at `high` the colours end.

    `signed`: negative values in blue, positive ones in red; otherwise magnitudes from violet to yellow. Both can be told
    apart with any common colour vision.
    """

    low: float
    full: float
    high: float
    signed: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.full < self.high and np.isfinite(self.high)):
            raise ValueError(f"colour ramp {self.low:g}, {self.full:g}, {self.high:g}: 0 <= low <= full < high is expected")

    @classmethod
    def of(cls, values: NDArray[np.floating], signed: bool = False) -> ColourRamp:
        """From the values themselves: shown from 35 % of the largest magnitude on, full from 55 %. Only for single pictures:
        with a scale of its own each, noise looks like activity."""
        finite = np.abs(values[np.isfinite(values)])
        high = float(finite.max(initial=0.0)) or 1.0
        return cls(0.35 * high, 0.55 * high, high, signed)

    def colours(self, values: Float64) -> tuple[Float64, Float64]:
        """RGB ``(..., 3)`` and opacity ``(...)``, both 0 to 1; NaN is transparent."""
        size = np.nan_to_num(np.abs(values))
        along = np.clip((size - self.low) / (self.high - self.low), 0, 1)
        if self.signed:
            rgb = matplotlib.colormaps["RdBu_r"](0.5 + np.sign(np.nan_to_num(values)) * (0.22 + 0.25 * along))
        else:
            rgb = matplotlib.colormaps["inferno"](0.32 + 0.63 * along)
        opacity = np.clip((size - self.low) / max(self.full - self.low, 1e-12 * self.high), 0, 1)
        return np.asarray(rgb[..., :3]), np.asarray(opacity)


def spread_matrix(triangles: NDArray[np.int64], n_vertices: int, source_vertices: NDArray[np.int64]) -> Any:
    """Matrix from sources to all vertices of a surface: means over neighbours, as far as needed to reach every vertex.

    Rows are weights that sum to 1; a vertex that no chain of triangles connects with a source has an empty row.
    """
    near = (_neighbours(triangles, n_vertices) + sparse.identity(n_vertices)).tocsr()
    n_sources = len(source_vertices)
    spread = sparse.csr_matrix((np.ones(n_sources), (source_vertices, np.arange(n_sources))), shape=(n_vertices, n_sources))
    reached = 0
    while (filled := int((np.diff(spread.indptr) > 0).sum())) > reached:
        reached = filled
        empty = sparse.diags((np.diff(spread.indptr) == 0).astype(float))
        spread = (spread + _rows_to_one(empty @ near @ spread)).tocsr()
    for _ in range(SMOOTHING_STEPS if n_sources < n_vertices else 0):
        spread = _rows_to_one(near @ spread)
    return _rows_to_one(spread)


def source_map(
    surfaces: tuple[CorticalSurface, CorticalSurface],
    values: NDArray[np.floating],
    *,
    unit: str,
    title: str = "",
    ramp: ColourRamp | None = None,
    marks: Sequence[tuple[int, int]] = (),
    mark_label: str = "true source",
) -> Figure:
    """Both hemispheres from outside and from between.

    Parameters
    ----------
    surfaces : (left, right)
    values : (n_sources,)
        Left hemisphere first; NaN is not drawn.
    unit : str
        Of the values: ``"A m"`` (shown with a fitting prefix), or a name such as ``"dSPM"``.
    ramp : ColourRamp | None
        None: from the values.
    marks : sequence of (hemisphere, vertex)
        Drawn as stars where they can be seen; hemisphere 0 is the left one.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Not known to pyplot; 1800 x 1300 pixels when saved as it is.
    """
    values = np.asarray(values, dtype=np.float64)
    counts = [len(surface.source_vertices) for surface in surfaces]
    if values.shape != (sum(counts),):
        raise ValueError(f"source map: values of shape {values.shape}; ({sum(counts)},) is expected")
    on_vertices = [surface.spread @ own for surface, own in zip(surfaces, np.split(values, [counts[0]]), strict=True)]
    ramp = ramp or ColourRamp.of(np.concatenate(on_vertices))
    figure = Figure(figsize=(9.0, 6.5), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    left, bottom, width, height = 0.025, 0.125, 0.48, 0.385
    for number, (side, view, hemisphere, towards) in enumerate(VIEWS):
        column, row = number % 2, number // 2
        axes = figure.add_axes((left + column * width, bottom + (1 - row) * (height + 0.005), width, height))
        axes.set_axis_off()
        stars = [(vertex, STAR) for side_of, vertex in marks if side_of == hemisphere]
        draw_hemisphere(axes, surfaces[hemisphere], on_vertices[hemisphere], (towards, 0.0, 0.0), ramp, marks=stars)
        if row == 0:
            axes.set_title(f"{side} hemisphere", fontsize=11, color="0.15", pad=3)
        if column == 0:
            axes.text(-0.005, 0.5, view, rotation=90, va="center", ha="center", transform=axes.transAxes, color="0.3")
    _draw_bar(figure, ramp, unit)
    if title:
        figure.suptitle(title, fontsize=13, y=0.985, color="0.1")
    if marks:
        star = Line2D([], [], marker="*", ls="", ms=13, mfc=MARK, mec="black", label=mark_label)
        figure.legend(handles=[star], loc="lower right", bbox_to_anchor=(0.985, 0.035), frameon=False, fontsize=10)
    if not np.isfinite(values).any():
        figure.text(0.5, 0.5, "no valid estimate", ha="center", va="center", fontsize=20, color="firebrick")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; SinkError when that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise SinkError(f"figure {path}: cannot be written ({error}). Free some space or choose another folder.") from error


def draw_hemisphere(
    axes: Axes,
    surface: CorticalSurface,
    values: Float64,
    camera: tuple[float, float, float],
    ramp: ColourRamp,
    *,
    marks: Sequence[tuple[int, Mapping[str, Any]]] = (),
    hidden: Mapping[str, Any] | None = None,
    region: NDArray[np.bool_] | None = None,
    region_style: Mapping[str, Any] | None = None,
    pixels_per_mm: float = PIXELS_PER_MM,
) -> tuple[int, ...]:
    """Orthographic picture of one hemisphere.

    Parameters
    ----------
    values : (n_vertices,), see `CorticalSurface.spread`
    camera : from the head to the viewer, not along z, which points upwards in the picture
    marks : vertices, with the properties of their markers, matplotlib's
    hidden : properties that change for marks that cannot be seen from there; None: those are not drawn
    region : (n_vertices,) what to draw an outline around
    region_style : properties of the outline, those of ``Axes.contour``

    Returns
    -------
    Vertices of those marks that can be seen.
    """
    front = np.asarray(camera, dtype=np.float64)
    front = front / np.linalg.norm(front)
    right = np.cross([0.0, 0.0, 1.0], front)
    right /= np.linalg.norm(right)
    flat = surface.vertices @ np.column_stack([right, np.cross(front, right)])
    depth = surface.vertices @ front
    sulc = np.zeros(len(flat)) if surface.sulc is None else surface.sulc
    inside = np.zeros(len(flat)) if region is None else region.astype(np.float64)
    facing = surface.normals @ front
    corner = flat.min(axis=0) - 2.0
    at = (flat - corner) * pixels_per_mm
    n_across, n_up = (2 * np.ceil((at.max(axis=0) + 2.0 * pixels_per_mm) / 2)).astype(int)
    triangles = surface.triangles[(facing[surface.triangles] > 0).any(axis=1)]
    painted, nearest = rasterise(at, depth, triangles, np.column_stack([sulc, values, facing, inside]), (n_up, n_across))
    deep = np.clip(0.5 + painted[..., 0] / 0.2, 0, 1)  # two greys with a soft edge
    grey = np.full(deep.shape, 0.5 * (GYRUS + SULCUS)) if surface.sulc is None else GYRUS + (SULCUS - GYRUS) * deep
    rgb, opacity = ramp.colours(painted[..., 1])
    light = 0.45 + 0.55 * np.clip(painted[..., 2], 0, 1) ** 0.7
    picture = (grey[..., None] * (1 - opacity[..., None]) + rgb * opacity[..., None]) * light[..., None]
    covered = np.isfinite(nearest)
    rgba = np.dstack([np.where(covered[..., None], picture, 0.0), covered])
    rgba[..., :3] *= rgba[..., 3:]
    rgba = rgba.reshape(n_up // 2, 2, n_across // 2, 2, 4).mean(axis=(1, 3))
    rgba[..., :3] /= np.maximum(rgba[..., 3:], 1e-9)
    extent = (corner[0], corner[0] + n_across / pixels_per_mm, corner[1], corner[1] + n_up / pixels_per_mm)
    axes.imshow(np.clip(rgba, 0, 1), origin="lower", extent=extent, interpolation="antialiased")
    if region is not None and (painted[..., 3] > 0.5).any():
        axes.contour(painted[..., 3], levels=[0.5], origin="lower", extent=extent, **(region_style or {}))
    seen = tuple(v for v, _ in marks if nearest[int(at[v, 1]), int(at[v, 0])] < depth[v] + 3.0)
    for vertex, style in marks:
        if vertex in seen or hidden is not None:
            axes.plot(*flat[vertex], ls="", clip_on=False, **{**style, **({} if vertex in seen else hidden or {})})
    return seen


def rasterise(
    at: Float64, depth: Float64, triangles: NDArray[np.int64], attributes: Float64, shape: tuple[int, int]
) -> tuple[Float64, Float64]:
    """Interpolate vertex attributes on the pixels of the triangles that are nearest to the viewer.

    Parameters
    ----------
    at : (n_vertices, 2)
        Column and row in pixels; pixel (i, j) has its centre at (i + 0.5, j + 0.5).
    depth : (n_vertices,)
        Larger is nearer.
    triangles : (n_triangles, 3)
    attributes : (n_vertices, n_attributes)
    shape : (n_rows, n_columns)

    Returns
    -------
    painted : shape + (n_attributes,), NaN where there is no triangle
    nearest : shape, depth of what is seen, NaN where nothing is
    """
    painted = np.full((shape[0] * shape[1], attributes.shape[1]), np.nan)
    nearest = np.full(shape[0] * shape[1], -np.inf)
    low = np.floor(at[triangles].min(axis=1)).astype(int)
    size = np.ceil(at[triangles].max(axis=1)).astype(int) - low
    classes = 4 * np.maximum(1, -(-size.max(axis=1) // 4))  # triangles of similar size are computed together
    for edge in np.unique(classes):
        members = np.flatnonzero(classes == edge)
        step = max(1, 2_000_000 // int(edge) ** 2)
        box = np.stack(np.meshgrid(np.arange(edge), np.arange(edge)), axis=-1).reshape(1, -1, 2)
        for chunk in (members[i : i + step] for i in range(0, len(members), step)):
            pixels = low[chunk][:, None] + box
            a, b, c = (at[triangles[chunk, k]][:, None] for k in range(3))
            area = _cross(b - a, c - a)
            with np.errstate(divide="ignore", invalid="ignore"):
                of_a, of_b = _cross(c - b, pixels + 0.5 - b) / area, _cross(a - c, pixels + 0.5 - c) / area
            weights = np.stack([of_a, of_b, 1 - of_a - of_b], axis=-1)
            inside = (weights >= -1e-9).all(axis=-1) & (pixels >= 0).all(axis=-1)
            inside &= (pixels[..., 0] < shape[1]) & (pixels[..., 1] < shape[0])
            which, _ = np.nonzero(inside)
            weight, pixel = weights[inside], pixels[inside]
            corners = triangles[chunk[which]]
            own_depth = (depth[corners] * weight).sum(axis=1)
            index = pixel[:, 1] * shape[1] + pixel[:, 0]
            order = np.argsort(own_depth, kind="stable")  # where several fall on a pixel, the nearest is assigned last
            order = order[own_depth[order] > nearest[index[order]]]
            nearest[index[order]] = own_depth[order]
            painted[index[order]] = np.einsum("nka,nk->na", attributes[corners[order]], weight[order])
    nearest[np.isinf(nearest)] = np.nan
    return painted.reshape(*shape, -1), nearest.reshape(shape)


def _cross(u: Float64, v: Float64) -> Float64:
    return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])


def _neighbours(triangles: NDArray[np.int64], n_vertices: int) -> Any:
    a, b, c = triangles.T
    row, column = np.concatenate([a, b, c, b, c, a]), np.concatenate([b, c, a, a, b, c])
    near = sparse.coo_matrix((np.ones(len(row)), (row, column)), shape=(n_vertices, n_vertices)).tocsr()
    near.data[:] = 1.0
    return near


def _rows_to_one(matrix: Any) -> Any:
    total = np.asarray(matrix.sum(axis=1)).ravel()
    return (sparse.diags(np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)) @ matrix).tocsr()


def _draw_bar(figure: Figure, ramp: ColourRamp, unit: str) -> None:
    start = -ramp.high if ramp.signed else 0.0
    rgb, opacity = ramp.colours(np.linspace(start, ramp.high, 512))
    over_grey = BAR_GREY * (1 - opacity[:, None]) + rgb * opacity[:, None]
    factor, label = _readable(ramp.high, unit)
    axes = figure.add_axes((0.3, 0.085, 0.4, 0.028))
    norm = Normalize(start * factor, ramp.high * factor)
    mappable = ScalarMappable(norm, ListedColormap(over_grey))
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal")
    ticks = [0.0, ramp.low, ramp.high] if ramp.low > 0.15 * ramp.high else [0.0, 0.5 * ramp.high, ramp.high]
    if ramp.signed:
        ticks = [*(-tick for tick in reversed(ticks[1:])), *ticks]
    numbers = [tick * factor for tick in ticks]
    bar.set_ticks(numbers, labels=[f"{number:.2g}" if abs(number) < 10 else f"{number:.0f}" for number in numbers])
    bar.set_label(label, fontsize=11)
    bar.outline.set_edgecolor("0.4")
    axes.tick_params(labelsize=10)


def _readable(high: float, unit: str) -> tuple[float, str]:
    """Factor and label that give numbers between 1 and 1000 for moments; standardised maps stay as they are."""
    if unit != "A m":
        return 1.0, unit
    prefixes = ((1e-6, "µ"), (1e-9, "n"), (1e-12, "p"), (1e-15, "f"))
    scale, prefix = next((pair for pair in prefixes if high >= pair[0]), prefixes[-1])
    return 1 / scale, f"{prefix}A m"
