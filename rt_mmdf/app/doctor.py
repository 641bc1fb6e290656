"""What this machine can do, found out by trying where that is possible."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import psutil

from rt_mmdf.app.scorecard import versions
from rt_mmdf.core.errors import RtMmdfError
from rt_mmdf.headmodel.cache import cache_folder
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription, Transport
from rt_mmdf.lsl.library import liblsl_version

ROUND_TRIPS = 200
LOOPBACK_CHANNELS = 366
RESOLVE_TIMEOUT_S = 5.0
ADVISED_CORES = 2
ADVISED_MEMORY_GB = 4.0
PROBE_LIMIT_S = 30.0
WINDOW_PACKAGES = (
    "libgl1 libegl1 libgl1-mesa-dri libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-image0 "
    "libxcb-render-util0 libdbus-1-3"
)
CACHE_NEEDS_MB = 500.0  # a template head takes about 100

OPTIONAL = {
    "pyxdf": "reads XDF recordings",
    "edfio": "writes EDF recordings",
    "pybv": "writes BrainVision recordings",
}


class Verdict(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"  # something optional is absent, or less than advised
    PROBLEM = "problem"  # live imaging does not work here


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    what: str
    verdict: Verdict
    seen: str


def examine(transport: Transport) -> Iterator[Finding]:
    """All findings, one after another as they are made; takes some seconds."""
    checks: tuple[Callable[[], Finding], ...] = (
        _versions,
        _machine,
        lambda: lsl_loopback(transport),
        _cache,
        _faketime,
        _optional_packages,
        window_and_opengl,
        _gpu,
        backends,
    )
    for check in checks:
        yield check()


def lsl_loopback(transport: Transport, n_round_trips: int = ROUND_TRIPS) -> Finding:
    """Publish a stream, find it, subscribe, and send samples of 366 channels one by one: time from push to pull."""
    what = "LSL loopback"
    name = f"rt-mmdf-doctor-{uuid.uuid4().hex[:8]}"
    channels = tuple(ChannelDescription(f"C{i}") for i in range(LOOPBACK_CHANNELS))
    description = StreamDescription(name, "test", name, 1000.0, "float32", channels, {})
    clock = transport.clock
    try:
        outlet = transport.outlet(description)
        try:
            found = transport.resolve(name=name, timeout_s=RESOLVE_TIMEOUT_S)
            if not found:
                return Finding(
                    what,
                    Verdict.PROBLEM,
                    f"a stream of this process was not found within {RESOLVE_TIMEOUT_S:g} s: does a firewall stop UDP "
                    "port 16571, or TCP and UDP ports 16572 to 16604, on this machine?",
                )
            inlet = transport.inlet(found[0])
            try:
                taken_ms = []
                for number in range(n_round_trips):
                    sent = clock.now()
                    outlet.push(np.full((1, LOOPBACK_CHANNELS), number, dtype=np.float32), sent)
                    data, _ = inlet.pull(2.0)
                    if len(data) != 1 or data[0, 0] != number:
                        seen = "nothing" if len(data) == 0 else f"{len(data)} samples, the first of them {data[0, 0]}"
                        return Finding(what, Verdict.PROBLEM, f"sample {number} was sent, {seen} came back")
                    taken_ms.append((clock.now() - sent) * 1e3)
            finally:
                inlet.close()
        finally:
            outlet.close()
    except RtMmdfError as error:
        return Finding(what, Verdict.PROBLEM, str(error))
    p50, p99 = np.percentile(taken_ms, [50, 99])
    return Finding(
        what, Verdict.OK, f"{n_round_trips} samples of {LOOPBACK_CHANNELS} channels: p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    )


def _versions() -> Finding:
    known = versions(liblsl_version())
    return Finding("versions", Verdict.OK, ", ".join(f"{name} {number}" for name, number in known.items()))


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gb = psutil.virtual_memory().available / 1e9
    seen = f"{platform.machine()}, {cores} cores for this process, {memory_gb:.1f} GB of memory free"
    if cores < ADVISED_CORES or memory_gb < ADVISED_MEMORY_GB:
        return Finding(
            "machine",
            Verdict.NOTE,
            f"{seen}; {ADVISED_CORES} cores and {ADVISED_MEMORY_GB:g} GB are advised, deadlines may be missed",
        )
    return Finding("machine", Verdict.OK, seen)


def _cache() -> Finding:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"rt-mmdf")
            file.flush()
        free_mb = shutil.disk_usage(folder).free / 1e6
    except OSError as error:
        return Finding(
            "cache",
            Verdict.NOTE,
            f"{folder} cannot be written ({error.strerror}): head models are computed anew each time. Set RT_MMDF_CACHE to "
            "a folder that you may write to",
        )
    if free_mb < CACHE_NEEDS_MB:
        return Finding("cache", Verdict.NOTE, f"{folder}: {free_mb:.0f} MB free, {CACHE_NEEDS_MB:.0f} are advised")
    return Finding("cache", Verdict.OK, f"{folder}, {free_mb / 1e3:.1f} GB free")


def _faketime() -> Finding:
    if path := shutil.which("faketime"):
        return Finding("faketime", Verdict.OK, f"{path}: tests of two clocks can run")
    return Finding("faketime", Verdict.NOTE, "absent: only tests of two clocks need it (Debian: apt-get install faketime)")


def _optional_packages() -> Finding:
    parts = []
    for name, purpose in OPTIONAL.items():
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name} ({purpose})")
    return Finding("optional packages", Verdict.OK, ", ".join(parts))


def window_and_opengl() -> Finding:
    """Whether a window can be opened and what draws in it; tried in a process of its own, which a bad driver may crash."""
    what = "OpenGL"
    if sys.platform not in ("darwin", "win32") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return Finding(
            what,
            Verdict.NOTE,
            "no display (neither DISPLAY nor WAYLAND_DISPLAY is set): no window here. `rt-mmdf view` on a machine with a "
            "screen finds the engine over the network; pictures without a screen: xvfb-run -a rt-mmdf view --headless "
            "brain.png (Debian: apt-get install xvfb)",
        )
    command = [sys.executable, "-m", "rt_mmdf.view.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PROBE_LIMIT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(what, Verdict.NOTE, f"a window could not be tried ({error}); imaging does not need one")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        telling = [line for line in lines if any(word in line for word in ("needed", "cannot open", "not connect"))]
        answer = {"problem": "; ".join(telling[:2] or lines[-1:]) or "it said nothing"}
        answer["problem"] += f" (the trial ended with code {done.returncode})"
    if "problem" not in answer:
        return Finding(what, Verdict.OK, f"a window can be opened ({answer['platform']}); {answer['renderer']}")
    if "platform" in answer:
        consequence = f"windows can be opened ({answer['platform']}), the view draws flat pictures in them"
    else:
        consequence = "no window can be opened; imaging does not need one"
    remedy = f". Debian: apt-get install {WINDOW_PACKAGES}" if sys.platform.startswith("linux") else ""
    return Finding(what, Verdict.NOTE, f"{consequence}: {answer['problem']}{remedy}")


def _gpu() -> Finding:
    if (path := shutil.which("nvidia-smi")) is None:
        return Finding(
            "GPU", Verdict.NOTE, "no NVIDIA driver found (nvidia-smi is absent); classical solvers do not need one"
        )
    query = [path, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", Verdict.NOTE, f"nvidia-smi does not answer ({error})")
    return Finding("GPU", Verdict.OK if answer else Verdict.NOTE, answer.replace("\n", "; ") or "nvidia-smi lists none")


def backends() -> Finding:
    """What trained models can run on here; what is missing for the others, and the command that would install it."""
    from rt_mmdf.backends.choice import why_not  # imports torch
    from rt_mmdf.backends.interface import BACKENDS

    here, absent = [], []
    for backend in BACKENDS:
        if (reason := why_not(backend)) is None:
            here.append(backend)
        else:
            absent.append(f"no {backend}: {reason}")
    seen = f"models run on {', '.join(here)}"
    return Finding("backends", Verdict.OK if len(here) > 1 else Verdict.NOTE, "; ".join([seen, *absent]))
