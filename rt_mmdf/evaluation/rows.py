"""Rows of the table: solvers that image cases of the held-out suite, each at every strength of regularisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.backends.torch_backend import TorchBackend, load_weights
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ArtefactError, ConfigurationError
from rt_mmdf.evaluation.suite import Cases, Suite, View
from rt_mmdf.headmodel.cache import array_digest, cached
from rt_mmdf.headmodel.head import HeadModel, RecipeValue
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.interface import ForwardArrays
from rt_mmdf.solvers.artefact import Artefact, find_model, known_models, load_artefact

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Normalisation = Literal["MNE", "dSPM", "sLORETA"]

# Amplitude SNR that is assumed, lambda^2 = 1 / snr^2; each row gets the one that suits it best in each cell
ASSUMED_SNR = (0.05, 0.12, 0.3, 0.65, 1.4, 3.0, 6.5, 14.0, 30.0)
LCMV_LOADINGS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of the mean eigenvalue of a window's covariance
ELORETA_ROUNDS, ELORETA_CHANGE = 20, 1e-6  # mne's


@dataclass(frozen=True, eq=False)
class Image:
    """Maps of all cases by one row at one strength of regularisation.

    setting : that strength (assumed SNR, loading); NaN where there is nothing to choose
    maps : (n_sources, n_cases), nA m for rows with an amplitude
    """

    row: str
    setting: float
    maps: Float32


class RowGroup(ABC):
    """Rows that share their work.

    rows : their names
    with_amplitude : those whose maps are in nA m
    max_cases : of each cell, where they are too slow for all
    """

    rows: tuple[str, ...]
    with_amplitude: frozenset[str] = frozenset()
    max_cases: int | None = None

    @abstractmethod
    def images(self, cases: Cases) -> Iterator[Image]:
        """Every row at every setting."""


class MinimumNorm(RowGroup):
    """MNE, dSPM and sLORETA of one view: mne's inverse in the whitened leadfield's own basis, all settings at once.

    Equal to `rt_mmdf.solvers.operators.build_operator`: tests/evaluation/test_rows.py.

    Parameters
    ----------
    rows : name of each row and its normalisation
    modality : of the channels that enter; None for all
    variances : (n_sources,) prior variances up to a factor (depth weighting); None for equal ones
    """

    def __init__(
        self,
        suite: Suite,
        rows: Mapping[str, Normalisation],
        modality: Modality | None = None,
        variances: Float64 | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.with_amplitude = frozenset(name for name, kind in rows.items() if kind == "MNE")
        self._views = [held_out.view(modality) for held_out in suite.scenes]
        self._bases = [_Basis(view.arrays, rows, variances) for view in self._views]

    def images(self, cases: Cases) -> Iterator[Image]:
        samples = [_samples(view, cases, number).T for number, view in enumerate(self._views)]
        for i, snr in enumerate(ASSUMED_SNR):
            parts = [basis.filtered(sample, i) for basis, sample in zip(self._bases, samples, strict=True)]
            for row in self.rows:
                scaled = [part * basis.gains[row][i][:, None] for part, basis in zip(parts, self._bases, strict=True)]
                yield Image(row, snr, _in_turn(scaled, cases))


class _Basis:
    """Singular value decomposition of a whitened leadfield, and what normalises each row at each setting."""

    def __init__(self, arrays: ForwardArrays, rows: Mapping[str, Normalisation], variances: Float64 | None) -> None:
        leadfield = arrays.leadfield.astype(np.float64)
        variance = np.ones(arrays.n_sources) if variances is None else variances
        variance = variance * (arrays.rank / float(np.sum(leadfield**2 * variance)))  # mne's: trace of L R L' is the rank
        weighted = leadfield * np.sqrt(variance)
        power, vectors = np.linalg.eigh(weighted @ weighted.T)
        kept = power > 1e-10 * power[-1]
        singular = np.sqrt(power[kept])
        self._sensors = np.ascontiguousarray(vectors[:, kept].T, dtype=np.float32)
        leads = (weighted.T @ vectors[:, kept]) / singular
        self._leads = leads.astype(np.float32)
        self._filters = np.array([singular / (power[kept] + 1 / snr**2) for snr in ASSUMED_SNR])
        noise = leads**2 @ (self._filters**2).T
        resolution = leads**2 @ (singular * self._filters).T
        gains: dict[Normalisation, Float64] = {
            "MNE": np.repeat(np.sqrt(variance)[None], len(ASSUMED_SNR), axis=0),
            "dSPM": 1 / np.sqrt(np.maximum(noise.T, 1e-30)),
            "sLORETA": 1 / np.sqrt(np.maximum(resolution.T, 1e-30) * np.array(ASSUMED_SNR)[:, None] ** 2),
        }
        self.gains = {row: gains[kind].astype(np.float32) for row, kind in rows.items()}

    def filtered(self, samples: Float32, setting: int) -> Float32:
        """(n_sources, n) of samples (n_channels, n), not normalised."""
        kept: Float32 = self._leads @ ((self._sensors @ samples) * self._filters[setting][:, None].astype(np.float32))
        return kept


class ELoreta(RowGroup):
    """eLORETA with mne's rounds of weights, which depend on the setting; they are kept in the user's cache."""

    rows = ("eLORETA",)
    with_amplitude = frozenset(rows)

    def __init__(self, suite: Suite) -> None:
        self._views = [held_out.view(None) for held_out in suite.scenes]
        self._leads = [np.ascontiguousarray(view.arrays.leadfield.T) for view in self._views]
        self._weights = [_kept_eloreta_variances(view.arrays) for view in self._views]
        self._inverses = [
            [
                _regularised_inverse(view.arrays.leadfield, variance, snr)
                for variance, snr in zip(w, ASSUMED_SNR, strict=True)
            ]
            for view, w in zip(self._views, self._weights, strict=True)
        ]

    def images(self, cases: Cases) -> Iterator[Image]:
        samples = [_samples(view, cases, number).T for number, view in enumerate(self._views)]
        for i, snr in enumerate(ASSUMED_SNR):
            parts = [
                (leads @ (inverses[i] @ sample)) * weights[i][:, None].astype(np.float32)
                for leads, inverses, weights, sample in zip(self._leads, self._inverses, self._weights, samples, strict=True)
            ]
            yield Image(self.rows[0], snr, _in_turn(parts, cases))


def _regularised_inverse(leadfield: Float32, variance: Float64, snr: float) -> Float32:
    gain = leadfield.astype(np.float64)
    inverse = np.linalg.inv((gain * variance) @ gain.T + np.eye(len(gain)) / snr**2)
    return np.asarray(inverse, dtype=np.float32)


def _kept_eloreta_variances(arrays: ForwardArrays) -> Float64:
    def make(folder: Path) -> None:
        np.save(folder / "variances.npy", np.array([eloreta_variances(arrays, snr) for snr in ASSUMED_SNR]))

    recipe: dict[str, RecipeValue] = {
        "leadfield": array_digest(arrays.leadfield.astype(np.float64)),
        "rank": arrays.rank,
        "snr": list(ASSUMED_SNR),
    }
    return cached("eloreta", recipe, make, lambda folder: np.asarray(np.load(folder / "variances.npy"), dtype=np.float64))


def eloreta_variances(arrays: ForwardArrays, snr: float) -> Float64:
    """(n_sources,) prior variances with which a minimum norm estimate has no bias for single sources, nA^2 m^2.

    Pascual-Marqui (2007), arXiv:0710.3341, with mne's stopping rule and scaling: the trace of L R L' is the rank.
    """
    gain = arrays.leadfield.astype(np.float64)
    gain = gain / np.sqrt(np.sum(gain**2) / arrays.rank)
    scale = float(np.sqrt(np.sum(arrays.leadfield.astype(np.float64) ** 2) / arrays.rank))
    variance = np.ones(arrays.n_sources)
    field = (gain * variance) @ gain.T
    for _ in range(ELORETA_ROUNDS):
        values, vectors = np.linalg.eigh(field)
        values, vectors = np.abs(values[-arrays.rank :]), vectors[:, -arrays.rank :]
        inverse = (vectors / (values + 1 / snr**2)) @ vectors.T
        before = variance
        variance = 1 / np.sqrt(np.maximum(np.einsum("cs,cs->s", inverse @ gain, gain), 1e-30))
        field = (gain * variance) @ gain.T
        norm = float(np.trace(field)) / arrays.rank
        field, variance = field / norm, variance / norm
        if np.linalg.norm(variance - before) < ELORETA_CHANGE * np.linalg.norm(before):
            break
    return variance / scale**2


class Lcmv(RowGroup):
    """LCMV beamformer (unit noise gain) from the covariance of each case's own window, at several loadings.

    Equal to `rt_mmdf.solvers.lcmv.lcmv_kernel`: tests/evaluation/test_rows.py. A window has fewer samples than there are
    channels, so the covariance is a diagonal and few directions, and no matrix of all channels needs to be inverted.
    """

    rows = ("LCMV",)

    def __init__(self, suite: Suite) -> None:
        self._arrays = [held_out.scene.arrays for held_out in suite.scenes]
        self._leads = [np.ascontiguousarray(arrays.leadfield.T) for arrays in self._arrays]
        self._lengths = [np.sum(arrays.leadfield**2, axis=0) for arrays in self._arrays]

    def images(self, cases: Cases) -> Iterator[Image]:
        n_sources = self._arrays[0].n_sources
        maps = np.empty((len(LCMV_LOADINGS), n_sources, len(cases)), dtype=np.float32)
        for case, number in enumerate(cases.scene):
            maps[:, :, case] = self._image(cases.sample[case], cases.window[case], int(number))
        for loading, at in zip(LCMV_LOADINGS, maps, strict=True):
            yield Image(self.rows[0], loading, at)

    def _image(self, sample: Float32, window: Float32, number: int) -> Float32:
        """(n_loadings, n_sources)."""
        n_channels, n_times = window.shape
        centred = window - window.mean(axis=1, keepdims=True)
        values, vectors = np.linalg.eigh(centred.T @ centred / (n_times - 1))
        kept = values > 1e-5 * values[-1]  # single precision; one direction is lost to the mean
        values = values[kept]
        directions = (centred @ vectors[:, kept]) / np.sqrt(values * (n_times - 1))
        load = np.array(LCMV_LOADINGS, dtype=np.float32)[:, None] * values.sum() / n_channels
        # inverse of the loaded covariance = 1 / load + directions (1 / (values + load) - 1 / load) directions'
        filtered = sample / load + ((1 / (values + load) - 1 / load) * (directions.T @ sample)) @ directions.T
        seen = self._leads[number] @ directions
        np.square(seen, out=seen)
        squared = self._lengths[number] / load**2 + (1 / (values + load) ** 2 - 1 / load**2) @ seen.T
        image = filtered @ self._leads[number].T
        return np.asarray(image / np.sqrt(np.maximum(squared, 1e-30)), dtype=np.float32)


class NetworkRow(RowGroup):
    """A trained network. One that sees windows gets the columns up to the scored instant: live there are no later ones.

    Networks of one modality are shown the channels of that modality alone, whitened without the others.

    Parameters
    ----------
    instant : whether a network that sees windows is given the sample alone: what it knows without its window

    Raises
    ------
    ArtefactError
        It was trained for another head or other channels.
    """

    def __init__(self, suite: Suite, name: str, artefact: Artefact, *, instant: bool = False) -> None:
        self.rows, self.with_amplitude = (name,), frozenset((name,))
        self._n_times = 1 if instant else artefact.n_times
        self._order = check_fit(artefact, suite.nominal)
        network = build_network(artefact.kind, artefact.options, _reordered(suite.scenes[0].scene.arrays, self._order))
        load_weights(network, artefact.weights)
        modality = ONE_MODALITY.get(artefact.kind)
        alone = modality if suite.scenes[0].alone else None
        self._views = [held_out.view(alone) for held_out in suite.scenes]
        self._backends = [
            TorchBackend(network, network.prepare(_reordered(view.arrays, self._order))) for view in self._views
        ]

    def images(self, cases: Cases) -> Iterator[Image]:
        moments = np.empty((len(cases), self._views[0].arrays.n_sources), dtype=np.float32)
        for number, (view, backend) in enumerate(zip(self._views, self._backends, strict=True)):
            for part, first, end in self._parts(cases, number):
                sample = view.of(cases.sample[part])[:, self._order]
                given = None
                if self._n_times > 1:
                    columns = [cases.window[case][:, a:b] for case, a, b in zip(part, first, end, strict=True)]
                    given = np.ascontiguousarray(view.of(np.stack(columns))[:, self._order])
                moments[part] = backend.image_cases(np.ascontiguousarray(sample), given)
        yield Image(self.rows[0], float("nan"), moments.T)

    def _parts(self, cases: Cases, scene: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """Numbers of cases of a scene that see equally many columns, and the columns (first, end) of each."""
        own = np.flatnonzero(cases.scene == scene)
        end = cases.instant[own] + 1
        length = np.minimum(end, self._n_times)
        # a few of the oldest columns less, so that many cases can be imaged at once
        first = end - np.where(length > LENGTH_STEP, length - length % LENGTH_STEP, length)
        for length in np.unique(end - first):
            alike = np.flatnonzero(end - first == length)
            for part in (alike[i : i + NETWORK_BATCH] for i in range(0, len(alike), NETWORK_BATCH)):
                yield own[part], first[part], end[part]


ONE_MODALITY = {"mmdf-eeg": Modality.EEG, "convdip": Modality.EEG, "mmdf-meg": Modality.MEG}
NETWORK_BATCH = 64
LENGTH_STEP = 10  # columns: windows are shortened to multiples of it
INSTANT = "-instant"  # what a row's name ends with where a network that sees windows is given the sample alone


def check_fit(artefact: Artefact, head: HeadModel) -> NDArray[np.intp]:
    """Rows of a head's channels in the order of the network's; names may differ in spaces.

    Networks that are head-free take any head, and its channels as they come.

    Raises
    ------
    ArtefactError
        The network was trained for another head or other channels.
    """
    if artefact.head_free:
        return np.arange(len(head.ch_names))
    place = {name.replace(" ", ""): i for i, name in enumerate(head.ch_names)}
    wanted = [name.replace(" ", "") for name in artefact.channels.names]
    missing = [name for name in wanted if name not in place]
    if missing or len(wanted) != len(place):
        lacking = ", ".join(missing[:5]) or "none"
        raise ArtefactError(
            f"model {artefact.name!r}: it has {len(wanted)} channels, the head model {head.name!r} that it is "
            f"evaluated on has {len(place)}; missing there: {lacking}. Give the head that it was trained for (--head)."
        )
    artefact.check_head(head)
    return np.array([place[name] for name in wanted], dtype=np.intp)


def default_solvers(head: HeadModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Rows that are evaluated where none is named, and the models at hand that do not fit the head.

    All classical rows, every model that fits, and those that see windows once more without.
    """
    rows, others = [*CLASSICAL_ROWS, *ALONE_ROWS], []
    for name in known_models():
        artefact = load_artefact(find_model(name))
        try:
            check_fit(artefact, head)
        except ArtefactError:
            others.append(name)
            continue
        rows += [name] if artefact.n_times == 1 else [name, name + INSTANT]
    return tuple(rows), tuple(others)


