# SPDX-License-Identifier: BSD-3-Clause
"""A C struct as a record with a binary layout."""

from __future__ import annotations

import dataclasses
import struct
from typing import Generic, TypeAlias, TypeVar

Buffer: TypeAlias = bytes | bytearray | memoryview

Record = TypeVar("Record")


class Layout(Generic[Record]):
    """Pack and unpack one fixed-size C struct, host byte order, no implicit padding.

    :param record: a dataclass with the members in order.
    :param codes: one :mod:`struct` code per member, separated by spaces.
    :param c_name: the C type, for the test that compares with the kernel's header.
    :ivar struct: the bare layout, for who needs no record.
    """

    def __init__(self, record: type[Record], codes: str, c_name: str = "") -> None:
        members = codes.split()
        self.struct = struct.Struct("=" + "".join(members))
        self._record = record
        self.fields = tuple(field.name for field in dataclasses.fields(record))  # type: ignore[arg-type]
        self.c_name = c_name
        self.size = self.struct.size
        self.offsets = {
            name: struct.calcsize("=" + "".join(members[:position]))
            for position, name in enumerate(self.fields)
        }

    def pack(self, *members: int | bytes) -> bytes:
        """The bytes of a struct; raises :class:`struct.error` where a member does not fit."""
        return self.struct.pack(*members)

    def unpack_from(self, data: Buffer, offset: int = 0) -> Record:
        """The struct at ``offset`` of ``data``, which must hold all of it."""
        return self._record(*self.struct.unpack_from(data, offset))
