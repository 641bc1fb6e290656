"""What an engine publishes, found on the network and read as what it is: the word of somebody who cannot be authenticated.

Everything that is taken from a description is bounded and checked here, once; what comes out of this module can be believed
to be of one piece (as many sources as channels, as many positions as sources), though not to be true.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import StreamAmbiguous, StreamDescriptionError, StreamNotFound
from rt_mmdf.lsl.description import clean_label
from rt_mmdf.lsl.interface import StreamDescription, Transport
from rt_mmdf.sinks.sources import HEMISPHERES

ESTIMATE_TYPE = "SourceEstimate"
SUFFIX = "-sources"
LOOK_S = 0.7
"""One round of asking the network for everything: multicast at once, known peers after 0.5 s."""
MAX_BYTES_PER_S = 200e6
"""What a view takes of one stream: 20,484 sources at 1 kHz are 82 MB/s. A header that claims more is refused."""
MAX_WORD = 64
MAX_STREAM_NAME = 128
MAX_SENSOR_HZ = 2000.0
MAX_LISTED = 8
MAX_RADIUS_M = 1.0
"""No head is larger; in which unit positions were written is thereby checked as well."""

_CHANNEL = re.compile(r"(lh|rh)-(\d{1,7})")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
MAX_AVERAGES = 16
MAX_AVERAGE_BYTES = 64_000_000
MAX_SENSORS = 2048
OTHERS = ("companion", "health", "sensors", "second", "marks")
SENSOR_UNITS = {"eeg": "V", "mag": "T", "grad": "T/m"}


@dataclass(frozen=True, eq=False)
class EngineDescription:
    """One stream of estimates, as it says of itself, checked.

    name : of the engine, for example ``rt-mmdf`` (the stream is called ``rt-mmdf-sources``)
    host : machine it runs on
    solver, orientation : in words; `unit`: ``"A m"``, ``"nA m"``, or ``""`` for standardised maps
    sfreq : published samples a second; `engine_sfreq`: estimates a second before the reduction
    decimation, reduction : one published sample stands for so many estimates, and how
    head, fingerprint, frame : of the head model; what the positions mean
    vertices : (left, right) vertex numbers of the sources
    positions_mm : (n_sources, 3) float64
    filter_delay_ms : by which the filters delay what is imaged; not in the stamps
    budget_ms : deadline of an estimate after its intended time; NaN where the description does not tell
    names : of the other streams of this engine, by what they carry: ``companion`` and ``health`` always, ``sensors``,
        ``second`` and ``marks`` where the engine says that it publishes (or listens to) them
    averages : names of the streams of event-locked averages, by event
    stream : the description itself (name, type, source id, uid)
    """

    name: str
    host: str
    solver: str
    unit: str
    orientation: str
    sfreq: float
    engine_sfreq: float
    decimation: int
    reduction: str
    head: str
    fingerprint: str
    frame: str
    vertices: tuple[NDArray[np.int64], NDArray[np.int64]]
    positions_mm: NDArray[np.float64]
    filter_delay_ms: float
    budget_ms: float
    names: Mapping[str, str]
    averages: Mapping[str, str]
    stream: StreamDescription = field(repr=False)

    @property
    def n_sources(self) -> int:
        return len(self.positions_mm)

    @property
    def uid(self) -> str:
        """Of the outlet: another one after the engine was started again."""
        return self.stream.uid

    def same_sources(self, other: EngineDescription) -> bool:
        """Whether the rows of two estimates mean the same places and the same quantity, so that one history holds both."""
        return (self.fingerprint, self.unit, self.solver, self.n_sources) == (
            other.fingerprint,
            other.unit,
            other.solver,
            other.n_sources,
        )


def read_engine(stream: StreamDescription) -> EngineDescription:
    """Check a stream of estimates and read its description.

    Parameters
    ----------
    stream : the full description, as an inlet or `Transport.describe` gives it

    Raises
    ------
    StreamDescriptionError
        It is not ours, lacks what a picture needs, contradicts itself, or is more than a view can take.
    """
    where = f"stream {stream.name!r} on {stream.hostname!r}"
    extra = stream.extra
    if not extra:
        raise StreamDescriptionError(
            f"{where}: it has no description, so nothing says which place on the cortex a channel is. Expected is the "
            f"stream NAME{SUFFIX} of a running `rt-mmdf monitor` or `rt-mmdf demo`."
        )
    if (maker := extra.get("engine/name", "")) != "rt_mmdf":
        raise StreamDescriptionError(
            f"{where}: it says that {clean_label(maker, MAX_WORD) or 'nobody'!r} made it; an engine of rt_mmdf is expected. "
            "Choose another stream: `rt-mmdf view` without a name lists the engines."
        )
    needed = ("head/fingerprint", "head/n_sources_lh", "head/n_sources_rh", "estimate/solver", "estimate/unit")
    if missing := [key for key in needed if key not in extra]:
        raise StreamDescriptionError(
            f"{where}: its description lacks {', '.join(missing)}. Start it with the version of rt_mmdf of this view."
        )
    _check_load(stream, where)
    sides = tuple(_whole(extra, f"head/n_sources_{side}", where, 0, 1 << 20) for side in HEMISPHERES)
    if sum(sides) != stream.n_channels:
        raise StreamDescriptionError(
            f"{where}: it has {stream.n_channels} channels, its head has {sides[0]} + {sides[1]} sources; one channel for "
            "each source is expected. Nothing can be shown of it: start the engine again, of the same version."
        )
    if _FINGERPRINT.fullmatch(fingerprint := extra["head/fingerprint"][:65]) is None:
        raise StreamDescriptionError(
            f"{where}: its head's fingerprint is {clean_label(fingerprint, 16)!r}...; 64 hexadecimal digits are expected. "
            "Start the engine again."
        )
    unit = clean_label(extra["estimate/unit"], MAX_WORD)
    engine = _label(extra, "engine/session") or stream.name.removesuffix(SUFFIX)
    return EngineDescription(
        name=engine,
        host=stream.hostname,
        solver=_label(extra, "estimate/solver") or "unnamed solver",
        unit="" if unit == "dimensionless" else unit,
        orientation=_label(extra, "estimate/orientation"),
        sfreq=stream.sfreq,
        engine_sfreq=_number(extra, "estimate/sfreq_before_reduction", stream.sfreq),
        decimation=_whole(extra, "estimate/decimation", where, 1, 1_000_000, default=1),
        reduction=_label(extra, "estimate/reduction") or "none",
        head=_label(extra, "head/name") or "unnamed head",
        fingerprint=fingerprint,
        frame=_label(extra, "head/frame"),
        vertices=_vertices(stream, sides, where),
        positions_mm=_positions(stream, where),
        filter_delay_ms=_number(extra, "filter/delay_ms", math.nan),
        budget_ms=_number(extra, "engine/budget_ms", math.nan),
        names=_names(stream, engine),
        averages=_averages(stream),
        stream=stream,
    )


def engines_among(
    found: Sequence[StreamDescription], name: str | None = None, host: str | None = None
) -> list[StreamDescription]:
    """Streams that look like an engine's estimates, by their headers alone.

    Parameters
    ----------
    found : what `Transport.resolve` found
    name : of the engine or of its stream of estimates; None for any
    host : machine it runs on; None for any
    """
    return [
        stream
        for stream in found
        if stream.name.endswith(SUFFIX)
        and (stream.type == ESTIMATE_TYPE if name is None else name in (stream.name, stream.name.removesuffix(SUFFIX)))
        and host in (None, stream.hostname)
    ]


def choose_engine(found: Sequence[StreamDescription], name: str | None, host: str | None) -> StreamDescription:
    """The one engine among those that `engines_among` found.

    Raises
    ------
    StreamNotFound
        There is none.
    StreamAmbiguous
        There are several; they are listed.
    """
    asked = " ".join(part for part in (f"named {name!r}" if name else "", f"on host {host!r}" if host else "") if part)
    if not found:
        raise StreamNotFound(
            f"view: no engine {asked or 'of rt_mmdf'} on this network. Is `rt-mmdf monitor` or `rt-mmdf demo` running, and "
            "has it said that it publishes? `rt-mmdf streams` lists what there is."
        )
    if len(found) > 1:
        several = f"view: {len(found)} engines {asked}".rstrip()
        raise StreamAmbiguous(f"{several} are running:\n{listing(found)}\n{_how(found)}")
    return found[0]


def find_engine(
    transport: Transport, name: str | None = None, host: str | None = None, timeout_s: float = LOOK_S
) -> EngineDescription:
    """The one engine of that name (any name, if it is the only one), found and checked.

    Raises
    ------
    StreamNotFound, StreamAmbiguous, StreamDescriptionError
        See `choose_engine` and `read_engine`.
    """
    chosen = choose_engine(engines_among(transport.resolve(timeout_s=timeout_s), name, host), name, host)
    return read_engine(transport.describe(chosen))


def listing(found: Sequence[StreamDescription]) -> str:
    """Engines, one a line, as they are chosen by."""
    lines = [
        f"  {stream.name.removesuffix(SUFFIX)} on {stream.hostname}: {stream.n_channels} sources, {stream.sfreq:g} a second"
        for stream in found[:MAX_LISTED]
    ]
    return "\n".join(lines + ([f"  and {len(found) - MAX_LISTED} more"] if len(found) > MAX_LISTED else []))


def _how(found: Sequence[StreamDescription]) -> str:
    names, hosts = {stream.name for stream in found}, {stream.hostname for stream in found}
    if len(names) == len(found):
        return f"Say which: rt-mmdf view {found[0].name.removesuffix(SUFFIX)}"
    if len(hosts) == len(found) or len(hosts) * len(names) == len(found):
        return f"Say which: rt-mmdf view {found[0].name.removesuffix(SUFFIX)} --host {found[0].hostname}"
    return "Two engines of one name on one machine cannot be told apart: end one of them, or give it another name."


def _check_load(stream: StreamDescription, where: str) -> None:
    if stream.dtype != "float32":
        raise StreamDescriptionError(
            f"{where}: its samples are {stream.dtype}; estimates are float32. Choose another stream."
        )
    if not (math.isfinite(stream.sfreq) and stream.sfreq > 0):
        raise StreamDescriptionError(
            f"{where}: it declares a rate of {stream.sfreq:g} Hz; estimates come at a fixed one. Choose another stream."
        )
    load = 4.0 * stream.n_channels * stream.sfreq
    if load > MAX_BYTES_PER_S:
        raise StreamDescriptionError(
            f"{where}: {stream.n_channels} sources at {stream.sfreq:g} Hz are {load / 1e6:.0f} MB a second; a view takes "
            f"{MAX_BYTES_PER_S / 1e6:.0f}. Publish fewer: decimation under [output.estimates]."
        )


def _label(extra: Mapping[str, str], key: str) -> str:
    return clean_label(extra.get(key, ""), MAX_WORD)


def _number(extra: Mapping[str, str], key: str, default: float) -> float:
    try:
        value = float(extra.get(key, "")[:MAX_WORD])
    except ValueError:
        return default
    return value if math.isfinite(value) else default


def _whole(extra: Mapping[str, str], key: str, where: str, low: int, high: int, default: int | None = None) -> int:
    text = extra.get(key)
    if text is None and default is not None:
        return default
    seen = clean_label(text or "", 16)
    if not re.fullmatch(r"\d{1,9}", seen) or not low <= int(seen) <= high:
        raise StreamDescriptionError(f"{where}: {key} is {seen!r}; a whole number from {low} to {high} is expected.")
    return int(seen)


def _vertices(stream: StreamDescription, sides: Sequence[int], where: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    matches = [_CHANNEL.fullmatch(channel.name) for channel in stream.channels]
    wanted = [side for side, n in zip(HEMISPHERES, sides, strict=True) for _ in range(n)]
    for number, (match, side) in enumerate(zip(matches, wanted, strict=True)):
        if match is None or match[1] != side:
            seen = clean_label(stream.channels[number].name, 16)
            raise StreamDescriptionError(
                f"{where}: channel {number} is called {seen!r}; {side} and a vertex number are expected "
                f"({side}-1234). Start the engine again, with one version of rt_mmdf everywhere."
            )
    numbers = np.array([int(match[2]) for match in matches if match is not None], dtype=np.int64)
    left, right = numbers[: sides[0]], numbers[sides[0] :]
    if any((np.diff(own) <= 0).any() for own in (left, right)):
        raise StreamDescriptionError(f"{where}: its vertex numbers are not ascending. Start the engine again.")
    return left, right


def _positions(stream: StreamDescription, where: str) -> NDArray[np.float64]:
    positions = np.array([c.position or (math.nan,) * 3 for c in stream.channels], dtype=np.float64)
    bad = ~np.isfinite(positions).all(axis=1) | (np.abs(positions).max(axis=1) > MAX_RADIUS_M)
    if bad.any():
        raise StreamDescriptionError(
            f"{where}: {int(bad.sum())} of its {len(positions)} channels have no position within {MAX_RADIUS_M:g} m of the "
            "origin; each source is expected to have one. Start the engine again, with one version of rt_mmdf everywhere."
        )
    return positions * 1e3


def _names(stream: StreamDescription, engine: str) -> dict[str, str]:
    told = {key: clean_label(stream.extra.get(f"streams/{key}", ""), MAX_STREAM_NAME) for key in OTHERS}
    usual = {"companion": f"{stream.name}-companion", "health": f"{engine}-health"}
    return usual | {key: name for key, name in told.items() if name}


def _averages(stream: StreamDescription) -> dict[str, str]:
    begin = "streams/averages/"
    told = [(key.removeprefix(begin), name) for key, name in stream.extra.items() if key.startswith(begin)]
    return {clean_label(event, MAX_WORD): clean_label(name, MAX_STREAM_NAME) for event, name in told[:MAX_AVERAGES]}


@dataclass(frozen=True)
class SensorStream:
    """The cleaned sensors of an engine, checked.

    names, kinds : of the channels; kinds are ``"eeg"``, ``"mag"``, ``"grad"``, in V, T, T/m
    sfreq : Hz
    reduction : ``none``, ``latest`` or ``peak``: what one sample says of those that it stands for
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    sfreq: float
    reduction: str


