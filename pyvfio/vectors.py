# SPDX-License-Identifier: BSD-3-Clause
"""The two operation vectors that a backend implements, and the records that they return.

A vector raises :class:`OSError` with the errno of the kernel or of the server;
:class:`~pyvfio.base.VFIOBase` and its parts turn that into the error of the operation.

The division is that of QEMU's vfio-user series ("add container IO ops vector", "add device IO ops
vector").
"""

from __future__ import annotations

import errno
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pyvfio.errors import UnsupportedError
from pyvfio.native import window
from pyvfio.uapi import chain, vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import (
    DeviceFlags,
    DeviceState,
    DMAMapFlags,
    IRQFlags,
    IRQSetFlags,
    RegionCapability,
    RegionFlags,
)

MAX_REGIONS = 100
"""Regions that a device may announce; the same bound as QEMU's."""
MAX_IRQS = 50
"""Interrupt indexes that a device may announce; the same bound as QEMU's."""
MAX_REGION_INFO = 64 * 1024
"""Bytes of region info with capabilities that a kernel or server may ask us to take."""
MAX_AREAS = 256
"""Areas of one region that may be mapped: a process has 65,530 maps (``vm.max_map_count``), which
no device may use up."""
MAX_VECTORS = 2048
"""Vectors that an interrupt index may announce: the most that MSI-X has."""


_Flags = TypeVar("_Flags", bound=IntFlag)


def known(kind: type[_Flags], bits: int) -> _Flags:
    """Those of ``bits`` that have a name.

    Python keeps every combination of flags that was ever made of a number, for good: a device that
    sets others each time would fill the memory with them.
    """
    return kind(bits & _named(kind))


@functools.cache
def _named(kind: type[IntFlag]) -> int:
    return sum(int(flag) for flag in kind)  # each has a bit of its own


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """``VFIO_DEVICE_GET_INFO``."""

    flags: DeviceFlags
    num_regions: int
    num_irqs: int


