# SPDX-License-Identifier: BSD-3-Clause
"""Bytes that were read ahead: taken piece by piece, with the descriptors of their message."""

from __future__ import annotations

import os

import pytest

from pyvfio.transport.unread import Unread
from pyvfio.wire.header import HEADER
from tests.support import open_fds


def message(size: int, number: int = 0) -> bytes:
    return HEADER.pack(number, 9, size, 1, 0) + bytes(size - HEADER.size)


def taken(unread: Unread, size: int) -> tuple[bytes, list[int]]:
    space = bytearray(size)
    count, fds = unread.take(memoryview(space))
    return bytes(space[:count]), fds


def test_nothing_is_unread_at_first() -> None:
    assert not Unread()


def test_bytes_are_taken_in_their_order_until_there_are_none() -> None:
    data = message(20, 1) + message(16, 2)
    unread = Unread(data)
    pieces = []
    while unread:
        pieces.append(taken(unread, 7)[0])
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces] == [7] * 5 + [1]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (message(20), 0),
        (message(20)[:5], 0),
        (message(20) + message(24), 20),
        (message(20) + message(24)[:9], 20),
        (message(20) + message(24) + message(16)[:1], 44),
        (message(20) + HEADER.pack(0, 9, 3, 1, 0) + bytes(8), 20),
        (HEADER.pack(0, 9, 1 << 30, 1, 0) + bytes(8), 0),
    ],
    ids=[
        "one message",
        "a part of one",
        "two",
        "a part of the second",
        "a part of the third",
        "one of an impossible size",
        "one that does not end",
    ],
)
def test_descriptors_are_of_the_last_message_that_begins(data: bytes, place: int) -> None:
    unread = Unread(data, [50, 51])
    before = taken(unread, place)[1] if place else []
    assert (before, taken(unread, 4)[1], taken(unread, 99)[1]) == ([], [50, 51], [])


def test_descriptors_of_what_nobody_takes_are_closed() -> None:
    fds = [os.eventfd(0), os.eventfd(0)]
    unread = Unread(message(20), fds)
    unread.drop()
    unread.drop()
    assert not unread
    assert not set(fds) & set(open_fds())
