"""Running averages of cleaned sensors around events: the trials are averaged before anything is imaged."""

from __future__ import annotations

import math
import re
from bisect import insort
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_validator, model_validator

from rt_mmdf.core.blocks import Flag, Float32, Float64, SensorBlock
from rt_mmdf.core.channels import Channels
from rt_mmdf.core.settings import Settings

UNFIT = np.uint32(
    Flag.EEG_MISSING | Flag.MEG_MISSING | Flag.GAP | Flag.NONFINITE | Flag.SETTLING | Flag.INVALID
)  # a trial with such a sample is rejected
MARKER_DELAY_S = 2.0  # a marker may come so much later than the last sample of its epoch
MAX_AHEAD_S = 10.0  # a marker that is stamped further ahead than this is not waited for
MAX_PENDING = 1000


def _marker(value: object) -> object:
    """Numbers as marker streams of numbers are read."""
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class AveragingSettings(Settings):
    """Which averages, and of what.

    events : names of the averages, each with the markers that it is locked to (texts or numbers)
    tmin_s, tmax_s : begin and end of the epoch, seconds from the event
    baseline_s : begin and end of the baseline whose mean is subtracted from each channel of each trial; by default
        from tmin_s to the event; false: none is subtracted
    reject : peak to peak amplitude above which a good channel rejects a trial: eeg in V, mag in T, grad in T/m
    max_hz : highest rate of the published average; every n-th sample is published, the event's own among them
    update_s : an average is published at most so often
    reset : marker that begins all averages anew
    """

    events: dict[str, tuple[Annotated[str, BeforeValidator(_marker), Field(min_length=1)], ...]] = Field(min_length=1)
    tmin_s: float = Field(-0.1, ge=-10, le=10)
    tmax_s: float = Field(0.4, ge=-10, le=10)
    baseline_s: tuple[float, float] | Literal[False] | None = None
    reject: dict[Literal["eeg", "mag", "grad"], Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    max_hz: float = Field(250.0, gt=0)
    update_s: float = Field(0.5, ge=0, le=60)
    reset: str | None = Field(None, min_length=1)

    @field_validator("events")
    @classmethod
    def _named(cls, events: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, markers in events.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", name):
                raise ValueError(
                    f"{name!r} becomes part of the name of a stream: a letter and then letters, digits, '.', '_' and '-' "
                    "are expected, 32 at most"
                )
            if not markers:
                raise ValueError(f"{name}: at least one marker is expected")
        return events

    @model_validator(mode="after")
    def _spans_fit(self) -> Self:
        if not self.tmin_s < self.tmax_s:
            raise ValueError(f"tmin_s = {self.tmin_s:g} must be before tmax_s = {self.tmax_s:g}")
        if (span := self.baseline) is not None and not self.tmin_s <= span[0] < span[1] <= self.tmax_s:
            raise ValueError(
                f"baseline_s = {span[0]:g} to {span[1]:g} is expected within tmin_s = {self.tmin_s:g} and tmax_s = "
                f"{self.tmax_s:g}, begin before end; baseline_s = false for none"
            )
        return self

    @property
    def baseline(self) -> tuple[float, float] | None:
        """Begin and end, seconds from the event; None for none."""
        if self.baseline_s is None:
            return (self.tmin_s, 0.0)
        return self.baseline_s or None


@dataclass(frozen=True)
class Average:
    """One running average.

    event : its name
    data : (n_channels, n_times) float64, SI units; NaN without trials
    n_trials, n_rejected : since the last reset
    newest : LSL time of the newest event in it, seconds; NaN without trials
    bads : names of the channels that were bad in any of its trials
    """

    event: str
    data: Float64
    n_trials: int
    n_rejected: int
    newest: float
    bads: frozenset[str]


@dataclass
class _Running:
    """Sums since the last reset."""

    total: Float64
    n_trials: int = 0
    newest: float = math.nan
    bads: frozenset[str] = frozenset()
    rejected: Counter[str] = field(default_factory=Counter)


class RunningAverages:
    """Averages epochs of cleaned sensors around events, in the order of their times.

    An event falls on the nearest sample. Its trial is averaged as soon as its epoch is complete, unless a sample of it is
    flagged (a modality missing, a gap, NaN, filters that settle), a good channel exceeds `reject`, or the epoch is no longer
    or was never there (the marker came more than 2 s late, or before the first sample). What comes out depends neither on
    how the stream was cut into blocks, nor on when a marker came, if it came in time.

    Parameters
    ----------
    settings : AveragingSettings
    channels : Channels
        Of the blocks.
    sfreq : float
        Of the blocks, Hz.

    Attributes
    ----------
    latencies : (n_times,) float64
        Seconds from the event.
    n_unknown : int
        Markers that no average is locked to.

    Notes
    -----
    Equal to ``mne.Epochs(...).average()``: tests/preprocessing/test_averaging.py.
    """

    def __init__(self, settings: AveragingSettings, channels: Channels, sfreq: float) -> None:
        self._settings = settings
        self._channels = channels
        self._sfreq = sfreq
        self._start = round(settings.tmin_s * sfreq)
        self._stop = round(settings.tmax_s * sfreq) + 1
        self.latencies: Float64 = np.arange(self._start, self._stop) / sfreq
        self._baseline: slice | None = None
        if (span := settings.baseline) is not None:  # as mne's: whole samples within it
            begin, end = math.ceil(span[0] * sfreq - 1e-6), math.floor(span[1] * sfreq + 1e-6)
            self._baseline = slice(max(begin, self._start) - self._start, max(end, begin) + 1 - self._start)
        limits = {str(kind): limit for kind, limit in settings.reject.items()}
        self._limits = np.array([limits.get(kind.value, np.inf) for kind in channels.types])
        self._length = self._stop - self._start + math.ceil(MARKER_DELAY_S * sfreq)
        self.reset()

    def reset(self) -> None:
        """Forget everything, the samples too."""
        self.n_unknown = 0
        self._data: Float32 = np.zeros((2 * self._length, len(self._channels)), np.float32)
        self._times = np.zeros(2 * self._length)
        self._flags = np.zeros(2 * self._length, np.uint32)
        self._filled = 0  # columns in use
        self._base = 0  # index of the first of them
        self._bads: deque[tuple[int, frozenset[str]]] = deque()  # (index after the block, its bad channels)
        self._pending: list[tuple[float, str]] = []
        self.restart()

    def restart(self) -> None:
        """Begin all averages anew; events before now whose epochs are not complete are dropped."""
        shape = (len(self._channels), self._stop - self._start)
        self._running = {name: _Running(np.zeros(shape)) for name in self._settings.events}
        self._pending.clear()

    def mark(self, text: str, time: float) -> None:
        """Take a marker; `time` in seconds on the clock of the blocks. The `reset` marker is not looked for here."""
        names = [name for name, markers in self._settings.events.items() if text in markers]
        if not names or not math.isfinite(time):
            self.n_unknown += 1
            return
        for name in names:
            if len(self._pending) == MAX_PENDING:
                self._running[name].rejected["too many events at once"] += 1
            else:
                insort(self._pending, (time, name))

    def __call__(self, block: SensorBlock) -> list[str]:
        """Take a block; the names of the averages that have changed (or have rejected a trial)."""
        changed: list[str] = []
        for start in range(0, block.n_times, self._length):
            self._append(block, start, min(block.n_times, start + self._length))
            changed += self.settle()
        return list(dict.fromkeys(changed))

    def settle(self) -> list[str]:
        """Decide on the events that can be decided on; the names of the averages that have changed."""
        changed: list[str] = []
        while self._pending and self._filled:
            time, name = self._pending[0]
            newest = self._times[self._filled - 1]
            if time > newest + MAX_AHEAD_S:
                self._running[name].rejected["stamped ahead"] += 1
            elif time > newest:
                break
            else:
                at = self._nearest(time)
                if at + self._stop > self._filled:
                    break
                self._take(name, time, at)
            self._pending.pop(0)
            changed.append(name)
        return list(dict.fromkeys(changed))

    def average(self, name: str) -> Average:
        """One average, as it is now."""
        own = self._running[name]
        data = own.total / own.n_trials if own.n_trials else np.full(own.total.shape, np.nan)
        return Average(name, data, own.n_trials, own.rejected.total(), own.newest, own.bads)

    def rejected(self, name: str) -> dict[str, int]:
        """Trials of one average that were rejected since the last reset, by reason."""
        return dict(self._running[name].rejected)

    def _append(self, block: SensorBlock, start: int, stop: int) -> None:
        first, n = block.first + start, stop - start
        if first != self._base + self._filled:  # what lies before is of no use
            self._base, self._filled = first, 0
            self._bads.clear()
        if self._filled + n > len(self._data):
            kept = self._length
            moved = self._filled - kept
            for array in (self._data, self._times, self._flags):
                array[:kept] = array[moved : self._filled].copy()
            self._base, self._filled = self._base + moved, kept
        at = slice(self._filled, self._filled + n)
        self._data[at] = block.data[:, start:stop].T
        self._times[at] = block.times[start:stop]
        self._flags[at] = block.flags[start:stop]
        self._filled += n
        if self._bads and self._bads[-1][1] == block.bads:
            self._bads.pop()
        self._bads.append((self._base + self._filled, block.bads))
        while self._bads[0][0] <= self._base:
            self._bads.popleft()

    def _nearest(self, time: float) -> int:
        """Column of the sample nearest to a time that is not after the newest one; negative where it is long gone."""
        times = self._times[: self._filled]
        after = int(np.searchsorted(times, time))
        if after == 0:
            return -round(float(times[0] - time) * self._sfreq)
        return after - int(time - times[after - 1] <= times[after] - time)

    def _take(self, name: str, time: float, at: int) -> None:
        own = self._running[name]
        start, stop = at + self._start, at + self._stop
        if start < 0:
            own.rejected["samples not there"] += 1
            return
        if (self._flags[start:stop] & UNFIT).any():
            own.rejected["flagged"] += 1
            return
        bads: frozenset[str] = frozenset()
        begin = self._base - 1  # the first block's begin may be forgotten
        for end, here in self._bads:
            if begin < self._base + stop and self._base + start < end:
                bads |= here
            begin = end
        epoch = self._data[start:stop].T.astype(np.float64)
        if self._baseline is not None:
            epoch -= epoch[:, self._baseline].mean(axis=1, keepdims=True)
        good = np.array([channel not in bads for channel in self._channels.names])
        if (np.ptp(epoch, axis=1)[good] > self._limits[good]).any():
            own.rejected["peak to peak"] += 1
            return
        own.total += epoch
        own.n_trials += 1
        own.newest = max(time, own.newest) if own.n_trials > 1 else time
        own.bads |= bads


def published_latencies(latencies: Float64, sfreq: float, max_hz: float) -> NDArray[np.intp]:
    """Which samples of an epoch to publish: every n-th, counted from the event, so that their rate is at most `max_hz`."""
    n = max(1, math.ceil(sfreq / max_hz - 1e-6))
    numbers = np.rint(latencies * sfreq).astype(int)
    return np.flatnonzero(numbers % n == 0)
