"""Nothing that comes from outside raises what nobody expects, and what is accepted is what the rest relies on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from .fuzz_targets import TARGETS

N_INPUTS = {"description": 200, "xdf, changed": 200, "xdf, made up": 200, "manifest": 200}
"""Examples of each; of the others, which are quicker, `N_OTHERS`."""
N_OTHERS = 400

pytest.importorskip("pyxdf")


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that overflow; what they become is checked
def test_made_up_inputs(name: str, fuzzed: Counter[str]) -> None:
    target, accepted = TARGETS[name], Counter[bool]()

    @given(target.strategy)
    @settings(max_examples=N_INPUTS.get(name, N_OTHERS), suppress_health_check=list(HealthCheck))
    def look(value: Any) -> None:
        accepted[target.check(value)] += 1

    look()
    fuzzed[name] += accepted.total()
    assert accepted[True], "every input was refused: the target no longer reaches what it is for"
    assert accepted[False] or name in ("text",), "no input was refused"
