"""How values cross threads: bounded, counted, never unbounded queues."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Signal:
    """A doorbell: `ring` from any thread, `wait` in one."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a ring since the last wait; False after the time limit."""
        rung = self._event.wait(timeout_s)
        if rung:  # after the time limit a ring may just have come: it is for the next wait
            self._event.clear()
        return rung


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


class NewestValue(Generic[T]):
    """A cell that holds the newest value only: for readers that want the present, not the past."""

    def __init__(self) -> None:
        self._value: T | None = None

    def put(self, value: T) -> None:
        self._value = value  # one reference: the interpreter makes this atomic

    def get(self) -> T | None:
        return self._value
