"""Bad channels: what shorter or more bins cost and gain.

    export OMP_NUM_THREADS=1
    python tools/bench/bad_channels.py --blinks --seconds 900 --sample FOLDER --report tools/bench/bad_channels.json

Each setting is given as `bin_s/n_mark/n_window`. Three questions:

- False marks. Nothing is wrong with the channels of a long noise: 366 channels of the template at 250 Hz, raw
  (unfiltered), 60 patches of 1/f activity and 20 of alpha (10 Hz, waxing and waning), as strong at the sensors as an EEG of
  10 uV and an alpha of 15 uV RMS; pink noise and slow drift of each sensor; with `--blinks`, 15 a minute of 200 uV at the
  eyes. Counted are the marks, and the runs of bins that alone would have been called bad.
- Short artefacts. One electrode is ten times as noisy as the others for a while, which begins anywhere in a bin; counted
  is how many of 100 of a length mark it.
- With `--sample`, the real recording (5 s), its bins in 20 phases: how many find exactly the channels that are marked; and
  how far each of these, and the others all together, are from their neighbours (RMS ratio, and robust standard deviations
  `z` of its logarithm: least and most over all bins).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import mne
import numpy as np
from machine import machine
from scipy.signal import lfilter

from rt_mmdf.core.blocks import SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.preprocessing import bad_channels
from rt_mmdf.preprocessing.bad_channels import BadChannels, BadChannelSettings

SFREQ, BLOCK_S = 250.0, 10.0
PINK = [0.049922035, -0.095993537, 0.050612699, -0.004408786], [1.0, -2.494956002, 2.017265875, -0.522189400]
"""1/f over three decades (Kellet's filter)."""
POLE = 0.98  # of the resonance at 10 Hz: 1.6 Hz wide
ALPHA = [1.0], [1.0, -2 * POLE * np.cos(2 * np.pi * 10 / SFREQ), POLE**2]
DRIFT = [1.0], [1.0, -(1 - 2 * np.pi * 0.02 / SFREQ)]  # below 0.02 Hz white, above 1/f^2
SENSOR = {"eeg": 1e-6, "mag": 4e-14, "grad": 1.2e-12}
EEG_UV, ALPHA_UV, DRIFT_UV = 10.0, 15.0, 30.0
PHASES = 20
ARTEFACTS = 100


class Coloured:
    """Rows of noise with a spectrum, unit variance, that go on from block to block."""

    def __init__(self, n: int, spectrum: tuple[list[float], list[float]], rng: np.random.Generator) -> None:
        self._b, self._a = spectrum
        self._n, self._rng = n, rng
        self._state = np.zeros((n, max(len(self._a), len(self._b)) - 1))
        impulse = lfilter(self._b, self._a, np.eye(1, 200_000)[0])
        self._scale = 1 / np.sqrt((impulse**2).sum())
        self(round(200 * SFREQ))

    def __call__(self, n_times: int) -> np.ndarray:
        white = self._rng.normal(size=(self._n, n_times))
        coloured, self._state = lfilter(self._b, self._a, white, axis=1, zi=self._state)
        return coloured * self._scale


def blocks(head: HeadModel, seconds: float, seed: int, blinks: bool) -> Iterator[SensorBlock]:
    """Noise of a head in which nothing is wrong."""
    rng = np.random.default_rng(seed)
    channels = head.channels
    kinds = np.array([str(kind) for kind in channels.types])
    lead = head.leadfield(list(channels.names))
    level = np.array([SENSOR[kind] for kind in kinds])[:, None]

    def patches(n: int, uv: float) -> np.ndarray:
        gain = lead[:, rng.choice(head.n_sources, n, replace=False)]
        return gain * uv * 1e-6 / np.sqrt((gain[kinds == "eeg"] ** 2).sum(axis=1).mean())

    brain, alpha = patches(60, EEG_UV), patches(20, ALPHA_UV)
    eyes = np.array([[-0.03, 0.085, 0.0], [0.03, 0.085, 0.0]])  # head coordinates, m
    assert channels.positions is not None
    near = np.exp(-np.linalg.norm(channels.positions[:, None] - eyes, axis=2).min(axis=1) / 0.03)
    per_uv = {"eeg": 1e-6, "mag": 5e-14, "grad": 1.5e-12}
    eye = near * np.array([per_uv[kind] for kind in kinds]) * 200.0
    courses, waves = Coloured(60, PINK, rng), Coloured(20, ALPHA, rng)
    pink, drift = Coloured(len(channels), PINK, rng), Coloured(len(channels), DRIFT, rng)
    swing = np.where(kinds == "eeg", DRIFT_UV * 1e-6, 20 * level[:, 0])[:, None]
    n_times, zero = round(BLOCK_S * SFREQ), np.zeros(round(BLOCK_S * SFREQ), np.uint32)
    for first in range(0, round(seconds * SFREQ), n_times):
        data = brain @ courses(n_times) + alpha @ waves(n_times)
        data += level * (pink(n_times) + rng.normal(size=data.shape)) + swing * drift(n_times)
        if blinks:
            for at in rng.integers(0, n_times - 100, rng.poisson(15 * BLOCK_S / 60)):
                width = rng.integers(50, 100)  # 0.2 to 0.4 s
                data[:, at : at + width] += eye[:, None] * np.hanning(width)
        times = (first + np.arange(n_times)) / SFREQ
        yield SensorBlock(channels, data.astype(np.float32), times, zero, times, first)


def settings_of(told: str) -> BadChannelSettings:
    bin_s, n_mark, n_window = told.split("/")
    return BadChannelSettings(bin_s=float(bin_s), n_mark=int(n_mark), n_window=int(n_window))


def false_marks(head: HeadModel, tried: list[str], seconds: float, seed: int, blinks: bool) -> dict[str, Any]:
    """By setting: channels that were marked, and runs of bad bins, once for each time, by reason."""
    alone = {"n_mark": 1, "n_window": 1, "n_unmark": 1}
    given = {told: settings_of(told) for told in tried}
    given |= {f"bins of {own.bin_s:g}": own.model_copy(update=alone) for own in list(given.values())}
    detectors = {told: BadChannels(own, SFREQ) for told, own in given.items()}
    known: dict[str, set[str]] = {told: set() for told in given}
    counts: dict[str, Counter[str]] = {told: Counter() for told in given}
    for block in blocks(head, seconds, seed, blinks):
        for told, detector in detectors.items():
            step = round(given[told].bin_s * SFREQ)
            edges = [0, *range(step - block.first % step, block.n_times, step), block.n_times]
            for a, b in pairwise(edges):
                part = SensorBlock(
                    block.channels,
                    block.data[:, a:b],
                    block.times[a:b],
                    block.flags[a:b],
                    block.received[a:b],
                    block.first + a,
                )
                bads = set(detector(part).bads)
                counts[told].update(detector.reasons[name] for name in bads - known[told])
                known[told] = bads
    return {told: dict(count) for told, count in counts.items()}


def short_artefacts(head: HeadModel, tried: list[str], lengths_s: list[float]) -> dict[str, Any]:
    """By setting: how many of `ARTEFACTS` of each length mark their channel."""
    names = [name for name, kind in zip(head.channels.names, head.channels.types, strict=True) if kind == "eeg"]
    channels = head.channels.pick(head.channels.indices(names))
    rng, n_times = np.random.default_rng(5), round(4.0 * SFREQ)
    times, zero = np.arange(n_times) / SFREQ, np.zeros(n_times, np.uint32)
    found: dict[str, dict[str, int]] = {told: {f"{length:g}": 0 for length in lengths_s} for told in tried}
    for length_s in lengths_s:
        for _ in range(ARTEFACTS):
            data = 1e-5 * rng.normal(size=(len(names), n_times))
            begin = rng.integers(round(1.5 * SFREQ), round(2.1 * SFREQ))
            data[rng.integers(len(names)), begin : begin + round(length_s * SFREQ)] *= 10
            block = SensorBlock(channels, data.astype(np.float32), times, zero, times, 0)
            for told in tried:
                found[told][f"{length_s:g}"] += bool(BadChannels(settings_of(told), SFREQ)(block).bads)
    return found


def of_the_recording(folder: Path, tried: list[str]) -> dict[str, Any]:
    """By setting: how many of 20 phases find exactly the channels that are marked as bad in the file."""
    raw = mne.io.read_raw_fif(folder / "sample_audvis_5s_raw.fif", verbose="error").pick(["eeg", "mag", "grad"], exclude=())
    positions = np.array([channel["loc"][:3] for channel in raw.info["chs"]])
    channels = Channels(tuple(raw.ch_names), tuple(ChannelType(kind) for kind in raw.get_channel_types()), positions)
    data, sfreq = raw.get_data().astype(np.float32), raw.info["sfreq"]
    times, zero = np.arange(data.shape[1]) / sfreq, np.zeros(data.shape[1], np.uint32)
    found: dict[str, Any] = {}
    for told in tried:
        exact, wrong, own = 0, Counter[str](), settings_of(told)
        compare, compared = bad_channels._Crowd.compare, []

        def noted(crowd: Any, log_rms: np.ndarray, compare: Any = compare, compared: list[Any] = compared) -> Any:
            ratio, z = compare(crowd, log_rms)
            compared.append((crowd.rows, np.exp(ratio), z))
            return ratio, z

        with mock.patch.object(bad_channels._Crowd, "compare", noted):
            for phase in np.linspace(0, own.bin_s * sfreq, PHASES, endpoint=False).astype(int).tolist():
                bads = BadChannels(own, sfreq)(SensorBlock(channels, data, times, zero, times, phase)).bads
                exact += bads == set(raw.info["bads"])
                wrong.update(bads ^ set(raw.info["bads"]))
        rows, ratio, z = (np.concatenate([one[i] for one in compared]) for i in range(3))
        marked = {name: rows == channels.names.index(name) for name in raw.info["bads"]}
        groups = marked | {"the others": ~np.logical_or.reduce(list(marked.values()))}
        stand = {
            name: {
                "ratio": [round(float(of(ratio[there])), 3) for of in (np.min, np.max)],
                "z": [round(float(of(z[there])), 2) for of in (np.min, np.max)],
            }
            for name, there in groups.items()
        }
        found[told] = {f"exact_of_{PHASES}": exact, "wrong": dict(wrong), "stand": stand}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["0.5/3/4", "0.45/3/4", "0.4/3/4", "0.3/4/5"])
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--lengths", type=float, nargs="*", default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2])
    parser.add_argument("--blinks", action="store_true")
    parser.add_argument("--sample", type=Path, help="folder of the real recording")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    head = build_template(spacing="ico3")
    report: dict[str, Any] = {"machine": machine(), "seconds": given.seconds, "blinks": given.blinks, "false_marks": {}}
    for seed in given.seeds:
        marks = false_marks(head, given.settings, given.seconds, seed, given.blinks)
        report["false_marks"][str(seed)] = marks
        print(f"seed {seed}, {given.seconds:g} s, good channels marked: {marks}", flush=True)
    report["short_artefacts"] = short_artefacts(head, given.settings, given.lengths)
    print(f"of {ARTEFACTS} artefacts of so many seconds, marked: {report['short_artefacts']}")
    if given.sample is not None:
        report["recording"] = of_the_recording(given.sample, given.settings)
        print(f"the real recording: {report['recording']}")
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
