"""Scores of every solver on every case, as they are kept for paired tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import RecordingError, SinkError
from rt_mmdf.core.files import read_arrays

FORMAT = 1
MAX_BYTES = 1 << 31  # unpacked; 100 solvers, 360,000 cases and 10 metrics have 1.4 GB

Cell = tuple[float, int, float]  # radius_mm, n_sources, snr_db


@dataclass(frozen=True, eq=False)
class CaseResults:
    """One value per solver, case and metric. Every solver saw the same cases, so that tests can be paired.

    solvers : names of the rows
    cells : (radius_mm, n_sources, snr_db) of each cell of the suite
    cell_of_case : (n_cases,) int64, index into `cells`
    values : metric to (n_solvers, n_cases) float32, NaN where a metric was not computed or is not defined
    head_of_case : (n_cases,) int64, number of the true head that a case comes from; None where that is not known
    """

    solvers: tuple[str, ...]
    cells: tuple[Cell, ...]
    cell_of_case: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]
    head_of_case: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.solvers), len(self.cell_of_case))
        if wrong := {name: array.shape for name, array in self.values.items() if array.shape != shape}:
            raise ValueError(f"values of shape {wrong} seen; (solvers, cases) = {shape} expected")
        if self.head_of_case is not None and len(self.head_of_case) != len(self.cell_of_case):
            raise ValueError(f"heads of {len(self.head_of_case)} cases seen; there are {len(self.cell_of_case)}")
        if len(self.cell_of_case) and not 0 <= self.cell_of_case.min() <= self.cell_of_case.max() < len(self.cells):
            raise ValueError(f"cells up to {self.cell_of_case.max()} seen; there are {len(self.cells)}")

    @property
    def n_cases(self) -> int:
        return len(self.cell_of_case)

    def row(self, solver: str) -> int:
        """Place of a solver in `solvers`; ValueError where it is not there."""
        if solver not in self.solvers:
            raise ValueError(f"no solver {solver!r} in the results; there are {', '.join(self.solvers)}")
        return self.solvers.index(solver)

    def of(self, metric: str, solver: str, cell: int) -> NDArray[np.float32]:
        """(n_cases of the cell,) values of one metric, NaN where it was not computed."""
        chosen: NDArray[np.float32] = self.values[metric][self.row(solver), self.cell_of_case == cell]
        return chosen

    def save(self, path: Path) -> None:
        """Write one ``.npz`` file; SinkError if that is not possible."""
        described = {"format": FORMAT, "solvers": self.solvers, "cells": self.cells, "metrics": tuple(self.values)}
        arrays: dict[str, NDArray[np.generic]] = {f"values_{i}": array for i, array in enumerate(self.values.values())}
        if self.head_of_case is not None:
            arrays["head_of_case"] = self.head_of_case
        try:
            np.savez_compressed(
                path,
                allow_pickle=False,
                description=np.array(json.dumps(described, allow_nan=False)),
                cell_of_case=self.cell_of_case,
                **arrays,
            )
        except OSError as error:
            raise SinkError(
                f"results {path}: cannot be written ({error}). Choose a folder that you may write to."
            ) from error


def load_results(path: Path) -> CaseResults:
    """Read results that `CaseResults.save` wrote.

    Raises
    ------
    RecordingError
        There are none, or they are damaged or of another format.
    """
    try:
        arrays = read_arrays(path, MAX_BYTES)
        described = json.loads(str(arrays["description"]))
        if described["format"] != FORMAT:
            raise ValueError(f"format {described['format']} seen, {FORMAT} expected")
        return CaseResults(
            solvers=tuple(described["solvers"]),
            cells=tuple((float(radius), int(n), float(snr)) for radius, n, snr in described["cells"]),
            cell_of_case=arrays["cell_of_case"],
            values={metric: arrays[f"values_{i}"] for i, metric in enumerate(described["metrics"])},
            head_of_case=arrays.get("head_of_case"),
        )
    except FileNotFoundError as error:
        raise RecordingError(f"results {path}: no such file. `rt-mmdf evaluate --keep FILE` writes them.") from error
    except Exception as error:  # a damaged zip file can make its reader fail in any way
        raise RecordingError(f"results {path}: damaged ({error}). Evaluate again.") from error


def joined(parts: Sequence[CaseResults]) -> CaseResults:
    """Results of several runs over the same solvers, metrics and cells, one after the other."""
    first = parts[0]
    for part in parts[1:]:
        if (part.solvers, part.cells, set(part.values)) != (first.solvers, first.cells, set(first.values)):
            raise ValueError("only results of the same solvers, cells and metrics can be joined")
    cell_of_case = np.concatenate([part.cell_of_case for part in parts])
    values = {name: np.concatenate([part.values[name] for part in parts], axis=1) for name in first.values}
    heads = [part.head_of_case for part in parts if part.head_of_case is not None]
    head_of_case = np.concatenate(heads) if len(heads) == len(parts) else None
    return CaseResults(first.solvers, first.cells, cell_of_case, values, head_of_case)
