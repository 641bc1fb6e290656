"""Everything that needs an NVIDIA GPU, in one run: parity, captured graphs, latency, throughput, training, TensorRT.

    python tools/bench/gpu.py --report gpu.json

Needs torch, numpy, safetensors and onnx; runs ONNX Runtime and TensorRT (`tensorrt` or `tensorrt_rtx`) where they can be
imported. No mne, no installation: the checkout is enough. Without a GPU it says so and ends with exit code 2; `--device cpu`
goes through the same steps on the processor, for whoever changes this file.

366 channels, 5124 sources on two spheres and a made-up leadfield, since a head needs mne: weights are those of models/ (the
network `fusion` knows no head; that of `mmdf` is the very file), shapes, operations and bytes are the real ones. What is not
true is not timed. A backend that cannot run is reported with what it said.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # the checkout need not be installed

from rt_mmdf.backends.accuracy import accuracy_of, trial_samples, trial_windows
from rt_mmdf.backends.choice import Programs, Trial, precisions_of, tried, why_not
from rt_mmdf.backends.engine_cache import EngineCache
from rt_mmdf.backends.interface import BACKENDS, Precision, describe
from rt_mmdf.backends.tensorrt_backend import TensorRtProgram, driver_version, find_library
from rt_mmdf.backends.torch_backend import TorchBackend, load_weights
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.fusion_graph import example_row, operands_of
from rt_mmdf.networks.interface import EEG, GRAD, MAG, Batch, ForwardArrays, SourceNetwork
from rt_mmdf.networks.pictures import PictureNetwork
from rt_mmdf.solvers.tasks import factor_task, kernel_task, picture_operands, picture_task, window_task
from rt_mmdf.solvers.windows import WindowPrograms

ROOT = Path(__file__).parents[2]
KINDS = ("mmdf", "convdip", "fusion", "kernel")
HOPS = (1, 10)
TRAINED = {"mmdf": 500, "fusion": 64}  # samples of a training step
THROUGHPUT = 4096
NO_GPU = 2


def sphere(n_rounds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Unit icosphere of 2562 vertices (4 rounds of halving the edges), and its triangles."""
    golden = (1 + 5**0.5) / 2
    corners = [(-1, golden, 0), (1, golden, 0), (-1, -golden, 0), (1, -golden, 0)]
    vertices = [np.array(np.roll(corner, shift), float) for shift in (0, 1, 2) for corner in corners]
    points = np.array(vertices) / np.linalg.norm(vertices[0])
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    near = (apart > 0.1) & (apart < 1.1)
    triangles = np.array(
        [(i, j, k) for i in range(12) for j in range(i) for k in range(j) if near[i, j] and near[j, k] and near[i, k]]
    )
    for _ in range(n_rounds):
        edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        pairs, place = np.unique(edges, axis=0, return_inverse=True)
        a, b, c = triangles.T
        ab, bc, ca = (place.reshape(-1, 3) + len(points)).T
        middle = points[pairs].mean(axis=1)
        points = np.vstack([points, middle / np.linalg.norm(middle, axis=1, keepdims=True)])
        triangles = np.vstack([np.stack(part, axis=1) for part in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
    return points, triangles


def made_up_arrays(kinds: np.ndarray) -> ForwardArrays:
    """Two spheres of 2562 sources in a helmet; smooth fields."""
    rng = np.random.default_rng(0)
    points, triangles = sphere()
    positions = np.vstack([40 * points - [42, 0, 0], 40 * points + [42, 0, 0]]).astype(np.float32)
    outward = np.vstack([points, points])
    order = np.arange(len(kinds)) + 0.5
    height, turn = 1 - order / len(kinds), 2.39996 * order
    radius = np.sqrt(1 - height**2)
    sensors = 115 * np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)
    ray = sensors[:, None] - positions[None]
    gain = np.einsum("cvi,vi->cv", ray, outward) / np.linalg.norm(ray, axis=2) ** 3
    gain *= np.where(kinds == EEG, 1.0, rng.uniform(0.5, 2, len(kinds)))[:, None]
    return ForwardArrays(
        leadfield=(gain * 300).astype(np.float32),
        used=np.ones(len(kinds), dtype=bool),
        rank=len(kinds) - 5,
        kinds=kinds,
        layout=(np.sqrt(order / len(kinds))[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)).astype(np.float32),
        positions_mm=positions,
        triangles=np.vstack([triangles, triangles + len(points)]).astype(np.int64),
        n_left=len(points),
    )


def shipped(kind: str, arrays: ForwardArrays) -> tuple[SourceNetwork, str]:
    """The network with the weights of models/, or with random ones, and which of the two."""
    torch.manual_seed(0)
    folder = ROOT / "models" / kind
    if not folder.is_dir():
        network = build_network(kind, {}, arrays)
        with torch.no_grad():
            for values in network.parameters():
                values += 0.02 * torch.randn_like(values)
        return network.eval().requires_grad_(False), "random"
    manifest = tomllib.loads((folder / "manifest.toml").read_text())["network"]
    network = build_network(kind, manifest["options"], arrays)
    load_weights(network, safetensors.numpy.load_file(folder / "weights.safetensors"))
    return network.eval(), f"models/{kind}"


def milliseconds(call: Callable[[], Any], n_calls: int) -> dict[str, float]:
    """p50, p99 and largest of single calls, host to host, after a warm-up."""
    for _ in range(min(20, n_calls)):
        call()
    taken = np.empty(n_calls)
    for i in range(n_calls):
        began = time.perf_counter()
        call()
        taken[i] = 1e3 * (time.perf_counter() - began)
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50": round(float(p50), 5), "p99": round(float(p99), 5), "max": round(float(taken.max()), 5)}


def bench_backends(programs: Programs, trial: Trial, calls: int) -> dict[str, Any]:
    """Parity of each backend and precision, and latency of those that are true."""
    truth, report = programs.truth(trial), {}
    for backend in BACKENDS:
        for precision in precisions_of(backend, programs.task):
            name = describe(backend, precision)
            if (reason := why_not(backend)) is not None:
                report[name] = {"not_here": reason}
                continue
            try:
                began = time.perf_counter()
                runner = programs.runner(backend, precision)
                own: dict[str, Any] = {"device": runner.device, "prepared_s": round(time.perf_counter() - began, 3)}
                outcome = tried(runner, programs, trial, truth)
                own |= {"accuracy": outcome.accuracy and outcome.accuracy.as_dict(), "problem": outcome.problem}
                if outcome.problem is None:
                    for n in HOPS:
                        own[f"ms_{n}"] = milliseconds(partial(runner, np.ascontiguousarray(trial.samples[-n:])), calls)
                runner.close()
            except Exception as error:  # whatever it is belongs into the report, the rest is still to be measured
                own = {"failed": f"{type(error).__name__}: {error}"}
            report[name] = own
    return report


def bench_windows(network: Any, arrays: ForwardArrays, engines: EngineCache, calls: int) -> dict[str, Any]:
    """Looks at windows with the network part on each backend: how true, how long as a whole, how long that part alone."""
    prepared = network.prepare(arrays)
    windows = trial_windows(arrays.leadfield, arrays.used, 8, network.n_times)
    row, operands = example_row(network, prepared, windows[0]), operands_of(prepared, network)
    shared = Programs(window_task(network, row, operands, "fusion, windows"), engines)
    programs = WindowPrograms(shared, network, prepared, arrays.n_channels)
    trial = Trial(windows.reshape(len(windows), -1), (), arrays.positions_mm, of_windows=True)
    report: dict[str, Any] = {"tensorrt_builds": build_without_running(shared, engines)}
    for backend in BACKENDS:
        if (reason := why_not(backend)) is not None:
            report[backend] = {"not_here": reason}
            continue
        try:
            runner = programs.runner(backend)
            outcome = tried(runner, programs, trial)
            own: dict[str, Any] = {"accuracy": outcome.accuracy and outcome.accuracy.as_dict(), "problem": outcome.problem}
            if outcome.problem is None:
                own["ms_look"] = milliseconds(partial(runner, trial.samples[:1]), max(5, calls // 20))
                with shared.runner(backend) as alone:
                    alone.load(*operands)
                    own["ms_network"] = milliseconds(partial(alone, row), max(5, calls // 20))
            runner.close()
        except Exception as error:  # as in `bench_backends`
            own = {"failed": f"{type(error).__name__}: {error}"}
        report[backend] = own
    return report


def bench_throughput(programs: Programs, trial: Trial, device: torch.device, precision: Precision) -> dict[str, float]:
    """Samples a second of large batches that are on the device already, by torch."""
    module = programs.task.module(precision).to(device)
    operands = [torch.from_numpy(np.ascontiguousarray(operand)).to(device) for operand in trial.operands]
    n = THROUGHPUT if device.type == "cuda" else 64
    samples = torch.randn(n, programs.task.n_in, device=device)
    with torch.inference_mode():
        for _ in range(3):
            module(samples, *operands)
        wait(device)
        began, rounds = time.perf_counter(), 0
        while time.perf_counter() - began < 1.0:
            module(samples, *operands)
            wait(device)
            rounds += 1
    return {"batch": n, "samples_per_s": round(rounds * n / (time.perf_counter() - began), 1)}


def bench_prior(network: Any, arrays: ForwardArrays, device: torch.device, calls: int) -> dict[str, Any]:
    """What is made of a window on the device, eagerly, against the processor."""
    windows = trial_windows(arrays.leadfield, arrays.used, 8, network.n_times)
    here = TorchBackend(network, network.prepare(arrays))
    cpu = [here.image(np.ascontiguousarray(window[:, -1:].T), here.context(window))[0] for window in windows]
    moved, prepared = network.to(device), network.prepare(arrays, device)
    given = torch.from_numpy(windows).to(device)

    def look(window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        prior = moved.prior(window[None, :, -1], window[None], prepared)
        factors: tuple[torch.Tensor, torch.Tensor] = moved.factors(prior, prepared)
        wait(device)
        return factors

    with torch.inference_mode():
        said = []
        for window in given:
            first, second = look(window)
            said.append((window[None, :, -1] @ first @ second)[0].cpu().numpy())
        each = [accuracy_of(a[None], b[None], arrays.positions_mm) for a, b in zip(said, cpu, strict=True)]
        taken = milliseconds(lambda: look(given[0]), max(5, calls // 20))
    network.to("cpu")
    return {
        "ms": taken,
        "median_relative_l2_to_cpu": float(np.median([seen.relative_l2 for seen in each])),
        "largest_peak_mm_to_cpu": max(seen.peak_mm for seen in each),
    }


def bench_training(kind: str, arrays: ForwardArrays, device: torch.device, seconds: float) -> dict[str, float]:
    """Samples a second of loss, gradient and update on samples that are there already."""
    network = build_network(kind, {}, arrays).to(device).train()
    prepared, n = network.prepare(arrays, device), TRAINED[kind] if device.type == "cuda" else 8
    rng = np.random.default_rng(0)
    vertices = rng.integers(arrays.n_sources, size=(n, 1))
    samples = arrays.leadfield[:, vertices[:, 0]].T * 10 + rng.standard_normal((n, arrays.n_channels))
    window = None
    if network.n_times > 1:
        window = torch.from_numpy(trial_windows(arrays.leadfield, arrays.used, n, network.n_times)).to(device)
    batch = Batch(
        sample=torch.from_numpy(samples.astype(np.float32)) if window is None else window[:, :, -1],
        window=window,
        vertices=torch.from_numpy(vertices),
        moments=torch.full((n, 1), 10.0),
        centres=torch.from_numpy(vertices),
        centres_mm=torch.from_numpy(arrays.positions_mm[vertices]),
        snr_db=torch.zeros(n),
    ).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4)
    marks: list[float] = []
    while len(marks) < 4 or marks[-1] - marks[2] < seconds:
        optimiser.zero_grad(set_to_none=True)
        network.loss(batch, prepared).backward()
        optimiser.step()
        wait(device)
        marks.append(time.perf_counter())
    return {"batch": n, "samples_per_s": round(n * (len(marks) - 3) / (marks[-1] - marks[2]), 1)}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build_without_running(programs: Programs, engines: EngineCache) -> dict[str, Any]:
    """What TensorRT makes of the graphs, whether or not it can run here."""
    try:
        library = find_library()
        sizes = {
            precision: [
                len(TensorRtProgram(programs.task, precision, engines, library).engine(n)) for n in programs.task.sizes
            ]
            for precision in programs.task.precisions
        }
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"module": library.name, "version": library.version, "engine_bytes": sizes}


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    facts: dict[str, Any] = {"system": platform.platform(terse=True), "python": platform.python_version()}
    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver_version(), "device": "cpu"}
    if device.type == "cuda":
        seen = torch.cuda.get_device_properties(device)
        facts |= {"device": seen.name, "capability": f"{seen.major}.{seen.minor}", "memory_gb": seen.total_memory >> 30}
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--calls", type=int, default=2000, help="timed calls of each backend")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each training")
    parser.add_argument("--report", type=Path, help="write everything as JSON")
    given = parser.parse_args()
    if given.device == "cuda" and (reason := why_not("torch-cuda")) is not None:
        print(f"no GPU to measure: {reason}\n--device cpu goes through the steps on the processor.", file=sys.stderr)
        sys.exit(NO_GPU)
    device = torch.device(given.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    manifest = tomllib.loads((ROOT / "models" / "mmdf" / "manifest.toml").read_text())
    codes = {"eeg": EEG, "mag": MAG, "grad": GRAD}
    kinds = np.array([codes[kind] for kind in manifest["input"]["ch_types"]], dtype=np.int64)
    arrays = made_up_arrays(kinds)
    samples = np.ascontiguousarray(trial_samples(arrays.leadfield, arrays.used).T)
    report: dict[str, Any] = {"machine": machine(device), "date": time.strftime("%Y-%m-%d", time.gmtime()), "networks": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in given.kinds:
            own: dict[str, Any] = {}
            engines = EngineCache(Path(scratch) / "engines")
            network: SourceNetwork | None = None
            if kind == "kernel":
                programs, operands = Programs(kernel_task(arrays.leadfield.T, kind), engines), ()
            else:
                network, own["weights"] = shipped(kind, arrays)
                prepared = network.prepare(arrays)
                if isinstance(network, PictureNetwork):
                    programs, operands = Programs(picture_task(network, kind), engines), picture_operands(prepared)
                else:
                    window = trial_windows(arrays.leadfield, arrays.used, 1, network.n_times)[0]
                    first, second = (f.numpy() for f in TorchBackend(network, prepared).context(window)[1])
                    programs, operands = Programs(factor_task(*first.shape, second.shape[1], kind), engines), (first, second)
            trial = Trial(samples, operands, arrays.positions_mm)
            own["backends"] = bench_backends(programs, trial, given.calls)
            own["tensorrt_builds"] = build_without_running(programs, engines)
            precisions = programs.task.precisions if device.type == "cuda" else ("fp32",)
            own["throughput"] = {p: bench_throughput(programs, trial, device, p) for p in precisions}
            if kind == "fusion":
                own["window"] = bench_prior(network, arrays, device, given.calls)
                own["window_backends"] = bench_windows(network, arrays, engines, given.calls)
            if kind in TRAINED:
                own["training"] = bench_training(kind, arrays, device, given.seconds)
            report["networks"][kind] = own
            print(kind, json.dumps(own, indent=1), flush=True)
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["machine"]))


if __name__ == "__main__":
    main()
