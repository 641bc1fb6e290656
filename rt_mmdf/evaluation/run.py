"""Runs solvers over the held-out suite: cell by cell, on some processes, every case scored by every row."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.errors import SolverError, WorkerFailed
from rt_mmdf.evaluation.ceiling import Ceiling, CeilingGroup, check_ceiling
from rt_mmdf.evaluation.results import CaseResults, Cell
from rt_mmdf.evaluation.rows import Image, RowGroup, check_solvers, make_groups
from rt_mmdf.evaluation.suite import CELLS, SEED, Cases, Suite, held_out_suite
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.metrics.scoring import METRICS, CaseScorer
from rt_mmdf.metrics.transport import has_transport

Float32 = NDArray[np.float32]
Progress = Callable[[str, float], None]

PEAK, SETTING = "peak", "setting"  # beside METRICS: largest magnitude of a map; strength of regularisation that was chosen
NOISE: Cell = (0.0, 1, -100.0)  # what is left of a source is a hundred-thousandth of the noise
SHOWN_MM, N_SHOWN = (0.0, 10.0, 20.0, 30.0), 4
LOUD_DB = 10.0  # the cells that the peak on noise alone is compared with

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    solvers : names of classical rows, names or folders of networks
    cells : of the suite
    n_cases, n_transported : of each cell; the earth mover's distance is computed for some of them only
    n_noise : cases of noise alone
    head, noise_cov : see `held_out_suite`
    ceiling : rows beyond real time, which bound the others and are not compared with them
    show : keep maps of some cases, for a figure
    n_processes : 1: in this one
    """

    solvers: tuple[str, ...]
    cells: tuple[Cell, ...] = CELLS
    n_cases: int = 500
    n_transported: int = 50
    n_noise: int = 500
    seed: int = SEED
    head: Path | None = None
    noise_cov: Path | None = None
    ceiling: Ceiling | None = None
    show: bool = False
    n_processes: int = 1


@dataclass(frozen=True, eq=False)
class Shown:
    """One case of a cell with the map of each row, at the setting that was chosen for the cell.

    truth : (n_sources,)
    centres_mm : (n_patches, 3)
    maps : (n_rows, n_sources)
    le_mm : (n_rows,)
    """

    cell: Cell
    truth: Float32
    centres_mm: Float32
    maps: Float32
    le_mm: Float32


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came out.

    results : METRICS, and "peak" (largest magnitude, in the unit of the map) and "setting" (what was chosen for the cell)
    with_amplitude : rows whose maps are in nA m
    noise_peaks : of each of these, (n_noise,) largest magnitudes on noise alone, nA m
    head : nominal, what was imaged with
    ceiling_description : empty without a ceiling
    """

    plan: Plan
    results: CaseResults
    with_amplitude: tuple[str, ...]
    noise_peaks: Mapping[str, Float32]
    shown: tuple[Shown, ...]
    head: HeadModel
    suite_description: str
    duration_s: float
    ceiling_description: str = ""

    @property
    def ceilings(self) -> tuple[str, ...]:
        """Rows that are no competitors."""
        return () if self.plan.ceiling is None else self.plan.ceiling.rows

    def signal_peaks(self, row: str) -> Float32:
        """Largest magnitudes of a row's maps in all cells at 10 dB; empty where there is no such cell."""
        loud = [i for i, cell in enumerate(self.results.cells) if cell[2] == LOUD_DB]
        return np.concatenate([np.zeros(0, np.float32), *(self.results.of(PEAK, row, i) for i in loud)])


