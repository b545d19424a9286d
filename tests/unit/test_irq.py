# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts where the device refuses, announces nonsense, or goes away."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyvfio.base import VFIOBase
from pyvfio.container import Container
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    IRQError,
    RegionError,
    RemoteError,
    RemoteProtocolError,
    ResetError,
    UnsupportedError,
    VFIOTimeout,
)
from pyvfio.irq import IRQSet
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DeviceFlags, DMAMapFlags, IRQFlags, IRQSetFlags
from pyvfio.vectors import (
    MAX_IRQS,
    MAX_REGIONS,
    MAX_VECTORS,
    BatchFailure,
    ContainerIO,
    DeviceInfo,
    DeviceIO,
    DMASource,
    IRQInfo,
    RegionInfo,
)
from tests.support import eventually, open_fds

MSIX = 2
SOON = 2.0


class FakeIO(DeviceIO):
    """A device that keeps what it is asked and raises what it is told to."""

    def __init__(self) -> None:
        self.info = DeviceInfo(DeviceFlags.PCI | DeviceFlags.RESET, 9, 5)
        self.vectors = 8
        self.error: BaseException | None = None
        self.calls: list[tuple[str, int, int, int]] = []

    def get_info(self) -> DeviceInfo:
        return self.info

    def get_region_info(self, index: int) -> RegionInfo:
        self._fail()
        raise NotImplementedError

    def get_irq_info(self, index: int) -> IRQInfo:
        return IRQInfo(index, IRQFlags.EVENTFD, self.vectors)

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
        self.calls.append((str(action.name), index, start, count))
        self._fail()

    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        raise NotImplementedError

    def flush(self) -> None:
        raise NotImplementedError

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        raise NotImplementedError

    def reset(self) -> None:
        self._fail()

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Nothing is owned."""


class NoDMA(ContainerIO):
    """An address space that nothing is mapped into."""

    iova_ranges = ()
    page_sizes = 4096
    max_maps = 0

    def dma_map(
        self, iova: int, size: int, memory: DMASource, offset: int, flags: DMAMapFlags
    ) -> None:
        raise NotImplementedError

    def dma_unmap(self, iova: int, size: int) -> None:
        raise NotImplementedError

    def begin(self) -> None:
        raise NotImplementedError

    def commit(self) -> Sequence[BatchFailure]:
        raise NotImplementedError

    def dma_unmap_all(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is owned."""


class FakeDevice(VFIOBase):
    """A device on the fake vectors."""

    def __init__(self, io: FakeIO) -> None:
        super().__init__("fake:x")
        self.io = io
        self.after_check: Callable[[], None] = lambda: None
        self._attach(Container(self.container_io, self.uri))

    @property
    def device_io(self) -> DeviceIO:
        return self.io

    @property
    def container_io(self) -> ContainerIO:
        return NoDMA()

    def check_present(self, op: str) -> None:
        super().check_present(op)
        after, self.after_check = self.after_check, lambda: None
        after()

    def lose(self, reason: str) -> None:
        """What a backend does when its peer is gone."""
        self._mark_lost(ConnectionLost(reason))


@pytest.fixture
def dev() -> Iterator[FakeDevice]:
    """A device with eight vectors."""
    with FakeDevice(FakeIO()) as found:
        yield found


# Enabling


def test_one_request_enables_all_vectors(dev: FakeDevice) -> None:
    dev.enable_irqs(MSIX, 8).release()
    assert dev.io.calls == [("TRIGGER", MSIX, 0, 8)]


def test_closing_disables_the_index(dev: FakeDevice) -> None:
    dev.enable_irqs(MSIX, 8).close()
    assert dev.io.calls[1:] == [("TRIGGER", MSIX, 0, 0)]


def test_closing_twice_disables_once(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 8)
    irqs.close()
    irqs.close()
    assert len(dev.io.calls) == 2


def test_closing_the_device_says_nothing_to_it(dev: FakeDevice) -> None:
    dev.enable_irqs(MSIX, 8)
    dev.close()
    assert len(dev.io.calls) == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "?"), RemoteError("?", errno=errno.EIO)])
