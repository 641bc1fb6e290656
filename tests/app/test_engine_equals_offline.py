"""Live equals offline: what the engine gives out is what the same filters and mne's inverse give for the file at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mne
import numpy as np
import pytest

from rt_mmdf.acquisition.clockwatch import ClockWatch
from rt_mmdf.acquisition.receiver import Receiver
from rt_mmdf.app.engine import Engine
from rt_mmdf.app.imaging import Imaging
from rt_mmdf.app.intake import Intake
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import SourceEstimate
from rt_mmdf.core.channels import Modality
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.preprocessing.whitening import OperatorSwitch

T0 = 2000.0  # sensor time of the first sample, this machine's clock
CHUNK = {Modality.EEG: 7, Modality.MEG: 16}
Offline = Any  # the fixture's class lives in conftest.py


@dataclass
class Live:
    engine: Engine
    imaging: Imaging
    estimates: list[SourceEstimate]


def image_live(raw: mne.io.BaseRaw, config: SessionSettings, offset_s: float, drift_ppm: float) -> Live:
    """Stream the file through memory: EEG from a machine with a clock of its own, MEG from this one."""
    clock = ManualClock(T0)
    here = MemoryTransport(clock, uncertainty_s=1e-5)
    there = here.machine("eeg-amplifier", offset_s=offset_s, drift_ppm=drift_ppm)
    sfreq, outlets, data, stamps = raw.info["sfreq"], {}, {}, {}
    true_times = T0 + np.arange(raw.n_times) / sfreq
    for modality, machine in ((Modality.EEG, there), (Modality.MEG, here)):
        picks = mne.pick_types(raw.info, meg=modality is Modality.MEG, eeg=modality is Modality.EEG, exclude=[])
        kinds, names = raw.get_channel_types(picks), [raw.ch_names[i] for i in picks]
        unit = {"eeg": "V", "mag": "T", "grad": "T/m"}
        channels = tuple(ChannelDescription(n, k, unit[k]) for n, k in zip(names, kinds, strict=True))
        description = StreamDescription(
            f"s-{modality.upper()}", modality.upper(), f"id-{modality}", sfreq, "float32", channels, {}
        )
        outlets[modality] = machine.outlet(description)
        data[modality] = raw.get_data(picks).T.astype(np.float32)
        stamps[modality] = true_times if machine is here else np.array([there.clock.at(t) for t in true_times])
    receivers = {m: Receiver(here, config.acquisition[m], m.value) for m in outlets}
    watch = ClockWatch(here, {r.label: (lambda r=r: r.description) for r in receivers.values()})
    streaming = receivers[Modality.EEG].channels + receivers[Modality.MEG].channels
    imaging = Imaging.prepare(config, streaming)
    switch = OperatorSwitch(lambda key: None)
    switch.offer(imaging.full_key(), imaging.build(imaging.full_key()))
    intake = Intake(config, receivers, watch, imaging.channels, clock, keep_map=True)
    engine = Engine(config, intake, imaging, switch, clock)
    estimates: list[SourceEstimate] = []
    for k in range(raw.n_times):
        clock.move_to(T0 + k / sfreq)
        for modality, outlet in outlets.items():
            n = CHUNK[modality]
            if (k + 1) % n == 0:
                outlet.push(data[modality][k + 1 - n : k + 1], stamps[modality][k + 1 - n : k + 1])
                receivers[modality].step()
        if k % 150 == 0:
            for _ in receivers:
                watch.step()
        estimates += list(engine.pump())
    return Live(engine, imaging, estimates)


def check_every_sample_is_accounted_for(live: Live) -> None:
    firsts = [e.first for e in live.estimates]
    assert firsts == [live.engine.intake.hop * k for k in range(len(firsts))]
    assert [e.hop for e in live.estimates] == list(range(len(firsts)))
    assert live.engine.counts.hops == len(firsts)
    assert live.engine.counts.skipped == live.engine.intake.overwritten == 0


@pytest.mark.sample
@pytest.mark.parametrize("method", ["MNE", "dSPM", "sLORETA", "eLORETA"])
def test_sample_by_sample_the_live_estimate_is_mnes(
    method: str, raw: mne.io.BaseRaw, sample_settings: Callable[..., SessionSettings], offline: Offline
) -> None:
    live = image_live(raw, sample_settings(method=method, grid="samples"), 100.0, 0.0)
    check_every_sample_is_accounted_for(live)
    got = np.hstack([e.data for e in live.estimates])
    n = got.shape[1]
    assert n > raw.n_times - 3 * live.engine.intake.hop  # all but the last chunks and hop, which never filled
    wanted = offline.image(live, offline.in_file_order(live)[:, :n])
    assert offline.relative_difference(got, wanted) < 1e-4
    times = np.concatenate([e.times for e in live.estimates])
    np.testing.assert_allclose(times, T0 + np.arange(n) / raw.info["sfreq"], atol=2e-5)


@pytest.mark.sample
@pytest.mark.parametrize("method", ["MNE", "dSPM", "sLORETA", "eLORETA"])
def test_through_fitted_clocks_the_live_estimate_is_that_of_the_resampled_file(
    method: str, raw: mne.io.BaseRaw, sample_settings: Callable[..., SessionSettings], offline: Offline
) -> None:
    live = image_live(raw, sample_settings(method=method, grid="clock"), 100.0, 150.0)
    check_every_sample_is_accounted_for(live)
    times = np.concatenate([e.times for e in live.estimates])
    resampled = offline.resampled(live, offline.in_file_order(live), times)
    wanted = offline.image(live, resampled)
    got = np.hstack([e.data for e in live.estimates])
    inside = (times > times[0] + 0.2) & (times < times[-1] - 0.3)  # the long sinc needs samples on both sides
    assert inside.sum() > 1200
    assert offline.relative_difference(got[:, inside], wanted[:, inside]) < 1e-3
