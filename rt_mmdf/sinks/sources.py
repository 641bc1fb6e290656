"""What a sink must know about the sources to describe them to a stranger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import HeadModelError

HEMISPHERES = ("lh", "rh")


@dataclass(frozen=True)
class SourceSpaceDescription:
    """Sources of the left hemisphere, then of the right one, in the order of an estimate's rows.

    Parameters
    ----------
    head : str
        Name of the head model.
    fingerprint : str
        Of the head model: two streams with the same one have the same sources.
    vertices : (left, right)
        Vertex numbers on the cortex of each hemisphere, ascending.
    positions_mm : (n_sources, 3)
        In `frame`.
    frame : str
        What the positions mean: ``"MRI (surface RAS)"`` of the subject, ``"MNI305"`` for the template.

    Raises
    ------
    HeadModelError
        Vertices are not ascending, or there are more or less positions than vertices.
    """

    head: str
    fingerprint: str
    vertices: tuple[NDArray[np.int64], NDArray[np.int64]]
    positions_mm: NDArray[np.float64]
    frame: str = "MRI (surface RAS)"

    def __post_init__(self) -> None:
        n_vertices = sum(len(own) for own in self.vertices)
        if self.positions_mm.shape != (n_vertices, 3):
            raise HeadModelError(
                f"head {self.head!r}: {n_vertices} source vertices, but positions of shape {self.positions_mm.shape}; "
                f"({n_vertices}, 3) is expected. Build the head model again: rt-mmdf head --help"
            )
        for hemisphere, own in zip(HEMISPHERES, self.vertices, strict=True):
            if len(own) and (np.diff(own) <= 0).any():
                raise HeadModelError(
                    f"head {self.head!r}: source vertices of hemisphere {hemisphere} are not in ascending order, as MNE's "
                    "files have them. Build the head model again: rt-mmdf head --help"
                )

    @property
    def n_sources(self) -> int:
        return len(self.positions_mm)

    @property
    def names(self) -> tuple[str, ...]:
        """``lh-1234``: hemisphere and vertex number."""
        return tuple(f"{h}-{v}" for h, own in zip(HEMISPHERES, self.vertices, strict=True) for v in own.tolist())
