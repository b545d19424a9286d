# SPDX-License-Identifier: BSD-3-Clause
"""Who has a socket: a call of C, or the channel in Python; see claims.c."""

from __future__ import annotations

from pyvfio.native._native import ffi, lib

_C_SENDS, _C_READS = lib.PYVFIO_C_SENDS, lib.PYVFIO_C_READS
_SENDS_BLOCKED, _READS_BLOCKED = lib.PYVFIO_SENDS_BLOCKED, lib.PYVFIO_READS_BLOCKED
_BLOCKED = _SENDS_BLOCKED | _READS_BLOCKED


class Claims:
    """Those on one socket; both directions are blocked at first.

    :ivar state: ``struct pyvfio_claims``.
    """

    def __init__(self) -> None:
        self.state = ffi.new("struct pyvfio_claims *")
        self.state.word = _BLOCKED

    def block_reading(self) -> bool:
        """Have no call of C begin an exchange; returns whether one is under way."""
        return bool(lib.pyvfio_claims_set(self.state, _READS_BLOCKED) & _C_READS)

    def block(self) -> bool:
        """Have no call of C begin with anything; returns whether one still sends."""
        return bool(lib.pyvfio_claims_set(self.state, _BLOCKED) & _C_SENDS)

    def unblock(self, sending: bool, reading: bool) -> None:
        """Let calls of C take these directions."""
        bits = (_SENDS_BLOCKED if sending else 0) | (_READS_BLOCKED if reading else 0)
        if self.state.word & bits:
            lib.pyvfio_claims_clear(self.state, bits)

    def forget(self) -> None:
        """In the child of a fork: who has claimed anything is not here."""
        lib.pyvfio_claims_clear(self.state, _C_SENDS | _C_READS)

    def count_post(self) -> None:
        """Something was sent that is not answered."""
        lib.pyvfio_count_post(self.state)

    @property
    def posts(self) -> int:
        """How often that has been; what C is about to send is counted."""
        return int(self.state.posts)

    @property
    def of_c(self) -> bool:
        """Whether C has the socket, or a direction of it."""
        return bool(self.state.word & (_C_SENDS | _C_READS))
