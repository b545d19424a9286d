# SPDX-License-Identifier: BSD-3-Clause
"""The first program that people type, as the design has it, on both devices."""

from __future__ import annotations

from pyvfio.pci.device import PCIDevice


def test_the_first_program_on_the_edu_device(edu: PCIDevice) -> None:
    seen: list[object] = []
    with edu as dev:
        seen += [dev.config.vendor_id, dev.config.device_id]
        for cap in dev.config.capabilities():
            seen.append(str(cap))
        bar = dev.bars[0]
        bar.write32(0x04, 0x12345678)
        seen.append(bar.read32(0x04))
        buf = dev.dma.alloc(4096, address_bits=28)
        seen += [buf.array.sum(), buf.iova < 1 << 28]
        with dev.msi.enable(1) as irqs:
            bar.write32(0x60, 1)
            seen.append(irqs[0].wait(timeout=1.0))
        if dev.resettable:
            dev.reset()
    assert seen == [0x1234, 0x11E8, "[0x040] MSI", 0xEDCBA987, 0, True, 1]


def test_the_first_program_with_msix_on_the_test_device(testdev: PCIDevice) -> None:
    seen: list[object] = []
    with testdev as dev:
        seen += [dev.config.vendor_id, dev.config.device_id]
        bar = dev.bars[0]
        bar.write32(0x10, 0x12345678)
        seen.append(bar.read32(0x10))
        buf = dev.dma.alloc(1 << 20)
        seen += [buf.array.size, int(buf.array.any())]
        with dev.msix.enable(32) as irqs:
            bar.write32(0x28, 31)
            seen.append(irqs[31].wait(timeout=1.0))
        dev.reset()
        seen.append(bar.read32(0x10))
    assert seen == [0x1B36, 0x0005, 0x12345678, 1 << 20, 0, 1, 0]


def test_what_was_opened_is_named(edu: PCIDevice) -> None:
    assert repr(edu) == f"<PCIDevice {edu.uri} open>"
