# SPDX-License-Identifier: BSD-3-Clause
"""A device is reached again after its server went away: what is as before, and what is told."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    DeviceNotFound,
    DMAError,
    IRQError,
    NegotiationError,
    OpenError,
    VFIOTimeout,
)
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.pci import Command
from tests.conformance.devices import MEMORY, REGISTERS, TO_CLIENT, TO_DEVICE, Dev, fire, run_dma
from tests.fault import raw
from tests.fault.raw import Message, RawServer
from tests.support import ServerProcess, eventually, open_fds

PAGE = 4096
WAIT = 20.0


@pytest.fixture
def device(path: Path, served: Callable[[str], ServerProcess]) -> Iterator[PCIDevice]:
    """A test device whose server can be started again."""
    served("testdev")
    with pyvfio.open(f"vfio-user:{path}") as dev:
        yield dev


def restart(device: PCIDevice, served: Callable[[str], ServerProcess]) -> None:
    """Kill the server, start it again, and wait until the device knows of its loss."""
    served("testdev")
    assert eventually(lambda: device.lost)


# What is as before


def test_registers_are_reached_again(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    bar = device.bars[REGISTERS]
    restart(device, served)
    with pytest.raises(ConnectionLost):
        bar.read32(Dev.ID)
    done = device.reconnect()
    assert not device.lost
    assert bar.read32(Dev.ID) == 0x54534554
    assert (done.maps, done.vectors, done.failures, done.signals) == (0, 0, (), 0)


def test_memory_is_mapped_at_its_address_with_its_contents(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    device.bus_master = True
    buffers = [device.dma.alloc(PAGE) for _ in range(100)]
    with device.dma.alloc(PAGE, address_bits=32) as buffer:
        data = os.urandom(PAGE)
        buffer.array[:] = memoryview(data)
        before = device.dma.mappings
        restart(device, served)
        assert device.reconnect().maps == 101
        assert device.dma.mappings == before
        assert run_dma(device, TO_DEVICE, buffer.iova, 0, PAGE) == 0
        assert device.bars[MEMORY].read_bytes(0, PAGE) == data
        buffer.array[:] = 0
        assert run_dma(device, TO_CLIENT, buffer.iova, 0, PAGE) == 0
        assert bytes(buffer.array) == data
    for one in buffers:
        one.close()
    assert device.dma.mappings == ()


def test_interrupts_signal_the_same_eventfds(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    with device.msix.enable(4) as irqs:
        fds = irqs.filenos()
        restart(device, served)
        assert device.reconnect().vectors == 4
        assert irqs.filenos() == fds
        fire(device, 3)
        assert irqs[3].wait(WAIT) == 1


def test_the_command_register_is_put_back(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    device.bus_master = True
    before = device.config.command
    restart(device, served)
    device.reconnect()
    assert device.config.command == before
    assert before & (Command.MASTER | Command.MEMORY)


def test_what_was_chosen_for_a_region_stays(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    bar = device.bars[REGISTERS]
    assert bar.posted
    bar.posted = False
    restart(device, served)
    device.reconnect()
    assert not bar.posted


def test_mapped_memory_is_that_of_the_new_server(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    memory = device.bars[MEMORY]
    memory.write32(0, 0x12345678)
    restart(device, served)
    done = device.reconnect()
    assert memory.mapped
    assert memory.read32(0) == 0
    assert done.stale_views == ()


def test_io_eventfds_are_those_of_the_new_server(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    bar = device.bars[REGISTERS]
    (old, _) = bar.io_eventfds
    restart(device, served)
    device.reconnect()
    with pytest.raises(DeviceClosed, match="connection that is gone"):
        old.kick()
    bar.io_eventfds[0].kick()
    assert eventually(lambda: bar.read32(Dev.KICKS) == 1)


def test_the_server_is_waited_for(
    device: PCIDevice, path: Path, served: Callable[[str], ServerProcess]
) -> None:
    restart(device, served)
    starting = threading.Timer(0.3, served, ["testdev"])
    os.unlink(path)
    starting.start()
    device.reconnect(timeout=WAIT)
    starting.join()
    assert device.bars[REGISTERS].read32(Dev.ID) == 0x54534554


def test_it_can_be_done_again_and_again_and_leaves_nothing(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    device.bars[MEMORY].read32(0)
    device.dma.alloc(PAGE)
    irqs = device.msix.enable(2)
    counts = []
    for _ in range(3):
        restart(device, served)
        device.reconnect()
        fire(device, 1)
        assert irqs[1].wait(WAIT) == 1
        device.bars[MEMORY].read32(0)
        counts.append(len(open_fds()))
    assert len(set(counts)) == 1


def test_a_connection_that_lives_is_made_anew(device: PCIDevice) -> None:
    device.bars[REGISTERS].write32(Dev.SCRATCH, 7)
    with device.msix.enable(1) as irqs:
        device.flush()
        device.reconnect()
        fire(device, 0)
        assert irqs[0].wait(WAIT) == 1
    assert device.bars[REGISTERS].read32(Dev.SCRATCH) == 7  # the server has kept the device


# What is told


def test_who_waits_for_an_interrupt_hears_of_the_loss_and_can_wait_again(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    with device.msix.enable(1) as irqs:
        heard = threading.Event()

        def wait() -> None:
            try:
                irqs[0].wait(WAIT)
            except ConnectionLost:
                heard.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        restart(device, served)
        waiter.join()
        assert heard.is_set()
        device.reconnect()
        with pytest.raises(VFIOTimeout):
            irqs[0].wait(0)
        fire(device, 0)
        assert asyncio.run(asyncio.wait_for(_await(irqs[0]), WAIT)) == 1


async def _await(irq: pyvfio.IRQ) -> int:
    return await irq


def test_signals_that_nobody_waited_for_are_counted_and_dropped(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    with device.msix.enable(2) as irqs:
        for _ in range(3):
            fire(device, 1)
        device.flush()
        restart(device, served)
        assert device.reconnect().signals == 3
        with pytest.raises(VFIOTimeout):
            irqs[1].wait(0)


def test_views_of_the_old_memory_are_named(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    view = device.bars[MEMORY].view(0, 16)
    view[:] = 0x5A
    restart(device, served)
    assert device.reconnect().stale_views == (f"bar{MEMORY}",)
    assert bytes(view) == b"\x5a" * 16
    assert device.bars[MEMORY].read8(0) == 0


def test_posted_writes_whose_fate_is_not_known_are_told(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    device.bars[REGISTERS].write32(Dev.SCRATCH, 1)
    restart(device, served)
    assert device.reconnect().unflushed
    device.bars[REGISTERS].write32(Dev.SCRATCH, 1)
    device.flush()
    restart(device, served)
    assert not device.reconnect().unflushed


def test_a_map_of_the_lost_devices_own_memory_is_told(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    memory = device.bars[MEMORY].device_memory(0, PAGE)
    kept = device.dma.alloc(PAGE)
    device.dma.map(memory, iova=1 << 30, offset=memory.start, size=PAGE)
    restart(device, served)
    (failure,) = device.reconnect(WAIT).failures
    assert isinstance(failure, DeviceClosed)
    assert [entry.iova for entry in device.dma.mappings] == [kept.iova]


# What fails


def stays_lost_until_there_is_a_server(device: PCIDevice, path: Path) -> bool:
    """Try to reach a device whose socket is away, and again when it is back."""
    os.rename(path, f"{path}.away")
    with pytest.raises(DeviceNotFound):
        device.reconnect()
    lost = device.lost
    with pytest.raises(ConnectionLost):
        device.bars[REGISTERS].read32(Dev.ID)
    os.rename(f"{path}.away", path)
    device.reconnect()
    return lost and device.bars[REGISTERS].read32(Dev.ID) == 0x54534554


def test_a_server_that_is_not_there_leaves_the_device_lost(
    device: PCIDevice, path: Path, served: Callable[[str], ServerProcess]
) -> None:
    restart(device, served)
    assert stays_lost_until_there_is_a_server(device, path)


def test_a_connection_that_was_given_up_for_nothing_is_lost(device: PCIDevice, path: Path) -> None:
    assert stays_lost_until_there_is_a_server(device, path)


def test_another_device_is_not_taken_for_the_old_one(
    device: PCIDevice, served: Callable[[str], ServerProcess]
) -> None:
    device.dma.alloc(PAGE)
    served("edu")
    assert eventually(lambda: device.lost)
    with pytest.raises(OpenError, match="another device answers"):
        device.reconnect()
    assert device.lost
    served("testdev")
    assert device.reconnect().maps == 1


def test_a_loss_that_only_we_know_of_is_told_to_the_server(device: PCIDevice) -> None:
    def interrupt(*_: object) -> None:
        raise RuntimeError("a signal handler's")

    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # what a handler raises in a callback of the collector nobody hears of
    try:
        while not device.lost:
            with suppress(RuntimeError, ConnectionLost):
                signal.setitimer(signal.ITIMER_REAL, 0.0005, 1.0)
                while True:
                    device.bars[REGISTERS].read32(Dev.ID)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    device.reconnect(timeout=WAIT)  # the server serves one client at a time
    assert device.bars[REGISTERS].read32(Dev.ID) == 0x54534554


def test_a_server_that_hangs_up_while_it_ends_is_waited_for(
    path: Path, raw_device: PCIDevice
) -> None:
    """It takes us into its queue of clients, and closes that."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ending:
        ending.bind(str(path))
        ending.listen()

        def end_and_start() -> None:
            ending.accept()[0].close()
            path.unlink()
            servers.append(RawServer(path))

        servers: list[RawServer] = []
        starter = threading.Thread(target=end_and_start)
        starter.start()
        raw_device.reconnect(timeout=WAIT)
        starter.join()
    assert not raw_device.lost
    servers[0].close()


