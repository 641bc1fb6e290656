"""Channels: names, types and positions, in one place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import StreamDescriptionError


class Modality(StrEnum):
    """A family of sensors with a clock of its own."""

    EEG = "eeg"
    MEG = "meg"


class ChannelType(StrEnum):
    """MNE's names of the channel types that matter here. Only EEG, MAG and GRAD are imaged."""

    EEG = "eeg"
    MAG = "mag"
    GRAD = "grad"
    REF_MEG = "ref_meg"
    EOG = "eog"
    ECG = "ecg"
    EMG = "emg"
    STIM = "stim"
    MISC = "misc"

    @property
    def modality(self) -> Modality | None:
        """Modality that is imaged from such a channel; None if it is not imaged."""
        return _MODALITY.get(self)

    @property
    def si_unit(self) -> str:
        """SI unit of the data of such a channel (``""`` where there is none)."""
        return _SI_UNIT.get(self, "V" if self in _VOLTS else "")


_MODALITY = {ChannelType.EEG: Modality.EEG, ChannelType.MAG: Modality.MEG, ChannelType.GRAD: Modality.MEG}
_SI_UNIT = {ChannelType.MAG: "T", ChannelType.REF_MEG: "T", ChannelType.GRAD: "T/m"}
_VOLTS = {ChannelType.EEG, ChannelType.EOG, ChannelType.ECG, ChannelType.EMG, ChannelType.STIM}


@dataclass(frozen=True)
class Channels:
    """An ordered set of channels.

    Parameters
    ----------
    names : tuple of str
        Unique names.
    types : tuple of ChannelType
        One per name.
    positions : (n_channels, 3) array | None
        Metres, in the frame in which the source of the description gave them; NaN where unknown.
    """

    names: tuple[str, ...]
    types: tuple[ChannelType, ...]
    positions: NDArray[np.float64] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.types):
            raise StreamDescriptionError(
                f"channels: {len(self.names)} names but {len(self.types)} types; one type per name is expected"
            )
        if self.positions is not None and self.positions.shape != (len(self.names), 3):
            raise StreamDescriptionError(
                f"channels: positions of shape {self.positions.shape}; ({len(self.names)}, 3) is expected, NaN where unknown"
            )
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise StreamDescriptionError(
                f"channels: {len(twice)} names occur more than once ({', '.join(twice[:5])}); unique names are "
                "expected. Rename them in the amplifier, or choose another stream."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Channels) -> Channels:
        positions = None
        if self.positions is not None or other.positions is not None:
            positions = np.vstack(
                [c.positions if c.positions is not None else np.full((len(c), 3), np.nan) for c in (self, other)]
            )
        return Channels(self.names + other.names, self.types + other.types, positions)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def indices(self, names: Iterable[str]) -> NDArray[np.intp]:
        """Positions of `names` in this order; KeyError for a name that is not there."""
        return np.array([self._index[name] for name in names], dtype=np.intp)

    def pick(self, indices: Sequence[int] | NDArray[np.intp]) -> Channels:
        """The channels at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        return Channels(
            tuple(self.names[i] for i in chosen),
            tuple(self.types[i] for i in chosen),
            None if self.positions is None else self.positions[chosen],
        )

    def of_modality(self, modality: Modality) -> NDArray[np.intp]:
        """Indices of the channels that are imaged for `modality`."""
        return np.array([i for i, kind in enumerate(self.types) if kind.modality is modality], dtype=np.intp)

    def of_type(self, kind: ChannelType) -> NDArray[np.intp]:
        """Indices of the channels of one type."""
        return np.array([i for i, own in enumerate(self.types) if own is kind], dtype=np.intp)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The imaged modalities that have at least one channel here, EEG first."""
        return tuple(m for m in Modality if any(kind.modality is m for kind in self.types))
