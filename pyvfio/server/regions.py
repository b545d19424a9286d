# SPDX-License-Identifier: BSD-3-Clause
"""The regions of a hosted model: configuration space, registers with callbacks, memory."""

from __future__ import annotations

import errno
import operator
import threading
from collections.abc import Callable, Iterator

import numpy as np

from pyvfio.memory import ByteArray, MemoryKind, SharedMemory
from pyvfio.native import mmio
from pyvfio.native.serve import Area
from pyvfio.server.config_space import ModelConfigSpace
from pyvfio.server.deferred import DeferredAnswers
from pyvfio.server.interrupts import Interrupts
from pyvfio.server.model import DeviceModel, ModelBAR
from pyvfio.server.msix import MSIXState
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import CapabilityID
from pyvfio.uapi.vfio import PCI_NUM_REGIONS, PCIRegion, RegionFlags
from pyvfio.vectors import MmapArea, RegionInfo

_WIDTHS = (4, 2, 1)


class Regions:
    """What a client reads and writes.

    :param lock: the function's own; see :class:`~pyvfio.server.function.PCIFunction`.
    :param config: configuration space.
    :param msix: table and pending bits, if the model has MSI-X.
    :param interrupts: evaluated where a write may have made one deliverable.
    :param check_runs: raises OSError EBUSY while the device is stopped; called with its lock.
    :param reset: resets the function.
    :ivar backing: BAR -> the memory of a backed one.
    """

    def __init__(
        self,
        model: DeviceModel,
        *,
        lock: threading.RLock,
        config: ModelConfigSpace,
        msix: MSIXState | None,
        interrupts: Interrupts,
        check_runs: Callable[[], None],
        reset: Callable[[DeferredAnswers], None],
    ) -> None:
        self._model = model
        self._lock = lock
        self._config = config
        self._msix = msix
        self._interrupts = interrupts
        self._check_runs = check_runs
        self._reset = reset
        self.backing = {
            number: SharedMemory(bar.size, MemoryKind.MEMFD)
            for number, bar in model.bars.items()
            if bar.backed
        }
        self._rom = model.rom and model.rom.ljust(pci.rom_size(len(model.rom)), b"\xff")

    def info(self, index: int) -> RegionInfo:
        """What DEVICE_GET_REGION_INFO says; raises OSError EINVAL where there is no such region."""
        read_write = RegionFlags.READ | RegionFlags.WRITE
        if index >= PCI_NUM_REGIONS:
            raise OSError(errno.EINVAL, f"region {index} of {PCI_NUM_REGIONS}")
        if index == PCIRegion.CONFIG:
            return RegionInfo(index, read_write, self._config.size)
        if index == PCIRegion.ROM and self._rom:
            return RegionInfo(index, RegionFlags.READ, len(self._rom))
        bar = self._model.bars.get(index)
        if bar is None:
            return RegionInfo(index, RegionFlags(0), 0)
        if not bar.mappable:
            return RegionInfo(index, read_write, bar.size)
        return RegionInfo(
            index,
            read_write | RegionFlags.MMAP,
            bar.size,
            fd=self.backing[index].fd,
            areas=tuple(MmapArea(*area) for area in bar.mappable),
        )

    def memory(self, bar: int) -> ByteArray:
        """The contents of a backed BAR."""
        return self.backing[bar].array

    def areas(self) -> Iterator[Area]:
        """What is memory, and what are registers with callbacks: all but what the server keeps."""
        for number, bar in self._model.bars.items():
            memory = self.backing[number].address if bar.backed else 0
            start = 0
            for first, end in (*self._kept(number), (bar.size, bar.size)):
                if start < first:
                    yield Area(number, start, first, memory and memory + start)
                start = end

    def _kept(self, number: int) -> list[tuple[int, int]]:
        return [] if self._msix is None else self._msix.ranges(number)

    def release(self) -> None:
        """Release the memory of the BARs."""
        for memory in self.backing.values():
            memory.release()

    # Access

    def read(self, region: int, offset: int, count: int, deferred: DeferredAnswers) -> Buffer:
        """``count`` bytes of a region.

        :raises OSError: EINVAL outside of it; EBUSY for registers while the device is stopped.
        :raises Exception: what the model fails with.
        """
        if region == PCIRegion.ROM:
            return self._read_rom(offset, count)
        bar = self._check_access(region, offset, count)
        if bar is None:
            with self._model.lock, self._lock:
                return self._config.read(offset, count)
        if self._is_memory(region, bar, offset, count):
            return self._read_memory(region, offset, count)
        data = bytearray()
        for at, width in _pieces(offset, count):
            deferred.check()
            data += self._read_register(region, at, width, deferred)
        return data

    def write(self, region: int, offset: int, data: Buffer, deferred: DeferredAnswers) -> None:
        """Write a region; raises as :meth:`read` does."""
        bar = self._check_access(region, offset, len(data))
        if bar is None:
            self._write_config(offset, data, deferred)
        elif self._is_memory(region, bar, offset, len(data)):
            self._write_memory(region, offset, data)
        else:
            for at, width in _pieces(offset, len(data)):
                deferred.check()
                piece = data[at - offset : at - offset + width]
                self._write_register(region, at, piece, deferred)

    def _read_rom(self, offset: int, count: int) -> Buffer:
        if offset + count > len(self._rom):
            raise OSError(errno.EINVAL, f"ROM+{offset:#x}, {count} of {len(self._rom):#x} bytes")
        return self._rom[offset : offset + count]

    def _check_access(self, region: int, offset: int, count: int) -> ModelBAR | None:
        """The BAR that is accessed, None for configuration space."""
        bar = self._model.bars.get(region)
        if bar is None and region != PCIRegion.CONFIG:
            raise OSError(errno.EINVAL, f"there is no region {region}")
        size = self._config.size if bar is None else bar.size
        if offset + count > size:
            raise OSError(errno.EINVAL, f"region {region}+{offset:#x}, {count} of {size:#x} bytes")
        return bar

    def _is_memory(self, number: int, bar: ModelBAR, offset: int, count: int) -> bool:
        return bar.backed and not self._overlaid(number, offset, count)

    def _overlaid(self, number: int, offset: int, count: int) -> bool:
        return self._msix is not None and self._msix.overlaps(number, offset, count)

    def _read_register(
        self, number: int, offset: int, width: int, deferred: DeferredAnswers
    ) -> Buffer:
        with self._model.lock:
            if self._msix is not None and self._msix.overlaps(number, offset, width):
                with self._lock:
                    return self._msix.read(number, offset, width)
        if self._model.bars[number].backed:
            return self._read_memory(number, offset, width)
        return self.read_register(number, offset, width, deferred).to_bytes(width, "little")

    def read_register(self, bar: int, offset: int, width: int, deferred: DeferredAnswers) -> int:
        """Have the model read a register, aligned; raises as :meth:`read` does."""
        with self._model.lock:
            self._check_runs()
            answer = self._model.bar_read(bar, offset, width)
        return operator.index(deferred.settle(answer)) & mmio.ALL_ONES[width]

    def _write_register(
        self, number: int, offset: int, data: Buffer, deferred: DeferredAnswers
    ) -> None:
        if self._msix is not None and self._msix.overlaps(number, offset, len(data)):
            with self._model.lock, self._lock:
                self._msix.write(number, offset, data)
                self._interrupts.evaluate()
        elif self._model.bars[number].backed:
            self._write_memory(number, offset, data)
        else:
            value = int.from_bytes(data, "little")
            self.write_register(number, offset, len(data), value, deferred)

    def write_register(
        self, bar: int, offset: int, width: int, value: int, deferred: DeferredAnswers
    ) -> None:
        """Have the model write a register, aligned; raises as :meth:`read` does."""
        with self._model.lock:
            self._check_runs()
            answer = self._model.bar_write(bar, offset, width, value)
        deferred.settle(answer)

    # Memory: a register's width, aligned, is one access, and the model's lock is not held

    def _read_memory(self, number: int, offset: int, count: int) -> Buffer:
        memory = self.backing[number]
        if count in mmio.READ and offset % count == 0:
            return mmio.READ[count](memory.address + offset).to_bytes(count, "little")
        return memory.array[offset : offset + count].tobytes()

    def _write_memory(self, number: int, offset: int, data: Buffer) -> None:
        self._check_runs()
        memory, count = self.backing[number], len(data)
        if count in mmio.WRITE and offset % count == 0:
            mmio.WRITE[count](memory.address + offset, int.from_bytes(data, "little"))
        else:
            memory.array[offset : offset + count] = np.frombuffer(data, np.uint8)

    def _write_config(self, offset: int, data: Buffer, deferred: DeferredAnswers) -> None:
        with self._model.lock, self._lock:
            self._config.write(offset, data)
            self._interrupts.evaluate()
            reset = self._take_function_reset()
        if reset:
            self._reset(deferred)

    def _take_function_reset(self) -> bool:
        at = self._config.offset_of(CapabilityID.EXP)
        if at is None:
            return False
        asked = self._config.get(pci.EXP_DEVICE_CONTROL, at) & pci.EXP_DEVICE_CONTROL_FLR
        self._config.change(pci.EXP_DEVICE_CONTROL, pci.EXP_DEVICE_CONTROL_FLR, False, at)
        return bool(asked)


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
