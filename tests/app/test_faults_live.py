"""Faults through the real Lab Streaming Layer: a sender process that misbehaves, an engine that goes on and says so."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psutil
import pytest

from rt_mmdf.app.session import Session
from rt_mmdf.app.settings import SessionSettings
from rt_mmdf.core.blocks import Flag, SourceEstimate
from rt_mmdf.lsl.interface import Inlet
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.lsl.xdf import open_whole
from rt_mmdf.runtime.mailbox import Signal
from rt_mmdf.sinks.recording import XdfFile

pyxdf = pytest.importorskip("pyxdf")
pytestmark = [pytest.mark.lsl, pytest.mark.slow]

LIMIT_S = 60.0
STALL_S, FAULT_S = 0.5, 2.0
SFREQ = 250.0
NOTHING = Flag(0)
STEPPED = ("clock_step", "gap", "future_stamps", "backward_stamps", "late")
"""What a clock that was set looks like, before it has been measured again and afterwards."""
MISSING_FLAGS = np.uint32(Flag.EEG_MISSING | Flag.MEG_MISSING)
SENDER = Path(__file__).with_name("faulty_sender.py")
VIEW = Path(__file__).parents[1] / "view" / "watching_view.py"


class Sender:
    """The misbehaving program."""

    def __init__(self, prefix: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, str(SENDER), prefix, "ico3", f"{SFREQ:g}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], LIMIT_S)
        assert ready, "the sender does not answer"
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def tell(self, do: str, stream: str = "eeg", **given: Any) -> float:
        """LSL time at which it had been done."""
        return float(self._ask({"do": do, "stream": stream, **given})["at"])

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def sent(self) -> dict[str, int]:
        return dict(self._ask({"do": "count"})["sent"])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Listener:
    """Hears the health stream as any program would."""

    def __init__(self, transport: NetworkTransport, prefix: str) -> None:
        (found,) = transport.resolve(name=f"{prefix}-health", timeout_s=10.0)
        self._inlet: Inlet = transport.inlet(found)
        self.pause = Signal()
        self.newest: dict[str, Any] = {}
        self.facts: dict[tuple[str, str, float], dict[str, Any]] = {}  # by kind, subject, begin: as they were last told
        self.told_at: dict[tuple[str, str, float], float] = {}  # when a report first held them, engine's time

    def listen(self) -> None:
        rows, _ = self._inlet.pull(0.05)
        for row in rows:
            self.newest = json.loads(str(row[0]))
            for one in self.newest["incidents"]["newest"]:
                key = (one["kind"], one["subject"], one["began"])
                self.facts[key] = one
                self.told_at.setdefault(key, self.newest["time"])

    def wait_until(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what}; {self.newest.get('incidents')}"
            self.listen()

    def fact(self, kind: str, subject: str, since: float, *, ended: bool = False) -> dict[str, Any]:
        """Wait for a fact that was noticed since then; as it is told in the health stream."""

        def found() -> list[dict[str, Any]]:
            return [
                one | {"told": self.told_at[key]}
                for key, one in self.facts.items()
                if key[:2] == (kind, subject) and one["noticed"] >= since and (one["ended"] is not None or not ended)
            ]

        self.wait_until(f"{kind} of {subject}", lambda: bool(found()))
        return found()[0]

    def close(self) -> None:
        self._inlet.close()


@pytest.fixture
def prefix() -> str:
    return f"t{uuid4().hex[:10]}"


@pytest.fixture
def content(small_content: Callable[..., dict[str, Any]], prefix: str) -> dict[str, Any]:
    plain = small_content(prefix)
    plain["alignment"] = {"grid": "clock"}
    plain["preprocessing"] = {"bad_channels": {"enabled": True}}
    plain["output"] = {"sensors": {"max_hz": 125.0}}
    return plain


@pytest.fixture
def sender(prefix: str) -> Iterator[Sender]:
    one = Sender(prefix)
    yield one
    one.close()


def recorded(path: Path) -> dict[str, list[dict[str, Any]]]:
    file, _ = open_whole(path)
    with file:
        streams, _ = pyxdf.load_xdf(file, synchronize_clocks=False, dejitter_timestamps=False, verbose=False)
    by_label: dict[str, list[dict[str, Any]]] = {}
    for stream in streams:
        by_label.setdefault(stream["info"]["desc"][0]["rt_mmdf"][0]["label"][0], []).append(stream)
    return by_label


def check_imaged(estimates: list[SourceEstimate], without: Flag = NOTHING) -> None:
    """The newest ones lack this modality, or nothing."""
    flags = np.concatenate([e.flags for e in estimates])
    assert not (flags & np.uint32(Flag.INVALID)).any()
    assert ((flags & MISSING_FLAGS) == np.uint32(without)).all()


class Seen:
    """A session of this process that images, what it says in its health stream, and how late it says it."""

    def __init__(self, stack: ExitStack, content: dict[str, Any]) -> None:
        self.estimates: list[SourceEstimate] = []
        self.late: dict[str, tuple[float, float]] = {}  # by fault: found, and told in the health, so long after it began
        self.clock = NetworkTransport().clock
        settings = SessionSettings.model_validate(content)
        self.session = Session(settings, NetworkTransport(), on_estimate=self.estimates.append)
        self.health = Listener(NetworkTransport(), settings.name)
        stack.callback(self.health.close)

    def noticed(self, name: str, kind: str, subject: str, injected: float) -> dict[str, Any]:
        fact = self.health.fact(kind, subject, injected)
        self.late[name] = fact["noticed"] - injected, fact["told"] - injected
        return fact

    def whole_again(self, without: Flag = NOTHING) -> None:
        def done() -> bool:
            self.session.check()
            newest = self.estimates[-20:]
            return len(newest) == 20 and not any((e.flags & MISSING_FLAGS != without).any() for e in newest)

        self.health.wait_until(f"estimates with {without!r}", done)
        n = len(self.estimates)
        self.health.wait_until("ten hops more", lambda: len(self.estimates) >= n + 10)
        check_imaged(self.estimates[n : n + 10], without)

    def check_in_time(self) -> None:
        assert {name: seen for name, seen in self.late.items() if max(seen) > limit_of(name)} == {}, self.late


def test_streams_stall_vanish_and_come_back_as_others(
    prefix: str, content: dict[str, Any], sender: Sender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One session, one fault after the other; then the log, the scorecard and the recording are looked at."""
    content["output"]["record"] = {"file": str(tmp_path / "whole.xdf"), "estimates": "none"}
    with ExitStack() as stack:
        caplog.set_level(logging.WARNING)
        seen = Seen(stack, content)
        session, health, estimates, clock = seen.session, seen.health, seen.estimates, seen.clock
        noticed, whole_again = seen.noticed, seen.whole_again
        stack.enter_context(session)
        health.wait_until("estimates", lambda: len(estimates) > 100)
        whole_again()
        # 0.2 s, lost
        at = sender.tell("stall")
        health.pause.wait(0.2)
        sender.tell("go")
        noticed("stall 0.2 s", "stall", "eeg", at)
        # 2 s, then all of it at once
        at = sender.tell("stall", "meg", keeps=True)
        noticed("stall 2 s", "stall", "meg", at)
        health.wait_until("2 s", lambda: clock.now() > at + 2.0)
        assert np.isfinite(estimates[-1].data).all()
        check_imaged(estimates[-5:], Flag.MEG_MISSING)
        before = clock.now()
        sender.tell("go", "meg")
        assert health.fact("stall", "meg", at, ended=True)["ended"] - before < FAULT_S
        whole_again()
        assert clock.now() - estimates[-1].times[-1] < 1.0  # the present, not the backlog
        # stamps
        for what, kind in (("nan", "bad_stamps"), ("repeat", "duplicate_stamps"), ("back", "backward_stamps")):
            at = sender.tell("stamps", "meg", what=what)
            noticed(f"{what} stamps", kind, "meg", at)
            sender.tell("stamps", "meg", what="")
        whole_again()
        # values
        at = sender.tell("values", "eeg", what="nan", n=12)  # a fifth
        noticed("NaN", "nonfinite", "eeg", at)
        fact = noticed("20 % of channels", "bad_channels", "eeg", at)
        assert "12 of 60 channels" in fact["detail"]
        whole_again()
        sender.tell("values", "eeg", what="")
        # it comes back with its channels the other way round; all else is the same, so that liblsl says nothing of it
        at = sender.tell("vanish")
        noticed("vanished", "stall", "eeg", at)
        whole_again(Flag.EEG_MISSING)
        at = sender.tell("return", reversed=True)
        assert "another order" in noticed("other order", "stream_changed", "eeg", at)["detail"]
        whole_again()
        # from another source, without three channels, at twice the rate
        sender.tell("vanish", "meg")
        health.fact("stream_gone", "meg", at)
        at = sender.tell("return", "meg", source_id=f"{prefix}-other", sfreq=2 * SFREQ, without=3)
        detail = noticed("other source and rate", "stream_changed", "meg", at)["detail"]
        for part in (f"source id '{prefix}-other' after '{prefix}-mag'", "500 Hz after 250 Hz", "without 3 imaged channels"):
            assert part in detail
        whole_again()
        # the clock of a program is set
        at = sender.tell("shift", "eeg", seconds=-1.0)
        noticed("clock -1 s", "clock_step", "eeg", at)
        sender.tell("shift", "eeg", seconds=0.0)
        health.wait_until("the clock is right again", lambda: not health.newest["streams"]["eeg"]["missing_now"])
        sent = sender.sent()
        n_received = {m.value: r.arrivals.n_received for m, r in session.intake.receivers.items()}
        lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("incident=")]
        card = session.scorecard()
    seen.check_in_time()
    # nothing that arrived is lost, and each description has its own stream in the file, with the samples as they came
    parts = recorded(tmp_path / "whole.xdf")
    for label in ("eeg", "meg"):
        assert len(parts[label]) == 2
        n_recorded = sum(len(part["time_stamps"]) for part in parts[label])
        assert n_received[label] <= n_recorded <= sender_total(sent, label)
    one, two = (part["time_series"] for part in parts["eeg"])
    names = [[c["label"][0] for c in part["info"]["desc"][0]["channels"][0]["channel"]] for part in parts["eeg"]]
    assert names[0] == names[1][::-1]
    whole = [part[np.isfinite(part).all(axis=1)].astype(float) for part in map(np.asarray, (one, two))]
    size = [np.sqrt((part[-100:] ** 2).mean(axis=0)) for part in whole]
    assert np.corrcoef(np.arange(60), size[0])[0, 1] > 0.5 > -0.5 > np.corrcoef(np.arange(60), size[1])[0, 1]
    # the log: one line a fact, of known form
    for kind in {key[0] for key in health.facts}:
        assert any(line.startswith(f"incident={kind} subject=") for line in lines), kind
    assert all(
        re.fullmatch(r'incident=\w+ subject=\S+ state=\w+ lsl_time=[\d.]+ count=\d+ .*detail=".*"', line) for line in lines
    )
    counts = card.as_dict()["incidents"]
    assert counts["stall"] >= 4
    assert {"stream_changed", "bad_channels", "nonfinite", "bad_stamps", "clock_step"} <= set(counts)
    assert card.as_dict()["lost_samples"]["eeg"] > 0


