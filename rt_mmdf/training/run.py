"""From a configuration to a model: head, noise, scenes, training, artefact."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from rt_mmdf.core.errors import ConfigurationError, HeadModelError, RecordingError, TrainingError
from rt_mmdf.headmodel.head import HeadModel, load_head
from rt_mmdf.headmodel.noise import read_noise_cov, regularised
from rt_mmdf.headmodel.settings import HeadSettings
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.headmodel.whitener import imaging_info
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.interface import SourceNetwork
from rt_mmdf.preprocessing.projectors import read_projections
from rt_mmdf.simulation.batches import Scene
from rt_mmdf.simulation.heads import HeadVariation, varied_subject
from rt_mmdf.simulation.scene_files import INDEX, load_scenes, save_scenes
from rt_mmdf.simulation.scenes import (
    REACH_MM,
    RECIPE_VERSION,
    MakeHead,
    SceneNoise,
    nominal_noise_cov,
    training_scenes,
)
from rt_mmdf.solvers.artefact import Artefact, save_artefact
from rt_mmdf.training.bare import OUT, SCENES, SETTINGS, VALIDATION, new_network, read_settings
from rt_mmdf.training.card import card_text
from rt_mmdf.training.checkpoint import HISTORY, WEIGHTS, write_whole
from rt_mmdf.training.loop import SAMPLES_PER_STEP, Progress, TrainingResult, train_network
from rt_mmdf.training.process import check_device, distributed
from rt_mmdf.training.settings import ScenesSettings, TrainSettings, VariationSettings

MADE_OF = "made_of.json"  # beside scenes: what they were made of
NOISE_SEED = 0  # of the resting brain in the covariance that a model whitens with

Preparing = Callable[[str, float], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ground:
    """What everything else is made of.

    noise_cov : regularised, ready to whiten with; what the model brings along
    colour : measured noise that scenes take their colour from
    """

    head: HeadModel
    noise_cov: mne.Covariance
    colour: mne.Covariance | None
    projs: tuple[mne.Projection, ...]


@dataclass(frozen=True)
class Outcome:
    """How a training ended; the model where it did not stop half-way."""

    result: TrainingResult
    artefact: Artefact | None


def train(
    settings: TrainSettings,
    *,
    device: str = "cpu",
    resume: bool = False,
    preparing: Preparing | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Train what the configuration says, and write the model.

    Under ``torchrun`` every process calls it; the first one makes the scenes and writes.

    Raises
    ------
    ConfigurationError, HeadModelError, NoiseCovarianceError, RecordingError, SinkError
        Something cannot be read, built or written.
    TrainingError
        As `rt_mmdf.training.loop.train_network`.
    """
    check_device(device)
    with distributed(device) as own:
        first = not dist.is_initialized() or dist.get_rank() == 0
        with _first_alone(first):
            ground = lay_ground(settings, preparing)
            scenes, validation = make_all_scenes(settings, ground, preparing)
        network = new_network(settings.network.kind, settings.network.options, scenes[0].arrays, settings.loop.seed)
        result = train_network(
            network,
            scenes,
            validation,
            settings.batches,
            settings.loop,
            settings.out_folder,
            device=own,
            resume=resume,
            progress=progress,
            stop=stop,
        )
        if not result.finished or not first:
            return Outcome(result, None)
        assert result.best is not None  # it has ended, so it was validated
        best = asdict(result.best)
        return Outcome(result, write_model(settings, ground, network, result.steps, best, result.samples_per_step))


def lay_ground(settings: TrainSettings, preparing: Preparing | None = None) -> Ground:
    """Head, noise covariance and projectors of a configuration."""
    head = _head(settings.head, preparing)
    path = settings.projections
    projs = () if path is None else tuple(read_projections(path, "projections"))
    if settings.noise.file is None:
        noise = SceneNoise(regularisation=settings.noise.regularisation)
        return Ground(head, nominal_noise_cov(head, noise, NOISE_SEED, projs), None, projs)
    measured = read_noise_cov(settings.noise.file, head.ch_names)
    info = imaging_info(head.info, head.ch_names, projs)
    return Ground(head, regularised(measured, info, settings.noise.regularisation), measured, projs)


