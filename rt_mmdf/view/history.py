"""The last minute of estimates, a thousand a second, as the pictures that a person can see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Flag, Float32, Float64

INVALID = np.uint32(Flag.INVALID)
SPARE = 8
"""Frames that are kept beyond what is offered, so that the writer does not overtake a reader."""
MAX_FULL_BYTES = 64_000_000
"""Of the newest estimates at full rate: 3 s of 5124 sources at 1 kHz."""


class Measure(StrEnum):
    """What a picture says about the estimates of its interval."""

    RMS = "rms"
    PEAK = "peak"
    LATEST = "latest"


MEASURES = tuple(Measure)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture.

    number : running number since the history began
    values : (n_sources,) float32; NaN where there was no estimate
    begin, time : stamps of the first and of the last sample of its interval, seconds on the engine's LSL clock
    flags : of all samples of the interval together
    n_times, n_invalid : samples in the interval, and those that were no estimates (INVALID, NaN or infinite): RMS and peak
        are over the others
    n_missing : samples that the stamps say should have come before or in it, and did not
    """

    number: int
    measure: Measure
    values: Float32
    begin: float
    time: float
    flags: Flag
    n_times: int
    n_invalid: int
    n_missing: int

    @property
    def valid(self) -> bool:
        """Whether there is something to show."""
        return self.n_invalid < self.n_times and bool(np.isfinite(self.values[0]))


_FACTS = np.dtype(
    [
        ("begin", "f8"),
        ("time", "f8"),
        ("flags", "u4"),
        ("n_times", "i4"),
        ("n_invalid", "i4"),
        ("n_missing", "i8"),
        ("scale", "f4", (len(MEASURES),)),
    ]
)


class Rolling:
    """The newest rows of something, with their times; one thread adds, any may read. Memory is taken at the start.

    The writer claims its slots before it fills them; a reader leaves out what may have been touched while it copied.
    """

    def __init__(self, n_columns: int, capacity: int, dtype: type[np.floating] = np.float32) -> None:
        if n_columns < 1 or capacity < 1:
            raise ValueError(f"rolling store of {n_columns} columns and {capacity} rows: both must be positive")
        self.capacity = capacity
        self._data = np.full((capacity, n_columns), np.nan, dtype=dtype)
        self._times = np.full(capacity, np.nan)
        self._claimed = self._written = 0

    @property
    def nbytes(self) -> int:
        return self._data.nbytes + self._times.nbytes

    @property
    def n_written(self) -> int:
        """Rows since the start."""
        return self._written

    def add(self, rows: NDArray[np.floating], times: Float64) -> None:
        """Append ``(n_rows, n_columns)`` and ``(n_rows,)``."""
        self._claimed = self._written + len(rows)
        skip = max(0, len(rows) - self.capacity)
        at = np.arange(self._written + skip, self._claimed) % self.capacity
        self._data[at], self._times[at] = rows[skip:], times[skip:]
        self._written = self._claimed

    def newest(self, n: int | None = None, column: int | None = None) -> tuple[Float64, NDArray[np.floating]]:
        """Times, and rows (or one of their columns), of the newest `n`, oldest first; copies."""
        stop = self._written
        start = max(0, stop - min(self.capacity, self.capacity if n is None else n))
        at = np.arange(start, stop) % self.capacity
        data = self._data[at] if column is None else self._data[at, column]
        times = self._times[at]
        late = max(0, self._claimed - self.capacity - start)
        return times[late:], data[late:]

    def between(self, start: float, stop: float) -> tuple[Float64, NDArray[np.floating]]:
        """Times and rows from `start` to `stop`, both included, in the order in which they came; copies of these alone."""
        first = max(0, self._written - self.capacity)
        kept = np.arange(first, self._written)
        times = self._times[kept % self.capacity]
        chosen = kept[(times >= start) & (times <= stop)]
        times, data = self._times[chosen % self.capacity], self._data[chosen % self.capacity]
        late = int(np.searchsorted(chosen, self._claimed - self.capacity))
        return times[late:], data[late:]


