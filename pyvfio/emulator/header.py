# SPDX-License-Identifier: BSD-3-Clause
"""The header of a guest's configuration space: ids, class, multifunction bit, no addresses yet.

Facts: QEMU's ``vfio_pci_config_setup``.
"""

from __future__ import annotations

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.options import FunctionOptions
from pyvfio.errors import UnsupportedError
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Register

_CLASS_CODE = (pci.PROG_IF, pci.SUBCLASS, pci.BASE_CLASS)


def base_address(number: int) -> Register:
    """The register of BAR ``number``, or of its lower half."""
    return Register(pci.BASE_ADDRESS_0.offset + 4 * number, 4)


def set_up_header(config: EmulatedConfig, options: FunctionOptions) -> None:
    """Take from the device what the guest must not see of it; the rest is as the device has it.

    No BAR is implemented before :class:`~pyvfio.emulator.bar_registers.BARRegisters` does it.

    :raises UnsupportedError: it is a bridge.
    """
    layout = config.get(pci.HEADER_TYPE) & pci.HEADER_TYPE_LAYOUT
    if layout:
        raise UnsupportedError(
            f"its header is of type {layout:#x}; only type 0, no bridge, is shown to a guest",
            op="set up configuration space",
            uri=config.name,
        )
    for register in (*map(base_address, range(pci.NUM_BARS)), pci.ROM_ADDRESS):
        config.emulate(register, 0, 0xFFFF_FFFF)
    multifunction = pci.HEADER_TYPE_MULTIFUNCTION if options.multifunction else 0
    config.emulate(pci.HEADER_TYPE, multifunction, pci.HEADER_TYPE_MULTIFUNCTION)
    _override_ids(config, options)


def _override_ids(config: EmulatedConfig, options: FunctionOptions) -> None:
    for register, value in (
        (pci.VENDOR_ID, options.vendor_id),
        (pci.DEVICE_ID, options.device_id),
        (pci.SUBSYSTEM_VENDOR_ID, options.subsystem_vendor_id),
        (pci.SUBSYSTEM_ID, options.subsystem_id),
    ):
        if value is not None:
            config.emulate(register, value, 0xFFFF)
    if options.class_code is not None:
        for register, byte in zip(
            _CLASS_CODE, options.class_code.to_bytes(3, "little"), strict=True
        ):
            config.emulate(register, byte, 0xFF)
