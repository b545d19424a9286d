# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space as a guest sees it: some bits from a local copy, the others from the device.

Three questions about each bit, each with a byte of masks for every byte of the space:

- does the guest read it from the local copy (``emulated``) or from the device?
- does a guest's write change it in the local copy (``writable``)?
- does writing a one clear it there (``write_1_clear``)?

Every write goes to the device first, which keeps of it what it can use, and then to the local copy.
Facts: QEMU's ``vfio_pci_read_config``, ``vfio_pci_write_config``, ``pci_default_write_config``.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyvfio.emulator.power import PowerState
from pyvfio.errors import RegionError, VFIOError
from pyvfio.region import Region
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command, Register, Status

log = logging.getLogger(__name__)

Watcher = Callable[[bytes, bytes], None]
"""Called with the watched bytes of the local copy as they were before a write, and are after it."""

_WIDTHS = (1, 2, 4)

_WRITABLE_COMMAND = (
    Command.IO | Command.MEMORY | Command.MASTER | Command.SERR | Command.INTX_DISABLE
)
_STATUS_ERRORS = (
    Status.PARITY
    | Status.SIG_TARGET_ABORT
    | Status.REC_TARGET_ABORT
    | Status.REC_MASTER_ABORT
    | Status.SIG_SYSTEM_ERROR
    | Status.DETECTED_PARITY
)


@dataclass(frozen=True, slots=True)
class _Watch:
    start: int
    end: int
    callback: Watcher


