# SPDX-License-Identifier: BSD-3-Clause
"""The end of a device: close can be repeated, and whatever is used after it says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

import pyvfio
from pyvfio.drivers.edu import EduDriver
from pyvfio.errors import DeviceClosed
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import MEMORY, REGISTERS


def _map(dev: PCIDevice) -> None:
    with SharedMemory(4096) as memory:
        dev.dma.map(memory)


def _bus_master(dev: PCIDevice) -> None:
    dev.bus_master = True


def _command(dev: PCIDevice) -> None:
    dev.config.command = dev.config.command


USES: dict[str, Callable[[PCIDevice], object]] = {
    "config register": lambda dev: dev.config.vendor_id,
    "config access": lambda dev: dev.config.read32(0),
    "config write": lambda dev: dev.config.write8(0x3C, 0),
    "capabilities": lambda dev: list(dev.config.capabilities()),
    "command": _command,
    "bus master": lambda dev: dev.bus_master,
    "set bus master": _bus_master,
    "bars": lambda dev: list(dev.bars),
    "rom": lambda dev: dev.rom,
    "register read": lambda dev: dev.bars[REGISTERS].read32(0),
    "register write": lambda dev: dev.bars[REGISTERS].write32(0, 0),
    "memory read": lambda dev: dev.bars[MEMORY].read32(0),
    "memory write": lambda dev: dev.bars[MEMORY].write32(0, 0),
    "bulk read": lambda dev: dev.bars[MEMORY].read_bytes(0, 16),
    "empty bulk read": lambda dev: dev.bars[MEMORY].read_bytes(0, 0),
    "bulk write": lambda dev: dev.bars[MEMORY].write_bytes(0, b"1"),
    "empty bulk write": lambda dev: dev.bars[MEMORY].write_bytes(0, b""),
    "view": lambda dev: dev.bars[MEMORY].view(),
    "intx": lambda dev: dev.intx.enable(),
    "intx mask": lambda dev: dev.intx.mask(),
    "intx unmask": lambda dev: dev.intx.unmask(),
    "intx status": lambda dev: dev.intx.asserted,
    "msix": lambda dev: dev.msix.enable(1),
    "msix table": lambda dev: dev.msix.table,
    "dma alloc": lambda dev: dev.dma.alloc(4096),
    "dma map": _map,
    "dma unmap": lambda dev: dev.dma.unmap(0x10000, 4096),
    "reset": lambda dev: dev.reset(),
    "driver": EduDriver,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_use_after_close_says_so(testdev: PCIDevice, use: Callable[[PCIDevice], object]) -> None:
    testdev.close()
    with pytest.raises(DeviceClosed, match="closed"):
        use(testdev)


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_what_was_used_before_close_says_so_too(
    testdev: PCIDevice, use: Callable[[PCIDevice], object]
) -> None:
    for earlier in (
        testdev.bars[MEMORY].view,
        lambda: testdev.intx.info,
        lambda: testdev.msix.info,
    ):
        earlier()
    with suppress(pyvfio.VFIOError):
        testdev.msix.enable(1).close()
    testdev.close()
    with pytest.raises(DeviceClosed, match="closed"):
        use(testdev)


def test_an_error_names_what_was_used_and_the_device(testdev: PCIDevice) -> None:
    testdev.close()
    with pytest.raises(DeviceClosed) as caught:
        testdev.bars[REGISTERS].read32(0)
    assert (caught.value.op, caught.value.uri) == ("read bar0", testdev.uri)


def test_it_is_a_built_in_error(testdev: PCIDevice) -> None:
    testdev.close()
    with pytest.raises(ValueError, match="closed"):
        testdev.config.read8(0)


def test_close_can_be_repeated(testdev: PCIDevice) -> None:
    testdev.close()
    testdev.close()
    assert testdev.closed


def test_leaving_the_with_statement_closes(testdev: PCIDevice) -> None:
    with testdev:
        before = testdev.closed
    assert (before, testdev.closed) == (False, True)


def test_a_device_can_be_closed_within_its_with_statement(testdev: PCIDevice) -> None:
    with testdev:
        testdev.close()
    assert testdev.closed


def test_an_exception_passes_through_the_with_statement(testdev: PCIDevice) -> None:
    with pytest.raises(KeyError), testdev:
        raise KeyError
    assert testdev.closed


def test_close_closes_the_interrupts(testdev: PCIDevice) -> None:
    irqs = testdev.msix.enable(4)
    testdev.close()
    assert irqs.closed


def test_interrupts_can_be_closed_after_the_device(testdev: PCIDevice) -> None:
    irqs = testdev.msix.enable(4)
    testdev.close()
    irqs.close()
    assert irqs.closed


def test_a_closed_device_is_not_lost(testdev: PCIDevice) -> None:
    testdev.close()
    assert (testdev.closed, testdev.lost) == (True, False)


def test_a_closed_device_still_says_what_it_was(testdev: PCIDevice) -> None:
    testdev.close()
    assert repr(testdev) == f"<PCIDevice {testdev.uri} closed>"


def test_a_device_can_be_opened_again(testdev: PCIDevice) -> None:
    for _ in range(5):
        testdev.close()
        testdev = pyvfio.open(testdev.uri)
    with testdev:
        assert testdev.config.vendor_id == 0x1B36


def test_a_device_keeps_its_state_while_it_is_closed(testdev: PCIDevice) -> None:
    testdev.bars[MEMORY].write32(0x40, 0x600DF00D)
    testdev.close()
    with pyvfio.open(testdev.uri) as again:
        assert again.bars[MEMORY].read32(0x40) == 0x600DF00D
