"""The scorecard: what a session did, in numbers, for people (a table) and for programs (JSON)."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import rt_mmdf
from rt_mmdf.core.errors import SinkError


@dataclass(frozen=True)
class Scorecard:
    """What `--report` writes. A figure that was not measured is None (JSON null), never a made-up zero.

    Parameters
    ----------
    solver : str
    n_sources, n_channels : int
    hops : int
        Hops whose time came, skipped ones included.
    estimates : int
        Hops that were imaged and published.
    missed_deadlines : int
        Estimates later than the budget, measured against the intended time of their hop; start-up excluded.
    skipped_hops : int
        Hops that were left out to catch up with the present.
    lost_samples : mapping
        Per modality ("eeg", "meg"): samples that the stamps say were sent and that never came; None for a modality that
        was not connected.
    alignment_ms : mapping of "p50", "p99"
        Error of the alignment; `alignment_source` says whether against the truth or from the fit's own residuals.
    latency_ms : mapping of "p50", "p90", "p99", "max"
        From the intended time of a hop to its publication; start-up excluded.
    le_mm : mapping of "median", "p90" | None
        Localisation error against known sources; None where none are known.
    cpu_cores : float
        Processor time of this process over wall time.
    rss_mb : float
        Resident memory at the end.
    versions : mapping
        See `versions`.
    extra : mapping
        Further keys of the report, beside the fixed ones.
    """

    solver: str
    n_sources: int
    n_channels: int
    hops: int
    estimates: int
    missed_deadlines: int
    skipped_hops: int
    lost_samples: Mapping[str, int | None]
    alignment_ms: Mapping[str, float | None]
    latency_ms: Mapping[str, float | None]
    le_mm: Mapping[str, float | None] | None
    cpu_cores: float
    rss_mb: float
    versions: Mapping[str, str]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = {
            "lost_samples": {"eeg", "meg"},
            "alignment_ms": {"p50", "p99"},
            "latency_ms": {"p50", "p90", "p99", "max"},
            "le_mm": {"median", "p90"},
        }
        for name, keys in expected.items():
            value = getattr(self, name)
            if value is not None and set(value) != keys:
                raise ValueError(f"scorecard: {name} has the keys {sorted(value)}, expected are {sorted(keys)}")
        if doubled := set(self.extra) & set(asdict(self)):
            raise ValueError(f"scorecard: extra repeats the fixed keys {sorted(doubled)}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values with the fixed keys first; numbers that are not finite become None."""
        content = asdict(self)
        extra = content.pop("extra")
        values = plain(content | extra)
        assert isinstance(values, dict)
        return values

    def write(self, path: Path) -> None:
        """Write strict JSON, whole or not at all.

        Raises
        ------
        SinkError
            The file cannot be written; an earlier file of that name is untouched.
        """
        write_json(path, self.as_dict())

    def render(self) -> RenderableType:
        """The scorecard for a terminal."""
        return _render(self)


def write_json(path: Path, content: object, *, compact: bool = False) -> None:
    """Write strict JSON by way of a temporary file beside it, so that nobody ever reads half a report.

    What is no plain file (a pipe, a device) is written to as it is.

    Raises
    ------
    SinkError
        The file cannot be written.
    """
    text = json.dumps(content, indent=None if compact else 2, allow_nan=False) + "\n"
    temporary: str | None = None
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise _not_written("report", path, error) from error


