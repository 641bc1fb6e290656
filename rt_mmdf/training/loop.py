"""The training loop: torch, numpy and safetensors alone, so that it runs on a bare GPU node, on one process or on many.

What a step does depends on the settings and its number only. A run that was killed is taken up from its last checkpoint and
ends, on the CPU, with the very weights it would have had.

    out/checkpoint.safetensors   everything that a resumed run needs; replaced in one step, so there is always a whole one
    out/weights.safetensors      the best weights so far, by validation loss
    out/history.json             what was measured at each validation
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rt_mmdf.core.errors import TrainingError
from rt_mmdf.networks.interface import Batch, SourceNetwork
from rt_mmdf.simulation.batches import BatchGenerator, BatchSettings, Scene
from rt_mmdf.training.checkpoint import (
    CHECKPOINT,
    CHECKPOINT_FORMAT,
    HISTORY,
    WEIGHTS,
    damaged,
    read_checkpoint,
    write_whole,
)
from rt_mmdf.training.process import place

OPTIMISERS, SCHEDULES = ("nadam", "adamw"), ("constant", "cosine")
MAY_CHANGE = ("steps", "patience", "checkpoint_every", "kept_scenes")  # between a run and its resumption
REPORT_EVERY_S = 0.5
SAMPLES_PER_STEP = "samples_per_step"  # in the metadata of weights


@dataclass(frozen=True)
class LoopSettings:
    """How a network is trained.

    steps : updates of the weights
    seed : of the batches and of anything random in the network; the initial weights are the caller's
    optimiser : "nadam" (the seed's choice) or "adamw"
    learning_rate, weight_decay : of the optimiser
    schedule : "constant", or "cosine": down to a hundredth over `steps`
    warmup_steps : the rate rises to its value over so many steps
    clip_norm : gradients are shortened to this length; 0: never
    batches_per_step : gradients of so many batches are averaged for each update. Processes of a distributed run share them:
        a multiple of their number (1: one batch for each process)
    ema_decay : the weights that are validated and kept are an exponential average over so long; 0: the weights themselves
    mixed_precision : bfloat16 where the network allows it; on CUDA only
    validate_every, validation_batches, validation_seed : when and on how much; the scenes take turns
    patience : stop after so many validations without a better one; 0: never
    checkpoint_every : steps
    kept_scenes : so many scenes are kept prepared for the network (memory of the device)
    """

    steps: int = 20_000
    seed: int = 1
    optimiser: str = "nadam"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float = 0.0
    batches_per_step: int = 1
    ema_decay: float = 0.0
    mixed_precision: bool = True
    validate_every: int = 500
    validation_batches: int = 16
    validation_seed: int = 1_000_003
    patience: int = 10
    checkpoint_every: int = 500
    kept_scenes: int = 64

    def __post_init__(self) -> None:
        for name in ("steps", "batches_per_step", "validate_every", "validation_batches", "checkpoint_every", "kept_scenes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is expected")
        for name in ("weight_decay", "warmup_steps", "clip_norm", "patience", "seed", "validation_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: 0 or more is expected")
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}: a finite number is expected")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate = {self.learning_rate}: more than 0 is expected")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay = {self.ema_decay}: from 0 to less than 1 is expected")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser = {self.optimiser!r}: one of {', '.join(OPTIMISERS)} is expected")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule = {self.schedule!r}: one of {', '.join(SCHEDULES)} is expected")
        if self.seed == self.validation_seed:
            raise ValueError("seed and validation_seed are the same: validation would see the training's samples")

    def rate(self, step: int) -> float:
        """Learning rate of a step, the first being 0."""
        rate = self.learning_rate
        if step < self.warmup_steps:
            return rate * (step + 1) / self.warmup_steps
        if self.schedule == "cosine":
            done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return rate


@dataclass(frozen=True)
class Validation:
    """What one validation found, before the step of that number.

    loss : mean over the held-out batches
    error_mm : mean distance from the largest magnitude of the map to the nearest true centre
    training_loss : mean since the validation before
    """

    step: int
    loss: float
    error_mm: float
    training_loss: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int
    steps: int
    loss: float
    samples_per_s: float
    seconds_left: float
    best: Validation | None
    latest: Validation | None


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    finished : all steps are done or patience has run out; else it was asked to stop and can be resumed
    samples_per_step : of all processes together
    """

    finished: bool
    steps: int
    best: Validation | None
    history: tuple[Validation, ...]
    samples_per_step: int


def train_network(
    network: SourceNetwork,
    scenes: Sequence[Scene],
    validation_scenes: Sequence[Scene],
    batches: BatchSettings,
    settings: LoopSettings,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train; the network ends with the best weights, which are also in `out`.

    In a process group (`distributed`), every process calls it; the first one writes.

    Parameters
    ----------
    network : with initial weights; those of the first process count
    validation_scenes : heads that are not in `scenes`
    out : folder, made if needed
    resume : go on from the checkpoint in `out`, if there is one
    progress : called every half second or so, by the first process
    stop : asked at each step; true: write a checkpoint and return

    Raises
    ------
    TrainingError
        The loss is not finite, memory or disk is full, scenes do not fit the network, the checkpoint is damaged or of
        other settings. The last good checkpoint is left in place.
    """
    with _memory_explained(batches, settings):
        run = _Run(network, scenes, validation_scenes, batches, settings, Path(out), torch.device(device))
        if resume:
            run.resume()
        return run.go(progress or (lambda _: None), stop or (lambda: False))


class _Run:
    """One run in progress."""

    def __init__(
        self,
        network: SourceNetwork,
        scenes: Sequence[Scene],
        validation_scenes: Sequence[Scene],
        batches: BatchSettings,
        settings: LoopSettings,
        out: Path,
        device: torch.device,
    ) -> None:
        self.settings, self.out, self.device = settings, out, device
        self.rank, self.world = place()
        self.batches_per_step = max(settings.batches_per_step, self.world if settings.batches_per_step == 1 else 1)
        if self.batches_per_step % self.world:
            raise TrainingError(
                f"training: batches_per_step = {settings.batches_per_step} cannot be shared by {self.world} processes; a "
                f"multiple of {self.world} is expected."
            )
        self.samples_per_step = self.batches_per_step * batches.size
        self.network = network.to(device)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        objective = _Objective(self.network)
        self.objective: nn.Module = DistributedDataParallel(objective) if self.world > 1 else objective
        self.optimiser = _optimiser(settings, self.parameters)
        self.training = _Source(scenes, batches, settings.seed, device, self.network, settings.kept_scenes)
        self.held_out = _Source(
            validation_scenes, batches, settings.validation_seed, device, self.network, settings.kept_scenes
        )
        self.average = [p.detach().clone() for p in self.parameters] if settings.ema_decay else []
        self.step = 0
        self.history: list[Validation] = []
        self.best: Validation | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.losses: list[float] = []  # since the last validation
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.facts = {
            "network": {"kind": network.kind, "options": dict(network.options)},
            "loop": {key: value for key, value in asdict(settings).items() if key not in MAY_CHANGE},
            "batches": asdict(batches),
            "scenes": _digest(scenes),
            "validation scenes": _digest(validation_scenes),
            "batches per step": self.batches_per_step,
        }

    def go(self, progress: Callable[[Progress], None], stop: Callable[[], bool]) -> TrainingResult:
        settings = self.settings
        if self._any(self.step > 0) and self._any(self.step == 0):
            raise TrainingError(
                f"training: some processes have found the checkpoint {self.out / CHECKPOINT}, others have not. Put the "
                "output folder on a disk that all machines share, or copy it to each of them."
            )
        self.started = time.monotonic()
        first, reported, at_report = self.step, self.started, self.step
        samples = self.samples_per_step
        stopped = False
        while self.step < settings.steps and not self._out_of_patience():
            if stopped := self._any(stop()):
                break
            self.losses.append(self._update())
            self.step += 1
            if self.step % settings.validate_every == 0 or self.step == settings.steps:
                self._validate()
            if self.step % settings.checkpoint_every == 0:
                self._save()
            now = time.monotonic()
            if self.rank == 0 and (now - reported >= REPORT_EVERY_S or self.step == settings.steps):
                per_step = (now - self.started) / (self.step - first)
                progress(
                    Progress(
                        step=self.step,
                        steps=settings.steps,
                        loss=float(np.mean(self.losses)) if self.losses else self.history[-1].training_loss,
                        samples_per_s=samples * (self.step - at_report) / max(now - reported, 1e-9),
                        seconds_left=per_step * (settings.steps - self.step),
                        best=self.best,
                        latest=self.history[-1] if self.history else None,
                    )
                )
                reported, at_report = now, self.step
        if not stopped and self.best is None:
            self._validate()
        self._save()
        if self.best_weights:
            self.network.load_state_dict(self.best_weights)
        return TrainingResult(not stopped, self.step, self.best, tuple(self.history), samples)

    def _update(self) -> float:
        """One step; the mean loss of its batches in this process."""
        settings = self.settings
        torch.manual_seed(_seed_of(settings.seed, self.step, self.rank))
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        own = range(self.rank, self.batches_per_step, self.world)
        total, where = 0.0, ""
        for number in own:
            batch, scene = self.training.batch(self.step * self.batches_per_step + number)
            where = self.training.names[scene]
            with self._only_last_talks(last=number == own[-1]):
                loss = self._loss(batch, self.training.prepared(scene))
                (loss / len(own)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        # of the gradient that all processes share: all of them stop, or none
        norm = float(nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm or math.inf))
        if not math.isfinite(norm) or not math.isfinite(total):
            raise TrainingError(self._diverged(f"loss {total / len(own):g}, length of the gradient {norm:g}", where))
        self.optimiser.step()
        if self.average:
            decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        return total / len(own)

    def _loss(self, batch: Batch, prepared: Any) -> Tensor:
        with self._precision():
            loss: Tensor = self.objective(batch, prepared)
        return loss

    def _precision(self) -> AbstractContextManager[Any]:
        mixed = self.settings.mixed_precision and self.network.mixed_precision and self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext()

    def _only_last_talks(self, last: bool) -> AbstractContextManager[None]:
        if isinstance(self.objective, DistributedDataParallel) and not last:
            quiet: AbstractContextManager[None] = self.objective.no_sync()
            return quiet
        return nullcontext()

    def _diverged(self, seen: str, where: str) -> str:
        settings = self.settings
        kept = f"The state of an earlier step is in {self.out / CHECKPOINT}." if (self.out / CHECKPOINT).exists() else ""
        return (
            f"training, step {self.step}, scene {where!r}: {seen}; finite numbers are expected. {kept} Lower "
            f"loop.learning_rate (now {settings.learning_rate:g}), set loop.clip_norm (now {settings.clip_norm:g}) or raise "
            f"loop.warmup_steps (now {settings.warmup_steps}), and check that scene."
        )

    @torch.no_grad()
    def _validate(self) -> None:
        sums = torch.zeros(3, dtype=torch.float64)
        worst = ""
        n_scenes = len(self.held_out.names)
        self.network.eval()
        with self._averaged_weights():
            for number in range(self.rank, self.settings.validation_batches, self.world):
                batch, scene = self.held_out.batch(number, number % n_scenes)
                prepared = self.held_out.prepared(scene)
                with self._precision():
                    loss = float(self.network.loss(batch, prepared))
                    moments = self.network(batch.sample, batch.window, prepared).moments
                worst = worst or ("" if math.isfinite(loss) else self.held_out.names[scene])
                peaks = self.held_out.positions(scene)[moments.abs().argmax(dim=1)]
                apart = (peaks[:, None] - batch.centres_mm).norm(dim=2).nan_to_num(torch.inf).amin(dim=1)
                sums += torch.tensor([loss * len(batch), float(apart.sum()), len(batch)], dtype=torch.float64)
            self._add_up(sums)
            if not math.isfinite(float(sums[0])):  # in whatever process: all of them stop
                raise TrainingError(self._diverged(f"validation loss {float(sums[0]):g}", worst or "of another process"))
            found = Validation(
                step=self.step,
                loss=float(sums[0] / sums[2]),
                error_mm=float(sums[1] / sums[2]),
                training_loss=float(np.mean(self.losses)) if self.losses else math.nan,
                seconds=self.seconds_before + time.monotonic() - self.started,
            )
            if self.best is None or found.loss < self.best.loss:
                self.best = found
                self.best_weights = {key: value.detach().cpu().clone() for key, value in self.network.state_dict().items()}
        self.network.train()
        self.losses.clear()
        self.history.append(found)
        if self.rank == 0:
            if found is self.best:
                facts = {"network": json.dumps(self.facts["network"]), SAMPLES_PER_STEP: str(self.samples_per_step)}
                write_whole(self.out / WEIGHTS, save(self.best_weights, facts))
            write_whole(self.out / HISTORY, json.dumps([asdict(entry) for entry in self.history], indent=1).encode())

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if not self.average:
            yield
            return
        own = [p.detach().clone() for p in self.parameters]
        torch._foreach_copy_([p.data for p in self.parameters], self.average)
        try:
            yield
        finally:
            torch._foreach_copy_([p.data for p in self.parameters], own)

    def _out_of_patience(self) -> bool:
        if not self.settings.patience or self.best is None:
            return False
        return sum(entry.step > self.best.step for entry in self.history) >= self.settings.patience

    def _add_up(self, sums: Tensor) -> None:
        if self.world > 1:
            shared = sums.to(self.device if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(shared)
            sums.copy_(shared)

    def _any(self, own: bool) -> bool:
        flag = torch.tensor([float(own)])
        self._add_up(flag)
        return bool(flag > 0)

    def _save(self) -> None:
        if self.rank != 0:
            return
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": value for key, value in state.items()}
        tensors |= {f"average.{i}": value for i, value in enumerate(self.average)}
        tensors |= {f"best.{key}": value for key, value in self.best_weights.items()}
        state = {
            "format": CHECKPOINT_FORMAT,
            "step": self.step,
            "facts": self.facts,
            "history": [asdict(entry) for entry in self.history],
            "best": asdict(self.best) if self.best else None,
            "losses": self.losses,
            "seconds": self.seconds_before + time.monotonic() - self.started,
        }
        # a copy each: safetensors refuses tensors that share memory
        plain = {key: value.detach().cpu().clone() for key, value in tensors.items()}
        write_whole(self.out / CHECKPOINT, save(plain, {"state": json.dumps(state)}))

    def resume(self) -> None:
        """Take up the checkpoint in the folder; begin anew where there is none."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state, tensors = read_checkpoint(path)
        self._check_facts(path, state["facts"])

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}

        try:
            self.network.load_state_dict(part("network."))
            own = self.optimiser.state_dict()
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in part("optimiser.").items():
                index, _, name = key.partition(".")
                moments.setdefault(int(index), {})[name] = value
            self.optimiser.load_state_dict({"state": moments, "param_groups": own["param_groups"]})
            for i, value in enumerate(self.average):
                value.copy_(tensors[f"average.{i}"])
            self.step, self.losses, self.seconds_before = int(state["step"]), list(state["losses"]), float(state["seconds"])
            self.history = [Validation(**entry) for entry in state["history"]]
            self.best = Validation(**state["best"]) if state["best"] else None
            self.best_weights = part("best.")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(path, error) from error

    def _check_facts(self, path: Path, seen: Mapping[str, Any]) -> None:
        own = json.loads(json.dumps(self.facts))
        changed = [f"{name}: {_brief(seen.get(name), value)}" for name, value in own.items() if seen.get(name) != value]
        if changed:
            raise TrainingError(
                f"training: {path} is of other settings ({'; '.join(changed)}). Go on with those (only "
                f"{', '.join(MAY_CHANGE)} may change), choose another output folder, or leave out --resume to begin anew."
            )


class _Objective(nn.Module):
    """The loss as a module: what PyTorch's distributed engine wraps."""

    def __init__(self, network: SourceNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, prepared: Any) -> Tensor:
        return self.network.loss(batch, prepared)


@dataclass(eq=False)
class _Source:
    """Batches of some scenes, and what the network has prepared for them."""

    scenes: Sequence[Scene]
    settings: BatchSettings
    seed: int
    device: torch.device
    network: SourceNetwork
    kept: int
    _prepared: OrderedDict[int, Any] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        try:
            self.generator = BatchGenerator(self.scenes, self.settings, self.seed, self.device)
        except ValueError as error:
            raise TrainingError(f"training: {error}. Change [batches] or make other scenes.") from error
        self.names = [scene.name for scene in self.scenes]

    def batch(self, number: int, scene: int | None = None) -> tuple[Batch, int]:
        return self.generator.batch(number, scene)

    def prepared(self, scene: int) -> Any:
        if scene in self._prepared:
            self._prepared.move_to_end(scene)
            return self._prepared[scene]
        try:
            made = self.network.prepare(self.scenes[scene].arrays, self.device)
        except ValueError as error:
            raise TrainingError(f"training, scene {self.names[scene]!r}: {error}") from error
        self._prepared[scene] = made
        while len(self._prepared) > self.kept:
            self._prepared.popitem(last=False)
        return made

    def positions(self, scene: int) -> Tensor:
        return self.generator.tensor(self.scenes[scene].arrays.positions_mm)


def _optimiser(settings: LoopSettings, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "nadam":
        return torch.optim.NAdam(parameters, lr=rate, weight_decay=decay, decoupled_weight_decay=True)
    # scales and offsets are not pulled to zero
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)


@contextmanager
def _memory_explained(batches: BatchSettings, settings: LoopSettings) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch has no class of its own for the memory of the CPU
        classed = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not classed and "allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        first = str(error).partition("\n")[0][:200]
        raise TrainingError(
            f"training: out of memory ({first}). Lower batches.size (now {batches.size}; loop.batches_per_step makes up for "
            f"it), loop.kept_scenes (now {settings.kept_scenes}) or scenes.n."
        ) from error


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _digest(scenes: Sequence[Scene]) -> str:
    """Short hash by which scenes are known again: names, shapes, and a 61st of each leadfield."""
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(f"{scene.name} {scene.gain.shape} {scene.arrays.leadfield.shape}".encode())
        for values in (scene.gain, scene.arrays.leadfield, scene.colour):
            digest.update(np.ascontiguousarray(values.ravel()[::61], dtype="<f4").tobytes())
    return digest.hexdigest()[:16]


def _brief(seen: Any, expected: Any) -> str:
    if isinstance(seen, dict) and isinstance(expected, dict):
        keys = [key for key in {**seen, **expected} if seen.get(key) != expected.get(key)]
        return ", ".join(f"{key} was {seen.get(key)!r}, is {expected.get(key)!r}" for key in keys)
    return f"was {seen!r}, is {expected!r}"
