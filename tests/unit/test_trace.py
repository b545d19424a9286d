# SPDX-License-Identifier: BSD-3-Clause
"""The lines that a channel writes to a trace, one end of it written by hand."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from pyvfio.errors import (
    ConnectionLost,
    OperationError,
    RemoteError,
    RemoteProtocolError,
    VFIOTimeout,
)
from pyvfio.transport import trace
from pyvfio.transport.call import WriteCollection
from pyvfio.transport.channel import Channel, PeerRequest
from pyvfio.transport.sockets import close_fds
from pyvfio.wire import messages as m
from pyvfio.wire.commands import Role
from pyvfio.wire.connection import Connection, RequestReceived
from pyvfio.wire.header import Command
from tests.support import eventually, open_fds
from tests.unit.wire_examples import ERROR, NO_REPLY, REPLY, frame

SECONDS = 5.0
READ = m.RegionRead(0x10, 7, 4)
DATA = struct.pack("<QII", 0x10, 7, 4) + b"\1\2\3\4"


class Joined:
    """A channel that is traced, and the peer's end of its socket."""

    def __init__(self, role: Role = Role.CLIENT, *, twin: bool = False) -> None:
        self.requests: list[PeerRequest] = []
        own, self.peer = socket.socketpair()
        self.peer.settimeout(SECONDS)
        try:
            self.channel = Channel(
                own,
                role,
                name="the peer",
                max_data=4096,
                timeout=SECONDS,
                on_request=self._answer,
                on_lost=lambda _: None,
                twin=twin,
            )
        except BaseException:
            self.peer.close()
            raise

    def _answer(self, channel: Channel, request: PeerRequest) -> None:
        close_fds(request.fds)
        self.requests.append(request)
        if isinstance(request, RequestReceived) and request.command is Command.REGION_READ:
            ask = request.message
            channel.reply(request, m.RegionData(ask.offset, ask.region, bytes(ask.count)))
        else:
            channel.refuse(request, 22)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.peer.close()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that is traced to."""
    found = tmp_path / "trace.jsonl"
    monkeypatch.setenv(trace.VARIABLE, str(found))
    yield found
    trace.stop()


def lines(path: Path) -> list[dict[str, Any]]:
    """What has been written so far."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def sent_and_received(path: Path) -> list[dict[str, Any]]:
    """The messages of what has been written so far."""
    return [line for line in lines(path) if "direction" in line]


def event(path: Path, what: str) -> dict[str, Any]:
    """The one event of a kind."""
    [found] = [line for line in lines(path) if line.get("event") == what]
    return found


# Where lines go


def test_without_the_variable_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(trace.VARIABLE, raising=False)
    assert trace.start() is None
    with Joined() as pair:
        assert pair.channel._connection.observer is None


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trace.VARIABLE, "")
    assert trace.start() is None


def test_a_file_that_cannot_be_written_is_an_error_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trace.VARIABLE, str(tmp_path / "none" / "trace"))
    with pytest.raises(OperationError, match=r"none/trace: No such file .*\[ENOENT\]") as caught:
        trace.start()
    assert "PYVFIO_TRACE" in caught.value.hint
    with pytest.raises(OperationError):
        Joined()  # and no descriptor of the socket is left, says the fixture of all tests


def test_a_pipe_that_nobody_reads_is_an_error_and_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setenv(trace.VARIABLE, str(tmp_path / "fifo"))
    with pytest.raises(OperationError, match="ENXIO"):
        trace.start()


def test_lines_are_added_to_a_file_that_exists(path: Path) -> None:
    path.write_text('{"event":"old"}\n')
    with Joined():
        pass
    assert [line["event"] for line in lines(path)] == ["old", "connected", "closed"]


