"""The environment of a process that is to live with another clock, as `faketime` makes it.

`faketime COMMAND` itself starts the command as a child of its own: a signal ends `faketime` and leaves the command running.
"""

from __future__ import annotations

import os
import subprocess


def faked_clock(**settings: str) -> dict[str, str]:
    """This process's environment with the library that `faketime` preloads, and settings for it (``FAKETIME=...``)."""
    shown = subprocess.run(["faketime", "-f", "+0s", "env"], capture_output=True, text=True, check=True).stdout
    preloaded = dict(line.split("=", 1) for line in shown.splitlines() if line.startswith("LD_PRELOAD="))
    return os.environ | preloaded | settings
