# SPDX-License-Identifier: BSD-3-Clause
"""MSI-X of devices of the kernel's VFIO as an emulator's guest has it, with vectors that fire."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from pyvfio.closing import Closing
from pyvfio.emulator import GuestFunction
from pyvfio.memory import PAGE_SIZE
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID
from pyvfio.uapi.vfio import PCIIRQ
from tests.emulated import ADDRESS
from tests.small_machine import Guest, SmallMachine
from tests.support import eventually, open_fds
from tests.unit.guest_map import Seen

ENABLE, MASK_ALL = pci.MSIX_CONTROL_ENABLE, pci.MSIX_CONTROL_MASK_ALL
DATA = 0x100
"""Vector n sends this and n."""
QUIET = 0.1
"""Seconds in which whatever has fired arrives."""
TABLE_BAR = 16 << 10
"""Bytes of the network adapter's BAR with the table."""
QUEUES, BUFFER = 0x1_0000, 0x2_0000
"""Where the guest has the controller's queues, and data."""
LBA = 4096


class MSIXGuest(Guest, Closing):
    """A guest that uses MSI-X of a function whose BARs it has placed."""

    def __init__(self, machine: SmallMachine, dev: PCIDevice) -> None:
        self.dev = dev
        function = GuestFunction(dev)
        function.realize(machine.bus, 2)
        super().__init__(machine, function)
        self.start()

    def start(self) -> None:
        """What firmware does after power-on."""
        self.bars = self.place_bars()
        self.at = self.capability(CapabilityID.MSIX)
        self.vectors = (self.get(pci.MSIX_CONTROL, self.at) & pci.MSIX_CONTROL_SIZE) + 1
        self.table = self._place(pci.MSIX_TABLE)
        self.pba = self._place(pci.MSIX_PBA)

    def _place(self, register: pci.Register) -> int:
        value = self.get(register, self.at)
        return self.bars[value & pci.MSIX_BIR] + (value & ~pci.MSIX_BIR)

    def control(self, bits: int) -> None:
        """Write the control register."""
        self.set(pci.MSIX_CONTROL, bits, self.at)

    def unmask(self, vector: int) -> None:
        """Give a vector its message, and unmask it."""
        self.unmask_msix(self.table, vector, DATA + vector)

    def mask(self, vector: int) -> None:
        """Mask a vector."""
        entry = self.table + vector * pci.MSIX_ENTRY_SIZE
        self.write32(entry + pci.MSIX_ENTRY_CONTROL, pci.MSIX_ENTRY_MASKED)

    def pending(self) -> int:
        """The first pending bits."""
        return self.read32(self.pba)

    @property
    def device_enabled(self) -> bool:
        """Whether the device itself is in MSI-X mode."""
        capability = self.dev.config.find(CapabilityID.MSIX)
        assert capability is not None
        return bool(self.dev.config.get(pci.MSIX_CONTROL, capability.offset) & ENABLE)

    def heard(self) -> set[int]:
        """The vectors whose messages have come since the last time; how often does not count.

        Signals that wait together are one message, and QEMU's adapter sends some twice.
        """
        while self.function.events.dispatch(QUIET):
            pass
        messages = self.machine.host.messages
        assert all(address == ADDRESS for address, _ in messages)
        found = {data - DATA for _, data in messages}
        messages.clear()
        return found

    def close(self) -> None:
        """Take the function off the bus."""
        self.function.close()


