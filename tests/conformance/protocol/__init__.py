# SPDX-License-Identifier: BSD-3-Clause
"""Conformance with the vfio-user specification (``docs/interop/vfio-user.rst`` of QEMU), by hand.

``server`` has a client made of raw bytes that runs on any vfio-user PCI server: what the device
has it learns from the server.  ``client`` has a server of raw bytes that drives
:func:`pyvfio.open`.  Each test cites the section that it holds a peer to.
"""
