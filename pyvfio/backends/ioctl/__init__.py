# SPDX-License-Identifier: BSD-3-Clause
"""The operation vectors on the kernel's VFIO, and how a device of this host comes to it."""
