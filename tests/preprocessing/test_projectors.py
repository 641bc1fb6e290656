from __future__ import annotations

from pathlib import Path

import mne
import numpy as np
import pytest
from mne._fiff.proj import make_projector  # what mne's own whitener calls

from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.preprocessing.projectors import make_projectors, read_projections

NAMES = ("E1", "E2", "E3", "M1", "M2", "M3")
CHANNELS = Channels(NAMES, (ChannelType.EEG,) * 3 + (ChannelType.MAG,) * 3)


def ssp(names: list[str], vector: list[float]) -> mne.Projection:
    data = {"nrow": 1, "ncol": len(names), "row_names": None, "col_names": names, "data": np.array([vector])}
    return mne.Projection(active=False, data=data, desc="PCA-v1", kind=1)


def matrix(projs: list[mne.Projection], names: tuple[str, ...] = NAMES) -> np.ndarray:
    return make_projector(projs, list(names))[0]


def test_average_reference_is_added_once_and_is_the_average_reference() -> None:
    with_twice = make_projectors(CHANNELS, make_projectors(CHANNELS))
    assert len(with_twice) == 1
    x = np.random.default_rng(0).standard_normal((6, 10))
    expected = x - np.vstack([np.repeat(x[:3].mean(axis=0)[None], 3, axis=0), np.zeros((3, 10))])
    np.testing.assert_allclose(matrix(with_twice) @ x, expected, atol=1e-12)


def test_without_eeg_or_reference_nothing_is_added() -> None:
    assert make_projectors(CHANNELS.pick([3, 4, 5])) == []
    assert make_projectors(CHANNELS.pick([0, 3])) == []
    assert make_projectors(CHANNELS, average_reference=False) == []


def test_a_vector_is_cut_to_the_channels_and_normalised() -> None:
    given = ssp(["M0", "M1", "M2", "M3"], [0.1, 0.7, 0.5, 0.5])
    (projection,) = make_projectors(CHANNELS, [given], average_reference=False)
    assert projection["data"]["col_names"] == ["M1", "M2", "M3"]
    np.testing.assert_allclose(matrix([projection]), matrix([given]), atol=1e-12)  # as mne cuts it


def test_a_vector_for_none_of_the_channels_is_left_out() -> None:
    assert make_projectors(CHANNELS.pick([0, 1, 2]), [ssp(["M1", "M2"], [0.6, 0.8])], average_reference=False) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (ssp(["M1", "M2"], [0.6, 0.8]), "says nothing about 1 of the mag channels"),
        (ssp(["M1", "M2", "M3", "M4"], [0.1, 0.1, 0.1, 0.9]), "of its power"),
    ],
)
def test_projections_for_another_array_are_refused(given: mne.Projection, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make_projectors(CHANNELS, [given])


@pytest.mark.sample
def test_projections_are_read_from_their_file_and_from_recordings_of_any_format(tmp_path: Path) -> None:
    given = ssp(["M1", "M2", "M3"], [0.6, 0.0, 0.8])
    mne.write_proj(tmp_path / "room-proj.fif", [given], verbose="ERROR")
    info = mne.create_info(list(NAMES), 100.0, ["eeg"] * 3 + ["mag"] * 3)
    raw = mne.io.RawArray(np.zeros((6, 100)), info, verbose="ERROR").add_proj([given], verbose="ERROR")
    raw.save(tmp_path / "room-raw.fif", verbose="ERROR")
    for name in ("room-proj.fif", "room-raw.fif"):
        (back,) = read_projections(tmp_path / name, "projections")
        np.testing.assert_allclose(matrix([back]), matrix([given]), atol=1e-6)
    (tmp_path / "cap.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nDataFile=cap.eeg\nMarkerFile=cap.vmrk\n"
        "DataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=1\nSamplingInterval=1000\n"
        "[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n[Channel Infos]\nCh1=Cz,,1,uV\n"
    )
    (tmp_path / "cap.vmrk").write_text("Brain Vision Data Exchange Marker File, Version 1.0\n[Marker Infos]\n")
    (tmp_path / "cap.eeg").write_bytes(np.zeros(50, dtype="<f4").tobytes())
    assert read_projections(tmp_path / "cap.vhdr", "projections") == []
    (tmp_path / "notes.txt").write_text("no projections")
    with pytest.raises(ConfigurationError, match=r"^noise.projections .*notes.txt: no projections can be read from it"):
        read_projections(tmp_path / "notes.txt", "noise.projections")


def test_projections_of_the_real_recording_equal_mnes(sample_data: Path) -> None:
    info = mne.io.read_info(sample_data / "sample_audvis_5s_raw.fif", verbose="error")
    info = mne.pick_info(info, mne.pick_types(info, meg=True, eeg=True, exclude=()))
    channels = Channels(tuple(info["ch_names"]), tuple(ChannelType(kind) for kind in info.get_channel_types()))
    ours = make_projectors(channels, info["projs"])
    assert len(ours) == 4
    np.testing.assert_allclose(matrix(ours, channels.names), matrix(info["projs"], channels.names), atol=1e-10)
