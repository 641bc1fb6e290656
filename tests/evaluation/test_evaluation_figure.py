from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from rt_mmdf.evaluation.figure import (
    INSIDE,
    TRUTH,
    MapPanel,
    MapRow,
    ShownCase,
    _columns,
    comparison_figure,
    map_grid,
    metric_figure,
)
from rt_mmdf.evaluation.results import CaseResults
from rt_mmdf.evaluation.statistics import summaries
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.sinks.figure import MARK

CELLS = tuple((radius, n, snr) for radius in (0.0, 10.0, 30.0) for n in (1, 2) for snr in (0.0, 10.0))


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def marks(figure: Figure, marker: str) -> list[tuple[int, object]]:
    """Number of the axes and colour of each mark."""
    lines = [(i, line) for i, axes in enumerate(figure.axes) for line in axes.lines]
    return [(i, line.get_markerfacecolor()) for i, line in lines if line.get_marker() == marker]


def bump(head: HeadModel, source: int, radius_mm: float) -> np.ndarray:
    distance = np.linalg.norm(head.source_positions_mm - head.source_positions_mm[source], axis=1)
    return np.asarray(np.exp(-0.5 * (distance / radius_mm) ** 2))


def test_every_solver_sees_the_same_cortex_with_its_error_below(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    lateral = int(np.argmin(head.source_positions_mm[:642, 0]))  # the leftmost source
    truth = np.where(bump(head, lateral, 15.0) > 0.5, 4.0, 0.0)
    estimates = {"MNE": bump(head, lateral, 20.0), "fusion": -bump(head, 642 + lateral, 20.0)}
    assert _columns(["fusion", "mine", "LCMV", "MNE"]) == ["MNE", "LCMV", "fusion", "mine"]
    seeds_figure = ["MNE", "sLORETA", "dSPM", "convdip", "mmdf", "fusion"]
    more = ["LCMV", "sLORETA-eeg", "sLORETA-meg", "eLORETA", "mmdf-eeg", "mmdf-meg"]
    assert _columns([*more, *reversed(seeds_figure)]) == seeds_figure
    case = ShownCase("15 mm", truth, head.source_positions_mm[[lateral]], estimates, {"MNE": 0.0, "fusion": 128.4})
    figure = comparison_figure(head, [case])
    assert words(figure)[:3] == [TRUTH, "MNE", "fusion"]
    assert {"15 mm", "0 mm", "128 mm, peak elsewhere"} <= set(words(figure))
    drawn = [axes for axes in figure.axes if axes.images and not axes.get_xlabel()]
    assert len(drawn) == 3
    assert len({tuple(axes.images[0].get_extent()) for axes in drawn}) == 1
    assert marks(figure, "*") == [(0, MARK), (1, MARK), (2, MARK)]
    assert marks(figure, "o") == [(1, "white")]  # the truth needs no peak, fusion's lies on the right
    pictures = [np.asarray(axes.images[0].get_array()) for axes in drawn]
    red = [np.mean(picture[..., 0] > picture[..., 2] + 0.2) for picture in pictures]
    assert min(red[:2]) > 0.01
    assert red[2] == 0
    assert all(axes.collections for axes in drawn)  # the outline of the patch


def test_peaks_out_of_sight_are_hollow_and_missing_maps_leave_a_gap(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    positions = head.source_positions_mm[:642]
    medial = int(np.argmax(positions[:, 0] - np.abs(positions[:, 1:] - positions[:, 1:].mean(axis=0)).max(axis=1)))
    values = bump(head, medial, 10.0)
    row = MapRow("left", ((0, (-1.0, 0.0, 0.0)),), {"a": MapPanel(values, "there", True)})
    figure = map_grid(head, ["a", "b"], [row], signed=False, title="Title", note="Note")
    assert [face for _, face in marks(figure, "o")] == ["none"]
    assert sum(bool(axes.images) and not axes.get_xlabel() for axes in figure.axes) == 1
    assert {"Title", "Note"} <= set(words(figure))
    assert next(text for text in figure.texts if text.get_text() == "there").get_color() == INSIDE


@pytest.mark.parametrize("statistic", ["mean", "median", "variance"])
def test_lines_go_through_what_the_summaries_say(statistic: str) -> None:
    rng = np.random.default_rng(0)
    rows = ("MNE", "fusion", "somebody")
    values = rng.gamma(2, 5, (3, 20 * len(CELLS))).astype(np.float32)
    values[2, :20] = np.nan  # somebody has nothing in the first cell
    results = CaseResults(rows, CELLS, np.repeat(np.arange(len(CELLS)), 20), {"le_mm": values})
    found = summaries(results, "le_mm")
    figure = metric_figure(found, "le_mm", statistic, title="Errors")  # type: ignore[arg-type]
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ["0 dB", "10 dB", "", ""]
    for axes, (n, snr) in zip(panels, [(1, 0.0), (1, 10.0), (2, 0.0), (2, 10.0)], strict=True):
        for line, row in zip(axes.lines, rows, strict=True):
            cells = [cell for cell in CELLS if cell[1:] == (n, snr) and found[row, cell].n]
            np.testing.assert_allclose(line.get_ydata(), [getattr(found[row, cell], statistic) for cell in cells])
            np.testing.assert_allclose(line.get_xdata(), [cell[0] for cell in cells], atol=1.0)
        assert len(axes.collections) == (0 if statistic == "variance" else 3)
    assert len(panels[0].lines[2].get_ydata()) == 2
    assert not any(axes.texts for axes in panels)
    some = metric_figure({key: own for key, own in found.items() if key[1][1:] != (2, 10.0)}, "le_mm", statistic)  # type: ignore[arg-type]
    assert [[text.get_text() for text in axes.texts] for axes in some.axes] == [[], [], [], ["not evaluated"]]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(rows)
