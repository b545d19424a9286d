# SPDX-License-Identifier: BSD-3-Clause
"""Memory maps as text, in the form of QEMU's ``info mtree`` and ``info mtree -f``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from pyvfio.emulator.memory.alias import AliasRegion
from pyvfio.emulator.memory.flat_view import FlatRange
from pyvfio.emulator.memory.region import MemoryRegion


class Described(Protocol):
    """An address space, for what is told of it."""

    name: str
    root: MemoryRegion

    @property
    def flat_view(self) -> tuple[FlatRange, ...]:
        """What is seen where."""


def spaces(described: Iterable[Described]) -> str:
    """Each address space: the tree that it is made of, then its flat view."""
    return "\n".join(line for space in described for line in _space(space))


def _space(space: Described) -> Iterator[str]:
    yield f"address-space: {space.name}"
    yield from _tree(space.root, 0, 1)
    yield f"flat view of {space.name}"
    for found in space.flat_view:
        yield f"  {_range(found.start, found.size)} {_seen(found)}"
    if not space.flat_view:
        yield "  nothing"


def _tree(region: MemoryRegion, base: int, depth: int) -> Iterator[str]:
    start = base + region.offset if depth > 1 else base
    text = f"(prio {region.priority}, {region.kind}): {region.name}"
    if isinstance(region, AliasRegion):
        shown = _range(region.target_offset, region.size)
        text = f"{text} -> {region.target.name} {shown}"
    marks = "".join([" [disabled]" * (not region.enabled), " [read-only]" * region.readonly])
    yield f"{'  ' * depth}{_range(start, region.size)} {text}{marks}"
    for held in region.regions:
        yield from _tree(held, start, depth + 1)


def _seen(found: FlatRange) -> str:
    marks = " [read-only]" if found.readonly else ""
    return f"({found.region.kind}): {found.region.name} @{found.offset_in_region:016x}{marks}"


def _range(start: int, size: int) -> str:
    return f"{start:016x}-{start + size - 1:016x}"