def make_all_scenes(
    settings: TrainSettings, ground: Ground, preparing: Preparing | None = None
) -> tuple[list[Scene], list[Scene]]:
    """Scenes to train and to validate on: read where they are kept, else made and kept there."""
    if max(settings.batches.radii_mm) > REACH_MM:
        raise ConfigurationError(
            f"batches.radii_mm goes up to {max(settings.batches.radii_mm):g} mm; the neighbours that scenes hold reach "
            f"{REACH_MM:g} mm. Leave out larger radii."
        )
    sections = ((settings.scenes, SCENES), (settings.validation, VALIDATION))
    training, validation = (
        _scenes(settings, wanted, ground, wanted.folder or settings.out_folder / name, preparing)
        for wanted, name in sections
    )
    return training, validation


def write_model(
    settings: TrainSettings,
    ground: Ground,
    network: SourceNetwork,
    steps: int,
    best: Mapping[str, Any],
    samples_per_step: int,
) -> Artefact:
    """Write the artefact of a trained network; see `rt_mmdf.training.card.card_text`."""
    card = card_text(settings, ground.head, network, steps, best, samples_per_step)
    low_hz, high_hz = SceneNoise().band_hz
    return save_artefact(
        settings.model_folder,
        network,
        ground.head,
        ground.noise_cov,
        name=settings.name,
        card=card,
        projs=ground.projs,
        low_hz=low_hz,
        high_hz=high_hz,
        window_sfreq=settings.batches.sfreq,
    )


def model_of_pack(settings: TrainSettings, folder: Path, preparing: Preparing | None = None) -> Artefact:
    """The model of what a packed folder has learned elsewhere.

    Raises
    ------
    TrainingError
        The folder holds no weights, damaged ones, or such that were trained for another head.
    """
    content = read_settings(folder / SETTINGS)
    ground = lay_ground(settings, preparing)
    scenes = load_scenes(folder / content["scenes"])
    _check_fit(scenes, ground.head, folder / content["scenes"])
    path = folder / OUT / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            trained = json.loads(facts["network"])
            # without it: written by an earlier rt_mmdf, which trained with as many as the settings say on one process
            default = content["loop"].batches_per_step * content["batches"].size
            samples_per_step = int(facts.get(SAMPLES_PER_STEP, default))
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        history = json.loads((path.parent / HISTORY).read_text(encoding="utf-8"))
        network = build_network(trained["kind"], trained["options"], scenes[0].arrays)
        network.load_state_dict(weights)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"training: {path} cannot be used ({type(error).__name__}: {error}). Expected are the weights that train.py "
            "of a packed folder writes. Run it to its end, or pack again."
        ) from error
    best = min(history, key=lambda entry: entry["loss"])
    as_trained = settings.model_copy(update={"batches": content["batches"], "loop": content["loop"]})
    return write_model(as_trained, ground, network, history[-1]["step"], best, samples_per_step)


def _head(settings: HeadSettings, preparing: Preparing | None) -> HeadModel:
    if settings.folder is not None:
        return load_head(settings.folder)
    info = None
    if settings.recording is not None:
        try:
            info = mne.io.read_raw(settings.recording, verbose="ERROR").info
        except Exception as error:  # mne's readers fail in many ways
            raise RecordingError(
                f"head.recording {settings.recording}: cannot be read ({type(error).__name__}: {error})."
            ) from error
    return build_template(spacing=settings.spacing, info=info, meg=settings.meg, eeg=settings.eeg, progress=preparing)


