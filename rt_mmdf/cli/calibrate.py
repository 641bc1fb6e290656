"""`rt-mmdf calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rt_mmdf.cli.console import ERR, OUT
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError

if TYPE_CHECKING:
    from rt_mmdf.app.synchronisation import MeasuredLag

SYNC = "With --sync"


def calibrate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML file that `monitor` will use.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write the noise covariance; the name ends in -cov.fif.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=3600, help="Of usable samples [60]; with --sync the longest to wait [300].")
    ] = None,
    sync: Annotated[
        bool,
        typer.Option("--sync", help="Measure the devices' own lags by shared triggers instead, and store them in CONFIG."),
    ] = False,
    eeg_trigger: Annotated[
        str | None,
        typer.Option(
            metavar="CHANNEL", help="Of the EEG stream; or markers:NAME, a stream of markers.", rich_help_panel=SYNC
        ),
    ] = None,
    meg_trigger: Annotated[
        str | None, typer.Option(metavar="CHANNEL", help="The same of the MEG stream.", rich_help_panel=SYNC)
    ] = None,
    reference: Annotated[
        Modality, typer.Option(help="The device that the other one is compared with.", rich_help_panel=SYNC)
    ] = Modality.MEG,
    against_markers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Compare each with this stream of markers, stamped in true time.", rich_help_panel=SYNC
        ),
    ] = None,
    triggers: Annotated[int, typer.Option(min=5, max=1000, help="So many pairs are enough.", rich_help_panel=SYNC)] = 20,
    max_lag: Annotated[
        float, typer.Option(metavar="MS", min=1, max=1000, help="Larger ones are not looked for.", rich_help_panel=SYNC)
    ] = 500.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the change of CONFIG only.", rich_help_panel=SYNC)
    ] = False,
) -> None:
    """Measure the noise covariance from the live streams (an empty room, or a person at rest); or the devices' own lags.

    The samples pass the same alignment and filters as in `monitor`. An empty room gives the sensors' noise (EEG needs a
    head); rest gives sensor and brain noise, which is what continuous imaging wants. Five samples a channel are the least;
    a minute is better. Then put it into the configuration:

        \\[noise]
        file = "rest-cov.fif"

    With --sync: an amplifier shows an event 20 to 100 ms after it was, which no clock can tell. Send triggers that both
    systems record, at irregular intervals of about a second, and this finds how much later the one shows them. Only the
    difference of two devices can be seen so: the reference keeps the lag that it has, or has none, and what both have in
    common stays unknown. Where the stimulus program publishes markers as it sets the trigger, --against-markers measures
    the whole lag of each. What is found goes into \\[acquisition.eeg] and \\[acquisition.meg] of CONFIG, comments and layout
    stay, and is subtracted from then on.

    Examples:

        rt-mmdf calibrate configs/monitor.toml --seconds 120 --out rest-cov.fif

        rt-mmdf calibrate my.toml --sync --eeg-trigger TRIGGER --meg-trigger "STI 014"

    Ctrl-C ends it early and writes what there is.
    """
    sync_only = {
        "--eeg-trigger": eeg_trigger is not None,
        "--meg-trigger": meg_trigger is not None,
        "--against-markers": against_markers is not None,
        "--dry-run": dry_run,
    }
    if sync:
        if out is not None:
            raise ConfigurationError(f"--out {out}: with --sync no noise covariance is measured. Leave one of the two out.")
        channels = {Modality.EEG: eeg_trigger, Modality.MEG: meg_trigger}
        _lags(config, channels, reference, against_markers, triggers, seconds or 300.0, max_lag, dry_run=dry_run)
        return
    if given := [name for name, used in sync_only.items() if used]:
        raise ConfigurationError(f"{given[0]} is for --sync. Add that, or leave {given[0]} out.")
    if out is None:
        raise ConfigurationError(
            "calibrate: say where to write the noise covariance, --out rest-cov.fif (or measure lags: --sync)."
        )
    _noise(config, out, seconds or 60.0)


def _noise(config: Path, out: Path, seconds: float) -> None:
    from rt_mmdf.app.calibration import Measurement
    from rt_mmdf.app.calibration import calibrate as measure
    from rt_mmdf.app.settings import SessionSettings
    from rt_mmdf.core.settings import load_settings
    from rt_mmdf.headmodel.noise import check_cov_path, save_noise_cov
    from rt_mmdf.lsl.network import NetworkTransport

    check_cov_path(out)
    settings = load_settings(config, SessionSettings)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rank]}"), TimeRemainingColumn())
    with Progress(*columns, console=ERR, transient=True) as bars:
        task = bars.add_task("waiting for samples", total=seconds, rank="")

        def show(now: Measurement) -> None:
            what = "measuring" if now.seconds else "waiting for the filters to settle"
            bars.update(task, description=what, completed=now.seconds, rank=f"rank {now.rank} of {now.n_channels}")

        covariance, measured = measure(settings, NetworkTransport(), seconds, show)
    save_noise_cov(covariance, out)
    OUT.print(
        f"{measured.seconds:.1f} s of {measured.n_channels} channels, rank {measured.rank}; {measured.left_out} samples "
        f"left out. Written to {out}",
        highlight=False,
    )
    if measured.bads:
        listed = ", ".join(f"{name} ({reason})" for name, reason in measured.bads.items())
        ERR.print(
            f"Warning: these channels look bad: {listed}. Name them under preprocessing.bads.", highlight=False, markup=False
        )
    if measured.advice is not None:
        ERR.print(f"Warning: {measured.advice}", highlight=False, markup=False)


def _lags(
    config: Path,
    channels: dict[Modality, str | None],
    reference: Modality,
    against_markers: str | None,
    n_triggers: int,
    seconds: float,
    max_lag_ms: float,
    *,
    dry_run: bool,
) -> None:
    from datetime import date

    from rt_mmdf.app import synchronisation
    from rt_mmdf.app.configuration_file import ConfigurationFile
    from rt_mmdf.app.settings import SessionSettings
    from rt_mmdf.core.settings import load_settings
    from rt_mmdf.lsl.network import NetworkTransport

    file, settings = ConfigurationFile(config, SessionSettings), load_settings(config, SessionSettings)
    wanted = synchronisation.Triggers(channels, reference, against_markers, n_triggers, seconds, max_lag_ms)
    with Progress(TextColumn("{task.description}"), BarColumn(), console=ERR, transient=True) as bars:
        task = bars.add_task("waiting for triggers", total=n_triggers)

        def show(now: synchronisation.Progress) -> None:
            seen = ", ".join(f"{label} {n}" for label, n in now.triggers.items())
            what = f"{now.seconds:.0f} s, triggers: {seen}; {now.pairs} of {n_triggers} pairs"
            bars.update(task, description=what, completed=now.pairs)

        lags = synchronisation.measure_lags(settings, NetworkTransport(), wanted, show)
    for lag in lags:
        file.with_values(("acquisition", lag.label.value), synchronisation.as_settings(lag, date.today()))
        _tell(lag)
    if against_markers is None:
        OUT.print(f"The lag of {reference.value} itself, which both have in common, is not seen by this.", highlight=False)
    for line in file.changes():
        OUT.print(line, highlight=False, markup=False, soft_wrap=True)
    if dry_run:
        OUT.print(f"{config} is left as it was (--dry-run).", highlight=False)
        return
    file.write()
    OUT.print(f"Written to {config}", highlight=False)


def _tell(lag: MeasuredLag) -> None:
    found = lag.found
    OUT.print(
        f"{lag.label.upper()} ({lag.device}): lag {lag.lag_ms:+.2f} ms ±{lag.uncertainty_ms:.2f} against {lag.against}; "
        f"drift {1e6 * found.drift:+.0f} ppm ±{2e6 * found.drift_sd:.0f}; single triggers scatter by "
        f"{1e3 * found.spread_s:.2f} ms",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    OUT.print(
        f"  {found.n_pairs} pairs of {lag.n_triggers} and {lag.n_reference} triggers; without a partner, or far off: "
        f"{lag.n_triggers - found.n_pairs} and {lag.n_reference - found.n_pairs}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if found.drifts:
        ERR.print(
            f"Warning: the lag of {lag.label} moves by {6e4 * found.drift:+.2f} ms a minute against {lag.against}, though "
            "the clocks' drift is corrected: the stamps of one of the two are wrong. A constant cannot mend that: correct "
            "its program, or set stamps = 'arrival' for it and measure again.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
