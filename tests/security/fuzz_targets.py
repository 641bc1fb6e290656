"""What comes from outside, made up: for each parser a strategy of inputs and what may become of them.

A target's `check` returns whether the input was accepted, lets no error through but those that its docstring names, and
holds what was accepted to what the rest of the package relies on. `tests/security/test_fuzz.py` runs them in the gate,
`tools/bench/fuzz.py` for longer.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import mne
import numpy as np
import safetensors.numpy
from hypothesis import strategies as st
from rich.text import Text

from rt_mmdf.acquisition.interpretation import interpret
from rt_mmdf.acquisition.recording import read_recording
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.cli.console import PlainConsole
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import ArtefactError, ConfigurationError, RecordingError, StreamDescriptionError
from rt_mmdf.core.settings import load_settings
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
from rt_mmdf.lsl import xdf
from rt_mmdf.lsl.description import MAX_LEAVES, MAX_TOTAL, check_header, clean_label, clean_text, read_description
from rt_mmdf.lsl.interface import ChannelDescription, ClockOffset, StreamDescription
from rt_mmdf.sinks.marks import read_mark
from rt_mmdf.solvers import artefact as artefacts
from rt_mmdf.view.reports import read_report
from rt_mmdf.view.streams import read_average, read_engine, read_sensors

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Target:
    """strategy : of inputs; check : see the module"""

    strategy: st.SearchStrategy[Any]
    check: Callable[[Any], bool]


# texts that a terminal, a label, XML or a path would do something with

NASTIES = (
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\u202eabc",
    "\u2066",
    "\u200b",
    "\ud800",
    "\x00",
    "a\rb",
    "a\nb",
    "[red]",
    "[/bold]",
    "[link=file:///etc]x[/link]",
    "<img src=x>",
    "&lt;",
    "../../etc/passwd",
    "/etc/passwd",
    "..\\x",
    "nan",
    "inf",
    "-1",
    "1e999",
    "9" * 5000,
    "0x10",
    "1_000",
    "",
    " ",
    "x" * 5000,
    "\N{DEVANAGARI LETTER KA}\u0301\u0301",
)
NASTY = st.integers(0, len(NASTIES) - 1).map(NASTIES.__getitem__)
TEXT = NASTY | st.text(max_size=20) | st.lists(NASTY, max_size=4).map("".join)
NUMBER = (
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, math.nan, math.inf, -math.inf, 1e-320, 1e308, True]) | st.integers()
)
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


def is_shown(text: str, keep: str = "") -> bool:
    """Whether a terminal or a label would only show it."""
    return all(c.isprintable() or c.isspace() for c in text if c not in keep) and not set(text) & (
        {chr(i) for i in (*range(32), *range(127, 160), 0x2028, 0x2029)} - set(keep)
    )


def leaves_in(value: Any) -> Iterator[Any]:
    """Everything inside a value that holds nothing else; keys, too."""
    if isinstance(value, dict):
        for pair in value.items():
            yield from leaves_in(pair)
    elif isinstance(value, list | tuple):
        for own in value:
            yield from leaves_in(own)
    elif is_dataclass(value):
        for f in fields(value):
            yield from leaves_in(getattr(value, f.name))
    else:
        yield value


def texts_in(value: Any) -> Iterator[str]:
    return (leaf for leaf in leaves_in(value) if isinstance(leaf, str))


def numbers_in(value: Any) -> Iterator[float]:
    return (leaf for leaf in leaves_in(value) if isinstance(leaf, float))


def refused(error: Exception, part: str) -> bool:
    """False, where a refusal says what it is about and is only shown."""
    assert part in str(error)
    assert is_shown(str(error), "\n")
    return False


@cache
def _console() -> PlainConsole:
    console = PlainConsole()
    console.width = 80
    return console


def check_text(value: str | bytes) -> bool:
    """Text of any kind becomes one line, or lines, that are only shown, in a label and in a terminal."""
    label, text = clean_label(value), clean_text(value, 1000)
    assert is_shown(label)
    assert len(label) <= 256
    assert clean_label(label) == label
    assert is_shown(text, "\t\n")
    raw = (value if isinstance(value, str) else value.decode("utf-8", "replace"))[:200]
    console = _console()
    console.file = file = io.StringIO()
    console.print(raw)
    console.print(Text(raw, style="bold"))
    assert is_shown(file.getvalue(), "\n")
    return label != ""


# descriptions of streams


class Tree:
    """An element in plain Python."""

    def __init__(self, name: str, text: str, children: list[Tree]) -> None:
        self.name, self.text, self._children = name, text, children

    def children(self) -> Iterator[Tree]:
        return iter(self._children)

    def append(self, name: str, text: str | None = None) -> Tree:
        raise NotImplementedError


NODE_NAMES = st.sampled_from(["channels", "channel", "label", "name", "type", "unit", "location", "loc", "X", "Y", "Z", "a"])
TREE = st.recursive(
    st.builds(Tree, NODE_NAMES | TEXT, TEXT, st.just([])),
    lambda inner: st.builds(Tree, NODE_NAMES | TEXT, TEXT, st.lists(inner, max_size=4)),
    max_leaves=10,
)
LISTED = st.builds(
    lambda channels, more: Tree("desc", "", [Tree("channels", "", channels), *more]),
    st.lists(st.builds(Tree, st.just("channel"), TEXT, st.lists(TREE, max_size=5)), max_size=4),
    st.lists(TREE, max_size=3),
)


def check_description(given: tuple[Tree, int, float]) -> bool:
    """StreamDescriptionError alone; as many channels as the stream has, texts only shown, leaves bounded, places finite."""
    root, n_channels, sfreq = given
    try:
        check_header("x", n_channels, sfreq)
        channels, extra = read_description(root, "x", n_channels)
    except StreamDescriptionError as error:
        return refused(error, "stream")
    assert len(channels) == n_channels
    assert len(extra) <= MAX_LEAVES
    assert sum(map(len, extra.values())) <= MAX_TOTAL
    assert all(is_shown(text, "\t\n") for text in texts_in(extra))
    assert all(is_shown(text) for c in channels for text in (c.name, c.type, c.unit))
    assert all(math.isfinite(axis) for c in channels for axis in c.position or ())
    return True


CHANNEL = st.builds(
    ChannelDescription,
    TEXT,
    st.sampled_from(["EEG", "MEG", "mag", "grad", "EOG", ""]) | TEXT,
    st.sampled_from(["uV", "fT", "V", "fT/cm", ""]) | TEXT,
    st.none() | st.tuples(st.floats(), st.floats(), st.floats()),
)
STREAM = st.builds(
    lambda name, kind, sfreq, dtype, channels: StreamDescription(name, kind, "", sfreq, dtype, tuple(channels), {}),
    TEXT,
    st.sampled_from(["EEG", "MEG"]) | TEXT,
    st.sampled_from([0.0, 1000.0, math.nan]) | st.floats(),
    st.sampled_from(["float32", "int16", "string"]),
    st.lists(CHANNEL, min_size=1, max_size=5),
)


def check_interpretation(stream: StreamDescription) -> bool:
    """StreamDescriptionError alone; positive finite factors to SI units, names that are different."""
    try:
        read = interpret(stream, StreamSettings(name="x"), "eeg")
    except StreamDescriptionError:
        return False
    for part in (read.imaged, read.others):
        assert len(set(part.channels.names)) == len(part.channels)
        assert (np.isfinite(part.factors) & (part.factors > 0)).all()
    return True


# XDF


@cache
def whole_files() -> tuple[bytes, ...]:
    """A recording as LabRecorder writes it, and one of a session's own."""
    files = []
    for own in (False, True):
        chunks = [xdf.file_header({"a": "b"})]
        for number, (kind, sfreq, unit) in enumerate((("EEG", 100.0, "uV"), ("MEG", 200.0, "fT"), ("Markers", 0.0, "")), 1):
            channels = tuple(ChannelDescription(f"{kind} {i}", kind, unit) for i in range(1 if kind == "Markers" else 2))
            dtype = "string" if kind == "Markers" else "float32"
            stream = StreamDescription(kind, kind, "id", sfreq, dtype, channels, {}, "host", "uid")
            label = "markers" if kind == "Markers" else kind.lower()
            acquisition = StreamSettings(name=kind).model_dump_json()
            leaves = {"rt_mmdf/label": label, "rt_mmdf/acquisition": acquisition} if own else {}
            chunks.append(xdf.stream_header(number, stream, 0.0, leaves))
            n = 4 if kind == "Markers" else 30
            stamps = 5.0 + np.arange(n) / (sfreq or 10.0)
            data = np.full((n, len(channels)), "go", dtype=object) if dtype == "string" else np.ones((n, 2), np.float32)
            for start in range(0, n, 10):
                chunks.append(xdf.samples(number, data[start : start + 10], stamps[start : start + 10]))
                chunks.append(xdf.clock_offset(number, ClockOffset(float(start), 0.25, 1e-4)))
                chunks.append(xdf.boundary())
            chunks.append(xdf.stream_footer(number, stamps[0], stamps[-1], n, []))
        files.append(b"".join(chunks))
    return tuple(files)


