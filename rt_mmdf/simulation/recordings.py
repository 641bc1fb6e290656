"""Recordings with known sources: the truth lives on another head than the one that images it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mne
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.signal.windows import tukey

from rt_mmdf.core.errors import SinkError
from rt_mmdf.core.settings import Settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.metrics.localisation import snr_db
from rt_mmdf.simulation.heads import random_variation, varied_info
from rt_mmdf.simulation.noise import brain_moment, sensor_colour, share_in_band
from rt_mmdf.simulation.sources import (
    Cortex,
    Patch,
    burst,
    fsaverage5_cortex,
    grow_patch,
    grow_patch_by_order,
    pink_noise,
    transient,
)
from rt_mmdf.simulation.truth import Event, Truth, truth_path

Float64 = NDArray[np.float64]

# Places of the demonstration, MNI (305) millimetres, in an order that jumps between lobes and hemispheres.
PLACES: dict[str, tuple[float, float, float]] = {
    "left auditory": (-50.0, -22.0, 8.0),
    "right visual": (14.0, -88.0, 4.0),
    "left sensorimotor": (-38.0, -26.0, 54.0),
    "right auditory": (52.0, -18.0, 8.0),
    "left visual": (-14.0, -90.0, 2.0),
    "right sensorimotor": (38.0, -26.0, 54.0),
    "left frontal": (-38.0, 36.0, 24.0),
    "right parietal": (40.0, -58.0, 44.0),
}
SEPARATION_MM = 30.0  # of random places, and so of sources that are active together
LEAST_RATIO = 0.5  # moment of the weakest of several sources over that of the strongest
# Numbers up to here are sources of an ico-4 head: a true centre is none of them.
N_ICO4 = 2562
BRAIN_SEED = 3407
STIM_CHANNEL = "STI 014"
TRIGGER_S = 0.02

Course = Literal["mixed", "burst", "transient", "pink"]


class SimulationSettings(Settings):
    """A recording of activations one after another, after a rest that is noise alone.

    n_places : random places in place of the eight named ones; they are drawn by the seed
    n_sources : active together in each activation
    radius_mm : geodesic radius of the patches, 0 is one dipole; or else
    order : 0 to 4, their extent in edges of an ico-4 mesh (5.7 mm on average)
    course : what they do in time; mixed: all places with bursts, all with transients, and so on
    conductivity : brain, skull, scalp in S/m; the solver's default is 0.3, 0.006, 0.3
    vary_head : electrodes and helmet are elsewhere than the recording says, as much as `random_variation` with this seed has
        it, and the conductivities are its own unless they are given
    snr_db : at the largest field of each activation, against sensor and brain noise over all channels within `band_hz`
    eeg_brain_uv : standard deviation that brain noise gives the median electrode, before any filter; the default is that of
        a calm recording, with which 10 dB take moments of 0.25 to 0.7 uA m: more an epileptic spike than an evoked response
    seed : of noise and activations
    eeg_nv, mag_ft, grad_ft_cm : density of the sensors' own noise, nV, fT, fT/cm per square root of Hz
    """

    duration_s: float = Field(default=60.0, gt=0, le=3600)
    rest_s: float = Field(default=3.0, ge=0)
    period_s: float = Field(default=1.0, gt=0)
    active_s: float = Field(default=0.7, gt=0)
    sfreq: float = Field(default=1000.0, ge=200)
    n_places: int | None = Field(default=None, ge=1, le=200)
    n_sources: int = Field(default=1, ge=1, le=3)
    radius_mm: float = Field(default=10.0, ge=0, le=60)
    order: int | None = Field(default=None, ge=0, le=4)
    course: Course = "mixed"
    snr_db: float = Field(default=10.0, ge=-200, le=60)
    band_hz: tuple[float, float] = (1.0, 40.0)
    seed: int = Field(default=20240709, ge=0)
    conductivity: tuple[float, float, float] = (0.33, 0.0042, 0.43)
    vary_head: bool = False
    n_brain_sources: int = Field(default=400, ge=0, le=5000)
    eeg_brain_uv: float = Field(default=2.0, ge=0)
    eeg_nv: float = Field(default=50.0, gt=0)
    mag_ft: float = Field(default=3.0, gt=0)
    grad_ft_cm: float = Field(default=3.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> SimulationSettings:
        if self.order is not None and "radius_mm" in self.model_fields_set:
            raise ValueError(f"order = {self.order} and radius_mm = {self.radius_mm:g}: give one of the two")
        if self.n_sources > (len(PLACES) if self.n_places is None else self.n_places):
            raise ValueError(f"n_sources = {self.n_sources} cannot be active together at {self.n_places} place(s)")
        if self.active_s > self.period_s:
            raise ValueError(f"active_s = {self.active_s:g} is longer than period_s = {self.period_s:g}")
        if not 0 < self.band_hz[0] < self.band_hz[1] < self.sfreq / 2:
            raise ValueError(f"band_hz = {self.band_hz}: two rising frequencies below {self.sfreq / 2:g} Hz are expected")
        if self.rest_s + self.period_s > self.duration_s:
            raise ValueError(
                f"duration_s = {self.duration_s:g} leaves no room for an activation of {self.period_s:g} s after a rest of "
                f"{self.rest_s:g} s"
            )
        return self


@dataclass(frozen=True)
class _Scene:
    """Who is where on the true head.

    info : sensors as the recording describes them, which is not where they are if the head is varied
    """

    cortex: Cortex
    names: tuple[str, ...]
    patches: tuple[Patch, ...]
    brain: NDArray[np.int64]
    head: HeadModel
    columns: dict[int, int]  # vertex of the cortex -> column of the leadfield
    info: mne.Info


def simulate_recording(
    settings: SimulationSettings | None = None,
    noise_cov: mne.Covariance | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[mne.io.RawArray, Truth]:
    """Simulate 306 MEG and 60 EEG channels and a stimulus channel on the template head.

    The true sources lie on fsaverage's ico-5 mesh, away from the sources of an ico-4 head, under other conductivities. Brain
    noise comes from many small sources with 1/f spectra through the same leadfield for EEG and MEG. Equal settings give
    equal data.

    Parameters
    ----------
    noise_cov : mne.Covariance | None
        Colour of the sensors' own noise (per sample, SI units squared) in place of white noise of the settings' densities;
        channels that it lacks keep those.

    Raises
    ------
    NoiseCovarianceError
        `noise_cov` knows none of the channels.
    """
    settings = settings or SimulationSettings()
    rng = np.random.default_rng(settings.seed)
    scene = _scene(settings, progress)
    gain = scene.head.leadfield()
    kinds = np.array([kind.value for kind in scene.head.channels.types])
    n_times = round(settings.duration_s * settings.sfreq)

    brain_gain = gain[:, [scene.columns[int(vertex)] for vertex in scene.brain]]
    brain_gain = brain_gain * brain_moment(brain_gain, kinds, settings.eeg_brain_uv)
    colour = sensor_colour(_deviations(kinds, settings), scene.head.ch_names, noise_cov)
    data = np.empty((len(kinds), n_times), dtype=np.float32)
    # single precision after scaling to unit noise: tesla squared would be below its range
    scale = np.sqrt(np.sum(colour**2, axis=1))
    np.matmul((colour / scale[:, None]).astype(np.float32), rng.standard_normal(data.shape, dtype=np.float32), out=data)
    for part in np.array_split(np.arange(len(scene.brain)), max(1, len(scene.brain) // 50)):  # all at once: half a gigabyte
        courses = pink_noise(len(part), n_times, settings.sfreq, rng).astype(np.float32)
        data += (brain_gain[:, part] / scale[:, None]).astype(np.float32) @ courses

    freqs = np.asarray(np.fft.rfftfreq(n_times, 1 / settings.sfreq)[1:], dtype=np.float64)
    brain_share, sensor_share = share_in_band(settings.band_hz, freqs)
    brain_cov, sensor_cov = brain_gain @ brain_gain.T, colour @ colour.T
    noise = (brain_share * brain_cov + sensor_share * sensor_cov) / np.outer(scale, scale)
    whitener = _inverse_root(noise)
    fields = np.array([gain[:, [scene.columns[int(v)] for v in patch.vertices]] @ patch.profile for patch in scene.patches])
    moments, events = _activations(settings, whitener @ (fields / scale).T, rng)
    data += ((fields / scale).T @ moments).astype(np.float32)
    truth = Truth(
        sfreq=settings.sfreq,
        ch_names=scene.head.ch_names,
        ch_types=tuple(kinds.tolist()),
        source_names=scene.names,
        centres_mm=scene.cortex.positions_mm[[patch.centre for patch in scene.patches]],
        fields=fields,
        moments=moments,
        vertices=tuple(patch.vertices for patch in scene.patches),
        profiles=tuple(patch.profile for patch in scene.patches),
        brain_cov=brain_cov,
        sensor_cov=sensor_cov,
        events=events,
        recipe=settings.model_dump(mode="json")
        | {
            "sensor_noise": "white" if noise_cov is None else "coloured",
            "true_conductivity": scene.head.recipe["conductivity"],
        },
    )
    return _raw(scene.info, data, scale, truth), truth


def write_recording(raw: mne.io.RawArray, truth: Truth, path: Path) -> None:
    """Write ``x-raw.fif`` and ``x-truth.npz`` beside it.

    Raises
    ------
    SinkError
        The name does not end in ``-raw.fif``, or the folder cannot be written to.
    """
    if not path.name.endswith("-raw.fif"):
        raise SinkError(
            f"recording {path}: a name that ends in -raw.fif is expected, since its ground truth is named after it."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw.save(path, fmt="single", overwrite=True, verbose="ERROR")
    except OSError as error:
        raise SinkError(
            f"recording {path}: cannot be written ({error}). It needs {raw.n_times * len(raw.ch_names) * 4e-6:.0f} MB in a "
            "folder that you may write to."
        ) from error
    truth.save(truth_path(path))


def _scene(settings: SimulationSettings, progress: Callable[[str, float], None] | None) -> _Scene:
    cortex = fsaverage5_cortex()
    numbers = np.arange(len(cortex.positions_mm))
    between = numbers[numbers % cortex.n_left >= N_ICO4]
    if settings.n_places is None:
        centres = {name: cortex.nearest(place, between) for name, place in PLACES.items()}
    else:
        centres = _random_places(cortex, between, settings.n_places, np.random.default_rng((settings.seed, 1)))
    patches = tuple(_patch(cortex, centre, settings) for centre in centres.values())
    # the same brain in each recording, whatever its seed: a rest recorded before belongs to the activations after it
    brain = np.sort(np.random.default_rng(BRAIN_SEED).choice(between, settings.n_brain_sources, replace=False))
    needed = np.unique(np.concatenate([brain, *(patch.vertices for patch in patches)]))
    left, right = (side.tolist() for side in cortex.by_hemisphere(needed))

    def build(conductivity: tuple[float, float, float], info: mne.Info | None) -> HeadModel:
        return build_template(
            spacing="ico5",
            info=info,
            conductivity=conductivity,
            vertices=(left, right),
            name="simulated head",
            progress=progress,
        )

    head = build(settings.conductivity, None)
    info = head.info
    if settings.vary_head:
        variation = random_variation(np.random.default_rng((settings.seed, 2)))
        own = None if "conductivity" in settings.model_fields_set else variation.conductivity
        head = build(own or settings.conductivity, varied_info(info, variation))
    columns = {int(vertex): column for column, vertex in enumerate(needed)}
    return _Scene(cortex, tuple(centres), patches, brain, head, columns, info)


def _random_places(cortex: Cortex, between: NDArray[np.int64], n: int, rng: np.random.Generator) -> dict[str, int]:
    """Vertices at least `SEPARATION_MM` from each of the two before (they may be active together), in both hemispheres."""
    chosen: list[int] = []
    while len(chosen) < n:
        candidate = int(rng.choice(between))
        gaps = np.linalg.norm(cortex.positions_mm[chosen[-2:]] - cortex.positions_mm[candidate], axis=1)
        # the last places follow the first ones in turn
        wrap = np.linalg.norm(cortex.positions_mm[chosen[:2]] - cortex.positions_mm[candidate], axis=1)
        if gaps.min(initial=np.inf) >= SEPARATION_MM and (len(chosen) < n - 2 or wrap.min(initial=np.inf) >= SEPARATION_MM):
            chosen.append(candidate)
    return {f"place {number + 1}": vertex for number, vertex in enumerate(chosen)}


def _patch(cortex: Cortex, centre: int, settings: SimulationSettings) -> Patch:
    if settings.order is None:
        return grow_patch(cortex, centre, settings.radius_mm)
    return grow_patch_by_order(cortex, centre, 2 * settings.order)  # two edges of ico-5 to one of ico-4


def _deviations(kinds: NDArray[np.str_], settings: SimulationSettings) -> Float64:
    density = {"eeg": settings.eeg_nv * 1e-9, "mag": settings.mag_ft * 1e-15, "grad": settings.grad_ft_cm * 1e-13}
    return np.array([density[kind] * np.sqrt(settings.sfreq / 2) for kind in kinds])


def _inverse_root(covariance: Float64) -> Float64:
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * 1e-12
    return np.asarray((vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T)


def _activations(
    settings: SimulationSettings, whitened: Float64, rng: np.random.Generator
) -> tuple[Float64, tuple[Event, ...]]:
    """Moments (n_sources, n_times) and events: the places in turn, either sign.

    Parameters
    ----------
    whitened : (n_channels, n_sources), whitened field of 1 A m of each source
    """
    n_sources = whitened.shape[1]
    moments = np.zeros((n_sources, round(settings.duration_s * settings.sfreq)))
    events = []
    n_events = int((settings.duration_s - settings.rest_s) / settings.period_s + 1e-9)
    for number in range(n_events):
        together = [(number + i) % n_sources for i in range(settings.n_sources)]
        # a full round of one kind, then one of the other
        in_turn: tuple[Course, ...] = ("burst", "transient")
        kind = in_turn[(number // n_sources) % 2] if settings.course == "mixed" else settings.course
        courses = np.array([_course(kind, settings, rng) for _ in together])
        courses[1:] *= rng.uniform(LEAST_RATIO, 1, (len(together) - 1, 1))
        onset = settings.rest_s + number * settings.period_s
        first = round(onset * settings.sfreq)
        stop = min(first + courses.shape[1], moments.shape[1])
        at_peak = courses[:, np.sum((whitened[:, together] @ courses) ** 2, axis=0).argmax()]
        unit_db = float(snr_db(whitened[:, together] @ at_peak, len(whitened)))
        courses = courses * 10 ** ((settings.snr_db - unit_db) / 20)  # A m
        for source, course in zip(together, courses, strict=True):
            moments[source, first:stop] += course[: stop - first]
            own_db = float(snr_db(whitened[:, source] * np.abs(course).max(), len(whitened)))
            events.append(Event(first / settings.sfreq, settings.active_s, source, kind, own_db))
    return moments, tuple(events)


def _course(kind: Course, settings: SimulationSettings, rng: np.random.Generator) -> Float64:
    """(n_times,), largest magnitude 1, either sign."""
    frequency = rng.uniform(10, 20)
    sign = rng.choice((-1.0, 1.0))
    if kind == "burst":
        course = burst(settings.sfreq, settings.active_s, frequency)
    elif kind == "transient":
        course = transient(settings.sfreq, settings.active_s)
    else:
        n_times = round(settings.active_s * settings.sfreq)
        course = pink_noise(1, n_times, settings.sfreq, rng)[0] * tukey(n_times, 0.2)
        course = course / np.abs(course).max()
    return np.asarray(sign * course)


def _raw(sensors: mne.Info, data: NDArray[np.float32], scale: Float64, truth: Truth) -> mne.io.RawArray:
    info = mne.create_info([*truth.ch_names, STIM_CHANNEL], truth.sfreq, [*truth.ch_types, "stim"])
    for channel, known in zip(info["chs"], sensors["chs"], strict=False):
        channel.update(known)
    info["dev_head_t"] = sensors["dev_head_t"]
    with info._unlock():
        info["dig"] = sensors["dig"]
    stim = np.zeros(data.shape[1])
    for event in reversed(truth.events):  # of sources that begin together the first one counts
        first = round(event.onset_s * truth.sfreq)
        stim[first : first + max(1, round(TRIGGER_S * truth.sfreq))] = event.source + 1
    samples = np.empty((len(data) + 1, data.shape[1]))
    np.multiply(data, scale[:, None], out=samples[:-1])
    samples[-1] = stim
    return mne.io.RawArray(samples, info, verbose="ERROR")
