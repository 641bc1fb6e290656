"""What the system still gives this process: file handles and memory."""

from __future__ import annotations

import errno
import os
import sys

import psutil


def _own_limit(name: str) -> int | None:
    """A limit of this process; None where there is none."""
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    most = resource.getrlimit(getattr(resource, name))[0]
    return None if most == resource.RLIM_INFINITY else most


def file_handles_left() -> int | None:
    """How many more files, sockets and pipes may be opened; 0 where even asking takes one too many, None if not known."""
    most = _own_limit("RLIMIT_NOFILE")
    if most is None:
        return None
    try:
        return max(0, most - len(os.listdir("/proc/self/fd")))
    except OSError as error:
        return 0 if error.errno in (errno.EMFILE, errno.ENFILE) else None


def memory_left() -> int | None:
    """Bytes that the machine can still give without swapping, or that this process's own limit leaves; None if not known."""
    try:
        left = int(psutil.virtual_memory().available)
        most = _own_limit("RLIMIT_AS")
        if most is None:
            return left
        return min(left, max(0, most - int(psutil.Process().memory_info().vms)))
    except (OSError, psutil.Error):  # no handle to ask with
        return None
