"""A source map on the inflated cortex as a picture, without OpenGL: pixels are computed here, words are matplotlib's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.errors import SinkError
from rt_mmdf.headmodel.surface import CorticalSurface, rasterise
from rt_mmdf.sinks.colours import GYRUS, SULCUS, ColourRamp, readable

PIXELS_PER_MM = 5.0  # of the computed picture; it is averaged over 2 x 2 pixels against jagged edges
BAR_GREY = 0.7
MARK = "#00d27f"
STAR: Mapping[str, Any] = {"marker": "*", "ms": 15, "mfc": MARK, "mec": "black", "mew": 1.2}
VIEWS = (("left", "lateral", 0, -1), ("right", "lateral", 1, 1), ("left", "medial", 0, 1), ("right", "medial", 1, -1))


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


def _draw_bar(figure: Figure, ramp: ColourRamp, unit: str) -> None:
    start = -ramp.high if ramp.signed else 0.0
    rgb, opacity = ramp.colours(np.linspace(start, ramp.high, 512))
    over_grey = BAR_GREY * (1 - opacity[:, None]) + rgb * opacity[:, None]
    factor, label = readable(ramp.high, unit)
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
