"""Scenes to train and validate on: a true head, its noise, and the nominal head that the system believes in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mne
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from rt_mmdf.core.channels import ChannelType, Modality
from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import RegularisationSettings, regularised
from rt_mmdf.headmodel.template import Spacing
from rt_mmdf.headmodel.whitener import Whitener, imaging_info, whitener_and_colorer
from rt_mmdf.simulation.batches import Scene
from rt_mmdf.simulation.heads import HeadVariation, random_variation, varied_template
from rt_mmdf.simulation.noise import brain_moment, sensor_colour, share_in_band
from rt_mmdf.simulation.sources import Cortex
from rt_mmdf.solvers.forward_arrays import forward_arrays, whitened_field

Float64 = NDArray[np.float64]

REACH_MM = 32.0  # of the table of neighbours: a little over the largest patch of the suite
BROADBAND_HZ = np.arange(0.5, 500.5, 0.5)  # what the level of brain noise "before any filter" refers to, as in recordings
LEVELS = (0.5, 2.0)  # factors on each level of noise, log-uniform
CTF_COIL, CTF_BASELINE_M = 5001, 0.05
N_BRAIN_COLUMNS = 60  # directions of brain noise that keep their 1/f course; 85 to 95 % of its power
N_CALIBRATION_SAMPLES = 4000  # of a covariance that is measured at rest
CALIBRATION_ERROR = 0.02
RECIPE_VERSION = 1  # of `training_scenes`: raised whenever the same seed gives other scenes than before
DRAWS = 5  # of a head, before one whose sensors are inside the scalp is given up

Progress = Callable[[str, float], None]
MakeHead = Callable[[HeadVariation, int], HeadModel]


@dataclass(frozen=True, eq=False)
class SceneNoise:
    """Noise of one scene, within a band.

    eeg_nv, mag_ft, grad_ft_cm : density of the sensors' own noise, per square root of Hz
    noise_cov : mne.Covariance | None
        Colour of the sensors' noise in place of those densities (per sample, SI units squared); channels that it lacks
        keep them.
    factors : on the standard deviation of the sensors' noise, EEG, magnetometers, gradiometers
    eeg_brain_uv : standard deviation that brain noise gives the median electrode, before any filter
    n_brain_sources : of equal moment at random places of the true cortex
    interference_ft : standard deviation that distant sources give the median magnetometer, besides
    n_cov_samples : samples from which the system has measured the covariance; None: it knows it exactly
    regularisation : of the measured covariance, as in the live chain
    """

    eeg_nv: float = 50.0
    mag_ft: float = 3.0
    grad_ft_cm: float = 3.0
    noise_cov: mne.Covariance | None = None
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    eeg_brain_uv: float = 2.0
    n_brain_sources: int = 400
    interference_ft: float = 0.0
    band_hz: tuple[float, float] = (1.0, 40.0)
    n_cov_samples: int | None = None
    regularisation: RegularisationSettings = field(default_factory=RegularisationSettings)


@dataclass(frozen=True, eq=False)
class TrueCortex:
    """What scenes on the same true mesh share; the fields of the same names in `Scene`."""

    truth_mm: NDArray[np.float32]
    nearest: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    distance_mm: NDArray[np.float32]


def true_cortex(nominal: HeadModel, truth: HeadModel, reach_mm: float = REACH_MM) -> TrueCortex:
    """Neighbours on the mesh of the true head, by geodesic distance along its edges, and the nominal sources nearest to it.

    Raises
    ------
    HeadModelError
        The true head has no mesh between its sources.
    """
    left, right = truth.source_triangles
    n_left = len(truth.hemispheres[0].source_vertices)
    if not len(left) or not len(right):
        raise HeadModelError(
            f"head model {truth.name!r}: no triangles between its {truth.n_sources} sources, so patches cannot grow on it. "
            "Use a source space with triangles (spacing ico or oct, or all vertices)."
        )
    positions = truth.source_positions_mm
    edges = Cortex(positions, np.vstack([left, right + n_left]), n_left).edges_mm
    rows = []
    for part in np.array_split(np.arange(len(positions)), max(1, len(positions) // 512)):  # at once: gigabytes at ico-5
        for vertex, distances in zip(part, dijkstra(edges, indices=part, limit=reach_mm), strict=True):
            near = np.flatnonzero(distances <= reach_mm)
            order = np.argsort(distances[near], kind="stable")
            rows.append((near[order], distances[near][order], vertex))
    widest = max(len(near) for near, _, _ in rows)
    neighbours = np.zeros((len(rows), widest), dtype=np.int64)
    distance = np.full((len(rows), widest), np.inf, dtype=np.float32)
    for near, far, vertex in rows:
        neighbours[vertex, : len(near)] = near
        distance[vertex, : len(near)] = far
    nearest = cKDTree(nominal.source_positions_mm).query(positions)[1].astype(np.int64)
    return TrueCortex(positions.astype(np.float32), nearest, neighbours, distance)


def make_scene(
    nominal: HeadModel,
    truth: HeadModel,
    noise: SceneNoise,
    *,
    seed: int | Sequence[int],
    used: Collection[str] | None = None,
    projs: Sequence[mne.Projection] = (),
    leadfield_noise: float = 0.0,
    cortex: TrueCortex | None = None,
    name: str = "scene",
) -> Scene:
    """One scene: sources act through `truth`, the system knows `nominal` and the noise that it has measured at rest.

    Parameters
    ----------
    nominal, truth : heads of the same channels in any order; the true one may have another mesh
    seed : of brain sources, interference and the measurement of the covariance
    used : names of channels that enter; None for all
    projs : SSP projectors of the system
    leadfield_noise : standard deviation of an error of each gain, relative to the RMS of its channel
    cortex : of `true_cortex`, where scenes share it
    name : for messages and reports

    Raises
    ------
    HeadModelError
        The heads differ in their channels, or the true one has no mesh.
    NoiseCovarianceError
        The covariance does not fit the channels.
    """
    return scene_and_whitening(
        nominal,
        truth,
        noise,
        seed=seed,
        used=used,
        projs=projs,
        leadfield_noise=leadfield_noise,
        cortex=cortex,
        name=name,
    )[0]


def scene_and_whitening(
    nominal: HeadModel,
    truth: HeadModel,
    noise: SceneNoise,
    *,
    seed: int | Sequence[int],
    used: Collection[str] | None = None,
    projs: Sequence[mne.Projection] = (),
    leadfield_noise: float = 0.0,
    cortex: TrueCortex | None = None,
    name: str = "scene",
) -> tuple[Scene, Whitener, Float64]:
    """As `make_scene`, with the system's whitener and its symmetric pseudo-inverse, (n_channels, n_channels).

    Scenes of the same seed that differ in `used` alone hold the same noise, seen by systems with other channels.
    """
    names = nominal.ch_names
    own = cortex or true_cortex(nominal, truth)
    rng = np.random.default_rng(seed)
    channels = nominal.channels
    gain = truth.leadfield(names)
    if leadfield_noise:
        gain += leadfield_noise * np.sqrt(np.mean(gain**2, axis=1, keepdims=True)) * rng.standard_normal(gain.shape)

    colour, n_brain = _colour(nominal, gain, noise, rng)
    entering = [name for name in names if used is None or name in used]
    info = imaging_info(nominal.info, entering, projs)
    measured = mne.Covariance(
        _measured(colour, noise.n_cov_samples, rng), list(names), [], [], nfree=noise.n_cov_samples or 0, verbose="ERROR"
    )
    whitener, colorer = whitener_and_colorer(
        channels, entering, nominal.info, regularised(measured, info, noise.regularisation), info["projs"]
    )
    compact, n_brain = compact_colour(whitener.matrix @ colour, n_brain)
    scene = Scene(
        name=name,
        arrays=forward_arrays(nominal, whitener, entering),
        gain=whitened_field(whitener.matrix, gain),
        nearest=own.nearest,
        truth_mm=own.truth_mm,
        colour=compact,
        n_brain=n_brain,
        neighbours=own.neighbours,
        distance_mm=own.distance_mm,
    )
    return scene, whitener, colorer


def compact_colour(colour: Float64, n_brain: int, n_kept: int = N_BRAIN_COLUMNS) -> tuple[NDArray[np.float32], int]:
    """The same noise from fewer random numbers: the strongest directions of brain noise, all else in one square root.

    ``colour @ colour.T`` stays what it was; the weakest part of the brain's noise loses its 1/f course.

    Parameters
    ----------
    colour : (n_channels, n_noise), the last `n_brain` columns of which are brain noise

    Returns
    -------
    (n_channels, n_channels + n_kept) float32 at most, and how many of its last columns are brain noise
    """
    own, brain = colour[:, : colour.shape[1] - n_brain], colour[:, colour.shape[1] - n_brain :]
    directions, size, _ = np.linalg.svd(brain, full_matrices=False)
    scaled = directions * size
    rest = own @ own.T + scaled[:, n_kept:] @ scaled[:, n_kept:].T
    power, vectors = np.linalg.eigh(rest)
    there = power > 1e-10 * power.max(initial=0)
    root = vectors[:, there] * np.sqrt(power[there])
    root[~np.any(colour, axis=1)] = 0  # not even rounding in channels that are not used
    scaled[~np.any(colour, axis=1)] = 0
    return np.hstack([root, scaled[:, :n_kept]]).astype(np.float32), min(n_kept, scaled.shape[1])


def random_noise(
    rng: np.random.Generator,
    noise_cov: mne.Covariance | None = None,
    regularisation: RegularisationSettings | None = None,
) -> SceneNoise:
    """Noise of random levels: the defaults of `SceneNoise` times 0.5 to 2, measured from 4000 samples.

    A measured `noise_cov` holds the interference of its room already; without one, up to 30 fT of it are added. No random
    number depends on `regularisation`.
    """
    low, high = np.log(LEVELS)
    eeg, mag, grad, brain = (float(value) for value in np.exp(rng.uniform(low, high, 4)))
    interference = float(rng.uniform(0, 30)) if noise_cov is None else 0.0
    return SceneNoise(
        noise_cov=noise_cov,
        factors=(eeg, mag, grad),
        eeg_brain_uv=2.0 * brain,
        interference_ft=interference,
        n_cov_samples=N_CALIBRATION_SAMPLES,
        regularisation=regularisation or RegularisationSettings(),
    )


def random_used(nominal: HeadModel, rng: np.random.Generator) -> tuple[str, ...]:
    """Channels of a system with faults: 30 % of them lack up to a fifth of their channels, 10 % a whole modality."""
    names = np.array(nominal.ch_names)
    kept = np.ones(len(names), dtype=bool)
    if rng.random() < 0.3:
        kept &= rng.random(len(names)) >= rng.uniform(0, 0.2)
    modalities = nominal.channels.modalities
    if rng.random() < 0.1 and len(modalities) > 1:
        lost: Modality = modalities[int(rng.integers(len(modalities)))]
        kept[nominal.channels.of_modality(lost)] = False
    return tuple(names[kept].tolist())


def training_scenes(
    nominal: HeadModel,
    n_scenes: int,
    seed: int,
    *,
    noise_cov: mne.Covariance | None = None,
    regularisation: RegularisationSettings | None = None,
    projs: Sequence[mne.Projection] = (),
    dropout: bool = True,
    leadfield_noise: float = CALIBRATION_ERROR,
    spacings: Sequence[Spacing] = ("ico4",),
    make_head: MakeHead | None = None,
    progress: Progress | None = None,
) -> list[Scene]:
    """Scenes over randomised heads; the first has the nominal head itself and all channels.

    A scene depends on `seed` and its number, not on how many there are.

    Parameters
    ----------
    nominal : what the system believes in
    noise_cov : colour of the sensors' noise, see `SceneNoise`
    regularisation : of the covariance that each system has measured; None: the defaults
    dropout : whether some scenes lack channels or a modality
    spacings : meshes of the true template heads, in turn (a truth that lies on the nominal mesh alone is too easy)
    make_head : makes true heads that are not the template, from a variation and the number of the scene (`varied_subject`)
    progress : called with what is being done and the fraction that is done

    Raises
    ------
    HeadModelError, NoiseCovarianceError
        As `make_scene`.
    """

    def template_head(variation: HeadVariation, number: int) -> HeadModel:
        return varied_template(nominal, variation, spacing=spacings[number % len(spacings)])

    make = make_head or template_head
    report = progress or (lambda what, fraction: None)
    cortices: dict[bytes, TrueCortex] = {}
    scenes: list[Scene] = []
    for number in range(n_scenes):
        report(f"scene {number + 1} of {n_scenes}", number / n_scenes)
        rng = np.random.default_rng((seed, number))
        truth = nominal if number == 0 else _random_head(make, number, rng)
        noise = random_noise(rng, noise_cov, regularisation)
        used = random_used(nominal, rng) if dropout and number > 0 else None
        mesh = truth.source_positions_mm.tobytes()
        if mesh not in cortices:
            cortices[mesh] = true_cortex(nominal, truth)
        scene = make_scene(
            nominal,
            truth,
            noise,
            seed=(seed, number, 1),
            used=used,
            projs=projs,
            leadfield_noise=leadfield_noise if number > 0 else 0.0,
            cortex=cortices[mesh],
            name=f"seed {seed}, scene {number}",
        )
        scenes.append(_sharing(scene, scenes[0]) if scenes else scene)
    report("ready", 1.0)
    return scenes


def _random_head(make: MakeHead, number: int, rng: np.random.Generator) -> HeadModel:
    for _ in range(DRAWS - 1):
        try:
            return make(random_variation(rng), number)
        except HeadModelError:  # a helmet that sits close may end up inside the scalp
            continue
    return make(random_variation(rng), number)


def _sharing(scene: Scene, first: Scene) -> Scene:
    """The same scene; what it knows of the nominal head in the very arrays of the first one."""
    common: dict[str, Any] = {key: getattr(first.arrays, key) for key in ("kinds", "layout", "positions_mm", "triangles")}
    return replace(scene, arrays=replace(scene.arrays, **common))


def nominal_noise_cov(head: HeadModel, noise: SceneNoise, seed: int, projs: Sequence[mne.Projection] = ()) -> mne.Covariance:
    """What a system in this noise would measure at rest, exactly, ready to whiten with.

    Parameters
    ----------
    head : whose sensors and whose leadfield, for the brain noise; all of its channels enter
    seed : of the places of brain sources
    projs : SSP projectors of the system, which regularisation respects
    """
    colour, _ = _colour(head, head.leadfield(), noise, np.random.default_rng(seed))
    exact = mne.Covariance(colour @ colour.T, list(head.ch_names), [], [], nfree=0, verbose="ERROR")
    return regularised(exact, imaging_info(head.info, head.ch_names, projs), noise.regularisation)


def _colour(head: HeadModel, gain: Float64, noise: SceneNoise, rng: np.random.Generator) -> tuple[Float64, int]:
    """(n_channels, n_noise), SI units: white noise of unit variance to all noise; and how many columns are brain noise."""
    kinds = np.array([kind.value for kind in head.channels.types])
    brain_share, _ = share_in_band(noise.band_hz, BROADBAND_HZ)
    chosen = rng.choice(gain.shape[1], min(noise.n_brain_sources, gain.shape[1]), replace=False)
    brain = gain[:, chosen] * brain_moment(gain[:, chosen], kinds, noise.eeg_brain_uv) * np.sqrt(brain_share)
    colour = np.hstack([_sensors(head, kinds, noise), interference_fields(head, noise.interference_ft, rng), brain])
    return colour, brain.shape[1]


def _sensors(head: HeadModel, kinds: NDArray[np.str_], noise: SceneNoise) -> Float64:
    """(n_channels, n_channels): colour of the sensors' own noise within the band."""
    bandwidth = noise.band_hz[1] - noise.band_hz[0]
    density = {"eeg": noise.eeg_nv * 1e-9, "mag": noise.mag_ft * 1e-15, "grad": noise.grad_ft_cm * 1e-13}
    deviations = np.array([density[kind] for kind in kinds]) * np.sqrt(bandwidth)
    factors = dict(zip(("eeg", "mag", "grad"), noise.factors, strict=True))
    return np.array([factors[kind] for kind in kinds])[:, None] * sensor_colour(deviations, head.ch_names, noise.noise_cov)


