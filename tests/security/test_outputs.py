"""What is written stays in the folder that was given, whatever names come from outside."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.app.scorecard import plain, write_json
from rt_mmdf.core.blocks import SourceEstimate, StageStamps
from rt_mmdf.core.errors import ArtefactError
from rt_mmdf.lsl.interface import ChannelDescription, ClockOffset, StreamDescription
from rt_mmdf.sinks.page import facts_table, page, write_page
from rt_mmdf.sinks.recording import Recorder, StreamTrack
from rt_mmdf.sinks.settings import FileSettings, RecordSettings
from rt_mmdf.sinks.sources import SourceSpaceDescription
from rt_mmdf.sinks.stc_files import StcFiles
from rt_mmdf.solvers.artefact import MANIFEST, NAME, _manifest_text, load_artefact

from .fuzz_targets import NASTY, small_artefact

NAMES = NASTY | st.lists(st.sampled_from(["..", "/", "\\", "a", "\x00", "~", "C:", ".", "\n"]), max_size=8).map("".join)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@given(name=NAMES)
def test_a_name_of_a_model_is_the_name_of_a_file_in_the_folder(name: str) -> None:
    """`rt-mmdf export` calls its files by the model's name, which its manifest says: only such names are read."""
    if NAME.fullmatch(name):
        path = Path("/out") / f"{name}-fp32.onnx"
        assert path.parent == Path("/out")
        assert path.name == f"{name}-fp32.onnx"
        assert path.name.isprintable()


def test_a_model_with_another_name_is_not_read(tmp_path: Path) -> None:
    """Where it was, `../../evil` wrote `evil-fp32.onnx` two folders above the one that was given."""
    content, files = small_artefact()
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name, readable in (("small", True), ("../../evil", False), ("a/b", False), ("..", False), ("", False)):
        (tmp_path / MANIFEST).write_bytes(_manifest_text(content | {"name": name, "files": digests}))
        if readable:
            assert load_artefact(tmp_path).name == name
            continue
        with pytest.raises(ArtefactError, match="say what cannot be"):
            load_artefact(tmp_path)


@given(name=NAMES, text=NAMES)
def test_a_recording_is_one_file_whatever_its_streams_are_called(
    name: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("r")
    channels = (ChannelDescription(name, text, text),)
    stream = StreamDescription(name, text, text, 0.0, "string", channels, {"a/b": text}, text, text)
    track = StreamTrack("markers", 1 << 20)
    settings = RecordSettings(file=folder / "out" / "a.xdf", estimates="none")
    clock: Any = SimpleNamespace(now=lambda: 1.0)
    recorder = Recorder(settings, clock, [track], {"markers": stream}, {})
    track.put(stream, np.array([[text]], dtype=object), np.array([1.0]))
    track.put_offset(ClockOffset(1.0, 0.0, 0.0))
    recorder.write(flush=True)
    recorder.close()
    assert files_below(folder) == {"out/a.xdf"}


@given(name=NAMES)
def test_stc_files_are_called_by_their_prefix_alone(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("s")
    vertices = (np.array([1, 2]), np.array([3]))
    sources = SourceSpaceDescription(name, "ab" * 32, vertices, np.zeros((3, 3)), name)
    files = StcFiles(FileSettings(prefix=folder / "out" / "a"), sources, 100.0, lambda: None, solver=name)
    times = np.arange(5) / 100.0
    stamps = StageStamps(**dict.fromkeys(StageStamps.NAMES, 0.0))
    estimate = SourceEstimate(np.zeros((3, 5), np.float32), times, np.zeros(5, np.uint32), 0, 0, name, stamps)
    files.put(estimate)
    files.close()
    assert {path.split("-")[0] for path in files_below(folder)} == {"out/a"}


@given(name=NAMES)
def test_a_page_is_one_file_in_which_nothing_is_obeyed(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("p") / "out" / "a.html"
    shown = f"{name}<script>alert(1)</script><img src=x onerror=y>"
    write_page(page(shown, [facts_table({shown: shown})]), path)
    assert files_below(path.parent) == {"a.html"}
    text = path.read_bytes().decode("utf-8", "replace")
    assert "<script>" not in text
    assert "<img" not in text


def test_reports_are_json_without_what_json_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, plain({"a\x1b": math.nan, "b": "\ud800\x1b"}))
    assert path.read_text().isascii()
    assert json.loads(path.read_text())["a\x1b"] is None
