"""Both modalities on one grid: what the pipeline works on from here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rt_mmdf.alignment.arrival import Timing, timeline_of
from rt_mmdf.alignment.resampler import FractionalResampler
from rt_mmdf.alignment.time_map import TimeMap
from rt_mmdf.alignment.timeline import MAX_BACKWARD_S, Placement
from rt_mmdf.core.blocks import MISSING, Flag, Float32, Float64, RawBlock, SensorBlock
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.core.errors import ConfigurationError, StreamDescriptionError
from rt_mmdf.core.settings import Settings
from rt_mmdf.lsl.interface import ClockOffset


class AlignmentSettings(Settings):
    """How streams are brought onto one grid."""

    grid: Literal["clock", "samples"] = "clock"
    """``clock``: resampled by the fitted clocks. ``samples``: no resampling, one sample of each stream per grid sample; for
    systems that sample EEG and MEG by one clock."""
    sfreq: float | None = Field(default=None, gt=0)
    """Rate of the grid in Hz; by default that of the fastest stream."""
    look_ahead_ms: float = Field(default=10.0, gt=0, le=10.0)
    """Most that the resampler may wait for samples after the one that it computes."""
    late_ms: float = Field(default=250.0, gt=0)
    """A modality whose newest sample is older than this is marked missing, and not waited for, until new ones come. A lag of
    the device that is known comes on top: it makes nobody late."""
    uncertain_ms: float = Field(default=1.0, gt=0)
    """Above this uncertainty (two standard deviations) of one stream's time, samples are flagged CLOCK_UNCERTAIN."""


REPORT_INTERVAL_S = 0.25
ASIDE_S = 5.0
"""A stream whose stamps made no sense is begun anew after so long."""
MOST_AHEAD_S = 0.05
"""A sample that comes sooner than this before its own time tells that the sender's clock was set ahead; senders that stamp a
chunk into the future stay below."""


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """What the aligner must know of one stream.

    stamping : what a stamp means, see `timeline_of`
    lag_s : the device's own lag, seconds: what carries the stamp t happened at ``t - lag_s``
    lag_uncertainty_s : two standard deviations of it
    """

    modality: Modality
    channels: Channels
    sfreq: float
    stamping: Timing = "per_sample"
    lag_s: float = 0.0
    lag_uncertainty_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AlignedHop:
    """One hop on the grid, and when it could have been complete if nothing but physics took time."""

    block: SensorBlock
    intended: float


@dataclass(frozen=True, slots=True)
class LaneReport:
    """State of one stream's clock and what was found in it; seconds and samples; uncertainties are two standard deviations.

    offset, offset_uncertainty_ms : of the sender's clock; to be added to its stamps
    drift_ppm, drift_uncertainty_ppm : of the sender's clock against this machine's
    rate_error_ppm, rate_uncertainty_ppm : of the sampling clock: how much longer than nominal the sampling interval is
    jitter_ms : standard deviation of the stamps about their fit
    uncertainty_ms : of the newest sample's time, that of the device's lag included where one is known
    arrival_lag_ms : from the newest sample's time to its receipt, less the device's lag where one is known
    missing : samples of the grid without this stream
    clock_steps : how often a clock was set
    counts : see `TimelineCounts`
    """

    offset: float
    offset_uncertainty_ms: float
    drift_ppm: float
    drift_uncertainty_ppm: float
    rate_error_ppm: float
    rate_uncertainty_ppm: float
    jitter_ms: float
    uncertainty_ms: float
    arrival_lag_ms: float
    missing: int
    clock_steps: int
    counts: dict[str, int]