def test_a_batch_is_ended_first(device: PCIDevice) -> None:
    with device.dma.batch(), pytest.raises(ValueError, match="within a batch"):
        device.reconnect()
    assert not device.lost


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_a_time_out_that_is_none_gives_nothing_up(device: PCIDevice, timeout: float) -> None:
    with pytest.raises(ValueError, match="a timeout of"):
        device.reconnect(timeout)
    assert not device.lost


def test_interrupts_that_are_refused_half_way_are_off(path: Path, prepared: Prepared) -> None:
    with RawServer(path) as server:
        server.capabilities = b'{"capabilities":{"max_msg_fds":1}}\0'
        once = iter([True])

        def refuse_the_second(message: Message) -> None:
            if message.fds and not next(once, False):
                server.peer.send(raw.refusal(message, errno.EIO))
            else:
                server.serve(message)

        server.handlers[raw.SET_IRQS] = refuse_the_second
        assert prepared.device.reconnect().vectors == 0
        last = server.last(raw.SET_IRQS)
        assert last.words("IIIII")[1:] == (raw.NONE | raw.TRIGGER, raw.MSI, 0, 0)


def test_a_closed_device_is_not_reached_again(device: PCIDevice) -> None:
    device.close()
    with pytest.raises(DeviceClosed):
        device.reconnect()


