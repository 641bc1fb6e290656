"""The held-out suite: cases whose head, true vertices, noise and seeds no training has seen.

Training on the template has its truth on fsaverage's ico-4 mesh alone (`rt_mmdf.simulation.scenes.training_scenes`), whose
vertices are the nominal sources. Truth here lies on the ico-5 vertices that are not ico-4 vertices, under a finer BEM, other
conductivities, electrodes put on anew and another place in the helmet; the solvers get the nominal head and the noise
covariance that was measured at rest.

The SNR of a cell is that of the scored instant: 10 log10 of the whitened power of the true field over the rank. Sources
swell and fade, so the mean over a window is mostly several dB lower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import mne
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rt_mmdf.core.channels import Modality
from rt_mmdf.evaluation.results import Cell
from rt_mmdf.headmodel.cache import array_digest, cached
from rt_mmdf.headmodel.head import HeadModel, RecipeValue, load_head
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov, read_noise_cov
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.headmodel.whitener import imaging_info
from rt_mmdf.metrics.scoring import ScoredSpace, scored_space
from rt_mmdf.networks.interface import ForwardArrays
from rt_mmdf.simulation.batches import BatchGenerator, BatchSettings, Scene
from rt_mmdf.simulation.heads import HeadVariation, varied_template
from rt_mmdf.simulation.scene_files import load_scenes, save_scenes
from rt_mmdf.simulation.scenes import SceneNoise, scene_and_whitening, true_cortex

Float32 = NDArray[np.float32]
Progress = Callable[[str, float], None]

RECIPE_VERSION = 2  # changes with whatever changes the cases

RADII_MM = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0)
N_SOURCES = (1, 2, 3)
SNR_DB = (-5.0, 0.0, 5.0, 10.0, 20.0)
CELLS: tuple[Cell, ...] = tuple(product(RADII_MM, N_SOURCES, SNR_DB))
QUICK_CELLS: tuple[Cell, ...] = (
    (0.0, 1, 10.0),
    (10.0, 1, 0.0),
    (10.0, 1, 10.0),
    (15.0, 2, 5.0),
    (20.0, 1, 5.0),
    (30.0, 1, 0.0),
)

SEED = 918_273_645  # of the cases; training counts up from small numbers
N_TIMES, SFREQ = 100, 100.0  # one second
SEPARATION_MM = 30.0  # between centres, or twice the radius where that is more: patches never overlap
SILENT_SHARE = 0.3  # of the windows hold one more patch, which is silent at the scored instant
SAME_PLACE_MM = 0.1

# Ratios of brain to skull between those of training (rt_mmdf.simulation.heads), brain and scalp others as well
BETWEEN = ((0.33, 0.0043, 0.41), (0.28, 0.0097, 0.36))
BEM_ICO: Literal[4] = 4  # the nominal head has 3
VARIATIONS = tuple(
    HeadVariation(
        BETWEEN[number % 2], electrode_shift_mm=6.0, helmet_shift_mm=3.5, helmet_rotation_deg=2.5, seed=901 + number
    )
    for number in range(4)
)
N_COV_SAMPLES = 4000  # of the rest that the covariance is measured from, as in training
NOISES = (
    SceneNoise(factors=(1.0, 1.0, 1.0), eeg_brain_uv=2.0, interference_ft=10.0, n_cov_samples=N_COV_SAMPLES),
    SceneNoise(factors=(1.4, 0.8, 0.9), eeg_brain_uv=1.5, interference_ft=0.0, n_cov_samples=N_COV_SAMPLES),
    SceneNoise(factors=(0.8, 1.2, 1.3), eeg_brain_uv=3.0, interference_ft=20.0, n_cov_samples=N_COV_SAMPLES),
    SceneNoise(factors=(1.2, 1.0, 0.8), eeg_brain_uv=2.5, interference_ft=5.0, n_cov_samples=N_COV_SAMPLES),
)
LEADFIELD_ERROR = 0.1  # of a head that cannot be built anew, relative to the RMS of each channel
ALONE = (Modality.EEG, Modality.MEG)
DEPTH = 0.8  # mne's exponent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class View:
    """What a system with some of the channels makes of the same samples: the others are removed before whitening.

    transform : (n_channels, n_channels) float32 | None
        From samples whitened over all channels to samples whitened over those of the view; None for all channels.
    """

    arrays: ForwardArrays
    transform: Float32 | None = None

    def of(self, whitened: Float32) -> Float32:
        """Samples (n, n_channels) or windows (n, n_channels, n_times) as this view has them."""
        if self.transform is None:
            return whitened
        return np.asarray(np.einsum("ij,nj...->ni...", self.transform, whitened, optimize=True), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class HeldOutScene:
    """One head of the suite under its noise, and how systems of one modality see it."""

    scene: Scene
    alone: Mapping[Modality, View]

    def view(self, modality: Modality | None) -> View:
        """Of one modality, or of all channels."""
        return View(self.scene.arrays) if modality is None else self.alone[modality]


@dataclass(frozen=True, eq=False)
class Cases:
    """Cases of one cell; the n-th comes from scene n modulo the number of scenes.

    scene : (n,) int64
    sample : (n, n_channels) whitened, at the scored instant
    window : (n, n_channels, n_times) whitened
    instant : (n,) int64, the column of the window that is scored
    truth : (n, n_sources) nA m, at the instant, carried to the nearest nominal sources
    centres_mm : (n, n_patches, 3) of the true patches
    """

    scene: NDArray[np.int64]
    sample: Float32
    window: Float32
    instant: NDArray[np.int64]
    truth: Float32
    centres_mm: Float32

    def __len__(self) -> int:
        return len(self.scene)

    def first(self, n_cases: int) -> Cases:
        """The first cases; all, where there are fewer."""
        return Cases(**{field.name: getattr(self, field.name)[:n_cases] for field in fields(self)})


@dataclass(frozen=True, eq=False)
class Suite:
    """Scenes, and the nominal source space that everything is scored on.

    nominal : what the solvers believe in; its channels are the rows of the samples
    depth : (n_sources,) variances of the sources that mne's depth weighting gives, up to a factor
    description : how the heads differ, for the report
    """

    nominal: HeadModel
    scenes: tuple[HeldOutScene, ...]
    space: ScoredSpace
    depth: NDArray[np.float64]
    description: str

    def cases(self, cell: Cell, n_cases: int, seed: int = SEED) -> Cases:
        """Cases of a cell: the same for the same cell, number and seed, whatever else is evaluated."""
        radius_mm, n_sources, snr_db = cell
        n_scenes = len(self.scenes)
        settings = BatchSettings(
            size=-(-n_cases // n_scenes),
            radii_mm=(radius_mm,),
            n_sources=(n_sources, n_sources),
            snr_db=(snr_db, snr_db),
            separation_mm=max(SEPARATION_MM, 2 * radius_mm),
            n_times=N_TIMES,
            sfreq=SFREQ,
            silent_share=SILENT_SHARE,
        )
        generator = BatchGenerator([held_out.scene for held_out in self.scenes], settings, seed)
        step = (round(10 * radius_mm) * 10 + n_sources) * 10_000 + round(10 * (snr_db + 200))
        batches = [generator.batch(step * n_scenes + i, scene=i)[0] for i in range(n_scenes)]

        def in_turn(arrays: Sequence[Float32]) -> Float32:
            return np.ascontiguousarray(np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])[:n_cases])

        sample = in_turn([batch.sample.numpy() for batch in batches])
        window = in_turn([batch.window.numpy() for batch in batches if batch.window is not None])
        return Cases(
            scene=np.arange(n_cases) % n_scenes,
            sample=sample,
            window=window,
            instant=(window == sample[:, :, None]).all(axis=1).argmax(axis=1),
            truth=in_turn([batch.dense(self.space.n_sources).numpy() for batch in batches]),
            centres_mm=in_turn([batch.centres_mm.numpy() for batch in batches]),
        )


def held_out_suite(head: Path | None = None, noise_cov: Path | None = None, progress: Progress | None = None) -> Suite:
    """The suite for a head, from the user's cache where it was made before; minutes at first.

    Parameters
    ----------
    head : folder of a head model | None
        None for the template. Template heads get the four variations of the suite. Of a subject's head there is its
        leadfield alone: the truth then lies on its own mesh, through its leadfield with errors of 10 %, which is easier.
    noise_cov : colour of the sensors' noise in place of white noise; see `SceneNoise`
    progress : called with what is being done and the fraction that is done

    Raises
    ------
    HeadModelError
        The folder is no head model, or its source space has no mesh.
    NoiseCovarianceError
        The covariance cannot be read or knows none of the channels.
    """
    report = progress or (lambda what, fraction: None)
    report("nominal head", 0.0)
    nominal = build_template() if head is None else load_head(head)
    colour = None
    if noise_cov is not None:
        colour = read_noise_cov(noise_cov, ())
        nominal = nominal.named_like(colour["names"])
    noises = NOISES if colour is None else tuple(replace(n, noise_cov=colour, interference_ft=0.0) for n in NOISES)
    varied = nominal.kind == "template"
    recipe: dict[str, RecipeValue] = {
        "recipe_version": RECIPE_VERSION,
        "head": nominal.fingerprint,
        "variations": [str(asdict(variation)) for variation in VARIATIONS] if varied else LEADFIELD_ERROR,
        "bem_ico": BEM_ICO,
        "noises": [str(asdict(replace(noise, noise_cov=None))) for noise in noises],
        "colour": "white" if colour is None else array_digest(np.asarray(colour["data"], dtype=np.float64)),
    }

    def make(folder: Path) -> None:
        truths = _varied_heads(nominal, report) if varied else [nominal] * len(noises)
        _save(_held_out(nominal, truths, noises, 0.0 if varied else LEADFIELD_ERROR, report), _depth(nominal), folder)

    described = (
        f"{len(VARIATIONS)} template heads: truth on ico-5 vertices that are no ico-4 vertices (training has the latter "
        f"alone), BEM of ico-{BEM_ICO}, conductivities {' and '.join(str(c) for c in BETWEEN)} S/m, electrodes 6 mm and "
        "helmet 3.5 mm / 2.5 degrees off"
        if varied
        else f"the subject's own leadfield and mesh, gains {LEADFIELD_ERROR:.0%} off: easier than other heads"
    )
    suite = cached("held-out", recipe, make, lambda folder: _load(folder, nominal, described))
    report("ready", 1.0)
    return suite


def _varied_heads(nominal: HeadModel, report: Progress) -> list[HeadModel]:
    heads = []
    for number, variation in enumerate(VARIATIONS):
        what = f"held-out head {number + 1} of {len(VARIATIONS)} (kept for the next time)"
        report(what, 0.05 + 0.2 * number)
        heads.append(varied_template(nominal, variation, spacing="ico5", bem_ico=BEM_ICO))
    return heads


def _held_out(
    nominal: HeadModel,
    truths: Sequence[HeadModel],
    noises: Sequence[SceneNoise],
    leadfield_noise: float,
    report: Progress,
) -> list[HeldOutScene]:
    report("held-out scenes", 0.9)
    cortex = true_cortex(nominal, truths[0])
    made = []
    for number, (truth, noise) in enumerate(zip(truths, noises, strict=True)):
        # one seed: all views share brain sources, interference and the measured covariance
        make = partial(
            scene_and_whitening,
            nominal,
            truth,
            noise,
            seed=(SEED, number),
            leadfield_noise=leadfield_noise,
            cortex=cortex,
            name=f"held-out {number}",
        )
        joint, _, colorer = make()
        alone = {}
        if set(ALONE) <= set(nominal.channels.modalities):
            for modality in ALONE:
                names = nominal.channels.pick(nominal.channels.of_modality(modality)).names
                single, whitener, _ = make(used=names)
                # back to what the sensors saw, and whitened anew
                alone[modality] = View(single.arrays, np.asarray(whitener.matrix @ colorer, dtype=np.float32))
        made.append(HeldOutScene(_off_the_sources(joint), alone))
    return made


def _off_the_sources(scene: Scene) -> Scene:
    """The scene without the true vertices that are nominal sources; the very same where both meshes are one."""
    gaps = np.linalg.norm(scene.truth_mm - scene.arrays.positions_mm[scene.nearest], axis=1)
    kept = gaps > SAME_PLACE_MM
    if kept.mean() < 0.5:
        return scene
    number = np.cumsum(kept) - 1
    near, distance = scene.neighbours[kept], scene.distance_mm[kept].copy()
    distance[~kept[near]] = np.inf
    order = np.argsort(distance, axis=1, kind="stable")
    distance = np.take_along_axis(distance, order, axis=1)
    near = np.where(np.isfinite(distance), number[np.take_along_axis(near, order, axis=1)], 0)
    widest = int(np.isfinite(distance).sum(axis=1).max())
    return replace(
        scene,
        gain=np.ascontiguousarray(scene.gain[:, kept]),
        nearest=scene.nearest[kept],
        truth_mm=scene.truth_mm[kept],
        neighbours=np.ascontiguousarray(near[:, :widest]),
        distance_mm=np.ascontiguousarray(distance[:, :widest]),
    )


def _depth(nominal: HeadModel) -> NDArray[np.float64]:
    """Mne's depth weighting of the head; it depends on the leadfield alone."""
    inverse = mne.minimum_norm.make_inverse_operator(
        imaging_info(nominal.info, nominal.ch_names, ()),
        nominal.forward,
        ad_hoc_noise_cov(nominal.channels),
        loose=0.0,
        fixed=True,
        depth=DEPTH,
        verbose="ERROR",
    )
    return np.asarray(inverse["depth_prior"]["data"], dtype=np.float64)


