"""Noise covariance: measured block by block it is numpy's and mne's; what cannot whiten is refused by name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import NoiseCovarianceError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import (
    NoiseCovarianceEstimator,
    RegularisationSettings,
    ad_hoc_noise_cov,
    check_noise_cov,
    read_noise_cov,
    regularised,
    save_noise_cov,
)
from rt_mmdf.headmodel.whitener import imaging_info, make_whitener

KINDS = (ChannelType.GRAD, ChannelType.MAG, ChannelType.EEG, ChannelType.EOG, ChannelType.EEG)
CHANNELS = Channels(("G", "M", "E1", "EOG", "E2"), KINDS)
IMAGED = [0, 1, 2, 4]
SCALES = np.array([1e-12, 1e-13, 1e-6, 1e-4, 1e-6])[:, None]
MIXING = np.random.default_rng(1).standard_normal((5, 5))
# offsets far above the noise: a sum of plain squares would lose it
SIGNAL = (SCALES * (MIXING @ np.random.default_rng(0).standard_normal((5, 400)) + 1000.0)).astype(np.float32)


def measured(*blocks: np.ndarray) -> NoiseCovarianceEstimator:
    estimator = NoiseCovarianceEstimator(CHANNELS)
    for block in blocks:
        estimator(block)
    return estimator


@given(cuts=st.lists(st.integers(0, 400), max_size=20))
def test_measured_covariance_is_numpys_however_the_stream_is_cut(cuts: list[int]) -> None:
    edges = sorted([0, *cuts, 400])
    noise_cov = measured(*(SIGNAL[:, a:b] for a, b in pairwise(edges))).covariance()
    expected = np.cov(SIGNAL[IMAGED].astype(np.float64))
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(noise_cov["data"] / scale, expected / scale, atol=1e-7)
    assert noise_cov["names"] == ["G", "M", "E1", "E2"]
    assert noise_cov["nfree"] == 400


def test_measured_covariance_is_mnes() -> None:
    info = mne.create_info(["G", "M", "E1", "EOG", "E2"], 200.0, [kind.value for kind in KINDS])
    raw = mne.io.RawArray(SIGNAL.astype(np.float64), info, verbose="ERROR")
    theirs = mne.compute_raw_covariance(raw, tmin=0, tmax=None, tstep=2.0, reject=None, method="empirical", verbose="ERROR")
    ours = measured(SIGNAL).covariance()
    expected = theirs["data"]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(ours["data"] / scale, expected / scale, atol=1e-6)
    assert ours["names"] == theirs["names"]


def test_samples_that_are_not_finite_are_left_out_and_told() -> None:
    broken = SIGNAL.copy()
    broken[0, 7] = np.nan
    broken[4, 9] = np.inf
    broken[3, 11] = np.nan  # EOG is not measured
    estimator = measured(broken)
    whole = measured(np.delete(SIGNAL, [7, 9], axis=1))
    np.testing.assert_allclose(estimator.covariance()["data"], whole.covariance()["data"], rtol=1e-9)
    assert (estimator.n_samples, estimator.n_left_out) == (398, 2)
    assert "2 samples held NaN" in (estimator.advice() or "")


def test_a_short_measurement_is_told_and_a_long_one_is_not() -> None:
    assert "at least 20 are expected" in (measured(SIGNAL[:, :19]).advice() or "")
    assert measured(SIGNAL).advice() is None
    assert measured(SIGNAL[:, :3]).rank() == 2
    assert measured(SIGNAL).rank() == 4
    assert measured().rank() == 0
    with pytest.raises(NoiseCovarianceError, match="at least 2"):
        measured(SIGNAL[:, :1]).covariance()


def test_reset_forgets() -> None:
    estimator = measured(SIGNAL * 7)
    estimator.reset()
    estimator(SIGNAL)
    np.testing.assert_array_equal(estimator.covariance()["data"], measured(SIGNAL).covariance()["data"])


def test_flat_channels_are_named() -> None:
    flat = SIGNAL.copy()
    flat[2] = 1e-6
    assert "E1" in (measured(flat).advice() or "")
    with pytest.raises(NoiseCovarianceError, match="E1"):
        measured(flat).covariance()
    with pytest.raises(NoiseCovarianceError, match="none of the channels"):
        NoiseCovarianceEstimator(Channels(("EOG",), (ChannelType.EOG,)))


def test_a_saved_covariance_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rest-cov.fif"
    noise_cov = measured(SIGNAL).covariance()
    save_noise_cov(noise_cov, path)
    again = read_noise_cov(path, ["E2", "G"])
    np.testing.assert_allclose(again["data"], noise_cov["data"], rtol=1e-12)
    assert again["nfree"] == 400
    with pytest.raises(NoiseCovarianceError, match=r"1 of 2 channels are not in it \(Cz\)"):
        read_noise_cov(path, ["Cz", "G"])
    with pytest.raises(NoiseCovarianceError, match=r"must end in -cov\.fif"):
        save_noise_cov(noise_cov, tmp_path / "noise.npy")


def test_a_diagonal_covariance_comes_back_fit_to_whiten_with(template_head_ico3: HeadModel, tmp_path: Path) -> None:
    head = template_head_ico3
    save_noise_cov(ad_hoc_noise_cov(head.channels), tmp_path / "noise-cov.fif")
    read = read_noise_cov(tmp_path / "noise-cov.fif", head.ch_names)
    assert read["diag"]
    meg = head.ch_names[:306]  # no average reference among them: mne then decomposes the diagonal as it was read
    assert make_whitener(head.channels, meg, head.info, read).rank == 306
    again = regularised(read, imaging_info(head.info, head.ch_names, ()), RegularisationSettings(mag=0.1, grad=0.1, eeg=0))
    kinds = np.array(head.channels.types)
    np.testing.assert_allclose(again["data"][kinds == "mag"][:, kinds == "mag"], np.eye(102) * 4.4e-28, rtol=1e-9)


def test_files_that_are_no_covariance_are_said(tmp_path: Path) -> None:
    with pytest.raises(NoiseCovarianceError, match="no such file"):
        read_noise_cov(tmp_path / "none-cov.fif", ["E1"])
    (tmp_path / "text-cov.fif").write_text("hello")
    with pytest.raises(NoiseCovarianceError, match="cannot be read"):
        read_noise_cov(tmp_path / "text-cov.fif", ["E1"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NoiseCovarianceError, match="cannot be written"):
        save_noise_cov(measured(SIGNAL).covariance(), tmp_path / "file" / "rest-cov.fif")


def test_values_that_no_noise_can_have_are_refused_by_name() -> None:
    noise_cov = measured(SIGNAL).covariance()
    for value in (0.0, -1e-30, np.nan):
        wrong = noise_cov.copy()
        wrong["data"][2, 2] = value
        with pytest.raises(NoiseCovarianceError, match=r"\(E1\)"):
            check_noise_cov(wrong, ["G", "E1"])
        check_noise_cov(wrong, ["G", "M", "E2"])
    wrong = noise_cov.copy()
    wrong["data"][0, 1] = wrong["data"][1, 0] = np.inf
    with pytest.raises(NoiseCovarianceError, match="G, M"):
        check_noise_cov(wrong, ["G", "M"])


def test_too_few_samples_are_refused_until_they_are_regularised(template_head_ico3: HeadModel) -> None:
    channels = template_head_ico3.channels
    std = np.sqrt(ad_hoc_noise_cov(channels)["data"])[:, None]
    estimator = NoiseCovarianceEstimator(channels)
    estimator(std * np.random.default_rng(0).standard_normal((366, 150)))
    short = estimator.covariance()
    with pytest.raises(NoiseCovarianceError, match="rank 149 on 366 channels, measured from 150 samples"):
        check_noise_cov(short, channels.names)
    info = imaging_info(template_head_ico3.info, channels.names, ())
    fuller = regularised(short, info, RegularisationSettings())
    check_noise_cov(fuller, channels.names)
    assert make_whitener(channels, channels.names, template_head_ico3.info, fuller).rank == 365


def test_regularising_a_long_measurement_is_mnes(template_head_ico3: HeadModel) -> None:
    channels = template_head_ico3.channels
    std = np.sqrt(ad_hoc_noise_cov(channels)["data"])[:, None]
    estimator = NoiseCovarianceEstimator(channels)
    estimator(std * np.random.default_rng(0).standard_normal((366, 2000)))
    info = imaging_info(template_head_ico3.info, channels.names, ())
    ours = regularised(estimator.covariance(), info, RegularisationSettings(mag=0.1, grad=0.1, eeg=0.2))
    theirs = mne.cov.regularize(estimator.covariance(), info, mag=0.1, grad=0.1, eeg=0.2, verbose="ERROR")
    np.testing.assert_array_equal(ours["data"], theirs["data"])


def test_ad_hoc_covariance_is_mnes(template_head_ico3: HeadModel) -> None:
    ours = ad_hoc_noise_cov(template_head_ico3.channels)
    theirs = mne.make_ad_hoc_cov(template_head_ico3.info, verbose="ERROR")
    assert ours["names"] == theirs["names"]
    np.testing.assert_allclose(ours["data"], theirs["data"], rtol=1e-12)
    assert ours["diag"]
