"""What the engine says of its devices' own lags is in the view's tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rt_mmdf.view.panels.health import stream_rows
from rt_mmdf.view.panels.status import Level
from rt_mmdf.view.reports import read_report

KNOWN = {"lag_ms": 35.21, "lag_uncertainty_ms": 0.1, "lag_against": "meg", "lag_told": "+35.2 ms ±0.1 against meg"}


@pytest.mark.parametrize(
    ("stream", "shown", "level"),
    [
        (KNOWN, "+35.2 ms ±0.1 against meg", Level.PLAIN),
        ({"lag_ms": None, "lag_told": "unknown"}, "unknown", Level.WARN),
        ({"lag_ms": None, "lag_told": "unknown (measured with 'x')"}, "unknown (measured with 'x')", Level.WARN),
        ({}, "unknown", Level.WARN),  # an older engine
        ({"lag_ms": "35", "lag_told": 7}, "unknown", Level.WARN),  # anybody can publish
    ],
)
def test_the_lag_of_each_stream(stream: dict[str, Any], shown: str, level: Level) -> None:
    report = read_report(json.dumps({"hops": 3, "streams": {"eeg": stream}, "device_lag": "eeg so"}))
    assert report is not None
    assert report.device_lag == "eeg so"
    rows = dict(stream_rows([report.streams["eeg"]]))
    assert rows["device lag"] == [(shown, level)]


def test_without_a_word_it_is_unknown() -> None:
    for content in ({"hops": 3}, {"hops": 3, "device_lag": None}, {"hops": 3, "device_lag": 5}):
        report = read_report(json.dumps(content))
        assert report is not None
        assert report.device_lag == "unknown"
