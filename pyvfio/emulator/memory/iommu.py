# SPDX-License-Identifier: BSD-3-Clause
"""A virtual IOMMU as a region: what a device sees there is what the guest has mapped.

QEMU's ``IOMMUMemoryRegion``: accesses are translated one by one, and who maps memory for a device
hears of maps and unmaps as the guest makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyvfio.emulator.memory.address_space import AddressSpace
from pyvfio.emulator.memory.calls import Calls
from pyvfio.emulator.memory.region import MAP_LOCK
from pyvfio.emulator.memory.terminal import TerminalRegion, all_ones
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DMAMapFlags

NO_ACCESS = DMAMapFlags(0)


@dataclass(frozen=True, slots=True)
class IOTLBEntry:
    """Addresses that are translated alike: one page, or as many as lie and are mapped together.

    :ivar iova: the first address, as the device sees it, from the start of the region.
    :ivar translated: the first address in the target.
    :ivar mask: bytes less one; both addresses are multiples of the bytes.
    :ivar permission: what the device may do; nothing is an unmap, or that nothing is mapped.
    :raises ValueError: sizes or addresses make no sense.
    """

    iova: int
    translated: int
    mask: int
    permission: DMAMapFlags

    def __post_init__(self) -> None:
        if self.mask < 0 or self.mask & (self.mask + 1):
            raise ValueError(f"a translation of {self.mask + 1} bytes")
        for address in (self.iova, self.translated):
            if address < 0 or address & self.mask:
                raise ValueError(f"a translation of {self.mask + 1:#x} bytes at {address:#x}")

    @property
    def last(self) -> int:
        """The last address that it translates."""
        return self.iova | self.mask


class IOMMUNotifier:
    """Who wants to hear of maps and unmaps.

    :param first: the first address of interest, from the start of the region.
    :param last: the last one.
    :param callback: is called with each entry that has an address of interest; with others in it
        as well, perhaps.
    """

    def __init__(self, first: int, last: int, callback: Callable[[IOTLBEntry], None]) -> None:
        self.first = first
        self.last = last
        self.callback = callback

    def wants(self, entry: IOTLBEntry) -> bool:
        """Whether an entry has an address of interest."""
        return entry.iova <= self.last and self.first <= entry.last


class IOMMURegion(TerminalRegion):
    """Addresses that a virtual IOMMU translates.

    :param target: where translated addresses are.
    :param translate: what :meth:`translate` does; a subclass may override it instead.
    """

    def __init__(
        self,
        name: str,
        size: int,
        target: AddressSpace,
        translate: Callable[[int, bool], IOTLBEntry] | None = None,
    ) -> None:
        super().__init__(name, size)
        self.target = target
        self._translate = translate
        self._notifiers: list[IOMMUNotifier] = []

    @property
    def kind(self) -> str:
        return "iommu"

    def translate(self, iova: int, is_write: bool) -> IOTLBEntry:
        """The entry for an address; one without permission where nothing is mapped.

        :param is_write: what is asked for; the permission told is the page's all the same.
        """
        if self._translate is None:
            raise NotImplementedError(f"{self!r} translates nothing")
        return self._translate(iova, is_write)

    def entries(self, first: int, last: int) -> Iterator[IOTLBEntry]:
        """What is mapped from ``first`` to ``last``, in order.

        By asking :meth:`translate` from one entry to the next, so that large entries for what is
        not mapped make it fast.  Override it where there is a table, or where asking is noted.
        """
        while first <= last:
            entry = self._entry(first, is_write=False)
            if entry.permission:
                yield entry
            first = entry.last + 1

    def _entry(self, iova: int, is_write: bool) -> IOTLBEntry:
        entry = self.translate(iova, is_write)
        if not entry.iova <= iova <= entry.last:
            raise ValueError(f"{self!r} translates {iova:#x} by {entry}")
        return entry

    # Notifications

    def notify(self, entry: IOTLBEntry) -> None:
        """Say that addresses are mapped, or are not any more (no permission).

        What is mapped to something else must be unmapped first.

        :raises BaseException: what a notifier raised first; all were told.
        """
        with MAP_LOCK:
            calls = Calls()
            for notifier in tuple(self._notifiers):
                if notifier.wants(entry):
                    calls.make(notifier.callback, entry)
            calls.end()

    def add_notifier(self, notifier: IOMMUNotifier) -> None:
        """Tell somebody of maps and unmaps from now on.

        :raises ValueError: it is told already, or has no addresses of the region.
        """
        with MAP_LOCK:
            if notifier in self._notifiers:
                raise ValueError(f"a notifier of {self.name} is there already")
            if not 0 <= notifier.first <= notifier.last < self.size:
                raise ValueError(f"a notifier of {self.name} from {notifier.first:#x} on")
            self._notifiers.append(notifier)

    def remove_notifier(self, notifier: IOMMUNotifier) -> None:
        """Tell it no more; :raises ValueError: it was not told."""
        with MAP_LOCK:
            self._notifiers.remove(notifier)

    def replay(self, notifier: IOMMUNotifier) -> None:
        """Tell a notifier what is mapped now.

        :raises BaseException: what it raised first; it was told of all.
        """
        with MAP_LOCK:
            calls = Calls()
            for entry in self.entries(notifier.first, notifier.last):
                calls.make(notifier.callback, entry)
            calls.end()

    # Accesses of the device

    def _load(self, offset: int, width: int) -> int:
        entry = self._entry(offset, is_write=False)
        if not entry.permission & DMAMapFlags.READ:
            return all_ones(width)
        if offset + width - 1 > entry.last:
            return int.from_bytes(self.read_bytes(offset, width), "little")
        return self.target.read(entry.translated | offset & entry.mask, width)

    def _store(self, offset: int, width: int, value: int) -> None:
        entry = self._entry(offset, is_write=True)
        if offset + width - 1 > entry.last:
            self.write_bytes(offset, value.to_bytes(width, "little"))
        elif entry.permission & DMAMapFlags.WRITE:
            self.target.write(entry.translated | offset & entry.mask, width, value)

    def read_bytes(self, offset: int, size: int) -> bytes:
        """Any number of bytes; ones where the device may not read."""
        parts = []
        for entry, at, length in self._pieces(offset, size, is_write=False):
            if entry.permission & DMAMapFlags.READ:
                address = entry.translated | at & entry.mask
                parts.append(self.target.read_bytes(address, length))
            else:
                parts.append(b"\xff" * length)
        return b"".join(parts)

    def write_bytes(self, offset: int, data: Buffer) -> None:
        """Any number of bytes; dropped where the device may not write."""
        view = memoryview(data).cast("B")
        for entry, at, length in self._pieces(offset, len(view), is_write=True):
            if entry.permission & DMAMapFlags.WRITE:
                address = entry.translated | at & entry.mask
                self.target.write_bytes(address, view[at - offset : at - offset + length])

    def _pieces(
        self, offset: int, size: int, is_write: bool
    ) -> Iterator[tuple[IOTLBEntry, int, int]]:
        """(entry, first address, bytes) of each entry that translates a part of a range."""
        end = offset + size
        while offset < end:
            entry = self._entry(offset, is_write)
            length = min(end, entry.last + 1) - offset
            yield entry, offset, length
            offset += length
