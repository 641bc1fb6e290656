"""The cleaned sensors for displays, published in a thread of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rt_mmdf.app.chain import CleanedHop
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.preprocessing.decimate import PASS_BAND
from rt_mmdf.runtime.mailbox import Mailbox
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.sinks.sensors import SensorOutlet, decimation_of
from rt_mmdf.sinks.settings import SensorStreamSettings

WAITING_HOPS = 256
PERIOD_S = 0.04  # a round for each picture of a display, not for each hop: every round takes the interpreter for a while


class SensorDisplay:
    """Takes cleaned hops from a mailbox and publishes their sensors.

    Parameters
    ----------
    outlet : SensorOutlet
        Closed by whoever opened it.
    """

    def __init__(self, outlet: SensorOutlet) -> None:
        self._outlet = outlet
        self._hops: Mailbox[CleanedHop] = Mailbox(WAITING_HOPS)

    def put(self, hop: CleanedHop) -> None:
        """Take a hop, from the engine's thread; returns at once."""
        self._hops.put(hop)

    def step(self) -> None:
        """Publish what is waiting."""
        for hop in self._hops.take_all():
            self._outlet.publish(hop.block)

    def workers(self, on_failure: Callable[[], None]) -> list[Worker]:
        """The thread that publishes; not yet started."""

        def step() -> None:
            worker.pause(PERIOD_S)
            self.step()

        worker = Worker("sensors", step, on_failure)
        return [worker]

    def status(self) -> dict[str, Any]:
        """For the health stream: ``sensors`` of `rt_mmdf.sinks.health`."""
        stream = self._outlet.stream
        return {"stream": stream.name, "sfreq": stream.sfreq, "dropped_hops": self._hops.n_dropped}


def check_rate(settings: SensorStreamSettings, sfreq: float, high_hz: float | None) -> None:
    """ConfigurationError where every n-th sample would fold back what the low-pass at `high_hz` lets through."""
    n = decimation_of(settings, sfreq)
    limit = PASS_BAND * sfreq / n
    if n > 1 and settings.reduction == "latest" and (high_hz is None or high_hz > limit):
        seen = "no low-pass" if high_hz is None else f"a low-pass at {high_hz:g} Hz"
        raise ConfigurationError(
            f"output.sensors: {sfreq / n:g} Hz are published of {sfreq:g} Hz (max_hz = {settings.max_hz:g}), with {seen} "
            f"before it; at most {limit:g} Hz is expected, or frequencies fold back. Set reduction = 'peak', raise max_hz, "
            "or lower preprocessing.filters.band_pass.high_hz."
        )
