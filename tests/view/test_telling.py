from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag
from rt_mmdf.view.history import Measure
from rt_mmdf.view.panels.health import engine_rows, stream_rows
from rt_mmdf.view.panels.status import Banner, Level, banner_of, spoken
from rt_mmdf.view.panels.timeline import STRETCHES, stretches
from rt_mmdf.view.reports import HealthReport, StreamHealth
from rt_mmdf.view.telling import incidents_figure, measure_words, modalities_figure

FINE = {"connected": True, "silent": False, "problem": "", "note": "", "age_s": 0.05, "flags": Flag(0), "valid": True}


def said(**other: object) -> Banner | None:
    return banner_of(**{**FINE, **other})  # type: ignore[arg-type]


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    assert said() is None
    assert said(flags=Flag.SETTLING | Flag.GAP | Flag.CLOCK_UNCERTAIN) is None  # the status line tells of those


@pytest.mark.parametrize(
    ("flags", "text"),
    [(Flag.MEG_MISSING, "EEG ONLY: MEG missing"), (Flag.EEG_MISSING | Flag.SETTLING, "MEG ONLY: EEG missing")],
)
def test_a_missing_modality_is_said_in_these_words(flags: Flag, text: str) -> None:
    assert said(flags=flags) == Banner(text)


@pytest.mark.parametrize(
    ("flags", "text"), [(Flag(0), "EEG + MEG"), (Flag.MEG_MISSING, "EEG"), (Flag.EEG_MISSING | Flag.MEG_MISSING, "none")]
)
def test_the_modalities_are_those_of_the_estimate_that_is_shown(flags: Flag, text: str) -> None:
    assert modalities_figure(("eeg", "meg"), SimpleNamespace(flags=flags)).text == text  # type: ignore[arg-type]


def test_what_is_not_written_is_said_first_and_what_is_wrong_with_the_picture_after_it() -> None:
    full = "recording /data/a.xdf: No space left on device"
    assert said(not_written=full) == Banner("NOT WRITTEN TO THE DISK", full)
    also = said(not_written=full, flags=Flag.MEG_MISSING, problem="p")
    assert also == Banner("NOT WRITTEN TO THE DISK; EEG ONLY: MEG missing", f"{full}; p")
    assert said(not_written=full, silent=True) == Banner("ENGINE SILENT: last estimate 50 ms ago")  # nobody knows


@pytest.mark.parametrize(
    ("lasting", "text", "level"),
    [
        ((), "none", Level.GOOD),
        (("bad_channels eeg",), "bad channels eeg", Level.WARN),
        (("stall meg", "stream_gone meg", "disk files"), "disk files and 2 more", Level.WARN),
    ],
)
def test_the_newest_of_what_goes_wrong_is_named(lasting: tuple[str, ...], text: str, level: Level) -> None:
    figure = incidents_figure(lasting)
    assert (figure.text, figure.level, figure.important) == (text, level, bool(lasting))


@given(flags=st.integers(0, 255).map(Flag), age=st.floats(0, 1e5), problem=st.text(max_size=20))
def test_no_estimate_and_silence_are_never_passed_over(flags: Flag, age: float, problem: str) -> None:
    invalid = said(flags=flags, valid=False, problem=problem)
    assert invalid is not None
    assert invalid.bad
    assert invalid.text.startswith("NO ESTIMATE")
    silent = said(silent=True, flags=flags, age_s=age, problem=problem)
    assert silent is not None
    assert silent.bad
    assert silent.text == f"ENGINE SILENT: last estimate {spoken(age)} ago"
    if flags & (Flag.MEG_MISSING | Flag.EEG_MISSING):
        missing = said(flags=flags, problem=problem)
        assert missing is not None
        assert missing.bad


def test_why_there_is_no_estimate() -> None:
    assert said(valid=False, flags=Flag.EEG_MISSING | Flag.MEG_MISSING | Flag.INVALID) == Banner(
        "NO ESTIMATE: EEG and MEG missing"
    )
    assert said(valid=False, flags=Flag.OPERATOR_PENDING) == Banner(
        "NO ESTIMATE: the inverse for these channels is being built"
    )
    assert said(connected=False, note="waiting") == Banner("NO ENGINE", "waiting", bad=False)
    assert said(connected=False, problem="its head is not here") == Banner("NO ENGINE", "its head is not here")
    assert said(valid=None) == Banner("WAITING FOR THE FIRST ESTIMATE", "", bad=False)


def test_durations_as_they_are_spoken() -> None:
    assert [spoken(t) for t in (0.084, 3.21, 99.9, 720.0, 9000.0)] == ["84 ms", "3.2 s", "99.9 s", "12 min", "2 h"]
    assert [measure_words(measure, 25.0) for measure in Measure] == ["RMS of 40 ms", "peak of 40 ms", "latest of 40 ms"]


FRAME_S = 0.04


@given(
    flags=st.lists(st.sampled_from([0, 1, 2, 3, 16, 128, 130]), max_size=40),
    holes=st.sets(st.integers(0, 40), max_size=4),
)
def test_stretches_cover_the_frames_with_faults_once_each(flags: list[int], holes: set[int]) -> None:
    kept = [i for i in range(len(flags)) if i not in holes]
    times = 100.0 + FRAME_S * np.array(kept, dtype=float)
    found = stretches(times, np.array([flags[i] for i in kept], np.uint32), FRAME_S)
    for place, number in enumerate(kept):
        middle = times[place] - FRAME_S / 2
        here = [stretch for stretch in found if stretch.start <= middle <= stretch.stop]
        assert len(here) == bool(flags[number])
        if here:
            worst = next(text for flag, text in STRETCHES if flags[number] & flag)
            assert here[0].text == worst
    covered = sum(stretch.stop - stretch.start for stretch in found)
    single = FRAME_S * sum(bool(flags[i]) for i in kept)
    assert single - 1e-9 <= covered <= single + FRAME_S * len(holes) + 1e-9  # at most over holes of one frame


def test_health_in_rows_marks_what_is_wrong_and_dashes_what_is_unknown() -> None:
    good, bad = (
        StreamHealth(name="EEG", sfreq=500.0, age_s=0.02, uncertainty_ms=0.012, drift_ppm=-3.14),
        StreamHealth(name="MEG", sfreq=1000.0, age_s=3.0, gaps=2, lost=1234, offset_s=-0.0021),
    )
    rows = dict(stream_rows([good, bad]))
    assert rows["age"] == [("20 ms", Level.PLAIN), ("3.0 s", Level.BAD)]
    assert rows["lost samples"] == [("0", Level.PLAIN), ("1\u2009234", Level.BAD)]
    assert rows["clock offset"] == [("–", Level.PLAIN), ("−2.100 ms", Level.PLAIN)]
    assert rows["clock drift"][0] == ("−3.1 ppm", Level.PLAIN)
    assert rows["time known to"] == [("±0.012 ms", Level.PLAIN), ("–", Level.PLAIN)]
    report = HealthReport(hops=10, missed_deadlines=2, budget_ms=20.0, bad_channels={"EEG 053": "flat"})
    told = dict(engine_rows(report))
    assert told["missed"] == ("2 later than 20 ms, at most 0 in a row", Level.WARN)
    assert told["bad channels"] == ("EEG 053 (flat)", Level.BAD)
    assert "not had" not in told
    lacking = HealthReport(problems=("markers: no stream", "average: no events"))
    assert dict(engine_rows(lacking))["not had"] == ("markers: no stream; average: no events", Level.WARN)
    assert math.isnan(report.filter_delay_ms)
    assert told["filter delay"] == ("–", Level.PLAIN)
