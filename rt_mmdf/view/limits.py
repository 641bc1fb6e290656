"""The limits of the colours of both brains: calibrated, set by hand, of the first seconds, or defaults; the screen says."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.sinks.colours import readable
from rt_mmdf.view.brain_slot import BrainSlot, LimitsFrom
from rt_mmdf.view.colours import ColourScale, Mode

LIMITS_STEP = 0.9
Limits = tuple[float, float, float]
"""Threshold, full opacity and end of the colours, in the unit of the estimates."""


class KeptLimits:
    """What the colours of each solver, unit and measure were limited to, and the only place where limits change.

    Parameters
    ----------
    kept : by key, see `rt_mmdf.view.preferences.Preferences.limits`
    asked : Limits | None
        For the first brain that is shown, whatever was kept for it.
    """

    def __init__(self, kept: Mapping[str, Limits], asked: Limits | None = None) -> None:
        self.by_key = dict(kept)
        self._asked = asked

    def fit(self, slot: BrainSlot, unit: str, key: str, *, signed: bool, mode: Mode) -> None:
        """Give a brain the scale of what it shows: the limits that were kept for it, or the default ones."""
        if slot.key == key and slot.scale is not None and slot.scale.signed == signed:
            return
        slot.key = key
        if self._asked is not None:
            self.by_key[key], self._asked = self._asked, None
        limits = self.by_key.get(key)
        if limits is None:
            scale = ColourScale(unit, signed=signed, mode=mode)
        else:
            low, full, high = limits
            scale = ColourScale(unit, signed=signed, low=low, full=full, high=high, mode=mode)
        slot.set_scale(scale, LimitsFrom.DEFAULT if limits is None else LimitsFrom.PERSON)

    def keep(self, slot: BrainSlot, scale: ColourScale) -> None:
        """Fix the limits of a brain, and keep them for what it shows."""
        slot.set_scale(scale, LimitsFrom.PERSON)
        self.by_key.pop(slot.key, None)  # the newest last: the oldest are forgotten first
        self.by_key[slot.key] = (scale.low, scale.full, scale.high)

    def calibrate(self, slot: BrainSlot, frames: Float32 | None) -> bool:
        """Fix the limits so that `frames` (n_sources, n_frames) would have shown nothing; False where there is no brain.

        Raises
        ------
        ConfigurationError
            No frame holds an estimate.
        """
        if slot.scale is None or slot.pane is None or frames is None:
            return False
        self.keep(slot, slot.scale.calibrated(frames))
        return True

    def can_begin(self, slot: BrainSlot) -> bool:
        """Whether the limits of a brain are still to be taken from its first seconds: those of moments, which no default can
        know. What stands in a unit of noise has good defaults; limits of a person or of the auto mode are left alone."""
        scale = slot.scale
        is_fixed_moment = scale is not None and scale.unit == "A m" and scale.mode == "fixed"
        return is_fixed_moment and slot.limits_from is LimitsFrom.DEFAULT

    def begin(self, slot: BrainSlot, frames: Float32) -> None:
        """Take the limits from the first `frames`, once; nothing but zeros changes nothing."""
        if slot.scale is not None and self.can_begin(slot):
            with suppress(ConfigurationError):
                slot.set_scale(slot.scale.spanning(frames), LimitsFrom.FIRST_SECONDS)

    def multiply(self, slot: BrainSlot, factor: float) -> None:
        """Move all three limits of a brain, where there is one."""
        scale = slot.scale
        if scale is not None and slot.pane is not None:
            self.keep(slot, scale.with_limits(scale.high * factor, scale.low * factor, scale.full * factor))

    def set_by_hand(self, slot: BrainSlot, text: str) -> None:
        """Fix the limits that a person typed, in the unit of `question`.

        Raises
        ------
        ConfigurationError
            They are not three numbers in order.
        """
        scale = slot.scale
        if scale is None:
            return
        factor, label = readable(scale.high, scale.unit)
        try:
            low, full, high = (float(part) / factor for part in text.replace(",", ".").split())
        except ValueError:
            raise ConfigurationError(
                f"Limits {text!r}: three numbers in {label} are expected, for example 4 6 11."
            ) from None
        self.keep(slot, scale.with_limits(high, low, full))


def question(scale: ColourScale, whose: str) -> tuple[str, str]:
    """How to ask for limits, and what they are now: the answer that is proposed."""
    factor, label = readable(scale.high, scale.unit)
    proposal = " ".join(f"{value * factor:.3g}" for value in (scale.low, scale.full, scale.high))
    of = f" of {whose}" if whose else ""
    return f"Limits{of} in {label}: not shown below, opaque from, end of the colours", proposal
