"""What the demonstration images with."""

from __future__ import annotations

from pathlib import Path

import pytest

from rt_mmdf.app.demo import DemoSettings, _material
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.sinks.settings import SensorStreamSettings
from rt_mmdf.solvers import artefact


def test_the_best_model_is_used_where_it_is_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(artefact, "_model_folders", lambda: [tmp_path])
    assert DemoSettings().solver() == {"method": "sLORETA"}
    (tmp_path / artefact.DEFAULT_MODEL).mkdir()
    (tmp_path / artefact.DEFAULT_MODEL / artefact.MANIFEST).touch()
    assert DemoSettings().solver() == {"model": artefact.DEFAULT_MODEL}
    assert DemoSettings(method="dSPM").solver() == {"method": "dSPM"}
    assert DemoSettings(model="mmdf").solver() == {"model": "mmdf"}


def test_one_solver_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="one of them is expected"):
        validate_settings({"model": "mmdf", "method": "MNE"}, DemoSettings, where="demo")


def test_what_a_window_shows_is_published_where_one_is_wanted(small_recording: Path) -> None:
    for view, sensors in ((True, SensorStreamSettings()), (False, None)):
        settings = DemoSettings(recording=small_recording, method="dSPM", view=view)
        _, _, config = _material(settings, "demo", lambda what, fraction: None)
        assert config.output.sensors == sensors