class Adapter(MSIXGuest):
    """A guest of the e1000e: 5 vectors, a table in a BAR of its own.

    Vector n is made to tell of cause n of receive queues, transmit queues, and all others.
    """

    CTRL, ICS, IMS, EIAC, IVAR = 0x0000, 0x00C8, 0x00D0, 0x00DC, 0x00E4
    CTRL_RESET = 1 << 26
    CAUSE_0 = 20
    CAUSES = 0x1F << CAUSE_0
    IO_ADDRESS, IO_DATA = 0, 4

    def start(self) -> None:
        super().start()
        self.quiesce()

    def quiesce(self) -> None:
        """Have the adapter forget its causes, and the timers by which it throttles interrupts.

        QEMU's ends with an assertion where such a timer is due once MSI-X was disabled.
        """
        self._set(self.CTRL, self.CTRL_RESET)
        valid = 8
        self._set(self.IVAR, sum((valid | vector) << 4 * vector for vector in range(5)))
        self._set(self.EIAC, self.CAUSES)  # a cause ends with its message

    def _set(self, register: int, value: int) -> None:
        self.write32(self.bars[0] + register, value)

    def fire(self, vector: int) -> None:
        """Have the device send a vector."""
        self._set(self.IMS, self.CAUSES)
        self._set(self.ICS, 1 << self.CAUSE_0 + vector)

    def fire_by_ports(self, vector: int) -> None:
        """The same by way of the I/O BAR."""
        self._set(self.IMS, self.CAUSES)
        self.machine.io.write(self.bars[2] + self.IO_ADDRESS, 4, self.ICS)
        self.machine.io.write(self.bars[2] + self.IO_DATA, 4, 1 << self.CAUSE_0 + vector)

    def close(self) -> None:
        self.quiesce()
        super().close()

    def seen_of_table(self) -> list[Seen]:
        """What is seen in the BAR with the table."""
        start = self.bars[3]
        found = [seen for seen in self.machine.seen() if start <= seen.start < start + TABLE_BAR]
        return [Seen(seen.start - start, seen.size, seen.kind) for seen in found]


class Disk(MSIXGuest):
    """A guest of the NVMe controller: 65 vectors, table and pending bits among the registers.

    It has an admin queue, whose completions vector 0 tells, and one for data.  MSI-X is enabled
    before the controller is: QEMU's tells nothing of the admin queue otherwise.
    """

    CC, CSTS, AQA, ASQ, ACQ = 0x14, 0x1C, 0x24, 0x28, 0x30
    DOORBELLS = 0x1000
    CREATE_SQ, CREATE_CQ, WRITE, READ = 0x01, 0x05, 0x01, 0x02
    ENTRIES = 16
    """Of each queue; no test has so many commands."""
    VECTOR = 5
    """Tells completions of data."""

    def start(self) -> None:
        super().start()
        self.control(ENABLE)
        self._tails, self._heads = [0, 0], [0, 0]
        self._identifier = 0
        self.machine.memory.write_bytes(QUEUES, bytes(4 * PAGE_SIZE))
        bar = self.bars[0]
        self.write32(bar + self.AQA, (self.ENTRIES - 1) << 16 | self.ENTRIES - 1)
        self.write64(bar + self.ASQ, self._queue(0))
        self.write64(bar + self.ACQ, self._queue(0) + PAGE_SIZE)
        self.write32(bar + self.CC, 4 << 20 | 6 << 16 | 1)  # sizes of entries, enable
        assert eventually(lambda: bool(self.read32(bar + self.CSTS) & 1))

    @staticmethod
    def _queue(number: int) -> int:
        return QUEUES + 2 * PAGE_SIZE * number

    def submit(
        self, queue: int, opcode: int, *, address: int = 0, dwords: tuple[int, ...] = ()
    ) -> None:
        """Submit a command for namespace 1 if it is about data; ``dwords`` are from 10 on."""
        self._identifier += 1
        head = struct.pack("<BBHI", opcode, 0, self._identifier, queue)
        entry = head + struct.pack("<QQQQ", 0, 0, address, 0) + struct.pack("<3I", *dwords)
        at = self._queue(queue) + 64 * self._tails[queue]
        self.machine.memory.write_bytes(at, entry.ljust(64, b"\0"))
        self._tails[queue] += 1
        self.write32(self.bars[0] + self.DOORBELLS + 8 * queue, self._tails[queue])

    def complete(self, queue: int) -> None:
        """Take a completion, which must be there, without an error."""
        status = self._queue(queue) + PAGE_SIZE + 16 * self._heads[queue] + 12
        assert eventually(lambda: bool(self.read32(status) >> 16 & 1))
        assert self.read32(status) == 1 << 16 | self._identifier
        self._heads[queue] += 1
        doorbell = self.bars[0] + self.DOORBELLS + 8 * queue + 4
        self.write32(doorbell, self._heads[queue])

    def create_queue(self) -> None:
        """Have a queue for data, whose completions ``VECTOR`` tells."""
        at, size = self._queue(1), (self.ENTRIES - 1) << 16 | 1
        interrupts, contiguous = 2, 1
        dwords = (size, self.VECTOR << 16 | interrupts | contiguous, 0)
        self.submit(0, self.CREATE_CQ, address=at + PAGE_SIZE, dwords=dwords)
        self.complete(0)
        self.submit(0, self.CREATE_SQ, address=at, dwords=(size, 1 << 16 | contiguous, 0))
        self.complete(0)


