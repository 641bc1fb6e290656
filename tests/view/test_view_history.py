"""A minute of pictures out of a thousand estimates a second: laws first."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag
from rt_mmdf.view.history import MEASURES, History, Measure, Rolling, Traces

SFREQ, RATE, N = 250.0, 25.0, 7
RNG = np.random.default_rng(11)
N_TIMES = 400
TIMES = 5000.0 + np.arange(N_TIMES) / SFREQ
DATA = RNG.standard_normal((N, N_TIMES)).astype(np.float32)
FLAGS = np.zeros(N_TIMES, dtype=np.uint32)
INVALID = np.uint32(Flag.INVALID)


def history(seconds: float = 60.0, n_sources: int = N, sfreq: float = SFREQ) -> History:
    return History(n_sources, sfreq, seconds, RATE)


def everything(of: History) -> list[tuple[object, ...]]:
    """All that a reader can see."""
    frames = [of.frame(number, measure) for number in of.numbers() for measure in MEASURES]
    return [
        (f.number, f.measure, f.values.tobytes(), f.begin, f.time, f.flags, f.n_times, f.n_invalid, f.n_missing)
        for f in frames
    ] + [tuple(part.tobytes() for part in of.full_course(source)) for source in range(N)]


def worn(times: np.ndarray, data: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with all that goes wrong: holes, INVALID, NaN, infinity, missing modality, stamps that go back or stand."""
    times, data, flags = times.copy(), data.copy(), flags.copy()
    keep = np.ones(len(times), bool)
    keep[60:75] = keep[130:190] = False
    flags[20:30] |= INVALID
    data[:, 20:30] = np.nan
    data[3, 41], data[0, 52] = np.nan, np.inf
    flags[200:215] |= np.uint32(Flag.EEG_MISSING)
    flags[240:252] |= INVALID  # although there are numbers
    times[300:] -= 0.5
    times[340:352] = times[340]
    return times[keep], data[:, keep], flags[keep]


@given(cuts=st.lists(st.integers(0, 325), max_size=12))
def test_nothing_depends_on_how_the_stream_was_cut(cuts: list[int]) -> None:
    times, data, flags = worn(TIMES, DATA, FLAGS)
    whole, pieces = history(), history()
    whole.add(data, times, flags)
    for start, stop in pairwise([0, *sorted(cuts), len(times)]):
        pieces.add(data[:, start:stop], times[start:stop], flags[start:stop])
    assert everything(pieces) == everything(whole)
    assert len(whole) > 20


def test_each_measure_is_what_its_name_says() -> None:
    of = history()
    of.add(DATA, TIMES, FLAGS)
    assert len(of) == N_TIMES / 10
    for number in of.numbers():
        part = DATA[:, 10 * number : 10 * number + 10].astype(np.float64)
        wanted = {
            Measure.RMS: np.sqrt((part**2).mean(axis=1)),
            Measure.PEAK: part[np.arange(N), np.abs(part).argmax(axis=1)],
            Measure.LATEST: part[:, -1],
        }
        for measure, values in wanted.items():
            frame = of.frame(number, measure)
            np.testing.assert_allclose(frame.values, values, rtol=2**-10.9, atol=1e-6 * np.abs(values).max())
            assert (frame.time, frame.begin) == (TIMES[10 * number + 9], TIMES[10 * number])
            assert (frame.n_times, frame.n_invalid, frame.n_missing) == (10, 0, 0)
            assert frame.valid


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1.0, 1e15])
def test_half_precision_holds_for_moments_in_ampere_metres_as_for_standardised_maps(scale: float) -> None:
    of = history()
    of.add((DATA * np.float32(scale)).astype(np.float32), TIMES, FLAGS)
    frame = of.newest(Measure.LATEST)
    assert frame is not None
    wanted = DATA[:, -1].astype(np.float64) * scale
    np.testing.assert_allclose(frame.values, wanted, rtol=2**-10.9, atol=1e-7 * np.abs(wanted).max())


def test_what_is_no_estimate_is_left_out_and_counted_and_never_shown_as_one() -> None:
    of = history()
    data, flags = DATA.copy(), FLAGS.copy()
    data[:, 0:4] = np.nan
    data[2, 5] = np.inf
    flags[6:8] |= INVALID
    flags[10:20] |= INVALID
    data[4, 29] = np.nan
    of.add(data, TIMES, flags)
    first, none, latest = of.frame(0), of.frame(1), of.frame(2, Measure.LATEST)
    kept = DATA[:, [4, 8, 9]].astype(np.float64)
    np.testing.assert_allclose(first.values, np.sqrt((kept**2).mean(axis=1)), rtol=1e-3)
    assert (first.n_invalid, first.valid) == (7, True)
    for measure in MEASURES:
        empty = of.frame(1, measure)
        assert np.isnan(empty.values).all()
        assert not empty.valid
    assert none.flags & Flag.INVALID
    assert np.isnan(latest.values).all()  # the last sample was none; RMS is over the nine others
    assert of.frame(2).valid
    assert of.n_invalid == 18
    times, values = of.full_course(2)
    assert np.isnan(values[np.searchsorted(times, TIMES[5])])


