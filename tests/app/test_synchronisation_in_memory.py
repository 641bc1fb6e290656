"""The whole measurement over memory, thirty times as fast as in a laboratory: what it finds, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.app.synchronisation import Progress, Triggers, measure_lags
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import StreamError
from rt_mmdf.lsl.interface import ChannelDescription, ClockOffset, StreamDescription
from rt_mmdf.lsl.memory import MemoryTransport
from rt_mmdf.runtime.worker import Worker

SPEED, BEGIN, AWAY_S = 30.0, 1000.0, 50.0
LAG_S = {Modality.EEG: 0.0613, Modality.MEG: 0.004}
RATE = {Modality.EEG: 500.0, Modality.MEG: 1000.0}
ASKED = Triggers({}, n_triggers=20, seconds=100.0)
LONG = {"buffer_s": 600.0}  # a machine that is busy for half a second loses a quarter of a minute
IRREGULAR = BEGIN + np.cumsum(np.random.default_rng(8).uniform(0.6, 1.4, 200))
SETTINGS = SessionSettings.model_validate({"acquisition": {"eeg": {"name": "e"} | LONG, "meg": {"name": "m"} | LONG}})


class QuickClock:
    """Time, thirty times as fast."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def now(self) -> float:
        return BEGIN + SPEED * (time.monotonic() - self._start)


class Probe:
    """Knows the offset, instead of reading two clocks one after the other, between which time runs thirty times as fast."""

    def __init__(self, clock: QuickClock, offset_s: float) -> None:
        self._clock, self._offset_s = clock, offset_s

    def measure(self, timeout_s: float) -> ClockOffset:
        return ClockOffset(self._clock.now() + self._offset_s, -self._offset_s, 1e-5)

    def close(self) -> None:
        """Nothing to stop."""


class OneLookTransport(MemoryTransport):
    def offset_probe(self, description: StreamDescription) -> Any:
        return Probe(self.clock, AWAY_S if description.hostname == "amplifier" else 0.0)


@contextmanager
def laboratory(shown: dict[Modality, np.ndarray]) -> Iterator[MemoryTransport]:
    """Two devices that show triggers at these times since somebody listens, and a stimulus program that tells when it set
    the EEG's.
    """
    transport = OneLookTransport(QuickClock())
    away = transport.machine("amplifier", offset_s=AWAY_S)
    outlets, sent = {}, dict.fromkeys(Modality, 0)
    for modality, name, kind, unit in ((Modality.EEG, "e", "eeg", "uV"), (Modality.MEG, "m", "mag", "fT")):
        channels = (ChannelDescription("one", kind, unit), ChannelDescription("STI 014", "stim"))
        where = away if modality is Modality.EEG else transport
        outlets[modality] = where.outlet(StreamDescription(name, "", name, RATE[modality], "float32", channels, {}))
    texts = transport.outlet(StreamDescription("stim", "Markers", "s", 0.0, "string", (ChannelDescription("m"),), {}))
    told, later_s = [0], [np.inf]

    def send() -> None:
        now = transport.clock.now()
        if later_s[0] == np.inf and all(outlet.has_consumers() for outlet in outlets.values()):
            later_s[0] = now - BEGIN
        for modality, outlet in outlets.items():
            lag, rate = LAG_S[modality], RATE[modality]
            stop = int((now - lag - BEGIN) * rate)
            t = BEGIN + np.arange(sent[modality], stop) / rate
            if len(t) > 0.02 * rate:
                since = t[:, None] - shown[modality][None, :] - later_s[0]
                step = 5.0 * ((since >= 0) & (since < 0.1)).any(axis=1)
                stamps = t + lag + (AWAY_S if modality is Modality.EEG else 0.0)
                outlet.push(np.stack([np.zeros(len(t)), step], axis=1).astype(np.float32), stamps)
                sent[modality] = stop
        while told[0] < len(shown[Modality.EEG]) and shown[Modality.EEG][told[0]] + later_s[0] <= now:
            texts.push(["set"], float(shown[Modality.EEG][told[0]] + later_s[0]))
            told[0] += 1
        worker.pause(0.002)

    worker = Worker("laboratory", send)
    with worker:
        yield transport


