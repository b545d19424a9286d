# SPDX-License-Identifier: BSD-3-Clause
"""Either end is killed or stopped at a random moment, with traffic of every kind going on.

The other end has every call end cleanly and in time, keeps nothing, and goes on.  Moments are
seeded: the one that failed is in the message, and comes again.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import BackendUnavailable, ConnectionLost, DeviceClosed, VFIOTimeout
from pyvfio.pci.device import PCIDevice
from tests import holdings
from tests.soak import LONG, model
from tests.soak.traffic import AWAIT, OPEN, WAIT, Traffic, kinds
from tests.support import ROOT, ServerProcess, eventually, shared_segments, thread_names

SCALE = 10 if LONG else 1
SERVER_KILLS, SERVER_STOPS, CLIENT_KILLS, CLIENT_STOPS = (SCALE * n for n in (8, 4, 6, 2))

LATEST = 0.4
"""Seconds after the start within which the moment lies; opening takes the first hundredth or so."""

PATIENT, HASTY = 60.0, 0.5
"""Time-outs of clients: longer than any test waits, and short."""

IN_TIME = 10.0
"""Seconds in which all calls must have ended, on a machine that is busy."""

SERVER_TIMEOUT = 5.0
"""Seconds that a server waits for the answer to DMA_READ or DMA_WRITE."""

CLIENT_GONE = (errno.ENOTCONN, errno.EFAULT)
"""What a DMA ends with while, or after, the memory of a client goes."""

WARM_UP = 2
"""Moments before what is held is noted for the first time."""

GROWTH = 8 << 20
"""Bytes by which a process may grow: buffers of some threads, not of each moment."""


def moments(kind: str, count: int) -> Iterator[random.Random]:
    """Sources of chance, one for each moment."""
    for number in range(count):
        yield random.Random(f"{kind} {number}")


class Figures:
    """The longest time that something took."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self._name, self._lines = name, lines
        self.longest, self.count = 0.0, 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take note of one."""
        start = time.monotonic()
        yield
        self.note(time.monotonic() - start)

    def note(self, seconds: float) -> None:
        """Take note of one that was timed elsewhere."""
        self.longest, self.count = max(self.longest, seconds), self.count + 1

    def tell(self) -> None:
        """Add a line to the figures."""
        self._lines.append(f"{self._name}: {self.count}, longest {self.longest:.3f} s")


@pytest.fixture
def path(socket_folder: Path) -> Path:
    return socket_folder / "mortal.sock"


def serve(path: Path) -> ServerProcess:
    return ServerProcess("tests.soak.model:Traffic", path)


class Strike:
    """Sends a signal to a process after some seconds, from a thread.

    :ivar moment: when it did (``time.monotonic()``).
    """

    def __init__(self, pid: int, number: int, seconds: float) -> None:
        self.moment = 0.0
        self._thread = threading.Thread(target=self._run, args=(pid, number, seconds))
        self._thread.start()

    def _run(self, pid: int, number: int, seconds: float) -> None:
        time.sleep(seconds)
        self.moment = time.monotonic()
        os.kill(pid, number)

    def wait(self) -> None:
        """Wait until it has happened."""
        self._thread.join()


def uri_of(server: ServerProcess, chance: random.Random) -> str:
    return f"{server.uri}?twin_socket={chance.choice(['yes', 'no'])}"


def start_traffic(dev: PCIDevice, patience: float) -> Traffic:
    """Traffic of every kind."""
    traffic = Traffic(dev, patience)
    traffic.wait_in_vain()
    traffic.open_again(f"{dev.uri}&timeout={patience}")
    return traffic


def in_step(dev: PCIDevice) -> bool:
    """Whether an answer belongs to its question, though many came late."""
    inverses = dev.bars[model.INVERSES]
    with suppress(VFIOTimeout):
        inverses.write32(0, 0x12345678)
        return inverses.read32(0) == 0xEDCBA987
    return False


def check_ends(traffic: Traffic, *expected: type[Exception], but: tuple[str, ...] = ()) -> None:
    """Each load ended with an error that was to be expected."""
    wrong = [e for name, e in traffic.ends if name not in but and not kinds(e) <= set(expected)]
    assert not wrong
    ended = {name for name, _ in traffic.ends} | set(but)
    assert ended == set(traffic.tallies)


# A server that dies or stands still


def meet_a_kill(server: ServerProcess, chance: random.Random, figures: Figures) -> None:
    uri = uri_of(server, chance)
    strike = Strike(server.pid, signal.SIGKILL, chance.uniform(0, LATEST))
    try:
        with pyvfio.open(uri, timeout=PATIENT, secure_dma=True) as dev:
            traffic = start_traffic(dev, PATIENT)
            strike.wait()
            with figures.timed():
                traffic.join(IN_TIME)
            check_ends(traffic, ConnectionLost, but=(OPEN,))
            check_ends(traffic, ConnectionLost, BackendUnavailable)
    except (ConnectionLost, BackendUnavailable):
        pass  # the moment lay before the traffic
    finally:
        strike.wait()


@pytest.mark.timeout(60 * SERVER_KILLS)
def test_a_killed_server_ends_every_call_with_the_loss(path: Path, figures: list[str]) -> None:
    met = Figures("server killed, all calls of the client ended", figures)
    segments, threads = shared_segments(os.getpid()), thread_names()
    for number, chance in enumerate(moments("server killed", SERVER_KILLS)):
        with serve(path) as server:
            meet_a_kill(server, chance, met)
        if number == WARM_UP:
            before = holdings.own()
    holdings.check_flat(before, holdings.own(), GROWTH)
    assert thread_names() <= threads
    assert shared_segments(os.getpid()) <= segments
    assert met.count
    met.tell()


def meet_a_stop(server: ServerProcess, chance: random.Random, figures: Figures) -> None:
    uri = uri_of(server, chance)
    strike = Strike(server.pid, signal.SIGSTOP, chance.uniform(0, LATEST))
    try:
        with pyvfio.open(uri, timeout=HASTY, secure_dma=True) as dev:
            traffic = start_traffic(dev, HASTY)
            strike.wait()
            with figures.timed():
                traffic.join(IN_TIME, but=(WAIT, AWAIT))
            check_ends(traffic, VFIOTimeout, but=(WAIT, AWAIT))
            go_on = chance.random() < 0.5
            if go_on:
                os.kill(server.pid, signal.SIGCONT)
                assert eventually(lambda: in_step(dev), IN_TIME)
                dev.close()
            else:
                server.kill()
            traffic.join(IN_TIME)
            check_ends(traffic, VFIOTimeout, DeviceClosed if go_on else ConnectionLost)
    except VFIOTimeout:
        pass  # the moment lay before the traffic
    finally:
        strike.wait()
        server.process.send_signal(signal.SIGCONT)


@pytest.mark.timeout(60 * SERVER_STOPS)
def test_a_stopped_server_ends_every_call_with_a_time_out(path: Path, figures: list[str]) -> None:
    met = Figures(f"server stopped, all calls of {HASTY} s ended", figures)
    for number, chance in enumerate(moments("server stopped", SERVER_STOPS)):
        with serve(path) as server:
            meet_a_stop(server, chance, met)
            if server.process.poll() is None:
                pyvfio.open(server.uri).close()
        if number == WARM_UP:
            before = holdings.own()
    holdings.check_flat(before, holdings.own(), GROWTH)
    assert met.count
    met.tell()


# A client that dies or stands still


@contextmanager
def client_process(uri: str, timeout: float) -> Iterator[subprocess.Popen[str]]:
    """A client in another process, which starts at the next line; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.soak.client", uri, str(timeout)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            yield client
        finally:
            client.kill()
            with suppress(BrokenPipeError):
                client.communicate()


