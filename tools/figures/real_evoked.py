"""Draw dSPM maps of real evoked responses: EEG and MEG together, MEG alone, EEG alone, on the subject's own cortex.

    python tools/figures/real_evoked.py --out tools/figures/real_evoked.png

Reads the real recording (shared/data/sample beside the checkout, or the folder in RT_MMDF_SAMPLE_DATA). Preparation:
bad channels MEG 2443 and EEG 053, baseline (None, 0), low-pass 40 Hz; dSPM with fixed orientation, lambda^2 = 1/9, no depth
weighting; the peak is the largest absolute value between 75 and 120 ms. The averages hold 3 to 6 trials: with mne's usual
depth weighting (0.8) the left ear's map of EEG and MEG (3 trials) peaks in the wrong hemisphere, at (-40, -15, 41) mm.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import mne
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, TriMesh
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from numpy.typing import NDArray

from rt_mmdf.core.channels import Modality
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import read_noise_cov
from rt_mmdf.headmodel.subject import build_subject
from rt_mmdf.solvers.linear import SolverSettings
from rt_mmdf.solvers.operators import build_operator

Array = NDArray[np.float64]

ROOT = Path(__file__).resolve().parents[2]
BADS = ("MEG 2443", "EEG 053")
WINDOW_S = (0.075, 0.120)
SETTINGS = SolverSettings(method="dSPM", snr=3.0, orientation="fixed", depth=0.0)
SENSORS: dict[str, tuple[Modality, ...]] = {"EEG + MEG": (), "MEG alone": (Modality.EEG,), "EEG alone": (Modality.MEG,)}
# the subject's published dipole fit for the left ear (80 ms) and its mirror image for the right one, MRI mm
AUDITORY_MM = np.array([56.0, -16.0, 37.0])
RADIUS_MM = 30.0
OCCIPITAL_Y_MM = -45.0
LEGEND = (
    "dSPM, fixed orientation, lambda² = 1/9, no depth weighting. Left and right hemisphere, cortex smoothed for display. "
    "Colours: from half of each map's own\nmaximum (light) to the maximum (dark). Dot: peak (open: on the far side). Blue "
    "outline: where activity is expected, opposite to the stimulus:\nwithin 30 mm of the published auditory dipole or its "
    "mirror image; occipital, y below -45 mm."
)
SMOOTHING = 12  # steps; opens the sulci for display only


@dataclass(frozen=True)
class Map:
    """|dSPM| of one condition and one set of sensors at the instant of its peak."""

    values: Array
    peak: int
    peak_ms: float
    n_channels: int


def expected_region(condition: str, positions_mm: Array) -> NDArray[np.bool_]:
    """Which points lie where activity is expected: the hemisphere opposite to the stimulus."""
    side = 1.0 if condition.startswith("Left") else -1.0
    if "uditory" in condition:
        centre = AUDITORY_MM * [side, 1, 1]
        return np.asarray(np.linalg.norm(positions_mm - centre, axis=1) < RADIUS_MM)
    return np.asarray((side * positions_mm[:, 0] > 0) & (positions_mm[:, 1] < OCCIPITAL_Y_MM))


def maps_of(folder: Path) -> tuple[HeadModel, dict[str, dict[str, Map]], dict[str, int]]:
    """The head, all maps by condition and sensors, and the number of trials of each condition."""
    evokeds = mne.read_evokeds(folder / "sample_audvis_few-ave.fif.gz", baseline=(None, 0), verbose="ERROR")
    head = build_subject(
        evokeds[0].info,
        folder / "sample-trans.fif",
        folder / "sample-oct5-src.fif",
        folder / "sample-320-320-320-bem-sol.fif",
    )
    noise_cov = read_noise_cov(folder / "sample_audvis-cov.fif", head.ch_names)
    projs = evokeds[0].info["projs"]
    maps: dict[str, dict[str, Map]] = {evoked.comment: {} for evoked in evokeds}
    for evoked in evokeds:
        evoked.filter(None, 40.0, verbose="ERROR").crop(*WINDOW_S).pick(list(head.ch_names))
    for sensors, missing in SENSORS.items():
        operator = build_operator(head, head.channels, noise_cov, projs, SETTINGS, BADS, missing)
        for evoked in evokeds:
            whitened = (operator.whitener.matrix @ evoked.data).astype(np.float32)
            # dSPM of an average is in units of the average's noise
            values = np.sqrt(evoked.nave) * np.abs(operator.solver(whitened, len(evoked.times)).astype(np.float64))
            peak, instant = np.unravel_index(values.argmax(), values.shape)
            found = Map(values[:, instant], int(peak), 1e3 * float(evoked.times[instant]), len(operator.used))
            maps[evoked.comment][sensors] = found
    return head, maps, {evoked.comment: evoked.nave for evoked in evokeds}


@dataclass(frozen=True)
class Sheet:
    """One hemisphere, ready to be painted."""

    vertices: Array
    triangles: NDArray[np.int64]
    sulci: Array  # 0 to 1, how far a vertex lies below its surroundings
    sources: NDArray[np.int64]


def sheet_of(white: Array, triangles: NDArray[np.int64], sources: NDArray[np.int64]) -> Sheet:
    """Smooth the cortex for display and shade what was a sulcus."""
    n = len(white)
    links = np.zeros((n, n))
    for a, b in ((0, 1), (1, 2), (2, 0)):
        links[triangles[:, a], triangles[:, b]] = links[triangles[:, b], triangles[:, a]] = 1
    mean = links / links.sum(axis=1, keepdims=True)
    smooth = white
    for _ in range(SMOOTHING):
        smooth = 0.5 * (smooth + mean @ smooth)
    depth = np.einsum("ij,ij->i", smooth - white, normals_of(smooth, triangles))
    grown = smooth.mean(axis=0) + (smooth - smooth.mean(axis=0)) * np.ptp(white, axis=0) / np.ptp(smooth, axis=0)
    return Sheet(grown, triangles, np.clip(0.5 + depth / (2 * depth.std()), 0, 1), sources)


def normals_of(vertices: Array, triangles: NDArray[np.int64]) -> Array:
    """Unit normals of the vertices, (n, 3)."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    normals = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(normals, triangles[:, i], np.cross(b - a, c - a))
    unit: Array = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return unit