def test_a_refused_enable_is_an_error_with_its_number(dev: FakeDevice, error: OSError) -> None:
    dev.io.error = error
    with pytest.raises(IRQError, match="trigger irq 2 vectors 0 to 7 on fake:x") as caught:
        dev.enable_irqs(MSIX, 8)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "?"), ConnectionLost("gone"), KeyboardInterrupt()], ids=repr
)
def test_a_refused_enable_leaves_no_descriptor(dev: FakeDevice, error: BaseException) -> None:
    before = open_fds()
    dev.io.error = error
    with pytest.raises((IRQError, ConnectionLost, KeyboardInterrupt)):
        dev.enable_irqs(MSIX, 8)
    assert open_fds() == before


def test_no_more_descriptors_leave_none_open(
    dev: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, make = open_fds(), os.eventfd
    made: list[int] = []

    def few(value: int, flags: int) -> int:
        if len(made) == 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(make(value, flags))
        return made[-1]

    monkeypatch.setattr(os, "eventfd", few)
    with pytest.raises(OSError, match="Too many open files"):
        dev.enable_irqs(MSIX, 8)
    assert (len(made), open_fds()) == (3, before)


def test_no_more_descriptors_are_an_error_of_ours(
    dev: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "eventfd", none)
    with pytest.raises(IRQError, match="EMFILE"):
        dev.enable_irqs(MSIX, 1)


def test_nothing_is_asked_where_the_device_has_fewer_vectors(dev: FakeDevice) -> None:
    with pytest.raises(IRQError, match="the device has 8 vectors"):
        dev.enable_irqs(MSIX, 9)
    assert dev.io.calls == []


def test_an_index_that_the_device_lacks_has_no_vectors(dev: FakeDevice) -> None:
    assert dev.irq_info(5).count == 0


def test_a_disable_that_is_refused_closes_the_descriptors(dev: FakeDevice) -> None:
    irqs, before = dev.enable_irqs(MSIX, 4), len(open_fds())
    dev.io.error = OSError(errno.EIO, "?")
    with pytest.raises(IRQError):
        irqs.close()
    assert before - len(open_fds()) == 4


# What a device announces


def test_the_most_vectors_of_msix_are_taken(dev: FakeDevice) -> None:
    dev.io.vectors = MAX_VECTORS
    assert dev.irq_info(MSIX).count == 2048


def test_more_vectors_than_msix_has_are_nonsense(dev: FakeDevice) -> None:
    dev.io.vectors = MAX_VECTORS + 1
    with pytest.raises(RemoteProtocolError, match="2049 vectors"):
        dev.enable_irqs(MSIX, 1)


@pytest.mark.parametrize(("regions", "irqs"), [(MAX_REGIONS + 1, 5), (9, MAX_IRQS + 1)])
def test_more_regions_or_indexes_than_are_sane_are_nonsense(regions: int, irqs: int) -> None:
    io = FakeIO()
    io.info = DeviceInfo(DeviceFlags.PCI, regions, irqs)
    with pytest.raises(RemoteProtocolError, match=f"{regions} regions and {irqs} interrupt"):
        FakeDevice(io)


@pytest.mark.parametrize("index", [-1, 9, 1 << 32])
def test_a_region_that_was_not_announced_is_not_asked_for(dev: FakeDevice, index: int) -> None:
    with pytest.raises(RegionError, match="the device has 9 regions"):
        dev.region(index)


def test_a_region_that_the_device_refuses_is_an_error(dev: FakeDevice) -> None:
    dev.io.error = RemoteError("?", errno=errno.EINVAL)
    with pytest.raises(RegionError, match="get info of region 3"):
        dev.region(3)


def test_a_reset_that_the_device_refuses_is_an_error(dev: FakeDevice) -> None:
    dev.io.error = OSError(errno.EBUSY, "?")
    with pytest.raises(ResetError, match="EBUSY"):
        dev.reset()


def test_a_device_without_reset_is_not_asked() -> None:
    io = FakeIO()
    io.info = DeviceInfo(DeviceFlags.PCI, 9, 5)
    io.error = AssertionError("it was asked")
    with pytest.raises(UnsupportedError, match="no reset"):
        FakeDevice(io).reset()


# A device that goes away


def test_who_waits_is_woken_when_the_device_is_lost(dev: FakeDevice) -> None:
    irqs, started = dev.enable_irqs(MSIX, 2), threading.Event()

    def wait(vector: int) -> int:
        started.set()
        return irqs[vector].wait(SOON)

    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(wait, vector) for vector in range(2)]
        started.wait(SOON)
        dev.lose("the peer closed the connection")
        found = [future.exception(SOON) for future in waiting]
    assert [str(error) for error in found] == [
        f"wait for MSIX vector {vector} on fake:x: the peer closed the connection"
        for vector in range(2)
    ]


