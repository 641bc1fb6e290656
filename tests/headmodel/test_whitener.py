"""The joint whitener is mne's, symmetric, and makes noise white on its rank."""

from __future__ import annotations

from itertools import chain

import mne
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rt_mmdf.core.channels import ChannelType
from rt_mmdf.core.errors import NoiseCovarianceError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov, read_noise_cov
from rt_mmdf.headmodel.whitener import imaging_info, make_whitener, whitener_and_colorer


def coloured(head: HeadModel, seed: int = 0) -> mne.Covariance:
    """Sensor noise and brain noise, correlated across the channels of a modality and across modalities."""
    names = list(head.ch_names)
    sources = np.random.default_rng(seed).standard_normal((head.n_sources, 500)) * 0.3e-9
    brain = head.leadfield() @ sources
    data = brain @ brain.T / 500 + np.diag(ad_hoc_noise_cov(head.channels)["data"])
    return mne.Covariance(data, names, bads=[], projs=[], nfree=100_000)


def ssp(head: HeadModel, seed: int = 3) -> list[mne.Projection]:
    """Two projectors on the magnetometers."""
    names = [head.channels.names[i] for i in head.channels.of_type(ChannelType.MAG)]
    vectors = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(names), 2)))[0].T
    return [
        mne.Projection(
            active=False,
            kind=1,
            desc=f"noise-{i}",
            data={"nrow": 1, "ncol": len(names), "row_names": None, "col_names": names, "data": vector[None]},
        )
        for i, vector in enumerate(vectors)
    ]


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two whiteners, in units of each row's and column's noise."""
    scale = np.sqrt(np.outer(np.diag(b), np.diag(b)))
    return float(np.max(np.abs(a - b)[scale > 0] / scale[scale > 0]))


def test_whitener_is_mnes_for_all_channels(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    noise_cov, projs = coloured(head), ssp(head)
    whitener = make_whitener(head.channels, head.ch_names, head.info, noise_cov, projs)
    info = imaging_info(head.info, head.ch_names, projs)
    expected, names = mne.cov.compute_whitener(noise_cov, info, pca=False, verbose="ERROR")
    assert tuple(names) == whitener.channels.names
    assert relative(whitener.matrix, expected) < 1e-12
    assert whitener.rank == 366 - 2 - 1


def test_noise_becomes_white_on_the_rank(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    noise_cov = coloured(head)
    # mne whitens MEG and EEG as two blocks: noise that they share stays shared
    meg = head.channels.types.index(ChannelType.EEG)
    noise_cov["data"][:meg, meg:] = noise_cov["data"][meg:, :meg] = 0
    whitener, colorer = whitener_and_colorer(head.channels, head.ch_names, head.info, noise_cov, ssp(head))
    white = whitener.matrix @ noise_cov["data"] @ whitener.matrix.T
    np.testing.assert_allclose(white, white @ white, atol=1e-8)  # a projector ...
    assert np.trace(white) == pytest.approx(whitener.rank, rel=1e-9)  # ... onto `rank` dimensions
    np.testing.assert_allclose(whitener.matrix @ colorer, white, atol=1e-8)


@settings(max_examples=10)
@given(seed=st.integers(0, 100), n_bad=st.integers(0, 100))
def test_unused_channels_have_no_weight_and_the_rest_is_mnes(template_head_ico3: HeadModel, seed: int, n_bad: int) -> None:
    head = template_head_ico3
    rng = np.random.default_rng(seed)
    order = rng.permutation(366)[:120]
    channels = head.channels.pick(order)
    bads = set(rng.choice(channels.names, min(n_bad, 100), replace=False))
    used = [name for name in channels.names if name not in bads]
    assume(sum(name.startswith("EEG") for name in used) != 1)  # its average reference is itself: nothing is left of it
    noise_cov, projs = coloured(head), ssp(head)
    whitener = make_whitener(channels, used, head.info, noise_cov, projs)
    unused = channels.indices(bads)
    assert not whitener.matrix[unused].any()
    assert not whitener.matrix[:, unused].any()
    rows = channels.indices(used)
    matrix = whitener.matrix[np.ix_(rows, rows)]
    expected = mne.cov.compute_whitener(noise_cov, imaging_info(head.info, used, projs), pca=False, verbose="ERROR")[0]
    assert relative(matrix, expected) < 1e-10
    scale = np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
    assert (np.abs(matrix - matrix.T) <= 1e-9 * scale).all()


def test_average_reference_and_projectors_leave_nothing_of_what_they_project(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    projs = ssp(head)
    matrix = make_whitener(head.channels, head.ch_names, head.info, coloured(head), projs).matrix
    common = np.zeros(366)
    common[head.channels.of_type(ChannelType.EEG)] = 1e-5
    assert np.abs(matrix @ common).max() < 1e-6 * np.abs(matrix @ np.eye(366)[:, -1] * 1e-5).max()
    disturbance = np.zeros(366)
    disturbance[head.channels.indices(projs[0]["data"]["col_names"])] = projs[0]["data"]["data"][0] * 1e-10
    assert np.abs(matrix @ disturbance).max() < 1e-6 * np.abs(matrix).max() * 1e-10


def test_nothing_that_is_given_is_changed(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    noise_cov, projs = coloured(head), ssp(head)
    before = noise_cov["data"].copy(), projs[0]["data"]["data"].copy(), len(head.info["projs"]), list(head.info["bads"])
    make_whitener(head.channels, head.ch_names[:300], head.info, noise_cov, projs)
    np.testing.assert_array_equal(noise_cov["data"], before[0])
    np.testing.assert_array_equal(projs[0]["data"]["data"], before[1])
    assert (len(head.info["projs"]), list(head.info["bads"])) == before[2:]


def test_a_covariance_without_the_channels_is_refused(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    noise_cov = ad_hoc_noise_cov(head.channels.pick(range(300)))
    with pytest.raises(NoiseCovarianceError, match="66 of 366 channels are not in it"):
        make_whitener(head.channels, head.ch_names, head.info, noise_cov)
    assert make_whitener(head.channels, head.ch_names[:300], head.info, noise_cov).rank == 300
    with pytest.raises(NoiseCovarianceError, match="nothing of the 1 used channels"):
        make_whitener(head.channels, [head.ch_names[-1]], head.info, ad_hoc_noise_cov(head.channels))


@pytest.mark.sample
def test_the_real_covariance_has_the_rank_that_its_projectors_leave(sample_data, sample_head: HeadModel) -> None:
    bads = {"MEG 2443", "EEG 053"}
    used = [name for name in sample_head.ch_names if name not in bads]
    noise_cov = read_noise_cov(sample_data / "sample_audvis-cov.fif", used)
    projs = mne.io.read_info(sample_data / "sample_audvis_5s_raw.fif", verbose="ERROR")["projs"]
    whitener = make_whitener(sample_head.channels, used, sample_head.info, noise_cov, projs)
    assert whitener.rank == 364 - 3 - 1
    info = imaging_info(sample_head.info, used, projs)
    assert sorted(chain.from_iterable(proj["desc"].split() for proj in info["projs"])).count("PCA-v1") == 1
    expected = mne.cov.compute_whitener(noise_cov, info, pca=False, verbose="ERROR")[0]
    rows = sample_head.channels.indices(used)
    assert relative(whitener.matrix[np.ix_(rows, rows)], expected) < 1e-10
