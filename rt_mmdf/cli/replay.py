"""`rt-mmdf replay`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rt_mmdf.cli.console import ERR, OUT
from rt_mmdf.cli.live import interrupts_between_looks
from rt_mmdf.core.errors import ConfigurationError, SinkError

if TYPE_CHECKING:
    from rt_mmdf.acquisition.replay import Replay, ReplaySettings

MODALITIES = ("eeg", "meg")


class Stamps(StrEnum):
    """How a device stamps its samples."""

    PER_SAMPLE = "per_sample"
    FIRST_OF_BLOCK = "first_of_block"
    LAST_OF_BLOCK = "last_of_block"


class Only(StrEnum):
    """One modality."""

    EEG = "eeg"
    MEG = "meg"


PLAY, DEVICE, FAULTS, RUN = "What is played", "How devices send it", "What may go wrong", "How it runs"


def replay(
    recording: Annotated[
        Path, typer.Argument(metavar="FILE", help="FIF, BrainVision, EDF, BDF, XDF, CTF, ...: whatever MNE reads.")
    ],
    loop: Annotated[
        str | None, typer.Option(help="How often, end to end; inf for ever. Default 1.", rich_help_panel=PLAY)
    ] = None,
    start_s: Annotated[float | None, typer.Option("--start", help="From this second on.", rich_help_panel=PLAY)] = None,
    duration_s: Annotated[
        float | None, typer.Option("--duration", help="So many seconds of it.", rich_help_panel=PLAY)
    ] = None,
    only: Annotated[Only | None, typer.Option(help="One modality only.", rich_help_panel=PLAY)] = None,
    markers: Annotated[
        bool | None,
        typer.Option("--markers/--no-markers", help="Events as a marker stream. Default: yes.", rich_help_panel=PLAY),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Streams are called PREFIX-EEG, PREFIX-MEG, PREFIX-markers. Default replay.", rich_help_panel=PLAY
        ),
    ] = None,
    eeg_rate: Annotated[
        float | None, typer.Option(help="Hz; resampled if needed. Default: as recorded.", rich_help_panel=DEVICE)
    ] = None,
    meg_rate: Annotated[
        float | None, typer.Option(help="Hz; resampled if needed. Default: as recorded.", rich_help_panel=DEVICE)
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Samples per block, both streams. Default 10.", rich_help_panel=DEVICE)
    ] = None,
    eeg_chunk: Annotated[int | None, typer.Option(help="Samples per block of EEG.", rich_help_panel=DEVICE)] = None,
    meg_chunk: Annotated[int | None, typer.Option(help="Samples per block of MEG.", rich_help_panel=DEVICE)] = None,
    stamps: Annotated[
        Stamps | None, typer.Option(help="Stamping habit. Default per_sample.", rich_help_panel=DEVICE)
    ] = None,
    si_units: Annotated[
        bool | None,
        typer.Option("--si/--device-units", help="V, T, T/m, or uV, fT, fT/cm (default).", rich_help_panel=DEVICE),
    ] = None,
    jitter_ms: Annotated[float | None, typer.Option(help="Blocks come late by up to this.", rich_help_panel=FAULTS)] = None,
    eeg_drift_ppm: Annotated[float | None, typer.Option(help="The EEG device runs fast.", rich_help_panel=FAULTS)] = None,
    meg_drift_ppm: Annotated[float | None, typer.Option(help="The MEG device runs fast.", rich_help_panel=FAULTS)] = None,
    eeg_gap: Annotated[
        list[str] | None, typer.Option(help="START,SECONDS that are not sent; repeatable.", rich_help_panel=FAULTS)
    ] = None,
    meg_gap: Annotated[
        list[str] | None, typer.Option(help="START,SECONDS that are not sent; repeatable.", rich_help_panel=FAULTS)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the jitter.", rich_help_panel=FAULTS)] = None,
    chaos: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            help="Faults drawn from this seed: outlets vanish, streams stall, clocks step, stamps and channels go bad.",
            rich_help_panel=FAULTS,
        ),
    ] = None,
    speed: Annotated[
        str | None, typer.Option(help="1 (default) is real time; inf as fast as possible.", rich_help_panel=RUN)
    ] = None,
    wait_for_consumers_s: Annotated[
        float | None,
        typer.Option(
            "--wait-for-consumers", help="Start when each stream has a consumer; seconds to wait.", rich_help_panel=RUN
        ),
    ] = None,
    counter: Annotated[
        bool | None, typer.Option("--counter/--no-counter", help="Add a channel that counts samples.", rich_help_panel=RUN)
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Write what was sent (JSON).", rich_help_panel=RUN)] = None,
    log_pushes: Annotated[
        bool | None,
        typer.Option(
            "--log-pushes/--no-log-pushes", help="With --log: the time of each block too (.npz).", rich_help_panel=RUN
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with these settings; flags override it.", rich_help_panel=RUN)
    ] = None,
) -> None:
    """Play a recording as separate EEG and MEG streams, as if it were being acquired.

    Examples:

        rt-mmdf replay sample_raw.fif --loop 6

        rt-mmdf replay sample_raw.fif --eeg-rate 500 --eeg-chunk 5 --jitter-ms 5 --loop inf

        rt-mmdf replay night.vhdr --start 60 --duration 30 --eeg-gap 10,0.5

        rt-mmdf replay sample_raw.fif --loop 6 --chaos 7 --log what-went-wrong.json

    Look at it with `rt-mmdf streams`, image it with `rt-mmdf monitor`. Ctrl-C ends it.
    """
    from rt_mmdf.acquisition.recording import read_recording
    from rt_mmdf.acquisition.replay import Replay, ReplaySettings
    from rt_mmdf.app.scorecard import check_report_path
    from rt_mmdf.core.settings import validate_settings
    from rt_mmdf.lsl.network import NetworkTransport

    flags = {
        "loop": None if loop is None else _number("--loop", loop),
        "start_s": start_s,
        "duration_s": duration_s,
        "modalities": None if only is None else [only.value],
        "markers": markers,
        "prefix": prefix,
        "seed": seed,
        "speed": None if speed is None else _number("--speed", speed),
        "wait_for_consumers_s": wait_for_consumers_s,
        "counter": counter,
        "log_pushes": log_pushes,
    }
    content = _from_file(config) | {key: value for key, value in flags.items() if value is not None}
    both = {
        "jitter_ms": jitter_ms,
        "stamps": None if stamps is None else stamps.value,
        "unit": None if si_units is None else "si" if si_units else "device",
    }
    own = {
        "eeg": {
            "sfreq": eeg_rate,
            "chunk": eeg_chunk or chunk,
            "drift_ppm": eeg_drift_ppm,
            "gaps": _gaps("--eeg-gap", eeg_gap),
        },
        "meg": {
            "sfreq": meg_rate,
            "chunk": meg_chunk or chunk,
            "drift_ppm": meg_drift_ppm,
            "gaps": _gaps("--meg-gap", meg_gap),
        },
    }
    for modality in MODALITIES:
        given = {key: value for key, value in (both | own[modality]).items() if value is not None}
        content[modality] = content.get(modality, {}) | given
    if chaos is not None:
        content["chaos"] = content.get("chaos", {}) | {"seed": chaos}
    settings = validate_settings(content, ReplaySettings, where="replay")
    if log is not None:
        check_report_path(log, "--log")
    with Replay(NetworkTransport(), read_recording(recording), settings) as player, interrupts_between_looks() as look:
        try:
            OUT.print(_table(player, settings))
            if player.plan is not None:
                OUT.print(Text(f"chaos, seed {player.plan.seed}; seconds after the first sample:"))
                for fault in player.plan.faults:
                    OUT.print(Text(f"  {fault}"))
            _play(player, settings, look)
        finally:
            if log is not None:
                _write_log(player, log)
            sent = ", ".join(f"{stream.n_sent} samples as {stream.name}" for stream in player.log.streams.values())
            OUT.print(Text(f"sent {sent}, {player.log.n_markers} markers"))


def _play(player: Replay, settings: ReplaySettings, look: Callable[[], None]) -> None:
    """Play to the end in the replay's own thread; its error, and what `look` raises, come out here."""
    logs = list(player.log.streams.values())
    total = settings.loop * logs[0].n_per_loop
    worker = player.worker(on_failure=player.ended.ring)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[second]:.0f} s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR, transient=True) as bars:
        task = bars.add_task("waiting for consumers", total=None if total == float("inf") else total, second=0.0)
        try:  # from before the thread runs: whatever is raised in this moment must not withdraw the streams beneath it
            worker.start()
            while not player.ended.wait(0.25):
                look()
                worker.check()
                done = logs[0].n_sent + logs[0].n_skipped
                what = "playing" if player.started else "waiting for consumers"
                bars.update(task, description=what, completed=done, second=done / logs[0].sfreq)
            worker.check()
        finally:
            worker.stop()