def test_channels_fail_and_are_well_again_while_the_other_stream_is_silent_for_20_s(
    prefix: str, content: dict[str, Any], sender: Sender, tmp_path: Path
) -> None:
    """Flat, saturated, disconnected; a fifth of them at once. Then the silent stream sends all of it at once."""
    content["preprocessing"]["filters"] = {"band_pass": {"low_hz": None}}  # what was far off is forgotten soon
    content["output"]["record"] = {"file": str(tmp_path / "whole.xdf"), "estimates": "none"}
    with ExitStack() as stack:
        seen = Seen(stack, content)
        session, health, clock = seen.session, seen.health, seen.clock
        stack.enter_context(session)
        health.wait_until("estimates", lambda: len(seen.estimates) > 100)
        seen.whole_again()
        silent = sender.tell("stall", "meg", keeps=True)
        seen.noticed("stall 20 s", "stall", "meg", silent)
        seen.whole_again(Flag.MEG_MISSING)
        for what, n in (("flat", 1), ("saturated", 2), ("disconnected", 3), ("flat", 12)):
            at = sender.tell("values", "eeg", what=what, n=n)
            seen.noticed(f"{n} {what}", "bad_channels", "eeg", at)
            health.wait_until(f"{n} bad channels", lambda n=n: len(health.newest["bad_channels"]) == n)  # type: ignore[misc]
            seen.late[f"all {n} {what}"] = health.newest["time"] - at, health.newest["time"] - at
            seen.whole_again(Flag.MEG_MISSING)
            sender.tell("values", "eeg", what="")
            health.fact("bad_channels", "eeg", at, ended=True)
            assert health.newest["bad_channels"] == {}
        health.wait_until("20 s", lambda: clock.now() > silent + 20.0)
        before = sender.tell("go", "meg")
        assert health.fact("stall", "meg", silent, ended=True)["ended"] - before < FAULT_S
        seen.whole_again()
        assert clock.now() - seen.estimates[-1].times[-1] < 1.0  # the present, not the backlog
        at = sender.tell("stamps", "meg", what="inf")
        seen.noticed("infinite stamps", "bad_stamps", "meg", at)
        sender.tell("stamps", "meg", what="")
        sender.tell("vanish")
        seen.whole_again(Flag.EEG_MISSING)
        at = sender.tell("return", sfreq=SFREQ / 2)
        seen.noticed("half the rate", "resampling", "engine", at)
        seen.whole_again()
        sender.tell("vanish")
        seen.whole_again(Flag.EEG_MISSING)
        sender.tell("return", sfreq=SFREQ)
        health.fact("resampling", "engine", at, ended=True)
        seen.whole_again()
        sent = sender.sent()
        n_received = {m.value: r.arrivals.n_received for m, r in session.intake.receivers.items()}
        counts = session.scorecard().as_dict()["incidents"]
    seen.check_in_time()
    assert {"stall": 3, "bad_channels": 4, "bad_stamps": 1, "resampling": 1}.items() <= counts.items()
    for label, parts in recorded(tmp_path / "whole.xdf").items():
        if label in sent:
            n_recorded = sum(len(part["time_stamps"]) for part in parts)
            assert n_received[label] <= n_recorded <= sender_total(sent, label)