def _reordered(arrays: ForwardArrays, order: NDArray[np.intp]) -> ForwardArrays:
    return replace(
        arrays,
        leadfield=np.ascontiguousarray(arrays.leadfield[order]),
        used=arrays.used[order],
        kinds=arrays.kinds[order],
        layout=arrays.layout[order],
    )


def _samples(view: View, cases: Cases, scene: int) -> Float32:
    """(n, n_channels): the samples of one scene as a view has them."""
    return view.of(cases.sample[cases.scene == scene])


def _in_turn(parts: Sequence[Float32], cases: Cases) -> Float32:
    """(n_sources, n_cases): maps of each scene's cases, back in the order of the cases."""
    maps = np.empty((parts[0].shape[0], len(cases)), dtype=np.float32)
    for number, part in enumerate(parts):
        maps[:, cases.scene == number] = part
    return maps


CLASSICAL_ROWS = ("MNE", "dSPM", "sLORETA", "eLORETA", "LCMV")
ALONE_ROWS = {"sLORETA-eeg": Modality.EEG, "sLORETA-meg": Modality.MEG}
SETTINGS = {row: LCMV_LOADINGS if row == "LCMV" else ASSUMED_SNR for row in (*CLASSICAL_ROWS, *ALONE_ROWS)}


def classical_groups(suite: Suite, names: Collection[str]) -> list[RowGroup]:
    """Groups of the classical rows among `names`; rows of one modality are left out where the head has no other.

    MNE has mne's default depth weighting (0.8), without which it prefers the surface; dSPM and sLORETA are normalised
    instead and have none, eLORETA finds its own.
    """
    groups: list[RowGroup] = []
    plain: dict[str, Normalisation] = {}
    if "dSPM" in names:
        plain["dSPM"] = "dSPM"
    if "sLORETA" in names:
        plain["sLORETA"] = "sLORETA"
    if "MNE" in names:
        groups.append(MinimumNorm(suite, {"MNE": "MNE"}, variances=suite.depth))
    if plain:
        groups.append(MinimumNorm(suite, plain))
    if "eLORETA" in names:
        groups.append(ELoreta(suite))
    if "LCMV" in names:
        groups.append(Lcmv(suite))
    for name, modality in ALONE_ROWS.items():
        if name in names and suite.scenes[0].alone:
            groups.append(MinimumNorm(suite, {name: "sLORETA"}, modality))
    return groups


