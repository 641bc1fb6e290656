"""One thread at a time, where threads share what is made for one."""

from __future__ import annotations

import threading
from types import TracebackType


class Turns:
    """``with turns:`` is entered by one thread at a time; the others wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()
