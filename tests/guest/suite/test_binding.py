# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio bind``, ``unbind`` and ``restore`` on the devices of the guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvfio.backends.ioctl import sysfs
from pyvfio.cli.main import main
from tests.guest import inside
from tests.guest.suite.conftest import EDU

FOREIGN = "uio_pci_generic"
IDS = ("1234:11e8", "1b36:0010", "8086:10d3", "1b36:0005", "1af4:1110")
"""edu, nvme, e1000e, pci-testdev, ivshmem."""


def override(address: str) -> str:
    """The text of a device's driver override."""
    return Path(f"/sys/bus/pci/devices/{address}/driver_override").read_text().strip()


def without_driver(address: str) -> None:
    """Take a device away from whatever has it."""
    (inside.PCI / "devices" / address / "driver_override").write_text("\n")
    if inside.driver(address) is not None:
        (inside.PCI / "devices" / address / "driver/unbind").write_text(address)


@pytest.mark.parametrize("ids", IDS)
def test_bind_and_restore_bring_every_device_back_to_its_driver(ids: str) -> None:
    for address in inside.find(ids):
        without_driver(address)
        inside.bind(address, FOREIGN)
        assert main(["bind", address]) == 0
        assert sysfs.device(address).driver == "vfio-pci"
        assert main(["restore", address]) == 0
        assert inside.driver(address) == FOREIGN
        without_driver(address)


def test_a_bind_that_the_driver_refuses_leaves_everything_as_it_was() -> None:
    address = inside.find(EDU)[0]
    without_driver(address)
    inside.bind(address, FOREIGN)
    before = override(address)
    assert main(["bind", "--driver", "virtio-pci", address]) != 0
    assert (inside.driver(address), override(address)) == (FOREIGN, before)
    without_driver(address)


def test_a_dry_run_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    address = inside.find(EDU)[0]
    without_driver(address)
    assert main(["bind", "--dry-run", address]) == 0
    assert inside.driver(address) is None
    assert "vfio-pci" in capsys.readouterr().out


def test_the_list_has_groups_and_viability(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "-d", EDU]) == 0
    printed = capsys.readouterr().out
    for address in inside.find(EDU):
        assert address in printed


def test_the_doctor_finds_an_iommu_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "FAIL" not in capsys.readouterr().out