def make_groups(suite: Suite, solvers: Sequence[str]) -> list[RowGroup]:
    """Rows by name: classical ones, and networks by the name or folder of their artefact.

    Raises
    ------
    ArtefactError, ConfigurationError
        A network that is not there, is damaged, does not fit the head, or has no window to be without.
    """
    known = (*CLASSICAL_ROWS, *ALONE_ROWS)
    groups = classical_groups(suite, [name for name in solvers if name in known])
    for name in solvers:
        if name not in known:
            row, artefact, instant = find_network(name)
            groups.append(NetworkRow(suite, row, artefact, instant=instant))
    return groups


def find_network(name: str) -> tuple[str, Artefact, bool]:
    """Name of the row, the model, and whether it is given the sample alone (``fusion-instant``).

    Parameters
    ----------
    name : of a model, or its folder; ``-instant`` after it for a model that sees windows, without its window

    Raises
    ------
    ArtefactError
        There is no such model, or it is damaged.
    ConfigurationError
        The model sees no window that it could be without.
    """
    base = name.removesuffix(INSTANT)
    if base == name or name in known_models() or Path(name).is_dir():
        artefact = load_artefact(find_model(name))
        return artefact.name, artefact, False
    artefact = load_artefact(find_model(base))
    if artefact.n_times == 1:
        raise ConfigurationError(
            f"evaluate: {name}: the model {artefact.name!r} sees one sample, so it has no window to be without; a model "
            f"that sees windows is expected. Evaluate {base} instead."
        )
    return artefact.name + INSTANT, artefact, True


