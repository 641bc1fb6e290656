"""The card says what was done, and where that is not what the paper did."""

from __future__ import annotations

from typing import Any

import pytest

from rt_mmdf.core.settings import validate_settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
from rt_mmdf.headmodel.whitener import make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.interface import ForwardArrays
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.training.card import card_text, differences
from rt_mmdf.training.settings import TrainSettings

BEST = {"step": 1400, "loss": 0.91, "error_mm": 17.0}
AS_PUBLISHED = {"size": 500}, {"optimiser": "nadam", "learning_rate": 1e-4, "schedule": "constant"}
OURS = (
    {"size": 256, "channel_dropout": 0.1, "modality_dropout": 0.05},
    {"learning_rate": 5e-4, "schedule": "cosine", "warmup_steps": 100},
)


def settings_of(batches: dict[str, Any], loop: dict[str, Any]) -> TrainSettings:
    return validate_settings({"version": 1, "batches": batches, "loop": loop}, TrainSettings, where="test")


@pytest.fixture(scope="module")
def head(template_head_ico3: HeadModel) -> HeadModel:
    return template_head_ico3


@pytest.fixture(scope="module")
def arrays(head: HeadModel) -> ForwardArrays:
    whitener = make_whitener(head.channels, head.ch_names, head.info, ad_hoc_noise_cov(head.channels))
    return forward_arrays(head, whitener, head.ch_names)


def test_what_differs_from_the_paper_is_said_and_nothing_else(head: HeadModel, arrays: ForwardArrays) -> None:
    network = build_network("mmdf", {"loss": "relative", "hidden": 20}, arrays)
    said = " ".join(differences(settings_of(*OURS), network, 1500, 256))
    for part in (
        "Sources: 1,284. Published: 1,984.",
        "Hidden units: 20. Published: 500.",
        "Optimiser: nadam at 0.0005, cosine, 100 steps of warming up. Published: NAdam at 0.0001.",
        "Batch: 256. Published: 500.",
        "1,500 steps, 384,000 samples",
        "Published: the mean squared error.",
        "up to 10 % of the channels of a sample are zero, and 5 % of the samples lose",
    ):
        assert part in said
    plain = " ".join(differences(settings_of(*AS_PUBLISHED), build_network("mmdf", {}, arrays), 900, 500))
    for word in ("Optimiser", "Batch", "Loss", "Dropout", "Hidden", "One branch"):
        assert word not in plain
    assert "Gain" in plain
    assert "One branch" in " ".join(differences(settings_of(*OURS), build_network("mmdf-eeg", {}, arrays), 1, 1))


def test_the_card_has_that_list_for_published_networks_alone(head: HeadModel, arrays: ForwardArrays) -> None:
    settings = settings_of(*OURS)
    cards = {
        kind: card_text(settings, head, build_network(kind, {}, arrays), 1500, BEST, 1024)
        for kind in ("mmdf", "convdip", "fusion")
    }
    for kind, card in cards.items():
        assert ("## How it differs from the paper" in card) == (kind != "fusion")
        assert "1,500 steps of 1024 samples" in card
    assert "Batch: 1024. Published: 500." in cards["mmdf"]
