"""Streams on their own clocks come out on one grid; what is missing is marked and holds nobody."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rt_mmdf.alignment.grid import AlignedHop, Aligner, AlignmentSettings, StreamSpec
from rt_mmdf.alignment.resampler import FractionalResampler
from rt_mmdf.core.blocks import Flag, RawBlock
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.lsl.interface import ClockOffset

EEG, MEG = Modality.EEG, Modality.MEG
HOP = 10
FAR_PAST = -1e9  # a time at which nothing is late yet


def channels(n: int, kind: str) -> Channels:
    return Channels(tuple(f"{kind}{i}" for i in range(n)), (ChannelType(kind),) * n)


def aligner(sfreq_eeg: float = 500.0, sfreq_meg: float = 1000.0, **settings: object) -> Aligner:
    specs = [StreamSpec(EEG, channels(2, "eeg"), sfreq_eeg), StreamSpec(MEG, channels(3, "mag"), sfreq_meg)]
    return Aligner(specs, AlignmentSettings(**settings), HOP)


class Sender:
    """A stream whose samples are a sine of TRUE time, stamped by a clock of its own."""

    def __init__(self, modality: Modality, n: int, sfreq: float, seconds: float, offset: float = 0.0, drift: float = 0.0):
        self.modality, self.n, self.offset, self.drift = modality, n, offset, drift
        self.times = 5.0 + np.arange(round(seconds * sfreq)) / sfreq
        self.stamps = offset + (1 + drift) * self.times

    def clock(self, true_time: float, error: float = 0.0) -> ClockOffset:
        sender = self.offset + (1 + self.drift) * true_time
        return ClockOffset(sender, true_time - sender + error, 1e-4)

    def block(self, a: int, b: int, hz: float = 11.0, late_s: float = 0.0) -> RawBlock:
        wave = np.sin(2 * np.pi * hz * self.times[a:b])
        data = np.tile(wave, (self.n, 1)).astype(np.float32)
        return RawBlock(data, self.stamps[a:b], np.full(b - a, self.times[b - 1] + late_s), a)


def drain(subject: Aligner, now: float = FAR_PAST) -> list[AlignedHop]:
    hops = []
    while (hop := subject.advance(now)) is not None:
        hops.append(hop)
    return hops


def feed(subject: Aligner, senders: list[Sender], chunk_s: float = 0.02) -> list[AlignedHop]:
    """Deliver everything in order of time, with a clock measurement every 2 s."""
    hops: list[AlignedHop] = []
    rng = np.random.default_rng(0)
    start, end = 5.0, max(s.times[-1] for s in senders)
    done = dict.fromkeys((s.modality for s in senders), 0)
    for k in range(1, int((end - start) / chunk_s) + 2):
        now = start + k * chunk_s
        for sender in senders:
            if (k - 1) % round(2 / chunk_s) == 0:
                subject.add_offset(sender.modality, sender.clock(now, rng.normal(0, 3e-5)))
            a, b = done[sender.modality], int(np.searchsorted(sender.times, now))
            if b > a:
                subject.add(sender.modality, sender.block(a, b))
                done[sender.modality] = b
        hops += drain(subject, now)
    return hops


def phase_s(hops: list[AlignedHop], row: int, hz: float, from_s: float, to_s: float) -> float:
    """Delay of a channel against the sine of true time, seconds."""
    times = np.concatenate([h.block.times for h in hops])
    data = np.concatenate([h.block.data[row] for h in hops])
    chosen = (times >= 5.0 + from_s) & (times < 5.0 + to_s)
    window = np.hanning(int(chosen.sum()))
    projected = np.sum(window * data[chosen] * np.exp(-2j * np.pi * hz * times[chosen]))
    return float(np.angle(projected * 1j) / (2 * np.pi * hz))


@pytest.mark.parametrize(("sfreq_eeg", "drift"), [(500.0, 200e-6), (1000.0, -200e-6), (512.0, 50e-6)])
def test_two_clocks_are_aligned_to_a_tenth_of_a_millisecond(sfreq_eeg: float, drift: float) -> None:
    subject = aligner(sfreq_eeg)
    hops = feed(subject, [Sender(EEG, 2, sfreq_eeg, 40, 100.0, drift), Sender(MEG, 3, 1000.0, 40)])
    apart = [phase_s(hops, 0, 11.0, t, t + 1) - phase_s(hops, 2, 11.0, t, t + 1) for t in np.arange(30, 39, 0.5)]
    assert np.abs(apart).max() < 1e-4
    assert subject.report()[EEG].drift_ppm == pytest.approx(-drift * 1e6 / (1 + drift), abs=5)
    flags = np.concatenate([h.block.flags for h in hops])
    assert not (flags[HOP:] & ~np.uint32(Flag.CLOCK_UNCERTAIN)).any()


@hypothesis_settings(max_examples=15)
@given(
    eeg_cuts=st.lists(st.integers(1, 1999), max_size=12),
    meg_cuts=st.lists(st.integers(1, 3999), max_size=12),
    lost=st.integers(0, 60),
)
def test_the_cutting_of_the_streams_does_not_matter(eeg_cuts: list[int], meg_cuts: list[int], lost: int) -> None:
    def run(cuts: dict[Modality, list[int]]) -> list[AlignedHop]:
        subject, hops = aligner(), []
        for sender in (Sender(EEG, 2, 500.0, 4, 100.0, 1e-4), Sender(MEG, 3, 1000.0, 4)):
            subject.add_offset(sender.modality, sender.clock(5.0))
            kept = np.delete(np.arange(len(sender.times)), slice(1200, 1200 + lost))
            for a, b in pairwise(sorted({0, len(kept), *(c for c in cuts[sender.modality] if c < len(kept))})):
                block = sender.block(0, len(sender.times))
                piece = kept[a:b]
                subject.add(sender.modality, RawBlock(block.data[:, piece], block.stamps[piece], block.received[piece], a))
                hops += drain(subject)
        return hops

    whole, cut = run({EEG: [], MEG: []}), run({EEG: eeg_cuts, MEG: meg_cuts})
    assert len(cut) == len(whole) > 300
    for one, other in zip(whole, cut, strict=True):
        assert one.block.first == other.block.first
        np.testing.assert_array_equal(one.block.times, other.block.times)
        np.testing.assert_array_equal(one.block.data, other.block.data)
        np.testing.assert_array_equal(one.block.flags, other.block.flags)


def test_a_hole_is_marked_to_the_sample_and_never_interpolated() -> None:
    subject = aligner(1000.0, 1000.0, grid="samples")
    eeg, meg = Sender(EEG, 2, 1000.0, 4), Sender(MEG, 3, 1000.0, 4)
    for sender in (eeg, meg):
        subject.add_offset(sender.modality, sender.clock(5.0))
    subject.add(MEG, meg.block(0, 4000))
    subject.add(EEG, eeg.block(0, 1503))
    subject.add(EEG, eeg.block(1520, 4000))
    hops = drain(subject)
    times = np.concatenate([h.block.times for h in hops])
    flags = np.concatenate([h.block.flags for h in hops])
    data = np.concatenate([h.block.data for h in hops], axis=1)
    sample = np.round((times - 5.0) * 1000).astype(int)
    hole = (sample >= 1503) & (sample < 1520)
    assert hole.sum() == 17
    np.testing.assert_array_equal((flags & Flag.EEG_MISSING) != 0, hole)
    np.testing.assert_array_equal(np.isnan(data[0]), hole)
    assert np.isfinite(data[2:]).all()
    assert flags[sample == 1520] & Flag.GAP
    np.testing.assert_array_equal(data[0, ~hole], np.sin(2 * np.pi * 11.0 * eeg.times[sample[~hole]]).astype(np.float32))
    assert subject.report()[EEG].counts["lost"] == subject.report()[EEG].missing == 17


def test_around_a_hole_the_resampler_gives_only_what_it_has_all_samples_for() -> None:
    subject = aligner()
    eeg, meg = Sender(EEG, 2, 500.0, 4), Sender(MEG, 3, 1000.0, 4)
    for sender in (eeg, meg):
        subject.add_offset(sender.modality, sender.clock(5.0))
    subject.add(MEG, meg.block(0, 4000))
    subject.add(EEG, eeg.block(0, 1000))
    subject.add(EEG, eeg.block(1001, 2000))
    hops = drain(subject)
    flags = np.concatenate([h.block.flags for h in hops])
    data = np.concatenate([h.block.data for h in hops], axis=1)
    times = np.concatenate([h.block.times for h in hops])
    lost = (flags & Flag.EEG_MISSING) != 0
    np.testing.assert_array_equal(np.isnan(data[:2]).all(axis=0), lost)
    assert 30 < lost.sum() < 60  # the one sample, and the reach of the filter about it
    np.testing.assert_allclose(data[0, ~lost], np.sin(2 * np.pi * 11.0 * times[~lost]), atol=2e-3)


def test_a_dead_stream_is_marked_missing_holds_nobody_and_comes_back() -> None:
    subject = aligner(late_ms=100.0)
    eeg, meg = Sender(EEG, 2, 500.0, 12), Sender(MEG, 3, 1000.0, 12)
    for sender in (eeg, meg):
        subject.add_offset(sender.modality, sender.clock(5.0))
    log: list[tuple[float, AlignedHop]] = []
    for k in range(1, 600):
        now = 5.0 + 0.02 * k
        subject.add(MEG, meg.block(20 * (k - 1), 20 * k))
        if not 200 <= k < 400:  # silent from 4 s to 8 s after the start
            subject.add(EEG, eeg.block(10 * (k - 1), 10 * k))
        log += [(now, hop) for hop in drain(subject, now)]
        if 220 < k < 400:
            assert subject.wanted(EEG) == 0  # nobody need wait for its samples before looking at the other's
    by_hop = [(now - hop.block.times[-1], bool(hop.block.flags[-1] & Flag.EEG_MISSING)) for now, hop in log]
    times = np.array([hop.block.times[-1] - 5.0 for _, hop in log])
    waits, missing = np.array([w for w, _ in by_hop]), np.array([m for _, m in by_hop])
    assert not missing[(times > 1) & (times < 3.95)].any()
    assert missing[(times > 4.01) & (times < 7.99)].all()
    assert not missing[times > 8.2].any()
    assert waits[(times > 4.2) & (times < 7.9)].max() < 0.05  # not held by the dead stream
    assert waits[times > 1].max() < 0.15
    assert [hop.block.first for _, hop in log] == [HOP * k for k in range(len(log))]


def test_without_any_stream_time_goes_on_as_missing() -> None:
    subject = aligner(late_ms=100.0)
    eeg, meg = Sender(EEG, 2, 500.0, 2), Sender(MEG, 3, 1000.0, 2)
    for sender in (eeg, meg):
        subject.add_offset(sender.modality, sender.clock(5.0))
        subject.add(sender.modality, sender.block(0, len(sender.times)))
    alive = drain(subject, 7.0)
    later = drain(subject, 8.0)
    assert not alive[-1].block.flags.any()
    assert later[-1].block.times[-1] == pytest.approx(7.9, abs=0.011)
    assert all((hop.block.flags & Flag.EEG_MISSING & 1).all() and np.isnan(hop.block.data).all() for hop in later[3:])


def test_intended_time_is_physics_and_not_our_own_delay() -> None:
    subject = aligner()
    senders = [Sender(EEG, 2, 500.0, 6), Sender(MEG, 3, 1000.0, 6)]
    hops = feed(subject, senders)
    wait = np.array([hop.intended - hop.block.times[-1] for hop in hops])
    assert (wait >= subject.look_ahead_s - 1e-6).all()
    assert (wait <= subject.look_ahead_s + 0.02 + 1e-3).all()  # and at most one chunk


@pytest.mark.parametrize("first_piece", [1, 4, 9])
def test_a_block_that_came_in_two_pieces_is_one_block(first_piece: int) -> None:
    """Whoever pulls while a block is being sent gets a part of it at first: that the device did not make smaller blocks is
    no latency of the engine's."""
    intended = []
    for split in (0, first_piece):
        subject = aligner(250.0, 250.0)
        senders = [Sender(EEG, 2, 250.0, 4), Sender(MEG, 3, 250.0, 4)]
        hops: list[AlignedHop] = []
        for start in range(0, 1000, 10):
            for sender in senders:
                if start % 250 == 0:
                    subject.add_offset(sender.modality, sender.clock(5.0 + start / 250))
                whole = sender.block(start, start + 10, late_s=1e-4)
                if split:
                    received = whole.received.copy()
                    received[:split] -= 1e-4
                    whole = replace(whole, received=received)
                if split and start % 20:  # taken out of the ring one by one, too
                    subject.add(sender.modality, part_of(whole, 0, split))
                    subject.add(sender.modality, part_of(whole, split, 10))
                else:
                    subject.add(sender.modality, whole)
            hops += drain(subject)
        intended.append([hop.intended for hop in hops])
        assert len(hops) > 80
    np.testing.assert_allclose(intended[1], intended[0], atol=1e-6)


