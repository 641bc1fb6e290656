"""Where commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

OUT = Console()
ERR = Console(stderr=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error, as a function of what is being done and the fraction that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True) as bars:
        task = bars.add_task("starting", total=1.0)
        yield lambda what, fraction: bars.update(task, description=what, completed=fraction)
