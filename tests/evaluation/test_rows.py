from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pytest
import torch

from rt_mmdf.core.channels import Modality
from rt_mmdf.core.errors import ArtefactError, ConfigurationError
from rt_mmdf.evaluation import rows as rows_module
from rt_mmdf.evaluation.rows import (
    ASSUMED_SNR,
    LCMV_LOADINGS,
    ELoreta,
    Lcmv,
    MinimumNorm,
    NetworkRow,
    check_solvers,
    classical_groups,
    make_groups,
)
from rt_mmdf.evaluation.suite import Cases, HeldOutScene, Suite, View
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.whitener import whitener_and_colorer
from rt_mmdf.metrics.scoring import scored_space
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.interface import ForwardArrays
from rt_mmdf.simulation.batches import Scene
from rt_mmdf.simulation.scenes import SceneNoise, nominal_noise_cov
from rt_mmdf.solvers.artefact import Artefact, save_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.solvers.lcmv import lcmv_kernel
from rt_mmdf.solvers.linear import SolverSettings
from rt_mmdf.solvers.operators import build_operator

SNR = 1.4
AT = ASSUMED_SNR.index(SNR)


@pytest.fixture(scope="module")
def noise_cov(template_head_ico3: HeadModel) -> mne.Covariance:
    return nominal_noise_cov(template_head_ico3, SceneNoise(n_brain_sources=50), seed=3)


@pytest.fixture(scope="module")
def suite(template_head_ico3: HeadModel, noise_cov: mne.Covariance, small_suite: Suite) -> Suite:
    """One scene whose noise is known: no generator, for solvers alone."""
    head = template_head_ico3
    whitener, colorer = whitener_and_colorer(head.channels, head.ch_names, head.info, noise_cov)
    arrays = forward_arrays(head, whitener, head.ch_names)
    alone = {}
    for modality in Modality:
        names = head.channels.pick(head.channels.of_modality(modality)).names
        single, _ = whitener_and_colorer(head.channels, names, head.info, noise_cov)
        alone[modality] = View(forward_arrays(head, single, names), np.asarray(single.matrix @ colorer, np.float32))
    scene = Scene("s", arrays, *small_suite_fields(arrays))
    space = scored_space(arrays.positions_mm, arrays.triangles, arrays.n_left)
    return Suite(head, (HeldOutScene(scene, alone),), space, small_suite.depth, "one scene")


def small_suite_fields(arrays: ForwardArrays) -> tuple[np.ndarray, ...]:
    n = arrays.n_sources
    colour = np.eye(arrays.n_channels, dtype=np.float32)
    return (
        arrays.leadfield,
        np.arange(n),
        arrays.positions_mm,
        colour,
        0,
        np.arange(n)[:, None],
        np.zeros((n, 1), np.float32),
    )


def cases_of(samples: np.ndarray, windows: np.ndarray | None = None) -> Cases:
    n = len(samples)
    window = np.repeat(samples[:, :, None], 5, axis=2) if windows is None else windows
    nothing = np.zeros((n, 1), np.float32)
    return Cases(
        np.zeros(n, int), samples.astype(np.float32), window.astype(np.float32), np.zeros(n, int), nothing, nothing[:, None]
    )


@pytest.fixture(scope="module")
def sensors(template_head_ico3: HeadModel, noise_cov: mne.Covariance) -> np.ndarray:
    """(366, 6) what sensors saw, SI units: noise of the covariance and a source."""
    rng = np.random.default_rng(0)
    scale = np.sqrt(np.diag(noise_cov["data"]))
    power, vectors = np.linalg.eigh(noise_cov["data"] / np.outer(scale, scale))
    noise = scale[:, None] * ((vectors * np.sqrt(np.maximum(power, 0))) @ rng.standard_normal((366, 6)))
    return noise + 20e-9 * template_head_ico3.leadfield()[:, [5]]


@pytest.fixture
def one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """eLORETA takes seconds for each."""
    monkeypatch.setattr(rows_module, "ASSUMED_SNR", (SNR,))


@pytest.mark.usefixtures("one_setting")
@pytest.mark.parametrize("method", ["MNE", "dSPM", "sLORETA", "eLORETA"])
def test_rows_are_what_the_live_chain_images(
    method: str, suite: Suite, template_head_ico3: HeadModel, noise_cov: mne.Covariance, sensors: np.ndarray
) -> None:
    head = template_head_ico3
    settings = SolverSettings.model_validate({"method": method, "snr": SNR, "depth": 0.8 if method == "MNE" else 0.0})
    operator = build_operator(head, head.channels, noise_cov, settings=settings)
    whitened = (operator.whitener.matrix @ sensors).astype(np.float32)
    expected = operator.solver(whitened, whitened.shape[1])
    if operator.solver.unit == "A m":
        expected = expected * 1e9
    (group,) = classical_groups(suite, [method])
    assert group.with_amplitude == (frozenset([method]) if operator.solver.unit == "A m" else frozenset())
    (image,) = group.images(cases_of(whitened.T))
    assert (image.row, image.setting) == (method, SNR)
    np.testing.assert_allclose(image.maps, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("row", "other"), [("sLORETA-eeg", Modality.MEG), ("sLORETA-meg", Modality.EEG)])
