# SPDX-License-Identifier: BSD-3-Clause
"""Messages as a faulty or hostile peer may write them, from a seed.

Most are well-formed; some have a payload that was damaged, some a header that lies.  Each knows
whether the receiver can still be in step behind it, and whether it has to answer.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyvfio.wire.commands import COMMANDS, Role
from pyvfio.wire.connection import MAX_OVERHEAD
from pyvfio.wire.header import HEADER, Command, HeaderFlags
from pyvfio.wire.messages import Message
from pyvfio.wire.version import DEFAULT_MAX_DATA_XFER_SIZE
from tests.fuzz.values import EDGES, edge, message

MAX_REQUEST = HEADER.size + MAX_OVERHEAD + DEFAULT_MAX_DATA_XFER_SIZE
"""Bytes of the longest request that either end takes."""

NO_REPLY = int(HeaderFlags.NO_REPLY)
REPLY = int(HeaderFlags.REPLY)
ERROR_REPLY = int(HeaderFlags.REPLY | HeaderFlags.ERROR)

_FREQUENT = (
    *(Command.REGION_READ, Command.REGION_READ, Command.REGION_WRITE, Command.REGION_WRITE),
    *(Command.DMA_MAP, Command.DMA_UNMAP, Command.DEVICE_SET_IRQS),
)
"""What a client does most."""

UNKNOWN = (0, 14, 19, 20, 255, 0x8000, 0xFFFF)
"""Numbers that are no command."""

JSON_VALUES = (
    *("null", "true", "false", "0", "-1", "1e3", "1e999", "NaN", "Infinity", "1" * 5000),
    *('""', '"1"', '"\\ud800"', "[]", "[[[[]]]]", "[" * 2000, "{}", '{"supported":1}'),
    *('{"supported":true,"fd_index":999}', '{"supported":true,"fd_index":0}', "4096", "253"),
)
"""JSON of every kind, some of it none."""

JSON_KEYS = (
    *("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "twin_socket"),
    *("write_multiple", "pyvfio_long_writes", "migration", "", "\\u0000"),
)


class Wire(NamedTuple):
    """One message on the wire.

    :ivar data: its bytes.
    :ivar number: its id.
    :ivar command: its command, known or not.
    :ivar answered: the receiver has to answer it.
    :ivar in_step: a receiver that refuses it can read on behind it.
    :ivar message: what it was made of, if its payload was left alone.
    """

    data: bytes
    number: int
    command: int
    answered: bool
    in_step: bool
    message: Message | None = None

    @property
    def payload(self) -> bytes:
        """What stands behind the header."""
        return self.data[HEADER.size :]


def frame(number: int, command: int, payload: bytes, flags: int = 0, error: int = 0) -> bytes:
    """A message whose header tells the truth."""
    return HEADER.pack(number, command, HEADER.size + len(payload), flags, error) + payload


def encoded(made: Message) -> bytes:
    """The payload of a message in one piece."""
    return b"".join(made.encode())


def request(
    rng: random.Random, sender: Role, number: int, *, wildness: float, command: int | None = None
) -> Wire:
    """Any command.

    :param sender: who writes it; now and then it is one that only the other end sends.
    :param wildness: how likely it is to be wrong in some way.
    """
    wild = rng.random() < wildness
    if command is None:
        command = _command(rng, sender, wild)
    made: Message | None = None
    payload = b""
    if command in COMMANDS:
        made = message(rng, COMMANDS[command].request)
        payload = encoded(made)
    flags = NO_REPLY if rng.random() < 0.1 else 0
    if not wild:
        data = frame(number, command, payload, flags)
        return Wire(data, number, command, not flags, True, made)
    if rng.random() < 0.9:
        payload = json(rng) if command == Command.VERSION else damaged(rng, payload)
        data = frame(number, command, payload, flags, edge(rng, 0xFFFF_FFFF))
        return Wire(data, number, command, not flags, len(data) <= MAX_REQUEST)
    return Wire(lying(rng, number, command, payload), number, command, False, False)


def _command(rng: random.Random, sender: Role, wild: bool) -> int:
    if wild and rng.random() < 0.1:
        return rng.choice(UNKNOWN)
    if wild and rng.random() < 0.2:
        return rng.choice([*COMMANDS])
    own = [number for number, spec in COMMANDS.items() if spec.sender is sender]
    return (
        rng.choice(_FREQUENT) if sender is Role.CLIENT and rng.random() < 0.4 else rng.choice(own)
    )


def lying(rng: random.Random, number: int, command: int, payload: bytes) -> bytes:
    """A message whose header cannot be believed: size, type, or a reply that nobody asked for."""
    size = HEADER.size + len(payload)
    flags, error = 0, 0
    kind = rng.randrange(4)
    if kind == 0:
        size = edge(rng, 0xFFFF_FFFF)
    elif kind == 1:
        size = max(0, size + rng.choice((-8, -4, -1, 1, 4, 8, 16)))
    elif kind == 2:
        flags = rng.choice((2, 3, 0xF, 0x12, 0x2F, 0xFFFF_FFFF))
    else:
        flags, error = rng.choice((REPLY, ERROR_REPLY, 0x31)), edge(rng, 0xFFFF_FFFF)
    return HEADER.pack(number, command, size, flags, error) + payload


# Damage to a payload


def _overwrite(rng: random.Random, payload: bytearray) -> None:
    width = rng.choice((1, 2, 4, 4, 8))
    if len(payload) >= width:
        at = width * rng.randrange(len(payload) // width)
        value = rng.choice(EDGES) & ((1 << 8 * width) - 1)
        payload[at : at + width] = value.to_bytes(width, "little")


def _flip(rng: random.Random, payload: bytearray) -> None:
    if payload:
        payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, payload: bytearray) -> None:
    del payload[rng.randrange(len(payload) + 1) :]


def _extend(rng: random.Random, payload: bytearray) -> None:
    payload += rng.randbytes(rng.choice((1, 4, 8, 16, 24, 256)))


def _repeat(rng: random.Random, payload: bytearray) -> None:
    at = rng.randrange(len(payload) + 1)
    payload[at:at] = payload[at : at + rng.choice((1, 8, 16, 24))]


_DAMAGE: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _overwrite,
    _overwrite,
    _overwrite,
    _flip,
    _cut,
    _extend,
    _repeat,
)


def damaged(rng: random.Random, payload: bytes) -> bytes:
    """A payload with one to three faults."""
    faulty = bytearray(payload)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_DAMAGE)(rng, faulty)
    return bytes(faulty)


def json(rng: random.Random) -> bytes:
    """The payload of a VERSION whose text is of every kind."""
    pairs = (
        f'"{rng.choice(JSON_KEYS)}":{rng.choice(JSON_VALUES)}' for _ in range(rng.randrange(6))
    )
    text = rng.choice(('{"capabilities":{%s}}', "{%s}", '{"capabilities":[%s]}')) % ",".join(pairs)
    raw = text.encode() + rng.choice((b"\0", b"\0", b"\0", b"", b"\0\0", b"\xff\0"))
    return struct.pack("=HH", rng.choice((0, 0, 1)), rng.randrange(3)) + raw


def pieces(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """The same bytes, cut anywhere; mostly not at all."""
    kind = rng.random()
    if kind < 0.9 or len(data) < 2:
        yield data
    elif kind < 0.98:
        at = rng.randrange(1, len(data))
        yield data[:at]
        yield data[at:]
    else:
        slow = min(len(data), 48)
        yield from (data[at : at + 1] for at in range(slow))
        yield data[slow:]
