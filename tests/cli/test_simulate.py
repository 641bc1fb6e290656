"""`rt-mmdf simulate` as a person and as a program see it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mne
import numpy as np
import pytest
from typer.testing import CliRunner

from rt_mmdf.cli.main import app
from rt_mmdf.core.errors import ConfigurationError, NoiseCovarianceError, RtMmdfError, SinkError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.simulation.batch_files import load_batch
from rt_mmdf.simulation.scene_files import load_scenes
from rt_mmdf.simulation.truth import load_truth

RUNNER = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


def simulate(*words: str | Path) -> str:
    result = RUNNER.invoke(app, ["simulate", *map(str, words)])
    if isinstance(result.exception, RtMmdfError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_it_explains_itself() -> None:
    text = simulate("--help")
    for word in ("--noise-cov", "--batches", "--order", "Examples", "default: 0.33"):
        assert word in text
    assert " simulate " in RUNNER.invoke(app, ["--help"]).output


@pytest.mark.slow
def test_recordings_have_their_truth_beside_them_and_equal_seeds_equal_content(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        said = simulate("--out", tmp_path / folder, "--seconds", "5", "--count", "2", "--seed", "4")
        assert "truth in simulated-5-truth.npz" in said
    made = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert made == [f"simulated-{seed}-{part}" for seed in (4, 5) for part in ("raw.fif", "truth.npz")]
    data = {}
    for folder in ("a", "b"):
        for seed in (4, 5):
            raw = mne.io.read_raw_fif(tmp_path / folder / f"simulated-{seed}-raw.fif", preload=True, verbose="ERROR")
            truth = load_truth(tmp_path / folder / f"simulated-{seed}-truth.npz")
            data[folder, seed] = raw.get_data()
            assert truth.moments.shape[1] == raw.n_times == 5000
            data[folder, seed, "moments"] = truth.moments
    np.testing.assert_array_equal(data["a", 4], data["b", 4])
    np.testing.assert_array_equal(data["a", 5, "moments"], data["b", 5, "moments"])
    assert np.abs(data["a", 4] - data["a", 5]).max() > 0
    with pytest.raises(SinkError, match=r"simulated-4-raw\.fif is there already"):
        simulate("--out", tmp_path / "a", "--seed", "4")


def test_batches_come_with_their_scenes(small_template: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rt_mmdf.headmodel.template.build_template", lambda **_: small_template)
    words = ["--scenes", "1", "--n", "2", "--size", "8", "--sources", "2", "--snr-db", "5", "--order", "2"]
    for folder in ("a", "b"):
        assert "2 batches of 8 samples from 1 scenes" in simulate("--batches", tmp_path / folder, *words, "--seed", "3")
    (scene,) = load_scenes(tmp_path / "a" / "scenes")
    assert scene.arrays.n_sources == small_template.n_sources
    batch, _ = load_batch(tmp_path / "a" / "batch00001.safetensors")
    assert batch.sample.shape == (8, len(small_template.ch_names))
    assert set(batch.snr_db.tolist()) == {5.0}
    assert batch.centres.shape[1] == 2
    for name in ("batch00000.safetensors", "batch00001.safetensors", "scenes/scene000.safetensors", "batches.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "batches.json").read_text())["settings"]["radii_mm"] == [pytest.approx(11.4)]


def test_batches_that_are_replaced_leave_none_of_the_old_ones(
    small_template: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rt_mmdf.headmodel.template.build_template", lambda **_: small_template)
    words = ["--batches", tmp_path, "--scenes", "1", "--size", "8", "--no-dropout"]
    simulate(*words, "--n", "3")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SinkError, match=r"batches\.json is there already"):
        simulate(*words, "--n", "1")
    (tmp_path / "batches.json").unlink()
    with pytest.raises(SinkError, match=r"batch00000\.safetensors is there already"):
        simulate(*words, "--n", "1")
    simulate(*words, "--n", "1", "--force", "--channel-dropout", "0.5", "--modality-dropout", "1")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["batch00000.safetensors", "batches.json", "notes.txt", "scenes"]
    sample = load_batch(tmp_path / "batch00000.safetensors")[0].sample.numpy()
    is_eeg = load_scenes(tmp_path / "scenes")[0].arrays.kinds == 0
    gone = sample == 0
    assert (gone[:, is_eeg].all(axis=1) | gone[:, ~is_eeg].all(axis=1)).all()  # each sample has lost a modality
    assert 0 < (~gone).sum() < 0.5 * gone.size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batches", "x", "--seconds", "9"], r"--seconds seen, which does nothing without recordings.*--out"),
        (
            ["--batches", "x", "--vary-head", "--count", "1"],
            r"--count, --vary-head seen, which does nothing",
        ),
        (
            ["--out", "x", "--window", "20", "--no-dropout"],
            r"--window, --dropout seen, .*without batches.*--batches",
        ),
        (["--out", "x", "--modality-dropout", "0"], r"--modality-dropout seen, which does nothing without batches"),
    ],
)
def test_options_that_would_do_nothing_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        simulate(*words)


@pytest.fixture(scope="module")
def small_template(template_head_ico3: HeadModel) -> HeadModel:
    return template_head_ico3.pick(template_head_ico3.ch_names[:30] + template_head_ico3.ch_names[-20:])


def test_what_cannot_be_written_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing to write"):
        simulate()
    with pytest.raises(ConfigurationError, match="give one of the two"):
        simulate("--out", tmp_path, "--order", "1", "--radius-mm", "5")
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="no folder that you may write to"):
        simulate("--out", tmp_path / "file" / "x")
    if os.getuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(SinkError, match="no folder that you may write to"):
            simulate("--batches", tmp_path / "locked" / "x")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "locked") == ["file"]


def test_covariances_and_settings_that_do_not_fit_are_told(tmp_path: Path) -> None:
    with pytest.raises(NoiseCovarianceError, match="no such file"):
        simulate("--out", tmp_path / "a", "--noise-cov", tmp_path / "no-cov.fif")
    path = tmp_path / "other-cov.fif"
    mne.write_cov(path, mne.Covariance(np.eye(2), ["A1", "A2"], [], [], nfree=100), verbose="ERROR")
    with pytest.raises(NoiseCovarianceError, match=r"none of them is simulated; expected are names like MEG 0113"):
        simulate("--out", tmp_path / "a", "--seconds", "5", "--noise-cov", path)
    with pytest.raises(ConfigurationError, match="cannot be active together"):
        simulate("--out", tmp_path / "a", "--sources", "3", "--places", "2")
    assert not (tmp_path / "a").exists()
