"""What `calibrate --sync` is made of: trigger channels, pairs that can be trusted, the configuration file, the command."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rt_mmdf.acquisition.receiver import Receiver
from rt_mmdf.acquisition.settings import StreamSettings
from rt_mmdf.alignment.sample_times import SampleTimes
from rt_mmdf.alignment.shared_events import Difference, Events, pair_events
from rt_mmdf.app import synchronisation
from rt_mmdf.app.configuration_file import ConfigurationFile
from rt_mmdf.app.intake import Intake, survey_streams
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.app.synchronisation import MeasuredLag, Triggers, as_settings, problem_of, trigger_channel
from rt_mmdf.cli.live import known_lag
from rt_mmdf.cli.main import app
from rt_mmdf.core.blocks import RawBlock
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ConfigurationError, SinkError
from rt_mmdf.core.settings import load_settings, validate_settings
from rt_mmdf.lsl.interface import ChannelDescription, ClockOffset, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.runtime.mailbox import Signal

LAG = MeasuredLag(
    Modality.EEG, "BrainAmp / sn-1", "meg", 35.2123, 0.1234, Difference(35.2123e-3, 6e-5, 1e-5, 2e-5, 8e-4, 20), 22, 21
)


def receiver(others: list[tuple[str, str]]) -> Receiver:
    transport = MemoryTransport()
    channels = (ChannelDescription("Cz", "eeg", "uV"), *(ChannelDescription(name, kind, "") for name, kind in others))
    transport.outlet(StreamDescription("amp", "EEG", "amp", 500.0, "float32", channels, {}))
    return Receiver(transport, StreamSettings(name="amp"), "eeg")


@pytest.mark.parametrize(
    ("others", "given_name", "chosen"),
    [
        ([("TRIGGER", "stim"), ("AUX", "misc")], None, "TRIGGER"),
        ([("AUX", "misc"), ("STI 014", "misc")], None, "STI 014"),
        ([("a", "stim"), ("b", "stim")], "b", "b"),
        ([("a", "stim")], "Cz", "Cz"),
    ],
)
def test_the_trigger_channel_is_the_only_one_or_the_one_that_is_named(
    others: list[tuple[str, str]], given_name: str | None, chosen: str
) -> None:
    assert trigger_channel(receiver(others), given_name) == chosen


@pytest.mark.parametrize(
    ("others", "given_name", "said"),
    [
        ([], None, "no channels look like a trigger channel"),
        ([("a", "stim"), ("b", "stim")], None, "2 channels look like a trigger channel.* a, b"),
        ([("AUX", "misc")], None, "it may be one of: AUX"),
        ([("TRIGGER", "stim")], "TRIG", "'TRIG'.* has no such channel.* TRIGGER"),
    ],
)
def test_what_cannot_be_told_is_asked_for(others: list[tuple[str, str]], given_name: str | None, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        trigger_channel(receiver(others), given_name)


@pytest.mark.parametrize(
    ("streams", "triggers", "said"),
    [
        ({"eeg"}, Triggers({}), "compares two devices"),
        ({"eeg"}, Triggers({Modality.MEG: "STI"}), r"no section \[acquisition.meg\]"),
    ],
)
def test_what_does_not_go_together_is_refused(streams: set[str], triggers: Triggers, said: str) -> None:
    settings = SessionSettings.model_validate({"acquisition": {name: {"name": name} for name in streams}})
    with pytest.raises(ConfigurationError, match=said):
        synchronisation.measure_lags(settings, MemoryTransport(), triggers)


@pytest.mark.parametrize(("device", "used"), [("amp / amp", True), ("amp / another", False)])
def test_a_session_does_not_use_the_lag_of_another_device(device: str, used: bool, caplog: pytest.LogCaptureFixture) -> None:
    transport = MemoryTransport()
    channels = tuple(ChannelDescription(f"EEG{k:03d}", "eeg", "uV") for k in range(1, 9))
    transport.outlet(StreamDescription("amp", "EEG", "amp", 500.0, "float32", channels, {}))
    content = {"acquisition": {"eeg": {"name": "amp", "lag_ms": 35.0, "lag_drift_ppm": 50.0, "lag_device": device}}}
    settings = SessionSettings.model_validate(content)
    with ExitStack() as resources:
        names, _ = survey_streams(settings, transport)
        intake = Intake.subscribe(settings, transport, names, Signal(), resources)
    assert intake.lags[Modality.EEG].lag_ms == (35.0 if used else None)
    assert ("is not used" in caplog.text) is not used
    assert ("drifted by +50 ppm" in caplog.text) is used
    assert known_lag({"streams": {"eeg": asdict(intake.lags[Modality.EEG])}}) is used


def test_a_device_that_takes_the_place_of_another_does_not_get_its_lag(caplog: pytest.LogCaptureFixture) -> None:
    """Samples are stamped 35 ms late by the first device, and at once by the second, of which nothing is known."""
    transport, true = MemoryTransport(), np.arange(0, 2, 0.002)
    assert isinstance(transport.clock, ManualClock)
    channels = tuple(ChannelDescription(f"EEG{k:03d}", "eeg", "uV") for k in range(1, 3))
    amp = StreamDescription("amp", "EEG", "sn-1", 500.0, "float32", channels, {})
    content = {"name": "amp", "lag_ms": 35.0, "lag_device": "amp / sn-1"}
    settings = SessionSettings.model_validate({"acquisition": {"eeg": content}})

    def run(outlet: Any, lag_s: float) -> np.ndarray:
        begin, times = transport.clock.now(), []
        for piece in np.split(true, 20):
            transport.clock.move_to(begin + piece[-1] + lag_s + 1e-6)
            outlet.push(np.sin(2 * np.pi * 7 * (begin + piece))[:, None] * [1.0, 1.0], begin + piece + lag_s)
            intake.watch.step()
            intake.receivers[Modality.EEG].step()
            times += [hop.block for hop, _ in intake.hops()]
        wave = np.concatenate([block.data[0] for block in times])
        at = np.concatenate([block.times for block in times])
        return np.abs(wave - 1e-6 * np.sin(2 * np.pi * 7 * at))[(at > begin + 0.5) & np.isfinite(wave)]

    with ExitStack() as resources:
        outlet = transport.outlet(amp)
        names, _ = survey_streams(settings, transport)
        intake = Intake.subscribe(settings, transport, names, Signal(), resources)
        error = run(outlet, 0.035)
        assert len(error) > 500
        assert error.max() < 0.02e-6
        outlet.close()
        successor = transport.outlet(replace(amp, source_id="sn-2"))
        while not successor.has_consumers():
            transport.clock.advance(1.0)
            intake.receivers[Modality.EEG].step()
        assert "is not used" not in caplog.text
        error = run(successor, 0.0)
        assert len(error) > 500
        assert error.max() < 0.02e-6
        assert "measured with 'amp / sn-1', this is 'amp / sn-2'" in caplog.text
        assert intake.lags[Modality.EEG].lag_ms is None


@pytest.mark.parametrize("wrong", [{"lag_ms": 3.0}, {"stamps": "arrival"}])
def test_markers_have_no_lag(wrong: dict[str, Any]) -> None:
    content = {"acquisition": {"eeg": {"name": "a"}}, "average": {"markers": {"name": "m"} | wrong, "events": {"x": ["1"]}}}
    content["average"] |= {"tmin_s": -0.1, "tmax_s": 0.4}
    with pytest.raises(ConfigurationError, match="for sensors only"):
        validate_settings(content, SessionSettings, where="here")


def events(times: np.ndarray) -> Events:
    return Events(times, np.full(len(times), 1e-5), np.full(len(times), 2e-3))


def test_pairs_that_cannot_be_trusted_say_why() -> None:
    rng = np.random.default_rng(0)
    irregular, regular = np.cumsum(rng.uniform(0.6, 1.4, 20)), np.arange(20) * 0.3
    other = np.cumsum(rng.uniform(0.6, 1.4, 20))

    def problem(first: np.ndarray, second: np.ndarray) -> str:
        trio = events(first), events(second)
        return problem_of(*trio, pair_events(*trio, 0.5))

    assert problem(irregular + 0.03, irregular) == ""
    assert "irregular intervals" in problem(regular + 0.03, regular)
    assert problem(other, irregular)
    assert "may not be the same triggers" in problem(irregular + 20, irregular)


@given(offset=st.floats(-100, 100), drift=st.floats(-2e-4, 2e-4), cuts=st.lists(st.integers(1, 9999), max_size=20))
def test_times_of_samples_are_those_of_the_senders_clock_however_they_come(
    offset: float, drift: float, cuts: list[int]
) -> None:
    """Sampled by a crystal that is 50 ppm slow, stamped with jitter by a clock that is off and drifts."""
    true = 500.0 + np.arange(10000) / 500 * (1 + 5e-5)
    stamps = true * (1 + drift) + offset + np.random.default_rng(3).normal(0, 1e-4, 10000)
    times = SampleTimes(500.0, "per_sample", "the stream")
    for at in np.arange(500.0, 520.0, 2.0):
        sender = at * (1 + drift) + offset
        times.add_offset(ClockOffset(sender, at - sender, 1e-4))
    for part in np.split(np.arange(10000), sorted({*cuts})):
        if len(part):
            data = np.vstack([np.zeros(len(part)), part]).astype(np.float32)
            times.add(RawBlock(data, stamps[part], true[part], int(part[0])), 1)
    index, values = times.samples()
    np.testing.assert_array_equal(index, values)
    assert len(index) > 9900
    late = index[index > 2000]
    error = np.abs(times.times_at(late.astype(float)) - true[late])
    assert error.max() < 1e-4
    assert (error < 4 * times.sd_at(late) + 5e-5).all()


CONFIG = """# our lab
name = "lab"

