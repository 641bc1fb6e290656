"""Heads on disk prove themselves, say what they lack, and come from the cache unchanged."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pytest

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.cache import cached, cached_head, file_digest
from rt_mmdf.headmodel.head import FORWARD_FILE, HEAD_FILE, SURFACES_FILE, HeadModel, load_head
from rt_mmdf.headmodel.subject import build_subject, from_forward


@pytest.fixture(scope="module")
def saved(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head") / "template"
    template_head_ico3.save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_saved_head_is_the_same_head(saved: Path, template_head_ico3: HeadModel) -> None:
    again = load_head(saved)
    assert again.fingerprint == template_head_ico3.fingerprint
    assert again.ch_names == template_head_ico3.ch_names
    assert dict(again.recipe) == dict(template_head_ico3.recipe)
    np.testing.assert_array_equal(again.forward["sol"]["data"], template_head_ico3.forward["sol"]["data"])
    np.testing.assert_array_equal(again.source_positions_mm, template_head_ico3.source_positions_mm)
    scale = np.abs(again.leadfield()).max(axis=1, keepdims=True)
    np.testing.assert_allclose(again.leadfield() / scale, template_head_ico3.leadfield() / scale, atol=1e-5)
    assert again.summary()["sources"] == "1284 (left 642, right 642)"


def test_saving_over_a_head_replaces_it(copy: Path, template_head_ico3: HeadModel) -> None:
    few = template_head_ico3.pick(["EEG002", "MEG 0113"])
    few.save(copy)
    assert load_head(copy).ch_names == ("EEG002", "MEG 0113")


def test_picking_keeps_rows_and_order(template_head_ico3: HeadModel) -> None:
    names = ["EEG010", "MEG 0111", "MEG 0113"]
    picked = template_head_ico3.pick(names)
    assert picked.ch_names == tuple(names) == picked.channels.names
    np.testing.assert_array_equal(picked.leadfield(), template_head_ico3.leadfield(names))
    whole = template_head_ico3.leadfield()
    np.testing.assert_array_equal(picked.leadfield(), whole[[template_head_ico3.ch_names.index(n) for n in names]])


def test_channels_that_a_head_lacks_are_named(template_head_ico3: HeadModel) -> None:
    assert template_head_ico3.missing(["EEG001", "Cz", "MEG 0113", "A1"]) == ("Cz", "A1")
    with pytest.raises(HeadModelError, match=r"2 of 3 channels are not in it \(Cz, A1\)"):
        template_head_ico3.leadfield(["EEG001", "Cz", "A1"])


@pytest.mark.parametrize("name", [HEAD_FILE, FORWARD_FILE, SURFACES_FILE])
def test_a_damaged_or_missing_file_is_said(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(HeadModelError, match=str(copy)):
        load_head(copy)
    (copy / name).unlink()
    with pytest.raises(HeadModelError, match=str(copy)):
        load_head(copy)


def test_files_of_two_heads_do_not_mix(copy: Path, template_head_ico3: HeadModel) -> None:
    louder = template_head_ico3.forward.copy()
    louder["sol"]["data"] = louder["_orig_sol"] = 1.001 * louder["sol"]["data"]
    mne.write_forward_solution(copy / FORWARD_FILE, louder, overwrite=True)
    with pytest.raises(HeadModelError, match="do not belong together"):
        load_head(copy)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, template_head_ico3: HeadModel) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HeadModelError, match="cannot be written"):
        template_head_ico3.save(tmp_path / "file" / "head")


def test_the_cache_builds_once_and_again_when_damaged(
    template_head_ico3: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "cache"))
    few = template_head_ico3.pick(["EEG001", "EEG002"])
    built = []

    def build() -> HeadModel:
        built.append(1)
        return few

    first = cached_head({"a": 1}, build)
    assert cached_head({"a": 1}, build).fingerprint == first.fingerprint == few.fingerprint
    assert len(built) == 1
    cached_head({"a": 2}, build)
    assert len(built) == 2, "another recipe is another entry"
    entries = list((tmp_path / "cache").iterdir())
    assert len(entries) == 2, "nothing half-written is left behind"
    for entry in entries:
        (entry / FORWARD_FILE).write_bytes(b"garbage")
    with caplog.at_level(logging.WARNING):
        assert cached_head({"a": 1}, build).fingerprint == few.fingerprint
    assert len(built) == 3
    assert "built again" in caplog.text


def test_without_a_cache_the_head_is_still_built(
    template_head_ico3: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "file" / "cache"))
    few = template_head_ico3.pick(["EEG001", "EEG002"])
    assert cached_head({}, lambda: few).fingerprint == few.fingerprint
    assert "nothing is kept" in caplog.text


def test_an_error_of_the_maker_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "cache"))

    def make(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise HeadModelError("no")

    with pytest.raises(HeadModelError):
        cached("kind", {}, make, lambda folder: folder)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_existing_forward_solution_becomes_a_head(
    template_head_ico3: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "my-fwd.fif"
    mne.write_forward_solution(path, template_head_ico3.forward)
    head = from_forward(path)
    assert (head.name, head.kind, head.ch_names) == ("my", "subject", template_head_ico3.ch_names)
    np.testing.assert_allclose(head.source_positions_mm, template_head_ico3.source_positions_mm, atol=1e-3)
    np.testing.assert_array_equal(head.forward["sol"]["data"], template_head_ico3.forward["sol"]["data"])
    assert all(h.inflated is None and h.sulc is None for h in head.hemispheres), "a forward solution holds no such surfaces"
    moved = template_head_ico3.info.copy()
    moved["dev_head_t"]["trans"][0, 3] += 0.02
    with caplog.at_level(logging.WARNING):
        from_forward(path, moved)
    assert "the head is 20 mm from where it was" in caplog.text

    fixed = mne.convert_forward_solution(template_head_ico3.forward, surf_ori=True, force_fixed=True)
    fixed.update(_orig_sol=fixed["sol"]["data"], _orig_source_ori=1)  # else mne writes what it was converted from
    with pytest.warns(RuntimeWarning, match="fixed orientation"):
        mne.write_forward_solution(tmp_path / "fixed-fwd.fif", fixed)
    with pytest.raises(HeadModelError, match="free orientation expected"):
        from_forward(tmp_path / "fixed-fwd.fif")


def test_display_surfaces_come_from_the_subjects_folder(
    template_head_ico3: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "my-fwd.fif"
    mne.write_forward_solution(path, template_head_ico3.forward)
    surf = tmp_path / "subjects" / "me" / "surf"
    surf.mkdir(parents=True)
    for side, hemisphere in zip(("lh", "rh"), template_head_ico3.hemispheres, strict=True):
        mne.write_surface(surf / f"{side}.inflated", hemisphere.inflated, hemisphere.triangles)
    head = from_forward(path, subjects_dir=tmp_path / "subjects", subject="me")
    for own, theirs in zip(head.hemispheres, template_head_ico3.hemispheres, strict=True):
        np.testing.assert_allclose(own.inflated, theirs.inflated, atol=1e-3)
        assert own.pial is None
    mne.write_surface(surf / "lh.inflated", np.eye(3), np.array([[0, 1, 2]]), overwrite=True)
    with pytest.raises(HeadModelError, match="3 vertices"):
        from_forward(path, name="other", subjects_dir=tmp_path / "subjects", subject="me")


def test_files_that_are_no_forward_solution_are_said(tmp_path: Path) -> None:
    with pytest.raises(HeadModelError, match=r"no-fwd\.fif"):
        from_forward(tmp_path / "no-fwd.fif")
    (tmp_path / "text-fwd.fif").write_text("hello")
    with pytest.raises(HeadModelError, match="cannot be read as a forward solution"):
        from_forward(tmp_path / "text-fwd.fif")


@pytest.mark.sample
def test_the_real_subjects_head(sample_data: Path, sample_head: HeadModel) -> None:
    assert sample_head.n_sources == 2034
    assert len(sample_head.ch_names) == 366
    src = mne.read_source_spaces(sample_data / "sample-oct5-src.fif", verbose="ERROR")
    for hemisphere, space, triangles in zip(sample_head.hemispheres, src, sample_head.source_triangles, strict=True):
        np.testing.assert_allclose(hemisphere.white, 1e3 * space["rr"], atol=1e-3)
        assert len(hemisphere.source_vertices) > 1000
        assert 1900 < len(triangles) <= 2048
        assert hemisphere.inflated is None
    eeg = sample_head.leadfield([n for n in sample_head.ch_names if n.startswith("EEG")])
    assert np.abs(eeg).max(axis=0).min() > 2


@pytest.mark.sample
def test_files_of_the_wrong_kind_are_said(sample_data: Path, sample_head: HeadModel) -> None:
    trans, src = sample_data / "sample-trans.fif", sample_data / "sample-oct5-src.fif"
    bem = sample_data / "sample-320-320-320-bem-sol.fif"
    with pytest.raises(HeadModelError, match="cannot be read as a BEM solution"):
        build_subject(sample_head.info, trans, src, src)
    with pytest.raises(HeadModelError, match="cannot be read as a source space"):
        build_subject(sample_head.info, trans, bem, bem)
    with pytest.raises(HeadModelError, match="no position"):
        build_subject(mne.create_info(["Cz"], 100.0, "eeg"), trans, src, bem)
    with pytest.raises(HeadModelError, match="neither EEG nor MEG"):
        build_subject(mne.create_info(["STI"], 100.0, "stim"), trans, src, bem)


def test_the_digest_of_a_file_is_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"two")
    assert file_digest(tmp_path / "a") != file_digest(tmp_path / "b")


def test_the_fingerprint_sees_names_gain_and_cortex(template_head_ico3: HeadModel) -> None:
    left, right = template_head_ico3.hemispheres
    moved = replace(template_head_ico3, hemispheres=(replace(left, white=left.white + 1.0), right))
    assert moved.fingerprint != template_head_ico3.fingerprint
    swapped = template_head_ico3.pick([*template_head_ico3.ch_names[1::-1], *template_head_ico3.ch_names[2:]])
    assert swapped.fingerprint != template_head_ico3.fingerprint


def test_names_that_differ_in_spaces_only_are_the_same_channels(template_head_ico3: HeadModel) -> None:
    own = template_head_ico3.ch_names
    streaming = [f"{name[:3]} {name[3:]}" for name in own]
    named = template_head_ico3.named_like(streaming)
    assert named.ch_names == tuple(streaming) == tuple(named.info["ch_names"])
    np.testing.assert_array_equal(named.leadfield(streaming[::-1]), template_head_ico3.leadfield(own[::-1]))
    assert template_head_ico3.ch_names == own  # the head itself stays as it was
    assert template_head_ico3.named_like(own) is template_head_ico3
