"""An engine that publishes what a test tells it to, through the outlets of the real one."""

from __future__ import annotations

import select
import sys
from collections.abc import Mapping

import numpy as np

from rt_mmdf.core.blocks import SourceEstimate, StageStamps
from rt_mmdf.lsl.interface import Transport
from rt_mmdf.sinks.estimates import EstimateDescription, EstimateOutlets
from rt_mmdf.sinks.health import HealthOutlet
from rt_mmdf.sinks.settings import EstimateStreamSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription

HOP_S = 0.01


def sources_of(n_left: int = 20, n_right: int = 17, fingerprint: str = "ab" * 32, seed: int = 3) -> SourceSpaceDescription:
    """Sources of an invented head."""
    positions = np.random.default_rng(seed).uniform(-80, 80, (n_left + n_right, 3))
    vertices = (np.arange(n_left) * 2, np.arange(n_right) * 3)
    return SourceSpaceDescription("invented", fingerprint, vertices, positions, "MRI (surface RAS)")


class PublishingEngine:
    """One engine: hops of ones times their number, with health, on the machine of `transport`."""

    def __init__(
        self,
        transport: Transport,
        name: str = "e",
        sources: SourceSpaceDescription | None = None,
        *,
        sfreq: float = 1000.0,
        solver: str = "dSPM",
        unit: str = "",
        more: Mapping[str, str] | None = None,
        stream: str = "",
        decimation: int = 1,
    ) -> None:
        self.transport = transport
        self.sources = sources or sources_of()
        self.sfreq = sfreq
        self.n_per_hop = round(HOP_S * sfreq)
        self.described = EstimateDescription(
            solver, unit, "fixed, normal to cortex", sfreq, 31.0, {"engine/session": name, **(more or {})}
        )
        settings = EstimateStreamSettings(decimation=decimation, n_strongest=1)
        self.outlets = EstimateOutlets(transport, stream or f"{name}-sources", self.sources, self.described, settings)
        self.health = HealthOutlet(transport, f"{name}-health")
        self.hop = self.index = 0

    def publish(
        self,
        value: float | np.ndarray | None = None,
        *,
        flags: int = 0,
        late_s: float = 0.002,
        at: float | None = None,
    ) -> np.ndarray:
        """One hop that ends now; returns its times."""
        n, now = self.n_per_hop, self.transport.clock.now() if at is None else at
        times = now - (np.arange(n)[::-1]) / self.sfreq
        filled = np.full((self.sources.n_sources, n), self.hop + 1.0 if value is None else value, dtype=np.float32)
        stamps = StageStamps(times[-1], times[-1] - late_s, times[-1], times[-1], times[-1], times[-1])
        marked = np.full(n, flags, dtype=np.uint32)
        self.outlets.publish(SourceEstimate(filled, times, marked, self.index, self.hop, "", stamps))
        self.skip()
        return times

    def skip(self) -> None:
        """A hop that is never imaged."""
        self.hop, self.index = self.hop + 1, self.index + self.n_per_hop

    def close(self) -> None:
        self.outlets.close()
        self.health.close()


def main() -> None:
    """An engine of its own process: publishes hops on time until it is ended; NAME N_LEFT FINGERPRINT.

    Tells each 100th hop in a line. A line with a number makes it publish the next so many hops at once, ahead of their time.
    """
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.mailbox import Signal

    name, n_left, fingerprint = sys.argv[1:]
    pause = Signal()
    engine = PublishingEngine(NetworkTransport(), name, sources_of(int(n_left), 17, fingerprint))
    begun, n_at_once = engine.transport.clock.now(), 0
    while True:
        due = begun + (engine.hop + 1) * HOP_S
        pause.wait(max(0.0, due - n_at_once * HOP_S - engine.transport.clock.now()))
        engine.publish(at=due)
        if select.select([sys.stdin], [], [], 0)[0] and (asked := sys.stdin.readline()):
            n_at_once += int(asked)
            for _ in range(int(asked)):
                engine.publish(at=begun + (engine.hop + 1) * HOP_S)
        if engine.hop % 20 == 0:
            engine.health.publish({"hops": engine.hop, "budget_ms": 20.0})
        if engine.hop % 100 == 0:
            sys.stdout.write(f"{engine.hop}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
