"""How values cross threads: bounded, counted, never unbounded queues."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Signal:
    """A doorbell: `ring` from any thread, `wait` in one.

    One bare lock, which a ring opens and a wait closes: in the bookkeeping of `threading.Event`, a Ctrl-C or a request to
    terminate may come out as "release unlocked lock", and each wait of it makes a lock of its own.
    """

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        with suppress(RuntimeError):  # it has been rung, and nobody has waited since
            self._silent.release()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a ring since the last wait; False after the time limit."""
        return self._silent.acquire(timeout=max(timeout_s, 0.0))


class Mailbox(Generic[T]):
    """First in, first out, at most `capacity` values; what does not fit pushes out the oldest and is counted.

    `signal`, where given, is rung after each `put`.
    """

    def __init__(self, capacity: int, signal: Signal | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"mailbox of {capacity} values: at least 1 is expected")
        self._values: deque[T] = deque()
        self._capacity = capacity
        self._ready = threading.Condition()
        self._signal = signal
        self._dropped = 0

    @property
    def n_dropped(self) -> int:
        """Values that were pushed out before anybody took them."""
        return self._dropped

    def __len__(self) -> int:
        return len(self._values)

    def put(self, value: T) -> None:
        with self._ready:
            if len(self._values) == self._capacity:
                self._values.popleft()
                self._dropped += 1
            self._values.append(value)
            self._ready.notify()
        if self._signal is not None:
            self._signal.ring()

    def take(self, timeout_s: float) -> T | None:
        """The oldest value, waiting for one up to the time limit; None when there is none."""
        with self._ready:
            self._ready.wait_for(lambda: self._values, timeout_s)
            return self._values.popleft() if self._values else None

    def take_all(self) -> list[T]:
        """All values that are there now, oldest first."""
        with self._ready:
            values = list(self._values)
            self._values.clear()
            return values


class Backlog(Generic[T]):
    """First in, first out, bounded by what the values weigh: what does not fit pushes out the oldest, which are counted.

    For values of very different size, where a number of them is no limit of memory.

    Parameters
    ----------
    capacity : int
        Most that all waiting values weigh together, bytes for example. A value heavier than that never stays.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"backlog of {capacity}: at least 1 is expected")
        self._values: deque[tuple[T, int, int]] = deque()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._weight = self._waiting = self._dropped = 0

    @property
    def n_dropped(self) -> int:
        """Parts of the values that were pushed out before anybody took them."""
        return self._dropped

    @property
    def n_waiting(self) -> int:
        """Parts of the values that wait to be taken."""
        return self._waiting

    def put(self, value: T, weight: int, n_parts: int = 1) -> None:
        """Put a value of this weight, which counts as `n_parts` (samples, for example)."""
        with self._lock:
            self._values.append((value, weight, n_parts))
            self._weight += weight
            self._waiting += n_parts
            while self._weight > self._capacity:
                _, out, n_out = self._values.popleft()
                self._weight -= out
                self._waiting -= n_out
                self._dropped += n_out

    def take_all(self) -> list[T]:
        """All values that are there now, oldest first."""
        with self._lock:
            values = [value for value, _, _ in self._values]
            self._values.clear()
            self._weight = self._waiting = 0
            return values


class NewestValue(Generic[T]):
    """A cell that holds the newest value only: for readers that want the present, not the past."""

    def __init__(self) -> None:
        self._value: T | None = None

    def put(self, value: T) -> None:
        self._value = value  # one reference: the interpreter makes this atomic

    def get(self) -> T | None:
        return self._value
