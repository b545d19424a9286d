# SPDX-License-Identifier: BSD-3-Clause
"""Signals in the middle of everything, and processes that fork with a device open."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

import pyvfio
from tests.fault.raw import RawClient
from tests.soak.traffic import Traffic
from tests.support import ROOT, START_SECONDS, ServerProcess, run_program

Serve: TypeAlias = Callable[..., ServerProcess]


# Handlers that return: system calls are cut short (EINTR) and must go on


TEN_THOUSAND_REQUESTS = """
import sys, pyvfio
from tests.fault.stormy import storm
from tests.soak.model import INVERSES

with storm() as signals, pyvfio.open(sys.argv[1]) as dev:
    bar = dev.bars[INVERSES]
    for number in range(5000):
        bar.posted = bool(number % 2)
        bar.write32(4 * (number % 1024), number)
        assert bar.read32(4 * (number % 1024)) == ~number & 0xFFFFFFFF
    before = signals.count
    with dev.msi.enable(1) as irqs:
        for _ in range(100):
            irqs.trigger()
            assert irqs[0].wait(10) == 1
        try:
            irqs[0].wait(0.3)
        except pyvfio.VFIOTimeout:
            pass
    assert signals.count - before > 100
"""

TRAFFIC = """
import sys, time, pyvfio
from tests.fault.stormy import storm
from tests.soak.traffic import Traffic

with storm() as signals, pyvfio.open(sys.argv[1], secure_dma=True) as dev:
    traffic = Traffic(dev)
    time.sleep(1)
    traffic.stop()
    assert traffic.ends == []
    traffic.device_tallies()
    assert signals.count > 100
"""


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "program", [TEN_THOUSAND_REQUESTS, TRAFFIC], ids=["10,000 requests", "traffic both ways"]
)
def test_signals_do_not_disturb_a_client(serve: Serve, program: str) -> None:
    run_program(program, serve("tests.soak.model:Traffic").uri)


@pytest.mark.parametrize("twin", [True, False], ids=["twin socket", "one socket"])
def test_signals_do_not_disturb_a_server(serve: Serve, twin: bool) -> None:
    server = serve("tests.fault.stormy:StormyTraffic")
    with pyvfio.open(server.uri, secure_dma=True, twin_socket=twin) as dev:
        for number in range(5000):
            dev.bars[4].write32(0, number)
            assert dev.bars[4].read32(0) == ~number & 0xFFFFFFFF
        traffic = Traffic(dev)
        time.sleep(1)
        traffic.stop()
        assert traffic.ends == []
        traffic.device_tallies()
    assert server.stop() == (0, "")


OPEN_OF_A_FULL_QUEUE = """
import sys, time, pyvfio
from tests.fault.stormy import storm

with storm() as signals:
    start = time.monotonic()
    try:
        pyvfio.open(sys.argv[1], timeout=0.5)
    except pyvfio.VFIOTimeout as error:
        print(error.reason)
    assert signals.count > 100
"""


def test_signals_do_not_disturb_a_client_that_waits_to_be_accepted(socket_folder: Path) -> None:
    path = socket_folder / "full.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        said = run_program(OPEN_OF_A_FULL_QUEUE, f"vfio-user:{path}")
    path.unlink()
    assert said == "the server accepts nobody within 0.5 s\n"


# Handlers that raise: whoever is interrupted hears of it, and nobody hangs


RAISING = """
import gc, random, signal, sys, threading, pyvfio

gc.disable()  # what a handler raises in a callback of the collector nobody hears of

class Alarm(Exception):
    pass

KIND = {"KeyboardInterrupt": KeyboardInterrupt, "TimeoutError": TimeoutError, "Alarm": Alarm}
KIND = KIND[sys.argv[2]]
chance = random.Random(sys.argv[2])
armed = over = False
interrupted = lost = 0

def handle(*_):
    global armed
    if armed:
        armed = False
        raise KIND

def interrupt(work):
    global armed, interrupted
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.0003))
        work()
        armed = False
    except KIND as error:
        assert not isinstance(error, pyvfio.VFIOError), error
        interrupted += 1

def read_all_the_time(dev):
    try:
        while not over:
            assert dev.bars[0].read32(0) == 0x010000ED
    except (pyvfio.ConnectionLost, pyvfio.DeviceClosed):
        pass

def work():
    number = chance.getrandbits(32)
    bar.write32(4, number)
    assert bar.read32(4) == number ^ 0xFFFFFFFF
    region = dev.base.device_io.get_region_info(7)
    assert region.size

