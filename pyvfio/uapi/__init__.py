# SPDX-License-Identifier: BSD-3-Clause
"""Numbers and struct layouts of the kernel's interfaces, one table for both backends."""
