"""Finds channels that must not be imaged, and lets them back when they have recovered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rt_mmdf.core.blocks import MISSING, Float32, Float64, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import Settings
from rt_mmdf.preprocessing.availability import Rows, rows_by_modality

MIN_NEIGHBOURS = 4  # with fewer channels of a type there is no crowd to differ from
PARTS = 12  # pieces of a bin that are summed up as they come: at 1 kHz judging half a second at once takes 3 ms of one hop
LOG_SPREAD_FLOOR = 0.1  # smallest robust spread of log amplitudes: real arrays show 0.06 to 0.25


REASONS = ("", "nonfinite", "flat", "saturated", "noisy", "quiet")
NONFINITE, FLAT, SATURATED, NOISY, QUIET = range(1, 6)


class ChannelLimits(Settings):
    """Plausible peak-to-peak range of one channel type within a bin, in its SI unit (V, T, T/m)."""

    flat_below: float = Field(gt=0)
    saturated_above: float = Field(gt=0)


class BadChannelSettings(Settings):
    """When a channel is bad. All criteria look at raw data, in bins, without the mean (offsets of electrodes and SQUIDs).

    eeg, mag, grad
        Flat: the peak to peak within a bin is about 1/30 of the sensor's own white noise in 100 Hz (electrode with amplifier
        0.5 uV RMS; SQUID 3 fT and 3 fT/cm per root hertz), so nothing that is connected can be so quiet. Saturated: beyond
        1 mV (blinks reach 0.3 mV), 100 pT, and 100 pT over 1 cm; or more than `stuck_fraction` of a bin at its very extreme.
    noisy_ratio, quiet_ratio, z
        Against the neighbours (`n_neighbours` nearest of the same type, all of that type where positions are not known): RMS
        without its linear trend more than `noisy_ratio` times or less than `quiet_ratio` of their median, AND log RMS more
        than `z` robust standard deviations of that type away from it. On the sample recording the two bad channels stand at
        16 to 30 times (z 11 to 19) and 0.10 to 0.44 (z -6 to -23), the others between 0.38 and 2.8 (z -5.1 to 7.0).
    bin_s, n_mark, n_window, n_unmark
        Bad in `n_mark` of the last `n_window` bins marks a channel; `n_unmark` good bins in a row take the mark away, more
        where the filters remember longer: they must have forgotten how far it was off. A non-finite value marks at once.
        What is wrong for good marks within ``n_mark + 1`` bins, 1.5 s, wherever in a bin it begins; what is over within
        ``n_mark - 2`` bins, 0.6 s, marks nothing. Three of four bins of 0.4 to 0.5 s are worse at both: 1.6 to
        2.0 s and 0.4 to 0.5 s (`tools/bench/bad_channels.py`).
    """

    enabled: bool = True
    bin_s: float = Field(default=0.3, ge=0.1)
    eeg: ChannelLimits = ChannelLimits(flat_below=1e-7, saturated_above=1e-3)
    mag: ChannelLimits = ChannelLimits(flat_below=5e-15, saturated_above=1e-10)
    grad: ChannelLimits = ChannelLimits(flat_below=5e-13, saturated_above=1e-8)
    stuck_fraction: float = Field(default=0.25, gt=0, lt=1)
    n_neighbours: int = Field(default=8, ge=MIN_NEIGHBOURS)
    noisy_ratio: float = Field(default=3.0, gt=1)
    quiet_ratio: float = Field(default=1 / 3, gt=0, lt=1)
    z: float = Field(default=6.0, gt=0)
    n_mark: int = Field(default=4, ge=1)
    n_window: int = Field(default=5, ge=1)
    n_unmark: int = Field(default=10, ge=1)


class BadChannels:
    """Passes blocks through with ``bads`` brought up to date; must see the data before `ReplaceNonfinite`.

    Verdicts fall at the ends of bins of the absolute grid index. The bads of a block are those known once its last sample
    was seen, so they depend on where a block ends, not on how the stream before was cut. Bins of which less than half of a
    modality arrived say nothing about its channels.

    Parameters
    ----------
    settings : BadChannelSettings
    sfreq : float
        Hz.
    fixed : names, or mapping of name to reason
        Bad from the beginning and for good, for example by configuration or as marked in the recording.
    settling_s : float
        After which the filters behind this remember 1 % of a step.
    """

    def __init__(
        self,
        settings: BadChannelSettings,
        sfreq: float,
        fixed: Iterable[str] | Mapping[str, str] = (),
        settling_s: float = 0.0,
    ) -> None:
        if settings.n_mark > settings.n_window:
            raise ConfigurationError(
                f"bad_channels: n_mark = {settings.n_mark} is more than n_window = {settings.n_window}; no channel would "
                "ever be marked. Lower n_mark or raise n_window."
            )
        self._settings = settings
        self._length = max(1, round(settings.bin_s * sfreq))
        self._settling_bins = settling_s / settings.bin_s
        self._edges = np.unique(np.linspace(0, self._length, PARTS + 1).astype(int))
        self._fixed = dict(fixed) if isinstance(fixed, Mapping) else dict.fromkeys(fixed, "configured")
        self.reset()

    def reset(self) -> None:
        self._channels: Channels | None = None
        self._found: dict[str, str] = {}
        self._bads = frozenset(self._fixed)

    @property
    def reasons(self) -> dict[str, str]:
        """Why each channel is bad: ``configured`` (or what was given), nonfinite, flat, saturated, noisy, quiet."""
        return {**self._found, **self._fixed}

    def __call__(self, block: SensorBlock) -> SensorBlock:
        if self._settings.enabled and block.n_times:
            if block.channels is not self._channels:
                if block.channels != self._channels:
                    self._prepare(block)
                self._channels = block.channels
            done = 0
            while done < block.n_times:
                index = block.first + done
                if index // self._length != self._bin:  # blocks that do not follow each other: the rest of a bin never came
                    self._begin_bin(index // self._length)
                at = index % self._length
                part = int(np.searchsorted(self._edges, at, side="right"))
                n = min(block.n_times - done, int(self._edges[part]) - at)
                self._samples[:, at : at + n] = block.data[:, done : done + n]
                for modality, arrived in self._arrived.items():
                    arrived[at : at + n] = (block.flags[done : done + n] & MISSING[modality]) == 0
                done += n
                if at + n == self._edges[part]:
                    self._add_part(int(self._edges[part - 1]), at + n)
                if at + n == self._length:
                    self._judge_bin(block.channels)
                    self._begin_bin(self._bin + 1)
        bads = self._bads | block.bads
        return block if bads == block.bads else replace(block, bads=bads)

    def _prepare(self, block: SensorBlock) -> None:
        channels, settings = block.channels, self._settings
        n_channels = len(channels)
        limits = {ChannelType.EEG: settings.eeg, ChannelType.MAG: settings.mag, ChannelType.GRAD: settings.grad}
        per_channel = [limits.get(kind) for kind in channels.types]
        self._flat_below = np.array([own.flat_below if own else -np.inf for own in per_channel])
        self._saturated_above = np.array([own.saturated_above if own else np.inf for own in per_channel])
        self._rows = rows_by_modality(channels)
        self._crowds = [
            _Crowd(rows, _nearest(channels, rows, settings.n_neighbours))
            for kind in limits
            if len(rows := channels.of_type(kind)) > MIN_NEIGHBOURS
        ]
        self._samples: Float32 = np.zeros((n_channels, self._length), dtype=np.float32)
        self._arrived = {modality: np.zeros(self._length, dtype=bool) for modality in self._rows}
        self._statistics = _BinStatistics(n_channels)
        self._verdicts = np.zeros((settings.n_window, n_channels), dtype=bool)  # of the last bins that said something
        self._good_in_a_row = np.zeros(n_channels, dtype=int)
        self._marked = np.zeros(n_channels, dtype=bool)
        self._n_unmark = np.full(n_channels, self._settings.n_unmark)  # good bins in a row that are asked for
        self._usual: Float64 = np.full((2, n_channels), np.nan)  # mean, and peak to peak, of the newest good bin
        self._found = {}
        self._bads = frozenset(self._fixed)
        self._begin_bin(block.first // self._length)

    def _begin_bin(self, number: int) -> None:
        self._bin = number
        self._statistics.clear()
        for arrived in self._arrived.values():
            arrived[:] = False

    def _add_part(self, start: int, stop: int) -> None:
        t = np.arange(start, stop, dtype=np.float64)
        here = {modality: arrived[start:stop] for modality, arrived in self._arrived.items()}
        if all(arrived.all() for arrived in here.values()):
            self._statistics.add(slice(None), self._samples[:, start:stop], t)
            return
        for modality, arrived in here.items():
            if arrived.any():
                rows = self._rows[modality]
                self._statistics.add(rows, self._samples[rows, start:stop][:, arrived], t[arrived])

    def _judge_bin(self, channels: Channels) -> None:
        statistics, settings = self._statistics, self._settings
        judged = 2 * statistics.n >= self._length
        if not judged.any():
            return
        with np.errstate(invalid="ignore"):
            peak_to_peak = statistics.high.astype(np.float64) - statistics.low
            stuck = np.maximum(statistics.at_low, statistics.at_high) > settings.stuck_fraction * statistics.n
            conditions = [~np.isfinite(peak_to_peak), peak_to_peak < self._flat_below]
            conditions.append((peak_to_peak > self._saturated_above) | stuck)
        codes = np.select(conditions, [NONFINITE, FLAT, SATURATED], default=0)
        log_rms = np.log(np.where(codes == NONFINITE, 1.0, statistics.detrended_rms()))
        for crowd in self._crowds:
            if judged[crowd.rows[0]]:
                ratio, z = crowd.compare(log_rms)
                noisy = (z > settings.z) & (ratio > np.log(settings.noisy_ratio))
                quiet = (z < -settings.z) & (ratio < np.log(settings.quiet_ratio))
                against = NOISY * noisy + QUIET * quiet
                codes[crowd.rows] = np.where(codes[crowd.rows] == 0, against, codes[crowd.rows])
        bad = codes != 0
        self._note_how_far_off(judged, bad, peak_to_peak)
        self._verdicts = np.where(judged, np.vstack([self._verdicts[1:], bad]), self._verdicts)
        self._good_in_a_row = np.where(judged, np.where(bad, 0, self._good_in_a_row + 1), self._good_in_a_row)
        often = self._verdicts.sum(axis=0) >= settings.n_mark
        mark = judged & bad & (often | (codes == NONFINITE))
        unmark = self._good_in_a_row >= self._n_unmark
        self._n_unmark = np.where(unmark, settings.n_unmark, self._n_unmark)
        self._marked = (self._marked | mark) & ~unmark
        names = [channels.names[i] for i in np.flatnonzero(self._marked)]
        why = {channels.names[i]: REASONS[codes[i]] for i in np.flatnonzero(mark)}
        self._found = {name: why.get(name, self._found.get(name, "")) for name in names}
        self._bads = frozenset(self._found) | frozenset(self._fixed)

    def _note_how_far_off(self, judged: NDArray[np.bool_], bad: NDArray[np.bool_], peak_to_peak: Float64) -> None:
        """A step of r times what is usual is 1 % of the usual only after 1 + ln r / ln 100 settling times."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            mean = self._statistics.mean()
            off = np.fmax(np.abs(mean - self._usual[0]), peak_to_peak) / self._usual[1]
            times = 1 + np.log(np.clip(np.where(np.isfinite(off), off, 1.0), 1.0, None)) / np.log(100)
        wanted = np.ceil(self._settling_bins * times).astype(int)
        self._n_unmark = np.where(judged & bad, np.maximum(self._n_unmark, wanted), self._n_unmark)
        good = judged & ~bad & ~self._marked & (peak_to_peak > 0)
        self._usual[:, good] = mean[good], peak_to_peak[good]


