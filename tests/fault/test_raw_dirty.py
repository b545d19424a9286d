# SPDX-License-Identifier: BSD-3-Clause
"""Logs of dirty pages with a device made by hand: what it is asked, and what becomes of lies."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.dirty import DirtyKind
from pyvfio.errors import ConnectionLost, DMAError, RemoteProtocolError
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags
from tests.fault import raw
from tests.fault.raw import Message, RawServer, answer, refusal
from tests.fault.raw_migration import (
    GET,
    LOGGING_REPORT,
    LOGGING_START,
    LOGGING_STOP,
    PROBE,
    SET,
    feature_reply,
)

PAGE = 4096
BASE = 0x10_0000
SIZE = 256 * PAGE

SHARED = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":%d}}\0'


class Logger:
    """A server that logs: it is told what was written, and what to answer.

    :ivar page_size: what it logs in; 0 is what it is asked for.
    :ivar dirty: (address, bytes) that were written since they were reported.
    :ivar reports: (address, bytes, page size) of each report that it was asked for.
    :ivar replace: feature -> what is sent instead.
    """

    def __init__(self, server: RawServer) -> None:
        self.server = server
        self.page_size = 0
        self.dirty: list[tuple[int, int]] = []
        self.starts: list[bytes] = []
        self.stops = 0
        self.reports: list[tuple[int, int, int]] = []
        self.replace: dict[int, Callable[[Message], bytes]] = {}
        server.handlers[raw.DEVICE_FEATURE] = self.feature

    def feature(self, message: Message) -> None:
        """Answer DEVICE_FEATURE."""
        flags = message.words("II")[1]
        made = self.replace.get(flags & 0xFFFF if not flags & PROBE else -1)
        if made is not None:
            self.server.peer.send(made(message))
        elif flags == PROBE | SET | LOGGING_START:
            self.server.peer.send(answer(message, message.payload))
        elif flags == SET | LOGGING_START:
            self.start(message)
        elif flags == SET | LOGGING_STOP:
            self.stops += 1
            self.server.peer.send(answer(message, message.payload))
        elif flags == GET | LOGGING_REPORT:
            self.server.peer.send(feature_reply(message, self.report(message)))
        else:
            self.server.peer.send(refusal(message, errno.ENOTSUP))

    def start(self, message: Message) -> None:
        data = message.payload[8:]
        self.starts.append(data)
        if self.page_size:
            data = struct.pack("<Q", self.page_size) + data[8:]
        self.server.peer.send(feature_reply(message, data))

    def report(self, message: Message) -> bytes:
        """The data of a report, which clears it."""
        iova, size, page_size = struct.unpack_from("<QQQ", message.payload, 8)
        self.reports.append((iova, size, page_size))
        pages = -(-size // page_size)
        bitmap = bytearray(-(-pages // 64) * 8)
        for address, length in self.dirty:
            for at in range(address, address + length, PAGE):
                if iova <= at < iova + size:
                    page = (at - iova) // page_size
                    bitmap[page // 8] |= 1 << page % 8
        self.dirty = [found for found in self.dirty if not iova <= found[0] < iova + size]
        return message.payload[8:32] + bytes(bitmap)


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    with RawServer(socket_folder / "raw.sock") as server:
        yield server


@pytest.fixture
def logger(server: RawServer) -> Logger:
    return Logger(server)


@pytest.fixture
def device(logger: Logger) -> Iterator[PCIDevice]:
    """A device with a map of 256 pages."""
    with pyvfio.open(logger.server.uri) as dev, SharedMemory(SIZE) as memory:
        dev.dma.map(memory, iova=BASE)
        yield dev


def pages(device: PCIDevice, iova: int = BASE, size: int = SIZE) -> list[int]:
    """The pages that a report tells."""
    numbers: list[int] = device.dma.dirty.report(iova, size).page_numbers().tolist()
    return numbers


# What a server is asked


def test_a_log_is_one_of_everything(device: PCIDevice, logger: Logger) -> None:
    assert device.dma.dirty.start() is DirtyKind.DEVICE
    assert logger.starts == [struct.pack("<QII", PAGE, 0, 0)]
    device.dma.dirty.stop()
    assert logger.stops == 1


def test_a_map_is_asked_for_as_a_whole_whatever_the_report_is_about(
    device: PCIDevice, logger: Logger
) -> None:
    device.dma.dirty.start()
    logger.dirty = [(BASE + 3 * PAGE, 1), (BASE + 7 * PAGE, 1)]
    assert pages(device, BASE + 2 * PAGE, 3 * PAGE) == [1]
    assert pages(device, BASE + 2 * PAGE, 3 * PAGE) == []
    assert pages(device) == [7]
    assert set(logger.reports) == {(BASE, SIZE, PAGE)}


def test_each_map_is_asked_for_on_its_own(device: PCIDevice, logger: Logger) -> None:
    with SharedMemory(PAGE) as memory:
        other = BASE + SIZE  # next to the first
        device.dma.map(memory, iova=other)
        device.dma.dirty.start()
        logger.dirty = [(BASE, 1), (other, 1)]
        assert pages(device, BASE, SIZE + PAGE) == [0, 256]
        assert logger.reports == [(BASE, SIZE, PAGE), (other, PAGE, PAGE)]
        device.dma.unmap(other, PAGE)


def test_memory_that_may_not_be_written_is_not_asked_for(device: PCIDevice, logger: Logger) -> None:
    with SharedMemory(PAGE) as memory:
        device.dma.map(memory, iova=0, flags=DMAMapFlags.READ)
        device.dma.dirty.start()
        assert pages(device, 0, PAGE) == []
        assert logger.reports == []
        device.dma.unmap(0, PAGE)


def test_a_log_that_a_message_cannot_hold_is_asked_for_in_parts(server: RawServer) -> None:
    server.capabilities = SHARED % 16
    logger = Logger(server)
    with pyvfio.open(server.uri) as device, SharedMemory(SIZE + PAGE) as memory:
        device.dma.map(memory, iova=BASE)
        device.dma.dirty.start()
        logger.dirty = [(BASE + 5 * PAGE, 1), (BASE + 130 * PAGE, 1), (BASE + 256 * PAGE, 1)]
        assert pages(device, BASE, SIZE + PAGE) == [5, 130, 256]
    part = 128 * PAGE
    assert logger.reports == [
        (BASE, part, PAGE),
        (BASE + part, part, PAGE),
        (BASE + 2 * part, PAGE, PAGE),
    ]


def test_the_pages_that_a_device_chose_are_those_of_its_reports(
    device: PCIDevice, logger: Logger
) -> None:
    logger.page_size = 4 * PAGE
    device.dma.dirty.start()
    assert device.dma.dirty.page_size == 4 * PAGE
    logger.dirty = [(BASE + 5 * PAGE, 1)]
    assert pages(device) == [1]
    assert logger.reports == [(BASE, SIZE, 4 * PAGE)]


def test_a_device_may_choose_smaller_pages(device: PCIDevice, logger: Logger) -> None:
    logger.page_size = PAGE
    device.dma.dirty.start(4 * PAGE)
    assert device.dma.dirty.page_size == 4 * PAGE
    logger.dirty = [(BASE + 5 * PAGE, 1)]
    assert pages(device) == [1]
    assert logger.reports == [(BASE, SIZE, PAGE)]


def test_a_log_is_asked_for_before_its_map_goes(
    device: PCIDevice, logger: Logger, server: RawServer
) -> None:
    device.dma.dirty.start()
    logger.dirty = [(BASE + 9 * PAGE, 1)]
    assert device.dma.unmap(BASE, SIZE, dirty=True).page_numbers().tolist() == [9]
    assert server.commands()[-2:] == [raw.DEVICE_FEATURE, raw.DMA_UNMAP]


def test_what_was_told_is_kept_where_the_unmap_is_refused(
    device: PCIDevice, logger: Logger, server: RawServer
) -> None:
    device.dma.dirty.start()
    logger.dirty = [(BASE + 9 * PAGE, 1)]
    server.handlers[raw.DMA_UNMAP] = lambda message: server.peer.send(refusal(message, errno.EBUSY))
    with pytest.raises(DMAError) as caught:
        device.dma.unmap(BASE, SIZE, dirty=True)
    assert caught.value.errno == errno.EBUSY
    assert pages(device) == [9]
    del server.handlers[raw.DMA_UNMAP]


def test_what_a_server_writes_by_messages_is_told_as_well(
    device: PCIDevice, logger: Logger, server: RawServer
) -> None:
    device.dma.dirty.start()
    logger.dirty = [(BASE, 1)]
    data = bytes(PAGE)
    server.ask(raw.DMA_WRITE, raw.dma_range(BASE + 4 * PAGE + 8, PAGE, data))
    assert pages(device) == [0, 4, 5]
    assert pages(device) == []


def test_a_server_without_descriptors_is_not_asked(server: RawServer) -> None:
    logger = Logger(server)
    with (
        pyvfio.open(server.uri, secure_dma=True) as device,
        SharedMemory(SIZE) as memory,
    ):
        device.dma.map(memory, iova=BASE)
        assert device.dma.dirty.start() is DirtyKind.WRITES
        server.ask(raw.DMA_WRITE, raw.dma_range(BASE + 7, 1, b"x"))
        server.ask(raw.DMA_READ, raw.dma_range(BASE + 8 * PAGE, 8))
        assert pages(device) == [0]
        server.ask(raw.DMA_WRITE, raw.dma_range(BASE + 2 * PAGE, 1, b"x"))
        assert device.dma.unmap(BASE, SIZE, dirty=True).page_numbers().tolist() == [2]
    assert (logger.starts, logger.reports) == ([], [])


def test_a_write_that_is_refused_is_told_as_far_as_it_went(
    device: PCIDevice, logger: Logger, server: RawServer
) -> None:
    device.dma.dirty.start()
    reply = server.ask(raw.DMA_WRITE, raw.dma_range(BASE + SIZE - 8, 16, bytes(16)))
    assert reply.error == errno.EFAULT
    assert pages(device) == []
    assert logger.reports


def test_without_a_log_everything_counts_as_written(device: PCIDevice, logger: Logger) -> None:
    logger.replace[-1] = lambda message: refusal(message, errno.ENOTTY)
    assert device.dma.dirty.start() is DirtyKind.EVERYTHING
    assert pages(device) == pages(device) == list(range(256))
    assert device.dma.unmap(BASE, SIZE, dirty=True).count == 256
    device.dma.dirty.stop()
    assert (logger.starts, logger.stops) == ([], 0)


# What a server says


@pytest.mark.parametrize("chosen", [1, 2048, 3 * PAGE, 1 << 31, (1 << 64) - 1])
def test_pages_that_make_no_sense_break_the_protocol(
    chosen: int, device: PCIDevice, logger: Logger
) -> None:
    logger.page_size = chosen
    with pytest.raises(RemoteProtocolError, match=f"chose {chosen} bytes"):
        device.dma.dirty.start()
    assert device.dma.dirty.kind is None
    assert logger.stops == 1


@pytest.mark.parametrize("data", [b"", bytes(8), bytes(15)])
def test_a_start_that_is_cut_short_breaks_the_protocol(
    data: bytes, device: PCIDevice, logger: Logger
) -> None:
    logger.replace[LOGGING_START] = lambda message: feature_reply(message, data)
    with pytest.raises(RemoteProtocolError):
        device.dma.dirty.start()
    assert device.dma.dirty.kind is None


def test_a_start_that_is_refused_leaves_tracking_off(device: PCIDevice, logger: Logger) -> None:
    logger.replace[LOGGING_START] = lambda message: refusal(message, errno.ENOMEM)
    with pytest.raises(DMAError, match="start of dma logging") as caught:
        device.dma.dirty.start()
    assert (caught.value.errno, device.dma.dirty.kind) == (errno.ENOMEM, None)
    del logger.replace[LOGGING_START]
    device.dma.dirty.start()


def bitmap_of(message: Message, size: int) -> bytes:
    return feature_reply(message, message.payload[8:32] + bytes(size))


@pytest.mark.parametrize(
    "make",
    [
        lambda message: bitmap_of(message, 0),
        lambda message: bitmap_of(message, 24),
        lambda message: feature_reply(message, bytes(24 + 32)),
        lambda message: feature_reply(message, b""),
    ],
    ids=["no bitmap", "short", "another range", "nothing"],
)
def test_a_report_that_contradicts_itself_breaks_the_protocol(
    make: Callable[[Message], bytes], device: PCIDevice, logger: Logger
) -> None:
    device.dma.dirty.start()
    logger.replace[LOGGING_REPORT] = make
    with pytest.raises(RemoteProtocolError):
        pages(device)
    del logger.replace[LOGGING_REPORT]
    # What the log had is lost: all of it may have been written.
    assert pages(device) == list(range(256))


def test_a_report_that_is_longer_than_it_can_be_loses_the_server(
    device: PCIDevice, logger: Logger
) -> None:
    device.dma.dirty.start()
    logger.replace[LOGGING_REPORT] = lambda message: bitmap_of(message, 40)
    with pytest.raises(RemoteProtocolError):
        pages(device)
    assert device.lost


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EINVAL, errno.ENOMEM])
def test_after_a_report_that_is_refused_everything_counts_as_written(
    number: int, device: PCIDevice, logger: Logger
) -> None:
    with SharedMemory(PAGE) as memory:
        device.dma.map(memory, iova=0)
        device.dma.dirty.start()
        logger.dirty = [(0, 1)]

        def refuse(message: Message) -> bytes:
            if struct.unpack_from("<Q", message.payload, 8)[0] == BASE:
                return refusal(message, number)
            return feature_reply(message, logger.report(message))

        logger.replace[LOGGING_REPORT] = refuse
        with pytest.raises(DMAError, match="report") as caught:
            pages(device, 0, BASE + SIZE)
        assert caught.value.errno == number
        del logger.replace[LOGGING_REPORT]
        # What the other map's log said is not lost with it.
        first = BASE // PAGE
        assert pages(device, 0, BASE + SIZE) == [0, *range(first, first + 256)]
        assert pages(device, 0, BASE + SIZE) == []
        device.dma.unmap(0, PAGE)


def test_bits_behind_a_map_are_dropped(logger: Logger) -> None:
    with pyvfio.open(logger.server.uri) as device, SharedMemory(3 * PAGE) as memory:
        device.dma.map(memory, iova=BASE)
        device.dma.dirty.start()
        logger.replace[LOGGING_REPORT] = lambda message: feature_reply(
            message, message.payload[8:32] + b"\xff" * 8
        )
        assert pages(device) == [0, 1, 2]


def test_a_stop_that_is_refused_is_told_and_tracking_is_off(
    device: PCIDevice, logger: Logger
) -> None:
    device.dma.dirty.start()
    logger.replace[LOGGING_STOP] = lambda message: refusal(message, errno.EIO)
    with pytest.raises(DMAError, match="stop of dma logging"):
        device.dma.dirty.stop()
    assert device.dma.dirty.kind is None
    device.dma.dirty.stop()


@pytest.mark.parametrize("feature", [LOGGING_START, LOGGING_REPORT])
def test_a_server_that_dies_is_lost(
    feature: int, device: PCIDevice, logger: Logger, server: RawServer
) -> None:
    if feature == LOGGING_REPORT:
        device.dma.dirty.start()

    def die(_: Message) -> bytes:
        server.hang_up()
        return b""

    logger.replace[feature] = die
    with pytest.raises(ConnectionLost):
        device.dma.dirty.start() if feature == LOGGING_START else pages(device)
    device.dma.dirty.stop()
    assert device.dma.dirty.kind is None


# A server that was started again


@pytest.fixture
def orphan(socket_folder: Path) -> Iterator[PCIDevice]:
    """A device whose server logged, and is gone."""
    path = socket_folder / "again.sock"
    with SharedMemory(SIZE) as memory:
        with RawServer(path) as server:
            Logger(server)
            device = pyvfio.open(server.uri)
            device.dma.map(memory, iova=BASE)
            assert device.dma.dirty.start() is DirtyKind.DEVICE
        with device:
            yield device


def another(device: PCIDevice) -> RawServer:
    """Another server where that of a device was."""
    return RawServer(Path(device.uri.removeprefix("vfio-user:")))


def test_a_server_that_was_started_again_logs_again(orphan: PCIDevice) -> None:
    with another(orphan) as server:
        logger = Logger(server)
        orphan.reconnect(timeout=5)
        assert orphan.dma.dirty.kind is DirtyKind.DEVICE
        logger.dirty = [(BASE + 3 * PAGE, 1)]
        assert pages(orphan) == list(range(256))  # what the first one had logged is lost
        logger.dirty = [(BASE + 3 * PAGE, 1)]
        assert pages(orphan) == [3]


def test_a_server_that_does_not_log_again_is_not_trusted(orphan: PCIDevice) -> None:
    with another(orphan) as server:
        Logger(server).replace[LOGGING_START] = lambda message: refusal(message, errno.ENOTSUP)
        orphan.reconnect(timeout=5)
        assert orphan.dma.dirty.kind is DirtyKind.EVERYTHING
        assert pages(orphan) == pages(orphan) == list(range(256))


@pytest.fixture
def exposed(socket_folder: Path) -> Iterator[PCIDevice]:
    """A device whose server had to write by messages, and is gone."""
    path = socket_folder / "exposed.sock"
    with SharedMemory(SIZE) as memory:
        with RawServer(path) as server:
            server.capabilities = b'{"capabilities":{"max_msg_fds":0}}\0'
            device = pyvfio.open(server.uri)
            device.dma.map(memory, iova=BASE)
            assert device.dma.dirty.start() is DirtyKind.WRITES
        with device:
            yield device


def test_a_server_that_takes_descriptors_after_one_that_took_none_logs(exposed: PCIDevice) -> None:
    with another(exposed) as server:
        server.capabilities = SHARED % (1 << 20)
        logger = Logger(server)
        exposed.reconnect(timeout=5)
        assert exposed.dma.dirty.kind is DirtyKind.DEVICE
        assert pages(exposed) == list(range(256))
        logger.dirty = [(BASE + 3 * PAGE, 1)]
        assert pages(exposed) == [3]


def test_a_server_that_takes_descriptors_and_does_not_log_is_not_trusted(
    exposed: PCIDevice,
) -> None:
    with another(exposed) as server:
        server.capabilities = SHARED % (1 << 20)
        Logger(server).replace[LOGGING_START] = lambda message: refusal(message, errno.ENOTSUP)
        exposed.reconnect(timeout=5)
        assert exposed.dma.dirty.kind is DirtyKind.EVERYTHING
        assert pages(exposed) == pages(exposed) == list(range(256))


def test_a_server_that_dies_when_it_is_to_log_again_stays_lost(orphan: PCIDevice) -> None:
    with another(orphan) as server:

        def die(_: Message) -> bytes:
            server.hang_up()
            return b""

        Logger(server).replace[LOGGING_START] = die
        with pytest.raises(ConnectionLost):
            orphan.reconnect(timeout=5)
        assert orphan.lost
    with another(orphan) as server:
        Logger(server)
        orphan.reconnect(timeout=5)
        assert orphan.dma.dirty.kind is DirtyKind.DEVICE
        assert pages(orphan) == list(range(256))
