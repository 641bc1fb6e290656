"""A trained network images the very numbers that it was trained on, whatever channels stream and however they are cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_mmdf.backends.torch_backend import TorchBackend, one_thread
from rt_mmdf.core.channels import Channels, ChannelType, Modality
from rt_mmdf.core.errors import ArtefactError, SolverError
from rt_mmdf.headmodel.head import HeadModel
from rt_mmdf.headmodel.noise import ad_hoc_noise_cov
from rt_mmdf.headmodel.whitener import make_whitener
from rt_mmdf.networks.build import NETWORK_KINDS, build_network
from rt_mmdf.networks.interface import ForwardArrays, SourceMap
from rt_mmdf.preprocessing.window import SlidingWindow
from rt_mmdf.runtime.background import Background
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.solvers.artefact import Artefact, save_artefact
from rt_mmdf.solvers.forward_arrays import forward_arrays
from rt_mmdf.solvers.network import NetworkSolver, RefreshCounts, TrainedNetwork

N_CHANNELS, N_TIMES, STEP, REFRESH, LONGEST = 4, 6, 3, 7, 12
SMALL = {"fusion": {"width": 8, "n_blocks": 1, "n_nodes": 64, "n_likely": 32, "k": 40, "n_times": 20}, "convdip": {}}


class Teller(torch.nn.Module):
    """Says what it was given: of the sample, of the window, and how many columns that had."""

    def forward(self, sample: torch.Tensor, window: torch.Tensor | None, prepared: float) -> SourceMap:
        assert window is not None
        said = (sample[:, 0], window[0, 1].sum(), window[0, :, -1].sum(), torch.tensor(float(window.shape[2])))
        return SourceMap(torch.stack(torch.broadcast_tensors(*said), dim=1) * prepared)


class Splitter(torch.nn.Module):
    """The same, in two steps."""

    def prior(self, sample: torch.Tensor, window: torch.Tensor, prepared: float) -> torch.Tensor:
        torch.testing.assert_close(sample, window[:, :, -1])
        return window

    def estimate(self, sample: torch.Tensor, prior: torch.Tensor, prepared: float) -> SourceMap:
        return Teller()(sample, prior, prepared)

    def deviation(self, prior: torch.Tensor, prepared: float) -> torch.Tensor:
        return torch.full((1, 4), prepared * prior.shape[2])


class Linear(Splitter):
    """The same as two matrices: of the sample's channel 0, and, from its last channel, which is always 1, the rest."""

    def factors(self, prior: torch.Tensor, prepared: float) -> tuple[torch.Tensor, torch.Tensor]:
        first, last = torch.zeros(N_CHANNELS, 2), torch.zeros(2, 4)
        first[0, 0] = first[-1, 1] = 1.0
        last[0, 0] = 1.0
        last[1, 1:] = torch.stack([prior[0, 1].sum(), prior[0, :, -1].sum(), torch.tensor(float(prior.shape[2]))])
        return first, last * prepared

    def estimate(self, sample: torch.Tensor, prior: torch.Tensor, prepared: float) -> SourceMap:
        raise AssertionError("the factors are quicker")


def told(network: torch.nn.Module, lag: int = 0, **given: Any) -> NetworkSolver:
    backend = TorchBackend(network, 2.0)
    rows = np.arange(N_CHANNELS)
    sizes = {"n_sources": 4, "n_channels": N_CHANNELS, "n_times": N_TIMES, "step": STEP, "refresh": REFRESH}
    return NetworkSolver(backend, rows=rows, lag=lag, **sizes, **given)