def test_rows_of_one_modality_are_what_the_live_chain_images_without_the_other(
    row: str, other: Modality, suite: Suite, template_head_ico3: HeadModel, noise_cov: mne.Covariance, sensors: np.ndarray
) -> None:
    head = template_head_ico3
    settings = SolverSettings(method="sLORETA", snr=SNR, depth=0)
    operator = build_operator(head, head.channels, noise_cov, settings=settings, missing_modalities=[other])
    expected = operator.solver((operator.whitener.matrix @ sensors).astype(np.float32), sensors.shape[1])
    joint = build_operator(head, head.channels, noise_cov, settings=settings).whitener.matrix
    (group,) = classical_groups(suite, [row])
    images = list(group.images(cases_of((joint @ sensors).T)))
    np.testing.assert_allclose(images[AT].maps, expected, atol=2e-3 * np.abs(expected).max())


def test_sloreta_finds_every_noise_free_source_at_every_setting(suite: Suite) -> None:
    fields = suite.scenes[0].scene.arrays.leadfield.T
    images = list(MinimumNorm(suite, {"sLORETA": "sLORETA"}).images(cases_of(fields)))
    assert [image.setting for image in images] == list(ASSUMED_SNR)
    for image in images:
        assert (np.abs(image.maps).argmax(axis=0) == np.arange(len(fields))).mean() > 0.999  # single precision


@pytest.mark.usefixtures("one_setting")
def test_eloreta_finds_every_noise_free_source(suite: Suite) -> None:
    fields = suite.scenes[0].scene.arrays.leadfield.T
    (image,) = ELoreta(suite).images(cases_of(fields))
    assert (np.abs(image.maps).argmax(axis=0) == np.arange(len(fields))).mean() > 0.99


def test_eloreta_variances_are_kept(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path))
    computed = []

    def variances(arrays: ForwardArrays, snr: float) -> np.ndarray:
        computed.append(snr)
        return np.full(arrays.n_sources, snr)

    monkeypatch.setattr(rows_module, "eloreta_variances", variances)
    arrays = suite.scenes[0].scene.arrays
    for _ in range(2):
        np.testing.assert_array_equal(rows_module._kept_eloreta_variances(arrays)[:, 0], ASSUMED_SNR)
    assert computed == list(ASSUMED_SNR)
    rows_module._kept_eloreta_variances(replace(arrays, leadfield=2 * arrays.leadfield))
    assert len(computed) == 2 * len(ASSUMED_SNR)


def test_lcmv_of_a_window_is_that_of_the_live_chain(suite: Suite) -> None:
    arrays = suite.scenes[0].scene.arrays
    rng = np.random.default_rng(4)
    whiten = arrays.leadfield @ np.linalg.pinv(
        arrays.leadfield.astype(np.float64), rcond=1e-4
    )  # onto what the whitener leaves
    windows = np.einsum("ij,njt->nit", whiten, rng.standard_normal((2, 366, 60))) + 3 * arrays.leadfield[None, :, [7]]
    samples = windows[:, :, 50]
    images = list(Lcmv(suite).images(cases_of(samples, windows)))
    assert [image.setting for image in images] == list(LCMV_LOADINGS)
    for image in images:
        for case in range(2):
            # all dimensions: with fewer samples than channels, which one is the projectors' cannot be told from the data
            kernel = lcmv_kernel(arrays.leadfield.astype(float), np.cov(windows[case]), 366, reg=image.setting)
            expected = kernel @ samples[case]
            np.testing.assert_allclose(image.maps[:, case], expected, atol=2e-3 * np.abs(expected).max())


def artefact_of(kind: str, suite: Suite, head: HeadModel, noise_cov: mne.Covariance, folder: Path) -> Artefact:
    torch.manual_seed(0)
    network = build_network(kind, {}, suite.scenes[0].scene.arrays)
    return save_artefact(folder / kind, network, head, noise_cov, name=kind, card="of a test")


