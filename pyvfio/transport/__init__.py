# SPDX-License-Identifier: BSD-3-Clause
"""A vfio-user codec on a real UNIX socket, for client and server alike."""
