"""The training loop: what was interrupted ends as if it had not been, and what goes wrong is said."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from rt_mmdf.core.errors import TrainingError
from rt_mmdf.networks.interface import Batch
from rt_mmdf.networks.mmdf import MmdfNetwork
from rt_mmdf.simulation.batches import BatchGenerator, BatchSettings, Scene
from rt_mmdf.training.bare import main, new_network
from rt_mmdf.training.checkpoint import CHECKPOINT, HISTORY, WEIGHTS, read_checkpoint
from rt_mmdf.training.loop import LoopSettings, TrainingResult, train_network
from rt_mmdf.training.process import StopOnSignal

Scenes = tuple[list[Scene], list[Scene]]
LOOP = LoopSettings(
    steps=30, learning_rate=3e-3, validate_every=8, validation_batches=2, patience=0, checkpoint_every=10, ema_decay=0.9
)
BATCHES = BatchSettings(size=16, radii_mm=(0.0, 12.0), n_sources=(1, 2), separation_mm=20.0)

# The child of a test: trains from a packed folder, and dies by SIGKILL at the given call of something.
DYING = """
import itertools, os, signal, sys
from pathlib import Path
import torch
from rt_mmdf.training import bare, loop
torch.set_num_threads(1)
calls = itertools.count(1)
def die_at(number, then):
    def called(*given):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return then(*given)
    return called
if sys.argv[2] == "step":
    loop.LoopSettings.rate = die_at(26, loop.LoopSettings.rate)
else:  # while a file is written: what it holds is not on the disk yet
    os.fsync = die_at(7, os.fsync)
sys.exit(bare.main(Path(sys.argv[1]), ["--device", "cpu"]))
"""

# Both processes of a distributed run: trains, and each writes the weights that it ended with.
DISTRIBUTED = """
import os, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from rt_mmdf.training import bare, loop
torch.set_num_threads(1)
folder = Path(sys.argv[1])
train = bare.train_network
def keep(network, *given, **named):
    result = train(network, *given, **named)
    save_file(network.state_dict(), folder / f"rank{os.environ['RANK']}.safetensors")
    return result
bare.train_network = keep
sys.exit(bare.main(folder, ["--device", "cpu"]))
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def train(
    scenes: Scenes, out: Path, loop: LoopSettings, network: MmdfNetwork | None = None, **given: object
) -> TrainingResult:
    own = network or new_network("mmdf", {"hidden": 16}, scenes[0][0].arrays, seed=1)
    return train_network(own, *scenes, BATCHES, loop, out, **given)  # type: ignore[arg-type]


def assert_same_files(a: Path, b: Path) -> None:
    """Weights and all that a resumed run needs, to the last bit."""
    for name in (WEIGHTS, CHECKPOINT):
        one, other = load_file(a / name), load_file(b / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    without_time = [[{**entry, "seconds": 0} for entry in json.loads((f / HISTORY).read_text())] for f in (a, b)]
    assert without_time[0] == without_time[1]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "optimiser"), [("step", "nadam"), ("write", "adamw")])
def test_killed_run_ends_as_if_it_had_not_been(
    folder_of: Callable[[LoopSettings], Path], tiny_scenes: Scenes, tmp_path: Path, moment: str, optimiser: str
) -> None:
    loop = replace(LOOP, optimiser=optimiser, schedule="cosine", warmup_steps=5)
    folder = folder_of(loop)
    child = subprocess.run([sys.executable, "-c", DYING, str(folder), moment], capture_output=True, timeout=120, check=False)
    assert child.returncode == -9, child.stderr.decode()
    state, _ = read_checkpoint(folder / "out" / CHECKPOINT)
    assert 0 < state["step"] < 30
    assert main(folder, ["--device", "cpu", "--resume"]) == 0
    train(tiny_scenes, tmp_path / "uninterrupted", loop)
    assert_same_files(folder / "out", tmp_path / "uninterrupted")


