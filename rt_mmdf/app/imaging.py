"""What a session images with: head, noise covariance, projectors and solver, checked against the channels that stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import mne

from rt_mmdf.app.settings import HeadSettings, SessionSettings
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import ConfigurationError, HeadModelError, RecordingError
from rt_mmdf.headmodel.head import HeadModel, load_head
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov, read_noise_cov, regularised
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.headmodel.whitener import imaging_info
from rt_mmdf.preprocessing.projectors import make_projectors
from rt_mmdf.preprocessing.whitening import OperatorKey
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.linear import SolverSettings
from rt_mmdf.solvers.operators import build_operator

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Imaging:
    """Everything that operators are built from. Nothing in it changes, so any thread may build.

    channels : those that stream and that the head covers
    not_imaged : names of streaming EEG and MEG channels that the head lacks
    """

    head: HeadModel
    channels: Channels
    not_imaged: tuple[str, ...]
    noise_cov: mne.Covariance
    projectors: tuple[mne.Projection, ...]
    solver: SolverSettings
    bads: tuple[str, ...]

    @classmethod
    def prepare(cls, settings: SessionSettings, streaming: Channels, progress: Progress | None = None) -> Imaging:
        """Load or build what the configuration names, for the EEG and MEG channels that stream.

        Raises
        ------
        ConfigurationError, HeadModelError, NoiseCovarianceError
            Something cannot be read or does not fit the channels.
        """
        head = load_or_build_head(settings.head, streaming, progress).named_like(streaming.names)
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
        projectors = make_projectors(channels, _read_projections(settings), settings.preprocessing.average_reference)
        good = [name for name in channels.names if name not in bads]
        if settings.noise.file is None:
            noise_cov = ad_hoc_noise_cov(channels)
        else:
            measured = read_noise_cov(settings.noise.file, good)
            noise_cov = regularised(measured, imaging_info(head.info, good, projectors), settings.noise.regularisation)
        return cls(head, channels, not_imaged, noise_cov, tuple(projectors), settings.solver, bads)

    def full_key(self) -> OperatorKey:
        """What is imaged with when all modalities are there and no channel has gone bad."""
        return OperatorKey.of(self.channels, self.bads, ())

    def keys_in_advance(self) -> list[OperatorKey]:
        """What may be wanted from one moment to the next: each modality alone."""
        modalities = self.channels.modalities
        return [OperatorKey.of(self.channels, self.bads, (m,)) for m in modalities if len(modalities) > 1]

    def build(self, key: OperatorKey) -> Operator:
        """Whitener and solver for one set of channels; SolverError or NoiseCovarianceError where there can be none."""
        return build_operator(self.head, self.channels, self.noise_cov, self.projectors, self.solver, key.bads, key.missing)


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


def _read_projections(settings: SessionSettings) -> list[mne.Projection]:
    path = settings.preprocessing.projections
    if path is None:
        return []
    try:
        if path.name.endswith(("proj.fif", "proj.fif.gz")):
            return list(mne.read_proj(path, verbose="ERROR"))
        return list(mne.io.read_raw(path, verbose="ERROR").info["projs"])
    except Exception as error:  # mne's readers fail in many ways
        raise ConfigurationError(
            f"preprocessing.projections {path}: no projections can be read from it ({type(error).__name__}: {error}). "
            "Expected is a -proj.fif, or a recording that holds them."
        ) from error
