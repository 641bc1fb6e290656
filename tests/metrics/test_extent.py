from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rt_mmdf.metrics.extent import (
    amplitude_ratio,
    area_ratio,
    auc_close,
    auc_far,
    close_and_far,
    dice,
    nmse,
    otsu_upper_class,
    separation,
    source_areas,
    time_course_correlation,
)
from rt_mmdf.metrics.localisation import active_set, auc

N = 40
RNG = np.random.default_rng(0)
POSITIONS = RNG.uniform(-60, 60, (N, 3))
AREAS = RNG.uniform(10, 40, N)
TRUTH = np.zeros(N)
TRUTH[[3, 4, 17]] = (2.0, -1.0, 1.5)
CENTRES = POSITIONS[[3, 17]]
MAPS = arrays(np.float64, N, elements=st.floats(-1e3, 1e3).map(lambda x: round(x, 3)))
FACTORS = st.floats(0.01, 100) | st.floats(-100, -0.01)


def test_the_truth_itself_is_perfect() -> None:
    assert auc_close(TRUTH, TRUTH, POSITIONS) == auc_far(TRUTH, TRUTH, POSITIONS) == 1
    assert area_ratio(TRUTH, TRUTH, AREAS) == dice(TRUTH, TRUTH) == 1
    assert amplitude_ratio(TRUTH, TRUTH, POSITIONS, CENTRES) == pytest.approx(1)
    assert nmse(TRUTH, TRUTH) == 0


def test_a_map_of_zeros_is_worth_nothing() -> None:
    zeros = np.zeros(N)
    assert auc_close(zeros, TRUTH, POSITIONS) == auc_far(zeros, TRUTH, POSITIONS) == 0.5
    assert area_ratio(zeros, TRUTH, AREAS) == dice(zeros, TRUTH) == amplitude_ratio(zeros, TRUTH, POSITIONS, CENTRES) == 0
    assert nmse(zeros, TRUTH) == 1


@given(estimate=MAPS, factor=FACTORS)
def test_scale_and_sign_of_the_map_change_amplitudes_only(estimate: np.ndarray, factor: float) -> None:
    scaled = factor * estimate
    assert auc_close(scaled, TRUTH, POSITIONS) == pytest.approx(auc_close(estimate, TRUTH, POSITIONS), abs=1e-9)
    assert auc_far(scaled, TRUTH, POSITIONS) == pytest.approx(auc_far(estimate, TRUTH, POSITIONS), abs=1e-9)
    ratio = amplitude_ratio(estimate, TRUTH, POSITIONS, CENTRES)
    assert amplitude_ratio(scaled, TRUTH, POSITIONS, CENTRES) == pytest.approx(factor * ratio, rel=1e-6, abs=1e-6)


@given(estimate=MAPS)
def test_areas_under_the_curve_see_the_order_only(estimate: np.ndarray) -> None:
    monotone = np.sign(estimate) * np.abs(estimate) ** 0.5
    assert auc_close(monotone, TRUTH, POSITIONS) == pytest.approx(auc_close(estimate, TRUTH, POSITIONS))
    assert auc_far(monotone, TRUTH, POSITIONS) == pytest.approx(auc_far(estimate, TRUTH, POSITIONS))


@given(estimate=MAPS)
def test_against_all_silent_sources_separation_is_auc(estimate: np.ndarray) -> None:
    active = active_set(TRUTH)
    assert separation(estimate, active, ~active) == pytest.approx(auc(estimate, TRUTH))


def test_close_and_far_are_parts_of_the_silent_sources_by_distance() -> None:
    active, close, far = close_and_far(TRUTH, POSITIONS)
    assert (close.sum(), far.sum()) == (8, 19)  # 20 % and 50 % of 37, rounded up
    assert not (active & close).any()
    assert not (active & far).any()
    distance = np.linalg.norm(POSITIONS[:, None] - POSITIONS[active], axis=2).min(axis=1)
    middle = ~(active | close | far)
    assert distance[close].max() <= distance[middle].min()
    assert distance[middle].max() <= distance[far].min()


def test_a_ghost_far_away_is_seen_by_the_far_curve_only() -> None:
    _, close, far = close_and_far(TRUTH, POSITIONS)
    ghost = np.abs(TRUTH) + 10.0 * far
    assert auc_far(ghost, TRUTH, POSITIONS) == 0
    assert auc_close(ghost, TRUTH, POSITIONS) == 1
    blurred = np.abs(TRUTH) + 10.0 * close
    assert (auc_close(blurred, TRUTH, POSITIONS), auc_far(blurred, TRUTH, POSITIONS)) == (0, 1)


