from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag, SourceEstimate, StageStamps
from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.lsl.interface import StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.sinks.estimates import COMPANION_COLUMNS, EstimateDescription, EstimateOutlets, strongest
from rt_mmdf.sinks.settings import EstimateStreamSettings, Reduction
from rt_mmdf.sinks.sources import SourceSpaceDescription

POSITIONS = np.random.default_rng(0).uniform(-70, 70, (50, 3))
SOURCES = SourceSpaceDescription("template ico3", "abc123", (np.arange(0, 60, 2), np.arange(5, 25)), POSITIONS, "MNI305")
DESCRIPTION = EstimateDescription("MNE", "A m", "fixed, normal to cortex", 200.0, 12.5)


def estimate(hop: int, flags: list[int] | None = None) -> SourceEstimate:
    data = np.random.default_rng(hop).standard_normal((50, 4)).astype(np.float32)
    t = 100.0 + (hop * 4 + np.arange(4)) / 200
    own = np.array(flags or [0, 0, 0, 0], dtype=np.uint32)
    return SourceEstimate(data, t, own, hop * 4, hop, "A m", StageStamps(t[-1], 1.0, 2.0, 3.0, 4.0, 5.0))


class Listener:
    """All three streams, opened by name like a stranger's program would."""

    def __init__(self, transport: MemoryTransport, name: str) -> None:
        self.inlets = []
        for end in ("", "-companion", "-strongest"):
            (found,) = transport.resolve(name=name + end, timeout_s=0.0)
            self.inlets.append(transport.inlet(found))

    def description(self, which: int) -> StreamDescription:
        return self.inlets[which].description

    def pull(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [inlet.pull(0.0) for inlet in self.inlets]


@pytest.fixture
def transport() -> MemoryTransport:
    return MemoryTransport(ManualClock(1000.0))


def test_estimate_companion_and_stamps_arrive_together(transport: MemoryTransport) -> None:
    with EstimateOutlets(transport, "img", SOURCES, DESCRIPTION, EstimateStreamSettings()) as outlets:
        listener = Listener(transport, "img")
        given_estimate = estimate(3)
        stamps = outlets.publish(given_estimate)
        (data, times), (companion, companion_times), (summary, summary_times) = listener.pull()
        np.testing.assert_array_equal(data, given_estimate.data.T)
        np.testing.assert_array_equal(times, given_estimate.times)
        np.testing.assert_array_equal(companion_times, times)
        assert companion.dtype == np.float64
        assert stamps.published == 1000.0
        expected = [[3, 12 + i, 0, *stamps.as_tuple()] for i in range(4)]
        np.testing.assert_array_equal(companion, expected)
        assert summary_times.tolist() == [given_estimate.times[-1]]
        assert summary.shape == (1, 25)


def test_an_invalid_estimate_is_nan_and_says_so(transport: MemoryTransport) -> None:
    invalid = int(Flag.INVALID | Flag.EEG_MISSING)
    with EstimateOutlets(transport, "img", SOURCES, DESCRIPTION, EstimateStreamSettings()) as outlets:
        listener = Listener(transport, "img")
        outlets.publish(estimate(0, [0, invalid, 0, invalid]))
        (data, _), (companion, _), (summary, _) = listener.pull()
        assert np.isnan(data).all(axis=1).tolist() == [False, True, False, True]
        assert np.isfinite(data[[0, 2]]).all()
        assert companion[:, 2].tolist() == [0, invalid, 0, invalid]
        assert np.isnan(summary).all()


def test_a_reduced_stream_has_one_companion_sample_for_each_estimate(transport: MemoryTransport) -> None:
    settings = EstimateStreamSettings(decimation=6, reduction=Reduction.PEAK)
    with EstimateOutlets(transport, "img", SOURCES, DESCRIPTION, settings) as outlets:
        listener = Listener(transport, "img")
        for hop in range(6):
            outlets.publish(estimate(hop))
        (data, times), (companion, companion_times), (_, summary_times) = listener.pull()
        assert len(data) == 4
        np.testing.assert_array_equal(times, companion_times)
        np.testing.assert_array_equal(times, summary_times)
        assert companion[:, 1].tolist() == [5, 11, 17, 23]
        assert companion[:, 0].tolist() == [1, 2, 4, 5]
        assert listener.description(0).sfreq == pytest.approx(200 / 6)
        assert listener.description(0).extra["estimate/reduction"] == "peak"


def test_a_stranger_finds_everything_in_the_description(transport: MemoryTransport) -> None:
    with EstimateOutlets(transport, "img", SOURCES, DESCRIPTION, EstimateStreamSettings()):
        listener = Listener(transport, "img")
        stream = listener.description(0)
        assert (stream.dtype, stream.sfreq, stream.n_channels) == ("float32", 200.0, 50)
        assert [c.name for c in stream.channels[:2]] == ["lh-0", "lh-2"]
        assert stream.channels[30].name == "rh-5"
        assert {c.unit for c in stream.channels} == {"A m"}
        positions = np.array([c.position for c in stream.channels])
        np.testing.assert_allclose(positions * 1e3, POSITIONS, rtol=1e-12)
        for key, value in {
            "head/name": "template ico3",
            "head/fingerprint": "abc123",
            "head/frame": "MNI305",
            "estimate/solver": "MNE",
            "estimate/unit": "A m",
            "estimate/orientation": "fixed, normal to cortex",
            "estimate/reduction": "none",
            "filter/delay_ms": "12.5",
            "streams/companion": "img-companion",
        }.items():
            assert stream.extra[key] == value
        assert tuple(c.name for c in listener.description(1).channels) == COMPANION_COLUMNS
        assert [c.name for c in listener.description(2).channels[:6]] == [
            "source-1", "value-1", "x-1", "y-1", "z-1", "source-2",
        ]  # fmt: skip


def test_closing_ends_all_streams(transport: MemoryTransport) -> None:
    EstimateOutlets(transport, "img", SOURCES, DESCRIPTION, EstimateStreamSettings()).close()
    assert transport.resolve(timeout_s=0.0) == []


@given(seed=st.integers(0, 1000), n=st.integers(1, 12), apart=st.floats(0, 150))
def test_the_strongest_are_far_apart_and_nothing_stronger_was_left_out(seed: int, n: int, apart: float) -> None:
    values = np.random.default_rng(seed).standard_normal(50).astype(np.float32)
    before = values.copy()
    found = strongest(values, POSITIONS, n, apart)
    np.testing.assert_array_equal(values, before)
    assert np.all(np.diff(np.abs(values[found])) <= 0)
    distance = np.linalg.norm(POSITIONS[:, None] - POSITIONS[None], axis=2)
    for rank, one in enumerate(found):
        assert all(distance[one, other] >= apart for other in found[:rank])
    last = np.abs(values[found[-1]]) if len(found) == n else -1.0
    for other in set(range(50)) - set(found.tolist()):  # every other one is weaker or too near to a stronger one
        assert (
            np.abs(values[other]) <= last
            or (distance[other, found][np.abs(values[found]) >= np.abs(values[other])] < apart).any()
        )


def test_sources_that_do_not_fit_are_refused() -> None:
    with pytest.raises(HeadModelError, match="positions of shape"):
        SourceSpaceDescription("h", "f", (np.arange(3), np.arange(3)), np.zeros((5, 3)))
    with pytest.raises(HeadModelError, match="hemisphere rh"):
        SourceSpaceDescription("h", "f", (np.arange(3), np.array([2, 1, 3])), np.zeros((6, 3)))