def paint(ax: Axes, sheet: Sheet, camera: Array, values: Array, region: NDArray[np.bool_], peak: int | None) -> None:
    """Paint a hemisphere seen from `camera`, colours from half of the maximum (1) on, the expected region outlined.

    values : (n_vertices,) relative to the map's maximum
    peak : vertex that carries the maximum, None where it lies in the other hemisphere
    """
    front = camera / np.linalg.norm(camera)
    right = np.cross([0.0, 0.0, 1.0], front)
    right /= np.linalg.norm(right)
    up = np.cross(front, right)
    x, y, near = sheet.vertices @ right, sheet.vertices @ up, sheet.vertices @ front
    normals = normals_of(sheet.vertices, sheet.triangles)
    light = 0.45 + 0.55 * np.clip(normals @ front, 0, 1)
    grey = (0.80 - 0.30 * sheet.sulci)[:, None] * np.ones(3)
    strength = np.clip((values - 0.5) / 0.5, 0, 1)
    colours = mpl.colormaps["YlOrRd"](0.25 + 0.75 * strength)[:, :3]
    opacity = np.clip((values - 0.45) / 0.1, 0, 1)[:, None]
    rgba = np.ones((len(x), 4))
    rgba[:, :3] = ((1 - opacity) * grey + opacity * colours) * light[:, None]
    corners = sheet.vertices[sheet.triangles]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) @ front > 0
    visible = sheet.triangles[facing]
    visible = visible[np.argsort(near[visible].mean(axis=1))]
    ax.add_collection(TriMesh(Triangulation(x, y, visible), facecolors=rgba))
    # the outline runs through the triangles that lie half inside the region
    halves = np.stack([x, y], axis=1)[visible]
    inside = region[visible]
    lines = []
    for corner_xy, corner_in in zip(halves, inside, strict=True):
        if corner_in.any() and not corner_in.all():
            odd = int(np.flatnonzero(corner_in == (corner_in.sum() == 1))[0])
            lines.append([(corner_xy[odd] + corner_xy[other]) / 2 for other in range(3) if other != odd])
    ax.add_collection(LineCollection(lines, colors="#0b6fb8", linewidths=1.6, capstyle="round"))
    if peak is not None:
        hidden = normals[peak] @ front <= 0
        ax.plot(x[peak], y[peak], "o", ms=8, mfc="none" if hidden else "white", mec="black", mew=1.6)
    ax.set_xlim(x.min() - 3, x.max() + 3)
    ax.set_ylim(y.min() - 3, y.max() + 3)
    ax.set_aspect("equal")
    ax.axis("off")


