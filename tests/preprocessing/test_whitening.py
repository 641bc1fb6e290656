from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rt_mmdf.core.blocks import Flag, SensorBlock
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.preprocessing.availability import runs_by_availability
from rt_mmdf.preprocessing.whitening import OperatorKey, OperatorSwitch, Whitening
from rt_mmdf.solvers.interface import Operator, Whitener

CHANNELS = Channels(("E1", "E2", "M1", "M2"), (ChannelType.EEG, ChannelType.EEG, ChannelType.MAG, ChannelType.MAG))
BOTH, EEG_ONLY = frozenset[Modality](), frozenset({Modality.MEG})


class Kernel:
    unit = "A m"

    def __init__(self, value: float) -> None:
        self.value = value
        self.n_sources = 1

    def __call__(self, window: np.ndarray, n_new: int) -> np.ndarray:
        return np.full((1, n_new), self.value, dtype=np.float32)


def key(bads: set[str] | None = None, missing: frozenset[Modality] = BOTH) -> OperatorKey:
    return OperatorKey.of(CHANNELS, bads or set(), missing)


def operator(value: float) -> Operator:
    """Whitener and kernel that carry the same number: a mixture of two would show."""
    return Operator(Whitener(CHANNELS, np.eye(4) * value, 4), Kernel(value), frozenset(CHANNELS.names))


def block(data: np.ndarray, flags: list[int], bads: set[str] | None = None) -> SensorBlock:
    t = np.arange(data.shape[1], dtype=np.float64)
    return SensorBlock(CHANNELS, data.astype(np.float32), t, np.array(flags, dtype=np.uint32), t, 0, frozenset(bads or ()))


def test_runs_cover_the_block_and_name_what_is_missing() -> None:
    e, m = int(Flag.EEG_MISSING), int(Flag.MEG_MISSING)
    runs = runs_by_availability(np.array([0, int(Flag.GAP), e, e, e | m, m], dtype=np.uint32))
    assert [(r.start, r.stop, set(r.missing)) for r in runs] == [
        (0, 2, set()),
        (2, 4, {Modality.EEG}),
        (4, 5, {Modality.EEG, Modality.MEG}),
        (5, 6, {Modality.MEG}),
    ]
    assert runs_by_availability(np.zeros(0, dtype=np.uint32)) == []


def test_a_key_forgets_what_makes_no_difference() -> None:
    assert key({"M1", "E1", "unknown"}, EEG_ONLY) == OperatorKey(frozenset({"E1"}), EEG_ONLY)


def test_an_operator_is_asked_for_once_and_used_when_it_comes() -> None:
    asked: list[OperatorKey] = []
    switch = OperatorSwitch(asked.append)
    assert [switch.select(key()) for _ in range(3)] == [(None, False)] * 3
    assert asked == [key()]
    switch.offer(key(), operator(1.0))
    prepared, wanted = switch.select(key())
    assert wanted
    assert prepared is not None
    assert prepared.operator.solver([], 1) == 1.0


def test_until_the_new_operator_is_built_the_last_one_is_used_and_flagged() -> None:
    switch = OperatorSwitch(lambda key: None)
    stage = Whitening(switch)
    data = np.ones((4, 2))
    switch.offer(key(), operator(1.0))
    (run,) = stage(block(data, [0, 0]))
    assert run.flags.tolist() == [0, 0]
    (run,) = stage(block(data, [0, 0], {"E1"}))
    assert run.operator is not None
    assert run.flags.tolist() == [int(Flag.OPERATOR_PENDING)] * 2
    switch.offer(key({"E1"}), operator(2.0))
    (run,) = stage(block(data, [0, 0], {"E1"}))
    assert run.flags.tolist() == [0, 0]
    assert (run.data == 2.0).all()
    assert run.operator is not None
    assert run.operator.solver(run.data, 2).tolist() == [[2.0, 2.0]]