def read_sensors(stream: StreamDescription) -> SensorStream:
    """Check a stream of cleaned sensors.

    Raises
    ------
    StreamDescriptionError
        It is not ours, or has channels of other types or units.
    """
    where = f"stream {stream.name!r} on {stream.hostname!r}"
    if stream.extra.get("engine/name") != "rt_mmdf" or stream.dtype != "float32":
        raise StreamDescriptionError(f"{where}: it is not an engine's stream of sensors. They are shown without it.")
    if stream.n_channels > MAX_SENSORS or not (math.isfinite(stream.sfreq) and 0 < stream.sfreq <= MAX_SENSOR_HZ):
        raise StreamDescriptionError(
            f"{where}: {stream.n_channels} sensors at {stream.sfreq:g} Hz; up to {MAX_SENSORS} at {MAX_SENSOR_HZ:g} Hz "
            "can be shown. Lower max_hz under [output.sensors]."
        )
    for channel in stream.channels:
        if channel.type not in SENSOR_UNITS or channel.unit != SENSOR_UNITS[channel.type]:
            raise StreamDescriptionError(
                f"{where}: channel {clean_label(channel.name, 32)!r} is of type {clean_label(channel.type, 16)!r} in "
                f"{clean_label(channel.unit, 16)!r}; eeg in V, mag in T and grad in T/m are expected. It is not shown."
            )
    names = tuple(clean_label(channel.name, MAX_WORD) for channel in stream.channels)
    kinds = tuple(channel.type for channel in stream.channels)
    return SensorStream(names, kinds, stream.sfreq, _label(stream.extra, "sensors/reduction") or "none")


