from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.evaluation.rows import NetworkRow, check_solvers, default_solvers
from rt_mmdf.evaluation.suite import Suite
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.whitener import whitener_and_colorer
from rt_mmdf.networks.build import build_network
from rt_mmdf.simulation.scenes import SceneNoise, nominal_noise_cov
from rt_mmdf.solvers.artefact import save_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays

CELL = (10.0, 1, 10.0)


def test_a_head_free_network_images_with_channels_it_was_not_trained_with(
    small_suite: Suite, template_head_ico3: HeadModel, tmp_path: Path
) -> None:
    head = template_head_ico3
    few = head.pick(head.ch_names[:200])
    noise_cov = nominal_noise_cov(few, SceneNoise(n_brain_sources=50), seed=3)
    network = build_network("fusion", {}, small_suite.scenes[0].scene.arrays)
    trained_elsewhere = save_artefact(tmp_path / "other", network, few, noise_cov, name="other", card="")
    (image,) = NetworkRow(small_suite, "other", trained_elsewhere).images(small_suite.cases(CELL, 2))
    assert image.maps.shape == (head.n_sources, 2)
    assert np.isfinite(image.maps).all()


def test_two_models_of_one_name_are_refused(small_suite: Suite, template_head_ico3: HeadModel, tmp_path: Path) -> None:
    noise_cov = nominal_noise_cov(template_head_ico3, SceneNoise(n_brain_sources=50), seed=3)
    network = build_network("fusion", {}, small_suite.scenes[0].scene.arrays)
    for folder, name in (("a", "mine"), ("b", "mine"), ("c", "sLORETA")):
        save_artefact(tmp_path / folder, network, template_head_ico3, noise_cov, name=name, card="")
    with pytest.raises(ConfigurationError, match=r"b calls itself 'mine', and so does .*a; rows need names"):
        check_solvers(small_suite, (str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(ConfigurationError, match=r"calls itself 'sLORETA', and so does a classical row"):
        check_solvers(small_suite, (str(tmp_path / "c"),))
    check_solvers(small_suite, ("dSPM", str(tmp_path / "a")))


def test_by_default_models_for_another_head_are_left_out_and_windows_tried_without(
    small_suite: Suite, template_head_ico3: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = template_head_ico3
    for kind, name, trained_for in (
        ("fusion", "any-head", head.pick(head.ch_names[:200])),
        ("mmdf", "this-head", head),
        ("mmdf", "other-head", head.pick(head.ch_names[100:])),
    ):
        noise_cov = nominal_noise_cov(trained_for, SceneNoise(n_brain_sources=50), seed=3)
        names = trained_for.ch_names
        whitener, _ = whitener_and_colorer(trained_for.channels, names, trained_for.info, noise_cov)
        network = build_network(kind, {}, forward_arrays(trained_for, whitener, names))
        save_artefact(tmp_path / "models" / name, network, trained_for, noise_cov, name=name, card="")
    rows, others = default_solvers(head)
    assert set(rows) >= {"MNE", "sLORETA-meg", "any-head", "any-head-instant", "this-head"}
    assert "other-head" in others
    assert not {"this-head-instant", *others} & {*rows}
