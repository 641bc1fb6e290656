"""The short resampler against ideal delays, and against a very long sinc."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.alignment.resampler import FractionalResampler

RATES = [(1000, 1000), (500, 1000), (512, 1000), (300.3, 300.3), (2048, 1000), (5000, 1000), (1000, 250)]


@pytest.fixture(scope="module", params=RATES, ids=lambda r: f"{r[0]:g}-to-{r[1]:g}")
def resampler(request: pytest.FixtureRequest) -> FractionalResampler:
    return FractionalResampler(*request.param)


def test_look_ahead_is_at_most_10_ms(resampler: FractionalResampler) -> None:
    assert resampler.n_ahead / resampler.sfreq_in <= 0.010 + 1e-9


def test_pass_band_is_exact_to_a_tenth_of_a_percent(resampler: FractionalResampler) -> None:
    x_of = np.linspace(0.02, 1.0, 17) * resampler.pass_hz
    t = np.arange(400) / resampler.sfreq_in
    position = 200 + np.linspace(0, 20, 41) * 0.937
    for hz in x_of:
        got = resampler(np.sin(2 * np.pi * hz * t)[None].astype(np.float32), position)[0]
        ideal = np.sin(2 * np.pi * hz * position / resampler.sfreq_in)
        assert np.abs(got - ideal).max() < 1e-3


def test_pass_band_is_wide_enough_to_image_with(resampler: FractionalResampler) -> None:
    lower = min(resampler.sfreq_in, 1000.0)
    assert resampler.pass_hz >= min(0.3 * lower, 65.0)


def test_what_would_alias_into_the_pass_band_is_gone() -> None:
    resampler = FractionalResampler(2048, 1000)
    t = np.arange(3000) / 2048
    position = 500 + np.arange(400) * 2.048
    for hz in (650.0, 800.0, 990.0):
        got = resampler(np.sin(2 * np.pi * hz * t)[None].astype(np.float32), position)
        assert np.abs(got).max() < 2e-3


@given(offset=st.floats(-1e4, 1e4), fraction=st.floats(0, 1, exclude_max=True))
def test_constants_stay_constants(offset: float, fraction: float) -> None:
    resampler = FractionalResampler(500, 1000)
    got = resampler(np.full((1, 100), offset, np.float32), np.arange(40, 50) + fraction)
    np.testing.assert_allclose(got, np.float32(offset), rtol=2e-7, atol=1e-30)


def test_whole_positions_give_the_samples_themselves_in_the_pass_band() -> None:
    resampler = FractionalResampler(1000, 1000)
    x = np.sin(2 * np.pi * 40 * np.arange(200) / 1000)[None].astype(np.float32)
    np.testing.assert_allclose(resampler(x, np.arange(50.0, 60.0))[0], x[0, 50:60], atol=1e-3)


def test_many_positions_are_computed_in_pieces_and_alike() -> None:
    resampler = FractionalResampler(500, 1000)
    x = np.random.default_rng(0).standard_normal((2, 600)).astype(np.float32)
    position = 50 + np.arange(1000) * 0.5003
    one_by_one = np.hstack([resampler(x, position[i : i + 1]) for i in range(len(position))])
    np.testing.assert_allclose(resampler(x, position), one_by_one, rtol=1e-6, atol=1e-6)
