"""Units as senders write them, to SI.

Seen on the wire: ``microvolts`` (XDF, BrainVision), ``uV``, ``µV`` with either of Unicode's two signs, ``fT``, ``fT/cm``;
mne-lsl writes numbers instead: powers of ten ("-6", "0", FIFF's ``unit_mul``) whose unit the channel type tells, and FIFF
codes (112 is tesla).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rt_mmdf.core.channels import ChannelType

_PREFIX = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
_WORD_PREFIX = {"femto": "f", "pico": "p", "nano": "n", "micro": "u", "milli": "m", "": ""}
_WORD = re.compile(r"(femto|pico|nano|micro|milli|)(volt|tesla)s?", re.IGNORECASE)
_SYMBOL = re.compile(r"([fpnumFPNU]?)([VvT])(?:/(c|m|)m)?")
_PER = {"": 1.0, "c": 1e2, "m": 1e3}
_FIFF_UNIT = {107: "V", 112: "T", 201: "T/m"}  # FIFF_UNIT_V, FIFF_UNIT_T, FIFF_UNIT_T_M
_NONE = {"", "none", "na", "n/a", "unknown", "unitless", "a.u.", "au"}

KNOWN_UNITS = "V, mV, uV, nV (volts, microvolts, ...); T, mT, uT, nT, pT, fT; T/m, pT/m, fT/m, T/cm, pT/cm, fT/cm"
"""For messages."""


@dataclass(frozen=True)
class Unit:
    """``value * factor`` is in `si`; `si` is ``"V"``, ``"T"``, ``"T/m"``, or None where only the channel type can tell."""

    si: str | None
    factor: float


def parse_unit(text: str) -> Unit | None:
    """Interpret a unit string; None where it says nothing that could be relied upon.

    The case of the prefix m is kept: ``mV`` is a millivolt, ``MV`` is refused.
    """
    plain = text.strip().replace("µ", "u").replace("μ", "u").replace(" ", "")
    if plain.lower() in _NONE:
        return None
    if re.fullmatch(r"[+-]?\d{1,3}", plain):
        code = int(plain)
        if code in _FIFF_UNIT:
            return Unit(_FIFF_UNIT[code], 1.0)
        return Unit(None, 10.0**code) if -18 <= code <= 18 else None
    if word := _WORD.fullmatch(plain):
        return Unit("V" if word[2].lower() == "volt" else "T", _PREFIX[_WORD_PREFIX[word[1].lower()]])
    if symbol := _SYMBOL.fullmatch(plain):
        prefix, base, per = symbol[1].lower(), symbol[2].upper(), symbol[3]
        if per is None:
            return Unit(base, _PREFIX[prefix])
        return Unit("T/m", _PREFIX[prefix] * _PER[per]) if base == "T" else None
    return None


def si_factor(text: str, kind: ChannelType) -> float | None:
    """Factor from `text` to the SI unit of `kind`; None where `text` is unknown or of another dimension."""
    unit = parse_unit(text)
    if unit is None or (unit.si is not None and unit.si != kind.si_unit):
        return None
    return unit.factor
