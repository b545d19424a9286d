# SPDX-License-Identifier: BSD-3-Clause
"""What a server answers to VERSION (specification, "VFIO_USER_VERSION")."""

from __future__ import annotations

from dataclasses import fields, replace

from pyvfio.wire import version
from pyvfio.wire.messages import Version
from pyvfio.wire.version import Capabilities


def answer_to(offered: Version, own: Capabilities, twin: bool) -> Version:
    """The reply: our minor or the client's earlier one, and the capabilities that it offered too.

    :param own: what this server can do.
    :param twin: the first descriptor of the reply is the client's end of a twin socket.
    """
    minor = min(offered.minor, version.MINOR)
    if offered.capabilities is None:
        return Version(version.MAJOR, minor, None)
    shared = _where_offered(own, offered.capabilities)
    if shared.twin_socket is not None:
        shared = replace(shared, twin_socket=twin, twin_fd_index=0 if twin else None)
    return Version(version.MAJOR, minor, shared)


def _where_offered(own: Capabilities, offered: Capabilities) -> Capabilities:
    """Our own, without the keys that were not offered; a boolean offered as false is not offered.

    The twin socket is: its absence is told by ``supported``.
    """
    values = {}
    for name in (field.name for field in fields(Capabilities)):
        theirs = getattr(offered, name)
        told = theirs is not None and (theirs is not False or name == "twin_socket")
        values[name] = getattr(own, name) if told else None
    return Capabilities(**values)
