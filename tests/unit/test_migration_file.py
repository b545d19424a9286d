# SPDX-License-Identifier: BSD-3-Clause
"""The file of a saved device: what is written is read, and anything else is refused."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.errors import StateError
from pyvfio.migration_file import PIECE, DeviceIDs, StateReader, StateWriter

IDS = DeviceIDs(0x1234, 0x11E8, 0x1AF4, 0x1100, 0x00FF00, 0x10)
CONFIG = b"registers"
STATE = [b"first", b"second"]
HEAD = 16 + 13 + len("a writer") + 4
RECORD = 12


def written(pieces: list[bytes], config: bytes = CONFIG) -> bytes:
    """A file."""
    out = io.BytesIO()
    writer = StateWriter(out.write, IDS, "a writer")
    for piece in pieces:
        writer.write(piece)
    writer.finish(config)
    return out.getvalue()


def read(data: bytes) -> tuple[list[bytes], StateReader]:
    """The pieces of a file, and who has read them."""
    reader = StateReader(io.BytesIO(data).read, "a file")
    return list(reader.pieces()), reader


def record(kind: int, contents: bytes) -> bytes:
    """A record, put together by hand."""
    key = struct.pack("<II", kind, len(contents))
    return key + struct.pack("<I", zlib.crc32(key + contents)) + contents


WHOLE = written(STATE)
FIRST, SECOND = (record(1, piece) for piece in STATE)
END = RECORD + 40
"""Bytes of the last record."""


def test_what_is_written_is_read() -> None:
    pieces, reader = read(WHOLE)
    assert pieces == STATE
    assert (reader.ids, reader.writer, reader.config) == (IDS, "a writer", CONFIG)
    assert reader.state_size == len(b"".join(STATE))


def test_the_layout_is_that_of_the_documentation() -> None:
    """A file of today must be known tomorrow."""
    ids = struct.pack("<HHHHIB", *IDS) + b"a writer"
    head = b"pyvfioMS" + struct.pack("<II", 1, len(ids)) + ids
    expected = head + struct.pack("<I", zlib.crc32(head)) + FIRST + SECOND + record(2, CONFIG)
    assert WHOLE[:-END] == expected
    assert len(head) + 4 == HEAD


def test_a_device_may_have_no_state() -> None:
    assert read(written([]))[0] == []


def test_long_pieces_are_divided() -> None:
    data = bytes(2 * PIECE + 1)
    assert [len(piece) for piece in read(written([data]))[0]] == [PIECE, PIECE, 1]


@given(st.lists(st.binary(min_size=1, max_size=50)), st.binary(min_size=1, max_size=50))
def test_any_state_is_read_as_it_was_written(pieces: list[bytes], config: bytes) -> None:
    found, reader = read(written(pieces, config))
    assert (b"".join(found), reader.config) == (b"".join(pieces), config)


@pytest.mark.parametrize("size", range(len(WHOLE)))
def test_a_file_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(StateError, match=r"cut off|no saved state"):
        read(WHOLE[:size])


@pytest.mark.parametrize("at", range(len(WHOLE)))
def test_a_byte_that_was_changed_is_noticed(at: int) -> None:
    for bit in range(8):
        damaged = bytearray(WHOLE)
        damaged[at] ^= 1 << bit
        with pytest.raises(StateError):
            read(bytes(damaged))


def test_a_file_that_goes_on_behind_its_end_is_refused() -> None:
    with pytest.raises(StateError, match="behind its end"):
        read(WHOLE + b"\0")
    with pytest.raises(StateError, match="behind its end"):
        read(WHOLE + WHOLE)


def test_a_newer_file_says_so() -> None:
    newer = bytearray(WHOLE)
    newer[8] = 2
    with pytest.raises(StateError, match="newer than this program: format 2, 1 is known"):
        read(bytes(newer))


@pytest.mark.parametrize("foreign", [b"", b"#!/bin/sh\n", bytes(4096), b"pyvfiodm" + bytes(64)])
def test_another_kind_of_file_says_so(foreign: bytes) -> None:
    with pytest.raises(StateError, match="no saved state"):
        read(foreign)


@pytest.mark.parametrize(
    "middle",
    [
        SECOND + FIRST + record(2, CONFIG),
        SECOND + record(2, CONFIG),
        FIRST + FIRST + SECOND + record(2, CONFIG),
        FIRST + SECOND,
        FIRST + SECOND + record(2, CONFIG) + record(2, CONFIG),
        FIRST + record(2, CONFIG) + SECOND,
        FIRST + record(1, b"") + SECOND + record(2, CONFIG),
        FIRST + record(4, b"?") + SECOND + record(2, CONFIG),
        FIRST + SECOND + record(2, bytes(4097)),
    ],
    ids=[
        "another order",
        "one is missing",
        "one is there twice",
        "no registers",
        "registers twice",
        "state behind the registers",
        "an empty piece",
        "no such record",
        "too many registers",
    ],
)
def test_records_that_are_each_right_must_be_all_and_in_order(middle: bytes) -> None:
    with pytest.raises(StateError, match="damaged"):
        read(WHOLE[:HEAD] + middle + WHOLE[-END:])


def test_a_record_that_is_too_long_is_refused_before_it_is_read() -> None:
    asked = []
    file = io.BytesIO(WHOLE[:HEAD] + struct.pack("<III", 1, 0xFFFF_FFFF, 0))

    def reading(size: int) -> bytes:
        asked.append(size)
        return file.read(size)

    with pytest.raises(StateError, match="4294967295 bytes of STATE"):
        list(StateReader(reading, "a file").pieces())
    assert max(asked) < 100


@given(st.binary(max_size=200))
def test_whatever_is_read_is_refused_or_whole(data: bytes) -> None:
    with pytest.raises(StateError):
        read(WHOLE[:HEAD] + data)


@pytest.mark.parametrize("field", DeviceIDs._fields)
def test_the_state_of_another_device_is_told_by_its_ids(field: str) -> None:
    IDS.check(IDS, "a device")
    other = IDS._replace(**{field: 0x77})
    with pytest.raises(StateError, match=f"{field.replace('_', ' ')} .* not 0x77"):
        IDS.check(other, "a device")