EXTREMES = st.sampled_from(
    [b"\xff" * 8, b"\x00" * 8, b"\x08" + b"\xff" * 8, b"\x04\xff\xff\xff\xff", b"\x04\x00\x00\x00\x01", b"\x01", b"\x7f\xf0"]
)
EDIT = st.tuples(st.floats(0, 1), EXTREMES | st.binary(min_size=1, max_size=12), st.integers(0, 12))


def _edited(given: tuple[bytes, list[tuple[float, bytes, int]], float]) -> bytes:
    content, edits, keep = given
    changed = bytearray(content)
    for where, new, n_replaced in edits:
        at = int(where * len(changed))
        changed[at : at + n_replaced] = new
    return bytes(changed[: max(4, math.ceil(keep * len(changed)))])


MUTATED = st.tuples(
    st.sampled_from([0, 1]).map(lambda i: whole_files()[i]), st.lists(EDIT, max_size=4), st.just(1.0) | st.floats(0, 1)
).map(_edited)

XML = st.one_of(
    st.sampled_from(
        [
            '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><info>&d;</info>',
            '<!DOCTYPE info SYSTEM "file:///etc/passwd"><info/>',
            "<info>" * 200 + "</info>" * 200,
            "<info>",
            "",
            '<?xml version="1.0" encoding="UTF-16"?><info/>',
        ]
    ),
    st.builds(
        lambda count, rate, form, kind, name: (
            f"<info><name>{name}</name><type>{kind}</type><channel_count>{count}</channel_count>"
            f"<nominal_srate>{rate}</nominal_srate><channel_format>{form}</channel_format><desc/></info>"
        ),
        st.sampled_from([1, 2, 0, -1, 65537, 2**31, "x"]),
        st.sampled_from([0, 100, -1, "nan", "inf", 1e300]),
        st.sampled_from(["float32", "int8", "string", "double64", "object"]),
        st.sampled_from(["EEG", "MEG", "Markers", ""]),
        st.sampled_from(["a", "", "\u202e", "&amp;"]),
    ),
)
CONTENT = st.one_of(
    XML.map(str.encode),
    st.binary(max_size=60),
    st.tuples(EXTREMES, st.binary(max_size=40)).map(b"".join),
    st.tuples(st.just(b"\x01"), st.integers(0, 5).map(lambda n: bytes([n])), st.binary(max_size=60)).map(b"".join),
)
CHUNK = st.builds(
    lambda tag, number, content: struct.pack("<BIHI", 4, 6 + len(content), tag, number) + content,
    st.integers(1, 7),
    st.integers(0, 3),
    CONTENT,
)
FORMATS = {"int8": 1, "int16": 2, "float32": 4, "double64": 8}


