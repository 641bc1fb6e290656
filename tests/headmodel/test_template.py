"""The template head: nesting surfaces, a physical leadfield, sensors where they belong."""

from __future__ import annotations

import mne
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from rt_mmdf.core.channels import ChannelType
from rt_mmdf.core.errors import HeadModelError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.template import build_template, fsaverage_trans, skull_and_scalp


@pytest.mark.parametrize("bem_ico", [2, 3])
def test_skull_and_scalp_nest_and_are_closed(bem_ico: int) -> None:
    inner, outer, scalp = skull_and_scalp(bem_ico)
    for (near, _), (far, _) in ((inner, outer), (outer, scalp)):
        gap_mm = 1e3 * cdist(far, near).min(axis=1)
        assert gap_mm.min() > 3.5, "surfaces closer than half a triangle's side make the BEM unstable"
        assert gap_mm.max() < 15
        centre = near.mean(axis=0)
        assert (np.linalg.norm(far - centre, axis=1) > np.linalg.norm(near - centre, axis=1)).all()
    for vertices, triangles in (inner, outer, scalp):
        assert len(vertices) == 10 * 4**bem_ico + 2
        assert len(triangles) == 2 * len(vertices) - 4  # Euler: closed, one piece
        a, b, c = (vertices[triangles[:, i]] for i in range(3))
        volume = np.einsum("ij,ij->i", np.cross(a, b), c).sum() / 6
        assert volume > 1e-3, "a litre and more, and positive: the triangles look outwards"


def test_all_sources_lie_well_inside_the_inner_skull(template_head_ico3: HeadModel) -> None:
    inner = skull_and_scalp(3)[0][0]
    assert 1e3 * cdist(template_head_ico3.source_positions_mm / 1e3, inner).min() > 4.5


def test_template_has_the_sensors_and_sources_that_were_asked_for(template_head_ico3: HeadModel) -> None:
    types = template_head_ico3.channels.types
    assert [types.count(kind) for kind in (ChannelType.GRAD, ChannelType.MAG, ChannelType.EEG)] == [204, 102, 60]
    assert template_head_ico3.n_sources == 1284
    assert template_head_ico3.leadfield().shape == (366, 1284)
    assert template_head_ico3.leadfield().dtype == np.float64
    for hemisphere, triangles in zip(template_head_ico3.hemispheres, template_head_ico3.source_triangles, strict=True):
        assert hemisphere.inflated is not None
        assert hemisphere.pial is not None
        assert hemisphere.sulc is not None
        assert len(hemisphere.white) == len(hemisphere.inflated) == len(hemisphere.pial) == len(hemisphere.sulc) == 10242
        assert len(triangles) == 1280
        assert triangles.max() == 641
    left, right = (h.white[:, 0].mean() for h in template_head_ico3.hemispheres)
    assert left < -20 < 20 < right


def test_gains_are_physical_and_no_source_is_blind(template_head_ico3: HeadModel) -> None:
    # 10 nA m on the cortex gives about 0.1 to 10 uV, 10 to 1000 fT and 1 to 500 fT/cm at the best sensor
    # (Hämäläinen et al. 1993, doi 10.1103/RevModPhys.65.413)
    for kind, low, high in ((ChannelType.EEG, 2.0, 3000.0), (ChannelType.MAG, 1e-8, 1e-4), (ChannelType.GRAD, 1e-7, 5e-3)):
        channels = template_head_ico3.channels
        gain = np.abs(template_head_ico3.leadfield(channels.pick(channels.of_type(kind)).names))
        best = gain.max(axis=0)
        assert best.min() > low, f"a source that no {kind} channel sees"
        assert best.max() < high


