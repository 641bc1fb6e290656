"""Processor, memory and GPU: what is measured, and what is said where it is not."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rt_mmdf.app.profiling.load import LoadMeter
from rt_mmdf.runtime.mailbox import Signal

LIMIT_S = 20.0


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without pynvml; its programs are in the folder."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_without_a_gpu_it_says_so(nothing: Path) -> None:
    with LoadMeter(time.perf_counter) as meter:
        meter.begin()
        meter.sample()
    found = meter.load.summary()
    assert found["gpu"].startswith("not measured: neither pynvml nor nvidia-smi")
    assert (found["gpu_percent"], found["gpu_mb"]) == (None, None)
    assert found["rss_mb"] > 10
    assert found["cpu_cores"] >= 0
    assert meter.load.own_s >= 0


def test_no_samples_are_no_zeros(nothing: Path) -> None:
    with LoadMeter(time.perf_counter) as meter:
        found = meter.load.summary()
    assert (found["cpu_cores"], found["rss_mb"]) == (None, None)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for nvidia-smi")
def test_nvidia_smi_is_read_and_ended(nothing: Path) -> None:
    program = nothing / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "$@" > "$0.words"\necho "[N/A], 3"\necho "37, 1024"\nexec /bin/sleep 60\n')
    program.chmod(0o755)
    pause, deadline = Signal(), time.monotonic() + LIMIT_S
    with LoadMeter(time.perf_counter) as meter:
        while not meter.load.samples or meter.load.samples[-1].gpu_percent is None:
            assert time.monotonic() < deadline
            pause.wait(0.02)
            meter.sample()
    found = meter.load.summary()
    assert (found["gpu_percent"], found["gpu_mb"]) == (37.0, 1024.0)
    assert "nvidia-smi" in found["gpu"]
    words = (nothing / "nvidia-smi.words").read_text()
    assert "--query-gpu=utilization.gpu,memory.used" in words
    assert "--format=csv,noheader,nounits" in words


def test_pynvml_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: ended.append(True),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2 * 2**20),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=12),
    )
    known = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: nvml if name == "pynvml" else known(name))
    with LoadMeter(time.perf_counter) as meter:
        meter.sample()
    assert (meter.load.samples[0].gpu_percent, meter.load.samples[0].gpu_mb) == (12.0, 2.0)
    assert ended == [True]

    def broken() -> Any:
        raise RuntimeError("driver not loaded")

    nvml.nvmlInit = broken
    with LoadMeter(time.perf_counter) as meter:
        assert meter.load.gpu == "not measured: pynvml says driver not loaded"
