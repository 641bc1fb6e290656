"""Which moment of the recent past is shown: the newest, a held one, or one that moves on at its own speed."""

from __future__ import annotations

from enum import Enum

SPEEDS = (1.0, 0.5, 0.25, 0.1)


class Mode(Enum):
    """LIVE follows the newest frame, PAUSED holds one, PLAYING moves on from where it was."""

    LIVE = "live"
    PAUSED = "paused"
    PLAYING = "playing"


class Playback:
    """A cursor on the time axis of the history. It reads no clock: `advance` is told how much time has passed.

    A moment that the history forgets while it is shown gives way to the oldest that is left, and `forgotten` says so.

    Parameters
    ----------
    frame_s : float
        Seconds from one frame to the next: what a step is.
    """

    def __init__(self, frame_s: float) -> None:
        if not frame_s > 0:
            raise ValueError(f"playback: frames of {frame_s:g} s; more than 0 is expected")
        self.frame_s = frame_s
        self.mode = Mode.LIVE
        self.speed = 1.0
        self.forgotten = False
        self._shown: float | None = None
        self._span: tuple[float, float] | None = None

    @property
    def shown(self) -> float | None:
        """Seconds on the time axis of the history; None while there is no history."""
        return self._shown

    @property
    def behind_s(self) -> float:
        """How far what is shown lies behind the newest frame."""
        return 0.0 if self._span is None or self._shown is None else self._span[1] - self._shown

    def advance(self, span: tuple[float, float] | None, elapsed_s: float) -> float | None:
        """The moment to show now.

        Parameters
        ----------
        span : (oldest, newest) moment of the history; None while it is empty
        elapsed_s : since the last call; only PLAYING moves by it
        """
        self._span = span
        if span is None:
            self._shown = None
            return None
        oldest, newest = span
        if self.mode is Mode.LIVE or self._shown is None:
            self._shown = newest
        elif self.mode is Mode.PLAYING:
            self._shown += self.speed * elapsed_s
            if self._shown >= newest and self.speed >= 1:
                self.live()
        self.forgotten = self.mode is not Mode.LIVE and self._shown < oldest
        self._shown = min(max(self._shown, oldest), newest)
        return self._shown

    def live(self) -> None:
        """Return to the newest frame and follow it."""
        self.mode, self.speed, self.forgotten = Mode.LIVE, 1.0, False
        if self._span is not None:
            self._shown = self._span[1]

    def pause(self) -> None:
        """Hold what is shown now."""
        self.mode = Mode.PAUSED

    def play(self, speed: float | None = None) -> None:
        """Move on from what is shown now, at `speed` (None: the one before); at 1 or faster it becomes live again at the
        newest frame."""
        if speed is not None:
            if not speed > 0:
                raise ValueError(f"playback: speed {speed:g}; more than 0 is expected")
            self.speed = speed
        self.mode = Mode.PLAYING

    def toggle(self) -> None:
        """Hold, or play on."""
        if self.mode is Mode.PAUSED:
            self.play()
        else:
            self.pause()

    def slower(self) -> None:
        """Play at the next slower speed of `SPEEDS`; after the slowest comes the fastest."""
        slower = [speed for speed in SPEEDS if speed < self.speed] if self.mode is Mode.PLAYING else list(SPEEDS[1:])
        self.play(slower[0] if slower else SPEEDS[0])

    def scrub(self, moment: float) -> None:
        """Hold another moment, at most so far back or ahead as the history reaches."""
        self.mode = Mode.PAUSED
        if self._span is not None:
            self._shown = min(max(moment, self._span[0]), self._span[1])
            self.forgotten = False

    def step(self, n_frames: int) -> None:
        """Hold the moment so many frames later (earlier if negative)."""
        if self._shown is None:
            self.mode = Mode.PAUSED
        else:
            self.scrub(self._shown + n_frames * self.frame_s)

    def words(self) -> str:
        """What is shown, for the status line."""
        if self.mode is Mode.LIVE:
            return "LIVE"
        speed = "" if self.mode is Mode.PAUSED else f" ×{self.speed:g}"
        reach = ", no older is kept" if self.forgotten else ""
        return f"{self.mode.value.upper()}{speed}, {self.behind_s:.1f} s behind{reach}"
