# SPDX-License-Identifier: BSD-3-Clause
"""One region of a device: register access of an exact width, and views of its mapped parts.

An access goes one of two ways, decided per access: inside of a mapped area it is one load or store
in C; elsewhere it is one read or write through the device's vector.
"""

from __future__ import annotations

import errno
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pyvfio.errors import (
    DeviceClosed,
    RegionError,
    UnsupportedError,
    VFIOError,
    operation_error,
)
from pyvfio.io_eventfd import IOEventFD
from pyvfio.memory import PAGE_SIZE, ByteArray, View
from pyvfio.native import mmio
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import DeviceIO, MmapArea, RegionInfo, ShortAccess

log = logging.getLogger(__name__)


class _MappedArea:
    """A part of the region that is mapped into this process."""

    def __init__(self, area: MmapArea, view: View) -> None:
        self.start = area.offset
        self.end = area.offset + area.size
        self.view = view
        # Held while a thread uses the area, even if another closes the region meanwhile.
        self.memory = view.memory
        self.address = self.memory.address

    def holds(self, offset: int, size: int) -> bool:
        return self.start <= offset and offset + size <= self.end


class DeviceMemory:
    """Mapped bytes of a device's region as a DMA source, for another device (peer to peer).

    Byte 0 is that of the descriptor, so that address and descriptor agree: the bytes start at
    ``start``.  They stay mapped in this process as long as this object lives, even where the
    region is closed.

    :param region: the region; made by its :meth:`Region.device_memory`.
    :param view: the mapping that holds the bytes.
    :param address: where their first byte is in this process.
    :ivar start: offset of the first byte in the descriptor.
    """

    def __init__(self, region: Region, view: View, offset: int, address: int) -> None:
        self.start = region.info.fd_offset + offset
        self._mapping = view.memory
        self._first = address
        self._region = region
        self._info = region.info

    @property
    def current(self) -> bool:
        """Whether it is what the region maps now; not once the device is reached again."""
        return not self._region.closed and self._region.info is self._info

    @property
    def address(self) -> int:
        """Virtual address that the descriptor's byte 0 would have."""
        return self._first - self.start

    @property
    def fd(self) -> int:
        """The device's descriptor.

        :raises DeviceClosed: the device is closed, or was reached again since.
        """
        fd = self._info.fd
        if fd is None or not self.current:
            raise DeviceClosed("closed, or reached again", op=f"memory of {self._region.name}")
        return fd


class Posting:
    """Whether the regions of one device post their writes: until one of them is mapped.

    A store to mapped memory does not wait for messages that are under way, so it would overtake
    them (QEMU's vfio-user client: no posting with a region that can be mapped).

    :param flush: waits until what was posted is done.
    :param default: whether memory BARs post where nobody says otherwise.
    """

    def __init__(self, flush: Callable[[], None], default: bool = False) -> None:
        self.default = default
        self.over = False
        self._flush = flush
        self._flushed = False
        self._lock = threading.RLock()

    def end(self) -> None:
        """A region is mapped: post no more, and wait for what was posted.

        :raises VFIOError: it is not known to be done; to be called again.
        """
        with self._lock:  # nobody stores to memory while another still waits
            self.over = True
            if not self._flushed:
                self._flush()
                self._flushed = True


