"""The command line as a person and as a program see it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import mne
import numpy as np
import pytest
from typer.testing import CliRunner

import rt_mmdf
from rt_mmdf.acquisition.replay import Replay, ReplaySettings
from rt_mmdf.app.doctor import Finding, Verdict
from rt_mmdf.cli.live import interrupts_between_looks
from rt_mmdf.cli.main import app
from rt_mmdf.core.errors import ConfigurationError, HeadModelError, RecordingError, SinkError
from rt_mmdf.core.settings import load_settings, validate_settings
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryOutlet, MemoryTransport
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.runtime.worker import Worker

CONFIGS = Path(__file__).parents[2] / "configs"
COMMANDS = ["view", "profile", "replay", "head", "streams", "doctor"]
RUNNER = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "rt_mmdf.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> MemoryTransport:
    """A network in memory where the commands look for the real one."""
    transport = MemoryTransport(ManualClock())
    monkeypatch.setattr("rt_mmdf.lsl.network.NetworkTransport", lambda: transport)
    return transport


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of 4 EEG and 3 MEG channels."""
    info = mne.create_info([*(f"E{i}" for i in range(4)), *(f"M{i}" for i in range(3))], 200.0, ["eeg"] * 4 + ["mag"] * 3)
    raw = mne.io.RawArray(1e-6 * np.random.default_rng(0).standard_normal((7, 200)), info, verbose="ERROR")
    path = tmp_path_factory.mktemp("recording") / "small-raw.fif"
    raw.save(path, verbose="ERROR")
    return path


def stream(name: str, **changed: object) -> StreamDescription:
    channels = (ChannelDescription("C1", "EEG", "uV"), ChannelDescription("C2", "EEG", "uV"))
    return replace(StreamDescription(name, "EEG", f"id-{name}", 500.0, "float32", channels, {}), **changed)


def test_help_is_a_table_of_contents_and_does_not_wait_for_libraries() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout
    assert "not a medical device" in done.stdout
    heavy = "import sys, rt_mmdf.cli.main; print(*{'mne', 'mne_lsl', 'scipy', 'nilearn', 'matplotlib'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout.strip() == ""


