"""Ceiling rows: windowed Bayesian solvers of the package invertmeeg, in the environment of the one who evaluates.

They see a second of data before and after the instant and take seconds for each case: no competitors of what runs in real
time, but a bound to compare it with. The package is under the GPL, so nothing of rt_mmdf imports it: an interpreter that
has it runs `ceiling_script.py` as a program of its own, and cases and maps go to and fro as files of a temporary folder.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np

from rt_mmdf.core.errors import ConfigurationError, SolverError
from rt_mmdf.evaluation import ceiling_script
from rt_mmdf.evaluation.rows import Image, RowGroup
from rt_mmdf.evaluation.suite import SFREQ, Cases, Suite

DEFAULT_SOLVER = "flex-champagne"
MOST_CASES = 20  # of a cell: a case takes some seconds
LAST_LINES = 5  # of what a script that failed has said


@dataclass(frozen=True)
class Ceiling:
    """What bounds the table from beyond real time.

    python : interpreter that can import invertmeeg; a path, or a name that is on the search path
    solvers : its names of solvers, in any spelling that it knows
    n_cases : of each cell, the first ones
    """

    python: str
    solvers: tuple[str, ...] = (DEFAULT_SOLVER,)
    n_cases: int = MOST_CASES

    @property
    def rows(self) -> tuple[str, ...]:
        """Names in tables."""
        return tuple(f"{solver} (ceiling)" for solver in self.solvers)


class CeilingGroup(RowGroup):
    """All solvers of a ceiling, in one call of the interpreter for each cell.

    Each case is the whole whitened window with the whitened leadfield of the nominal head; its map is the one at the scored
    instant. Not every solver of the package keeps the unit of the leadfield, so that the rows have no amplitude.
    """

    def __init__(self, suite: Suite, ceiling: Ceiling) -> None:
        self.rows, self.max_cases = ceiling.rows, ceiling.n_cases
        self._ceiling = ceiling
        self._forward = suite.nominal.forward
        arrays = [held_out.scene.arrays for held_out in suite.scenes]
        self._leadfields = np.stack([of_scene.leadfield for of_scene in arrays])
        self._used = np.stack([of_scene.used for of_scene in arrays])

    def images(self, cases: Cases) -> Iterator[Image]:
        """Maps of each solver.

        Raises
        ------
        SolverError
            A solver failed, or gave values that are not finite.
        """
        with tempfile.TemporaryDirectory(prefix="rt-mmdf-ceiling-") as name:
            folder = Path(name)
            mne.write_forward_solution(folder / "head-fwd.fif", self._forward, verbose="ERROR")
            np.savez(
                folder / "cases.npz",
                allow_pickle=False,
                leadfields=self._leadfields,
                used=self._used,
                scenes=cases.scene,
                windows=cases.window,
                instants=cases.instant,
                sfreq=np.array(SFREQ),
                solvers=np.array(self._ceiling.solvers),
            )
            _run(self._ceiling, "maps", folder)
            with np.load(folder / "maps.npz", allow_pickle=False) as file:
                maps = file["maps"]
        for row, of_row in zip(self.rows, maps, strict=True):
            if wrong := int(np.count_nonzero(~np.isfinite(of_row).all(axis=0))):
                raise SolverError(
                    f"{row}: NaN or infinity in {wrong} of {len(cases)} maps; finite values are expected. Leave this "
                    "solver out (--invertmeeg-solver), or try another version of invertmeeg."
                )
            yield Image(row, float("nan"), of_row)


def check_ceiling(ceiling: Ceiling) -> str:
    """Find out early whether the rows can be made, and tell what they are: version, solvers, number of cases.

    Raises
    ------
    ConfigurationError
        No such interpreter, it cannot import the package, or the package has no such solver.
    SolverError
        The package could not be asked for its solvers.
    """
    with tempfile.TemporaryDirectory(prefix="rt-mmdf-ceiling-") as name:
        _run(ceiling, "solvers", Path(name))
        known = json.loads((Path(name) / "solvers.json").read_text(encoding="utf-8"))
    spellings: dict[str, str] = {}
    for solver in sorted(known["names"]):
        spellings.setdefault(_plain(solver), solver)
    if unknown := [solver for solver in ceiling.solvers if _plain(solver) not in spellings]:
        raise ConfigurationError(
            f"evaluate: invertmeeg {known['version']} of {ceiling.python} has no solver {', '.join(unknown)}. It has: "
            f"{', '.join(spellings.values())}. Choose among them (--invertmeeg-solver)."
        )
    if not ceiling.solvers or len({_plain(solver) for solver in ceiling.solvers}) < len(ceiling.solvers):
        raise ConfigurationError(
            f"evaluate: solvers {', '.join(ceiling.solvers) or 'none'} of invertmeeg seen; at least one is expected, each "
            "once. Correct --invertmeeg-solver."
        )
    return (
        f"{', '.join(ceiling.solvers)} of invertmeeg {known['version']}, from the whole window, on the first "
        f"{ceiling.n_cases} cases of each cell at most"
    )


def _plain(solver: str) -> str:
    """Equal for all spellings that the package takes for one: ``FlexChampagne``, ``flex-champagne``."""
    return re.sub("[^a-z0-9]", "", solver.lower())


def _run(ceiling: Ceiling, task: str, folder: Path) -> None:
    """Run the script in its interpreter, on files of a folder."""
    python = shutil.which(ceiling.python)
    if python is None:
        raise ConfigurationError(
            f"evaluate: no interpreter {ceiling.python}. A Python is expected that has the package invertmeeg, such as the "
            "bin/python (Windows: Scripts\\python.exe) of the environment that it was installed in."
        )
    # a copy, since Python puts the folder of a script before all others: modules beside the original have common names
    script = shutil.copy(ceiling_script.__file__, folder / "ceiling_script.py")
    try:
        done = subprocess.run(
            [python, script, task, str(folder)], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise ConfigurationError(
            f"evaluate: {ceiling.python} cannot be started ({error.strerror or error}). A Python interpreter is expected "
            "that has the package invertmeeg."
        ) from error
    said = done.stderr.decode(sys.getdefaultencoding(), errors="replace").strip().splitlines()[-LAST_LINES:]
    if done.returncode == ceiling_script.NOT_IMPORTABLE:
        raise ConfigurationError(
            f"evaluate: {ceiling.python} cannot import invertmeeg ({' '.join(said[-1:])}). Install it there: "
            f"{ceiling.python} -m pip install invertmeeg"
        )
    if done.returncode != 0:
        last = "\n".join(said) or "nothing"
        raise SolverError(
            f"evaluate: {ceiling.python} failed on {', '.join(ceiling.solvers)} of invertmeeg (exit {done.returncode}). "
            "Leave out the solver that did (--invertmeeg-solver), or try another version of the package. Its last words:\n"
            f"{last}"
        )
