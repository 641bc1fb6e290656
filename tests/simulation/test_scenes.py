from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import mne
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from rt_mmdf.core.errors import HeadModelError, NoiseCovarianceError, RecordingError, SinkError
from rt_mmdf.headmodel.head import HeadModel, Hemisphere
from rt_mmdf.headmodel.noise import RegularisationSettings
from rt_mmdf.headmodel.template import build_template
from rt_mmdf.networks.interface import EEG, GRAD, ForwardArrays
from rt_mmdf.simulation.batches import Scene
from rt_mmdf.simulation.heads import HeadVariation
from rt_mmdf.simulation.noise import BRAIN_PER_EEG_VOLT
from rt_mmdf.simulation.scene_files import load_scenes, save_scenes
from rt_mmdf.simulation.scenes import (
    SceneNoise,
    compact_colour,
    interference_fields,
    make_scene,
    nominal_noise_cov,
    random_noise,
    random_used,
    training_scenes,
    true_cortex,
)
from rt_mmdf.simulation.sources import Cortex, grow_patch
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.solvers.operators import build_operator

EXACT = RegularisationSettings(mag=0, grad=0, eeg=0)
QUICK = SceneNoise(n_brain_sources=20)


def kept_as_it_was(variation: HeadVariation, number: int, head: HeadModel) -> HeadModel:
    return head


def all_arrays(scene: Scene) -> dict[str, np.ndarray]:
    held = {f.name: getattr(scene, f.name) for f in fields(Scene)}
    held |= {f"arrays.{f.name}": getattr(scene.arrays, f.name) for f in fields(ForwardArrays)}
    return {key: value for key, value in held.items() if isinstance(value, np.ndarray)}


def assert_white_by_modality(scene: Scene) -> None:
    noise = scene.colour.astype(float) @ scene.colour.T
    is_eeg = scene.arrays.kinds == EEG
    for modality, reference in ((is_eeg, 1), (~is_eeg, 0)):
        rows = modality & scene.arrays.used
        values = np.linalg.eigvalsh(noise[np.ix_(rows, rows)])
        np.testing.assert_allclose(values[reference:], 1, atol=1e-4)
        np.testing.assert_allclose(values[:reference], 0, atol=1e-4)


def test_on_the_nominal_head_the_truth_is_what_the_system_knows(plain_scene: Scene, small_head: HeadModel) -> None:
    np.testing.assert_array_equal(plain_scene.gain, plain_scene.arrays.leadfield)
    np.testing.assert_array_equal(plain_scene.nearest, np.arange(small_head.n_sources))
    assert plain_scene.arrays.rank == len(small_head.ch_names) - 1  # the average reference
    assert plain_scene.arrays.used.all()


def test_whitened_noise_has_unit_variance_in_every_direction_of_each_modality(plain_scene: Scene) -> None:
    # as mne has it: EEG and MEG are whitened each for itself, what they have in common stays
    assert_white_by_modality(plain_scene)
    noise = plain_scene.colour.astype(float) @ plain_scene.colour.T
    kinds = plain_scene.arrays.kinds
    assert np.abs(noise[np.ix_(kinds == EEG, kinds != EEG)]).max() > 0.1  # brain noise is in both


def test_what_trains_is_what_the_live_chain_uses(small_head: HeadModel) -> None:
    scene = make_scene(small_head, small_head, QUICK, seed=11)
    operator = build_operator(small_head, small_head.channels, nominal_noise_cov(small_head, QUICK, seed=11))
    live = forward_arrays(small_head, operator.whitener, operator.used)
    for f in fields(ForwardArrays):
        np.testing.assert_array_equal(getattr(scene.arrays, f.name), getattr(live, f.name))


def test_a_covariance_from_samples_whitens_as_well_as_that_many_samples_can(small_head: HeadModel) -> None:
    noise = replace(QUICK, n_cov_samples=4000, regularisation=EXACT)
    scene = make_scene(small_head, small_head, noise, seed=5)
    grad = scene.arrays.kinds == GRAD
    values = np.linalg.eigvalsh((scene.colour.astype(float) @ scene.colour.T)[np.ix_(grad, grad)])
    edge = np.sqrt(grad.sum() / 4000)  # inverse of a Wishart matrix: Marchenko & Pastur's edges
    assert 0.9 / (1 + edge) ** 2 < values.min() < 1 - edge
    assert 1 + edge < values.max() < 1.1 / (1 - edge) ** 2


