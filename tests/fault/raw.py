# SPDX-License-Identifier: BSD-3-Clause
"""The other end of a vfio-user socket, put together by hand from the protocol's document.

Nothing of the package's codec is used here: every message is bytes made with :mod:`struct`, so that
what both ends of the package get wrong in the same way still shows.  :class:`RawClient` drives a
server, :class:`RawServer` is a small PCI device whose every answer a test can replace.
"""

from __future__ import annotations

import itertools
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeAlias

SECONDS = 10.0
"""How long the other end may take for anything."""

(VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS) = range(1, 7)
(GET_IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE) = range(7, 13)
RESET, DIRTY_PAGES, WRITE_MULTI, DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = range(13, 19)

TYPE, REPLY, NO_REPLY, ERROR_REPLY = 0xF, 0x01, 0x10, 0x21
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
READABLE, WRITABLE, MAPPABLE, CAPABILITIES = 1, 2, 4, 8
CONFIG = 7
INTX, MSI, MSIX = 0, 1, 2

JSON = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}\0'


# Messages


def unhex(text: str) -> bytes:
    """Bytes as the document prints them: hex in groups, a bar behind the header."""
    return bytes.fromhex(text.replace("|", " "))


def frame(
    command: int, payload: bytes = b"", *, number: int = 0, flags: int = 0, error: int = 0
) -> bytes:
    """A message: header and payload."""
    return struct.pack("<HHIII", number, command, 16 + len(payload), flags, error) + payload


def version(major: int = 0, minor: int = 1, text: bytes = JSON) -> bytes:
    """Payload of VERSION and of its reply."""
    return struct.pack("<HH", major, minor) + text


def device_info(flags: int = 3, regions: int = 9, irqs: int = 5, argsz: int = 16) -> bytes:
    """Payload of the reply to DEVICE_GET_INFO; argsz alone makes the request."""
    return struct.pack("<IIII", argsz, flags, regions, irqs)


def region_info(
    index: int,
    argsz: int = 32,
    *,
    flags: int = 0,
    size: int = 0,
    offset: int = 0,
    cap_offset: int = 0,
    chain: bytes = b"",
) -> bytes:
    """Payload of DEVICE_GET_REGION_INFO and of its reply."""
    return struct.pack("<IIIIQQ", argsz, flags, index, cap_offset, size, offset) + chain


def sparse(areas: Sequence[tuple[int, int]], *, count: int | None = None, next_: int = 0) -> bytes:
    """A sparse mmap capability; ``count`` is what it claims to list."""
    listed = b"".join(struct.pack("<QQ", *area) for area in areas)
    number = len(areas) if count is None else count
    return struct.pack("<HHIII", 1, 1, next_, number, 0) + listed


def irq_info(index: int, *, flags: int = 0, count: int = 0, argsz: int = 16) -> bytes:
    """Payload of DEVICE_GET_IRQ_INFO and of its reply."""
    return struct.pack("<IIII", argsz, flags, index, count)


def irq_set(flags: int, index: int, start: int, count: int, *, data: bytes = b"") -> bytes:
    """Payload of DEVICE_SET_IRQS."""
    return struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data


def region_range(region: int, offset: int, count: int, data: bytes = b"") -> bytes:
    """Payload of REGION_READ, REGION_WRITE and their replies."""
    return struct.pack("<QII", offset, region, count) + data


def register_write(region: int, offset: int, data: bytes) -> bytes:
    """Payload of a REGION_WRITE of all of ``data``."""
    return region_range(region, offset, len(data), data)


def write_multi(*writes: tuple[int, int, bytes], count: int | None = None) -> bytes:
    """Payload of REGION_WRITE_MULTI: (region, offset, data) each; ``count`` is what it claims."""
    entries = b"".join(
        struct.pack("<QII8s", offset, region, len(data), data) for region, offset, data in writes
    )
    return struct.pack("<Q", len(writes) if count is None else count) + entries


def dma_map(
    address: int,
    size: int,
    *,
    flags: int = READABLE | WRITABLE,
    offset: int = 0,
    argsz: int = 32,
) -> bytes:
    """Payload of DMA_MAP."""
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def dma_unmap(address: int, size: int, *, flags: int = 0, argsz: int = 24) -> bytes:
    """Payload of DMA_UNMAP and of its reply."""
    return struct.pack("<IIQQ", argsz, flags, address, size)


def dma_range(address: int, count: int, data: bytes = b"") -> bytes:
    """Payload of DMA_READ, DMA_WRITE and their replies."""
    return struct.pack("<QQ", address, count) + data


@dataclass(frozen=True)
class Message:
    """A message as it came, and the descriptors that came with it."""

    data: bytes
    fds: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """The id."""
        return int.from_bytes(self.data[0:2], "little")

    @property
    def command(self) -> int:
        return int.from_bytes(self.data[2:4], "little")

    @property
    def flags(self) -> int:
        return int.from_bytes(self.data[8:12], "little")

    @property
    def error(self) -> int:
        return int.from_bytes(self.data[12:16], "little")

    @property
    def payload(self) -> bytes:
        """What is behind the header."""
        return self.data[16:]

    def words(self, layout: str) -> tuple[int, ...]:
        """The integers at the start of the payload."""
        return struct.unpack_from(f"<{layout}", self.payload)


