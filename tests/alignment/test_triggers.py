"""Onsets of triggers in digital and analogue channels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.alignment.triggers import find_onsets

SFREQ = 1000.0
AT = np.array([100.3, 512.0, 900.9, 1700.5])  # samples


def codes(values: list[int], rest: int = 0, hold: int = 20) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(2000)
    channel = np.full(2000, float(rest))
    for at, value in zip(AT, values, strict=True):
        start = int(np.ceil(at))
        channel[start : start + hold] = value
    return index, channel


@pytest.mark.parametrize(("values", "rest"), [([1, 1, 1, 1], 0), ([1, 2, 255, 2], 0), ([4096] * 4, 65280), ([0] * 4, 5)])
def test_steps_of_a_digital_channel(values: list[int], rest: int) -> None:
    onsets = find_onsets(*codes(values, rest), SFREQ)
    np.testing.assert_allclose(onsets.at, np.ceil(AT) - 0.5)
    assert not onsets.resolved.any()


def test_codes_that_stay_and_bits_that_come_one_after_the_other() -> None:
    index, channel = np.arange(2000), np.zeros(2000)
    for code, at in enumerate(AT, start=1):
        channel[int(np.ceil(at)) :] = 2 * code
        channel[int(np.ceil(at))] = 2 * code - 1  # one sample with a bit that was late
    onsets = find_onsets(index[:1600], channel[:1600], SFREQ)
    expected = np.ceil(AT[:3]) - 0.5
    assert set(onsets.at) <= set(expected)
    assert len(onsets) >= 2  # the code that is there for longest passes for rest


def test_a_square_wave_steps_up() -> None:
    index = np.arange(2000)
    channel = ((index // 250) % 2).astype(float)
    np.testing.assert_allclose(find_onsets(index, channel, SFREQ).at, np.arange(250, 2000, 500) - 0.5)


@given(
    rise=st.floats(2.0, 15.0),
    noise=st.floats(1e-4, 0.01),
    gain=st.sampled_from([1.0, -1.0, 1e-5, -300.0]),
    seed=st.integers(0, 20),
)
def test_an_analogue_flank_is_found_between_the_samples(rise: float, noise: float, gain: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = np.arange(2000)
    channel = sum(np.clip((index - at) / rise + 0.5, 0, 1) * (index < at + 100) for at in AT)
    onsets = find_onsets(index, gain * (channel + rng.normal(0, noise, 2000)) + 3 * gain, SFREQ)
    np.testing.assert_allclose(onsets.at, AT, atol=0.1 + 4 * noise * rise)
    assert onsets.resolved.all()


def test_noise_alone_is_no_trigger() -> None:
    rng = np.random.default_rng(0)
    index = np.arange(60000)
    assert len(find_onsets(index, rng.normal(size=60000), SFREQ)) == 0
    assert len(find_onsets(index, np.sin(index / 50), SFREQ)) == 0
    assert len(find_onsets(index, np.full(60000, 7.0), SFREQ)) == 0
    assert len(find_onsets(index, np.full(60000, np.nan), SFREQ)) == 0
    assert len(find_onsets(index[:1], np.zeros(1), SFREQ)) == 0


def test_over_a_hole_there_is_no_onset() -> None:
    index, channel = codes([1] * 4)
    hole = (index > 500) & (index < 520)
    onsets = find_onsets(index[~hole], channel[~hole], SFREQ)
    np.testing.assert_allclose(onsets.at, np.delete(np.ceil(AT), 1) - 0.5)
