"""What has gone wrong: one book of it, told in the log as it happens, in the health stream and in the scorecard."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

N_NEWEST = 20
"""Incidents that a health report lists, beside those that last."""
N_OPEN_TOLD = 20
BURST, PER_S = 4, 10.0
"""Lines of the log for one kind and subject within so many seconds; the rest are counted and told later."""
MAX_TOPICS = 256
"""Pairs of kind and subject whose lines are counted; of more, the one that was told longest ago is forgotten."""
MAX_PLACES = 256
MAX_DETAIL = 600


@dataclass
class Incident:
    """One fact.

    kind, subject : what happened (``stall``), and to what (``eeg``, ``engine``, ...)
    began, noticed, ended : seconds on this machine's LSL clock; `ended` is None while it lasts
    count : how often, or how many samples, hops, channels: what `detail` says
    detail : a sentence for people
    """

    kind: str
    subject: str
    began: float
    noticed: float
    ended: float | None
    count: int
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the health stream."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "began": self.began,
            "noticed": self.noticed,
            "ended": self.ended,
            "count": self.count,
            "detail": self.detail,
        }


class Incidents:
    """The book; every method may be called from any thread.

    Each fact is one line of the log, ``key=value`` with the detail last as a quoted text, at most `BURST` lines for one
    kind and subject within `PER_S`; how many were left out is told in the next one. The book keeps the newest `N_NEWEST`
    facts, those that last, and a count of each kind: it never grows.

    Parameters
    ----------
    now : callable
        This machine's LSL time, seconds.
    on_change : callable | None
        Called when a fact was noted, has begun or has ended; must be quick.

    Attributes
    ----------
    n_changes : int
        Goes up with each fact that was noted, has begun or has ended.
    """

    def __init__(self, now: Callable[[], float], on_change: Callable[[], None] | None = None) -> None:
        self._now = now
        self._on_change = on_change
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], Incident] = {}
        self._newest: deque[Incident] = deque(maxlen=N_NEWEST)
        self._counts: dict[str, int] = {}
        self._topics: OrderedDict[tuple[str, str], _Topic] = OrderedDict()
        self._places: set[tuple[str, int, str]] = set()
        self.n_changes = 0

    def note(self, kind: str, subject: str, detail: str, count: int = 1, *, began: float | None = None) -> None:
        """A fact that takes no time, or is over already (`began` says since when)."""
        now = self._now()
        self._add(Incident(kind, subject, now if began is None else began, now, now, count, detail[:MAX_DETAIL]), "noted")

    def begin(self, kind: str, subject: str, detail: str, count: int = 1, *, began: float | None = None) -> bool:
        """Something that lasts has begun; nothing happens while it lasts already. Returns whether it is new."""
        with self._lock:
            if (kind, subject) in self._open:
                return False
            now = self._now()
            at = now if began is None else began
            incident = self._open[kind, subject] = Incident(kind, subject, at, now, None, count, detail[:MAX_DETAIL])
        self._add(incident, "began")
        return True

    def go_on(self, kind: str, subject: str, detail: str, count: int = 1) -> None:
        """Something that lasts has begun, or `count` more of it has come and it is as `detail` says now."""
        with self._lock:
            incident = self._open.get((kind, subject))
            if incident is not None:
                incident.count += count
                incident.detail = detail[:MAX_DETAIL]
        if incident is None:
            self.begin(kind, subject, detail, count)

    def update(self, kind: str, subject: str, detail: str, count: int) -> None:
        """Something that lasts has begun, or is another thing than before, which is a fact of its own."""
        if not self.begin(kind, subject, detail, count):
            with self._lock:
                incident = self._open[kind, subject]
                incident.count, incident.detail = count, detail[:MAX_DETAIL]
            self._tell(incident, "changed")
            self._changed()

    def end(self, kind: str, subject: str, detail: str = "") -> bool:
        """It is over, and how it was (`detail`, where given); nothing happens where it had not begun."""
        with self._lock:
            incident = self._open.pop((kind, subject), None)
            if incident is None:
                return False
            incident.ended = self._now()
            incident.detail = (detail or incident.detail)[:MAX_DETAIL]
        self._tell(incident, "ended")
        self._changed()
        return True

    def lasts(self, kind: str, subject: str) -> bool:
        """Whether it has begun and not ended."""
        return (kind, subject) in self._open

    def failed(self, kind: str, subject: str, error: BaseException, doing: str) -> None:
        """Note an error, and log where it comes from."""
        self.note(kind, subject, f"{doing}: {type(error).__name__}: {error}")
        self.trace(kind, subject, error)

    def trace(self, kind: str, subject: str, error: BaseException) -> None:
        """Log where an error comes from, in full, once for each distinct place in the code."""
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = (where[0].filename, where[0].lineno or 0, type(error).__name__) if where else ("", 0, type(error).__name__)
        with self._lock:
            new = place not in self._places and len(self._places) < MAX_PLACES
            self._places.add(place)
        if new:
            logger.error("%s %s: where it was raised (told once)", kind, subject, exc_info=error)

    def _add(self, incident: Incident, state: str) -> None:
        with self._lock:
            self._newest.append(incident)
            self._counts[incident.kind] = self._counts.get(incident.kind, 0) + 1
        self._tell(incident, state)
        self._changed()

    def _changed(self) -> None:
        self.n_changes += 1
        if self._on_change is not None:
            self._on_change()

    def _tell(self, incident: Incident, state: str) -> None:
        topic, now = (incident.kind, incident.subject), self._now()
        with self._lock:
            told = self._topics.setdefault(topic, _Topic())
            self._topics.move_to_end(topic)
            while len(self._topics) > MAX_TOPICS:
                self._topics.popitem(last=False)
            while told.lines and now - told.lines[0] > PER_S:
                told.lines.popleft()
            if len(told.lines) >= BURST:
                told.suppressed += 1
                told.last = (incident, state)
                return
            told.lines.append(now)
            suppressed, told.suppressed = told.suppressed, 0
        _log(incident, state, now, suppressed)

    def settle(self) -> None:
        """Tell what was left out of the log, where its time has come; to be called now and then."""
        now, due = self._now(), []
        with self._lock:
            for told in self._topics.values():
                if told.suppressed and told.last is not None and now - told.lines[0] > PER_S:
                    due.append((*told.last, told.suppressed - 1))
                    told.lines.append(now)
                    told.suppressed = 0
        for incident, state, suppressed in due:
            _log(incident, state, now, suppressed)

    @property
    def counts(self) -> dict[str, int]:
        """How many facts of each kind there were."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def status(self) -> dict[str, Any]:
        """For the health stream: ``incidents`` of `rt_mmdf.sinks.health`."""
        with self._lock:
            lasting = list(self._open.values())
            return {
                "counts": dict(sorted(self._counts.items())),
                "n_lasting": len(lasting),
                "lasting": [incident.as_dict() for incident in lasting[-N_OPEN_TOLD:]],
                "newest": [incident.as_dict() for incident in self._newest],
            }


