"""The cache is this user's own: closed to others, and nothing is read that others may have put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rt_mmdf.core import files
from rt_mmdf.headmodel.cache import cached


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "value").write_text("true")


def load(folder: Path) -> str:
    return (folder / "inner" / "value").read_text()


def take() -> str:
    return cached("thing", {"a": 1}, make, load)


def entry_of(folder: Path) -> Path:
    (entry,) = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return entry


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_folders_and_files_are_closed_to_others(folder: Path) -> None:
    before = os.umask(0)  # whatever a person's files usually are
    try:
        assert take() == "true"
    finally:
        os.umask(before)
    entry = entry_of(folder)
    assert [mode(p) for p in (folder, entry, entry / "inner", entry / "inner" / "value")] == [0o700, 0o700, 0o700, 0o600]


def test_an_entry_that_others_may_have_changed_is_not_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert take() == "true"
    value = entry_of(folder) / "inner" / "value"
    value.write_text("false")
    assert take() == "false"  # it is believed, as the user's own
    for path, wrong in ((value, 0o606), (value.parent, 0o770), (entry_of(folder), 0o701)):
        right = mode(path)
        path.chmod(wrong)
        caplog.clear()
        assert take() == "true"
        assert "not used" in caplog.text
        assert f"mode {wrong:o}" in caplog.text
        path.chmod(right)
    assert take() == "false"  # nothing was put in its place


@pytest.mark.parametrize("inner", [False, True])
def test_links_are_not_followed(folder: Path, tmp_path: Path, inner: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert take() == "true"
    path = entry_of(folder) / "inner" if inner else entry_of(folder)
    path.rename(tmp_path / "elsewhere")
    value = tmp_path / "elsewhere" / ("value" if inner else "inner/value")
    value.write_text("false")
    path.symlink_to(tmp_path / "elsewhere")
    assert take() == "true"
    assert "no plain file of its own" in caplog.text if inner else "no folder of its own" in caplog.text
    assert path.is_symlink()
    assert value.read_text() == "false"


def test_what_belongs_to_another_user_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert take() == "true"
    (entry_of(folder) / "inner" / "value").write_text("false")
    monkeypatch.setattr(files.os, "geteuid", lambda: os.getuid() + 1)
    assert take() == "true"
    assert "belongs to user" in caplog.text


def test_a_cache_that_is_a_link_is_not_used(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert take() == "true"
    assert "nothing is kept" in caplog.text
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_cache_that_others_may_write_to_is_closed(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert take() == "true"
    assert mode(folder) == 0o755
