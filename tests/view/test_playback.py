from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.view.playback import SPEEDS, Mode, Playback

FRAME_S = 0.04
moments = st.floats(-100, 200)
elapsed = st.lists(st.floats(0, 2), min_size=1, max_size=20)


def started(newest: float = 60.0, oldest: float = 0.0) -> Playback:
    playback = Playback(FRAME_S)
    playback.advance((oldest, newest), 0.0)
    return playback


@given(newest=st.lists(moments, min_size=1, max_size=10))
def test_live_is_the_newest_whatever_happened_before(newest: list[float]) -> None:
    playback = started()
    playback.scrub(10.0)
    playback.live()
    for end in newest:
        assert playback.advance((end - 60, end), 0.04) == end
        assert playback.behind_s == 0


@given(passed=elapsed)
def test_paused_stays_while_the_history_reaches_back_to_it(passed: list[float]) -> None:
    playback = started()
    playback.scrub(30.0)
    newest = 60.0
    for seconds in passed:
        newest += seconds
        shown = playback.advance((newest - 60, newest), seconds)
        assert shown == max(30.0, newest - 60)
        assert playback.forgotten == (newest - 60 > 30.0)


@given(cuts=st.lists(st.floats(0, 8), max_size=12), speed=st.sampled_from(SPEEDS))
def test_playing_does_not_depend_on_how_time_was_cut(cuts: list[float], speed: float) -> None:
    playback = started()
    playback.scrub(20.0)
    playback.play(speed)
    for start, stop in pairwise([0.0, *sorted(cuts), 8.0]):
        playback.advance((0.0, 60.0), stop - start)
    assert playback.shown == pytest.approx(20.0 + 8.0 * speed)


@given(n=st.integers(-400, 400))
def test_steps_there_and_back_again(n: int) -> None:
    playback = started()
    playback.scrub(30.0)
    playback.step(n)
    assert playback.mode is Mode.PAUSED
    assert playback.shown == pytest.approx(30.0 + n * FRAME_S)
    playback.step(-n)
    assert playback.shown == pytest.approx(30.0)


@given(moment=moments)
def test_what_is_shown_lies_within_the_history(moment: float) -> None:
    playback = started(oldest=5.0)
    playback.scrub(moment)
    assert playback.shown == min(max(moment, 5.0), 60.0)
    assert playback.advance((5.0, 60.0), 0.1) == playback.shown


def test_full_speed_becomes_live_at_the_newest_and_slow_never_overtakes_it() -> None:
    playback = started()
    playback.scrub(59.0)
    playback.play(1.0)
    assert playback.advance((0.0, 60.0), 2.0) == 60.0
    assert playback.mode is Mode.LIVE

    playback.play(0.5)
    assert playback.advance((0.0, 60.0), 5.0) == 60.0
    assert playback.mode is Mode.PLAYING  # the stream may go on: it stays slow


def test_slower_goes_through_all_speeds_and_round() -> None:
    playback = started()
    seen = []
    for _ in range(len(SPEEDS)):
        playback.slower()
        seen.append(playback.speed)
    assert seen == [*SPEEDS[1:], SPEEDS[0]]


def test_without_a_history_nothing_is_shown_and_with_one_it_starts_anew() -> None:
    playback = started()
    playback.scrub(10.0)
    assert playback.advance(None, 0.04) is None
    assert playback.shown is None
    playback.step(1)
    assert playback.advance((100.0, 101.0), 0.04) == 101.0


def test_words_name_mode_speed_and_distance() -> None:
    playback = started()
    assert playback.words() == "LIVE"
    playback.scrub(57.5)
    assert playback.words() == "PAUSED, 2.5 s behind"
    playback.play(0.25)
    playback.advance((59.0, 60.0), 0.0)
    assert playback.words() == "PLAYING ×0.25, 1.0 s behind, no older is kept"


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_frames_and_speeds_are_positive(wrong: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        Playback(wrong)
    with pytest.raises(ValueError, match="more than 0"):
        started().play(wrong)
