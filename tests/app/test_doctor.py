from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rt_mmdf.app import doctor
from rt_mmdf.app.doctor import Verdict, examine, lsl_loopback, window_and_opengl
from rt_mmdf.core.blocks import Float64
from rt_mmdf.lsl.interface import Inlet, StreamDescription
from rt_mmdf.lsl.memory import ManualClock, MemoryTransport
from rt_mmdf.lsl.network import NetworkTransport


@pytest.mark.lsl
def test_the_real_loopback_works_and_its_time_is_told() -> None:
    finding = lsl_loopback(NetworkTransport())
    assert finding.verdict is Verdict.OK, finding.seen
    assert "p99" in finding.seen


class Deaf(MemoryTransport):
    def resolve(self, **conditions: object) -> list[StreamDescription]:
        return []


class Lossy(MemoryTransport):
    """Loses every tenth sample."""

    def inlet(
        self, description: StreamDescription, *, buffer_s: float = 360.0, from_now: bool = True, recover: bool = True
    ) -> Inlet:
        whole = super().inlet(description, buffer_s=buffer_s)
        pull = whole.pull

        def lossy(timeout_s: float) -> tuple[NDArray[np.generic], Float64]:
            data, stamps = pull(timeout_s)
            kept = data[:, 0] % 10 != 9 if len(data) else slice(None)
            return data[kept], stamps[kept]

        whole.pull = lossy  # type: ignore[method-assign]
        return whole


def test_the_loopback_in_memory_and_what_can_be_wrong_with_it() -> None:
    assert lsl_loopback(MemoryTransport(ManualClock())).verdict is Verdict.OK
    unheard = lsl_loopback(Deaf(ManualClock()))
    assert unheard.verdict is Verdict.PROBLEM
    assert "firewall" in unheard.seen
    lost = lsl_loopback(Lossy(ManualClock()))
    assert lost.verdict is Verdict.PROBLEM
    assert lost.seen == "sample 9 was sent, nothing came back"


def test_everything_is_examined_once() -> None:
    findings = list(examine(MemoryTransport(ManualClock())))
    names = [finding.what for finding in findings]
    assert len(set(names)) == len(names)
    assert {"versions", "machine", "LSL loopback", "cache", "faketime", "OpenGL", "GPU", "backends"} <= set(names)
    assert all(finding.seen for finding in findings)
    assert "liblsl 1." in next(finding.seen for finding in findings if finding.what == "versions")


def test_a_cache_that_cannot_be_written_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cache() -> doctor.Finding:
        return next(finding for finding in examine(MemoryTransport(ManualClock())) if finding.what == "cache")

    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "new"))
    assert cache().verdict is Verdict.OK
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RT_MMDF_CACHE", str(tmp_path / "file"))
    assert cache().verdict is Verdict.NOTE
    assert "RT_MMDF_CACHE" in cache().seen


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A display, and an interpreter that does this instead of trying a window."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(python))
    monkeypatch.setenv("DISPLAY", ":77")


def test_a_window_is_tried_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, """echo 'noise'; echo '{"platform": "xcb", "renderer": "llvmpipe, OpenGL 4.5"}'""")
    finding = window_and_opengl()
    assert finding.verdict is Verdict.OK
    assert finding.seen == "a window can be opened (xcb); llvmpipe, OpenGL 4.5"


def test_a_window_without_opengl_is_a_flat_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, """echo '{"platform": "xcb", "problem": "OpenGL 1.4 only"}'""")
    finding = window_and_opengl()
    assert finding.verdict is Verdict.NOTE
    assert "flat pictures in them: OpenGL 1.4 only. Debian: apt-get install libgl1" in finding.seen


def test_a_driver_that_crashes_does_not_take_doctor_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qt = "qt.qpa.plugin: From 6.5.0, xcb-cursor0 or libxcb-cursor0 is needed to load the Qt xcb platform plugin."
    pretend(tmp_path, monkeypatch, f"echo '{qt}' >&2; kill -ABRT $$")
    finding = window_and_opengl()
    assert finding.verdict is Verdict.NOTE
    assert "no window can be opened; imaging does not need one: " + qt in finding.seen
    assert "code -6" in finding.seen
    assert "libxcb-cursor0 libxcb-icccm4" in finding.seen
    monkeypatch.setattr(doctor, "PROBE_LIMIT_S", 0.2)
    pretend(tmp_path, monkeypatch, "exec sleep 60")
    assert "could not be tried" in window_and_opengl().seen


def test_without_a_display_there_is_the_network_and_xvfb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    finding = window_and_opengl()
    assert finding.verdict is Verdict.NOTE
    assert "xvfb-run -a rt-mmdf view --headless" in finding.seen


def test_a_gpu_driver_is_asked_and_believed_only_when_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu() -> doctor.Finding:
        return next(finding for finding in examine(MemoryTransport(ManualClock())) if finding.what == "GPU")

    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu().verdict is Verdict.NOTE
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'Some GPU, 80 GiB, 999.1'\n")
    script.chmod(0o755)
    assert gpu().seen == "Some GPU, 80 GiB, 999.1"
    script.write_text("#!/bin/sh\nexit 9\n")
    assert gpu().verdict is Verdict.NOTE
    assert "does not answer" in gpu().seen


def test_backends_are_told_with_what_would_install_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"onnxruntime": None, "torch-cuda": "no GPU", "tensorrt": "Install: pip install 'rt-mmdf[tensorrt]'"}
    monkeypatch.setattr("rt_mmdf.backends.choice.why_not", lambda name: known.get(name))
    found = doctor.backends()
    assert (found.what, found.verdict) == ("backends", Verdict.OK)
    assert found.seen == (
        "models run on torch, onnxruntime; no torch-cuda: no GPU; no tensorrt: Install: pip install 'rt-mmdf[tensorrt]'"
    )
    known["onnxruntime"] = "Install: pip install 'rt-mmdf[onnx]'"
    assert doctor.backends().verdict is Verdict.NOTE
