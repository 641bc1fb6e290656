"""The engine: takes what has arrived, gives out estimates. Pumped by a session's thread, or by a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rt_mmdf.acquisition.clockwatch import ClockWatch
from rt_mmdf.acquisition.receiver import Receiver
from rt_mmdf.alignment.grid import Aligner, StreamSpec
from rt_mmdf.app.chain import Chain
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import RawBlock, SourceEstimate
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.lsl.interface import Clock
from rt_mmdf.preprocessing.whitening import OperatorSwitch


@dataclass
class EngineCounts:
    """Hops since the start: `hops` whose time came, of which `skipped` were not imaged, to catch up with the present."""

    hops: int = 0
    skipped: int = 0
    overwritten: int = 0  # samples that the receivers' rings lost because the engine was too slow


class Engine:
    """Rings and clock measurements in, estimates out.

    When it falls behind, it images the newest hop and counts those it skipped; the filters still see every sample.

    Parameters
    ----------
    settings : SessionSettings
    receivers : mapping of Modality to Receiver
    watch : ClockWatch
    imaging : Imaging
    switch : OperatorSwitch
    clock : Clock
    keep_map : bool
        Keep the whole time maps for a report.
    """

    def __init__(
        self,
        settings: SessionSettings,
        receivers: Mapping[Modality, Receiver],
        watch: ClockWatch,
        imaging: Imaging,
        switch: OperatorSwitch,
        clock: Clock,
        *,
        keep_map: bool = False,
    ) -> None:
        self._receivers = dict(receivers)
        self._watch = watch
        self._clock = clock
        self._budget_s = settings.budget_ms * 1e-3
        self._rows = {m: _rows_of(receiver.channels, imaging.channels) for m, receiver in receivers.items()}
        specs = [
            StreamSpec(m, receiver.channels.pick(self._rows[m]), receiver.sfreq, receiver.settings.stamps)
            for m, receiver in receivers.items()
            if len(self._rows[m])
        ]
        sfreq = settings.alignment.sfreq or max(spec.sfreq for spec in specs)
        decimate = settings.preprocessing.decimate
        self.hop = max(1, round(settings.hop_ms * 1e-3 * sfreq / decimate)) * decimate
        self.aligner = Aligner(specs, settings.alignment, self.hop, keep_map=keep_map)
        self.sfreq = sfreq / decimate
        self._check_band(settings)
        window = self.hop // decimate
        if settings.window_ms is not None:
            window = max(window, round(settings.window_ms * 1e-3 * self.sfreq))
        self.chain = Chain(
            self.aligner.channels,
            settings.preprocessing,
            sfreq,
            switch,
            n_sources=imaging.head.n_sources,
            unit=imaging.solver.unit,
            window=window,
            clock=clock,
        )
        self.counts = EngineCounts()

    def _check_band(self, settings: SessionSettings) -> None:
        high = settings.preprocessing.filters.band_pass.high_hz
        if high is not None and high > self.aligner.pass_hz:
            rates = ", ".join(f"{m} {receiver.sfreq:g} Hz" for m, receiver in self._receivers.items())
            raise ConfigurationError(
                f"preprocessing.filters.band_pass.high_hz = {high:g}, but with these streams ({rates}) and a look-ahead of "
                f"{settings.alignment.look_ahead_ms:g} ms the resampler is exact up to {self.aligner.pass_hz:.0f} Hz only. "
                "Lower high_hz, or use faster streams."
            )

    def pump(self) -> Iterator[SourceEstimate]:
        """Take what has arrived; yield the estimates that have become possible, oldest first."""
        for modality, receiver in self._receivers.items():
            for measured in self._watch.offsets[receiver.label].take_all():
                if len(self._rows[modality]):
                    self.aligner.add_offset(modality, measured)
            block = receiver.ring.read()
            if block is not None:
                self.counts.overwritten += block.lost
                if len(self._rows[modality]):
                    self.aligner.add(modality, self._imaged(modality, block))
        hop = self.aligner.advance(self._clock.now())
        while hop is not None:
            following = self.aligner.advance(self._clock.now())
            self.counts.hops += 1
            behind = self._clock.now() - hop.intended > self._budget_s
            estimate = self.chain(hop, image=following is None or not behind)
            if estimate is None:
                self.counts.skipped += 1
            else:
                yield estimate
            hop = following

    def _imaged(self, modality: Modality, block: RawBlock) -> RawBlock:
        rows = self._rows[modality]
        if len(rows) == len(block.data):
            return block
        return RawBlock(block.data[rows], block.stamps, block.received, block.first, block.lost)


def _rows_of(streaming: Channels, imaged: Channels) -> np.ndarray:
    return np.array([i for i, name in enumerate(streaming.names) if name in imaged], dtype=np.intp)