def _save(scenes: Sequence[HeldOutScene], depth: NDArray[np.float64], folder: Path) -> None:
    shared = [scenes[0].scene]
    for other in scenes[1:]:  # tables of the same true mesh once
        first = shared[0]
        if np.array_equal(other.scene.neighbours, first.neighbours):
            same = {key: getattr(first, key) for key in ("nearest", "truth_mm", "neighbours", "distance_mm")}
            shared.append(replace(other.scene, **same))
        else:
            shared.append(other.scene)
    save_scenes(shared, folder / "scenes")
    arrays: dict[str, NDArray[np.generic]] = {"depth": depth}
    for number, held_out in enumerate(scenes):
        for modality, view in held_out.alone.items():
            assert view.transform is not None
            key = f"{number}.{modality.value}"
            arrays[f"{key}.leadfield"] = view.arrays.leadfield
            arrays[f"{key}.used"] = view.arrays.used
            arrays[f"{key}.rank"] = np.array([view.arrays.rank])
            arrays[f"{key}.transform"] = view.transform
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / "views.safetensors")


def _load(folder: Path, nominal: HeadModel, description: str) -> Suite:
    scenes = load_scenes(folder / "scenes")
    arrays = load_file(folder / "views.safetensors")
    held_out = []
    for number, scene in enumerate(scenes):
        alone = {}
        for modality in ALONE:
            key = f"{number}.{modality.value}"
            if f"{key}.transform" in arrays:
                known = replace(
                    scene.arrays,
                    leadfield=arrays[f"{key}.leadfield"],
                    used=arrays[f"{key}.used"],
                    rank=int(arrays[f"{key}.rank"][0]),
                )
                alone[modality] = View(known, arrays[f"{key}.transform"])
        # the generator wants one row per vertex: then it need not copy
        held_out.append(HeldOutScene(replace(scene, gain=np.asfortranarray(scene.gain)), alone))
    known = scenes[0].arrays
    space = scored_space(known.positions_mm, known.triangles, known.n_left)
    return Suite(nominal, tuple(held_out), space, arrays["depth"], description)
