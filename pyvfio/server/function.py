# SPDX-License-Identifier: BSD-3-Clause
"""A model as a PCI function: its regions, interrupts, reset, and what it may ask of the client.

The function and its model outlive the clients; what belongs to one client (memory, eventfds) comes
with :meth:`PCIFunction.attach_client` and goes with :meth:`PCIFunction.detach_client`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import numpy as np

from pyvfio.errors import DMAError
from pyvfio.memory import ByteArray, MemoryKind, SharedMemory
from pyvfio.server.config_space import ModelConfigSpace
from pyvfio.server.guest_memory import GuestMemory
from pyvfio.server.interrupts import Interrupts
from pyvfio.server.model import DeviceModel, ModelBAR
from pyvfio.server.msix import MSIXState
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import CapabilityID, Command
from pyvfio.uapi.vfio import (
    PCI_NUM_IRQS,
    PCI_NUM_REGIONS,
    PCIIRQ,
    DeviceFlags,
    IRQFlags,
    PCIRegion,
    RegionFlags,
)
from pyvfio.vectors import DeviceInfo, MmapArea, RegionInfo
from pyvfio.wire.messages import SetIRQs

_WIDTHS = (4, 2, 1)


class PCIFunction:
    """Hosts a model.

    :param model: the model; it is closed with this object.
    :raises ValueError: its declarations contradict each other.

    Lock order: the model's lock (callbacks run with it), then the function's own (configuration
    space and interrupts; taken for moments).
    """

    def __init__(self, model: DeviceModel) -> None:
        self.model = model
        self._lock = threading.RLock()
        self._config = ModelConfigSpace(model)
        self._msix = MSIXState(model.msix) if model.msix else None
        self._interrupts = Interrupts(model, self._config, self._msix)
        self._guest: GuestMemory | None = None
        self._memory = {
            number: SharedMemory(bar.size, MemoryKind.MEMFD)
            for number, bar in model.bars.items()
            if bar.backed
        }
        model.attach(self)

    # What the client asks about

    def info(self) -> DeviceInfo:
        """What DEVICE_GET_INFO says."""
        reset = DeviceFlags.RESET if self.model.resettable else DeviceFlags(0)
        return DeviceInfo(DeviceFlags.PCI | reset, PCI_NUM_REGIONS, PCI_NUM_IRQS)

    def region_info(self, index: int) -> RegionInfo:
        """What DEVICE_GET_REGION_INFO says; raises OSError EINVAL where there is no such region."""
        read_write = RegionFlags.READ | RegionFlags.WRITE
        if index >= PCI_NUM_REGIONS:
            raise OSError(errno.EINVAL, f"region {index} of {PCI_NUM_REGIONS}")
        if index == PCIRegion.CONFIG:
            return RegionInfo(index, read_write, self._config.size)
        bar = self.model.bars.get(index)
        if bar is None:
            return RegionInfo(index, RegionFlags(0), 0)
        if not bar.mappable:
            return RegionInfo(index, read_write, bar.size)
        return RegionInfo(
            index,
            read_write | RegionFlags.MMAP,
            bar.size,
            fd=self._memory[index].fd,
            areas=tuple(MmapArea(*area) for area in bar.mappable),
        )

    def irq_info(self, index: int) -> tuple[IRQFlags, int]:
        """Flags and vectors; raises OSError EINVAL where there is no such index."""
        return self._interrupts.info(index)

    # What the client does

    def attach_client(self, guest: GuestMemory) -> None:
        """A client is there, with its memory."""
        with self.model.lock, self._lock:
            self._guest = guest

    def detach_client(self) -> None:
        """The client is gone: forget its memory and eventfds, keep the device's state."""
        with self.model.lock:
            with self._lock:
                guest, self._guest = self._guest, None
                self._interrupts.client_lost()
            if guest is not None:
                guest.clear()
            self.model.client_lost()

    def set_irqs(self, request: SetIRQs, fds: list[int]) -> None:
        """SET_IRQS; descriptors that are kept are removed from ``fds``.  Raises OSError."""
        with self.model.lock, self._lock:
            self._interrupts.set_irqs(request, fds)

    def read(self, region: int, offset: int, count: int) -> Buffer:
        """Read a region; raises OSError EINVAL outside of it."""
        bar = self._check_access(region, offset, count)
        with self.model.lock:
            if bar is None:
                with self._lock:
                    return self._config.read(offset, count)
            if self._is_memory(region, bar, offset, count):
                return self._memory[region].array[offset : offset + count].tobytes()
            data = bytearray()
            for at, width in _pieces(offset, count):
                data += self._read_register(region, at, width)
            return data

    def write(self, region: int, offset: int, data: Buffer) -> None:
        """Write a region; raises OSError EINVAL outside of it."""
        bar = self._check_access(region, offset, len(data))
        with self.model.lock:
            if bar is None:
                self._write_config(offset, data)
                return
            if self._is_memory(region, bar, offset, len(data)):
                contents = np.frombuffer(data, np.uint8)
                self._memory[region].array[offset : offset + len(data)] = contents
                return
            for at, width in _pieces(offset, len(data)):
                self._write_register(region, at, data[at - offset : at - offset + width])

    def reset(self) -> None:
        """Reset the function; the client's memory and eventfds stay."""
        with self.model.lock:
            with self._lock:
                self._config.reset()
                self._interrupts.device_reset()
            self.model.reset()

    def close(self) -> None:
        """Close the model and release the BARs' memory."""
        self.model.close()
        for memory in self._memory.values():
            memory.release()

    def _check_access(self, region: int, offset: int, count: int) -> ModelBAR | None:
        """The BAR that is accessed, None for configuration space."""
        bar = self.model.bars.get(region)
        size = self._config.size if region == PCIRegion.CONFIG else bar.size if bar else 0
        if offset + count > size:
            raise OSError(errno.EINVAL, f"region {region}+{offset:#x}, {count} of {size:#x} bytes")
        return bar

    def _is_memory(self, number: int, bar: ModelBAR, offset: int, count: int) -> bool:
        overlaid = self._msix is not None and self._msix.overlaps(number, offset, count)
        return bar.backed and not overlaid

    def _read_register(self, number: int, offset: int, width: int) -> Buffer:
        if self._msix is not None and self._msix.overlaps(number, offset, width):
            with self._lock:
                return self._msix.read(number, offset, width)
        if self.model.bars[number].backed:
            return self._memory[number].array[offset : offset + width].tobytes()
        value = self.model.bar_read(number, offset, width)
        return (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")

    def _write_register(self, number: int, offset: int, data: Buffer) -> None:
        if self._msix is not None and self._msix.overlaps(number, offset, len(data)):
            with self._lock:
                self._msix.write(number, offset, data)
                self._interrupts.evaluate()
        elif self.model.bars[number].backed:
            contents = np.frombuffer(data, np.uint8)
            self._memory[number].array[offset : offset + len(data)] = contents
        else:
            value = int.from_bytes(data, "little")
            self.model.bar_write(number, offset, len(data), value)

    def _write_config(self, offset: int, data: Buffer) -> None:
        with self._lock:
            self._config.write(offset, data)
            self._interrupts.evaluate()
            reset = self._take_function_reset()
        if reset:
            self.reset()

    def _take_function_reset(self) -> bool:
        at = self._config.offset_of(CapabilityID.EXP)
        if at is None:
            return False
        asked = self._config.get(pci.EXP_DEVICE_CONTROL, at) & pci.EXP_DEVICE_CONTROL_FLR
        self._config.change(pci.EXP_DEVICE_CONTROL, pci.EXP_DEVICE_CONTROL_FLR, False, at)
        return bool(asked)

    # What the model asks

    def dma_read(self, address: int, size: int) -> bytes:
        """See :meth:`DeviceModel.dma_read`."""
        return self._bus_master(address, size).read(address, size)

    def dma_write(self, address: int, data: Buffer) -> None:
        """See :meth:`DeviceModel.dma_write`."""
        self._bus_master(address, len(data)).write(address, data)

    def _bus_master(self, address: int, size: int) -> GuestMemory:
        with self._lock:
            guest, enabled = self._guest, self._config.command & Command.MASTER
        if guest is None or not enabled:
            raise DMAError(
                "there is no client" if guest is None else "bus mastering is off",
                iova=address,
                size=size,
                op=f"DMA at {address:#x}",
                errno=errno.ENOTCONN if guest is None else errno.EPERM,
            )
        return guest

    def bar_memory(self, bar: int) -> ByteArray:
        """See :meth:`DeviceModel.bar_memory`."""
        return self._memory[bar].array

    def set_intx(self, level: bool) -> None:
        """See :meth:`DeviceModel.set_intx`."""
        with self._lock:
            self._interrupts.set_intx(level)

    def msi_enabled(self) -> bool:
        """See :attr:`DeviceModel.msi_enabled`."""
        with self._lock:
            return self._interrupts.enabled(PCIIRQ.MSI)

    def send_msi(self, vector: int) -> None:
        """See :meth:`DeviceModel.send_msi`."""
        with self._lock:
            self._interrupts.send(PCIIRQ.MSI, vector)

    def msix_enabled(self) -> bool:
        """See :attr:`DeviceModel.msix_enabled`."""
        with self._lock:
            return self._interrupts.enabled(PCIIRQ.MSIX)

    def send_msix(self, vector: int) -> None:
        """See :meth:`DeviceModel.send_msix`."""
        with self._lock:
            self._interrupts.send(PCIIRQ.MSIX, vector)


def _pieces(offset: int, count: int) -> Iterator[tuple[int, int]]:
    """(offset, width) of the register accesses that make up a transfer.

    A register's width, aligned, is one access; anything else is cut into the widest aligned ones
    of at most 4 bytes, as the kernel cuts it (``vfio_pci_core_do_io_rw``).
    """
    if count in (1, 2, 4, 8) and offset % count == 0:
        yield offset, count
        return
    end = offset + count
    while offset < end:
        width = next(w for w in _WIDTHS if offset % w == 0 and offset + w <= end)
        yield offset, width
        offset += width
