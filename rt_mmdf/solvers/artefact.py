"""The model artefact: a folder that holds a trained network and all that it was trained for, and proves itself.

    models/fusion/
        manifest.toml         what it is: network, channels, filters, sources, versions, SHA-256 of every other file
        weights.safetensors   numbers only: nothing in it can be executed
        head.safetensors      sketch of the head's leadfield, positions of its sources; all of the head if it is no template
        head-info.fif         sensors of a head that is no template
        noise-cov.fif         noise covariance, ready to whiten with, and the SSP projectors
        CARD.md               how it was trained, how well it does, what it must not be used for

Training writes it (`save_artefact`), the live chain reads it (`load_artefact`). torch is imported by neither.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mne
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

import rt_mmdf
from rt_mmdf.core.channels import Channels, ChannelType
from rt_mmdf.core.errors import ArtefactError, HeadModelError
from rt_mmdf.core.files import MAX_TOML, parse_toml, read_plain
from rt_mmdf.core.text import printable
from rt_mmdf.headmodel.compact import N_PROJECTIONS, compact_arrays, head_of_arrays, sketch, sketch_difference
from rt_mmdf.headmodel.head import HeadModel, RecipeValue
from rt_mmdf.headmodel.noise import read_noise_cov
from rt_mmdf.headmodel.template import Progress, build_template

if TYPE_CHECKING:
    from rt_mmdf.networks.interface import SourceNetwork

FORMAT = 1
MANIFEST, WEIGHTS, NOISE, CARD = "manifest.toml", "weights.safetensors", "noise-cov.fif", "CARD.md"
HEAD, HEAD_INFO = "head.safetensors", "head-info.fif"
DEFAULT_MODEL = "fusion"  # the best one that ships: what the demonstration images with
UNIT = "A m"
ORIENTATION = "fixed, normal to cortex"
WINDOW_SFREQ = 100.0  # of the window that a network sees, Hz
SKETCH_TOLERANCE = 1e-3  # a BEM that is solved on another machine differs in its last digits
POSITION_TOLERANCE_MM = 0.1
MAX_FILE, MAX_FILES = 1 << 30, 16
MAX_WINDOW, MAX_NUMBER = 10_000, 1e6  # samples of a window; what no place in mm and no rate in Hz exceeds
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
"""Of a model: files are called by it."""

PlainValue = int | float | str | bool


@dataclass(frozen=True, eq=False)
class Artefact:
    """A trained network, as it was read from its folder and checked.

    name : of the model
    kind, options : what `rt_mmdf.networks.build.build_network` makes the network of
    head_free : it images with any head, noise and channels; the others with those they were trained for alone
    n_times : columns of the window, at about `window_sfreq` Hz, that it makes use of; 1: it sees one sample
    weights : by their names in the network
    channels : EEG and MEG, in the order in which the network was trained
    low_hz, high_hz : band of what it was trained on
    noise_cov : ready to whiten with (regularised, if it needed to be); its SSP projectors are in ``noise_cov["projs"]``
    card : text of CARD.md
    versions : of the libraries that trained it
    """

    folder: Path
    name: str
    kind: str
    options: Mapping[str, PlainValue]
    head_free: bool
    n_times: int
    window_sfreq: float
    weights: Mapping[str, NDArray[Any]]
    weights_sha256: str
    channels: Channels
    low_hz: float | None
    high_hz: float | None
    noise_cov: mne.Covariance
    head_name: str
    head_kind: str
    head_recipe: Mapping[str, RecipeValue]
    head_arrays: Mapping[str, NDArray[Any]]
    card: str
    versions: Mapping[str, str]

    @property
    def n_sources(self) -> int:
        return len(self.head_arrays["positions_mm"])

    @property
    def projs(self) -> list[mne.Projection]:
        """SSP projectors that it was trained behind, the average reference not among them."""
        return list(self.noise_cov["projs"])

    @property
    def n_weights(self) -> int:
        return int(sum(values.size for values in self.weights.values()))

    def load_head(self, progress: Progress | None = None) -> HeadModel:
        """The head that it was trained for, its channels in the order of `channels`.

        The template is built (or taken from the cache) and compared with the artefact's sketch of it.

        Raises
        ------
        HeadModelError
            It cannot be built.
        ArtefactError
            What was built is another head.
        """
        names = list(self.channels.names)
        if "leadfield" in self.head_arrays:
            return self._stored_head.pick(names)
        head = _template_of(self.head_recipe, self.head_name, progress)
        if lacking := head.missing(names):
            raise ArtefactError(
                f"model {self.name!r}: {len(lacking)} of its {len(names)} channels are not in the template head that its "
                f"recipe makes here ({', '.join(lacking[:5])}). Another version of mne has another array: "
                f"{self._trained_with('mne')}."
            )
        head = head.pick(names)
        self.check_head(head)
        return head

    @cached_property
    def _stored_head(self) -> HeadModel:
        try:
            info = mne.io.read_info(self.folder / HEAD_INFO, verbose="ERROR")
            order = [info["ch_names"].index(name) for name in self.channels.names]
            kind: Any = self.head_kind
            return head_of_arrays(self.head_arrays, mne.pick_info(info, order), self.head_name, kind, self.head_recipe)
        except Exception as error:  # mne's reader fails in many ways on a damaged file
            raise ArtefactError(
                f"model {self.folder}: its head cannot be read ({type(error).__name__}: {printable(str(error))}). Get the "
                "artefact again, or train it again."
            ) from error

    def check_head(self, head: HeadModel) -> None:
        """Raise ArtefactError unless `head` is the head that the network was trained for, on the channels that both have."""
        hint = "Leave out [head] so that the model's own is used, or train a model for this head: rt-mmdf train --help"
        if head.n_sources != self.n_sources:
            raise ArtefactError(
                f"model {self.name!r}: head model {head.name!r} has {head.n_sources} sources; the network images "
                f"{self.n_sources}. {hint}"
            )
        apart = float(np.abs(head.source_positions_mm - self.head_arrays["positions_mm"]).max())
        if apart > POSITION_TOLERANCE_MM:
            raise ArtefactError(
                f"model {self.name!r}: sources of head model {head.name!r} lie up to {apart:.1f} mm from those that the "
                f"network was trained for; at most {POSITION_TOLERANCE_MM:g} mm is expected. {hint}"
            )
        place = {name.replace(" ", ""): i for i, name in enumerate(self.channels.names)}
        shared = [name for name in head.ch_names if name.replace(" ", "") in place]
        if not shared:
            raise ArtefactError(
                f"model {self.name!r}: none of the {len(head.ch_names)} channels of head model {head.name!r} "
                f"({', '.join(head.ch_names[:3])}, ...) is among its own ({', '.join(self.channels.names[:3])}, ...). {hint}"
            )
        rows = [place[name.replace(" ", "")] for name in shared]
        apart = sketch_difference(sketch(head.leadfield(shared)), self.head_arrays["sketch"][rows])
        if not apart <= SKETCH_TOLERANCE:
            raise ArtefactError(
                f"model {self.name!r}: the leadfield of head model {head.name!r} differs by {apart:.2g} from the one that "
                f"the network was trained for; at most {SKETCH_TOLERANCE:g} is expected. {hint} "
                f"({self._trained_with('mne', 'nilearn')})"
            )

    def _trained_with(self, *libraries: str) -> str:
        seen = ", ".join(f"{name} {printable(str(self.versions.get(name, 'unknown'))[:40])}" for name in libraries)
        return f"it was trained with {seen}; here {', '.join(f'{name} {version(name)}' for name in libraries)}"

    def check_channels(self, streaming: Channels) -> None:
        """Raise ArtefactError where a channel of the streams has another type than the one of that name here."""
        kinds = {n.replace(" ", ""): kind for n, kind in zip(self.channels.names, self.channels.types, strict=True)}
        other = [
            f"{name} is {kind.value}, {kinds[name.replace(' ', '')].value} in the model"
            for name, kind in zip(streaming.names, streaming.types, strict=True)
            if kinds.get(name.replace(" ", ""), kind) is not kind
        ]
        if other:
            raise ArtefactError(
                f"model {self.name!r}: {len(other)} channels that stream are of another type ({'; '.join(other[:3])}). Set "
                "them under [acquisition.eeg.types] or [acquisition.meg.types], or take a model for this array."
            )


def save_artefact(
    folder: Path,
    network: SourceNetwork,
    head: HeadModel,
    noise_cov: mne.Covariance,
    *,
    name: str,
    card: str,
    projs: Sequence[mne.Projection] = (),
    low_hz: float | None = 1.0,
    high_hz: float | None = 40.0,
    window_sfreq: float = WINDOW_SFREQ,
) -> Artefact:
    """Write a trained network; an artefact that is there already is replaced, in one step.

    Parameters
    ----------
    network : with `options` from which `build_network` makes it again; its `state_dict` is written in single precision
    head : that it was trained for; all its channels, in this order, are those of the network
    noise_cov : of all channels of the head, as the whitener was made of it (regularised)
    projs : SSP projectors of that whitener; the average reference need not be among them
    low_hz, high_hz, window_sfreq : band of the training data, rate of their windows

    Returns
    -------
    Artefact, read back from what was written

    Raises
    ------
    ArtefactError
        Weights or channels that cannot be, a folder that is no artefact or cannot be written.
    """
    folder = Path(folder)
    weights = {}
    for key, values in network.state_dict().items():
        own = values.detach().cpu()
        weights[key] = (own.float() if own.is_floating_point() else own).numpy()
    if wrong := [key for key, values in weights.items() if not np.isfinite(values).all()]:
        raise ArtefactError(
            f"model {name!r}: NaN or infinity in {len(wrong)} of its weights ({', '.join(wrong[:5])}); nothing was written. "
            "Its training has diverged: lower the learning rate, or take an earlier checkpoint."
        )
    if lacking := sorted(set(head.ch_names) - set(noise_cov["names"])):
        raise ArtefactError(
            f"model {name!r}: the noise covariance lacks {len(lacking)} of the head's {len(head.ch_names)} channels "
            f"({', '.join(lacking[:5])}). Give the covariance that it was trained with."
        )
    files: dict[str, bytes] = {WEIGHTS: _tensors(weights), CARD: card.encode()}
    arrays: dict[str, NDArray[Any]] = {
        "sketch": sketch(head.leadfield()),
        "positions_mm": np.ascontiguousarray(head.source_positions_mm, dtype=np.float32),
    }
    template = _is_template(head)
    if not template:
        arrays |= compact_arrays(head)
    files[HEAD] = _tensors(arrays)
    noise = mne.pick_channels_cov(noise_cov, list(head.ch_names), exclude=[], ordered=True, verbose="ERROR")
    noise["projs"] = [deepcopy(proj) for proj in projs]
    content: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "unit": UNIT,
        "orientation": ORIENTATION,
        "network": {
            "kind": network.kind,
            "head_free": network.head_free,
            "n_times": network.n_times,
            "options": dict(network.options),
        },
        "input": {
            "ch_names": list(head.ch_names),
            "ch_types": [kind.value for kind in head.channels.types],
            "ch_units": [kind.si_unit for kind in head.channels.types],
            "window_sfreq": float(window_sfreq),
            **({} if low_hz is None else {"low_hz": float(low_hz)}),
            **({} if high_hz is None else {"high_hz": float(high_hz)}),
        },
        "sources": {
            "n_sources": head.n_sources,
            "n_left": len(head.vertices[0]),
            "vertices_sha256": _vertices_digest(head),
        },
        "head": {"name": head.name, "kind": head.kind, "stored": not template, "recipe": dict(head.recipe)},
        "versions": _versions(),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise _not_written(folder, error) from error
    try:
        for file_name, data in files.items():
            (scratch / file_name).write_bytes(data)
        mne.write_cov(scratch / NOISE, noise, verbose="ERROR")
        if not template:
            head.info.save(scratch / HEAD_INFO, verbose="ERROR")
        _write_manifest(scratch, content)
        scratch.chmod(0o755)
        load_artefact(scratch)  # what cannot be read is not published
        _replace_folder(scratch, folder)
    except OSError as error:
        raise _not_written(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return load_artefact(folder)


def replace_card(folder: Path, card: str) -> None:
    """Put another text into CARD.md, for example with an evaluation that came after training; the rest stays as it is."""
    content = _read_manifest(Path(folder))
    try:
        _write_whole(Path(folder) / CARD, card.encode())
        content["files"][CARD] = hashlib.sha256(card.encode()).hexdigest()
        _write_whole(Path(folder) / MANIFEST, _manifest_text(content))
    except OSError as error:
        raise _not_written(Path(folder), error) from error


def load_artefact(folder: Path) -> Artefact:
    """Read an artefact and check every file of it.

    Nothing of it is executed. Whoever writes the manifest writes its digests, too: they prove that an artefact is whole and
    unchanged, not who has made it.

    Raises
    ------
    ArtefactError
        No artefact, another version, or a file that is missing, truncated, changed, or says what cannot be.
    """
    folder = Path(folder)
    content = _read_manifest(folder)
    files = {name: _checked(folder, name, digest) for name, digest in content["files"].items()}
    try:
        given, network, head = content["input"], content["network"], content["head"]
        channels = Channels(tuple(given["ch_names"]), tuple(ChannelType(kind) for kind in given["ch_types"]))
        arrays = safetensors.numpy.load(files[HEAD])
        artefact = Artefact(
            folder=folder,
            name=str(content["name"]),
            kind=str(network["kind"]),
            options=dict(network["options"]),
            head_free=bool(network["head_free"]),
            n_times=int(network["n_times"]),
            window_sfreq=float(given["window_sfreq"]),
            weights=safetensors.numpy.load(files[WEIGHTS]),
            weights_sha256=content["files"][WEIGHTS],
            channels=channels,
            low_hz=given.get("low_hz"),
            high_hz=given.get("high_hz"),
            noise_cov=read_noise_cov(folder / NOISE, channels.names),
            head_name=str(head["name"]),
            head_kind=str(head["kind"]),
            head_recipe=dict(head["recipe"]),
            head_arrays=arrays,
            card=files[CARD].decode(),
            versions=dict(content["versions"]),
        )
        contradictions = _contradictions(artefact, content)
    except Exception as error:  # hashes are right, so whoever wrote it has written anything
        raise ArtefactError(
            f"model {folder}: its files fit their hashes but cannot be understood ({type(error).__name__}: "
            f"{printable(str(error))}). It was written by rt_mmdf {_version_in(content)}; this is {rt_mmdf.__version__}. "
            "Train it again."
        ) from error
    if contradictions:
        raise ArtefactError(
            f"model {folder}: manifest and arrays contradict each other or say what cannot be "
            f"({'; '.join(contradictions)}). Train it again."
        )
    return artefact


def _contradictions(artefact: Artefact, content: Mapping[str, Any]) -> list[str]:
    """What is wrong between manifest and arrays, in words."""
    arrays, n_channels = artefact.head_arrays, len(artefact.channels)
    numbers = [artefact.window_sfreq, *(hz for hz in (artefact.low_hz, artefact.high_hz) if hz is not None)]
    places = arrays["positions_mm"]
    told = {
        f"name {artefact.name[:80]!r}": NAME.fullmatch(artefact.name) is not None,
        f"unit {str(content['unit'])[:80]!r}": content["unit"] == UNIT,
        "units of the channels": content["input"]["ch_units"] == [kind.si_unit for kind in artefact.channels.types],
        f"sketch of shape {arrays['sketch'].shape}": arrays["sketch"].shape == (n_channels, N_PROJECTIONS),
        f"positions of shape {places.shape}": places.shape == (content["sources"]["n_sources"], 3) and len(places) > 0,
        "positions that are none": bool((np.abs(places) < MAX_NUMBER).all()),
        "weights that are no finite numbers": all(np.isfinite(values).all() for values in artefact.weights.values()),
        f"a window of {artefact.n_times} samples": 1 <= artefact.n_times <= MAX_WINDOW,
        "rates and limits of the filters": all(0 < hz < MAX_NUMBER for hz in numbers),
    }
    return [what for what, sound in told.items() if not sound]


def find_model(name: str | Path) -> Path:
    """Folder of a model: the path that is given, or a model of that name.

    Looked for in ./models, in the models of the checkout, and in those that were installed with the package.

    Raises
    ------
    ArtefactError
        There is none.
    """
    given = Path(name).expanduser()
    if (given / MANIFEST).is_file():
        return given
    places = _model_folders()
    if given.name == str(name):
        for place in places:
            if (place / given / MANIFEST).is_file():
                return place / given
    known = ", ".join(known_models()) or "none"
    raise ArtefactError(
        f"model {str(name)!r}: no {MANIFEST} in {given}, nor in a folder of that name in {', '.join(map(str, places))}. "
        f"Models at hand: {known}. Give one of these names or the folder of an artefact; rt-mmdf train makes one."
    )


def default_model() -> str | None:
    """The name of the best model that ships, where it is at hand."""
    return DEFAULT_MODEL if DEFAULT_MODEL in known_models() else None


def known_models() -> list[str]:
    """Names of the models that `find_model` finds by name."""
    found = {path.parent.name for place in _model_folders() if place.is_dir() for path in place.glob(f"*/{MANIFEST}")}
    return sorted(found)


def _model_folders() -> list[Path]:
    package = Path(rt_mmdf.__file__).resolve().parent
    checkout = [package.parent / "models"] if (package.parent / "pyproject.toml").is_file() else []
    return list(dict.fromkeys([Path.cwd() / "models", *checkout, package / "models"]))


def _is_template(head: HeadModel) -> bool:
    """Whether its recipe alone makes this head."""
    if head.kind != "template" or head.recipe.get("vertices") != "all" or head.recipe.get("sensors") == "recording":
        return False
    try:
        again = _template_of(head.recipe, head.name, None)
    except HeadModelError:
        return False
    if again.missing(head.ch_names) or again.n_sources != head.n_sources:
        return False
    return sketch_difference(sketch(head.leadfield()), sketch(again.leadfield(head.ch_names))) <= SKETCH_TOLERANCE


def _template_of(recipe: Mapping[str, RecipeValue], name: str, progress: Progress | None) -> HeadModel:
    given: Mapping[str, Any] = recipe  # build_template checks the values
    try:
        meg, eeg = str(recipe["sensors"]).split(" + ")
        brain, skull, scalp = given["conductivity"]
        spacing, bem_ico = given["spacing"], given["bem_ico"]
    except (KeyError, TypeError, ValueError) as error:
        raise HeadModelError(
            f"head model {name!r}: its recipe cannot be understood ({error!r}). Get the model that it is of again."
        ) from error
    return build_template(
        spacing=spacing,
        meg=None if meg == "no MEG" else meg,
        eeg=None if eeg == "no EEG" else eeg,
        conductivity=(brain, skull, scalp),
        bem_ico=bem_ico,
        name=name,
        progress=progress,
    )


def _vertices_digest(head: HeadModel) -> str:
    digest = hashlib.sha256()
    for side in head.vertices:
        digest.update(np.ascontiguousarray(side, dtype="<i8").tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    libraries = ("mne", "nilearn", "numpy", "torch", "safetensors")
    return {"rt-mmdf": rt_mmdf.__version__} | {name: version(name) for name in libraries}


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content = parse_toml(read_plain(folder / MANIFEST, MAX_TOML))
    except FileNotFoundError as error:
        raise ArtefactError(
            f"model {folder}: no {MANIFEST} in it. Expected is a folder that `rt-mmdf train` wrote, or the name of one of "
            f"{', '.join(known_models()) or 'no models'}."
        ) from error
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"model {folder}: {MANIFEST} cannot be read ({printable(str(error))}). Get the artefact again."
        ) from error
    if content.get("format") != FORMAT:
        raise ArtefactError(
            f"model {folder}: an artefact of format {repr(content.get('format'))[:80]}; rt_mmdf {rt_mmdf.__version__} "
            f"reads format {FORMAT}. Train it again with this version, or install the version that wrote it "
            f"({_version_in(content)})."
        )
    digest, files = content.pop("digest", None), content.get("files")
    listed = isinstance(files, dict) and {WEIGHTS, HEAD, NOISE, CARD} <= files.keys() and len(files) <= MAX_FILES
    if not listed or digest != _digest(content):
        raise ArtefactError(
            f"model {folder}: {MANIFEST} was changed or cut off after it was written: its digest does not fit. Get the "
            "artefact again; to change settings, train again."
        )
    return content


def _version_in(content: Mapping[str, Any]) -> str:
    """Of rt_mmdf, that wrote a manifest; as it says."""
    versions = content.get("versions")
    return printable(str(versions.get("rt-mmdf", "unknown"))[:40]) if isinstance(versions, dict) else "unknown"


def _checked(folder: Path, name: str, expected: object) -> bytes:
    """Content of a file of the artefact, if it is the one of the manifest."""
    if NAME.fullmatch(name) is None:
        raise ArtefactError(f"model {folder}: {MANIFEST} names {name[:80]!r}; only files in the folder itself are expected.")
    try:
        data = read_plain(folder / name, MAX_FILE)
    except OSError as error:
        raise ArtefactError(
            f"model {folder}: {name} cannot be read ({error.strerror}). Every file that {MANIFEST} names is needed, as a "
            "plain file: get the artefact again."
        ) from error
    if (seen := hashlib.sha256(data).hexdigest()) != expected:
        raise ArtefactError(
            f"model {folder}: {name} has SHA-256 {seen[:16]} ({len(data)} bytes), {str(expected)[:16]!r} is expected: it "
            "was truncated or changed. Get the artefact again (with git: is it checked out whole?)."
        )
    return data


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    content["files"] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    (folder / MANIFEST).write_bytes(_manifest_text(content))


def _manifest_text(content: Mapping[str, Any]) -> bytes:
    return ("\n".join(_toml_lines({"digest": _digest(content), **content})) + "\n").encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    # safetensors writes memory as it lies: an array in Fortran order would come back scrambled
    data: bytes = safetensors.numpy.save({key: np.array(values, order="C") for key, values in arrays.items()})
    return data


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml_lines(table: Mapping[str, Any], at: str = "") -> Iterable[str]:
    # JSON's strings, numbers, booleans and arrays are TOML's
    yield from (f"{_key(k)} = {json.dumps(v, ensure_ascii=False)}" for k, v in table.items() if not isinstance(v, Mapping))
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield ""
            yield f"[{at}{_key(key)}]"
            yield from _toml_lines(value, f"{at}{_key(key)}.")


def _write_whole(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _replace_folder(scratch: Path, folder: Path) -> None:
    if not folder.exists():
        scratch.rename(folder)
        return
    if not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtefactError(
            f"model {folder}: there is something else than an artefact of that name; it was left as it is. Choose another "
            "folder."
        )
    aside = scratch.with_name(f"{scratch.name}-old")
    folder.rename(aside)
    try:
        scratch.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _not_written(folder: Path, error: OSError) -> ArtefactError:
    return ArtefactError(
        f"model {folder}: cannot be written ({error.strerror or error}). Choose a folder that you may write to, on a disk "
        "with 50 MB free."
    )