def _stream(number: int, kind: str, form: str, n_channels: int, rate: int, stamped: list[bool], values: bytes) -> bytes:
    """A header, and samples that fit it."""
    channel = f"<channel><label>%d</label><type>{kind}</type><unit>{'uV' if kind == 'EEG' else 'fT'}</unit></channel>"
    header = (
        f"<info><name>a</name><type>{kind}</type><channel_count>{n_channels}</channel_count><nominal_srate>{rate}"
        f"</nominal_srate><channel_format>{form}</channel_format><desc><channels>"
        f"{''.join(channel % i for i in range(n_channels))}</channels></desc></info>"
    ).encode()
    n_bytes = n_channels * FORMATS[form]
    rows = [
        (b"\x08" + struct.pack("<d", i / rate) if stamp else b"\x00") + (values * n_bytes)[:n_bytes]
        for i, stamp in enumerate(stamped)
    ]
    body = b"\x01" + bytes([len(rows)]) + b"".join(rows)
    return b"".join(
        struct.pack("<BIHI", 4, 6 + len(content), tag, number) + content for tag, content in ((2, header), (3, body))
    )


STREAM_CHUNKS = st.builds(
    _stream,
    st.integers(0, 3),
    st.sampled_from(["EEG", "MEG"]),
    st.sampled_from(sorted(FORMATS)),
    st.integers(1, 3),
    st.sampled_from([1, 100, 250]),
    st.lists(st.booleans(), min_size=2, max_size=6),
    st.binary(min_size=1, max_size=24),
)
CHUNKS = st.lists(STREAM_CHUNKS | CHUNK, max_size=6).map(lambda chunks: xdf.MAGIC + b"".join(chunks))


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rt_mmdf-fuzz-")