class EmulatedConfig:
    """The guest's configuration space of one function.

    Values are little-endian numbers.  Calls come one at a time.

    :param device: the configuration region of the device.
    :param size: bytes, 256 or 4,096; less if the device has less.
    :param name: how messages call the function.
    :ivar size: bytes that it has.
    :ivar local: the local copy; of the device at first.
    :ivar emulated: bits that the guest reads from the local copy.
    :ivar writable: bits of the local copy that a guest's write changes.
    :ivar write_1_clear: bits of the local copy that writing a one clears.
    :ivar compared: bits that must be those of the device that a saved state came from.
    :ivar changing: bits that the emulator changes by itself, pending bits for example.
    :ivar power: the function's power state.
    :raises RegionError: the device's cannot be read, or has no complete header.
    """

    def __init__(self, device: Region, size: int, name: str) -> None:
        if size not in (pci.CONFIG_SIZE, pci.EXTENDED_CONFIG_SIZE):
            raise ValueError(f"configuration space cannot have {size} bytes")
        if device.size < pci.CONFIG_SIZE:
            raise RegionError(
                f"configuration space has {device.size} bytes only",
                op=f"read {device.name}",
                errno=errno.EINVAL,
            )
        self._device = device
        self._name = name
        self.size = min(size, device.size)
        self.local = bytearray(device.read_bytes(0, self.size))
        self.emulated = bytearray(self.size)
        self.writable = bytearray(self.size)
        self.write_1_clear = bytearray(self.size)
        self.compared = bytearray(self.size)
        self.changing = bytearray(self.size)
        self._watches: list[_Watch] = []
        self._told: set[tuple[str, type[VFIOError], int | None]] = set()
        self._default_masks()
        self.power = PowerState(self)

    def _default_masks(self) -> None:
        """Those of every function (``pci_init_wmask``, ``_w1cmask``, ``_cmask``)."""
        _store(self.writable, pci.COMMAND, _WRITABLE_COMMAND)
        for register in (pci.CACHE_LINE_SIZE, pci.INTERRUPT_LINE):
            _store(self.writable, register, 0xFF)
        self.writable[pci.HEADER_SIZE :] = b"\xff" * (self.size - pci.HEADER_SIZE)
        _store(self.write_1_clear, pci.STATUS, _STATUS_ERRORS)
        _store(self.compared, pci.STATUS, Status.CAP_LIST)
        for register in (
            pci.VENDOR_ID,
            pci.DEVICE_ID,
            pci.REVISION_ID,
            pci.PROG_IF,
            pci.SUBCLASS,
            pci.BASE_CLASS,
            pci.HEADER_TYPE,
            pci.CAPABILITY_LIST,
        ):
            _store(self.compared, register, (1 << 8 * register.width) - 1)

    @property
    def name(self) -> str:
        """How messages call the function."""
        return self._name

    # Set-up

    def emulate(self, register: Register, value: int, mask: int, base: int = 0) -> None:
        """Have the guest see ``value`` in the bits of ``mask``, which it cannot change.

        :param base: offset of the capability that the register is in.
        :raises ValueError: there is no such register.
        """
        self._check(base + register.offset, register.width)
        local = _load(self.local, register, base)
        _store(self.local, register, local & ~mask | value & mask, base)
        writable = _load(self.writable, register, base)
        _store(self.writable, register, writable & ~mask, base)
        emulated = _load(self.emulated, register, base)
        _store(self.emulated, register, emulated | mask, base)

    def mark_emulated(self, offset: int, size: int) -> None:
        """Have the guest read these bytes from the local copy, whatever it may write.

        :raises ValueError: they are outside of configuration space.
        """
        self._check(offset, size)
        self.emulated[offset : offset + size] = b"\xff" * size

    def allow(self, register: Register, mask: int, base: int = 0) -> None:
        """Let the guest's writes change these bits of the local copy.

        :raises ValueError: there is no such register.
        """
        self._check(base + register.offset, register.width)
        _store(self.writable, register, _load(self.writable, register, base) | mask, base)

    def mark_changing(self, register: Register, base: int = 0) -> None:
        """The emulator changes this register by itself, so that it is part of a saved state.

        :raises ValueError: there is no such register.
        """
        self._check(base + register.offset, register.width)
        _store(self.changing, register, (1 << 8 * register.width) - 1, base)

    def get(self, register: Register, base: int = 0) -> int:
        """A register of the local copy.

        :raises ValueError: there is no such register.
        """
        self._check(base + register.offset, register.width)
        return _load(self.local, register, base)

    def set(self, register: Register, value: int, base: int = 0) -> None:
        """Change a register of the local copy, whatever the guest may write.  Tells no watcher.

        :raises ValueError: there is no such register, or the value does not fit.
        """
        self._check(base + register.offset, register.width)
        if not 0 <= value < 1 << 8 * register.width:
            raise ValueError(f"{value:#x} does not fit into {8 * register.width} bits")
        _store(self.local, register, value, base)

    def device_get(self, register: Register, base: int = 0) -> int:
        """Read a register of the device.

        :raises RegionError: the device does not answer, or has no such register.
        """
        return self._device.read(base + register.offset, register.width)

    def device_set(self, register: Register, value: int, base: int = 0) -> None:
        """Write a register of the device, past the local copy.

        :raises RegionError: the device refused it, or has no such register.
        """
        self._device.write(base + register.offset, register.width, value)

    # The guest's accesses

    def read(self, offset: int, width: int) -> int:
        """A read of the guest, of 1, 2 or 4 bytes.

        :returns: all ones beyond the end, or where the device does not answer.
        :raises ValueError: no access has that width.
        """
        _check_width(width)
        ones = (1 << 8 * width) - 1
        if not self._inside(offset, width):
            return ones
        register = Register(offset, width)
        emulated = _load(self.emulated, register)
        try:
            device = self._read_device(offset, width)
        except VFIOError as error:
            self._complain("the guest's read", error)
            return ones
        return _load(self.local, register) & emulated | device & ~emulated

    def write(self, offset: int, width: int, value: int) -> None:
        """A write of the guest, of 1, 2 or 4 bytes; dropped beyond the end.

        It reaches the device before the local copy changes, then the watchers are called.

        :raises ValueError: no access has that width, or the value does not fit into it.
        """
        _check_width(width)
        if not 0 <= value < 1 << 8 * width:
            raise ValueError(f"{value:#x} does not fit into {8 * width} bits")
        if not self._inside(offset, width):
            return
        data = value.to_bytes(width, "little")
        try:
            for start, size in _aligned(offset, width):
                piece = data[start - offset : start - offset + size]
                self._device.write(start, size, int.from_bytes(piece, "little"))
        except VFIOError as error:
            self._complain("the guest's write", error)
        self._write_local(offset, data)

    def _read_device(self, offset: int, width: int) -> int:
        """Read what is not all emulated; an access that is not aligned, in pieces."""
        value = 0
        for start, size in _aligned(offset, width):
            if _load(self.emulated, Register(start, size)) != (1 << 8 * size) - 1:
                value |= self._device.read(start, size) << 8 * (start - offset)
        return value

    def _write_local(self, offset: int, data: bytes) -> None:
        watches = [w for w in self._watches if w.start < offset + len(data) and offset < w.end]
        before = [bytes(self.local[watch.start : watch.end]) for watch in watches]
        for at, byte in enumerate(data, offset):
            writable = self.writable[at]
            changed = self.local[at] & ~writable | byte & writable
            self.local[at] = changed & ~(byte & self.write_1_clear[at])
        for watch, old in zip(watches, before, strict=True):
            if watch in self._watches:
                self._tell(watch, old)

    def _tell(self, watch: _Watch, before: bytes) -> None:
        """Call a watcher; a device that fails it is no reason to leave out the others."""
        try:
            watch.callback(before, bytes(self.local[watch.start : watch.end]))
        except VFIOError as error:
            self._complain("what follows the guest's write", error)

    def _complain(self, what: str, error: VFIOError) -> None:
        """Log an error of the device once, since a guest can cause it again and again."""
        kind = (what, type(error), error.errno)
        level = logging.DEBUG if kind in self._told else logging.ERROR
        self._told.add(kind)
        log.log(level, "%s: %s failed: %s", self._name, what, error)

    # Watchers

    def watch(self, offset: int, size: int, callback: Watcher) -> None:
        """Have a function called after each write of the guest that reaches some of these bytes.

        Watchers are called in the order in which they came, also where the write changed nothing.

        :raises ValueError: there are no such bytes.
        """
        self._check(offset, size)
        self._watches.append(_Watch(offset, offset + size, callback))

    def unwatch(self, callback: Watcher) -> None:
        """Do not call a function any more.  May be repeated."""
        self._watches = [watch for watch in self._watches if watch.callback != callback]

    # State

    def reset(self) -> None:
        """The header's registers and the power state of the local copy as after power-on.

        BARs and capabilities have resets of their own (``pci_do_device_reset``).
        """
        for register in (pci.COMMAND, pci.STATUS, pci.INTERRUPT_LINE, pci.CACHE_LINE_SIZE):
            changing = _load(self.writable, register) | _load(self.write_1_clear, register)
            _store(self.local, register, _load(self.local, register) & ~changing)
        self.power.reset()

    def _inside(self, offset: int, size: int) -> bool:
        return offset >= 0 and offset + size <= self.size

    def _check(self, offset: int, size: int) -> None:
        if size <= 0 or not self._inside(offset, size):
            raise ValueError(f"configuration space has no {size} bytes at {offset:#x}")


def _check_width(width: int) -> None:
    if width not in _WIDTHS:
        raise ValueError(f"no access to configuration space has {width} bytes; 1, 2 and 4 exist")


def _aligned(offset: int, width: int) -> Iterator[tuple[int, int]]:
    """(offset, width) of the largest aligned accesses that make up one."""
    end = offset + width
    while offset < end:
        size = next(w for w in reversed(_WIDTHS) if offset % w == 0 and offset + w <= end)
        yield offset, size
        offset += size


def _load(data: bytearray, register: Register, base: int = 0) -> int:
    start = base + register.offset
    return int.from_bytes(data[start : start + register.width], "little")


def _store(data: bytearray, register: Register, value: int, base: int = 0) -> None:
    start = base + register.offset
    data[start : start + register.width] = value.to_bytes(register.width, "little")
