"""Reading recordings: formats, events, and files that cannot be used."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import mne
import numpy as np
import pytest

from rt_mmdf.acquisition.recording import Recording, read_recording
from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import RecordingError

EEG, MEG = Modality.EEG, Modality.MEG


def raw_of(names: list[str], types: list[str], n_times: int = 1000) -> mne.io.RawArray:
    data = np.random.default_rng(0).standard_normal((len(names), n_times)) * 1e-6
    return mne.io.RawArray(data, mne.create_info(names, 250.0, types), verbose="error")


def write_fif(path: Path) -> Path:
    raw_of(["Cz", "EOG", "MEG 0111", "REF"], ["eeg", "eog", "mag", "ref_meg"]).save(path, verbose="error")
    return path


def test_modalities_are_cut_apart(tmp_path: Path) -> None:
    recording = read_recording(write_fif(tmp_path / "a_raw.fif"))
    assert recording.sensors[EEG].ch_names == ["Cz", "EOG"]
    assert recording.sensors[MEG].ch_names == ["MEG 0111", "REF"]
    assert recording.duration_s == 4.0


def test_brainvision_is_read(tmp_path: Path) -> None:
    raw = raw_of(["Fz", "Cz"], ["eeg", "eeg"])
    raw.set_annotations(mne.Annotations([1.0, 2.5], [0.0, 0.0], ["go", "stop"]))
    mne.export.export_raw(tmp_path / "a.vhdr", raw, verbose="error")
    recording = read_recording(tmp_path / "a.vhdr")
    np.testing.assert_allclose(recording.sensors[EEG].get_data(), raw.get_data(), atol=1e-8)
    assert [time for time, _ in recording.events][-2:] == pytest.approx([1.0, 2.5], abs=0.005)
    assert [text.split("/")[-1] for _, text in recording.events][-2:] == ["go", "stop"]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no such file"):
        read_recording(tmp_path / "none_raw.fif")


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = write_fif(tmp_path / "a_raw.fif")
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(RecordingError, match=r"a_raw.fif: cannot be read"):
        read_recording(path)


@pytest.mark.parametrize("name", ["a_raw.fif", "a.vhdr", "a.edf", "a.bdf", "a.xdf", "a.txt"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no recording\n" * 100)
    with pytest.raises(RecordingError, match=rf"{name}: cannot be read"):
        read_recording(tmp_path / name)


def test_a_recording_without_sensors_is_refused() -> None:
    with pytest.raises(RecordingError, match=r"no EEG and no MEG channel among its 2 \(misc, stim\)"):
        Recording.from_raw(raw_of(["a", "b"], ["misc", "stim"]), "r")


def test_annotations_are_events_where_there_is_no_trigger_line() -> None:
    raw = raw_of(["Cz"], ["eeg"])
    raw.set_annotations(mne.Annotations([2.0, 1.0], [0.0] * 2, ["b", "a"]))
    assert Recording.from_raw(raw).events == ((1.0, "a"), (2.0, "b"))


def xdf(path: Path, streams: list[tuple[str, str, float, list[tuple[str, str, str]], np.ndarray, np.ndarray]]) -> Path:
    """A minimal XDF file (github.com/sccn/xdf/wiki/Specifications): header, stream headers, one chunk of samples each."""

    def chunk(tag: int, content: bytes) -> bytes:
        return b"\x04" + struct.pack("<I", len(content) + 2) + struct.pack("<H", tag) + content

    parts = [b"XDF:", chunk(1, b'<?xml version="1.0"?><info><version>1.0</version></info>')]
    for number, (name, kind, sfreq, channels, data, stamps) in enumerate(streams, start=1):
        described = "".join(
            f"<channel><label>{label}</label><type>{type_}</type><unit>{unit}</unit></channel>"
            for label, type_, unit in channels
        )
        header = (
            f"<?xml "
            f'version="1.0"?><info><name>{name}</name><type>{kind}</type><channel_count>{len(channels)}</channel_count>'
            f"<nominal_srate>{sfreq}</nominal_srate><channel_format>{'string' if sfreq == 0 else 'float32'}</channel_format>"
            f"<source_id>s{number}</source_id><desc><channels>{described}</channels></desc></info>"
        )
        parts.append(chunk(2, struct.pack("<I", number) + header.encode()))
        body = struct.pack("<I", number) + b"\x04" + struct.pack("<I", len(stamps))
        for row, stamp in zip(data, stamps, strict=True):
            body += b"\x08" + struct.pack("<d", stamp)
            if sfreq == 0:
                text = str(row[0]).encode()
                body += b"\x01" + bytes([len(text)]) + text
            else:
                body += np.asarray(row, "<f4").tobytes()
        parts.append(chunk(3, body))
        footer = f"<info><first_timestamp>{stamps[0]}</first_timestamp><last_timestamp>{stamps[-1]}</last_timestamp></info>"
        parts.append(chunk(6, struct.pack("<I", number) + footer.encode()))
    path.write_bytes(b"".join(parts))
    return path


def test_xdf_streams_are_cut_to_their_common_time_in_si_units(tmp_path: Path) -> None:
    pytest.importorskip("pyxdf")
    eeg_times, meg_times = 100.0 + np.arange(500) / 250, 100.5 + np.arange(2000) / 1000
    eeg, meg = np.arange(1000.0).reshape(500, 2), np.arange(2000.0).reshape(2000, 1)
    path = xdf(
        tmp_path / "a.xdf",
        [
            ("amp", "EEG", 250.0, [("Fz", "EEG", "uV"), ("TRIG", "STI", "none")], eeg, eeg_times),
            ("squid", "MEG", 1000.0, [("m1", "MEG", "fT")], meg, meg_times),
            ("events", "Markers", 0.0, [("m", "Markers", "")], np.array([["go"], ["early"]]), np.array([101.0, 100.1])),
        ],
    )
    recording = read_recording(path)
    assert recording.sensors[EEG].ch_names == ["Fz", "TRIG"]
    np.testing.assert_allclose(recording.sensors[EEG].get_data()[0], eeg[125:, 0] * 1e-6, rtol=1e-6)
    np.testing.assert_allclose(recording.sensors[MEG].get_data()[0], meg[:1497, 0] * 1e-15, rtol=1e-6, atol=1e-21)
    assert recording.sensors[MEG].get_channel_types() == ["mag"]
    assert recording.events == ((pytest.approx(0.5, abs=1e-6), "go"),)


def test_an_xdf_file_without_sensors_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyxdf")
    path = xdf(tmp_path / "a.xdf", [("events", "Markers", 0.0, [("m", "", "")], np.array([["go"]]), np.array([1.0]))])
    with pytest.raises(RecordingError, match=r"no stream of type EEG or MEG .*seen: Markers"):
        read_recording(path)


@pytest.mark.sample
def test_the_real_recording(sample_data: Path) -> None:
    recording = read_recording(sample_data / "sample_audvis_5s_raw.fif")
    assert len(mne.pick_types(recording.sensors[EEG].info, meg=False, eeg=True, exclude=())) == 60
    assert len(recording.sensors[MEG].ch_names) == 303
    assert recording.sensors[EEG].info["bads"] == ["EEG 053"]
    assert recording.sensors[MEG].info["bads"] == ["MEG 2443"]
    assert [text for _, text in recording.events] == ["2", "3", "1"]


def hostile(path: Path, form: str, n_times: int) -> Path:
    """As many samples as bytes can tell: one channel, no stamps; text is empty."""

    def chunk(tag: int, content: bytes) -> bytes:
        return b"\x04" + struct.pack("<IHI", len(content) + 6, tag, 1) + content

    header = (
        f"<info><name>a</name><type>{'Markers' if form == 'string' else 'EEG'}</type><channel_count>1</channel_count>"
        f"<nominal_srate>{0 if form == 'string' else 1000}</nominal_srate><channel_format>{form}</channel_format><desc>"
        "<channels><channel><label>Cz</label><type>EEG</type><unit>uV</unit></channel></channels></desc></info>"
    )
    sample = {"int8": b"\x00\x01", "double64": b"\x00" + bytes(8), "string": b"\x00\x01\x00"}[form]
    body = b"\x04" + struct.pack("<I", n_times) + sample * n_times
    path.write_bytes(b"XDF:" + chunk(2, header.encode()) + chunk(3, body))
    return path


@pytest.mark.parametrize("form", ["int8", "double64", "string"])
def test_memory_is_bounded_by_the_length_of_an_xdf_file(form: str, tmp_path: Path) -> None:
    """Also where a chunk of a few bytes says that it holds a thousand million samples."""
    pytest.importorskip("pyxdf")
    path = hostile(tmp_path / "a.xdf", form, 20_000)
    lie = b"\x04" + struct.pack("<IHI", 19, 3, 1) + b"\x08" + struct.pack("<Q", 10**9) + b"\x00\x01\x00\x01"
    path.write_bytes(path.read_bytes() + lie)
    tracemalloc.start()
    try:
        with suppress(RecordingError):  # markers alone are no recording
            assert read_recording(path).sensors[EEG].n_times == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6 + 100 * path.stat().st_size


def test_what_an_xdf_file_calls_its_channels_and_events_is_only_shown(tmp_path: Path) -> None:
    pytest.importorskip("pyxdf")
    times = 100.0 + np.arange(500) / 250
    path = xdf(
        tmp_path / "a.xdf",
        [
            ("amp\u202e", "EEG", 250.0, [("F\u202ez\x9b31m", "EEG", "uV")], np.ones((500, 1)), times),
            ("events", "Markers", 0.0, [("m", "Markers", "")], np.array([["go\x1b[2J\u2066"]]), np.array([101.0])),
        ],
    )
    recording = read_recording(path)
    assert recording.sensors[EEG].ch_names == ["Fz31m"]
    assert [text for _, text in recording.events] == ["go[2J"]


@pytest.mark.parametrize("type_", ["", "<x>1</x>", "\u202eEEG"])
def test_headers_that_are_odd_end_in_a_recording_error(tmp_path: Path, type_: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("pyxdf")
    times = 100.0 + np.arange(500) / 250
    path = xdf(tmp_path / "a.xdf", [("amp", type_, 250.0, [("Fz", "EEG", "uV")], np.ones((500, 1)), times)])
    with pytest.raises(RecordingError, match=r"a\.xdf") as caught:
        read_recording(path)
    assert str(caught.value).isprintable()
