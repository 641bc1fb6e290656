"""Times of samples whose stamps are broken: by counting them, and by when the fastest of them arrived.

Samples are numbered as they come. None can arrive before it was taken, and whatever happens on the way only delays it: so
the line of the sampling clock lies below all (number, time of receipt), and the highest such line is what is known of it,
the lower envelope of the arrivals. Only the last sample of what was pulled at once says something: those before it have
waited.

What this cannot see: the part of the delay that all samples have in common (transport, and the device's own lag). It stays
in the times, unknown, unless ``lag_ms`` is measured with these very settings. And a hole: lost samples shift the count
against time. That is found when the arrivals have stayed later than they should be for 1 to 6 s, if by more than their
jitter; samples between the loss and its discovery are early by it. A smaller hole is taken for drift, until it is forgotten.
"""

from __future__ import annotations

import math
from array import array
from typing import Literal

import numpy as np

from rt_mmdf.alignment.line_fit import Line, median
from rt_mmdf.alignment.rate_check import RateCheck
from rt_mmdf.alignment.time_map import OwnClock, SenderClock
from rt_mmdf.alignment.timeline import KNOT_S, FittedTimeline, Placement, Stamping, Timeline, wrong_rate
from rt_mmdf.core.blocks import Float64

Timing = Stamping | Literal["arrival"]

LEARN_S = 2.0  # of arrivals, the best of which begins the line
FEW_ARRIVALS = 4  # and at least so many pulls, in at most ten times as long
EAGER_KNOTS = 30  # the line is renewed at each knot of the first 3 s,
LAZY_KNOTS = 5  # then at each of so many
WINDOW_S = 60.0  # of arrivals that the line looks back on
RATE_SD = 1e-4  # crystals are within 100 ppm of their nominal rate, most of them
ARRIVAL_FLOOR_S = 5e-5  # no time of receipt is trusted beyond this: a thread has to wake up
N_CONFIRM, N_SURE = 50, 10  # knots, 5 s and 1 s, that a step of the arrivals must last: a small one, and one beyond doubt
SURE_S = 0.1  # that one: so much, and 20 times as much as arrivals are late as a rule
MAX_GAP_S = 60.0  # a longer hole is not counted: numbers and line begin anew
N_HALVINGS = 40


