# SPDX-License-Identifier: BSD-3-Clause
"""How a region of a device is reached: what of it is mapped, and messages for the rest.

What cannot be is refused here: outside, not aligned, not allowed, closed.
"""

from __future__ import annotations

import errno
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pyvfio.errors import DeviceClosed, RegionError, UnsupportedError, VFIOError, operation_error
from pyvfio.integers import integers
from pyvfio.io_eventfd import IOEventFD
from pyvfio.mapped_areas import MappedArea, map_areas, window_of
from pyvfio.native import mmio, window
from pyvfio.posting import Posting
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import DeviceIO, MmapArea, RegionInfo, ShortAccess

_Answer = TypeVar("_Answer")


class RegionAccess:
    """The ways to a region, for :class:`~pyvfio.region.Region`.

    :param device_io: the vector that reaches it.
    :param info: what the device says of it.
    :param uri: the device, for errors.
    :param posting: whether the device's regions post their writes; shared by all of them.
    :param check_present: raises where the device is gone, given what is asked of it.
    """

    def __init__(
        self,
        device_io: DeviceIO,
        info: RegionInfo,
        uri: str,
        posting: Posting | None = None,
        check_present: Callable[[str], None] | None = None,
    ) -> None:
        self.info = info
        self._posting = posting or Posting(device_io.flush)
        self._posted: bool | None = None
        self._device_io = device_io
        self.uri = uri
        self._readable = bool(info.flags & RegionFlags.READ)
        self._writable = bool(info.flags & RegionFlags.WRITE)
        self._check_present = check_present
        self._lock = threading.Lock()
        self._areas: list[MappedArea] | None = None
        self._window = window_of(info)
        self._io_eventfds: tuple[IOEventFD, ...] | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """How errors call the region."""
        return f"region {self.info.index}"

    writes_in_c = True
    """Whether C may write registers of the region that are not mapped, or :meth:`_write_register`
    has to see every write."""

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
        return self._wants_posting and not self._posting.over

    @posted.setter
    def posted(self, wanted: bool) -> None:
        with self._lock:
            self._posted = wanted
            if self._areas is not None:
                self._show(self._areas)

    @property
    def _wants_posting(self) -> bool:
        wanted = self._posting.default if self._posted is None else self._posted
        return wanted and self.postable

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.info.size

    @property
    def mappable(self) -> tuple[MmapArea, ...]:
        """The areas that can be mapped; the rest is reached by reads and writes."""
        return self.info.areas

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def window(self) -> window.Window:
        """The region as C sees it; nothing of it can be reached before the first access."""
        return self._window

    def check_waiting(self, verb: str, offset: int) -> None:
        """Raise where the device is gone, and nobody need wait for a register of it."""
        self._check_open(verb)
        if self._check_present is not None:
            self._check_present(self.op(verb, offset))

    # Ways

    def _area(self, offset: int, size: int) -> MappedArea | None:
        for area in self._mapped():
            if area.holds(offset, size):
                return area
        return None

    def _mapped(self) -> list[MappedArea]:
        """The areas, mapped at first use; what cannot be mapped is read and written instead."""
        areas = self._areas
        while areas is None:
            self._check_open("map")
            info = self.info
            areas = self._install(info, list(map_areas(info, self.name, self.uri)))
        return areas

    def _install(self, info: RegionInfo, areas: list[MappedArea]) -> list[MappedArea] | None:
        """Use areas, unless another thread was faster; None where they are not the region's."""
        if areas:
            self._posting.end()
        with self._lock:
            self._check_open("map")
            if self.info is not info:
                return None
            if self._areas is None:
                self._show(areas)
                self._areas = areas
            return self._areas

    def _show(self, areas: list[MappedArea]) -> None:
        """Show C what is mapped, and how the rest is reached; with the lock held."""
        registers = self._device_io.register_messages(self.info.index)
        is_over = self._posting.is_over if self._wants_posting else None
        messages = None if registers is None else registers.in_c(self.writes_in_c, is_over)
        self._window = window_of(self.info, areas, messages)

    def _asked(
        self, verb: str, offset: int, width: int, ask: Callable[..., _Answer], *how: Any
    ) -> _Answer:
        """Have the vector ``ask`` the device for a register."""
        try:
            return ask(*how)
        except OSError as error:
            raise self._access_error(verb, offset, width, error) from error

    def _write_register(self, offset: int, width: int, value: int) -> None:
        write, index, posted = self._device_io.register_write, self.info.index, self.posted
        self._asked("write", offset, width, write, index, offset, width, value, posted)
        self._end_posting(posted)

    def _end_posting(self, posted: bool) -> None:
        """Wait for what was posted while another thread has ended posting, and not seen it."""
        if posted and self._posting.over:
            self._device_io.flush()

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

    def _write_trapped(self, offset: int, data: Buffer) -> None:
        posted = self.posted
        try:
            count = self._device_io.region_write(self.info.index, offset, data, posted=posted)
        except OSError as error:
            raise self._failed("write", error, offset) from error
        self._end_posting(posted)
        if count != len(data):
            raise self._short("write", offset, len(data), count)

    def _failed(self, verb: str, error: OSError, offset: int) -> VFIOError:
        return operation_error(error, RegionError, op=self.op(verb, offset), uri=self.uri)

    # Checks

    def check_register(self, verb: str, offset: int, width: int, *, halves: bool = False) -> None:
        """Raise what an access that cannot be raises.

        :param verb: ``read`` or ``write``.
        :param halves: it is made in two halves.
        """
        if width not in mmio.READ:
            raise no_such(width)
        self._check_range(verb, offset, width)
        self._check_multiple(verb, offset, offset, width // 2 if halves else width)

    def _check_block(self, verb: str, offset: int, size: int, width: int | None) -> None:
        self._check_range(verb, offset, size)
        if width is None:
            return
        if width not in mmio.READ:
            raise no_such(width)
        self._check_multiple(verb, offset, offset | size, width)

    def _check_many(
        self, offsets: npt.ArrayLike, values: npt.ArrayLike, width: int
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        places, numbers = np.broadcast_arrays(integers(offsets), integers(values))
        if places.ndim > 1:
            raise ValueError(f"{places.ndim} dimensions of registers")
        for offset in {int(bound(places)) for bound in (np.min, np.max) if places.size}:
            self._check_range("write", offset, width)
        self.check_register("write", 0, width)
        if (places % width).any():
            self.check_register("write", int(places[(places % width).argmax()]), width)
        if (numbers > mmio.ALL_ONES[width]).any():
            raise ValueError(f"{int(numbers.max()):#x} does not fit into {8 * width} bits")
        return places.ravel(), numbers.ravel()

    def _check_multiple(self, verb: str, offset: int, number: int, width: int) -> None:
        if number % width:
            raise RegionError(
                f"not a multiple of the {width} bytes of the access",
                op=self.op(verb, offset),
                uri=self.uri,
                errno=errno.EINVAL,
            )

    def _check_range(self, verb: str, offset: int, size: int) -> None:
        if self._closed:
            self._check_open(verb)
        if offset < 0 or size < 0 or offset + size > self.info.size:
            raise RegionError(
                f"{size} bytes are outside of the region's {self.info.size:#x}",
                op=self.op(verb, offset),
                uri=self.uri,
                errno=errno.EINVAL,
            )
        if not (self._readable if verb == "read" else self._writable):
            raise self._denied(verb, offset)

    def _check_open(self, verb: str) -> None:
        if self._closed:
            raise DeviceClosed("the device is closed", op=f"{verb} {self.name}", uri=self.uri)

    def op(self, verb: str, offset: int) -> str:
        """How errors call an access."""
        return f"{verb} {self.name}+{offset:#x}"

    def _short(self, verb: str, offset: int, wanted: int, got: int) -> RegionError:
        reason = f"{got} of {wanted} bytes were transferred"
        return RegionError(reason, op=self.op(verb, offset), uri=self.uri, errno=errno.EIO)

    def _denied(self, verb: str, offset: int) -> RegionError:
        """For what the region does not allow: on mapped memory it would end the process, and a
        posted write would vanish without a word.
        """
        return RegionError(
            f"the region cannot be {'read' if verb == 'read' else 'written'}",
            op=self.op(verb, offset),
            uri=self.uri,
            errno=errno.EACCES,
        )

    def _not_mapped(self, verb: str, offset: int, size: int | None) -> UnsupportedError:
        return UnsupportedError(
            f"no mapped area holds offset {offset:#x}, {size or 'any'} bytes",
            op=f"{verb} {self.name}",
            uri=self.uri,
            hint="use read_bytes() and write_bytes()",
        )

    def fault(self, verb: str, offset: int) -> RegionError:
        """What to raise where a mapped access found no memory."""
        return RegionError(
            "no memory answers at the mapped address",
            op=self.op(verb, offset),
            uri=self.uri,
            errno=errno.EFAULT,
            hint="is memory decoding off, the device gone, or its file truncated?",
        )

    def move_to(self, device_io: DeviceIO, info: RegionInfo) -> bool:
        """Reach the region through another vector; called when the device is reached again.

        :returns: whether a numpy view of what was mapped before is alive.
        """
        with self._lock:
            self._device_io, self.info = device_io, info
        for entry in self._io_eventfds or ():
            entry.retire()
        self._io_eventfds = None
        return self._unmap()

    def _unmap(self) -> bool:
        """Let go of what is mapped; returns whether a numpy view of it is alive."""
        with self._lock:
            areas, self._areas = self._areas or [], None
            self._window = window_of(self.info)
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
                f"{self.uri}: a numpy view of {self.name} is alive; the device file stays mapped"
                " until it is deleted",
                ResourceWarning,
                stacklevel=2,
            )


def no_such(width: int) -> ValueError:
    """What to raise for a width that no access has."""
    return ValueError(f"an access of {width} bytes; 1, 2, 4 and 8 exist")
