"""Labelled samples made on the fly, on the device that trains: patches of cortex through a head, in its noise.

Needs torch and numpy alone: scenes travel to a bare machine as arrays. Batches depend on seed and number of the step, so
a run that is taken up again sees the very batches it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from rt_mmdf.networks.interface import EEG, Batch, ForwardArrays

CANDIDATES = 24  # places that are tried for a patch that must keep its distance from the others


@dataclass(frozen=True, eq=False)
class Scene:
    """One head under one noise, seen by a system that knows the head only nominally. Arrays alone.

    arrays : what the system knows: the nominal head, whitened
    gain : (n_channels, n_truth) float32
        Whitened field of 1 nA m at each vertex of the true cortex, through the true head.
    nearest : (n_truth,) int64, the source of `arrays` nearest to each true vertex
    truth_mm : (n_truth, 3) float32, true vertices, in the frame of ``arrays.positions_mm``
    colour : (n_channels, n_noise) float32
        ``colour @ standard normal`` is whitened noise; the last `n_brain` columns are brain noise, 1/f in time.
    neighbours : (n_truth, n_near) int64, vertices by rising geodesic distance, the first is the vertex itself
    distance_mm : (n_truth, n_near) float32, infinite where there is none
    """

    name: str
    arrays: ForwardArrays
    gain: NDArray[np.float32]
    nearest: NDArray[np.int64]
    truth_mm: NDArray[np.float32]
    colour: NDArray[np.float32]
    n_brain: int
    neighbours: NDArray[np.int64]
    distance_mm: NDArray[np.float32]


@dataclass(frozen=True)
class BatchSettings:
    """What the samples hold. Ranges are uniform, both ends included.

    radii_mm : geodesic radii of patches, one is drawn for each patch; 0 is one dipole
    n_sources : least and most patches that are active at the instant
    least_ratio : moment of the weakest patch over that of the strongest
    smooth_share : share of patches with the profile of a raised cosine; the others are flat
    separation_mm : least distance between two centres
    n_times, sfreq : of the window; 1 for single samples; of several lengths each batch takes one
    band_hz, band_order : of the live chain's Butterworth band-pass, which shapes the noise of windows; None: no filter
    instant : where in the window the instant may lie, as a share of its length
    silent_share : share of windows with one more patch that is active before or after the instant but not at it
    channel_dropout : up to this share of channels is set to zero, drawn for each sample
    modality_dropout : share of samples that lose all EEG or all MEG
    """

    size: int = 256
    radii_mm: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0)
    n_sources: tuple[int, int] = (1, 3)
    snr_db: tuple[float, float] = (-5.0, 20.0)
    least_ratio: float = 0.5
    smooth_share: float = 0.5
    separation_mm: float = 30.0
    n_times: int | tuple[int, ...] = 1
    sfreq: float = 100.0
    band_hz: tuple[float, float] | None = (1.0, 40.0)
    band_order: int = 4
    instant: tuple[float, float] = (0.5, 1.0)
    silent_share: float = 0.0
    channel_dropout: float = 0.0
    modality_dropout: float = 0.0

    def __post_init__(self) -> None:
        def expect(there: bool, name: str, expected: str) -> None:
            if not there:
                raise ValueError(f"{name} = {getattr(self, name)}: {expected} expected")

        def rising(pair: tuple[float, float], low: float, high: float = math.inf) -> bool:
            return all(map(math.isfinite, pair)) and low <= pair[0] <= pair[1] <= high

        expect(self.size >= 1, "size", "at least 1 is")
        expect(bool(self.lengths) and min(self.lengths, default=0) >= 1, "n_times", "one length or several, from 1, are")
        radii_fit = bool(self.radii_mm) and all(math.isfinite(radius) and radius >= 0 for radius in self.radii_mm)
        expect(radii_fit, "radii_mm", "at least one radius, none below 0 mm, is")
        expect(rising(self.n_sources, 1), "n_sources", "two rising numbers from 1 are")
        expect(rising(self.snr_db, -math.inf), "snr_db", "two rising numbers are")
        expect(rising(self.instant, 0, 1), "instant", "two rising shares from 0 to 1 are")
        for name in ("least_ratio", "smooth_share", "silent_share", "channel_dropout", "modality_dropout"):
            expect(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1 is")
        expect(0 <= self.separation_mm < math.inf, "separation_mm", "0 mm or more is")
        expect(0 < self.sfreq < math.inf, "sfreq", "a rate above 0 Hz is")
        band = self.band_hz
        expect(band is None or (rising(band, 0) and 0 < band[0] < band[1]), "band_hz", "two rising edges above 0 Hz are")
        expect(self.band_order >= 1, "band_order", "at least 1 is")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of windows, samples."""
        return (self.n_times,) if isinstance(self.n_times, int) else tuple(self.n_times)


