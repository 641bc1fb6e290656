"""Two profiles side by side: the interval holds what was put in, and only our files are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rt_mmdf.app.profiling.compare import compare, ratio_of
from rt_mmdf.app.profiling.report import write_report
from rt_mmdf.app.profiling.rows import Row
from rt_mmdf.core.errors import ConfigurationError

LATE = np.random.default_rng(3).gamma(6.0, 0.8, 1500)


def test_the_same_report_twice_does_not_differ(make_row: Callable[..., Row], tmp_path: Path) -> None:
    write_report([make_row(LATE)], "x", path := tmp_path / "a.json")
    for ratios in compare(path, path).rows.values():
        for ratio in ratios.values():
            assert ratio.ratio == 1.0
            assert ratio.low <= 1.0 <= ratio.high
            assert not ratio.differs


def test_twice_as_slow_is_seen_for_each_percentile(make_row: Callable[..., Row], tmp_path: Path) -> None:
    again = np.random.default_rng(4).permutation(LATE)
    write_report([make_row(LATE), make_row(LATE, solver="MNE")], "x", first := tmp_path / "a.json")
    write_report([make_row(2 * again), make_row(LATE, solver="LCMV")], "x", second := tmp_path / "b.json")
    found = compare(first, second)
    (ratios,) = found.rows.values()
    for ratio in (ratios["p50"], ratios["p90"], ratios["p99"]):
        assert ratio.low < 2.0 < ratio.high
        assert ratio.low < ratio.ratio < ratio.high
    assert ratios["p50"].differs
    assert ratios["p99"].differs
    assert [name.split(",")[0] for name in (*found.only_first, *found.only_second)] == ["MNE", "LCMV"]
    out = StringIO()
    Console(width=160, file=out).print(found.render(first, second))
    assert "Only in" in out.getvalue()


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(40):
        ratio = ratio_of(rng.gamma(6.0, 1.0, 400), rng.gamma(6.0, 1.0, 400), 0.5, rng)
        inside += ratio.low <= 1.0 <= ratio.high
    assert inside >= 33  # of 40 at 95 %: fewer than 33 come by chance once in 10,000 times


def test_too_few_hops_give_no_ratio() -> None:
    rng = np.random.default_rng(0)
    assert np.isnan(ratio_of(LATE[:50], LATE, 0.99, rng).ratio)
    few = ratio_of(LATE[:50], LATE, 0.5, rng)
    assert np.isfinite(few.ratio)
    assert np.isnan(few.low)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format 'list' seen"),
        ('{"format": "other"}', "format 'other' seen"),
        ('{"format": "rt_mmdf profile", "format_version": 99}', "format version 99 seen"),
        ('{"format": "rt_mmdf profile", "format_version": 1}', "damaged"),
        ('{"format": "rt_mmdf profile", "format_version": 1, "rows": [{"raw": {}}]}', "damaged"),
        ('{"format": "rt_mmdf profile", "format_version": 1, "rows": [{"raw": {"end_to_end_us": ["a"]}}]}', "damaged"),
        ('{"format": "rt_mmdf profile", "format_version": 1, "rows": 3}', "damaged"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(content: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=told):
        compare(path, path)


def test_reports_without_a_row_in_common_are_refused(make_row: Callable[..., Row], tmp_path: Path) -> None:
    write_report([make_row(LATE)], "x", first := tmp_path / "a.json")
    write_report([make_row(LATE, hop_ms=20.0)], "x", second := tmp_path / "b.json")
    with pytest.raises(ConfigurationError, match=r"no row of one is in the other.*hop 10 ms.*hop 20 ms"):
        compare(first, second)


def test_numbers_that_are_none_are_refused(make_row: Callable[..., Row], tmp_path: Path) -> None:
    write_report([make_row(LATE)], "x", path := tmp_path / "a.json")
    content = json.loads(path.read_text())
    content["rows"][0]["raw"]["end_to_end_us"][3] = None
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="damaged"):
        compare(path, path)
