"""Which of two solvers images the next hop: the first one, or a linear kernel while that one is too slow."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from rt_mmdf.app.operators import OperatorBuilder
from rt_mmdf.app.settings import BudgetSettings

logger = logging.getLogger(__name__)

LONGEST_WAIT = 16
"""Times `return_after_s`: the first solver is tried at least so often."""


class Fallback:
    """Falls back after so many misses within so long, and comes back after a time without any.

    A miss is a hop that the engine skipped, or published later than the budget after the hop was there. Whether the first
    solver would keep up again can only be found out by trying: when it fails again within the time that was waited for, the
    next wait is twice as long, up to `LONGEST_WAIT` times the first.

    Parameters
    ----------
    settings : BudgetSettings
    operators : OperatorBuilder
        Of the fallback, of the same sources and unit; its operators built in advance.
    first : str
        Name of the first solver, for messages.
    """

    def __init__(self, settings: BudgetSettings, operators: OperatorBuilder, first: str) -> None:
        self.operators = operators
        self._settings = settings
        self._first = first
        self._missed: deque[float] = deque(maxlen=settings.misses)
        self._active = False
        self._wait_s = settings.return_after_s
        self._changed_at = float("-inf")
        self._clean_since = float("-inf")
        self._n_changes = 0

    @property
    def solver_name(self) -> str:
        """Of the fallback."""
        return self.operators.imaging.solver_name

    def note(self, missed: bool, now: float) -> bool:
        """Count a hop that ended at `now`; returns whether the next one is for the fallback."""
        if self._active:
            if missed:
                self._clean_since = now
            if now - self._clean_since >= self._wait_s:
                self._change(now)
                logger.warning(
                    "budget: no hop was late for %g s: imaging with %s again", round(self._wait_s, 1), self._first
                )
            return self._active
        if missed:
            self._missed.append(now)
        if len(self._missed) == self._settings.misses and now - self._missed[0] <= self._settings.within_s:
            self._take_over(now)
            logger.warning(
                "budget: %d hops were skipped or later than the budget within %.1f s: %s images in place of %s (flag "
                "FALLBACK); %s is tried again after %g s without a miss",
                self._settings.misses,
                now - self._missed[0],
                self.solver_name,
                self._first,
                self._first,
                self._wait_s,
            )
            self._missed.clear()
        return self._active

    @property
    def active(self) -> bool:
        """Whether it images now."""
        return self._active

    def take_over(self, now: float, why: str) -> bool:
        """Image with the fallback from the next hop on, since the first solver fails; it is tried again as after misses."""
        if not self._active:
            self._take_over(now)
            logger.warning(
                "%s: %s images in place of %s (flag FALLBACK), which is tried again after %g s",
                why,
                self.solver_name,
                self._first,
                self._wait_s,
            )
            self._missed.clear()
        return True

    def _take_over(self, now: float) -> None:
        again = self._n_changes > 0 and now - self._changed_at <= self._wait_s
        base = self._settings.return_after_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT * base) if again else base
        self._change(now)
        self._clean_since = now

    def _change(self, now: float) -> None:
        self._active = not self._active
        self._changed_at = now
        self._n_changes += 1

    def status(self) -> dict[str, Any]:
        """For the health stream: ``budget.fallback``."""
        return {
            "solver": self.solver_name,
            "active": self._active,
            "changes": self._n_changes,
            "changed_at": self._changed_at if self._n_changes else None,
            "return_after_s": self._wait_s,
        }
