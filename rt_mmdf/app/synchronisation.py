"""Measure the devices' own lags from triggers that are recorded by more than one system.

A sample is stamped when its program gets it, or when the amplifier says so; how long before that the event was in front of
the sensors, no clock can tell. A trigger that reaches several devices at the same instant can: what they make of it differs
by the difference of their lags. Only that difference can be seen between two devices. A stream of markers that the stimulus
program stamps when it sets the trigger is a reference in true time: against it, each device shows its whole lag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

import numpy as np

from rt_mmdf.acquisition.clockwatch import ClockWatch
from rt_mmdf.acquisition.device_lag import device_of, lag_of
from rt_mmdf.acquisition.receiver import Marker, MarkerReceiver, Receiver
from rt_mmdf.acquisition.settings import MAX_LAG_MS, StreamSettings
from rt_mmdf.alignment.sample_times import SampleTimes
from rt_mmdf.alignment.shared_events import FEW, LEAST_PART, Difference, Events, Pairs, difference, pair_events
from rt_mmdf.alignment.time_map import SenderClock
from rt_mmdf.alignment.triggers import APART_S, find_onsets
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ConfigurationError, StreamError
from rt_mmdf.core.ring import SampleRing
from rt_mmdf.lsl.interface import ClockOffset, StreamDescription, Transport
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.runtime.worker import Worker

LOOK_S = 0.1
TELL_S = 1.0
NO_TRIGGER_S = 30.0
"""A device without any trigger for so long has none to expect."""
MARKERS = "markers"
"""Label of the reference in true time; before the name of a stream, where a device's triggers come as one."""
MAX_LISTED = 12
_TRIGGER_NAME = re.compile(r"sti|trig|status|photo|diode|marker|^di[0-9_]", re.IGNORECASE)


@dataclass(frozen=True)
class Triggers:
    """What to measure by.

    channels : for each stream of the configuration the channel that shows its triggers, or ``"markers:NAME"`` for a stream
        of markers that its device sends; None or left out: its only trigger channel
    reference : the stream that the others are measured against
    against_markers : name of a stream of markers that are stamped when the trigger is set: then this is the reference
    n_triggers : pairs that are enough
    seconds : the longest that is waited for them
    max_lag_ms : larger lags are not looked for; triggers at regular intervals need one that is shorter than these
    """

    channels: Mapping[Modality, str | None]
    reference: Modality = Modality.MEG
    against_markers: str | None = None
    n_triggers: int = 20
    seconds: float = 300.0
    max_lag_ms: float = 500.0


@dataclass(frozen=True)
class MeasuredLag:
    """The lag of one device, as it goes into the configuration.

    label : of the stream in the configuration
    device : see `device_of`
    against : the label of the stream that it was measured against, or ``"markers NAME"``
    lag_ms, uncertainty_ms : two standard deviations
    found : lag and drift against the reference alone
    n_triggers, n_reference : triggers that the device and the reference showed; those that were not paired are in them
    """

    label: Modality
    device: str
    against: str
    lag_ms: float
    uncertainty_ms: float
    found: Difference
    n_triggers: int
    n_reference: int


@dataclass(frozen=True)
class Progress:
    """How far a measurement is: seconds since its begin, triggers by device, and pairs of the device that has fewest."""

    seconds: float
    triggers: Mapping[str, int]
    pairs: int


class _Source(Protocol):
    """Where triggers of one device come from."""

    label: str
    where: str

    def take(self, offsets: list[ClockOffset]) -> None: ...

    def events(self) -> Events: ...

    def seen(self) -> str: ...


