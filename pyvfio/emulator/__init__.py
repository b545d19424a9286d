# SPDX-License-Identifier: BSD-3-Clause
"""What an emulator needs to give a guest a VFIO device: the function, a bus, a memory map."""
