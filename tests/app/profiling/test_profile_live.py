"""The profiler over real LSL, beside a stranger's client that knows nothing of its stamps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rt_mmdf.app.profiling import run as run_module
from rt_mmdf.app.profiling.run import ProfileSettings, cases_of, run_profile
from rt_mmdf.core.errors import ArtefactError, ConfigurationError
from rt_mmdf.lsl.memory import MemoryTransport
from rt_mmdf.runtime.mailbox import Signal


@pytest.fixture
def bench(load_bench: Callable[[str], ModuleType]) -> ModuleType:
    return load_bench("profiler")


@pytest.mark.lsl
@pytest.mark.slow
def test_a_stranger_measures_the_same_hops(bench: ModuleType) -> None:
    """How fast this machine is today is no matter: matched by hop, every difference is accounted for."""
    found = bench.hop_by_hop("dSPM", seconds=3.0, sources="ico3", hop_ms=20.0)
    times, due = found.times, found.due
    assert len(times) > 80
    assert found.row.summary()["late"] == int((found.row.end_to_end_ms > found.row.budget_ms).sum())
    # the intended time, which the engine fits from stamps, is the one that the replay had planned; the engine knows blocks
    # only by its pulls, so where these did not come one by one it may be wrong by a block
    apart = np.abs(times.stamp("intended") - due)
    assert apart.max() < 0.01 + 3e-4
    exact = apart < 3e-4
    assert exact.mean() > 0.8
    # nobody hears an estimate before it is published, and no block is received before it is pushed
    assert (found.received > times.stamp("published")).all()
    assert (found.heard > times.stamp("published") - found.clock_uncertainty_s).all()
    assert (times.stamp("received") > found.pushed).all()
    order = [times.stamp(name) for name in ("received", "aligned", "preprocessed", "solved", "published")]
    assert all((np.diff(np.stack(order), axis=0) >= 0).ravel())
    # so the stranger's latency is the profiler's and the way to the stranger, and nothing else
    way = found.received - times.stamp("published")
    inside = 1e-3 * times.latency_ms("lateness") + way
    np.testing.assert_allclose((found.received - due)[exact], inside[exact], atol=3e-4)
    overhead = found.row.overhead
    assert 0 < overhead["cores"] < overhead["cores_at_1000_hops"]


class Stop(Exception):
    """Ends a profile as soon as it begins to measure."""


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, float, float | None]]]:
    """What would be measured, in order, and how often a replay would be started."""

    def plan(**given: Any) -> list[tuple[str, float, float | None]]:
        seen: list[tuple[str, float, float | None]] = []
        monkeypatch.setattr(run_module, "_replay", lambda settings, case, *rest: nullcontext(("replay", case.rate)))

        def measure(settings: Any, case: Any, transport: Any, prefix: str, name: str, replay: Any, *rest: Any) -> Any:
            seen.append((case.solver, case.hop_ms, replay[1]))
            return object()

        monkeypatch.setattr(run_module, "_measure", measure)
        rows = run_profile(ProfileSettings(**given), MemoryTransport(), keep_waiting=Signal().wait)
        assert len(rows) == len(seen)
        return seen

    return plan


def test_every_combination_is_a_row(planned: Callable[..., Any]) -> None:
    rows = planned(solvers=("dSPM", "MNE"), hop_ms=(10.0, 20.0), rates=(500.0, 1000.0))
    assert rows[:2] == [("dSPM", 10.0, 500.0), ("MNE", 10.0, 500.0)]
    assert len(rows) == len(set(rows)) == 8
    assert [rate for _, _, rate in rows] == 4 * [500.0] + 4 * [1000.0]  # one replay after the other


def test_models_run_on_each_backend_and_classical_inverses_once() -> None:
    cases = cases_of(ProfileSettings(solvers=("mmdf", "dSPM"), backends=("torch", "onnxruntime")))
    assert [(case.solver, case.backend) for case in cases] == [("mmdf", "torch"), ("mmdf", "onnxruntime"), ("dSPM", "auto")]
    assert cases[0].described == "mmdf on torch, hop 10 ms"
    assert run_module._configuration(ProfileSettings(solvers=("mmdf",)), cases[1], "p", "n").solver.backend == "onnxruntime"


def test_ctrl_c_keeps_what_was_measured(planned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    planned(solvers=("dSPM",))
    done: list[object] = []

    def measure(*given: Any) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(object())
        return done[0]

    monkeypatch.setattr(run_module, "_measure", measure)
    assert run_profile(ProfileSettings(solvers=("dSPM", "MNE")), MemoryTransport(), keep_waiting=Signal().wait) == done
    with pytest.raises(KeyboardInterrupt):
        run_profile(ProfileSettings(solvers=("dSPM",)), MemoryTransport(), keep_waiting=Signal().wait)


def test_too_many_rows_and_unknown_models_are_told_first() -> None:
    with pytest.raises(ConfigurationError, match="80 combinations"):
        cases_of(ProfileSettings(solvers=("dSPM",), hop_ms=tuple(range(1, 81))))
    with pytest.raises(ArtefactError, match="no-such-model"):
        cases_of(ProfileSettings(solvers=("no-such-model",)))


def test_a_recording_that_lacks_channels_is_told(tmp_path: Path) -> None:
    import mne

    info = mne.create_info(["E1", "E2", "E3"], 200.0, "eeg")
    path = tmp_path / "eeg-raw.fif"
    mne.io.RawArray(1e-6 * np.random.default_rng(0).standard_normal((3, 200)), info, verbose="ERROR").save(
        path, verbose="ERROR"
    )
    with pytest.raises(ConfigurationError, match=r"it has no MEG channels.*--modality eeg"):
        cases_of(ProfileSettings(solvers=("dSPM",), recording=path, modalities=("eeg+meg",)))
    assert [case.modalities for case in cases_of(ProfileSettings(solvers=("dSPM",), recording=path))] == ["eeg"]
