"""The seed's network and its relatives: the published numbers, and what every network owes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.interface import EEG, GRAD, MAG, Batch, ForwardArrays
from rt_mmdf.networks.pictures import PictureNetwork

Arrays = Callable[..., ForwardArrays]
KINDS = ["mmdf", "mmdf-eeg", "mmdf-meg", "convdip"]


def network_of(kind: str, arrays: ForwardArrays, **options: int | float | str | bool) -> PictureNetwork:
    torch.manual_seed(3)
    network = build_network(kind, options, arrays)
    assert isinstance(network, PictureNetwork)
    # it begins with silence, of which every law holds
    nn.init.normal_(network.get_submodule("output").get_parameter("weight"), std=0.05)
    return network


def samples(arrays: ForwardArrays, n: int = 5, level: float = 3.0) -> torch.Tensor:
    return level * torch.randn(n, arrays.n_channels, generator=torch.Generator().manual_seed(1))


def multiply_adds(network: nn.Module, run: Callable[[], object]) -> int:
    """Counted where they happen: in the convolutions and the linear layers, for one sample."""
    count = 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal count
        if isinstance(module, nn.Conv2d):
            count += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            count += module.weight.numel()

    hooks = [module.register_forward_hook(add) for module in network.modules()]
    run()
    for hook in hooks:
        hook.remove()
    return count


def test_mmdf_has_the_published_size(made_up_arrays: Arrays) -> None:
    arrays = made_up_arrays(59, 102, n_sources=1984)
    network = network_of("mmdf", arrays)
    assert sum(p.numel() for p in network.parameters()) == 1_954_924
    assert [picture.canvas for picture in network.pictures] == [(12, 14), (12, 14)]
    prepared = network.prepare(arrays)
    count = multiply_adds(network, lambda: network(samples(arrays, 1), None, prepared))
    assert count == pytest.approx(1.97e6, rel=0.003)


@pytest.mark.parametrize(("kind", "n_kept"), [("mmdf-eeg", 59), ("mmdf-meg", 102)])
def test_single_modality_is_the_same_recipe_less_a_branch(made_up_arrays: Arrays, kind: str, n_kept: int) -> None:
    arrays = made_up_arrays(59, 102, n_sources=1984)
    network = network_of(kind, arrays)
    assert [len(picture.channels) for picture in network.pictures] == [n_kept]
    conv, attention = 80, 8 * 4 + 4 + 4 * 8 + 8
    assert sum(p.numel() for p in network.parameters()) == conv + attention + 960 * 500 + 500 + 500 * 1984 + 1984


def test_convdip_has_the_published_layers(made_up_arrays: Arrays) -> None:
    network = network_of("convdip", made_up_arrays(59, 102, n_sources=1284))
    assert network.pictures[0].canvas == (7, 11)
    expected = (8 * 9 + 8) + (8 * 5 * 9 + 1) * 512 + (512 + 1) * 1284
    assert sum(p.numel() for p in network.parameters()) == expected


def test_picture_holds_each_sensor_once_and_the_small_grid_in_the_middle(made_up_arrays: Arrays) -> None:
    arrays = made_up_arrays()
    eeg, meg = network_of("mmdf", arrays).pictures
    sample = torch.arange(1.0, 1 + arrays.n_channels)[None]
    assert sorted(eeg(sample)[eeg(sample) > 0].tolist()) == sample[0, :59].tolist()
    assert sorted(meg(sample)[meg(sample) > 0].tolist()) == sample[0, 59:].tolist()
    rows, columns = np.nonzero(eeg(sample)[0, 0].numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 9, 1, 11)


@pytest.mark.parametrize("kind", KINDS)
def test_sees_only_its_own_channels(made_up_arrays: Arrays, kind: str) -> None:
    arrays = made_up_arrays(60, 102, 204)
    network, sample = network_of(kind, arrays), samples(arrays)
    own = {"mmdf": (EEG, MAG), "mmdf-eeg": (EEG,), "mmdf-meg": (MAG,), "convdip": (EEG,)}[kind]
    other = torch.from_numpy(~np.isin(arrays.kinds, own))
    changed = sample.clone()
    changed[:, other] = 100.0
    prepared = network.prepare(arrays)
    torch.testing.assert_close(network(changed, None, prepared).moments, network(sample, None, prepared).moments)


@pytest.mark.parametrize("kind", KINDS)
def test_unused_channels_are_as_good_as_zeros(made_up_arrays: Arrays, kind: str) -> None:
    arrays = made_up_arrays()
    gone = np.arange(arrays.n_channels) % 7 == 2
    network, sample = network_of(kind, arrays), samples(arrays)
    without = network.prepare(replace(arrays, used=~gone))
    zeros = torch.where(torch.from_numpy(gone), 0.0, sample)
    whole = network.prepare(arrays)
    torch.testing.assert_close(
        network(sample, None, without).moments / without.unit, network(zeros, None, whole).moments / whole.unit
    )


@pytest.mark.parametrize("kind", KINDS)
def test_amplitude_is_given_back(made_up_arrays: Arrays, kind: str) -> None:
    """Twice a strong sample is twice the moments; below a gain of 1, mmdf does not blow noise up to a signal."""
    arrays = made_up_arrays()
    network, sample = network_of(kind, arrays), samples(arrays, level=4.0)
    prepared = network.prepare(arrays)
    single = network(sample, None, prepared).moments
    torch.testing.assert_close(network(2 * sample, None, prepared).moments, 2 * single, rtol=1e-4, atol=1e-5)
    if kind != "convdip":
        weak = network(1e-3 * sample, None, prepared).moments
        silence = network(0 * sample, None, prepared).moments
        torch.testing.assert_close(weak, silence, rtol=0, atol=2e-3 * float(single.detach().abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_convdip_ignores_the_reference_and_all_ignore_the_company(made_up_arrays: Arrays, kind: str) -> None:
    arrays = made_up_arrays()
    network, sample = network_of(kind, arrays), samples(arrays)
    prepared = network.prepare(arrays)
    whole = network(sample, None, prepared).moments
    alone = torch.cat([network(row[None], None, prepared).moments for row in sample])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    if kind == "convdip":
        shifted = sample + torch.from_numpy(arrays.kinds == EEG) * 2.5
        torch.testing.assert_close(network(shifted, None, prepared).moments, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["mse", "relative"])
def test_loss_is_that_of_the_dense_truth(made_up_arrays: Arrays, kind: str, loss: str) -> None:
    arrays = made_up_arrays()
    network = network_of(kind, arrays, loss=loss)
    prepared = network.prepare(arrays)
    batch = Batch(
        sample=samples(arrays, 2),
        window=None,
        vertices=torch.tensor([[7, 7, 12], [3, 0, 0]]),  # source 7 twice, the padding at 0
        moments=torch.tensor([[5.0, 1.0, -2.0], [4.0, 0.0, 0.0]]),
        centres=torch.tensor([[7], [3]]),
        centres_mm=torch.zeros(2, 1, 3),
        snr_db=torch.zeros(2),
    )
    truth = torch.zeros(2, arrays.n_sources)
    truth[0, 7], truth[0, 12], truth[1, 3] = 6.0, -2.0, 4.0
    unit = prepared.unit * network.scale(batch.sample)
    estimate = network(batch.sample, None, prepared).moments
    errors = ((estimate - truth) / unit).square().sum(dim=1)
    if loss == "relative":
        errors = errors / (truth / unit).square().sum(dim=1)
    torch.testing.assert_close(network.loss(batch, prepared), errors.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_as_good_as_it_can_be(made_up_arrays: Arrays, kind: str) -> None:
    arrays = made_up_arrays()
    network, sample = network_of(kind, arrays), samples(arrays, 20)
    prepared = network.prepare(arrays)
    whole = network(sample, None, prepared).moments
    with torch.autocast("cpu", torch.bfloat16):
        half = network(sample, None, prepared).moments
    assert half.dtype == torch.float32
    assert 0 < float((half - whole).detach().norm() / whole.detach().norm()) < 0.03


@pytest.mark.parametrize(("kind", "lost"), [("mmdf-eeg", EEG), ("mmdf-meg", MAG), ("convdip", EEG)])
def test_what_it_cannot_see_it_is_not_blamed_for(made_up_arrays: Arrays, kind: str, lost: int) -> None:
    arrays = made_up_arrays()
    network = network_of(kind, arrays)
    here = torch.from_numpy(arrays.kinds != lost)
    some = torch.ones(4, 1)
    batch = Batch(
        sample=torch.cat([samples(arrays, 2), samples(arrays, 2) * here]),
        window=None,
        vertices=torch.tensor([[3], [5], [3], [5]]),
        moments=40 * some,
        centres=torch.tensor([[3], [5], [3], [5]]),
        centres_mm=torch.zeros(4, 1, 3),
        snr_db=torch.zeros(4),
    )
    whole = network.prepare(arrays)
    half = replace(batch, **{f.name: getattr(batch, f.name)[:2] for f in fields(Batch) if f.name != "window"})
    torch.testing.assert_close(network.loss(batch, whole), network.loss(half, whole) / 2)
    without = network.prepare(replace(arrays, used=arrays.kinds != lost))
    loss = network.loss(batch, without)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_options_and_weights_make_the_same_network_again(made_up_arrays: Arrays, kind: str) -> None:
    arrays = made_up_arrays()
    network, sample = network_of(kind, arrays, hidden=20), samples(arrays)
    # another day: the layout has moved a little, the grid of the training stays
    moved = replace(arrays, layout=arrays.layout[::-1].copy())
    again = build_network(kind, network.options, moved)
    again.load_state_dict(network.state_dict())
    assert again.options == network.options
    torch.testing.assert_close(
        again(sample, None, again.prepare(moved)).moments,
        network(sample, None, network.prepare(arrays)).moments,
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_of_order_one(made_up_arrays: Arrays, kind: str) -> None:
    arrays = made_up_arrays()
    network = network_of(kind, arrays)
    strong = 1e4 * torch.from_numpy(arrays.leadfield.T.copy())  # each source alone, 1e4 nA m
    for louder in (1.0, 3.0):  # whatever the noise is, and so the whitened leadfield
        prepared = network.prepare(replace(arrays, leadfield=arrays.leadfield / louder))
        targets = 1e4 / (network.scale(strong / louder) * prepared.unit)
        assert targets.median() == pytest.approx(1.0, rel=0.05)


def test_larger_arrays_get_larger_grids(made_up_arrays: Arrays) -> None:
    arrays = made_up_arrays(128, 275)
    network = network_of("mmdf", arrays)
    assert [len(picture.channels) for picture in network.pictures] == [128, 275]
    assert len({picture.canvas for picture in network.pictures}) == 1
    assert network(samples(arrays), None, network.prepare(arrays)).moments.shape == (5, arrays.n_sources)


def test_gradiometers_serve_where_there_are_no_magnetometers(made_up_arrays: Arrays) -> None:
    arrays = made_up_arrays(59, 0, 70)
    assert len(network_of("mmdf-meg", arrays).pictures[0].channels) == 70
    assert (arrays.kinds[network_of("mmdf-meg", arrays).pictures[0].channels.numpy()] == GRAD).all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mmdff", {}, r"network 'mmdff' seen; expected one of mmdf, mmdf-eeg"),
        ("mmdf", {"hiden": 3}, r"unknown option 'hiden'. Known here: eeg_columns, .*hidden"),
        ("mmdf", {"hidden": 3.5}, r"hidden = 3.5 seen; a value of type int"),
        ("mmdf", {"hidden": 0}, r"option hidden = 0 seen; a whole number of at least 1"),
        ("mmdf", {"eeg_rows": -9}, r"option eeg_rows = -9 seen; a whole number of at least 0"),
        ("convdip", {"hidden": -3}, r"option hidden = -3 seen"),
        ("fusion", {"width": 49}, r"option width = 49 seen; a whole number, a multiple of 2, of at least 2"),
        ("fusion", {"n_blocks": 0}, r"option n_blocks = 0 seen; a whole number of at least 1"),
        ("fusion", {"k": 1}, r"option k = 1 seen; a whole number of at least 2"),
        ("fusion", {"width": 10**9}, r"option width = 1000000000 seen; .* at most 512 is expected"),
        ("mmdf", {"hidden": 10**6}, r"option hidden = 1000000 seen; .* at most 8192 is expected"),
        ("mmdf", {"eeg_rows": 65}, r"option eeg_rows = 65 seen; .* at most 64 is expected"),
        ("mmdf", {"loss": "l1"}, r"loss 'l1' seen; expected one of mse, relative"),
        ("mmdf", {"eeg_rows": 3, "eeg_columns": 3}, r"3 x 3 = 9 cells for 59 sensors"),
        ("convdip", {"rows": 2, "columns": 40}, r"grid of 2 x 40; at least 3 x 3"),
    ],
)
def test_wrong_options_are_named(
    made_up_arrays: Arrays, kind: str, options: dict[str, int | float | str | bool], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_network(kind, options, made_up_arrays())


def test_arrays_that_do_not_fit_are_named(made_up_arrays: Arrays) -> None:
    network = network_of("mmdf", made_up_arrays(n_sources=40))
    with pytest.raises(ValueError, match=r"40 sources; the head has 30"):
        network.prepare(made_up_arrays(n_sources=30))
    with pytest.raises(ValueError, match=r"161 channels; the head has 100"):
        network.prepare(made_up_arrays(50, 50, n_sources=40))
    with pytest.raises(ConfigurationError, match=r"none of them EEG"):
        build_network("convdip", {}, made_up_arrays(0, 102))
