# SPDX-License-Identifier: BSD-3-Clause
"""What a device model is made of: declarations, callbacks, and the services it may call.

A model subclasses :class:`DeviceModel`, declares its identity, BARs and interrupts as class
attributes, and implements the register callbacks.  The server does the rest: configuration space,
capabilities, MSI-X table, mapped memory, the protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pyvfio.memory import ByteArray
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import BARType
from pyvfio.uapi.vfio import DMAMapFlags


@dataclass(frozen=True, slots=True)
class Identity:
    """The ids of a PCI function; ``class_code`` has 24 bits."""

    vendor_id: int
    device_id: int
    class_code: int
    revision_id: int = 0
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0


@dataclass(frozen=True, slots=True)
class ModelBAR:
    """One BAR of a model.

    :ivar size: bytes, a power of two.
    :ivar type: the space that it claims; a 64-bit BAR takes two numbers.
    :ivar backed: the server keeps its contents in shared memory, without callbacks.  What a client
        reads or writes of a register's width, aligned, is one access of that memory; the model's
        lock is not held for it.
    :ivar mappable: (offset, size) of the parts of a backed BAR that clients may map: whole pages,
        or all of a BAR that is smaller than a page.
    """

    size: int
    type: BARType = BARType.MEM32
    prefetchable: bool = False
    backed: bool = False
    mappable: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelMSI:
    """MSI with ``vectors`` (1, 2, 4 ... 32) 64-bit messages."""

    vectors: int = 1


@dataclass(frozen=True, slots=True)
class ModelMSIX:
    """MSI-X; ``table`` and ``pba`` are (BAR, offset), served by the server."""

    vectors: int
    table: tuple[int, int]
    pba: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ModelCapability:
    """A capability that the server only stores.

    :ivar body: the bytes behind the header (2 bytes; 4 of an extended capability).
    :ivar writable: which bits of the body a client may change; none by default.
    """

    id: int
    body: bytes
    writable: bytes = b""
    version: int = 1


@dataclass(frozen=True, slots=True)
class ModelIOEventFD:
    """A register write that may come as the kick of an eventfd (KVM's ioeventfd) as well.

    Clients learn of it by DEVICE_GET_REGION_IO_FDS.  Each kick arrives as a call of ``bar_write``,
    from a thread of the server's; kicks and writes of one client are not ordered.

    :ivar bar: a BAR that has callbacks: not backed.
    :ivar offset: bytes from its start, a multiple of the width.
    :ivar size: width of the write, 1, 2, 4 or 8; 0 stands for any, and arrives as 4 bytes.
    :ivar datamatch: the value that is written; None for any, and 0 arrives.
    """

    bar: int
    offset: int
    size: int = 0
    datamatch: int | None = None

    @property
    def width(self) -> int:
        """Bytes that ``bar_write`` is called with."""
        return self.size or 4

    @property
    def data(self) -> bytes:
        """The write that a kick stands for, little-endian."""
        return (self.datamatch or 0).to_bytes(self.width, "little")


class ModelServices(Protocol):
    """What the server does for a model; any thread may ask."""

    def dma_read(self, address: int, size: int) -> bytes:
        """Read the client's memory."""

    def dma_read_into(self, address: int, buffer: Buffer) -> None:
        """Fill a buffer from the client's memory."""

    def dma_write(self, address: int, data: Buffer) -> None:
        """Write the client's memory."""

    def dma_view(
        self, address: int, size: int, writable: bool
    ) -> AbstractContextManager[ByteArray]:
        """The client's memory itself."""

    def bar_memory(self, bar: int) -> ByteArray:
        """The contents of a backed BAR."""

    def set_intx(self, level: bool) -> None:
        """Assert or lower the interrupt pin."""

    def msi_enabled(self) -> bool:
        """Whether the client uses MSI."""

    def send_msi(self, vector: int) -> None:
        """Send a message-signalled interrupt."""

    def msix_enabled(self) -> bool:
        """Whether the client uses MSI-X."""

    def send_msix(self, vector: int) -> None:
        """Send an MSI-X interrupt, or set its pending bit where it is masked."""


class DeviceModel:
    """Base of device models.

    Callbacks run with :attr:`lock` held, one at a time.  A thread of the model's own takes the
    lock around what it shares with them, and must not hold it while it calls :meth:`dma_read` or
    :meth:`dma_write`: a client may be unable to serve those while its own access waits.

    :meth:`bar_read`, :meth:`bar_write` and :meth:`reset` may return a future of their result
    instead, which another thread completes.  The client's next request is carried out when it is
    done; the lock is not held meanwhile.  The future is cancelled when the client leaves or the
    server stops, so whoever completes it asks it first (``set_running_or_notify_cancel``), as
    executors do.

    A callback that raises :class:`OSError` has its errno told to the client, any other exception
    EIO; the model goes on to be served.  (SystemExit and KeyboardInterrupt end the process.)

    A model that can be migrated has a :attr:`migration_version`, and implements :meth:`save_state`
    and :meth:`load_state`; the server saves configuration space, MSI-X, interrupts that have not
    been delivered, and backed memory.  While it is stopped no register is accessed.  A model with
    threads of its own quiesces them in :meth:`stopped`; where it does not, their DMA waits until
    the device runs again, and their interrupts are held.  DMA that waits when the device is reset,
    or has taken on the state of another, fails with ECANCELED: it is of the state before.

    :cvar identity: vendor, device, class ...
    :cvar bars: the BARs by number.
    :cvar rom: contents of the expansion ROM, at most 16 MiB; empty for none.  What is missing to
        the power of two that it claims reads as ones.
    :cvar io_eventfds: registers that can be kicked through an eventfd.
    :cvar interrupt_pin: 1 to 4 for INTA to INTD, 0 for none.
    :cvar msi: MSI, if the device has it.
    :cvar msix: MSI-X, if the device has it.
    :cvar express: a PCI Express function, with 4 KiB of configuration space.
    :cvar resettable: the client may reset it.
    :cvar migration_version: of what :meth:`save_state` gives, from 1 on; 0 for a model that cannot
        be migrated.
    :cvar capabilities: further capabilities, in the order of the list.
    :cvar extended_capabilities: those behind the first 256 bytes of an Express function.
    """

    identity: ClassVar[Identity]
    bars: ClassVar[Mapping[int, ModelBAR]] = {}
    rom: ClassVar[bytes] = b""
    io_eventfds: ClassVar[Sequence[ModelIOEventFD]] = ()
    interrupt_pin: ClassVar[int] = 0
    msi: ClassVar[ModelMSI | None] = None
    msix: ClassVar[ModelMSIX | None] = None
    express: ClassVar[bool] = False
    resettable: ClassVar[bool] = True
    migration_version: ClassVar[int] = 0
    capabilities: ClassVar[Sequence[ModelCapability]] = ()
    extended_capabilities: ClassVar[Sequence[ModelCapability]] = ()

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._services: ModelServices | None = None

    # To be implemented

    def bar_read(self, bar: int, offset: int, width: int) -> int | Future[int]:
        """A read of ``width`` bytes (1, 2, 4, 8), aligned; all ones where nothing answers."""
        return (1 << 8 * width) - 1

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> Future[None] | None:
        """A write of ``width`` bytes (1, 2, 4, 8), aligned; dropped where nothing answers."""
        return None

    def reset(self) -> Future[None] | None:
        """Back to the state after power-on; the server resets configuration space itself."""
        return None

    def memory_mapped(self, iova: int, size: int, flags: DMAMapFlags) -> None:
        """The client lets the device reach ``size`` bytes of its memory at ``iova``.

        :param flags: which accesses it allows.
        :raises Exception: the map is refused and undone.
        """

    def memory_unmapped(self, iova: int, size: int) -> None:
        """The client takes away what it mapped; it can be reached until this returns.

        Called for what a client leaves behind as well, where only memory that the client passed a
        descriptor for can be reached still.  An exception is told to the client, but the memory
        is gone.
        """

    def client_lost(self) -> None:
        """The client has gone; its memory and interrupts are gone with it, the state stays.

        Not called while the device is stopped for migration: its state is the next client's then.
        """

    def close(self) -> None:
        """The server ends: stop threads, release memory."""

    # To be implemented, for migration

    def stopped(self) -> None:
        """The device is being stopped: come to rest.

        Work of the model's threads is either brought to its end before this returns (the lock can
        be given away by waiting for a condition of it; DMA and interrupts go through still), or is
        left for :meth:`started`, as part of what is saved.  An exception has the device run on.
        """

    def started(self) -> None:
        """The device runs again: after :meth:`stopped`, :meth:`load_state` or :meth:`reset`."""

    def save_state(self) -> bytes:
        """All there is to know of a stopped device, for :meth:`load_state` of another.

        It may be saved more than once.  An exception has the device stay as it is.
        """
        raise NotImplementedError

    def load_state(self, data: bytes, version: int) -> None:
        """Take on what the same model has saved elsewhere.

        Memory, configuration space and interrupts have been loaded before.  The data went through
        the hands of clients, so sizes and values are checked.

        :param version: the :attr:`migration_version` of the model that has saved, not above one's
            own.
        :raises ValueError: it cannot be (:class:`struct.error` and any other exception does as
            well); the device has to be reset then.
        """
        raise NotImplementedError

    def precopy_data(self) -> Iterator[bytes]:
        """Pieces of the state that can be sent while the device runs; a generator, as a rule.

        Called when a client first reads the state of a running device, and advanced with the lock
        held whenever it reads more; an empty piece says that there is nothing now.  What has
        changed since is left to :meth:`save_state`.  A generator is closed when the client is
        through, or has given up: then nothing has been sent (``try: ... finally:``).  An exception
        is the end of the save: the client can only give up.
        """
        return iter(())

    def load_precopy_data(self, data: bytes) -> None:
        """One piece of :meth:`precopy_data`; all come, in order, before :meth:`load_state`."""
        raise NotImplementedError

    # Services

    def attach(self, services: ModelServices) -> None:
        """Called once by the server, before anything else."""
        self._services = services

    @property
    def services(self) -> ModelServices:
        """The server that hosts the model."""
        if self._services is None:
            raise RuntimeError("the model is not hosted by a server")
        return self._services

    def dma_read(self, address: int, size: int) -> bytes:
        """Read ``size`` bytes of the client's memory.

        :raises DMAError: not mapped, not readable, bus mastering is off, or there is no client.
        """
        return self.services.dma_read(address, size)

    def dma_read_into(self, address: int, buffer: Buffer) -> None:
        """Fill a buffer of the model's own, any that can be written, from the client's memory.

        The same as :meth:`dma_read` without new memory, which costs as much as the copy where it
        is large.  After an error what the buffer has is undefined.

        :raises ValueError: the buffer is read-only, or not contiguous.
        :raises DMAError: what :meth:`dma_read` raises.
        """
        (self._services or self.services).dma_read_into(address, buffer)

    def dma_write(self, address: int, data: Buffer) -> None:
        """Write the client's memory; raises as :meth:`dma_read` does."""
        (self._services or self.services).dma_write(address, data)  # a call less beside the copy

    def dma_view(
        self, address: int, size: int, writable: bool = False
    ) -> AbstractContextManager[ByteArray]:
        """The client's memory itself as bytes, shape (size,), while the context lasts.

        ::

            with self.dma_view(address, 4096) as page:
                total = int(page.sum())

        An unmap by the client, and a stop of the device, wait until the context is left, so it is
        left soon.  Only for memory within one map, of a file that was passed and that is sealed
        against being made shorter (a memfd with F_SEAL_SHRINK): with any other the client could
        have the access end this process.

        :param writable: the array may be written; all of it counts as written then.
        :raises DMAError: ENOTSUP; the memory is not of that kind, and :meth:`dma_read` and
            :meth:`dma_write` reach it, or say why not.  What they raise, otherwise.
        """
        return self.services.dma_view(address, size, writable)

    def bar_memory(self, bar: int) -> ByteArray:
        """The contents of a backed BAR as bytes, shape (size,)."""
        return self.services.bar_memory(bar)

    def set_intx(self, level: bool) -> None:
        """Assert or lower the interrupt pin."""
        self.services.set_intx(level)

    @property
    def msi_enabled(self) -> bool:
        """Whether the client uses MSI."""
        return self.services.msi_enabled()

    def send_msi(self, vector: int) -> None:
        """Send MSI ``vector``; lost where MSI or bus mastering is off, as on the bus."""
        self.services.send_msi(vector)

    @property
    def msix_enabled(self) -> bool:
        """Whether the client uses MSI-X."""
        return self.services.msix_enabled()

    def send_msix(self, vector: int) -> None:
        """Send MSI-X ``vector``, or set its pending bit where it is masked."""
        self.services.send_msix(vector)
