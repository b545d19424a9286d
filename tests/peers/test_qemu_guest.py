# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest under QEMU whose devices are served by ``pyvfio serve``.

Seen with QEMU 11.1.3 (Debian), and with 10.1.0 (Ubuntu) but for what is marked, and Debian's kernel
6.1, all of it emulated.  The guest has an emulated IOMMU, whose maps the server gets page by page.
"""

from __future__ import annotations

import json
import socket
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyvfio.models import edu, testdev
from pyvfio.uapi.pci import CapabilityID
from tests.guest.machine import MEMORY_MIB, PORT, Machine
from tests.guest.runner import OUTPUT, Result, run
from tests.peers.faults import SHARED_OR_NOT, SLOW
from tests.peers.guest import EDU, TESTDEV, look
from tests.peers.guest.outlive import KILLED, LOST, UNPLUGGED, USED, tell, wait_for
from tests.peers.qemu import command, device_options, memory_options, vfio_user
from tests.peers.qmp import QMP, Lines
from tests.support import ServerProcess

Serve = Callable[..., ServerProcess]

SECONDS = 600.0
"""Limit for a guest; on an idle machine a boot takes 20 s, the suite 70 s."""

pytestmark = pytest.mark.timeout(SECONDS + 60)


def in_guest(
    program: str, *arguments: str, output: Path, hardware: Sequence[str], shared: bool = True
) -> Result:
    """Run a module of :mod:`tests.peers.guest` in a guest, whose memory servers can map or not."""
    machine = Machine(command(), [*memory_options(MEMORY_MIB, shared=shared), *hardware])
    words = [sys.executable, "-m", f"tests.peers.guest.{program}", *arguments]
    result = run(words, timeout=SECONDS, output=output, machine=machine)
    assert result.returncode == 0, result.console
    return result


def test_linux_finds_the_devices_and_reaches_their_bars(served: Serve, tmp_path: Path) -> None:
    devices = [vfio_user(served(model).path) for model in ("edu", "testdev")]
    result = in_guest("look", output=tmp_path, hardware=device_options(*devices))
    assert json.loads(result.console) == {
        EDU: {
            "bars": {"0": 1 << 20},
            "capabilities": [CapabilityID.MSI],
            "config": 256,
            "registers": [edu.IDENTIFICATION, 0xFFFF_FFFF - look.WORD],
        },
        TESTDEV: {
            "bars": {"0": 4096, "1": 4096, "2": testdev.MEMORY_SIZE, "4": 32},
            "capabilities": [
                CapabilityID.PM,
                CapabilityID.VNDR,
                CapabilityID.EXP,
                CapabilityID.MSIX,
            ],
            "config": 4096,
            "registers": [testdev.IDENTIFICATION, look.WORD, 4, 1, 1, look.WORD],
        },
    }
    assert (tmp_path / "qemu.log").read_text() == ""


@pytest.mark.parametrize("shared", SHARED_OR_NOT)
def test_the_suite_passes_by_vfio_in_the_guest(
    served: Serve, tmp_path: Path, record_property: Callable[[str, object], None], shared: bool
) -> None:
    server, other = served("edu"), served("testdev")
    hardware = device_options(vfio_user(server.path), vfio_user(other.path))
    junit = f"--junitxml={OUTPUT}/junit.xml"
    in_guest("suite", junit, output=tmp_path, hardware=hardware, shared=shared)
    (suite,) = ET.parse(tmp_path / "junit.xml").getroot().iter("testsuite")
    record_property("on vfio-user devices of QEMU, in the guest", suite.get("tests"))
    assert int(suite.get("tests", "0")) > 100
    assert suite.get("skipped") == "0"
    assert (tmp_path / "qemu.log").read_text() == ""
    assert server.stop() == (0, "")


@SLOW
def test_a_guest_outlives_a_server_and_takes_the_device_again(
    served: Serve, socket_folder: Path, tmp_path: Path
) -> None:
    server = served("edu")
    device = vfio_user(server.path, bus="port1", id="dev")
    control = socket_folder / "qmp.sock"
    hardware = [
        *("-qmp", f"unix:{control},server=on,wait=off"),
        *("-device", f"{PORT},id=port1,chassis=1,slot=1"),
        *device_options(device),
    ]

    def host() -> None:
        wait_for(tmp_path, USED)
        server.kill()
        tell(tmp_path, KILLED)
        wait_for(tmp_path, LOST)
        with Lines(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as lines:
            lines.connect(control)
            qmp = QMP(lines)
            qmp.execute("device_del", id="dev")
            qmp.wait("DEVICE_DELETED")
            wait_for(tmp_path, UNPLUGGED)
            servers.append(stack.enter_context(ServerProcess("edu", server.path)))
            qmp.execute("device_add", **device)

    servers: list[ServerProcess] = []
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        done = pool.submit(host)
        in_guest("outlive", output=tmp_path, hardware=hardware)
        done.result()
        assert servers[0].stop() == (0, "")