class ArrivalTimeline(FittedTimeline):
    """Does what `Timeline` does, from times of receipt in place of stamps; its sender's clock is this machine's.

    The result depends on the sequence of these times alone, not on how it was cut into calls.

    Parameters
    ----------
    sfreq : float
        Nominal sampling rate, Hz.
    name : str
        Of the stream, for messages.

    Attributes
    ----------
    counts : TimelineCounts
        ``gaps`` and ``lost`` by the steps of the arrivals; ``restarts``: how often samples came earlier than was possible by
        the line, so that the line began anew (it had been learnt from late ones, or samples came twice).
    epoch : int
        Goes up when times before and after cannot be compared.
    """

    def __init__(self, sfreq: float, name: str = "a stream") -> None:
        super().__init__(sfreq, name)
        self._begin_epoch(0)

    def _begin_epoch(self, index: int) -> None:
        self._begin_line(index)
        self._newest: tuple[int, float] | None = None  # number and receipt of a sample whose successor decides what it says
        self._best: tuple[float, float] | None = None  # nominal time and receipt less nominal time, best since the knot
        self._x, self._y = array("d"), array("d")  # the best of each knot
        self._late = 0.0  # median of what they are late by
        self._spread = 0.0
        self._rate_check = RateCheck(self.sfreq, shared_stamps=True)
        self._begins_anew = False  # with the next samples

    @property
    def jitter_sd(self) -> float:
        """Spread of the best arrivals of each knot about the line, seconds."""
        return self._spread

    def place(self, received: Float64) -> Placement:
        """Number as many of these samples as can be decided, up to the next knot.

        Parameters
        ----------
        received : (n,) float64
            When the samples that follow those consumed so far were received; never decreasing.

        Raises
        ------
        StreamDescriptionError
            Samples arrive at another rate than the nominal one.
        """
        if self._begins_anew:
            self.epoch += 1
            self._begin_epoch(self._next + 1)  # one number is left out: a hole that nothing is joined over
        if self._line is None and not self._learn(received):
            return Placement(0, np.empty(0, np.intp), np.empty(0, np.int64), False)
        n = min(len(received), self._next_knot - self._next)
        if n:
            self._look(received[:n])
            if (rate := self._rate_check.add(received[:n])) is not None:
                raise wrong_rate(self.name, self.sfreq, rate, "arrivals")
        self.counts.received += n
        index = np.arange(self._next, self._next + n)
        self._next += n
        knot = self._next == self._next_knot
        if knot:
            self._next_knot += self._knot
            self._pass_knot()
        return Placement(n, np.arange(n), index, knot)

    def _learn(self, received: Float64) -> bool:
        n_learn = round(LEARN_S * self.sfreq)
        if len(received) < n_learn:
            return False
        for n in (n_learn, 10 * n_learn):  # not as many as happen to be at hand: cuts must not matter
            last = np.flatnonzero(np.diff(received[:n]))
            if len(last) >= FEW_ARRIVALS or n == len(received) == 10 * n_learn:
                break
            if len(received) < 10 * n_learn:
                return False
        last = last if len(last) else np.array([n - 1])
        beyond = received[last] - last / self.sfreq
        self._origin_time = float(beyond.min())
        self._spread = float(np.median(beyond - self._origin_time))
        self._line = Line(0.0, 0.0, 0.0, max(ARRIVAL_FLOOR_S, self._spread / 2), RATE_SD)
        self._learnt_until = self._next + n
        return True

    def _look(self, received: Float64) -> None:
        """Keep the best of the arrivals that are decided: of samples whose successor came later."""
        last = np.flatnonzero(received[1:] != received[:-1])
        index, at = self._next + last, received[last]
        if self._newest is not None and self._newest[1] != received[0]:
            index = np.concatenate([[self._newest[0]], index])
            at = np.concatenate([[self._newest[1]], at])
        self._newest = self._next + len(received) - 1, float(received[-1])
        if not len(index):
            return
        line = self._line
        assert line is not None, "the first samples have been learnt"
        nominal = (index - self._origin_index) / self.sfreq
        beyond = at - self._origin_time - nominal
        best = int(np.argmin(beyond - line.slope * nominal))
        found = float(nominal[best]), float(beyond[best])
        if self._best is None or found[1] - line.slope * found[0] < self._best[1] - line.slope * self._best[0]:
            self._best = found

    def _pass_knot(self) -> None:
        line = self._line
        assert line is not None, "the first samples have been learnt"
        self._knots += 1
        if self._best is not None:
            x, y = self._best
            self._best = None
            least = max(0.75 / self.sfreq, self._late, 3 * line.sd(x))
            if len(self._x) and y < line(x) - least and self._next > self._learnt_until:
                del self._x[:], self._y[:]  # no sample arrives before it was taken: the line was too late
                self._line = Line(x, y, line.slope, max(ARRIVAL_FLOOR_S, self._late), line.slope_sd)
                self.counts.restarts += 1
                self._knots = 0
            self._x.append(x)
            self._y.append(y)
            if len(self._x) > WINDOW_S / KNOT_S:
                del self._x[0], self._y[0]
        if self._next <= self._learnt_until or not len(self._x):
            return
        if self._knots <= EAGER_KNOTS or self._knots % LAZY_KNOTS == 0:
            self._find_hole(np.array(self._x), np.array(self._y))
            self._renew(np.array(self._x), np.array(self._y))

    def _renew(self, x: Float64, y: Float64) -> None:
        self._line = lower_envelope(x, y, RATE_SD)
        late = y - (self._line.value + self._line.slope * (x - self._line.at))
        self._late, self._spread = median(late), float(late.std())

    def _find_hole(self, x: Float64, y: Float64) -> None:
        """Arrivals that stay late: so many samples were lost."""
        line = self._line
        assert line is not None, "the first samples have been learnt"
        for n, least in (
            (N_SURE, max(SURE_S, 20 * self._late)),
            (N_CONFIRM, max(1.5 / self.sfreq, 2 * self._late + 3 * line.value_sd)),
        ):
            if len(x) < 2 * n:
                continue
            if least_above(line, x[-n:], y[-n:]) <= self._late:
                continue
            # the line has begun to follow: what counts is where it was
            before, sure = lower_envelope(x[:-n], y[:-n], RATE_SD), n // 2
            if least_above(before, x[-n:], y[-n:]) <= least:
                continue
            # the oldest of these may be from before the hole, and late by chance
            step = least_above(before, x[-sure:], y[-sure:])
            self.counts.gaps += 1
            if step > MAX_GAP_S:
                self._begins_anew = True
                return
            missing = max(1, round(step * self.sfreq))
            self.counts.lost += missing
            self._next += missing
            self._next_knot += missing
            if self._newest is not None:
                self._newest = self._newest[0] + missing, self._newest[1]
            del self._x[-n:-sure], self._y[-n:-sure]
            for k in range(-sure, 0):
                self._x[k] += missing / self.sfreq
                self._y[k] -= missing / self.sfreq
            return


