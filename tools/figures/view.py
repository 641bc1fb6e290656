"""The window's pictures for the README, in tools/figures/view-*.png: dSPM of simulated bursts on the template head.

    xvfb-run -s "-screen 0 2560x1440x24" python tools/figures/view.py

Everything goes through the streams that an engine publishes and a view reads, in memory and on a clock that is moved by
hand, so that the pictures do not depend on how busy the machine is. The estimates are real ones of simulated sensors;
latencies and what the health panel says of clocks are invented, and while MEG is told to be missing the estimate is still
that of both.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np
from PySide6.QtWidgets import QApplication

from rt_mmdf.core.blocks import Flag, SensorBlock, SourceEstimate, StageStamps
from rt_mmdf.core.channels import Modality
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.sinks.averages import AverageDescription, AverageEstimate, AverageOutlets
from rt_mmdf.sinks.estimates import EstimateDescription, EstimateOutlets
from rt_mmdf.sinks.health import HealthOutlet
from rt_mmdf.sinks.sensors import SensorOutlet
from rt_mmdf.sinks.settings import EstimateStreamSettings, SensorStreamSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.view.feed import Feed
from rt_mmdf.view.preferences import PreferencesStore
from rt_mmdf.view.run import application
from rt_mmdf.view.settings import ViewSettings
from rt_mmdf.view.window import ViewWindow

OUT = Path(__file__).parent
SFREQ, HOP, SECONDS = 250.0, 5, 36.0  # whole bursts: it goes round and round
PLACES_MM = ((-42, -22, 52), (50, -22, 8))  # left somatosensory, right auditory cortex
EVERY_S, PEAK_S = 1.8, 0.9  # a burst of the first place, and its peak
EPOCH_S = (-0.3, 0.5)  # around an event 0.25 s before that peak
BAD = "EEG017"


class Laboratory:
    """Sensors and two solvers' estimates of them, published hop by hop."""

    def __init__(self) -> None:
        self.head = build_template(spacing="ico4")
        self.clock = ManualClock(1000.0)
        self.here = MemoryTransport(self.clock, uncertainty_s=1e-4)
        self.sensors, self.estimates, average = self._simulated()
        head = self.head
        sources = SourceSpaceDescription(head.name, head.fingerprint, head.vertices, head.source_positions_mm, "MNI305")
        more = {"engine/session": "demo", "engine/budget_ms": "20"}
        more |= {f"streams/{kind}": f"demo-{kind}" for kind in ("sensors", "second", "marks")}
        more["streams/averages/touch"] = "demo-average-touch"
        settings = EstimateStreamSettings()
        self.outlets = {
            method: EstimateOutlets(
                self.here,
                stream,
                sources,
                EstimateDescription(method, "", "fixed, normal to cortex", SFREQ, 30.0, more),
                settings,
            )
            for method, stream in (("dSPM", "demo-sources"), ("sLORETA", "demo-second"))
        }
        self.traces = SensorOutlet(self.here, "demo-sensors", head.channels, SFREQ, 30.0, SensorStreamSettings(), more)
        self.health = HealthOutlet(self.here, "demo-health")
        described = EstimateDescription("dSPM", "", "fixed, normal to cortex", SFREQ, 30.0, more)
        of = AverageDescription("touch", ("touch",), np.arange(average.data.shape[1]) / SFREQ + EPOCH_S[0], None)
        self.average, self.averages = average, AverageOutlets(self.here, "demo-average-touch", sources, described, of)
        self.hop = 0

    def _simulated(self) -> tuple[np.ndarray, dict[str, np.ndarray], AverageEstimate]:
        rng = np.random.default_rng(4)
        head, n_times = self.head, round(SECONDS * SFREQ)
        times = np.arange(n_times) / SFREQ
        field = np.zeros((len(head.ch_names), n_times))
        for number, place in enumerate(PLACES_MM):
            source = int(np.linalg.norm(head.source_positions_mm - place, axis=1).argmin())
            phase = (times + 0.5 * EVERY_S * number) % EVERY_S
            burst = np.exp(-0.5 * ((phase - PEAK_S) / 0.12) ** 2) * np.sin(2 * np.pi * 10 * times)
            field += np.outer(head.leadfield()[:, source], 40e-9 * burst)
        cov = mne.make_ad_hoc_cov(head.info, verbose="ERROR")
        noise = rng.standard_normal(field.shape) * np.sqrt(np.asarray(cov["data"]))[:, None] * 0.25
        raw = mne.io.RawArray(field + noise, head.info.copy(), verbose="ERROR")
        raw.set_eeg_reference(projection=True, verbose="ERROR")
        raw.filter(1.0, 40.0, verbose="ERROR")
        forward = head.fixed_forward
        operator = mne.minimum_norm.make_inverse_operator(
            raw.info, forward, cov, fixed=True, depth=None, use_cps=True, verbose="ERROR"
        )
        estimates = {
            method: mne.minimum_norm.apply_inverse_raw(raw, operator, 1 / 9, method, verbose="ERROR").data
            for method in ("dSPM", "sLORETA")
        }
        begun = np.rint((np.arange(0, SECONDS - EVERY_S, EVERY_S) + PEAK_S - 0.25 + EPOCH_S[0]) * SFREQ).astype(int)
        n_epoch, data = round((EPOCH_S[1] - EPOCH_S[0]) * SFREQ), raw.get_data()
        mean = np.mean([data[:, start : start + n_epoch] for start in begun], axis=0)
        evoked = mne.EvokedArray(mean, raw.info, EPOCH_S[0], nave=len(begun), verbose="ERROR")
        imaged = mne.minimum_norm.apply_inverse(evoked, operator, 1 / 9, "dSPM", verbose="ERROR").data
        average = AverageEstimate(imaged.astype(np.float32), len(begun), 1, self.clock.now())
        return data.astype(np.float32), {m: e.astype(np.float32) for m, e in estimates.items()}, average

    def publish(self, missing: bool) -> None:
        """The next hop; `missing`: without MEG."""
        at = slice((self.hop * HOP) % self.sensors.shape[1], (self.hop * HOP) % self.sensors.shape[1] + HOP)
        self.clock.advance(HOP / SFREQ)
        now = self.clock.now()
        times = now - np.arange(HOP)[::-1] / SFREQ - 0.03
        flags = np.full(HOP, int(Flag.MEG_MISSING) if missing else 0, np.uint32)
        late = 0.004 + 0.003 * float(np.random.default_rng(self.hop).gamma(2.0))
        stamps = StageStamps(times[-1], now - late, now - 0.003, now - 0.002, now - 0.001, now)
        data = self.sensors[:, at].copy()
        if missing:
            data[self.head.channels.of_modality(Modality.MEG)] = np.nan
        self.traces.publish(SensorBlock(self.head.channels, data, times, flags, times, self.hop * HOP, frozenset({BAD})))
        for method, outlets in self.outlets.items():
            values = np.ascontiguousarray(self.estimates[method][:, at])
            outlets.publish(SourceEstimate(values, times, flags, self.hop * HOP, self.hop, "", stamps))
        if self.hop % 90 == 0:
            self.averages.publish(self.average)
        if self.hop % 50 == 0:
            self.health.publish(self._report(missing))
        self.hop += 1

    def _report(self, missing: bool) -> dict[str, object]:
        clock = {"offset": 0.0121, "drift_ppm": 18.2, "rate_error_ppm": 0.0, "uncertainty_ms": 0.021, "jitter_ms": 0.3}
        counts = {"lost": 0, "gaps": 0}
        streams = {
            name: {"name": f"demo-{name.upper()}", "sfreq": rate, "n_channels": n, "age_s": age, "counts": counts, **clock}
            for name, rate, n, age in (("eeg", 500.0, 60, 0.012), ("meg", 1000.0, 306, 3.1 if missing else 0.008))
        }
        report = {"hops": self.hop, "budget_ms": 20.0, "modalities": ["eeg", "meg"], "streams": streams}
        return report | {"bad_channels": {BAD: "flat"}, "filter_delay_ms": 30.0, "skipped_hops": 0, "missed_deadlines": 0}


