"""How fast each network trains: samples a second, the making of the samples and the update included.

    python tools/bench/training.py --report tools/bench/training.json

366 channels, 5124 sources, samples as configs/train_*.toml have them. Told twice: by the clock on the wall, which is what
one gets from an idle machine, and by the time that the processors spent. `--device cuda` measures a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from rt_mmdf.core.settings import load_settings
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.networks.build import NETWORK_KINDS
from rt_mmdf.simulation.batches import Scene
from rt_mmdf.simulation.scenes import SceneNoise, make_scene, true_cortex
from rt_mmdf.training.bare import new_network
from rt_mmdf.training.loop import LoopSettings, train_network
from rt_mmdf.training.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine

CONFIGS = Path(__file__).parents[2] / "configs"


WARM_UP = 3  # steps


def rate(kind: str, scene: Scene, device: str, seconds: float) -> dict[str, float]:
    """Samples a second of training steps, after a warm-up that loads and compiles what is needed."""
    own = load_settings(CONFIGS / ("train_fusion.toml" if kind == "fusion" else "train_mmdf.toml"), TrainSettings)
    loop = LoopSettings(
        steps=10**6,
        optimiser=own.loop.optimiser,
        learning_rate=own.loop.learning_rate,
        clip_norm=own.loop.clip_norm,
        validate_every=10**6,
        checkpoint_every=10**6,
    )
    network = new_network(kind, {}, scene.arrays, seed=1)
    marks: list[tuple[float, float]] = []

    def stop() -> bool:
        """Asked before each step: notes the time, ends the run when it has lasted long enough."""
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        marks.append((time.perf_counter(), time.process_time()))
        return len(marks) > WARM_UP + 1 and marks[-1][0] - marks[WARM_UP][0] > seconds

    with tempfile.TemporaryDirectory() as out:
        train_network(network, [scene], [scene], own.batches, loop, Path(out), device=device, stop=stop)
    n_samples = own.batches.size * (len(marks) - 1 - WARM_UP)
    wall, cpu = (end - start for start, end in zip(marks[WARM_UP], marks[-1], strict=True))
    return {
        "batch": own.batches.size,
        "samples_per_s": round(n_samples / wall, 1),
        "samples_per_cpu_s": round(n_samples / cpu, 1),
        "steps_per_s": round(n_samples / own.batches.size / wall, 2),
        "n_weights": sum(p.numel() for p in network.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", nargs="+", default=list(NETWORK_KINDS), choices=NETWORK_KINDS)
    parser.add_argument("--report", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    head = build_template()
    scene = make_scene(head, head, SceneNoise(n_cov_samples=4000), seed=1, cortex=true_cortex(head, head))
    figures = {}
    for kind in given.networks:
        figures[kind] = rate(kind, scene, given.device, given.seconds)
        print(kind, figures[kind], flush=True)
    device = given.device if given.device == "cpu" else torch.cuda.get_device_name(given.device)
    report = {
        "machine": machine(),
        "device": device,
        "threads": given.threads,
        "torch": torch.__version__,
        "training": figures,
    }
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["machine"]))


if __name__ == "__main__":
    main()
