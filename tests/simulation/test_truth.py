from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rt_mmdf.core.errors import RecordingError, SinkError
from rt_mmdf.simulation.truth import Event, Score, Truth, load_truth, score, snr_over_time, truth_path

RNG = np.random.default_rng(5)
NAMES = tuple(f"E{i}" for i in range(6))
MIXING = np.diag([1e-6] * 4 + [1e-13] * 2) @ RNG.standard_normal((6, 8))
N_TIMES, SFREQ = 1000, 250.0


def make_truth() -> Truth:
    """Two sources, one after the other, with 6 channels."""
    moments = np.zeros((2, N_TIMES))
    moments[0, 100:200] = 1e-7
    moments[1, 400:600] = -2e-7
    return Truth(
        sfreq=SFREQ,
        ch_names=NAMES,
        ch_types=("eeg",) * 4 + ("mag",) * 2,
        source_names=("here", "there"),
        centres_mm=np.array([[-40.0, 0.0, 20.0], [40.0, 10.0, 20.0]]),
        fields=RNG.standard_normal((2, 6)) * 1e7,
        moments=moments,
        vertices=(np.array([1, 2, 3]), np.array([20000])),
        profiles=(np.full(3, 1 / 3), np.ones(1)),
        brain_cov=MIXING @ MIXING.T,
        sensor_cov=np.diag([1e-13] * 4 + [1e-26] * 2),
        events=(Event(0.4, 0.4, 0, "burst", 10.0), Event(1.6, 0.8, 1, "transient", 10.0)),
        recipe={"seed": 1},
    )


TRUTH = make_truth()
TIMES = np.arange(N_TIMES) / SFREQ


