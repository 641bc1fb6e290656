"""The budget: what can never keep up is refused or lowered, what is late falls back, and everything says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from threadpoolctl import threadpool_limits

from rt_mmdf.app.chain import CleanedHop, Imager
from rt_mmdf.app.fallback import Fallback
from rt_mmdf.app.settings import BudgetSettings, SessionSettings
from rt_mmdf.backends.torch_backend import one_thread
from rt_mmdf.cli.live import status_table
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.core.settings import validate_settings
from rt_mmdf.preprocessing.whitening import OperatorSwitch
from rt_mmdf.sinks.health import to_json
from rt_mmdf.solvers.linear import LinearSolver
from rt_mmdf.solvers.network import NetworkSolver

Lab = Any  # the fixture's class lives in conftest.py
FALLBACK, INVALID = np.uint32(Flag.FALLBACK), np.uint32(Flag.INVALID)
HOP_MS = 40.0


def never_the_same(path: Path) -> mne.io.BaseRaw:
    """A recording in which no sample comes twice, so that what is stale shows."""
    raw = mne.io.read_raw_fif(path, preload=True, verbose="ERROR")
    raw._data[:, 250:] *= np.linspace(1, 2, 250)
    return raw


@pytest.fixture
def content(small_content: Callable[..., dict[str, Any]], small_recording: Path, lab: Lab) -> dict[str, Any]:
    lab.publish_recording(never_the_same(small_recording))
    plain = small_content("a") | {"hop_ms": HOP_MS, "budget_ms": 50.0}
    return plain | {"preprocessing": {"bad_channels": {"enabled": False}, "filters": {"band_pass": {"high_hz": 40.0}}}}


@pytest.fixture
def costing(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> Callable[..., None]:
    """Lets a solver take so many milliseconds of the laboratory's clock for each call."""

    def slow(kind: type, cost: float | Callable[[], float]) -> None:
        image = kind.__call__  # type: ignore[operator]

        def call(self: Any, window: Any, n_new: int) -> Any:
            lab.clock.advance(1e-3 * (cost() if callable(cost) else cost))
            return image(self, window, n_new)

        monkeypatch.setattr(kind, "__call__", call)

    return slow


def with_model(content: dict[str, Any], models: Path, kind: str = "mmdf", **budget: Any) -> dict[str, Any]:
    plain = {key: value for key, value in content.items() if key != "head"}
    # one backend, whichever is faster in this moment: what is compared bit for bit must not depend on that
    return plain | {"solver": {"model": str(models / kind), "refresh_ms": 200, "backend": "torch"}, "budget": budget}


# before the start


