"""The wheel holds all that the package needs, and works away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rt_mmdf
from rt_mmdf.solvers.artefact import DEFAULT_MODEL, MANIFEST

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def pip(*words: str | Path) -> None:
    # without isolation and dependencies: no network is needed
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_its_configurations_and_models_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "rt_mmdf").rglob("*.py")}
    configurations = {f"rt_mmdf/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.toml")}
    models = {f"rt_mmdf/models/{path.relative_to(ROOT / 'models')}" for path in (ROOT / "models").rglob("*.*")}
    assert configurations
    assert f"rt_mmdf/models/{DEFAULT_MODEL}/{MANIFEST}" in models
    assert sources | configurations | models <= names
    others = {name for name in names - sources - configurations - models if ".dist-info/" not in name}
    assert {Path(name).suffix for name in others} <= {".md"}, others


@pytest.mark.lsl
def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--no-deps", "--target", site, wheel)
    # before the editable install of the checkout on the search path
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def call(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout

    where = call(sys.executable, "-c", "import rt_mmdf.cli.main; print(rt_mmdf.__file__)")
    assert Path(where.strip()).is_relative_to(site)
    assert call(str(site / "bin" / "rt-mmdf"), "--version").strip() == f"rt-mmdf {rt_mmdf.__version__}"
    assert "replay" in call(str(site / "bin" / "rt-mmdf"), "--help")
    # the demonstration, with the best model that ships
    words = ("--seconds", "5", "--spacing", "ico3", "--no-view", "--out", "out", "--report", "report.json")
    call(str(site / "bin" / "rt-mmdf"), "demo", *words)
    seen = json.loads((tmp_path / "report.json").read_text())
    assert seen["solver"] == DEFAULT_MODEL
    assert seen["n_sources"] == 1284
    assert seen["estimates"] > 100
    assert seen["le_mm"]["median"] < 40
    assert Path(seen["model"]["folder"]).is_relative_to(site)
    assert (tmp_path / "out" / "source_map.png").is_file()