def part_of(block: RawBlock, start: int, stop: int) -> RawBlock:
    cut = slice(start, stop)
    return RawBlock(block.data[:, cut], block.stamps[cut], block.received[cut], block.first + start)


def test_pairing_samples_of_different_rates_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one sampling rate"):
        aligner(500.0, 1000.0, grid="samples")


def test_a_backlog_of_20_s_is_worked_through_without_a_hole() -> None:
    subject = aligner()
    eeg, meg = Sender(EEG, 2, 500.0, 24), Sender(MEG, 3, 1000.0, 24)
    for sender in (eeg, meg):
        subject.add_offset(sender.modality, sender.clock(5.0))
        subject.add(sender.modality, sender.block(0, round(len(sender.times) / 6)))
    hops = drain(subject)
    for sender in (eeg, meg):
        subject.add(sender.modality, sender.block(round(len(sender.times) / 6), len(sender.times)))
    hops += drain(subject)
    assert hops[-1].block.times[-1] > 5.0 + 23.9
    flags = np.concatenate([hop.block.flags for hop in hops])[1:]
    assert not (flags & ~np.uint32(Flag.CLOCK_UNCERTAIN)).any()  # one clock measurement does not tell 24 s


@pytest.mark.parametrize("lost_s", [3.0, 10.0, 30.0])
def test_a_hole_of_any_length_in_one_piece_of_data_is_a_hole(lost_s: float) -> None:
    subject = aligner(1000.0, 1000.0, grid="samples", late_ms=1e6)
    eeg, meg = Sender(EEG, 2, 1000.0, lost_s + 8), Sender(MEG, 3, 1000.0, lost_s + 8)
    for sender in (eeg, meg):
        subject.add_offset(sender.modality, sender.clock(5.0))
    n, lost = len(eeg.times), round(1000 * lost_s)
    kept = np.delete(np.arange(n), slice(4000, 4000 + lost))
    whole = eeg.block(0, n)
    subject.add(EEG, RawBlock(whole.data[:, kept], whole.stamps[kept], whole.received[kept], 0))
    subject.add(MEG, meg.block(0, n))
    hops = drain(subject)
    missing = np.concatenate([(hop.block.flags & Flag.EEG_MISSING) != 0 for hop in hops])
    assert subject.report()[EEG].counts["lost"] == lost
    if lost_s < 5:  # a longer hole than a stream keeps samples may cost some before it, marked like the hole
        assert missing.sum() == lost
    sample = np.round((np.concatenate([hop.block.times for hop in hops]) - 5.0) * 1000).astype(int)
    assert missing[(sample >= 4000) & (sample < 4000 + lost)].all()
    data = np.concatenate([hop.block.data[0] for hop in hops])
    np.testing.assert_allclose(data[~missing], np.sin(2 * np.pi * 11.0 * eeg.times[sample[~missing]]), atol=1e-6)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("step_s", [-3.0, -30.0, -0.6])
