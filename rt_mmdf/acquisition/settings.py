"""Which stream to listen to, and how to read what it does not say itself."""

from __future__ import annotations

from datetime import date
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rt_mmdf.acquisition.units import KNOWN_UNITS, parse_unit
from rt_mmdf.core.channels import ChannelType
from rt_mmdf.core.settings import Settings

StampHabit = Literal["per_sample", "first_of_block", "last_of_block", "arrival"]
MAX_LAG_MS = 1000.0
"""The other streams wait in memory for one that lags."""


class StreamSettings(Settings):
    """One stream, ``[acquisition.<stream>]``.

    Parameters
    ----------
    name, type, source_id, hostname : str | None
        What the stream must match exactly; at least one. Anything on the network can publish: give more where it matters.
    stamps : str
        How the device stamps: each sample, or one instant for a whole block (that of its first or last sample).
        ``"arrival"``: its stamps are not used at all, for they are broken; samples are numbered by counting them and timed
        by when they arrive, see `rt_mmdf.alignment.arrival`.
    units : str | dict of str to str | None
        Units where the stream gives none or wrong ones: one for all imaged channels, or by channel name or channel type.
    rename : dict of str to str
        From names on the wire to names of the head model.
    types : dict of str to ChannelType
        By name on the wire, where the stream gives none or wrong ones.
    exclude : tuple of str
        Names on the wire that are not imaged and not kept.
    lag_ms : float | None
        The device's own lag: how much later than the truth its stamps are. The true time of a sample is ``stamp - lag``:
        with ``lag_ms = 35.2``, what carries the stamp 10.0352 s happened at 10.0000 s. Negative where stamps come too early.
        None: unknown, and nothing is subtracted. LSL cannot see it; ``rt-mmdf calibrate CONFIG --sync`` measures it and
        writes this key and the next five.
    lag_uncertainty_ms : float | None
        Two standard deviations of it.
    lag_drift_ppm : float | None
        What it drifted by while it was measured, where that was beyond doubt: its stamps are wrong. It is told, not
        corrected; ``stamps = "arrival"`` is the way out.
    lag_against : str | None
        What it was measured against: ``"meg"`` (another stream here, whose own lag it leaves open), or ``"markers NAME"``.
    lag_measured : date | None
        When.
    lag_device : str | None
        With which device, ``"NAME / SOURCE_ID"``, and which `stamps` where they are not per sample (``"NAME / SOURCE_ID /
        arrival"``): for another one the lag is not used, with a warning. None: for any.
    resolve_timeout_s : float
        How long to look for the stream at the start.
    buffer_s : float
        What is kept for a reader that is late, here and in liblsl.
    """

    name: str | None = None
    type: str | None = None
    source_id: str | None = None
    hostname: str | None = None
    stamps: StampHabit = "per_sample"
    units: dict[str, str] | str | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    types: dict[str, ChannelType] = Field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    lag_ms: float | None = Field(None, ge=-MAX_LAG_MS, le=MAX_LAG_MS)
    lag_uncertainty_ms: float | None = Field(None, ge=0, allow_inf_nan=False)
    lag_drift_ppm: float | None = Field(None, allow_inf_nan=False)
    lag_against: str | None = None
    lag_measured: date | None = None
    lag_device: str | None = None
    resolve_timeout_s: float = Field(5.0, ge=0, le=3600)
    buffer_s: float = Field(10.0, gt=0, le=600)

    @field_validator("units")
    @classmethod
    def _known(cls, units: dict[str, str] | str | None) -> dict[str, str] | str | None:
        for text in units.values() if isinstance(units, dict) else [units] if units is not None else []:
            if parse_unit(text) is None:
                raise ValueError(f"unit {text!r} is not known; known are {KNOWN_UNITS}")
        return units

    @model_validator(mode="after")
    def _identified(self) -> Self:
        if all(value is None for value in (self.name, self.type, self.source_id, self.hostname)):
            raise ValueError(
                "a stream needs at least one of name, type, source_id, hostname; `rt-mmdf streams` lists what there is"
            )
        return self

    def wanted(self) -> str:
        """What is looked for, for messages."""
        keys = ("name", "type", "source_id", "hostname")
        return ", ".join(f"{key} {getattr(self, key)!r}" for key in keys if getattr(self, key) is not None)
