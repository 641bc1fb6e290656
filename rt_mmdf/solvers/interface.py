"""What plugs into the chain between whitened sensors and sources: linear kernels today, networks by the same door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rt_mmdf.core.blocks import Float32
from rt_mmdf.headmodel.whitener import Whitener

__all__ = ["Operator", "Solver", "Whitener"]


class Solver(Protocol):
    """Maps whitened sensors to sources; ready once built, no thread inside."""

    @property
    def n_sources(self) -> int: ...

    @property
    def unit(self) -> str:
        """Unit of the output: "A m", or "" for standardised maps."""
        ...

    def reset(self) -> None:
        """Forget what was kept of earlier samples, if anything was."""
        ...

    def __call__(self, window: Float32, n_new: int) -> Float32:
        """Image the newest samples of a window.

        Parameters
        ----------
        window : (n_channels, n_times) float32
            Whitened sensors; the last `n_new` columns are those to image, the others are context.

        Returns
        -------
        (n_sources, n_new) float32, in `unit`.
        """
        ...


@dataclass(frozen=True)
class Operator:
    """A whitener and the solver that was prepared for it. They change together or not at all.

    used : names of the channels that enter; every other imaged channel is bad or missing and has weight zero.
    """

    whitener: Whitener
    solver: Solver
    used: frozenset[str]
