"""A sampling rate that is announced wrongly is found; clock errors, holes and jitter are not taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.alignment.rate_check import RateCheck
from rt_mmdf.alignment.timeline import Stamping, Timeline
from rt_mmdf.core.errors import StreamDescriptionError

SECONDS = 17.0


def judged(stamps: np.ndarray, sfreq: float, cut: int = 100, shared: bool = False) -> float | None:
    check = RateCheck(sfreq, shared)
    for start in range(0, len(stamps), cut):
        if (rate := check.add(stamps[start : start + cut])) is not None:
            return rate
    return None


@given(
    sfreq=st.sampled_from([64.0, 300.3, 500.0, 1000.0]),
    factor=st.sampled_from([0.5, 0.9, 0.95, 0.998, 1.002, 1.05, 2.0]),
    cut=st.integers(1, 400),
)
def test_a_wrong_rate_is_found_and_told(sfreq: float, factor: float, cut: int) -> None:
    rate = judged(7.0 + np.arange(round(1.1 * sfreq * max(1, factor))) / (sfreq * factor), sfreq, cut)
    assert rate == pytest.approx(sfreq * factor, rel=1e-6)


@given(seed=st.integers(0, 10**6), jitter_ms=st.sampled_from([0.2, 1.0, 5.0]), block=st.integers(1, 40))
def test_through_jitter_it_is_found_a_little_later(seed: int, jitter_ms: float, block: int) -> None:
    sfreq, true = 1000.0, 950.0
    index = np.arange(round(SECONDS * sfreq))
    late = np.repeat(np.random.default_rng(seed).normal(0, jitter_ms * 1e-3, len(index) // block + 1), block)[: len(index)]
    # inside a block liblsl deduces the stamps from the nominal rate
    stamps = (index // block * block) / true + (index % block) / sfreq + late
    assert judged(stamps, sfreq) == pytest.approx(true, rel=0.02)


@given(
    seed=st.integers(0, 10**6),
    ppm=st.floats(-500, 500),
    jitter_ms=st.sampled_from([0.0, 0.2, 1.0, 5.0]),
    block=st.integers(1, 40),
    holes=st.lists(st.tuples(st.floats(0, SECONDS), st.floats(0.001, 2.0)), max_size=5),
)
def test_clock_errors_jitter_and_holes_are_no_wrong_rate(
    seed: int, ppm: float, jitter_ms: float, block: int, holes: list[tuple[float, float]]
) -> None:
    sfreq = 500.0
    index = np.arange(round(SECONDS * sfreq))
    late = np.repeat(np.random.default_rng(seed).normal(0, jitter_ms * 1e-3, len(index) // block + 1), block)[: len(index)]
    stamps = index / sfreq / (1 + ppm * 1e-6) + late
    for start, length in holes:
        stamps[round(start * sfreq) :] += length
    assert judged(stamps, sfreq) is None


@given(
    seed=st.integers(0, 10**6),
    sfreq=st.sampled_from([500.0, 512.0, 1000.0]),
    block=st.integers(1, 300),
    inner=st.floats(0, 1e-4),
    jitter_ms=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_samples_stamped_when_their_block_is_sent_are_no_wrong_rate(
    seed: int, sfreq: float, block: int, inner: float, jitter_ms: float
) -> None:
    index = np.arange(round(SECONDS * sfreq))
    late = np.abs(np.random.default_rng(seed).normal(0, jitter_ms * 1e-3, len(index) // block + 1))[index // block]
    assert judged((index // block + 1) * block / sfreq + inner * (index % block) + late, sfreq) is None


@pytest.mark.parametrize("block", [10, 64, 100])
@pytest.mark.parametrize("factor", [0.5, 0.95, 1.05, 2.0])
def test_in_blocks_too_a_wrong_rate_is_found(block: int, factor: float) -> None:
    index = np.arange(round(SECONDS * 1000))
    stamps = ((index // block + 1) * block + 0.01 * (index % block)) / (1000 * factor)
    assert judged(stamps, 1000.0) == pytest.approx(1000 * factor, rel=0.02)


@pytest.mark.parametrize("stamping", ["per_sample", "first_of_block", "last_of_block"])
@pytest.mark.parametrize("factor", [0.5, 0.95, 1.05, 2.0])
def test_the_timeline_refuses_to_number_such_a_stream(stamping: Stamping, factor: float) -> None:
    index = np.arange(9000)
    if stamping != "per_sample":
        index = index // 10 * 10 + (9 if stamping == "last_of_block" else 0)
    stamps = index / (500.0 * factor)
    timeline = Timeline(500.0, stamping, "the EEG stream")

    def place_everything() -> None:
        at = 0
        while at < len(stamps):
            at += max(1, timeline.place(stamps[at : at + 2000]).consumed)

    with pytest.raises(StreamDescriptionError, match=r"the EEG stream announces 500 Hz, but .* ppm") as caught:
        place_everything()
    assert f"{500 * factor:g}" in str(caught.value)
    assert timeline.counts.received <= 9000
