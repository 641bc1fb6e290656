"""Running averages: mne's own, whatever the cuts and whenever the markers come; and what is not averaged, and why."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rt_mmdf.core.blocks import Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.preprocessing.averaging import AveragingSettings, RunningAverages, published_latencies

SFREQ, T0, FIRST = 250.0, 5000.0, 700
KINDS = ("eeg", "eeg", "mag", "grad", "grad")
CHANNELS = Channels(tuple(f"C{i}" for i in range(5)), tuple(ChannelType(kind) for kind in KINDS))
LEVEL = {"eeg": 5e-6, "mag": 2e-13, "grad": 5e-12}
N = 2000
DATA = (np.random.default_rng(1).standard_normal((5, N)) * [[LEVEL[kind]] for kind in KINDS]).astype(np.float32)
EVENTS = [(60, "1"), (61, "2"), (400, "1"), (402, "1"), (777, "2"), (1200, "1"), (1500, "3"), (1930, "1"), (1999, "2")]


def settings(**given: Any) -> AveragingSettings:
    return AveragingSettings.model_validate({"events": {"left": [1], "both": ["1", 2]}, **given})


def block(start: int, stop: int, data: np.ndarray = DATA, **given: Any) -> SensorBlock:
    times = T0 + np.arange(start, stop) / SFREQ
    flags = np.zeros(stop - start, np.uint32)
    content = {"flags": flags, "received": times, "first": FIRST + start, **given}
    return SensorBlock(CHANNELS, data[:, start:stop], times, **content)


def averaged(own: AveragingSettings, events: list[tuple[int, str]] = EVENTS, data: np.ndarray = DATA) -> RunningAverages:
    averages = RunningAverages(own, CHANNELS, SFREQ)
    for sample, text in events:
        averages.mark(text, T0 + sample / SFREQ)
    averages(block(0, data.shape[1], data))
    return averages


@pytest.mark.parametrize("baseline", [None, False, (-0.05, 0.102), (0.1, 0.3)])
@pytest.mark.parametrize("reject", [{}, {"eeg": 2.7e-5, "grad": 2.9e-11}])
def test_it_is_the_average_of_mne(baseline: Any, reject: dict[str, float]) -> None:
    own = settings(tmin_s=-0.1, tmax_s=0.3, baseline_s=baseline, reject=reject)
    averages = averaged(own)
    raw = mne.io.RawArray(DATA.astype(float), mne.create_info(list(CHANNELS.names), SFREQ, list(KINDS)), verbose="ERROR")
    wanted_span = {None: (-0.1, 0.0), False: None}.get(baseline, baseline)
    for name, markers in (("left", {"1"}), ("both", {"1", "2"})):
        samples = [sample for sample, text in EVENTS if text in markers and sample + round(0.3 * SFREQ) < N]
        epochs = mne.Epochs(
            raw,
            np.array([[sample, 0, 1] for sample in samples]),
            tmin=-0.1,
            tmax=0.3,
            baseline=wanted_span,
            reject=reject or None,
            proj=False,
            preload=True,
            verbose="ERROR",
        )
        got, wanted = averages.average(name), epochs.average()
        assert got.n_trials == wanted.nave > 0
        assert got.n_rejected == len(samples) - got.n_trials  # the last events' epochs are not complete: they wait
        assert bool(reject) == (got.n_rejected > 0)
        np.testing.assert_allclose(averages.latencies, wanted.times, atol=1e-12)
        np.testing.assert_allclose(got.data, wanted.data, rtol=1e-9, atol=1e-9 * np.abs(wanted.data).min(axis=1).max())
        # the newest trial that mne kept
        assert got.newest == pytest.approx(T0 + epochs.events[-1, 0] / SFREQ, abs=1e-9)


@given(
    cuts=st.lists(st.integers(0, N), max_size=15),
    delays=st.lists(st.integers(0, round(1.9 * SFREQ)), min_size=len(EVENTS), max_size=len(EVENTS)),
)
def test_neither_the_cuts_nor_the_delay_of_the_markers_matter(cuts: list[int], delays: list[int]) -> None:
    own = settings(reject={"eeg": 2.7e-5})
    wanted = averaged(own)
    averages = RunningAverages(own, CHANNELS, SFREQ)
    edges = [0, *sorted(cuts), N]
    # a marker comes with the first block that ends after its time and its delay, or at the end
    coming = sorted((sample + delay, sample, text) for (sample, text), delay in zip(EVENTS, delays, strict=True))
    for start, stop in pairwise(edges):
        while coming and coming[0][0] < start:
            _, sample, text = coming.pop(0)
            averages.mark(text, T0 + sample / SFREQ)
        if stop - start <= round(1.9 * SFREQ):
            averages(block(start, stop))
        else:  # a marker must not wait longer than the ring is long
            for a in range(start, stop, 50):
                averages(block(a, min(stop, a + 50)))
                while coming and coming[0][0] < a:
                    _, sample, text = coming.pop(0)
                    averages.mark(text, T0 + sample / SFREQ)
    for _, sample, text in coming:
        averages.mark(text, T0 + sample / SFREQ)
    averages.settle()
    for name in own.events:
        got, expected = averages.average(name), wanted.average(name)
        assert (got.n_trials, got.newest, got.bads) == (expected.n_trials, expected.newest, expected.bads)
        assert averages.rejected(name) == wanted.rejected(name)
        np.testing.assert_allclose(got.data, expected.data, rtol=1e-9, atol=1e-9 * np.abs(expected.data).max())


@given(offset=st.floats(-0.49, 0.49))
def test_an_event_falls_on_the_nearest_sample(offset: float) -> None:
    averages = RunningAverages(settings(baseline_s=False), CHANNELS, SFREQ)
    averages.mark("1", T0 + (400 + offset) / SFREQ)
    averages(block(0, 600))
    start = 400 + round(-0.1 * SFREQ)
    np.testing.assert_array_equal(averages.average("left").data, DATA[:, start : start + 126])


@pytest.mark.parametrize(
    "flag", [Flag.EEG_MISSING, Flag.MEG_MISSING, Flag.GAP, Flag.NONFINITE, Flag.SETTLING, Flag.CLOCK_UNCERTAIN]
)
def test_one_flagged_sample_rejects_a_trial(flag: Flag) -> None:
    for at, hit in ((399 - 25, False), (400 - 25, True), (400 + 100, True), (400 + 101, False)):
        averages = RunningAverages(settings(), CHANNELS, SFREQ)
        averages.mark("1", T0 + 400 / SFREQ)
        flags = np.zeros(600, np.uint32)
        flags[at] = flag
        assert set(averages(block(0, 600, flags=flags))) == {"left", "both"}
        rejected = hit and flag is not Flag.CLOCK_UNCERTAIN  # that is of milliseconds: an average is none the worse
        assert averages.average("left").n_trials == (0 if rejected else 1)
        assert averages.rejected("left") == ({"flagged": 1} if rejected else {})


def test_events_whose_samples_are_not_there_are_rejected_with_the_reason() -> None:
    averages = RunningAverages(settings(), CHANNELS, SFREQ)
    averages.mark("1", T0 - 1.0)  # before the first sample
    averages(block(0, 1300))
    averages.mark("1", T0 + 0.1)  # 5 s late
    averages(block(1300, 1310))
    assert averages.rejected("left") == {"samples not there": 2}
    averages.mark("1", T0 + 1e6)
    assert set(averages(block(1310, 1320))) == {"left", "both"}
    assert averages.rejected("left") == {"samples not there": 2, "stamped ahead": 1}
    averages.mark("1", T0 + 1400 / SFREQ)
    averages(block(1320, 1450))
    averages(block(1460, 1700))  # ten samples are left out: nothing is joined over them
    assert averages.rejected("left")["samples not there"] == 3
    assert averages.average("left").n_trials == 0
    assert np.isnan(averages.average("left").data).all()


def test_other_markers_and_times_that_are_none_are_counted() -> None:
    averages = RunningAverages(settings(), CHANNELS, SFREQ)
    averages.mark("7", T0)
    averages.mark("1", float("nan"))
    averages(block(0, 1000))
    assert averages.n_unknown == 2
    assert averages.average("left").n_rejected == 0


def test_more_events_than_can_be_kept_are_counted_not_kept() -> None:
    averages = RunningAverages(settings(), CHANNELS, SFREQ)
    for _ in range(1500):
        averages.mark("1", T0 + 500 / SFREQ)
    averages(block(0, 1000))
    for name in ("left", "both"):
        got = averages.average(name)
        assert got.n_trials == 500
        assert averages.rejected(name) == {"too many events at once": 1000}


def test_a_restart_forgets_the_trials_and_not_the_samples() -> None:
    averages = averaged(settings(), [(400, "1"), (1990, "1")])
    assert averages.average("left").n_trials == 1
    averages.restart()
    assert averages.average("left").n_trials == 0
    averages.mark("1", T0 + 1800 / SFREQ)
    averages.settle()
    averages(block(N, N + 200, np.hstack([DATA, DATA])))
    assert averages.average("left").n_trials == 1  # not the one that was waiting at 1990
    assert averages.average("left").newest == pytest.approx(T0 + 1800 / SFREQ)


def test_bad_channels_reject_nothing_and_are_bad_in_the_average() -> None:
    data = DATA.copy()
    data[0, 380] = 1.0
    for bads, n_trials in ((frozenset(), 0), (frozenset({"C0"}), 1)):
        averages = RunningAverages(settings(reject={"eeg": 1e-3}), CHANNELS, SFREQ)
        averages.mark("1", T0 + 400 / SFREQ)
        averages(block(0, 376, data))
        averages(block(376, 390, data, bads=bads))
        averages(block(390, 600, data))
        got = averages.average("left")
        assert (got.n_trials, got.bads) == (n_trials, bads)


@pytest.mark.parametrize("sfreq", [250.0, 1000.0, 1000.0 / 3, 300.307])
@pytest.mark.parametrize("max_hz", [50.0, 100.0, 250.0, 1e4])
def test_the_event_itself_is_published_and_the_rate_is_kept(sfreq: float, max_hz: float) -> None:
    latencies = np.arange(round(-0.1 * sfreq), round(0.4 * sfreq) + 1) / sfreq
    kept = latencies[published_latencies(latencies, sfreq, max_hz)]
    assert np.abs(kept).min() == 0
    rate = 1 / np.diff(kept)
    assert rate.max() <= max_hz * (1 + 1e-9) or rate.max() == pytest.approx(sfreq)
    np.testing.assert_allclose(rate, rate[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tmin_s": 0.4, "tmax_s": 0.1}, "must be before"),
        ({"baseline_s": (-0.2, 0.0)}, "within tmin_s"),
        ({"tmin_s": 0.05}, "baseline_s = false"),
        ({"events": {"a b": ["1"]}}, "name of a stream"),
        ({"events": {"a": []}}, "at least one marker"),
        ({"events": {}}, "at least 1"),
        ({"reject": {"eeg": 0.0}}, "greater than 0"),
        ({"reject": {"eog": 1.0}}, "eeg"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**wrong)