def test_a_missing_modality_stays_with_its_frame() -> None:
    of = history()
    flags = FLAGS.copy()
    flags[15] = np.uint32(Flag.EEG_MISSING)
    flags[37] = np.uint32(Flag.MEG_MISSING | Flag.SETTLING)
    of.add(DATA, TIMES, flags)
    seen = [of.frame(number).flags for number in range(5)]
    assert seen == [Flag(0), Flag.EEG_MISSING, Flag(0), Flag.MEG_MISSING | Flag.SETTLING, Flag(0)]
    assert of.facts()[2].tolist()[:5] == [int(flag) for flag in seen]


def test_holes_are_counted_by_the_stamps() -> None:
    of = history()
    keep = np.ones(N_TIMES, bool)
    keep[25:68] = False
    of.add(DATA[:, keep], TIMES[keep], FLAGS[keep])
    missing = [of.frame(number).n_missing for number in of.numbers()]
    assert sum(missing) == 43
    assert missing[2:4] == [0, 43]
    assert of.frame(3).n_times == 2


def test_only_the_last_minute_is_kept_and_an_old_frame_says_so() -> None:
    of = History(N, SFREQ, seconds=1.0, frame_rate=RATE)
    for start in range(0, N_TIMES, 50):
        of.add(DATA[:, start : start + 50], TIMES[start : start + 50], FLAGS[start : start + 50])
    assert (len(of), of.first, of.stop) == (25, 15, 40)
    times, values = of.course(3, Measure.LATEST)
    np.testing.assert_array_equal(times, TIMES[159::10])
    np.testing.assert_allclose(values, DATA[3, 159::10], rtol=1e-3, atol=1e-6)
    assert of.levels(Measure.PEAK)[1].shape == (25,)
    for number in (14, 40, -1):
        with pytest.raises(IndexError, match="15 to 39"):
            of.frame(number)
    assert of.number_at(TIMES[209]) == 20
    assert of.number_at(0.0) == 15
    assert history().number_at(0.0) is None
    assert history().newest() is None


def test_memory_is_taken_at_the_start_and_stays() -> None:
    of = History(5124, 1000.0)
    before = of.nbytes
    pictures = 3 * (60 * 25 + 8) * 5124 * 2
    assert pictures < before < pictures + 2000 * 5124 * 4 + 3e6
    arrays = {name: part.ctypes.data for name, part in vars(of).items() if isinstance(part, np.ndarray)}
    data = np.ones((5124, 100), np.float32)
    for hop in range(30):
        of.add(data, 10.0 + hop / 10 + np.arange(100) / 1000, np.zeros(100, np.uint32))
    assert {name: part.ctypes.data for name, part in vars(of).items() if isinstance(part, np.ndarray)} == arrays
    assert of.nbytes == before
    assert of.full_seconds == 2.0
    assert History(20484, 1000.0).full_seconds < 1.0


def test_a_stream_slower_than_the_pictures_gives_each_sample_a_frame_at_once() -> None:
    of = History(N, 10.0, frame_rate=RATE)
    for i in range(12):
        of.add(DATA[:, i : i + 1], np.array([100.0 + i / 10]), FLAGS[:1])
        assert of.stop == i + 1
        frame = of.newest(Measure.LATEST)
        assert frame is not None
        np.testing.assert_allclose(frame.values, DATA[:, i], rtol=1e-3, atol=1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(7, 3\)"):
        history().add(DATA[:3, :3], TIMES[:3], FLAGS[:3])
    with pytest.raises(ValueError, match="positive"):
        History(0, 100.0)
    with pytest.raises(ValueError, match="positive"):
        Rolling(1, 0)


@given(cuts=st.lists(st.integers(0, 40), max_size=8))
def test_rolling_holds_the_newest_rows(cuts: list[int]) -> None:
    rows, times = np.arange(80.0).reshape(40, 2), np.arange(40.0)
    rolling = Rolling(2, 16, np.float64)
    for start, stop in pairwise([0, *sorted(cuts), 40]):
        rolling.add(rows[start:stop], times[start:stop])
    np.testing.assert_array_equal(rolling.newest()[0], times[-16:])
    np.testing.assert_array_equal(rolling.newest()[1], rows[-16:])
    np.testing.assert_array_equal(rolling.newest(3, column=1)[1], rows[-3:, 1])


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(-3, 43), st.integers(-3, 43))
def test_rolling_between_is_what_is_kept_of_that_time(cuts: list[int], start: int, stop: int) -> None:
    rows, times = np.arange(80.0).reshape(40, 2), np.arange(40.0)
    rolling = Rolling(2, 16, np.float64)
    for begin, end in pairwise([0, *sorted(cuts), 40]):
        rolling.add(rows[begin:end], times[begin:end])
    inside = (times >= start) & (times <= stop) & (times >= 24)
    np.testing.assert_array_equal(rolling.between(start, stop)[0], times[inside])
    np.testing.assert_array_equal(rolling.between(start, stop)[1], rows[inside])


def test_traces_between_two_moments() -> None:
    traces = Traces(("E1", "M1"), ("eeg", "mag"), 100.0, seconds=1.0)
    data = np.vstack([np.arange(150.0), -np.arange(150.0)]).astype(np.float32)
    data[1, 140:] = np.nan
    traces.add(data, np.arange(150) / 100)
    times, seen = traces.between(1.0, 1.2)
    np.testing.assert_allclose(times, np.arange(100, 121) / 100)
    np.testing.assert_array_equal(seen, data[:, 100:121])
    assert traces.between(0.0, 0.4)[0].size == 0  # too long ago
    assert np.isnan(traces.between(1.45, 2.0)[1][1]).all()
    assert traces.nbytes < 3000
