# SPDX-License-Identifier: BSD-3-Clause
"""The states of a device that migrates, and the ways between them.

One table for client and server.  The rules are those of ``enum vfio_device_mig_state`` in
``linux/vfio.h`` (the kernel's ``vfio_mig_get_next_state``), and of the specification, "Direct State
Transitions" and "Complex State Transitions", which has no P2P states.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from pyvfio.uapi.vfio import DeviceState, MigrationFlags

_S = DeviceState

SAVING = frozenset((_S.PRE_COPY, _S.PRE_COPY_P2P, _S.STOP_COPY))
"""States in which a device gives its migration data."""
DATA = SAVING | {_S.RESUMING}
"""States with migration data: the session ends when they are left."""
RUNNING = frozenset((_S.RUNNING, _S.RUNNING_P2P, _S.PRE_COPY, _S.PRE_COPY_P2P))
"""States in which a device works, and its memory and registers change."""

_NEEDS = {
    _S.RUNNING_P2P: MigrationFlags.P2P,
    _S.PRE_COPY: MigrationFlags.PRE_COPY,
    _S.PRE_COPY_P2P: MigrationFlags.PRE_COPY | MigrationFlags.P2P,
}
"""What a device must support to have a state, besides STOP_COPY."""


class Arc(NamedTuple):
    """A transition that a device makes at once.

    :ivar p2p: whether it is there with the P2P states only, or without them only; None is both.
    """

    before: DeviceState
    after: DeviceState
    p2p: bool | None = None


ARCS = (
    Arc(_S.RUNNING, _S.STOP, p2p=False),
    Arc(_S.STOP, _S.RUNNING, p2p=False),
    Arc(_S.STOP, _S.STOP_COPY),
    Arc(_S.STOP_COPY, _S.STOP),
    Arc(_S.STOP, _S.RESUMING),
    Arc(_S.RESUMING, _S.STOP),
    Arc(_S.RUNNING, _S.PRE_COPY),
    Arc(_S.PRE_COPY, _S.RUNNING),
    Arc(_S.PRE_COPY, _S.STOP_COPY, p2p=False),
    Arc(_S.RUNNING, _S.RUNNING_P2P, p2p=True),
    Arc(_S.RUNNING_P2P, _S.RUNNING, p2p=True),
    Arc(_S.RUNNING_P2P, _S.STOP, p2p=True),
    Arc(_S.STOP, _S.RUNNING_P2P, p2p=True),
    Arc(_S.PRE_COPY, _S.PRE_COPY_P2P, p2p=True),
    Arc(_S.PRE_COPY_P2P, _S.PRE_COPY, p2p=True),
    Arc(_S.RUNNING_P2P, _S.PRE_COPY_P2P, p2p=True),
    Arc(_S.PRE_COPY_P2P, _S.RUNNING_P2P, p2p=True),
    Arc(_S.PRE_COPY_P2P, _S.STOP_COPY, p2p=True),
)
"""Every arc.  ERROR has none: only a reset leaves it, to RUNNING, and nobody can ask for it."""

BLOCKED = frozenset(((_S.STOP_COPY, _S.PRE_COPY), (_S.STOP_COPY, _S.PRE_COPY_P2P)))
"""What must not be asked for, although there are ways: a save does not begin again."""


def supported(flags: MigrationFlags) -> frozenset[DeviceState]:
    """The states that a device with these flags has."""
    return frozenset(state for state in _S if _NEEDS.get(state, 0) & ~flags == 0)


def path(
    before: DeviceState, after: DeviceState, flags: MigrationFlags
) -> tuple[DeviceState, ...] | None:
    """The states that a device goes through, the last of them ``after``; empty where it is there.

    The shortest way, on which a save does not begin and end by the way: a saving state is passed
    through only from one to another.

    :param flags: what the device supports.
    :returns: None where there is no way.
    """
    known = supported(flags)
    if before not in known or after not in known or _S.ERROR in (before, after):
        return None
    if (before, after) in BLOCKED:
        return None
    if before is after:
        return ()
    within_a_save = before in SAVING and after in SAVING
    ways: dict[DeviceState, tuple[DeviceState, ...]] = {before: ()}
    waiting = deque((before,))
    while waiting:
        state = waiting.popleft()
        for following in _arcs_from(state, known, bool(flags & MigrationFlags.P2P)):
            if following is after:
                return (*ways[state], after)
            if following not in ways and (within_a_save or following not in SAVING):
                ways[following] = (*ways[state], following)
                waiting.append(following)
    return None


def _arcs_from(
    state: DeviceState, known: frozenset[DeviceState], p2p: bool
) -> Iterator[DeviceState]:
    for arc in ARCS:
        if arc.before is state and arc.after in known and arc.p2p in (None, p2p):
            yield arc.after
