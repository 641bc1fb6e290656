from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import StreamDescriptionError

kinds = st.lists(st.sampled_from(list(ChannelType)), max_size=12)


def channels(types: list[ChannelType], positions: bool = False, prefix: str = "C") -> Channels:
    at = np.arange(3.0 * len(types)).reshape(-1, 3) if positions else None
    return Channels(tuple(f"{prefix}{i}" for i in range(len(types))), tuple(types), at)


@given(types=kinds)
def test_imaged_channels_belong_to_one_modality_and_the_others_to_none(types: list[ChannelType]) -> None:
    own = channels(types)
    eeg, meg = own.of_modality(Modality.EEG), own.of_modality(Modality.MEG)
    imaged = {i for i, kind in enumerate(types) if kind in (ChannelType.EEG, ChannelType.MAG, ChannelType.GRAD)}
    assert set(eeg.tolist()) | set(meg.tolist()) == imaged
    assert not set(eeg.tolist()) & set(meg.tolist())
    assert own.modalities == tuple(m for m, rows in ((Modality.EEG, eeg), (Modality.MEG, meg)) if len(rows))
    assert all(types[i] is ChannelType.MAG for i in own.of_type(ChannelType.MAG))


@given(types=kinds, order=st.randoms(use_true_random=False))
def test_picking_by_name_brings_names_types_and_positions_along(types: list[ChannelType], order: object) -> None:
    own = channels(types, positions=True)
    names = list(own.names)
    order.shuffle(names)  # type: ignore[attr-defined]
    picked = own.pick(own.indices(names))
    assert picked.names == tuple(names)
    assert own.positions is not None
    assert picked.positions is not None
    for name, kind, position in zip(picked.names, picked.types, picked.positions, strict=True):
        at = own.names.index(name)
        assert kind is own.types[at]
        np.testing.assert_array_equal(position, own.positions[at])


def test_joining_keeps_what_is_known_of_positions() -> None:
    joined = channels([ChannelType.EEG] * 2, positions=True) + channels([ChannelType.MAG], prefix="M")
    assert joined.names == ("C0", "C1", "M0")
    assert joined.positions is not None
    assert np.isnan(joined.positions).all(axis=1).tolist() == [False, False, True]
    assert (channels([ChannelType.EEG]) + channels([ChannelType.MAG], prefix="M")).positions is None
    assert "M0" in joined
    assert "M1" not in joined
    with pytest.raises(KeyError):
        joined.indices(["M1"])


@pytest.mark.parametrize(
    ("names", "types", "positions", "said"),
    [
        (("A", "B"), (ChannelType.EEG,), None, "2 names but 1 types"),
        (("A", "A", "B"), (ChannelType.EEG,) * 3, None, r"more than once \(A\)"),
        (("A", "B"), (ChannelType.EEG,) * 2, np.zeros((3, 3)), r"\(2, 3\) is expected"),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(
    names: tuple[str, ...], types: tuple[ChannelType, ...], positions: np.ndarray | None, said: str
) -> None:
    with pytest.raises(StreamDescriptionError, match=said):
        Channels(names, types, positions)


def test_units_of_types() -> None:
    units = {kind.value: kind.si_unit for kind in ChannelType}
    assert units["eeg"] == units["eog"] == "V"
    assert units["mag"] == units["ref_meg"] == "T"
    assert units["grad"] == "T/m"
    assert units["misc"] == ""