def _table(player: Replay, settings: ReplaySettings) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stream", "rate", "samples per block", "length", "played"):
        table.add_column(title)
    times = "for ever" if settings.loop == float("inf") else f"{settings.loop:g} x"
    for modality, stream in player.log.streams.items():
        own = getattr(settings, modality)
        length = f"{stream.n_per_loop / stream.sfreq:.2f} s"
        table.add_row(Text(stream.name), f"{stream.sfreq:g} Hz", str(own.chunk), length, times)
    return table


def _from_file(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    from rt_mmdf.acquisition.replay import ReplaySettings
    from rt_mmdf.core.settings import load_settings

    return load_settings(config, ReplaySettings).model_dump(exclude_unset=True)


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigurationError(f"{flag} {text!r}: a number, or inf, is expected.") from error


def _gaps(flag: str, texts: list[str] | None) -> list[tuple[float, float]] | None:
    if not texts:
        return None
    gaps = []
    for text in texts:
        start, _, length = text.partition(",")
        try:
            gaps.append((float(start), float(length)))
        except ValueError as error:
            raise ConfigurationError(f"{flag} {text!r}: START,SECONDS is expected, for example 10,0.5.") from error
    return gaps


def _write_log(player: Replay, path: Path) -> None:
    try:
        player.log.write(path)
    except OSError as error:
        raise SinkError(f"--log {path}: cannot be written ({error.strerror}). Choose a folder that exists.") from error
