"""The card of a model, as far as it is known right after training; an evaluation is added to it later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rt_mmdf
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.networks.convdip import ConvDipNetwork
from rt_mmdf.networks.interface import SourceNetwork
from rt_mmdf.networks.mmdf import MmdfNetwork
from rt_mmdf.training.settings import TrainSettings

NOT_MEANT_FOR = (
    "It was trained on simulations. It is research software and no medical device: no diagnosis, no treatment, no planning "
    "of either."
)
BOUND = "With another head, cap, helmet or filter than the above its estimates are not to be trusted."
# of MMDF-ESI, doi 10.1109/TNSRE.2024.3424669
PUBLISHED = {"n_sources": 1984, "hidden": 500, "rate": 1e-4, "batch": 500, "epochs": 100}
HEAD_FREE = "It images with other heads, caps and helmets as well; with those it was not tested unless the below says so."


def card_text(
    settings: TrainSettings,
    head: HeadModel,
    network: SourceNetwork,
    steps: int,
    best: Mapping[str, Any],
    samples_per_step: int,
) -> str:
    """Markdown.

    Parameters
    ----------
    steps : that were made
    best : the validation that chose the weights, `rt_mmdf.training.loop.Validation` as plain values
    samples_per_step : of all processes together
    """
    n_weights = sum(p.numel() for p in network.parameters())
    options = ", ".join(f"{key} = {value}" for key, value in network.options.items())
    types = [kind.value for kind in head.channels.types]
    channels = ", ".join(f"{types.count(kind)} {kind}" for kind in dict.fromkeys(types))
    batches, loop = settings.batches, settings.loop
    radii = ", ".join(f"{radius:g}" for radius in batches.radii_mm)
    windows = "" if max(batches.lengths) == 1 else f", with windows of {batches.lengths} columns at {batches.sfreq:g} Hz"
    differs = differences(settings, network, steps, samples_per_step)
    noise = "typical sensors and a resting brain" if settings.noise.file is None else settings.noise.file.name
    varied = head.kind == "template" or settings.variation is not None
    heads = "randomised conductivities, electrodes and helmet position" if varied else "the nominal head"
    return "\n".join(
        [
            f"# {settings.name}",
            "",
            f"Network `{network.kind}`, {n_weights:,} weights. {options}. Written by rt_mmdf {rt_mmdf.__version__}.",
            "",
            "## What it images",
            "",
            f"Head model {head.name!r}: {head.n_sources} sources normal to the cortex; {channels}. Output in A m, signed.",
            "",
            "## How it was trained",
            "",
            f"- {settings.scenes.n} scenes of seed {settings.scenes.seed}: {heads}; errors of the leadfield, levels of the "
            f"noise (from {noise}), missing channels and modalities.",
            f"- Samples: {batches.n_sources[0]} to {batches.n_sources[1]} patches, radius {radii} mm, SNR "
            f"{batches.snr_db[0]:g} to {batches.snr_db[1]:g} dB{windows}, made on the fly from seed {loop.seed}.",
            f"- {steps:,} steps of {samples_per_step} samples; {loop.optimiser}, rate {loop.learning_rate:g}, "
            f"{loop.schedule}.",
            f"- Weights of step {best['step']:,}, chosen by the loss ({best['loss']:.4g}) on {settings.validation.n} "
            f"held-out scenes of seed {settings.validation.seed}. On these samples (all radii, patches and SNRs) the "
            f"largest magnitude lay {best['error_mm']:.1f} mm from the nearest true centre on average.",
            "",
            *(["## How it differs from the paper", "", *(f"- {entry}" for entry in differs), ""] if differs else []),
            "## What it must not be used for",
            "",
            f"{NOT_MEANT_FOR} {HEAD_FREE if network.head_free else BOUND}",
            "",
        ]
    )


def differences(settings: TrainSettings, network: SourceNetwork, steps: int, samples_per_step: int) -> list[str]:
    """What is not as published, a sentence each; none for networks that are our own."""
    if isinstance(network, MmdfNetwork):
        found = _unlike_mmdf(settings, network, steps, samples_per_step)
    elif isinstance(network, ConvDipNetwork):
        found = [
            "Input: whitened electrodes. Output: signed moments of sources normal to the cortex, and the amplitude that the "
            "scaling takes away is given back.",
            f"Training: the samples of the other networks here, {settings.loop.optimiser} at "
            f"{settings.loop.learning_rate:g}.",
        ]
    else:
        return []
    if network.options["loss"] == "relative":
        found.append(
            "Loss: the squared error over the truth's own sum of squares, so that wide patches weigh as much as dipoles."
            + (" Published: the mean squared error." if isinstance(network, MmdfNetwork) else "")
        )
    batches = settings.batches
    if batches.channel_dropout or batches.modality_dropout:
        found.append(
            f"Dropout in training: up to {100 * batches.channel_dropout:g} % of the channels of a sample are zero, and "
            f"{100 * batches.modality_dropout:g} % of the samples lose all EEG or all MEG."
        )
    return found


def _unlike_mmdf(settings: TrainSettings, network: MmdfNetwork, steps: int, samples_per_step: int) -> list[str]:
    loop, found = settings.loop, []
    if not (network.sees_eeg and network.sees_meg):
        found.append("One branch, of one modality, where the paper fuses two.")
    if (n_sources := network.n_sources) != PUBLISHED["n_sources"]:
        found.append(f"Sources: {n_sources:,}. Published: {PUBLISHED['n_sources']:,}.")
    if (hidden := network.options["hidden"]) != PUBLISHED["hidden"]:
        found.append(f"Hidden units: {hidden}. Published: {PUBLISHED['hidden']}.")
    found.append(
        "Gain: a whitened sample is divided by its RMS over the channels that the network sees, where that is above 1, and "
        "the output multiplied by it."
    )
    recipe = (loop.optimiser, loop.learning_rate, loop.schedule, loop.warmup_steps)
    if recipe != ("nadam", PUBLISHED["rate"], "constant", 0):
        warm = f", {loop.warmup_steps} steps of warming up" if loop.warmup_steps else ""
        found.append(
            f"Optimiser: {loop.optimiser} at {loop.learning_rate:g}, {loop.schedule}{warm}. Published: NAdam at "
            f"{PUBLISHED['rate']:g}."
        )
    if samples_per_step != PUBLISHED["batch"]:
        found.append(f"Batch: {samples_per_step}. Published: {PUBLISHED['batch']}.")
    found.append(
        f"Length: {steps:,} steps, {steps * samples_per_step:,} samples, none of them twice. Published: "
        f"{PUBLISHED['epochs']} epochs."
    )
    found.append(
        "Weights: those that were best on held-out scenes. Published: those of the epoch with the least training loss."
    )
    return found