def interference_fields(head: HeadModel, deviation_ft: float, rng: np.random.Generator) -> Float64:
    """(n_channels, 6): three homogeneous fields and three gradients of distant sources, to first order about the helmet."""
    meg = head.channels.of_modality(Modality.MEG)
    if not deviation_ft or not len(meg):
        return np.zeros((len(head.ch_names), 0))
    locs = np.array([head.info["chs"][i]["loc"] for i in meg], dtype=float)
    axial = np.array([head.info["chs"][i]["coil_type"] == CTF_COIL for i in meg])
    planar = np.array([head.channels.types[i] is ChannelType.GRAD for i in meg])
    places, along, normal = locs[:, :3] - locs[:, :3].mean(axis=0), locs[:, 3:6], locs[:, 9:12]
    gradients = rng.standard_normal((3, 3, 3))
    gradients += gradients.transpose(0, 2, 1)  # no curl
    gradients -= np.trace(gradients, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)  # no divergence
    bent = np.einsum("gij,cj->gci", gradients, normal)
    at_coil = np.einsum("gci,ci->cg", bent, places)
    along_planar = np.einsum("gci,ci->cg", bent, along)
    along_axis = CTF_BASELINE_M * np.einsum("gci,ci->cg", bent, normal)
    fields = np.hstack([normal @ rng.standard_normal((3, 3)), 3.0 * at_coil])  # a third of the field per 10 cm or so
    fields[planar] = np.hstack([np.zeros((planar.sum(), 3)), 3.0 * along_planar[planar]])
    fields[axial] = np.hstack([np.zeros((axial.sum(), 3)), 3.0 * along_axis[axial]])
    point = ~planar & ~axial
    per_unit = np.median(np.sqrt(np.sum(fields[point if point.any() else slice(None)] ** 2, axis=1)))
    whole = np.zeros((len(head.ch_names), 6))
    whole[meg] = fields * (deviation_ft * 1e-15 / per_unit)
    return whole


def _measured(colour: Float64, n_samples: int | None, rng: np.random.Generator) -> Float64:
    """Covariance of the noise, exact or as estimated from independent samples."""
    if n_samples is None:
        return np.asarray(colour @ colour.T)
    scale = np.sqrt(np.sum(colour**2, axis=1))
    true = (colour / scale[:, None]) @ (colour / scale[:, None]).T
    values, vectors = np.linalg.eigh(true)
    samples = (vectors * np.sqrt(np.maximum(values, 0))) @ rng.standard_normal((len(values), n_samples))
    return np.asarray(samples @ samples.T / n_samples * np.outer(scale, scale))