[acquisition.eeg]
name = "BrainAmp"   # the amplifier
lag_drift_ppm = 3.0

[acquisition.eeg.rename]
"1" = "Cz"

[acquisition.meg]
name = "Neuromag"

# what follows
[alignment]
late_ms = 300.0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG)
    return path


def test_the_configuration_gets_the_keys_and_keeps_everything_else(config: Path) -> None:
    file = ConfigurationFile(config, SessionSettings)
    file.with_values(("acquisition", "eeg"), as_settings(LAG, date(2026, 11, 23)))
    file.with_values(("acquisition", "meg"), {"lag_ms": 1.5})
    config.chmod(0o640)
    file.write()
    text = config.read_text()
    removed = [line for line in CONFIG.splitlines() if line not in text.splitlines()]
    assert removed == ["lag_drift_ppm = 3.0"]  # no drift was found this time
    assert [line for line in text.splitlines() if line not in CONFIG.splitlines()] == [
        "lag_ms = 35.212",
        "lag_uncertainty_ms = 0.123",
        'lag_against = "meg"',
        'lag_measured = "2026-11-23"',
        'lag_device = "BrainAmp / sn-1"',
        "lag_ms = 1.5",
    ]
    assert text.index("lag_ms = 1.5") < text.index("# what follows")
    stored = load_settings(config, SessionSettings).acquisition
    assert (stored["eeg"].lag_ms, stored["eeg"].lag_measured, stored["meg"].lag_ms) == (35.212, date(2026, 11, 23), 1.5)
    assert config.stat().st_mode & 0o777 == 0o640
    assert list(config.parent.iterdir()) == [config]
    again = ConfigurationFile(config, SessionSettings)  # a second measurement replaces the first
    again.with_values(("acquisition", "eeg"), {"lag_ms": 36.0})
    again.write()
    assert config.read_text() == text.replace("35.212", "36.0")


