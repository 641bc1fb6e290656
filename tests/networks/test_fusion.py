"""The fusion network: exact Bayes under its prior, indifferent to how channels are ordered and cases are batched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import ConvexHull

from rt_mmdf.networks.fusion import RADII_MM, FusionNetwork, PreparedFusion
from rt_mmdf.networks.interface import EEG, GRAD, MAG, Batch, ForwardArrays
from rt_mmdf.networks.mesh import mesh_of

N_SIDE = 120  # sources of each hemisphere


def ball(centre: float) -> tuple[np.ndarray, np.ndarray]:
    """Places spread evenly over a sphere of 40 mm, and the triangles between them."""
    k = np.arange(N_SIDE) + 0.5
    z, angle = 1 - 2 * k / N_SIDE, 2.39996 * k
    places = 40 * np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)
    return places + np.array([centre, 0, 0]), ConvexHull(places).simplices


@pytest.fixture(scope="module")
def arrays() -> ForwardArrays:
    """Two spheres of sources under 12 electrodes and 24 MEG channels, fields that fall with the distance."""
    rng = np.random.default_rng(3)
    (left, triangles), (right, _) = ball(-45), ball(45)
    positions = np.vstack([left, right])
    sensors = rng.normal(size=(36, 3))
    sensors = 110 * sensors / np.linalg.norm(sensors, axis=1, keepdims=True)
    offset = sensors[:, None] - positions[None]
    normals = rng.normal(size=positions.shape)
    field = 4e4 * np.einsum("csx,sx->cs", offset, normals) / np.linalg.norm(offset, axis=2) ** 3
    return ForwardArrays(
        leadfield=field.astype(np.float32),
        used=np.ones(36, dtype=bool),
        rank=36,
        kinds=np.repeat([EEG, MAG, GRAD], 12).astype(np.int64),
        layout=np.zeros((36, 2), np.float32),
        positions_mm=positions.astype(np.float32),
        triangles=np.vstack([triangles, triangles + N_SIDE]).astype(np.int64),
        n_left=N_SIDE,
    )


@pytest.fixture(scope="module")
def network() -> FusionNetwork:
    torch.manual_seed(4)
    network = FusionNetwork(width=8, n_blocks=1, n_nodes=40, n_regions=8, n_likely=60, k=30)
    for parameter in network.parameters():  # as after training: no weight is zero
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def prepared(network: FusionNetwork, arrays: ForwardArrays) -> PreparedFusion:
    return network.prepare(arrays)


@pytest.fixture(scope="module")
def cases(arrays: ForwardArrays) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    window = torch.randn(5, 36, 40, generator=generator)
    field = torch.from_numpy(arrays.leadfield[:, [7, 60, 133, 180, 222]]).T
    window += (4 * field / field.norm(dim=1, keepdim=True) * 6**0.5)[:, :, None] * torch.linspace(0, 1, 40)
    return window[:, :, 30], window


def dense_prior(network: FusionNetwork, sample: torch.Tensor, window: torch.Tensor, prepared: PreparedFusion):
    """Covariance of sources and of noise, and the sample that is imaged, as plain matrices in double precision."""
    prior = network.prior(sample, window, prepared)
    n = prepared.mesh.n_sources
    patches = torch.zeros(len(RADII_MM) * n, n).scatter_add_(1, prepared.mesh.table_vertices, prepared.mesh.table_shares)
    chosen = patches[prior.atoms[0]].double()
    power = (prior.power[0] / prepared.norms[prior.atoms[0]].square()).double()
    cov = chosen.T @ torch.diag(power) @ chosen
    cov += torch.diag((prior.ground[0] / n / prepared.norms[:n].square()).double())
    return prior, cov, prior.noise[0].double()


def test_the_estimate_is_the_posterior_mean_and_its_deviation_the_posterior_one(network, arrays, prepared, cases):
    sample, window = cases[0][:1], cases[1][:1]
    with torch.no_grad():
        prior, cov, noise = dense_prior(network, sample, window, prepared)
        leadfield = (prepared.both.basis.T @ torch.from_numpy(arrays.leadfield)).double()
        now = network._blended(sample, prior, prepared)[0].double()
        gain = cov @ leadfield.T @ torch.linalg.inv(leadfield @ cov @ leadfield.T + noise * torch.eye(30))
        wanted, deviation = network.restored.double().exp() * gain @ now, (cov - gain @ leadfield @ cov).diagonal().sqrt()
        seen = network.estimate(sample, prior, prepared).moments[0].double()
        torch.testing.assert_close(seen, wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))
        # the part that is learned: a share of the largest prior deviation within 9 mm
        near = prepared.mesh.patches[1]
        local = (cov.diagonal().sqrt()[near.vertices] * (near.shares > 0)).amax(dim=1)
        deviation = (deviation.square() + (network.mistrust.double().exp() * local).square()).sqrt()
        seen = network.deviation(prior, prepared)[0].double()
    torch.testing.assert_close(seen, deviation, rtol=5e-3, atol=5e-3 * float(deviation.max()))


def test_the_estimate_is_linear_in_the_samples_that_share_a_window(network, prepared, cases):
    sample, window = cases
    with torch.no_grad():
        prior = network.prior(sample[:1], window[:1], prepared)
        many = network.estimate(torch.stack([sample[0], sample[1], sample[0] - 2 * sample[1]]), prior, prepared).moments
    torch.testing.assert_close(many[2], many[0] - 2 * many[1], rtol=1e-3, atol=1e-4 * float(many.abs().max()))


def test_two_matrices_give_the_estimate(network, prepared, cases):
    sample, window = cases
    with torch.no_grad():
        prior = network.prior(sample[:1], window[:1], prepared)
        first, second = network.factors(prior, prepared)
        wanted = network.estimate(sample, prior, prepared).moments
    torch.testing.assert_close(sample @ first @ second, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("windowed", [True, False])
def test_cases_do_not_know_of_each_other(network, prepared, cases, windowed):
    sample, window = cases[0], cases[1] if windowed else None
    with torch.no_grad():
        together = network(sample, window, prepared).moments
        alone = [
            network(sample[i : i + 1], None if window is None else window[i : i + 1], prepared).moments for i in range(5)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3 * float(together.abs().max()))


def test_the_order_of_channels_makes_no_difference(network, arrays, prepared, cases):
    sample, window = cases
    order = np.random.default_rng(1).permutation(36)
    turned = replace(arrays, leadfield=arrays.leadfield[order], kinds=arrays.kinds[order], used=arrays.used[order])
    with torch.no_grad():
        as_is = network(sample, window, prepared).moments
        mixed = network(sample[:, order], window[:, order], network.prepare(turned)).moments
    torch.testing.assert_close(mixed, as_is, rtol=1e-2, atol=1e-2 * float(as_is.abs().max()))


def test_channels_that_are_not_used_do_not_matter(network, arrays, cases):
    sample = cases[0]
    used = np.arange(36) >= 12  # MEG alone
    prepared = network.prepare(replace(arrays, leadfield=arrays.leadfield * used[:, None], used=used, rank=24))
    other = sample.clone()
    other[:, :12] = 1e3
    with torch.no_grad():
        torch.testing.assert_close(network(other, None, prepared).moments, network(sample, None, prepared).moments)


def test_a_source_is_found_before_any_training(arrays, cases):
    network = FusionNetwork(width=8, n_blocks=1, n_nodes=40, n_regions=8, n_likely=60, k=36)
    with torch.no_grad():
        found = network(*cases, network.prepare(arrays)).moments.abs().argmax(dim=1).numpy()
    distance = np.linalg.norm(arrays.positions_mm[found] - arrays.positions_mm[[7, 60, 133, 180, 222]], axis=1)
    assert np.median(distance) < 15  # neighbours are about 8 mm apart


def test_every_weight_learns(arrays, cases):
    torch.manual_seed(0)
    network = FusionNetwork(width=8, n_blocks=1, n_nodes=40, n_regions=8, n_likely=60, k=36)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    centres = torch.tensor([[7, -1], [60, -1], [133, 20], [180, -1], [222, -1]])
    places = torch.from_numpy(arrays.positions_mm)[centres.clamp_min(0)]
    batch = Batch(
        sample=cases[0],
        window=cases[1],
        vertices=centres.clamp_min(0),
        moments=torch.where(centres >= 0, 10.0, 0.0),
        centres=centres,
        centres_mm=torch.where(centres[:, :, None] >= 0, places, torch.nan),
        snr_db=torch.full((5,), 10.0),
    )
    loss = network.loss(batch, network.prepare(arrays))
    loss.backward()
    assert torch.isfinite(loss)
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_patches_are_geodesic_cosine_caps(arrays):
    mesh = mesh_of(arrays.positions_mm, arrays.triangles, arrays.n_left, RADII_MM, 40, 8)
    edges = np.unique(np.sort(arrays.triangles[:, [[0, 1], [1, 2], [0, 2]]].reshape(-1, 2), axis=1), axis=0)
    lengths = np.linalg.norm(arrays.positions_mm[edges[:, 0]] - arrays.positions_mm[edges[:, 1]], axis=1)
    graph = coo_array((lengths, edges.T), shape=(2 * N_SIDE, 2 * N_SIDE))
    distance = dijkstra(graph.tocsr(), directed=False)
    for radius, patch in zip(RADII_MM, mesh.patches, strict=True):
        wanted = np.where(distance <= radius, np.cos(0.5 * np.pi * np.minimum(distance, 1e3) / max(1.05 * radius, 1e-3)), 0)
        wanted /= wanted.sum(axis=1, keepdims=True)
        seen = torch.zeros(2 * N_SIDE, 2 * N_SIDE).scatter_add_(1, patch.vertices, patch.shares).numpy()
        np.testing.assert_allclose(seen, wanted, atol=1e-5)


def test_coarse_nodes_hold_every_source_once(arrays):
    mesh = mesh_of(arrays.positions_mm, arrays.triangles, arrays.n_left, RADII_MM, 40, 8)
    held = mesh.members[mesh.weight > 0]
    assert sorted(held.tolist()) == list(range(2 * N_SIDE))
    values = torch.randn(2, 2 * N_SIDE, 3)
    counts = (mesh.weight > 0).sum(dim=1)
    torch.testing.assert_close(
        mesh.pool_mean(values)[:, :, 0] * counts, mesh.pool_sum(values[:, :, 0]), rtol=1e-4, atol=1e-4
    )


def test_too_few_sources_or_channels_are_refused(network, arrays):
    with pytest.raises(ValueError, match="at least 64 and 2"):
        network.prepare(replace(arrays, used=np.zeros(36, dtype=bool)))
