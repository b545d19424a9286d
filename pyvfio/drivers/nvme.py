# SPDX-License-Identifier: BSD-3-Clause
"""A driver for NVMe controllers: identify, and read, write and flush with many commands in flight.

Section numbers are those of the NVM Express Base Specification, revision 1.4.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from pyvfio.closing import Closing
from pyvfio.drivers.nvme_queue import Command, NVMeError, QueuePair, Request
from pyvfio.errors import DeviceClosed, OperationError, UnsupportedError, VFIOError, VFIOTimeout
from pyvfio.irq import IRQSet
from pyvfio.memory import ByteArray, DMABuffer
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.layout import Buffer

__all__ = ["Command", "Controller", "NVMeDriver", "NVMeError", "Namespace", "QueuePair", "Request"]

CLASS_CODE = 0x010802
"""Mass storage, non-volatile memory, NVM Express."""
ADMIN_DEPTH = 15
"""Admin commands that may be in flight."""
IDENTIFY_SIZE = 4096
"""Bytes of every structure that Identify returns."""
MAX_BLOCKS = 1 << 16
"""Blocks that one read or write can name."""

# Registers (section 3.1)
_CAP, _VS, _INTMS, _CC, _CSTS, _AQA, _ASQ, _ACQ = 0x00, 0x08, 0x0C, 0x14, 0x1C, 0x24, 0x28, 0x30
_CAP_NVM = 1 << 37
_CC_ENABLE, _CC_SHUTDOWN, _CC_ENTRY_SIZES = 1 << 0, 1 << 14, 6 << 16 | 4 << 20
_CSTS_READY, _CSTS_FATAL, _CSTS_SHUTDOWN, _CSTS_SHUT_DOWN = 1 << 0, 1 << 1, 3 << 2, 2 << 2

# Admin commands (section 5), then those of the NVM command set
_DELETE_SQ, _CREATE_SQ, _DELETE_CQ, _CREATE_CQ, _IDENTIFY, _SET_FEATURES = 0, 1, 4, 5, 6, 9
_FLUSH, _WRITE, _READ = 0, 1, 2
_VERBS = {_WRITE: "write", _READ: "read"}
_NAMESPACE, _CONTROLLER, _ACTIVE_NAMESPACES = 0, 1, 2
_NUMBER_OF_QUEUES = 7

_IDENTIFY_CONTROLLER = np.dtype(
    {
        "names": ["serial", "model", "firmware", "mdts", "namespaces"],
        "formats": ["S20", "S40", "S8", "u1", "<u4"],
        "offsets": [4, 24, 64, 77, 516],
        "itemsize": IDENTIFY_SIZE,
    }
)
_IDENTIFY_NAMESPACE = np.dtype(
    {
        "names": ["blocks", "format", "formats"],
        "formats": ["<u8", "u1", ("<u4", 16)],
        "offsets": [0, 26, 128],
        "itemsize": IDENTIFY_SIZE,
    }
)


@dataclass(frozen=True, slots=True)
class Controller:
    """What Identify says of the controller (section 5.15.2.2).

    :ivar max_transfer: bytes of one command's data; None without a limit.
    :ivar namespaces: the largest namespace number.
    :ivar version: major, minor, tertiary.
    """

    model: str
    serial: str
    firmware: str
    max_transfer: int | None
    namespaces: int
    version: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Namespace:
    """What Identify says of a namespace (section 5.15.2.1).

    :ivar blocks: its size in logical blocks.
    :ivar block_size: bytes of a logical block.
    :ivar metadata_size: bytes of metadata with each block.
    """

    nsid: int
    blocks: int
    block_size: int
    metadata_size: int


class NVMeDriver(Closing):
    """Drives one controller, from its reset to its shutdown; one thread at a time for each queue.

    :param dev: the device; it stays the caller's.
    :param queue_depth: commands in flight on each I/O queue; the controller may allow fewer.
    :param io_queues: I/O queues wanted; see :attr:`queues` for those there are.
    :param timeout: seconds that a command may take.
    :param polling: look for completions in memory; MSI-X is used by default where there is any, a
        vector for each queue.
    :ivar queues: the I/O queues.
    :ivar controller: what the controller is.
    :ivar namespaces: the active namespaces, by number.
    :raises UnsupportedError: it is no NVMe controller, or needs pages larger than the IOMMU's.
    :raises VFIOTimeout: the controller does not become ready, or does not answer.
    :raises NVMeError: it refused to be set up.
    """

    controller: Controller

    def __init__(
        self,
        dev: PCIDevice,
        *,
        queue_depth: int = 64,
        io_queues: int = 1,
        timeout: float = 10.0,
        polling: bool = False,
    ) -> None:
        if queue_depth < 1 or io_queues < 1:
            raise ValueError(f"{io_queues} queues of depth {queue_depth}")
        if dev.config.class_code != CLASS_CODE:
            reason = f"class {dev.config.class_code:06x} is no NVMe controller"
            raise UnsupportedError(reason, op="probe", uri=dev.uri)
        self.dev = dev
        self.timeout = timeout
        self.queues: list[QueuePair] = []
        self.namespaces: dict[int, Namespace] = {}
        self._bar = dev.bars[0]
        self._irqs: IRQSet | None = None
        self._admin: QueuePair | None = None
        self._wanted = io_queues
        self._next = 0
        self._closed = False
        self._read_capabilities(queue_depth)
        try:
            self._disable()
            self._enable_interrupts(polling)
            self._start()
        except BaseException:
            self.close()
            raise

    def _read_capabilities(self, queue_depth: int) -> None:
        """Limits from CAP (section 3.1.1)."""
        capabilities = self._bar.read64(_CAP)
        self._depth = max(1, min(queue_depth, capabilities & 0xFFFF))
        self._ready_seconds = max(1, capabilities >> 24 & 0xFF) * 0.5
        self._stride = 4 << (capabilities >> 32 & 0xF)
        self._page = 4096 << (capabilities >> 48 & 0xF)
        if not capabilities & _CAP_NVM:
            raise UnsupportedError("it has no NVM command set", op="probe", uri=self.dev.uri)
        if self._page > self.dev.dma.page_size:
            reason = f"its pages have {self._page} bytes, the IOMMU's {self.dev.dma.page_size}"
            raise UnsupportedError(reason, op="probe", uri=self.dev.uri)

    def _enable_interrupts(self, polling: bool) -> None:
        vectors = min(self.dev.msix.count, 1 + self._wanted)
        if polling or vectors < 2:
            self._bar.write32(_INTMS, 0xFFFF_FFFF)
            self.dev.bus_master = True
        else:
            self._irqs = self.dev.msix.enable(vectors)  # and bus mastering
            self._wanted = vectors - 1

    # Life of the controller

    def _start(self) -> None:
        self._admin = self._queue_pair(0, ADMIN_DEPTH)
        self._bar.write32(_AQA, ADMIN_DEPTH << 16 | ADMIN_DEPTH)
        self._bar.write64(_ASQ, self._admin.submission_iova)
        self._bar.write64(_ACQ, self._admin.completion_iova)
        page_shift = self._page.bit_length() - 1
        self._bar.write32(_CC, _CC_ENTRY_SIZES | page_shift - 12 << 7 | _CC_ENABLE)
        self._wait_status("enable", _CSTS_READY, _CSTS_READY, self._ready_seconds)
        self.controller = self._identify_controller()
        self.namespaces = {nsid: self._identify_namespace(nsid) for nsid in self._active()}
        self._create_io_queues()

    def _disable(self) -> None:
        """Reset the controller; afterwards it touches no memory (section 7.3.2)."""
        self._bar.write32(_CC, 0)
        self._wait_status("disable", _CSTS_READY, 0, self._ready_seconds)

    def _wait_status(self, op: str, mask: int, wanted: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            status = self._bar.read32(_CSTS)
            if status & mask == wanted:
                return
            if wanted and status & _CSTS_FATAL:
                raise OperationError(
                    "the controller has failed", op=op, uri=self.dev.uri, errno=errno.EIO
                )
            if time.monotonic() > deadline:
                reason = f"not done within {seconds} s, status {status:#x}"
                raise VFIOTimeout(reason, op=op, uri=self.dev.uri)
            time.sleep(0.0005)

    def reset(self) -> None:
        """Reset the controller and start it again, with new :attr:`queues`.

        Commands in flight end, most of them with :class:`NVMeError`: aborted.

        :raises DeviceClosed: the driver is closed.
        :raises VFIOTimeout: the controller does not become ready.
        """
        if self._closed:
            raise DeviceClosed("closed", op="reset", uri=self.dev.uri)
        with suppress(VFIOError):
            self._delete_io_queues()
        self._disable()
        self._release()
        self._start()

    def _release(self) -> None:
        queues, self.queues = self.queues, []
        for queue in (*queues, self._admin):
            if queue is not None:
                queue.close()
        self._admin = None

    def close(self) -> None:
        """Delete the queues, shut the controller down, free its memory.  May be repeated.

        Quiet, whatever state the device is in; commands in flight fail.
        """
        if self._closed:
            return
        self._closed = True
        with suppress(VFIOError):
            self._delete_io_queues()
        with suppress(VFIOError):
            self._shut_down()
        with suppress(VFIOError):
            self._disable()
        self._release()
        if self._irqs is not None:
            with suppress(VFIOError):
                self._irqs.close()

    def _shut_down(self) -> None:
        """Normal shutdown (section 7.6.2)."""
        if self._admin is not None:
            self._bar.write32(_CC, self._bar.read32(_CC) | _CC_SHUTDOWN)
            self._wait_status("shut down", _CSTS_SHUTDOWN, _CSTS_SHUT_DOWN, self.timeout)

    # Queues

    def _queue_pair(self, number: int, depth: int) -> QueuePair:
        return QueuePair(
            self.dev,
            number,
            depth,
            page=self._page,
            stride=self._stride,
            irq=self._irqs[number] if self._irqs is not None else None,
            timeout=self.timeout,
        )

    def _create_io_queues(self) -> None:
        wanted = self._wanted - 1
        granted = self.admin(
            Command(
                "set number of queues", _SET_FEATURES, cdw=(_NUMBER_OF_QUEUES, wanted * 0x10001)
            )
        )
        count = 1 + min(wanted, granted & 0xFFFF, granted >> 16)
        for number in range(1, count + 1):
            queue = self._queue_pair(number, self._depth)
            self.queues.append(queue)
            self._create(queue)

    def _create(self, queue: QueuePair) -> None:
        """Create Completion Queue, then Create Submission Queue (sections 5.3 and 5.4)."""
        number, contiguous = queue.number, 1
        interrupt = number << 16 | 2 if queue.irq is not None else 0
        shape = queue.depth << 16 | number
        places = (
            ("completion", _CREATE_CQ, interrupt | contiguous, queue.completion_iova),
            ("submission", _CREATE_SQ, number << 16 | contiguous, queue.submission_iova),
        )
        for kind, opcode, options, iova in places:
            name = f"create {kind} queue {number}"
            self.admin(Command(name, opcode, cdw=(shape, options), address=iova))

    def _delete_io_queues(self) -> None:
        """Delete the submission queues, which ends their commands, then the others (7.4.3)."""
        for queue in self.queues:
            self._delete("submission", _DELETE_SQ, queue)
            queue.process()
            self._delete("completion", _DELETE_CQ, queue)

    def _delete(self, kind: str, opcode: int, queue: QueuePair) -> None:
        if self._admin is not None:
            name = f"delete {kind} queue {queue.number}"
            self._admin.submit(Command(name, opcode, cdw=(queue.number,))).result()

    def admin(self, command: Command) -> int:
        """Run an admin command; returns dword 0 of its completion.

        :raises NVMeError: it failed.
        :raises VFIOTimeout: it was not completed; the controller was stopped, see :meth:`reset`.
        """
        if self._admin is None or self._closed:
            raise self._not_running(command.name)
        return self._finish(self._admin.submit(command))

    def _not_running(self, op: str) -> DeviceClosed:
        if self._closed:
            return DeviceClosed("closed", op=op, uri=self.dev.uri)
        hint = "reset() starts it again"
        return DeviceClosed("the controller was stopped", op=op, uri=self.dev.uri, hint=hint)

    # Identify

    def _identify(self, name: str, kind: int, nsid: int = 0) -> bytes:
        """One structure of Identify (section 5.15)."""
        with self.dev.dma.alloc(IDENTIFY_SIZE) as buffer:
            command = Command(
                name, _IDENTIFY, nsid, (kind,), address=buffer.iova, size=IDENTIFY_SIZE
            )
            self.admin(command)
            return bytes(buffer.array[:IDENTIFY_SIZE])

    def _identify_controller(self) -> Controller:
        data = self._identify("identify controller", _CONTROLLER)
        found = np.frombuffer(data, _IDENTIFY_CONTROLLER)[0]
        serial, model, firmware = (
            bytes(found[name]).decode("ascii", "replace").strip()
            for name in ("serial", "model", "firmware")
        )
        version, shift = self._bar.read32(_VS), int(found["mdts"])
        return Controller(
            model=model,
            serial=serial,
            firmware=firmware,
            max_transfer=self._page << shift if shift else None,
            namespaces=int(found["namespaces"]),
            version=(version >> 16, version >> 8 & 0xFF, version & 0xFF),
        )

    def _active(self) -> list[int]:
        """Numbers of the first 1,024 active namespaces (section 5.15.2.3)."""
        if self.controller.version < (1, 1, 0):
            return list(range(1, min(self.controller.namespaces, 1024) + 1))
        data = self._identify("list namespaces", _ACTIVE_NAMESPACES)
        return [int(nsid) for nsid in np.frombuffer(data, "<u4") if nsid]

    def _identify_namespace(self, nsid: int) -> Namespace:
        data = self._identify(f"identify namespace {nsid}", _NAMESPACE, nsid)
        found = np.frombuffer(data, _IDENTIFY_NAMESPACE)[0]
        chosen = int(found["formats"][found["format"] & 0xF])
        block_size, metadata = 1 << (chosen >> 16 & 0xFF), chosen & 0xFFFF
        return Namespace(nsid, int(found["blocks"]), block_size, metadata)

    # Input and output

    def max_blocks(self, nsid: int = 1) -> int:
        """Blocks that one command can read or write.

        :raises UnsupportedError: the namespace does not exist, or not as plain blocks.
        """
        limit = self._page * (self._page // 8)  # a PRP list of one page
        limit = min(limit, self.controller.max_transfer or limit)
        return max(1, min(limit // self._namespace(nsid).block_size, MAX_BLOCKS))

    def submit(self, command: Command, queue: int | None = None) -> Request:
        """Hand an I/O command to the controller; waits while the queue is full.

        Its data must stay mapped until the request is done.

        :param queue: position in :attr:`queues`; they take turns by default.
        :raises VFIOTimeout: the queue is full and stays so.
        """
        if self._closed or not self.queues:
            raise self._not_running(command.name)
        if queue is None:
            queue, self._next = self._next % len(self.queues), self._next + 1
        return self.queues[queue].submit(command)

    def submit_read(
        self,
        buffer: DMABuffer,
        lba: int,
        count: int,
        *,
        offset: int = 0,
        nsid: int = 1,
        queue: int | None = None,
    ) -> Request:
        """Start to read ``count`` blocks to byte ``offset`` of ``buffer``.

        :param offset: a multiple of 4.
        :param queue: position in :attr:`queues`; they take turns by default.
        :raises ValueError: more than :meth:`max_blocks`, or outside of the buffer.
        """
        command = self._transfer(_READ, lba, count, buffer=buffer, offset=offset, nsid=nsid)
        return self.submit(command, queue)

    def submit_write(
        self,
        buffer: DMABuffer,
        lba: int,
        count: int,
        *,
        offset: int = 0,
        nsid: int = 1,
        queue: int | None = None,
    ) -> Request:
        """Start to write ``count`` blocks from ``buffer``; see :meth:`submit_read`."""
        command = self._transfer(_WRITE, lba, count, buffer=buffer, offset=offset, nsid=nsid)
        return self.submit(command, queue)

    def read_blocks(
        self, lba: int, count: int, buffer: DMABuffer, *, offset: int = 0, nsid: int = 1
    ) -> ByteArray:
        """Read any number of blocks, as many commands at a time as the queues hold.

        :returns: the bytes, a view of ``buffer`` from byte ``offset`` on.
        :raises NVMeError: a command failed; the others are done as well.
        :raises VFIOTimeout: a command was not completed; the controller was stopped.
        """
        size = self._transfer_all(_READ, lba, count, buffer=buffer, offset=offset, nsid=nsid)
        return buffer.array[offset : offset + size]

    def write_blocks(
        self, lba: int, count: int, buffer: DMABuffer, *, offset: int = 0, nsid: int = 1
    ) -> None:
        """Write any number of blocks from ``buffer``; see :meth:`read_blocks`."""
        self._transfer_all(_WRITE, lba, count, buffer=buffer, offset=offset, nsid=nsid)

    def read(self, lba: int, count: int, *, nsid: int = 1) -> bytes:
        """A copy of ``count`` blocks; raises as :meth:`read_blocks` does."""
        with self.dev.dma.alloc(count * self._namespace(nsid).block_size) as buffer:
            return bytes(self.read_blocks(lba, count, buffer, nsid=nsid))

    def write(self, lba: int, data: Buffer | ByteArray, *, nsid: int = 1) -> None:
        """Write whole blocks; raises as :meth:`read_blocks` does.

        :raises ValueError: the data is empty, or no multiple of the block size.
        """
        source = np.frombuffer(data, np.uint8)
        count, rest = divmod(source.size, self._namespace(nsid).block_size)
        if rest or not count:
            raise ValueError(f"{source.size} bytes are no whole blocks")
        with self.dev.dma.alloc(source.size) as buffer:
            buffer.array[: source.size] = source
            self.write_blocks(lba, count, buffer, nsid=nsid)

    def flush(self, nsid: int = 1) -> None:
        """Make what was written durable (section 6.8); raises as :meth:`read_blocks` does."""
        self._namespace(nsid)
        self._finish(self.submit(Command("flush", _FLUSH, nsid)))

    def _transfer(
        self, opcode: int, lba: int, count: int, *, buffer: DMABuffer, offset: int, nsid: int
    ) -> Command:
        size = self._size(buffer, count, offset, nsid)
        most = self.max_blocks(nsid)
        if count > most or not 0 <= lba < 1 << 64:
            raise ValueError(f"{count} blocks at LBA {lba}; a command takes at most {most}")
        return Command(
            f"{_VERBS[opcode]} of {count} blocks at LBA {lba}",
            opcode,
            nsid,
            (lba & 0xFFFF_FFFF, lba >> 32, count - 1),
            address=buffer.iova + offset,
            size=size,
        )

    def _transfer_all(
        self, opcode: int, lba: int, count: int, *, buffer: DMABuffer, offset: int, nsid: int
    ) -> int:
        """Split a transfer, wait for all of its commands, then tell the first error."""
        size = self._size(buffer, count, offset, nsid)
        block, most = self._namespace(nsid).block_size, self.max_blocks(nsid)
        commands = [
            self._transfer(
                opcode,
                lba + at,
                min(most, count - at),
                buffer=buffer,
                offset=offset + at * block,
                nsid=nsid,
            )
            for at in range(0, count, most)
        ]
        with self._all_or_stop():
            requests = [self.submit(command) for command in commands]
            for request in requests:
                request.wait()
        for request in requests:
            request.result()
        return size

    def _finish(self, request: Request) -> int:
        """Dword 0 of a completion; the controller is stopped where there is none."""
        with self._all_or_stop():
            request.wait()
        return request.result()

    @contextmanager
    def _all_or_stop(self) -> Iterator[None]:
        """Stop the controller where a command may be left in flight, whose memory is freed next."""
        try:
            yield
        except BaseException:
            with suppress(VFIOError):
                self._disable()
            self._release()
            raise

    def _size(self, buffer: DMABuffer, count: int, offset: int, nsid: int) -> int:
        """Bytes of ``count`` blocks, which have to be inside of the open buffer."""
        size = count * self._namespace(nsid).block_size
        if not buffer.address or count < 1 or offset < 0 or offset % 4:
            raise ValueError(f"{count} blocks at offset {offset} of a buffer")
        if offset + size > buffer.size:
            raise ValueError(f"{size} bytes at {offset} are outside of the buffer's {buffer.size}")
        return size

    def _namespace(self, nsid: int) -> Namespace:
        if self._closed:
            raise self._not_running(f"namespace {nsid}")
        found = self.namespaces.get(nsid)
        if found is None or found.metadata_size or found.block_size < 512:
            reason = "no such namespace" if found is None else f"cannot use {found}"
            raise UnsupportedError(reason, op=f"namespace {nsid}", uri=self.dev.uri)
        return found

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self.queues else "stopped"
        return f"<NVMeDriver {self.dev.uri} {state}, {len(self.queues)} queues>"