def test_areas_of_sources_add_up_to_that_of_the_mesh() -> None:
    square = np.array([[0, 0, 0], [10, 0, 0], [10, 10, 0], [0, 10, 0], [50, 50, 0]], dtype=float)
    areas = source_areas(square, [[0, 1, 2], [0, 2, 3]])
    np.testing.assert_allclose(areas, [100 / 3, 50 / 3, 100 / 3, 50 / 3, 0])


def test_area_ratio_counts_what_is_above_half_of_the_maximum() -> None:
    estimate = np.zeros(N)
    estimate[[3, 17, 20, 21]] = (1.0, -0.9, 0.51, 0.5)  # half itself is not above half
    expected = AREAS[[3, 17, 20]].sum() / AREAS[[3, 17]].sum()  # of the truth 2 and 1.5 are above 1
    assert area_ratio(estimate, TRUTH, AREAS) == pytest.approx(expected)


def test_amplitude_ratio_is_the_mean_over_patches_and_knows_the_sign() -> None:
    positions = np.array([[0, 0, 0], [19, 0, 0], [100, 0, 0], [121, 0, 0]], dtype=float)
    truth, centres = np.array([2.0, 2.0, -1.0, 0.0]), positions[[0, 2]]
    assert amplitude_ratio([1, 1, -1, 5], truth, positions, centres) == pytest.approx((0.5 + 1) / 2)  # the last is too far
    assert amplitude_ratio([-4, 0, 1, 0], truth, positions, centres) == pytest.approx(-1)
    assert np.isnan(amplitude_ratio([1, 1, 1, 1], [0, 0, 1, 0], positions, centres))


@given(counts=arrays(np.int64, 12, elements=st.integers(0, 9)))
def test_otsu_parts_the_classes_as_a_search_over_all_thresholds_does(counts: np.ndarray) -> None:
    values = np.repeat(np.arange(12), counts)
    found = int(otsu_upper_class(counts))
    if len(np.unique(values)) < 2:
        assert found == 0
        return

    def within(threshold: int) -> float:
        return sum(len(part) * part.var() for part in (values[values < threshold], values[values >= threshold]) if len(part))

    assert within(found) == pytest.approx(min(within(threshold) for threshold in range(1, 12)))


@pytest.mark.parametrize(
    ("kept", "expected"), [([3, 4, 17], 1.0), ([3, 4], 0.8), ([3, 4, 17, 20, 21, 22], 2 / 3), ([9], 0.0)]
)
def test_dice_is_the_overlap_of_what_stands_out(kept: list[int], expected: float) -> None:
    estimate = np.full(N, 0.05)
    estimate[kept] = -1.0
    assert dice(estimate, TRUTH) == pytest.approx(expected)


@given(share=st.floats(-2, 3))
def test_nmse_of_a_share_of_the_truth(share: float) -> None:
    assert nmse(share * TRUTH, TRUTH) == pytest.approx((1 - share) ** 2)


@given(course=arrays(np.float64, 20, elements=st.floats(-10, 10)), factor=st.floats(0.1, 10), offset=st.floats(-5, 5))
def test_correlation_of_time_courses_ignores_gain_and_offset(course: np.ndarray, factor: float, offset: float) -> None:
    reference = np.sin(np.arange(20))
    plain = time_course_correlation(course, reference)
    assert np.isnan(plain) or -1 - 1e-9 <= plain <= 1 + 1e-9
    if course.std() > 1e-3:
        assert plain == pytest.approx(np.corrcoef(course, reference)[0, 1], abs=1e-6)
        assert time_course_correlation(factor * course + offset, reference) == pytest.approx(plain, abs=1e-6)
    assert np.isnan(time_course_correlation(np.ones(20), reference))


@pytest.mark.parametrize("truth", [np.zeros(N), np.ones(N)])
def test_a_truth_without_both_classes_has_no_curve(truth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="ROC"):
        auc_close(TRUTH, truth, POSITIONS)


def test_a_truth_of_zeros_has_no_extent_and_no_error() -> None:
    with pytest.raises(ValueError, match="covers no area"):
        area_ratio(TRUTH, np.zeros(N), AREAS)
    with pytest.raises(ValueError, match="zero everywhere"):
        nmse(TRUTH, np.zeros(N))