def evaluate(plan: Plan, progress: Progress | None = None) -> Evaluation:
    """Run a plan.

    Raises
    ------
    ArtefactError, HeadModelError, NoiseCovarianceError
        A network or head that is not there or does not fit.
    ConfigurationError
        The ceiling's interpreter, package or solvers are not there.
    SolverError
        A row gave values that are not finite.
    WorkerFailed
        A process was killed (no memory left?).
    """
    report = progress or (lambda what, fraction: None)
    start = time.monotonic()
    bounded = "" if plan.ceiling is None else check_ceiling(plan.ceiling)
    suite = held_out_suite(plan.head, plan.noise_cov, lambda what, fraction: report(what, 0.1 * fraction))
    if plan.n_transported and not has_transport():
        logger.warning("evaluate: no earth mover's distance without the package POT: pip install 'rt-mmdf[evaluation]'.")
    report("solvers", 0.1)
    check_solvers(suite, plan.solvers)
    # the heaviest first, so that no process is left alone with one at the end
    cells = sorted(enumerate(plan.cells), key=lambda of: -of[1][0] * of[1][1])
    head, description, n_heads = suite.nominal, suite.description, len(suite.scenes)
    opened = _team(suite, plan)
    del suite  # half a gigabyte that processes of their own have as well
    with opened as team:
        rows, n_columns = team.rows, len(plan.cells) * plan.n_cases
        values = {name: np.full((len(rows), n_columns), np.nan, np.float32) for name in (*METRICS, PEAK, SETTING)}
        for done, (task, found) in enumerate(team.work([Task("score", cell, i) for i, cell in cells]), start=1):
            for name, scores in found.items():
                values[name][:, task.index * plan.n_cases : (task.index + 1) * plan.n_cases] = scores
            report(f"{done} of {len(cells)} cells", 0.1 + 0.86 * done / len(cells))
        cell_of_case = np.repeat(np.arange(len(plan.cells)), plan.n_cases)
        head_of_case = np.tile(np.arange(plan.n_cases) % n_heads, len(plan.cells))  # see Cases
        results = CaseResults(rows, plan.cells, cell_of_case, values, head_of_case)
        report("noise alone, examples", 0.96)
        last = [Task("noise", NOISE, settings=_usual_settings(results))] if plan.n_noise and team.with_amplitude else []
        if plan.show:
            last += [Task("show", cell, i, _settings(results, cell)) for i, cell in enumerate(_cells_to_show(plan.cells))]
        peaks: dict[str, Float32] = {}
        shown: dict[int, Shown] = {}
        for task, found in team.work(last):
            if task.kind == "noise":
                peaks = {row: found[PEAK][rows.index(row)] for row in team.with_amplitude}
            else:
                shown[task.index] = Shown(task.cell, **found)
    report("ready", 1.0)
    return Evaluation(
        plan=plan,
        results=results,
        with_amplitude=team.with_amplitude,
        noise_peaks=peaks,
        shown=tuple(shown[i] for i in sorted(shown)),
        head=head,
        suite_description=description,
        duration_s=time.monotonic() - start,
        ceiling_description=bounded,
    )


def _settings(results: CaseResults, cell: Cell) -> dict[str, float]:
    """What was chosen for each row in a cell."""
    i = results.cells.index(cell)
    return {row: float(results.of(SETTING, row, i)[0]) for row in results.solvers}


