"""What is kept for programs that listen: bounded, however slow they are."""

from __future__ import annotations

import numpy as np

from rt_mmdf.lsl.interface import StreamDescription

MOST_BYTES = 256 << 20
"""Of one stream: 13 s of 5124 sources at 1 kHz. A program that stands still for longer finds a hole."""
LEAST_S, MOST_S = 1.0, 360.0


def buffer_seconds(stream: StreamDescription) -> float:
    """How much an outlet keeps for a listener that does not take it, seconds.

    liblsl keeps each sample once for all listeners; its own default of 360 s would be 7 GB of full estimates.
    """
    if stream.dtype == "string" or not stream.sfreq:
        return MOST_S
    a_second = stream.sfreq * stream.n_channels * np.dtype(stream.dtype).itemsize
    return float(np.clip(MOST_BYTES / a_second, LEAST_S, MOST_S))
