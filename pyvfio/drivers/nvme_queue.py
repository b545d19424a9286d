# SPDX-License-Identifier: BSD-3-Clause
"""NVMe queues: commands go in, completions come out, in memory shared with the controller.

Section numbers are those of the NVM Express Base Specification, revision 1.4.
"""

from __future__ import annotations

import errno as errnos
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyvfio.errors import DeviceClosed, OperationError, VFIOError, VFIOTimeout
from pyvfio.irq import IRQ
from pyvfio.pci.device import PCIDevice
from pyvfio.region import Region

log = logging.getLogger(__name__)

COMMAND = np.dtype(
    [
        ("opcode", "u1"),
        ("flags", "u1"),
        ("cid", "<u2"),
        ("nsid", "<u4"),
        ("reserved", "<u8"),
        ("metadata", "<u8"),
        ("prp1", "<u8"),
        ("prp2", "<u8"),
        ("cdw", "<u4", 6),
    ]
)
"""A submission queue entry, 64 bytes; ``cdw`` are command dwords 10 to 15 (section 4.2)."""

COMPLETION = np.dtype(
    [
        ("result", "<u4"),
        ("reserved", "<u4"),
        ("sq_head", "<u2"),
        ("sq_id", "<u2"),
        ("cid", "<u2"),
        ("status", "<u2"),
    ]
)
"""A completion queue entry, 16 bytes (section 4.6); bit 0 of ``status`` is the phase."""

STATUS_NAMES = {
    (0, 0x01): "invalid command opcode",
    (0, 0x02): "invalid field in command",
    (0, 0x04): "data transfer error",
    (0, 0x06): "internal error",
    (0, 0x07): "abort requested",
    (0, 0x08): "aborted, its submission queue was deleted",
    (0, 0x0B): "invalid namespace or format",
    (0, 0x0C): "command sequence error",
    (0, 0x13): "PRP offset invalid",
    (0, 0x80): "LBA out of range",
    (0, 0x81): "capacity exceeded",
    (0, 0x82): "namespace not ready",
    (1, 0x00): "completion queue invalid",
    (1, 0x01): "invalid queue identifier",
    (1, 0x02): "invalid queue size",
    (1, 0x08): "invalid interrupt vector",
    (2, 0x80): "write fault",
    (2, 0x81): "unrecovered read error",
    (3, 0x71): "aborted by this host",
}
"""What (status type, status code) mean (section 4.6.1), those that a driver can expect."""

_ABORTED_BY_HOST = 0x371
_DO_NOT_RETRY = 0x4000
_DOORBELLS = 0x1000
_POLL_SECONDS = 50e-6


class NVMeError(OperationError):
    """The controller completed a command with an error.

    :param status: the status field without the phase bit (section 4.6.1); 0 if there was none.
    :ivar command: the command, as people call it.
    :ivar status_type: 0 generic, 1 of the command, 2 media and data, 3 path, 7 of the vendor.
    :ivar status_code: what it means depends on the type.
    :ivar do_not_retry: the same command would fail again.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        command: str = "",
        op: str = "",
        uri: str = "",
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(reason, op=op, uri=uri, errno=errno, hint=hint)
        self.command = command
        self.status_type = status >> 8 & 0x7
        self.status_code = status & 0xFF
        self.do_not_retry = bool(status & _DO_NOT_RETRY)


@dataclass(frozen=True, slots=True)
class Command:
    """One command, before it has a place in a queue.

    :ivar name: what errors call it.
    :ivar nsid: the namespace, 0 for none.
    :ivar cdw: command dwords 10 to 15; those that are left out are 0.
    :ivar address: IOVA of its data, a multiple of 4.
    :ivar size: bytes of its data; 0 for none.
    """

    name: str
    opcode: int
    nsid: int = 0
    cdw: tuple[int, ...] = ()
    address: int = 0
    size: int = 0


class Request:
    """A command that was submitted; like a future, driven by whoever asks for its result."""

    def __init__(self, queue: QueuePair, name: str) -> None:
        self.done = False
        """Whether the controller has completed it, as far as the queue was looked at."""
        self.name = name
        self._queue = queue
        self._status = 0
        self._result = 0

    def complete(self, status: int, result: int) -> None:
        """The completion was found; called by the queue."""
        self._status, self._result, self.done = status, result, True

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the completion, whatever it says.

        :param timeout: seconds; the driver's by default.
        :raises VFIOTimeout: there is none; the command is still the controller's.
        """
        if not self.done:
            self._queue.wait(lambda: self.done, self.name, timeout)

    def result(self, timeout: float | None = None) -> int:
        """Dword 0 of the completion, waited for.

        :param timeout: seconds; the driver's by default.
        :raises NVMeError: the status is not 0.
        :raises VFIOTimeout: it is not completed; the command is still the controller's.
        """
        self.wait(timeout)
        if self._status:
            raise self._error()
        return self._result

    def _error(self) -> NVMeError:
        kind, code = self._status >> 8 & 0x7, self._status & 0xFF
        meaning = STATUS_NAMES.get((kind, code), "failed")
        return NVMeError(
            f"{meaning} (status type {kind}, code {code:#04x})",
            status=self._status,
            command=self.name,
            op=self.name,
            uri=self._queue.uri,
            errno=errnos.EIO,
        )

    def __repr__(self) -> str:
        state = f"status {self._status:#x}" if self.done else "in flight"
        return f"<Request {self.name} on queue {self._queue.number}, {state}>"


