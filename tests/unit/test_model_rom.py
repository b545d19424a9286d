# SPDX-License-Identifier: BSD-3-Clause
"""The expansion ROM that a model declares, as a client reads it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

import pyvfio
from pyvfio.errors import RegionError
from pyvfio.pci.device import PCIDevice
from pyvfio.region import Region
from pyvfio.uapi import pci
from pyvfio.uapi.vfio import PCIRegion
from tests.support import ServerProcess
from tests.unit.emulator_models import ROM


@pytest.fixture
def device(serve: Callable[..., ServerProcess]) -> Iterator[PCIDevice]:
    """A device with a ROM of 2.5 KiB."""
    with pyvfio.open(serve("tests.unit.emulator_models:WithROM").uri) as found:
        yield found


@pytest.fixture
def rom(device: PCIDevice) -> Region:
    """The ROM."""
    assert device.rom is not None
    return device.rom


def test_it_reads_as_declared_and_ones_behind(rom: Region) -> None:
    assert rom.size == 4096
    assert rom.read_bytes(0, rom.size) == ROM.ljust(4096, b"\xff")


def test_parts_of_it_can_be_read(rom: Region) -> None:
    assert (rom.read16(0), rom.read8(2)) == (0xAA55, ROM[2])


def test_nothing_behind_its_end_is_read(device: PCIDevice) -> None:
    with pytest.raises(OSError, match="EINVAL"):
        device.base.device_io.region_read(PCIRegion.ROM, 4090, 8)


def test_it_cannot_be_written(device: PCIDevice, rom: Region) -> None:
    with pytest.raises(RegionError, match="cannot be written"):
        rom.write8(0, 0)
    with pytest.raises(OSError, match="EINVAL") as refused:
        device.base.device_io.region_write(PCIRegion.ROM, 0, b"\0")
    assert refused.value.errno == errno.EINVAL
    assert rom.read8(0) == 0x55


def test_its_size_is_found_as_that_of_a_bar(device: PCIDevice) -> None:
    device.config.set(pci.ROM_ADDRESS, pci.ROM_ADDRESS_MASK)
    assert device.config.get(pci.ROM_ADDRESS) == 0xFFFF_F000