def main() -> None:
    app = application()
    laboratory = Laboratory()
    feed = Feed(laboratory.here, find=lambda engine, folder: laboratory.head)
    with tempfile.TemporaryDirectory() as folder:
        store = PreferencesStore(Path(folder) / "view.ini")
        try:
            for size, flat, take in (
                ((1280, 720), False, shots),
                ((2560, 1440), False, wide),
                ((1280, 720), True, without_opengl),
            ):
                window = ViewWindow(
                    feed, laboratory.here, store, settings=ViewSettings(size=size, flat=flat), remember=False
                )
                window._timer.stop()
                window.show()
                take(Stage(app, laboratory, feed, window))
                window.end()
                window.close()
        finally:
            feed.close()


@dataclass
class Stage:
    """A window on the laboratory."""

    app: QApplication
    laboratory: Laboratory
    feed: Feed
    window: ViewWindow

    def run(self, seconds: float, *, missing: bool = False) -> None:
        for hop in range(round(seconds * SFREQ / HOP)):
            self.laboratory.publish(missing)
            self.feed.look()
            self.feed.receive()
            self.feed.receive_second()
            self.feed.attend()
            if hop % 2:
                self.window.refresh(everything=True)
        self.app.processEvents()

    def until_brain(self) -> None:
        self.run(0.4)
        while self.window.main.pane is None:
            self.run(0.04)

    def to_the_next_peak(self, *, missing: bool = False) -> None:
        """At least one burst later."""
        now = self.laboratory.hop * HOP / SFREQ
        self.run(PEAK_S + EVERY_S * (np.ceil((now - PEAK_S) / EVERY_S) + 1) - now, missing=missing)

    def limit(self, numbers: str, what: str = "limits") -> None:
        self.window.ask.answered.emit(what, numbers)
        self.window.ask.give_up()

    def grab(self, name: str) -> None:
        self.window.refresh(everything=True)
        self.app.processEvents()
        self.window.grab().save(str(OUT / f"view-{name}.png"))


