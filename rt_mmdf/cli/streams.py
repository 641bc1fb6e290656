"""`rt-mmdf streams`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rt_mmdf.cli.console import ERR, OUT


def streams(
    wait_s: Annotated[float, typer.Option("--wait", min=0.1, max=60, help="Seconds to listen.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List what the Lab Streaming Layer offers on this network.

    Name, type and source id are what a configuration refers to, for example name = "BrainAmp" under \\[acquisition.eeg].

    Nothing listed? Is the sending program linked to LSL and started; is it on the same network; does a firewall let UDP
    port 16571 and TCP and UDP ports 16572 to 16604 through? `rt-mmdf doctor` tries LSL on this machine alone.
    """
    from rt_mmdf.lsl.network import NetworkTransport

    found = NetworkTransport().resolve(timeout_s=wait_s)
    if as_json:
        keys = ("name", "type", "source_id", "hostname", "sfreq", "n_channels", "dtype", "uid")
        content = [{key: getattr(stream, key) for key in keys} for stream in found]
        typer.echo(json.dumps(content, indent=1))
        return
    if not found:
        ERR.print(f"No stream answered within {wait_s:g} s. Reasons and remedies: rt-mmdf streams --help", highlight=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "type", "source id", "host"):
        table.add_column(title, overflow="fold")
    for title in ("rate", "channels", "format"):
        table.add_column(title, justify="right", no_wrap=True)
    for stream in found:
        rate = f"{stream.sfreq:g} Hz" if stream.sfreq else "irregular"
        # names come from the network: printed as they are, never as markup
        words = (stream.name, stream.type, stream.source_id, stream.hostname, rate, str(stream.n_channels), stream.dtype)
        table.add_row(*map(Text, words))
    OUT.print(table)