def tell(client: subprocess.Popen[str]) -> None:
    """Give a client its next line."""
    assert client.stdin is not None
    client.stdin.write("\n")
    client.stdin.flush()


def check_served(server: ServerProcess, *expected: int) -> set[int]:
    """The next client is served, and the DMA of the one before ended with what was expected.

    :returns: what it ended with; 0 of a stream that was in none.
    """
    with pyvfio.open(server.uri, timeout=IN_TIME) as dev:
        registers = dev.bars[model.REGISTERS]
        assert eventually(lambda: not registers.read32(model.ACTIVE), IN_TIME)
        for stream in range(model.STREAMS):
            assert registers.read32(model.register(stream, model.WRONG)) == 0
        ended = {
            registers.read32(model.register(stream, model.ERRNO)) for stream in range(model.STREAMS)
        }
    assert ended <= {0, *expected}
    return ended


def check_left_behind(pid: int) -> None:
    """A killed process leaves no memory; at the worst moment an empty name, which another removes.

    :class:`pyvfio.SharedMemory` does when the name is a minute old, which is not waited for here.
    """
    for name in shared_segments(pid):
        segment = Path("/dev/shm", name)
        assert segment.stat().st_size == 0
        segment.unlink()


@pytest.mark.timeout(60 * CLIENT_KILLS)
def test_a_killed_client_ends_the_dma_and_the_next_is_served(
    path: Path, figures: list[str]
) -> None:
    met = Figures("client killed, next client served, DMA ended", figures)
    with serve(path) as server:
        for number, chance in enumerate(moments("client killed", CLIENT_KILLS)):
            with client_process(uri_of(server, chance), PATIENT) as client:
                tell(client)
                Strike(client.pid, signal.SIGKILL, chance.uniform(0, LATEST)).wait()
                client.wait()
                check_left_behind(client.pid)
                with met.timed():
                    check_served(server, *CLIENT_GONE)
            if number == WARM_UP:
                before = holdings.of_server(server)
        holdings.check_flat(before, holdings.of_server(server), GROWTH)
    met.tell()


@pytest.mark.timeout(60 * CLIENT_STOPS)
def test_a_stopped_client_ends_the_dma_with_a_time_out(path: Path, figures: list[str]) -> None:
    timed_out = 0
    with serve(path) as server:
        before = holdings.of_server(server)
        for number, chance in enumerate(moments("client stopped", CLIENT_STOPS)):
            with client_process(uri_of(server, chance), HASTY) as client:
                tell(client)
                Strike(client.pid, signal.SIGSTOP, chance.uniform(0, LATEST)).wait()
                time.sleep(SERVER_TIMEOUT + 2)  # nothing tells from here when a DMA has ended
                if number % 2:
                    client.kill()
                    client.wait()
                    # A DMA that began late is ended by the kill.
                    ended = check_served(server, errno.ETIMEDOUT, *CLIENT_GONE)
                    timed_out += errno.ETIMEDOUT in ended
                else:  # a stream that was not in a DMA goes on, until the client lets go
                    os.kill(client.pid, signal.SIGCONT)
                    tell(client)
                    assert client.wait(IN_TIME) == 0
                    assert client.stdout is not None
                    assert client.stdout.read() in ("\n", "VFIOTimeout\n")
                    ended = check_served(server, errno.ETIMEDOUT, *CLIENT_GONE)
                    timed_out += errno.ETIMEDOUT in ended
        after = holdings.of_server(server)
    holdings.check_flat(before, after, GROWTH)
    figures.append(f"client stopped: {CLIENT_STOPS}, in {timed_out} a DMA ended with its time-out")
