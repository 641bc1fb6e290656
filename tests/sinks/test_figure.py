from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from rt_mmdf.core.errors import SinkError
from rt_mmdf.headmodel.head import Hemisphere
from rt_mmdf.headmodel.surface import CorticalSurface, rasterise, spread_matrix, surface_of
from rt_mmdf.sinks.colours import ColourRamp
from rt_mmdf.sinks.figure import MARK, STAR, draw_hemisphere, save_figure, source_map


def sphere(n_lat: int = 16, n_lon: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (radius 50 mm) and outward triangles."""
    lat = np.linspace(0, np.pi, n_lat)[1:-1]
    lon = np.arange(n_lon) / n_lon * 2 * np.pi
    ring = np.array([[np.sin(a) * np.cos(b), np.sin(a) * np.sin(b), np.cos(a)] for a in lat for b in lon])
    vertices = 50.0 * np.vstack([ring, [0, 0, 1], [0, 0, -1]])
    top, bottom, triangles = len(ring), len(ring) + 1, []
    for j in range(n_lon):
        k = (j + 1) % n_lon
        triangles += [[top, j, k], [bottom, len(ring) - n_lon + k, len(ring) - n_lon + j]]
        for i in range(len(lat) - 1):
            a, b, c, d = i * n_lon + j, i * n_lon + k, (i + 1) * n_lon + j, (i + 1) * n_lon + k
            triangles += [[a, c, b], [b, c, d]]
    return vertices, np.array(triangles)


VERTICES, TRIANGLES = sphere()
SURFACE = CorticalSurface(VERTICES, TRIANGLES, np.arange(0, len(VERTICES), 3), np.sign(VERTICES[:, 2]))
PAIR = (SURFACE, SURFACE)
N = 2 * len(SURFACE.source_vertices)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(imread(path))[..., :3]


def saturation(picture: np.ndarray) -> np.ndarray:
    return np.asarray(picture.max(axis=-1) - picture.min(axis=-1))


@settings(deadline=None, max_examples=20)
@given(sources=st.sets(st.integers(0, len(VERTICES) - 1), min_size=1, max_size=40))
def test_spreading_reaches_every_vertex_and_keeps_a_constant(sources: set[int]) -> None:
    spread = spread_matrix(TRIANGLES, len(VERTICES), np.array(sorted(sources)))
    np.testing.assert_allclose(spread @ np.ones(len(sources)), 1.0)
    assert spread.min() >= 0


def test_what_is_not_connected_stays_empty_and_a_full_mesh_is_left_as_it_is() -> None:
    two = np.array([[0, 1, 2], [3, 4, 5]])
    np.testing.assert_allclose(spread_matrix(two, 6, np.array([0])) @ [2.0], [2, 2, 2, 0, 0, 0])
    values = np.arange(6.0)
    np.testing.assert_allclose(spread_matrix(two, 6, np.arange(6)) @ values, values)


def test_normals_point_outwards() -> None:
    np.testing.assert_allclose(SURFACE.normals, VERTICES / 50, atol=0.05)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 100))
def test_a_linear_function_is_painted_exactly_and_the_nearer_triangle_wins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    at = rng.uniform(-5, 45, (6, 2))
    depth = np.repeat([1.0, 2.0], 3)
    plane = at @ [0.3, -0.7] + 2
    attributes = np.column_stack([plane, depth])
    painted, nearest = rasterise(at, depth, np.array([[0, 1, 2], [3, 4, 5]]), attributes, (30, 40))
    seen = np.isfinite(nearest)
    row, column = np.nonzero(seen)
    expected = np.column_stack([column + 0.5, row + 0.5]) @ [0.3, -0.7] + 2
    np.testing.assert_allclose(painted[seen][:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(painted[seen][:, 1], nearest[seen])
    assert np.isnan(painted[~seen]).all()
    for corners, level in ((at[:3], 1.0), (at[3:], 2.0)):
        a, b, c = corners
        inside = (
            np.linalg.inv(np.column_stack([b - a, c - a]))
            @ (np.array([[x + 0.5, y + 0.5] for y, x in np.ndindex(30, 40)]) - a).T
        )
        covered = ((inside > 1e-6).all(axis=0) & (inside.sum(axis=0) < 1 - 1e-6)).reshape(30, 40)
        assert (nearest[covered] >= level - 1e-9).all()


def test_colours_begin_at_low_and_end_at_high() -> None:
    ramp = ColourRamp(1.0, 2.0, 4.0)
    rgb, opacity = ramp.colours(np.array([0.0, 1.0, 1.5, -3.0, 3.0, 4.0, 9.0, np.nan]))
    np.testing.assert_allclose(opacity, [0, 0, 0.5, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(rgb[3], rgb[4])  # magnitudes
    np.testing.assert_array_equal(rgb[5], rgb[6])
    rgb, _ = ColourRamp(1.0, 2.0, 4.0, signed=True).colours(np.array([-3.0, 3.0]))
    assert rgb[0, 2] > rgb[0, 0]  # blue
    assert rgb[1, 0] > rgb[1, 2]  # red
    for wrong in ((2.0, 1.0, 4.0), (0.0, 4.0, 4.0), (-1.0, 2.0, 4.0), (0.0, 1.0, np.inf)):
        with pytest.raises(ValueError, match="colour ramp"):
            ColourRamp(*wrong)


def test_activity_is_where_it_belongs_and_only_there(tmp_path: Path) -> None:
    """One source on the outer side of the left hemisphere: colour in the upper left picture, and in no other."""
    values = np.zeros(N)
    outer = np.argmin(VERTICES[SURFACE.source_vertices, 0])
    values[outer] = 5.0
    save_figure(source_map(PAIR, values, unit="dSPM", ramp=ColourRamp(0.5, 1.0, 5.0)), tmp_path / "map.png")
    picture = pixels(tmp_path / "map.png")
    height, width = picture.shape[:2]
    brain = saturation(picture)[: int(0.87 * height)] > 0.2
    half = brain.shape[0] // 2
    assert brain[:half, : width // 2].sum() > 500
    assert brain[half:].sum() == 0
    assert brain[:, width // 2 :].sum() == 0


def test_the_front_is_left_in_the_left_hemisphere_seen_from_outside(tmp_path: Path) -> None:
    values = np.zeros(N)
    front_outer = np.argmin(np.linalg.norm(VERTICES[SURFACE.source_vertices] - [-35, 35, 0], axis=1))
    values[front_outer] = 5.0
    save_figure(source_map(PAIR, values, unit="dSPM", ramp=ColourRamp(0.5, 1.0, 5.0)), tmp_path / "map.png")
    picture = pixels(tmp_path / "map.png")
    height, width = picture.shape[:2]
    coloured = np.nonzero(saturation(picture[: height // 2, : width // 2]) > 0.2)[1]
    assert coloured.max() < 0.265 * width  # the middle of the picture of that hemisphere


def test_marks_are_drawn_where_they_can_be_seen(tmp_path: Path) -> None:
    outer = int(np.argmin(VERTICES[:, 0]))
    green = np.array([int(MARK[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    counts = []
    for marks in ((), ((0, outer),)):
        figure = source_map(PAIR, np.zeros(N), unit="dSPM", ramp=ColourRamp(1.0, 2.0, 5.0), marks=marks)
        save_figure(figure, tmp_path / "map.png")
        near = (np.abs(pixels(tmp_path / "map.png") - green) < 0.02).all(axis=-1)
        counts.append(
            [int(near[: near.shape[0] // 2].sum()), int(near[near.shape[0] // 2 : int(0.85 * near.shape[0])].sum())]
        )
    assert counts[0] == [0, 0]
    assert counts[1][0] > 50
    assert counts[1][1] == 0  # from between the hemispheres it is hidden


def test_an_estimate_that_is_none_is_called_that() -> None:
    figure = source_map(PAIR, np.full(N, np.nan), unit="A m")
    assert "no valid estimate" in [text.get_text() for text in figure.texts]


def test_moments_are_given_in_readable_units() -> None:
    values = np.zeros(N)
    values[0] = -12e-9
    figure = source_map(PAIR, values, unit="A m", ramp=ColourRamp(3e-9, 5e-9, 12e-9, signed=True), title="a title")
    (bar,) = [axes for axes in figure.axes if axes.get_xlabel()]
    assert bar.get_xlabel() == "nA m"
    assert [label.get_text() for label in bar.get_xticklabels()] == ["-12", "-3", "0", "3", "12"]
    assert figure.get_suptitle() == "a title"


def test_wrong_numbers_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is expected"):
        source_map(PAIR, np.zeros(N + 1), unit="")
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="cannot be written"):
        save_figure(source_map(PAIR, np.zeros(N), unit="dSPM"), tmp_path / "file" / "map.png")


@given(azimuth=st.floats(0, 6.28), height=st.floats(-0.5, 0.5))
@settings(max_examples=5)
def test_marks_on_the_side_of_the_camera_are_seen_and_no_others(azimuth: float, height: float) -> None:
    camera = (np.cos(azimuth), np.sin(azimuth), height)
    towards = VERTICES @ camera / np.linalg.norm(camera) / 50
    marks = [(vertex, STAR) for vertex in np.flatnonzero(np.abs(towards) > 0.3)]
    axes = Figure().add_subplot()
    seen = draw_hemisphere(axes, SURFACE, VERTICES[:, 0], camera, ColourRamp(0, 1, 50), marks=marks, pixels_per_mm=1.0)
    assert set(seen) == set(np.flatnonzero(towards > 0.3))
    assert len(axes.lines) == len(seen)
    up = [line.get_ydata()[0] for line in axes.lines]
    assert np.corrcoef(up, VERTICES[list(seen), 2])[0, 1] > 0.9
    axes = Figure().add_subplot()
    draw_hemisphere(
        axes, SURFACE, VERTICES[:, 0], camera, ColourRamp(0, 1, 50), marks=marks, hidden={"mfc": "none"}, pixels_per_mm=1.0
    )
    assert [line.get_markerfacecolor() == "none" for line in axes.lines] == [vertex not in seen for vertex, _ in marks]


def test_a_region_is_outlined_where_it_is_seen() -> None:
    def lines(region: np.ndarray) -> int:
        axes = Figure().add_subplot()
        ramp = ColourRamp(0, 1, 50)
        draw_hemisphere(axes, SURFACE, VERTICES[:, 0], (1, 0, 0), ramp, region=region, pixels_per_mm=1.0)
        return len(axes.collections)

    assert lines(VERTICES @ (0.9, 0.3, 0.3) > 40) == 1
    assert lines(VERTICES[:, 0] < -30) == 0


def test_a_cortex_without_inflated_surface_is_opened_and_its_dents_are_sulci() -> None:
    dented = VERTICES * np.where(np.arange(len(VERTICES)) % 24 == 3, 0.85, 1.0)[:, None]
    own = Hemisphere(VERTICES, TRIANGLES, np.arange(10), inflated=2 * VERTICES, sulc=VERTICES[:, 0])
    assert surface_of(own).vertices is own.inflated
    assert surface_of(own).sulc is own.sulc
    opened = surface_of(Hemisphere(dented, TRIANGLES, np.arange(10)))
    np.testing.assert_allclose(np.ptp(opened.vertices, axis=0), np.ptp(dented, axis=0))
    assert opened.sulc is not None
    dents = np.flatnonzero(np.arange(len(VERTICES) - 2) % 24 == 3)
    assert (opened.sulc[dents[2:-2]] > np.delete(opened.sulc, dents).mean() + opened.sulc.std()).all()