def _scenes(
    settings: TrainSettings, wanted: ScenesSettings, ground: Ground, folder: Path, preparing: Preparing | None
) -> list[Scene]:
    expected = made_of(settings, wanted, ground)
    if not (folder / INDEX).exists():
        # before the index, which completes the folder: scenes are never there without it
        write_whole(folder / MADE_OF, json.dumps(expected, indent=1).encode())
        save_scenes(
            training_scenes(
                ground.head,
                wanted.n,
                wanted.seed,
                noise_cov=ground.colour,
                regularisation=settings.noise.regularisation,
                projs=ground.projs,
                dropout=wanted.dropout,
                leadfield_noise=wanted.leadfield_noise,
                make_head=_make_head(settings, ground.head),
                progress=preparing,
            ),
            folder,
        )
    else:
        seen = _read_made_of(folder)
        if changed := [key for key in expected if seen.get(key) != expected[key]]:
            listed = ", ".join(f"{key} was {seen.get(key)!r}, is {expected[key]!r}" for key in changed)
            raise ConfigurationError(
                f"scenes in {folder} were made of something else ({listed}). Delete that folder so that they are made "
                "anew, or choose another one."
            )
    scenes = load_scenes(folder)
    _check_fit(scenes, ground.head, folder)
    return scenes


def made_of(settings: TrainSettings, wanted: ScenesSettings, ground: Ground) -> dict[str, Any]:
    """Everything that scenes depend on, as plain values; what is in made_of.json beside them.

    Raises
    ------
    ConfigurationError
        A file of ``[variation]`` cannot be read.
    """
    noise = hashlib.sha256()
    if ground.colour is not None:
        noise.update(np.ascontiguousarray(ground.colour.data, dtype="<f8").tobytes())
    for proj in ground.projs:
        noise.update(np.ascontiguousarray(proj["data"]["data"], dtype="<f8").tobytes())
    return {
        "n": wanted.n,
        "seed": wanted.seed,
        "dropout": wanted.dropout,
        "leadfield_noise": wanted.leadfield_noise,
        "head": ground.head.fingerprint[:16],
        "noise": noise.hexdigest()[:16],
        "regularisation": settings.noise.regularisation.model_dump(),
        "variation": _digests(settings.variation),
        "recipe": RECIPE_VERSION,
    }


def _digests(variation: VariationSettings | None) -> dict[str, str] | None:
    if variation is None:
        return None
    digests = {}
    for key, path in (("trans", variation.trans), ("src", variation.src), ("bem", variation.bem)):
        try:
            with path.open("rb") as file:
                digests[key] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:
            raise ConfigurationError(
                f"variation.{key} {path}: cannot be read ({error.strerror}). Correct the path; it is relative to the folder "
                "in which the command is started."
            ) from error
    return digests


def _read_made_of(folder: Path) -> dict[str, Any]:
    path = folder / MADE_OF
    try:
        seen = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(seen, dict):
            raise ValueError("no table")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"scenes in {folder}: {path.name}, which says what they were made of, cannot be read ({type(error).__name__}: "
            f"{error}), so nobody knows whether they fit this configuration. Delete that folder so that they are made anew, "
            "or choose another one."
        ) from error
    return seen


def _make_head(settings: TrainSettings, nominal: HeadModel) -> MakeHead | None:
    variation = settings.variation
    if variation is not None:

        def varied(how: HeadVariation, number: int) -> HeadModel:
            made = varied_subject(nominal.info, variation.trans, variation.src, variation.bem, how)
            return made.pick(nominal.ch_names)

        return varied
    if nominal.kind == "template":
        return None
    logger.warning(
        "head model %r is no template and there is no [variation]: the heads of all scenes are the nominal one, and the "
        "network will trust it too much. Give the subject's trans, src and bem.",
        nominal.name,
    )
    return lambda how, number: nominal


def _check_fit(scenes: list[Scene], head: HeadModel, folder: Path) -> None:
    arrays = scenes[0].arrays
    seen, wanted = (arrays.n_channels, arrays.n_sources), (len(head.ch_names), head.n_sources)
    if seen != wanted or float(np.abs(arrays.positions_mm - head.source_positions_mm).max()) > 0.1:
        raise HeadModelError(
            f"scenes in {folder} are of a head of {seen[0]} channels and {seen[1]} sources; head model {head.name!r} has "
            f"{wanted[0]} and {wanted[1]}, or has them elsewhere. Use the head that they were made for, or make others."
        )


@contextmanager
def _first_alone(first: bool) -> Iterator[None]:
    """The first process goes through the block, then all others do: what it made they find."""
    if dist.is_initialized() and not first:
        dist.barrier()
    yield
    if dist.is_initialized() and first:
        dist.barrier()
