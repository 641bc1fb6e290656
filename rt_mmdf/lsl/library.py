"""Which liblsl is loaded, and how much it says."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from mne_lsl.lsl import library_version, set_config_content

QUIET = "[log]\nlevel = -3\n"
"""Fatal errors only: what liblsl tells of streams that break off, the session tells better, and in its own place."""


def liblsl_version() -> str:
    """For example ``"1.17"``; liblsl counts 117."""
    major, minor = divmod(int(library_version()), 100)
    return f"{major}.{minor}"


def users_configuration() -> Path | None:
    """The file that liblsl configures itself from, or None where it uses its defaults.

    liblsl's own search order (api_config.cpp). A path in LSLAPICFG counts whether or not it can be read: its user wants to
    hear what liblsl says about it.
    """
    if named := os.environ.get("LSLAPICFG"):
        return Path(named)
    places = (Path("lsl_api.cfg"), Path.home() / "lsl_api" / "lsl_api.cfg", Path("/etc/lsl_api/lsl_api.cfg"))
    return next((place for place in places if place.is_file()), None)


@cache
def quieten() -> None:
    """Keep liblsl from writing notes to standard error, unless its user has configured it.

    Has an effect only before liblsl's first use in a process, and from liblsl 1.17.7 on; older ones keep talking.
    """
    if users_configuration() is None:
        try:
            set_config_content(QUIET)
        except NotImplementedError:
            return
