"""The real recording, a configuration for it, and what it gives offline: shared by the tests of everything live."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import mne
import numpy as np
import pytest
import torch
from scipy.signal import sosfilt, sosfilt_zi

from rt_mmdf.app.engine import Engine
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.session import Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import SourceEstimate
from rt_mmdf.core.channels import Modality
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
from rt_mmdf.headmodel.subject import build_subject
from rt_mmdf.headmodel.whitener import imaging_info, make_whitener
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.networks.build import build_network
from rt_mmdf.solvers.artefact import save_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays

BENCH = Path(__file__).parents[2] / "tools" / "bench"


@pytest.fixture(scope="module")
def load_bench() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of tools/bench by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))  # scripts add their own folder
        patch.syspath_prepend(str(BENCH))

        def load(name: str) -> ModuleType:
            spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, module)
            spec.loader.exec_module(module)
            return module

        yield load


class Live(Protocol):
    """What imaged live."""

    engine: Engine
    imaging: Imaging


class Offline:
    """The same causal filters on all samples at once, then mne's own inverse."""

    def __init__(self, raw: mne.io.BaseRaw) -> None:
        self.raw = raw

    def in_file_order(self, live: Live) -> np.ndarray:
        """(n_channels, n_times) of the file, as they went over the wire: float32, in the order of the engine's channels."""
        names = live.imaging.channels.names
        return self.raw.get_data([self.raw.ch_names.index(name) for name in names]).astype(np.float32).astype(np.float64)

    def filtered(self, live: Live, data: np.ndarray) -> np.ndarray:
        """As if the first sample had lasted forever."""
        sos = live.engine.chain.cleaning.filter.sos
        filtered, _ = sosfilt(sos, data, axis=1, zi=sosfilt_zi(sos)[:, None, :] * data[:, :1])
        return filtered

    def image(self, live: Live, data: np.ndarray) -> np.ndarray:
        """(n_sources, n_times) of unfiltered data of the engine's channels."""
        imaging = live.imaging
        good = [name for name in imaging.channels.names if name not in imaging.bads]
        info = imaging_info(imaging.head.info, good, imaging.projectors)
        with info._unlock():
            info["sfreq"] = self.raw.info["sfreq"]
        forward = mne.pick_channels_forward(imaging.head.forward, good, ordered=True, verbose="ERROR")
        inverse = mne.minimum_norm.make_inverse_operator(
            info, forward, imaging.noise_cov, loose=0, fixed=True, depth=imaging.solver.depth, verbose="ERROR"
        )
        rows = imaging.channels.indices(good)
        return mne.minimum_norm.apply_inverse_raw(
            mne.io.RawArray(self.filtered(live, data)[rows], info, verbose="ERROR"),
            inverse,
            imaging.solver.lambda2,
            imaging.solver.method,
            pick_ori=None,
            verbose="ERROR",
        ).data

    @staticmethod
    def resampled(live: Live, data: np.ndarray, times: np.ndarray, ahead: dict[Modality, int] | None = None) -> np.ndarray:
        """`data` at the time maps that the engine reports, by a Hann-windowed sinc of 128 samples: nothing of the engine's
        own resampler. `ahead`: samples of `data` before the first that was received."""
        reach, out = 64, np.empty((len(data), len(times)))
        for modality in Modality:
            rows = live.imaging.channels.of_modality(modality)
            position = live.engine.intake.aligner.time_map(modality).indices_at(times) + (ahead or {}).get(modality, 0)
            for j, (k, p) in enumerate(zip(np.floor(position).astype(int), position, strict=True)):
                at = np.arange(k - reach + 1, k + reach + 1)
                weights = np.sinc(at - p) * np.cos(np.pi * (at - p) / (2 * reach)) ** 2
                out[rows, j] = data[rows][:, np.clip(at, 0, data.shape[1] - 1)] @ (weights / weights.sum())
        return out

    @staticmethod
    def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="session")
def raw(sample_data: Path) -> mne.io.BaseRaw:
    return mne.io.read_raw_fif(sample_data / "sample_audvis_5s_raw.fif", preload=True, verbose="ERROR")


@pytest.fixture(scope="session")
def offline(raw: mne.io.BaseRaw) -> Offline:
    return Offline(raw)


