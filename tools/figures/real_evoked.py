"""Draw dSPM maps of real evoked responses: EEG and MEG together, MEG alone, EEG alone, on the subject's own cortex.

    python tools/figures/real_evoked.py --out tools/figures/real_evoked.png

Reads the real recording (shared/data/sample beside the checkout, or the folder in RT_MMDF_SAMPLE_DATA). How the averages
are prepared and what is expected of them: rt_mmdf/evaluation/real.py. They hold 3 to 6 trials: with mne's usual depth
weighting (0.8) the left ear's map of EEG and MEG (3 trials) peaks in the wrong hemisphere, at (-40, -15, 41) mm.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rt_mmdf.core.channels import Modality
from rt_mmdf.evaluation.real import DEPTH, SNR, classical_solver, image_averages, read_averages, real_figure
from rt_mmdf.solvers.linear import SolverSettings

ROOT = Path(__file__).resolve().parents[2]
DSPM = SolverSettings(method="dSPM", snr=SNR, depth=DEPTH)
SENSORS: dict[str, tuple[Modality, ...]] = {"EEG + MEG": (), "MEG alone": (Modality.EEG,), "EEG alone": (Modality.MEG,)}
TITLE = "Where real evoked responses are localised (dSPM, 75 to 120 ms, one subject)"


def main() -> None:
    """Print the peaks and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tools" / "figures" / "real_evoked.png", help="picture to write")
    default = Path(os.environ.get("RT_MMDF_SAMPLE_DATA") or ROOT.parent / "shared" / "data" / "sample")
    parser.add_argument("--sample", type=Path, default=default, help="folder with the real recording")
    arguments = parser.parse_args()
    averages = read_averages(arguments.sample)
    maps = image_averages(averages, [classical_solver(DSPM, name, missing) for name, missing in SENSORS.items()])
    for found in maps:
        at = ", ".join(f"{value:.0f}" for value in found.position_mm)
        where = "inside" if found.in_region else "OUTSIDE"
        print(f"{found.condition:15s} {found.solver:10s} ({at}) mm {1e3 * found.time_s:.0f} ms {where}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    real_figure(averages, maps, TITLE).savefig(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
