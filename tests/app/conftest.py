"""The real recording, a configuration for it, and what it gives offline: shared by the tests of everything live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import mne
import numpy as np
import pytest
from scipy.signal import sosfilt, sosfilt_zi

from rt_mmdf.app.engine import Engine
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.headmodel.subject import build_subject
from rt_mmdf.headmodel.whitener import imaging_info


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