def test_without_any_operator_for_what_is_there_columns_are_invalid() -> None:
    switch = OperatorSwitch(lambda key: None)
    stage = Whitening(switch)
    switch.offer(key(), operator(1.0))
    data = np.ones((4, 3))
    data[2:, 1:] = np.nan
    whole, eeg_only = stage(block(data, [0, int(Flag.MEG_MISSING), int(Flag.MEG_MISSING)]))
    assert whole.operator is not None
    assert eeg_only.operator is None
    assert np.isnan(eeg_only.data).all()
    assert (eeg_only.flags & Flag.INVALID).all()
    assert eeg_only.flags.dtype == np.uint32
    switch.offer(key(missing=EEG_ONLY), operator(3.0))
    _, eeg_only = stage(block(data, [0, int(Flag.MEG_MISSING), int(Flag.MEG_MISSING)]))
    np.testing.assert_array_equal(eeg_only.data, [[3, 3], [3, 3], [0, 0], [0, 0]])
    assert (eeg_only.start, eeg_only.stop) == (1, 3)


def test_the_operator_that_was_used_longest_ago_goes_first_and_is_asked_for_again() -> None:
    asked: list[OperatorKey] = []
    switch = OperatorSwitch(asked.append, capacity=2)
    keys = [key(), key({"E1"}), key({"E2"})]
    for i, one in enumerate(keys):
        switch.offer(one, operator(i))
        assert switch.select(one)[1]
    assert switch.select(keys[1])[1]
    assert asked == []
    assert not switch.select(keys[0])[1]
    assert asked == [keys[0]]
    with pytest.raises(ValueError, match="at least 1"):
        OperatorSwitch(asked.append, capacity=0)


def test_offers_that_are_never_selected_do_not_pile_up() -> None:
    switch = OperatorSwitch(lambda key: None, capacity=2)
    for i in range(10):
        switch.offer(OperatorKey(frozenset({str(i)}), BOTH), operator(i))
        switch.select(key())
    assert switch.n_kept <= 2


def test_a_build_that_failed_is_not_asked_for_again() -> None:
    asked: list[OperatorKey] = []
    switch = OperatorSwitch(asked.append)
    switch.select(key())
    switch.fail(key(), "no channel left")
    switch.select(key())
    assert asked == [key()]
    assert switch.failed == {key(): "no channel left"}


def test_a_build_that_failed_and_is_offered_after_all_has_not_failed_any_more() -> None:
    switch = OperatorSwitch(lambda wanted: None)
    switch.fail(key(), "no data")
    switch.fail(key({"E1"}), "no channel left")
    switch.offer(key(), operator(1.0))
    assert switch.failed == {key({"E1"}): "no channel left"}
    assert switch.select(key())[1]


def test_while_another_thread_offers_no_hop_mixes_two_operators() -> None:
    switch = OperatorSwitch(lambda key: None)
    stage = Whitening(switch)
    switch.offer(key(), operator(0.0))
    data = np.ones((4, 2))
    with ThreadPoolExecutor(1) as builder:
        work = builder.submit(lambda: [switch.offer(key(), operator(float(i))) for i in range(500)])
        seen = []
        while not work.done() or not seen:
            (run,) = stage(block(data, [0, 0]))
            assert run.operator is not None
            assert (run.data == run.operator.solver(run.data, 2)[0, 0]).all()
            seen.append(float(run.data[0, 0]))
        work.result()
    assert seen == sorted(seen)
    (run,) = stage(block(data, [0, 0]))
    assert run.data[0, 0] == 499.0


def test_what_was_built_in_advance_serves_until_the_exact_one_is_there() -> None:
    asked: list[OperatorKey] = []
    switch = OperatorSwitch(asked.append)
    without_eeg = frozenset({Modality.EEG})
    switch.offer(key(missing=without_eeg), operator(3.0))
    prepared, wanted = switch.select(key({"M2"}, missing=without_eeg))
    assert prepared is not None
    assert not wanted
    assert asked == [key({"M2"}, missing=without_eeg)]


def test_a_forgotten_request_is_made_again() -> None:
    asked: list[OperatorKey] = []
    switch = OperatorSwitch(asked.append)
    wanted = key({"M2"})
    switch.select(wanted)
    switch.select(wanted)
    assert asked == [wanted]
    switch.forget(wanted)
    switch.select(wanted)
    assert asked == [wanted, wanted]