@pytest.mark.parametrize("timeout", [None, SOON])
def test_all_who_wait_for_a_vector_are_woken(dev: FakeDevice, timeout: float | None) -> None:
    irqs = dev.enable_irqs(MSIX, 1)
    waits = [irqs[0].wait, irqs.wait, irqs[0].wait, irqs.wait, irqs[0].wait]
    with ThreadPoolExecutor(len(waits)) as pool:
        waiting = [pool.submit(wait, timeout) for wait in waits]
        time.sleep(0.02)
        dev.lose("gone")
        found = [type(future.exception(SOON)) for future in waiting]
    assert found == [ConnectionLost] * len(waits)
    irqs.release()


def test_what_fired_before_the_device_was_lost_is_not_delivered(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 1)
    os.eventfd_write(irqs[0].fileno(), 1)
    dev.lose("gone")
    with pytest.raises(ConnectionLost):
        irqs[0].wait(0)


def test_a_descriptor_becomes_readable_when_the_device_is_lost(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 1)
    dev.lose("gone")
    assert os.eventfd_read(irqs[0].fileno()) == 1


def test_the_set_of_a_lost_device_can_be_closed(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 1)
    dev.io.error = ConnectionLost("gone")
    irqs.close()
    assert irqs.closed


def test_a_close_at_any_moment_is_no_signal(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 1)
    dev.after_check = irqs.close
    with pytest.raises(DeviceClosed):
        irqs[0].wait(0.1)


def test_a_loss_at_any_moment_is_no_signal(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 1)
    dev.after_check = lambda: dev.lose("gone")
    with pytest.raises(ConnectionLost):
        irqs[0].wait(0.1)


def test_the_last_who_waits_closes_the_descriptor(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 1)
    fd, started = irqs[0].fileno(), threading.Event()

    def wait() -> None:
        started.set()
        with pytest.raises(DeviceClosed):
            irqs[0].wait(SOON)

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait(SOON)
    irqs.close()
    thread.join(SOON)
    assert eventually(lambda: fd not in open_fds())


# Any vector of a set


