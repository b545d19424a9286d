# SPDX-License-Identifier: BSD-3-Clause
"""The vfio-user protocol without a socket: bytes and file descriptors in, events out.

Client and server use the same codec.  ``header`` frames, ``messages`` lays out every payload,
``commands`` is the one table that ties them together, ``version`` negotiates, and ``connection``
is the state machine that a socket feeds.
"""