class BatchGenerator:
    """Makes batches; the same `seed` and `step` give the same batch on the same kind of device.

    Parameters
    ----------
    scenes : each batch comes from one of them
    seed : batches of different seeds are independent; ranks of a distributed run take seeds of their own
    """

    def __init__(
        self, scenes: Sequence[Scene], settings: BatchSettings, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        if not scenes:
            raise ValueError("batches need at least one scene")
        for scene in scenes:
            reach = scene.distance_mm[np.isfinite(scene.distance_mm)].max(initial=0.0)
            # the farthest neighbour lies a little within the reach for which they were looked up
            if max(settings.radii_mm) > 0 and reach < 0.95 * max(settings.radii_mm):
                raise ValueError(
                    f"scene {scene.name!r}: neighbours reach {reach:.0f} mm; radii_mm goes up to "
                    f"{max(settings.radii_mm):g} mm, at most that reach is expected"
                )
        self.settings = settings
        self.seed = seed
        self.device = torch.device(device)
        self._shared: dict[int, Tensor] = {}
        self.scenes = [_SceneTensors(scene, self) for scene in scenes]

    def tensor(self, array: NDArray[np.generic]) -> Tensor:
        """An array on the device; one that several scenes share goes there once."""
        key = id(array)
        if key not in self._shared:
            self._shared[key] = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        return self._shared[key]

    def batch(self, step: int, scene: int | None = None) -> tuple[Batch, int]:
        """Batch number `step`, and the index of the scene that it comes from (drawn, unless it is given)."""
        host = np.random.default_rng((self.seed, step))
        drawn = int(host.integers(len(self.scenes)))
        index = drawn if scene is None else scene
        generator = torch.Generator(self.device)
        generator.manual_seed(int(host.integers(2**62)))
        n_times = int(host.choice(self.settings.lengths))
        return _Draw(self.scenes[index], self.settings, n_times, generator).batch(), index


class _SceneTensors:
    def __init__(self, scene: Scene, owner: BatchGenerator) -> None:
        self.rank = scene.arrays.rank
        # one row per vertex: what a patch gathers lies together in memory
        self.fields = torch.from_numpy(np.ascontiguousarray(scene.gain.T)).to(owner.device)
        colour = torch.from_numpy(scene.colour).to(owner.device)
        n_fast = colour.shape[1] - scene.n_brain
        self.fast, self.slow = colour[:, :n_fast].contiguous(), colour[:, n_fast:].contiguous()
        # windows need their noise course by course, single samples do not
        single = 1 in owner.settings.lengths
        self.now = torch.from_numpy(_root_of_covariance(scene.colour)).to(owner.device) if single else colour
        self.nearest, self.truth_mm = owner.tensor(scene.nearest), owner.tensor(scene.truth_mm)
        self.neighbours, self.distance_mm = owner.tensor(scene.neighbours), owner.tensor(scene.distance_mm)
        self.is_eeg = owner.tensor(scene.arrays.kinds) == EEG


class _Draw:
    """One batch in the making."""

    def __init__(self, scene: _SceneTensors, settings: BatchSettings, n_times: int, generator: torch.Generator) -> None:
        self.scene, self.settings, self.n_times, self.generator = scene, settings, n_times, generator
        self.device = scene.fields.device
        self.n = settings.size

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def integers(self, n: int, *shape: int) -> Tensor:
        return torch.randint(n, shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def batch(self) -> Batch:
        s, scene = self.settings, self.scene
        least, most = s.n_sources
        windowed = self.n_times > 1
        n_silent = 1 if windowed and s.silent_share > 0 else 0
        n_patches = most + n_silent
        count = self.integers(most - least + 1, self.n) + least
        active = torch.arange(most, device=self.device) < count[:, None]
        silent = self.uniform(0, 1, self.n, n_silent) < s.silent_share
        centres = self._centres(n_patches)
        vertices, shares = self._patches(centres)
        size = self.uniform(s.least_ratio, 1, self.n, n_patches)
        size[:, 0] = 1
        size = size * (2 * self.integers(2, self.n, n_patches) - 1)
        moment = size[:, :most] * active  # of each patch, before the scaling to the wanted SNR
        fields = self._fields(vertices, shares)
        field = torch.einsum("np,npc->nc", moment, fields[:, :most])
        snr_db = self.uniform(*s.snr_db, self.n)
        power = field.square().sum(dim=1) / scene.rank
        scale = torch.sqrt(10 ** (snr_db / 10) / power.clamp_min(1e-30))
        moment, field = moment * scale[:, None], field * scale[:, None]
        if windowed:
            instant = self._instants()
            courses = self._courses(instant, n_patches, most)
            there = torch.cat([moment, size[:, most:] * scale[:, None] * silent], dim=1)
            window = torch.baddbmm(self._noise_window(), fields.transpose(1, 2), there[:, :, None] * courses)
            sample = window.gather(2, instant[:, None, None].expand(-1, window.shape[1], 1))[:, :, 0]
        else:
            window = None
            sample = torch.addmm(field, self.normal(self.n, scene.now.shape[1]), scene.now.T)
        if s.channel_dropout > 0 or s.modality_dropout > 0:
            kept = self._kept(sample.shape[1])
            sample = sample * kept
            window = None if window is None else window * kept[:, :, None]
        moments = (moment[:, :, None] * shares[:, :most]).reshape(self.n, -1)
        placed = scene.nearest[vertices[:, :most]].reshape(self.n, -1)
        on = active[:, :, None]
        return Batch(
            sample=sample,
            window=window,
            vertices=torch.where(moments != 0, placed, 0),
            moments=moments,
            centres=torch.where(active, scene.nearest[centres[:, :most]], -1),
            centres_mm=torch.where(on, scene.truth_mm[centres[:, :most]], torch.nan),
            snr_db=snr_db,
        )

    def _centres(self, n_patches: int) -> Tensor:
        """(n, n_patches): drawn one after the other, the first of some candidates that keeps its distance."""
        scene = self.scene
        n_truth = len(scene.truth_mm)
        chosen = self.integers(n_truth, self.n, 1)
        for _ in range(1, n_patches):
            candidates = self.integers(n_truth, self.n, CANDIDATES)
            gaps = torch.cdist(scene.truth_mm[candidates], scene.truth_mm[chosen]).amin(dim=2)
            far = gaps >= self.settings.separation_mm
            pick = torch.where(far.any(dim=1), far.to(torch.uint8).argmax(dim=1), gaps.argmax(dim=1))
            chosen = torch.cat([chosen, candidates.gather(1, pick[:, None])], dim=1)
        return chosen

    def _patches(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Vertices and shares, (n, n_patches, n_near); the shares of a patch sum to one."""
        s, scene = self.settings, self.scene
        radii = torch.tensor(s.radii_mm, device=self.device)
        radius = radii[self.integers(len(radii), *centres.shape)][:, :, None]
        smooth = self.uniform(0, 1, *centres.shape)[:, :, None] < s.smooth_share
        distance = scene.distance_mm[centres]
        inside = distance <= radius
        widest = int(inside.sum(dim=2).max())  # neighbours come by rising distance: the rest is empty for all
        distance, inside = distance[:, :, :widest], inside[:, :, :widest]
        cosine = 1 + torch.cos(torch.pi * distance.clamp_max(100) / (radius * 1.05).clamp_min(1e-3))
        share = torch.where(smooth & (radius > 0), cosine, 1.0) * inside
        return scene.neighbours[:, :widest][centres], share / share.sum(dim=2, keepdim=True)

    def _fields(self, vertices: Tensor, shares: Tensor) -> Tensor:
        """(n, n_patches, n_channels), of patches of 1 nA m: a sparse product, only what a patch holds is gathered."""
        n, n_patches, _ = vertices.shape
        held = shares.reshape(n * n_patches, -1) > 0
        counts = held.sum(dim=1)
        offsets = torch.cumsum(counts, 0) - counts
        fields = embedding_bag(
            vertices.reshape(n * n_patches, -1)[held],
            self.scene.fields,
            offsets,
            mode="sum",
            per_sample_weights=shares.reshape(n * n_patches, -1)[held],
        )
        return fields.reshape(n, n_patches, -1)

    def _instants(self) -> Tensor:
        low, high = (min(int(share * self.n_times), self.n_times - 1) for share in self.settings.instant)
        return self.integers(high - low + 1, self.n) + low

    def _courses(self, instant: Tensor, n_patches: int, most: int) -> Tensor:
        """(n, n_patches, n_times): swells of 0 to 20 Hz on a 1/f ground, one at the instant; a silent one is zero there."""
        s = self.settings
        times = (torch.arange(self.n_times, device=self.device)[None] - instant[:, None])[:, None] / s.sfreq
        width = torch.exp(self.uniform(math.log(0.03), math.log(0.3), self.n, n_patches, 1))
        offset = width * self.uniform(-0.5, 0.5, self.n, n_patches, 1)
        frequency = self.uniform(0, 20, self.n, n_patches, 1) * (self.uniform(0, 1, self.n, n_patches, 1) < 0.7)
        phase = self.uniform(-torch.pi / 4, torch.pi / 4, self.n, n_patches, 1)
        envelope = torch.exp(-0.5 * ((times - offset) / width) ** 2)
        swell = envelope * torch.cos(2 * torch.pi * frequency * times + phase)
        pink = _one_over_f(self.n_times, self.device)
        ground = 0.2 * _shaped(self.normal(self.n, n_patches, self.n_times), pink)
        course = swell + ground
        at = instant[:, None, None].expand(-1, n_patches, 1)
        now = course.gather(2, at)
        # close to zero by chance: the ground is taken out
        course = torch.where(now.abs() < 0.3, swell, course)
        now = course.gather(2, at)
        course = course / now
        if n_patches > most:
            apart = torch.sign(self.uniform(-1, 1, self.n, 1)) * self.uniform(2.5, 5, self.n, 1) * width[:, most]
            late = torch.exp(-0.5 * ((times[:, 0] - apart) / width[:, most]) ** 2)
            course = torch.cat([course[:, :most], (late - late.gather(1, instant[:, None]))[:, None]], dim=1)
        return course

    def _noise_window(self) -> Tensor:
        """(n, n_channels, n_times): sensors white and brain 1/f, both within the band of the live filters."""
        scene, gain = self.scene, self.band_gain()
        noise = torch.matmul(scene.fast, _shaped(self.normal(self.n, scene.fast.shape[1], self.n_times), gain))
        if scene.slow.shape[1] == 0:
            return noise
        brain = _shaped(
            self.normal(self.n, scene.slow.shape[1], self.n_times), gain * _one_over_f(self.n_times, self.device)
        )
        return torch.baddbmm(noise, scene.slow.expand(self.n, -1, -1), brain)

    def band_gain(self) -> Tensor:
        """(n_times // 2 + 1,): gain of the band-pass at the frequencies of a window; at zero that of the lowest one."""
        s = self.settings
        order = torch.arange(self.n_times // 2 + 1, device=self.device).clamp_min(1)
        gain = band_pass_gain(order.cpu().numpy() * (s.sfreq / self.n_times), s.band_hz, s.band_order)
        return torch.from_numpy(gain).to(self.device, torch.float32)

    def _kept(self, n_channels: int) -> Tensor:
        """(n, n_channels): 1 where a channel is there."""
        s = self.settings
        share = self.uniform(0, s.channel_dropout, self.n, 1)
        kept = self.uniform(0, 1, self.n, n_channels) >= share
        lost = self.uniform(0, 1, self.n, 1) < s.modality_dropout
        lose_eeg = self.uniform(0, 1, self.n, 1) < 0.5
        gone = torch.where(lose_eeg, self.scene.is_eeg[None], ~self.scene.is_eeg[None])
        # a head of one modality keeps it
        gone = gone & ~gone.all(dim=1, keepdim=True)
        return (kept & ~(lost & gone)).to(torch.float32)


def _root_of_covariance(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n_channels, n_channels): gives the same noise as the colour does, from fewer random numbers, at one instant."""
    whole = colour.astype(np.float64)
    covariance = whole @ whole.T
    # Cholesky's root is unique: rounding, so the number of threads, hardly changes it
    root = np.linalg.cholesky(covariance + 1e-10 * np.eye(len(covariance)))
    return np.asarray(root * np.any(whole, axis=1)[:, None], dtype=np.float32)


def band_pass_gain(freqs_hz: NDArray[np.floating], band_hz: tuple[float, float] | None, order: int) -> NDArray[np.float64]:
    """Gain of the live chain's Butterworth band-pass: equal to that of its sections, tests/simulation/test_batches.py."""
    freqs = np.asarray(freqs_hz, dtype=np.float64)
    if band_hz is None:
        return np.ones_like(freqs)
    low, high = band_hz
    detuning = (freqs**2 - low * high) / (freqs * (high - low))
    return np.asarray(1 / np.sqrt(1 + detuning ** (2 * order)))


def _one_over_f(n_times: int, device: torch.device) -> Tensor:
    return torch.arange(n_times // 2 + 1, device=device).clamp_min(1) ** -0.5


def _shaped(white: Tensor, gain: Tensor) -> Tensor:
    """White noise along the last axis with another spectrum and the same variance."""
    n_times = white.shape[-1]
    share = torch.full_like(gain, 2.0)
    share[0] = 1.0
    if n_times % 2 == 0:
        share[-1] = 1.0
    weight = gain * torch.sqrt(n_times / (share * gain.square()).sum())
    shaped: Tensor = torch.fft.irfft(torch.fft.rfft(white, dim=-1) * weight, n=n_times, dim=-1)
    return shaped
