"""A configured lag counts for the device that it was measured with, and is told with what it leaves open."""

from __future__ import annotations

import pytest

from rt_mmdf.acquisition.device_lag import DeviceLag, device_of, lag_of, tell_lags
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription

STREAM = StreamDescription("BrainAmp", "EEG", "sn-1", 500.0, "float32", (ChannelDescription("Cz"),), {})
KNOWN = DeviceLag(35.21, 0.1, "meg")


@pytest.mark.parametrize(
    ("device", "used"), [(None, True), ("BrainAmp / sn-1", True), ("BrainAmp / sn-2", False), ("Other / sn-1", False)]
)
def test_the_lag_of_another_device_is_not_used(device: str | None, used: bool) -> None:
    settings = StreamSettings(name="BrainAmp", lag_ms=35.21, lag_uncertainty_ms=0.1, lag_against="meg", lag_device=device)
    lag = lag_of(settings, STREAM)
    assert (lag.lag_ms, lag.seconds) == ((35.21, 35.21e-3) if used else (None, 0.0))
    assert bool(lag.problem) is not used
    assert ("BrainAmp / sn-1" in str(lag)) is not used


def test_what_is_known_is_told_with_what_is_not() -> None:
    unknown = DeviceLag()
    assert tell_lags({"eeg": unknown, "meg": unknown}) == "unknown"
    assert tell_lags({"eeg": KNOWN, "meg": unknown}) == "eeg +35.2 ms ±0.1 against meg; common lag unknown"
    absolute = DeviceLag(-3.0, 0.25, "markers stim")
    assert tell_lags({"eeg": absolute, "meg": unknown}) == "eeg -3.0 ms ±0.25 against markers stim, meg unknown"
    assert tell_lags({"eeg": KNOWN, "meg": DeviceLag(2.0)}) == "eeg +35.2 ms ±0.1 against meg, meg +2.0 ms"
    told = tell_lags({"eeg": DeviceLag(problem="measured with 'x', this is 'y'"), "meg": unknown})
    assert told == "eeg unknown (measured with 'x', this is 'y'), meg unknown"


def test_a_lag_hangs_on_how_the_times_are_made() -> None:
    by_stamp = StreamSettings(name="BrainAmp")
    settings = StreamSettings(name="BrainAmp", stamps="arrival", lag_ms=35.0, lag_device=device_of(by_stamp, STREAM))
    lag = lag_of(settings, STREAM)
    assert lag.lag_ms is None
    assert "timed by arrivals" in str(lag)
    own = settings.model_copy(update={"lag_device": device_of(settings, STREAM)})
    assert lag_of(own, STREAM).lag_ms == 35.0
    assert "whose delay is in it" in tell_lags({"eeg": lag_of(StreamSettings(name="a", stamps="arrival"), STREAM)})


@pytest.mark.parametrize("wrong", [{"lag_ms": 1e4}, {"lag_ms": float("nan")}, {"lag_uncertainty_ms": -1.0}])
def test_what_cannot_be_a_lag_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        validate_settings({"name": "a"} | wrong, StreamSettings, where="here")
