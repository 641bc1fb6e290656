"""One HTML file that needs nothing else: what the reports of evaluations and profiles are made of."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from rt_mmdf.core.errors import SinkError

STYLE = """
:root { --ink: #1c1c1c; --soft: #5a5a5a; --line: #d9d9d9; --best: #e3eef8; --good: #1a6e35; --bad: #a3261e; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff }
body { max-width: 1500px; margin: 2em auto; padding: 0 1.5em }
h1 { font-size: 1.7em; margin-bottom: .2em } h2 { font-size: 1.3em; margin-top: 2.2em; border-bottom: 2px solid var(--line) }
h3 { font-size: 1.05em; margin: 1.8em 0 .4em }
p.note { color: var(--soft); max-width: 70em }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: .4em 0 1em }
th, td { padding: .22em .5em; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600 } thead th { border-bottom: 1px solid #999 } tbody th, td.text { text-align: left }
table.facts td { white-space: normal }
.wide { overflow-x: auto }
figure { margin: 1em 0 2em } figure img { max-width: 100%; height: auto } figcaption { color: var(--soft) }
code { font-size: .92em; overflow-wrap: anywhere }
@page { size: A4 landscape; margin: 12mm }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 9.5pt } table { font-size: 8pt } .wide { overflow: visible }
  th, td { padding: .12em .3em } figure, tr, .wide { break-inside: avoid } h2, h3 { break-after: avoid }
}
"""


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """The whole file; `style` comes behind `STYLE`."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def facts_table(facts: Mapping[str, str]) -> str:
    """Names and values."""
    rows = "".join(f'<tr><th>{escape(name)}</th><td class="text">{escape(value)}</td></tr>' for name, value in facts.items())
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def figure_part(figure: Figure, caption: str) -> str:
    """A figure inside the file."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        data = base64.b64encode(file.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * figure.dpi)
    return (
        f'<figure><img width="{width}" alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def write_page(text: str, path: Path) -> None:
    """Write the HTML file, replacing an earlier one; SinkError if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")  # a name may hold half a character
    except OSError as error:
        raise SinkError(
            f"report {path}: cannot be written ({error.strerror or error}). Free some space or choose another place."
        ) from error
