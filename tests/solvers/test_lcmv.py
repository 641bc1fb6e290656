"""The beamformer is mne's, whatever channels are left, and its covariance is that of the last seconds."""

from __future__ import annotations

import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.core.blocks import Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
from rt_mmdf.solvers.lcmv import DataCovariance, LcmvSettings, lcmv_kernel
from rt_mmdf.solvers.linear import SolverSettings
from rt_mmdf.solvers.operators import build_beamformer

EEG_GONE, MEG_GONE = np.uint32(Flag.EEG_MISSING), np.uint32(Flag.MEG_MISSING)
SMALL = Channels(("E1", "E2", "M1", "M2", "M3"), (ChannelType.EEG,) * 2 + (ChannelType.MAG,) * 3)
FEW = LcmvSettings(data_s=3.0, least_s=1.0, refresh_s=1.0)


def sensors(head: HeadModel, n: int = 2000) -> np.ndarray:
    """Two correlated sources and sensor noise; SI units."""
    rng = np.random.default_rng(3)
    noise = np.sqrt(ad_hoc_noise_cov(head.channels)["data"])[:, None] * rng.standard_normal((len(head.ch_names), n))
    moments = np.zeros((head.n_sources, n))
    moments[[200, 900]] = 20e-9 * np.array([[1.0, 0.0], [0.4, 0.9]]) @ rng.standard_normal((2, n))
    return head.leadfield() @ moments + noise


@pytest.mark.parametrize("weight_norm", ["unit-noise-gain", "none"])
@pytest.mark.parametrize("missing", [(), (Modality.EEG,), (Modality.MEG,)])
def test_estimates_are_mnes(template_head_ico3: HeadModel, weight_norm: str, missing: tuple[Modality, ...]) -> None:
    head, bads = template_head_ico3, ["MEG 0113", "EEG007"]
    data, noise_cov = sensors(head), ad_hoc_noise_cov(head.channels)
    # one SSP projector of the magnetometers, so that the rank is not that of the channels
    mags = [head.ch_names[i] for i in head.channels.of_type(ChannelType.MAG)]
    field = {"nrow": 1, "ncol": len(mags), "row_names": None, "col_names": mags, "data": np.full((1, len(mags)), 0.1)}
    field["data"] /= np.linalg.norm(field["data"])
    proj = mne.Projection(active=False, data=field, desc="mag", kind=1)
    chosen = SolverSettings(method="LCMV", lcmv={"weight_norm": weight_norm, "reg": 0.05})
    cov = np.cov(data)
    operator = build_beamformer(head, head.channels, noise_cov, cov, [proj], chosen, bads, missing)

    kinds = dict(zip(head.ch_names, head.channels.types, strict=True))
    left = [name for name in head.ch_names if name not in bads and kinds[name].modality not in missing]
    rows = [head.ch_names.index(name) for name in left]
    info = mne.pick_info(head.info, [head.info["ch_names"].index(name) for name in left])
    evoked = mne.EvokedArray(data[rows, :50], info, verbose="ERROR")
    if Modality.MEG not in missing:
        evoked.add_proj([proj], verbose="ERROR")
    if Modality.EEG not in missing:
        evoked.set_eeg_reference(projection=True, verbose="ERROR")
    filters = mne.beamformer.make_lcmv(
        evoked.info,
        head.fixed_forward,
        mne.Covariance(cov[np.ix_(rows, rows)], left, bads=[], projs=[], nfree=data.shape[1], verbose="ERROR"),
        reg=0.05,
        noise_cov=noise_cov,
        weight_norm=None if weight_norm == "none" else weight_norm,
        verbose="ERROR",
    )
    expected = mne.beamformer.apply_lcmv(evoked, filters, verbose="ERROR").data
    whitened = (operator.whitener.matrix @ data[:, :50]).astype(np.float32)
    seen = operator.solver(whitened, 50)
    assert operator.used == frozenset(left)
    assert operator.solver.unit == ("A m" if weight_norm == "none" else "")
    assert operator.whitener.rank == filters["rank"]
    assert np.abs(seen - expected).max() < 1e-4 * np.abs(expected).max()