def test_what_is_not_used_is_zero_and_leaves_the_rest_whitened(small_head: HeadModel) -> None:
    lost = set(small_head.ch_names[3:9]) | set(small_head.ch_names[-4:])
    used = [name for name in small_head.ch_names if name not in lost]
    scene = make_scene(small_head, small_head, replace(QUICK, regularisation=EXACT), seed=5, used=used)
    gone = np.array([name in lost for name in small_head.ch_names])
    np.testing.assert_array_equal(scene.arrays.used, ~gone)
    for rows in (scene.arrays.leadfield, scene.gain, scene.colour):
        assert not rows[gone].any()
        assert rows[~gone].any(axis=1).all()
    assert scene.arrays.rank == len(used) - 1
    assert_white_by_modality(scene)


@pytest.mark.parametrize("n_brain", [0, 5, 20])
def test_fewer_columns_hold_the_same_noise(n_brain: int) -> None:
    rng = np.random.default_rng(n_brain)
    whole = rng.standard_normal((30, 40 + n_brain)) * np.geomspace(1, 0.01, 30)[:, None]
    whole[3] = 0  # a channel that is not used
    compact, n_slow = compact_colour(whole, n_brain, n_kept=8)
    assert n_slow == min(8, n_brain)
    assert compact.shape[1] <= 30 + n_slow
    np.testing.assert_allclose(compact.astype(float) @ compact.T, whole @ whole.T, atol=1e-5 * np.trace(whole @ whole.T))
    assert not compact[3].any()
    # what stays slow is brain noise, the strongest of it
    brain = whole[:, 40:]
    slow = compact[:, compact.shape[1] - n_slow :]
    power = np.linalg.svd(brain, compute_uv=False)[:n_slow] ** 2
    np.testing.assert_allclose(np.sort(np.sum(slow**2, axis=0))[::-1], power, rtol=1e-4)


def test_meg_alone_has_brain_noise_too(small_head: HeadModel) -> None:
    meg = [name for name, kind in zip(small_head.ch_names, small_head.channels.types, strict=True) if kind != "eeg"]
    head = small_head.pick(meg)
    scene = make_scene(head, head, replace(QUICK, regularisation=EXACT), seed=5)
    assert scene.arrays.rank == len(meg)
    assert np.abs(scene.colour[:, -scene.n_brain :]).max() > 0.05


def test_brain_noise_has_the_same_level_whichever_modality_sets_it(template_head_ico3: HeadModel) -> None:
    gain = template_head_ico3.leadfield()
    kinds = np.array([kind.value for kind in template_head_ico3.channels.types])
    chosen = np.random.default_rng(0).choice(gain.shape[1], 400, replace=False)
    level = {kind: np.median(np.sqrt(np.sum(gain[kinds == kind][:, chosen] ** 2, axis=1))) for kind in BRAIN_PER_EEG_VOLT}
    for kind, wanted in BRAIN_PER_EEG_VOLT.items():
        assert level[kind] / level["eeg"] == pytest.approx(wanted, rel=0.1)


def test_interference_is_a_magnetic_field_of_distant_sources(template_head_ico3: HeadModel) -> None:
    fields_ = interference_fields(template_head_ico3, 25.0, np.random.default_rng(1))
    kinds = np.array([kind.value for kind in template_head_ico3.channels.types])
    assert not fields_[kinds == "eeg"].any()
    assert np.median(np.sqrt(np.sum(fields_[kinds == "mag"] ** 2, axis=1))) == pytest.approx(25e-15)
    # parity: mne's basis of external fields, homogeneous (3) and gradients (5), explains it but for the size of the coils
    meg = mne.pick_info(template_head_ico3.info, np.flatnonzero(kinds != "eeg"))
    basis = mne.preprocessing.compute_maxwell_basis(meg, int_order=1, ext_order=2, regularize=None, verbose="ERROR")
    outer = basis[0][:, 3:]
    assert outer.shape[1] == 8
    scale = np.where(kinds[kinds != "eeg"] == "mag", 1.0, 0.02)[:, None]
    rows = fields_[kinds != "eeg"] * scale
    fitted = outer * scale
    left = rows - fitted @ np.linalg.lstsq(fitted, rows, rcond=None)[0]
    assert np.linalg.norm(left) < 0.02 * np.linalg.norm(rows)


