"""The wheel holds all that the package needs, and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rt_mmdf

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


def test_the_wheel_holds_the_package_and_the_configurations_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "rt_mmdf").rglob("*.py")}
    configurations = {f"rt_mmdf/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.toml")}
    assert configurations
    assert sources | configurations <= names
    others = {name for name in names - sources - configurations if ".dist-info/" not in name}
    assert {Path(name).suffix for name in others} <= {".md"}, others


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