@pytest.mark.parametrize("kind", ["mmdf", "mmdf-eeg", "convdip", "fusion"])
def test_networks_image_every_case_as_they_do_alone(
    kind: str, suite: Suite, template_head_ico3: HeadModel, noise_cov: mne.Covariance, tmp_path: Path
) -> None:
    artefact = artefact_of(kind, suite, template_head_ico3, noise_cov, tmp_path)
    row = NetworkRow(suite, "mine", artefact)
    rng = np.random.default_rng(1)
    windows = rng.standard_normal((5, 366, 100)).astype(np.float32)
    cases = cases_of(windows[:, :, 70], windows)
    (image,) = row.images(cases)
    assert (image.row, row.with_amplitude) == ("mine", frozenset(["mine"]))
    assert np.isnan(image.setting)
    assert image.maps.shape == (suite.space.n_sources, 5)
    (alone,) = row.images(cases_of(windows[3:4, :, 70], windows[3:4]))
    np.testing.assert_allclose(alone.maps[:, 0], image.maps[:, 3], atol=1e-3 * np.abs(image.maps).max())
    if kind in ("mmdf-eeg", "convdip"):
        # magnetometers that an EEG network must not see, not even through the whitener
        joint = suite.nominal.channels.of_modality(Modality.MEG)
        seen = suite.scenes[0].alone[Modality.EEG].of(cases.sample)
        assert not seen[:, joint].any()


@pytest.mark.parametrize(("n_times", "lengths"), [(100, [70, 20, 100]), (20, [20, 20, 20])])
def test_a_network_sees_the_columns_up_to_the_instant_and_none_after_it(
    n_times: int,
    lengths: list[int],
    suite: Suite,
    template_head_ico3: HeadModel,
    noise_cov: mne.Covariance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artefact = replace(artefact_of("fusion", suite, template_head_ico3, noise_cov, tmp_path), n_times=n_times)
    instants = np.array([70, 19, 99])
    windows = np.random.default_rng(2).standard_normal((3, 366, 100)).astype(np.float32)
    cases = replace(cases_of(windows[np.arange(3), :, instants], windows), instant=instants)
    seen: dict[int, np.ndarray] = {}

    def image(self: object, samples: np.ndarray, given: np.ndarray) -> np.ndarray:
        for sample, window in zip(samples, given, strict=True):
            seen[int(np.argmin(np.abs(cases.sample - sample).sum(axis=1)))] = window
        return np.zeros((len(samples), suite.space.n_sources), np.float32)

    monkeypatch.setattr(rows_module.TorchBackend, "image_cases", image)
    list(NetworkRow(suite, "mine", artefact).images(cases))
    for case, (instant, length) in enumerate(zip(instants, lengths, strict=True)):
        np.testing.assert_array_equal(seen[case], windows[case][:, instant + 1 - length : instant + 1])


def test_the_future_changes_nothing_and_without_its_window_a_network_knows_the_sample_alone(
    suite: Suite, template_head_ico3: HeadModel, noise_cov: mne.Covariance, tmp_path: Path
) -> None:
    artefact_of("fusion", suite, template_head_ico3, noise_cov, tmp_path)
    whole, instant = make_groups(suite, [str(tmp_path / "fusion"), str(tmp_path / "fusion-instant")])
    assert (whole.rows, instant.rows) == (("fusion",), ("fusion-instant",))
    windows = np.random.default_rng(2).standard_normal((2, 366, 100)).astype(np.float32)
    windows += 3 * suite.scenes[0].scene.arrays.leadfield[None, :, [7]]
    cases = replace(cases_of(windows[:, :, 60], windows), instant=np.array([60, 60]))
    later, earlier = windows.copy(), windows.copy()
    later[:, :, 61:] = 5.0
    earlier[:, :, :60] = 5.0
    for group, past_matters in ((whole, True), (instant, False)):
        maps, after, before = (next(iter(group.images(replace(cases, window=w)))).maps for w in (windows, later, earlier))
        np.testing.assert_array_equal(after, maps)
        assert np.array_equal(before, maps) != past_matters
    artefact_of("mmdf", suite, template_head_ico3, noise_cov, tmp_path)
    with pytest.raises(ConfigurationError, match="no window to be without"):
        check_solvers(suite, (str(tmp_path / "mmdf-instant"),))


def test_a_network_for_other_channels_is_refused(
    suite: Suite, template_head_ico3: HeadModel, noise_cov: mne.Covariance, tmp_path: Path
) -> None:
    artefact = artefact_of("mmdf", suite, template_head_ico3, noise_cov, tmp_path)
    fewer = replace(suite, nominal=template_head_ico3.pick(template_head_ico3.ch_names[:300]))
    with pytest.raises(ArtefactError, match=r"366 channels.*has 300"):
        NetworkRow(fewer, "mine", artefact)


@pytest.mark.parametrize(
    ("solvers", "error"), [((), ConfigurationError), (("dSPM", "dSPM"), ConfigurationError), (("nothing",), ArtefactError)]
)
def test_rows_that_cannot_be_made_are_refused_early(solvers: tuple[str, ...], error: type[Exception], suite: Suite) -> None:
    with pytest.raises(error):
        check_solvers(suite, solvers)


def test_a_head_of_one_modality_has_no_rows_of_one_modality(suite: Suite) -> None:
    only = replace(suite, scenes=(replace(suite.scenes[0], alone={}),))
    assert classical_groups(only, ["sLORETA-eeg"]) == []