signal.signal(signal.SIGALRM, handle)
round = 0
while interrupted < 100:
    round += 1
    dev = pyvfio.open(sys.argv[1], timeout=20)
    bar = dev.bars[0]
    bar.posted = bool(round % 2)
    over = False
    thread = threading.Thread(target=read_all_the_time, args=(dev,), daemon=True)
    if round % 4 > 1:
        thread.start()
    try:
        for _ in range(400):
            interrupt(work)
    except pyvfio.ConnectionLost:
        armed = False
        lost += 1
    over = True
    if round % 4 > 1:
        thread.join(10)
        assert not thread.is_alive()
    dev.close()
    gc.collect()
print(interrupted, "interrupted", lost, "lost", round, "rounds")
"""


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "TimeoutError", "Alarm"])
def test_a_handler_that_raises_hangs_nobody_and_wrongs_nothing(
    edu_server: ServerProcess, kind: str
) -> None:
    """At the worst moment it costs the connection, and then everybody hears of that."""
    run_program(RAISING, edu_server.uri, kind)


# A process that forks with a device open: the device is the parent's


FORK = """
import os, sys, threading, pyvfio

def sockets():
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.exists(link) and "socket:" in os.readlink(link)]

def child(use):
    try:
        exec(use)
    except pyvfio.VFIOError as error:
        print(type(error).__name__)
    sys.stdout.flush()
    os._exit(0)

over = threading.Event()

def read_all_the_time():
    while not over.is_set():
        bar.read32(0)

with pyvfio.open(sys.argv[1]) as dev, dev.msi.enable(1) as irqs:
    bar = dev.bars[0]
    buffer = dev.dma.alloc(4096)
    thread = threading.Thread(target=read_all_the_time)
    thread.start()
    for _ in range(5):
        pid = os.fork()
        if not pid:
            child(sys.argv[2])
        assert os.waitpid(pid, 0)[1] == 0
        bar.write32(4, pid)
        assert bar.read32(4) == ~pid & 0xFFFFFFFF
        irqs.trigger()
        assert irqs[0].wait(10) == 1
    over.set()
    thread.join()
    buffer.close()
"""

USES = {
    "read": ("bar.read32(0)", "ConnectionLost"),
    "post": ("bar.write32(4, 1)", "ConnectionLost"),
    "map": ("dev.dma.alloc(4096)", "ConnectionLost"),
    "wait": ("irqs[0].wait()", "ConnectionLost"),
    "reset": ("dev.reset()", "ConnectionLost"),
    "close": ("dev.close()", ""),
    "close the interrupts": ("irqs.close()", ""),
    "close the buffer": ("buffer.close()", ""),
    "leave": ("dev.__exit__(None, None, None); print(dev.closed)", "True"),
    "hold": ("print(len(sockets()))", "0"),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("use", "outcome"), USES.values(), ids=USES)
def test_a_child_cannot_use_or_disturb_the_device_of_its_parent(
    edu_server: ServerProcess, use: str, outcome: str
) -> None:
    assert run_program(FORK, edu_server.uri, use).split() == 5 * outcome.split()


ORPHAN = """
import os, sys, pyvfio
dev = pyvfio.open(sys.argv[1])
if os.fork():
    os._exit(0)
sys.stdin.read()
"""


def test_a_child_does_not_keep_the_server_from_hearing_that_its_parent_is_gone(
    edu_server: ServerProcess,
) -> None:
    command = [sys.executable, "-c", ORPHAN, edu_server.uri]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as parent:
        assert parent.wait(START_SECONDS) == 0
        with RawClient(edu_server.path) as client:
            client.negotiate()


CLOSING = """
import os, signal, sys, threading, pyvfio

def interrupt(*_):
    raise KeyboardInterrupt

pid = int(sys.argv[2])
device = pyvfio.open(sys.argv[1])
signal.signal(signal.SIGALRM, interrupt)
os.kill(pid, signal.SIGSTOP)
try:
    for number in range(20000):
        device.bars[0].write32(4, number)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        device.close()
    except KeyboardInterrupt:
        print("interrupted")
    device.close()
finally:
    os.kill(pid, signal.SIGCONT)
print(threading.active_count(), any("socket" in os.readlink(f"/proc/self/fd/{name}")
      for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")))
"""


def test_a_close_that_is_interrupted_is_done_all_the_same(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")
    said = run_program(CLOSING, server.uri, str(server.pid))
    assert said == "interrupted\n1 False\n"


TRACED_FORKS = """
import os, sys, threading, pyvfio

device, over = pyvfio.open(sys.argv[1]), threading.Event()

def traffic():
    while not over.is_set():
        device.bars[0].read32(4)

threads = [threading.Thread(target=traffic) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(20):
    pid = os.fork()
    if not pid:
        pyvfio.open(sys.argv[2]).close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
over.set()
for thread in threads:
    thread.join()
device.close()
print("done")
"""


def test_a_process_that_traces_may_fork(
    edu_server: ServerProcess,
    testdev_server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYVFIO_TRACE", str(tmp_path / "trace"))
    assert run_program(TRACED_FORKS, edu_server.uri, testdev_server.uri) == "done\n"
