"""Which liblsl is loaded."""

from __future__ import annotations

from mne_lsl.lsl import library_version


def liblsl_version() -> str:
    """For example ``"1.17"``; liblsl counts 117."""
    major, minor = divmod(int(library_version()), 100)
    return f"{major}.{minor}"