@pytest.fixture(scope="session")
def head_folder(sample_data: Path, raw: mne.io.BaseRaw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head model of the recording's subject."""
    names = ("sample-trans.fif", "sample-oct5-src.fif", "sample-320-320-320-bem-sol.fif")
    folder = tmp_path_factory.mktemp("head")
    build_subject(raw.info, *(sample_data / name for name in names), name="sample").save(folder)
    return folder


@pytest.fixture(scope="session")
def sample_content(head_folder: Path, sample_data: Path, raw: mne.io.BaseRaw) -> Callable[..., dict[str, Any]]:
    """Plain values of a configuration for the recording from streams called PREFIX-EEG and PREFIX-MEG."""

    def content(*, method: str = "dSPM", grid: str = "samples", prefix: str = "s") -> dict[str, Any]:
        return {
            "name": prefix,
            "acquisition": {"eeg": {"name": f"{prefix}-EEG"}, "meg": {"name": f"{prefix}-MEG"}},
            "alignment": {"grid": grid},
            "hop_ms": 20,
            "budget_ms": 1e6,
            "preprocessing": {
                "filters": {"band_pass": {"low_hz": 1.0, "high_hz": 40.0}, "notch": {"freqs_hz": [60.0]}},
                "bads": raw.info["bads"],
                "bad_channels": {"enabled": False},
                "projections": str(sample_data / "sample_audvis_5s_raw.fif"),
            },
            "head": {"folder": str(head_folder)},
            "noise": {"file": str(sample_data / "sample_audvis-cov.fif")},
            "solver": {"method": method},
        }

    return content


@pytest.fixture(scope="session")
def sample_settings(sample_content: Callable[..., dict[str, Any]]) -> Callable[..., SessionSettings]:
    """The same, validated."""
    return lambda **given: SessionSettings.model_validate(sample_content(**given))


class Lab:
    """Streams in memory, and a session that images them without threads, as fast as it can."""

    def __init__(self) -> None:
        self.clock = ManualClock(2000.0)
        self.transport = MemoryTransport(self.clock, uncertainty_s=1e-5)
        self.looks: list[Callable[[float], None]] = []  # called after each step with the seconds since the begin
        self._sending: list[tuple[Any, np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]] = []

    def publish(self, description: StreamDescription, data: np.ndarray, sfreq: float | None = None) -> None:
        """Send (n_times, n_channels) from the moment of `image` on, truly at `sfreq`."""
        times = 0.3 + np.arange(len(data)) / (sfreq or description.sfreq)
        self._sending.append((self.transport.outlet(description), data, times, lambda true: true))

    def publish_events(self, name: str, events: list[tuple[float, str]], machine: MemoryTransport | None = None) -> None:
        """Send texts at these times from the moment of `image` on, stamped by the clock of that machine."""
        machine = machine or self.transport
        outlet = machine.outlet(StreamDescription(name, "Markers", name, 0.0, "string", (ChannelDescription("m"),), {}))
        at = getattr(machine.clock, "at", lambda time: time)
        texts = np.array([text for _, text in events], dtype=object)
        times = np.array([time for time, _ in events])
        self._sending.append((outlet, texts, times, lambda true: np.array([at(time) for time in true])))

    def publish_recording(self, raw: mne.io.BaseRaw, seconds: dict[str, float] | None = None, repeat: int = 1) -> None:
        """Send a recording of EEG and MEG as two streams, ``a-EEG`` and ``a-MEG``, of which each may end early."""
        unit = {"eeg": "V", "mag": "T", "grad": "T/m"}
        for modality in Modality:
            picks = mne.pick_types(raw.info, meg=modality == "meg", eeg=modality == "eeg", exclude=[])
            channels = tuple(
                ChannelDescription(raw.ch_names[i], kind, unit[kind])
                for i, kind in zip(picks, raw.get_channel_types(picks), strict=True)
            )
            name, sfreq = f"a-{modality.upper()}", raw.info["sfreq"]
            data = np.tile(raw.get_data(picks).T.astype(np.float32), (repeat, 1))
            n = round((seconds or {}).get(modality, np.inf if repeat else 0.0) * sfreq) if seconds else len(data)
            self.publish(StreamDescription(name, modality.upper(), f"id-{name}", sfreq, "float32", channels, {}), data[:n])

    def session(self, content: dict[str, Any], **given: Any) -> Session:
        return Session(SessionSettings.model_validate(content), self.transport, **given)

    def image(self, content: dict[str, Any]) -> tuple[Session, list[SourceEstimate]]:
        """Everything that was published, imaged; the session is stopped."""
        estimates: list[SourceEstimate] = []
        session = self.session(content, on_estimate=estimates.append)
        self.run(session)
        return session, estimates

    @staticmethod
    def pump_optional(session: Session) -> None:
        """What the workers of the optional streams do, without the threads."""
        optional = session.optional
        if optional.average is not None:
            optional.average.receiver.step()
            optional.average.measure_clock()
        if optional.second is not None:
            optional.second.operators.step(0.0)
            optional.second.step(0.0)
        for part in (optional.sensors, optional.average, optional.marks):
            if part is not None:
                part.step()

    def round(self, session: Session, step: int) -> None:
        """What the workers of a session do, without the threads: every 25th time they ask for the clocks."""
        for receiver in session.intake.receivers.values():
            receiver.step()
        if step % 25 == 1:
            for _ in session.intake.receivers:
                session.intake.watch.step()
        session._pump()
        self.pump_optional(session)

    def run(self, session: Session) -> None:
        """Send everything that was published, and stop the session."""
        for _ in self.steps(session):
            pass

    def steps(self, session: Session) -> Iterator[float]:
        """The same, step by step: seconds since the begin."""
        try:
            for key in session.imaging.keys_in_advance():
                session.operators.offer(key)
            began, sent = self.clock.now(), [0] * len(self._sending)
            for step in range(1, 1 + round(50 * max(times[-1] + 0.05 for _, _, times, _ in self._sending))):
                now = self.clock.move_to(max(began + step / 50, self.clock.now()))  # a slow engine may have moved it
                for i, (outlet, data, times, stamps) in enumerate(self._sending):
                    stop = int(np.searchsorted(began + times, now))
                    if stop > sent[i]:
                        outlet.push(data[sent[i] : stop], stamps(began + times[sent[i] : stop]))
                        sent[i] = stop
                self.round(session, step)
                for look in self.looks:
                    look(step / 50)
                yield step / 50
        finally:
            session.stop()


@pytest.fixture
def lab() -> Lab:
    return Lab()


RATE = 250.0  # of the small recording
MODEL_OPTIONS = {
    "mmdf": {"hidden": 8},
    "fusion": {"n_times": 20, "width": 16, "n_blocks": 1, "n_likely": 64},
}


@pytest.fixture(scope="session")
def small_recording(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of sensor noise, EEG and MEG at 250 Hz, of the template's 366 channels: a FIF file."""
    info = template_head_ico3.info.copy()
    with info._unlock():
        info["sfreq"] = RATE
    level = {"eeg": 5e-6, "mag": 2e-13, "grad": 5e-12}
    white = np.random.default_rng(3).normal(size=(len(info["ch_names"]), round(2 * RATE)))
    data = white * np.array([level[kind] for kind in info.get_channel_types()])[:, None]
    path = tmp_path_factory.mktemp("small") / "small_raw.fif"
    mne.io.RawArray(data, info, verbose="ERROR").save(path, fmt="double", verbose="ERROR")
    return path


@pytest.fixture(scope="session")
def small_content() -> Callable[..., dict[str, Any]]:
    """Plain values of a configuration for the small recording, on the template with 1284 sources."""

    def content(prefix: str, modalities: tuple[str, ...] = ("eeg", "meg")) -> dict[str, Any]:
        return {
            "name": prefix,
            "acquisition": {m: {"name": f"{prefix}-{m.upper()}", "resolve_timeout_s": 20.0} for m in modalities},
            "budget_ms": 1e6,
            "start_timeout_s": 60.0,
            "alignment": {"grid": "samples"},
            "preprocessing": {"bad_channels": {"enabled": False}},
            "head": {"spacing": "ico3"},
        }

    return content


@pytest.fixture(scope="session")
def as_toml() -> Callable[[dict[str, Any], Path], Path]:
    """Writes plain values as a TOML file; JSON's strings, numbers, booleans and arrays are TOML's."""

    def lines(table: dict[str, Any], at: str = "") -> Iterator[str]:
        yield from (f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict))
        for key, value in table.items():
            if isinstance(value, dict):
                yield f"[{at}{key}]"
                yield from lines(value, f"{at}{key}.")

    def write(content: dict[str, Any], path: Path) -> Path:
        path.write_text("\n".join(lines(content)) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def models(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model of each sort, random weights."""
    head, folder = template_head_ico3, tmp_path_factory.mktemp("models")
    noise_cov = ad_hoc_noise_cov(head.channels)
    whitener = make_whitener(head.channels, head.ch_names, head.info, noise_cov)
    for kind, options in MODEL_OPTIONS.items():
        torch.manual_seed(2)
        network = build_network(kind, options, forward_arrays(head, whitener, head.ch_names))
        with torch.no_grad():
            for values in network.parameters():
                values += 0.02 * torch.randn_like(values)
        save_artefact(folder / kind, network, head, noise_cov, name=f"tiny-{kind}", card="")
    return folder
