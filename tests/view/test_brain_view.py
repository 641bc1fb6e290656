from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QSurfaceFormat, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from rt_mmdf.core.errors import ViewError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.sinks.colours import GYRUS, SULCUS
from rt_mmdf.view import brain, flat
from rt_mmdf.view.brain import BrainView
from rt_mmdf.view.camera import PRESETS
from rt_mmdf.view.colours import ColourScale
from rt_mmdf.view.cortex import Cortex
from rt_mmdf.view.flat import FlatBrainView, make_brain_view
from rt_mmdf.view.pane import AMBIENT, BrainPane
from rt_mmdf.view.themes import DARK, LIGHT

pytestmark = pytest.mark.gui
Maker = Callable[[], BrainPane]
SCALE = ColourScale("dSPM", low=3.0, full=5.0, high=10.0)


@pytest.fixture(scope="module")
def cortex(template_head_ico3: HeadModel) -> Cortex:
    return Cortex.of(template_head_ico3)


@pytest.fixture(params=[BrainView, FlatBrainView], ids=["OpenGL", "flat"])
def view(request: pytest.FixtureRequest, qtbot: QtBot, cortex: Cortex) -> BrainPane:
    pane: BrainPane = request.param(cortex, theme=DARK)
    return shown(pane, qtbot)


def shown(pane: BrainPane, qtbot: QtBot, width: int = 520, height: int = 320) -> BrainPane:
    qtbot.addWidget(pane)
    pane.resize(width, height)
    with qtbot.waitExposed(pane):
        pane.show()
    pane.set_scale(SCALE)
    return pane


def picture(pane: BrainPane) -> NDArray[np.float64]:
    """Of the canvas alone."""
    return pane.grab_image(smooth=False)[:, : pane.canvas.width()] / 255.0


