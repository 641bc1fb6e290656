"""The configurations of trainings: those that ship are valid and tell the truth, wrong ones are explained."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import load_settings, validate_settings
from rt_mmdf.networks.build import default_options
from rt_mmdf.training.settings import TrainSettings

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("train_*.toml"))


def with_comments(path: Path) -> dict[str, Any]:
    """The file with every key and section that is commented out taken in."""
    text = re.sub(r"^# ?(\w+ = |\[[a-z.]+\])", r"\1", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return tomllib.loads(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_valid_and_so_is_what_is_commented_out(path: Path) -> None:
    assert load_settings(path, TrainSettings).name == path.stem.removeprefix("train_")
    validate_settings(with_comments(path), TrainSettings, where=path.name)


def test_there_is_one_for_each_network_that_ships() -> None:
    assert {path.name for path in FILES} >= {"train_mmdf.toml", "train_fusion.toml", "train_sample.toml"}


def test_the_commented_example_has_the_defaults_it_claims() -> None:
    path = CONFIGS / "train_mmdf.toml"
    written, plain = load_settings(path, TrainSettings), TrainSettings(version=1, name="mmdf")
    text = path.read_text(encoding="utf-8")
    content = tomllib.loads(text)
    others = set(re.findall(r"^(\w+) = .*# not the default", text, flags=re.MULTILINE))
    assert others
    for section in ("batches", "loop", "scenes", "validation", "head"):
        for key in content[section]:
            is_default = getattr(getattr(written, section), key) == getattr(getattr(plain, section), key)
            assert is_default == (key not in others), f"{section}.{key}"
    assert written.network.options == {"loss": "relative"}
    options = with_comments(path)["network"]["options"]
    assert options.keys() == default_options("mmdf").keys()


def wrong(change: dict[str, Any], message: str) -> Any:
    return pytest.param(change, message, id=message[:30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        wrong({"version": 2}, r"version: rt_mmdf .* reads configurations of version 1.*\(seen: 2\)"),
        wrong({"version": True}, r"version: rt_mmdf .* reads configurations of version 1.*\(seen: True\)"),
        wrong({"version": 1.5}, r"version: .*\(seen: 1.5\)"),
        wrong({"nam": "x"}, r"nam: unknown key. Known here: batches, "),
        wrong({"loop": {"step": 3}}, r"loop.step: unknown key. Known here: .*steps"),
        wrong({"loop": {"steps": 0}}, r"loop: steps = 0: at least 1 is expected"),
        wrong({"loop": {"learning_rate": "fast"}}, r"loop.learning_rate: .*valid number.*\(seen: 'fast'\)"),
        wrong({"loop": {"learning_rate": float("inf")}}, r"loop: learning_rate = inf: a finite number"),
        wrong({"loop": {"learning_rate": 0.0}}, r"loop: learning_rate = 0.0: more than 0 is expected"),
        wrong({"loop": {"clip_norm": float("nan")}}, r"loop.clip_norm: nan seen; a number is expected"),
        wrong({"batches": {"snr_db": [3.0, 1.0]}}, r"batches: snr_db = \(3.0, 1.0\): two rising numbers"),
        wrong({"network": {"kind": "fusion", "options": {"width": 7}}}, r"option width = 7 seen; .*multiple of 2"),
        wrong({"batches": {"sise": 3}}, r"batches.sise: unknown key. Known here: .*size"),
        wrong({"batches": {"n_sources": [3, 1]}}, r"batches: n_sources = \(3, 1\): two rising numbers"),
        wrong({"network": {"kind": "mmmdf"}}, r"network.kind: one of mmdf, mmdf-eeg"),
        wrong({"network": {"kind": "convdip", "options": {"width": 3}}}, r"network convdip: unknown option 'width'"),
        wrong({"scenes": {"n": 3, "seed": 1001}}, r"scenes.seed and validation.seed are both 1001"),
        wrong({"head": {"folders": "x"}}, r"head.folders: unknown key. Known here: eeg, folder"),
        wrong({"name": "../elsewhere"}, r"name: letters, digits"),
    ],
)
def test_wrong_keys_and_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        validate_settings({"version": 1} | change, TrainSettings, where="configuration x.toml")


def test_a_configuration_without_a_version_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="version: missing"):
        validate_settings({"name": "x"}, TrainSettings, where="configuration x.toml")
