"""The one law that every stage keeps: what comes out does not depend on how the stream was cut into blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.core.blocks import MISSING, Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.preprocessing.bad_channels import BadChannels, BadChannelSettings
from rt_mmdf.preprocessing.decimate import Decimate
from rt_mmdf.preprocessing.filters import BandPassSettings, CausalFilter, FilterSettings, NotchSettings
from rt_mmdf.preprocessing.finite import ReplaceNonfinite
from rt_mmdf.preprocessing.suspect_channels import SuspectChannels, SuspectSettings
from rt_mmdf.preprocessing.whitening import OperatorKey, OperatorSwitch, Whitening
from rt_mmdf.solvers.interface import Operator, Whitener

SFREQ = 100.0
N_TIMES = 240
TYPES = (ChannelType.EEG,) * 6 + (ChannelType.MAG,) * 3 + (ChannelType.GRAD,) * 3
CHANNELS = Channels(tuple(f"C{i}" for i in range(12)), TYPES)
SCALE = np.array([{"eeg": 1e-5, "mag": 1e-12, "grad": 1e-11}[kind] for kind in TYPES])[:, None]
FILTERS = FilterSettings(
    band_pass=BandPassSettings(low_hz=2.0, high_hz=15.0, order=2), notch=NotchSettings(freqs_hz=(25.0,)), max_settling_s=0.4
)


class NoSolver:
    n_sources = 1
    unit = ""

    def __call__(self, window: np.ndarray, n_new: int) -> np.ndarray:
        raise AssertionError("not called here")


def whitening() -> Whitening:
    """With operators for everything but MEG alone."""
    switch = OperatorSwitch(lambda key: None)
    rng = np.random.default_rng(1)
    for missing in (set(), {Modality.MEG}):
        matrix = rng.standard_normal((12, 12)) / SCALE.T
        operator = Operator(Whitener(CHANNELS, matrix, 12), NoSolver(), frozenset(CHANNELS.names))
        switch.offer(OperatorKey(frozenset(), frozenset(missing)), operator)
    stage = Whitening(switch)
    for missing in (Flag(0), Flag.MEG_MISSING):  # both are known as the newest of their kind
        stage(block(np.zeros((12, 1)), np.array([missing], dtype=np.uint32), 0))
    return stage


def whitened_block(stage: Whitening) -> Callable[[SensorBlock], SensorBlock]:
    def run(part: SensorBlock) -> SensorBlock:
        runs = stage(part)
        data = np.hstack([r.data for r in runs]) if runs else part.data
        flags = np.concatenate([r.flags for r in runs]) if runs else part.flags
        return replace(part, data=data, flags=flags)

    return run


STAGES: dict[str, Callable[[], Callable[[SensorBlock], SensorBlock]]] = {
    "filter": lambda: CausalFilter.from_settings(FILTERS, SFREQ),
    "finite": ReplaceNonfinite,
    "decimate": lambda: Decimate(3, SFREQ, 10.0),
    "bad_channels": lambda: BadChannels(BadChannelSettings(bin_s=0.2, n_unmark=2), SFREQ, fixed=["C3"]),
    "suspect_channels": lambda: SuspectChannels(SuspectSettings(ratio=5.0), SFREQ, hold=20),
    "whitening": lambda: whitened_block(whitening()),
}


def block(data: np.ndarray, flags: np.ndarray, first: int) -> SensorBlock:
    times = (first + np.arange(data.shape[1])) / SFREQ
    return SensorBlock(CHANNELS, data.astype(np.float32), times, flags.astype(np.uint32), times + 0.01, first)


def part(whole: SensorBlock, a: int, b: int) -> SensorBlock:
    return replace(
        whole,
        data=whole.data[:, a:b].copy(),
        times=whole.times[a:b],
        flags=whole.flags[a:b].copy(),
        received=whole.received[a:b],
        first=whole.first + a,
    )


@st.composite
def streams(draw: st.DrawFn, nonfinite: bool = True) -> SensorBlock:
    """A stream with holes, absent modalities, constant and wild channels, and values that are no numbers."""
    first = draw(st.integers(0, 50))
    data = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((12, N_TIMES)) * SCALE + 100 * SCALE
    flags = np.zeros(N_TIMES, dtype=np.uint32)
    spans = st.tuples(st.integers(0, N_TIMES - 1), st.integers(1, 80)).map(lambda s: slice(s[0], s[0] + s[1]))
    for channel, span, factor in draw(
        st.lists(st.tuples(st.integers(0, 11), spans, st.sampled_from([0.0, 100.0, 1e9])), max_size=3)
    ):
        data[channel, span] *= factor
    if nonfinite:
        for channel, span, value in draw(
            st.lists(st.tuples(st.integers(0, 11), spans, st.sampled_from([np.nan, np.inf, -np.inf])), max_size=3)
        ):
            data[channel, span] = value
    for index in draw(st.lists(st.integers(0, N_TIMES - 1), max_size=3)):
        flags[index] |= np.uint32(Flag.GAP)
    for modality, span, marked in draw(
        st.lists(st.tuples(st.sampled_from(list(Modality)), spans, st.booleans()), max_size=3)
    ):
        data[CHANNELS.of_modality(modality), span] = np.nan
        flags[span] |= np.uint32(MISSING[modality])
        if marked and span.stop < N_TIMES:
            flags[span.stop] |= np.uint32(Flag.GAP)
    return block(data, flags, first)


cuts = st.lists(st.integers(0, N_TIMES), max_size=12)


@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), cuts=cuts)
def test_output_does_not_depend_on_the_cuts(name: str, data: st.DataObject, cuts: list[int]) -> None:
    stream = data.draw(streams(nonfinite=name in ("finite", "bad_channels")))
    whole = STAGES[name]()(stream)
    stage = STAGES[name]()
    edges = [0, *sorted(cuts), N_TIMES]
    out = [stage(part(stream, a, b)) for a, b in pairwise(edges)]

    joined = np.hstack([o.data for o in out])
    scale = SCALE if name != "whitening" else 100.0
    # rounding of BLAS and of the one-sample-at-a-time recursion, relative to the largest value of each channel type
    np.testing.assert_allclose(joined / scale, whole.data / scale, rtol=1e-5, atol=1e-3 if name == "whitening" else 1e-5)
    np.testing.assert_array_equal(np.concatenate([o.flags for o in out]), whole.flags)
    np.testing.assert_array_equal(np.concatenate([o.times for o in out]), whole.times)
    np.testing.assert_array_equal(np.concatenate([o.received for o in out]), whole.received)
    assert out[-1].bads == whole.bads
    at = whole.first
    for o in out:
        assert o.n_times == 0 or o.first == at
        at += o.n_times


@pytest.mark.parametrize("name", ["filter", "finite", "decimate", "bad_channels", "suspect_channels"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_reset_stage_is_as_new(name: str, data: st.DataObject) -> None:
    given_values = streams(nonfinite=name != "filter")
    before, stream = data.draw(given_values), data.draw(given_values)
    stage = STAGES[name]()
    stage(before)
    stage.reset()
    out, fresh = stage(stream), STAGES[name]()(stream)
    np.testing.assert_array_equal(out.data, fresh.data)
    np.testing.assert_array_equal(out.flags, fresh.flags)
    assert out.bads == fresh.bads


@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_no_stage_writes_into_its_input(name: str, data: st.DataObject) -> None:
    stream = data.draw(streams(nonfinite=name in ("finite", "bad_channels")))
    for array in (stream.data, stream.flags, stream.times, stream.received):
        array.setflags(write=False)
    STAGES[name]()(stream)  # ValueError from numpy if it does


@settings(max_examples=40, deadline=None)
@given(stream=streams())
def test_missing_rows_are_nan_and_present_rows_are_numbers(stream: SensorBlock) -> None:
    """Through finite, filter and decimate: NaN exactly where the flags say that a modality is missing."""
    out = Decimate(3, SFREQ, 10.0)(CausalFilter.from_settings(FILTERS, SFREQ)(ReplaceNonfinite()(stream)))
    for modality, flag in MISSING.items():
        lacking = (out.flags & flag) != 0
        rows = out.data[CHANNELS.of_modality(modality)]
        assert np.isnan(rows[:, lacking]).all()
        assert np.isfinite(rows[:, ~lacking]).all()
