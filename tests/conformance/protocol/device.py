# SPDX-License-Identifier: BSD-3-Clause
"""What a raw client learns of a device from its server, and what many tests do with it."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.fault import raw
from tests.fault.raw import RawClient
from tests.support import open_fds

ROOM = 4096
"""An argsz with room for any chain of capabilities."""

INTERRUPT_LINE = 0x3C
"""A register of configuration space that has no effect, so that it can be written at will."""

MASKABLE, AUTOMASKED = 2, 4


@dataclass(frozen=True)
class RegionFacts:
    """A region as DEVICE_GET_REGION_INFO describes it.

    :ivar chain: the capabilities: (offset in the payload, id, version).
    :ivar areas: (offset, size) of what can be mapped.
    """

    index: int
    argsz: int
    flags: int
    size: int
    offset: int
    chain: tuple[tuple[int, int, int], ...]
    areas: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class IRQFacts:
    """An interrupt index as DEVICE_GET_IRQ_INFO describes it."""

    index: int
    flags: int
    count: int


class Device:
    """A device behind a raw client that has negotiated."""

    def __init__(self, client: RawClient) -> None:
        self.client = client

    @cached_property
    def info(self) -> tuple[int, int, int]:
        """(flags, regions, interrupt indexes)."""
        reply = self.client.done(raw.GET_INFO, raw.device_info(0, 0, 0))
        _, flags, regions, irqs = reply.words("IIII")
        return flags, regions, irqs

    @cached_property
    def regions(self) -> list[RegionFacts]:
        """Every region there is."""
        found = [self.region(index) for index in range(self.info[1])]
        return [region for region in found if region.size]

    @cached_property
    def memories(self) -> list[RegionFacts]:
        """The regions that can be mapped, in parts or as a whole."""
        return [region for region in self.regions if region.flags & raw.MAPPABLE]

    @cached_property
    def irqs(self) -> list[IRQFacts]:
        """Every interrupt index that has vectors."""
        found = [self.irq(index) for index in range(self.info[2])]
        return [irq for irq in found if irq.count]

    def region(self, index: int) -> RegionFacts:
        """Ask about a region, with room for whatever there is to say."""
        reply = self.client.done(raw.GET_REGION_INFO, raw.region_info(index, ROOM))
        raw.close(reply.fds)
        return region_facts(reply)

    def irq(self, index: int) -> IRQFacts:
        """Ask about an interrupt index."""
        reply = self.client.done(raw.GET_IRQ_INFO, raw.irq_info(index))
        _, flags, found, count = reply.words("IIII")
        assert found == index
        return IRQFacts(index, flags, count)

    def enable(self, irq: IRQFacts, fds: list[int], start: int = 0) -> None:
        """Have vectors signal eventfds."""
        request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, irq.index, start, len(fds))
        self.client.done(raw.SET_IRQS, request, fds)

    def trigger(self, irq: IRQFacts, start: int = 0, count: int = 1) -> None:
        """Have the server fire vectors."""
        request = raw.irq_set(raw.NONE | raw.TRIGGER, irq.index, start, count)
        self.client.done(raw.SET_IRQS, request)

    def disable(self, irq: IRQFacts) -> None:
        """Take every eventfd of an index away."""
        self.trigger(irq, 0, 0)


def region_facts(reply: raw.Message) -> RegionFacts:
    """What a whole reply to DEVICE_GET_REGION_INFO says."""
    argsz, flags, index, cap_offset, size, offset = reply.words("IIIIQQ")
    chain = tuple(_chain(reply.payload, cap_offset)) if flags & raw.CAPABILITIES else ()
    areas = tuple(
        area for at, number, _ in chain if number == 1 for area in _areas(reply.payload, at)
    )
    if flags & raw.MAPPABLE and not any(number == 1 for _, number, _ in chain):
        areas = ((0, size),)
    return RegionFacts(index, argsz, flags, size, offset, chain, areas)


def _chain(payload: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    while at:
        number, version, following = struct.unpack_from("<HHI", payload, at)
        yield at, number, version
        assert not following or following > at, "the chain leads back"
        at = following


def _areas(payload: bytes, at: int) -> Iterator[tuple[int, int]]:
    (count,) = struct.unpack_from("<I", payload, at + 8)
    return struct.iter_unpack("<QQ", payload[at + 16 : at + 16 + 16 * count])


def in_step(client: RawClient) -> bool:
    """Whether the next question is answered as ever."""
    reply = client.done(raw.GET_INFO, raw.device_info(0, 0, 0))
    return len(reply.payload) == 16 and reply.words("I") == (16,)


def cut(client: RawClient, address: int, size: int) -> bool:
    """Whether an unmap is refused, with an errno that says that no such map exists."""
    number = client.refused(raw.DMA_UNMAP, raw.dma_unmap(address, size))
    return number in (errno.EINVAL, errno.ENOENT)


def references(pid: int) -> int:
    """Descriptors and mappings of a :func:`memfd` that a process holds."""
    mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum("memfd:raw" in entry for entry in (*open_fds(pid).values(), *mapped))


def eventfds_held(pid: int) -> int:
    """Eventfds that a process holds."""
    return sum(link == "anon_inode:[eventfd]" for link in open_fds(pid).values())
