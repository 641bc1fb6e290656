"""The engine's health as an LSL stream: one JSON text at a time, about once a second, and when an incident begins or ends.

``NAME-health``, type ``Health``, one string channel, irregular; stamped with the engine's LSL clock. One object, strict
JSON in ASCII; a number that is not known is ``null``. Times are seconds on the engine's LSL clock. The keys:

``time``, ``running_s``
    now; since the session began
``session``, ``solver``, ``unit``, ``n_sources``, ``n_channels``, ``modalities``, ``head``, ``head_fingerprint``
    what is imaged, and with what
``streams``
    by modality (``eeg``, ``meg``), for each sensor stream ``name``, ``hostname``, ``sfreq`` (nominal, Hz),
    ``n_channels``; ``received`` (samples), ``rate_hz`` (that arrived since the report before), ``age_s`` (since the
    newest arrival), ``silent`` (for more than 2 s), ``stalled`` (for longer than is usual, see
    ``incidents``), ``missing_now`` (samples of the newest hop lack it), ``chunk``
    (samples of the newest pull), ``queue`` (samples that wait), ``nonfinite`` (samples with NaN), ``reconnected``
    (times), ``doubles`` (other streams of its name on the network, none of which is used); ``lag_ms`` (the device's own
    lag, which is subtracted; null: unknown), ``lag_uncertainty_ms``, ``lag_against`` (what it was measured against),
    ``lag_told`` (all that in words); and, once its clock is known, the fields of
    `rt_mmdf.alignment.grid.LaneReport`: ``offset`` (s, of the sender's clock), ``offset_uncertainty_ms``, ``drift_ppm``,
    ``drift_uncertainty_ppm`` (of the sender's clock), ``rate_error_ppm``, ``rate_uncertainty_ppm`` (of the sampling
    clock), ``jitter_ms``, ``uncertainty_ms``, ``arrival_lag_ms``, ``missing`` (grid samples without it), ``clock_steps``,
    and ``counts``: ``received``, ``gaps``, ``lost`` (samples in them), ``duplicates``, ``backward``, ``bad_stamps``,
    ``restarts``. Uncertainties are two standard deviations
``alignment_uncertainty_ms``
    of the time between the modalities
``bad_channels``
    reason by name; ``not_imaged``: channels that the head lacks
``hops``, ``skipped_hops``, ``invalid_hops``, ``failed_hops``, ``estimates``
    since the first estimate: whose time came; not imaged, to catch up; that had nothing to be imaged from; whose solver
    raised (these are invalid, too); imaged
``incidents``
    ``counts`` (facts since the start, by kind), ``n_lasting``, ``lasting`` (at most 20 that go on) and ``newest`` (the last
    20, the newest at the end), each with ``kind``, ``subject`` (``eeg``, ``meg``, ``engine``, ``process``, the name of a
    worker), ``began``, ``noticed``, ``ended`` (null while it lasts), ``count`` (of what ``detail`` says) and ``detail``, a
    sentence. The kinds are those of `rt_mmdf.app.watch.Watch`
``hop_ms``, ``budget_ms``, ``missed_deadlines``, ``longest_miss_run``
    a hop that is published more than ``budget_ms`` after it could exist has missed its deadline
``budget``
    ``measured``: null, or what the chain took before the start: ``solver``, ``hop_ms``, ``n_hops``, ``median_ms``,
    ``mean_ms``, ``p99_ms``; ``lowered``: what was changed at the start (texts); ``warning``: null, or why the budget may not
    be kept; ``when_late`` (``skip``, ``join`` or ``fallback``); ``joined_hops`` (that had waited, and were imaged several in
    one call); ``fallback_hops`` (imaged by it); ``fallback``: null, or ``solver``, ``active``, ``changes``, ``changed_at``
    (null before the first), ``return_after_s``
``latency_ms``
    of the last 1000 hops: for each of ``receive``, ``align``, ``preprocess``, ``solve``, ``publish`` (the stages),
    ``software`` (received to published), ``lateness`` (published less the intended time of the hop: what the budget is
    about) and ``age`` (published less sensor time): ``p50``, ``p90``, ``p99``, ``p99_9``, ``max``
``latency_histogram``
    of ``lateness`` since the start-up: ``edges_ms`` and the ``counts`` between them (one less)
``filter_delay_ms``, ``look_ahead_ms``, ``device_lag``
    what physics adds; the last in words, ``unknown`` where no device's own lag is
``flags``
    samples with each flag since the start, by name
``overwritten_samples``, ``operators_waiting``, ``operators_failed``, ``files``, ``cpu_cores``, ``rss_mb``
    what else may be wrong, and what it costs
``model``
    null, or of a trained model: ``backend`` (``name``, ``precision``, ``device``, and ``fallen_back``: null, or why
    another one was given up for it), ``window_backend`` (likewise, of looks at windows; null without), ``gpu_ms`` (null,
    or what its newest calls took on the GPU by CUDA events, where ``gpu_times`` asks for it: ``n``, ``p50``, ``p99``,
    ``max``, ``stages``), ``lag_ms`` (a window comes into force so long after its end), ``windows`` (that were looked at),
    ``late_windows`` (of these, not ready in time: the one before served on)
``sensors``
    null, or ``stream``, ``sfreq``, ``dropped_hops``
``second``
    null, or of the second solver: ``solver``, ``unit``, ``hops``, ``estimates``, ``skipped_hops``, ``invalid_hops``,
    ``missed_deadlines``, ``longest_miss_run``, ``latency_ms``, ``operators_waiting``, ``operators_failed``, ``model``; as
    above
``average``
    null, or ``events``: by name ``stream``, ``n_trials``, ``n_rejected``, ``rejected`` (by reason), ``bads``,
    ``newest_event``, ``updates``; ``markers``: ``name`` and ``hostname`` of their stream (null before there was one),
    ``problem`` (why nothing is heard), ``received``, ``not_averaged`` (no average is locked to them),
    ``waiting_for_clock``, ``offset`` (s), ``uncertainty_ms``, ``reconnected``; ``resets``, ``dropped_hops``,
    ``problem`` (why nothing is imaged), ``time``
``marks``
    null, or ``stream`` (the name that is listened to), ``listening_to`` (streams), ``received``, ``refused`` (no
    marks), and the ``newest`` 20: ``stamp`` (clock of the view), ``received``, ``text``, ``command``, ``host``
``recording``
    null, or ``file``, ``bytes`` (written), ``seconds`` (from the start to the last flush), ``flushed_at``, ``samples``
    and ``dropped`` (by stream: written; lost for good), ``waiting`` (samples for the disk), ``free_bytes``, ``room_s``
    (what the disk has room for, at the rate since the start), ``error`` (the last, which stays), ``writing`` (whether the
    last attempt succeeded)
``left_out``
    entries that did not fit into the longest text, if any
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import rt_mmdf
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription, Transport

MAX_BYTES = 65536


class HealthOutlet:
    """A stream of one string channel, without a fixed rate.

    Parameters
    ----------
    transport : Transport
    name : str
        Of the stream, and its source id.
    max_bytes : int
        Longest text; a report that is longer loses its longest entries, which are named under ``left_out``.
    """

    def __init__(self, transport: Transport, name: str, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._clock = transport.clock
        channel = ChannelDescription("health", "json", "")
        extra = {"engine/name": "rt_mmdf", "engine/version": rt_mmdf.__version__, "format": "JSON (RFC 8259), ASCII"}
        self.stream = StreamDescription(name, "Health", name, 0.0, "string", (channel,), extra)
        self._outlet = transport.outlet(self.stream)

    def publish(self, report: Mapping[str, Any]) -> str:
        """Publish a report with the stamp of now; returns the text."""
        text = to_json(report, self._max_bytes)
        self._outlet.push([text], self._clock.now())
        return text

    def close(self) -> None:
        self._outlet.close()

    def __enter__(self) -> HealthOutlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def to_json(report: Mapping[str, Any], max_bytes: int = MAX_BYTES) -> str:
    """Strict JSON in ASCII, at most `max_bytes` long: no NaN or infinity (null instead), numpy values as plain ones.

    What makes a report too long is left out, longest entry first, and named under ``left_out``.
    """
    plain: dict[str, Any] = _plain(report)
    text = _dump(plain)
    left_out: list[str] = []
    while len(text) > max_bytes and any(key != "left_out" for key in plain):
        longest = max((key for key in plain if key != "left_out"), key=lambda key: len(_dump(plain[key])))
        del plain[longest]
        left_out.append(longest[:64])
        plain["left_out"] = left_out[:32]
        text = _dump(plain)
    return text


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Set):
        return sorted((_plain(entry) for entry in value), key=str)
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"health report: a value of type {type(value).__name__} cannot be written as JSON")
