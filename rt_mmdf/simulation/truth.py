"""The ground truth of a simulated recording, and how estimates are scored against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rt_mmdf.core.errors import RecordingError, SinkError
from rt_mmdf.core.files import read_arrays
from rt_mmdf.simulation.sources import pink_power

Float64 = NDArray[np.float64]
CausalFilter = Callable[[Float64], Float64]

FORMAT = 1
SCORED_FROM_DB = 5.0
MAX_BYTES = 1 << 32  # unpacked; moments of 10 sources over 10 hours at 1 kHz have 2.9 GB
IMPULSE_S = 20.0  # a 0.5 Hz high-pass has settled by then


@dataclass(frozen=True)
class Event:
    """One activation.

    onset_s, duration_s : seconds from the first sample of the file
    source : index into the truth's sources
    kind : "burst" or "transient"
    snr_db : SNR at the largest moment, against the simulated noise of all channels within the band of the settings
    """

    onset_s: float
    duration_s: float
    source: int
    kind: str
    snr_db: float


@dataclass(frozen=True)
class Truth:
    """Everything that scoring needs, without the head that made the recording.

    sfreq : Hz
    ch_names, ch_types : channels of `fields`, MNE's names of the types
    source_names : one per source
    centres_mm : (n_sources, 3) centre of each patch, MRI (surface RAS) coordinates
    fields : (n_sources, n_channels) field of a unit moment of each patch: V/(A m), T/(A m), T/(m A m); no reference applied
    moments : (n_sources, n_times) summed moment of each patch, A m
    vertices, profiles : per source the vertices of the patch on fsaverage5 (left 0..10241, then right) and their shares
    brain_cov, sensor_cov : (n_channels, n_channels) covariance of brain noise (`pink_power`) and of the sensors' own noise
        (white), SI units squared, before any filter
    events : in the order of their onsets
    recipe : how it was made (plain values)
    """

    sfreq: float
    ch_names: tuple[str, ...]
    ch_types: tuple[str, ...]
    source_names: tuple[str, ...]
    centres_mm: Float64
    fields: Float64
    moments: Float64
    vertices: tuple[NDArray[np.int64], ...]
    profiles: tuple[Float64, ...]
    brain_cov: Float64
    sensor_cov: Float64
    events: tuple[Event, ...]
    recipe: dict[str, Any]

    @property
    def duration_s(self) -> float:
        return float(self.moments.shape[1] / self.sfreq)

    def whitener(self, ch_names: Sequence[str], causal_filter: CausalFilter) -> tuple[Float64, int]:
        """Whitener of the noise that was really simulated, behind a filter, and its rank.

        What an engine estimates from some seconds of rest whitens less well, and would flatter or belittle the SNR.

        Parameters
        ----------
        ch_names : channels that are imaged; those that the truth lacks get weight zero
        causal_filter : linear and time-invariant, see `score`

        Returns
        -------
        (n_channels, n_channels), int
            EEG goes through its average reference, which costs one dimension.
        """
        known = {name: i for i, name in enumerate(self.ch_names)}
        at = [i for i, name in enumerate(ch_names) if name in known]
        rows = [known[ch_names[i]] for i in at]
        brain_gain, sensor_gain = self._noise_gains(causal_filter)
        noise = (brain_gain * self.brain_cov + sensor_gain * self.sensor_cov)[np.ix_(rows, rows)]
        eeg = np.array([self.ch_types[row] == "eeg" for row in rows], dtype=float)
        reference = np.eye(len(rows)) - np.outer(eeg, eeg) / max(eeg.sum(), 1.0)
        scale = np.sqrt(np.diag(noise))  # volts and teslas are nine orders of magnitude apart
        # the reference in scaled units: P' = S^-1 P S
        project = reference * scale[None, :] / scale[:, None]
        values, vectors = np.linalg.eigh(project @ (noise / np.outer(scale, scale)) @ project.T)
        rank = len(rows) - bool(eeg.any())
        kept = slice(len(rows) - rank, None)
        root = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
        matrix = np.zeros((len(ch_names), len(ch_names)))
        matrix[np.ix_(at, at)] = root @ project / scale[None, :]
        return matrix, rank

    def _noise_gains(self, causal_filter: CausalFilter) -> tuple[float, float]:
        """What a filter leaves of the variance of brain noise and of white noise, from its impulse response."""
        impulse = np.zeros((1, round(IMPULSE_S * self.sfreq)))
        impulse[0, 0] = 1
        response = causal_filter(impulse)[0]
        power = pink_power(np.fft.rfftfreq(len(response), 1 / self.sfreq))
        power[0] = 0
        passed = np.abs(np.fft.rfft(response)) ** 2
        return float(np.sum(power * passed) / power.sum()), float(np.sum(response**2))

    def save(self, path: Path) -> None:
        """Write one ``.npz`` file; SinkError if that is not possible."""
        described = {
            "format": FORMAT,
            "sfreq": self.sfreq,
            "ch_names": self.ch_names,
            "ch_types": self.ch_types,
            "source_names": self.source_names,
            "events": [asdict(event) for event in self.events],
            "recipe": self.recipe,
        }
        try:
            np.savez_compressed(
                path,
                allow_pickle=False,
                description=np.array(json.dumps(described, allow_nan=False)),
                centres_mm=self.centres_mm,
                fields=self.fields,
                moments=self.moments,
                brain_cov=self.brain_cov,
                sensor_cov=self.sensor_cov,
                patch_sizes=np.array([len(vertices) for vertices in self.vertices]),
                vertices=np.concatenate(self.vertices),
                profiles=np.concatenate(self.profiles),
            )
        except OSError as error:
            raise SinkError(
                f"ground truth {path}: cannot be written ({error}). Choose a folder that you may write to."
            ) from error


def truth_path(recording: Path) -> Path:
    """Where the ground truth of a recording lies: ``x-raw.fif`` has ``x-truth.npz`` beside it."""
    return recording.with_name(recording.name.removesuffix(".gz").removesuffix(".fif").removesuffix("-raw") + "-truth.npz")


def load_truth(path: Path) -> Truth:
    """Read a ground truth.

    Raises
    ------
    RecordingError
        There is none, or it is damaged or of another format.
    """
    try:
        arrays = read_arrays(path, MAX_BYTES)
        described = json.loads(str(arrays["description"]))
        if described["format"] != FORMAT:
            raise ValueError(f"format {described['format']} seen, {FORMAT} expected")
        cuts = np.cumsum(arrays["patch_sizes"])[:-1]
        return Truth(
            sfreq=float(described["sfreq"]),
            ch_names=tuple(described["ch_names"]),
            ch_types=tuple(described["ch_types"]),
            source_names=tuple(described["source_names"]),
            centres_mm=arrays["centres_mm"],
            fields=arrays["fields"],
            moments=arrays["moments"],
            vertices=tuple(np.split(arrays["vertices"], cuts)),
            profiles=tuple(np.split(arrays["profiles"], cuts)),
            brain_cov=arrays["brain_cov"],
            sensor_cov=arrays["sensor_cov"],
            events=tuple(Event(**event) for event in described["events"]),
            recipe=described["recipe"],
        )
    except FileNotFoundError as error:
        raise RecordingError(
            f"ground truth {path}: no such file. Only simulated recordings have one; without it nothing can be scored."
        ) from error
    except Exception as error:  # a damaged zip file can make its reader fail in any way
        raise RecordingError(f"ground truth {path}: damaged ({error}). Simulate the recording again.") from error


@dataclass(frozen=True)
class Score:
    """How far the strongest source was from the true one, instant by instant.

    le_mm, snr_db, file_times, sources : (n_scored,) localisation error, SNR of the filtered truth, seconds, true source
    n_offered : estimates that were handed in
    n_ambiguous : left out because two sources or more were above the limit together
    """

    le_mm: Float64
    snr_db: Float64
    file_times: Float64
    sources: NDArray[np.int64]
    n_offered: int
    n_ambiguous: int
    source_names: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """For the report: ``le_mm``, ``snr_db``, ``n_scored``, ``n_ambiguous``, and the median error of each source."""
        if len(self.le_mm) == 0:
            nothing = {"le_mm": {"median": None, "p90": None}, "snr_db": {"median": None, "p10": None, "p90": None}}
            return nothing | {"n_scored": 0, "n_ambiguous": self.n_ambiguous, "le_mm_by_source": {}}
        by_source = {
            name: float(np.median(self.le_mm[self.sources == i]))
            for i, name in enumerate(self.source_names)
            if (self.sources == i).any()
        }
        p10, median, p90 = (float(np.percentile(self.snr_db, q)) for q in (10, 50, 90))
        return {
            "le_mm": {"median": float(np.median(self.le_mm)), "p90": float(np.percentile(self.le_mm, 90))},
            "snr_db": {"median": median, "p10": p10, "p90": p90},
            "n_scored": len(self.le_mm),
            "n_ambiguous": self.n_ambiguous,
            "le_mm_by_source": by_source,
        }


def score(
    file_times: ArrayLike,
    peaks_mm: ArrayLike,
    truth: Truth,
    *,
    whitener: Float64,
    rank: int,
    ch_names: tuple[str, ...],
    causal_filter: CausalFilter,
    from_db: float = SCORED_FROM_DB,
) -> Score:
    """Score the strongest source of each estimate where the filtered truth has an SNR of `from_db` and more.

    The SNR is that of one instant in whitened units, ``10 log10(|W G s|^2 / rank)``, s the true moments behind the same
    causal filter that the sensors passed.

    Parameters
    ----------
    file_times : (n_estimates,)
        Sensor time of each estimate as seconds from the first sample of the file. Beyond its end for a file that is
        played again and again; estimates before its start are not scored.
    peaks_mm : (n_estimates, 3)
        Position of the strongest source, same coordinates as the truth; NaN for an estimate that is not valid: not scored.
    whitener : (n_channels, n_channels), rank : int
        From `Truth.whitener`: then the score does not depend on what the engine took for noise.
    ch_names : of the whitener's columns; the truth knows all those that count (the others' columns are zero)
    causal_filter : callable
        Maps (n_sources, n_times) at the truth's sampling rate to the same shape.
    """
    times = np.asarray(file_times, dtype=float)
    peaks = np.asarray(peaks_mm, dtype=float)
    if peaks.shape != (len(times), 3):
        raise ValueError(
            f"{len(times)} times, but peaks of shape {peaks.shape}: one position (x, y, z) per time is expected"
        )
    snr, leading, n_strong = snr_over_time(truth, times, whitener, rank, ch_names, causal_filter, from_db)
    valid = np.isfinite(peaks).all(axis=1)
    chosen = valid & (snr >= from_db) & (n_strong == 1)
    errors = np.linalg.norm(peaks[chosen] - truth.centres_mm[leading[chosen]], axis=1)
    ambiguous = int(np.count_nonzero(valid & (n_strong > 1)))
    return Score(errors, snr[chosen], times[chosen], leading[chosen], len(times), ambiguous, truth.source_names)


def snr_over_time(
    truth: Truth,
    file_times: Float64,
    whitener: Float64,
    rank: int,
    ch_names: tuple[str, ...],
    causal_filter: CausalFilter,
    from_db: float = SCORED_FROM_DB,
) -> tuple[Float64, NDArray[np.int64], NDArray[np.int64]]:
    """SNR of the filtered truth in dB at each time, the strongest source then, and how many reach `from_db` alone.

    Raises
    ------
    RecordingError
        A channel that the whitener uses is not in the truth.
    """
    known = {name: i for i, name in enumerate(truth.ch_names)}
    used = np.flatnonzero(np.abs(whitener).any(axis=0))
    if missing := [ch_names[i] for i in used if ch_names[i] not in known]:
        raise RecordingError(
            f"ground truth: {len(missing)} of {len(used)} imaged channels are not in it ({', '.join(missing[:5])}); the "
            "recording that was imaged must be the one that it was simulated with."
        )
    fields = truth.fields[:, [known[ch_names[i]] for i in used]]
    whitened = fields @ whitener[:, used].T  # (n_sources, n_channels)
    rounds = max(1, int(np.ceil((file_times.max(initial=0.0) + 1 / truth.sfreq) / truth.duration_s)))
    moments = causal_filter(np.tile(truth.moments, rounds))
    at = np.rint(file_times * truth.sfreq).astype(np.int64)
    inside = (at >= 0) & (at < moments.shape[1])
    now = np.where(inside, moments[:, np.clip(at, 0, moments.shape[1] - 1)], 0.0)
    gram = whitened @ whitened.T
    with np.errstate(divide="ignore"):
        joint = 10 * np.log10(np.maximum(np.einsum("it,ij,jt->t", now, gram, now), 0) / rank)
        alone = 10 * np.log10(now**2 * np.diag(gram)[:, None] / rank)
    return joint, alone.argmax(axis=0).astype(np.int64), np.count_nonzero(alone >= from_db, axis=0).astype(np.int64)
