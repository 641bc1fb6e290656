"""How many made-up inputs the parsers of what comes from outside have stood, and how long the slowest took.

    python tools/bench/fuzz.py --seconds 60 --report tools/bench/fuzz.json
    pip install -e ".[fuzz]" && python tools/bench/fuzz.py --seconds 60 --engine atheris --target "xdf, changed"

The targets and what is held of each are in tests/security/fuzz_targets.py; the gate runs a few hundred inputs of each. Here
each has a process of its own for so many seconds. `hypothesis` draws at random, with another seed for every 200 inputs;
`atheris` (libFuzzer) lets the branches of rt_mmdf that an input reaches lead it to the next. An input that raises what no
docstring names ends its target with the error, which stands in the report. The seconds count from the first input and go on
to the end of the last 200.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from machine import machine

TARGETS = Path(__file__).parents[2] / "tests" / "security" / "fuzz_targets.py"
BATCH = 200
SLOW_S = 60.0  # an input that takes longer hangs, for libFuzzer
SPARE_S = 120.0


def load_targets() -> dict[str, Any]:
    """Of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location("fuzz_targets", TARGETS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_targets"] = module
    spec.loader.exec_module(module)
    targets: dict[str, Any] = module.TARGETS
    return targets


class Counted:
    """A target that keeps figures, and writes them down now and then: libFuzzer ends the process by itself."""

    def __init__(self, check: Any, report: Path) -> None:
        self._check, self._report = check, report
        self.inputs = self.accepted = 0
        self.slowest_s = 0.0
        self.error = ""
        self._began = self._written = time.monotonic()

    def __call__(self, value: Any) -> None:
        began = time.perf_counter()
        try:
            self.accepted += self._check(value)
        except BaseException:
            self.error = f"{traceback.format_exc(limit=-4)}\ninput: {value!r}"[:4000]
            self.write()
            raise
        self.inputs += 1
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
        if time.monotonic() - self._written > 0.5:
            self.write()

    def write(self) -> None:
        self._written = time.monotonic()
        content = {
            "inputs": self.inputs,
            "accepted": self.accepted,
            "refused": self.inputs - self.accepted,
            "seconds": round(self._written - self._began, 1),
            "slowest_ms": round(1e3 * self.slowest_s, 1),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "error": self.error,
        }
        self._report.write_text(json.dumps(content))


def child(name: str, engine: str, seconds: float, report: Path) -> None:
    """One target; its figures go to `report`."""
    if engine == "atheris":
        atheris: Any = importlib.import_module("atheris")
        with atheris.instrument_imports(include=["rt_mmdf"]):
            targets = load_targets()
    else:
        targets = load_targets()
    from hypothesis import HealthCheck, Phase, given, seed, settings

    warnings.simplefilter("ignore")
    target = targets[name]
    counted = Counted(target.check, report)
    quietly = settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    if engine == "atheris":
        test = quietly(given(target.strategy)(lambda value: counted(value)))
        atheris.Setup(
            [sys.argv[0], f"-max_total_time={seconds:.0f}", "-max_len=4096", f"-timeout={SLOW_S:.0f}", "-rss_limit_mb=4096"],
            test.hypothesis.fuzz_one_input,
        )
        atheris.Fuzz()
        return
    began = time.monotonic()
    for number in itertools.count(int.from_bytes(os.urandom(4), "little")):
        seed(number)(quietly(given(target.strategy)(lambda value: counted(value))))()
        if time.monotonic() - began >= seconds:
            break
    counted.write()


def run(name: str, engine: str, seconds: float) -> dict[str, Any]:
    """A target in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, __file__, "--child", name, "--engine", engine, "--seconds", str(seconds)]
        done = subprocess.run(
            [*command, "--report", str(report)],
            cwd=folder,  # libFuzzer leaves its findings where it stands
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + SPARE_S,
            check=False,
        )
        figures: dict[str, Any] = json.loads(report.read_text()) if report.is_file() else {"inputs": 0}
        if done.returncode and not figures.get("error"):
            figures["error"] = done.stderr[-2000:]
        return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], default="hypothesis")
    parser.add_argument("--target", action="append", help="one of them; repeat for more; all by default")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child, given.engine, given.seconds, given.report)
        return 0
    figures: dict[str, dict[str, Any]] = {}
    if given.target and given.report is not None and given.report.is_file():  # what is not run now keeps its figures
        figures = json.loads(given.report.read_text(encoding="utf-8"))["targets"]
    figures |= {name: run(name, given.engine, given.seconds) for name in given.target or load_targets()}
    result = {
        "engine": given.engine,
        "version": importlib.metadata.version(given.engine),
        "inputs": sum(own["inputs"] for own in figures.values()),
        "errors": sum(bool(own.get("error")) for own in figures.values()),
        "targets": figures,
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    if given.report is not None:
        given.report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
