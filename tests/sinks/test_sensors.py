"""Sensors for displays: fewer samples, nothing hidden, whatever the cuts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.lsl.memory import MemoryTransport
from rt_mmdf.sinks.sensors import SensorOutlet, decimation_of
from rt_mmdf.sinks.settings import SensorStreamSettings

POSITIONS = np.array([[0.0, 0.1, 0.2], [np.nan] * 3, [0.0, 0.0, 0.1]])
CHANNELS = Channels(("Cz", "Fz", "MEG 0111"), (ChannelType.EEG, ChannelType.EEG, ChannelType.MAG), POSITIONS)
N, SFREQ = 120, 1000.0
RNG = np.random.default_rng(5)
DATA = RNG.standard_normal((3, N)).astype(np.float32)
FLAGS = np.zeros(N, np.uint32)
FLAGS[40:47] |= np.uint32(Flag.EEG_MISSING)
FLAGS[77] |= np.uint32(Flag.MEG_MISSING)
FLAGS[100] |= np.uint32(Flag.SETTLING)
DATA[:2, 40:47] = np.nan
DATA[2, 77] = np.nan
WHOLE = SensorBlock(CHANNELS, DATA, np.arange(N) / SFREQ + 7, FLAGS, np.zeros(N), 40)


def part(start: int, stop: int) -> SensorBlock:
    return replace(
        WHOLE,
        data=DATA[:, start:stop],
        times=WHOLE.times[start:stop],
        flags=FLAGS[start:stop],
        received=WHOLE.received[start:stop],
        first=WHOLE.first + start,
    )


def published(settings: SensorStreamSettings, blocks: list[SensorBlock]) -> tuple[np.ndarray, np.ndarray]:
    transport = MemoryTransport()
    with SensorOutlet(transport, "s", CHANNELS, SFREQ, 12.0, settings) as outlet:
        inlet = transport.inlet(transport.resolve(name="s")[0])
        for block in blocks:
            outlet.publish(block)
        return inlet.pull(0.0)


@pytest.mark.parametrize("reduction", ["latest", "peak"])
@given(cuts=st.lists(st.integers(0, N), max_size=8), max_hz=st.sampled_from([1000.0, 500.0, 333.4, 200.0, 30.0]))
def test_the_cuts_do_not_matter(reduction: str, cuts: list[int], max_hz: float) -> None:
    settings = SensorStreamSettings(max_hz=max_hz, reduction=reduction)  # type: ignore[arg-type]
    edges = [0, *sorted(cuts), N]
    got, wanted = published(settings, [part(a, b) for a, b in pairwise(edges)]), published(settings, [WHOLE])
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@given(n=st.integers(1, 40))
def test_of_every_interval_the_peak_is_shown_and_what_is_missing_is_nan(n: int) -> None:
    data, stamps = published(SensorStreamSettings(max_hz=SFREQ / n, reduction="peak"), [WHOLE])
    absolute = WHOLE.first + np.arange(N)
    ends = [i for i in range(N) if (absolute[i] + 1) % n == 0 and i + 1 >= n]
    whole = [i for i in range(N) if (absolute[i] + 1) % n == 0]
    np.testing.assert_array_equal(stamps, WHOLE.times[whole])
    for row, end in zip(data[len(whole) - len(ends) :], ends, strict=True):
        interval = slice(end + 1 - n, end + 1)
        for channel, bit in ((0, Flag.EEG_MISSING), (1, Flag.EEG_MISSING), (2, Flag.MEG_MISSING)):
            own = DATA[channel, interval]
            if (FLAGS[interval] & bit).any():
                assert np.isnan(row[channel])
            else:
                assert row[channel] == own[np.abs(own).argmax()]
    assert np.isnan(data[: len(whole) - len(ends)]).all()  # an interval that began before we heard of it


def test_hops_that_were_left_out_are_not_joined_over() -> None:
    settings = SensorStreamSettings(max_hz=100.0, reduction="peak")
    data, stamps = published(settings, [part(0, 24), part(36, N)])
    at = np.rint((stamps - 7) * SFREQ).astype(int)
    assert at.tolist() == [9, 19, 39, 49, 59, 69, 79, 89, 99, 109, 119]
    assert np.isnan(data[2]).all()
    assert np.isfinite(data[[0, 1, 4, 5, 7]]).all()


def test_the_description_is_complete() -> None:
    transport = MemoryTransport()
    settings = SensorStreamSettings(max_hz=250.0)
    with SensorOutlet(transport, "s", CHANNELS, SFREQ, 12.0, settings, {"streams/health": "h"}):
        stream = transport.describe(transport.resolve(name="s")[0])
    assert [(c.name, c.type, c.unit) for c in stream.channels] == [
        ("Cz", "eeg", "V"),
        ("Fz", "eeg", "V"),
        ("MEG 0111", "mag", "T"),
    ]
    assert [c.position for c in stream.channels] == [(0.0, 0.1, 0.2), None, (0.0, 0.0, 0.1)]
    assert stream.extra["sensors/decimation"] == "4"
    assert stream.extra["filter/delay_ms"] == "12"
    assert stream.extra["streams/health"] == "h"
    assert transport.resolve(name="s") == []


@pytest.mark.parametrize(("sfreq", "n"), [(1000.0, 4), (250.0, 1), (250.000001, 1), (251.0, 2), (300.3, 2), (5000.0, 20)])
def test_the_rate_is_never_above_the_limit(sfreq: float, n: int) -> None:
    assert decimation_of(SensorStreamSettings(), sfreq) == n
