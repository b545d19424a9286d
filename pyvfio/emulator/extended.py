# SPDX-License-Identifier: BSD-3-Clause
"""The extended capabilities that a guest sees: those of the device without what cannot work.

Facts: QEMU's ``vfio_add_ext_cap``, ``vfio_setup_rebar_ecap``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pyvfio.emulator import original
from pyvfio.emulator.bus import BusKind
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.original import Original
from pyvfio.uapi import pci
from pyvfio.uapi.pci import ExtendedCapabilityID, Register

log = logging.getLogger(__name__)

_HEADER = Register(0x00, 4)
_WHOLE = 0xFFFF_FFFF
_NEXT = _WHOLE << pci.EXTENDED_NEXT_SHIFT & _WHOLE

_HIDDEN = (
    0,  # what the kernel hides
    ExtendedCapabilityID.SRIOV,  # firmware cannot size BARs of virtual functions
    ExtendedCapabilityID.ARI,  # it would name functions that are not there
)

_KEPT_CONTROL = pci.REBAR_CONTROL_INDEX | pci.REBAR_CONTROL_COUNT | pci.REBAR_CONTROL_SIZE
_SIZE_SHIFT, _COUNT_SHIFT = 8, 5
_FIRST_SIZE = 4
"""The bit of a capability register that stands for size 0, 1 MiB."""


def add_extended_capabilities(config: EmulatedConfig, bus: BusKind) -> None:
    """Make the guest's list of the device's, in its order; nothing where the guest cannot look.

    The first header is where the list begins, whether its capability is shown or not: hidden, it
    has id 0 and leads on.
    """
    if config.size < pci.EXTENDED_FIRST + _HEADER.width or not bus.express:
        return
    found = original.extended(config)
    config.emulate(_HEADER, 0, _WHOLE, pci.EXTENDED_FIRST)
    kept = [capability for capability in found if _add(config, capability)]
    following = 0
    for capability in reversed(kept):
        if capability.offset != pci.EXTENDED_FIRST:
            config.emulate(_HEADER, following << pci.EXTENDED_NEXT_SHIFT, _NEXT, capability.offset)
            following = capability.offset
    head = following << pci.EXTENDED_NEXT_SHIFT
    if kept and kept[0].offset == pci.EXTENDED_FIRST:
        head |= kept[0].id | kept[0].version << pci.EXTENDED_VERSION_SHIFT
    config.emulate(_HEADER, head, _WHOLE, pci.EXTENDED_FIRST)


def _add(config: EmulatedConfig, capability: Original) -> bool:
    """Prepare a capability, which leads nowhere yet; returns whether the guest is to see it."""
    config.emulate(_HEADER, 0, _NEXT, capability.offset)
    if capability.id in _HIDDEN:
        log.debug("%s: extended capability %#x is hidden", config.name, capability.id)
        return False
    if capability.id == ExtendedCapabilityID.REBAR and not _fix_sizes(config, capability):
        log.debug("%s: the sizes of its BARs cannot be told to a guest", config.name)
        return False
    start, end = capability.offset, capability.offset + capability.size
    config.writable[start:end] = bytes(capability.size)
    config.compared[start:end] = b"\xff" * capability.size
    return True


def _fix_sizes(config: EmulatedConfig, capability: Original) -> bool:
    """Show of each resizable BAR its present size only; returns whether that can be said.

    A function must support one of the sizes from 1 MiB to 512 GiB, so that there is no way to say
    that a BAR has another one.
    """
    entries = list(_entries(config, capability))
    if not entries or not all(sizes & pci.REBAR_CAPABILITIES_SIZES for _, sizes, _ in entries):
        return False
    for base, sizes, control in entries:
        config.emulate(pci.REBAR_CAPABILITIES, sizes, _WHOLE, base)
        config.emulate(pci.REBAR_CONTROL, control, _WHOLE, base)
    return True


def _entries(config: EmulatedConfig, capability: Original) -> Iterator[tuple[int, int, int]]:
    """(where registers are counted from, capability register, control register) of each BAR.

    Nothing where they do not fit into the capability.
    """
    first = pci.REBAR_CONTROL.offset + pci.REBAR_CONTROL.width
    if capability.size < first:
        return
    control = config.get(pci.REBAR_CONTROL, capability.offset)
    count = (control & pci.REBAR_CONTROL_COUNT) >> _COUNT_SHIFT
    if first + (count - 1) * pci.REBAR_ENTRY_SIZE > capability.size:
        return
    for base in range(
        capability.offset, capability.offset + count * pci.REBAR_ENTRY_SIZE, pci.REBAR_ENTRY_SIZE
    ):
        control = config.get(pci.REBAR_CONTROL, base) & _KEPT_CONTROL
        bit = _FIRST_SIZE + ((control & pci.REBAR_CONTROL_SIZE) >> _SIZE_SHIFT)
        yield base, 1 << bit & _WHOLE, control