def test_a_sender_whose_clock_is_set_back_is_found_again(step_s: float, restarted: bool) -> None:
    subject = aligner(late_ms=100.0)
    eeg, meg = Sender(EEG, 2, 500.0, 60), Sender(MEG, 3, 1000.0, 60)
    subject.add_offset(EEG, eeg.clock(5.0))
    hops = []
    for k in range(1, 2500):
        now = 5.0 + 0.02 * k
        stepped = k > 250
        if restarted and k == 251:
            subject.renew(MEG, 1000.0, frozenset(), new_clock=False)
        if k % 50 == 1:
            subject.add_offset(MEG, ClockOffset(now + step_s * stepped, -step_s * stepped, 1e-4))
        block = meg.block(20 * (k - 1), 20 * k)
        subject.add(MEG, RawBlock(block.data, block.stamps + step_s * stepped, block.received, block.first))
        subject.add(EEG, eeg.block(10 * (k - 1), 10 * k))
        hops += drain(subject, now)
    missing = np.concatenate([(hop.block.flags & Flag.MEG_MISSING) != 0 for hop in hops])
    times = np.concatenate([hop.block.times for hop in hops]) - 5.0
    assert not missing[(times > 1) & (times < 4.9)].any()
    # the new offset counts at once where the sender was started anew, else when two measurements, 1 s apart, agree
    assert not missing[times > (5.5 if restarted else 15.0)].any()
    assert restarted or missing[(times > 5.3) & (times < 5.9)].all()
    data = np.concatenate([hop.block.data[2] for hop in hops])
    late = times > 20.0
    np.testing.assert_allclose(data[late], np.sin(2 * np.pi * 11.0 * (times[late] + 5.0)), atol=0.02)
    assert subject.report()[MEG].clock_steps >= 1


