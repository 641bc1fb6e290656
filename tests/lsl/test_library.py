from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rt_mmdf.lsl.library import users_configuration

TALK = "from rt_mmdf.lsl.network import NetworkTransport; NetworkTransport().resolve(name='nobody', timeout_s=0.1)"


def stderr_of_a_look_around(folder: Path, **environment: str) -> str:
    plain = {key: value for key, value in os.environ.items() if key != "LSLAPICFG"}
    done = subprocess.run(
        [sys.executable, "-c", TALK],
        cwd=folder,
        env=plain | {"HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr


@pytest.mark.lsl
@pytest.mark.skipif(Path("/etc/lsl_api/lsl_api.cfg").exists(), reason="this machine has a liblsl configuration of its own")
def test_liblsl_says_nothing_unless_its_user_has_configured_it(tmp_path: Path) -> None:
    assert stderr_of_a_look_around(tmp_path) == ""
    (tmp_path / "own.cfg").write_text("[log]\nlevel = 0\n")
    assert "own.cfg" in stderr_of_a_look_around(tmp_path, LSLAPICFG=str(tmp_path / "own.cfg"))


def test_the_users_configuration_is_found_where_liblsl_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LSLAPICFG")
    home = tmp_path / "home" / "lsl_api" / "lsl_api.cfg"
    home.parent.mkdir(parents=True)
    home.write_text("")
    assert users_configuration() == home
    Path("lsl_api.cfg").write_text("")
    assert users_configuration() == Path("lsl_api.cfg")
    monkeypatch.setenv("LSLAPICFG", "/some/where.cfg")
    assert users_configuration() == Path("/some/where.cfg")
