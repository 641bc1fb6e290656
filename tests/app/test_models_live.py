"""Trained models and the beamformer in a session: the numbers of offline, their names told, what does not fit refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import torch
from scipy.signal import sosfilt, sosfilt_zi

from rt_mmdf.backends.choice import Choice, Programs, why_not
from rt_mmdf.backends.interface import BackendUnavailable
from rt_mmdf.backends.onnxruntime_backend import OnnxRuntimeRunner
from rt_mmdf.backends.torch_backend import TorchRunner
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.core.errors import ArtefactError, ConfigurationError, RtMmdfError, SolverError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov, save_noise_cov
from rt_mmdf.headmodel.whitener import make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.fusion_graph import WindowModule
from rt_mmdf.solvers.artefact import load_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.solvers.operators import build_beamformer

Lab = Any  # the fixture's class lives in conftest.py
SFREQ = 250.0


@pytest.fixture
def content(small_content: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    plain = small_content("a")
    del plain["head"]
    band = {"band_pass": {"low_hz": 1.0, "high_hz": 40.0}}
    return plain | {"preprocessing": {"bad_channels": {"enabled": False}, "filters": band}}


@pytest.fixture(scope="module")
def sensors(small_recording: Path, template_head_ico3: HeadModel) -> mne.io.BaseRaw:
    """Noise, and one strong source: on noise alone the sixth digit decides which patches an untrained fusion takes."""
    raw = mne.io.read_raw_fif(small_recording, preload=True, verbose="ERROR")
    raw._data += np.outer(template_head_ico3.leadfield(raw.ch_names)[:, 700], 5e-6 * np.sin(2 * np.pi * 7 * raw.times))
    return raw


def cleaned(session: Any, raw: mne.io.BaseRaw, repeat: int = 1) -> np.ndarray:
    """All samples behind the causal filters of the session, in the order of its channels."""
    rows = [raw.ch_names.index(name) for name in session.imaging.channels.names]
    data = np.tile(raw.get_data()[rows].astype(np.float32).astype(np.float64), (1, repeat))
    sos = session.engine.chain.cleaning.filter.sos
    return sosfilt(sos, data, axis=1, zi=sosfilt_zi(sos)[:, None, :] * data[:, :1])[0]


def joined(estimates: list[SourceEstimate]) -> tuple[np.ndarray, np.ndarray]:
    return np.hstack([e.data for e in estimates]), np.concatenate([e.flags for e in estimates])


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("kind", ["mmdf", "fusion"])
def test_live_is_the_network_offline_and_says_its_name(
    kind: str, backend: str, lab: Lab, content: dict[str, Any], models: Path, sensors: mne.io.BaseRaw, tmp_path: Path
) -> None:
    content["solver"] = {"model": str(models / kind), "refresh_ms": 20, "lag_ms": 12, "backend": backend}
    content["output"] = {"files": {"prefix": str(tmp_path / "estimates")}}
    lab.publish_recording(sensors)
    session, estimates = lab.image(content)
    data, flags = joined(estimates)
    assert estimates[0].first == 0
    assert data.shape[0] == 1284
    assert data.shape[1] > 450
    assert not (flags & np.uint32(Flag.INVALID)).any()
    # offline: the operator's whitener, the network as it was trained, the window at the instants of refreshing
    artefact, operator = load_artefact(models / kind), session.imaging.build(session.imaging.full_key())
    whitened = (operator.whitener.matrix @ cleaned(session, sensors)).astype(np.float32)
    head, names = session.imaging.head, session.imaging.channels.names
    assert set(names) == set(artefact.channels.names)
    order = [names.index(name) for name in head.ch_names] if kind == "mmdf" else list(range(366))
    whitener = make_whitener(head.channels, head.ch_names, head.info, artefact.noise_cov)
    if kind == "fusion":
        whitener = operator.whitener
    network = build_network(artefact.kind, artefact.options, arrays := forward_arrays(head, whitener, head.ch_names))
    network.load_state_dict({key: torch.from_numpy(values.copy()) for key, values in artefact.weights.items()})
    prepared, seen = network.eval().prepare(arrays), torch.from_numpy(whitened[order])
    step, refresh, lag = 2, 5, 3  # 250 Hz to about 100 Hz; 20 and 12 ms
    size = np.linalg.norm(whitened, axis=0)
    # the window is full there: the very first sample behind a filter is zero, and counts as unknown
    for t in (start + int(size[start : start + 50].argmax()) for start in (62, 150, 300)):
        t0 = (t - lag) // refresh * refresh
        window = seen[None, :, t0 % step : t0 + 1 : step][:, :, -network.n_times :] if network.n_times > 1 else None
        with torch.inference_mode():
            if kind == "fusion":
                prior = network.prior(seen[None, :, t0], window, prepared)
                expected = network.estimate(seen[None, :, t], prior, prepared).moments[0].numpy() * 1e-9
            else:
                expected = network(seen[None, :, t], None, prepared).moments[0].numpy() * 1e-9
        assert np.linalg.norm(data[:, t] - expected) < 2e-2 * np.linalg.norm(expected)
    # who it was
    name = f"tiny-{kind}"
    card = session.scorecard().as_dict()
    assert (card["solver"], card["unit"], card["n_sources"]) == (name, "A m", 1284)
    assert card["model"]["network"] == kind
    assert card["model"]["weights_sha256"] == artefact.weights_sha256
    assert card["model"]["backend"] == {"name": backend, "precision": "fp32", "device": "cpu", "fallen_back": None}
    status = session.status()["model"]
    assert status["window_backend"] == (card["model"]["backend"] if kind == "fusion" else None)
    n_windows = 0 if kind == "mmdf" else -(-data.shape[1] // refresh)
    assert (status["windows"], status["late_windows"], status["lag_ms"]) == (n_windows, 0, 12.0 if n_windows else 0.0)
    described = session.outlets.streams[0]
    assert described.extra["estimate/solver"] == name
    assert described.extra["estimate/unit"] == "A m"
    assert {channel.unit for channel in described.channels} == {"A m"}
    with np.load(tmp_path / "estimates-000-info.npz") as info:
        assert (str(info["solver"]), str(info["unit"])) == (name, "A m")


@pytest.mark.parametrize("kind", ["mmdf", "fusion"])
def test_a_model_goes_on_when_a_stream_stops(
    kind: str, lab: Lab, content: dict[str, Any], models: Path, sensors: mne.io.BaseRaw
) -> None:
    content["solver"] = {"model": str(models / kind)}
    content["preprocessing"]["bads"] = ["MEG 0113", "EEG007"]
    lab.publish_recording(sensors, {"eeg": 0.8, "meg": 2.0})
    _, estimates = lab.image(content)
    data, flags = joined(estimates)
    without = (flags & np.uint32(Flag.EEG_MISSING)) != 0
    assert without.sum() > 100
    assert (~without).sum() > 100
    assert not (flags & np.uint32(Flag.INVALID)).any()
    assert np.isfinite(data).all()
    assert (np.abs(data).max(axis=0) > 0).all()


def refused(lab: Lab, content: dict[str, Any], kind: type[RtMmdfError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        lab.session(content)
    for part in parts:
        assert part in str(caught.value)


def test_what_does_not_fit_a_model_is_told(
    lab: Lab,
    content: dict[str, Any],
    models: Path,
    sensors: mne.io.BaseRaw,
    template_head_ico3: HeadModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab.publish_recording(sensors)
    bound, free = {"solver": {"model": str(models / "mmdf")}}, {"solver": {"model": str(models / "fusion")}}
    refused(lab, content | {"solver": {"model": "no-such"}}, ArtefactError, "model 'no-such'", "Models at hand")
    noise = tmp_path / "rest-cov.fif"
    save_noise_cov(ad_hoc_noise_cov(template_head_ico3.channels), noise)
    own_noise = {"noise": {"file": str(noise)}}
    refused(lab, content | bound | own_noise, ConfigurationError, "noise.file", "tiny-mmdf", "Leave it out")
    lab.session(content | free | own_noise).stop()
    preprocessing = content["preprocessing"]
    high = {"preprocessing": preprocessing | {"filters": {"band_pass": {"low_hz": 1.0, "high_hz": 80.0}}}}
    refused(lab, content | free | high, ConfigurationError, "high_hz = 80", "window of 100 Hz", "up to 40")
    other = {"preprocessing": preprocessing | {"filters": {"band_pass": {"low_hz": 0.5, "high_hz": 30.0}}}}
    with caplog.at_level(logging.WARNING):
        lab.session(content | free | other).stop()
    assert "'tiny-fusion' was trained on 1 to 40 Hz; the filters pass 0.5 to 30 Hz" in caplog.text
    assert "no noise covariance is configured: that of model 'tiny-fusion' is used" in caplog.text
    # a head of its own: the network of any head takes it, the other one only if it is the same
    lab.session(content | bound | {"head": {"spacing": "ico3"}}).stop()
    moved = HeadModel(
        "moved", "subject", template_head_ico3.forward.copy(), template_head_ico3.info, template_head_ico3.hemispheres, {}
    )
    moved.forward["sol"] = {**moved.forward["sol"], "data": moved.forward["sol"]["data"] * 1.1}
    moved.forward["_orig_sol"] = moved.forward["_orig_sol"] * 1.1
    moved.save(tmp_path / "moved")
    configured = {"head": {"folder": str(tmp_path / "moved")}}
    refused(lab, content | bound | configured, ArtefactError, "tiny-mmdf", "differs by 0.1", "Leave out [head]")
    session = lab.session(content | free | configured)
    assert session.imaging.head.name == "moved"
    session.stop()


def test_a_window_is_never_shorter_than_the_model_asks_for(
    lab: Lab, content: dict[str, Any], models: Path, sensors: mne.io.BaseRaw
) -> None:
    lab.publish_recording(sensors)
    content["solver"] = {"model": str(models / "fusion")}
    lengths = {}
    for window_ms in (None, 50.0, 400.0):
        session = lab.session(content | ({} if window_ms is None else {"window_ms": window_ms}))
        lengths[window_ms] = session.engine.chain.imager.window_length
        session.stop()
    assert lengths[None] == 19 * 2 + round(0.001 * content.get("hop_ms", 10.0) * SFREQ)  # 20 columns, each second sample
    assert lengths[50.0] == lengths[None]
    assert lengths[400.0] == 0.4 * SFREQ


def test_the_beamformer_begins_when_it_has_data_and_follows_them(
    lab: Lab, content: dict[str, Any], sensors: mne.io.BaseRaw, template_head_ico3: HeadModel
) -> None:
    content["head"] = {"spacing": "ico3"}
    content["preprocessing"]["filters"]["max_settling_s"] = 0.4
    content["solver"] = {"method": "LCMV", "lcmv": {"data_s": 2.0, "least_s": 1.0, "refresh_s": 0.5}}
    lab.publish_recording(sensors, repeat=2)
    refreshed: list[int] = []
    session = lab.session(content, on_estimate=(estimates := []).append)
    covariances = []

    def build_at_once() -> None:  # what the worker does, without the thread
        refreshed.append(len(estimates))
        covariances.append(session.imaging.data_cov.covariance()[0])
        session.operators.step(0.0)

    want = session.imaging.data_cov.on_refresh
    session.imaging.data_cov.on_refresh = lambda: (want(), build_at_once())
    lab.run(session)
    data, flags = joined(estimates)
    n_hop = estimates[0].n_times
    invalid = (flags & np.uint32(Flag.INVALID)) != 0
    first = int(np.argmin(invalid))
    # nothing before the filters have settled and a second has passed; then always
    assert first == (refreshed[0]) * n_hop
    assert 1.0 * SFREQ <= first <= 2.1 * SFREQ
    assert (flags[:first] & np.uint32(Flag.OPERATOR_PENDING)).all()
    assert np.isnan(data[:, :first]).all()
    assert not invalid[first:].any()
    assert len(refreshed) >= 4
    # each piece is imaged with the covariance of the moment
    imaging, whole = session.imaging, cleaned(session, sensors, 2)
    for start, stop, cov in zip(refreshed, [*refreshed[1:], len(estimates)], covariances, strict=True):
        piece = slice(start * n_hop, min(stop * n_hop, whole.shape[1]))
        operator = build_beamformer(
            imaging.head, imaging.channels, imaging.noise_cov, cov, imaging.projectors, imaging.solver
        )
        whitened = (operator.whitener.matrix @ whole[:, piece]).astype(np.float32)
        expected = operator.solver(whitened, whitened.shape[1])
        got = data[:, piece]
        assert np.linalg.norm(got - expected[:, : got.shape[1]]) < 1e-3 * np.linalg.norm(expected)
    assert session.scorecard().solver == "LCMV"
    # the covariance is that of the newest two seconds of what was usable
    settled = np.flatnonzero((flags & np.uint32(Flag.SETTLING)) == 0)
    n_parts = len(settled) // 125
    newest = settled[max(0, n_parts - 4) * 125 : n_parts * 125]
    assert np.linalg.norm(covariances[-1] - np.cov(whole[:, newest])) < 1e-3 * np.linalg.norm(covariances[-1])


def test_a_classical_session_does_not_import_torch() -> None:
    program = """
