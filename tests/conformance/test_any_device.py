# SPDX-License-Identifier: BSD-3-Clause
"""What holds for every PCI device on every backend, whatever the device is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pyvfio
from pyvfio.cli.main import main
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.irqs import InterruptKind
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, CapabilityID, Command

PAGE = 4096


@pytest.fixture
def device(any_uri: str) -> Iterator[PCIDevice]:
    """One device after the other."""
    with pyvfio.open(any_uri) as dev:
        yield dev


def kinds(device: PCIDevice) -> list[InterruptKind]:
    """The kinds of interrupt that the device has."""
    return [kind for kind in (device.msix, device.msi, device.intx) if kind.count]


def test_it_has_ids(device: PCIDevice) -> None:
    assert device.config.vendor_id not in (0, 0xFFFF)
    assert device.config.class_code >> 24 == 0


def test_capabilities_stand_within_configuration_space(device: PCIDevice) -> None:
    for capability in device.config.capabilities():
        low = pci.EXTENDED_FIRST if capability.extended else pci.HEADER_SIZE
        assert low <= capability.offset < device.config.size


def test_interrupts_have_their_capability(device: PCIDevice) -> None:
    found = {
        capability.id for capability in device.config.capabilities() if not capability.extended
    }
    assert (CapabilityID.MSI in found) == bool(device.msi.count)
    assert (CapabilityID.MSIX in found) == bool(device.msix.count)
    assert bool(device.intx.pin) == bool(device.intx.count)


def test_bars_have_sizes_of_a_power_of_two(device: PCIDevice) -> None:
    assert device.bars
    for bar in device.bars.values():
        assert bar.size & (bar.size - 1) == 0


def test_ports_are_not_mapped(device: PCIDevice) -> None:
    assert not any(bar.mapped for bar in device.bars.values() if bar.type is BARType.IO)


def test_decoding_is_on_for_the_bars_there_are(device: PCIDevice) -> None:
    types = {bar.type for bar in device.bars.values()}
    command = device.config.command
    assert bool(command & Command.IO) >= (BARType.IO in types)
    assert bool(command & Command.MEMORY) >= bool(types - {BARType.IO})


def test_an_access_behind_a_bar_is_refused(device: PCIDevice) -> None:
    for bar in device.bars.values():
        with pytest.raises(pyvfio.RegionError):
            bar.read32(bar.size)


def test_bus_mastering_is_switched(device: PCIDevice) -> None:
    for enabled in (True, False):
        device.bus_master = enabled
        assert device.bus_master is enabled


def test_every_vector_of_each_kind_signals_its_own_eventfd(device: PCIDevice) -> None:
    for kind in kinds(device):
        with kind.enable(kind.count) as irqs:
            for irq in irqs:
                irqs.trigger(irq.vector)
            assert [irq.wait(5) for irq in irqs] == [1] * kind.count


def test_one_kind_of_interrupt_at_a_time(device: PCIDevice) -> None:
    first, *others = kinds(device)
    with first.enable():
        for other in others:
            with pytest.raises(pyvfio.IRQError):
                other.enable()
    for other in others:
        other.enable().close()


def test_memory_is_mapped_and_unmapped(device: PCIDevice) -> None:
    with device.dma.alloc(4 * PAGE) as buffer:
        assert [mapping.iova for mapping in device.dma.mappings] == [buffer.iova]
        assert buffer.array.size == 4 * PAGE
    assert device.dma.mappings == ()


def test_addresses_stay_below_the_devices_width(device: PCIDevice) -> None:
    with device.dma.alloc(PAGE, address_bits=28) as low, device.dma.alloc(PAGE) as high:
        assert low.iova + low.size <= 1 << 28
        assert high.iova % PAGE == 0


def test_a_reset_keeps_the_command_register_where_there_is_one(device: PCIDevice) -> None:
    device.bus_master = True
    before = device.config.command
    if device.resettable:
        device.reset()
    assert device.config.command == before


def test_it_can_be_opened_again_and_again(any_uri: str) -> None:
    for _ in range(3):
        with pyvfio.open(any_uri) as dev:
            assert dev.config.vendor_id != 0xFFFF


def test_the_command_migrates_only_what_it_can_leave_behind(
    any_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pyvfio.open(any_uri) as dev:
        stays = dev.base.device_io.state_outlives_client
    status = main(["migrate", "status", any_uri])
    output, errors = capsys.readouterr()
    if stays:
        assert (status, errors) == (0, "")
        assert "is in RUNNING" in output
    else:
        assert (status, output) == (1, "")
        assert "resets a device that is opened or closed" in errors
