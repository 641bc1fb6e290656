"""A model as files for other libraries: they say what the network says, and the report tells how nearly."""

from __future__ import annotations

import json
from pathlib import Path

import mne
import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from rt_mmdf.app.export import REPORT, export_model
from rt_mmdf.backends.choice import why_not
from rt_mmdf.backends.interface import BACKENDS, MOMENTS, SAMPLES
from rt_mmdf.backends.onnxruntime_backend import OnnxRuntimeRunner
from rt_mmdf.cli.main import app
from rt_mmdf.core.errors import ConfigurationError, SinkError, SolverError
from rt_mmdf.solvers.artefact import Artefact, load_artefact


@pytest.fixture(scope="module")
def artefacts(models: Path) -> dict[str, Artefact]:
    return {kind: load_artefact(models / kind) for kind in ("mmdf", "fusion")}


@pytest.mark.parametrize("kind", ["mmdf", "fusion"])
def test_the_graph_is_the_network_and_the_report_tells_how_nearly(
    kind: str, artefacts: dict[str, Artefact], tmp_path: Path, small_recording: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path / "new" / "exported"
    done = export_model(artefacts[kind], folder, small_recording)
    assert sorted(path.name for path in folder.iterdir()) == sorted(done.files)
    session = onnxruntime.InferenceSession(folder / f"tiny-{kind}-fp32.onnx", providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    assert names == [SAMPLES, "operand_0", "operand_1"]
    operands = {given.name: np.ones(given.shape, np.float32) for given in session.get_inputs()[1:]}
    for n in (1, 7):
        (moments,) = session.run([MOMENTS], {SAMPLES: np.ones((n, 366), np.float32), **operands})
        assert moments.shape == (n, 1284)
    assert ("tiny-mmdf-fp16.onnx" in done.files) is (kind == "mmdf")
    report = json.loads((folder / REPORT).read_text())
    assert (report["model"], report["network"]) == (f"tiny-{kind}", kind)
    assert ("decompositions" in report["exported"]) is (kind == "fusion")
    if kind == "fusion":
        window = onnxruntime.InferenceSession(folder / "tiny-fusion-window-fp32.onnx", providers=["CPUExecutionProvider"])
        operands = load_file(folder / "tiny-fusion-window-operands.safetensors")
        (row, *others) = window.get_inputs()
        assert {given.name: tuple(given.shape) for given in others} == {key: own.shape for key, own in operands.items()}
        (said,) = window.run(["prior"], {row.name: np.ones(row.shape, np.float32), **operands})
        assert said.shape == (1, 4 * 1284 + 9)
        assert np.isfinite(said).all()
    assert [compared["samples"] for compared in report["compared"]] == ["simulated", small_recording.name]
    for compared in report["compared"]:
        by_name = {entry["backend"]: entry for entry in compared["backends"]}
        assert set(by_name) == set(BACKENDS)
        for name in ("torch", "onnxruntime"):
            accuracy = by_name[name]["accuracy"]
            assert accuracy["relative_l2"] < report["limits"]["fp32"]["relative_l2"]
            assert by_name[name]["problem"] is None
        for name in ("torch-cuda", "tensorrt"):
            if (reason := why_not(name)) is not None:
                assert (by_name[name]["accuracy"], by_name[name]["problem"]) == (None, reason)
        assert (compared["windows"] is None) is (kind == "mmdf")
        looks = {entry["backend"]: entry for entry in compared["window_backends"]}
        assert set(looks) == (set(BACKENDS) if kind == "fusion" else set())
        for name in ("torch", "onnxruntime") if looks else ():
            assert looks[name]["problem"] is None
            assert looks[name]["ms"] > 0


def test_a_recording_that_does_not_serve_is_told(
    artefacts: dict[str, Artefact], tmp_path: Path, small_recording: Path
) -> None:
    pytest.importorskip("onnxruntime")
    raw = mne.io.read_raw_fif(small_recording, preload=True, verbose="ERROR")
    raw.crop(0, 1.1).save(tmp_path / "short_raw.fif", verbose="ERROR")
    with pytest.raises(ConfigurationError, match=r"short_raw.fif lasts 1.1 s; more than 1.2 s are expected"):
        export_model(artefacts["fusion"], tmp_path / "out", tmp_path / "short_raw.fif")
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be written"):
        export_model(artefacts["mmdf"], tmp_path / "file" / "out")


def test_without_onnx_it_says_what_to_install(
    artefacts: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rt_mmdf.backends.onnxruntime_backend.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SolverError, match=r"pip install 'rt-mmdf\[onnx\]'"):
        export_model(artefacts["mmdf"], tmp_path)


def test_the_command_prints_a_table_and_fails_where_a_backend_is_wrong(
    artefacts: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    given = ["export", str(artefacts["mmdf"].folder), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "onnxruntime" in done.stdout
    assert "tiny-mmdf-fp32.onnx" in done.stdout
    says = OnnxRuntimeRunner.__call__
    monkeypatch.setattr(OnnxRuntimeRunner, "__call__", lambda self, samples: 1.01 * says(self, samples))
    assert CliRunner().invoke(app, given).exit_code == 1


@pytest.mark.sample
def test_the_shipped_models_are_true_on_the_real_recording(sample_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for name in ("mmdf", "fusion"):
        artefact = load_artefact(Path(__file__).parents[2] / "models" / name)
        done = export_model(artefact, tmp_path / name, sample_data / "sample_audvis_5s_raw.fif")
        for compared in done.compared:
            assert all(entry.problem is None for entry in compared.backends if entry.accuracy is not None)
