# SPDX-License-Identifier: BSD-3-Clause
"""Programs of others as peers: QEMU's own vfio-user client against ``pyvfio serve``.

QEMU has ``-device vfio-user-pci`` from version 10.1 on. :data:`tests.peers.qemu.COMMAND` names the
command of such a one; without it these tests are deselected.
"""
