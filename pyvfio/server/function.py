# SPDX-License-Identifier: BSD-3-Clause
"""A model as a PCI function: its regions, interrupts, reset, and what it may ask of the client.

The function and its model outlive the clients; what belongs to one client (memory, eventfds) comes
with :meth:`PCIFunction.attach_client` and goes with :meth:`PCIFunction.detach_client`.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pyvfio.errors import DMAError
from pyvfio.memory import ByteArray
from pyvfio.native._native import ffi
from pyvfio.server import native_paths
from pyvfio.server.config_space import ModelConfigSpace
from pyvfio.server.contents import Contents
from pyvfio.server.deferred import DeferredAnswers
from pyvfio.server.dma_gate import DMAGate
from pyvfio.server.failures import FAILURES
from pyvfio.server.guest_memory import GuestMemory
from pyvfio.server.interrupts import Interrupts
from pyvfio.server.migration import Migration
from pyvfio.server.model import DeviceModel
from pyvfio.server.msix import MSIXState
from pyvfio.server.regions import Regions
from pyvfio.server.run_control import Kicks, RunControl
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import (
    PCI_NUM_IRQS,
    PCI_NUM_REGIONS,
    PCIIRQ,
    DeviceFlags,
    DMAMapFlags,
    IRQFlags,
)
from pyvfio.vectors import DeviceInfo
from pyvfio.wire.messages import SetIRQs

log = logging.getLogger(__name__)

_Copied = TypeVar("_Copied")
_from_buffer = ffi.from_buffer
_BYTES = ffi.typeof("char[]")
_LITTLE = 1 << 15
"""Bytes that may be allocated before it is known that they can be read, and copied twice."""


class PCIFunction:
    """Hosts a model.

    :param model: the model; it is closed with this object.
    :ivar migration: how it migrates, if the model can.
    :ivar direct_dma: what of its DMA is done in C; it has the client's maps.
    :raises ValueError: its declarations contradict each other.

    Lock order: the model's lock (callbacks run with it), then the function's own (configuration
    space and interrupts; taken for moments).  Neither is held while a deferred answer is awaited.
    """

    def __init__(self, model: DeviceModel) -> None:
        self.model = model
        self._lock = threading.RLock()
        self._config = ModelConfigSpace(model)
        msix = MSIXState(model.msix) if model.msix else None
        self._interrupts = Interrupts(model, self._config, msix)
        self.direct_dma = self._config.direct_dma(native_paths.are_on())
        self._read, self._write = self.direct_dma.read, self.direct_dma.write
        self._control = RunControl(
            model, lock=self._lock, interrupts=self._interrupts, direct=self.direct_dma
        )
        self.regions = Regions(
            model,
            lock=self._lock,
            config=self._config,
            msix=msix,
            interrupts=self._interrupts,
            check_runs=self._control.check,
            reset=self._reset_function,
        )
        self.migration: Migration | None = None
        if model.migration_version:
            contents = Contents(
                model,
                lock=self._lock,
                config=self._config,
                interrupts=self._interrupts,
                msix=msix,
                memory=self.regions.backing,
            )
            self.migration = Migration(contents, self._control)
        self._guest: GuestMemory | None = None
        self._server_thread = 0
        model.attach(self)

    # What the client asks about

    def info(self) -> DeviceInfo:
        """What DEVICE_GET_INFO says."""
        reset = DeviceFlags.RESET if self.model.resettable else DeviceFlags(0)
        return DeviceInfo(DeviceFlags.PCI | reset, PCI_NUM_REGIONS, PCI_NUM_IRQS)

    @property
    def runs(self) -> bool:
        """Whether the device runs, and is not stopped for migration."""
        return self._control.runs

    def irq_info(self, index: int) -> tuple[IRQFlags, int]:
        """Flags and vectors; raises OSError EINVAL where there is no such index."""
        return self._interrupts.info(index)

    # What the client does

    def attach_client(self, guest: GuestMemory, kicks: Kicks) -> None:
        """A client is there, with its memory; it is served by this thread."""
        with self.model.lock, self._lock:
            self._guest = guest
            self._server_thread = threading.get_ident()
        self._control.attach(kicks)

    def detach_client(self) -> None:
        """The client is gone: forget its memory and eventfds, keep the device's state."""
        guest = self._guest
        if guest is not None:
            guest.maps.clear()
            guest.log.stop()
        self._control.attach(None)
        with self.model.lock:
            with self._lock:
                self._guest = None
                self._interrupts.client_lost()
            if self.migration is not None:
                self.migration.client_lost()
            if self._control.runs:
                self._tell_model_of_loss()

    def _tell_model_of_loss(self) -> None:
        try:
            self.model.client_lost()
        except FAILURES:
            log.exception("the model failed when its client left")

    def memory_mapped(self, iova: int, size: int, flags: DMAMapFlags) -> None:
        """See :meth:`DeviceModel.memory_mapped`."""
        with self.model.lock:
            self.model.memory_mapped(iova, size, flags)

    def memory_unmapped(self, iova: int, size: int) -> None:
        """See :meth:`DeviceModel.memory_unmapped`."""
        with self.model.lock:
            self.model.memory_unmapped(iova, size)

    def set_irqs(self, request: SetIRQs, fds: list[int], max_fds: int) -> None:
        """SET_IRQS; descriptors that are kept are removed from ``fds``.  Raises OSError."""
        with self.model.lock, self._lock:
            self._interrupts.set_irqs(request, fds, max_fds)

    def reset(self, deferred: DeferredAnswers) -> None:
        """DEVICE_RESET; the client's memory and eventfds stay.

        :raises OSError: EINVAL; the device has no reset.
        :raises Exception: what the model fails with.
        """
        if not self.model.resettable:
            raise OSError(errno.EINVAL, "the device has no reset")
        self._reset_function(deferred)

    def _reset_function(self, deferred: DeferredAnswers) -> None:
        with self.model.lock:
            with self._lock:
                self._config.reset()
                self._interrupts.device_reset()
            answer = self.model.reset()
            self._control.reset()
            if self.migration is not None:
                self.migration.was_reset()
        deferred.settle(answer)

    def close(self) -> None:
        """Close the model and release the BARs' memory."""
        self._control.gate.close()
        try:
            self.model.close()
        except FAILURES:
            log.exception("the model failed when it was closed")
        self.regions.release()

    # What the model asks

    def dma_read(self, address: int, size: int) -> bytes:
        """See :meth:`DeviceModel.dma_read`."""
        if 0 < size <= _LITTLE:
            target = bytearray(size)
            try:
                if not self._read(address, _from_buffer(target), size):
                    return bytes(target)
            except OverflowError:
                pass  # no such address, as is said below
        return self._copy(address, size, lambda guest: guest.read(address, size))

    def dma_read_into(self, address: int, buffer: Buffer) -> None:
        """See :meth:`DeviceModel.dma_read_into`."""
        try:
            target = _from_buffer(_BYTES, buffer, True)
            if not self._read(address, target, len(target)):
                return
        except BufferError as error:
            raise ValueError(f"no memory to copy to: {error}") from error
        except OverflowError:
            pass  # no such address, as is said below
        view = memoryview(buffer).cast("B")
        self._copy(address, len(view), lambda guest: guest.read_into(address, view))

    def dma_write(self, address: int, data: Buffer) -> None:
        """See :meth:`DeviceModel.dma_write`."""
        try:
            source = _from_buffer(data)
            if not self._write(address, source, len(source)):
                return
        except BufferError as error:
            raise ValueError(f"no memory to copy from: {error}") from error
        except OverflowError:
            pass  # no such address, as is said below
        self._copy(address, len(data), lambda guest: guest.write(address, data))

    @contextmanager
    def dma_view(self, address: int, size: int, writable: bool) -> Iterator[ByteArray]:
        """See :meth:`DeviceModel.dma_view`."""
        gate = self._gate(address)
        try:
            with self._bus_master(address, size).view(address, size, writable) as array:
                yield array
        finally:
            gate.leave()

    def _copy(self, address: int, size: int, copy: Callable[[GuestMemory], _Copied]) -> _Copied:
        """What is not done in C."""
        gate = self._gate(address)
        try:
            return copy(self._bus_master(address, size))
        finally:
            gate.leave()

    def _gate(self, address: int) -> DMAGate:
        """The gate, passed on the way in: DMA waits while the device is stopped."""
        gate = self._control.gate
        gate.enter(address, waits=threading.get_ident() != self._server_thread)
        return gate

    def _bus_master(self, address: int, size: int) -> GuestMemory:
        guest, enabled = self._guest, self._config.is_bus_master
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
        return self.regions.memory(bar)

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