@pytest.fixture
def machine() -> Iterator[SmallMachine]:
    with SmallMachine() as found:
        yield found


@pytest.fixture
def adapter(machine: SmallMachine, e1000e: PCIDevice) -> Iterator[Adapter]:
    with Adapter(machine, e1000e) as found:
        yield found


@pytest.fixture
def disk(machine: SmallMachine, nvme: PCIDevice) -> Iterator[Disk]:
    with Disk(machine, nvme) as found:
        yield found


# The network adapter


def test_the_table_is_cut_out_of_what_is_mapped(adapter: Adapter) -> None:
    assert adapter.vectors == 5
    assert adapter.seen_of_table() == [Seen(0, 80, "i/o"), Seen(80, TABLE_BAR - 80, "ramd")]
    own = adapter.dev.bars[3].read_bytes(0, 80)
    adapter.unmask(2)
    assert adapter.read32(adapter.table + 2 * 16 + pci.MSIX_ENTRY_DATA) == DATA + 2
    assert adapter.dev.bars[3].read_bytes(0, 80) == own


def test_vectors_that_are_unmasked_before_or_after_fire(adapter: Adapter) -> None:
    adapter.unmask(1)
    adapter.unmask(3)
    adapter.control(ENABLE)
    for vector in (3, 1, 0):
        adapter.fire(vector)
    assert adapter.heard() == {3, 1}
    for vector in (0, 4, 2):
        adapter.quiesce()  # where vectors cannot be added MSI-X is disabled for it
        adapter.unmask(vector)  # while others are in use
        adapter.fire(vector)
        adapter.fire(3)
        assert adapter.heard() == {vector, 3}


def test_a_vector_fires_by_way_of_ports(adapter: Adapter) -> None:
    adapter.unmask(2)
    adapter.control(ENABLE)
    adapter.fire_by_ports(2)
    assert adapter.heard() == {2}


def test_enabled_without_vectors_the_device_is_in_msix_mode(adapter: Adapter) -> None:
    assert not adapter.device_enabled
    adapter.control(ENABLE)
    assert adapter.device_enabled
    adapter.fire(0)
    assert adapter.heard() == set()
    adapter.quiesce()
    adapter.control(0)
    assert not adapter.device_enabled
    assert adapter.function.realized.interrupts.mode is PCIIRQ.INTX


def test_what_fires_while_it_is_masked_is_pending(adapter: Adapter) -> None:
    adapter.control(ENABLE)
    adapter.unmask(1)
    adapter.unmask(2)
    mapped = adapter.seen_of_table()
    adapter.mask(1)
    adapter.fire(1)
    adapter.fire(2)
    assert adapter.heard() == {2}
    assert adapter.pending() == 1 << 1
    assert Seen(0x2000, 8, "i/o") in adapter.seen_of_table()
    adapter.unmask(1)
    assert adapter.heard() == {1}
    assert adapter.seen_of_table() == mapped


def test_all_are_masked_at_once(adapter: Adapter) -> None:
    adapter.control(ENABLE)
    adapter.unmask(0)
    adapter.unmask(4)
    adapter.control(ENABLE | MASK_ALL)
    adapter.fire(0)
    adapter.fire(4)
    assert adapter.heard() == set()
    assert adapter.pending() == 1 << 4 | 1
    adapter.control(ENABLE)
    assert adapter.heard() == {0, 4}