def timeline_of(timing: Timing, sfreq: float, name: str) -> tuple[Timeline | ArrivalTimeline, SenderClock]:
    """What numbers the samples of a stream, and the clock that its times are on.

    Parameters
    ----------
    timing : str
        What a stamp means, see `Timeline`; or ``"arrival"``: nothing, and the clock is this machine's.
    sfreq : float
        Nominal sampling rate, Hz.
    name : str
        Of the stream, for messages.
    """
    if timing == "arrival":
        return ArrivalTimeline(sfreq, name), OwnClock()
    return Timeline(sfreq, timing, name), SenderClock()


def least_above(line: Line, x: Float64, y: Float64) -> float:
    """Of these points, how much the lowest is above the line."""
    return float((y - line.value - line.slope * (x - line.at)).min())


def lower_envelope(x: Float64, y: Float64, slope_sd: float) -> Line:
    """The highest line below all points, with its slope drawn from N(0, slope_sd^2) a priori.

    Most likely where the delays above the line are exponential, of a mean that is taken from the points (a line below all
    one-way delays, for clock skew: Moon, Skelly and Towsley 1999, doi 10.1109/INFCOM.1999.749287). The prior counts while
    the points span too little time to tell the slope.

    Parameters
    ----------
    x, y : (n,) arrays, n >= 1
    slope_sd : float

    Returns
    -------
    Line
        Centred on the newest `x`. Its uncertainty is that of the line's touching the fastest points: the lateness of even
        these is of the order of ``mean / n``.
    """
    middle, n = float(x.mean()), len(x)
    centred = x - middle

    def height(slope: float) -> float:
        return float((y - slope * centred).min())

    slope, mean = 0.0, ARRIVAL_FLOOR_S
    for _ in range(2):
        mean = max(ARRIVAL_FLOOR_S, float(y.mean()) - height(slope))
        low, high = -5 * slope_sd, 5 * slope_sd

        def likelihood(slope: float, mean: float = mean) -> float:
            return n * height(slope) / mean - 0.5 * (slope / slope_sd) ** 2

        for _ in range(N_HALVINGS):  # it is concave
            third = (high - low) / 3
            if likelihood(low + third) < likelihood(high - third):
                low += third
            else:
                high -= third
        slope = (low + high) / 2
    span = float(x[-1] - x[0])
    known = mean / n  # how late the fastest ones are; the factors hold for uniform delays, too, and more than do for these
    steep = min(slope_sd, 8 * known / span) if span > 0 else slope_sd
    sd = math.hypot(ARRIVAL_FLOOR_S / 2, 4 * known + steep * span / 4)
    return Line(float(x[-1]), height(slope) + slope * float(x[-1] - middle), slope, sd, steep)