def check_report_path(path: Path, what: str = "report") -> None:
    """Raise SinkError where no report could be written: better told before a session than after it.

    Parameters
    ----------
    what : how the message calls it

    Raises
    ------
    SinkError
        The folder is missing or closed, or `path` is a folder.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not path.exists():
            with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
                pass
    except OSError as error:
        raise _not_written(what, path, error) from error


def _not_written(what: str, path: Path, error: OSError) -> SinkError:
    return SinkError(
        f"{what} {path}: cannot be written ({error.strerror or error}). Choose a file in a folder that exists, that you may "
        "write to, and with space left."
    )


def versions(liblsl: str) -> dict[str, str]:
    """Versions of what decides the figures; `liblsl` comes from whoever loaded the library."""
    found = {"rt_mmdf": rt_mmdf.__version__, "python": platform.python_version()}
    for name in ("mne", "mne_lsl", "numpy", "scipy", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"liblsl": liblsl, "platform": platform.platform()}


def plain(value: Any) -> Any:
    """Values as strict JSON has them: no numpy, no paths, None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        inner = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in inner]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar
        value = value.item()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _render(card: Scorecard) -> RenderableType:
    table = Table(title="Scorecard", title_justify="left", show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column(style="dim")
    budget = card.extra.get("budget_ms")
    imaged = f"{card.estimates} of {card.hops} hops"
    solver = f"{card.solver} in A m" if card.extra.get("unit") == "A m" else card.solver
    table.add_row("imaged", imaged, f"{solver}, {card.n_channels} channels to {card.n_sources} sources")
    table.add_row(
        "deadlines missed",
        _count(card.missed_deadlines),
        "later than the budget" + (f" of {budget:g} ms" if budget is not None else ""),
    )
    table.add_row("hops skipped", _count(card.skipped_hops), "left out to catch up with the present")
    lost = Text(", ").join(Text.assemble(f"{name.upper()} ", _count(number)) for name, number in card.lost_samples.items())
    table.add_row("samples lost", lost, "sent, by the stamps, and never received")
    if (incidents := card.extra.get("incidents")) is not None:
        listed = ", ".join(f"{kind} {number}" for kind, number in incidents.items())
        table.add_row("incidents", Text(listed or "none", style="yellow" if listed else "green"), "see the log")
    for what, said in _budget_rows(card.extra):
        table.add_row(what, said)
    if flags := card.extra.get("flags"):
        listed = ", ".join(f"{name} {number}" for name, number in flags.items())
        table.add_row("samples flagged", listed, "see the companion stream")
    table.add_row("latency", _figures(card.latency_ms, "ms", 2), "from the intended time of a hop to its publication")
    source = {"truth": "against the known time", "fit": "uncertainty of the clock fit"}.get(
        str(card.extra.get("alignment_source")), ""
    )
    table.add_row("alignment", _figures(card.alignment_ms, "ms", 3), source)
    if device_lag := card.extra.get("device_lag"):
        table.add_row("device lag", f"lag {device_lag}" if device_lag == "unknown" else str(device_lag), "of the stamps")
    if files := card.extra.get("files"):
        lost = Text.assemble(f"{files['written']} written, ", _count(files["lost"]), " lost")
        table.add_row("estimates in files", lost, str(files["error"] or ""))
    if recording := card.extra.get("recording"):
        dropped = Text.assemble(f"{recording['bytes'] / 1e6:.1f} MB, ", _count(sum(recording["dropped"].values())), " lost")
        table.add_row("recorded", dropped, str(recording["error"] or recording["file"]))
    if card.le_mm is not None:
        table.add_row("localisation error", _figures(card.le_mm, "mm", 1), _scored(card.extra))
    table.add_row("load", f"{card.cpu_cores:.2f} cores, {card.rss_mb:.0f} MB", "this process")
    shown = ", ".join(f"{name} {number}" for name, number in card.versions.items() if name != "platform")
    return Group(table, Text(f"{shown}; {card.versions.get('platform', '')}", style="dim"))


def _budget_rows(extra: Mapping[str, Any]) -> list[tuple[str, Text]]:
    """What was changed to keep the budget, at the start and while it ran."""
    budget = extra.get("budget") or {}
    rows = [("lowered at the start", Text(", ".join(budget["lowered"]), style="yellow"))] if budget.get("lowered") else []
    if budget.get("warning"):
        rows.append(("budget", Text(str(budget["warning"]), style="yellow")))
    if joined := budget.get("joined_hops"):
        rows.append(("joined", Text(f"{joined} hops that had waited, imaged several in one call", style="yellow")))
    if fallback := budget.get("fallback"):
        said = f"{budget['fallback_hops']} hops imaged with {fallback['solver']}, {fallback['changes']} changes"
        rows.append(("fallback", Text(said, style="yellow" if budget["fallback_hops"] else "green")))
    return rows


def _count(number: int | None) -> Text:
    if number is None:
        return Text("not connected", style="dim")
    return Text(str(number), style="green" if number == 0 else "bold red")


def _figures(values: Mapping[str, float | None], unit: str, digits: int) -> str:
    known = [f"{name} {value:.{digits}f}" for name, value in values.items() if value is not None and math.isfinite(value)]
    return f"{', '.join(known)} {unit}" if known else "not measured"


def _scored(extra: Mapping[str, Any]) -> str:
    parts = []
    if (scored := extra.get("n_scored")) is not None:
        parts.append(f"{scored} instants")
    snr = extra.get("snr_db")
    if isinstance(snr, Mapping) and snr.get("median") is not None:
        parts.append(f"SNR {snr['median']:.1f} dB at the median")
    return ", ".join(parts)