@pytest.mark.parametrize(
    "command",
    [
        ["view"],
        ["replay"],
        ["head"],
        ["head", "template"],
        ["head", "subject"],
        ["head", "forward"],
        ["streams"],
        ["doctor"],
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = RUNNER.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 500


def test_version() -> None:
    result = RUNNER.invoke(app, ["--version"])
    assert result.output.strip() == f"rt-mmdf {rt_mmdf.__version__}"


def test_a_typo_is_told_with_what_was_meant() -> None:
    done = run("replya")
    assert done.returncode == 2
    assert "replay" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_error_that_a_person_can_mend_has_no_traceback(tmp_path: Path) -> None:
    done = run("replay", str(tmp_path / "no[bold]such.fif"))
    assert done.returncode == 2
    assert "Error: recording" in done.stderr
    assert "no[bold]such.fif: no such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.lsl
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_replay_ends_cleanly_when_told_and_says_what_it_sent(
    recording: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    prefix, log = f"cli-{uuid4().hex[:8]}", tmp_path / "log.json"
    words = ["replay", str(recording), "--loop", "inf", "--prefix", prefix, "--log", str(log), "--log-pushes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rt_mmdf.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("stream")  # its streams are on the network from here on
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    assert f"as {prefix}-EEG" in out
    content = json.loads(log.read_text())
    assert content["streams"]["eeg"]["name"] == f"{prefix}-EEG"


class Hurrying(ManualClock):
    """A clock that goes on whenever it is asked."""

    def now(self) -> float:
        return self.advance(0.01)


def test_replay_that_is_interrupted_as_it_begins_ends_before_its_streams_do(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rt_mmdf.lsl.network.NetworkTransport", lambda: MemoryTransport(Hurrying()))
    begun: list[Worker] = []
    begin, push, close = Worker.start, MemoryOutlet.push, MemoryOutlet.close
    sent, playing_at_close = Signal(), {}

    def interrupted(worker: Worker) -> Worker:
        begun.append(begin(worker))
        assert sent.wait(10.0)
        raise KeyboardInterrupt

    def told(outlet: MemoryOutlet, *given: Any) -> None:
        push(outlet, *given)
        sent.ring()

    def watched(outlet: MemoryOutlet) -> None:
        playing_at_close[outlet.description.name] = begun[0].alive
        close(outlet)

    monkeypatch.setattr(Worker, "start", interrupted)
    monkeypatch.setattr(MemoryOutlet, "push", told)
    monkeypatch.setattr(MemoryOutlet, "close", watched)
    log = tmp_path / "log.json"
    try:
        result = RUNNER.invoke(app, ["replay", str(recording), "--loop", "inf", "--log", str(log)])
    finally:
        for worker in begun:
            worker.stop()
    assert result.exit_code == 130, result.output
    assert playing_at_close == dict.fromkeys(["replay-EEG", "replay-MEG", "replay-markers"], False)
    n_sent = {name: own["n_sent"] for name, own in json.loads(log.read_text())["streams"].items()}
    assert sum(n_sent.values()) > 0
    assert f"sent {n_sent['eeg']} samples as replay-EEG, {n_sent['meg']} samples as replay-MEG, 0 markers" in result.output


def test_ctrl_c_that_cuts_into_a_lock_ends_a_replay_as_any_other(
    recording: Path, network: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the main thread waits for a thread to have begun, which begins no sooner."""
    release, begin, worker_of, left = threading.Condition._release_save, threading.Thread._set_ident, Replay.worker, [0]
    pressed = threading.Lock()
    pressed.acquire()

    def begun(thread: threading.Thread) -> None:
        begin(thread)
        if left[0]:
            pressed.acquire(timeout=10.0)

    def released(condition: threading.Condition) -> object:
        state = release(condition)
        if left[0] and threading.current_thread() is threading.main_thread():
            left[0] -= 1
            signal.raise_signal(signal.SIGINT)
            pressed.release()
        return state

    def armed(player: Replay, *given: Any, **more: Any) -> Worker:
        left[0] = 1
        return worker_of(player, *given, **more)

    monkeypatch.setattr(threading.Condition, "_release_save", released)
    monkeypatch.setattr(threading.Thread, "_set_ident", begun)
    monkeypatch.setattr(Replay, "worker", armed)
    result = RUNNER.invoke(app, ["replay", str(recording), "--loop", "inf"])
    assert left == [0]
    assert result.exit_code == 130, result.exception
    assert "sent 0 samples as replay-EEG, 0 samples as replay-MEG, 0 markers" in result.output
    assert network.resolve(timeout_s=0.0) == []


def test_interrupts_wait_for_a_look_and_a_second_one_does_not() -> None:
    def terminate(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, terminate)
    try:
        for number, raised in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
            with interrupts_between_looks() as look:
                look()
                signal.raise_signal(number)
                with pytest.raises(raised):
                    look()
                with pytest.raises(raised):
                    signal.raise_signal(number)
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
        assert signal.getsignal(signal.SIGTERM) is terminate
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what runs in the background
        with interrupts_between_looks() as look:
            signal.raise_signal(signal.SIGINT)
            look()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.lsl
def test_replay_plays_to_the_end_as_told(recording: Path, tmp_path: Path) -> None:
    prefix, log = f"cli-{uuid4().hex[:8]}", tmp_path / "log.json"
    words = "--loop 3 --speed inf --eeg-rate 100 --meg-chunk 7 --chunk 20 --eeg-gap 0.5,0.25 --meg-drift-ppm 50 --only eeg"
    result = RUNNER.invoke(app, ["replay", str(recording), *words.split(), "--prefix", prefix, "--log", str(log)])
    assert result.exit_code == 0, result.output
    streams = json.loads(log.read_text())["streams"]
    assert list(streams) == ["eeg"]
    assert streams["eeg"]["sfreq"] == 100
    assert streams["eeg"]["n_sent"] == 3 * 100 - 25
    assert streams["eeg"]["gaps"] == [[50, 25]]
    assert f"sent 275 samples as {prefix}-EEG, 0 markers" in result.output
    assert "20" in result.output.splitlines()[1]


class Seen(Exception):
    """Ends a replay as soon as its settings are known."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"loop": 1.0, "speed": 1.0, "eeg.chunk": 10, "meg.chunk": 10, "eeg.sfreq": None, "wait_for_consumers_s": None}),
        ("--loop inf --speed 4", {"loop": float("inf"), "speed": 4.0}),
        ("--chunk 5 --meg-chunk 40", {"eeg.chunk": 5, "meg.chunk": 40}),
        (
            "--jitter-ms 5 --stamps last_of_block --si",
            {"eeg.jitter_ms": 5.0, "meg.stamps": "last_of_block", "eeg.unit": "si"},
        ),
        ("--meg-gap 1,0.5 --meg-gap 3,1", {"meg.gaps": ((1.0, 0.5), (3.0, 1.0)), "eeg.gaps": ()}),
        (
            "--wait-for-consumers 20 --counter --no-markers",
            {"wait_for_consumers_s": 20.0, "counter": True, "markers": False},
        ),
        ("--config FILE", {"loop": 2.0, "eeg.chunk": 3, "meg.chunk": 10, "prefix": "mine", "markers": False}),
        ("--config FILE --loop 1 --chunk 8 --markers", {"loop": 1.0, "eeg.chunk": 8, "prefix": "mine", "markers": True}),
    ],
)
def test_flags_and_file_become_settings(
    recording: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: object,
    words: str,
    expected: dict[str, object],
) -> None:
    config = tmp_path / "replay.toml"
    config.write_text('loop = 2\nprefix = "mine"\nmarkers = false\n[eeg]\nchunk = 3\n')
    seen = []

    def stop(transport: object, recording: object, settings: object) -> None:
        seen.append(settings)
        raise Seen

    monkeypatch.setattr("rt_mmdf.acquisition.replay.Replay", stop)
    result = RUNNER.invoke(app, ["replay", str(recording), *(w.replace("FILE", str(config)) for w in words.split())])
    assert isinstance(result.exception, Seen), result.output
    for path, value in expected.items():
        found = seen[0]
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ("--loop often", ConfigurationError, "--loop 'often'"),
        ("--loop 1.5", ConfigurationError, "whole number"),
        ("--eeg-gap 10", ConfigurationError, "--eeg-gap '10'"),
        ("--chunk 0", ConfigurationError, "eeg.chunk"),
        ("--start 100", RecordingError, "nothing lies between"),
        ("--config /no/such.toml", ConfigurationError, "no such file"),
        ("--speed inf --log /no/such/folder/log.json", SinkError, "cannot be written"),
    ],
)
def test_wrong_flags_of_replay_are_told(recording: Path, words: str, kind: type[Exception], message: str) -> None:
    result = RUNNER.invoke(app, ["replay", str(recording), "--prefix", f"cli-{uuid4().hex[:8]}", *words.split()])
    assert isinstance(result.exception, kind)
    assert message in str(result.exception)


def test_streams_are_listed_as_they_are_and_never_as_markup(network: MemoryTransport) -> None:
    assert "No stream answered" in RUNNER.invoke(app, ["streams"]).output
    assert json.loads(RUNNER.invoke(app, ["streams", "--json"]).stdout) == []
    network.outlet(stream("[red]amp[/red]"))
    network.outlet(stream("marks", type="Markers", sfreq=0.0))
    shown = RUNNER.invoke(app, ["streams"]).output
    assert "[red]amp[/red]" in shown
    assert "500 Hz" in shown
    assert "irregular" in shown
    listed = {entry["name"]: entry for entry in json.loads(RUNNER.invoke(app, ["streams", "--json"]).stdout)}
    assert set(listed) == {"[red]amp[/red]", "marks"}
    assert listed["marks"]["sfreq"] == 0
    assert listed["[red]amp[/red]"] | {"uid": "", "hostname": ""} == {
        **{"name": "[red]amp[/red]", "type": "EEG", "source_id": "id-[red]amp[/red]", "hostname": "", "sfreq": 500.0},
        **{"n_channels": 2, "dtype": "float32", "uid": ""},
    }


@pytest.mark.slow
def test_head_models_are_built_shown_and_not_overwritten_by_accident(tmp_path: Path) -> None:
    out = tmp_path / "head"
    words = ["head", "template", "--spacing", "ico3", "--meg", "none", "--name", "cap", "--out", str(out)]
    built = RUNNER.invoke(app, words)
    assert built.exit_code == 0, built.output
    assert "1284 (left 642, right 642)" in built.output
    facts = json.loads(RUNNER.invoke(app, ["head", "show", str(out), "--json"]).stdout)
    assert facts["name"] == "cap"
    assert facts["channels"] == {"eeg": 60}
    assert "gain eeg" in RUNNER.invoke(app, ["head", "show", str(out)]).output

    again = RUNNER.invoke(app, words)
    assert isinstance(again.exception, HeadModelError)
    assert "--force" in str(again.exception)
    assert RUNNER.invoke(app, [*words, "--force"]).exit_code == 0

    copy = RUNNER.invoke(app, ["head", "forward", str(out / "head-fwd.fif"), "--out", str(tmp_path / "copy")])
    assert copy.exit_code == 0, copy.output
    copied = json.loads(RUNNER.invoke(app, ["head", "show", str(tmp_path / "copy"), "--json"]).stdout)
    assert copied["sources"] == facts["sources"]
    assert copied["gain eeg"] == facts["gain eeg"]


@pytest.mark.slow
@pytest.mark.sample
def test_the_head_of_a_real_subject(sample_data: Path, tmp_path: Path) -> None:
    files = {
        "--recording": "sample_audvis_5s_raw.fif",
        "--trans": "sample-trans.fif",
        "--src": "sample-oct5-src.fif",
        "--bem": "sample-320-320-320-bem-sol.fif",
    }
    words = [word for flag, name in files.items() for word in (flag, str(sample_data / name))]
    result = RUNNER.invoke(app, ["head", "subject", *words, "--out", str(tmp_path / "sample")])
    assert result.exit_code == 0, result.output
    facts = json.loads(RUNNER.invoke(app, ["head", "show", str(tmp_path / "sample"), "--json"]).stdout)
    assert facts["channels"] == {"grad": 202, "mag": 101, "eeg": 60}


def test_heads_that_cannot_be_are_told(tmp_path: Path, recording: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, message in (
        (["head", "show", str(tmp_path)], "no head.toml"),
        (["head", "template", "--out", str(tmp_path)], "not empty"),
        (["head", "template", "--out", str(tmp_path / "file")], "a file is in the way"),
        (["head", "template", "--out", str(tmp_path / "x"), "--recording", str(tmp_path / "no.fif")], "cannot be read"),
        (["head", "template", "--out", str(tmp_path / "x"), "--meg", "none", "--eeg", "none"], "neither"),
    ):
        result = RUNNER.invoke(app, words)
        assert isinstance(result.exception, HeadModelError | RecordingError), words
        assert message in str(result.exception)
    assert not (tmp_path / "x").exists()


def test_doctor_reports_and_fails_only_on_problems(monkeypatch: pytest.MonkeyPatch, network: object) -> None:
    findings = [Finding("LSL loopback", Verdict.OK, "p50 [0.1] ms"), Finding("GPU", Verdict.NOTE, "none")]
    monkeypatch.setattr("rt_mmdf.app.doctor.examine", lambda transport: iter(findings))
    healthy = RUNNER.invoke(app, ["doctor"])
    assert healthy.exit_code == 0
    assert "p50 [0.1] ms" in healthy.output
    assert [entry["verdict"] for entry in json.loads(RUNNER.invoke(app, ["doctor", "--json"]).stdout)] == ["ok", "note"]
    findings.append(Finding("LSL loopback", Verdict.PROBLEM, "firewall"))
    assert RUNNER.invoke(app, ["doctor"]).exit_code == 1


def test_the_example_of_a_replay_is_valid_and_does_what_its_comments_say() -> None:
    settings = load_settings(CONFIGS / "replay_two_devices.toml", ReplaySettings)
    assert settings.loop == 6
    assert (settings.eeg.sfreq, settings.meg.sfreq) == (500, 1000)
    assert settings.eeg.chunk / settings.eeg.sfreq == pytest.approx(0.02)
    assert settings.eeg.jitter_ms == 5
    # what is commented out is valid too
    text = (CONFIGS / "replay_two_devices.toml").read_text()
    content = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    assert {"duration_s", "modalities", "wait_for_consumers_s"} <= set(content)
    assert "gaps" in content["eeg"]
    validate_settings(content, ReplaySettings, where="example")
