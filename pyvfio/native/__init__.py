# SPDX-License-Identifier: BSD-3-Clause
"""The parts that only C can do right: one access of one width, and mappings."""
