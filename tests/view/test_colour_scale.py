from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.view.colours import HIGH_MOMENT, ColourScale

PART = st.floats(0.0, 1.0)
LIMITS = st.tuples(PART, PART, st.floats(1.01, 3.0)).map(lambda v: (min(v[:2]), max(v[:2]), v[2]))


@given(limits=LIMITS, size=st.floats(1e-12, 1e3), signed=st.booleans())
def test_the_ramp_is_monotone_and_nothing_is_shown_below_its_start(
    limits: tuple[float, float, float], size: float, signed: bool
) -> None:
    low, full, high = (size * limit for limit in limits)
    scale = ColourScale("A m", signed=signed, low=low, full=full, high=high)
    values = np.linspace(0, 1.2 * high, 300)
    index = np.rint(255 * scale.positions(values)).astype(int)
    opacity = scale.table()[index, 3].astype(int)
    assert (np.diff(opacity) >= 0).all()
    step = high / 100  # of the table
    assert (opacity[values < low - step] == 0).all()
    assert (opacity[values > full + step] == 255).all()
    if signed:
        mirrored = np.rint(255 * scale.positions(-values)).astype(int)
        assert np.abs(mirrored - (255 - index)).max() <= 1  # halves are rounded to even
        np.testing.assert_array_equal(scale.table()[::-1, 3], scale.table()[:, 3])


@given(limits=LIMITS, signed=st.booleans())
def test_zero_is_never_coloured(limits: tuple[float, float, float], signed: bool) -> None:
    scale = ColourScale("dSPM", signed=signed, low=limits[0], full=limits[1], high=limits[2])
    where = 255 * scale.positions(np.zeros(1))[0]
    assert scale.table()[[int(np.floor(where)), int(np.ceil(where))], 3].max() == 0


def test_colours_are_those_of_pictures_on_paper() -> None:
    for signed in (False, True):
        scale = ColourScale("dSPM", signed=signed, high=10.0)
        values = np.linspace(-10 if signed else 0, 10, 256)
        rgb, opacity = scale.ramp.colours(values)
        shown = opacity > 0.05
        np.testing.assert_allclose(scale.table()[shown, :3] / 255, rgb[shown], atol=0.003)


@pytest.mark.parametrize("signed", [False, True])
def test_brightness_or_hue_tells_the_order_whatever_the_colour_vision(signed: bool) -> None:
    scale = ColourScale("dSPM", signed=signed, low=0.0, full=0.0, high=1.0)
    table = scale.table()[:, :3] / 255.0
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    if signed:  # both ends darken; blue or red tells the sign: the two channels that no common dichromat confuses
        assert (np.diff(luminance[:127]) > -1e-3).all()
        assert (np.diff(luminance[129:]) < 1e-3).all()
        assert (table[:120, 2] - table[:120, 0] > 0.2).all()
        assert (table[136:, 0] - table[136:, 2] > 0.2).all()
    else:
        assert (np.diff(luminance) > -1e-3).all()


@given(frames=st.lists(st.floats(0, 1e3), max_size=20), seconds=st.floats(0, 100))
def test_fixed_limits_never_change(frames: list[float], seconds: float) -> None:
    scale = ColourScale("dSPM", low=1.0, full=2.0, high=5.0)
    table = scale.table().copy()
    for peak in frames:
        assert scale.observe(np.array([peak, np.nan]), seconds) is False
    assert (scale.low, scale.full, scale.high, scale.says) == (1.0, 2.0, 5.0, "fixed")
    np.testing.assert_array_equal(scale.table(), table)