@pytest.mark.parametrize("network", [Teller(), Splitter(), Linear()], ids=["whole", "split", "factors"])
@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, LONGEST), min_size=1, max_size=12),
    hole=st.integers(0, 40),
    lag=st.integers(0, REFRESH),
)
def test_an_estimate_depends_on_the_columns_and_not_on_the_hops(
    network: torch.nn.Module, sizes: list[int], hole: int, lag: int
) -> None:
    stream = np.random.default_rng(hole).standard_normal((N_CHANNELS, sum(sizes))).astype(np.float32)
    stream[-1] = 1.0
    stream[:, hole : hole + 4] = np.nan
    solver, window = told(network, lag), SlidingWindow((N_TIMES - 1) * STEP + LONGEST, N_CHANNELS)
    n_imaged, looks = 0, {}  # windows by the sample with which they come into force: the first at once
    for start, stop in pairwise(np.cumsum([0, *sizes])):
        seen = window.push(stream[:, start:stop])
        if np.isnan(stream[:, start:stop]).any():
            continue  # nothing can be imaged from it
        estimate = solver(seen, stop - start)
        assert estimate.shape == (4, stop - start)
        assert estimate.dtype == np.float32
        for k, t in enumerate(range(start, stop)):
            if (n_imaged + k) % REFRESH == 0:
                columns = [t - i * STEP for i in range(N_TIMES) if t - i * STEP >= 0]
                own = [c for c in columns if not np.isnan(stream[:, c]).any()]
                looks[n_imaged + k + (lag if looks else 0)] = (t, own)
            if n_imaged + k in looks:
                newest, known = looks[n_imaged + k]
            said = [stream[0, t], stream[1, known].sum(), stream[:, newest].sum(), len(known)]
            np.testing.assert_allclose(estimate[:, k], 2e-9 * np.array(said), rtol=1e-5, atol=1e-14)
        if isinstance(network, Splitter):
            np.testing.assert_allclose(solver.deviation(), np.full(4, 2e-9 * len(known)), rtol=1e-5)
        else:
            assert solver.deviation() is None
        n_imaged += stop - start


class Slow(Linear):
    """Counts the windows that it has looked at."""

    n_looks = 0

    def prior(self, sample: torch.Tensor, window: torch.Tensor, prepared: float) -> torch.Tensor:
        self.n_looks += 1
        return super().prior(sample, window, prepared)


def test_a_window_that_is_not_ready_is_counted_and_the_one_before_serves_on() -> None:
    network, background, counts = Slow(), Background(), RefreshCounts()
    background.worker("never started")  # from here on work waits for `step`
    solver = told(network, 2, background=background, counts=counts)
    looks, n = network.n_looks, 5 * REFRESH
    stream = np.random.default_rng(0).standard_normal((N_CHANNELS, 20 + n)).astype(np.float32)
    stream[-1] = 1.0

    def newest_columns(first: int, last: int) -> list[int]:
        """Which column was the newest of the window that images each sample from `first` to before `last`."""
        estimate = solver(stream[:, : 20 + last], last - first)[2] / 2e-9
        sums = stream[:, 20:].sum(axis=0)
        return [int(np.abs(sums - value).argmin()) for value in estimate]

    assert newest_columns(0, REFRESH + 2) == [0] * (REFRESH + 2)  # the first is waited for, the second not
    assert (network.n_looks - looks, counts.taken, counts.late) == (1, 2, 0)
    assert newest_columns(REFRESH + 2, REFRESH + 4) == [0, 0]  # it should have come into force: late
    assert (counts.taken, counts.late) == (2, 1)
    assert newest_columns(REFRESH + 4, 2 * REFRESH + 1) == [0] * (REFRESH - 3)  # no other one while it is late
    assert (counts.taken, counts.late) == (2, 1)
    background.step(0.0)
    assert newest_columns(2 * REFRESH + 1, 3 * REFRESH) == [REFRESH] * (REFRESH - 1)  # there it is
    assert newest_columns(3 * REFRESH, 3 * REFRESH + 1) == [REFRESH]  # the next is asked for
    background.step(0.0)
    assert newest_columns(3 * REFRESH + 1, 3 * REFRESH + 4) == [REFRESH, 3 * REFRESH, 3 * REFRESH]  # in time
    assert (network.n_looks - looks, counts.taken, counts.late) == (3, 3, 1)