@dataclass(frozen=True)
class AverageStream:
    """One event-locked average of an engine, checked.

    event : its name; markers: texts that it is locked to
    latencies : (n_times,) seconds from the event
    baseline : in words, ``none`` or first and last latency, seconds
    solver, unit : of its values
    """

    event: str
    markers: str
    latencies: NDArray[np.float64]
    baseline: str
    solver: str
    unit: str

    @property
    def n_times(self) -> int:
        return len(self.latencies)


def read_average(stream: StreamDescription, engine: EngineDescription) -> AverageStream:
    """Check a stream of averages against the engine that publishes it.

    Raises
    ------
    StreamDescriptionError
        It is not of this engine's head, contradicts itself, or is too large to be shown.
    """
    where = f"stream {stream.name!r} on {stream.hostname!r}"
    if stream.extra.get("head/fingerprint") != engine.fingerprint or stream.n_channels != engine.n_sources:
        raise StreamDescriptionError(
            f"{where}: an average of {stream.n_channels} sources on another head than that of {engine.name!r} "
            f"({engine.n_sources} sources). It is not shown."
        )
    n_times = _whole(stream.extra, "average/n_times", where, 1, max(1, MAX_AVERAGE_BYTES // (4 * stream.n_channels)))
    begin, end = (_number(stream.extra, f"average/{key}", math.nan) for key in ("tmin_s", "tmax_s"))
    if not begin <= end or stream.dtype != "float32":
        raise StreamDescriptionError(f"{where}: an average from {begin:g} to {end:g} s of {stream.dtype}. It is not shown.")
    unit = _label(stream.extra, "estimate/unit")
    return AverageStream(
        event=_label(stream.extra, "average/event"),
        markers=_label(stream.extra, "average/markers"),
        latencies=np.linspace(begin, end, n_times),
        baseline=_label(stream.extra, "average/baseline_s") or "none",
        solver=_label(stream.extra, "estimate/solver"),
        unit="" if unit == "dimensionless" else unit,
    )
