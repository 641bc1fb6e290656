"""Whether this process, or the whole machine, stood still: a jump between two looks at the clocks."""

from __future__ import annotations

import time
from collections.abc import Callable

SUSPENDED_S = 1.0
"""A look that comes so much later than it should was not merely kept waiting by other processes."""


def _boot_clock() -> float:
    """Seconds since the machine was switched on, those that it slept through included, where the system tells them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Suspension:
    """To be asked often; says how long nothing ran.

    Parameters
    ----------
    interval_s : float
        Usual time from look to look.
    clocks : tuple of callable
        One that stands still while the machine sleeps and one that does not, seconds.
    """

    def __init__(
        self,
        interval_s: float,
        clocks: tuple[Callable[[], float], Callable[[], float]] = (time.monotonic, _boot_clock),
    ) -> None:
        self._interval_s = interval_s
        self._clocks = clocks
        self.begin()

    def begin(self) -> None:
        """Whoever asks was not asking for a while, for another reason."""
        self._seen = (self._clocks[0](), self._clocks[1]())

    def look(self) -> float:
        """Seconds that this process was held up since the last look, in its sleep or in the machine's; 0 unless it was
        at least `SUSPENDED_S`.
        """
        before, self._seen = self._seen, (self._clocks[0](), self._clocks[1]())
        held = max(now - then for now, then in zip(self._seen, before, strict=True)) - self._interval_s
        return held if held >= SUSPENDED_S else 0.0