def test_sensor_noise_takes_the_colour_of_a_covariance(small_head: HeadModel) -> None:
    n = len(small_head.ch_names)
    rng = np.random.default_rng(2)
    scale = np.array([{"eeg": 5e-7, "mag": 2e-14, "grad": 8e-13}[kind] for kind in small_head.channels.types])
    root = np.eye(n) + 0.4 * rng.standard_normal((n, n)) / np.sqrt(n)
    wanted = (root @ root.T) * np.outer(scale, scale)
    old_names = [name.replace("MEG", "MEG ").replace("EEG", "EEG ") for name in small_head.ch_names]
    cov = mne.Covariance(wanted, old_names, [], [], nfree=10_000)
    noise = SceneNoise(noise_cov=cov, n_brain_sources=0, regularisation=EXACT)
    scene = make_scene(small_head, small_head, noise, seed=1)
    gain, white = small_head.leadfield(), scene.gain.astype(float)
    rows = scene.arrays.kinds != EEG
    # whatever the whitener's form: g' C^-1 g is what it must keep of every field
    scaled = 1e-9 * gain[rows] / scale[rows][:, None]
    expected = np.sum(scaled * np.linalg.solve((root @ root.T)[np.ix_(rows, rows)], scaled), axis=0)
    np.testing.assert_allclose(np.sum(white[rows] ** 2, axis=0), expected, rtol=1e-4)
    assert_white_by_modality(scene)
    with pytest.raises(NoiseCovarianceError, match="none of them is simulated"):
        make_scene(
            small_head, small_head, replace(noise, noise_cov=mne.Covariance(np.eye(1), ["X1"], [], [], nfree=10)), seed=1
        )
    broken = mne.Covariance(np.diag(np.r_[np.nan, np.ones(n - 1)]), old_names, [], [], nfree=10_000)
    with pytest.raises(NoiseCovarianceError, match="no positive, finite variance"):
        make_scene(small_head, small_head, replace(noise, noise_cov=broken), seed=1)


def test_neighbours_are_patches_of_the_true_mesh(small_head: HeadModel) -> None:
    own = true_cortex(small_head, small_head)
    np.testing.assert_array_equal(own.neighbours[:, 0], np.arange(small_head.n_sources))
    assert not own.distance_mm[:, 0].any()
    assert (np.diff(np.where(np.isinf(own.distance_mm), 1e6, own.distance_mm), axis=1) >= 0).all()
    left, right = small_head.source_triangles
    n_left = len(small_head.vertices[0])
    cortex = Cortex(small_head.source_positions_mm, np.vstack([left, right + n_left]), n_left)
    for centre, radius in ((0, 0.0), (700, 15.0), (1283, 31.0)):
        inside = own.neighbours[centre][own.distance_mm[centre] <= radius]
        np.testing.assert_array_equal(np.sort(inside), grow_patch(cortex, centre, radius).vertices)
    assert (own.neighbours[:n_left][np.isfinite(own.distance_mm[:n_left])] < n_left).all()


def test_a_true_mesh_may_be_another_than_the_nominal_one(small_head: HeadModel) -> None:
    truth = build_template(spacing="ico4").pick(small_head.ch_names)
    own = true_cortex(small_head, truth)
    apart = cdist(own.truth_mm[::50], small_head.source_positions_mm)
    np.testing.assert_array_equal(own.nearest[::50], apart.argmin(axis=1))
    scene = make_scene(small_head, truth, QUICK, seed=1, cortex=own)
    assert scene.gain.shape[1] == len(scene.truth_mm) == 5124
    assert scene.arrays.n_sources == 1284


def test_heads_of_other_channels_are_refused(small_head: HeadModel) -> None:
    with pytest.raises(HeadModelError, match="2 of 81 channels are not in it"):
        make_scene(small_head, small_head.pick(small_head.ch_names[2:]), QUICK, seed=1)


def test_a_cortex_without_triangles_is_refused(small_head: HeadModel) -> None:
    bare = tuple(Hemisphere(h.white, h.triangles, h.source_vertices) for h in small_head.hemispheres)
    forward = small_head.forward.copy()
    for space in forward["src"]:
        space["use_tris"] = None
    head = HeadModel("bare", "subject", forward, small_head.info, (bare[0], bare[1]), {})
    with pytest.raises(HeadModelError, match="no triangles between its 1284 sources"):
        true_cortex(small_head, head)


def test_a_scene_depends_on_the_seed_and_its_number_alone(small_head: HeadModel) -> None:
    def made(n: int, seed: int) -> list[Scene]:
        return training_scenes(
            small_head, n, seed, make_head=lambda variation, number: kept_as_it_was(variation, number, small_head)
        )

    many, few, others = made(3, 8), made(2, 8), made(2, 9)
    for one, same in zip(many, few, strict=False):
        for key, array in all_arrays(one).items():
            np.testing.assert_array_equal(array, all_arrays(same)[key])
    assert np.abs(others[1].colour[: few[1].colour.shape[0], :5] - few[1].colour[:, :5]).max() > 0
    # the first is the nominal head; the others have errors in their gains
    np.testing.assert_array_equal(many[0].gain, many[0].arrays.leadfield)
    assert np.abs(many[1].gain - many[1].arrays.leadfield).max() > 0
    assert many[1].neighbours is many[0].neighbours