class _Topic:
    """What the log has been told of one kind and subject."""

    def __init__(self) -> None:
        self.lines: deque[float] = deque()  # when, the last `BURST` of them
        self.suppressed = 0
        self.last: tuple[Incident, str] | None = None


def _log(incident: Incident, state: str, now: float, suppressed: int) -> None:
    # what lasts and is over took so long; json: one line, quoted, whatever the names on the network hold
    lasted = f" seconds={now - incident.began:.2f}" if state == "ended" else ""
    logger.warning(
        "incident=%s subject=%s state=%s lsl_time=%.3f count=%d%s suppressed=%d detail=%s",
        incident.kind,
        json.dumps(incident.subject) if " " in incident.subject else incident.subject,
        state,
        now,
        incident.count,
        lasted,
        suppressed,
        json.dumps(incident.detail, ensure_ascii=False),
    )


class Growing:
    """Counters that must not grow: while one does, something lasts; it is over when it has stood still for `quiet_s`.

    Parameters
    ----------
    incidents : Incidents
    now : callable
    quiet_s : float
    """

    def __init__(self, incidents: Incidents, now: Callable[[], float], quiet_s: float = 2.0) -> None:
        self._incidents = incidents
        self._now = now
        self._quiet_s = quiet_s
        self._seen: dict[tuple[str, str], tuple[int, int, float]] = {}  # total, total before it began, grew last at

    def look(self, kind: str, subject: str, total: int, detail: str) -> None:
        """See how far a counter has come; `detail` says of what, with ``{n}`` in the place of how many."""
        now, topic = self._now(), (kind, subject)
        before, start, grew = self._seen.get(topic, (0, 0, now))
        if total < before:  # it was begun anew
            before = start = 0
        if total > before:
            start = start if self._incidents.lasts(kind, subject) else before
            self._incidents.go_on(kind, subject, detail.replace("{n}", str(total - start)), total - before)
            grew = now
        elif self._incidents.lasts(kind, subject) and now - grew >= self._quiet_s:
            self._incidents.end(kind, subject, detail.replace("{n}", str(total - start)))
        self._seen[topic] = (total, start, grew)