def test_the_other_thread_makes_the_same_estimates_and_its_error_is_not_lost() -> None:
    stream = np.random.default_rng(1).standard_normal((N_CHANNELS, 80)).astype(np.float32)
    background, counts = Background(), RefreshCounts()
    alone, helped = told(Splitter(), 3), told(Splitter(), 3, background=background, counts=counts)
    with background.worker("windows"):
        for t in range(30, 80):
            if helped._coming is not None and not helped._coming.ready:
                done = Signal()
                background.ask(done.ring)  # done after it
                assert done.wait(30.0)
            np.testing.assert_array_equal(helped(stream[:, : t + 1], 1), alone(stream[:, : t + 1], 1))
    assert counts.late == 0
    assert counts.taken == -(-50 // REFRESH)

    class Broken(Splitter):
        def prior(self, sample: torch.Tensor, window: torch.Tensor, prepared: float) -> torch.Tensor:
            if window[0, 0, -1] == 666:
                raise ArithmeticError("no decomposition")
            return super().prior(sample, window, prepared)

    broken = told(Broken(), 1)
    stream[0, 30 + REFRESH] = 666
    broken(stream[:, : 30 + REFRESH], REFRESH)
    with pytest.raises(SolverError, match=r"window: .*no decomposition"):
        broken(stream[:, : 30 + REFRESH + 2], 2)


def test_a_shorter_window_is_what_there_is() -> None:
    stream = np.random.default_rng(0).standard_normal((N_CHANNELS, 8)).astype(np.float32)
    estimate = told(Teller())(stream, 2)
    assert estimate[3, 0] == pytest.approx(2e-9 * 3)  # columns 6, 3 and 0
    assert told(Teller())(stream, 0).shape == (4, 0)
    with pytest.raises(SolverError, match="refresh 0"):
        NetworkSolver(TorchBackend(Teller(), 1.0), n_sources=4, n_channels=4, rows=np.arange(4), refresh=0)
    with pytest.raises(SolverError, match="lag 8 samples; 0 to 7"):
        told(Teller(), REFRESH + 1)


def test_one_thread_is_taken_and_given_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def arrays_for(head: HeadModel, bads: tuple[str, ...] = (), missing: tuple[Modality, ...] = ()) -> ForwardArrays:
    kinds = zip(head.ch_names, head.channels.types, strict=True)
    used = [name for name, kind in kinds if name not in bads and kind.modality not in missing]
    whitener = make_whitener(head.channels, used, head.info, ad_hoc_noise_cov(head.channels))
    return forward_arrays(head, whitener, used)


@pytest.fixture(scope="module")
def artefacts(template_head_ico3: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artefact]:
    """One of each kind with random weights."""
    head, made = template_head_ico3, {}
    for kind in NETWORK_KINDS:
        torch.manual_seed(1)
        network = build_network(kind, SMALL.get(kind, {"hidden": 4}), arrays_for(head))
        with torch.no_grad():
            for values in network.parameters():
                values += 0.05 * torch.randn_like(values)
        folder = tmp_path_factory.mktemp(kind) / kind
        made[kind] = save_artefact(folder, network, head, ad_hoc_noise_cov(head.channels), name=f"my {kind}", card="")
    return made


def trained(artefact: Artefact, head: HeadModel, channels: Channels, **changed: Any) -> TrainedNetwork:
    return TrainedNetwork(artefact, head, channels, artefact.noise_cov, sfreq=200.0, refresh_ms=5.0, **changed)


CASES = [
    (kind, missing)
    for kind in NETWORK_KINDS
    for missing in ((), (Modality.EEG,), (Modality.MEG,))
    if missing != {"mmdf-eeg": (Modality.EEG,), "mmdf-meg": (Modality.MEG,), "convdip": (Modality.EEG,)}.get(kind)
]


@pytest.mark.parametrize(("kind", "missing"), CASES)
def test_it_gives_what_the_network_gives(
    kind: str, missing: tuple[Modality, ...], artefacts: dict[str, Artefact], template_head_ico3: HeadModel
) -> None:
    head, artefact, bads = template_head_ico3, artefacts[kind], ("MEG 0113", "EEG007")
    # the stream has another order than the head and lacks two channels
    order = np.random.default_rng(2).permutation(366)[:-2]
    channels = head.channels.pick(order)
    gone = tuple(name for name in head.ch_names if name not in channels)
    operator = trained(artefact, head, channels, bads=bads).build_operator(bads, missing)
    assert operator.used == frozenset(
        name
        for name, kind in zip(channels.names, channels.types, strict=True)
        if name not in bads and kind.modality not in missing
    )
    assert (operator.solver.n_sources, operator.solver.unit) == (1284, "A m")
    rng = np.random.default_rng(3)
    sensors = np.sqrt(ad_hoc_noise_cov(head.channels)["data"])[:, None] * rng.standard_normal((366, 60))
    sensors += np.outer(head.leadfield()[:, 700], 100e-9 * (2 + np.sin(np.arange(60) / 5)))
    whitened = (operator.whitener.matrix @ sensors[order]).astype(np.float32)
    estimate = operator.solver(whitened, 3)

    arrays = arrays_for(head, bads + gone, missing)
    network = build_network(artefact.kind, artefact.options, arrays_for(head))
    network.load_state_dict({key: torch.from_numpy(values.copy()) for key, values in artefact.weights.items()})
    used = [name for name, used in zip(head.ch_names, arrays.used, strict=True) if used]
    matrix = make_whitener(head.channels, used, head.info, ad_hoc_noise_cov(head.channels)).matrix
    seen = torch.from_numpy((matrix @ sensors).astype(np.float32))
    # fusion keeps its most powerful patches: the order of the channels may decide between two of the same power
    tolerance = 0.02 if kind == "fusion" else 1e-4
    with torch.no_grad():
        for k, t in enumerate((57, 58, 59)):
            window = seen[None, :, t % 2 : t + 1 : 2][:, :, -network.n_times :] if network.n_times > 1 else None
            expected = network.eval()(seen[None, :, t], window, network.prepare(arrays)).moments[0].numpy() * 1e-9
            assert np.linalg.norm(estimate[:, k] - expected) < tolerance * np.linalg.norm(expected)


def test_a_network_of_any_head_images_with_another_array(
    artefacts: dict[str, Artefact], template_head_ico3: HeadModel
) -> None:
    order = [*range(306, 366), *range(0, 306, 3)]  # EEG first, one MEG channel in three
    head = template_head_ico3.pick([template_head_ico3.ch_names[i] for i in order])
    operator = trained(artefacts["fusion"], head, head.channels).build_operator()
    noise = np.random.default_rng(0).standard_normal((162, 30)).astype(np.float32)
    assert np.isfinite(operator.solver(noise, 4)).all()
    with pytest.raises(ArtefactError, match="162 channels of head model 'template' are not the 366"):
        trained(artefacts["mmdf"], head, head.channels)


def test_weights_and_channels_that_do_not_fit_are_told(
    artefacts: dict[str, Artefact], template_head_ico3: HeadModel
) -> None:
    head, artefact = template_head_ico3, artefacts["mmdf"]
    (first, *others) = artefact.weights
    weights = {key: artefact.weights[key] for key in others}
    with pytest.raises(ArtefactError, match=rf"1 weights do not fit: {first} is missing"):
        trained(replace(artefact, weights=weights), head, head.channels)
    weights = {**artefact.weights, first: np.zeros((2, 2), np.float32)}
    with pytest.raises(ArtefactError, match=rf"{first} has shape \(2, 2\)"):
        trained(replace(artefact, weights=weights), head, head.channels)
    with pytest.raises(ArtefactError, match="extra is not known to the network"):
        trained(replace(artefact, weights={**artefact.weights, "extra": np.zeros(1)}), head, head.channels)
    with pytest.raises(ArtefactError, match="expected one of"):
        trained(replace(artefact, kind="mlp"), head, head.channels)
    with pytest.raises(SolverError, match="my mmdf: none of the 366 channels can be imaged"):
        trained(artefact, head, head.channels).build_operator(missing_modalities=tuple(Modality))
    strangers = Channels(("Cz", "Pz"), (ChannelType.EEG, ChannelType.EEG))
    with pytest.raises(SolverError, match=r"2 are not in the head model 'template' \(Cz, Pz\)"):
        trained(artefact, head, strangers).build_operator()
    assert Path(artefact.folder).is_dir()