@pytest.mark.parametrize(
    "text",
    [
        'acquisition = {eeg = {name = "a"}}\nname = "x"  # one line\n',
        'acquisition.eeg.name = "a"\nname = "x"\n',
        '[acquisition]\neeg = {name = "a"} # here\nmeg.name = "b"\n[alignment]\n',
        '[acquisition.eeg]\r\nname = "a"\r\n# end\r\n',
        '[acquisition.eeg]\nname = "a"',
    ],
)
def test_however_the_section_is_written(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode())
    file = ConfigurationFile(path, SessionSettings)
    file.with_values(("acquisition", "eeg"), {"lag_ms": 2.5})
    file.write()
    assert load_settings(path, SessionSettings).acquisition["eeg"].lag_ms == 2.5
    for comment in re.findall("#.*", text):
        assert comment.strip() in path.read_text()


def test_a_file_that_has_changed_meanwhile_is_left_alone(config: Path) -> None:
    file = ConfigurationFile(config, SessionSettings)
    file.with_values(("acquisition", "eeg"), {"lag_ms": 2.5})
    config.write_text(CONFIG + "# somebody else\n")
    with pytest.raises(ConfigurationError, match="changed since it was read"):
        file.write()
    assert config.read_text() == CONFIG + "# somebody else\n"
    assert list(config.parent.iterdir()) == [config]