@settings(max_examples=3)
@given(cuts=st.lists(st.integers(1, 29), min_size=1, max_size=3))
def test_stopping_anywhere_changes_nothing(
    cuts: list[int], tiny_scenes: Scenes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("cut")
    train(tiny_scenes, out / "whole", LOOP)
    for cut in cuts:
        steps = iter(range(cut))
        stopped = train(tiny_scenes, out / "cut", LOOP, resume=True, stop=lambda steps=steps: next(steps, None) is None)
        assert stopped.finished == (stopped.steps == LOOP.steps)
    assert train(tiny_scenes, out / "cut", LOOP, resume=True).finished
    assert_same_files(out / "cut", out / "whole")


@pytest.mark.slow
def test_two_processes_do_what_one_does(
    folder_of: Callable[[LoopSettings], Path], tiny_scenes: Scenes, tmp_path: Path
) -> None:
    """Over gloo: equal weights on both, and those of one process that averages the same batches."""
    loop = replace(LOOP, steps=12, batches_per_step=4, clip_norm=0.5)
    folder = folder_of(loop)
    script = tmp_path / "both.py"
    script.write_text(DISTRIBUTED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(folder)]
    done = subprocess.run(launch, capture_output=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode()
    first, second = (load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    one = train(tiny_scenes, tmp_path / "one", loop)
    assert one.samples_per_step == 4 * BATCHES.size
    with safe_open(folder / "out" / WEIGHTS, framework="pt") as file:  # what the card will say
        assert file.metadata()["samples_per_step"] == str(4 * BATCHES.size)
    alone = load_file(tmp_path / "one" / WEIGHTS)
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-6)
    history = json.loads((folder / "out" / HISTORY).read_text())
    assert [entry["step"] for entry in history] == [entry.step for entry in one.history]
    assert [entry["loss"] for entry in history] == pytest.approx([entry.loss for entry in one.history], rel=1e-4)


def test_learns_where_sources_are(tiny_scenes: Scenes, tmp_path: Path) -> None:
    loop = replace(LOOP, steps=120, learning_rate=1e-3, validate_every=40, checkpoint_every=120)
    batches = replace(BATCHES, size=64)
    network = new_network("mmdf", {"hidden": 64}, tiny_scenes[0][0].arrays, seed=1)
    result = train_network(network, *tiny_scenes, batches, loop, tmp_path)
    held_out = BatchGenerator(tiny_scenes[1], batches, seed=99).batch(0)[0]
    places = torch.from_numpy(tiny_scenes[1][0].arrays.positions_mm)
    anywhere = (places[:, None, None] - held_out.centres_mm).norm(dim=3).nan_to_num(torch.inf).amin(dim=2).mean()
    assert result.history[-1].error_mm < 0.6 * float(anywhere)
    assert result.history[-1].loss < result.history[0].loss


def test_keeps_the_best_by_validation_and_stops_when_it_waits_in_vain(tiny_scenes: Scenes, tmp_path: Path) -> None:
    loop = replace(LOOP, steps=400, learning_rate=0.3, validate_every=4, patience=3, ema_decay=0.0)
    network = new_network("mmdf", {"hidden": 16}, tiny_scenes[0][0].arrays, seed=1)
    assert isinstance(network, MmdfNetwork)
    result = train(tiny_scenes, tmp_path, loop, network)
    assert result.finished
    assert result.steps < 400
    assert result.best is min(result.history, key=lambda entry: entry.loss)
    assert result.history[-1].step - result.best.step == 3 * 4
    kept = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(kept[key], value) for key, value in network.state_dict().items())


def test_validation_does_not_depend_on_when_it_is_made(tiny_scenes: Scenes, tmp_path: Path) -> None:
    """The same weights give the same validation at any step: it is made of batches of its own."""
    still = replace(LOOP, learning_rate=1e-12, ema_decay=0.0)
    losses = {entry.loss for entry in train(tiny_scenes, tmp_path, still).history}
    assert max(losses) == pytest.approx(min(losses), rel=1e-5)


def test_ctrl_c_leaves_a_checkpoint_and_is_not_forgotten(
    folder_of: Callable[[LoopSettings], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(LOOP)
    rate = LoopSettings.rate

    def interrupted(loop: LoopSettings, step: int) -> float:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return rate(loop, step)

    monkeypatch.setattr(LoopSettings, "rate", interrupted)
    assert main(folder, ["--device", "cpu"]) == 130
    assert "Stopped at step 5. Go on with --resume." in capsys.readouterr().out
    assert read_checkpoint(folder / "out" / CHECKPOINT)[0]["step"] == 5
    with StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):  # who asks twice does not want to wait
            os.kill(os.getpid(), signal.SIGINT)
    assert main(folder, ["--device", "cpu"]) == 1
    assert "Go on with --resume, begin anew with --force" in capsys.readouterr().err


class Diverging(MmdfNetwork):
    """Its loss is not a number from a certain call on."""

    calls = 0

    def loss(self, batch: Batch, prepared: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().loss(batch, prepared) * (torch.nan if self.calls > 14 else 1.0)


def test_loss_that_is_not_a_number_stops_it_and_leaves_the_last_good_checkpoint(tiny_scenes: Scenes, tmp_path: Path) -> None:
    network = Diverging(tiny_scenes[0][0].arrays, hidden=16)
    with pytest.raises(TrainingError, match=r"step 12, scene 'tiny [01]': loss nan.*Lower loop.learning_rate \(now 0.003\)"):
        train(tiny_scenes, tmp_path, LOOP, network)  # 12 steps and, after the eighth, 2 batches of validation
    state, tensors = read_checkpoint(tmp_path / CHECKPOINT)
    assert state["step"] == 10
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())


def test_full_disk_is_said_and_the_checkpoint_before_stays(tiny_scenes: Scenes, tmp_path: Path) -> None:
    train(tiny_scenes, tmp_path, replace(LOOP, steps=10, validate_every=100))
    before = (tmp_path / CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot be written \(.*\); the one from before is still whole. Free some"):
            train(tiny_scenes, tmp_path, replace(LOOP, validate_every=100), resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_out_of_memory_says_what_to_lower(tiny_scenes: Scenes, tmp_path: Path) -> None:
    network = new_network("mmdf", {"hidden": 16}, tiny_scenes[0][0].arrays, seed=1)
    huge = replace(BATCHES, size=10**12)
    with pytest.raises(TrainingError, match=r"out of memory \(.*\). Lower batches.size \(now 1000000000000"):
        train_network(network, *tiny_scenes, huge, LOOP, tmp_path)


def test_checkpoint_of_other_settings_is_refused(tiny_scenes: Scenes, tmp_path: Path) -> None:
    train(tiny_scenes, tmp_path, replace(LOOP, steps=10))
    with pytest.raises(TrainingError, match=r"other settings \(loop: learning_rate was 0.003, is 0.1\)"):
        train(tiny_scenes, tmp_path, replace(LOOP, learning_rate=0.1), resume=True)
    swapped = (tiny_scenes[1], tiny_scenes[0])
    with pytest.raises(TrainingError, match=r"other settings \(scenes: was .*validation scenes: was"):
        train(swapped, tmp_path, LOOP, resume=True)
    assert train(tiny_scenes, tmp_path, replace(LOOP, steps=12), resume=True).steps == 12


@pytest.mark.parametrize("damage", ["cut", "other", "no state"])
def test_damaged_checkpoint_is_refused(tiny_scenes: Scenes, tmp_path: Path, damage: str) -> None:
    train(tiny_scenes, tmp_path, replace(LOOP, steps=10))
    path = tmp_path / CHECKPOINT
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[: len(data) // 2], "other": b"no checkpoint", "no state": data.replace(b"state", b"statt")}[damage]
    )
    with pytest.raises(TrainingError, match=r"cannot be used .*Leave out --resume"):
        train(tiny_scenes, tmp_path, LOOP, resume=True)


def test_scenes_that_do_not_fit_the_network_are_named(tiny_scenes: Scenes, tmp_path: Path) -> None:
    scene = tiny_scenes[0][1]
    fewer = replace(scene.arrays, leadfield=scene.arrays.leadfield[:, :20], positions_mm=scene.arrays.positions_mm[:20])
    other = ([tiny_scenes[0][0], replace(scene, arrays=fewer)], tiny_scenes[1])
    with pytest.raises(TrainingError, match=r"scene 'tiny 1': network mmdf: 24 sources; the head has 20"):
        train(other, tmp_path, LOOP)


@given(
    warmup=st.integers(0, 50),
    steps=st.integers(60, 500),
    rate=st.floats(1e-5, 1.0),
    schedule=st.sampled_from(["constant", "cosine"]),
)
def test_rate_rises_to_its_value_and_then_never_again(warmup: int, steps: int, rate: float, schedule: str) -> None:
    loop = LoopSettings(steps=steps, warmup_steps=warmup, learning_rate=rate, schedule=schedule)
    rates = [loop.rate(step) for step in range(steps)]
    assert max(rates) == pytest.approx(rate)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] >= 0.0099 * rate
    assert (rates[-1] < rates[warmup]) == (schedule == "cosine")


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"ema_decay": 1.0}, {"optimiser": "sgd"}, {"schedule": "no"}, {"seed": 1, "validation_seed": 1}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        LoopSettings(**wrong)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_a_plain_error_on_a_bare_machine(
    folder_of: Callable[[LoopSettings], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(LOOP)
    for device in ("cuda:77", "graphics"):
        assert main(folder, ["--device", device]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: device {device!r}: torch cannot use it here (")
        assert said.endswith("Use cpu, or cuda on a GPU node.\n")
    assert not (folder / "out").exists()
