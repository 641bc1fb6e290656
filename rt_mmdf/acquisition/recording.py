"""Recordings, as replay needs them: sensors of each modality, and events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import Element

import mne
import numpy as np

from rt_mmdf.acquisition.interpretation import interpret
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.blocks import Float64
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import RecordingError, RtMmdfError
from rt_mmdf.lsl.description import clean_label, clean_text
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.xdf import PACKED, open_whole

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_EVENT = 4096
"""Longest text of an event, characters; the rest is cut."""
_REPLAYED = ("eeg", "meg", "markers")
"""Labels of the streams of a session's recording that are played again."""

_PICKS: dict[Modality, dict[str, Any]] = {
    Modality.EEG: {"eeg": True, "eog": True, "ecg": True, "emg": True},
    Modality.MEG: {"meg": True, "ref_meg": True, "misc": True},
}


@dataclass(frozen=True)
class Recording:
    """A recording, cut by modality.

    Parameters
    ----------
    name : str
        Of the file, for messages and stream descriptions.
    sensors : dict of Modality to mne.io.BaseRaw
        EEG with EOG, ECG and EMG; MEG with reference and miscellaneous channels. Bads are marked in ``info["bads"]``. All
        start at the same instant and may have different sampling rates.
    events : tuple of (float, str)
        Seconds after the first sample, and what happened; in order.
    times : dict of Modality to (n_times,) float64
        When each sample was taken, where that is not by the sampling rate: seconds after the instant at which all begin.
        Empty for recordings of files that do not tell.
    """

    name: str
    sensors: dict[Modality, Any]
    events: tuple[tuple[float, str], ...] = ()
    times: dict[Modality, Float64] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """Length that all modalities cover, seconds."""
        if self.times:
            return min(float(np.nanmax(self.times[m]) + 1 / raw.info["sfreq"]) for m, raw in self.sensors.items())
        return min(float(raw.n_times / raw.info["sfreq"]) for raw in self.sensors.values())

    @classmethod
    def from_raw(cls, raw: Any, name: str = "recording") -> Recording:
        """Cut an :class:`mne.io.BaseRaw` by modality; events from its stimulus channels, else from its annotations.

        Raises
        ------
        RecordingError
            It holds neither EEG nor MEG.
        """
        sensors = {}
        for modality, wanted in _PICKS.items():
            # a bad channel is sent all the same, as a device would
            core = mne.pick_types(raw.info, **{"meg": False, str(modality): True}, exclude=())
            if len(core):
                picks = mne.pick_types(raw.info, **{"meg": False, **wanted}, exclude=())
                sensors[modality] = raw.copy().pick(picks, verbose="error")
        if not sensors:
            kinds = sorted(set(raw.get_channel_types()))
            raise RecordingError(
                f"recording {name}: no EEG and no MEG channel among its {len(raw.ch_names)} ({', '.join(kinds)}). "
                "If the types are wrong, correct them in the file (mne: raw.set_channel_types)."
            )
        return cls(name, sensors, _events(raw))


def read_recording(path: Path) -> Recording:
    """Read any recording that MNE reads (FIF, BrainVision, EDF, BDF, CTF, ...), or XDF.

    Sample data stay on disk until they are asked for, except for XDF.

    Raises
    ------
    RecordingError
        The file does not exist, is of an unknown kind, truncated, or holds neither EEG nor MEG.
    """
    if not path.exists():
        raise RecordingError(f"recording {path}: no such file or folder. Give the path of a recording that MNE reads.")
    if path.suffix.lower() in (".xdf", PACKED):
        return reading(path.name, partial(_read_xdf, path))
    raw = reading(path.name, lambda: mne.io.read_raw(path, preload=False, verbose="error"))
    recording = reading(path.name, lambda: Recording.from_raw(raw, path.name))
    # a truncated file may have an intact header: its last sample tells
    for part in recording.sensors.values():
        reading(path.name, partial(part.get_data, picks=[0], start=part.n_times - 1, verbose="error"))
    return recording


def reading(name: str, read: Callable[[], T]) -> T:
    """Call `read`; whatever a reader raises becomes a RecordingError with its reason (they raise anything, struct.error
    included).
    """
    try:
        return read()
    except RtMmdfError:
        raise
    except Exception as error:
        raise RecordingError(
            f"recording {name}: cannot be read ({type(error).__name__}: {clean_text(str(error), MAX_EVENT)}). A complete "
            "recording in a format that MNE knows is expected; check that the copy is complete, or that the file opens in "
            "mne.io.read_raw."
        ) from error


def _events(raw: Any) -> tuple[tuple[float, str], ...]:
    sfreq = raw.info["sfreq"]
    found: list[tuple[float, str]] = []
    if len(mne.pick_types(raw.info, meg=False, stim=True)):
        # shortest event 1 sample: a pulse of one sample is an event in a file of a device without debouncing
        events = mne.find_events(raw, shortest_event=1, initial_event=False, verbose="error")
        found = [((int(sample) - raw.first_samp) / sfreq, str(int(code))) for sample, _, code in events]
    if not found:
        # onsets count from the measurement date, or from first_samp where there is none
        offset = raw.first_time if raw.annotations.orig_time is not None else 0.0
        found = [(float(a["onset"]) - offset, clean_text(str(a["description"]), MAX_EVENT)) for a in raw.annotations]
    last = (raw.n_times - 1) / sfreq
    return tuple(sorted((time, text) for time, text in found if 0 <= time <= last))


