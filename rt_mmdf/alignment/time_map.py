"""From a stream's sample numbers to this machine's LSL time: continuous, monotone, slew-limited."""

from __future__ import annotations

from collections import deque

import numpy as np

from rt_mmdf.alignment.line_fit import Line, Misfit, fit_line, newest_misfit
from rt_mmdf.core.blocks import Float64
from rt_mmdf.lsl.interface import ClockOffset

DRIFT_SD = 1e-4  # computer clocks are within 100 ppm of each other, most of them
OFFSET_WINDOW_S = 120.0  # of measurements that the fit looks back on
OFFSET_FLOOR_S = 2e-5  # no measurement over a network stack is trusted beyond this
STEP_S = 0.05  # an offset that moves by more than this between two measurements was set, it did not drift
SLEW_PPM = 1000.0  # fastest correction: 1 ms in a second
CORRECTION_TIME_S = 1.0  # an error below the slew limit decays with this time constant
MAX_SLEWED_S = 0.05  # what would take longer than 50 s to correct is taken in one step, flagged as a gap


class SenderClock:
    """Robust fit of a sender's LSL clock against this machine's, from `ClockOffset` measurements.

    Attributes
    ----------
    steps : int
        How often the sender's clock was set.
    misfit : Misfit
        Of the newest measurements.
    """

    def __init__(self) -> None:
        self._measurements: deque[ClockOffset] = deque()
        self._suspect: ClockOffset | None = None
        self._restarted = False
        self._line: Line | None = None
        self.steps = 0
        self.misfit = Misfit()

    @property
    def ready(self) -> bool:
        return self._line is not None

    def add(self, measured: ClockOffset) -> None:
        """Take one measurement; one that contradicts the fit by more than 50 ms counts when a second one agrees with it, or
        where the sender has been started anew since the last one.
        """
        restarted, self._restarted = self._restarted, False
        if self._line is not None:
            limit = STEP_S + 5 * measured.uncertainty
            if abs(measured.offset - self._line(measured.at)) > limit:
                suspects = [] if self._suspect is None else [self._suspect]
                agreeing = [m for m in suspects if abs(measured.offset - m.offset) <= limit]
                if not (agreeing or restarted):
                    self._suspect = measured
                    return
                self._measurements = deque(agreeing)
                self.steps += 1
        self._suspect = None
        self._measurements.append(measured)
        while measured.at - self._measurements[0].at > OFFSET_WINDOW_S:
            self._measurements.popleft()
        at = np.array([m.at for m in self._measurements])
        offset = np.array([m.offset for m in self._measurements])
        # half the round trip bounds the error of a measurement; taken as two standard deviations
        noise = np.array([m.uncertainty / 2 for m in self._measurements])
        self._line = fit_line(at, offset, noise, DRIFT_SD, OFFSET_FLOOR_S)
        self.misfit = newest_misfit(self._line, at[-3:].tolist(), offset[-3:].tolist(), float(noise[-3:].max()))

    def sender_restarted(self) -> None:
        """Whatever was done to its clock meanwhile: the next measurement tells."""
        self._restarted = True

    def to_local(self, sender_time: float) -> float:
        """This machine's LSL time at `sender_time`."""
        assert self._line is not None, "no offset has been measured yet"
        return sender_time + self._line(sender_time)

    def offset(self, sender_time: float) -> float:
        """Seconds to add at `sender_time`."""
        assert self._line is not None, "no offset has been measured yet"
        return self._line(sender_time)

    @property
    def drift(self) -> float:
        """Change of the offset in seconds per second of the sender's clock."""
        return 0.0 if self._line is None else self._line.slope

    @property
    def drift_sd(self) -> float:
        """Standard deviation of `drift`; infinite before the first measurement."""
        return float("inf") if self._line is None else self._line.slope_sd

    def sd(self, sender_time: float) -> float:
        """Standard deviation of the offset, seconds; infinite before the first measurement."""
        return float("inf") if self._line is None else self._line.sd(sender_time)


class OwnClock(SenderClock):
    """This machine's own clock in the place of a sender's: nothing to measure, nothing uncertain."""

    def __init__(self) -> None:
        super().__init__()
        self._line = Line(0.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, measured: ClockOffset) -> None:
        """The sender's clock does not matter."""


