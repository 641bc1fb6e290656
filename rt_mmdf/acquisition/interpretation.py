"""What the channels of a stream are: names, types and the factor that makes their values SI."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.acquisition.units import KNOWN_UNITS, parse_unit, si_factor
from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import ConfigurationError, StreamDescriptionError
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription

_TYPES = {
    ChannelType.EEG: ("eeg", "eegref", "ieeg_scalp"),
    ChannelType.MAG: ("mag", "megmag", "magnetometer", "magnetometers", "meg_mag", "opm"),
    ChannelType.GRAD: ("grad", "meggrad", "gradiometer", "gradiometers", "meg_grad", "megplanar", "planar"),
    ChannelType.REF_MEG: ("ref_meg", "refmeg", "megref", "megrefmag", "megrefgrad", "meg_ref"),
    ChannelType.EOG: ("eog", "veog", "heog"),
    ChannelType.ECG: ("ecg", "ekg"),
    ChannelType.EMG: ("emg",),
    ChannelType.STIM: ("stim", "sti", "trig", "trigger", "triggers", "marker", "markers", "event"),
}
_TYPE = {alias: kind for kind, aliases in _TYPES.items() for alias in aliases}
_NEUROMAG = re.compile(r"MEG ?\d{3}([123])")


@dataclass(frozen=True)
class Selected:
    """Some channels of a stream: which columns of a sample, and what each is multiplied with to be SI.

    columns : (n_channels,) int
    factors : (n_channels,) float64; NaN for a channel that the stream does not have
    """

    channels: Channels
    columns: NDArray[np.intp]
    factors: Float64

    def to_si(self, samples: NDArray[np.generic]) -> NDArray[np.float32]:
        """``(n_times, all channels)`` off the wire to ``(n_times, n_channels)`` float32 in SI units, through float64."""
        with np.errstate(over="ignore", invalid="ignore"):  # a value beyond float32 becomes inf, and is counted as such
            return (samples[:, self.columns].astype(np.float64) * self.factors).astype(np.float32)

    def arranged_as(self, wanted: Channels) -> Selected:
        """The same channels in the order of `wanted`; those that are not here give NaN."""
        here = {(name, kind): i for i, (name, kind) in enumerate(zip(self.channels.names, self.channels.types, strict=True))}
        at = [here.get(own, -1) for own in zip(wanted.names, wanted.types, strict=True)]
        columns = np.array([self.columns[i] if i >= 0 else 0 for i in at], dtype=np.intp)
        factors = np.array([self.factors[i] if i >= 0 else np.nan for i in at], dtype=np.float64)
        return Selected(wanted, columns, factors)


@dataclass(frozen=True)
class Interpretation:
    """The channels of one stream: those that are imaged, and the others (EOG, triggers, miscellaneous), in the stream's
    order.
    """

    imaged: Selected
    others: Selected


def interpret(description: StreamDescription, settings: StreamSettings, label: str) -> Interpretation:
    """Read names, types and units of a stream.

    Types come from ``settings.types``, else from the channel, else from the type of the stream. A channel that is just
    "MEG" is a magnetometer or a gradiometer by its unit, else by Neuromag's numbering (MEG xxx1 is a magnetometer). Units
    come from ``settings.units``, else from the channel.

    Raises
    ------
    StreamDescriptionError
        Names occur twice, types cannot be told, an imaged channel has no unit or one of the wrong kind, no channel is
        imaged, or the sampling rate is 0.
    ConfigurationError
        The configuration names channels that this stream does not have.
    """
    where = f"acquisition.{label}: stream {description.name!r}"
    if not description.sfreq > 0:
        raise StreamDescriptionError(
            f"{where} has the sampling rate {description.sfreq:g}; sensors need a regular one (above 0 Hz). It may be a "
            "stream of markers: choose another one, or correct the rate in the sending program."
        )
    if description.dtype == "string":
        raise StreamDescriptionError(
            f"{where} sends text; sensors need numbers. It may be a stream of markers: choose another one."
        )
    wire = description.channels
    wire_names = [
        channel.name or f"{(channel.type or description.type or 'CH').upper()}{i + 1:03d}" for i, channel in enumerate(wire)
    ]
    for key, given in (("rename", settings.rename), ("types", settings.types), ("exclude", settings.exclude)):
        if unknown := [name for name in given if name not in wire_names]:
            raise ConfigurationError(
                f"acquisition.{label}.{key}: {_some(unknown)} not in stream {description.name!r}, which has "
                f"{_some(wire_names)}"
            )
    kept = [i for i, name in enumerate(wire_names) if name not in settings.exclude]
    names = [settings.rename.get(wire_names[i], wire_names[i]) for i in kept]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise StreamDescriptionError(
            f"{where}: names that occur more than once: {_some(twice)}; unique names are expected. Rename them in the "
            f"sending program, or leave them out with exclude under [acquisition.{label}]."
        )
    type_texts = [wire[i].type or description.type for i in kept]
    if isinstance(settings.units, dict):
        understood = {*names, *wire_names, *ChannelType, *(text.lower() for text in type_texts)}
        if unknown := [key for key in settings.units if key not in understood]:
            raise ConfigurationError(
                f"acquisition.{label}.units: {_some(unknown)}: neither a channel of stream {description.name!r} nor a "
                f"channel type ({', '.join(ChannelType)})"
            )
    kinds = [
        settings.types.get(wire_names[i])
        or _kind(text, name, _unit_text(settings, wire[i], name, wire_names[i], text.lower()))
        for i, name, text in zip(kept, names, type_texts, strict=True)
    ]
    if unclear := [name for name, kind in zip(names, kinds, strict=True) if kind is None]:
        raise StreamDescriptionError(
            f"{where}: {_some(unclear)} of type 'MEG': neither unit nor name tells magnetometers from gradiometers. Set "
            f'types under [acquisition.{label}], for example types = {{"{unclear[0]}" = "mag"}}.'
        )
    types = [kind for kind in kinds if kind is not None]
    units = [
        _unit_text(settings, wire[i], name, wire_names[i], kind, text.lower())
        for i, name, kind, text in zip(kept, names, types, type_texts, strict=True)
    ]
    factors = [si_factor(unit, kind) for unit, kind in zip(units, types, strict=True)]
    imaged = [j for j, kind in enumerate(types) if kind.modality is not None]
    if not imaged:
        seen = sorted({channel.type or description.type or "(none)" for channel in wire})
        raise StreamDescriptionError(
            f"{where}: none of its {len(wire)} channels is EEG or MEG (types seen: {_some(seen)}). Choose another "
            f"stream, or set types under [acquisition.{label}]."
        )
    for kind in dict.fromkeys(types[j] for j in imaged):
        if wrong := [j for j in imaged if types[j] is kind and factors[j] is None]:
            seen = sorted({units[j] or "(none)" for j in wrong})
            raise StreamDescriptionError(
                f"{where}: {len(wrong)} {kind} channels ({_some([names[j] for j in wrong])}) have the unit "
                f"{_some(seen)}, which cannot be read as {kind.si_unit}. Known units: {KNOWN_UNITS}. Correct the sending "
                "program, or set the true "
                f'unit under [acquisition.{label}], for example units = {{{kind} = "{_EXAMPLE[kind.si_unit]}"}}.'
            )
    others = [j for j, kind in enumerate(types) if kind.modality is None]
    positions = np.array([wire[i].position or (np.nan,) * 3 for i in kept], dtype=np.float64)
    everything = Channels(tuple(names), tuple(types), positions if np.isfinite(positions).any() else None)

    def select(chosen: list[int]) -> Selected:
        return Selected(
            everything.pick(chosen),
            np.array([kept[j] for j in chosen], dtype=np.intp),
            np.array([1.0 if factors[j] is None else factors[j] for j in chosen], dtype=np.float64),
        )

    return Interpretation(select(imaged), select(others))


def as_far_as_it_goes(settings: StreamSettings, description: StreamDescription) -> StreamSettings:
    """The settings without what they say of single channels that this stream does not have: for one that has come back."""
    names = {channel.name for channel in description.channels}
    renamed = {wire: own for wire, own in settings.rename.items() if wire in names}
    units = settings.units
    if isinstance(units, dict):
        kinds = {*ChannelType, *(channel.type.lower() for channel in description.channels), description.type.lower()}
        units = {key: unit for key, unit in units.items() if key in names | set(renamed.values()) | kinds}
    return settings.model_copy(
        update={
            "rename": renamed,
            "types": {wire: kind for wire, kind in settings.types.items() if wire in names},
            "exclude": tuple(wire for wire in settings.exclude if wire in names),
            "units": units,
        }
    )


_EXAMPLE = {"V": "uV", "T": "fT", "T/m": "fT/cm"}


def _kind(type_text: str, name: str, unit_text: str) -> ChannelType | None:
    """Type of a channel; MISC where nobody would image it, None where it is some MEG channel."""
    plain = re.sub(r"[\s-]+", "_", type_text.strip().lower())
    if plain != "meg":
        return _TYPE.get(plain) or _TYPE.get(plain.replace("_", "")) or ChannelType.MISC
    unit = parse_unit(unit_text)
    if unit is not None and unit.si is not None:
        return {"T": ChannelType.MAG, "T/m": ChannelType.GRAD}.get(unit.si)
    if number := _NEUROMAG.fullmatch(name):
        return ChannelType.MAG if number[1] == "1" else ChannelType.GRAD
    return None


def _unit_text(settings: StreamSettings, channel: ChannelDescription, *keys: str) -> str:
    """The configured unit of the first key that has one, else the channel's own."""
    if isinstance(settings.units, dict):
        return next((settings.units[key] for key in keys if key in settings.units), channel.unit)
    return settings.units or channel.unit


def _some(texts: list[str]) -> str:
    shown = ", ".join(repr(text) for text in texts[:5])
    return shown if len(texts) <= 5 else f"{shown} and {len(texts) - 5} more"
