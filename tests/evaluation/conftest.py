"""A suite that is made in seconds: a subject's head, 1284 sources, truth on its own mesh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rt_mmdf.evaluation.suite import Suite, held_out_suite
from rt_mmdf.headmodel.head import HeadModel


@pytest.fixture(scope="session")
def subject_folder(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head model that cannot be built anew, as a subject's is."""
    folder = tmp_path_factory.mktemp("heads") / "subject"
    replace(template_head_ico3, kind="subject", name="somebody").save(folder)
    return folder


@pytest.fixture(scope="session")
def small_suite(subject_folder: Path) -> Suite:
    return held_out_suite(subject_folder)
