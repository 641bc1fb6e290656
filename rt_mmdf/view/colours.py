"""The colour scale of the live picture: fixed limits, or limits that follow slowly and say so."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.sinks.colours import ColourRamp, readable

Mode = Literal["fixed", "auto"]
LOW, FULL = 0.35, 0.55  # of the upper end, where no more is said
TIME_CONSTANT_S = 10.0
BASELINE_QUANTILE = 0.95
SPAN_QUANTILE = 0.98
# Upper ends where neither a baseline nor limits are given. Moments: an evoked response; standardised maps: about three times
# the largest of some thousand values of noise.
HIGH_MOMENT, HIGH_STANDARDISED = 20e-9, 12.0
N_COLOURS = 256
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green, blue


class ColourScale:
    """Which value has which colour.

    Magnitudes go from transparent at `low` through opaque at `full` to the last colour at `high`; signed values do the same
    on both sides of 0. In mode ``fixed`` nothing that is shown changes the limits. In mode ``auto`` `observe` lets them
    follow the largest magnitude of the frames with the time constant `time_constant_s`; `says` tells so.

    Parameters
    ----------
    unit : str
        Of the values: ``"A m"``, or the name of a standardised map such as ``"dSPM"``, which has no unit.
    signed : bool
        Diverging colours (blue, red) for signed values, otherwise sequential ones for magnitudes. Both can be told apart
        with any common colour vision.
    high, low, full : float | None
        In `unit`; what is not given is 0.35 and 0.55 of `high`, and `high` is 20 nA m, or 12 for standardised maps.
    mode : fixed or auto
    time_constant_s : float
        Of the auto mode.

    Raises
    ------
    ConfigurationError
        The limits are not 0 <= low <= full < high, or the time constant is not positive.
    """

    def __init__(
        self,
        unit: str,
        *,
        signed: bool = False,
        high: float | None = None,
        low: float | None = None,
        full: float | None = None,
        mode: Mode = "fixed",
        time_constant_s: float = TIME_CONSTANT_S,
    ) -> None:
        high = high if high is not None else HIGH_MOMENT if unit == "A m" else HIGH_STANDARDISED
        low = LOW * high if low is None else low
        full = max(low, FULL * high) if full is None else full
        if not (0 <= low <= full < high and np.isfinite(high)):
            raise ConfigurationError(
                f"colour scale: limits {low:g}, {full:g}, {high:g} {unit} seen (nothing shown below, opaque from, end); "
                "expected 0 <= low <= full < high. Give other limits."
            )
        if not time_constant_s > 0:
            raise ConfigurationError(f"colour scale: time constant {time_constant_s:g} s seen; it must be positive.")
        self.unit = unit
        self.mode: Mode = mode
        self.time_constant_s = time_constant_s
        self._ramp = ColourRamp(low, full, high, signed)
        self._shape = (low / high, full / high)

    def __repr__(self) -> str:
        kind = "signed" if self.signed else "magnitude"
        return f"<ColourScale {self.low:g}, {self.full:g}, {self.high:g} {self.unit}, {kind}, {self.mode}>"

    @property
    def low(self) -> float:
        """Magnitudes up to this one are not shown."""
        return self._ramp.low

    @property
    def full(self) -> float:
        """From this magnitude on the colour covers the cortex."""
        return self._ramp.full

    @property
    def high(self) -> float:
        """Where the colours end."""
        return self._ramp.high

    @property
    def signed(self) -> bool:
        return self._ramp.signed

    @property
    def ramp(self) -> ColourRamp:
        """The same limits for a picture that is computed: the colours of both are the same."""
        return self._ramp

    def with_limits(self, high: float, low: float | None = None, full: float | None = None) -> ColourScale:
        """The same kind of scale with fixed limits set by hand; ConfigurationError where they are out of order."""
        return ColourScale(
            self.unit, signed=self.signed, high=high, low=low, full=full, time_constant_s=self.time_constant_s
        )

    def in_mode(self, mode: Mode) -> ColourScale:
        """The same limits, fixed from now on, or following from now on."""
        return ColourScale(
            self.unit,
            signed=self.signed,
            high=self.high,
            low=self.low,
            full=self.full,
            mode=mode,
            time_constant_s=self.time_constant_s,
        )

    def calibrated(self, frames: NDArray[np.floating]) -> ColourScale:
        """Fixed limits from a baseline: in 95 % of its frames nothing at all would have been shown.

        Parameters
        ----------
        frames : (n_sources, n_frames)
            Of rest or an empty room, reduced as the frames that will be shown. Frames without a finite value do not count.

        Raises
        ------
        ConfigurationError
            No frame holds a finite value other than 0.
        """
        low = float(np.quantile(_peaks(frames), BASELINE_QUANTILE))
        return self.with_limits(low / LOW, low)

    def spanning(self, frames: NDArray[np.floating]) -> ColourScale:
        """Fixed limits that end with the largest magnitude of all but the strongest 2 % of frames; for the rest see
        `calibrated`."""
        return self.with_limits(float(np.quantile(_peaks(frames), SPAN_QUANTILE)))

    def observe(self, values: NDArray[np.floating], seconds: float) -> bool:
        """A frame was shown for so long. True where this changed the limits: never in mode ``fixed``.

        `high` moves towards the largest magnitude of the frame by the part ``1 - exp(-seconds / time_constant_s)`` of the
        way, `low` and `full` with it. Frames without a finite value other than 0 change nothing.
        """
        if self.mode == "fixed" or seconds <= 0:
            return False
        finite = np.abs(values[np.isfinite(values)])
        largest = float(finite.max(initial=0.0))
        if largest == 0.0 or largest == self.high:
            return False
        high = self.high + (largest - self.high) * -float(np.expm1(-seconds / self.time_constant_s))
        self._ramp = ColourRamp(self._shape[0] * high, self._shape[1] * high, high, self.signed)
        self.__dict__.pop("_table", None)
        return True

    def positions(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Where on the table values are, 0 to 1: signed ones from ``-high`` to `high`, magnitudes from 0 to `high`."""
        along = np.asarray(values, dtype=np.float32) / np.float32(self.high)
        along = 0.5 + 0.5 * along if self.signed else np.abs(along)
        return np.asarray(np.clip(along, 0.0, 1.0), dtype=np.float32)

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        start = -self.high if self.signed else 0.0
        rgb, opacity = self._ramp.colours(np.linspace(start, self.high, N_COLOURS))
        table = np.rint(255 * np.column_stack([rgb, opacity])).astype(np.uint8)
        if self.signed:  # rounding must not make one sign show more than the other
            table[:, 3] = np.maximum(table[:, 3], table[::-1, 3])
        zero = slice(N_COLOURS // 2 - 1, N_COLOURS // 2 + 1) if self.signed else slice(0, 1)
        table[zero, 3] = 0  # the cortex is seen where there is nothing, or no estimate
        table.flags.writeable = False
        return table

    def table(self) -> NDArray[np.uint8]:
        """(256, 4) red, green, blue and opacity over the cortex, from the first to the last of `positions`."""
        return self._table

    @property
    def label(self) -> str:
        """Unit as it stands at the colour bar: ``nA m``, or the name of a standardised map."""
        return readable(self.high, self.unit)[1]

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """(position, number) for the colour bar, ascending; numbers are in the unit of `label`."""
        factor, _ = readable(self.high, self.unit)
        marked = [0.0, *([self.low] if self.low > 0.15 * self.high else []), *self._between(), self.high]
        if self.signed:
            marked = [*(-value for value in reversed(marked[1:])), *marked]
        places = self.positions(np.array(marked))
        return tuple((float(place), _number(value * factor)) for place, value in zip(places, marked, strict=True))

    def _between(self) -> list[float]:
        """`full`, unless its number would stand too near to others."""
        return [self.full] if self.full - self.low > 0.12 * self.high and self.high - self.full > 0.12 * self.high else []

    @property
    def says(self) -> str:
        """For the screen: ``fixed``, or ``auto, 10 s``."""
        return "fixed" if self.mode == "fixed" else f"auto, {self.time_constant_s:g} s"


def _peaks(frames: NDArray[np.floating]) -> NDArray[np.floating]:
    """Largest magnitude of each of the frames (n_sources, n_frames) that has one."""
    size = np.where(np.isfinite(frames), np.abs(frames), 0.0)
    peaks = size.max(axis=0) if size.size else np.zeros(0)
    peaks = peaks[peaks > 0]
    if not len(peaks):
        raise ConfigurationError(
            f"colour scale: a baseline of shape {np.shape(frames)} without a finite value other than 0; expected are "
            "estimates. Wait until the engine publishes some, or set the limits by hand."
        )
    return np.asarray(peaks)


def greyed(table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same table with the luminance of its colours for all three of them."""
    grey = np.rint(table[:, :3] @ np.array(LUMINANCE)).astype(np.uint8)
    return np.column_stack([grey, grey, grey, table[:, 3]])


def _number(value: float) -> str:
    text = f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
    return text.replace("-", "\N{MINUS SIGN}")