# Servers that come back different


@pytest.fixture
def raw_device(path: Path) -> Iterator[PCIDevice]:
    """A device of a hand-made server, which is gone."""
    with RawServer(path) as server:
        device = pyvfio.open(server.uri, timeout=0.5)
    with device:
        assert eventually(lambda: device.lost)
        yield device


def test_a_region_of_another_size_is_another_device(path: Path, raw_device: PCIDevice) -> None:
    with RawServer(path) as server:
        server.regions[0] = (raw.READABLE | raw.WRITABLE, 8192)
        with pytest.raises(OpenError, match="region 0"):
            raw_device.reconnect()
        assert raw.DMA_MAP not in server.commands()


def test_other_ids_are_another_device_and_get_no_memory(path: Path, raw_device: PCIDevice) -> None:
    with RawServer(path) as server:
        server.memory[raw.CONFIG][0:4] = b"\x34\x12\x99\x99"
        with pytest.raises(OpenError, match="1234:9999 instead of 0000:0000"):
            raw_device.reconnect()
        assert raw.DMA_MAP not in server.commands()
        assert raw.SET_IRQS not in server.commands()


def test_another_number_of_interrupts_is_another_device(path: Path, raw_device: PCIDevice) -> None:
    with RawServer(path) as server:
        server.handlers[raw.GET_INFO] = lambda message: server.peer.send(
            raw.answer(message, raw.device_info(irqs=4))
        )
        with pytest.raises(OpenError, match="another device"):
            raw_device.reconnect()


def test_a_server_that_does_not_agree_leaves_the_device_lost(
    path: Path, raw_device: PCIDevice
) -> None:
    with RawServer(path) as server:
        server.handlers[raw.VERSION] = lambda message: server.peer.send(
            raw.answer(message, raw.version(7, 0))
        )
        with pytest.raises(NegotiationError):
            raw_device.reconnect()
    assert raw_device.lost


