# SPDX-License-Identifier: BSD-3-Clause
"""Reset of a PCI function."""

from __future__ import annotations

from pyvfio.base import VFIOBase
from pyvfio.pci.config import ConfigSpace


def reset_function(base: VFIOBase, config: ConfigSpace) -> None:
    """Reset the device and put its command register back.

    The kernel saves and restores configuration space around a reset (``pci_reset_function``); a
    vfio-user server puts it to its defaults.  Restoring the command register here makes both leave
    a device that answers and masters the bus as before.

    :raises UnsupportedError: the device cannot be reset.
    :raises ResetError: it refused.
    """
    command = config.command
    base.reset()
    if config.command != command:
        config.command = command