def _cells_to_show(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Single sources of growing radius, at the SNR that is nearest to 5 dB."""
    single = [cell for cell in cells if cell[1] == 1]
    near = [min(single, key=lambda cell: (abs(cell[0] - radius), abs(cell[2] - 5))) for radius in SHOWN_MM if single]
    return tuple(dict.fromkeys(near))


def _usual_settings(results: CaseResults) -> dict[str, float]:
    """For each row the setting that was chosen most often, at 10 dB where there are such cells."""
    loud = np.isin(results.cell_of_case, [i for i, cell in enumerate(results.cells) if cell[2] == LOUD_DB])
    chosen = results.values[SETTING][:, loud if loud.any() else slice(None)]
    usual = {}
    for row, settings in zip(results.solvers, chosen, strict=True):
        kinds, counts = np.unique(settings, return_counts=True)
        usual[row] = float(kinds[counts.argmax()])
    return usual


@dataclass(frozen=True)
class Task:
    """Score a cell; or image noise alone, or a case of a cell, with these settings of the rows.

    index : number of the cell, to know it again
    """

    kind: Literal["score", "noise", "show"]
    cell: Cell
    index: int = 0
    settings: Mapping[str, float] = field(default_factory=dict)


class Bench:
    """Suite and rows, ready to score cells."""

    def __init__(self, suite: Suite, groups: Sequence[RowGroup], plan: Plan) -> None:
        self._suite, self._groups, self._plan = suite, groups, plan
        self.rows = tuple(row for group in groups for row in group.rows)
        self.with_amplitude = tuple(row for group in groups for row in group.rows if row in group.with_amplitude)

    def __call__(self, task: Task) -> dict[str, Float32]:
        """(n_rows, n_cases) of each metric, "peak" and "setting"; for noise "peak" alone; to be shown, fields of `Shown`."""
        if task.kind == "score":
            return self._score(task.cell)
        n_cases = self._plan.n_noise if task.kind == "noise" else N_SHOWN
        cases = self._suite.cases(task.cell, n_cases, self._plan.seed)
        return self._peaks(cases, task.settings) if task.kind == "noise" else self._show(cases, task.settings)

    def _score(self, cell: Cell) -> dict[str, Float32]:
        plan = self._plan
        cases = self._suite.cases(cell, plan.n_cases, plan.seed)
        scorer_of_all = self._scorer(cases)
        found = {name: np.full((len(self.rows), plan.n_cases), np.nan, np.float32) for name in (*METRICS, PEAK, SETTING)}
        for group in self._groups:
            own = cases if group.max_cases is None else cases.first(group.max_cases)
            scorer = scorer_of_all if len(own) == len(cases) else self._scorer(own)
            best: dict[str, tuple[float, Image]] = {}
            for image in group.images(own):
                error = float(self._errors(image, scorer, cell).mean())
                if image.row not in best or error < best[image.row][0]:
                    best[image.row] = error, image
            for row, (_, image) in best.items():
                number = self.rows.index(row)
                for name, scores in scorer.scores(image.maps, row in group.with_amplitude).items():
                    found[name][number, : len(own)] = scores
                found[PEAK][number, : len(own)] = np.abs(image.maps).max(axis=0)
                found[SETTING][number] = image.setting
        return found

    def _scorer(self, cases: Cases) -> CaseScorer:
        n_transported = min(self._plan.n_transported, len(cases)) if has_transport() else 0
        # spread over the cases, so that every head has its share
        transported = np.unique(np.linspace(0, len(cases) - 1, n_transported).round().astype(int)).tolist()
        return CaseScorer(self._suite.space, cases.truth, cases.centres_mm, transported)

    def _errors(self, image: Image, scorer: CaseScorer, cell: Cell) -> NDArray[np.float64]:
        try:
            return scorer.le_mm(image.maps)
        except ValueError as error:
            radius_mm, n_sources, snr_db = cell
            wrong = int(np.count_nonzero(~np.isfinite(image.maps).all(axis=0)))
            raise SolverError(
                f"{image.row}: NaN or infinity in {wrong} of {image.maps.shape[1]} maps of the cell of {radius_mm:g} mm, "
                f"{n_sources} sources, {snr_db:g} dB (setting {image.setting:g}); finite values are expected. A network "
                "that does so has diverged in training: train it again."
            ) from error

    def _peaks(self, cases: Cases, settings: Mapping[str, float]) -> dict[str, Float32]:
        peaks = np.full((len(self.rows), len(cases)), np.nan, np.float32)
        for image in self._images([group for group in self._groups if group.with_amplitude], cases, settings):
            peaks[self.rows.index(image.row)] = np.abs(image.maps).max(axis=0)
        return {PEAK: peaks}

    def _show(self, cases: Cases, settings: Mapping[str, float]) -> dict[str, Float32]:
        cases = cases.first(1)
        scorer = CaseScorer(self._suite.space, cases.truth, cases.centres_mm)
        images = {image.row: image for image in self._images(self._groups, cases, settings)}
        return {
            "truth": cases.truth[0],
            "centres_mm": cases.centres_mm[0],
            "maps": np.stack([images[row].maps[:, 0] for row in self.rows]),
            "le_mm": np.array([scorer.le_mm(images[row].maps)[0] for row in self.rows], dtype=np.float32),
        }

    def _images(self, groups: Sequence[RowGroup], cases: Cases, settings: Mapping[str, float]) -> Iterator[Image]:
        """Of each row the one image at its setting."""
        for group in groups:
            for image in group.images(cases):
                if np.isnan(image.setting) or np.isclose(image.setting, settings[image.row]):
                    yield image


class _Team(Protocol):
    """What runs tasks, here or in processes, and gives each with what was found as it is done."""

    @property
    def rows(self) -> tuple[str, ...]: ...

    @property
    def with_amplitude(self) -> tuple[str, ...]: ...

    def work(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Float32]]]: ...


class _Alone:
    """This process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.rows, self.with_amplitude = bench.rows, bench.with_amplitude

    def work(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Float32]]]:
        return ((task, self._bench(task)) for task in tasks)


