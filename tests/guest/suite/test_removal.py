# SPDX-License-Identifier: BSD-3-Clause
"""The host wants a device back while a program drives it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvfio
from tests.guest.suite.conftest import EDU, bound
from tests.support import in_threads, open_fds


def unbind(address: str) -> None:
    """Have the kernel take a device from vfio-pci; returns when it has it."""
    Path("/sys/bus/pci/drivers/vfio-pci/unbind").write_text(address)


def remove(address: str) -> None:
    """Have the kernel forget a device, as an unplug does; returns when it has it."""
    Path(f"/sys/bus/pci/devices/{address}/remove").write_text("1")


@pytest.fixture
def rescan() -> Iterator[None]:
    """Have the kernel find again what was removed."""
    yield
    Path("/sys/bus/pci/rescan").write_text("1")


@pytest.mark.usefixtures("rescan")
@pytest.mark.parametrize(
    ("take", "afterwards"), [(unbind, pyvfio.NotBoundError), (remove, pyvfio.DeviceNotFound)]
)
def test_a_host_that_takes_the_device_asks_the_program_which_lets_go_under_load(
    take: Callable[[str], None], afterwards: type[pyvfio.OpenError]
) -> None:
    address = bound(EDU)
    before = len(open_fds())
    dev = pyvfio.open(f"vfio:{address}")
    bar, ended = dev.bars[0], threading.Event()
    errors: list[BaseException] = []

    def load() -> None:
        try:
            while True:
                bar.write32(0x04, 1)
                bar.read32(0x04)
        except pyvfio.VFIOError as error:
            errors.append(error)
        ended.set()

    with dev, dev.watch_release() as release:
        threads = in_threads([load, lambda: take(address)])
        release[0].wait(20)
        assert threads[1].is_alive()  # the kernel waits until the device is closed
    for thread in threads:
        thread.join(20)
    assert ended.is_set()
    assert isinstance(errors[0], pyvfio.DeviceClosed)
    assert len(open_fds()) <= before
    with pytest.raises(afterwards):
        pyvfio.open(f"vfio:{address}")


def test_a_removed_device_is_not_found_any_more() -> None:
    address = bound(EDU)
    with pyvfio.open(f"vfio:{address}"):
        pass
    Path(f"/sys/bus/pci/devices/{address}/remove").write_text("1")
    try:
        with pytest.raises(pyvfio.DeviceNotFound):
            pyvfio.open(f"vfio:{address}")
    finally:
        Path("/sys/bus/pci/rescan").write_text("1")
    with pyvfio.open(f"vfio:{bound(EDU)}") as dev:
        assert dev.config.vendor_id == 0x1234