@given(peak=st.floats(1e-12, 1e3), seconds=st.floats(1e-4, 5.0), constant=st.floats(1.0, 60.0))
def test_auto_moves_slowly_and_does_not_depend_on_how_time_is_cut(peak: float, seconds: float, constant: float) -> None:
    once = ColourScale("dSPM", high=10.0, mode="auto", time_constant_s=constant)
    often = ColourScale("dSPM", high=10.0, mode="auto", time_constant_s=constant)
    frame = np.array([np.nan, -peak, 0.3 * peak])
    once.observe(frame, seconds)
    for _ in range(8):
        often.observe(frame, seconds / 8)
    assert often.high == pytest.approx(once.high, rel=1e-9)
    assert abs(once.high - 10.0) <= abs(peak - 10.0) * seconds / constant * (1 + 1e-9)
    assert min(10.0, peak) * (1 - 1e-12) <= once.high <= max(10.0, peak) * (1 + 1e-12)
    assert once.low / once.high == pytest.approx(0.35)
    assert once.full / once.high == pytest.approx(0.55)


def test_auto_arrives_says_so_and_changes_its_table_only_then() -> None:
    scale = ColourScale("dSPM", signed=True, low=2.0, full=2.0, high=10.0, mode="auto", time_constant_s=5.0)
    before = scale.ticks
    assert scale.says == "auto, 5 s"
    for _ in range(25 * 60):
        scale.observe(np.array([3.0, -40.0]), 0.04)
    assert scale.high == pytest.approx(40.0, rel=1e-3)
    assert scale.ticks != before
    for nothing in (np.full(3, np.nan), np.zeros(3), np.zeros(0)):
        assert scale.observe(nothing, 1.0) is False


def test_a_baseline_shows_nothing_in_most_of_its_frames() -> None:
    frames = np.random.default_rng(1).standard_normal((500, 400)) * 3e-9
    frames[:, 7] = np.nan
    scale = ColourScale("A m", signed=True).calibrated(frames)
    shown = (np.nan_to_num(np.abs(frames)) > scale.low).any(axis=0)
    assert 0.02 < shown.mean() < 0.08
    assert (scale.mode, scale.signed, scale.unit) == ("fixed", True, "A m")
    for empty in (np.full((5, 3), np.nan), np.zeros((5, 3)), np.zeros((5, 0))):
        with pytest.raises(ConfigurationError, match="baseline of shape"):
            scale.calibrated(empty)


@pytest.mark.parametrize(
    ("unit", "high", "label", "last"),
    [
        ("A m", 20e-9, "nA m", "20"),
        ("A m", 3e-12, "pA m", "3"),
        ("dSPM", 12.0, "dSPM", "12"),
        ("sLORETA", 0.5, "sLORETA", "0.5"),
    ],
)
def test_numbers_are_readable(unit: str, high: float, label: str, last: str) -> None:
    scale = ColourScale(unit, high=high)
    assert scale.label == label
    assert scale.ticks[0] == (0.0, "0")
    assert scale.ticks[-1] == (1.0, last)
    signed = ColourScale(unit, high=high, signed=True).ticks
    places = [place for place, _ in signed]
    assert places == sorted(places)
    assert (signed[0][1], signed[len(signed) // 2]) == (f"\N{MINUS SIGN}{last}", (0.5, "0"))


@pytest.mark.parametrize(
    "limits", [(2.0, 1.0, 5.0), (0.0, 6.0, 5.0), (-1.0, 1.0, 5.0), (0.0, 1.0, float("inf")), (5.0, 5.0, 5.0)]
)
def test_limits_out_of_order_are_refused(limits: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigurationError, match="0 <= low <= full < high"):
        ColourScale("dSPM", low=limits[0], full=limits[1], high=limits[2])


def test_changing_mode_keeps_limits_and_limits_by_hand_are_fixed() -> None:
    scale = ColourScale("A m", mode="auto")
    assert scale.high == HIGH_MOMENT
    scale.observe(np.array([1e-7]), 4.0)
    fixed = scale.in_mode("fixed")
    assert (fixed.low, fixed.full, fixed.high, fixed.mode) == (scale.low, scale.full, scale.high, "fixed")
    assert scale.with_limits(5e-9).mode == "fixed"
    with pytest.raises(ConfigurationError, match="time constant 0 s"):
        ColourScale("A m", time_constant_s=0.0)
