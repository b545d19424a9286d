# SPDX-License-Identifier: BSD-3-Clause
"""Real devices of the guest through the kernel's VFIO."""

from __future__ import annotations

import errno

import pytest

import pyvfio
from pyvfio.errors import RegionError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.pci import BARType, CapabilityID, Command, ExtendedCapabilityID
from tests.guest.suite.conftest import EDU, NVME, bound
from tests.support import eventually


def test_bars_have_their_types_and_sizes(e1000e: PCIDevice) -> None:
    found = {number: (bar.type, bar.size) for number, bar in e1000e.bars.items()}
    assert found == {
        0: (BARType.MEM32, 128 << 10),
        1: (BARType.MEM32, 128 << 10),
        2: (BARType.IO, 32),
        3: (BARType.MEM32, 16 << 10),
    }


def test_memory_bars_are_mapped_and_ports_are_not(e1000e: PCIDevice) -> None:
    assert {number: bar.mapped for number, bar in e1000e.bars.items()} == {
        0: True,
        1: True,
        2: False,
        3: True,
    }


def test_ports_reach_the_same_register_as_memory(e1000e: PCIDevice) -> None:
    status = 0x0008
    ports = e1000e.bars[2]
    ports.write32(0, status)  # IOADDR, then IODATA
    assert ports.read32(4) == e1000e.bars[0].read32(status)


def test_the_rom_can_be_read(e1000e: PCIDevice) -> None:
    assert e1000e.rom is not None
    assert e1000e.rom.read_bytes(0, 2) == b"\x55\xaa"


def test_extended_capabilities_are_found(e1000e: PCIDevice) -> None:
    assert e1000e.config.find(ExtendedCapabilityID.ERR) is not None
    assert e1000e.config.find(CapabilityID.EXP) is not None


def test_a_mapped_register_is_read_with_one_width_or_another(nvme: PCIDevice) -> None:
    bar = nvme.bars[0]
    assert bar.read64(0) == bar.read32(0) | bar.read32(4) << 32
    assert bar.read32(8) == 0x00010400  # version 1.4


def test_a_device_of_the_kernels_is_not_reconnected(nvme: PCIDevice) -> None:
    with pytest.raises(UnsupportedError):
        nvme.reconnect()
    assert not nvme.lost


def test_writes_are_carried_out_when_they_return(nvme: PCIDevice) -> None:
    assert not any(bar.posted for bar in nvme.bars.values())
    nvme.flush()


def test_memory_decoding_off_is_an_error_and_not_the_end(nvme: PCIDevice) -> None:
    nvme.config.command &= ~Command.MEMORY
    with pytest.raises(RegionError):
        nvme.bars[0].read32(8)
    nvme.config.command |= Command.MEMORY
    assert nvme.bars[0].read32(8) == 0x00010400


def test_all_msix_vectors_fire_their_own_eventfd(nvme: PCIDevice) -> None:
    count = nvme.msix.count
    assert count == nvme.msix.table_size == 65
    with nvme.msix.enable(count) as irqs:
        for vector in range(count):
            irqs.trigger(vector)
        assert [irq.wait(5) for irq in irqs] == [1] * count


def test_a_function_level_reset_stops_a_running_controller(nvme: PCIDevice) -> None:
    bar, (attributes, submission, completion) = nvme.bars[0], (0x24, 0x28, 0x30)
    configuration, status, ready = 0x14, 0x1C, 0x1
    nvme.bus_master = True
    with nvme.dma.alloc(8192) as queues:
        bar.write32(attributes, 0x001F001F)
        bar.write64(submission, queues.iova)
        bar.write64(completion, queues.iova + 4096)
        bar.write32(configuration, 0x00460001)
        assert eventually(lambda: bool(bar.read32(status) & ready))
        nvme.reset()
        assert not bar.read32(status) & ready


def test_the_command_register_survives_a_reset(nvme: PCIDevice) -> None:
    nvme.bus_master = True
    before = nvme.config.command
    nvme.reset()
    assert nvme.config.command == before


def test_a_hot_reset_of_a_slot_stops_the_controller_behind_it() -> None:
    address = bound(NVME, 1)
    with pyvfio.open(f"vfio:{address}") as dev:
        bar, interrupt_mask = dev.bars[0], 0x0C
        bar.write32(interrupt_mask, 1)
        assert bar.read32(interrupt_mask) == 1
        assert dev.hot_reset_functions() == [address]
        dev.hot_reset()
        assert eventually(lambda: bar.read32(8) == 0x00010400)
        assert bar.read32(interrupt_mask) == 0


def test_a_device_on_the_root_bus_has_no_hot_reset(nvme: PCIDevice) -> None:
    with pytest.raises(pyvfio.ResetError) as caught:
        nvme.hot_reset()
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(pyvfio.ResetError):
        nvme.hot_reset_functions()


def test_a_hot_reset_names_all_functions_of_the_slot() -> None:
    addresses = [bound(EDU, 1), bound(EDU, 2)]
    with pyvfio.open(f"vfio:{addresses[0]}") as dev:
        assert sorted(dev.hot_reset_functions()) == sorted(addresses)


def test_a_device_without_a_reset_says_so() -> None:
    with pyvfio.open(f"vfio:{bound(EDU)}") as dev, pytest.raises(pyvfio.UnsupportedError):
        dev.reset()
