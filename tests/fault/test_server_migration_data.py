# SPDX-License-Identifier: BSD-3-Clause
"""What is saved of one server's device and loaded into another's: all of it, or nothing.

Specification: "VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE", "Direct State Transitions".
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.fault import raw
from tests.fault.clients import (
    BAR0,
    BAR1,
    BAR2,
    IOVA,
    LIVENESS,
    PAGE,
    TEST_PIN,
    TEST_SCRATCH,
    finish_test_dma,
    in_step,
    memfd,
    pattern,
)
from tests.fault.moving import (
    connected,
    data_read,
    data_write,
    feature,
    go,
    load,
    read_all,
    read_some,
    refuses,
    save,
    state,
    write_all,
)
from tests.fault.raw import RawClient
from tests.fault.raw_migration import (
    DATA_SIZE,
    ERROR,
    GET,
    PRE_COPY,
    RESUMING,
    RUNNING,
    STOP,
    STOP_COPY,
)
from tests.support import ServerProcess, open_fds, resident

HEAD, START_HEADER = 8, 8 + 32
MEMORY_SIZE = 64 << 20
PORTS = 4
PIECE = 1 << 20


@pytest.fixture(scope="module")
def source(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of the test device."""
    return host("pyvfio.models.testdev:TestDevice")


@pytest.fixture(scope="module")
def target(host: Callable[..., ServerProcess]) -> ServerProcess:
    """Another one."""
    return host("testdev")


