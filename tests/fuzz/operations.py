# SPDX-License-Identifier: BSD-3-Clause
"""What the live client does with a device: everything that users do, in any order."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from pyvfio import DMABuffer, IRQSet, MemoryKind, PCIDevice, SharedMemory
from pyvfio.cli.describe import describe
from pyvfio.errors import VFIOError
from pyvfio.pci.registers import decode
from pyvfio.region import Region
from pyvfio.uapi.vfio import DeviceState, DMAMapFlags, IRQSetFlags
from pyvfio.wire.commands import COMMANDS, Role
from pyvfio.wire.messages import PayloadError
from tests.fuzz import values
from tests.fuzz.messages import encoded

PAGE = 4096
MOST_REPLY = 1 << 20
"""Bytes that the reply to a command of :func:`_any_command` may ask room for."""


class User:
    """Somebody who works with a device; what is set up by one operation is used by the next.

    :param memory: lives as long as the process, and is mapped again and again.
    """

    def __init__(self, dev: PCIDevice, memory: SharedMemory, rng: random.Random) -> None:
        self.dev = dev
        self.memory = memory
        self.rng = rng
        self.buffers: list[DMABuffer] = []
        self.irqs: list[IRQSet] = []

    def act(self) -> str:
        """Do something; returns its name, raises what the package raises."""
        operation = self.rng.choice(OPERATIONS)
        operation(self)
        return operation.__name__.strip("_")

    def leave(self) -> None:
        """Let go of what is still set up, as far as the device allows."""
        for held in (*self.irqs, *self.buffers):
            try:
                held.close()
            except VFIOError:
                continue  # closing the device does it

    def region(self) -> Region:
        """Any region: a BAR, configuration space, one that is no BAR."""
        kind = self.rng.random()
        if kind < 0.5:
            return self.dev.bars[self.rng.choice((0, 0, 1, 2, 4, 5, 6))]
        if kind < 0.8:
            return self.dev.config
        return self.dev.base.region(self.rng.randrange(12))

    def offset(self, region: Region) -> int:
        """Mostly within the region."""
        if self.rng.random() < 0.05:
            return values.edge(self.rng)
        return self.rng.randrange(min(region.size, 1 << 20) or 1)


def _read(user: User) -> None:
    region, width = user.region(), user.rng.choice((1, 2, 4, 8))
    region.read(user.offset(region) // width * width, width)


def _write(user: User) -> None:
    region, width = user.region(), user.rng.choice((1, 2, 4, 8))
    region.posted = user.rng.random() < 0.3
    region.write(user.offset(region) // width * width, width, user.rng.randrange(1 << 8 * width))


def _read_bulk(user: User) -> None:
    region = user.region()
    region.read_bytes(user.offset(region), user.rng.choice((0, 1, 7, 64, 5000, 100_000)))


def _write_bulk(user: User) -> None:
    region = user.region()
    region.write_bytes(user.offset(region), bytes(user.rng.choice((0, 1, 7, 64, 5000, 100_000))))


def _describe(user: User) -> None:
    describe(user.dev)


def _decode(user: User) -> None:
    decode(user.dev)


def _capabilities(user: User) -> None:
    for capability in user.dev.config.capabilities():
        str(capability)


def _info(user: User) -> None:
    user.dev.base.irq_info(user.rng.randrange(8))
    user.dev.base.region(user.rng.randrange(12))
    str(user.dev.rom)


def _enable(user: User) -> None:
    kind = user.rng.choice((user.dev.msi, user.dev.msix, user.dev.intx))
    if kind.count:
        user.irqs.append(kind.enable(user.rng.randrange(1, kind.count + 1)))


def _watch(user: User) -> None:
    user.irqs.append(user.rng.choice((user.dev.watch_errors, user.dev.watch_release))())


def _interrupt(user: User) -> None:
    if user.irqs:
        irqs = user.rng.choice(user.irqs)
        user.rng.choice((irqs.mask, irqs.unmask, irqs.trigger))(user.rng.randrange(len(irqs)))
        irqs[0].wait(timeout=0.001)


def _disable(user: User) -> None:
    if user.irqs:
        user.irqs.pop(user.rng.randrange(len(user.irqs))).close()


def _set_irqs(user: User) -> None:
    rng = user.rng
    action = rng.choice((IRQSetFlags.MASK, IRQSetFlags.UNMASK, IRQSetFlags.TRIGGER))
    count = rng.randrange(6)
    bools = [rng.random() < 0.5 for _ in range(count)] if rng.random() < 0.5 else None
    user.dev.base.set_irqs(rng.randrange(6), action, rng.randrange(4), count, bools=bools)


def _alloc(user: User) -> None:
    kind = user.rng.choice((MemoryKind.POSIX, MemoryKind.MEMFD))
    size = user.rng.choice((1, PAGE, 5 * PAGE))
    user.buffers.append(user.dev.dma.alloc(size, address_bits=28, kind=kind))


def _free(user: User) -> None:
    if user.buffers:
        user.buffers.pop(user.rng.randrange(len(user.buffers))).close()


def _map(user: User) -> None:
    rng = user.rng
    flags = rng.choice((DMAMapFlags.READ, DMAMapFlags.WRITE, DMAMapFlags.READ | DMAMapFlags.WRITE))
    iova = None if rng.random() < 0.5 else PAGE * rng.randrange(64)
    size = PAGE * rng.randrange(1, 4)
    user.dev.dma.map(user.memory, iova=iova, offset=PAGE, size=size, flags=flags)


def _unmap(user: User) -> None:
    mappings = [found for found in user.dev.dma.mappings if found.memory is user.memory]
    if mappings:
        mapping = user.rng.choice(mappings)
        user.dev.dma.unmap(mapping.iova, mapping.size)


def _map_many(user: User) -> None:
    count = user.rng.randrange(80)
    pages = user.rng.sample(range(128), count)
    user.dev.dma.map_many(user.memory, [PAGE * page for page in pages], PAGE, PAGE)


def _unmap_many(user: User) -> None:
    mappings = [found for found in user.dev.dma.mappings if found.memory is user.memory]
    gone = user.rng.sample(mappings, user.rng.randrange(len(mappings) + 1))
    user.dev.dma.unmap_many([found.iova for found in gone], [found.size for found in gone])


def _unmap_all(user: User) -> None:
    user.dev.dma.unmap_all()


def _batch(user: User) -> None:
    """Maps and unmaps together; now and then what stands between them raises."""
    with user.dev.dma.batch():
        for _ in range(user.rng.randrange(12)):
            user.rng.choice((_alloc, _free, _map, _map, _unmap, _map_many, _unmap_many))(user)


def _reset(user: User) -> None:
    user.dev.reset()


def _flush(user: User) -> None:
    user.dev.flush()


def _kick(user: User) -> None:
    for register in user.region().io_eventfds:
        register.kick()


def _read_into(user: User) -> None:
    region = user.region()
    region.read_into(user.offset(region), bytearray(user.rng.choice((0, 1, 64, 5000, 100_000))))


def _reconnect(user: User) -> None:
    if user.dev.lost or user.rng.random() < 0.2:
        user.dev.reconnect()
        user.irqs = [irqs for irqs in user.irqs if not irqs.closed]


def _save(user: User) -> None:
    """Some of a device's state, or all of it; now and then it is given up."""
    with user.dev.migration.save(precopy=user.rng.random() < 0.5) as f:
        f.read(user.rng.choice((1, 64, 5000)))
        if user.rng.random() < 0.2:
            f.abort()
            return
        f.stop()
        f.read(user.rng.choice((1, 64, 5000)))
        f.read(64)


