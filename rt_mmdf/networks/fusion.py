"""Our fusion network: it does not say where the sources are but where they may be; the estimate is exact Bayes under that.

whitened window -> what its time courses share -> back-projections onto patches of several sizes, from EEG, MEG and both
  -> squeeze and excitation, message passing on the cortex, attention across it -> prior power of every patch
  -> maximum a posteriori estimate of the sample under this prior, with a posterior deviation; amplitudes, which any prior
     shrinks, given back by a learned factor

After "empirical Bayes with learned iterations": the diagonal prior of Champagne (Wipf et al. 2010, doi
10.1016/j.neuroimage.2009.06.083) over a dictionary of patches, its hyperparameters amortised by a network. EEG and MEG are
fused before anything else, with squeeze and excitation, as in MMDF-ESI (Jiao et al. 2024, doi 10.1109/TNSRE.2024.3424669).
Nothing in the weights depends on a particular head, array or set of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rt_mmdf.networks.interface import EEG, Batch, ForwardArrays, SourceMap, SourceNetwork
from rt_mmdf.networks.mesh import CoarseMesh, Mesh, mesh_of

RADII_MM = (0.0, 9.0, 18.0, 30.0)
"""Sizes of the patches in the dictionary: a dipole, and caps that fall as a cosine and reach so far. They are between flat
patches and raised cosines, so that the estimate of either has about its area."""
N_COMPONENTS = 5
"""Temporal components of a window that are kept."""
REGULARISED = (1.0, 10.0)
"""Amplitude SNR of the two regularised maps among the features."""
N_SCALES = len(RADII_MM)
N_MAPS = 5 * N_SCALES + len(REGULARISED) + 2
"""Five of each patch size, the regularised ones, EEG alone and MEG alone."""
N_FACTS, N_WHOLE, N_FINE = 6, 5 + N_SCALES, 32
K_SINGLE = 60
"""Directions of the leadfield that are kept, at most, for EEG alone and for MEG alone."""

Inverse = Callable[[Tensor], Tensor]
"""Of symmetric positive definite matrices (n, k, k)."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Sensors to the atoms that some of the channels see.

    basis : (n_channels, k), orthonormal: the directions in which the leadfield is strong
    atoms : (n_atoms, k), the fields of the patches in them, each of length one
    """

    basis: Tensor
    atoms: Tensor

    def to(self, device: torch.device | str) -> Projection:
        """The same on another device."""
        return Projection(self.basis.to(device), self.atoms.to(device))


@dataclass(frozen=True, eq=False)
class WindowOperators:
    """The part of the operators that the network meets when it looks at a window.

    atoms : (n_atoms, k), see `Projection`; nodes : (N_SCALES * n_nodes, k), those of the patches around the coarse nodes
    ground : (k, k), regularised : (n_maps * n_sources, k), see `PreparedFusion`
    single : atoms of EEG alone and of MEG alone, (n_sources, k), None where there is no second opinion
    """

    atoms: Tensor
    nodes: Tensor
    ground: Tensor
    regularised: Tensor
    single: tuple[Tensor | None, ...]
    mesh: CoarseMesh


@dataclass(frozen=True, eq=False)
class PreparedFusion:
    """Operators of one head, noise and set of channels."""

    mesh: Mesh
    both: Projection
    nodes: Tensor  # (N_SCALES * n_nodes, k) atoms of the patches around the first source of each coarse node
    norms: Tensor  # (n_atoms,) length of each atom's field per nA m, in the directions of `both`
    points: Tensor  # (n_sources, k) fields of the point atoms over their lengths
    ground: Tensor  # (k, k) mean outer product of the point atoms
    regularised: Tensor  # (n_maps * n_sources, k) standardised kernels
    single: tuple[Projection | None, ...]  # EEG, MEG
    facts: Tensor  # (3,) EEG channels, MEG channels and rank, as parts of those of a system of 306 + 60
    rank: int

    @property
    def for_windows(self) -> WindowOperators:
        """Those that the network meets."""
        single = tuple(None if own is None else own.atoms for own in self.single)
        return WindowOperators(self.both.atoms, self.nodes, self.ground, self.regularised, single, self.mesh)


@dataclass(frozen=True, eq=False)
class Reduced:
    """Samples and their windows in the directions that the operators keep: all that the network sees of them.

    now, clean : (n, k) the sample, and what of it is signal
    components : (n, k, r) orthonormal components of the window; trust : (n, r) how much of each is signal; energy : (n, r)
    single : (n, k) what is signal in EEG alone and in MEG alone, None where there is no second opinion
    power : (n,) of the signal
    facts : (n, N_FACTS) about the whole
    """

    now: Tensor
    clean: Tensor
    components: Tensor
    trust: Tensor
    energy: Tensor
    single: tuple[Tensor | None, ...]
    power: Tensor
    facts: Tensor


@dataclass(frozen=True, eq=False)
class Prior:
    """What a window says about where sources may be.

    atoms : (n, m) int64, the patches that are likely; power : (n, m) their prior power in whitened units
    ground : (n,) power of the ground that every source has; noise : (n,) variance of the noise
    components : (n, k, r) orthonormal components of the window; trust : (n, r) how much of each is signal
    blend : (n,) share of the sample that is kept outside of the components
    logits : (n, n_atoms)
    """

    atoms: Tensor
    power: Tensor
    ground: Tensor
    noise: Tensor
    components: Tensor
    trust: Tensor
    blend: Tensor
    logits: Tensor

    def of(self, i: int) -> Prior:
        """That of one window, n = 1."""
        return Prior(**{f.name: getattr(self, f.name)[i : i + 1] for f in fields(self)})


class SqueezeExcite(nn.Module):
    """Scales each map by what all maps hold on average (Hu et al. 2018), with facts about the whole beside."""

    def __init__(self, width: int, n_facts: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width + n_facts, width // 2)
        self.excite = nn.Linear(width // 2, width)

    def forward(self, x: Tensor, facts: Tensor) -> Tensor:
        scale = self.excite(F.relu(self.squeeze(torch.cat([x.mean(dim=1), facts], dim=1))))
        return x * (2 * torch.sigmoid(scale))[:, None]


class Block(nn.Module):
    """One round on the coarse cortex: neighbours, attention to the regions of all of it, squeeze and excitation."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.near_norm = nn.LayerNorm(width)
        self.near = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.far_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.far = nn.Linear(width, width)
        self.excite = SqueezeExcite(width, N_FACTS)

    def forward(self, x: Tensor, facts: Tensor, mesh: CoarseMesh) -> Tensor:
        n, nodes, width = x.shape
        shape = (n, -1, self.heads, width // self.heads)
        normed = self.near_norm(x)
        x = x + self.near(torch.cat([normed, mesh.around(normed)], dim=2))
        normed = self.far_norm(x)
        query = self.query(normed).reshape(shape).transpose(1, 2)
        key, value = (part.reshape(shape).transpose(1, 2) for part in self.key_value(mesh.regions @ normed).chunk(2, dim=2))
        far = F.softmax(query @ key.transpose(2, 3) * (width // self.heads) ** -0.5, dim=3) @ value
        x = x + self.far(far.transpose(1, 2).reshape(n, nodes, width))
        out: Tensor = self.excite(x, facts)
        return out


class Pass(nn.Module):
    """Rounds on the coarse cortex, and what they say: logits of the patches around each node, numbers about the whole.

    n_peaks : so many of the first maps are pooled by their maximum too, all by their mean
    """

    def __init__(self, n_maps: int, n_peaks: int, width: int, n_blocks: int) -> None:
        super().__init__()
        self.n_peaks = n_peaks
        self.enter = nn.Linear(n_maps + n_peaks + N_FACTS, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(n_blocks)])
        self.leave = nn.LayerNorm(width)
        self.logits = begins_at_zero(nn.Linear(width, N_SCALES))
        self.whole = nn.Sequential(nn.Linear(width + N_FACTS, 32), nn.GELU(), begins_at_zero(nn.Linear(32, N_WHOLE)))

    def forward(self, maps: Tensor, facts: Tensor, mesh: CoarseMesh, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        pooled = torch.cat([mesh.pool_mean(maps), mesh.pool_max(maps[:, :, : self.n_peaks])], dim=2)
        x = self.enter(torch.cat([pooled, facts[:, None].expand(-1, pooled.shape[1], -1)], dim=2))
        x = x if state is None else x + state
        for block in self.blocks:
            x = block(x, facts, mesh)
        seen = self.leave(x)
        return seen, self.logits(seen), self.whole(torch.cat([seen.mean(dim=1), facts], dim=1))


class Fine(nn.Module):
    """Logits of all patches from the maps at each source and what the coarse cortex says there."""

    def __init__(self, n_maps: int, width: int) -> None:
        super().__init__()
        self.coarse = nn.Linear(width, N_FINE)
        self.maps = nn.Linear(n_maps, N_FINE)
        self.hidden = nn.Linear(N_FINE, N_FINE)
        self.logits = begins_at_zero(nn.Linear(N_FINE, N_SCALES))

    def forward(self, maps: Tensor, seen: Tensor, mesh: CoarseMesh) -> Tensor:
        # all sources: the widest layers, so the cheapest activation
        hidden = F.relu(self.coarse(seen)[:, mesh.node_of] + self.maps(maps))
        logits: Tensor = self.logits(F.relu(self.hidden(hidden)))
        return logits


def begins_at_zero(layer: nn.Linear) -> nn.Linear:
    """A layer that is at first as if it were not there."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FusionNetwork(SourceNetwork):
    """The learned prior and the estimate under it.

    Two passes: the second one sees what the prior of the first leaves unexplained.

    Parameters
    ----------
    width : maps on the coarse cortex
    n_blocks : rounds on it, in each pass
    n_nodes, n_regions : of the coarse cortex and of the coarsest one
    n_likely : patches that the prior of a sample keeps, the most powerful ones
    k : directions of the leadfield that are kept for both modalities; at most `K_SINGLE` for each alone
    n_times : columns of the window that are made use of
    """

    kind = "fusion"
    head_free = True

    def __init__(
        self,
        width: int = 48,
        n_blocks: int = 2,
        n_nodes: int = 384,
        n_regions: int = 64,
        n_likely: int = 384,
        k: int = 100,
        n_times: int = 100,
    ) -> None:
        super().__init__()
        self.options = {
            "width": width,
            "n_blocks": n_blocks,
            "n_nodes": n_nodes,
            "n_regions": n_regions,
            "n_likely": n_likely,
            "k": k,
            "n_times": n_times,
        }
        self.n_nodes, self.n_regions, self.n_likely, self.k, self.n_times = n_nodes, n_regions, n_likely, k, n_times
        self.first = Pass(N_MAPS, N_SCALES, width, n_blocks)
        self.second = Pass(N_MAPS + 2 * N_SCALES + 1, 2 * N_SCALES, width, n_blocks)
        self.fine = Fine(N_MAPS + 2 * N_SCALES + 1, width)
        # begins as a soft choice among the best matching patches, over a weak ground
        self.sharpness = nn.Parameter(torch.tensor(0.5))
        self.restored = nn.Parameter(torch.tensor(0.0))  # logarithm of the factor that gives back what priors shrink
        self.mistrust = nn.Parameter(torch.tensor(-1.0))  # logarithm of the share that `deviation` adds

    @classmethod
    def from_arrays(cls, arrays: ForwardArrays, **options: Any) -> FusionNetwork:
        """The network with these options; the head makes no difference to its weights."""
        return cls(**options)

    @torch.no_grad()
    def prepare(self, arrays: ForwardArrays, device: torch.device | str = "cpu") -> PreparedFusion:
        """Dictionary, bases and meshes. ValueError where fewer than 64 sources or two channels are there."""
        if arrays.n_sources < 64 or int(arrays.used.sum()) < 2:
            raise ValueError(
                f"fusion: {arrays.n_sources} sources and {int(arrays.used.sum())} channels seen; at least 64 and 2 expected"
            )
        mesh = mesh_of(arrays.positions_mm, arrays.triangles, arrays.n_left, RADII_MM, self.n_nodes, self.n_regions)
        leadfield = torch.from_numpy(arrays.leadfield)
        # (n_atoms, n_channels), scale by scale
        fields = torch.cat([patch.gather_rows(leadfield.T) for patch in mesh.patches])
        both = _projection(fields, self.k)
        norms = (fields @ both.basis).norm(dim=1).clamp_min(1e-12)  # of what the kept directions see of them
        is_eeg = torch.from_numpy(arrays.kinds) == EEG
        used = torch.from_numpy(arrays.used)
        single: list[Projection | None] = []
        n = arrays.n_sources
        for rows in (is_eeg & used, ~is_eeg & used):
            if int(rows.sum()) < 2 or bool((rows == used).all()):
                single.append(None)  # nothing there, or nothing else: no second opinion
            else:
                single.append(_projection(fields[n : 2 * n] * rows, min(self.k, K_SINGLE)))
        points = both.atoms[:n]
        ground = points.T @ points / n
        kernels = []
        identity = torch.eye(len(ground))
        for snr in REGULARISED:
            # as sLORETA: the noise against sources that on average give this much power
            cov = identity + snr**2 * len(ground) * ground
            kernel = torch.linalg.solve(cov, points.T).T
            kernels.append(kernel / (kernel * points).sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt())
        facts = torch.tensor(
            [float((is_eeg & used).sum()) / 64, float((~is_eeg & used).sum()) / 306, arrays.rank / 366], dtype=torch.float32
        )
        return PreparedFusion(
            mesh=mesh.to(device),
            both=both.to(device),
            nodes=both.atoms.reshape(N_SCALES, n, -1)[:, mesh.members[:, 0]].flatten(0, 1).to(device),
            norms=norms.to(device),
            points=(points / norms[:n, None]).to(device),
            ground=ground.to(device),
            regularised=torch.cat(kernels).to(device),
            single=tuple(None if p is None else p.to(device) for p in single),
            facts=facts.to(device),
            rank=arrays.rank,
        )

    def prior(self, sample: Tensor, window: Tensor | None, prepared: PreparedFusion) -> Prior:
        """Where sources may be, from a window and the sample in it that is to be imaged.

        Parameters
        ----------
        sample : (n, n_channels)
        window : (n, n_channels, n_times) | None
        """
        return self._priors(sample, window, prepared)[-1]

    def _priors(self, sample: Tensor, window: Tensor | None, prepared: PreparedFusion) -> list[Prior]:
        reduced = self.reduce(sample, window, prepared)
        return [self.prior_of(logits, whole, reduced) for logits, whole in self.look(reduced, prepared.for_windows)]

    def look(
        self, reduced: Reduced, operators: WindowOperators, inverse: Inverse | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """What the network says after each of the two passes: logits (n, n_sources, N_SCALES), numbers about the whole.

        Parameters
        ----------
        inverse : of the data covariance under the first prior; None: by its Cholesky factor
        """
        maps, facts, mesh = self._maps(reduced, operators), reduced.facts, operators.mesh
        state, out, whole = self.first(maps, facts, mesh, None)
        # ten times the first maps: log likelihood ratio of each patch to the best one
        logits = out[:, mesh.node_of] + self.sharpness * 10 * maps[:, :, :N_SCALES] + whole[:, None, 5:]
        unexplained = self._unexplained(self.prior_of(logits, whole, reduced), reduced, operators, inverse or by_cholesky)
        maps = torch.cat([*unexplained, maps, logits.detach()[:, :, :1] / 10], dim=2)
        state, out, change = self.second(maps, facts, mesh, state)
        better = logits + out[:, mesh.node_of] + self.fine(maps, state, mesh) + change[:, None, 5:]
        return [(logits, whole), (better, whole + change)]

    def prior_of(self, logits: Tensor, whole: Tensor, reduced: Reduced) -> Prior:
        """The prior that the network means by what it says of windows."""
        power = reduced.power
        logits = logits.transpose(1, 2).reshape(len(logits), -1)
        likely, atoms = logits.topk(min(self.n_likely, logits.shape[1]), dim=1)
        share = torch.exp(likely - torch.logsumexp(logits, dim=1, keepdim=True))
        return Prior(
            atoms=atoms,
            power=share * (power * torch.exp(whole[:, 0] + 0.7))[:, None],
            ground=power * torch.exp(whole[:, 1] - 2.0),
            noise=torch.exp(0.3 * whole[:, 2]) + power * torch.exp(whole[:, 3] - 9.0),
            components=reduced.components,
            trust=reduced.trust,
            blend=torch.sigmoid(whole[:, 4] + 1.0),
            logits=logits,
        )

    @torch.no_grad()
    def _unexplained(self, prior: Prior, reduced: Reduced, operators: WindowOperators, inverse: Inverse) -> list[Tensor]:
        """Maps (n, n_sources, n_scales): what a patch would gain over the first prior, and what it holds in it."""
        mesh, blend = operators.mesh, prior.blend[:, None]
        now = blend * reduced.now + (1 - blend) * reduced.clean
        inverted = inverse(_data_cov(prior, operators.ground, operators.atoms[prior.atoms]))
        dual = (now[:, None] @ inverted)[:, 0]
        match = (dual @ operators.atoms.T).square()
        # the expected square of the match under the first prior, where the node is: it varies slowly
        expected = ((operators.nodes @ inverted) * operators.nodes).sum(dim=2).reshape(len(now), N_SCALES, -1)
        gain = match.reshape(len(now), N_SCALES, -1) / expected[:, :, mesh.node_of].clamp_min(1e-6)
        held = torch.zeros_like(match).scatter_(1, prior.atoms, prior.power * match.gather(1, prior.atoms).sqrt())
        return [(torch.log1p(gain) / 3).transpose(1, 2), (torch.log1p(held.reshape(gain.shape)) / 3).transpose(1, 2)]

    @torch.no_grad()
    def reduce(self, sample: Tensor, window: Tensor | None, prepared: PreparedFusion) -> Reduced:
        """Samples (n, n_channels) and their windows (n, n_channels, n_times) | None as the network sees them."""
        both = prepared.both
        now = sample @ both.basis
        components, trust, energy = _temporal_components(now, window, both.basis)
        clean = _denoised(now, components, trust)
        single: list[Tensor | None] = []
        for projection in prepared.single:
            if projection is None:
                single.append(None)
                continue
            seen = sample @ projection.basis
            single.append(_denoised(seen, *_temporal_components(seen, window, projection.basis)[:2]))
        power = (clean.square().sum(dim=1) - trust.sum(dim=1)).clamp_min(1.0)
        k = now.shape[1]
        levels = (now.square().mean(dim=1), power / k, (trust * energy).sum(dim=1) / k)
        facts = torch.cat([torch.log1p(torch.stack(levels, dim=1)), prepared.facts.expand(len(sample), -1)], dim=1)
        return Reduced(now, clean, components, trust, energy, tuple(single), power, facts)

    @torch.no_grad()
    def _maps(self, reduced: Reduced, operators: WindowOperators) -> Tensor:
        """(n, n_sources, N_MAPS)"""
        n, n_sources = len(reduced.now), operators.mesh.n_sources
        rows = torch.cat([reduced.now[:, None], reduced.clean[:, None], reduced.components.transpose(1, 2)], dim=1)
        # squared matches with the patches: twice the log likelihood ratio of each against none
        matches = (rows.flatten(0, 1) @ operators.atoms.T).square().reshape(n, rows.shape[1], -1)
        at_once, denoised, shown = matches[:, 0], matches[:, 1], matches[:, 2:]
        weights = torch.stack([reduced.trust * reduced.energy, reduced.trust], dim=1)
        in_window, subspace = (weights @ shown).unbind(1)
        ratio = ((denoised - denoised.amax(dim=1, keepdim=True)) / 20).clamp_min(-2.0)
        maps = [
            m.reshape(n, N_SCALES, n_sources)
            for m in (ratio, torch.log1p(at_once) / 3, torch.log1p(denoised) / 3, torch.log1p(in_window) / 3, subspace)
        ]
        regularised = (reduced.clean @ operators.regularised.T).square()
        maps.append((torch.log1p(regularised) / 3).reshape(n, len(REGULARISED), n_sources))
        for seen, atoms in zip(reduced.single, operators.single, strict=True):
            if seen is None or atoms is None:
                maps.append(ratio.new_zeros(n, 1, n_sources))
            else:
                maps.append((torch.log1p((seen @ atoms.T).square()) / 3)[:, None])
        return torch.cat(maps, dim=1).transpose(1, 2)

    def estimate(self, sample: Tensor, prior: Prior, prepared: PreparedFusion) -> SourceMap:
        """Maximum a posteriori estimate of samples under their priors, (n, n_sources) moments, times one factor.

        The factor (`restored`) is learned so that the amount found around a patch is, at the median, the true one.

        A prior of one window serves all samples, (n, n_channels): linear in them, one small solve for all.
        """
        both, mesh = prepared.both, prepared.mesh
        now = torch.exp(self.restored) * self._blended(sample, prior, prepared)
        likely = both.atoms[prior.atoms]  # (n, m, k)
        factor = torch.linalg.cholesky(_data_cov(prior, prepared.ground, likely))
        if len(likely) == 1:
            dual = torch.cholesky_solve(now.T[None], factor)[0].T
            match = dual @ likely[0].T
        else:
            dual = torch.cholesky_solve(now[:, :, None], factor)[:, :, 0]
            match = (likely @ dual[:, :, None])[:, :, 0]
        n_sources = mesh.n_sources
        moments = (prior.ground / n_sources)[:, None] * (dual @ both.atoms[:n_sources].T) / prepared.norms[:n_sources]
        weight = prior.power * match / prepared.norms[prior.atoms]
        return SourceMap(mesh.scatter_patches(moments, prior.atoms.expand(len(now), -1), weight))

    @torch.no_grad()
    def factors(self, prior: Prior, prepared: PreparedFusion) -> tuple[Tensor, Tensor]:
        """The estimate under the prior of one window as two matrices: ``sample @ first @ second`` are the moments.

        Returns
        -------
        (n_channels, k), (k, n_sources)
        """
        both, mesh = prepared.both, prepared.mesh
        likely = both.atoms[prior.atoms]
        dual = torch.cholesky_inverse(torch.linalg.cholesky(_data_cov(prior, prepared.ground, likely))[0])
        # covariance of sources and data under the prior: the ground, and the patches
        weights = likely[0] * (prior.power / prepared.norms[prior.atoms]).T  # (m, k)
        cross = prepared.points * (prior.ground / mesh.n_sources) + mesh.spread(prior.atoms[0]) @ weights
        # not to be left to the samples: they would lose digits, since what enters the product nearly cancels
        kernel = cross @ (dual * torch.exp(self.restored))
        return _blend(both.basis, prior), kernel.T

    @torch.no_grad()
    def deviation(self, prior: Prior, prepared: PreparedFusion) -> Tensor:
        """Standard deviation of each source under each prior, (n, n_sources), nA m; no data enter.

        The posterior one knows nothing of what the learned prior and the leadfield are wrong by. So a share of the largest
        prior deviation within 9 mm is added (as variances), learned so that 95 % of the errors of sources that are active,
        or said to be, lie within two standard deviations (quantile regression: Koenker and Bassett 1978).
        """
        deviations = []
        for i in range(len(prior.atoms)):
            posterior, local = self._variances(prior.of(i), prepared)
            deviations.append(torch.sqrt(posterior + (torch.exp(self.mistrust) * local).square()))
        return torch.stack(deviations)

    @torch.no_grad()
    def _variances(self, prior: Prior, prepared: PreparedFusion) -> tuple[Tensor, Tensor]:
        """Posterior variance under one prior, and the largest prior deviation around each source, (n_sources,) both."""
        both, mesh = prepared.both, prepared.mesh
        n_sources, atoms, power = mesh.n_sources, prior.atoms[0], prior.power[0]
        likely = both.atoms[atoms]
        factor = torch.linalg.cholesky(_data_cov(prior, prepared.ground, likely[None]))[0]
        # (m, n_sources): what one standard deviation of each patch is on the cortex
        each = (power.sqrt() / prepared.norms[atoms])[:, None]
        patches = mesh.scatter_patches(each.new_zeros(len(atoms), n_sources), atoms[:, None], each)
        ground = prior.ground / n_sources
        # covariance between sources and data
        cross = ground * both.atoms[:n_sources] / prepared.norms[:n_sources, None]
        cross = cross + patches.T @ (likely * power.sqrt()[:, None])
        explained = torch.linalg.solve_triangular(factor, cross.T, upper=False).square().sum(dim=0)
        before = ground / prepared.norms[:n_sources].square() + patches.square().sum(dim=0)
        return (before - explained).clamp_min(0), mesh.largest_within(before.sqrt()[None], 1)[0]

    def _blended(self, sample: Tensor, prior: Prior, prepared: PreparedFusion) -> Tensor:
        return _blend(sample @ prepared.both.basis, prior)

    def forward(self, sample: Tensor, window: Tensor | None, prepared: PreparedFusion) -> SourceMap:
        """Image samples; see `SourceNetwork.forward`."""
        return self.estimate(sample, self.prior(sample, window, prepared), prepared)

    def loss(self, batch: Batch, prepared: PreparedFusion) -> Tensor:
        """Direction, extent, place and amount of the estimate, and the place of the prior."""
        truth = batch.dense(prepared.mesh.n_sources)
        first, second = self._priors(batch.sample, batch.window, prepared)
        estimate = self.estimate(batch.sample, second, prepared).moments
        loss = fusion_loss(estimate, truth, (first.logits, second.logits), batch, prepared.mesh)
        return loss + self._deviation_loss(estimate[0].detach(), truth[0], second.of(0), prepared)

    def _deviation_loss(self, estimate: Tensor, truth: Tensor, prior: Prior, prepared: PreparedFusion) -> Tensor:
        """Of one case, since it is costly: the 95th percentile of the errors is to be two deviations; teaches `mistrust`."""
        posterior, local = self._variances(prior, prepared)
        bound = 2 * torch.sqrt(posterior + (torch.exp(self.mistrust) * local).square() + 1e-12)
        active = (truth.abs() > 0.25 * truth.abs().max()) | (estimate.abs() > 0.25 * estimate.abs().max())
        # on the logarithm, so that deep sources count like others
        beyond = torch.log((estimate - truth).abs() + 1e-6) - torch.log(bound)
        return (torch.maximum(0.95 * beyond, -0.05 * beyond) * active).sum() / active.sum().clamp_min(1)


def fusion_loss(estimate: Tensor, truth: Tensor, logits: tuple[Tensor, ...], batch: Batch, mesh: Mesh) -> Tensor:
    """See `FusionNetwork.loss`."""
    total = truth.abs().sum(dim=1)
    cosine = F.cosine_similarity(estimate, truth, dim=1)
    fine = (estimate - truth).abs().sum(dim=1) / total
    pooled = mesh.pool_sum(estimate - truth).abs().sum(dim=1) / total
    there = batch.centres >= 0
    centres = torch.where(there[:, :, None], batch.centres_mm, 1e4)
    distance = torch.cdist(mesh.positions_mm.expand(len(estimate), -1, -1), centres)  # (n, n_sources, n_patches)
    nearest = distance.amin(dim=2).clamp_max(60)
    sharp = estimate.square()
    sharp = (sharp / sharp.amax(dim=1, keepdim=True).clamp_min(1e-20)) ** 2
    place = (sharp * nearest).sum(dim=1) / sharp.sum(dim=1).clamp_min(1e-20) / 20
    near = (distance < 20).to(estimate.dtype)
    # each patch is to be found, with its sign and amount
    found = torch.einsum("nv,nvp->np", estimate, near)
    wanted = torch.einsum("nv,nvp->np", truth, near)
    ratio = found / torch.where(wanted.abs() > 1e-6, wanted, 1e-6)
    amount = torch.log(ratio.clamp(0.05, 20)).abs()  # half of it is as far off as twice of it, so that the median is right
    amount = (amount * there).sum(dim=1) / there.sum(dim=1)
    spread = torch.zeros_like(place)
    for own in logits:
        share = torch.softmax(own, dim=1).reshape(len(estimate), -1, estimate.shape[1]).sum(dim=1)
        spread = spread + (share * nearest).sum(dim=1) / 20
    rank = _rank_loss(estimate, truth, batch)
    area = (torch.log(_area(estimate)) - torch.log(_area(truth))).abs()
    return ((1 - cosine) + 0.2 * (fine + pooled) + place + 0.3 * (amount + spread) + 0.5 * rank + 0.2 * area).mean()


def _area(moments: Tensor) -> Tensor:
    """(n,) smooth count of the sources above half of the maximum."""
    strength = moments.abs()
    share = strength / strength.amax(dim=1, keepdim=True).clamp_min(1e-20)
    return torch.sigmoid((share - 0.5) / 0.05).sum(dim=1)


def _rank_loss(estimate: Tensor, truth: Tensor, batch: Batch) -> Tensor:
    """(n,) smooth form of 1 - AUC: active sources against every 40th source, on the logarithm of the moment."""
    strength = truth.abs()
    bar = 0.25 * strength.amax(dim=1, keepdim=True)
    level = torch.log(estimate.abs() + 1e-4 * estimate.abs().amax(dim=1, keepdim=True) + 1e-20)
    shift = int(batch.vertices.sum()) % 40
    others = torch.arange(shift, estimate.shape[1], 40, device=estimate.device)
    idle = (strength[:, others] <= bar).to(level.dtype)
    active = (strength.gather(1, batch.vertices) > bar).to(level.dtype) * (batch.moments != 0)
    pairs = torch.sigmoid((level[:, others][:, None] - level.gather(1, batch.vertices)[:, :, None]) / 0.5)
    missed = torch.einsum("nvo,nv,no->n", pairs, active, idle)
    return missed / (active.sum(dim=1) * idle.sum(dim=1)).clamp_min(1)


def _projection(fields: Tensor, k: int) -> Projection:
    """The `k` strongest directions of (n_atoms, n_channels) fields, fewer where there are fewer."""
    power, basis = torch.linalg.eigh((fields.T @ fields).double())
    k = min(k, int((power > 1e-6 * power[-1]).sum()))
    basis = basis[:, -k:].flip(1).to(fields.dtype)
    atoms = fields @ basis
    return Projection(basis, atoms / atoms.norm(dim=1, keepdim=True).clamp_min(1e-12))


def by_cholesky(matrices: Tensor) -> Tensor:
    """Inverse of symmetric positive definite matrices (n, k, k) by their Cholesky factors.

    On a GPU it is not looked at whether there are such: that would wait for the GPU, which no captured graph may.
    """
    factor, _ = torch.linalg.cholesky_ex(matrices, check_errors=matrices.device.type == "cpu")
    return torch.cholesky_inverse(factor)


def _blend(now: Tensor, prior: Prior) -> Tensor:
    """What of samples (n, k) is imaged."""
    blend = prior.blend[:, None]
    return blend * now + (1 - blend) * _denoised(now, prior.components, prior.trust)


def _data_cov(prior: Prior, ground: Tensor, likely: Tensor) -> Tensor:
    """(n, k, k) under each prior, `likely` (n, m, k) being its atoms."""
    identity = torch.eye(likely.shape[2], device=likely.device)
    peaks = (likely * prior.power[:, :, None]).transpose(1, 2) @ likely
    return prior.ground[:, None, None] * ground + peaks + prior.noise[:, None, None] * identity


def _temporal_components(now: Tensor, window: Tensor | None, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Strongest components of a window (n, k, r), the share of each that is signal (n, r), and their energy (n, r).

    Subspace iteration from the sample and some columns: cheaper than a decomposition, and no operator that a GPU or an
    exported graph lacks.
    """
    k = now.shape[1]
    if window is None or window.shape[2] < 2 * N_COMPONENTS:
        length = now.norm(dim=1, keepdim=True).clamp_min(1e-12)
        trust = (1 - k / length.square()).clamp(0.05, 1)
        return (now / length)[:, :, None], trust, length.square()
    data = torch.einsum("nct,ck->nkt", window, basis)
    n_times = data.shape[2]
    picks = torch.linspace(0, n_times - 1, 2 * N_COMPONENTS - 1, device=now.device).round().long()
    start = torch.cat([now[:, :, None], data[:, :, picks]], dim=2)
    for _ in range(3):
        start, _ = torch.linalg.qr(data @ (data.transpose(1, 2) @ start))
    # within the subspace: exact, and small
    inside = start.transpose(1, 2) @ data
    values, vectors = torch.linalg.eigh(inside @ inside.transpose(1, 2) / n_times)
    values, vectors = values.flip(1)[:, :N_COMPONENTS], vectors.flip(2)[:, :, :N_COMPONENTS]
    components = start @ vectors
    # the largest eigenvalue of white noise of variance 1 (Marchenko and Pastur 1967)
    edge = (1 + (k / n_times) ** 0.5) ** 2
    trust = torch.sigmoid(4 * (values / edge - 1))
    return components, trust, values


def _denoised(now: Tensor, components: Tensor, trust: Tensor) -> Tensor:
    if len(components) == 1:  # one window for all of them: two products
        return ((now @ components[0]) * trust) @ components[0].T
    inside = torch.einsum("nk,nkr->nr", now, components)
    return torch.einsum("nr,nkr->nk", inside * trust, components)
