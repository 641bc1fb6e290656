"""`rt-mmdf calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rt_mmdf.cli.console import ERR, OUT


def calibrate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML file that `monitor` will use.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write it; the name ends in -cov.fif.")],
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Of usable samples.")] = 60.0,
) -> None:
    """Measure the noise covariance from the live streams: an empty room, or a person at rest.

    The samples pass the same alignment and filters as in `monitor`. An empty room gives the sensors' noise (EEG needs a
    head); rest gives sensor and brain noise, which is what continuous imaging wants. Five samples a channel are the least;
    a minute is better. Then put it into the configuration:

        \\[noise]
        file = "rest-cov.fif"

    Example:

        rt-mmdf calibrate configs/monitor.toml --seconds 120 --out rest-cov.fif

    Ctrl-C ends it early and writes what there is.
    """
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