def _load(user: User) -> None:
    with user.dev.migration.load() as f:
        f.write(bytes(user.rng.choice((0, 1, 64, 100_000))))


def _change_state(user: User) -> None:
    states = [state for state in DeviceState if state is not DeviceState.ERROR]
    user.dev.migration.set_state(user.rng.choice(states))
    str(user.dev.migration.state)
    user.dev.migration.data_size()


def _track(user: User) -> None:
    """Dirty pages: begin, ask, unmap with them, end."""
    dirty, rng = user.dev.dma.dirty, user.rng
    if dirty.kind is None:
        smallest = max(PAGE, user.dev.dma.page_size)
        dirty.start(rng.choice((None, smallest, min(4 * smallest, 1 << 30))))
    for _ in range(rng.randrange(3)):
        str(dirty.report(PAGE * rng.randrange(64), PAGE * rng.randrange(1, 64)))
    mappings = [found for found in user.dev.dma.mappings if found.memory is user.memory]
    if mappings and rng.random() < 0.5:
        found = rng.choice(mappings)
        list(user.dev.dma.unmap(found.iova, found.size, dirty=True).ranges())
    if rng.random() < 0.3:
        dirty.stop()


def _any_command(user: User) -> None:
    """Whatever the table of commands has, the vectors use it or not."""
    specs = [spec for spec in COMMANDS.values() if spec.sender is Role.CLIENT]
    spec = user.rng.choice(specs)
    message = values.message(user.rng, spec.request)
    assert isinstance(message, spec.request)
    try:
        spec.request.decode(memoryview(encoded(message)))
    except PayloadError:
        return  # it is not for us to send what is wrong
    if message.reply_limit() > MOST_REPLY:
        return
    device_io: Any = user.dev.base.device_io
    if user.rng.random() < 0.2:
        device_io._channel.post(spec.command, message)
        return
    reply = device_io._channel.call(spec.command, message)
    for fd in reply.fds:
        os.close(fd)


OPERATIONS: tuple[Callable[[User], None], ...] = (
    *(_read, _read, _read, _write, _write, _read_bulk, _write_bulk, _read_into, _kick, _flush),
    *(_describe, _decode, _capabilities, _info),
    *(_enable, _enable, _watch, _interrupt, _interrupt, _disable, _set_irqs),
    *(_alloc, _alloc, _free, _map, _map, _unmap, _unmap_all, _batch, _batch),
    *(_map_many, _unmap_many),
    *(_save, _load, _change_state, _track, _track),
    *(_reset, _reconnect, _any_command, _any_command, _any_command),
)
"""What may be done next, the usual more often."""
