from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.view.camera import FILLED, LAYOUTS, PRESETS, Camera, Footprint, Projection
from rt_mmdf.view.cortex import Cortex

BOX = (30.0, 20.0, 800.0, 500.0)
CLOUD = np.random.default_rng(0).uniform([-60, -100, -50], [60, 70, 80], (400, 3)).astype(np.float32)
ANGLES = st.tuples(st.floats(-180, 180), st.floats(-90, 90))


@pytest.fixture(scope="module")
def cortex(template_head_ico3: HeadModel) -> Cortex:
    return Cortex.of(template_head_ico3)


@given(angles=ANGLES, width=st.floats(50, 3000), height=st.floats(50, 3000))
def test_all_that_is_drawn_fits_in_the_panel_and_fills_it(angles: tuple[float, float], width: float, height: float) -> None:
    at, nearness = Projection.of(Camera(*angles), (30.0, 20.0, width, height), CLOUD).pixels(CLOUD)
    low, high = at.min(axis=0) - (30.0, 20.0), at.max(axis=0) - (30.0, 20.0)
    assert (low >= -0.01).all()
    assert (high <= np.array([width, height]) + 0.01).all()
    parts = (high - low) / (width, height)
    assert parts.max() == pytest.approx(FILLED, rel=1e-3)
    np.testing.assert_allclose(0.5 * (low + high), [width / 2, height / 2], atol=0.01 * max(width, height))
    assert np.abs(nearness).max() <= 1


@pytest.mark.parametrize(
    ("preset", "right", "up"),
    [
        ("left", (0, -1, 0), (0, 0, 1)),
        ("right", (0, 1, 0), (0, 0, 1)),
        ("top", (1, 0, 0), (0, 1, 0)),
        ("bottom", (-1, 0, 0), (0, 1, 0)),
        ("front", (-1, 0, 0), (0, 0, 1)),
        ("back", (1, 0, 0), (0, 0, 1)),
    ],
)
def test_presets_look_from_where_they_say(preset: str, right: tuple[int, int, int], up: tuple[int, int, int]) -> None:
    rotation = Camera(*PRESETS[preset]).rotation
    np.testing.assert_allclose(rotation, [right, up, np.cross(right, up)], atol=1e-9)


@given(angles=ANGLES, across=st.floats(-400, 400), up=st.floats(-400, 400))
def test_turning_keeps_the_picture_upright(angles: tuple[float, float], across: float, up: float) -> None:
    camera = Camera(*angles).orbited(across, up)
    rotation = camera.rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    assert rotation[1, 2] >= -1e-9  # up on the screen is never down in the head
    assert -90 <= camera.elevation <= 90
    assert -180 <= camera.azimuth <= 180


@given(angles=ANGLES, zoom=st.floats(0.5, 8.0), right=st.floats(-1, 1), up=st.floats(-1, 1))
def test_zoom_is_about_the_middle_and_shift_is_in_panel_heights(
    angles: tuple[float, float], zoom: float, right: float, up: float
) -> None:
    plain, _ = Projection.of(Camera(*angles), BOX, CLOUD).pixels(CLOUD)
    moved, _ = Projection.of(Camera(*angles).zoomed(zoom).shifted(right, up), BOX, CLOUD).pixels(CLOUD)
    middle = np.array([BOX[0] + BOX[2] / 2, BOX[1] + BOX[3] / 2])
    expected = middle + zoom * (plain - middle) + BOX[3] * np.array([right, -up])
    np.testing.assert_allclose(moved, expected, atol=0.05 * zoom)


def test_nearer_points_are_nearer() -> None:
    projection = Projection.of(Camera(*PRESETS["right"]), BOX, CLOUD)
    _, nearness = projection.pixels(np.array([[40.0, 0, 0], [0.0, 0, 0], [-40.0, 0, 0]]))
    assert nearness[0] > nearness[1] > nearness[2]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_what_is_under_a_pixel_is_the_nearest_surface_there(cortex: Cortex, preset: str) -> None:
    vertices, triangles = cortex.vertices("pial"), cortex.triangles
    projection = Projection.of(Camera(*PRESETS[preset]), BOX, vertices)
    at, nearness = projection.pixels(vertices)
    footprint = Footprint(projection, vertices, triangles)
    rng = np.random.default_rng(5)
    found = 0
    for vertex in rng.integers(0, len(vertices), 60).tolist():
        place = (float(at[vertex, 0]), float(at[vertex, 1]))
        under = footprint.under(place)
        assert under is not None
        assert under[1] >= nearness[vertex] - 1e-6  # nothing that is seen lies behind a vertex at the same pixel
        if under[1] < nearness[vertex] + 1e-6:
            assert under[0] == vertex
            found += 1
    assert found >= 8
    assert footprint.under((BOX[0] + 1.0, BOX[1] + 1.0)) is None


def test_split_shows_each_hemisphere_from_outside_and_from_between() -> None:
    seen = {(panel.hemisphere, panel.view, float(panel.home.rotation[2, 0])) for panel in LAYOUTS["split"]}
    expected = {(0, "lateral", -1.0), (0, "medial", 1.0), (1, "lateral", 1.0), (1, "medial", -1.0)}
    assert {(side, view, round(x)) for side, view, x in seen} == expected
    boxes = np.array([panel.box for panel in LAYOUTS["split"]])
    assert (boxes[:, 2] * boxes[:, 3]).sum() == pytest.approx(1.0)
