"""What only the network can do: bytes that are no text, streams without a source id, large descriptions."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from mne_lsl.lsl.load_liblsl import lib

from rt_mmdf.core.errors import StreamDescriptionError, StreamNotFound
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
from rt_mmdf.lsl.network import NetworkTransport

pytestmark = pytest.mark.lsl
LIMIT_S = 10.0


@pytest.fixture
def bytes_outlet() -> Iterator[tuple[str, int]]:
    """A stream of text made past mne-lsl, which would refuse to send bytes that are no UTF-8."""
    name = uuid4().hex
    source = f"{name}-id".encode()
    info = lib.lsl_create_streaminfo(name.encode(), b"Markers", 1, ctypes.c_double(0.0), 3, source)
    outlet = lib.lsl_create_outlet(ctypes.c_void_p(info), 0, 10)
    yield name, outlet
    lib.lsl_destroy_outlet(ctypes.c_void_p(outlet))
    lib.lsl_destroy_streaminfo(ctypes.c_void_p(info))


def test_bytes_that_are_no_text_are_replaced_not_raised(bytes_outlet: tuple[str, int]) -> None:
    name, outlet = bytes_outlet
    transport = NetworkTransport()
    (found,) = transport.resolve(name=name, timeout_s=LIMIT_S)
    with transport.inlet(found) as inlet:
        assert lib.lsl_wait_for_consumers(ctypes.c_void_p(outlet), ctypes.c_double(LIMIT_S))
        for text in (b"ok", b"\xff\x00", b"a\x1bb\nc"):
            sample = (ctypes.c_char_p * 1)(text)
            lib.lsl_push_sample_strtp(ctypes.c_void_p(outlet), sample, ctypes.c_double(1.0), ctypes.c_int(1))
        texts: list[str] = []
        deadline = time.monotonic() + LIMIT_S
        while len(texts) < 3 and time.monotonic() < deadline:
            texts += inlet.pull(0.2)[0][:, 0].tolist()
    assert texts == ["ok", "\ufffd", "ab\nc"]


def test_a_header_that_is_no_text_is_listed_and_refused() -> None:
    name = uuid4().hex
    info = lib.lsl_create_streaminfo(name.encode(), b"M\xff\x1b[2J", 1, ctypes.c_double(0.0), 3, name.encode())
    outlet = lib.lsl_create_outlet(ctypes.c_void_p(info), 0, 10)
    transport = NetworkTransport()
    try:
        (found,) = transport.resolve(name=name, timeout_s=LIMIT_S)
        assert found.type == "M\ufffd[2J"
        for use in (transport.inlet, transport.describe, transport.offset_probe):
            with pytest.raises(StreamDescriptionError, match="UTF-8"):
                use(found)
    finally:
        lib.lsl_destroy_outlet(ctypes.c_void_p(outlet))
        lib.lsl_destroy_streaminfo(ctypes.c_void_p(info))


def test_only_what_was_resolved_can_be_opened() -> None:
    made_up = StreamDescription("x", "", "", 1.0, "float32", (ChannelDescription("a"),), {}, uid="' or '1'='1")
    with pytest.raises(StreamNotFound, match="no uid"):
        NetworkTransport().inlet(made_up)


def test_a_source_estimate_of_5124_channels_goes_through() -> None:
    transport, name = NetworkTransport(), uuid4().hex
    channels = tuple(ChannelDescription(f"lh {i}", "source", "A m", (0.01, 1e-5 * i, 0.05)) for i in range(5124))
    with transport.outlet(StreamDescription(name, "source", name, 1000.0, "float32", channels, {})) as outlet:
        (found,) = transport.resolve(name=name, timeout_s=LIMIT_S)
        assert found.n_channels == 5124
        assert transport.describe(found).channels == transport.describe(found).channels
        with transport.inlet(found) as inlet:
            assert [channel.name for channel in inlet.description.channels] == [channel.name for channel in channels]
            assert outlet.wait_for_consumers(LIMIT_S)
            data = np.random.default_rng(0).standard_normal((3, 5124)).astype(np.float32)
            for row in range(3):
                outlet.push(data[row : row + 1], 1.0 + row)
            got: list[np.ndarray] = []
            deadline = time.monotonic() + LIMIT_S
            while sum(map(len, got)) < 3 and time.monotonic() < deadline:
                got.append(inlet.pull(0.2)[0])
    np.testing.assert_array_equal(np.vstack(got), data)


ASK = """
from rt_mmdf.lsl.network import NetworkTransport
from rt_mmdf.lsl.interface import ChannelDescription, StreamDescription
transport = NetworkTransport()
own = StreamDescription("own", "EEG", "id", 10.0, "float32", (ChannelDescription("a"),), {})
with transport.outlet(own):
    found = transport.resolve(timeout_s=4.0)
    print(all(stream.uid for stream in found), [stream.name for stream in transport.resolve(name="own", timeout_s=4.0)])
"""


def test_answers_that_are_no_headers_are_left_out(tmp_path: Path) -> None:
    """One datagram of nonsense in answer to a question, and mne-lsl raised KeyError in everybody who had asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.settimeout(0.2)
        # on a port of their own, so that nobody else on this machine hears the nonsense
        config = Path(os.environ["LSLAPICFG"]).read_text(encoding="utf-8")
        port = stranger.getsockname()[1]
        config = config.replace("[ports]", f"[ports]\nMulticastPort = {port}").replace("239.255.172.215, ", "")
        (tmp_path / "lsl.cfg").write_text(config, encoding="utf-8")
        asking = subprocess.Popen(
            [sys.executable, "-c", ASK],
            env=os.environ | {"LSLAPICFG": str(tmp_path / "lsl.cfg")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        n_answered = 0
        while asking.poll() is None:
            try:
                question, (host, _) = stranger.recvfrom(1 << 16)
            except TimeoutError:
                continue
            lines = question.decode().split("\r\n")
            if lines[0] == "LSL:shortinfo":
                back, number = lines[2].split()
                for content in (b"garbage", b"<?xml version='1.0'?><info><name>x</name>", b"<info/>"):
                    stranger.sendto(number.encode() + b"\r\n" + content, (host, int(back)))
                    n_answered += 1
        said, complaint = asking.communicate()
    assert n_answered > 0
    assert said.strip() == "True ['own']", complaint


@pytest.mark.parametrize("changed", [{"name": "x"}, {"type": "x"}, {"source_id": "x"}, {"hostname": "elsewhere"}])
def test_a_uid_alone_opens_nothing(changed: dict[str, str]) -> None:
    """Who answers for the uid of a stream must say that it is that stream."""
    transport, name = NetworkTransport(), uuid4().hex
    with transport.outlet(StreamDescription(name, "EEG", name, 10.0, "float32", (ChannelDescription("a"),), {})):
        (found,) = transport.resolve(name=name, timeout_s=LIMIT_S)
        transport.inlet(found).close()
        with pytest.raises(StreamNotFound, match="it was on offer and is gone"):
            transport.inlet(replace(found, **changed))
