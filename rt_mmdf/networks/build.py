"""Networks by name: a kind and its options, plain values, make a network; with its weights they make it again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from rt_mmdf.core.errors import ConfigurationError
from rt_mmdf.networks.convdip import ConvDipNetwork
from rt_mmdf.networks.fusion import FusionNetwork
from rt_mmdf.networks.interface import ForwardArrays, Option, SourceNetwork
from rt_mmdf.networks.mmdf import MmdfEegNetwork, MmdfMegNetwork, MmdfNetwork

_NETWORKS: dict[str, type[SourceNetwork]] = {
    network.kind: network for network in (MmdfNetwork, MmdfEegNetwork, MmdfMegNetwork, ConvDipNetwork, FusionNetwork)
}
NETWORK_KINDS = tuple(_NETWORKS)
LEAST = {("fusion", "width"): 2, ("fusion", "k"): 2}
MOST = {"hidden": 8192, "width": 512, "n_blocks": 64, "rows": 64, "columns": 64}
"""By the end of an option's name; what is larger takes memory that nobody has."""
MOST_OTHERS = 1 << 14
MULTIPLES = {("fusion", "width"): 2}  # its attention has two heads


def build_network(kind: str, options: Mapping[str, Option], arrays: ForwardArrays) -> SourceNetwork:
    """A network with fresh weights (torch's global generator draws them).

    Parameters
    ----------
    kind : one of NETWORK_KINDS
    options : of that network; what is not given has its default
    arrays : the nominal head that it is for

    Raises
    ------
    ConfigurationError
        Unknown kind or option, an option of the wrong type or value, or arrays that the network cannot be for.
    """
    check_options(kind, options)
    try:
        return _NETWORKS[kind].from_arrays(arrays, **options)
    except (ValueError, RuntimeError) as error:  # the second is torch's, for sizes that cannot be
        shown = ", ".join(f"{name} = {value!r}" for name, value in options.items()) or "the defaults"
        said = str(error).partition("\n")[0]
        text = said if isinstance(error, ValueError) else f"network {kind}: cannot be made of {shown} ({said})."
        raise ConfigurationError(text) from error


def check_options(kind: str, options: Mapping[str, Option]) -> None:
    """Raise ConfigurationError unless `kind` is known and all options are, with values that can be."""
    if kind not in _NETWORKS:
        raise ConfigurationError(f"network {kind!r} seen; expected one of {', '.join(NETWORK_KINDS)}.")
    defaults = default_options(kind)
    for name, value in options.items():
        if name not in defaults:
            raise ConfigurationError(f"network {kind}: unknown option {name!r}. Known here: {', '.join(sorted(defaults))}.")
        expected = type(defaults[name])
        whole_number = expected is float and type(value) is int
        if type(value) is not expected and not whole_number:
            raise ConfigurationError(
                f"network {kind}: option {name} = {value!r} seen; a value of type {expected.__name__} is expected."
            )
        if expected is int:
            # a default of 0 is a size that the network finds itself
            least = min(int(defaults[name]), LEAST.get((kind, name), 1))
            multiple = MULTIPLES.get((kind, name), 1)
            most = next((n for ending, n in MOST.items() if name.endswith(ending)), MOST_OTHERS)
            if not least <= int(value) <= most or int(value) % multiple:
                of = f", a multiple of {multiple}," if multiple > 1 else ""
                raise ConfigurationError(
                    f"network {kind}: option {name} = {value!r} seen; a whole number{of} of at least {least} and at most "
                    f"{most} is expected."
                )


def default_options(kind: str) -> dict[str, Option]:
    """Options of a kind with their defaults, from the signature of its class."""
    parameters = inspect.signature(_NETWORKS[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
