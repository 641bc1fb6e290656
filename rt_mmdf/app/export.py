"""A model in the forms of the backends, as files, with a report of how true each of them is on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

from rt_mmdf.acquisition.recording import read_recording
from rt_mmdf.app.imaging import Imaging, Progress
from rt_mmdf.app.scorecard import versions, write_json
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ConfigurationError, SinkError, SolverError
from rt_mmdf.lsl.library import liblsl_version
from rt_mmdf.solvers.artefact import Artefact

if TYPE_CHECKING:
    from rt_mmdf.backends.choice import Programs, Tried
    from rt_mmdf.solvers.network import Fitted, TrainedNetwork

REPORT = "parity.json"
N_SAMPLES, N_WINDOWS = 48, 12
WINDOW_MARGIN_S = 0.5  # of a recording, at both ends: filters settle there


@dataclass(frozen=True)
class WindowsCompared:
    """Estimates under a prior that torch made of a window in single precision, against double precision throughout.

    A prior keeps the most powerful patches; which of two that are as powerful is kept may depend on the last digit, and with
    it the estimate. So no limit is held here: this is what the reference itself leaves open, and other backends are held to
    it (`rt_mmdf.backends.accuracy.window_limits`).
    """

    n_windows: int
    median_relative_l2: float
    median_peak_mm: float
    largest_relative_l2: float
    largest_peak_mm: float


@dataclass(frozen=True, eq=False)
class Compared:
    """Backends against double precision on some samples.

    source : of the samples: "simulated", or the name of a recording
    backends : one entry for each backend and precision
    windows : how true what torch makes of windows is; None for networks without
    window_backends : of what is made of windows, one entry for each backend
    """

    source: str
    backends: tuple[Tried, ...]
    windows: WindowsCompared | None
    window_backends: tuple[Tried, ...] = ()


@dataclass(frozen=True, eq=False)
class Export:
    """What was written, and how true it is.

    network : kind of the network
    part : what of it is in the files, in words
    files : names in the folder
    """

    model: str
    network: str
    part: str
    folder: Path
    files: tuple[str, ...]
    compared: tuple[Compared, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values: what the report holds."""
        from rt_mmdf.backends.accuracy import LIMITS, WINDOW_LIMITS

        return {
            "model": self.model,
            "network": self.network,
            "exported": self.part,
            "files": list(self.files),
            "limits": {precision: limits.__dict__ for precision, limits in LIMITS.items()},
            "window_limits": WINDOW_LIMITS.__dict__,
            "compared": [
                {
                    "samples": compared.source,
                    "backends": [tried.as_dict() for tried in compared.backends],
                    "windows": None if compared.windows is None else compared.windows.__dict__,
                    "window_backends": [tried.as_dict() for tried in compared.window_backends],
                }
                for compared in self.compared
            ],
            "versions": versions(liblsl_version()),
        }


def export_model(
    artefact: Artefact, folder: Path, recording: Path | None = None, progress: Progress | None = None
) -> Export:
    """Write ONNX graphs of a model, engines where TensorRT runs here, and the report.

    Parameters
    ----------
    recording : real samples to compare the backends on, beside simulated ones; its EEG and MEG at one sampling rate

    Raises
    ------
    ConfigurationError, RecordingError, ArtefactError, SolverError
        The recording or the model cannot be used, or onnx is missing.
    SinkError
        The folder cannot be written.
    """
    from rt_mmdf.backends.choice import why_not
    from rt_mmdf.backends.interface import BackendUnavailable
    from rt_mmdf.backends.torch_backend import one_thread
    from rt_mmdf.networks.pictures import PictureNetwork

    report = progress or (lambda what, fraction: None)
    if (reason := why_not("onnxruntime")) is not None:
        raise BackendUnavailable(f"rt-mmdf export: {reason}")
    with one_thread():
        report("head and network", 0.1)
        model, fitted = _model(artefact, artefact.channels, ())
        found = model.trial(fitted)
        if found is None:
            raise SolverError(
                f"model {artefact.name!r}: what the network {artefact.kind} does for a sample has no ONNX form."
            )
        programs = found[0]
        report("comparing on simulated samples", 0.3)
        compared = [_compare("simulated", model, fitted, None)]
        if recording is not None:
            report(f"comparing on {recording.name}", 0.5)
            compared.append(_compare_on(recording, artefact))
        report("writing", 0.9)
        forms = {artefact.name: programs}
        if (looks := model.window_trial(fitted)) is not None:
            forms[f"{artefact.name}-window"] = looks[0].shared
        files = _write_forms(forms, folder)
        single = isinstance(model.network, PictureNetwork)
    export = Export(
        artefact.name,
        artefact.kind,
        "the whole network"
        if single
        else "what is done for every sample; what the network says of a window (its operands are in the file of "
        "operands). The few decompositions before and after that stay in torch: ONNX has no operators for them",
        folder,
        (*files, REPORT),
        tuple(compared),
    )
    write_json(folder / REPORT, export.as_dict())
    return export


def _model(
    artefact: Artefact, channels: Channels, bads: Sequence[str], rates: Mapping[Modality, float] | None = None
) -> tuple[TrainedNetwork, Fitted]:
    """The network as a session would image with it."""
    content = {
        "acquisition": {str(modality): {"name": "export"} for modality in channels.modalities},
        "solver": {"model": str(artefact.folder), "backend": "torch"},
        "preprocessing": {
            "bads": list(bads),
            "filters": {"band_pass": {"low_hz": artefact.low_hz, "high_hz": artefact.high_hz}},
        },
    }
    rates = rates or dict.fromkeys(channels.modalities, 1000.0)
    imaging = Imaging.prepare(SessionSettings.model_validate(content), channels, rates=rates)
    assert imaging.model is not None
    return imaging.model, imaging.model.fit(bads)