class Moody:
    """A solver that raises while it is told to."""

    def __init__(self, solver: Any, broken: set[str]) -> None:
        self.solver, self.broken = solver, broken

    def reset(self) -> None:
        self.solver.reset()

    def __call__(self, window: np.ndarray, n_new: int) -> np.ndarray:
        if "solver" in self.broken:
            raise FloatingPointError("a bad day")
        return np.asarray(self.solver(window, n_new))


def test_what_fails_within_the_engine_is_told_and_survived(
    prefix: str, content: dict[str, Any], sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A solver and threads that raise, a disk that is full and one that stands still, a view that is killed."""
    content["output"]["record"] = {"file": str(tmp_path / "whole.xdf"), "estimates": "none"}
    broken: set[str] = set()
    raised: dict[str, float] = {}

    def raises_once(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*given: Any, **more: Any) -> Any:
            if name in broken:
                broken.discard(name)
                raised[name] = seen.clock.now()
                raise ZeroDivisionError(name)
            return step(*given, **more)

        return stepped

    append = XdfFile.append

    def append_where_there_is_room(self: XdfFile, chunks: bytes) -> None:
        if "disk" in broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert moves.wait(LIMIT_S)
        append(self, chunks)

    moves = threading.Event()
    moves.set()
    monkeypatch.setattr(XdfFile, "append", append_where_there_is_room)
    with ExitStack() as stack:
        seen = Seen(stack, content)
        session, health, clock = seen.session, seen.health, seen.clock
        workers = {
            "receive eeg": (session.intake.receivers["eeg"], "step"),  # type: ignore[index]
            "clock watch": (session.intake.watch, "step"),
            "operators": (session.operators, "step"),
            "engine": (session.engine, "pump"),
            "health": (session.incidents, "settle"),
        }
        for name, (owner, method) in workers.items():
            monkeypatch.setattr(owner, method, raises_once(name, getattr(owner, method)))
        switch, key = session.operators.switch, session.imaging.full_key()
        stack.enter_context(session)
        health.wait_until("estimates", lambda: len(seen.estimates) > 100)
        operator = session.operators.complete
        assert operator is not None
        switch.offer(key, replace(operator, solver=Moody(operator.solver, broken)))
        seen.whole_again()
        at = clock.now()
        broken.add("solver")
        assert "FloatingPointError: a bad day" in seen.noticed("solver", "solver", "engine", at)["detail"]
        broken.discard("solver")
        health.fact("solver", "engine", at, ended=True)
        seen.whole_again()
        for name in workers:
            broken.add(name)
            health.wait_until(f"{name} raises", lambda name=name: name in raised)  # type: ignore[misc]
            assert f"ZeroDivisionError: {name}" in seen.noticed(name, "worker", name, raised[name])["detail"]
            seen.whole_again()
        at = clock.now()
        broken.add("disk")
        assert "No space left" in seen.noticed("full disk", "disk", "recording", at)["detail"]
        seen.whole_again()
        broken.discard("disk")
        health.fact("disk", "recording", at, ended=True)
        at = clock.now()
        moves.clear()
        assert "wait in memory" in seen.noticed("disk that stands still", "disk", "recording", at)["detail"]
        seen.whole_again()
        moves.set()
        health.fact("disk", "recording", at, ended=True)
        with subprocess.Popen([sys.executable, str(VIEW), prefix], stdout=subprocess.PIPE, text=True) as view:
            assert view.stdout is not None
            received = (json.loads(line)["received"] for line in view.stdout)
            assert any(n > 100 for n in received)
            view.kill()
        seen.whole_again()
        sent = sender.sent()
        n_received = {m.value: r.arrivals.n_received for m, r in session.intake.receivers.items()}
        card = session.scorecard().as_dict()
    seen.check_in_time()
    assert {"solver": 1, "worker": len(workers), "disk": 2}.items() <= card["incidents"].items()
    assert "not_recorded" not in card["incidents"]
    for label, (part,) in recorded(tmp_path / "whole.xdf").items():
        if label in sent:
            assert n_received[label] <= len(part["time_stamps"]) <= sender_total(sent, label)
            assert np.diff(part["time_stamps"]) == pytest.approx(1 / SFREQ, rel=0.01)


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed (Debian: apt-get install faketime)")
def test_a_clock_that_drifts_by_500_ppm_and_is_set_by_a_second_is_told_and_followed(
    prefix: str, content: dict[str, Any], tmp_path: Path, load_bench: Callable[[str], Any]
) -> None:
    set_to = tmp_path / "clock"
    set_to.write_text("+100s x1.0005\n")
    own = {"FAKETIME_TIMESTAMP_FILE": str(set_to), "FAKETIME_CACHE_DURATION": "1"}
    with ExitStack() as stack:
        sender = Sender(prefix, load_bench("faked_clock").faked_clock(**own))
        stack.callback(sender.close)
        seen = Seen(stack, content)
        session, health, clock = seen.session, seen.health, seen.clock
        stack.enter_context(session)

        def ahead() -> float:
            return sender.tell("go") - clock.now()

        health.wait_until("estimates", lambda: len(seen.estimates) > 100)
        seen.whole_again()
        for modality in ("eeg", "meg"):
            seen_drift = re.search(r"clock runs (\d+) ppm fast;", health.fact("drift", modality, 0.0)["detail"])
            assert seen_drift is not None
            assert float(seen_drift[1]) == pytest.approx(500, abs=100)
        for seconds in (101, 100):
            before = ahead()
            set_to.write_text(f"+{seconds}s x1.0005\n")
            health.wait_until("the clock is set", lambda before=before: 0.5 < abs(ahead() - before) < 1.5)  # type: ignore[misc]
            at = clock.now()

            def told(at: float = at) -> list[float]:
                shows = [key for key, one in health.facts.items() if key[0] in STEPPED and one["noticed"] > at - 1]
                return [health.told_at[key] for key in shows]

            health.wait_until("what it looks like", lambda told=told: bool(told()))  # type: ignore[misc]
            seen.late[f"clock set to {seconds} s"] = (min(told()) - at,) * 2
            for modality in ("eeg", "meg"):
                health.fact("clock_step", modality, at - 1)
            health.wait_until(
                "it is over", lambda: {one["kind"] for one in health.newest["incidents"]["lasting"]} == {"drift"}
            )
            seen.whole_again()
            assert abs(clock.now() - seen.estimates[-1].times[-1]) < 1.0  # by this machine's clock
        counts = session.scorecard().as_dict()["incidents"]
    seen.check_in_time()
    assert counts["drift"] >= 2
    assert counts["clock_step"] >= 2


def limit_of(fault: str) -> float:
    return STALL_S if fault.startswith("stall") or fault == "vanished" else FAULT_S


def sender_total(sent: dict[str, int], label: str) -> int:
    return sent[label] + round(3 * 2 * SFREQ)  # what was sent after it was asked, until the end


# the process


WATCHER = """
import sys
from rt_mmdf.lsl.network import NetworkTransport
transport = NetworkTransport()
(found,) = transport.resolve(name=sys.argv[1], timeout_s=20.0)
with transport.inlet(found) as inlet:
    while True:
        data, _ = inlet.pull(1.0)
        sys.stdout.write(f"{len(data)}\\n")
        sys.stdout.flush()
"""


class Monitor:
    """`rt-mmdf monitor` as a process, with its log read as it comes."""

    def __init__(self, config: Path, *words: object) -> None:
        command = [sys.executable, "-m", "rt_mmdf.cli", "monitor", str(config), "--no-view"]
        self.process = subprocess.Popen(
            [*command, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "400"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def said(self, text: str) -> bool:
        return any(text in line for line in list(self.lines))

    def end(self, number: int = signal.SIGINT) -> str:
        """What it printed at its end, a scorecard."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return out

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(LIMIT_S)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def monitoring(prefix: str, config: Path, *words: object) -> Iterator[tuple[Monitor, Listener]]:
    """An engine that images, and a listener to its health."""
    pause, deadline = Signal(), time.monotonic() + LIMIT_S
    with ExitStack() as stack:
        monitor = Monitor(config, *words)
        stack.callback(monitor.close)
        while not monitor.said("Publishing"):
            assert monitor.process.poll() is None, monitor.lines
            assert time.monotonic() < deadline, monitor.lines
            pause.wait(0.1)
        health = Listener(NetworkTransport(), prefix)
        stack.callback(health.close)
        health.wait_until("hops", lambda: health.newest.get("estimates", 0) > 50)
        yield monitor, health


@contextmanager
def watching(name: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", WATCHER, name], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_an_engine_that_was_suspended_skips_to_the_present_and_whoever_watches_may_die(
    prefix: str, content: dict[str, Any], sender: Sender, as_toml: Any, tmp_path: Path
) -> None:
    content["budget_ms"] = 200.0
    config, record = as_toml(content, tmp_path / "c.toml"), tmp_path / "whole.xdf"
    transport = NetworkTransport()
    with monitoring(prefix, config, "--record", record) as (monitor, health), watching(f"{prefix}-sources") as watcher:
        # two engines of one name
        second = subprocess.run(
            [sys.executable, "-m", "rt_mmdf.cli", "monitor", str(config), "--no-view"],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert second.returncode == 2
        assert "another engine" in " ".join(second.stderr.split())
        # a subscriber that stands still, and one that is killed
        assert watcher.stdout is not None
        watcher.stdout.readline()
        os.kill(watcher.pid, signal.SIGSTOP)
        hops, rss = health.newest["hops"], health.newest["rss_mb"]
        health.wait_until("3 s of hops", lambda: health.newest["hops"] > hops + 300)
        during = health.newest
        os.kill(watcher.pid, signal.SIGKILL)
        health.wait_until("1 s of hops", lambda: health.newest["hops"] > during["hops"] + 100)
        assert during["rss_mb"] < rss + 60  # 3 s of 1284 sources at 250 Hz are 4 MB
        assert during["latency_ms"]["publish"]["p50"] < 5.0
        # suspended
        before = health.newest
        stopped = transport.clock.now()
        os.kill(monitor.process.pid, signal.SIGSTOP)
        Signal().wait(3.0)
        os.kill(monitor.process.pid, signal.SIGCONT)
        resumed = transport.clock.now()
        fact = health.fact("suspended", "process", stopped)
        assert fact["told"] - resumed < FAULT_S
        assert fact["ended"] - fact["began"] == pytest.approx(resumed - stopped, abs=1.0)
        health.wait_until("2 s of hops", lambda: health.newest["hops"] > before["hops"] + 500)
        assert health.newest["skipped_hops"] > before["skipped_hops"] + 100  # not worked through in silence
        assert health.newest["incidents"]["counts"]["skipped_hops"] >= 1
        health.wait_until("both streams again", lambda: not any(s["missing_now"] for s in health.newest["streams"].values()))
        sent = sender.sent()
        out = monitor.end()
        assert monitor.process.returncode == 0
    assert "Scorecard" in out
    assert re.search(r"incidents\s.*suspended 1", out)
    assert monitor.said("incident=suspended subject=process state=noted")
    for label, parts in recorded(record).items():
        if label in sent:  # all that came while it was suspended is in the file
            stamps = np.concatenate([part["time_stamps"] for part in parts])
            assert np.diff(stamps) == pytest.approx(1 / SFREQ, rel=0.01)
            assert stamps[0] < stopped < resumed < stamps[-1]


def test_ctrl_c_twice_ends_at_once_and_what_was_recorded_is_whole(
    prefix: str, content: dict[str, Any], sender: Sender, as_toml: Any, tmp_path: Path
) -> None:
    record = tmp_path / "whole.xdf"
    config = as_toml(content, tmp_path / "c.toml")
    with monitoring(prefix, config, "--record", record) as (monitor, health):
        health.wait_until("2 s on disk", lambda: (health.newest["recording"] or {}).get("seconds", 0) > 2)
        monitor.process.send_signal(signal.SIGINT)
        Signal().wait(0.05)
        began = time.monotonic()
        monitor.end()
        assert monitor.process.returncode in (130, 0)  # 0: it had ended before the second one came
        assert time.monotonic() - began < 5.0
        assert not psutil.pid_exists(monitor.process.pid) or psutil.Process(monitor.process.pid).status() == "zombie"
    parts = recorded(record)
    assert min(len(parts[label][0]["time_stamps"]) for label in ("eeg", "meg")) > 1.5 * SFREQ


def test_an_engine_without_file_handles_goes_on_and_says_so(
    prefix: str, content: dict[str, Any], sender: Sender, as_toml: Any, tmp_path: Path
) -> None:
    """As many as it has, and hardly one more; then a stream has to be opened anew."""
    with monitoring(prefix, as_toml(content, tmp_path / "c.toml")) as (monitor, health):
        seen, hops = [], health.newest["hops"]  # it asks the network now and then, with sockets that it closes again

        def three_seconds() -> bool:
            seen.append(len(os.listdir(f"/proc/{monitor.process.pid}/fd")))
            return bool(health.newest["hops"] > hops + 300)

        health.wait_until("3 s of hops", three_seconds)
        most = min(seen) + 6
        limited = NetworkTransport().clock.now()
        psutil.Process(monitor.process.pid).rlimit(psutil.RLIMIT_NOFILE, (most, most))
        fact = health.fact("file_handles", "process", limited)
        assert fact["told"] - limited < FAULT_S
        assert monitor.said("incident=file_handles subject=process state=began")
        at = health.newest["time"]
        sender.tell("vanish", "meg")
        health.fact("stall", "meg", at)
        hops = health.newest["estimates"]
        health.wait_until("3 s from EEG alone", lambda: health.newest["estimates"] > hops + 300)
        sender.tell("return", "meg")
        hops = health.newest["estimates"]
        health.wait_until("3 s more", lambda: health.newest["estimates"] > hops + 300)
        out = monitor.end()
        assert monitor.process.returncode == 0, monitor.lines
    assert "Scorecard" in out


def test_an_engine_that_has_no_more_memory_to_get_goes_on(
    prefix: str, content: dict[str, Any], sender: Sender, as_toml: Any, tmp_path: Path
) -> None:
    """Its address space is limited, while it runs, to what it has."""
    config = as_toml(content, tmp_path / "c.toml")
    with monitoring(prefix, config) as (monitor, health):
        process = psutil.Process(monitor.process.pid)
        room = process.memory_info().vms + (16 << 20)
        process.rlimit(psutil.RLIMIT_AS, (room, room))
        limited = NetworkTransport().clock.now()
        fact = health.fact("memory", "process", limited)
        assert fact["told"] - limited < FAULT_S
        hops = health.newest["estimates"]
        health.wait_until("3 s more", lambda: health.newest["estimates"] > hops + 300)
        out = monitor.end()
        assert monitor.process.returncode == 0, monitor.lines
    assert "Scorecard" in out
