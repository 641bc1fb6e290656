"""`rt-mmdf head`: build or inspect a head model."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from rt_mmdf.cli.console import OUT, progress_bar
from rt_mmdf.core.errors import HeadModelError

if TYPE_CHECKING:
    import mne

    from rt_mmdf.headmodel.head import HeadModel

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write the head model to; made if needed.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")]
Recording = Annotated[
    Path | None,
    typer.Option(
        "--recording",
        "-r",
        help="Recording of today, in any format of MNE: sensors, head position, digitised electrodes.",
    ),
]
SubjectsDir = Annotated[Path | None, typer.Option(help="FreeSurfer's folder of subjects, for the inflated surface.")]
Subject = Annotated[str | None, typer.Option(help="The subject's folder in it.")]


class Spacing(StrEnum):
    """Sources per hemisphere."""

    ICO3 = "ico3"
    ICO4 = "ico4"
    ICO5 = "ico5"


@app.callback()
def head() -> None:
    """Build or inspect a head model: a folder that `monitor` and `demo` image with.

    Without an MRI, take the template. With one, give the coregistration, source space and BEM solution that you made with
    FreeSurfer and MNE, or a forward solution.
    """


@app.command()
def template(
    out: Out,
    spacing: Annotated[Spacing, typer.Option(help="Sources: ico3 1284, ico4 5124, ico5 20484.")] = Spacing.ICO4,
    recording: Recording = None,
    meg: Annotated[str, typer.Option(help="MEG array: neuromag306, ctf151, ctf275 or none.")] = "neuromag306",
    eeg: Annotated[str, typer.Option(help="Montage of the electrodes, by MNE's name, or none.")] = "mgh60",
    skull_s_per_m: Annotated[
        float, typer.Option("--skull", min=1e-4, max=0.3, help="Conductivity of the skull, S/m.")
    ] = 0.006,
    name: Annotated[str, typer.Option(help="How messages and streams call it.")] = "template",
    force: Force = False,
) -> None:
    """Head model of fsaverage: cortex, skull and scalp come with the package; takes half a minute once.

    Examples:

        rt-mmdf head template --out heads/template

        rt-mmdf head template --eeg standard_1005 --meg none --recording today.vhdr --out heads/cap

    Localisation with a template is off by a centimetre and more: good for a first look, not for a single patient.
    """
    from rt_mmdf.headmodel.template import build_template

    _may_write(out, force)
    info = _info_of(recording)
    with progress_bar() as progress:
        built = build_template(
            spacing=spacing.value,
            info=info,
            meg=_or_none(meg),
            eeg=_or_none(eeg),
            conductivity=(0.3, skull_s_per_m, 0.3),
            name=name,
            progress=progress,
        )
    _finish(built, out)


@app.command()
def subject(
    recording: Annotated[Path, typer.Option("--recording", "-r", help="Recording of today: sensors and where the head is.")],
    trans: Annotated[Path, typer.Option(help="Coregistration, -trans.fif.")],
    src: Annotated[Path, typer.Option(help="Cortical source space, -src.fif.")],
    bem: Annotated[Path, typer.Option(help="BEM solution, -bem-sol.fif.")],
    out: Out,
    mindist_mm: Annotated[float, typer.Option(min=0, max=50, help="Leave out sources nearer to the inner skull.")] = 0.0,
    subjects_dir: SubjectsDir = None,
    subject: Subject = None,
    name: Annotated[str, typer.Option(help="How messages and streams call it.")] = "subject",
    force: Force = False,
) -> None:
    """Head model of a subject from FreeSurfer and MNE: coregistration, source space, BEM solution.

    Example:

        rt-mmdf head subject --recording today_raw.fif --trans s01-trans.fif --src s01-oct6-src.fif --bem s01-bem-sol.fif
        --out heads/s01
    """
    from rt_mmdf.headmodel.subject import build_subject

    _may_write(out, force)
    info = _info_of(recording)
    assert info is not None
    with progress_bar() as progress:
        built = build_subject(
            info,
            trans,
            src,
            bem,
            name=name,
            mindist_mm=mindist_mm,
            subjects_dir=subjects_dir,
            subject=subject,
            progress=progress,
        )
    _finish(built, out)


@app.command()
def forward(
    solution: Annotated[Path, typer.Argument(metavar="FWD", help="Forward solution, -fwd.fif, free orientation.")],
    out: Out,
    recording: Recording = None,
    subjects_dir: SubjectsDir = None,
    subject: Subject = None,
    name: Annotated[str | None, typer.Option(help="How messages and streams call it; from the file by default.")] = None,
    force: Force = False,
) -> None:
    """Head model of an existing forward solution.

    With --recording you are told if the head has moved since the solution was made.

    Example:

        rt-mmdf head forward s01-fwd.fif --recording today_raw.fif --out heads/s01
    """
    from rt_mmdf.headmodel.subject import from_forward

    _may_write(out, force)
    info = _info_of(recording)
    built = from_forward(solution, info, name=name, subjects_dir=subjects_dir, subject=subject)
    _finish(built, out)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A head model made by one of the other commands.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what is in a head model, after checking that it is whole."""
    from rt_mmdf.headmodel.head import load_head

    facts = load_head(folder).summary()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        OUT.print(_table(facts))


def _or_none(name: str) -> str | None:
    return None if name.lower() == "none" else name


def _may_write(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise HeadModelError(f"--out {out}: a file is in the way; a folder is expected. Choose another name.")
    if not force and out.is_dir() and any(out.iterdir()):
        raise HeadModelError(
            f"--out {out}: the folder is not empty. Choose another one, or replace what is in it with --force."
        )
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise HeadModelError(f"--out {out}: {there} is no folder that you may write to. Choose another one.")


def _info_of(recording: Path | None) -> mne.Info | None:
    if recording is None:
        return None
    import mne

    from rt_mmdf.acquisition.recording import reading

    return reading(str(recording), lambda: mne.io.read_raw(recording, preload=False, verbose="ERROR").info)


def _finish(built: HeadModel, out: Path) -> None:
    built.save(out)
    OUT.print(_table(built.summary()))
    OUT.print(Text.assemble("written to ", (str(out), "bold"), ': in a configuration, [head] folder = "', str(out), '"'))


def _table(facts: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        plain = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(Text(key), Text(plain))
    return table