def test_a_stream_too_slow_for_the_look_ahead_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 100 Hz"):
        aligner(50.0, 1000.0)


@pytest.mark.parametrize("behind_s", [0.0, 0.02, 0.1])
def test_a_sender_whose_clock_was_set_ahead_is_not_trusted(behind_s: float) -> None:
    """Its samples come before their own time: wherever the grid meets them, it says so."""
    ahead = Sender(EEG, 2, 500.0, 8)
    ahead.stamps[ahead.times >= 8.0] += 1.0  # for which there is no measurement
    hops = feed(aligner(), [ahead, Sender(MEG, 3, 1000.0, 8 - behind_s)])
    times, flags = (np.concatenate([getattr(h.block, key) for h in hops]) for key in ("times", "flags"))
    said = flags & np.uint32(Flag.CLOCK_UNCERTAIN | Flag.EEG_MISSING)
    assert (said[times >= 8.0] != 0).all()
    assert not said[(times > 6.0) & (times < 7.9)].any()


@pytest.mark.parametrize(
    ("sfreq", "block", "jitter_ms"), [(250.0, 25, 1.0), (250.0, 50, 1.0), (500.0, 100, 0.5), (1000.0, 80, 1.0)]
)
def test_long_blocks_that_come_early_or_late_are_imaged_and_not_uncertain(
    sfreq: float, block: int, jitter_ms: float
) -> None:
    sender = Sender(EEG, 2, sfreq, block / sfreq * round(30 * sfreq / block))
    sender.stamps += 1e-3 * jitter_ms * np.repeat(np.random.default_rng(1).normal(size=len(sender.times) // block), block)
    hops = feed(aligner(sfreq), [sender, Sender(MEG, 3, 1000.0, 30)], chunk_s=block / sfreq)
    times, flags = (np.concatenate([getattr(hop.block, key) for hop in hops]) for key in ("times", "flags"))
    assert times[-1] > 34.0
    assert not (flags & np.uint32(Flag.EEG_MISSING | Flag.GAP))[times > 8.0].any()
    assert np.mean(flags[times > 10.0] != 0) < 0.02


@pytest.mark.parametrize("off_ms", [-2.8, -1.5, 1.5, 2.8])
def test_stamps_that_shift_by_less_than_a_sample_are_uncertain_until_they_are_followed(off_ms: float) -> None:
    """No hole can be seen in that, and a fit to a minute of stamps follows slowly: its own uncertainty does not tell."""
    sender = Sender(EEG, 2, 250.0, 12)
    sender.stamps[sender.times >= 11.0] += 1e-3 * off_ms
    hops = feed(aligner(250.0), [sender, Sender(MEG, 3, 1000.0, 12)])
    times, flags = (np.concatenate([getattr(h.block, key) for h in hops]) for key in ("times", "flags"))
    said = (flags & np.uint32(Flag.CLOCK_UNCERTAIN)) != 0
    assert not said[(times > 9.0) & (times < 11.0)].any()
    n_flagged = 0
    for t in np.arange(6.5, 11.0, 0.5):
        followed_ms = 1e3 * (phase_s(hops, 2, 11.0, t, t + 0.5) - phase_s(hops, 0, 11.0, t, t + 0.5))
        left_ms = abs(off_ms - followed_ms)
        window = said[(times >= 5.0 + t) & (times < 5.5 + t)]
        if left_ms > 1.2:
            assert window.all(), t
            n_flagged += 1
        elif left_ms < 0.4:
            assert not window.any(), t
    assert n_flagged >= 2


@hypothesis_settings(max_examples=15)
@given(first=st.integers(2000, 3000), n=st.integers(1, 60), value=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_samples_that_are_placed_by_counting_alone_say_so(first: int, n: int, value: float) -> None:
    """Nobody knows until the next usable stamp whether they were sent twice, or follow a hole."""
    sender = Sender(EEG, 2, 500.0, 8)
    sender.stamps[first : first + n] = value
    hops = feed(aligner(), [sender, Sender(MEG, 3, 1000.0, 8)])
    times, flags = (np.concatenate([getattr(h.block, key) for h in hops]) for key in ("times", "flags"))
    said = times[(flags & np.uint32(Flag.CLOCK_UNCERTAIN)) != 0]
    said = said[said > 7.0]  # before, the clocks are being learnt
    reach = FractionalResampler(500.0, 1000.0, 0.010)
    assert said[0] == pytest.approx(sender.times[first - reach.n_ahead], abs=0.002)
    assert said[-1] == pytest.approx(sender.times[first + n - 1 + reach.n_past], abs=0.002)
    assert len(said) == round((said[-1] - said[0]) * 1000) + 1


@pytest.mark.parametrize("back_s", np.arange(1.0, 1.02, 0.002))
def test_when_a_clock_is_set_right_the_samples_before_and_after_are_not_joined(back_s: float) -> None:
    """The grid may have come exactly as far in what was stamped ahead as what comes now: no sample is missing then."""
    sender = Sender(EEG, 2, 500.0, 10)
    ahead = (sender.times >= 7.0) & (sender.times < 9.0)
    sender.stamps[ahead] += back_s
    hops = feed(aligner(), [sender, Sender(MEG, 3, 1000.0, 10)])
    times, flags = (np.concatenate([getattr(h.block, key) for h in hops]) for key in ("times", "flags"))
    after = (times > 8.9) & (times < 9.6)
    assert (flags[after] & np.uint32(Flag.GAP)).any()


@pytest.mark.parametrize("back", [2, 7, 20])
@pytest.mark.parametrize("repeated", [True, False])
def test_samples_whose_stamps_were_seen_are_repeats_only_if_they_are_the_same(back: int, repeated: bool) -> None:
    """Twelve samples carry stamps of before. Those sent twice are dropped; of others nobody knows where they belong."""
    sender, n = Sender(EEG, 2, 500.0, 8), 12
    rng = np.random.default_rng(1)
    data = rng.normal(size=(2, len(sender.times))).astype(np.float32)
    at = np.arange(len(sender.times))
    if repeated:
        at = np.insert(at, 1500, np.arange(1500 - min(back, n), 1500))
    stamps, received, done = sender.stamps[at].copy(), np.maximum.accumulate(sender.times[at]), 0
    if not repeated:
        stamps[1500 : 1500 + n] -= back / 500.0
    subject, hops = aligner(), []
    other = Sender(MEG, 3, 1000.0, 8)
    for modality in (EEG, MEG):
        subject.add_offset(modality, ClockOffset(5.0, 0.0, 1e-4))
    for k in range(0, 400):
        now = 5.0 + 0.02 * (k + 1)
        part = slice(done, done := int(np.searchsorted(received, now)))
        if part.stop > part.start:
            block = RawBlock(data[:, at[part]], stamps[part], np.full(part.stop - part.start, now), part.start)
            subject.add(EEG, block)
        subject.add(MEG, other.block(20 * k, 20 * k + 20))
        hops += drain(subject, now)
    times, flags = (np.concatenate([getattr(h.block, key) for h in hops]) for key in ("times", "flags"))
    around = (times > 7.9) & (times < 8.2)
    holes = (flags & np.uint32(Flag.GAP)) != 0
    assert holes[around].any() == (not repeated)
    if not repeated:
        assert times[around & holes][0] <= 8.0 + 0.02
    assert not holes[(times > 6.0) & ~around].any()
