"""What takes longer than a picture may: the cortex of a head is prepared in a thread of its own."""

from __future__ import annotations

from rt_mmdf.core.errors import RtMmdfError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.runtime.mailbox import Mailbox, NewestValue
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.view.cortex import Cortex

PREPARE_LIMIT_S = 60.0  # a large cortex without inflated surface


class CortexWorker:
    """Prepares the cortex of a head in a thread of its own."""

    def __init__(self) -> None:
        self._wanted: Mailbox[HeadModel] = Mailbox(1)
        self._made: NewestValue[tuple[HeadModel, Cortex | None, str]] = NewestValue()
        self._worker = Worker("view cortex", self._step, stop_timeout_s=PREPARE_LIMIT_S).start()

    def want(self, head: HeadModel) -> None:
        self._wanted.put(head)

    def made_of(self, head: HeadModel) -> tuple[Cortex | None, str] | None:
        """The cortex, or None and why there is none; None while it is not ready."""
        made = self._made.get()
        return None if made is None or made[0] is not head else made[1:]

    def _step(self) -> None:
        head = self._wanted.take(0.2)
        if head is None:
            return
        try:
            cortex = Cortex.of(head)
            for surface in cortex.surfaces:
                cortex.normals(surface)
            self._made.put((head, cortex, ""))
        except RtMmdfError as error:
            self._made.put((head, None, str(error)))

    def close(self) -> None:
        self._worker.stop()
