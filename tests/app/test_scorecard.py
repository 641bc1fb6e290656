from __future__ import annotations

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rt_mmdf.app.scorecard import Scorecard, versions, write_json
from rt_mmdf.core.errors import SinkError

KEYS = [
    "solver",
    "n_sources",
    "n_channels",
    "hops",
    "estimates",
    "missed_deadlines",
    "skipped_hops",
    "lost_samples",
    "alignment_ms",
    "latency_ms",
    "le_mm",
    "cpu_cores",
    "rss_mb",
    "versions",
]
CARD = Scorecard(
    solver="dSPM",
    n_sources=5124,
    n_channels=366,
    hops=3000,
    estimates=2990,
    missed_deadlines=2,
    skipped_hops=10,
    lost_samples={"eeg": 0, "meg": 3},
    alignment_ms={"p50": 0.01, "p99": 0.08},
    latency_ms={"p50": 1.5, "p90": 2.0, "p99": 4.25, "max": 9.0},
    le_mm={"median": 8.1, "p90": 22.0},
    cpu_cores=0.8,
    rss_mb=410.0,
    versions=versions(liblsl="1.16"),
    extra={"budget_ms": 50.0, "snr_db": {"median": 9.5}, "n_scored": 412, "alignment_source": "truth"},
)


def shown(card: Scorecard, width: int = 120) -> str:
    out = StringIO()
    Console(width=width, file=out).print(card.render())
    return out.getvalue()


def test_report_has_the_fixed_keys_first_and_in_order(tmp_path: Path) -> None:
    CARD.write(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert list(content)[: len(KEYS)] == KEYS
    assert content["latency_ms"] == {"p50": 1.5, "p90": 2.0, "p99": 4.25, "max": 9.0}
    assert content["snr_db"] == {"median": 9.5}
    assert set(content["versions"]) >= {"rt_mmdf", "python", "mne", "mne_lsl", "liblsl", "numpy", "platform"}


@given(value=st.floats() | st.floats(width=32).map(np.float32) | st.integers(-5, 5).map(np.int64))
def test_report_is_strict_json_whatever_was_measured(value: float) -> None:
    content = replace(CARD, cpu_cores=value, extra={"array": np.array([value]), "deep": [{"x": (value,)}]}).as_dict()
    read = json.loads(json.dumps(content, allow_nan=False))
    expected = float(value) if math.isfinite(value) else None
    assert read["cpu_cores"] == read["array"][0] == read["deep"][0]["x"][0] == expected


def test_outside_the_demo_there_is_no_localisation_error() -> None:
    card = replace(CARD, le_mm=None)
    assert card.as_dict()["le_mm"] is None
    assert "localisation" not in shown(card)


def test_a_wrong_scorecard_is_not_made() -> None:
    with pytest.raises(ValueError, match="latency_ms has the keys"):
        replace(CARD, latency_ms={"p50": 1.0})
    with pytest.raises(ValueError, match="repeats the fixed keys"):
        replace(CARD, extra={"hops": 1})


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="cannot be written"):
        CARD.write(tmp_path / "no" / "such" / "folder.json")
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, float("nan"))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_write_leaves_no_debris(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(SinkError, match="directory"):
        CARD.write(tmp_path / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_person_can_read_it() -> None:
    text = shown(CARD)
    for part in ("2990 of 3000 hops", "MEG 3", "p99 4.25", "median 8.1", "SNR 9.5 dB", "budget of 50 ms", "0.80 cores"):
        assert part in text
    unknown = replace(CARD, lost_samples={"eeg": None, "meg": 0}, latency_ms=dict.fromkeys(("p50", "p90", "p99", "max")))
    assert "EEG not connected" in shown(unknown)
    assert "not measured" in shown(unknown)
