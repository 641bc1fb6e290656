"""The chain from aligned sensors to source estimates: every stage of the hot path, in order, and nothing else.

    aligned hop -> cleaning (bad channels, filters, decimation) -> whitening -> window -> solver -> estimate

No thread and no waiting: the same object runs live, over memory with a manual clock, and over a file at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.alignment.grid import AlignedHop
from rt_mmdf.core.blocks import Flag, Float32, SensorBlock, SourceEstimate, StageStamps
from rt_mmdf.core.channels import Channels
from rt_mmdf.lsl.interface import Clock
from rt_mmdf.preprocessing.cleaning import Cleaning
from rt_mmdf.preprocessing.settings import PreprocessingSettings
from rt_mmdf.preprocessing.whitening import OperatorSwitch, Whitening
from rt_mmdf.preprocessing.window import SlidingWindow
from rt_mmdf.solvers.interface import Operator


@dataclass(frozen=True, slots=True)
class CleanedHop:
    """What the solver gets of one hop, before the whitener; immutable, for whoever else wants it.

    number : running number of the hop
    stamps : as far as they are known: `solved` is NaN
    """

    block: SensorBlock
    number: int
    stamps: StageStamps


class Imager:
    """Whitening, window and solver: from cleaned blocks to estimates.

    Parameters
    ----------
    switch : OperatorSwitch
        Hands out whitener and solver for the channels of the moment.
    n_channels, n_sources : int
    window : int
        Samples that the solver sees; the newest of them are imaged.

    Attributes
    ----------
    on_failure : callable | None
        Called with what a solver raised; its samples are then NaN and INVALID, and it is
        reset before it is asked again. Without it the error is raised.
    """

    def __init__(self, switch: OperatorSwitch, *, n_channels: int, n_sources: int, window: int) -> None:
        self._whitening = Whitening(switch)
        self._window = SlidingWindow(window, n_channels)
        self._n_sources = n_sources
        self._newest: Operator | None = None
        self.on_failure: Callable[[Exception], None] | None = None

    @property
    def window_length(self) -> int:
        """Samples."""
        return self._window.length

    def reset(self) -> None:
        """Forget the window."""
        self._window.reset()
        self.rest()

    def rest(self) -> None:
        """Another has imaged meanwhile: what the solver keeps of the time before is of no use."""
        self._newest = None

    def __call__(self, block: SensorBlock, *, image: bool = True) -> tuple[Float32, NDArray[np.uint32]]:
        """Estimate (n_sources, n_times), NaN where it cannot be imaged, and flags; both empty where `image` is False."""
        runs = self._whitening(block)
        parts: list[Float32 | None] = []
        for run in runs:
            n_new = run.stop - run.start
            if run.operator is None:  # unknown samples stay unknown in the window, too
                self._window.push(run.data)
                parts.append(np.full((self._n_sources, n_new), np.nan, np.float32))
                continue
            window = self._window.push(run.data)
            if run.operator is not self._newest:  # what it kept of the time before it was replaced is too old
                run.operator.solver.reset()
                self._newest = run.operator
            if image:
                parts.append(self._solved(run.operator, window, n_new))
        if not image or not parts:
            return np.empty((self._n_sources, 0), np.float32), np.empty(0, np.uint32)
        flags = [
            run.flags if part is not None else run.flags | np.uint32(Flag.INVALID)
            for run, part in zip(runs, parts, strict=True)
        ]
        whole = [
            part if part is not None else np.full((self._n_sources, run.stop - run.start), np.nan, np.float32)
            for run, part in zip(runs, parts, strict=True)
        ]
        if len(runs) == 1:
            return whole[0], flags[0]
        return np.hstack(whole), np.concatenate(flags)

    def _solved(self, operator: Operator, window: Float32, n_new: int) -> Float32 | None:
        if self.on_failure is None:
            return operator.solver(window, n_new)
        try:
            return operator.solver(window, n_new)
        except Exception as error:
            self.rest()
            self.on_failure(error)
            return None


class Chain:
    """Turns hops into estimates, one call each.

    Parameters
    ----------
    channels : Channels
        All imaged channels, EEG first, as the aligner hands them out.
    settings : PreprocessingSettings
    sfreq : float
        Of the grid, Hz.
    switch : OperatorSwitch
        Hands out whitener and solver for the channels of the moment.
    n_sources, unit
        Of the estimates.
    window : int
        Samples (after decimation) that the solver sees; the newest of them are imaged.
    clock : Clock
        Read between the stages, for the stamps of each estimate.
    observe : callable | None
        Given every cleaned block when its estimate is out, for solvers that adapt to the data.
    fallback : OperatorSwitch | None
        Hands out another whitener and solver of the same sources and unit, which see one hop at a time.

    Attributes
    ----------
    taps : list of callable
        Given every cleaned hop when its estimate is out; each must only note it (put it into a mailbox). To be filled before
        the first hop.
    flag_counts : dict of Flag to int
        Samples with each flag since the start.
    newest_flags : int
        All flags of the newest hop's samples.
    falls_back : bool
        Whether the next hop is imaged by the fallback; its estimate then carries FALLBACK. To be set between two hops, after
        `inspect`. The window of the first solver sees every hop all the same, so that it can go on at any time.
    on_failure : callable | None
        Called with what a stage or a solver raised; what it was to image is NaN and INVALID. Without it the error is
        raised.
    """

    def __init__(
        self,
        channels: Channels,
        settings: PreprocessingSettings,
        sfreq: float,
        switch: OperatorSwitch,
        *,
        n_sources: int,
        unit: str,
        window: int,
        clock: Clock,
        observe: Callable[[SensorBlock], None] | None = None,
        fallback: OperatorSwitch | None = None,
    ) -> None:
        self.cleaning = Cleaning(settings, sfreq)
        self._fallback: Imager | None = None
        if fallback is not None:
            self._fallback = Imager(fallback, n_channels=len(channels), n_sources=n_sources, window=window)
        self._falls_back = False
        self._on_failure: Callable[[Exception], None] | None = None
        self.imager = Imager(switch, n_channels=len(channels), n_sources=n_sources, window=window)
        self._n_sources, self._decimate = n_sources, settings.decimate
        self._unit = unit
        self._clock = clock
        self._observe = observe
        self.taps: list[Callable[[CleanedHop], None]] = []
        self._cleaned: list[CleanedHop] = []
        self._hop = 0
        self.flag_counts = dict.fromkeys(Flag, 0)
        self.newest_flags = 0

    @property
    def on_failure(self) -> Callable[[Exception], None] | None:
        return self._on_failure

    @on_failure.setter
    def on_failure(self, told: Callable[[Exception], None] | None) -> None:
        self._on_failure = self.imager.on_failure = told
        if self._fallback is not None:
            self._fallback.on_failure = told

    @property
    def falls_back(self) -> bool:
        return self._falls_back

    @falls_back.setter
    def falls_back(self, wanted: bool) -> None:
        if wanted and self._fallback is None:
            raise ValueError("chain: it was built without a fallback")
        if self._falls_back and not wanted:
            self.imager.rest()
        self._falls_back = wanted

    def __call__(self, hop: AlignedHop, *, image: bool = True) -> SourceEstimate | None:
        """Preprocess a hop and image it; filters and window must see every hop, the solver need not (``image=False``)."""
        estimates = self.together([hop], image=image)
        return estimates[0] if estimates else None

    def together(self, hops: Sequence[AlignedHop], *, image: bool = True) -> list[SourceEstimate]:
        """The same for hops that follow each other, in one call of each stage; one estimate for each of them."""
        first = self._hop
        self._hop += len(hops)
        try:
            return self._together(hops, first, image)
        except Exception as error:
            if self._on_failure is None:
                raise
            self.cleaning.filter.reset()  # what the stages keep may be half of a hop
            self.imager.reset()
            self._cleaned = []
            self._on_failure(error)
            return [self._nothing(hop, first + i) for i, hop in enumerate(hops)] if image else []

    def _nothing(self, hop: AlignedHop, number: int) -> SourceEstimate:
        """In place of an estimate."""
        block, now, n = hop.block, self._clock.now(), self._decimate
        flags = block.flags[::n] | np.bitwise_or.reduce(block.flags) | np.uint32(Flag.INVALID)
        stamps = StageStamps(float(block.times[-1]), hop.intended, float(block.received.max()), now, now, now)
        data = np.full((self._n_sources, len(flags)), np.nan, np.float32)
        return SourceEstimate(data, block.times[::n], flags, block.first // n, number, self._unit, stamps)

    def _together(self, hops: Sequence[AlignedHop], first: int, image: bool) -> list[SourceEstimate]:
        aligned = self._clock.now()
        cleaned = self.cleaning.clean(_joined([hop.block for hop in hops]))
        preprocessed = self._clock.now()
        self._count_flags(cleaned)
        length = cleaned.n_times // len(hops)
        self._cleaned = []
        for i, hop in enumerate(hops):
            stamps = StageStamps(
                sensor=float(hop.block.times[-1]),
                intended=hop.intended,
                received=float(hop.block.received.max()),
                aligned=aligned,
                preprocessed=preprocessed,
                solved=float("nan"),
            )
            self._cleaned.append(CleanedHop(_part(cleaned, i * length, length), first + i, stamps))
        if self._falls_back and self._fallback is not None:
            data, flags = self._fallback(cleaned, image=image)
            flags = flags | np.uint32(Flag.FALLBACK)
        else:
            data, flags = self.imager(cleaned, image=image)
        if not image:
            return []
        solved = self._clock.now()
        estimates: list[SourceEstimate] = []
        for i, own in enumerate(self._cleaned):
            part = slice(i * length, (i + 1) * length)
            stamps = replace(own.stamps, solved=solved)
            estimates.append(
                SourceEstimate(data[:, part], own.block.times, flags[part], own.block.first, own.number, self._unit, stamps)
            )
        return estimates

    def inspect(self, hops: Sequence[AlignedHop]) -> None:
        """Look for bad channels, and let others have the cleaned hops, when their estimates are out."""
        if not self._cleaned:  # a stage raised
            for hop in hops:
                self.cleaning.inspect(hop.block)
            return
        for cleaned, hop in zip(self._cleaned, hops, strict=True):
            if self._falls_back:
                self.imager(cleaned.block, image=False)
            for tap in self.taps:
                tap(cleaned)
            self.cleaning.inspect(hop.block)
            if self._observe is not None:
                self._observe(cleaned.block)

    def _count_flags(self, block: SensorBlock) -> None:
        seen = int(np.bitwise_or.reduce(block.flags, initial=0))
        self.newest_flags = seen
        if seen:
            for flag in Flag:
                if seen & flag:
                    self.flag_counts[flag] += int(np.count_nonzero(block.flags & flag))


def _joined(blocks: Sequence[SensorBlock]) -> SensorBlock:
    """Blocks that follow each other as one."""
    if len(blocks) == 1:
        return blocks[0]
    return replace(
        blocks[0],
        data=np.hstack([block.data for block in blocks]),
        times=np.concatenate([block.times for block in blocks]),
        flags=np.concatenate([block.flags for block in blocks]),
        received=np.concatenate([block.received for block in blocks]),
        bads=frozenset[str]().union(*(block.bads for block in blocks)),
    )


def _part(block: SensorBlock, start: int, length: int) -> SensorBlock:
    """Samples of a block from `start` on."""
    if length == block.n_times:
        return block
    part = slice(start, start + length)
    return replace(
        block,
        data=block.data[:, part],
        times=block.times[part],
        flags=block.flags[part],
        received=block.received[part],
        first=block.first + start,
    )
