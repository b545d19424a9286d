# SPDX-License-Identifier: BSD-3-Clause
"""The configuration space of a model, as the client reads and writes it.

Built once from the declarations: a byte of contents, and a mask of the bits that writes change, for
every byte.  BAR registers hold an address of which only the bits above the BAR's size are writable,
so sizing works as on the bus.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyvfio.native.dma import DirectDMA
from pyvfio.server.declarations import check
from pyvfio.server.model import DeviceModel, ModelBAR, ModelCapability
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import BARType, CapabilityID, Command, Register, Status

_WRITABLE_COMMAND = (
    Command.IO
    | Command.MEMORY
    | Command.MASTER
    | Command.PARITY
    | Command.SERR
    | Command.INTX_DISABLE
)
_BUS_MASTER = int(Command.MASTER)  # in the first byte of the register


class ModelConfigSpace:
    """Contents and write masks; not locked, its function is.

    :param model: the declarations.
    :raises ValueError: they contradict each other or do not fit.
    """

    def __init__(self, model: DeviceModel) -> None:
        check(model)
        self.size = pci.EXTENDED_CONFIG_SIZE if model.express else pci.CONFIG_SIZE
        self._data = bytearray(self.size)
        self._writable = bytearray(self.size)
        self._offsets: dict[CapabilityID, int] = {}
        self._header(model)
        self._base_addresses(model)
        self._capability_list(_capabilities(model))
        self._extended_list(model.extended_capabilities)
        self._defaults = bytes(self._data)

    # Access

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes; the caller has checked the range."""
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: Buffer) -> None:
        """Change the writable bits; read-only ones are left alone, without an error."""
        for at, byte in enumerate(data, offset):
            mask = self._writable[at]
            self._data[at] = (self._data[at] & ~mask) | (byte & mask)

    def get(self, register: Register, base: int = 0) -> int:
        """A register of the header, or of the capability at ``base``."""
        start = base + register.offset
        return int.from_bytes(self._data[start : start + register.width], "little")

    def set(self, register: Register, value: int, base: int = 0) -> None:
        """Set a register from the device's side, whatever the client may write."""
        start = base + register.offset
        self._data[start : start + register.width] = value.to_bytes(register.width, "little")

    def change(self, register: Register, bit: int, on: bool, base: int = 0) -> None:
        """Set or clear bits of a register from the device's side."""
        value = self.get(register, base)
        self.set(register, value | bit if on else value & ~int(bit), base)

    def offset_of(self, capability: CapabilityID) -> int | None:
        """Where a capability is, if the device has it."""
        return self._offsets.get(capability)

    @property
    def is_bus_master(self) -> bool:
        """Whether the device may reach for memory; asked at each DMA, so it is quick."""
        return bool(self._data[pci.COMMAND.offset] & _BUS_MASTER)

    def direct_dma(self, on: bool) -> DirectDMA:
        """DMA in C, which looks at the command register by itself."""
        return DirectDMA(self._data, pci.COMMAND.offset, on)

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(self.get(pci.COMMAND))

    def reset(self) -> None:
        """Back to the contents after power-on."""
        self._data[:] = self._defaults

    # Migration

    def check_saved(self, saved: Buffer) -> None:
        """Raise ValueError where it is not the configuration space of a device like this one."""
        if len(saved) != self.size:
            raise ValueError(f"{len(saved)} bytes of configuration space, {self.size} are there")
        fixed = self._fixed()
        for at, (byte, own, mask) in enumerate(zip(saved, self._defaults, fixed, strict=True)):
            if (byte ^ own) & mask:
                raise ValueError(f"configuration space differs at {at:#x}, where it cannot change")

    def _fixed(self) -> bytes:
        """The bits that neither the client changes nor the device itself."""
        fixed = bytearray(~mask & 0xFF for mask in self._writable)
        fixed[pci.STATUS.offset] &= ~int(Status.INTERRUPT)
        return bytes(fixed)

    def load(self, saved: Buffer) -> None:
        """Take on what was read from a device like this one, and checked."""
        self._data[:] = saved

    def layout(self) -> bytes:
        """What tells this device from others: its contents after power-on, and what is writable."""
        return self._defaults + self._writable

    # Building

    def _header(self, model: DeviceModel) -> None:
        identity = model.identity
        self.set(pci.VENDOR_ID, identity.vendor_id)
        self.set(pci.DEVICE_ID, identity.device_id)
        self.set(pci.REVISION_ID, identity.revision_id)
        self._data[pci.PROG_IF.offset : pci.CACHE_LINE_SIZE.offset] = identity.class_code.to_bytes(
            3, "little"
        )
        self.set(pci.SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor_id)
        self.set(pci.SUBSYSTEM_ID, identity.subsystem_id)
        self.set(pci.INTERRUPT_PIN, model.interrupt_pin)
        self._allow(pci.COMMAND, _WRITABLE_COMMAND)
        for register in (pci.CACHE_LINE_SIZE, pci.LATENCY_TIMER, pci.INTERRUPT_LINE):
            self._allow(register, 0xFF)

    def _allow(self, register: Register, mask: int, base: int = 0) -> None:
        start = base + register.offset
        self._writable[start : start + register.width] = mask.to_bytes(register.width, "little")

    def _base_addresses(self, model: DeviceModel) -> None:
        for number, bar in model.bars.items():
            kind, mask = _bar_register(bar)
            wide = bar.type is BARType.MEM64
            register = Register(pci.BASE_ADDRESS_0.offset + 4 * number, 8 if wide else 4)
            self.set(register, kind)
            self._allow(register, mask & ((1 << 8 * register.width) - 1))
        if model.rom:
            mask = pci.ROM_ADDRESS_MASK & -pci.rom_size(len(model.rom))
            self._allow(pci.ROM_ADDRESS, mask | pci.ROM_ADDRESS_ENABLE)

    def _capability_list(self, capabilities: Sequence[ModelCapability]) -> None:
        pointer, at = pci.CAPABILITY_LIST.offset, pci.HEADER_SIZE
        for capability in capabilities:
            if at + 2 + len(capability.body) > pci.CONFIG_SIZE:
                raise ValueError(f"no room for capability {capability.id:#x}")
            self._data[pointer] = at
            self._data[at] = capability.id
            self._store(at + 2, capability)
            self._offsets[CapabilityID(capability.id)] = at
            pointer, at = at + 1, _dword(at + 2 + len(capability.body))
        if capabilities:
            self.change(pci.STATUS, Status.CAP_LIST, True)

    def _extended_list(self, capabilities: Sequence[ModelCapability]) -> None:
        at = pci.EXTENDED_FIRST
        for position, capability in enumerate(capabilities):
            end = _dword(at + 4 + len(capability.body))
            if end > self.size:
                raise ValueError(f"no room for extended capability {capability.id:#x}")
            following = end if position < len(capabilities) - 1 else 0
            head = capability.id | capability.version << pci.EXTENDED_VERSION_SHIFT
            self.set(Register(at, 4), head | following << pci.EXTENDED_NEXT_SHIFT)
            self._store(at + 4, capability)
            at = end

    def _store(self, at: int, capability: ModelCapability) -> None:
        self._data[at : at + len(capability.body)] = capability.body
        self._writable[at : at + len(capability.writable)] = capability.writable


