"""From the receivers' rings to hops on the common grid: what every live session begins with."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.acquisition.clockwatch import ClockWatch
from rt_mmdf.acquisition.device_lag import lag_of
from rt_mmdf.acquisition.doubles import INTERVAL_S, Doubles
from rt_mmdf.acquisition.receiver import Epoch, Receiver, survey
from rt_mmdf.alignment.grid import AlignedHop, Aligner, StreamSpec
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import RawBlock
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.errors import ConfigurationError, StreamError
from rt_mmdf.lsl.interface import Clock, Transport
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.runtime.worker import Worker

logger = logging.getLogger(__name__)

LOOK_ANYWAY_S = 0.02  # clocks go on, and a stream that has gone silent is given up, even when nothing can be made


def survey_streams(settings: SessionSettings, transport: Transport) -> tuple[Channels, dict[Modality, float]]:
    """Look at all configured streams without subscribing: their EEG and MEG channels, EEG first, and their rates in Hz.

    Raises
    ------
    StreamError
        A stream is missing, ambiguous, cannot be interpreted, or has no channels of its modality.
    """
    streaming: Channels | None = None
    rates: dict[Modality, float] = {}
    for modality in (m for m in Modality if m in settings.acquisition):
        stream, channels = survey(transport, settings.acquisition[modality], modality.value)
        if modality not in channels.modalities:
            seen = ", ".join(sorted(set(channels.types))) or "none that can be imaged"
            raise StreamError(
                f"acquisition.{modality}: stream {stream.name!r} has no {modality.upper()} channels (types seen: {seen}). "
                f"Choose another stream, or give the channels' types under [acquisition.{modality}.types]."
            )
        own = channels.pick(channels.of_modality(modality))  # one stream may carry both, and be configured for both
        streaming = own if streaming is None else streaming + own
        rates[modality] = stream.sfreq
    assert streaming is not None, "settings hold at least one stream"
    return streaming, rates


def grid_rate(settings: SessionSettings, rates: Iterable[float]) -> float:
    """Rate of the common grid for streams of these rates, Hz: the one of the configuration, or the highest."""
    return settings.alignment.sfreq or max(rates)


def hop_samples(settings: SessionSettings, sfreq: float) -> int:
    """Samples of the grid in one hop."""
    decimate = settings.preprocessing.decimate
    return max(1, round(settings.hop_ms * 1e-3 * sfreq / decimate)) * decimate


class Intake:
    """Subscribed streams, their clocks, and the aligner that they feed.

    Parameters
    ----------
    settings : SessionSettings
    receivers : mapping of Modality to Receiver
    watch : ClockWatch
    channels : Channels
        Those that are wanted; others of the streams are left out.
    clock : Clock
    doubles : Doubles | None
        Looks for second streams of the same names.
    keep_map : bool
        Keep the whole time maps for a report.

    Attributes
    ----------
    hop : int
        Samples of the grid in one hop.
    lags : dict of Modality to DeviceLag
        What is known of each device's own lag; it is subtracted in the alignment.
    overwritten : int
        Samples that the receivers' rings lost because nobody took them in time.
    """

    def __init__(
        self,
        settings: SessionSettings,
        receivers: Mapping[Modality, Receiver],
        watch: ClockWatch,
        channels: Channels,
        clock: Clock,
        doubles: Doubles | None = None,
        *,
        keep_map: bool = False,
    ) -> None:
        self.receivers = dict(receivers)
        self.watch = watch
        self.doubles = doubles
        self.overwritten = 0
        self._looked = -math.inf
        self._clock = clock
        self._rows = {m: _rows_of(receiver.channels, m, channels) for m, receiver in receivers.items()}
        self._in_use = {m: receiver for m, receiver in receivers.items() if len(self._rows[m])}
        self.lags = {m: lag_of(receiver.settings, receiver.description) for m, receiver in receivers.items()}
        for m in self.lags:
            self._warn_of_lag(m)
        specs = [
            StreamSpec(
                m,
                receiver.channels.pick(self._rows[m]),
                receiver.sfreq,
                receiver.settings.stamps,
                lag_s=self.lags[m].seconds,
                lag_uncertainty_s=self.lags[m].uncertainty_s,
            )
            for m, receiver in self._in_use.items()
        ]
        self.sfreq = grid_rate(settings, (spec.sfreq for spec in specs))
        self.hop = hop_samples(settings, self.sfreq)
        self.aligner = Aligner(specs, settings.alignment, self.hop, keep_map=keep_map)
        high = settings.preprocessing.filters.band_pass.high_hz
        if high is not None and high > self.aligner.pass_hz:
            rates = ", ".join(f"{m} {receiver.sfreq:g} Hz" for m, receiver in receivers.items())
            raise ConfigurationError(
                f"preprocessing.filters.band_pass.high_hz = {high:g}, but with these streams ({rates}) and a look-ahead of "
                f"{settings.alignment.look_ahead_ms:g} ms the resampler is exact up to {self.aligner.pass_hz:.0f} Hz only. "
                "Lower high_hz, or use faster streams."
            )

    @classmethod
    def subscribe(
        cls,
        settings: SessionSettings,
        transport: Transport,
        channels: Channels,
        wake: Signal,
        resources: ExitStack,
        *,
        keep_map: bool = False,
    ) -> Intake:
        """Subscribe to all configured streams; `resources` closes them, `wake` rings when something arrives."""
        receivers: dict[Modality, Receiver] = {}
        for modality in (m for m in Modality if m in settings.acquisition):
            receiver = Receiver(transport, settings.acquisition[modality], modality.value, wake)
            resources.callback(receiver.close)
            receivers[modality] = receiver
        watch = ClockWatch(
            transport,
            {r.label: (lambda r=r: r.description) for r in receivers.values()},  # type: ignore[misc]
        )
        resources.callback(watch.close)
        doubles = Doubles(
            transport,
            {r.label: (r.settings, (lambda r=r: r.description)) for r in receivers.values()},  # type: ignore[misc]
        )
        return cls(settings, receivers, watch, channels, transport.clock, doubles, keep_map=keep_map)

    def workers(self, wake: Signal) -> list[Worker]:
        """One thread a stream, one for the clocks, and one that looks for doubles; not yet started."""
        workers = [*(r.worker(wake.ring) for r in self.receivers.values()), self.watch.worker(wake.ring)]
        if (doubles := self.doubles) is None:
            return workers

        def look() -> None:
            doubles.look()
            worker.pause(INTERVAL_S)

        worker = Worker("doubles", look, wake.ring)
        return [*workers, worker]

    def hops(self) -> Iterator[tuple[AlignedHop, bool]]:
        """Take what has arrived; yield the hops that have become complete, and whether each is the newest of them."""
        now = self._clock.now()
        lacking = any(receiver.ring.n_waiting < self.aligner.wanted(m) for m, receiver in self._in_use.items())
        if lacking and now - self._looked < LOOK_ANYWAY_S:
            return  # half a hop is no reason to take the interpreter from the thread that receives the other half
        self._looked = now
        for modality, receiver in self.receivers.items():
            offsets, block = self.watch.offsets[receiver.label].take_all(), receiver.ring.read()
            if modality not in self._in_use:
                continue
            for part in self._split(receiver, block):
                if isinstance(part, Epoch):
                    self._renew(modality, receiver, part)
                else:
                    self.overwritten += part.lost
                    self.aligner.add(modality, self._wanted(modality, part))
            for measured in offsets:  # after the samples: a clock that is renewed was measured since
                self.aligner.add_offset(modality, measured)
        hop = self.aligner.advance(now)
        while hop is not None:
            following = self.aligner.advance(self._clock.now())
            yield hop, following is None
            hop = following

    def _renew(self, modality: Modality, receiver: Receiver, epoch: Epoch) -> None:
        """The stream has come back, perhaps from another device: with another lag, or one that nobody knows."""
        lag = lag_of(receiver.settings, receiver.description)
        if lag != self.lags[modality]:
            self.lags[modality] = lag
            self._warn_of_lag(modality)
        self.aligner.renew(
            modality, epoch.sfreq, epoch.absent, new_clock=epoch.new_clock, lag=(lag.seconds, lag.uncertainty_s)
        )

    def _warn_of_lag(self, modality: Modality) -> None:
        lag, drift = self.lags[modality], self.receivers[modality].settings.lag_drift_ppm
        if lag.problem:
            logger.warning(
                "acquisition.%s.lag_ms is not used, so the lag of this device is unknown: it was %s. Measure it anew "
                "(rt-mmdf calibrate --sync), or delete lag_device where it is the same device under another name.",
                modality,
                lag.problem,
            )
        if drift is not None and lag.lag_ms is not None:
            logger.warning(
                "acquisition.%s: its lag drifted by %+.0f ppm (%+.1f ms a minute) while it was measured, so lag_ms = %g "
                "held at that time only. Correct its stamps, or do without them: stamps = 'arrival'.",
                modality,
                drift,
                drift * 0.06,
                lag.lag_ms,
            )

    @staticmethod
    def _split(receiver: Receiver, block: RawBlock | None) -> Iterator[RawBlock | Epoch]:
        """What was read, cut where the stream came back as another one."""
        while receiver.epochs and (block is None or receiver.epochs[0].first <= block.first + block.n_times):
            epoch = receiver.epochs.popleft()
            if block is not None and block.first < epoch.first:
                before, block = _cut(block, epoch.first - block.first)
                yield before
            yield epoch
        if block is not None:
            yield block

    def _wanted(self, modality: Modality, block: RawBlock) -> RawBlock:
        rows = self._rows[modality]
        if len(rows) == len(block.data):
            return block
        return RawBlock(block.data[rows], block.stamps, block.received, block.first, block.lost)

    def what_is_missing(self) -> str:
        """Why no hop has come, for a message."""
        for modality, receiver in self._in_use.items():
            name = f"{receiver.description.name!r} ({modality.upper()})"
            if receiver.arrivals.n_received == 0:
                return (
                    f"stream {name} was found, but has sent no sample. Start the acquisition on that system, or leave "
                    f"[acquisition.{modality}] out. To wait longer: start_timeout_s."
                )
            if not self.aligner.clock_known(modality):
                return (
                    f"the clock of stream {name} could not be measured. LSL does that over UDP ports 16572 to 16604: let "
                    "them through the firewalls of both machines."
                )
        return "samples arrive and clocks are measured, but the streams do not overlap in time; look at their time stamps."


def _cut(block: RawBlock, n_before: int) -> tuple[RawBlock, RawBlock | None]:
    """The first `n_before` samples, and the others."""
    before = RawBlock(block.data[:, :n_before], block.stamps[:n_before], block.received[:n_before], block.first, block.lost)
    if n_before == block.n_times:
        return before, None
    at = block.first + n_before
    return before, RawBlock(block.data[:, n_before:], block.stamps[n_before:], block.received[n_before:], at)


def _rows_of(streaming: Channels, modality: Modality, wanted: Channels) -> NDArray[np.intp]:
    return np.array([i for i in streaming.of_modality(modality) if streaming.names[i] in wanted], dtype=np.intp)
