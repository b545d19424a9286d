# SPDX-License-Identifier: BSD-3-Clause
"""The PCI Express capability of a function, made one that fits the bus it is on.

Facts: QEMU's ``vfio_setup_pcie_cap``.
"""

from __future__ import annotations

from pyvfio.emulator.bus import BusKind
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.errors import UnsupportedError
from pyvfio.uapi import pci
from pyvfio.uapi.pci import ExpressType, Register

SMALLEST = pci.EXP_DEVICE_CAPABILITIES.offset + pci.EXP_DEVICE_CAPABILITIES.width
"""Bytes that a capability needs so that its type and what the device can are in it."""

_ENDPOINTS = (ExpressType.ENDPOINT, ExpressType.LEG_END, ExpressType.RC_END)
_LINK = (pci.EXP_LINK_CAPABILITIES, pci.EXP_LINK_CONTROL, pci.EXP_LINK_STATUS)
_LINK_2 = (pci.EXP_LINK_CAPABILITIES_2, pci.EXP_LINK_CONTROL_2, pci.EXP_LINK_STATUS_2)
_OLDEST_VERSION = 1


def add_express(config: EmulatedConfig, offset: int, size: int, bus: BusKind) -> bool:
    """Convert the capability at ``offset``, of at least :data:`SMALLEST` bytes.

    :returns: whether the guest is to see it.
    :raises UnsupportedError: it is no endpoint but a port or a bridge.
    """
    flags = config.get(pci.EXP_FLAGS, offset)
    kind = (flags & pci.EXP_FLAGS_TYPE) >> 4
    if kind not in _ENDPOINTS:
        raise UnsupportedError(
            f"a PCI Express function of type {kind:#x} is no endpoint; only those are shown to a"
            " guest",
            op="set up configuration space",
            uri=config.name,
        )
    if bus is BusKind.BRIDGED:
        return False  # no such device exists, and guests refuse it
    if bus is BusKind.ROOT_COMPLEX:
        if kind == ExpressType.LEG_END:
            return False
        if kind == ExpressType.ENDPOINT:
            _integrate(config, offset, size)
    elif bus is BusKind.PORT and kind == ExpressType.RC_END:
        _give_link(config, offset, size)
    if not flags & pci.EXP_FLAGS_VERSION:
        # Virtual functions of Intel's 82599 say 0, which no guest knows (its erratum 35).
        config.emulate(pci.EXP_FLAGS, _OLDEST_VERSION, pci.EXP_FLAGS_VERSION, offset)
    return True


def _integrate(config: EmulatedConfig, offset: int, size: int) -> None:
    """An endpoint on a root complex is integrated there, without a link."""
    _set_type(config, offset, ExpressType.RC_END)
    for registers in (_LINK, _LINK_2):
        if _hold(registers, size):
            for register in registers:
                config.emulate(register, 0, (1 << 8 * register.width) - 1, offset)


def _give_link(config: EmulatedConfig, offset: int, size: int) -> None:
    """An integrated endpoint below a port has a link: the narrowest and slowest."""
    _set_type(config, offset, ExpressType.ENDPOINT)
    if _hold(_LINK, size):
        link = pci.EXP_LINK_WIDTH_X1 | pci.EXP_LINK_SPEED_2_5GT
        config.emulate(pci.EXP_LINK_CAPABILITIES, link, 0xFFFF_FFFF, offset)
        config.emulate(pci.EXP_LINK_CONTROL, 0, 0xFFFF, offset)


def _set_type(config: EmulatedConfig, offset: int, kind: ExpressType) -> None:
    config.emulate(pci.EXP_FLAGS, kind << 4, pci.EXP_FLAGS_TYPE, offset)


def _hold(registers: tuple[Register, ...], size: int) -> bool:
    """Whether a capability of ``size`` bytes has these registers."""
    return registers[-1].offset + registers[-1].width <= size