class Region:
    """A region of a device; PCI BARs, ROM and configuration space are regions.

    :param device_io: the vector that reaches it.
    :param info: what the device says of it.
    :param uri: the device, for errors.
    :param posting: whether the device's regions post their writes; shared by all of them.
    """

    def __init__(
        self, device_io: DeviceIO, info: RegionInfo, uri: str, posting: Posting | None = None
    ) -> None:
        self.info = info
        self._posting = posting or Posting(device_io.flush)
        self._posted: bool | None = None
        self._device_io = device_io
        self._uri = uri
        self._readable = bool(info.flags & RegionFlags.READ)
        self._writable = bool(info.flags & RegionFlags.WRITE)
        self._areas: list[_MappedArea] | None = None
        self._io_eventfds: tuple[IOEventFD, ...] | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """How errors call the region."""
        return f"region {self.info.index}"

    @property
    def postable(self) -> bool:
        """Whether writes may be posted at all; only those to a memory BAR may."""
        return False

    @property
    def posted(self) -> bool:
        """Whether writes that are not mapped are posted: sent without waiting for an answer.

        Their order is kept, also with all that follows; an error of the device is never seen.
        ``VFIOBase.flush`` waits until they are done.  Set it to choose for this region; nothing is
        posted to configuration space or I/O ports, nor once a region of the device is mapped, nor
        by the kernel's backend.
        """
        posting = self._posting
        wanted = posting.default if self._posted is None else self._posted
        return wanted and not posting.over and self.postable

    @posted.setter
    def posted(self, wanted: bool) -> None:
        self._posted = wanted

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.info.size

    @property
    def mappable(self) -> tuple[MmapArea, ...]:
        """The areas that can be mapped; the rest is reached by reads and writes."""
        return self.info.areas

    # One access of one width

    def read8(self, offset: int) -> int:
        """One 8-bit read."""
        return self.read(offset, 1)

    def read16(self, offset: int) -> int:
        """One 16-bit read, little-endian."""
        return self.read(offset, 2)

    def read32(self, offset: int) -> int:
        """One 32-bit read, little-endian."""
        return self.read(offset, 4)

    def read64(self, offset: int) -> int:
        """One 64-bit read, little-endian."""
        return self.read(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """One 8-bit write."""
        self.write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """One 16-bit write, little-endian."""
        self.write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit write, little-endian."""
        self.write(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit write, little-endian."""
        self.write(offset, 8, value)

    def read(self, offset: int, width: int) -> int:
        """One read of ``width`` bytes (1, 2, 4, 8) at a multiple of ``width``.

        :raises RegionError: outside of the region, not aligned, or the device did not answer it.
        """
        self._check_register("read", offset, width)
        area = self._area(offset, width)
        if area is None:
            return self._read_register(offset, width)
        value = mmio.READ[width](area.address + offset - area.start)
        if value == mmio.ALL_ONES[width] and mmio.faulted():
            raise self._fault("read", offset)
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """One write of ``width`` bytes (1, 2, 4, 8) at a multiple of ``width``.

        :raises RegionError: outside of the region, not aligned, or the device refused it.
        :raises ValueError: the value does not fit.
        """
        self._check_register("write", offset, width)
        if not 0 <= value <= mmio.ALL_ONES[width]:
            raise ValueError(f"{value:#x} does not fit into {8 * width} bits")
        area = self._area(offset, width)
        if area is None:
            self._write_register(offset, width, value)
            return
        if mmio.WRITE[width](area.address + offset - area.start, value):
            raise self._fault("write", offset)

    def write_many(self, offsets: npt.ArrayLike, values: npt.ArrayLike, width: int = 4) -> None:
        """Write many registers in order, each in one access of ``width`` bytes.

        By messages they go together, several in flight or posted.  So where one is refused, those
        behind it may have been made or not.

        :param offsets: multiples of ``width``; one number writes all values to one register.
        :param values: as many integers; one number is written everywhere.
        :raises RegionError: outside of the region, not aligned: nothing was written; or the device
            refused some, of which this is the first.
        :raises ValueError: a value does not fit, or there are not as many of them.
        """
        places, numbers = self._check_many(offsets, values, width)
        if self._mapped():
            for offset, value in zip(places.tolist(), numbers.tolist(), strict=True):
                self.write(offset, width, value)
            return
        posted = self.posted
        failures = self._device_io.registers_write(self.info.index, places, width, numbers, posted)
        if failures:
            position, error = failures[0]
            raise self._access_error("write", int(places[position]), width, error) from error

    # Bulk

    def read_bytes(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes; the widths of the accesses are the transport's choice."""
        self._check_range("read", offset, size)
        area = self._area(offset, size) if size else None
        if area is not None:
            copied = mmio.copy_out(area.address + offset - area.start, size)
            if copied is None:
                raise self._fault("read", offset)
            return bytes(copied)
        data = self._read_trapped(offset, size) if size else b""
        if len(data) != size:
            raise self._short("read", offset, size, len(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: Buffer | npt.NDArray[Any]) -> None:
        """Fill ``buffer``, which is contiguous and can be written, from ``offset`` on.

        The widths of the accesses are the transport's choice; what ``buffer`` holds after an error
        is not defined.
        """
        target = memoryview(cast(Buffer, buffer)).cast("B")
        if target.readonly:
            raise ValueError("the buffer cannot be written")
        self._check_range("read", offset, len(target))
        if not len(target):
            return
        area = self._area(offset, len(target))
        if area is None:
            self._read_trapped_into(offset, target)
            return
        if not mmio.copy_into(target, area.address + offset - area.start):
            raise self._fault("read", offset)

    def write_bytes(self, offset: int, data: Buffer) -> None:
        """Write the bytes of ``data``; the widths of the accesses are the transport's choice."""
        data = memoryview(data).cast("B")
        self._check_range("write", offset, len(data))
        if not len(data):
            return
        area = self._area(offset, len(data))
        if area is None:
            self._write_trapped(offset, data)
            return
        if not mmio.copy_in(area.address + offset - area.start, data):
            raise self._fault("write", offset)

    def view(self, offset: int = 0, size: int | None = None) -> ByteArray:
        """Mapped memory of the region as bytes, shape (size,), without a copy.

        For bulk memory only: numpy chooses the widths of its accesses, and one that the device
        does not answer ends the process.

        :param size: bytes; to the end of the mapped area by default.
        :raises UnsupportedError: these bytes cannot be mapped, or not in one piece.
        """
        self._check_open("view")
        for area in self._mapped() if self._readable else ():
            end = area.end if size is None else offset + size
            if area.start <= offset < area.end and offset <= end <= area.end:
                return area.view.array[offset - area.start : end - area.start]
        raise self._not_mapped("view", offset, size)

    def device_memory(self, offset: int, size: int) -> DeviceMemory:
        """Mapped bytes of the region, so that another device can be given them for its DMA.

        :raises UnsupportedError: these bytes cannot be mapped, or not in one piece.
        """
        self._check_open("map")
        area = self._area(offset, size)
        if area is None:
            raise self._not_mapped("map", offset, size)
        return DeviceMemory(self, area.view, offset, area.address + offset - area.start)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def io_eventfds(self) -> tuple[IOEventFD, ...]:
        """The registers that can be kicked through an eventfd, asked once; none on a kernel device.

        :raises RemoteProtocolError: the server's list makes no sense.
        """
        if self._io_eventfds is None:
            self._check_open("list io eventfds")
            op = f"list io eventfds of {self.name}"
            try:
                infos = self._device_io.get_io_eventfds(self.info.index)
            except OSError as error:
                raise operation_error(error, RegionError, op=op, uri=self._uri) from error
            self._io_eventfds = tuple(IOEventFD(info, self._check_open) for info in infos)
        return self._io_eventfds

    # Ways

    def _area(self, offset: int, size: int) -> _MappedArea | None:
        for area in self._mapped():
            if area.holds(offset, size):
                return area
        return None

    def _mapped(self) -> list[_MappedArea]:
        """The areas, mapped at first use; what cannot be mapped is read and written instead."""
        if self._areas is None:
            self._check_open("map")
            areas = list(self._map_areas())
            if areas:
                self._posting.end()
            self._areas = areas
        return self._areas

    def _map_areas(self) -> Iterator[_MappedArea]:
        for area in self.info.areas:
            try:
                yield _MappedArea(area, self._map(area))
            except OSError as error:
                log.warning(
                    "%s: cannot map %s at %#x: %s", self._uri, self.name, area.offset, error
                )

    def _map(self, area: MmapArea) -> View:
        start = self.info.fd_offset + area.offset
        # A kernel maps a BAR smaller than a page where nothing else is in that page.
        whole = area.size % PAGE_SIZE == 0 or area.offset + area.size == self.size
        if self.info.fd is None or start % PAGE_SIZE or not whole:
            raise OSError(errno.EINVAL, "no descriptor, or not whole pages")
        memory = mmio.MappedMemory(
            self.info.fd,
            start,
            area.size,
            readable=self._readable,
            writable=self._writable,
        )
        return View(memory, self.name)

    def _read_register(self, offset: int, width: int) -> int:
        try:
            return self._device_io.register_read(self.info.index, offset, width)
        except OSError as error:
            raise self._access_error("read", offset, width, error) from error

    def _write_register(self, offset: int, width: int, value: int) -> None:
        try:
            self._device_io.register_write(self.info.index, offset, width, value, self.posted)
        except OSError as error:
            raise self._access_error("write", offset, width, error) from error

    def _access_error(self, verb: str, offset: int, width: int, error: Exception) -> Exception:
        if isinstance(error, ShortAccess):
            return self._short(verb, offset, width, error.count)
        return self._failed(verb, error, offset) if isinstance(error, OSError) else error

    def _read_trapped(self, offset: int, size: int) -> Buffer:
        try:
            return self._device_io.region_read(self.info.index, offset, size)
        except OSError as error:
            raise self._failed("read", error, offset) from error

    def _read_trapped_into(self, offset: int, target: memoryview) -> None:
        try:
            count = self._device_io.region_read_into(self.info.index, offset, target)
        except OSError as error:
            raise self._failed("read", error, offset) from error
        if count != len(target):
            raise self._short("read", offset, len(target), count)

    def _failed(self, verb: str, error: OSError, offset: int) -> VFIOError:
        return operation_error(error, RegionError, op=self._op(verb, offset), uri=self._uri)

    def _write_trapped(self, offset: int, data: Buffer) -> None:
        try:
            count = self._device_io.region_write(self.info.index, offset, data, posted=self.posted)
        except OSError as error:
            raise self._failed("write", error, offset) from error
        if count != len(data):
            raise self._short("write", offset, len(data), count)

    # Checks

    def _check_register(self, verb: str, offset: int, width: int) -> None:
        if width not in mmio.READ:
            raise ValueError(f"an access of {width} bytes; 1, 2, 4 and 8 exist")
        self._check_range(verb, offset, width)
        if offset % width:
            raise RegionError(
                f"not a multiple of the {width} bytes of the access",
                op=self._op(verb, offset),
                uri=self._uri,
                errno=errno.EINVAL,
            )

    def _check_many(
        self, offsets: npt.ArrayLike, values: npt.ArrayLike, width: int
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        places, numbers = np.broadcast_arrays(_integers(offsets), _integers(values))
        if places.ndim > 1:
            raise ValueError(f"{places.ndim} dimensions of registers")
        for offset in {int(bound(places)) for bound in (np.min, np.max) if places.size}:
            self._check_range("write", offset, width)
        self._check_register("write", 0, width)
        if (places % width).any():
            self._check_register("write", int(places[(places % width).argmax()]), width)
        if (numbers > mmio.ALL_ONES[width]).any():
            raise ValueError(f"{int(numbers.max()):#x} does not fit into {8 * width} bits")
        return places.ravel(), numbers.ravel()

    def _check_range(self, verb: str, offset: int, size: int) -> None:
        if self._closed:
            self._check_open(verb)
        if offset < 0 or size < 0 or offset + size > self.info.size:
            raise RegionError(
                f"{size} bytes are outside of the region's {self.info.size:#x}",
                op=self._op(verb, offset),
                uri=self._uri,
                errno=errno.EINVAL,
            )
        if not (self._readable if verb == "read" else self._writable):
            raise self._denied(verb, offset)

    def _check_open(self, verb: str) -> None:
        if self._closed:
            raise DeviceClosed("the device is closed", op=f"{verb} {self.name}", uri=self._uri)

    def _op(self, verb: str, offset: int) -> str:
        return f"{verb} {self.name}+{offset:#x}"

    def _short(self, verb: str, offset: int, wanted: int, got: int) -> RegionError:
        reason = f"{got} of {wanted} bytes were transferred"
        return RegionError(reason, op=self._op(verb, offset), uri=self._uri, errno=errno.EIO)

    def _denied(self, verb: str, offset: int) -> RegionError:
        """For what the region does not allow: on mapped memory it would end the process, and a
        posted write would vanish without a word.
        """
        return RegionError(
            f"the region cannot be {'read' if verb == 'read' else 'written'}",
            op=self._op(verb, offset),
            uri=self._uri,
            errno=errno.EACCES,
        )

    def _not_mapped(self, verb: str, offset: int, size: int | None) -> UnsupportedError:
        return UnsupportedError(
            f"no mapped area holds offset {offset:#x}, {size or 'any'} bytes",
            op=f"{verb} {self.name}",
            uri=self._uri,
            hint="use read_bytes() and write_bytes()",
        )

    def _fault(self, verb: str, offset: int) -> RegionError:
        return RegionError(
            "no memory answers at the mapped address",
            op=self._op(verb, offset),
            uri=self._uri,
            errno=errno.EFAULT,
            hint="is memory decoding off, the device gone, or its file truncated?",
        )

    def move_to(self, device_io: DeviceIO, info: RegionInfo) -> bool:
        """Reach the region through another vector; called when the device is reached again.

        :returns: whether a numpy view of what was mapped before is alive.
        """
        self._device_io, self.info = device_io, info
        for entry in self._io_eventfds or ():
            entry.retire()
        self._io_eventfds = None
        return self._unmap()

    def _unmap(self) -> bool:
        """Let go of what is mapped; returns whether a numpy view of it is alive."""
        areas, self._areas = self._areas or [], None
        in_use = any(area.view.in_use for area in areas)
        for area in areas:
            area.view.release()
        return in_use

    def close(self) -> None:
        """Unmap the region; called when the device is closed."""
        if self._closed:
            return
        self._closed = True
        if self._unmap():
            warnings.warn(
                f"{self._uri}: a numpy view of {self.name} is alive; the device file stays mapped"
                " until it is deleted",
                ResourceWarning,
                stacklevel=2,
            )


def _integers(numbers: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Numbers from 0 to 2^64-1; raises :class:`ValueError`."""
    array = np.asarray(numbers)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"integers are wanted, not {array.dtype}")
    if array.size and int(array.min()) < 0:
        raise ValueError(f"{int(array.min())} is negative")
    return array.astype(np.uint64)
