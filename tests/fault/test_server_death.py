# SPDX-License-Identifier: BSD-3-Clause
"""Servers and clients that are killed, stopped or in the way, and what is left of them.

Loss of the server wakes everybody at once; the program lives on and can let go of everything.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import ConnectionLost, DeviceClosed, VFIOTimeout
from pyvfio.pci.device import PCIDevice
from tests.fault import raw
from tests.fault.clients import ASKING, have_callback_ask, have_test_device_ask
from tests.fault.raw import RawClient
from tests.support import (
    ROOT,
    ServerProcess,
    eventually,
    in_threads,
    open_fds,
    shared_segments,
    stopped,
    thread_names,
)

PAGE = 4096
TIMEOUT = 0.3
WAKE_SECONDS = 1.0
"""How soon everybody who waits hears of a loss."""

Serve = Callable[..., ServerProcess]


@pytest.fixture
def server(serve: Serve) -> ServerProcess:
    return serve("edu")


@pytest.fixture
def device(server: ServerProcess) -> Iterator[PCIDevice]:
    with pyvfio.open(server.uri) as dev:
        yield dev


def pyvfio_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the ``pyvfio`` command."""
    return subprocess.run(
        [sys.executable, "-m", "pyvfio", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Everybody who waits


class Waiters:
    """Threads that wait for something, and how each wait ended."""

    def __init__(self, *waits: Callable[[], object]) -> None:
        self.ends: list[BaseException | None] = []
        self._started = threading.Barrier(len(waits) + 1)
        self._threads = in_threads(partial(self._wait, wait) for wait in waits)
        self._started.wait()
        time.sleep(0.1)  # into the wait itself, which nothing tells apart from the way to it

    def _wait(self, wait: Callable[[], object]) -> None:
        self._started.wait()
        try:
            wait()
        except Exception as error:
            self.ends.append(error)
        else:
            self.ends.append(None)

    def join(self, seconds: float) -> bool:
        """Whether all waits ended within a time."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def all_lost(self) -> bool:
        """Whether each wait ended with the loss of the connection."""
        return all(isinstance(error, ConnectionLost) for error in self.ends)


def test_a_killed_server_wakes_all_who_wait_for_an_interrupt(
    server: ServerProcess, device: PCIDevice
) -> None:
    irqs = device.msi.enable(1)
    waiters = Waiters(*[partial(irqs[0].wait, 20)] * 4)
    server.kill()
    assert waiters.join(WAKE_SECONDS)
    assert waiters.all_lost()


def stop_and_read(
    server: ServerProcess, bar: pyvfio.Region, readers: int
) -> list[Callable[[], object]]:
    """Reads that a stopped server leaves unanswered; its death ends the stop as well."""
    os.kill(server.pid, signal.SIGSTOP)
    return [partial(bar.read32, 4 * number) for number in range(readers)]


def test_a_killed_server_wakes_waits_of_every_kind(
    server: ServerProcess, device: PCIDevice
) -> None:
    irqs = device.msi.enable(1)
    bar = device.bars[0]

    async def await_irq() -> None:
        await irqs[0]

    waiters = Waiters(
        partial(irqs[0].wait, 20),
        partial(irqs[0].wait, None),
        lambda: asyncio.run(await_irq()),
        *stop_and_read(server, bar, readers=3),
    )
    server.kill()
    assert waiters.join(WAKE_SECONDS)
    assert waiters.all_lost()


@pytest.mark.parametrize("threads", [2, 8])
def test_a_killed_server_wakes_threads_that_never_stop_reading(
    server: ServerProcess, device: PCIDevice, threads: int
) -> None:
    bar = device.bars[0]

    def read_for_ever() -> None:
        while True:
            bar.read32(0)

    waiters = Waiters(*[read_for_ever] * threads)
    server.kill()
    assert waiters.join(WAKE_SECONDS)
    assert waiters.all_lost()


def test_a_killed_server_wakes_a_program_that_awaits_in_its_own_loop(
    server: ServerProcess, device: PCIDevice
) -> None:
    irqs = device.msi.enable(1)

    async def await_irq() -> int:
        return await irqs[0]

    async def program() -> list[BaseException | int]:
        asyncio.get_running_loop().call_later(0.1, server.kill)
        waits = (asyncio.wait_for(await_irq(), 5) for _ in range(3))
        return await asyncio.gather(*waits, return_exceptions=True)

    assert [type(end) for end in asyncio.run(program())] == [ConnectionLost] * 3


def test_a_killed_server_is_noticed_by_a_program_that_polls_the_descriptor(
    server: ServerProcess, device: PCIDevice
) -> None:
    irqs = device.msi.enable(1)
    server.kill()
    ready, _, _ = select.select([irqs[0].fileno()], [], [], WAKE_SECONDS)
    assert ready
    with pytest.raises(ConnectionLost):
        irqs[0].wait(0)


def test_an_interrupt_that_fired_before_the_loss_is_not_delivered(
    server: ServerProcess, device: PCIDevice
) -> None:
    irqs = device.msi.enable(1)
    device.bars[0].write32(0x60, 1)
    server.kill()
    assert eventually(lambda: device.lost)
    with pytest.raises(ConnectionLost):
        irqs[0].wait(0)


# After the loss


@pytest.fixture(scope="module")
def lost_device(socket_folder: Path) -> Iterator[PCIDevice]:
    """A device in use whose server was killed."""
    with (
        ServerProcess("edu", socket_folder / "lost.sock") as server,
        pyvfio.open(server.uri) as device,
    ):
        device.msi.enable(1)
        device.bars[0].read32(0)
        server.kill()
        assert eventually(lambda: device.lost)
        yield device


CALLS: dict[str, Callable[[PCIDevice], object]] = {
    "read a register": lambda device: device.bars[0].read32(0),
    "write a register": lambda device: device.bars[0].write32(4, 0),
    "read configuration": lambda device: device.config.vendor_id,
    "write configuration": lambda device: setattr(device, "bus_master", True),
    "read bytes": lambda device: device.bars[0].read_bytes(0, 64),
    "list capabilities": lambda device: list(device.config.capabilities()),
    "another region": lambda device: device.base.region(8),
    "an interrupt index": lambda device: device.base.irq_info(2),
    "enable interrupts": lambda device: device.base.enable_irqs(0, 1),
    "set up interrupts": lambda device: device.intx.mask(),
    "DMA memory": lambda device: device.dma.alloc(PAGE),
    "reset": lambda device: device.reset(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_after_a_loss_every_call_says_so(
    lost_device: PCIDevice, call: Callable[[PCIDevice], object]
) -> None:
    with pytest.raises(ConnectionLost):
        call(lost_device)


def test_after_a_loss_a_posted_write_says_so(lost_device: PCIDevice) -> None:
    bar = lost_device.bars[0]
    bar.posted = True
    with pytest.raises(ConnectionLost):
        bar.write32(4, 0)
    bar.posted = False


def test_after_a_loss_the_error_names_the_device(lost_device: PCIDevice) -> None:
    with pytest.raises(ConnectionLost) as caught:
        lost_device.bars[0].read32(0)
    assert caught.value.uri == lost_device.uri


def test_after_a_loss_an_irq_set_closes(server: ServerProcess, device: PCIDevice) -> None:
    irqs = device.msi.enable(1)
    server.kill()
    irqs.close()
    assert irqs.closed


def test_after_a_loss_a_dma_buffer_closes(server: ServerProcess, device: PCIDevice) -> None:
    buffer = device.dma.alloc(PAGE)
    server.kill()
    buffer.close()
    assert device.dma.mappings == ()


def test_after_a_loss_the_device_closes_and_leaves_nothing(server: ServerProcess) -> None:
    before, threads = len(open_fds()), thread_names()
    device = pyvfio.open(server.uri)
    device.msi.enable(1)
    device.dma.alloc(PAGE)
    server.kill()
    device.close()
    assert len(open_fds()) == before
    assert thread_names() <= threads


def test_after_close_a_lost_device_is_closed(server: ServerProcess, device: PCIDevice) -> None:
    server.kill()
    device.close()
    with pytest.raises(DeviceClosed):
        device.base.irq_info(0)


def test_after_a_loss_numpy_views_of_dma_memory_stay_readable(server: ServerProcess) -> None:
    device = pyvfio.open(server.uri)
    view = device.dma.alloc(PAGE).array
    view[:] = 0x5A
    server.kill()
    with pytest.warns(ResourceWarning, match="numpy view"):
        device.close()
    assert (view == 0x5A).all()


@pytest.mark.usefixtures("device")
def test_after_a_loss_a_new_server_on_the_same_path_can_be_opened(server: ServerProcess) -> None:
    server.kill()
    with (
        ServerProcess("edu", server.path) as following,
        pyvfio.open(following.uri) as device,
    ):
        assert device.bars[0].read32(0) == 0x010000ED


# A server that stands still


def test_calls_to_a_stopped_server_time_out(server: ServerProcess) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        bar = device.bars[0]
        with stopped(server):
            for _ in range(3):
                with pytest.raises(VFIOTimeout):
                    bar.read32(0)


def test_after_a_stop_the_connection_goes_on_in_step(server: ServerProcess) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        bar = device.bars[0]
        with stopped(server):
            for register in (0, 4):
                with pytest.raises(VFIOTimeout):
                    bar.read32(register)
        bar.write32(4, 0x12345678)
        assert bar.read32(4) == 0xEDCBA987


def test_a_stopped_server_does_not_keep_a_device_from_closing(server: ServerProcess) -> None:
    device = pyvfio.open(server.uri, timeout=60)
    with stopped(server):
        device.close()
    assert device.closed


def test_a_buffer_that_a_stopped_server_did_not_unmap_is_still_mapped(
    server: ServerProcess,
) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        buffer = device.dma.alloc(PAGE)
        with stopped(server), pytest.raises(VFIOTimeout):
            buffer.close()
        assert [mapping.iova for mapping in device.dma.mappings] == [buffer.iova]


# The command line


def test_info_of_no_socket(socket_folder: Path) -> None:
    uri = f"vfio-user:{socket_folder}/none.sock"
    done = pyvfio_command("info", uri)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        f"pyvfio: open on {uri}: no such socket [ENOENT]",
        "hint: is the server running?",
    ]


def test_info_of_a_socket_that_a_killed_server_left(server: ServerProcess) -> None:
    server.kill()
    done = pyvfio_command("info", server.uri)
    first, hint = done.stderr.splitlines()
    assert done.returncode == 3
    assert first.startswith(f"pyvfio: open on {server.uri}: ")
    assert hint.startswith("hint: ")


def test_info_of_a_file_that_is_no_socket(socket_folder: Path) -> None:
    path = socket_folder / "file"
    path.write_text("not a socket")
    done = pyvfio_command("info", f"vfio-user:{path}")
    assert done.returncode == 3
    assert done.stderr.startswith("pyvfio: open on ")
    path.unlink()


def test_info_of_a_stopped_server_times_out(server: ServerProcess) -> None:
    with stopped(server):
        done = pyvfio_command("info", f"{server.uri}?timeout=0.2")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_info_of_a_server_that_hangs_up(socket_folder: Path) -> None:
    with raw.RawServer(socket_folder / "raw.sock") as peer:
        peer.handlers[raw.GET_REGION_INFO] = lambda _: peer.hang_up()
        done = pyvfio_command("info", peer.uri)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_info_of_a_server_that_talks_nonsense(socket_folder: Path) -> None:
    with raw.RawServer(socket_folder / "raw.sock") as peer:
        peer.handlers[raw.VERSION] = lambda _: peer.peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        done = pyvfio_command("info", peer.uri)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def run_demo_and_kill(server: ServerProcess, after: str) -> tuple[int, str]:
    """Run the demo on ``server``, kill that when a step is done; returns status and stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "pyvfio", "demo", server.uri],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if after in line:
                server.kill()
                break
        _, errors = demo.communicate(timeout=60)
    return demo.returncode, errors


@pytest.mark.parametrize("step", ["identification", "factorial, MSI", "MSI counted"])
def test_a_demo_whose_server_is_killed_ends_with_its_status(
    server: ServerProcess, step: str
) -> None:
    status, errors = run_demo_and_kill(server, step)
    assert status == 3
    assert "Traceback" not in errors
    assert errors.startswith("pyvfio: ")


# How a server ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_end_does(server: ServerProcess, number: int) -> None:
    os.kill(server.pid, number)
    assert server.process.wait(10) == 0
    assert not server.path.exists()


def test_a_server_that_ends_says_nothing(server: ServerProcess) -> None:
    assert server.stop() == (0, "")


def test_a_server_with_a_client_ends_and_the_client_hears_of_it(
    server: ServerProcess, device: PCIDevice
) -> None:
    irqs = device.msi.enable(1)
    waiters = Waiters(partial(irqs[0].wait, 20))
    assert server.stop() == (0, "")
    assert waiters.join(WAKE_SECONDS)
    assert waiters.all_lost()


def ends(server: ServerProcess, seconds: float = 10.0) -> bool:
    """Whether a server ends when it is asked to; it is killed where it does not."""
    server.process.terminate()
    try:
        server.process.wait(seconds)
    except subprocess.TimeoutExpired:
        server.kill()
        return False
    return True


def test_a_server_ends_though_a_client_has_not_said_a_word(server: ServerProcess) -> None:
    with RawClient(server.path) as client:
        client.send(b"\0")
        assert ends(server)


def test_a_server_ends_in_the_middle_of_a_message(server: ServerProcess) -> None:
    with RawClient(server.path) as client:
        client.negotiate()
        client.send(raw.frame(raw.DMA_MAP, raw.dma_map(0, PAGE))[:20])
        assert ends(server)


@pytest.mark.parametrize(
    ("model", "have_it_ask"),
    [(ASKING, have_callback_ask), ("testdev", have_test_device_ask)],
    ids=["callback", "thread"],
)
def test_a_server_ends_though_a_client_owes_it_an_answer(
    serve: Serve, model: str, have_it_ask: Callable[[RawClient], raw.Message]
) -> None:
    server = serve(model)
    with RawClient(server.path) as client:
        client.negotiate()
        have_it_ask(client)
        assert ends(server)


def test_a_server_ends_though_a_client_does_not_read(serve: Serve) -> None:
    server = serve("testdev")
    with RawClient(server.path) as client:
        client.negotiate()
        client.send(raw.frame(raw.REGION_READ, raw.region_range(2, 0, 1 << 20)) * 100)
        time.sleep(0.5)  # until it has queued all that it queues
        assert ends(server)


def test_a_server_ends_though_a_client_does_not_read_what_the_model_was_waited_for(
    serve: Serve,
) -> None:
    server = serve(ASKING)
    with RawClient(server.path) as client:
        client.negotiate()
        question = have_callback_ask(client)
        client.send(raw.frame(raw.REGION_READ, raw.region_range(2, 0, 1 << 20)) * 100)
        time.sleep(0.3)  # until it has read them all
        client.send(raw.refusal(question, errno.EFAULT))
        time.sleep(0.5)  # until it has queued all that it queues
        assert ends(server)


# Where a server listens


def test_a_socket_that_is_served_is_not_taken(server: ServerProcess) -> None:
    done = pyvfio_command("serve", "edu", "--socket", str(server.path))
    assert done.returncode == 3
    assert "a server listens there already" in done.stderr
    with pyvfio.open(server.uri) as device:
        assert device.config.vendor_id == 0x1234


def test_a_socket_whose_queue_is_full_is_not_taken(socket_folder: Path) -> None:
    path = socket_folder / "full.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen(0)
        client.connect(str(path))
        done = pyvfio_command("serve", "edu", "--socket", str(path))
    assert done.returncode == 3
    path.unlink()


def test_a_socket_that_a_killed_server_left_is_replaced(server: ServerProcess) -> None:
    server.kill()
    assert server.path.exists()
    with ServerProcess("edu", server.path) as following, pyvfio.open(following.uri) as device:
        assert device.config.vendor_id == 0x1234


def test_a_file_in_the_way_is_refused_and_stays(socket_folder: Path) -> None:
    path = socket_folder / "precious"
    path.write_text("data")
    done = pyvfio_command("serve", "edu", "--socket", str(path))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert path.read_text() == "data"
    path.unlink()


@pytest.mark.parametrize("name", ["no/such/folder.sock", "x" * 200])
def test_a_path_that_cannot_be_is_refused(socket_folder: Path, name: str) -> None:
    done = pyvfio_command("serve", "edu", "--socket", str(socket_folder / name))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_a_server_that_ends_leaves_the_socket_of_its_successor(
    server: ServerProcess, socket_folder: Path
) -> None:
    path = server.path
    path.rename(socket_folder / "moved.sock")
    with ServerProcess("edu", path) as following:
        server.stop()
        assert path.exists()
        with pyvfio.open(following.uri) as device:
            assert device.config.vendor_id == 0x1234
    (socket_folder / "moved.sock").unlink()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_may_connect(server: ServerProcess) -> None:
    assert mode_of(server.path) == 0o600


@pytest.mark.parametrize(
    ("mode", "mask"), [(0o600, 0o000), (0o666, 0o000), (0o666, 0o022), (0o660, 0o077)]
)
def test_the_mode_that_is_asked_for_is_the_mode_of_the_file(
    serve: Serve, mode: int, mask: int
) -> None:
    before = os.umask(mask)
    try:
        server = serve("edu", "--mode", f"{mode:o}")
    finally:
        os.umask(before)
    assert mode_of(server.path) == mode


# A client that is killed


HOLDS_MEMORY = """
import sys, time, pyvfio
device = pyvfio.open(sys.argv[1])
buffers = [device.dma.alloc(1 << 20) for _ in range(8)]
irqs = device.msi.enable(1)
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def client_process(uri: str) -> Iterator[subprocess.Popen[str]]:
    """A client in another process that holds DMA memory and interrupts; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_MEMORY, uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            yield client
        finally:
            client.kill()


def test_a_killed_client_leaves_no_shared_memory(server: ServerProcess) -> None:
    before = shared_segments()
    with client_process(server.uri):
        pass
    assert shared_segments() <= before


def test_dma_memory_has_no_name_while_it_is_used(server: ServerProcess) -> None:
    before = shared_segments()
    with client_process(server.uri):
        assert shared_segments() <= before


def test_a_killed_client_leaves_no_descriptor_in_the_server(server: ServerProcess) -> None:
    def held() -> int:
        with RawClient(server.path) as client:
            client.negotiate()
            return len(open_fds(server.pid))

    before = held()
    with client_process(server.uri):
        pass
    assert held() == before


def test_after_a_killed_client_the_next_is_served(server: ServerProcess) -> None:
    with client_process(server.uri):
        pass
    with pyvfio.open(server.uri) as device:
        assert device.config.vendor_id == 0x1234
