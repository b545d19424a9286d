# SPDX-License-Identifier: BSD-3-Clause
"""What an observer of a connection is told: every message as it came, sane or not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.errors import RemoteProtocolError
from pyvfio.wire.commands import Role
from pyvfio.wire.connection import Connection
from pyvfio.wire.header import Command, Header
from tests.unit.wire_examples import (
    MAX_DATA,
    MODERATE,
    REPLY,
    Turn,
    asked,
    cut,
    fed,
    frame,
    turns,
    written,
)


class Seen(list[tuple[Header, bytes, tuple[int, ...]]]):
    """What an observer was told."""

    def note(self, header: Header, payload: memoryview, fds: Sequence[int]) -> None:
        self.append((header, bytes(payload), tuple(fds)))


@pytest.fixture
def server() -> Connection:
    return Connection(Role.SERVER, MAX_DATA)


@pytest.fixture
def seen(server: Connection) -> Seen:
    """What the observer of ``server`` was told."""
    found = Seen()
    server.observer = found.note
    return found


def test_a_message_is_told_with_header_payload_and_descriptors(
    server: Connection, seen: Seen
) -> None:
    server.receive_data(frame(5, Command.DMA_MAP, bytes(32)), [9])
    assert seen == [(Header(5, Command.DMA_MAP, 48, 0, 0), bytes(32), (9,))]


def test_a_request_that_cannot_be_decoded_is_told(server: Connection, seen: Seen) -> None:
    server.receive_data(frame(5, 14, b"\xff", flags=0x50, error=3))
    assert seen == [(Header(5, 14, 17, 0x50, 3), b"\xff", ())]


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (frame(5, 13, size=15), Header(5, 13, 15, 0, 0)),
        (frame(5, 10, size=1 << 31), Header(5, 10, 1 << 31, 0, 0)),
        (frame(5, 11, flags=REPLY), Header(5, 11, 16, REPLY, 0)),
        (frame(5, 13, flags=2), Header(5, 13, 16, 2, 0)),
    ],
    ids=["short", "long", "never asked", "type"],
)
def test_a_header_that_is_refused_is_told_once(
    data: bytes, header: Header, server: Connection, seen: Seen
) -> None:
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            server.receive_data(data, [9])
    assert seen == [(header, b"", (9,))]


def test_a_message_that_is_not_complete_is_not_told(server: Connection, seen: Seen) -> None:
    server.receive_data(frame(5, Command.DMA_MAP, bytes(32))[:-1])
    assert seen == []


@pytest.mark.parametrize("role", [pytest.param(role, id=role.value) for role in Role])
@given(data=st.data(), sizes=st.lists(st.integers(1, 64), min_size=1, max_size=4))
@MODERATE
def test_observing_changes_no_event(role: Role, data: st.DataObject, sizes: list[int]) -> None:
    script: list[Turn] = data.draw(turns(role))
    chunks = cut(written(role, script), sizes)
    plain, observed = asked(role, script)[0], asked(role, script)[0]
    seen = Seen()
    observed.observer = seen.note
    assert fed(observed, chunks) == fed(plain, chunks)
    assert [(header.command, fds) for header, _, fds in seen] == [
        (turn.command, turn.fds) for turn in script
    ]