def check_xdf(content: bytes) -> bool:
    """RecordingError alone; what was read is named and counted as it is, and no larger than some tens of times the file."""
    path = Path(_scratch().name) / "a.xdf"
    path.write_bytes(content)
    try:
        recording = read_recording(path)
    except RecordingError as error:
        return refused(error, "a.xdf")
    for raw in recording.sensors.values():
        assert raw.n_times * len(raw.ch_names) <= len(content)
        assert all(is_shown(name) for name in raw.ch_names)
    assert all(is_shown(text, "\t\n") for _, text in recording.events)
    return True


# settings

TOML_VALUE = st.one_of(
    st.sampled_from(["nan", "inf", "-inf", "true", "[]", "{}", "1979-05-27", "0x10", "1e999", "9" * 5000, "-1", "0", "'x'"]),
    TEXT.map(json.dumps),
    st.integers().map(str),
    st.floats().map(repr),
)
KEYS = st.sampled_from(
    (
        *("name", "acquisition", "acquisition.eeg", "acquisition.eeg.name", "acquisition.eeg.units", "alignment.grid"),
        *("hop_ms", "window_ms", "budget_ms", "budget.may_lower", "preprocessing.filters.band_pass.low_hz"),
        *("preprocessing.filters.notch.freqs_hz", "preprocessing.bads", "head.folder", "noise.file", "solver.method"),
        *("solver.model", "second_solver", "average", "average.events", "average.tmin_s", "output.files", "output.marks"),
        *("output.record", "output.estimates.decimation", "a.b.c"),
    )
)
LINES = st.lists(
    st.one_of(
        st.tuples(KEYS, TOML_VALUE).map(" = ".join),
        KEYS.map("[{}]".format),
        st.text(max_size=20),
        st.integers(1, 3000).map(lambda n: "a." * n + "b = 1"),
        st.integers(1, 3000).map(lambda n: "a = " + "[" * n),
    ),
    max_size=8,
).map("\n".join)


@cache
def _monitor_toml() -> bytes:
    return (CONFIGS / "monitor.toml").read_bytes()


TOML = st.one_of(
    LINES.map(lambda text: text.encode("utf-8", "surrogatepass")),
    LINES.map(lambda text: f'[acquisition.eeg]\nname = "a"\n{text}'.encode("utf-8", "surrogatepass")),
    st.tuples(st.just(b"").map(lambda _: _monitor_toml()), st.lists(EDIT, max_size=4), st.just(1.0)).map(_edited),
    st.binary(max_size=100),
)


def check_configuration(content: bytes) -> bool:
    """ConfigurationError alone, which names the file; what was accepted has no NaN in it."""
    path = Path(_scratch().name) / "c.toml"
    path.write_bytes(content)
    try:
        settings = load_settings(path, SessionSettings)
    except ConfigurationError as error:
        return refused(error, "c.toml")
    assert not any(map(math.isnan, numbers_in(settings.model_dump())))
    return True


# models


