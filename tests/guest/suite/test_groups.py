# SPDX-License-Identifier: BSD-3-Clause
"""Groups and containers of the kernel: sharing, viability, and what opening may fail with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyvfio
from pyvfio.drivers.edu import EduDriver
from pyvfio.pci.device import PCIDevice
from tests.guest import inside
from tests.guest.suite.conftest import EDU, bound, in_a_child
from tests.support import open_fds

FOREIGN = "uio_pci_generic"


def release(address: str) -> None:
    """Take a device away from its driver."""
    Path(f"/sys/bus/pci/devices/{address}/driver_override").write_text("\n")
    driver = Path(f"/sys/bus/pci/devices/{address}/driver")
    if driver.exists():
        (driver / "unbind").write_text(address)


def pair() -> tuple[str, str]:
    """The two edu functions that share a group."""
    found = [address for address in inside.find(EDU) if address.startswith("0000:02:")]
    first, second = found
    assert inside.group(first) == inside.group(second)
    return first, second


def test_two_devices_of_a_group_share_their_dma_memory() -> None:
    first, second = pair()
    inside.bind(first)
    inside.bind(second)
    with pyvfio.open(f"vfio:{first}") as one, pyvfio.open(f"vfio:{second}") as two:
        assert one.dma is two.dma
        with EduDriver(one).alloc() as buffer:
            buffer.array[:] = 0x5A
            EduDriver(one).to_device(buffer)
            buffer.array[:] = 0
            EduDriver(one).from_device(buffer)
            assert buffer.array[0] == 0x5A
            buffer.array[:] = 0x77
            EduDriver(two).to_device(buffer)


def test_the_last_device_of_a_group_lets_it_go() -> None:
    first, second = pair()
    inside.bind(first)
    inside.bind(second)
    before = len(open_fds())
    one, two = pyvfio.open(f"vfio:{first}"), pyvfio.open(f"vfio:{second}")
    one.close()
    assert EduDriver(two).liveness(1) == 0xFFFF_FFFE
    two.close()
    assert len(open_fds()) == before
    with pyvfio.open(f"vfio:{first}"):
        pass


def test_a_group_that_another_driver_holds_back_names_it() -> None:
    first, second = pair()
    inside.bind(first)
    release(second)
    inside.bind(second, FOREIGN)
    try:
        with pytest.raises(pyvfio.GroupNotViable) as caught:
            pyvfio.open(f"vfio:{first}")
        assert caught.value.blockers == ((second, FOREIGN),)
    finally:
        release(second)


def test_a_device_that_is_not_bound_says_what_to_do() -> None:
    address = inside.find(EDU)[-1]
    release(address)
    with pytest.raises(pyvfio.NotBoundError, match="pyvfio bind"):
        pyvfio.open(f"vfio:{address}")


def test_no_such_device_is_said() -> None:
    with pytest.raises(pyvfio.DeviceNotFound):
        pyvfio.open("vfio:0000:7f:00.0")


def test_a_group_that_another_process_has_is_busy() -> None:
    address = bound(EDU)
    node = os.open(f"/dev/vfio/{inside.group(address)}", os.O_RDWR)
    try:
        with pytest.raises(pyvfio.DeviceBusy):
            pyvfio.open(f"vfio:{address}")
    finally:
        os.close(node)


def test_a_user_without_permission_is_told_which_node(edu: PCIDevice) -> None:
    address = edu.uri.removeprefix("vfio:")
    edu.close()

    def opened() -> bool:
        os.setuid(65534)
        with pytest.raises(pyvfio.AccessDenied, match=r"/dev/vfio/.* uid 65534"):
            pyvfio.open(f"vfio:{address}")
        return True

    assert in_a_child(opened)


def test_opening_and_closing_leaves_nothing_behind() -> None:
    uri = f"vfio:{bound(EDU)}"
    with pyvfio.open(uri):
        pass
    before = open_fds()
    for _ in range(500):
        with pyvfio.open(uri) as dev:
            dev.bars[0].read32(0)
    assert len(open_fds()) == len(before)


def test_devices_of_different_groups_share_a_container_where_asked() -> None:
    edu, nvme = bound(EDU), bound("1b36:0010")
    assert inside.group(edu) != inside.group(nvme)
    before = len(open_fds())
    with (
        pyvfio.open(f"vfio:{edu}") as one,
        pyvfio.open(f"vfio:{nvme}", container_of=one) as two,
    ):
        assert one.dma is two.dma
        with EduDriver(one).alloc() as buffer:
            EduDriver(one).to_device(buffer)
        one.close()
        with two.dma.alloc(4096) as buffer:  # it lives until the last of them has left
            assert buffer.array.size == 4096
    assert len(open_fds()) == before
    with pyvfio.open(f"vfio:{edu}"):
        pass


def test_a_container_of_something_else_is_refused(edu: PCIDevice) -> None:
    with pytest.raises(ValueError, match="container_of"):
        pyvfio.open(edu.uri, container_of="edu")
