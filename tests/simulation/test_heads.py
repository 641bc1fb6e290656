from __future__ import annotations

from dataclasses import replace

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.simulation.heads import (
    CONDUCTIVITIES,
    HeadVariation,
    random_variation,
    varied_info,
    varied_subject,
    varied_template,
)

VARIED = HeadVariation(electrode_shift_mm=6.0, helmet_shift_mm=4.0, helmet_rotation_deg=2.5, seed=3)


def places(info: mne.Info, kind: str) -> np.ndarray:
    """Millimetres, head coordinates."""
    at = [ch["loc"][:3] for ch, own in zip(info["chs"], info.get_channel_types(), strict=True) if own == kind]
    return 1e3 * np.array(at if kind == "eeg" else mne.transforms.apply_trans(info["dev_head_t"], np.array(at)))


@given(seed=st.integers(0, 2**32))
def test_variations_stay_within_what_real_sessions_show(seed: int) -> None:
    variation = random_variation(np.random.default_rng(seed))
    assert variation == random_variation(np.random.default_rng(seed))
    assert variation.conductivity in CONDUCTIVITIES
    assert 3 <= variation.electrode_shift_mm <= 10
    assert 2 <= variation.helmet_shift_mm <= 5
    assert 2 <= variation.helmet_rotation_deg <= 3


def test_skulls_cover_the_range_evenly_in_the_logarithm() -> None:
    skull = np.log([skull for _, skull, _ in CONDUCTIVITIES])
    assert np.exp(skull.min()) > 3.1e-3
    assert np.exp(skull.max()) < 14e-3
    np.testing.assert_allclose(np.diff(skull), np.log(14 / 3.1) / len(CONDUCTIVITIES), rtol=0.02)


def test_sensors_move_by_what_was_asked_for(small_head: HeadModel) -> None:
    before = small_head.info.copy()
    moved = varied_info(small_head.info, VARIED)
    assert moved["ch_names"] == before["ch_names"]
    shift = places(moved, "eeg") - places(before, "eeg")
    assert np.sqrt(np.mean(np.sum(shift**2, axis=1))) == pytest.approx(6.0)
    step = moved["dev_head_t"]["trans"] @ np.linalg.inv(before["dev_head_t"]["trans"])
    assert np.rad2deg(np.arccos((np.trace(step[:3, :3]) - 1) / 2)) == pytest.approx(2.5)
    helmet = [np.vstack([places(info, kind) for kind in ("mag", "grad")]).mean(axis=0) for info in (before, moved)]
    assert np.linalg.norm(helmet[1] - helmet[0]) == pytest.approx(4.0)
    # the one that was handed in stays as it was
    np.testing.assert_array_equal(places(small_head.info, "eeg"), places(before, "eeg"))
    again = varied_info(small_head.info, VARIED)
    np.testing.assert_array_equal(places(again, "mag"), places(moved, "mag"))
    other = varied_info(small_head.info, replace(VARIED, seed=4))
    assert np.abs(places(other, "mag") - places(moved, "mag")).max() > 0.5


def test_no_variation_changes_nothing(small_head: HeadModel) -> None:
    same = varied_info(small_head.info, HeadVariation())
    for kind in ("eeg", "mag", "grad"):
        np.testing.assert_array_equal(places(same, kind), places(small_head.info, kind))


def test_the_template_does_not_stand_for_a_subject(small_head: HeadModel) -> None:
    with pytest.raises(HeadModelError, match="varied_subject"):
        varied_template(replace(small_head, kind="subject"), VARIED)


@pytest.mark.slow
def test_a_varied_template_keeps_channels_and_sources_and_changes_the_field(small_head: HeadModel) -> None:
    varied = varied_template(small_head, VARIED, spacing="ico3")
    assert varied.ch_names == small_head.ch_names
    np.testing.assert_array_equal(varied.source_positions_mm, small_head.source_positions_mm)
    assert varied.recipe["conductivity"] == small_head.recipe["conductivity"]
    same = varied_template(small_head, HeadVariation(), spacing="ico3")
    for head, least, most in ((same, 0.0, 1e-3), (varied, 0.02, 0.6)):
        for kind in ("eeg", "mag", "grad"):
            names = [n for n, own in zip(small_head.ch_names, small_head.channels.types, strict=True) if own == kind]
            true, nominal = head.leadfield(names), small_head.leadfield(names)
            assert least <= np.linalg.norm(true - nominal) / np.linalg.norm(nominal) < most


@pytest.mark.sample
def test_a_varied_subject_keeps_its_channels(sample_data, sample_head: HeadModel) -> None:  # type: ignore[no-untyped-def]
    files = [sample_data / f"sample-{part}.fif" for part in ("trans", "oct5-src", "320-320-320-bem-sol")]
    varied = varied_subject(sample_head.info, files[0], files[1], files[2], VARIED)
    assert varied.ch_names == sample_head.ch_names
    assert varied.n_sources == sample_head.n_sources
    true, nominal = varied.leadfield(), sample_head.leadfield()
    assert 0.02 < np.linalg.norm(true[:306] - nominal[:306]) / np.linalg.norm(nominal[:306]) < 0.6
