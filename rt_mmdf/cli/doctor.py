"""`rt-mmdf doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rt_mmdf.cli.console import ERR, OUT

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """Say what this machine can do: LSL, versions, memory, cache, optional parts.

    LSL is really tried: a stream is published, found, and 200 samples make the round trip. "note" is something optional that
    is absent or less than advised; "problem" means that live imaging does not work here, and ends with exit code 1.
    """
    from rt_mmdf.app.doctor import Finding, Verdict, examine
    from rt_mmdf.lsl.network import NetworkTransport

    findings: list[Finding] = []
    with ERR.status("examining"):
        findings.extend(examine(NetworkTransport()))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for finding in findings:
            verdict = Text(finding.verdict.value, style=STYLES[finding.verdict.value])
            table.add_row(verdict, Text(finding.what, style="bold"), Text(finding.seen))
        OUT.print(table)
    if any(finding.verdict is Verdict.PROBLEM for finding in findings):
        raise typer.Exit(1)
