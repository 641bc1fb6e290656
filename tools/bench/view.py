"""What a frame of the brain costs: colours that change every frame beside drawing alone, on the same machine, in turns.

    xvfb-run -a -s "-screen 0 2560x1440x24" python tools/bench/view.py --report tools/bench/view.json

A frame is painted to the end (drawn, read back, handed to the window) before the next one begins. Drawing alone paints the
same values again; with changing colours every frame brings new values of all sources, which are spread to the vertices and
uploaded. Both take turns in blocks of frames, so that what else the machine does falls on both. The ratio is that of the
medians; its interval is the 95 % one of resampled blocks. The ratio of processor times (all threads of
this process) is the better one on a busy machine. Mesa's software rasteriser is given one thread (LP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from machine import machine
from PySide6.QtWidgets import QApplication

from rt_mmdf.headmodel.template import build_template
from rt_mmdf.view.brain import BrainView, check_opengl
from rt_mmdf.view.camera import LAYOUTS
from rt_mmdf.view.colours import ColourScale
from rt_mmdf.view.cortex import Cortex
from rt_mmdf.view.flat import FlatBrainView
from rt_mmdf.view.pane import BrainPane
from rt_mmdf.view.themes import DARK

PER_BLOCK = 10
# CPU: processor time of all threads of this process, milliseconds a frame
COLUMNS = {
    "draw, ms": "draw_only_ms",
    "change": "changing_ms",
    "p95": "changing_p95_ms",
    "ratio": "ratio",
    "from": "ratio_low",
    "to (95 %)": "ratio_high",
    "per second": "fps",
    "CPU: draw": "draw_only_processor_ms",
    "CPU: change": "changing_processor_ms",
    "CPU: ratio": "processor_ratio",
}
KINDS = {"OpenGL": BrainView, "flat": FlatBrainView}


def measure(pane: BrainPane, frames: list[np.ndarray], blocks: int) -> dict[str, object]:
    """Milliseconds a frame, of both kinds in turns."""
    took: dict[bool, list[list[float]]] = {False: [], True: []}
    busy: dict[bool, list[float]] = {False: [], True: []}
    for block in range(-1, blocks):
        for changing in (False, True):
            own = []
            used = time.process_time()
            for i in range(PER_BLOCK):
                begun = time.perf_counter()
                if changing:
                    pane.set_values(frames[(block * PER_BLOCK + i) % len(frames)])
                pane.redraw()
                own.append(1e3 * (time.perf_counter() - begun))
                QApplication.processEvents()
            if block >= 0:  # the first is warming up
                took[changing].append(own)
                busy[changing].append(1e3 * (time.process_time() - used) / PER_BLOCK)
    drawn, changed = (np.array(took[kind]) for kind in (False, True))
    rng = np.random.default_rng(0)
    picks = rng.integers(0, blocks, (2000, blocks))
    ratios = np.median(changed[picks], axis=(1, 2)) / np.median(drawn[picks], axis=(1, 2))
    return {
        "draw_only_ms": round(float(np.median(drawn)), 2),
        "changing_ms": round(float(np.median(changed)), 2),
        "changing_p95_ms": round(float(np.quantile(changed, 0.95)), 2),
        "ratio": round(float(np.median(changed) / np.median(drawn)), 3),
        "ratio_low": round(float(np.quantile(ratios, 0.025)), 3),
        "ratio_high": round(float(np.quantile(ratios, 0.975)), 3),
        "fps": round(1e3 / float(np.median(changed)), 1),
        "draw_only_processor_ms": round(float(np.median(busy[False])), 2),
        "changing_processor_ms": round(float(np.median(busy[True])), 2),
        "processor_ratio": round(float(np.median(busy[True]) / np.median(busy[False])), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=30, help=f"of {PER_BLOCK} frames, of each kind")
    parser.add_argument("--sizes", nargs="+", default=["1280x720", "2560x1440"])
    parser.add_argument("--kinds", nargs="+", default=["OpenGL", "flat"], choices=list(KINDS))
    parser.add_argument("--report", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    app = QApplication(["view"])
    cortex = Cortex.of(build_template(spacing="ico4"))
    rng = np.random.default_rng(0)
    frames = [(4 * np.abs(rng.standard_normal(cortex.n_sources))).astype(np.float32) for _ in range(64)]
    print(f"{check_opengl()}; {cortex.n_vertices} vertices, {cortex.n_sources} sources")
    print(f"{'':24}" + "".join(f"{name:>12}" for name in COLUMNS))
    rows = []
    for kind in options.kinds:
        for size in options.sizes:
            for layout in LAYOUTS:
                pane = KINDS[kind](cortex, theme=DARK)
                pane.resize(*(int(part) for part in size.split("x")))
                pane.set_layout(layout)
                pane.set_scale(ColourScale("dSPM"))
                pane.show()
                app.processEvents()
                row = measure(pane, frames, options.blocks)
                pane.close()
                rows.append({"kind": kind, "size": size, "layout": layout, **row})
                print(f"{kind:7}{size:11}{layout:6}" + "".join(f"{row[name]:12}" for name in COLUMNS.values()), flush=True)
    if options.report:
        facts = {"machine": machine(), "opengl": check_opengl(), "vertices": cortex.n_vertices, "sources": cortex.n_sources}
        options.report.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
