# SPDX-License-Identifier: BSD-3-Clause
"""A driver for QEMU's educational device (1234:11e8), whoever emulates it."""

from __future__ import annotations

import time

from pyvfio.errors import UnsupportedError, VFIOTimeout
from pyvfio.irq import IRQSet
from pyvfio.memory import DMABuffer
from pyvfio.pci.device import PCIDevice

VENDOR_ID, DEVICE_ID = 0x1234, 0x11E8

ADDRESS_BITS = 28
"""Width of the device's DMA addresses."""
BUFFER_SIZE = 4096
"""Bytes of the device's own buffer."""
TRANSFER = BUFFER_SIZE // 2
"""Bytes of one transfer, where the caller does not say: half of the buffer.  QEMU 7.2 ends itself
when a transfer reaches the last byte."""

_ID, _LIVENESS, _FACTORIAL, _STATUS, _IRQ_STATUS = 0x00, 0x04, 0x08, 0x20, 0x24
_IRQ_RAISE, _IRQ_ACK = 0x60, 0x64
_DMA_SOURCE, _DMA_DESTINATION, _DMA_COUNT, _DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
_BUFFER = 0x40000

_COMPUTING, _FACTORIAL_IRQ_ENABLE = 0x01, 0x80
_DMA_RUN, _DMA_TO_HOST, _DMA_IRQ = 0x1, 0x2, 0x4

DMA_IRQ = 0x100
"""Bit of the interrupt status that says a DMA is done."""
FACTORIAL_IRQ = 0x001
"""Bit of the interrupt status that says a factorial is done."""


class EduDriver:
    """Drives one device.

    :param dev: the device; it stays the caller's.
    :param timeout: seconds that the device may take for anything.
    :raises UnsupportedError: it is another device.
    """

    def __init__(self, dev: PCIDevice, timeout: float = 5.0) -> None:
        found = (dev.config.vendor_id, dev.config.device_id)
        if found != (VENDOR_ID, DEVICE_ID):
            raise UnsupportedError(
                f"{found[0]:04x}:{found[1]:04x} is no edu device", op="probe", uri=dev.uri
            )
        self.dev = dev
        self.timeout = timeout
        self._bar = dev.bars[0]

    @property
    def identification(self) -> int:
        """0xMMmm00ed: version major and minor, and a signature."""
        return self._bar.read32(_ID)

    def liveness(self, value: int) -> int:
        """What the device makes of a 32-bit value: its inverse."""
        self._bar.write32(_LIVENESS, value)
        return self._bar.read32(_LIVENESS)

    def factorial(self, number: int, irqs: IRQSet | None = None) -> int:
        """``number``! modulo 2^32, computed by the device.

        :param irqs: wait for the interrupt instead of polling the busy bit.
        :raises VFIOTimeout: the device does not finish.
        """
        self._bar.write32(_STATUS, _FACTORIAL_IRQ_ENABLE if irqs is not None else 0)
        self._bar.write32(_FACTORIAL, number)
        if irqs is not None:
            irqs[0].wait(self.timeout)
            self.acknowledge(FACTORIAL_IRQ)
        self._poll(_STATUS, _COMPUTING, "factorial")
        return self._bar.read32(_FACTORIAL)

    def alloc(self) -> DMABuffer:
        """A DMA buffer as large as the device's own, where the device can reach it."""
        return self.dev.dma.alloc(BUFFER_SIZE, address_bits=ADDRESS_BITS)

    def to_device(
        self, buffer: DMABuffer, count: int = TRANSFER, irqs: IRQSet | None = None
    ) -> None:
        """Have the device copy the first ``count`` bytes of ``buffer`` to its own buffer.

        :param irqs: wait for the interrupt instead of polling the command register.
        :raises VFIOTimeout: the device does not finish.
        """
        self._dma(buffer.iova, _BUFFER, count, 0, irqs)

    def from_device(
        self, buffer: DMABuffer, count: int = TRANSFER, irqs: IRQSet | None = None
    ) -> None:
        """Have the device copy its own buffer to ``buffer``; see :meth:`to_device`."""
        self._dma(_BUFFER, buffer.iova, count, _DMA_TO_HOST, irqs)

    def _dma(
        self, source: int, destination: int, count: int, direction: int, irqs: IRQSet | None
    ) -> None:
        self.dev.bus_master = True
        command = _DMA_RUN | direction | (_DMA_IRQ if irqs is not None else 0)
        self._bar.write64(_DMA_SOURCE, source)
        self._bar.write64(_DMA_DESTINATION, destination)
        self._bar.write64(_DMA_COUNT, count)
        self._bar.write32(_DMA_COMMAND, command)
        if irqs is not None:
            irqs[0].wait(self.timeout)
            self.acknowledge(DMA_IRQ)
        self._poll(_DMA_COMMAND, _DMA_RUN, "DMA")

    @property
    def irq_status(self) -> int:
        """Bits of the interrupts that were raised and not acknowledged."""
        return self._bar.read32(_IRQ_STATUS)

    def raise_irq(self, bits: int) -> None:
        """Have the device raise an interrupt with these bits in its status."""
        self._bar.write32(_IRQ_RAISE, bits)

    def acknowledge(self, bits: int) -> None:
        """Clear bits of the interrupt status; the pin goes down with the last."""
        self._bar.write32(_IRQ_ACK, bits)

    def _poll(self, register: int, busy: int, what: str) -> None:
        deadline = time.monotonic() + self.timeout
        while self._bar.read32(register) & busy:
            if time.monotonic() > deadline:
                raise VFIOTimeout(f"not done within {self.timeout} s", op=what, uri=self.dev.uri)
            time.sleep(0.0002)
