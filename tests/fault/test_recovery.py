# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong once must not go wrong for ever: the connection, the maps, the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pyvfio
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from tests.support import ROOT, ServerProcess

PAGE = 4096


class Holder:
    """Memory whose descriptor is closed."""

    def __init__(self, memory: SharedMemory) -> None:
        self.address, self.size = memory.address, memory.size
        self.fd = os.dup(memory.fd)
        os.close(self.fd)


def test_a_closed_descriptor_is_an_error_of_the_map_and_not_of_the_connection(
    edu: PCIDevice,
) -> None:
    with SharedMemory(PAGE) as memory, pytest.raises(pyvfio.DMAError, match="EBADF"):
        edu.dma.map(Holder(memory), size=PAGE)
    assert edu.dma.mappings == ()
    assert edu.config.vendor_id == 0x1234


def test_an_address_whose_map_was_not_answered_is_not_given_out_again(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")
    with pyvfio.open(server.uri, timeout=0.3) as dev, SharedMemory(PAGE) as memory:
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(pyvfio.VFIOTimeout):
            dev.dma.map(memory)
        os.kill(server.pid, signal.SIGCONT)
        for _ in range(3):
            dev.dma.map(memory)
        dev.dma.unmap_all()


def test_an_unmap_that_was_not_answered_can_be_tried_again(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")
    with pyvfio.open(server.uri, timeout=0.3) as dev:
        buffer = dev.dma.alloc(PAGE)
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(pyvfio.VFIOTimeout):
            buffer.close()
        os.kill(server.pid, signal.SIGCONT)
        buffer.close()
        assert dev.dma.mappings == ()


def test_a_long_time_out_is_no_error(edu_server: ServerProcess) -> None:
    with pyvfio.open(edu_server.uri, timeout=1e8) as dev, dev.msi.enable() as irqs:
        irqs.trigger()
        assert irqs[0].wait(timeout=1e8) == 1


def test_leaving_a_buffer_with_a_view_keeps_the_error_that_made_one_leave(
    edu: PCIDevice,
) -> None:
    views = []

    def program() -> None:
        with edu.dma.alloc(PAGE) as buffer:
            views.append(buffer.array)
            raise KeyError("a mistake of the program")

    with pytest.warns(ResourceWarning, match="view"), pytest.raises(KeyError):
        program()
    views[0][:] = 1  # the memory lives as long as the view
    assert edu.dma.mappings == ()


def test_the_same_interrupts_cannot_be_enabled_twice(edu: PCIDevice) -> None:
    with edu.watch_release(), pytest.raises(pyvfio.IRQError, match="enabled already"):
        edu.watch_release()


def test_a_model_that_fails_when_its_client_leaves_does_not_take_the_server_along(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("tests.system.wrong_models:FailsWhenLeft")
    for _ in range(2):
        with pyvfio.open(server.uri) as dev:
            assert dev.config.vendor_id == 0x1234


def test_a_model_in_the_current_folder_is_served_by_the_installed_command(
    tmp_path: Path, socket_folder: Path
) -> None:
    (tmp_path / "here.py").write_text("from pyvfio.models.edu import Edu\n")
    command: list[str | Path] = [Path(sys.executable).with_name("pyvfio"), "serve", "here:Edu"]
    command += ["--socket", socket_folder / "here.sock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(b"serving here:Edu")
        server.terminate()
    assert server.returncode == 0
    assert ROOT not in tmp_path.parents