class QueuePair:
    """A submission queue and the completion queue that belongs to it; used by one thread at a time.

    Its memory is one DMA buffer: submission queue, completion queue, then a page for the PRP list
    of each command that can be in flight.

    :param number: 0 is the admin queue.
    :param depth: commands that may be in flight.
    :param page: bytes of the controller's memory page.
    :param stride: bytes from one doorbell to the next.
    :param irq: the interrupt of its completions; None to poll.
    :param timeout: seconds that a command may take.
    :raises DMAError: no memory for it.
    """

    def __init__(
        self,
        dev: PCIDevice,
        number: int,
        depth: int,
        *,
        page: int,
        stride: int,
        irq: IRQ | None,
        timeout: float,
    ) -> None:
        self.uri = dev.uri
        self.number = number
        self.depth = depth
        self.entries = depth + 1
        """Entries of each queue: a queue is full with one of them empty (section 4.1.2)."""
        self.irq = irq
        self.timeout = timeout
        self._bar: Region = dev.bars[0]
        self._page = page
        self._doorbells = tuple(_DOORBELLS + (2 * number + end) * stride for end in (0, 1))
        self._tail = self._head = 0
        self._phase = 1
        self._free = list(reversed(range(depth)))
        self._requests: list[Request | None] = [None] * depth
        self._closed = False
        completions = _whole(self.entries * COMMAND.itemsize, page)
        lists = completions + _whole(self.entries * COMPLETION.itemsize, page)
        self._buffer = dev.dma.alloc(lists + depth * page)
        self.submission_iova = self._buffer.iova
        self.completion_iova = self._buffer.iova + completions
        self._lists_iova = self._buffer.iova + lists
        self._view(completions, lists)

    def _view(self, completions: int, lists: int) -> None:
        memory, used = self._buffer.array, self.entries
        self._commands = memory[: used * COMMAND.itemsize].view(COMMAND)
        end = completions + used * COMPLETION.itemsize
        self._completions = memory[completions:end].view(COMPLETION)
        self._statuses: npt.NDArray[np.uint16] = self._completions["status"]
        self._lists: npt.NDArray[np.uint64] = (
            memory[lists : lists + self.depth * self._page].view("<u8").reshape(self.depth, -1)
        )
        self._steps = np.arange(self._page // 8, dtype="<u8") * np.uint64(self._page)

    @property
    def max_transfer(self) -> int:
        """Bytes of the largest transfer that one page of PRP list can describe."""
        return self._page * (self._page // 8)

    @property
    def in_flight(self) -> int:
        """Commands that the controller has."""
        return self.depth - len(self._free)

    def submit(self, command: Command) -> Request:
        """Hand a command to the controller; waits while :attr:`depth` of them are in flight.

        :raises ValueError: the data is not aligned to 4 bytes, or larger than a PRP list describes.
        :raises VFIOTimeout: no command that is in flight is completed.
        """
        if command.address % 4 or not 0 <= command.size <= self.max_transfer:
            raise ValueError(f"{command.size} bytes of data at {command.address:#x}")
        self._check_open(command.name)
        if not self._free:
            self.wait(lambda: bool(self._free), command.name)
        slot = self._free.pop()
        try:
            self._put(slot, command)
        except BaseException:
            self._free.append(slot)
            raise
        request = self._requests[slot] = Request(self, command.name)
        self._tail = (self._tail + 1) % self.entries
        self._bar.write32(self._doorbells[0], self._tail)
        return request

    def _put(self, slot: int, command: Command) -> None:
        cdw = command.cdw + (0,) * (6 - len(command.cdw))
        first, second = self._pages(slot, command.address, command.size)
        self._commands[self._tail] = (
            *(command.opcode, 0, slot, command.nsid, 0, 0),
            *(first, second, cdw),
        )

    def _pages(self, slot: int, address: int, size: int) -> tuple[int, int]:
        """PRP entries 1 and 2 of a transfer (section 4.3); the list is the page of the slot."""
        following = address - address % self._page + self._page
        left = address + size - following
        if left <= 0:
            return address, 0
        if left <= self._page:
            return address, following
        count = -(-left // self._page)
        np.add(self._steps[:count], np.uint64(following), out=self._lists[slot, :count])
        return address, self._lists_iova + slot * self._page

    def process(self) -> int:
        """Take the completions that are there, without waiting; returns how many.

        For event loops: call it when :attr:`irq` is readable.
        """
        self._check_open("completions")
        count = 0
        while (int(self._statuses[self._head]) & 1) == self._phase:
            self._take()
            count += 1
        if count:
            self._bar.write32(self._doorbells[1], self._head)
        return count

    def _take(self) -> None:
        result, _, _, _, slot, status = self._completions[self._head].item()
        self._head += 1
        if self._head == self.entries:
            self._head, self._phase = 0, self._phase ^ 1
        request = self._requests[slot] if slot < self.depth else None
        if request is None:
            log.warning("%s: queue %d completed no command %d", self.uri, self.number, slot)
            return
        self._requests[slot] = None
        self._free.append(slot)
        request.complete(status >> 1, result)

    def wait(self, ready: Callable[[], bool], name: str, timeout: float | None = None) -> None:
        """Take completions until ``ready()``.

        :param name: what is waited for.
        :param timeout: seconds; the driver's by default.
        :raises VFIOTimeout: it does not come.
        """
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while True:
            found = self.process()
            if ready():
                return
            left = deadline - time.monotonic()
            if left <= 0:
                reason = f"not completed within {seconds} s, {self.in_flight} in flight"
                raise VFIOTimeout(reason, op=f"{name} on queue {self.number}", uri=self.uri)
            if not found:
                self._pause(left)

    def _pause(self, seconds: float) -> None:
        if self.irq is None:
            time.sleep(min(seconds, _POLL_SECONDS))
            return
        with suppress(VFIOTimeout):  # the caller looks at the memory once more, and at the clock
            self.irq.wait(seconds)

    def close(self) -> None:
        """Free the memory; what is in flight fails.  The controller must not run.  Repeatable."""
        if self._closed:
            return
        self._closed = True
        for slot, request in enumerate(self._requests):
            if request is not None:
                request.complete(_ABORTED_BY_HOST, 0)
                self._requests[slot] = None
        del self._commands, self._completions, self._statuses, self._lists
        with suppress(VFIOError):  # the container has it, and releases it with the device
            self._buffer.close()

    def _check_open(self, op: str) -> None:
        if self._closed:
            raise DeviceClosed(f"queue {self.number} is closed", op=op, uri=self.uri)


def _whole(size: int, page: int) -> int:
    """``size`` rounded up to whole pages."""
    return -(-size // page) * page