def answer(message: Message, payload: bytes = b"") -> bytes:
    """The reply to ``message``."""
    return frame(message.command, payload, number=message.number, flags=REPLY)


def refusal(message: Message, number: int) -> bytes:
    """An error reply to ``message`` with errno ``number``."""
    return frame(message.command, number=message.number, flags=ERROR_REPLY, error=number)


# Sockets


class Peer:
    """A connected socket; whatever the other end does, a wait ends after ten seconds."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(SECONDS)
        self._send_lock = threading.Lock()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes; the descriptors go with the first of them."""
        with self._send_lock:
            sent = socket.send_fds(self.sock, [data], fds) if fds else 0
            if sent < len(data):  # no bytes at all would fail where the other end has gone
                self.sock.sendall(data[sent:])

    def receive(self) -> Message:
        """One whole message; raises EOFError where the stream ends."""
        head, fds = self._receive(16)
        try:
            body, more = self._receive(int.from_bytes(head[4:8], "little") - 16)
        except BaseException:
            close(fds)
            raise
        return Message(head + body, (*fds, *more))

    def _receive(self, size: int) -> tuple[bytes, list[int]]:
        data, found = b"", []
        while len(data) < size:
            part, fds, _, _ = socket.recv_fds(self.sock, size - len(data), 253)
            found += fds
            if not part:
                close(found)
                raise EOFError(f"the stream ended, {len(data)} of {size} bytes came")
            data += part
        return data, found

    def ended(self) -> bool:
        """Whether the other end closes the connection, without another byte."""
        try:
            return not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def quiet(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes for a while."""
        self.sock.settimeout(seconds)
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(SECONDS)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawClient(Peer):
    """A client of a server under test."""

    def __init__(self, path: Path) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))  # waits where the server's queue of clients is full
        except BaseException:
            sock.close()
            raise
        super().__init__(sock)
        self._numbers = itertools.count(1)

    def negotiate(self, text: bytes = JSON) -> Message:
        """Exchange VERSION."""
        return self.done(VERSION, version(text=text))

    def ask(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), number: int | None = None
    ) -> Message:
        """Send a command; returns what comes next, which must be its reply."""
        if number is None:
            number = next(self._numbers) & 0xFFFF
        self.send(frame(command, payload, number=number), fds)
        reply = self.receive()
        assert (reply.number, reply.command, reply.flags & TYPE) == (number, command, REPLY)
        return reply

    def done(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Ask for what must succeed."""
        reply = self.ask(command, payload, fds)
        assert (reply.flags, reply.error) == (REPLY, 0)
        return reply

    def refused(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Ask for what must be refused, with a bare header; returns the errno."""
        reply = self.ask(command, payload, fds)
        assert (reply.flags, len(reply.data), reply.fds) == (ERROR_REPLY, 16, ())
        return reply.error

    # Registers

    def read(self, region: int, offset: int, count: int) -> bytes:
        """REGION_READ."""
        reply = self.done(REGION_READ, region_range(region, offset, count))
        assert reply.payload[:16] == region_range(region, offset, count)
        assert len(reply.payload) == 16 + count
        return reply.payload[16:]

    def read32(self, region: int, offset: int) -> int:
        """A register."""
        return int.from_bytes(self.read(region, offset, 4), "little")

    def write(self, region: int, offset: int, data: bytes) -> None:
        """REGION_WRITE."""
        reply = self.done(REGION_WRITE, register_write(region, offset, data))
        assert reply.payload == region_range(region, offset, len(data))

    def write32(self, region: int, offset: int, value: int) -> None:
        """Set a register."""
        self.write(region, offset, value.to_bytes(4, "little"))

    def write64(self, region: int, offset: int, value: int) -> None:
        """Set a wide register."""
        self.write(region, offset, value.to_bytes(8, "little"))

    def enable_bus_master(self) -> None:
        """Memory decoding and bus mastering in the command register."""
        self.write(CONFIG, 4, b"\x06\x00")


def close(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def fired(fd: int, seconds: float = 5.0) -> int:
    """How often an eventfd was signalled; waits for the first signal, 0 where none comes."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(BlockingIOError):
            return os.eventfd_read(fd)
        if time.monotonic() > deadline:
            return 0
        time.sleep(0.001)


# A server


Handler: TypeAlias = Callable[[Message], None]


class RawServer:
    """A small PCI device on a socket, for one client.

    BAR 0 has 4 KiB of memory, configuration space 256 bytes; INTx and eight MSI vectors.  A thread
    receives; the client's commands go to :attr:`handlers`, which send whatever they like, and to
    :attr:`seen`.  Replies of the client go to :attr:`replies`.

    :ivar handlers: command -> what is done instead of the default.
    :ivar regions: index -> (flags, size).
    :ivar memory: index -> contents.
    :ivar vectors: interrupt index -> vectors.
    :ivar capabilities: JSON that VERSION is answered with.
    :ivar fds: command -> descriptors that go with its answer; of a region only with one that can
        be mapped.
    """

    def __init__(self, path: Path) -> None:
        self.uri = f"vfio-user:{path}"
        self.path = path
        self.seen: list[Message] = []
        self.replies: queue.Queue[Message] = queue.Queue()
        self.handlers: dict[int, Handler] = {}
        self.regions = {0: (READABLE | WRITABLE, 4096), CONFIG: (READABLE | WRITABLE, 256)}
        self.memory = {index: bytearray(size) for index, (_, size) in self.regions.items()}
        self.vectors = {INTX: 1, MSI: 8}
        self.capabilities = JSON
        self.fds: dict[int, list[int]] = {}
        self.peer: Peer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, name="raw server")
        self._thread.start()

    # What tests do

    def ask(self, command: int, payload: bytes = b"", number: int = 0) -> Message:
        """Send a command of the server's and wait for the client's reply."""
        self.peer.send(frame(command, payload, number=number))
        return self.replies.get(timeout=SECONDS)

    def commands(self) -> list[int]:
        """The commands that the client sent so far."""
        return [message.command for message in self.seen]

    def last(self, command: int) -> Message:
        """The client's latest command of a kind."""
        return [message for message in self.seen if message.command == command][-1]

    @contextmanager
    def deaf(self, write: Callable[[], object]) -> Iterator[None]:
        """Read nothing for a while, after the REGION_WRITE that ``write`` has the client post."""
        stalled, go_on = threading.Event(), threading.Event()

        def stall(message: Message) -> None:
            del self.handlers[message.command]
            stalled.set()
            go_on.wait(SECONDS)

        self.handlers[REGION_WRITE] = stall
        write()
        assert stalled.wait(SECONDS)
        try:
            yield
        finally:
            go_on.set()

    def hang_up(self) -> None:
        """Close the connection."""
        self.peer.sock.shutdown(socket.SHUT_RDWR)

    # The device

    def _run(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # nobody came
        with Peer(sock) as self.peer:
            self.peer.sock.settimeout(None)
            with suppress(EOFError, ConnectionError):
                while True:
                    self._take(self.peer.receive())

    def _take(self, message: Message) -> None:
        if message.flags & TYPE == REPLY:
            self.replies.put(message)
            return
        self.seen.append(message)
        try:
            self.handlers.get(message.command, self.serve)(message)
        finally:
            close(message.fds)

    def serve(self, message: Message) -> None:
        """Answer as a good device does."""
        payload = self.payload_for(message)
        if not message.flags & NO_REPLY:
            self.peer.send(answer(message, payload), self._fds_for(message, payload))

    def _fds_for(self, message: Message, payload: bytes) -> Sequence[int]:
        if message.command == GET_REGION_INFO and not payload[4] & MAPPABLE:
            return ()
        return self.fds.get(message.command, ())

    def payload_for(self, message: Message) -> bytes:
        """What a good device answers with."""
        return self._PAYLOADS[message.command](self, message)

    def _version(self, message: Message) -> bytes:
        return version(0, 0, self.capabilities)

    def _info(self, message: Message) -> bytes:
        return device_info()

    def _region_info(self, message: Message) -> bytes:
        index = message.words("III")[2]
        flags, size = self.regions.get(index, (0, 0))
        return region_info(index, flags=flags, size=size)

    def _irq_info(self, message: Message) -> bytes:
        index = message.words("III")[2]
        return irq_info(index, flags=1, count=self.vectors.get(index, 0))

    def _read(self, message: Message) -> bytes:
        offset, region, count = message.words("QII")
        data = self.memory[region][offset : offset + count]
        return region_range(region, offset, count, bytes(data))

    def _write(self, message: Message) -> bytes:
        offset, region, count = message.words("QII")
        self.memory[region][offset : offset + count] = message.payload[16:]
        return region_range(region, offset, count)

    def _write_multi(self, message: Message) -> bytes:
        (count,) = message.words("Q")
        for at in range(8, 8 + 24 * count, 24):
            offset, region, size = struct.unpack_from("<QII", message.payload, at)
            self.memory[region][offset : offset + size] = message.payload[at + 16 :][:size]
        return struct.pack("<Q", count)

    def _echo(self, message: Message) -> bytes:
        return message.payload

    def _nothing(self, message: Message) -> bytes:
        return b""

    _PAYLOADS: ClassVar[dict[int, Callable[[RawServer, Message], bytes]]] = {
        VERSION: _version,
        GET_INFO: _info,
        GET_REGION_INFO: _region_info,
        GET_IRQ_INFO: _irq_info,
        REGION_READ: _read,
        REGION_WRITE: _write,
        WRITE_MULTI: _write_multi,
        DMA_MAP: _nothing,
        DMA_UNMAP: _echo,
        SET_IRQS: _nothing,
        RESET: _nothing,
    }

    def close(self) -> None:
        """Let the client go."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        with suppress(AttributeError, OSError):
            self.hang_up()
        self._thread.join()
        self._listener.close()
        self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
