from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mne
import nibabel.freesurfer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.surface import spread_matrix
from rt_mmdf.view.cortex import GAP_MM, Cortex


@pytest.fixture(scope="module")
def cortex(template_head_ico3: HeadModel) -> Cortex:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("SUBJECTS_DIR", raising=False)
        environment.setattr("rt_mmdf.view.cortex.get_config", lambda key: None)
        return Cortex.of(template_head_ico3)


def test_both_hemispheres_are_one_mesh_left_first(cortex: Cortex, template_head_ico3: HeadModel) -> None:
    assert (cortex.n_vertices, cortex.n_sources) == (20484, 1284)
    assert cortex.surfaces == ("inflated", "pial", "white")
    assert cortex.n_left == 10242
    assert (np.diff(cortex.hemisphere.astype(int)) >= 0).all()
    assert (cortex.hemisphere[cortex.triangles].std(axis=1) == 0).all()
    assert (cortex.triangles[: cortex.n_left_triangles] < cortex.n_left).all()
    assert (cortex.triangles[cortex.n_left_triangles :] >= cortex.n_left).all()
    at_sources = cortex.vertices("white")[cortex.source_vertices]
    np.testing.assert_allclose(at_sources, template_head_ico3.source_positions_mm, atol=1e-4)


def test_hemispheres_stand_side_by_side_when_inflated_and_where_they_are_otherwise(
    cortex: Cortex, template_head_ico3: HeadModel
) -> None:
    inflated = cortex.vertices("inflated")
    left, right = inflated[cortex.hemisphere == 0], inflated[cortex.hemisphere == 1]
    assert right[:, 0].min() - left[:, 0].max() == pytest.approx(GAP_MM, abs=1e-3)
    for own, drawn in zip(template_head_ico3.hemispheres, (left, right), strict=True):
        assert own.inflated is not None
        np.testing.assert_allclose(np.ptp(drawn, axis=0), np.ptp(own.inflated, axis=0), rtol=1e-5)
    for name in ("pial", "white"):
        parts = [getattr(own, name) for own in template_head_ico3.hemispheres]
        np.testing.assert_allclose(cortex.vertices(name), np.vstack(parts), atol=1e-4)


@pytest.mark.parametrize("surface", ["inflated", "pial", "white"])
def test_normals_are_unit_vectors_that_point_outwards(cortex: Cortex, surface: str) -> None:
    normals, vertices = cortex.normals(surface), cortex.vertices(surface)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, rtol=1e-4)
    for side in (0, 1):
        own = cortex.hemisphere == side
        away = vertices[own] - vertices[own].mean(axis=0)
        assert (np.einsum("ij,ij->i", normals[own], away) > 0).mean() > (0.95 if surface == "inflated" else 0.6)
    assert cortex.normals(surface) is normals


def test_a_mesh_with_a_hole_or_inside_out_is_not_closed(cortex: Cortex) -> None:
    assert cortex.is_closed
    assert not replace(cortex, triangles=cortex.triangles[1:]).is_closed
    assert not replace(cortex, triangles=cortex.triangles[:, ::-1].copy()).is_closed


def test_spreading_is_that_of_pictures_on_paper(cortex: Cortex, template_head_ico3: HeadModel) -> None:
    values = np.random.default_rng(3).standard_normal(cortex.n_sources)
    parts = np.split(values, [642])
    expected = [
        spread_matrix(own.triangles, len(own.white), own.source_vertices) @ part
        for own, part in zip(template_head_ico3.hemispheres, parts, strict=True)
    ]
    np.testing.assert_allclose(cortex.of_sources(values), np.concatenate(expected), rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 100.0))
def test_spreading_is_linear_stays_within_the_values_and_keeps_hemispheres_apart(
    cortex: Cortex, seed: int, factor: float
) -> None:
    values = np.random.default_rng(seed).standard_normal(cortex.n_sources).astype(np.float32)
    spread = cortex.of_sources(values)
    assert spread.dtype == np.float32
    assert values.min() - 1e-5 <= spread.min()
    assert spread.max() <= values.max() + 1e-5
    np.testing.assert_allclose(cortex.of_sources(factor * values), factor * spread, rtol=1e-3, atol=1e-4 * factor)
    left_alone = np.where(np.arange(cortex.n_sources) < 642, values, 0)
    assert (cortex.of_sources(left_alone)[cortex.hemisphere == 1] == 0).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_estimate_around_its_source_and_nothing_elsewhere(cortex: Cortex, wrong: float) -> None:
    values = np.ones(cortex.n_sources, np.float32)
    values[100] = wrong
    spread = cortex.of_sources(values)
    touched = cortex.spread[:, [100]].toarray()[:, 0] != 0
    assert np.isnan(spread[touched]).all()
    assert touched[cortex.source_vertices[100]]
    np.testing.assert_allclose(spread[~touched], 1.0, rtol=1e-5)


