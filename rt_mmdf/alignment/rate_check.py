"""Whether a stream samples at the rate that it announces: told by its first stamps."""

from __future__ import annotations

import numpy as np

from rt_mmdf.core.blocks import Float64

LOOKS_S = (1.0, 4.0, 16.0)  # the longer ones find through jitter what the first one cannot
N_PARTS = 8
MOST_PPM = 1000.0  # crystals stay within 100 ppm; a rate that was typed in wrongly is off by more
SURE_SD = 5.0  # of the spread of the parts' differences
ONE_BLOCK = 0.1  # of the nominal interval: stamps closer than this may all belong to one block, so a longer look is taken


class RateCheck:
    """Compares the sampling rate by the stamps with the nominal one, over the first 1, 4 and 16 s.

    Each look is cut into 8 parts, and what counts is how far the stamps go from the middle of a part to that of the next;
    inside a part they may come in blocks, all stamped when the block was sent. The rate is wrong where it is off by more
    than 1000 ppm and all steps agree on that: a hole disturbs one or two of them, jitter and blocks that do not fit into
    the parts scatter them all, but a wrong rate shows alike in each.

    Parameters
    ----------
    sfreq : float
        Nominal rate, Hz.
    shared_stamps : bool
        Blocks of samples share one stamp; only the first sample of each is looked at.
    """

    def __init__(self, sfreq: float, shared_stamps: bool) -> None:
        self._sfreq = sfreq
        self._shared = shared_stamps
        self._looks = [max(4 * N_PARTS, round(look * sfreq)) for look in LOOKS_S]
        self._pieces: list[Float64] = []
        self._n = 0

    def add(self, stamps: Float64) -> float | None:
        """Take the stamps of the next samples; the true rate in Hz when it has turned out that the nominal one is wrong."""
        if not self._looks:
            return None
        self._pieces.append(stamps)
        self._n += len(stamps)
        wrong = None
        while wrong is None and self._looks and self._n >= self._looks[0]:
            seen = np.concatenate(self._pieces)
            wrong = self._look(seen[: self._looks.pop(0)])
        if not self._looks:
            self._pieces.clear()
        return wrong

    def _look(self, stamps: Float64) -> float | None:
        edges = np.linspace(0, len(stamps), N_PARTS + 1).astype(int)
        changed = np.concatenate([[False], stamps[1:] != stamps[:-1]]) if self._shared else np.ones(len(stamps), bool)
        useful = np.isfinite(stamps) & changed
        centre, beyond = np.empty(N_PARTS), np.empty(N_PARTS)  # samples; seconds beyond the nominal time
        for part in range(N_PARTS):
            at = np.arange(edges[part], edges[part + 1])
            at = at[useful[at]]
            if len(at) < 2:
                return None
            centre[part] = np.median(at)
            beyond[part] = np.median(stamps[at] - at / self._sfreq)
        off = np.diff(beyond) / np.diff(centre) * self._sfreq
        middle = float(np.median(off))
        if abs(middle) <= max(MOST_PPM * 1e-6, SURE_SD * float(off.std(ddof=1))):
            return None
        if 1 + middle < ONE_BLOCK and self._looks:
            return None
        return self._sfreq / max(1 + middle, 1e-9)
