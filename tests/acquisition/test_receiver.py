"""Selection, receivers, markers and the clock watch, over memory; one round over the network."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.acquisition.clockwatch import ClockWatch
from rt_mmdf.acquisition.receiver import Marker, MarkerReceiver, Receiver
from rt_mmdf.acquisition.selection import select_stream
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.errors import StreamAmbiguous, StreamDescriptionError, StreamError, StreamNotFound
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.runtime.mailbox import Signal

CHANNELS = (
    ChannelDescription("Fz", "EEG", "uV", (0.0, 0.08, 0.04)),
    ChannelDescription("EOG", "EOG", "uV"),
    ChannelDescription("Cz", "EEG", "mV"),
)
AMP = StreamDescription("amp", "EEG", "id", 100.0, "float64", CHANNELS, {})
SETTINGS = StreamSettings(name="amp", resolve_timeout_s=0.1)


def test_no_stream_says_what_is_on_offer() -> None:
    transport = MemoryTransport()
    with pytest.raises(StreamNotFound, match="nothing at all"):
        select_stream(transport, SETTINGS, "eeg")
    transport.outlet(replace(AMP, name="other"))
    with pytest.raises(
        StreamNotFound, match=r"acquisition\.eeg: no stream with name 'amp'[\s\S]*'other', type 'EEG', 3 channels"
    ):
        select_stream(transport, SETTINGS, "eeg")


def test_two_streams_are_told_apart_by_source_id_or_host() -> None:
    here = MemoryTransport()
    here.outlet(AMP)
    here.machine("lab-2").outlet(replace(AMP, source_id="id2"))
    with pytest.raises(
        StreamAmbiguous, match=r"2 streams[\s\S]*'id'[\s\S]*'lab-2'[\s\S]*source_id or hostname under \[acquisition\.eeg\]"
    ):
        select_stream(here, SETTINGS, "eeg")
    assert select_stream(here, SETTINGS.model_copy(update={"source_id": "id"}), "eeg").hostname == "here"
    assert select_stream(here, SETTINGS.model_copy(update={"hostname": "lab-2"}), "eeg").source_id == "id2"


@given(cuts=st.lists(st.integers(0, 60), max_size=8), pulls=st.lists(st.booleans(), min_size=10, max_size=10))
def test_what_is_received_does_not_depend_on_how_it_was_sent(cuts: list[int], pulls: list[bool]) -> None:
    transport = MemoryTransport()
    outlet = transport.outlet(AMP)
    data = np.random.default_rng(3).standard_normal((60, 3))
    stamps = 50.0 + np.arange(60) / 100
    signal = Signal()
    with Receiver(transport, SETTINGS, "eeg", signal) as receiver:
        edges = [0, *sorted(cuts), 60]
        for start, stop, pull in zip(edges[:-1], edges[1:], pulls, strict=False):
            outlet.push(data[start:stop], stamps[start:stop])
            if pull:
                receiver.step()
        receiver.step()
        assert signal.wait(0.0)
        block, others = receiver.ring.read(), receiver.others.read() if receiver.others else None
    assert block is not None
    assert others is not None
    np.testing.assert_array_equal(block.data, (data[:, [0, 2]] * [1e-6, 1e-3]).astype(np.float32).T)
    np.testing.assert_array_equal(others.data, (data[:, [1]] * 1e-6).astype(np.float32).T)
    np.testing.assert_array_equal(block.stamps, stamps)
    assert (block.first, block.lost) == (others.first, others.lost) == (0, 0)


def test_counters() -> None:
    transport = MemoryTransport()
    assert isinstance(transport.clock, ManualClock)
    outlet = transport.outlet(AMP)
    receiver = Receiver(transport, SETTINGS, "eeg")
    receiver.step()
    assert receiver.arrivals.n_received == 0
    assert np.isnan(receiver.arrivals.last_received)
    data = np.zeros((7, 3))
    data[2, 0], data[3, 2], data[4, 1] = np.nan, np.inf, np.nan  # the last one is not imaged
    outlet.push(data, np.arange(1.0, 8.0))
    transport.clock.advance(1.5)
    receiver.step()
    outlet.push(data[:1], 8.0)
    receiver.step()
    arrivals = receiver.arrivals
    assert (arrivals.n_received, arrivals.n_nonfinite) == (8, 2)
    assert (arrivals.newest_chunk, arrivals.largest_chunk) == (1, 7)
    assert arrivals.last_received == transport.clock.now()
    assert receiver.channels.names == ("Fz", "Cz")
    assert receiver.channels.positions is not None
    np.testing.assert_allclose(receiver.channels.positions[0], (0.0, 0.08, 0.04))


class Unrecoverable(MemoryTransport):
    """As the network is without source ids: a pull from an outlet that is gone raises."""

    def inlet(
        self, description: StreamDescription, *, buffer_s: float = 360.0, from_now: bool = True, recover: bool = True
    ) -> Any:
        inlet = super().inlet(description, buffer_s=buffer_s)
        pull = inlet.pull

        def pull_or_raise(timeout_s: float) -> Any:
            if inlet.source.closed:
                raise StreamError("gone")
            return pull(timeout_s)

        inlet.pull = pull_or_raise  # type: ignore[method-assign]
        return inlet


def test_a_stream_without_source_id_is_found_again() -> None:
    transport = Unrecoverable()
    nameless = replace(AMP, source_id="")
    outlet = transport.outlet(nameless)
    receiver = Receiver(transport, SETTINGS, "eeg")
    before = receiver.description.uid
    outlet.close()
    for _ in range(5):
        receiver.step()
    successor = transport.outlet(nameless)
    receiver.step()
    successor.push(np.ones((2, 3)), np.array([1.0, 2.0]))
    receiver.step()
    assert receiver.arrivals.n_received == 2
    assert receiver.arrivals.n_reconnected == 1
    assert receiver.description.uid != before


ROWS = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
SI = (ROWS[:, [0, 2]] * [1e-6, 1e-3]).astype(np.float32).T


def come_back(seen: StreamDescription, data: np.ndarray, settings: StreamSettings = SETTINGS) -> tuple[Receiver, list[str]]:
    """A receiver that had two samples of AMP, whose outlet then went and came back as `seen`, which sent `data`."""
    transport, news = Unrecoverable(), []
    outlet = transport.outlet(replace(AMP, source_id=""))
    receiver = Receiver(transport, settings, "eeg")
    receiver.on_news = lambda kind, text: news.append(f"{kind}: {text}")
    outlet.push(ROWS, np.array([1.0, 2.0]))
    receiver.step()
    outlet.close()
    receiver.step()
    assert receiver.trouble is not None
    assert receiver.trouble.kind == "stream_gone"
    successor = transport.outlet(replace(seen, source_id=""))
    receiver.step()
    successor.push(data, np.array([3.0, 4.0]))
    receiver.step()
    return receiver, news


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_channels_that_come_back_in_another_order_keep_their_rows(order: list[int]) -> None:
    receiver, news = come_back(replace(AMP, channels=tuple(CHANNELS[i] for i in order)), ROWS[:, order])
    block, others = receiver.ring.read(), receiver.others.read() if receiver.others else None
    assert block is not None
    assert others is not None
    np.testing.assert_array_equal(block.data, np.hstack([SI, SI]))
    np.testing.assert_array_equal(others.data, (np.tile(ROWS[:, [1]], (2, 1)) * 1e-6).astype(np.float32).T)
    (said,) = news
    assert said.startswith("stream_changed: stream 'amp' is back: ")
    assert ("another order" in said) == (order != [0, 1, 2])
    assert receiver.trouble is None
    assert receiver.arrivals.n_reconnected == 1


def test_units_channels_and_rate_may_be_others_when_a_stream_comes_back() -> None:
    settings = SETTINGS.model_copy(update={"exclude": ("Oz",), "rename": {"Cz": "C0"}, "units": None})
    channels = (ChannelDescription("Pz", "EEG", "V"), ChannelDescription("Fz", "EEG", "mV"))
    transport = Unrecoverable()
    oz = (*CHANNELS, ChannelDescription("Oz", "EEG", "uV"))
    outlet = transport.outlet(replace(AMP, channels=oz))
    receiver = Receiver(transport, settings, "eeg")
    assert receiver.channels.names == ("Fz", "C0")
    news: list[str] = []
    receiver.on_news = lambda kind, text: news.append(text)
    outlet.close()
    receiver.step()
    successor = transport.outlet(replace(AMP, channels=channels, sfreq=250.0, dtype="float32"))
    receiver.step()
    successor.push(np.array([[9.0, 7.0]]), 3.0)
    receiver.step()
    block = receiver.ring.read()
    assert block is not None
    np.testing.assert_array_equal(block.data, np.array([[7e-3], [np.nan]], np.float32))
    assert receiver.arrivals.n_nonfinite == 0  # what is not there is not wrong
    (epoch,) = receiver.epochs
    assert (epoch.first, epoch.sfreq, epoch.absent, epoch.new_clock) == (0, 250.0, frozenset({"C0"}), False)
    for part in (
        "250 Hz after 100 Hz",
        "1 channels in another unit",
        "without 1 imaged channels (C0)",
        "1 channels more (Pz)",
    ):
        assert part in news[0]


@pytest.mark.parametrize(
    ("channels", "part"),
    [
        ((ChannelDescription("Fz", "EEG", "furlong"),), "furlong"),
        ((ChannelDescription("Pz", "EEG", "uV"),), "none of the channels that are imaged"),
    ],
)
def test_a_stream_that_comes_back_useless_is_left_alone_until_it_is_of_use(
    channels: tuple[ChannelDescription, ...], part: str
) -> None:
    transport = Unrecoverable()
    outlet = transport.outlet(replace(AMP, source_id=""))
    receiver = Receiver(transport, SETTINGS, "eeg")
    outlet.close()
    receiver.step()
    useless = transport.outlet(replace(AMP, source_id="", channels=channels))
    for _ in range(3):
        receiver.step()
        assert receiver.trouble is not None
        assert receiver.trouble.kind == "stream_unusable"
        assert part in receiver.trouble.text
        assert not useless.has_consumers()
    useless.close()
    back = transport.outlet(replace(AMP, source_id=""))
    receiver.step()
    back.push(ROWS, np.array([1.0, 2.0]))
    receiver.step()
    assert (receiver.trouble, receiver.arrivals.n_received) == (None, 2)


@pytest.mark.parametrize("gap_s", [1.0, 1.4, 20.0])
def test_a_successor_that_the_library_joins_by_itself_is_read_by_its_own_description(gap_s: float) -> None:
    transport = MemoryTransport()
    assert isinstance(transport.clock, ManualClock)
    outlet = transport.outlet(AMP)
    receiver = Receiver(transport, SETTINGS, "eeg")
    tapped: list[tuple[str, ...]] = []
    receiver.taps.append(lambda description, data, stamps: tapped.append(tuple(c.name for c in description.channels)))
    outlet.push(ROWS, np.array([1.0, 2.0]))
    receiver.step()
    outlet.close()
    turned = replace(AMP, channels=CHANNELS[::-1])
    outlet = transport.outlet(turned)  # same name, type, source id, number of channels: the library says nothing
    transport.clock.advance(gap_s)
    outlet.push(ROWS[:, ::-1], np.array([3.0, 4.0]))
    receiver.step()
    block = receiver.ring.read()
    assert block is not None
    np.testing.assert_array_equal(block.data, np.hstack([SI, SI]))
    assert tapped == [("Fz", "EOG", "Cz"), ("Cz", "EOG", "Fz")]


def test_a_gap_in_arrival_is_a_stall_relative_to_the_usual_blocks() -> None:
    transport = MemoryTransport()
    assert isinstance(transport.clock, ManualClock)
    outlet = transport.outlet(AMP)
    receiver = Receiver(transport, SETTINGS, "eeg")

    def send(gap_s: float) -> tuple[int, float]:
        transport.clock.advance(gap_s)
        outlet.push(ROWS, transport.clock.now() + np.array([0.0, 0.01]))
        receiver.step()
        return receiver.arrivals.n_stalls, receiver.arrivals.newest_stall_s

    for _ in range(20):
        assert send(0.02)[0] == 0
    assert send(0.15)[0] == 0
    assert send(0.25) == (1, pytest.approx(0.25))
    for _ in range(200):
        send(0.2)
    before = receiver.arrivals.n_stalls
    assert send(0.5)[0] == before  # blocks of 200 ms
    assert send(0.7) == (before + 1, pytest.approx(0.7))


def test_a_description_that_cannot_be_used_leaves_nothing_open() -> None:
    transport = MemoryTransport()
    outlet = transport.outlet(replace(AMP, channels=(ChannelDescription("a", "EEG", ""),)))
    with pytest.raises(StreamDescriptionError):
        Receiver(transport, SETTINGS, "eeg")
    assert not outlet.has_consumers()


@pytest.mark.parametrize(
    ("dtype", "sent", "texts"), [("string", ["go", "stop"], ["go", "stop"]), ("int32", [[3], [4]], ["3", "4"])]
)
def test_markers(dtype: str, sent: Any, texts: list[str]) -> None:
    transport = MemoryTransport()
    outlet = transport.outlet(StreamDescription("m", "Markers", "", 0.0, dtype, (ChannelDescription("m"),), {}))
    receiver = MarkerReceiver(transport, StreamSettings(type="Markers"), "markers")
    outlet.push(sent, np.array([1.5, 2.5]))
    receiver.step()
    now = transport.clock.now()
    assert receiver.events.take_all() == [Marker(1.5, texts[0], now), Marker(2.5, texts[1], now)]


def test_markers_may_come_later_and_an_ambiguous_stream_is_not_guessed() -> None:
    transport = MemoryTransport()
    wanted = StreamSettings(name="m", resolve_timeout_s=0.0)
    with pytest.raises(StreamNotFound):
        MarkerReceiver(transport, wanted, "markers")
    receiver = MarkerReceiver(transport, wanted, "markers", patient=True)
    assert receiver.description is None
    assert "no stream with name 'm'" in receiver.problem
    stream = StreamDescription("m", "Markers", "", 0.0, "string", (ChannelDescription("m"),), {})
    outlets = [transport.machine(host).outlet(stream) for host in ("one", "two")]

    def step(later_s: float) -> list[str]:
        transport.clock.advance(later_s)
        receiver.step()
        return [event.text for event in receiver.events.take_all()]

    assert step(3.0) == []
    assert "2 streams with name 'm'" in receiver.problem
    outlets[0].close()
    assert step(3.0) == []  # heard from now on
    assert (receiver.problem, receiver.description.hostname) == ("", "two")
    outlets[1].push(["x" * 5000], 1.0)
    assert step(0.1) == ["x" * 4096]
    outlets[1].close()
    outlets.append(transport.machine("three").outlet(stream))
    assert step(11.0) == []
    outlets[2].push(["back"], 2.0)
    assert step(0.1) == ["back"]
    assert (receiver.n_reconnected, receiver.description.hostname) == (1, "three")
    receiver.close()
    assert not outlets[2].has_consumers()


def test_the_clock_watch_hands_on_each_measurement_once_and_follows_a_new_outlet() -> None:
    transport = MemoryTransport()
    assert isinstance(transport.clock, ManualClock)
    amplifier = transport.machine("amp-pc", offset_s=100.0)
    outlet = amplifier.outlet(AMP)
    present = [transport.resolve(name="amp")[0]]
    watch = ClockWatch(transport, {"eeg": lambda: present[0]})
    watch.step()
    watch.step()  # the clock stands still: nothing new was measured
    (first,) = watch.offsets["eeg"].take_all()
    assert first.offset == pytest.approx(-100.0)
    outlet.close()
    transport.clock.advance(1.0)
    watch.step()
    assert watch.offsets["eeg"].take_all() == []
    transport.machine("spare-pc", offset_s=7.0).outlet(replace(AMP, source_id="spare"))
    present[0] = transport.resolve(name="amp")[0]
    watch.step()
    (second,) = watch.offsets["eeg"].take_all()
    assert second.offset == pytest.approx(-7.0)
    watch.close()


@pytest.mark.lsl
def test_receivers_and_clock_watch_over_the_network() -> None:
    transport, name, signal = NetworkTransport(), f"amp-{uuid4().hex}", Signal()
    outlet = transport.outlet(replace(AMP, name=name, source_id=name))
    with outlet, Receiver(transport, StreamSettings(name=name), "eeg", signal) as receiver:
        watch = ClockWatch(transport, {"eeg": lambda: receiver.description})
        with receiver.worker(), watch.worker():
            assert outlet.wait_for_consumers(5.0)
            outlet.push(np.ones((5, 3)), transport.clock.now() + np.arange(5) / 100)
            deadline = time.monotonic() + 5.0
            while receiver.arrivals.n_received < 5 and time.monotonic() < deadline:
                signal.wait(0.5)
            offset = watch.offsets["eeg"].take(5.0)
        watch.close()
        block = receiver.ring.read()
    assert block is not None
    assert block.n_times == 5
    assert offset is not None
    assert abs(offset.offset) <= offset.uncertainty


@pytest.mark.lsl
@pytest.mark.parametrize("source_id", ["", "amplifier-1"])
def test_a_stream_that_vanishes_from_the_network_is_heard_again(source_id: str) -> None:
    """Without a source id liblsl may report the loss or recover, by chance of timing; the receiver goes on in both cases."""
    transport, name = NetworkTransport(), f"amp-{uuid4().hex}"
    description = replace(AMP, name=name, source_id=source_id and f"{source_id}-{name}")
    outlet = transport.outlet(description)
    with Receiver(transport, StreamSettings(name=name), "eeg") as receiver:
        assert outlet.wait_for_consumers(5.0)
        outlet.push(np.zeros((1, 3)), 1.0)
        deadline = time.monotonic() + 5.0
        while receiver.arrivals.n_received < 1 and time.monotonic() < deadline:
            receiver.step()
        outlet.close()
        for _ in range(3):
            receiver.step()
        with transport.outlet(description) as successor:
            deadline = time.monotonic() + 20.0
            while receiver.arrivals.n_received < 2 and time.monotonic() < deadline:
                successor.push(np.ones((1, 3)), 2.0)
                receiver.step()
        assert receiver.arrivals.n_received >= 2


@pytest.mark.parametrize("pinned", [True, False])
def test_another_source_takes_the_place_of_one_that_vanished_unless_one_is_configured(pinned: bool) -> None:
    transport = MemoryTransport()
    assert isinstance(transport.clock, ManualClock)
    outlet = transport.outlet(AMP)
    settings = SETTINGS.model_copy(update={"source_id": "id"}) if pinned else SETTINGS
    receiver = Receiver(transport, settings, "eeg")
    news: list[str] = []
    receiver.on_news = lambda kind, text: news.append(text)
    stranger = transport.outlet(replace(AMP, source_id="somebody else"))
    for _ in range(4):  # the first one is merely silent
        transport.clock.advance(1.0)
        receiver.step()
    assert not stranger.has_consumers()
    outlet.close()
    for _ in range(6):
        transport.clock.advance(1.0)
        receiver.step()
    stranger.push(np.zeros((1, 3)), 1.0)
    receiver.step()
    assert receiver.arrivals.n_received == (0 if pinned else 1)
    if pinned:
        assert receiver.trouble is not None
        assert receiver.trouble.kind == "stream_gone"
        transport.outlet(AMP).push(np.zeros((2, 3)), np.array([1.0, 2.0]))
        receiver.step()
        assert receiver.arrivals.n_received == 2
    else:
        assert "source id 'somebody else' after 'id'" in news[0]


def test_two_strangers_are_not_guessed_from() -> None:
    transport = MemoryTransport()
    assert isinstance(transport.clock, ManualClock)
    outlet = transport.outlet(AMP)
    receiver = Receiver(transport, SETTINGS, "eeg")
    outlet.close()
    strangers = [transport.outlet(replace(AMP, source_id=name)) for name in ("one", "two")]
    for _ in range(6):
        transport.clock.advance(1.0)
        receiver.step()
    assert not any(stranger.has_consumers() for stranger in strangers)
    strangers[1].close()
    for _ in range(3):
        transport.clock.advance(1.0)
        receiver.step()
    assert strangers[0].has_consumers()
