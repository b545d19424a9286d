# SPDX-License-Identifier: BSD-3-Clause
"""The implementations of the operation vectors, one room for each transport."""