def check_solvers(suite: Suite, solvers: Sequence[str]) -> None:
    """Find out early, and once for all processes, whether the rows can be made; what takes long to make is kept.

    Raises
    ------
    ConfigurationError
        No row, one twice, two models of one name, or a model without a window that it has not.
    ArtefactError
        As `make_groups`.
    """
    if not solvers or len(set(solvers)) < len(solvers):
        raise ConfigurationError(
            f"evaluate: solvers {', '.join(solvers) or 'none'} seen; at least one is expected, each once. Known: "
            f"{', '.join((*CLASSICAL_ROWS, *ALONE_ROWS, *known_models()))}, and folders of artefacts."
        )
    if "eLORETA" in solvers:
        for held_out in suite.scenes:
            _kept_eloreta_variances(held_out.scene.arrays)
    taken = dict.fromkeys((*CLASSICAL_ROWS, *ALONE_ROWS), "a classical row")
    for name in solvers:
        if name not in (*CLASSICAL_ROWS, *ALONE_ROWS):
            row, artefact, _ = find_network(name)
            if row in taken:
                raise ConfigurationError(
                    f"evaluate: the model in {artefact.folder} calls itself {artefact.name!r}, and so does "
                    f"{taken[row]}; rows need names of their own. Evaluate the two apart, or train one of them "
                    "under another name."
                )
            taken[row] = str(artefact.folder)
            check_fit(artefact, suite.nominal)
