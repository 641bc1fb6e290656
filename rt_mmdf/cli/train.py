"""`rt-mmdf train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from rt_mmdf.cli.console import ERR, OUT, progress_bar
from rt_mmdf.core.errors import ConfigurationError

if TYPE_CHECKING:
    from rt_mmdf.training.loop import Progress as TrainingProgress
    from rt_mmdf.training.settings import TrainSettings

ELSEWHERE = "On another machine"
INTERRUPTED = 130


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file; configs/train_*.toml are examples.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for scenes, checkpoint and weights, in place of that of CONFIG."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder for the finished model, in place of that of CONFIG.")] = None,
    network: Annotated[
        str | None, typer.Option(help="Train this one (mmdf, mmdf-eeg, ...) as CONFIG says, options that it knows included.")
    ] = None,
    scenes: Annotated[
        Path | None, typer.Option(help="Folder of scenes that several trainings share; made if needed. \\[default: in OUT]")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of loop.steps.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin anew where a training has begun.")] = False,
    pack: Annotated[
        Path | None,
        typer.Option(
            help="Write a folder that trains with torch, numpy and safetensors alone (python train.py, or torchrun).",
            rich_help_panel=ELSEWHERE,
        ),
    ] = None,
    unpack: Annotated[
        Path | None,
        typer.Option(help="Make the model of what such a folder has learned.", rich_help_panel=ELSEWHERE),
    ] = None,
) -> None:
    """Train a network for a head and a sensor array, and write the model that `monitor` images with.

    Scenes (randomised heads and noises) are made first and kept; samples are made as it goes. Ctrl-C leaves a checkpoint.

    Examples:

        rt-mmdf train configs/train_mmdf.toml

        rt-mmdf train configs/train_mmdf.toml --resume

        rt-mmdf train configs/train_fusion.toml --pack packed; rt-mmdf train configs/train_fusion.toml --unpack packed

        torchrun --nproc-per-node 4 -m rt_mmdf.cli train configs/train_fusion.toml --device cuda
    """
    if pack is not None and unpack is not None:
        raise ConfigurationError("rt-mmdf train: --pack and --unpack seen; give one of the two.")
    settings = _settings(config, out, model, network, scenes, steps)
    if pack is not None:
        from rt_mmdf.training.pack import pack as write_pack

        with progress_bar() as progress:
            write_pack(settings, pack, progress)
        _say(f"{pack}: copy it to the machine that trains and run python train.py there (torchrun for several GPUs).")
        _say(f"Then bring it back: rt-mmdf train {config} --unpack {pack}")
    elif unpack is not None:
        from rt_mmdf.training.run import model_of_pack

        with progress_bar() as progress:
            artefact = model_of_pack(settings, unpack, progress)
        _say(f"Model {artefact.name}: {artefact.folder}")
    else:
        _train(config, settings, device, resume, force)


def _settings(
    config: Path, out: Path | None, model: Path | None, network: str | None, scenes: Path | None, steps: int | None
) -> TrainSettings:
    from rt_mmdf.core.settings import load_toml, validate_settings
    from rt_mmdf.networks.build import NETWORK_KINDS, default_options
    from rt_mmdf.training.settings import TrainSettings

    content: dict[str, Any] = load_toml(config)
    content |= {key: value for key, value in (("out", out), ("model", model)) if value is not None}
    if network is not None:
        section = content.get("network")
        options = section.get("options") if isinstance(section, dict) else None
        known = default_options(network) if network in NETWORK_KINDS else {}
        kept = {key: value for key, value in options.items() if key in known} if isinstance(options, dict) else {}
        content |= {"name": network, "network": {"kind": network, "options": kept}}
    # what is no table is left as it is: validation says so
    if scenes is not None:
        for section in ("scenes", "validation"):
            if isinstance(content.setdefault(section, {}), dict):
                content[section]["folder"] = scenes / section
    if steps is not None and isinstance(content.setdefault("loop", {}), dict):
        content["loop"]["steps"] = steps
    return validate_settings(content, TrainSettings, where=f"configuration {config}")


def _train(config: Path, settings: TrainSettings, device: str | None, resume: bool, force: bool) -> None:
    from rt_mmdf.training.bare import describe_end
    from rt_mmdf.training.checkpoint import check_new
    from rt_mmdf.training.process import StopOnSignal, best_device
    from rt_mmdf.training.run import train as run

    check_new(settings.out_folder, resume, force)
    with _two_bars() as (preparing, training), StopOnSignal() as stop:
        outcome = run(
            settings, device=device or best_device(), resume=resume, preparing=preparing, progress=training, stop=stop
        )
    result = outcome.result
    _say(describe_end(result.best, settings.out_folder))
    if not result.finished:
        _say(f"Stopped at step {result.steps} of {settings.loop.steps}. Go on with the same command and --resume.")
        raise typer.Exit(INTERRUPTED)
    if outcome.artefact is not None:
        _say(f"Model {outcome.artefact.name}: {outcome.artefact.folder}")


@contextmanager
def _two_bars() -> Iterator[tuple[Callable[[str, float], None], Callable[[TrainingProgress], None]]]:
    """One bar for what comes before, one for the steps."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TextColumn("{task.fields[detail]}"), console=ERR) as bars:
        before = bars.add_task("preparing", total=1.0, detail="")
        steps = bars.add_task("training", total=None, detail="", visible=False)

        def prepare(what: str, fraction: float) -> None:
            bars.update(before, description=what, completed=fraction)

        def train(progress: TrainingProgress) -> None:
            seen = progress.latest
            validation = "" if seen is None else f"validation {seen.loss:.4g} ({seen.error_mm:.1f} mm), "
            bars.update(before, visible=False)
            bars.update(
                steps,
                visible=True,
                description=f"step {progress.step:,} of {progress.steps:,}",
                total=progress.steps,
                completed=progress.step,
                detail=f"loss {progress.loss:.4g}, {validation}{progress.samples_per_s:,.0f} samples/s, "
                f"{_duration(progress.seconds_left)} left",
            )

        yield prepare, train


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"
    )


def _say(text: str) -> None:
    OUT.print(text, highlight=False, soft_wrap=True, markup=False)
