# SPDX-License-Identifier: BSD-3-Clause
"""``VFIOBase``: a device opened through VFIO, whichever way it is reached.

A backend subclasses it, sets up its transport, provides the two vectors of
:mod:`pyvfio.vectors`, and overrides nothing that users call.  The class is the counterpart of
QEMU's "VFIO base abstract class".
"""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TypeVar

from pyvfio.closing import Closing
from pyvfio.container import Container
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    IRQError,
    OperationError,
    RegionError,
    RemoteProtocolError,
    ResetError,
    UnsupportedError,
    VFIOError,
    operation_error,
)
from pyvfio.features import Features
from pyvfio.irq import IRQSet
from pyvfio.posting import Posting
from pyvfio.reconnection import Reconnection, check_same_device
from pyvfio.region import Region
from pyvfio.uapi.vfio import DeviceFlags, IRQFlags, IRQSetFlags
from pyvfio.vectors import (
    MAX_IRQS,
    MAX_REGIONS,
    MAX_VECTORS,
    ContainerIO,
    DeviceInfo,
    DeviceIO,
    IRQInfo,
    RegionInfo,
    Vectors,
)

_RegionKind = TypeVar("_RegionKind", bound=Region)
_Answer = TypeVar("_Answer")


class VFIOBase(Closing, ABC):
    """A device opened through VFIO, whichever way it is reached.

    A subclass sets up its transport in ``__init__``, pushes what undoes each step onto
    :attr:`_undo` (it runs in reverse at close, and where opening fails half way), and ends with
    :meth:`_attach`.

    :param uri: what the user opened; errors name it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._pid = os.getpid()
        self._undo = ExitStack()
        self._closed = False
        self._loss: VFIOError | None = None
        self._lock = threading.RLock()
        self._regions: dict[int, Region] = {}
        self._irq_sets: set[IRQSet] = set()

    @property
    @abstractmethod
    def device_io(self) -> DeviceIO:
        """The operations vector of the device."""

    @property
    @abstractmethod
    def container_io(self) -> ContainerIO:
        """The operations vector of its IO address space."""

    def _attach(self, container: Container, *, posted_writes: bool = False) -> None:
        """Ask the device what it is; last step of opening.

        :param container: the IO address space that the device is in; the subclass closes it.
        :param posted_writes: whether memory BARs post their writes where nobody says otherwise.
        """
        self._dma = container
        self._posting = Posting(self.flush, posted_writes)
        self._info = self._ask("get device info", OperationError, self.device_io.get_info)
        if self._info.num_regions > MAX_REGIONS or self._info.num_irqs > MAX_IRQS:
            raise RemoteProtocolError(
                f"the device announces {self._info.num_regions} regions"
                f" and {self._info.num_irqs} interrupt indexes",
                uri=self.uri,
            )
        self._undo.callback(self._close_children)
        container.dirty.join(self)
        self._undo.callback(container.dirty.leave, self)

    # What the device is

    @property
    def info(self) -> DeviceInfo:
        """Flags and numbers, asked once."""
        return self._info

    def region(self, index: int, kind: type[_RegionKind] | None = None) -> Region:
        """Region ``index``; its info is asked once and kept.

        :param kind: the class to make of it at first use.
        :raises RegionError: the device has no such region, or refuses to tell.
        """
        with self._lock:
            self.check_open(f"region {index}")
            found = self._regions.get(index)
            if found is None:
                info = self._region_info(index)
                found = (kind or Region)(
                    self.device_io, info, self.uri, self._posting, self.check_present
                )
                self._regions[index] = found
            return found

    def _region_info(self, index: int) -> RegionInfo:
        op = f"get info of region {index}"
        if not 0 <= index < self._info.num_regions:
            raise RegionError(
                f"the device has {self._info.num_regions} regions",
                op=op,
                uri=self.uri,
                errno=errno.EINVAL,
            )
        return self._ask(op, RegionError, lambda: self.device_io.get_region_info(index))

    def irq_info(self, index: int) -> IRQInfo:
        """Interrupt index ``index``; count 0 where the device does not implement it."""
        op = f"get info of irq {index}"
        self.check_open(op)
        if not 0 <= index < self._info.num_irqs:
            return IRQInfo(index, IRQFlags(0), 0)
        found = self._ask(op, IRQError, lambda: self.device_io.get_irq_info(index))
        if found.count > MAX_VECTORS:
            raise RemoteProtocolError(f"{found.count} vectors", op=op, uri=self.uri)
        return found

    @property
    def features(self) -> Features:
        """What the device can do besides what every device can (``VFIO_DEVICE_FEATURE``)."""
        return Features(lambda: self.device_io, self.check_open, self.uri)

    @property
    def dma(self) -> Container:
        """The device's IO address space."""
        return self._dma

    def flush(self) -> None:
        """Return when every posted write has been carried out by the device.

        :raises ConnectionLost: the device is gone; what became of them is not known.
        :raises VFIOTimeout: it does not answer.
        """
        self.check_open("flush")
        self._ask("flush", OperationError, self.device_io.flush)

    # Interrupts

    def enable_irqs(self, index: int, count: int) -> IRQSet:
        """Have vectors 0 to ``count`` - 1 of an interrupt index signal eventfds.

        :raises IRQError: the device has fewer, or refuses.
        """
        op = f"enable {count} vectors of irq {index}"
        available = self.irq_info(index)
        if not 1 <= count <= available.count:
            raise IRQError(f"the device has {available.count} vectors", op=op, uri=self.uri)
        with self._lock:
            if any(other.index == index for other in self._irq_sets):
                raise IRQError(
                    "it is enabled already",
                    op=op,
                    uri=self.uri,
                    errno=errno.EBUSY,
                    hint="close its IRQSet first",
                )
            irqs = self._ask(op, IRQError, lambda: IRQSet(self, available, count))
            try:
                self._signal(irqs)
            except BaseException:
                irqs.release()
                raise
            self._irq_sets.add(irqs)
            return irqs

    def _signal(self, irqs: IRQSet) -> None:
        """Have the vectors of a set signal its eventfds, all of them or none."""
        try:
            self.set_irqs(irqs.index, IRQSetFlags.TRIGGER, 0, len(irqs), eventfds=irqs.filenos())
        except BaseException:
            # Some of the vectors may have been enabled, where it took several messages.
            with suppress(VFIOError):
                self.set_irqs(irqs.index, IRQSetFlags.TRIGGER, 0, 0)
            raise

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
        """``VFIO_DEVICE_SET_IRQS``, see :meth:`DeviceIO.set_irqs`; raises :class:`IRQError`."""
        op = f"{action.name} irq {index} vectors {start} to {start + count - 1}".lower()
        self.check_open(op)

        def set_irqs() -> None:
            self.device_io.set_irqs(index, action, start, count, eventfds=eventfds, bools=bools)

        self._ask(op, IRQError, set_irqs)

    def forget_irqs(self, irqs: IRQSet) -> None:
        """An :class:`IRQSet` was closed; called by it."""
        with self._lock:
            self._irq_sets.discard(irqs)

    # Reset and life

    def reset(self) -> None:
        """Reset the device; its interrupts and DMA maps stay set up.

        :raises UnsupportedError: the device cannot be reset.
        :raises ResetError: it refused.
        """
        self.check_open("reset")
        if not self._info.flags & DeviceFlags.RESET:
            raise UnsupportedError("the device has no reset", op="reset", uri=self.uri)
        self._ask("reset", ResetError, self.device_io.reset)

    def hot_reset(self) -> None:
        """Reset the bus or slot that the device is in, and every device there with it.

        :raises UnsupportedError: the backend has no buses.
        :raises ResetError: it refused, or somebody else owns a device that would be reset.
        """
        self.check_open("hot reset")
        self._ask("hot reset", ResetError, self.device_io.hot_reset)

    def hot_reset_functions(self) -> Sequence[str]:
        """The PCI addresses of what :meth:`hot_reset` resets, this device's among them.

        :raises UnsupportedError: the backend has no buses.
        :raises ResetError: the device is in no bus or slot that can be reset.
        """
        self.check_open("hot reset")
        return self._ask("hot reset", ResetError, self.device_io.hot_reset_functions)

    def reconnect(
        self, timeout: float = 0.0, check: Callable[[DeviceIO], None] | None = None
    ) -> Reconnection:
        """Reach a device again whose server was started again, or closed the connection.

        A connection that lives is given up first, which loses the device as if the server had.
        Regions, DMA memory at its addresses and enabled interrupts are set up as they were;
        everything else is the owner's to see to: see :class:`Reconnection`.  Until it succeeds the
        device stays lost, and it may be tried again.

        Vectors that were masked are not masked again.

        :param timeout: seconds to wait for the server to start; :meth:`close` waits as long.
        :param check: looks at the device before anything is given to it; raises to refuse it.
        :raises UnsupportedError: the backend cannot lose its device and find it again.
        :raises OpenError: the server cannot be reached, or serves another device.
        :raises ConnectionLost: it is gone again.
        :raises ValueError: within a batch of :attr:`dma`, or a time-out that is none.
        :raises VFIOError: another failure of opening.
        """
        with self._lock:
            self._check_reconnect(timeout)
            vectors = self._reach_again(timeout)
            try:
                regions = {index: region.info for index, region in self._regions.items()}
                infos = self._ask(
                    "reconnect",
                    OperationError,
                    lambda: check_same_device(vectors.device_io, self._info, regions, self.uri),
                )
                if check is not None:
                    self._ask("reconnect", OperationError, lambda: check(vectors.device_io))
            except BaseException:
                vectors.close()
                raise
            try:
                return self._move_to(vectors, infos)
            except BaseException as error:  # half of it is set up: it is to be tried again
                if not self.lost:
                    reason = f"not reached again: {error or type(error).__name__}"
                    self._mark_lost(ConnectionLost(reason, uri=self.uri))
                raise

    def _check_reconnect(self, timeout: float) -> None:
        self.check_open("reconnect")
        if not timeout >= 0:
            raise ValueError(f"reconnect {self.uri}: a timeout of {timeout} s")
        if os.getpid() != self._pid:
            raise DeviceClosed("the device is the parent's", op="reconnect", uri=self.uri)
        self._dma.check_no_batch("reconnect()")

    def _move_to(self, vectors: Vectors, infos: Mapping[int, RegionInfo]) -> Reconnection:
        unflushed = self.device_io.unflushed
        # While the loss is known nobody takes these for new ones.
        signals = sum(irqs.drain() for irqs in self._irq_sets)
        self._loss = None
        self._use(vectors)
        stale = [
            region.name
            for index, region in self._regions.items()
            if region.move_to(vectors.device_io, infos[index])
        ]
        failures = (*self._dma.move_to(vectors.container_io), *self._enable_irqs_again())
        return Reconnection(
            maps=len(self._dma.mappings),
            vectors=sum(len(irqs) for irqs in self._irq_sets),
            failures=failures,
            signals=signals,
            stale_views=tuple(stale),
            unflushed=unflushed,
        )

    def _enable_irqs_again(self) -> list[VFIOError]:
        failures = []
        for irqs in list(self._irq_sets):
            try:
                self._signal(irqs)
            except ConnectionLost:
                raise  # it may be tried again, with all that there is
            except VFIOError as error:
                failures.append(error)
                irqs.release()
        return failures

    def _reach_again(self, seconds: float) -> Vectors:
        """New vectors for the device; a backend that can lose its device overrides this."""
        raise UnsupportedError("the device cannot be lost", op="reconnect", uri=self.uri)

    def _use(self, vectors: Vectors) -> None:
        """Have the properties of this class give the vectors of :meth:`_reach_again`."""
        raise UnsupportedError("the device cannot be lost", op="reconnect", uri=self.uri)

    @property
    def lost(self) -> bool:
        """Whether the device is gone; :meth:`reconnect` may find it again."""
        return self._loss is not None

    def check_present(self, op: str) -> None:
        """Raise :class:`ConnectionLost` or :class:`DeviceClosed` where the device is no more."""
        if self._loss is not None:
            raise ConnectionLost(self._loss.reason, op=op, uri=self.uri)
        if self._closed:
            self.check_open(op)

    def _mark_lost(self, error: VFIOError) -> None:
        """The device is gone: wake everybody who waits for it.  Called by the backend."""
        self._loss = error
        for irqs in list(self._irq_sets):
            irqs.wake()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Disable interrupts, unmap DMA memory and BARs, let go of the device.  May be repeated.

        Waits for a call of another thread that asks the device for a region or enables interrupts.
        In the child of a fork it does nothing: the device is the parent's.
        """
        if os.getpid() != self._pid:
            self._closed = True
            return
        with self._lock:
            if self._closed:
                return
            try:
                self._undo.close()
            finally:
                self._closed = True

    def _close_children(self) -> None:
        # Nothing is said to the device: losing its descriptors disables its interrupts and unmaps
        # its memory, on both backends, and that works with a device that does not answer as well.
        with ExitStack() as closing:
            for region in self._regions.values():
                closing.callback(region.close)
            for irqs in list(self._irq_sets):
                closing.callback(irqs.release)

    def _ask(
        self, op: str, failure: type[OperationError], question: Callable[[], _Answer]
    ) -> _Answer:
        try:
            return question()
        except OSError as error:
            raise operation_error(error, failure, op=op, uri=self.uri) from error

    def check_open(self, op: str) -> None:
        """Raise :class:`DeviceClosed` after :meth:`close`."""
        if self._closed:
            raise DeviceClosed("the device is closed", op=op, uri=self.uri)
