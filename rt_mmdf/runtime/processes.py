"""Processes that this one has started."""

from __future__ import annotations

import subprocess


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str], limit_s: float) -> None:
    """Ask a process to end, and end it where it has not after `limit_s`; one that has ended is only waited for."""
    process.terminate()
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
