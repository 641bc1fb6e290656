"""A recording that is replayed and imaged on this machine: the replay's process, and the configuration that images it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mne

from rt_mmdf.acquisition.recording import read_recording
from rt_mmdf.app.imaging import Progress
from rt_mmdf.core.channels import ChannelType, Modality
from rt_mmdf.core.errors import StreamError
from rt_mmdf.runtime import processes
from rt_mmdf.solvers.artefact import find_model, load_artefact

END_S = 10.0


def replayed_session(
    prefix: str,
    solver: Mapping[str, Any],
    *,
    recording: Path | None,
    head: Path | None = None,
    noise_cov: Path | None = None,
    spacing: str | None = None,
    progress: Progress = lambda what, fraction: None,
) -> tuple[dict[str, Any], bool]:
    """Plain values of a configuration that images streams called PREFIX-EEG and PREFIX-MEG, and whether its solver is a
    model that is bound to one head and noise.

    Parameters
    ----------
    solver : the section [solver]
    recording : what is replayed, where it brings sensors, bad channels and projections of its own; None: the template's
    head, noise_cov, spacing : as in the command line; a model that is bound to a head brings it, unless one is named
    """
    content: dict[str, Any] = {
        "name": prefix,
        "acquisition": {m.value: {"name": f"{prefix}-{m.upper()}", "resolve_timeout_s": 60.0} for m in Modality},
        "preprocessing": {"filters": {"band_pass": {"low_hz": 1.0, "high_hz": 40.0}}},
        "solver": dict(solver),
        "head": {"spacing": spacing or "ico4"} if head is None else {"folder": head},
        "start_timeout_s": 60.0,
    }
    bound = "model" in solver and not load_artefact(find_model(solver["model"])).head_free
    if recording is not None:
        progress(f"reading {recording.name}", 0.0)
        infos = {m: raw.info for m, raw in read_recording(recording).sensors.items()}
        content["acquisition"] = {m: content["acquisition"][m] for m in infos}
        content["preprocessing"]["bads"] = [name for m, info in infos.items() for name in _imaged_bads(info, m)]
        if any(len(info["projs"]) for info in infos.values()):
            content["preprocessing"]["projections"] = recording
        if noise_cov is not None:
            content["noise"] = {"file": noise_cov}
        if head is None:
            content["head"]["recording"] = recording
    if bound and head is None and spacing is None:
        del content["head"]
    return content, bound


def _imaged_bads(info: mne.Info, modality: Modality) -> list[str]:
    """Channels of a modality that are marked as bad in the recording."""
    kinds = dict(zip(info["ch_names"], info.get_channel_types(), strict=True))
    return [name for name in info["bads"] if ChannelType(kinds[name]).modality is modality]


class ReplayProcess:
    """`rt-mmdf replay` in a process of its own: another clock reader, another interpreter, real sockets.

    Started at once, ended on the way out.

    Parameters
    ----------
    recording : what is played
    prefix : of its streams
    folder : for its log (``replay.json``) and what it says (``replay.log``)
    words : further words of the command
    who : begins the messages of errors
    """

    def __init__(self, recording: Path, prefix: str, folder: Path, words: Sequence[str], who: str) -> None:
        self._who = who
        self.log_file = folder / "replay.json"
        self.log_file.unlink(missing_ok=True)
        self._output = folder / "replay.log"
        command = [sys.executable, "-m", "rt_mmdf.cli", "replay", str(recording), "--prefix", prefix]
        command += ["--log", str(self.log_file), *words]
        with self._output.open("w") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    @property
    def ended(self) -> bool:
        """Whether it has played to its end."""
        return self._process.poll() == 0

    def check(self) -> None:
        """StreamError if it died."""
        if self._process.poll() not in (None, 0):
            raise StreamError(f"{self._who}: the replay process ended with {self._process.returncode}: {self._last_words()}")

    def _last_words(self) -> str:
        return self._output.read_text(errors="replace").strip()[-1000:] or "it said nothing"

    def stop(self) -> dict[str, Any]:
        """End it and return its log of what it sent."""
        processes.end(self._process, END_S)
        try:
            log: dict[str, Any] = json.loads(self.log_file.read_text())
        except (OSError, ValueError) as error:
            raise StreamError(f"{self._who}: the replay process left no log ({error}): {self._last_words()}") from error
        return log

    def __enter__(self) -> ReplayProcess:
        return self

    def __exit__(self, *unused: object) -> None:
        processes.end(self._process, END_S)
