"""What is wrong from outside is told - where, what was seen, what was expected, what to do - and nothing else breaks."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from pydantic import BaseModel

from rt_mmdf.acquisition.replay import ReplaySettings
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.cli.main import run
from rt_mmdf.core.blocks import Flag
from rt_mmdf.core.errors import (
    ConfigurationError,
    HeadModelError,
    NoiseCovarianceError,
    RtMmdfError,
    StreamAmbiguous,
    StreamDescriptionError,
    StreamError,
)
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription

SFREQ = 250.0
UNIT = {"eeg": ("V", 5e-6), "mag": ("T", 2e-13), "grad": ("T/m", 5e-12)}
Lab = Any  # the fixture's class lives in conftest.py


@pytest.fixture
def streams(template_head_ico3: HeadModel) -> Callable[..., tuple[StreamDescription, np.ndarray]]:
    """A stream as it should be: 60 electrodes, or 102 magnetometers, of sensor noise."""
    channels = template_head_ico3.channels

    def stream(kind: str = "eeg", seconds: float = 2.0) -> tuple[StreamDescription, np.ndarray]:
        names = [name for name, own in zip(channels.names, channels.types, strict=True) if own == kind]
        unit, level = UNIT[kind]
        modality = "EEG" if kind == "eeg" else "MEG"
        description = StreamDescription(
            f"a-{modality}",
            modality,
            f"id-{modality}",
            SFREQ,
            "float32",
            tuple(ChannelDescription(name, kind, unit) for name in names),
            {},
        )
        noise = np.random.default_rng(len(kind)).normal(0, level, (round(seconds * SFREQ), len(names)))
        return description, noise.astype(np.float32)

    return stream


@pytest.fixture
def content(small_content: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return small_content("a")


@pytest.fixture
def eeg_content(small_content: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return small_content("a", ("eeg",))


def refused(lab: Lab, content: dict[str, Any], kind: type[RtMmdfError], *parts: str) -> None:
    """The session does not begin, for a reason with all these parts."""
    with pytest.raises(kind) as caught:
        lab.session(content)
    for part in parts:
        assert part in str(caught.value)
    assert len(lab.transport.resolve()) == len(lab._sending), "an outlet of the session was left open"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lab: Lab) -> Callable[..., str]:
    """Runs a command that must end with exit code 2 and without a traceback; returns its error message in one line."""
    monkeypatch.setattr("rt_mmdf.lsl.network.NetworkTransport", lambda: lab.transport)
    monkeypatch.setattr("rt_mmdf.cli.main.signal.signal", lambda *given: None)
    monkeypatch.setenv("COLUMNS", "500")

    def fail(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["rt-mmdf", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run()
        shown = capsys.readouterr().err
        assert ended.value.code == 2, shown
        assert "Error: " in shown
        assert "Traceback" not in shown
        return " ".join(shown.split())

    return fail


# which stream


def test_no_such_stream(lab: Lab, content: dict[str, Any], streams: Any, cli: Any, as_toml: Any, tmp_path: Path) -> None:
    lab.publish(*streams("eeg"))
    said = cli("monitor", as_toml(content, tmp_path / "c.toml"))
    for part in ("acquisition.meg", "name 'a-MEG'", "On offer", "'a-EEG'", "Start the sending program"):
        assert part in said


def test_two_streams_of_one_name(lab: Lab, eeg_content: dict[str, Any], streams: Any) -> None:
    description, data = streams("eeg")
    lab.publish(description, data)
    lab.publish(replace(description, source_id="another"), data)
    told = ("acquisition.eeg", "2 streams", "exactly one is expected", "'id-EEG'", "'another'", "Set source_id or hostname")
    refused(lab, eeg_content, StreamAmbiguous, *told)
    eeg_content["acquisition"]["eeg"]["source_id"] = "another"
    lab.session(eeg_content).stop()


def test_an_engine_of_that_name_runs_already(lab: Lab, eeg_content: dict[str, Any], streams: Any) -> None:
    lab.publish(*streams("eeg"))
    first = lab.session(eeg_content)
    with pytest.raises(
        ConfigurationError, match=r"name = 'a': 'a-sources' is being published already, on host 'here'; .*End"
    ):
        lab.session(eeg_content)
    other = lab.session(eeg_content | {"name": "b"})
    other.stop()
    first.stop()
    lab.session(eeg_content).stop()


# what the stream says of itself


@pytest.mark.parametrize("unit", ["", "furlong", "fT", "MV"])
def test_units_that_are_missing_unknown_or_of_another_kind(
    unit: str, lab: Lab, eeg_content: dict[str, Any], streams: Any
) -> None:
    description, data = streams("eeg")
    channels = tuple(replace(channel, unit=unit) for channel in description.channels)
    lab.publish(replace(description, channels=channels), data * 1e6)
    seen = repr(unit) if unit else "(none)"
    told = (
        "acquisition.eeg",
        "'a-EEG'",
        "60 eeg channels",
        seen,
        "cannot be read as V",
        "Known units",
        'units = {eeg = "uV"}',
    )
    refused(lab, eeg_content, StreamDescriptionError, *told)
    eeg_content["acquisition"]["eeg"]["units"] = {"eeg": "uV"}
    _, estimates = lab.image(eeg_content)
    assert len(estimates) > 100


def test_duplicated_names(lab: Lab, eeg_content: dict[str, Any], streams: Any) -> None:
    description, data = streams("eeg")
    channels = (description.channels[1], *description.channels[1:])
    lab.publish(replace(description, channels=channels), data)
    refused(lab, eeg_content, StreamDescriptionError, "acquisition.eeg", "'EEG002'", "unique names are expected", "exclude")


def test_a_stream_without_a_rate(lab: Lab, eeg_content: dict[str, Any], streams: Any) -> None:
    description, data = streams("eeg")
    lab.publish(replace(description, sfreq=0.0), data, SFREQ)
    refused(
        lab, eeg_content, StreamDescriptionError, "acquisition.eeg", "sampling rate 0", "regular one", "choose another one"
    )


@pytest.mark.parametrize(
    ("factor", "grid"), [(0.5, "clock"), (2.0, "clock"), (1.005, "clock"), (0.95, "samples"), (1.05, "samples")]
)
def test_a_rate_that_is_not_the_announced_one(
    factor: float, grid: str, lab: Lab, content: dict[str, Any], streams: Any
) -> None:
    content["alignment"] = {"grid": grid}
    lab.publish(*streams("eeg", seconds=4.0), SFREQ * factor)
    lab.publish(*streams("mag", seconds=4.0))
    with pytest.raises(StreamDescriptionError) as caught:
        lab.image(content)
    for part in ("the EEG stream", "announces 250 Hz", f"tell {SFREQ * factor:.5g} Hz", "ppm", "Correct that there"):
        assert part in str(caught.value)


# channels and the head


def test_channels_that_do_not_stream_are_said_once_and_imaged_without(
    lab: Lab, content: dict[str, Any], streams: Any, caplog: pytest.LogCaptureFixture
) -> None:
    description, data = streams("mag")
    lab.publish(replace(description, channels=description.channels[3:]), data[:, 3:])
    lab.publish(*streams("eeg"))
    with caplog.at_level(logging.WARNING):
        session, estimates = lab.image(content)
    said = [record.getMessage() for record in caplog.records if "do not stream" in record.getMessage()]
    assert len(said) == 1
    assert "207 of the 366 channels of head model 'template'" in said[0]  # 204 gradiometers beside those three
    assert len(session.imaging.channels) == 159
    assert not any((e.flags & np.uint32(Flag.INVALID)).any() for e in estimates)


@pytest.mark.sample
def test_the_real_recording_lacks_three_channels_of_its_head(
    lab: Lab,
    raw: mne.io.BaseRaw,
    sample_head: HeadModel,
    sample_content: Callable[..., dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sample_head.save(tmp_path / "head306")
    content = sample_content(prefix="a") | {"head": {"folder": str(tmp_path / "head306")}}
    for modality in ("eeg", "meg"):
        picks = mne.pick_types(raw.info, meg=modality == "meg", eeg=modality == "eeg", exclude=[])
        channels = tuple(
            ChannelDescription(raw.ch_names[i], kind, UNIT[kind][0])
            for i, kind in zip(picks, raw.get_channel_types(picks), strict=True)
        )
        described = StreamDescription(
            f"a-{modality.upper()}", modality, modality, raw.info["sfreq"], "float32", channels, {}
        )
        lab.publish(described, raw.get_data(picks)[:, :600].T)
    session, estimates = lab.image(content)
    said = [record.getMessage() for record in caplog.records if "do not stream" in record.getMessage()]
    assert len(said) == 1
    assert all(name in said[0] for name in ("3 of the 366", "MEG 0143", "MEG 0233", "MEG 0321", "goes on without"))
    assert len(session.imaging.channels) == 363
    assert np.isfinite(np.hstack([e.data for e in estimates])[:, :500]).all()


@pytest.fixture
def as_it_should_be(lab: Lab, content: dict[str, Any], streams: Any) -> np.ndarray:
    """Estimates of the streams in the head's own order and names."""
    other = type(lab)()
    other.publish(*streams("eeg"))
    other.publish(*streams("mag"))
    _, estimates = other.image(content)
    return np.hstack([e.data for e in estimates])


