# SPDX-License-Identifier: BSD-3-Clause
"""What C knows of messages and of DMA is what the codec and the tables of numbers know."""

from __future__ import annotations

import pytest

from pyvfio.native._native import ffi, lib
from pyvfio.uapi import pci
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.wire import messages as m
from pyvfio.wire.header import HEADER, Command, HeaderFlags
from pyvfio.wire.messages.region import REGION_RANGE, WRITE_ENTRY
from pyvfio.wire.version import MAX_FDS


@pytest.mark.parametrize("name", ["REGION_READ", "REGION_WRITE", "REGION_WRITE_MULTI"])
def test_commands_have_the_same_numbers(name: str) -> None:
    assert getattr(lib, f"PYVFIO_{name}") == Command[name]


@pytest.mark.parametrize("name", ["COMMAND", "REPLY", "NO_REPLY", "ERROR"])
def test_flags_are_the_same(name: str) -> None:
    assert getattr(lib, f"PYVFIO_{name}") == HeaderFlags[name]


def test_what_dma_needs_has_the_same_numbers() -> None:
    assert lib.PYVFIO_DMA_MASTER == pci.Command.MASTER
    assert (lib.PYVFIO_DMA_READ, lib.PYVFIO_DMA_WRITE) == (DMAMapFlags.READ, DMAMapFlags.WRITE)


def test_structures_have_the_same_size() -> None:
    assert ffi.sizeof("struct pyvfio_header") == HEADER.size
    assert ffi.sizeof("struct pyvfio_range") == REGION_RANGE.size
    assert ffi.sizeof("struct pyvfio_write") == WRITE_ENTRY.size
    assert HEADER.size + REGION_RANGE.size == lib.PYVFIO_REQUEST_SIZE


def test_a_header_is_read_as_it_was_written() -> None:
    packed = HEADER.pack(0x1234, Command.REGION_READ, 32, HeaderFlags.REPLY, 5)
    header = ffi.new("struct pyvfio_header *")
    ffi.buffer(header)[:] = packed
    found = header.id, header.command, header.size, header.flags, header.error
    assert found == (0x1234, Command.REGION_READ, 32, HeaderFlags.REPLY, 5)


def test_no_message_with_descriptors_is_shorter_than_is_read_at_one_time() -> None:
    shortest = min(
        len(b"".join(message.encode())) for message in (m.SetIRQs(0, 0, 0, 0), m.DMAMap(0, 0, 0, 0))
    )
    assert HEADER.size + shortest == lib.PYVFIO_AT_LEAST


def test_as_many_descriptors_fit_as_can_come() -> None:
    assert lib.PYVFIO_MAX_FDS >= MAX_FDS