def test_the_file_is_its_owners_alone(path: Path) -> None:
    trace.start()
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_writers_of_one_file_do_not_cut_each_others_lines(path: Path) -> None:
    files = [trace.TraceFile(str(path)) for _ in range(2)]

    def write(number: int) -> None:
        for i in range(500):
            files[number].write({"writer": number, "i": i, "text": "x" * 500})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for file in files:
        file.close()
    for number in range(2):
        assert [e["i"] for e in lines(path) if e["writer"] == number] == list(range(500))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file that takes nothing."""
    monkeypatch.setenv(trace.VARIABLE, "/dev/full")
    yield
    trace.stop()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_stops_the_trace_and_not_the_device(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), Joined() as pair, Joined():
        for _ in range(3):
            call = pair.channel.submit(Command.REGION_READ, READ)
            pair.peer.recv(1024)
            pair.peer.sendall(frame(call.number, Command.REGION_READ, DATA, flags=REPLY))
            assert bytes(call.result().message.data) == b"\1\2\3\4"
    assert caplog.messages == ["/dev/full: No space left on device; tracing has stopped"]


def test_a_channel_goes_on_after_the_trace_was_stopped(path: Path) -> None:
    with Joined() as pair:
        trace.stop()
        assert str(path) not in open_fds().values()
        pair.channel.post(Command.DEVICE_RESET, m.Empty())
        assert len(pair.peer.recv(1024)) == 16
    assert [line["event"] for line in lines(path)] == ["connected"]


# Messages


def exchange(pair: Joined, reply: Callable[[int], bytes]) -> None:
    """Have the channel read a register, and answer it."""
    call = pair.channel.submit(Command.REGION_READ, READ)
    pair.peer.recv(1024)
    pair.peer.sendall(reply(call.number))
    call.result()


def test_a_request_and_its_reply_are_a_line_each(path: Path) -> None:
    before = time.monotonic()
    with Joined() as pair:
        exchange(pair, lambda number: frame(number, Command.REGION_READ, DATA, flags=REPLY))
    request, reply = sent_and_received(path)
    us = reply.pop("us")
    for line in (request, reply):
        assert before <= line.pop("mono") + 1e-6
        assert line.pop("time").endswith("+00:00")
        assert line.pop("connection") > 0
    whose = {"pid": os.getpid(), "role": "client", "channel": "the peer", "socket": "main"}
    header = {"id": 0, "command": "REGION_READ"}
    assert request == {
        **whose,
        **header,
        "direction": "sent",
        "type": "command",
        "size": 32,
        "fields": {"offset": 0x10, "region": 7, "count": 4},
    }
    assert reply == {
        **whose,
        **header,
        "direction": "received",
        "type": "reply",
        "size": 36,
        "fields": {"offset": 0x10, "region": 7, "data": {"bytes": 4, "hex": "01020304"}},
    }
    assert 0 < us < 1e6 * SECONDS


def test_an_error_is_named_and_shows_what_was_refused(path: Path) -> None:
    with Joined() as pair, pytest.raises(RemoteError):
        exchange(pair, lambda number: frame(number, Command.REGION_READ, flags=ERROR, error=22))
    _, reply = sent_and_received(path)
    assert (reply["error"], reply["flags"]) == ("EINVAL", "ERROR")
    assert reply["request"] == {"offset": 0x10, "region": 7, "count": 4}


def test_an_error_number_that_does_not_exist_is_shown_as_it_is(path: Path) -> None:
    with Joined() as pair, pytest.raises(RemoteError):
        exchange(pair, lambda number: frame(number, Command.REGION_READ, flags=ERROR, error=77777))
    assert sent_and_received(path)[1]["error"] == "77777"


def test_a_reply_that_cannot_be_decoded_is_shown_as_it_came(path: Path) -> None:
    with Joined() as pair, pytest.raises(RemoteProtocolError):
        exchange(pair, lambda number: frame(number, Command.REGION_READ, b"\xaa", flags=REPLY))
    undecoded = sent_and_received(path)[1]["undecoded"]
    assert undecoded == {"reason": "payload of 1 bytes, 16 needed", "bytes": 1, "hex": "aa"}


def test_descriptors_are_shown_at_both_ends(path: Path) -> None:
    fds = [os.eventfd(0), os.eventfd(0)]
    try:
        with Joined() as pair, Joined(Role.SERVER) as other:
            pair.channel.submit(Command.DEVICE_SET_IRQS, m.SetIRQs(0x24, 1, 0, 2), fds)
            data, passed, *_ = socket.recv_fds(pair.peer, 1024, 4)
            socket.send_fds(other.peer, [data], passed)
            close_fds(passed)
            assert eventually(lambda: bool(other.requests))
    finally:
        close_fds(fds)
    sent, received, *_ = sent_and_received(path)
    assert [fd["fd"] for fd in sent["fds"]] == fds
    assert [fd["is"] for fd in sent["fds"]] == ["eventfd", "eventfd"]
    assert [fd["is"] for fd in received["fds"]] == ["eventfd", "eventfd"]


def test_a_server_traces_what_it_is_asked_and_what_it_answers(path: Path) -> None:
    with Joined(Role.SERVER) as pair:
        pair.peer.sendall(frame(9, Command.REGION_READ, DATA[:16]))
        pair.peer.recv(1024)
    request, reply = sent_and_received(path)
    assert (request["role"], request["direction"], request["id"]) == ("server", "received", 9)
    assert (reply["role"], reply["direction"], reply["id"]) == ("server", "sent", 9)
    assert reply["us"] > 0


def test_a_request_that_is_refused_undecoded_is_shown(path: Path) -> None:
    with Joined(Role.SERVER) as pair:
        pair.peer.sendall(frame(9, 14, b"\xde\xad"))
        pair.peer.recv(1024)
    request, reply = sent_and_received(path)
    assert request["command"] == "command 14"
    assert request["undecoded"] == {"reason": "no such command", "bytes": 2, "hex": "dead"}
    assert reply["error"] == "EINVAL"


def test_a_posted_write_has_its_flag_and_no_time(path: Path) -> None:
    with Joined(Role.SERVER) as pair:
        pair.peer.sendall(frame(1, Command.REGION_WRITE, DATA, flags=NO_REPLY))
        assert eventually(lambda: bool(pair.requests))
    [line] = sent_and_received(path)
    assert (line["type"], line["flags"]) == ("command", "NO_REPLY")


def test_ids_of_both_directions_are_told_apart(path: Path) -> None:
    with Joined() as pair:
        call = pair.channel.submit(Command.REGION_READ, READ)
        pair.peer.recv(1024)
        pair.peer.sendall(frame(call.number, Command.DMA_READ, bytes(16)))
        pair.peer.recv(1024)
        pair.peer.sendall(frame(call.number, Command.REGION_READ, DATA, flags=REPLY))
        call.result()
    found = [(line["command"], line["type"], "us" in line) for line in sent_and_received(path)]
    assert found == [
        ("REGION_READ", "command", False),
        ("DMA_READ", "command", False),
        ("DMA_READ", "reply", True),
        ("REGION_READ", "reply", True),
    ]


def read_messages(sock: socket.socket, count: int) -> list[Command]:
    """The commands of the next messages, read as a server would."""
    connection = Connection(Role.SERVER, 1 << 20)
    found: list[Command] = []
    while len(found) < count:
        for request in connection.receive_data(sock.recv(1 << 16)):
            assert isinstance(request, RequestReceived)
            found.append(request.command)
    return found


def test_lines_are_in_the_order_of_the_stream_where_writes_are_collected(path: Path) -> None:
    register = m.RegionWrite(0, 0, bytes(4))
    with Joined() as pair:
        while not pair.channel._queue:
            pair.channel.post(Command.REGION_WRITE, m.RegionWrite(0, 2, bytes(1 << 16)))
        for _ in range(WriteCollection.MAX_WRITES + 1):
            pair.channel.post_write(register)
        pair.channel.post(Command.DEVICE_RESET, m.Empty())
        pair.channel.post_write(register)
        filled = len(sent_and_received(path)) - 3
        received = read_messages(pair.peer, filled + 4)
    assert [line["command"] for line in sent_and_received(path)] == [
        command.name for command in received
    ]
    assert received[filled:] == [
        Command.REGION_WRITE_MULTI,
        Command.REGION_WRITE_MULTI,
        Command.DEVICE_RESET,
        Command.REGION_WRITE_MULTI,
    ]


def test_the_twin_socket_is_named(path: Path) -> None:
    with Joined(), Joined(twin=True):
        pass
    first, second = (line for line in lines(path) if line["event"] == "connected")
    assert (first["socket"], second["socket"]) == ("main", "twin")
    assert first["connection"] != second["connection"]


@pytest.mark.usefixtures("path")
def test_requests_that_are_never_answered_are_forgotten_beyond_a_bound() -> None:
    with Joined(Role.SERVER) as pair:
        tracer = pair.channel._tracer
        assert tracer is not None
        for number in range(trace.MAX_PENDING + 100):
            tracer.sent([frame(number, Command.DMA_READ, bytes(16))], ())
        assert len(tracer._requests) == trace.MAX_PENDING


# What is no message


def test_connecting_names_the_peer_and_closing_is_told_once(path: Path) -> None:
    with Joined() as pair:
        pair.channel.close()
    assert event(path, "connected")["peer"]["pid"] == os.getpid()
    assert event(path, "closed")["channel"] == "the peer"


def test_the_version_that_was_agreed_on_is_told(path: Path) -> None:
    with Joined() as pair:
        call = pair.channel.submit(Command.VERSION, m.Version(0, 1, None))
        pair.peer.recv(1024)
        pair.peer.sendall(frame(call.number, Command.VERSION, b"\0\0\1\0", flags=REPLY))
        call.result()
    agreed = event(path, "agreed")
    assert (agreed["major"], agreed["minor"], agreed["capabilities"]) == (0, 1, None)


def test_a_version_that_was_refused_is_not_agreed_on(path: Path) -> None:
    with Joined() as pair:
        call = pair.channel.submit(Command.VERSION, m.Version(0, 1, None))
        pair.peer.recv(1024)
        pair.peer.sendall(frame(call.number, Command.VERSION, flags=ERROR, error=22))
        with pytest.raises(RemoteError):
            call.result()
    assert "agreed" not in {line.get("event") for line in lines(path)}


def test_a_time_out_and_the_reply_that_comes_late_are_told(path: Path) -> None:
    with Joined() as pair:
        call = pair.channel.submit(Command.REGION_READ, READ)
        pair.peer.recv(1024)
        with pytest.raises(VFIOTimeout):
            call.result(0.01)
        pair.peer.sendall(frame(call.number, Command.REGION_READ, DATA, flags=REPLY))
        assert eventually(lambda: "late reply" in path.read_text())
    timed_out = event(path, "time-out")
    assert (timed_out["id"], timed_out["command"]) == (call.number, "REGION_READ")
    assert timed_out["reason"] == "no reply within 0.01 s"
    assert event(path, "late reply")["id"] == call.number
    assert sent_and_received(path)[1]["us"] >= 10_000


def test_the_loss_of_the_peer_is_told(path: Path) -> None:
    with Joined() as pair:
        call = pair.channel.submit(Command.REGION_READ, READ)
        pair.peer.recv(1024)
        pair.peer.close()
        with pytest.raises(ConnectionLost):
            call.result()
    assert event(path, "lost")["reason"] == "the peer closed the connection"


def test_a_header_that_breaks_the_protocol_is_shown_before_the_reason(path: Path) -> None:
    with Joined() as pair:
        pair.peer.sendall(frame(7, Command.REGION_READ, flags=REPLY, size=52))
        assert eventually(lambda: pair.channel.lost)
    _, message, broken, _ = lines(path)
    assert (message["id"], message["size"]) == (7, 52)
    assert message["undecoded"]["reason"] == "refused for its header"
    assert message["undecoded"]["unread"] == 36
    assert broken["event"] == "protocol error"
    assert broken["reason"] == "reply 7 to REGION_READ, never asked"


def test_a_request_of_which_nothing_was_sent_is_told(path: Path) -> None:
    with Joined() as pair, pytest.raises(OSError, match="Bad file"):
        pair.channel.submit(Command.DMA_MAP, m.DMAMap(3, 0, 0, 4096), [-1])
    assert event(path, "not sent")["command"] == "DMA_MAP"