def check_same(lab: Lab, content: dict[str, Any], expected: np.ndarray) -> None:
    _, estimates = lab.image(content)
    got = np.hstack([e.data for e in estimates])
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)


def test_reordered_channels_give_the_same_estimates(
    lab: Lab, content: dict[str, Any], streams: Any, as_it_should_be: np.ndarray
) -> None:
    for kind in ("mag", "eeg"):
        description, data = streams(kind)
        order = np.random.default_rng(1).permutation(data.shape[1])
        lab.publish(replace(description, channels=tuple(description.channels[i] for i in order)), data[:, order])
    check_same(lab, content, as_it_should_be)


def test_renamed_channels_give_the_same_estimates(
    lab: Lab, content: dict[str, Any], streams: Any, as_it_should_be: np.ndarray
) -> None:
    description, data = streams("eeg")
    wire = {f"Ch{i}": channel.name for i, channel in enumerate(description.channels)}
    channels = tuple(replace(channel, name=name) for name, channel in zip(wire, description.channels, strict=True))
    lab.publish(replace(description, channels=channels), data)
    lab.publish(*streams("mag"))
    content["acquisition"]["eeg"]["rename"] = wire
    check_same(lab, content, as_it_should_be)
    content["acquisition"]["eeg"]["rename"] = {"Ch99": "EEG001"}
    refused(lab, content, ConfigurationError, "acquisition.eeg.rename", "'Ch99' not in stream 'a-EEG'", "'Ch0'")