class History:
    """Estimates in, pictures out: RMS, peak (the value of largest magnitude, with its sign) and latest of each interval.

    Intervals lie on a grid of time (multiples of ``1 / frame_rate`` on the engine's clock) and are reduced once, when they
    are complete; so nothing depends on how the stream was cut. Empty intervals leave no frame.

    One thread adds, any may read; nobody waits. Memory is taken and touched at the start: `nbytes`, and no more.
    Pictures are kept in half precision relative to their own largest value: within 0.05 % of each value, or 3e-8 of the
    picture's largest. The newest seconds are kept at full rate and in full precision as well (see `full_course`).

    Parameters
    ----------
    n_sources : int
    sfreq : float
        Samples a second that are added, Hz; tells when an interval is complete, and how many samples a gap has lost.
    seconds : float
        How far back.
    frame_rate : float
        Pictures a second.
    full_seconds : float
        How far back at full rate; less where that would take more than 64 MB.
    """

    def __init__(
        self, n_sources: int, sfreq: float, seconds: float = 60.0, frame_rate: float = 25.0, full_seconds: float = 2.0
    ) -> None:
        if n_sources < 1 or not (sfreq > 0 and seconds > 0 and frame_rate > 0 and full_seconds > 0):
            raise ValueError(
                f"history of {n_sources} sources at {sfreq:g} Hz, {seconds:g} s at {frame_rate:g} pictures a second, "
                f"{full_seconds:g} s at full rate: all must be positive"
            )
        self.n_sources = n_sources
        self.sfreq = sfreq
        self.seconds = seconds
        self.frame_rate = frame_rate
        self.capacity = math.ceil(seconds * frame_rate)
        slots = self.capacity + SPARE
        self._pictures = np.full((len(MEASURES), slots, n_sources), np.nan, dtype=np.float16)
        self._facts = np.zeros(slots, dtype=_FACTS)
        n_full = max(1, min(math.ceil(full_seconds * sfreq), MAX_FULL_BYTES // (4 * n_sources)))
        self._full = Rolling(n_sources, n_full)
        # intervals are gathered here; a stream whose stamps stand still fills it, and gets a frame for that
        self._open = np.zeros((2 * math.ceil(sfreq / frame_rate) + 2, n_sources), dtype=np.float32)
        self._open_times = np.zeros(len(self._open))
        self._open_flags = np.zeros(len(self._open), dtype=np.uint32)
        self._n_open = 0
        self._n_missing_open = 0
        self._last_time = math.nan
        self._claimed = self._written = 0
        self.n_invalid = 0
        """Samples that were no estimates, since the start."""

    @property
    def nbytes(self) -> int:
        """Memory of all that is kept."""
        parts = (self._pictures, self._facts, self._full, self._open, self._open_times, self._open_flags)
        return sum(part.nbytes for part in parts)

    @property
    def full_seconds(self) -> float:
        """How far back `full_course` reaches."""
        return self._full.capacity / self.sfreq

    # the writer

    def add(self, data: Float32, times: Float64, flags: NDArray[np.uint32]) -> None:
        """Take estimates.

        Parameters
        ----------
        data : (n_sources, n_times) float32
        times : (n_times,) float64, seconds on the engine's clock
        flags : (n_times,) uint32 of `Flag`

        A sample with NaN or infinity in any source is no estimate, whatever its flags say; one whose flags say INVALID is
        none either, whatever its data are.
        """
        if data.shape != (self.n_sources, len(times)) or flags.shape != times.shape:
            raise ValueError(
                f"history of {self.n_sources} sources: data of shape {data.shape}, {len(times)} times and {len(flags)} "
                f"flags; ({self.n_sources}, {len(times)}) and one flag for each time are expected"
            )
        rows = data.T
        with np.errstate(over="ignore", invalid="ignore"):
            usable = np.isfinite(np.einsum("ij->i", rows)) & ((flags & INVALID) == 0)
        if not usable.all():
            self.n_invalid += len(usable) - int(np.count_nonzero(usable))
            rows, flags = np.where(usable[:, None], rows, np.float32(np.nan)), np.where(usable, flags, flags | INVALID)
        self._full.add(rows, times)
        for start, stop, closes in self._cuts(times):
            self._gather(rows[start:stop], times[start:stop], flags[start:stop])
            if closes:
                self._close()

    def _cuts(self, times: Float64) -> Iterator[tuple[int, int, bool]]:
        """Runs of samples of one interval, and whether the interval is complete after them."""
        if len(times) == 0:
            return
        before = np.concatenate([[self._last_time], times[:-1]])
        interval = np.floor(times * self.frame_rate + 1e-6)
        previous = np.floor(before * self.frame_rate + 1e-6)
        # the one before was the last of its interval; NaN (nothing was before) is not different from itself
        opens = (interval != previous) & np.isfinite(before) | (times <= before)
        # the next sample will lie in another interval
        full = np.floor((times + 1 / self.sfreq) * self.frame_rate + 1e-6) > interval
        if opens[0] and self._n_open:
            self._close()
        edges = np.unique(np.concatenate([[0, len(times)], np.flatnonzero(opens), np.flatnonzero(full) + 1]))
        for start, stop in pairwise(edges.tolist()):
            self._count_missing(times[start:stop], float(before[start]))
            room = len(self._open) - self._n_open
            while stop - start >= room:
                yield start, start + room, True
                start, room = start + room, len(self._open)
            ends = bool(full[stop - 1]) or (stop < len(times) and bool(opens[stop]))
            if start < stop or (ends and self._n_open):
                yield start, stop, ends
        self._last_time = float(times[-1])

    def _count_missing(self, times: Float64, before: float) -> None:
        steps = np.diff(times, prepend=before) * self.sfreq
        missing = np.rint(steps[np.isfinite(steps)]) - 1
        self._n_missing_open += int(np.clip(missing, 0, 1e12).sum())

    def _gather(self, rows: Float32, times: Float64, flags: NDArray[np.uint32]) -> None:
        at = slice(self._n_open, self._n_open + len(rows))
        self._open[at], self._open_times[at], self._open_flags[at] = rows, times, flags
        self._n_open += len(rows)

    def _close(self) -> None:
        n = self._n_open
        if n == 0:
            return
        rows, flags = self._open[:n], self._open_flags[:n]
        usable = (flags & INVALID) == 0
        good = rows if usable.all() else rows[usable]
        slot = self._written % len(self._facts)
        self._claimed = self._written + 1
        pictures = self._reduced(good, rows[-1] if usable[-1] else None)
        facts = self._facts[slot]
        facts["begin"], facts["time"] = self._open_times[0], self._open_times[n - 1]
        facts["flags"] = np.bitwise_or.reduce(flags)
        facts["n_times"], facts["n_invalid"], facts["n_missing"] = n, n - len(good), self._n_missing_open
        for number, picture in enumerate(pictures):
            facts["scale"][number] = self._store(self._pictures[number, slot], picture)
        self._written = self._claimed
        self._n_open = self._n_missing_open = 0

    @staticmethod
    def _reduced(good: Float32, latest: Float32 | None) -> tuple[Float32 | None, Float32 | None, Float32 | None]:
        if len(good) == 0:
            return None, None, None
        power = np.einsum("ij,ij->j", good, good, dtype=np.float64)
        low, high = good.min(axis=0), good.max(axis=0)
        peak = np.where(high >= -low, high, low)
        return np.sqrt(power / len(good)).astype(np.float32), peak, latest

    @staticmethod
    def _store(half: NDArray[np.float16], picture: Float32 | None) -> float:
        """Keep a picture relative to its largest magnitude, which is returned; NaN where there is none."""
        if picture is None:
            half[:] = np.nan
            return math.nan
        scale = max(float(picture.max()), -float(picture.min()))
        half[:] = picture / np.float32(scale) if scale > 0 else 0.0
        return scale

    # the readers

    @property
    def stop(self) -> int:
        """One past the number of the newest frame; 0 while there is none."""
        return self._written

    @property
    def first(self) -> int:
        """Number of the oldest frame that is still kept."""
        return max(0, self._written - self.capacity)

    def __len__(self) -> int:
        """Frames that are kept."""
        stop = self._written
        return stop - max(0, stop - self.capacity)

    def frame(self, number: int, measure: Measure = Measure.RMS) -> Frame:
        """One picture.

        Raises
        ------
        IndexError
            That frame is not kept: it is too old, or has not come yet.
        """
        stop = self._written
        if max(0, stop - self.capacity) <= number < stop:
            slot = number % len(self._facts)
            facts = self._facts[slot].copy()
            place = MEASURES.index(measure)
            values = self._pictures[place, slot].astype(np.float32)
            if number >= self._claimed - len(self._facts):  # the writer has not come round meanwhile
                values *= facts["scale"][place]
                return Frame(
                    number,
                    measure,
                    values,
                    float(facts["begin"]),
                    float(facts["time"]),
                    Flag(int(facts["flags"])),
                    int(facts["n_times"]),
                    int(facts["n_invalid"]),
                    int(facts["n_missing"]),
                )
        raise IndexError(f"history: frame {number} is not kept; {self.first} to {self.stop - 1} are")

    def newest(self, measure: Measure = Measure.RMS) -> Frame | None:
        """The newest picture, or None before the first."""
        stop = self._written
        return self.frame(stop - 1, measure) if stop else None

    def numbers(self) -> range:
        """Numbers of the frames that are kept."""
        stop = self._written
        return range(max(0, stop - self.capacity), stop)

    def facts(self) -> tuple[range, Float64, NDArray[np.uint32], NDArray[np.bool_]]:
        """Numbers, times, flags, and whether there is an estimate, of all frames that are kept."""
        numbers, facts = self._facts_now()
        return numbers, facts["time"], facts["flags"], facts["n_invalid"] < facts["n_times"]

    def levels(self, measure: Measure = Measure.RMS) -> tuple[Float64, Float32]:
        """Times, and the largest magnitude of any source, of all frames that are kept; NaN where there is no estimate."""
        _, facts = self._facts_now()
        return facts["time"], facts["scale"][:, MEASURES.index(measure)]

    def number_at(self, time: float) -> int | None:
        """Number of the frame whose time is nearest, None while there is none."""
        numbers, facts = self._facts_now()
        if not len(numbers):
            return None
        return numbers[int(np.abs(facts["time"] - time).argmin())]

    def course(self, source: int, measure: Measure = Measure.RMS) -> tuple[Float64, Float32]:
        """Times and values of one source over all frames that are kept; NaN where there was no estimate."""
        place = MEASURES.index(measure)
        numbers = self.numbers()
        slots = np.arange(numbers.start, numbers.stop) % len(self._facts)
        facts, values = self._facts[slots], self._pictures[place, slots, source].astype(np.float32)
        late = max(0, self._claimed - len(self._facts) - numbers.start)
        return facts["time"][late:], (values * facts["scale"][:, place])[late:]

    def full_course(self, source: int) -> tuple[Float64, Float32]:
        """Times and values of one source at full rate over the newest seconds (`full_seconds`)."""
        times, values = self._full.newest(column=source)
        return times, values.astype(np.float32, copy=False)

    def _facts_now(self) -> tuple[range, NDArray[np.void]]:
        numbers = self.numbers()
        facts = self._facts[np.arange(numbers.start, numbers.stop) % len(self._facts)]
        late = min(len(facts), max(0, self._claimed - len(self._facts) - numbers.start))
        return numbers[late:], facts[late:]


class Traces:
    """The last minute of the cleaned sensors, at the rate at which they are published.

    names, kinds : of the channels; a kind is ``"eeg"``, ``"mag"`` or ``"grad"``, in V, T and T/m
    """

    def __init__(self, names: tuple[str, ...], kinds: tuple[str, ...], sfreq: float, seconds: float = 60.0) -> None:
        self.names = names
        self.kinds = kinds
        self.sfreq = sfreq
        n = max(1, min(math.ceil(seconds * sfreq), MAX_FULL_BYTES // (4 * len(names))))
        self._rolling = Rolling(len(names), n)

    @property
    def nbytes(self) -> int:
        """Memory of all that is kept."""
        return self._rolling.nbytes

    @property
    def seconds(self) -> float:
        """How far back it reaches: less than a minute where that would take more than 64 MB."""
        return self._rolling.capacity / self.sfreq

    def add(self, data: Float32, times: Float64) -> None:
        """Take samples: ``(n_channels, n_times)`` in SI units, seconds on the engine's clock."""
        self._rolling.add(data.T, times)

    def between(self, start: float, stop: float) -> tuple[Float64, Float32]:
        """Times, and ``(n_channels, n_times)`` in SI units, from `start` to `stop`; NaN where a modality was missing."""
        times, data = self._rolling.between(start, stop)
        return times, data.T.astype(np.float32, copy=False)