def test_fewer_samples_than_channels_give_one_answer() -> None:
    """Rounding of the covariance does not choose which dimensions are thrown away."""
    rng = np.random.default_rng(5)
    projector = np.eye(40) - np.full((40, 40), 1 / 40)
    leadfield, data = projector @ rng.standard_normal((40, 90)), projector @ rng.standard_normal((40, 25))
    cov = np.cov(data)
    dust = 1e-13 * rng.standard_normal((40, 40))
    kernel = lcmv_kernel(leadfield, cov, 39, reg=0.5)
    inverse = np.linalg.inv(cov + 0.5 * np.trace(cov) / 40 * np.eye(40))
    expected = leadfield.T @ inverse
    expected /= np.einsum("sc,cs->s", expected, leadfield)[:, None]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(kernel - expected).max() < 1e-9
    assert np.abs(lcmv_kernel(leadfield, cov + dust, 39, reg=0.5) - kernel).max() < 1e-9


def block(data: np.ndarray, flags: np.ndarray, first: int) -> SensorBlock:
    times = (first + np.arange(data.shape[1])) / 100.0
    return SensorBlock(SMALL, data.astype(np.float32), times, flags.astype(np.uint32), times, first)


def stream(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated channels with an offset; the MEG gone for a while, the EEG for another, and samples that do not count."""
    rng = np.random.default_rng(0)
    data = np.linalg.cholesky(np.eye(5) + 0.5) @ rng.standard_normal((5, n)) + np.arange(5)[:, None]
    flags = np.zeros(n, dtype=np.uint32)
    flags[120:150] |= MEG_GONE
    flags[210:230] |= EEG_GONE
    flags[40:55] |= np.uint32(Flag.SETTLING)
    data[2:, 120:150] = np.nan
    data[:2, 210:230] = np.nan
    return data.astype(np.float32).astype(np.float64), flags


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 420), max_size=12))
def test_the_covariance_is_that_of_the_last_seconds_however_the_stream_is_cut(cuts: list[int]) -> None:
    data, flags = stream(420)
    told: list[int] = []
    covariance = DataCovariance(SMALL, FEW, 100.0)
    covariance.on_refresh = lambda: told.append(covariance.n_samples)
    for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 420], strict=True):
        covariance(block(data[:, a:b], flags[a:b], a))
    # 405 usable samples are four whole parts, of which the last three are kept
    usable = np.flatnonzero(flags != np.uint32(Flag.SETTLING))[100:400]
    assert told == [100, 200, 300, 300]
    for missing, fit in (
        (frozenset[Modality](), flags[usable] == 0),
        (frozenset({Modality.EEG}), (flags[usable] & MEG_GONE) == 0),
        (frozenset({Modality.MEG}), (flags[usable] & EEG_GONE) == 0),
    ):
        rows = [i for i, kind in enumerate(SMALL.types) if kind.modality not in missing]
        seen, n = covariance.covariance(missing)
        assert n == fit.sum()
        np.testing.assert_allclose(seen[np.ix_(rows, rows)], np.cov(data[rows][:, usable[fit]]), rtol=1e-9)
        gone = [i for i in range(5) if i not in rows]
        assert not seen[gone].any()
        assert not seen[:, gone].any()


def test_nothing_is_known_before_there_is_enough() -> None:
    data, flags = stream(420)
    covariance = DataCovariance(SMALL, FEW, 100.0, on_refresh=(told := []).append)  # would fail if it were called
    covariance(block(data[:, 120:219], flags[120:219], 0))
    assert covariance.covariance() is None
    assert told == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": "LCMV", "orientation": "loose"}, "leave out orientation"),
        ({"method": "LCMV", "lcmv": {"least_s": 30}}, "must not exceed data_s"),
        ({"method": "LCMV", "lcmv": {"reg": -1}}, "lcmv.reg"),
        ({"model": "fusion", "method": "dSPM"}, "one or the other"),
        ({"model": "fusion", "snr": 1.0}, "one or the other"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        validate_settings(content, SolverSettings, "solver")