def test_a_head_without_those_channels(lab: Lab, eeg_content: dict[str, Any], streams: Any) -> None:
    description, data = streams("eeg")
    channels = tuple(replace(channel, name=f"X{i}") for i, channel in enumerate(description.channels))
    lab.publish(replace(description, channels=channels), data)
    told = ("head model 'template'", "60 of 60 channels are not in it", "X0", "rename table", "rt-mmdf head")
    refused(lab, eeg_content, HeadModelError, *told)


def test_channels_that_the_head_lacks_are_said_and_left_out(
    lab: Lab, eeg_content: dict[str, Any], streams: Any, caplog: pytest.LogCaptureFixture
) -> None:
    description, data = streams("eeg")
    channels = (replace(description.channels[0], name="X"), *description.channels[1:])
    lab.publish(replace(description, channels=channels), data)
    session, estimates = lab.image(eeg_content)
    assert "1 of 60 streaming channels are not in head model 'template' and are not imaged (X)" in caplog.text
    assert session.imaging.not_imaged == ("X",)
    assert len(estimates) > 100


def test_bads_that_do_not_stream(lab: Lab, eeg_content: dict[str, Any], streams: Any) -> None:
    lab.publish(*streams("eeg"))
    eeg_content["preprocessing"]["bads"] = ["EEG 53"]
    refused(
        lab, eeg_content, ConfigurationError, "preprocessing.bads", "EEG 53", "60 channels that stream", "Correct the names"
    )


def test_a_modality_that_is_not_in_its_stream(lab: Lab, content: dict[str, Any], streams: Any) -> None:
    description, data = streams("eeg")
    lab.publish(replace(description, name="a-MEG"), data)
    del content["acquisition"]["eeg"]
    told = ("acquisition.meg", "no MEG channels", "types seen: eeg", "acquisition.meg.types")
    refused(lab, content, StreamError, *told)


@pytest.mark.parametrize("kind", ["eeg", "mag"])
def test_one_modality_alone_is_imaged_and_said(
    kind: str, lab: Lab, small_content: Any, streams: Any, caplog: pytest.LogCaptureFixture
) -> None:
    modality = "eeg" if kind == "eeg" else "meg"
    lab.publish(*streams(kind))
    session, estimates = lab.image(small_content("a", (modality,)))
    assert f"imaging from {modality.upper()} alone" in caplog.text
    assert np.isfinite(np.hstack([e.data for e in estimates[:100]])).all()
    absent = ({"eeg", "meg"} - {modality}).pop()
    assert session.scorecard().lost_samples == {modality: 0, absent: None}


