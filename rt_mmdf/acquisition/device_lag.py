"""What is known of a device's own lag: from the event in front of its sensors to the stamp that its sample carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.channels import Modality
from rt_mmdf.lsl.interface import StreamDescription

UNKNOWN = "unknown"
COMMON_UNKNOWN = "; common lag unknown"
"""What two devices have in common when they were only measured against each other."""


@dataclass(frozen=True, slots=True)
class DeviceLag:
    """The lag of one stream.

    lag_ms : how much later than the truth its stamps are; None: unknown
    lag_uncertainty_ms : two standard deviations; None: not stated
    lag_against : what it was measured against: the label of another stream (whose own lag it then leaves open), or words;
        None: not stated
    problem : why a lag that is configured is not used; empty where there is nothing wrong
    by_arrival : its stamps are not used, see `rt_mmdf.alignment.arrival`: what is unknown includes the way of its samples
    """

    lag_ms: float | None = None
    lag_uncertainty_ms: float | None = None
    lag_against: str | None = None
    problem: str = ""
    by_arrival: bool = False

    @property
    def seconds(self) -> float:
        """To be subtracted from the stamps; 0 while it is unknown."""
        return 0.0 if self.lag_ms is None else self.lag_ms * 1e-3

    @property
    def uncertainty_s(self) -> float:
        """Two standard deviations, as far as they are stated; 0 where not."""
        return 1e-3 * (self.lag_uncertainty_ms or 0.0)

    def __str__(self) -> str:
        if self.lag_ms is None:
            why = [self.problem, "timed by arrivals, whose delay is in it" if self.by_arrival else ""]
            said = "; ".join(part for part in why if part)
            return f"{UNKNOWN} ({said})" if said else UNKNOWN
        words = f"{self.lag_ms:+.1f} ms"
        if self.lag_uncertainty_ms is not None:
            words += f" ±{self.lag_uncertainty_ms:.2g}"
        return words if self.lag_against is None else f"{words} against {self.lag_against}"


def device_of(settings: StreamSettings, stream: StreamDescription) -> str:
    """The device behind a stream, as far as LSL tells one from another, and how its times are made: a lag hangs on both."""
    habit = "" if settings.stamps == "per_sample" else f" / {settings.stamps}"
    return f"{stream.name} / {stream.source_id}{habit}"


def lag_of(settings: StreamSettings, stream: StreamDescription) -> DeviceLag:
    """The lag that is configured, if it was measured with this very device; that of another device is not used."""
    by_arrival = settings.stamps == "arrival"
    if settings.lag_ms is None:
        return DeviceLag(by_arrival=by_arrival)
    device = device_of(settings, stream)
    if settings.lag_device not in (None, device):
        return DeviceLag(problem=f"measured with {settings.lag_device!r}, this is {device!r}", by_arrival=by_arrival)
    return DeviceLag(settings.lag_ms, settings.lag_uncertainty_ms, settings.lag_against, by_arrival=by_arrival)


def tell_lags(lags: Mapping[Modality, DeviceLag]) -> str:
    """The lags of all streams in one line; ``"unknown"`` where none is known.

    A lag against another stream is the difference of the two: what both have in common stays unknown, and it says so.
    """
    if all(str(lag) == UNKNOWN for lag in lags.values()):
        return UNKNOWN
    references = {lag.lag_against for lag in lags.values() if lag.lag_ms is not None}
    open_ended = [label for label, lag in lags.items() if label in references and str(lag) == UNKNOWN]
    parts = [f"{label} {lag}" for label, lag in lags.items() if label not in open_ended]
    return ", ".join(parts) + (COMMON_UNKNOWN if open_ended else "")
