# SPDX-License-Identifier: BSD-3-Clause
"""Inputs for the codec's targets that are right, or nearly, for an engine to start from."""

from __future__ import annotations

import random
from collections.abc import Callable

from pyvfio.uapi import chain, vfio
from pyvfio.wire.commands import COMMANDS, Role
from tests.fuzz import values
from tests.fuzz.codec import PAYLOADS
from tests.fuzz.messages import ERROR_REPLY, REPLY, damaged, encoded, frame, json, request
from tests.unit.wire_examples import ANSWERS

_START = vfio.REGION_INFO.size


def _stream(rng: random.Random) -> bytes:
    role = rng.choice((Role.CLIENT, Role.SERVER))
    head = (role is Role.SERVER) | rng.randrange(4) << 1
    parts = [bytes((head, rng.choice((0, 0, 1, 3))))]
    own = [spec for spec in COMMANDS.values() if spec.sender is role]
    unanswered = list(range(len(own)))
    for _ in range(rng.randrange(1, 6)):
        if unanswered and rng.random() < 0.6:
            position = unanswered.pop(rng.randrange(len(unanswered)))
            parts.append(_reply(rng, position, own[position].command))
        else:
            wire = request(rng, role.peer, values.edge(rng, 0xFFFF), wildness=0.3)
            parts.append(wire.data[: rng.choice((512, 512, 512, 4096))])
    return b"".join(parts)


def _reply(rng: random.Random, number: int, command: int) -> bytes:
    """The answer to what :func:`tests.fuzz.codec.waiting` asks."""
    spec = COMMANDS[command]
    asked = values.message(random.Random(command), spec.request, edges=0.0)
    payload = encoded(ANSWERS[spec.command](asked))
    if rng.random() < 0.2:
        error = values.edge(rng, 0xFFFF_FFFF)
        return frame(number, command, payload[: rng.choice((0, 16))], ERROR_REPLY, error)
    return frame(number, command, damaged(rng, payload) if rng.random() < 0.5 else payload, REPLY)


def _payload(rng: random.Random) -> bytes:
    position = rng.randrange(len(PAYLOADS))
    made = encoded(values.message(rng, PAYLOADS[position]))[:4096]
    return bytes((position,)) + (damaged(rng, made) if rng.random() < 0.7 else made)


def _version(rng: random.Random) -> bytes:
    text = values.capabilities(rng).encode() if rng.random() < 0.5 else json(rng)[4:]
    return damaged(rng, text) if rng.random() < 0.5 else text


def _info(rng: random.Random) -> tuple[int, bytes]:
    """A region's info with its chain, and where that starts."""
    size = rng.choice((0x1000, 0x4000, 0x10000, values.edge(rng)))
    found = chain.build(_START, [_capability(rng, size) for _ in range(rng.randrange(4))])
    first = _START if found else 0
    flags = rng.choice((0xF, 0x7, 0x8, rng.randrange(16)))
    offset = rng.choice((0, 0, 0x1000, values.edge(rng)))
    argsz = _START + len(found)
    return first, vfio.REGION_INFO.pack(argsz, flags, 0, first, size, offset) + found


def _capability(rng: random.Random, size: int) -> chain.InfoCapability:
    kind = rng.randrange(5)
    if kind == 0:
        return chain.InfoCapability(vfio.RegionCapability.TYPE, 1, bytes(rng.randrange(12)))
    if kind == 1:
        return chain.InfoCapability(rng.randrange(6), 1, rng.randbytes(rng.randrange(16)))
    return chain.sparse_capability([_area(rng, size) for _ in range(rng.randrange(4))])


def _area(rng: random.Random, size: int) -> vfio.SparseMmapArea:
    if rng.random() < 0.1:
        return vfio.SparseMmapArea(values.edge(rng), values.edge(rng))
    offset = 0x1000 * rng.randrange(max(1, min(size, 1 << 20) >> 12))
    return vfio.SparseMmapArea(offset, rng.choice((0x1000, 0x1000, 0x2000, 0x800, 0)))


def _chain(rng: random.Random) -> bytes:
    first, info = _info(rng)
    info = info[:_START] + damaged(rng, info[_START:])
    return rng.choice((first, first, rng.randrange(96))).to_bytes(2, "little") + info


def _region_info(rng: random.Random) -> bytes:
    info = _info(rng)[1]
    return damaged(rng, info) if rng.random() < 0.6 else info


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "stream": _stream,
    "payload": _payload,
    "version": _version,
    "chain": _chain,
    "region-info": _region_info,
}
"""Target -> one input from a seed."""