class _Lane:
    """One stream: its timeline, its clock, and its newest samples in columns numbered by the stream's sampling clock."""

    def __init__(self, spec: StreamSpec, settings: AlignmentSettings, grid_sfreq: float, keep_map: bool) -> None:
        self.spec = spec
        self.timeline, self.clock = timeline_of(spec.stamping, spec.sfreq, f"the {spec.modality.upper()} stream")
        self.map = TimeMap(spec.sfreq, history=None if keep_map else 600)
        self.resampler = None
        if settings.grid == "clock":
            self.resampler = FractionalResampler(spec.sfreq, grid_sfreq, settings.look_ahead_ms * 1e-3)
        self.n_past = self.resampler.n_past if self.resampler else 1
        self.n_ahead = self.resampler.n_ahead if self.resampler else 0
        self._room = max(4096, round(8 * spec.sfreq))
        # samples by channels: what is appended and what is resampled lies in one piece
        self._data: Float32 = np.zeros((self._room, len(spec.channels)), np.float32)
        self._valid: NDArray[np.bool_] = np.zeros(self._room, bool)
        self._received: Float64 = np.zeros(self._room)
        self._stamped: NDArray[np.bool_] = np.ones(self._room, bool)  # the others are where they are by counting alone
        self.base = 0  # number of column 0
        self.stop = 0  # one past the newest number
        self.started = False
        self._undecided: RawBlock | None = None
        self._arrived: list[RawBlock] = []
        self.first_stamp = math.nan
        # a sample of a device that lags cannot be had sooner; one that is stamped early can be had when it has happened
        self.device_delay = max(0.0, spec.lag_s)
        self.lag_s = math.nan  # from when the newest sample could be had to its receipt
        self._epoch = 0
        self._pulls: list[int] = []  # sizes of the last pulls
        self._typical_pull = 1
        self._last_pull = -math.inf
        # a block may come in pieces while it is being sent; by then the device cannot have taken another sample
        self._one_block_s = 0.5 / spec.sfreq
        self.needed = 0  # number of the oldest sample that the grid still needs
        self.shift = 0  # samples grid: stream number less grid number
        self.grid_missing = 0
        self.wanted = 0  # see `Aligner.wanted`
        self.new_hole = True  # the next sample on the grid comes after a hole, or is the first
        self._doubtful = False  # nobody knows where the next sample belongs
        self.absent: frozenset[str] = frozenset()  # channels that the stream does not have now
        self.fault = ""  # why nothing of it can be used now
        self.retry_at = math.inf  # receiving time from which on it is tried anew
        self.succeeds = False  # it is not the stream that the session began with
        self.paired = False  # samples grid, of a lane that succeeds another: `shift` is known

    def succeeded_by(self, spec: StreamSpec, settings: AlignmentSettings, grid_sfreq: float, new_clock: bool) -> _Lane:
        """What goes on in its place, with nothing of its samples; what was counted stays counted."""
        lane = _Lane(spec, settings, grid_sfreq, self.map.keeps_all)
        lane.timeline.counts, lane.grid_missing, lane.first_stamp = self.timeline.counts, self.grid_missing, self.first_stamp
        lane.map.steps, lane.clock.steps, lane.absent, lane.succeeds = self.map.steps, self.clock.steps, self.absent, True
        if not new_clock:
            lane.clock = self.clock
        return lane

    def set_aside(self, fault: str) -> None:
        """Use nothing of it for `ASIDE_S`."""
        newest = (
            self._undecided.received[-1] if self._undecided is not None else self._received[: self.stop - self.base].max()
        )
        self.fault, self.retry_at = fault, float(newest) + ASIDE_S
        self._undecided, self._arrived = None, []

    def add(self, block: RawBlock) -> None:
        self._note_pulls(block.received)
        if block.lost:  # overwritten in the receiver's ring: the stamps show the hole, nothing else needs to be done
            self.new_hole = True
        if math.isnan(self.first_stamp):
            self.first_stamp = float(block.stamps[0])
        self._arrived.append(block)

    def _note_pulls(self, received: Float64) -> None:
        sizes = [len(received)]
        if received[0] != received[-1]:
            edges = np.flatnonzero(np.diff(received) > self._one_block_s) + 1
            sizes = np.diff(np.concatenate([[0], edges, [len(received)]])).tolist()
        if self._pulls and received[0] - self._last_pull <= self._one_block_s:
            self._pulls[-1] += sizes.pop(0)
        self._last_pull = float(received[-1])
        self._pulls += sizes
        del self._pulls[:-100]
        # lower quartile: blocks that were pulled together because we were late must not count as the stream's own
        self._typical_pull = sorted(self._pulls)[len(self._pulls) // 4]

    def advance(self) -> None:
        """Place what can be placed: needs the sender's clock."""
        if self._arrived and self.clock.ready:
            waiting = [self._undecided, *self._arrived] if self._undecided is not None else self._arrived
            self._undecided = waiting[0] if len(waiting) == 1 else _join(waiting)
            self._arrived = []
        while self._undecided is not None and self.clock.ready:
            if self.mapped and self.base <= self.needed < self.stop - self._room // 4:
                return  # the grid has not come so far: what it needs must not be overtaken
            block = self._undecided
            placement = self.timeline.place(block.received if self.spec.stamping == "arrival" else block.stamps)
            if len(placement.keep):
                if self.timeline.epoch != self._epoch:
                    self._epoch = self.timeline.epoch
                    self.map.restart()
                    self._invalidate()
                if not self.map.ready:
                    self._bend(int(placement.index[0]))
                self._append(placement.index, block, placement.keep)
                if self._doubtful:
                    self._valid[int(placement.index[0]) - self.base] = False
                    self._doubtful = False
                self.lag_s = float(block.received[placement.keep[-1]]) - self.device_delay - self.newest_time
            if len(placement.keep) < placement.consumed:
                self._look_at_dropped(block, placement)
            if placement.knot:
                self._bend(self.timeline.next_index)
            if placement.consumed == block.n_times:
                self._undecided = None
            elif placement.consumed == 0:
                return
            else:
                at = placement.consumed
                self._undecided = RawBlock(
                    block.data[:, at:], block.stamps[at:], block.received[at:], block.first + at, block.lost
                )

    def _look_at_dropped(self, block: RawBlock, placement: Placement) -> None:
        """Samples are dropped where their stamps have been seen. If they are not what came with those stamps, it is the
        stamps that are wrong, nobody knows where the samples that follow belong, and they are not joined to those before.
        """
        dropped = np.delete(np.arange(placement.consumed), placement.keep)
        start = max(0, self.stop - self.base - round(MAX_BACKWARD_S * self.spec.sfreq) - len(placement.keep))
        seen = {column.tobytes() for column in self._data[start : self.stop - self.base]}
        if all(np.ascontiguousarray(block.data[:, k]).tobytes() in seen for k in dropped):
            return
        following = placement.index[placement.keep > dropped[0]]
        if len(following):
            self._valid[int(following[0]) - self.base] = False
        else:
            self._doubtful = True

    def _bend(self, index: int) -> None:
        sender = self.timeline.sender_time(index)
        interval = (1 + self.timeline.rate_error) / self.spec.sfreq * (1 + self.clock.drift)
        # the only place where the device's lag enters: from here on all times are those of the events themselves
        if self.map.bend(index, self.clock.to_local(sender) - self.spec.lag_s, interval):
            self._invalidate()

    def _invalidate(self) -> None:
        self._valid[: self.stop - self.base] = False
        self.new_hole = True  # even where the grid meets no sample of the past any more

    def _append(self, index: NDArray[np.int64], block: RawBlock, keep: NDArray[np.intp]) -> None:
        first, last = int(index[0]), int(index[-1])
        if not self.started:
            self.base = self.stop = first
            self.started = True
        if last + 1 - self.base > self._room:
            self._make_room(last + 1)
        columns = index - self.base
        gap = slice(max(0, self.stop - self.base), int(columns[-1]) + 1)
        if len(index) != last + 1 - self.stop:  # there is a hole in front of, or between, these samples
            self._data[gap] = np.nan
            self._valid[gap] = False
            self._received[gap] = block.received[keep[0]]
        self._data[columns] = block.data.T[keep]
        self._valid[columns] = True
        self._received[columns] = block.received[keep]
        self._stamped[columns] = self.spec.stamping == "arrival" or np.isfinite(block.stamps[keep])
        self.stop = last + 1

    def _make_room(self, stop: int) -> None:
        """Keep the newest half of the columns."""
        base = max(self.base, stop - self._room // 2)
        kept = max(0, self.stop - base)
        for array in (self._data, self._valid, self._received, self._stamped):
            array[:kept] = array[self.stop - self.base - kept : self.stop - self.base].copy()
        if self.stop < base:  # the hole is longer than what is kept
            self.stop = base
        self.base = base

    @property
    def uncertainty(self) -> float:
        """Two standard deviations of the newest sample's time, and what it is known to be wrong by; seconds.

        That is the error that is still being slewed, and what the newest stamps and clock measurements together are beyond
        both fits: of a sender's clock that changes its rate each fit runs behind, the other way round, and nothing is wrong.
        """
        if not (self.map.ready and self.timeline.ready):
            return float("inf")
        sender = self.timeline.sender_time(self.stop)
        sd = math.hypot(self.timeline.sender_time_sd(self.stop), self.clock.sd(sender))
        stamps, clock = self.timeline.misfit, self.clock.misfit
        beyond = stamps.value + clock.value
        noise = 3 * math.hypot(stamps.sd, clock.sd)
        known = self.map.error + math.copysign(max(0.0, abs(beyond) - noise), beyond)
        return math.hypot(2 * sd, self.spec.lag_uncertainty_s) + abs(known)

    @property
    def n_undecided(self) -> int:
        """Samples that wait for their successors to be placed."""
        decided = 0 if self._undecided is None else self._undecided.n_times
        return decided + sum(block.n_times for block in self._arrived)

    @property
    def newest_time(self) -> float:
        """LSL time at which the newest sample that has come was true; before the first, long ago."""
        return self.map.time_at(self.stop - 1) if self.mapped else -math.inf

    def is_alive(self, late: float) -> bool:
        """Whether something has come that could not be had before `late`."""
        return self.newest_time + self.device_delay >= late

    @property
    def mapped(self) -> bool:
        return self.started and self.map.ready and not self.fault

    def covers(self, position: float) -> bool:
        """Whether the samples that a grid sample at `position` needs have come."""
        return self.mapped and int(np.floor(position)) + self.n_ahead < self.stop

    def values(self, position: Float64) -> tuple[Float32, NDArray[np.bool_], Float64, float]:
        """Channels at these positions, which of them are whole, when they were received, and when the last could exist."""
        whole = np.floor(position).astype(np.int64)
        start, stop = int(whole[0]) - self.n_past + 1, int(whole[-1]) + self.n_ahead + 1
        received = self._received[np.clip(whole + self.n_ahead - self.base, 0, self._room - 1)]
        if start < self.base:  # long overtaken, or before the stream began
            nothing = np.full((len(self.spec.channels), len(position)), np.nan, np.float32)
            return nothing, np.zeros(len(position), bool), received, self.map.time_at(stop - 1) + self.device_delay
        last = stop - 1 - self.base
        until = self._received[last] + self._one_block_s
        in_pull = int(np.searchsorted(self._received[: self.stop - self.base], until, side="right")) - 1 - last
        exists = self.map.time_at(stop - 1 + min(in_pull, self._typical_pull - 1)) + self.device_delay
        valid = self._valid[start - self.base : stop - self.base]
        if self.resampler is None:
            data = self._data[start - self.base : stop - self.base].T.copy()
        else:
            data = self.resampler(self._data.T, position - self.base)
        if valid.all():
            return data, np.ones(len(position), bool), received, exists
        usable = self._all_within(valid, whole)
        if self.resampler is not None and usable.any():  # NaN times weight 0 is NaN: compute the whole ones apart
            runs = np.flatnonzero(np.diff(usable, prepend=False, append=False)).reshape(-1, 2)
            for a, b in runs:
                data[:, a:b] = self.resampler(self._data.T, position[a:b] - self.base)
        data[:, ~usable] = np.nan
        return data, usable, received, exists

    def counted(self, position: Float64) -> NDArray[np.bool_] | None:
        """Which of these positions rest on samples that came without a usable stamp; None for none.

        What was counted may have been sent twice, or have followed a hole: the next usable stamp tells, too late for these.
        """
        whole = np.floor(position).astype(np.int64)
        start, stop = int(whole[0]) - self.n_past + 1 - self.base, int(whole[-1]) + self.n_ahead + 1 - self.base
        if start < 0 or self._stamped[start:stop].all():
            return None
        return ~self._all_within(self._stamped[start:stop], whole)

    def _all_within(self, good: NDArray[np.bool_], whole: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each of the resampler's places whether all samples that it takes are good; `good` begins with the first's."""
        n_bad = np.concatenate([[0], np.cumsum(~good)])
        inside = (whole - whole[0]).astype(np.intp)
        return np.asarray(n_bad[inside + self.n_past + self.n_ahead] == n_bad[inside])

    def report(self) -> LaneReport:
        sender = self.timeline.sender_time(self.stop) if self.mapped and self.timeline.ready else float("nan")
        return LaneReport(
            offset=self.clock.offset(sender) if self.mapped and self.timeline.ready else float("nan"),
            offset_uncertainty_ms=2e3 * self.clock.sd(sender),
            drift_ppm=self.clock.drift * 1e6,
            drift_uncertainty_ppm=2e6 * self.clock.drift_sd,
            rate_error_ppm=self.timeline.rate_error * 1e6,
            rate_uncertainty_ppm=2e6 * self.timeline.rate_error_sd,
            jitter_ms=self.timeline.jitter_sd * 1e3,
            uncertainty_ms=self.uncertainty * 1e3,
            arrival_lag_ms=self.lag_s * 1e3,
            missing=self.grid_missing,
            clock_steps=self.clock.steps + self.map.steps + self.timeline.counts.restarts,
            counts=self.timeline.counts.as_dict(),
        )


class Aligner:
    """Streams in, hops of the common grid out.

    Sample `g` of the grid is the instant ``origin + g / sfreq`` on this machine's LSL clock, for every modality (with the
    grid of samples: the instant of the last stream's sample); where a device's own lag is known, the instant is that of the
    event, not of its stamp. A hop leaves as soon as all modalities have what it needs
    (the watermark), or as soon as those that lack it have sent nothing newer than `late_ms`: a dead stream holds nobody.

    Parameters
    ----------
    streams : sequence of StreamSpec
        One per modality.
    settings : AlignmentSettings
    hop : int
        Grid samples of a hop; hop `k` covers samples ``k * hop`` to ``(k + 1) * hop - 1``.
    keep_map : bool
        Keep every knot of the time maps (10 a second) for a report, instead of the last minute.

    Attributes
    ----------
    channels : Channels
        Imaged channels of all streams, EEG first.
    sfreq : float
    origin : float
        NaN until all streams have begun.
    newest_report : dict of Modality to LaneReport
        `report` as it was at most 0.25 s before the last `advance`; any thread may read it.
    on_error : callable | None
        Called with the modality and an error that its samples have led to, other than a StreamDescriptionError; without
        it such an error is raised.
    """

    def __init__(self, streams: list[StreamSpec], settings: AlignmentSettings, hop: int, *, keep_map: bool = False) -> None:
        streams = sorted(streams, key=lambda spec: list(Modality).index(spec.modality))
        self.settings = settings
        self.hop = hop
        self.sfreq = settings.sfreq or max(spec.sfreq for spec in streams)
        if settings.grid == "samples" and any(spec.sfreq != self.sfreq for spec in streams):
            rates = ", ".join(f"{spec.modality}: {spec.sfreq:g} Hz" for spec in streams)
            raise ConfigurationError(
                f"alignment.grid = 'samples' needs streams of one sampling rate, that of the grid ({self.sfreq:g} Hz); "
                f"seen: {rates}. Use alignment.grid = 'clock'."
            )
        self._lanes = [_Lane(spec, settings, self.sfreq, keep_map) for spec in streams]
        self._device_delay = max(lane.device_delay for lane in self._lanes)
        self.channels = streams[0].channels
        for spec in streams[1:]:
            self.channels = self.channels + spec.channels
        self.origin = float("nan")
        self.on_error: Callable[[Modality, Exception], None] | None = None
        self._next_hop = 0
        self._last_time = math.nan  # of the grid
        self._reported = -math.inf
        self.newest_report = self.report()

    @property
    def pass_hz(self) -> float:
        """Up to here the resamplers are exact to 5e-4."""
        return min(lane.resampler.pass_hz if lane.resampler else self.sfreq / 2 for lane in self._lanes)

    @property
    def look_ahead_s(self) -> float:
        """Longest that a resampler waits for samples after the one it computes."""
        return max(lane.n_ahead / lane.spec.sfreq for lane in self._lanes)

    def look_ahead_samples(self, modality: Modality) -> int:
        """Samples of one stream after its own time that a grid sample waits for."""
        return self._lane(modality).n_ahead

    def add(self, modality: Modality, block: RawBlock) -> None:
        """Take samples of one stream."""
        lane = self._lane(modality)
        if lane.fault:
            if block.received[-1] < lane.retry_at:
                return
            lane = self._succeed(lane, lane.spec, new_clock=False)
        lane.add(block)

    def renew(
        self,
        modality: Modality,
        sfreq: float,
        absent: frozenset[str],
        *,
        new_clock: bool,
        lag: tuple[float, float] | None = None,
    ) -> None:
        """The stream has come back as another one; to be told between its last old and its first new sample.

        Parameters
        ----------
        sfreq : its nominal rate now, Hz; with the grid of samples any other than that of the grid leaves it missing
        absent : channels that it does not have now: NaN comes for them, and they are bad
        new_clock : its stamps are those of another machine
        lag : the device's own lag and two standard deviations of it, seconds; None: as before
        """
        lane = self._lane(modality)
        spec = replace(lane.spec, sfreq=sfreq)
        if lag is not None:
            spec = replace(spec, lag_s=lag[0], lag_uncertainty_s=lag[1])
        if self.settings.grid == "samples" and sfreq != self.sfreq:
            lane.set_aside(
                f"the {modality.upper()} stream came back with {sfreq:g} Hz; alignment.grid = 'samples' needs "
                f"{self.sfreq:g} Hz. It counts as missing until it has that rate again; alignment.grid = 'clock' takes any."
            )
            lane.retry_at = math.inf
            return
        if new_clock or spec != lane.spec or lane.fault:
            try:
                lane = self._succeed(lane, spec, new_clock)
            except (ConfigurationError, MemoryError) as error:
                lane.set_aside(f"the {modality.upper()} stream came back with {sfreq:g} Hz, which cannot be used: {error}")
                lane.retry_at = math.inf
        lane.clock.sender_restarted()
        lane.absent = absent

    def _succeed(self, lane: _Lane, spec: StreamSpec, new_clock: bool) -> _Lane:
        at = self._lanes.index(lane)
        self._lanes[at] = lane.succeeded_by(spec, self.settings, self.sfreq, new_clock)
        self._device_delay = max(lane.device_delay for lane in self._lanes)
        return self._lanes[at]

    @property
    def faults(self) -> dict[Modality, str]:
        """Why nothing of a stream can be used now; of those that are missing for that."""
        return {lane.spec.modality: lane.fault for lane in self._lanes if lane.fault}

    def _advance_lane(self, lane: _Lane) -> None:
        """What a session begins with must make sense; what comes later must not end it."""
        try:
            lane.advance()
        except StreamDescriptionError as error:
            if not (lane.succeeds or lane.timeline.epoch):
                raise
            lane.set_aside(str(error))
        except Exception as error:
            if self.on_error is None:
                raise
            lane.set_aside(f"the {lane.spec.modality.upper()} stream cannot be aligned ({type(error).__name__}: {error})")
            self.on_error(lane.spec.modality, error)

    def add_offset(self, modality: Modality, measured: ClockOffset) -> None:
        """Take a measurement of one sender's clock."""
        self._lane(modality).clock.add(measured)

    def _lane(self, modality: Modality) -> _Lane:
        return next(lane for lane in self._lanes if lane.spec.modality is modality)

    def wanted(self, modality: Modality) -> int:
        """Samples that the next hop still lacks of a stream, as far as known: while fewer have come, nothing can be made."""
        return self._lane(modality).wanted

    def advance(self, now: float) -> AlignedHop | None:
        """The next hop, if it is complete or a modality is given up for it at LSL time `now`."""
        if now - self._reported >= REPORT_INTERVAL_S:
            self._reported, self.newest_report = now, self.report()
        for lane in self._lanes:
            self._advance_lane(lane)
        if np.isnan(self.origin) and not self._begin(now):
            return None
        grid = self._next_hop * self.hop + np.arange(self.hop)
        if self.settings.grid == "samples":
            times, positions = self._paired(grid)
        else:
            times = self.origin + grid / self.sfreq
            positions = [lane.map.indices_at(times) if lane.mapped else np.zeros(self.hop) for lane in self._lanes]
        for lane, position in zip(self._lanes, positions, strict=True):
            lane.needed = int(position[0]) - lane.n_past + 1
        present = [lane.covers(position[-1]) for lane, position in zip(self._lanes, positions, strict=True)]
        late = now - self.settings.late_ms * 1e-3
        alive = [lane.is_alive(late) for lane in self._lanes]
        expected = (lives and not here for lives, here in zip(alive, present, strict=True))
        if any(expected) or (not any(present) and times[-1] + self._device_delay >= late):
            for lane, lives, position in zip(self._lanes, alive, positions, strict=True):
                lacking = int(position[-1]) + lane.n_ahead + 1 - lane.stop - lane.n_undecided
                lane.wanted = max(0, lacking) if lives else 0
            return None
        hop = self._assemble(times, positions, present, now)
        self._next_hop += 1
        self._last_time = float(times[-1])
        return hop

    def _paired(self, grid: NDArray[np.int64]) -> tuple[Float64, list[Float64]]:
        """Times of these samples of the grid, and of each stream the sample that belongs to each of them."""
        following = self._last_time + 1 / self.sfreq
        for lane in self._lanes:
            if lane.succeeds and lane.mapped and not lane.paired:
                lane.shift = round(float(lane.map.indices_at(np.array([following]))[0])) - int(grid[0])
                lane.paired = True
        positions = [(grid + lane.shift).astype(float) for lane in self._lanes]
        reference = self._lanes[-1]
        if reference.mapped:
            return reference.map.times_at(positions[-1]), positions
        return following + np.arange(self.hop) / self.sfreq, positions

    def _begin(self, now: float) -> bool:
        """Set the origin: where all streams have begun, but not in the past, for what came before the clocks were known."""
        if not all(lane.mapped for lane in self._lanes):
            return False
        recent = now - self.settings.late_ms * 1e-3 - self._device_delay
        if self.settings.grid == "samples":
            # sample by sample: those whose times agree to half a sample are one grid sample
            reference = self._lanes[-1]
            starts = [lane.map.time_at(lane.base) for lane in self._lanes]
            begin = max(*starts, recent)
            for lane in self._lanes:
                lane.shift = round(float(lane.map.indices_at(np.array([begin]))[0]))
            self.origin = reference.map.time_at(reference.shift)
            return True
        begin = max(recent, *(lane.map.time_at(lane.base + lane.n_past) for lane in self._lanes))
        self.origin = float(np.ceil(begin * self.sfreq) / self.sfreq)
        return True

    def _assemble(self, times: Float64, positions: list[Float64], present: list[bool], now: float) -> AlignedHop:
        flags = np.zeros(self.hop, np.uint32)
        received = np.zeros(self.hop)
        rows: list[Float32] = []
        intended = times[-1]
        for lane, position, here in zip(self._lanes, positions, present, strict=True):
            missing = np.uint32(MISSING[lane.spec.modality])
            if not here:
                rows.append(np.full((len(lane.spec.channels), self.hop), np.nan, np.float32))
                flags |= missing
                lane.grid_missing += self.hop
                lane.new_hole = True
                received = np.maximum(received, now)
                continue
            data, usable, when, exists = lane.values(position)
            rows.append(data)
            received = np.maximum(received, when)
            intended = max(intended, exists)
            flags[~usable] |= missing | np.uint32(Flag.GAP)
            lane.grid_missing += int((~usable).sum())
            after_hole = usable & ~np.concatenate([[not lane.new_hole], usable[:-1]])
            flags[after_hole] |= np.uint32(Flag.GAP)
            lane.new_hole = not usable[-1]
            apart = abs(lane.map.time_at(position[-1]) - times[-1])  # more than rounding only where samples are paired
            impossible = lane.lag_s - min(0.0, lane.spec.lag_s) < -MOST_AHEAD_S
            if lane.uncertainty > self.settings.uncertain_ms * 1e-3 or apart > 0.75 / self.sfreq or impossible:
                flags |= np.uint32(Flag.CLOCK_UNCERTAIN)
            if (counted := lane.counted(position)) is not None:
                flags[counted] |= np.uint32(Flag.CLOCK_UNCERTAIN)
        absent = frozenset[str]().union(*(lane.absent for lane in self._lanes))
        block = SensorBlock(self.channels, np.vstack(rows), times, flags, received, self._next_hop * self.hop, absent)
        return AlignedHop(block, float(intended))

    def report(self) -> dict[Modality, LaneReport]:
        """State of each stream's clock."""
        return {lane.spec.modality: lane.report() for lane in self._lanes}

    def uncertainty_ms(self) -> float | None:
        """Two standard deviations of the time between the modalities, by the newest report; None for one modality alone."""
        lanes = self.newest_report.values()
        return math.hypot(*(lane.uncertainty_ms for lane in lanes)) if len(lanes) > 1 else None

    def first_stamp(self, modality: Modality) -> float:
        """Stamp of sample number 0 of one stream, as it came; NaN before it came."""
        return self._lane(modality).first_stamp

    def clock_known(self, modality: Modality) -> bool:
        """Whether the sender's clock has been measured."""
        return self._lane(modality).clock.ready

    def time_map(self, modality: Modality) -> TimeMap:
        """The map from sample numbers of one stream to LSL time."""
        return self._lane(modality).map


def _join(blocks: list[RawBlock]) -> RawBlock:
    return RawBlock(
        np.vstack([block.data.T for block in blocks]).T,
        np.concatenate([block.stamps for block in blocks]),
        np.concatenate([block.received for block in blocks]),
        blocks[0].first,
        sum(block.lost for block in blocks),
    )
