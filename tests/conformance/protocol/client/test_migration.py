# SPDX-License-Identifier: BSD-3-Clause
"""The client moves the state of a server, whosever it is, to another of its kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

import pyvfio
from pyvfio.cli.main import main
from pyvfio.migration_file import StateReader
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DeviceState, MigrationFlags
from tests.conformance.devices import Dev, Edu
from tests.conformance.protocol.peers import PEERS, Host, running
from tests.conformance.protocol.specification import needs, spec
from tests.support import eventually

PAGE = 4096
PINS = 64
"""Bytes that gpio-pci-idio-16 gives and takes at once; it ends when it is asked for others."""


class Kind(NamedTuple):
    """How a kind of device is told from a new one.

    :ivar change: give it a state.
    :ivar look: what can be seen of it.
    :ivar piece: bytes in which it is read and written.
    """

    change: Callable[[PCIDevice], None]
    look: Callable[[PCIDevice], object]
    piece: int = 1 << 20


def count_pins(gpio: PCIDevice) -> None:
    """Raise pin 0 once, pin 9 twice: an input is high where that was a multiple of 3 times."""
    for offset, mask in ((0, 1), (4, 2), (4, 2)):
        gpio.bars[2].write8(offset, mask)


def read_pins(gpio: PCIDevice) -> object:
    return gpio.bars[2].read8(1), gpio.bars[2].read8(5)


def set_timer(server: PCIDevice) -> None:
    """A timer that does not run out, and memory."""
    server.bars[0].write64(0, int(time.time()) + 10_000)
    server.bars[1].write_bytes(0, bytes(range(256)) * 16)


def read_timer(server: PCIDevice) -> object:
    """The hour, and the memory."""
    left = (1 << 64) - server.bars[0].read64(0)
    return 9_000 < left <= 10_000, bytes(server.bars[1].read_bytes(0, PAGE))


KINDS = {
    "gpio-pci-idio-16": Kind(count_pins, read_pins, PINS),
    "server": Kind(set_timer, read_timer),
    "edu": Kind(
        lambda edu: edu.bars[0].write32(Edu.IRQ_RAISE, 5),
        lambda edu: edu.bars[0].read32(Edu.IRQ_STATUS),
    ),
    "testdev": Kind(
        lambda testdev: testdev.bars[0].write32(Dev.SCRATCH, 0x1234_5678),
        lambda testdev: testdev.bars[0].read32(Dev.SCRATCH),
    ),
}


@pytest.fixture
def opened(peer: Host) -> Iterator[Callable[[Host], PCIDevice]]:
    """Opens servers; they are closed after the test."""
    with ExitStack() as devices:

        def open_it(host: Host) -> PCIDevice:
            assert eventually(host.path.exists)
            return devices.enter_context(pyvfio.open(f"vfio-user:{host.path}"))

        yield open_it
    assert peer.pid


@pytest.fixture
def source(peer: Host, opened: Callable[[Host], PCIDevice]) -> PCIDevice:
    """The server under test, with a state."""
    device = opened(peer)
    device.reset()  # an earlier test may have left it stopped
    KINDS[peer.peer.name].change(device)
    return device


@pytest.fixture
def destination(
    peer: Host, opened: Callable[[Host], PCIDevice], socket_folder: Path
) -> Iterator[PCIDevice]:
    """Another server of the same kind, which is new."""
    with running(PEERS[peer.peer.name], socket_folder) as host:
        device = opened(host)
        yield device
        device.close()


def save(device: PCIDevice, piece: int) -> list[bytes]:
    """The state of a device, as it gives it; it is stopped."""
    pieces = []
    with device.migration.save() as f:
        while data := f.read(piece):
            pieces.append(data)
    return pieces


@spec("VFIO_USER_DEVICE_FEATURE / VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", "VFIO_USER_MIG_DATA_READ")
@needs("migration")
def test_a_device_that_was_saved_is_stopped_and_can_go_on(peer: Host, source: PCIDevice) -> None:
    kind = KINDS[peer.peer.name]
    before = kind.look(source)
    assert source.migration.flags & MigrationFlags.STOP_COPY
    assert save(source, kind.piece)
    assert source.migration.state is DeviceState.STOP
    source.migration.run()
    assert kind.look(source) == before


@spec(
    "VFIO_USER_MIG_DATA_READ",
    "VFIO_USER_MIG_DATA_WRITE",
    "VFIO_USER_DEVICE_FEATURE / Direct State Transitions",
)
@needs("migration")
def test_what_a_device_has_saved_another_of_its_kind_loads(
    peer: Host, source: PCIDevice, destination: PCIDevice
) -> None:
    kind = KINDS[peer.peer.name]
    before = kind.look(source)
    assert kind.look(destination) != before
    pieces = save(source, kind.piece)
    with destination.migration.load() as f:
        for data in pieces:
            f.write(data)
    assert destination.migration.state is DeviceState.STOP
    destination.migration.run()
    assert kind.look(destination) == before


@spec(
    "VFIO_USER_MIG_DATA_READ",
    "VFIO_USER_MIG_DATA_WRITE",
    "VFIO_USER_DEVICE_FEATURE / Direct State Transitions",
)
@needs("migration")
def test_a_device_is_handed_over_to_another_of_its_kind(
    peer: Host, source: PCIDevice, destination: PCIDevice
) -> None:
    kind = KINDS[peer.peer.name]
    before = kind.look(source)
    done = pyvfio.migrate(source, destination, resume=True, precopy=False, piece=kind.piece)
    assert done.source_failure is None
    states = (source.migration.state, destination.migration.state)
    assert states == (DeviceState.STOP, DeviceState.RUNNING)
    assert kind.look(destination) == before


@pytest.fixture
def two(peer: Host, socket_folder: Path) -> Iterator[list[Host]]:
    """New servers of a kind, each for a client of its own."""
    kind = PEERS[peer.peer.name]
    with running(kind, socket_folder) as one, running(kind, socket_folder) as other:
        assert eventually(lambda: one.path.exists() and other.path.exists())
        yield [one, other]


@spec("VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE")
@needs("migration", "stays")
def test_the_command_moves_a_device(two: list[Host]) -> None:
    kind = KINDS[two[0].peer.name]
    source, destination = (f"vfio-user:{host.path}" for host in two)
    with pyvfio.open(source) as device:
        kind.change(device)
        before = kind.look(device)
    piece = f"--piece={kind.piece}"
    assert main(["migrate", source, "--no-precopy", piece, "--resume", destination]) == 0
    with pyvfio.open(destination) as device:
        assert kind.look(device) == before


@spec("VFIO_USER_MIG_DATA_READ")
@needs("migration")
def test_the_command_saves_a_device(two: list[Host], tmp_path: Path) -> None:
    file, piece = tmp_path / "state", f"--piece={KINDS[two[0].peer.name].piece}"
    uri = f"vfio-user:{two[0].path}"
    assert main(["migrate", "save", "--no-precopy", piece, uri, str(file)]) == 0
    with file.open("rb") as opened:
        reader = StateReader(opened.read, file.name)
        assert sum(map(len, reader.pieces())) == reader.state_size > 0


@spec("VFIO_USER_DEVICE_FEATURE / Direct State Transitions", "VFIO_USER_MIG_DATA_READ / Reply")
@needs("migration")
def test_what_is_read_in_precopy_goes_before_the_rest(
    peer: Host, source: PCIDevice, destination: PCIDevice
) -> None:
    kind, pieces = KINDS[peer.peer.name], []
    before = kind.look(source)
    precopy = bool(source.migration.flags & MigrationFlags.PRE_COPY)
    with source.migration.save(precopy) as f:
        while precopy and (data := f.read(kind.piece)):
            pieces.append(data)
        assert (f.in_precopy, f.complete) == (precopy, False)
        f.stop()
        while data := f.read(kind.piece):
            pieces.append(data)
    assert source.migration.state is DeviceState.STOP
    with destination.migration.load() as f:
        for data in pieces:
            f.write(data)
    destination.migration.run()
    assert kind.look(destination) == before


@spec(
    "VFIO_USER_DEVICE_FEATURE / VFIO_DEVICE_FEATURE_DMA_LOGGING_START"
    " / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP",
    "VFIO_USER_DEVICE_FEATURE / VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT",
)
@needs("timer")
def test_what_a_device_writes_directly_and_by_messages_is_told(
    peer: Host, opened: Callable[[Host], PCIDevice]
) -> None:
    """The sample writes to its first map by messages, to its second by the descriptor."""
    device = opened(peer)
    with device.dma.alloc(4 * PAGE) as first, device.dma.alloc(4 * PAGE) as second:
        assert device.dma.dirty.start() is pyvfio.DirtyKind.DEVICE
        with device.base.enable_irqs(0, 1) as irqs:
            device.bars[0].write64(0, int(time.time()) + 1)
            irqs[0].wait(10)
        assert eventually(lambda: bool(first.array.any()))
        for buffer in (first, second):
            found = device.dma.dirty.report(buffer.iova, buffer.size)
            assert found.page_numbers().tolist() == [0]
            assert device.dma.dirty.report(buffer.iova, buffer.size).count == 0
        device.dma.dirty.stop()
