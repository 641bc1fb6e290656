"""What it costs in accuracy to look at windows beside the hops: a model's error over its lag, on a simulated recording.

    OMP_NUM_THREADS=1 python tools/bench/lag.py --report tools/bench/lag.json

The recording, its filters, its measured noise covariance and its scoring are those of the demonstration; all is imaged in
one thread, so no window is ever late and the figures do not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import sosfilt

from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.headmodel.noise import NoiseCovarianceEstimator, regularised
from rt_mmdf.headmodel.whitener import imaging_info
from rt_mmdf.preprocessing.filters import CausalFilter
from rt_mmdf.preprocessing.projectors import make_projectors
from rt_mmdf.simulation.recordings import SimulationSettings, simulate_recording
from rt_mmdf.simulation.truth import score
from rt_mmdf.solvers.artefact import find_model, load_artefact
from rt_mmdf.solvers.network import TrainedNetwork

HOP, REST_S = 10, 30.0
CASES = ((100.0, 0.0), (100.0, 30.0), (100.0, 50.0), (100.0, 100.0), (50.0, 0.0), (50.0, 30.0), (50.0, 50.0))
"""Refresh and lag, ms."""
PHASES_MS = (0, 33, 67)
"""Where the first window ends: what happens in the recording keeps time, and so do the windows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fusion")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = SessionSettings.model_validate({"acquisition": {"eeg": {"name": "a"}, "meg": {"name": "b"}}})
    simulation = SimulationSettings(duration_s=given.seconds)
    sfreq = simulation.sfreq
    sos = CausalFilter.from_settings(settings.preprocessing.filters, sfreq).sos
    rest = simulation.model_copy(
        update={"seed": simulation.seed + 1, "duration_s": REST_S + simulation.period_s, "rest_s": REST_S}
    )
    raw, _ = simulate_recording(rest)
    raw.pick(["meg", "eeg"], verbose="error")
    names = tuple(raw.ch_names)
    channels = Channels(names, tuple(ChannelType(kind) for kind in raw.get_channel_types()))
    estimator = NoiseCovarianceEstimator(channels)
    estimator(sosfilt(sos, raw.get_data(stop=round(REST_S * sfreq)), axis=1)[:, round(2 * sfreq) :])
    artefact = load_artefact(find_model(given.model))
    head = artefact.load_head().named_like(names)
    projectors = make_projectors(channels, [], settings.preprocessing.average_reference)
    info = imaging_info(head.info, names, projectors)
    noise_cov = regularised(estimator.covariance(), info, settings.noise.regularisation)
    raw, truth = simulate_recording(simulation)
    raw.pick(list(names), verbose="error")
    data = sosfilt(sos, raw.get_data(), axis=1)
    times = raw.times
    whitener, rank = truth.whitener(names, lambda moments: np.asarray(sosfilt(sos, moments, axis=1)))
    report: dict[str, Any] = {"model": given.model, "seconds": given.seconds, "hop_samples": HOP, "cases": []}
    for refresh_ms, lag_ms in CASES:
        model = TrainedNetwork(
            artefact, head, channels, noise_cov, projectors, sfreq=sfreq, refresh_ms=refresh_ms, lag_ms=lag_ms
        )
        operator = model.build_operator()
        whitened = (operator.whitener.matrix @ data).astype(np.float32)
        length = model.window_length(HOP)
        errors = []
        for phase_ms in PHASES_MS:
            operator.solver.reset()
            first = round(phase_ms * 1e-3 * sfreq)
            peaks = []
            for end in range(first + HOP, whitened.shape[1] + 1, HOP):
                estimate = operator.solver(whitened[:, max(0, end - length) : end], HOP)
                peaks.append(np.abs(estimate).argmax(axis=0))
            places = head.source_positions_mm[np.concatenate(peaks)]
            seen = score(
                times[first : first + len(places)],
                places,
                truth,
                whitener=whitener,
                rank=rank,
                ch_names=names,
                causal_filter=lambda moments: np.asarray(sosfilt(sos, moments, axis=1)),
            )
            errors.append(seen.le_mm)
        error = np.concatenate(errors)
        own = {
            "refresh_ms": refresh_ms,
            "lag_ms": lag_ms,
            "n_scored": len(error),
            "median_mm": round(float(np.median(error)), 2),
            "p90_mm": round(float(np.percentile(error, 90)), 2),
            "mean_mm": round(float(error.mean()), 2),
            "share_beyond_30_mm": round(float((error > 30).mean()), 4),
        }
        report["cases"].append(own)
        print(own, flush=True)
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
