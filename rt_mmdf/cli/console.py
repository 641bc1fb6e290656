"""Where commands print: results to standard output, everything else to standard error.

Names of streams, channels and models, notes, and the messages of readers come from outside. So nothing that is printed is
read as markup, and what a terminal would obey (escape sequences, directions, returns) is shown as U+FFFD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from rt_mmdf.core.text import REPLACEMENT, printable


class PlainConsole(Console):
    """A console on which text is only ever shown; colours and cursor movements are rich's own."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield segment._replace(text=printable(segment.text, keep="\n", instead=REPLACEMENT))


OUT = PlainConsole()
ERR = PlainConsole(stderr=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error, as a function of what is being done and the fraction that is done."""
    what_column = TextColumn("{task.description}", markup=False)
    columns = (what_column, BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True) as bars:
        task = bars.add_task("starting", total=1.0)
        yield lambda what, fraction: bars.update(task, description=what, completed=fraction)
