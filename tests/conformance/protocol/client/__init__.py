# SPDX-License-Identifier: BSD-3-Clause
"""What the specification asks of a client."""
