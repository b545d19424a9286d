# SPDX-License-Identifier: BSD-3-Clause
"""Who can tell what devices have written: a device, the kernel's container, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from pyvfio.dirty_bitmap import DirtyBitmap
from pyvfio.errors import DMAError, RemoteProtocolError, VFIOError, operation_error
from pyvfio.features import Features
from pyvfio.map_table import MapEntry
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import Feature, FeatureFlags
from pyvfio.vectors import ContainerIO, DeviceIO

_Answer = TypeVar("_Answer")

MIN_PAGE = 4096
"""Smallest page that the kernel takes for a log (``SZ_4K`` in ``vfio_main.c``)."""
MAX_PAGE = 1 << 30
_FOUR_GIB = 1 << 32
_END = 1 << 64


class LoggingDevice(Protocol):
    """What a tracker needs of a device."""

    @property
    def features(self) -> Features:
        """Tells whether it can log."""

    @property
    def device_io(self) -> DeviceIO:
        """Has it log."""


class DirtySource(Protocol):
    """One that tells what was written.

    :ivar page_size: bytes of its pages.
    """

    page_size: int

    def report(self, mapping: MapEntry) -> Iterator[DirtyBitmap]:
        """What may have been written in a map since it was asked last, in one or more parts."""

    def stop(self) -> None:
        """Track no more."""


class DeviceLog:
    """The log of one device (``VFIO_DEVICE_FEATURE_DMA_LOGGING_*``).

    A server logs everything; the kernel wants ranges.  They are, as in QEMU's listener, one from
    the first to the last map below 4 GiB and one above: devices can take few ranges, and some need
    as much memory as these are long.  What is mapped later outside of them counts as written.

    :param device: it.
    :param page_size: bytes; what is asked for, the device chooses.
    :param maps: what is mapped now.
    :param uri: for errors.
    :raises DMAError: it refused.
    :raises RemoteProtocolError: it chose pages that make no sense.
    """

    def __init__(
        self, device: LoggingDevice, page_size: int, maps: Sequence[MapEntry], uri: str
    ) -> None:
        self.device = device
        self.outlives_maps = device.device_io.log_outlives_maps
        self._uri = uri
        self._io = device.device_io
        self._ranges = () if self._io.logs_everything else _logged(maps, page_size)
        op = f"start of dma logging in pages of {page_size} bytes"
        self.page_size = _asked(op, uri, lambda: self._io.logging_start(page_size, self._ranges))
        chosen = self.page_size
        if not MIN_PAGE <= chosen <= MAX_PAGE or chosen & (chosen - 1):
            stop_quietly(self)
            raise RemoteProtocolError(f"the device chose {chosen} bytes", op=op, uri=uri)

    @staticmethod
    def supported_by(device: LoggingDevice) -> bool:
        """Whether a device can log."""
        return device.features.probe(Feature.DMA_LOGGING_START, FeatureFlags.SET)

    def report(self, mapping: MapEntry) -> Iterator[DirtyBitmap]:
        """Ask for one map, at once if an answer has room: some servers tell of whole maps only.

        And always in the pages that were chosen: some servers give other pages wrongly, or hang.
        """
        if not self._covers(mapping):
            yield DirtyBitmap.full(mapping.iova, mapping.size, self.page_size)
            return
        step = self._io.max_report * 8 * self.page_size
        for start in range(mapping.iova, mapping.last + 1, step):
            yield self._report(start, min(step, mapping.last + 1 - start))

    def _report(self, iova: int, size: int) -> DirtyBitmap:
        op = f"dma logging report of {size} bytes at iova {iova:#x}"
        page_size = self.page_size
        data = _asked(op, self._uri, lambda: self._io.logging_report(iova, size, page_size))
        return _bitmap(iova, size, page_size, data)

    def _covers(self, mapping: MapEntry) -> bool:
        return self._io.logs_everything or any(
            first <= mapping.iova and mapping.last < first + size for first, size in self._ranges
        )

    def stop(self) -> None:
        """Have the device log no more; raises :class:`DMAError` where it refuses."""
        _asked("stop of dma logging", self._uri, self._io.logging_stop)


def stop_quietly(source: DirtySource) -> None:
    """Stop a source where something has failed already."""
    with suppress(VFIOError):
        source.stop()


def _logged(maps: Sequence[MapEntry], page_size: int) -> tuple[tuple[int, int], ...]:
    """The ranges (address, bytes) of a log in which maps are, in whole pages."""
    found: list[tuple[int, int]] = []
    for low, high in ((0, _FOUR_GIB), (_FOUR_GIB, _END - page_size)):
        inside = [entry for entry in maps if low <= entry.last and entry.iova < high]
        if inside:
            start = max(low, inside[0].iova) // page_size * page_size
            end = min(high, -(-(inside[-1].last + 1) // page_size) * page_size)
            if found and sum(found[-1]) == start:  # a map is on both sides
                start = found.pop()[0]
            found.append((start, end - start))
    return tuple(found) or ((0, page_size),)  # the kernel refuses a log of nothing


class ContainerLog:
    """The kernel's container (``VFIO_IOMMU_DIRTY_PAGES``).

    :param io: its vector.
    :param uri: for errors.
    :raises DMAError: it refused.
    """

    def __init__(self, io: ContainerIO, uri: str) -> None:
        self._io = io
        self._uri = uri
        self.page_size = io.dirty_page_sizes & -io.dirty_page_sizes
        """The only one for which the kernel gives a bitmap."""
        _asked("start of dirty page tracking", uri, io.dirty_start)

    def report(self, mapping: MapEntry) -> Iterator[DirtyBitmap]:
        """Ask for one map, which the kernel insists on."""
        iova, size = mapping.iova, mapping.size
        op = f"dirty pages of {size} bytes at iova {iova:#x}"
        data = _asked(op, self._uri, lambda: self._io.dirty_report(iova, size, self.page_size))
        yield _bitmap(iova, size, self.page_size, data)

    def unmap(self, iova: int, size: int) -> DirtyBitmap:
        """Unmap and ask in one; raises :class:`OSError` as the vector does."""
        return _bitmap(
            iova, size, self.page_size, self._io.dma_unmap_dirty(iova, size, self.page_size)
        )

    def stop(self) -> None:
        """Have the kernel track no more; raises :class:`DMAError` where it refuses."""
        _asked("stop of dirty page tracking", self._uri, self._io.dirty_stop)


class Everything:
    """Nobody can tell: all that a device may write counts as written, each time.

    :param page_size: bytes; any will do.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size

    def report(self, mapping: MapEntry) -> Iterator[DirtyBitmap]:
        """All of it."""
        yield DirtyBitmap.full(mapping.iova, mapping.size, self.page_size)

    def stop(self) -> None:
        """Nothing to do."""


def _bitmap(iova: int, size: int, page_size: int, data: Buffer) -> DirtyBitmap:
    return DirtyBitmap.of(iova, size, page_size, data)


def _asked(op: str, uri: str, question: Callable[[], _Answer]) -> _Answer:
    try:
        return question()
    except OSError as error:
        raise operation_error(error, DMAError, op=op, uri=uri) from error
