"""The head of an engine, found on this machine by what the stream says of it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.head import HEAD_FILE, HeadModel
from rt_mmdf.sinks.estimates import EstimateDescription, describe_streams
from rt_mmdf.sinks.settings import EstimateStreamSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.solvers import artefact
from rt_mmdf.view import heads
from rt_mmdf.view.heads import find_head, fits
from rt_mmdf.view.streams import EngineDescription, read_engine


def kept(folder: Path, entry: Path) -> None:
    """Put a head into the cache, closed to others as the cache does it."""
    shutil.copytree(folder, entry)
    entry.chmod(0o700)


def engine_on(head: HeadModel) -> EngineDescription:
    """What an engine that images on this head says."""
    sources = SourceSpaceDescription(head.name, head.fingerprint, head.vertices, head.source_positions_mm)
    described = EstimateDescription("dSPM", "", "fixed", 1000.0, 31.0)
    stream = describe_streams("e-sources", sources, described, EstimateStreamSettings())[0]
    return read_engine(replace(stream, hostname="lab"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no models."""
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(artefact, "known_models", list)
    return tmp_path / "cache"


@pytest.fixture
def no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the engine's head were a subject's that looks like no template."""
    monkeypatch.setattr(heads, "_template", lambda engine: None)


@pytest.fixture(scope="module")
def saved(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template, as a folder."""
    folder = tmp_path_factory.mktemp("heads") / "head"
    template_head_ico3.save(folder)
    return folder


def test_by_fingerprint_in_the_cache(template_head_ico3: HeadModel, saved: Path, cache: Path, no_template: None) -> None:
    engine = engine_on(template_head_ico3)
    with pytest.raises(HeadModelError, match=r"not on this machine: 'template'[\s\S]*1284 sources[\s\S]*--head FOLDER"):
        find_head(engine)
    kept(saved, cache / "head-subject-1")
    assert find_head(engine).fingerprint == engine.fingerprint


def test_the_same_sources_do_although_the_sensors_are_others(
    template_head_ico3: HeadModel, saved: Path, cache: Path, no_template: None
) -> None:
    """An engine images on the channels that stream, and renames them: its fingerprint is in nobody's cache."""
    kept(saved, cache / "head-template-1")
    picked = template_head_ico3.pick(template_head_ico3.ch_names[:30])
    engine = engine_on(picked)
    found = find_head(engine)
    assert found.fingerprint != engine.fingerprint
    assert fits(found, engine)


def test_other_places_are_another_head(template_head_ico3: HeadModel, saved: Path, cache: Path, no_template: None) -> None:
    kept(saved, cache / "head-template-1")
    engine = engine_on(template_head_ico3)
    moved = replace(engine, fingerprint="0" * 64, positions_mm=engine.positions_mm + np.array([0.0, 0.3, 0.0]))
    assert not fits(template_head_ico3, moved)
    with pytest.raises(HeadModelError, match="0000000000000000, 1284 sources"):
        find_head(moved)


@pytest.mark.parametrize(("frame", "n_channels"), [("MNI305", 30), ("MRI (surface RAS)", 366)])
def test_of_a_template_the_smallest_is_read_and_of_a_subject_the_very_one(
    frame: str, n_channels: int, template_head_ico3: HeadModel, saved: Path, cache: Path, no_template: None
) -> None:
    kept(saved, cache / "head-template-1")
    template_head_ico3.pick(template_head_ico3.ch_names[:30]).save(cache / "head-template-2")
    (cache / "head-template-2").chmod(0o700)
    engine = replace(engine_on(template_head_ico3), frame=frame)
    assert len(find_head(engine).ch_names) == n_channels


def test_a_damaged_entry_is_passed_over(template_head_ico3: HeadModel, saved: Path, cache: Path, no_template: None) -> None:
    for number in range(3):
        kept(saved, cache / f"head-template-{number}")
    (cache / "head-template-0" / HEAD_FILE).write_text("format = ")
    (cache / "head-template-1" / "surfaces.npz").write_bytes(b"no zip")
    engine = replace(engine_on(template_head_ico3), fingerprint="0" * 64)
    assert fits(find_head(engine), engine)


def test_the_template_is_made_where_it_is_not_there(template_head_ico3: HeadModel, cache: Path) -> None:
    engine = engine_on(template_head_ico3)
    head = find_head(engine)
    assert fits(head, engine)
    np.testing.assert_allclose(head.hemispheres[0].inflated, template_head_ico3.hemispheres[0].inflated, atol=1e-3)


def test_a_folder_given_by_hand_is_taken_if_it_is_the_one(
    template_head_ico3: HeadModel, saved: Path, cache: Path, no_template: None, tmp_path: Path
) -> None:
    engine = engine_on(template_head_ico3)
    assert find_head(engine, saved).fingerprint == engine.fingerprint
    other = replace(engine, fingerprint="1" * 64, positions_mm=engine.positions_mm + 5.0)
    with pytest.raises(HeadModelError, match=re.escape(f"{saved} holds another one: 'template'")):
        find_head(other, saved)
    with pytest.raises(HeadModelError, match=r"no head\.toml"):
        find_head(engine, tmp_path)


def test_a_models_head_is_found_by_its_sources(
    template_head_ico3: HeadModel, cache: Path, no_template: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        n_sources = template_head_ico3.n_sources
        head_arrays = {"positions_mm": template_head_ico3.source_positions_mm.astype(np.float32)}

        def load_head(self) -> HeadModel:
            return template_head_ico3

    monkeypatch.setattr(artefact, "known_models", lambda: ["own"])
    monkeypatch.setattr(artefact, "find_model", lambda name: Path(name))
    monkeypatch.setattr(artefact, "load_artefact", lambda folder: Model())
    assert find_head(engine_on(template_head_ico3)) is template_head_ico3