def draw(head: HeadModel, maps: dict[str, dict[str, Map]], trials: dict[str, int]) -> Figure:
    """Four conditions (rows) by three sets of sensors (columns), both hemispheres in each."""
    sheets = [sheet_of(h.white, h.triangles, h.source_vertices) for h in head.hemispheres]
    n_left = len(head.hemispheres[0].source_vertices)
    figure = Figure(figsize=(15, 11.4), dpi=100, facecolor="white")
    left, top, width, height = 0.115, 0.90, 0.290, 0.205
    for row, (condition, of_sensors) in enumerate(maps.items()):
        auditory = "uditory" in condition
        y0 = top - (row + 1) * height
        stimulus = condition.replace("Auditory", "ear").replace("visual", "visual field")
        seen = "from the side" if auditory else "from behind"
        text = f"{stimulus}\n{trials[condition]} trials\n\n{seen}"
        figure.text(0.012, y0 + height / 2, text, va="center", ha="left", fontsize=12)
        for column, (sensors, found) in enumerate(of_sensors.items()):
            x0 = left + column * (width + 0.003)
            hit = bool(expected_region(condition, head.source_positions_mm)[found.peak])
            for hemisphere, (sheet, shape) in enumerate(zip(sheets, head.hemispheres, strict=True)):
                ax = figure.add_axes((x0 + hemisphere * width / 2, y0 + 0.032, width / 2, height - 0.042))
                outwards = -1.0 if hemisphere == 0 else 1.0
                camera = np.array([outwards, 0.0, 0.15]) if auditory else np.array([-0.45 * outwards, -0.9, -0.2])
                values = np.zeros(len(shape.white))
                own = slice(0, n_left) if hemisphere == 0 else slice(n_left, None)
                values[sheet.sources] = found.values[own] / found.values.max()
                place = found.peak - (n_left if hemisphere else 0)
                here = 0 <= place < len(sheet.sources)
                region = expected_region(condition, shape.white)
                paint(ax, sheet, camera, values, region, int(sheet.sources[place]) if here else None)
            at = ", ".join(f"{value:.0f}" for value in head.source_positions_mm[found.peak])
            said = (
                f"peak ({at}) mm at {found.peak_ms:.0f} ms, dSPM {found.values.max():.1f}: {'inside' if hit else 'outside'}"
            )
            colour = "#1a7f37" if hit else "#b3261e"
            figure.text(x0 + width / 2, y0 + 0.014, said, ha="center", fontsize=11, color=colour)
            if row == 0:
                title = f"{sensors} ({found.n_channels} channels)"
                figure.text(x0 + width / 2, top + 0.006, title, ha="center", fontsize=14, weight="bold")
    figure.text(
        0.5, 0.965, "Where real evoked responses are localised (dSPM, 75 to 120 ms, one subject)", ha="center", fontsize=17
    )
    figure.text(
        0.5,
        0.018,
        LEGEND,
        ha="center",
        va="bottom",
        fontsize=10.5,
    )
    return figure


def main() -> None:
    """Print the peaks and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tools" / "figures" / "real_evoked.png", help="picture to write")
    default = Path(os.environ.get("RT_MMDF_SAMPLE_DATA") or ROOT.parent / "shared" / "data" / "sample")
    parser.add_argument("--sample", type=Path, default=default, help="folder with the real recording")
    arguments = parser.parse_args()
    if not (arguments.sample / "sample_audvis_few-ave.fif.gz").is_file():
        raise SystemExit(
            f"{arguments.sample}: no sample_audvis_few-ave.fif.gz in it; set RT_MMDF_SAMPLE_DATA or give --sample."
        )
    head, maps, trials = maps_of(arguments.sample)
    for condition, of_sensors in maps.items():
        for sensors, found in of_sensors.items():
            hit = expected_region(condition, head.source_positions_mm)[found.peak]
            at = ", ".join(f"{value:.0f}" for value in head.source_positions_mm[found.peak])
            print(f"{condition:15s} {sensors:10s} ({at}) mm {found.peak_ms:.0f} ms {'inside' if hit else 'OUTSIDE'}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(head, maps, trials).savefig(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
