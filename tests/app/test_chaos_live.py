"""Chaos over the real network: a replay process goes wrong, a session of this process images it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from rt_mmdf.app.session import Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import MISSING, Flag, SourceEstimate
from rt_mmdf.core.channels import Modality
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.runtime.mailbox import Signal

pytestmark = [pytest.mark.lsl, pytest.mark.slow]

LIMIT_S = 60.0
SECONDS = 8.5
WRONG = {  # what each kind may be known by, while it lasts
    "vanish": Flag.EEG_MISSING | Flag.MEG_MISSING,
    "silent": Flag.EEG_MISSING | Flag.MEG_MISSING,
    "nan_channels": Flag.NONFINITE,
    "saturated_channels": Flag.CHANNEL_SUSPECT,
}


@pytest.mark.parametrize(
    ("seed", "kinds", "loops"), [(10, ["vanish", "saturated_channels"], 8), (13, ["silent", "nan_channels"], 6)]
)
def test_a_session_lives_through_it(
    seed: int,
    kinds: list[str],
    loops: int,
    small_recording: Path,
    small_content: Callable[..., dict[str, Any]],
    as_toml: Any,
    tmp_path: Path,
) -> None:
    prefix, log_file = f"t{uuid4().hex[:10]}", tmp_path / "log.json"
    chaos = {"seconds": SECONDS, "quiet_s": 4.5, "recovery_s": 1.0, "every_s": 3.0, "kinds": kinds}  # one of each
    config = as_toml({"chaos": {"seed": 0, **chaos}}, tmp_path / "replay.toml")
    words = ("--prefix", prefix, "--loop", loops, "--chaos", seed, "--config", config, "--wait-for-consumers", 60)
    estimates: list[SourceEstimate] = []
    with subprocess.Popen(
        [sys.executable, "-m", "rt_mmdf.cli", "replay", *map(str, (small_recording, *words, "--log", log_file))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as replay:
        try:
            content = small_content(prefix) | {"preprocessing": {}}
            session = Session(SessionSettings.model_validate(content), NetworkTransport(), on_estimate=estimates.append)
            with session:
                pause, deadline = Signal(), time.monotonic() + LIMIT_S
                while replay.poll() is None:
                    assert time.monotonic() < deadline
                    session.check()
                    pause.wait(0.05)
                status = session.status()
            printed, complaints = replay.communicate()
        finally:
            if replay.poll() is None:
                replay.kill()
    assert replay.returncode == 0, complaints
    log = json.loads(log_file.read_text())
    faults = log["chaos"]["faults"]
    assert f"chaos, seed {seed}" in printed
    assert all(fault["kind"] in printed for fault in faults)
    flags, times = (np.concatenate([getattr(e, key) for e in estimates]) for key in ("flags", "times"))
    data = np.hstack([e.data for e in estimates])
    invalid = (flags & np.uint32(Flag.INVALID)) != 0
    assert np.isfinite(data[:, ~invalid]).all()
    for fault in faults:
        stream = log["streams"][fault["stream"]]
        began, ended = (stream["stamp_0"] + fault[key] / stream["sfreq"] for key in ("first", "stop"))
        inside = (times > began + 0.01) & (times < ended - 0.01)
        assert inside.any()
        said = (flags[inside] & np.uint32(WRONG[fault["kind"]])) != 0
        if fault["kind"] in ("vanish", "silent"):
            assert said.all(), fault
            assert (flags[inside] & np.uint32(MISSING[Modality(fault["stream"])])).all()
        else:
            # flagged from its first samples on, until the channel is known as bad
            assert said[: round(0.4 * stream["sfreq"])].all(), fault
    # both streams are imaged again, for all that liblsl needs to find the one that was away
    meg = log["streams"]["meg"]
    over = meg["stamp_0"] + (meg["n_sent"] + meg["n_skipped"]) / meg["sfreq"]
    newest = flags[(times > over - 1.5) & (times < over - 0.5)]
    assert len(newest) > 200
    assert not newest.any(), faults
    assert {name for f in faults for name in f["channels"]} >= set(status["bad_channels"])
    assert not status["overwritten_samples"]
