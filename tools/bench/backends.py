"""How long each backend takes on this machine for the models that ship, beside a plain linear kernel and the floor.

    OMP_NUM_THREADS=1 python tools/bench/backends.py --report tools/bench/backends.json

Of every model what is done for every sample (for a model that sees windows: under the factors of a prior), one sample and a
hop of ten at a time, host to host; what is made of a window, from its columns to the factors and the estimate of the last of
them, is timed by itself, and so is the network part of it alone, by the clock and by processor time. All take turns, round
by round, so that what else the machine does is shared by all. The kernel is a linear inverse of the same size: torch, ONNX
Runtime, and the solver of the classical inverses. The floor is the larger of two: operations over the rate of a large matrix
product, bytes of weights and operands over the rate at which 256 MB are read; weights that stay in a cache may be read
faster than that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from rt_mmdf.backends.choice import Programs, Trial, precisions_of, tried_runner, why_not
from rt_mmdf.backends.interface import BACKENDS, BackendName, Runner, Task, describe
from rt_mmdf.core.errors import SolverError
from rt_mmdf.solvers.artefact import find_model, load_artefact
from rt_mmdf.solvers.linear import LinearSolver
from rt_mmdf.solvers.network import TrainedNetwork
from rt_mmdf.solvers.tasks import kernel_task
from rt_mmdf.solvers.windows import WindowPrograms

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine

SIZES = (1, 10)
SFREQ = 1000.0


def runners_of(programs: Programs, trial: Trial) -> tuple[dict[str, Runner], dict[str, str]]:
    """Those that are true here, by their names, and why the others are not used."""
    there: dict[str, Runner] = {}
    absent: dict[str, str] = {}
    for backend in BACKENDS:
        if (reason := why_not(backend)) is not None:
            absent[backend] = reason
            continue
        for precision in precisions_of(backend, programs.task):
            try:
                there[describe(backend, precision)] = tried_runner(programs, trial, backend, precision)[0]
            except SolverError as error:
                absent[describe(backend, precision)] = str(error)
    return there, absent


def take_turns(
    calls: dict[str, Callable[[], Any]], rounds: int, per_round: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """p50 and p99 of each, ms; the first call of a turn warms the caches for its own kind and is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            for _ in range(per_round):
                began = clock()
                call()
                taken[name].append(1e3 * (clock() - began))
    return {
        name: {"p50": round(float(np.median(times)), 4), "p99": round(float(np.percentile(times, 99)), 4)}
        for name, times in taken.items()
    }


def product_rate() -> float:
    """Operations a second of a large product in single precision, one thread: the best of 20."""
    a, b = torch.rand(768, 768), torch.rand(768, 768)
    best = min(_seconds(lambda: a @ b) for _ in range(20))
    return float(2 * 768**3 / best)


def read_rate() -> float:
    """Bytes a second of reading 256 MB: the best of 10."""
    many = torch.ones(64 * 2**20)
    return float(many.numel() * 4 / min(_seconds(many.sum) for _ in range(10)))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def cost(task: Task, operands: tuple[np.ndarray, ...], n: int) -> tuple[int, int]:
    """Operations for n samples, and bytes of weights and operands."""
    module = task.module("fp32")
    given = [torch.zeros(n, task.n_in), *(torch.from_numpy(np.ascontiguousarray(operand)) for operand in operands)]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(*given)
    weights = sum(values.numel() * 4 for values in module.parameters())
    weights += sum(values.numel() * 4 for values in module.buffers() if task.name == "kernel")
    return int(counter.get_total_flops()), int(weights + sum(operand.nbytes for operand in operands))


def bench(name: str, rounds: int, rates: tuple[float, float]) -> dict[str, Any]:
    """One model."""
    artefact = load_artefact(find_model(name))
    head = artefact.load_head()
    model = TrainedNetwork(artefact, head, head.channels, artefact.noise_cov, artefact.projs, sfreq=SFREQ, refresh_ms=100.0)
    fitted = model.fit()
    found = model.trial(fitted)
    assert found is not None
    programs, trial = found
    there, absent = runners_of(programs, trial)
    matrix = fitted.arrays.leadfield.T
    kernel = kernel_task(matrix, "kernel")
    kernels, _ = runners_of(Programs(kernel), Trial(trial.samples, (), trial.positions_mm))
    linear = LinearSolver(matrix[None], "A m")
    report: dict[str, Any] = {"network": artefact.kind, "not_here": absent}
    for n in SIZES:
        samples = np.ascontiguousarray(trial.samples[-n:])
        turned = np.ascontiguousarray(samples.T)
        calls: dict[str, Callable[[], Any]] = {key: partial(runner, samples) for key, runner in there.items()}
        calls |= {f"kernel, {key}": partial(runner, samples) for key, runner in kernels.items()}
        calls["kernel, solver of the classical inverses"] = partial(linear, turned, n)
        operations, size = cost(programs.task, trial.operands, n)
        floors = {"operations_ms": 1e3 * operations / rates[0], "weights_ms": 1e3 * size / rates[1]}
        report[f"samples_{n}"] = {
            "ms": take_turns(calls, rounds),
            "operations": operations,
            "weight_bytes": size,
            "floor_ms": {key: round(value, 4) for key, value in floors.items()},
        }
    if (looks := model.window_trial(fitted)) is not None:
        report["window"] = bench_windows(*looks, max(4, rounds // 8))
    return report


def bench_windows(programs: WindowPrograms, trial: Trial, rounds: int) -> dict[str, Any]:
    """Looks at windows by every backend, in turns, how true they are, and the network part alone where it is a graph."""
    there: dict[BackendName, Runner] = {}
    absent: dict[BackendName, str] = {}
    accuracy: dict[BackendName, dict[str, float]] = {}
    for backend in BACKENDS:
        try:
            there[backend], outcome = tried_runner(programs, trial, backend, "fp32")
        except SolverError as error:
            absent[backend] = str(error)
        else:
            assert outcome.accuracy is not None
            accuracy[backend] = outcome.accuracy.as_dict()
    turn = iter(range(10**9))

    def look(runner: Runner) -> None:
        i = next(turn) % len(trial.samples)
        runner(trial.samples[i : i + 1])

    calls: dict[str, Callable[[], Any]] = {name: partial(look, runner) for name, runner in there.items()}
    assert programs.task.example is not None
    row, operands = programs.task.example
    for name in there:
        alone = programs.shared.runner(name)
        alone.load(*operands)
        calls[f"network part, {name}"] = partial(alone, row)
    return {
        "ms": take_turns(calls, rounds, 3),
        "processor_ms": take_turns(calls, rounds, 3, time.thread_time),
        "accuracy": accuracy,
        "not_here": absent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mmdf", "fusion"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rates = product_rate(), read_rate()
    report = {
        "machine": machine(),
        "torch": torch.__version__,
        "threads": 1,
        "product_gflop_per_s": round(rates[0] / 1e9, 1),
        "read_gb_per_s": round(rates[1] / 1e9, 1),
        "models": {},
    }
    for name in given.models:
        report["models"][name] = bench(name, given.rounds, rates)
        print(name, json.dumps(report["models"][name], indent=1), flush=True)
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["machine"]))


if __name__ == "__main__":
    main()
