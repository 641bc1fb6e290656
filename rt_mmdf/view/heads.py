"""The head that an engine images on, found on this machine.

The engine tells the fingerprint of its head, and where on which vertex each source lies. A head with that fingerprint is the
same one. So, for a picture, is one whose sources have the same vertex numbers and places: the fingerprint also covers the
sensors, which an engine renames and picks as they stream, and which a picture does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rt_mmdf.core.errors import HeadModelError, RtMmdfError
from rt_mmdf.core.files import MAX_TOML, parse_toml, read_arrays, read_plain
from rt_mmdf.headmodel.cache import cache_folder, check_entry
from rt_mmdf.headmodel.head import FORWARD_FILE, HEAD_FILE, MAX_SURFACES, SURFACES_FILE, HeadModel, load_head
from rt_mmdf.view.streams import EngineDescription

TOLERANCE_MM = 0.1
"""Surfaces are kept in single precision and descriptions in decimals; cortices of two people differ by millimetres."""
MAX_CANDIDATES = 512
TEMPLATE_FRAME = "MNI305"
Progress = Callable[[str, float], None]


def find_head(engine: EngineDescription, folder: Path | None = None, progress: Progress | None = None) -> HeadModel:
    """The head model of an engine.

    Looked for in this order: `folder`; the cache (by fingerprint, then by sources); the models that are at hand; the
    template, which is made in a second if it is not there. Nothing is fetched.

    Parameters
    ----------
    engine : as its stream describes it
    folder : a head model given by hand; None to search only

    Raises
    ------
    HeadModelError
        It is not on this machine. The message says which one is wanted, where was looked, and what to do.
    """
    report = progress or (lambda what, fraction: None)
    refused = ""
    if folder is not None:
        given = load_head(folder)
        if fits(given, engine):
            return given
        refused = f" {folder} holds another one: {given.name!r}, {given.fingerprint[:16]}, {given.n_sources} sources."
    report("looking for the head", 0.0)
    for search in (_in_cache, _in_models, _template):
        if (head := search(engine)) is not None:
            report("head found", 1.0)
            return head
    raise HeadModelError(
        f"the head of engine {engine.name!r} is not on this machine: {engine.head!r}, fingerprint "
        f"{engine.fingerprint[:16]}, {engine.n_sources} sources.{refused} Looked in {cache_folder()} and in the models at "
        f"hand. Copy the head's folder (made by `rt-mmdf head`) from {engine.host!r} "
        f"to this machine and name it: rt-mmdf view {engine.name} --head FOLDER"
    )


def fits(head: HeadModel, engine: EngineDescription) -> bool:
    """Whether a picture of the engine's estimates may be drawn on this head: the same sources in the same places."""
    if head.n_sources != engine.n_sources:
        return False
    if head.fingerprint == engine.fingerprint:
        return True
    same = all(np.array_equal(own, told) for own, told in zip(head.vertices, engine.vertices, strict=True))
    return same and bool(np.abs(head.source_positions_mm - engine.positions_mm).max() <= TOLERANCE_MM)


def _in_cache(engine: EngineDescription) -> HeadModel | None:
    # A subject's head may be there twice, placed differently in head coordinates: the exact one first. A template is always
    # placed alike, and one with few sensors is read in a tenth of the time.
    by_size = engine.frame == TEMPLATE_FRAME
    entries = sorted(
        _entries(engine.n_sources), key=lambda entry: (not by_size and entry[1] != engine.fingerprint, _size(entry[0]))
    )
    for entry, fingerprint in entries:
        if fingerprint != engine.fingerprint and not _same_places(entry, engine):
            continue
        try:
            head = load_head(entry)
        except HeadModelError:  # damaged: whoever needs it to compute with builds it again
            continue
        if fits(head, engine):
            return head
    return None


def _size(folder: Path) -> int:
    try:
        return (folder / FORWARD_FILE).stat().st_size
    except OSError:
        return 0


def _entries(n_sources: int) -> Iterator[tuple[Path, str]]:
    """Folders of the cache that hold a head with so many sources, and their fingerprints."""
    try:
        folders = sorted(cache_folder().glob("head-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return
    for folder in folders[:MAX_CANDIDATES]:
        try:
            check_entry(folder)
            content = parse_toml(read_plain(folder / HEAD_FILE, MAX_TOML))
        except (OSError, ValueError):
            continue
        if content.get("n_sources") == n_sources:
            yield folder, str(content.get("fingerprint"))


def _same_places(folder: Path, engine: EngineDescription) -> bool:
    """Sources of a head in the cache against those of the engine, without reading its leadfield."""
    try:
        arrays = read_arrays(folder / SURFACES_FILE, MAX_SURFACES, ("source_vertices", "white"))
        numbers = [arrays[f"{side}_source_vertices"] for side in ("lh", "rh")]
        if not all(np.array_equal(own, told) for own, told in zip(numbers, engine.vertices, strict=True)):
            return False
        places = np.vstack([arrays[f"{side}_white"][own] for side, own in zip(("lh", "rh"), numbers, strict=True)])
    except Exception:  # a damaged zip file can make its reader fail in any way
        return False
    return bool(np.abs(places - engine.positions_mm).max() <= TOLERANCE_MM)


def _in_models(engine: EngineDescription) -> HeadModel | None:
    from rt_mmdf.solvers.artefact import find_model, known_models, load_artefact  # half a second that a cache saves

    for name in known_models():
        try:
            artefact = load_artefact(find_model(name))
            if artefact.n_sources != engine.n_sources:
                continue
            apart = np.abs(artefact.head_arrays["positions_mm"] - engine.positions_mm).max()
            if apart <= TOLERANCE_MM and fits(head := artefact.load_head(), engine):
                return head
        except RtMmdfError:  # a model that cannot be used here is no reason not to look further
            continue
    return None


def _template(engine: EngineDescription) -> HeadModel | None:
    """The template with one electrode: its leadfield is not needed, and the coarsest skull is good enough for one."""
    from rt_mmdf.headmodel.template import N_SOURCES, Spacing, build_template  # two seconds that a cache saves

    spacings: tuple[Spacing, ...] = ("ico3", "ico4", "ico5")
    spacing = next((own for own in spacings if (N_SOURCES[own],) * 2 == tuple(map(len, engine.vertices))), None)
    if spacing is None:
        return None
    # by the numbers first: the template's are 0, 1, 2, ..., a subject's are not
    if any(not np.array_equal(own, np.arange(len(own))) for own in engine.vertices):
        return None
    try:
        head = build_template(spacing=spacing, meg=None, eeg_names=["EEG001"], bem_ico=2)
    except HeadModelError:
        return None
    return head if fits(head, engine) else None