def test_regularisation_reaches_every_scene_and_changes_no_random_number(small_head: HeadModel) -> None:
    def made(regularisation: RegularisationSettings | None) -> list[Scene]:
        return training_scenes(
            small_head, 2, 8, regularisation=regularisation, make_head=lambda variation, number: small_head
        )

    plain, default, exact = made(None), made(RegularisationSettings()), made(EXACT)
    for one, same, other in zip(plain, default, exact, strict=True):
        for key, array in all_arrays(one).items():
            np.testing.assert_array_equal(array, all_arrays(same)[key])
        assert np.abs(one.gain - other.gain).max() > 0
        np.testing.assert_array_equal(one.arrays.used, other.arrays.used)
        # without loading the whitened noise is as strong as the covariance from 4000 samples says: of unit variance
        loaded, bare = (np.mean(np.sum(scene.colour[scene.arrays.used] ** 2, axis=1)) for scene in (one, other))
        assert loaded < bare
        assert bare == pytest.approx(other.arrays.rank / other.arrays.used.sum(), rel=0.1)


def test_a_head_that_cannot_be_is_drawn_again(small_head: HeadModel) -> None:
    drawn: list[HeadVariation] = []

    def inside_at_first(variation: HeadVariation, number: int) -> HeadModel:
        drawn.append(variation)
        if len(drawn) < 3:
            raise HeadModelError("MEG sensors are inside the scalp")
        return small_head

    training_scenes(small_head, 2, 1, make_head=inside_at_first)
    assert len(set(drawn)) == 3

    def never(variation: HeadVariation, number: int) -> HeadModel:
        raise HeadModelError("MEG sensors are inside the scalp")

    with pytest.raises(HeadModelError, match="inside the scalp"):
        training_scenes(small_head, 2, 1, make_head=never)


def test_some_systems_lack_channels_and_some_a_modality(small_head: HeadModel) -> None:
    rng = np.random.default_rng(3)
    is_eeg = np.array([kind == "eeg" for kind in small_head.channels.types])
    whole = one_modality = 0
    for _ in range(1000):
        kept = np.isin(small_head.ch_names, random_used(small_head, rng))
        whole += kept.all()
        one_modality += not (kept & is_eeg).any() or not (kept & ~is_eeg).any()
        for rows in (is_eeg, ~is_eeg):
            assert not kept[rows].any() or kept[rows].mean() > 0.5
    assert 70 < one_modality < 130
    assert 580 < whole < 720  # 0.7 * 0.9, and a few that lose nothing by chance


def test_levels_of_noise_are_within_a_factor_of_two() -> None:
    for seed in range(50):
        noise = random_noise(np.random.default_rng(seed))
        assert all(0.5 <= factor <= 2 for factor in noise.factors)
        assert 1.0 <= noise.eeg_brain_uv <= 4.0
        assert 0 <= noise.interference_ft <= 30


def test_scenes_come_back_from_disk_bit_by_bit_and_share_what_they_shared(small_head: HeadModel, tmp_path: Path) -> None:
    scenes = training_scenes(small_head, 3, 4, make_head=lambda variation, number: small_head)
    save_scenes(scenes, tmp_path / "made" / "scenes")
    back = load_scenes(tmp_path / "made" / "scenes")
    assert [s.name for s in back] == [s.name for s in scenes]
    for one, same in zip(scenes, back, strict=True):
        assert (one.n_brain, one.arrays.rank, one.arrays.n_left) == (same.n_brain, same.arrays.rank, same.arrays.n_left)
        for key, array in all_arrays(one).items():
            again = all_arrays(same)[key]
            assert again.dtype == array.dtype
            np.testing.assert_array_equal(again, array)
    for key in ("neighbours", "distance_mm", "truth_mm", "nearest"):
        assert getattr(back[0], key) is getattr(back[2], key)
    assert back[0].arrays.triangles is back[1].arrays.triangles
    assert (back[0].arrays.kinds == EEG).sum() == 30


def test_damaged_or_missing_scenes_are_told(plain_scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"scenes\.json is missing"):
        load_scenes(tmp_path)
    save_scenes([plain_scene], tmp_path)
    (tmp_path / "scene000.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(RecordingError, match="damaged"):
        load_scenes(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be written"):
        save_scenes([plain_scene], tmp_path / "file")


def test_scenes_and_batches_load_on_a_machine_without_mne() -> None:
    code = (
        "import sys, rt_mmdf.simulation.scene_files, rt_mmdf.simulation.batch_files;"
        "print(*{'mne', 'scipy', 'pydantic', 'nilearn', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
