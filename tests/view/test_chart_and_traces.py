from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.view.panels.chart import SteadyRange, nice_ceiling, number, readable_unit, runs_of
from rt_mmdf.view.panels.traces import density, inked, on_columns


@given(value=st.floats(1e-18, 1e9))
def test_nice_ceiling_is_1_2_5_and_not_far_above(value: float) -> None:
    nice = nice_ceiling(value)
    assert value * (1 - 1e-6) <= nice <= 2.5 * value * (1 + 1e-6)
    assert f"{nice:.6e}"[0] in "125"


@given(high=st.floats(1e-15, 1e-4))
def test_readable_moments_lie_between_1_and_1000(high: float) -> None:
    factor, unit = readable_unit(high, "A m")
    assert 1 - 1e-9 <= high * factor < 1000.001
    assert unit.endswith("A m")


def test_sensors_have_the_units_of_the_field() -> None:
    assert [readable_unit(1.0, unit) for unit in ("V", "T", "T/m")] == [
        (1e6, "µV"),
        (1e15, "fT"),
        (1e13, "fT/cm"),
    ]
    assert [number(value) for value in (0.05, 2.0, 12.34, 150.4, 1200.0)] == ["0.05", "2", "12.3", "150", "1200"]


@given(looks=st.lists(st.floats(1e-15, 1e3), min_size=1, max_size=60))
def test_a_steady_range_holds_everything_and_narrows_only_after_a_calm(looks: list[float]) -> None:
    steady, calm = SteadyRange(calm=5), 0
    before = 0.0
    for look in looks:
        calm = calm + 1 if look < before / 3 else 0
        high = steady.hold(look)
        assert high >= look * (1 - 1e-9)
        if high < before:
            assert calm >= 5
        calm = 0 if high != before else calm
        before = high
    assert steady.hold(float("nan")) == before
    assert steady.hold(0.0) == before


@given(wanted=st.lists(st.booleans(), max_size=30))
def test_runs_cover_what_is_wanted_and_nothing_else(wanted: list[bool]) -> None:
    covered = np.zeros(len(wanted), bool)
    for start, stop in runs_of(np.array(wanted, bool)):
        assert not covered[start:stop].any()
        covered[start:stop] = True
    np.testing.assert_array_equal(covered, np.array(wanted, bool))


@given(n_times=st.integers(2, 200), n_columns=st.integers(1, 80), seed=st.integers(0, 10))
def test_columns_lose_no_extreme_and_invent_none(n_times: int, n_columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.arange(n_times) / 100
    data = rng.standard_normal((3, n_times)).astype(np.float32)
    low, high = on_columns(times, data, 0.0, float(times[-1]) + 1e-9, n_columns)
    np.testing.assert_allclose(np.nanmin(low, axis=1), data.min(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.nanmax(high, axis=1), data.max(axis=1), rtol=1e-4, atol=1e-5)
    assert (low <= high).all()


def test_columns_before_the_first_and_after_the_last_sample_are_empty() -> None:
    times, data = np.array([1.0, 1.9]), np.ones((1, 2), np.float32)
    low, _ = on_columns(times, data, 0.0, 4.0, 4)
    np.testing.assert_array_equal(np.isfinite(low), [[False, True, False, False]])
    assert not np.isfinite(on_columns(times[:1], data[:, :1], 0.0, 4.0, 4)[0]).any()


def test_a_hole_in_the_data_is_a_hole_in_the_line() -> None:
    times = np.arange(101) / 10
    data = np.ones((1, 101), np.float32)
    data[:, 40:60] = np.nan
    low, _ = on_columns(times, data, 0.0, 10.0, 20)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(low[0])), np.arange(8, 12))


@given(n_channels=st.integers(1, 8), n_rows=st.integers(1, 40), seed=st.integers(0, 20))
def test_every_channel_marks_one_unbroken_stretch_of_every_column(n_channels: int, n_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.uniform(-1.5, 1.5, (2, n_channels, 10)), axis=0).astype(np.float32)
    total = density(ends[0], ends[1], n_rows)
    one_by_one = [density(ends[0, k : k + 1], ends[1, k : k + 1], n_rows) for k in range(n_channels)]
    np.testing.assert_array_equal(total, np.sum(one_by_one, axis=0))
    for counts in one_by_one:
        assert set(np.unique(counts)) <= {0, 1}
        assert (np.abs(np.diff(counts, axis=0, prepend=0, append=0)).sum(axis=0) == 2).all()


def test_what_is_positive_is_drawn_upwards_and_nan_not_at_all() -> None:
    low = np.array([[0.9, -1.0, np.nan]], np.float32)
    counts = density(low, low + np.float32(0.05), 10)
    assert counts[0].tolist() == [1, 0, 0]
    assert counts[9].tolist() == [0, 1, 0]
    assert counts.sum() == 2


def test_ink_is_the_colour_and_the_more_channels_the_thicker() -> None:
    pixels = inked(np.array([[0, 1, 5, 500]], np.int32), "#ff8000")
    np.testing.assert_array_equal(pixels[0, 0], 0)
    assert np.all(np.diff(pixels[0, :, 3].astype(int)) > 0)
    assert pixels[0, 3].tolist() == pytest.approx([0, 128, 255, 255], abs=1)
