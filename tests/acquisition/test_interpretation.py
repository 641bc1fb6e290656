"""Which channels a stream has, what they are, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.acquisition.interpretation import interpret
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.channels import ChannelType
from rt_mmdf.core.errors import ConfigurationError, StreamDescriptionError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription


def stream(
    *channels: tuple[str, str, str], type: str = "", sfreq: float = 100.0, dtype: str = "float32"
) -> StreamDescription:
    return StreamDescription("amp", type, "id", sfreq, dtype, tuple(ChannelDescription(*c) for c in channels), {})


def settings(**given: Any) -> StreamSettings:
    return validate_settings({"name": "amp", **given}, StreamSettings, where="test")


def test_order_types_units_and_others() -> None:
    read = interpret(
        stream(
            ("VEOG", "EOG", "uV"), ("Fz", "EEG", "microvolts"), ("TRIG", "STI", "none"),
            ("Cz", "eeg", "mV"), ("AUX1", "Aux", ""),
        ),
        settings(),
        "eeg",
    )  # fmt: skip
    assert read.imaged.channels.names == ("Fz", "Cz")
    assert read.imaged.columns.tolist() == [1, 3]
    assert read.others.channels.names == ("VEOG", "TRIG", "AUX1")
    assert read.others.channels.types == (ChannelType.EOG, ChannelType.STIM, ChannelType.MISC)
    samples = np.array([[100, 200, 5, 3, 9]], dtype=np.int16)
    np.testing.assert_allclose(read.imaged.to_si(samples), [[200e-6, 3e-3]], rtol=1e-6)
    np.testing.assert_allclose(read.others.to_si(samples), [[100e-6, 5, 9]], rtol=1e-6)
    assert read.imaged.to_si(samples).dtype == np.float32


@pytest.mark.parametrize("kind", ["MAG", "MEGMAG", "meg mag", "Magnetometer", "OPM"])
def test_magnetometers_by_any_name(kind: str) -> None:
    assert interpret(stream(("a", kind, "fT")), settings(), "meg").imaged.channels.types == (ChannelType.MAG,)


@pytest.mark.parametrize("kind", ["GRAD", "MEGGRAD", "MEG-GRAD", "planar"])
def test_gradiometers_by_any_name(kind: str) -> None:
    assert interpret(stream(("a", kind, "fT/cm")), settings(), "meg").imaged.channels.types == (ChannelType.GRAD,)


def test_plain_meg_is_told_by_unit_then_by_neuromag_number() -> None:
    read = interpret(
        stream(
            ("a", "MEG", "fT"),
            ("b", "MEG", "fT/cm"),
            ("MEG 0111", "MEG", "0"),
            ("MEG0112", "meg", "0"),
            ("MEG 0113", "MEG", "201"),
        ),
        settings(),
        "meg",
    )
    mag, grad = ChannelType.MAG, ChannelType.GRAD
    assert read.imaged.channels.types == (mag, grad, mag, grad, grad)


def test_plain_meg_of_unknown_kind_is_refused_until_the_configuration_tells() -> None:
    unclear = stream(("s1", "MEG", "-15"))
    with pytest.raises(StreamDescriptionError, match=r"types under \[acquisition\.meg\]"):
        interpret(unclear, settings(), "meg")
    assert interpret(unclear, settings(types={"s1": "mag"}), "meg").imaged.factors.tolist() == [1e-15]
    assert interpret(unclear, settings(units={"meg": "pT"}), "meg").imaged.factors.tolist() == [1e-12]


def test_the_stream_type_counts_where_channels_say_nothing() -> None:
    read = interpret(stream(("", "", "uV"), ("", "", "uV"), type="EEG"), settings(), "eeg")
    assert read.imaged.channels.names == ("EEG001", "EEG002")


@pytest.mark.parametrize(
    ("unit", "key"), [("", "(none)"), ("none", "none"), ("counts", "counts"), ("fT", "fT"), ("MV", "MV")]
)
def test_units_that_do_not_fit_are_refused_with_the_key_to_set(unit: str, key: str) -> None:
    with pytest.raises(StreamDescriptionError) as caught:
        interpret(stream(("Fz", "EEG", "uV"), ("Cz", "EEG", unit)), settings(), "left")
    message = str(caught.value)
    assert "'Cz'" in message
    assert "'Fz'" not in message
    assert repr(key) in message
    assert "[acquisition.left]" in message
    assert "units = " in message


def test_configured_units_by_stream_type_and_channel() -> None:
    wire = stream(("a", "EEG", ""), ("b", "EEG", "V"), ("c", "MAG", ""))
    both = settings(units={"eeg": "mV", "b": "nV", "mag": "pT"})
    assert interpret(wire, both, "x").imaged.factors.tolist() == [1e-3, 1e-9, 1e-12]
    assert interpret(stream(("a", "EEG", "")), settings(units="uV"), "x").imaged.factors.tolist() == [1e-6]


def test_rename_exclude_and_duplicates() -> None:
    wire = stream(("A1", "EEG", "uV"), ("A1", "EEG", "uV"), ("A2", "EEG", "uV"))
    with pytest.raises(StreamDescriptionError, match=r"more than once: 'A1'.*exclude"):
        interpret(wire, settings(), "eeg")
    assert interpret(wire, settings(exclude=["A1"], rename={"A2": "Cz"}), "eeg").imaged.channels.names == ("Cz",)
    with pytest.raises(StreamDescriptionError, match="more than once: 'Cz'"):
        interpret(stream(("a", "EEG", "uV"), ("Cz", "EEG", "uV")), settings(rename={"a": "Cz"}), "eeg")


@pytest.mark.parametrize(
    "given", [{"rename": {"Q": "Cz"}}, {"types": {"Q": "eeg"}}, {"exclude": ["Q"]}, {"units": {"Q": "uV"}}]
)
def test_names_that_the_stream_does_not_have_are_a_configuration_error(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"acquisition\.eeg\.{next(iter(given))}.*'Q'"):
        interpret(stream(("Cz", "EEG", "uV")), settings(**given), "eeg")


@pytest.mark.parametrize(
    ("wire", "seen"),
    [
        (stream(("a", "EEG", "uV"), sfreq=0.0), "sampling rate 0"),
        (stream(("a", "EEG", "uV"), dtype="string"), "sends text"),
        (stream(("x", "Gaze", "deg"), ("y", "Gaze", "deg")), "types seen: 'Gaze'"),
    ],
)
def test_streams_that_are_no_sensors_are_refused(wire: StreamDescription, seen: str) -> None:
    with pytest.raises(StreamDescriptionError, match=seen):
        interpret(wire, settings(), "eeg")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "at least one of name"),
        ({"name": "a", "units": "furlong"}, "'furlong' is not known"),
        ({"name": "a", "types": {"x": "eek"}}, "types.x"),
        ({"name": "a", "unit": "uV"}, "unknown key"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        validate_settings(given, StreamSettings, where="test")


@given(values=st.lists(st.floats(width=64), min_size=3, max_size=3))
def test_any_number_is_converted_without_an_error(values: list[float]) -> None:
    read = interpret(stream(("a", "EEG", "uV"), ("b", "EEG", "V"), ("c", "EEG", "nV"), dtype="float64"), settings(), "eeg")
    got = read.imaged.to_si(np.array([values]))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got[0], (np.array(values) * [1e-6, 1.0, 1e-9]).astype(np.float32))