@pytest.fixture(scope="module")
def edu(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of the edu device."""
    return host("edu")


@contextmanager
def both(source: ServerProcess, target: ServerProcess) -> Iterator[tuple[RawClient, RawClient]]:
    """A client of each, of devices that were reset."""
    with connected(source) as one, connected(target) as other:
        yield one, other


def fill(client: RawClient, seed: int) -> None:
    """Give the test device a state of its own wherever it has one."""
    rng = random.Random(seed)
    client.write(BAR0, TEST_SCRATCH, rng.randbytes(8))
    for register in (0x30, 0x38, 0x40):
        client.write(BAR0, register, rng.randbytes(4))
    client.write32(BAR0, 0x050, rng.getrandbits(32))
    for offset in (0, 12345, PIECE - 3, 5 * PIECE, 32 << 20, MEMORY_SIZE - 5000):
        client.write(BAR2, offset, rng.randbytes(5000))
    client.write(PORTS, 0, rng.randbytes(32))
    for vector in range(32):
        client.write(BAR1, 16 * vector, rng.randbytes(12))
    client.write(raw.CONFIG, 0x3C, rng.randbytes(1))
    client.write(raw.CONFIG, 0x10, rng.randbytes(4))
    client.write(raw.CONFIG, 4, b"\x06\x04")
    client.write32(BAR0, TEST_PIN, 1)


def contents(client: RawClient) -> dict[str, bytes]:
    """All that a client can read of the test device; counts no access to the scratch."""
    return {
        "registers": b"".join(
            client.read(BAR0, at, 4) for at in range(0, 0x70, 4) if not 0x10 <= at < 0x18
        ),
        "memory": b"".join(client.read(BAR2, at, PIECE) for at in range(0, MEMORY_SIZE, PIECE)),
        "ports": client.read(PORTS, 0, 32),
        "table": b"".join(client.read(BAR1, at, 8) for at in range(0, 0x808, 8)),
        "config": client.read(raw.CONFIG, 0, 4096),
    }


def changed(stream: bytes, at: int, bits: int = 0xFF) -> bytes:
    """A stream with one byte that differs."""
    return stream[:at] + bytes([stream[at] ^ bits]) + stream[at + 1 :]


def records(stream: bytes) -> list[tuple[int, bytes]]:
    """The records of a stream: kind and contents."""
    found, at = [], 0
    while at < len(stream):
        kind, size = struct.unpack_from("<II", stream, at)
        found.append((kind, stream[at + HEAD : at + HEAD + size]))
        at += HEAD + size
    return found


def test_everything_arrives(source: ServerProcess, target: ServerProcess) -> None:
    with both(source, target) as (one, other):
        fill(one, 1)
        fill(other, 2)
        other.write(BAR2, 9 * PIECE + 5, b"where the source has nothing")
        before = contents(one)
        load(other, save(one))
        go(other, RUNNING)
        assert contents(other) == before


def test_everything_arrives_with_pre_copy(source: ServerProcess, target: ServerProcess) -> None:
    """Memory that changes meanwhile included, also where it becomes zero again."""
    with both(source, target) as (one, other):
        fill(one, 3)
        fill(other, 4)
        go(one, PRE_COPY)
        stream = read_all(one)
        one.write(BAR2, 12345, bytes(5000))
        one.write(BAR2, 7 * PIECE, b"new")
        stream += read_all(one)
        assert read_all(one) == b""
        fill(one, 5)
        before = contents(one)
        go(one, STOP_COPY)
        stream += read_all(one)
        load(other, stream)
        go(other, RUNNING)
        assert contents(other) == before


def test_what_was_sent_in_pre_copy_is_not_sent_again(source: ServerProcess) -> None:
    with connected(source) as client:
        client.write(BAR2, 0, pattern(PIECE))
        go(client, PRE_COPY)
        assert len(read_all(client)) > PIECE
        client.write(BAR2, 0, b"changed")
        go(client, STOP_COPY)
        assert len(read_all(client)) < PIECE


def test_a_pre_copy_that_is_given_up_leaves_nothing_out_of_the_next(
    source: ServerProcess, target: ServerProcess
) -> None:
    with both(source, target) as (one, other):
        fill(one, 6)
        before = contents(one)
        go(one, PRE_COPY)
        read_all(one)
        load(other, save_again(one))
        go(other, RUNNING)
        assert contents(other) == before


def save_again(client: RawClient) -> bytes:
    """Give up a pre-copy and save anew."""
    go(client, RUNNING)
    return save(client)


def test_models_send_pieces_of_their_own_in_pre_copy(streaming: ServerProcess) -> None:
    with connected(streaming) as client:
        client.write32(BAR0, 0x40, 7)
        client.write32(BAR0, 0x48, 8)
        go(client, PRE_COPY)
        stream = read_all(client)
        client.write32(BAR0, 0x48, 9)
        stream += read_all(client)
        client.write32(BAR0, 0x50, 10)
        go(client, STOP_COPY)
        final = read_all(client)
        client.done(raw.RESET)
        client.write32(BAR0, 0x48, 11)
        load(client, stream + final)
        go(client, RUNNING)
        assert [client.read32(BAR0, at) for at in (0x40, 0x48, 0x50)] == [7, 9, 10]
        assert [data for kind, data in records(stream + final) if kind in (3, 7)] == [
            b"[[64, 7]]",
            b"[[72, 8]]",
            b"[[72, 9]]",
            b"[[80, 10]]",
        ]


def test_a_model_that_sent_in_a_session_that_is_over_sends_all_again(
    streaming: ServerProcess,
) -> None:
    with connected(streaming) as client:
        client.write32(BAR0, 0x40, 7)
        go(client, PRE_COPY)
        read_all(client)
        stream = save_again(client)
        client.done(raw.RESET)
        load(client, stream)
        go(client, RUNNING)
        assert client.read32(BAR0, 0x40) == 7


def test_a_pre_copy_in_which_the_model_has_failed_can_only_be_given_up(
    serve: Callable[..., ServerProcess],
) -> None:
    with connected(serve("tests.fault.migrating:Breaking")) as client:
        go(client, PRE_COPY)
        assert client.refused(raw.MIG_DATA_READ, data_read(PIECE)) == errno.ENODATA
        assert client.refused(raw.MIG_DATA_READ, data_read(PIECE)) == errno.EIO
        assert refuses(client, STOP_COPY) == errno.EIO
        assert state(client) == PRE_COPY
        go(client, RUNNING)
        save_again(client)


@pytest.mark.parametrize("size", [1, 7, 4096, PIECE])
def test_a_stream_may_be_read_and_written_in_pieces_of_any_size(
    edu: ServerProcess, size: int
) -> None:
    with connected(edu) as client:
        client.write32(BAR0, LIVENESS, 0x12345678)
        go(client, STOP_COPY)
        stream = read_all(client, size)
        assert read_some(client, size) == b""
        client.done(raw.RESET)
        go(client, RESUMING)
        write_all(client, stream, size)
        go(client, RUNNING)
        assert client.read32(BAR0, LIVENESS) == 0xEDCBA987


def test_memory_that_was_not_used_is_not_sent(serve: Callable[..., ServerProcess]) -> None:
    with connected(serve("testdev")) as client:
        fill(client, 7)
        assert len(save(client)) < 64 * PAGE


def test_a_device_says_how_much_there_is_to_read(serve: Callable[..., ServerProcess]) -> None:
    def left() -> int:
        return client.done(raw.DEVICE_FEATURE, feature(GET | DATA_SIZE)).words("IIQ")[2]

    with connected(serve("testdev")) as client:
        assert left() == 0
        client.write(BAR2, 0, pattern(PIECE))
        assert left() == PIECE
        go(client, PRE_COPY)
        assert left() > PIECE
        read_all(client)
        assert left() == 0
        client.write(BAR2, PAGE, b"changed")
        assert left() == PAGE


def test_what_a_client_has_mapped_arrives(source: ServerProcess, target: ServerProcess) -> None:
    with both(source, target) as (one, other):
        with mapped(one) as view:
            view[:4] = b"here"
            stream = save(one)
        with mapped(other) as view:
            load(other, stream)
            assert bytes(view[:4]) == b"here"


@contextmanager
def mapped(client: RawClient) -> Iterator[mmap.mmap]:
    """The first page of the memory of the test device."""
    reply = client.done(raw.GET_REGION_INFO, raw.region_info(BAR2, PAGE))
    try:
        with mmap.mmap(reply.fds[0], PAGE) as view:
            yield view
    finally:
        raw.close(reply.fds)


# Streams that are refused


def outcome(client: RawClient, stream: bytes) -> int:
    """Load what must be refused; returns the errno that the last step gave."""
    go(client, RESUMING)
    for at in range(0, len(stream), PIECE):
        client.ask(raw.MIG_DATA_WRITE, data_write(stream[at : at + PIECE]))
    number = refuses(client, STOP)
    assert (state(client), in_step(client)) == (ERROR, True)
    return number


def test_a_stream_that_is_cut_off_is_refused_and_nothing_is_touched(
    source: ServerProcess, target: ServerProcess
) -> None:
    with both(source, target) as (one, other):
        fill(one, 8)
        stream = save(one)
        other.write(BAR2, 0, b"untouched")
        ends = [0, 1, HEAD, START_HEADER, len(stream) // 2, len(stream) - 1]
        for end in ends:
            assert outcome(other, stream[:end]) == errno.EINVAL
            assert other.read(BAR2, 0, 9) == b"untouched"
            other.done(raw.RESET)


def test_each_byte_of_a_stream_counts(movable: ServerProcess) -> None:
    """All are in the digest; some are refused for what they say."""
    with connected(movable) as client:
        client.write32(BAR0, 0x40, 7)
        stream = save(client)
        for at in range(len(stream)):
            client.done(raw.RESET)
            assert outcome(client, changed(stream, at, 1 << at % 8)) == errno.EINVAL


@pytest.mark.parametrize("model", ["Relative", "Stranger", "Older"])
def test_a_stream_of_another_device_is_refused(
    serve: Callable[..., ServerProcess], movable: ServerProcess, model: str
) -> None:
    """Of another layout, of other ids, of a newer model."""
    with connected(movable) as client:
        stream = save(client)
    with connected(serve(f"tests.fault.migrating:{model}")) as client:
        assert outcome(client, stream) == errno.EINVAL


def test_data_behind_the_end_is_refused(edu: ServerProcess) -> None:
    with connected(edu) as client:
        stream = save(client)
        assert outcome(client, stream + bytes(1)) == errno.EINVAL
        client.done(raw.RESET)
        assert outcome(client, stream + stream) == errno.EINVAL


def test_bytes_that_are_no_stream_are_refused_as_they_come(edu: ServerProcess) -> None:
    with connected(edu) as client:
        go(client, RESUMING)
        for _ in range(3):
            assert client.refused(raw.MIG_DATA_WRITE, data_write(b"\xff" * PAGE)) == errno.EINVAL
        assert (state(client), refuses(client, STOP)) == (RESUMING, errno.EINVAL)


def test_a_record_of_absurd_size_is_refused_by_its_head(edu: ServerProcess) -> None:
    with connected(edu) as client:
        start = save(client)[:START_HEADER]
        for kind in range(10):
            client.done(raw.RESET)
            go(client, RESUMING)
            write_all(client, start)
            head = struct.pack("<II", kind, 0xFFFF_FFF0)
            assert client.refused(raw.MIG_DATA_WRITE, data_write(head)) == errno.EINVAL


@pytest.mark.parametrize(
    ("bar", "offset", "size"),
    [
        *((bar, 0, 8) for bar in (0, 5, 1 << 31)),
        *((2, at, 8) for at in (MEMORY_SIZE, MEMORY_SIZE - 7, (1 << 64) - 8, (1 << 64) - 1)),
        *((2, 0, size) for size in (0, PIECE + 1)),
    ],
)
def test_memory_that_the_device_does_not_have_is_refused(
    target: ServerProcess, bar: int, offset: int, size: int
) -> None:
    with connected(target) as client:
        start = save(client)[:START_HEADER]
        go(client, RESUMING)
        write_all(client, start)
        piece = struct.pack("<IIIIQ", 2, 16 + size, bar, 0, offset) + bytes(size)
        halves = [piece[: PIECE // 2], piece[PIECE // 2 :]]
        answers = [client.ask(raw.MIG_DATA_WRITE, data_write(half)).error for half in halves]
        assert errno.EINVAL in answers
        assert in_step(client)


# Streams that were made up: whole, and with the digest that belongs to them

CONFIG, INTERRUPTS, MSIX, MODEL, END = 4, 5, 6, 7, 8


def built(found: list[tuple[int, bytes]]) -> bytes:
    """A stream of records; the last one is its digest."""
    stream = b"".join(struct.pack("<II", kind, len(data)) + data for kind, data in found)
    digest = hashlib.blake2b(stream, digest_size=16).digest()
    return stream + struct.pack("<II", END, len(digest)) + digest


def test_a_stream_is_what_is_documented(target: ServerProcess) -> None:
    with connected(target) as client:
        fill(client, 9)
        stream = save(client)
        found = records(stream)
        assert built(found[:-1]) == stream
        kinds = [kind for kind, _ in found if kind != 2]
        assert kinds == [1, CONFIG, INTERRUPTS, MSIX, MODEL, END]


@pytest.mark.parametrize(
    ("kind", "at", "value"),
    [
        (CONFIG, 0x02, 0x06),  # the device id
        (CONFIG, 0x06, 0x00),  # status: no capabilities
        (CONFIG, 0x34, 0x00),  # their list
        (CONFIG, 0x10, 0x01),  # a BAR of ports
        (CONFIG, 0x18, 0xFF),  # low bits of an address
        (INTERRUPTS, 0, 2),  # a second pin
        (INTERRUPTS, 4, 1),  # an MSI of a device without
        (MSIX, 512 + 4, 1),  # the 33rd vector
        (MODEL, 76, 3),  # a DMA in no direction
        (MODEL, 95, 0xFF),  # one that leaves the memory
    ],
)
def test_values_that_the_device_cannot_have_are_refused(
    target: ServerProcess, kind: int, at: int, value: int
) -> None:
    with connected(target) as client:
        found = records(save(client))[:-1]
        made = [(k, changed_to(data, at, value) if k == kind else data) for k, data in found]
        client.done(raw.RESET)
        assert outcome(client, built(made)) == errno.EINVAL


def changed_to(data: bytes, at: int, value: int) -> bytes:
    """Bytes of which one is another."""
    return data[:at] + bytes([value]) + data[at + 1 :]


def test_status_bits_that_the_device_changes_may_differ(edu: ServerProcess) -> None:
    """INTx is asserted on the one side, and was not on the other."""
    with connected(edu) as client:
        client.write32(BAR0, 0x60, 1)
        stream = save(client)
        client.done(raw.RESET)
        load(client, stream)
        assert client.read(raw.CONFIG, 6, 1)[0] & 8


@pytest.mark.parametrize("kind", [1, CONFIG, INTERRUPTS, MSIX, MODEL])
@pytest.mark.parametrize("how", ["missing", "twice", "last", "shorter", "longer"])
def test_records_that_are_not_in_their_places_are_refused(
    target: ServerProcess, kind: int, how: str
) -> None:
    with connected(target) as client:
        found = records(save(client))[:-1]
        at = next(n for n, (number, _) in enumerate(found) if number == kind)
        data = found[at][1]
        put = {
            "missing": [],
            "twice": [(kind, data)] * 2,
            "last": [],
            "shorter": [(kind, data[:-1])],
            "longer": [(kind, data + b"x")],
        }[how]
        made = found[:at] + put + found[at + 1 :]
        if how == "last" and kind != MODEL:
            made.append((kind, data))
        client.done(raw.RESET)
        assert outcome(client, built(made)) == errno.EINVAL


def test_pre_copy_for_a_model_that_has_none_is_refused(target: ServerProcess) -> None:
    with connected(target) as client:
        found = records(save(client))[:-1]
        client.done(raw.RESET)
        assert outcome(client, built([found[0], (3, b"x"), *found[1:]])) == errno.EINVAL


def test_a_dma_that_a_device_can_have_is_taken_on(target: ServerProcess) -> None:
    """Made up, since a test device that runs has begun one as soon as it is told."""
    with memfd(PAGE, pattern(PAGE)) as fd, connected(target) as client:
        found = records(save(client))[:-1]
        state_of_model = found[-1][1]
        dma = struct.pack("<IQQQ", 1, IOVA, 0, PAGE)
        client.done(raw.RESET)
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        load(client, built([*found[:-1], (MODEL, state_of_model[:-28] + dma)]))
        client.enable_bus_master()
        go(client, RUNNING)
        assert finish_test_dma(client) == 0
        assert client.read(BAR2, 0, PAGE) == pattern(PAGE)


def test_a_model_takes_no_more_than_its_quota(serve: Callable[..., ServerProcess]) -> None:
    server = serve("tests.fault.migrating:Streaming", "--max-state", "64K")
    with connected(server) as client:
        start = save(client)[:START_HEADER]
        go(client, RESUMING)
        write_all(client, start)
        piece = struct.pack("<II", 3, 1) + b"x"
        before = resident(server.pid)
        write_all(client, piece * (65536 // 9 + 1))
        assert client.refused(raw.MIG_DATA_WRITE, data_write(piece)) == errno.EINVAL
        assert resident(server.pid) - before < 16 << 20


def test_a_session_leaves_nothing_behind(source: ServerProcess) -> None:
    with connected(source) as client:
        held = len(open_fds(source.pid))
        for _ in range(3):
            load(client, save(client))
            client.done(raw.RESET)
        assert len(open_fds(source.pid)) == held