def test_a_vector_that_the_emulator_takes_comes_back_while_it_is_masked(
    e1000e: PCIDevice,
) -> None:
    with SmallMachine(takes_eventfds=True) as machine, Adapter(machine, e1000e) as adapter:
        adapter.control(ENABLE)
        adapter.unmask(3)
        route = machine.host.routes[-1]
        adapter.fire(3)
        assert eventually(lambda: route.taken() > 0)
        adapter.mask(3)
        adapter.fire(3)
        assert adapter.heard() == set()
        assert (route.taken(), adapter.pending()) == (0, 1 << 3)
        adapter.unmask(3)
        assert adapter.heard() == {3}
        adapter.fire(3)
        assert eventually(lambda: route.taken() > 0)


def test_after_a_reset_nothing_fires_until_it_is_set_up_again(adapter: Adapter) -> None:
    adapter.control(ENABLE)
    adapter.unmask(1)
    adapter.mask(1)
    adapter.fire(1)
    assert adapter.heard() == set()
    adapter.quiesce()
    adapter.function.reset()
    assert not adapter.device_enabled
    adapter.start()
    assert adapter.get(pci.MSIX_CONTROL, adapter.at) == adapter.vectors - 1
    masked = [adapter.read32(adapter.table + 16 * vector + 12) for vector in range(5)]
    assert masked == [pci.MSIX_ENTRY_MASKED] * 5
    assert adapter.pending() == 0
    adapter.control(ENABLE)
    adapter.unmask(1)
    assert adapter.heard() == set()
    adapter.fire(1)
    assert adapter.heard() == {1}


def test_unrealized_with_live_vectors_it_leaves_nothing(
    machine: SmallMachine, e1000e: PCIDevice
) -> None:
    before = open_fds()
    with Adapter(machine, e1000e) as adapter:
        adapter.control(ENABLE)
        for vector in range(5):
            adapter.unmask(vector)
        assert adapter.device_enabled
    assert not adapter.device_enabled
    assert open_fds() == before
    with Adapter(machine, e1000e) as again:
        again.control(ENABLE)
        again.unmask(4)
        again.fire(4)
        assert again.heard() == {4}


# The NVMe controller


def test_completions_are_told_by_the_vectors_of_their_queues(disk: Disk) -> None:
    memory = disk.machine.memory
    disk.unmask(0)
    disk.unmask(disk.VECTOR)
    disk.create_queue()
    assert disk.heard() == {0}
    data = bytes(range(256)) * 2
    memory.write_bytes(BUFFER, data)
    disk.submit(1, disk.WRITE, address=BUFFER, dwords=(LBA, 0, 0))
    disk.complete(1)
    assert disk.heard() == {disk.VECTOR}
    disk.submit(1, disk.READ, address=BUFFER + PAGE_SIZE, dwords=(LBA, 0, 0))
    disk.complete(1)
    assert disk.heard() == {disk.VECTOR}
    assert memory.read_bytes(BUFFER + PAGE_SIZE, len(data)) == data


def test_a_completion_while_its_vector_is_masked_is_told_later(disk: Disk) -> None:
    disk.unmask(disk.VECTOR)
    disk.create_queue()
    disk.mask(disk.VECTOR)
    disk.submit(1, disk.READ, address=BUFFER, dwords=(LBA, 0, 0))
    disk.complete(1)
    assert disk.heard() == set()
    assert disk.pending() == 1 << disk.VECTOR
    disk.unmask(disk.VECTOR)
    assert disk.heard() == {disk.VECTOR}


def test_a_controller_that_was_reset_in_the_middle_works_again(disk: Disk) -> None:
    for _ in range(2):
        disk.unmask(disk.VECTOR)
        disk.create_queue()
        disk.submit(1, disk.READ, address=BUFFER, dwords=(LBA, 0, 0))
        disk.complete(1)
        assert disk.heard() == {disk.VECTOR}
        disk.submit(1, disk.READ, address=BUFFER, dwords=(LBA, 0, 0))
        disk.function.reset()
        disk.start()
        assert disk.heard() == set()


def test_a_state_is_loaded_with_its_vectors(disk: Disk) -> None:
    disk.unmask(disk.VECTOR)
    disk.create_queue()
    disk.function.load(disk.function.save())
    disk.submit(1, disk.READ, address=BUFFER, dwords=(LBA, 0, 0))
    disk.complete(1)
    assert disk.heard() == {disk.VECTOR}
