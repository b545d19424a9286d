# SPDX-License-Identifier: BSD-3-Clause
"""The expansion ROM that a guest sees: the device's, read when the guest first looks, or a file.

Facts: QEMU's ``vfio_pci_size_rom``, ``vfio_pci_load_rom``, ``vfio_rom_read``,
``vfio_opt_rom_in_denylist``.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.memory import MMIORegion
from pyvfio.emulator.options import FunctionOptions
from pyvfio.emulator.rom_image import show_ids
from pyvfio.errors import RegionError, VFIOError, operation_error
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.vfio import PCIRegion

log = logging.getLogger(__name__)

_DENIED = {(0x14E4, 0x168E): "Broadcom BCM57810"}
"""Devices whose ROM hangs guests that run it (https://bugs.launchpad.net/qemu/+bug/1284874)."""

_CHUNK = 64 * 1024
_LOAD_SECONDS = 30.0
"""How long a device may take to give its ROM while the guest waits for the first byte."""
_AGAIN = (errno.EINTR, errno.EAGAIN)


class GuestROM:
    """The expansion ROM of a function.

    :param config: configuration space, with the ids that the guest sees.
    :ivar region: the ROM's memory, for the ROM's address register; None where the guest sees none.
    :raises ValueError: the file of the options holds no ROM.
    :raises OSError: the file cannot be read.
    """

    def __init__(self, dev: PCIDevice, config: EmulatedConfig, options: FunctionOptions) -> None:
        self._dev = dev
        self._config = config
        self._contents: bytes | None = None
        self._of_device = options.rom_file is None
        self._size = 0
        if options.rom is not False:
            self._set_up(options)
        self.region = MMIORegion(f"{config.name} ROM", self._size, self) if self._size else None

    def _set_up(self, options: FunctionOptions) -> None:
        if options.rom_file is not None:
            self._contents = _read_file(options.rom_file)
            self._size = pci.rom_size(len(self._contents))
        else:
            self._size = self._size_of_register()
        denied = _DENIED.get((self._config.get(pci.VENDOR_ID), self._config.get(pci.DEVICE_ID)))
        if not self._size or denied is None:
            return
        if options.rom or options.rom_file is not None:
            log.warning("%s: ROMs of %s are known to hang guests", self._config.name, denied)
        else:
            self._size = 0
            log.warning(
                "%s: ROMs of %s are known to hang guests; left out, unless rom is True or a"
                " rom_file is given",
                self._config.name,
                denied,
            )

    def _size_of_register(self) -> int:
        """Bytes that the device's register claims, found as firmware does; 0 for none."""
        try:
            before = self._config.device_get(pci.ROM_ADDRESS)
            try:
                self._config.device_set(pci.ROM_ADDRESS, pci.ROM_ADDRESS_MASK)
                sized = self._config.device_get(pci.ROM_ADDRESS) & pci.ROM_ADDRESS_MASK
            finally:
                self._config.device_set(pci.ROM_ADDRESS, before)
        except VFIOError as error:
            log.error("%s: the size of the ROM cannot be found: %s", self._config.name, error)
            return 0
        size = -sized & 0xFFFF_FFFF
        if size and not _possible(size):
            log.warning("%s: no ROM has %#x bytes; it is left out", self._config.name, size)
            return 0
        return size

    # The guest's accesses

    def read(self, offset: int, width: int) -> int:
        """A read of the guest; the first one loads the ROM.  0 behind the contents."""
        if self._contents is None:
            self._contents = self._load()
        return int.from_bytes(self._contents[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """A ROM cannot be written."""

    def forget(self) -> None:
        """The device was reset, or reached again: its ROM is read again when the guest looks."""
        if self._of_device:
            self._contents = None

    def _load(self) -> bytes:
        try:
            available = self._dev.base.region(PCIRegion.ROM).size
        except VFIOError as error:
            log.error("%s: the ROM cannot be read: %s", self._config.name, error)
            return b""
        if not available:
            log.error(
                "%s: the device shows no contents of its ROM; leave it out (rom=False), or give a"
                " rom_file",
                self._config.name,
            )
            return b""
        contents = bytearray(b"\xff" * min(available, self._size))
        self._fill(contents)
        show_ids(contents, self._config.get(pci.VENDOR_ID), self._config.get(pci.DEVICE_ID))
        return bytes(contents)

    def _fill(self, contents: bytearray) -> None:
        """Read the device's ROM; what it does not give stays as it is."""
        at, deadline = 0, time.monotonic() + _LOAD_SECONDS
        while at < len(contents):
            if time.monotonic() > deadline:
                log.error("%s: the device gave %d bytes of its ROM", self._config.name, at)
                return
            size = min(_CHUNK, len(contents) - at)
            try:
                part = self._dev.base.device_io.region_read(PCIRegion.ROM, at, size)
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                op = f"read ROM+{at:#x}"
                failure = operation_error(error, RegionError, op=op, uri=self._dev.uri)
                log.error("%s: %s", self._config.name, failure)
                return
            if not len(part):
                return
            contents[at : at + len(part)] = part
            at += len(part)


def _possible(size: int) -> bool:
    try:
        return pci.rom_size(size) == size
    except ValueError:
        return False


def _read_file(path: Path) -> bytes:
    """The contents of a file, if it may be a ROM."""
    with path.open("rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            pci.rom_size(size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return file.read(size)
