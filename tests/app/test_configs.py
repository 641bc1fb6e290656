"""Every file in configs/ can be used as it is, and says the truth about the defaults."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rt_mmdf.acquisition.replay import ReplaySettings
from rt_mmdf.app.settings import AverageSettings, SessionSettings
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.settings import load_settings, validate_settings
from rt_mmdf.sinks.settings import FileSettings, RecordSettings, SensorStreamSettings

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.glob("*.toml") if not path.name.startswith("train_"))  # those: tests/training


def kind_of(path: Path) -> type[ReplaySettings] | type[SessionSettings]:
    return ReplaySettings if path.name.startswith("replay") else SessionSettings


def with_comments(path: Path) -> dict[str, Any]:
    """The file with every key and section that is commented out taken in."""
    text = re.sub(r"^# ?(\w+ = |\"[\w ]+\" = |\[[a-z_.]+\])", r"\1", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return tomllib.loads(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_valid_and_so_is_what_is_commented_out(path: Path) -> None:
    load_settings(path, kind_of(path))
    content = with_comments(path)
    if "folder" in content.get("head", {}):
        content["head"].pop("recording", None)  # either or
    if content.get("solver", {}).pop("model", None) is not None:  # either or
        validate_settings(content | {"solver": {"model": "fusion", "refresh_ms": 50.0}}, kind_of(path), where=path.name)
    validate_settings(content, kind_of(path), where=path.name)


def test_there_is_one_for_each_use() -> None:
    assert {path.name for path in FILES} >= {"monitor.toml", "sample.toml", "sample_average.toml", "replay_two_devices.toml"}


def test_the_commented_example_has_every_key_with_its_default() -> None:
    plain = SessionSettings.model_validate({"acquisition": {"eeg": {"name": "BrainAmp"}, "meg": {"name": "Neuromag"}}})
    assert load_settings(CONFIGS / "monitor.toml", SessionSettings) == plain

    def keys(content: dict[str, Any], at: str = "") -> set[str]:
        found = set()
        for key, value in content.items():
            found.add(f"{at}{key}")
            if isinstance(value, dict) and key not in ("rename", "types", "events", "reject", "markers"):
                found |= keys(value, f"{at}{key}.")
        return found

    sections = {"files": FileSettings, "sensors": SensorStreamSettings, "record": RecordSettings}
    output = {name: dict.fromkeys(kind.model_fields, 0) for name, kind in sections.items()}
    update = {
        "output": plain.output.model_copy(update=output),
        "second_solver": {"method": 0},  # its keys are those of [solver]
        "average": dict.fromkeys(AverageSettings.model_fields, 0),
    }
    filled = plain.model_copy(update=update)
    known = {key for key in keys(filled.model_dump(mode="json", warnings=False)) if not key.startswith("acquisition.meg.")}
    assert keys(with_comments(CONFIGS / "monitor.toml")) - {"acquisition.meg.name"} == known


def test_the_sample_configuration_images_what_replay_sends_by_default() -> None:
    settings = load_settings(CONFIGS / "sample.toml", SessionSettings)
    names = {f"acquisition.{m}": ReplaySettings().name_of(m) for m in Modality}
    assert {f"acquisition.{m}": stream.name for m, stream in settings.acquisition.items()} == names
    assert settings.preprocessing.bads == ("MEG 2443", "EEG 053")
    assert settings.hop_ms * 300.307 / 1000 == pytest.approx(round(settings.hop_ms * 0.300307), abs=0.01)
