"""Descriptions from a network that nobody guards: what is believed, and how the rest is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.errors import RtMmdfError, StreamAmbiguous, StreamDescriptionError, StreamNotFound
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.sinks.estimates import EstimateDescription, describe_streams
from rt_mmdf.sinks.settings import EstimateStreamSettings
from rt_mmdf.view.reports import HealthReport, read_report
from rt_mmdf.view.streams import find_engine, read_average, read_engine, read_sensors

from .publishing_engine import PublishingEngine, sources_of

SOURCES = sources_of()
DESCRIBED = EstimateDescription("dSPM", "A m", "fixed", 1000.0, 31.0)
STREAM = replace(describe_streams("lab-sources", SOURCES, DESCRIBED, EstimateStreamSettings(decimation=4))[0], hostname="h")


def test_what_an_engine_says_is_read() -> None:
    engine = read_engine(STREAM)
    assert (engine.name, engine.host, engine.solver, engine.unit) == ("lab", "h", "dSPM", "A m")
    assert (engine.sfreq, engine.engine_sfreq, engine.decimation, engine.reduction) == (250.0, 1000.0, 4, "latest")
    assert (engine.head, engine.fingerprint, engine.frame) == ("invented", "ab" * 32, "MRI (surface RAS)")
    for own, told in zip(engine.vertices, SOURCES.vertices, strict=True):
        np.testing.assert_array_equal(own, told)
    np.testing.assert_allclose(engine.positions_mm, SOURCES.positions_mm, atol=1e-9)
    assert engine.names["companion"] == "lab-sources-companion"
    assert engine.names["health"] == "lab-health"
    assert "second" not in engine.names
    assert np.isnan(engine.budget_ms)


def test_what_else_it_publishes_is_read() -> None:
    told = {
        "engine/session": "lab",
        "engine/budget_ms": "20",
        "streams/sensors": "lab-sensors",
        "streams/second": "lab-second",
        "streams/averages/tone": "lab-average-tone",
    }
    engine = read_engine(replace(STREAM, extra=STREAM.extra | told))
    assert (engine.names["sensors"], engine.names["second"]) == ("lab-sensors", "lab-second")
    assert engine.averages == {"tone": "lab-average-tone"}
    assert engine.budget_ms == 20.0


def changed(**extra: str | None) -> StreamDescription:
    """The good stream with other leaves; None takes one away."""
    merged = STREAM.extra | {key.replace("__", "/"): value for key, value in extra.items()}
    return replace(STREAM, extra={key: value for key, value in merged.items() if value is not None})


BAD_CHANNEL = (ChannelDescription("rh-5", "source", "", (0, 0, 0)), *STREAM.channels[1:])
FAR = (replace(STREAM.channels[0], position=(0.0, 40.0, 0.0)), *STREAM.channels[1:])
NOWHERE = (replace(STREAM.channels[0], position=None), *STREAM.channels[1:])
TURNED = (STREAM.channels[1], STREAM.channels[0], *STREAM.channels[2:])


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (replace(STREAM, extra={}), "no description"),
        (changed(engine__name="evil\x1b[31m"), "'evil\\[31m' made it; an engine of rt_mmdf is expected"),
        (changed(engine__name=None), "'nobody' made it"),
        (changed(head__fingerprint=None, estimate__unit=None), "lacks head/fingerprint, estimate/unit"),
        (changed(head__n_sources_lh="21"), "37 channels, its head has 21 \\+ 17 sources"),
        (changed(head__n_sources_lh="-3"), "head/n_sources_lh is '-3'; a whole number"),
        (changed(head__n_sources_rh="9" * 5000), "head/n_sources_rh is '9+'"),
        (changed(head__fingerprint="z" * (1 << 20)), "64 hexadecimal digits"),
        (changed(estimate__decimation="0"), "decimation is '0'"),
        (replace(STREAM, channels=BAD_CHANNEL), "channel 0 is called 'rh-5'; lh and a vertex number"),
        (replace(STREAM, channels=TURNED), "not ascending"),
        (replace(STREAM, channels=FAR), "1 of its 37 channels have no position within 1 m"),
        (replace(STREAM, channels=NOWHERE), "1 of its 37 channels have no position"),
        (replace(STREAM, dtype="int16"), "samples are int16"),
        (replace(STREAM, sfreq=0.0), "rate of 0 Hz"),
        (replace(STREAM, sfreq=2e6), "37 sources at 2e\\+06 Hz are 296 MB a second; .* Publish fewer"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_reason(stream: StreamDescription, said: str) -> None:
    with pytest.raises(StreamDescriptionError, match=said) as caught:
        read_engine(stream)
    message = str(caught.value)
    assert "lab-sources" in message
    assert len(message) < 500
    assert "\x1b" not in message


@given(
    extra=st.dictionaries(
        st.sampled_from([*STREAM.extra, "engine/budget_ms", "streams/sensors", "streams/averages/x"]), st.text(max_size=40)
    )
)
def test_any_words_are_read_or_refused_and_nothing_else_happens(extra: dict[str, str]) -> None:
    refused: list[str] = []
    try:
        engine = read_engine(replace(STREAM, extra=STREAM.extra | extra))
    except RtMmdfError as error:
        refused.append(str(error))
    else:
        assert engine.n_sources == 37
        assert all(len(word) <= 128 for word in (engine.solver, engine.head, engine.unit, *engine.names.values()))
    assert all(len(message) < 600 for message in refused)


def test_one_engine_is_found_and_of_two_the_listing_asks_which() -> None:
    here = MemoryTransport(ManualClock())
    with pytest.raises(StreamNotFound, match="no engine of rt_mmdf on this network"):
        find_engine(here)
    PublishingEngine(here, "a")
    here.outlet(replace(STREAM, name="something-sources", type="EEG"))
    assert find_engine(here).name == "a"
    PublishingEngine(here.machine("lab-2"), "b", sources_of(4, 4))
    with pytest.raises(StreamAmbiguous, match=r"2 engines are running:\n  a on here: 37 sources.*\n  b on lab-2: 8 sources"):
        find_engine(here)
    assert find_engine(here, "b").host == "lab-2"
    assert find_engine(here, "b-sources").name == "b"
    PublishingEngine(here.machine("lab-3"), "b")
    with pytest.raises(StreamAmbiguous, match=r"2 engines named 'b'[\s\S]*rt-mmdf view b --host lab-2"):
        find_engine(here, "b")
    assert find_engine(here, "b", "lab-3").n_sources == 37
    with pytest.raises(StreamNotFound, match="named 'c' on host 'x'"):
        find_engine(here, "c", "x")


def test_a_second_solver_is_not_another_engine() -> None:
    here = MemoryTransport(ManualClock())
    PublishingEngine(here, "a", more={"streams/second": "a-second"})
    PublishingEngine(here, "a2", stream="a-second")
    assert find_engine(here).name == "a"


def test_sensors_and_averages_that_do_not_fit_are_refused() -> None:
    channels = (ChannelDescription("E1", "eeg", "V"), ChannelDescription("M1", "mag", "T"))
    good = StreamDescription("s", "Sensors", "s", 250.0, "float32", channels, {"engine/name": "rt_mmdf"})
    assert read_sensors(good).kinds == ("eeg", "mag")
    for wrong, said in (
        (replace(good, extra={}), "not an engine's stream"),
        (replace(good, sfreq=1e5), "at 2000 Hz"),
        (replace(good, channels=(ChannelDescription("M1", "mag", "fT"),)), "'mag' in 'fT'"),
    ):
        with pytest.raises(StreamDescriptionError, match=said):
            read_sensors(wrong)
    engine = read_engine(STREAM)
    told = {"average/n_times": "5", "average/tmin_s": "-0.1", "average/tmax_s": "0.3", "average/event": "tone"}
    average = replace(STREAM, sfreq=0.0, extra=STREAM.extra | told)
    np.testing.assert_allclose(read_average(average, engine).latencies, [-0.1, 0.0, 0.1, 0.2, 0.3])
    for key, value in (("average/n_times", "900000000"), ("average/tmin_s", "9"), ("head/fingerprint", "cd" * 32)):
        with pytest.raises(StreamDescriptionError, match="average"):
            read_average(replace(average, extra=average.extra | {key: value}), engine)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 60000,
        '{"hops": 1' + "0" * 70000 + "}",
        '{"hops"',
        "\ud800",
        '{"time": NaN}',
        "9" * 5000,
    ],
)
def test_health_that_is_none_is_no_report(text: str) -> None:
    assert read_report(text) is None


def test_health_is_read_within_bounds() -> None:
    report = read_report(
        '{"hops": 12, "time": 1e999, "budget_ms": 20, "missed_deadlines": -4, "modalities": ["eeg", "meg", "x"],'
        '"streams": {"eeg": {"name": "\\u001b[2JEvil", "sfreq": "x", "age_s": 0.5, "missing_now": true, "drift_ppm": 3,'
        '"rate_error_ppm": -1, "counts": {"lost": 3, "gaps": null}}, "emg": {}},'
        '"bad_channels": {"E1": "flat", "E2": 7}, "latency_ms": {"age": {"p50": 3.5, "max": null}},'
        '"marks": {"newest": [{"stamp": 1.5, "received": 2, "text": "spike", "host": "h"}, 7, {"stamp": "x"}]},'
        '"average": {"problem": null, "markers": {"problem": "no stream"}},'
        '"incidents": {"counts": {"stall": 2, "gap": -1}, "lasting": [{"kind": "stall", "subject": "\\u001beeg"}, 3,'
        '{"kind": "disk", "subject": "recording", "detail": "a.xdf: no \\u001bspace"}]}}'
    )
    assert isinstance(report, HealthReport)
    assert (report.hops, report.missed_deadlines, report.budget_ms) == (12, 0, 20.0)
    assert np.isnan(report.time)
    eeg = report.streams["eeg"]
    assert (eeg.name, eeg.lost, eeg.gaps, eeg.drift_ppm, eeg.missing_now, eeg.silent) == ("[2JEvil", 3, 0, 2.0, True, False)
    assert list(report.streams) == ["eeg"]
    assert report.bad_channels == {"E1": "flat", "E2": ""}
    assert report.latency_ms["age"]["p50"] == 3.5
    assert [(mark.stamp, mark.text) for mark in report.marks] == [(1.5, "spike")]
    assert report.problems == ("markers: no stream",)
    assert (report.n_incidents, report.lasting) == (2, ("stall eeg", "disk recording"))
    assert report.not_written == "a.xdf: no space"


@given(text=st.text(max_size=200))
def test_any_text_is_a_report_or_none(text: str) -> None:
    assert read_report(text) is None or isinstance(read_report(text), HealthReport)