class _ChannelSource:
    """A channel of a stream of sensors."""

    def __init__(self, receiver: Receiver, channel: str) -> None:
        self.label = receiver.label
        self.where = f"channel {channel!r} of stream {receiver.description.name!r}"
        channels: Channels
        self._ring: SampleRing
        if receiver.others is not None and channel in receiver.other_channels:
            self._ring, channels = receiver.others, receiver.other_channels
        else:
            self._ring, channels = receiver.ring, receiver.channels
        self._row = int(channels.indices([channel])[0])
        self._times = SampleTimes(receiver.sfreq, receiver.settings.stamps, f"the {self.label.upper()} stream")

    def take(self, offsets: list[ClockOffset]) -> None:
        for offset in offsets:
            self._times.add_offset(offset)
        if (block := self._ring.read()) is not None:
            self._times.add(block, self._row)

    def events(self) -> Events:
        index, values = self._times.samples()
        onsets = find_onsets(index, values, self._times.sfreq)
        quantum = np.where(onsets.resolved, 0.0, 1 / self._times.sfreq)
        return Events(self._times.times_at(onsets.at), self._times.sd_at(onsets.at), quantum)

    def seen(self) -> str:
        _, values = self._times.samples()
        values = values[np.isfinite(values)]
        if not len(values):
            return "no sample that could be placed in time"
        if values.min() == values.max():
            return f"the constant value {values[0]:g} in {len(values)} samples"
        return f"values from {values.min():g} to {values.max():g} in {len(values)} samples, but no clear steps"


class _MarkerSource:
    """A stream of markers, each of which is a trigger."""

    def __init__(self, receiver: MarkerReceiver, label: str) -> None:
        self.label = label
        assert receiver.description is not None, "a receiver that is not patient has found its stream"
        self.where = f"stream {receiver.description.name!r}"
        self._receiver = receiver
        self._clock = SenderClock()
        self._markers: list[Marker] = []

    def take(self, offsets: list[ClockOffset]) -> None:
        for offset in offsets:
            self._clock.add(offset)
        self._markers += [marker for marker in self._receiver.events.take_all() if np.isfinite(marker.stamp)]

    def events(self) -> Events:
        if not self._clock.ready or not self._markers:
            return Events(np.empty(0), np.empty(0), np.empty(0))
        stamps = sorted(marker.stamp for marker in self._markers)
        times = np.array([self._clock.to_local(stamp) for stamp in stamps])
        sd = np.array([self._clock.sd(stamp) for stamp in stamps])
        first = np.diff(times, prepend=-np.inf) >= APART_S
        return Events(times[first], sd[first], np.zeros(int(first.sum())))

    def seen(self) -> str:
        return "no marker" if not self._markers else f"{len(self._markers)} markers, but its clock could not be measured"


