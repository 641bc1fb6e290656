"""Classical operators are mne's own estimates, whatever channels are left; and they obey their laws."""

from __future__ import annotations

import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ConfigurationError, NoiseCovarianceError, SolverError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov, read_noise_cov
from rt_mmdf.solvers.interface import Operator
from rt_mmdf.solvers.linear import LinearSolver, SolverSettings
from rt_mmdf.solvers.operators import build_operator, usable_channels

METHODS = ("MNE", "dSPM", "sLORETA", "eLORETA")


@pytest.fixture(scope="module")
def noise_cov(template_head_ico3: HeadModel) -> mne.Covariance:
    """Sensor noise and brain noise of the template head."""
    sources = np.random.default_rng(0).standard_normal((template_head_ico3.n_sources, 600)) * 0.3e-9
    brain = template_head_ico3.leadfield() @ sources
    data = brain @ brain.T / 600 + np.diag(ad_hoc_noise_cov(template_head_ico3.channels)["data"])
    return mne.Covariance(data, list(template_head_ico3.ch_names), bads=[], projs=[], nfree=100_000)


@pytest.fixture(scope="module")
def data(template_head_ico3: HeadModel) -> np.ndarray:
    """Twenty samples of a few active sources, SI units."""
    rng = np.random.default_rng(5)
    sources = np.zeros((template_head_ico3.n_sources, 20))
    sources[rng.choice(template_head_ico3.n_sources, 5)] = 20e-9 * rng.standard_normal((5, 20))
    return template_head_ico3.leadfield() @ sources


def applied(operator: Operator, data: np.ndarray) -> np.ndarray:
    """The estimate in double precision, as the chain computes it in single precision."""
    whitened = operator.whitener.matrix @ data
    solver = operator.solver
    assert isinstance(solver, LinearSolver)
    components = solver.kernel.astype(np.float64) @ whitened
    return components[0] if len(components) == 1 else np.linalg.norm(components, axis=0)


def mne_estimate(
    head: HeadModel, names: list[str], data: np.ndarray, noise_cov: mne.Covariance, s: SolverSettings
) -> np.ndarray:
    """What a user of mne computes with the same channels: nothing of the code under test in it."""
    info = mne.pick_info(head.info, [head.info["ch_names"].index(name) for name in names])
    evoked = mne.EvokedArray(data, info, verbose="ERROR")
    if "eeg" in evoked:
        evoked.set_eeg_reference(projection=True, verbose="ERROR")
    fixed = s.orientation == "fixed"
    inverse = mne.minimum_norm.make_inverse_operator(
        evoked.info,
        head.forward,
        noise_cov,
        loose=0.0 if fixed else s.loose,
        fixed=fixed,
        depth=s.depth or None,
        verbose="ERROR",
    )
    return mne.minimum_norm.apply_inverse(evoked, inverse, s.lambda2, s.method, verbose="ERROR").data


@pytest.mark.parametrize("orientation", ["fixed", "loose"])
@pytest.mark.parametrize("method", METHODS)
def test_estimates_are_mnes(template_head_ico3, noise_cov, data, method: str, orientation: str) -> None:
    head = template_head_ico3
    chosen = SolverSettings(method=method, orientation=orientation, snr=2.0)
    operator = build_operator(head, head.channels, noise_cov, settings=chosen)
    expected = mne_estimate(head, list(head.ch_names), data, noise_cov, chosen)
    peak = np.abs(expected).max()
    assert np.abs(applied(operator, data) - expected).max() < 1e-6 * peak
    whitened = (operator.whitener.matrix @ data).astype(np.float32)
    live = operator.solver(whitened, 7)
    assert live.dtype == np.float32
    assert live.shape == (1284, 7)
    assert np.abs(live - expected[:, -7:]).max() < 1e-5 * peak
    assert operator.solver.unit == ("A m" if method in ("MNE", "eLORETA") else "")
    assert operator.used == frozenset(head.ch_names)