@cache
def small_artefact() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Content of the manifest of a model of three electrodes, and its files."""
    channels = Channels(("E1", "E2", "E3"), (ChannelType.EEG,) * 3)
    path = Path(_scratch().name) / "noise-cov.fif"
    mne.write_cov(path, ad_hoc_noise_cov(channels), overwrite=True, verbose="ERROR")
    positions = np.arange(12, dtype=np.float32).reshape(4, 3)
    files = {
        artefacts.WEIGHTS: safetensors.numpy.save({"w": np.ones((2, 3), np.float32)}),
        artefacts.HEAD: safetensors.numpy.save({"sketch": np.ones((3, 8)), "positions_mm": positions}),
        artefacts.NOISE: path.read_bytes(),
        artefacts.CARD: b"# Small\n",
    }
    content = {
        "format": 1,
        "name": "small",
        "unit": artefacts.UNIT,
        "orientation": artefacts.ORIENTATION,
        "network": {"kind": "mmdf-eeg", "head_free": False, "n_times": 1, "options": {"hidden": 4}},
        "input": {
            "ch_names": list(channels.names),
            "ch_types": ["eeg"] * 3,
            "ch_units": ["V"] * 3,
            "window_sfreq": 100.0,
            "low_hz": 1.0,
            "high_hz": 40.0,
        },
        "sources": {"n_sources": 4, "n_left": 2, "vertices_sha256": "0" * 64},
        "head": {"name": "template", "kind": "template", "stored": False, "recipe": {"sensors": "neuromag + no EEG"}},
        "versions": {"rt-mmdf": "0", "mne": "1"},
    }
    return content, files


def _paths(content: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [at] if at else []
    if isinstance(content, dict):
        for key, value in content.items():
            found += _paths(value, (*at, key))
    return found


PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | TEXT.filter(lambda t: "\ud800" not in t),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
FILE_NAMES = st.sampled_from(["../x", "/etc/passwd", "a/b", "..", "", "CON", "a\nb", "x", "weights.safetensors", "C:x"])


@dataclass(frozen=True)
class Harm:
    """values : put at places of the manifest; names : of further files; edits : of a file; digests : made right again?"""

    values: list[tuple[int, Any]]
    names: list[str]
    file: str | None
    edits: list[tuple[float, bytes, int]]
    text_edits: list[tuple[float, bytes, int]]
    right: bool


HARM = st.builds(
    Harm,
    st.lists(st.tuples(st.integers(0, 100), PLAIN), max_size=2),
    st.lists(FILE_NAMES, max_size=1),
    st.none() | st.sampled_from([artefacts.WEIGHTS, artefacts.HEAD, artefacts.NOISE, artefacts.CARD]),
    st.lists(EDIT, max_size=2),
    st.lists(EDIT, max_size=1),
    st.booleans(),
)


def check_artefact(harm: Harm) -> bool:
    """ArtefactError alone; what was accepted has numbers, names and shapes that can be."""
    folder = Path(_scratch().name) / "model"
    folder.mkdir(exist_ok=True)
    content, files = small_artefact()
    content = json.loads(json.dumps(content))
    files = {n: _edited((data, harm.edits, 1.0)) if n == harm.file else data for n, data in files.items()}
    if harm.right:
        content["files"] = {n: hashlib.sha256(data).hexdigest() for n, data in files.items()}
        content["files"] |= dict.fromkeys(harm.names, "0" * 64)
    else:
        content["files"] = {n: hashlib.sha256(data).hexdigest() for n, data in small_artefact()[1].items()}
    for place, value in harm.values:
        *parents, last = (places := _paths(content))[place % len(places)]
        inner = content
        for key in parents:
            inner = inner[key]
        inner[last] = value
    for name, data in files.items():
        (folder / name).write_bytes(data)
    text = artefacts._manifest_text(content).replace(b"NaN", b"nan").replace(b"Infinity", b"inf")  # JSON's words, TOML's
    (folder / artefacts.MANIFEST).write_bytes(_edited((text, harm.text_edits, 1.0)) if harm.text_edits else text)
    try:
        read = artefacts.load_artefact(folder)
    except ArtefactError as error:
        return refused(error, "model")
    assert artefacts.NAME.fullmatch(read.name)
    assert 1 <= read.n_times <= artefacts.MAX_WINDOW
    assert all(np.isfinite(values).all() for values in read.weights.values())
    assert read.head_arrays["positions_mm"].shape == (read.n_sources, 3)
    assert all(is_shown(name) for name in read.channels.names)
    return True


# what an engine and its views say


@cache
def a_report() -> str:
    stream = {"name": "amp", "sfreq": 500.0, "rate_hz": 499.0, "age_s": 0.01, "silent": False, "counts": {"lost": 3}}
    return json.dumps(
        {
            "time": 1.0,
            "hops": 5,
            "solver": "dSPM",
            "modalities": ["eeg"],
            "streams": {"eeg": stream},
            "bad_channels": {"E1": "flat"},
            "latency_ms": {"lateness": {"p50": 1.0}},
            "flags": {"GAP": 3},
            "marks": {"newest": [{"stamp": 1.0, "received": 1.0, "text": "a", "host": "b"}]},
            "average": {"problem": "x", "markers": {"problem": "y"}},
        }
    )


REPORT_KEYS = st.sampled_from(list(json.loads(a_report())))
JSON = st.one_of(
    st.dictionaries(REPORT_KEYS | TEXT, VALUE, max_size=8).map(lambda content: json.dumps({"hops": 1} | content)),
    st.tuples(st.just(b"").map(lambda _: a_report().encode()), st.lists(EDIT, min_size=1, max_size=3), st.just(1.0))
    .map(_edited)
    .map(lambda content: content.decode("utf-8", "replace")),
    st.integers(1, 20000).map(lambda n: "[" * n),
    st.integers(1, 3000).map(lambda n: '{"hops":' * n + "1" + "}" * n),
    TEXT,
)


def check_report(text: str) -> bool:
    """No error; texts of a report are short and only shown, numbers finite or unknown."""
    report = read_report(text)
    if report is None:
        return False
    for said in texts_in(report):
        assert is_shown(said)
        assert len(said) <= 300
    assert not any(map(math.isinf, numbers_in(report)))
    return True


MARK = st.fixed_dictionaries(
    {}, optional={"stamp": NUMBER | VALUE, "text": TEXT | VALUE, "command": st.sampled_from(["", "reset-average"]) | VALUE}
).map(json.dumps)


def check_mark(text: str) -> bool:
    """No error; a mark has a finite stamp and one short line."""
    mark = read_mark(text)
    if mark is None:
        return False
    assert math.isfinite(mark.stamp)
    assert is_shown(mark.text)
    assert len(mark.text) <= 200
    assert read_mark(mark.to_json()) == mark
    return True


@cache
def engine_stream() -> StreamDescription:
    """As an engine describes the stream of its estimates."""
    names = ("lh-1", "lh-5", "rh-2")
    extra = {
        "engine/name": "rt_mmdf",
        "engine/session": "lab",
        "engine/budget_ms": "20",
        "head/fingerprint": "ab" * 32,
        "head/name": "template",
        "head/n_sources_lh": "2",
        "head/n_sources_rh": "1",
        "head/frame": "MNI305",
        "estimate/solver": "dSPM",
        "estimate/unit": "dimensionless",
        "estimate/decimation": "1",
        "filter/delay_ms": "3.5",
        "average/n_times": "5",
        "average/tmin_s": "-0.1",
        "average/tmax_s": "0.4",
        "streams/averages/tone": "lab-average-tone",
    }
    channels = tuple(ChannelDescription(name, "source", "", (0.01, 0.02, 0.03)) for name in names)
    return StreamDescription("lab-sources", "SourceEstimate", "id", 250.0, "float32", channels, extra, "host", "u1")


ENGINE = st.builds(
    lambda leaves, more, channels, sfreq: replace(
        engine_stream(),
        extra=engine_stream().extra | leaves | more,
        channels=tuple(channels) or engine_stream().channels,
        sfreq=sfreq,
    ),
    st.dictionaries(st.sampled_from(sorted(engine_stream().extra)), TEXT | st.integers().map(str), max_size=3),
    st.dictionaries(TEXT, TEXT, max_size=2),
    st.just([]) | st.lists(CHANNEL, max_size=4),
    st.just(250.0) | st.floats(),
)


def check_engine(stream: StreamDescription) -> bool:
    """StreamDescriptionError alone; texts of an engine are only shown, its sources as many as its places."""
    try:
        engine = read_engine(stream)
    except StreamDescriptionError:
        return False
    finally:
        with suppress(StreamDescriptionError):
            read_sensors(stream)
    own = [getattr(engine, f.name) for f in fields(engine) if f.name != "stream"]
    assert all(is_shown(text) for text in texts_in(own) if text != stream.hostname)
    assert engine.positions_mm.shape == (sum(map(len, engine.vertices)), 3)
    assert np.isfinite(engine.positions_mm).all()
    with suppress(StreamDescriptionError):
        assert np.isfinite(read_average(stream, engine).latencies).all()
    return True


TARGETS: dict[str, Target] = {
    "text": Target(TEXT | st.binary(max_size=60), check_text),
    "description": Target(
        st.tuples(TREE | LISTED, st.integers(-1, 5), st.sampled_from([0.0, 1e3, 1e300, math.nan])), check_description
    ),
    "interpretation": Target(STREAM, check_interpretation),
    "xdf, changed": Target(MUTATED, check_xdf),
    "xdf, made up": Target(CHUNKS, check_xdf),
    "configuration": Target(TOML, check_configuration),
    "manifest": Target(HARM, check_artefact),
    "health": Target(JSON, check_report),
    "mark": Target(MARK | JSON, check_mark),
    "engine": Target(ENGINE, check_engine),
}