class _Processes:
    """Several processes, each with a suite and rows of its own."""

    rows: tuple[str, ...]
    with_amplitude: tuple[str, ...]

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
        self._members: dict[Connection, BaseProcess] = {}
        with _one_thread_each():
            for _ in range(plan.n_processes):
                here, there = context.Pipe()
                member = context.Process(target=_serve, args=(there, plan), daemon=True)
                member.start()
                there.close()
                self._members[here] = member
        try:
            for pipe in self._members:
                self.rows, self.with_amplitude = self._answer(pipe)
        except BaseException:
            self.close()
            raise

    def work(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Float32]]]:
        waiting = list(reversed(tasks))
        busy: dict[Connection, Task] = {}
        for pipe in self._members:
            if waiting:
                busy[pipe] = waiting.pop()
                pipe.send(busy[pipe])
        while busy:
            for ready in wait(list(busy)):
                pipe = next(pipe for pipe in busy if pipe is ready)
                found = self._answer(pipe)
                done = busy.pop(pipe)
                if waiting:
                    busy[pipe] = waiting.pop()
                    pipe.send(busy[pipe])
                yield done, found

    def _answer(self, pipe: Connection) -> Any:
        """What a process says next; an error of its own is raised here."""
        try:
            answer = pipe.recv()
        except (EOFError, ConnectionResetError):
            member = self._members[pipe]
            member.join()
            raise WorkerFailed(
                f"evaluate: process {member.pid} died (exit code {member.exitcode}); -9 means that it was killed, mostly "
                "because no memory was left: use fewer processes (--processes 1), each takes about 1.7 GB."
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End them, whatever they are doing."""
        for pipe, member in self._members.items():
            member.terminate()
            member.join()
            pipe.close()


def _bench(suite: Suite, plan: Plan) -> Bench:
    groups = make_groups(suite, plan.solvers)
    if plan.ceiling is not None:
        groups.append(CeilingGroup(suite, plan.ceiling))
    return Bench(suite, groups, plan)


def _team(suite: Suite, plan: Plan) -> AbstractContextManager[_Team]:
    if plan.n_processes == 1:
        return nullcontext(_Alone(_bench(suite, plan)))
    return closing(_Processes(plan))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start within it compute on one thread; threads of several would only wait for each other."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, plan: Plan) -> None:
    """Life of a process: its rows, then tasks in and findings out; an error goes out instead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked to stop, and stops its processes
    if plan.ceiling is not None:  # its interpreter is to end with this process, and its files to go
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        suite = held_out_suite(plan.head, plan.noise_cov)
        bench = _bench(suite, plan)
        pipe.send((bench.rows, bench.with_amplitude))
        while True:
            pipe.send(bench(pipe.recv()))
    except EOFError:
        return
    except Exception as error:  # whatever it is: the parent raises it
        pipe.send(error)