def test_a_vertex_that_no_source_reaches_has_no_estimate(cortex: Cortex) -> None:
    spread = cortex.spread.tolil()
    spread[5] = 0
    lonely = replace(cortex, spread=sparse.csr_matrix(spread))
    values = lonely.of_sources(np.ones(cortex.n_sources))
    assert np.isnan(values[5])
    assert np.isfinite(np.delete(values, 5)).all()


def test_values_of_another_head_are_refused(cortex: Cortex) -> None:
    with pytest.raises(ValueError, match=r"shape \(2034,\); \(1284,\) is expected"):
        cortex.of_sources(np.zeros(2034))
    with pytest.raises(ValueError, match="no surface 'sphere'; it has inflated, pial, white"):
        cortex.vertices("sphere")


def test_a_place_is_named_in_mni_and_head_coordinates(cortex: Cortex, template_head_ico3: HeadModel) -> None:
    row = 700
    vertex = int(cortex.source_vertices[row])
    place = cortex.describe(vertex)
    own = template_head_ico3.hemispheres[1]
    assert (place.hemisphere, place.vertex) == (1, own.source_vertices[row - 642])
    assert place.name == f"rh-{place.vertex}"
    assert (place.source, place.distance_mm, place.label) == (row, 0.0, None)
    assert place.mni_mm == pytest.approx(own.white[place.vertex], abs=1e-3)
    in_head = mne.convert_forward_solution(template_head_ico3.forward, surf_ori=False, verbose="ERROR")["source_rr"][row]
    assert place.head_mm == pytest.approx(1e3 * in_head, abs=0.05)
    with pytest.raises(IndexError, match="vertex 20484 of 20484"):
        cortex.describe(cortex.n_vertices)


def test_the_nearest_source_is_of_the_same_hemisphere(cortex: Cortex) -> None:
    white = cortex.vertices("white").astype(float)
    rng = np.random.default_rng(0)
    for vertex in rng.integers(0, cortex.n_vertices, 30).tolist():
        place = cortex.describe(vertex)
        distances = np.linalg.norm(white[cortex.source_vertices] - white[vertex], axis=1)
        same = cortex.hemisphere[cortex.source_vertices] == cortex.hemisphere[vertex]
        assert place.distance_mm == pytest.approx(distances[same].min(), abs=1e-4)
        assert same[place.source]


def test_a_subject_has_no_mni_coordinates_and_pial_only_where_it_is_known(template_head_ico3: HeadModel) -> None:
    first, second = template_head_ico3.hemispheres
    poor = tuple(replace(own, inflated=None, pial=None, sulc=None) for own in (first, second))
    subject = replace(template_head_ico3, kind="subject", hemispheres=(poor[0], poor[1]))
    cortex = Cortex.of(subject)
    assert cortex.surfaces == ("inflated", "white")
    assert cortex.describe(0).mni_mm is None
    assert cortex.describe(0).head_mm is not None
    assert cortex.sulc.std() > 0.05


def test_regions_are_named_where_an_annotation_is_at_hand(
    template_head_ico3: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fsaverage" / "label"
    folder.mkdir(parents=True)
    numbers = np.zeros(163842, int)
    numbers[:100] = 1
    colours = np.array([[1, 2, 3, 0, 0], [40, 50, 60, 0, 0]])
    for side in ("lh", "rh"):
        nibabel.freesurfer.write_annot(
            folder / f"{side}.aparc.annot", numbers, colours, ["unknown", "cuneus"], fill_ctab=True
        )
    monkeypatch.setenv("SUBJECTS_DIR", str(tmp_path))
    cortex = Cortex.of(template_head_ico3)
    assert cortex.describe(10242 + 99).label == "cuneus-rh"
    assert cortex.describe(99).label == "cuneus-lh"
    assert cortex.describe(100).label is None
    (folder / "rh.aparc.annot").write_bytes(b"")
    with pytest.raises(HeadModelError, match=r"rh.aparc.annot: cannot be read"):
        Cortex.of(template_head_ico3)
    (folder / "rh.aparc.annot").unlink()
    assert Cortex.of(template_head_ico3).labels is None