# values


def test_values_that_are_not_finite_are_counted_flagged_and_do_not_spread(
    lab: Lab, content: dict[str, Any], streams: Any
) -> None:
    description, data = streams("eeg", seconds=4.0)
    data[500, 7], data[501, 8] = np.nan, np.inf
    lab.publish(description, data)
    lab.publish(*streams("mag", seconds=4.0))
    session, estimates = lab.image(content)
    assert session.intake.receivers["eeg"].arrivals.n_nonfinite == 2
    values, flags = np.hstack([e.data for e in estimates]), np.concatenate([e.flags for e in estimates])
    streaming = (flags & np.uint32(Flag.EEG_MISSING | Flag.MEG_MISSING)) == 0
    assert np.count_nonzero(flags & np.uint32(Flag.NONFINITE)) == 2
    assert np.isfinite(values[:, streaming]).all()
    assert np.abs(values[:, streaming]).max() < 100  # the filters have not swallowed an infinity
    assert session.status()["flags"]["NONFINITE"] == 2


# noise covariance


@pytest.fixture
def noise_file(tmp_path: Path, streams: Any) -> Callable[[np.ndarray, list[str], int], str]:
    def write(data: np.ndarray, names: list[str], n_samples: int) -> str:
        path = tmp_path / "own-cov.fif"
        mne.write_cov(path, mne.Covariance(data, names, [], [], n_samples, verbose="ERROR"), verbose="ERROR")
        return str(path)

    return write


def test_noise_covariances_that_do_not_fit(
    lab: Lab, eeg_content: dict[str, Any], streams: Any, noise_file: Any, tmp_path: Path
) -> None:
    description, data = streams("eeg")
    lab.publish(description, data)
    names = [channel.name for channel in description.channels]
    full = np.cov(data.T.astype(float))

    def told(file: str, *parts: str) -> None:
        content = eeg_content | {"noise": {"file": file}}
        refused(lab, content, NoiseCovarianceError, "noise covariance", *parts)

    told(noise_file(full[5:, 5:], names[5:], 500), "5 of 60 channels are not in it (EEG001", "rt-mmdf calibrate")
    (tmp_path / "own-cov.fif").unlink()
    told(
        noise_file(np.cov(data[:20].T.astype(float)), names, 20), "rank 19 on 60 channels", "at least 300", "Measure longer"
    )
    (tmp_path / "own-cov.fif").unlink()
    full[3] = full[:, 3] = 0
    told(noise_file(full, names, 500), "1 channels have no positive, finite variance (EEG004)", "mark them as bad")
    told(str(tmp_path / "none-cov.fif"), "no such file", "rt-mmdf calibrate")
    (tmp_path / "junk-cov.fif").write_text("junk")
    told(str(tmp_path / "junk-cov.fif"), "cannot be read", "-cov.fif is expected")


# recordings


@pytest.mark.parametrize(
    ("command", "part"),
    [(command, part) for command in ("replay", "demo --out OUT") for part in (0.0, 0.001, 0.1, 0.5, 0.999)]
    # a head needs the sensors only, which are in the first part of the file
    + [("head template --out OUT --recording", part) for part in (0.0, 0.001)],
)
def test_recordings_that_are_cut_off(command: str, part: float, cli: Any, small_recording: Path, tmp_path: Path) -> None:
    whole = small_recording.read_bytes()
    (tmp_path / "cut_raw.fif").write_bytes(whole[: round(part * len(whole))])
    said = cli(*command.replace("OUT", str(tmp_path / "out")).split(), tmp_path / "cut_raw.fif")
    for told in (
        "cut_raw.fif",
        "cannot be read",
        "A complete recording in a format that MNE knows is expected",
        "check that",
    ):
        assert told in said


def test_recordings_that_are_none(cli: Any, tmp_path: Path) -> None:
    assert "no such file or folder. Give the path" in cli("replay", tmp_path / "no.fif")
    (tmp_path / "notes.txt").write_text("hello")
    assert "cannot be read" in cli("replay", tmp_path / "notes.txt")
    mne.io.RawArray(np.zeros((1, 100)), mne.create_info(1, 100.0, "ecg"), verbose="ERROR").save(tmp_path / "ecg_raw.fif")
    assert "no EEG and no MEG channel among its 1 (ecg)" in cli("replay", tmp_path / "ecg_raw.fif")


# configuration


