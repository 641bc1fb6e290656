"""Operators are built off the hot path, as they are asked for."""

from __future__ import annotations

import logging

from rt_mmdf.app.imaging import Imaging
from rt_mmdf.core.errors import RtMmdfError
from rt_mmdf.preprocessing.whitening import OperatorKey, OperatorSwitch
from rt_mmdf.runtime.mailbox import Mailbox

logger = logging.getLogger(__name__)

TAKE_S = 0.2
LIMIT_S = 120.0
"""Longest that one may take: eLORETA with loose orientation takes 7 s, on a busy machine more."""


class OperatorBuilder:
    """Builds what an `OperatorSwitch` asks for, one after the other, newest wish first.

    The operator for all channels is built at once.

    Attributes
    ----------
    imaging : Imaging
    follower : OperatorBuilder | None
        Builds the same as soon as this one has, for a solver that may have to take over from one hop to the next.
    switch : OperatorSwitch
    complete : Operator | None
        For all channels; None where a beamformer has no data yet.
    """

    def __init__(self, imaging: Imaging) -> None:
        self.imaging = imaging
        self.follower: OperatorBuilder | None = None
        self._wanted: Mailbox[OperatorKey] = Mailbox(64)
        self.switch = OperatorSwitch(self._wanted.put)
        first = imaging.full_key()
        self.complete = imaging.build(first)
        if self.complete is not None:
            self.switch.offer(first, self.complete)
        if imaging.data_cov is not None:
            imaging.data_cov.on_refresh = self._want_newer

    def offer_in_advance(self) -> None:
        """Build what is wanted from one moment to the next when a stream stalls."""
        for key in self.imaging.keys_in_advance():
            self.offer(key)
        if self.follower is not None:
            self.follower.offer_in_advance()

    def offer(self, key: OperatorKey) -> None:
        """Build one, and hand it or its failure to the switch."""
        try:
            if (operator := self.imaging.build(key)) is not None:
                self.switch.offer(key, operator)
        except RtMmdfError as error:
            self.switch.fail(key, str(error))
            logger.warning("%s: cannot image without %s: %s", self.imaging.solver_name, _named(key), error)
        except BaseException:
            self.switch.forget(key)  # no memory, say: it may be had the next time
            raise

    def step(self, wait_s: float = TAKE_S) -> None:
        """Build the operator that was wanted last; what was wanted before that is wanted no more."""
        key = self._wanted.take(wait_s)
        for newer in self._wanted.take_all():
            if key is not None:
                self.switch.forget(key)
            key = newer
        if key is not None:
            self.offer(key)
        if self.follower is not None:
            if key is not None:
                self.follower.offer(key)
            self.follower.step(0.0)

    @property
    def n_waiting(self) -> int:
        """Operators that are asked for and not begun."""
        return len(self._wanted)

    @property
    def failed(self) -> dict[str, str]:
        """Why there is no operator, by what it would have been without."""
        return {_named(key): reason for key, reason in self.switch.failed.items()}

    @property
    def lacking(self) -> str:
        """Why there is no operator for what is to be imaged now; empty where there is one, or will be."""
        key = self.switch.current
        why = None if key is None or self.switch.has(key) else self.switch.failed.get(key)
        return "" if key is None or why is None else f"without {_named(key)}: {why}"

    def _want_newer(self) -> None:
        if self.switch.current is not None:
            self._wanted.put(self.switch.current)


def _named(key: OperatorKey) -> str:
    without = [modality.upper() for modality in key.missing] + sorted(key.bads)
    return ", ".join(without) or "nothing"
