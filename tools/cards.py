"""Put an evaluation into the cards of the models that ship.

    rt-mmdf evaluate --report evaluation.json
    python tools/cards.py evaluation.json

The section "How well it does" of models/NAME/CARD.md is written anew, with what was tried (tools/tried_NAME.md) after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rt_mmdf.solvers.artefact import CARD, replace_card

ROOT = Path(__file__).resolve().parent.parent
HEADING, NEXT = "## How well it does", "## What it must not be used for"
BESIDE = ("sLORETA", "dSPM", "LCMV", "convdip", "mmdf", "fusion")
CELLS = [
    (radius, n, snr) for n, radii in ((1, (0, 10, 20, 30)), (2, (10, 20)), (3, (15,))) for radius in radii for snr in (0, 10)
]
METRICS = {
    "le_mm_mean": "Mean localisation error, mm",
    "auc_median": "AUC, median",
    "emd_mm_mean": "Earth mover's distance, mm, mean of the first cases of each cell",
    "area_ratio_median": "Area above half maximum over the true one, median",
    "amplitude_ratio_median": "Summed moment within 20 mm of the centre over the true one, median",
}


def section(name: str, report: dict[str, Any]) -> str:
    """Markdown of what the evaluation found for a model and for those beside it."""
    rows = {(r["solver"], r["radius_mm"], r["n_sources_true"], r["snr_db"]): r for r in report["rows"]}
    solvers = [name, *(s for s in BESIDE if s != name and any(key[0] == s for key in rows))]
    cells = [cell for cell in CELLS if (name, *cell) in rows]
    facts = report["facts"]
    lines = [
        HEADING,
        "",
        f"On the held-out suite: {facts['heads']} `{facts['command']}`; every cell and row is in "
        "tools/bench/evaluation.csv. Simulations by the same people who trained it; real recordings are another matter.",
        "",
    ]
    for metric, title in METRICS.items():
        shown = [s for s in solvers if any(rows[(s, *cell)].get(metric) is not None for cell in cells)]
        lines += [f"{title}:", "", f"| radius, sources, SNR | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
        for radius, n, snr in cells:
            values = [rows[(s, radius, n, snr)].get(metric) for s in shown]
            digits = 3 if metric == "auc_median" else 2 if "ratio" in metric else 1
            written = " | ".join("" if v is None else f"{v:.{digits}f}" for v in values)
            lines.append(f"| {radius} mm, {n}, {snr} dB | {written} |")
        lines.append("")
    for noise in report["noise"]:
        if noise["solver"] == name:
            lines += [
                f"Noise only: the 95th percentile of its largest magnitude over {noise['n']} cases without any source is "
                f"{100 * noise['ratio']:.1f} % of the median largest magnitude at 10 dB.",
                "",
            ]
    verdicts = [v for v in report["tests"]["verdicts"] if name in v["topic"].lower() or name in v["claim"].lower()]
    if verdicts:
        lines += ["Claims and whether they hold (paired Wilcoxon with Holm's correction, Brown-Forsythe for variance):", ""]
        for verdict in verdicts:
            counts = f" ({verdict['n_passed']} of {verdict['n_tested']})" if verdict["n_tested"] else ""
            lines.append(f"- {verdict['claim']}: **{verdict['outcome']}**{counts}. {verdict['note']}".rstrip())
        lines.append("")
    tried = ROOT / "tools" / f"tried_{name}.md"
    if tried.is_file():
        lines += [tried.read_text(encoding="utf-8").strip(), ""]
    return "\n".join(lines)


def main(path: Path) -> None:
    """Write the section into the card of every model that the evaluation holds."""
    report = json.loads(path.read_text(encoding="utf-8"))
    for folder in sorted(p.parent for p in (ROOT / "models").glob(f"*/{CARD}")):
        if not any(row["solver"] == folder.name for row in report["rows"]):
            print(f"{folder.name}: not in {path}")
            continue
        before, _, after = (folder / CARD).read_text(encoding="utf-8").partition(NEXT)
        before = before.partition(HEADING)[0]
        replace_card(folder, f"{before}{section(folder.name, report)}\n{NEXT}{after}")
        print(f"{folder.name}: {folder / CARD}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
