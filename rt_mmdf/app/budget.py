"""Whether this machine can keep the budget: found out before the streams are opened, on the real chain."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rt_mmdf.alignment.grid import AlignedHop
from rt_mmdf.app.chain import Chain
from rt_mmdf.app.imaging import Imaging, Progress
from rt_mmdf.app.intake import grid_rate, hop_samples
from rt_mmdf.app.operators import OperatorBuilder
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Float32, SensorBlock
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.headmodel.noise import AD_HOC_STD
from rt_mmdf.lsl.interface import Clock
from rt_mmdf.solvers.linear import SolverSettings

logger = logging.getLogger(__name__)

WARM_UP_HOPS = 3
LEAST_HOPS, MOST_HOPS = 60, 400
LEAST_S = 0.35  # of samples: what a model does anew every 100 ms must be in it
LONGEST_S = 2.0  # of measuring; at least `FEWEST_HOPS` all the same
FEWEST_HOPS = 5


@dataclass(frozen=True)
class ChainCost:
    """What the chain took for one hop after the other: filters, whitening, solver; not receiving, aligning, publishing.

    mean_ms : without the slowest hop, which may have been another program's doing
    """

    solver: str
    hop_ms: float
    n_hops: int
    median_ms: float
    mean_ms: float
    p99_ms: float

    @property
    def hopeless(self) -> bool:
        """Whether hops come faster than they can be imaged."""
        return self.mean_ms > self.hop_ms

    def __str__(self) -> str:
        return (
            f"{self.solver} takes {self.median_ms:.1f} ms for a hop of {self.hop_ms:g} ms at the median (mean "
            f"{self.mean_ms:.1f}, p99 {self.p99_ms:.1f}; {self.n_hops} hops of noise, the chain alone)"
        )


@dataclass(frozen=True)
class Affordable:
    """What the session begins with.

    settings, operators : as configured, or lowered
    cost : as measured; None where nothing was
    lowered : what was changed, in words
    warning : what cannot be kept all the same
    """

    settings: SessionSettings
    operators: OperatorBuilder
    cost: ChainCost | None
    lowered: tuple[str, ...] = ()
    warning: str | None = None

    def status(self) -> dict[str, Any]:
        """For the health stream: part of ``budget``."""
        measured = None if self.cost is None else asdict(self.cost)
        return {"measured": measured, "lowered": list(self.lowered), "warning": self.warning}


def affordable(
    settings: SessionSettings,
    operators: OperatorBuilder,
    rates: Mapping[Modality, float],
    clock: Clock,
    progress: Progress = lambda what, fraction: None,
) -> Affordable:
    """Measure the chain as configured and, where the budget cannot be met, what may be put in its place.

    Parameters
    ----------
    operators : of the configured solver
    rates : of the streams, Hz

    Raises
    ------
    ConfigurationError
        It can never keep up, and nothing that may be lowered would help.
    """
    if not settings.budget.measure or operators.complete is None:  # a beamformer has no filters before it has data
        return Affordable(settings, operators, None)
    budget_ms = settings.budget_ms
    tried: list[Affordable] = []
    for number, (candidate, own, lowered) in enumerate(_candidates(settings, operators)):
        progress("measuring the chain" if number == 0 else f"measuring the chain with {lowered[-1]}", 0.65)
        cost = measure_chain(candidate, own, rates, clock)
        if cost.hopeless:  # another program may have been in the way: the better of two counts
            cost = min(cost, measure_chain(candidate, own, rates, clock), key=lambda measured: measured.mean_ms)
        found = Affordable(candidate, own, cost, lowered)
        if not cost.hopeless and cost.p99_ms <= budget_ms:
            if lowered:
                logger.warning(
                    "budget: %s, and the budget is %g ms. Lowered, as [budget] allows: %s; now %s",
                    tried[0].cost,
                    budget_ms,
                    " and ".join(lowered),
                    cost,
                )
            return found
        tried.append(found)
    usable = [found for found in tried if found.cost is not None and not found.cost.hopeless]
    if not usable:
        raise ConfigurationError(_never(settings, tried))
    best = usable[0]  # the least that was changed: what does not keep the budget either is no reason to change more
    warning = f"{best.cost}: more than the budget of {budget_ms:g} ms for at least one hop in 100"
    changed = f" Lowered, as [budget] allows: {' and '.join(best.lowered)}." if best.lowered else ""
    logger.warning(
        "budget: %s. Such hops count as missed deadlines.%s Raise budget_ms, image with a faster solver, or see what "
        "[budget] can lower.",
        warning,
        changed,
    )
    return Affordable(best.settings, best.operators, best.cost, best.lowered, warning)


def _never(settings: SessionSettings, tried: list[Affordable]) -> str:
    costs = "; ".join(str(found.cost) for found in tried)
    lower = settings.budget.may_lower
    allowed = f"what [budget] may lower ({', '.join(lower)}) does not help" if lower else "[budget] may lower nothing"
    return (
        f"hop_ms = {settings.hop_ms:g}: this machine can never keep up: {costs}. Hops would come faster than they are "
        f"imaged, and {allowed}. Raise hop_ms, image with a faster solver or fewer sources, or let the start lower "
        'them itself: may_lower = ["hop", "solver"] under [budget]. To start all the same, and skip hops: measure = false.'
    )


def _candidates(
    settings: SessionSettings, operators: OperatorBuilder
) -> Iterator[tuple[SessionSettings, OperatorBuilder, tuple[str, ...]]]:
    """As configured; then what may be lowered, one by one, then both."""
    yield settings, operators, ()
    allowed = settings.budget.may_lower
    linear: OperatorBuilder | None = None
    for what in allowed:
        if what == "hop":
            for wider in _wider(settings):
                yield wider, operators, (f"hop_ms = {wider.hop_ms:g}",)
        elif linear is None:
            settings_linear, linear = with_fallback(settings, operators)
            yield settings_linear, linear, (f"solver = {settings.budget.fallback}",)
    if linear is not None and "hop" in allowed:
        for wider in _wider(settings_linear):
            yield wider, linear, (f"solver = {settings.budget.fallback}", f"hop_ms = {wider.hop_ms:g}")


def _wider(settings: SessionSettings) -> Iterator[SessionSettings]:
    hop_ms = 2 * settings.hop_ms
    while hop_ms <= settings.budget.largest_hop_ms:
        window_ms = None if settings.window_ms is None else max(settings.window_ms, hop_ms)
        yield settings.model_copy(update={"hop_ms": hop_ms, "window_ms": window_ms})
        hop_ms *= 2


def with_fallback(settings: SessionSettings, operators: OperatorBuilder) -> tuple[SessionSettings, OperatorBuilder]:
    """Settings and operators of the fallback, with the head, noise and projectors of the first solver."""
    solver = SolverSettings(method=settings.budget.fallback)
    linear = settings.model_copy(update={"solver": solver})
    return linear, OperatorBuilder(operators.imaging.beside(linear, {}))


def measure_chain(
    settings: SessionSettings, operators: OperatorBuilder, rates: Mapping[Modality, float], clock: Clock
) -> ChainCost:
    """Image noise of realistic size, off the network."""
    imaging = operators.imaging
    sfreq = grid_rate(settings, (rates[m] for m in imaging.channels.modalities))
    hop = hop_samples(settings, sfreq)
    hop_s = hop / sfreq
    decimate = settings.preprocessing.decimate
    chain = Chain(
        imaging.channels,
        settings.preprocessing,
        sfreq,
        operators.switch,
        n_sources=imaging.head.n_sources,
        unit=imaging.solver.unit,
        window=imaging.window_samples(settings, hop // decimate, sfreq / decimate),
        clock=clock,
    )
    noise = _noise(imaging, hop)
    filling = math.ceil(chain.imager.window_length * decimate / hop)
    for number in range(filling):
        chain(_hop(imaging, noise, number, hop, sfreq), image=False)
    costs: list[float] = []
    wanted = min(MOST_HOPS, max(LEAST_HOPS, math.ceil(LEAST_S / hop_s))) + WARM_UP_HOPS
    with imaging.tried_out():
        began = clock.now()
        while len(costs) < wanted and not (clock.now() - began > LONGEST_S and len(costs) >= FEWEST_HOPS + WARM_UP_HOPS):
            aligned = _hop(imaging, noise, filling + len(costs), hop, sfreq)
            start = clock.now()
            chain(aligned)
            costs.append(1e3 * (clock.now() - start))
    if operators.complete is not None:
        operators.complete.solver.reset()  # it has seen noise
    counted = np.sort(costs[WARM_UP_HOPS:])
    return ChainCost(
        solver=imaging.solver_name,
        hop_ms=1e3 * hop_s,
        n_hops=len(counted),
        median_ms=float(np.median(counted)),
        mean_ms=float(counted[:-1].mean()),
        p99_ms=float(np.quantile(counted, 0.99, method="inverted_cdf")),
    )


def _noise(imaging: Imaging, hop: int) -> Float32:
    scale = np.array([10 * AD_HOC_STD[kind.value] for kind in imaging.channels.types])
    noise: Float32 = (np.random.default_rng(0).standard_normal((len(scale), hop)) * scale[:, None]).astype(np.float32)
    return noise


def _hop(imaging: Imaging, noise: Float32, number: int, hop: int, sfreq: float) -> AlignedHop:
    times = (number * hop + np.arange(hop)) / sfreq
    flags, bads = np.zeros(hop, np.uint32), frozenset(imaging.bads)
    block = SensorBlock(imaging.channels, noise, times, flags, times, number * hop, bads)
    return AlignedHop(block, float(times[-1]))
