# SPDX-License-Identifier: BSD-3-Clause
"""Who a client is, as the kernel says (``SO_PEERCRED``, ``SO_PEERGROUPS``), and who may be one."""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass
from struct import Struct, iter_unpack

_UCRED = Struct("=iII")
_SO_PEERGROUPS = 59
_MOST_GROUPS = 256
"""Supplementary groups that are looked at: what Python's ``getsockopt`` takes."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The process at the other end of a UNIX socket, as it was when it connected.

    :ivar groups: its supplementary groups; empty where it has more than 256.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    @classmethod
    def of(cls, sock: socket.socket) -> Credentials:
        """Those of the peer of a connected socket; raises OSError where the kernel has none."""
        ids = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(ids)
        return cls(pid, uid, gid, _groups(sock))

    def __str__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}, gid {self.gid}"


def _groups(sock: socket.socket) -> frozenset[int]:
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:
        return frozenset()
    return frozenset(group for (group,) in iter_unpack("=I", found))


@dataclass(frozen=True, slots=True)
class Allowed:
    """Who may be a client: processes of one of these users, or in one of these groups.

    :param uids: user ids.
    :param gids: group ids; the process's own group or a supplementary one.
    """

    uids: Collection[int] = ()
    gids: Collection[int] = ()

    def admits(self, client: Credentials) -> bool:
        """Whether a process may be a client."""
        groups = {client.gid, *client.groups}
        return client.uid in self.uids or not groups.isdisjoint(self.gids)
