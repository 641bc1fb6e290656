"""Pictures of an evaluation: the same cortex side by side for all solvers, and errors over the size of the patch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from rt_mmdf.evaluation.results import Cell
from rt_mmdf.evaluation.statistics import FUSION, SEED, Summary
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.surface import CorticalSurface, surface_of
from rt_mmdf.metrics.localisation import active_set
from rt_mmdf.sinks.colours import ColourRamp
from rt_mmdf.sinks.figure import BAR_GREY, STAR, draw_hemisphere

Array = NDArray[np.float64]
View = tuple[int, tuple[float, float, float]]  # hemisphere (0 left), camera
Statistic = Literal["mean", "median", "variance"]

TRUTH = "truth"
LEAST_PATCH = 4  # sources: an outline around fewer is smaller than the star in it
PEAK: Mapping[str, Any] = {"marker": "o", "ms": 6.5, "mfc": "white", "mec": "black", "mew": 1.2}
SMALL_STAR: Mapping[str, Any] = {**STAR, "ms": 12, "mew": 1.0}
HIDDEN: Mapping[str, Any] = {"mfc": "none", "alpha": 0.8}
OUTLINE: Mapping[str, Any] = {"colors": ["#0d0d0d"], "linewidths": [1.3]}
PIXELS_PER_MM = 2.4
LABEL_CHARACTERS = 14  # of a row, in one line
INSIDE, OUTSIDE = "#1a6e35", "#a3261e"

# The seed's second figure, and what it does without
LEFT_OUT_FIRST = ("sLORETA-eeg", "sLORETA-meg", "LCMV", "eLORETA", "mmdf-eeg", "mmdf-meg")
COLUMN_ORDER = ("MNE", "sLORETA", "dSPM", *LEFT_OUT_FIRST, "convdip", SEED, FUSION)
MOST_COLUMNS = 6

# Networks in colours (Okabe & Ito's, told apart with any common colour vision), classical solvers in greys with dashes of
# their own; a marker each.
STYLES: Mapping[str, Mapping[str, Any]] = {
    FUSION: {"color": "#D55E00", "marker": "o", "lw": 2.4},
    SEED: {"color": "#0072B2", "marker": "s", "lw": 2.0},
    "mmdf-eeg": {"color": "#56B4E9", "marker": "^", "ls": "--"},
    "mmdf-meg": {"color": "#CC79A7", "marker": "v", "ls": "--"},
    "convdip": {"color": "#009E73", "marker": "D", "ls": "-"},
    "MNE": {"color": "0.60", "marker": "x", "ls": "-"},
    "dSPM": {"color": "0.60", "marker": "+", "ls": "--"},
    "sLORETA": {"color": "0.15", "marker": "*", "ls": "-"},
    "eLORETA": {"color": "0.15", "marker": "1", "ls": "--"},
    "LCMV": {"color": "0.60", "marker": ".", "ls": ":"},
    "sLORETA-eeg": {"color": "0.15", "marker": "<", "ls": ":"},
    "sLORETA-meg": {"color": "0.15", "marker": ">", "ls": ":"},
}
SPARE_COLOURS = ("#E69F00", "#8C6D31", "#7B4173")
AXIS_LABELS = {
    "le_mm": "localisation error, mm",
    "auc": "area under the ROC curve",
    "emd_mm": "earth mover's distance, mm",
    "sd_mm": "spatial dispersion, mm",
    "area_ratio": "area over true area",
    "amplitude_ratio": "moment over true moment",
}


@dataclass(frozen=True)
class MapPanel:
    """One map in a grid.

    values : (n_sources,)
    caption : below it
    right : whether the caption tells of a success or a failure; None for neither
    peak : whether to mark the largest magnitude
    """

    values: NDArray[np.floating]
    caption: str = ""
    right: bool | None = None
    peak: bool = True


@dataclass(frozen=True)
class MapRow:
    """A row of maps of the same activity.

    views : what is drawn of each map, side by side
    panels : column to map
    outline : (n_vertices,) of the left and of the right cortex: what is outlined
    stars : (hemisphere, vertex) of what is known to be active
    """

    label: str
    views: tuple[View, ...]
    panels: Mapping[str, MapPanel]
    outline: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None
    stars: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ShownCase:
    """A case of the suite with what some solvers make of it.

    label : such as ``15 mm, 5 dB``
    truth : (n_sources,) moments, in the source space of the estimates
    centres_mm : (n_patches, 3)
    estimates : solver to (n_sources,)
    le_mm : solver to its localisation error
    """

    label: str
    truth: NDArray[np.floating]
    centres_mm: Array
    estimates: Mapping[str, NDArray[np.floating]]
    le_mm: Mapping[str, float]


def comparison_figure(
    head: HeadModel, cases: Sequence[ShownCase], title: str = "", solvers: Sequence[str] | None = None
) -> Figure:
    """The truth and what each solver makes of it, one row for each case, on the hemisphere where the activity is.

    Every map has a scale of its own, with sign; a star is the centre of a true patch, a dot the map's peak.

    Parameters
    ----------
    solvers : columns, in this order; None for all, or where they are more than `MOST_COLUMNS` without those that the seed's
        own figure does without
    """
    if solvers is None:
        solvers = _columns([row for case in cases for row in case.estimates])
    surfaces = _surfaces(head)
    rows = []
    for case in cases:
        centres = [_nearest_vertex(head, centre) for centre in np.atleast_2d(case.centres_mm)]
        active = active_set(case.truth)
        outline = None
        if active.sum() >= LEAST_PATCH:
            left, right = (on > 0.5 for on in _spread(surfaces, active.astype(np.float64)))
            outline = (left, right)
        shown = tuple(_facing(surfaces, hemisphere, centres) for hemisphere in sorted({h for h, _ in centres}))
        panels = {TRUTH: MapPanel(case.truth, peak=False)}
        panels |= {
            row: MapPanel(map_, f"{case.le_mm[row]:.0f} mm") for row, map_ in case.estimates.items() if row in solvers
        }
        rows.append(MapRow(case.label, shown, panels, outline, tuple(centres)))
    note = "Below each map: localisation error. Black outline: the true patch."
    return map_grid(head, [TRUTH, *solvers], rows, signed=True, title=title, note=note)


def _columns(rows: Sequence[str]) -> list[str]:
    chosen = sorted(
        dict.fromkeys(rows), key=lambda row: COLUMN_ORDER.index(row) if row in COLUMN_ORDER else len(COLUMN_ORDER)
    )
    for row in LEFT_OUT_FIRST:
        if len(chosen) > MOST_COLUMNS and row in chosen:
            chosen.remove(row)
    return chosen


def map_grid(
    head: HeadModel,
    columns: Sequence[str],
    rows: Sequence[MapRow],
    *,
    signed: bool,
    title: str = "",
    note: str = "",
) -> Figure:
    """Maps of the same cortex: rows of activity by columns of solvers. Each map has a scale of its own.

    Parameters
    ----------
    signed : red and blue for the two signs; otherwise magnitudes
    note : printed below

    Returns
    -------
    figure : matplotlib.figure.Figure
        Not known to pyplot; meant to be seen at 100 %.
    """
    surfaces = _surfaces(head)
    n_views = max(len(row.views) for row in rows)
    n_lines = max(panel.caption.count("\n") + 1 for row in rows for panel in row.panels.values())
    width, label_width, caption = (1.85 if n_views == 1 else 1.15 * n_views), 1.3, 0.1 + 0.17 * n_lines
    height = (1.35 if n_views == 1 else 0.95) + caption
    top, bottom = (0.95 if title else 0.55), 1.35
    size = (max(6.5, label_width + width * len(columns) + 0.1), top + height * len(rows) + bottom)
    figure = Figure(figsize=size, dpi=110, facecolor="white")
    FigureCanvasAgg(figure)

    def place(x: float, y_from_top: float, w: float, h: float) -> tuple[float, float, float, float]:
        return x / size[0], 1 - (y_from_top + h) / size[1], w / size[0], h / size[1]

    for number, column in enumerate(columns):
        x, y, *_ = place(label_width + (number + 0.5) * width, top - 0.12, 0, 0)
        figure.text(x, y, column, ha="center", va="bottom", fontsize=12, weight="bold", color="0.1")
    for r, row in enumerate(rows):
        y0 = top + r * height
        x, y, *_ = place(0.12, y0 + 0.5 * (height - caption), 0, 0)
        label = "\n".join(textwrap.fill(line, LABEL_CHARACTERS) for line in row.label.split("\n"))
        figure.text(x, y, label, ha="left", va="center", fontsize=11, color="0.1", linespacing=1.35)
        for c, column in enumerate(columns):
            if (panel := row.panels.get(column)) is None:
                continue
            x0 = label_width + c * width
            boxes = [
                place(x0 + 0.03 + i * width / len(row.views), y0, width / len(row.views) - 0.06, height - caption)
                for i in range(len(row.views))
            ]
            elsewhere = _draw_panel([figure.add_axes(box) for box in boxes], surfaces, row, panel, signed)
            colour = {None: "0.1", True: INSIDE, False: OUTSIDE}[panel.right]
            x, y, *_ = place(x0 + width / 2, y0 + height - caption + 0.025, 0, 0)
            said = f"{panel.caption}, peak elsewhere" if elsewhere and panel.caption else panel.caption
            figure.text(x, y, said, ha="center", va="top", fontsize=10, color=colour)
    if title:
        figure.text(0.5, 1 - 0.18 / size[1], title, ha="center", va="top", fontsize=14, color="0.1")
    _draw_legend(figure, size, signed, any(row.stars for row in rows), note)
    return figure


def _draw_panel(
    of_views: Sequence[Axes],
    surfaces: tuple[CorticalSurface, CorticalSurface],
    row: MapRow,
    panel: MapPanel,
    signed: bool,
) -> bool:
    """Whether the peak lies in a hemisphere that is not drawn."""
    values = np.asarray(panel.values, dtype=np.float64)
    on_vertices = _spread(surfaces, values)
    ramp = ColourRamp.of(np.concatenate(on_vertices), signed)
    n_left = len(surfaces[0].source_vertices)
    source = int(np.abs(values).argmax())
    side, vertex = int(source >= n_left), int(np.concatenate([s.source_vertices for s in surfaces])[source])
    for axes, (hemisphere, camera) in zip(of_views, row.views, strict=True):
        axes.set_axis_off()
        marks = [(v, SMALL_STAR) for h, v in row.stars if h == hemisphere]
        if panel.peak and side == hemisphere:
            marks.append((vertex, PEAK))
        draw_hemisphere(
            axes,
            surfaces[hemisphere],
            on_vertices[hemisphere],
            camera,
            ramp,
            marks=marks,
            hidden=HIDDEN,
            region=None if row.outline is None else row.outline[hemisphere],
            region_style=OUTLINE,
            pixels_per_mm=PIXELS_PER_MM,
        )
    return panel.peak and side not in {hemisphere for hemisphere, _ in row.views}


def _draw_legend(figure: Figure, size: tuple[float, float], signed: bool, stars: bool, note: str) -> None:
    """Colours, marks and the note, in the space below the maps."""
    ramp = ColourRamp(0.35, 0.55, 1.0, signed)
    start = -1.0 if signed else 0.0
    rgb, opacity = ramp.colours(np.linspace(start, 1.0, 512))
    bar_axes = figure.add_axes((0.5 / size[0], 1.0 / size[1], 2.6 / size[0], 0.13 / size[1]))
    over_grey = BAR_GREY * (1 - opacity[:, None]) + rgb * opacity[:, None]
    bar = figure.colorbar(
        ScalarMappable(Normalize(start, 1.0), ListedColormap(over_grey)), cax=bar_axes, orientation="horizontal"
    )
    ticks = [-1.0, -0.35, 0.35, 1.0] if signed else [0.0, 0.35, 1.0]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.set_label("share of each map's largest magnitude", fontsize=10)
    bar_axes.tick_params(labelsize=9)
    marks = [Line2D([], [], ls="", label="peak of the map (hollow: out of sight)", **PEAK)]
    if stars:
        marks.insert(0, Line2D([], [], ls="", label="centre of the true patch", **SMALL_STAR))
    at = (3.4 / size[0], 0.95 / size[1])
    n_columns = 2 if size[0] > 9 else 1
    figure.legend(handles=marks, loc="center left", bbox_to_anchor=at, ncols=n_columns, frameon=False, fontsize=10)
    if note:
        note = textwrap.fill(note, int(11.5 * (size[0] - 0.4)))
        figure.text(0.5, 0.1 / size[1], note, ha="center", va="bottom", fontsize=10, color="0.25", linespacing=1.3)


def _surfaces(head: HeadModel) -> tuple[CorticalSurface, CorticalSurface]:
    left, right = (surface_of(hemisphere) for hemisphere in head.hemispheres)
    return left, right


def _spread(surfaces: tuple[CorticalSurface, CorticalSurface], values: Array) -> tuple[Array, Array]:
    n_left = len(surfaces[0].source_vertices)
    return surfaces[0].spread @ values[:n_left], surfaces[1].spread @ values[n_left:]


def _nearest_vertex(head: HeadModel, position_mm: Array) -> tuple[int, int]:
    distances = [np.linalg.norm(hemisphere.white - position_mm, axis=1) for hemisphere in head.hemispheres]
    side = int(np.argmin([of_side.min() for of_side in distances]))
    return side, int(distances[side].argmin())


def _facing(surfaces: tuple[CorticalSurface, CorticalSurface], hemisphere: int, centres: Sequence[tuple[int, int]]) -> View:
    """From outside or from between, whichever shows more of the centres in this hemisphere."""
    outwards = -1.0 if hemisphere == 0 else 1.0
    normals = surfaces[hemisphere].normals[[vertex for h, vertex in centres if h == hemisphere], 0]
    return hemisphere, (outwards if (normals * outwards).sum() >= 0 else -outwards, 0.0, 0.0)


def metric_figure(
    found: Mapping[tuple[str, Cell], Summary],
    metric: str,
    statistic: Statistic = "mean",
    rows: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """A metric over the radius of the patch, for each SNR (columns) and number of sources (rows of panels).

    Whiskers are 95 % bootstrap intervals of means and medians. Variances are drawn on a logarithmic scale, without.

    Parameters
    ----------
    found : of `rt_mmdf.evaluation.statistics.summaries`
    metric : what it is of, for the labels
    rows : solvers that are drawn, in this order; None for all
    """
    rows = tuple(dict.fromkeys(row for row, _ in found)) if rows is None else tuple(rows)
    cells = tuple(dict.fromkeys(cell for _, cell in found))
    radii, numbers, ratios = (sorted({cell[i] for cell in cells}) for i in range(3))
    # inches: panels, and what is around them
    left, right, top, bottom, gap = 1.2, 0.15, 0.42 + 0.35 * bool(title), 0.62, 0.14
    width, height = max(2.45, (7.0 - left) / len(ratios)), 2.1 if len(numbers) > 1 else 3.0
    size_x = left + right + (width + gap) * len(ratios)
    n_columns = max(1, min(len(rows), int((size_x - 0.5) / 1.5)))
    legend = 0.1 + 0.24 * -(-len(rows) // n_columns)
    size_y = top + bottom + legend + (height + gap) * len(numbers)
    figure = Figure(figsize=(size_x, size_y), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(numbers),
        len(ratios),
        sharex=True,
        sharey=True,
        squeeze=False,
        gridspec_kw={
            "left": left / size_x,
            "right": 1 - right / size_x,
            "top": 1 - top / size_y,
            "bottom": (bottom + legend) / size_y,
            "wspace": gap / width,
            "hspace": gap / height,
        },
    )
    for (r, n_sources), (c, snr) in product(enumerate(numbers), enumerate(ratios)):
        axes = grid[r][c]
        for place, row in enumerate(rows):
            # side by side, so that whiskers do not cover each other
            aside = 0.008 * max(radii[-1] - radii[0], 1.0) * (place - (len(rows) - 1) / 2)
            chosen = [cell for cell in sorted(cells) if cell[1:] == (n_sources, snr) and found[row, cell].n > 0]
            _draw_line(
                axes, [found[row, cell] for cell in chosen], [cell[0] + aside for cell in chosen], row, rows, statistic
            )
        if all(cell[1:] != (n_sources, snr) for cell in cells):
            axes.text(0.5, 0.5, "not evaluated", ha="center", va="center", color="0.6", transform=axes.transAxes)
        axes.grid(axis="y", color="0.9", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9, colors="0.2")
        axes.set_xticks(radii)
        if statistic == "variance":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(ScalarFormatter())
        if r == 0:
            axes.set_title(f"{snr:g} dB", fontsize=11)
        if c == 0:
            axes.set_ylabel(f"{n_sources:g} source{'s' if n_sources > 1 else ''}", fontsize=11)
            axes.yaxis.set_label_coords(-0.6 / width, 0.5)
    middle = (left + 0.5 * (size_x - left - right)) / size_x
    label = AXIS_LABELS.get(metric, metric)
    label = f"variance of the {label.replace(', mm', ', mm²')}" if statistic == "variance" else f"{statistic} {label}"
    figure.supylabel(
        label, x=0.12 / size_x, ha="left", y=((bottom + legend) + 0.5 * (size_y - top - bottom - legend)) / size_y
    )
    figure.supxlabel("radius of the patch, mm", x=middle, y=(legend + 0.08) / size_y)
    if title:
        figure.suptitle(title, fontsize=13, x=middle, y=1 - 0.12 / size_y, va="top")
    handles = [Line2D([], [], label=row, **_line_style(row, rows)) for row in rows]
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=n_columns, frameon=False, fontsize=10
    )
    return figure


def _draw_line(
    axes: Axes, of_cells: Sequence[Summary], x: Sequence[float], row: str, rows: Sequence[str], statistic: Statistic
) -> None:
    style = _line_style(row, rows)
    axes.plot(x, [getattr(summary, statistic) for summary in of_cells], **style, zorder=3 if row in (FUSION, SEED) else 2)
    if statistic != "variance":
        low, high = ([getattr(summary, f"{statistic}_{end}") for summary in of_cells] for end in ("low", "high"))
        axes.vlines(x, low, high, color=style["color"], lw=1.0, zorder=1)


def _line_style(row: str, rows: Sequence[str]) -> Mapping[str, Any]:
    """Colour, marker and dashes of a solver; those that have none of their own take the spare colours in turn."""
    spare = [name for name in rows if name not in STYLES]
    own = STYLES.get(row) or {"color": SPARE_COLOURS[spare.index(row) % len(SPARE_COLOURS)], "marker": "P", "ls": "-."}
    return {"ms": 4.5, "lw": 1.2, **own}
