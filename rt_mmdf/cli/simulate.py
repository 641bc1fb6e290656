"""`rt-mmdf simulate`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rt_mmdf.cli.console import OUT, progress_bar
from rt_mmdf.core.errors import ConfigurationError, SinkError

if TYPE_CHECKING:
    import mne

RECORDINGS, BATCHES, SOURCES, NOISE = "Recordings", "Batches", "Sources", "Noise"
DEFAULT_SEED = 1
RECORDINGS_ALONE = ("seconds", "count", "course", "places", "conductivity", "vary_head")
BATCHES_ALONE = ("scenes", "n", "size", "window", "dropout", "channel_dropout", "modality_dropout")


class Course(StrEnum):
    """What sources do in time."""

    MIXED = "mixed"
    BURST = "burst"
    TRANSIENT = "transient"
    PINK = "pink"


def simulate(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write recordings to; made if needed.")] = None,
    batches: Annotated[Path | None, typer.Option(help="Folder to write labelled training batches to.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal data.")] = DEFAULT_SEED,
    force: Annotated[bool, typer.Option("--force", help="Replace files of the same names.")] = False,
    sources: Annotated[
        int | None,
        typer.Option(
            min=1, max=3, help="Active at a time, 1 by default; in batches 1 to this many.", rich_help_panel=SOURCES
        ),
    ] = None,
    radius_mm: Annotated[
        float | None,
        typer.Option(
            min=0, max=30, help="Geodesic radius of the patches, 0 is one dipole. \\[default: 10]", rich_help_panel=SOURCES
        ),
    ] = None,
    order: Annotated[
        int | None,
        typer.Option(min=0, max=4, help="Or their extent in edges of an ico-4 mesh, 5.7 mm each.", rich_help_panel=SOURCES),
    ] = None,
    snr_db: Annotated[
        float | None,
        typer.Option(
            min=-40, max=60, help="At the largest field, 10 by default; batches: -5 to 20.", rich_help_panel=SOURCES
        ),
    ] = None,
    noise_cov: Annotated[
        Path | None,
        typer.Option(help="Colour of the sensors' noise, -cov.fif, in place of white noise.", rich_help_panel=NOISE),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=5, max=3600, help="Of each recording; the first 3 s are rest.", rich_help_panel=RECORDINGS)
    ] = 60.0,
    count: Annotated[
        int, typer.Option(min=1, max=1000, help="Recordings, of seeds that follow each other.", rich_help_panel=RECORDINGS)
    ] = 1,
    course: Annotated[
        Course, typer.Option(help="What sources do in time; mixed: bursts, then transients.", rich_help_panel=RECORDINGS)
    ] = Course.MIXED,
    places: Annotated[
        int | None,
        typer.Option(min=1, max=200, help="Random places in place of eight named ones.", rich_help_panel=RECORDINGS),
    ] = None,
    conductivity: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            help="Brain, skull, scalp of the true head, S/m. \\[default: 0.33 0.0042 0.43]", rich_help_panel=RECORDINGS
        ),
    ] = None,
    vary_head: Annotated[
        bool,
        typer.Option(
            "--vary-head",
            help="Electrodes, helmet and conductivities differ from what the recording says.",
            rich_help_panel=RECORDINGS,
        ),
    ] = False,
    scenes: Annotated[
        int, typer.Option(min=1, max=500, help="Randomised heads and noises, half a minute each.", rich_help_panel=BATCHES)
    ] = 6,
    n: Annotated[int, typer.Option("--n", min=1, max=1_000_000, help="Batches.", rich_help_panel=BATCHES)] = 100,
    size: Annotated[int, typer.Option(min=1, max=100_000, help="Samples in a batch.", rich_help_panel=BATCHES)] = 256,
    window: Annotated[
        int, typer.Option(min=1, max=1000, help="Columns at 100 Hz of each sample; 1: none.", rich_help_panel=BATCHES)
    ] = 1,
    dropout: Annotated[
        bool,
        typer.Option("--dropout/--no-dropout", help="Some scenes lack channels or a modality.", rich_help_panel=BATCHES),
    ] = True,
    channel_dropout: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Up to this share of channels is zero, drawn for each sample.", rich_help_panel=BATCHES
        ),
    ] = 0.0,
    modality_dropout: Annotated[
        float, typer.Option(min=0, max=1, help="Share of samples that lose all EEG or all MEG.", rich_help_panel=BATCHES)
    ] = 0.0,
) -> None:
    """Write recordings with known sources, or labelled batches to train on.

    306 MEG and 60 EEG channels on the template head. The true sources lie on a denser mesh and under other conductivities
    than those that `monitor` images with; brain noise passes the same head for EEG and MEG. A recording x-raw.fif has
    x-truth.npz beside it: moments, patches, fields and noise (`rt_mmdf.simulation.truth.load_truth`).

    Examples:

        rt-mmdf simulate --out simulated --seconds 60 --radius-mm 15 --snr-db 5 --count 3

        rt-mmdf simulate --out simulated --sources 2 --order 2 --course pink --noise-cov rest-cov.fif

        rt-mmdf simulate --batches batches --scenes 6 --n 100

    Batches are safetensors files: whitened samples, and the moments (nA m) of the sources that made them. `rt-mmdf train`
    needs none of them: it makes its batches as it goes.
    """
    if out is None and batches is None:
        raise ConfigurationError(
            "rt-mmdf simulate: nothing to write. Give a folder for recordings (--out), for batches (--batches), or both."
        )
    if out is None:
        _refuse_idle(context, RECORDINGS_ALONE, "recordings", "--out")
    if batches is None:
        _refuse_idle(context, BATCHES_ALONE, "batches", "--batches")
    if order is not None and radius_mm is not None:
        raise ConfigurationError(
            f"rt-mmdf simulate: --order {order} and --radius-mm {radius_mm:g} seen; give one of the two."
        )
    if out is not None:
        _may_write(out, [f"{_name(seed + i)}-raw.fif" for i in range(count)], force)
    if batches is not None:
        _may_write(batches, ["batches.json", "batch00000.safetensors"], force)
    colour = None if noise_cov is None else _read_colour(noise_cov)
    if out is not None:
        chosen: dict[str, Any] = {
            "duration_s": seconds,
            "n_sources": sources,
            "radius_mm": radius_mm,
            "order": order,
            "snr_db": snr_db,
            "course": course.value,
            "n_places": places,
            "conductivity": conductivity,
            "vary_head": vary_head,
        }
        _recordings(out, {key: value for key, value in chosen.items() if value is not None}, seed, count, colour)
    if batches is not None:
        extent = radius_mm if order is None else 5.7 * order
        held: dict[str, Any] = {"size": size, "n_times": window}
        held |= {"channel_dropout": channel_dropout, "modality_dropout": modality_dropout}
        held |= {} if sources is None else {"n_sources": (1, sources)}
        held |= {} if extent is None else {"radii_mm": (float(extent),)}
        held |= {} if snr_db is None else {"snr_db": (snr_db, snr_db)}
        _batches(batches, held, seed, scenes, n, colour, dropout)


def _recordings(out: Path, chosen: dict[str, Any], seed: int, count: int, colour: mne.Covariance | None) -> None:
    from rt_mmdf.core.settings import validate_settings
    from rt_mmdf.simulation.recordings import SimulationSettings, simulate_recording, write_recording
    from rt_mmdf.simulation.truth import truth_path

    for number in range(seed, seed + count):
        settings = validate_settings(chosen | {"seed": number}, SimulationSettings, where="rt-mmdf simulate")
        path = out / f"{_name(number)}-raw.fif"
        with progress_bar() as progress:
            try:
                raw, truth = simulate_recording(settings, colour, progress)
            except MemoryError as error:
                raise ConfigurationError(
                    f"rt-mmdf simulate: not enough memory for {settings.duration_s:g} s. Write shorter recordings "
                    "(--seconds), and more of them (--count)."
                ) from error
            write_recording(raw, truth, path)
        OUT.print(
            f"{path}: {truth.duration_s:g} s, {len(truth.events)} activations of {len(truth.source_names)} places; "
            f"truth in {truth_path(path).name}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _batches(
    folder: Path, held: dict[str, Any], seed: int, n_scenes: int, n: int, colour: mne.Covariance | None, dropout: bool
) -> None:
    from rt_mmdf.headmodel.template import build_template
    from rt_mmdf.simulation.batch_files import write_batches
    from rt_mmdf.simulation.batches import BatchGenerator, BatchSettings
    from rt_mmdf.simulation.scene_files import save_scenes
    from rt_mmdf.simulation.scenes import training_scenes

    settings = BatchSettings(**held)
    with progress_bar() as progress:
        made = training_scenes(build_template(), n_scenes, seed, noise_cov=colour, dropout=dropout, progress=progress)
        save_scenes(made, folder / "scenes")
        write_batches(BatchGenerator(made, settings, seed), n, folder, progress)
    OUT.print(
        f"{folder}: {n} batches of {settings.size} samples from {n_scenes} scenes",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _refuse_idle(context: typer.Context, names: tuple[str, ...], what: str, needed: str) -> None:
    """ConfigurationError where one of these options was given: without `needed` it would do nothing."""
    sources = {name: context.get_parameter_source(name) for name in names}
    typed = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    given = [parameter.opts[0] for parameter in context.command.params if parameter.name in typed]
    if given:
        raise ConfigurationError(
            f"rt-mmdf simulate: {', '.join(given)} seen, which does nothing without {what}. Give a folder for "
            f"them with {needed}, or leave it out."
        )


def _name(seed: int) -> str:
    return f"simulated-{seed}"


def _read_colour(path: Path) -> mne.Covariance:
    from rt_mmdf.headmodel.noise import read_noise_cov

    return read_noise_cov(path, ())  # which channels it must have is for those to say who use it


def _may_write(folder: Path, names: list[str], force: bool) -> None:
    """Before minutes of computing: SinkError unless files of these names can be written into the folder."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise SinkError(f"{folder}: {there} is no folder that you may write to. Choose another one.")
    if not force and (taken := [name for name in names if (folder / name).exists()]):
        raise SinkError(
            f"{folder}: {taken[0]} is there already. Choose another folder or --seed, or replace it with --force."
        )