class TimeMap:
    """Piecewise linear map from sample numbers to this machine's LSL time.

    A piece is fixed when its first sample has come, so whatever is mapped stays as it was mapped. At each knot the map bends
    towards the newest fit, by `SLEW_PPM` at most; it never jumps, unless it is more than `MAX_SLEWED_S` wrong.

    Parameters
    ----------
    sfreq : float
        Nominal sampling rate, Hz.
    history : int | None
        Knots that are kept for `index_at` and reports; None keeps all (10 a second).
    """

    def __init__(self, sfreq: float, history: int | None = 600) -> None:
        self._sfreq = sfreq
        self._index: deque[float] = deque(maxlen=history)
        self._time: deque[float] = deque(maxlen=history)
        self.keeps_all = history is None
        self._slope = 1.0 / sfreq  # seconds per sample after the last knot
        self.error = float("inf")  # of the map against the fit at the last knot, seconds
        self.steps = 0

    @property
    def ready(self) -> bool:
        return bool(self._index)

    def bend(self, index: int, target: float, interval: float) -> bool:
        """Begin a new piece at sample `index`.

        Parameters
        ----------
        index : int
            Number of the first sample of the piece.
        target : float
            Where the fits see that sample, seconds.
        interval : float
            Seconds from sample to sample, by the fits.

        Returns
        -------
        bool
            Whether the map jumped: samples on both sides must not be joined.
        """
        here = self.time_at(index) if self._index else target
        self.error = target - here
        jumped = bool(self._index) and abs(self.error) > MAX_SLEWED_S
        if jumped:
            self.steps += 1
            self._index.clear()
            self._time.clear()
            here, self.error = target, 0.0
        self._index.append(float(index))
        self._time.append(here)
        slew = min(max(self.error / CORRECTION_TIME_S, -SLEW_PPM * 1e-6), SLEW_PPM * 1e-6)
        self._slope = interval * (1.0 + slew)
        return jumped

    def restart(self) -> None:
        """Forget everything: the next `bend` begins anew."""
        self._index.clear()
        self._time.clear()

    def time_at(self, index: float) -> float:
        """This machine's LSL time of one sample, beyond the last knot by its slope."""
        if index >= self._index[-1]:
            return self._time[-1] + (index - self._index[-1]) * self._slope
        return float(self.times_at(np.array([index]))[0])

    def _newest(self, n: int = 16) -> tuple[list[float], list[float]]:
        """The last knots: all that the stream's thread ever asks for, unless it is far behind."""
        n = min(n, len(self._index))  # a deque is quick at its ends alone: counted from the right, however long it is
        return [self._index[k] for k in range(-n, 0)], [self._time[k] for k in range(-n, 0)]

    def times_at(self, index: Float64) -> Float64:
        """`time_at` of many samples, increasing; before the first knot by nominal rate."""
        last = self._time[-1] + (index - self._index[-1]) * self._slope
        if index[0] >= self._index[-1]:
            return last
        knots, times = self._newest()
        if index[0] < knots[0]:
            knots, times = list(self._index), list(self._time)
        inside = np.where(index >= knots[-1], last, np.interp(index, knots, times))
        before: Float64 = np.where(index < knots[0], times[0] + (index - knots[0]) / self._sfreq, inside)
        return before

    def indices_at(self, times: Float64) -> Float64:
        """Sample numbers, with fractions, at these times (increasing); before the first knot by nominal rate."""
        last = self._index[-1] + (times - self._time[-1]) / self._slope
        if times[0] >= self._time[-1]:
            return last
        knots, at = self._newest()
        if times[0] < at[0]:
            knots, at = list(self._index), list(self._time)
        inside = np.where(times >= at[-1], last, np.interp(times, at, knots))
        before: Float64 = np.where(times < at[0], knots[0] + (times - at[0]) * self._sfreq, inside)
        return before

    def knots(self) -> tuple[Float64, Float64]:
        """The kept knots: sample numbers and their times."""
        return np.array(self._index), np.array(self._time)
