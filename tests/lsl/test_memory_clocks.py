"""Clocks in memory: continuous, and measured within what the probe claims."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.lsl.interface import REJOIN_S, ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport, SenderClock

DESCRIPTION = StreamDescription("a", "EEG", "id", 10.0, "float32", (ChannelDescription("x"),), {})


def test_time_only_goes_forward() -> None:
    clock = ManualClock(5.0)
    assert clock.advance(1.5) == clock.now() == 6.5
    with pytest.raises(ValueError, match="before"):
        clock.move_to(6.0)


@given(drifts=st.lists(st.floats(-500, 500), min_size=1, max_size=5), offset=st.floats(-1000, 1000))
def test_a_changed_drift_bends_and_does_not_jump(drifts: list[float], offset: float) -> None:
    clock = ManualClock()
    sender = SenderClock(clock, offset)
    expected = sender.now()
    for drift in drifts:
        sender.drift_ppm = drift
        assert sender.now() == pytest.approx(expected, abs=1e-9)
        clock.advance(10.0)
        expected += 10.0 * (1 + drift * 1e-6)
        assert sender.now() == pytest.approx(expected, abs=1e-9)


def test_measured_offsets_are_right_within_their_uncertainty_and_use_it() -> None:
    here = MemoryTransport(uncertainty_s=1e-3, seed=1)
    there = here.machine("amplifier", offset_s=100.0, drift_ppm=200.0)
    there.outlet(DESCRIPTION)
    (found,) = here.resolve(name="a")
    assert found.hostname == "amplifier"
    probe = here.offset_probe(found)
    errors = []
    for _ in range(200):
        here.clock.advance(1.0)  # type: ignore[attr-defined]
        measured = probe.measure(1.0)
        assert measured is not None
        assert measured.at == there.clock.now()
        errors.append(measured.offset - (here.clock.now() - there.clock.now()))
        assert abs(errors[-1]) <= measured.uncertainty == 1e-3
    assert np.std(errors) == pytest.approx(1e-3 / np.sqrt(3), rel=0.2)


def test_a_probe_of_a_closed_outlet_measures_nothing_until_it_is_back() -> None:
    transport = MemoryTransport()
    outlet = transport.outlet(DESCRIPTION)
    probe = transport.offset_probe(transport.resolve(name="a")[0])
    outlet.close()
    assert probe.measure(1.0) is None
    transport.outlet(DESCRIPTION)
    assert probe.measure(1.0) is None
    transport.clock.advance(REJOIN_S)  # type: ignore[attr-defined]
    assert probe.measure(1.0) is not None


def test_a_full_inlet_drops_the_oldest() -> None:
    transport = MemoryTransport()
    outlet = transport.outlet(DESCRIPTION)
    inlet = transport.inlet(transport.resolve(name="a")[0], buffer_s=2.0)
    outlet.push(np.arange(50, dtype=np.float32)[:, None], np.arange(1.0, 51.0))
    data, stamps = inlet.pull(0.0)
    assert data[:, 0].tolist() == list(range(30, 50))
    assert stamps[0] == 31.0


def test_an_inlet_hears_an_outlet_that_comes_back_with_its_source_id() -> None:
    """As liblsl's recovery is meant to; what the network really does, the receiver's tests hold."""
    transport = MemoryTransport()
    outlet = transport.outlet(DESCRIPTION)
    inlet = transport.inlet(transport.resolve(name="a")[0])
    outlet.close()
    assert len(inlet.pull(0.0)[1]) == 0
    successor = transport.outlet(DESCRIPTION)
    assert not successor.has_consumers()
    transport.clock.advance(REJOIN_S)  # type: ignore[attr-defined]
    assert successor.has_consumers()
    successor.push(np.ones((1, 1), np.float32), 2.0)
    assert inlet.pull(0.0)[1].tolist() == [2.0]
