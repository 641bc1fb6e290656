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

MIN_NEIGHBOURS = 4  # with fewer channels of a type there is no crowd to differ from
LOG_SPREAD_FLOOR = 0.1  # smallest robust spread of log amplitudes: real arrays show 0.06 to 0.25


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
        22 times (z 12 to 19) and 0.1 to 0.25 (z -11 to -23), the others between 0.45 and 2.7 (z -4.6 to 5.3).
    n_mark, n_window, n_unmark
        Bad in `n_mark` of the last `n_window` bins marks a channel; `n_unmark` good bins in a row take the mark away. A
        non-finite value marks at once.
    """

    enabled: bool = True
    bin_s: float = Field(default=0.5, ge=0.1)
    eeg: ChannelLimits = ChannelLimits(flat_below=1e-7, saturated_above=1e-3)
    mag: ChannelLimits = ChannelLimits(flat_below=5e-15, saturated_above=1e-10)
    grad: ChannelLimits = ChannelLimits(flat_below=5e-13, saturated_above=1e-8)
    stuck_fraction: float = Field(default=0.25, gt=0, lt=1)
    n_neighbours: int = Field(default=8, ge=MIN_NEIGHBOURS)
    noisy_ratio: float = Field(default=3.0, gt=1)
    quiet_ratio: float = Field(default=1 / 3, gt=0, lt=1)
    z: float = Field(default=6.0, gt=0)
    n_mark: int = Field(default=3, ge=1)
    n_window: int = Field(default=4, ge=1)
    n_unmark: int = Field(default=6, ge=1)


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
    """

    def __init__(self, settings: BadChannelSettings, sfreq: float, fixed: Iterable[str] | Mapping[str, str] = ()) -> None:
        if settings.n_mark > settings.n_window:
            raise ConfigurationError(
                f"bad_channels: n_mark = {settings.n_mark} is more than n_window = {settings.n_window}; no channel would "
                "ever be marked. Lower n_mark or raise n_window."
            )
        self._settings = settings
        self._length = round(settings.bin_s * sfreq)
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
                n = min(block.n_times - done, self._length - at)
                self._samples[:, at : at + n] = block.data[:, done : done + n]
                for column, missing in enumerate(MISSING.values()):
                    self._arrived[column, at : at + n] = (block.flags[done : done + n] & missing) == 0
                done += n
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
        self._modality = np.array([list(MISSING).index(k.modality) if k.modality else -1 for k in channels.types])
        self._types = [rows for kind in limits if len(rows := channels.of_type(kind)) > MIN_NEIGHBOURS]
        self._neighbours = [_nearest(channels, rows, settings.n_neighbours) for rows in self._types]
        self._samples: Float32 = np.zeros((n_channels, self._length), dtype=np.float32)
        self._arrived = np.zeros((len(MISSING), self._length), dtype=bool)
        self._verdicts = np.zeros((settings.n_window, n_channels), dtype=bool)  # of the last bins that said something
        self._good_in_a_row = np.zeros(n_channels, dtype=int)
        self._marked = np.zeros(n_channels, dtype=bool)
        self._found = {}
        self._bads = frozenset(self._fixed)
        self._begin_bin(block.first // self._length)

    def _begin_bin(self, number: int) -> None:
        self._bin = number
        self._arrived[:] = False

    def _judge_bin(self, channels: Channels) -> None:
        enough = self._arrived.mean(axis=1) >= 0.5
        judged = (self._modality >= 0) & enough[self._modality]
        if not judged.any():
            return
        reasons = np.full(len(channels), "", dtype=object)
        spread = np.ones(len(channels))
        for column in np.flatnonzero(enough):
            rows = np.flatnonzero(self._modality == column)
            if len(rows):
                reasons[rows], spread[rows] = self._judge_samples(rows, self._arrived[column])
        for rows, neighbours in zip(self._types, self._neighbours, strict=True):
            if judged[rows[0]]:
                against = self._judge_against_neighbours(spread[rows], neighbours)
                reasons[rows] = np.where(reasons[rows] == "", against, reasons[rows])
        bad = reasons != ""
        self._verdicts = np.where(judged, np.vstack([self._verdicts[1:], bad]), self._verdicts)
        self._good_in_a_row = np.where(judged, np.where(bad, 0, self._good_in_a_row + 1), self._good_in_a_row)
        often = self._verdicts.sum(axis=0) >= self._settings.n_mark
        mark = judged & bad & (often | (reasons == "nonfinite"))
        unmark = self._good_in_a_row >= self._settings.n_unmark
        self._marked = (self._marked | mark) & ~unmark
        names = [channels.names[i] for i in np.flatnonzero(self._marked)]
        why = {channels.names[i]: str(reasons[i]) for i in np.flatnonzero(mark)}
        self._found = {name: why.get(name, self._found.get(name, "")) for name in names}
        self._bads = frozenset(self._found) | frozenset(self._fixed)

    def _judge_samples(self, rows: NDArray[np.intp], arrived: NDArray[np.bool_]) -> tuple[NDArray[np.object_], Float64]:
        """Reasons (``""`` for none) and RMS without mean and trend, of some rows of the bin."""
        x = self._samples[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] + 1 == len(rows) else self._samples[rows]
        if not arrived.all():
            x = x[:, arrived]
        low, high = x.min(axis=1), x.max(axis=1)
        nonfinite = ~(np.isfinite(low) & np.isfinite(high))  # min and max hand on NaN, and are what is infinite
        if nonfinite.any():
            x = np.where(nonfinite[:, None], np.float32(0), x)
            low, high = np.where(nonfinite, 0, low), np.where(nonfinite, 0, high)
        peak_to_peak = high.astype(np.float64) - low
        at_extreme = np.maximum((x == low[:, None]).sum(axis=1), (x == high[:, None]).sum(axis=1))
        stuck = at_extreme > self._settings.stuck_fraction * x.shape[1]
        flat = peak_to_peak < self._flat_below[rows]
        saturated = (peak_to_peak > self._saturated_above[rows]) | stuck
        reasons = np.select([nonfinite, flat, saturated], ["nonfinite", "flat", "saturated"], default="").astype(object)
        return reasons, _detrended_rms(x)

    def _judge_against_neighbours(self, spread: Float64, neighbours: NDArray[np.intp]) -> NDArray[np.object_]:
        log = np.log(np.maximum(spread, np.finfo(np.float64).tiny))
        ratio = log - np.median(log[neighbours], axis=1)
        scale = max(1.4826 * float(np.median(np.abs(ratio - np.median(ratio)))), LOG_SPREAD_FLOOR)
        far = np.abs(ratio) > self._settings.z * scale
        noisy = far & (ratio > np.log(self._settings.noisy_ratio))
        quiet = far & (ratio < np.log(self._settings.quiet_ratio))
        return np.select([noisy, quiet], ["noisy", "quiet"], default="").astype(object)


def _detrended_rms(x: Float32) -> Float64:
    """RMS of each row without its mean and linear trend; taken from the first sample, offsets cost no digits."""
    d = x.astype(np.float64) - x[:, :1]
    n = d.shape[1]
    t = np.arange(n) - (n - 1) / 2
    mean = d.mean(axis=1)
    power = np.einsum("ij,ij->i", d, d) / n - mean**2 - (d @ t) ** 2 / (n * (t @ t))
    return np.asarray(np.sqrt(np.maximum(power, 0.0)))


def _nearest(channels: Channels, rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """For each of `rows` its neighbours, as positions within `rows`: the nearest `n`, or all others without positions."""
    positions = None if channels.positions is None else channels.positions[rows]
    if positions is None or not np.isfinite(positions).all() or not np.ptp(positions, axis=0).any():
        everyone = np.arange(len(rows))
        return np.array([np.delete(everyone, i) for i in everyone])
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, : min(n, len(rows) - 1)]
