# SPDX-License-Identifier: BSD-3-Clause
"""Checks of what a model declares, so that a mistake is told when the model is hosted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from pyvfio.memory import PAGE_SIZE
from pyvfio.server.model import (
    DeviceModel,
    Identity,
    ModelBAR,
    ModelCapability,
    ModelIOEventFD,
    ModelMSIX,
)
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, CapabilityID

_IDENTITY_BITS = {
    "vendor_id": 16,
    "device_id": 16,
    "class_code": 24,
    "revision_id": 8,
    "subsystem_vendor_id": 16,
    "subsystem_id": 16,
}
_OWN = (CapabilityID.EXP, CapabilityID.MSI, CapabilityID.MSIX)
"""Capabilities that the server makes of other declarations."""
_MAX_MSI_VECTORS = 32
_MAX_PIN = 4
_WRITE_SIZES = (0, 1, 2, 4, 8)
_SMALLEST_MEMORY, _SMALLEST_PORTS, _LARGEST_PORTS = 16, 4, 256


def check(model: DeviceModel) -> None:
    """Raise :class:`ValueError` where declarations contradict each other or do not fit."""
    _check_identity(model.identity)
    for number, bar in model.bars.items():
        _check_bar(number, bar, model.bars)
    if model.rom:
        pci.rom_size(len(model.rom))
    if not 0 <= model.interrupt_pin <= _MAX_PIN:
        raise ValueError(f"there is no interrupt pin {model.interrupt_pin}")
    if model.msi is not None:
        vectors = model.msi.vectors
        if not 1 <= vectors <= _MAX_MSI_VECTORS or vectors & (vectors - 1):
            raise ValueError(f"MSI cannot have {vectors} vectors")
    if model.msix is not None:
        _check_msix(model.msix, model.bars)
    _check_io_eventfds(model)
    for capability in model.capabilities:
        _check_capability(capability)
    if model.extended_capabilities and not model.express:
        raise ValueError("an extended capability needs a PCI Express function")
    for capability in model.extended_capabilities:
        _check_extended(capability)
    if not 0 <= model.migration_version < 1 << 32:
        raise ValueError(f"there is no migration version {model.migration_version}")
    if model.migration_version and not model.resettable:
        raise ValueError("a device that can be migrated needs a reset, which recovers it")


def _check_identity(identity: Identity) -> None:
    for name, bits in _IDENTITY_BITS.items():
        value = getattr(identity, name)
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} {value:#x} does not fit into {bits} bits")


def _check_bar(number: int, bar: ModelBAR, bars: Mapping[int, ModelBAR]) -> None:
    wide = bar.type is BARType.MEM64
    if not 0 <= number < pci.NUM_BARS - wide or (wide and number + 1 in bars):
        raise ValueError(f"there is no room for BAR {number}")
    ports = bar.type is BARType.IO
    smallest = _SMALLEST_PORTS if ports else _SMALLEST_MEMORY
    largest = _LARGEST_PORTS if ports else 1 << (63 if wide else 31)
    if not smallest <= bar.size <= largest or bar.size & (bar.size - 1):
        raise ValueError(f"BAR {number} cannot have {bar.size} bytes")
    if bar.mappable and (not bar.backed or ports):
        raise ValueError(f"BAR {number} cannot be mapped: it is not backed memory")
    end = 0
    for offset, size in sorted(bar.mappable):
        whole = size % PAGE_SIZE == 0 or (offset, size) == (0, bar.size)
        if size <= 0 or offset % PAGE_SIZE or not whole:
            raise ValueError(f"BAR {number} cannot be mapped at {offset:#x}: not whole pages")
        if offset < end or offset + size > bar.size:
            raise ValueError(f"BAR {number} has no room for the area at {offset:#x}")
        end = offset + size


def _check_msix(msix: ModelMSIX, bars: Mapping[int, ModelBAR]) -> None:
    if not 1 <= msix.vectors <= pci.MSIX_CONTROL_SIZE + 1:
        raise ValueError(f"MSI-X cannot have {msix.vectors} vectors")
    for what, number, offset, size in _msix_places(msix):
        bar = bars.get(number)
        if bar is None or bar.type is BARType.IO:
            raise ValueError(f"the MSI-X {what} needs a memory BAR, {number} is none")
        if offset % 8 or not 0 <= offset <= bar.size - size:
            raise ValueError(f"the MSI-X {what} of {size} bytes cannot be at {offset:#x}")
        for start, length in bar.mappable:
            if offset < start + length and start < offset + size:
                raise ValueError(f"clients would map the MSI-X {what} away from the server")
    (_, table_bar, table, table_size), (_, pba_bar, pba, pba_size) = _msix_places(msix)
    if table_bar == pba_bar and table < pba + pba_size and pba < table + table_size:
        raise ValueError("the MSI-X table lies over the pending bits")


def _msix_places(msix: ModelMSIX) -> Iterator[tuple[str, int, int, int]]:
    """(name, BAR, offset, bytes) of the table and of the pending bits."""
    yield "table", *msix.table, msix.vectors * pci.MSIX_ENTRY_SIZE
    yield "PBA", *msix.pba, -(-msix.vectors // 64) * 8


def _check_io_eventfds(model: DeviceModel) -> None:
    for entry in model.io_eventfds:
        _check_io_eventfd(entry, model)
    # As KVM refuses them (``ioeventfd_check_collision``): one write would mean two kicks.
    for one, other in combinations(model.io_eventfds, 2):
        if (
            (one.bar, one.offset) == (other.bar, other.offset)
            and (one.size == other.size or not one.size or not other.size)
            and (one.datamatch == other.datamatch or None in (one.datamatch, other.datamatch))
        ):
            raise ValueError(f"two ioeventfds for the same write at {one.offset:#x}")


def _check_io_eventfd(entry: ModelIOEventFD, model: DeviceModel) -> None:
    where = f"the ioeventfd at {entry.offset:#x} of BAR {entry.bar}"
    bar = model.bars.get(entry.bar)
    if bar is None or bar.backed:
        raise ValueError(f"{where}: the BAR has no callbacks")
    if entry.size not in _WRITE_SIZES:
        raise ValueError(f"{where}: a write cannot have {entry.size} bytes")
    if entry.offset % entry.width or not 0 <= entry.offset <= bar.size - entry.width:
        raise ValueError(f"{where}: no register can be there")
    if entry.datamatch is not None and not 0 <= entry.datamatch < 1 << 8 * entry.size:
        raise ValueError(f"{where}: no write of {entry.size} bytes has that value")
    for what, number, offset, size in _msix_places(model.msix) if model.msix else ():
        if number == entry.bar and offset - entry.width < entry.offset < offset + size:
            raise ValueError(f"{where}: the MSI-X {what} is there")


def _check_capability(capability: ModelCapability) -> None:
    if capability.id not in list(CapabilityID):
        raise ValueError(f"there is no capability {capability.id:#x}")
    if capability.id in _OWN:
        name = pci.CAPABILITY_NAMES[capability.id]
        raise ValueError(f"the {name} capability is made of the model's other declarations")
    _check_writable(capability)


def _check_extended(capability: ModelCapability) -> None:
    if not 0 <= capability.version <= pci.EXTENDED_VERSION_MASK:
        raise ValueError(f"extended capability {capability.id:#x} version {capability.version}")
    _check_writable(capability)


def _check_writable(capability: ModelCapability) -> None:
    if len(capability.writable) > len(capability.body):
        raise ValueError(f"capability {capability.id:#x} is writable beyond its end")
