# SPDX-License-Identifier: BSD-3-Clause
"""Benchmarks: every figure stands beside a baseline that is run in turns with it."""
