"""Files from outside have bounds; folders that are closed to others are what they say."""

from __future__ import annotations

import os
import stat
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.files import (
    MAX_TOML,
    NotPrivate,
    check_own,
    parse_toml,
    private_folder,
    read_arrays,
    read_plain,
    require_own,
)
from rt_mmdf.core.settings import Settings, load_settings


class Numbers(Settings):
    low_hz: float = 1.0
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "text",
    [
        "a." * 20_000 + "b = 1",
        "[" + "a." * 20_000 + "b]",
        '"=".' * 20_000 + "b = 1",
        "'#' . " * 20_000 + "b = 1",
        "1." * 20_000 + "1 = 1",
        "a = " + "[" * 20_000,
        "a = " + "{b = " * 20_000,
        "a = " + "9" * 5000,
        "#" * (MAX_TOML + 1),
        "a = \ud800",
    ],
)
def test_toml_that_would_take_the_machine_is_refused_at_once(text: str, tmp_path: Path) -> None:
    """tomllib takes all memory for a dotted key of 200 kB."""
    content = text.encode("utf-8", "surrogatepass")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r".+"):
            parse_toml(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"configuration .*c\.toml: "):
        load_settings(tmp_path / "c.toml", Numbers)


def test_what_is_long_and_honest_is_read() -> None:
    names = ", ".join(f'"EEG {i:03d}"' for i in range(1000))
    rates = ", ".join(f"{i}.5, -{i}.25e-3" for i in range(500))
    content = parse_toml(f"[input]\nch_names = [{names}]\nrates = [{rates}]\n".encode())
    assert (len(content["input"]["ch_names"]), len(content["input"]["rates"])) == (1000, 1000)


@pytest.mark.parametrize("text", ["low_hz = nan", "names = ['a', nan]", "low_hz = -nan"])
def test_nan_is_no_setting(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"c\.toml: (low_hz|names\.1): nan seen"):
        load_settings(tmp_path / "c.toml", Numbers)


def test_keys_and_values_cannot_write_to_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('"\\u001b[2J\\u202ex" = 1\nlow_hz = "\\u001b]0;x\\u0007"\n')
    with pytest.raises(ConfigurationError) as caught:
        load_settings(tmp_path / "c.toml", Numbers)
    assert str(caught.value).replace("\n", "").isprintable()


def test_only_plain_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    plain = tmp_path / "a"
    plain.write_bytes(b"12345")
    assert read_plain(plain, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain(plain, 4)
    (tmp_path / "link").symlink_to(plain)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    began = time.monotonic()
    for name in ("link", "pipe", "zero", "."):
        with pytest.raises(OSError):  # noqa: PT011  # of the system, in its own words
            read_plain(tmp_path / name, 5)
    with pytest.raises(OSError, match="no plain file"):
        read_plain(Path("/dev/zero"), 5)
    assert time.monotonic() - began < 60  # none of them was waited for


def test_arrays_are_bounded_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, lh_white=np.zeros((1000, 3)), other=np.ones(3))
    assert set(read_arrays(path, 1 << 20)) == {"lh_white", "other"}
    assert set(read_arrays(path, 1 << 20, ("white",))) == {"lh_white"}
    with pytest.raises(ValueError, match="unpacks to"):
        read_arrays(path, 1000)
    np.savez(path, a=np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(path, 1 << 20)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_made_closed_and_closed_to_others_writing(tmp_path: Path) -> None:
    private_folder(tmp_path / "a" / "new")
    assert mode(tmp_path / "a" / "new") == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    private_folder(shared)
    assert mode(shared) == 0o755
    (tmp_path / "link").symlink_to(shared)
    with pytest.raises(NotPrivate, match="no folder of its own"):
        private_folder(tmp_path / "link")


def test_what_may_be_somebody_elses_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("")
    path.chmod(0o644)
    require_own(path, directory=False, hidden=False)
    with pytest.raises(NotPrivate, match="mode 644: others"):
        require_own(path, directory=False, hidden=True)
    path.chmod(0o620)
    with pytest.raises(NotPrivate, match="mode 620: others"):
        require_own(path, directory=False, hidden=False)
    with pytest.raises(NotPrivate, match="no folder of its own"):
        require_own(path, directory=True, hidden=False)
    seen = list(os.lstat(path))
    seen[4] = os.geteuid() + 1
    with pytest.raises(NotPrivate, match=f"belongs to user {os.geteuid() + 1}"):
        check_own(os.stat_result(seen), "f", directory=False, hidden=False)
