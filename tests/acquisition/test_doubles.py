"""A second stream of the same name is told while a session runs, and is never taken for the first."""

from __future__ import annotations

import time
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pytest

from rt_mmdf.acquisition.doubles import Doubles, Others
from rt_mmdf.acquisition.receiver import MarkerReceiver, Receiver
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.lsl.network import NetworkOutlet, NetworkTransport

AMP = StreamDescription("amp", "EEG", "id", 100.0, "float64", (ChannelDescription("Fz", "EEG", "uV"),), {})
SETTINGS = StreamSettings(name="amp", resolve_timeout_s=0.1)
PINNED = StreamSettings(name="amp", source_id="id", hostname="lab-1", resolve_timeout_s=0.1)
EVENTS = StreamDescription("events", "Markers", "id", 0.0, "string", (ChannelDescription("m"),), {})


def doubles_of(here: MemoryTransport, settings: StreamSettings = SETTINGS) -> tuple[Doubles, Receiver]:
    receiver = Receiver(here, settings, "eeg")
    return Doubles(here, {"eeg": (settings, lambda: receiver.description)}), receiver


def test_a_second_stream_is_told_when_it_comes_and_when_it_goes() -> None:
    here = MemoryTransport()
    own = here.outlet(AMP)
    doubles, receiver = doubles_of(here)
    doubles.look()
    assert doubles.found == {"eeg": Others()}
    other = here.machine("elsewhere").outlet(replace(AMP, source_id="id2\x1b[2J\u202e"))
    doubles.look()
    found = doubles.found["eeg"]
    assert found.n == 1
    for part in (
        "1 more on this network called 'amp'",
        "Listened to is source_id 'id' on 'here'",
        "'id2",
        "host 'elsewhere'",
    ):
        assert part in found.text
    assert "set source_id and hostname under [acquisition.eeg]" in found.text
    assert found.text.isprintable()
    own.push(np.ones((3, 1)), np.arange(1.0, 4.0))
    other.push(np.full((3, 1), 9.0), np.arange(1.0, 4.0))
    receiver.step()
    block = receiver.ring.read()
    assert block is not None
    np.testing.assert_allclose(block.data, np.full((1, 3), 1e-6))  # of the first alone
    other.close()
    doubles.look()
    assert doubles.found == {"eeg": Others()}


def test_a_flood_of_doubles_is_a_short_text() -> None:
    here = MemoryTransport()
    here.outlet(AMP)
    doubles, _ = doubles_of(here)
    for i in range(500):
        here.outlet(replace(AMP, source_id=f"{i}" * 100))
    doubles.look()
    assert doubles.found["eeg"].n == 500
    assert "and 497 more" in doubles.found["eeg"].text
    assert len(doubles.found["eeg"].text) < 2000


def test_what_could_not_be_mistaken_is_not_told() -> None:
    here = MemoryTransport()
    here.outlet(AMP)
    meg = replace(AMP, type="MEG", channels=(ChannelDescription("m", "MEG", "fT"),))
    here.outlet(meg)
    here.outlet(replace(AMP, name="amp-2"))
    here.outlet(replace(EVENTS, name="amp"))
    both = {kind: StreamSettings(name="amp", type=kind.upper(), resolve_timeout_s=0.1) for kind in ("eeg", "meg")}
    receivers = {kind: Receiver(here, settings, kind) for kind, settings in both.items()}
    doubles = Doubles(here, {k: (both[k], lambda r=r: r.description) for k, r in receivers.items()})
    doubles.look()
    assert doubles.found == {"eeg": Others(), "meg": Others()}


def test_one_that_has_come_back_is_no_double() -> None:
    here = MemoryTransport()
    own = here.outlet(AMP)
    doubles, _ = doubles_of(here)
    own.close()
    doubles.look()
    assert doubles.found == {"eeg": Others()}
    here.outlet(AMP)
    doubles.look()
    assert doubles.found == {"eeg": Others()}


@pytest.mark.parametrize("settings", [PINNED, PINNED.model_copy(update={"source_id": None})])
def test_a_pinned_stream_that_is_lost_is_taken_from_its_host_alone(settings: StreamSettings) -> None:
    """liblsl takes whatever comes back under the same name and source id, from any host: not here."""
    here = MemoryTransport()
    lab, elsewhere = here.machine("lab-1"), here.machine("elsewhere")
    own = lab.outlet(AMP)
    receiver = Receiver(here, settings, "eeg")
    own.close()
    false_one = elsewhere.outlet(AMP)
    assert isinstance(here.clock, ManualClock)
    for _ in range(4):
        false_one.push(np.full((3, 1), 9.0), np.arange(1.0, 4.0))
        receiver.step()
        here.clock.advance(3.0)
    assert receiver.arrivals.n_received == 0
    true_one = lab.outlet(AMP)
    for _ in range(2):
        here.clock.advance(3.0)
        receiver.step()
    true_one.push(np.ones((3, 1)), np.arange(1.0, 4.0))
    receiver.step()
    assert receiver.arrivals.n_received == 3
    assert receiver.description.hostname == "lab-1"


def test_pinned_markers_that_are_lost_are_taken_from_their_host_alone() -> None:
    here = MemoryTransport()
    lab, elsewhere = here.machine("lab-1"), here.machine("elsewhere")
    own = lab.outlet(EVENTS)
    receiver = MarkerReceiver(here, StreamSettings(name="events", hostname="lab-1", resolve_timeout_s=0.1), "markers")
    own.close()
    false_one = elsewhere.outlet(EVENTS)
    assert isinstance(here.clock, ManualClock)
    for _ in range(4):
        false_one.push(["go"], 1.0)
        receiver.step()
        here.clock.advance(20.0)
    assert receiver.events.take_all() == []
    true_one = lab.outlet(EVENTS)
    here.clock.advance(20.0)
    receiver.step()
    true_one.push(["go"], 2.0)
    receiver.step()
    assert [marker.stamp for marker in receiver.events.take_all()] == [2.0]


@pytest.mark.lsl
def test_over_the_network_a_pinned_stream_comes_back_and_a_double_is_told() -> None:
    transport, name = NetworkTransport(), f"amp-{uuid4().hex}"
    description = replace(AMP, name=name, source_id=f"id-{name}")

    def until_heard(outlet: NetworkOutlet, n: int) -> None:
        deadline = time.monotonic() + 20.0
        while receiver.arrivals.n_received < n and time.monotonic() < deadline:
            outlet.push(np.ones((1, 1)), 1.0)
            receiver.step()
        assert receiver.arrivals.n_received >= n

    outlet = transport.outlet(description)
    (found,) = transport.resolve(name=name, timeout_s=10.0)
    settings = StreamSettings(name=name, source_id=description.source_id, hostname=found.hostname)
    with Receiver(transport, settings, "eeg") as receiver:
        until_heard(outlet, 1)
        outlet.close()
        with transport.outlet(description) as successor:
            until_heard(successor, receiver.arrivals.n_received + 1)
            assert receiver.description.uid == successor.uid
            assert receiver.arrivals.n_reconnected == 1
            doubles = Doubles(transport, {"eeg": (settings, lambda: receiver.description)})
            doubles.look()
            assert doubles.found["eeg"].n == 0
            with transport.outlet(replace(description, source_id="another")):
                deadline = time.monotonic() + 20.0
                while not doubles.found["eeg"].n and time.monotonic() < deadline:
                    doubles.look()
            assert doubles.found["eeg"].n == 1
            assert "'another'" in doubles.found["eeg"].text