def test_what_keeps_up_is_measured_and_left_alone(
    lab: Lab, content: dict[str, Any], costing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    costing(LinearSolver, 12.0)
    with caplog.at_level(logging.WARNING):
        session, estimates = lab.image(content)
    measured = session.status()["budget"]["measured"]
    assert measured["median_ms"] == pytest.approx(12.0, abs=1e-6)
    assert (measured["solver"], measured["hop_ms"], measured["n_hops"]) == ("dSPM", HOP_MS, 60)
    assert session.status()["budget"]["lowered"] == []
    assert "budget" not in caplog.text
    assert len(estimates) > 40
    assert not (np.concatenate([e.flags for e in estimates]) & FALLBACK).any()


def test_what_can_never_keep_up_is_refused_before_anything_is_opened(
    lab: Lab, content: dict[str, Any], costing: Any
) -> None:
    costing(LinearSolver, 55.0)
    with pytest.raises(ConfigurationError) as refused:
        lab.session(content)
    for part in ("hop_ms = 40", "dSPM takes 55.0 ms for a hop of 40 ms", "p99 55.0", "may_lower", "measure = false"):
        assert part in str(refused.value)
    assert len(lab.transport.resolve()) == 2, "only the two recordings are on the network"
    session = lab.session(content | {"budget": {"measure": False}})
    assert session.status()["budget"]["measured"] is None
    session.stop()


def test_a_machine_that_was_busy_for_a_moment_is_not_refused(lab: Lab, content: dict[str, Any], costing: Any) -> None:
    calls = iter(range(10**6))
    costing(LinearSolver, lambda: 55.0 if next(calls) < 37 else 5.0)  # two seconds of it
    session = lab.session(content)
    assert session.status()["budget"]["measured"]["mean_ms"] == pytest.approx(5.0)
    session.stop()


def test_a_budget_that_is_missed_now_and_then_is_a_warning(
    lab: Lab, content: dict[str, Any], costing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter(range(10**6))
    costing(LinearSolver, lambda: 60.0 if next(calls) % 10 == 0 else 5.0)  # as a model that looks at its window anew
    with caplog.at_level(logging.WARNING):
        session = lab.session(content)
    said = session.status()["budget"]["warning"]
    assert "p99 60.0" in said
    assert "50 ms" in said
    assert sum("budget" in record.message for record in caplog.records) == 1
    assert "lowered" not in caplog.text
    session.stop()


def test_nothing_is_lowered_that_would_not_keep_the_budget(lab: Lab, content: dict[str, Any], costing: Any) -> None:
    calls = iter(range(10**6))
    costing(LinearSolver, lambda: 60.0 if next(calls) % 10 == 0 else 5.0)
    session = lab.session(content | {"budget": {"may_lower": ["hop"]}})
    found = session.status()["budget"]
    assert (session.settings.hop_ms, found["lowered"]) == (HOP_MS, [])
    assert "p99 60.0" in found["warning"]
    session.stop()


def test_the_hop_is_lowered_where_that_is_allowed(
    lab: Lab, content: dict[str, Any], costing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    costing(LinearSolver, 45.0)
    with caplog.at_level(logging.WARNING):
        session, estimates = lab.image(content | {"window_ms": 60.0, "budget": {"may_lower": ["hop"]}})
    assert session.settings.hop_ms == 80.0
    assert {e.n_times for e in estimates} == {20}
    status = session.status()
    assert (status["hop_ms"], status["budget"]["lowered"]) == (80.0, ["hop_ms = 80"])
    assert session.outlets.streams[0].extra["engine/hop_ms"] == "80"
    assert "Lowered, as [budget] allows: hop_ms = 80" in caplog.text
    assert session.scorecard().as_dict()["budget"]["lowered"] == ["hop_ms = 80"]


def test_the_largest_hop_bounds_what_is_lowered(lab: Lab, content: dict[str, Any], costing: Any) -> None:
    costing(LinearSolver, 45.0)
    with pytest.raises(ConfigurationError, match=r"what \[budget\] may lower \(hop\) does not help"):
        lab.session(content | {"budget": {"may_lower": ["hop"], "largest_hop_ms": 60.0}})


def test_the_solver_is_lowered_where_that_is_allowed(
    lab: Lab, content: dict[str, Any], models: Path, costing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    costing(NetworkSolver, 55.0)
    with caplog.at_level(logging.WARNING):
        session, estimates = lab.image(with_model(content, models, may_lower=["solver", "hop"]))
    assert session.status()["budget"]["lowered"] == ["solver = MNE"]
    described = session.outlets.streams[0].extra
    assert (described["estimate/solver"], described["estimate/unit"]) == ("MNE", "A m")
    assert "tiny-mmdf takes 55.0 ms" in caplog.text
    assert session.scorecard().as_dict()["solver"] == "MNE"
    # true from the start on: it is the solver of the description, so nothing is flagged
    assert not (np.concatenate([e.flags for e in estimates]) & FALLBACK).any()


def test_the_order_is_the_one_that_was_asked_for(lab: Lab, content: dict[str, Any], models: Path, costing: Any) -> None:
    costing(NetworkSolver, 45.0)
    session = lab.session(with_model(content, models, may_lower=["hop", "solver"]))
    assert session.status()["budget"]["lowered"] == ["hop_ms = 80"]
    session.stop()


def test_measuring_leaves_no_trace_in_the_estimates(
    lab: Lab, content: dict[str, Any], models: Path, small_recording: Path
) -> None:
    """A model with a window keeps what it saw: the noise of the measurement must not be in it."""
    another = type(lab)()
    another.publish_recording(never_the_same(small_recording))
    _, measured = lab.image(with_model(content, models, "fusion"))
    _, plain = another.image(with_model(content, models, "fusion", measure=False))
    assert len(measured) == len(plain) > 40
    for one, other in zip(measured, plain, strict=True):
        np.testing.assert_array_equal(one.data, other.data)


# while it runs


@pytest.mark.parametrize("kind", ["mmdf", "fusion"])
def test_a_model_that_is_too_slow_falls_back_and_comes_back(
    kind: str, lab: Lab, content: dict[str, Any], models: Path, costing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Slow between 0.5 and 0.9 s: after 3 misses the fallback images, and 0.4 s after the last miss the model again."""
    began, cleaned, estimates, reports = lab.clock.now(), [], [], []
    costing(NetworkSolver, lambda: 90.0 if 0.5 < lab.clock.now() - began < 0.9 else 1.0)
    budget = {"when_late": "fallback", "misses": 3, "within_s": 2.0, "return_after_s": 0.4}
    session = lab.session(with_model(content, models, kind, **budget), on_estimate=estimates.append)
    began = lab.clock.now()
    session.engine.chain.taps.append(cleaned.append)
    lab.looks.append(lambda at: reports.append(session.status()["budget"]))
    with caplog.at_level(logging.WARNING):
        lab.run(session)

    fallen = [bool((e.flags & FALLBACK).all()) for e in estimates]
    assert fallen == [bool((e.flags & FALLBACK).any()) for e in estimates]
    changes = [i for i, (before, after) in enumerate(pairwise(fallen), start=1) if before != after]
    assert len(changes) == 2, "there and back"
    assert not fallen[0]
    assert not fallen[-1]
    assert session.engine.counts.skipped >= 1
    flagged = [e for e, own in zip(estimates, fallen, strict=True) if own]
    with threadpool_limits(1, "blas"), one_thread():  # as the session has it: more threads add up in another order
        check_against_the_fallback(session, flagged, cleaned)
        check_against_the_model(session, estimates[changes[1] :], cleaned)
    nothing_zero_or_stale(estimates)
    # said: in the log once a change, in the health, in the scorecard, in the description, to a person
    said = [record.getMessage() for record in caplog.records if record.name == "rt_mmdf.app.fallback"]
    assert len(said) == 2
    assert "MNE images in place of tiny-" in said[0]
    assert "again" in said[1]
    assert [before["fallback"]["active"] for before in reports].count(True) > 3
    assert reports[-1]["fallback"]["changes"] == 2
    assert reports[-1]["fallback_hops"] == sum(fallen)
    assert to_json(session.status())
    card = session.scorecard()
    assert card.as_dict()["budget"]["fallback_hops"] == sum(fallen)
    out = StringIO()
    Console(width=160, file=out).print(card.render(), status_table(session.status()))
    assert f"{sum(fallen)} hops imaged with MNE, 2 changes" in out.getvalue()
    described = session.outlets.streams[0].extra
    assert (described["engine/fallback"], described["estimate/unit"]) == ("MNE", "A m")
    assert "FALLBACK=256" in described["flags"]


def imager_of(session: Any, imaging: Any) -> Imager:
    """One of its own, with operators that were built anew."""
    switch = OperatorSwitch(lambda key: None)
    switch.offer(imaging.full_key(), imaging.build(imaging.full_key()))
    length = session.engine.chain.imager.window_length
    return Imager(switch, n_channels=len(imaging.channels), n_sources=imaging.head.n_sources, window=length)


def check_against_the_fallback(session: Any, flagged: list[SourceEstimate], cleaned: list[CleanedHop]) -> None:
    """Bit for bit what the kernel alone gives for the same cleaned samples."""
    imaging, hops = session.fallback.operators.imaging, {hop.number: hop.block for hop in cleaned}
    assert imaging.solver_name == "MNE"
    imager = imager_of(session, imaging)
    assert flagged
    for estimate in flagged:
        np.testing.assert_array_equal(estimate.data, imager(hops[estimate.hop])[0])
        assert estimate.unit == imaging.solver.unit == "A m"


def check_against_the_model(session: Any, after: list[SourceEstimate], cleaned: list[CleanedHop]) -> None:
    """Bit for bit as if the model had seen every sample and begun to image where it came back."""
    imager = imager_of(session, session.imaging)
    wanted = {estimate.hop: estimate for estimate in after}
    assert len(wanted) > 3
    for hop in cleaned:
        data, _ = imager(hop.block, image=hop.number >= after[0].hop)
        if hop.number in wanted:
            np.testing.assert_array_equal(wanted[hop.number].data, data)


def nothing_zero_or_stale(estimates: list[SourceEstimate]) -> None:
    for before, after in pairwise(estimates):
        assert after.hop > before.hop
        assert after.times[0] > before.times[-1]
        assert not np.array_equal(after.data, before.data)
    for estimate in estimates[1:]:  # the very first sample behind a filter is zero
        if not (estimate.flags & INVALID).any():
            assert (np.abs(estimate.data).max(axis=0) > 0).all()


@pytest.mark.parametrize("kind", ["mmdf", "fusion"])
@pytest.mark.parametrize(("largest_ms", "keeps_up"), [(400.0, True), (80.0, False)])
def test_what_waits_is_imaged_in_one_call_and_is_what_it_would_have_been(
    kind: str,
    largest_ms: float,
    keeps_up: bool,
    lab: Lab,
    content: dict[str, Any],
    models: Path,
    costing: Any,
    small_recording: Path,
) -> None:
    """Calls of 150 ms, whatever they hold, for 0.4 s: hops of 40 ms wait four at a time."""
    quick = type(lab)()
    quick.publish_recording(never_the_same(small_recording))
    wanted = {e.hop: e for e in quick.image(with_model(content, models, kind, measure=False))[1]}
    began, cleaned, estimates = lab.clock.now(), [], []
    costing(NetworkSolver, lambda: 150.0 if 0.5 < lab.clock.now() - began < 0.9 else 1.0)
    budget = {"when_late": "join", "largest_hop_ms": largest_ms, "measure": False}
    session = lab.session(with_model(content, models, kind, **budget), on_estimate=estimates.append)
    began = lab.clock.now()
    session.engine.chain.taps.append(cleaned.append)
    lab.run(session)
    counts = session.engine.counts
    assert session.status()["budget"]["joined_hops"] == counts.joined > 3
    assert (counts.skipped == 0) is keeps_up
    assert [hop.number for hop in cleaned] == list(range(len(cleaned)))
    assert counts.hops == len(estimates) + counts.skipped
    nothing_zero_or_stale(estimates)
    for estimate in estimates:
        assert estimate.n_times == 10
        if keeps_up or kind == "mmdf":  # what a window's network makes of it depends on which windows it was shown
            truth = wanted[estimate.hop].data
            np.testing.assert_allclose(estimate.data, truth, rtol=0, atol=1e-4 * np.nanmax(np.abs(truth)))


def test_without_a_fallback_it_skips_and_counts(lab: Lab, content: dict[str, Any], models: Path, costing: Any) -> None:
    began = lab.clock.now()
    costing(NetworkSolver, lambda: 90.0 if lab.clock.now() - began > 0.5 else 1.0)
    session = lab.session(with_model(content, models, measure=False))
    began = lab.clock.now()
    lab.run(session)
    assert session.engine.counts.skipped > 3
    assert session.engine.counts.fallback == 0
    assert session.fallback is None
    assert session.status()["budget"]["fallback"] is None
    assert "engine/fallback" not in session.outlets.streams[0].extra


def test_streams_that_stall_are_not_the_models_fault(lab: Lab, content: dict[str, Any], models: Path) -> None:
    """MEG ends halfway: hops wait for it until it is given up, and are late by that."""
    outlet, data, times, stamps = lab._sending[1]
    lab._sending[1] = (outlet, data[:200], times[:200], stamps)
    content = with_model(content, models, when_late="fallback", misses=2, return_after_s=0.5, measure=False)
    estimates: list[SourceEstimate] = []
    session = lab.session(content, on_estimate=estimates.append)
    lab.run(session)
    assert session.engine.counts.skipped > 2
    assert (estimates[-1].flags & np.uint32(Flag.MEG_MISSING)).all()
    assert session.engine.counts.fallback == 0


# the rule


def rule(**changed: Any) -> Fallback:
    operators = SimpleNamespace(imaging=SimpleNamespace(solver_name="MNE"))
    return Fallback(BudgetSettings(**changed), operators, "model")  # type: ignore[arg-type]


@given(missed=st.lists(st.booleans(), max_size=300), misses=st.integers(1, 6))
def test_it_falls_back_after_the_stated_misses_and_returns_after_the_stated_time(missed: list[bool], misses: int) -> None:
    """Told from the definition: hops are 10 ms apart."""
    fallback = rule(misses=misses, within_s=0.2, return_after_s=0.3)
    active, recent, clean, wait, changed, n = False, [], 0.0, 0.3, 0.0, 0
    for k, miss in enumerate(missed):
        now = 0.01 * k
        if active:
            clean = now if miss else clean
            if now - clean >= wait:
                active, changed, n = False, now, n + 1
        else:
            recent = [*recent, now][-misses:] if miss else recent
            if len(recent) == misses and now - recent[0] <= 0.2:
                wait = min(2 * wait, 16 * 0.3) if n and now - changed <= wait else 0.3
                active, clean, changed, n, recent = True, now, now, n + 1, []
        assert fallback.note(miss, now) == active
    assert fallback.status()["changes"] == n


def test_each_return_that_fails_makes_the_next_wait_longer() -> None:
    fallback, now, waits = rule(misses=1, within_s=1.0, return_after_s=1.0), 0.0, []
    for _ in range(7):
        assert fallback.note(True, now)
        since = now
        while fallback.note(False, now):
            now += 0.125
        waits.append(now - since)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]


def test_inf_stays() -> None:
    fallback = rule(misses=1, return_after_s=float("inf"))
    assert fallback.note(True, 0.0)
    assert fallback.note(False, 1e9)


# settings


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"budget_ms": 0}, "budget_ms"),
        ({"budget_ms": -1}, "budget_ms"),
        ({"budget": {"may_lower": ["solver"]}}, "one matrix product already"),
        ({"budget": {"when_late": "fallback"}}, "solver.method = 'dSPM'"),
        ({"budget": {"may_lower": ["chunk"]}}, "may_lower"),
        ({"budget": {"fallback": "dSPM"}}, "fallback"),  # another unit than the models'
        ({"budget": {"misses": 0}}, "misses"),
        ({"budget": {"slow": True}}, "unknown key"),
    ],
)
def test_settings_that_make_no_sense_are_told(budget: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        validate_settings({"acquisition": {"eeg": {"name": "a"}}} | budget, SessionSettings, where="here")