def measure_lags(
    settings: SessionSettings,
    transport: Transport,
    triggers: Triggers,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[MeasuredLag]:
    """Listen until all devices have shown enough shared triggers; a KeyboardInterrupt ends it early with what there is.

    Raises
    ------
    ConfigurationError
        The streams of the configuration and what is asked for do not go together, or a trigger channel cannot be told.
    StreamError
        A stream is missing; no triggers, too few, or such that cannot be paired without guessing.
    """
    reference = _reference(settings, triggers)
    clock, wake = transport.clock, Signal()
    limit_s = min(triggers.max_lag_ms, MAX_LAG_MS) * 1e-3
    with ExitStack() as resources:
        receivers: dict[str, Receiver] = {}
        workers: list[Worker] = []
        descriptions: dict[str, Callable[[], StreamDescription]] = {}
        sources: dict[str, _Source] = {}
        for modality in (m for m in Modality if m in settings.acquisition):
            receiver = Receiver(transport, settings.acquisition[modality], modality.value)
            resources.callback(receiver.close)
            receivers[modality.value] = receiver
            workers.append(receiver.worker(wake.ring))
            descriptions[modality.value] = lambda receiver=receiver: receiver.description  # type: ignore[misc]
            given = triggers.channels.get(modality)
            if given is None or not given.startswith(f"{MARKERS}:"):
                sources[modality.value] = _ChannelSource(receiver, trigger_channel(receiver, given))
        for label, name in _marker_streams(triggers).items():
            markers = MarkerReceiver(transport, StreamSettings(name=name), f"{label} triggers")
            resources.callback(markers.close)
            workers.append(markers.worker(wake.ring))
            descriptions[f"{label} triggers"] = lambda markers=markers: markers.description  # type: ignore[misc]
            sources[label] = _MarkerSource(markers, label)
        watch = ClockWatch(transport, descriptions)
        resources.callback(watch.close)
        workers.append(watch.worker(wake.ring))
        for worker in workers:
            resources.enter_context(worker)

        def look() -> None:
            for label, source in sources.items():
                own = f"{label} triggers" if f"{label} triggers" in descriptions else label
                source.take(watch.offsets[own].take_all())

        began = told = clock.now()
        shared: dict[str, tuple[Events, Events, Pairs]] = {}
        enough = False
        with suppress(KeyboardInterrupt):
            while not enough and clock.now() - began < triggers.seconds:
                wake.wait(LOOK_S)
                for worker in workers:
                    worker.check()
                for receiver in receivers.values():
                    if receiver.epochs:
                        raise StreamError(
                            f"{receiver.label}: its stream vanished and came back while it was being measured; what was "
                            "seen before may be from another device. Measure again."
                        )
                look()
                if clock.now() - told < TELL_S:
                    continue
                told = clock.now()
                found = {label: source.events() for label, source in sources.items()}
                if told - began > NO_TRIGGER_S:
                    _refuse_without(sources, found, told - began)
                shared = _pair_all(found, reference, limit_s)
                fewest = min(len(pairs.first) for _, _, pairs in shared.values())
                on_progress(Progress(told - began, {label: len(events) for label, events in found.items()}, fewest))
                enough = fewest >= triggers.n_triggers and not any(problem_of(*trio) for trio in shared.values())
        if not enough:
            look()
            found = {label: source.events() for label, source in sources.items()}
            _refuse_without(sources, found, clock.now() - began)
            shared = _pair_all(found, reference, limit_s)
            needed = triggers.n_triggers if clock.now() - began >= triggers.seconds else FEW
            for label, trio in shared.items():
                _refuse(label, reference, trio, needed, clock.now() - began)
        own = {label: lag_of(r.settings, r.description) for label, r in receivers.items()}
        against = f"{MARKERS} {triggers.against_markers}" if reference == MARKERS else reference
        lags = []
        for label, (first, second, pairs) in shared.items():
            apart = difference(first, second, pairs)
            known = own[reference].seconds if reference in own else 0.0
            sd = np.hypot(apart.lag_sd_s, own[reference].uncertainty_s / 2 if reference in own else 0.0)
            receiver = receivers[label]
            lags.append(
                MeasuredLag(
                    Modality(label),
                    device_of(receiver.settings, receiver.description),
                    against,
                    1e3 * (apart.lag_s + known),
                    2e3 * float(sd),
                    apart,
                    len(first),
                    len(second),
                )
            )
        for lag in lags:
            if abs(lag.lag_ms) > MAX_LAG_MS:
                raise StreamError(
                    f"{lag.label}: a lag of {lag.lag_ms:.0f} ms was measured; at most {MAX_LAG_MS:g} ms can be corrected. "
                    "Look at how its program makes its stamps, or set stamps = 'arrival' for it."
                )
        return lags


def trigger_channel(receiver: Receiver, given: str | None) -> str:
    """The channel that shows the triggers: the one that is named, or the only one that can be meant.

    Raises
    ------
    ConfigurationError
        There is none of that name, none at all, or more than one; those that may be meant are listed.
    """
    others, label = receiver.other_channels, receiver.label
    where = f"stream {receiver.description.name!r} ({label.upper()})"
    kinds = [others.names[i] for i in others.of_type(ChannelType.STIM)]
    candidates: list[str] = kinds or [name for name in others.names if _TRIGGER_NAME.search(name)]
    every = [*candidates, *(name for name in others.names if name not in candidates)]
    listed = ", ".join(every[:MAX_LISTED]) + (f" and {len(every) - MAX_LISTED} more" if len(every) > MAX_LISTED else "")
    may = f"it may be one of: {listed}" if every else "it has no channels beside the imaged ones"
    if given is not None:
        if given in others or given in receiver.channels:
            return given
        raise ConfigurationError(
            f"--{label}-trigger {given!r}: {where} has no such channel (names after renaming count); {may}. An imaged "
            f"channel can be named, too; for triggers that come as a stream of markers: --{label}-trigger {MARKERS}:NAME."
        )
    if len(candidates) == 1:
        return candidates[0]
    raise ConfigurationError(
        f"{where}: {len(candidates) or 'no'} channels look like a trigger channel; exactly one is expected, and {may}. Name "
        f"it: --{label}-trigger CHANNEL, or --{label}-trigger {MARKERS}:NAME for a stream of markers."
    )


def _reference(settings: SessionSettings, triggers: Triggers) -> str:
    streams = [m.value for m in Modality if m in settings.acquisition]
    if unknown := [m for m in triggers.channels if m not in settings.acquisition and triggers.channels[m] is not None]:
        raise ConfigurationError(
            f"--{unknown[0]}-trigger: the configuration has no section [acquisition.{unknown[0]}], but {', '.join(streams)}."
        )
    if triggers.against_markers is not None:
        return MARKERS
    if triggers.reference not in settings.acquisition or len(streams) < 2:
        raise ConfigurationError(
            f"--sync compares two devices, or each with markers; the configuration has {' and '.join(streams)}, and the "
            f"reference is {triggers.reference.value}. Add the other stream, choose --reference, or give the stream of "
            "markers that are stamped when the trigger is set: --against-markers NAME."
        )
    return triggers.reference.value


def _marker_streams(triggers: Triggers) -> dict[str, str]:
    """Names of streams of markers by the label of what they are the triggers of."""
    names = {
        modality.value: given.removeprefix(f"{MARKERS}:")
        for modality, given in triggers.channels.items()
        if given is not None and given.startswith(f"{MARKERS}:")
    }
    return names if triggers.against_markers is None else names | {MARKERS: triggers.against_markers}


def _pair_all(found: Mapping[str, Events], reference: str, limit_s: float) -> dict[str, tuple[Events, Events, Pairs]]:
    second = found[reference]
    return {
        label: (events, second, pair_events(events, second, limit_s))
        for label, events in found.items()
        if label != reference
    }


def problem_of(first: Events, second: Events, pairs: Pairs) -> str:
    """Why these pairs cannot be trusted; empty where they can."""
    n = len(pairs.first)
    if n and pairs.ambiguous:
        return (
            f"the best lag pairs {n} of them, another one {pairs.rival}: at regular intervals one trigger looks like the "
            "next. Send them at irregular intervals (0.8 to 1.4 s at random), or lower --max-lag below half the interval"
        )
    if n < LEAST_PART * min(len(first), len(second)):
        return (
            f"only {n} of them have a partner at any lag that was looked for: these may not be the same triggers, or lag by "
            "more than --max-lag"
        )
    return ""


def _refuse_without(sources: Mapping[str, _Source], found: Mapping[str, Events], seconds: float) -> None:
    for label, source in sources.items():
        if not len(found[label]):
            raise StreamError(
                f"{label}: no trigger in {seconds:.0f} s on {source.where}; seen: {source.seen()}. Clear steps are needed: "
                "is the cable plugged in, and does the stimulus program run? Another channel, or stream: "
                + (f"--{label}-trigger NAME." if label != MARKERS else "--against-markers NAME.")
            )


def _refuse(label: str, reference: str, trio: tuple[Events, Events, Pairs], needed: int, seconds: float) -> None:
    first, second, pairs = trio
    counted = f"{label} against {reference}: {len(first)} and {len(second)} triggers in {seconds:.0f} s"
    if problem := problem_of(*trio):
        raise StreamError(f"{counted}; {problem}.")
    if len(pairs.first) < needed:
        raise StreamError(
            f"{counted}, {len(pairs.first)} pairs; at least {needed} are expected. Let it listen longer (--seconds), or ask "
            f"for fewer (--triggers, {FEW} at least)."
        )


def as_settings(lag: MeasuredLag, measured: date) -> dict[str, Any]:
    """The keys of ``[acquisition.<stream>]`` that hold a lag; None: to be left out."""
    return {
        "lag_ms": round(lag.lag_ms, 3),
        "lag_uncertainty_ms": round(lag.uncertainty_ms, 3),
        "lag_drift_ppm": round(1e6 * lag.found.drift, 1) if lag.found.drifts else None,
        "lag_against": lag.against,
        "lag_measured": measured.isoformat(),
        "lag_device": lag.device,
    }