def test_20_triggers_are_enough() -> None:
    told: list[Progress] = []
    with laboratory(dict.fromkeys(Modality, IRREGULAR)) as transport:
        (eeg,) = measure_lags(SETTINGS, transport, ASKED, told.append)
    assert eeg.label is Modality.EEG
    assert (eeg.against, eeg.device) == ("meg", "e / e")
    assert eeg.lag_ms == pytest.approx(57.3, abs=1.0)
    assert abs(eeg.lag_ms - 57.3) < 2 * eeg.uncertainty_ms
    assert 20 <= eeg.found.n_pairs <= eeg.n_triggers < 80
    assert [progress.pairs for progress in told] == sorted(progress.pairs for progress in told)
    assert told[-1].pairs >= 20


def test_the_reference_keeps_the_lag_that_it_has() -> None:
    known = {
        "eeg": {"name": "e", "lag_ms": 61.3, "lag_uncertainty_ms": 0.2} | LONG,
        "meg": {"name": "m", "lag_ms": 500.0} | LONG,
    }
    settings = SessionSettings.model_validate({"acquisition": known})
    with laboratory(dict.fromkeys(Modality, IRREGULAR)) as transport:
        (meg,) = measure_lags(settings, transport, replace(ASKED, reference=Modality.EEG))
    assert meg.lag_ms == pytest.approx(4.0, abs=1.0)  # its own old one does not matter
    assert meg.uncertainty_ms > 0.2


def test_against_markers_each_shows_its_whole_lag() -> None:
    with laboratory(dict.fromkeys(Modality, IRREGULAR)) as transport:
        lags = measure_lags(SETTINGS, transport, replace(ASKED, against_markers="stim"))
        (from_markers,) = measure_lags(
            SETTINGS, transport, replace(ASKED, channels={Modality.MEG: "markers:stim"}, n_triggers=10)
        )
    assert {lag.label: lag.against for lag in lags} == dict.fromkeys(Modality, "markers stim")
    for lag in lags:
        assert lag.lag_ms == pytest.approx(1e3 * LAG_S[lag.label], abs=1.0)
    assert from_markers.lag_ms == pytest.approx(1e3 * LAG_S[Modality.EEG], abs=1.0)


@pytest.mark.parametrize(
    ("eeg", "meg", "change", "said"),
    [
        (
            IRREGULAR,
            IRREGULAR[:0],
            {},
            r"meg: no trigger in \d+ s on channel 'STI 014' of stream 'm'; seen: the constant value 0",
        ),
        (IRREGULAR[:12], IRREGULAR[:12], {"seconds": 40.0}, "pairs; at least 20 are expected. Let it listen longer"),
        (BEGIN + 0.3 * np.arange(300), BEGIN + 0.3 * np.arange(300), {"seconds": 20.0}, "Send them at irregular intervals"),
        (IRREGULAR, np.sort(IRREGULAR[::-1] * -1 + 2 * IRREGULAR.mean()), {"seconds": 30.0}, "eeg against meg: "),
    ],
    ids=["none", "few", "regular", "others"],
)
def test_what_would_be_a_guess_is_refused(eeg: np.ndarray, meg: np.ndarray, change: dict[str, float], said: str) -> None:
    with (
        laboratory({Modality.EEG: eeg, Modality.MEG: meg}) as transport,
        pytest.raises(StreamError, match=said),
    ):
        measure_lags(SETTINGS, transport, replace(ASKED, **change))


@pytest.mark.parametrize("after", [8, 3])
def test_ctrl_c_ends_it_with_what_there_is(after: int) -> None:
    def enough(progress: Progress) -> None:
        if progress.pairs >= after:
            raise KeyboardInterrupt

    with laboratory(dict.fromkeys(Modality, IRREGULAR[: 40 if after == 8 else 4])) as transport:
        if after == 8:
            measure_lags(SETTINGS, transport, ASKED, enough)
        else:
            with pytest.raises(StreamError, match="at least 5 are expected"):
                measure_lags(SETTINGS, transport, ASKED, enough)
