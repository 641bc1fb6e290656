"""Unit strings as senders write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.acquisition.units import parse_unit, si_factor
from rt_mmdf.core.channels import ChannelType

EEG, MAG, GRAD, MISC = ChannelType.EEG, ChannelType.MAG, ChannelType.GRAD, ChannelType.MISC


@pytest.mark.parametrize(
    ("text", "kind", "factor"),
    [
        ("V", EEG, 1.0),
        ("volts", EEG, 1.0),
        ("mV", EEG, 1e-3),
        ("uV", EEG, 1e-6),
        ("\u00b5V", EEG, 1e-6),  # micro sign
        ("\u03bcV", EEG, 1e-6),  # Greek mu
        ("UV", EEG, 1e-6),
        ("microvolts", EEG, 1e-6),
        ("Microvolt", EEG, 1e-6),
        (" nV ", EEG, 1e-9),
        ("T", MAG, 1.0),
        ("tesla", MAG, 1.0),
        ("mT", MAG, 1e-3),
        ("uT", MAG, 1e-6),
        ("nT", MAG, 1e-9),
        ("pT", MAG, 1e-12),
        ("fT", MAG, 1e-15),
        ("femtotesla", MAG, 1e-15),
        ("T/m", GRAD, 1.0),
        ("T/cm", GRAD, 1e2),
        ("fT/cm", GRAD, 1e-13),
        ("fT / cm", GRAD, 1e-13),
        ("pT/cm", GRAD, 1e-10),
        ("fT/m", GRAD, 1e-15),
        ("pT/m", GRAD, 1e-12),
        ("fT/mm", GRAD, 1e-12),
        ("-6", EEG, 1e-6),  # mne-lsl: power of ten
        ("0", GRAD, 1.0),
        ("-15", MAG, 1e-15),
        ("107", EEG, 1.0),  # FIFF_UNIT_V
        ("112", MAG, 1.0),  # FIFF_UNIT_T
        ("201", GRAD, 1.0),  # FIFF_UNIT_T_M
    ],
)
def test_known_units(text: str, kind: ChannelType, factor: float) -> None:
    assert si_factor(text, kind) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", EEG), ("none", EEG), ("MV", EEG), ("MT", MAG), ("uV/m", EEG), ("fT", EEG), ("uV", MAG), ("fT", GRAD),
        ("fT/cm", MAG), ("112", EEG), ("107", MAG), ("999", EEG), ("42", EEG), ("counts", EEG), ("uV; DROP", EEG),
        ("xV", EEG), ("fT/km", GRAD),
    ],
)  # fmt: skip
def test_unknown_units_and_those_of_another_kind_are_refused(text: str, kind: ChannelType) -> None:
    assert si_factor(text, kind) is None


@given(text=st.text(max_size=20))
def test_any_text_is_either_read_or_refused(text: str) -> None:
    unit = parse_unit(text)
    assert unit is None or (1e-18 <= unit.factor <= 1e18 and unit.si in (None, "V", "T", "T/m"))
