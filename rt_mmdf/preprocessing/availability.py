"""Which modality is there for which sample: the question that every stage asks of the flags."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import MISSING, Flag
from rt_mmdf.core.channels import Channels, Modality

Rows = slice | NDArray[np.intp]

_ANY_MISSING = int(Flag.EEG_MISSING | Flag.MEG_MISSING)


@dataclass(frozen=True, slots=True)
class AvailabilityRun:
    """Neighbouring columns ``[start, stop)`` of a block that lack the same modalities."""

    start: int
    stop: int
    missing: frozenset[Modality]


def runs_by_availability(flags: NDArray[np.uint32]) -> list[AvailabilityRun]:
    """Split the columns of a block where a modality comes or goes.

    Parameters
    ----------
    flags : (n_times,) uint32 of `Flag`

    Returns
    -------
    runs : in order, without holes; empty for a block without samples.
    """
    if len(flags) == 0:
        return []
    lacking = flags & _ANY_MISSING
    edges = [0, *(np.flatnonzero(np.diff(lacking)) + 1).tolist(), len(flags)]
    return [
        AvailabilityRun(a, b, frozenset(m for m in Modality if int(lacking[a]) & MISSING[m])) for a, b in pairwise(edges)
    ]


def rows_by_modality(channels: Channels) -> dict[Modality, Rows]:
    """Rows of each modality that has channels; a slice where they are neighbours, so that indexing makes no copy."""
    rows: dict[Modality, Rows] = {}
    for modality in channels.modalities:
        index = channels.of_modality(modality)
        neighbours = index[-1] - index[0] + 1 == len(index)
        rows[modality] = slice(int(index[0]), int(index[-1]) + 1) if neighbours else index
    return rows
