"""Threads with an owner: they stop when told, and their errors are not lost."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rt_mmdf.core.errors import WorkerFailed


@contextmanager
def quick_handover(interval_s: float = 5e-4) -> Iterator[None]:
    """While this lasts, a thread that has work waits at most about this long for one that computes in Python.

    The interpreter's own 5 ms are half a hop. At 0.5 ms the handovers cost less than 1 % of a core.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass(frozen=True, slots=True)
class Restarts:
    """When a worker whose step has raised goes on.

    tell : called in the worker's thread with its name and the error, before each new try
    limit, within_s : it ends at the error that is one more than `limit` within `within_s`
    first_wait_s, longest_wait_s : before the next try; twice as long after each error within `within_s`
    before : called before each new try, to put in order what the step left
    fatal : errors that end it at once
    """

    tell: Callable[[str, Exception], None]
    limit: int = 5
    within_s: float = 30.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 5.0
    before: Callable[[], None] | None = None
    fatal: tuple[type[Exception], ...] = ()


class Worker:
    """Calls `step` again and again in a thread of its own until stopped.

    `step` should return within a fraction of a second (wait with a time limit inside). An error ends the worker, is kept,
    is handed to `on_failure` at once, and comes out of `check` and `stop` as `WorkerFailed`. With `restarts` the worker
    goes on after an error, as these say.

    Parameters
    ----------
    name : str
        Of the thread and in messages.
    step : callable
        One round of work.
    on_failure : callable | None
        Called in the dying thread, for example to wake the session.
    stop_timeout_s : float
        Longest that one round of `step` may last: `stop` waits for it.

    Attributes
    ----------
    restarts : Restarts | None
        To be set before `start`.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], None],
        on_failure: Callable[[], None] | None = None,
        stop_timeout_s: float = 5.0,
    ) -> None:
        self.name = name
        self._step = step
        self._on_failure = on_failure
        self._stop_timeout_s = stop_timeout_s
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self.restarts: Restarts | None = None
        self._failed_at: deque[float] = deque()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Worker:
        """Begin; where that is interrupted (Ctrl-C comes at any moment), nothing of it runs on."""
        try:
            self._thread.start()
        except BaseException:
            self._stopping.set()
            raise
        return self

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def pause(self, seconds: float) -> bool:
        """Wait inside `step`; True as soon as the worker is asked to stop."""
        return self._stopping.wait(seconds)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._step()
                except Exception as error:
                    self._go_on_after(error)
        except BaseException as error:
            self._error = error
            if self._on_failure is not None:
                self._on_failure()

    def _go_on_after(self, error: Exception) -> None:
        """Wait for the next try, or raise the error."""
        restarts, now = self.restarts, time.monotonic()
        if restarts is None or isinstance(error, restarts.fatal):
            raise error
        self._failed_at.append(now)
        while now - self._failed_at[0] > restarts.within_s:
            self._failed_at.popleft()
        if len(self._failed_at) > restarts.limit:
            raise error
        restarts.tell(self.name, error)
        self.pause(min(restarts.longest_wait_s, restarts.first_wait_s * 2 ** (len(self._failed_at) - 1)))
        if restarts.before is not None:
            restarts.before()

    def check(self) -> None:
        """Raise `WorkerFailed` from the error that ended this worker, if one did."""
        if self._error is not None:
            raise WorkerFailed(f"worker {self.name!r} stopped: {self._error}") from self._error

    def stop(self, timeout_s: float | None = None) -> None:
        """Ask to stop, wait (`stop_timeout_s` unless told otherwise), and raise what went wrong."""
        timeout_s = self._stop_timeout_s if timeout_s is None else timeout_s
        self._stopping.set()
        if self._thread.is_alive():  # one whose start was interrupted finds out for itself, before its first step
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise WorkerFailed(
                f"worker {self.name!r} did not stop within {timeout_s:g} s; it waits on something without a limit"
            )
        self.check()

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        except WorkerFailed:
            if error is None:  # an error that is under way already is the more telling one
                raise