def test_superficial_sources_are_seen_by_eeg_at_least_as_well_as_deep_ones(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    inner = skull_and_scalp(3)[0][0]
    depth = cdist(head.source_positions_mm / 1e3, inner).min(axis=1)
    eeg = head.channels.pick(head.channels.of_type(ChannelType.EEG)).names
    # free orientation: the largest singular value, so that the orientation of the cortex plays no part
    free = head.forward["sol"]["data"][head.rows(eeg)].reshape(len(eeg), -1, 3)
    free = free - free.mean(axis=0)
    strength = np.linalg.svd(free.transpose(1, 0, 2), compute_uv=False)[:, 0]
    shallow, deep = strength[depth < np.quantile(depth, 0.2)], strength[depth > np.quantile(depth, 0.8)]
    assert np.median(shallow) > 1.1 * np.median(deep)
    assert shallow.min() > 0.2 * np.median(deep)


def test_meg_is_nearly_blind_to_one_orientation_and_eeg_is_not(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    ratios = {}
    for name, kinds in (("meg", (ChannelType.MAG,)), ("eeg", (ChannelType.EEG,))):
        names = [n for n, kind in zip(head.channels.names, head.channels.types, strict=True) if kind in kinds]
        free = head.forward["sol"]["data"][head.rows(names)].reshape(len(names), -1, 3).transpose(1, 0, 2)
        values, axes = np.linalg.svd(free, full_matrices=False)[1:]
        ratios[name] = np.median(values[:, 2] / values[:, 0])
        if name == "meg":  # and that orientation is the radial one
            centre = np.array([0.0, -0.015, 0.010])
            offsets = head.source_positions_mm / 1e3 - centre
            rotation = head.forward["mri_head_t"]["trans"][:3, :3]
            radial = (offsets / np.linalg.norm(offsets, axis=1, keepdims=True)) @ rotation.T
            cosine = np.abs(np.einsum("ij,ij->i", axes[:, 2], radial))
            assert np.median(cosine) > 0.85
    assert ratios["meg"] < 0.2
    assert ratios["eeg"] > 0.3


def test_meg_sensors_stand_off_the_scalp_and_electrodes_touch_it(template_head_ico3: HeadModel) -> None:
    vertices, triangles = skull_and_scalp(3)[2]
    # triangles sampled at corners, centres and middles of sides: nothing on them is farther than 5 mm from such a point
    sides = np.vstack([vertices[triangles[:, pair]].mean(axis=1) for pair in ([0, 1], [1, 2], [2, 0])])
    scalp = np.vstack([vertices, vertices[triangles].mean(axis=1), sides])
    head_to_mri = fsaverage_trans()
    info = template_head_ico3.info
    for channel, kind in zip(info["chs"], info.get_channel_types(), strict=True):
        place = channel["loc"][:3]
        if kind != "eeg":
            place = mne.transforms.apply_trans(info["dev_head_t"], place)
        off_mm = 1e3 * np.linalg.norm(scalp - mne.transforms.apply_trans(head_to_mri, place), axis=1).min()
        if kind == "eeg":
            assert off_mm < 5
        else:
            assert 14 < off_mm < 40


def test_chosen_vertices_have_the_leadfield_of_the_whole(template_head_ico3: HeadModel) -> None:
    some = build_template(spacing="ico5", vertices=([3, 17, 5000], [0, 9999]), meg=None, eeg_names=["EEG001", "EEG030"])
    assert [v.tolist() for v in some.vertices] == [[3, 17, 5000], [0, 9999]]
    assert some.ch_names == ("EEG001", "EEG030")
    whole = template_head_ico3.forward["sol"]["data"][template_head_ico3.rows(some.ch_names)].reshape(2, -1, 3)
    few = some.forward["sol"]["data"].reshape(2, -1, 3)
    np.testing.assert_allclose(few[:, [0, 1, 3]], whole[:, [3, 17, 642]], rtol=1e-4, atol=1e-4 * np.abs(whole).max())


def test_another_conductivity_is_another_head(template_head_ico3: HeadModel) -> None:
    # a better conducting skull lets more through: this is what makes a demo's truth another head than its solver's
    vertices = (list(range(40)), list(range(40)))
    other = build_template(spacing="ico3", vertices=vertices, meg=None, conductivity=(0.3, 0.012, 0.3), bem_ico=2)
    same = [*range(40), *range(642, 682)]
    theirs = np.linalg.norm(other.forward["sol"]["data"].reshape(60, -1, 3), axis=(0, 2))
    gain = template_head_ico3.forward["sol"]["data"][template_head_ico3.rows(other.ch_names)].reshape(60, -1, 3)
    ours = np.linalg.norm(gain[:, same], axis=(0, 2))
    assert other.fingerprint != template_head_ico3.fingerprint
    assert 1.1 < np.median(theirs / ours) < 2.5


@pytest.mark.sample
def test_todays_head_comes_from_the_recording(sample_data, template_head_ico3: HeadModel) -> None:
    raw = mne.io.read_raw_fif(sample_data / "sample_audvis_5s_raw.fif", verbose="ERROR")
    vertices = ([0, 1], [0, 1])
    head = build_template(spacing="ico3", vertices=vertices, info=raw.info)
    assert len(head.ch_names) == 363
    assert head.missing(["MEG 0143", "MEG 0113", "EEG 001"]) == ("MEG 0143",)
    np.testing.assert_allclose(head.info["dev_head_t"]["trans"], raw.info["dev_head_t"]["trans"])
    assert template_head_ico3.missing(["MEG 0143"]) == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"meg": "squid9000"}, "neuromag306"),
        ({"eeg": "no such cap"}, "mgh60"),
        ({"eeg_names": ["Cz"]}, "Cz"),
        ({"meg": None, "eeg": None}, "neither"),
        ({"spacing": "ico7"}, "ico5"),
        ({"bem_ico": 5}, "expected 2, 3 or 4"),
        ({"conductivity": (0.3, -1, 0.3)}, "three positive values"),
        ({"spacing": "ico3", "vertices": ([700], [1])}, "0 to 641"),
    ],
)
def test_what_cannot_be_built_is_said(arguments, said: str) -> None:
    with pytest.raises(HeadModelError, match=said):
        build_template(**arguments)


def test_electrodes_without_a_place_take_it_from_the_montage_or_are_named() -> None:
    info = mne.create_info(["Cz", "Fz", "Oz"], 500.0, "eeg")
    head = build_template(spacing="ico3", vertices=([0], [0]), info=info, eeg="standard_1005")
    assert head.ch_names == ("Cz", "Fz", "Oz")
    z = head.channels.positions[:, 2]
    assert z[0] == z.max(), "Cz is on top"
    with pytest.raises(HeadModelError, match="A17"):
        build_template(spacing="ico3", info=mne.create_info(["Cz", "A17"], 500.0, "eeg"), eeg="standard_1005")


def test_sensors_inside_the_head_are_refused() -> None:
    info = mne.channels.read_meg_canonical_info("neuromag")
    sunk = np.eye(4)
    sunk[2, 3] = -0.05
    info["dev_head_t"] = mne.Transform("meg", "head", sunk)
    with pytest.raises(HeadModelError, match="inside the template's scalp"):
        build_template(spacing="ico3", vertices=([0], [0]), info=info)