@dataclass(frozen=True, slots=True)
class MmapArea:
    """Part of a region that may be mapped, in bytes from the region's start."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """``VFIO_DEVICE_GET_REGION_INFO`` with its capabilities.

    :ivar size: bytes; 0 is a region that the device does not have.
    :ivar fd: what to map, owned by the vector; None where nothing can be mapped.
    :ivar fd_offset: where the region starts in ``fd``.
    :ivar areas: what may be mapped, in order; the whole region where it is not sparse.
    :ivar type: (type, subtype) of a device-specific region.
    :ivar msix_mappable: the page with the MSI-X table may be mapped as well.
    """

    index: int
    flags: RegionFlags
    size: int
    fd: int | None = None
    fd_offset: int = 0
    areas: tuple[MmapArea, ...] = ()
    type: tuple[int, int] | None = None
    msix_mappable: bool = False

    @classmethod
    def from_struct(cls, info: vfio.RegionInfo, data: Buffer, fd: int | None) -> RegionInfo:
        """Read what a kernel or a server says of a region, and check that it makes sense.

        :param info: the fixed part.
        :param data: the fixed part as bytes, with the capability chain behind it.
        :param fd: what can be mapped, if anything.
        :raises ValueError: sizes, areas or capabilities contradict each other.
        """
        flags = known(RegionFlags, info.flags)
        if info.offset + info.size >= 1 << 64:
            raise ValueError(f"{info.size} bytes at offset {info.offset:#x}")
        areas: tuple[MmapArea, ...] = (MmapArea(0, info.size),)
        region_type: tuple[int, int] | None = None
        msix_mappable = False
        first = info.cap_offset if flags & RegionFlags.CAPS else 0
        for capability in chain.walk(data, vfio.REGION_INFO.size, first):
            if capability.id == RegionCapability.SPARSE_MMAP:
                areas = _areas(chain.sparse_areas(capability), info.size)
            elif capability.id == RegionCapability.TYPE:
                kind = chain.region_type(capability)
                region_type = (kind.type, kind.subtype)
            elif capability.id == RegionCapability.MSIX_MAPPABLE:
                msix_mappable = True
        mappable = bool(flags & RegionFlags.MMAP) and fd is not None and info.size > 0
        return cls(
            index=info.index,
            flags=flags,
            size=info.size,
            fd=fd if mappable else None,
            fd_offset=info.offset,
            areas=areas if mappable else (),
            type=region_type,
            msix_mappable=msix_mappable,
        )


def _areas(listed: Sequence[vfio.SparseMmapArea], size: int) -> tuple[MmapArea, ...]:
    """The areas of a region of ``size`` bytes in order; raises :class:`ValueError`."""
    if len(listed) > MAX_AREAS:
        raise ValueError(f"{len(listed)} mmap areas")
    areas = sorted((MmapArea(area.offset, area.size) for area in listed), key=_offset)
    end = 0
    for area in areas:
        if area.offset < end:
            raise ValueError(f"mmap area {area.offset:#x}+{area.size:#x} overlaps another")
        end = area.offset + area.size
        if end > size:
            raise ValueError(f"mmap area {area.offset:#x}+{area.size:#x} of {size:#x}")
    return tuple(areas)


def _offset(area: MmapArea) -> int:
    return area.offset


@dataclass(frozen=True, slots=True)
class IRQInfo:
    """``VFIO_DEVICE_GET_IRQ_INFO``; ``count`` vectors, 0 where the device has none."""

    index: int
    flags: IRQFlags
    count: int


@dataclass(frozen=True, slots=True)
class IOEventFDInfo:
    """A register write that can be made by signalling ``fd``, which the vector owns.

    :ivar size: width in bytes; 0 is any.
    :ivar datamatch: the value that is written; None is any.
    """

    offset: int
    size: int
    datamatch: int | None
    fd: int


@dataclass(frozen=True, slots=True)
class PrecopyInfo:
    """``VFIO_MIG_GET_PRECOPY_INFO``: estimates of what is to be read before the device is stopped.

    :ivar initial_bytes: left of what should be transferred at least before it is stopped.
    :ivar dirty_bytes: more that has changed since.
    """

    initial_bytes: int
    dirty_bytes: int


class Vectors(Protocol):
    """Both vectors of a device that is reached, and an end to it."""

    @property
    def device_io(self) -> DeviceIO:
        """Operations on the device."""

    @property
    def container_io(self) -> ContainerIO:
        """Operations on its IO address space."""

    def close(self) -> None:
        """Let go of the device.  May be repeated."""


class DMASource(Protocol):
    """Memory to be mapped for a device: the kernel wants the address, a server the descriptor."""

    @property
    def address(self) -> int:
        """Virtual address of the first byte."""

    @property
    def fd(self) -> int:
        """Descriptor of the memory, its first byte at offset 0."""


class BatchFailure(NamedTuple):
    """An operation of several that was not carried out.

    :ivar position: which, from 0; of the maps and unmaps since :meth:`ContainerIO.begin`.
    :ivar error: what the vector would have raised.
    """

    position: int
    error: Exception


class ShortAccess(OSError):
    """A register of which the device has given or taken only ``count`` bytes."""

    def __init__(self, count: int) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO))
        self.count = count


def register_value(data: Buffer, width: int) -> int:
    """What a register of ``width`` bytes was read as; raises :class:`ShortAccess`."""
    if len(data) != width:
        raise ShortAccess(len(data))
    return int.from_bytes(data, "little")


class RegisterMessages(Protocol):
    """How C asks for the registers of a region, and who goes on where it stops half way.

    What goes on raises as :meth:`DeviceIO.register_read` and the others do.
    """

    def in_c(self, writes: bool, posting_is_over: Any = None) -> window.Messages:
        """What C has to know.

        :param writes: whether it writes registers, or only reads them.
        :param posting_is_over: the flag that ends posting; None where nothing is posted at all.
        """

    def tell_others(self) -> None:
        """An access is done, and others wait for what it has used."""

    def read_on(self, offset: int, width: int) -> int:
        """The value of a read that was begun."""

    def write_on(self, offset: int, width: int, value: int) -> None:
        """Go on with a write that was begun."""

    def abandon(self, offset: int, width: int, value: int | None) -> None:
        """A signal handler has raised where an access may have been begun.

        :param value: what was to be written; None for a read.
        """


class DeviceIO(ABC):
    """Operations on one device; all raise :class:`OSError` with the errno of a refusal."""

    @abstractmethod
    def get_info(self) -> DeviceInfo:
        """The device's flags and how many regions and interrupt indexes it has."""

    @abstractmethod
    def get_region_info(self, index: int) -> RegionInfo:
        """One region; the vector keeps owning the descriptor in it."""

    @abstractmethod
    def get_irq_info(self, index: int) -> IRQInfo:
        """One interrupt index."""

    def get_io_eventfds(self, index: int) -> Sequence[IOEventFDInfo]:
        """The writes to a region that can be made through an eventfd; optional: there are none."""
        return ()

    @abstractmethod
    def set_irqs(
        self,
        index: int,
        action: IRQSetFlags,
        start: int,
        count: int,
        *,
        eventfds: Sequence[int] | None = None,
        bools: Sequence[bool] | None = None,
    ) -> None:
        """``VFIO_DEVICE_SET_IRQS``.

        :param action: TRIGGER, MASK or UNMASK.
        :param eventfds: one for each vector of the range, -1 takes one away.
        :param bools: act on those vectors of the range that are true.
        """

    @abstractmethod
    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        """Read ``size`` bytes; fewer come back where the device gives no more."""

    def region_read_into(self, index: int, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer``; returns the bytes read, fewer where the device gives no more.

        Optional: one :meth:`region_read` and a copy.
        """
        data = self.region_read(index, offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def register_messages(self, index: int) -> RegisterMessages | None:
        """How C asks for a region's registers; optional: it does not."""
        return None

    def register_read(self, index: int, offset: int, width: int) -> int:
        """Read 1, 2, 4 or 8 bytes in one access; their value, little-endian.

        Optional: one :meth:`region_read`.

        :raises ShortAccess: the device gave fewer bytes.
        """
        return register_value(self.region_read(index, offset, width), width)

    @abstractmethod
    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        """Write ``data``; returns the number of bytes taken.

        :param posted: do not wait; order is kept, errors are never seen.
        """

    def register_write(
        self, index: int, offset: int, width: int, value: int, posted: bool = False
    ) -> None:
        """Write 1, 2, 4 or 8 bytes in one access, little-endian.

        Optional: one :meth:`region_write`.

        :raises ShortAccess: the device took fewer bytes.
        """
        data = value.to_bytes(width, "little")
        count = self.region_write(index, offset, data, posted=posted)
        if count != width:
            raise ShortAccess(count)

    def registers_write(
        self,
        index: int,
        offsets: npt.NDArray[np.uint64],
        width: int,
        values: npt.NDArray[np.uint64],
        posted: bool = False,
    ) -> Sequence[BatchFailure]:
        """Write registers in order, each in one access of ``width`` bytes.

        Optional: one :meth:`register_write` after the other, up to the first that fails.

        :returns: what failed, by ascending position; what is behind it may have been done or not.
        """
        for position, (offset, value) in enumerate(zip(offsets, values, strict=True)):
            try:
                self.register_write(index, int(offset), width, int(value), posted)
            except OSError as error:
                return [BatchFailure(position, error)]
        return []

    @property
    def unflushed(self) -> bool:
        """Whether writes were posted that are not known to be carried out; optional: never."""
        return False

    @abstractmethod
    def flush(self) -> None:
        """Return when every posted write has been carried out; at once where none is posted."""

    @abstractmethod
    def reset(self) -> None:
        """``VFIO_DEVICE_RESET``."""

    def hot_reset(self) -> None:
        """``VFIO_DEVICE_PCI_HOT_RESET``: reset the bus or slot; optional."""
        raise UnsupportedError("there is no bus to reset", op="hot reset")

    def hot_reset_functions(self) -> Sequence[str]:
        """``VFIO_DEVICE_GET_PCI_HOT_RESET_INFO``: the addresses of what it resets; optional."""
        raise UnsupportedError("there is no bus to reset", op="hot reset")

    # Features and migration; optional, all of them

    @property
    def state_outlives_client(self) -> bool:
        """Whether the device stays as it is when it is closed, for who opens it next."""
        return False

    def feature(self, flags: int, data: Buffer = b"", size: int = 0) -> Buffer:
        """``VFIO_DEVICE_FEATURE``.

        :param flags: the feature's number, with what to do: GET, SET or PROBE.
        :param data: the feature's data, for SET, and for GET where it says what to get.
        :param size: most bytes of data that may come back.
        :returns: the data that was got, or what has become of that which was set.
        """
        raise _unsupported("device feature")

    def set_migration_state(self, state: DeviceState) -> None:
        """``VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE``: bring the device there, by whatever way."""
        raise _unsupported("migration")

    def migration_read(self, buffer: memoryview) -> int | None:
        """The next migration data of the device; returns the bytes read, None or 0 for none now."""
        raise _unsupported("migration")

    def migration_write(self, data: memoryview) -> int:
        """The next migration data for the device; returns the bytes taken."""
        raise _unsupported("migration")

    def precopy_info(self) -> PrecopyInfo:
        """``VFIO_MIG_GET_PRECOPY_INFO``, of the save that is under way."""
        raise _unsupported("pre-copy info")

    # A log of what the device writes; optional, all of it

    @property
    def max_report(self) -> int:
        """Bytes of a bitmap in one :meth:`logging_report`, a multiple of 8."""
        return 1 << 20

    @property
    def logs_everything(self) -> bool:
        """Whether a log without ranges is one of everything; else it needs some."""
        return False

    @property
    def log_outlives_maps(self) -> bool:
        """Whether what was written can be asked for after the memory was unmapped."""
        return True

    def logging_start(self, page_size: int, ranges: Sequence[tuple[int, int]]) -> int:
        """``VFIO_DEVICE_FEATURE_DMA_LOGGING_START``; returns the page size that was chosen.

        :param page_size: bytes; a hint.
        :param ranges: (address, bytes) of what is logged.
        """
        raise _unsupported("dma logging")

    def logging_stop(self) -> None:
        """``VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP``."""
        raise _unsupported("dma logging")

    def logging_report(self, iova: int, size: int, page_size: int) -> Buffer:
        """``VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT``: the bitmap of a range, which is cleared."""
        raise _unsupported("dma logging")

    @abstractmethod
    def close(self) -> None:
        """Close every descriptor that this vector owns.  May be repeated."""


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError("the backend has none", op=what)


class ContainerIO(ABC):
    """Operations on the IO address space of a device."""

    @property
    @abstractmethod
    def iova_ranges(self) -> Sequence[tuple[int, int]]:
        """Addresses that can be mapped, as (first, last) pairs in ascending order."""

    @property
    @abstractmethod
    def page_sizes(self) -> int:
        """Page sizes that can be mapped, each a bit."""

    @property
    @abstractmethod
    def max_maps(self) -> int:
        """How many ranges may be mapped at one time."""

    @abstractmethod
    def dma_map(
        self, iova: int, size: int, memory: DMASource, offset: int, flags: DMAMapFlags
    ) -> None:
        """Map ``size`` bytes at ``offset`` of ``memory`` to ``iova``."""

    @abstractmethod
    def dma_unmap(self, iova: int, size: int) -> None:
        """Take away exactly one earlier map."""

    @abstractmethod
    def dma_unmap_all(self) -> None:
        """Take away every map."""

    # Many at one time; optional

    def dma_map_many(
        self,
        memory: DMASource,
        iovas: npt.NDArray[np.uint64],
        offsets: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint64],
        flags: DMAMapFlags,
    ) -> bool:
        """As many :meth:`dma_map`, all of them or, where it raises, none; after :meth:`begin`.

        :returns: False where there is no such thing.
        """
        return False

    def dma_unmap_many(self, iovas: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64]) -> bool:
        """As many :meth:`dma_unmap`; see :meth:`dma_map_many`."""
        return False

    # Dirty pages; optional, all of it

    @property
    def shares_memory(self) -> bool:
        """Whether a device reaches memory otherwise than by :class:`DeviceAccess`."""
        return True

    @property
    def dirty_page_sizes(self) -> int:
        """Page sizes in which it tells what devices may have written, each a bit; 0: it cannot."""
        return 0

    def dirty_start(self) -> None:
        """Begin to track."""
        raise _unsupported("dirty pages")

    def dirty_stop(self) -> None:
        """Track no more."""
        raise _unsupported("dirty pages")

    def dirty_report(self, iova: int, size: int, page_size: int) -> Buffer:
        """The bitmap of exactly one map, which is cleared."""
        raise _unsupported("dirty pages")

    def dma_unmap_dirty(self, iova: int, size: int, page_size: int) -> Buffer:
        """As :meth:`dma_unmap`, with the bitmap of what may have been written until then."""
        raise _unsupported("dirty pages")

    @abstractmethod
    def begin(self) -> None:
        """Until :meth:`commit`, maps and unmaps need not be through when they return."""

    @abstractmethod
    def commit(self) -> Sequence[BatchFailure]:
        """Wait for every map and unmap since :meth:`begin`; returns those that failed, in order.

        One that raised at once is not counted.  Who interrupts it calls it again, which gives up
        what was not answered.
        """

    @abstractmethod
    def close(self) -> None:
        """Close every descriptor that this vector owns.  May be repeated."""