def _compare(source: str, model: TrainedNetwork, fitted: Fitted, windows: Float32 | None) -> Compared:
    """On windows (n, n_channels, n_times), whitened; None: simulated ones."""
    from rt_mmdf.backends.accuracy import accuracy_of, trial_windows
    from rt_mmdf.backends.choice import precisions_of, survey
    from rt_mmdf.backends.interface import BACKENDS

    if windows is None:
        arrays = fitted.arrays
        windows = trial_windows(arrays.leadfield, arrays.used, N_SAMPLES, model.artefact.n_times)
    found = model.trial(fitted, np.ascontiguousarray(windows[:, :, -1].T), windows[0])
    assert found is not None
    programs, trial = found
    kinds = [(backend, precision) for backend in BACKENDS for precision in precisions_of(backend, programs.task)]
    outcomes = survey(programs, trial, kinds)
    looks = model.window_trial(fitted, windows[:: max(1, len(windows) // N_WINDOWS)])
    if looks is None:
        return Compared(source, outcomes, None)
    own, of_windows = looks
    both = own.runner("torch")(of_windows.samples), own.truth(of_windows)
    each = [accuracy_of(said[None], true[None], fitted.arrays.positions_mm) for said, true in zip(*both, strict=True)]
    off = np.array([[seen.relative_l2, seen.peak_mm] for seen in each])
    return Compared(
        source,
        outcomes,
        WindowsCompared(len(each), *(float(x) for x in (*np.median(off, 0), *off.max(0)))),
        survey(own, of_windows, [(backend, "fp32") for backend in BACKENDS]),
    )


def _compare_on(path: Path, artefact: Artefact) -> Compared:
    sensors = read_recording(path).sensors
    rates = {modality: float(raw.info["sfreq"]) for modality, raw in sensors.items()}
    if len(set(rates.values())) > 1:
        seen = ", ".join(f"{modality.upper()} {rate:g} Hz" for modality, rate in rates.items())
        raise ConfigurationError(f"rt-mmdf export: recording {path.name} has {seen}; one sampling rate is expected.")
    parts, names, kinds, bads = [], [], [], []
    for modality, raw in sensors.items():
        own = raw.copy().load_data(verbose="error")
        known = [ChannelType(kind) for kind in own.get_channel_types()]
        picks = [i for i, kind in enumerate(known) if kind.modality is modality]
        own.filter(artefact.low_hz, artefact.high_hz, picks=picks, verbose="error")
        parts.append(own.get_data(picks))
        names += [own.ch_names[i] for i in picks]
        kinds += [known[i] for i in picks]
        bads += [own.ch_names[i] for i in picks if own.ch_names[i] in own.info["bads"]]
    channels = Channels(tuple(names), tuple(kinds))
    artefact.check_channels(channels)
    model, fitted = _model(artefact, channels, bads, rates)
    n_samples = min(part.shape[1] for part in parts)
    data = np.vstack([part[:, :n_samples] for part in parts])
    rows = channels.indices(fitted.whitener.channels.names)
    whitened = np.zeros((fitted.arrays.n_channels, n_samples), np.float32)
    whitened[fitted.rows] = fitted.whitener.matrix @ data[rows]
    sfreq = next(iter(rates.values()))
    step = max(1, round(sfreq / artefact.window_sfreq))
    margin = round(WINDOW_MARGIN_S * sfreq)
    first = margin + (artefact.n_times - 1) * step
    if first >= n_samples - margin:
        raise ConfigurationError(
            f"rt-mmdf export: recording {path.name} lasts {n_samples / sfreq:.1f} s; more than "
            f"{(first + margin) / sfreq:.1f} s are expected for a window of the model and filters that settle."
        )
    ends = np.linspace(first, n_samples - margin - 1, N_SAMPLES).round().astype(int)
    columns = [np.arange(end - (artefact.n_times - 1) * step, end + 1, step) for end in ends]
    return _compare(path.name, model, fitted, np.stack([whitened[:, own] for own in columns]))


def _write_forms(forms: Mapping[str, Programs], folder: Path) -> list[str]:
    """By their names: ONNX graphs for any number of samples, or for one window, and the engines of this machine."""
    from rt_mmdf.backends.choice import why_not

    contents: dict[str, bytes] = {}
    for name, programs in forms.items():
        task = programs.task
        for precision in task.precisions:
            if precision != "tf32":  # its graph is that of fp32
                contents[f"{name}-{precision}.onnx"] = task.onnx(task.rows, precision)
            if why_not("tensorrt") is None:
                for n in task.sizes:
                    contents[f"{name}-{precision}-{n}.engine"] = programs.tensorrt(precision).engine(n)
        if task.example is not None:
            contents[f"{name}-operands.safetensors"] = save(dict(zip(task.operand_names, task.example[1], strict=True)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            (folder / file).write_bytes(content)
    except OSError as error:
        raise SinkError(f"rt-mmdf export: {folder} cannot be written ({error.strerror}). Choose another folder.") from error
    return list(contents)