@pytest.mark.parametrize("command", [raw.VERSION, raw.GET_INFO, raw.GET_REGION_INFO])
@pytest.mark.parametrize("failure", ["silence", "hang up"])
def test_a_server_that_gives_up_half_way_leaves_the_device_lost(
    path: Path, raw_device: PCIDevice, command: int, failure: str
) -> None:
    with RawServer(path) as server:
        silent: raw.Handler = lambda _: None  # noqa: E731
        server.handlers[command] = silent if failure == "silence" else lambda _: server.hang_up()
        with pytest.raises((VFIOTimeout, ConnectionLost)):
            raw_device.reconnect()
    assert raw_device.lost
    with RawServer(path):
        raw_device.reconnect()
        assert not raw_device.lost


class Prepared:
    """A device with maps and interrupts whose hand-made server is gone."""

    def __init__(self, path: Path) -> None:
        with RawServer(path) as server:
            self.device = pyvfio.open(server.uri, timeout=0.5)
            self.buffers = [self.device.dma.alloc(PAGE) for _ in range(3)]
            self.irqs = self.device.msi.enable(2)
        assert eventually(lambda: self.device.lost)


@pytest.fixture
def prepared(path: Path) -> Iterator[Prepared]:
    found = Prepared(path)
    yield found
    found.device.close()


def test_a_map_that_is_refused_is_told_and_gone(path: Path, prepared: Prepared) -> None:
    bad = prepared.buffers[1]

    def refuse(message: Message) -> None:
        if message.words("IIQQ")[3] == bad.iova:
            server.peer.send(raw.refusal(message, errno.ENOSPC))
        else:
            server.serve(message)

    with RawServer(path) as server:
        server.handlers[raw.DMA_MAP] = refuse
        done = prepared.device.reconnect()
        (failure,) = done.failures
        assert isinstance(failure, DMAError)
        assert (failure.iova, failure.size, failure.errno) == (bad.iova, PAGE, errno.ENOSPC)
        assert (done.maps, done.vectors) == (2, 2)
        with pytest.raises(DeviceClosed):
            bad.array  # noqa: B018
        assert prepared.buffers[0].array.size == PAGE


def test_interrupts_that_are_refused_are_told_and_closed(path: Path, prepared: Prepared) -> None:
    with RawServer(path) as server:
        server.handlers[raw.SET_IRQS] = lambda message: server.peer.send(
            raw.refusal(message, errno.EIO)
        )
        done = prepared.device.reconnect()
        (failure,) = done.failures
        assert isinstance(failure, IRQError)
        assert (done.maps, done.vectors) == (3, 0)
        assert prepared.irqs.closed


@pytest.mark.parametrize("command", [raw.DMA_MAP, raw.SET_IRQS])
def test_an_interrupt_half_way_leaves_the_device_lost(
    path: Path, prepared: Prepared, command: int
) -> None:
    with RawServer(path) as server:

        def interrupt(_: raw.Message) -> None:
            del server.handlers[command]  # one interrupt is enough: others come too late
            os.kill(os.getpid(), signal.SIGINT)

        server.handlers[command] = interrupt
        with pytest.raises(KeyboardInterrupt):
            prepared.device.reconnect()
        assert prepared.device.lost
    with RawServer(path) as server:
        done = prepared.device.reconnect()
        assert (done.maps, done.vectors, done.failures) == (3, 2, ())
        with prepared.device.dma.alloc(PAGE):
            assert len(prepared.device.dma.mappings) == 4


@pytest.mark.parametrize("command", [raw.DMA_MAP, raw.SET_IRQS])
def test_a_server_that_goes_again_meanwhile_costs_nothing(
    path: Path, prepared: Prepared, command: int
) -> None:
    with RawServer(path) as server:
        server.handlers[command] = lambda _: server.hang_up()
        with pytest.raises(ConnectionLost):
            prepared.device.reconnect()
    assert prepared.device.lost
    with RawServer(path) as server:
        done = prepared.device.reconnect()
        assert (done.maps, done.vectors, done.failures) == (3, 2, ())
        assert {message.words("IIQQ")[3] for message in server.seen if message.command == 2} == {
            buffer.iova for buffer in prepared.buffers
        }


def test_regions_keep_their_descriptors_where_reconnecting_fails(
    device: PCIDevice, path: Path
) -> None:
    (kicked, *_) = device.bars[REGISTERS].io_eventfds
    fd = device.bars[MEMORY].info.fd
    assert fd is not None
    before = os.fstat(kicked.fileno()), os.fstat(fd)
    path.unlink()
    with pytest.raises(DeviceNotFound):
        device.reconnect()
    # Otherwise another file may have their numbers now, and be signalled and mapped.
    assert (os.fstat(kicked.fileno()), os.fstat(fd)) == before
    kicked.kick()
