# SPDX-License-Identifier: BSD-3-Clause
"""Random values for the members of a payload: mostly sensible, often at a boundary.

A member is filled by its type and its name, so a payload class that is new in the table of commands
is covered as soon as it is there.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import struct
import types
import typing
from collections.abc import Callable
from typing import Any

from pyvfio.wire import messages as m
from pyvfio.wire.messages import Message
from pyvfio.wire.version import Capabilities

PAGE = 4096

EDGES = sorted(
    {0, 1, 2, 3, 253, 254, 255, 1023, 65535}
    | {(1 << bits) + step for bits in (3, 4, 8, 12, 15, 16, 20, 24, 31, 32) for step in (-1, 0, 1)}
    | {(1 << 63) - 1, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 16, (1 << 64) - 2, (1 << 64) - 1}
)
"""Numbers at which something may be wrong by one, or overflow."""

_TRIES = 4
"""Attempts to make a message whose members fit into its struct; all but the first are tame."""

Pick = Callable[[random.Random], int]


def edge(rng: random.Random, most: int = (1 << 64) - 1) -> int:
    """A number at a boundary, ``most`` at most."""
    return rng.choice(EDGES) & most


def _page(rng: random.Random) -> int:
    return PAGE * rng.randrange(64)


def _pages(rng: random.Random) -> int:
    return PAGE * rng.choice((1, 1, 1, 2, 4, 16))


def _offset(rng: random.Random) -> int:
    return rng.choice((4 * rng.randrange(64), rng.randrange(4096), _page(rng)))


def _bits(rng: random.Random) -> int:
    return rng.choice((1, 2, 3, 3, 0x21, 0x24, 0x24, 0x22, 0x11, 0x09, 1 << rng.randrange(32)))


def _count(rng: random.Random) -> int:
    return rng.choice((1, 2, 4, 4, 8, rng.randrange(64), rng.randrange(65536)))


def _small(rng: random.Random) -> int:
    return rng.randrange(10)


def _argsz(rng: random.Random) -> int:
    return rng.choice((16, 32, 64, 128, 4096, rng.randrange(256)))


_BY_NAME: dict[str, Pick] = {
    "address": _page,
    "argsz": _argsz,
    "cap_offset": lambda rng: rng.choice((0, 0, 32, 40)),
    "count": _count,
    "fd_index": lambda rng: rng.randrange(3),
    "flags": _bits,
    "index": _small,
    "iova": _page,
    "major": lambda rng: rng.choice((0, 0, 0, 0, 1)),
    "minor": lambda rng: rng.randrange(3),
    "num_irqs": lambda rng: rng.choice((5, 5, 3, rng.randrange(60))),
    "num_regions": lambda rng: rng.choice((9, 9, 8, rng.randrange(120))),
    "offset": _offset,
    "region": lambda rng: rng.choice((0, 0, 1, 2, 4, 7, 7, _small(rng))),
    "size": _pages,
    "start": lambda rng: rng.choice((0, 0, 0, 1, _small(rng))),
}
"""How members are filled by name; others are small numbers."""

_BY_MEMBER: dict[tuple[type[Message], str], Pick] = {
    (m.DMAMap, "flags"): lambda rng: rng.choice((1, 2, 3, 3, 3, 3)),
    (m.DMAMap, "offset"): _page,
    (m.DMAUnmap, "flags"): lambda rng: rng.choice((0, 0, 0, 0, 2)),
    (m.GetRegionInfo, "argsz"): lambda rng: rng.choice((32, 64, 80, 4096)),
    (m.RegionRead, "count"): lambda rng: rng.choice((1, 2, 4, 4, 4, 8, 64, rng.randrange(65536))),
}
"""Members that mean something else than others of their name."""

_CAPABILITIES: dict[str, Callable[[random.Random], Any]] = {
    "max_msg_fds": lambda rng: rng.choice((0, 1, 8, 16, 64, 253, 1 << 20)),
    "max_data_xfer_size": lambda rng: rng.choice((8, 4096, 65536, 1 << 20, 1 << 26)),
    "max_dma_maps": lambda rng: rng.choice((1, 2, 16, 65535)),
    "pgsizes": lambda rng: rng.choice((1, 4096, 4096, 1 << 21, (1 << 64) - 1)),
}
"""The numbers in VERSION; its other keys are flags."""


def _number(rng: random.Random, kind: Any, name: str, edges: float) -> int:
    """A value for the member ``name``, at a boundary with probability ``edges``."""
    if rng.random() < edges:
        return edge(rng, rng.choice(((1 << 64) - 1, (1 << 32) - 1, 0xFFFF)))
    return (_BY_MEMBER.get((kind, name)) or _BY_NAME.get(name, _small))(rng)


def _register(rng: random.Random) -> bytes:
    value = rng.choice((_small(rng), _page(rng), edge(rng)))
    return value.to_bytes(8, "little")[: rng.choice((1, 2, 4, 4, 8))]


def content(rng: random.Random) -> bytes:
    """Data of a message: mostly a register's width, now and then a lot."""
    kind = rng.random()
    if kind < 0.7:
        return _register(rng)
    if kind < 0.99:
        return rng.randbytes(rng.randrange(64))
    return rng.randbytes(rng.choice((4096, 32768, 65536, 65537)))


def _mostly(rng: random.Random) -> bool:
    return rng.random() < 0.8


def capabilities(rng: random.Random) -> Capabilities:
    """What VERSION may offer; a key is left out now and then."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Capabilities):
        if field.name != "twin_fd_index" and rng.random() < 0.8:
            found[field.name] = _CAPABILITIES.get(field.name, _mostly)(rng)
    return Capabilities(**found)


def message(rng: random.Random, kind: type[Message], edges: float = 0.05) -> Message:
    """A message of a class, each of whose members is at a boundary with probability ``edges``."""
    for attempt in range(_TRIES):
        made: Message = _record(rng, kind, 0.0 if attempt else edges)
        try:
            made.encode()
        except (struct.error, ValueError):
            continue  # a member is too wide for its place
        return made
    raise AssertionError(f"no {kind.__name__} could be made")


def _record(rng: random.Random, kind: Any, edges: float) -> Any:
    return kind(**{name: _member(rng, kind, name, hint, edges) for name, hint in _members(kind)})


@functools.cache
def _members(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(kind))


def _member(rng: random.Random, kind: Any, name: str, hint: Any, edges: float) -> Any:
    if hint is int:
        return _number(rng, kind, name, edges)
    if hint is bytes:
        return content(rng) if rng.random() < 0.5 else b""
    if typing.get_origin(hint) is tuple:
        return tuple(_record(rng, typing.get_args(hint)[0], edges) for _ in range(rng.randrange(5)))
    if isinstance(hint, types.UnionType) and bytes in typing.get_args(hint):
        return content(rng) if edges else _register(rng)
    if isinstance(hint, types.UnionType) and Capabilities in typing.get_args(hint):
        return capabilities(rng) if rng.random() < 0.9 else None
    raise TypeError(f"{name} is {hint}, which nobody knows to fill")