class _BinStatistics:
    """Sums over the samples of a bin that arrived, for each channel; NaN and infinity end up in `low` and `high`."""

    def __init__(self, n_channels: int) -> None:
        self.low = np.zeros(n_channels, dtype=np.float32)
        self.high = np.zeros(n_channels, dtype=np.float32)
        self.n, self.at_low, self.at_high, *sums = np.zeros((8, n_channels))
        self._zero = np.zeros(n_channels)  # first sample: offsets then cost no digits
        self._x, self._xx, self._tx, self._t, self._tt = sums
        self._all = (self.n, self.at_low, self.at_high, *sums)

    def clear(self) -> None:
        for values in self._all:
            values[:] = 0.0
        self.low[:] = np.inf
        self.high[:] = -np.inf

    def add(self, rows: Rows, x: Float32, t: Float64) -> None:
        """Samples ``(n_rows, n_times)`` at ``(n_times,)`` positions in the bin."""
        with np.errstate(invalid="ignore", over="ignore"):
            self._zero[rows] = np.where(self.n[rows] == 0, x[:, 0], self._zero[rows])
            d = x.astype(np.float64) - self._zero[rows][:, None]
            self.n[rows] += len(t)
            self._x[rows] += d.sum(axis=1)
            self._xx[rows] += np.einsum("ij,ij->i", d, d)
            self._tx[rows] += d @ t
            self._t[rows] += t.sum()
            self._tt[rows] += t @ t
            low, high = x.min(axis=1), x.max(axis=1)
            for extreme, count, own, further in (
                (self.low, self.at_low, low, low < self.low[rows]),
                (self.high, self.at_high, high, high > self.high[rows]),
            ):
                there = (x == own[:, None]).sum(axis=1)
                same = own == extreme[rows]
                count[rows] = np.where(further, there, count[rows] + same * there)
            self.low[rows] = np.minimum(self.low[rows], low)
            self.high[rows] = np.maximum(self.high[rows], high)

    def mean(self) -> Float64:
        return np.asarray(self._zero + self._x / self.n)

    def detrended_rms(self) -> Float64:
        """RMS without mean and linear trend; tiny instead of zero."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            mean, mean_t = self._x / self.n, self._t / self.n
            power = self._xx / self.n - mean**2
            power -= (self._tx / self.n - mean * mean_t) ** 2 / (self._tt / self.n - mean_t**2)
            return np.asarray(np.sqrt(np.maximum(power, np.finfo(np.float64).tiny)))


class _Crowd:
    """The channels of one type, and for each of them the neighbours to be like (None: all of the type)."""

    def __init__(self, rows: NDArray[np.intp], neighbours: NDArray[np.intp] | None) -> None:
        self.rows = rows
        self._neighbours = neighbours

    def compare(self, log_rms: Float64) -> tuple[Float64, Float64]:
        """How far each channel's log RMS is from the median of its neighbours: itself, and in robust standard deviations."""
        own = log_rms[self.rows]
        if self._neighbours is None:
            ratio = own - np.median(own)
        else:
            ranked = np.sort(own[self._neighbours], axis=1)  # np.median along an axis takes five times as long
            n = ranked.shape[1]
            ratio = own - 0.5 * (ranked[:, (n - 1) // 2] + ranked[:, n // 2])
        spread = 1.4826 * float(np.median(np.abs(ratio - np.median(ratio))))
        return ratio, ratio / max(spread, LOG_SPREAD_FLOOR)


def _nearest(channels: Channels, rows: NDArray[np.intp], n: int) -> NDArray[np.intp] | None:
    """For each of `rows` its nearest `n` neighbours, as positions within `rows`; None where positions are not known."""
    positions = None if channels.positions is None else channels.positions[rows]
    if positions is None or not np.isfinite(positions).all() or not np.ptp(positions, axis=0).any():
        return None
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, : min(n, len(rows) - 1)]