def test_what_would_not_be_valid_is_not_written(config: Path) -> None:
    file = ConfigurationFile(config, SessionSettings)
    with pytest.raises(ConfigurationError, match="lag_ms"):
        file.with_values(("acquisition", "eeg"), {"lag_ms": 1e5})
    with pytest.raises(ConfigurationError, match=r"no section \[acquisition.other\]"):
        file.with_values(("acquisition", "other"), {"lag_ms": 1.0})


def test_a_file_that_is_gone_is_an_error_of_writing(config: Path) -> None:
    file = ConfigurationFile(config, SessionSettings)
    config.unlink()
    with pytest.raises(SinkError, match="cannot be written"):
        file.write()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[MeasuredLag]:
    """What the command gets instead of a measurement."""
    lags = [LAG]
    monkeypatch.setattr(synchronisation, "measure_lags", lambda *given: lags)
    return lags


def test_a_dry_run_shows_the_change_and_leaves_the_file(config: Path, measured: list[MeasuredLag]) -> None:
    said = CliRunner().invoke(app, ["calibrate", str(config), "--sync", "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "+lag_ms = 35.212" in said.output
    assert config.read_text() == CONFIG
    said = CliRunner().invoke(app, ["calibrate", str(config), "--sync"])
    assert said.exit_code == 0, said.output
    assert "lag +35.21 ms ±0.12 against meg" in said.output
    assert "20 pairs of 22 and 21 triggers" in said.output
    assert load_settings(config, SessionSettings).acquisition["eeg"].lag_ms == 35.212


def test_a_lag_that_drifts_is_warned_of(config: Path, measured: list[MeasuredLag]) -> None:
    drifting = Difference(35e-3, 6e-5, 1e-4, 2e-5, 8e-4, 20)
    measured[0] = MeasuredLag(Modality.EEG, "BrainAmp / sn-1", "meg", 35.0, 0.1, drifting, 20, 20)
    said = CliRunner().invoke(app, ["calibrate", str(config), "--sync"])
    assert "moves by +6.00 ms a minute" in said.output
    assert load_settings(config, SessionSettings).acquisition["eeg"].lag_drift_ppm == 100.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--out rest-cov.fif"),
        (["--sync", "--out", "a-cov.fif"], "Leave one of the two out"),
        (["--out", "a-cov.fif", "--dry-run"], "--dry-run is for --sync"),
        (["--out", "a-cov.fif", "--meg-trigger", "STI"], "--meg-trigger is for --sync"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], said: str, config: Path) -> None:
    done: Any = CliRunner().invoke(app, ["calibrate", str(config), *words])
    assert isinstance(done.exception, ConfigurationError)
    assert said in str(done.exception)
