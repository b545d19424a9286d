# SPDX-License-Identifier: BSD-3-Clause
"""The vfio-user server: hosts a device model written in Python on a UNIX socket."""
