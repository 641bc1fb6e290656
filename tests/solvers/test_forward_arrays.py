from __future__ import annotations

import numpy as np
import pytest

from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import HeadModelError, SolverError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
from rt_mmdf.headmodel.whitener import Whitener, make_whitener
from rt_mmdf.networks.interface import EEG, GRAD, MAG
from rt_mmdf.solvers.forward_arrays import forward_arrays, sensor_layout


def whitener_of(head: HeadModel, channels: Channels, used: list[str]) -> Whitener:
    return make_whitener(channels, used, head.info, ad_hoc_noise_cov(head.channels))


def test_arrays_are_those_of_the_whitener_in_its_order(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    order = np.random.default_rng(0).permutation(len(head.ch_names))[:200]
    channels = head.channels.pick(order)
    used = list(channels.names[5:])
    whitener = whitener_of(head, channels, used)
    arrays = forward_arrays(head, whitener, used)
    expected = whitener.matrix @ head.leadfield(channels.names) * 1e-9  # of 1 nA m
    np.testing.assert_allclose(arrays.leadfield, expected, rtol=1e-6)
    assert arrays.leadfield.dtype == np.float32
    assert not arrays.leadfield[:5].any()
    np.testing.assert_array_equal(arrays.used, np.arange(200) >= 5)
    assert arrays.rank == whitener.rank == 194
    codes = {ChannelType.EEG: EEG, ChannelType.MAG: MAG, ChannelType.GRAD: GRAD}
    assert arrays.kinds.tolist() == [codes[kind] for kind in channels.types]
    np.testing.assert_array_equal(arrays.layout, sensor_layout(head)[order])
    # of single precision, millimetres
    np.testing.assert_allclose(arrays.positions_mm, head.source_positions_mm, atol=1e-4)


def test_the_mesh_joins_neighbours_of_one_hemisphere(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    arrays = forward_arrays(head, whitener_of(head, head.channels, list(head.ch_names)), head.ch_names)
    assert arrays.n_left == 642
    assert set(arrays.triangles.ravel()) == set(range(1284))
    left = arrays.triangles < arrays.n_left
    assert (left.all(axis=1) | ~left.any(axis=1)).all()
    a, b = arrays.positions_mm[arrays.triangles[:, 0]], arrays.positions_mm[arrays.triangles[:, 1]]
    assert np.linalg.norm(a - b, axis=1).max() < 25  # ico-3: 11 mm on average


def test_the_layout_is_the_head_from_above(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    layout = sensor_layout(head)
    is_eeg = np.array([kind is ChannelType.EEG for kind in head.channels.types])
    for rows in (is_eeg, ~is_eeg):
        radius = np.linalg.norm(layout[rows], axis=1)
        assert radius.max() == pytest.approx(1)
        assert radius.min() < 0.2
    # electrodes are in head coordinates: x to the right, y to the nose
    assert head.channels.positions is not None
    eeg = head.channels.positions[is_eeg]
    np.testing.assert_array_equal(np.sign(layout[is_eeg][:, 0]), np.sign(eeg[:, 0]))
    assert np.corrcoef(layout[is_eeg][:, 1], eeg[:, 1])[0, 1] > 0.9
    # the three sensors of an element lie at one place; magnetometers do not
    meg = layout[~is_eeg].reshape(-1, 3, 2)
    np.testing.assert_allclose(meg, meg[:, :1] + np.zeros((1, 3, 1)), atol=1e-3)
    mags = layout[[kind is ChannelType.MAG for kind in head.channels.types]]
    apart = np.linalg.norm(mags[:, None] - mags, axis=2) + 2 * np.eye(len(mags))
    assert apart.min() > 0.05


def test_what_cannot_be_imaged_is_refused(template_head_ico3: HeadModel) -> None:
    head = template_head_ico3
    channels = head.channels.pick(range(5))
    whitener = whitener_of(head, channels, list(channels.names))
    with pytest.raises(SolverError, match="none of the 5 channels is used"):
        forward_arrays(head, whitener, ())
    eog = Channels(("EOG 061",), (ChannelType.EOG,))
    with pytest.raises(SolverError, match="EOG 061"):
        forward_arrays(head, Whitener(eog, np.eye(1), 1), ("EOG 061",))
    stranger = Channels(("MEG 9999",), (ChannelType.MAG,))
    with pytest.raises(HeadModelError, match="MEG 9999"):
        forward_arrays(head, Whitener(stranger, np.eye(1), 1), ("MEG 9999",))
