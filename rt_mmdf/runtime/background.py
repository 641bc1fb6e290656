"""Work for another thread whose result is wanted a little later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rt_mmdf.runtime.mailbox import Mailbox
from rt_mmdf.runtime.worker import Worker

T = TypeVar("T")

TAKE_S = 0.1


class Pending(Generic[T]):
    """A result that may not be there yet."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._error: Exception | None = None
        self._value: list[T] = []
        self.ready = False

    def run(self) -> None:
        """Do the work; what it raises is kept for `value`."""
        try:
            self._value.append(self._work())
        except Exception as error:
            self._error = error
        self.ready = True  # last: from here on another thread may look

    def value(self) -> T:
        """The result, or the error of the work; only when it is `ready`."""
        if self._error is not None:
            raise self._error
        return self._value[0]


class Background:
    """Does work in a thread of its own, or, where nobody made one, at once in the thread that asks.

    Parameters
    ----------
    capacity : work that waits at most; the oldest is given up, since newer work is wanted more
    """

    def __init__(self, capacity: int = 16) -> None:
        self._has_worker = False
        self._waiting: Mailbox[Pending[Any]] = Mailbox(capacity)

    def ask(self, work: Callable[[], T]) -> Pending[T]:
        """Have something done."""
        pending = Pending(work)
        if self._has_worker:
            self._waiting.put(pending)
        else:
            pending.run()
        return pending

    def worker(self, name: str, on_failure: Callable[[], None] | None = None) -> Worker:
        """The thread, not yet started; what is asked for from now on is left to it."""
        self._has_worker = True
        return Worker(name, self.step, on_failure)

    def alone(self) -> None:
        """Its thread has ended: what is asked for from now on is done at once again."""
        self._has_worker = False

    def step(self, wait_s: float = TAKE_S) -> None:
        """Do what waits, or wait for it a little."""
        if (pending := self._waiting.take(wait_s)) is not None:
            pending.run()