import sys
import rt_mmdf.cli.main, rt_mmdf.cli.monitor
from rt_mmdf.app.session import Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport

transport = MemoryTransport(ManualClock())
names = [name for name in build_template(spacing="ico3").ch_names if name.startswith("EEG")]
channels = tuple(ChannelDescription(name, "eeg", "V") for name in names)
outlet = transport.outlet(StreamDescription("e", "EEG", "e", 250.0, "float32", channels, {}))
for method in ("sLORETA", "LCMV"):
    content = {"acquisition": {"eeg": {"name": "e"}}, "head": {"spacing": "ico3"}, "solver": {"method": method}}
    Session(SessionSettings.model_validate(content), transport).stop()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "False", done.stderr


def hear(lab: Lab, name: str) -> Any:
    (found,) = lab.transport.resolve(name=name, timeout_s=0.0)
    return lab.transport.inlet(found)


@pytest.mark.parametrize("kind", ["mmdf", "fusion"])
def test_a_model_beside_a_classical_inverse_images_what_it_would_alone(
    kind: str, lab: Lab, content: dict[str, Any], models: Path, sensors: mne.io.BaseRaw
) -> None:
    model = {"model": str(models / kind), "refresh_ms": 20, "backend": "torch"}
    lab.publish_recording(sensors)
    noise = {"head": {"spacing": "ico3"}}
    heard = []
    for given in (
        {"solver": model, **noise},
        {"solver": {"method": "sLORETA"}, "second_solver": model, **noise},
    ):
        session = lab.session({**content, **given})
        inlet = hear(lab, "a-second" if "second_solver" in given else "a-sources")
        lab.run(session)
        heard.append(inlet.pull(0.0)[0])
    if kind == "fusion":  # the first solver's noise is not that of the model here: nothing but the solver differs
        second = session.optional.second
        assert second.imaging.noise_cov is session.imaging.noise_cov
        assert np.isfinite(heard[1]).all()
        assert heard[1].shape == heard[0].shape
    else:  # a model that knows one noise brings it
        np.testing.assert_allclose(heard[1], heard[0], rtol=1e-5, atol=1e-6 * np.abs(heard[0]).max())