@pytest.fixture
def many(dev: FakeDevice) -> Iterator[IRQSet]:
    """All vectors that MSI-X can have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    dev.io.vectors = MAX_VECTORS
    with dev.enable_irqs(MSIX, MAX_VECTORS) as irqs:
        yield irqs
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def signal(irqs: IRQSet, *vectors: int) -> None:
    """Have vectors fire."""
    for vector in vectors:
        os.eventfd_write(irqs[vector].fileno(), 1)


def test_one_wait_is_for_2048_vectors(many: IRQSet) -> None:
    signal(many, 2047, 5, 0, 5)
    assert many.wait(SOON) == [0, 5, 2047]
    assert [many[vector].total for vector in (0, 4, 5, 2047)] == [1, 0, 2, 1]
    signal(many, *range(2048))
    assert many.wait(SOON) == list(range(2048))
    with pytest.raises(VFIOTimeout, match="wait for MSIX vectors on fake:x"):
        many.wait(0)


def test_a_wait_for_any_vector_ends_when_one_fires(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 8)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(irqs.wait)
        signal(irqs, 6)
        assert waiting.result(SOON) == [6]


@pytest.mark.parametrize("timeout", [-1.0, 0, 1e300, float("inf"), None])
def test_every_time_out_is_taken(dev: FakeDevice, timeout: float | None) -> None:
    irqs = dev.enable_irqs(MSIX, 2)
    for wait, fired in ((irqs.wait, [1]), (irqs[1].wait, 1)):
        signal(irqs, 1)
        assert wait(timeout) == fired
        if timeout is not None and timeout <= 0:
            with pytest.raises(VFIOTimeout):
                wait(timeout)


def test_what_a_vector_was_waited_for_is_gone_from_its_set(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 8)
    signal(irqs, 1, 2)
    assert irqs[1].wait(SOON) == 1
    assert irqs.wait(SOON) == [2]
    with pytest.raises(VFIOTimeout):
        irqs[2].wait(0)


def test_tasks_wait_for_any_vector(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 8)

    async def use() -> tuple[list[int], list[list[int]]]:
        asyncio.get_running_loop().call_later(0.01, signal, irqs, 3, 4)
        first, seen = await irqs, []
        signal(irqs, 1)
        async for fired in irqs:
            seen.append(fired)
            signal(irqs, 7)
            if len(seen) == 3:
                irqs.release()
        return first, seen

    assert asyncio.run(use()) == ([3, 4], [[1], [7], [7]])


def test_a_closed_set_is_not_waited_for(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 8)
    irqs.close()
    with pytest.raises(DeviceClosed):
        irqs.wait(0)


def test_who_waits_for_any_vector_is_woken_by_a_close(dev: FakeDevice) -> None:
    before = open_fds()
    irqs = dev.enable_irqs(MSIX, 8)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(irqs.wait) for _ in range(3)]
        time.sleep(0.02)
        irqs.close()
        assert [type(future.exception(SOON)) for future in waiting] == [DeviceClosed] * 3
    assert open_fds() == before


def test_a_peer_that_keeps_the_descriptors_keeps_nobody_waiting(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 2)
    kept = [os.dup(fd) for fd in irqs.filenos()]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(irqs.wait)
        time.sleep(0.02)
        irqs.close()
        assert isinstance(waiting.exception(SOON), DeviceClosed)
    for fd in kept:
        os.close(fd)


def test_a_loss_at_any_moment_is_no_signal_of_a_set(dev: FakeDevice) -> None:
    irqs = dev.enable_irqs(MSIX, 2)
    dev.after_check = lambda: dev.lose("gone")
    with pytest.raises(ConnectionLost):
        irqs.wait(0.1)
    assert [irq.total for irq in irqs] == [0, 0]


def test_no_descriptor_for_a_set_leaves_none_open(
    dev: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    irqs = dev.enable_irqs(MSIX, 2)
    before, make = open_fds(), select.epoll

    class Full:
        """An instance that takes one descriptor."""

        def __init__(self) -> None:
            self._epoll = make()
            self.fileno, self.close = self._epoll.fileno, self._epoll.close

        def register(self, fd: int, events: int) -> None:
            if fd == irqs[1].fileno():
                raise OSError(errno.ENOSPC, "?")
            self._epoll.register(fd, events)

    monkeypatch.setattr(select, "epoll", Full)
    with pytest.raises(IRQError, match=r"wait for MSIX vectors on fake:x: .*ENOSPC"):
        irqs.wait(0)
    assert open_fds() == before
    irqs.close()
    assert len(open_fds()) == len(before) - 2


# Names


@pytest.mark.parametrize(("index", "name"), [(0, "INTX"), (1, "MSI"), (4, "REQ"), (7, "irq 7")])
def test_an_index_has_a_name(index: int, name: str) -> None:
    io = FakeIO()
    io.info = DeviceInfo(DeviceFlags.PCI, 9, 8)
    dev = FakeDevice(io)
    irqs = dev.enable_irqs(index, 1)
    with pytest.raises(TimeoutError, match=f"wait for {name} vector 0"):
        irqs[0].wait(0)
    irqs.close()
