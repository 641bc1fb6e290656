"""The same behaviour over memory and over the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from rt_mmdf.core.errors import StreamDescriptionError, StreamNotFound
from rt_mmdf.lsl.interface import ChannelDescription, Inlet, StreamDescription, Transport
from rt_mmdf.lsl.memory import MemoryTransport
from rt_mmdf.lsl.network import NetworkTransport

N_CHANNELS = 4
LIMIT_S = 10.0


@pytest.fixture(params=["memory", pytest.param("network", marks=pytest.mark.lsl)])
def transport(request: pytest.FixtureRequest) -> Transport:
    return MemoryTransport() if request.param == "memory" else NetworkTransport()


@pytest.fixture
def opened() -> Iterator[Callable[[Any], Any]]:
    """Everything that was opened is closed, newest first."""
    things: list[Any] = []

    def remember(thing: Any) -> Any:
        things.append(thing)
        return thing

    yield remember
    for thing in reversed(things):
        thing.close()


def describe(dtype: str = "float32", **changes: Any) -> StreamDescription:
    channels = tuple(
        ChannelDescription(f"EEG {i:03d}", "EEG", "uV", (0.01 * i, -0.02, 0.09) if i else None) for i in range(N_CHANNELS)
    )
    plain = StreamDescription(
        f"test-{uuid4().hex}",
        "EEG",
        uuid4().hex,
        100.0,
        dtype,
        channels,
        {"filter/delay_ms": "12.5", "note": "grüß & <tag>"},
    )
    return replace(plain, **changes)


def find(transport: Transport, description: StreamDescription) -> StreamDescription:
    (found,) = transport.resolve(name=description.name, timeout_s=LIMIT_S)
    return found


def pull(inlet: Inlet, n_times: int) -> tuple[np.ndarray, np.ndarray]:
    """Pull until `n_times` samples are there."""
    parts, deadline = [], time.monotonic() + LIMIT_S
    while sum(len(stamps) for _, stamps in parts) < n_times and time.monotonic() < deadline:
        parts.append(inlet.pull(0.2))
    return np.concatenate([data for data, _ in parts]), np.concatenate([stamps for _, stamps in parts])


def test_the_description_arrives_as_it_was_sent(transport: Transport, opened: Callable[[Any], Any]) -> None:
    sent = describe()
    opened(transport.outlet(sent))
    found = find(transport, sent)
    assert (found.name, found.type, found.source_id, found.sfreq, found.dtype, found.n_channels) == (
        sent.name, "EEG", sent.source_id, 100.0, "float32", N_CHANNELS,
    )  # fmt: skip
    assert found.uid
    assert found.hostname
    seen = opened(transport.inlet(found)).description
    assert [(c.name, c.type, c.unit) for c in seen.channels] == [(c.name, c.type, c.unit) for c in sent.channels]
    assert seen.channels[0].position is None
    for ours, theirs in zip(seen.channels[1:], sent.channels[1:], strict=True):
        assert ours.position == pytest.approx(theirs.position, rel=1e-12)
    assert seen.extra == sent.extra
    assert transport.describe(found) == seen


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32", "int64"])
def test_samples_and_stamps_arrive_unchanged(transport: Transport, opened: Callable[[Any], Any], dtype: str) -> None:
    description = describe(dtype)
    outlet = opened(transport.outlet(description))
    inlet = opened(transport.inlet(find(transport, description)))
    assert outlet.wait_for_consumers(LIMIT_S)
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((2500, N_CHANNELS)) * 1000).astype(dtype)
    data.flags.writeable = False
    stamps = 5000.0 + np.arange(2500) / 100.0
    for start, stop in ((0, 1), (1, 2), (2, 1500), (1500, 1500), (1500, 2500)):
        outlet.push(data[start:stop], stamps[start:stop])
    got, times = pull(inlet, 2500)
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, data)
    np.testing.assert_array_equal(times, stamps)
    got[:] = 0  # the arrays are ours: nothing that comes later may depend on them
    outlet.push(data[:1], 6000.0)
    again, _ = pull(inlet, 1)
    np.testing.assert_array_equal(again, data[:1])


def test_other_layouts_and_types_are_cast(transport: Transport, opened: Callable[[Any], Any]) -> None:
    description = describe()
    outlet = opened(transport.outlet(description))
    inlet = opened(transport.inlet(find(transport, description)))
    assert outlet.wait_for_consumers(LIMIT_S)
    data = np.asfortranarray(np.arange(12.0).reshape(3, N_CHANNELS))
    outlet.push(data, np.arange(1.0, 4.0))
    outlet.push(data[::2], np.array([5.0, 6.0]))
    got, _ = pull(inlet, 5)
    np.testing.assert_array_equal(got, np.vstack([data, data[::2]]))


def test_text_arrives(transport: Transport, opened: Callable[[Any], Any]) -> None:
    description = describe("string", sfreq=0.0, channels=(ChannelDescription("a"), ChannelDescription("b")))
    outlet = opened(transport.outlet(description))
    inlet = opened(transport.inlet(find(transport, description)))
    assert outlet.wait_for_consumers(LIMIT_S)
    outlet.push(["grüß", ""], 7.0)
    outlet.push(["1", "2", "3", "4"], np.array([8.0, 9.0]))
    got, times = pull(inlet, 3)
    assert got.tolist() == [["grüß", ""], ["1", "2"], ["3", "4"]]
    assert times.tolist() == [7.0, 8.0, 9.0]


def test_an_empty_pull_returns_nothing_of_the_right_shape(transport: Transport, opened: Callable[[Any], Any]) -> None:
    description = describe()
    opened(transport.outlet(description))
    data, stamps = opened(transport.inlet(find(transport, description))).pull(0.01)
    assert data.shape == (0, N_CHANNELS)
    assert stamps.shape == (0,)


def test_streams_of_one_name_are_all_seen(transport: Transport, opened: Callable[[Any], Any]) -> None:
    """Same name, type and source id, as two machines with the same amplifier have."""
    first = describe()
    opened(transport.outlet(first))
    opened(transport.outlet(first))
    opened(transport.outlet(replace(first, type="Gaze")))
    assert len({d.uid for d in transport.resolve(name=first.name, timeout_s=LIMIT_S)}) == 3
    assert len(transport.resolve(source_id=first.source_id, type="EEG", timeout_s=LIMIT_S)) == 2
    assert len(transport.resolve(name=first.name, type="Gaze", timeout_s=LIMIT_S)) == 1
    assert transport.resolve(name=first.name, type="ECG", timeout_s=0.1) == []


def test_consumers_come_and_closed_outlets_go(transport: Transport, opened: Callable[[Any], Any]) -> None:
    description = describe()
    outlet = opened(transport.outlet(description))
    assert not outlet.has_consumers()
    found = find(transport, description)
    inlet = opened(transport.inlet(found))
    assert outlet.wait_for_consumers(LIMIT_S)
    assert outlet.has_consumers()
    inlet.close()
    inlet.close()
    outlet.close()
    outlet.close()
    with pytest.raises(StreamNotFound, match=r"gone"):
        transport.inlet(found)


@pytest.mark.parametrize(
    ("data", "stamps"),
    [
        (np.zeros((2, N_CHANNELS + 1), np.float32), np.ones(2)),
        (np.zeros((2, N_CHANNELS), np.float32), np.ones(3)),
        (np.zeros((2, N_CHANNELS), np.float32), 1.0),
        (np.zeros(N_CHANNELS, np.float32), 1.0),
    ],
)
def test_samples_of_the_wrong_shape_are_refused(
    transport: Transport, opened: Callable[[Any], Any], data: np.ndarray, stamps: Any
) -> None:
    outlet = opened(transport.outlet(describe()))
    with pytest.raises(ValueError, match="push"):
        outlet.push(data, stamps)


@pytest.mark.parametrize("changes", [{"sfreq": float("nan")}, {"sfreq": 1e12}, {"sfreq": -1.0}, {"channels": ()}])
def test_a_header_that_cannot_be_is_refused(transport: Transport, changes: dict[str, Any]) -> None:
    with pytest.raises(StreamDescriptionError):
        transport.outlet(describe(**changes))


def test_the_clock_of_the_same_machine_is_found_where_it_is(transport: Transport, opened: Callable[[Any], Any]) -> None:
    description = describe()
    opened(transport.outlet(description))
    before = transport.clock.now()
    offset = opened(transport.offset_probe(find(transport, description))).measure(LIMIT_S)
    assert offset is not None
    assert 0 <= offset.uncertainty < 0.01
    assert abs(offset.offset) <= offset.uncertainty + 1e-9
    assert before - 1.0 <= offset.at <= transport.clock.now()