def test_a_second_model_that_knows_another_noise_is_refused(
    lab: Lab, content: dict[str, Any], models: Path, sensors: mne.io.BaseRaw
) -> None:
    content |= {"head": {"spacing": "ico3"}, "second_solver": {"model": str(models / "mmdf")}}
    content["noise"] = {"file": str(models / "mmdf" / "noise-cov.fif")}
    lab.publish_recording(sensors)
    refused(lab, content, ConfigurationError, "tiny-mmdf", "and no other")
    assert not [stream for stream in lab.transport.resolve(timeout_s=0.0) if stream.name.startswith("a-s")]


def test_averages_are_imaged_by_a_network_of_their_own(
    lab: Lab, content: dict[str, Any], models: Path, sensors: mne.io.BaseRaw
) -> None:
    content["preprocessing"]["filters"]["max_settling_s"] = 0.4
    content["solver"] = {"model": str(models / "fusion"), "refresh_ms": 20, "backend": "torch"}
    lab.publish_recording(sensors)
    lab.publish_events("stimuli", [(0.9, "1"), (1.3, "1"), (1.7, "1")])
    average = {"markers": {"name": "stimuli"}, "events": {"e": [1]}, "tmax_s": 0.2, "max_hz": 125.0, "update_s": 0}
    plain, _ = joined(lab.image(content)[1])
    estimates: list[SourceEstimate] = []
    session = lab.session({**content, "average": average}, on_estimate=estimates.append)
    inlet = hear(lab, "a-average-e")
    lab.run(session)
    np.testing.assert_array_equal(joined(estimates)[0], plain)  # what is imaged live knows nothing of it
    got, stamps = inlet.pull(0.0)
    got = got[stamps == stamps[-1]]
    averages = session.optional.average._averages
    own = averages.average("e")
    assert own.n_trials == 3
    operator = session.imaging.build(session.imaging.full_key(), at_once=True)
    whitened = np.sqrt(3) * (operator.whitener.matrix @ own.data)
    expected = operator.solver(np.asfortranarray(whitened, dtype=np.float32), whitened.shape[1]) / np.sqrt(3)
    shown = np.flatnonzero(np.rint(averages.latencies * SFREQ) % 2 == 0)
    assert len(got) == len(shown) == 38
    np.testing.assert_allclose(got.T, expected[:, shown], rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_backend_that_is_not_there_stops_the_start_and_says_what_to_do(
    lab: Lab, content: dict[str, Any], models: Path, sensors: mne.io.BaseRaw
) -> None:
    lab.publish_recording(sensors)
    for backend in ("torch-cuda", "tensorrt"):
        if why_not(backend) is not None:
            content["solver"] = {"model": str(models / "mmdf"), "backend": backend}
            refused(lab, content, BackendUnavailable, f"backend {backend}: ", "pip install")
    content["solver"] = {"model": str(models / "mmdf"), "backend": "torch", "precision": "fp16"}
    refused(lab, content, SolverError, "precision 'fp16' on torch")
    assert not [stream for stream in lab.transport.resolve(timeout_s=0.0) if stream.name.startswith("a-s")]


def test_a_backend_that_is_not_true_stops_the_start(
    lab: Lab, content: dict[str, Any], models: Path, sensors: mne.io.BaseRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = OnnxRuntimeRunner.__call__
    monkeypatch.setattr(OnnxRuntimeRunner, "__call__", lambda self, samples: 1.01 * says(self, samples))
    lab.publish_recording(sensors)
    content["solver"] = {"model": str(models / "mmdf"), "backend": "onnxruntime"}
    refused(lab, content, SolverError, "tiny-mmdf on onnxruntime (cpu): not true enough", 'or backend = "torch"')
    content["solver"] = {"model": str(models / "mmdf")}
    session = lab.session(content)
    session.stop()
    assert session.imaging.model.choice.backend == "torch"
    assert "no onnxruntime (not true enough" in session.imaging.model.choice.why


@pytest.mark.parametrize("kind", ["mmdf", "fusion"])
def test_a_device_that_fails_gives_way_to_the_processor_and_is_told(
    kind: str,
    lab: Lab,
    content: dict[str, Any],
    models: Path,
    sensors: mne.io.BaseRaw,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab.publish_recording(sensors)
    solver = {"model": str(models / kind), "refresh_ms": 20, "lag_ms": 12}
    refresh, lag = 5, 3  # samples
    content["solver"] = solver | {"backend": "torch"}
    by_torch, _ = joined(lab.image(content)[1])
    # a device that is fast, and vanishes in the middle
    calls = {"left": 10**9, "looks": 0}

    class Device(TorchRunner):
        device = "NVIDIA H100"

        def __call__(self, samples: np.ndarray) -> np.ndarray:
            of_windows = isinstance(self._module, WindowModule)
            calls["left"] -= not of_windows  # backends are tried on some windows before a run
            if calls["left"] < 0:
                raise SolverError("tiny on NVIDIA H100: the GPU has failed (CUDA error: unspecified launch failure).")
            calls["looks"] += of_windows
            return super().__call__(samples)

    def runner(self: Programs, backend: str, precision: str = "fp32") -> Any:
        if backend == "torch-cuda":
            made = Device(self.task)
            made.backend = "torch-cuda"
            return made
        if backend == "torch":
            return TorchRunner(self.task)
        raise BackendUnavailable(f"backend {backend}: not here")

    monkeypatch.setattr(Programs, "runner", runner)
    monkeypatch.setattr(
        "rt_mmdf.solvers.network.choose",
        lambda programs, trial, wanted, precision: Choice("torch-cuda", precision, "NVIDIA H100", "", wanted == "auto"),
    )

    def image(given: dict[str, Any], left: int) -> tuple[Any, np.ndarray, np.ndarray]:
        here = type(lab)()
        here.publish_recording(sensors)
        estimates: list[SourceEstimate] = []
        calls["left"] = 10**9
        session = here.session({**content, "solver": given}, on_estimate=estimates.append)
        here.looks.append(lambda seconds: session.watch.look())
        steps = here.steps(session)
        assert next(steps) < 0.3  # no sample yet, and all operators are there: from here on the device images
        calls.update(left=left, looks=0)
        for _ in steps:
            pass
        return session, *joined(estimates)

    _, by_device, _ = image(solver, 10**9)
    # the device's looks at windows take the same sums in another order
    np.testing.assert_allclose(by_device, by_torch, rtol=1e-3, atol=1e-4 * np.abs(by_torch).max())
    session, data, flags = image(solver, 20)
    given_up = [one["subject"] for one in session.incidents.status()["newest"] if one["kind"] == "backend"]
    assert given_up == {"mmdf": ["engine"], "fusion": ["engine", "windows"]}[kind]
    # A look depends on no other: up to the window that the device did not live to see the estimates are those of a device
    # that lasts, and from the sample at which that window comes into force those of torch alone.
    changed = calls["looks"] * refresh + lag if calls["looks"] else 0
    assert (0 < changed < data.shape[1] // 2) == (kind == "fusion")
    expected = np.hstack([by_device[:, :changed], by_torch[:, changed:]])
    np.testing.assert_allclose(data, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert not (flags & np.uint32(Flag.INVALID)).any()
    status = session.status()["model"]["backend"]
    assert status["name"] == "torch"
    assert "unspecified launch failure" in status["fallen_back"]
    assert "unspecified launch failure" in session.scorecard().as_dict()["model"]["backend"]["fallen_back"]
    assert caplog.text.count("imaging goes on with torch") == 1
    # what was asked for by name is not replaced in silence
    session, data, flags = image(solver | {"backend": "torch-cuda"}, 20)
    assert session.engine.counts.failed > 10
    failed = (flags & np.uint32(Flag.INVALID)) != 0
    assert np.isnan(data[:, failed]).all()
    assert np.flatnonzero(failed)[0] > 10
    assert failed[-40:].all()
    assert session.status()["model"]["backend"]["name"] == "torch-cuda"
    (told,) = [one for one in session.incidents.status()["newest"] if one["kind"] == "solver"]
    assert "unspecified launch failure" in told["detail"]
