"""Real evoked responses through any set of solvers: where they peak, how concentrated the maps are.

Measured for the `sample` subject of MNE (auditory and visual stimuli, averages of 3 to 6 trials): a sanity check, no
benchmark. Any folder with the same kinds of files is read; regions are known for the conditions of `sample` only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mne
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import RecordingError, SolverError
from rt_mmdf.evaluation.figure import MapPanel, MapRow, View, map_grid
from rt_mmdf.evaluation.rows import ONE_MODALITY
from rt_mmdf.evaluation.statistics import Verdict
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import read_noise_cov, regularised
from rt_mmdf.headmodel.subject import build_subject
from rt_mmdf.headmodel.whitener import imaging_info
from rt_mmdf.metrics.localisation import sd_mm
from rt_mmdf.solvers.artefact import Artefact
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.linear import SolverSettings
from rt_mmdf.solvers.network import NetworkSolver, TrainedNetwork
from rt_mmdf.solvers.operators import build_operator

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]

HIGH_HZ = 40.0
PEAK_S = (0.075, 0.120)
CONCENTRATION_AGAINST = ("MNE", "dSPM", "sLORETA")
AREA_RATIO = (0.5, 2.0)
# the subject's published dipole fit for the left ear (80 ms) and its mirror image for the right one, MRI mm
AUDITORY_MM = np.array([56.0, -16.0, 37.0])
RADIUS_MM = 30.0
OCCIPITAL_Y_MM = -45.0
FILES = {
    "evoked responses": ("*-ave.fif", "*-ave.fif.gz"),
    "a coregistration": ("*-trans.fif",),
    "a source space": ("*-src.fif", "*-src.fif.gz"),
    "a BEM solution": ("*-bem-sol.fif", "*-bem-sol.fif.gz"),
    "a noise covariance": ("*-cov.fif", "*-cov.fif.gz"),
}
CLASSICAL = ("MNE", "dSPM", "sLORETA", "eLORETA")
# lambda^2 = 1/9, as suits averages. No depth weighting: with mne's 0.8 the left ear's dSPM map (3 trials) peaks in the wrong
# hemisphere.
SNR, DEPTH = 3.0, 0.0


@dataclass(frozen=True, eq=False)
class Averages:
    """Evoked responses of one subject, ready to be imaged, with what imaging needs.

    evokeds : baseline-corrected and low-passed, of the channels of `head`; the projectors are applied
    noise_cov : of single trials
    bads : names of channels that are not used
    """

    head: HeadModel
    noise_cov: mne.Covariance
    projs: tuple[mne.Projection, ...]
    bads: tuple[str, ...]
    evokeds: tuple[mne.Evoked, ...]

    def cov_of(self, n_trials: int) -> mne.Covariance:
        """Noise covariance of an average: that of single trials divided by their number."""
        own = self.noise_cov
        data = np.array(own["data"]) / n_trials
        return mne.Covariance(data, list(own["names"]), [], list(own["projs"]), own["nfree"], verbose="ERROR")


@dataclass(frozen=True, eq=False)
class EvokedSolver:
    """A solver for averages.

    prepare : from the averages and a number of trials to the operator for their noise
    scale : from the number of trials to the factor that the estimate is multiplied by
    """

    name: str
    prepare: Callable[[Averages, int], Operator]
    scale: Callable[[int], float] = field(default=lambda n_trials: 1.0)


@dataclass(frozen=True, eq=False)
class RealMap:
    """One condition through one solver, at the instant of the peak.

    values : (n_sources,) with sign, in `unit`
    peak : the source with the largest magnitude between 75 and 120 ms
    in_region : whether the peak lies where activity is expected; None where nothing is known
    sd_mm : spatial dispersion about the peak: sqrt(sum |s|^2 d^2 / sum |s|^2)
    deviation : posterior standard deviation at the peak, in `unit`, of solvers that know one
    """

    condition: str
    solver: str
    n_trials: int
    n_channels: int
    values: Array
    unit: str
    peak: int
    position_mm: tuple[float, float, float]
    time_s: float
    hemisphere: str
    in_region: bool | None
    sd_mm: float
    deviation: float | None

    def as_row(self) -> dict[str, Any]:
        """Plain values for a table or a file."""
        return {
            "condition": self.condition,
            "solver": self.solver,
            "n_trials": self.n_trials,
            "peak_mm": [round(value, 1) for value in self.position_mm],
            "peak_ms": round(1e3 * self.time_s, 1),
            "hemisphere": self.hemisphere,
            "in_region": self.in_region,
            "sd_mm": round(self.sd_mm, 1),
            "peak_value": float(np.abs(self.values[self.peak])),
            "deviation": self.deviation,
            "unit": self.unit,
        }


def read_averages(folder: Path, progress: Progress | None = None) -> Averages:
    """Evoked responses, noise covariance and head of a folder; the head comes from the cache where it was built before.

    Bad channels are those that the averages or a raw recording (``*_raw.fif``) in the folder mark.

    Raises
    ------
    RecordingError
        Files are missing or ambiguous, or the evoked responses cannot be read.
    HeadModelError, NoiseCovarianceError
        What is there cannot be used.
    """
    paths = {what: _one_file(folder, what, patterns) for what, patterns in FILES.items()}
    try:
        evokeds = mne.read_evokeds(paths["evoked responses"], baseline=(None, 0), verbose="ERROR")
    except Exception as error:  # mne's readers fail in many ways on a file of another kind
        raise RecordingError(
            f"averages {paths['evoked responses']}: cannot be read ({type(error).__name__}: {error}); evoked responses "
            "(-ave.fif) with a baseline before 0 s are expected."
        ) from error
    info = evokeds[0].info
    head = build_subject(
        info,
        paths["a coregistration"],
        paths["a source space"],
        paths["a BEM solution"],
        name=folder.resolve().name,
        progress=progress,
    )
    noise_cov = read_noise_cov(paths["a noise covariance"], head.ch_names)
    marked = {name for evoked in evokeds for name in evoked.info["bads"]}
    for path in sorted(folder.glob("*_raw.fif")):
        marked |= set(mne.io.read_info(path, verbose="ERROR")["bads"])
    bads = tuple(name for name in head.ch_names if name.replace(" ", "") in {bad.replace(" ", "") for bad in marked})
    for evoked in evokeds:
        if evoked.times[0] > PEAK_S[0] or evoked.times[-1] < PEAK_S[1]:
            raise RecordingError(
                f"averages {paths['evoked responses']}: {evoked.comment!r} lasts from {evoked.times[0]:.3f} to "
                f"{evoked.times[-1]:.3f} s; {PEAK_S[0]:g} to {PEAK_S[1]:g} s are imaged. Average longer epochs."
            )
        evoked.apply_proj(verbose="ERROR")
        evoked.filter(None, HIGH_HZ, verbose="ERROR").pick(list(head.ch_names))
    return Averages(head, noise_cov, tuple(info["projs"]), bads, tuple(evokeds))


def _one_file(folder: Path, what: str, patterns: Sequence[str]) -> Path:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) != 1:
        seen = ", ".join(path.name for path in found) or "none"
        raise RecordingError(
            f"real recording {folder}: {what} is expected as one file {' or '.join(patterns)}; seen: {seen}. The sample "
            "data of MNE are laid out like that; put your subject's files into one folder the same way."
        )
    return found[0]


def classical_solver(
    settings: SolverSettings, name: str | None = None, missing_modalities: Collection[Modality] = ()
) -> EvokedSolver:
    """A classical inverse, named after its method."""

    def prepare(averages: Averages, n_trials: int) -> Operator:
        head = averages.head
        cov = averages.cov_of(n_trials)
        return build_operator(head, head.channels, cov, averages.projs, settings, averages.bads, missing_modalities)

    return EvokedSolver(name or settings.method, prepare)


def classical_solvers() -> tuple[EvokedSolver, ...]:
    """MNE, dSPM, sLORETA and eLORETA as suits averages: fixed orientation, lambda^2 = 1/9, no depth weighting."""
    return tuple(
        classical_solver(SolverSettings.model_validate({"method": method, "snr": SNR, "depth": DEPTH}))
        for method in CLASSICAL
    )


def network_solver(artefact: Artefact, name: str | None = None) -> EvokedSolver:
    """A trained network; ArtefactError on use where it was trained for another head.

    One that is not head-free expects the noise it was trained in. The averages' noise is made as large, so what it says
    comes out too large by the square root of the number of trials, and is divided by it.
    """
    missing = [m for m in Modality if artefact.kind in ONE_MODALITY and m is not ONE_MODALITY[artefact.kind]]

    def prepare(averages: Averages, n_trials: int) -> Operator:
        head = averages.head
        if not artefact.head_free:
            artefact.check_head(head)
            head = artefact.load_head()
        names = [name for name in head.ch_names if name in averages.head.ch_names]
        noise_cov = regularised(averages.cov_of(n_trials), imaging_info(head.info, names, averages.projs))
        sfreq = float(averages.evokeds[0].info["sfreq"])
        trained = TrainedNetwork(
            artefact,
            head,
            head.channels.pick(head.channels.indices(names)),
            noise_cov,
            averages.projs,
            bads=averages.bads,
            sfreq=sfreq,
            refresh_ms=1e3 / sfreq,  # with every sample
        )
        return trained.build_operator(averages.bads, missing)

    return EvokedSolver(
        name or artefact.name, prepare, lambda n_trials: 1.0 if artefact.head_free else 1 / np.sqrt(n_trials)
    )


def image_averages(
    averages: Averages, solvers: Sequence[EvokedSolver], progress: Progress | None = None
) -> tuple[RealMap, ...]:
    """Peak and map of each condition (first) through each solver; SolverError where one says nothing."""
    report = progress or (lambda what, fraction: None)
    positions = averages.head.source_positions_mm
    maps: dict[tuple[str, str], RealMap] = {}
    for number, solver in enumerate(solvers):
        report(f"real data through {solver.name}", number / len(solvers))
        operators: dict[int, Operator] = {}
        for evoked in averages.evokeds:
            n_trials = int(evoked.nave)
            operator = operators.get(n_trials) or solver.prepare(averages, n_trials)
            operators[n_trials] = operator
            maps[evoked.comment, solver.name] = _map_of(evoked, solver, operator, positions)
    report("real data", 1.0)
    return tuple(maps[evoked.comment, solver.name] for evoked in averages.evokeds for solver in solvers)


def _map_of(evoked: mne.Evoked, solver: EvokedSolver, operator: Operator, positions: Array) -> RealMap:
    n_trials = int(evoked.nave)
    instants = np.flatnonzero((evoked.times >= PEAK_S[0] - 1e-9) & (evoked.times <= PEAK_S[1] + 1e-9))
    rows = [evoked.ch_names.index(name) for name in operator.whitener.channels.names]
    window = (operator.whitener.matrix @ evoked.data[rows, : instants[-1] + 1]).astype(np.float32)
    scale = solver.scale(n_trials)
    estimate = scale * operator.solver(window, len(instants)).astype(np.float64)
    if not (np.isfinite(estimate).all() and estimate.any()):
        seen = "zero everywhere" if np.isfinite(estimate).all() else "not finite"
        raise SolverError(
            f"{solver.name}: its map of {evoked.comment!r} (average of {n_trials} trials) is {seen}; it has no peak. A "
            "network that says so has not been trained, or has diverged: train it again, or leave it out."
        )
    peak, instant = (int(place) for place in np.unravel_index(np.abs(estimate).argmax(), estimate.shape))
    values = estimate[:, instant]
    deviation = None
    if isinstance(operator.solver, NetworkSolver):  # imaged once more, so that the peak's is the instant it last saw
        operator.solver.reset()
        operator.solver(window[:, : instants[instant] + 1], 1)
        deviation = operator.solver.deviation()
    region = expected_region(evoked.comment, positions)
    x, y, z = (float(value) for value in positions[peak])
    return RealMap(
        condition=evoked.comment,
        solver=solver.name,
        n_trials=n_trials,
        n_channels=len(operator.used),
        values=values,
        unit=operator.solver.unit,
        peak=peak,
        position_mm=(x, y, z),
        time_s=float(evoked.times[instants[instant]]),
        hemisphere="left" if x < 0 else "right",
        in_region=None if region is None else bool(region[peak]),
        sd_mm=sd_mm(values, positions, positions[peak]),
        deviation=None if deviation is None else float(scale * deviation[peak]),
    )


def expected_region(condition: str, positions_mm: Array) -> NDArray[np.bool_] | None:
    """Which points lie where activity is expected, opposite to the stimulus; None for conditions that `sample` has not.

    Auditory: within 30 mm of the published dipole, or of its mirror image; visual: behind y = -45 mm (MRI).
    """
    words = condition.lower().split()
    if len(words) != 2 or words[0] not in ("left", "right") or words[1] not in ("auditory", "visual"):
        return None
    side = 1.0 if words[0] == "left" else -1.0
    if words[1] == "auditory":
        return np.asarray(np.linalg.norm(positions_mm - AUDITORY_MM * [side, 1, 1], axis=1) < RADIUS_MM)
    return np.asarray((side * positions_mm[:, 0] > 0) & (positions_mm[:, 1] < OCCIPITAL_Y_MM))


def real_figure(averages: Averages, maps: Sequence[RealMap], title: str = "") -> Figure:
    """Conditions by solvers, both hemispheres of each map, the peak marked and the expected region outlined."""
    head = averages.head
    rows = []
    for condition in dict.fromkeys(found.condition for found in maps):
        chosen = {found.solver: found for found in maps if found.condition == condition}
        visual = "visual" in condition.lower()
        panels = {solver: MapPanel(found.values, _caption(found), found.in_region) for solver, found in chosen.items()}
        left, right = (expected_region(condition, hemisphere.white) for hemisphere in head.hemispheres)
        outline = None if left is None or right is None else (left, right)
        n_trials = next(iter(chosen.values())).n_trials
        label = f"{condition}\n{n_trials} trials\n{'from behind' if visual else 'from the side'}"
        rows.append(MapRow(label, _views(visual), panels, outline))
    note = "Outline: where activity is expected, opposite to the stimulus. sd: spatial dispersion about the peak."
    columns = list(dict.fromkeys(found.solver for found in maps))
    return map_grid(head, columns, rows, signed=False, title=title, note=note)


def _views(visual: bool) -> tuple[View, View]:
    if visual:
        return (0, (0.45, -0.9, -0.2)), (1, (-0.45, -0.9, -0.2))
    return (0, (-1.0, 0.0, 0.15)), (1, (1.0, 0.0, 0.15))


def _caption(found: RealMap) -> str:
    x, y, z = (round(value) for value in found.position_mm)
    where = {None: "", True: "inside, ", False: "outside, "}[found.in_region]
    return f"({x}, {y}, {z}) mm, {1e3 * found.time_s:.0f} ms\n{where}sd {found.sd_mm:.0f} mm"


def concentration_verdict(maps: Sequence[RealMap], solver: str, area_ratio: float | None) -> Verdict:
    """The seed's claim 3 for a solver: more concentrated than MNE, dSPM and sLORETA, in the right area.

    Parameters
    ----------
    area_ratio : median of the solver's on simulated patches; None where it was not evaluated
        Any sparse map is concentrated: outside of 0.5 to 2 (`AREA_RATIO`) concentration says nothing and is not judged.
    """
    claim = (
        f"on real averages {solver} is more concentrated (sd_mm) than {', '.join(CONCENTRATION_AGAINST)} and peaks where "
        "activity is expected"
    )
    low, high = AREA_RATIO
    if area_ratio is None or not low <= area_ratio <= high:
        seen = "was not evaluated" if area_ratio is None else f"{area_ratio:.2f}"
        note = f"median area_ratio on simulated patches {seen}; concentration counts between {low:g} and {high:g} only"
        return Verdict("the seed, claim 3", claim, 0, 0, note=note)
    failing, n_tested, n_inside = [], 0, 0
    for found in maps:
        if found.solver != solver or found.in_region is None:
            continue
        others = {
            other.solver: other.sd_mm
            for other in maps
            if other.condition == found.condition and other.solver in CONCENTRATION_AGAINST
        }
        n_tested += 1
        n_inside += found.in_region
        if not found.in_region or any(found.sd_mm >= sd for sd in others.values()):
            against = ", ".join(f"{sd:.0f} of {other}" for other, sd in others.items())
            where = "inside" if found.in_region else "outside"
            failing.append(f"{found.condition}: {where}, sd {found.sd_mm:.0f} mm against {against}")
    note = f"{n_inside} of {n_tested} peaks where expected; median area_ratio on simulated patches {area_ratio:.2f}"
    return Verdict("the seed, claim 3", claim, n_tested - len(failing), n_tested, tuple(failing), note)