def _dword(offset: int) -> int:
    return -(-offset // 4) * 4


def _bar_register(bar: ModelBAR) -> tuple[int, int]:
    """The fixed low bits of a BAR register, and the mask of its writable bits."""
    if bar.type is BARType.IO:
        return pci.BAR_IO, ~(bar.size - 1) & ~pci.BAR_IO_MASK
    kind = pci.BAR_MEM_TYPE_64 if bar.type is BARType.MEM64 else 0
    kind |= pci.BAR_PREFETCH if bar.prefetchable else 0
    return kind, ~(bar.size - 1) & ~pci.BAR_MEM_MASK


def _capabilities(model: DeviceModel) -> list[ModelCapability]:
    found = list(model.capabilities)
    if model.express:
        found.append(_express(model.resettable))
    if model.msi is not None:
        found.append(_msi(model.msi.vectors))
    if model.msix is not None:
        table, pba = model.msix.table, model.msix.pba
        found.append(_msix(model.msix.vectors, table[0] | table[1], pba[0] | pba[1]))
    return found


def _msi(vectors: int) -> ModelCapability:
    """A 64-bit MSI capability: control, address low and high, data."""
    order = vectors.bit_length() - 1
    control = pci.MSI_CONTROL_64BIT | order << 1
    writable = pci.MSI_CONTROL_ENABLE | pci.MSI_CONTROL_MULTIPLE_ENABLE
    return ModelCapability(
        CapabilityID.MSI,
        control.to_bytes(2, "little") + bytes(10),
        writable.to_bytes(2, "little") + b"\xfc" + b"\xff" * 9,
    )


def _msix(vectors: int, table: int, pba: int) -> ModelCapability:
    """An MSI-X capability: control, table and PBA, each with its BAR in the low bits."""
    writable = pci.MSIX_CONTROL_ENABLE | pci.MSIX_CONTROL_MASK_ALL
    body = (vectors - 1).to_bytes(2, "little") + table.to_bytes(4, "little")
    return ModelCapability(
        CapabilityID.MSIX, body + pba.to_bytes(4, "little"), writable.to_bytes(2, "little")
    )


def _express(resettable: bool) -> ModelCapability:
    """A version 2 endpoint capability; function-level reset where the model can be reset."""
    body, writable = bytearray(pci.EXP_SIZE - 2), bytearray(pci.EXP_SIZE - 2)
    body[0:2] = (2).to_bytes(2, "little")
    control = 0x000F  # error reporting enables
    if resettable:
        body[2:6] = pci.EXP_DEVICE_CAPABILITIES_FLR.to_bytes(4, "little")
        control |= pci.EXP_DEVICE_CONTROL_FLR
    writable[6:8] = control.to_bytes(2, "little")
    return ModelCapability(CapabilityID.EXP, bytes(body), bytes(writable))
