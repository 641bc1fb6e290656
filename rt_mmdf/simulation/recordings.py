"""Recordings with known sources, for the demonstration: the truth lives on another head than the one that images it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rt_mmdf.core.errors import SinkError
from rt_mmdf.core.settings import Settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.metrics.localisation import snr_db
from rt_mmdf.simulation.noise import brain_moment, sensor_colour, share_in_band
from rt_mmdf.simulation.sources import Cortex, Patch, burst, fsaverage5_cortex, grow_patch, pink_noise, transient
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
# Numbers up to here are sources of an ico-4 head: a true centre is none of them.
N_ICO4 = 2562
BRAIN_SEED = 3407
STIM_CHANNEL = "STI 014"
TRIGGER_S = 0.02


class SimulationSettings(Settings):
    """A recording of activations one after another, after a rest that is noise alone.

    conductivity : brain, skull, scalp in S/m; the solver's default is 0.3, 0.006, 0.3
    snr_db : at the largest moment of each activation, against sensor and brain noise over all channels within `band_hz`
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
    radius_mm: float = Field(default=10.0, ge=0)
    snr_db: float = 10.0
    band_hz: tuple[float, float] = (1.0, 40.0)
    seed: int = Field(default=20240709, ge=0)
    conductivity: tuple[float, float, float] = (0.33, 0.0042, 0.43)
    n_brain_sources: int = Field(default=400, ge=0, le=5000)
    eeg_brain_uv: float = Field(default=2.0, ge=0)
    eeg_nv: float = Field(default=50.0, gt=0)
    mag_ft: float = Field(default=3.0, gt=0)
    grad_ft_cm: float = Field(default=3.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> SimulationSettings:
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
    """Who is where on the true head."""

    cortex: Cortex
    patches: tuple[Patch, ...]
    brain: NDArray[np.int64]
    head: HeadModel
    columns: dict[int, int]  # vertex of the cortex -> column of the leadfield


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
    moments, events = _activations(settings, [float(snr_db(whitener @ (f / scale), len(f))) for f in fields], rng)
    data += ((fields / scale).T @ moments).astype(np.float32)
    truth = Truth(
        sfreq=settings.sfreq,
        ch_names=scene.head.ch_names,
        ch_types=tuple(kinds.tolist()),
        source_names=tuple(PLACES),
        centres_mm=scene.cortex.positions_mm[[patch.centre for patch in scene.patches]],
        fields=fields,
        moments=moments,
        vertices=tuple(patch.vertices for patch in scene.patches),
        profiles=tuple(patch.profile for patch in scene.patches),
        brain_cov=brain_cov,
        sensor_cov=sensor_cov,
        events=events,
        recipe=settings.model_dump(mode="json") | {"sensor_noise": "white" if noise_cov is None else "coloured"},
    )
    return _raw(scene.head, data, scale, truth), truth


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
    patches = tuple(grow_patch(cortex, cortex.nearest(place, between), settings.radius_mm) for place in PLACES.values())
    # the same brain in each recording, whatever its seed: a rest recorded before belongs to the activations after it
    brain = np.sort(np.random.default_rng(BRAIN_SEED).choice(between, settings.n_brain_sources, replace=False))
    needed = np.unique(np.concatenate([brain, *(patch.vertices for patch in patches)]))
    head = build_template(
        spacing="ico5",
        conductivity=settings.conductivity,
        vertices=tuple(side.tolist() for side in cortex.by_hemisphere(needed)),
        name="simulated head",
        progress=progress,
    )
    return _Scene(cortex, patches, brain, head, {int(vertex): column for column, vertex in enumerate(needed)})


def _deviations(kinds: NDArray[np.str_], settings: SimulationSettings) -> Float64:
    density = {"eeg": settings.eeg_nv * 1e-9, "mag": settings.mag_ft * 1e-15, "grad": settings.grad_ft_cm * 1e-13}
    return np.array([density[kind] * np.sqrt(settings.sfreq / 2) for kind in kinds])


def _inverse_root(covariance: Float64) -> Float64:
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * 1e-12
    return np.asarray((vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T)


def _activations(
    settings: SimulationSettings, unit_snr_db: list[float], rng: np.random.Generator
) -> tuple[Float64, tuple[Event, ...]]:
    """Moments (n_sources, n_times) and events: the places in turn, bursts and transients in turn, either sign."""
    moments = np.zeros((len(unit_snr_db), round(settings.duration_s * settings.sfreq)))
    events = []
    n_events = int((settings.duration_s - settings.rest_s) / settings.period_s + 1e-9)
    for number in range(n_events):
        source = number % len(unit_snr_db)
        # a full round of one kind, then one of the other
        is_burst = (number // len(unit_snr_db)) % 2 == 0
        frequency = rng.uniform(10, 20)
        sign = rng.choice((-1.0, 1.0))
        course = (
            burst(settings.sfreq, settings.active_s, frequency) if is_burst else transient(settings.sfreq, settings.active_s)
        )
        onset = settings.rest_s + number * settings.period_s
        first = round(onset * settings.sfreq)
        peak = 10 ** ((settings.snr_db - unit_snr_db[source]) / 20)  # A m
        stop = min(first + len(course), moments.shape[1])
        moments[source, first:stop] += sign * peak * course[: stop - first]
        events.append(
            Event(first / settings.sfreq, settings.active_s, source, "burst" if is_burst else "transient", settings.snr_db)
        )
    return moments, tuple(events)


def _raw(head: HeadModel, data: NDArray[np.float32], scale: Float64, truth: Truth) -> mne.io.RawArray:
    info = mne.create_info([*head.ch_names, STIM_CHANNEL], truth.sfreq, [*head.info.get_channel_types(), "stim"])
    for channel, known in zip(info["chs"], head.info["chs"], strict=False):
        channel.update(known)
    info["dev_head_t"] = head.info["dev_head_t"]
    with info._unlock():
        info["dig"] = head.info["dig"]
    stim = np.zeros(data.shape[1])
    for event in truth.events:
        first = round(event.onset_s * truth.sfreq)
        stim[first : first + max(1, round(TRIGGER_S * truth.sfreq))] = event.source + 1
    samples = np.empty((len(data) + 1, data.shape[1]))
    np.multiply(data, scale[:, None], out=samples[:-1])
    samples[-1] = stim
    return mne.io.RawArray(samples, info, verbose="ERROR")
