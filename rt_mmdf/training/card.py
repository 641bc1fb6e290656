"""The card of a model, as far as it is known right after training; an evaluation is added to it later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rt_mmdf
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.networks.interface import SourceNetwork
from rt_mmdf.training.settings import TrainSettings

NOT_MEANT_FOR = (
    "It was trained on simulations. It is research software and no medical device: no diagnosis, no treatment, no planning "
    "of either."
)
BOUND = "With another head, cap, helmet or filter than the above its estimates are not to be trusted."
HEAD_FREE = "It images with other heads, caps and helmets as well; with those it was not tested unless the below says so."


def card_text(settings: TrainSettings, head: HeadModel, network: SourceNetwork, steps: int, best: Mapping[str, Any]) -> str:
    """Markdown.

    Parameters
    ----------
    steps : that were made
    best : the validation that chose the weights, `rt_mmdf.training.loop.Validation` as plain values
    """
    n_weights = sum(p.numel() for p in network.parameters())
    options = ", ".join(f"{key} = {value}" for key, value in network.options.items())
    types = [kind.value for kind in head.channels.types]
    channels = ", ".join(f"{types.count(kind)} {kind}" for kind in dict.fromkeys(types))
    batches, loop = settings.batches, settings.loop
    radii = ", ".join(f"{radius:g}" for radius in batches.radii_mm)
    windows = "" if max(batches.lengths) == 1 else f", with windows of {batches.lengths} columns at {batches.sfreq:g} Hz"
    per_step = max(1, loop.batches_per_step) * batches.size
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
            f"- {steps:,} steps of {per_step} samples; {loop.optimiser}, rate {loop.learning_rate:g}, {loop.schedule}.",
            f"- Weights of step {best['step']:,}, chosen by the loss ({best['loss']:.4g}) on {settings.validation.n} "
            f"held-out scenes of seed {settings.validation.seed}. On these samples (all radii, patches and SNRs) the "
            f"largest magnitude lay {best['error_mm']:.1f} mm from the nearest true centre on average.",
            "",
            "## What it must not be used for",
            "",
            f"{NOT_MEANT_FOR} {HEAD_FREE if network.head_free else BOUND}",
            "",
        ]
    )