def identity(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    return moments


def scored(truth: Truth = TRUTH, times: NDArray[np.float64] = TIMES, from_db: float = -20.0, **changed: object) -> Score:
    peaks = changed.pop("peaks", None)
    if peaks is None:
        peaks = np.tile(TRUTH.centres_mm[0], (len(times), 1))
    arguments = {"whitener": np.eye(6), "rank": 6, "ch_names": NAMES, "causal_filter": identity, "from_db": from_db}
    return score(times, peaks, truth, **(arguments | changed))


def test_a_truth_comes_back_from_disk(tmp_path: Path) -> None:
    TRUTH.save(tmp_path / "x-truth.npz")
    back = load_truth(tmp_path / "x-truth.npz")
    for name in ("sfreq", "ch_names", "source_names", "events", "recipe", "duration_s", "ch_types"):
        assert getattr(back, name) == getattr(TRUTH, name)
    for name in ("centres_mm", "fields", "moments", "brain_cov", "sensor_cov"):
        np.testing.assert_array_equal(getattr(back, name), getattr(TRUTH, name))
    for name in ("vertices", "profiles"):
        assert [part.tolist() for part in getattr(back, name)] == [part.tolist() for part in getattr(TRUTH, name)]


def test_missing_damaged_and_unwritable_truths(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no such file"):
        load_truth(tmp_path / "x-truth.npz")
    TRUTH.save(tmp_path / "x-truth.npz")
    whole = (tmp_path / "x-truth.npz").read_bytes()
    (tmp_path / "x-truth.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordingError, match="damaged"):
        load_truth(tmp_path / "x-truth.npz")
    with pytest.raises(SinkError, match="cannot be written"):
        TRUTH.save(tmp_path / "no" / "x-truth.npz")


@pytest.mark.parametrize("name", ["x-raw.fif", "x-raw.fif.gz", "x.fif"])
def test_the_truth_lies_beside_its_recording(name: str) -> None:
    assert truth_path(Path("data") / name) == Path("data/x-truth.npz")


@given(shift=st.tuples(*[st.floats(-50, 50)] * 3))
def test_the_error_is_the_distance_from_the_source_that_is_active(shift: tuple[float, float, float]) -> None:
    peaks = np.where(TIMES[:, None] < 1, *TRUTH.centres_mm[:, None, :]) + np.array(shift)
    result = scored(peaks=peaks)
    np.testing.assert_allclose(result.le_mm, np.linalg.norm(shift), atol=1e-9)
    np.testing.assert_array_equal(result.file_times, TIMES[np.r_[100:200, 400:600]])
    np.testing.assert_array_equal(result.sources, [0] * 100 + [1] * 200)
    assert result.n_offered == N_TIMES


def test_snr_is_that_of_the_definition_and_decides_what_is_scored() -> None:
    whitener = np.diag(RNG.uniform(0.5, 2, 6))
    expected = [
        10 * np.log10(np.sum((whitener @ TRUTH.fields[i] * TRUTH.moments[i, at]) ** 2) / 5) for i, at in ((0, 150), (1, 450))
    ]
    snr, leading, _ = snr_over_time(TRUTH, TIMES, whitener, 5, NAMES, identity)
    assert [snr[150], snr[450]] == pytest.approx(expected)
    assert [leading[150], leading[450]] == [0, 1]
    assert snr[0] == -np.inf
    between = sum(expected) / 2
    only_stronger = scored(whitener=whitener, rank=5, from_db=between)
    assert set(only_stronger.sources.tolist()) == {int(np.argmax(expected))}
    assert only_stronger.snr_db == pytest.approx(max(expected))
    assert len(scored(whitener=whitener, rank=5, from_db=max(expected) + 1).le_mm) == 0


@settings(deadline=None)
@given(delay=st.integers(0, 150))
def test_the_truth_passes_the_filter_before_it_is_compared(delay: int) -> None:
    def delayed(moments: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.pad(moments, ((0, 0), (delay, 0)))[:, : moments.shape[1]]

    result = scored(causal_filter=delayed)
    np.testing.assert_array_equal(result.file_times, TIMES[np.r_[100 + delay : 200 + delay, 400 + delay : 600 + delay]])


def test_estimates_that_are_not_valid_or_outside_the_file_are_not_scored() -> None:
    peaks = np.tile(TRUTH.centres_mm[0], (N_TIMES, 1))
    peaks[100:150] = np.nan
    assert len(scored(peaks=peaks).le_mm) == 250
    assert len(scored(times=TIMES - 10).le_mm) == 0


def test_a_file_that_is_played_again_is_scored_again() -> None:
    times = np.arange(3 * N_TIMES) / SFREQ
    np.testing.assert_array_equal(scored(times=times).sources, np.tile([0] * 100 + [1] * 200, 3))


def test_two_strong_sources_at_once_are_counted_but_not_scored() -> None:
    moments = TRUTH.moments.copy()
    moments[1, 150:200] = 2e-7
    result = scored(truth=replace(TRUTH, moments=moments))
    assert result.n_ambiguous == 50
    assert len(result.le_mm) == 250
    assert result.summary()["n_ambiguous"] == 50


def test_channels_without_weight_need_not_be_known_but_others_do() -> None:
    whitener = np.zeros((7, 7))
    whitener[:6, :6] = np.eye(6)
    with_stranger = (*NAMES, "stranger")
    np.testing.assert_allclose(scored(whitener=whitener, ch_names=with_stranger).snr_db, scored().snr_db)
    with pytest.raises(RecordingError, match="stranger"):
        scored(whitener=np.eye(7), ch_names=with_stranger)


def test_order_of_channels_does_not_matter() -> None:
    whitener = RNG.standard_normal((6, 6))
    order = RNG.permutation(6)
    shuffled = scored(whitener=whitener[np.ix_(order, order)], ch_names=tuple(NAMES[i] for i in order))
    np.testing.assert_allclose(shuffled.snr_db, scored(whitener=whitener).snr_db)


def test_summary_tells_median_p90_and_each_source() -> None:
    result = scored()
    distance = float(np.linalg.norm(TRUTH.centres_mm[0] - TRUTH.centres_mm[1]))
    summary = result.summary()
    assert summary["le_mm"] == {"median": distance, "p90": distance}  # 100 instants right, 200 on the wrong side
    assert summary["le_mm_by_source"] == {"here": 0.0, "there": pytest.approx(distance)}
    assert summary["n_scored"] == 300
    nothing = scored(from_db=1e3).summary()
    assert nothing["n_scored"] == 0
    assert nothing["le_mm"] == {"median": None, "p90": None}
    assert set(nothing) == set(summary)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="one position"):
        scored(peaks=np.zeros((5, 3)))


@pytest.mark.parametrize("order", [list(range(6)), [5, 0, 3, 1, 2, 4], [4, 5], [0, 2, 5]])
def test_the_whitener_whitens_the_noise_behind_the_filter_in_its_average_reference(order: list[int]) -> None:
    """Without a filter and with one that halves amplitudes: exactly the identity on the dimensions that are left."""
    names = [NAMES[i] for i in order]
    eeg = np.array([TRUTH.ch_types[i] == "eeg" for i in order], dtype=float)
    for gain in (1.0, 0.5):
        matrix, rank = TRUTH.whitener(names, lambda moments, gain=gain: gain * moments)
        covariance = gain**2 * (TRUTH.brain_cov + TRUTH.sensor_cov)[np.ix_(order, order)]
        white = matrix @ covariance @ matrix.T
        assert rank == len(order) - bool(eeg.any()) == round(float(np.trace(white)), 6)
        np.testing.assert_allclose(white @ white, white, atol=1e-8)  # a projector: the identity where it is not zero
        np.testing.assert_allclose(matrix @ eeg / np.abs(matrix).max(), 0, atol=1e-8)  # the reference does not matter


def test_channels_that_the_truth_lacks_get_no_weight() -> None:
    matrix, rank = TRUTH.whitener(["stranger", *NAMES], identity)
    assert not matrix[0].any()
    assert not matrix[:, 0].any()
    np.testing.assert_array_equal(matrix[1:, 1:], TRUTH.whitener(NAMES, identity)[0])
    assert rank == 5
