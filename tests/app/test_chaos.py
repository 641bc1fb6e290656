"""What goes wrong at random in a replay: every estimate is right or flagged, and nothing breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rt_mmdf.acquisition.chaos import DRAWN, ChaosPlan, Fault, FaultKind
from rt_mmdf.core.channels import Modality
from rt_mmdf.headmodel.head import HeadModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning:mne")]

SEEDS, SECONDS = 20, 14.0
EEG, MEG = Modality.EEG, Modality.MEG


@pytest.fixture(scope="module")
def bench(load_bench: Callable[[str], ModuleType]) -> ModuleType:
    return load_bench("chaos")


@pytest.fixture(scope="module")
def arena(bench: ModuleType, template_head_ico3: HeadModel) -> Any:
    return bench.Arena(template_head_ico3, seconds=SECONDS)


@pytest.fixture(scope="module")
def tolerance(bench: ModuleType, arena: Any) -> float:
    return float(bench.tolerance_of(arena))


def told(verdicts: list[Any]) -> str:
    return "\n".join(f"seed {v.seed}: {v}" for v in verdicts if not v.passed)


def test_twenty_seeds_have_every_kind_of_fault(bench: ModuleType, arena: Any) -> None:
    plans = [bench.draw_plan(arena.chaos(seed)) for seed in range(SEEDS)]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(DRAWN)


@pytest.mark.parametrize("first", range(0, SEEDS, 5))
def test_twenty_seeds(bench: ModuleType, arena: Any, tolerance: float, first: int) -> None:
    assert tolerance < 0.06
    verdicts = [bench.try_seed(arena, seed, tolerance) for seed in range(first, first + 5)]
    assert all(v.passed for v in verdicts), told(verdicts)
    assert bench.shared_unflagged(verdicts) >= bench.LEAST_UNFLAGGED
    unflagged = sum(v.samples - v.flagged for v in verdicts)
    assert unflagged > 0.5 * sum(v.samples for v in verdicts)  # flagging everything is not a pass
    assert sum(v.not_yet_seen for v in verdicts) < 0.01 * unflagged
    most = {"columns": 4096, "offsets": 256, "ring": 2500, "operators": 8, "undecided": 500, "waiting": 64}
    for v in verdicts:
        for name, size in v.sizes.items():
            assert size <= most[name.split("_")[-1]], name


def judged(bench: ModuleType, arena: Any, tolerance: float, *faults: Fault) -> tuple[Any, Any]:
    """What becomes of faults that are given, not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rt_mmdf.acquisition.replay.draw_plan", lambda settings: ChaosPlan(0, tuple(sorted(faults))))
        run = arena.run(arena.chaos(0), max(SECONDS, max(f.end_s for f in faults) + 5.0))
    return run, bench.judge(arena, run, 0, tolerance)


def test_the_judge_is_no_yes_man(bench: ModuleType, arena: Any, tolerance: float) -> None:
    """An estimate that is wrong and unflagged, a flag that stays, a stretch that is flagged for nothing: each fails."""
    run, verdict = judged(bench, arena, tolerance, Fault(5.0, FaultKind.SILENT, EEG, 1.0))
    assert verdict.passed
    assert verdict.flagged > 0
    late = run.times > run.t0 + 11.0
    run.flags[late] |= 64
    assert bench.judge(arena, run, 0, tolerance).late_flags == late.sum()
    assert not bench.judge(arena, run, 0, tolerance).passed
    run.flags[late] = 0
    assert bench.judge(arena, run, 0, tolerance).passed
    at = int(np.flatnonzero(late)[0])
    run.data[:, at] *= 1.1
    changed = bench.judge(arena, run, 0, tolerance)
    assert (changed.wrong, changed.passed) == (1, False)
    run.flags[at - 250 : at + 1] |= 64
    assert bench.judge(arena, run, 0, tolerance).wrong == 0
    run.flags[:] = 0
    assert bench.judge(arena, run, 0, tolerance).wrong > 100  # MEG alone is not both


@pytest.mark.parametrize("modality", list(Modality))
def test_a_stall_of_20_s_and_its_burst(bench: ModuleType, arena: Any, tolerance: float, modality: Modality) -> None:
    _, verdict = judged(bench, arena, tolerance, Fault(5.0, FaultKind.STALL, modality, 20.0))
    assert verdict.passed, verdict
    assert verdict.unaffected_unflagged > 0.95


def test_both_streams_gone_at_once_come_back(bench: ModuleType, arena: Any, tolerance: float) -> None:
    gone = [Fault(5.0, FaultKind.VANISH, EEG, 2.0), Fault(5.0, FaultKind.STALL, MEG, 2.0)]
    _, verdict = judged(bench, arena, tolerance, *gone)
    assert verdict.passed, verdict


def test_what_has_run_once_runs_the_same_again(bench: ModuleType, arena: Any) -> None:
    one, two = (arena.run(arena.chaos(7), 8.0) for _ in range(2))
    np.testing.assert_array_equal(one.data, two.data)
    np.testing.assert_array_equal(one.flags, two.flags)


def test_a_network_under_chaos(bench: ModuleType, template_head_ico3: HeadModel, models: Path) -> None:
    """One whose estimate of an instant depends on the channels of that instant alone, as the judge needs it."""
    content = {"solver": {"model": str(models / "mmdf")}}
    arena = bench.Arena(template_head_ico3, content, seconds=SECONDS, kinds=("eeg", "mag", "grad"))
    verdicts = [bench.try_seed(arena, seed, bench.tolerance_of(arena)) for seed in (2, 6)]
    assert all(v.passed for v in verdicts), told(verdicts)
    assert all(v.flagged < 0.6 * v.samples for v in verdicts)
