# SPDX-License-Identifier: BSD-3-Clause
"""One region of a device: register access of an exact width, and views of its mapped parts.

An access goes one of two ways, decided per access: inside of a mapped area it is one load or store
in C; elsewhere it is one read or write through the device's vector.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import numpy.typing as npt

from pyvfio import program
from pyvfio.device_memory import DeviceMemory
from pyvfio.errors import RegionError, operation_error
from pyvfio.io_eventfd import IOEventFD
from pyvfio.memory import ByteArray
from pyvfio.native import mmio, window
from pyvfio.program_run import Run
from pyvfio.region_access import RegionAccess, no_such
from pyvfio.uapi.layout import Buffer
from pyvfio.vectors import RegisterMessages

_Method = TypeVar("_Method")


def _reading(width: int) -> Callable[[Region, int], int]:
    """The method for reads of ``width`` bytes: usually one call of C."""
    get, largest = window.GET[width], mmio.ALL_ONES[width]

    def read(self: Region, offset: int) -> int:
        used = self._window
        try:
            value = get(used, offset)
            return value if value <= largest else self._read_on(used, offset, width, value)
        except BaseException as error:
            if not self._leave(error, used, offset, width):
                raise
        return self._read_otherwise(offset, width, window.MISSED)

    read.__doc__ = f"One {8 * width}-bit read, little-endian; raises as :meth:`read`."
    return read


def _writing(width: int) -> Callable[[Region, int, int], None]:
    """The method for writes of ``width`` bytes; see :func:`_reading`."""
    put = window.PUT[width]

    def write(self: Region, offset: int, value: int) -> None:
        used = self._window
        try:
            if failure := put(used, offset, value):
                self._write_on(used, offset, width, value, failure)
            return
        except BaseException as error:
            if not self._leave(error, used, offset, width, value):
                raise
        self._write_otherwise(offset, width, value, window.MISSED)

    write.__doc__ = f"One {8 * width}-bit write, little-endian; raises as :meth:`write`."
    return write


class Region(RegionAccess):
    """A region of a device; PCI BARs, ROM and configuration space are regions.

    :param device_io: the vector that reaches it.
    :param info: what the device says of it.
    :param uri: the device, for errors.
    :param posting: whether the device's regions post their writes; shared by all of them.
    :param check_present: raises where the device is gone, given what is asked of it.
    """

    # One access of one width

    read8, read16, read32 = _reading(1), _reading(2), _reading(4)
    write8, write16, write32, write64 = _writing(1), _writing(2), _writing(4), _writing(8)

    def read64(self, offset: int) -> int:
        """One 64-bit read, little-endian; raises as :meth:`read`."""
        used = self._window
        try:
            found = window.get64(used, offset)
            value: int = found.value
            return self._read_on(used, offset, 8, found.failure, value) if found.failure else value
        except BaseException as error:
            if not self._leave(error, used, offset, 8):
                raise
        return self._read_otherwise(offset, 8, window.MISSED)

    def read(self, offset: int, width: int) -> int:
        """One read of ``width`` bytes (1, 2, 4, 8) at a multiple of ``width``.

        :raises RegionError: outside of the region, not aligned, or the device did not answer it.
        """
        return _of_width(_READ, width)(self, offset)

    def _read_on(
        self, used: window.Window, offset: int, width: int, failure: int, value: int | None = None
    ) -> int:
        """What C has not read, or has more to say of.

        :param used: the window through which it was tried.
        :param value: what was read; in ``failure`` by default.
        """
        if failure & window.WAITED:
            window.behind(used).tell_others()
            return failure & mmio.ALL_ONES[width] if value is None else value
        if failure & window.BEGUN:
            registers: RegisterMessages = window.behind(used)
            return self._asked("read", offset, width, registers.read_on, int(offset), width)
        return self._read_otherwise(offset, width, failure)

    def _read_otherwise(self, offset: int, width: int, failure: int) -> int:
        """What is not mapped, or not yet; or why it cannot be read."""
        offset = operator.index(offset)
        if failure == window.FAULTED:
            raise self.fault("read", offset)
        self.check_register("read", offset, width)
        if self._area(offset, width) is not None:  # by now
            return self.read(offset, width)
        read = self._device_io.register_read
        return self._asked("read", offset, width, read, self.info.index, offset, width)

    def _leave(
        self,
        error: BaseException,
        used: window.Window,
        offset: int,
        width: int,
        value: int | None = None,
    ) -> bool:
        """Leave in good order after an error.

        Who calls raises it: a frame that has it in a variable and raises it lives, with all that it
        refers to, until the collector finds both.

        :returns: whether it says that C could not take the offset or the value.
        """
        registers: RegisterMessages | None = window.behind(used)
        if registers is not None:
            registers.abandon(offset, width, value)
        if not isinstance(error, OverflowError):
            return False
        return not _is_u64(offset) or not (value is None or 0 <= value <= mmio.ALL_ONES[width])

    def write(self, offset: int, width: int, value: int) -> None:
        """One write of ``width`` bytes (1, 2, 4, 8) at a multiple of ``width``.

        :raises RegionError: outside of the region, not aligned, or the device refused it.
        :raises ValueError: the value does not fit.
        """
        _of_width(_WRITE, width)(self, offset, value)

    def _write_on(
        self, used: window.Window, offset: int, width: int, value: int, failure: int
    ) -> None:
        """What C has not written, or has more to say of; see :meth:`_read_on`."""
        if failure == window.WAITED:
            window.behind(used).tell_others()
        elif failure == window.BEGUN:
            registers: RegisterMessages = window.behind(used)
            self._asked("write", offset, width, registers.write_on, int(offset), width, int(value))
            self._end_posting(self._wants_posting)
        else:
            self._write_otherwise(offset, width, value, failure)

    def _write_otherwise(self, offset: int, width: int, value: int, failure: int) -> None:
        offset = operator.index(offset)
        if failure == window.FAULTED:
            raise self.fault("write", offset)
        self.check_register("write", offset, width)
        value = _fitting(value, width)
        if self._area(offset, width) is not None:
            self.write(offset, width, value)
        else:
            self._write_register(offset, width, value)

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
            Run(self, program.writes(places, numbers, width), numbered=False).to_the_end()
            return
        posted = self.posted
        failures = self._device_io.registers_write(self.info.index, places, width, numbers, posted)
        if failures:
            position, error = failures[0]
            raise self._access_error("write", int(places[position]), width, error) from error
        self._end_posting(posted)

    # 64 bits for devices that take 32 at a time

    def read64_lo_hi(self, offset: int) -> int:
        """Read 64 bits as two times 32, the low half first; raises as :meth:`read`.

        :param offset: a multiple of 4.
        """
        return self._read_halves(offset, high_first=False)

    def read64_hi_lo(self, offset: int) -> int:
        """Read 64 bits as two times 32, the high half first; see :meth:`read64_lo_hi`."""
        return self._read_halves(offset, high_first=True)

    def write64_lo_hi(self, offset: int, value: int) -> None:
        """Write 64 bits as two times 32, the low half first; raises as :meth:`write`.

        :param offset: a multiple of 4.
        """
        self._write_halves(offset, value, high_first=False)

    def write64_hi_lo(self, offset: int, value: int) -> None:
        """Write 64 bits as two times 32, the high half first; see :meth:`write64_lo_hi`."""
        self._write_halves(offset, value, high_first=True)

    def _read_halves(self, offset: int, high_first: bool) -> int:
        offset = operator.index(offset)
        self.check_register("read", offset, 8, halves=True)
        loaded = window.load64_halves(self._window, offset, high_first)
        if not loaded.failure:
            return cast(int, loaded.value)
        if loaded.failure == window.FAULTED:
            raise self.fault("read", offset)
        halves = {at: self.read32(offset + at) for at in _order(high_first)}
        return halves[4] << 32 | halves[0]

    def _write_halves(self, offset: int, value: int, high_first: bool) -> None:
        offset = operator.index(offset)
        self.check_register("write", offset, 8, halves=True)
        value = _fitting(value, 8)
        failure = window.store64_halves(self._window, offset, value, high_first)
        if failure == window.FAULTED:
            raise self.fault("write", offset)
        if failure:
            for at in _order(high_first):
                self.write32(offset + at, value >> 8 * at & mmio.ALL_ONES[4])

    # Order of memory and device

    def barrier(self) -> None:
        """Keep what follows, in memory and on devices, behind all that precedes (mb()).

        Each access of this class comes after all stores before it, and before all loads behind it,
        in memory as well: a doorbell is rung after its descriptor was written.  What is left for
        barriers: a read of the device after a *store* to memory, and, on memory that is
        write-combining or not x86, accesses of the device among each other.  On a region that is
        not mapped they order memory alone: messages keep their order, and ``VFIOBase.flush`` waits
        for posted writes.
        """
        mmio.full_barrier()

    def read_barrier(self) -> None:
        """Keep the loads that follow behind those that precede (rmb())."""
        mmio.read_barrier()

    def write_barrier(self) -> None:
        """Keep the stores that follow behind those that precede (wmb())."""
        mmio.write_barrier()

    # Many at once, and waiting

    def run(self, steps: program.Steps) -> None:
        """Carry out a register program; see :mod:`pyvfio.program`.

        :param steps: an array of :data:`~pyvfio.program.STEP`; its results are stored in it.
        :raises ValueError: it is no such array, or a step makes no sense; nothing was done.
        :raises RegionError: of a step, whose number is in ``step``.  Nothing was done where the
            step could never have been, else those before it were.
        :raises VFIOTimeout: a register did not have its value in time.
        :raises ConnectionLost: the device went away while it was waited for.
        """
        Run(self, steps).to_the_end()

    def poll(
        self,
        offset: int,
        width: int,
        wanted: int,
        *,
        mask: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Read a register until those of its bits that are in ``mask`` are ``wanted``.

        Without a pause for some microseconds, then with growing ones, of up to a millisecond.

        :param mask: all bits by default.
        :param timeout: seconds; None waits for ever, 0 only looks.
        :returns: the value that was read last, all of it.
        :raises VFIOTimeout: they never were.
        :raises RegionError: as :meth:`read`.
        :raises ConnectionLost: the device went away.
        """
        steps = program.program(
            program.poll(offset, wanted, mask=mask, timeout=timeout, width=width)
        )
        Run(self, steps, numbered=False).to_the_end()
        return int(steps["result"][0])

    # Bulk

    def read_bytes(self, offset: int, size: int, *, width: int | None = None) -> bytes:
        """Read ``size`` bytes.

        :param width: bytes of each access (1, 2, 4, 8), of which ``offset`` and ``size`` are
            multiples; they are made one by one, in ascending order.  By default the transport
            chooses: one transfer, or 64 bits at a time where it is mapped.
        """
        offset, size = operator.index(offset), operator.index(size)
        self._check_block("read", offset, size, width)
        if not size:
            return b""
        if width is None and self._area(offset, size) is None:
            data = self._read_trapped(offset, size)
            if len(data) != size:
                raise self._short("read", offset, size, len(data))
            return bytes(data)
        copied = bytearray(size)
        self._read_block(offset, memoryview(copied), width)
        return bytes(copied)

    def read_into(
        self, offset: int, buffer: Buffer | npt.NDArray[Any], *, width: int | None = None
    ) -> None:
        """Fill ``buffer``, which is contiguous and can be written, from ``offset`` on.

        What ``buffer`` holds after an error is not defined.

        :param width: as of :meth:`read_bytes`.
        """
        target = memoryview(cast(Buffer, buffer)).cast("B")
        if target.readonly:
            raise ValueError("the buffer cannot be written")
        offset = operator.index(offset)
        self._check_block("read", offset, len(target), width)
        self._read_block(offset, target, width)

    def write_bytes(self, offset: int, data: Buffer, *, width: int | None = None) -> None:
        """Write the bytes of ``data``.

        :param width: as of :meth:`read_bytes`.
        """
        source = memoryview(data).cast("B")
        offset = operator.index(offset)
        self._check_block("write", offset, len(source), width)
        if not self._moves_mapped("write", offset, source, width):
            for at, part in _parts(source, width):
                self._write_trapped(offset + at, part)

    def _moves_mapped(self, verb: str, offset: int, data: memoryview, width: int | None) -> bool:
        """Copy from or to mapped memory; False where it is not mapped in one piece."""
        if not len(data):
            return True
        move = window.load_block if verb == "read" else window.store_block
        while self._area(offset, len(data)) is not None:
            failure = move(self._window, offset, data, width or 0)
            if not failure:
                return True
            if failure == window.FAULTED:
                raise self.fault(verb, offset)
        return False

    def _read_block(self, offset: int, target: memoryview, width: int | None) -> None:
        if not self._moves_mapped("read", offset, target, width):
            for at, part in _parts(target, width):
                self._read_trapped_into(offset + at, part)

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
                raise operation_error(error, RegionError, op=op, uri=self.uri) from error
            self._io_eventfds = tuple(IOEventFD(info, self._check_open) for info in infos)
        return self._io_eventfds


_READ: dict[int, Callable[[Region, int], int]] = {
    1: Region.read8,
    2: Region.read16,
    4: Region.read32,
    8: Region.read64,
}
_WRITE: dict[int, Callable[[Region, int, int], None]] = {
    1: Region.write8,
    2: Region.write16,
    4: Region.write32,
    8: Region.write64,
}


def _of_width(methods: Mapping[int, _Method], width: int) -> _Method:
    if width not in methods:
        raise no_such(width)
    return methods[width]


def _is_u64(number: int) -> bool:
    return 0 <= number <= mmio.ALL_ONES[8]


def _fitting(value: int, width: int) -> int:
    value = operator.index(value)
    if not 0 <= value <= mmio.ALL_ONES[width]:
        raise ValueError(f"{value:#x} does not fit into {8 * width} bits")
    return value


def _order(high_first: bool) -> tuple[int, int]:
    """Offsets of the halves of 64 bits, in the order of their accesses."""
    return (4, 0) if high_first else (0, 4)


def _parts(data: memoryview, width: int | None) -> Iterator[tuple[int, memoryview]]:
    """The transfers that a block takes, with their places in it."""
    size = width or len(data)
    return ((at, data[at : at + size]) for at in range(0, len(data), size or 1))
