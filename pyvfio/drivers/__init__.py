# SPDX-License-Identifier: BSD-3-Clause
"""Drivers in user space; each knows :class:`~pyvfio.pci.device.PCIDevice` and no backend."""
