# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's vfio-user client on ``pyvfio serve``: devices that come and go, servers that die or stop.

Seen with QEMU 11.1.3 (Debian), and with 10.1.0 (Ubuntu) but for what is marked.  What QEMU does by
itself, and a server cannot change: it never connects again to a server that has gone, only a new
``device_add`` does; while a server is stopped the whole machine waits, at each access for
``x-msg-timeout`` milliseconds (5000 unless set); the answers that come after that make it drop the
connection.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pyvfio.models import edu
from tests.peers import models
from tests.peers.drive import BAR, MAILBOX, MESSAGE, SLOT, driven_edu, driven_testdev
from tests.peers.faults import NO_HANG_UP, NO_UNPLUG, SLOW
from tests.peers.function import Function
from tests.peers.held import Held
from tests.peers.machine import Machine
from tests.peers.qemu import vfio_user
from tests.peers.qmp import QMPError, Qtest
from tests.support import ServerProcess, eventually, stopped

Serve = Callable[..., ServerProcess]
Start = Callable[..., Machine]

ONES = 0xFFFF_FFFF
SEQUENCE = "tests.peers.models:Sequence"
MANY = 3000
"""More than the 1024 writes after which QEMU gathers them in REGION_WRITE_MULTI."""
TIMEOUT_MS = 500


@pytest.fixture
def pc(machine: Start) -> Start:
    """Start a machine that can hot-plug, with a server's device in slot 4 as ``dev``."""
    return lambda server, **properties: machine(plug(server, **properties), kind="pc")


def plug(server: ServerProcess, **properties: object) -> dict[str, object]:
    """The device in slot 4 as ``dev``."""
    return vfio_user(server.path, addr=str(SLOT), id="dev", **properties)


def put(bus: Qtest, numbers: range) -> None:
    """Write numbers to the device that watches their order."""
    for number in numbers:
        bus.store(BAR + models.PUT, 4, number)


def counted(bus: Qtest) -> tuple[int, int, int]:
    """Writes that have arrived, the last one, and how many were out of order."""
    registers = (models.COUNT, models.LAST, models.OUT_OF_ORDER)
    count, last, wrong = (bus.load(BAR + register, 4) for register in registers)
    return count, last, wrong


# Writes in order


@pytest.mark.parametrize(
    "chosen",
    [{}, {"x_no_posted_writes": True}, {"x_send_queued": True}],
    ids=["posted", "with replies", "queued"],
)
def test_writes_arrive_in_order_and_before_a_read(
    served: Serve, plugged: Start, chosen: dict[str, bool]
) -> None:
    machine = plugged(served(SEQUENCE), **chosen)
    driven_edu(machine)
    put(machine.bus, range(1, 1 + MANY))
    assert counted(machine.bus) == (MANY, MANY, 0)
    assert machine.quit() == 0
    assert machine.said() == ""


def test_posted_writes_wait_for_a_server_that_is_stopped(served: Serve, plugged: Start) -> None:
    server = served(SEQUENCE)
    machine = plugged(server)
    driven_edu(machine)
    with stopped(server):
        put(machine.bus, range(1, 1 + MANY))
    assert counted(machine.bus) == (MANY, MANY, 0)
    assert machine.said() == ""


# Devices that come and go


def test_several_devices_of_one_machine_do_not_mix(served: Serve, machine: Start) -> None:
    servers = [served("edu") for _ in range(4)]
    devices = [vfio_user(each.path, addr=str(SLOT + n)) for n, each in enumerate(servers)]
    whole = machine(*devices)
    bars = [BAR + (n << 20) for n in range(4)]
    for number, bar in enumerate(bars):
        function = driven_edu(whole, SLOT + number, bar)
        function.set_message(MAILBOX + 4 * number, MESSAGE + number)
        function.control_msi(True)
        whole.bus.store(bar + edu.LIVENESS, 4, number)
    for number, bar in enumerate(bars):
        assert whole.bus.load(bar + edu.LIVENESS, 4) == ONES - number
    whole.bus.store(bars[2] + edu.IRQ_RAISE, 4, 1)
    assert eventually(lambda: whole.bus.load(MAILBOX + 8, 4) == MESSAGE + 2)
    assert [whole.bus.load(MAILBOX + 4 * number, 4) for number in (0, 1, 3)] == [0, 0, 0]
    assert whole.quit() == 0
    assert whole.said() == ""


def test_a_device_is_unplugged_and_plugged_in_again(served: Serve, pc: Start) -> None:
    """Unplugged, the server holds nothing of its client; plugged in again, it is as it was."""
    server = served("edu")
    idle = Held.by(server)
    machine = pc(server)
    driven_edu(machine)
    machine.bus.store(BAR + edu.LIVENESS, 4, 1)
    for _ in range(3):
        machine.unplug("dev", SLOT)
        idle.assert_again(server)
        assert Function(machine.bus, SLOT).ids == (0xFFFF, 0xFFFF)
        machine.qmp.execute("device_add", **plug(server))
        driven_edu(machine)
        assert machine.bus.load(BAR + edu.ID, 4) == edu.IDENTIFICATION
    assert machine.quit() == 0
    assert machine.said() == ""


