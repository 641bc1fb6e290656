"""Causal filters whose state carries over from block to block."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, field_validator, model_validator
from scipy.signal import butter, iirnotch, sos2zpk, sosfilt, sosfilt_zi, tf2sos

from rt_mmdf.core.blocks import MISSING, Flag, Float64, SensorBlock
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import Settings
from rt_mmdf.preprocessing.availability import Rows, rows_by_modality

SETTLED_AT = 0.01  # a restart counts as over when the slowest mode has decayed to this part
SETTLING = np.uint32(Flag.SETTLING)  # an IntFlag would turn uint32 arrays into int64


class BandPassSettings(Settings):
    """Butterworth band-pass; without one of its edges it is a low-pass or a high-pass, without both there is none."""

    low_hz: float | None = Field(default=1.0, gt=0)
    high_hz: float | None = Field(default=40.0, gt=0)
    order: int = Field(default=4, ge=1, le=8)

    @model_validator(mode="after")
    def _edges_in_order(self) -> BandPassSettings:
        if self.low_hz is not None and self.high_hz is not None and self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz = {self.low_hz:g} is not below high_hz = {self.high_hz:g}")
        return self


class NotchSettings(Settings):
    """Notches at line frequency and harmonics; `width_hz` is the -3 dB width of each."""

    freqs_hz: tuple[float, ...] = ()
    width_hz: float = Field(default=2.0, gt=0)

    @field_validator("freqs_hz")
    @classmethod
    def _positive(cls, freqs: tuple[float, ...]) -> tuple[float, ...]:
        if any(freq <= 0 for freq in freqs):
            raise ValueError("frequencies of notches must be positive")
        return freqs


class FilterSettings(Settings):
    """All causal filters between alignment and whitening.

    max_settling_s bounds how long samples are flagged SETTLING after a restart. The slowest mode of a 0.1 Hz high-pass takes
    19 s to decay to 1 %; since a restart assumes that the first sample had lasted forever, what is left after 10 s is a
    slow drift, and half a minute of flagged estimates after each gap helps nobody.
    """

    band_pass: BandPassSettings = BandPassSettings()
    notch: NotchSettings = NotchSettings()
    max_settling_s: float = Field(default=10.0, ge=0)


def band_pass(settings: BandPassSettings, sfreq: float) -> Float64:
    """Second-order sections of the band-pass, ``(n_sections, 6)``; no rows when both edges are None.

    Raises
    ------
    ConfigurationError
        An edge is not below half the sampling rate.
    """
    edges = {"low_hz": settings.low_hz, "high_hz": settings.high_hz}
    given = {name: edge for name, edge in edges.items() if edge is not None}
    for name, edge in given.items():
        if edge >= sfreq / 2:
            raise ConfigurationError(
                f"band_pass.{name} = {edge:g} Hz, but the grid runs at {sfreq:g} Hz: an edge below {sfreq / 2:g} Hz is "
                "expected. Lower it, leave it out, or raise the sampling rate of the grid."
            )
    if not given:
        return np.zeros((0, 6))
    kind = "bandpass" if len(given) == 2 else "highpass" if "low_hz" in given else "lowpass"
    band = list(given.values()) if len(given) == 2 else next(iter(given.values()))
    return np.asarray(butter(settings.order, band, kind, fs=sfreq, output="sos"))


def notch(settings: NotchSettings, sfreq: float) -> Float64:
    """Second-order sections of the notches, ``(n_freqs, 6)``.

    Raises
    ------
    ConfigurationError
        A frequency is not below half the sampling rate.
    """
    sections = [np.zeros((0, 6))]
    for freq in settings.freqs_hz:
        if freq >= sfreq / 2:
            raise ConfigurationError(
                f"notch.freqs_hz contains {freq:g} Hz, but the grid runs at {sfreq:g} Hz: frequencies below "
                f"{sfreq / 2:g} Hz are expected. Leave it out: the grid does not hold that frequency."
            )
        sections.append(tf2sos(*iirnotch(freq, freq / settings.width_hz, fs=sfreq)))
    return np.vstack(sections)


class CausalFilter:
    """One cascade of second-order sections over all channels, in double precision.

    Delay: frequency dependent, see `group_delay`; adds no look-ahead. Equal to ``scipy.signal.sosfilt`` over the whole
    stream.

    The channels of a modality restart, as if their first valid sample had lasted forever, when it (re)appears and at a GAP
    that cannot be the other modality's: one is the other's when that modality is missing at the sample or was at the one
    before. So does everything when blocks do not follow each other. Samples less than `settling_samples` after a restart are
    flagged SETTLING. Where a modality is missing its rows are NaN.

    Parameters
    ----------
    sos : (n_sections, 6)
        Stable second-order sections; none at all makes a filter that passes everything.
    sfreq : float
        Hz.
    max_settling_s : float
        Upper limit of the settling time, see `FilterSettings`.
    """

    def __init__(self, sos: Float64, sfreq: float, max_settling_s: float = 10.0) -> None:
        self.sos = np.array(sos, dtype=np.float64)
        self.sfreq = sfreq
        self.settling_samples = min(decay_samples(self.sos), round(max_settling_s * sfreq))
        self._start = sosfilt_zi(self.sos)[:, None, :] if len(self.sos) else np.zeros((0, 1, 2))
        self.reset()

    @classmethod
    def from_settings(cls, settings: FilterSettings, sfreq: float) -> CausalFilter:
        """Band-pass and notches in one cascade; ConfigurationError for frequencies that the grid does not hold."""
        sos = np.vstack([band_pass(settings.band_pass, sfreq), notch(settings.notch, sfreq)])
        return cls(sos, sfreq, settings.max_settling_s)

    def reset(self) -> None:
        self._channels: Channels | None = None
        self._rows: dict[Modality, Rows] = {}
        self._state = np.zeros((len(self.sos), 0, 2))
        self._since: dict[Modality, int] = {}  # samples since the last restart
        self._next = 0
        self._before = int(Flag.EEG_MISSING | Flag.MEG_MISSING)  # flags of the sample before the block

    def group_delay(self, freqs_hz: ArrayLike) -> Float64:
        """Delay of the envelope of each frequency, seconds; NaN where the filter passes nothing (a notch, 0 Hz, Nyquist)."""
        z = np.exp(-2j * np.pi * np.atleast_1d(np.asarray(freqs_hz, dtype=np.float64)) / self.sfreq)
        powers = z ** np.arange(3)[:, None]
        delay = np.zeros(len(z))
        for section in self.sos:
            for sign, polynomial in ((1.0, section[:3]), (-1.0, section[3:])):
                value = polynomial @ powers
                zero = np.abs(value) < 1e-12 * np.abs(polynomial).sum()
                ratio = (polynomial * np.arange(3)) @ powers / np.where(zero, 1.0, value)
                delay += np.where(zero, np.nan, sign * ratio.real)
        return delay / self.sfreq

    def __call__(self, block: SensorBlock) -> SensorBlock:
        if block.n_times == 0 or len(self.sos) == 0:
            return block
        if block.channels is not self._channels and block.channels != self._channels:
            self.reset()
            self._rows = rows_by_modality(block.channels)
            self._state = np.zeros((len(self.sos), len(block.channels), 2))
            self._since = dict.fromkeys(self._rows, 0)
            self._next = block.first
        self._channels = block.channels
        if block.first != self._next:
            self._before = int(Flag.EEG_MISSING | Flag.MEG_MISSING)
        present, restarts = self._availability(block.flags)
        flags = block.flags
        undisturbed = all(present[m].all() and not restarts[m].any() for m in self._rows)
        if undisturbed:
            data, self._state = sosfilt(self.sos, block.data.astype(np.float64), axis=1, zi=self._state)
            data = data.astype(np.float32)
        else:
            data = np.full(block.data.shape, np.nan, dtype=np.float32)
            for modality, rows in self._rows.items():
                self._filter_pieces(block, data, rows, present[modality], restarts[modality])
        if not undisturbed or any(since < self.settling_samples for since in self._since.values()):
            flags = flags.copy()
        for modality in self._rows:
            self._mark_settling(flags, modality, present[modality], restarts[modality])
        self._next, self._before = block.stop, int(block.flags[-1])
        return replace(block, data=data, flags=flags)

    def _availability(
        self, flags: NDArray[np.uint32]
    ) -> tuple[dict[Modality, NDArray[np.bool_]], dict[Modality, NDArray[np.bool_]]]:
        """For each modality: samples that are there, and samples at which its filters restart."""
        before = np.concatenate(([np.uint32(self._before)], flags[:-1]))
        gap, gap_before = (flags & Flag.GAP) != 0, (before & Flag.GAP) != 0
        lost = {m: (flags & MISSING[m]) != 0 for m in Modality}
        lost_before = {m: (before & MISSING[m]) != 0 for m in Modality}
        unexplained = gap
        for m in Modality:  # comes, goes, or stays away inside a hole that was known before
            unexplained = unexplained & (lost[m] == lost_before[m]) & ~(lost[m] & gap_before)
        present = {m: ~lost[m] for m in self._rows}
        return present, {m: present[m] & (lost_before[m] | unexplained) for m in self._rows}

    def _filter_pieces(
        self,
        block: SensorBlock,
        out: NDArray[np.float32],
        rows: Rows,
        present: NDArray[np.bool_],
        restarts: NDArray[np.bool_],
    ) -> None:
        edges = {0, len(present), *np.flatnonzero(restarts).tolist(), *(np.flatnonzero(np.diff(present)) + 1).tolist()}
        ordered = sorted(edges)
        for a, b in pairwise(ordered):
            if not present[a]:
                continue
            piece = block.data[rows, a:b].astype(np.float64)
            state = self._start * piece[:, :1] if restarts[a] else self._state[:, rows]
            out[rows, a:b], self._state[:, rows] = sosfilt(self.sos, piece, axis=1, zi=state)

    def _mark_settling(
        self,
        flags: NDArray[np.uint32],
        modality: Modality,
        present: NDArray[np.bool_],
        restarts: NDArray[np.bool_],
    ) -> None:
        n_times, since = len(flags), self._since[modality]
        if not restarts.any():
            if since < self.settling_samples:
                flags[: self.settling_samples - since][present[: self.settling_samples - since]] |= SETTLING
            self._since[modality] = since + n_times
            return
        sample = np.arange(n_times)
        last = np.maximum.accumulate(np.where(restarts, sample, -since))
        flags[present & (sample - last < self.settling_samples)] |= SETTLING
        self._since[modality] = n_times - int(last[-1])


def decay_samples(sos: Float64) -> int:
    """Samples until the slowest mode of a cascade has decayed to `SETTLED_AT`; 0 for none.

    A pole of radius r decays as r^n, so n = ln(0.01) / ln(r).
    """
    poles = np.abs(sos2zpk(sos)[1]) if len(sos) else np.zeros(0)
    slowest = float(poles.max(initial=0.0))
    if slowest >= 1.0:
        raise ConfigurationError(
            f"filter: its slowest pole has radius {slowest:.9f}, below 1 is expected: it would never settle. Raise "
            "low_hz or width_hz, lower the order, or lower the sampling rate."
        )
    return 0 if slowest == 0.0 else int(np.ceil(np.log(SETTLED_AT) / np.log(slowest)))
