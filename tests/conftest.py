"""Fixtures that every layer's tests share."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import mne
import pytest
from hypothesis import settings

from rt_mmdf.headmodel.head import HeadModel

# the machine may be busy, and there is no place for chance in the gate
settings.register_profile("gate", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("gate")

# Must be in place before liblsl is loaded by anybody: discovery stays on this machine.
LSL_CONFIG = Path(__file__).parent / "lsl_api.cfg"
os.environ.setdefault("LSLAPICFG", str(LSL_CONFIG))

ROOT = Path(__file__).parent.parent


FUZZED = pytest.StashKey[Counter[str]]()


@pytest.fixture
def fuzzed(request: pytest.FixtureRequest) -> Counter[str]:
    """Counts made-up inputs by target; the sum stands at the end of pytest's report."""
    return request.config.stash.setdefault(FUZZED, Counter())


def pytest_configure() -> None:
    """Tests press Ctrl-C, here and in processes that they start: a shell has what runs in the background ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if counts := config.stash.get(FUZZED, None):
        each = ", ".join(f"{name} {n:,}" for name, n in counts.items())
        terminalreporter.write_line(f"fuzz: {counts.total():,} inputs in {len(counts)} targets ({each})")


def find_sample_data() -> Path | None:
    """The folder with the real recording, or None."""
    places = [os.environ.get("RT_MMDF_SAMPLE_DATA"), ROOT.parent / "shared" / "data" / "sample"]
    return next((Path(p) for p in places if p and (Path(p) / "sample_audvis_5s_raw.fif").is_file()), None)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of the real recording; skips where it is not at hand."""
    folder = find_sample_data()
    if folder is None:
        pytest.skip(
            "the real recording is not at hand: set RT_MMDF_SAMPLE_DATA or put shared/data/sample beside the checkout"
        )
    return folder


@pytest.fixture(scope="session")
def template_head_ico3() -> HeadModel:
    """The template head with 1284 sources, 306 MEG and 60 EEG channels; seconds at first, then from the user's cache."""
    from rt_mmdf.headmodel.template import build_template

    return build_template(spacing="ico3")


@pytest.fixture(scope="session")
def sample_head(sample_data: Path) -> HeadModel:
    """The head of the real recording's subject: 2034 sources, 306 MEG and 60 EEG channels."""
    from rt_mmdf.headmodel.subject import build_subject

    info = mne.io.read_info(sample_data / "sample_audvis_few-ave.fif.gz", verbose="ERROR")
    return build_subject(
        info,
        sample_data / "sample-trans.fif",
        sample_data / "sample-oct5-src.fif",
        sample_data / "sample-320-320-320-bem-sol.fif",
    )
