"""What a session images with: head, noise covariance, projectors and solver, checked against the channels that stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mne

from rt_mmdf.app.intake import grid_rate
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.backends.interface import GpuWatch
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ConfigurationError, HeadModelError, RecordingError
from rt_mmdf.headmodel.head import HeadModel, load_head
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov, read_noise_cov, regularised
from rt_mmdf.headmodel.settings import HeadSettings
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.headmodel.whitener import imaging_info
from rt_mmdf.preprocessing.projectors import make_projectors, read_projections
from rt_mmdf.preprocessing.whitening import OperatorKey
from rt_mmdf.runtime.worker import Worker
from rt_mmdf.solvers.artefact import ORIENTATION, Artefact, find_model, load_artefact
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.lcmv import DataCovariance
from rt_mmdf.solvers.linear import SolverSettings
from rt_mmdf.solvers.operators import build_beamformer, build_operator

if TYPE_CHECKING:
    from rt_mmdf.backends.choice import Choice
    from rt_mmdf.solvers.network import TrainedNetwork

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Imaging:
    """Everything that operators are built from. Nothing in it changes but the data covariance, so any thread may build.

    channels : those that stream and that the head covers
    not_imaged : names of streaming EEG and MEG channels that the head lacks
    model : the trained network, where one is imaged with
    data_cov : running covariance of the data, for LCMV
    """

    head: HeadModel
    channels: Channels
    not_imaged: tuple[str, ...]
    noise_cov: mne.Covariance
    projectors: tuple[mne.Projection, ...]
    solver: SolverSettings
    bads: tuple[str, ...]
    model: TrainedNetwork | None = None
    data_cov: DataCovariance | None = None

    @classmethod
    def prepare(
        cls,
        settings: SessionSettings,
        streaming: Channels,
        progress: Progress | None = None,
        rates: Mapping[Modality, float] | None = None,
    ) -> Imaging:
        """Load or build what the configuration names, for the EEG and MEG channels that stream.

        Parameters
        ----------
        rates : of the streams, Hz; for solvers that look at more than one sample

        Raises
        ------
        ConfigurationError, HeadModelError, NoiseCovarianceError, ArtefactError
            Something cannot be read or does not fit the channels.
        """
        artefact = _artefact_of(settings, streaming)
        head = _head_of_session(settings, artefact, streaming, progress).named_like(streaming.names)
        not_imaged = head.missing(streaming.names)
        channels = streaming.pick([i for i, name in enumerate(streaming.names) if name not in set(not_imaged)])
        if len(channels) == 0:
            head.require(streaming.names)
        if not_imaged:
            logger.warning(
                "%d of %d streaming channels are not in head model %r and are not imaged (%s)",
                len(not_imaged),
                len(streaming),
                head.name,
                ", ".join(not_imaged[:5]),
            )
        absent = [
            name
            for name, kind in zip(head.ch_names, head.channels.types, strict=True)
            if kind.modality in streaming.modalities and name not in channels
        ]
        if absent:
            logger.warning(
                "%d of the %d channels of head model %r do not stream (%s); imaging goes on without them",
                len(absent),
                len(head.ch_names),
                head.name,
                ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else ""),
            )
        bads = settings.preprocessing.bads
        if unknown := [name for name in bads if name not in streaming]:
            raise ConfigurationError(
                f"preprocessing.bads: {', '.join(unknown)} are not among the {len(streaming)} channels that stream "
                f"({', '.join(streaming.names[:3])}, ...). Correct the names, or take them out."
            )
        good = [name for name in channels.names if name not in bads]
        own = None if artefact is None else _noise_of_model(settings, artefact, head, channels)
        path = settings.preprocessing.projections
        ssp = [] if path is None else read_projections(path, "preprocessing.projections")
        ssp = ssp or ([] if own is None else list(own["projs"]))
        projectors = make_projectors(channels, ssp, settings.preprocessing.average_reference)
        if own is not None:
            noise_cov = own
        elif settings.noise.file is None:
            noise_cov = ad_hoc_noise_cov(channels)
        else:
            measured = read_noise_cov(settings.noise.file, good)
            noise_cov = regularised(measured, imaging_info(head.info, good, projectors), settings.noise.regularisation)
        imaging = cls(head, channels, not_imaged, noise_cov, tuple(projectors), settings.solver, bads)
        return imaging._with_solver(settings, artefact, rates)

    def beside(self, settings: SessionSettings, rates: Mapping[Modality, float]) -> Imaging:
        """What another solver, that of these settings, images the same cleaned sensors with.

        Head, noise covariance and projectors are those of the first solver, so that nothing but the solvers differs; a
        model that knows only its own head and noise brings these, if the head has the same sources.

        Raises
        ------
        ConfigurationError, HeadModelError, NoiseCovarianceError, ArtefactError
            The solver cannot be had, or does not fit the head.
        """
        artefact = _artefact_of(settings, self.channels)
        first = replace(self, solver=settings.solver, model=None, data_cov=None)
        if artefact is not None and not artefact.head_free:
            artefact.check_head(self.head)
            head = artefact.load_head().named_like(self.channels.names)
            head.require(self.channels.names)
            if (noise_cov := _noise_of_model(settings, artefact, head, self.channels)) is None:
                raise ConfigurationError(
                    f"second_solver.model = {settings.solver.model!r}: it was not trained with all of the "
                    f"{len(self.channels)} channels that are imaged, and sees the sensors through its own noise covariance "
                    "only. Take a model for any head and noise (its card says so), or a classical inverse."
                )
            average = settings.preprocessing.average_reference
            projectors = tuple(make_projectors(self.channels, list(noise_cov["projs"]), average))
            first = replace(first, head=head, noise_cov=noise_cov, projectors=projectors)
        return first._with_solver(settings, artefact, rates)

    def _with_solver(
        self, settings: SessionSettings, artefact: Artefact | None, rates: Mapping[Modality, float] | None
    ) -> Imaging:
        """The same with what the solver of the settings needs beside it."""
        if artefact is None and settings.solver.method != "LCMV":
            return self
        channels = self.channels
        sfreq = grid_rate(settings, ((rates or {})[m] for m in channels.modalities)) / settings.preprocessing.decimate
        if artefact is None:
            return replace(self, data_cov=DataCovariance(channels, settings.solver.lcmv, sfreq))
        projectors = list(self.projectors)
        network = _trained_network(settings, artefact, self.head, channels, self.noise_cov, projectors, sfreq)
        return replace(self, model=network)

    @property
    def solver_name(self) -> str:
        """Of the model, or of the classical inverse."""
        return self.solver.method if self.model is None else self.model.artefact.name

    @property
    def orientation(self) -> str:
        """Of the sources, in words."""
        if self.model is not None or self.solver.orientation == "fixed":
            return ORIENTATION
        return f"loose {self.solver.loose:g}, pooled"

    @property
    def model_facts(self) -> dict[str, Any] | None:
        """What identifies the model, where one is imaged with."""
        if self.model is None:
            return None
        artefact = self.model.artefact
        return {
            "name": artefact.name,
            "network": artefact.kind,
            "weights": artefact.n_weights,
            "weights_sha256": artefact.weights_sha256,
            "folder": str(artefact.folder),
            **(self.model_status or {}),
            "choice": None if self.model.choice is None else self.model.choice.as_dict(),
            "window_choice": None if self.model.window_choice is None else self.model.window_choice.as_dict(),
        }

    @property
    def model_status(self) -> dict[str, Any] | None:
        """How the model is doing: ``model`` of `rt_mmdf.sinks.health`."""
        if self.model is None:
            return None
        refreshed = self.model.refreshed
        return {
            "backend": _told(self.model.choice),
            "window_backend": _told(self.model.window_choice) if self.model.artefact.n_times > 1 else None,
            "gpu_ms": self.model.gpu_watch.as_dict() if self.model.gpu_watch else None,
            "lag_ms": self.model.lag_ms,
            "windows": refreshed.taken,
            "late_windows": refreshed.late,
        }

    def workers(self, on_failure: Callable[[], None]) -> list[Worker]:
        """The thread that looks at windows for a model whose solver lags; not yet started."""
        if self.model is None or self.model.lag_ms == 0:
            return []
        return [self.model.background.worker(f"windows of {self.solver_name}", on_failure)]

    @contextmanager
    def tried_out(self) -> Iterator[None]:
        """With its threads while it is tried out before the start; afterwards nothing has been counted."""
        with ExitStack() as threads:
            for worker in self.workers(lambda: None):
                threads.enter_context(worker)
            yield
        if self.model is not None:
            self.model.background.alone()
            self.model.refreshed.clear()

    def window_length(self, hop: int) -> int:
        """Samples that the solver wants to see when `hop` are imaged at once."""
        return hop if self.model is None else self.model.window_length(hop)

    def window_samples(self, settings: SessionSettings, hop: int, sfreq: float) -> int:
        """Samples that the solver sees: as configured, but never less than its model was trained to see.

        Parameters
        ----------
        hop, sfreq : of what is imaged, after decimation
        """
        n_samples = self.window_length(hop)
        if settings.window_ms is not None:
            n_samples = max(n_samples, round(settings.window_ms * 1e-3 * sfreq))
        return n_samples

    def full_key(self) -> OperatorKey:
        """What is imaged with when all modalities are there and no channel has gone bad."""
        return OperatorKey.of(self.channels, self.bads, ())

    def keys_in_advance(self) -> list[OperatorKey]:
        """What may be wanted from one moment to the next: each modality alone."""
        modalities = self.channels.modalities
        return [OperatorKey.of(self.channels, self.bads, (m,)) for m in modalities if len(modalities) > 1]

    def build(self, key: OperatorKey, *, at_once: bool = False) -> Operator | None:
        """Whitener and solver for one set of channels; SolverError or NoiseCovarianceError where there can be none.

        None: there will be one, when there are data enough. `at_once`: see `TrainedNetwork.build_operator`.
        """
        if self.model is not None:
            return self.model.build_operator(key.bads, key.missing, at_once=at_once)
        if self.data_cov is not None:
            if (known := self.data_cov.covariance(key.missing)) is None:
                return None
            return build_beamformer(
                self.head, self.channels, self.noise_cov, known[0], self.projectors, self.solver, key.bads, key.missing
            )
        return build_operator(self.head, self.channels, self.noise_cov, self.projectors, self.solver, key.bads, key.missing)


def _artefact_of(settings: SessionSettings, streaming: Channels) -> Artefact | None:
    if settings.solver.model is None:
        return None
    artefact = load_artefact(find_model(settings.solver.model))
    artefact.check_channels(streaming)
    return artefact


def _head_of_session(
    settings: SessionSettings, artefact: Artefact | None, streaming: Channels, progress: Progress | None
) -> HeadModel:
    """The head of the configuration; without one, that of the model."""
    if artefact is None:
        return load_or_build_head(settings.head, streaming, progress)
    if "head" not in settings.model_fields_set:
        logger.info("no [head] is configured: the head of model %r is used (%s)", artefact.name, artefact.head_name)
        return artefact.load_head(progress)
    head = load_or_build_head(settings.head, streaming, progress)
    if artefact.head_free:
        return head
    artefact.check_head(head)
    return artefact.load_head(progress)  # the same, its channels in the order in which the network knows them


def _noise_of_model(
    settings: SessionSettings, artefact: Artefact, head: HeadModel, channels: Channels
) -> mne.Covariance | None:
    """Noise covariance of the model with its projectors, by the names of the channels; None where it is not to be used."""
    configured = {"noise.file": settings.noise.file, "preprocessing.projections": settings.preprocessing.projections}
    given = [key for key, path in configured.items() if path is not None]
    if given and not artefact.head_free:
        raise ConfigurationError(
            f"{' and '.join(given)}: model {artefact.name!r} sees the sensors through the whitener that it was trained "
            "with, and no other. Leave it out, take a model for any noise (its card says so), or train one with this noise: "
            "rt-mmdf train --help"
        )
    if settings.noise.file is not None:
        return None
    own = artefact.noise_cov.copy()
    wanted = {name.replace(" ", ""): name for name in head.ch_names}
    names = {name: wanted.get(name.replace(" ", ""), name) for name in own["names"]}
    own["names"] = [names[name] for name in own["names"]]
    for proj in own["projs"]:
        proj["data"]["col_names"] = [names.get(name, name) for name in proj["data"]["col_names"]]
    if lacking := [name for name in channels.names if name not in set(own["names"])]:
        logger.warning(
            "no noise covariance is configured, and that of model %r lacks %d of the %d channels (%s): typical noise "
            "of each channel type is assumed. Measure it: rt-mmdf calibrate",
            artefact.name,
            len(lacking),
            len(channels),
            ", ".join(lacking[:5]),
        )
        return None
    if artefact.head_free:
        logger.warning(
            "no noise covariance is configured: that of model %r is used, which knows nothing of this room. Measure it: "
            "rt-mmdf calibrate",
            artefact.name,
        )
    else:
        logger.info("the noise covariance of model %r is used", artefact.name)
    return own


def _trained_network(
    settings: SessionSettings,
    artefact: Artefact,
    head: HeadModel,
    channels: Channels,
    noise_cov: mne.Covariance,
    projectors: list[mne.Projection],
    sfreq: float,
) -> TrainedNetwork:
    band, window_sfreq = settings.preprocessing.filters.band_pass, artefact.window_sfreq
    if artefact.n_times > 1 and (band.high_hz is None or band.high_hz > window_sfreq / 2):
        seen = "none" if band.high_hz is None else f"{band.high_hz:g}"
        raise ConfigurationError(
            f"preprocessing.filters.band_pass.high_hz = {seen}: model {artefact.name!r} looks at a window of "
            f"{window_sfreq:g} Hz, in which higher frequencies fold back; at most {window_sfreq / 2:g} is expected. "
            + ("Lower it." if artefact.high_hz is None else f"It was trained up to {artefact.high_hz:g}: set that.")
        )
    if (band.low_hz, band.high_hz) != (artefact.low_hz, artefact.high_hz):
        logger.warning(
            "model %r was trained on %s to %s Hz; the filters pass %s to %s Hz",
            artefact.name,
            *(f"{edge:g}" if edge is not None else "any" for edge in (artefact.low_hz, artefact.high_hz)),
            *(f"{edge:g}" if edge is not None else "any" for edge in (band.low_hz, band.high_hz)),
        )
    if artefact.n_times > 1 and sfreq < 0.7 * window_sfreq:
        logger.warning(
            "model %r looks at a window of %g Hz; the streams have %g Hz only", artefact.name, window_sfreq, sfreq
        )
    from rt_mmdf.solvers.network import TrainedNetwork  # imports torch, which a classical solver has no need of

    return TrainedNetwork(
        artefact,
        head,
        channels,
        noise_cov,
        projectors,
        bads=settings.preprocessing.bads,
        sfreq=sfreq,
        refresh_ms=settings.solver.refresh_ms,
        lag_ms=settings.solver.lag_ms,
        backend=settings.solver.backend,
        precision=settings.solver.precision,
        gpu_watch=GpuWatch(settings.solver.nvtx) if settings.solver.gpu_times else None,
    )


def _told(choice: Choice | None) -> dict[str, Any]:
    """A backend as the status has it; without a choice it is torch."""
    told: dict[str, Any] = {"name": "torch", "precision": "fp32", "device": "cpu", "fallen_back": None}
    return told if choice is None else {key: value for key, value in choice.as_dict().items() if key in told}


def load_or_build_head(settings: HeadSettings, streaming: Channels, progress: Progress | None = None) -> HeadModel:
    """The head of the configuration: from its folder, or the template for the channels that stream."""
    if settings.folder is not None:
        return load_head(settings.folder)
    info = None if settings.recording is None else _read_info(settings)
    eeg_names = None
    eeg = [streaming.names[i] for i in streaming.of_type(ChannelType.EEG)]
    if info is None and settings.eeg != "mgh60" and eeg:
        try:
            known = set(mne.channels.make_standard_montage(settings.eeg).ch_names)
        except ValueError as error:
            raise HeadModelError(f"head.eeg = {settings.eeg!r}: mne knows no such montage ({error}).") from error
        eeg_names = [name for name in eeg if name in known]
        if not eeg_names:
            raise HeadModelError(
                f"head.eeg = {settings.eeg!r}: none of the {len(eeg)} electrodes that stream ({', '.join(eeg[:5])}, ...) is "
                "in that montage. Choose the montage of your cap, or rename channels under [acquisition.eeg.rename]."
            )
    return build_template(
        spacing=settings.spacing, info=info, meg=settings.meg, eeg=settings.eeg, eeg_names=eeg_names, progress=progress
    )


def _read_info(settings: HeadSettings) -> mne.Info:
    try:
        return mne.io.read_raw(settings.recording, verbose="ERROR").info
    except Exception as error:  # mne's readers fail in many ways
        raise RecordingError(
            f"head.recording {settings.recording}: cannot be read ({type(error).__name__}: {error})."
        ) from error
