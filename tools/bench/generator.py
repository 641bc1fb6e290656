"""How fast training batches are made, and how fast scenes are: 366 channels, 5124 sources.

    python tools/bench/generator.py --report tools/bench/generator.json

Samples a second are told twice: by the clock on the wall, which is what a training run gets from an idle machine, and by the
time that the processors spent, which other programs disturb less. `--device cuda` measures the generator on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from rt_mmdf.headmodel.template import build_template
from rt_mmdf.simulation.batches import BatchGenerator, BatchSettings, Scene
from rt_mmdf.simulation.heads import HeadVariation, varied_template
from rt_mmdf.simulation.scenes import SceneNoise, make_scene, true_cortex

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine

CASES = {
    "one patch": BatchSettings(n_sources=(1, 1)),
    "one to three patches": BatchSettings(n_sources=(1, 3)),
    "one patch, window of 25": BatchSettings(n_sources=(1, 1), n_times=25),
}


def scenes() -> tuple[dict[str, Scene], dict[str, float]]:
    """True heads on the nominal mesh and on one of 20484 vertices, and the seconds that the steps took."""
    seconds = {}
    start = time.perf_counter()
    nominal = build_template()
    truths = {"ico4": nominal, "ico5": varied_template(nominal, HeadVariation(electrode_shift_mm=5.0), spacing="ico5")}
    seconds["heads (from the cache, unless this is the first run)"] = time.perf_counter() - start
    made = {}
    for mesh, truth in truths.items():
        start = time.perf_counter()
        cortex = true_cortex(nominal, truth)
        seconds[f"neighbours on {mesh}"] = time.perf_counter() - start
        start = time.perf_counter()
        made[mesh] = make_scene(nominal, truth, SceneNoise(n_cov_samples=4000), seed=1, cortex=cortex, name=mesh)
        seconds[f"scene on {mesh}"] = time.perf_counter() - start
    return made, seconds


def rate(scene: Scene, settings: BatchSettings, device: str, seconds: float) -> dict[str, float]:
    """Samples a second over at least `seconds`, after a warm-up."""
    generator = BatchGenerator([scene], settings, seed=1, device=device)

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    for step in range(3):
        generator.batch(step)
    wait()
    wall, cpu, n = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        generator.batch(n)
        n += 1
    wait()
    made = n * settings.size
    return {
        "samples_per_s": round(made / (time.perf_counter() - wall)),
        "samples_per_cpu_s": round(made / (time.process_time() - cpu)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024], help="samples in a batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    made, steps = scenes()
    for what, taken in steps.items():
        print(f"{taken:8.2f} s  {what}")
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for mesh, scene in made.items():
            for what, settings in CASES.items():
                for size in args.sizes:
                    chosen = BatchSettings(**(asdict(settings) | {"size": size}))
                    row = {"threads": threads, "truth": mesh, "case": what, "size": size}
                    row |= rate(scene, chosen, args.device, args.seconds)
                    rows.append(row)
                    print(json.dumps(row))
    if args.report:
        content = {"bench": "generator", "device": args.device, "seconds": args.seconds, "scenes_s": steps, "rows": rows}
        args.report.write_text(json.dumps(content | {"machine": machine()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