@pytest.mark.parametrize("missing", [(), (Modality.EEG,), (Modality.MEG,)])
def test_estimates_are_mnes_with_what_is_left(template_head_ico3, noise_cov, data, missing: tuple[Modality, ...]) -> None:
    head = template_head_ico3
    bads = ["MEG 0113", "EEG007", "EEG008", "EEG060"]
    # the stream has another order than the head, channels that the head lacks, and lacks some that the head has
    order = np.random.default_rng(2).permutation(366)[:340]
    channels = head.channels.pick(order) + Channels(("EOG", "Cz"), (ChannelType.EOG, ChannelType.EEG))
    chosen = SolverSettings(depth=0.0)
    operator = build_operator(head, channels, noise_cov, settings=chosen, bads=bads, missing_modalities=missing)
    left = [
        name
        for name, kind in zip(channels.names, channels.types, strict=True)
        if name in head.ch_names and name not in bads and kind.modality not in missing
    ]
    assert operator.used == frozenset(left)
    rows = [head.ch_names.index(name) for name in left]
    expected = mne_estimate(head, left, data[rows], noise_cov, chosen)
    wire = np.full((len(channels), 20), 1e-3)  # what is not used must not matter
    wire[channels.indices(left)] = data[rows]
    assert np.abs(applied(operator, wire) - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.sample
@pytest.mark.parametrize("method", METHODS)
def test_estimates_of_the_real_recording_are_mnes(sample_data, sample_head: HeadModel, method: str) -> None:
    raw = mne.io.read_raw_fif(sample_data / "sample_audvis_5s_raw.fif", verbose="ERROR")
    raw.pick(["meg", "eeg"], exclude=())  # 303 + 60: three MEG channels of the head are missing
    noise_cov = mne.read_cov(sample_data / "sample_audvis-cov.fif", verbose="ERROR")
    chosen = SolverSettings(method=method, snr=1.0)
    kinds = tuple(ChannelType(kind) for kind in raw.get_channel_types())
    channels = Channels(tuple(raw.ch_names), kinds)
    operator = build_operator(sample_head, channels, noise_cov, raw.info["projs"], chosen, bads=raw.info["bads"])
    inverse = mne.minimum_norm.make_inverse_operator(
        raw.info, sample_head.forward, noise_cov, loose=0.0, fixed=True, depth=0.8, verbose="ERROR"
    )
    expected = mne.minimum_norm.apply_inverse_raw(
        raw, inverse, chosen.lambda2, method, start=300, stop=400, verbose="ERROR"
    ).data
    assert operator.whitener.rank == 361 - 3 - 1
    assert len(operator.used) == 361
    assert np.abs(applied(operator, raw.get_data()[:, 300:400]) - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("orientation", ["fixed", "loose"])
def test_the_newest_samples_are_imaged_and_the_rest_is_context(template_head_ico3, noise_cov, orientation: str) -> None:
    head = template_head_ico3
    solver = build_operator(head, head.channels, noise_cov, settings=SolverSettings(orientation=orientation)).solver
    window = np.random.default_rng(0).standard_normal((366, 30)).astype(np.float32)
    before = window.copy()
    whole = solver(window, 30)
    for n_new in (1, 4, 29):
        np.testing.assert_allclose(solver(window, n_new), whole[:, -n_new:], rtol=1e-4, atol=1e-5 * np.abs(whole).max())
    assert solver(window, 0).shape == (1284, 0)
    np.testing.assert_array_equal(window, before)


@settings(max_examples=20)
@given(a=st.floats(-5, 5), b=st.floats(-5, 5), seed=st.integers(0, 1000))
def test_the_fixed_kernel_is_linear_and_the_loose_one_scales(a: float, b: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 12, 3)).astype(np.float32)
    fixed = LinearSolver(rng.standard_normal((1, 40, 12)), "")
    mixed = fixed(np.float32(a) * x + np.float32(b) * y, 3)
    np.testing.assert_allclose(mixed, np.float32(a) * fixed(x, 3) + np.float32(b) * fixed(y, 3), atol=1e-4)
    loose = LinearSolver(rng.standard_normal((3, 40, 12)), "")
    np.testing.assert_allclose(loose(np.float32(a) * x, 3), abs(np.float32(a)) * loose(x, 3), atol=1e-4)
    expected = np.linalg.norm(loose.kernel.astype(np.float64) @ x, axis=0)
    np.testing.assert_allclose(loose(x, 3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", [(), (Modality.EEG,), (Modality.MEG,)])
def test_sloreta_finds_every_single_dipole(template_head_ico3, noise_cov, missing: tuple[Modality, ...]) -> None:
    """The resolution matrix has its largest value of each column on the diagonal (Pascual-Marqui 2002)."""
    head = template_head_ico3
    chosen = SolverSettings(method="sLORETA")
    operator = build_operator(head, head.channels, noise_cov, settings=chosen, missing_modalities=missing)
    resolution = np.abs(applied(operator, head.leadfield()))
    found = resolution.argmax(axis=0)
    off_mm = np.linalg.norm(head.source_positions_mm[found] - head.source_positions_mm, axis=1)
    assert off_mm.max() == 0.0


def test_no_channel_left_is_said(template_head_ico3, noise_cov) -> None:
    head = template_head_ico3
    with pytest.raises(SolverError, match="missing modalities: eeg, meg"):
        build_operator(head, head.channels, noise_cov, missing_modalities=[Modality.EEG, Modality.MEG])
    strangers = Channels(("Cz", "Pz"), (ChannelType.EEG, ChannelType.EEG))
    with pytest.raises(SolverError, match=r"2 are not in the head model 'template' \(Cz, Pz\)"):
        build_operator(head, strangers, noise_cov)
    one = Channels(("EEG001", "MEG 0113"), (ChannelType.EEG, ChannelType.GRAD))
    assert usable_channels(head, one) == {"MEG 0113"}, "one EEG channel is its own reference"


def test_a_covariance_of_other_channels_is_said(template_head_ico3) -> None:
    head = template_head_ico3
    few = ad_hoc_noise_cov(head.channels.pick(range(306)))
    with pytest.raises(NoiseCovarianceError, match="60 of 366 channels are not in it"):
        build_operator(head, head.channels, few)
    build_operator(head, head.channels, few, missing_modalities=[Modality.EEG])


def test_building_changes_nothing_that_is_shared(template_head_ico3, noise_cov) -> None:
    head = template_head_ico3
    gain, cov = head.forward["sol"]["data"].copy(), noise_cov["data"].copy()
    normals, fingerprint = head.forward["source_nn"].copy(), head.fingerprint
    build_operator(head, head.channels, noise_cov, settings=SolverSettings(orientation="loose"), bads=["EEG001"])
    build_operator(head, head.channels, noise_cov, bads=["MEG 0113"])
    np.testing.assert_array_equal(head.forward["sol"]["data"], gain)
    np.testing.assert_array_equal(head.forward["source_nn"], normals)
    np.testing.assert_array_equal(noise_cov["data"], cov)
    assert "eig" not in noise_cov or noise_cov["eig"] is None
    assert not head.forward["surf_ori"]
    assert head.info["bads"] == []
    assert head.info["projs"] == []
    assert head.fingerprint == fingerprint


def test_kernels_that_cannot_be_are_refused() -> None:
    with pytest.raises(SolverError, match="expected"):
        LinearSolver(np.zeros((2, 5, 5)), "")
    with pytest.raises(SolverError, match="NaN"):
        LinearSolver(np.full((1, 5, 5), np.nan), "")
    with pytest.raises(ConfigurationError, match="snr"):
        validate_settings({"snr": 0}, SolverSettings, "solver")
    with pytest.raises(ConfigurationError, match="unknown key"):
        validate_settings({"methd": "MNE"}, SolverSettings, "solver")


@pytest.mark.sample
def test_dspm_of_both_finds_the_expected_regions(sample_data, sample_head: HeadModel) -> None:
    """MRI mm: auditory near the subject's published dipole fit or its mirror, visual occipital; all contralateral."""
    evokeds = mne.read_evokeds(sample_data / "sample_audvis_few-ave.fif.gz", baseline=(None, 0), verbose="ERROR")
    noise_cov = read_noise_cov(sample_data / "sample_audvis-cov.fif", sample_head.ch_names)
    channels, bads = sample_head.channels, ["MEG 2443", "EEG 053"]
    # no depth weighting: dSPM corrects for depth itself
    chosen = SolverSettings(method="dSPM", snr=3.0, depth=0.0)
    operator = build_operator(sample_head, channels, noise_cov, evokeds[0].info["projs"], chosen, bads)
    for evoked in evokeds:
        evoked.filter(None, 40.0, verbose="ERROR").crop(0.075, 0.120).pick(list(channels.names))
        assert tuple(evoked.ch_names) == channels.names
        maps = operator.solver((operator.whitener.matrix @ evoked.data).astype(np.float32), len(evoked.times))
        x, y, z = sample_head.source_positions_mm[np.abs(maps).max(axis=1).argmax()]
        side = 1 if evoked.comment.startswith("Left") else -1  # of the hemisphere that is expected: the other one
        if "uditory" in evoked.comment:
            assert np.linalg.norm(np.array([x, y, z]) - [side * 56, -16, 37]) < 30, evoked.comment
        else:
            assert side * x > 0, evoked.comment
            assert y < -45, evoked.comment


@pytest.mark.parametrize("keys", [{"backend": "tensorrt"}, {"precision": "fp16"}, {"backend": "torch", "method": "MNE"}])
def test_a_backend_for_a_classical_inverse_is_refused_not_ignored(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="they are of trained models"):
        SolverSettings.model_validate(keys)
    assert SolverSettings.model_validate({"model": "mmdf", "backend": "onnxruntime"}).refresh_ms == 50
