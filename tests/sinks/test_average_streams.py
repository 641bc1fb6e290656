"""Averages as streams: an update is whole, told apart, and never what it was before."""

from __future__ import annotations

import numpy as np
import pytest

from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.sinks.averages import COMPANION_COLUMNS, AverageDescription, AverageEstimate, AverageOutlets
from rt_mmdf.sinks.estimates import EstimateDescription
from rt_mmdf.sinks.sources import SourceSpaceDescription

SOURCES = SourceSpaceDescription("h", "f", (np.arange(3), np.arange(4)), np.zeros((7, 3)), "MNI305")
DESCRIBED = EstimateDescription("dSPM", "", "fixed", 1000.0, 12.0, {"streams/health": "n-health"})
LATENCIES = np.arange(-20, 81) / 200.0
AVERAGE = AverageDescription("left", ("1", "left ear"), LATENCIES, (-0.1, 0.0))


def estimate(n_trials: int) -> AverageEstimate:
    data = np.random.default_rng(n_trials).standard_normal((7, len(LATENCIES))).astype(np.float32)
    return AverageEstimate(data, n_trials, 3, 900.0 + n_trials)


def test_updates_are_whole_and_told_apart_even_where_the_clock_stands_still() -> None:
    transport = MemoryTransport(ManualClock(1000.0))
    with AverageOutlets(transport, "n-average-left", SOURCES, DESCRIBED, AVERAGE) as outlets:
        inlets = [transport.inlet(transport.resolve(name=f"n-average-left{end}")[0]) for end in ("", "-companion")]
        for n_trials in (1, 2, 0, 1):
            outlets.publish(estimate(n_trials))
        assert outlets.n_updates == 4
        (data, stamps), (companion, companion_stamps) = (inlet.pull(0.0) for inlet in inlets)
    np.testing.assert_array_equal(stamps, companion_stamps)
    assert np.unique(stamps).size == 4
    assert (np.diff(stamps) >= 0).all()
    for update, n_trials in enumerate((1, 2, 0, 1)):
        rows = companion[:, 0] == update
        assert np.unique(stamps[rows]).size == 1
        columns = dict(zip(COMPANION_COLUMNS, companion[rows].T, strict=True))
        np.testing.assert_array_equal(columns["latency"], LATENCIES)
        np.testing.assert_array_equal(columns["sample"], np.arange(len(LATENCIES)))
        assert set(columns["n_trials"]) == {n_trials}
        assert set(columns["n_rejected"]) == {3}
        if n_trials:
            np.testing.assert_array_equal(data[rows], estimate(n_trials).data.T)
        else:
            assert np.isnan(data[rows]).all()


def test_the_description_says_what_the_average_is_of() -> None:
    transport = MemoryTransport()
    with AverageOutlets(transport, "n-average-left", SOURCES, DESCRIBED, AVERAGE):
        stream = transport.describe(transport.resolve(name="n-average-left")[0])
    assert (stream.type, stream.sfreq, stream.n_channels) == ("SourceAverage", 0.0, 7)
    expected = {
        "average/event": "left",
        "average/markers": "1, left ear",
        "average/tmin_s": "-0.1",
        "average/tmax_s": "0.4",
        "average/n_times": "101",
        "average/sfreq": "200",
        "average/baseline_s": "-0.1 0",
        "estimate/unit": "dimensionless",
        "head/fingerprint": "f",
        "streams/companion": "n-average-left-companion",
        "streams/health": "n-health",
    }
    assert {key: stream.extra[key] for key in expected} == expected
    assert transport.resolve() == []


def test_nothing_stays_published_where_the_companion_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = MemoryTransport()
    real = transport.outlet

    def refuse(description: object) -> object:
        if description.name.endswith("companion"):  # type: ignore[attr-defined]
            raise ValueError("no room")
        return real(description)  # type: ignore[arg-type]

    monkeypatch.setattr(transport, "outlet", refuse)
    with pytest.raises(ValueError, match="no room"):
        AverageOutlets(transport, "n-average-left", SOURCES, DESCRIBED, AVERAGE)
    assert transport.resolve() == []
