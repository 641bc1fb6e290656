"""From raw stamps to an unbroken count of samples: gaps, duplicates, backward and unusable stamps are found here.

A stream's samples are numbered by its own sampling clock: the number goes up by one from sample to sample, and by more over
a hole. The stamps that came with the samples tell where the holes are, and serve as anchors of the sampling clock.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.alignment.line_fit import Line, Misfit, fit_line, median, newest_misfit, successive_spread
from rt_mmdf.alignment.rate_check import RateCheck
from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.errors import StreamDescriptionError

Stamping = Literal["per_sample", "first_of_block", "last_of_block"]

LEARN_S = 0.2  # samples that are looked at before the first is placed: gives the jitter of the stamps
LEARN_BLOCKS = 6  # of those that share one stamp
MAX_LEARN_FACTOR = 10  # blocks that share one stamp may be long: up to 2 s are waited for
KNOT_S = 0.1  # one anchor of the sampling clock for each of these
EAGER_KNOTS = 30  # the fit is renewed at each knot of the first 3 s,
LAZY_KNOTS = 5  # then at each of so many: it takes half a millisecond
WINDOW_S = 60.0  # of anchors that the fit looks back on
RATE_SD = 1e-4  # crystals are within 100 ppm of their nominal rate, most of them
STAMP_FLOOR_S = 5e-6  # no stamp is trusted beyond this
MAX_BACKWARD_S = 0.5  # stamps further back than this are a new epoch of the sender's clock, not repeated samples
MAX_GAP_S = 60.0  # stamps further ahead than this are a new epoch, too: the clock was set, or there was a long pause
FOLLOWERS = 2  # stamps after a doubtful one that decide what it was
CONFIRM_S = 0.125  # a hole is believed when the stamps have not come back for so many samples: chunks are mostly shorter
MAX_LATE_S = 2.0  # stamps later than this are a hole without waiting whether the sender catches up
SURE_JITTER = 1 / 12  # of a sample: up to here the size of a hole, six sd, is told by one stamp
SPREAD_KNOTS = 30  # newest anchors that tell how far stamps of different knots are apart,
MOST_JITTER_S = 0.02  # holes and steps back that are larger have other causes
SPREAD_STEPS = 4  # by at least so many differences: of blocks up to 0.75 s
FEW_ANCHORS = 10  # fits to fewer are no better than the jitter, however well they fit
KEPT_RATE_SD = 1e-5  # of a rate that was fitted before a hole of doubtful size, at least


@dataclass(slots=True)
class TimelineCounts:
    """What was found since the start. Samples unless said otherwise."""

    received: int = 0
    gaps: int = 0  # holes
    lost: int = 0  # in those holes
    duplicates: int = 0  # dropped: their stamp had been seen
    backward: int = 0  # dropped: their stamp lies between stamps that had been seen
    bad_stamps: int = 0  # kept: only the stamp was unusable, or late
    restarts: int = 0  # the sender's clock went back by more than `MAX_BACKWARD_S`, or on by more than `MAX_GAP_S`

    def as_dict(self) -> dict[str, int]:
        """By name, for reports."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where samples belong.

    consumed : samples of the input that are decided; the others must be offered again with their successors
    keep : (n_kept,) positions in the input
    index : (n_kept,) int64, number of each kept sample on the stream's sampling clock
    knot : the fit of the sampling clock was renewed after the last of these samples
    """

    consumed: int
    keep: NDArray[np.intp]
    index: NDArray[np.int64]
    knot: bool


class _Verdict(NamedTuple):
    """What a stamp that does not fit means."""

    kind: Literal["undecided", "bad stamp", "late", "gap", "repeated", "new epoch"]
    gap_s: float = 0.0  # size of the hole by the stamps
    n_late: int = 0  # samples from this one until the stamps fit again


class FittedTimeline:
    """Numbers of samples, and their times by a line: what timelines by stamps and by arrivals have in common.

    Attributes
    ----------
    name, sfreq : of the stream
    counts : TimelineCounts
    epoch : int
        Goes up when times before and after cannot be compared.
    misfit : Misfit
        Of the newest times.
    """

    def __init__(self, sfreq: float, name: str) -> None:
        self.name = name
        self.sfreq = sfreq
        self.counts = TimelineCounts()
        self.epoch = 0
        self._knot = max(1, round(KNOT_S * sfreq))
        self._begin_line(0)

    def _begin_line(self, index: int) -> None:
        self._next = index  # number of the next sample
        self._next_knot = index + self._knot
        self._origin_index, self._origin_time = index, 0.0
        self._line: Line | None = None  # time less nominal time, over nominal time since the origin, seconds
        self._learnt_until = index  # samples up to here have been looked at for the begin of the fit
        self._knots = 0
        self.misfit = Misfit()

    @property
    def next_index(self) -> int:
        """Number that the next sample gets if nothing is missing before it."""
        return self._next

    @property
    def ready(self) -> bool:
        """Whether the first samples have been placed."""
        return self._line is not None

    def sender_time(self, index: float) -> float:
        """Time of sample number `index` by the line, on the clock that tells the times."""
        assert self._line is not None, "no sample has been placed yet"
        nominal = (index - self._origin_index) / self.sfreq
        return self._origin_time + nominal + self._line(nominal)

    def sender_time_sd(self, index: float) -> float:
        """Standard deviation of `sender_time`, seconds; infinite before the first samples are placed."""
        if self._line is None:
            return float("inf")
        return self._line.sd((index - self._origin_index) / self.sfreq)

    @property
    def rate_error(self) -> float:
        """How much longer a sampling interval is than nominal: 1e-4 where samples come 100 ppm too slowly."""
        return 0.0 if self._line is None else self._line.slope

    @property
    def rate_error_sd(self) -> float:
        """Standard deviation of `rate_error`; infinite before the first samples are placed."""
        return float("inf") if self._line is None else self._line.slope_sd


class Timeline(FittedTimeline):
    """Numbers the samples of one stream by its sampling clock, and fits that clock on the sender's.

    The result depends on the sequence of stamps alone, not on how it was cut into calls. One placement ends at a knot at the
    latest, so that whoever follows the fit follows it at the same samples however the stream was cut.

    Parameters
    ----------
    sfreq : float
        Nominal sampling rate, Hz.
    stamping : str
        What a stamp means: the time of its own sample, or of the first or last sample of the block of samples that all
        carry this stamp. Blocks stamped with their last sample must be of constant length: the stamp comes with the first.
    name : str
        Of the stream, for messages.

    Attributes
    ----------
    counts : TimelineCounts
    epoch : int
        Goes up when the sender's clock was set: times before and after cannot be compared.
    """

    def __init__(self, sfreq: float, stamping: Stamping = "per_sample", name: str = "a stream") -> None:
        super().__init__(sfreq, name)
        self.stamping = stamping
        self._begin_epoch(0)

    def _begin_epoch(self, index: int) -> None:
        self._begin_line(index)
        self._jitter = self._within = self._between = 0.0  # of the spreads within knots and from knot to knot
        # one anchor a knot, and the residuals since the last knot; times in x, stamps less nominal times in y
        self._anchor_x, self._anchor_y = array("d"), array("d")
        self._new_x, self._new_y = array("d"), array("d")
        # numbers and residuals of small holes and steps back, by no whole samples
        self._doubts: deque[tuple[int, float]] = deque()
        self._rate, self._rate_sd = 0.0, RATE_SD  # of the sampling clock, before the anchors are looked at
        self._late_until = index  # samples up to here whose stamps do not fit are late, nothing is lost before them
        self._last_stamp = float("nan")  # as it came: samples of one block share it
        self._in_block = 0  # samples of the present block so far
        self._block_length = 1
        self._repeated_stamp = float("nan")  # of a block that is being dropped
        self._rate_check = RateCheck(self.sfreq, shared_stamps=self.stamping != "per_sample")

    @property
    def jitter_sd(self) -> float:
        """Spread of the stamps about the fit, seconds."""
        return self._jitter

    def place(self, stamps: Float64) -> Placement:
        """Number as many of these samples as can be decided, up to the next knot.

        Parameters
        ----------
        stamps : (n,) float64
            Raw stamps of the samples that follow those consumed so far.

        Raises
        ------
        StreamDescriptionError
            The stamps tell another sampling rate than the nominal one, or there are none.
        """
        if self._line is None and not self._learn(stamps):
            return Placement(0, np.empty(0, np.intp), np.empty(0, np.int64), False)
        placement = self._place_regular(stamps) or self._place_one_by_one(stamps)
        if placement is None:  # a new epoch has begun with these stamps
            return self.place(stamps)
        if (rate := self._rate_check.add(stamps[: placement.consumed])) is not None:
            raise wrong_rate(self.name, self.sfreq, rate, "time stamps")
        return placement

    def _place_regular(self, stamps: Float64) -> Placement | None:
        """What `_place_one_by_one` does with samples that are all as expected, in one go; None where one is not."""
        if self.stamping != "per_sample" or len(stamps) == 0:
            return None
        line = self._line
        assert line is not None, "the first samples have been learnt"
        n = min(len(stamps), self._next_knot - self._next)
        index = np.arange(self._next, self._next + n)
        nominal = (index - self._origin_index) / self.sfreq
        on_line = line.value + line.slope * (nominal - line.at)
        residual = stamps[:n] - (self._origin_time + nominal + on_line)
        if not np.abs(residual).max() <= self._tolerance:  # NaN, too
            return None
        self.counts.received += n
        self._new_x.extend(nominal.tolist())
        self._new_y.extend((residual + on_line).tolist())
        self._last_stamp = float(stamps[n - 1])
        self._next += n
        return Placement(n, np.arange(n), index, self._pass_knot())

    def _place_one_by_one(self, stamps: Float64) -> Placement | None:
        """Judge each stamp; None where the first one has begun a new epoch, and nothing has been placed."""
        keep: list[int] = []
        numbers: list[int] = []
        values = stamps.tolist()
        position = 0
        while position < len(values) and self._next < self._next_knot:
            stamp = values[position]
            if stamp == self._repeated_stamp and self.stamping != "per_sample":
                self.counts.received += 1
                self.counts.duplicates += 1
                position += 1
                continue
            residual = self._residual(stamp)
            if residual is not None and abs(residual) > self._tolerance and self._next < self._late_until:
                residual = None
            if residual is not None and abs(residual) > self._tolerance:
                verdict = self._judge(residual, stamps, position)
                if verdict.kind == "undecided":
                    break
                if verdict.kind == "new epoch":
                    if position:
                        break  # it begins with a call of its own
                    self.counts.restarts += 1
                    self.epoch += 1
                    self._begin_epoch(self._next + 1)  # one number is left out: a hole that nothing is joined over
                    return None
                between_samples = abs(residual * self.sfreq - round(residual * self.sfreq)) >= 0.25
                if verdict.kind in ("repeated", "gap") and between_samples and abs(residual) < MOST_JITTER_S:
                    self._doubts.append((self._next, residual))
                if verdict.kind == "repeated":
                    self.counts.received += 1
                    self.counts.duplicates += not between_samples
                    self.counts.backward += between_samples
                    self._repeated_stamp = stamp
                    position += 1
                    continue
                if verdict.kind == "gap":
                    if position:
                        break  # a hole is in front of a placement, never inside
                    residual -= self._leave_out(verdict.gap_s)
                else:
                    self._late_until = self._next + verdict.n_late
                    residual = None
            if residual is None and self._is_anchor(stamp):
                self.counts.bad_stamps += 1
            self._count(stamp, residual)
            keep.append(position)
            numbers.append(self._next)
            self._next += 1
            position += 1
        return Placement(position, np.array(keep, np.intp), np.array(numbers, np.int64), self._pass_knot())

    def _pass_knot(self) -> bool:
        if self._next < self._next_knot:
            return False
        self._renew_fit()
        self._next_knot = self._next + self._knot
        return True

    def _learn(self, stamps: Float64) -> bool:
        """Begin the fit from the first samples of an epoch; False while there are too few."""
        n_learn = max(3, round(LEARN_S * self.sfreq))
        if len(stamps) < n_learn:
            return False
        if self.stamping == "per_sample":
            first = stamps[: MAX_LEARN_FACTOR * n_learn]
            finite = np.isfinite(first)
            n_needed = min((int(finite.argmax()) if finite.any() else len(stamps) + 1) + n_learn, MAX_LEARN_FACTOR * n_learn)
            if len(stamps) < n_needed:
                return False
            first = first[:n_needed]
            starts = np.flatnonzero(np.isfinite(first))
            same = int(np.count_nonzero(first[1:] == first[:-1]))
            if 3 * same > len(first):
                raise StreamDescriptionError(
                    f"{self.name} is described as stamped sample by sample (stamps = 'per_sample'), but {same} of its first "
                    f"{len(first)} samples carry the stamp of the sample before them: whole blocks share one stamp. Set "
                    "stamps = 'last_of_block' (what most senders mean) or 'first_of_block' for this stream."
                )
        else:  # the first block may be cut, so its length and stamp say nothing
            first = stamps[: MAX_LEARN_FACTOR * n_learn]
            starts = np.flatnonzero(np.isfinite(first[1:]) & (first[1:] != first[:-1])) + 1
            if len(starts) < LEARN_BLOCKS and len(stamps) < MAX_LEARN_FACTOR * n_learn:
                return False
            starts = starts[:LEARN_BLOCKS]
        if len(starts) == 0:
            raise StreamDescriptionError(
                f"the first {len(first)} samples of {self.name} carry no finite time stamp; LSL time stamps in seconds are "
                "expected. Restart the sender, or look at it with: rt-mmdf streams"
            )
        if self.stamping != "per_sample":
            self._block_length = int(np.median(np.diff(starts))) if len(starts) > 1 else len(first)
            self._last_stamp = float(stamps[0])
        offsets = first[starts] - starts / self.sfreq - self._lead
        self._origin_time = float(np.median(offsets))
        self._jitter = self._within = 1.4826 * float(np.median(np.abs(offsets - self._origin_time)))
        self._between = self._jitter
        self._line = Line(0.0, 0.0, 0.0, max(self._jitter, STAMP_FLOOR_S), RATE_SD)
        self._learnt_until = self._next + len(first)
        return True

    @property
    def _lead(self) -> float:
        """Seconds from the first sample of a block to the one that its stamp belongs to."""
        return (self._block_length - 1) / self.sfreq if self.stamping == "last_of_block" else 0.0

    @property
    def _tolerance(self) -> float:
        # 0.75 sample: nothing less can be a hole; 6 sd: jitter passes this once in 5e8 stamps
        return max(0.75 / self.sfreq, 6 * self._jitter)

    def _is_anchor(self, stamp: float) -> bool:
        return self.stamping == "per_sample" or stamp != self._last_stamp

    def _residual(self, stamp: float) -> float | None:
        """Stamp less what the fit expects, for a sample whose stamp says something; None for the others."""
        if not math.isfinite(stamp) or not self._is_anchor(stamp):
            return None
        return stamp - self._lead - self.sender_time(self._next)

    def _judge(self, residual: float, stamps: Float64, position: int) -> _Verdict:
        """What a stamp that does not fit means, told by the stamps that follow it.

        Every answer is given by the stamps up to some sample, and not before that one has come: it must not depend on how
        many more are at hand.
        """
        n_confirm = max(FOLLOWERS + 1, round(CONFIRM_S * self.sfreq))
        n_late = 2 * n_confirm + (math.ceil(residual * self.sfreq) if 0 < residual <= MAX_LATE_S else 0)
        after, later = self._followers(stamps[position : position + n_late + 1])
        n_seen = min(len(stamps) - position - 1, n_late)
        if len(later) < FOLLOWERS:
            return _Verdict("undecided" if n_seen < n_late else "bad stamp")
        tolerance = self._tolerance
        # half the tolerance where jitter sets it: of a hole of 5 sd only one stamp in six is out, and the others must not
        # pass for a return to the line
        on_line = np.abs(later) <= max(0.75 / self.sfreq, tolerance / 2)
        if on_line[:FOLLOWERS].all():
            return _Verdict("bad stamp")
        if residual > MAX_GAP_S or residual <= -MAX_BACKWARD_S:
            # not while the fit has just begun with these very samples: beginning again would end the same
            return _Verdict("new epoch" if self._next >= self._learnt_until else "bad stamp")
        if residual < 0:
            return _Verdict("repeated")
        if residual <= MAX_LATE_S:
            # a sender that was held up and lost nothing catches up: the stamps come back to the line
            back = np.flatnonzero(on_line[:-2] & on_line[1:-1] & on_line[2:])
            n_watched = n_confirm
            if n_seen >= n_confirm:
                newest = later[after <= n_confirm][-FOLLOWERS - 1 :]
                if len(newest) and float(np.median(newest)) < residual - tolerance:
                    n_watched = n_late  # the samples come faster than nominal
            if len(back) and after[back[0] + 2] <= n_watched:
                return _Verdict("late", n_late=int(after[back[0]]))
            if n_seen < n_watched:
                return _Verdict("undecided")
        if self._jitter * self.sfreq <= SURE_JITTER:
            return _Verdict("gap", residual)
        if n_seen < n_confirm:
            return _Verdict("undecided")
        beyond = np.concatenate([[residual], later[after <= n_confirm]])
        level = float(np.median(beyond[: FOLLOWERS + 1]))
        alike = np.abs(beyond - level) <= tolerance
        n_alike = len(alike) if alike.all() else max(1, int(alike.argmin()))  # what comes after has a fault of its own
        return _Verdict("gap", float(np.median(beyond[:n_alike])))

    def _followers(self, stamps: Float64) -> tuple[NDArray[np.intp], Float64]:
        """Of the stamps after the first of these: how far behind it those are that say something, and their residuals."""
        line = self._line
        assert line is not None, "the first samples have been learnt"
        useful = np.isfinite(stamps[1:])
        if self.stamping != "per_sample":
            useful &= stamps[1:] != stamps[:-1]
        after = np.flatnonzero(useful) + 1
        nominal = (self._next + after - self._origin_index) / self.sfreq
        on_line = line.value + line.slope * (nominal - line.at)
        return after, stamps[after] - self._lead - (self._origin_time + nominal + on_line)

    def _leave_out(self, gap_s: float) -> float:
        """Leave out the numbers of a hole; returns what its first stamp is beyond the fit because of the hole, seconds."""
        missing = max(1, round(gap_s * self.sfreq))
        self.counts.gaps += 1
        self.counts.lost += missing
        self._next += missing
        self._in_block = 0
        if self._jitter * self.sfreq <= SURE_JITTER:
            return missing / self.sfreq
        # the number of lost samples is a guess, the time after them is not: the fit begins anew there, with the rate it had
        line = self._line
        assert line is not None, "the first samples have been learnt"
        at = (self._next - self._origin_index) / self.sfreq
        beyond = gap_s - missing / self.sfreq
        self._rate, self._rate_sd = line.slope, max(line.slope_sd, KEPT_RATE_SD)
        self._line = Line(at, line(at) + beyond, line.slope, max(self._jitter, 0.5 / self.sfreq), self._rate_sd)
        del self._anchor_x[:], self._anchor_y[:], self._new_x[:], self._new_y[:]
        self._knots, self.misfit = 0, Misfit()
        return gap_s

    def _count(self, stamp: float, residual: float | None) -> None:
        self.counts.received += 1
        if self.stamping != "per_sample" and math.isfinite(stamp):
            if stamp == self._last_stamp:
                self._in_block += self._in_block > 0  # a block that was joined in its middle has no known length
            else:
                if self._in_block:
                    self._block_length = self._in_block
                self._in_block = 1
        self._last_stamp = stamp
        if residual is not None:
            nominal = (self._next - self._origin_index) / self.sfreq
            assert self._line is not None
            self._new_x.append(nominal)
            self._new_y.append(residual + self._line(nominal))

    def _renew_fit(self) -> None:
        if not self._new_x:
            return
        y = np.array(self._new_y)
        middle = median(y)
        self._anchor_x.append(sum(self._new_x) / len(self._new_x))
        self._anchor_y.append(middle)
        self._within += 0.2 * (1.4826 * median(np.abs(y - middle)) - self._within)
        if len(self._anchor_x) >= FEW_ANCHORS:
            # of a block as long as a knot all stamps are late alike: nothing of its jitter is to be seen within the knot
            self._between = successive_spread(self._anchor_y[-SPREAD_KNOTS:], 4 * STAMP_FLOOR_S, SPREAD_STEPS)
        while self._doubts and self._next - self._doubts[0][0] > SPREAD_KNOTS * self._knot:
            self._doubts.popleft()
        residuals = np.array([residual for _, residual in self._doubts])
        if min(np.count_nonzero(residuals > 0), np.count_nonzero(residuals < 0)) >= SPREAD_STEPS // 2:
            # nobody loses half a sample and sends half a one again, in turns: more jitter than the first samples have shown
            self._between = max(self._between, median(np.abs(residuals)))
        self._jitter = math.hypot(self._within, self._between)
        del self._new_x[:], self._new_y[:]
        if len(self._anchor_x) > WINDOW_S / KNOT_S:
            del self._anchor_x[0], self._anchor_y[0]
        self._knots += 1
        if self._knots <= EAGER_KNOTS or self._knots % LAZY_KNOTS == 0:
            floor = STAMP_FLOOR_S if len(self._anchor_x) >= FEW_ANCHORS else max(STAMP_FLOOR_S, self._jitter)
            x = np.array(self._anchor_x)
            line = fit_line(x, np.array(self._anchor_y) - self._rate * x, None, self._rate_sd, floor)
            value, slope = line.value + self._rate * line.at, line.slope + self._rate
            self._line = Line(line.at, value, slope, line.value_sd, line.slope_sd)
        assert self._line is not None, "the first samples have been learnt"
        self.misfit = newest_misfit(self._line, self._anchor_x, self._anchor_y, self._jitter)


def wrong_rate(name: str, sfreq: float, rate: float, by: str) -> StreamDescriptionError:
    """What to raise where a stream announces `sfreq`, but its first stamps (or whatever it is told by) tell `rate`, Hz."""
    return StreamDescriptionError(
        f"{name} announces {sfreq:g} Hz, but its first {by} tell {rate:.5g} Hz ({1e6 * (rate / sfreq - 1):+.0f} ppm). "
        "Crystals are within 100 ppm: the sending program announces a wrong rate, or loses samples all the time. Correct "
        "that there; what is wrong cannot be aligned."
    )
