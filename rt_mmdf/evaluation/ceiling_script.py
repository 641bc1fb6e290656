"""Solvers of invertmeeg over cases that lie in a folder; run as a program by an interpreter that has that package.

    python ceiling_script.py solvers FOLDER    version and names, to solvers.json
    python ceiling_script.py maps FOLDER       head-fwd.fif and cases.npz to maps.npz

It imports nothing of rt_mmdf, which need not be installed there. What the files hold: `rt_mmdf.evaluation.ceiling`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOT_IMPORTABLE = 3  # exit code: a package is missing


def main(arguments: Sequence[str]) -> int:
    task, folder = arguments[0], Path(arguments[1])
    try:
        invert: Any = importlib.import_module("invert")
        importlib.import_module("mne")
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return NOT_IMPORTABLE
    if task == "solvers":
        known = {"version": str(getattr(invert, "__version__", "of unknown version")), "names": list(invert.list_solvers())}
        (folder / "solvers.json").write_text(json.dumps(known), encoding="utf-8")
    else:
        write_maps(invert, folder)
    return 0


def write_maps(invert: Any, folder: Path) -> None:
    """(n_solvers, n_sources, n_cases) float32 at the instants of the cases."""
    import mne
    import numpy as np

    mne.set_log_level("ERROR")
    with np.load(folder / "cases.npz", allow_pickle=False) as file:
        cases = {name: file[name] for name in file.files}
    forward = mne.read_forward_solution(folder / "head-fwd.fif")
    n_sources = cases["leadfields"].shape[2]
    if forward["sol"]["data"].shape[1] != n_sources:
        forward = mne.convert_forward_solution(forward, surf_ori=True, force_fixed=True, use_cps=True)
    names = list(forward["sol"]["row_names"])
    solvers = [str(solver) for solver in cases["solvers"]]
    maps = np.zeros((len(solvers), n_sources, len(cases["scenes"])), dtype=np.float32)
    for scene in np.unique(cases["scenes"]):
        used = cases["used"][scene]
        kept = [name for name, is_used in zip(names, used, strict=True) if is_used]
        whitened = forward.copy()
        whitened["sol"]["data"] = cases["leadfields"][scene].astype(np.float64)
        whitened = whitened.pick_channels(kept, ordered=True)
        # magnetometers: one type for all, which no one gives a reference or a unit; whitened values have none
        info = mne.create_info(kept, float(cases["sfreq"]), "mag")
        for case in np.flatnonzero(cases["scenes"] == scene):
            evoked = mne.EvokedArray(cases["windows"][case][used].astype(np.float64), info)
            for row, name in enumerate(solvers):
                solver = invert.Solver(name)
                solver.make_inverse_operator(whitened, evoked)
                estimate = solver.apply_inverse_operator(evoked)
                maps[row, :, case] = estimate.data[:, cases["instants"][case]]
    np.savez(folder / "maps.npz", maps=maps)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