@NO_UNPLUG
def test_the_server_is_free_after_a_device_with_msix_is_unplugged(served: Serve, pc: Start) -> None:
    """QEMU 11.1.3 aborts at this, in ``memory_region_del_subregion``: it takes the region of the
    pending bits apart twice.
    """
    server = served("testdev")
    idle = Held.by(server)
    machine = pc(server)
    driven_testdev(machine).control_msix(True)
    with suppress(EOFError):
        machine.unplug("dev", SLOT)
    idle.assert_again(server)


def test_a_device_without_a_server_is_refused(tmp_path: Path, machine: Start) -> None:
    whole = machine(kind="pc")
    with pytest.raises(QMPError, match="Failed to connect"):
        whole.qmp.execute("device_add", **vfio_user(tmp_path / "none"))
    assert whole.quit() == 0


def test_a_second_machine_gives_up_and_the_first_goes_on(served: Serve, plugged: Start) -> None:
    """A server has one client; the second's VERSION is answered when the first has left."""
    server = served("edu")
    machine = plugged(server)
    driven_edu(machine)
    with pytest.raises(EOFError, match="timed out waiting for reply"):
        plugged(server, x_msg_timeout=TIMEOUT_MS)
    assert machine.bus.load(BAR + edu.ID, 4) == edu.IDENTIFICATION
    assert machine.quit() == 0
    assert plugged(server).quit() == 0
    assert machine.said() == ""


# Servers that die or stop


@SLOW
def test_a_machine_outlives_a_server_that_is_killed(served: Serve, pc: Start) -> None:
    """Reads give all ones, a reset goes through, and a new server can be plugged in."""
    server = served("edu")
    machine = pc(server)
    driven_edu(machine)
    server.kill()
    assert machine.bus.load(BAR + edu.ID, 4) == ONES
    machine.bus.store(BAR + edu.LIVENESS, 4, 1)
    assert Function(machine.bus, SLOT).ids == (0xFFFF, 0xFFFF)
    machine.reset()
    machine.unplug("dev", SLOT)
    with ServerProcess("edu", server.path) as again:
        machine.qmp.execute("device_add", **plug(again))
        driven_edu(machine)
        assert machine.bus.load(BAR + edu.ID, 4) == edu.IDENTIFICATION
        assert machine.quit() == 0
        assert again.stop() == (0, "")


@SLOW
def test_qemu_does_not_connect_again_by_itself(served: Serve, pc: Start) -> None:
    server = served("edu")
    machine = pc(server)
    driven_edu(machine)
    server.kill()
    with ServerProcess("edu", server.path):
        machine.reset()
        assert Function(machine.bus, SLOT).ids == (0xFFFF, 0xFFFF)
        assert machine.quit() == 0


def test_a_machine_quits_whose_server_is_stopped(served: Serve, plugged: Start) -> None:
    server = served("edu")
    machine = plugged(server)
    with stopped(server):
        assert machine.quit() == 0


@NO_HANG_UP
def test_a_stopped_server_costs_the_device_and_not_the_server(served: Serve, pc: Start) -> None:
    """The access gives all ones after QEMU's time-out. The late answer puts QEMU out of step: at
    the next access it hangs up. The server is there for the device to be plugged in again.
    """
    server = served("edu")
    idle = Held.by(server)
    machine = pc(server, x_msg_timeout=TIMEOUT_MS)
    driven_edu(machine)
    with stopped(server):
        assert machine.bus.load(BAR + edu.ID, 4) == ONES
    assert eventually(lambda: "bad header size" in machine.said())
    assert machine.bus.load(BAR + edu.ID, 4) == ONES
    idle.assert_again(server)
    machine.unplug("dev", SLOT)
    machine.qmp.execute("device_add", **plug(server))
    driven_edu(machine)
    assert machine.bus.load(BAR + edu.ID, 4) == edu.IDENTIFICATION
    assert machine.quit() == 0


def test_one_that_kills_qemu_leaves_the_server_free(served: Serve, machine: Start) -> None:
    """With interrupts, maps and a DMA on their way, of which the model may tell."""
    server = served("edu")
    idle = Held.by(server)
    for _ in range(3):
        whole = machine(plug(server))
        function = driven_edu(whole)
        function.set_message(MAILBOX, MESSAGE)
        function.control_msi(True)
        whole.bus.store(BAR + edu.DMA_COUNT, 8, 4096)
        whole.bus.store(BAR + edu.DMA_DESTINATION, 8, edu.BUFFER)
        whole.bus.store(BAR + edu.DMA_COMMAND, 8, edu.DMA_RUN | edu.DMA_IRQ)
        whole.process.kill()
        idle.assert_again(server)
    status, said = server.stop()
    assert status == 0
    assert [line for line in said.splitlines() if "there is no client" not in line] == []
