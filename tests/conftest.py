"""Fixtures that every layer's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("gate", deadline=None, derandomize=True, max_examples=50)  # the machine may be busy; no chance in the gate
settings.load_profile("gate")

# Must be in place before liblsl is loaded by anybody: discovery stays on this machine.
LSL_CONFIG = Path(__file__).parent / "lsl_api.cfg"
os.environ.setdefault("LSLAPICFG", str(LSL_CONFIG))

ROOT = Path(__file__).parent.parent


def find_sample_data() -> Path | None:
    """The folder with the real recording, or None."""
    places = [os.environ.get("RT_MMDF_SAMPLE_DATA"), ROOT.parent / "shared" / "data" / "sample"]
    return next((Path(p) for p in places if p and (Path(p) / "sample_audvis_5s_raw.fif").is_file()), None)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of the real recording; skips where it is not at hand."""
    folder = find_sample_data()
    if folder is None:
        pytest.skip("the real recording is not at hand: set RT_MMDF_SAMPLE_DATA or put shared/data/sample beside the checkout")
    return folder
