"""From preprocessed sensors to whitened ones, with the operator that fits the channels of the moment."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rt_mmdf.core.blocks import Flag, Float32, SensorBlock
from rt_mmdf.core.channels import Channels, Modality
from rt_mmdf.preprocessing.availability import Rows, rows_by_modality, runs_by_availability
from rt_mmdf.solvers.interface import Operator


@dataclass(frozen=True)
class OperatorKey:
    """What an operator must do without.

    bads : names of bad channels of the modalities that are there
    missing : modalities that are not there
    """

    bads: frozenset[str]
    missing: frozenset[Modality]

    @classmethod
    def of(cls, channels: Channels, bads: Iterable[str], missing: Iterable[Modality]) -> OperatorKey:
        """The key with what makes no difference left out: bad channels of a missing modality, names that are not here."""
        missing = frozenset(missing)
        here = {n for n, kind in zip(channels.names, channels.types, strict=True) if kind.modality not in missing}
        return cls(frozenset(bads) & here, missing)


@dataclass(frozen=True)
class PreparedOperator:
    """An operator with the single-precision copy of its whitener that the stream is multiplied with."""

    operator: Operator
    matrix: Float32


class OperatorSwitch:
    """Hands out the operator for the channels of the moment, and never half of one.

    The stream's thread calls `select` once per hop; another thread builds and calls `offer`. An operator that is not there
    yet is asked for once, through `request`; until it comes, the newest one for the same modalities is used and its
    estimates carry OPERATOR_PENDING. An operator is one object: whitener and kernel change together, at one hop.

    Parameters
    ----------
    request : callable
        Called in the stream's thread with the key that is wanted: must only note it (put it into a mailbox).
    capacity : int
        Operators that are kept; the one that was used longest ago goes first. At 5124 sources and 366 channels each is 8 MB.
    """

    def __init__(self, request: Callable[[OperatorKey], None], capacity: int = 8) -> None:
        if capacity < 1:
            raise ValueError(f"operator switch of {capacity} operators: at least 1 is expected")
        self._request = request
        self._capacity = capacity
        self._built: OrderedDict[OperatorKey, PreparedOperator] = OrderedDict()  # least recently used first
        self._newest: dict[frozenset[Modality], PreparedOperator] = {}
        self._asked: set[OperatorKey] = set()
        self._forgotten: deque[OperatorKey] = deque()
        self._offered: deque[tuple[OperatorKey, PreparedOperator]] = deque()  # append and popleft are atomic
        self.failed: dict[OperatorKey, str] = {}
        self.current: OperatorKey | None = None  # of the latest `select`

    @property
    def n_kept(self) -> int:
        """Operators that are ready to be used."""
        return len(self._built)

    def offer(self, key: OperatorKey, operator: Operator) -> None:
        """Bring an operator, from any thread. It is used from the next `select` on, and `key` has not failed any more."""
        matrix = np.ascontiguousarray(operator.whitener.matrix, dtype=np.float32)
        self._offered.append((key, PreparedOperator(operator, matrix)))
        self.failed = {failed: why for failed, why in self.failed.items() if failed != key}

    def has(self, key: OperatorKey) -> bool:
        """Whether one for `key` is there, be it an older one; from any thread."""
        return key in self._built

    def forget(self, key: OperatorKey) -> None:
        """Say that `key` is not being built, since a newer one was wanted; from any thread. It may be asked for again."""
        self._forgotten.append(key)

    def fail(self, key: OperatorKey, reason: str) -> None:
        """Say that there will be no operator for `key`, from any thread: it is not asked for again; see `failed`."""
        self.failed = {**self.failed, key: reason}

    def select(self, key: OperatorKey) -> tuple[PreparedOperator | None, bool]:
        """The operator to use now, and whether it is the one that is wanted.

        None when no operator for these modalities was built so far.
        """
        self.current = key
        while self._forgotten:
            self._asked.discard(self._forgotten.popleft())
        while self._offered:
            offered, prepared = self._offered.popleft()
            self._built[offered] = prepared
            self._built.move_to_end(offered)
            self._asked.discard(offered)
            self._newest.setdefault(offered.missing, prepared)
            while len(self._built) > self._capacity:
                self._built.popitem(last=False)
        if (found := self._built.get(key)) is not None:
            self._built.move_to_end(key)
            self._newest[key.missing] = found
            return found, True
        if key not in self._asked and key not in self.failed:
            self._asked.add(key)
            self._request(key)
        return self._newest.get(key.missing), False


@dataclass(frozen=True, slots=True)
class WhitenedRun:
    """Neighbouring columns ``[start, stop)`` of a block that one operator images.

    operator : None where there is none yet: the columns cannot be imaged
    data : (n_channels, stop - start) float32, unit noise variance; zero rows for channels that are bad or missing; all NaN
        without an operator
    flags : (stop - start,) uint32: those of the block, and OPERATOR_PENDING or INVALID
    """

    start: int
    stop: int
    operator: Operator | None
    data: Float32
    flags: NDArray[np.uint32]


class Whitening:
    """Multiplies each run of columns with the whitener of its operator. Keeps no samples: `reset` has nothing to forget."""

    def __init__(self, switch: OperatorSwitch) -> None:
        self._switch = switch
        self._channels: Channels | None = None
        self._rows: dict[Modality, Rows] = {}
        self._keys: dict[tuple[frozenset[str], frozenset[Modality]], OperatorKey] = {}

    def reset(self) -> None:
        """Nothing carries over from block to block but the operators, which stay."""

    def __call__(self, block: SensorBlock) -> list[WhitenedRun]:
        """Whiten a block; one run as long as no modality comes or goes inside it."""
        if block.channels is not self._channels:
            self._channels = block.channels
            self._rows = rows_by_modality(block.channels)
            self._keys = {}
        runs = []
        for run in runs_by_availability(block.flags):
            flags = block.flags[run.start : run.stop]
            nothing = self._rows.keys() <= run.missing
            prepared, wanted = (None, True) if nothing else self._switch.select(self._key(block, run.missing))
            if prepared is None:
                data = np.full((len(block.channels), run.stop - run.start), np.nan, dtype=np.float32)
                flags = flags | np.uint32(Flag.INVALID if nothing else Flag.OPERATOR_PENDING | Flag.INVALID)
                runs.append(WhitenedRun(run.start, run.stop, None, data, flags))
                continue
            if not wanted:
                flags = flags | np.uint32(Flag.OPERATOR_PENDING)
            sensors = block.data[:, run.start : run.stop]
            if run.missing:
                sensors = sensors.copy()
                for modality in run.missing & self._rows.keys():
                    sensors[self._rows[modality]] = 0.0  # NaN times a weight of zero would still be NaN
            runs.append(WhitenedRun(run.start, run.stop, prepared.operator, prepared.matrix @ sensors, flags))
        return runs

    def _key(self, block: SensorBlock, missing: frozenset[Modality]) -> OperatorKey:
        parts = (block.bads, missing)
        key = self._keys.get(parts)
        if key is None:
            if len(self._keys) > 64:
                self._keys.clear()
            key = self._keys[parts] = OperatorKey.of(block.channels, *parts)
        return key