def wide(stage: Stage) -> None:
    """A large screen."""
    stage.until_brain()
    stage.window.choose("theme", "dark")
    stage.limit("5 8 18")
    stage.window.act("compare")
    stage.run(13.0)
    stage.limit("5 8 18", "limits beside")
    stage.to_the_next_peak()
    stage.grab("wide")
    stage.window.act("compare")


def without_opengl(stage: Stage) -> None:
    """Drawn flat."""
    stage.until_brain()
    stage.window.choose("layout", "split")
    stage.limit("5 8 18")
    stage.run(10.0)
    stage.to_the_next_peak()
    stage.grab("flat")


def shots(stage: Stage) -> None:
    """Every mode at 1280 x 720."""
    laboratory, window, run, grab = stage.laboratory, stage.window, stage.run, stage.grab
    stage.until_brain()
    run(13.0)
    stage.limit("5 8 18")
    stage.to_the_next_peak()
    grab("live")
    window.choose("layout", "split")
    stage.to_the_next_peak()
    grab("split")
    window.choose("layout", "both")
    window.act("compare")
    window.act("health")
    stage.to_the_next_peak()
    grab("compare")
    window.act("compare")
    window.act("average")
    stage.to_the_next_peak()
    stage.limit("25 45 120", "limits beside")
    stage.to_the_next_peak()
    grab("average")
    window.act("average")
    window.act("sensors")
    stage.to_the_next_peak(missing=True)
    grab("missing")
    window.choose("theme", "light")
    window.choose("surface", "pial")
    window.act("camera_left")
    cortex = window._cortex
    if cortex is not None:
        apart = np.linalg.norm(laboratory.head.source_positions_mm - PLACES_MM[0], axis=1)
        window._pick(int(cortex.source_vertices[int(apart.argmin())]))
    window.act("mark")
    window.ask._edit.setText("eyes closed")
    window.ask._answer()
    stage.to_the_next_peak()
    window.act("pause")
    grab("paused")
    window.help.show()
    stage.app.processEvents()
    window.help.grab().save(str(OUT / "view-keys.png"))


if __name__ == "__main__":
    main()
