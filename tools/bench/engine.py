"""Software-added latency of the engine: from the push of the later modality to the published estimate.

    python tools/bench/engine.py                      # 366 channels, 1 kHz, blocks of 10, 5124 sources, every sample imaged
    python tools/bench/engine.py --against streamlsl  # beside a loop of mne-lsl's StreamLSL and mne's apply_inverse_raw
    python tools/bench/engine.py --against bare       # beside two inlets, sosfilt, one matrix product and a push
    python tools/bench/engine.py --against optional   # beside itself with sensors, a second solver and averages

A replay process publishes; what is measured runs in processes of its own, one after the other and again, on the same
streams, so that whatever else the machine does disturbs them alike. The push of a sample is what the replay logged, on the
clock that all processes of a machine share. Latency of a hop: its estimate's publication less the push of the last sample
that it needs. What the resampler looks ahead (10 ms) is physics, as the fill of a block is, and not in these figures. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import mne
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine

SFREQ, CHUNK, HOP_MS = 1000.0, 10, 10.0
WARM_UP_S = 4.0
BAND = (1.0, 40.0)
MODALITIES = ("eeg", "meg")


def write_recording(path: Path) -> None:
    """Ten seconds of noise of realistic size on the channels of the template head."""
    from rt_mmdf.headmodel.noise import AD_HOC_STD
    from rt_mmdf.headmodel.template import build_template

    info = build_template().info
    kinds = info.get_channel_types()
    scale = np.array([10 * AD_HOC_STD[kind] for kind in kinds])
    data = np.random.default_rng(0).standard_normal((len(kinds), round(10 * SFREQ))) * scale[:, None]
    recorded = mne.create_info(info["ch_names"], SFREQ, kinds)
    mne.io.RawArray(data, recorded, verbose="ERROR").save(path, overwrite=True, verbose="ERROR")


def run_engine(prefix: str, seconds: float, out: Path, optional: dict[str, object] | None = None) -> None:
    """The product; with `optional` sections an event a second comes."""
    from rt_mmdf.app.session import Session
    from rt_mmdf.app.settings import SessionSettings
    from rt_mmdf.core.channels import Modality
    from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
    from rt_mmdf.lsl.network import NetworkTransport
    from rt_mmdf.runtime.mailbox import Signal

    transport = NetworkTransport()
    markers = None
    if optional is not None:
        name = f"{prefix}-stimuli"
        markers = transport.outlet(StreamDescription(name, "Markers", name, 0.0, "string", (ChannelDescription("m"),), {}))
    settings = SessionSettings.model_validate(
        {
            "name": f"{prefix}-engine",
            "acquisition": {m: {"name": f"{prefix}-{m.upper()}", "resolve_timeout_s": 30.0} for m in MODALITIES},
            "hop_ms": HOP_MS,
            "preprocessing": {"filters": {"band_pass": {"low_hz": BAND[0], "high_hz": BAND[1]}}},
            **(optional or {}),
        }
    )
    last, published, memory = [], [], []
    process, pause = psutil.Process(), Signal()

    def note(estimate: object) -> None:
        last.append(estimate.times[-1])  # type: ignore[attr-defined]
        published.append(estimate.stamps.published)  # type: ignore[attr-defined]

    session = Session(settings, transport, on_estimate=note)
    with session:
        while session.seconds_running < seconds + WARM_UP_S:
            pause.wait(1.0)
            session.check()
            if markers is not None:
                markers.push(["1"], transport.clock.now())
            memory.append((session.seconds_running, process.memory_info().rss / 2**20))
        ahead = [session.intake.aligner.look_ahead_samples(Modality(m)) for m in MODALITIES]
    card = session.scorecard().as_dict()
    status = session.status()
    np.savez(
        out,
        last=np.array(last),
        published=np.array(published),
        ahead=np.array(ahead),
        memory=np.array(memory),
        stages=json.dumps(card["latency_by_stage_ms"]),
        counts=json.dumps({k: card[k] for k in ("hops", "skipped_hops", "missed_deadlines", "lost_samples", "cpu_cores")}),
        optional=json.dumps({k: status[k] for k in ("sensors", "second", "average")}, default=str),
    )


def run_optional(prefix: str, seconds: float, out: Path) -> None:
    """The product with all that it publishes on request: another solver for every sample, averages one a second."""
    average = {"markers": {"name": f"{prefix}-stimuli"}, "events": {"all": ["1"]}}
    sections = {"second_solver": {"method": "MNE"}, "average": average, "output": {"sensors": {}}}
    run_engine(prefix, seconds, out, sections)


def kernel() -> tuple[np.ndarray, object, object]:
    """The matrix, inverse operator and info that the others image with: dSPM on the same head."""
    from rt_mmdf.core.channels import Modality
    from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
    from rt_mmdf.headmodel.template import build_template
    from rt_mmdf.headmodel.whitener import imaging_info
    from rt_mmdf.solvers.linear import SolverSettings, sensor_kernel

    head = build_template()
    names = [head.ch_names[i] for m in Modality for i in head.channels.of_modality(m)]
    info = imaging_info(head.info, names, ())
    forward = mne.pick_channels_forward(head.forward, names, ordered=True, verbose="ERROR")
    noise_cov = ad_hoc_noise_cov(head.channels)
    settings = SolverSettings()
    inverse = mne.minimum_norm.make_inverse_operator(
        info, forward, noise_cov, loose=0, fixed=True, depth=settings.depth, verbose="ERROR"
    )
    prepared = mne.minimum_norm.prepare_inverse_operator(inverse, 1, settings.lambda2, settings.method, verbose="ERROR")
    matrix = sensor_kernel(forward, info, noise_cov, settings)[0].astype(np.float32)
    return matrix, prepared, info


def run_bare(prefix: str, seconds: float, out: Path) -> None:
    """What a programmer would write in an afternoon: no clocks, no checks, one thread."""
    from mne_lsl.lsl import StreamInfo, StreamInlet, StreamOutlet, local_clock, resolve_streams
    from scipy.signal import butter, sosfilt, sosfilt_zi

    matrix, _, _ = kernel()
    inlets = [StreamInlet(resolve_streams(timeout=30, name=f"{prefix}-{m.upper()}")[0]) for m in MODALITIES]
    outlet = StreamOutlet(
        StreamInfo(f"{prefix}-bare", "S", len(matrix), SFREQ, "float32", f"{prefix}-bare"), chunk_size=CHUNK
    )
    factors = np.concatenate([np.full(60, 1e-6), np.full(306, 1e-15)])
    sos = butter(4, BAND, "bandpass", fs=SFREQ, output="sos")
    state = np.zeros((len(sos), len(factors), 2)) * sosfilt_zi(sos)[:, None, :]
    last, published = [], []
    for inlet in inlets:
        inlet.open_stream()
    start = local_clock()
    while local_clock() - start < seconds + WARM_UP_S:
        blocks, stamps = [], []
        for inlet in inlets:
            data, times = inlet.pull_chunk(timeout=1.0, max_samples=CHUNK)
            blocks.append(data.copy())
            stamps.append(times[-1])
        x = np.hstack(blocks).T * factors[:, None]
        filtered, state = sosfilt(sos, x, axis=1, zi=state)
        estimate = np.ascontiguousarray((matrix @ filtered.astype(np.float32)).T)
        outlet.push_chunk(estimate, max(stamps))
        last.append(stamps)
        published.append(local_clock())
    np.savez(out, last=np.array(last), published=np.array(published))


def run_streamlsl(prefix: str, seconds: float, out: Path) -> None:
    """mne-lsl's high-level stream and mne's own inverse, with the inverse operator prepared once."""
    from mne_lsl.lsl import local_clock
    from mne_lsl.stream import StreamLSL

    _, prepared, info = kernel()
    with info._unlock():  # type: ignore[attr-defined]
        info["sfreq"] = SFREQ  # type: ignore[index]
    factors = np.concatenate([np.full(60, 1e-6), np.full(306, 1e-15)])[:, None]
    streams = [StreamLSL(bufsize=2.0, name=f"{prefix}-{m.upper()}") for m in MODALITIES]
    for stream in streams:
        stream.connect(acquisition_delay=0.001, timeout=30)
        stream.filter(*BAND, verbose="ERROR")
    last, published = [], []
    seen = [0.0, 0.0]
    start = local_clock()
    while local_clock() - start < seconds + WARM_UP_S:
        windows = [stream.get_data() for stream in streams]
        times = [window[1] for window in windows]
        n_new = min(int(np.count_nonzero(t > before)) for t, before in zip(times, seen, strict=True))
        if n_new == 0:
            continue
        # the oldest samples that both have and that were not imaged yet
        picked = [slice(int(np.searchsorted(t, before, side="right")), None) for t, before in zip(times, seen, strict=True)]
        data = np.vstack([window[0][:, pick][:, :n_new] for window, pick in zip(windows, picked, strict=True)])
        raw = mne.io.RawArray(data * factors, info, verbose="ERROR")
        mne.minimum_norm.apply_inverse_raw(raw, prepared, 1 / 9, "dSPM", prepared=True, verbose="ERROR")
        done = local_clock()
        before = seen
        seen = [float(t[pick][n_new - 1]) for t, pick in zip(times, picked, strict=True)]
        # each block of 10 that this round completed was imaged now
        for k in range(1, round((seen[1] - before[1]) * SFREQ / CHUNK) + 1 if before[1] else 2):
            last.append([s - (k - 1) * CHUNK / SFREQ for s in seen])
            published.append(done)
    for stream in streams:
        stream.disconnect()
    np.savez(out, last=np.array(last), published=np.array(published))


ROLES = {"engine": run_engine, "bare": run_bare, "streamlsl": run_streamlsl, "optional": run_optional}
PRODUCT = ("engine", "optional")


def latencies_ms(
    role: str, arrays: dict[str, np.ndarray], log: dict, pushes: dict[str, np.ndarray], warm_up_s: float = WARM_UP_S
) -> np.ndarray:
    """Publication less the push of the last sample needed, of the modality that came later; warm-up left out."""
    published = arrays["published"]
    pushed = np.zeros(len(published))
    for column, m in enumerate(MODALITIES):
        stamp_0 = log["streams"][m]["stamp_0"]
        if role in PRODUCT:
            needed = np.floor((arrays["last"] - stamp_0) * SFREQ + 1e-3).astype(int) + int(arrays["ahead"][column])
        else:
            needed = np.rint((arrays["last"][:, column] - stamp_0) * SFREQ).astype(int)
        block = np.searchsorted(pushes[f"{m}_first"], needed, side="right") - 1
        pushed = np.maximum(pushed, pushes[f"{m}_pushed"][np.clip(block, 0, len(pushes[f"{m}_pushed"]) - 1)])
    warm = published >= published[0] + warm_up_s
    return (published - pushed)[warm] * 1e3


def measure(roles: list[str], seconds: float, rounds: int) -> dict[str, dict]:
    """Run each role `rounds` times, in turns."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    found: dict[str, list[dict[str, np.ndarray]]] = {role: [] for role in roles}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recording, log_file = folder / "noise-raw.fif", folder / "replay.json"
        write_recording(recording)
        command = [sys.executable, "-m", "rt_mmdf.cli", "replay", str(recording), "--prefix", prefix, "--loop", "inf"]
        command += ["--chunk", str(CHUNK), "--no-markers", "--log", str(log_file), "--log-pushes"]
        replay = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for number in range(rounds):
                for role in roles:
                    out = folder / f"{role}-{number}.npz"
                    subprocess.run(
                        [
                            sys.executable,
                            __file__,
                            "--role",
                            role,
                            "--prefix",
                            prefix,
                            "--seconds",
                            str(seconds),
                            "--out",
                            str(out),
                        ],
                        check=True,
                        timeout=seconds + 180,
                    )
                    with np.load(out) as arrays:
                        found[role].append(dict(arrays))
        finally:
            replay.terminate()
            replay.wait(30)
        log = json.loads(log_file.read_text())
        with np.load(log_file.with_suffix(".npz")) as arrays:
            pushes = dict(arrays)
    result = {}
    for role, runs in found.items():
        all_ms = np.concatenate([latencies_ms(role, run, log, pushes) for run in runs])
        quantiles = {f"p{q:g}_ms": float(np.percentile(all_ms, q)) for q in (50, 90, 99, 99.9)}
        result[role] = {"n_hops": len(all_ms), **quantiles, "max_ms": float(all_ms.max())}
        if role in PRODUCT:
            memory = np.vstack([run["memory"][run["memory"][:, 0] > WARM_UP_S] for run in runs])
            slopes = [np.polyfit(*run["memory"][run["memory"][:, 0] > WARM_UP_S].T, 1)[0] * 60 for run in runs]
            result[role] |= {"rss_mb": float(memory[:, 1].max()), "rss_growth_mb_per_min": float(np.median(slopes))}
            result[role] |= json.loads(str(runs[-1]["counts"])) | {"stages_ms": json.loads(str(runs[-1]["stages"]))}
            result[role]["late_20_ms"] = [int((latencies_ms(role, run, log, pushes) > 20).sum()) for run in runs]
            result[role]["optional"] = json.loads(str(runs[-1]["optional"]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["streamlsl", "bare", "optional"])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--report", type=Path, help="add the line to this file")
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        ROLES[args.role](args.prefix, args.seconds, args.out)
        return
    other = [args.against] if args.against else []
    found = measure(["engine", *other], args.seconds, args.rounds)
    setting = {
        "channels": 366,
        "sfreq": SFREQ,
        "chunk": CHUNK,
        "sources": 5124,
        "seconds": args.seconds,
        "rounds": args.rounds,
    }
    line = {"bench": "engine", **setting, "p50_ms": found["engine"]["p50_ms"], "p99_ms": found["engine"]["p99_ms"]}
    for name in other:
        line |= {f"{name}_p50_ms": found[name]["p50_ms"], f"{name}_p99_ms": found[name]["p99_ms"]}
        line["ratio_p99"] = found[name]["p99_ms"] / found["engine"]["p99_ms"]
    line |= {"detail": found, "machine": machine()}
    if args.report is not None:
        with args.report.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
