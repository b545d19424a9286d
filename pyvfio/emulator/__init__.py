# SPDX-License-Identifier: BSD-3-Clause
"""What an emulator needs to give a device to its guest: the guest's memory map, as in QEMU."""
