"""An artefact comes back as it was written, proves itself, and says what is wrong with it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import safetensors.numpy
import torch

from rt_mmdf.core.channels import ChannelType
from rt_mmdf.core.errors import ArtefactError, HeadModelError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
from rt_mmdf.headmodel.whitener import make_whitener
from rt_mmdf.networks.build import build_network
from rt_mmdf.networks.interface import SourceNetwork
from rt_mmdf.solvers import artefact as artefacts
from rt_mmdf.solvers.artefact import Artefact, find_model, known_models, load_artefact, replace_card, save_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays


def network_for(head: HeadModel, kind: str = "mmdf", **options: int) -> SourceNetwork:
    """With random weights, small."""
    whitener = make_whitener(head.channels, head.ch_names, head.info, ad_hoc_noise_cov(head.channels))
    torch.manual_seed(4)
    return build_network(kind, options, forward_arrays(head, whitener, head.ch_names))


def as_subject(head: HeadModel) -> HeadModel:
    """The same numbers, but no recipe makes this head."""
    return HeadModel("someone", "subject", head.forward, head.info, head.hemispheres, {"kind": "subject"})


@pytest.fixture(scope="module")
def network(template_head_ico3: HeadModel) -> SourceNetwork:
    return network_for(template_head_ico3, hidden=4)


@pytest.fixture(scope="module")
def written(template_head_ico3: HeadModel, network: SourceNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    noise_cov = ad_hoc_noise_cov(template_head_ico3.channels)
    save_artefact(folder, network, template_head_ico3, noise_cov, name="small", card="# Small\n")
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def test_it_comes_back_as_it_was_written(written: Path, template_head_ico3: HeadModel, network: SourceNetwork) -> None:
    artefact = load_artefact(written)
    head = template_head_ico3
    assert (artefact.name, artefact.kind, artefact.head_free, artefact.n_times) == ("small", "mmdf", False, 1)
    assert artefact.options == network.options
    assert artefact.channels == head.channels
    assert (artefact.low_hz, artefact.high_hz, artefact.card) == (1.0, 40.0, "# Small\n")
    assert artefact.weights.keys() == network.state_dict().keys()
    for key, values in network.state_dict().items():
        np.testing.assert_array_equal(artefact.weights[key], values.numpy())
    np.testing.assert_array_equal(artefact.noise_cov["data"], ad_hoc_noise_cov(head.channels)["data"])
    # the template is not in the folder but made again
    assert sum(path.stat().st_size for path in written.iterdir() if path.name != "weights.safetensors") < 100_000
    made = artefact.load_head()
    assert made.ch_names == head.ch_names
    np.testing.assert_array_equal(made.leadfield(), head.leadfield())
    artefact.check_head(head)


def test_a_head_that_no_recipe_makes_is_in_the_folder(template_head_ico3: HeadModel, tmp_path: Path) -> None:
    # EEG first, some channels missing, arrays not in the order of C: as a real one may be
    order = [*range(306, 366), *range(3, 306)]
    head = as_subject(template_head_ico3.pick([template_head_ico3.ch_names[i] for i in order]))
    mags = [head.ch_names[i] for i in head.channels.of_type(ChannelType.MAG)]
    vector = np.full((1, len(mags)), len(mags) ** -0.5)
    field = {"nrow": 1, "ncol": len(mags), "row_names": None, "col_names": mags, "data": vector}
    proj = mne.Projection(active=False, data=field, desc="room", kind=1)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((363, 400)) * np.sqrt(ad_hoc_noise_cov(head.channels)["data"])[:, None]
    noise_cov = mne.Covariance(np.cov(noise), list(head.ch_names), bads=[], projs=[], nfree=400, verbose="ERROR")
    network = network_for(head, "mmdf-meg", hidden=4)
    artefact = save_artefact(tmp_path / "a", network, head, noise_cov, name="own", card="", projs=[proj])
    back = artefact.load_head()
    assert (back.name, back.kind, back.ch_names) == ("someone", "subject", head.ch_names)
    np.testing.assert_allclose(back.leadfield(), head.leadfield(), rtol=1e-6)
    np.testing.assert_allclose(back.source_positions_mm, head.source_positions_mm, atol=1e-4)
    assert back.channels.types == head.channels.types
    for mine, theirs in zip(back.source_triangles, head.source_triangles, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(back.hemispheres, head.hemispheres, strict=True):
        np.testing.assert_allclose(mine.inflated, theirs.inflated, atol=1e-4)
    some = back.ch_names[5:60:7]
    np.testing.assert_allclose(back.leadfield(some), head.leadfield(some), rtol=1e-6)
    renamed = back.named_like([name.replace(" ", "") for name in head.ch_names])
    assert renamed.ch_names[-1] == head.ch_names[-1].replace(" ", "")
    np.testing.assert_allclose(renamed.leadfield(), head.leadfield(), rtol=1e-6)
    # what the network is given of it is what it was given in training
    before, after = (
        forward_arrays(h, make_whitener(h.channels, h.ch_names, h.info, cov, projs), h.ch_names)
        for h, cov, projs in ((head, noise_cov, [proj]), (back, artefact.noise_cov, artefact.projs))
    )
    np.testing.assert_allclose(after.leadfield, before.leadfield, atol=1e-5 * np.abs(before.leadfield).max())
    np.testing.assert_allclose(after.layout, before.layout, atol=1e-6)
    np.testing.assert_array_equal(after.triangles, before.triangles)


def test_nothing_in_it_can_be_executed(written: Path) -> None:
    suffixes = {path.suffix for path in written.iterdir()}
    assert suffixes == {".toml", ".safetensors", ".fif", ".md"}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite(old: str, new: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return act


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("weights.safetensors", truncate, "weights.safetensors has SHA-256 .* truncated or changed"),
        ("weights.safetensors", flip, "weights.safetensors has SHA-256"),
        ("noise-cov.fif", flip, "noise-cov.fif has SHA-256"),
        ("CARD.md", rewrite("Small", "Great"), "CARD.md has SHA-256"),
        ("head.safetensors", Path.unlink, "head.safetensors cannot be read .*Every file .* is needed"),
        ("manifest.toml", Path.unlink, "no manifest.toml in it"),
        ("manifest.toml", truncate, "manifest.toml (cannot be read|was changed or cut off)"),
        ("manifest.toml", rewrite("low_hz = 1.0", "low_hz = 0.1"), "manifest.toml was changed or cut off"),
        ("manifest.toml", rewrite("format = 1", "format = 2"), "format 2; rt_mmdf .* reads format 1"),
    ],
)
def test_what_is_wrong_with_it_is_said(copy: Path, file: str, harm: Callable[[Path], None], message: str) -> None:
    harm(copy / file)
    with pytest.raises(ArtefactError, match=message):
        load_artefact(copy)


def rewritten(folder: Path, *place: str, value: Any) -> None:
    """Another value in the manifest, and its digest made right, as whoever means harm would."""
    content = tomllib.loads((folder / "manifest.toml").read_text())
    content.pop("digest")
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    text = artefacts._manifest_text(content).replace(b"= NaN", b"= nan").replace(b"= Infinity", b"= inf")  # JSON's, TOML's
    (folder / "manifest.toml").write_bytes(text)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("name",), "../../evil", r"name '\.\./\.\./evil'"),
        (("name",), "a\x1b[2J", "say what cannot be"),
        (("name",), ["a"], "say what cannot be"),
        (("files",), 5, "was changed or cut off"),
        (("files",), ["weights.safetensors"], "was changed or cut off"),
        (("files", "../manifest.toml"), "0", "only files in the folder itself"),
        (("files", "/etc/passwd"), "0", "only files in the folder itself"),
        (("files", ".."), "0", "only files in the folder itself"),
        (("files", "a\x00b"), "0", "only files in the folder itself"),
        (("files", "CARD.md"), 7, "CARD.md has SHA-256"),
        (("versions",), "1", "cannot be understood"),
        (("input",), [], "cannot be understood"),
        (("input", "ch_names"), "abc", "cannot be understood"),
        (("input", "window_sfreq"), float("nan"), "rates and limits"),
        (("input", "low_hz"), "1", "cannot be understood"),
        (("network", "n_times"), 10**9, "a window of 1000000000 samples"),
        (("network", "n_times"), float("inf"), "cannot be understood"),
        (("sources", "n_sources"), 7, "positions of shape"),
        (("head",), 3, "cannot be understood"),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused_though_its_digest_is_right(
    copy: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    rewritten(copy, *place, value=value)
    with pytest.raises(ArtefactError, match=message) as caught:
        load_artefact(copy)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("file", "arrays", "message"),
    [
        ("head.safetensors", {"sketch": np.float64(1)}, "cannot be understood"),
        ("head.safetensors", {"sketch": np.ones((366, 3)), "positions_mm": np.ones((1284, 3))}, "sketch of shape"),
        ("head.safetensors", {"sketch": np.ones((366, 8)), "positions_mm": np.ones((1284, 2))}, "positions of shape"),
        ("head.safetensors", {"sketch": np.ones((366, 8)), "positions_mm": np.full((1284, 3), np.nan)}, "positions that"),
        ("weights.safetensors", {"a": np.array([np.inf], np.float32)}, "weights that are no finite numbers"),
    ],
)
def test_arrays_that_cannot_be_are_refused_though_their_hash_is_right(
    copy: Path, file: str, arrays: dict[str, Any], message: str
) -> None:
    data = safetensors.numpy.save({key: np.asarray(values) for key, values in arrays.items()})
    (copy / file).write_bytes(data)
    rewritten(copy, "files", file, value=hashlib.sha256(data).hexdigest())
    with pytest.raises(ArtefactError, match=message):
        load_artefact(copy)


def link(path: Path) -> None:
    shutil.move(path, path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("harm", [link, endless, pipe])
@pytest.mark.parametrize("file", ["weights.safetensors", "CARD.md", "manifest.toml"])
def test_only_plain_files_are_read(copy: Path, file: str, harm: Callable[[Path], None]) -> None:
    harm(copy / file)
    with pytest.raises(ArtefactError, match=f"{file} cannot be read"):
        load_artefact(copy)


@pytest.mark.parametrize("recipe", [{}, {"sensors": "a"}, {"sensors": "a + b", "conductivity": 3}])
def test_a_recipe_that_cannot_be_is_refused(copy: Path, recipe: dict[str, Any]) -> None:
    rewritten(copy, "head", "recipe", value=recipe)
    with pytest.raises(HeadModelError, match="its recipe cannot be understood"):
        load_artefact(copy).load_head()


def test_a_text_may_be_added_to_the_card_and_is_then_part_of_it(copy: Path) -> None:
    replace_card(copy, "# Small\n\nIt was evaluated.\n")
    assert load_artefact(copy).card.endswith("It was evaluated.\n")
    assert tomllib.loads((copy / "manifest.toml").read_text())["name"] == "small"


def other_heads(head: HeadModel) -> dict[str, HeadModel]:
    """Name of what is wrong with it to head."""
    few = head.forward.copy()
    moved = [np.asarray(h.white) + 3.0 for h in head.hemispheres]
    louder = head.forward.copy()
    louder["sol"] = {**louder["sol"], "data": louder["sol"]["data"] * 1.01}
    louder["_orig_sol"] = louder["_orig_sol"] * 1.01
    shifted = tuple(type(h)(w, h.triangles, h.source_vertices) for h, w in zip(head.hemispheres, moved, strict=True))
    half = tuple(type(h)(h.white, h.triangles, h.source_vertices[::2]) for h in head.hemispheres)
    return {
        "has 642 sources; the network images 1284": HeadModel("few", "subject", few, head.info, half, {}),
        "lie up to 3.0 mm from": HeadModel("moved", "subject", head.forward, head.info, shifted, {}),
        "leadfield .* differs by 0.01 ": HeadModel("louder", "subject", louder, head.info, head.hemispheres, {}),
    }


def test_another_head_is_refused(written: Path, template_head_ico3: HeadModel) -> None:
    artefact = load_artefact(written)
    for message, head in other_heads(template_head_ico3).items():
        with pytest.raises(ArtefactError, match=message):
            artefact.check_head(head)
    names = [name.replace("EEG", "Cap").replace("MEG", "Opm") for name in template_head_ico3.ch_names]
    info = template_head_ico3.info.copy()
    mne.rename_channels(info, dict(zip(template_head_ico3.ch_names, names, strict=True)), verbose="ERROR")
    forward = template_head_ico3.forward.copy()
    forward["sol"] = {**forward["sol"], "row_names": names}
    with pytest.raises(ArtefactError, match="none of the 366 channels"):
        artefact.check_head(HeadModel("cap", "subject", forward, info, template_head_ico3.hemispheres, {}))


def test_the_last_digits_of_another_machine_do_not_matter(written: Path, template_head_ico3: HeadModel) -> None:
    forward = template_head_ico3.forward.copy()
    noise = 1 + 1e-5 * np.random.default_rng(0).standard_normal(forward["_orig_sol"].shape)
    forward["_orig_sol"] = forward["_orig_sol"] * noise
    head = template_head_ico3
    load_artefact(written).check_head(HeadModel("here", "template", forward, head.info, head.hemispheres, {}))


def test_channels_of_another_type_are_refused(written: Path, template_head_ico3: HeadModel) -> None:
    artefact, channels = load_artefact(written), template_head_ico3.channels
    artefact.check_channels(channels.pick(range(300)))
    kinds = tuple(
        ChannelType.EEG if name == "MEG 0113" else kind for name, kind in zip(channels.names, channels.types, strict=True)
    )
    with pytest.raises(ArtefactError, match=r"1 channels .*MEG 0113 is eeg, grad in the model"):
        artefact.check_channels(type(channels)(channels.names, kinds))


def test_weights_that_are_no_numbers_are_not_written(
    template_head_ico3: HeadModel, network: SourceNetwork, tmp_path: Path
) -> None:
    broken = build_network(network.kind, network.options, _arrays(template_head_ico3))
    next(iter(broken.parameters())).data.fill_(float("nan"))
    with pytest.raises(ArtefactError, match="NaN or infinity in 1 of its weights"):
        _save(tmp_path / "a", broken, template_head_ico3)
    assert list(tmp_path.iterdir()) == []


def _arrays(head: HeadModel):
    return forward_arrays(
        head, make_whitener(head.channels, head.ch_names, head.info, ad_hoc_noise_cov(head.channels)), head.ch_names
    )


def _save(folder: Path, network: SourceNetwork, head: HeadModel) -> Artefact:
    return save_artefact(folder, network, head, ad_hoc_noise_cov(head.channels), name="a", card="")


def test_an_artefact_is_replaced_whole_and_nothing_else_ever(
    copy: Path, template_head_ico3: HeadModel, network: SourceNetwork
) -> None:
    assert _save(copy, network, template_head_ico3).name == "a"
    assert load_artefact(copy).name == "a"
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]  # no scratch is left behind
    thesis = copy.parent / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="something else than an artefact"):
        _save(thesis, network, template_head_ico3)
    assert (thesis / "chapter1.txt").read_text() == "years of work"
    (copy.parent / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot be written"):
        _save(copy.parent / "file" / "a", network, template_head_ico3)


def test_a_model_is_found_by_name_and_by_folder(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model(str(copy)) == copy
    (tmp_path / "models").mkdir()
    copy.rename(tmp_path / "models" / "mine")
    assert find_model("mine") == tmp_path / "models" / "mine"
    assert "mine" in known_models()
    with pytest.raises(ArtefactError, match=r"model 'other': no manifest.toml .*Models at hand: .*mine"):
        find_model("other")
    with pytest.raises(ArtefactError, match=r"no manifest\.toml"):
        find_model("elsewhere/mine")
