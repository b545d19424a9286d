# SPDX-License-Identifier: BSD-3-Clause
"""The vfio-user client: a device that another process emulates, reached through a UNIX socket."""
