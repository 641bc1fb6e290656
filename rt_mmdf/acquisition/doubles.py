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
MAX_LISTED = 3


@dataclass(frozen=True, slots=True)
class Others:
    """Streams that have the name of one that is listened to: how many, and which in words; none: ``Others()``."""

    n: int = 0
    text: str = ""


class Doubles:
    """Looks for streams that have the name of one that is listened to.

    None of them is taken while the chosen one is there, and what comes back after a loss must be the only one that fits. But
    LSL has no authentication, so somebody ought to look what it is.

    Parameters
    ----------
    streams : mapping of str to (StreamSettings, callable)
        For each stream of the configuration what it must match, and its present description.

    Attributes
    ----------
    found : dict of str to Others
        What the last look found for each stream; may be read from any thread.
    """

    def __init__(
        self, transport: Transport, streams: Mapping[str, tuple[StreamSettings, Callable[[], StreamDescription]]]
    ) -> None:
        self._transport = transport
        self._streams = dict(streams)
        self.found = dict.fromkeys(self._streams, Others())

    def look(self) -> None:
        """Ask the network, 0.6 s for each stream."""
        for label, (settings, describe) in self._streams.items():
            own = describe()
            there = self._transport.resolve(name=own.name, type=settings.type, timeout_s=LOOK_LIMIT_S)
            ours = {own.uid, *(other().uid for _, other in self._streams.values())}
            others = [stream for stream in there if stream.uid not in ours]
            if not any(stream.uid == own.uid for stream in there) and len(others) == 1:
                others = []  # it has come back as another outlet, and is not heard yet
            self.found[label] = Others(len(others), _told(label, own, others, settings)) if others else Others()


def _told(label: str, own: StreamDescription, others: list[StreamDescription], settings: StreamSettings) -> str:
    listed = "; ".join(map(one_line, others[:MAX_LISTED]))
    more = f"; and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
    lacking = [key for key in ("source_id", "hostname") if getattr(settings, key) is None]
    pin = f" For the right one after a loss, set {' and '.join(lacking)} under [acquisition.{label}]." if lacking else ""
    return (
        f"{len(others)} more on this network called {own.name!r}. Listened to is source_id {own.source_id!r} on "
        f"{own.hostname!r}. Find out who sends what is not.{pin} Seen: {listed}{more}"
    )
