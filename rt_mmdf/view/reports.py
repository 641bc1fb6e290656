"""The health that an engine reports once a second: JSON from the network, taken apart with care."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rt_mmdf.lsl.description import clean_label
from rt_mmdf.sinks.health import MAX_BYTES

MAX_ENTRIES = 512
ON_DISK = ("recording", "files")  # what incidents call them
MAX_PROBLEMS = 8
MAX_NAME, MAX_TEXT = 64, 200
NAN = math.nan


@dataclass(frozen=True)
class StreamHealth:
    """One sensor stream, as the engine sees it. NaN: not known (yet).

    hostname : machine that sends it
    sfreq : nominal rate; rate_hz : samples a second that arrived lately
    age_s : since the newest sample was received; silent : for more than 2 s; missing_now : the newest estimate is without it
    chunk : samples that come at once
    offset_s, offset_uncertainty_ms : of its clock, to be added to its stamps
    drift_ppm, drift_uncertainty_ppm : of what it stamps against the engine's clock: drift of its clock and error of its
        sampling rate together; uncertainties are two standard deviations
    uncertainty_ms : of the newest sample's time
    lag_ms : of the device itself, as it is known and subtracted; lag : in words, empty where nothing is said of it
    lost, gaps : samples that never came, and the holes they left; missing : grid samples for which they were too late
    """

    name: str = ""
    hostname: str = ""
    sfreq: float = NAN
    rate_hz: float = NAN
    n_channels: int = 0
    received: int = 0
    age_s: float = NAN
    silent: bool = False
    missing_now: bool = False
    chunk: int = 0
    nonfinite: int = 0
    reconnected: int = 0
    offset_s: float = NAN
    offset_uncertainty_ms: float = NAN
    drift_ppm: float = NAN
    drift_uncertainty_ppm: float = NAN
    jitter_ms: float = NAN
    uncertainty_ms: float = NAN
    arrival_lag_ms: float = NAN
    lag_ms: float = NAN
    lag: str = ""
    lost: int = 0
    gaps: int = 0
    missing: int = 0


@dataclass(frozen=True)
class HeardMark:
    """An operator mark, as the engine has heard it.

    stamp : seconds on the clock of `host`, which published it; `received`: on the engine's clock
    """

    stamp: float
    received: float
    text: str
    host: str


@dataclass(frozen=True)
class HealthReport:
    """What the engine said of itself last. NaN and empty: it said nothing of that.

    time : seconds on the engine's clock
    streams : by modality, ``"eeg"`` and ``"meg"``
    bad_channels : names and reasons
    device_lag : of the devices themselves, in words
    latency_ms : by stage (see `rt_mmdf.runtime.telemetry.LATENCIES`) p50, p90, p99, p99_9 and max of the newest hops
    marks : the last operator marks that the engine has heard, oldest first
    problems : why a part of the engine gives nothing (a second solver, averages, markers that are not heard), in its words
    lasting : incidents that go on, each its kind and what it concerns
    not_written : what is not on the disk that should be, a recording or files of estimates, and why; empty where all is well
    n_incidents : of all kinds since the start
    """

    time: float = NAN
    running_s: float = NAN
    solver: str = ""
    modalities: tuple[str, ...] = ()
    streams: Mapping[str, StreamHealth] = field(default_factory=dict)
    alignment_uncertainty_ms: float = NAN
    bad_channels: Mapping[str, str] = field(default_factory=dict)
    not_imaged: tuple[str, ...] = ()
    hops: int = 0
    skipped_hops: int = 0
    invalid_hops: int = 0
    missed_deadlines: int = 0
    longest_miss_run: int = 0
    budget_ms: float = NAN
    filter_delay_ms: float = NAN
    look_ahead_ms: float = NAN
    device_lag: str = "unknown"
    latency_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    operators_failed: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[HeardMark, ...] = ()
    problems: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()
    not_written: str = ""
    n_incidents: int = 0
    cpu_cores: float = NAN
    rss_mb: float = NAN


def read_report(text: str) -> HealthReport | None:
    """A report as it came; None where the text is none. Sizes, numbers and names are bounded."""
    if len(text) > MAX_BYTES:
        return None
    try:
        content = json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "hops" not in content:
        return None
    get = content.get
    return HealthReport(
        time=_number(get("time")),
        running_s=_number(get("running_s")),
        solver=_text(get("solver"), MAX_NAME),
        modalities=_texts(get("modalities"))[:2],
        streams={key: _stream(value) for key, value in _mapping(get("streams")).items() if key in ("eeg", "meg")},
        alignment_uncertainty_ms=_number(get("alignment_uncertainty_ms")),
        bad_channels={key: _text(value) for key, value in _mapping(get("bad_channels")).items()},
        not_imaged=_texts(get("not_imaged")),
        hops=_count(get("hops")),
        skipped_hops=_count(get("skipped_hops")),
        invalid_hops=_count(get("invalid_hops")),
        missed_deadlines=_count(get("missed_deadlines")),
        longest_miss_run=_count(get("longest_miss_run")),
        budget_ms=_number(get("budget_ms")),
        filter_delay_ms=_number(get("filter_delay_ms")),
        look_ahead_ms=_number(get("look_ahead_ms")),
        device_lag=_text(get("device_lag")) or "unknown",
        latency_ms={
            stage: {key: _number(value) for key, value in _mapping(values).items()}
            for stage, values in _mapping(get("latency_ms")).items()
        },
        flags={key: _count(value) for key, value in _mapping(get("flags")).items()},
        operators_failed={key: _text(value) for key, value in _mapping(get("operators_failed")).items()},
        marks=_marks(get("marks")),
        problems=_problems(content),
        lasting=tuple(f"{kind} {subject}".strip() for kind, subject, _ in _lasting(get("incidents"))),
        not_written="; ".join(detail for _, subject, detail in _lasting(get("incidents")) if subject in ON_DISK),
        n_incidents=sum(_count(value) for value in _mapping(_mapping(get("incidents")).get("counts")).values()),
        cpu_cores=_number(get("cpu_cores")),
        rss_mb=_number(get("rss_mb")),
    )


def _stream(value: Any) -> StreamHealth:
    content = _mapping(value)
    get, counts = content.get, _mapping(content.get("counts"))
    drift, rate_error = _number(get("drift_ppm")), _number(get("rate_error_ppm"))
    drift_u, rate_u = _number(get("drift_uncertainty_ppm")), _number(get("rate_uncertainty_ppm"))
    return StreamHealth(
        name=_text(get("name"), MAX_NAME),
        hostname=_text(get("hostname"), MAX_NAME),
        sfreq=_number(get("sfreq")),
        rate_hz=_number(get("rate_hz")),
        n_channels=_count(get("n_channels")),
        received=_count(get("received")),
        age_s=_number(get("age_s")),
        silent=get("silent") is True,
        missing_now=get("missing_now") is True,
        chunk=_count(get("chunk")),
        nonfinite=_count(get("nonfinite")),
        reconnected=_count(get("reconnected")),
        offset_s=_number(get("offset")),
        offset_uncertainty_ms=_number(get("offset_uncertainty_ms")),
        drift_ppm=drift + rate_error,
        drift_uncertainty_ppm=math.hypot(drift_u, rate_u),
        jitter_ms=_number(get("jitter_ms")),
        uncertainty_ms=_number(get("uncertainty_ms")),
        arrival_lag_ms=_number(get("arrival_lag_ms")),
        lag_ms=_number(get("lag_ms")),
        lag=_text(get("lag_told")),
        lost=_count(counts.get("lost")),
        gaps=_count(counts.get("gaps")),
        missing=_count(get("missing")),
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NAN
    try:
        number = float(value)
    except OverflowError:
        return NAN
    return number if math.isfinite(number) else NAN


def _count(value: Any) -> int:
    number = _number(value)
    return int(number) if 0 <= number < 1e15 else 0


def _text(value: Any, limit: int = MAX_TEXT) -> str:
    return clean_label(value, limit) if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(entry, MAX_NAME) for entry in value[:MAX_ENTRIES]) if isinstance(value, list) else ()


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    return {clean_label(key, MAX_NAME): entry for key, entry in list(value.items())[:MAX_ENTRIES]}


def _marks(value: Any) -> tuple[HeardMark, ...]:
    newest = _mapping(value).get("newest")
    entries = newest[-MAX_ENTRIES:] if isinstance(newest, list) else []
    read = [
        HeardMark(_number(m.get("stamp")), _number(m.get("received")), _text(m.get("text")), _text(m.get("host"), MAX_NAME))
        for m in entries
        if isinstance(m, dict)
    ]
    return tuple(mark for mark in read if math.isfinite(mark.stamp) and math.isfinite(mark.received))


def _lasting(value: Any) -> list[tuple[str, str, str]]:
    """Kind, subject and detail."""
    lasting = _mapping(value).get("lasting")
    entries = lasting[-MAX_ENTRIES:] if isinstance(lasting, list) else []
    return [
        (_text(one.get("kind"), MAX_NAME), _text(one.get("subject"), MAX_NAME), _text(one.get("detail")))
        for one in entries
        if isinstance(one, dict)
    ]


def _problems(content: Mapping[str, Any]) -> tuple[str, ...]:
    average = _mapping(content.get("average"))
    failed = _mapping(_mapping(content.get("second")).get("operators_failed"))
    told = (
        ("average", average.get("problem")),
        ("markers", _mapping(average.get("markers")).get("problem")),
        *((f"second solver without {_text(key, MAX_NAME)}", reason) for key, reason in failed.items()),
    )
    return tuple(f"{what}: {text}" for what, reason in told if (text := _text(reason)))[:MAX_PROBLEMS]
