"""Memory of this process."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 256 * 1024


def give_large_blocks_back() -> None:
    """Large arrays are the system's again as soon as they are freed, whatever came before (glibc only).

    glibc raises the size from which that is so to the largest block that was ever freed, up to 32 MB: then a backlog that is
    worked through once stays with the process in pieces.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


@contextmanager
def settled_memory() -> Iterator[None]:
    """Draw a line under the preparation: what it freed goes back to the system, what it left is not searched for garbage.

    Building operators leaves 90 MB of freed pieces in the allocator (of 480 MB, at 5124 sources), and a million objects that
    the collector would look through again and again, 50 ms at a time.
    """
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    try:
        yield
    finally:
        gc.unfreeze()
