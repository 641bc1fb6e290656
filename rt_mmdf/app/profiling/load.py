"""Processor, memory and, where there is one, GPU in use: samples beside the stamps, taken off the path."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from rt_mmdf.runtime import processes
from rt_mmdf.runtime.telemetry import ProcessLoad

SMI_INTERVAL_MS = 500
SMI_END_S = 5.0


@dataclass(frozen=True)
class LoadSample:
    """Load at one moment of the engine's clock: cores since the sample before, resident memory, GPU where it is measured."""

    at: float
    cpu_cores: float
    rss_mb: float
    gpu_percent: float | None = None
    gpu_mb: float | None = None


@dataclass
class Load:
    """What the samples say.

    gpu : how it was measured, or why not
    own_s : processor time that sampling took
    """

    samples: list[LoadSample] = field(default_factory=list)
    gpu: str = "not measured"
    own_s: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Mean and peak processor, peak memory; GPU figures null where there are none."""
        cores = np.array([sample.cpu_cores for sample in self.samples])
        gpu = [sample.gpu_percent for sample in self.samples if sample.gpu_percent is not None]
        gpu_mb = [sample.gpu_mb for sample in self.samples if sample.gpu_mb is not None]
        return {
            "cpu_cores": float(cores.mean()) if len(cores) else None,
            "cpu_cores_max": float(cores.max()) if len(cores) else None,
            "rss_mb": max((sample.rss_mb for sample in self.samples), default=None),
            "gpu": self.gpu,
            "gpu_percent": float(np.mean(gpu)) if gpu else None,
            "gpu_mb": max(gpu_mb, default=None),
        }


class LoadMeter:
    """Samples this process, and the first GPU through pynvml or nvidia-smi; both know the whole GPU, whoever uses it.

    Parameters
    ----------
    clock : callable
        The engine's clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._process = ProcessLoad()
        self.load = Load()
        self._gpu = _gpu()
        self.load.gpu = self._gpu.how

    def begin(self) -> None:
        """Leave out what was used so far."""
        self._process.recent()

    def sample(self) -> None:
        """Take a sample."""
        began = time.thread_time()
        usage = self._process.recent()
        percent, used = self._gpu.now()
        self.load.samples.append(LoadSample(self._clock(), usage.cpu_cores, usage.rss_mb, percent, used))
        self.load.own_s += time.thread_time() - began

    def __enter__(self) -> LoadMeter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._gpu.close()


class _NoGpu:
    how = "not measured: neither pynvml nor nvidia-smi is at hand"

    def now(self) -> tuple[float | None, float | None]:
        return None, None

    def close(self) -> None:
        """Nothing is open."""


class _Nvml(_NoGpu):
    how = "the whole of GPU 0, by pynvml"

    def __init__(self) -> None:
        self._nvml = importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        self._handle = self._nvml.nvmlDeviceGetHandleByIndex(0)

    def now(self) -> tuple[float | None, float | None]:
        used = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu), used / 2**20

    def close(self) -> None:
        self._nvml.nvmlShutdown()


class _Smi(_NoGpu):
    """One nvidia-smi that goes on reporting: starting one for each sample would disturb what is measured."""

    how = "the whole of GPU 0, by nvidia-smi"

    def __init__(self, program: str) -> None:
        self._file = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in `close`
        wanted = ["--id=0", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        self._process = subprocess.Popen(
            [program, *wanted, f"--loop-ms={SMI_INTERVAL_MS}"], stdout=self._file, stderr=subprocess.DEVNULL
        )

    def now(self) -> tuple[float | None, float | None]:
        self._file.seek(0)
        lines = self._file.read().split("\n")[:-1]  # what follows the last line's end is half a line
        try:
            percent, used = (float(part) for part in lines[-1].split(","))
        except (IndexError, ValueError):  # nothing yet, or "[N/A]"
            return None, None
        return percent, used

    def close(self) -> None:
        processes.end(self._process, SMI_END_S)
        self._file.close()


def _gpu() -> _NoGpu:
    try:
        return _Nvml()
    except ImportError:
        pass
    except Exception as error:  # pynvml's own: no driver, no device
        failed = _NoGpu()
        failed.how = f"not measured: pynvml says {error}"
        return failed
    program = shutil.which("nvidia-smi")
    return _NoGpu() if program is None else _Smi(program)