def sections(kind: type[BaseModel], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all sections of a configuration."""
    yield at
    for name, field in kind.model_fields.items():
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from sections(candidate, (*at, name, *(("eeg",) if name == "acquisition" else ())))


@pytest.mark.parametrize("path", list(sections(SessionSettings)), ids=".".join)
def test_a_typing_error_is_found_in_every_section(path: tuple[str, ...], cli: Any, as_toml: Any, tmp_path: Path) -> None:
    content: dict[str, Any] = {"acquisition": {"eeg": {"name": "a"}}}
    here = content
    for part in path:
        here = here.setdefault(part, {})
    here["typign"] = 1
    said = cli("monitor", as_toml(content, tmp_path / "mine.toml"))
    assert f"{tmp_path / 'mine.toml'}" in said
    assert f"{'.'.join((*path, 'typign'))}: unknown key. Known here: " in said
    assert said == cli("calibrate", tmp_path / "mine.toml", "--out", tmp_path / "x-cov.fif")


@pytest.mark.parametrize("path", list(sections(ReplaySettings)), ids=".".join)
def test_so_it_is_for_a_replay(path: tuple[str, ...]) -> None:
    content: dict[str, Any] = {}
    here = content
    for part in path:
        here = here.setdefault(part, {})
    here["typign"] = 1
    with pytest.raises(ConfigurationError, match=r"typign: unknown key\. Known here: "):
        validate_settings(content, ReplaySettings, where="mine.toml")


def test_a_stream_of_a_modality_that_there_is_not(cli: Any, as_toml: Any, tmp_path: Path) -> None:
    said = cli("monitor", as_toml({"acquisition": {"egg": {"name": "a"}}}, tmp_path / "mine.toml"))
    assert "acquisition.egg: Input should be 'eeg' or 'meg' (seen: 'egg')" in said


# disks


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: what a full disk does, for one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_files_but_not_imaging(
    lab: Lab, eeg_content: dict[str, Any], streams: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eeg_content["output"] = {"files": {"prefix": str(tmp_path / "own"), "segment_s": 0.5}}
    lab.publish(*streams("eeg", seconds=3.0))
    with largest_file(100_000):
        session, estimates = lab.image(eeg_content)
    assert sum(e.n_times for e in estimates) > 650
    assert session.files is not None
    status = session.files.status
    assert (status.written, status.lost) == (0, sum(e.n_times for e in estimates))
    for part in ("output.files", "cannot be written (File too large)", "imaging goes on", "Free some space"):
        assert part in caplog.text
    assert list(tmp_path.iterdir()) == []  # nothing half written


def test_a_report_that_cannot_be_written_is_told_before_the_session(
    lab: Lab, eeg_content: dict[str, Any], cli: Any, as_toml: Any, tmp_path: Path
) -> None:
    config = as_toml(eeg_content, tmp_path / "c.toml")
    for command in (("monitor", config), ("demo",)):
        said = cli(*command, "--report", tmp_path / "no" / "report.json")
        assert "report" in said
        assert "cannot be written (No such file or directory). Choose a file in a folder that exists" in said
        assert "Is a directory" in cli(*command, "--report", tmp_path)
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_report_on_a_full_disk(lab: Lab, eeg_content: dict[str, Any], streams: Any, tmp_path: Path) -> None:
    lab.publish(*streams("eeg"))
    session, _ = lab.image(eeg_content)
    card = session.scorecard()
    with pytest.raises(RtMmdfError, match=r"report /dev/full: cannot be written \(No space left on device\)"):
        card.write(Path("/dev/full"))
    assert Path("/dev/full").is_char_device()  # a device is written to, never replaced
    earlier = tmp_path / "report.json"
    earlier.write_text("earlier")
    with largest_file(100), pytest.raises(RtMmdfError, match="File too large"):
        card.write(earlier)
    assert earlier.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [earlier]


def test_folders_that_cannot_be_written_to(
    cli: Any, as_toml: Any, small_recording: Path, eeg_content: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "inside"  # not even root can make this
    assert f"--out {inside}: the folder cannot be made" in cli("demo", "--out", inside)
    assert "cannot be written" in cli("calibrate", as_toml(eeg_content, tmp_path / "c.toml"), "--out", inside / "x-cov.fif")
    assert f"--out {inside}: {tmp_path / 'file'} is no folder" in cli("head", "template", "--out", inside)
    said = cli("replay", small_recording, "--speed", "inf", "--log", inside / "log.json")
    assert f"--log {inside / 'log.json'}: cannot be written" in said