def cortex_pixels(pane: BrainPane) -> NDArray[np.bool_]:
    background = np.array([int(DARK.background[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.asarray((np.abs(picture(pane) - background) > 0.05).any(axis=2))


def saturation(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(image.max(axis=2) - image.min(axis=2))


def seen_vertices(pane: BrainPane, count: int, seed: int = 0) -> Iterator[tuple[int, int, int]]:
    """(vertex, column, row) of vertices that can be seen, away from edges."""
    rng = np.random.default_rng(seed)
    for vertex in rng.permutation(pane.cortex.n_vertices).tolist():
        for x, y, seen in pane.project(vertex):
            around = [pane.vertex_at(x + a, y + b) for a in (-3, 3) for b in (-3, 3)]
            if seen and None not in around:
                yield vertex, round(x - 0.5), round(y - 0.5)
                count -= 1
                if count == 0:
                    return


def test_a_window_opens_and_shows_the_cortex_in_greys(view: BrainPane) -> None:
    view.set_values(np.zeros(view.cortex.n_sources))
    image, covered = picture(view), cortex_pixels(view)
    assert 0.15 < covered.mean() < 0.75
    assert saturation(image)[covered].max() < 0.1
    assert image[covered].std() > 0.05  # two greys, and shade
    assert GYRUS * 0.93 < np.quantile(image[covered], 0.99) < GYRUS * 1.05
    assert view.notice == ""


@pytest.mark.parametrize("layout", ["both", "split"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_known_vertex_has_the_colour_of_its_value(view: BrainPane, layout: str, signed: bool) -> None:
    scale = ColourScale("dSPM", signed=signed, low=3.0, full=5.0, high=10.0)
    view.set_scale(scale)
    view.set_layout(layout)
    view.set_values(np.zeros(view.cortex.n_sources))
    plain = picture(view)
    for value in (4.0, 8.0, -8.0 if signed else 9.5):
        view.set_values(np.full(view.cortex.n_sources, value))
        image = picture(view)
        colour = scale.table()[round(255 * float(scale.positions(np.array([value]))[0]))] / 255
        for _, x, y in seen_vertices(view, 12):
            grey = plain[y, x, 0]
            light = grey / GYRUS, grey / SULCUS
            mixed = [(1 - colour[3]) * grey + colour[3] * colour[:3] * own for own in light]
            low, high = np.min(mixed, axis=0) - 0.04, np.max(mixed, axis=0) + 0.04
            assert (low <= image[y, x]).all(), (value, layout)
            assert (image[y, x] <= high).all(), (value, layout)


def test_only_the_source_that_is_active_is_coloured(view: BrainPane) -> None:
    vertex, x, y = next(seen_vertices(view, 1, seed=3))
    values = np.zeros(view.cortex.n_sources)
    values[view.cortex.describe(vertex).source] = 60.0
    view.set_values(values)
    coloured = saturation(picture(view)) > 0.1
    rows, columns = np.nonzero(coloured)
    assert 0 < coloured.mean() < 0.05
    assert np.hypot(columns - x, rows - y).max() < 80


@pytest.mark.parametrize("value", [0.0, 2.9, -2.9])
def test_below_the_threshold_nothing_is_coloured(view: BrainPane, value: float) -> None:
    view.set_values(np.full(view.cortex.n_sources, value))
    assert saturation(picture(view))[cortex_pixels(view)].max() < 0.1


def test_where_there_is_no_estimate_the_cortex_is_seen(view: BrainPane) -> None:
    values = np.full(view.cortex.n_sources, 9.0, np.float32)
    values[:642] = np.nan
    view.set_values(values)
    view.set_layout("split")
    image, covered = picture(view), cortex_pixels(view)
    half = image.shape[1] // 2
    assert saturation(image[:, :half])[covered[:, :half]].max() < 0.1
    assert np.median(saturation(image[:, half:])[covered[:, half:]]) > 0.3
    assert view.notice == ""


def test_nothing_valid_is_grey_and_says_so(view: BrainPane) -> None:
    view.set_values(np.full(view.cortex.n_sources, 9.0))
    assert saturation(picture(view)).max() > 0.3
    for values, notice in ((None, "no estimate yet"), (np.full(view.cortex.n_sources, np.nan), "no valid estimate")):
        view.set_values(values)
        assert view.notice == notice
        image = picture(view)
        assert np.quantile(saturation(image)[cortex_pixels(view)], 0.9) < 0.05
        middle = image[image.shape[0] // 2 - 25 : image.shape[0] // 2 + 25]
        assert (middle.min(axis=2) > 0.8).sum() > 100  # words


def test_stale_is_grey_over_whatever_was_there_and_ends(view: BrainPane) -> None:
    view.set_values(np.full(view.cortex.n_sources, 9.0))
    before = picture(view)
    view.set_stale(True, "engine silent for 3 s")
    assert view.notice == "engine silent for 3 s"
    assert np.quantile(saturation(picture(view))[cortex_pixels(view)], 0.9) < 0.05
    view.set_stale(False)
    assert view.notice == ""
    np.testing.assert_allclose(picture(view), before)


def test_cameras_layouts_and_surfaces_all_look_different(view: BrainPane) -> None:
    view.set_values(np.zeros(view.cortex.n_sources))
    pictures = {}
    for preset in PRESETS:
        view.set_camera(preset)
        pictures[preset] = picture(view)
    view.reset_camera()
    pictures["start"] = picture(view)
    for surface in view.cortex.surfaces[1:]:
        view.set_surface(surface)
        pictures[surface] = picture(view)
    view.set_layout("split")
    pictures["split"] = picture(view)
    names = list(pictures)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert np.abs(pictures[one] - pictures[other]).mean() > 0.005, (one, other)
    with pytest.raises(ValueError, match="camera 'inside'"):
        view.set_camera("inside")
    with pytest.raises(ValueError, match="layout 'three'"):
        view.set_layout("three")
    with pytest.raises(ValueError, match="no surface 'sphere'"):
        view.set_surface("sphere")


def test_light_comes_from_the_camera(view: BrainPane) -> None:
    """What faces the viewer is as bright from every side, and nothing that is seen is darker than the ambient light."""
    view.set_values(np.zeros(view.cortex.n_sources))
    for preset in PRESETS:
        view.set_camera(preset)
        image = picture(view)[..., 0][cortex_pixels(view)]
        assert np.quantile(image, 0.98) == pytest.approx(GYRUS, abs=0.04), preset
        assert np.quantile(image, 0.02) > AMBIENT * SULCUS - 0.03, preset


def test_a_mesh_that_is_inside_out_looks_the_same(qtbot: QtBot, cortex: Cortex) -> None:
    """Triangles the other way round, normals inwards: lit from both sides, and nothing culled."""
    turned = replace(cortex, triangles=np.ascontiguousarray(cortex.triangles[:, ::-1]), _normals={})
    images = []
    for own in (cortex, turned):
        pane = shown(BrainView(own, theme=DARK), qtbot)
        pane.set_values(np.zeros(own.n_sources))
        images.append(picture(pane))
    assert np.abs(images[0] - images[1]).mean() < 0.002


def test_flat_and_opengl_show_the_same(qtbot: QtBot, cortex: Cortex) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 10, cortex.n_sources).astype(np.float32)
    images = []
    for make in (BrainView, FlatBrainView):
        pane = shown(make(cortex, theme=DARK), qtbot, 480, 300)
        pane.set_values(values)
        for preset in ("left", "top"):
            pane.set_camera(preset)
            images.append(picture(pane))
    for gl, flat_one in zip(images[:2], images[2:], strict=True):
        assert np.abs(gl - flat_one).mean() < 0.01


@pytest.mark.parametrize("profile", ["core", "embedded"])
def test_other_kinds_of_opengl_draw_the_same(profile: str, qtbot: QtBot, cortex: Cortex) -> None:
    values = np.linspace(0, 10, cortex.n_sources).astype(np.float32)
    usual = QSurfaceFormat.defaultFormat()
    images = []
    try:
        for asked in (None, profile):
            form = QSurfaceFormat()
            if asked == "core":
                form.setVersion(3, 3)
                form.setProfile(QSurfaceFormat.OpenGLContextProfile.CoreProfile)
            elif asked == "embedded":
                form.setRenderableType(QSurfaceFormat.RenderableType.OpenGLES)
                form.setVersion(2, 0)
            QSurfaceFormat.setDefaultFormat(form)
            try:
                brain.check_opengl()
            except ViewError as error:
                pytest.skip(f"no such context here: {error}")
            pane = shown(BrainView(cortex, theme=DARK), qtbot, 320, 200)
            pane.set_values(values)
            images.append(picture(pane))
    finally:
        QSurfaceFormat.setDefaultFormat(usual)
    np.testing.assert_allclose(images[0], images[1], atol=0.02)


def click(view: BrainPane, x: float, y: float) -> None:
    QTest.mouseClick(view.canvas, Qt.MouseButton.LeftButton, pos=QPoint(round(x), round(y)))


@pytest.mark.parametrize("layout", ["both", "split"])
def test_a_click_picks_the_vertex_under_it(view: BrainPane, layout: str) -> None:
    view.set_layout(layout)
    picked: list[int] = []
    view.picked.connect(picked.append)
    inflated = view.cortex.vertices("inflated")
    for vertex, x, y in seen_vertices(view, 6, seed=8):
        click(view, x, y)
        assert np.linalg.norm(inflated[picked[-1]] - inflated[vertex]) < 6.0
        assert view.cortex.hemisphere[picked[-1]] == view.cortex.hemisphere[vertex]
    assert len(picked) == 6
    click(view, 2, 20)
    assert len(picked) == 6


def drag(view: BrainPane, start: QPoint, end: QPoint, button: Qt.MouseButton = Qt.MouseButton.LeftButton) -> None:
    QTest.mousePress(view.canvas, button, pos=start)
    for part in (0.3, 0.6, 1.0):
        QTest.mouseMove(view.canvas, start + (end - start) * part)
        QApplication.processEvents()
    QTest.mouseRelease(view.canvas, button, pos=end)


def test_a_drag_turns_and_does_not_pick(qtbot: QtBot, cortex: Cortex) -> None:
    view = shown(BrainView(cortex, theme=DARK), qtbot)
    picked: list[int] = []
    view.picked.connect(picked.append)
    _, x, y = next(seen_vertices(view, 1))
    before = view.cameras[0]
    drag(view, QPoint(x, y), QPoint(x + 60, y + 20))
    after = view.cameras[0]
    assert after.azimuth != before.azimuth
    assert after.elevation > before.elevation
    assert picked == []
    QTest.mouseDClick(view.canvas, Qt.MouseButton.LeftButton, pos=QPoint(x, y))
    assert view.cameras[0] == before


def test_the_wheel_zooms_the_panel_under_the_pointer(view: BrainPane) -> None:
    view.set_layout("split")
    at = QPointF(view.canvas.width() * 0.75, view.canvas.height() * 0.25)
    wheel = QWheelEvent(
        at,
        view.canvas.mapToGlobal(at),
        QPoint(),
        QPoint(0, 240),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(view.canvas, wheel)
    zooms = [camera.zoom for camera in view.cameras]
    assert zooms[1] > 1.2
    assert zooms[0] == zooms[2] == zooms[3] == 1.0
    view.reset_camera()
    assert [camera.zoom for camera in view.cameras] == [1.0] * 4


def test_a_mark_is_drawn_where_its_vertex_is_seen(view: BrainPane) -> None:
    view.set_values(np.zeros(view.cortex.n_sources))
    vertex, x, y = next(seen_vertices(view, 1, seed=4))
    view.mark(vertex)
    rows, columns = np.nonzero(saturation(picture(view)) > 0.3)
    assert len(rows) > 10
    assert np.hypot(columns - x, rows - y).max() < 14
    view.mark(None)
    assert saturation(picture(view))[cortex_pixels(view)].max() < 0.1


def test_themes_change_the_background(view: BrainPane) -> None:
    assert picture(view)[2, 2].max() < 0.2
    view.set_theme(LIGHT)
    assert picture(view)[2, 2].min() > 0.9


@pytest.mark.parametrize("size", [(300, 200), (1280, 720), (2000, 1200)])
def test_any_size_is_painted_to_its_edges(view: BrainPane, qtbot: QtBot, size: tuple[int, int]) -> None:
    view.resize(*size)
    qtbot.waitUntil(lambda: (view.width(), view.height()) == size, timeout=5000)
    view.set_values(np.full(view.cortex.n_sources, 9.0))
    covered = cortex_pixels(view)
    assert covered.shape[0] == size[1]
    rows, columns = np.nonzero(covered)
    filled = max(np.ptp(rows) / covered.shape[0], np.ptp(columns) / covered.shape[1])
    assert 0.85 < filled <= 1.0


def test_smooth_edges_are_smoother(qtbot: QtBot, cortex: Cortex) -> None:
    view = shown(BrainView(cortex, theme=DARK), qtbot)
    view.set_values(np.zeros(cortex.n_sources))
    rough, smooth = (view.grab_image(smooth=own)[..., 0].astype(float) for own in (False, True))
    steps = [(np.diff(image[:, : view.canvas.width()], axis=1) ** 2).sum() for image in (rough, smooth)]
    assert steps[1] < 0.9 * steps[0]
    np.testing.assert_array_equal(view.grab_image(smooth=False)[..., 0], rough)


def test_a_frame_uploads_values_and_nothing_else(qtbot: QtBot, cortex: Cortex, monkeypatch: pytest.MonkeyPatch) -> None:
    view = shown(BrainView(cortex, theme=DARK), qtbot)
    view.set_values(np.zeros(cortex.n_sources))
    picture(view)
    uploads: list[int] = []
    from rt_mmdf.view.mesh_item import GL

    for name in ("glBufferData", "glTexImage2D", "glGenBuffers"):
        monkeypatch.setattr(GL, name, lambda *arguments, name=name: pytest.fail(f"{name} in a frame"))
    upload = GL.glBufferSubData

    def counted(target: int, offset: int, size: int, content: object) -> None:
        uploads.append(size)
        upload(target, offset, size, content)

    monkeypatch.setattr(GL, "glBufferSubData", counted)
    view.set_values(np.full(cortex.n_sources, 9.0))
    assert saturation(picture(view)).max() > 0.3
    assert uploads == [4 * cortex.n_vertices]
    view.set_camera("left")
    picture(view)
    assert len(uploads) == 1


def test_a_lost_context_is_made_again(qtbot: QtBot, cortex: Cortex, monkeypatch: pytest.MonkeyPatch) -> None:
    view = BrainView(cortex, theme=DARK)
    shown(view, qtbot)
    view.set_values(np.full(cortex.n_sources, 9.0))
    before = picture(view)

    class Lost:
        def makeCurrent(self, surface: object) -> bool:
            return False

    monkeypatch.setattr(view.canvas, "_context", Lost())
    view.set_values(np.full(cortex.n_sources, 9.0))
    np.testing.assert_allclose(picture(view), before)


def test_without_opengl_a_flat_view_is_made_and_says_why(
    qtbot: QtBot, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    pane, reason = make_brain_view(cortex, DARK)
    qtbot.addWidget(pane)
    assert isinstance(pane, BrainView)
    assert reason == ""

    def refused() -> str:
        raise ViewError("OpenGL 1.4 Old Driver: the shader of the cortex was refused")

    monkeypatch.setattr(brain, "check_opengl", refused)
    pane, reason = make_brain_view(cortex, DARK)
    qtbot.addWidget(pane)
    assert isinstance(pane, FlatBrainView)
    assert reason == "drawn without OpenGL: OpenGL 1.4 Old Driver: the shader of the cortex was refused"
    monkeypatch.setattr(flat.QGuiApplication, "platformName", lambda: "offscreen")
    pane, reason = make_brain_view(cortex, DARK)
    qtbot.addWidget(pane)
    assert isinstance(pane, FlatBrainView)
    assert "platform 'offscreen'" in reason


def test_the_colour_bar_has_the_colours_of_the_scale(view: BrainPane) -> None:
    for signed in (False, True):
        scale = ColourScale("A m", signed=signed, high=20e-9)
        view.set_scale(scale)
        image = view.grab_image()[:, view.canvas.width() :]
        column = image[:, 20].astype(int)
        first, last = scale.table()[[0, 255]].astype(int)
        assert (np.abs(column - last[:3]).max(axis=1) < 12).any()
        if signed:
            assert (np.abs(column - first[:3]).max(axis=1) < 12).any()
        words = image[:, 40:].astype(int)
        assert (words.min(axis=2) > 150).sum() > 50


def test_a_large_canvas_is_drawn_coarser_live_but_not_when_it_is_kept(qtbot: QtBot, cortex: Cortex) -> None:
    view = BrainView(cortex, theme=DARK)
    shown(view, qtbot, 1800, 1000)
    view.set_values(np.zeros(cortex.n_sources))
    live, kept = (view.grab_image(smooth=own)[:, : view.canvas.width()].astype(float) / 255 for own in (False, True))
    assert live.shape == kept.shape == (1000, view.canvas.width(), 3)
    assert np.abs(live - kept).mean() < 0.01  # the same picture
    assert (np.diff(kept, axis=1) ** 2).sum() > 1.1 * (np.diff(live, axis=1) ** 2).sum()  # sharper