def _read_xdf(path: Path) -> Recording:
    """EEG and MEG streams of an XDF file, each as one Raw, cut to their common time to the nearest sample.

    What `rt_mmdf.sinks.recording` has written is played as it was received: each sample at its own time, holes and jitter
    included, on the recorder's clock, and read as the session read it. A file without an end (the recorder was killed) is
    read up to its last whole chunk.
    """
    try:
        import pyxdf
    except ImportError as error:
        raise RecordingError(
            f'recording {path}: reading XDF needs pyxdf. Install it: pip install "rt-mmdf[recordings]".'
        ) from error

    file, contents = open_whole(path, _to_be_replayed)
    with file:
        told = "recording %s: %s; the %d of its %d bytes are left out"
        if contents.n_damaged:
            logger.warning(told, path, "it is damaged in the middle", contents.n_damaged, contents.n_bytes)
        if beyond := contents.n_bytes - contents.n_whole:
            logger.warning(told, path, "it ends in the middle of a chunk", beyond, contents.n_bytes)
        own = any(_label_of(header) for header in contents.headers.values())
        streams = pyxdf.load_xdf(file, dejitter_timestamps=not own, verbose=False)[0]
    sensors: dict[Modality, tuple[Any, Any]] = {}
    markers: list[tuple[float, str]] = []
    for stream in streams:
        info = stream["info"]
        kind, sfreq = (info["type"][0] or "").upper(), float(info["nominal_srate"][0])
        if own:
            label = _own_leaf(info, "label")
            kind = "MARKERS" if label == "markers" else label.upper()
        if len(stream["time_stamps"]) == 0:
            continue
        if sfreq == 0:
            if kind == "MARKERS":
                pairs = zip(stream["time_stamps"], stream["time_series"], strict=True)
                markers += [(float(time), _event_text(row[0], own=own)) for time, row in pairs]
            continue
        if kind not in ("EEG", "MEG"):
            continue
        modality = Modality(kind.lower())
        if modality in sensors:
            raise RecordingError(f"recording {path.name}: it holds more than one {kind} stream; exactly one is expected.")
        sensors[modality] = (_xdf_raw(stream, path.name, own=own), stream["time_stamps"])
    if not sensors:
        types = sorted({clean_label(header.findtext("type") or "") for header in contents.headers.values()})
        raise RecordingError(
            f"recording {path.name}: no stream of type EEG or MEG with a sampling rate (seen: {', '.join(types)})."
        )
    finite = [times[np.isfinite(times)] for _, times in sensors.values()]
    start = max((float(times[0]) for times in finite if len(times)), default=np.inf)
    stop = min((float(times[-1]) for times in finite if len(times)), default=-np.inf)
    if stop <= start:
        raise RecordingError(f"recording {path.name}: its EEG and MEG streams do not overlap in time.")
    cut, taken = {}, {}
    for modality, (raw, times) in sensors.items():
        first, last = (int(np.nanargmin(np.abs(times - edge))) for edge in (start, stop))
        cut[modality] = raw.crop(first / raw.info["sfreq"], last / raw.info["sfreq"])
        taken[modality] = np.asarray(times[first : last + 1] - start, dtype=np.float64)
    events = tuple(sorted((time - start, text) for time, text in markers if start <= time <= stop))
    return Recording(path.name, cut, events, taken if own else {})


def _to_be_replayed(headers: Mapping[int, Element]) -> Collection[int]:
    """Of a session's recording the streams with these labels: estimates, which may be large, are not replayed; nor are the
    operators' marks and the health. Of any other what may be sensors or markers.
    """
    labels = {number: _label_of(header) for number, header in headers.items()}
    if any(labels.values()):
        return [number for number, label in labels.items() if label in _REPLAYED]
    kinds = {number: (header.findtext("type") or "").upper() for number, header in headers.items()}
    return [number for number, kind in kinds.items() if kind in ("EEG", "MEG", "MARKERS")]


def _label_of(header: Element) -> str:
    return header.findtext("desc/rt_mmdf/label") or ""


def _own_leaf(info: Any, name: str) -> str:
    """A leaf that a session's recording adds to the description of a stream."""
    return str(info["desc"][0]["rt_mmdf"][0][name][0])


def _event_text(value: Any, *, own: bool) -> str:
    """As `rt_mmdf.acquisition.receiver.MarkerReceiver` reads it, where a session has recorded it."""
    return clean_text(value if isinstance(value, str) else f"{value:g}" if own else str(value), MAX_EVENT)


def _xdf_raw(stream: Any, name: str, *, own: bool) -> Any:
    info = stream["info"]
    nodes: list[Any] = []
    if (description := info["desc"][0]) and description.get("channels"):
        nodes = description["channels"][0]["channel"]
    n_channels = int(info["channel_count"][0])

    def text(node: Any, key: str) -> str:
        return clean_label(str((node.get(key) or [""])[0] or ""))

    channels = tuple(ChannelDescription(text(n, "label"), text(n, "type"), text(n, "unit")) for n in nodes)
    description = StreamDescription(
        name=text(info, "name"),
        type=text(info, "type"),
        source_id="",
        sfreq=float(info["nominal_srate"][0]),
        dtype="float64",
        channels=channels if len(channels) == n_channels else (ChannelDescription(""),) * n_channels,
        extra={},
    )
    settings = StreamSettings(name=description.name or "replay")
    if own:
        settings = StreamSettings.model_validate_json(_own_leaf(info, "acquisition"))
    read = interpret(description, settings, label=f"replay of {name}")
    samples = np.asarray(stream["time_series"])
    parts = [part for part in (read.imaged, read.others) if len(part.channels)]
    names = [channel for part in parts for channel in part.channels.names]
    types = [str(kind) for part in parts for kind in part.channels.types]
    data = np.hstack([part.to_si(samples) for part in parts]).T.astype(np.float64)
    return mne.io.RawArray(data, mne.create_info(names, description.sfreq, types), verbose="error")
