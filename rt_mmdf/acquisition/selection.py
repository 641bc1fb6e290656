"""Exactly one stream, or an error that says what there is."""

from __future__ import annotations

from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.core.errors import StreamAmbiguous, StreamNotFound
from rt_mmdf.lsl.interface import StreamDescription, Transport


def select_stream(transport: Transport, settings: StreamSettings, label: str) -> StreamDescription:
    """The one stream that fits.

    Parameters
    ----------
    label : str
        Name of the stream in the configuration, for messages.

    Raises
    ------
    StreamNotFound
        None fits within the time limit; what is on offer is listed.
    StreamAmbiguous
        More than one fits; source ids and hosts are listed.
    """
    found = transport.resolve(
        name=settings.name, type=settings.type, source_id=settings.source_id, timeout_s=settings.resolve_timeout_s
    )
    fitting = [stream for stream in found if settings.hostname in (None, stream.hostname)]
    if not fitting:
        offer = transport.resolve(timeout_s=1.0)
        listed = "\n".join(f"  {one_line(stream)}" for stream in offer[:20]) or "  nothing at all"
        raise StreamNotFound(
            f"acquisition.{label}: no stream with {settings.wanted()} within {settings.resolve_timeout_s:g} s. On "
            f"offer:\n{listed}\n"
            "Start the sending program, or correct the configuration. Other machines' streams need the same network and "
            "open UDP ports 16571 to 16604."
        )
    if len(fitting) > 1:
        listed = "\n".join(f"  {one_line(stream)}" for stream in fitting[:20])
        raise StreamAmbiguous(
            f"acquisition.{label}: {len(fitting)} streams with {settings.wanted()}; exactly one is expected:\n{listed}\n"
            f"Set source_id or hostname under [acquisition.{label}], or stop the others."
        )
    return fitting[0]


def one_line(stream: StreamDescription) -> str:
    """One stream for a list."""
    rate = f"{stream.sfreq:g} Hz" if stream.sfreq else "irregular"
    return (
        f"{stream.name!r}, type {stream.type!r}, {stream.n_channels} channels, {rate}, {stream.dtype}, "
        f"source_id {stream.source_id!r}, host {stream.hostname!r}"
    )
