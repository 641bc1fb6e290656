"""A second stream of the same name: told while a session runs, not only at its start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rt_mmdf.acquisition.selection import one_line
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.lsl.interface import StreamDescription, Transport

LOOK_LIMIT_S = 0.6
"""One round of asking the network."""
INTERVAL_S = 5.0
"""Between two looks."""
MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class DoubleNews:
    """What a look has found new. label : of the stream in the configuration; began : else it is over; text : for people"""

    label: str
    began: bool
    text: str


class Doubles:
    """Looks for streams that have the name of one that is listened to.

    None of them is ever taken: the one that was chosen is kept, and what comes back after a loss must be the only one that
    fits. But LSL has no authentication, so somebody ought to look what it is.

    Parameters
    ----------
    streams : mapping of str to (StreamSettings, callable)
        For each stream of the configuration what it must match, and its present description.

    Attributes
    ----------
    found : dict of str to int
        How many others of its name each stream had at the last look; may be read from any thread.
    """

    def __init__(
        self, transport: Transport, streams: Mapping[str, tuple[StreamSettings, Callable[[], StreamDescription]]]
    ) -> None:
        self._transport = transport
        self._streams = dict(streams)
        self.found = dict.fromkeys(self._streams, 0)

    def look(self) -> list[DoubleNews]:
        """Ask the network (0.6 s for each stream) and say what is new since the last look."""
        news = []
        for label, (settings, describe) in self._streams.items():
            own, before = describe(), self.found[label]
            there = self._transport.resolve(name=own.name, type=settings.type, timeout_s=LOOK_LIMIT_S)
            ours = {own.uid, *(other().uid for _, other in self._streams.values())}
            others = [stream for stream in there if stream.uid not in ours]
            if not any(stream.uid == own.uid for stream in there) and len(others) == 1:
                others = []  # it has come back as another outlet, and is not heard yet
            self.found[label] = len(others)
            if len(others) > before:
                news.append(DoubleNews(label, True, _told(label, own, others, settings)))
            elif before and not others:
                news.append(DoubleNews(label, False, f"acquisition.{label}: stream {own.name!r} is the only one again."))
        return news


def _told(label: str, own: StreamDescription, others: list[StreamDescription], settings: StreamSettings) -> str:
    listed = "\n".join(f"  {one_line(stream)}" for stream in others[:MAX_LISTED])
    more = f"\n  and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
    lacking = [key for key in ("source_id", "hostname") if getattr(settings, key) is None]
    pin = (
        f" To be sure of the right one after a loss: {' and '.join(lacking)} under [acquisition.{label}]." if lacking else ""
    )
    return (
        f"acquisition.{label}: {len(others)} more on this network called {own.name!r}:\n{listed}{more}\nWhat is listened to "
        f"stays {one_line(own)}. Find out who sends the other.{pin}"
    )
